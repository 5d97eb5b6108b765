"""A data directory moves to another engine with `admin copy-metadata` while clients write to its node.

What was acknowledged before the store was sealed is in the target, byte for byte, with every upload that was under way;
what was refused is not. The copy is killed at random points and run again, or given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import fresh_url
from tests.crash.audit import audit
from tests.crash.requests import Client, InDoubt, Refused
from tests.crash.writers import PLAIN, VERSIONED, Progress, Writer
from tests.e2e.wire import Answer
from tests.nodes import RunningNode, start_node
from tigrislike.bytecache import BlockStore
from tigrislike.metadata import Metadata
from tigrislike.metadata.kv import open_engine
from tigrislike.metadata.records import Draft
from tigrislike.metadata.secrets import MasterKey

BLOCK = 2 * 1024 * 1024
WRITERS = 4
TIMEOUT_S = 120.0


class Patient(Client):
    """A client that knows a sealed store's refusal for what it is, nothing having happened, and waits a little then."""

    refusals = 0

    def exchange(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        try:
            return super().exchange(method, target, headers, body)
        except InDoubt as doubt:
            if "takes no writes" not in str(doubt):
                raise
            Patient.refusals += 1
            threading.Event().wait(0.02)
            raise Refused(Answer(503, {}, str(doubt).encode())) from doubt


def content_of(key: str, size: int) -> bytes:
    return random.Random(key).randbytes(size)


class Move:
    """One data directory, its node, its clients, and the copy."""

    def __init__(self, directory: Path, target: str, seed: int) -> None:
        print(f"seed {seed}")
        self.rng = random.Random(seed)
        self.data_dir = directory / "data"
        self.source = f"sqlite://{self.data_dir}/metadata.db"
        self.target = target
        self.master_key = self.data_dir / "master.key"
        self.progress = Progress()
        self.writers = [Writer(f"w{n}", seed, self.progress) for n in range(WRITERS)]
        self.filled: dict[str, int] = {}
        self.node: RunningNode | None = None

    def start(self, metadata: str) -> RunningNode:
        flags = (
            f"--metadata={metadata}",
            f"--master-key-file={self.master_key}",
            f"--block-size={BLOCK}",
            "--disk-reserve=0",
            "--reclaim-grace=0",
            "--sweep-interval=1s",
            "--access-log=off",
        )
        if not self.master_key.exists():
            self.data_dir.mkdir(parents=True, exist_ok=True)
            self.master_key.write_text("5a" * 32)
        self.node = start_node(self.data_dir, *flags)
        return self.node

    def found(self, *, small: int, large: int) -> None:
        """Buckets, and so many objects that copying them takes a while."""
        client = Client(self.start(self.source))
        for bucket in (PLAIN, VERSIONED, "filled"):
            client.call("PUT", f"/{bucket}")
        body = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        client.document("PUT", f"/{VERSIONED}", {"versioning": ""}, body)
        self.filled |= {f"large/{n}": 3 * BLOCK // 2 + n for n in range(large)}
        for key, size in self.filled.items():
            client.call("PUT", f"/filled/{key}", body=content_of(key, size))
        inline = {f"small/{n:05d}": 8000 + n % 100 for n in range(small)}
        asyncio.run(self._fill(inline))
        self.filled |= inline

    async def _fill(self, sizes: dict[str, int]) -> None:
        async with self._opened(self.source) as (metadata, _):
            bucket = await metadata.bucket("filled")

            async def put(key: str, size: int) -> None:
                data = content_of(key, size)
                draft = Draft(size, hashlib.md5(data).hexdigest(), inline=data)
                await metadata.put_object(bucket, key, draft)

            keys = list(sizes)
            for at in range(0, len(keys), 200):
                await asyncio.gather(*(put(key, sizes[key]) for key in keys[at : at + 200]))

    @contextlib.asynccontextmanager
    async def _opened(self, url: str) -> Any:
        blocks = BlockStore.open(self.data_dir / "cache", block_size=BLOCK)
        engine = await open_engine(url)
        try:
            master = MasterKey.load(None, self.master_key, create=False)
            yield await Metadata.open(engine, master_key=master, node_id=blocks.node_id, region="local"), blocks
        finally:
            await engine.close()
            blocks.close()

    def write(self) -> None:
        assert self.node is not None
        self.writers = [writer.next_life(self.node) for writer in self.writers]
        for writer in self.writers:
            writer.client = Patient(self.node)
            writer.start()

    def quiet(self) -> None:
        for writer in self.writers:
            writer.finish()

    def wait_for_refusals(self, more: int = 20) -> None:
        """Until clients have met the seal."""
        until = len(self.progress.refusals) + more
        pause = threading.Event()
        for _ in range(int(TIMEOUT_S / 0.01)):
            if len(self.progress.refusals) >= until:
                return
            pause.wait(0.01)
        raise AssertionError("nobody was refused")

    def command(self, *flags: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TIGRISLIKE_")}
        return subprocess.Popen(
            [sys.executable, "-m", "tigrislike", "admin", "copy-metadata", f"--from={self.source}", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def copy(self) -> dict[str, Any]:
        """Run the copy to its end; what it said last."""
        process = self.command(f"--to={self.target}", "--json")
        said, complaint = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, complaint
        lines = [json.loads(line) for line in said.splitlines()]
        assert lines[-1]["digest"]
        print(len(lines), "steps:", lines[-1])
        result: dict[str, Any] = lines[-1]
        return result

    def copy_killed_after(self, steps: int, how: signal.Signals = signal.SIGKILL) -> str:
        """Kill the copy once it has told so many steps, unless it ends before; what it complained of."""
        process = self.command(f"--to={self.target}", "--json")
        assert process.stdout is not None
        for _ in range(steps):
            if not process.stdout.readline():
                break
        process.send_signal(how)
        _, complaint = process.communicate(timeout=TIMEOUT_S)
        return complaint

    def abort(self) -> str:
        process = self.command(f"--to={self.target}", "--abort")
        said, complaint = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, complaint
        return said

    def check(self) -> None:
        """Everything that any client knows is so, and every object of the filling is byte-identical."""
        assert self.node is not None
        for writer in self.writers:
            writer.check(self.node)
        client = Client(self.node)

        def same(key: str) -> bool:
            return client.call("GET", f"/filled/{key}").body == content_of(key, self.filled[key])

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(same, self.filled))

    def stop(self) -> None:
        assert self.node is not None
        assert self.node.stop() == 0
        assert "Traceback" not in self.node.log.read_text()

    def check_source_is_shut(self) -> None:
        with pytest.raises(InDoubt, match="takes no writes"):
            Client(self.node).call("PUT", "/filled/late", body=b"late")

    def audit(self, url: str) -> None:
        async def complaints() -> list[str]:
            async with self._opened(url) as (metadata, blocks):
                stats = await blocks.sweep(metadata.settle_blob)
                assert stats.failures == ()
                return await audit(metadata, blocks)

        assert asyncio.run(complaints()) == []

    def close(self) -> None:
        for writer in self.writers:
            writer.stop.set()
        if self.node is not None:
            self.node.kill()


@contextlib.contextmanager
def moving(directory: Path, target: str, seed: int) -> Iterator[Move]:
    move = Move(directory, target, seed)
    try:
        yield move
    except BaseException:
        if move.node is not None:
            print(move.node.log.read_text()[-5000:])
        raise
    finally:
        move.close()


def _moved_with_writers(move: Move, *, small: int, large: int, kills: int) -> None:
    move.found(small=small, large=large)
    move.write()
    move.progress.wait_for(100)
    for _ in range(kills):
        move.copy_killed_after(move.rng.randrange(1, 12))
    result = move.copy()
    move.wait_for_refusals()
    assert Client(move.node).call("GET", "/filled/small/00000").status == 200, "reads go on"
    move.quiet()
    acknowledged = move.progress.acknowledged
    move.check_source_is_shut()
    move.stop()

    move.start(move.target)
    move.check()
    # And the store lives on there: uploads begun before are completed, others begun.
    refusals = len(move.progress.refusals)
    move.write()
    move.progress.wait_for(acknowledged + 100)
    move.quiet()
    assert len(move.progress.refusals) == refusals
    move.check()
    move.stop()
    move.audit(move.target)
    print(acknowledged, "acknowledged before,", refusals, "refused,", result, move.progress.kinds)


@pytest.mark.parametrize("seed", [1])
def test_a_store_moves_to_another_file_while_clients_write(tmp_path: Path, seed: int) -> None:
    with moving(tmp_path, f"sqlite://{tmp_path}/target.db", seed) as move:
        _moved_with_writers(move, small=300, large=2, kills=1)


@pytest.mark.slow
@pytest.mark.fdb
@pytest.mark.parametrize("seed", [2, 3])
def test_a_store_moves_to_foundationdb_while_clients_write(tmp_path: Path, seed: int) -> None:
    with fresh_url() as url, moving(tmp_path, url, seed) as move:
        _moved_with_writers(move, small=6000, large=10, kills=0 if seed == 2 else 3)


@pytest.mark.slow
@pytest.mark.fdb
@pytest.mark.parametrize("seed", [4])
def test_a_move_given_up_goes_on_where_it_was_and_can_be_tried_again(tmp_path: Path, seed: int) -> None:
    with fresh_url() as url, moving(tmp_path, url, seed) as move:
        move.found(small=3000, large=4)
        move.write()
        move.progress.wait_for(50)
        for attempt in range(3):
            how = signal.SIGKILL if attempt else signal.SIGINT
            complaint = move.copy_killed_after(move.rng.randrange(1, 6), how)
            if how == signal.SIGINT:
                assert "takes no writes until the copy is complete" in complaint
                assert "Traceback" not in complaint
            move.wait_for_refusals()
            assert "takes writes again" in move.abort()
            move.progress.wait_for(move.progress.acknowledged + 50)
        move.quiet()
        move.check()
        move.write()
        move.copy()
        move.quiet()
        move.stop()
        move.start(url)
        move.check()
        move.stop()
        move.audit(url)
