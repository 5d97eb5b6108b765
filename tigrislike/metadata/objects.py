"""Operations on objects: put, find, delete, copy, tags. Each runs in one transaction.

The bytes are in place before any of these is called: either they are handed in (`Draft.inline`), or a finished blob
holds them (`Draft.blob`), whose id becomes the content's id. What a version is and which is live: `versions`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from . import owed, placing
from .backing import ask_discard, release_excess
from .blobs import commit_blob, live_content
from .conditions import check_delete, check_read, check_write
from .context import Context, hold_bucket
from .errors import InvalidRequest, MethodNotAllowed, MissingInline, NoSuchKey, NoSuchVersion, NotBacked
from .homes import new_content, owe_replicas, owe_warmth, owe_write_back, share
from .keyspace import pack_stamp, unpack_stamp
from .kv.engine import Transaction
from .mirroring import owe_mirror
from .records import (
    BACKED,
    NEVER,
    OBJECT,
    Bucket,
    Deletion,
    Draft,
    Extent,
    Found,
    ObjectVersion,
    Part,
    ReadCondition,
    WriteCondition,
)
from .records import content as content_codec
from .records import elsewhere as elsewhere_codec
from .records import object_version as codec
from .versions import (
    ask_if_versioned,
    hide,
    leave_whiteout,
    live_version,
    newest,
    parse_version_id,
    place,
    read_null,
    read_stamp,
    remove,
)


def version_of(
    draft: Draft, stamp: int, null: bool, size: int, content: bytes, parts: int, whole: bool
) -> ObjectVersion:
    """The record of what `draft` says, with its bytes in `content`, which has `parts`."""
    return ObjectVersion(
        stamp,
        size,
        draft.etag,
        OBJECT,
        draft.storage_class,
        draft.checksum_algorithm,
        draft.checksum_type,
        null,
        draft.checksum,
        content,
        parts,
        draft.content_type,
        draft.headers,
        draft.metadata,
        draft.tags,
        whole,
    )


async def put_object(
    tr: Transaction,
    ctx: Context,
    bucket: Bucket,
    token: bytes | None,
    key: str,
    draft: Draft,
    condition: WriteCondition | None,
) -> ObjectVersion:
    """Make `draft` the newest version of `key`.

    Raises:
        NoSuchBucket, NoSuchKey, PreconditionFailed, BlobDead, NotBacked.
    """
    content_id = draft.blob or b""
    stored = tr.get(ctx.keys.in_bucket(bucket.id).current.key(key))
    asked = ask_if_versioned(tr, ctx, bucket, key)
    blob = tr.get(ctx.keys.blob(content_id)) if content_id else None
    there = draft.elsewhere
    sent = ask_discard(tr, ctx, bucket.id, content_id, there.origin) if there is not None else None
    bucket = await hold_bucket(tr, ctx, bucket, token)
    live = live_version(await stored)
    if condition is not None:
        check_write(condition, key, live)
    if content_id:
        await commit_blob(tr, ctx, content_id, content_id=content_id, number=0, size=draft.size, stored=blob)
        wanted = placing.wanted(bucket, ctx.regions, draft.regions)
        homes = (ctx.home, *draft.others)
        content = new_content(draft.size, 0, homes, bucket, wanted)
        if there is not None and sent is not None:
            content = msgspec.structs.replace(content, origin=there.origin, elsewhere=BACKED)
            tr.set(ctx.keys.elsewhere(content_id), elsewhere_codec.encode(there))
            await owed.withdraw(tr, ctx, sent)
            await release_excess(tr, ctx, content_id, content, {home.node: home.region for home in homes})
        elif bucket.durability == placing.WRITE_THROUGH:
            raise NotBacked(content_id)  # it is that since the upload began
        tr.set(ctx.keys.content(content_id), content_codec.encode(content))
        for home in homes:
            tr.set(ctx.keys.home(home.node, content_id), b"")
        await owe_replicas(tr, ctx, content_id, content)
        await owe_write_back(tr, ctx, content_id, content)
        await owe_warmth(tr, ctx, bucket, content_id, content)

    def make(stamp: int, null: bool) -> ObjectVersion:
        return version_of(draft, stamp, null, draft.size, content_id, 0, False)

    return await place(tr, ctx, bucket, key, live, make, draft.inline, asked, draft.regions)


# --- reading


async def resolve(
    tr: Transaction, ctx: Context, bucket: Bucket, key: str, version_id: str | None, raw: bytes | None
) -> ObjectVersion:
    """The version that a request names; `raw` is the key's ``current`` row.

    Raises:
        NoSuchKey: there is no live version (with the delete marker's id, if that is why).
        NoSuchVersion, MethodNotAllowed (a delete marker), InvalidArgument: about `version_id`.
    """
    live = live_version(raw)
    if version_id is None:
        if live is not None:
            return live
        if bucket.versioning != NEVER:
            marker = await newest(tr, ctx, bucket.id, key)
            if marker is not None and marker.delete_marker:
                raise NoSuchKey(key, delete_marker=True, version_id=marker.version_id, stamp=marker.stamp)
        raise NoSuchKey(key)
    stamp = parse_version_id(version_id)
    if stamp is None:
        version = await read_null(tr, ctx, bucket.id, key, live)
    elif live is not None and live.stamp == stamp and not live.null:
        version = live
    else:
        version = await read_stamp(tr, ctx, bucket.id, key, stamp)
    if version is None:
        raise NoSuchVersion(key, version_id)
    if version.delete_marker:
        raise MethodNotAllowed(version_id, version.stamp)
    return version


async def head_object(tr: Transaction, ctx: Context, bucket: Bucket, key: str, version_id: str | None) -> ObjectVersion:
    """The version alone. Raises as `resolve`."""
    raw = await tr.get(ctx.keys.in_bucket(bucket.id).current.key(key))
    if raw is not None and version_id is None:
        version = codec.decode(raw)
        if version.kind == OBJECT:
            return version
    return await resolve(tr, ctx, bucket, key, version_id, raw)


async def find_object(tr: Transaction, ctx: Context, bucket: Bucket, key: str, version_id: str | None) -> Found:
    """The version and, if it is inline, its bytes; the one blob of a simple content is named too.

    The manifest of a multipart object is not read here: it never changes, so the caller keeps it.
    Raises as `resolve`.
    """
    keys = ctx.keys.in_bucket(bucket.id)
    stored = tr.get(keys.current.key(key))
    if version_id is None:
        # Asked for before it is known to be needed: a distant database is asked once instead of twice. The newest
        # inline row is the live version's, if that is inline at all.
        inline_read = tr.get_range(keys.inline.key(key), keys.inline.after(key), limit=1)
        version = live_version(await stored)
        if version is not None:
            if version.content:
                return Found(version, None, _only_part(version))
            if not version.size:
                return Found(version, b"")
            rows = await inline_read
            if rows and unpack_stamp(rows[0][0]) == version.stamp:
                return Found(version, rows[0][1])
    version = await resolve(tr, ctx, bucket, key, version_id, await stored)
    if version.content:
        return Found(version, None, _only_part(version))
    return Found(version, await read_inline(tr, ctx, bucket.id, key, version))


async def read_inline(tr: Transaction, ctx: Context, bucket_id: bytes, key: str, version: ObjectVersion) -> bytes:
    """The bytes of an inline version."""
    if not version.size:
        return b""
    data = await tr.get(ctx.keys.in_bucket(bucket_id).inline.key(key) + pack_stamp(version.stamp))
    if data is None:
        raise MissingInline(key, version.stamp, version.size)
    return data


def _only_part(version: ObjectVersion) -> tuple[Part, ...]:
    """The manifest of a content that is one blob: it needs no row."""
    if version.parts:
        return ()
    extent = Extent(version.content, 0, version.size)
    return (Part(1, version.size, version.etag, version.checksum, version.stamp, (extent,)),)


# --- deleting


def ask_current(tr: Transaction, ctx: Context, bucket: Bucket, key: str) -> Awaitable[bytes | None]:
    """The key's ``current`` row, under way."""
    return tr.get(ctx.keys.in_bucket(bucket.id).current.key(key))


async def delete_object(
    tr: Transaction,
    ctx: Context,
    bucket: Bucket,
    token: bytes | None,
    key: str,
    version_id: str | None,
    condition: WriteCondition | None,
    stored: Awaitable[bytes | None] | None = None,
) -> Deletion:
    """Delete `key` (by a delete marker, where the bucket is versioned), or one version of it for good.

    What is not there is deleted already: no error, unless a condition says otherwise. `stored` is the key's ``current``
    row, if the caller has asked for it already.

    Raises:
        NoSuchBucket, InvalidArgument (version id), NoSuchKey and PreconditionFailed (condition).
    """
    if stored is None:
        stored = ask_current(tr, ctx, bucket, key)
    asked = ask_if_versioned(tr, ctx, bucket, key) if version_id is None else None
    bucket = await hold_bucket(tr, ctx, bucket, token)
    live = live_version(await stored)
    if version_id is None:
        if condition is not None:
            hidden = False
            if live is None and bucket.versioning != NEVER:
                marker = await newest(tr, ctx, bucket.id, key)
                hidden = marker is not None and marker.delete_marker
            check_delete(condition, key, live, hidden)
        leave_whiteout(tr, ctx, bucket, key)
        return await hide(tr, ctx, bucket, key, live, asked)
    stamp = parse_version_id(version_id)
    if stamp is None:
        target = await read_null(tr, ctx, bucket.id, key, live)
    else:
        target = await read_stamp(tr, ctx, bucket.id, key, stamp)
    if condition is not None:
        check_delete(condition, key, target, False)
    if target is None:
        return Deletion(version_id, False)
    leave_whiteout(tr, ctx, bucket, key)
    return await remove(tr, ctx, bucket, key, live, target)


# --- copying


async def copy_object(
    tr: Transaction,
    ctx: Context,
    source: tuple[Bucket, str, str | None],
    read_condition: ReadCondition | None,
    bucket: Bucket,
    token: bytes | None,
    key: str,
    draft_from: Callable[[ObjectVersion], Draft],
    condition: WriteCondition | None,
    alive: placing.Alive,
) -> tuple[ObjectVersion, ObjectVersion]:
    """Make a new version of `key` that shares the bytes of the source; returns (source version, new version).

    `draft_from` turns the source version into what the new one should say about itself; its size and place are taken
    from the source whatever the draft says. It may run many times. A copy is written whole, as S3 does it: that of a
    multipart object shows no parts, and the draft's ETag and checksum have to be those of all its bytes.

    Raises:
        NoSuchKey, NoSuchVersion: about the source. InvalidRequest: the source is named as a delete marker.
        PreconditionFailed: either condition. NoSuchBucket, ContentGone.
        HomesLacking, NotBacked: too few of the nodes that are `alive` hold the bytes, or no origin, though it should.
    """
    from_bucket, from_key, from_version = source
    from_raw = tr.get(ctx.keys.in_bucket(from_bucket.id).current.key(from_key))
    to_raw = tr.get(ctx.keys.in_bucket(bucket.id).current.key(key))
    asked = ask_if_versioned(tr, ctx, bucket, key)
    bucket = await hold_bucket(tr, ctx, bucket, token)
    try:
        version = await resolve(tr, ctx, from_bucket, from_key, from_version, await from_raw)
    except MethodNotAllowed:
        raise InvalidRequest(
            "The source of a copy request may not specifically refer to a delete marker by version id."
        ) from None
    check_read(read_condition, version, copying=True)
    live = live_version(await to_raw)
    check_write(condition, key, live)
    inline = None
    draft = draft_from(version)
    if version.content:
        content = await live_content(tr, ctx, version.content)
        if bucket.durability == placing.WRITE_THROUGH and not placing.is_backed(content):
            raise NotBacked(version.content)
        wanted = placing.wanted(bucket, ctx.regions, draft.regions)
        await share(tr, ctx, {version.content: content}, wanted, alive)
        await owe_warmth(tr, ctx, bucket, version.content, placing.merged(content, wanted))
    else:
        inline = await read_inline(tr, ctx, from_bucket.id, from_key, version)

    def make(stamp: int, null: bool) -> ObjectVersion:
        return version_of(draft, stamp, null, version.size, version.content, version.parts, bool(version.parts))

    return version, await place(tr, ctx, bucket, key, live, make, inline, asked, draft.regions)


# --- tags


async def put_tags(
    tr: Transaction,
    ctx: Context,
    bucket: Bucket,
    token: bytes | None,
    key: str,
    version_id: str | None,
    tags: dict[str, str],
) -> ObjectVersion:
    """Replace the tags of a version, which stays the same version. Raises as `resolve`."""
    keys = ctx.keys.in_bucket(bucket.id)
    raw = await tr.get(keys.current.key(key))
    bucket = await hold_bucket(tr, ctx, bucket, token)
    version = await resolve(tr, ctx, bucket, key, version_id, raw)
    tagged = msgspec.structs.replace(version, tags=tags)
    encoded = codec.encode(tagged)
    live = live_version(raw)
    if live is not None and live.stamp == version.stamp:
        tr.set(keys.current.key(key), encoded)
        await owe_mirror(tr, ctx, bucket, key)
    row = keys.version.key(key) + pack_stamp(version.stamp)
    if bucket.versioning != NEVER and await tr.get(row) is not None:
        tr.set(row, encoded)
    return tagged
