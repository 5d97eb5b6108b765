"""Multipart uploads: create, parts, complete, abort.

The upload's id is the content's id to come, so parts are written where they will stay and completing moves nothing:
one transaction checks the list, drops what was not listed, and writes the version. Every transaction here reads the
``upload`` row with a conflict and completing or aborting clears it, so none of them can interleave badly.

Completing again with the same list, after success, gives the same answer for as long as the content exists: the
content keeps how it was completed.

Source of the rules: S3 API, CompleteMultipartUpload; S3 User Guide, "multipart upload limits" and "Checking object
integrity".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Sequence

import msgspec
from msgspec import Struct

from . import owed, placing
from .backing import ask_discard, owe_discard, release_excess
from .blobs import (
    add_reference,
    ask_owed_blob,
    ask_reclaim,
    commit_blob,
    drop_reference,
    live_content,
    load_parts,
    owe_blob,
    owe_reclaim,
)
from .conditions import check_write
from .context import Context, hold_bucket
from .errors import (
    BadChecksum,
    EntityTooLarge,
    EntityTooSmall,
    InvalidArgument,
    InvalidPart,
    InvalidPartOrder,
    InvalidRequest,
    MalformedPartList,
    NoSuchUpload,
)
from .homes import new_content, owe_hold, owe_replicas, owe_warmth, owe_write_back, share
from .keyspace import pack_bytes
from .kv.engine import Transaction
from .records import (
    BACKED,
    DEFAULT_CHECKSUM_ALGORITHM,
    LIVE,
    OBJECT,
    Bucket,
    CompletedPart,
    Completion,
    Content,
    Elsewhere,
    Home,
    ObjectVersion,
    Part,
    PartPage,
    Referrer,
    Upload,
    UploadDraft,
    WriteCondition,
    digest16,
    part_list_digest,
)
from .records import blob as blob_codec
from .records import content as content_codec
from .records import elsewhere as elsewhere_codec
from .records import part as part_codec
from .records import upload as codec
from .versions import ask_if_versioned, live_version, place

MAX_PARTS = 10_000
MIN_PART_BYTES = 5 * 1024**2
MAX_PART_BYTES = 5 * 1024**3
MAX_OBJECT_BYTES = 5 * 1024**4

Combine = Callable[[str, Sequence[tuple[str, int]]], str]
"""The CRC (base64) of a whole from the CRCs and sizes of its parts: ``combine(algorithm, [(crc, size), ...])``."""

Composite = Callable[[str, Sequence[str]], str]
"""The checksum of the parts' checksums (base64), with ``-N``: ``composite(algorithm, [checksum, ...])``."""


def parse_upload_id(upload_id: str) -> bytes:
    """The content id that an upload id names. Raises NoSuchUpload for what cannot be one."""
    if len(upload_id) != 32:
        raise NoSuchUpload(upload_id)
    try:
        content_id = bytes.fromhex(upload_id)
    except ValueError:
        raise NoSuchUpload(upload_id) from None
    if content_id.hex() != upload_id:
        raise NoSuchUpload(upload_id)
    return content_id


def check_part_number(number: int) -> None:
    if not 1 <= number <= MAX_PARTS:
        raise InvalidArgument(
            "partNumber", str(number), f"Part number must be an integer between 1 and {MAX_PARTS}, inclusive"
        )


def check_part(part: Part) -> None:
    """Refuse a part that cannot be one.

    Raises:
        InvalidArgument: the number. EntityTooLarge: more than 5 GiB.
    """
    check_part_number(part.number)
    if part.size > MAX_PART_BYTES:
        raise EntityTooLarge(part.size, MAX_PART_BYTES)


def _row(ctx: Context, bucket_id: bytes, key: str, content_id: bytes) -> bytes:
    return ctx.keys.in_bucket(bucket_id).upload.key(key) + pack_bytes(content_id)


def marker_row(ctx: Context, bucket_id: bytes, key: str, upload_id: str) -> bytes:
    """The row after which a listing goes on. Raises InvalidArgument for what is no upload id."""
    try:
        return _row(ctx, bucket_id, key, parse_upload_id(upload_id))
    except NoSuchUpload:
        raise InvalidArgument("upload-id-marker", upload_id, "Invalid uploadId marker") from None


async def create_upload(
    tr: Transaction, ctx: Context, bucket: Bucket, token: bytes | None, key: str, content_id: bytes, draft: UploadDraft
) -> Upload:
    """Begin an upload; `content_id` is 16 fresh random bytes. Raises NoSuchBucket."""
    bucket = await hold_bucket(tr, ctx, bucket, token)
    upload = Upload(
        content_id,
        ctx.now_ns(),
        draft.owner,
        draft.storage_class,
        draft.checksum_algorithm,
        draft.checksum_type,
        draft.content_type,
        draft.headers,
        draft.metadata,
        draft.tags,
        draft.regions,
    )
    tr.set(_row(ctx, bucket.id, key, content_id), codec.encode(upload))
    return upload


async def read_upload(tr: Transaction, ctx: Context, bucket: Bucket, key: str, content_id: bytes) -> Upload:
    """The upload in progress. Raises NoSuchUpload."""
    raw = await tr.get(_row(ctx, bucket.id, key, content_id))
    if raw is None:
        raise NoSuchUpload(content_id.hex())
    return codec.decode(raw)


async def put_part(
    tr: Transaction,
    ctx: Context,
    bucket: Bucket,
    key: str,
    content_id: bytes,
    part: Part,
    alive: placing.Alive,
    elsewhere: Elsewhere | None = None,
) -> Part:
    """Record a part whose blob is finished (or which is a slice of the content `part.source`); returns the record.

    A part of the same number is replaced, and its blob's deletion owed. `elsewhere` is where an origin has the blob.
    The record's time, node and origin are filled in here.

    Raises:
        NoSuchUpload, BlobDead, ContentGone (the source).
        HomesLacking: too few of the nodes that are `alive` hold the source.
    """
    stored = tr.get(_row(ctx, bucket.id, key, content_id))
    row = ctx.keys.part(content_id, part.number)
    replaced = tr.get(row)
    blobs = [] if part.source else [tr.get(ctx.keys.blob(extent.blob)) for extent in part.extents]
    there = {} if elsewhere is None else {extent.blob: elsewhere for extent in part.extents}
    sent = {blob: ask_discard(tr, ctx, bucket.id, blob, each.origin) for blob, each in there.items()}
    begun = await stored
    if begun is None:
        raise NoSuchUpload(content_id.hex())
    raw = await replaced
    if part.source:
        wanted = placing.wanted(bucket, ctx.regions, codec.decode(begun).regions)
        await share(tr, ctx, {part.source: await live_content(tr, ctx, part.source)}, wanted, alive)
        add_reference(tr, ctx, part.source, Referrer(content=content_id))
    else:
        for extent, blob in zip(part.extents, blobs, strict=True):
            await commit_blob(
                tr, ctx, extent.blob, content_id=content_id, number=part.number, size=extent.size, stored=blob
            )
    for blob_id, each in there.items():
        tr.set(ctx.keys.elsewhere(blob_id), elsewhere_codec.encode(each))
        await owed.withdraw(tr, ctx, sent[blob_id])
    record = msgspec.structs.replace(
        part,
        modified_ns=ctx.now_ns(),
        node=ctx.home.node,
        region=ctx.home.region,
        origin=elsewhere.origin if elsewhere is not None else b"",
    )
    if raw is not None:
        old = part_codec.decode(raw)
        await _discard_parts(tr, ctx, bucket.id, [old])
        gone = set(holders(old)) - set(holders(record))
        if gone or (old.source and old.source != part.source):
            others = [other for other in await load_parts(tr, ctx, content_id) if other.number != part.number]
            if old.source and old.source not in {part.source, *(other.source for other in others)}:
                await drop_reference(tr, ctx, bucket.id, old.source, Referrer(content=content_id))
            for node in gone - {node for other in others for node in holders(other)}:
                tr.clear(ctx.keys.home(node, content_id))
    tr.set(row, part_codec.encode(record))
    if part.extents:
        for node in holders(record):
            tr.set(ctx.keys.home(node, content_id), b"")
    return record


def holders(part: Part) -> list[bytes]:
    """The nodes that have a part's bytes durably. A slice is where its source is; where the nodes are lost, the origin
    alone has them."""
    return [] if part.source else [home.node for home in _homes(part)]


def is_at_origin_alone(part: Part) -> bool:
    """Whether the nodes that had a part are lost, and its origin is who has its bytes."""
    return not part.source and not part.node and part.origin != b""


async def held_parts(tr: Transaction, ctx: Context, content_id: bytes, nodes: Container[bytes]) -> list[Part]:
    """Parts of an upload in progress that some of `nodes` hold; none where it ended, for then its content says who
    does."""
    if await tr.get(ctx.keys.content(content_id)) is not None:
        return []
    return [part for part in await load_parts(tr, ctx, content_id) if any(node in nodes for node in holders(part))]


async def begin_parts(
    tr: Transaction, ctx: Context, content_id: bytes, leaving: Container[bytes]
) -> list[tuple[bytes, int]] | None:
    """Announce that this node is about to hold parts of an upload in progress in the stead of nodes that leave: their
    blobs, with their sizes in bytes. None: there are no such parts."""
    taken = [part for part in await held_parts(tr, ctx, content_id, leaving) if ctx.home.node not in holders(part)]
    for part in taken:
        if ctx.home not in part.pending:
            _put(tr, ctx, content_id, msgspec.structs.replace(part, pending=(*part.pending, ctx.home)))
    return [(extent.blob, extent.size) for part in taken for extent in part.extents] if taken else None


async def take_parts(tr: Transaction, ctx: Context, content_id: bytes, leaving: Container[bytes]) -> None:
    """Record that this node holds durably what it announced. Who leaves need not, and may let its files go; so may this
    node, where another one was faster. Where the upload ended meanwhile, that was seen to."""
    if await tr.get(ctx.keys.content(content_id)) is not None:
        return
    parts = list(await load_parts(tr, ctx, content_id))
    for at, part in enumerate(parts):
        if ctx.home not in part.pending:
            continue
        replaced = next((node for node in holders(part) if node in leaving), None)
        homes = [ctx.home if home.node == replaced else home for home in _homes(part)]
        if is_at_origin_alone(part):  # who left was removed meanwhile
            homes = [ctx.home]
        parts[at] = taken = _held_by(part, homes)
        _put(tr, ctx, content_id, msgspec.structs.replace(taken, pending=_without(part.pending, ctx.home.node)))
        for extent in part.extents:
            await _move_blob(tr, ctx, extent.blob, homes[0].node)
            await owe_blob(tr, ctx, replaced or ctx.home.node, b"", extent.blob)
        if ctx.home in homes:
            tr.set(ctx.keys.home(ctx.home.node, content_id), b"")
            if replaced is not None and not any(replaced in holders(each) for each in parts):
                tr.clear(ctx.keys.home(replaced, content_id))


async def lose_parts(tr: Transaction, ctx: Context, content_id: bytes, node: bytes) -> bool:
    """Take a node that is gone out of the parts of an upload in progress. Those that only it had are at their origin
    alone, or where they have none are no parts any more: completing asks for them in vain. Whether there were any."""
    lost = False
    for part in await held_parts(tr, ctx, content_id, {node}):
        left = [home for home in _homes(part) if home.node != node]
        if left or part.origin:
            part = _held_by(part, left)
            _put(tr, ctx, content_id, part)
            for extent in part.extents:
                await _move_blob(tr, ctx, extent.blob, part.node)
        else:
            lost = True
            tr.clear(ctx.keys.part(content_id, part.number))
            for extent in part.extents:
                tr.clear(ctx.keys.blob(extent.blob))
    tr.clear(ctx.keys.home(node, content_id))
    return lost


def _homes(part: Part) -> list[Home]:
    return [Home(part.region, part.node), *part.others] if part.node else []


def _held_by(part: Part, homes: Sequence[Home]) -> Part:
    first, *others = homes or [Home("", b"")]
    return msgspec.structs.replace(part, region=first.region, node=first.node, others=tuple(others))


def _without(homes: Sequence[Home], node: bytes) -> tuple[Home, ...]:
    return tuple(home for home in homes if home.node != node)


def _put(tr: Transaction, ctx: Context, content_id: bytes, part: Part) -> None:
    tr.set(ctx.keys.part(content_id, part.number), part_codec.encode(part))


async def _move_blob(tr: Transaction, ctx: Context, blob_id: bytes, node: bytes) -> None:
    key = ctx.keys.blob(blob_id)
    raw = await tr.get(key)
    if raw is not None:
        tr.set(key, blob_codec.encode(msgspec.structs.replace(blob_codec.decode(raw), node=node)))


async def _discard_parts(tr: Transaction, ctx: Context, bucket_id: bytes, parts: Sequence[Part]) -> None:
    """Owe the deletion of parts' blobs. A slice owns none; the reference on its source, which other slices may need
    too, is for the caller to drop."""
    for part in parts:
        if is_at_origin_alone(part):
            for extent in part.extents:
                tr.clear(ctx.keys.blob(extent.blob))
                tr.clear(ctx.keys.elsewhere(extent.blob))
                await owe_discard(tr, ctx, bucket_id, extent.blob, part.origin)
    blobs = [
        (node, extent.blob)
        for part in parts
        for node in (*holders(part), *(home.node for home in part.pending))
        for extent in part.extents
    ]
    asked = [ask_owed_blob(tr, ctx, node, bucket_id, blob) for node, blob in blobs]
    for (node, blob), reads in zip(blobs, asked, strict=True):
        await owe_blob(tr, ctx, node, bucket_id, blob, reads)


async def list_parts(
    tr: Transaction, ctx: Context, bucket: Bucket, key: str, content_id: bytes, after: int, limit: int
) -> PartPage:
    """Up to `limit` parts whose numbers are above `after`. Raises NoSuchUpload."""
    stored = tr.get(_row(ctx, bucket.id, key, content_id))
    _, end = ctx.keys.part_range(content_id)
    rows = await tr.get_range(ctx.keys.part(content_id, max(after, 0)) + b"\x00", end, limit=limit + 1)
    raw = await stored
    if raw is None:
        raise NoSuchUpload(content_id.hex())
    parts = [part_codec.decode(value) for _, value in rows[:limit]]
    return PartPage(codec.decode(raw), parts, bool(parts) and len(rows) > limit, parts[-1].number if parts else 0)


async def choose(
    tr: Transaction, ctx: Context, bucket: Bucket, key: str, content_id: bytes, listed: Sequence[CompletedPart]
) -> tuple[Upload, list[Part]]:
    """The upload and its listed parts. Raises NoSuchUpload, and as `choose_parts`."""
    stored = tr.get(_row(ctx, bucket.id, key, content_id))
    begin, end = ctx.keys.part_range(content_id)
    rows = tr.get_range(begin, end)
    raw = await stored
    if raw is None:
        raise NoSuchUpload(content_id.hex())
    upload = codec.decode(raw)
    parts = [part_codec.decode(value) for _, value in await rows]
    return upload, choose_parts(upload, {part.number: part for part in parts}, listed)


async def abort_upload(tr: Transaction, ctx: Context, bucket: Bucket, key: str, content_id: bytes) -> None:
    """Give an upload up. Its parts become an unreferenced content whose reclaiming is owed at once.

    Raises:
        NoSuchUpload.
    """
    row = _row(ctx, bucket.id, key, content_id)
    stored = tr.get(row)
    asked = ask_reclaim(tr, ctx, ctx.home.node, bucket.id, content_id)
    if await stored is None:
        raise NoSuchUpload(content_id.hex())
    await owe_reclaim(tr, ctx, ctx.home.node, bucket.id, content_id, at_once=True, asked=asked)
    tr.clear(row)
    content = Content(0, LIVE, 1, (ctx.home,), bucket.id)
    tr.set(ctx.keys.content(content_id), content_codec.encode(content))


# --- completing


def check_part_list(upload_id: str, listed: Sequence[CompletedPart]) -> None:
    """Refuse a part list that no upload could satisfy.

    Raises:
        MalformedPartList: empty or too long. InvalidPartOrder: not strictly ascending. InvalidArgument: numbers.
    """
    if not listed:
        raise MalformedPartList("You must specify at least one part")
    if len(listed) > MAX_PARTS:
        raise MalformedPartList(f"The list names {len(listed)} parts; at most {MAX_PARTS} are allowed")
    previous = 0
    for entry in listed:
        check_part_number(entry.number)
        if entry.number <= previous:
            raise InvalidPartOrder(upload_id)
        previous = entry.number


def choose_parts(upload: Upload, stored: dict[int, Part], listed: Sequence[CompletedPart]) -> list[Part]:
    """The stored parts that `listed` names, in its order.

    S3 demands the checksum of each part where the object's is to be composite. Here it may be left out: the ETag names
    the part as well, and clients that make their part lists of ETags alone work with most other stores. One that is
    given is held to what S3 holds it to: that of an upload that named no algorithm can never be right.

    Raises:
        InvalidPart: one is not stored, or its ETag or checksum is another, or the checksum is not of the algorithm that
        the upload named. EntityTooSmall: one but the last is smaller than 5 MiB. EntityTooLarge: together they exceed
        5 TiB.
    """
    chosen = []
    for entry in listed:
        part = stored.get(entry.number)
        if part is None or part.etag != entry.etag.strip('"').lower():
            raise InvalidPart(upload.upload_id, entry.number, entry.etag)
        if entry.checksum is not None and (
            entry.algorithm != upload.checksum_algorithm or entry.checksum != part.checksum
        ):
            raise InvalidPart(upload.upload_id, entry.number, entry.etag)
        chosen.append(part)
    for part in chosen[:-1]:
        if part.size < MIN_PART_BYTES:
            raise EntityTooSmall(part.number, part.etag, part.size, MIN_PART_BYTES)
    size = sum(part.size for part in chosen)
    if size > MAX_OBJECT_BYTES:
        raise EntityTooLarge(size, MAX_OBJECT_BYTES)
    return chosen


def multipart_etag(parts: Sequence[Part]) -> str:
    """The MD5 of the parts' binary MD5s, and how many they are."""
    digest = hashlib.md5(b"".join(bytes.fromhex(part.etag) for part in parts), usedforsecurity=False)
    return f"{digest.hexdigest()}-{len(parts)}"


class Checksum(Struct, frozen=True):
    """The checksum of an object: its algorithm, its type, and its value in base64, composite ones with ``-N``. All are
    empty where the object has none."""

    algorithm: str = ""
    type: str = ""
    value: str = ""


def object_checksum(upload: Upload, parts: Sequence[Part], combine: Combine, composite: Composite) -> Checksum:
    """The checksum of the whole object: what the upload named, else the default one of the whole, as S3 attaches it.

    Raises:
        InvalidRequest: a part was uploaded without the checksum that the upload promised.
    """
    algorithm, checksum_type = upload.checksum_algorithm, upload.checksum_type
    missing = next((part.number for part in parts if not part.checksum), None)
    if not algorithm:
        if missing is not None:
            return Checksum()  # this part is from before the default checksum was kept
        algorithm, checksum_type = DEFAULT_CHECKSUM_ALGORITHM, "FULL_OBJECT"
    elif missing is not None:
        raise InvalidRequest(
            f"The upload was created using a {algorithm.lower()} checksum. It was missing for part {missing}."
        )
    if checksum_type == "FULL_OBJECT":
        value = combine(algorithm, [(part.checksum, part.size) for part in parts])
    else:
        value = composite(algorithm, [part.checksum for part in parts])
    return Checksum(algorithm, checksum_type, value)


class Expected(Struct, frozen=True):
    """What a CompleteMultipartUpload request says of the whole: its checksum as (algorithm, base64 with or without
    ``-N``), the checksum's type, its size in bytes. None where it says nothing."""

    checksum: tuple[str, str] | None = None
    checksum_type: str | None = None
    size: int | None = None


def check_expected(expected: Expected, size: int, checksum: Checksum) -> None:
    """Raise unless the object has the size and checksum that the request says.

    Raises:
        InvalidRequest: size, type or algorithm differ. BadChecksum: the checksum does.
    """
    if expected.size is not None and expected.size != size:
        raise InvalidRequest(
            f"The provided 'x-amz-mp-object-size' header value {expected.size} does not match what was computed: {size}"
        )
    if expected.checksum_type is not None and expected.checksum_type != checksum.type:
        raise InvalidRequest(
            f"The upload was created using the {checksum.type or 'default'} checksum mode. "
            "The complete request must use the same checksum mode."
        )
    if expected.checksum is not None:
        algorithm, value = expected.checksum
        if algorithm != checksum.algorithm:
            raise InvalidRequest(
                f"The object is to have {checksum.algorithm or 'no'} checksum. "
                f"The complete request names a {algorithm} checksum."
            )
        if value.partition("-")[0] != checksum.value.partition("-")[0]:
            raise BadChecksum(f"The {algorithm} you specified did not match the calculated checksum.")


class Prepared(Struct, frozen=True):
    """A checksum computed ahead of the transaction, and the parts that it is of."""

    parts: list[Part]
    checksum: Checksum


async def complete_upload(
    tr: Transaction,
    ctx: Context,
    bucket: Bucket,
    token: bytes | None,
    key: str,
    content_id: bytes,
    listed: Sequence[CompletedPart],
    combine: Combine,
    composite: Composite,
    condition: WriteCondition | None,
    expected: Expected,
    prepared: Prepared | None,
    alive: placing.Alive,
) -> ObjectVersion:
    """Make the listed parts the newest version of `key`. `listed` has passed `check_part_list`.

    `prepared` is used if it is still of the parts that are stored.

    Raises:
        NoSuchBucket, NoSuchUpload, InvalidPart, EntityTooSmall, EntityTooLarge, InvalidRequest, BadChecksum,
        NoSuchKey and PreconditionFailed (condition).
        HomesLacking: too few of the nodes that are `alive` hold what lends the upload parts.
    """
    upload_id = content_id.hex()
    row = _row(ctx, bucket.id, key, content_id)
    upload_read = tr.get(row)
    current_read = tr.get(ctx.keys.in_bucket(bucket.id).current.key(key))
    begin, end = ctx.keys.part_range(content_id)
    parts_read = tr.get_range(begin, end)
    asked = ask_if_versioned(tr, ctx, bucket, key)
    bucket = await hold_bucket(tr, ctx, bucket, token)
    place_hash = digest16(bucket.id, key.encode())
    request_hash = part_list_digest(listed)
    raw = await upload_read
    if raw is None:
        earlier = await tr.get(ctx.keys.content(content_id))
        completion = content_codec.decode(earlier).completion if earlier is not None else None
        if completion is None or completion.place != place_hash or completion.request != request_hash:
            raise NoSuchUpload(upload_id)
        return completion.version
    upload = codec.decode(raw)
    stored = {part.number: part for part in (part_codec.decode(value) for _, value in await parts_read)}
    chosen = choose_parts(upload, stored, listed)
    size = sum(part.size for part in chosen)
    wanted = placing.wanted(bucket, ctx.regions, upload.regions)
    sources = sorted({part.source for part in chosen if part.source})
    owned = [part for part in chosen if part.extents]
    backed = bool(wanted.backing) and not sources and all(part.origin == wanted.backing for part in owned)
    for part in chosen:
        # An object is read from its origin only where that has all of it.
        if is_at_origin_alone(part) and not backed:
            raise InvalidPart(upload_id, part.number, part.etag)
    if prepared is not None and prepared.parts == chosen:
        checksum = prepared.checksum
    else:
        checksum = object_checksum(upload, chosen, combine, composite)
    check_expected(expected, size, checksum)
    live = live_version(await current_read)
    check_write(condition, key, live)

    kept = {part.number for part in chosen}
    discarded = [part for number, part in stored.items() if number not in kept]
    await _discard_parts(tr, ctx, bucket.id, discarded)
    for part in discarded:
        tr.clear(ctx.keys.part(content_id, part.number))
    # Who was about to take parts over learns that from the content; these bytes are not for it to keep.
    for part in [part for part in chosen if part.pending]:
        _put(tr, ctx, content_id, msgspec.structs.replace(part, pending=()))
        for home in part.pending:
            for extent in part.extents:
                await owe_blob(tr, ctx, home.node, bucket.id, extent.blob)
    # A source of which no slice is left is let go of: no row would remember it.
    for source in sorted({part.source for part in stored.values()} - {part.source for part in chosen}):
        if source:
            await drop_reference(tr, ctx, bucket.id, source, Referrer(content=content_id))
    tr.clear(row)

    etag = multipart_etag(chosen)

    def make(stamp: int, null: bool) -> ObjectVersion:
        return ObjectVersion(
            stamp,
            size,
            etag,
            OBJECT,
            upload.storage_class,
            checksum.algorithm,
            checksum.type,
            null,
            checksum.value,
            content_id,
            len(chosen),
            upload.content_type,
            upload.headers,
            upload.metadata,
            upload.tags,
        )

    version = await place(tr, ctx, bucket, key, live, make, asked=asked, regions=upload.regions)
    homes = homes_of_parts(ctx, chosen)
    completion = Completion(place_hash, request_hash, version)
    content = new_content(size, len(chosen), homes, bucket, wanted)
    content = msgspec.structs.replace(content, completion=completion)
    if backed:
        content = msgspec.structs.replace(content, origin=wanted.backing, elsewhere=BACKED)
        await release_excess(tr, ctx, content_id, content, {home.node: home.region for home in homes})
    tr.set(ctx.keys.content(content_id), content_codec.encode(content))
    for node in {node for part in stored.values() for node in holders(part)}:
        tr.clear(ctx.keys.home(node, content_id))
    for home in homes:
        tr.set(ctx.keys.home(home.node, content_id), b"")
    await owe_write_back(tr, ctx, content_id, content)
    await owe_replicas(tr, ctx, content_id, content)
    await owe_warmth(tr, ctx, bucket, content_id, content)
    for node in gatherers(ctx, content_id, content, alive):
        await owe_hold(tr, ctx, node, bucket.id, content_id)
    if sources:
        await share(tr, ctx, {source: await live_content(tr, ctx, source) for source in sources}, wanted, alive)
    return version


def gatherers(ctx: Context, content_id: bytes, content: Content, alive: placing.Alive) -> list[bytes]:
    """The nodes that are to gather a content of which too few have all parts: this one, then those that have some; the
    others may then let go of theirs. Further ones where even these are too few beside the regions that are owed it."""
    whole = {home.node: home.region for home in content.homes if home.whole}
    lacking = max(0, content.copies - len(whole) - placing.is_backed(content))
    partial = [
        node for node in dict.fromkeys([ctx.home.node, *(home.node for home in content.homes)]) if node not in whole
    ]
    chosen = partial[:lacking]
    lacking -= len(chosen) + len(ctx.regions.expand(content.regions) - set(whole.values()))
    others = [node for node, region in alive.items() if ctx.regions.allow(content.regions, region)]
    further = [node for node in placing.ranked(content_id, others) if node not in whole and node not in chosen]
    return chosen + further[: max(0, lacking)]


def homes_of_parts(ctx: Context, parts: Sequence[Part]) -> tuple[Home, ...]:
    """The nodes that hold parts of an upload, this one first if it is one of them: those that hold them all, and those
    that hold some. Slices are where their source is; an object of nothing else is this node's to look after."""
    own = [part for part in parts if not part.source]
    if not own:
        return (ctx.home,)
    holding = [set(holders(part)) for part in own]
    regions = {home.node: home.region for part in own for home in _homes(part)}
    whole = set.intersection(*holding)
    nodes = sorted(set.union(*holding), key=lambda node: (node != ctx.home.node, node not in whole, node))
    return tuple(Home(regions[node], node, node in whole) for node in nodes)
