"""Copies of what another node receives: durable before it commits, whole or nothing, and settled whoever dies."""

import asyncio
import errno
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bytecache.blobs import BLOCK, drain, stored_files
from tests.bytecache.faults import FailNth, HookedFileSystem, NoSync, SmallDisk
from tests.bytecache.homer import BLOB, BLOCKS, SIZE, content, homers
from tests.bytecache.replay import Event, Recorder, clear, rebuild
from tests.bytecache.scripted_source import ScriptedSource
from tigrislike.bytecache import (
    BlobBusy,
    BlockStore,
    BytesError,
    Copy,
    DiskFailed,
    DiskFull,
    NotAtSource,
    SourceUnavailable,
    TooManyOpenFiles,
)

DATA = content(BLOB)


class Node:
    """A store that receives, and a sweep that asks `committed`."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.root = root
        self.store = BlockStore.open(root, **{"fs": NoSync(), "block_size": BLOCK, "reserve_bytes": 0, **options})
        self.source = ScriptedSource({BLOB: DATA})
        self.committed: set[bytes] = set()
        self.settled: list[bytes] = []

    def incoming(self) -> list[str]:
        return sorted(os.listdir(self.root / "incoming"))

    async def read(self) -> bytes:
        return await drain(self.store.open_blob(BLOB, SIZE).read(0, SIZE))

    async def sweep(self) -> tuple[int, int, int]:
        async def settle(blob_id: bytes) -> bool:
            self.settled.append(blob_id)
            return blob_id in self.committed

        stats = await self.store.sweep(settle)
        assert stats.failures == ()
        return stats.published, stats.removed, stats.live

    def run(self, story: Callable[[], Awaitable[None]]) -> None:
        async def whole() -> None:
            await story()
            await self.store.aclose()

        asyncio.run(whole())
        statistics = self.store.statistics()
        assert (statistics.uploads, statistics.open_blocks, statistics.in_flight_bytes) == (0, 0, 0)


@pytest.mark.parametrize("size", [0, 1, BLOCK, SIZE])
def test_a_copy_is_held_like_an_upload_and_published_when_it_is_committed(scratch: Path, size: int) -> None:
    node, other = Node(scratch), Node(scratch)
    data = node.source.blobs[BLOB] = DATA[:size]

    async def story() -> None:
        copy = await node.store.receive_copy(BLOB, size, node.source)
        assert copy.blob_id == BLOB
        assert node.incoming() == [BLOB.hex()]
        assert await other.sweep() == (0, 0, 1)  # it has a live owner
        await copy.publish()
        assert node.incoming() == []
        await node.store.verify_blob(BLOB, size)
        assert await drain(node.store.open_blob(BLOB, size).read(0, size)) == data
        copy.release()  # too late for either
        await copy.abort()
        await node.store.verify_blob(BLOB, size)
        await other.store.aclose()

    node.run(story)


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_copy_that_is_let_go_of_is_settled_by_a_sweep(scratch: Path, is_committed: bool) -> None:
    node = Node(scratch)

    async def story() -> None:
        copy = await node.store.receive_copy(BLOB, SIZE, node.source)
        copy.release()
        node.committed = {BLOB} if is_committed else set()
        assert await node.sweep() == (is_committed, not is_committed, 0)
        assert node.settled == [BLOB]
        assert len(stored_files(scratch)) == (BLOCKS if is_committed else 0)

    node.run(story)


def test_a_copy_that_is_aborted_leaves_nothing(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        copy = await node.store.receive_copy(BLOB, SIZE, node.source)
        await copy.abort()
        assert node.incoming() == []
        assert stored_files(scratch) == []
        await copy.publish()

    node.run(story)


def test_what_is_being_received_is_not_swept_and_bears_no_name_that_could_be_committed(scratch: Path) -> None:
    """What another node commits without waiting for this one is not whole here."""
    node, other = Node(scratch), Node(scratch)
    node.committed.add(BLOB)
    other.committed.add(BLOB)

    async def story() -> None:
        coming, go = asyncio.Event(), asyncio.Event()

        async def wait(start: int) -> None:
            if start >= BLOCK:
                coming.set()
                await go.wait()

        node.source.script = lambda blob_id, start: wait(start)
        receiving = asyncio.ensure_future(node.store.receive_copy(BLOB, SIZE, node.source))
        await coming.wait()
        assert await other.sweep() == (0, 0, 0)
        go.set()
        copy = await receiving
        await copy.publish()
        assert await node.read() == DATA
        assert other.settled == []
        await other.store.aclose()

    node.run(story)


@pytest.mark.parametrize("stage", ["received", "being received"])
@pytest.mark.parametrize("where", ["the same process", "another process"])
def test_one_at_a_time_has_a_copy_and_the_other_takes_nothing_from_it(scratch: Path, stage: str, where: str) -> None:
    first = Node(scratch)
    second = first if where == "the same process" else Node(scratch)

    async def story() -> None:
        coming, go = asyncio.Event(), asyncio.Event()
        if stage == "being received":

            async def wait() -> None:
                coming.set()
                await go.wait()

            # A block of a megabyte or less is on its way to the disk once all of it has come.
            first.source.script = lambda blob_id, start: wait() if start >= 3 * 1024 * 1024 else None
            size = 4 * 1024 * 1024
            first.source.blobs[BLOB] = content(BLOB, size)
            receiving = asyncio.ensure_future(first.store.receive_copy(BLOB, size, first.source))
            await coming.wait()
            while not first.incoming():  # noqa: ASYNC110
                await asyncio.sleep(0)
        else:
            size = SIZE
            receiving = asyncio.ensure_future(first.store.receive_copy(BLOB, size, first.source))
            await receiving
        with pytest.raises(BlobBusy):
            await second.store.receive_copy(BLOB, size, ScriptedSource(dict(first.source.blobs)))
        go.set()
        copy = await receiving
        await copy.publish()
        await first.store.verify_blob(BLOB, size)
        if second is not first:
            await second.store.aclose()

    first.run(story)


def test_a_copy_that_was_finished_between_the_look_and_the_first_write_is_left_alone(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        copies: list[Copy] = []

        async def finish_first() -> None:
            copies.append(await node.store.receive_copy(BLOB, SIZE, ScriptedSource({BLOB: DATA})))

        node.source.script = lambda blob_id, start: None if start else finish_first()
        with pytest.raises(BlobBusy):
            await node.store.receive_copy(BLOB, SIZE, node.source)
        assert node.incoming() == [BLOB.hex()]
        await copies[0].publish()
        await node.store.verify_blob(BLOB, SIZE)

    node.run(story)


def test_the_copy_of_a_dead_process_is_taken_over_and_not_fetched_again(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        (await node.store.receive_copy(BLOB, SIZE, node.source)).release()
        node.source.asked.clear()
        copy = await node.store.receive_copy(BLOB, SIZE, node.source)
        assert node.source.asked == []
        assert await node.sweep() == (0, 0, 1)
        await copy.publish()
        await node.store.verify_blob(BLOB, SIZE)

    node.run(story)


def test_what_an_interrupted_removal_left_is_not_taken_for_a_copy(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        (await node.store.receive_copy(BLOB, SIZE, node.source)).release()
        (scratch / "incoming" / BLOB.hex() / "2").unlink()
        copy = await node.store.receive_copy(BLOB, SIZE, node.source)
        assert len(node.source.asked) == 2
        await copy.publish()
        await node.store.verify_blob(BLOB, SIZE)

    node.run(story)


def test_a_blob_that_is_home_already_is_a_copy_of_which_nothing_need_be_done(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        await (await node.store.receive_copy(BLOB, SIZE, node.source)).publish()
        for end in ("publish", "abort"):
            copy = await node.store.receive_copy(BLOB, SIZE, node.source)
            await getattr(copy, end)()
            await node.store.verify_blob(BLOB, SIZE)
        (await node.store.receive_copy(BLOB, SIZE, node.source)).release()
        assert len(node.source.asked) == 1

    node.run(story)


class _Short(ScriptedSource):
    async def read(self, blob_id: bytes, size: int, start: int, stop: int) -> AsyncIterator[bytes | memoryview]:
        async for piece in super().read(blob_id, size, start, stop - 1):
            yield piece


@pytest.mark.parametrize("why", ["nowhere", "short", "away", "disk"])
def test_a_copy_that_cannot_be_had_leaves_nothing(scratch: Path, why: str) -> None:
    disk = SmallDisk(10**9, 10**9)
    node = Node(scratch, fs=disk)
    expected: type[BytesError] = SourceUnavailable

    def away(blob_id: bytes, start: int) -> None:
        if start > BLOCK:
            raise ConnectionResetError("away")

    if why == "nowhere":
        node.source, expected = ScriptedSource(), NotAtSource
    elif why == "short":
        node.source = _Short({BLOB: DATA})
    elif why == "away":
        node.source.script = away
    else:
        disk.available_bytes, expected = SIZE, DiskFull

    async def story() -> None:
        with pytest.raises(expected):
            await node.store.receive_copy(BLOB, SIZE, node.source)
        assert node.incoming() == []

    node.run(story)


def test_who_is_cancelled_leaves_nothing(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        coming = asyncio.Event()

        async def wait(start: int) -> None:
            if start >= 2 * BLOCK:
                coming.set()
                await asyncio.get_running_loop().create_future()

        node.source.script = lambda blob_id, start: wait(start)
        receiving = asyncio.ensure_future(node.store.receive_copy(BLOB, SIZE, node.source))
        await coming.wait()
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving
        assert node.incoming() == []
        assert node.source.open_reads == 0

    node.run(story)


@pytest.mark.parametrize("end", ["publish", "abort"])
@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.ENOSPC, DiskFull), (errno.EIO, DiskFailed), (errno.EMFILE, TooManyOpenFiles)],
    ids=["ENOSPC", "EIO", "EMFILE"],
)
def test_a_failure_of_any_system_call_is_reported_and_leaves_nothing_or_what_a_sweep_settles(
    scratch: Path, code: int, expected: type[BytesError], end: str
) -> None:
    fail = FailNth(code)
    node = Node(scratch, fs=HookedFileSystem(fail))

    async def attempt(nth: int) -> bool:
        """True when call number `nth` was never made."""
        received = False
        fail.arm(nth)
        try:
            copy = await node.store.receive_copy(BLOB, SIZE, node.source)
            received = True
            await getattr(copy, end)()
        except expected:
            assert fail.failed
        failed, _ = list(fail.failed), fail.disarm()  # type: ignore[func-returns-value]
        is_committed = received and end == "publish"
        node.committed = {BLOB} if is_committed else set()
        assert (await node.sweep())[2] == 0
        assert node.incoming() == []
        if is_committed:
            await node.store.verify_blob(BLOB, SIZE)
        await node.store.delete_blob(BLOB)
        assert stored_files(scratch) == []
        return not failed

    async def story() -> None:
        nth = 1
        while not await attempt(nth):
            nth += 1
        assert nth > 25

    node.run(story)


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_copy_whose_process_is_killed_at_any_moment_is_whole_or_nothing(scratch: Path, is_committed: bool) -> None:
    """Even if another node has committed the blob: without this one's word that it is here."""
    whole = 0
    with homers() as processes:
        for moment in range(1, 400):
            processes.run(scratch, "receive", moment)
            node = Node(scratch)
            node.committed = {BLOB} if is_committed else set()

            async def story(node: Node = node) -> None:
                nonlocal whole
                published, _, live = await node.sweep()
                assert live == 0
                assert node.incoming() == []
                if is_committed and published:
                    await node.store.verify_blob(BLOB, SIZE)
                    whole += 1
                    await node.store.delete_blob(BLOB)
                assert stored_files(scratch) == []

            node.run(story)
            if node.settled and moment > 100:
                break
        else:
            pytest.fail("it never got through")
    assert bool(whole) == is_committed


@pytest.mark.parametrize("seed", [1, 2])
def test_after_a_power_cut_at_any_step_a_copy_is_whole_or_nothing(scratch: Path, seed: int) -> None:
    assert _replay(scratch, Recorder, seed, ("lost", "random", "kept", "random")) > 20


class _SkipsDataSync(Recorder):
    def fdatasync(self, fd: int) -> None:
        pass


class _SkipsNameSync(Recorder):
    def fsync(self, fd: int) -> None:
        pass


@pytest.mark.parametrize("careless", [_SkipsDataSync, _SkipsNameSync])
def test_the_replay_notices_a_sync_that_is_left_out(scratch: Path, careless: type[Recorder]) -> None:
    with pytest.raises((AssertionError, BytesError)):
        _replay(scratch, careless, 1, ("lost",))


def _replay(scratch: Path, kind: type[Recorder], seed: int, fates: tuple[Any, ...]) -> int:
    """Receive a copy, and cut the power after each step; how many there were. It is committed at every moment."""
    live, target = scratch / "live", scratch / "rebuilt"
    live.mkdir()
    target.mkdir()
    first = Recorder(live)
    BlockStore.open(live, block_size=BLOCK, fs=first).close()
    recorder = kind(live)
    recorder.trace, recorder._next = first.trace, first._next
    recorder._inodes = first._inodes
    begun = len(recorder.trace)

    async def life() -> None:
        node = Node(live, fs=recorder)
        copy = await node.store.receive_copy(BLOB, SIZE, node.source)
        recorder.event("received")
        await copy.publish()
        await node.store.aclose()

    async def check(trace: list[Any]) -> None:
        node = Node(target)
        node.committed = {BLOB}
        await node.sweep()
        assert node.incoming() == []
        if stored_files(target) or any(isinstance(step, Event) for step in trace):
            await node.store.verify_blob(BLOB, SIZE)
        await node.store.aclose()

    asyncio.run(life())
    trace = recorder.trace
    for end in range(begun, len(trace) + 1):
        for fate in fates if isinstance(trace[end - 1], Event) else (fates[end % len(fates)],):
            rebuild(trace[:end], target, fate, random.Random(1000 * seed + end))
            asyncio.run(check(trace[:end]))
            clear(target)
    return len(trace) - begun
