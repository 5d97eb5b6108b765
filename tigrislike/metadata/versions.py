"""The versions of one key: how a new one is placed, how one is removed, and which is live.

Rows of a key (`keyspace.BucketKeys`):

* ``current``: the live version; absent when there is none or the newest version is a delete marker.
* ``version``: in a bucket that has ever been versioned, every version and delete marker, newest first, the live one
  included. One exception saves a rewrite of the bucket when versioning is switched on: a null version that is still
  live from the time before lies in ``current`` alone, and then the key has no ``version`` rows at all.
* ``null``: the stamp of the null version, once it has a ``version`` row.
* ``inline``: the bytes of a small version, by its stamp.

Source of the rules: S3 User Guide, "How S3 Versioning works", "Working with delete markers" and "Adding objects to
versioning-suspended buckets".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from .blobs import add_reference, drop_reference
from .context import Context, count
from .errors import InvalidArgument
from .keyspace import MAX_STAMP, MIN_STAMP, pack_stamp
from .kv.engine import Transaction
from .mirroring import owe_mirror
from .records import DELETE_MARKER, NEVER, OBJECT, SUSPENDED, Bucket, Deletion, ObjectVersion, Referrer
from .records import object_version as codec

NULL = "null"


def parse_version_id(version_id: str) -> int | None:
    """The stamp that a version id names: None for ``null``, 0 for one that no version can have.

    Raises:
        InvalidArgument: it is neither ``null`` nor a decimal number.
    """
    if version_id == NULL:
        return None
    if not (version_id.isascii() and version_id.isdigit()) or len(version_id) > 20:
        raise InvalidArgument("versionId", version_id, "Invalid version id specified")
    stamp = int(version_id)
    return stamp if MIN_STAMP <= stamp <= MAX_STAMP and str(stamp) == version_id else 0


def unpack_null(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


def live_version(raw: bytes | None) -> ObjectVersion | None:
    """What a ``current`` row makes readable: nothing if it is absent."""
    if raw is None:
        return None
    version = codec.decode(raw)
    return version if version.kind == OBJECT else None


class Asked(NamedTuple):
    """The reads of a versioned key that `place` rests on, under way."""

    null: Awaitable[bytes | None]
    newest: Awaitable[list[tuple[bytes, bytes]]]


def ask(tr: Transaction, ctx: Context, bucket_id: bytes, key: str) -> Asked:
    """Start what `place` reads in a versioned bucket, together with other reads."""
    keys = ctx.keys.in_bucket(bucket_id)
    versions = keys.version
    return Asked(tr.get(keys.null.key(key)), tr.get_range(versions.key(key), versions.after(key), limit=1))


def ask_if_versioned(tr: Transaction, ctx: Context, bucket: Bucket, key: str) -> Asked | None:
    """`ask`, if the bucket as far as is known is versioned; `place` asks itself where that was wrong."""
    return None if bucket.versioning == NEVER else ask(tr, ctx, bucket.id, key)


async def newest(tr: Transaction, ctx: Context, bucket_id: bytes, key: str) -> ObjectVersion | None:
    """The head of the key's ``version`` rows."""
    versions = ctx.keys.in_bucket(bucket_id).version
    rows = await tr.get_range(versions.key(key), versions.after(key), limit=1)
    return codec.decode(rows[0][1]) if rows else None


async def read_null(
    tr: Transaction, ctx: Context, bucket_id: bytes, key: str, live: ObjectVersion | None
) -> ObjectVersion | None:
    """The key's null version or null delete marker, wherever it lies."""
    if live is not None and live.null:
        return live
    keys = ctx.keys.in_bucket(bucket_id)
    raw = await tr.get(keys.null.key(key))
    if raw is None:
        return None
    row = await tr.get(keys.version.key(key) + pack_stamp(unpack_null(raw)))
    return codec.decode(row) if row is not None else None


async def read_stamp(tr: Transaction, ctx: Context, bucket_id: bytes, key: str, stamp: int) -> ObjectVersion | None:
    """The version with this stamp, unless it is the null version (which has no id of its own)."""
    if not stamp:
        return None
    row = await tr.get(ctx.keys.in_bucket(bucket_id).version.key(key) + pack_stamp(stamp))
    if row is None:
        return None
    version = codec.decode(row)
    return None if version.null else version


async def _discard_bytes(
    tr: Transaction, ctx: Context, bucket_id: bytes, key: str, version: ObjectVersion, keep: bytes = b""
) -> None:
    """Let go of a removed version's bytes. `keep` is a content that the same transaction goes on using."""
    if version.content:
        referrer = Referrer(bucket_id, key, version.stamp)
        if version.content == keep:
            tr.clear(ctx.keys.ref(keep, referrer.digest))
        else:
            await drop_reference(tr, ctx, bucket_id, version.content, referrer)
    elif version.size:
        tr.clear(ctx.keys.in_bucket(bucket_id).inline.key(key) + pack_stamp(version.stamp))


async def place(
    tr: Transaction,
    ctx: Context,
    bucket: Bucket,
    key: str,
    live: ObjectVersion | None,
    make: Callable[[int, bool], ObjectVersion],
    inline: bytes | None = None,
    asked: Asked | None = None,
    regions: tuple[str, ...] = (),
) -> ObjectVersion:
    """Make a new version or delete marker the newest of `key`, as the bucket's versioning says.

    `live` is what `current` holds, read in this transaction with a conflict; `make(stamp, null)` builds the record;
    `inline` is its bytes, where they are not in a content. Writes the reference on the record's content, if it has
    one; the content itself is the caller's to write. `asked` is what `ask` returned, if it was called beforehand;
    `regions` is where the version is to be kept, if the bucket is not to say.
    """
    keys = ctx.keys.in_bucket(bucket.id)
    size_delta = 0
    retained_delta = 1
    if bucket.versioning == NEVER:
        record = make(ctx.stamp(live.stamp if live is not None else 0), True)
        if live is not None:
            retained_delta = 0
            size_delta = -live.size
            await _discard_bytes(tr, ctx, bucket.id, key, live, keep=record.content)
    else:
        if asked is None:
            asked = ask(tr, ctx, bucket.id, key)
        previous = live.stamp if live is not None else 0
        rows = await asked.newest
        if live is None and rows:
            previous = codec.decode(rows[0][1]).stamp
        suspended = bucket.versioning == SUSPENDED
        record = make(ctx.stamp(previous), suspended)
        null_raw = await asked.null
        if suspended:
            replaced: ObjectVersion | None = None
            if live is not None and live.null:
                replaced = live
            elif null_raw is not None:
                replaced = await read_null(tr, ctx, bucket.id, key, None)
            if replaced is not None:
                retained_delta = 0
                size_delta = -replaced.size
                tr.clear(keys.version.key(key) + pack_stamp(replaced.stamp))
                await _discard_bytes(tr, ctx, bucket.id, key, replaced, keep=record.content)
            tr.set(keys.null.key(key), record.stamp.to_bytes(8, "big"))
        elif live is not None and live.null and null_raw is None:
            # Live since before versioning was switched on: from now on it is one version among others.
            tr.set(keys.version.key(key) + pack_stamp(live.stamp), codec.encode(live))
            tr.set(keys.null.key(key), live.stamp.to_bytes(8, "big"))
        tr.set(keys.version.key(key) + pack_stamp(record.stamp), codec.encode(record))
    if record.kind == OBJECT:
        tr.set(keys.current.key(key), codec.encode(record))
        if record.content:
            referrer = Referrer(bucket.id, key, record.stamp, regions=regions)
            add_reference(tr, ctx, record.content, referrer)
        elif inline:
            tr.set(keys.inline.key(key) + pack_stamp(record.stamp), inline)
    elif live is not None:
        tr.clear(keys.current.key(key))
    objects = (record.kind == OBJECT) - (live is not None)
    count(
        tr,
        ctx,
        bucket.id,
        objects=objects,
        noncurrent=retained_delta - objects,
        size=size_delta + record.size,
    )
    await owe_mirror(tr, ctx, bucket, key, live)
    return record


def _marker(stamp: int, null: bool) -> ObjectVersion:
    return ObjectVersion(stamp, 0, "", DELETE_MARKER, "", null=null)


async def hide(
    tr: Transaction,
    ctx: Context,
    bucket: Bucket,
    key: str,
    live: ObjectVersion | None,
    asked: Asked | None = None,
) -> Deletion:
    """Delete `key` without naming a version: remove it, or put a delete marker on top of its versions."""
    if bucket.versioning != NEVER:
        marker = await place(tr, ctx, bucket, key, live, _marker, asked=asked)
        return Deletion(marker.version_id, True)
    if live is not None:
        await _discard_bytes(tr, ctx, bucket.id, key, live)
        tr.clear(ctx.keys.in_bucket(bucket.id).current.key(key))
        count(tr, ctx, bucket.id, objects=-1, noncurrent=0, size=-live.size)
    await owe_mirror(tr, ctx, bucket, key, live)
    return Deletion()


def leave_whiteout(tr: Transaction, ctx: Context, bucket: Bucket, key: str) -> None:
    """Note that a key of a bucket with a shadow was deleted here, so that the shadow's object does not come back."""
    if bucket.shadow:
        tr.set(ctx.keys.in_bucket(bucket.id).whiteout.key(key), b"")


async def remove(
    tr: Transaction, ctx: Context, bucket: Bucket, key: str, live: ObjectVersion | None, target: ObjectVersion
) -> Deletion:
    """Remove `target`, one version or delete marker of `key`, for good; what is newest then decides what is live."""
    if bucket.versioning == NEVER:
        await hide(tr, ctx, bucket, key, live)
        return Deletion(NULL, False)
    keys = ctx.keys.in_bucket(bucket.id)
    tr.clear(keys.version.key(key) + pack_stamp(target.stamp))
    if target.null:
        tr.clear(keys.null.key(key))
    if target.kind == OBJECT:
        await _discard_bytes(tr, ctx, bucket.id, key, target)
    was_live = live is not None
    is_live = was_live
    if live is None or target.stamp == live.stamp:
        head = await newest(tr, ctx, bucket.id, key)  # sees the clear above
        is_live = head is not None and head.kind == OBJECT
        if head is not None and is_live:
            tr.set(keys.current.key(key), codec.encode(head))
        elif was_live:
            tr.clear(keys.current.key(key))
    objects = int(is_live) - int(was_live)
    count(tr, ctx, bucket.id, objects=objects, noncurrent=-1 - objects, size=-target.size)
    await owe_mirror(tr, ctx, bucket, key, target)
    return Deletion(target.version_id, target.delete_marker)
