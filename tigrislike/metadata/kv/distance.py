"""A database that is far away, and can be cut off: what a region that shares an SQLite file feels of distance.

SQLite's regions stand on one machine, where the file is near to all. `DistantEngine` puts an engine at a distance, and
what is done with it waits for round trips as FoundationDB's client would:

- a read costs one. (A client far from its cluster asks for version and data, which is two unless the version is known,
  and what a function reads after another read costs one more. Neither is counted: this is the least.)
- a transaction costs three: its version, its reads, its commit. It takes effect half a round trip before it returns.
- a watch fires half a round trip late.
- sealing and opening cost what a transaction costs, asking for the seal what a read does.

While it is cut off nothing travels. Whoever asks waits for the healing, within `timeout_s`, and then gets
`EngineUnavailable`. An answer that is on its way back when the wire is cut is held up as well; if it is a commit's, the
outcome is `TransactionTimedOut`, as with FoundationDB: it may have been committed. Watches are silent.

Not made far: the clock, and `checkpoint` and `close`, which are about the file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from .engine import Engine, Transaction, Watch
from .errors import AmbiguousCommit, EngineError, EngineUnavailable, TransactionTimedOut

T = TypeVar("T")

READ_TRIPS = 1
TRANSACTION_TRIPS = 3

LOOK_S = 0.02
"""How often somebody who waits looks whether the wire is whole again."""


class DistantEngine:
    """An `Engine` in front of another, which is `round_trip_s` away.

    Args:
        cut_while: cut off as long as this path exists, which is looked up on each operation's way there and back; None:
            never.
        timeout_s: how long an operation waits for the healing, each way.
    """

    def __init__(
        self, engine: Engine, round_trip_s: float, *, cut_while: Path | None = None, timeout_s: float = 1.0
    ) -> None:
        self._engine = engine
        self._round_trip_s = round_trip_s
        self._cut_while = cut_while
        self._timeout_s = timeout_s

    @property
    def prefix(self) -> bytes:
        return self._engine.prefix

    @property
    def background(self) -> Engine:
        near = self._engine.background
        if near is self._engine:
            return self
        return DistantEngine(near, self._round_trip_s, cut_while=self._cut_while, timeout_s=self._timeout_s)

    async def transact(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        return await self._change(self._engine.transact, self._watching_from_afar(fn), *args)

    async def transact_past_seal(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        return await self._change(self._engine.transact_past_seal, self._watching_from_afar(fn), *args)

    async def read(self, fn: Callable[..., Awaitable[T]], *args: object, max_age_ns: int = 0) -> T:
        await self._travel(READ_TRIPS - 0.5, EngineUnavailable)
        result = await self._engine.read(self._watching_from_afar(fn), *args, max_age_ns=max_age_ns)
        await self._travel(0.5, EngineUnavailable)
        return result

    async def seal(self, reason: str) -> None:
        await self._change(self._engine.seal, reason)

    async def unseal(self) -> None:
        await self._change(self._engine.unseal)

    async def sealed(self) -> str | None:
        await self._travel(READ_TRIPS - 0.5, EngineUnavailable)
        reason = await self._engine.sealed()
        await self._travel(0.5, EngineUnavailable)
        return reason

    def now_ns(self) -> int:
        return self._engine.now_ns()

    async def checkpoint(self) -> None:
        await self._engine.checkpoint()

    async def close(self) -> None:
        await self._engine.close()

    async def arrive(self, within_s: float) -> bool:
        """Let what has happened at the database come here. False: `within_s` passed first."""
        trip_s = self._round_trip_s / 2
        if within_s < trip_s or not await self._healed(within_s - trip_s):
            await asyncio.sleep(min(within_s, trip_s))
            return False
        if trip_s:
            await asyncio.sleep(trip_s)
        return True

    async def _change(self, change: Callable[..., Awaitable[T]], *args: object) -> T:
        await self._travel(TRANSACTION_TRIPS - 0.5, EngineUnavailable)
        try:
            result = await change(*args)
        except Exception as error:
            await self._travel(0.5, TransactionTimedOut if isinstance(error, AmbiguousCommit) else EngineUnavailable)
            raise
        await self._travel(0.5, TransactionTimedOut)
        return result

    async def _travel(self, round_trips: float, lost: type[EngineError]) -> None:
        if not await self._healed(self._timeout_s):
            raise lost(f"cut off from the metadata database, as {self._cut_while} says")
        # Without a distance, nothing happens between the call and the engine below, a cancellation included.
        if self._round_trip_s:
            await asyncio.sleep(round_trips * self._round_trip_s)

    async def _healed(self, within_s: float) -> bool:
        """Wait until the wire is whole. False: `within_s` passed first."""
        if self._cut_while is None or not self._cut_while.exists():
            return True
        deadline_s = asyncio.get_running_loop().time() + within_s
        while (left_s := deadline_s - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(min(LOOK_S, left_s))
            if not self._cut_while.exists():
                return True
        return False

    def _watching_from_afar(self, fn: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        def from_afar(tr: Transaction, *args: object) -> Awaitable[T]:
            return fn(cast("Transaction", _DistantTransaction(tr, self)), *args)

        return from_afar


class _DistantTransaction:
    """A transaction whose watches fire late; all else is the near one's."""

    __slots__ = ("_distance", "_near")

    def __init__(self, near: Transaction, distance: DistantEngine) -> None:
        self._near = near
        self._distance = distance

    def __getattr__(self, name: str) -> Any:
        return getattr(self._near, name)

    def watch(self, key: bytes) -> Watch:
        return _DistantWatch(self._near.watch(key), self._distance)


class _DistantWatch:
    __slots__ = ("_arriving", "_cancelled", "_distance", "_near")

    def __init__(self, near: Watch, distance: DistantEngine) -> None:
        self._near = near
        self._distance = distance
        self._arriving: asyncio.Task[bool] | None = None
        self._cancelled = False

    async def wait(self, timeout_s: float) -> bool:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        if not await self._near.wait(timeout_s):
            return False
        self._arriving = asyncio.create_task(self._distance.arrive(max(0.0, deadline_s - loop.time())))
        try:
            return await self._arriving
        except asyncio.CancelledError:
            if not self._cancelled:
                raise  # of who waits, not of the watch
            return False

    def cancel(self) -> None:
        self._cancelled = True
        self._near.cancel()
        if self._arriving is not None:
            self._arriving.cancel()
