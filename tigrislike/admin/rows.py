"""All rows of a store, page by page, and their digest: what copying, verifying and clearing a store rest on.

For stores in which nobody writes, or whose reader does not mind: each page is a transaction of its own, short enough
for every engine's limits however large the rows are. Keys are given without the store's prefix, so that the rows of a
store are the same wherever it lies. The keys that engines keep for themselves (`kv/seal.py`) are no rows of the store.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

import xxhash

from tigrislike.metadata.keyspace import Keyspace, unpack_stamp
from tigrislike.metadata.kv import Engine, Transaction
from tigrislike.metadata.kv.seal import OWN
from tigrislike.metadata.records import object_version as version_codec

Row = tuple[bytes, bytes]

PAGE_BYTES = 2_000_000
"""What a page is meant to hold: a few hundredths of a second of reading, far below any limit."""
FIRST_PAGE_ROWS = 100
LEAST_PAGE_ROWS = 16
MOST_PAGE_ROWS = 10_000

_ROW = struct.Struct(">II")

_FAMILIES = b"\x02", b"\x03"
"""Every family of the keyspace begins with a tuple's text, whose type is 0x02."""


@dataclass(frozen=True)
class Digest:
    """What a store holds.

    Attributes:
        rows, bytes: how many, and of keys and values together.
        digest: xxh3-128, in hex, over all rows in the order of their keys, each as two big-endian 32-bit lengths, key
            and value.
        latest_stamp: the highest stamp of any version; 0 where there is none.
    """

    rows: int
    bytes: int
    digest: str
    latest_stamp: int


async def pages(engine: Engine, after: bytes = b"") -> AsyncIterator[list[Row]]:
    """The rows of the store whose keys lie after `after` (b"": all), in order, as many at once as make a fair page."""
    begin = engine.prefix + (after + b"\x00" if after else b"")
    end = engine.prefix + OWN
    limit = FIRST_PAGE_ROWS
    skip = len(engine.prefix)
    while True:
        found = await engine.read(_page, begin, end, limit)
        if found:
            yield [(key[skip:], value) for key, value in found] if skip else found
        if len(found) < limit:
            return
        begin = found[-1][0] + b"\x00"
        size = sum(len(key) + len(value) for key, value in found)
        limit = max(LEAST_PAGE_ROWS, min(MOST_PAGE_ROWS, PAGE_BYTES * len(found) // size))


async def digest(engine: Engine) -> AsyncIterator[Digest]:
    """The digest of the store so far, after each page; the last one is that of the whole store."""
    hasher = xxhash.xxh3_128()
    keys = Keyspace()
    rows = size = latest = 0
    async for page in pages(engine):
        for key, value in page:
            if key.startswith(keys.version):
                latest = max(latest, unpack_stamp(key))
            elif key.startswith(keys.current):
                latest = max(latest, version_codec.decode(value).stamp)
        packed = b"".join([part for key, value in page for part in (_ROW.pack(len(key), len(value)), key, value)])
        hasher.update(packed)
        rows += len(page)
        size += len(packed) - _ROW.size * len(page)
        yield Digest(rows, size, "", latest)
    yield Digest(rows, size, hasher.hexdigest(), latest)


async def foreign_key(tr: Transaction, prefix: bytes) -> bytes | None:
    """A key under `prefix` that is of no family of ours: something else lies there too. None: there is none."""
    first, end = (prefix + family for family in _FAMILIES)
    before, behind = tr.get_range(prefix, first, limit=1), tr.get_range(end, prefix + OWN, limit=1)
    rows = await before + await behind
    return rows[0][0] if rows else None


async def _page(tr: Transaction, begin: bytes, end: bytes, limit: int) -> list[Row]:
    return await tr.get_range(begin, end, limit=limit)
