"""What every metadata operation needs besides its transaction: the keys, the clock, this node, and the settings.

Operations are functions ``async def op(tr, ctx, ...)``. They follow the rules of `kv.engine`: they await nothing but
the transaction, have no side effects, and may run many times.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from .deciding import QUEUE, SECOND, QueueParameters
from .errors import InvalidArgument, KeyTooLong, MetadataError, NoSuchBucket
from .keyspace import MAX_KEY_BYTES, MIN_STAMP, Keyspace
from .kv.engine import Transaction
from .placing import Regions
from .records import Bucket, Home
from .records import bucket as bucket_codec

COUNT_SHARDS = 16
"""Counters of a bucket are spread over this many rows, so that no row takes every writer's atomic add."""


@dataclass(frozen=True, slots=True)
class Context:
    """`cluster` is the low byte of every stamp; `home` is this node; `grace_ns` is how long unreferenced bytes stay;
    `queue` is how the queue of work owed is paced; `regions` is what policies mean; `decay_ns` is how long a replica
    stays that was made on demand and is not read."""

    keys: Keyspace
    cluster: int
    now_ns: Callable[[], int]
    home: Home
    grace_ns: int
    queue: QueueParameters = QUEUE
    regions: Regions = field(default_factory=Regions)
    decay_ns: int = 7 * 86400 * SECOND

    def stamp(self, previous: int) -> int:
        """A stamp of now, but after `previous` (0 where there is none)."""
        stamp = self.now_ns() & ~0xFF | self.cluster
        if stamp <= previous:
            stamp = (previous & ~0xFF) + 0x100 | self.cluster
        return max(stamp, MIN_STAMP | self.cluster)


def check_key(key: str) -> None:
    """Refuse what cannot be an object key: empty, longer than 1024 bytes of UTF-8, or not encodable.

    Source: S3 User Guide, "Naming Amazon S3 objects".
    """
    if not key:
        raise InvalidArgument("Key", key, "An object key has at least one character")
    if len(key) > MAX_KEY_BYTES:
        raise KeyTooLong(len(key), MAX_KEY_BYTES)
    if not key.isascii():
        try:
            size = len(key.encode())
        except UnicodeEncodeError:
            raise InvalidArgument("Key", ascii(key), "The object key is not valid UTF-8") from None
        if size > MAX_KEY_BYTES:
            raise KeyTooLong(size, MAX_KEY_BYTES)


def is_key(key: str) -> bool:
    """Whether `check_key` lets it pass."""
    try:
        check_key(key)
    except MetadataError:
        return False
    return True


async def hold_bucket(tr: Transaction, ctx: Context, bucket: Bucket, token: bytes | None) -> Bucket:
    """The bucket as this transaction sees it; its commit fails if the bucket changes or goes meanwhile.

    `token` is the metadata version at which `bucket` is known to be true, None where that is not known: while the
    database still has that version, no read of the (hot) bucket row is needed.

    Raises:
        NoSuchBucket: it is gone, or another bucket has its name now.
    """
    key = ctx.keys.bucket.key(bucket.name)
    if token is not None and await tr.metadata_version() == token:
        tr.add_read_conflict_key(key)
        return bucket
    raw = await tr.get(key)
    if raw is None:
        raise NoSuchBucket(bucket.name)
    fresh = bucket_codec.decode(raw)
    if fresh.id != bucket.id:
        raise NoSuchBucket(bucket.name)
    return fresh


def count(tr: Transaction, ctx: Context, bucket_id: bytes, *, objects: int, noncurrent: int, size: int) -> None:
    """Add to a bucket's counters.

    `objects` counts live keys, `noncurrent` every other retained version and delete marker, and the third the bytes of
    all versions. Parts of unfinished uploads are not counted.
    """
    if not (objects or noncurrent or size):
        return
    prefix = ctx.keys.in_bucket(bucket_id).count + bytes((0x15, 1 + random.getrandbits(4) % COUNT_SHARDS))
    if objects:
        tr.add(prefix + COUNT_OBJECTS, objects)
    if noncurrent:
        tr.add(prefix + COUNT_NONCURRENT, noncurrent)
    if size:
        tr.add(prefix + COUNT_BYTES, size)


COUNT_OBJECTS = b"\x02objects\x00"
COUNT_NONCURRENT = b"\x02noncurrent\x00"
COUNT_BYTES = b"\x02bytes\x00"
