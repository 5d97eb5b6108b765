"""The scrubber: it finds what decays, at its rate, goes on where it stopped, and is alone."""

import asyncio
import errno
import fcntl
import itertools
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import cast

import pytest

from tests.bytecache.blobs import BLOCK, put
from tests.bytecache.faults import FailNth, HookedFileSystem, NoDirectAtOpen, NoSync
from tigrislike.bytecache import BlockStore, BytesError, DiskFailed, DiskFull
from tigrislike.bytecache.errors import SourceUnavailable, TooManyOpenFiles
from tigrislike.bytecache.filesystem import FileSystem
from tigrislike.bytecache.footer import CHUNK, FOOTER_BYTES
from tigrislike.bytecache.layout import Layout, open_layout
from tigrislike.bytecache.reading import Local
from tigrislike.bytecache.scrub import (
    LOCK_FILE,
    MAX_NAMED,
    STATE_FILE,
    Remedies,
    Scrubber,
    ScrubRunning,
    ScrubState,
    read_state,
)
from tigrislike.bytecache.statistics import Counters
from tigrislike.bytecache.truth import verify_block
from tigrislike.bytecache.verified import Identity, Verified, identity

SIZE = 2 * BLOCK + 777  # three blocks
FILE_BYTES = 2 * (BLOCK + FOOTER_BYTES) + 4096 + FOOTER_BYTES


class World:
    """A store, a clock that sleeping moves, and remedies that are recorded."""

    def __init__(self, root: Path, fs: FileSystem | None = None, *, rate: int = 1 << 40) -> None:
        self.fs = fs or NoSync()
        self.root = root
        self.layout: Layout = open_layout(self.fs, root, BLOCK)
        self.counters = Counters()
        self.now_s = 1_000_000.0
        self.slept: list[float] = []
        self.mended: list[tuple[bytes, int, int]] = []
        self.dropped: list[tuple[bytes, int]] = []
        self.restored: list[tuple[bytes, int, int]] = []
        self.restores: Callable[[], bool] = lambda: True
        self.before_drop: Callable[[], None] = lambda: None
        self.mends: Callable[[], bool] = lambda: False
        self.sizes: dict[bytes, int] = {}
        self.rate = rate
        self.on_sleep: Callable[[], Awaitable[None]] | None = None

    def scrubber(self) -> Scrubber:
        return Scrubber(
            self.fs,
            self.layout,
            self.counters,
            Remedies(self._size_of, self._mend, self._drop, self._restore),
            self.rate,
            now_ns=lambda: int(self.now_s * 1e9),
            clock_s=lambda: self.now_s,
            sleep=self._sleep,
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        if self.on_sleep is not None:
            await self.on_sleep()

    async def _size_of(self, blob_id: bytes) -> int | None:
        return self.sizes.get(blob_id)

    async def _mend(self, blob_id: bytes, size: int, number: int) -> bool:
        self.mended.append((blob_id, size, number))
        return self.mends()

    async def _drop(self, blob_id: bytes, number: int, who: Identity) -> bool:
        self.before_drop()
        path = self.path(blob_id, number, "cache")
        if identity(path.stat()) != who:
            return False
        self.dropped.append((blob_id, number))
        path.unlink()
        return True

    async def _restore(self, blob_id: bytes, size: int, number: int) -> bool:
        self.restored.append((blob_id, size, number))
        return self.restores()

    def path(self, blob_id: bytes, number: int, tree: str = "home") -> Path:
        name = blob_id.hex()
        return self.root / tree / name[:2] / f"{name}.{number}"

    async def fill(self, *contents: bytes) -> list[bytes]:
        """Blobs in home/."""
        store = BlockStore.open(self.root, block_size=BLOCK, fs=NoSync())
        try:
            ids = [await put(store, data) for data in contents]
        finally:
            store.close()
        self.sizes.update(zip(ids, map(len, contents), strict=True))
        return ids

    def into_cache(self, blob_id: bytes, number: int) -> None:
        """Move a block as if it had been fetched."""
        target = self.path(blob_id, number, "cache")
        target.parent.mkdir(parents=True, exist_ok=True)
        self.path(blob_id, number).rename(target)


def edit(path: Path, offset: int, value: bytes | None = None) -> None:
    """Change bytes of a file and leave its times as they are: silent decay. Without a value: flip a bit."""
    status = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(1)
        file.seek(offset)
        file.write(value if value is not None else bytes([old[0] ^ 1]))
        os.fsync(file.fileno())
    path.chmod(0o400)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_sound_store_is_read_whole(scratch: Path) -> None:
    async def main() -> None:
        world = World(scratch / "s")
        ids = await world.fill(os.urandom(SIZE), b"", os.urandom(CHUNK // 2))
        world.into_cache(ids[0], 1)
        seen: list[float] = []
        state = await world.scrubber().run(lambda state: seen.append(state.progress))
        files = [path for tree in ("home", "cache") for path in (world.root / tree).rglob("*.*")]
        assert state.blocks == len(files)
        assert state.bytes == sum(path.stat().st_size for path in files)
        assert (state.damaged, state.healed, state.names, state.cursor) == (0, 0, (), None)
        assert not state.under_way
        assert state.progress == 1.0
        assert seen == sorted(seen)
        assert world.counters["scrubbed_blocks"] == state.blocks
        assert world.counters["scrubbed_bytes"] == state.bytes
        assert world.counters["verify_failures"] == 0
        assert read_state(world.fs, world.layout) == state == await world.scrubber().state()

    asyncio.run(main())


@pytest.mark.parametrize("fs", [NoSync, NoDirectAtOpen], ids=["O_DIRECT", "without"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: edit(path, 0),
        lambda path: edit(path, BLOCK - 1),
        lambda path: edit(path, BLOCK),  # magic
        lambda path: edit(path, BLOCK + 20),  # blob id
        lambda path: edit(path, BLOCK + 60),  # a chunk's checksum
        lambda path: edit(path, BLOCK + 4000),  # zeros
        lambda path: edit(path, BLOCK + 4095),  # the footer's checksum
        lambda path: os.truncate(path, BLOCK),
        lambda path: os.truncate(path, BLOCK + FOOTER_BYTES - 1),
        lambda path: os.truncate(path, 0),
        lambda path: os.truncate(path, BLOCK + 2 * FOOTER_BYTES),
    ],
    ids=["data", "last", "magic", "id", "sum", "zeros", "footer", "tail", "byte", "all", "longer"],
)
def test_every_damage_is_found_and_mended(scratch: Path, damage: Callable[[Path], None], fs: type[FileSystem]) -> None:
    async def main() -> None:
        world = World(scratch / "s", fs())
        world.mends = lambda: True
        blob_id, _ = await world.fill(os.urandom(SIZE), os.urandom(SIZE))
        path = world.path(blob_id, 1)
        path.chmod(0o600)
        damage(path)
        state = await world.scrubber().run()
        assert world.mended == [(blob_id, SIZE, 1)]
        assert (state.blocks, state.healed, state.damaged, state.names) == (6, 1, 0, ())
        assert world.counters["verify_failures"] == 1
        assert world.counters["scrubbed_blocks"] == 5

    asyncio.run(main())


def test_blocks_under_each_others_names_are_damaged(scratch: Path) -> None:
    async def main() -> None:
        world = World(scratch / "s")
        (blob_id,) = await world.fill(os.urandom(SIZE))
        first, second = world.path(blob_id, 0), world.path(blob_id, 1)
        first.rename(aside := scratch / "aside")
        second.rename(first)
        aside.rename(second)
        state = await world.scrubber().run()
        assert state.damaged == 2
        assert sorted(state.names) == sorted(str(path.relative_to(world.root)) for path in (first, second))

    asyncio.run(main())


def test_what_nobody_else_has_stays_and_is_verified_anew_before_it_is_served(scratch: Path) -> None:
    async def main() -> None:
        world = World(scratch / "s")
        (blob_id,) = await world.fill(os.urandom(SIZE))
        path = world.path(blob_id, 0)
        edit(path, 5)
        before = path.stat()
        state = await world.scrubber().run()
        assert state.names == (str(path.relative_to(world.root)),)
        after = path.stat()
        assert after.st_mtime_ns != before.st_mtime_ns, "what vouched for the file vouches for it no more"
        assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)

    asyncio.run(main())


@pytest.mark.parametrize("source", ["there", "away"])
def test_a_damaged_block_of_the_cache_is_dropped(scratch: Path, source: str) -> None:
    def away() -> bool:
        raise SourceUnavailable("not now")

    async def main() -> None:
        world = World(scratch / "s")
        if source == "away":
            world.restores = away
        (blob_id,) = await world.fill(os.urandom(SIZE))
        world.into_cache(blob_id, 1)
        edit(world.path(blob_id, 1, "cache"), 9)
        state = await world.scrubber().run()
        assert world.dropped == [(blob_id, 1)]
        assert world.restored == [(blob_id, SIZE, 1)]
        assert world.mended == []
        assert (state.healed, state.damaged) == (1, 0)

    asyncio.run(main())


def test_what_has_come_in_the_place_of_a_damaged_block_is_not_dropped(scratch: Path) -> None:
    async def main() -> None:
        world = World(scratch / "s")
        (blob_id,) = await world.fill(os.urandom(SIZE))
        world.into_cache(blob_id, 1)
        path = world.path(blob_id, 1, "cache")
        fresh = scratch / "fresh"
        fresh.write_bytes(path.read_bytes())
        edit(path, 9)
        world.before_drop = lambda: fresh.rename(path) and None
        state = await world.scrubber().run()
        assert (world.dropped, world.restored) == ([], [])
        assert (state.healed, state.damaged, state.blocks) == (0, 0, 2)
        assert path.exists()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("direct", "pages", "drops"),
    [(True, 0, False), (False, errno.EAGAIN, True), (False, errno.EOPNOTSUPP, False), (False, 0, False)],
    ids=["O_DIRECT", "cold", "untold", "warm"],
)
@pytest.mark.parametrize("who", ["scrubber", "fsck"])
def test_it_leaves_the_page_cache_as_it_was(scratch: Path, who: str, direct: bool, pages: int, drops: bool) -> None:
    dropped: list[tuple[int, int]] = []

    class Recording(NoSync):
        def set_direct(self, fd: int) -> bool:
            return direct

        def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int, flags: int) -> int:
            if flags & os.RWF_NOWAIT and pages:
                raise OSError(pages, os.strerror(pages))
            return super().preadv(fd, buffers, offset, 0)

        def fadvise(self, fd: int, offset: int, length: int, advice: int) -> None:
            if advice == os.POSIX_FADV_DONTNEED:
                dropped.append((offset, length))

    async def main() -> None:
        world = World(scratch / "s", Recording())
        (blob_id,) = await world.fill(os.urandom(BLOCK))
        if who == "scrubber":
            assert (await world.scrubber().run()).blocks == 1
        else:
            verify_block(Local(world.fs, world.layout, world.counters, Verified(), True), blob_id, BLOCK, 0)

    asyncio.run(main())
    data = [(0, BLOCK)]
    assert dropped == ([] if not drops else data if who == "fsck" else [(BLOCK, FOOTER_BYTES), *data])


@pytest.mark.parametrize("tree", ["home", "cache"])
def test_a_device_that_cannot_be_read_is_told(scratch: Path, tree: str) -> None:
    class Broken(NoSync):
        def stat(self, path: str) -> os.stat_result:
            if f"/{tree}/" in path and tree == "cache":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().stat(path)

        def set_direct(self, fd: int) -> bool:
            return False

        def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int, flags: int) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def main() -> None:
        world = World(scratch / "s", Broken())
        (blob_id,) = await world.fill(b"x")
        if tree == "cache":
            world.into_cache(blob_id, 0)
        assert (await world.scrubber().run()).damaged == 1
        assert world.dropped == []

    asyncio.run(main())


def test_what_belongs_to_no_blob_any_more_is_left_alone(scratch: Path) -> None:
    async def main() -> None:
        world = World(scratch / "s")
        (blob_id,) = await world.fill(b"x")
        edit(world.path(blob_id, 0), 0)
        world.sizes.clear()
        state = await world.scrubber().run()
        assert world.mended == []
        assert (state.healed, state.damaged) == (0, 0)
        assert world.path(blob_id, 0).exists()

    asyncio.run(main())


def test_a_remedy_that_the_disk_refuses_leaves_the_block_damaged_and_the_pass_going(
    scratch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        world = World(scratch / "s")

        def full() -> bool:
            raise DiskFull("no room")

        world.mends = full
        blob_id, _ = await world.fill(os.urandom(SIZE), os.urandom(SIZE))
        edit(world.path(blob_id, 2), 0)
        state = await world.scrubber().run()
        assert (state.blocks, state.damaged) == (6, 1)

    asyncio.run(main())
    assert "no room" in caplog.text


def test_a_block_that_the_disk_cannot_read_is_damaged(scratch: Path) -> None:
    async def main() -> None:
        bad = ""

        def hook(name: str, args: tuple[object, ...]) -> None:
            if name == "open" and str(args[0]) == bad:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        world = World(scratch / "s", HookedFileSystem(hook))
        (blob_id,) = await world.fill(os.urandom(SIZE))
        bad = str(world.path(blob_id, 1))
        state = await world.scrubber().run()
        assert world.mended == [(blob_id, SIZE, 1)]
        assert (state.blocks, state.damaged) == (3, 1)

    asyncio.run(main())


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOMEM], ids=["alignment", "memory"])
def test_a_device_that_does_not_read_past_the_page_cache_damages_nothing(
    scratch: Path, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        def hook(name: str, args: tuple[object, ...]) -> None:
            if name == "preadv" and fcntl.fcntl(cast("int", args[0]), fcntl.F_GETFL) & os.O_DIRECT:
                raise OSError(code, os.strerror(code))

        world = World(scratch / "s", HookedFileSystem(hook))
        (blob_id,) = await world.fill(os.urandom(SIZE))
        world.into_cache(blob_id, 1)
        state = await world.scrubber().run()
        assert (state.healed, state.damaged, world.dropped, world.mended) == (0, 0, [], [])
        assert world.counters["verify_failures"] == 0
        if code == errno.EINVAL:
            assert (state.blocks, state.bytes) == (3, FILE_BYTES)
            verify_block(Local(world.fs, world.layout, world.counters, Verified(), True), blob_id, SIZE, 1)
        else:
            assert state.blocks == 0
            assert "passed over" in caplog.text

    asyncio.run(main())


def test_a_block_deleted_before_its_turn_is_nothing(scratch: Path) -> None:
    async def main() -> None:
        world = World(scratch / "s")
        (blob_id,) = await world.fill(os.urandom(SIZE))
        world.mends = lambda: True

        def delete(state: ScrubState) -> None:
            if state.blocks == 1:
                world.path(blob_id, 1).unlink(missing_ok=True)

        state = await world.scrubber().run(delete)
        assert (state.blocks, state.healed, state.damaged) == (2, 0, 0)
        assert world.counters["verify_failures"] == 0

    asyncio.run(main())


def test_a_damaged_block_deleted_meanwhile_is_not_touched(scratch: Path) -> None:
    async def main() -> None:
        world = World(scratch / "s")
        (blob_id,) = await world.fill(b"x")
        path = world.path(blob_id, 0)
        edit(path, 0)

        def delete() -> bool:
            path.unlink()
            return False

        world.mends = delete
        assert (await world.scrubber().run()).damaged == 1
        assert not path.exists()

    asyncio.run(main())


def test_only_the_first_damaged_blocks_are_named(scratch: Path) -> None:
    async def main() -> None:
        world = World(scratch / "s")
        ids = await world.fill(*[b"x"] * (MAX_NAMED + 3))
        for blob_id in ids:
            edit(world.path(blob_id, 0), 0)
        state = await world.scrubber().run()
        assert state.damaged == MAX_NAMED + 3
        assert len(state.names) == MAX_NAMED

    asyncio.run(main())


# -- Pace ------------------------------------------------------------------------------------------------------------


def test_it_reads_no_faster_than_its_rate(scratch: Path) -> None:
    async def main() -> None:
        world = World(scratch / "s", rate=FILE_BYTES)
        await world.fill(*[os.urandom(SIZE)] * 4)
        began_s = world.now_s
        state = await world.scrubber().run()
        assert state.bytes == 4 * FILE_BYTES
        assert world.now_s - began_s == pytest.approx(4.0)

    asyncio.run(main())


def test_time_lost_is_made_up_for_a_second_at_most(scratch: Path) -> None:
    async def main() -> None:
        world = World(scratch / "s", rate=BLOCK + FOOTER_BYTES)  # a block a second
        await world.fill(*[os.urandom(BLOCK)] * 10)

        def stall(state: ScrubState) -> None:
            if state.blocks == 5:
                world.now_s += 100.0

        await world.scrubber().run(stall)
        assert sum(world.slept) == pytest.approx(4 + 5), "the fifth block and 100 s: one second is made up for"
        assert len(world.slept) == 9

    asyncio.run(main())


# -- Where it is -----------------------------------------------------------------------------------------------------


def test_a_pass_goes_on_where_it_was_left(scratch: Path) -> None:
    async def main() -> None:
        world = World(scratch / "s")
        ids = await world.fill(*[os.urandom(SIZE)] * 5)
        world.into_cache(ids[0], 0)
        world.into_cache(ids[0], 2)
        began_ns = int(world.now_s * 1e9)
        order: list[object] = []

        def leave(state: ScrubState) -> None:
            order.append(state.cursor)
            world.now_s += 1
            if len(order) in (3, 4, 8):
                raise asyncio.CancelledError

        for _ in range(3):
            with pytest.raises(asyncio.CancelledError):
                await world.scrubber().run(leave)
            state = await world.scrubber().state()
            assert state.under_way
            assert state.cursor == order[-1]
        state = await world.scrubber().run(leave)
        assert state.started_ns == began_ns
        assert state.blocks == 15
        assert len(set(order)) == 15, "every block has had its turn"

    asyncio.run(main())


def test_a_killed_scrubber_is_gone_on_for(scratch: Path) -> None:
    """Whatever was saved last is where the next one begins; nothing is left out."""

    async def main() -> None:
        world = World(scratch / "s", rate=BLOCK // 10)  # some ten seconds a block: each is saved
        await world.fill(*[os.urandom(SIZE)] * 2)
        saved: list[bytes] = []

        async def remember() -> None:
            saved.append((world.root / STATE_FILE).read_bytes() if (world.root / STATE_FILE).exists() else b"")

        world.on_sleep = remember
        whole = await world.scrubber().run()
        assert whole.blocks == 6
        world.on_sleep = None
        assert len(set(saved)) > 3
        for text in saved:
            (world.root / STATE_FILE).write_bytes(text)
            state = await world.scrubber().run()
            assert state.blocks == 6
            assert not state.under_way

    asyncio.run(main())


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"cursor": 3}', b"\xff", b'{"unknown": 1}', b'{"cursor": [0, "x", "", 0]}']
)
def test_a_damaged_state_costs_a_new_pass(scratch: Path, text: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        world = World(scratch / "s")
        await world.fill(b"x")
        (world.root / STATE_FILE).write_bytes(text)
        assert (await world.scrubber().state()) == ScrubState()
        assert (await world.scrubber().run()).blocks == 1

    asyncio.run(main())
    assert "begins anew" in caplog.text


def test_a_pass_is_made_when_its_time_has_come(scratch: Path) -> None:
    async def main() -> None:
        world = World(scratch / "s")
        await world.fill(b"x")
        scrubber = world.scrubber()
        assert await scrubber.run_if_due(100.0) is not None, "a store never scrubbed"
        began_s = world.now_s
        world.now_s = began_s + 99
        assert await scrubber.run_if_due(100.0) is None
        world.now_s = began_s + 100
        assert await scrubber.run_if_due(100.0) is not None
        world.now_s = began_s - 1
        assert await scrubber.run_if_due(100.0) is not None, "the clock was wrong once"
        with pytest.raises(asyncio.CancelledError):
            await scrubber.run(_cancel)
        done = await scrubber.run_if_due(1e9)
        assert done is not None, "one that was left is completed at once"
        assert not done.under_way

    asyncio.run(main())


def _cancel(_: ScrubState) -> None:
    raise asyncio.CancelledError


def test_two_do_not_scrub_at_a_time(scratch: Path) -> None:
    async def main() -> None:
        world = World(scratch / "s")
        await world.fill(b"x")
        program = (
            "import fcntl, os, sys; fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); "
            "fcntl.flock(fd, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", program, str(world.root / LOCK_FILE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            with pytest.raises(ScrubRunning, match="already"):
                await world.scrubber().run()
            other.kill()
        assert (await world.scrubber().run()).blocks == 1, "the lock went with its holder"

    asyncio.run(main())


# -- A disk that refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "mends"), [(errno.EIO, False), (errno.EMFILE, True)], ids=["EIO", "EMFILE"])
@pytest.mark.parametrize("listing", [False, True], ids=["files", "directories"])
def test_a_failure_of_the_nth_system_call_loses_no_pass(scratch: Path, code: int, mends: bool, listing: bool) -> None:
    """Whatever fails, the scrubber ends in an error of ours or goes on; and the pass is completed after it."""

    async def main() -> None:
        fail = FailNth(code)

        def hook(name: str, args: tuple[object, ...]) -> None:
            if (name == "listdir") == listing:
                fail(name, args)

        world = World(scratch / "s", HookedFileSystem(hook))
        world.mends = lambda: mends
        ids = await world.fill(os.urandom(SIZE), b"y")
        edit(world.path(ids[0], 1), 1)
        descriptors = len(os.listdir("/proc/self/fd"))
        met: set[str] = set()
        # A pass lists 512 directories, which are much alike.
        for nth in itertools.count(1, 64 if listing else 1):
            fail.arm(nth)
            try:
                state = await world.scrubber().run()
            except (DiskFailed, TooManyOpenFiles):
                assert fail.failed
                fail.disarm()
                state = await world.scrubber().run()
            failed = set(fail.failed)
            fail.disarm()
            met |= failed
            assert not state.under_way
            assert state.blocks <= 4
            assert (ids[0], SIZE, 1) in world.mended
            # Fewer where the garbage of other tests was collected meanwhile.
            assert len(os.listdir("/proc/self/fd")) <= descriptors
            world.mended.clear()
            if not failed:
                break
            (world.root / STATE_FILE).unlink(missing_ok=True)
        if listing:
            assert nth > 500
        else:
            assert met >= {"open", "close", "lock", "fstat", "preadv", "pwrite", "rename"}
            assert mends or "utime" in met

    asyncio.run(main())


def test_what_the_database_refuses_ends_the_pass_where_it_is(scratch: Path) -> None:
    class Away(Exception):
        pass

    async def main() -> None:
        world = World(scratch / "s")
        ids = sorted(await world.fill(*[b"x"] * 3))
        edit(world.path(ids[1], 0), 0)

        async def away(_: bytes) -> int | None:
            raise Away

        scrubber = world.scrubber()
        good = scrubber._remedies
        scrubber._remedies = Remedies(away, good.mend, good.drop, good.restore)
        with pytest.raises(Away):
            await scrubber.run()
        state = await scrubber.state()
        assert state.under_way
        assert state.blocks == 1
        scrubber._remedies = good
        assert (await scrubber.run()).damaged == 1

    asyncio.run(main())


def test_an_unusable_root_is_an_error_of_ours(scratch: Path) -> None:
    async def main() -> None:
        world = World(scratch / "s")
        (world.root / STATE_FILE).mkdir()
        with pytest.raises(BytesError, match=STATE_FILE):
            await world.scrubber().state()
        (world.root / LOCK_FILE).mkdir()
        with pytest.raises(BytesError, match=LOCK_FILE):
            await world.scrubber().run()

    asyncio.run(main())
