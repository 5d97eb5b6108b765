"""What must hold between the rows of the keyspace: one check for each family, for `fsck` to run.

A check looks at one row and, in the same transaction, at the rows that must agree with it. Every committed state
satisfies every check, so what a check finds on a snapshot is damage, whatever writers do meanwhile. A problem that can
be mended without losing anything that is still readable carries the mending, which runs in a transaction that has
just found the problem again. Checks never delete an object, a version or a content that something refers to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from tigrislike.metadata import blobs, homes, overseeing, owed, placing, records
from tigrislike.metadata.buckets import REPOLICY, owe_repolicy
from tigrislike.metadata.context import Context
from tigrislike.metadata.keyspace import pack_stamp, subspace, unpack_bytes, unpack_int, unpack_stamp
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.records import (
    ANNOUNCED,
    BACKED,
    DEAD,
    LIVE,
    NEVER,
    NOWHERE,
    OBJECT,
    REMOVED,
    SHADOWED,
    Blob,
    Bucket,
    Content,
    ObjectVersion,
    Part,
    Referrer,
)
from tigrislike.metadata.versions import newest, unpack_null
from tigrislike.replication.demand import PERIOD_NS
from tigrislike.replication.lacking import RESTORE, owe_restore

SKEW_NS = 10_000_000_000
"""How far the clocks of nodes may be apart before fsck takes what they wrote for damage."""

Mend = Callable[[Transaction], Awaitable[None]]
Check = Callable[["View", Transaction, bytes, bytes], Awaitable[list["Problem"]]]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that must not be. `kind` is stable, `subject` names the thing, `mend` is None where nothing is safe."""

    kind: str
    subject: str
    detail: str
    mend: Mend | None = None


@dataclass(slots=True)
class View:
    """What checks share: the context, and the names of buckets by their ids, as far as they have been seen."""

    ctx: Context
    names: dict[bytes, str] = field(default_factory=dict)

    async def bucket(self, tr: Transaction, bucket_id: bytes) -> Bucket | None:
        """The bucket with this id, as `tr` sees it."""
        family = self.ctx.keys.bucket
        name = self.names.get(bucket_id)
        if name is not None:
            raw = await tr.get(family.key(name))
            bucket = records.bucket.decode(raw) if raw is not None else None
            if bucket is not None and bucket.id == bucket_id:
                return bucket
        for _, value in await tr.get_range(family.begin, family.end, snapshot=True):
            bucket = records.bucket.decode(value)
            self.names[bucket.id] = bucket.name
        name = self.names.get(bucket_id)
        if name is None:
            return None
        raw = await tr.get(family.key(name))
        bucket = records.bucket.decode(raw) if raw is not None else None
        return bucket if bucket is not None and bucket.id == bucket_id else None


def setting(key: bytes, value: bytes) -> Mend:
    async def mend(tr: Transaction) -> None:
        tr.set(key, value)

    return mend


def clearing(*keys: bytes) -> Mend:
    async def mend(tr: Transaction) -> None:
        for key in keys:
            tr.clear(key)

    return mend


def in_family(prefix: bytes, key: bytes) -> tuple[bytes, str, bytes]:
    """Bucket id, object key and the packed rest of a row of a bucket's family."""
    bucket_id, at = unpack_bytes(key, len(prefix))
    text, at = unpack_bytes(key, at)
    return bucket_id, text.decode(), key[at:]


async def owed_anywhere(tr: Transaction, ctx: Context, task: str, subject: bytes) -> bool:
    """Whether any zone holds this work, waiting, leased or as a dead letter.

    Every zone with items has a mark; one that holds letters only has counters that say so.
    """
    id_ = owed.item_id(task, subject)
    marks = tr.get_range(*subspace(ctx.keys.queue_zones))
    counts = await tr.get_range(*subspace(ctx.keys.queue_counts), snapshot=True)
    zones = {unpack_bytes(key, len(ctx.keys.queue_counts))[0] for key, _ in counts}
    for zone in zones | {unpack_bytes(key, len(ctx.keys.queue_zones))[0] for key, _ in await marks}:
        item, letter = tr.get(ctx.keys.queue_item(zone, id_)), tr.get(ctx.keys.queue_dead_item(zone, id_))
        if await item is not None or await letter is not None:
            return True
    return False


# --- buckets


async def check_bucket(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    keys = view.ctx.keys
    name = keys.bucket.text(key)
    bucket = records.bucket.decode(value)
    problems = []
    if bucket.name != name:
        return [Problem("bucket-name", name, f"its record says {bucket.name!r}")]
    view.names[bucket.id] = name
    problems += [
        Problem("origin-missing", name, f"its origin {origin_id.hex()} has no record")
        for origin_id in (bucket.shadow, bucket.backing)
        if origin_id and await tr.get(keys.origin(origin_id)) is None
    ]
    index = keys.owned(bucket.owner).key(name)
    if await tr.get(index) is None:
        problems.append(
            Problem("bucket-owner", name, f"is missing from the list of {bucket.owner}", setting(index, b""))
        )
    begin, end = keys.config_range(bucket.id)
    kinds = tuple(unpack_bytes(row, len(begin) - 1)[0].decode() for row, _ in await tr.get_range(begin, end))
    if kinds != bucket.configs:

        async def mend(tr: Transaction) -> None:
            tr.set(key, records.bucket.encode(msgspec.structs.replace(bucket, configs=kinds)))
            tr.bump_metadata_version()

        problems.append(Problem("bucket-configs", name, f"says {bucket.configs}, there are {kinds}", mend))
    return problems


async def check_owner(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    owner, at = unpack_bytes(key, len(view.ctx.keys.owners))
    name = unpack_bytes(key, at)[0].decode()
    raw = await tr.get(view.ctx.keys.bucket.key(name))
    if raw is not None and records.bucket.decode(raw).owner == owner.decode():
        return []
    return [Problem("owner-dangling", name, f"is listed for {owner.decode()}, who has no such bucket", clearing(key))]


async def check_repolicy(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    ctx = view.ctx
    bucket_id, _ = unpack_bytes(key, len(ctx.keys.repolicies))
    cursor = records.repolicy.decode(value)
    bucket = await view.bucket(tr, bucket_id)
    if bucket is None:
        detail = f"says how far bucket {bucket_id.hex()} follows its policy, which does not exist"
        return [Problem("repolicy-dangling", cursor.name, detail, clearing(key))]
    rows = ctx.keys.in_bucket(bucket_id)
    after = ctx.keys.prefix + cursor.after
    placed = not cursor.after or any(each.begin <= after < each.end for each in (rows.current, rows.version))
    owes = await owed_anywhere(tr, ctx, REPOLICY, bucket_id)
    if cursor.name == bucket.name and placed and owes:
        return []

    async def start_over(tr: Transaction) -> None:
        await owe_repolicy(tr, ctx, bucket)

    if not owes:
        return [
            Problem("repolicy-forgotten", bucket.name, "its objects would follow its policy no further", start_over)
        ]
    detail = f"a policy is followed under the name {cursor.name!r}, behind {cursor.after!r}"
    return [Problem("repolicy-wrong", bucket.name, detail, start_over)]


async def check_short(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    ctx = view.ctx
    content_id, _ = unpack_bytes(key, len(ctx.keys.shorts))
    subject = content_id.hex()
    if await tr.get(ctx.keys.content(content_id)) is None:
        return [Problem("short-dangling", subject, "is noted as short of homes, and does not exist", clearing(key))]
    if await owed_anywhere(tr, ctx, RESTORE, b""):
        return []

    async def ask_again(tr: Transaction) -> None:
        await owe_restore(tr, ctx)

    return [Problem("short-forgotten", subject, "would get the homes that it lacks from no node that joins", ask_again)]


# --- versions


async def check_bytes(
    view: View, tr: Transaction, bucket: Bucket, key: str, version: ObjectVersion, subject: str
) -> list[Problem]:
    """That a version's bytes are there as it says."""
    keys = view.ctx.keys
    if not version.content:
        if not version.size:
            return []
        data = await tr.get(keys.in_bucket(bucket.id).inline.key(key) + pack_stamp(version.stamp))
        if data is None:
            return [Problem("inline-missing", subject, f"its {version.size} inline bytes are gone")]
        if len(data) != version.size:
            return [Problem("inline-size", subject, f"has {len(data)} inline bytes, its record says {version.size}")]
        return []
    referrer = Referrer(bucket.id, key, version.stamp)
    stored, ref = tr.get(keys.content(version.content)), tr.get(keys.ref(version.content, referrer.digest))
    raw = await stored
    if raw is None:
        return [Problem("content-missing", subject, f"its content {version.content.hex()} does not exist")]
    content = records.content.decode(raw)
    if content.state != LIVE:
        return [Problem("content-dead", subject, f"its content {version.content.hex()} is dead")]
    problems = []
    if await ref is None:

        async def mend(tr: Transaction) -> None:
            blobs.add_reference(tr, view.ctx, version.content, referrer)

        problems.append(Problem("ref-missing", subject, f"holds no reference on {version.content.hex()}", mend))
    if (content.size, content.parts) != (version.size, version.parts):
        problems.append(
            Problem(
                "content-size",
                subject,
                f"says {version.size} bytes in {version.parts} parts, its content {content.size} in {content.parts}",
            )
        )
    return problems


def _orphan(what: str, bucket_id: bytes, key: str) -> Problem:
    return Problem("bucket-missing", key, f"a {what} row of bucket {bucket_id.hex()}, which does not exist")


async def check_current(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    bucket_id, name, _ = in_family(view.ctx.keys.current, key)
    bucket = await view.bucket(tr, bucket_id)
    if bucket is None:
        return [_orphan("current", bucket_id, name)]
    live = records.object_version.decode(value)
    subject = f"{bucket.name}/{name}"
    if live.kind != OBJECT:
        return []
    problems = await check_bytes(view, tr, bucket, name, live, subject)
    if bucket.versioning == NEVER:
        return problems
    head = await newest(tr, view.ctx, bucket_id, name)
    if head is None and live.null:
        pass  # written before versioning was ever switched on
    elif head is None or head.stamp < live.stamp:
        versions = view.ctx.keys.in_bucket(bucket_id).version
        mend = setting(versions.key(name) + pack_stamp(live.stamp), value)
        problems.append(Problem("version-missing", subject, f"version {live.stamp} is live and has no row", mend))
    elif head.stamp > live.stamp:
        detail = f"version {live.stamp} is live, {head.stamp} is the newest"
        mend = clearing(key) if head.kind != OBJECT else setting(key, records.object_version.encode(head))
        problems.append(Problem("live-stale", subject, detail, mend))
    elif head != live:
        detail = f"version {live.stamp} is recorded twice, differently"
        problems.append(Problem("live-differs", subject, detail, setting(key, records.object_version.encode(head))))
    return problems


async def check_version(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    bucket_id, name, packed = in_family(view.ctx.keys.version, key)
    bucket = await view.bucket(tr, bucket_id)
    if bucket is None:
        return [_orphan("version", bucket_id, name)]
    version = records.object_version.decode(value)
    subject = f"{bucket.name}/{name}?versionId={version.version_id}"
    if unpack_stamp(packed) != version.stamp:
        return [Problem("version-stamp", subject, f"its record says {version.stamp}, its key {unpack_stamp(packed)}")]
    keys = view.ctx.keys.in_bucket(bucket_id)
    problems = []
    if version.kind == OBJECT:
        problems += await check_bytes(view, tr, bucket, name, version, subject)
    raw_null = await tr.get(keys.null.key(name))
    if version.null and (raw_null is None or unpack_null(raw_null) != version.stamp):
        other = None if raw_null is None else await tr.get(keys.version.key(name) + pack_stamp(unpack_null(raw_null)))
        mend = setting(keys.null.key(name), version.stamp.to_bytes(8, "big")) if other is None else None
        problems.append(Problem("null-missing", subject, "is a null version that the null row does not name", mend))
    head = await newest(tr, view.ctx, bucket_id, name)
    if version.kind == OBJECT and head == version and await tr.get(keys.current.key(name)) is None:
        detail = "is the newest version and not live"
        problems.append(Problem("live-missing", subject, detail, setting(keys.current.key(name), value)))
    if bucket.versioning == NEVER:
        problems.append(Problem("version-unversioned", subject, "lies in a bucket that was never versioned"))
    return problems


async def check_null(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    bucket_id, name, _ = in_family(view.ctx.keys.null, key)
    row = view.ctx.keys.in_bucket(bucket_id).version.key(name) + pack_stamp(unpack_null(value))
    raw = await tr.get(row)
    if raw is not None and records.object_version.decode(raw).null:
        return []
    return [Problem("null-dangling", name, f"names {unpack_null(value)}, which is no null version", clearing(key))]


async def check_inline(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    bucket_id, name, packed = in_family(view.ctx.keys.inline, key)
    keys = view.ctx.keys.in_bucket(bucket_id)
    current, version = tr.get(keys.current.key(name)), tr.get(keys.version.key(name) + packed)
    for raw in (await current, await version):
        if raw is not None:
            owner = records.object_version.decode(raw)
            if owner.stamp == unpack_stamp(packed) and owner.size and not owner.content:
                return []
    return [Problem("inline-stray", name, f"{len(value)} inline bytes belong to no version", clearing(key))]


# --- contents, parts, blobs


async def check_content(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    ctx = view.ctx
    content_id, _ = unpack_bytes(key, len(ctx.keys.contents))
    content = records.content.decode(value)
    name = content_id.hex()
    refs = await tr.get_range(*ctx.keys.ref_range(content_id), limit=1)
    node = content.homes[0].node if content.homes else ctx.home.node

    async def reclaim(tr: Transaction) -> None:
        await blobs.owe_reclaim(tr, ctx, node, content.bucket, content_id)

    if refs and content.state == DEAD:
        return []  # whatever refers to it has been reported; owing its reclaiming would cost the bytes too
    if not refs:
        if await owed_anywhere(tr, ctx, owed.RECLAIM_CONTENT, content_id):
            return []
        state = "dead" if content.state == DEAD else "not referred to"
        return [Problem("content-leaked", name, f"is {state}, and nothing is owed about it", reclaim)]
    problems = []
    if content.parts:
        parts = await blobs.load_parts(tr, ctx, content_id)
        size = sum(part.size for part in parts)
        if (len(parts), size) != (content.parts, content.size):
            detail = f"has {len(parts)} parts of {size} bytes, its record says {content.parts} of {content.size}"
            problems.append(Problem("parts-missing", name, detail))
    else:
        problems += await _check_blob_row(ctx, tr, content_id, Blob(LIVE, content_id, 0, content.size, node))
    for home in content.homes:
        row = ctx.keys.home(home.node, content_id)
        if await tr.get(row) is None:
            problems.append(Problem("home-missing", name, f"lies on node {home.node.hex()}", setting(row, b"")))
    return problems + await _check_backing(view, tr, content_id, content)


async def _check_backing(view: View, tr: Transaction, content_id: bytes, content: Content) -> list[Problem]:
    """That what an origin has of a content is found there, that what is to change about it is owed, and that somebody
    has the content."""
    ctx, name = view.ctx, content_id.hex()
    problems = []
    if content.elsewhere in (SHADOWED, BACKED):
        for blob_id, _ in (await homes.held(tr, ctx, content_id, content)).blobs:
            elsewhere = await blobs.blob_elsewhere(tr, ctx, blob_id)
            if elsewhere is not None and elsewhere.origin == content.origin:
                continue

            async def write_again(tr: Transaction) -> None:
                again = msgspec.structs.replace(content, elsewhere=ANNOUNCED)
                homes.put_content(tr, ctx, content_id, again)
                await homes.owe_write_back(tr, ctx, content_id, again)

            # It can be written again where a node has it all.
            again = placing.is_backed(content) and any(home.whole for home in content.homes)
            detail = f"is said to be at origin {content.origin.hex()}, and blob {blob_id.hex()} has no place there"
            problems.append(Problem("elsewhere-missing", name, detail, write_again if again else None))
            break
    elif not content.homes and await tr.get(ctx.keys.home(records.LOST, content_id)) is None:
        problems.append(Problem("content-homeless", name, "no node and no origin is said to have it"))
    due = placing.awaits_origin(content)
    if due and content.homes and not await owed_anywhere(tr, ctx, homes.WRITE_BACK, content_id):

        async def owe(tr: Transaction) -> None:
            await homes.owe_write_back(tr, ctx, content_id, content)

        problems.append(Problem("write-back-forgotten", name, "what its origin is to have of it is not owed", owe))
    return problems


async def check_elsewhere(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    ctx = view.ctx
    blob_id, _ = unpack_bytes(key, len(ctx.keys.elsewheres))
    elsewhere = records.elsewhere.decode(value)
    subject = blob_id.hex()
    if await tr.get(ctx.keys.origin(elsewhere.origin)) is None:
        detail = f"origin {elsewhere.origin.hex()}, which has it, has no record"
        return [Problem("origin-missing", subject, detail)]
    raw = await tr.get(ctx.keys.blob(blob_id))
    if raw is None:
        detail = f"{elsewhere.key!r} at origin {elsewhere.origin.hex()} is of a blob that is not there any more"
        return [Problem("elsewhere-dangling", subject, detail, clearing(key))]
    blob = records.blob.decode(raw)
    stored, part = tr.get(ctx.keys.content(blob.content)), tr.get(ctx.keys.part(blob.content, blob.number))
    raw, part_raw = await stored, await part
    content = records.content.decode(raw) if raw is not None else None
    known = {records.part.decode(part_raw).origin} if part_raw is not None else set()
    if content is None or content.state == DEAD or elsewhere.origin in known:
        return []  # it is a part's, or goes with its content
    if content.elsewhere != NOWHERE and content.origin == elsewhere.origin:
        return []
    detail = f"is said to be at origin {elsewhere.origin.hex()}, which its content does not know of"
    return [Problem("elsewhere-stray", subject, detail)]


async def check_origin(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    origin_id, _ = unpack_bytes(key, len(view.ctx.keys.origins))
    record = records.origin.decode(value)
    if record.id != origin_id:
        return [Problem("origin-wrong", origin_id.hex(), f"its record is that of {record.id.hex()}")]
    return []


async def check_whiteout(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    bucket_id, name, _ = in_family(view.ctx.keys.whiteout, key)
    if await view.bucket(tr, bucket_id) is not None:
        return []
    return [Problem("whiteout-orphan", f"{bucket_id.hex()}/{name}", "its bucket is gone", clearing(key))]


async def _check_blob_row(ctx: Context, tr: Transaction, blob_id: bytes, expected: Blob) -> list[Problem]:
    """That a blob which is in use has a row that says so: without one a sweep would take it for an orphan."""
    row = ctx.keys.blob(blob_id)
    raw = await tr.get(row)
    subject = blob_id.hex()
    if raw is None:
        mended = msgspec.structs.replace(expected, changed_ns=ctx.now_ns())
        mend = setting(row, records.blob.encode(mended))
        return [Problem("blob-row-missing", subject, f"is bytes of {expected.content.hex()} and has no row", mend)]
    blob = records.blob.decode(raw)
    if blob.state == DEAD:
        return [Problem("blob-dead", subject, f"is bytes of {expected.content.hex()} and marked dead")]
    if (blob.content, blob.number, blob.size) != (expected.content, expected.number, expected.size):
        return [Problem("blob-row-wrong", subject, f"says {blob}, should say {expected}")]
    return []


async def check_part(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    ctx = view.ctx
    content_id, at = unpack_bytes(key, len(ctx.keys.parts))
    number, _ = unpack_int(key, at)
    part = records.part.decode(value)
    subject = f"{content_id.hex()}/{number}"
    if part.number != number or sum(extent.size for extent in part.extents) != part.size:
        return [Problem("part-wrong", subject, f"its record does not fit its key or its extents: {part}")]
    raw = await tr.get(ctx.keys.content(content_id))
    content = records.content.decode(raw) if raw is not None else None
    if content is not None and content.state == DEAD:
        return []
    if not part.source:
        problems = []
        for extent in part.extents:
            expected = Blob(LIVE, content_id, number, extent.size, part.node)
            problems += await _check_blob_row(ctx, tr, extent.blob, expected)
        return problems
    return await _check_slice(ctx, tr, content_id, part, subject)


async def _check_slice(ctx: Context, tr: Transaction, content_id: bytes, part: Part, subject: str) -> list[Problem]:
    raw = await tr.get(ctx.keys.content(part.source))
    if raw is None or records.content.decode(raw).state != LIVE:
        return [Problem("slice-source", subject, f"is a slice of {part.source.hex()}, which is gone")]
    referrer = Referrer(content=content_id)
    if await tr.get(ctx.keys.ref(part.source, referrer.digest)) is not None:
        return []

    async def mend(tr: Transaction) -> None:
        blobs.add_reference(tr, ctx, part.source, referrer)

    return [Problem("ref-missing", subject, f"holds no reference on {part.source.hex()}", mend)]


async def check_ref(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    ctx = view.ctx
    content_id, at = unpack_bytes(key, len(ctx.keys.refs))
    digest, _ = unpack_bytes(key, at)
    referrer = records.referrer.decode(value)
    if referrer.digest == digest and await _refers(ctx, tr, referrer, content_id):
        return []

    async def mend(tr: Transaction) -> None:
        tr.clear(key)
        raw = await tr.get(ctx.keys.content(content_id))
        if raw is not None:
            content = records.content.decode(raw)
            node = content.homes[0].node if content.homes else ctx.home.node
            await blobs.owe_reclaim(tr, ctx, node, content.bucket, content_id)

    return [Problem("ref-dangling", content_id.hex(), f"is held by {referrer}, which does not use it", mend)]


async def _refers(ctx: Context, tr: Transaction, referrer: Referrer, content_id: bytes) -> bool:
    if referrer.content:
        if await tr.get(ctx.keys.content(referrer.content)) is not None:
            return True
        return bool(await tr.get_range(*ctx.keys.part_range(referrer.content), limit=1))
    keys = ctx.keys.in_bucket(referrer.bucket)
    current = tr.get(keys.current.key(referrer.key))
    version = tr.get(keys.version.key(referrer.key) + pack_stamp(referrer.stamp))
    for raw in (await current, await version):
        if raw is not None:
            owner = records.object_version.decode(raw)
            if owner.stamp == referrer.stamp and owner.content == content_id:
                return True
    return False


async def check_blob(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    ctx = view.ctx
    blob_id, _ = unpack_bytes(key, len(ctx.keys.blobs))
    blob = records.blob.decode(value)
    if blob.state == LIVE and await blobs.blob_wanted(tr, ctx, blob_id, blob):
        return []
    if blob.state == DEAD and blob.content:
        raw = await tr.get(ctx.keys.content(blob.content))
        if raw is not None and records.content.decode(raw).state == DEAD:
            return []  # goes with its content
    if await owed_anywhere(tr, ctx, owed.RECLAIM_BLOB, blob_id):
        return []
    raw = await tr.get(ctx.keys.content(blob.content)) if blob.content else None
    bucket_id = records.content.decode(raw).bucket if raw is not None else b""

    async def mend(tr: Transaction) -> None:
        await blobs.owe_blob(tr, ctx, blob.node or ctx.home.node, bucket_id, blob_id)

    state = "dead" if blob.state == DEAD else "not used by its content"
    return [Problem("blob-leaked", blob_id.hex(), f"is {state}, and nothing is owed about it", mend)]


async def check_home(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    ctx = view.ctx
    node, at = unpack_bytes(key, len(ctx.keys.homes))
    content_id, _ = unpack_bytes(key, at)
    raw = await tr.get(ctx.keys.content(content_id))
    content: Content | None = records.content.decode(raw) if raw is not None else None
    if content is not None and (content.state == DEAD or any(home.node == node for home in content.homes)):
        return []
    if content is not None and node == records.LOST:
        return []
    if content is None and await tr.get_range(*ctx.keys.part_range(content_id), limit=1):
        return []  # of an upload in progress; what is left of one that is not is found apart
    detail = f"node {node.hex()} is said to hold it, its record does not say so"
    return [Problem("home-dangling", content_id.hex(), detail, clearing(key))]


async def check_upload(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    bucket_id, name, packed = in_family(view.ctx.keys.upload, key)
    bucket = await view.bucket(tr, bucket_id)
    if bucket is None:
        return [_orphan("upload", bucket_id, name)]
    upload = records.upload.decode(value)
    subject = f"{bucket.name}/{name}?uploadId={upload.upload_id}"
    if unpack_bytes(packed)[0] != upload.content:
        return [Problem("upload-wrong", subject, "its record does not fit its key")]
    if await tr.get(view.ctx.keys.content(upload.content)) is not None:
        return [Problem("upload-ended", subject, "was completed or aborted and is still listed", clearing(key))]
    return []


# --- nodes and regions


async def check_node(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    node_id, _ = unpack_bytes(key, len(view.ctx.keys.nodes))
    node = records.node.decode(value)
    if node.node == node_id:
        return []
    return [Problem("node-wrong", node_id.hex(), f"its record says that it is {node.node.hex()}")]


async def check_beat(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    node_id, _ = unpack_bytes(key, len(view.ctx.keys.beats))
    records.beat.decode(value)
    raw = await tr.get(view.ctx.keys.node(node_id))
    if raw is not None and records.node.decode(raw).state != REMOVED:
        return []
    return [Problem("beat-dangling", node_id.hex(), "a sign of life of a node that is none", clearing(key))]


async def check_demand(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    """A count of any content, of one that is forgotten too: it goes with its period."""
    period, at = unpack_int(key, len(view.ctx.keys.demands))
    _, at = unpack_bytes(key, at)
    content_id, _ = unpack_bytes(key, at)
    if len(value) == 8 and period <= (view.ctx.now_ns() + SKEW_NS) // PERIOD_NS:
        return []
    detail = f"reads are counted in period {period}, which is to come, or as {value.hex()}"
    return [Problem("demand-wrong", content_id.hex(), detail, clearing(key))]


# --- access keys


async def check_access(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    keys = view.ctx.keys
    record = records.access.decode(value)
    if keys.access.text(key) != record.key_id:
        return [Problem("access-wrong", record.key_id, f"lies under {keys.access.text(key)}")]
    wanted = [keys.access_owned(record.owner).key(record.key_id)]
    if record.bucket:
        wanted.append(keys.access_scoped(record.bucket).key(record.key_id))
    problems = [
        Problem("access-index", record.key_id, "is missing from an index", setting(row, b""))
        for row in wanted
        if await tr.get(row) is None
    ]
    state = await tr.get(keys.master)
    if state is not None:
        master = records.master_state.decode(state)
        if record.master not in (master.current, master.successor):
            detail = f"is sealed with master key {record.master.hex()}, which is not in force"
            problems.append(Problem("access-sealed", record.key_id, detail))
    return problems


async def check_access_index(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    keys = view.ctx.keys
    scoped = key.startswith(keys.access_of_bucket)
    prefix = keys.access_of_bucket if scoped else keys.access_of_owner
    whose, at = unpack_bytes(key, len(prefix))
    key_id = unpack_bytes(key, at)[0].decode()
    raw = await tr.get(keys.access.key(key_id))
    if raw is not None:
        record = records.access.decode(raw)
        if (record.bucket if scoped else record.owner) == whose.decode():
            return []
    return [Problem("access-dangling", key_id, f"is listed for {whose.decode()}, and is not theirs", clearing(key))]


# --- the queue


async def check_item(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    keys = view.ctx.keys
    zone, at = unpack_bytes(key, len(keys.queue_items))
    id_, _ = unpack_bytes(key, at)
    item = records.item.decode(value)
    subject = f"{item.task} {item.subject.hex()}"
    problems = []
    due = owed.due_key(view.ctx, zone, id_, item)
    if await tr.get(due) is None:
        problems.append(Problem("item-unindexed", subject, "would never be claimed", setting(due, b"")))
    failing = keys.queue_failing_key(zone, item.enqueued_ns, id_)
    if item.attempts and await tr.get(failing) is None:
        problems.append(Problem("failing-unindexed", subject, "is not listed as failing", setting(failing, b"")))
    if await tr.get(keys.queue_zone(zone)) is None:
        problems.append(
            Problem("zone-unmarked", subject, f"its zone {zone.hex()} has no mark", _waking(view.ctx, zone))
        )
    return problems


def _waking(ctx: Context, zone: bytes) -> Mend:
    async def mend(tr: Transaction) -> None:
        await overseeing.wake(tr, ctx, zone)

    return mend


async def check_due(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    keys = view.ctx.keys
    zone, at = unpack_bytes(key, len(keys.queue_due))
    priority, at = unpack_int(key, at)
    vesting_ns, at = unpack_int(key, at)
    enqueued_ns, at = unpack_int(key, at)
    id_, _ = unpack_bytes(key, at)
    raw = await tr.get(keys.queue_item(zone, id_))
    if raw is not None:
        item = records.item.decode(raw)
        if (item.priority, item.vesting_ns, item.enqueued_ns) == (priority, vesting_ns, enqueued_ns):
            return []
    return [Problem("due-dangling", id_.hex(), "an index entry without its item", clearing(key))]


async def check_failing(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    keys = view.ctx.keys
    zone, at = unpack_bytes(key, len(keys.queue_failing))
    enqueued_ns, at = unpack_int(key, at)
    id_, _ = unpack_bytes(key, at)
    raw = await tr.get(keys.queue_item(zone, id_))
    if raw is not None:
        item = records.item.decode(raw)
        if item.attempts and item.enqueued_ns == enqueued_ns:
            return []
    return [Problem("failing-dangling", id_.hex(), "listed as failing, and is not", clearing(key))]


async def check_zone(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    """That the zone's pointer is where its mark says, and not too late for what is in it."""
    ctx = view.ctx
    zone, _ = unpack_bytes(key, len(ctx.keys.queue_zones))
    name, mend = zone.hex(), _waking(ctx, zone)
    deferred_ns = int.from_bytes(value, "big")
    raw = await tr.get(ctx.keys.queue_pointer(zone))
    if raw is None:
        return [Problem("pointer-missing", name, "no consumer would ever look at it", mend)]
    pointer = records.pointer.decode(raw)
    if deferred_ns and (pointer.lease or pointer.vesting_ns != deferred_ns):
        detail = f"its mark says that its pointer is deferred to {deferred_ns}, which says {pointer.vesting_ns}"
        return [Problem("mark-wrong", name, detail, mend)]
    soon_ns = ctx.now_ns() + ctx.queue.pointer_lease_ns + SKEW_NS
    latest_ns = soon_ns
    if deferred_ns:
        head_ns = await overseeing.oldest_ns(tr, ctx, zone)
        latest_ns = deferred_ns if head_ns is None else max(soon_ns, head_ns)
    if pointer.vesting_ns > latest_ns:
        detail = f"consumers will look at {pointer.vesting_ns}, and should by {latest_ns}"
        return [Problem("pointer-late", name, detail, mend)]
    return []


async def check_pointer(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    keys = view.ctx.keys
    zone, _ = unpack_bytes(key, len(keys.queue_pointers))
    pointer = records.pointer.decode(value)
    problems = []
    if await tr.get(keys.queue_zone(zone)) is None:
        problems.append(Problem("pointer-unmarked", zone.hex(), "its zone has no mark", _waking(view.ctx, zone)))
    top = keys.queue_top(owed.destination_of(zone), pointer.vesting_ns, zone)
    if await tr.get(top) is None:
        problems.append(Problem("pointer-unindexed", zone.hex(), "no consumer would find it", setting(top, b"")))
    return problems


async def check_top(view: View, tr: Transaction, key: bytes, value: bytes) -> list[Problem]:
    keys = view.ctx.keys
    destination, at = unpack_bytes(key, len(keys.queue_tops))
    vesting_ns, at = unpack_int(key, at)
    zone, _ = unpack_bytes(key, at)
    raw = await tr.get(keys.queue_pointer(zone))
    there = raw is not None and records.pointer.decode(raw).vesting_ns == vesting_ns
    if there and destination == owed.destination_of(zone):
        return []
    return [Problem("top-dangling", zone.hex(), "an index entry without its pointer", clearing(key))]


def families(ctx: Context) -> list[tuple[bytes, Check]]:
    """The prefix of every family to walk, and its check.

    The order matters to repairs: buckets tell the others' names, and the queue is looked up for work owed.
    """
    keys = ctx.keys
    return [
        (keys.bucket.prefix, check_bucket),
        (keys.owners, check_owner),
        (keys.queue_items, check_item),
        (keys.queue_due, check_due),
        (keys.queue_failing, check_failing),
        (keys.queue_zones, check_zone),
        (keys.queue_pointers, check_pointer),
        (keys.queue_tops, check_top),
        (keys.version, check_version),
        (keys.current, check_current),
        (keys.null, check_null),
        (keys.inline, check_inline),
        (keys.refs, check_ref),
        (keys.parts, check_part),
        (keys.contents, check_content),
        (keys.blobs, check_blob),
        (keys.homes, check_home),
        (keys.repolicies, check_repolicy),
        (keys.shorts, check_short),
        (keys.elsewheres, check_elsewhere),
        (keys.origins, check_origin),
        (keys.whiteout, check_whiteout),
        (keys.upload, check_upload),
        (keys.nodes, check_node),
        (keys.beats, check_beat),
        (keys.demands, check_demand),
        (keys.access.prefix, check_access),
        (keys.access_of_owner, check_access_index),
        (keys.access_of_bucket, check_access_index),
    ]
