"""Consumers of the queue of work owed: they find zones with something due, and work it off.

As in QuiCK a consumer looks wide and picks at random, so that several seldom meet. It takes one batch of a zone at a
time, of a few zones at once, and looks again while it takes, so that no zone waits for the end of another, nor for its
beginning. Where two meet all the same, leases keep them apart (`metadata/leasing.py`).

Each task has a *lane*: so many of its items run at a time, and some may be claimed ahead, as many as recent runs make
likely to begin soon. All lanes share the consumer's workers, of which one is kept for each lane where nothing runs: so
neither what takes hours nor what comes in millions keeps anything else from being done. A zone of which much was just
claimed is left alone until little of that waits: the next claim is then worth its price, and meanwhile who looks for
zones is free for others. What waits in a lane all the same when its lease would have to be extended is given back, for
somebody else may have a worker for it.

Every run ends in one of four ways. *Done*: its effect and the item's end are one transaction. *Failed*: the item backs
off, with the reason. *Ambiguous*, as when a commit's outcome is unknown or the process dies: nothing is written, and
the item comes back when its lease runs out. *Given back*: the consumer was stopped, and the item is due at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from typing import Any, TypeVar

from tigrislike.metadata.kv import AmbiguousCommit, EngineUnavailable, RetryableError, StoreSealed
from tigrislike.metadata.kv.engine import Watch
from tigrislike.metadata.leasing import Batch
from tigrislike.metadata.queue import Queue
from tigrislike.metadata.records import Claimed, Item

from .tasks import NotNow, Task

T = TypeVar("T")

log = logging.getLogger("tigrislike.replication")

WORKERS = 160
"""Items worked on at a time, of all tasks: mostly they wait, for a disk or for another region."""

TAKES = 4
"""Zones taken from at the same time: to take from one is two transactions, which mostly wait."""

PATIENCE_S = 0.003
"""How long a consumer that takes from zones waits for that to end before it listens for bells: a look at every bell
meanwhile would cost more than the taking, where that is quick, and waiting for its end costs others, where it is not.
"""

UNKNOWN_CONCURRENCY = 1
"""For items of tasks that nobody here knows: all that is done is to say so."""

_SECOND = 1_000_000_000
_SOON_NS = _SECOND
_RELEASE_TIMEOUT_S = 2.0
"""How long a consumer that is stopped waits for the database to take its items back."""

Gate = Callable[[], AbstractContextManager[bool]]
"""Entered around each claim and each run; where it yields False, none is begun for now."""


@dataclass
class Worked:
    """What a consumer has done: runs by their task that were `done`, `failed` or `ambiguous`; `lost` counts leases that
    ran out before the end of a run, `given_back` the items of which the run never began, or was cut off by a stop."""

    done: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    ambiguous: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    given_back: Counter[str] = field(default_factory=Counter)


class Consumer:
    """Works off what is owed to `destinations`, by `tasks`.

    Args:
        destinations: of 16 bytes each; they take turns.
        workers: how many items run at a time, at most; never fewer than there are tasks.
        gate: says whether now is a time to work.
        on_done: told of each item that is done.
        sleep: waits for seconds, between extensions of leases; for tests, which do not.
    """

    def __init__(
        self,
        queue: Queue,
        destinations: Sequence[bytes],
        tasks: Sequence[Task],
        *,
        workers: int = WORKERS,
        gate: Gate = lambda: contextlib.nullcontext(True),
        on_done: Callable[[Item], None] = lambda _: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.worked = Worked()
        self._queue = queue
        self._destinations = list(destinations)
        self._lanes = {task.name: _Lane(task, queue.parameters.batch) for task in tasks}
        self._unknown = _Lane(None, queue.parameters.batch)
        self.workers = max(workers, len(self._lanes))
        self._gate = gate
        self._on_done = on_done
        self._sleep = sleep
        self._rng = rng or random.Random()
        self._leases = _Leases(queue)
        self._batch = queue.parameters.batch
        self._promised: Counter[str] = Counter()
        """Room that claims under way may use, by its task."""
        self._bells: dict[bytes, Watch] = {}
        self._left: dict[bytes, frozenset[str]] = {}
        """Zones where nothing was taken for want of room, with the tasks that they had items of, longest ago first."""
        self._passed: set[bytes] = set()
        """Zones that the last look passed by, for there is enough of them here."""
        self._forget_ns = 0
        self._taking: dict[bytes, asyncio.Task[Batch | None]] = {}
        """By the zone that is taken from."""
        self._took = False
        """Whether anything came of the last takes: then there may be more as soon as they have ended."""
        self._runs: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._wanted = asyncio.Event()
        """Set by the end of what something was left for, or that failed: of a run, or of taking from a zone."""
        self._failure: BaseException | None = None

    async def run(self) -> None:
        """Work until cancelled. Raises what the database raises when it cannot serve: call it again later."""
        async with self._at_work():
            while True:
                await self._until(self._may_take)
                await self._listen()  # before the look: what is enqueued after it rings
                self._wanted.clear()
                self._took = False
                vested, next_ns = await self._look()
                for zone in vested:
                    await self._until(self._may_take)
                    if self._is_useful(zone):
                        self._begin_taking(zone)
                if self._taking:
                    await asyncio.wait(list(self._taking.values()), timeout=PATIENCE_S)
                if vested or self._passed or self._taking:  # there may be more for us any moment
                    next_ns = self._queue.now_ns() + self._queue.parameters.poll_ns
                if not self._wanted.is_set():
                    await self._rest(self._pause_s(next_ns))

    async def drain(self) -> None:
        """Work off what is due now, zone after zone; returns when none is left. Raises as `run`."""
        early_ns = self._queue.parameters.poll_ns
        seen: set[bytes] = set()
        async with self._at_work():
            while True:
                looks = [self._queue.peek(destination, early_ns=early_ns) for destination in self._destinations]
                zones = set(chain.from_iterable([peeked.zones for peeked in await _all(looks)])) - seen
                if not zones:
                    return
                for zone in sorted(zones):
                    while batch := await self._take(zone, early_ns=early_ns):
                        await self._until(lambda: not self._runs)
                        if not (batch.claimed or batch.set_back):
                            break
                seen |= zones

    # --- being at work

    @contextlib.asynccontextmanager
    async def _at_work(self) -> AsyncIterator[None]:
        """Leases are kept meanwhile; in the end what is under way is stopped and given back."""
        keeping = asyncio.create_task(self._keep())
        try:
            yield
        except Exception:
            # What other takes are about to claim is to be given back too, and not to wait for the end of its lease.
            if self._taking:
                await asyncio.wait(list(self._taking.values()), timeout=_RELEASE_TIMEOUT_S)
            raise
        finally:
            for lane in self._every_lane:
                lane.clear()  # lest the end of a run begin another
            for bell in self._bells.values():
                bell.cancel()
            self._bells.clear()
            try:
                await _cancel(keeping, *self._taking.values(), *self._runs)
                await self._give_back(self._leases.held())
            finally:
                for lane in self._every_lane:
                    lane.running = 0
                self._leases.clear()
                self._left.clear()
                self._passed.clear()
                self._failure = None

    async def _until(self, truth: Callable[[], bool]) -> None:
        """Wait until so many runs have ended; raises what one of them raised."""
        while True:
            if self._failure is not None:
                raise self._failure
            if truth():
                return
            self._ended.clear()
            await self._ended.wait()

    async def _keep(self) -> None:
        """Extend the leases of runs every third of their length, and give back what has waited for so long."""
        while True:
            await self._sleep(self._leases.third_ns / _SECOND)
            try:
                overdue = [claimed for lane in self._every_lane for claimed in self._overdue(lane)]
                await self._leases.extend()
                await self._give_back(overdue)
            except Exception as error:
                log.warning("leases could not be extended, and will be tried again: %s", error)

    def _overdue(self, lane: _Lane) -> list[Claimed]:
        """Take from a lane what waits under a lease of which a third is over."""
        overdue = [claimed for batch in lane.waiting for claimed in batch if not self._leases.lasts(claimed)]
        for claimed in overdue:
            lane.remove(claimed)
        return overdue

    async def _give_back(self, batch: Sequence[Claimed]) -> None:
        """Let others have it; whatever goes wrong, they will when its leases run out."""
        for claimed in batch:
            self._leases.let_go(claimed)
        if not batch:
            return
        try:
            async with asyncio.timeout(_RELEASE_TIMEOUT_S):
                for claimed in await self._queue.release(batch):
                    self.worked.given_back[claimed.item.task] += 1
        except Exception as error:
            log.warning("%d items could not be given back, and are left to their leases: %r", len(batch), error)

    # --- finding work

    async def _listen(self) -> None:
        """Have a watch on each bell: a new one where it rang."""
        silent = [destination for destination in self._destinations if destination not in self._bells]
        for destination, bell in zip(silent, await _all(map(self._queue.listen, silent)), strict=True):
            self._bells[destination] = bell

    async def _look(self) -> tuple[list[bytes], int | None]:
        """Zones to go to, the destinations in turn, and when the next pointer vests."""
        parameters = self._queue.parameters
        if self._queue.now_ns() >= self._forget_ns:
            # They may hold something else by now. Some at a time: each costs two transactions, likely for nothing.
            self._forget_ns = self._queue.now_ns() + parameters.scan_ns
            for zone in list(islice(self._left, parameters.selection_max)):
                del self._left[zone]
        looks = await _all(map(self._queue.peek, self._destinations))
        self._passed = {zone for zones, _ in looks for zone in zones} & self._enough()
        chosen = [self._choose([zone for zone in zones if self._is_useful(zone)]) for zones, _ in looks]
        self._rng.shuffle(chosen)
        turns = chain.from_iterable(zip_longest(*chosen))
        next_ns = min((next_ns for _, next_ns in looks if next_ns is not None), default=None)
        return [zone for zone in turns if zone is not None], next_ns

    def _choose(self, zones: list[bytes]) -> list[bytes]:
        """A random part of the zones that have vested, in random order; of few, as many as are taken from at once."""
        parameters = self._queue.parameters
        wanted = max(math.ceil(len(zones) * parameters.selection_fraction), TAKES)
        return self._rng.sample(zones, min(wanted, parameters.selection_max, len(zones)))

    def _enough(self) -> set[bytes]:
        """Zones of which more waits here than half a batch, of what was claimed lately: not for long, for they may
        hold something more urgent by now, or of a task that there is room for."""
        parameters = self._queue.parameters
        lately_ns = self._queue.now_ns() - _SOON_NS + parameters.item_lease_ns
        waiting: Counter[bytes] = Counter()
        for batch in chain.from_iterable(lane.waiting for lane in self._every_lane):
            if batch[0].item.vesting_ns > lately_ns:
                waiting[batch[0].zone] += len(batch)
        return {zone for zone, count in waiting.items() if count > self._batch // 2}

    def _is_useful(self, zone: bytes) -> bool:
        """Whether more of a zone is wanted, and there is room for what it is known to have."""
        if zone in self._passed or zone in self._taking:
            return False
        left = self._left.get(zone)
        return left is None or any(self._room(self._lane(task)) > 0 for task in left)

    def _pause_s(self, next_ns: int | None) -> float:
        """How long to wait for the bell: until the next pointer vests, and never for long, for bells can be lost."""
        scan_ns = self._queue.parameters.scan_ns * self._rng.uniform(0.8, 1.2)
        if next_ns is not None:
            scan_ns = min(scan_ns, max(next_ns - self._queue.now_ns(), 0))
        return scan_ns / _SECOND

    async def _rest(self, pause_s: float) -> None:
        """Wait for a bell, for room where something was left for want of it, or for the end of the pause."""
        bells = {destination: asyncio.create_task(bell.wait(pause_s)) for destination, bell in self._bells.items()}
        wanted = asyncio.create_task(self._wanted.wait())
        try:
            await asyncio.wait([wanted, *bells.values()], timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(wanted, *bells.values())
        for destination, bell in bells.items():
            if not bell.cancelled() and bell.result():
                self._bells.pop(destination).cancel()

    def _may_take(self) -> bool:
        return len(self._taking) < TAKES and self._has_room()

    def _begin_taking(self, zone: bytes) -> None:
        self._taking[zone] = taking = asyncio.create_task(self._take(zone))
        taking.add_done_callback(lambda _: self._on_taken(zone, taking))

    def _on_taken(self, zone: bytes, taking: asyncio.Task[Batch | None]) -> None:
        del self._taking[zone]
        if not taking.cancelled() and (error := taking.exception()) is not None:
            self._failure = error
        self._ended.set()
        self._took |= not taking.cancelled() and self._failure is None and taking.result() is not None
        if self._failure is not None or (self._took and not self._taking):
            self._wanted.set()

    async def _take(self, zone: bytes, *, early_ns: int = 0) -> Batch | None:
        """Claim what there is room for of a zone, and begin with it. None: others were faster, or the gate is shut."""
        with self._gate() as is_open:
            if not is_open or not self._has_room():
                return None
            pointer_lease = await self._queue.lease(zone, early_ns=early_ns)
            if pointer_lease is None:
                return None
            # Whoever takes at the same time has what room is left, should all of it be used.
            room = {name: min(self._share(lane), self._batch) for name, lane in self._lanes.items()}
            self._promised.update(room)
            try:
                batch = await self._queue.claim(zone, pointer_lease, room)
            finally:
                self._promised.subtract(room)
        self._left.pop(zone, None)
        if batch is None:
            return None
        if batch.left and not batch.claimed:  # else there may be more that there is room for
            self._left[zone] = batch.left
        self._leases.add(batch.claimed)
        for lane in self._every_lane:
            if mine := deque(claimed for claimed in batch.claimed if self._lane(claimed.item.task) is lane):
                lane.add(mine)
        self._begin()
        return batch

    # --- lanes

    @property
    def _every_lane(self) -> list[_Lane]:
        return [*self._lanes.values(), self._unknown]

    def _lane(self, task: str) -> _Lane:
        return self._lanes.get(task, self._unknown)

    def _workers_for(self, lane: _Lane) -> int:
        """How many more items of a lane could run now."""
        left = lane.concurrency - lane.running
        if lane.task is None:
            return left  # there is no work in it
        free = self.workers - sum([max(each.running, 1) for each in self._lanes.values()])
        return min(left, free + (lane.running == 0))

    def _room(self, lane: _Lane) -> int:
        """How many more items of a lane could be begun now or soon."""
        workers = self._workers_for(lane)
        waiting = sum(map(len, lane.waiting))
        promised = self._promised[lane.task.name] if lane.task is not None else 0
        return workers + lane.ahead(workers) - waiting - promised

    def _share(self, lane: _Lane) -> int:
        """How many items of a lane one zone may give: of those that would have to wait, half of what there is room for,
        lest there be none when another zone has something."""
        room = max(self._room(lane), 0)
        ahead = max(room - self._workers_for(lane), 0)
        return room - ahead // 2

    def _has_room(self) -> bool:
        return any(self._room(lane) > 0 for lane in self._lanes.values() or [self._unknown])

    def _begin(self) -> None:
        """Run what waits, the lane first where least is running."""
        while lanes := [lane for lane in self._every_lane if lane.waiting and self._workers_for(lane) > 0]:
            lane = min(lanes, key=lambda lane: lane.running)
            lane.running += 1
            run = asyncio.create_task(self._work_off(lane, lane.next()))
            self._runs.add(run)
            run.add_done_callback(self._on_end)

    def _on_end(self, run: asyncio.Task[None]) -> None:
        self._runs.discard(run)
        if not run.cancelled() and (error := run.exception()) is not None:
            self._failure = error
        self._ended.set()
        if self._failure is not None or self._left or not self._passed <= self._enough():
            self._wanted.set()

    # --- working it off

    async def _work_off(self, lane: _Lane, claimed: Claimed) -> None:
        began_ns = self._queue.now_ns()
        try:
            with self._gate() as is_open:
                if not is_open:
                    await self._give_back([claimed])
                elif await self._leases.is_held(claimed):
                    await self._work(lane.task, claimed)
                    lane.took(self._queue.now_ns() - began_ns)
                else:
                    self.worked.lost[claimed.item.task] += 1
            self._leases.let_go(claimed)
        finally:
            lane.running -= 1
            self._begin()

    async def _work(self, task: Task | None, claimed: Claimed) -> None:
        name = claimed.item.task
        try:
            if task is None:
                raise ValueError(f"no consumer for the task {name!r}: this node is older than the one that owed it")
            effect = await self._leases.while_held(claimed, asyncio.ensure_future(task.run(claimed.item)))
            ended = await self._queue.finish(claimed, effect)
            (self.worked.done if ended else self.worked.lost)[name] += 1
            if ended:
                self._on_done(claimed.item)
        except _LeaseLost:
            self.worked.lost[name] += 1
        except (StoreSealed, EngineUnavailable, RetryableError):
            raise  # nothing is wrong with the item, and nothing could be noted of it
        except AmbiguousCommit as error:
            self.worked.ambiguous[name] += 1
            log.warning(
                "%s %s may have been done; it is left to its lease: %s", name, claimed.item.subject.hex(), error
            )
        except Exception as error:
            self.worked.failed[name] += 1
            log.warning("%s %s failed: %s", name, claimed.item.subject.hex(), error)
            for_now = isinstance(error, NotNow)
            await self._queue.fail(claimed, f"{type(error).__name__}: {error}", for_now=for_now)


async def _all(running: Iterable[Awaitable[T]]) -> list[T]:
    """The results of what runs at the same time; raises what one of them raised, once all have ended."""
    results = await asyncio.gather(*running, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value]


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    """End tasks, and wait until they have."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Lane:
    """The items of one task here: how many are `running`, and which wait for a worker, in batches as they were claimed.

    Batches take turns, an item each, and every other turn is for one that had none yet: so what comes alone begins
    after a run or two, whatever waits in other zones, and what waits goes on, whatever comes.

    Attributes:
        task: None for those of tasks that nobody here knows.
    """

    def __init__(self, task: Task | None, batch: int) -> None:
        self.task = task
        self.concurrency = UNKNOWN_CONCURRENCY if task is None else task.concurrency
        self.running = 0
        self._fresh: deque[deque[Claimed]] = deque()
        self._begun: deque[deque[Claimed]] = deque()
        self._fresh_is_next = True
        self._batch = batch
        self._mean_ns: float | None = None

    @property
    def waiting(self) -> list[deque[Claimed]]:
        """The batches of which something waits."""
        return [*self._fresh, *self._begun]

    def add(self, batch: deque[Claimed]) -> None:
        self._fresh.append(batch)

    def next(self) -> Claimed:
        """Take one of those that wait, of the batch whose turn it is."""
        both = (self._fresh, self._begun) if self._fresh_is_next else (self._begun, self._fresh)
        self._fresh_is_next = not self._fresh_is_next
        batch = (both[0] or both[1]).popleft()
        claimed = batch.popleft()
        if batch:
            self._begun.append(batch)
        return claimed

    def remove(self, claimed: Claimed) -> None:
        for batches in (self._fresh, self._begun):
            for batch in batches:
                if claimed in batch:
                    batch.remove(claimed)
        self._fresh, self._begun = deque(filter(None, self._fresh)), deque(filter(None, self._begun))

    def clear(self) -> None:
        self._fresh.clear()
        self._begun.clear()

    def took(self, run_ns: int) -> None:
        """A run took so long: what the next ones will take, as far as one can tell."""
        self._mean_ns = run_ns if self._mean_ns is None else self._mean_ns + (run_ns - self._mean_ns) / 8

    def ahead(self, workers: int) -> int:
        """How many items would begin soon, of those that wait while `workers` more than now are running; a batch of
        each zone at most, and none before anything is known of them."""
        if self._mean_ns is None:
            return 0
        return int(min(TAKES * self._batch, (self.running + workers) * _SOON_NS / max(self._mean_ns, 1)))


class _LeaseLost(Exception):
    """Another consumer may have the item by now."""


@dataclass
class _Holding:
    """A claimed item, the time up to which its lease lasts at least, and its run."""

    claimed: Claimed
    until_ns: int
    run: asyncio.Task[Any] | None = None
    begun: bool = False


class _Leases:
    """What is under lease: which of it is still held, and is kept so once its run has begun."""

    def __init__(self, queue: Queue) -> None:
        self.third_ns = queue.parameters.item_lease_ns // 3
        self._queue = queue
        self._held: dict[bytes, _Holding] = {}

    def add(self, batch: Sequence[Claimed]) -> None:
        for claimed in batch:
            self._held[claimed.lease] = _Holding(claimed, claimed.item.vesting_ns)

    def held(self) -> list[Claimed]:
        return [holding.claimed for holding in self._held.values()]

    def let_go(self, claimed: Claimed) -> None:
        """The item is no longer the holder's to extend."""
        self._held.pop(claimed.lease, None)

    def clear(self) -> None:
        self._held.clear()

    def lasts(self, claimed: Claimed) -> bool:
        """Whether at least two thirds of a lease are left, as far as is known."""
        holding = self._held.get(claimed.lease)
        return holding is not None and self._queue.now_ns() < holding.until_ns - 2 * self.third_ns

    async def is_held(self, claimed: Claimed) -> bool:
        """Whether to begin with an item: its lease must be known to last for a while."""
        holding = self._held.get(claimed.lease)
        if holding is None:
            return False
        holding.begun = True
        if not self.lasts(claimed):
            await self._extend([holding])
        return claimed.lease in self._held

    async def while_held(self, claimed: Claimed, run: asyncio.Task[T]) -> T:
        """What `run` returns; it is cancelled when the lease is lost, and with the caller.

        Raises:
            _LeaseLost: the former.
        """
        holding = self._held[claimed.lease]
        holding.run = run
        try:
            return await run
        except asyncio.CancelledError:
            if claimed.lease in self._held:
                raise
            raise _LeaseLost from None
        finally:
            holding.run = None

    async def extend(self) -> None:
        """Extend the lease of all that has begun; the runs whose lease is lost end."""
        await self._extend([holding for holding in self._held.values() if holding.begun])

    async def _extend(self, asked: Sequence[_Holding]) -> None:
        if not asked:
            return
        until_ns = self._queue.now_ns() + 3 * self.third_ns
        kept = {claimed.lease for claimed in await self._queue.extend([holding.claimed for holding in asked])}
        for holding in asked:
            lease = holding.claimed.lease
            if lease in kept:
                holding.until_ns = max(holding.until_ns, until_ns)
            elif self._held.pop(lease, None) is not None and holding.run is not None:
                holding.run.cancel()
