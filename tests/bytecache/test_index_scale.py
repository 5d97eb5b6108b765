"""A million blocks: the index is rebuilt while others read and write, and opened in no time when it is there."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bytecache.cached import FILE, layout_of, open_cache, opened
from tigrislike.bytecache.cache import Reconciled
from tigrislike.bytecache.policies import Key

BLOCKS = 1_000_000
LINKS = 30_000
"""Names of one file: filesystems have a limit, and some count names as inodes."""
INDEXED_CPU_S = 120.0
"""Of this process, for a million blocks; it takes a tenth to a quarter of that."""
ANSWERED_S = 10.0
"""What a busy machine may make of milliseconds."""
READER = """
import sys
for line in sys.stdin:
    with open(line.rstrip(), "rb") as file:
        print(len(file.read()), flush=True)
"""


def key_of(number: int) -> Key:
    """Spread over all directories; a hundred blocks to a blob."""
    blob = number // 100
    return bytes([blob % 256]) + blob.to_bytes(15, "big"), number % 100


@pytest.fixture
def roomy(scratch: Path, tmp_path: Path) -> Path:
    """A directory for a million names and an index of them; in memory where that has the room."""
    space = os.statvfs(scratch)
    return scratch if space.f_ffree > 2 * BLOCKS and space.f_bavail * space.f_frsize > 1 << 30 else tmp_path


def make_blocks(root: Path) -> None:
    """Names, of few files: what is in them is nothing to the index."""
    layout = layout_of(root)
    for shard in range(256):
        os.mkdir(f"{layout.cache}/{shard:02x}")
    source = ""
    for number in range(BLOCKS):
        path = layout.cache_block(*key_of(number))
        if number % LINKS:
            os.link(source, path)
        else:
            source = path
            with open(source, "wb") as file:
                file.truncate(FILE)


@contextmanager
def reader() -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", READER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


@pytest.mark.slow
def test_a_million_blocks_are_indexed_while_others_go_on(roomy: Path) -> None:
    make_blocks(roomy)
    layout = layout_of(roomy)
    removed: list[Key] = []
    read = 0

    slowest_read_s = 0.0

    def timed(what: str, since: float) -> float:
        took_s = time.perf_counter() - since
        print(f"{what}: {took_s:.3f} s")
        return took_s

    with reader() as process, opened(roomy) as other:
        assert process.stdin is not None
        assert process.stdout is not None
        started = time.perf_counter()
        cache = open_cache(roomy)
        assert timed("opening without an index", started) < ANSWERED_S
        assert not cache.usage().ready

        def meanwhile(seen: int) -> None:
            nonlocal read, slowest_read_s
            assert process.stdin is not None
            assert process.stdout is not None
            number = 7919 * (read + 1) % BLOCKS
            asked = time.perf_counter()
            process.stdin.write(layout.cache_block(*key_of(number)) + "\n")
            process.stdin.flush()
            assert int(process.stdout.readline()) == FILE
            slowest_read_s = max(slowest_read_s, time.perf_counter() - asked)
            read += 1
            if read % 16 == 0:
                key = key_of(number)
                assert other.remove_block(*key, "request")
                removed.append(key)

        started, cpu_s = time.perf_counter(), time.process_time()
        result = cache.reconcile(meanwhile)
        timed("building the index of a million blocks", started)
        assert time.process_time() - cpu_s < INDEXED_CPU_S
        assert read == 256
        assert slowest_read_s < ANSWERED_S
        assert cache.usage().ready
        # Those removed before their directory was looked at never were there.
        assert BLOCKS - len(removed) <= result.added <= BLOCKS
        usage = cache.usage()
        assert usage.blocks == BLOCKS - len(removed)
        assert usage.used_bytes == usage.blocks * FILE
        cache.close()

        started = time.perf_counter()
        cache = open_cache(roomy)
        assert timed("opening with the index", started) < ANSWERED_S
        assert cache.usage() == usage
        started = time.perf_counter()
        assert cache.reconcile() == Reconciled()
        timed("comparing a million files with the index", started)
        started = time.perf_counter()
        assert sum(1 for _ in cache.blocks(limit=1000)) == 1000
        assert timed("listing a thousand", started) < ANSWERED_S
        cache.close()
