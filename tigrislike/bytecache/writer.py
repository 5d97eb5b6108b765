"""Write one blob: bytes in from the event loop, sealed block files out, durable when `finish()` returns.

What is received is handed to a worker thread a unit (1 MiB) at a time, while the event loop receives the next. One
upload has at most one job on the threads, so that its bytes stay in order and many uploads share all cores. write()
waits while `MAX_OUTSTANDING_BYTES` are not yet on disk: an upload holds that and one unit, whatever its size, and a
slow one holds only what it has received.

A failure removes everything that was written; it is raised by the call that meets it and by all later ones.
Deliberately absent: retries (nobody has the bytes any more), and knowledge of what the bytes are.
"""

import asyncio
import enum
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Final

from tigrislike.bytecache.errors import WriterClosed
from tigrislike.bytecache.sealing import UNIT, BlockSealer

MAX_OUTSTANDING_BYTES: Final = 4 * UNIT
_SMALL: Final = 4096
"""Pieces below this are gathered: a client that sends a few bytes at a time must not cost an object for each."""


class _State(enum.Enum):
    OPEN = enum.auto()
    FINISHING = enum.auto()
    FINISHED = enum.auto()
    FAILED = enum.auto()
    ABORTED = enum.auto()


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
        count_in_flight: Callable[[int], None],
    ) -> None:
        self.blob_id = blob_id
        self.size = 0
        self._block_size = block_size
        self._sealer = sealer
        self._pool = pool
        self._count_in_flight = count_in_flight
        self._state = _State.OPEN
        self._error: BaseException | None = None
        # Being gathered: pieces, their total, and the total at which they make a unit.
        self._pieces: list[bytes | bytearray | memoryview] = []
        self._gathered = 0
        self._unit = min(UNIT, block_size)
        # Handed over: units that wait for a job, bytes in them, bytes in the job that runs.
        self._queue: list[list[bytes | bytearray | memoryview]] = []
        self._queued = 0
        self._running = 0
        self._job: asyncio.Future[None] | None = None
        self._progress = asyncio.Event()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Accept the next bytes; waits while too many are not yet on disk.

        Raises:
            BytesError: An earlier part could not be written; the upload is over and removed.
            WriterClosed: After finish() or abort().
        """
        self._check_open()
        # Mutable memory is copied, for its owner may reuse it; bytes are kept as they are.
        view = memoryview(data if isinstance(data, bytes) else bytes(data))
        while view:
            piece = view[: self._unit - self._gathered]
            view = view[len(piece) :]
            if len(piece) >= _SMALL:
                self._pieces.append(piece)
            elif self._pieces and isinstance(gathering := self._pieces[-1], bytearray):
                gathering += piece
            else:
                self._pieces.append(bytearray(piece))
            self._gathered += len(piece)
            self.size += len(piece)
            if self._gathered == self._unit:
                self._hand_over()
                self._start()
                while self._queued + self._running > MAX_OUTSTANDING_BYTES:
                    await self._wait()
                self._check_open()

    async def finish(self) -> None:
        """Seal the blob. On return every byte and name is durable, and the directory stays locked until
        `BlockStore.publish`, `BlockStore.release` or `abort`.

        Raises:
            BytesError: It could not be written; the upload is over and removed.
            WriterClosed: Called twice, or after abort().
        """
        self._check_open()
        self._state = _State.FINISHING
        if self._gathered:
            self._hand_over()
        self._start()
        while self._state is _State.FINISHING:
            await self._wait()
        if self._error is not None:
            raise self._error

    async def abort(self) -> None:
        """Remove everything. Does nothing once the blob is published, released or gone; never raises BytesError.

        May be called at any time, also when write() or finish() was cancelled; cancelling abort() itself does not stop
        the removal.
        """
        if self._state is not _State.ABORTED:
            self._state = _State.ABORTED
            self._pieces.clear()
            self._drop_queue()
            self._start()
        while self._job is not None:
            await self._wait()

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._error
        if self._state is not _State.OPEN:
            raise WriterClosed(f"blob {self.blob_id.hex()} takes no more bytes: it is {self._state.name.lower()}")

    def _hand_over(self) -> None:
        self._queue.append(self._pieces)
        self._queued += self._gathered
        self._count_in_flight(self._gathered)
        self._pieces = []
        self._gathered = 0
        self._unit = min(UNIT, self._block_size - self.size % self._block_size)

    def _drop_queue(self) -> None:
        self._count_in_flight(-self._queued)
        self._queue = []
        self._queued = 0

    def _start(self) -> None:
        """Start the job that is due, unless one runs: its end calls here again."""
        if self._job is not None:
            return
        loop = asyncio.get_running_loop()
        if self._state is _State.ABORTED:
            self._job = loop.run_in_executor(self._pool, self._sealer.discard)
            self._job.add_done_callback(self._discarded)
        elif self._queue or self._state is _State.FINISHING:
            units, self._queue = self._queue, []
            self._running, self._queued = self._queued, 0
            last = self._state is _State.FINISHING
            self._job = loop.run_in_executor(self._pool, self._sealer.write, units, last)
            self._job.add_done_callback(partial(self._written, last))

    def _written(self, last: bool, job: "asyncio.Future[None]") -> None:
        self._job = None
        self._count_in_flight(-self._running)
        self._running = 0
        error = asyncio.CancelledError() if job.cancelled() else job.exception()
        if error is not None:
            self._error = error
            self._drop_queue()
        if self._state is not _State.ABORTED:
            if error is not None:
                self._state = _State.FAILED
            elif last:
                self._state = _State.FINISHED
        if self._state is not _State.FINISHED:
            self._start()
        self._progress.set()

    def _discarded(self, job: "asyncio.Future[None]") -> None:
        self._job = None
        if not job.cancelled():
            job.result()
        self._progress.set()

    async def _wait(self) -> None:
        """Until a job ends."""
        self._progress.clear()
        await self._progress.wait()
