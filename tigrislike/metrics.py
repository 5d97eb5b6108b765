"""A node's metrics page, in the text that Prometheus reads: what all its processes have counted (`counting.py`), and
what its parts say when they are asked.

Each part is asked once however many look, and for so long only: where one does not answer, what the others say comes
all the same, and `part_answers` says which. What could not be found out is left out, never guessed.

No label holds the name of a bucket or of a key, so anybody may be told these numbers; whoever brings the token of
``--metrics-auth`` is told of buckets too. What other programs do on the same directory (`tigrislike cache warm`) is
theirs to report.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tigrislike import __version__
from tigrislike.bytecache.fills import retrieve
from tigrislike.bytecache.scrub import ScrubState, read_state
from tigrislike.bytecache.statistics import Statistics, statistics
from tigrislike.counting import SERVICE_OPERATIONS, Table
from tigrislike.families import COUNTED_BY_PROCESSES, FAMILIES, LEVELS, NAMING, PREFIX, TOTALS, Family

if TYPE_CHECKING:
    from tigrislike.bytecache import BlockStore
    from tigrislike.bytecache.cache import Usage
    from tigrislike.bytecache.filesystem import Space

T = TypeVar("T")

_LOG = logging.getLogger("tigrislike.metrics")

_STORE_ANSWERS_S: Final = 2.0
_SPARSE: Final = frozenset({"requests", "request_body_bytes", "response_body_bytes", "errors"})
"""Families of which only what has occurred is shown."""

Reading = tuple[str, tuple[str, ...], float]
"""What a gauge shows: its family, the values of its labels, its value."""

Look = Callable[[], Awaitable[Iterable[Reading]]]
"""How a part of the page is found out. May raise whatever it likes, or take for ever."""


class Traffic(NamedTuple):
    """Requests that are over, how many of them failed (status 500 and more), and bytes of bodies."""

    requests: int
    failed: int
    received_bytes: int
    sent_bytes: int


class Snapshot:
    """What one scrape answers with: made at once from the table, completed with what the parts say, then rendered."""

    def __init__(self, table: Table) -> None:
        self._sums = table.sums()
        self._gauges: dict[str, list[tuple[tuple[str, ...], float]]] = {}
        self.gauge("build_info", 1, __version__)

    @property
    def totals(self) -> Statistics:
        """Of the block stores of all processes."""
        return statistics(self._sums.blocks)

    def requests(self) -> Iterator[tuple[str, int, int]]:
        """(operation, status, count) of what occurred."""
        for (operation, status), (count,) in self._sums.of("requests"):
            if count:
                yield operation, int(status), count

    def traffic(self) -> Traffic:
        """What clients asked for; what nodes ask each other, probes and operators are left out."""
        asked = [each for each in self.requests() if each[0] not in SERVICE_OPERATIONS]
        received, sent = (
            sum(cells[0] for (operation,), cells in self._sums.of(name) if operation not in SERVICE_OPERATIONS)
            for name in ("request_body_bytes", "response_body_bytes")
        )
        failed = sum(count for _, status, count in asked if status >= 500)
        return Traffic(sum(count for *_, count in asked), failed, received, sent)

    def gauge(self, name: str, value: float, *labels: str) -> None:
        assert len(labels) == len(FAMILIES[name].labels), name
        self._gauges.setdefault(name, []).append((labels, value))

    def render(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type, in the format that an Accept header asks for."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families(list(self._families())))
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is none
            encode, content_type = choose_encoder("")
        return encode(registry), content_type

    def _families(self) -> Iterator[Metric]:
        totals = self.totals
        blocks: dict[str, list[tuple[tuple[str, ...], float]]] = {}
        for attribute, (name, labels) in TOTALS.items():
            blocks.setdefault(name, []).append((tuple(labels.values()), getattr(totals, attribute)))
        for attribute, name in LEVELS.items():
            blocks[name] = [((), getattr(totals, attribute))]
        for name, family in FAMILIES.items():
            if name == "fill_seconds":
                yield _histogram(name, family, [((), (totals.fill_ns, *totals.fill_times))])
            elif name not in COUNTED_BY_PROCESSES:
                samples = blocks.get(name) or self._gauges.get(name)
                if samples:
                    yield _simple(name, family, samples)
            elif family.kind == "histogram":
                yield _histogram(name, family, self._sums.of(name))
            else:
                counted = ((labels, cells[0]) for labels, cells in self._sums.of(name))
                yield _simple(name, family, (each for each in counted if each[1] or name not in _SPARSE))


def _simple(name: str, family: Family, samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(PREFIX + name, family.help, labels=family.labels)
    for labels, value in samples:
        metric.add_metric(labels, value)
    return metric


def _histogram(name: str, family: Family, samples: Iterable[tuple[tuple[str, ...], Sequence[int]]]) -> Metric:
    metric = HistogramMetricFamily(PREFIX + name, family.help, labels=family.labels)
    for labels, (sum_ns, *counts) in samples:
        bounds = (*map(str, family.bounds), "+Inf")
        metric.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), sum_ns / 1e9)
    return metric


class Metrics:
    """What a node's metrics page is made of: the table of its processes, one process's block store, and further parts.

    The disk is looked at on a thread of its own: one that hangs holds up no other work, and is not asked again until it
    has answered.

    Args:
        looks: how the other parts are found out, by their names.
        naming: likewise, of what names buckets.
    """

    def __init__(
        self,
        table: Table,
        blocks: BlockStore,
        looks: Mapping[str, Look] | None = None,
        naming: Mapping[str, Look] | None = None,
    ) -> None:
        self.table = table
        self._blocks = blocks
        self._looks: dict[str, Look] = {"disk": self._disk, **(looks or {})}
        self._naming = dict(naming or {})
        self._looking: dict[str, asyncio.Task[list[Reading]]] = {}
        # Of its own too, so that whatever else hangs in the process, its counters are told.
        self._renderer = ThreadPoolExecutor(1, "metrics")

    async def page(self, accept: str, *, naming: bool = False) -> tuple[bytes, str]:
        """The page and its content type, in the format that an Accept header asks for. `naming`: buckets may be named.

        Where a part does not answer in time, the counters come all the same, and its gauges do not.
        """
        snapshot = Snapshot(self.table)
        looks = {**self._looks, **self._naming} if naming else self._looks
        for part, readings in zip(looks, await asyncio.gather(*map(self._found, looks, looks.values())), strict=True):
            snapshot.gauge("part_answers", readings is not None, part)
            for name, labels, value in readings or ():
                assert naming or name not in NAMING
                snapshot.gauge(name, value, *labels)
        return await asyncio.get_running_loop().run_in_executor(self._renderer, snapshot.render, accept)

    async def _found(self, part: str, look: Look) -> list[Reading] | None:
        """What a part says; None where it does not answer."""
        looking = self._looking.get(part)
        if looking is None or looking.done():
            looking = self._looking[part] = asyncio.create_task(_listed(look), name=f"metrics: {part}")
            looking.add_done_callback(retrieve)
        try:
            async with asyncio.timeout(_STORE_ANSWERS_S):
                return await asyncio.shield(looking)
        except Exception as error:  # whatever it is, the rest of the page is wanted the more
            _LOG.warning("metrics without those of the %s: %s", part, str(error) or type(error).__name__)
            return None

    async def _disk(self) -> list[Reading]:
        fs, layout = self._blocks.fs, self._blocks.layout
        pids = self.table.pids()

        def look() -> tuple[int, Space, ScrubState]:
            return unlinked_bytes(pids, Path(layout.root)), fs.space(layout.root), read_state(fs, layout)

        unlinked, space, scrub = await _on_own_thread(look)
        return [
            ("unlinked_open_bytes", (), unlinked),
            *space_readings(space, space.reserve(self._blocks.reserve_bytes)),
            *scrub_readings(scrub),
            *usage_readings(await self._blocks.usage()),
        ]


async def _listed(look: Look) -> list[Reading]:
    return list(await look())


def usage_readings(usage: Usage) -> Iterator[Reading]:
    """What the cache holds."""
    yield "cache_used_bytes", (), usage.used_bytes
    yield "cache_pinned_bytes", (), usage.pinned_bytes
    yield "cache_filling_bytes", (), usage.filling_bytes
    yield "cache_blocks", (), usage.blocks
    yield "cache_pinned_blocks", (), usage.pinned_blocks
    yield "cache_ready", (), usage.ready
    if usage.capacity_bytes is not None:
        yield "cache_capacity_bytes", (), usage.capacity_bytes


def space_readings(space: Space, reserve_bytes: int) -> Iterator[Reading]:
    """The filesystem of the blocks."""
    yield "disk_bytes", (), space.total_bytes
    yield "disk_available_bytes", (), space.available_bytes
    yield "disk_reserve_bytes", (), reserve_bytes


def scrub_readings(state: ScrubState) -> Iterator[Reading]:
    """How far the scrubber is."""
    if state.completed_ns:
        yield "scrub_completed_timestamp_seconds", (), state.completed_ns / 1e9
    yield "scrub_progress_ratio", (), state.progress
    yield "scrub_damaged_blocks", (), state.damaged


def _on_own_thread(job: Callable[[], T]) -> asyncio.Future[T]:
    """Run a job on a thread that the end of the process does not wait for."""
    future: Future[T] = Future()

    def run() -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)

    waiting = asyncio.wrap_future(future)
    threading.Thread(target=run, name="metrics-disk", daemon=True).start()
    return waiting


def unlinked_bytes(pids: Iterable[int], root: Path) -> int:
    """Bytes of deleted files under `root` that the processes still hold open, which only their closing sets free.

    The kernel is asked, so that no way of holding a file is forgotten; a file held twice counts once. Blocks for some
    microseconds a descriptor. Processes that may not be looked into are left out.
    """
    prefix = f"{root.absolute()}/"
    sizes: dict[tuple[int, int], int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):  # closed just now
                    path = f"/proc/{pid}/fd/{name}"
                    status = os.stat(path)
                    unlinked = stat.S_ISREG(status.st_mode) and not status.st_nlink
                    if unlinked and os.readlink(path).startswith(prefix):
                        sizes[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(sizes.values())


class _Families(Collector):
    """What prometheus-client asks for families; here they are made beforehand."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
