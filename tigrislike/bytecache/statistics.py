"""What a block store counts, for metrics and for whoever wonders what it is doing.

Every decision has a counter. Totals only grow; gauges are counted up and down. All are of one process since it opened
the store; what the whole cache holds is `Cache.usage`'s to say.
"""

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields
from threading import Lock
from typing import Final


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot. Bytes are data bytes, without padding and footers, where nothing else is said.

    Attributes:
        bytes_written: Written to blocks by uploads.
        bytes_read: Handed to readers; extents given out for zero-copy count as read.
        hits: Blocks asked for and found here.
        hits_home, hits_cache, hits_incoming: The same by the tree that they were found in.
        misses: Blocks asked for and not here.
        fills: Blocks fetched from a source and kept.
        fills_joined: Readers that waited for a fill somebody else had begun.
        fills_failed: Fills that ended in an error, of the source or of the disk.
        fills_dropped: Fills that ended because the blob was deleted meanwhile.
        fill_bytes: Bytes received from a source by fills.
        fill_ns: Time that completed fills took, summed.
        fill_times: How many completed fills took up to each of FILL_BOUNDS_S and more than the one before; the last
            number is of those that took longer than any.
        passed_through: Fetches from a source that were not kept, for want of room or because they may not be.
        passed_through_bytes: Bytes fetched so.
        evicted_capacity, evicted_reserve, evicted_request, evicted_deleted: Blocks dropped from the cache, by reason.
        evicted_corrupt: Blocks dropped from the cache because they failed verification.
        evicted_bytes: Bytes of files dropped from the cache.
        verify_failures: Blocks or chunks that failed verification.
        verified_bytes: Read and compared with their checksums before a serve.
        healed: Blocks that failed verification and were fetched again.
        corrupt_unhealed: Reads that failed because a block is damaged or unreadable and nobody else has it. Page
            somebody.
        missing_unhealed: Reads that failed because nobody has the block at all. Page somebody, unless they were reads
            that outlived the grace of a deleted object.
        scrubbed_blocks, scrubbed_bytes: Verified by the scrubber; bytes of files.
        open_blocks: Gauge: block files that readers hold open now.
        uploads: Gauge: uploads that hold a directory now: receiving, or finished and not yet published.
        in_flight_bytes: Gauge: received by writers and not yet on disk, in whole units.
        filling_bytes: Gauge: memory held by fills.
        direct_io: Whether new files are written past the page cache.
    """

    bytes_written: int = 0
    bytes_read: int = 0
    hits: int = 0
    hits_home: int = 0
    hits_cache: int = 0
    hits_incoming: int = 0
    misses: int = 0
    fills: int = 0
    fills_joined: int = 0
    fills_failed: int = 0
    fills_dropped: int = 0
    fill_bytes: int = 0
    fill_ns: int = 0
    passed_through: int = 0
    passed_through_bytes: int = 0
    evicted_capacity: int = 0
    evicted_reserve: int = 0
    evicted_request: int = 0
    evicted_deleted: int = 0
    evicted_corrupt: int = 0
    evicted_bytes: int = 0
    verify_failures: int = 0
    verified_bytes: int = 0
    healed: int = 0
    corrupt_unhealed: int = 0
    missing_unhealed: int = 0
    scrubbed_blocks: int = 0
    scrubbed_bytes: int = 0
    open_blocks: int = 0
    uploads: int = 0
    in_flight_bytes: int = 0
    filling_bytes: int = 0
    fill_times: tuple[int, ...] = ()
    direct_io: bool = True


GAUGES: Final = frozenset({"open_blocks", "uploads", "in_flight_bytes", "filling_bytes"})
COUNTED: Final = tuple(f.name for f in fields(Statistics) if f.name not in ("fill_times", "direct_io"))
FILL_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the classes that fills are counted in by the time they took; one more class lies above."""

_FILL_BOUNDS_NS: Final = [int(bound * 1e9) for bound in FILL_BOUNDS_S]
_CELL: Final = {name: index for index, name in enumerate(COUNTED)}
_FILL_TIMES: Final = slice(len(COUNTED), len(COUNTED) + len(FILL_BOUNDS_S) + 1)
CELLS: Final = _FILL_TIMES.stop
"""How many 64-bit integers a `Counters` counts in."""


class Counters:
    """The running totals. `add` may be called from any thread; reads need no lock.

    Args:
        cells: CELLS signed 64-bit integers to count in, which go on from what they hold: memory that outlives this
            process, so that nothing is forgotten when it is killed. By default, memory of its own.
    """

    __slots__ = ("_cells", "_lock")

    def __init__(self, cells: memoryview | None = None) -> None:
        self._cells = memoryview(array("q", bytes(8 * CELLS))) if cells is None else cells
        self._lock = Lock()

    def add(self, **amounts: int) -> None:
        """Add to the totals of these names. An unknown name is a KeyError."""
        with self._lock:
            cells = self._cells
            for name, amount in amounts.items():
                cells[_CELL[name]] += amount

    def filled(self, duration_ns: int) -> None:
        """Count one block fetched from a source and kept, and the time that took."""
        with self._lock:
            cells = self._cells
            cells[_CELL["fills"]] += 1
            cells[_CELL["fill_ns"]] += duration_ns
            cells[_FILL_TIMES.start + bisect_left(_FILL_BOUNDS_NS, duration_ns)] += 1

    def __getitem__(self, name: str) -> int:
        return int(self._cells[_CELL[name]])

    def snapshot(self, *, direct_io: bool) -> Statistics:
        """All totals as of one moment."""
        with self._lock:
            cells = self._cells.tolist()
        return statistics(cells, direct_io=direct_io)


def statistics(cells: Sequence[int], *, direct_io: bool = True) -> Statistics:
    """What the cells of a `Counters`, or the sums of several, say by name."""
    totals = dict(zip(COUNTED, cells, strict=False))
    return Statistics(**totals, fill_times=tuple(cells[_FILL_TIMES]), direct_io=direct_io)
