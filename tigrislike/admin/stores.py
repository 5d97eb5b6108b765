"""What operators see beside the queue: buckets, caches, access keys, settings, slow requests, the audit log.

Buckets are counted by their counters. Where their objects are is told from a sample of them, the first ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Final, NamedTuple

from msgspec import Struct

from tigrislike.bytecache import BytesError
from tigrislike.config import Settings, options
from tigrislike.metadata import Bucket, MetadataError, auditing
from tigrislike.metadata.access import canonical_id
from tigrislike.metadata.context import Context
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.owed import DESTINATION_BYTES
from tigrislike.metadata.records import REMOVED, AccessRecord, Counts, ObjectVersion
from tigrislike.metadata.records import content as content_codec
from tigrislike.metadata.records import object_version as version_codec
from tigrislike.metrics import Snapshot
from tigrislike.replication.inventory_format import Row, row_of
from tigrislike.slow import SlowRequest

from .desk import AdminError, Desk, Look
from .queues import pack_cursor, unpack_cursor

SAMPLE: Final = 1000
"""Objects whose homes are looked at for `show_bucket`."""

_NS: Final = 1_000_000_000


class BucketRow(Struct, frozen=True, kw_only=True):
    """A bucket. `objects` and `bytes` are those of its counters, `noncurrent` counts other versions and delete markers;
    `pending` and `dead` count what is owed for it."""

    name: str
    id: str
    owner: str
    created: float
    regions: str
    durability: str
    read_mode: str
    versioning: str
    public: bool
    objects: int
    noncurrent: int
    bytes: int
    pending: int
    dead: int


class BucketPage(Struct, frozen=True):
    buckets: list[BucketRow]
    cursor: str | None


class Replicas(Struct, frozen=True):
    """How many of the sampled objects, and bytes of them, a region holds durably."""

    region: str
    objects: int
    bytes: int


class BucketShown(BucketRow, frozen=True, kw_only=True):
    """A bucket in full. `replicas` is of the first `sampled` objects, of all where `complete`; those kept in the
    metadata database, beside their records, count as `inline`. `shadow` and `backing` say whether it has such an
    origin. `work` is what is owed for it, by task."""

    replicas: list[Replicas]
    inline: int
    sampled: int
    complete: bool
    documents: list[str]
    shadow: bool
    backing: bool
    work: dict[str, int]


class InventoryPage(Struct, frozen=True):
    """What a bucket holds, a page of it. `owner` is its owner's canonical id."""

    owner: str
    objects: list[Row]
    cursor: str | None


class KeyRow(Struct, frozen=True):
    """An access key, without its secret. `bucket` is the only one that it reaches; empty: all of its owner's."""

    key_id: str
    owner: str
    bucket: str
    created: float
    admin: bool
    root: bool


class KeyPage(Struct, frozen=True):
    keys: list[KeyRow]
    cursor: str | None


class CacheRow(Struct, frozen=True, kw_only=True):
    """The disk and cache of one node, as of its last beat. `capacity_bytes` is null where only the disk bounds it."""

    node: str
    region: str
    state: str
    alive: bool
    disk_bytes: int
    disk_free_bytes: int
    used_bytes: int
    capacity_bytes: int | None


class CacheHere(Struct, frozen=True, kw_only=True):
    """The cache of the node that answers: what it holds, and what it has counted since it started."""

    node: str
    used_bytes: int
    filling_bytes: int
    pinned_bytes: int
    blocks: int
    pinned_blocks: int
    policy: str
    ready: bool
    hits: int
    misses: int
    fills: int
    evictions: int


class Caches(Struct, frozen=True):
    """Every node's cache; `here` is null where no node answers, but a command on the database."""

    nodes: list[CacheRow]
    here: CacheHere | None


class SlowPage(Struct, frozen=True):
    """Requests of this node's workers that took `threshold_s` or more, the latest first."""

    threshold_s: float
    requests: list[SlowRequest]


class SettingRow(Struct, frozen=True):
    """A setting of the node that answers, as it is in force."""

    name: str
    value: str
    help: str


class SettingsShown(Struct, frozen=True):
    settings: list[SettingRow]


class AuditRow(Struct, frozen=True):
    """Something that was asked of the store: by whom, from where, with which arguments (JSON), and what came of it."""

    at: float
    id: str
    who: str
    where: str
    action: str
    arguments: str
    outcome: str
    request: str


class AuditPage(Struct, frozen=True):
    entries: list[AuditRow]
    cursor: str | None


# --- buckets


def _owed(look: Look) -> tuple[Counter[bytes], Counter[bytes]]:
    """Items and dead letters by bucket id."""
    waiting, dead = Counter[bytes](), Counter[bytes]()
    for zone, facts in look.zones.items():
        counts = facts.total
        waiting[zone[DESTINATION_BYTES:]] += counts.waiting
        dead[zone[DESTINATION_BYTES:]] += counts.dead
    return waiting, dead


async def buckets(desk: Desk, *, prefix: str = "", cursor: str | None = None, limit: int = 100) -> BucketPage:
    """Buckets whose names begin with `prefix`, in the order of these."""
    after = unpack_cursor(cursor, str) if cursor is not None else ""
    page, _ = await desk.metadata.list_buckets(None, prefix=prefix, after=after, limit=limit + 1)
    waiting, dead = _owed(await desk.zones())
    rows = [BucketRow(**await _bucket_fields(desk, each, waiting[each.id], dead[each.id])) for each in page[:limit]]  # type: ignore[arg-type]
    return BucketPage(rows, pack_cursor(rows[-1].name) if len(page) > limit else None)


async def _bucket_fields(desk: Desk, bucket: Bucket, waiting: int, dead: int) -> dict[str, object]:
    usage = await desk.metadata.usage(bucket)
    return {
        "name": bucket.name,
        "id": bucket.id.hex(),
        "owner": bucket.owner,
        "created": bucket.created_ns / _NS,
        "regions": bucket.region_policy or "global",
        "durability": bucket.durability,
        "read_mode": bucket.read_mode,
        "versioning": bucket.versioning,
        "public": bucket.public,
        "objects": usage.objects,
        "noncurrent": usage.noncurrent,
        "bytes": usage.bytes,
        "pending": waiting,
        "dead": dead,
    }


async def show_bucket(desk: Desk, name: str) -> BucketShown:
    """One bucket. Raises AdminError: NoSuchBucket."""
    try:
        bucket = await desk.metadata.bucket(name)
    except MetadataError as error:
        raise AdminError(error.code, str(error), 404) from error
    look = await desk.zones()
    mine = [facts for zone, facts in look.zones.items() if zone[DESTINATION_BYTES:] == bucket.id]
    work: dict[str, Counts] = {}
    for facts in mine:
        for task, counts in facts.tasks.items():
            work[task] = work.get(task, Counts()) + counts
    waiting = sum(counts.waiting for counts in work.values())
    dead = sum(counts.dead for counts in work.values())
    spread = await _replicas(desk, bucket)
    return BucketShown(
        **await _bucket_fields(desk, bucket, waiting, dead),  # type: ignore[arg-type]
        replicas=spread.replicas,
        inline=spread.inline,
        sampled=spread.sampled,
        complete=spread.complete,
        documents=sorted(bucket.configs),
        shadow=bool(bucket.shadow),
        backing=bool(bucket.backing),
        work={task: counts.waiting for task, counts in sorted(work.items()) if counts.waiting},
    )


class _Spread(NamedTuple):
    replicas: list[Replicas]
    inline: int
    sampled: int
    complete: bool


async def _replicas(desk: Desk, bucket: Bucket) -> _Spread:
    """Which regions hold the first objects of a bucket."""
    objects, sizes = Counter[str](), Counter[str]()
    inline = sampled = 0
    begin = b""
    while sampled < SAMPLE:
        found = await desk.metadata.engine.background.read(_held, desk.metadata.context, bucket.id, begin)
        for _, version, regions in found:
            sampled += 1
            inline += not version.content
            objects.update(regions)
            sizes.update(dict.fromkeys(regions, version.size))
        if len(found) < _PAGE:
            rows = [Replicas(region, objects[region], sizes[region]) for region in sorted(objects)]
            return _Spread(rows, inline, sampled, True)
        begin = found[-1][0]
    return _Spread(
        [Replicas(region, objects[region], sizes[region]) for region in sorted(objects)], inline, sampled, False
    )


_PAGE: Final = 200


async def _held(
    tr: Transaction, ctx: Context, bucket_id: bytes, after: bytes
) -> list[tuple[bytes, ObjectVersion, set[str]]]:
    """Live versions with the regions that hold all of their bytes, after a row of ``current``."""
    family = ctx.keys.in_bucket(bucket_id).current
    rows = await tr.get_range(after + b"\x00" if after else family.begin, family.end, limit=_PAGE, snapshot=True)
    versions = [(key, version_codec.decode(value)) for key, value in rows]
    reads = [
        tr.get(ctx.keys.content(version.content), snapshot=True) if version.content else None for _, version in versions
    ]
    found = []
    for (key, version), read in zip(versions, reads, strict=True):
        raw = await read if read is not None else None
        homes = content_codec.decode(raw).homes if raw is not None else ()
        found.append((key, version, {home.region for home in homes if home.whole}))
    return found


# --- caches


async def caches(desk: Desk) -> Caches:
    """Every node's cache."""
    rows = [
        CacheRow(
            node=node.node.hex(),
            region=node.region,
            state=node.state,
            alive=desk.is_alive(node, beat),
            disk_bytes=beat.capacity if beat is not None else 0,
            disk_free_bytes=beat.free if beat is not None else 0,
            used_bytes=beat.cache_used if beat is not None else 0,
            capacity_bytes=beat.cache_capacity if beat is not None and beat.cache_capacity >= 0 else None,
        )
        for node, beat in await desk.metadata.nodes()
        if node.state != REMOVED
    ]
    return Caches(rows, await _cache_here(desk))


async def _cache_here(desk: Desk) -> CacheHere | None:
    if desk.blocks is None or desk.metrics is None:
        return None
    try:
        usage = await desk.blocks.usage()
    except (BytesError, OSError) as error:
        raise AdminError("ServiceUnavailable", f"the cache's index does not answer: {error}", 503) from error
    totals = Snapshot(desk.metrics.table).totals
    return CacheHere(
        node=desk.blocks.node_id.hex(),
        used_bytes=usage.used_bytes,
        filling_bytes=usage.filling_bytes,
        pinned_bytes=usage.pinned_bytes,
        blocks=usage.blocks,
        pinned_blocks=usage.pinned_blocks,
        policy=usage.policy,
        ready=usage.ready,
        hits=totals.hits,
        misses=totals.misses,
        fills=totals.fills,
        evictions=totals.evicted_capacity + totals.evicted_reserve,
    )


# --- keys


async def inventory(
    desk: Desk, name: str, *, prefix: str = "", versions: bool = False, cursor: str | None = None, limit: int = 100
) -> InventoryPage:
    """What a bucket holds, as its inventory shows it. Raises NoSuchBucket, AdminError (cursor)."""
    metadata = desk.metadata
    await metadata.refresh()
    bucket = await metadata.bucket(name)
    after, version = unpack_cursor(cursor, tuple[str, str]) if cursor is not None else ("", "")
    owner = canonical_id(bucket.owner)
    if versions:
        page = await metadata.list_versions(bucket, prefix, "", after, version, limit)
        rows = [row_of(entry.key, entry.version, entry.latest) for entry in page.entries]
        following = (page.next_key_marker, page.next_version_id_marker) if page.truncated else None
    else:
        objects = await metadata.list_objects(bucket, prefix, "", after, limit)
        rows = [row_of(key, summary, True) for key, summary in objects.entries]
        following = (objects.last, "") if objects.truncated else None
    return InventoryPage(owner, rows, None if following is None else pack_cursor(following))


async def keys(desk: Desk, *, cursor: str | None = None, limit: int = 100) -> KeyPage:
    """Everybody's access keys, in the order of their ids."""
    after = unpack_cursor(cursor, str) if cursor is not None else ""
    page = await desk.metadata.list_access_keys(None, after, limit + 1)
    rows = [key_row(record) for record in page[:limit]]
    return KeyPage(rows, pack_cursor(rows[-1].key_id) if len(page) > limit else None)


def key_row(record: AccessRecord) -> KeyRow:
    return KeyRow(
        record.key_id,
        record.owner,
        record.bucket,
        record.created_ns / _NS,
        record.admin or record.root,
        record.root,
    )


# --- the node that answers


async def slow_requests(desk: Desk) -> SlowPage:
    """Raises AdminError: NotHere."""
    if desk.slow is None:
        raise AdminError("NotHere", "only a running node has slow requests: ask one with --endpoint", 404)
    return SlowPage(desk.slow.threshold_s, desk.slow.entries())


async def settings(desk: Desk) -> SettingsShown:
    """Every setting in force; of secrets only whether they are given."""
    return SettingsShown(list(_settings(desk.settings)))


def _settings(settings: Settings) -> Iterable[SettingRow]:
    assert {option.attribute for option in options()} == {field.name for field in fields(settings)}
    for option in options():
        value = getattr(settings, option.attribute)
        if option.secret:
            shown = "(set)" if value else ""
        elif isinstance(value, Path) or value is None or isinstance(value, str | int | float):
            shown = "" if value is None else str(value)
        else:
            shown = ",".join(f"{name}={'+'.join(members)}" for name, members in value)
        yield SettingRow(option.name, shown, option.help)


# --- the audit log


async def audit(desk: Desk, *, cursor: str | None = None, limit: int = 100) -> AuditPage:
    """What was asked of the store, the latest first."""
    after = unpack_cursor(cursor, tuple[int, bytes]) if cursor is not None else None
    if after is not None and not 1 << 56 <= after[0] < 1 << 63:
        raise AdminError("InvalidCursor", "this cursor is not one that was given out here")
    page = await desk.metadata.engine.read(auditing.entries, desk.metadata.context, after, limit + 1)
    rows = [
        AuditRow(
            each.at_ns / _NS,
            each.id.hex(),
            each.who,
            each.where,
            each.action,
            each.arguments,
            each.outcome,
            each.request,
        )
        for each in page[:limit]
    ]
    last = page[limit - 1] if len(page) > limit else None
    return AuditPage(rows, pack_cursor((last.at_ns, last.id)) if last is not None else None)
