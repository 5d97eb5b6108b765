"""The cache: what it takes in, what it lets go of, what it counts, and what it refuses."""

import errno
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.bytecache.cached import (
    BLOCK,
    FILE,
    blob,
    check,
    files_of,
    fill,
    image,
    layout_of,
    open_cache,
    opened,
    rows_of,
)
from tests.bytecache.faults import HookedFileSystem, NoDirectAtOpen, NoDirectAtWrite, NoSync, ShortWrites, SmallDisk
from tests.kv.failing_vfs import failing_vfs
from tigrislike.bytecache.cache import Cache, Reconciled, Usage
from tigrislike.bytecache.errors import (
    BlobBusy,
    BlobGone,
    BlockPresent,
    CacheFull,
    DiskFailed,
    DiskFull,
    FillInProgress,
    PinsFull,
)
from tigrislike.bytecache.filesystem import FileSystem, Space
from tigrislike.bytecache.index import Index
from tigrislike.bytecache.policies import GHOST, Key, named, names
from tigrislike.bytecache.policies.memory import Simulation
from tigrislike.bytecache.statistics import Counters

A, B, C, D = ((blob(number), 0) for number in range(4))


def sql(root: Path, statement: str, *values: object) -> None:
    """Change the index behind everybody's back."""
    connection = apsw.Connection(str(root / "index.sqlite"))
    try:
        connection.execute(statement, values)
    finally:
        connection.close()


def hours() -> Callable[[], float]:
    """A clock of which no two looks are near each other."""
    return itertools.count(0.0, 3600.0).__next__


def reboot(root: Path) -> None:
    """As if the machine had restarted since the index was last in use."""
    sql(root, "UPDATE meta SET value = 'an earlier boot' WHERE name = 'boot'")


@contextmanager
def held_index(root: Path) -> Iterator[None]:
    """As if another process were stopped in its turn at the index."""
    holder = apsw.Connection(str(root / "index.sqlite"))
    try:
        holder.execute("BEGIN IMMEDIATE")
        yield
        holder.execute("ROLLBACK")
    finally:
        holder.close()


def raising(code: int, call: str, path: Path | None = None) -> HookedFileSystem:
    """A file system on which one kind of call fails, of one path if given."""

    def hook(name: str, args: tuple[object, ...]) -> None:
        if name == call and (path is None or args[0] == str(path)):
            raise OSError(code, os.strerror(code))

    return HookedFileSystem(hook)


# Filling.


def test_a_filled_block_is_a_file_and_counted(scratch: Path) -> None:
    with opened(scratch) as cache:
        assert cache.usage() == Usage(None, 0, 0, 0, 0, 0, ready=True, policy="s3fifo")
        filling = cache.begin(*A, 5000)
        assert cache.usage() == Usage(None, 0, 12288, 0, 0, 0, ready=True, policy="s3fifo")
        [listed] = cache.blocks()
        assert (listed.state, listed.queue, listed.bytes, listed.pinned) == ("filling", "filling", 12288, False)
        check(cache, scratch)
        filling.commit(image(A, 5000))
        filling.abandon()  # does nothing any more
        assert Path(layout_of(scratch).cache_block(*A)).read_bytes() == bytes(image(A, 5000))
        assert cache.usage() == Usage(None, 12288, 0, 0, 1, 0, ready=True, policy="s3fifo")
        check(cache, scratch)


def test_an_empty_block_is_a_footer(scratch: Path) -> None:
    with opened(scratch) as cache:
        fill(cache, A, length=0)
        assert files_of(scratch) == {A: 4096}


def test_what_is_here_or_being_filled_is_refused(scratch: Path) -> None:
    with opened(scratch) as cache, opened(scratch) as other:
        filling = cache.begin(*A, BLOCK)
        for any_cache in (cache, other):
            with pytest.raises(FillInProgress):
                any_cache.begin(*A, BLOCK)
        filling.commit(image(A))
        for any_cache in (cache, other):
            with pytest.raises(BlockPresent):
                any_cache.begin(*A, BLOCK)
        check(cache, scratch)


def test_an_abandoned_fill_leaves_nothing_and_can_be_begun_again(scratch: Path) -> None:
    with opened(scratch) as cache, opened(scratch) as other:
        filling = cache.begin(*A, BLOCK)
        filling.abandon()
        filling.abandon()
        assert os.listdir(scratch / "filling") == []
        assert rows_of(scratch) == {}
        fill(other, A)
        check(cache, scratch)


@pytest.mark.parametrize("renamed", [False, True], ids=["before its rename", "after"])
def test_a_fill_that_the_index_does_not_let_go_of_goes_with_the_next_turn(scratch: Path, renamed: bool) -> None:
    with failing_vfs() as vfs, opened(scratch, capacity_bytes=3 * FILE, busy_s=0.02, vfs=vfs.name) as cache:
        for number in range(3):
            filling = cache.begin(blob(number), 0, BLOCK)
            if renamed:
                vfs.fail(0, apsw.FullError("full"), times=10**6)
                with pytest.raises(DiskFull):
                    filling.commit(image((blob(number), 0)))
                vfs.heal()
            else:
                with held_index(scratch):
                    filling.abandon()
            assert os.listdir(scratch / "filling") == []
        cache.flush()
        cache.touch(*A)
        cache.flush()
        assert rows_of(scratch) == {}, "the bytes are not spoken for any more"
        assert files_of(scratch) == {}
        fill(cache, A, B, C)
        check(cache, scratch)
        assert cache.usage().blocks == 3


def test_a_fill_that_was_refused_does_not_wait_for_the_index_again(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(scratch, capacity_bytes=FILE) as cache:
        filling = cache.begin(*A, BLOCK)
        turns: list[object] = []
        write = Index.write

        def counted(index: Index, *args: Any, **named: Any) -> Any:
            turns.append(args)
            return write(index, *args, **named)

        monkeypatch.setattr(Index, "write", counted)
        with pytest.raises(CacheFull):
            cache.begin(*B, BLOCK)
        assert len(turns) == 1
        filling.abandon()
        assert rows_of(scratch) == {}


def test_an_image_of_another_size_is_refused_and_ends_the_fill(scratch: Path) -> None:
    with opened(scratch) as cache:
        filling = cache.begin(*A, BLOCK)
        with pytest.raises(ValueError, match="20480 bytes, not 12288"):
            filling.commit(image(A, 5000))
        assert rows_of(scratch) == {}
        check(cache, scratch)


@pytest.mark.parametrize("fs", [NoDirectAtOpen(), NoDirectAtWrite(), ShortWrites()], ids=lambda fs: type(fs).__name__)
def test_filesystems_without_direct_io_or_with_short_writes_work_the_same(scratch: Path, fs: FileSystem) -> None:
    with opened(scratch, fs=fs) as cache:
        fill(cache, A)
        assert Path(layout_of(scratch).cache_block(*A)).read_bytes() == bytes(image(A))


def test_a_dead_fillers_claim_is_taken_over(scratch: Path) -> None:
    with opened(scratch) as cache:
        cache.begin(*A, BLOCK)._release()  # its process died: the lock is free, file and row are left
        assert rows_of(scratch) == {A: ("filling", FILE)}
        fill(cache, A)
        check(cache, scratch)


def test_a_dead_fillers_bytes_do_not_stand_in_its_successors_way(scratch: Path) -> None:
    with opened(scratch, capacity_bytes=FILE) as cache:
        cache.begin(*A, BLOCK)._release()
        fill(cache, A)
        check(cache, scratch)


def test_opening_removes_what_dead_fillers_left_and_nothing_of_live_ones(scratch: Path) -> None:
    with opened(scratch) as cache:
        cache.begin(*A, BLOCK)._release()
        live = cache.begin(*B, BLOCK)
        (scratch / "filling" / "something-else").touch()
        with opened(scratch) as other:
            assert rows_of(scratch) == {B: ("filling", FILE)}
            assert sorted(os.listdir(scratch / "filling")) == [f"{B[0].hex()}.0", "something-else"]
            (scratch / "filling" / "something-else").unlink()
            live.commit(image(B))
            check(other, scratch)


def test_a_claim_taken_for_a_dead_ones_before_it_is_locked_is_made_again(scratch: Path) -> None:
    path = Path(layout_of(scratch).filling_block(*A))
    stolen = 0

    def steal(name: str, args: tuple[object, ...]) -> None:
        nonlocal stolen
        if name == "lock" and stolen < limit:
            stolen += 1
            path.unlink()

    with opened(scratch, fs=HookedFileSystem(steal)) as cache:
        limit = 3
        fill(cache, A)
        assert stolen == 3
        limit, path = 10**6, Path(layout_of(scratch).filling_block(*B))
        with pytest.raises(FillInProgress, match="16 times in a row"):
            cache.begin(*B, BLOCK)
        check(cache, scratch)


# Eviction.


def test_what_was_read_stays_and_what_was_not_goes(scratch: Path) -> None:
    counters = Counters()
    with opened(scratch, capacity_bytes=3 * FILE, counters=counters, clock_s=hours()) as cache:
        fill(cache, A, B, C)
        cache.touch(*A)
        cache.flush()
        cache.touch(*A)  # more than once: it moves to main when it would leave
        fill(cache, D)
        assert files_of(scratch).keys() == {A, C, D}
        assert {row.queue for row in cache.blocks() if (row.blob_id, row.number) == A} == {"main"}
        assert (counters["evicted_capacity"], counters["evicted_bytes"]) == (1, FILE)
        check(cache, scratch)


def test_a_block_that_comes_back_soon_is_recognised(scratch: Path) -> None:
    with opened(scratch, capacity_bytes=3 * FILE) as cache:
        fill(cache, A, B, C, D)
        assert A not in files_of(scratch)
        fill(cache, A)
        assert {row.queue for row in cache.blocks() if (row.blob_id, row.number) == A} == {"main"}
        check(cache, scratch)


@pytest.mark.parametrize("policy", names())
def test_the_cache_keeps_what_the_simulation_keeps(scratch: Path, policy: str) -> None:
    rng = random.Random(8)
    capacity = 12
    trace = [(blob(b), 0) for b in rng.choices(range(50), weights=[1 / (rank + 1) for rank in range(50)], k=400)]
    simulation = Simulation(named(policy), capacity * 8192)
    with opened(scratch, capacity_bytes=capacity * 8192, policy=policy, clock_s=hours()) as cache:
        for key in trace:
            if simulation.read(key, 8192):
                cache.touch(*key)  # as a reader does that found the file
                cache.flush()
            else:
                fill(cache, key, length=1)
        expected = {key for key in trace if (entry := simulation.shelf.get(key)) and entry.queue != GHOST}
        assert files_of(scratch).keys() == expected
        check(cache, scratch)


def test_another_processs_flushed_hits_count(scratch: Path) -> None:
    with opened(scratch, capacity_bytes=2 * FILE) as cache, opened(scratch, clock_s=hours()) as reader:
        fill(cache, A, B)
        for hits in (1, 2, 3, 3):
            reader.touch(*A)
            reader.touch(*C)  # not here: ignored
            reader.flush()
            reader.flush()
            assert [row.counter for row in cache.blocks()] == [hits, 0]
        fill(cache, C)
        assert files_of(scratch).keys() == {A, C}


def test_reads_of_a_block_that_come_together_are_one_hit_over_all_processes(scratch: Path) -> None:
    now_s = 5.0

    def counters_after(*moments_s: float) -> list[int]:
        nonlocal now_s
        for moment_s in moments_s:
            now_s = moment_s
            for cache in caches:
                cache.touch(*A)
                cache.touch(*A)
                cache.flush()
        return [row.counter for row in caches[0].blocks()]

    with opened(scratch, clock_s=lambda: now_s) as one, opened(scratch, clock_s=lambda: now_s) as other:
        caches = one, other
        fill(one, A)
        assert counters_after(5.0, 10.0, 14.9) == [0], "they belong to the read that it was fetched for"
        assert counters_after(15.1, 20.0, 25.0) == [1]
        assert counters_after(25.2) == [2]
        assert counters_after(1.0) == [3], "the machine was restarted: what was long ago seems to be to come"


def test_a_cache_made_smaller_evicts_with_its_next_fill_in_several_turns(scratch: Path) -> None:
    with opened(scratch, capacity_bytes=200 * 8192) as cache:
        fill(cache, *((blob(number), 0) for number in range(200)), length=1)
        assert len(files_of(scratch)) == 200
    with opened(scratch, capacity_bytes=20 * 8192) as cache:  # it was made smaller
        fill(cache, (blob(999), 0), length=1)
        assert len(files_of(scratch)) == 20
        check(cache, scratch)


def test_what_cannot_be_made_room_for_is_refused_and_evicts_nothing(scratch: Path) -> None:
    with opened(scratch, capacity_bytes=2 * FILE) as cache:
        first, _second = cache.begin(*A, BLOCK), cache.begin(*B, BLOCK)
        with pytest.raises(CacheFull, match="pinned or being filled"):
            cache.begin(*C, BLOCK)
        first.commit(image(A))
        fill(cache, C)
        assert files_of(scratch).keys() == {C}
        check(cache, scratch)


def test_nothing_at_all_fits_a_cache_smaller_than_a_block(scratch: Path) -> None:
    with opened(scratch, capacity_bytes=FILE - 1) as cache, pytest.raises(CacheFull):
        cache.begin(*A, BLOCK)


def test_threads_that_fill_at_once_stay_within_the_capacity(scratch: Path) -> None:
    with opened(scratch, capacity_bytes=8 * FILE) as cache:
        failures: list[BaseException] = []

        def keep_filling(thread: int) -> None:
            try:
                for turn in range(12):
                    key = blob(100 * thread + turn), 0
                    fill(cache, key)
                    cache.touch(*key)
                    usage = cache.usage()  # of one moment
                    assert usage.used_bytes + usage.filling_bytes <= 8 * FILE
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=keep_filling, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert cache.usage().blocks == 8
        check(cache, scratch)


def test_a_file_that_the_disk_keeps_is_accounted_for_and_in_nobodys_way(scratch: Path) -> None:
    with opened(scratch) as cache:
        fill(cache, A, B)
    stuck = Path(layout_of(scratch).cache_block(*A))
    with opened(scratch, capacity_bytes=2 * FILE, fs=raising(errno.EIO, "unlink", stuck)) as cache:
        with pytest.raises(DiskFailed):
            cache.begin(*C, BLOCK)
        assert rows_of(scratch)[A] == ("leaving", FILE)
        check(cache, scratch)
        fill(cache, C)  # B goes
        assert files_of(scratch).keys() == {A, C}
        assert [row.state for row in cache.blocks()] == ["leaving", "present"]
        assert cache.reconcile() == Reconciled()  # it cannot be helped yet
        check(cache, scratch)
        with pytest.raises(DiskFailed):
            cache.remove_block(*A, "request")
    counters = Counters()
    with opened(scratch, counters=counters) as cache:
        assert files_of(scratch).keys() == {C}
        assert counters["evicted_request"] == 1  # the last that wanted it gone
        check(cache, scratch)


def test_what_leaves_late_is_counted_by_the_reason_for_which_it_leaves(scratch: Path) -> None:
    with opened(scratch) as cache:
        fill(cache, A)
    stuck = Path(layout_of(scratch).cache_block(*A))
    with opened(scratch, fs=raising(errno.EIO, "unlink", stuck)) as cache, pytest.raises(DiskFailed):
        cache.remove_block(*A, "corrupt")
    counters = Counters()
    with opened(scratch, counters=counters) as cache:
        assert (counters["evicted_corrupt"], counters["evicted_request"]) == (1, 0)
        check(cache, scratch)


# The reserve.


class Disk(NoSync):
    """A volume on which the cache's files, and nothing else, take up space."""

    def __init__(self, root: Path, total_bytes: int) -> None:
        self._root = root
        self.total_bytes = total_bytes

    def space(self, path: str) -> Space:
        return Space(10**12, self.total_bytes - sum(files_of(self._root).values()))


def test_fills_evict_what_would_eat_into_the_reserve(scratch: Path) -> None:
    counters = Counters()
    disk = Disk(scratch, 5 * FILE)
    with opened(scratch, fs=disk, reserve_bytes=2 * FILE, counters=counters) as cache:
        fill(cache, A, B, C, D)
        assert files_of(scratch).keys() == {B, C, D}
        assert counters["evicted_reserve"] == 1
        filling = cache.begin(*A, BLOCK)  # what is being fetched counts although it is not written yet
        assert files_of(scratch).keys() == {C, D}
        cache.begin(blob(9), 0, BLOCK).abandon()
        assert files_of(scratch).keys() == {D}
        filling.abandon()


def test_uploads_make_room_and_are_told_how_much(scratch: Path) -> None:
    disk = Disk(scratch, 5 * FILE)
    with opened(scratch, fs=disk, reserve_bytes=FILE) as cache:
        fill(cache, A, B, C)
        assert cache.make_room(FILE) == 0
        assert cache.could_make_room(4 * FILE)
        assert not cache.could_make_room(4 * FILE + 1)
        assert cache.make_room(FILE + 1) == FILE
        assert cache.make_room(100 * FILE) == 0, "that much is not to be had"
        assert files_of(scratch).keys() == {B, C}
        assert cache.make_room(4 * FILE) == 2 * FILE
        assert files_of(scratch) == {}
        assert cache.make_room(100 * FILE) == 0
        disk.total_bytes = FILE
        with pytest.raises(DiskFull, match="lacks"):
            cache.begin(*A, BLOCK)
        check(cache, scratch)


def test_what_is_pinned_while_it_is_evicted_stays(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(scratch) as cache:
        doom = cache._doom
        fill(cache, A, B)
        cache.pin(B[0])

        def pinned_meanwhile(*args: Any, **options: Any) -> list[Key]:
            keys = doom(*args, **options)
            Path(layout_of(scratch).pin(A[0])).touch()
            return keys

        monkeypatch.setattr(cache, "_doom", pinned_meanwhile)
        for key in (A, B):
            assert cache.remove_blob(key[0], "request", spare_pinned=True) == 0
        assert files_of(scratch).keys() == {A, B}
        cache.reconcile()
        check(cache, scratch)


def test_space_that_readers_hold_is_not_evicted_for_over_and_over(scratch: Path) -> None:
    disk = SmallDisk(total_bytes=100 * FILE, available_bytes=10 * FILE)
    now_s = 1000.0
    with opened(scratch, fs=disk, clock_s=lambda: now_s) as cache:
        fill(cache, A, B, C, D)
        disk.available_bytes = 0  # and it stays so, whatever is unlinked
        for _ in range(3):
            with pytest.raises(DiskFull):
                cache.begin(blob(9), 0, BLOCK)
            assert cache.make_room(FILE) == 0
        assert files_of(scratch).keys() == {B, C, D}
        disk.available_bytes = FILE  # now it shows, and is used up
        assert cache.make_room(FILE) == 0
        disk.available_bytes = 0
        assert cache.make_room(FILE) == FILE
        now_s += 1.5
        assert cache.make_room(FILE) == FILE, "whoever holds it holds it for long"
        assert files_of(scratch).keys() == {D}
        check(cache, scratch)


def test_who_cannot_have_the_block_evicts_nothing_for_it(scratch: Path) -> None:
    disk = SmallDisk(total_bytes=100 * FILE, available_bytes=10 * FILE)
    with opened(scratch, fs=disk) as cache, opened(scratch, fs=disk) as other:
        fill(cache, A, B)
        filling = other.begin(*C, BLOCK)
        disk.available_bytes = 0
        with pytest.raises(FillInProgress):
            cache.begin(*C, BLOCK)
        with pytest.raises(BlockPresent):
            cache.begin(*A, BLOCK)
        assert files_of(scratch).keys() == {A, B}
        filling.abandon()


# Pins.


def test_pinned_blocks_stay_those_here_and_those_to_come(scratch: Path) -> None:
    with opened(scratch, capacity_bytes=4 * FILE) as cache:
        fill(cache, A)
        cache.pin(A[0])
        cache.pin(A[0])
        fill(cache, (A[0], 1))
        fill(cache, *((blob(number), 0) for number in range(10, 20)))
        assert files_of(scratch).keys() >= {A, (A[0], 1)}
        assert (cache.usage().pinned_blocks, cache.usage().pinned_bytes) == (2, 2 * FILE)
        assert all(row.pinned == (row.blob_id == A[0]) for row in cache.blocks())
        check(cache, scratch)
        assert cache.unpin(A[0])
        assert not cache.unpin(A[0])
        fill(cache, *((blob(number), 0) for number in range(20, 30)))
        assert not files_of(scratch).keys() & {A, (A[0], 1)}
        check(cache, scratch)


def test_a_pin_that_the_index_does_not_know_is_heeded(scratch: Path) -> None:
    """Its maker was killed before it told the index."""
    with opened(scratch, capacity_bytes=2 * FILE) as cache:
        fill(cache, A, B)
        Path(layout_of(scratch).pin(A[0])).touch()
        fill(cache, C)
        assert files_of(scratch).keys() == {A, C}
        assert cache.usage().pinned_blocks == 1


def test_reconciling_follows_the_pins_both_ways(scratch: Path) -> None:
    with opened(scratch) as cache:
        fill(cache, A, B)
        cache.pin(A[0])
        os.rename(layout_of(scratch).pin(A[0]), layout_of(scratch).pin(B[0]))
        assert cache.reconcile() == Reconciled()
        assert {row.blob_id: row.queue for row in cache.blocks()} == {A[0]: "small", B[0]: "pinned"}
        check(cache, scratch)


def test_pins_are_durable_when_pin_returns(scratch: Path) -> None:
    steps: list[str] = []
    pins = str(scratch / "pins")

    def note(name: str, args: tuple[object, ...]) -> None:
        if name == "open" and str(args[0]).startswith(pins):
            steps.append("directory" if args[0] == pins else "pin")
        elif name == "fsync":
            steps.append("fsync")

    with opened(scratch, fs=HookedFileSystem(note)) as cache:
        cache.pin(A[0])
        assert steps == ["pin", "directory", "fsync"]
        steps.clear()
        cache.unpin(A[0])
        assert steps == ["directory", "fsync"]


def test_pins_leave_a_tenth_of_the_cache(scratch: Path) -> None:
    with opened(scratch, capacity_bytes=10 * FILE) as cache:
        fill(cache, *((A[0], number) for number in range(8)), B, (B[0], 1))
        cache.pin(A[0])
        with pytest.raises(PinsFull, match=r"163840 bytes are pinned of a cache of 204800.* 184320"):
            cache.pin(B[0])
        assert cache.pins() == [A[0]]
        assert files_of(scratch).keys() >= {B, (B[0], 1)}
        fill(cache, (A[0], 8))
        with pytest.raises(PinsFull):
            cache.begin(A[0], 9, BLOCK)
        fill(cache, C)
        check(cache, scratch)


def test_fills_in_progress_count_as_if_they_were_pinned(scratch: Path) -> None:
    """They may become so before they end."""
    with opened(scratch, capacity_bytes=4 * FILE) as cache:
        fill(cache, A, B)
        cache.pin(A[0])
        filling = cache.begin(*C, BLOCK)
        cache.pin(C[0])
        fill(cache, (A[0], 1))
        with pytest.raises(PinsFull):
            cache.begin(A[0], 2, BLOCK)
        filling.commit(image(C))
        assert cache.usage().pinned_blocks == 3
        check(cache, scratch)


def test_pins_are_listed_in_pages(scratch: Path) -> None:
    with opened(scratch) as cache:
        for number in (5, 3, 9):
            cache.pin(blob(number))
        (scratch / "pins" / "not a pin").touch()
        assert cache.pins(limit=2) == [blob(3), blob(5)]
        assert cache.pins(after=blob(5)) == [blob(9)]
        assert (cache.pinned(blob(3)), cache.pinned(blob(4))) == (True, False)


# Removal.


def test_blocks_and_blobs_are_removed_and_counted_by_reason(scratch: Path) -> None:
    counters = Counters()
    with opened(scratch, counters=counters) as cache:
        fill(cache, A, (A[0], 1), (A[0], 7), B)
        cache.pin(A[0])
        assert cache.remove_block(*A, "corrupt")
        assert not cache.remove_block(*A, "corrupt")
        assert cache.remove_blob(A[0], "request") == 2 * FILE
        assert cache.pinned(A[0])
        assert cache.remove_blob(A[0], "deleted") == 0
        assert not cache.pinned(A[0])
        assert files_of(scratch).keys() == {B}
        assert [counters[f"evicted_{reason}"] for reason in ("corrupt", "request", "deleted")] == [1, 2, 0]
        check(cache, scratch)


def test_a_removed_blob_has_no_ghosts(scratch: Path) -> None:
    with opened(scratch, capacity_bytes=2 * FILE) as cache:
        fill(cache, A, B, C)
        cache.remove_blob(A[0], "deleted")
        fill(cache, A)
        assert {row.queue for row in cache.blocks() if row.blob_id == A[0]} == {"small"}


def test_a_blob_of_many_blocks_is_removed_in_several_turns(scratch: Path) -> None:
    with opened(scratch) as cache:
        fill(cache, *((A[0], number) for number in range(150)), length=1)
        assert cache.remove_blob(A[0], "deleted") == 150 * 8192
        assert rows_of(scratch) == {}


def test_a_blob_removed_during_a_fill_does_not_come_back(scratch: Path) -> None:
    with opened(scratch) as cache, opened(scratch) as other:
        filling = cache.begin(*A, BLOCK)
        assert other.remove_blob(A[0], "deleted") == 0
        check(cache, scratch)
        with pytest.raises(FillInProgress):
            other.begin(*A, BLOCK)
        with pytest.raises(BlobGone):
            filling.commit(image(A))
        assert files_of(scratch) == {}
        check(cache, scratch)
        fill(other, A)


def test_a_block_removed_during_its_fill_is_filled_all_the_same(scratch: Path) -> None:
    with opened(scratch) as cache:
        filling = cache.begin(*A, BLOCK)
        assert not cache.remove_block(*A, "corrupt")
        filling.commit(image(A))
        assert files_of(scratch).keys() == {A}


# Reboots, lost and damaged indexes.


def test_after_a_reboot_nothing_is_taken_in_or_evicted_until_files_and_rows_were_compared(scratch: Path) -> None:
    with opened(scratch) as cache:
        fill(cache, A, B, C)
    reboot(scratch)
    lost = files_of(scratch)
    sql(scratch, "DELETE FROM block WHERE blob = ?", A[0])  # what a power cut does to rows
    os.unlink(layout_of(scratch).cache_block(*B))  # and to files
    with opened(scratch, capacity_bytes=3 * FILE, fs=Disk(scratch, FILE)) as cache:
        assert not cache.usage().ready
        with pytest.raises(CacheFull, match="reconciled"):
            cache.begin(*D, BLOCK)
        assert cache.make_room(100 * FILE) == 0
        assert files_of(scratch).keys() == {A, C}
        progress: list[int] = []
        assert cache.reconcile(progress.append) == Reconciled(added=1, removed=1)
        assert (len(progress), progress[-1]) == (256, 2)
        assert cache.usage().ready
        check(cache, scratch)
    with opened(scratch) as cache:
        assert cache.usage().ready
        assert cache.usage().used_bytes == sum(lost.values()) - FILE


def test_what_has_no_row_can_be_removed_before_reconciling(scratch: Path) -> None:
    with opened(scratch) as cache:
        fill(cache, A, (A[0], 1), B)
        cache.pin(A[0])
    (scratch / "index.sqlite").unlink()
    with opened(scratch) as cache:
        assert not cache.usage().ready
        assert cache.remove_block(*B, "corrupt")
        assert not cache.remove_block(*C, "corrupt")
        assert cache.remove_blob(A[0], "deleted") == 2 * FILE
        assert cache.remove_blob(D[0], "deleted") == 0
        assert files_of(scratch) == {}
        assert cache.pins() == []


def test_an_index_deleted_under_a_running_cache_is_made_anew_by_whoever_notices(scratch: Path) -> None:
    with opened(scratch) as cache, opened(scratch) as other:
        fill(cache, A, B)
        cache.pin(B[0])
        for suffix in ("", "-wal", "-shm"):
            Path(f"{scratch}/index.sqlite{suffix}").unlink(missing_ok=True)
        assert not cache.usage().ready
        assert not other.usage().ready
        with pytest.raises(CacheFull):
            other.begin(*C, BLOCK)
        assert other.reconcile() == Reconciled(added=2)
        fill(cache, C)
        assert {row.blob_id: row.queue for row in other.blocks()} == {A[0]: "small", B[0]: "pinned", C[0]: "small"}
        check(other, scratch)


def _overwrite(path: Path, start: int) -> None:
    content = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(content[:start] + b"garbage!" * ((len(content) - start) // 8))


def _another_version(path: Path) -> None:
    sql(path.parent, "PRAGMA user_version = 99")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "header": lambda path: _overwrite(path, 0),
    "pages": lambda path: _overwrite(path, 4096),
    "not a database": lambda path: path.write_text("hello " * 1000) and None,
    "another version": _another_version,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_index_is_set_aside_and_rebuilt(
    scratch: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    with opened(scratch) as cache:
        fill(cache, A, B)
    damage(scratch / "index.sqlite")
    with opened(scratch) as cache:
        assert not cache.usage().ready
        assert "set aside" in caplog.text
        assert (scratch / "index.sqlite.damaged").exists()
        assert files_of(scratch).keys() == {A, B}
        assert cache.reconcile() == Reconciled(added=2)
        fill(cache, C)
        check(cache, scratch)


def test_damage_met_by_a_running_cache_costs_the_fill_and_no_more(scratch: Path) -> None:
    with opened(scratch) as cache:
        fill(cache, A)
        filling = cache.begin(*B, BLOCK)
        sql(scratch, "PRAGMA wal_checkpoint(TRUNCATE)")
        _overwrite(scratch / "index.sqlite", 4096)
        # Its log begins anew, so that the running connection forgets what it has in memory.
        sql(scratch, "PRAGMA user_version = 2")
        with pytest.raises(BlobGone):
            filling.commit(image(B))
        assert files_of(scratch).keys() == {A}
        assert cache.reconcile() == Reconciled(added=1)
        check(cache, scratch)


def test_reconciling_starts_over_when_the_index_is_replaced_meanwhile(scratch: Path) -> None:
    with opened(scratch) as cache:
        fill(cache, A, (blob(200), 0))
        replaced = False

        def replace(seen: int) -> None:
            nonlocal replaced
            if seen == 2 and not replaced:
                replaced = True
                (scratch / "index.sqlite").unlink()

        assert cache.reconcile(replace) == Reconciled(added=2)
        assert replaced
        check(cache, scratch)


def test_an_index_replaced_at_the_very_end_of_reconciling_is_not_declared_ready(scratch: Path) -> None:
    with opened(scratch) as cache:
        fill(cache, A, B)
        calls = 0

        def replace(seen: int) -> None:
            nonlocal calls
            calls += 1
            if calls == 256:
                (scratch / "index.sqlite").unlink()

        assert cache.reconcile(replace) == Reconciled(added=2)
        check(cache, scratch)


def test_a_directory_with_a_bad_sector_is_passed_over(scratch: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(scratch) as cache:
        fill(cache, A, B)
    (scratch / "index.sqlite").unlink()
    bad = Path(layout_of(scratch).cache_shard(A[0]))
    with opened(scratch, fs=raising(errno.EIO, "scandir", bad)) as cache:
        assert cache.reconcile() == Reconciled(added=1)
        assert f"{bad} cannot be read" in caplog.text
        assert cache.usage().ready
        fill(cache, C)


def test_files_changed_behind_the_caches_back_are_found(scratch: Path) -> None:
    with opened(scratch) as cache:
        fill(cache, A, B, C)
        layout = layout_of(scratch)
        os.truncate(layout.cache_block(*A), 5)
        os.rename(layout.cache_block(*B), layout.cache_block(B[0], 77))
        for name in ("not a block", f"{C[0].hex()}.0"):
            (Path(layout.cache_shard(D[0]))).mkdir(exist_ok=True)
            (Path(layout.cache_shard(D[0])) / name).touch()
        assert cache.reconcile() == Reconciled(added=1, removed=1)
        for name in ("not a block", f"{C[0].hex()}.0"):
            (Path(layout.cache_shard(D[0])) / name).unlink()
        assert files_of(scratch) == {A: 5, (B[0], 77): FILE, C: FILE}
        check(cache, scratch)


def test_a_row_without_a_file_is_taken_over_by_a_fill_and_forgotten_by_an_eviction(scratch: Path) -> None:
    with opened(scratch, capacity_bytes=2 * FILE) as cache:
        fill(cache, A, B)
        os.unlink(layout_of(scratch).cache_block(*A))
        os.unlink(layout_of(scratch).cache_block(*B))
        fill(cache, A)
        fill(cache, C)
        check(cache, scratch)


# Several processes, policies, refusals of the index.


def test_the_index_remembers_its_policy_and_changing_it_keeps_the_blocks(scratch: Path) -> None:
    with opened(scratch, policy="lru") as cache:
        fill(cache, A, B)
        cache.touch(*A)
    with opened(scratch, clock_s=hours()) as cache:
        assert cache.usage().policy == "lru"
        cache.touch(*B)
        with opened(scratch, policy="sieve") as other:
            assert {row.queue for row in other.blocks()} == {"all"}
            cache.flush()  # under the policy that was chosen meanwhile
            assert {row.blob_id: row.counter for row in other.blocks()} == {A[0]: 0, B[0]: 1}
            assert cache.usage().policy == "sieve"
            other.pin(A[0])
    with opened(scratch, policy="s3fifo") as cache:
        assert {row.blob_id: row.queue for row in cache.blocks()} == {A[0]: "pinned", B[0]: "small"}
        check(cache, scratch)


def test_an_index_arranged_by_a_policy_that_is_unknown_here_is_arranged_anew(scratch: Path) -> None:
    with opened(scratch) as cache:
        fill(cache, A)
    sql(scratch, "UPDATE meta SET value = 'arc' WHERE name = 'policy'")
    sql(scratch, "UPDATE block SET queue = 't1'")
    with opened(scratch) as cache:
        assert cache.usage().policy == "s3fifo"
        assert [row.queue for row in cache.blocks()] == ["small"]
        check(cache, scratch)


def test_an_index_kept_by_a_process_that_is_stopped_is_waited_for_in_vain_but_can_be_read(scratch: Path) -> None:
    with opened(scratch, busy_s=0.02) as cache:
        fill(cache, A)
        holder = apsw.Connection(str(scratch / "index.sqlite"))
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(BlobBusy, match=r"more than 0\.02 s"):
            cache.begin(*B, BLOCK)
        with pytest.raises(BlobBusy):
            cache.pin(A[0])
        cache.touch(*A)
        with pytest.raises(BlobBusy):
            cache.flush()
        assert cache.usage().blocks == 1
        assert os.listdir(scratch / "filling") == []
        holder.execute("ROLLBACK")
        holder.close()
        fill(cache, B)
        check(cache, scratch)


def test_blocks_are_listed_in_pages(scratch: Path) -> None:
    keys = sorted([(blob(3), 0), (blob(3), 1), (blob(3), 10), (blob(1), 2), (blob(200), 0)])
    with opened(scratch) as cache:
        fill(cache, *keys, length=1)
        listed: list[Key] = []
        while page := cache.blocks(listed[-1] if listed else None, limit=2):
            assert len(page) <= 2
            listed += [(row.blob_id, row.number) for row in page]
        assert listed == keys


def test_more_hits_than_are_remembered_are_forgotten(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tigrislike.bytecache.holdings._MOST_HITS", 1)
    with opened(scratch, clock_s=hours()) as cache:
        fill(cache, A, B)
        cache.touch(*A)
        cache.touch(*B)
        cache.touch(*A)
        cache.flush()
        assert [row.counter for row in cache.blocks()] == [1, 0]


@pytest.mark.parametrize(
    ("error", "expected"),
    [(apsw.FullError("full"), DiskFull), (apsw.IOError("refused"), DiskFailed)],
    ids=["full", "failed"],
)
def test_an_index_that_cannot_be_written_fails_the_fill_cleanly_at_every_step(
    scratch: Path, error: apsw.Error, expected: type[Exception]
) -> None:
    with failing_vfs() as vfs, opened(scratch, capacity_bytes=2 * FILE, vfs=vfs.name) as cache:
        fill(cache, A, B)
        for nth in range(100):
            key = blob(nth + 10), 0
            vfs.fail(nth, error)
            try:
                fill(cache, key)
            except expected:
                assert vfs.heal()
                check(cache, scratch, quiet=False)
                cache.reconcile()
                check(cache, scratch)
                continue
            if not vfs.heal():
                break
        else:
            pytest.fail("a fill never got through")
        assert nth > 2
        check(cache, scratch)


@pytest.mark.parametrize("call", ["listdir", "scandir"])
def test_directories_that_cannot_be_read_are_reported(scratch: Path, call: str) -> None:
    with opened(scratch) as cache:
        fill(cache, A)
    reboot(scratch)
    refuse = False

    def hook(name: str, args: tuple[object, ...]) -> None:
        if refuse and name == call:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    with opened(scratch, fs=HookedFileSystem(hook)) as cache:
        refuse = True
        with pytest.raises(DiskFailed, match="reconciling"):
            cache.reconcile()
        refuse = False
        assert not cache.usage().ready
        cache.reconcile()
        check(cache, scratch)


def test_opening_that_fails_lets_go_of_the_index_and_can_be_repeated(scratch: Path) -> None:
    with pytest.raises(DiskFailed, match="opening the cache"):
        open_cache(scratch, fs=raising(errno.EIO, "listdir"))
    with opened(scratch) as cache:
        check(cache, scratch)


def test_an_index_kept_by_another_process_does_not_keep_the_cache_from_opening(
    scratch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(scratch) as cache:
        fill(cache, A, B)
        cache.begin(*C, BLOCK)._release()  # dead
    with held_index(scratch):
        cache = open_cache(scratch, busy_s=0.02, policy="lru")
        assert "takes no blocks for the present" in caplog.text
        assert cache.usage().policy == "s3fifo"
        with pytest.raises(BlobBusy):
            cache.begin(*D, BLOCK)
    try:
        fill(cache, D)
        assert cache.usage().policy == "lru", "chosen when it could be"
        check(cache, scratch)
    finally:
        cache.close()


@pytest.mark.parametrize("free_bytes", [0, 10**9], ids=["full", "failing"])
def test_an_index_that_cannot_be_written_does_not_keep_the_cache_from_opening(scratch: Path, free_bytes: int) -> None:
    disk = SmallDisk(10**12, 10**9)
    with failing_vfs() as vfs:
        vfs.fail(0, apsw.IOError("disk I/O error"), times=10**6)
        disk.available_bytes = free_bytes
        cache = open_cache(scratch, fs=disk, vfs=vfs.name)
        try:
            # SQLite says the same of both; the disk tells them apart.
            with pytest.raises(DiskFailed if free_bytes else DiskFull, match="disk I/O error"):
                cache.begin(*A, BLOCK)
            assert os.listdir(scratch / "filling") == []
            vfs.heal()
            disk.available_bytes = 10**9
            cache.reconcile()
            fill(cache, A)
            check(cache, scratch)
        finally:
            cache.close()


def test_behind_a_process_that_is_stopped_fills_wait_once_and_not_one_after_the_other(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    waits = 0

    def counted(seconds: float) -> None:
        nonlocal waits
        waits += 1

    with opened(scratch, busy_s=0.02, clock_s=lambda: now_s) as cache:
        monkeypatch.setattr("tigrislike.bytecache.index.time.sleep", counted)
        with held_index(scratch):
            with pytest.raises(BlobBusy):
                cache.begin(*A, BLOCK)
            assert waits
            waits = 0
            for key in (A, B, C):
                with pytest.raises(BlobBusy):
                    cache.begin(*key, BLOCK)
            assert waits == 0
            now_s += 1.5
            with pytest.raises(BlobBusy):
                cache.begin(*A, BLOCK)
            assert waits, "after a second the index gets another chance"
        fill(cache, A)  # a turn that is to be had at once is taken, whatever was before
        check(cache, scratch)


def test_garbage_that_the_disk_keeps_does_not_keep_the_cache_from_opening(
    scratch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(scratch) as cache:
        cache.begin(*A, BLOCK)._release()
    with opened(scratch, fs=raising(errno.EIO, "unlink")):
        assert "dead filler" in caplog.text
        assert rows_of(scratch) == {A: ("filling", FILE)}
    with opened(scratch) as cache:
        check(cache, scratch)


def test_policies_may_be_given_as_objects(scratch: Path) -> None:
    cache = Cache.open(NoSync(), layout_of(scratch), Counters(), policy=named("fifo"))
    assert cache.usage().policy == "fifo"
    cache.close()
