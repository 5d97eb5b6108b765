"""A metadata store for a test, on either engine, and short ways to put things into it."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from tests import clusters
from tests.kv.memory_engine import MemoryEngine, RandomFaults
from tigrislike.metadata import CompletedPart, Draft, Extent, MasterKey, Metadata, Part
from tigrislike.metadata.kv import Engine, ManualClock, open_engine

T = TypeVar("T")

MASTER = MasterKey(bytes(range(32)))
NODE = b"node-of-the-test"
MIB = 1024**2

both_engines = pytest.mark.parametrize("kind", ["memory", "sqlite", pytest.param("fdb", marks=pytest.mark.fdb)])
"""All three: FoundationDB where a cluster answers."""

both_engines_at_length = pytest.mark.parametrize(
    "kind", ["memory", "sqlite", pytest.param("fdb", marks=[pytest.mark.fdb, pytest.mark.slow])]
)
"""The same, for stories of many transactions: on FoundationDB they are left to `make test-fdb`."""


@asynccontextmanager
async def open_kind(
    kind: str, folder: Path, *, clock: ManualClock | None = None, seed: int = 0, faults: RandomFaults | None = None
) -> AsyncIterator[Engine]:
    """The engine `kind`, over what the same folder had before; faults are the one in memory's alone."""
    engine: Engine
    if kind == "memory":
        engine = MemoryEngine(seed=seed, clock=clock, faults=faults)
    elif kind == "fdb":
        engine = await open_engine(clusters.url_for(folder), clock=clock)
    else:
        engine = await open_engine(f"sqlite://{folder / 'metadata.db'}", clock=clock)
    try:
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def open_world(
    kind: str, folder: Path, *, clock: ManualClock | None = None, seed: int = 0, grace_s: float = 3600
) -> AsyncIterator[Metadata]:
    """A store founded (or opened again) on the engine `kind`."""
    async with open_kind(kind, folder, clock=clock or ManualClock(), seed=seed) as engine:
        yield await found(engine, grace_s=grace_s)


async def found(engine: Engine, *, grace_s: float = 3600, master: MasterKey = MASTER) -> Metadata:
    return await Metadata.open(engine, master_key=master, node_id=NODE, region="here", reclaim_grace_s=grace_s)


def play(kind: str, folder: Path, story: Callable[[Metadata], Awaitable[T]], **options: object) -> T:
    """Run one story on a fresh store."""

    async def main() -> T:
        async with open_world(kind, folder, **options) as metadata:  # type: ignore[arg-type]
            return await story(metadata)

    return asyncio.run(main())


def etag_of(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def small(data: bytes, **fields: object) -> Draft:
    """A draft whose bytes go into the database."""
    return Draft(size=len(data), etag=etag_of(data), inline=data, **fields)  # type: ignore[arg-type]


def large(name: bytes, size: int = MIB, **fields: object) -> Draft:
    """A draft whose bytes are in the blob called `name` (padded to an id)."""
    return Draft(size=size, etag=etag_of(name), blob=blob_id(name), **fields)  # type: ignore[arg-type]


def blob_id(name: bytes) -> bytes:
    return name.ljust(16, b".")


def part(number: int, name: bytes, size: int = 5 * MIB, checksum: str = "") -> Part:
    return Part(number, size, etag_of(name), checksum, 0, (Extent(blob_id(name), 0, size),))


def listed(*parts: Part) -> list[CompletedPart]:
    return [CompletedPart(item.number, item.etag) for item in parts]


def no_combine(algorithm: str, parts: Sequence[tuple[str, int]]) -> str:
    """Stands for the CRC arithmetic, which is not this layer's: shows what it was called with."""
    return f"{algorithm}:" + "+".join(f"{crc}*{size}" for crc, size in parts)


def no_composite(algorithm: str, parts: Sequence[str]) -> str:
    return f"{algorithm}:{'+'.join(parts)}-{len(parts)}"


async def dump(metadata: Metadata) -> dict[bytes, bytes]:
    """Every row of the keyspace."""

    async def rows(tr):  # type: ignore[no-untyped-def]
        prefix = metadata.engine.prefix
        return [(key[len(prefix) :], value) for key, value in await tr.get_range(prefix, prefix + b"\xfe")]

    return dict(await metadata.engine.read(rows))


def shuffled(seed: int, items: Sequence[T]) -> list[T]:
    copy = list(items)
    random.Random(seed).shuffle(copy)
    return copy
