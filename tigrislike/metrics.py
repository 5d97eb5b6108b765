"""What a node counts, over all its processes, in the text that Prometheus reads.

Every process counts in a row of one table, in memory that the supervisor makes before it forks. A row belongs to a
role: who takes the place of a process that died counts on in its row. So sums are exact at any time, whichever worker
is asked, and no counter ever goes back while the node runs; it starts at zero with the node.

No label holds the name of a bucket or of a key, so anybody may be told these numbers. What other programs do on the
same directory (`tigrislike cache warm`) is theirs to report.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tigrislike import __version__
from tigrislike.bytecache.errors import BytesError
from tigrislike.bytecache.fills import retrieve
from tigrislike.bytecache.scrub import ScrubState, read_state
from tigrislike.bytecache.statistics import CELLS, COUNTED, FILL_BOUNDS_S, GAUGES, Counters, Statistics, statistics

if TYPE_CHECKING:
    from tigrislike.bytecache import BlockStore
    from tigrislike.bytecache.cache import Usage
    from tigrislike.bytecache.filesystem import Space
    from tigrislike.logs import Record

T = TypeVar("T")

_LOG = logging.getLogger("tigrislike.metrics")

NO_OPERATION: Final = "none"
"""The operation of what is no S3 request that could be told apart: garbage, unknown paths."""
SERVICE_OPERATIONS: Final = (
    "Healthz",
    "Readyz",
    "Metrics",
    "CreateStorage",
    "PeerRead",
    "PeerPing",
    "PeerCopy",
    "PeerHome",
    "Admin",
)
STATUSES: Final = (
    0, 200, 201, 204, 206, 301, 303, 304, 307, 400, 403, 404, 405, 408, 409, 411, 412, 413, 415, 416, 417, 431, 500,
    501, 503, 505, 507,
)  # fmt: skip
"""0 is a request whose client went away before it was answered. What is not listed counts as 500."""

_STORE_ANSWERS_S: Final = 2.0
_PID: Final = 0
_COUNTERS: Final = slice(1, 1 + CELLS)
_SENDFILE_BYTES: Final = _COUNTERS.stop
_SENDFILE_COLD: Final = _COUNTERS.stop + 1
_REUSED: Final = {"fresh": _COUNTERS.stop + 2, "stale": _COUNTERS.stop + 3}
_REQUESTS: Final = _COUNTERS.stop + 4
_PER_OPERATION: Final = 2 + len(STATUSES)
"""Bytes received, bytes sent, and requests by status."""
_GAUGE_CELLS: Final = tuple(1 + COUNTED.index(name) for name in sorted(GAUGES))


class Table:
    """A row of 64-bit integers for each process of a node. Each row has one writer, so that none waits for a lock.

    Args:
        processes: how many rows.
        operations: names of the operations that requests are told apart by.
    """

    def __init__(self, processes: int, operations: Iterable[str]) -> None:
        self.operations = (NO_OPERATION, *SERVICE_OPERATIONS, *operations)
        self._width = _REQUESTS + _PER_OPERATION * len(self.operations)
        self._cells = memoryview(mmap.mmap(-1, 8 * self._width * processes)).cast("q")
        self._processes = processes
        self.since_ns = time.time_ns()

    def row(self, index: int) -> Row:
        """The row of this process. To be called in the process, which counts in it from now on."""
        cells = self._row(index)
        cells[_PID] = os.getpid()
        return Row(cells, self.operations)

    def absent(self, index: int) -> None:
        """The process of this row is gone: what it held it holds no longer; what it counted stays."""
        cells = self._row(index)
        cells[_PID] = 0
        for gauge in _GAUGE_CELLS:
            cells[gauge] = 0

    def pids(self) -> list[int]:
        """The processes that count now."""
        return [pid for index in range(self._processes) if (pid := self._row(index)[_PID])]

    def sums(self) -> list[int]:
        """Each column's sum over all rows."""
        return [sum(column) for column in zip(*(self._row(i).tolist() for i in range(self._processes)), strict=True)]

    def _row(self, index: int) -> memoryview:
        return self._cells[index * self._width : (index + 1) * self._width]


class Row:
    """Where one process counts.

    Attributes:
        counters: for its block store.
    """

    def __init__(self, cells: memoryview, operations: Sequence[str]) -> None:
        self.counters = Counters(cells[_COUNTERS])
        self._cells = cells
        self._offsets = {name: _REQUESTS + _PER_OPERATION * at for at, name in enumerate(operations)}
        self._statuses = {status: 2 + at for at, status in enumerate(STATUSES)}
        self._unknown_status = self._statuses[500]
        # What the processes before this one in its role have counted.
        self._sendfile_bytes, self._sendfile_cold = cells[_SENDFILE_BYTES], cells[_SENDFILE_COLD]

    def request(self, record: Record) -> None:
        """Count a request that is over, from its access record. For the event loop only."""
        _, _, _, _, _, status, sent, received, _, notes = record
        offset = self._offsets.get(notes.get("operation", NO_OPERATION), _REQUESTS)
        cells = self._cells
        cells[offset] += received
        cells[offset + 1] += sent
        cells[offset + self._statuses.get(status, self._unknown_status)] += 1
        if (reused := notes.get("reused")) is not None:
            cells[_REUSED[reused]] += 1

    def sendfile(self, sent_bytes: int, cold: int) -> None:
        """Say how much this process has sent by sendfile so far, and how often it had to wait for the disk."""
        self._cells[_SENDFILE_BYTES] = self._sendfile_bytes + sent_bytes
        self._cells[_SENDFILE_COLD] = self._sendfile_cold + cold


# Each field of `Statistics` that is a total: (name without prefix and suffix, help, labels).
_TOTALS: Final[Mapping[str, tuple[str, str, Mapping[str, str]]]] = {
    "bytes_written": ("blocks_written_bytes", "Data bytes that uploads wrote to blocks.", {}),
    "bytes_read": ("blocks_read_bytes", "Data bytes of blocks handed to readers.", {}),
    "hits": ("block_hits", "Blocks asked for and found on this node's disk.", {}),
    "hits_home": ("block_hits_by_place", "The same by where on the disk they were.", {"place": "home"}),
    "hits_cache": ("block_hits_by_place", "", {"place": "cache"}),
    "hits_incoming": ("block_hits_by_place", "", {"place": "incoming"}),
    "misses": ("block_misses", "Blocks asked for and not on this node's disk.", {}),
    "fills": ("fills", "Fetches of a block from a source, by how they ended.", {"result": "kept"}),
    "fills_failed": ("fills", "", {"result": "failed"}),
    "fills_dropped": ("fills", "", {"result": "deleted"}),
    "fills_joined": ("fills_joined", "Readers that waited for a fill that somebody else had begun.", {}),
    "fill_bytes": ("fill_bytes", "Bytes received from sources.", {}),
    "passed_through": ("passed_through", "Fetches from a source that were not kept.", {}),
    "passed_through_bytes": ("passed_through_bytes", "Bytes fetched from a source and not kept.", {}),
    "evicted_capacity": ("evictions", "Blocks dropped from the cache, by reason.", {"reason": "capacity"}),
    "evicted_reserve": ("evictions", "", {"reason": "reserve"}),
    "evicted_request": ("evictions", "", {"reason": "request"}),
    "evicted_deleted": ("evictions", "", {"reason": "deleted"}),
    "evicted_corrupt": ("evictions", "", {"reason": "corrupt"}),
    "evicted_bytes": ("evicted_bytes", "Bytes of files dropped from the cache.", {}),
    "verify_failures": ("verify_failures", "Blocks or chunks that were not what was written.", {}),
    "verified_bytes": ("verified_bytes", "Bytes compared with their checksums before they were served.", {}),
    "healed": ("healed", "Damaged blocks that were replaced from a source.", {}),
    "corrupt_unhealed": (
        "corrupt_unhealed",
        "Reads and scrubs that met a damaged block nobody else has. Data is lost: page somebody.",
        {},
    ),
    "missing_unhealed": (
        "missing_unhealed",
        "Reads that met a block which is nowhere. Data is lost, or its object was deleted long ago: page somebody.",
        {},
    ),
    "scrubbed_blocks": ("scrubbed_blocks", "Blocks verified by the scrubber.", {}),
    "scrubbed_bytes": ("scrubbed_bytes", "Bytes of files verified by the scrubber.", {}),
}
_GAUGES: Final[Mapping[str, tuple[str, str]]] = {
    "open_blocks": ("open_blocks", "Block files that readers hold open."),
    "uploads": ("uploads", "Uploads that hold a directory: receiving, or not yet published."),
    "in_flight_bytes": ("upload_in_flight_bytes", "Received by uploads and not yet on disk."),
    "filling_bytes": ("fill_memory_bytes", "Memory held by fills."),
}


class Traffic(NamedTuple):
    """Requests that are over, how many of them failed (status 500 and more), and bytes of bodies."""

    requests: int
    failed: int
    received_bytes: int
    sent_bytes: int


class Snapshot:
    """What one scrape answers with: made at once from the table, completed with what the store says, then rendered.

    What could not be found out is left out, never guessed.
    """

    def __init__(self, table: Table) -> None:
        self._operations = table.operations
        self._sums = table.sums()
        self._gauges: list[Metric] = []

    @property
    def totals(self) -> Statistics:
        """Of the block stores of all processes."""
        return statistics(self._sums[_COUNTERS])

    def requests(self) -> Iterator[tuple[str, int, int]]:
        """(operation, status, count) of what occurred."""
        for operation, sums in self._by_operation():
            for status, count in zip(STATUSES, sums[2:], strict=True):
                if count:
                    yield operation, status, count

    def traffic(self) -> Traffic:
        """What clients asked for; what nodes ask each other, probes and operators are left out."""
        requests = failed = received = sent = 0
        for operation, sums in self._by_operation():
            if operation in SERVICE_OPERATIONS:
                continue
            received += sums[0]
            sent += sums[1]
            requests += sum(sums[2:])
            failed += sum(count for status, count in zip(STATUSES, sums[2:], strict=True) if status >= 500)
        return Traffic(requests, failed, received, sent)

    def gauge(self, name: str, help: str, value: float, **labels: str) -> None:
        family = GaugeMetricFamily(f"tigrislike_{name}", help, labels=list(labels))
        family.add_metric(list(labels.values()), value)
        self._gauges.append(family)

    def usage(self, usage: Usage) -> None:
        """What the cache holds."""
        self.gauge("cache_used_bytes", "Bytes of files in the cache tree.", usage.used_bytes)
        self.gauge("cache_pinned_bytes", "Bytes of files in the cache tree that are pinned.", usage.pinned_bytes)
        self.gauge("cache_filling_bytes", "Bytes reserved for blocks that are being fetched.", usage.filling_bytes)
        self.gauge("cache_blocks", "Blocks in the cache tree.", usage.blocks)
        self.gauge("cache_pinned_blocks", "Blocks in the cache tree that are pinned.", usage.pinned_blocks)
        self.gauge("cache_ready", "Whether the cache keeps and evicts: 0 until it is reconciled.", usage.ready)
        if usage.capacity_bytes is not None:
            self.gauge("cache_capacity_bytes", "Most bytes of files the cache tree may hold.", usage.capacity_bytes)

    def space(self, space: Space) -> None:
        """The filesystem of the blocks."""
        self.gauge("disk_bytes", "Size of the filesystem of the blocks.", space.total_bytes)
        self.gauge("disk_available_bytes", "Bytes free on the filesystem of the blocks.", space.available_bytes)

    def scrub(self, state: ScrubState) -> None:
        """How far the scrubber is."""
        if state.completed_ns:
            self.gauge(
                "scrub_completed_timestamp_seconds", "When every block was last verified.", state.completed_ns / 1e9
            )
        self.gauge("scrub_progress_ratio", "How much of its present pass the scrubber has done.", state.progress)
        self.gauge("scrub_damaged_blocks", "Damaged blocks of the present pass that stay so.", state.damaged)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type, in the format that an Accept header asks for."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families(list(self._families())))
        encode, content_type = choose_encoder(accept)
        return encode(registry), content_type

    def _by_operation(self) -> Iterator[tuple[str, list[int]]]:
        for at, operation in enumerate(self._operations):
            offset = _REQUESTS + _PER_OPERATION * at
            yield operation, self._sums[offset : offset + _PER_OPERATION]

    def _families(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("tigrislike_build_info", "The version that runs.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build

        requests = CounterMetricFamily(
            "tigrislike_requests",
            "Requests that are over, by S3 operation and HTTP status (0: the client went away before the answer).",
            labels=["operation", "status"],
        )
        for operation, status, count in self.requests():
            requests.add_metric([operation, str(status)], count)
        yield requests
        for at, name, what in (
            (0, "request_body_bytes", "Bytes of request bodies received."),
            (1, "response_body_bytes", "Bytes of response bodies sent."),
        ):
            family = CounterMetricFamily(f"tigrislike_{name}", what, labels=["operation"])
            for operation, sums in self._by_operation():
                if sums[at]:
                    family.add_metric([operation], sums[at])
            yield family
        yield CounterMetricFamily(
            "tigrislike_bounded_hits",
            "Reads of bounded buckets answered within the bound, without the database.",
            self._sums[_REUSED["fresh"]],
        )
        yield CounterMetricFamily(
            "tigrislike_bounded_stale",
            "Reads of bounded buckets answered beyond the bound, for the database was out of reach.",
            self._sums[_REUSED["stale"]],
        )
        yield CounterMetricFamily(
            "tigrislike_sendfile_bytes", "Bytes sent from files without a copy.", self._sums[_SENDFILE_BYTES]
        )
        yield CounterMetricFamily(
            "tigrislike_sendfile_cold",
            "How often sending waited for the disk, for the pages were not in memory.",
            self._sums[_SENDFILE_COLD],
        )

        totals = self.totals
        families: dict[str, CounterMetricFamily] = {}
        for attribute, (name, what, labels) in _TOTALS.items():
            if name not in families:
                families[name] = CounterMetricFamily(f"tigrislike_{name}", what, labels=list(labels))
            families[name].add_metric(list(labels.values()), getattr(totals, attribute))
        yield from families.values()
        yield _fill_seconds(totals)
        for attribute, (name, what) in _GAUGES.items():
            yield GaugeMetricFamily(f"tigrislike_{name}", what, getattr(totals, attribute))
        yield from self._gauges


class Metrics:
    """What a node's metrics page is made of: the table of its processes, and one process's block store.

    The disk is looked at once however many ask, and on a thread of its own: one that hangs holds up no other work, and
    is not asked again until it has answered.
    """

    def __init__(self, table: Table, blocks: BlockStore) -> None:
        self.table = table
        self._blocks = blocks
        self._looking: asyncio.Task[tuple[int, Space, ScrubState, Usage]] | None = None
        # Of its own too, so that whatever else hangs in the process, its counters are told.
        self._renderer = ThreadPoolExecutor(1, "metrics")

    async def page(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type, in the format that an Accept header asks for.

        Where the disk or the index does not answer in time, the counters come all the same, and the gauges do not.
        """
        snapshot = Snapshot(self.table)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="metrics")
            self._looking.add_done_callback(retrieve)
        try:
            async with asyncio.timeout(_STORE_ANSWERS_S):
                unlinked, space, scrub, usage = await asyncio.shield(self._looking)
        except (BytesError, OSError, TimeoutError) as error:
            _LOG.warning("metrics without gauges: %s", str(error) or type(error).__name__)
        else:
            snapshot.gauge("unlinked_open_bytes", "Bytes of deleted blocks that are still being read.", unlinked)
            snapshot.space(space)
            snapshot.scrub(scrub)
            snapshot.usage(usage)
        return await asyncio.get_running_loop().run_in_executor(self._renderer, snapshot.render, accept)

    async def _look(self) -> tuple[int, Space, ScrubState, Usage]:
        """What the gauges show."""
        fs, layout = self._blocks.fs, self._blocks.layout
        pids = self.table.pids()

        def look() -> tuple[int, Space, ScrubState]:
            return unlinked_bytes(pids, Path(layout.root)), fs.space(layout.root), read_state(fs, layout)

        return *await _on_own_thread(look), await self._blocks.usage()


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


def _fill_seconds(totals: Statistics) -> HistogramMetricFamily:
    family = HistogramMetricFamily("tigrislike_fill_seconds", "Time that fetches of a block took which were kept.")
    below = 0
    buckets = []
    for bound, count in zip((*map(str, FILL_BOUNDS_S), "+Inf"), totals.fill_times, strict=True):
        below += count
        buckets.append((bound, below))
    family.add_metric([], buckets, totals.fill_ns / 1e9)
    return family


class _Families(Collector):
    """What prometheus-client asks for families; here they are made beforehand."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
