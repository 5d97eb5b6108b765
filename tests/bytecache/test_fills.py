"""Blocks from elsewhere: fetched once, served as they come, kept when whole; and every way in which that goes wrong."""

import asyncio
import contextlib
import errno
import itertools
import os
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bytecache.blobs import drain, put
from tests.bytecache.faults import FailNth, HookedFileSystem, NoSync, SmallDisk, Warm
from tests.bytecache.scripted_source import PIECE, ScriptedSource
from tigrislike.bytecache import (
    BlobBusy,
    BlockStore,
    CacheFull,
    FillInProgress,
    MissingBlob,
    NotAtSource,
    NotKept,
    Segment,
    SourceUnavailable,
    TooManyOpenFiles,
)
from tigrislike.bytecache.footer import CHUNK, FOOTER_BYTES, padded
from tigrislike.bytecache.images import Images
from tigrislike.bytecache.store import INDEX_THREADS

BLOCK = 4 * CHUNK
SIZE = 2 * BLOCK + CHUNK + 1000
BLOCKS = 3
IMAGE = BLOCK + FOOTER_BYTES
"""Memory that a whole block takes while it is fetched."""


def content(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


class Elsewhere:
    """A store with a source that has one blob, which is not here."""

    def __init__(self, root: Path, **options: Any) -> None:
        options = {"fs": NoSync(), "block_size": BLOCK, "fill_timeout_s": 60.0, **options}
        self.root = root
        self.source = ScriptedSource()
        self.store = BlockStore.open(root, **options)
        self.store.fill_from(self.source)
        # No slow machine makes a reader give up who is to wait; tests of giving up set their own.
        self.store._fills._wait_s = self.store._fills.claim_s = 60.0
        self.data = content(1)
        self.blob_id = self.add(self.data)

    def add(self, data: bytes) -> bytes:
        blob_id = len(self.source.blobs).to_bytes(16, "big")
        self.source.blobs[blob_id] = data
        return blob_id

    async def read(self, start: int = 0, stop: int = SIZE, blob_id: bytes | None = None) -> bytes:
        blob_id = blob_id or self.blob_id
        return await drain(self.store.open_blob(blob_id, len(self.source.blobs[blob_id])).read(start, stop))

    async def settled(self) -> None:
        """Until no fill runs."""
        while tasks := list(self.store._fills._tasks):
            await asyncio.gather(*tasks, return_exceptions=True)

    def kept(self) -> list[int]:
        """Numbers of the first blob's blocks that are in the cache."""
        return sorted(int(path.suffix[1:]) for path in (self.root / "cache").rglob(f"{self.blob_id.hex()}.*"))

    def check_quiet(self) -> None:
        """Nothing is held, open or left behind."""
        statistics = self.store.statistics()
        assert statistics.open_blocks == 0
        assert statistics.filling_bytes == 0
        assert self.source.open_reads == 0
        assert os.listdir(self.root / "filling") == []
        assert not self.store._fills._running
        assert not self.store._fills._lingering


def run(elsewhere: Elsewhere, story: Callable[[], Awaitable[None]]) -> None:
    """Run a story; then see that nothing is left of it."""

    async def whole() -> None:
        await story()
        await elsewhere.settled()
        await elsewhere.store.aclose()

    asyncio.run(whole())
    elsewhere.check_quiet()


async def rendered(parts: Any) -> bytes:
    """The bytes of `segments`, each extent read while it is given out."""
    found = bytearray()
    async for part in parts:
        found += os.pread(part.fd, part.length, part.offset) if isinstance(part, Segment) else part
    return bytes(found)


def test_a_blob_that_is_elsewhere_is_fetched_served_and_kept(scratch: Path) -> None:
    here = Elsewhere(scratch)

    async def story() -> None:
        assert await here.read() == here.data
        await here.settled()
        statistics = here.store.statistics()
        # A block that was fetched ahead of the reader may have been here when he came.
        assert (statistics.misses + statistics.hits, statistics.fills) == (BLOCKS, BLOCKS)
        assert statistics.misses >= 1
        assert statistics.fill_bytes == statistics.bytes_read == SIZE
        assert sum(statistics.fill_times) == BLOCKS
        assert here.kept() == [0, 1, 2]
        asked = len(here.source.asked)
        assert await here.read() == here.data
        assert await rendered(here.store.open_blob(here.blob_id, SIZE).segments(0, SIZE)) == here.data
        assert len(here.source.asked) == asked
        assert here.store.statistics().hits == statistics.hits + 2 * BLOCKS
        usage = await here.store.usage()
        assert (usage.blocks, usage.filling_bytes) == (BLOCKS, 0)
        assert usage.used_bytes == sum(padded(length) + FOOTER_BYTES for length in (BLOCK, BLOCK, CHUNK + 1000))
        await here.store.verify_blob(here.blob_id, SIZE)

    run(here, story)


def test_a_fill_starts_at_the_chunk_that_was_asked_for_and_fetches_the_rest_after_it(scratch: Path) -> None:
    here = Elsewhere(scratch)

    async def story() -> None:
        start = BLOCK + 2 * CHUNK + 5
        assert await here.read(start, start + 10) == here.data[start : start + 10]
        await here.settled()
        assert here.source.asked == [
            (here.blob_id, BLOCK + 2 * CHUNK, 2 * BLOCK),
            (here.blob_id, BLOCK, BLOCK + 2 * CHUNK),
        ]
        assert here.kept() == [1]
        assert await here.read(BLOCK, 2 * BLOCK) == here.data[BLOCK : 2 * BLOCK]
        assert len(here.source.asked) == 2

    run(here, story)


@pytest.mark.parametrize("how", ["read", "segments"])
def test_many_readers_share_one_fill(scratch: Path, how: str) -> None:
    here = Elsewhere(scratch)

    async def story() -> None:
        dice = random.Random(7)
        ranges = [sorted((dice.randrange(BLOCK), dice.randrange(BLOCK))) for _ in range(30)]
        readers = [here.store.open_blob(here.blob_id, SIZE) for _ in ranges]
        here.source.script = lambda blob_id, start: _until(lambda: here.store.statistics().fills_joined == 29)
        found = await asyncio.gather(
            *(rendered(getattr(reader, how)(*span)) for reader, span in zip(readers, ranges, strict=True))
        )
        assert found == [here.data[start:stop] for start, stop in ranges]
        await here.settled()
        assert sum(stop - start for _, start, stop in here.source.asked) == BLOCK
        statistics = here.store.statistics()
        assert (statistics.fills, statistics.fills_joined, statistics.misses) == (1, 29, 30)

    run(here, story)


def test_bytes_are_served_as_they_arrive(scratch: Path) -> None:
    here = Elsewhere(scratch)

    async def story() -> None:
        gates = {position: asyncio.Event() for position in range(0, SIZE, PIECE)}
        here.source.script = lambda blob_id, start: gates[start].wait()
        reading = here.store.open_blob(here.blob_id, SIZE).read(0, 2 * PIECE)
        gates[0].set()
        first = await anext(reading)
        assert first == here.data[:PIECE]  # while the source is still waited for
        for gate in gates.values():
            gate.set()
        assert bytes(first) + await drain(reading) == here.data[: 2 * PIECE]

    run(here, story)


def test_who_asks_for_bytes_before_the_fills_start_gets_them_in_its_second_part(scratch: Path) -> None:
    here = Elsewhere(scratch)

    async def story() -> None:
        gate = asyncio.Event()
        here.source.script = lambda blob_id, start: gate.wait()
        late = asyncio.create_task(here.read(3 * CHUNK, BLOCK))
        await _until(lambda: len(here.source.asked) == 1)
        early = asyncio.create_task(here.read(10, BLOCK))
        await _until(lambda: here.store.statistics().fills_joined == 1)
        gate.set()
        assert await late == here.data[3 * CHUNK : BLOCK]
        assert await early == here.data[10:BLOCK]
        assert here.source.asked == [(here.blob_id, 3 * CHUNK, BLOCK), (here.blob_id, 0, 3 * CHUNK)]

    run(here, story)


def test_the_next_block_of_a_read_is_fetched_while_this_one_is(scratch: Path) -> None:
    here = Elsewhere(scratch)

    async def story() -> None:
        gate = asyncio.Event()
        here.source.script = lambda blob_id, start: gate.wait() if start == PIECE else None
        reading = here.store.open_blob(here.blob_id, SIZE).read(0, SIZE)
        first = bytes(await anext(reading))
        second = asyncio.create_task(anext(reading))  # type: ignore[arg-type]
        await _until(lambda: (here.blob_id, BLOCK, 2 * BLOCK) in here.source.asked)
        assert not second.done()
        gate.set()
        assert first + bytes(await second) + await drain(reading) == here.data
        assert sum(stop - start for _, start, stop in here.source.asked) == SIZE

    run(here, story)


def test_nothing_is_fetched_ahead_that_is_here_or_for_which_there_is_no_memory(scratch: Path) -> None:
    here = Elsewhere(scratch, fill_bytes=IMAGE)

    async def story() -> None:
        assert await here.read(0, 2 * BLOCK) == here.data[: 2 * BLOCK]
        await here.settled()
        assert here.store.statistics().passed_through == 0
        await here.store.evict(here.blob_id)
        await here.read(BLOCK, BLOCK + 1)
        await here.settled()
        here.source.asked.clear()
        here.store._fills._images._limit_bytes = 10 * IMAGE
        assert await here.read(0, 2 * BLOCK) == here.data[: 2 * BLOCK]
        await here.settled()
        assert here.source.asked == [(here.blob_id, 0, BLOCK)]

    run(here, story)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # nothing tells when it changes
        await asyncio.sleep(0)


def test_a_fill_outlives_the_readers_that_gave_up(scratch: Path) -> None:
    here = Elsewhere(scratch)

    async def story() -> None:
        gate = asyncio.Event()
        here.source.script = lambda blob_id, start: gate.wait() if start else None
        readers = [asyncio.create_task(here.read(0, BLOCK)) for _ in range(3)]
        await _until(lambda: here.store.statistics().fill_bytes > 0)
        for reader in readers:
            reader.cancel()
        assert all(
            isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*readers, return_exceptions=True)
        )
        gate.set()
        await here.settled()
        assert here.kept() == [0]
        assert here.store.statistics().fills == 1

    run(here, story)


def _short(pieces: Iterator[bytes]) -> Iterator[bytes]:
    for index, piece in enumerate(pieces):
        if index == 3:
            yield piece[:-1]
            return
        yield piece


def _long(pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield from pieces
    yield b"!"


def _refused(blob_id: bytes, start: int) -> None:
    if start >= 2 * PIECE:
        raise SourceUnavailable("the other node is being restarted")


def _reset(blob_id: bytes, start: int) -> None:
    if start >= 2 * PIECE:
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


def _silent(blob_id: bytes, start: int) -> Awaitable[object] | None:
    return asyncio.Event().wait() if start >= 2 * PIECE else None


def _empty(pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield next(pieces)
    yield from itertools.repeat(b"")


FAULTS: dict[str, dict[str, Any]] = {
    "short": {"cut": _short},
    "long": {"cut": _long},
    "refused": {"script": _refused},
    "reset": {"script": _reset},
    "silent": {"script": _silent},
    "empty": {"cut": _empty},
}


@pytest.mark.parametrize("kept", [True, False], ids=["fill", "passed-through"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_source_that_fails_is_found_out_and_asked_again_by_the_next_reader(
    scratch: Path, fault: str, kept: bool
) -> None:
    here = Elsewhere(scratch, cache_bytes=None if kept else 4096)

    async def story() -> None:
        sound = {name: getattr(here.source, name) for name in ("cut", "script")}
        for name, value in FAULTS[fault].items():
            setattr(here.source, name, value)
        _patient_until_it_gives(here, 0.05)
        given = bytearray()
        with pytest.raises(SourceUnavailable):  # noqa: PT012
            async for piece in here.store.open_blob(here.blob_id, SIZE).read(0, BLOCK):
                given += piece
            if fault == "long":  # who had all of his bytes before the one too many has no reason to complain
                raise SourceUnavailable
        assert here.data.startswith(given)
        await here.settled()
        assert here.kept() == []
        assert here.store.statistics().fills_failed == 1
        here.check_quiet()
        here.store._fills.timeout_s = 60.0
        for name, value in sound.items():
            setattr(here.source, name, value)
        assert await here.read() == here.data
        await here.settled()
        assert here.kept() == ([0, 1, 2] if kept else [])

    run(here, story)


def _patient_until_it_gives(here: Elsewhere, timeout_s: float) -> None:
    """A source is given so little time only once it gives something: before, a thread takes the block's place, and a
    reader who does not wait for that leaves a fill that nobody wants."""
    script = here.source.script

    def hurried(blob_id: bytes, start: int) -> object:
        here.store._fills.timeout_s = timeout_s
        return script(blob_id, start)

    here.source.script = hurried


def test_a_source_with_a_defect_of_its_own_is_reported_and_nobody_hangs(scratch: Path) -> None:
    here = Elsewhere(scratch)

    def broken(blob_id: bytes, start: int) -> None:
        raise ZeroDivisionError

    async def story() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        here.source.script = broken
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await here.read(0, BLOCK)
        here.source.script = lambda blob_id, start: None
        assert await here.read() == here.data

    run(here, story)


def test_each_of_several_waiting_readers_gets_an_error_of_its_own(scratch: Path) -> None:
    here = Elsewhere(scratch)

    async def story() -> None:
        async def refuse() -> None:
            await _until(lambda: here.store.statistics().fills_joined == 4)
            raise SourceUnavailable("the other node is being restarted")

        here.source.script = lambda blob_id, start: refuse()
        errors = await asyncio.gather(*(here.read(3 * PIECE, BLOCK) for _ in range(5)), return_exceptions=True)
        assert [type(error) for error in errors] == [SourceUnavailable] * 5
        assert len({id(error) for error in errors}) == 5
        assert here.store.statistics().fills_failed == 1

    run(here, story)


def test_what_nobody_has_is_missing(scratch: Path) -> None:
    here = Elsewhere(scratch)

    async def story() -> None:
        del here.source.blobs[here.blob_id]
        for _ in range(2):
            with pytest.raises(MissingBlob):
                await drain(here.store.open_blob(here.blob_id, SIZE).read(0, SIZE))
        with pytest.raises(NotAtSource):
            await here.store.warm(here.blob_id, SIZE)
        assert here.store.statistics().corrupt_unhealed == 0

    run(here, story)


def test_without_a_source_what_is_not_here_is_missing(scratch: Path) -> None:
    here = Elsewhere(scratch)

    async def story() -> None:
        here.store.fill_from(None)
        with pytest.raises(MissingBlob, match="block 0 of blob"):
            await here.read()
        with pytest.raises(SourceUnavailable, match="no source"):
            await here.store.warm(here.blob_id, SIZE)

    run(here, story)


def test_a_blob_that_is_dead_when_its_fill_begins_is_not_fetched(scratch: Path) -> None:
    here = Elsewhere(scratch)

    async def story() -> None:
        here.source.dead.add(here.blob_id)
        with pytest.raises(MissingBlob, match="deleted"):
            await here.read()
        assert here.source.asked == []
        assert here.store.statistics().fills_dropped == 1
        assert here.store.statistics().fills_failed == 0

    run(here, story)


def test_a_blob_that_dies_during_its_fill_is_served_to_who_reads_it_and_not_kept(scratch: Path) -> None:
    here = Elsewhere(scratch)

    def die(blob_id: bytes, start: int) -> None:
        if start >= BLOCK - PIECE:
            here.source.dead.add(blob_id)

    async def story() -> None:
        here.source.script = die
        assert await here.read(0, BLOCK) == here.data[:BLOCK]
        await here.settled()
        assert here.kept() == []
        statistics = here.store.statistics()
        assert (statistics.fills, statistics.fills_dropped, statistics.fills_failed) == (0, 1, 0)

    run(here, story)


def test_a_blob_deleted_during_its_fill_does_not_come_back(scratch: Path) -> None:
    """The deletion comes after the fill last asked whether the blob lives."""
    here = Elsewhere(scratch)

    async def story() -> None:
        questions = 0

        async def delete(blob_id: bytes) -> None:
            nonlocal questions
            questions += 1
            if questions == 2:
                await here.store.delete_blob(blob_id, SIZE)

        here.source.answer = delete
        assert await here.read(0, BLOCK) == here.data[:BLOCK]
        await here.settled()
        assert questions == 2
        assert here.kept() == []
        assert here.store.statistics().fills_dropped == 1
        assert (await here.store.usage()).blocks == 0

    run(here, story)


@pytest.mark.parametrize("moment", [1, 2], ids=["before", "after"])
def test_when_it_cannot_be_told_whether_a_blob_lives_nothing_is_kept(scratch: Path, moment: int) -> None:
    here = Elsewhere(scratch)

    def answer(blob_id: bytes) -> None:
        if len(here.source.lives_asked) == moment:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    async def story() -> None:
        here.source.answer = answer
        if moment == 1:
            with pytest.raises(SourceUnavailable, match="does not tell"):
                await here.read(0, BLOCK)
        else:
            assert await here.read(0, BLOCK) == here.data[:BLOCK]
        await here.settled()
        assert here.kept() == []
        assert here.store.statistics().fills_failed == 1

    run(here, story)


@pytest.mark.parametrize(
    "options",
    [{"cache_bytes": 4096}, {"fill_bytes": BLOCK}, {"fs": SmallDisk(2**40, 2**20)}],
    ids=["no-capacity", "no-memory", "no-space"],
)
def test_what_there_is_no_room_for_is_passed_through_and_only_what_was_asked_for(
    scratch: Path, options: dict[str, Any]
) -> None:
    here = Elsewhere(scratch, **options)

    async def story() -> None:
        start, stop = BLOCK - 5, BLOCK + 5
        assert await here.read(start, stop) == here.data[start:stop]
        assert here.source.asked == [(here.blob_id, start, BLOCK), (here.blob_id, BLOCK, stop)]
        assert await rendered(here.store.open_blob(here.blob_id, SIZE).segments(start, stop)) == here.data[start:stop]
        assert here.kept() == []
        statistics = here.store.statistics()
        assert (statistics.passed_through, statistics.passed_through_bytes) == (4, 20)
        assert (statistics.fills, statistics.fills_failed, statistics.misses) == (0, 0, 4)

    run(here, story)


def test_readers_of_a_block_that_is_not_kept_share_one_fetch_of_what_they_ask_for(scratch: Path) -> None:
    here = Elsewhere(scratch, cache_bytes=4096)
    fetched = (here.blob_id, 100, 2 * CHUNK)

    async def story() -> None:
        refused, gate = threading.Event(), asyncio.Event()
        for _ in range(INDEX_THREADS):
            here.store._index.submit(refused.wait)
        here.source.script = lambda blob_id, start: gate.wait()
        spans = [(200, CHUNK), (100, 300), (CHUNK, 2 * CHUNK)]
        early = [asyncio.create_task(here.read(*span)) for span in spans]
        await _until(lambda: here.store.statistics().fills_joined == 2)
        refused.set()
        await _until(lambda: here.source.asked == [fetched])
        spans += [(150, 2 * CHUNK), (50, 60), (2 * CHUNK - 5, 2 * CHUNK + 5)]
        late = [asyncio.create_task(here.read(*span)) for span in spans[3:]]
        await _until(lambda: here.store.statistics().fills_joined == 5)
        gate.set()
        assert await asyncio.gather(*early, *late) == [here.data[start:stop] for start, stop in spans]
        # What it does not hold is fetched by who asks for it.
        assert sorted(here.source.asked) == [
            (here.blob_id, 50, 60),
            fetched,
            (here.blob_id, 2 * CHUNK, 2 * CHUNK + 5),
        ]
        assert here.store.statistics().passed_through == 3
        assert here.kept() == []

    run(here, story)


def test_what_is_not_kept_is_fetched_only_as_long_as_somebody_reads_it(scratch: Path) -> None:
    here = Elsewhere(scratch, cache_bytes=4096)

    async def story() -> None:
        reading = here.store.open_blob(here.blob_id, SIZE).read(0, BLOCK)
        gate = asyncio.Event()
        here.source.script = lambda blob_id, start: gate.wait() if start else None
        assert await anext(reading) == here.data[:PIECE]
        await reading.aclose()
        gate.set()
        await here.settled()
        assert here.store.statistics().passed_through_bytes == 2 * PIECE

    run(here, story)


def test_who_waits_too_long_for_memory_is_passed_through(scratch: Path) -> None:
    here = Elsewhere(scratch, fill_bytes=IMAGE)
    other = here.add(content(2))

    async def story() -> None:
        gate = asyncio.Event()
        here.source.script = lambda blob_id, start: gate.wait() if blob_id == here.blob_id else None
        stuck = asyncio.create_task(here.read(0, BLOCK))
        await _until(lambda: bool(here.source.asked))
        here.store._fills._wait_s = 0.01
        assert await here.read(5, 10, other) == content(2)[5:10]
        assert here.source.asked[1:] == [(other, 5, 10)]
        gate.set()
        assert await stuck == here.data[:BLOCK]
        await here.settled()
        statistics = here.store.statistics()
        assert (statistics.passed_through, statistics.fills) == (1, 1)

    run(here, story)


def test_who_waits_too_long_for_his_own_bytes_in_a_long_fill_is_passed_through(scratch: Path) -> None:
    here = Elsewhere(scratch)

    async def story() -> None:
        gate = asyncio.Event()
        here.source.script = lambda blob_id, start: gate.wait() if start >= 3 * CHUNK else None
        long = asyncio.create_task(here.read(3 * CHUNK, BLOCK))
        await _until(lambda: bool(here.source.asked))
        here.store._fills.timeout_s = 0.01
        assert await here.read(5, 10) == here.data[5:10]
        assert here.source.asked[1:] == [(here.blob_id, 5, 10)]
        gate.set()
        assert await long == here.data[3 * CHUNK : BLOCK]

    run(here, story)


def test_memory_is_taken_from_readers_that_lag_behind_and_they_go_on_from_the_file(scratch: Path) -> None:
    here = Elsewhere(scratch, fill_bytes=IMAGE)
    other = here.add(content(2))

    async def story() -> None:
        slow = here.store.open_blob(here.blob_id, SIZE).read(0, BLOCK)
        given = bytes(await anext(slow))
        await here.settled()
        assert here.store.statistics().filling_bytes == IMAGE  # for the slow one's sake
        assert await here.read(0, BLOCK, other) == content(2)[:BLOCK]
        assert here.store.statistics().passed_through == 0
        asked = len(here.source.asked)
        assert given + await drain(slow) == here.data[:BLOCK]
        assert len(here.source.asked) == asked

    run(here, story)


@pytest.mark.parametrize("ending", ["commit", "abandon", "never"])
def test_a_block_that_another_process_fetches_is_waited_for_within_bounds(scratch: Path, ending: str) -> None:
    here = Elsewhere(scratch)
    other = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())

    async def story() -> None:
        theirs = await asyncio.to_thread(other._cache.begin, here.blob_id, 0, BLOCK)
        reading = asyncio.create_task(here.read(0, 10))
        tried = asyncio.Event()
        real = here.store._cache.begin

        def begin(*args: Any) -> Any:
            loop.call_soon_threadsafe(tried.set)
            return real(*args)

        loop = asyncio.get_running_loop()
        here.store._cache.begin = begin  # type: ignore[method-assign]
        if ending == "never":
            here.store._fills.claim_s = 0.01  # over perhaps before a thread has tried
        else:
            await tried.wait()
        if ending == "commit":
            image = memoryview(bytearray(IMAGE))
            image[:BLOCK] = here.data[:BLOCK]
            image[BLOCK:] = _footer(here.blob_id, here.data[:BLOCK])
            await asyncio.to_thread(theirs.commit, image)
        elif ending == "abandon":
            await asyncio.to_thread(theirs.abandon)
        assert await reading == here.data[:10]
        await here.settled()
        statistics = here.store.statistics()
        assert statistics.fills == (ending == "abandon")
        assert statistics.passed_through == (ending == "never")
        assert here.kept() == ([] if ending == "never" else [0])
        await asyncio.to_thread(theirs.abandon)

    run(here, story)
    other.close()


@pytest.mark.parametrize("damaged", [False, True], ids=["missing", "damaged"])
def test_while_the_index_is_kept_uploads_go_on_and_misses_are_passed_through(scratch: Path, damaged: bool) -> None:
    here = Elsewhere(scratch)
    other = content(2)

    async def story() -> None:
        if damaged:
            await here.read(0, BLOCK)
            await here.settled()
            (file,) = (scratch / "cache").rglob(f"{here.blob_id.hex()}.0")
            file.chmod(0o600)
            file.write_bytes(b"decayed")
        free = threading.Event()
        store = here.store
        jobs = [store._index.submit(free.wait) for _ in range(20)]
        store._fills.claim_s = 0.01
        assert await here.read(0, BLOCK) == here.data[:BLOCK]
        assert store.statistics().passed_through == 1
        blob_id = await put(store, other)
        assert await drain(store.open_blob(blob_id, SIZE).read(0, SIZE)) == other
        assert not any(job.done() for job in jobs)
        free.set()
        store._fills.claim_s = 60.0
        await here.settled()
        while file_is_damaged(here):
            await here.read(0, BLOCK)
        assert await here.read(0, BLOCK) == here.data[:BLOCK]
        await here.settled()
        assert here.kept() == [0]

    def file_is_damaged(here: Elsewhere) -> bool:
        return any(_bytes_or_gone(path) == b"decayed" for path in (scratch / "cache").rglob("*.0"))

    run(here, story)


def _bytes_or_gone(path: Path) -> bytes | None:
    """What a file holds; None where it was dropped between its listing and its reading."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def test_a_miss_whose_readers_have_left_before_its_turn_takes_no_place(scratch: Path) -> None:
    here = Elsewhere(scratch)

    async def story() -> None:
        free = threading.Event()
        for _ in range(INDEX_THREADS):
            here.store._index.submit(free.wait)
        reading = asyncio.create_task(here.read(0, BLOCK))
        await _until(lambda: here.store._index._work_queue.qsize() == 1)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        free.set()
        await here.settled()
        assert here.source.lives_asked == []
        assert here.kept() == []

    run(here, story)


def _footer(blob_id: bytes, data: bytes) -> bytes:
    from tigrislike.bytecache.footer import Footer, chunk_checksum

    checksums = b"".join(chunk_checksum(data[at : at + CHUNK]) for at in range(0, BLOCK, CHUNK))
    return Footer(blob_id, 0, BLOCK, BLOCK, checksums).encode()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_whichever_system_call_of_a_fill_fails_the_reader_gets_his_bytes_and_nothing_is_left(
    scratch: Path, code: int
) -> None:
    """Fail call number 1, 2, 3 ... of a read that fills, until one passes untouched."""
    fail = FailNth(code)
    writes = {"pwrite", "mkdir", "rename", "fdatasync", "fsync", "fallocate"}

    def hook(name: str, args: tuple[object, ...]) -> None:
        # Reading needs no space.
        if (
            code == errno.EIO
            or name in writes
            or (name == "open" and isinstance(args[1], int) and args[1] & os.O_CREAT)
        ):
            fail(name, args)

    here = Elsewhere(scratch, fs=HookedFileSystem(hook))
    here.data = content(1, CHUNK + 5)

    async def story() -> None:
        for nth in range(1, 200):
            blob_id = here.add(here.data)
            fail.arm(nth)
            assert await here.read(7, CHUNK + 2, blob_id) == here.data[7 : CHUNK + 2]
            await here.settled()
            fail.disarm()
            assert os.listdir(scratch / "filling") == [], fail.failed
            usage = await here.store.usage()
            assert usage.filling_bytes == 0
            assert await here.read(0, CHUNK + 5, blob_id) == here.data
            await here.settled()
            await here.store.verify_blob(blob_id, CHUNK + 5)
            if not fail.failed:
                assert nth > (10 if code == errno.EIO else 3)
                return
        raise AssertionError("200 system calls for one fill")

    run(here, story)


def test_out_of_descriptors_is_no_reason_to_fetch(scratch: Path) -> None:
    broken: list[int] = []

    def fail(name: str, args: tuple[object, ...]) -> None:
        if broken and name == "open" and "/home/" in str(args[0]):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    here = Elsewhere(scratch, fs=HookedFileSystem(fail))

    async def story() -> None:
        broken.append(1)
        with pytest.raises(TooManyOpenFiles):
            await here.read()
        assert here.source.asked == []

    run(here, story)


def test_closing_the_store_ends_fills_and_tells_who_waits(scratch: Path) -> None:
    here = Elsewhere(scratch)

    async def story() -> None:
        here.source.script = lambda blob_id, start: asyncio.Event().wait()
        reading = asyncio.create_task(here.read())
        await _until(lambda: bool(here.source.asked))
        await here.store.aclose()
        with pytest.raises(SourceUnavailable, match="closed"):
            await reading

    asyncio.run(story())
    here.check_quiet()


def test_warming_fetches_only_what_is_not_here_and_goes_on_where_it_failed(scratch: Path) -> None:
    here = Elsewhere(scratch)

    async def story() -> None:
        await here.read(BLOCK, BLOCK + 1)
        await here.settled()
        here.source.asked.clear()
        done: list[int] = []

        async def fail() -> None:
            # The failure ends the warming, and so the looking for blocks whose fetching has not begun.
            await _until(lambda: (here.blob_id, 0, BLOCK) in here.source.asked)
            raise SourceUnavailable("enough for now")

        here.source.script = lambda blob_id, start: fail() if start >= 2 * BLOCK else None
        with pytest.raises(SourceUnavailable):
            await here.store.warm(here.blob_id, SIZE, done.append)
        await here.settled()
        assert here.kept() == [0, 1]
        here.source.script = lambda blob_id, start: None
        here.source.asked.clear()
        done.clear()
        assert await here.store.warm(here.blob_id, SIZE, done.append) == CHUNK + 1000
        assert sum(done) == SIZE
        assert [start for _, start, _ in here.source.asked] == [2 * BLOCK]
        assert await here.store.warm(here.blob_id, SIZE) == 0
        empty = here.add(b"")
        assert await here.store.warm(empty, 0) == 0
        await here.store.verify_blob(empty, 0)

    run(here, story)


@pytest.mark.parametrize("ends", [True, False])
def test_warming_waits_for_a_block_that_another_process_fetches_while_that_may_end(scratch: Path, ends: bool) -> None:
    here = Elsewhere(scratch, fill_timeout_s=60.0 if ends else 0.05)
    other = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())

    async def story() -> None:
        theirs = await asyncio.to_thread(other._cache.begin, here.blob_id, 1, BLOCK)
        here.store._fills.claim_s = 0.0001
        warming = asyncio.create_task(here.store.warm(here.blob_id, SIZE))
        if ends:
            await _until(lambda: tries.count(1) > 2)
            await asyncio.to_thread(theirs.abandon)
            here.store._fills.claim_s = 60.0
            assert await warming == SIZE
            await here.settled()
            assert here.kept() == [0, 1, 2]
        else:
            with pytest.raises((FillInProgress, BlobBusy)):
                await warming
            await asyncio.to_thread(theirs.abandon)

    tries: list[int] = []
    keep = here.store._fills.keep

    async def counted(*args: Any, **options: Any) -> None:
        tries.append(args[2])
        await keep(*args, **options)

    here.store._fills.keep = counted  # type: ignore[method-assign]
    run(here, story)
    other.close()


class _Leaping(asyncio.SelectorEventLoop):
    """Where nothing can run, the clock leaps to the next timer: for what needs no threads."""

    leapt_s = 0.0

    def time(self) -> float:
        return self.leapt_s

    def _run_once(self) -> None:
        timers = [timer.when() for timer in self._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
        if timers and not self._ready:  # type: ignore[attr-defined]
            self.leapt_s = max(self.leapt_s, min(timers))
        super()._run_once()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("piece", "pause_s", "slow_reader_s", "ends"),
    [(1, 9, 0, False), (CHUNK // 2, 9, 0, False), (CHUNK // 2, 4, 0, True), (CHUNK, 9, 0, True), (CHUNK, 1, 900, True)],
    ids=["trickle", "too little", "enough", "late but large", "slow reader"],
)
def test_a_source_must_make_progress_for_as_long_as_it_is_waited_for(
    scratch: Path, piece: int, pause_s: int, slow_reader_s: int, ends: bool
) -> None:
    here = Elsewhere(scratch, fill_timeout_s=10.0)
    here.source.cut = lambda pieces: (
        whole := b"".join(pieces),
        (whole[at : at + piece] for at in range(0, len(whole), piece)),
    )[1]
    here.source.script = lambda blob_id, start: asyncio.sleep(pause_s)

    async def story() -> None:
        given = bytearray()
        async for data in here.store._fills.received(here.source, here.blob_id, SIZE, 0, BLOCK):
            given += data
            await asyncio.sleep(slow_reader_s)
        assert given == here.data[:BLOCK]

    with asyncio.Runner(loop_factory=_Leaping) as runner:
        if ends:
            runner.run(story())
        else:
            with pytest.raises(SourceUnavailable, match="does not give"):
                runner.run(story())
            assert runner.get_loop().time() == 10.0
    here.store.close()


def test_a_source_that_does_not_let_itself_be_closed_holds_nothing_for_long(scratch: Path) -> None:
    here = Elsewhere(scratch)
    _patient_until_it_gives(here, 0.05)
    read = here.source.read

    class Stuck:
        def __init__(self, pieces: Any) -> None:
            self.pieces = pieces

        def __aiter__(self) -> "Stuck":
            return self

        async def __anext__(self) -> Any:
            return await anext(self.pieces)

        async def aclose(self) -> None:
            await self.pieces.aclose()
            await asyncio.Event().wait()

    async def story() -> None:
        here.source.read = lambda *args: Stuck(read(*args))  # type: ignore[method-assign, assignment, return-value]
        assert await here.read(0, BLOCK) == here.data[:BLOCK]
        await here.settled()
        assert here.kept() == [0]

    run(here, story)


@pytest.mark.parametrize("piece", [PIECE, BLOCK], ids=["small", "large"])
def test_a_source_that_never_waits_lets_others_run(scratch: Path, piece: int) -> None:
    here = Elsewhere(scratch)
    turns = 0
    seen: list[int] = []

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def story() -> None:
        running = asyncio.create_task(others())
        here.source.cut = lambda pieces: (whole := b"".join(pieces), iter([whole]))[1] if piece == BLOCK else pieces
        fills = here.store._fills
        position = 0
        async for data in fills.received(here.source, here.blob_id, SIZE, 0, BLOCK):
            assert len(data) <= CHUNK
            if position % CHUNK == 0:
                seen.append(turns)
            position += len(data)
        assert len(set(seen)) == len(seen) == BLOCK // CHUNK
        running.cancel()

    run(here, story)


def test_a_fill_that_has_not_begun_when_the_store_is_closed_ends_and_none_begins_after(scratch: Path) -> None:
    here = Elsewhere(scratch)

    async def story() -> None:
        reading = asyncio.create_task(here.store._fills.keep(here.blob_id, SIZE, 0, lambda: None))  # type: ignore[arg-type, return-value]
        await asyncio.sleep(0)  # the fill's task is made, and has not run
        await here.store._fills.close()
        for _ in range(10):
            await asyncio.sleep(0)
        assert reading.done()
        with pytest.raises(SourceUnavailable, match="closed"):
            await reading
        with pytest.raises(SourceUnavailable, match="closed"):
            await here.read()

    run(here, story)


def test_warming_counts_what_is_at_home_as_here_and_says_why_it_cannot_keep(scratch: Path) -> None:
    here = Elsewhere(scratch, cache_bytes=4096)

    async def story() -> None:
        home = await put(here.store, here.data)
        assert await here.store.warm(home, SIZE) == 0
        with pytest.raises(CacheFull):
            await here.store.warm(here.blob_id, SIZE)
        assert here.kept() == []

    run(here, story)


def test_a_pinned_blob_stays_and_an_evicted_one_goes(scratch: Path) -> None:
    here = Elsewhere(scratch)

    async def story() -> None:
        await here.store.pin(here.blob_id)
        assert await here.store.pins() == [here.blob_id]
        await here.store.warm(here.blob_id, SIZE)
        usage = await here.store.usage()
        assert usage.pinned_blocks == BLOCKS
        assert [block.number for block in await here.store.cached_blocks()] == [0, 1, 2]
        assert all(block.pinned for block in await here.store.cached_blocks())
        assert await here.store.unpin(here.blob_id)
        assert not await here.store.unpin(here.blob_id)
        assert await here.store.evict(here.blob_id) == usage.used_bytes
        assert here.kept() == []
        assert here.store.statistics().evicted_request == BLOCKS
        assert await here.read() == here.data
        await here.settled()
        await here.store.flush_hits()
        await here.store.pin(here.blob_id)
        await here.store.delete_blob(here.blob_id, SIZE)
        assert here.kept() == []
        assert await here.store.pins() == []
        assert (await here.store.reconcile()).removed == 0

    run(here, story)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_readers_in_any_order_and_a_source_that_fails_anywhere_never_give_a_wrong_byte(
    scratch: Path, data: st.DataObject
) -> None:
    fs = data.draw(st.sampled_from([NoSync(), Warm()]))
    fill_bytes = data.draw(st.sampled_from([4096, IMAGE, 10 * IMAGE]))
    cache_bytes = data.draw(st.sampled_from([None, 4096, 3 * IMAGE]))
    faulty = set(data.draw(st.lists(st.integers(0, 200), max_size=4)))
    sizes = data.draw(st.lists(st.integers(4000, 3 * PIECE), min_size=1, max_size=5))
    plans = data.draw(
        st.lists(
            st.tuples(
                st.integers(0, 2), st.integers(0, SIZE), st.integers(0, SIZE), st.sampled_from(["read", "segments"])
            ),
            min_size=1,
            max_size=12,
        )
    )
    root = scratch / os.urandom(8).hex()
    here = Elsewhere(root, fs=fs, fill_bytes=fill_bytes, cache_bytes=cache_bytes, fill_timeout_s=60.0)
    here.store._fills._wait_s = 0.0
    blobs = [here.blob_id, here.add(content(2)), here.add(content(3))]
    pieces_given = 0

    def script(blob_id: bytes, start: int) -> Awaitable[None]:
        nonlocal pieces_given
        pieces_given += 1
        if pieces_given in faulty:
            raise SourceUnavailable("not now")
        return asyncio.sleep(0)

    def cut(pieces: Iterator[bytes]) -> Iterator[bytes]:
        whole = b"".join(pieces)
        start = 0
        for size in itertools.cycle(sizes):
            if start >= len(whole):
                return
            yield whole[start : start + size]
            start += size

    here.source.script = script
    here.source.cut = cut

    async def one(which: int, start: int, stop: int, how: str) -> None:
        start, stop = min(start, stop), max(start, stop)
        expected = here.source.blobs[blobs[which]]
        given = bytearray()
        with contextlib.suppress(SourceUnavailable):
            async for part in getattr(here.store.open_blob(blobs[which], SIZE), how)(start, stop):
                given += os.pread(part.fd, part.length, part.offset) if isinstance(part, Segment) else part
                assert given == expected[start : start + len(given)]
            assert len(given) == stop - start

    async def story() -> None:
        await asyncio.gather(*(one(*plan) for plan in plans))
        await here.settled()
        faulty.clear()
        for plan in plans:
            await one(*plan)

    run(here, story)


def test_memory_is_given_out_in_order_and_to_nobody_who_left(scratch: Path) -> None:
    held: list[int] = []
    fills = Elsewhere(scratch)
    images = Images(10_000, held.append, lambda: None)

    async def story() -> None:
        first = await images.take(8000, 60)
        assert first is not None
        assert await images.take(10_001, 60) is None
        order: list[str] = []

        async def wait(name: str, length: int) -> None:
            image = await images.take(length, 60)
            assert image is not None
            order.append(name)
            images.give(image)

        large, gone, small = (
            asyncio.create_task(wait(n, s)) for n, s in (("large", 9000), ("gone", 10), ("small", 10))
        )
        for _ in range(3):
            await asyncio.sleep(0)
        assert await images.take(1, 0) is None  # there is room, but not its turn
        gone.cancel()
        images.give(first)
        await asyncio.gather(large, small)
        assert order == ["large", "small"]
        assert sum(held) == 0

    run(fills, story)


# What may not be kept.


def test_what_may_not_be_kept_is_passed_through_and_nothing_of_it_is_written(scratch: Path) -> None:
    here = Elsewhere(scratch)
    here.source.unkept.add(here.blob_id)

    async def story() -> None:
        for _ in range(2):
            assert await here.read() == here.data
            assert await rendered(here.store.open_blob(here.blob_id, SIZE).segments(0, SIZE)) == here.data
        await here.settled()
        # Nothing ahead of the reader either: it would only be fetched twice.
        assert sorted(start for _, start, _ in here.source.asked) == sorted([0, BLOCK, 2 * BLOCK] * 4)
        assert here.kept() == []
        assert here.store.statistics().passed_through == 4 * BLOCKS
        with pytest.raises(NotKept):
            await here.store.warm(here.blob_id, SIZE)
        assert here.kept() == []
        here.source.unkept.clear()
        assert await here.read() == here.data
        await here.settled()
        assert here.kept() == [0, 1, 2]

    run(here, story)


def test_readers_at_once_of_what_may_not_be_kept_share_one_fetch(scratch: Path) -> None:
    here = Elsewhere(scratch)
    here.source.unkept.add(here.blob_id)

    async def story() -> None:
        go = asyncio.Event()
        here.source.script = lambda blob_id, start: go.wait()
        readers = [asyncio.ensure_future(here.read(0, BLOCK)) for _ in range(3)]
        while here.store.statistics().fills_joined < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        go.set()
        assert await asyncio.gather(*readers) == [here.data[:BLOCK]] * 3
        assert len(here.source.asked) == 1
        assert here.kept() == []

    run(here, story)


def test_a_source_that_does_not_say_lets_everything_be_kept(scratch: Path) -> None:
    here = Elsewhere(scratch)

    class Silent:
        read = here.source.read
        lives = here.source.lives

    async def story() -> None:
        here.store.fill_from(Silent())  # type: ignore[arg-type]
        assert await here.read() == here.data
        await here.settled()
        assert here.kept() == [0, 1, 2]

    run(here, story)


# Where a read was served from.


@pytest.mark.parametrize("how", ["read", "segments"])
@pytest.mark.parametrize("place", ["home", "cache", "incoming", "source"])
def test_with_the_first_piece_it_is_known_where_it_came_from(scratch: Path, place: str, how: str) -> None:
    here = Elsewhere(scratch, fs=Warm())

    async def story() -> None:
        blob_id = here.blob_id
        if place == "home":
            await here.store.adopt(blob_id, SIZE)
        elif place == "cache":
            await here.store.warm(blob_id, SIZE)
        elif place == "incoming":
            copy = await here.store.receive_copy(blob_id, SIZE, here.source)
        before = here.store.statistics()
        reader = here.store.open_blob(blob_id, SIZE)
        assert reader.served_from is None
        parts = getattr(reader, how)(0, SIZE)
        await anext(parts)
        assert reader.served_from == place
        assert await rendered(parts)
        assert reader.served_from == place
        after = here.store.statistics()
        if place == "source":
            assert after.misses > 0
            await here.settled()
        else:
            assert getattr(after, f"hits_{place}") == after.hits - before.hits == BLOCKS
            reader = here.store.open_blob(blob_id, SIZE)
            assert reader.read_cached(0, 100) == here.data[:100]
            assert reader.served_from == place
        if place == "incoming":
            await copy.abort()

    run(here, story)


def test_a_read_whose_first_piece_was_here_was_served_from_here_whatever_follows(scratch: Path) -> None:
    here = Elsewhere(scratch)

    async def story() -> None:
        await here.store.warm(here.blob_id, SIZE)
        here.store._cache.remove_block(here.blob_id, 1, "request")
        reader = here.store.open_blob(here.blob_id, SIZE)
        assert await drain(reader.read(0, SIZE)) == here.data
        assert reader.served_from == "cache"
        empty = here.store.open_blob(here.blob_id, SIZE)
        assert await drain(empty.read(0, 0)) == b""
        assert empty.served_from is None

    run(here, story)
