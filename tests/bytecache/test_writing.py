"""A writer's life: bounds, order, misuse, cancellation, giving up, sweeping what it left."""

import asyncio
import errno
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.bytecache.blobs import BLOCK, drain, put, stored_files
from tests.bytecache.faults import FailNth, HookedFileSystem, NoSync
from tigrislike.bytecache import BlockStore, DiskFailed, WriterClosed
from tigrislike.bytecache.incoming import NamesSync
from tigrislike.bytecache.layout import open_layout
from tigrislike.bytecache.sealing import UNIT
from tigrislike.bytecache.store import DEFAULT_BLOCK_SIZE
from tigrislike.bytecache.writer import AHEAD_BYTES, OUTSTANDING_BYTES, SPARE_BYTES


def _always(answer: bool) -> Callable[[bytes], Awaitable[bool]]:
    async def settle(blob_id: bytes) -> bool:
        return answer

    return settle


class _Gate(NoSync):
    """Holds every pwrite until it is opened. The store under `root` is made before."""

    def __init__(self, root: Path, block_size: int) -> None:
        BlockStore.open(root, block_size=block_size, fs=NoSync()).close()
        self.opened = threading.Event()
        self.waiting = threading.Semaphore(0)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self.waiting.release()
        self.opened.wait()
        return super().pwrite(fd, data, offset)


@pytest.mark.parametrize(("others_bytes", "most"), [(0, AHEAD_BYTES), (SPARE_BYTES, OUTSTANDING_BYTES)])
def test_a_writer_faster_than_the_disk_waits_and_holds_a_bounded_amount(
    scratch: Path, others_bytes: int, most: int
) -> None:
    """Less, where other uploads hold much."""
    gate = _Gate(scratch, DEFAULT_BLOCK_SIZE)
    store = BlockStore.open(scratch, fs=gate)
    store._in_flight.bytes += others_bytes
    data = os.urandom(3 * most)

    async def story() -> None:
        writer = store.create_blob()

        async def send() -> None:
            for start in range(0, len(data), 65536):
                await writer.write(data[start : start + 65536])
            await writer.finish()

        sending = asyncio.create_task(send())
        await asyncio.get_running_loop().run_in_executor(None, gate.waiting.acquire)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert not sending.done()
        assert most <= writer.size <= most + UNIT
        assert most <= store.statistics().in_flight_bytes <= most + UNIT
        gate.opened.set()
        await sending
        assert store.statistics().in_flight_bytes == 0
        assert await drain(store.open_blob(writer.blob_id, len(data)).read(0, len(data))) == data

    asyncio.run(story())
    store.close()


def test_memory_that_the_caller_reuses_after_write_does_not_change_the_blob(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())

    async def story() -> None:
        writer = store.create_blob()
        buffer = bytearray(10_000)
        for number in range(20):
            buffer[:] = bytes([number]) * len(buffer)
            await writer.write(memoryview(buffer))
        await writer.finish()
        got = await drain(store.open_blob(writer.blob_id, 200_000).read(0, 200_000))
        assert got == b"".join(bytes([number]) * 10_000 for number in range(20))

    asyncio.run(story())
    store.close()


@pytest.mark.parametrize("end", ["finish", "abort"])
def test_a_closed_writer_takes_nothing_more(scratch: Path, end: str) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())

    async def story() -> None:
        writer = store.create_blob()
        await writer.write(b"x")
        await getattr(writer, end)()
        with pytest.raises(WriterClosed, match=writer.blob_id.hex()):
            await writer.write(b"y")
        with pytest.raises(WriterClosed):
            await writer.finish()

    asyncio.run(story())
    store.close()


@pytest.mark.parametrize("size", [0, 100, BLOCK, 5 * BLOCK], ids=["nothing", "little", "block", "blocks"])
@pytest.mark.parametrize("finished", [False, True], ids=["unfinished", "finished"])
def test_abort_leaves_nothing_and_may_be_repeated(scratch: Path, size: int, finished: bool) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())

    async def story() -> None:
        writer = store.create_blob()
        await writer.write(bytes(size))
        if finished:
            await writer.finish()
            assert store.statistics().uploads == 1
        await writer.abort()
        await writer.abort()
        assert stored_files(scratch) == []
        assert os.listdir(scratch / "incoming") == []
        assert store.statistics().uploads == 0

    asyncio.run(story())
    store.close()


def test_abort_after_publication_takes_nothing_back(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())

    async def story() -> None:
        writer = store.create_blob()
        await writer.write(b"kept")
        await writer.finish()
        await store.publish(writer.blob_id)
        await store.publish(writer.blob_id)
        await writer.abort()
        assert await drain(store.open_blob(writer.blob_id, 4).read(0, 4)) == b"kept"

    asyncio.run(story())
    store.close()


@pytest.mark.parametrize("step", ["write", "finish", "abort"])
def test_a_client_that_vanishes_while_the_disk_is_busy_leaves_nothing(scratch: Path, step: str) -> None:
    gate = _Gate(scratch, BLOCK)
    store = BlockStore.open(scratch, block_size=BLOCK, fs=gate)

    async def story() -> None:
        writer = store.create_blob()

        async def send() -> None:
            await writer.write(bytes(2 * BLOCK if step != "write" else 2 * AHEAD_BYTES))
            await (writer.abort() if step == "abort" else writer.finish())

        sending = asyncio.create_task(send())
        await asyncio.get_running_loop().run_in_executor(None, gate.waiting.acquire)
        for _ in range(10):
            await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        aborting = asyncio.create_task(writer.abort())
        await asyncio.sleep(0)
        gate.opened.set()
        await aborting
        assert stored_files(scratch) == []
        assert os.listdir(scratch / "incoming") == []
        now = store.statistics()
        assert (now.uploads, now.in_flight_bytes) == (0, 0)

    asyncio.run(story())
    store.close()


def test_a_publication_whose_caller_is_cancelled_goes_on(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())

    async def story() -> None:
        writer = store.create_blob()
        await writer.finish()
        publishing = asyncio.create_task(store.publish(writer.blob_id))
        await asyncio.sleep(0)
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing

    asyncio.run(story())
    store.close()  # waits for it
    assert len(stored_files(scratch)) == 1
    assert os.listdir(scratch / "incoming") == []


def test_a_blob_in_doubt_is_left_to_the_sweeper_which_asks(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())

    async def story() -> None:
        for answer in (True, False):
            writer = store.create_blob()
            await writer.write(b"perhaps")
            await writer.finish()
            stats = await store.sweep(_always(False))
            assert (stats.live, stats.removed) == (1, 0)
            store.release(writer.blob_id)
            stats = await store.sweep(_always(answer))
            assert (stats.published, stats.removed) == (answer, not answer)
        assert len(stored_files(scratch)) == 1

    asyncio.run(story())
    store.close()


def test_a_closed_store_leaves_its_unpublished_blobs_to_the_sweeper(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())

    async def story() -> None:
        writer = store.create_blob()
        await writer.finish()

    asyncio.run(story())
    store.close()
    other = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())
    stats = asyncio.run(other.sweep(_always(True)))
    assert stats.published == 1
    other.close()


def test_a_sweep_goes_on_after_a_directory_that_fails_and_takes_it_up_again(scratch: Path) -> None:
    fail = FailNth(5)
    store = BlockStore.open(scratch, block_size=BLOCK, fs=HookedFileSystem(fail))

    async def story() -> None:
        for _ in range(3):
            writer = store.create_blob()
            await writer.write(bytes(2 * BLOCK))
            await writer.finish()
            store.release(writer.blob_id)
        for nth in (3, 8, 9):  # the lock, the listing and a link of the first or second directory
            fail.arm(nth)
            await store.sweep(_always(True))
        fail.disarm()
        stats = await store.sweep(_always(True))
        assert stats.failures == ()
        assert len(stored_files(scratch)) == 6
        assert os.listdir(scratch / "incoming") == []
        fail.arm(1)
        with pytest.raises(DiskFailed):
            await store.sweep(_always(True))

    asyncio.run(story())
    store.close()


def test_what_settle_raises_ends_the_sweep_and_the_blob_stays_for_the_next(scratch: Path) -> None:
    class Unreachable(Exception):
        pass

    async def settle(blob_id: bytes) -> bool:
        raise Unreachable

    store = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())

    async def story() -> None:
        writer = store.create_blob()
        await writer.finish()
        store.release(writer.blob_id)
        with pytest.raises(Unreachable):
            await store.sweep(settle)
        assert (await store.sweep(_always(True))).published == 1

    asyncio.run(story())
    store.close()


def test_foreign_names_in_the_trees_are_left_alone(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())
    (scratch / "incoming" / "README").mkdir()
    (scratch / "home" / "00" / "notes.txt").touch()

    async def story() -> None:
        assert (await store.sweep(_always(False))).removed == 0
        assert [blob async for blob in store.blobs()] == []

    asyncio.run(story())
    assert (scratch / "incoming" / "README").exists()
    store.close()


def test_the_disk_is_described_as_it_is(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())

    async def story() -> None:
        whole = await put(store, bytes(2 * BLOCK + 1))
        holed = await put(store, bytes(3 * BLOCK))
        writer = store.create_blob()
        await writer.write(b"waiting")
        await writer.finish()
        (scratch / "home" / holed.hex()[:2] / f"{holed.hex()}.1").unlink()
        found = {blob.blob_id: blob async for blob in store.blobs()}
        assert set(found) == {whole, holed, writer.blob_id}
        assert (found[whole].size, found[whole].place, found[whole].damage) == (2 * BLOCK + 1, "home", ())
        assert found[whole].disk_bytes == 2 * BLOCK + 4096 + 3 * 4096
        assert (found[holed].blocks, found[holed].damage) == ((0, 2), ("block 1 is missing",))
        assert (found[writer.blob_id].size, found[writer.blob_id].place) == (7, "incoming")
        await store.delete_blob(holed)
        assert not [path for path in stored_files(scratch) if holed.hex() in path.name]

    asyncio.run(story())
    store.close()


def test_statistics_count_what_happened(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())

    async def story() -> None:
        blob_id = await put(store, bytes(3 * BLOCK))
        await drain(store.open_blob(blob_id, 3 * BLOCK).read(10, 3 * BLOCK))
        now = store.statistics()
        assert (now.bytes_written, now.bytes_read, now.verify_failures) == (3 * BLOCK, 3 * BLOCK - 10, 0)
        assert (now.uploads, now.open_blocks, now.in_flight_bytes) == (0, 0, 0)

    asyncio.run(story())
    store.close()


def test_a_block_that_already_has_both_names_is_published_by_losing_one(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())

    async def story() -> None:
        writer = store.create_blob()
        await writer.write(bytes(2 * BLOCK))
        await writer.finish()
        name = writer.blob_id.hex()
        for number in (0, 1):
            os.link(scratch / "incoming" / name / str(number), scratch / "home" / name[:2] / f"{name}.{number}")
        await store.publish(writer.blob_id)
        assert len(stored_files(scratch)) == 2
        assert os.listdir(scratch / "incoming") == []

    asyncio.run(story())
    store.close()


def test_a_foreign_file_beside_the_blocks_keeps_the_directory_and_costs_no_block(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())

    async def story() -> None:
        writer = store.create_blob()
        await writer.write(b"kept")
        await writer.finish()
        (scratch / "incoming" / writer.blob_id.hex() / "notes.txt").touch()
        with pytest.raises(DiskFailed, match="not empty"):
            await store.publish(writer.blob_id)
        assert await drain(store.open_blob(writer.blob_id, 4).read(0, 4)) == b"kept"
        (scratch / "incoming" / writer.blob_id.hex() / "notes.txt").unlink()
        assert (await store.sweep(_always(True))).removed == 1
        assert await drain(store.open_blob(writer.blob_id, 4).read(0, 4)) == b"kept"

    asyncio.run(story())
    store.close()


def _counted_waits(names: NamesSync) -> threading.Semaphore:
    """Released once for each caller that is about to wait for another's sync, which cannot end before it waits."""
    waiting, wait = threading.Semaphore(0), names._changed.wait

    def counted(timeout: float | None = None) -> bool:
        waiting.release()
        return wait(timeout)

    names._changed.wait = counted  # type: ignore[method-assign]
    return waiting


def test_uploads_that_end_at_the_same_time_share_the_sync_of_their_names(scratch: Path) -> None:
    BlockStore.open(scratch, block_size=BLOCK, fs=NoSync()).close()
    incoming, gate, entered = os.stat(scratch / "incoming").st_ino, threading.Event(), threading.Semaphore(0)
    synced: list[int] = []

    class SlowNames(NoSync):
        def fsync(self, fd: int) -> None:
            if os.fstat(fd).st_ino == incoming:
                synced.append(fd)
                entered.release()
                gate.wait()

    fs = SlowNames()
    layout = open_layout(fs, scratch, BLOCK)
    names = NamesSync(fs, layout)
    waiting = _counted_waits(names)
    with ThreadPoolExecutor(6) as threads:
        first = threads.submit(names.sync)
        entered.acquire()
        later = [threads.submit(names.sync) for _ in range(5)]
        for _ in later:
            waiting.acquire()
        gate.set()
        for sync in (first, *later):
            sync.result()
    assert len(synced) == 2, "one that ran already does not serve who came later, and the next serves all of them"


def test_a_sync_of_names_that_fails_fails_for_all_that_share_it_and_not_for_the_next(scratch: Path) -> None:
    BlockStore.open(scratch, block_size=BLOCK, fs=NoSync()).close()
    gate, entered, failing = threading.Event(), threading.Semaphore(0), threading.Event()

    class Failing(NoSync):
        def fsync(self, fd: int) -> None:
            entered.release()
            gate.wait()
            if failing.is_set():
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    gate.set()
    fs = Failing()
    names = NamesSync(fs, open_layout(fs, scratch, BLOCK))
    gate.clear()
    waiting = _counted_waits(names)
    with ThreadPoolExecutor(4) as threads:
        while entered.acquire(blocking=False):
            pass
        first = threads.submit(names.sync)
        entered.acquire()
        later = [threads.submit(names.sync) for _ in range(3)]
        for _ in later:
            waiting.acquire()
        failing.set()
        gate.set()
        for sync in (first, *later):
            with pytest.raises(OSError, match="Input/output"):
                sync.result()
        failing.clear()
        names.sync()


@pytest.mark.parametrize(
    "size", [0, 1, 64 * 1024, 256 * 1024 + 1, 3 * UNIT + 5, DEFAULT_BLOCK_SIZE, DEFAULT_BLOCK_SIZE + UNIT]
)
@pytest.mark.parametrize("beyond", [0, 300_000, None], ids=["exact", "too much", "untold"])
@pytest.mark.parametrize("piece", [70_000, 5 * UNIT])
def test_both_digests_see_all_bytes_in_order_whatever_size_was_told(
    scratch: Path, size: int, beyond: int | None, piece: int
) -> None:
    store = BlockStore.open(scratch, fs=NoSync())
    data = os.urandom(size)
    seen: tuple[list[bytes], list[bytes]] = [], []

    async def story() -> None:
        writer = store.create_blob(
            lambda view: seen[0].append(bytes(view)),
            beside=lambda view: seen[1].append(bytes(view)),
            size=None if beyond is None else size + beyond,
        )
        for start in range(0, size, piece):
            await writer.write(data[start : start + piece])
        await writer.finish()
        assert b"".join(seen[0]) == b"".join(seen[1]) == data
        assert store.statistics().in_flight_bytes == 0
        assert await drain(store.open_blob(writer.blob_id, size).read(0, size)) == data
        await store.verify_blob(writer.blob_id, size)
        await writer.abort()

    asyncio.run(story())
    store.close()


def test_the_slower_digest_is_computed_while_the_same_bytes_are_written(scratch: Path) -> None:
    hashing, written = threading.Event(), threading.Event()

    class Disk(NoSync):
        def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
            hashing.wait()
            written.set()
            return super().pwrite(fd, data, offset)

    def beside(data: memoryview) -> None:
        hashing.set()
        written.wait()

    BlockStore.open(scratch, fs=NoSync()).close()
    store = BlockStore.open(scratch, fs=Disk())

    async def story() -> None:
        writer = store.create_blob(beside=beside)
        await writer.write(bytes(UNIT))
        await writer.finish()

    asyncio.run(asyncio.wait_for(story(), 60))
    store.close()


@pytest.mark.parametrize("size", [100, 3 * UNIT], ids=["alone", "beside"])
@pytest.mark.parametrize("which", ["digest", "beside"])
def test_either_digest_that_raises_fails_the_upload_and_leaves_nothing(scratch: Path, which: str, size: int) -> None:
    class Refused(Exception):
        pass

    def refuse(data: memoryview) -> None:
        raise Refused

    store = BlockStore.open(scratch, fs=NoSync())

    async def story() -> None:
        writer = store.create_blob(**{which: refuse})  # type: ignore[arg-type]
        with pytest.raises(Refused):  # noqa: PT012  # whichever call meets it
            await writer.write(bytes(size))
            await writer.finish()
        assert os.listdir(scratch / "incoming") == []
        with pytest.raises(Refused):
            await writer.ready()
        await writer.abort()
        now = store.statistics()
        assert (now.uploads, now.in_flight_bytes) == (0, 0)

    asyncio.run(story())
    store.close()


def test_blocks_of_a_known_size_are_reserved_before_they_are_written_and_no_longer_than_they_become(
    scratch: Path,
) -> None:
    BlockStore.open(scratch, fs=NoSync()).close()
    reserved: list[int] = []

    class Watched(NoSync):
        def fallocate(self, fd: int, length: int) -> bool:
            assert os.fstat(fd).st_size == 0
            reserved.append(length)
            return super().fallocate(fd, length)

    store = BlockStore.open(scratch, fs=Watched())
    size = DEFAULT_BLOCK_SIZE + 2 * UNIT + 1

    async def story() -> None:
        for told, expected in ((size, [DEFAULT_BLOCK_SIZE + 4096, 2 * UNIT + 2 * 4096]), (None, [])):
            reserved.clear()
            writer = store.create_blob(size=told)
            await writer.write(bytes(size))
            await writer.finish()
            assert reserved == expected
            await store.publish(writer.blob_id)
        writer = store.create_blob(size=UNIT)
        await writer.write(bytes(UNIT))
        await writer.finish()
        assert not reserved, "what is written at once is allocated by that"

    asyncio.run(story())
    assert sum(path.stat().st_blocks * 512 - path.stat().st_size for path in stored_files(scratch)) == 0
    store.close()


@pytest.mark.parametrize("size", [0, 100, UNIT, 2 * UNIT])
def test_more_bytes_than_were_told_are_refused(scratch: Path, size: int) -> None:
    store = BlockStore.open(scratch, fs=NoSync())

    async def story() -> None:
        writer = store.create_blob(size=size)
        await writer.write(bytes(size))
        with pytest.raises(ValueError, match=f"was to have {size} bytes"):
            await writer.write(b"x")
        await writer.abort()
        assert os.listdir(scratch / "incoming") == []
        assert store.statistics().in_flight_bytes == 0

    asyncio.run(story())
    store.close()
