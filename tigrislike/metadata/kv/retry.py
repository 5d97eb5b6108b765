"""Running a transaction function to a commit on an engine whose transactions can conflict.

This is what FoundationDB's `@transactional` should be and is not: it retries exactly what may be retried, backs off
with jitter within one overall time limit, holds functions to their rules, and settles ambiguous commits.

**Settling.** Each mutating attempt also writes a key of its own, `done / shard, minute, write id`, and adds a read
conflict on it. When the commit's outcome is unknown, one further transaction reads that key. If it is there, the
attempt was committed, and its result, kept, is the answer. If not, the same transaction writes "abandoned" under
it: should the attempt still be under way somewhere, it now conflicts and can never be committed, so running the
function again is safe.

Minutes are the cluster's, counted in its versions, of which there are about a million a second; nobody's clock matters.
They are cleared by range, long after any retry could look, and one that looks even later knows that it cannot tell.

Not settled: a commit that ran into the time limit (1031) and a cancelled caller. Both leave the outcome unknown
and say so.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
from collections.abc import Awaitable, Callable, Generator
from types import CoroutineType, coroutine
from typing import Any, Protocol, TypeVar

from .clock import Clock
from .errors import (
    CommitUnknown,
    EngineError,
    ForeignAwait,
    RetryableError,
    TransactionMisuse,
)
from .faults import Faults
from .seal import Guarded, SealCheck

T = TypeVar("T")

log = logging.getLogger(__name__)

COMMITTED = b"c"
ABANDONED = b"a"

VERSIONS_PER_MINUTE = 60_000_000
KEEP_MINUTES = 120
"""How long `done` keys stay. A retry looks within seconds; the rest is for recoveries, each of which takes versions 100
seconds ahead (MAX_VERSIONS_IN_FLIGHT), and for callers that were suspended."""
CLEAR_EVERY_MINUTES = 10
ANCHOR_NS = 60_000_000_000
"""How long minutes are counted on from a version. A process that was suspended without noticing files its marks under
minutes long gone; whoever settles them sees that, and concludes nothing."""

FIRST_BACKOFF_S = 0.01
BACKOFF_GROWTH = 2.0
LONGEST_BACKOFF_S = 1.0
"""FoundationDB's own back-off: from 10 ms, doubling, to 1 s; each pause is a random part of it."""

ATTEMPTS = 50
"""One call's attempts at most: what meets so many conflicts only feeds them."""

SHARDS = 16
"""`done` keys are spread over so many places, lest every commit of a cluster write to one server."""

KIND_BYTES = 16
KINDS = 1000
"""FoundationDB's limit for a tag, and ours for the names that are remembered."""


class Attempt(Guarded, Protocol):
    """One transaction of the engine below."""

    awaited: asyncio.Future[Any] | None
    """What its function is suspended on. Anything else that it suspends on is foreign."""

    @property
    def mutates(self) -> bool:
        """Something was written, so that a commit has an outcome worth settling."""
        ...

    def mark(self, key: bytes, value: bytes) -> None:
        """Set `key`, and conflict with whoever writes it before the commit. Nothing but `commit` follows."""
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
        begin: makes a fresh attempt: the kind of its transaction, and the seconds it has to live (None: `timeout_s`).
        begin_background: the same for what gives way to all else; None: there is no such thing.
        done_prefix: where `done` keys are kept.
        seal: refuses what writes to a sealed store; None: nothing seals it.
        timeout_s: limit for one `transact` or `read`, retries and all.
        sleep: waits between attempts.
        rng: jitter, and nothing else.
    """

    def __init__(
        self,
        begin: Callable[[bytes, float | None], Attempt],
        clock: Clock,
        *,
        done_prefix: bytes,
        timeout_s: float,
        begin_background: Callable[[bytes, float | None], Attempt] | None = None,
        seal: SealCheck | None = None,
        faults: Faults | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        rng: random.Random | None = None,
        write_id: Callable[[], bytes] | None = None,
    ) -> None:
        self._begin = begin
        self._begin_background = begin_background or begin
        self._clock = clock
        self._done_prefix = done_prefix
        self._seal = seal
        self._timeout_ns = int(timeout_s * 1e9)
        self._faults = faults
        self._sleep = sleep
        self._rng = rng or random.Random()
        self._write_id = write_id or WriteIds().next
        self._recent = 0, 0
        self._anchor = 0, -ANCHOR_NS  # a version of the cluster's, and when it was the latest
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
            kind = kind_of(fn)
            seal = None if past_seal else self._seal
            started_ns = self._clock.monotonic_ns()
            retries: Retries | None = None
            while True:
                tr = self._begin(kind, None if retries is None else retries.left_s())
                done_key = b""
                try:
                    if self._faults is not None:
                        await self._suffer_read(self._faults)
                    function = fn(tr, *args)
                    result: T = await (_watched(function, tr) if type(function) is CoroutineType else _own(function))
                    if tr.mutates:
                        if seal is not None:
                            await seal.check(tr, started_ns, again=retries is not None)
                        minute = await self._minute(tr)
                        done_key = self._done_key(minute)
                        tr.mark(done_key, COMMITTED)
                    await (tr.commit() if self._faults is None else self._commit_faultily(tr, self._faults))
                except RetryableError as error:
                    failure: EngineError = error
                except CommitUnknown as error:
                    if not done_key:  # nothing was written, so nothing is owed
                        return result
                    if retries is None:
                        retries = self._retries(started_ns)
                    if await self._was_committed(done_key, error, retries):
                        return result
                    failure = error
                else:
                    if done_key:
                        self._clear_old_minutes(minute)
                    return result
                finally:
                    tr.end()
                if retries is None:
                    retries = self._retries(started_ns)
                await self._sleep(retries.pause_s(failure))
        finally:
            self._leave()

    async def read(self, fn: Callable[..., Awaitable[T]], args: tuple[object, ...], *, max_age_ns: int = 0) -> T:
        """Run `fn(tr, *args)` on one snapshot, without a commit. See `Engine.read`."""
        self._running += 1
        try:
            kind = kind_of(fn)
            started_ns = self._clock.monotonic_ns()
            retries: Retries | None = None
            while True:
                tr = self._begin(kind, None if retries is None else retries.left_s())
                try:
                    if self._faults is not None:
                        await self._suffer_read(self._faults)
                    if max_age_ns:
                        # A retry asks anew: what was too old to read remains so.
                        return await self._read_recent(tr, fn, args, max_age_ns if retries is None else 0)
                    function = fn(tr, *args)
                    if type(function) is CoroutineType:
                        return await _watched(function, tr)  # type: ignore[no-any-return]
                    return await _own(function)
                except RetryableError as error:
                    failure = error
                finally:
                    tr.end()
                if retries is None:
                    retries = self._retries(started_ns)
                await self._sleep(retries.pause_s(failure))
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

    async def _read_recent(
        self, tr: Attempt, fn: Callable[..., Awaitable[T]], args: tuple[object, ...], max_age_ns: int
    ) -> T:
        now_ns = self._clock.monotonic_ns()
        version, asked_ns = self._recent
        fresh = not asked_ns or now_ns - asked_ns > max_age_ns
        if not fresh:
            tr.reuse(version)
        function = fn(tr, *args)
        result: T = await (_watched(function, tr) if type(function) is CoroutineType else _own(function))
        if fresh:
            # The version was asked for after `now_ns`, so what had been committed by then is in it.
            version = await tr.read_version()
            self._recent = max((version, now_ns), self._recent)
        return result

    async def _commit_faultily(self, tr: Attempt, faults: Faults) -> None:
        faults.check_reachable()
        if faults.commit_delay_s:
            await self._sleep(faults.commit_delay_s)
        fault = faults.commit_fault() if tr.mutates else None
        if fault is None or fault.committed:
            await tr.commit()
        if fault is not None:
            raise fault.error

    async def _suffer_read(self, faults: Faults) -> None:
        faults.check_reachable()
        if faults.read_delay_s:
            await self._sleep(faults.read_delay_s)
            faults.check_reachable()
        if (error := faults.read_fault()) is not None:
            raise error

    async def _was_committed(self, done_key: bytes, unknown: CommitUnknown, retries: Retries) -> bool:
        """Whether the attempt that wrote `done_key` was committed; if not, it never will be.

        Raises:
            CommitUnknown: it could not be found out in time.
        """
        retries = retries.anew()
        while True:
            tr: Attempt | None = None
            try:
                tr = self._begin(b"settle", retries.left_s())
                looked, version = tr.get(done_key), tr.read_version()
                mark = await looked
                if mark is not None:
                    return self._settled(unknown, mark == COMMITTED)
                if self._minute_of(done_key) < await version // VERSIONS_PER_MINUTE - KEEP_MINUTES:
                    raise EngineError("it is so long ago that its mark may have been cleared")
                tr.set(done_key, ABANDONED)
                await (tr.commit() if self._faults is None else self._commit_faultily(tr, self._faults))
                return self._settled(unknown, False)
            except (RetryableError, CommitUnknown) as error:
                # Unknown here is harmless: the next look finds the mark, or makes it.
                failure: EngineError = error
            except EngineError as error:
                raise unknown from error
            finally:
                if tr is not None:
                    tr.end()
            try:
                pause_s = retries.pause_s(failure)
            except EngineError as error:
                raise unknown from error
            await self._sleep(pause_s)

    def _settled(self, unknown: CommitUnknown, committed: bool) -> bool:
        log.info("unknown commit (%d) settled: %s", unknown.number, "committed" if committed else "abandoned")
        return committed

    def _retries(self, started_ns: int) -> Retries:
        return Retries(self._clock, started_ns + self._timeout_ns, self._rng)

    async def _minute(self, tr: Attempt) -> int:
        """The cluster's minute, within two or so: counted on from one of its versions for a while, for to ask each
        transaction costs as much as to commit it."""
        now_ns = self._clock.monotonic_ns()
        version, asked_ns = self._anchor
        if now_ns - asked_ns >= ANCHOR_NS:
            # Known by now, or the commit would ask for it; five seconds later it is too old for one.
            version, asked_ns = self._anchor = await tr.read_version(), now_ns
        return (version + (now_ns - asked_ns) // 1000) // VERSIONS_PER_MINUTE

    def _done_key(self, minute: int) -> bytes:
        write_id = self._write_id()
        return self._minute_prefix(write_id[0] % SHARDS, minute) + write_id

    def _minute_prefix(self, shard: int, minute: int) -> bytes:
        return self._done_prefix + (shard << 40 | minute).to_bytes(6, "big")

    def _minute_of(self, done_key: bytes) -> int:
        start = len(self._done_prefix) + 1
        return int.from_bytes(done_key[start : start + 5], "big")

    def _clear_old_minutes(self, minute: int) -> None:
        if minute < self._clear_from_minute or (self._clearing is not None and not self._clearing.done()):
            return
        self._clear_from_minute = minute + CLEAR_EVERY_MINUTES
        self._clearing = asyncio.get_running_loop().create_task(self._clear_before(minute), name="clear done keys")

    async def _clear_before(self, minute: int) -> None:
        tr = self._begin_background(b"clear done keys", None)
        try:
            kept = max(minute - KEEP_MINUTES, 0)
            for shard in range(SHARDS):
                tr.clear_range(self._minute_prefix(shard, 0), self._minute_prefix(shard, kept))
            await tr.commit()
        except EngineError as error:
            log.info("clearing of settled transactions left to the next time: %s", error)
        finally:
            tr.end()


class Retries:
    """How often and until when one call is tried again."""

    __slots__ = ("_attempts", "_clock", "_deadline_ns", "_longest_s", "_rng")

    def __init__(self, clock: Clock, deadline_ns: int, rng: random.Random) -> None:
        self._clock = clock
        self._deadline_ns = deadline_ns
        self._rng = rng
        self._attempts = 1
        self._longest_s = FIRST_BACKOFF_S

    def anew(self) -> Retries:
        """The same time limit, counted and backed off from the start."""
        return Retries(self._clock, self._deadline_ns, self._rng)

    def left_s(self) -> float:
        """The time left, at least a millisecond."""
        return max((self._deadline_ns - self._clock.monotonic_ns()) / 1e9, 0.001)

    def pause_s(self, failure: EngineError) -> float:
        """How long to wait before the next attempt; raises `failure` if there is to be none."""
        pause_s = self._longest_s * self._rng.random()
        self._longest_s = min(self._longest_s * BACKOFF_GROWTH, LONGEST_BACKOFF_S)
        self._attempts += 1
        if self._attempts > ATTEMPTS or self.left_s() <= pause_s:
            raise failure
        return pause_s


class WriteIds:
    """Ids that no two transactions share: random ones would cost a system call each."""

    def __init__(self) -> None:
        self._of_runner = os.urandom(12)
        self._counter = itertools.count()

    def next(self) -> bytes:
        """16 bytes; the first spreads evenly."""
        number = next(self._counter) & 0xFFFFFFFF
        return bytes((number & 0xFF,)) + number.to_bytes(4, "big") + self._of_runner[1:]


_kinds: dict[str, bytes] = {}


def kind_of(fn: Callable[..., object]) -> bytes:
    """What the cluster's tools show a transaction as: its function's name, at most 16 bytes."""
    name = getattr(fn, "__name__", "")
    kind = _kinds.get(name)
    if kind is None:
        kind = name.strip("_<>").encode("ascii", "replace")[:KIND_BYTES] or b"transaction"
        if len(_kinds) < KINDS:
            _kinds[name] = kind
    return kind


async def _own(awaitable: Awaitable[T]) -> T:
    if not isinstance(awaitable, Awaitable):
        raise TransactionMisuse(f"a transaction function returned {type(awaitable).__name__}, not an awaitable")
    return await awaitable


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
