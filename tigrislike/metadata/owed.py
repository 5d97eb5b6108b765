"""Work owed: items of a queue that lives in the same database as what causes them.

An item is enqueued in the transaction that causes it, so nothing is owed that did not happen and nothing that happened
is forgotten. Items have a stable key (a hash of task and subject: a repeated enqueue is one item) and their order
lies in a secondary index by priority and vesting time. A claim is a lease: it moves the vesting time into the future,
so a dead holder's items come back by themselves; the lease id is re-read by whoever finishes, so clocks decide who may
try, never who is right. See QuiCK (SIGMOD 2021), sections 4 and 5.

A zone is a queue of its own: 16 bytes of the node that has to act, then the bucket's id. Each zone that may hold items
has a mark, which is written only when it first gets one and when `collect_zone` proves it empty.

This module holds the primitives; who claims, when and how often is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import NamedTuple

from .context import Context
from .keyspace import subspace, unpack_bytes, unpack_int
from .kv.engine import Transaction
from .records import Claimed, Item, digest16
from .records import item as item_codec

RECLAIM_CONTENT = "reclaim"
RECLAIM_BLOB = "reclaim_blob"

PRIORITIES = (0, 1, 2)
"""Most urgent first."""

MAX_ATTEMPTS = 10
BACK_OFF_NS = 1_000_000_000
MAX_BACK_OFF_NS = 60_000_000_000


def zone_of(node_id: bytes, bucket_id: bytes) -> bytes:
    return node_id + bucket_id


def item_id(task: str, subject: bytes) -> bytes:
    return digest16(task.encode(), subject)


def _index(tr: Transaction, ctx: Context, zone: bytes, id_: bytes, item: Item) -> None:
    tr.set(ctx.keys.queue_item(zone, id_), item_codec.encode(item))
    tr.set(ctx.keys.queue_due_key(zone, item.priority, item.vesting_ns, id_), b"")


def _unindex(tr: Transaction, ctx: Context, zone: bytes, id_: bytes, item: Item) -> None:
    tr.clear(ctx.keys.queue_due_key(zone, item.priority, item.vesting_ns, id_))


def _changed(item: Item, **changes: object) -> Item:
    fields = {name: getattr(item, name) for name in item.__struct_fields__}
    fields.update(changes)
    return Item(**fields)


class Asked(NamedTuple):
    """The reads that `enqueue` rests on, under way."""

    zone: bytes
    item: Awaitable[bytes | None]
    mark: Awaitable[bytes | None]


def ask(tr: Transaction, ctx: Context, zone: bytes, task: str, subject: bytes) -> Asked:
    """Start what `enqueue` reads, together with other reads: a distant database is asked once instead of twice."""
    item = tr.get(ctx.keys.queue_item(zone, item_id(task, subject)))
    return Asked(zone, item, tr.get(ctx.keys.queue_zone(zone)))


async def enqueue(
    tr: Transaction,
    ctx: Context,
    zone: bytes,
    task: str,
    subject: bytes,
    *,
    vesting_ns: int = 0,
    priority: int = 0,
    bucket: bytes = b"",
    asked: Asked | None = None,
) -> None:
    """Owe `task` for `subject`, from `vesting_ns` on (0: at once).

    An item already waiting keeps the earlier of the two times; one that is leased will vest again when its holder
    finishes. `asked` is what `ask` returned, if it was called beforehand.
    """
    id_ = item_id(task, subject)
    if asked is None or asked.zone != zone:
        asked = ask(tr, ctx, zone, task, subject)
    raw = await asked.item
    if await asked.mark is None:
        tr.set(ctx.keys.queue_zone(zone), b"")
    if raw is None:
        item = Item(task, subject, vesting_ns, ctx.now_ns(), priority, bucket=bucket)
        _index(tr, ctx, zone, id_, item)
        tr.add(ctx.keys.queue_count(zone), 1)
        return
    item = item_codec.decode(raw)
    if item.lease:
        again_ns = vesting_ns if item.again_ns < 0 else min(item.again_ns, vesting_ns)
        tr.set(ctx.keys.queue_item(zone, id_), item_codec.encode(_changed(item, again_ns=again_ns)))
    elif vesting_ns < item.vesting_ns:
        _unindex(tr, ctx, zone, id_, item)
        _index(tr, ctx, zone, id_, _changed(item, vesting_ns=vesting_ns))


async def claim(tr: Transaction, ctx: Context, zone: bytes, lease: bytes, limit: int, lease_ns: int) -> list[Claimed]:
    """Lease up to `limit` due items of `zone` for `lease_ns`, most urgent and longest due first.

    `lease` is the caller's fresh random id; each item's own lease id is derived from it.
    """
    now_ns = ctx.now_ns()
    claimed: list[Claimed] = []
    for priority in PRIORITIES:
        begin, _ = ctx.keys.queue_due_range(zone, priority)
        end = ctx.keys.queue_due_until(zone, priority, now_ns)
        # A snapshot read: two claimers conflict on the items that both take, not on the whole range.
        rows = await tr.get_range(begin, end, limit=limit - len(claimed), snapshot=True)
        reads = []
        for key, _ in rows:
            _, at = unpack_int(key, len(begin) - 1)
            id_, _ = unpack_bytes(key, at)
            reads.append((id_, tr.get(ctx.keys.queue_item(zone, id_))))
        for id_, read in reads:
            raw = await read
            if raw is None:
                continue  # finished between the snapshot and now: our own commit would conflict, but skip it anyway
            item = item_codec.decode(raw)
            if item.vesting_ns > now_ns:
                continue
            own = digest16(lease, id_)
            leased = _changed(item, lease=own, vesting_ns=now_ns + lease_ns)
            _unindex(tr, ctx, zone, id_, item)
            _index(tr, ctx, zone, id_, leased)
            claimed.append(Claimed(zone, id_, own, leased))
        if len(claimed) >= limit:
            break
    return claimed


async def _leased(tr: Transaction, ctx: Context, claimed: Claimed) -> Item | None:
    raw = await tr.get(ctx.keys.queue_item(claimed.zone, claimed.id))
    if raw is None:
        return None
    item = item_codec.decode(raw)
    return item if item.lease == claimed.lease else None


async def extend(tr: Transaction, ctx: Context, claimed: Claimed, lease_ns: int) -> bool:
    """Prolong a lease to `lease_ns` from now. False: it was lost, and the work must stop."""
    item = await _leased(tr, ctx, claimed)
    if item is None:
        return False
    _unindex(tr, ctx, claimed.zone, claimed.id, item)
    _index(tr, ctx, claimed.zone, claimed.id, _changed(item, vesting_ns=ctx.now_ns() + lease_ns))
    return True


async def finish(tr: Transaction, ctx: Context, claimed: Claimed) -> bool:
    """Remove a finished item, or let it vest again if its cause recurred. False: the lease was lost."""
    item = await _leased(tr, ctx, claimed)
    if item is None:
        return False
    _unindex(tr, ctx, claimed.zone, claimed.id, item)
    if item.again_ns >= 0:
        again = _changed(item, lease=b"", vesting_ns=item.again_ns, again_ns=-1, attempts=0, error="")
        _index(tr, ctx, claimed.zone, claimed.id, again)
    else:
        tr.clear(ctx.keys.queue_item(claimed.zone, claimed.id))
        tr.add(ctx.keys.queue_count(claimed.zone), -1)
    return True


def back_off_ns(attempts: int, jitter: float) -> int:
    """How long to wait after the `attempts`-th failure: doubling from a second to a minute, times 0.5 to 1.5 as
    `jitter` goes from 0 to 1."""
    return int(min(MAX_BACK_OFF_NS, BACK_OFF_NS << min(attempts - 1, 20)) * (0.5 + jitter))


async def fail(tr: Transaction, ctx: Context, claimed: Claimed, error: str, jitter: float) -> bool:
    """Give an item back after a failure: it vests again after a back-off, or becomes a dead letter after
    `MAX_ATTEMPTS`. False: the lease was lost."""
    item = await _leased(tr, ctx, claimed)
    if item is None:
        return False
    _unindex(tr, ctx, claimed.zone, claimed.id, item)
    attempts = item.attempts + 1
    if attempts >= MAX_ATTEMPTS:
        if item.again_ns >= 0:  # the cause recurred, which is as good as a new item: it gets tries of its own
            again = _changed(item, lease=b"", vesting_ns=item.again_ns, again_ns=-1, attempts=0, error="")
            _index(tr, ctx, claimed.zone, claimed.id, again)
        else:
            tr.clear(ctx.keys.queue_item(claimed.zone, claimed.id))
            tr.add(ctx.keys.queue_count(claimed.zone), -1)
        letter = _changed(item, lease=b"", attempts=attempts, error=error[:1000], again_ns=-1)
        tr.set(ctx.keys.queue_dead_item(claimed.zone, claimed.id), item_codec.encode(letter))
        return True
    vesting_ns = ctx.now_ns() + back_off_ns(attempts, jitter)
    waiting = _changed(item, lease=b"", vesting_ns=vesting_ns, again_ns=-1, attempts=attempts, error=error[:1000])
    _index(tr, ctx, claimed.zone, claimed.id, waiting)
    return True


async def zones(tr: Transaction, ctx: Context, after: bytes, limit: int) -> list[bytes]:
    """Up to `limit` zones that may hold items, in order, after the zone `after` (b"": from the first)."""
    begin, end = subspace(ctx.keys.queue_zones)
    if after:
        begin = ctx.keys.queue_zone(after) + b"\x00"
    rows = await tr.get_range(begin, end, limit=limit, snapshot=True)
    return [unpack_bytes(key, len(ctx.keys.queue_zones))[0] for key, _ in rows]


async def depth(tr: Transaction, ctx: Context, zone: bytes) -> int:
    """How many items the zone holds, waiting or leased."""
    raw = await tr.get(ctx.keys.queue_count(zone), snapshot=True)
    return int.from_bytes(raw, "little", signed=True) if raw else 0


async def collect_zone(tr: Transaction, ctx: Context, zone: bytes) -> bool:
    """Remove the mark of a zone that is empty. False: it is not.

    The range is read with a conflict and every enqueue reads the mark, so either this transaction or a concurrent
    enqueue gives way.
    """
    begin, end = ctx.keys.queue_item_range(zone)
    if await tr.get_range(begin, end, limit=1):
        return False
    tr.clear(ctx.keys.queue_zone(zone))
    tr.clear(ctx.keys.queue_count(zone))
    return True
