"""Fetching blocks that are not here, once however many readers wait.

A fill is a task of its own: it belongs to no reader, and goes on when all of them have left. It starts at the chunk
that the first reader asked for, goes to the block's end, and then fetches what lies before. Readers are given the bytes
as they arrive, from the fill's memory; when that is wanted elsewhere, those that lag behind go on from the file. What
was fetched is kept only if the blob still lives.

Everything is bounded. All fills of a process hold at most `fill_bytes` of memory. A source that gives less than
`PROGRESS_BYTES` in `timeout_s` fails its fill. What the cache has no room for, or the disk or another process refuses,
is *passed through*: one fetch of no more than its readers ask for, shared by all of this process, and not kept. A full
or failing cache serves, and only does not get better. Who waits too long for memory, or for his own bytes in a long
fill, is passed through by himself.

Errors are given to who waits and then forgotten: the next reader tries anew. Deliberately absent: a checksum from
outside. What a source gives is counted, sealed with checksums and believed.
"""

import asyncio
import contextlib
import enum
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor, Future
from contextlib import aclosing
from functools import partial
from typing import Final, Protocol, TypeVar

from tigrislike.bytecache.errors import (
    BlobBusy,
    BlobGone,
    BlockPresent,
    BytesError,
    CacheFull,
    FillInProgress,
    MissingBlob,
    NotAtSource,
    NotKept,
    SourceUnavailable,
)
from tigrislike.bytecache.footer import (
    CHUNK,
    FOOTER_BYTES,
    Footer,
    block_length,
    chunk_checksum,
    padded,
)
from tigrislike.bytecache.images import Images
from tigrislike.bytecache.source import BlobSource
from tigrislike.bytecache.statistics import Counters

WAIT_S: Final = 2.0
"""Longest wait for memory, or for another process's fill. Asking the source at once would send it a herd; waiting until
the other is done, however long that takes, has been found to be worse."""
PROGRESS_BYTES: Final = CHUNK
"""The least that a source gives in each `timeout_s` that it is waited for, or what is left of a read: at
10 s, a block of 8 MiB holds its memory and its place for five minutes at most."""
POLL_S: Final = 0.01
_PIECE: Final = 2 * CHUNK
_TURN_BYTES: Final = 1024 * 1024
"""A reader whose bytes are all in memory lets others run after this many."""

T = TypeVar("T")


class Keeping(Protocol):
    """Where a fetched block will be kept: a place that was taken, and is used or given up. Methods block."""

    def commit(self, image: memoryview) -> None:
        """Keep the block: data, padding and footer. Raises BytesError, and has then left nothing behind."""
        ...

    def abandon(self) -> None:
        """Leave nothing behind. Never raises."""
        ...


Begin = Callable[[], Keeping]
"""Takes the place for a block; blocks. Raises BlockPresent, FillInProgress, and CacheFull, DiskFull or DiskFailed where
there is none."""


class Outcome(enum.Enum):
    """How a fill ended."""

    HERE = enum.auto()
    """The block can be read from its file."""
    UNKEPT = enum.auto()
    """There is no file; what was fetched, if anything, is in memory for as long as that can be spared."""
    FAILED = enum.auto()


class Fill:
    """One block on its way here.

    Attributes:
        block: Blob id and number.
        size: Of the blob, in bytes.
        length: Of the block's data, in bytes.
        first: Where fetching starts; it goes to `end`, then from 0 to here.
        end: Where the first of these two ends: at `length`, if all is fetched.
        whole: Whether all is fetched; else only what lies between `first` and `end`, which is not kept.
        start, stop: What readers have asked for lies between these.
        heals: Whether the block was here and damaged.
        source: Who is asked for it.
        image: The block's memory, while there is some.
        outcome: None while it runs.
        error: Why it failed, or why nothing was kept.
        readers: How many are looking at `image`.
        wanted: Whether it is to be fetched though nobody reads it.
    """

    __slots__ = (
        "_head",
        "_tail",
        "block",
        "end",
        "error",
        "first",
        "heals",
        "image",
        "length",
        "moved",
        "outcome",
        "readers",
        "size",
        "source",
        "start",
        "stop",
        "wanted",
        "whole",
    )

    def __init__(
        self, block: tuple[bytes, int], size: int, length: int, first: int, heals: bool, source: BlobSource
    ) -> None:
        self.block = block
        self.size = size
        self.length = length
        self.first = first
        self.end = length
        self.whole = True
        self.start, self.stop = length, 0
        self.heals = heals
        self.source = source
        self.image: memoryview | None = None
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        self.readers = 0
        self.wanted = False
        self.moved = asyncio.Event()
        self._head = 0
        self._tail = first

    def reaches(self, position: int) -> int:
        """Up to where bytes from `position` on are in memory; `position` itself if none are."""
        if self.image is None:
            return position
        if position >= self.first or self._head == self.first:
            return max(position, self._tail)
        return max(position, self._head)

    def gives(self, position: int) -> bool:
        """Whether the byte at `position` is, or will be, in memory if all goes well."""
        return self.whole or self.first <= position < self.end

    def narrow(self) -> None:
        """Fetch no more than readers have asked for so far; before the first byte."""
        self.first = self._tail = self.start
        self.end = self.stop
        self.whole = False
        self.tell()

    def put(self, data: bytes | memoryview) -> None:
        """The next bytes that were fetched."""
        assert self.image is not None
        if self._tail < self.end:
            self.image[self._tail : self._tail + len(data)] = data
            self._tail += len(data)
        else:
            self.image[self._head : self._head + len(data)] = data
            self._head += len(data)
        self.tell()

    def finish(self, outcome: Outcome, error: BaseException | None = None) -> None:
        self.outcome, self.error = outcome, error
        self.tell()

    def tell(self) -> None:
        """Wake who waits."""
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()


class Fills:
    """The fills of one process. Used from one event loop.

    Args:
        block_size: Of the store.
        counters: The store's.
        pool: For what blocks.
        index: For what waits for a turn at the cache's index.
        fill_bytes: Most memory that fills hold.
        timeout_s: A source that makes no progress for so long has failed.

    Attributes:
        source: Who is asked; None: nobody, and nothing may be fetched.
        timeout_s: As given.
        claim_s: Longest wait for a block's place, and for a damaged one's removal.
    """

    def __init__(
        self,
        block_size: int,
        counters: Counters,
        pool: Executor,
        index: Executor,
        *,
        fill_bytes: int,
        timeout_s: float,
    ) -> None:
        self.source: BlobSource | None = None
        self._block_size = block_size
        self._counters = counters
        self._pool = pool
        self._index = index
        self.timeout_s = timeout_s
        self.claim_s = self._wait_s = min(WAIT_S, timeout_s)
        self._images = Images(fill_bytes, lambda change: counters.add(filling_bytes=change), self._spare)
        self._closed = False
        self._running: dict[tuple[bytes, int], Fill] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # Ended, and their memory still looked at; the oldest first.
        self._lingering: dict[Fill, None] = {}

    async def close(self) -> None:
        """Give up what runs, and begin nothing more. Who waits is told SourceUnavailable."""
        self._closed = True
        while tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def fetch(
        self, blob_id: bytes, size: int, number: int, start: int, stop: int, begin: Begin, *, heals: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """Bytes `start` to `stop` of a block; may end early, and then the rest can be read from the block's file.

        Args:
            blob_id, size, number: The block, and the size of its blob in bytes.
            start, stop: Within the block's data.
            begin: How to take the block's place, if this becomes a fill.
            heals: Whether the block was here and is damaged.

        Raises:
            SourceUnavailable, NotAtSource
            MissingBlob: The blob was deleted.
        """
        fill = self._join(blob_id, size, number, start, begin, heals, self.source)
        position = start
        turn = _TURN_BYTES
        fill.readers += 1
        fill.start, fill.stop = min(fill.start, start), max(fill.stop, stop)
        try:
            while position < stop:
                end = min(fill.reaches(position), stop, position + _PIECE)
                if end > position:
                    assert fill.image is not None
                    # A copy: the reader may hold it for as long as a client is slow, and the image is wanted again.
                    piece = bytes(fill.image[position:end])
                    position = end
                    yield piece
                    turn -= len(piece)
                    if turn <= 0:
                        turn = _TURN_BYTES
                        await asyncio.sleep(0)
                elif fill.outcome is not None or not await self._moved(fill, position):
                    break
        finally:
            fill.readers -= 1
            self._release(fill)
        if position == stop or fill.outcome is Outcome.HERE:
            return
        if fill.outcome is Outcome.FAILED:
            raise _again(fill.error)
        async with aclosing(self.pass_through(blob_id, size, number, position, stop)) as pieces:
            async for piece in pieces:
                yield piece

    def ahead(self, blob_id: bytes, size: int, number: int, begin: Begin, is_missing: Callable[[], bool]) -> None:
        """Begin to fetch a block that a reader is about to come to, if it is not here and there is memory to spare.

        Args:
            blob_id, size, number: The block, and the size of its blob in bytes.
            begin: How to take the block's place.
            is_missing: Whether it is not here; blocks.
        """

        async def fetch() -> None:
            if await self._on_thread(is_missing) and not self._closed and (blob_id, number) not in self._running:
                self._join(blob_id, size, number, 0, begin, False, self.source).wanted = True

        image = padded(block_length(size, self._block_size, number)) + FOOTER_BYTES
        if not self._closed and (blob_id, number) not in self._running and self._images.has_room(image):
            self._start(fetch(), f"look for {blob_id.hex()}.{number}")

    async def keep(
        self,
        blob_id: bytes,
        size: int,
        number: int,
        begin: Begin,
        *,
        heals: bool = False,
        source: BlobSource | None = None,
    ) -> None:
        """Have a block here, whatever it takes: in its file, or where a fill that was under way already puts it.

        Args:
            blob_id, size, number, begin, heals: As for `fetch`.
            source: Who is asked, if not the one that all are fetched from.

        Raises:
            SourceUnavailable, NotAtSource, MissingBlob: It could not be fetched.
            CacheFull, DiskFull, DiskFailed, FillInProgress, BlobGone: It could not be kept.
        """
        fill = self._join(blob_id, size, number, 0, begin, heals, source or self.source)
        fill.wanted = True
        while fill.outcome is None:
            await fill.moved.wait()
        if fill.outcome is not Outcome.HERE:
            raise _again(fill.error)

    async def pass_through(
        self, blob_id: bytes, size: int, number: int, start: int, stop: int
    ) -> AsyncGenerator[bytes, None]:
        """Bytes `start` to `stop` of a block straight from the source, in constant memory, and not kept.

        Raises:
            SourceUnavailable, NotAtSource
        """
        self._counters.add(passed_through=1)
        base = number * self._block_size
        assert self.source is not None
        async with aclosing(self.received(self.source, blob_id, size, base + start, base + stop)) as pieces:
            async for piece in pieces:
                self._counters.add(passed_through_bytes=len(piece))
                yield bytes(piece)

    def keeps(self, blob_id: bytes) -> bool:
        """Whether the source lets blocks of a blob be kept in the cache."""
        keeps = getattr(self.source, "keeps", None)
        return keeps is None or keeps(blob_id)

    async def lives(self, source: BlobSource, blob_id: bytes) -> bool:
        """Ask whether a blob is still wanted.

        Raises:
            SourceUnavailable: There was no answer in time.
        """
        try:
            async with asyncio.timeout(self.timeout_s):
                return await source.lives(blob_id)
        except OSError as error:
            text = f"the source does not tell whether blob {blob_id.hex()} lives: {error or 'no answer'}"
            raise SourceUnavailable(text) from error

    def _join(
        self,
        blob_id: bytes,
        size: int,
        number: int,
        start: int,
        begin: Begin,
        heals: bool,
        source: BlobSource | None,
    ) -> Fill:
        if self._closed:
            raise SourceUnavailable("the store is being closed")
        fill = self._running.get((blob_id, number))
        if fill is not None:
            self._counters.add(fills_joined=1)
            fill.heals |= heals
            return fill
        length = block_length(size, self._block_size, number)
        assert source is not None
        fill = Fill((blob_id, number), size, length, start // CHUNK * CHUNK, heals, source)
        self._running[fill.block] = fill
        task = self._start(self._run(fill, begin), f"fill {blob_id.hex()}.{number}")
        task.add_done_callback(partial(self._cut_off, fill))
        return fill

    def _cut_off(self, fill: Fill, _: "asyncio.Task[None]") -> None:
        """A task that is cancelled before it first runs does not run at all."""
        if fill.outcome is None:
            self._end(fill, Outcome.FAILED, SourceUnavailable("the store is being closed"))

    def _start(self, work: Coroutine[None, None, None], name: str) -> "asyncio.Task[None]":
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _moved(self, fill: Fill, position: int) -> bool:
        """Wait until there are bytes at `position`, or the fill has ended; False if that takes too long, or there will
        be none.

        Twice the time after which a silent source fails the fill: who would wait longer waits for other bytes first.
        """
        try:
            async with asyncio.timeout(2 * self.timeout_s):
                while fill.outcome is None and fill.reaches(position) == position:
                    if not fill.gives(position):
                        return False
                    await fill.moved.wait()
        except TimeoutError:
            return False
        return True

    async def _run(self, fill: Fill, begin: Begin) -> None:
        started_ns = time.monotonic_ns()
        try:
            error = await self._fill(fill, begin)
        except BlockPresent:
            outcome, error = Outcome.HERE, None
        except BytesError as failure:
            if isinstance(failure, MissingBlob) and not isinstance(failure, NotAtSource):
                self._counters.add(fills_dropped=1)
            else:
                self._counters.add(fills_failed=1)
            outcome, error = Outcome.FAILED, failure
        except asyncio.CancelledError:
            self._end(fill, Outcome.FAILED, SourceUnavailable("the store is being closed"))
            raise
        except BaseException as failure:
            self._counters.add(fills_failed=1)
            self._end(fill, Outcome.FAILED, failure)
            raise
        else:
            outcome = Outcome.UNKEPT if error is not None else Outcome.HERE
            if error is None:
                self._counters.filled(time.monotonic_ns() - started_ns)
                self._counters.add(healed=fill.heals)
        self._end(fill, outcome, error)

    async def _fill(self, fill: Fill, begin: Begin) -> BytesError | None:
        """Fetch and keep a block. Returns why nothing was kept, if that is no reason to fail who waits."""
        fill.image = await self._images.take(padded(fill.length) + FOOTER_BYTES, self._wait_s)
        if fill.image is None:
            return CacheFull("other fills hold all the memory that fills may use")
        try:
            keeping = await self._begin(fill, begin)
        except BlockPresent:
            raise
        except BytesError as error:
            await self._share(fill)
            return error
        try:
            refusal = await self._receive(fill)
        except BaseException:
            await self._on_thread(keeping.abandon, self._index)
            raise
        if refusal is not None:
            await self._on_thread(keeping.abandon, self._index)
            return refusal
        try:
            # The image by itself, for the fill loses its own when it is cancelled meanwhile.
            await self._on_thread(partial(self._commit, fill, fill.image, keeping))
        except (BlobGone, NotKept) as error:
            self._counters.add(fills_dropped=1)
            return error
        except BytesError as error:
            self._counters.add(fills_failed=1)
            return error
        return None

    async def _share(self, fill: Fill) -> None:
        """Fetch what the readers of a block want, for all of them at once and for as long as there are any."""
        if not fill.readers:
            return
        fill.narrow()
        self._counters.add(passed_through=1)
        base = fill.block[1] * self._block_size
        span = base + fill.first, base + fill.end
        async with aclosing(self.received(fill.source, fill.block[0], fill.size, *span)) as pieces:
            async for piece in pieces:
                self._counters.add(passed_through_bytes=len(piece))
                fill.put(piece)
                if not fill.readers:
                    return

    async def _receive(self, fill: Fill) -> BytesError | None:
        """Fetch a block into memory. Returns why it may not be kept, if it may not."""
        blob_id, number = fill.block
        if not await self.lives(fill.source, blob_id):
            raise MissingBlob(f"blob {blob_id.hex()} was deleted")
        base = number * self._block_size
        for start, stop in ((fill.first, fill.length), (0, fill.first)):
            if start < stop:
                span = base + start, base + stop
                async with aclosing(self.received(fill.source, blob_id, fill.size, *span)) as pieces:
                    async for piece in pieces:
                        fill.put(piece)
                        self._counters.add(fill_bytes=len(piece))
        try:
            if await self.lives(fill.source, blob_id):
                return None
        except SourceUnavailable as error:  # who waits has the bytes
            self._counters.add(fills_failed=1)
            return error
        self._counters.add(fills_dropped=1)
        return BlobGone(f"blob {blob_id.hex()} was deleted while block {number} was fetched")

    async def _begin(self, fill: Fill, begin: Begin) -> Keeping:
        """Take the block's place; while another process has it, wait for the block, or for that one's end."""

        def claim() -> Keeping:
            # On a thread, where its turn may have come late.
            if not fill.readers and not fill.wanted:
                raise CacheFull("everybody who asked for it has left")
            return begin()

        deadline_s = time.monotonic() + self.claim_s
        while True:
            beginning: Future[Keeping] = self._index.submit(claim)
            waiting = asyncio.wrap_future(beginning)
            waiting.add_done_callback(retrieve)
            try:
                await asyncio.wait({waiting}, timeout=max(0.0, deadline_s - time.monotonic()))
            except asyncio.CancelledError:
                self._disown(beginning)
                raise
            if not waiting.done():
                self._disown(beginning)
                raise BlobBusy("the cache's index is kept by another process")
            try:
                return waiting.result()
            except FillInProgress:
                if time.monotonic() >= deadline_s:
                    raise
            await asyncio.sleep(POLL_S)

    def _disown(self, beginning: Future[Keeping]) -> None:
        """Nobody waits for this place any more: do not take it, or give it up."""
        if beginning.cancel():
            return
        if beginning.done():
            self._index.submit(_abandon, beginning)
        else:
            beginning.add_done_callback(_abandon)

    def _commit(self, fill: Fill, image: memoryview, keeping: Keeping) -> None:
        """On a thread: seal the image as a block file's content, and keep it."""
        end = padded(fill.length)
        image[fill.length : end] = bytes(end - fill.length)
        checksums = b"".join(
            chunk_checksum(image[start : min(start + CHUNK, end)]) for start in range(0, fill.length, CHUNK)
        )
        blob_id, number = fill.block
        image[end:] = Footer(blob_id, number, fill.length, self._block_size, checksums).encode()
        keeping.commit(image)

    async def received(
        self, source: BlobSource, blob_id: bytes, size: int, start: int, stop: int
    ) -> AsyncGenerator[bytes | memoryview, None]:
        """Exactly bytes `start` to `stop` of the blob from the source, none of them late."""
        what = f"bytes {start} to {stop} of blob {blob_id.hex()}"
        turn = CHUNK
        # Of the present window: who takes the pieces may be slow, so that only what is waited here counts.
        waited_s, lacking = 0.0, PROGRESS_BYTES
        clock_s = asyncio.get_running_loop().time
        pieces: AsyncIterator[bytes | memoryview] = aiter(source.read(blob_id, size, start, stop))
        try:
            while True:
                asked_s = clock_s()
                try:
                    async with asyncio.timeout(self.timeout_s - waited_s):
                        # An empty one is no progress, and lets the time-out come.
                        while not (piece := await anext(pieces)):  # noqa: ASYNC110  # nothing tells
                            await asyncio.sleep(0)
                except StopAsyncIteration:
                    break
                except OSError as error:  # time-outs are some
                    raise SourceUnavailable(f"the source does not give {what}: {error or 'no answer'}") from error
                waited_s += clock_s() - asked_s
                lacking -= len(piece)
                if lacking <= 0:
                    waited_s, lacking = 0.0, PROGRESS_BYTES
                start += len(piece)
                if start > stop:
                    raise SourceUnavailable(f"the source gave more than {what}")
                for at in range(0, len(piece), CHUNK):
                    part = piece if len(piece) <= CHUNK else memoryview(piece)[at : at + CHUNK]
                    yield part
                    turn -= len(part)
                    if turn <= 0:  # a source that never has to wait lets others run
                        turn = CHUNK
                        await asyncio.sleep(0)
        finally:
            if (close := getattr(pieces, "aclose", None)) is not None:
                # Whatever becomes of it, what came before counts.
                with contextlib.suppress(OSError):
                    async with asyncio.timeout(self.timeout_s):
                        await close()
        if start < stop:
            raise SourceUnavailable(f"the source gave {stop - start} bytes too few of {what}")

    async def _on_thread(self, job: Callable[[], T], pool: Executor | None = None) -> T:
        """Run a job to its end, whether or not the caller is cancelled."""
        running = asyncio.wrap_future((pool or self._pool).submit(job))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            running.add_done_callback(retrieve)
            raise

    def _end(self, fill: Fill, outcome: Outcome, error: BaseException | None) -> None:
        del self._running[fill.block]
        fill.finish(outcome, error)
        if fill.image is not None:
            self._lingering[fill] = None
            self._release(fill)

    def _release(self, fill: Fill) -> None:
        """Give back the memory of a fill that has ended and that nobody reads."""
        if not fill.readers and fill in self._lingering:
            self._drop(fill)

    def _spare(self) -> None:
        """Take the memory from readers that lag behind the end of their fills."""
        for fill in list(self._lingering):
            self._drop(fill)

    def _drop(self, fill: Fill) -> None:
        del self._lingering[fill]
        image, fill.image = fill.image, None
        assert image is not None
        # After a cancelled fill a thread may still be writing it out.
        self._images.give(image, reuse=fill.outcome is not Outcome.FAILED)


def retrieve(job: "asyncio.Future[T]") -> None:
    """Take note of how a job ended whose caller is gone: asyncio complains of an error that nobody has seen."""
    if not job.cancelled():
        job.exception()


def _again(error: BaseException | None) -> BaseException:
    """The error for one of several who wait: an exception of its own, for raising one changes it."""
    assert error is not None
    if not isinstance(error, BytesError):
        return error
    # Past the constructor, which need not take what it made of its arguments.
    mine = type(error).__new__(type(error), *error.args)
    mine.__dict__.update(error.__dict__)
    mine.__cause__ = error
    return mine


def _abandon(beginning: Future[Keeping]) -> None:
    """Give up a place if it was taken. Called on a thread, whatever became of the loop."""
    if not beginning.cancelled() and beginning.exception() is None:
        beginning.result().abandon()
