"""Several processes on one directory: killed in the middle, swept by others, and never swept while alive."""

import asyncio
import os
import random
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bytecache.blobs import drain, stored_files
from tests.bytecache.uploader import BLOCK, content
from tigrislike.bytecache import BlobBusy, BlockStore

UPLOADER = [sys.executable, "-m", "tests.bytecache.uploader"]
REPOSITORY = Path(__file__).parents[2]


@contextmanager
def uploader(root: Path, mode: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [*UPLOADER, str(root), mode], stdout=subprocess.PIPE, stdin=subprocess.PIPE, cwd=REPOSITORY
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _lines(process: subprocess.Popen[bytes]) -> Iterator[list[str]]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.endswith(b"\n"):
            yield line.decode().split()


def _answering(committed: "set[bytes] | dict[bytes, object]", asked: list[bytes]) -> Callable[[bytes], Awaitable[bool]]:
    async def settle(blob_id: bytes) -> bool:
        asked.append(blob_id)
        return blob_id in committed

    return settle


@pytest.mark.parametrize("seed", range(6))
def test_what_a_killed_process_committed_is_whole_and_what_it_did_not_is_gone(scratch: Path, seed: int) -> None:
    BlockStore.open(scratch, block_size=BLOCK).close()
    with uploader(scratch, "loop") as process:
        lines = _lines(process)
        seen = [next(lines) for _ in range(random.Random(seed).randrange(3, 90))]
        process.kill()
        seen += list(lines)
    committed = {bytes.fromhex(line[1]): (int(line[2]), int(line[3])) for line in seen if line[0] == "committed"}
    store = BlockStore.open(scratch, block_size=BLOCK)

    async def story() -> None:
        asked: list[bytes] = []
        stats = await store.sweep(_answering(set(committed), asked))
        assert stats.live == 0
        assert stats.failures == ()
        assert len(asked) == len(set(asked))
        for blob_id, (number, size) in committed.items():
            assert await drain(store.open_blob(blob_id, size).read(0, size)) == content(number, size)
        found = {blob.blob_id: blob.damage async for blob in store.blobs()}
        assert found == dict.fromkeys(committed, ())
        assert os.listdir(scratch / "incoming") == []
        again = await store.sweep(_answering(set(), asked))
        assert (again.published, again.removed, again.live) == (0, 0, 0)

    asyncio.run(story())
    store.close()


def test_a_live_upload_is_never_swept_however_old_and_can_be_finished(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK)

    async def story(process: subprocess.Popen[bytes]) -> None:
        lines = _lines(process)
        blob_id = bytes.fromhex(next(lines)[1])
        asked: list[bytes] = []
        directory = scratch / "incoming" / blob_id.hex()
        os.utime(directory, ns=(0, 0))  # as old as can be
        stats = await store.sweep(_answering(set(), asked))
        assert (stats.live, asked) == (1, [])
        with pytest.raises(BlobBusy):
            await store.publish(blob_id)
        with pytest.raises(BlobBusy):
            await store.delete_blob(blob_id)
        assert process.stdin is not None
        process.stdin.write(b"go on\n")
        process.stdin.flush()
        committed, published = next(lines), next(lines)
        assert (committed[0], published[0]) == ("committed", "published")
        size = int(committed[3])
        half = 5 * 7919 % (4 * BLOCK) // 2
        expected = content(5, 5 * 7919 % (4 * BLOCK))[:half] + content(5, 5 * 1024 * 1024)
        assert await drain(store.open_blob(blob_id, size).read(0, size)) == expected

    with uploader(scratch, "hold") as process:
        asyncio.run(story(process))
    store.close()


def test_two_sweeps_at_once_settle_each_blob_once(scratch: Path) -> None:
    dead = BlockStore.open(scratch, block_size=BLOCK)
    sweepers = [BlockStore.open(scratch, block_size=BLOCK) for _ in range(2)]

    async def story() -> None:
        committed: dict[bytes, object] = {}
        blobs: list[bytes] = []
        for number in range(30):
            writer = dead.create_blob()
            await writer.write(content(number, 1000))
            await writer.finish()
            blobs.append(writer.blob_id)
            if number % 2:
                committed[writer.blob_id] = number
            dead.release(writer.blob_id)
        asked: list[bytes] = []

        async def settle(blob_id: bytes) -> bool:
            asked.append(blob_id)
            await asyncio.sleep(0)  # let the other sweep come by while this one holds the directory
            return blob_id in committed

        both = await asyncio.gather(*(store.sweep(settle) for store in sweepers))
        assert sorted(asked) == sorted(blobs)
        assert sum(stats.published for stats in both) == 15
        assert sum(stats.removed for stats in both) == 15
        assert len(stored_files(scratch)) == 15

    asyncio.run(story())
    for store in (dead, *sweepers):
        store.close()


def test_uploads_that_begin_while_sweeps_run_are_left_alone(scratch: Path) -> None:
    """The directory of a new upload is made, locked and renamed while another thread sweeps as fast as it can."""
    store = BlockStore.open(scratch, block_size=BLOCK)
    stop = threading.Event()
    asked: list[bytes] = []

    def sweep_for_ever() -> None:
        other = BlockStore.open(scratch, block_size=BLOCK)

        async def story() -> None:
            while not stop.is_set():
                stats = await other.sweep(_answering(set(), asked))
                assert stats.failures == ()

        asyncio.run(story())
        other.close()

    sweeper = threading.Thread(target=sweep_for_ever)
    sweeper.start()

    async def uploads() -> None:
        for number in range(150):
            writer = store.create_blob()
            await writer.write(content(number, 100))
            await writer.finish()
            await store.publish(writer.blob_id)
            assert await drain(store.open_blob(writer.blob_id, 100).read(0, 100)) == content(number, 100)

    try:
        asyncio.run(uploads())
    finally:
        stop.set()
        sweeper.join()
    assert asked == []
    store.close()
