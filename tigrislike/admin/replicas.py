"""The replica map of an object: for each of its versions, who holds it durably, who is to, which origin has it, what
nodes have of it on their disks, and what is owed for it.

All but the last two is in the version's content record. What is in caches no record says: each node is asked. What is
owed is looked up by the names that such items have, and never searched for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Final, Literal

from msgspec import Struct

from tigrislike.metadata import Bucket, MetadataError, placing, surveying
from tigrislike.metadata.context import Context
from tigrislike.metadata.homes import ANYBODY, HOLD, RELEASE, REPLICATE, WARM, WRITE_BACK
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.mirroring import MIRROR, subject_of
from tigrislike.metadata.owed import item_id, zone_of
from tigrislike.metadata.placing import Alive
from tigrislike.metadata.records import BACKED, REMOVED, SHADOWED, Content, Home, ObjectSummary, VersionEntry
from tigrislike.metadata.records import item as item_codec
from tigrislike.replication.demand import DECAY

from .desk import AdminError, Desk, Names
from .queues import ItemRow, item_row

VERSIONS: Final = 20
"""Versions that are shown of an object, the latest."""

_NS: Final = 1_000_000_000
_OF_REGIONS: Final = (REPLICATE, WARM, DECAY)
_OF_NODES: Final = (HOLD, RELEASE, WRITE_BACK)

HomeState = Literal["whole", "part", "arriving", "leaving"]
OriginState = Literal["shadow", "held", "to be written", "to be given up"]


class HomeRow(Struct, frozen=True):
    """A node that holds a version durably: the `whole` of it or a `part`; or is about to (`arriving`), or was and has
    not removed its files yet (`leaving`)."""

    node: str
    region: str
    state: HomeState
    alive: bool


class OriginRow(Struct, frozen=True):
    """A store elsewhere. ``shadow``: it is somebody else's object there; ``held``: it counts as a home."""

    url: str
    state: OriginState


class DiskRow(Struct, frozen=True):
    """What a node has on its disk of a version: of its blocks, durable ones and ones in the cache."""

    node: str
    region: str
    blocks: int
    home_blocks: int
    cache_blocks: int
    here_bytes: int


class VersionReplicas(Struct, frozen=True, kw_only=True):
    """One version. `inline`: its bytes lie in the metadata database, everywhere. `wanted_regions` and `copies` are what
    its bucket's policy asks for, `missing_regions` and `missing_copies` what of it is not there yet. `here` is null
    where no node answers, and for what is in too many blocks to look for."""

    version: str
    latest: bool
    delete_marker: bool
    modified: float
    size: int
    inline: bool
    content: str
    parts: int
    homes: list[HomeRow]
    wanted_regions: list[str]
    missing_regions: list[str]
    copies: int
    missing_copies: int
    origin: OriginRow | None
    disks: list[DiskRow]
    owed: list[ItemRow]


class ReplicaMap(Struct, frozen=True):
    """The versions of an object, the latest first, at most `VERSIONS`. `owed` is for the object and none of them."""

    bucket: str
    key: str
    versions: list[VersionReplicas]
    more: bool
    owed: list[ItemRow]


async def replica_map(desk: Desk, bucket_name: str, key: str, version: str | None = None) -> ReplicaMap:
    """The replica map of an object, or of one of its versions.

    Raises:
        AdminError: NoSuchBucket, NoSuchKey, NoSuchVersion; InvalidArgument: it can be no key.
    """
    metadata = desk.metadata
    try:
        bucket = await metadata.bucket(bucket_name)
        if version is None:
            page = await metadata.list_versions(bucket, prefix=key, limit=VERSIONS + 1)
            entries = [each for each in page.entries if each.key == key]
        else:
            entries = [await _entry(desk, bucket, key, version)]
    except MetadataError as error:
        raise AdminError(error.code, str(error), 404 if error.code.startswith("NoSuch") else 400) from error
    if not entries:
        raise AdminError("NoSuchKey", f"there is no object {key!r} in bucket {bucket_name}", 404)
    names = await desk.names()
    alive = {
        node.node: node.region for node, beat in names.nodes if node.state != REMOVED and desk.is_alive(node, beat)
    }
    rows = [await _version(desk, names, alive, bucket, each) for each in entries[:VERSIONS]]
    mirrored = [(zone_of(ANYBODY, bucket.id), item_id(MIRROR, subject_of(bucket, key)))] if bucket.shadow else []
    return ReplicaMap(bucket.name, key, rows, len(entries) > VERSIONS, await _owed(desk, names, mirrored))


async def _entry(desk: Desk, bucket: Bucket, key: str, version: str) -> VersionEntry:
    """Raises MetadataError."""
    found = await desk.metadata.head_object(bucket, key, version)
    latest = await desk.metadata.list_versions(bucket, prefix=key, limit=1)
    newest = latest.entries[0].version.version_id if latest.entries else ""
    summary = ObjectSummary(found.stamp, found.size, found.etag, null=found.null)
    return VersionEntry(key, summary, newest == found.version_id)


async def _version(desk: Desk, names: Names, alive: Alive, bucket: Bucket, entry: VersionEntry) -> VersionReplicas:
    shown, full = entry.version, None
    if not shown.delete_marker:
        with contextlib.suppress(MetadataError):  # deleted meanwhile: shown without anything that it had
            full = await desk.metadata.head_object(bucket, entry.key, shown.version_id)
    content = await desk.metadata.content(full.content) if full is not None and full.content else None
    regions = desk.metadata.regions
    return VersionReplicas(
        version=shown.version_id,
        latest=entry.latest,
        delete_marker=shown.delete_marker,
        modified=shown.stamp / _NS,
        size=shown.size,
        inline=full is not None and not full.content,
        content=full.content.hex() if full is not None else "",
        parts=full.parts if full is not None else 0,
        homes=[] if content is None else list(_homes(names, alive, content)),
        wanted_regions=[] if content is None else sorted(regions.expand(content.regions)),
        missing_regions=[] if content is None else placing.missing_regions(content, alive, regions),
        copies=0 if content is None else max(content.copies, 1),
        missing_copies=0 if content is None else placing.missing_copies(content, alive, regions),
        origin=None if content is None else await _origin(desk, content),
        disks=[] if full is None or content is None else await _disks(desk, names, full.content),
        owed=[] if full is None or content is None else await _owed(desk, names, _items(names, content, full.content)),
    )


def _homes(names: Names, alive: Alive, content: Content) -> Iterable[HomeRow]:
    def row(home: Home, state: HomeState) -> HomeRow:
        return HomeRow(home.node.hex(), home.region or names.place(home.node).region, state, home.node in alive)

    for home in content.homes:
        yield row(home, "whole" if home.whole else "part")
    for home in content.pending:
        yield row(home, "arriving")
    for home in content.leaving:
        yield row(home, "leaving")


async def _origin(desk: Desk, content: Content) -> OriginRow | None:
    state: OriginState
    if content.elsewhere == SHADOWED:
        origin_id, state = content.origin, "shadow"
    elif placing.is_to_be_given_up(content):
        origin_id, state = content.origin, "to be given up"
    elif content.backing:
        origin_id, state = content.backing, "held" if content.elsewhere == BACKED else "to be written"
    else:
        return None
    place = await desk.metadata.origin(origin_id)
    return OriginRow(place.url if place is not None else "", state)


async def _disks(desk: Desk, names: Names, content_id: bytes) -> list[DiskRow]:
    if desk.presences is None:
        return []
    told = await desk.presences(content_id)
    rows = [
        DiskRow(
            node.hex(),
            names.place(node).region,
            found.blocks,
            found.home_blocks,
            found.cache_blocks,
            found.here_bytes,
        )
        for node, found in told.items()
    ]
    return sorted(rows, key=lambda row: (row.region, row.node))


def _items(names: Names, content: Content, content_id: bytes) -> list[tuple[bytes, bytes]]:
    """The zone and id of every item that may be owed for a content."""
    return [
        (zone_of(place.destination, content.bucket), item_id(task, content_id))
        for place in names.places.values()
        for task in (_OF_REGIONS if place.kind == "region" else _OF_NODES if place.kind == "node" else ())
    ]


async def _owed(desk: Desk, names: Names, wanted: list[tuple[bytes, bytes]]) -> list[ItemRow]:
    """Those items of `wanted` that there are, dead letters too."""

    async def read(tr: Transaction, ctx: Context) -> list[tuple[surveying.Place, bool]]:
        asked = [
            (
                (zone, id_),
                tr.get(ctx.keys.queue_item(zone, id_), snapshot=True),
                tr.get(ctx.keys.queue_dead_item(zone, id_), snapshot=True),
            )
            for zone, id_ in wanted
        ]
        found = []
        for (zone, id_), stored, buried in asked:
            item, letter = await stored, await buried
            if (raw := item or letter) is not None:
                found.append((surveying.Place(zone, id_, item_codec.decode(raw)), item is None))
        return found

    if not wanted:
        return []
    found = await desk.metadata.engine.background.read(read, desk.metadata.context)
    return [item_row(names, place, letter, desk.now_ns()) for place, letter in found]
