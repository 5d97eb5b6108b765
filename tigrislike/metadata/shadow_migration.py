"""Migrations of whole shadow buckets: how far each has come.

One is asked for by `begin`, which owes a `migrate`; whoever works it off walks the shadow's listing page by page
(`replication/migrate.py`), and each page leaves its mark here, so that it goes on where it was.
"""

from __future__ import annotations

from msgspec.structs import replace

from . import overseeing, owed
from .buckets import read_bucket
from .context import Context
from .errors import InvalidRequest
from .homes import ANYBODY
from .kv.engine import Transaction
from .records import Bucket, Item, Migration
from .records import migration as codec

MIGRATE = "migrate"
MIGRATE_PRIORITY = 2
"""Task: everything that a bucket's shadow has is to be adopted. Its subject is the bucket's id."""


async def begin(tr: Transaction, ctx: Context, name: str, prefix: str, rate: int) -> tuple[Bucket, Migration]:
    """Have everything adopted whose key starts with `prefix`, at most `rate` objects a second (0: as fast as it goes).
    One of the same prefix that is under way goes on, at the new rate; any other of the bucket's is replaced.

    Raises:
        NoSuchBucket. InvalidRequest: the bucket has no shadow.
    """
    bucket = await read_bucket(tr, ctx, name)
    if not bucket.shadow:
        raise InvalidRequest(f"The bucket {name} has no shadow to migrate from")
    migration = await read(tr, ctx, bucket.id)
    fresh = Migration(name, bucket.shadow, prefix, rate, ctx.now_ns())
    if migration is None or migration.ended_ns or (migration.prefix, migration.origin) != (prefix, bucket.shadow):
        migration = fresh
    migration = replace(migration, rate=rate)
    write(tr, ctx, bucket.id, migration)
    await owe(tr, ctx, bucket.id)
    return bucket, migration


async def owe(tr: Transaction, ctx: Context, bucket_id: bytes, *, vesting_ns: int = 0) -> None:
    zone = owed.zone_of(ANYBODY, bucket_id)
    await owed.enqueue(
        tr, ctx, zone, MIGRATE, bucket_id, vesting_ns=vesting_ns, priority=MIGRATE_PRIORITY, bucket=bucket_id
    )


async def read(tr: Transaction, ctx: Context, bucket_id: bytes) -> Migration | None:
    """How far a bucket's last migration has come."""
    raw = await tr.get(ctx.keys.migration(bucket_id))
    return codec.decode(raw) if raw is not None else None


async def standing(
    tr: Transaction, ctx: Context, bucket_id: bytes
) -> tuple[Migration | None, Item | None, Item | None]:
    """How far a bucket's last migration has come, the item that goes on with it and the dead letter of one that was
    given up, as far as there are any. One that has not ended, and has neither, was dropped."""
    item, letter = await overseeing.show(tr, ctx, owed.zone_of(ANYBODY, bucket_id), owed.item_id(MIGRATE, bucket_id))
    return await read(tr, ctx, bucket_id), item, letter


def write(tr: Transaction, ctx: Context, bucket_id: bytes, migration: Migration) -> None:
    tr.set(ctx.keys.migration(bucket_id), codec.encode(migration))


async def advance(tr: Transaction, ctx: Context, bucket_id: bytes, seen: Migration, new: Migration) -> Migration | None:
    """Note what became of `seen`, but for its rate, which is the operator's; how it stands then. None: another was
    begun meanwhile, or somebody else has gone on with this one."""
    stored = await read(tr, ctx, bucket_id)
    if stored is None or replace(stored, rate=seen.rate) != seen:
        return None
    new = replace(new, rate=stored.rate)
    write(tr, ctx, bucket_id, new)
    return new
