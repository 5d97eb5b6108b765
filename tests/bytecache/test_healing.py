"""Every kind of damage, at every moment, in either tree: no wrong byte leaves, and what somebody else has is healed."""

import asyncio
import contextlib
import errno
import os
import random
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.bytecache.blobs import drain
from tests.bytecache.faults import FailNth, HookedFileSystem, NoSync, SmallDisk
from tests.bytecache.scripted_source import ScriptedSource
from tigrislike.bytecache import (
    BlobGone,
    BlockStore,
    CorruptBlock,
    DiskFailed,
    DiskFull,
    MissingBlob,
    NotAtSource,
    Segment,
    SourceUnavailable,
    reader,
)
from tigrislike.bytecache.footer import CHUNK, FOOTER_BYTES, padded
from tigrislike.bytecache.mending import Mending
from tigrislike.bytecache.verified import identity

BLOCK = 4 * CHUNK
"""Two extents for sendfile, see `short_extents`."""
TAIL = CHUNK + 1000
SIZE = 2 * BLOCK + TAIL
DATA = random.Random(5).randbytes(SIZE)
OTHER = random.Random(6).randbytes(SIZE)


@pytest.fixture(autouse=True)
def short_extents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extents shorter than a block, without making blocks large."""
    monkeypatch.setattr(reader, "SEGMENT_BYTES", 2 * CHUNK)


class Healing:
    """A store with two blobs in one of its trees, and a source that has both."""

    def __init__(self, root: Path, place: str, **options: Any) -> None:
        self.root = root
        self.place = place
        self.store = BlockStore.open(root, **{"fs": NoSync(), "block_size": BLOCK, "fill_timeout_s": 60.0, **options})
        self.source = ScriptedSource()
        self.store.fill_from(self.source)
        # No slow machine makes a reader give up who is to wait.
        self.store._fills._wait_s = self.store._fills.claim_s = 60.0

    async def prepare(self) -> None:
        self.blob_id, self.other_id = [await self.put(data) for data in (DATA, OTHER)]
        self.pristine = {path: path.read_bytes() for path in self.files()}
        self.source.asked.clear()
        # In the process that has written or filled a block nothing is known of it yet.
        assert len(self.store._local.known) == 0

    async def put(self, data: bytes) -> bytes:
        writer = self.store.create_blob()
        await writer.write(data)
        await writer.finish()
        blob_id = writer.blob_id
        self.source.blobs[blob_id] = data
        if self.place == "home":
            await self.store.publish(blob_id)
        elif self.place == "cache":
            await writer.abort()
            await self.store.warm(blob_id, len(data))
            self.store._local.known.forget(blob_id, 0)
            for number in range(3):
                self.store._local.known.forget(blob_id, number)
        return blob_id

    def files(self) -> list[Path]:
        return [self.file(blob_id, number) for blob_id in (self.blob_id, self.other_id) for number in range(3)]

    def file(self, blob_id: bytes, number: int) -> Path:
        if self.place == "incoming":
            return self.root / "incoming" / blob_id.hex() / str(number)
        return self.root / self.place / blob_id.hex()[:2] / f"{blob_id.hex()}.{number}"

    async def settled(self) -> None:
        while tasks := list(self.store._fills._tasks):
            await asyncio.gather(*tasks, return_exceptions=True)

    def run(self, story: Callable[[], Awaitable[None]]) -> None:
        async def whole() -> None:
            await self.prepare()
            await story()
            await self.settled()
            await self.store.aclose()

        asyncio.run(whole())
        statistics = self.store.statistics()
        assert statistics.open_blocks == 0
        assert statistics.filling_bytes == 0
        assert os.listdir(self.root / "filling") == []


def _rewrite(path: Path, change: Callable[[bytearray], None]) -> None:
    """Change a file in place, behind the store's back; its times move on, however coarse the clock."""
    before = path.stat().st_mtime_ns
    data = bytearray(path.read_bytes())
    change(data)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()
    path.chmod(0o400)
    os.utime(path, ns=(before, before + 1_000_000_000))


def _flip(offset: int) -> Callable[[Healing], None]:
    """A bit of the second block, at an offset from the end of its data."""

    def damage(healing: Healing) -> None:
        def change(data: bytearray) -> None:
            data[BLOCK + offset] ^= 0x10

        _rewrite(healing.file(healing.blob_id, 1), change)

    return damage


def _resize(change: Callable[[bytearray], None]) -> Callable[[Healing], None]:
    return lambda healing: _rewrite(healing.file(healing.blob_id, 1), change)


def _truncate(length: int) -> Callable[[Healing], None]:
    def change(data: bytearray) -> None:
        del data[length:]

    return _resize(change)


def _extend(data: bytearray) -> None:
    data += bytes(4096)


def _swap(blob: str, number: int) -> Callable[[Healing], None]:
    """The second block and another one change names."""

    def damage(healing: Healing) -> None:
        one, other = healing.file(healing.blob_id, 1), healing.file(getattr(healing, blob), number)
        spare = one.with_name("spare")
        for source, target in ((one, spare), (other, one), (spare, other)):
            source.rename(target)

    return damage


def _overwrite(blob: str, number: int) -> Callable[[Healing], None]:
    """The second block's file gets another block's content."""

    def damage(healing: Healing) -> None:
        content = healing.file(getattr(healing, blob), number).read_bytes()
        _rewrite(healing.file(healing.blob_id, 1), lambda data: data.__setitem__(slice(None), content))

    return damage


DAMAGE: dict[str, Callable[[Healing], None]] = {
    "data": _flip(-5),
    "footer-magic": _flip(3),
    "footer-length": _flip(36),
    "footer-blob-id": _flip(20),
    "footer-chunk-checksum": _flip(48 + 8 * 3 + 2),
    "footer-zeros": _flip(2000),
    "footer-checksum": _flip(FOOTER_BYTES - 1),
    "truncated-in-data": _truncate(BLOCK - 100),
    "truncated-in-footer": _truncate(BLOCK + FOOTER_BYTES - 1),
    "emptied": _truncate(0),
    "extended": _resize(_extend),
    "swapped-in-blob": _swap("blob_id", 0),
    "swapped-between-blobs": _swap("other_id", 1),
    "another-block-of-the-blob": _overwrite("blob_id", 0),
    "the-tail-of-the-blob": _overwrite("blob_id", 2),
    "a-block-of-another-blob": _overwrite("other_id", 1),
}

QUICK = {"data", "footer-checksum", "truncated-in-data", "swapped-in-blob", "a-block-of-another-blob"}
"""What also runs when a developer waits; all kinds take half a minute."""
SLOW = pytest.mark.slow

Read = Callable[[Healing, int, int], Any]
HOW: dict[str, Read] = {
    "read": lambda healing, start, stop: healing.store.open_blob(healing.blob_id, SIZE).read(start, stop, CHUNK),
    "segments": lambda healing, start, stop: healing.store.open_blob(healing.blob_id, SIZE).segments(start, stop),
}


def _bytes_of(part: Any) -> bytes:
    return os.pread(part.fd, part.length, part.offset) if isinstance(part, Segment) else bytes(part)


@pytest.mark.parametrize("has_source", [True, False], ids=["source", "alone"])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("moment", ["before-the-first-read", "after-it", "between-two-pieces"])
@pytest.mark.parametrize("place", ["home", "cache"])
@pytest.mark.parametrize("damage", [name if name in QUICK else pytest.param(name, marks=SLOW) for name in DAMAGE])
def test_no_wrong_byte_leaves_and_damage_is_healed_where_somebody_else_has_the_block(
    scratch: Path, damage: str, place: str, moment: str, how: str, has_source: bool
) -> None:
    healing = Healing(scratch, place)

    async def read(start: int) -> bytes:
        """From `start` to the end: all of it, or what was given out before an error. No byte of it is wrong."""
        given = bytearray()
        parts = HOW[how](healing, start, SIZE)
        try:
            async with contextlib.aclosing(parts):
                if moment == "between-two-pieces":
                    given += _bytes_of(await anext(parts))
                    DAMAGE[damage](healing)
                async for part in parts:
                    given += _bytes_of(part)
        except (CorruptBlock, MissingBlob):
            assert not has_source
            assert DATA[start:].startswith(given)
        else:
            assert given == DATA[start:]
        return bytes(given)

    async def story() -> None:
        nonlocal moment
        if not has_source:
            healing.store.fill_from(None)
        if moment == "after-it":
            assert await drain(healing.store.open_blob(healing.blob_id, SIZE).read(0, SIZE)) == DATA
            await read(0)
        if moment != "between-two-pieces":
            DAMAGE[damage](healing)
        await read(BLOCK)
        moment = "after-it"
        whole = await read(0)
        await healing.settled()
        statistics = healing.store.statistics()
        assert statistics.verify_failures >= 1
        if has_source:
            assert whole == DATA
            assert statistics.healed >= 1
            assert statistics.corrupt_unhealed == 0
            await healing.store.verify_blob(healing.blob_id, SIZE)
            for number in range(3):
                file = healing.file(healing.blob_id, number)
                assert file.read_bytes() == healing.pristine[file]
                assert file.stat().st_mode & 0o777 == 0o400
            assert os.listdir(scratch / "incoming") == []
        else:
            assert len(whole) < SIZE
            assert statistics.corrupt_unhealed >= 1
            assert statistics.healed == 0
            # What is durable is left for the operator; the cache can only gain by dropping it.
            left = [healing.file(healing.blob_id, number).exists() for number in range(2)]
            assert all(left) == (place == "home")
        assert statistics.evicted_corrupt >= 1 if place == "cache" else statistics.evicted_corrupt == 0

    healing.run(story)


@pytest.mark.parametrize("place", ["home", "cache"])
def test_damaged_padding_is_damage(scratch: Path, place: str) -> None:
    healing = Healing(scratch, place)

    async def story() -> None:
        file = healing.file(healing.blob_id, 2)
        _rewrite(file, lambda data: data.__setitem__(padded(TAIL) - 1, 1))
        assert await drain(healing.store.open_blob(healing.blob_id, SIZE).read(0, SIZE)) == DATA
        await healing.settled()
        assert file.read_bytes() == healing.pristine[file]
        assert healing.store.statistics().healed == 1

    healing.run(story)


class Decaying(NoSync):
    """A disk on which the blocks of one tree decay under their verified files: every read of one gives a wrong bit."""

    def __init__(self, tree: str) -> None:
        self.tree = f"/{tree}/"
        self.decayed: set[int] = set()
        self.active = True

    def open(self, path: str, flags: int, mode: int = 0o400) -> int:
        fd = super().open(path, flags, mode)
        (self.decayed.add if self.tree in path and flags & 3 == os.O_RDONLY else self.decayed.discard)(fd)
        return fd

    def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int, flags: int) -> int:
        got = super().preadv(fd, buffers, offset, flags & ~os.RWF_NOWAIT)
        if self.active and got and fd in self.decayed:
            buffers[0][got // 2] ^= 4
        return got


@pytest.mark.parametrize("verify", ["once", "always"])
@pytest.mark.parametrize("how", [*HOW, "read_cached"])
def test_gate_if_every_hit_of_the_cache_were_corrupt_every_answer_would_still_be_right(
    scratch: Path, how: str, verify: str
) -> None:
    healing = Healing(scratch, "cache", fs=Decaying("cache"), verify=verify)

    async def story() -> None:
        for _ in range(3):
            if how == "read_cached":
                assert healing.store.open_blob(healing.blob_id, SIZE).read_cached(5, 10) in (None, DATA[5:10])
                found = await drain(HOW["read"](healing, 0, SIZE))
            else:
                found = b"".join([_bytes_of(part) async for part in HOW[how](healing, 0, SIZE)])
            assert found == DATA
            await healing.settled()
        statistics = healing.store.statistics()
        assert statistics.hits == 0
        assert statistics.healed == statistics.evicted_corrupt == 9

    healing.run(story)


@pytest.mark.parametrize("how", [*HOW, "read_cached"])
def test_verifying_always_finds_decay_that_leaves_the_file_as_it_was(scratch: Path, how: str) -> None:
    """Nothing about the file changes: inode, size and times are what they were when it was verified."""
    disk = Decaying("home")
    disk.active = False
    healing = Healing(scratch, "home", fs=disk, verify="always")

    async def story() -> None:
        reader = healing.store.open_blob(healing.blob_id, SIZE)
        assert await drain(reader.read(0, SIZE)) == DATA
        parts = [part async for part in reader.segments(0, SIZE)]
        assert not any(isinstance(part, Segment) for part in parts)
        before = healing.store.statistics().verified_bytes
        assert reader.read_cached(5, 10) == DATA[5:10]
        assert healing.store.statistics().verified_bytes == before + CHUNK
        healing.store.fill_from(None)
        disk.active = True
        if how == "read_cached":
            assert reader.read_cached(5, 10) is None
        else:
            with pytest.raises(CorruptBlock):
                await anext(HOW[how](healing, 0, SIZE))

    healing.run(story)


@pytest.mark.parametrize("place", ["home", "cache"])
def test_a_sector_that_cannot_be_read_is_damage_like_any_other(scratch: Path, place: str) -> None:
    healing = Healing(scratch, place, fs=(disk := Bad(place)))

    async def story() -> None:
        disk.bad = healing.file(healing.blob_id, 1).stat().st_ino
        healing.store.fill_from(None)
        with pytest.raises(DiskFailed, match=f"block 1 of blob {healing.blob_id.hex()}"):
            await drain(HOW["read"](healing, BLOCK, BLOCK + 1))
        assert healing.store.statistics().corrupt_unhealed == 1
        if place == "home":
            healing.store.fill_from(healing.source)
            assert await drain(HOW["read"](healing, 0, SIZE)) == DATA
            await healing.settled()
            assert healing.store.statistics().healed == 1
            assert healing.file(healing.blob_id, 1).stat().st_ino != disk.bad
        else:
            assert healing.store.statistics().evicted_corrupt == 1

    healing.run(story)


@pytest.mark.parametrize("has_source", [True, False], ids=["source", "alone"])
@pytest.mark.parametrize("place", ["home", "cache"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), EOFError("the file ends early")])
def test_a_segment_that_could_not_be_sent_to_its_end_is_damage_like_any_other(
    scratch: Path, place: str, has_source: bool, error: Exception
) -> None:
    """It was verified, so only who sends it meets the error."""
    healing = Healing(scratch, place)

    async def story() -> None:
        if not has_source:
            healing.store.fill_from(None)
        assert await drain(HOW["read"](healing, 0, SIZE)) == DATA
        given = bytearray()
        parts = HOW["segments"](healing, 0, SIZE)
        try:
            async with contextlib.aclosing(parts):
                async for part in parts:
                    data = _bytes_of(part)
                    if isinstance(part, Segment) and len(given) == BLOCK:
                        part.stopped_at(100, error)
                        data = data[:100]
                    given += data
        except (DiskFailed, CorruptBlock):
            assert not has_source
        await healing.settled()
        statistics = healing.store.statistics()
        if has_source:
            assert given == DATA
            assert statistics.healed == 1
            assert statistics.corrupt_unhealed == 0
        else:
            assert given == DATA[: BLOCK + 100]
            assert statistics.corrupt_unhealed == 1
        assert statistics.evicted_corrupt == (place == "cache")

    healing.run(story)


@pytest.mark.parametrize("has_source", [True, False], ids=["source", "alone"])
@pytest.mark.parametrize("damaged", [True, False])
@pytest.mark.parametrize("place", ["home", "cache"])
def test_a_file_that_is_changed_while_a_segment_of_it_is_sent_is_verified_again_from_there(
    scratch: Path, place: str, damaged: bool, has_source: bool
) -> None:
    healing = Healing(scratch, place)

    async def story() -> None:
        if not has_source:
            healing.store.fill_from(None)
        await drain(HOW["read"](healing, 0, SIZE))
        given = bytearray()
        looks = []
        parts = HOW["segments"](healing, BLOCK, SIZE)
        try:
            async with contextlib.aclosing(parts):
                async for part in parts:
                    data = _bytes_of(part)
                    if not given:
                        assert part.unchanged()
                        _rewrite(
                            healing.file(healing.blob_id, 1),
                            lambda content: content.__setitem__(200, content[200] ^ damaged),
                        )
                        looks.append(part.unchanged())
                        part.stopped_at(100, None)
                        data = data[:100]
                    given += data
        except CorruptBlock:
            assert damaged
            assert not has_source
            assert given == DATA[BLOCK : BLOCK + 100]
        else:
            assert given == DATA[BLOCK:]
        await healing.settled()
        assert looks == [False]
        assert healing.store.statistics().verify_failures == damaged

    healing.run(story)


def test_who_a_file_is_cannot_be_said_of_one_that_cannot_be_looked_at(scratch: Path) -> None:
    fs = HookedFileSystem(lambda name, args: None)
    healing = Healing(scratch, "home", fs=fs)

    async def story() -> None:
        async with contextlib.aclosing(HOW["segments"](healing, 0, SIZE)) as parts:
            part = await anext(parts)
            assert part.unchanged()
            fs.hook = _no_fstat
            assert not part.unchanged()
            fs.hook = lambda name, args: None

    healing.run(story)


def _no_fstat(name: str, args: tuple[object, ...]) -> None:
    if name == "fstat":
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_block_that_is_nowhere_is_counted(scratch: Path) -> None:
    healing = Healing(scratch, "home")

    async def story() -> None:
        healing.file(healing.blob_id, 1).unlink()
        healing.store.fill_from(None)
        with pytest.raises(MissingBlob):
            await drain(HOW["read"](healing, 0, SIZE))
        assert healing.store.statistics().missing_unhealed == 1
        assert healing.store.statistics().corrupt_unhealed == 0

    healing.run(story)


class Bad(NoSync):
    """A disk on which the file with one inode number cannot be read."""

    def __init__(self, tree: str) -> None:
        self.bad = 0

    def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int, flags: int) -> int:
        if os.fstat(fd).st_ino == self.bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().preadv(fd, buffers, offset, flags)


def test_a_directory_that_cannot_be_searched_is_passed_by_and_nobody_turns_in_circles(scratch: Path) -> None:
    """Opening fails in `home/`, so that the block that is fetched into the cache cannot be found either."""
    broken: list[bool] = []

    def fail(name: str, args: tuple[object, ...]) -> None:
        if broken and name == "open" and "/home/" in str(args[0]):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    healing = Healing(scratch, "home", fs=HookedFileSystem(fail))

    async def story() -> None:
        broken.append(True)
        for _ in range(2):  # the second time the block is in the cache, and still cannot be reached
            assert await drain(HOW["read"](healing, 3, 10)) == DATA[3:10]
            await healing.settled()
        assert healing.store.statistics().passed_through == 1
        healing.store.fill_from(None)
        with pytest.raises(DiskFailed):
            await drain(HOW["read"](healing, 3, 10))

    healing.run(story)


def test_a_damaged_block_that_the_disk_does_not_let_go_of_is_passed_by(scratch: Path) -> None:
    stuck: list[bool] = []

    def fail(name: str, args: tuple[object, ...]) -> None:
        if stuck and name == "unlink" and "/cache/" in str(args[0]):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    healing = Healing(scratch, "cache", fs=HookedFileSystem(fail))

    async def story() -> None:
        _flip(-5)(healing)
        stuck.append(True)
        for how in HOW.values():
            parts = how(healing, BLOCK + 3, 2 * BLOCK + 3)
            assert b"".join([_bytes_of(part) async for part in parts]) == DATA[BLOCK + 3 : 2 * BLOCK + 3]
        assert healing.store.statistics().passed_through == 2
        stuck.clear()
        assert await drain(HOW["read"](healing, 0, SIZE)) == DATA
        await healing.settled()
        assert await drain(HOW["read"](healing, 0, SIZE)) == DATA
        await healing.store.verify_blob(healing.blob_id, SIZE)

    healing.run(story)


def test_a_committed_upload_that_is_damaged_before_it_is_published_is_healed(scratch: Path) -> None:
    healing = Healing(scratch, "incoming")

    async def story() -> None:
        _rewrite(healing.file(healing.blob_id, 1), lambda data: data.__setitem__(7, data[7] ^ 1))
        assert await drain(HOW["read"](healing, 0, SIZE)) == DATA
        await healing.settled()
        healing.source.asked.clear()
        assert await drain(HOW["read"](healing, 0, SIZE)) == DATA
        for blob_id in (healing.blob_id, healing.other_id):
            await healing.store.publish(blob_id)
        assert await drain(HOW["read"](healing, 0, SIZE)) == DATA
        await healing.store.verify_blob(healing.blob_id, SIZE)
        assert healing.source.asked == []

    healing.run(story)


def test_an_upload_that_is_published_while_a_block_of_it_is_healed_is_healed_by_the_next_read(scratch: Path) -> None:
    healing = Healing(scratch, "incoming")

    async def story() -> None:
        questions = 0

        async def publish(blob_id: bytes) -> None:
            nonlocal questions
            questions += 1
            if questions == 2:
                await healing.store.publish(blob_id)

        _rewrite(healing.file(healing.blob_id, 1), lambda data: data.__setitem__(7, data[7] ^ 1))
        healing.source.answer = publish
        for healed in (0, 1):
            assert await drain(HOW["read"](healing, BLOCK, 2 * BLOCK)) == DATA[BLOCK : 2 * BLOCK]
            await healing.settled()
            assert healing.store.statistics().healed == healed
        await healing.store.verify_blob(healing.blob_id, SIZE)
        assert not (scratch / "incoming" / healing.blob_id.hex()).exists()
        healing.store.release(healing.other_id)

    healing.run(story)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_whichever_call_of_a_healing_fails_the_reader_is_served_and_the_block_healed_by_the_next(
    scratch: Path, code: int
) -> None:
    fail = FailNth(code)
    writing = threading.local()

    def hook(name: str, args: tuple[object, ...]) -> None:
        # Only what the healing does: on the threads of fills and of the index.
        if threading.current_thread().name.startswith(("block-fill", "block-index")):
            fail(name, args)

    healing = Healing(scratch, "home", fs=HookedFileSystem(hook))

    async def story() -> None:
        assert writing is not None
        file = healing.file(healing.blob_id, 2)
        for nth in range(1, 100):
            _rewrite(file, lambda data: data.__setitem__(7, data[7] ^ 1))
            damaged = file.read_bytes()
            fail.arm(nth)
            assert await drain(HOW["read"](healing, 2 * BLOCK, SIZE)) == DATA[2 * BLOCK :]
            await healing.settled()
            fail.disarm()
            assert file.read_bytes() in (damaged, healing.pristine[file])
            assert os.listdir(scratch / "filling") == [], fail.failed
            assert await drain(HOW["read"](healing, 2 * BLOCK, SIZE)) == DATA[2 * BLOCK :]
            await healing.settled()
            assert file.read_bytes() == healing.pristine[file]
            if not fail.failed:
                assert nth > 5
                return
        raise AssertionError("a hundred calls to heal a block")

    healing.run(story)


def test_a_blob_that_is_deleted_while_a_block_of_it_is_healed_does_not_come_back(scratch: Path) -> None:
    """The deletion comes when the source was last asked whether the blob lives: only the disk can tell."""
    healing = Healing(scratch, "home")

    async def story() -> None:
        questions = 0

        async def delete(blob_id: bytes) -> None:
            nonlocal questions
            questions += 1
            if questions == 2:
                await healing.store.delete_blob(blob_id, SIZE)

        _flip(-5)(healing)
        healing.source.answer = delete
        assert await drain(HOW["read"](healing, BLOCK, 2 * BLOCK)) == DATA[BLOCK : 2 * BLOCK]
        await healing.settled()
        assert not any(healing.file(healing.blob_id, number).exists() for number in range(3))
        statistics = healing.store.statistics()
        assert (statistics.healed, statistics.fills_dropped) == (0, 1)

    healing.run(story)


def _begin_mending(healing: Healing, file: Path) -> Mending:
    who = identity(os.stat(file))
    return Mending.begin(healing.store._local, healing.blob_id, 1, "home", who, lambda: None)


def test_what_is_mended_leaves_the_disk_its_reserve(scratch: Path) -> None:
    disk = SmallDisk(100 * BLOCK, 100 * BLOCK)
    healing = Healing(scratch, "home", fs=disk, reserve_bytes=10 * BLOCK)

    async def story() -> None:
        _flip(-5)(healing)
        file = healing.file(healing.blob_id, 1)
        damaged = file.read_bytes()
        disk.available_bytes = 11 * BLOCK
        assert await drain(HOW["read"](healing, BLOCK, 2 * BLOCK)) == DATA[BLOCK : 2 * BLOCK]
        await healing.settled()
        with pytest.raises(DiskFull, match="reserve"):
            await healing.store.mend(healing.blob_id, SIZE, 1)
        assert file.read_bytes() == damaged
        assert os.listdir(scratch / "filling") == []
        disk.available_bytes += FOOTER_BYTES
        assert await healing.store.mend(healing.blob_id, SIZE, 1)
        assert file.read_bytes() == healing.pristine[file]

    healing.run(story)


@pytest.mark.parametrize("moment", ["commit", "abandon"])
def test_what_is_mended_leaves_another_fillers_place_alone(scratch: Path, moment: str) -> None:
    """The deletion removes the draft, and a reader of the dead blob takes its name."""
    healing = Healing(scratch, "home")

    async def story() -> None:
        file = healing.file(healing.blob_id, 1)
        mending = _begin_mending(healing, file)
        await healing.store.delete_blob(healing.blob_id, SIZE)
        filling = healing.store._cache.begin(healing.blob_id, 1, BLOCK)
        if moment == "commit":
            with pytest.raises(BlobGone):
                mending.commit(memoryview(healing.pristine[file]))
        else:
            mending.abandon()
        assert not file.exists()
        assert len(os.listdir(scratch / "filling")) == 1
        filling.abandon()

    healing.run(story)


def test_a_mending_that_fails_in_any_way_lets_go_of_its_place(scratch: Path) -> None:
    healing = Healing(scratch, "home")

    async def story() -> None:
        file = healing.file(healing.blob_id, 1)
        mending = _begin_mending(healing, file)
        with pytest.raises(TypeError):
            mending.commit(None)  # type: ignore[arg-type]
        assert os.listdir(scratch / "filling") == []

    healing.run(story)


def test_two_processes_that_find_the_same_damage_fetch_the_block_once(scratch: Path) -> None:
    healing = Healing(scratch, "home")
    other = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync(), fill_timeout_s=60.0)

    async def story() -> None:
        other.fill_from(healing.source)
        other._fills._wait_s = other._fills.claim_s = 60.0
        _flip(-5)(healing)
        gate = asyncio.Event()
        healing.source.script = lambda blob_id, start: gate.wait()
        readers = [
            asyncio.create_task(drain(store.open_blob(healing.blob_id, SIZE).read(BLOCK, 2 * BLOCK)))
            for store in (healing.store, other)
        ]
        both = healing.store.statistics, other.statistics
        while not all(statistics().verify_failures for statistics in both):  # noqa: ASYNC110  # nothing tells
            await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*readers) == [DATA[BLOCK : 2 * BLOCK]] * 2
        await healing.settled()
        assert sum(statistics().healed for statistics in both) == 1
        assert sum(stop - start for _, start, stop in healing.source.asked) == BLOCK
        await other.aclose()

    healing.run(story)


def test_a_damaged_block_of_the_cache_that_another_has_replaced_meanwhile_is_not_dropped(scratch: Path) -> None:
    healing = Healing(scratch, "cache")

    async def story() -> None:
        file = healing.file(healing.blob_id, 1)
        _flip(-5)(healing)
        real = healing.store._recovery._drop_damaged

        def replaced_first(*args: Any) -> None:
            copy = file.with_name("copy")
            copy.write_bytes(healing.pristine[file])
            copy.rename(file)
            real(*args)

        healing.store._recovery._drop_damaged = replaced_first  # type: ignore[method-assign]
        assert await drain(HOW["read"](healing, 0, SIZE)) == DATA
        assert healing.source.asked == []
        assert healing.store.statistics().evicted_corrupt == 0

    healing.run(story)


@pytest.mark.parametrize("place", ["home", "cache"])
def test_mending_on_request_replaces_the_block_and_says_whether_it_did(scratch: Path, place: str) -> None:
    healing = Healing(scratch, place)

    async def story() -> None:
        file = healing.file(healing.blob_id, 1)
        _flip(-5)(healing)
        assert await healing.store.mend(healing.blob_id, SIZE, 1)
        assert file.read_bytes() == healing.pristine[file]
        _truncate(100)(healing)
        assert await healing.store.mend(healing.blob_id, SIZE, 1)
        assert file.read_bytes() == healing.pristine[file]
        assert healing.store.statistics().healed == 2
        healing.source.script = _away
        _flip(-5)(healing)
        with pytest.raises(SourceUnavailable):
            await healing.store.mend(healing.blob_id, SIZE, 1)
        if place == "home":
            healing.source.script = lambda blob_id, start: None
            del healing.source.blobs[healing.blob_id]
            assert not await healing.store.mend(healing.blob_id, SIZE, 1)
            healing.store.fill_from(None)
            assert not await healing.store.mend(healing.blob_id, SIZE, 1)
            assert healing.store.statistics().corrupt_unhealed == 2
            assert file.exists()
        assert not await healing.store.mend(bytes(16), SIZE, 1)
        other = healing.file(healing.other_id, 1)
        who = identity(other.stat())
        assert not await healing.store.drop(healing.other_id, 1, (who[0], who[1], who[2] + 1, who[3]))
        assert await healing.store.drop(healing.other_id, 1, who) == (place == "cache")
        assert not await healing.store.drop(healing.other_id, 1, who)
        healing.source.script = lambda blob_id, start: None
        assert not await healing.store.restore(healing.other_id, len(OTHER), 1), "it is not pinned"
        await healing.store.pin(healing.other_id)
        assert await healing.store.restore(healing.other_id, len(OTHER), 1) == (place == "cache")
        assert other.read_bytes() == healing.pristine[other]

    healing.run(story)


def _away(blob_id: bytes, start: int) -> None:
    raise SourceUnavailable("not now")


def test_a_block_that_cannot_be_mended_is_verified_again_by_who_reads_it(scratch: Path) -> None:
    """The scrubber finds decay in a file that is as it was, and for which all was known to be well."""
    disk = Decaying("home")
    disk.active = False
    healing = Healing(scratch, "home", fs=disk)

    async def story() -> None:
        assert await drain(HOW["read"](healing, 0, SIZE)) == DATA
        healing.store.fill_from(None)
        disk.active = True
        assert not await healing.store.mend(healing.blob_id, SIZE, 0)
        with pytest.raises(CorruptBlock):
            await drain(HOW["read"](healing, 0, SIZE))

    healing.run(story)


def test_a_damaged_block_whose_source_is_away_is_no_reason_to_page_anybody_yet(scratch: Path) -> None:
    healing = Healing(scratch, "home")

    async def story() -> None:
        _flip(-5)(healing)
        healing.source.script = _away
        with pytest.raises(SourceUnavailable):
            await drain(HOW["read"](healing, 0, SIZE))
        assert healing.store.statistics().corrupt_unhealed == 0
        healing.source.script = lambda blob_id, start: None
        assert await drain(HOW["read"](healing, 0, SIZE)) == DATA

    healing.run(story)


def test_the_error_of_a_block_that_nobody_can_heal_says_what_is_damaged_and_nothing_secret(scratch: Path) -> None:
    healing = Healing(scratch, "home")

    async def story() -> None:
        _flip(-5)(healing)
        del healing.source.blobs[healing.blob_id]
        with pytest.raises(CorruptBlock) as caught:
            await drain(HOW["read"](healing, 0, SIZE))
        assert f"block 1 of blob {healing.blob_id.hex()}" in str(caught.value)
        assert str(scratch) not in str(caught.value)
        assert isinstance(caught.value.__cause__, NotAtSource)
        assert caught.value.code == "InternalError"

    healing.run(story)


@pytest.mark.parametrize("how", HOW)
def test_a_block_that_comes_home_while_it_is_looked_for_elsewhere_is_read(scratch: Path, how: str) -> None:
    healing = Healing(scratch, "home")

    async def story() -> None:
        path = healing.file(healing.blob_id, 1)
        aside = path.with_suffix(".aside")
        path.rename(aside)

        def script(blob_id: bytes, start: int) -> None:
            if aside.exists():
                aside.rename(path)
                raise NotAtSource("only this node has it, as of now")

        healing.source.script = script
        assert b"".join([_bytes_of(part) async for part in HOW[how](healing, 0, SIZE)]) == DATA
        assert healing.store.statistics().missing_unhealed == 0
        path.rename(aside)
        assert await healing.store.warm(healing.blob_id, SIZE) == 0
        # What is not here after all is missing.
        path.unlink()
        del healing.source.blobs[healing.blob_id]
        with pytest.raises(MissingBlob):
            [_bytes_of(part) async for part in HOW[how](healing, 0, SIZE)]
        with pytest.raises(NotAtSource):
            await healing.store.warm(healing.blob_id, SIZE)

    healing.run(story)


def test_a_file_that_is_touched_behind_every_look_at_it_is_verified_at_every_read(scratch: Path) -> None:
    touched: list[Path] = []

    def touch(name: str, args: tuple[object, ...]) -> None:
        if touched and name == "fstat":
            times = touched[0].stat()
            os.utime(touched[0], ns=(times.st_atime_ns, times.st_mtime_ns + 1_000_000))

    healing = Healing(scratch, "home", fs=HookedFileSystem(touch))

    async def story() -> None:
        touched.append(healing.file(healing.blob_id, 0))
        for turn in range(1, 4):
            assert await drain(HOW["read"](healing, 0, BLOCK)) == DATA[:BLOCK]
            assert healing.store.statistics().verified_bytes >= turn * BLOCK
        touched.clear()

    healing.run(story)
