"""Read one blob: verified bytes, in order, without stalling the event loop, from here or from elsewhere.

What is in the page cache is read on the event loop, a piece at a time; that takes tens of microseconds, less than a
hop to a thread. What is not is read on a small thread pool, a few pieces ahead of the consumer. A piece is verified,
if its chunks have not been since the node started, before any byte of it is given out.

A block that is not here, or is damaged, is fetched (`fills.py`), also in the middle of a read: what was given out was
right, and the rest follows from elsewhere. A damaged block of the cache is dropped first, one of `home/` is replaced
when it has been fetched. Where nobody else has it the read ends with an error.

No descriptor is kept between reads: opening a known block costs microseconds, and so a deleted block's space is free
as soon as the last read of it ends. Deliberately absent: a cache of bytes, which is the kernel's work.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import aclosing
from functools import partial
from typing import Final, Literal, NamedTuple, TypeVar

from tigrislike.bytecache.cache import Cache
from tigrislike.bytecache.errors import BytesError, CorruptBlock, DiskFailed, MissingBlob
from tigrislike.bytecache.footer import CHUNK
from tigrislike.bytecache.reading import Buffer, Local, OpenBlock, Place
from tigrislike.bytecache.recovery import Recovery

READ_PIECE: Final = 2 * CHUNK
"""Default bytes per piece; bench/blocks.py compares. One piece with verification takes about 0.1 ms."""
AHEAD_BYTES: Final = 4 * 1024 * 1024
"""Read ahead of the consumer while the disk is being waited for; what a slow consumer can make one read hold."""
SEGMENT_BYTES: Final = 2 * 1024 * 1024
"""Most bytes of one extent: how much may leave between two looks at whether the file still is what was verified."""
_TURN_BYTES: Final = 1024 * 1024
"""A reader that never has to wait lets others run after this many bytes."""
_TRIES: Final = 3
"""After so many fetches that ended in a file which cannot be read either, bytes are passed by the disk."""


class Segment:
    """A verified extent of an open file, for sendfile and the like. `fd` stays open until the next one is asked for.

    Whoever cannot send all of it says so by `stopped_at` before asking for the next: the read goes on from there.

    Attributes:
        fd: The file's descriptor.
        offset, length: Of the extent, in bytes.
        ahead: How many bytes right behind it, in the same file, this read will ask for next.
        sent: Bytes of it that were sent: all, unless something else is said.
        error: What kept the rest from being sent; None where the file was changed.
    """

    __slots__ = ("_block", "_who", "ahead", "error", "fd", "length", "offset", "sent")

    def __init__(self, block: OpenBlock, offset: int, length: int, ahead: int) -> None:
        self._block = block
        self._who = block.who
        self.fd = block.fd
        self.offset = offset
        self.length = length
        self.ahead = ahead
        self.sent = length
        self.error: BaseException | None = None

    def unchanged(self) -> bool:
        """Whether the file still is the one that was verified. Takes microseconds, and holds until the next look: a
        change in place of what is in a socket already changes that too."""
        return self._block.is_still(self._who)

    def stopped_at(self, sent: int, error: BaseException | None) -> None:
        """Only the first `sent` bytes were sent: the file was changed, or reading it raised `error`."""
        self.sent = sent
        self.error = error


class _Piece(NamedTuple):
    number: int
    start: int
    stop: int


Part = TypeVar("Part", Buffer, Segment)


_HITS: Final[dict[Place, str]] = {"home": "hits_home", "cache": "hits_cache", "incoming": "hits_incoming"}


class BlobReader:
    """Reads of one blob. Made by `BlockStore.open_blob`; holds nothing open between reads; any number may run at once.
    Without a `recovery` it reads what is here, and fetches and mends nothing.

    Attributes:
        blob_id: 16 bytes.
        size: Bytes in the blob, as its metadata has it: the files must agree.
        served_from: Where the first bytes that were read through this reader came from: a tree of this node's disk, or
            its source; None until there were some. It is said before the read gives these bytes out.
    """

    def __init__(
        self, local: Local, cache: Cache, recovery: Recovery | None, pool: Executor, blob_id: bytes, size: int
    ) -> None:
        self._local = local
        self._cache = cache
        self._recovery = recovery
        self._pool = pool
        self.blob_id = blob_id
        self.size = size
        self.served_from: Place | Literal["source"] | None = None

    def read(self, start: int, stop: int, chunk: int = READ_PIECE) -> AsyncGenerator[Buffer, None]:
        """Bytes `start` to `stop` (half open), in pieces of at most about `chunk` bytes.

        Args:
            start, stop: 0 <= start <= stop <= size.
            chunk: Rounded up to a multiple of 256 KiB. Larger pieces hold the event loop longer.

        Raises:
            ValueError: The range is not inside the blob.
            MissingBlob, CorruptBlock: A block is not here or not what was written, and nobody else has it; nothing of
                the piece was given out.
            SourceUnavailable: It has to come from elsewhere, and does not.
            DiskFailed, TooManyOpenFiles: It could not be read.
        """
        self._check(start, stop)
        return self._served(start, stop, partial(self._pieces_here, chunk=-(-chunk // CHUNK) * CHUNK))

    def segments(self, start: int, stop: int) -> AsyncGenerator[Segment | Buffer, None]:
        """The same bytes as extents of open files, of at most 2 MiB, verified just before they are given out; and as
        bytes where they are not in a file, or every read is to be verified.

        The caller sends from the descriptor and never closes it: it is closed when the next segment is asked for or
        the iterator is closed. The pages of an extent may have left the cache again: probe before sending on a loop.

        Raises:
            As read().
        """
        self._check(start, stop)
        if self._local.always:
            return self.read(start, stop)
        return self._served(start, stop, self._extents_here)

    def read_cached(self, start: int, stop: int) -> bytes | None:
        """Bytes `start` to `stop` at once, if all of them are in the page cache and their blocks are known and sound.

        For small ranges on the event loop: costs about 10 us and what copying takes. None means: use read().

        Raises:
            ValueError: The range is not inside the blob.
        """
        self._check(start, stop)
        found: list[Buffer] = []
        numbers: list[int] = []
        try:
            for piece in self._pieces(start, stop, self._local.layout.block_size):
                if (self.blob_id, piece.number) not in self._local.known:
                    return None
                block = OpenBlock.open(self._local, self.blob_id, self.size, piece.number)
                try:
                    data = block.read(piece.start, piece.stop, wait=False)
                finally:
                    block.close()
                if data is None:
                    return None
                found.append(data)
                numbers.append(piece.number)
        except BytesError:
            return None  # read() meets it too, and knows what to do
        for number, data in zip(numbers, found, strict=True):
            self._hit(number, len(data))
        return bytes(found[0]) if len(found) == 1 else b"".join(found)

    async def _served(
        self, start: int, stop: int, here: Callable[[int, int], AsyncGenerator[Part, None]]
    ) -> AsyncGenerator[Part | bytes, None]:
        """What `here` reads from this disk, and in between, what has to come from elsewhere."""
        block_size = self._local.layout.block_size
        add = self._local.counters.add
        counted = -1
        tries = 0
        while start < stop:
            failure: BytesError
            try:
                async with aclosing(here(start, stop)) as parts:
                    async for part in parts:
                        length = part.length if isinstance(part, Segment) else len(part)
                        if start // block_size == counted:
                            add(bytes_read=length)
                        else:
                            counted = start // block_size
                            self._hit(counted, length)
                        yield part
                        if isinstance(part, Segment):
                            length = part.sent
                        start += length
                        if length:
                            tries = 0
                continue
            except (MissingBlob, CorruptBlock, DiskFailed) as error:
                failure = error
            number, offset = divmod(start, block_size)
            if number != counted:
                counted = number
                add(misses=1)
            if self._recovery is None:
                raise failure
            end = min(block_size, offset + stop - start)
            tries += 1
            async with aclosing(
                self._recovery.fetch(
                    self.blob_id,
                    self.size,
                    number,
                    offset,
                    end,
                    failure,
                    more=offset + stop - start > end,
                    direct=tries > _TRIES,
                )
            ) as pieces:
                async for piece in pieces:
                    self.served_from = self.served_from or "source"
                    add(bytes_read=len(piece))
                    start += len(piece)
                    tries = 0
                    yield piece

    async def _pieces_here(self, start: int, stop: int, chunk: int) -> AsyncGenerator[Buffer, None]:
        """Verified bytes of blocks on this disk."""
        pieces = self._pieces(start, stop, chunk)
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
                    if block is None and (self.blob_id, piece.number) in self._local.known:
                        block = OpenBlock.open(self._local, self.blob_id, self.size, piece.number)
                    warm = None if block is None else block.read(piece.start, piece.stop, wait=False)
                    if warm is not None:
                        if turn <= 0:
                            turn = _TURN_BYTES
                            await asyncio.sleep(0)
                        turn -= len(warm)
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
                yield data
        finally:
            for future in ahead:
                future.cancel()
                future.add_done_callback(_retrieve)
            if block is not None:
                block.close()

    async def _extents_here(self, start: int, stop: int) -> AsyncGenerator[Segment, None]:
        """Verified extents of blocks on this disk."""
        for piece in self._pieces(start, stop, self._local.layout.block_size):
            known = (self.blob_id, piece.number) in self._local.known
            if known:
                block = OpenBlock.open(self._local, self.blob_id, self.size, piece.number)
            else:
                block = await self._open_and_verify(
                    piece.number, piece.start, min(_extent_end(piece.start), piece.stop)
                )
            verifying: Future[None] | None = None
            # At the first read of a block the next extent is verified while this one is sent.
            ahead = not known
            try:
                position = piece.start
                while position < piece.stop:
                    end = min(_extent_end(position), piece.stop)
                    while verifying is not None or not block.is_verified(position, end):
                        ahead = True
                        verifying = verifying or self._pool.submit(block.verify, position, end)
                        await asyncio.shield(asyncio.wrap_future(verifying))
                        verifying = None
                    if ahead and end < piece.stop:
                        verifying = self._pool.submit(block.verify, end, min(_extent_end(end), piece.stop))
                        ahead = False
                    segment = Segment(block, position, end - position, piece.stop - end)
                    yield segment
                    position += segment.sent
                    if segment.error is not None:
                        raise block.unreadable(segment.error)
            finally:
                if verifying is None:
                    block.close()
                else:  # a thread may be reading from it
                    verifying.add_done_callback(lambda _, block=block: block.close())  # type: ignore[misc]

    async def _open_and_verify(self, number: int, start: int, stop: int) -> OpenBlock:
        """An open block in which these bytes are verified."""
        opening = self._pool.submit(self._open_verified, number, start, stop)
        try:
            return await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close)
            raise

    def _open_verified(self, number: int, start: int, stop: int) -> OpenBlock:
        block = OpenBlock.open(self._local, self.blob_id, self.size, number)
        try:
            block.verify(start, stop)
        except BaseException:
            block.close()
            raise
        return block

    def _hit(self, number: int, length: int) -> None:
        """Bytes were read of a block that was found here, the first of this read."""
        # It was opened just now, and so is known; unless it is gone already.
        place = self._local.known.place(self.blob_id, number) or "home"
        self.served_from = self.served_from or place
        self._local.counters.add(bytes_read=length, hits=1, **{_HITS[place]: 1})
        if place == "cache":
            self._cache.touch(self.blob_id, number)

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"bytes {start} to {stop} are not inside a blob of {self.size} bytes")

    def _pieces(self, start: int, stop: int, length: int) -> Iterator[_Piece]:
        """Cut a range at multiples of `length` within each block, and at the ends of blocks."""
        block_size = self._local.layout.block_size
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
        block = OpenBlock.open(self._local, self.blob_id, self.size, piece.number)
        try:
            data = block.read(piece.start, piece.stop, wait=False, into=buffer)
            if data is not None:
                return data, False
            data = block.read(piece.start, piece.stop, wait=True, into=buffer)
            assert data is not None
            return data, True
        finally:
            block.close()


def _extent_end(position: int) -> int:
    """Where the extent that holds `position` ends: extents begin at multiples of their length, so that readers of
    different ranges verify the same ones."""
    return position // SEGMENT_BYTES * SEGMENT_BYTES + SEGMENT_BYTES


def _retrieve(future: "asyncio.Future[tuple[Buffer, bool]]") -> None:
    """Nobody waits for this piece any more: an error in it is nobody's."""
    if not future.cancelled():
        future.exception()


def _close(opening: Future[OpenBlock]) -> None:
    """Nobody waits for this block any more. Called on the thread that opened it, whatever became of the loop."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
