"""Who may have a request in flight, so that one key's flood is that key's trouble.

Two things are decided for each request, both per process and without I/O:

- *Whether it is let in at all.* Bounds on requests in flight, over all and per key, and on memory for bodies. A
  key may not hold more than its share of what is left when others are about. Beyond a bound: 503 SlowDown with
  Retry-After, before anything of the body is read. Bodies that have to be here before their signature can be checked
  are charged to no key, for anybody can write a key's id into a request: they have a small share of their own.
- *When its turn comes.* While other keys are active too, a key runs one small request at a time, and starts no more
  than one in one round of the event loop; its others wait in line, which costs nothing, instead of standing between
  another key's request and the processor. A key that is alone never waits. A request that takes longer than a quick one
  has to, for the database is far or its body trickles in, loses its turn and runs on without: so a key always starts
  some hundreds a second. Large bodies take no turn: their pace is the network's.

What this does not do: count bytes per second, or know buckets. The decisions are a pure function of the calls made
and the clock given; only `async with` touches the event loop, to wait for the turn.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tigrislike.config import Settings
from tigrislike.s3api.errors import S3Error

_BODY_MEMORY_BYTES = 7 * 512 * 1024  # what one upload holds at most: the receive buffer and the block writer's units
_LARGE_BYTES = 256 * 1024
_TURNS = 1  # small requests of a key that run at once while keys compete
_TURN_S = 0.002  # how long a request may keep others of its key waiting: not for a distant database, nor a slow body
_STARTS = 1  # of a key in one round of the event loop while keys compete; a small read runs to its end at once
_RECENT_S = 5.0  # a key counts as active for this long after its last request
_UNVERIFIED = "/"  # stands for whoever is not known yet; no key's id has a slash
_UNVERIFIED_PART = 8  # they may have this part of everything, 1/8, so that every key keeps its service
_RETRY_AFTER_S = "1"


class Refused(S3Error):
    """SlowDown, and which `bound` was met: ``requests``, those of one ``key``, or ``memory`` for bodies."""

    def __init__(self, bound: str) -> None:
        super().__init__("SlowDown", headers={"retry-after": _RETRY_AFTER_S})
        self.bound = bound


class Admission:
    """The admission state of one process.

    Args:
        max_requests: in flight over all keys, waiting ones included.
        max_requests_per_key: in flight for one key, waiting ones included.
        max_body_memory_bytes: for request bodies, over all keys; one key may have half of it.
        now_s: a monotonic clock.
    """

    def __init__(
        self,
        max_requests: int,
        max_requests_per_key: int,
        max_body_memory_bytes: int,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_requests = max_requests
        self.max_requests_per_key = max_requests_per_key
        self.max_body_memory_bytes = max_body_memory_bytes
        self.requests = 0
        self.body_memory_bytes = 0
        self._now_s = now_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._counting = False  # whether `_round` is scheduled
        self._keys: dict[str, _Key] = {}  # those with requests in flight, or started in this round
        self._recent: dict[str, float] = {}  # key -> time of its last request, oldest first

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(settings.max_requests, settings.max_requests_per_key, settings.max_body_memory_bytes)

    def admit(self, key_id: str, content_length: int) -> Permit:
        """Let a request in.

        Args:
            key_id: whose it is, proven by a signature; "" is everyone anonymous together.
            content_length: bytes of its body; negative when unknown.

        Returns:
            A permit to hold while the request runs: `async with` waits for its turn, `with` takes none.

        Raises:
            Refused.
        """
        share = min(self.max_requests_per_key, max(1, self.max_requests // self._touch(key_id)))
        return self._let_in(key_id, content_length, share, self.max_body_memory_bytes // 2)

    def admit_unverified(self, content_length: int) -> Permit:
        """Let in a body that has to be here before its signature can be checked; no key is charged or becomes active.

        Args:
            content_length: as for `admit`.

        Returns:
            A permit to hold, by `with`, until the signature has been checked.

        Raises:
            Refused: also where others that are not verified yet hold the share of all of them.
        """
        share = max(1, self.max_requests // _UNVERIFIED_PART)
        return self._let_in(_UNVERIFIED, content_length, share, self.max_body_memory_bytes // _UNVERIFIED_PART)

    def _let_in(self, key_id: str, content_length: int, share: int, memory_share: int) -> Permit:
        key = self._keys.get(key_id)
        if key is None:
            key = self._keys[key_id] = _Key()
        memory = _BODY_MEMORY_BYTES if content_length < 0 else min(content_length, _BODY_MEMORY_BYTES)
        # A body always fits when nobody else's does: else a small bound would refuse it for ever.
        memory_full = memory and (
            (key.memory_bytes and key.memory_bytes + memory > memory_share)
            or (self.body_memory_bytes and self.body_memory_bytes + memory > self.max_body_memory_bytes)
        )
        if self.requests >= self.max_requests or key.requests >= share or memory_full:
            if not key.requests:
                del self._keys[key_id]
            bound = "requests" if self.requests >= self.max_requests else "key" if key.requests >= share else "memory"
            raise Refused(bound)
        key.requests += 1
        key.memory_bytes += memory
        self.requests += 1
        self.body_memory_bytes += memory
        return Permit(self, key_id, key, memory, takes_turn=0 <= content_length <= _LARGE_BYTES)

    def _touch(self, key_id: str) -> int:
        """Note a key's activity; the number of keys active now, at least 1 and at most `max_requests`.

        More would change nobody's share, which is one request by then.
        """
        now_s = self._now_s()
        recent = self._recent
        recent.pop(key_id, None)
        recent[key_id] = now_s
        while True:
            oldest = next(iter(recent))
            if recent[oldest] >= now_s - _RECENT_S and len(recent) <= self.max_requests:
                return len(recent)
            del recent[oldest]

    def _turns(self) -> int:
        """How many small requests a key may run at once now."""
        return self.max_requests if len(self._recent) <= 1 else _TURNS

    def _take_turn(self, permit: Permit) -> bool:
        key = permit._key
        if self._may_start(key):
            self._start(permit)
            return True
        key.waiting.append(permit)
        return False

    def _watch(self, key: _Key, loop: asyncio.AbstractEventLoop) -> None:
        """See that `key`'s line moves on even where a request keeps its turn for long."""
        if key.timer is None:
            key.timer = loop.call_later(_TURN_S, self._take_back, key, loop)

    def _take_back(self, key: _Key, loop: asyncio.AbstractEventLoop) -> None:
        key.timer = None
        if not key.waiting:
            return
        overdue = loop.time() - _TURN_S
        for permit in [permit for permit in key.running if permit._began_s <= overdue]:
            key.running.remove(permit)
        self._start_waiting(key)
        if key.started:
            self.count_rounds(loop)
        if key.waiting:
            self._watch(key, loop)

    def _may_start(self, key: _Key) -> bool:
        if len(key.running) >= self._turns():
            return False
        return key.started < _STARTS or len(self._recent) <= 1

    def _start(self, permit: Permit) -> None:
        permit._key.running.add(permit)
        permit._key.started += len(self._recent) > 1  # a key that is alone is not counted
        if self._loop is not None:
            permit._began_s = self._loop.time()

    def next_round(self) -> bool:
        """A round of the event loop is over: let every key start some more.

        Returns:
            Whether anything started, so that the next round has to be counted too. Where nothing did, whoever is
            still waiting waits for a request to end, not for a round.
        """
        started = False
        for key_id, key in list(self._keys.items()):
            key.started = 0
            self._start_waiting(key)
            if key.started:
                started = True
            elif not key.requests:
                del self._keys[key_id]
        return started

    def _start_waiting(self, key: _Key) -> None:
        while key.waiting and self._may_start(key):
            following = key.waiting.popleft()
            self._start(following)
            following._wake()

    def count_rounds(self, loop: asyncio.AbstractEventLoop) -> None:
        """See that `next_round` is called once in every round of `loop`, for as long as it asks for."""
        self._loop = loop
        if not self._counting:
            self._counting = True
            loop.call_soon(self._round, loop)

    def _round(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.next_round():
            loop.call_soon(self._round, loop)
        else:
            self._counting = False

    def _release(self, permit: Permit) -> None:
        key = permit._key
        key.requests -= 1
        key.memory_bytes -= permit._memory_bytes
        self.requests -= 1
        self.body_memory_bytes -= permit._memory_bytes
        if permit in key.running:
            key.running.remove(permit)
        elif permit in key.waiting:
            key.waiting.remove(permit)
        self._start_waiting(key)
        if key.started and self._loop is not None:
            self.count_rounds(self._loop)
        # What has ended within one round, as a small read does, still counts in that round.
        if not key.requests and not key.started:
            del self._keys[permit._key_id]


class _Key:
    __slots__ = ("memory_bytes", "requests", "running", "started", "timer", "waiting")

    def __init__(self) -> None:
        self.requests = 0
        self.memory_bytes = 0
        self.running: set[Permit] = set()  # of the requests, those that have a turn
        self.started = 0  # in this round of the event loop
        self.timer: asyncio.TimerHandle | None = None  # when those with a turn have had it for long enough
        self.waiting: deque[Permit] = deque()  # invariant: not empty only while one runs or has started in this round


class Permit:
    """One admitted request. Use it once, as `async with` or `with`; leaving the block gives everything back."""

    __slots__ = ("_admission", "_began_s", "_key", "_key_id", "_memory_bytes", "_takes_turn", "_waiter")

    def __init__(self, admission: Admission, key_id: str, key: _Key, memory_bytes: int, *, takes_turn: bool) -> None:
        self._admission = admission
        self._key_id = key_id
        self._key = key
        self._memory_bytes = memory_bytes
        self._takes_turn = takes_turn
        self._began_s = 0.0
        self._waiter: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        if not self._takes_turn:
            return self
        admission = self._admission
        runs = admission._take_turn(self)
        if not runs or self._key.started:
            loop = asyncio.get_running_loop()
            admission.count_rounds(loop)
        if not runs:
            admission._watch(self._key, loop)
            self._waiter = loop.create_future()
            try:
                await self._waiter
            except BaseException:
                self._admission._release(self)
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission._release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission._release(self)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
