"""What is done about a block that is not here, is damaged or cannot be read: drop it, fetch it, replace it.

A damaged block of the cache is dropped and fetched like one that never was here. A damaged durable block (in `home/`,
or in `incoming/` on its way there) stays until a good one has been fetched and is durable, and is then replaced; if
nobody else has it, it is left for the operator, and `corrupt_unhealed` counts each read that fails for it; one that
cannot be opened counts there too, and one that is nowhere as `missing_unhealed`.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import aclosing
from functools import partial
from typing import Final, ParamSpec, TypeVar

from tigrislike.bytecache.cache import Cache
from tigrislike.bytecache.errors import (
    BlobBusy,
    BytesError,
    FillInProgress,
    MissingBlob,
    NotAtSource,
    NotKept,
    SourceUnavailable,
)
from tigrislike.bytecache.fills import POLL_S, Begin, Fills, Keeping, retrieve
from tigrislike.bytecache.footer import FOOTER_BYTES, block_count, block_length, padded
from tigrislike.bytecache.mending import Mending
from tigrislike.bytecache.reading import DamagedBlock, Local, OpenBlock, UnreadableBlock
from tigrislike.bytecache.verified import Identity

_BLOCKS_AT_ONCE: Final = 4
"""Fills that a whole blob keeps going: enough for a network while a disk writes, few enough to leave readers room."""

Damage = DamagedBlock | UnreadableBlock

P = ParamSpec("P")
T = TypeVar("T")


class Recovery:
    """Of one store. Used from its event loop.

    Args:
        local: What is here.
        cache: The evictable blocks.
        fills: How blocks come here.
        pool: For what blocks.
        index: For what waits for a turn at the cache's index.
        claim: See that the disk has so many bytes beside its reserve, or raise DiskFull; blocks.
    """

    def __init__(
        self,
        local: Local,
        cache: Cache,
        fills: Fills,
        pool: Executor,
        index: Executor,
        *,
        claim: Callable[[int], None],
    ) -> None:
        self._local = local
        self._cache = cache
        self._fills = fills
        self._pool = pool
        self._index = index
        self._claim = claim

    async def fetch(
        self,
        blob_id: bytes,
        size: int,
        number: int,
        start: int,
        stop: int,
        reason: BytesError,
        *,
        more: bool,
        direct: bool,
    ) -> AsyncGenerator[bytes, None]:
        """Bytes `start` to `stop` of a block from elsewhere; may end early, and then the rest can be read here.

        Args:
            blob_id, size, number: The block, and the size of its blob in bytes.
            start, stop: Within the block's data.
            reason: Why it could not be read here: MissingBlob, CorruptBlock or DiskFailed.
            more: Whether the next block will be read too: it is fetched meanwhile, if it is not here.
            direct: Do without keeping it: what was kept could not be read.

        Raises:
            SourceUnavailable: Somebody may have it, but does not answer.
            BytesError: `reason`, or MissingBlob, where nobody else has it.
        """
        damage = reason if isinstance(reason, Damage) else None
        if damage is not None and damage.place == "cache" and not await self._dropped_soon(blob_id, number, damage):
            direct = True
        try:
            if self._fills.source is None:
                raise NotAtSource(str(reason))
            if direct:
                pieces = self._fills.pass_through(blob_id, size, number, start, stop)
            else:
                begin = self._begin(blob_id, size, number, damage)
                pieces = self._fills.fetch(blob_id, size, number, start, stop, begin, heals=damage is not None)
            async with aclosing(pieces):
                async for piece in pieces:
                    if more and not direct:
                        more = False
                        self._ahead(blob_id, size, number + 1)
                    yield piece
        except NotAtSource as error:
            if isinstance(reason, MissingBlob) and not direct and await self._is_here(blob_id, size, number):
                return  # it came meanwhile, and that it is here is why nobody else was named
            if isinstance(reason, MissingBlob):
                self._local.counters.add(missing_unhealed=1)
            else:
                self._local.counters.add(corrupt_unhealed=1)
            if not error.for_operators:
                raise  # it says more than that the block is not here
            raise reason from (error if self._fills.source is not None else None)

    async def mend(self, blob_id: bytes, size: int, number: int) -> bool:
        """Replace a block that was found damaged by one from the source; whether that was done.

        Raises:
            SourceUnavailable, FillInProgress, CacheFull, DiskFull, DiskFailed: Not now.
        """
        try:
            damage = await self._run(self._condemn, blob_id, size, number)
            if damage.place == "cache":
                await self._run_on(self._index, self._drop_damaged, blob_id, number, damage)
            if self._fills.source is not None:
                begin = self._begin(blob_id, size, number, damage)
                await self._fills.keep(blob_id, size, number, begin, heals=True)
                return True
        except NotAtSource:
            pass
        except MissingBlob:
            return False  # it was deleted
        self._local.counters.add(corrupt_unhealed=1)
        return False

    async def drop(self, blob_id: bytes, number: int, who: Identity) -> bool:
        """Drop a block of the cache that was found damaged; False if that file is not there any more.

        Raises:
            BlobBusy, DiskFailed
        """
        self._local.known.forget(blob_id, number)
        return await self._run_on(self._index, self._cache.remove_block, blob_id, number, "corrupt", who)

    async def restore(self, blob_id: bytes, size: int, number: int) -> bool:
        """Fetch a block that is not here, if its blob is pinned; whether it was fetched. Raises as warm() does."""
        pinned = await self._run_on(self._index, self._cache.pinned, blob_id)
        return pinned and await self._fetch_missing(blob_id, size, number)

    async def warm(self, blob_id: bytes, size: int, progress: Callable[[int], None]) -> int:
        """Fetch every block of a blob that is not here; the bytes that were fetched.

        Args:
            blob_id, size: The blob and its size in bytes.
            progress: Called on the loop with the bytes of each block that turned out to be here or has come here.

        Raises:
            SourceUnavailable, NotAtSource: A block cannot be had; or there is no source.
            CacheFull, DiskFull, DiskFailed: A block cannot be kept.
            NotKept: The source does not let it be kept.
            FillInProgress, BlobBusy: Another process keeps a block, or the index, and no block came here for as long
                as a source may be silent.
        """
        fetched = 0

        async def warm_block(number: int) -> None:
            nonlocal fetched
            length = block_length(size, self._local.layout.block_size, number)
            if await self._fetch_missing(blob_id, size, number):
                fetched += length
            progress(length)

        count = block_count(size, self._local.layout.block_size)
        await for_each_block(count, warm_block, (FillInProgress, BlobBusy), self._fills.timeout_s)
        return fetched

    async def _fetch_missing(self, blob_id: bytes, size: int, number: int) -> bool:
        """Whether the block had to be fetched."""
        damage: Damage | None = None
        try:
            await self._run(self._see, blob_id, size, number)
            return False
        except DamagedBlock as error:
            damage = error
            if damage.place == "cache":
                await self._run_on(self._index, self._drop_damaged, blob_id, number, damage)
        except MissingBlob:
            pass
        if self._fills.source is None:
            raise SourceUnavailable("this node has no source to fetch blocks from")
        begin = self._begin(blob_id, size, number, damage)
        try:
            await self._fills.keep(blob_id, size, number, begin, heals=damage is not None)
        except NotAtSource:
            if damage is not None or not await self._is_here(blob_id, size, number):
                raise
            return False
        return True

    def _begin(self, blob_id: bytes, size: int, number: int, damage: Damage | None) -> Begin:
        length = block_length(size, self._local.layout.block_size, number)
        if damage is not None and damage.place != "cache":
            claim = partial(self._claim, padded(length) + FOOTER_BYTES)
            return partial(Mending.begin, self._local, blob_id, number, damage.place, damage.who, claim)
        if not self._fills.keeps(blob_id):
            return partial(_refuse, blob_id)

        def begin() -> Keeping:
            return _Permitted(blob_id, self._cache.begin(blob_id, number, length), self._fills.keeps)

        return begin

    def _ahead(self, blob_id: bytes, size: int, number: int) -> None:
        """Have the block that will be read next on its way, unless it is here in some tree, or would not be kept."""
        if not self._fills.keeps(blob_id):
            return

        def is_missing() -> bool:
            try:
                self._see(blob_id, size, number)
            except MissingBlob:
                return True
            except BytesError:
                pass  # whoever reads it sees to it
            return False

        self._fills.ahead(blob_id, size, number, self._begin(blob_id, size, number, None), is_missing)

    async def _dropped_soon(self, blob_id: bytes, number: int, damage: Damage) -> bool:
        """Drop the file from the cache; False if that takes longer than a reader can wait, and is done later."""
        dropping = asyncio.get_running_loop().run_in_executor(self._index, self._drop_damaged, blob_id, number, damage)
        dropping.add_done_callback(retrieve)
        await asyncio.wait({dropping}, timeout=self._fills.claim_s)
        return dropping.done()

    def _drop_damaged(self, blob_id: bytes, number: int, damage: Damage) -> None:
        """Drop the file from the cache, unless another has taken its place."""
        # A file that the disk does not let go of is in the way of every fill, and so is passed by.
        with contextlib.suppress(OSError, BytesError):
            self._cache.remove_block(blob_id, number, "corrupt", damage.who)

    def _condemn(self, blob_id: bytes, size: int, number: int) -> Damage:
        """A block that somebody else found damaged: have it verified again by whoever reads it meanwhile."""
        try:
            block = OpenBlock.open(self._local, blob_id, size, number)
        except DamagedBlock as error:
            return error
        try:
            block.forget()
            return DamagedBlock("it was found damaged", block.place, block.who)
        finally:
            block.close()

    async def _is_here(self, blob_id: bytes, size: int, number: int) -> bool:
        try:
            await self._run(self._see, blob_id, size, number)
        except MissingBlob:
            return False
        except BytesError:
            pass  # whoever reads it says what is wrong with it
        return True

    def _see(self, blob_id: bytes, size: int, number: int) -> None:
        OpenBlock.open(self._local, blob_id, size, number).close()

    async def _run(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run_on(self._pool, job, *args, **kwargs)

    async def _run_on(self, pool: Executor, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        running = asyncio.get_running_loop().run_in_executor(pool, partial(job, *args, **kwargs))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            running.add_done_callback(retrieve)
            raise


class _Permitted:
    """A place in the cache, used only if the source still lets the blob be kept once it has read it: before, it may not
    have known."""

    def __init__(self, blob_id: bytes, place: Keeping, keeps: Callable[[bytes], bool]) -> None:
        self._blob_id = blob_id
        self._place = place
        self._keeps = keeps

    def commit(self, image: memoryview) -> None:
        if not self._keeps(self._blob_id):
            self._place.abandon()
            _refuse(self._blob_id)
        self._place.commit(image)

    def abandon(self) -> None:
        self._place.abandon()


def _refuse(blob_id: bytes) -> Keeping:
    raise NotKept(f"blob {blob_id.hex()} may not be kept on this node")


async def for_each_block(
    count: int,
    do: Callable[[int], Awaitable[None]],
    busy: tuple[type[BytesError], ...],
    patience_s: float,
) -> None:
    """Do something for each block of a blob, a few at a time, in about their order.

    Args:
        count: Of blocks.
        do: Given a block's number.
        busy: What it raises where others are at the block just now, and is then called again.
        patience_s: After so long in which no block was done, what is `busy` is raised too.
    """
    loop = asyncio.get_running_loop()
    moved_s = loop.time()
    numbers = iter(range(count))

    async def work() -> None:
        nonlocal moved_s
        for number in numbers:
            while True:
                try:
                    await do(number)
                    break
                except busy:
                    if loop.time() - moved_s > patience_s:
                        raise
                await asyncio.sleep(POLL_S)
            moved_s = loop.time()

    tasks = [asyncio.create_task(work()) for _ in range(_BLOCKS_AT_ONCE)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
