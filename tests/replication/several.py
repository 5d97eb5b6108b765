"""Several nodes in one process: each with a block store of its own on the disk, over one database in memory. They read
from each other's disks without a network."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bytecache.faults import NoSync
from tests.metadata.queueing import take_all
from tests.metadata.world import MASTER, etag_of, open_kind
from tests.replication.directory_origin import DirectoryOrigin
from tigrislike.admin.fsck import fsck
from tigrislike.bytecache import BlockStore, MissingBlob, NotAtSource, SourceUnavailable
from tigrislike.metadata import Bucket, Draft, Metadata
from tigrislike.metadata import origins as places
from tigrislike.metadata.homes import ANYBODY, region_destination
from tigrislike.metadata.kv import Engine, ManualClock
from tigrislike.metadata.nodes import OPEN_REGION, OPEN_REGION_NS
from tigrislike.metadata.records import Beat, Content, Home, Item, OriginPlace
from tigrislike.metadata.records import Node as NodeRecord
from tigrislike.replication.consumer import Consumer, Worked
from tigrislike.replication.lacking import Restore
from tigrislike.replication.membership import BEAT_S, Member, Members
from tigrislike.replication.moving import Moving
from tigrislike.replication.origins import Origins
from tigrislike.replication.reclaim import reclaim_tasks
from tigrislike.replication.remote import RemoteSource
from tigrislike.replication.replicate import Copying, Hold, Release, Replicate
from tigrislike.replication.repolicy import FollowPolicy
from tigrislike.replication.tasks import Task
from tigrislike.replication.write_back import Discard, WriteBack

BLOCK = 64 * 1024
SECOND = 1_000_000_000


def data_of(seed: int, size: int = 2 * BLOCK + 17) -> bytes:
    return random.Random(seed).randbytes(size)


class Disks:
    """Reads from other nodes' disks: what they have durably or cached, and, where they gather, what they can fetch.

    Attributes:
        asked: (who was asked, blob, gather) of every read.
    """

    def __init__(self, several: Several) -> None:
        self._several = several
        self.asked: list[tuple[bytes, bytes, bool]] = []

    async def read(
        self, peer: Member, blob_id: bytes, size: int, start: int, stop: int, *, gather: bool = False
    ) -> AsyncIterator[bytes | memoryview]:
        self.asked.append((peer.node, blob_id, gather))
        node = self._several.by_id[peer.node]
        if node.down:
            raise SourceUnavailable(f"node {node.number} is down")
        blocks = node.blocks if gather else node.disk
        try:
            async for piece in blocks.open_blob(blob_id, size).read(start, stop):
                yield bytes(piece)
        except MissingBlob as error:
            raise NotAtSource(str(error)) from error


class Node:
    """One of them.

    Attributes:
        blocks: its block store; `disk` is the same without a source.
        down: it neither works nor answers.
        gate: awaited before it fetches bytes to keep.
        fetched: bytes for which that was.
    """

    def __init__(self, several: Several, number: int, metadata: Metadata, root: Path) -> None:
        self.number = number
        self.root = root
        self.metadata = metadata
        self.region = metadata.context.home.region
        self.id = metadata.context.home.node
        self.down = False
        self.fetched = 0
        self.beats = 0
        self.blocks = BlockStore.open(root, block_size=BLOCK, fs=NoSync(), reserve_bytes=0)
        self.disk = BlockStore.open(root, block_size=BLOCK, fs=NoSync(), reserve_bytes=0)
        self.members = Members(metadata, clock_s=lambda: several.now_s)
        self.peers = Disks(several)
        self.origins = Origins(metadata, several.origin, clock_s=lambda: several.now_s)
        self.source = RemoteSource(
            metadata, self.members, self.peers, origins=self.origins, clock_s=lambda: several.now_s
        )
        self.blocks.fill_from(self.source)
        self.gate: Callable[[int], Awaitable[None]] = self._count
        self.moving = Moving(root)
        self.copying = Copying(metadata, self.blocks, self.members, self.moving, lambda count: self.gate(count))
        self.release = Release(metadata, self.blocks, self.members, self.moving)
        self.replicate = Replicate(metadata, self.members, self.copying)
        self.tasks: list[Task] = [
            self.replicate,
            Hold(self.copying),
            self.release,
            *reclaim_tasks(metadata, self.blocks, self.origins, self.moving),
            WriteBack(metadata, self.blocks, self.members, self.moving, self.origins),
            Discard(metadata, self.origins),
            FollowPolicy(metadata, self.members),
            Restore(metadata, self.members),
        ]

    async def _count(self, count: int) -> None:
        self.fetched += count

    async def close(self) -> None:
        self.moving.close()
        await self.blocks.aclose()
        await self.disk.aclose()

    async def drain(self) -> Worked:
        """Work off what is owed to it, to its region and to anybody."""
        destinations = self.id, region_destination(self.region), ANYBODY
        consumer = Consumer(self.metadata.queue, destinations, self.tasks)
        await consumer.drain()
        return consumer.worked

    async def read(self, blob_id: bytes, size: int) -> bytes:
        return b"".join([bytes(piece) async for piece in self.blocks.open_blob(blob_id, size).read(0, size)])

    async def home(self) -> Counter[bytes]:
        """Blocks in `home/` by their blobs."""
        files = (path.name for path in (self.root / "home").rglob("*") if path.is_file())
        return Counter(bytes.fromhex(name.partition(".")[0]) for name in files)


class Several:
    """All of them, in the regions that they were made with.

    Attributes:
        origins: directories that play origins, by their URLs.
    """

    def __init__(self, engine: Engine, clock: ManualClock, folder: Path) -> None:
        self.engine = engine
        self.clock = clock
        self.folder = folder
        self.origins: dict[str, DirectoryOrigin] = {}
        self.now_s = 1000.0
        self.nodes: list[Node] = []
        self.by_id: dict[bytes, Node] = {}

    async def join(self, folder: Path, regions: Sequence[str], decay_s: float) -> None:
        for number, region in enumerate(regions):
            metadata = await Metadata.open(
                self.engine,
                master_key=MASTER,
                node_id=b"node-%011d" % number,
                region=region,
                reclaim_grace_s=0,
                replica_decay_s=decay_s,
            )
            node = Node(self, number, metadata, folder / str(number))
            await node.blocks.reconcile()
            await metadata.join(NodeRecord(node.id, region, f"https://node-{number}"))
            self.nodes.append(node)
            self.by_id[node.id] = node
        # There is nothing yet that a region which has got its first node could be owed.
        self.clock.advance(2 * OPEN_REGION_NS)
        for claimed in await take_all(self.nodes[0].metadata):
            assert claimed.item.task == OPEN_REGION
            assert await self.nodes[0].metadata.queue.finish(claimed)

    async def beat(self) -> None:
        """Everybody who is up shows life, and all look."""
        for node in self.nodes:
            if not node.down:
                node.beats += 1
                await node.metadata.beat(node.id, Beat(0, node.beats))
        self.now_s += BEAT_S
        for node in self.nodes:
            await node.members.refresh()

    def elapse(self, seconds: float) -> None:
        self.clock.advance(int(seconds * SECOND))

    async def settle(self) -> None:
        """Beat for as long as it takes until those who are down are known to be, and the others to live."""
        for _ in range(8):
            await self.beat()

    async def drain(self) -> Worked:
        """Let all work until there is nothing left that is due."""
        total = Worked()
        while True:
            worked = [await node.drain() for node in self.nodes if not node.down]
            for each in worked:
                total.done += each.done
                total.failed += each.failed
            if not any(each.done for each in worked):
                return total

    async def bucket(self, policy: str = "", durability: str = "local", name: str = "bucket") -> Bucket:
        metadata = self.nodes[0].metadata
        await metadata.create_bucket(name, "me", region_policy=policy)
        return await metadata.change_bucket(name, durability=durability)

    def origin(self, place: OriginPlace) -> DirectoryOrigin:
        """The origin at `place`, which is there from then on."""
        folder = self.folder / place.url.rpartition("/")[2]
        return self.origins.setdefault(place.url, DirectoryOrigin(folder))

    async def back(self, name: str = "bucket", durability: str = "write-back", origin: str = "origin") -> Bucket:
        """Give a bucket a backing origin."""
        place = OriginPlace(f"file:///{origin}")
        self.origin(place)
        return await self.nodes[0].metadata.use_origin(name, places.BACKING, place, durability=durability)

    async def unback(self, name: str = "bucket", durability: str = "local") -> Bucket:
        return await self.nodes[0].metadata.use_origin(name, places.BACKING, None, durability=durability)

    async def store(self, node: Node, data: bytes) -> bytes:
        """A finished blob in `incoming/`."""
        writer = node.blocks.create_blob()
        await writer.write(data)
        await writer.finish()
        return writer.blob_id

    async def put(self, node: Node, bucket: Bucket, key: str, data: bytes, *others: Home) -> bytes:
        """An object of one blob, whose id is returned."""
        blob_id = await self.store(node, data)
        draft = Draft(size=len(data), etag=etag_of(data), blob=blob_id, others=others)
        await node.metadata.put_object(bucket, key, draft)
        await node.blocks.publish(blob_id)
        return blob_id

    async def content(self, content_id: bytes) -> Content:
        content = await self.nodes[0].metadata.content(content_id)
        assert content is not None
        return content

    async def homes(self, content_id: bytes) -> set[int]:
        """Numbers of the nodes that are homes of all of a content."""
        content = await self.content(content_id)
        return {self.by_id[home.node].number for home in content.homes if home.whole}

    async def sound(self) -> None:
        for node in self.nodes:
            findings = [finding async for finding in fsck(node.metadata, node.disk, pause_s=0)]
            assert findings == [], findings

    async def gone(self, *blob_ids: bytes) -> None:
        """Nothing is left of them anywhere."""
        for node in self.nodes:
            assert not set(blob_ids) & set(await node.home())
            assert not {block.blob_id for block in await node.blocks.cached_blocks()} & set(blob_ids)
        for blob_id in blob_ids:
            assert await self.nodes[0].metadata.content(blob_id) is None
            assert await self.nodes[0].metadata.blob(blob_id) is None
        for node in self.nodes:
            assert not set(await node.metadata.homes_of(node.id)) & set(blob_ids)


@contextlib.asynccontextmanager
async def several(
    folder: Path, regions: Sequence[str], *, kind: str = "memory", decay_s: float = 7 * 86400, seed: int = 0
) -> AsyncIterator[Several]:
    clock = ManualClock()
    async with open_kind(kind, folder, clock=clock, seed=seed) as engine:
        it = Several(engine, clock, folder)
        try:
            await it.join(folder, regions, decay_s)
            await it.beat()
            await it.beat()
            yield it
        finally:
            for node in it.nodes:
                await node.close()


def play(folder: Path, regions: str, story: Callable[[Several], Awaitable[None]], **options: Any) -> None:
    """Run a story on nodes in `regions`, separated by blanks."""

    async def main() -> None:
        async with several(folder, regions.split(), **options) as it:
            await story(it)

    asyncio.run(main())


def item(task: str, subject: bytes, bucket: bytes = b"") -> Item:
    return Item(task, subject, 0, 0, bucket=bucket)
