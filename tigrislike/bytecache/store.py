"""The block store of one node: blobs in, blobs out, on a local filesystem that several processes share.

Guarantees. A blob whose writer's `finish()` returned survives a power cut. Until `publish` it lies in a directory of
its own, locked by its live owner; a sweep by anybody settles the directories of dead owners, and of no others. A reader
finds a committed blob before, during and after publication. Bytes are verified before their first serve.

A blob becomes durable here in one of three ways: it is uploaded, received as a copy of what is uploaded elsewhere
(`copies.py`), or adopted later (`homing.py`, which also lets it go).

Beside what is durable here lies what was fetched from a source and may be dropped at any time (`cache.py`). A read
finds either; what is nowhere here, or is damaged, it fetches.

Deliberately absent: which blobs are committed (the caller knows, `sweep` asks), and a list of blobs held in memory: the
directory is the truth.
"""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal, ParamSpec, TypeVar

from tigrislike.bytecache.cache import Cache, CachedBlock, Reconciled, Usage
from tigrislike.bytecache.copies import Copy, receive, take_over
from tigrislike.bytecache.errors import BlobBusy, BlobGone, BytesError, DiskFailed, MissingBlob, from_os_error
from tigrislike.bytecache.filesystem import FileSystem, sync_directory
from tigrislike.bytecache.fills import Fills, retrieve
from tigrislike.bytecache.footer import ID_BYTES, block_count
from tigrislike.bytecache.homing import Gate, Homing
from tigrislike.bytecache.incoming import NEW, Incoming, remove_draft
from tigrislike.bytecache.layout import Layout, open_layout, parse_blob_name, parse_block_name
from tigrislike.bytecache.policies import named
from tigrislike.bytecache.reader import BlobReader
from tigrislike.bytecache.reading import Local
from tigrislike.bytecache.recovery import Recovery
from tigrislike.bytecache.sealing import BlockSealer, Digest, Disk
from tigrislike.bytecache.source import BlobSource
from tigrislike.bytecache.statistics import Counters, Statistics
from tigrislike.bytecache.truth import StoredBlob, scan_incoming, scan_shard, verify_block
from tigrislike.bytecache.verified import Identity, Verified
from tigrislike.bytecache.writer import BlobWriter, InFlight

DEFAULT_BLOCK_SIZE: Final = 8 * 1024 * 1024
DEFAULT_RESERVE_BYTES: Final = 1024 * 1024 * 1024
"""Left free on the filesystem (a tenth of it at most), for the metadata database that may share it and because a full
filesystem fragments and stalls."""
DEFAULT_THREADS: Final = 8
"""Most of their time is spent waiting for the disk, so more than there are cores."""
READ_THREADS: Final = 4
FILL_THREADS: Final = 4
"""For sealing and writing blocks that were fetched."""
INDEX_THREADS: Final = 2
"""For what needs a turn at the cache's index, which one at a time has."""
DEFAULT_FILL_BYTES: Final = 256 * 1024 * 1024
DEFAULT_FILL_TIMEOUT_S: Final = 10.0

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SweepStats:
    """What one sweep did.

    Attributes:
        published: Blobs that were committed and whose move to `home/` was completed.
        removed: Directories that were unlinked: never committed, or empty.
        live: Directories whose owner holds the lock, left alone.
        failures: (blob id, error) of directories that the disk would not move or remove; the next sweep tries again.
    """

    published: int
    removed: int
    live: int
    failures: tuple[tuple[bytes, BytesError], ...]


class BlockStore:
    """Open with `BlockStore.open`, after any fork; use from one event loop; close with `aclose`, or with `close` once
    that loop has ended.

    Attributes:
        node_id: 16 bytes made with the directory.
        block_size: Bytes of data per block.
        fs: The system calls.
        layout: Where things lie.
        counters: What is counted.
    """

    def __init__(
        self,
        fs: FileSystem,
        layout: Layout,
        cache: Cache,
        counters: Counters,
        verified: Verified,
        *,
        reserve_bytes: int,
        threads: int,
        fill_bytes: int,
        fill_timeout_s: float,
        verify_always: bool,
    ) -> None:
        self.node_id = layout.node_id
        self.block_size = layout.block_size
        self.fs = fs
        self.layout = layout
        self.counters = counters
        self._in_flight = InFlight(counters)
        self._cache = cache
        self._disk = Disk(
            fs, layout, reserve_bytes, counters, make_room=cache.make_room, could_make_room=cache.could_make_room
        )
        self._local = Local(fs, layout, counters, verified, verify_always)
        # Apart, so that a read never queues behind hashing or an fdatasync.
        self._writers = ThreadPoolExecutor(threads, "block-write")
        self._readers = ThreadPoolExecutor(READ_THREADS, "block-read")
        # Apart again, for while another process keeps the index, whoever touches it waits: uploads need not.
        self._fillers = ThreadPoolExecutor(FILL_THREADS, "block-fill")
        self._index = ThreadPoolExecutor(INDEX_THREADS, "block-index")
        self._fills = Fills(
            layout.block_size,
            counters,
            self._fillers,
            self._index,
            fill_bytes=fill_bytes,
            timeout_s=fill_timeout_s,
        )
        hands = self._local, cache, self._fills, self._fillers, self._index
        self._recovery = Recovery(*hands, claim=self._disk.claim)
        self._homing = Homing(*hands, claim=self._disk.claim)

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        block_size: int = DEFAULT_BLOCK_SIZE,
        reserve_bytes: int = DEFAULT_RESERVE_BYTES,
        threads: int = DEFAULT_THREADS,
        fs: FileSystem | None = None,
        cache_bytes: int | None = None,
        policy: str | None = None,
        fill_bytes: int = DEFAULT_FILL_BYTES,
        fill_timeout_s: float = DEFAULT_FILL_TIMEOUT_S,
        verify: Literal["once", "always"] = "once",
        verified: Verified | None = None,
        counters: Counters | None = None,
    ) -> "BlockStore":
        """Open the store under `root`, making it if need be. Blocks for a few milliseconds.

        Args:
            root: Directory; several processes may open the same.
            block_size: Fixed when the directory is made; a multiple of 4096 bytes up to 32 MiB (use multiples of 2 MiB,
                so that blocks can be mapped with huge pages).
            reserve_bytes: Free space that uploads and fills may not use; at most a tenth of the filesystem is kept.
            threads: For writing and hashing.
            fs: The system calls; for tests.
            cache_bytes: Most that evictable blocks may take up; None: what the disk has beyond the reserve.
            policy: Which of them go first: "s3fifo", "sieve", "lru" or "fifo"; None: as the cache was last arranged, at
                first by "s3fifo". Another one than that arranges it anew.
            fill_bytes: Most memory that this process may use for blocks being fetched.
            fill_timeout_s: A source that gives nothing for so long has failed.
            verify: "once": a chunk is verified before it is first served since the node started. "always": at every
                read, which then copies.
            verified: What the node's processes have verified, made before they were forked; None: a table of its own.
            counters: To count in; None: from zero.

        Raises:
            FormatTooNew, NotABlockStore, BlockSizeMismatch, BlobBusy, DiskFull, DiskFailed
        """
        system = fs or FileSystem()
        layout = open_layout(system, root, block_size)
        counters = counters or Counters()
        cache = Cache.open(
            system,
            layout,
            counters,
            capacity_bytes=cache_bytes,
            reserve_bytes=reserve_bytes,
            policy=None if policy is None else named(policy),
        )
        return cls(
            system,
            layout,
            cache,
            counters,
            verified or Verified(),
            reserve_bytes=reserve_bytes,
            threads=threads,
            fill_bytes=fill_bytes,
            fill_timeout_s=fill_timeout_s,
            verify_always=verify == "always",
        )

    async def aclose(self) -> None:
        """Give up fills in progress, then `close` on a thread."""
        await self._fills.close()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Wait for jobs in progress, let go of all locks: what is neither published nor aborted is a sweeper's."""
        self._writers.shutdown()
        self._readers.shutdown()
        self._fillers.shutdown()
        self._index.shutdown()
        for blob_id in list(self._disk.held):
            self.release(blob_id)
        self._cache.close()

    def fill_from(self, source: BlobSource | None) -> None:
        """From now on fetch blocks that are not here, or are damaged, from `source`; None: from nowhere."""
        self._fills.source = source

    @property
    def reserve_bytes(self) -> int:
        """Free space that uploads and fills may not use, on a filesystem that is large enough (`Space.reserve`)."""
        return self._disk.reserve_bytes

    def statistics(self) -> Statistics:
        return self.counters.snapshot(direct_io=self._disk.direct)

    async def check(self) -> None:
        """See that the directory can be used: it is there, and its filesystem not mounted read-only.

        Raises:
            DiskFailed
        """
        await self._run("checking the cache directory", self._check)

    def _check(self) -> None:
        try:
            flags = os.statvfs(self.layout.incoming).f_flag
        except FileNotFoundError as error:  # which of a block would say something else
            raise DiskFailed(f"{self.layout.incoming} is gone") from error
        if flags & os.ST_RDONLY:
            raise DiskFailed(f"{self.layout.incoming} is on a filesystem mounted read-only")

    async def check_room(self) -> None:
        """See that uploads find room beside the reserve, or would once what can be evicted is.

        Raises:
            DiskFull, DiskFailed
        """
        await self._run("looking for room", self._disk.check, self.block_size)

    def create_blob(
        self, digest: Digest | None = None, *, beside: Digest | None = None, size: int | None = None
    ) -> BlobWriter:
        """Begin a blob under a fresh random id. Touches the disk with the first megabyte, or in finish().

        Args:
            digest: Called on a worker thread with each piece, in order, before it is written.
            beside: Likewise, but at the same time, on another thread: for the slower of two digests.
            size: Most bytes that will come, if it is known: space is claimed for them before the first is written.
        """
        blob_id = secrets.token_bytes(ID_BYTES)
        return BlobWriter(
            blob_id,
            self.block_size,
            BlockSealer(self._disk, blob_id, digest, size),
            self._writers,
            self._in_flight,
            beside=beside,
            size=size,
        )

    def open_blob(self, blob_id: bytes, size: int, *, fetch: bool = True) -> BlobReader:
        """Read a committed blob of `size` bytes. Does no I/O: a missing block is reported by the read that meets it.

        Args:
            fetch: Whether what is not here, or damaged, is fetched; else reading it raises MissingBlob or CorruptBlock.
        """
        recovery = self._recovery if fetch else None
        return BlobReader(self._local, self._cache, recovery, self._readers, blob_id, size)

    async def publish(self, blob_id: bytes) -> None:
        """Move a finished and committed blob to `home/`. Doing it again, or for a blob that is there, does nothing.

        When it fails the blob stays readable and its lock is let go of, so that a sweep completes the move.

        Raises:
            BlobBusy: Another live process owns the upload.
            DiskFull, DiskFailed
        """
        await self._run(f"publishing blob {blob_id.hex()}", self._publish, blob_id)

    def release(self, blob_id: bytes) -> None:
        """Let go of a finished blob whose commit is in doubt: a sweep will settle it. Unknown ids are ignored."""
        incoming = self._disk.held.pop(blob_id, None)
        if incoming is not None:
            self.counters.add(uploads=-1)
            incoming.release()

    async def receive_copy(self, blob_id: bytes, size: int, pieces: BlobSource) -> Copy:
        """Store a blob that another node receives and has not committed yet. It is durable here when this returns, and
        held as an upload of this process until the copy is published, released or aborted.

        Args:
            blob_id, size: The blob and its size in bytes.
            pieces: Gives its bytes; `lives` is not asked.

        Returns:
            The copy; also where the blob is here already.

        Raises:
            BlobBusy: The blob is in `incoming/`, and its owner lives.
            SourceUnavailable, NotAtSource: Its bytes cannot be had, or not all of them.
            DiskFull, DiskFailed, TooManyOpenFiles
        """
        if not await self._run(f"looking for blob {blob_id.hex()}", take_over, self._disk, blob_id, size):
            sealer = BlockSealer(self._disk, blob_id, None, size, Incoming.receive)
            writer = BlobWriter(blob_id, self.block_size, sealer, self._writers, self._in_flight, size=size)
            await receive(writer, size, self._fills, pieces)
        return Copy(blob_id, self.publish, self.release, self._discard)

    async def adopt(
        self,
        blob_id: bytes,
        size: int,
        *,
        source: BlobSource | None = None,
        progress: Callable[[int], None] = lambda _: None,
        gate: Gate | None = None,
    ) -> int:
        """Have every block of a committed blob durably in `home/`, whichever of them are there, in the cache or
        elsewhere. May be cut off at any moment, and done again.

        Args:
            blob_id, size: The blob and its size in bytes.
            source: Who has what is not here; None: whom all is fetched from.
            progress: Called on the loop with the bytes of each block that turned out to be there or has come there.
            gate: Awaited with the bytes of each block before it is fetched, to limit the rate.

        Returns:
            Bytes that were fetched.

        Raises:
            BlobGone: The blob is deleted, says the source; nothing of it is left here.
            SourceUnavailable, NotAtSource: A block cannot be had; or there is no source.
            BlobBusy, FillInProgress, CacheFull: Others are at it, keep the index or hold the memory for fills, and no
                block has come for as long as a source may be silent.
            DiskFull, DiskFailed: A block cannot be written; those that came stay.
        """
        await self.publish(blob_id)
        try:
            return await self._homing.adopt(blob_id, size, source, progress, gate)
        except BlobGone:
            await self.delete_blob(blob_id, size)
            raise

    async def demote(self, blob_id: bytes, size: int, *, keep: bool = True) -> int:
        """Have no block of a blob in `home/`, for others are its homes now. May be cut off at any moment, and done
        again. Readers go on: what they have open they keep, and what they open is in the cache, or fetched.

        Args:
            blob_id, size: The blob and its size in bytes.
            keep: Whether its blocks go to the cache, as evictable as any (or pinned, if the blob is). One that the
                cache has no room for is removed, and so are all if the source lets none be kept, or False is said:
                then the cache is emptied of them too.

        Returns:
            Bytes that left `home/`.

        Raises:
            BlobBusy, FillInProgress: Others are at it, or keep the index.
            DiskFailed
        """
        await self.publish(blob_id)
        released = await self._homing.demote(blob_id, size, keep)
        if not keep:
            remove = partial(self._cache.remove_blob, blob_id, "request")
            await self._run_indexed(f"removing blob {blob_id.hex()} from the cache", remove)
        return released

    async def delete_blob(self, blob_id: bytes, size: int | None = None) -> None:
        """Remove every block of a dead blob, durably, from the cache too, with its pin. Blocks that are not there are
        fine; what is being fetched of it will not be kept.

        Args:
            blob_id: 16 bytes.
            size: In bytes, if known: spares listing a directory.

        Raises:
            BlobBusy: A live process still owns it as an upload, or holds the cache's index.
            DiskFailed
        """
        doing = f"deleting blob {blob_id.hex()}"
        await self._run(doing, self._delete_upload, blob_id)
        await self._run_indexed(doing, self._cache.remove_blob, blob_id, "deleted")
        if await self._run(doing, self._delete_home, blob_id, size):
            await self._run_indexed(doing, self._cache.remove_blob, blob_id, "deleted")

    # What operators ask of the cache.

    async def usage(self) -> Usage:
        """What the cache holds, over all processes."""
        return await self._run_indexed("looking at the cache", self._cache.usage)

    async def cached_blocks(self, after: tuple[bytes, int] | None = None, limit: int = 1000) -> list[CachedBlock]:
        """Evictable blocks in order of blob id and number, `limit` at a time, from behind `after` on."""
        return await self._run_indexed("listing the cache", self._cache.blocks, after, limit)

    async def pin(self, blob_id: bytes) -> None:
        """Keep a blob's blocks in the cache, those that are there and those that will come. Durable when it returns.

        Raises:
            PinsFull: The cache would hold too little else.
            BlobBusy, DiskFull, DiskFailed
        """
        await self._run_indexed(f"pinning blob {blob_id.hex()}", self._cache.pin, blob_id)

    async def unpin(self, blob_id: bytes) -> bool:
        """Let the blob's blocks be evicted again; whether it was pinned."""
        return await self._run_indexed(f"unpinning blob {blob_id.hex()}", self._cache.unpin, blob_id)

    async def pins(self, after: bytes = b"", limit: int = 1000) -> list[bytes]:
        """Pinned blobs in order of their ids, `limit` at a time, from behind `after` on."""
        return await self._run_indexed("listing pins", self._cache.pins, after, limit)

    async def evict(self, blob_id: bytes) -> int:
        """Drop the blob's blocks from the cache, unless it is pinned, and not from `home/`; bytes of files freed."""
        remove = partial(self._cache.remove_blob, blob_id, "request", spare_pinned=True)
        return await self._run_indexed(f"evicting blob {blob_id.hex()}", remove)

    async def is_pinned(self, blob_id: bytes) -> bool:
        """Whether a blob is pinned."""
        return await self._run_indexed(f"looking for the pin of blob {blob_id.hex()}", self._cache.pinned, blob_id)

    async def warm(self, blob_id: bytes, size: int, progress: Callable[[int], None] = lambda _: None) -> int:
        """Fetch every block of a blob that is not on this node, a few at a time; the bytes that were fetched.

        Args:
            blob_id, size: The blob and its size in bytes.
            progress: Called on the loop with the bytes of each block that turned out to be here or has come here.

        Raises:
            SourceUnavailable, NotAtSource: A block cannot be had; or there is no source.
            CacheFull, DiskFull, DiskFailed: A block cannot be kept.
        """
        return await self._recovery.warm(blob_id, size, progress)

    async def flush_hits(self) -> None:
        """Tell the cache which blocks were read. Every process that reads should, each second."""
        await self._run_indexed("noting hits", self._cache.flush)

    async def reconcile(self) -> Reconciled:
        """Make the cache's index agree with its directory. Others serve meanwhile; a million blocks take seconds."""
        return await self._run_indexed("reconciling the cache", self._cache.reconcile)

    async def mend(self, blob_id: bytes, size: int, number: int) -> bool:
        """Replace a block that was found damaged by one from the source; whether that was done. If not, whoever reads
        it from now on verifies it again, and `corrupt_unhealed` is counted.

        Raises:
            SourceUnavailable, FillInProgress, CacheFull, DiskFull, DiskFailed: Not now.
        """
        return await self._recovery.mend(blob_id, size, number)

    async def drop(self, blob_id: bytes, number: int, who: Identity) -> bool:
        """Drop a block of the cache that was found damaged, in the file `who`; False if that is not there any more.

        Raises:
            BlobBusy, DiskFailed
        """
        return await self._recovery.drop(blob_id, number, who)

    async def restore(self, blob_id: bytes, size: int, number: int) -> bool:
        """Fetch a block that is not here, if its blob is pinned; whether it was fetched. Raises as warm() does."""
        return await self._recovery.restore(blob_id, size, number)

    async def sweep(self, settle: Callable[[bytes], Awaitable[bool]]) -> SweepStats:
        """Settle what dead processes left in `incoming/`.

        Args:
            settle: Given a blob id: True if it is committed (it is then published); False if it never will be, which
                must be decided for ever by the time it returns (it is then removed). What it raises ends the sweep.

        Raises:
            DiskFailed: `incoming/` cannot be listed.
        """
        published = removed = live = 0
        failures: list[tuple[bytes, BytesError]] = []
        for name in await self._run("listing uploads", self.fs.listdir, self.layout.incoming):
            if name.startswith(NEW):
                with contextlib.suppress(BytesError):  # nothing was ever in it; the next sweep tries again
                    removed += await self._run("removing a draft", remove_draft, self.fs, self.layout, name)
                continue
            blob_id = parse_blob_name(name)
            if blob_id is None:
                continue
            try:
                incoming = await self._run(f"adopting blob {name}", Incoming.adopt, self.fs, self.layout, blob_id)
            except MissingBlob:
                continue  # its owner, or another sweep, finished with it just now
            except BytesError as error:
                failures.append((blob_id, error))
                continue
            if incoming is None:
                live += 1
                continue
            try:
                # An empty one was never finished, or was wholly moved already.
                committed = bool(await self._run(f"listing blob {name}", incoming.blocks)) and await settle(blob_id)
            except BytesError as error:
                incoming.release()
                failures.append((blob_id, error))
                continue
            except BaseException:
                incoming.release()
                raise
            try:
                await self._run(f"sweeping blob {name}", incoming.publish if committed else incoming.discard)
            except BytesError as error:
                incoming.release()
                failures.append((blob_id, error))
            else:
                published += committed
                removed += not committed
        return SweepStats(published, removed, live, tuple(failures))

    async def blobs(self) -> AsyncIterator[StoredBlob]:
        """Every blob on this disk, from names and footers alone, damaged ones included: home first, then incoming.

        Holds one of 256 directories in memory at a time. A blob that is published meanwhile may come twice.

        Raises:
            DiskFailed: A directory cannot be listed.
        """
        for path in (*self.layout.shards(), None):
            if path is None:
                found = await self._run("listing uploads", scan_incoming, self.fs, self.layout)
            else:
                found = await self._run(f"listing {path}", scan_shard, self.fs, self.layout, path)
            for blob in found:
                yield blob

    async def verify_blob(self, blob_id: bytes, size: int) -> None:
        """Read a whole blob from the disk itself, past the page cache where the filesystem can, and verify all of it.

        Raises:
            MissingBlob, CorruptBlock, DiskFailed: For the first block that is not as it was written.
        """
        for number in range(block_count(size, self.block_size)):
            await self._run(f"verifying blob {blob_id.hex()}", verify_block, self._local, blob_id, size, number)

    def _publish(self, blob_id: bytes) -> None:
        incoming = self._disk.held.pop(blob_id, None)
        if incoming is not None:
            self.counters.add(uploads=-1)
        else:
            try:
                incoming = Incoming.adopt(self.fs, self.layout, blob_id)
            except FileNotFoundError:
                return  # published already
            if incoming is None:
                raise BlobBusy(f"blob {blob_id.hex()} is being written by another process; let that one publish it")
        try:
            incoming.publish()
        except BaseException:
            incoming.release()
            raise

    def _delete_upload(self, blob_id: bytes) -> None:
        try:
            incoming = Incoming.adopt(self.fs, self.layout, blob_id)
            if incoming is None:
                raise BlobBusy(f"blob {blob_id.hex()} is still an upload with a live owner; try again later")
            try:
                incoming.discard()
            except BaseException:
                incoming.release()
                raise
        except FileNotFoundError:
            pass

    async def _discard(self, blob_id: bytes) -> None:
        """Remove a blob that this process holds in `incoming/`, if it does."""
        incoming = self._disk.held.pop(blob_id, None)
        if incoming is not None:
            await self._run(f"removing blob {blob_id.hex()}", self._disk.discard, incoming)

    def _delete_home(self, blob_id: bytes, size: int | None) -> bool:
        """Whether some of the blob is in the cache again: it was demoted since that was emptied."""
        shard = self.layout.shard(blob_id)
        if size is None:
            # In all that is renamed to there and from there.
            paths = (shard, self.layout.filling)
            names = [parse_block_name(name) for path in paths for name in self.fs.listdir(path)]
            numbers = sorted({name[1] for name in names if name is not None and name[0] == blob_id})
        else:
            numbers = list(range(block_count(size, self.block_size)))
        # Descending, so that what an interrupted removal leaves is a blob cut short, never one with a hole.
        for number in reversed(numbers):
            self._local.known.forget(blob_id, number)
            # First what is about to be renamed over the block (`mending.py`).
            for path in (self.layout.filling_block(blob_id, number), self.layout.home_block(blob_id, number)):
                with contextlib.suppress(FileNotFoundError):
                    self.fs.unlink(path)
        sync_directory(self.fs, shard)
        for number in numbers:
            with contextlib.suppress(FileNotFoundError):
                self.fs.stat(self.layout.cache_block(blob_id, number))
                return True
        return False

    async def _run(self, doing: str, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking job on a thread, to its end even if the caller is cancelled; translate the system's errors."""
        return await self._run_on(self._writers, doing, partial(job, *args, **kwargs))

    async def _run_indexed(self, doing: str, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for a job that needs the cache's index."""
        return await self._run_on(self._index, doing, partial(job, *args, **kwargs))

    async def _run_on(self, pool: Executor, doing: str, job: Callable[[], T]) -> T:
        running = asyncio.get_running_loop().run_in_executor(pool, job)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            running.add_done_callback(retrieve)
            raise
        except FileNotFoundError as error:
            raise MissingBlob(f"{doing}: it is gone") from error
        except OSError as error:
            raise from_os_error(error, doing) from error
