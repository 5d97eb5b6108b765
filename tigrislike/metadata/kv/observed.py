"""An engine whose transactions are observed: how long each took, and how it failed.

What is observed is what callers wait for: a transaction with all its repetitions. Not observed: sealing, checkpoints,
and what the functions themselves raise, which is an answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter_ns
from typing import Final, Literal, TypeVar

from .engine import Engine
from .errors import EngineError

T = TypeVar("T")

Kind = Literal["read", "write", "background"]

Observe = Callable[[Kind, str, int, EngineError | None], None]
"""Told of each transaction that is over: its kind, the name of its function, how many nanoseconds it took, and what
the engine failed it with."""


class ObservedEngine:
    """An `Engine` that tells `observe` of what is done with another."""

    def __init__(self, engine: Engine, observe: Observe, *, background: bool = False) -> None:
        self._engine = engine
        self._observe = observe
        self._read: Final[Kind] = "background" if background else "read"
        self._write: Final[Kind] = "background" if background else "write"

    @property
    def prefix(self) -> bytes:
        return self._engine.prefix

    @property
    def background(self) -> Engine:
        return ObservedEngine(self._engine.background, self._observe, background=True)

    async def transact(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        began_ns = perf_counter_ns()
        try:
            result = await self._engine.transact(fn, *args)
        except EngineError as error:
            self._observe(self._write, getattr(fn, "__name__", ""), perf_counter_ns() - began_ns, error)
            raise
        self._observe(self._write, getattr(fn, "__name__", ""), perf_counter_ns() - began_ns, None)
        return result

    async def read(self, fn: Callable[..., Awaitable[T]], *args: object, max_age_ns: int = 0) -> T:
        began_ns = perf_counter_ns()
        try:
            result = await self._engine.read(fn, *args, max_age_ns=max_age_ns)
        except EngineError as error:
            self._observe(self._read, getattr(fn, "__name__", ""), perf_counter_ns() - began_ns, error)
            raise
        self._observe(self._read, getattr(fn, "__name__", ""), perf_counter_ns() - began_ns, None)
        return result

    async def seal(self, reason: str) -> None:
        await self._engine.seal(reason)

    async def unseal(self) -> None:
        await self._engine.unseal()

    async def sealed(self) -> str | None:
        return await self._engine.sealed()

    async def transact_past_seal(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        return await self._engine.transact_past_seal(fn, *args)

    def now_ns(self) -> int:
        return self._engine.now_ns()

    async def checkpoint(self) -> None:
        await self._engine.checkpoint()

    async def close(self) -> None:
        await self._engine.close()
