"""Caches and throughput of the nodes, now and over time; and how far shadows were adopted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from tigrislike.admin.desk import AdminError
from tigrislike.admin.history import History, Point

from ..page import Context, Page, Visit
from ..plots import MAX_SERIES, Plot, Series, plot
from ..rendering import rate, size

_SPANS: Final = {"3600": "1 hour", "10800": "3 hours", "86400": "24 hours", "259200": "3 days"}

Measure = tuple[str, str, Callable[[Point], float | None], Callable[[float | None], str], int]
"""Of a plot: its id, title, value of a point, how a value is written, and whether its axis counts in 10s or 2s."""


def _bytes_rate(value: float | None) -> str:
    return size(value) if value is None else f"{size(value)}/s"


def _percent(value: float | None) -> str:
    return rate(value) if value is None else f"{value:.0f}%"


def _hit_rate(point: Point) -> float | None:
    if point.hits is None or point.misses is None or not point.hits + point.misses:
        return None
    return 100 * point.hits / (point.hits + point.misses)


_OF_CACHES: Final[tuple[Measure, ...]] = (
    ("used", "Bytes in the cache", lambda point: point.cache_used_bytes, size, 2),
    ("hit-rate", "Blocks found on the node's disk, of those asked for", _hit_rate, _percent, 100),
    ("misses", "Blocks asked for and not on the node's disk", lambda point: point.misses, rate, 10),
    ("fills", "Bytes fetched into the cache", lambda point: point.fill_bytes, _bytes_rate, 2),
    ("evicted", "Bytes evicted from the cache", lambda point: point.evicted_bytes, _bytes_rate, 2),
)
_OF_TRAFFIC: Final[tuple[Measure, ...]] = (
    ("requests", "Requests", lambda point: point.requests, rate, 10),
    ("failed", "Requests that failed (status 500 and above)", lambda point: point.failed, rate, 10),
    ("sent", "Bytes sent to clients", lambda point: point.sent_bytes, _bytes_rate, 2),
    ("received", "Bytes received from clients", lambda point: point.received_bytes, _bytes_rate, 2),
)


async def caches(visit: Visit) -> Context:
    return {"caches": await visit.call("caches"), **await _plots(visit, _OF_CACHES)}


async def throughput(visit: Visit) -> Context:
    return await _plots(visit, _OF_TRAFFIC)


async def _plots(visit: Visit, measures: Iterable[Measure]) -> Context:
    span, node = visit.query.get("span", "3600"), visit.query.get("node")
    if span not in _SPANS:
        raise AdminError("InvalidArgument", "the time is one of those that the form offers")
    history: History = await visit.call("history", span_s=span, node=node)
    places = (await visit.desk.names()).nodes
    return {
        "plots": [_plot(history, measure) for measure in measures],
        "span": span,
        "spans": _SPANS,
        "node": node or "",
        "nodes": sorted((each.region, each.node.hex()) for each, _ in places),
        "more": max(0, len(history.nodes) - MAX_SERIES),
    }


def _plot(history: History, measure: Measure) -> Plot:
    id_, title, value, show, base = measure
    series = [
        Series(f"{each.region} {each.node[:8]}", [(point.at, value(point)) for point in each.points])
        for each in history.nodes
    ]
    return plot(id_, title, series, history.begin, history.end, show, base=base)


async def migrations(visit: Visit) -> Context:
    return {"migrations": (await visit.call("migrations")).migrations}


PAGES = [
    Page("GET", "/caches", "caches.html", caches, nav="Caches"),
    Page("GET", "/throughput", "throughput.html", throughput, nav="Throughput"),
    Page("GET", "/migrations", "migrations.html", migrations, nav="Migrations"),
]
