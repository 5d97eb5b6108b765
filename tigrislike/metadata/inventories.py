"""Inventories: lists of what a bucket holds, made every day or every week.

A configuration and how far its present report has come are one row. It owes an `inventory` to the queue, vesting when
the next report is due; whoever works it off (`replication/inventory.py`) leaves a mark here after each file, so that it
goes on where it was, and notes a report's end in the transaction that owes the next one: so each period has one report.

A period is a day of UTC, or a week of them that begins on a Sunday; its report is begun at its start. The first report
is begun when the configuration is made.

Source: S3 API reference, "PutBucketInventoryConfiguration"; User Guide, "Cataloging and analyzing your data with S3
Inventory".
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple

from msgspec.structs import replace

from . import owed
from .buckets import read_bucket
from .context import Context
from .errors import NoSuchConfiguration, TooManyConfigurations
from .homes import ANYBODY
from .keyspace import subspace
from .kv.engine import Transaction
from .records import Bucket, Inventory
from .records import inventory as codec

INVENTORY = "inventory"
INVENTORY_PRIORITY = 2
"""Task: a report on a bucket is due. Its subject is the bucket's id and the configuration's."""

MOST: Final = 1000
"""Configurations of a bucket."""

_ID_BYTES: Final = 16
_NS: Final = 1_000_000_000


class Period(NamedTuple):
    """The time that a report is for: its first day, and when the next one begins."""

    name: str
    following_ns: int


def period_of(weekly: bool, now_ns: int) -> Period:
    """The period of a moment."""
    today = datetime.fromtimestamp(now_ns // _NS, UTC).date()
    first = today - timedelta(days=today.isoweekday() % 7) if weekly else today
    following = first + timedelta(days=7 if weekly else 1)
    return Period(first.isoformat(), _midnight_ns(following))


def _midnight_ns(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * _NS


def subject_of(bucket_id: bytes, id_: str) -> bytes:
    return bucket_id + id_.encode()


def parse_subject(subject: bytes) -> tuple[bytes, str]:
    return subject[:_ID_BYTES], subject[_ID_BYTES:].decode()


async def put(tr: Transaction, ctx: Context, name: str, id_: str, document: bytes, enabled: bool, weekly: bool) -> None:
    """Store a configuration; a report that is under way by the one that it replaces is begun anew.

    Raises:
        NoSuchBucket. TooManyConfigurations.
    """
    bucket = await read_bucket(tr, ctx, name)
    key = ctx.keys.inventory(bucket.id, id_)
    stored, count = tr.get(key), tr.get_range(*subspace(ctx.keys.inventories_of(bucket.id)), limit=MOST)
    raw = await stored
    if raw is None and len(await count) >= MOST:
        raise TooManyConfigurations(MOST)
    reported = codec.decode(raw).reported if raw is not None else ""
    tr.set(key, codec.encode(Inventory(bucket.id, name, id_, document, enabled, weekly, ctx.now_ns(), reported)))
    if enabled:
        period = period_of(weekly, ctx.now_ns())
        await owe(tr, ctx, bucket.id, id_, period.following_ns if reported >= period.name else 0)


async def owe(tr: Transaction, ctx: Context, bucket_id: bytes, id_: str, vesting_ns: int) -> None:
    """Have the next report made, from `vesting_ns` on."""
    zone = owed.zone_of(ANYBODY, bucket_id)
    subject = subject_of(bucket_id, id_)
    await owed.enqueue(
        tr, ctx, zone, INVENTORY, subject, vesting_ns=vesting_ns, priority=INVENTORY_PRIORITY, bucket=bucket_id
    )


async def read(tr: Transaction, ctx: Context, bucket_id: bytes, id_: str) -> Inventory | None:
    raw = await tr.get(ctx.keys.inventory(bucket_id, id_))
    return codec.decode(raw) if raw is not None else None


async def get(tr: Transaction, ctx: Context, bucket: Bucket, id_: str) -> Inventory:
    """Raises NoSuchConfiguration."""
    found = await read(tr, ctx, bucket.id, id_)
    if found is None:
        raise NoSuchConfiguration(id_)
    return found


async def page(tr: Transaction, ctx: Context, bucket: Bucket, after: str, limit: int) -> list[Inventory]:
    """Up to `limit` configurations in order of their ids, after the id `after`."""
    begin, end = subspace(ctx.keys.inventories_of(bucket.id))
    rows = await tr.get_range(ctx.keys.inventory(bucket.id, after) + b"\x00" if after else begin, end, limit=limit)
    return [codec.decode(value) for _, value in rows]


async def delete(tr: Transaction, ctx: Context, name: str, id_: str) -> None:
    """Remove a configuration, and with it whatever is under way. Raises NoSuchBucket, NoSuchConfiguration."""
    bucket = await read_bucket(tr, ctx, name)
    await get(tr, ctx, bucket, id_)
    tr.clear(ctx.keys.inventory(bucket.id, id_))


async def advance(tr: Transaction, ctx: Context, seen: Inventory, new: Inventory) -> Inventory | None:
    """Note what became of `seen`. None: it was replaced or removed, or somebody else has gone on with it."""
    if await read(tr, ctx, seen.bucket, seen.id) != seen:
        return None
    tr.set(ctx.keys.inventory(seen.bucket, seen.id), codec.encode(new))
    return new


async def finish(tr: Transaction, ctx: Context, seen: Inventory, error: str) -> None:
    """Note that the report of `seen` is complete, or could not be made (`error`), and owe that of the next period."""
    done = replace(seen, reported=seen.period, period="", after="", version="", files=(), error=error)
    if await advance(tr, ctx, seen, done) is not None:
        period = period_of(seen.weekly, ctx.now_ns())
        behind = seen.period < period.name  # it took longer than its period
        await owe(tr, ctx, seen.bucket, seen.id, 0 if behind else period.following_ns)
