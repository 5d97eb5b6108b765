"""The queue over all its zones, for those who look at it: from counters and indexes, and never by reading its items.

- Sums by destination and task are kept as counters (`owed.count`), so that reading them costs as much however many
  zones and items there are.
- Every zone has one pointer, which says when it was looked at last and since when something had been due in it then:
  one range of small rows finds the zones that wait longest.
- The counters of all zones are one range too: some rows for each zone and task.
- `sample` keeps what the sums were a while ago, so that rates can be told.

Nothing here conflicts with anybody, or has to be exact while others write: each function sees one moment.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import NamedTuple

import msgspec

from .context import Context
from .deciding import SECOND
from .keyspace import strinc, subspace, unpack_bytes, unpack_int, unpack_stamp, unpack_text
from .kv.engine import Transaction
from .leasing import due_entry
from .owed import PRIORITIES
from .records import Counts, Item, Pointer
from .records import item as item_codec
from .records import pointer as pointer_codec

SAMPLE_NS = 15 * SECOND
SAMPLES_KEPT_NS = 3600 * SECOND
"""How often the sums are sampled, and how long samples are kept."""

ByTask = dict[str, Counts]


class Aged(NamedTuple):
    """A zone and its pointer."""

    zone: bytes
    pointer: Pointer

    def since_ns(self, now_ns: int) -> int | None:
        """Since when something has been due in the zone, as far as its pointer knows; None: nothing is."""
        pointer = self.pointer
        # Announced for later, it says since when something will have been due.
        known = [pointer.since_ns] if 0 < pointer.since_ns <= now_ns else []
        if pointer.vesting_ns <= now_ns:  # and nobody has come since
            known.append(pointer.vesting_ns or pointer.active_ns)
        return min(known, default=None)


class Place(NamedTuple):
    """An item and where it lies: its zone and id."""

    zone: bytes
    id: bytes
    item: Item


class Sample(NamedTuple):
    """The sums at one moment, by destination and task."""

    at_ns: int
    sums: dict[bytes, ByTask]


# --- sums


async def destinations(tr: Transaction, ctx: Context) -> list[bytes]:
    """Every destination to which something was ever owed."""
    begin, end = subspace(ctx.keys.queue_sums)
    found: list[bytes] = []
    while rows := await tr.get_range(begin, end, limit=1, snapshot=True):
        destination, at = unpack_bytes(rows[0][0], len(ctx.keys.queue_sums))
        found.append(destination)
        begin = strinc(rows[0][0][:at])
    return found


async def sums(tr: Transaction, ctx: Context) -> dict[bytes, ByTask]:
    """The sums of every destination, by task."""
    start = len(ctx.keys.queue_sums)
    totals: dict[bytes, dict[str, dict[str, int]]] = {}
    for key, value in await tr.get_range(*subspace(ctx.keys.queue_sums), snapshot=True):
        destination, at = unpack_bytes(key, start)
        _add(totals.setdefault(destination, {}), key, at, value)
    return {destination: _by_task(total) for destination, total in totals.items()}


async def summed(tr: Transaction, ctx: Context, destination: bytes) -> ByTask:
    """The sums of one destination by task, read with a conflict."""
    begin, end = ctx.keys.queue_sum_range(destination)
    total: dict[str, dict[str, int]] = {}
    for key, value in await tr.get_range(begin, end):
        _add(total, key, len(begin) - 1, value)
    return _by_task(total)


async def counted(tr: Transaction, ctx: Context, destination: bytes, *, limit: int) -> ByTask | None:
    """What the zones of a destination add up to, read with a conflict; None where that takes `limit` rows or more."""
    rows = await tr.get_range(*ctx.keys.queue_of(ctx.keys.queue_counts, destination), limit=limit)
    if len(rows) == limit:
        return None
    total: dict[str, dict[str, int]] = {}
    for key, value in rows:
        _add(total, key, unpack_bytes(key, len(ctx.keys.queue_counts))[1], value)
    return _by_task(total)


def _add(total: dict[str, dict[str, int]], key: bytes, at: int, value: bytes) -> None:
    """Add one row's number to `total`; its task and counter are the elements from `at` on."""
    task, at = unpack_text(key, at)
    counter, _ = unpack_text(key, at)
    counters = total.setdefault(task, {})
    counters[counter] = counters.get(counter, 0) + int.from_bytes(value, "little", signed=True)


def _by_task(total: dict[str, dict[str, int]]) -> ByTask:
    return {task: Counts.of(counters) for task, counters in total.items()}


# --- samples


async def sample(tr: Transaction, ctx: Context) -> bool:
    """Keep the sums of now, unless somebody has within `SAMPLE_NS`, and forget what is too old. False: somebody has."""
    now_ns = ctx.now_ns()
    # With a conflict: of several nodes that come at once one is enough.
    newest = await tr.get_range(*ctx.keys.queue_samples_before(now_ns), limit=1)
    if newest and _sampled_ns(ctx, newest[0][0]) > now_ns - SAMPLE_NS:
        return False
    for destination, by_task in (await sums(tr, ctx)).items():
        tr.set(ctx.keys.queue_sample(now_ns, destination), msgspec.msgpack.encode(by_task))
    tr.clear_range(*ctx.keys.queue_samples_before(now_ns - SAMPLES_KEPT_NS))
    return True


async def samples(tr: Transaction, ctx: Context, before_ns: int, after_ns: int) -> list[Sample]:
    """The samples taken in (`after_ns`, `before_ns`], the newest first."""
    begin, _ = ctx.keys.queue_samples_before(before_ns)
    end, _ = ctx.keys.queue_samples_before(after_ns)
    found: dict[int, dict[bytes, ByTask]] = {}
    for key, value in await tr.get_range(begin, end, snapshot=True):
        destination, _ = unpack_bytes(key, len(ctx.keys.queue_samples) + _STAMP_BYTES)
        at_ns = _sampled_ns(ctx, key)
        found.setdefault(at_ns, {})[destination] = msgspec.msgpack.decode(value, type=ByTask)
    return [Sample(at_ns, by_destination) for at_ns, by_destination in found.items()]


_STAMP_BYTES = 9


def _sampled_ns(ctx: Context, key: bytes) -> int:
    start = len(ctx.keys.queue_samples)
    return unpack_stamp(key[start : start + _STAMP_BYTES])


# --- zones


async def pointers(tr: Transaction, ctx: Context, after: bytes, limit: int, destination: bytes = b"") -> list[Aged]:
    """Up to `limit` zones (of one `destination`, or of all) with their pointers, in order, after the zone `after`."""
    keys = ctx.keys
    begin, end = keys.queue_of(keys.queue_pointers, destination) if destination else subspace(keys.queue_pointers)
    if after:
        begin = keys.queue_pointer(after) + b"\x00"
    rows = await tr.get_range(begin, end, limit=limit, snapshot=True)
    start = len(keys.queue_pointers)
    return [Aged(unpack_bytes(key, start)[0], pointer_codec.decode(value)) for key, value in rows]


async def zone_counters(tr: Transaction, ctx: Context, begin: bytes, limit: int) -> list[tuple[bytes, bytes]]:
    """Up to `limit` rows of the counters of all zones, from the key `begin` on (b"": from the first). For `grouped`."""
    first, end = subspace(ctx.keys.queue_counts)
    return await tr.get_range(begin or first, end, limit=limit, snapshot=True)


def grouped(ctx: Context, rows: Iterable[tuple[bytes, bytes]], into: dict[bytes, dict[str, dict[str, int]]]) -> None:
    """Put rows of `zone_counters` into a dictionary by zone, task and counter."""
    start = len(ctx.keys.queue_counts)
    for key, value in rows:
        zone, at = unpack_bytes(key, start)
        _add(into.setdefault(zone, {}), key, at, value)


async def due_since_ns(tr: Transaction, ctx: Context, zone: bytes) -> int | None:
    """Since when the first of what is due in a zone has been due, exactly; what fails counts from when it was enqueued.
    None where nothing is due or failing."""
    keys, now_ns = ctx.keys, ctx.now_ns()
    reads: list[tuple[int, Awaitable[list[tuple[bytes, bytes]]]]] = []
    for priority in PRIORITIES:
        begin, _ = keys.queue_due_range(zone, priority)
        at_once = keys.queue_due_until(zone, priority, 0)
        until = keys.queue_due_until(zone, priority, now_ns)
        for first, last in ((begin, at_once), (at_once, until)):
            reads.append((len(begin) - 1, tr.get_range(first, last, limit=1, snapshot=True)))
    begin, end = keys.queue_failing_range(zone)
    failing = tr.get_range(begin, end, limit=1, snapshot=True)
    known = [due_entry(key, start).since_ns for start, read in reads for key, _ in await read]
    known += [unpack_int(key, len(begin) - 1)[0] for key, _ in await failing]
    return min(known, default=None)


# --- items


async def in_order(
    tr: Transaction, ctx: Context, zone: bytes, priority: int, after: bytes, limit: int
) -> list[tuple[bytes, Place]]:
    """Up to `limit` items of a zone and priority in their order, each with the key of its place, after such a key.

    Raises:
        ValueError: `after` is no such key.
    """
    begin, end = ctx.keys.queue_due_range(zone, priority)
    rows = await tr.get_range(_following(after, begin, end), end, limit=limit, snapshot=True)
    ids = [due_entry(key, len(begin) - 1).id for key, _ in rows]
    return await _read(tr, ctx, [(key, zone, id_) for (key, _), id_ in zip(rows, ids, strict=True)])


async def failing(
    tr: Transaction, ctx: Context, ranged: tuple[bytes, bytes], after: bytes, limit: int
) -> list[tuple[bytes, Place]]:
    """Failing items in a range of the ``failing`` index, longest owed first within a zone, as `in_order`."""
    begin, end = ranged
    rows = await tr.get_range(_following(after, begin, end), end, limit=limit, snapshot=True)
    places = []
    for key, _ in rows:
        zone, at = unpack_bytes(key, len(ctx.keys.queue_failing))
        places.append((key, zone, unpack_bytes(key, unpack_int(key, at)[1])[0]))
    return await _read(tr, ctx, places)


def _following(after: bytes, begin: bytes, end: bytes) -> bytes:
    """The key to go on from. Raises ValueError where `after` is none of the range."""
    if after and not begin <= after < end:
        raise ValueError("the key is not of this range")
    return after + b"\x00" if after else begin


async def _read(tr: Transaction, ctx: Context, places: list[tuple[bytes, bytes, bytes]]) -> list[tuple[bytes, Place]]:
    reads = [tr.get(ctx.keys.queue_item(zone, id_), snapshot=True) for _, zone, id_ in places]
    values = [await read for read in reads]
    return [
        (key, Place(zone, id_, item_codec.decode(value)))
        for (key, zone, id_), value in zip(places, values, strict=True)
        if value is not None
    ]


async def dead(
    tr: Transaction, ctx: Context, ranged: tuple[bytes, bytes], after: bytes, limit: int
) -> list[tuple[bytes, Place]]:
    """Dead letters in a range of theirs, as `failing`."""
    begin, end = ranged
    found = []
    rows = await tr.get_range(_following(after, begin, end), end, limit=limit, snapshot=True)
    for key, value in rows:
        zone, at = unpack_bytes(key, len(ctx.keys.queue_dead))
        found.append((key, Place(zone, unpack_bytes(key, at)[0], item_codec.decode(value))))
    return found
