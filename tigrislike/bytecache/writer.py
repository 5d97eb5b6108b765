"""Write one blob: bytes in from the event loop, sealed block files out, durable when `finish()` returns.

What is received is gathered in aligned buffers, units of 1 MiB, and each full one is handed to worker threads while the
event loop fills the next. An upload has two lanes there, each with at most one job: one checksums and writes, the
other computes the digest that takes longest, so that a single upload can use both cores; in each lane its bytes stay in
order. write() waits while `OUTSTANDING_BYTES` are not through both: an upload holds that and one unit, whatever its
size. Few uploads may get further ahead, so that neither the sender nor a thread waits for the other's every step.

A failure removes everything that was written; it is raised by the call that meets it and by all later ones.
Deliberately absent: retries (nobody has the bytes any more), and knowledge of what the bytes are.
"""

import asyncio
import enum
from concurrent.futures import Executor
from functools import partial
from typing import Final

from tigrislike.bytecache.errors import WriterClosed
from tigrislike.bytecache.sealing import UNIT, BlockSealer, Digest, Unit
from tigrislike.bytecache.statistics import Counters

OUTSTANDING_BYTES: Final = 2 * UNIT
AHEAD_BYTES: Final = 6 * UNIT
"""What one upload may hand over while all of a store's together are below `SPARE_BYTES`: a tenth faster than with
two."""
SPARE_BYTES: Final = 32 * UNIT
_ALONE: Final = 256 * 1024
"""Up to this size a blob is quicker hashed and written by one thread than told to two."""


class _State(enum.Enum):
    OPEN = enum.auto()
    FINISHING = enum.auto()
    FINISHED = enum.auto()
    FAILED = enum.auto()
    ABORTED = enum.auto()


class InFlight:
    """What the uploads of a store have handed to its threads and is not through yet. Used on the event loop."""

    def __init__(self, counters: Counters) -> None:
        self.bytes = 0
        self._counters = counters

    def add(self, amount: int) -> None:
        self.bytes += amount
        self._counters.add(in_flight_bytes=amount)


class _Lane:
    """Work that is done to each unit in order, one job at a time."""

    __slots__ = ("busy", "queue")

    def __init__(self) -> None:
        self.queue: list[Unit] = []
        self.busy: list[Unit] | None = None  # in the job that runs


class BlobWriter:
    """One upload. Made by `BlockStore.create_blob`; used by one task at a time.

    Attributes:
        blob_id: 16 random bytes.
        size: Bytes accepted so far.
    """

    def __init__(
        self,
        blob_id: bytes,
        block_size: int,
        sealer: BlockSealer,
        pool: Executor,
        in_flight: InFlight,
        *,
        beside: Digest | None = None,
        size: int | None = None,
    ) -> None:
        self.blob_id = blob_id
        self.size = 0
        self._block_size = block_size
        self._sealer = sealer
        self._pool = pool
        self._in_flight = in_flight
        self._beside = beside
        self._expected = size
        self._state = _State.OPEN
        self._error: BaseException | None = None
        self._unit: Unit | None = None  # being filled
        self._outstanding: dict[int, int] = {}  # by identity of a unit handed over: lanes that it has not been through
        self._outstanding_bytes = 0
        self._writing = _Lane()
        self._hashing = _Lane()
        self._alone = False  # whether all of the blob is one small unit, which one job hashes and writes
        self._sealed = False  # whether the job that seals the blob was started
        self._removal: asyncio.Future[None] | None = None
        self._progress = asyncio.Event()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Accept the next bytes, of which a copy is made; waits while too many are not yet on disk.

        Raises:
            BytesError: An earlier part could not be written; the upload is over and removed.
            WriterClosed: After finish() or abort().
            ValueError: There are more than the size that was told.
        """
        await self._check_open()
        view = memoryview(data)
        while view:
            room = self.room()
            taken = min(len(room), len(view))
            room[:taken] = view[:taken]
            view = view[taken:]
            self.filled(taken)
            if self.full:
                await self.ready()

    @property
    def full(self) -> bool:
        """Whether more bytes should wait for `ready`."""
        most = AHEAD_BYTES if self._in_flight.bytes < SPARE_BYTES else OUTSTANDING_BYTES
        return self._outstanding_bytes >= most or self._error is not None

    async def ready(self) -> None:
        """Wait until enough is on disk for more bytes to come.

        Raises:
            As write().
        """
        while self.full and self._error is None:
            await self._wait()
        await self._check_open()

    def room(self) -> memoryview:
        """Memory for the next bytes, for who can receive straight into it; say `filled` afterwards.

        Raises:
            ValueError: All that was told to come has come.
        """
        unit = self._unit
        if self.size == self._expected:
            raise ValueError(f"blob {self.blob_id.hex()} was to have {self.size} bytes and is given more")
        if unit is None:
            capacity = min(UNIT, self._block_size - self.size % self._block_size)
            if self._expected is not None:
                capacity = min(capacity, self._expected - self.size)
            unit = self._unit = self._sealer.buffers.take(capacity)
        return unit.buffer[unit.length : unit.capacity]

    def filled(self, count: int) -> None:
        """The first `count` bytes of `room()` are the next of the blob."""
        unit = self._unit
        assert unit is not None
        unit.length += count
        self.size += count
        if unit.length == unit.capacity and self.size != self._expected:
            self._hand_over()
            self._start()

    async def finish(self) -> None:
        """Seal the blob. On return every byte and name is durable, and the directory stays locked until
        `BlockStore.publish`, `BlockStore.release` or `abort`.

        Raises:
            BytesError: It could not be written; the upload is over and removed.
            WriterClosed: Called twice, or after abort().
        """
        await self._check_open()
        self._state = _State.FINISHING
        self._hand_over()
        self._start()
        while self._state is _State.FINISHING:
            await self._wait()
        if self._error is not None:
            await self._removed()
            raise self._error

    async def abort(self) -> None:
        """Remove everything. Does nothing once the blob is published, released or gone; never raises BytesError.

        May be called at any time, also when write() or finish() was cancelled; cancelling abort() itself does not stop
        the removal.
        """
        if self._state is not _State.ABORTED:
            self._state = _State.ABORTED
            self._drop()
            self._start()
        await self._removed()

    async def _check_open(self) -> None:
        if self._error is not None:
            await self._removed()
            raise self._error
        if self._state is not _State.OPEN:
            raise WriterClosed(f"blob {self.blob_id.hex()} takes no more bytes: it is {self._state.name.lower()}")

    def _hand_over(self) -> None:
        """Give the unit being filled to the lanes."""
        unit, self._unit = self._unit, None
        if unit is None:
            return
        self._alone = self._state is _State.FINISHING and self.size == unit.length <= _ALONE
        lanes = [self._writing]
        if self._beside is not None and not self._alone:
            lanes.append(self._hashing)
        for lane in lanes:
            lane.queue.append(unit)
        self._outstanding[id(unit)] = len(lanes)
        self._outstanding_bytes += unit.length
        self._in_flight.add(unit.length)

    def _start(self) -> None:
        """Start the jobs that are due; the end of each calls here again."""
        loop = asyncio.get_running_loop()
        if self._error is not None or self._state is _State.ABORTED:
            if self._removal is None and self._writing.busy is None and self._hashing.busy is None:
                self._removal = loop.run_in_executor(self._pool, self._sealer.discard)
                self._removal.add_done_callback(self._wake)
            return
        lane, last = self._writing, self._state is _State.FINISHING
        if lane.busy is None and (lane.queue or (last and not self._sealed)):
            self._sealed = last
            lane.busy, lane.queue = lane.queue, []
            job = loop.run_in_executor(self._pool, self._write, lane.busy, last)
            job.add_done_callback(partial(self._done, lane))
        lane = self._hashing
        if lane.busy is None and lane.queue:
            lane.busy, lane.queue = lane.queue, []
            job = loop.run_in_executor(self._pool, self._hash, lane.busy)
            job.add_done_callback(partial(self._done, lane))

    def _write(self, units: list[Unit], last: bool) -> None:
        """On a thread."""
        if self._beside is not None and self._alone:
            self._hash(units)
        self._sealer.write(units, last)

    def _hash(self, units: list[Unit]) -> None:
        """On a thread."""
        assert self._beside is not None
        for unit in units:
            self._beside(unit.data)

    def _done(self, lane: _Lane, job: "asyncio.Future[None]") -> None:
        """A job has ended."""
        units, lane.busy = lane.busy or (), None
        for unit in units:
            self._through(unit)
        error = asyncio.CancelledError() if job.cancelled() else job.exception()
        if error is not None and self._error is None:
            self._error = error
            if self._state is not _State.ABORTED:
                self._state = _State.FAILED
            self._drop()
        elif self._state is _State.FINISHING and self._sealed and not self._outstanding and self._writing.busy is None:
            self._state = _State.FINISHED
        self._start()
        self._wake()

    def _through(self, unit: Unit) -> None:
        """One lane is done with `unit`."""
        lanes = self._outstanding[id(unit)] - 1
        if lanes:
            self._outstanding[id(unit)] = lanes
            return
        del self._outstanding[id(unit)]
        self._outstanding_bytes -= unit.length
        self._in_flight.add(-unit.length)
        self._sealer.buffers.give(unit)

    def _drop(self) -> None:
        """Forget what is not in a job yet."""
        for lane in (self._writing, self._hashing):
            units, lane.queue = lane.queue, []
            for unit in units:
                self._through(unit)
        if self._unit is not None:
            self._sealer.buffers.give(self._unit)
            self._unit = None

    def _wake(self, _: object = None) -> None:
        self._progress.set()

    async def _wait(self) -> None:
        """Until a job ends."""
        self._progress.clear()
        await self._progress.wait()

    async def _removed(self) -> None:
        """Until the removal is over, and for what it raised."""
        while self._removal is None or not self._removal.done():
            await self._wait()
        if not self._removal.cancelled():
            self._removal.result()
