"""What operators ask of the queue and do to it: cheap reads of counters and indexes, and changes to single items.

Zones are named by their bytes, items by their ids. Whatever lets an item vest earlier is announced as an enqueue is.
"""

from __future__ import annotations

import enum

from msgspec.structs import replace

from . import deciding
from .context import Context
from .keyspace import subspace, unpack_bytes, unpack_int, unpack_text
from .kv.engine import Transaction
from .leasing import PAUSED_DESTINATION, PAUSED_TASK, PAUSED_ZONE, ask_paused, paused_names
from .owed import PRIORITIES, announce, count, destination_of, put_item, put_pointer, ring
from .records import Counts, Item, Pointer
from .records import item as item_codec
from .records import pointer as pointer_codec


class Pausable(enum.Enum):
    """What can be paused: a zone (by its name), a destination (by its 16 bytes), a task (by its name in UTF-8)."""

    ZONE = PAUSED_ZONE
    DESTINATION = PAUSED_DESTINATION
    TASK = PAUSED_TASK


# --- looking


async def zones(tr: Transaction, ctx: Context, after: bytes, limit: int) -> list[bytes]:
    """Up to `limit` zones that may hold items, in order, after the zone `after` (b"": from the first)."""
    begin, end = subspace(ctx.keys.queue_zones)
    if after:
        begin = ctx.keys.queue_zone(after) + b"\x00"
    rows = await tr.get_range(begin, end, limit=limit, snapshot=True)
    return [unpack_bytes(key, len(ctx.keys.queue_zones))[0] for key, _ in rows]


async def counts(tr: Transaction, ctx: Context, zone: bytes) -> dict[str, Counts]:
    """The zone's counters by task."""
    begin, end = ctx.keys.queue_count_range(zone)
    found: dict[str, dict[str, int]] = {}
    for key, value in await tr.get_range(begin, end, snapshot=True):
        task, at = unpack_text(key, len(begin) - 1)
        counter, _ = unpack_text(key, at)
        found.setdefault(task, {})[counter] = int.from_bytes(value, "little", signed=True)
    return {task: Counts.of(counted) for task, counted in found.items()}


async def depth(tr: Transaction, ctx: Context, zone: bytes) -> int:
    """How many items the zone holds, waiting or leased."""
    return sum(counted.waiting for counted in (await counts(tr, ctx, zone)).values())


async def oldest_ns(tr: Transaction, ctx: Context, zone: bytes) -> int | None:
    """When the first of the zone's items vests, or has vested (0: it was owed at once); None where there is none."""
    ranges = [ctx.keys.queue_due_range(zone, priority) for priority in PRIORITIES]
    reads = [(len(begin) - 1, tr.get_range(begin, end, limit=1, snapshot=True)) for begin, end in ranges]
    return min([unpack_int(key, start)[0] for start, read in reads for key, _ in await read], default=None)


async def pointer(tr: Transaction, ctx: Context, zone: bytes) -> Pointer | None:
    """When consumers are to look at the zone next; None where the zone is not there."""
    raw = await tr.get(ctx.keys.queue_pointer(zone), snapshot=True)
    return pointer_codec.decode(raw) if raw is not None else None


async def items(tr: Transaction, ctx: Context, zone: bytes, after: bytes, limit: int) -> list[tuple[bytes, Item]]:
    """Up to `limit` items of a zone with their ids, in the order of these, after the id `after`."""
    return await _page(tr, ctx.keys.queue_item_range(zone), ctx.keys.queue_item(zone, after), after, limit)


async def letters(tr: Transaction, ctx: Context, zone: bytes, after: bytes, limit: int) -> list[tuple[bytes, Item]]:
    """Up to `limit` dead letters of a zone, as `items`."""
    return await _page(tr, ctx.keys.queue_dead_range(zone), ctx.keys.queue_dead_item(zone, after), after, limit)


async def show(tr: Transaction, ctx: Context, zone: bytes, id_: bytes) -> tuple[Item | None, Item | None]:
    """An item and its dead letter, as far as there are any."""
    stored, buried = tr.get(ctx.keys.queue_item(zone, id_)), tr.get(ctx.keys.queue_dead_item(zone, id_))
    item, letter = [item_codec.decode(raw) if raw is not None else None for raw in (await stored, await buried)]
    return item, letter


async def _page(
    tr: Transaction, rows: tuple[bytes, bytes], last: bytes, after: bytes, limit: int
) -> list[tuple[bytes, Item]]:
    begin, end = rows
    found = await tr.get_range(last + b"\x00" if after else begin, end, limit=limit, snapshot=True)
    return [(unpack_bytes(key, len(begin) - 1)[0], item_codec.decode(value)) for key, value in found]


async def paused(tr: Transaction, ctx: Context) -> dict[Pausable, set[bytes]]:
    """What is paused."""
    reads = [(what, ask_paused(tr, ctx, what.value)) for what in Pausable]
    return {what: paused_names(ctx, what.value, await read) for what, read in reads}


# --- changing


async def retry(tr: Transaction, ctx: Context, zone: bytes, id_: bytes) -> bool:
    """Give a dead letter all its attempts again, at once. False: there is none.

    Where its cause has recurred since, there is an item already, and this is one more recurrence.
    """
    keys = ctx.keys
    buried, stored, marked = (
        tr.get(keys.queue_dead_item(zone, id_)),
        tr.get(keys.queue_item(zone, id_)),
        tr.get(keys.queue_zone(zone)),
    )
    raw, current, mark = await buried, await stored, await marked
    if raw is None:
        return False
    letter = item_codec.decode(raw)
    tr.clear(keys.queue_dead_item(zone, id_))
    count(tr, ctx, zone, letter.task, dead=-1)
    if current is None:
        old, item = None, replace(letter, vesting_ns=0, attempts=0, error="")
        count(tr, ctx, zone, letter.task, enqueued=1)
    else:
        old = item_codec.decode(current)
        item = deciding.recurred(old, 0)
    put_item(tr, ctx, zone, id_, old, item)
    if not item.lease:
        await announce(tr, ctx, zone, 0, mark)
    return True


async def delay(tr: Transaction, ctx: Context, zone: bytes, id_: bytes, vesting_ns: int) -> bool:
    """Let a waiting item vest no sooner than at `vesting_ns`; 0: let it vest at once. False: there is none, or it is
    being worked on."""
    stored, marked = tr.get(ctx.keys.queue_item(zone, id_)), tr.get(ctx.keys.queue_zone(zone))
    raw, mark = await stored, await marked
    old = item_codec.decode(raw) if raw is not None else None
    if old is None or (old.lease and old.vesting_ns > ctx.now_ns()):
        return False
    if vesting_ns:
        vesting_ns = max(old.vesting_ns, vesting_ns)
    put_item(tr, ctx, zone, id_, old, replace(old, lease=b"", vesting_ns=vesting_ns, again_ns=-1))
    count(tr, ctx, zone, old.task, returned=int(bool(old.lease)))
    await announce(tr, ctx, zone, vesting_ns, mark)
    return True


async def drop(tr: Transaction, ctx: Context, zone: bytes, id_: bytes) -> bool:
    """Give up an item, and its dead letter: what it owes is never done. False: there is neither.

    Whoever works on it finds its lease lost.
    """
    keys = ctx.keys
    stored, buried = tr.get(keys.queue_item(zone, id_)), tr.get(keys.queue_dead_item(zone, id_))
    raw, letter = await stored, await buried
    if raw is not None:
        item = item_codec.decode(raw)
        put_item(tr, ctx, zone, id_, item, None)
        count(tr, ctx, zone, item.task, dropped=1, returned=int(bool(item.lease)))
    if letter is not None:
        tr.clear(keys.queue_dead_item(zone, id_))
        count(tr, ctx, zone, item_codec.decode(letter).task, dead=-1)
    return raw is not None or letter is not None


async def pause(tr: Transaction, ctx: Context, what: Pausable, name: bytes) -> None:
    """Start nothing more of it. What is under way goes on; what is owed stays owed, and is counted."""
    tr.set(ctx.keys.queue_pause(what.value, name), b"")


async def resume(tr: Transaction, ctx: Context, what: Pausable, name: bytes) -> None:
    """Go on. Items of a task come within `QueueParameters.set_back_ns`, the others at once."""
    tr.clear(ctx.keys.queue_pause(what.value, name))
    if what is not Pausable.TASK:
        ring(tr, ctx, destination_of(name))


async def wake(tr: Transaction, ctx: Context, zone: bytes) -> None:
    """Make a zone whose rows may be damaged one that consumers look at soon, and put right themselves.

    A mark, one pointer, vested, and its one index entry; a lease on the pointer is lost, those on items are not.
    """
    raw = await tr.get(ctx.keys.queue_pointer(zone))
    old = pointer_codec.decode(raw) if raw is not None else None
    put_pointer(tr, ctx, zone, old, Pointer(0, active_ns=ctx.now_ns()))
    tr.set(ctx.keys.queue_zone(zone), deciding.mark_of(0))
    ring(tr, ctx, destination_of(zone))
