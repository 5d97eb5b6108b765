"""Reads: any range, warm or cold, while blobs move, without stalling the loop or leaking descriptors."""

import asyncio
import contextlib
import errno
import os
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bytecache.blobs import BLOCK, drain, put, stored_files
from tests.bytecache.faults import HookedFileSystem, NoSync, Residency, Warm
from tigrislike.bytecache import BlockStore, DiskFailed, MissingBlob, Verified
from tigrislike.bytecache.footer import CHUNK


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_written_in_any_pieces_reads_back_in_any_range(scratch: Path, data: st.DataObject) -> None:
    fs = data.draw(st.sampled_from([NoSync(), Warm(), Residency(), Residency(errno.EOPNOTSUPP)]))
    block_size = data.draw(st.sampled_from([4096, BLOCK, CHUNK + 4096, 5 * CHUNK]))
    size = data.draw(st.integers(0, 4 * block_size) | st.sampled_from([0, block_size, 2 * block_size]))
    content = os.urandom(size)
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=12)))
    root = scratch / uuid.uuid4().hex
    store = BlockStore.open(root, block_size=block_size, fs=fs)

    async def story() -> None:
        writer = store.create_blob()
        for start, stop in zip([0, *cuts], [*cuts, size], strict=True):
            kind = data.draw(st.sampled_from([bytes, bytearray, memoryview]))
            await writer.write(kind(content[start:stop]))
        await writer.finish()
        if data.draw(st.booleans()):
            await store.publish(writer.blob_id)
        reader = store.open_blob(writer.blob_id, size)
        for _ in range(4):
            start, stop = sorted((data.draw(st.integers(0, size)), data.draw(st.integers(0, size))))
            how = data.draw(st.sampled_from(["read", "read_cached", "segments"]))
            if how == "read":
                chunk = data.draw(st.sampled_from([1, CHUNK, 3 * CHUNK]))
                assert await drain(reader.read(start, stop, chunk)) == content[start:stop]
            elif how == "read_cached":
                assert reader.read_cached(start, stop) in (None, content[start:stop])
            else:
                found = [os.pread(s.fd, s.length, s.offset) async for s in reader.segments(start, stop)]
                assert b"".join(found) == content[start:stop]
        store.release(writer.blob_id)
        await store.delete_blob(writer.blob_id, size)
        with pytest.raises(MissingBlob):
            await store.verify_blob(writer.blob_id, size)

    asyncio.run(story())
    store.close()
    assert stored_files(root) == []
    assert store.statistics().open_blocks == 0


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (0, 11), (5, 4), (11, 11)])
def test_a_range_outside_the_blob_is_a_value_error(scratch: Path, start: int, stop: int) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())

    async def story() -> None:
        reader = store.open_blob(await put(store, bytes(10)), 10)
        with pytest.raises(ValueError, match="not inside"):
            await drain(reader.read(start, stop))
        with pytest.raises(ValueError, match="not inside"):
            reader.read_cached(start, stop)

    asyncio.run(story())
    store.close()


def test_read_cached_answers_once_the_block_is_known_and_its_pages_are_cached(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=Warm())

    async def story() -> None:
        data = os.urandom(2 * BLOCK)
        reader = store.open_blob(await put(store, data), len(data))
        assert reader.read_cached(0, 10) is None
        await drain(reader.read(0, len(data)))
        assert reader.read_cached(BLOCK - 5, BLOCK + 5) == data[BLOCK - 5 : BLOCK + 5]
        assert reader.read_cached(3, 3) == b""

    asyncio.run(story())
    store.close()


def test_a_cold_read_leaves_the_loop_free_and_reads_ahead(scratch: Path) -> None:
    """While the disk does not answer, other coroutines run; several pieces are asked for at once."""
    block_size = 8 * CHUNK
    asked = threading.Semaphore(0)
    answer = threading.Event()
    on_loop: list[int] = []

    class StuckDisk(Residency):
        stuck = False

        def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int, flags: int) -> int:
            if self.stuck and not flags & os.RWF_NOWAIT:
                if threading.current_thread() is threading.main_thread():
                    on_loop.append(offset)
                asked.release()
                answer.wait()
            return super().preadv(fd, buffers, offset, flags)

    disk = StuckDisk()
    store = BlockStore.open(scratch, block_size=block_size, fs=disk)

    async def story() -> None:
        data = os.urandom(block_size)
        reader = store.open_blob(await put(store, data), len(data))
        await drain(reader.read(0, 1))  # of a block never seen, one piece is read before more are asked for
        disk.stuck = True
        reading = asyncio.create_task(drain(reader.read(0, len(data))))
        loop = asyncio.get_running_loop()
        for _ in range(3):  # this coroutine goes on while three reads hang
            await loop.run_in_executor(None, asked.acquire)
        assert not reading.done()
        answer.set()
        assert await reading == data

    asyncio.run(story())
    assert on_loop == []
    store.close()


def test_a_warm_reader_lets_others_run(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=Warm())

    async def story() -> None:
        data = os.urandom(80 * BLOCK)
        reader = store.open_blob(await put(store, data), len(data))
        await drain(reader.read(0, len(data)))
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        await drain(reader.read(0, len(data)))
        task.cancel()
        assert turns >= 4

    asyncio.run(story())
    store.close()


@pytest.mark.parametrize("fs", [Warm(), Residency()], ids=["warm", "cold"])
def test_a_read_given_up_closes_what_it_opened(scratch: Path, fs: NoSync) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=fs)

    async def story() -> None:
        data = os.urandom(20 * BLOCK)
        reader = store.open_blob(await put(store, data), len(data))
        for _ in range(2):  # unknown blocks first, known ones then
            async with contextlib.aclosing(reader.read(0, len(data))) as pieces:
                await anext(pieces)
            task = asyncio.create_task(drain(reader.read(0, len(data))))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with contextlib.aclosing(reader.segments(0, len(data))) as segments:
                await anext(segments)
            async with contextlib.aclosing(reader.segments(0, len(data))) as segments:
                task = asyncio.create_task(anext(segments))  # type: ignore[arg-type]
                await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):  # known blocks are given out at once
                    await task

    asyncio.run(story())
    store.close()
    assert store.statistics().open_blocks == 0


def test_a_running_read_survives_the_deletion_of_its_block(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=4 * CHUNK, fs=Warm())

    async def story() -> None:
        data = os.urandom(4 * CHUNK)
        blob_id = await put(store, data)
        reader = store.open_blob(blob_id, len(data))
        await drain(reader.read(0, len(data)))
        pieces = reader.read(0, len(data), CHUNK)
        got = bytes(await anext(pieces))
        await store.delete_blob(blob_id)
        assert got + await drain(pieces) == data
        with pytest.raises(MissingBlob):
            await drain(reader.read(0, 1))

    asyncio.run(story())
    store.close()


def test_a_blob_can_be_read_before_and_at_every_step_of_its_publication(scratch: Path) -> None:
    data = os.urandom(3 * BLOCK)
    steps: list[str] = []
    publishing: list[tuple[asyncio.AbstractEventLoop, bytes]] = []

    def look(name: str, args: tuple[object, ...]) -> None:
        if publishing and name in ("rename", "rmdir") and threading.current_thread().name != "reader":
            loop, blob_id = publishing[0]
            reader = store.open_blob(blob_id, len(data))
            assert asyncio.run_coroutine_threadsafe(drain(reader.read(0, len(data))), loop).result() == data
            steps.append(name)

    store = BlockStore.open(scratch, block_size=BLOCK, fs=HookedFileSystem(look))

    async def story() -> None:
        writer = store.create_blob()
        await writer.write(data)
        await writer.finish()
        publishing.append((asyncio.get_running_loop(), writer.blob_id))
        await store.publish(writer.blob_id)

    asyncio.run(story())
    assert steps == ["rename"] * 3 + ["rmdir"]
    publishing.clear()
    store.close()


def test_a_move_between_the_first_looks_is_seen_by_the_last(scratch: Path) -> None:
    data = os.urandom(100)
    looks: list[str] = []
    blob: list[bytes] = []

    def move_meanwhile(name: str, args: tuple[object, ...]) -> None:
        path = str(args[0]) if args else ""
        if blob and name == "open" and blob[0].hex() in path:
            looks.append(path)
            if len(looks) == 3:
                blob_id = blob[0]
                source = scratch / "incoming" / blob_id.hex() / "0"
                source.rename(scratch / "home" / blob_id.hex()[:2] / f"{blob_id.hex()}.0")

    store = BlockStore.open(scratch, block_size=BLOCK, fs=HookedFileSystem(move_meanwhile))

    async def story() -> None:
        writer = store.create_blob()
        await writer.write(data)
        await writer.finish()
        blob.append(writer.blob_id)
        assert await drain(store.open_blob(writer.blob_id, len(data)).read(0, len(data))) == data
        assert len(looks) == 4
        blob.clear()
        await writer.abort()

    asyncio.run(story())
    store.close()


def test_a_disk_error_on_a_read_names_the_block_and_leaks_nothing(scratch: Path) -> None:
    broken: list[bool] = []

    def fail(name: str, args: tuple[object, ...]) -> None:
        if broken and name == "preadv":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = BlockStore.open(scratch, block_size=BLOCK, fs=HookedFileSystem(fail))

    async def story() -> None:
        blob_id = await put(store, bytes(10))
        broken.append(True)
        with pytest.raises(DiskFailed, match=f"block 0 of blob {blob_id.hex()}"):
            await drain(store.open_blob(blob_id, 10).read(0, 10))
        broken.clear()
        assert await drain(store.open_blob(blob_id, 10).read(0, 10)) == bytes(10)

    asyncio.run(story())
    store.close()
    assert store.statistics().open_blocks == 0


def test_what_is_known_of_blocks_is_bounded_and_forgetting_costs_nothing_but_time(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=4096, fs=Warm(), verified=Verified(3))
    store._local.known._most = 10

    async def story() -> None:
        data = os.urandom(50 * 4096)
        reader = store.open_blob(await put(store, data), len(data))
        for _ in range(2):
            assert await drain(reader.read(0, len(data))) == data
            assert len(store._local.known) == 10

    asyncio.run(story())
    store.close()
