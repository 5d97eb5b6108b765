"""A node that becomes a home of a blob, or is one no longer: every block is whole, where it belongs, and accounted for,
whatever happens meanwhile."""

import asyncio
import contextlib
import errno
import os
import random
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bytecache import cached
from tests.bytecache.blobs import BLOCK, drain
from tests.bytecache.faults import FailNth, HookedFileSystem, NoSync, SmallDisk
from tests.bytecache.homer import BLOB, BLOCKS, SIZE, content, homers
from tests.bytecache.replay import Event, Recorder, clear, rebuild
from tests.bytecache.scripted_source import ScriptedSource
from tigrislike.bytecache import (
    BlobBusy,
    BlobGone,
    BlockStore,
    BytesError,
    CacheFull,
    DiskFailed,
    DiskFull,
    NotAtSource,
    SourceUnavailable,
    TooManyOpenFiles,
)
from tigrislike.bytecache.filling import claim
from tigrislike.bytecache.footer import FOOTER_BYTES, block_length, padded
from tigrislike.bytecache.index import PINNED
from tigrislike.bytecache.store import FILL_THREADS, INDEX_THREADS

DATA = content(BLOB)
ALL = list(range(BLOCKS))
FILE = BLOCK + FOOTER_BYTES


class Node:
    """A store and a source that has one blob.

    Args:
        root: Of the store.
        options: For `BlockStore.open`.
    """

    def __init__(self, root: Path, **options: Any) -> None:
        self.root = root
        self.source = ScriptedSource({BLOB: DATA})
        options = {"fs": NoSync(), "block_size": BLOCK, "reserve_bytes": 0, "fill_timeout_s": 60.0, **options}
        self.store = BlockStore.open(root, **options)
        self.store.fill_from(self.source)
        self.store._fills._wait_s = self.store._fills.claim_s = options["fill_timeout_s"]

    def path(self, tree: str, number: int) -> Path:
        return self.root / tree / BLOB.hex()[:2] / f"{BLOB.hex()}.{number}"

    def numbers(self, tree: str) -> list[int]:
        return [number for number in ALL if self.path(tree, number).exists()]

    async def cache(self, *numbers: int) -> None:
        """Have these blocks in the cache, and no others."""
        await self.store.warm(BLOB, SIZE)
        for number in set(ALL) - set(numbers):
            self.store._cache.remove_block(BLOB, number, "request")
        self.source.asked.clear()

    async def at_home(self) -> None:
        """Every block is durably at home, and as it was written."""
        assert self.numbers("home") == ALL
        await self.store.verify_blob(BLOB, SIZE)

    async def read(self) -> bytes:
        return await drain(self.store.open_blob(BLOB, SIZE).read(0, SIZE))

    def asked(self) -> list[int]:
        """Blocks that the source was asked for."""
        return sorted(start // BLOCK for _, start, _ in self.source.asked)

    async def quiet(self) -> None:
        """Until nothing goes on any more: a job on a thread outlives who waited for it."""
        while tasks := list(self.store._fills._tasks):
            await asyncio.gather(*tasks, return_exceptions=True)
        for pool, threads in ((self.store._index, INDEX_THREADS), (self.store._fillers, FILL_THREADS)):
            meeting = threading.Barrier(threads)
            loop = asyncio.get_running_loop()
            await asyncio.gather(*(loop.run_in_executor(pool, meeting.wait) for _ in range(threads)))

    def check(self) -> None:
        """The index says what is in the cache, and nothing is left on the way."""
        assert os.listdir(self.root / "filling") == []
        assert os.listdir(self.root / "incoming") == []
        cached.check(self.store._cache, self.root)

    def run(self, story: Callable[[], Awaitable[None]]) -> None:
        async def whole() -> None:
            await story()
            await self.quiet()
            self.check()
            await self.store.aclose()

        asyncio.run(whole())
        assert self.store.statistics().open_blocks == 0
        assert self.store.statistics().filling_bytes == 0


# Adopting.


@pytest.mark.parametrize("here", [(), (0,), (1, 2), (0, 1, 2)])
def test_what_is_not_here_is_fetched_and_what_is_in_the_cache_is_moved(scratch: Path, here: tuple[int, ...]) -> None:
    node = Node(scratch)

    async def story() -> None:
        await node.cache(*here)
        done: list[int] = []
        gated: list[int] = []

        async def gate(length: int) -> None:
            gated.append(length)

        missing = [number for number in ALL if number not in here]
        lengths = {number: block_length(SIZE, BLOCK, number) for number in ALL}
        fetched = await node.store.adopt(BLOB, SIZE, progress=done.append, gate=gate)
        assert fetched == sum(lengths[number] for number in missing)
        assert sorted(done) == sorted(lengths.values())
        assert sorted(gated) == sorted(lengths[number] for number in missing)
        assert node.asked() == missing
        await node.at_home()
        assert node.numbers("cache") == []
        assert await node.read() == DATA

    node.run(story)


def test_adopting_again_fetches_nothing_and_tells_of_every_block(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        await node.store.adopt(BLOB, SIZE)
        node.source.asked.clear()
        done: list[int] = []
        assert await node.store.adopt(BLOB, SIZE, progress=done.append) == 0
        assert sum(done) == SIZE
        assert node.source.asked == []
        await node.at_home()

    node.run(story)


def test_an_empty_blob_is_a_block_too(scratch: Path) -> None:
    node = Node(scratch)
    node.source.blobs[BLOB] = b""

    async def story() -> None:
        # Nothing can be asked of a source, half open from 0 to 0, and nothing needs to be.
        assert await node.store.adopt(BLOB, 0) == 0
        assert node.numbers("home") == [0]
        assert await node.store.demote(BLOB, 0) == 0
        assert (node.numbers("home"), node.numbers("cache")) == ([], [0])

    node.run(story)


@pytest.mark.parametrize("damage", ["flipped", "short", "foreign"])
def test_a_damaged_block_of_the_cache_is_dropped_and_fetched(scratch: Path, damage: str) -> None:
    node = Node(scratch)

    async def story() -> None:
        await node.cache(*ALL)
        path = node.path("cache", 1)
        path.chmod(0o600)
        file = bytearray(path.read_bytes())
        if damage == "flipped":
            file[BLOCK // 2] ^= 1
        elif damage == "short":
            del file[-1:]
        else:
            file = bytearray(node.path("cache", 0).read_bytes())
        path.write_bytes(file)
        assert await node.store.adopt(BLOB, SIZE) == BLOCK
        assert node.asked() == [1]
        await node.at_home()
        assert node.store.statistics().evicted_corrupt == 1

    node.run(story)


def test_a_block_at_home_whose_file_is_too_short_is_replaced(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        await node.store.adopt(BLOB, SIZE)
        os.truncate(_writable(node.path("home", 2)), 100)
        node.source.asked.clear()
        assert await node.store.adopt(BLOB, SIZE) == SIZE - 2 * BLOCK
        assert node.asked() == [2]
        await node.at_home()
        assert node.store.statistics().healed == 1

    node.run(story)


def _writable(path: Path) -> Path:
    path.chmod(0o600)
    return path


def test_the_source_that_is_given_is_asked_and_not_the_other(scratch: Path) -> None:
    node = Node(scratch)
    given = ScriptedSource({BLOB: DATA})

    async def story() -> None:
        await node.store.adopt(BLOB, SIZE, source=given)
        assert node.source.asked == []
        assert node.source.lives_asked == []
        assert len(given.asked) == BLOCKS
        await node.at_home()

    node.run(story)


def test_without_a_source_what_is_here_is_moved_and_the_rest_is_missed(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        await node.cache(0, 2)
        node.store.fill_from(None)
        with pytest.raises(SourceUnavailable, match="no source"):
            await node.store.adopt(BLOB, SIZE)
        await node.store.adopt(BLOB, SIZE, source=node.source)
        node.store.fill_from(None)
        assert await node.store.adopt(BLOB, SIZE) == 0
        await node.at_home()

    node.run(story)


@pytest.mark.parametrize("error", [SourceUnavailable, NotAtSource])
def test_what_came_before_a_failure_stays_and_the_next_run_goes_on_from_there(
    scratch: Path, error: type[BytesError]
) -> None:
    node = Node(scratch)

    def fail(blob_id: bytes, start: int) -> None:
        if start >= 2 * BLOCK:
            raise error("not now")

    node.source.script = fail

    async def story() -> None:
        with pytest.raises(error):
            await node.store.adopt(BLOB, SIZE)
        await node.quiet()
        node.source.script = lambda blob_id, start: None
        node.source.asked.clear()
        await node.store.adopt(BLOB, SIZE)
        assert node.asked() == [2]
        await node.at_home()

    node.run(story)


def test_who_is_cancelled_at_the_gate_leaves_whole_blocks_and_can_go_on(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        waiting = asyncio.Event()
        passed = 0

        async def gate(length: int) -> None:
            nonlocal passed
            passed += 1
            if passed > 1:
                waiting.set()
                await asyncio.get_running_loop().create_future()

        one = asyncio.Event()
        adopting = asyncio.ensure_future(node.store.adopt(BLOB, SIZE, gate=gate, progress=lambda _: one.set()))
        await asyncio.gather(waiting.wait(), one.wait())
        adopting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adopting
        assert len(node.numbers("home")) == 1
        await node.store.adopt(BLOB, SIZE)
        await node.at_home()

    node.run(story)


def test_a_disk_that_is_too_small_is_full_and_nothing_is_half_written(scratch: Path) -> None:
    disk = SmallDisk(100 * FILE, 100 * FILE)
    node = Node(scratch, fs=disk)

    async def story() -> None:
        await node.cache(1)
        disk.available_bytes = 4096
        with pytest.raises(DiskFull):
            await node.store.adopt(BLOB, SIZE)
        assert set(node.numbers("home")) <= {1}
        disk.available_bytes = 100 * FILE
        await node.store.adopt(BLOB, SIZE)
        await node.at_home()
        assert os.listdir(node.root / "filling") == []

    node.run(story)


@pytest.mark.parametrize("here", [(), (0,), (0, 1, 2)])
def test_a_blob_that_is_dead_leaves_nothing(scratch: Path, here: tuple[int, ...]) -> None:
    node = Node(scratch)

    async def story() -> None:
        await node.cache(*here)
        await node.store.pin(BLOB)
        node.source.dead.add(BLOB)
        with pytest.raises(BlobGone):
            await node.store.adopt(BLOB, SIZE)
        assert node.numbers("home") == node.numbers("cache") == []
        assert os.listdir(scratch / "pins") == []

    node.run(story)


def test_a_blob_that_dies_when_all_of_it_is_here_leaves_nothing(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        await node.cache(*ALL)

        def die(blob_id: bytes) -> None:
            assert node.numbers("home") == ALL
            node.source.dead.add(blob_id)

        node.source.answer = die
        with pytest.raises(BlobGone):
            await node.store.adopt(BLOB, SIZE)
        assert node.numbers("home") == node.numbers("cache") == []

    node.run(story)


@pytest.mark.parametrize("size", [None, SIZE])
@pytest.mark.parametrize("question", range(1, 2 * BLOCKS + 2))
def test_a_blob_that_is_deleted_while_it_is_adopted_does_not_come_back(
    scratch: Path, question: int, size: int | None
) -> None:
    """The deletion is decided after an answer that the blob lives was given, and is over before it is used."""
    node = Node(scratch)

    async def story() -> None:
        class Deleting(ScriptedSource):
            async def lives(self, blob_id: bytes) -> bool:
                alive = await super().lives(blob_id)
                if len(self.lives_asked) == question:
                    self.dead.add(blob_id)
                    await node.store.delete_blob(blob_id, size)
                return alive

        source = Deleting({BLOB: DATA})
        if question == 2 * BLOCKS + 1:  # the last one, after which all is at home
            await node.store.adopt(BLOB, SIZE, source=source)
        else:
            with pytest.raises(BlobGone):
                await node.store.adopt(BLOB, SIZE, source=source)
        assert node.numbers("home") == node.numbers("cache") == []

    node.run(story)


def test_a_fill_that_a_reader_began_is_joined_and_its_block_moved(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        go = asyncio.Event()
        node.source.script = lambda blob_id, start: go.wait()
        reading = asyncio.ensure_future(node.read())
        while not node.store._fills._running:  # noqa: ASYNC110
            await asyncio.sleep(0)
        adopting = asyncio.ensure_future(node.store.adopt(BLOB, SIZE))
        while node.store.statistics().fills_joined == 0:  # noqa: ASYNC110
            await asyncio.sleep(0)
        go.set()
        assert await reading == DATA
        await adopting
        await node.at_home()
        assert node.asked() == ALL  # each once

    node.run(story)


def test_a_readers_fill_that_could_not_be_kept_is_not_the_last_word(scratch: Path) -> None:
    node = Node(scratch, cache_bytes=1)

    async def story() -> None:
        go = asyncio.Event()
        node.source.script = lambda blob_id, start: go.wait()
        reading = asyncio.ensure_future(node.read())
        while not node.store._fills._running:  # noqa: ASYNC110
            await asyncio.sleep(0)
        adopting = asyncio.ensure_future(node.store.adopt(BLOB, SIZE))
        while node.store.statistics().fills_joined == 0:  # noqa: ASYNC110
            await asyncio.sleep(0)
        go.set()
        assert await reading == DATA
        await adopting
        await node.at_home()

    node.run(story)


def test_who_finds_no_memory_for_fills_gives_up_when_no_block_has_come_for_too_long(scratch: Path) -> None:
    node = Node(scratch, fill_bytes=BLOCK, fill_timeout_s=0.01)  # too little for a block and its footer

    async def story() -> None:
        with pytest.raises(CacheFull, match="memory"):
            await node.store.adopt(BLOB, SIZE)
        assert node.numbers("home") in ([], [2])  # the last is smaller

    node.run(story)


def test_who_finds_another_at_a_block_gives_up_when_no_block_has_come_for_too_long(scratch: Path) -> None:
    node = Node(scratch, fill_timeout_s=0.01)

    async def story() -> None:
        await node.store.adopt(BLOB, SIZE)
        fd = claim(node.store.fs, node.store.layout.filling_block(BLOB, 1))
        with pytest.raises(BytesError, match="being fetched by another"):
            await node.store.demote(BLOB, SIZE)
        os.close(fd)
        await node.store.demote(BLOB, SIZE)
        assert node.numbers("home") == []

    node.run(story)


def test_two_processes_that_adopt_the_same_blob_fetch_each_block_once(scratch: Path) -> None:
    first, second = Node(scratch), Node(scratch)

    async def story() -> None:
        await asyncio.gather(*(node.store.adopt(BLOB, SIZE) for node in (first, second)))
        assert sorted(first.asked() + second.asked()) == ALL
        await first.at_home()
        await second.store.aclose()

    first.run(story)


def test_what_is_in_incoming_is_published_and_not_fetched(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        other = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())
        await other.receive_copy(BLOB, SIZE, node.source)
        node.source.asked.clear()
        for call in (node.store.adopt, node.store.demote):
            with pytest.raises(BlobBusy):  # a live process has it
                await call(BLOB, SIZE)
        await other.aclose()
        assert await node.store.adopt(BLOB, SIZE) == 0
        assert node.source.asked == []
        await node.at_home()

    node.run(story)


def test_a_block_that_comes_to_incoming_meanwhile_is_waited_for(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        other = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())
        copy = await other.receive_copy(BLOB, SIZE, node.source)
        busy = asyncio.Event()
        loop = asyncio.get_running_loop()
        look = node.store._homing._look

        def look_and_tell(*args: Any) -> Any:
            try:
                return look(*args)
            except BlobBusy:
                loop.call_soon_threadsafe(busy.set)
                raise

        node.store._homing._look = look_and_tell  # type: ignore[assignment, method-assign]
        # It came after adopting had looked for what there was to publish.
        adopting = asyncio.ensure_future(node.store._homing.adopt(BLOB, SIZE, None, lambda _: None, None))
        await busy.wait()
        await copy.publish()
        assert await adopting == 0
        await node.at_home()
        await other.aclose()

    node.run(story)


# Demoting.


def test_every_block_moves_to_the_cache_and_is_served_from_there(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        await node.store.adopt(BLOB, SIZE)
        node.source.asked.clear()
        assert await node.store.demote(BLOB, SIZE) == SIZE
        assert (node.numbers("home"), node.numbers("cache")) == ([], ALL)
        assert await node.read() == DATA
        assert node.source.asked == []
        assert await node.store.demote(BLOB, SIZE) == 0
        assert await node.store.evict(BLOB) > SIZE
        assert await node.read() == DATA  # from elsewhere

    node.run(story)


def test_a_blob_may_go_to_and_fro(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        for _ in range(3):
            await node.store.adopt(BLOB, SIZE)
            await node.at_home()
            await node.store.demote(BLOB, SIZE)
            assert node.numbers("home") == []
        assert node.asked() == ALL

    node.run(story)


def test_what_the_cache_has_no_room_for_is_removed(scratch: Path) -> None:
    node = Node(scratch, cache_bytes=FILE // 2)

    async def story() -> None:
        await node.store.adopt(BLOB, SIZE)
        assert await node.store.demote(BLOB, SIZE) == SIZE
        assert node.numbers("home") == []
        assert node.numbers("cache") == [2]
        assert await node.read() == DATA

    node.run(story)


def test_others_are_evicted_for_what_is_demoted_as_for_what_is_fetched(scratch: Path) -> None:
    node = Node(scratch, cache_bytes=3 * FILE)

    async def story() -> None:
        await node.store.adopt(BLOB, SIZE)
        other = b"o" * 16
        node.source.blobs[other] = content(other)
        await node.store.warm(other, SIZE)
        await node.store.demote(BLOB, SIZE)
        assert node.numbers("home") == []
        assert node.numbers("cache") == ALL

    node.run(story)


@pytest.mark.parametrize("fits", [True, False])
def test_a_pinned_blob_stays_pinned_as_far_as_pins_have_room(scratch: Path, fits: bool) -> None:
    node = Node(scratch, cache_bytes=(10 if fits else 2) * FILE)

    async def story() -> None:
        await node.store.adopt(BLOB, SIZE)
        await node.store.pin(BLOB)
        await node.store.demote(BLOB, SIZE)
        assert node.numbers("home") == []
        rows = cached.rows_of(scratch)
        assert {queue for queue, _ in rows.values()} == {PINNED}
        assert len(rows) == (BLOCKS if fits else 2)

    node.run(story)


def test_a_cache_that_is_not_reconciled_yet_takes_nothing(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        await node.store.adopt(BLOB, SIZE)
        node.store._cache._holdings.write(lambda rows: rows.set_meta("boot", "another"))
        await node.store.demote(BLOB, SIZE)
        assert node.numbers("home") == node.numbers("cache") == []

    node.run(story)


def test_a_full_disk_is_no_reason_to_keep_a_block_and_nothing_is_evicted_for_it(scratch: Path) -> None:
    disk = SmallDisk(100 * FILE, 100 * FILE)
    node = Node(scratch, fs=disk, reserve_bytes=5 * FILE)

    async def story() -> None:
        other = b"o" * 16
        node.source.blobs[other] = content(other)
        await node.store.warm(other, SIZE)
        await node.store.adopt(BLOB, SIZE)
        disk.available_bytes = 10 * FILE  # little beside the reserve: what moves needs hardly any
        await node.store.demote(BLOB, SIZE)
        assert node.numbers("cache") == ALL
        assert node.store.statistics().evicted_reserve == 0
        await node.store.adopt(BLOB, SIZE)
        disk.available_bytes = 5 * FILE - 1
        await node.store.demote(BLOB, SIZE)
        assert node.numbers("cache") == node.numbers("home") == []

    node.run(story)


@pytest.mark.parametrize("how", ["keep=False", "the source lets none be kept"])
def test_what_may_not_stay_is_removed(scratch: Path, how: str) -> None:
    node = Node(scratch)

    async def story() -> None:
        await node.store.adopt(BLOB, SIZE)
        if how == "keep=False":
            node.path("cache", 1).parent.mkdir()
            os.link(node.path("home", 1), node.path("cache", 1))  # a reader fetched it when it was not at home yet
            await node.store.reconcile()
            await node.store.demote(BLOB, SIZE, keep=False)
        else:
            node.source.unkept.add(BLOB)
            await node.store.demote(BLOB, SIZE)
        assert node.numbers("home") == node.numbers("cache") == []

    node.run(story)


def test_a_block_that_is_in_the_cache_too_is_there_once(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        await node.cache(*ALL)
        file = node.path("cache", 1)
        os.link(file, node.path("home", 1))
        await node.store.demote(BLOB, SIZE)
        assert (node.numbers("home"), node.numbers("cache")) == ([], ALL)

    node.run(story)


def test_a_damaged_file_of_another_size_does_not_get_into_the_index(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        await node.store.adopt(BLOB, SIZE)
        os.truncate(_writable(node.path("home", 0)), 10 * FILE)
        await node.store.demote(BLOB, SIZE)
        assert (node.numbers("home"), node.numbers("cache")) == ([], [1, 2])

    node.run(story)


def test_whoever_has_a_block_open_reads_on(scratch: Path) -> None:
    node = Node(scratch)

    async def story() -> None:
        await node.store.adopt(BLOB, SIZE)
        node.source.asked.clear()
        reading = node.store.open_blob(BLOB, SIZE).segments(0, BLOCK)
        segment = await anext(reading)
        assert not isinstance(segment, bytes | bytearray | memoryview)
        await node.store.demote(BLOB, SIZE, keep=False)
        assert os.pread(segment.fd, segment.length, segment.offset) == DATA[:BLOCK]
        await reading.aclose()
        assert node.source.asked == []

    node.run(story)


@pytest.mark.parametrize("size", [None, SIZE])
def test_a_blob_that_is_demoted_while_it_is_deleted_is_deleted(scratch: Path, size: int | None) -> None:
    """Demoted at the worst moment: the cache is empty already, and `home/` not yet."""
    demoting: list[bool] = []

    def demote_first(name: str, args: tuple[object, ...]) -> None:
        if name == "unlink" and "/home/" in str(args[0]) and not demoting:
            demoting.append(True)

            async def demote() -> None:
                other = Node(scratch)
                assert await other.store.demote(BLOB, SIZE) == SIZE
                assert other.numbers("cache") == ALL
                await other.store.aclose()

            asyncio.run(demote())

    node = Node(scratch, fs=HookedFileSystem(demote_first))

    async def story() -> None:
        await node.store.adopt(BLOB, SIZE)
        await node.store.delete_blob(BLOB, size)
        assert demoting
        assert node.numbers("home") == node.numbers("cache") == []

    node.run(story)


@pytest.mark.parametrize("moment", ["before its turn", "in its turn"])
def test_a_block_that_is_deleted_while_it_is_demoted_is_gone(scratch: Path, moment: str) -> None:
    armed = False

    def delete_first(name: str, args: tuple[object, ...]) -> None:
        at = "lock" if moment == "before its turn" else "rename"
        if armed and name == at:
            for number in ALL:
                with contextlib.suppress(FileNotFoundError):
                    node.path("home", number).unlink()

    node = Node(scratch, fs=HookedFileSystem(delete_first))

    async def story() -> None:
        nonlocal armed
        await node.store.adopt(BLOB, SIZE)
        armed = True
        await node.store.demote(BLOB, SIZE)
        assert node.numbers("home") == node.numbers("cache") == []

    node.run(story)


# Whatever happens meanwhile.


def test_readers_are_right_while_a_blob_goes_to_and_fro(scratch: Path) -> None:
    node, other = Node(scratch), Node(scratch)

    async def story() -> None:
        over = False
        reads = 0

        async def read() -> None:
            nonlocal reads
            while not over or not reads:
                assert await node.read() == DATA
                reads += 1

        readers = [asyncio.create_task(read()) for _ in range(3)]
        for turn in range(8):
            await other.store.adopt(BLOB, SIZE)
            await other.store.demote(BLOB, SIZE, keep=turn % 3 != 2)
        over = True
        await asyncio.gather(*readers)
        assert reads > 3
        await other.store.aclose()

    node.run(story)


@pytest.mark.parametrize("job", ["adopt", "demote"])
@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.ENOSPC, DiskFull), (errno.EIO, DiskFailed), (errno.EMFILE, TooManyOpenFiles)],
    ids=["ENOSPC", "EIO", "EMFILE"],
)
def test_a_failure_of_any_system_call_leaves_whole_blocks_and_the_next_run_gets_through(
    scratch: Path, job: str, code: int, expected: type[BytesError]
) -> None:
    fail = FailNth(code)
    node = Node(scratch, fs=HookedFileSystem(fail))

    async def attempt(nth: int) -> bool:
        """True when call number `nth` was never made."""
        await node.store.delete_blob(BLOB, SIZE)
        if job == "demote":
            await node.store.adopt(BLOB, SIZE)
        else:
            await node.cache(1)
        fail.arm(nth)
        try:
            await getattr(node.store, job)(BLOB, SIZE)
        except expected:
            assert fail.failed
        await node.quiet()
        failed, _ = list(fail.failed), fail.disarm()  # type: ignore[func-returns-value]
        # What the disk did not let go of, the next process that opens the cache removes.
        BlockStore.open(scratch, block_size=BLOCK, fs=NoSync()).close()
        for number in node.numbers("home"):
            await _verify(node, "home", number)
        node.check()
        await getattr(node.store, job)(BLOB, SIZE)
        if job == "adopt":
            await node.at_home()
        else:
            assert node.numbers("home") == []
        assert await node.read() == DATA
        return not failed

    async def story() -> None:
        nth = 1
        while not await attempt(nth):
            nth += 1
        assert nth > 20

    node.run(story)


async def _verify(node: Node, tree: str, number: int) -> None:
    """A block is whole, in the tree where it is."""
    file = node.path(tree, number).read_bytes()
    length = block_length(SIZE, BLOCK, number)
    assert len(file) == padded(length) + FOOTER_BYTES
    assert file[:length] == DATA[number * BLOCK : number * BLOCK + length]


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("job", ["adopt", "demote"])
def test_a_process_that_is_killed_at_any_moment_leaves_whole_blocks_and_the_next_run_gets_through(
    scratch: Path, job: str, every: int
) -> None:
    with homers() as processes:
        moment = 1
        while True:
            node = Node(scratch)

            async def prepare(node: Node = node) -> None:
                await node.store.delete_blob(BLOB, SIZE)
                await (node.store.adopt(BLOB, SIZE) if job == "demote" else node.cache(1))

            node.run(prepare)
            killed = processes.run(scratch, job, moment)
            node = Node(scratch)

            async def story(node: Node = node) -> None:
                await node.store.reconcile()
                node.check()
                for tree in ("home", "cache"):
                    for number in node.numbers(tree):
                        await _verify(node, tree, number)
                await getattr(node.store, job)(BLOB, SIZE)
                if job == "adopt":
                    await node.at_home()
                else:
                    assert node.numbers("home") == []
                assert await node.read() == DATA

            node.run(story)
            if not killed:
                break
            moment += every
        assert moment > 40


@pytest.mark.parametrize("seed", [1, 2])
def test_after_a_power_cut_at_any_step_what_was_adopted_is_home_and_what_was_demoted_is_not(
    scratch: Path, seed: int
) -> None:
    assert _replay(scratch, Recorder, seed, ("lost", "random", "kept", "random")) > 40


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
    """Adopt and demote a blob some of which is in the cache, and cut the power after each step; how many there were."""
    live, target = scratch / "live", scratch / "rebuilt"
    live.mkdir()
    target.mkdir()
    # Made durable as a node that has run for a while is: its trees are not what is in question.
    first = Recorder(live)
    BlockStore.open(live, block_size=BLOCK, fs=first).close()
    recorder = kind(live)
    recorder.trace, recorder._next = first.trace, first._next
    recorder._inodes = first._inodes
    begun = len(recorder.trace)

    async def life() -> None:
        node = Node(live, fs=recorder)
        await node.cache(0, 1)
        await node.store.adopt(BLOB, SIZE)
        recorder.event("adopted")
        recorder.event("demoting")
        await node.store.demote(BLOB, SIZE)
        recorder.event("demoted")
        recorder.event("adopting")
        await node.store.adopt(BLOB, SIZE)
        recorder.event("adopted")
        await node.store.aclose()

    async def check(trace: list[Any]) -> None:
        events = [step.name for step in trace if isinstance(step, Event)]
        node = Node(target)
        await node.store.reconcile()
        node.check()
        for number in node.numbers("home"):
            await _verify(node, "home", number)
        if events and events[-1] == "adopted":
            await node.at_home()
        if events and events[-1] == "demoted":
            assert node.numbers("home") == []
        assert await node.read() == DATA
        await node.store.aclose()

    asyncio.run(life())
    trace = recorder.trace
    for end in range(begun, len(trace) + 1):
        # Where something was promised, whatever may become of the rest.
        promised = isinstance(trace[end - 1], Event)
        for fate in fates if promised else (fates[end % len(fates)],):
            rebuild(trace[:end], target, fate, random.Random(1000 * seed + end))
            asyncio.run(check(trace[:end]))
            clear(target)
    return len(trace) - begun
