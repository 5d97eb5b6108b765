"""What a block store counts, for metrics and for whoever wonders what it is doing."""

from dataclasses import dataclass, field
from threading import Lock


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot, since the store was opened by this process.

    Attributes:
        bytes_written: Data bytes written to blocks (without padding and footers).
        bytes_read: Data bytes handed to readers; extents given out for zero-copy count as read.
        verify_failures: Blocks or chunks that failed verification.
        open_blocks: Block files that readers hold open now.
        uploads: Uploads that hold a directory now: receiving, or finished and not yet published.
        in_flight_bytes: Received by writers and not yet on disk, in whole units.
        remembered_blocks: Blocks whose verification state is kept.
        direct_io: Whether new files are written past the page cache.
    """

    bytes_written: int
    bytes_read: int
    verify_failures: int
    open_blocks: int
    uploads: int
    in_flight_bytes: int
    remembered_blocks: int
    direct_io: bool


@dataclass(slots=True)
class Counters:
    """The running totals. `add` may be called from any thread; fields are read without the lock."""

    bytes_written: int = 0
    bytes_read: int = 0
    verify_failures: int = 0
    open_blocks: int = 0
    uploads: int = 0
    in_flight_bytes: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    def add(
        self,
        *,
        bytes_written: int = 0,
        bytes_read: int = 0,
        verify_failures: int = 0,
        open_blocks: int = 0,
        uploads: int = 0,
        in_flight_bytes: int = 0,
    ) -> None:
        with self._lock:
            self.bytes_written += bytes_written
            self.bytes_read += bytes_read
            self.verify_failures += verify_failures
            self.open_blocks += open_blocks
            self.uploads += uploads
            self.in_flight_bytes += in_flight_bytes
