"""The scrubber: reads every block on this node's disk, past the page cache, and verifies every byte of it.

What lies on a disk decays without being read. In every pass each block of `home/` and `cache/` that was there when the
pass began and still is when its turn comes is read at most at a given rate. A damaged one is mended from a source; one
of the cache is dropped, and fetched again at once if it is pinned; if that cannot be, its times are changed, so that
every process verifies it anew before it serves it again. A pass can be left at any moment and goes on where it stopped,
in whichever process; a lock on `scrub.lock` keeps it to one process at a time, and the kernel lets go of it when its
holder dies.

Where a pass is, and what it found, is kept in `scrub.json` in the store's root. To lose that file costs a new pass.
Deliberately absent: uploads in `incoming/`, which are younger than an hour or somebody else's to settle, and whether
blocks are missing, which is fsck's.
"""

import asyncio
import logging
import mmap
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import msgspec

from tigrislike.bytecache.device import DeviceReader
from tigrislike.bytecache.errors import BytesError, CorruptBlock, from_os_error
from tigrislike.bytecache.filesystem import FileSystem, write_all
from tigrislike.bytecache.footer import CHUNK, FOOTER_BYTES, PAGE, Footer, matches, padded
from tigrislike.bytecache.layout import Layout, parse_block_name
from tigrislike.bytecache.reading import BAD_SECTOR
from tigrislike.bytecache.statistics import Counters
from tigrislike.bytecache.verified import Identity, identity

_LOG = logging.getLogger("tigrislike.scrub")

STATE_FILE: Final = "scrub.json"
LOCK_FILE: Final = "scrub.lock"
MAX_NAMED: Final = 100
"""How many damaged blocks the state names; the log names all."""
_SAVE_INTERVAL_S: Final = 10.0
"""What a killed scrubber verifies a second time, at most."""
_BURST_S: Final = 1.0
"""Time that a pass which could not read at its rate may make up for."""
_SHARDS: Final = 256

Tree = Literal["home", "cache"]
Outcome = Literal["sound", "gone", "skipped", "healed", "unwanted", "damaged"]
"""What scrubbing a block comes to: it went away meanwhile; it could not be read for a reason that is not
its own; it was damaged and is replaced or dropped; it is damaged and belongs to no committed blob; it is damaged and
stays so."""


class ScrubRunning(BytesError):
    """Another process scrubs this directory already."""


class ScrubState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the scrubber is. Times are of the wall clock; 0 is never.

    Attributes:
        under_way: Whether a pass was begun and is not completed, by a process that may live or not.
        started_ns: When the present or latest pass began.
        completed_ns: When the latest complete pass ended.
        cursor: The last block done, as (shard, tree, blob id in hex, number); empty between passes.
        blocks, bytes: Verified in the present or latest pass; bytes of files.
        healed: Damaged blocks of that pass which were replaced, or dropped from the cache to be fetched again.
        damaged: Damaged blocks of that pass which stay so: nobody else has them, or the disk refused.
        names: Of the first of those, relative to the root.
    """

    under_way: bool = False
    started_ns: int = 0
    completed_ns: int = 0
    cursor: tuple[int, Tree, str, int] | None = None
    blocks: int = 0
    bytes: int = 0
    healed: int = 0
    damaged: int = 0
    names: tuple[str, ...] = ()

    @property
    def progress(self) -> float:
        """The part of the pass that is done, 0 to 1; blob ids are random, so shards are alike."""
        if not self.under_way:
            return 1.0 if self.completed_ns else 0.0
        return self.cursor[0] / _SHARDS if self.cursor is not None else 0.0


class StoredBlock(NamedTuple):
    """A block file found in one of the trees. Sorted as they are scrubbed."""

    shard: int
    tree: Tree
    blob: str
    number: int

    @property
    def name(self) -> str:
        """Its path below the root."""
        return f"{self.tree}/{self.shard:02x}/{self.blob}.{self.number}"


def read_state(fs: FileSystem, layout: Layout) -> ScrubState:
    """Where the scrubber of a store is. An absent or unreadable file is a store never scrubbed. Blocks.

    Raises:
        OSError
    """
    try:
        fd = fs.open(f"{layout.root}/{STATE_FILE}", os.O_RDONLY)
    except FileNotFoundError:
        return ScrubState()
    try:
        buffer = bytearray(fs.fstat(fd).st_size)
        text = bytes(buffer[: fs.preadv(fd, [buffer], 0, 0)])
    finally:
        fs.close(fd)
    try:
        return msgspec.json.decode(text, type=ScrubState)
    except msgspec.DecodeError as error:
        _LOG.warning("%s cannot be read, the scrubber begins anew: %s", STATE_FILE, error)
        return ScrubState()


def verify_file(fs: FileSystem, path: str, blob_id: bytes, number: int, block_size: int) -> int:
    """Read a block file from the device and verify every byte of it; its size. Blocks.

    Raises:
        CorruptBlock: It is not what was written under that name.
        OSError: It could not be read.
    """
    fd = fs.open(path, os.O_RDONLY)
    try:
        device = DeviceReader(fs, fd)
        size = fs.fstat(fd).st_size
        if size < FOOTER_BYTES or size % PAGE:
            raise CorruptBlock(f"its file has {size} bytes, as no block has")
        buffer = memoryview(mmap.mmap(-1, CHUNK))
        footer = Footer.parse(_read(device, buffer[:FOOTER_BYTES], size - FOOTER_BYTES))
        if (footer.blob_id, footer.number) != (blob_id, number):
            raise CorruptBlock(f"it holds block {footer.number} of blob {footer.blob_id.hex()}")
        end = padded(footer.length)
        if footer.block_size != block_size or size != end + FOOTER_BYTES:
            raise CorruptBlock(f"its file has {size} bytes for {footer.length} of data in blocks of {block_size}")
        for start in range(0, end, CHUNK):
            if not matches(footer, start // CHUNK, _read(device, buffer[: min(CHUNK, end - start)], start)):
                raise CorruptBlock(f"chunk {start // CHUNK} fails its checksum")
        return size
    finally:
        fs.close(fd)


def _read(device: DeviceReader, buffer: memoryview, offset: int) -> memoryview:
    if device.read(buffer, offset) != len(buffer):
        raise CorruptBlock(f"its file ends before byte {offset + len(buffer)}")
    return buffer


@dataclass(frozen=True)
class Remedies:
    """What is done about a damaged block.

    Attributes:
        size_of: The size of a committed blob; None if there is none of that id (any more), so that nothing is lost.
        mend: Given blob id, its size and the block's number: replace the file from a source; False if none has it.
        drop: Given blob id, number and who its file is: remove that file from the cache; False if it is not there.
        restore: Given blob id, its size and the block's number: fetch what was dropped, if it is pinned.
    """

    size_of: Callable[[bytes], Awaitable[int | None]]
    mend: Callable[[bytes, int, int], Awaitable[bool]]
    drop: Callable[[bytes, int, Identity], Awaitable[bool]]
    restore: Callable[[bytes, int, int], Awaitable[object]]


class Scrubber:
    """The scrubber of one store.

    Args:
        rate: Most bytes a second.
        now_ns, clock_s, sleep: The wall clock, a steady one, and waiting; for tests.
    """

    def __init__(
        self,
        fs: FileSystem,
        layout: Layout,
        counters: Counters,
        remedies: Remedies,
        rate: int,
        *,
        now_ns: Callable[[], int] = time.time_ns,
        clock_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._fs = fs
        self._layout = layout
        self._counters = counters
        self._remedies = remedies
        self._rate = rate
        self._now_ns = now_ns
        self._clock_s = clock_s
        self._sleep = sleep

    async def state(self) -> ScrubState:
        """Where the scrubber of this store is, in whichever process.

        Raises:
            DiskFailed
        """
        try:
            return await asyncio.to_thread(read_state, self._fs, self._layout)
        except OSError as error:
            raise from_os_error(error, f"reading {STATE_FILE}") from error

    async def run_if_due(self, interval_s: float) -> ScrubState | None:
        """Complete the pass that is under way, or make one if the latest began `interval_s` ago or longer.

        Raises:
            As run().
        """
        state = await self.state()
        age_s = (self._now_ns() - state.started_ns) / 1e9
        if not state.under_way and 0 <= age_s < interval_s:
            return None
        return await self.run()

    async def run(self, progress: Callable[[ScrubState], None] | None = None) -> ScrubState:
        """Complete the pass that is under way, or make a whole one; what it found.

        May be cancelled at any time: the next call goes on.

        Args:
            progress: Called after each block.

        Raises:
            ScrubRunning: Another process is at it.
            DiskFailed: A directory cannot be listed.
            What `size_of` raises: the pass goes on from there another time.
        """
        lock = self._lock()
        try:
            state = await self.state()
            if not state.under_way:
                state = ScrubState(under_way=True, started_ns=self._now_ns(), completed_ns=state.completed_ns)
            saved_s = due_s = self._clock_s()
            try:
                async for block in self._blocks_after(state.cursor):
                    size, outcome = await self._scrub(block)
                    state = _after(state, block, size, outcome)
                    if progress is not None:
                        progress(state)
                    now_s = self._clock_s()
                    if now_s - saved_s >= _SAVE_INTERVAL_S:
                        saved_s = now_s
                        await asyncio.to_thread(self._save, state)
                    due_s = max(due_s, now_s - _BURST_S) + size / self._rate
                    if due_s > now_s:
                        await self._sleep(due_s - now_s)
                state = msgspec.structs.replace(state, under_way=False, cursor=None, completed_ns=self._now_ns())
            finally:
                self._save(state)
        finally:
            self._unlock(lock)
        return state

    def _lock(self) -> int:
        """The descriptor whose closing lets go of the lock."""
        path = f"{self._layout.root}/{LOCK_FILE}"
        try:
            fd = self._fs.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                if self._fs.lock(fd):
                    return fd
            except OSError:
                self._fs.close(fd)
                raise
            self._fs.close(fd)
        except OSError as error:
            raise from_os_error(error, f"locking {path}") from error
        raise ScrubRunning(f"another process is scrubbing {self._layout.root} already")

    def _unlock(self, fd: int) -> None:
        try:
            self._fs.close(fd)
        except OSError as error:
            raise from_os_error(error, f"unlocking {LOCK_FILE}") from error

    async def _blocks_after(self, cursor: tuple[int, Tree, str, int] | None) -> AsyncIterator[StoredBlock]:
        """Every block there is beyond the cursor, in order; one shard in memory at a time."""
        for shard in range(cursor[0] if cursor is not None else 0, _SHARDS):
            for block in await asyncio.to_thread(self._list, shard):
                if cursor is None or _order(block) > _order(StoredBlock(*cursor)):
                    yield block

    def _list(self, shard: int) -> list[StoredBlock]:
        found: list[StoredBlock] = []
        trees: tuple[Tree, Tree] = ("home", "cache")
        for tree in trees:
            path = f"{self._layout.root}/{tree}/{shard:02x}"
            try:
                names = self._fs.listdir(path)
            except FileNotFoundError:
                continue  # a cache that has never kept a block there
            except OSError as error:
                raise from_os_error(error, f"listing {path}") from error
            blocks = filter(None, map(parse_block_name, names))
            found += [StoredBlock(shard, tree, blob_id.hex(), number) for blob_id, number in blocks]
        return sorted(found, key=_order)

    async def _scrub(self, block: StoredBlock) -> tuple[int, Outcome]:
        """(bytes read, what became of it)."""
        blob_id = bytes.fromhex(block.blob)
        path = f"{self._layout.root}/{block.name}"
        who: Identity | None = None
        try:
            # Asked first, so that a file which has since come in its place is never taken for the damaged one.
            who = identity(await asyncio.to_thread(self._fs.stat, path))
            size = await asyncio.to_thread(verify_file, self._fs, path, blob_id, block.number, self._layout.block_size)
        except FileNotFoundError:
            return 0, "gone"
        except CorruptBlock as error:
            damage = str(error)
        except OSError as error:
            translated = from_os_error(error, f"scrubbing {block.name}")
            if translated.code == "SlowDown":
                raise translated from error  # out of descriptors: that is no fault of the block's
            if error.errno not in BAD_SECTOR:
                _LOG.warning("%s is passed over, it cannot be read: %s", block.name, error.strerror or error)
                return 0, "skipped"
            damage = error.strerror or str(error)
        else:
            self._counters.add(scrubbed_blocks=1, scrubbed_bytes=size)
            return size, "sound"
        self._counters.add(verify_failures=1)
        outcome = await self._remedy(block, blob_id, who)
        if outcome == "damaged":
            _LOG.error("%s is damaged (%s) and stays so: reads of it fail", block.name, damage)
            await asyncio.to_thread(self._void, path)
        else:
            _LOG.warning("%s was damaged (%s): %s", block.name, damage, outcome)
        return self._layout.block_size, outcome

    async def _remedy(self, block: StoredBlock, blob_id: bytes, who: Identity | None) -> Outcome:
        try:
            if block.tree == "cache":
                if who is None:
                    return "damaged"  # nor could its file be dropped, whose name the disk has lost
                if not await self._remedies.drop(blob_id, block.number, who):
                    return "gone"
                await self._restore(block, blob_id)
                return "healed"
            size = await self._remedies.size_of(blob_id)
            if size is None:
                return "unwanted"
            return "healed" if await self._remedies.mend(blob_id, size, block.number) else "damaged"
        except BytesError as error:
            _LOG.error("%s: %s", block.name, error)
            return "damaged"

    async def _restore(self, block: StoredBlock, blob_id: bytes) -> None:
        """See to it that a pinned block is here again."""
        try:
            if (size := await self._remedies.size_of(blob_id)) is not None:
                await self._remedies.restore(blob_id, size, block.number)
        except BytesError as error:
            _LOG.warning("%s was dropped and will be fetched when it is read, for now: %s", block.name, error)

    def _void(self, path: str) -> None:
        """Make every process forget that it has verified this file once."""
        try:
            self._fs.utime(path)
        except FileNotFoundError:
            pass  # deleted meanwhile
        except OSError as error:
            _LOG.error("%s: its times cannot be changed: %s", path, error.strerror or error)

    def _save(self, state: ScrubState) -> None:
        """Keep the state; when the disk refuses, some blocks are verified twice, which is no reason to stop."""
        path = f"{self._layout.root}/{STATE_FILE}"
        try:
            fd = self._fs.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                write_all(self._fs, fd, msgspec.json.encode(state), 0)
            finally:
                self._fs.close(fd)
            self._fs.rename(f"{path}.new", path)
        except OSError as error:
            _LOG.warning("%s cannot be written: %s", STATE_FILE, error.strerror or error)


def _order(block: StoredBlock) -> tuple[int, bool, str, int]:
    return block.shard, block.tree == "cache", block.blob, block.number


def _after(state: ScrubState, block: StoredBlock, size: int, outcome: Outcome) -> ScrubState:
    """The state once `block` is done."""
    damaged = outcome == "damaged"
    return msgspec.structs.replace(
        state,
        cursor=tuple(block),
        blocks=state.blocks + (outcome not in ("gone", "skipped")),
        bytes=state.bytes + size,
        healed=state.healed + (outcome == "healed"),
        damaged=state.damaged + damaged,
        names=(*state.names, block.name) if damaged and len(state.names) < MAX_NAMED else state.names,
    )
