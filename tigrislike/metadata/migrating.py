"""Bringing an older keyspace to the present format, at open and before anything else is done with the store.

Each step is a bounded transaction that can be repeated, and reads the format with a conflict: whoever comes late, in
another process, stops as soon as another one is through. Nothing of an older release may write meanwhile.

- Format 2: every zone of the queue has a pointer and its index entry, and counters by task. In format 1 consumers
  walked the marks, and a zone had one counter.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from .context import Context
from .keyspace import pack_bytes
from .kv.engine import Engine, Transaction
from .overseeing import wake, zones
from .owed import count
from .records import Cluster
from .records import cluster as cluster_codec
from .records import item as item_codec

FORMAT = 2
"""The keyspace's format version. A newer one is refused, an older one migrated."""

_PAGE = 1000


async def migrate(engine: Engine, ctx: Context) -> Cluster:
    """Migrate what is older than `FORMAT`; the cluster's record then.

    Raises:
        StoreSealed: the store takes no writes.
    """
    after = b""
    while page := await engine.read(zones, ctx, after, _PAGE):
        for zone in page:
            tasks = [await _tasks(engine, ctx, begin, end) for begin, end in _families(ctx, zone)]
            await engine.transact(_give_pointer, ctx, zone, *tasks)
        after = page[-1]
    return await engine.transact(_set_format, ctx)


def _families(ctx: Context, zone: bytes) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
    return ctx.keys.queue_item_range(zone), ctx.keys.queue_dead_range(zone)


async def _tasks(engine: Engine, ctx: Context, begin: bytes, end: bytes) -> Counter[str]:
    """How many items of each task there are in a range."""
    found: Counter[str] = Counter()
    while True:
        rows = await engine.read(_rows, begin, end)
        found.update(item_codec.decode(value).task for _, value in rows)
        if len(rows) < _PAGE:
            return found
        begin = rows[-1][0] + b"\x00"


async def _rows(tr: Transaction, begin: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
    return await tr.get_range(begin, end, limit=_PAGE)


async def _format(tr: Transaction, ctx: Context) -> Cluster:
    raw = await tr.get(ctx.keys.cluster)
    assert raw is not None, "a store is founded before it is migrated"
    return cluster_codec.decode(raw)


async def _give_pointer(tr: Transaction, ctx: Context, zone: bytes, waiting: Counter[str], dead: Counter[str]) -> None:
    if (await _format(tr, ctx)).format >= FORMAT:
        return
    tr.clear(ctx.keys.queue_counts + pack_bytes(zone))
    tr.clear_range(*ctx.keys.queue_count_range(zone))
    for task in waiting | dead:
        count(tr, ctx, zone, task, waiting=waiting[task], enqueued=waiting[task], dead=dead[task])
    await wake(tr, ctx, zone)


async def _set_format(tr: Transaction, ctx: Context) -> Cluster:
    cluster = await _format(tr, ctx)
    if cluster.format < FORMAT:
        cluster = msgspec.structs.replace(cluster, format=FORMAT)
        tr.set(ctx.keys.cluster, cluster_codec.encode(cluster))
    return cluster
