"""What the processes of a node count, in memory that outlives each of them.

Every process counts in a row of one table, in memory that the supervisor makes before it forks. A row belongs to a
role: who takes the place of a process that died counts on in its row. So sums are exact at any time, whichever worker
is asked, and no counter ever goes back while the node runs; it starts at zero with the node.

What is counted where it happens (requests, errors, transactions) is there at once. What other parts count for
themselves (sendfile, origins, tasks) is told about once a second, so that of these a process that is killed takes its
last second with it.
"""

from __future__ import annotations

import mmap
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tigrislike.bytecache.statistics import CELLS, COUNTED, GAUGES, Counters
from tigrislike.families import COUNTED_BY_PROCESSES, FAMILIES

if TYPE_CHECKING:
    from tigrislike.logs import Record

Column = tuple[str, ...]
"""A family and the values of its labels."""

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
    "PeerPresence",
    "Admin",
    "Console",
)
STATUSES: Final = (
    0, 200, 201, 204, 206, 301, 303, 304, 307, 400, 403, 404, 405, 408, 409, 411, 412, 413, 415, 416, 417, 431, 500,
    501, 503, 505, 507,
)  # fmt: skip
"""0 is a request whose client went away before it was answered. What is not listed counts as 500."""

OTHER: Final = "other"
"""The label of what is not among those that are told apart."""

REFUSALS: Final = ("connections", "requests", "key", "memory")
RESULTS: Final = ("done", "failed", "ambiguous", "lost", "given_back")
ORIGIN_FAILURES: Final = ("missing", "changed", "refused", "unavailable", "broken")
DATABASE_KINDS: Final = ("read", "write", "background")
DATABASE_ERRORS: Final = ("unavailable", "ambiguous", "retryable", "sealed", OTHER)
PROCESSES: Final = ("agent", "worker")
CLASSES: Final = ("read", "write", "list", "delete", "peer", "service", OTHER)

_WRITES: Final = frozenset(
    {"PutObject", "PostObject", "CopyObject", "UploadPart", "UploadPartCopy", "CompleteMultipartUpload"}
)
_REUSED: Final = {"fresh": "bounded_hits", "stale": "bounded_stale"}
_STATUS_CELLS: Final = slice(2, 2 + len(STATUSES))
_PER_OPERATION: Final = _STATUS_CELLS.stop
"""Bytes received, bytes sent, and requests by status."""
_PID: Final = 0
_BLOCKS: Final = slice(1, 1 + CELLS)


def class_of(operation: str) -> str:
    """The class by whose durations an operation's are counted."""
    if operation in ("GetObject", "HeadObject"):
        return "read"
    if operation in _WRITES:
        return "write"
    for prefix, name in (("List", "list"), ("Delete", "delete"), ("Peer", "peer")):
        if operation.startswith(prefix):
            return name
    return "service" if operation in SERVICE_OPERATIONS else OTHER


class Table:
    """A row of 64-bit integers for each process of a node. Each row has one writer, so that none waits for a lock.

    A counter or gauge is one cell; a histogram is a sum in nanoseconds and then a cell for each of its classes.

    Args:
        processes: how many rows.
        operations: names of the operations that requests are told apart by.
        codes, tasks: likewise of errors, and of kinds of work owed.
    """

    def __init__(
        self, processes: int, operations: Iterable[str], codes: Iterable[str] = (), tasks: Iterable[str] = ()
    ) -> None:
        self.operations = (NO_OPERATION, *SERVICE_OPERATIONS, *operations)
        self.columns: dict[Column, int] = {}
        width = _BLOCKS.stop
        for operation in self.operations:
            self.columns["request_body_bytes", operation] = width
            self.columns["response_body_bytes", operation] = width + 1
            for at, status in enumerate(STATUSES, width + _STATUS_CELLS.start):
                self.columns["requests", operation, str(status)] = at
            width += _PER_OPERATION
        tasks = (*tasks, OTHER)
        labels: dict[str, Sequence[tuple[str, ...]]] = {
            "request_seconds": [(name,) for name in CLASSES],
            "errors": [(code,) for code in (*codes, OTHER)],
            "refusals": [(reason,) for reason in REFUSALS],
            "server_log_lines": [("taken",), ("dropped",)],
            "database_seconds": [(kind,) for kind in DATABASE_KINDS],
            "database_errors": [(error,) for error in DATABASE_ERRORS],
            "event_loop_lag_seconds": [(process,) for process in PROCESSES],
            "task_runs": [(task, result) for task in tasks for result in RESULTS],
            "task_delay_seconds": [(task,) for task in tasks],
            "origin_request_failures": [(kind,) for kind in ORIGIN_FAILURES],
        }
        present = {column[0] for column in self.columns}
        for name in sorted(COUNTED_BY_PROCESSES - present):
            for values in labels.get(name, [()]):
                self.columns[name, *values] = width
                width += 1 + (len(FAMILIES[name].bounds) + 1 if FAMILIES[name].kind == "histogram" else 0)
        self._families: dict[str, list[Column]] = {}
        for column in self.columns:
            self._families.setdefault(column[0], []).append(column)
        self._width = width
        self._cells = memoryview(mmap.mmap(-1, 8 * width * processes)).cast("q")
        self._processes = processes
        self.since_ns = time.time_ns()
        self._levels = [_BLOCKS.start + COUNTED.index(name) for name in GAUGES]
        self._levels += [at for (name, *_), at in self.columns.items() if FAMILIES[name].kind == "gauge"]

    def row(self, index: int) -> Row:
        """The row of this process. To be called in the process, which counts in it from now on."""
        cells = self._row(index)
        cells[_PID] = os.getpid()
        return Row(cells, self.columns)

    def absent(self, index: int) -> None:
        """The process of this row is gone: what it held it holds no longer; what it counted stays."""
        cells = self._row(index)
        cells[_PID] = 0
        for level in self._levels:
            cells[level] = 0

    def pids(self) -> list[int]:
        """The processes that count now."""
        return [pid for index in range(self._processes) if (pid := self._row(index)[_PID])]

    def sums(self) -> Sums:
        """Each column's sum over all rows."""
        rows = [self._row(index).tolist() for index in range(self._processes)]
        return Sums(self.columns, self._families, [sum(column) for column in zip(*rows, strict=True)])

    def _row(self, index: int) -> memoryview:
        return self._cells[index * self._width : (index + 1) * self._width]


class Sums:
    """What all processes have counted, at one moment."""

    def __init__(
        self, columns: Mapping[Column, int], families: Mapping[str, Sequence[Column]], cells: Sequence[int]
    ) -> None:
        self._columns = columns
        self._families = families
        self._cells = cells

    @property
    def blocks(self) -> Sequence[int]:
        """Of the block stores, for `bytecache.statistics`."""
        return self._cells[_BLOCKS]

    def of(self, name: str) -> Iterator[tuple[tuple[str, ...], Sequence[int]]]:
        """The label values and cells of a family: one of a counter or gauge; of a histogram its sum in nanoseconds and
        then its classes, not cumulated."""
        family = FAMILIES[name]
        width = 1 + (len(family.bounds) + 1 if family.kind == "histogram" else 0)
        for column in self._families[name]:
            at = self._columns[column]
            yield column[1:], self._cells[at : at + width]


class Row:
    """Where one process counts.

    Attributes:
        counters: for its block store.
    """

    def __init__(self, cells: memoryview, columns: Mapping[Column, int]) -> None:
        self.counters = Counters(cells[_BLOCKS])
        self._cells = cells
        self._columns = columns
        # What the processes before this one in its role have counted.
        self._before = cells.tolist()
        timed = {name: columns["request_seconds", name] for name in CLASSES}
        self._operations = {
            column[1]: (at, timed[class_of(column[1])])
            for column, at in columns.items()
            if column[0] == "request_body_bytes"
        }
        self._no_operation = self._operations[NO_OPERATION]
        self._bounds_ns = [int(bound * 1e9) for bound in FAMILIES["request_seconds"].bounds]
        self._statuses = {status: at for at, status in enumerate(STATUSES, _STATUS_CELLS.start)}
        self._unknown_status = self._statuses[500]
        self._sendfile_bytes, self._sendfile_cold = columns["sendfile_bytes",], columns["sendfile_cold",]

    def request(self, record: Record) -> None:
        """Count a request that is over, from its access record. For the event loop only."""
        _, _, _, _, _, status, sent, received, duration_ns, notes = record
        at, timed = self._operations.get(notes.get("operation", NO_OPERATION), self._no_operation)
        cells = self._cells
        cells[at] += received
        cells[at + 1] += sent
        cells[at + self._statuses.get(status, self._unknown_status)] += 1
        cells[timed] += duration_ns
        cells[timed + 1 + bisect_left(self._bounds_ns, duration_ns)] += 1
        if (code := notes.get("error")) is not None:
            self.add("errors", code)
            if (reason := notes.get("refused")) is not None:
                self.add("refusals", reason)
        if (reused := notes.get("reused")) is not None:
            self.add(_REUSED[reused])

    def add(self, *column: str, amount: int = 1) -> None:
        """Add to a counter, given its family and the values of its labels. For the event loop only."""
        self._cells[self._at(column)] += amount

    def timer(self, *column: str) -> Callable[[int], None]:
        """What notes durations, in nanoseconds, in a histogram. For the event loop only."""
        cells, at = self._cells, self._at(column)
        bounds_ns = [int(bound * 1e9) for bound in FAMILIES[column[0]].bounds]

        def note(duration_ns: int) -> None:
            cells[at] += duration_ns
            cells[at + 1 + bisect_left(bounds_ns, duration_ns)] += 1

        return note

    def tell(self, counted: Iterable[tuple[Column, int]]) -> None:
        """Say what other parts of this process have counted so far, and how high its gauges are."""
        for column, value in counted:
            at = self._at(column)
            self._cells[at] = value if FAMILIES[column[0]].kind == "gauge" else self._before[at] + value

    def sendfile(self, sent_bytes: int, cold: int) -> None:
        """Say how much this process has sent by sendfile so far, and how often it had to wait for the disk."""
        self._cells[self._sendfile_bytes] = self._before[self._sendfile_bytes] + sent_bytes
        self._cells[self._sendfile_cold] = self._before[self._sendfile_cold] + cold

    def _at(self, column: Column) -> int:
        """Where a column is; that of OTHER where its first label is none of those told apart."""
        at = self._columns.get(column)
        return self._columns[column[0], OTHER, *column[2:]] if at is None else at
