"""Several processes churn one cache and are killed at any time: what others see of it is whole and accounted for."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bytecache.cached import BLOCK, FILE, blob, check, files_of, fill, image, opened, rows_of
from tests.bytecache.filler import REPOSITORY
from tigrislike.bytecache.cache import Cache
from tigrislike.bytecache.errors import FillInProgress
from tigrislike.bytecache.layout import Layout

CAPACITY = 10 * FILE
IMAGES = {(blob(b), n): bytes(image((blob(b), n))) for b in range(4) for n in range(6)}


@contextmanager
def churning(root: Path, seed: int) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "tests.bytecache.filler", str(root), str(CAPACITY), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        try:
            yield process
        finally:
            process.kill()


def turns(process: "subprocess.Popen[bytes]", count: int) -> None:
    """Wait until a process has done that much more."""
    assert process.stdout is not None
    assert len(process.stdout.read(count)) == count, "it ended by itself"


def check_between_turns(holder: Cache, observer: Cache, root: Path) -> None:
    """While `holder` has its turn at the index, nobody changes what lies in `cache/`."""
    holder._holdings.write(lambda rows: check(observer, root, quiet=False))


def read_all(layout: Layout) -> int:
    """Read every block by its name, as readers do; how many were there."""
    found = 0
    for key, expected in IMAGES.items():
        try:
            with open(layout.cache_block(*key), "rb") as file:
                assert file.read() == expected, f"{key} is not whole"
                found += 1
        except FileNotFoundError:
            pass  # evicted, or never here
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_processes_that_fill_evict_pin_and_die_leave_a_cache_that_adds_up(scratch: Path, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    found = 0
    with (
        opened(scratch, capacity_bytes=CAPACITY) as holder,
        opened(scratch, capacity_bytes=CAPACITY) as observer,
        churning(scratch, 1000 * seed) as steady,
    ):
        layout = holder._layout
        for victim in range(4):
            with churning(scratch, 1000 * seed + victim + 1) as process:
                for _ in range(5):
                    turns(process, rng.randrange(1, 30))
                    turns(steady, rng.randrange(1, 30))
                    check_between_turns(holder, observer, scratch)
                    found += read_all(layout)
                process.kill()
                process.wait()
            check_between_turns(holder, observer, scratch)
        steady.kill()
        steady.wait()
        print(f"{found} blocks were read meanwhile")
        observer.reconcile()
        check(observer, scratch)
        assert os.listdir(scratch / "filling") == []
        for blob_id in observer.pins():
            observer.unpin(blob_id)
        fill(observer, *((blob(100 + number), 0) for number in range(10)))
        assert len(files_of(scratch)) == 10
        check(observer, scratch)


def test_a_block_is_filled_by_one_process_at_a_time(scratch: Path) -> None:
    with opened(scratch) as cache:
        filling = cache.begin(blob(1), 3, BLOCK)
        with churning(scratch, 5) as first, churning(scratch, 6) as second:
            for process in (first, second):
                turns(process, 100)
            assert f"{blob(1).hex()}.3" in os.listdir(scratch / "filling")
            # They may have removed its blob, but none has filled the block.
            assert (blob(1), 3) not in files_of(scratch)
            with pytest.raises(FillInProgress):
                cache.begin(blob(1), 3, BLOCK)
            for process in (first, second):
                process.kill()
                process.wait()
        filling.abandon()
    with opened(scratch) as cache:
        cache.reconcile()
        check(cache, scratch)
        assert {queue for queue, _ in rows_of(scratch).values()} <= {"small", "main", "pinned"}
