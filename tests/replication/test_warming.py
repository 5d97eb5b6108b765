"""Copies in caches: a region gets one where it may and needs to, as far as there is room."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bytecache.blobs import BLOCK
from tests.bytecache.faults import NoSync
from tests.bytecache.scripted_source import ScriptedSource
from tests.kv.memory_engine import MemoryEngine
from tests.metadata.world import MASTER, NODE, blob_id, large, listed, no_combine, no_composite, part
from tigrislike.bytecache import BlockStore, SourceUnavailable
from tigrislike.metadata import Extent, Metadata, Part, UploadDraft, homes
from tigrislike.metadata.kv import ManualClock
from tigrislike.metadata.records import Home
from tigrislike.replication.consumer import Consumer
from tigrislike.replication.remote import BytesLost
from tigrislike.replication.warming import Warm

SIZE = 2 * BLOCK + 17
SECOND = 1_000_000_000


@dataclass
class World:
    """A store of two nodes: `far` writes and has the bytes, `near` is what warms."""

    far: Metadata
    near: Metadata
    blocks: BlockStore
    source: ScriptedSource
    clock: ManualClock
    warm: Warm

    async def put(self, key: str, name: bytes, size: int = SIZE, **draft: Any) -> bytes:
        """A content that is at home on `far`; its id."""
        self.source.blobs[blob_id(name)] = random.Random(name).randbytes(size)
        bucket = await self.far.bucket("bucket")
        await self.far.put_object(bucket, key, large(name, size, **draft))
        return blob_id(name)

    async def owe(self, *keys: str) -> None:
        await self.near.owe_warm_objects(await self.near.bucket("bucket"), keys)

    async def work(self) -> Consumer:
        """Work off what is due now, at `near`."""
        consumer = Consumer(self.near.queue, [homes.region_destination("near")], [self.warm])
        await consumer.drain()
        return consumer

    async def cached(self) -> list[tuple[bytes, int]]:
        """Blocks of the cache: blob and number."""
        return sorted((block.blob_id, block.number) for block in await self.blocks.cached_blocks())


def play(folder: Path, story: Callable[[World], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        clock = ManualClock()
        engine = MemoryEngine(seed=0, clock=clock)
        far = await Metadata.open(engine, master_key=MASTER, node_id=NODE, region="far")
        near = await Metadata.open(engine, master_key=MASTER, node_id=b"a node nearby..."[:16], region="near")
        far.regions.known = near.regions.known = frozenset({"far", "near"})
        await far.create_bucket("bucket", "me")
        source = ScriptedSource()
        blocks = BlockStore.open(folder / "near", fs=NoSync(), block_size=BLOCK, **{"reserve_bytes": 0, **options})
        try:
            blocks.fill_from(source)
            await blocks.reconcile()
            await story(World(far, near, blocks, source, clock, Warm(near, blocks, "near")))
        finally:
            await blocks.aclose()
            await engine.close()

    asyncio.run(main())


def blocks_of(*names: bytes) -> list[tuple[bytes, int]]:
    return sorted((blob_id(name), number) for name in names for number in range(3))


def test_what_is_owed_is_fetched_once(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.put("a", b"a")
        await world.put("b", b"b")
        await world.owe("a", "b", "no such key")
        await world.work()
        assert await world.cached() == blocks_of(b"a", b"b")
        assert (world.warm.warmed, world.warm.warmed_bytes, world.warm.left_out) == (2, 2 * SIZE, 0)
        asked = len(world.source.asked)
        await world.owe("a")
        await world.work()
        assert (world.warm.warmed_bytes, len(world.source.asked)) == (2 * SIZE, asked)

    play(tmp_path, story)


def test_parts_are_fetched_and_what_lends_some(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        bucket = await world.far.bucket("bucket")
        lender = await world.put("lender", b"lender")
        upload = await world.far.create_upload(bucket, "k", UploadDraft())
        size = 5 * 1024**2
        world.source.blobs[blob_id(b"own")] = bytes(size)
        own = part(1, b"own", size)
        lent = Part(2, 100, "e" * 32, "", 0, (Extent(lender, 5, 100, SIZE),), source=lender)
        for each in (own, lent):
            await world.far.put_part(bucket, "k", upload.upload_id, each)
        await world.far.complete_upload(
            bucket, "k", upload.upload_id, listed(own, lent), combine=no_combine, composite=no_composite
        )
        await world.owe("k")
        await world.work()
        assert {blob for blob, _ in await world.cached()} == {blob_id(b"own"), lender}
        assert world.warm.warmed == 2

    play(tmp_path, story)


def test_nothing_is_fetched_where_it_may_not_lie_or_lies_or_is_no_more(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.put("elsewhere", b"elsewhere", regions=("far",))
        mate = Home("near", b"another one here")
        await world.put("at home", b"at home", others=(mate,))
        gone = await world.put("gone", b"gone")
        await world.owe("elsewhere", "at home", "gone")
        await world.far.delete_object(await world.far.bucket("bucket"), "gone")
        world.clock.advance(3601 * SECOND)
        assert await world.far.reclaim_content(gone) == [gone]
        consumer = await world.work()
        assert consumer.worked.done.total() == 3
        assert (await world.cached(), world.source.asked, world.warm.warmed) == ([], [], 0)

    play(tmp_path, story)


def test_what_finds_no_room_is_left_out(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.put("k", b"k")
        await world.owe("k")
        consumer = await world.work()
        assert (world.warm.left_out, world.warm.warmed) == (1, 0)
        assert (consumer.worked.done.total(), consumer.worked.failed.total()) == (1, 0)

    play(tmp_path, story, cache_bytes=BLOCK // 2)


def test_what_nobody_can_give_any_more_is_left_out(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        def lost(*_: object) -> None:
            raise BytesLost("nobody has it")

        await world.put("k", b"k")
        await world.owe("k")
        world.source.script = lost
        consumer = await world.work()
        assert (world.warm.left_out, consumer.worked.done.total()) == (1, 1)

    play(tmp_path, story)


def test_what_nobody_can_give_now_is_tried_again(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        def away(*_: object) -> None:
            raise SourceUnavailable("whoever has it is away")

        await world.put("k", b"k")
        await world.owe("k")
        world.source.script = away
        assert (await world.work()).worked.failed.total() == 1
        world.source.script = lambda *_: None
        world.clock.advance(3600 * SECOND)
        while not (await world.work()).worked.done:  # it may join a fill that has failed and not ended yet
            world.clock.advance(3600 * SECOND)
        assert await world.cached() == blocks_of(b"k")

    play(tmp_path, story)


@pytest.mark.parametrize("status", ["Enabled", "Suspended"])
def test_what_is_written_to_an_accelerated_bucket_comes_by_itself(tmp_path: Path, status: str) -> None:
    async def story(world: World) -> None:
        await world.far.put_bucket_config("bucket", homes.ACCELERATION, status.encode())
        await world.put("k", b"k")
        await world.work()
        assert await world.cached() == (blocks_of(b"k") if status == "Enabled" else [])

    play(tmp_path, story)
