"""Operations on buckets and their configuration documents, and the rules for their names.

Bucket records are cached by every process (see `store`), so whatever changes or removes one bumps the metadata
version in the same transaction; creating one does not, because absence is never cached.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from . import access, owed, placing
from .context import COUNT_BYTES, COUNT_NONCURRENT, COUNT_OBJECTS, Context
from .errors import (
    BucketAlreadyExists,
    BucketAlreadyOwnedByYou,
    BucketNotEmpty,
    InvalidArgument,
    InvalidBucketName,
    NoSuchBucket,
)
from .homes import ANYBODY
from .keyspace import subspace
from .kv.engine import Transaction
from .records import ENABLED, SUSPENDED, Bucket, Repolicy, Usage
from .records import bucket as codec
from .records import logging as logging_codec
from .records import repolicy as repolicy_codec

RESERVED_NAMES = frozenset({"healthz", "readyz", "_tigrislike"})
"""Paths that the service itself answers on its own host."""

REPOLICY = "repolicy"
REPOLICY_PRIORITY = 1
"""Task: the objects of a bucket are to be where its policies, which have changed, want them."""

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")
_PREFIXES = ("xn--", "sthree-", "amzn-s3-demo-")
_SUFFIXES = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")


def check_bucket_name(name: str) -> None:
    """Refuse a name that no bucket may have.

    Source: S3 User Guide, "General purpose bucket naming rules".

    Raises:
        InvalidBucketName.
    """
    if name in RESERVED_NAMES:
        raise InvalidBucketName(name, "the name is reserved by this service")
    if not 3 <= len(name) <= 63:
        raise InvalidBucketName(name, "a name has 3 to 63 characters")
    if not _NAME.fullmatch(name):
        raise InvalidBucketName(
            name,
            "a name consists of lowercase letters, digits, '.' and '-', and begins and ends with a letter or digit",
        )
    if ".." in name:
        raise InvalidBucketName(name, "a name has no two adjacent periods")
    if _ADDRESS.fullmatch(name):
        raise InvalidBucketName(name, "a name is not formatted as an IP address")
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            raise InvalidBucketName(name, f"names beginning with {prefix!r} are reserved")
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            raise InvalidBucketName(name, f"names ending with {suffix!r} are reserved")


async def create_bucket(
    tr: Transaction, ctx: Context, bucket: Bucket, documents: Mapping[str, bytes] = MappingProxyType({})
) -> Bucket:
    """Store a new bucket (with a fresh random id and a checked name; the time is filled in here) and its configuration
    documents, by their kinds.

    Raises:
        BucketAlreadyOwnedByYou, BucketAlreadyExists: the name is taken. InvalidArgument: durability.
    """
    key = ctx.keys.bucket.key(bucket.name)
    check_backing(bucket)
    raw = await tr.get(key)
    if raw is not None:
        if codec.decode(raw).owner == bucket.owner:
            raise BucketAlreadyOwnedByYou(bucket.name)
        raise BucketAlreadyExists(bucket.name)
    bucket = msgspec.structs.replace(bucket, created_ns=ctx.now_ns(), configs=tuple(sorted(documents)))
    tr.set(key, codec.encode(bucket))
    for kind, document in documents.items():
        tr.set(ctx.keys.config(bucket.id, kind), document)
    tr.set(ctx.keys.owned(bucket.owner).key(bucket.name), b"")
    return bucket


def check_backing(bucket: Bucket) -> None:
    """Refuse a bucket whose durability needs a backing origin that it has not. Raises InvalidArgument."""
    if placing.needs_backing(bucket.durability) and not bucket.backing:
        raise InvalidArgument(
            "X-Tigrislike-Durability",
            bucket.durability,
            f"The durability {bucket.durability} needs a backing origin, which bucket {bucket.name} would not have: "
            "`tigrislike origin back` sets both, `tigrislike origin unback` clears both",
        )


async def read_bucket(tr: Transaction, ctx: Context, name: str) -> Bucket:
    """Raises NoSuchBucket."""
    try:
        raw = await tr.get(ctx.keys.bucket.key(name))
    except UnicodeEncodeError:
        raw = None
    if raw is None:
        raise NoSuchBucket(name)
    return codec.decode(raw)


async def delete_bucket(tr: Transaction, ctx: Context, name: str) -> None:
    """Remove an empty bucket with its configuration and the access keys scoped to it.

    Emptiness is proven by conflicting range reads, and every mutation holds the bucket's row, so a concurrent write
    makes one of the two give way.

    Raises:
        NoSuchBucket, BucketNotEmpty: objects, versions, delete markers or unfinished uploads are left.
    """
    bucket = await read_bucket(tr, ctx, name)
    keys = ctx.keys.in_bucket(bucket.id)
    reads = [tr.get_range(family.begin, family.end, limit=1) for family in (keys.current, keys.version, keys.upload)]
    logging = tr.get(ctx.keys.logging(bucket.id))
    for read in reads:
        if await read:
            raise BucketNotEmpty(name)
    tr.clear(ctx.keys.bucket.key(name))
    tr.clear(ctx.keys.owned(bucket.owner).key(name))
    tr.clear_range(*ctx.keys.config_range(bucket.id))
    tr.clear_range(*subspace(keys.count))
    for family in (keys.whiteout, keys.needed):
        tr.clear_range(family.begin, family.end)
    tr.clear(ctx.keys.repolicy(bucket.id))
    tr.clear(ctx.keys.migration(bucket.id))
    tr.clear_range(*subspace(ctx.keys.inventories_of(bucket.id)))
    end_logging(tr, ctx, bucket.id, await logging)
    await access.delete_scoped(tr, ctx, name)
    tr.bump_metadata_version()


def end_logging(tr: Transaction, ctx: Context, bucket_id: bytes, raw: bytes | None) -> None:
    """Let the row `raw` of a bucket, if it has one, say that requests to it are logged no longer."""
    if raw is not None and not (logged := logging_codec.decode(raw)).ended_ns:
        logged = msgspec.structs.replace(logged, ended_ns=ctx.now_ns())
        tr.set(ctx.keys.logging(bucket_id), logging_codec.encode(logged))


async def list_buckets(
    tr: Transaction, ctx: Context, owner: str | None, prefix: str, after: str, limit: int
) -> tuple[list[Bucket], str]:
    """Up to `limit` buckets in order of their names, those of `owner` only unless None, after the name `after`.

    Returns them and the name to go on after, empty at the end.
    """
    family = ctx.keys.bucket if owner is None else ctx.keys.owned(owner)
    begin = family.at_least(prefix) if prefix else family.begin
    end = family.after_prefix(prefix)
    if after:
        begin = max(begin, family.after(after))
    if begin >= end or limit <= 0:
        return [], ""
    rows = await tr.get_range(begin, end, limit=limit + 1)
    more = len(rows) > limit
    rows = rows[:limit]
    if owner is None:
        buckets = [codec.decode(value) for _, value in rows]
    else:
        reads = [tr.get(ctx.keys.bucket.key(family.text(key))) for key, _ in rows]
        values = [await read for read in reads]
        buckets = [codec.decode(value) for value in values if value is not None]
    return buckets, family.text(rows[-1][0]) if more else ""


async def set_versioning(tr: Transaction, ctx: Context, name: str, status: str) -> Bucket:
    """Switch versioning to ``Enabled`` or ``Suspended``; it never goes back to "never".

    Raises:
        NoSuchBucket, InvalidArgument.
    """
    if status not in (ENABLED, SUSPENDED):
        raise InvalidArgument("Status", status, "The versioning status is Enabled or Suspended")
    return await change_bucket(tr, ctx, name, {"versioning": status})


async def change_bucket(tr: Transaction, ctx: Context, name: str, changes: dict[str, object]) -> Bucket:
    """Replace fields of a bucket's record; where its policies change, owe it to what it holds.

    Raises:
        NoSuchBucket. InvalidArgument: its durability needs a backing origin that it would not have.
    """
    bucket = await read_bucket(tr, ctx, name)
    changed = msgspec.structs.replace(bucket, **changes)
    check_backing(changed)
    if changed != bucket:
        tr.set(ctx.keys.bucket.key(name), codec.encode(changed))
        tr.bump_metadata_version()
    if _policies(changed) != _policies(bucket):
        await owe_repolicy(tr, ctx, bucket)
    return changed


async def owe_repolicy(tr: Transaction, ctx: Context, bucket: Bucket) -> None:
    """Owe it to what a bucket holds to follow its policies. What is under way starts over."""
    tr.set(ctx.keys.repolicy(bucket.id), repolicy_codec.encode(Repolicy(bucket.name)))
    zone = owed.zone_of(ANYBODY, bucket.id)
    await owed.enqueue(tr, ctx, zone, REPOLICY, bucket.id, priority=REPOLICY_PRIORITY, bucket=bucket.id)


def _policies(bucket: Bucket) -> tuple[object, ...]:
    """What decides where objects are kept."""
    backing = bucket.backing if placing.needs_backing(bucket.durability) else b""
    return bucket.region_policy, bucket.durability, backing


# --- configuration documents


async def read_config(tr: Transaction, ctx: Context, bucket: Bucket, kind: str) -> bytes | None:
    return await tr.get(ctx.keys.config(bucket.id, kind))


async def put_config(tr: Transaction, ctx: Context, name: str, kind: str, document: bytes) -> None:
    """Store the bucket's document of `kind` (at most 100 kB). Raises NoSuchBucket."""
    bucket = await read_bucket(tr, ctx, name)
    tr.set(ctx.keys.config(bucket.id, kind), document)
    if kind not in bucket.configs:
        bucket = msgspec.structs.replace(bucket, configs=tuple(sorted((*bucket.configs, kind))))
        tr.set(ctx.keys.bucket.key(name), codec.encode(bucket))
    tr.bump_metadata_version()


async def delete_config(tr: Transaction, ctx: Context, name: str, kind: str) -> None:
    """Remove the bucket's document of `kind`, if it has one. Raises NoSuchBucket."""
    bucket = await read_bucket(tr, ctx, name)
    if kind not in bucket.configs:
        return
    tr.clear(ctx.keys.config(bucket.id, kind))
    bucket = msgspec.structs.replace(bucket, configs=tuple(item for item in bucket.configs if item != kind))
    tr.set(ctx.keys.bucket.key(name), codec.encode(bucket))
    tr.bump_metadata_version()


# --- counters


async def usage(tr: Transaction, ctx: Context, bucket_id: bytes) -> Usage:
    """The bucket's counters, read without conflict."""
    prefix = ctx.keys.in_bucket(bucket_id).count
    totals = {COUNT_OBJECTS: 0, COUNT_NONCURRENT: 0, COUNT_BYTES: 0}
    for key, value in await tr.get_range(*subspace(prefix), snapshot=True):
        totals[key[len(prefix) + 2 :]] += int.from_bytes(value, "little", signed=True)
    return Usage(totals[COUNT_OBJECTS], totals[COUNT_NONCURRENT], totals[COUNT_BYTES])
