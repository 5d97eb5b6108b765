"""An origin whose failures are bounded: the wrapper that every driver is used through.

Guarantees, whatever the driver and the store behind it do:

- A call ends, well or with an `OriginError`, once the origin has been waited for as long as `Limits` says.
- `read` gives out exactly the bytes that were asked for, each once, or an error; where it fails in the middle it goes
  on from there, of the same version. Nothing is given out behind the range, and the last piece only when the answer
  has ended with it. A page of `list` has keys that were asked for, each once and in order.
- `OriginUnavailable` and `OriginBroken` are tried again, after full jitter over an exponential back-off or as long as
  the origin asks, and while few others are: retries are a share of calls. The others are answers.
- A read, or `head`, of which the first byte is late for this origin (p99) is sent a second time; whichever answers
  first is taken, the other one is closed. These too are a share of calls (Dean and Barroso, The Tail at Scale, 2013).
- An origin that keeps failing is left alone for a while: calls fail at once, and say for how long.
- A bounded number of requests run at once. A reader that takes its time keeps its place meanwhile.

All of it is of one process: each learns by itself that an origin is gone.

Not here: remembering answers, and checking bytes against digests.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from random import Random
from typing import Any, Final, TypeVar, cast

from .breaker import Breaker, Permit, State
from .budget import Budget
from .errors import (
    OriginBroken,
    OriginChanged,
    OriginError,
    OriginMissing,
    OriginRefused,
    OriginUnavailable,
)
from .latency import Quantile
from .protocol import Attributes, Buffer, Origin, OriginObject, OriginPage, Written

RETRIES: Final = 0.2
"""Retries for each call, beyond RETRIES_AT_LEAST: what Finagle allows, and twice what one failure in ten asks for."""
RETRIES_AT_LEAST: Final = 10.0
HEDGES: Final = 0.01
"""Second requests for each call: a hundredth is what p99 promises, more is an origin that became slow altogether, or a
line that is full, and then they cost what they are to save."""
HEDGES_AT_LEAST: Final = 1.0
HEDGED_AFTER_S: Final = 0.01
"""And no sooner: a busy event loop looks like a slow origin, and there is nothing to gain."""
BACK_OFF_S: Final = 0.1
LONGEST_BACK_OFF_S: Final = 5.0
PROBED_S: Final = 1.0
"""How long a request waits for what the probe of a half-open breaker finds, before it is told to come again."""

_REPLAYED: Final = 1024 * 1024
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How patient to be with an origin.

    Attributes:
        timeout_s: How long a call may wait for it in all, its tries and the pauses between them together; reads and
            writes have the time that their bytes take at `slowest` beside that.
        silence_s: How long a try may go without an answer or the next bytes, before it is given up.
        slowest: Bytes a second; a try that is `silence_s` behind is given up, and tried again from where it was.
        attempts: Tries of a call at most.
        concurrency: Requests under way at once; who wants more waits.
    """

    timeout_s: float = 30.0
    silence_s: float = 5.0
    slowest: int = 64 * 1024
    attempts: int = 4
    concurrency: int = 64


@dataclass(slots=True, kw_only=True)
class Statistics:
    """What one process has to do with an origin, since it began. All but the last three only grow.

    Attributes:
        calls: Of the methods of `Origin`.
        requests: Sent by them: first tries, retries and hedges.
        missing, changed, refused, unavailable, broken: Requests that ended so.
        retries, retries_denied: Requests tried again, and those that were not because too many others are.
        hedges, hedges_won, hedges_denied: Second requests; those that were faster; those that too many others forbade.
        opened: How often the breaker has opened.
        left_alone: Calls that failed unasked because it was open.
        bytes_read, bytes_written: Given out, and written by puts that went well.
        running, waiting: Requests under way, and those that wait for one to end.
        state: Of the breaker.
    """

    calls: int = 0
    requests: int = 0
    missing: int = 0
    changed: int = 0
    refused: int = 0
    unavailable: int = 0
    broken: int = 0
    retries: int = 0
    retries_denied: int = 0
    hedges: int = 0
    hedges_won: int = 0
    hedges_denied: int = 0
    opened: int = 0
    left_alone: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    running: int = 0
    waiting: int = 0
    state: State = "closed"


class Resilient:
    """Args:
    origin: A driver, which tries nothing again by itself. It is closed with this.
    breaker, retries, hedges, late: Other than the usual ones: `late` is of seconds to the first byte.
    random: Of the jitter.
    """

    def __init__(
        self,
        origin: Origin,
        limits: Limits | None = None,
        *,
        breaker: Breaker | None = None,
        retries: Budget | None = None,
        hedges: Budget | None = None,
        late: Quantile | None = None,
        random: Random | None = None,
    ) -> None:
        self.name = origin.name
        self.limits: Final = limits or Limits()
        self._origin = origin
        self._breaker = breaker or Breaker()
        self._retries = retries or Budget(RETRIES, RETRIES_AT_LEAST)
        self._hedges = hedges or Budget(HEDGES, HEDGES_AT_LEAST)
        # A hundred samples are the fewest of which one may be beyond the p99.
        self._late = late or Quantile(0.99, window=1000, least=100)
        self._random = random or Random()
        self._places = asyncio.Semaphore(self.limits.concurrency)
        self._probed = asyncio.Event()  # another one for each probe
        self._counts = Statistics()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def loses(self) -> frozenset[str]:
        return self._origin.loses

    def statistics(self) -> Statistics:
        """A snapshot."""
        return replace(self._counts, opened=self._breaker.opened, state=self._breaker.state(_now_s()))

    # -- What an origin does ---------------------------------------------------------------------------------------

    async def head(self, key: str) -> OriginObject:
        until_s = self._called()

        async def ask() -> OriginObject:
            _, found = await self._raced(begin, until_s)
            return found

        async def begin(attempt: _Attempt) -> OriginObject:
            try:
                return await attempt.answer(self._origin.head(key), until_s)
            finally:
                attempt.leave()

        return await self._tried(ask, until_s)

    async def read(self, key: str, start: int, stop: int, *, size: int, etag: str) -> AsyncIterator[Buffer]:
        until_s = self._called(stop - start)
        tries = 0
        while start < stop:
            tries += 1
            try:
                begin = partial(self._begun, key, start, stop, size, etag, until_s)
                attempt, body = await self._raced(begin, until_s)
                try:
                    while start < stop:
                        piece = await body.piece(until_s)
                        start += len(piece)
                        self._counts.bytes_read += len(piece)
                        given_s = _now_s()
                        yield piece
                        until_s += _now_s() - given_s  # the reader's time is not the origin's
                finally:
                    self._let_go(attempt)
            except (OriginUnavailable, OriginBroken) as error:
                await self._pause(error, tries, until_s)

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> OriginPage:
        async def listed() -> OriginPage:
            page = await self._origin.list(prefix, after=after, delimiter=delimiter, limit=limit)
            _check_page(self.name, page, prefix, after, limit)
            return page

        until_s = self._called()
        return await self._tried(lambda: self._asked(listed, until_s), until_s)

    async def put(self, key: str, pieces: AsyncIterator[Buffer], size: int, attributes: Attributes) -> Written:
        """As `Origin.put`; tried again only while what was taken of `pieces` is at hand, which is its first MiB."""
        until_s = self._called(size)
        replayed = _Replayed(pieces)

        async def write() -> Written:
            async with aclosing(replayed.from_start()) as again:
                try:
                    return await self._origin.put(key, again, size, attributes)
                except OriginError as error:
                    if error is replayed.failure:  # another origin's, then, which the bytes were to come from
                        raise _NoBytes from error
                    raise

        try:
            written = await self._tried(lambda: self._asked(write, until_s, patient=True), until_s, replayed)
        except _NoBytes:
            assert replayed.failure is not None
            raise replayed.failure from None
        self._counts.bytes_written += size
        return written

    async def delete(self, key: str) -> None:
        until_s = self._called()
        await self._tried(lambda: self._asked(lambda: self._origin.delete(key), until_s), until_s)

    async def close(self) -> None:
        await self._origin.close()
        await asyncio.gather(*self._closing)

    # -- Trying again ----------------------------------------------------------------------------------------------

    def _called(self, size: int = 0) -> float:
        """There is a call; until when it may wait, on the loop's clock."""
        self._counts.calls += 1
        self._retries.earn()
        self._hedges.earn()
        return _now_s() + self.limits.timeout_s + size / self.limits.slowest

    async def _tried(self, ask: Callable[[], Awaitable[_T]], until_s: float, replayed: _Replayed | None = None) -> _T:
        tries = 0
        while True:
            tries += 1
            try:
                return await ask()
            except (OriginUnavailable, OriginBroken) as error:
                if replayed is not None and not replayed.at_hand:
                    raise
                await self._pause(error, tries, until_s)

    async def _pause(self, error: OriginUnavailable | OriginBroken, tries: int, until_s: float) -> None:
        """Wait before the next try; raises `error` where there is to be none."""
        now_s = _now_s()
        left_alone_s = self._breaker.wait_s(now_s)
        asked_s = 0.0
        if isinstance(error, OriginUnavailable):
            asked_s = error.retry_after_s
            error.retry_after_s = max(asked_s, left_alone_s)
        # Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        back_off_s = self._random.uniform(0.0, min(LONGEST_BACK_OFF_S, BACK_OFF_S * 2.0 ** (tries - 1)))
        pause_s = max(back_off_s, asked_s)
        final = isinstance(error, _NotAsked | _Overlong) or left_alone_s > 0
        if final or tries >= self.limits.attempts or now_s + pause_s >= until_s:
            raise error
        if not self._retries.spend():
            self._counts.retries_denied += 1
            raise error
        self._counts.retries += 1
        await asyncio.sleep(pause_s)

    # -- One try ---------------------------------------------------------------------------------------------------

    async def _asked(self, call: Callable[[], Awaitable[_T]], until_s: float, *, patient: bool = False) -> _T:
        attempt = await self._admit(until_s)
        try:
            return await attempt.answer(call(), until_s, patient=patient)
        finally:
            attempt.leave()

    async def _begun(
        self, key: str, start: int, stop: int, size: int, etag: str, until_s: float, attempt: _Attempt
    ) -> _Body:
        pieces = self._origin.read(key, start, stop, size=size, etag=etag)
        body = _Body(attempt, pieces, stop - start)
        await body.begin(until_s)
        return body

    async def _raced(self, begin: Callable[[_Attempt], Coroutine[Any, Any, _T]], until_s: float) -> tuple[_Attempt, _T]:
        """The first answer of one request, or of two where the first one's is late; its attempt is the caller's to let
        go."""
        first = await self._admit(until_s, timed=True)
        attempts = {asyncio.create_task(begin(first)): first}
        won: asyncio.Task[_T] | None = None
        try:
            late_s = self._late.value
            if late_s is not None:
                done, _ = await asyncio.wait(attempts, timeout=max(late_s, HEDGED_AFTER_S))
                if not done and (second := await self._hedge()) is not None:
                    attempts[asyncio.create_task(begin(second))] = second
            pending = set(attempts)
            while True:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                told = next((task for task in done if not pending or not _failed(task)), None)
                if told is not None:
                    answer = told.result()
                    won = told
                    break
        finally:
            for task, attempt in attempts.items():
                if task is not won:
                    self._let_go(attempt, task)
        if attempts[won] is not first:
            self._counts.hedges_won += 1
            self._late.add(_now_s() - first.began_s)  # it would have taken that long at least
        return attempts[won], answer

    async def _admit(self, until_s: float, *, timed: bool = False) -> _Attempt:
        """A place, and the breaker's permit. What comes while a probe is out waits a moment for what that finds."""
        probed_s = min(_now_s() + PROBED_S, until_s)
        while True:
            await self._wait_for_probe(probed_s)
            self._check_open()
            self._counts.waiting += 1
            try:
                async with asyncio.timeout_at(until_s):
                    await self._places.acquire()
            except TimeoutError:
                told = f"{self.name}: {self.limits.concurrency} requests are under way, and none has ended in time"
                raise _NotAsked(told, 1.0) from None
            finally:
                self._counts.waiting -= 1
            if self._breaker.wait_s(_now_s()) <= 0:
                return self._admitted(timed)
            self._places.release()

    async def _wait_for_probe(self, until_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until_s):
                while self._breaker.probing:
                    await self._probed.wait()

    def _tell(self) -> None:
        """Wake who waits for a probe, once it is none any more."""
        if not self._breaker.probing:
            self._probed.set()
            self._probed = asyncio.Event()

    def _check_open(self) -> None:
        wait_s = self._breaker.wait_s(_now_s())
        if wait_s > 0:
            self._counts.left_alone += 1
            raise _NotAsked(f"{self.name} keeps failing, and is left alone for {wait_s:.1f} s", wait_s)

    def _admitted(self, timed: bool) -> _Attempt:
        now_s = _now_s()
        permit = self._breaker.admit(now_s)
        assert permit is not None  # it said so at this very moment
        self._counts.requests += 1
        self._counts.running += 1
        return _Attempt(self, permit, now_s, timed)

    async def _hedge(self) -> _Attempt | None:
        """A second request, if there is room for one and it is not one too many."""
        if self._places.locked() or self._breaker.state(_now_s()) != "closed":
            return None
        if not self._hedges.spend():
            self._counts.hedges_denied += 1
            return None
        await self._places.acquire()  # at once
        self._counts.hedges += 1
        return self._admitted(timed=True)

    def _let_go(self, attempt: _Attempt, task: asyncio.Task[Any] | None = None) -> None:
        """Close a request that nobody waits for any more; what that waits for, it waits for by itself."""

        async def close() -> None:
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
                _failed(task)
            await attempt.close()

        closing = asyncio.create_task(close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


class _NotAsked(OriginUnavailable):
    """Nothing was sent, and nothing will be by trying again at once."""


class _NoBytes(Exception):
    """What was to be written failed, and not the origin."""


class _Overlong(OriginBroken):
    """More bytes than asked for, when some had been given out: which ones were right?"""


class _Attempt:
    """A request: its place among those that run at once and its permit, until it is over."""

    def __init__(self, origin: Resilient, permit: Permit, began_s: float, timed: bool) -> None:
        self._origin = origin
        self._permit: Permit | None = permit
        self._placed = True
        self._timed = timed  # whether its first byte is still to be timed
        self.began_s: Final = began_s
        self.pieces: AsyncIterator[Buffer] | None = None
        """What is to be closed."""

    @property
    def name(self) -> str:
        return self._origin.name

    @property
    def limits(self) -> Limits:
        return self._origin.limits

    async def answer(self, answer: Awaitable[_T], until_s: float, *, patient: bool = False) -> _T:
        """A whole answer. `patient`: one whose silence is no sign, for a body is on its way, or joined there."""
        bound_s = until_s if patient else min(until_s, _now_s() + self.limits.silence_s)
        try:
            async with self.within(bound_s):
                result = await answer
        except BaseException as error:
            self.over(error)
            raise
        self.over(None)
        return result

    @contextlib.asynccontextmanager
    async def within(self, bound_s: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout_at(bound_s):
                yield
        except TimeoutError as error:
            took_s = _now_s() - self.began_s
            raise OriginUnavailable(f"{self.name} was asked {took_s:.1f} s ago, and is silent or too slow") from error

    def answers(self) -> None:
        """The origin begins to answer."""
        if self._timed:
            self._timed = False
            self._origin._late.add(_now_s() - self.began_s)
        if self._permit is not None:
            self._origin._breaker.answered(self._permit)
            self._origin._tell()

    def over(self, error: BaseException | None) -> None:
        """What its end says of the origin; said once."""
        if self._permit is None:
            return
        counts, breaker = self._origin._counts, self._origin._breaker
        match error:
            case OriginUnavailable():
                counts.unavailable += 1
                breaker.failed(self._permit, _now_s(), error.retry_after_s)
            case OriginBroken():
                counts.broken += 1
                breaker.failed(self._permit, _now_s())
            case None | OriginMissing() | OriginChanged() | OriginRefused():
                counts.missing += isinstance(error, OriginMissing)
                counts.changed += isinstance(error, OriginChanged)
                counts.refused += isinstance(error, OriginRefused)
                self.answers()
                breaker.succeeded(self._permit)
            case _:
                breaker.abandoned(self._permit)
        self._permit = None
        self._origin._tell()

    def leave(self) -> None:
        """Another one may run. Said as often as one likes."""
        self.over(asyncio.CancelledError())
        if self._placed:
            self._placed = False
            self._origin._counts.running -= 1
            self._origin._places.release()

    async def close(self) -> None:
        try:
            if self.pieces is not None:
                with contextlib.suppress(OriginError, TimeoutError):
                    async with asyncio.timeout(self.limits.silence_s):
                        await cast("AsyncGenerator[Buffer, None]", self.pieces).aclose()
        finally:
            self.leave()


class _Body:
    """The bytes of an answer, counted and waited for: `left` of them are to come."""

    def __init__(self, attempt: _Attempt, pieces: AsyncIterator[Buffer], left: int) -> None:
        self._attempt = attempt
        self._pieces = attempt.pieces = pieces
        self._left = left
        self._given = 0
        self._waited_s = 0.0
        self._first: Buffer = b""

    async def begin(self, until_s: float) -> None:
        """Wait for the first byte."""
        self._first = await self._next(until_s)
        self._attempt.answers()

    async def piece(self, until_s: float) -> Buffer:
        """The next bytes; there are some to come."""
        attempt = self._attempt
        piece, self._first = self._first or await self._next(until_s), b""
        try:
            if not piece:
                raise OriginBroken(f"{attempt.name} ends {self._left} bytes early")
            if len(piece) == self._left:
                piece = bytes(piece)  # the driver may use it again once the next one is asked for
                beyond = await self._next(until_s)
            else:
                beyond = piece[self._left :]
            if beyond:
                told = f"{attempt.name} goes on behind the range that it was asked for"
                raise _Overlong(told) if self._given else OriginBroken(told)
        except OriginBroken as error:
            attempt.over(error)
            raise
        self._left -= len(piece)
        self._given += len(piece)
        if not self._left:
            attempt.over(None)
        return piece

    async def _next(self, until_s: float) -> Buffer:
        """b"": the end."""
        limits = self._attempt.limits
        began_s = _now_s()
        behind_s = max(0.0, self._waited_s - self._given / limits.slowest)
        try:
            async with self._attempt.within(min(until_s, began_s + limits.silence_s - behind_s)):
                async for piece in self._pieces:
                    if piece:
                        return piece
        except BaseException as error:
            self._attempt.over(error)
            raise
        finally:
            self._waited_s += _now_s() - began_s
        return b""


class _Replayed:
    """Pieces that can be given once more from the start, as long as few were taken."""

    def __init__(self, pieces: AsyncIterator[Buffer]) -> None:
        self._pieces = pieces
        self._kept: list[bytes] = []
        self._room = _REPLAYED
        self.failure: BaseException | None = None
        """What they raised."""

    @property
    def at_hand(self) -> bool:
        """Whether nothing of what was taken is gone."""
        return self._room >= 0 and self.failure is None

    async def from_start(self) -> AsyncGenerator[Buffer, None]:
        for piece in self._kept:
            yield piece
        while True:
            try:
                taken = await anext(self._pieces)
            except StopAsyncIteration:
                return
            except BaseException as error:
                self.failure = error
                raise
            self._room -= len(taken)
            if self.at_hand:
                self._kept.append(bytes(taken))
            else:
                self._kept.clear()
            yield taken


def _check_page(name: str, page: OriginPage, prefix: str, after: str, limit: int) -> None:
    """Raises OriginBroken for a page that was not asked for, or that is gone on after with itself."""
    for listed in ([entry.key for entry in page.entries], list(page.prefixes)):
        # Code points and UTF-8 have the same order.
        in_order = all(one < other for one, other in pairwise(listed))
        if not in_order or not all(key.startswith(prefix) for key in listed):
            raise OriginBroken(f"{name} lists other keys than those that were asked for, or not in order")
    if len(page.entries) + len(page.prefixes) > limit or (page.after and page.after == after):
        raise OriginBroken(f"{name} lists more than was asked for, or the same again and again")


def _failed(task: asyncio.Task[Any]) -> bool:
    """Whether a task that is done says nothing but that the origin failed."""
    return task.cancelled() or isinstance(task.exception(), OriginUnavailable | OriginBroken)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
