"""What becomes of a whole blob when this node becomes one of its homes, or is one no longer.

Adopting brings every block durably to `home/`: a good one of the cache is moved there, the rest is fetched and written
straight there. Demoting moves every block from `home/` to the cache. Blocks are whole wherever they are, so that both
may be cut off at any moment and done again, by several processes at once. A block is moved by a rename, within a turn
at the cache's index, whose rows claim too much after a crash and never too little.

A blob that is deleted meanwhile leaves nothing. Deleting empties the cache, then `home/`, and then the cache of what
was demoted in between; who adopts asks whether the blob still lives when all of it is at home.

Deliberately absent: which node is whose home. The caller decides it, and that one blob is not adopted and demoted at
the same time: both would end well, and say what the other has undone.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from typing import ParamSpec, TypeVar

from tigrislike.bytecache.cache import Cache
from tigrislike.bytecache.errors import (
    BlobBusy,
    BlobGone,
    BlockPresent,
    CacheFull,
    DiskFull,
    FillInProgress,
    MissingBlob,
    NotAtSource,
    PinsFull,
    SourceUnavailable,
    from_os_error,
)
from tigrislike.bytecache.filesystem import sync_directory
from tigrislike.bytecache.fills import Fills, retrieve
from tigrislike.bytecache.footer import FOOTER_BYTES, block_count, block_length, padded
from tigrislike.bytecache.mending import Mending
from tigrislike.bytecache.reading import DamagedBlock, Local, OpenBlock, UnreadableBlock
from tigrislike.bytecache.recovery import for_each_block
from tigrislike.bytecache.source import BlobSource
from tigrislike.bytecache.truth import verify_open
from tigrislike.bytecache.verified import Identity

Gate = Callable[[int], Awaitable[object]]
"""Awaited with the bytes that are about to be fetched: whoever limits the rate lets them pass."""

P = ParamSpec("P")
T = TypeVar("T")

_BUSY = (FillInProgress, BlobBusy)
_UNKEPT = (CacheFull, BlobGone)
"""How a reader's fill that was joined may end though the blob lives and there is room for it."""


class Homing:
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

    async def adopt(
        self, blob_id: bytes, size: int, source: BlobSource | None, progress: Callable[[int], None], gate: Gate | None
    ) -> int:
        """See `BlockStore.adopt`; what is left of a blob that turned out to be deleted is for the caller to remove.

        Raises:
            BlobGone: The blob was deleted.
        """
        source = source or self._fills.source
        fetched = 0
        passed: set[int] = set()

        async def adopt_block(number: int) -> None:
            nonlocal fetched
            length = block_length(size, self._local.layout.block_size, number)
            while True:
                damage = None
                try:
                    who = await self._run(self._pool, self._look, blob_id, size, number)
                    if who is None:
                        break
                    path = self._local.layout.home_block(blob_id, number)
                    await self._run(self._index, self._cache.give, blob_id, number, path, who)
                    continue
                except (DamagedBlock, UnreadableBlock) as error:
                    damage = error
                except MissingBlob:
                    pass
                if damage is not None and damage.place == "cache":
                    await self._run(self._index, self._cache.remove_block, blob_id, number, "corrupt", damage.who)
                if source is None:
                    raise SourceUnavailable("this node has no source to fetch blocks from")
                if gate is not None and number not in passed:
                    await gate(length)
                    passed.add(number)
                there = damage.who if damage is not None and damage.place == "home" else None
                claim = partial(self._claim, padded(length) + FOOTER_BYTES)
                begin = partial(Mending.begin, self._local, blob_id, number, "home", there, claim)
                await self._fills.keep(blob_id, size, number, begin, heals=there is not None, source=source)
                fetched += length
            progress(length)

        count = block_count(size, self._local.layout.block_size)
        try:
            await for_each_block(count, adopt_block, (*_BUSY, *_UNKEPT), self._fills.timeout_s)
            lives = source is None or await self._fills.lives(source, blob_id)
        except NotAtSource:
            raise
        except MissingBlob:
            lives = False  # a fill has asked
        if not lives:
            raise BlobGone(f"blob {blob_id.hex()} was deleted")
        await self._run(self._pool, self._sync_home, blob_id)
        return fetched

    async def demote(self, blob_id: bytes, size: int, keep: bool) -> int:
        """See `BlockStore.demote`; with `keep` False, what the cache has is left there."""
        keep = keep and self._fills.keeps(blob_id)
        released = 0

        async def demote_block(number: int) -> None:
            nonlocal released
            left = await self._run(self._index, self._demote_block, blob_id, size, number, keep)
            released += left  # apart, for others add to it meanwhile

        count = block_count(size, self._local.layout.block_size)
        await for_each_block(count, demote_block, _BUSY, self._fills.timeout_s)
        await self._run(self._pool, self._sync_home, blob_id)
        return released

    def _look(self, blob_id: bytes, size: int, number: int) -> Identity | None:
        """None if a block is in `home/`; who its file in the cache is, if it is good and durable there.

        Raises:
            MissingBlob: It is in neither.
            DamagedBlock, UnreadableBlock: It is of no use.
            BlobBusy: It is about to be published.
        """
        block = OpenBlock.open(self._local, blob_id, size, number)
        try:
            if block.place == "home":
                return None
            if block.place == "incoming":
                raise BlobBusy(f"blob {blob_id.hex()} is being published by another process")
            try:
                self._local.fs.fdatasync(block.fd)
                verify_open(self._local, block)
            except OSError as error:
                raise block.unreadable(error) from error
            return block.who
        finally:
            block.close()

    def _demote_block(self, blob_id: bytes, size: int, number: int, keep: bool) -> int:
        """Bytes of the block that left `home/`: all, or none if it was not there."""
        fs, path = self._local.fs, self._local.layout.home_block(blob_id, number)
        length = block_length(size, self._local.layout.block_size, number)
        try:
            found = fs.stat(path).st_size
            # One of another size is damaged, and the index would be wrong about it.
            if keep and found == padded(length) + FOOTER_BYTES:
                with contextlib.suppress(BlockPresent, CacheFull, PinsFull, DiskFull, BlobGone):
                    self._cache.begin(blob_id, number, length, taken=path).take()
                    return length
            fs.unlink(path)
        except (FileNotFoundError, MissingBlob):
            return 0
        except OSError as error:
            raise from_os_error(error, f"demoting block {number} of blob {blob_id.hex()}") from error
        return length

    def _sync_home(self, blob_id: bytes) -> None:
        """Make durable what was moved to and from `home/`, by whichever process: no rename before was synced."""
        try:
            sync_directory(self._local.fs, self._local.layout.shard(blob_id))
        except OSError as error:
            raise from_os_error(error, f"syncing the home of blob {blob_id.hex()}") from error

    async def _run(self, pool: Executor, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        running = asyncio.get_running_loop().run_in_executor(pool, partial(job, *args, **kwargs))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            running.add_done_callback(retrieve)
            raise
