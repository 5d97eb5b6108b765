"""What the tests of the cache share: caches over a scratch root, images of blocks, and what is true on the disk."""

import mmap
import os
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from tests.bytecache.faults import NoSync
from tigrislike.bytecache.cache import Cache
from tigrislike.bytecache.filesystem import FileSystem
from tigrislike.bytecache.footer import FOOTER_BYTES, Footer, chunk_checksum, padded
from tigrislike.bytecache.index import FILLING, LEAVING, PINNED
from tigrislike.bytecache.layout import Layout, open_layout, parse_block_name
from tigrislike.bytecache.policies import GHOST, Key, named
from tigrislike.bytecache.statistics import Counters

BLOCK = 16 * 1024
FILE = BLOCK + FOOTER_BYTES
"""Bytes of the file of a whole block."""


def blob(number: int) -> bytes:
    """The id of a blob, each in another directory of `cache/`."""
    return bytes([number % 256, number >> 8]).ljust(16, b"\xab")


def image(key: Key, length: int = BLOCK) -> memoryview:
    """The file of a block, whose data follow from the key, in memory that begins at a page."""
    data = random.Random(repr(key)).randbytes(length)
    body = data.ljust(padded(length), b"\0")
    footer = Footer(*key, length, BLOCK, chunk_checksum(body) if length else b"")
    memory = mmap.mmap(-1, len(body) + FOOTER_BYTES)
    memory[:] = body + footer.encode()
    return memoryview(memory)


def layout_of(root: Path) -> Layout:
    return open_layout(NoSync(), root, BLOCK)


def open_cache(root: Path, *, fs: FileSystem | None = None, policy: str | None = None, **settings: Any) -> Cache:
    """A cache over `root` whose reserve is nothing, unless `settings` say otherwise."""
    layout = layout_of(root)
    counters = settings.pop("counters", None) or Counters()
    settings.setdefault("reserve_bytes", 0)
    return Cache.open(fs or NoSync(), layout, counters, policy=named(policy) if policy else None, **settings)


@contextmanager
def opened(root: Path, **settings: Any) -> Iterator[Cache]:
    cache = open_cache(root, **settings)
    try:
        yield cache
    finally:
        cache.close()


def fill(cache: Cache, *keys: Key, length: int = BLOCK) -> None:
    for key in keys:
        cache.begin(*key, length).commit(image(key, length))


def files_of(root: Path) -> dict[Key, int]:
    """The blocks in `cache/` by what the directory says, and the bytes of their files."""
    found = {}
    for path in (root / "cache").glob("*/*"):
        key = parse_block_name(path.name)
        assert key is not None
        assert path.parent.name == path.name[:2]
        found[key] = path.stat().st_size
    return found


def rows_of(root: Path) -> dict[Key, tuple[str, int]]:
    """(queue, bytes) of every row but the ghosts', read past everything under test. Checks the totals beside."""
    connection = apsw.Connection(str(root / "index.sqlite"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        with connection:
            rows = connection.execute("SELECT blob, number, queue, bytes FROM block").fetchall()
            totals = connection.execute("SELECT queue, blocks, bytes FROM total WHERE blocks OR bytes").fetchall()
    finally:
        connection.close()
    sums: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for _, _, queue, size in rows:
        sums[queue][0] += 1
        sums[queue][1] += size
    assert {queue: [blocks, size] for queue, blocks, size in totals} == dict(sums), "totals are not sums of the rows"
    return {(blob_id, number): (queue, size) for blob_id, number, queue, size in rows if queue != GHOST}


def check(cache: Cache, root: Path, *, quiet: bool = True) -> None:
    """Rows cover files, at every moment; with `quiet`, when nobody was killed since the last reconciliation, they are
    equal. What `usage` says is the sum of the rows."""
    files, rows = files_of(root), rows_of(root)
    here = {key: size for key, (queue, size) in rows.items() if queue != FILLING}
    filling = {key: size for key, (queue, size) in rows.items() if queue == FILLING}
    assert files.keys() <= rows.keys(), "a file that the index does not know"
    assert all(rows[key][1] >= size for key, size in files.items())
    if quiet:
        doomed = {key for key, (queue, _) in rows.items() if queue == LEAVING and key not in files}
        live = {parse_block_name(name) for name in os.listdir(root / "filling")}
        assert doomed <= live, "a fill that nobody will end"
        assert {key: size for key, size in here.items() if key not in doomed} == files, "a row without its file"
        assert filling.keys() <= live
        assert live == filling.keys() | doomed, "garbage in filling/"
        pins = {bytes.fromhex(name) for name in os.listdir(root / "pins")}
        pinned = {key for key, (queue, _) in rows.items() if queue == PINNED}
        assert pinned == {key for key in files if key[0] in pins and rows[key][0] != LEAVING}, "not what is pinned"
    usage = cache.usage()
    assert usage.used_bytes == sum(here.values())
    assert usage.filling_bytes == sum(filling.values())
    assert usage.blocks == len(here)
    assert usage.pinned_bytes == sum(size for queue, size in rows.values() if queue == PINNED)
    if usage.capacity_bytes is not None:
        assert usage.used_bytes + usage.filling_bytes <= usage.capacity_bytes
        assert usage.pinned_bytes <= 0.9 * usage.capacity_bytes
    # A filler that was killed after it renamed its file and before it said so leaves a row that is filling.
    assert usage.used_bytes + usage.filling_bytes >= sum(files.values())
