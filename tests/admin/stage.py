"""The scene of `scene.py` on a real node: what somebody finds who looks at a store in which things are wrong.

The node is of region `HERE`; the one of region `BUSY` only shows life, so that its flood stays; region `STUCK` has none
until `second` starts one. The origin answers by now, so that whatever is retried is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from tests.admin.scene import HERE, STUCK, Scene, beat, built
from tests.nodes import RunningNode, running_node
from tests.origin.lying import Lying, running_lying
from tigrislike.metadata import MasterKey, Metadata

BEAT_S = 2.0


@dataclass
class Stage:
    data_dir: Path
    scene: Scene
    node: RunningNode
    origin: Lying

    @contextlib.contextmanager
    def second(self) -> Iterator[RunningNode]:
        """A node of region `STUCK`, for the length of a `with` block."""
        with running_node(
            self.data_dir.with_name("second"),
            f"--region={STUCK}",
            f"--metadata=sqlite://{self.data_dir}/metadata.db",
            f"--master-key-file={self.data_dir}/master.key",
            "--allow-private-origins",
        ) as node:
            yield node


@contextlib.contextmanager
def staged(folder: Path, seed: int, *flags: str, flood: int = 300, facts_to: Path | None = None) -> Iterator[Stage]:
    """The scene for the length of a `with` block; `flags` and `facts_to` are the node's. Prints the seed."""
    data_dir = folder / "data"
    with (
        running_lying(seed) as origin,
        _made(data_dir, seed, origin, flood) as scene,
        running_node(data_dir, f"--region={HERE}", "--allow-private-origins", *flags, facts_to=facts_to) as node,
    ):
        yield Stage(data_dir, scene, node, origin)


@contextlib.contextmanager
def _made(data_dir: Path, seed: int, origin: Lying, flood: int) -> Iterator[Scene]:
    """The scene, made in a thread that then lets the node of region `BUSY` show life."""
    made: Future[tuple[Scene, asyncio.AbstractEventLoop]] = Future()
    over = asyncio.Event()

    async def main() -> None:
        async with built(data_dir, seed, flood=flood, origin=origin) as (scene, engine):
            master = MasterKey.load(None, data_dir / "master.key", create=False)
            metadata = await Metadata.open(engine, master_key=master, node_id=scene.nodes["busy"], region=HERE)
            made.set_result((scene, asyncio.get_running_loop()))
            count = 1
            while not over.is_set():
                count += 1
                await beat(metadata, scene, count)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), BEAT_S)

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            if made.done():
                raise
            made.set_exception(error)

    thread = threading.Thread(target=run, name="scene")
    thread.start()
    try:
        scene, loop = made.result(60)
        try:
            yield scene
        finally:
            loop.call_soon_threadsafe(over.set)
    finally:
        thread.join()
