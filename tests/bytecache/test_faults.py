"""Every system call fails once: the error is the right one, nothing is left behind, and the store goes on."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

from tests.bytecache.blobs import BLOCK, drain, put, stored_files
from tests.bytecache.faults import (
    FailNth,
    HookedFileSystem,
    NoDirectAtOpen,
    NoDirectAtWrite,
    ShortWrites,
    SmallDisk,
)
from tigrislike.bytecache import BlockStore, BytesError, DiskFailed, DiskFull, TooManyOpenFiles
from tigrislike.bytecache.filesystem import FileSystem

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
        disk.available_bytes = 11 * BLOCK  # at most a tenth of the volume is kept, and one block fits beside it
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
