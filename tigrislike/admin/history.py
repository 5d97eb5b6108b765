"""Cache and throughput of nodes over time, from what they noted in the database (`metadata.history`).

Rates are differences between two samples of a node. A counter that starts anew with its node is told from one that
goes back by when the node started; across a gap (the node was down, or could not reach the database) there is no rate,
and a series says so by a point without values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from tigrislike.metadata import history
from tigrislike.metadata.records import NodeSample

from .desk import Desk

_NS: Final = 1_000_000_000
_ROWS: Final = 500
_GAP: Final = 2.5
"""Samples further apart than so many steps have a gap between them."""

RATED: Final = (
    "requests",
    "failed",
    "received_bytes",
    "sent_bytes",
    "hits",
    "misses",
    "fills",
    "fill_bytes",
    "evicted_bytes",
)
"""Fields of a `Point` that are rates a second."""


class Point(Struct, frozen=True, kw_only=True):
    """A node at one moment (`at`, Unix seconds). Everything but the cache's bytes is a rate a second since the point
    before; null where there is none."""

    at: float
    cache_used_bytes: int | None = None
    cache_capacity_bytes: int | None = None
    requests: float | None = None
    failed: float | None = None
    received_bytes: float | None = None
    sent_bytes: float | None = None
    hits: float | None = None
    misses: float | None = None
    fills: float | None = None
    fill_bytes: float | None = None
    evicted_bytes: float | None = None


class NodeHistory(Struct, frozen=True):
    """One node's points, the oldest first."""

    node: str
    region: str
    points: list[Point]


class History(Struct, frozen=True):
    """Every node that noted something between `begin` and `end` (Unix seconds), about every `step_s` seconds."""

    begin: float
    end: float
    step_s: int
    nodes: list[NodeHistory]


async def over_time(desk: Desk, *, span_s: int = 3600, node: str | None = None) -> History:
    """The last `span_s` seconds, of all nodes or of one, at the finest resolution that is kept for so long."""
    coarsest = history.RESOLUTIONS[-1]
    step_s = next((each.step_s for each in history.RESOLUTIONS if each.kept_s >= span_s), coarsest.step_s)
    end_ns = desk.now_ns()
    begin_ns = end_ns - span_s * _NS
    found: dict[bytes, list[NodeSample]] = {}
    after = b""
    engine, ctx = desk.metadata.engine.background, desk.metadata.context
    while True:
        page = await engine.read(history.samples, ctx, step_s, after, begin_ns - step_s * _NS, end_ns, _ROWS)
        for _, node_id, sample in page:
            if node is None or node_id.hex() == node:
                found.setdefault(node_id, []).append(sample)
        if len(page) < _ROWS:
            break
        after = page[-1][0]
        await asyncio.sleep(0)
    names = await desk.names()
    rows = [
        NodeHistory(
            node_id.hex(),
            names.place(node_id).region,
            [point for point in points_of(samples, step_s) if point.at * _NS >= begin_ns],
        )
        for node_id, samples in found.items()
    ]
    return History(begin_ns / _NS, end_ns / _NS, step_s, sorted(rows, key=lambda row: (row.region, row.node)))


def points_of(samples: Iterable[NodeSample], step_s: float) -> Iterator[Point]:
    """What samples of one node, the oldest first, say of the times between them."""
    before: NodeSample | None = None
    for sample in samples:
        if before is not None and sample.at_ns - before.at_ns > _GAP * step_s * _NS:
            yield Point(at=(before.at_ns + sample.at_ns) / 2 / _NS)
            before = None
        yield Point(
            at=sample.at_ns / _NS,
            cache_used_bytes=sample.cache_used,
            cache_capacity_bytes=sample.cache_capacity if sample.cache_capacity >= 0 else None,
            **_rates(before, sample),
        )
        before = sample


def _rates(before: NodeSample | None, sample: NodeSample) -> dict[str, float]:
    """A node that started since `before` counts from its start: what it had counted until it ended is not known."""
    if before is None:
        return {}
    anew = sample.since_ns != before.since_ns
    elapsed_ns = sample.at_ns - (max(before.at_ns, sample.since_ns) if anew else before.at_ns)
    if elapsed_ns <= 0:
        return {}
    rates = {}
    for name in RATED:
        counted = getattr(sample, name) - (0 if anew else getattr(before, name))
        rates[name] = max(0, counted) * _NS / elapsed_ns
    return rates
