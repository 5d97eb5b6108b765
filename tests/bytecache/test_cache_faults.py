"""Every system call of a fill, an eviction, a removal and a pin fails once: nothing is left behind, nothing else is
lost, and the next attempt gets through."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bytecache.cached import BLOCK, FILE, blob, check, files_of, fill, image, opened, rows_of
from tests.bytecache.faults import FailNth, HookedFileSystem
from tigrislike.bytecache.cache import Cache
from tigrislike.bytecache.errors import BytesError, DiskFailed, DiskFull
from tigrislike.bytecache.filesystem import Space

OLD = [(blob(number), 0) for number in range(3)]
NEW = blob(7), 0


def settle(root: Path) -> None:
    """What a failed unlink left is removed by the next process that opens the cache."""
    with opened(root) as cache:
        check(cache, root)


@pytest.mark.parametrize("full", [False, True], ids=["with room", "full"])
@pytest.mark.parametrize(
    ("code", "expected"), [(errno.ENOSPC, DiskFull), (errno.EIO, DiskFailed)], ids=["ENOSPC", "EIO"]
)
def test_a_fill_fails_cleanly_at_every_call(scratch: Path, code: int, expected: type[BytesError], full: bool) -> None:
    fail = FailNth(code)
    with opened(scratch, fs=HookedFileSystem(fail), capacity_bytes=3 * FILE if full else None) as cache:
        failed: list[str] = []
        for nth in range(1, 1000):
            cache.remove_blob(NEW[0], "request")
            present = files_of(scratch).keys()
            fill(cache, *(key for key in OLD if key not in present))
            before = files_of(scratch)
            fail.arm(nth)
            try:
                filling = cache.begin(*NEW, BLOCK)
                filling.commit(image(NEW))
            except expected:
                fail.disarm()
                failed += fail.failed
                after = files_of(scratch)
                assert NEW not in after
                assert NEW not in rows_of(scratch)
                assert list((scratch / "filling").iterdir()) == []
                assert len(before.keys() - after.keys()) <= int(full), "more was evicted than the fill needed"
                check(cache, scratch)
                fill(cache, NEW)  # and now it gets through
                settle(scratch)
                continue
            fail.disarm()
            check(cache, scratch)
            assert NEW in files_of(scratch)
            if not fail.failed:
                break
            # What failed was of no consequence: closing a file that is written, or making a directory that is there.
            assert fail.failed[0] in ("close", "mkdir"), fail.failed
        else:
            pytest.fail("a fill never got through")
        assert {"open", "lock", "fstat", "stat", "space", "set_direct", "pwrite", "rename"} <= set(failed)
        assert ("unlink" in failed) == full


@pytest.mark.parametrize(
    ("code", "expected"), [(errno.ENOSPC, DiskFull), (errno.EIO, DiskFailed)], ids=["ENOSPC", "EIO"]
)
def test_a_disk_that_refuses_everything_from_some_call_on_leaves_garbage_that_others_remove(
    scratch: Path, code: int, expected: type[BytesError]
) -> None:
    fail = FailNth(code)
    with opened(scratch, fs=HookedFileSystem(fail)) as cache:
        for nth in range(1, 1000):
            cache.remove_blob(NEW[0], "request")
            fail.arm(nth, forever=True)
            try:
                fill(cache, NEW)
            except expected:
                fail.disarm()
                check(cache, scratch, quiet=False)
                settle(scratch)
                continue
            if fail.failed:
                fail.disarm()
                assert set(fail.failed) == {"close"}
                continue
            break
        else:
            pytest.fail("a fill never got through")


SPACE = 10**12


class FixedSpace(HookedFileSystem):
    def space(self, path: str) -> Space:
        super().space(path)
        return Space(10 * SPACE, SPACE)


JOBS: dict[str, Callable[[Cache], object]] = {
    "remove_block": lambda cache: cache.remove_block(*OLD[0], "request"),
    "remove_blob": lambda cache: cache.remove_blob(OLD[0][0], "deleted"),
    "pin": lambda cache: cache.pin(OLD[0][0]),
    "unpin": lambda cache: cache.unpin(OLD[1][0]),
    "make_room": lambda cache: cache.make_room(SPACE + 2 * FILE),
    "pins": lambda cache: cache.pins(),
    "pinned": lambda cache: cache.pinned(OLD[0][0]),
    "reconcile": lambda cache: cache.reconcile(),
}


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_everything_else_fails_cleanly_at_every_call_and_can_be_repeated(
    scratch: Path, job: Callable[[Cache], object]
) -> None:
    fail = FailNth(errno.EIO)
    with opened(scratch, fs=FixedSpace(fail)) as cache:
        fill(cache, *OLD)
        cache.pin(OLD[1][0])
        for nth in range(1, 2000):
            fail.arm(nth)
            try:
                job(cache)
            except DiskFailed:
                fail.disarm()
                check(cache, scratch)
                continue
            if not fail.failed:
                break
        else:
            pytest.fail("it never got through")
        fail.disarm()
        settle(scratch)
