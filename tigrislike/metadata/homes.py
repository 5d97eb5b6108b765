"""Homes: which nodes hold a content durably, and how a content gains and loses them.

Gaining one: the node announces itself (`begin_home`), makes the bytes durable, and is recorded (`add_home`) in the
transaction that finishes the work. Losing one: `drop_home` proves, with a conflicting read of the content, that what is
wanted of the content holds without it, and only then do the files go, which `left_home` notes. So a crash in between
leaves bytes too many and never too few, and of two homes that give up at once one is told to stay.

A write that shares stored bytes needs its homes before it is acknowledged, and so before anything wants them (`share`).
They are gained ahead of it like all others; in the transaction that announces one, the work that a crash would leave
undone is owed, and after that its release: it stays where the write has come to want it.

Whoever is a home, has announced that it will be, or has not yet noted that it is none any more, is reached when the
content is reclaimed (`blobs.condemn_content`).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from . import owed, placing
from .blobs import live_content, load_parts
from .context import Context
from .errors import HomesLacking
from .keyspace import unpack_bytes
from .kv.engine import Transaction
from .placing import Alive, Wanted
from .records import BACKED, ENABLED, LIVE, NOWHERE, SHADOWED, Bucket, Content, Elsewhere, Home, digest16
from .records import blob as blob_codec
from .records import content as content_codec
from .records import elsewhere as elsewhere_codec
from .records import object_version as version_codec
from .records import part as part_codec

REPLICATE = "replicate"
HOLD = "hold"
RELEASE = "release"
"""Tasks: a region is to have a home of a content, a node is to be one, a node is to be none any more."""

WRITE_BACK = "write_back"
"""Task: what a content's origin has of it is to become what is wanted: all of it, or nothing."""

WARM = "warm"
"""Task: a region is to have a copy of a content in its cache."""

REPLICATE_PRIORITY = 1
WRITE_BACK_PRIORITY = 1
RELEASE_PRIORITY = 2
WARM_PRIORITY = 2

AHEAD_NS = 60 * 1_000_000_000
"""How long after its announcement a home gained ahead of a write is finished by others, and, twice that, given up where
nothing wants it."""

ACCELERATION = "acceleration"
"""The kind of a bucket's document that says whether what is written is warmed everywhere: one of S3's words, `ENABLED`
and `SUSPENDED`."""


class Located(NamedTuple):
    """Where a blob is: its content, and the nodes that hold it durably, those that hold all of the content first; and
    where an origin has it, if one does."""

    content_id: bytes
    homes: tuple[Home, ...]
    regions: tuple[str, ...]
    elsewhere: Elsewhere | None = None


class Held(NamedTuple):
    """What a node is to hold of a content: the blobs with their sizes in bytes, and contents that lend it parts."""

    blobs: tuple[tuple[bytes, int], ...]
    sources: tuple[bytes, ...]


def region_destination(region: str) -> bytes:
    """Whose zones hold what any node of a region may do."""
    return digest16(b"region", region.encode())


ANYBODY = digest16(b"anybody")
"""Whose zones hold what any node may do."""


async def locate(tr: Transaction, ctx: Context, blob_id: bytes) -> Located | None:
    """Where a live blob is; None where it is dead or forgotten, or its content uses it no more."""
    # The two have the same id unless the blob is a part.
    row, own = tr.get(ctx.keys.blob(blob_id)), tr.get(ctx.keys.content(blob_id))
    raw = await row
    if raw is None:
        return None
    blob = blob_codec.decode(raw)
    if blob.state != LIVE:
        return None
    stored = await own
    part = None
    if blob.content != blob_id:
        asked, part_raw = tr.get(ctx.keys.content(blob.content)), tr.get(ctx.keys.part(blob.content, blob.number))
        stored = await asked
        raw = await part_raw
        part = part_codec.decode(raw) if raw is not None else None
        if part is None or blob_id not in {extent.blob for extent in part.extents}:
            return None
    others = part.others if part is not None else ()
    if stored is None:  # of an upload that is not complete
        return Located(blob.content, (Home("", blob.node), *others) if blob.node else (), ())
    content = content_codec.decode(stored)
    if content.state != LIVE:
        return None
    holders = {blob.node, *(home.node for home in others)}
    whole = tuple(home for home in content.homes if home.whole)
    partly = tuple(home for home in content.homes if not home.whole and home.node in holders)
    elsewhere = None
    if content.elsewhere in (SHADOWED, BACKED) and (raw := await tr.get(ctx.keys.elsewhere(blob_id))) is not None:
        elsewhere = elsewhere_codec.decode(raw)
    return Located(blob.content, whole + partly, content.regions, elsewhere)


async def is_held_here(tr: Transaction, ctx: Context, blob_id: bytes) -> bool:
    """Whether this node holds a blob, is about to, or has not yet noted that it does not any more."""
    located = await locate(tr, ctx, blob_id)
    if located is None:
        return False
    content = await read_content(tr, ctx, located.content_id)
    moving: tuple[Home, ...] = (*content.pending, *content.leaving) if content is not None else ()
    if content is None:  # of an upload in progress
        raw = await tr.get(ctx.keys.blob(blob_id))
        part = (
            await tr.get(ctx.keys.part(located.content_id, blob_codec.decode(raw).number)) if raw is not None else None
        )
        moving = part_codec.decode(part).pending if part is not None else ()
    return any(home.node == ctx.home.node for home in (*located.homes, *moving))


async def read_content(tr: Transaction, ctx: Context, content_id: bytes) -> Content | None:
    """A live content."""
    raw = await tr.get(ctx.keys.content(content_id))
    content = content_codec.decode(raw) if raw is not None else None
    return content if content is not None and content.state == LIVE else None


async def held(tr: Transaction, ctx: Context, content_id: bytes, content: Content) -> Held:
    """What a home of `content` holds."""
    if not content.parts:
        return Held(((content_id, content.size),), ())
    parts = await load_parts(tr, ctx, content_id)
    own = [extent for part in parts if not part.source for extent in part.extents]
    sources = {part.source for part in parts if part.source}
    return Held(tuple((each.blob, each.blob_size or each.size) for each in own), tuple(sorted(sources)))


async def begin_home(tr: Transaction, ctx: Context, content_id: bytes, ahead: bool = False) -> Held | None:
    """Announce that this node is about to hold a content; what it takes. None: it is gone, or this node has it all.

    `ahead`: of a write, by somebody whose work nobody repeats.
    """
    content = await read_content(tr, ctx, content_id)
    if content is None or any(home.node == ctx.home.node and home.whole for home in content.homes):
        return None
    if ahead:
        due_ns = ctx.now_ns() + AHEAD_NS
        await owe_hold(tr, ctx, ctx.home.node, content.bucket, content_id, vesting_ns=due_ns)
        await owe_release(tr, ctx, ctx.home.node, content.bucket, content_id, vesting_ns=due_ns + AHEAD_NS)
    if ctx.home not in content.pending:
        put_content(tr, ctx, content_id, replace(content, pending=(*content.pending, ctx.home)))
    return await held(tr, ctx, content_id, content)


async def add_home(tr: Transaction, ctx: Context, content_id: bytes, alive: Alive) -> Content | None:
    """Record that this node holds a content durably, and owe the release of homes that become one too many.

    None: it died meanwhile; whoever reclaims it reaches this node too. Or another run recorded this home, and it was
    given up since.
    """
    content = await read_content(tr, ctx, content_id)
    if content is None or all(home.node != ctx.home.node for home in (*content.pending, *content.homes)):
        return None
    content = _settled(tr, ctx, content_id, _without(content, ctx.home.node))
    content = replace(content, homes=(*content.homes, ctx.home))
    put_content(tr, ctx, content_id, content)
    tr.set(ctx.keys.home(ctx.home.node, content_id), b"")
    # Whoever cannot be counted on at this moment may be back by the time that the release is looked at.
    recorded = {home.node: home.region for home in content.homes}
    for home in placing.surplus(content, {**recorded, **alive}, ctx.regions):
        await owe_release(tr, ctx, home.node, content.bucket, content_id)
    await owe_write_back(tr, ctx, content_id, content)
    return content


def _settled(tr: Transaction, ctx: Context, content_id: bytes, content: Content) -> Content:
    """A content that gets a home of its own, and depends on the object that it was adopted from no longer."""
    if content.elsewhere != SHADOWED:
        return content
    tr.clear(ctx.keys.elsewhere(content_id))
    return replace(content, origin=b"", elsewhere=NOWHERE)


async def drop_home(tr: Transaction, ctx: Context, content_id: bytes, alive: Alive) -> bool:
    """Give up this node's home of a content. False: it has to stay, for others are too few, or it is about to become
    one. Once its files are gone, call `left_home`.

    True also where the node is no home, or the content is gone.
    """
    content = await read_content(tr, ctx, content_id)
    if content is None or all(home.node != ctx.home.node for home in (*content.homes, *content.pending)):
        return True
    if ctx.home in content.pending or not placing.may_lose(content, ctx.home.node, alive, ctx.regions):
        return False
    left = remove_home(tr, ctx, content_id, content, ctx.home.node)
    put_content(tr, ctx, content_id, replace(left, leaving=(*left.leaving, ctx.home)))
    return True


async def left_home(tr: Transaction, ctx: Context, content_id: bytes) -> None:
    """Note that this node, whose home was dropped, has no files of it any more."""
    content = await read_content(tr, ctx, content_id)
    if content is not None and ctx.home in content.leaving:
        leaving = tuple(home for home in content.leaving if home != ctx.home)
        put_content(tr, ctx, content_id, replace(content, leaving=leaving))


def remove_home(tr: Transaction, ctx: Context, content_id: bytes, content: Content, node: bytes) -> Content:
    """Take a node out of a content's homes, which the caller has found right."""
    left = _without(content, node)
    put_content(tr, ctx, content_id, left)
    tr.clear(ctx.keys.home(node, content_id))
    return left


def _without(content: Content, node: bytes) -> Content:
    def others(homes: tuple[Home, ...]) -> tuple[Home, ...]:
        return tuple(home for home in homes if home.node != node)

    return replace(
        content, homes=others(content.homes), pending=others(content.pending), leaving=others(content.leaving)
    )


def new_content(size: int, parts: int, homes: tuple[Home, ...], bucket: Bucket, wanted: Wanted) -> Content:
    """A content as its bucket wants it."""
    return Content(
        size,
        LIVE,
        parts,
        homes,
        bucket.id,
        regions=wanted.regions,
        copies=wanted.copies,
        backing=wanted.backing,
    )


def put_content(tr: Transaction, ctx: Context, content_id: bytes, content: Content) -> None:
    tr.set(ctx.keys.content(content_id), content_codec.encode(content))


async def survives(tr: Transaction, ctx: Context, content_id: bytes, content: Content, nodes: Container[bytes]) -> bool:
    """Whether all of a content is there: one of `nodes` holds the whole, or some of them its parts, or an origin."""
    if content.elsewhere in (SHADOWED, BACKED):
        return True
    homes = {home.node for home in content.homes if home.node in nodes}
    if any(home.whole and home.node in homes for home in content.homes):
        return True
    if not content.parts:
        return False
    return await parts_survive(tr, ctx, content_id, homes)


async def parts_survive(
    tr: Transaction, ctx: Context, content_id: bytes, nodes: Container[bytes], *, or_origin: bool = False
) -> bool:
    """Whether some of `nodes` hold each part that is no slice, of an upload in progress too; `or_origin`: or its origin
    does."""
    parts = await load_parts(tr, ctx, content_id)
    own = [part for part in parts if not part.source and not (or_origin and part.origin)]
    return all(any(node in nodes for node in (part.node, *(home.node for home in part.others))) for part in own)


async def homes_of(tr: Transaction, ctx: Context, node: bytes, after: bytes, limit: int) -> list[bytes]:
    """Contents that a node holds, in the order of their ids, after `after`."""
    begin, end = ctx.keys.homes_of(node)
    if after:
        begin = ctx.keys.home(node, after) + b"\x00"
    rows = await tr.get_range(begin, end, limit=limit)
    start = len(ctx.keys.homes_of(node)[0]) - 1
    return [unpack_bytes(key, start)[0] for key, _ in rows]


# --- what is owed


async def owe_replicas(tr: Transaction, ctx: Context, content_id: bytes, content: Content) -> None:
    """Owe a home in each region of the content's policy that has none yet."""
    if not content.regions:
        return
    have = {home.region for home in content.homes if home.whole}
    wanted = sorted(ctx.regions.expand(content.regions) - have)
    zones = [owed.zone_of(region_destination(region), content.bucket) for region in wanted]
    asked = [owed.ask(tr, ctx, zone, REPLICATE, content_id) for zone in zones]
    for region, reads in zip(wanted, asked, strict=True):
        await owe_replica(tr, ctx, region, content.bucket, content_id, reads)


async def share(tr: Transaction, ctx: Context, contents: Mapping[bytes, Content], also: Wanted, alive: Alive) -> None:
    """Let a further bucket want contents, which the caller has read with a conflict, and those that lend them parts.

    Raises:
        HomesLacking: too few of the nodes that are `alive` hold them for a write under this policy.
    """
    if also == Wanted((), 1):
        return
    sharing = await _with_sources(tr, ctx, contents)
    lacking = [
        (content_id, content.size)
        for content_id, content in sharing.items()
        if also.copies > 1 and placing.copies_lacking(content, also, alive, ctx.regions)
    ]
    if lacking:
        raise HomesLacking(lacking, also.regions, also.copies)
    for content_id, content in sharing.items():
        shared = placing.merged(content, also)
        if shared != content:
            put_content(tr, ctx, content_id, shared)
            await owe_replicas(tr, ctx, content_id, shared)
            await owe_write_back(tr, ctx, content_id, shared)


async def _with_sources(tr: Transaction, ctx: Context, contents: Mapping[bytes, Content]) -> dict[bytes, Content]:
    """Contents, and all that lend them parts, however indirectly. Raises ContentGone."""
    found = dict(contents)
    looked_at = list(contents.items())
    while looked_at:
        content_id, content = looked_at.pop()
        if not content.parts:
            continue
        for source in {part.source for part in await load_parts(tr, ctx, content_id) if part.source} - found.keys():
            found[source] = await live_content(tr, ctx, source)
            looked_at.append((source, found[source]))
    return found


async def owe_replica(
    tr: Transaction,
    ctx: Context,
    region: str,
    bucket_id: bytes,
    content_id: bytes,
    asked: owed.Asked | None = None,
) -> None:
    """Owe a region a home of a content."""
    zone = owed.zone_of(region_destination(region), bucket_id)
    await owed.enqueue(tr, ctx, zone, REPLICATE, content_id, priority=REPLICATE_PRIORITY, bucket=bucket_id, asked=asked)


async def owe_hold(
    tr: Transaction, ctx: Context, node: bytes, bucket_id: bytes, content_id: bytes, *, vesting_ns: int = 0
) -> None:
    """Owe that a node becomes a home of a content."""
    zone = owed.zone_of(node, bucket_id)
    await owed.enqueue(
        tr, ctx, zone, HOLD, content_id, vesting_ns=vesting_ns, priority=REPLICATE_PRIORITY, bucket=bucket_id
    )


async def owe_write_back(
    tr: Transaction, ctx: Context, content_id: bytes, content: Content, *, vesting_ns: int = 0
) -> None:
    """Owe what is lacking between what a content's origin has and what is wanted, to its first home: whoever else does
    it would get in its way. Without a home it waits until there is one."""
    if not content.homes or not placing.awaits_origin(content):
        return
    zone = owed.zone_of(content.homes[0].node, content.bucket)
    await owed.enqueue(
        tr,
        ctx,
        zone,
        WRITE_BACK,
        content_id,
        vesting_ns=vesting_ns,
        priority=WRITE_BACK_PRIORITY,
        bucket=content.bucket,
    )


async def owe_release(
    tr: Transaction, ctx: Context, node: bytes, bucket_id: bytes, content_id: bytes, *, vesting_ns: int = 0
) -> None:
    """Ask a node to give up its home of a content, if it can."""
    zone = owed.zone_of(node, bucket_id)
    await owed.enqueue(
        tr, ctx, zone, RELEASE, content_id, vesting_ns=vesting_ns, priority=RELEASE_PRIORITY, bucket=bucket_id
    )


async def owe_warmth(tr: Transaction, ctx: Context, bucket: Bucket, content_id: bytes, content: Content) -> None:
    """Owe every other region a copy in its cache, where the bucket is accelerated and nothing says where its objects
    are to be: the regions of a policy get homes."""
    if ACCELERATION not in bucket.configs or content.regions:
        return
    status = tr.get(ctx.keys.config(bucket.id, ACCELERATION))
    regions = sorted(ctx.regions.known - {ctx.home.region})
    zones = [owed.zone_of(region_destination(region), bucket.id) for region in regions]
    asked = [owed.ask(tr, ctx, zone, WARM, content_id) for zone in zones]
    if await status != ENABLED.encode():
        return
    for region, reads in zip(regions, asked, strict=True):
        await owe_warm(tr, ctx, region, bucket.id, content_id, reads)


async def owe_warm_objects(tr: Transaction, ctx: Context, bucket: Bucket, keys: Sequence[str]) -> None:
    """Owe this region copies of what the live versions of `keys` consist of, in its cache. A hundred keys at most."""
    current = ctx.keys.in_bucket(bucket.id).current
    rows = [tr.get(current.key(key)) for key in keys]
    versions = [version_codec.decode(raw) for raw in [await row for row in rows] if raw is not None]
    contents = (version.content for version in versions if version.content)
    zone = owed.zone_of(region_destination(ctx.home.region), bucket.id)
    await owed.enqueue_all(tr, ctx, zone, WARM, contents, priority=WARM_PRIORITY, bucket=bucket.id)


async def owe_warm(
    tr: Transaction, ctx: Context, region: str, bucket_id: bytes, content_id: bytes, asked: owed.Asked | None = None
) -> None:
    """Owe a region a copy of a content in its cache."""
    zone = owed.zone_of(region_destination(region), bucket_id)
    await owed.enqueue(tr, ctx, zone, WARM, content_id, priority=WARM_PRIORITY, bucket=bucket_id, asked=asked)
