"""The engines that the contract suite runs over, and what they can be told for a test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import clusters
from tigrislike.metadata.kv import Engine, Faults
from tigrislike.metadata.kv.clock import Clock
from tigrislike.metadata.kv.distance import DistantEngine

from .fake_binding import FakeFdb
from .memory_engine import MemoryEngine

ENGINES = ["memory", "sqlite", "sqlite-afar", "fdb-adapter", pytest.param("fdb", marks=pytest.mark.fdb)]
"""For tests that run over every kind. FoundationDB's are skipped where no cluster answers."""


@dataclass
class EngineUnderTest:
    """Opens engines of one kind over one store.

    `name` is memory, sqlite, sqlite-afar (at a distance of nothing, and never cut off), fdb (a cluster), or fdb-adapter
    (the FoundationDB engine over a client library that is made up, `fake_binding.py`). `run` runs a test body on a loop
    of its own, with an engine opened for it and closed after.
    """

    name: str
    directory: Path

    @contextlib.asynccontextmanager
    async def open(self, *, clock: Clock | None = None, faults: Faults | None = None) -> AsyncIterator[Engine]:
        engine: Engine
        if self.name == "fdb-adapter":
            fake = FakeFdb(clock=clock, faults=faults)
            try:
                yield fake.engine
            finally:
                await fake.close()
            return
        if self.name == "memory":
            engine = MemoryEngine(seed=1, clock=clock, faults=faults)
        elif self.name in ("sqlite", "sqlite-afar"):
            from tigrislike.metadata.kv.sqlite import SqliteEngine

            engine = await SqliteEngine.open(str(self.directory / "metadata.db"), clock=clock, faults=faults)
            if self.name == "sqlite-afar":
                engine = DistantEngine(engine, 0, cut_while=self.directory / "cut")
        else:
            from tigrislike.metadata.kv.fdb import FdbEngine

            await on_the_cluster(clear_for_a_test)
            engine = await FdbEngine.open(_cluster_file(), clock=clock, faults=faults)
        try:
            yield engine
        finally:
            await engine.close()
            if self.name == "fdb":
                await on_the_cluster(clear_after_a_test)

    def run(
        self, body: Callable[[Engine], Awaitable[Any]], *, clock: Clock | None = None, faults: Faults | None = None
    ) -> Any:
        async def main() -> Any:
            async with self.open(clock=clock, faults=faults) as engine:
                return await body(engine)

        return asyncio.run(main())


TEST_CLUSTER = b"\x00tigrislike-test-cluster"
"""The key that marks a database as one that tests may clear."""

UNDER_TEST = b"\xfe/tigrislike-test-cluster"
"""Says the same while a test runs, which may look at every key below 0xfd."""


class NotATestCluster(Exception):
    """The database holds something that no test put there."""


def _cluster_file() -> str:
    return str(clusters.cluster_file())


async def on_the_cluster(fn: Callable[..., Awaitable[Any]], timeout_s: float = 10.0) -> Any:
    """Run a transaction function on the tests' cluster, by an engine of its own."""
    from tigrislike.metadata.kv.fdb import FdbEngine

    engine = await FdbEngine.open(_cluster_file(), timeout_s=timeout_s)
    try:
        return await engine.transact(fn)
    finally:
        await engine.close()


async def clear_for_a_test(tr: Any) -> None:
    """Clear the database, if it is empty or marked as a test's.

    Raises:
        NotATestCluster: it is neither.
    """
    marks = [tr.get(TEST_CLUSTER), tr.get(UNDER_TEST)]
    first = await tr.get_range(b"", b"\xff", limit=1)
    if first and all([await mark is None for mark in marks]):
        raise NotATestCluster(
            f"the FoundationDB cluster {_cluster_file()} is not empty (its first key is {first[0][0]!r}) and not "
            f"marked as a test cluster: give tests a cluster of their own, or set the key {TEST_CLUSTER!r} in this one"
        )
    tr.clear_range(b"", b"\xff")
    tr.set(UNDER_TEST, b"")


async def clear_after_a_test(tr: Any) -> None:
    """Leave nothing but the mark."""
    tr.clear_range(b"", b"\xff")
    tr.set(TEST_CLUSTER, b"")
