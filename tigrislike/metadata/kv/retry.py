"""Running a transaction function to a commit on an engine whose transactions can conflict.

This is what FoundationDB's `@transactional` should be and is not: it retries exactly what may be retried, backs off
with jitter within one overall time limit, holds functions to their rules, and settles ambiguous commits.

**Settling.** Each mutating attempt also writes a key of its own, `done / minute, write id`, and adds a read
conflict on it. When the commit's outcome is unknown, one further transaction reads that key. If it is there, the
attempt was committed, and its result, kept, is the answer. If not, the same transaction writes "abandoned" under
it: should the attempt still be under way somewhere, it now conflicts and can never be committed, so running the
function again is safe. Minutes are cleared by range, long after any retry could look.

Not settled: a commit that ran into the time limit (1031) and a cancelled caller. Both leave the outcome unknown
and say so.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable, Generator
from types import CoroutineType, coroutine
from typing import Any, Protocol, TypeVar

from .clock import Clock
from .engine import Transaction
from .errors import (
    AmbiguousCommit,
    CommitUnknown,
    EngineError,
    EngineUnavailable,
    ForeignAwait,
    RetryableError,
    TransactionMisuse,
)
from .faults import Faults
from .seal import SealCheck

T = TypeVar("T")

log = logging.getLogger(__name__)

COMMITTED = b"c"
ABANDONED = b"a"

MINUTE_NS = 60_000_000_000
KEEP_MINUTES = 120
"""How long `done` keys stay. A retry looks within seconds; the rest is for clocks that disagree."""
CLEAR_EVERY_MINUTES = 10

FIRST_BACKOFF_S = 0.01
BACKOFF_GROWTH = 2.0
LONGEST_BACKOFF_S = 1.0
"""FoundationDB's own back-off: from 10 ms, doubling, to 1 s; each pause is a random part of it."""


class Attempt(Transaction, Protocol):
    """One transaction of the engine below."""

    awaited: asyncio.Future[Any] | None
    """What its function is suspended on. Anything else that it suspends on is foreign."""

    @property
    def mutates(self) -> bool:
        """Something was written, so that a commit has an outcome worth settling."""
        ...

    async def commit(self) -> None:
        """Commit. Raises `RetryableError`, `AmbiguousCommit` or another `EngineError`."""
        ...

    def end(self) -> None:
        """Make every further use raise `TransactionEnded`, and let go of native resources."""
        ...


class Runner:
    """Runs transaction functions on attempts that `begin` makes.

    Args:
        begin: makes a fresh attempt, which has that many seconds to live.
        done_prefix: where `done` keys are kept.
        seal: refuses what writes to a sealed store; None: nothing seals it.
        timeout_s: limit for one `transact` or `read`, retries and all.
        sleep: waits between attempts.
        rng: jitter, and nothing else.
    """

    def __init__(
        self,
        begin: Callable[[float], Attempt],
        clock: Clock,
        *,
        done_prefix: bytes,
        timeout_s: float,
        seal: SealCheck | None = None,
        faults: Faults | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        rng: random.Random | None = None,
        write_id: Callable[[], bytes] = lambda: os.urandom(16),
    ) -> None:
        self._begin = begin
        self._clock = clock
        self._done_prefix = done_prefix
        self._seal = seal
        self._timeout_ns = int(timeout_s * 1e9)
        self._faults = faults
        self._sleep = sleep
        self._rng = rng or random.Random()
        self._write_id = write_id
        self._clear_from_minute = 0
        self._clearing: asyncio.Task[None] | None = None
        self._running = 0
        self._idle: asyncio.Event | None = None

    async def transact(
        self, fn: Callable[..., Awaitable[T]], args: tuple[object, ...], *, past_seal: bool = False
    ) -> T:
        """Run `fn(tr, *args)` to a commit. See `Engine.transact`.

        Raises:
            RetryableError: the last attempt's, when time ran out.
            StoreSealed: it writes, and the store is sealed.
            AmbiguousCommit: as described above.
        """
        self._running += 1
        try:
            return await self._transact(fn, args, None if past_seal else self._seal)
        finally:
            self._leave()

    async def read(self, fn: Callable[..., Awaitable[T]], args: tuple[object, ...]) -> T:
        """Run `fn(tr, *args)` on one snapshot, without a commit. See `Engine.read`."""
        self._running += 1
        try:
            return await self._read(fn, args)
        finally:
            self._leave()

    async def close(self) -> None:
        """Wait for what is running. The caller sees to it that nothing more comes."""
        if self._running:
            self._idle = asyncio.Event()
            await self._idle.wait()
        if self._clearing is not None:
            self._clearing.cancel()
            await asyncio.wait([self._clearing])

    def _leave(self) -> None:
        self._running -= 1
        if self._idle is not None and not self._running:
            self._idle.set()

    async def _transact(self, fn: Callable[..., Awaitable[T]], args: tuple[object, ...], seal: SealCheck | None) -> T:
        deadline_ns = self._clock.monotonic_ns() + self._timeout_ns
        pauses = self._pauses()
        while True:
            tr = self._begin(self._left_s(deadline_ns))
            done_key = b""
            try:
                await self._suffer_read()
                version = tr.metadata_version() if seal is not None else None
                result = await _held_to_rules(fn, tr, args)
                if tr.mutates:
                    if seal is not None and version is not None:
                        await seal.check(tr, version)
                    done_key = self._done_key()
                    tr.add_read_conflict_key(done_key)
                    tr.set(done_key, COMMITTED)
                await self._commit(tr)
            except RetryableError as error:
                failure: EngineError = error
            except CommitUnknown as error:
                if not done_key:  # nothing was written, so nothing is owed
                    return result
                if await self._was_committed(done_key, error, deadline_ns):
                    return result
                failure = error
            else:
                if done_key:
                    self._clear_old_minutes()
                return result
            finally:
                tr.end()
            await self._pause(pauses, failure, deadline_ns)

    async def _read(self, fn: Callable[..., Awaitable[T]], args: tuple[object, ...]) -> T:
        deadline_ns = self._clock.monotonic_ns() + self._timeout_ns
        pauses = self._pauses()
        while True:
            tr = self._begin(self._left_s(deadline_ns))
            try:
                await self._suffer_read()
                return await _held_to_rules(fn, tr, args)
            except RetryableError as error:
                failure = error
            finally:
                tr.end()
            await self._pause(pauses, failure, deadline_ns)

    async def _commit(self, tr: Attempt) -> None:
        if self._faults is None:
            await tr.commit()
            return
        self._faults.check_reachable()
        if self._faults.commit_delay_s:
            await self._sleep(self._faults.commit_delay_s)
        fault = self._faults.commit_fault() if tr.mutates else None
        if fault is None or fault.committed:
            await tr.commit()
        if fault is not None:
            raise fault.error

    async def _suffer_read(self) -> None:
        if self._faults is not None:
            self._faults.check_reachable()
            if self._faults.read_delay_s:
                await self._sleep(self._faults.read_delay_s)
                self._faults.check_reachable()
            if (error := self._faults.read_fault()) is not None:
                raise error

    async def _was_committed(self, done_key: bytes, unknown: CommitUnknown, deadline_ns: int) -> bool:
        """Whether the attempt that wrote `done_key` was committed; if not, it never will be.

        Raises:
            CommitUnknown: it could not be found out in time.
        """
        pauses = self._pauses()
        while True:
            tr = self._begin(self._left_s(deadline_ns))
            try:
                mark = await tr.get(done_key)
                if mark is not None:
                    return mark == COMMITTED
                tr.set(done_key, ABANDONED)
                await self._commit(tr)
                return False
            except (RetryableError, CommitUnknown) as error:
                # Unknown here is harmless: the next look finds the mark, or makes it.
                failure: EngineError = error
            except (AmbiguousCommit, EngineUnavailable) as error:
                raise unknown from error
            finally:
                tr.end()
            try:
                await self._pause(pauses, failure, deadline_ns)
            except EngineError as error:
                raise unknown from error

    def _done_key(self) -> bytes:
        return self._minute_prefix(self._clock.now_ns() // MINUTE_NS) + self._write_id()

    def _minute_prefix(self, minute: int) -> bytes:
        return self._done_prefix + minute.to_bytes(5, "big")

    def _clear_old_minutes(self) -> None:
        minute = self._clock.now_ns() // MINUTE_NS
        if minute < self._clear_from_minute or (self._clearing is not None and not self._clearing.done()):
            return
        self._clear_from_minute = minute + CLEAR_EVERY_MINUTES
        self._clearing = asyncio.get_running_loop().create_task(self._clear_before(minute), name="clear done keys")

    async def _clear_before(self, minute: int) -> None:
        tr = self._begin(self._timeout_ns / 1e9)
        try:
            tr.clear_range(self._minute_prefix(0), self._minute_prefix(max(minute - KEEP_MINUTES, 0)))
            await tr.commit()
        except EngineError as error:
            log.info("clearing of settled transactions left to the next time: %s", error)
        finally:
            tr.end()

    def _left_s(self, deadline_ns: int) -> float:
        return max((deadline_ns - self._clock.monotonic_ns()) / 1e9, 0.001)

    def _pauses(self) -> Generator[float, None, None]:
        longest_s = FIRST_BACKOFF_S
        while True:
            yield longest_s * self._rng.random()
            longest_s = min(longest_s * BACKOFF_GROWTH, LONGEST_BACKOFF_S)

    async def _pause(self, pauses: Generator[float, None, None], failure: EngineError, deadline_ns: int) -> None:
        pause_s = next(pauses)
        if self._left_s(deadline_ns) <= pause_s:
            raise failure
        await self._sleep(pause_s)


async def _held_to_rules(fn: Callable[..., Awaitable[T]], tr: Attempt, args: tuple[object, ...]) -> T:
    awaitable = fn(tr, *args)
    if not isinstance(awaitable, CoroutineType):
        if not isinstance(awaitable, Awaitable):
            raise TransactionMisuse(f"a transaction function returned {type(awaitable).__name__}, not an awaitable")
        return await awaitable
    return await _watched(awaitable, tr)  # type: ignore[no-any-return]


@coroutine
def _watched(function: CoroutineType[Any, Any, Any], tr: Attempt) -> Generator[Any, None, Any]:
    """Step a transaction function, letting it suspend on its own transaction's reads only."""
    thrown: BaseException | None = None
    while True:
        try:
            awaited = function.send(None) if thrown is None else function.throw(thrown)
        except StopIteration as done:
            return done.value
        if awaited is None or awaited is not tr.awaited:
            function.close()
            raise ForeignAwait(
                f"{function.__qualname__} awaited something other than its transaction's reads; "
                "a transaction function may await nothing else"
            )
        thrown = None
        try:
            yield awaited
        except BaseException as error:  # a cancellation, which is the function's to see first
            thrown = error
