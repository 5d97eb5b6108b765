"""Write-through of shadow buckets: what is put and deleted in such a bucket is owed to its shadow.

One item stands for a key, whatever happens to it how often: working it off makes the shadow's object what the key is
then. The zone is anybody's, so that one run at a time has a key, whichever nodes wrote it.

The shadow's object may be all that there is of an adopted version whose bytes are not here yet. Where such a version is
replaced and yet needed, by a copy or as an older version, a ``needed`` row holds the shadow's object back until the
bytes are at home.
"""

from __future__ import annotations

from . import owed
from .context import Context
from .homes import ANYBODY, read_content
from .keyspace import pack_bytes, unpack_bytes
from .kv.engine import Transaction
from .records import SHADOWED, Bucket, ObjectVersion
from .records import object_version as version_codec

MIRROR = "mirror"
MIRROR_PRIORITY = 1
"""Task: the shadow of a bucket is to have under a key what the bucket has. Its subject is `subject_of` the key."""


def subject_of(bucket: Bucket, key: str) -> bytes:
    return f"{bucket.name}/{key}".encode()


def parse_subject(subject: bytes) -> tuple[str, str]:
    """Bucket name and key."""
    name, _, key = subject.decode().partition("/")
    return name, key


async def owe_mirror(
    tr: Transaction, ctx: Context, bucket: Bucket, key: str, replaced: ObjectVersion | None = None
) -> None:
    """Owe the shadow what `key` has become, where the bucket is written through to one; `replaced` is a version that
    was live, or is removed."""
    if not (bucket.shadow and bucket.write_through):
        return
    if replaced is not None and replaced.content:
        content = await read_content(tr, ctx, replaced.content)
        if content is not None and content.elsewhere == SHADOWED:
            tr.set(ctx.keys.in_bucket(bucket.id).needed.key(key) + pack_bytes(replaced.content), b"")
    await owe(tr, ctx, bucket, key)


async def owe(tr: Transaction, ctx: Context, bucket: Bucket, key: str, *, vesting_ns: int = 0) -> None:
    """Owe the shadow what `key` is, from `vesting_ns` on."""
    zone = owed.zone_of(ANYBODY, bucket.id)
    subject = subject_of(bucket, key)
    await owed.enqueue(
        tr, ctx, zone, MIRROR, subject, vesting_ns=vesting_ns, priority=MIRROR_PRIORITY, bucket=bucket.id
    )


async def is_needed(tr: Transaction, ctx: Context, bucket: Bucket, key: str) -> bool:
    """Whether the shadow's object under `key` is all that there is of something that is needed here: of what the key is
    itself, or of what it was. Rows that have served are removed."""
    keys = ctx.keys.in_bucket(bucket.id)
    family = keys.needed
    begin = family.key(key)
    rows = tr.get_range(begin, family.after(key))
    raw = await tr.get(keys.current.key(key))
    live = version_codec.decode(raw) if raw is not None else None
    if live is not None and live.content:
        content = await read_content(tr, ctx, live.content)
        if content is not None and content.elsewhere == SHADOWED:
            return True
    for row, _ in await rows:
        content_id, _ = unpack_bytes(row, len(begin))
        content = await read_content(tr, ctx, content_id)
        shadowed = content is not None and content.elsewhere == SHADOWED
        if shadowed and await tr.get_range(*ctx.keys.ref_range(content_id), limit=1):
            return True
        tr.clear(row)
    return False
