"""The engines that the contract suite runs over, and what they can be told for a test."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tigrislike.metadata.kv import Engine, Faults
from tigrislike.metadata.kv.clock import Clock

from .fake_binding import FakeFdb
from .memory_engine import MemoryEngine


def cluster_file() -> str | None:
    """The FoundationDB cluster that tests may write to, if one was given."""
    return os.environ.get("TIGRISLIKE_TEST_FDB") or os.environ.get("FDB_CLUSTER_FILE")


@dataclass
class EngineUnderTest:
    """Opens engines of one kind over one store.

    `name` is memory, sqlite, fdb (a cluster), or fdb-adapter (the FoundationDB engine over a client library that is
    made up, `fake_binding.py`). `run` runs a test body on a loop of its own, with an engine opened for it and
    closed after.
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
        elif self.name == "sqlite":
            from tigrislike.metadata.kv.sqlite import SqliteEngine

            engine = await SqliteEngine.open(str(self.directory / "metadata.db"), clock=clock, faults=faults)
        else:
            from tigrislike.metadata.kv.fdb import FdbEngine

            engine = await FdbEngine.open(cluster_file(), clock=clock, faults=faults)
            await engine.transact(_clear_everything)
        try:
            yield engine
        finally:
            await engine.close()

    def run(
        self, body: Callable[[Engine], Awaitable[Any]], *, clock: Clock | None = None, faults: Faults | None = None
    ) -> Any:
        async def main() -> Any:
            async with self.open(clock=clock, faults=faults) as engine:
                return await body(engine)

        return asyncio.run(main())


async def _clear_everything(tr: Any) -> None:
    tr.clear_range(b"", b"\xff")


@functools.cache
def fdb_unreachable() -> str:
    """Why FoundationDB cannot be tested here; empty if it can."""
    if cluster_file() is None:
        return "no FoundationDB cluster: set TIGRISLIKE_TEST_FDB or FDB_CLUSTER_FILE to a cluster file"

    async def probe() -> None:
        from tigrislike.metadata.kv.fdb import FdbEngine

        engine = await FdbEngine.open(cluster_file(), timeout_s=3.0)
        try:
            await engine.read(_probe)
        finally:
            await engine.close()

    try:
        asyncio.run(probe())
    except Exception as error:
        return f"FoundationDB at {cluster_file()} does not answer: {error}"
    return ""


async def _probe(tr: Any) -> int:
    version: int = await tr.read_version()
    return version
