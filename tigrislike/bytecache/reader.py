"""Read one blob: verified bytes, in order, without stalling the event loop.

What is in the page cache is read on the event loop, a piece at a time; that takes tens of microseconds, less than a
hop to a thread. What is not is read on a small thread pool, a few pieces ahead of the consumer. A piece is verified,
if its chunks have not been since this process started, before any byte of it is given out.

No descriptor is kept between reads: opening a known block costs microseconds, and so a deleted block's space is free
as soon as the last read of it ends. Deliberately absent: a cache of bytes, which is the kernel's work.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Executor, Future
from typing import Final, NamedTuple

from tigrislike.bytecache.footer import CHUNK
from tigrislike.bytecache.reading import Buffer, OpenBlock, Source

READ_PIECE: Final = 2 * CHUNK
"""Default bytes per piece; bench/blocks.py compares. One piece with verification takes about 0.1 ms."""
AHEAD_BYTES: Final = 4 * 1024 * 1024
"""Read ahead of the consumer while the disk is being waited for; what a slow consumer can make one read hold."""
_TURN_BYTES: Final = 1024 * 1024
"""A reader that never has to wait lets others run after this many bytes."""


class Segment(NamedTuple):
    """A verified extent of an open file, for sendfile and the like. `fd` stays open until the next one is asked for."""

    fd: int
    offset: int
    length: int


class _Piece(NamedTuple):
    number: int
    start: int
    stop: int


class BlobReader:
    """Reads of one blob. Made by `BlockStore.open_blob`; holds nothing open between reads; any number may run at once.

    Attributes:
        blob_id: 16 bytes.
        size: Bytes in the blob, as its metadata has it: the files must agree.
    """

    def __init__(self, source: Source, pool: Executor, blob_id: bytes, size: int) -> None:
        self._source = source
        self._pool = pool
        self.blob_id = blob_id
        self.size = size

    async def read(self, start: int, stop: int, chunk: int = READ_PIECE) -> AsyncGenerator[Buffer, None]:
        """Bytes `start` to `stop` (half open), in pieces of at most about `chunk` bytes.

        Args:
            start, stop: 0 <= start <= stop <= size.
            chunk: Rounded up to a multiple of 256 KiB. Larger pieces hold the event loop longer.

        Raises:
            ValueError: The range is not inside the blob.
            MissingBlob, CorruptBlock: A block is not here or not what was written; nothing of the piece was given out.
            DiskFailed, TooManyOpenFiles: It could not be read.
        """
        pieces = self._pieces(start, stop, -(-chunk // CHUNK) * CHUNK)
        most_ahead = max(1, AHEAD_BYTES // max(chunk, CHUNK))
        ahead: deque[asyncio.Future[tuple[Buffer, bool]]] = deque()
        block: OpenBlock | None = None
        reading_ahead = False
        turn = _TURN_BYTES
        try:
            while True:
                if not ahead:
                    piece = next(pieces, None)
                    if piece is None:
                        return
                    if block is not None and block.number != piece.number:
                        block.close()
                        block = None
                    if block is None and (self.blob_id, piece.number) in self._source.verified:
                        block = OpenBlock.open(self._source, self.blob_id, self.size, piece.number)
                    warm = None if block is None else block.read(piece.start, piece.stop, wait=False)
                    if warm is not None:
                        if turn <= 0:
                            turn = _TURN_BYTES
                            await asyncio.sleep(0)
                        turn -= len(warm)
                        self._source.counters.add(bytes_read=len(warm))
                        yield warm
                        continue
                    ahead.append(self._submit(piece))
                    # A known block that is not in the cache is cold. An unknown one shows when it has been read.
                    reading_ahead = block is not None
                while reading_ahead and len(ahead) < most_ahead and (piece := next(pieces, None)) is not None:
                    ahead.append(self._submit(piece))
                data, waited = await ahead[0]
                ahead.popleft()
                # What needed no disk does not need threads either: drain, then go on here.
                reading_ahead = waited
                self._source.counters.add(bytes_read=len(data))
                yield data
        finally:
            for future in ahead:
                future.cancel()
                future.add_done_callback(_retrieve)
            if block is not None:
                block.close()

    def read_cached(self, start: int, stop: int) -> bytes | None:
        """Bytes `start` to `stop` at once, if all of them are in the page cache and their blocks are known; else None.

        For small ranges on the event loop: costs about 10 us and what copying takes.

        Raises:
            As read().
        """
        found = []
        for piece in self._pieces(start, stop, self._source.layout.block_size):
            if (self.blob_id, piece.number) not in self._source.verified:
                return None
            block = OpenBlock.open(self._source, self.blob_id, self.size, piece.number)
            try:
                data = block.read(piece.start, piece.stop, wait=False)
            finally:
                block.close()
            if data is None:
                return None
            found.append(data)
        self._source.counters.add(bytes_read=stop - start)
        return bytes(found[0]) if len(found) == 1 else b"".join(found)

    async def segments(self, start: int, stop: int) -> AsyncGenerator[Segment, None]:
        """The same bytes as extents of open files, one per block, verified before they are given out.

        The caller sends from the descriptor and never closes it: it is closed when the next segment is asked for or
        the iterator is closed. The pages of an extent may have left the cache again: probe before sending on a loop.

        Raises:
            As read().
        """
        for piece in self._pieces(start, stop, self._source.layout.block_size):
            opening = self._pool.submit(self._verified_block, piece)
            try:
                block = await asyncio.wrap_future(opening)
            except asyncio.CancelledError:
                opening.add_done_callback(_close)
                raise
            try:
                self._source.counters.add(bytes_read=piece.stop - piece.start)
                yield Segment(block.fd, piece.start, piece.stop - piece.start)
            finally:
                block.close()

    def _pieces(self, start: int, stop: int, length: int) -> Iterator[_Piece]:
        """Cut a range at multiples of `length` within each block, and at the ends of blocks."""
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"bytes {start} to {stop} are not inside a blob of {self.size} bytes")
        block_size = self._source.layout.block_size
        while start < stop:
            number, offset = divmod(start, block_size)
            end = min(offset // length * length + length, block_size, offset + stop - start)
            yield _Piece(number, offset, end)
            start += end - offset

    def _submit(self, piece: _Piece) -> "asyncio.Future[tuple[Buffer, bool]]":
        # The buffer is made here, for memory that a thread allocates comes fresh from the kernel each time, which
        # doubles the CPU of reading (glibc gives each thread an arena and trims it).
        buffer = bytearray(piece.stop - piece.start)
        return asyncio.get_running_loop().run_in_executor(self._pool, self._read_piece, piece, buffer)

    def _read_piece(self, piece: _Piece, buffer: bytearray) -> tuple[Buffer, bool]:
        """On a thread: the piece's bytes, and whether the disk was waited for."""
        block = OpenBlock.open(self._source, self.blob_id, self.size, piece.number)
        try:
            data = block.read(piece.start, piece.stop, wait=False, into=buffer)
            if data is not None:
                return data, False
            data = block.read(piece.start, piece.stop, wait=True, into=buffer)
            assert data is not None
            return data, True
        finally:
            block.close()

    def _verified_block(self, piece: _Piece) -> OpenBlock:
        """On a thread: an open block in which the piece is verified."""
        block = OpenBlock.open(self._source, self.blob_id, self.size, piece.number)
        try:
            block.verify(piece.start, piece.stop)
        except BaseException:
            block.close()
            raise
        return block


def _retrieve(future: "asyncio.Future[tuple[Buffer, bool]]") -> None:
    """Nobody waits for this piece any more: an error in it is nobody's."""
    if not future.cancelled():
        future.exception()


def _close(opening: Future[OpenBlock]) -> None:
    """Nobody waits for this block any more. Called on the thread that opened it, whatever became of the loop."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
