"""The queue's consumers: which zones to look at, a batch of items under lease, and how each run ends.

A consumer peeks at the pointers that have vested, leases one, claims a batch of its zone's due items while it lets go
of the pointer, works, and finishes each item in a transaction that also does what the work comes to. Leases move the
vesting time into the future, so a dead holder's items, and pointers, come back by themselves. The lease id is read
again by whoever goes on, so clocks decide who may try, never who is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from . import deciding
from .context import Context
from .keyspace import pack_text, unpack_bytes, unpack_int
from .kv.engine import Transaction, Watch
from .owed import PRIORITIES, announce, count, destination_of, put_item, put_pointer
from .records import Claimed, Item, Pointer, digest16
from .records import item as item_codec
from .records import pointer as pointer_codec

PAUSED_ZONE = "zone"
PAUSED_DESTINATION = "destination"
PAUSED_TASK = "task"

COUNT_DEAD = pack_text("dead")

Effect = Callable[[Transaction, Context], Awaitable[None]]
"""What a run comes to, as a transaction function: done in the transaction that finishes the item, so once."""


class Peeked(NamedTuple):
    """Zones whose pointers have vested, longest ago first, and when the next one will (None: there is none)."""

    zones: list[bytes]
    next_ns: int | None


class Batch(NamedTuple):
    """What a claim came to: items under lease, how many of paused tasks it `set_back`, and the tasks of which due items
    were seen and left, because there was no room for them."""

    claimed: list[Claimed]
    set_back: int
    left: frozenset[str] = frozenset()


Room = Mapping[str, int]
"""How many items of each task the claimer has a use for; without bound, but for the batch's, where a task is absent."""


async def peek(tr: Transaction, ctx: Context, destination: bytes, early_ns: int = 0) -> Peeked:
    """The pointers to `destination` that have vested, or will in `early_ns`, but for paused zones."""
    keys, now_ns = ctx.keys, ctx.now_ns()
    begin, end = keys.queue_top_range(destination)
    until = keys.queue_top_until(destination, now_ns + early_ns)
    vested = tr.get_range(begin, until, limit=ctx.queue.peek, snapshot=True)
    following = tr.get_range(until, end, limit=1, snapshot=True)
    pause = tr.get(keys.queue_pause(PAUSED_DESTINATION, destination), snapshot=True)
    pauses = await ask_paused(tr, ctx, PAUSED_ZONE)
    start = len(begin) - 1
    zones = [top_entry(key, start)[1] for key, _ in await vested]
    next_ns = [top_entry(key, start)[0] for key, _ in await following]
    if await pause is not None:
        return Peeked([], None)
    paused = paused_names(ctx, PAUSED_ZONE, pauses)
    return Peeked([zone for zone in zones if zone not in paused], next_ns[0] if next_ns else None)


async def lease(tr: Transaction, ctx: Context, zone: bytes, lease: bytes, early_ns: int = 0) -> bool:
    """Take a zone's pointer, under `lease`, the caller's fresh random id. False: it has not vested, or is paused."""
    keys = ctx.keys
    stored, marked = tr.get(keys.queue_pointer(zone)), tr.get(keys.queue_zone(zone))
    pauses = [
        tr.get(keys.queue_pause(PAUSED_ZONE, zone)),
        tr.get(keys.queue_pause(PAUSED_DESTINATION, destination_of(zone))),
    ]
    raw, mark = await stored, await marked
    if raw is None or any([await pause is not None for pause in pauses]):
        return False
    old = pointer_codec.decode(raw)
    new = deciding.leased(ctx.queue, old, lease, ctx.now_ns(), early_ns)
    if new is None:
        return False
    put_pointer(tr, ctx, zone, old, new)
    if deciding.deferred_ns(mark):
        tr.set(keys.queue_zone(zone), deciding.mark_of(0))
    return True


async def claim(
    tr: Transaction, ctx: Context, zone: bytes, pointer_lease: bytes, lease: bytes, room: Room | None = None
) -> Batch | None:
    """Lease due items of `zone`, most urgent and longest due first, and let go of its pointer.

    `lease` is the caller's fresh random id, from which each item's own lease id is derived. What there is no `room` for
    stays for others. None: the pointer's lease was lost. A batch of nothing at all: nothing was due, and the pointer
    rests until something is, or the zone is gone.
    """
    keys, now_ns, limit = ctx.keys, ctx.now_ns(), ctx.queue.batch
    stored = tr.get(keys.queue_pointer(zone))
    pauses = ask_paused(tr, ctx, PAUSED_TASK)
    # Each priority is asked for by itself, up to now: what is leased or delayed hides nothing behind it. By snapshot:
    # two who claim conflict on the items that both take, not on the whole range.
    ranges = [(keys.queue_due_range(zone, each)[0], keys.queue_due_until(zone, each, now_ns)) for each in PRIORITIES]
    dues = [tr.get_range(begin, end, limit=limit, snapshot=True) for begin, end in ranges]
    raw = await stored
    pointer = pointer_codec.decode(raw) if raw is not None else None
    if pointer is None or pointer.lease != pointer_lease:
        return None
    paused = paused_names(ctx, PAUSED_TASK, await pauses)
    starts = [len(begin) - 1 for begin, _ in ranges]
    heads, ids = [], []
    for start, due in zip(starts, dues, strict=True):
        rows = await due
        if rows:
            heads.append(due_entry(rows[0][0], start).since_ns)
            ids += [due_id(key, start) for key, _ in rows]
    free, left, begun = dict(room or {}), set(), Counter[str]()
    batch: list[Claimed] = []
    moved: list[tuple[bytes, Item, Item]] = []
    seen = 0
    while seen < len(ids) and len(moved) < limit:
        # More than once only where something was left: the less urgent may be what there is room for.
        asked = ids[seen : seen + limit - len(moved)]
        seen += len(asked)
        for id_, read in [(id_, tr.get(keys.queue_item(zone, id_))) for id_ in asked]:
            found = await read
            if found is None:
                continue  # a damaged index: fsck's business
            old = item_codec.decode(found)
            new = deciding.taken(ctx.queue, old, digest16(lease, id_), now_ns)
            if new is None:
                continue
            if old.task.encode() in paused:
                new = deciding.set_back(ctx.queue, old, now_ns)
                count(tr, ctx, zone, old.task, returned=int(bool(old.lease)))
            elif free.setdefault(old.task, limit) <= 0:
                left.add(old.task)
                continue
            else:
                free[old.task] -= 1
                batch.append(Claimed(zone, id_, new.lease, new))
                begun[old.task] += not old.lease  # a run whose lease ended goes on in this one, for those who count
            moved.append((id_, old, new))
    for id_, old, new in moved:
        put_item(tr, ctx, zone, id_, old, new)
    for task, runs in begun.items():
        count(tr, ctx, zone, task, begun=runs)
    if moved or left:
        more = bool(left) or len(ids) >= limit
        since_ns = min(heads)
        put_pointer(tr, ctx, zone, pointer, deciding.released(ctx.queue, pointer, now_ns, since_ns, more=more))
    else:
        await _rest(tr, ctx, zone, pointer)
    return Batch(batch, len(moved) - len(batch), frozenset(left))


async def _rest(tr: Transaction, ctx: Context, zone: bytes, pointer: Pointer) -> None:
    """Defer the pointer of a zone where nothing is due, or remove the zone.

    The head of each priority is read with a conflict, and so is the mark by whoever lets an item vest earlier: of this
    transaction and theirs one gives way.
    """
    keys = ctx.keys
    ranges = [keys.queue_due_range(zone, priority) for priority in PRIORITIES]
    reads = [(len(begin) - 1, tr.get_range(begin, end, limit=1)) for begin, end in ranges]
    heads = [due_entry(key, start).vesting_ns for start, read in reads for key, _ in await read]
    rested = deciding.rested(ctx.queue, pointer, ctx.now_ns(), min(heads, default=None))
    if rested is not None:
        put_pointer(tr, ctx, zone, pointer, rested)
        tr.set(keys.queue_zone(zone), deciding.mark_of(rested.vesting_ns))
        return
    # Dead letters stay, and so does their number.
    counts = await tr.get_range(*keys.queue_count_range(zone), snapshot=True)
    put_pointer(tr, ctx, zone, pointer, None)
    tr.clear(keys.queue_zone(zone))
    for key, value in counts:
        if not key.endswith(COUNT_DEAD) or not any(value):
            tr.clear(key)


def _ask(tr: Transaction, ctx: Context, claimed: Claimed) -> Awaitable[bytes | None]:
    return tr.get(ctx.keys.queue_item(claimed.zone, claimed.id))


def _leased(raw: bytes | None, claimed: Claimed) -> Item | None:
    """The item, if it is still the caller's."""
    item = item_codec.decode(raw) if raw is not None else None
    return item if item is not None and item.lease == claimed.lease else None


async def extend(tr: Transaction, ctx: Context, batch: Sequence[Claimed]) -> list[Claimed]:
    """Prolong leases from now. Those that are left; for the others the work must stop."""
    stored = [(claimed, _ask(tr, ctx, claimed)) for claimed in batch]
    found = [(claimed, _leased(await raw, claimed)) for claimed, raw in stored]
    held = [(claimed, item) for claimed, item in found if item is not None]
    for claimed, item in held:
        new = deciding.extended(ctx.queue, item, ctx.now_ns())
        put_item(tr, ctx, claimed.zone, claimed.id, item, new)
    return [claimed for claimed, _ in held]


async def release(tr: Transaction, ctx: Context, batch: Sequence[Claimed]) -> list[Claimed]:
    """Give items back, due at once, with no attempt counted: for whoever has a worker for them. Those that were still
    the caller's."""
    stored = [(claimed, _ask(tr, ctx, claimed)) for claimed in batch]
    marks = {claimed.zone: tr.get(ctx.keys.queue_zone(claimed.zone)) for claimed in batch}
    found = [(claimed, _leased(await raw, claimed)) for claimed, raw in stored]
    held = [(claimed, item) for claimed, item in found if item is not None]
    for claimed, item in held:
        put_item(tr, ctx, claimed.zone, claimed.id, item, deciding.let_go(item))
        count(tr, ctx, claimed.zone, item.task, returned=1)
    for zone in sorted({claimed.zone for claimed, _ in held}):
        await announce(tr, ctx, zone, 0, await marks[zone])
    return [claimed for claimed, _ in held]


async def finish(tr: Transaction, ctx: Context, claimed: Claimed, effect: Effect | None = None) -> bool:
    """The work is done: let `effect` happen and remove the item, or let it vest again if its cause recurred.

    False: the lease was lost, and nothing happened.
    """
    item = _leased(await _ask(tr, ctx, claimed), claimed)
    if item is None:
        return False
    if effect is not None:
        await effect(tr, ctx)
        item = _leased(await _ask(tr, ctx, claimed), claimed)  # it may have owed the same again
        assert item is not None, "an effect only owes"
    again = deciding.finished(item, ctx.now_ns())
    put_item(tr, ctx, claimed.zone, claimed.id, item, again)
    count(tr, ctx, claimed.zone, item.task, done=1, enqueued=int(again is not None))
    if again is not None:
        await announce(tr, ctx, claimed.zone, again.vesting_ns, await tr.get(ctx.keys.queue_zone(claimed.zone)))
    return True


async def fail(
    tr: Transaction, ctx: Context, claimed: Claimed, error: str, jitter: float, for_now: bool = False
) -> bool:
    """The work failed: the item vests again after a back-off, or becomes a dead letter, which it never does where it
    failed only `for_now`. False: the lease was lost."""
    keys, zone = ctx.keys, claimed.zone
    stored = _ask(tr, ctx, claimed)
    marked, buried = tr.get(keys.queue_zone(zone)), tr.get(keys.queue_dead_item(zone, claimed.id))
    item, mark, first = _leased(await stored, claimed), await marked, await buried is None
    if item is None:
        return False
    letter: Item | None = None
    if for_now:
        again: Item | None = deciding.postponed(ctx.queue, item, ctx.now_ns(), error, jitter, ctx.home.node)
    else:
        again, letter = deciding.failed(ctx.queue, item, ctx.now_ns(), error, jitter, ctx.home.node)
    put_item(tr, ctx, zone, claimed.id, item, again)
    count(tr, ctx, zone, item.task, failed=1)
    if letter is not None:
        tr.set(keys.queue_dead_item(zone, claimed.id), item_codec.encode(letter))
        count(tr, ctx, zone, item.task, dropped=1, dead=int(first), enqueued=int(again is not None))
    if again is not None:
        await announce(tr, ctx, zone, again.vesting_ns, mark)
    return True


async def listen(tr: Transaction, ctx: Context, destination: bytes) -> Watch:
    """A watch on the bell of `destination`."""
    return tr.watch(ctx.keys.queue_bell(destination))


def ask_paused(tr: Transaction, ctx: Context, kind: str) -> Awaitable[list[tuple[bytes, bytes]]]:
    """Start reading what of `kind` is paused: a handful of rows."""
    return tr.get_range(*ctx.keys.queue_pause_range(kind), snapshot=True)


def paused_names(ctx: Context, kind: str, rows: list[tuple[bytes, bytes]]) -> set[bytes]:
    """The names in what `ask_paused` read."""
    start = len(ctx.keys.queue_pause_range(kind)[0]) - 1
    return {unpack_bytes(key, start)[0] for key, _ in rows}


class DueEntry(NamedTuple):
    """An item's place in the order of its zone."""

    vesting_ns: int
    enqueued_ns: int
    id: bytes

    @property
    def since_ns(self) -> int:
        """Since when the item has been due, once it is."""
        return self.vesting_ns or self.enqueued_ns


def due_entry(key: bytes, start: int) -> DueEntry:
    """An entry of the ``due`` index, whose prefix is `start` bytes long."""
    vesting_ns, at = unpack_int(key, start)
    enqueued_ns, at = unpack_int(key, at)
    return DueEntry(vesting_ns, enqueued_ns, unpack_bytes(key, at)[0])


def due_id(key: bytes, start: int) -> bytes:
    """The id alone, of which a claim reads many."""
    at = start + key[start] - 0x13  # past the vesting time
    return unpack_bytes(key, at + key[at] - 0x13)[0]


def top_entry(key: bytes, start: int) -> tuple[int, bytes]:
    """Vesting time and zone of an entry of the ``top`` index, whose prefix is `start` bytes long."""
    vesting_ns, at = unpack_int(key, start)
    return vesting_ns, unpack_bytes(key, at)[0]
