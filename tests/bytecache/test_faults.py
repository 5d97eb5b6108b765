"""Every system call fails once: the error is the right one, nothing is left behind, and the store goes on."""

import asyncio
import ctypes
import errno
import os
import threading
from pathlib import Path

import pytest

from tests.bytecache.blobs import BLOCK, drain, put, stored_files
from tests.bytecache.faults import (
    FailNth,
    HookedFileSystem,
    NoDirectAtOpen,
    NoDirectAtWrite,
    NoSync,
    ShortWrites,
    SmallDisk,
)
from tigrislike.bytecache import BlockStore, BytesError, DiskFailed, DiskFull, TooManyOpenFiles, filesystem
from tigrislike.bytecache.filesystem import FileSystem
from tigrislike.bytecache.footer import FOOTER_BYTES
from tigrislike.bytecache.sealing import UNIT
from tigrislike.bytecache.store import READ_THREADS

DATA = os.urandom(2 * BLOCK + 777)


async def _upload_read_delete(store: BlockStore, reached: list[str]) -> None:
    writer = store.create_blob()
    reached.append(writer.blob_id.hex())
    try:
        for start in range(0, len(DATA), 10_000):
            await writer.write(DATA[start : start + 10_000])
        await writer.finish()
    except BytesError:
        await writer.abort()
        raise
    reached.append("committed")
    try:
        assert await drain(store.open_blob(writer.blob_id, len(DATA)).read(0, len(DATA))) == DATA
        await store.publish(writer.blob_id)
    except BytesError:
        store.release(writer.blob_id)
        raise
    await store.verify_blob(writer.blob_id, len(DATA))
    reached.append("dead")
    await store.delete_blob(writer.blob_id)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def _read_ahead_is_over(store: BlockStore) -> None:
    """A read that failed leaves what it had asked for ahead to the threads: until all of them meet, for want of it."""
    meeting = threading.Barrier(READ_THREADS)
    loop = asyncio.get_running_loop()
    await asyncio.gather(*(loop.run_in_executor(store._readers, meeting.wait) for _ in range(READ_THREADS)))


@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.ENOSPC, DiskFull), (errno.EIO, DiskFailed), (errno.EMFILE, TooManyOpenFiles)],
    ids=["ENOSPC", "EIO", "EMFILE"],
)
@pytest.mark.parametrize("forever", [False, True], ids=["once", "from-then-on"])
def test_a_failure_of_the_nth_system_call_is_reported_and_leaves_nothing(
    scratch: Path, code: int, expected: type[BytesError], forever: bool
) -> None:
    fail = FailNth(code)
    store = BlockStore.open(scratch, block_size=BLOCK, fs=HookedFileSystem(fail))

    async def attempt(nth: int) -> bool:
        """True when call number `nth` was never made."""
        before = _descriptors()
        reached: list[str] = []
        fail.arm(nth, forever=forever)
        try:
            await _upload_read_delete(store, reached)
            error = None
        except BytesError as caught:
            error = caught
        finally:
            failed, _ = list(fail.failed), fail.disarm()
        blob_id, committed, dead = bytes.fromhex(reached[0]), "committed" in reached, "dead" in reached
        if error is not None:
            assert failed
            assert isinstance(error, expected), failed

        async def settle(asked: bytes) -> bool:
            assert asked == blob_id
            return committed and not dead

        stats = await store.sweep(settle)
        assert stats.failures == ()
        assert stats.live == 0
        if committed and not dead:
            assert await drain(store.open_blob(blob_id, len(DATA)).read(0, len(DATA))) == DATA
        if committed:
            await store.delete_blob(blob_id)
        assert stored_files(scratch) == []
        assert os.listdir(scratch / "incoming") == []
        await _read_ahead_is_over(store)
        now = store.statistics()
        assert (now.uploads, now.in_flight_bytes, now.open_blocks) == (0, 0, 0)
        # The pools' threads and the loop's own descriptors are there from the first attempt on.
        assert _descriptors() <= before or nth == 1
        return not failed

    async def story() -> None:
        nth = 1
        while not await attempt(nth):
            nth += 1
        assert nth > 40

    asyncio.run(story())
    store.close()


def test_every_failing_step_of_opening_is_reported_and_the_next_open_succeeds(scratch: Path) -> None:
    fail = FailNth(errno.EIO)
    for nth in range(1, 1000):
        root = scratch / "deep" / str(nth)
        # All 256 fan-out directories fail alike; a sample of them will do.
        if 30 < nth < 260:
            continue
        fail.arm(nth)
        try:
            BlockStore.open(root, block_size=BLOCK, fs=HookedFileSystem(fail)).close()
        except DiskFailed:
            fail.disarm()
            BlockStore.open(root, block_size=BLOCK).close()
            continue
        if not fail.failed:
            break
    else:
        pytest.fail("opening never got through")


@pytest.mark.parametrize("fs", [NoDirectAtOpen(), NoDirectAtWrite(), ShortWrites()], ids=lambda fs: type(fs).__name__)
def test_filesystems_without_direct_io_or_with_short_writes_work_the_same(scratch: Path, fs: FileSystem) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=fs)

    async def story() -> None:
        for size in (0, 1, BLOCK, 3 * BLOCK + 5):
            data = os.urandom(size)
            blob_id = await put(store, data)
            assert await drain(store.open_blob(blob_id, size).read(0, size)) == data
            await store.verify_blob(blob_id, size)

    asyncio.run(story())
    assert store.statistics().direct_io is isinstance(fs, ShortWrites)
    store.close()


def test_the_reserve_is_refused_before_writing_and_uploads_work_again_when_space_returns(scratch: Path) -> None:
    disk = SmallDisk(total_bytes=100 * BLOCK, available_bytes=10 * BLOCK)
    store = BlockStore.open(scratch, block_size=BLOCK, reserve_bytes=10**15, fs=disk)

    async def story() -> None:
        writer = store.create_blob()
        await writer.write(b"does not fit")
        with pytest.raises(DiskFull, match="reserve"):
            await writer.finish()
        with pytest.raises(DiskFull):
            await writer.write(b"more")
        await writer.abort()
        assert stored_files(scratch) == []
        # At most a tenth of the volume is kept, and one block fits beside it.
        disk.available_bytes = 11 * BLOCK + FOOTER_BYTES
        await put(store, bytes(BLOCK))

    asyncio.run(story())
    assert DiskFull.code == "SlowDown"
    store.close()


def test_a_digest_that_raises_fails_the_upload_with_its_own_error_and_leaves_nothing(scratch: Path) -> None:
    class Refused(Exception):
        pass

    def digest(data: memoryview) -> None:
        raise Refused

    store = BlockStore.open(scratch, block_size=BLOCK)

    async def story() -> None:
        writer = store.create_blob(digest)
        await writer.write(b"refused by the first job, which finish() starts")
        with pytest.raises(Refused):
            await writer.finish()
        assert os.listdir(scratch / "incoming") == []

    asyncio.run(story())
    store.close()


def test_listing_what_is_stored_reports_a_directory_that_cannot_be_read(scratch: Path) -> None:
    broken = os.path.join(scratch, "home", "c7")

    def hook(name: str, args: tuple[object, ...]) -> None:
        if name == "listdir" and args == (broken,):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = BlockStore.open(scratch, block_size=BLOCK, fs=HookedFileSystem(hook))

    async def story() -> None:
        await put(store, b"one")
        with pytest.raises(DiskFailed, match="home/c7"):
            [blob async for blob in store.blobs()]

    asyncio.run(story())
    store.close()


def test_an_upload_leaves_no_pages_behind_where_there_is_no_direct_io(scratch: Path) -> None:
    done: list[str] = []

    class Recording(NoDirectAtOpen):
        def fdatasync(self, fd: int) -> None:
            done.append("synced")

        def fadvise(self, fd: int, offset: int, length: int, advice: int) -> None:
            assert (offset, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
            done.append("dropped")

    store = BlockStore.open(scratch, block_size=BLOCK, fs=Recording())
    done.clear()
    asyncio.run(put(store, bytes(2 * BLOCK)))
    store.close()
    assert done == ["synced", "dropped"] * 2


class _Evicting(SmallDisk):
    """A disk with no room but for its reserve and what `make_room` gives back of a cache, a block at a time."""

    def __init__(self, reserve_bytes: int, cached_blocks: int) -> None:
        super().__init__(10 * reserve_bytes, reserve_bytes)
        self.reserve_bytes = reserve_bytes
        self.cached_blocks = cached_blocks
        self.asked: list[int] = []

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        written = super().pwrite(fd, data, offset)
        self.available_bytes -= written
        return written

    def make_room(self, wanted_bytes: int) -> int:
        self.asked.append(wanted_bytes)
        freed = min(self.cached_blocks, 1)
        self.cached_blocks -= freed
        self.available_bytes += freed * (BLOCK + FOOTER_BYTES)
        return freed * (BLOCK + FOOTER_BYTES)

    def could_make_room(self, wanted_bytes: int) -> bool:
        return self.available_bytes + self.cached_blocks * (BLOCK + FOOTER_BYTES) - wanted_bytes >= self.reserve_bytes


def test_the_cache_makes_room_for_an_upload_block_by_block_unless_all_that_is_announced_cannot_fit(
    scratch: Path,
) -> None:
    disk = _Evicting(10 * BLOCK, cached_blocks=6)
    store = BlockStore.open(scratch, block_size=BLOCK, reserve_bytes=10 * BLOCK, fs=disk)
    store._disk.make_room, store._disk.could_make_room = disk.make_room, disk.could_make_room
    disk.available_bytes = disk.reserve_bytes

    async def upload(announced: int, sent: int) -> None:
        writer = store.create_blob(size=announced)
        await writer.write(bytes(sent))
        try:
            await writer.finish()
        finally:
            await writer.abort()

    async def story() -> None:
        with pytest.raises(DiskFull, match="reserve"):
            await upload(7 * BLOCK, 1)
        assert (disk.asked, disk.cached_blocks) == ([], 6), "nothing is evicted in vain"
        await upload(6 * BLOCK, BLOCK)
        assert (disk.asked, disk.cached_blocks) == ([BLOCK + FOOTER_BYTES], 5), "much is announced and little sent"
        disk.available_bytes += BLOCK  # it was aborted
        await upload(5 * BLOCK, 5 * BLOCK)
        assert disk.cached_blocks == 0
        assert stored_files(scratch) == []

    asyncio.run(story())
    store.close()


def test_a_cache_that_cannot_make_room_leaves_the_upload_without(scratch: Path) -> None:
    def broken(wanted_bytes: int) -> int:
        raise DiskFailed("the index is gone")

    disk = SmallDisk(100 * BLOCK, 10 * BLOCK)
    store = BlockStore.open(scratch, block_size=BLOCK, reserve_bytes=10 * BLOCK, fs=disk)
    store._disk.make_room = broken

    async def story() -> None:
        writer = store.create_blob(size=1)
        await writer.write(b"x")
        with pytest.raises(DiskFull, match="reserve"):
            await writer.finish()

    asyncio.run(story())
    store.close()


@pytest.mark.parametrize("call", ["fallocate", "pwrite"])
@pytest.mark.parametrize("room", [0, 1], ids=["no room made", "room made"])
def test_a_disk_that_is_fuller_than_it_said_is_written_to_again_once_there_is_room(
    scratch: Path, call: str, room: int
) -> None:
    full = True

    def hook(name: str, args: tuple[object, ...]) -> None:
        if name == call and full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def make_room(wanted_bytes: int) -> int:
        nonlocal full
        full = not room
        return room

    BlockStore.open(scratch, block_size=4 * UNIT).close()
    store = BlockStore.open(scratch, block_size=4 * UNIT, fs=HookedFileSystem(hook))
    store._disk.make_room = make_room
    data = os.urandom(2 * UNIT)

    async def story() -> None:
        writer = store.create_blob(size=len(data))
        await writer.write(data)
        if not room:
            with pytest.raises(DiskFull):
                await writer.finish()
            assert stored_files(scratch) == []
            return
        await writer.finish()
        assert await drain(store.open_blob(writer.blob_id, len(data)).read(0, len(data))) == data

    asyncio.run(story())
    store.close()


def test_where_space_cannot_be_reserved_blocks_are_written_without(scratch: Path) -> None:
    asked = 0

    class NoFallocate(NoSync):
        def fallocate(self, fd: int, length: int) -> bool:
            nonlocal asked
            asked += 1
            return False

    store = BlockStore.open(scratch, block_size=4 * UNIT, fs=NoFallocate())

    async def story() -> None:
        for _ in range(2):
            writer = store.create_blob(size=2 * UNIT)
            await writer.write(bytes(2 * UNIT))
            await writer.finish()

    asyncio.run(story())
    assert asked == 1, "a filesystem without it is asked once"
    store.close()


def test_the_system_reserves_space_or_says_why_not(scratch: Path) -> None:
    fs = FileSystem()
    fd = fs.open(str(scratch / "file"), os.O_CREAT | os.O_WRONLY)
    try:
        assert fs.fallocate(fd, 1 << 20)
        status = fs.fstat(fd)
        assert (status.st_size, status.st_blocks * 512) == (0, 1 << 20)
    finally:
        fs.close(fd)
    reader, writer = os.pipe()
    try:
        with pytest.raises(OSError, match="Illegal seek"):
            fs.fallocate(writer, 1)
    finally:
        os.close(reader)
        os.close(writer)


def test_two_uploads_that_find_direct_writes_refused_at_the_same_time_both_go_on(scratch: Path) -> None:
    BlockStore.open(scratch, block_size=BLOCK, fs=NoSync()).close()
    both = threading.Barrier(2)

    class Together(NoDirectAtWrite):
        def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
            if fd in self.direct:
                both.wait(60)
            return super().pwrite(fd, data, offset)

    store = BlockStore.open(scratch, block_size=BLOCK, fs=Together())

    async def story() -> None:
        data = os.urandom(BLOCK)
        for blob_id in await asyncio.gather(put(store, data), put(store, data)):
            assert await drain(store.open_blob(blob_id, BLOCK).read(0, BLOCK)) == data

    asyncio.run(story())
    store.close()


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_an_interrupted_reservation_goes_on_and_one_that_there_cannot_be_says_so(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    answers = [errno.EINTR, errno.EINTR, code]

    def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
        ctypes.set_errno(answers.pop(0))
        return -1

    monkeypatch.setattr(filesystem, "_fallocate", fallocate)
    assert FileSystem().fallocate(0, 1) is False
    assert answers == []
