"""Bringing an older keyspace to the present format, at open and before anything else is done with the store.

Each step is a bounded transaction that can be repeated, and reads the format with a conflict: whoever comes late, in
another process, stops as soon as another one is through. Nothing of an older release may write meanwhile.

- Format 2: every zone of the queue has a pointer and its index entry, and counters by task. In format 1 consumers
  walked the marks, and a zone had one counter.
- Format 3: items that are due at once lie in the order in which they were enqueued, failing ones are listed, each event
  adds to one counter, and destinations have sums.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from .context import Context
from .keyspace import pack_bytes, pack_int, strinc, subspace, unpack_bytes
from .kv.engine import Engine, Transaction
from .overseeing import wake, zones
from .owed import destination_of, due_key
from .records import Cluster, Item
from .records import cluster as cluster_codec
from .records import item as item_codec

FORMAT = 3
"""The keyspace's format version. A newer one is refused, an older one migrated."""

_PAGE = 1000
_MOVED = 200
"""Items whose place in the order one transaction changes."""

Tally = Counter[tuple[str, str]]
"""How many there are of what, by task and counter."""


async def migrate(engine: Engine, ctx: Context) -> Cluster:
    """Migrate what is older than `FORMAT`; the cluster's record then.

    Raises:
        StoreSealed: the store takes no writes.
    """
    sums: dict[bytes, Tally] = {}
    after = b""
    while page := await engine.read(zones, ctx, after, _PAGE):
        for zone in page:
            tally = await _put_in_order(engine, ctx, zone) + await _letters(engine, ctx, zone)
            await engine.transact(_give_pointer, ctx, zone, tally)
            sums.setdefault(destination_of(zone), Counter()).update(tally)
        after = page[-1]
    lettered = await engine.read(_zone_with_letters, ctx, b"")
    while lettered is not None:
        zone = lettered
        if not await engine.read(_is_marked, ctx, zone):  # nothing else is there
            tally = await _letters(engine, ctx, zone)
            await engine.transact(_count_anew, ctx, zone, tally)
            sums.setdefault(destination_of(zone), Counter()).update(tally)
        lettered = await engine.read(_zone_with_letters, ctx, zone)
    return await engine.transact(_set_format, ctx, sums)


async def _put_in_order(engine: Engine, ctx: Context, zone: bytes) -> Tally:
    """Move the zone's items to where they now lie in its order; what there is of them."""
    tally: Tally = Counter()
    begin, end = ctx.keys.queue_item_range(zone)
    start = len(begin) - 1
    while True:
        rows = await engine.read(_rows, begin, end, _MOVED)
        items = [(unpack_bytes(key, start)[0], item_codec.decode(value)) for key, value in rows]
        if items:
            await engine.transact(_move, ctx, zone, items)
        for _, item in items:
            tally[item.task, "enqueued"] += 1
            tally[item.task, "begun"] += bool(item.lease)
            tally[item.task, "failing"] += bool(item.attempts)
        if len(rows) < _MOVED:
            return tally
        begin = rows[-1][0] + b"\x00"


async def _move(tr: Transaction, ctx: Context, zone: bytes, items: list[tuple[bytes, Item]]) -> None:
    if (await _format(tr, ctx)).format >= FORMAT:
        return
    for id_, item in items:
        order = pack_int(item.priority) + pack_int(item.vesting_ns)
        tr.clear(ctx.keys.queue_due + pack_bytes(zone) + order + pack_bytes(id_))
        tr.set(due_key(ctx, zone, id_, item), b"")
        if item.attempts:
            tr.set(ctx.keys.queue_failing_key(zone, item.enqueued_ns, id_), b"")


async def _letters(engine: Engine, ctx: Context, zone: bytes) -> Tally:
    """How many dead letters of each task there are in a zone."""
    found: Tally = Counter()
    begin, end = ctx.keys.queue_dead_range(zone)
    while True:
        rows = await engine.read(_rows, begin, end, _PAGE)
        found.update((item_codec.decode(value).task, "dead") for _, value in rows)
        if len(rows) < _PAGE:
            return found
        begin = rows[-1][0] + b"\x00"


async def _rows(tr: Transaction, begin: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
    return await tr.get_range(begin, end, limit=limit)


async def _zone_with_letters(tr: Transaction, ctx: Context, after: bytes) -> bytes | None:
    """The first zone after `after` that has a dead letter."""
    begin, end = subspace(ctx.keys.queue_dead)
    if after:
        begin = strinc(ctx.keys.queue_dead + pack_bytes(after))
    rows = await tr.get_range(begin, end, limit=1)
    return unpack_bytes(rows[0][0], len(ctx.keys.queue_dead))[0] if rows else None


async def _is_marked(tr: Transaction, ctx: Context, zone: bytes) -> bool:
    return await tr.get(ctx.keys.queue_zone(zone)) is not None


async def _format(tr: Transaction, ctx: Context) -> Cluster:
    raw = await tr.get(ctx.keys.cluster)
    assert raw is not None, "a store is founded before it is migrated"
    return cluster_codec.decode(raw)


async def _give_pointer(tr: Transaction, ctx: Context, zone: bytes, tally: Tally) -> None:
    if (await _format(tr, ctx)).format >= FORMAT:
        return
    await _count_anew(tr, ctx, zone, tally)
    await wake(tr, ctx, zone)


async def _count_anew(tr: Transaction, ctx: Context, zone: bytes, tally: Tally) -> None:
    if (await _format(tr, ctx)).format >= FORMAT:
        return
    tr.clear(ctx.keys.queue_counts + pack_bytes(zone))
    tr.clear_range(*ctx.keys.queue_count_range(zone))
    for (task, counter), number in tally.items():
        if number:
            tr.add(ctx.keys.queue_count(zone, task, counter), number)


async def _set_format(tr: Transaction, ctx: Context, sums: dict[bytes, Tally]) -> Cluster:
    """Everything is in place. Nothing but migrations has run so far, so that what they have found stands."""
    cluster = await _format(tr, ctx)
    if cluster.format < FORMAT:
        tr.clear_range(*subspace(ctx.keys.queue_sums))
        for destination, tally in sums.items():
            for (task, counter), number in tally.items():
                if number:
                    tr.add(ctx.keys.queue_sum(destination, task, counter, 0), number)
        cluster = msgspec.structs.replace(cluster, format=FORMAT)
        tr.set(ctx.keys.cluster, cluster_codec.encode(cluster))
    return cluster
