"""Server access logging: which buckets have their requests logged, and where to.

A bucket's row is all there is of it, so that one range read finds every bucket that is logged. Processes look at it
every now and then, and no request does: as in S3, what is set here takes effect some time later. The row of a bucket
that is logged no longer, or is gone, stays for a while, for the last of its log has still to be delivered.

Source: S3 API reference, "PutBucketLogging"; User Guide, "Logging requests with server access logging".
"""

from __future__ import annotations

from .buckets import end_logging, read_bucket
from .context import Context
from .errors import InvalidTargetBucketForLogging, NoSuchBucket
from .keyspace import subspace
from .kv.engine import Transaction
from .records import Bucket, Logging
from .records import logging as codec

SIMPLE = ""
EVENT_TIME = "EventTime"
DELIVERY_TIME = "DeliveryTime"
"""How log objects are named: by their time alone, or in folders of source and day, which are those of what happened or
of the delivery."""

PAGE = 1000
"""Buckets that one transaction reads."""


async def enable(tr: Transaction, ctx: Context, name: str, target: str, prefix: str, partition: str) -> Logging:
    """Have the requests to bucket `name` logged, from now on, to objects of the bucket `target` whose keys begin with
    `prefix`.

    Raises:
        NoSuchBucket. InvalidTargetBucketForLogging: the target does not exist, or is somebody else's.
    """
    bucket = await read_bucket(tr, ctx, name)
    try:
        into = await read_bucket(tr, ctx, target)
    except NoSuchBucket:
        raise InvalidTargetBucketForLogging(target) from None
    if into.owner != bucket.owner:
        raise InvalidTargetBucketForLogging(target)
    logged = Logging(bucket.id, name, bucket.owner, target, prefix, partition)
    tr.set(ctx.keys.logging(bucket.id), codec.encode(logged))
    return logged


async def disable(tr: Transaction, ctx: Context, name: str) -> None:
    """Log the requests to bucket `name` no longer. Raises NoSuchBucket."""
    bucket = await read_bucket(tr, ctx, name)
    end_logging(tr, ctx, bucket.id, await tr.get(ctx.keys.logging(bucket.id)))


async def read(tr: Transaction, ctx: Context, bucket: Bucket) -> Logging | None:
    """Where the requests to a bucket are logged, None: nowhere."""
    raw = await tr.get(ctx.keys.logging(bucket.id))
    logged = codec.decode(raw) if raw is not None else None
    return logged if logged is not None and not logged.ended_ns else None


async def page(tr: Transaction, ctx: Context, after: bytes) -> list[Logging]:
    """Rows in order of their buckets' ids, after the bucket `after`, those that have ended among them; fewer than
    `PAGE`: these are the last."""
    begin, end_ = subspace(ctx.keys.loggings)
    rows = await tr.get_range(ctx.keys.logging(after) + b"\x00" if after else begin, end_, limit=PAGE, snapshot=True)
    return [codec.decode(value) for _, value in rows]


async def forget(tr: Transaction, ctx: Context, bucket_id: bytes) -> None:
    """Remove the row of a bucket whose requests are logged no longer."""
    key = ctx.keys.logging(bucket_id)
    raw = await tr.get(key)
    if raw is not None and codec.decode(raw).ended_ns:
        tr.clear(key)
