"""Several nodes over one database, without disks: one `Metadata` for each."""

from __future__ import annotations

from collections.abc import Sequence

from tests.metadata.queueing import take_all
from tests.metadata.world import MASTER
from tigrislike.metadata import Bucket, Metadata, homes, owed
from tigrislike.metadata.buckets import REPOLICY
from tigrislike.metadata.keyspace import pack_bytes
from tigrislike.metadata.kv import Engine, Transaction
from tigrislike.metadata.placing import Regions
from tigrislike.metadata.records import Content, Home

REGIONS = ("iad", "sjc", "ams", "iad")


def node_id(number: int) -> bytes:
    return b"node-%011d" % number


def home(number: int, *, whole: bool = True) -> Home:
    return Home(REGIONS[number], node_id(number), whole)


ALIVE = {node_id(number): region for number, region in enumerate(REGIONS)}


async def open_nodes(engine: Engine, count: int = len(REGIONS), *, grace_s: float = 0) -> list[Metadata]:
    """Nodes 0, 1, ... in the regions `REGIONS`."""
    return [
        await Metadata.open(
            engine,
            master_key=MASTER,
            node_id=node_id(number),
            region=REGIONS[number],
            reclaim_grace_s=grace_s,
            regions=Regions(known=REGIONS),
        )
        for number in range(count)
    ]


async def add_home(metadata: Metadata, content_id: bytes) -> Content | None:
    """What ends the work of becoming a home."""
    return await metadata.background(homes.add_home, metadata.context, content_id, ALIVE)


async def left_home(metadata: Metadata, content_id: bytes) -> None:
    await metadata.background(homes.left_home, metadata.context, content_id)


async def owed_now(metadata: Metadata) -> set[tuple[bytes, str, bytes]]:
    """All that is owed of contents: (destination, task, subject)."""
    found = set()
    for zone in await metadata.queue.zones():
        for _, item in await metadata.queue.items(zone):
            if item.task != REPOLICY:
                found.add((owed.destination_of(zone), item.task, item.subject))
    return found


async def finish_all(metadata: Metadata) -> None:
    """End everything that is due, without doing it."""
    for claimed in await take_all(metadata):
        assert await metadata.queue.finish(claimed)


async def reclaim(nodes: Sequence[Metadata], content_id: bytes) -> None:
    """Every node reclaims a content, and finds that it may."""
    for metadata in nodes:
        assert await metadata.reclaim_content(content_id) is not None
        await metadata.forget_content(content_id)


async def bucket_of(metadata: Metadata, policy: str = "", durability: str = "local", name: str = "bucket") -> Bucket:
    await metadata.create_bucket(name, "me", region_policy=policy)
    return await metadata.change_bucket(name, durability=durability)


async def rows_left(metadata: Metadata, content_id: bytes) -> list[bytes]:
    """Keys that still say something of a content or its blobs, the queue's apart."""
    keys = metadata.context.keys

    async def read(tr: Transaction) -> list[bytes]:
        found = []
        for family in (keys.contents, keys.parts, keys.refs, keys.blobs, keys.homes):
            found += [
                key
                for key, _ in await tr.get_range(family + b"\x00", family + b"\xff")
                if pack_bytes(content_id) in key
            ]
        return found

    return await metadata.engine.read(read)
