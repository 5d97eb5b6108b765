"""Buckets with a backing origin while their node is killed at every step, its disk is lost, or is too small, and while
the origin is away: what was acknowledged is read, and nothing is left at the origin that nobody needs.

A directory plays the origin (`backing_node`), so that a test sees what is there, and can take it away.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import time
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.crash.backing_node import COMMAND, KILL_AT, ORIGINS, open_directory
from tests.crash.inprocess import part_list
from tests.crash.requests import Client, InDoubt, NotSent, Refused
from tests.nodes import RunningNode, engine_settings, start_node
from tests.replication.directory_origin import DirectoryOrigin
from tigrislike.admin.fsck import fsck
from tigrislike.bytecache import BlockStore
from tigrislike.config import Settings
from tigrislike.metadata import Metadata
from tigrislike.metadata import origins as places
from tigrislike.metadata.homes import ANYBODY, region_destination
from tigrislike.metadata.keyspace import subspace
from tigrislike.metadata.kv import ManualClock, open_engine
from tigrislike.metadata.records import Elsewhere, Item, OriginPlace
from tigrislike.metadata.records import elsewhere as elsewhere_codec
from tigrislike.node import load_master_key
from tigrislike.replication.consumer import Consumer
from tigrislike.replication.membership import Members
from tigrislike.replication.moving import Moving
from tigrislike.replication.origins import Origins
from tigrislike.replication.reclaim import reclaim_tasks
from tigrislike.replication.write_back import Discard

BLOCK = 2 * 1024 * 1024
MIB = 1024 * 1024
BUCKET = "backed"
TIMEOUT_S = 60.0
DAY_NS = 86_400 * 10**9


class Store:
    """A store whose bucket has a backing origin, and what its client knows of it.

    Attributes:
        known: what each object may be: its bytes, and None where it may not be there.
    """

    def __init__(self, folder: Path, durability: str) -> None:
        self.data_dir = folder / "data"
        self.origins = folder / "origins"
        self.origins.mkdir(parents=True)
        self.origin = DirectoryOrigin(self.origins / "origin")
        self.known: dict[str, list[bytes | None]] = {}
        self.node: RunningNode | None = None
        asyncio.run(self._found(durability))

    async def _found(self, durability: str) -> None:
        async with self.at_rest() as (metadata, _):
            await metadata.ensure_root()
            await metadata.create_bucket(BUCKET, "root")
            place = OriginPlace("file:///origin")
            await metadata.use_origin(BUCKET, places.BACKING, place, durability=durability)

    @contextlib.asynccontextmanager
    async def at_rest(self, days_later: int = 0) -> AsyncIterator[tuple[Metadata, BlockStore]]:
        settings = Settings(data_dir=self.data_dir, block_size=BLOCK, **engine_settings(self.data_dir))
        settings.cache_dir.mkdir(parents=True, exist_ok=True)
        clock = ManualClock(time.time_ns() + days_later * DAY_NS)
        async with contextlib.AsyncExitStack() as stack:
            blocks = BlockStore.open(settings.cache_dir, block_size=BLOCK)
            stack.callback(blocks.close)
            # The key is made before the database, as by `serve`: a database without its key is refused.
            master = load_master_key(settings)
            engine = await open_engine(settings.metadata, clock=clock)
            stack.push_async_callback(engine.close)
            yield (
                await Metadata.open(engine, master_key=master, node_id=blocks.node_id, region="local"),
                blocks,
            )

    def start(self, *flags: str, kill_at: int = 0) -> Client:
        (self.origins / "steps").unlink(missing_ok=True)
        self.node = start_node(
            self.data_dir,
            f"--block-size={BLOCK}",
            "--disk-reserve=0",
            "--reclaim-grace=0",
            "--access-log=off",
            "--sweep-interval=1s",
            "--queue-item-lease=3s",
            "--queue-pointer-lease=1s",
            "--queue-scan=0.5s",
            *flags,
            command=COMMAND,
            environment={ORIGINS: str(self.origins), KILL_AT: str(kill_at)},
        )
        return Client(self.node)

    def stop(self) -> None:
        assert self.node is not None
        assert self.node.stop() == 0

    def kill(self) -> None:
        if self.node is not None:
            self.node.kill()

    # --- what the client does

    def put(self, client: Client, key: str, data: bytes) -> None:
        before = self.known.get(key, [None])
        self.known[key] = [*before, data]
        client.put_unsigned(f"/{BUCKET}/{key}", {}, data)
        self.known[key] = [data]

    def delete(self, client: Client, key: str) -> None:
        self.known[key] = [*self.known[key], None]
        client.call("DELETE", f"/{BUCKET}/{key}")
        self.known[key] = [None]

    def copy(self, client: Client, source: str, key: str) -> None:
        before = self.known.get(key, [None])
        self.known[key] = [*before, *self.known[source]]
        client.call("PUT", f"/{BUCKET}/{key}", headers={"x-amz-copy-source": f"/{BUCKET}/{source}"})
        self.known[key] = self.known[source]

    def multipart(self, client: Client, key: str, *datas: bytes, replaced: bytes = b"") -> None:
        path = f"/{BUCKET}/{key}"
        answer = client.call("POST", path, {"uploads": ""})
        upload_id = answer.body.partition(b"<UploadId>")[2].partition(b"<")[0].decode()
        if replaced:
            client.put_unsigned(path, {"partNumber": "1", "uploadId": upload_id}, replaced)
        etags = {}
        for number, data in enumerate(datas, 1):
            sent = client.put_unsigned(path, {"partNumber": str(number), "uploadId": upload_id}, data)
            etags[number] = sent.headers["etag"]
        before = self.known.get(key, [None])
        self.known[key] = [*before, b"".join(datas)]
        client.document("POST", path, {"uploadId": upload_id}, part_list(etags))
        self.known[key] = [b"".join(datas)]

    def abort_uploads(self, client: Client) -> None:
        """Those that a kill left unfinished: their parts are durable here alone, and rightly so."""
        listed = ET.fromstring(client.call("GET", f"/{BUCKET}", {"uploads": ""}).body)
        for upload in listed.findall(".//{*}Upload"):
            key, upload_id = (upload.findtext("{*}" + name) for name in ("Key", "UploadId"))
            client.call("DELETE", f"/{BUCKET}/{key}", {"uploadId": str(upload_id)})

    def life(self, client: Client, prefix: str) -> bool:
        """Everything that can happen to objects, until the node is killed. Whether it was."""
        assert self.node is not None
        rng = random.Random(f"life {prefix}")
        try:
            self.put(client, prefix + "small", rng.randbytes(1000))
            self.put(client, prefix + "large", rng.randbytes(2 * BLOCK + 17))
            self.put(client, prefix + "replaced", rng.randbytes(100_000))
            self.put(client, prefix + "replaced", rng.randbytes(200_000))
            five = [rng.randbytes(5 * MIB), rng.randbytes(100_000)]
            self.multipart(client, prefix + "parts", *five, replaced=rng.randbytes(50_000))
            self.copy(client, prefix + "large", prefix + "copy")
            self.delete(client, prefix + "large")
            self.put(client, prefix + "gone", rng.randbytes(300_000))
            self.delete(client, prefix + "gone")
            self.wait_until_quiet()
        except (InDoubt, NotSent):
            self.node.process.wait(TIMEOUT_S)
        return self.node.process.poll() is not None

    # --- what must hold

    def read(self, client: Client) -> None:
        """Every object is what it may be; it is that from then on."""
        for key, may_be in self.known.items():
            try:
                found: bytes | None = client.call("GET", f"/{BUCKET}/{key}").body
            except Refused as refused:
                if refused.answer.status != 404:
                    raise
                found = None
            assert found in may_be, f"{key}: {None if found is None else len(found)} bytes"
            self.known[key] = [found]

    def wait_until_quiet(self) -> None:
        """Nothing of a node is durable here alone: its queue is worked off."""

        def quiet() -> bool:
            assert self.node is not None
            return self.node.process.poll() is not None or not (self.home_files() or self.incoming())

        try:
            until(quiet, "all that was written is at the origin, and nothing here but cache")
        except AssertionError:
            print("left:", *self.home_files(), *self.incoming(), *asyncio.run(self.owed()), sep="\n")
            raise

    async def owed(self) -> list[Item]:
        async with self.at_rest() as (metadata, _):
            queue = metadata.queue
            found = [item for zone in await queue.zones() for _, item in await queue.items(zone)]
            return found + [item for zone in await queue.zones() for _, item in await queue.letters(zone)]

    def home_files(self) -> list[Path]:
        return [path for path in (self.data_dir / "cache" / "home").rglob("*") if path.is_file()]

    def incoming(self) -> list[Path]:
        return list((self.data_dir / "cache" / "incoming").iterdir())

    async def settle(self) -> None:
        """Days later all that is left to do is done; then records, blocks and origin agree."""
        for days in (1, 2, 3, 4):
            async with self.at_rest(days) as (metadata, blocks):
                await blocks.reconcile()
                origins = Origins(metadata, lambda place: open_directory(self.origins, place))
                members = Members(metadata)
                await members.refresh()
                destinations = [blocks.node_id, region_destination("local"), ANYBODY]
                with contextlib.closing(Moving(blocks.layout.root)) as moving:
                    tasks = [*reclaim_tasks(metadata, blocks, origins, moving), Discard(metadata, origins)]
                    consumer = Consumer(metadata.queue, destinations, tasks)
                    await consumer.drain()
                await blocks.sweep(metadata.settle_blob)
        async with self.at_rest(4) as (metadata, blocks):
            assert [finding async for finding in fsck(metadata, blocks, pause_s=0)] == []
            assert self.origin.keys() == {row.key for row in await _elsewhere(metadata)}

    def lose_disk(self) -> None:
        shutil.rmtree(self.data_dir / "cache")


async def _elsewhere(metadata: Metadata) -> list[Elsewhere]:
    async def rows(tr: object) -> list[Elsewhere]:
        found = await tr.get_range(*subspace(metadata.context.keys.elsewheres))  # type: ignore[attr-defined]
        return [elsewhere_codec.decode(value) for _, value in found]

    return await metadata.engine.read(rows)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def shown(store: Store):  # type: ignore[no-untyped-def]
    try:
        yield
    except BaseException:
        if store.node is not None:
            print(store.node.log.read_text()[-6000:])
        raise
    finally:
        store.kill()


def live(store: Store, prefix: str, kill_at: int) -> bool:
    """A start, a look at what there was, and a life. Whether the node was killed meanwhile."""
    try:
        client = store.start(kill_at=kill_at)
    except AssertionError as error:
        if "did not start" not in str(error):
            raise
        return True  # it makes up for the last time as soon as it runs
    assert store.node is not None
    try:
        store.read(client)
        store.abort_uploads(client)
    except (InDoubt, NotSent):
        store.node.process.wait(TIMEOUT_S)
        return True
    return store.life(client, prefix)


def end(store: Store) -> None:
    """All is written, the disk is lost, and nothing else is."""
    client = store.start()
    store.read(client)
    store.abort_uploads(client)
    store.wait_until_quiet()
    store.read(client)
    store.stop()
    asyncio.run(store.settle())
    store.lose_disk()
    client = store.start()
    store.read(client)
    store.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("durability", "step"),
    [("write-back", 1000), *((each, step) for each in ("write-back", "write-through") for step in (5, 15, 25, 35))],
)
def test_a_node_killed_at_a_step_loses_nothing(durability: str, step: int, tmp_path: Path) -> None:
    store = Store(tmp_path, durability)
    with shown(store):
        assert live(store, "", step) == (step < 1000)
        store.kill()
        end(store)


@pytest.mark.soak
@pytest.mark.parametrize("durability", ["write-back", "write-through"])
def test_a_node_killed_at_every_step_loses_nothing(durability: str, tmp_path: Path) -> None:
    """At the first step, at the second after the next start, and so on: also those that make up for the last time."""
    store = Store(tmp_path, durability)
    with shown(store):
        step = 1
        while live(store, f"{step}-", step):
            store.kill()
            if step % 15 == 0:
                end(store)
            step += 1
        store.kill()
        end(store)
        print(step, "steps")
        assert step > 30
