"""Several nodes in one process: one database, a block store for each, and a clock that stands until it is moved.

Nodes read each other's block stores through `Wires`, which can be cut. Nothing runs by itself: `Cluster.beat` lets
nodes show life and look around, `Cluster.work` works off what is due.

    async with cluster(folder, a="iad", b="sjc") as it:
        content_id = await it["a"].put("k", data)
        await it.work()
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bytecache.blobs import BLOCK, drain
from tests.bytecache.faults import NoSync
from tests.metadata.world import MASTER, etag_of, open_kind
from tigrislike.bytecache import BlockStore, BytesError, NotAtSource, SourceUnavailable
from tigrislike.metadata import Bucket, Draft, Metadata
from tigrislike.metadata.homes import ANYBODY, region_destination
from tigrislike.metadata.kv import Engine, ManualClock
from tigrislike.metadata.placing import Regions
from tigrislike.metadata.records import Beat, Content, Home, Node
from tigrislike.replication.backing import NoOrigins
from tigrislike.replication.consumer import Consumer
from tigrislike.replication.demand import Decay
from tigrislike.replication.lacking import Restore
from tigrislike.replication.membership import BEAT_S, DEAD_AFTER_S, Member, Members
from tigrislike.replication.moving import Moving
from tigrislike.replication.reclaim import reclaim_tasks
from tigrislike.replication.remote import RemoteSource
from tigrislike.replication.repair import Drain, Repair, Return
from tigrislike.replication.replicate import Copying, Hold, Release, Replicate
from tigrislike.replication.repolicy import FollowPolicy, OpenRegion
from tigrislike.replication.tasks import Task

SECOND = 1_000_000_000
BUCKET = "bucket"


def data_of(seed: int, size: int = 2 * BLOCK + 17) -> bytes:
    return random.Random(seed).randbytes(size)


class Wires:
    """Reads of one node from another's block store: what peers do over the network."""

    def __init__(self) -> None:
        self.stores: dict[bytes, BlockStore] = {}
        self.down: set[bytes] = set()

    async def read(
        self, peer: Member, blob_id: bytes, size: int, start: int, stop: int, *, gather: bool = False
    ) -> AsyncIterator[bytes | memoryview]:
        if peer.node in self.down or peer.node not in self.stores:
            raise SourceUnavailable(f"{peer.node.hex()} is down")
        store = self.stores[peer.node]
        try:
            async for piece in store.open_blob(blob_id, size).read(start, stop):
                yield bytes(piece)
        except SourceUnavailable:
            raise
        except BytesError as error:
            raise NotAtSource(str(error)) from error


@dataclass
class ClusterNode:
    """A node of the cluster: its parts, and short ways to use it."""

    name: str
    region: str
    metadata: Metadata
    blocks: BlockStore
    root: Path
    members: Members
    source: RemoteSource
    tasks: Sequence[Task]
    beats: int = 0
    step_ns: int = 0
    up: bool = True
    worked: list[Consumer] = field(default_factory=list)

    @property
    def id(self) -> bytes:
        return self.blocks.node_id

    async def put(self, key: str, data: bytes, *, bucket: str = BUCKET, others: tuple[Home, ...] = ()) -> bytes:
        """Write an object here; the id of its content."""
        blob_id = await self.store(data)
        draft = Draft(size=len(data), etag=etag_of(data), blob=blob_id, others=others)
        await self.metadata.refresh()
        await self.metadata.put_object(await self.metadata.bucket(bucket), key, draft)
        await self.blocks.publish(blob_id)
        return blob_id

    async def store(self, data: bytes) -> bytes:
        """A finished blob that is not committed."""
        writer = self.blocks.create_blob()
        await writer.write(data)
        await writer.finish()
        return writer.blob_id

    async def get(self, blob_id: bytes, size: int = 2 * BLOCK + 17) -> bytes:
        """The bytes of a blob, from wherever they are. Raises BytesError."""
        return await drain(self.blocks.open_blob(blob_id, size).read(0, size))

    def files(self, tree: str = "home") -> int:
        return sum(path.is_file() for path in (self.root / tree).rglob("*"))


class Cluster:
    """The nodes by their names."""

    def __init__(self, engine: Engine, clock: ManualClock, folder: Path) -> None:
        self.engine = engine
        self.clock = clock
        self.wires = Wires()
        self.nodes: dict[str, ClusterNode] = {}
        self._folder = folder
        self._began_ns = engine.now_ns()

    def __getitem__(self, name: str) -> ClusterNode:
        return self.nodes[name]

    def now_s(self) -> float:
        return (self.engine.now_ns() - self._began_ns) / SECOND

    async def add(self, name: str, region: str, *, grace_s: float = 0) -> ClusterNode:
        """A node that has joined and beaten once."""
        blocks = BlockStore.open(self._folder / name, block_size=BLOCK, reserve_bytes=0, fs=NoSync())
        await blocks.reconcile()
        metadata = await Metadata.open(
            self.engine,
            master_key=MASTER,
            node_id=blocks.node_id,
            region=region,
            reclaim_grace_s=grace_s,
            regions=Regions(known=[region]),
        )
        members = Members(metadata, clock_s=self.now_s)
        source = RemoteSource(metadata, members, self.wires, clock_s=self.now_s)
        blocks.fill_from(source)
        moving = Moving(self._folder / name)
        copying = Copying(metadata, blocks, members, moving, _no_limit)
        tasks: list[Task] = [
            *reclaim_tasks(metadata, blocks, NoOrigins(), moving),
            Replicate(metadata, members, copying),
            Hold(copying),
            Release(metadata, blocks, members, moving),
            Decay(metadata, members),
            Repair(metadata, members),
            Return(metadata, members),
            Drain(metadata, members),
            FollowPolicy(metadata, members),
            OpenRegion(metadata),
            Restore(metadata, members),
        ]
        node = ClusterNode(name, region, metadata, blocks, self._folder / name, members, source, tasks)
        await metadata.join(Node(blocks.node_id, region, f"http://{name}"))
        self.wires.stores[blocks.node_id] = blocks
        self.nodes[name] = node
        return node

    async def beat(self, rounds: int = 1) -> None:
        """Let every node that is up show life and look around, every two seconds."""
        for _ in range(rounds):
            self.clock.advance(int(BEAT_S * SECOND))
            up = [node for node in self.nodes.values() if node.up]
            for node in up:
                node.beats += 1
                sign = Beat(node.metadata.now_ns(), node.beats, b"epoch---", 1 << 40, 1 << 39, node.step_ns)
                if not await node.metadata.beat(node.id, sign):
                    node.up = False  # what an agent does that hears of its removal
            for node in up:
                await node.members.refresh()

    def kill(self, name: str) -> None:
        """A node stops: it beats, works and answers no more."""
        self.nodes[name].up = False
        self.wires.down.add(self.nodes[name].id)

    def revive(self, name: str) -> None:
        self.nodes[name].up = True
        self.wires.down.discard(self.nodes[name].id)

    async def silence(self, name: str) -> None:
        """A node stops, and the others notice."""
        self.kill(name)
        await self.beat(int(DEAD_AFTER_S / BEAT_S) + 2)

    async def work(self, rounds: int = 8, *, only: Sequence[str] = ()) -> None:
        """Work off what is due, and what that makes due, on every node that is up."""
        for _ in range(rounds):
            for node in [each for each in self.nodes.values() if each.up and (not only or each.name in only)]:
                for destination in (node.id, region_destination(node.region), ANYBODY):
                    consumer = Consumer(node.metadata.queue, [destination], node.tasks)
                    await consumer.drain()
                    node.worked.append(consumer)
            await self.beat()

    def failed(self) -> int:
        return sum(consumer.worked.failed.total() for node in self.nodes.values() for consumer in node.worked)

    async def homes(self, content_id: bytes) -> set[str]:
        """The names of the nodes that hold all of a content."""
        content = await self.content(content_id)
        names = {node.id: name for name, node in self.nodes.items()}
        return {names[home.node] for home in content.homes if home.whole}

    async def content(self, content_id: bytes) -> Content:
        content = await next(iter(self.nodes.values())).metadata.content(content_id)
        assert content is not None
        return content

    async def bucket(self, name: str = BUCKET, regions: str = "", durability: str = "local") -> Bucket:
        """A bucket with policies."""
        metadata = next(iter(self.nodes.values())).metadata
        await metadata.create_bucket(name, "root", region_policy=regions)
        return await metadata.change_bucket(name, durability=durability)


async def _no_limit(size: int) -> None:
    pass


@contextlib.asynccontextmanager
async def cluster(
    folder: Path, *, kind: str = "memory", seed: int = 0, grace_s: float = 0, **regions: str
) -> AsyncIterator[Cluster]:
    """Nodes by their names, each in its region; they know of each other."""
    clock = ManualClock()
    async with open_kind(kind, folder, clock=clock, seed=seed) as engine:
        it = Cluster(engine, clock, folder)
        try:
            for name, region in regions.items():
                await it.add(name, region, grace_s=grace_s)
            await it.beat(2)
            yield it
        finally:
            for node in it.nodes.values():
                await node.blocks.aclose()
