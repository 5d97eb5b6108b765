"""Shadow buckets: how an object of an origin becomes one of the bucket that looks through to it.

It is *adopted*: its record is written at once, its bytes follow. Until a node has become a home of them, the content is
SHADOWED: where it lies at the origin, and as which version, says its ``elsewhere`` row, and blocks are filled from
there as from any other home. Adopting owes such a home.

What the bucket itself has, or has had, wins: an object is adopted only under a key that has no row of any kind. A
delete leaves a whiteout, which stays for ever, whatever is put under the key later.

A version adopted keeps the time at which it was modified: that is its stamp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from . import placing
from .blobs import live_content
from .context import Context, hold_bucket
from .homes import new_content, owe_replica, owe_replicas
from .keyspace import MIN_STAMP
from .kv.engine import Transaction
from .objects import version_of
from .records import (
    LIVE,
    NEVER,
    SHADOWED,
    Blob,
    Bucket,
    Draft,
    Elsewhere,
    ObjectVersion,
    Referrer,
)
from .records import blob as blob_codec
from .records import content as content_codec
from .records import elsewhere as elsewhere_codec
from .records import referrer as referrer_codec
from .versions import ask_if_versioned, hide, live_version, place


async def is_untouched(tr: Transaction, ctx: Context, bucket: Bucket, key: str) -> bool:
    """Whether the bucket has never had anything under `key` since it looks through to its shadow, with a conflict."""
    keys = ctx.keys.in_bucket(bucket.id)
    stored, whiteout = tr.get(keys.current.key(key)), tr.get(keys.whiteout.key(key))
    asked = ask_if_versioned(tr, ctx, bucket, key)
    if await stored is not None or await whiteout is not None:
        return False
    return asked is None or not await asked.newest


async def adopt(
    tr: Transaction,
    ctx: Context,
    bucket: Bucket,
    token: bytes | None,
    key: str,
    draft: Draft,
    modified_ns: int,
    source: Elsewhere,
) -> ObjectVersion | None:
    """Make an object of the bucket's shadow the bucket's own, under a key that it has never used. `draft` has its bytes
    inline, or names a fresh blob that stands for them.

    None: the key is in use, or was; or the bucket looks elsewhere by now.

    Raises:
        NoSuchBucket.
    """
    bucket = await hold_bucket(tr, ctx, bucket, token)
    if bucket.shadow != source.origin or not await is_untouched(tr, ctx, bucket, key):
        return None
    return await _place(tr, ctx, bucket, key, None, draft, modified_ns, source)


async def _place(
    tr: Transaction,
    ctx: Context,
    bucket: Bucket,
    key: str,
    live: ObjectVersion | None,
    draft: Draft,
    modified_ns: int,
    source: Elsewhere,
) -> ObjectVersion:
    content_id = draft.blob or b""
    if content_id:
        wanted = placing.wanted(bucket, ctx.regions)
        content = replace(new_content(draft.size, 0, (), bucket, wanted), origin=source.origin, elsewhere=SHADOWED)
        blob = Blob(LIVE, content_id, 0, draft.size, changed_ns=ctx.now_ns())
        tr.set(ctx.keys.blob(content_id), blob_codec.encode(blob))
        tr.set(ctx.keys.content(content_id), content_codec.encode(content))
        tr.set(ctx.keys.elsewhere(content_id), elsewhere_codec.encode(source))
        await owe_replicas(tr, ctx, content_id, content)
        if not ctx.regions.expand(wanted.regions):
            await owe_replica(tr, ctx, ctx.home.region, bucket.id, content_id)

    def make(stamp: int, null: bool) -> ObjectVersion:
        modified = min(max(modified_ns, MIN_STAMP) & ~0xFF | ctx.cluster, stamp)
        return version_of(draft, modified, null, draft.size, content_id, 0, False)

    return await place(tr, ctx, _as_before(bucket), key, live, make, draft.inline)


def _as_before(bucket: Bucket) -> Bucket:
    """A bucket as what its shadow has gets into it: as if it had been there before anybody thought of versions, or of
    telling the shadow."""
    return replace(bucket, versioning=NEVER, write_through=False)


async def readopt(
    tr: Transaction,
    ctx: Context,
    bucket: Bucket,
    token: bytes | None,
    key: str,
    seen: ObjectVersion,
    draft: Draft | None,
    modified_ns: int,
    source: Elsewhere,
) -> bool:
    """Replace an adopted version whose bytes never came by what the origin has under its key now; None: nothing, and
    then the key is as if it had never been adopted.

    False: it is not what was `seen` any more, or its bytes are here.

    Raises:
        NoSuchBucket.
    """
    raw = await tr.get(ctx.keys.in_bucket(bucket.id).current.key(key))
    asked = ask_if_versioned(tr, ctx, bucket, key)
    bucket = await hold_bucket(tr, ctx, bucket, token)
    live = live_version(raw)
    if live is None or live.content != seen.content or live.stamp != seen.stamp:
        return False
    if asked is not None and await asked.newest:
        return False  # one version among others by now
    content = await live_content(tr, ctx, live.content)
    if content.elsewhere != SHADOWED or content.homes:
        return False
    if draft is not None:
        await _place(tr, ctx, bucket, key, live, draft, modified_ns, source)
        return True
    await hide(tr, ctx, _as_before(bucket), key, live)
    return True


async def adopters(tr: Transaction, ctx: Context, content_id: bytes) -> list[Referrer]:
    """The versions that refer to a content, a hundred at most."""
    begin, end = ctx.keys.ref_range(content_id)
    rows = await tr.get_range(begin, end, limit=100)
    return [referrer_codec.decode(value) for _, value in rows]


class Standing(NamedTuple):
    """How a key of a bucket with a shadow stands: its live `version`, if there is one; whether anything was ever there
    (`touched`); and whether its bytes are still the shadow's alone (`lent`)."""

    version: ObjectVersion | None
    touched: bool
    lent: bool


async def standings(tr: Transaction, ctx: Context, bucket: Bucket, keys: Sequence[str]) -> list[Standing]:
    """How each of `keys` stands; a few hundred at most."""
    current = ctx.keys.in_bucket(bucket.id).current
    asked = [tr.get(current.key(key), snapshot=True) for key in keys]
    fresh = await untouched(tr, ctx, bucket, keys)
    versions = [live_version(await read) for read in asked]
    contents = [
        tr.get(ctx.keys.content(version.content), snapshot=True) if version is not None and version.content else None
        for version in versions
    ]
    found = []
    for key, version, read in zip(keys, versions, contents, strict=True):
        raw = await read if read is not None else None
        lent = raw is not None and content_codec.decode(raw).elsewhere == SHADOWED
        found.append(Standing(version, key not in fresh, lent))
    return found


async def untouched(tr: Transaction, ctx: Context, bucket: Bucket, keys: Sequence[str]) -> set[str]:
    """Those of `keys` of which `is_untouched` holds, without a conflict: for listings. A few hundred at most."""
    in_bucket = ctx.keys.in_bucket(bucket.id)
    current, whiteout, version = in_bucket.current, in_bucket.whiteout, in_bucket.version
    asked = [
        (
            key,
            tr.get(current.key(key), snapshot=True),
            tr.get(whiteout.key(key), snapshot=True),
            tr.get_range(version.key(key), version.after(key), limit=1, snapshot=True) if bucket.versioning else None,
        )
        for key in keys
    ]
    found = set()
    for key, live, hidden, versions in asked:
        rows = [await live, await hidden, (await versions or None) if versions is not None else None]
        if rows == [None, None, None]:
            found.add(key)
    return found


async def under_prefixes(
    tr: Transaction, ctx: Context, bucket: Bucket, prefixes: Sequence[str]
) -> dict[str, tuple[bool, bool]]:
    """Of each of `prefixes`, whether there is a live object under it, and whether anything under it was touched. A few
    hundred at most."""
    in_bucket = ctx.keys.in_bucket(bucket.id)
    families = [in_bucket.current, in_bucket.whiteout, *([in_bucket.version] if bucket.versioning else [])]
    asked = [
        (
            prefix,
            [
                tr.get_range(family.at_least(prefix), family.after_prefix(prefix), limit=1, snapshot=True)
                for family in families
            ],
        )
        for prefix in prefixes
    ]
    return {
        prefix: (found[0], any(found))
        for prefix, found in [(prefix, [bool(await read) for read in reads]) for prefix, reads in asked]
    }


async def whiteouts(tr: Transaction, ctx: Context, bucket_id: bytes, prefix: str, after: str, limit: int) -> list[str]:
    """Keys of a bucket that were deleted here, in order, those that start with `prefix` and come after `after`."""
    family = ctx.keys.in_bucket(bucket_id).whiteout
    begin = family.at_least(prefix) if prefix else family.begin
    if after:
        begin = max(begin, family.after(after))
    end = family.after_prefix(prefix)
    if begin >= end:
        return []
    return family.texts(await tr.get_range(begin, end, limit=limit, snapshot=True))
