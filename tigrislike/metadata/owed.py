"""Work owed: items of a queue that lives in the same database as what causes them.

An item is enqueued in the transaction that causes it, so nothing is owed that did not happen and nothing that happened
is forgotten. See QuiCK (SIGMOD 2021), sections 4 and 5.

A zone is a queue of its own: 16 bytes of whoever has to act (a node), then the bucket's id.

- ``item / zone, id``: items, under a stable key (a hash of task and subject: a repeated enqueue is one item); their
  order lies in ``due / zone, priority, vesting, enqueued, id``; those whose last run failed also lie in
  ``failing / zone, enqueued, id``.
- ``zone / zone``: the mark of a zone that may hold items. It says to when the zone's pointer is deferred, if it is. It
  is written when that changes, which is rare; every enqueue reads it.
- ``pointer / zone``: when consumers are to look at the zone next, rewritten often. One for each mark;
  ``top / destination, vesting, zone`` is the order in which consumers find them.
- ``bell / destination``: changes when a pointer is made or pulled, for those who have nothing to do.
- ``count / zone, task, counter``: what happened in a zone, added to atomically; ``sum / destination, task, counter,
  shard`` is the same over all zones of a destination. Each event adds to one counter only (`records.Counts.of`).

So an enqueue into a busy zone conflicts with nobody: not with consumers, who rewrite the pointer, nor with other
enqueues. It conflicts with whoever changes the mark, and that is what keeps an item from being forgotten: a zone is
removed, or its pointer deferred, only by a transaction that read (with a conflict) that there is nothing for it to wait
for, and writes the mark.

This module is the side of those who owe; `leasing` is that of consumers, `overseeing` that of operators, and `deciding`
what all three go by.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Iterable
from typing import NamedTuple
from zlib import crc32

from . import deciding
from .context import Context
from .deciding import Announcement
from .keyspace import Keyspace
from .kv.engine import Transaction
from .records import Item, Pointer, digest16
from .records import item as item_codec
from .records import pointer as pointer_codec

RECLAIM_CONTENT = "reclaim"
RECLAIM_BLOB = "reclaim_blob"

PRIORITIES = (0, 1, 2)
"""Most urgent first."""

RECLAIM_PRIORITY = 2
"""Space can wait for whatever somebody waits for."""

DESTINATION_BYTES = 16


def zone_of(destination: bytes, bucket_id: bytes) -> bytes:
    return destination + bucket_id


def destination_of(zone: bytes) -> bytes:
    return zone[:DESTINATION_BYTES]


def item_id(task: str, subject: bytes) -> bytes:
    return digest16(task.encode(), subject)


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
    finishes. `priority` is one of `PRIORITIES`, and `asked` what `ask` returned, if it was called beforehand.
    """
    id_ = item_id(task, subject)
    if asked is None or asked.zone != zone:
        asked = ask(tr, ctx, zone, task, subject)
    raw = await asked.item
    mark = await asked.mark
    due_ns = _add(tr, ctx, zone, id_, raw, Item(task, subject, vesting_ns, ctx.now_ns(), priority, bucket=bucket))
    if due_ns is not None:
        await announce(tr, ctx, zone, due_ns, mark)


async def enqueue_all(
    tr: Transaction, ctx: Context, zone: bytes, task: str, subjects: Iterable[bytes], *, priority: int, bucket: bytes
) -> None:
    """`enqueue` for each of `subjects`, at once, in as many round trips as for one.

    A hundred of them or so: a transaction is bounded.
    """
    asked = [
        (subject, id_, tr.get(ctx.keys.queue_item(zone, id_)))
        for subject, id_ in ((subject, item_id(task, subject)) for subject in dict.fromkeys(subjects))
    ]
    mark = await tr.get(ctx.keys.queue_zone(zone))
    due = []
    for subject, id_, read in asked:
        item = Item(task, subject, 0, ctx.now_ns(), priority, bucket=bucket)
        due.append(_add(tr, ctx, zone, id_, await read, item))
    earliest_ns = min((due_ns for due_ns in due if due_ns is not None), default=None)
    if earliest_ns is not None:
        await announce(tr, ctx, zone, earliest_ns, mark)


async def withdraw(tr: Transaction, ctx: Context, asked: Asked) -> None:
    """Owe an item no longer for which `ask` was called: its cause is gone. One that is being worked on stays."""
    raw = await asked.item
    if raw is None:
        return
    item = item_codec.decode(raw)
    if not item.lease:
        put_item(tr, ctx, asked.zone, item_id(item.task, item.subject), item, None)
        count(tr, ctx, asked.zone, item.task, dropped=1)


def _add(tr: Transaction, ctx: Context, zone: bytes, id_: bytes, raw: bytes | None, item: Item) -> int | None:
    """Write an item, or what it makes of the one that is there (`raw`); when it vests, if that is to be announced."""
    if raw is None:
        put_item(tr, ctx, zone, id_, None, item)
        count(tr, ctx, zone, item.task, enqueued=1)
        return item.vesting_ns
    old = item_codec.decode(raw)
    item = deciding.recurred(old, item.vesting_ns)
    if item == old:
        return None
    put_item(tr, ctx, zone, id_, old, item)
    return None if item.lease else item.vesting_ns  # whoever ends the lease announces it


async def announce(tr: Transaction, ctx: Context, zone: bytes, vesting_ns: int, mark: bytes | None) -> None:
    """See to it that a consumer comes for an item that now vests at `vesting_ns`, earlier than before.

    `mark` is the zone's, as this transaction read it, with a conflict.
    """
    needed = deciding.announcement(deciding.deferred_ns(mark), vesting_ns)
    if needed is Announcement.NOTHING:
        return
    old = None
    if needed is Announcement.PULL:
        raw = await tr.get(ctx.keys.queue_pointer(zone))
        old = pointer_codec.decode(raw) if raw is not None else None
    now_ns = ctx.now_ns()
    put_pointer(tr, ctx, zone, old, Pointer(vesting_ns, active_ns=now_ns, since_ns=vesting_ns or now_ns))
    tr.set(ctx.keys.queue_zone(zone), deciding.mark_of(vesting_ns))
    ring(tr, ctx, destination_of(zone))


# --- what the sides share


def put_item(tr: Transaction, ctx: Context, zone: bytes, id_: bytes, old: Item | None, new: Item | None) -> None:
    """Write an item and its place in the order, in place of the `old` one (None: there was, or is to be, none)."""
    keys = ctx.keys
    was = due_key(ctx, zone, id_, old) if old is not None else None
    becomes = due_key(ctx, zone, id_, new) if new is not None else None
    if was is not None and was != becomes:
        tr.clear(was)
    if (old is not None and old.attempts) or (new is not None and new.attempts):
        _put_failing(tr, ctx, zone, id_, old, new)
    if new is None:
        tr.clear(keys.queue_item(zone, id_))
        return
    tr.set(keys.queue_item(zone, id_), item_codec.encode(new))
    if becomes is not None and was != becomes:
        tr.set(becomes, b"")


def due_key(ctx: Context, zone: bytes, id_: bytes, item: Item) -> bytes:
    """Where an item lies in the order of its zone: of those due at once, the one first that was owed first."""
    return ctx.keys.queue_due_key(zone, item.priority, item.vesting_ns, item.enqueued_ns, id_)


def _put_failing(tr: Transaction, ctx: Context, zone: bytes, id_: bytes, old: Item | None, new: Item | None) -> None:
    was = old if old is not None and old.attempts else None
    becomes = new if new is not None and new.attempts else None
    if was is not None:
        tr.clear(ctx.keys.queue_failing_key(zone, was.enqueued_ns, id_))
        count(tr, ctx, zone, was.task, failing=-1 if becomes is None else 0)
    if becomes is not None:
        tr.set(ctx.keys.queue_failing_key(zone, becomes.enqueued_ns, id_), b"")
        count(tr, ctx, zone, becomes.task, failing=1 if was is None else 0)


def put_pointer(tr: Transaction, ctx: Context, zone: bytes, old: Pointer | None, new: Pointer | None) -> None:
    """Write a zone's pointer and its place in the order, in place of the `old` one (None as for `put_item`)."""
    keys, destination = ctx.keys, destination_of(zone)
    if old is not None:
        tr.clear(keys.queue_top(destination, old.vesting_ns, zone))
    if new is None:
        tr.clear(keys.queue_pointer(zone))
        return
    tr.set(keys.queue_pointer(zone), pointer_codec.encode(new))
    tr.set(keys.queue_top(destination, new.vesting_ns, zone), b"")


def ring(tr: Transaction, ctx: Context, destination: bytes) -> None:
    """Wake consumers that have nothing to do."""
    tr.add(ctx.keys.queue_bell(destination), 1)


SUM_SHARDS = 4
"""Rows over which the zones of a destination spread their sums: no row is hotter than a few zones' own counters."""


def count(tr: Transaction, ctx: Context, zone: bytes, task: str, **deltas: int) -> None:
    """Add to the counters of `task`, of a zone and of its destination; `records.Counts.of` names them."""
    for counter, delta in deltas.items():
        if delta:
            of_zone, summed = _counters(ctx.keys, zone, task, counter)
            tr.add(of_zone, delta)
            tr.add(summed, delta)


@functools.lru_cache(8192)
def _counters(keys: Keyspace, zone: bytes, task: str, counter: str) -> tuple[bytes, bytes]:
    """The rows of a counter: the zone's, and its part of the destination's. Packing them is a tenth of an enqueue."""
    shard = crc32(zone) % SUM_SHARDS
    return keys.queue_count(zone, task, counter), keys.queue_sum(destination_of(zone), task, counter, shard)
