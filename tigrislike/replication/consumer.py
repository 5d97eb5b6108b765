"""Consumers of the queue of work owed: they find zones with something due, and work it off.

As in QuiCK a consumer looks wide and picks at random, so that several seldom meet, and takes one batch of a zone before
it looks again, so that no zone waits for the end of another. Where two meet all the same, leases keep them apart
(`metadata/leasing.py`). How many batches are worked on at a time is bounded; the items of a batch come in turn.

Every run ends in one of three ways. *Done*: its effect and the item's end are one transaction. *Failed*: the item backs
off, with the reason. *Ambiguous*, as when a commit's outcome is unknown or the process dies: nothing is written, and
the item comes back when its lease runs out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tigrislike.metadata.kv import AmbiguousCommit, EngineUnavailable, RetryableError, StoreSealed
from tigrislike.metadata.queue import Queue
from tigrislike.metadata.records import Claimed

from .tasks import Task

T = TypeVar("T")

log = logging.getLogger("tigrislike.replication")

WORKERS = 4
"""Batches worked on at a time: removing files waits for the disk, which has that much to give beside requests."""

_SECOND = 1_000_000_000

Gate = Callable[[], AbstractContextManager[bool]]
"""Entered around each batch; where it yields False, none is taken for now."""


@dataclass
class Worked:
    """What a consumer has done: runs by their task that were `done`, `failed` or `ambiguous`; `lost` counts leases that
    ran out before the end of a run."""

    done: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    ambiguous: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)


class Consumer:
    """Works off what is owed to `destination`, by `tasks`.

    Args:
        gate: says whether now is a time to work.
        sleep: waits for seconds; for tests, which do not.
    """

    def __init__(
        self,
        queue: Queue,
        destination: bytes,
        tasks: Sequence[Task],
        *,
        workers: int = WORKERS,
        gate: Gate = lambda: contextlib.nullcontext(True),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.worked = Worked()
        self._queue = queue
        self._destination = destination
        self._tasks = {task.name: task for task in tasks}
        self._workers = workers
        self._gate = gate
        self._sleep = sleep
        self._rng = rng or random.Random()

    async def run(self) -> None:
        """Work until cancelled. Raises what the database raises when it cannot serve: call it again later."""
        working: set[asyncio.Task[None]] = set()
        try:
            while True:
                while len(working) >= self._workers:
                    await self._any_done(working)
                # Before the look: what is enqueued after it rings.
                bell = await self._queue.listen(self._destination)
                try:
                    vested, next_ns = await self._queue.peek(self._destination)
                    taken = False
                    for zone in self._choose(vested):
                        while len(working) >= self._workers:
                            await self._any_done(working)
                        with contextlib.ExitStack() as gate:
                            batch = await self._take(zone, gate)
                            taken |= batch is not None
                            if batch:
                                working.add(asyncio.create_task(self._work_off(batch, gate.pop_all())))
                    if not taken:
                        if vested:  # others were faster, or the gate is closed: there may be more any moment
                            next_ns = self._queue.now_ns() + self._queue.parameters.poll_ns
                        rung = asyncio.create_task(bell.wait(self._pause_s(next_ns)))
                        await self._any_done(working, rung)
                finally:
                    bell.cancel()
        finally:
            await _cancel(*working)

    async def drain(self) -> None:
        """Work off what is due now, zone after zone; returns when none is left. Raises as `run`."""
        early_ns = self._queue.parameters.poll_ns
        seen: set[bytes] = set()
        while zones := set((await self._queue.peek(self._destination, early_ns=early_ns)).zones) - seen:
            for zone in sorted(zones):
                left = True
                while left:
                    with contextlib.ExitStack() as gate:
                        batch = await self._take(zone, gate, early_ns=early_ns)
                        left = batch is not None
                        if batch:
                            await self._work_off(batch, gate.pop_all())
            seen |= zones

    # --- finding work

    def _choose(self, zones: list[bytes]) -> list[bytes]:
        """A random part of the zones that have vested, in random order."""
        parameters = self._queue.parameters
        wanted = math.ceil(len(zones) * parameters.selection_fraction)
        return self._rng.sample(zones, min(wanted, parameters.selection_max))

    def _pause_s(self, next_ns: int | None) -> float:
        """How long to wait for the bell: until the next pointer vests, and never for long, for bells can be lost."""
        scan_ns = self._queue.parameters.scan_ns * self._rng.uniform(0.8, 1.2)
        if next_ns is not None:
            scan_ns = min(scan_ns, max(next_ns - self._queue.now_ns(), 0))
        return scan_ns / _SECOND

    @staticmethod
    async def _any_done(working: set[asyncio.Task[None]], rung: asyncio.Task[bool] | None = None) -> None:
        """Wait for one of `working` to end, or for the bell; raises what those that ended raised."""
        waited: set[asyncio.Task[Any]] = {*working, rung} if rung is not None else {*working}
        try:
            ended, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if rung is not None:
                await _cancel(rung)
        working -= ended
        for task in ended:
            task.result()

    async def _take(self, zone: bytes, gate: contextlib.ExitStack, *, early_ns: int = 0) -> list[Claimed] | None:
        """A batch of a zone to work off while `gate` is open. None: there was nothing for us to take; an empty one:
        only items of paused tasks."""
        if not gate.enter_context(self._gate()):
            return None
        pointer_lease = await self._queue.lease(zone, early_ns=early_ns)
        if pointer_lease is None:
            return None
        batch = await self._queue.claim(zone, pointer_lease)
        return batch.claimed if batch is not None and (batch.claimed or batch.set_back) else None

    # --- working it off

    async def _work_off(self, batch: list[Claimed], gate: contextlib.ExitStack) -> None:
        with gate:
            held = _Held(self._queue, batch)
            extending = asyncio.create_task(held.keep(self._sleep))
            try:
                for claimed in batch:
                    if await held.is_held(claimed):
                        await self._work(held, claimed)
                        held.let_go(claimed)
                    else:
                        self.worked.lost[claimed.item.task] += 1
            finally:
                await _cancel(extending)

    async def _work(self, held: _Held, claimed: Claimed) -> None:
        name = claimed.item.task
        try:
            task = self._tasks.get(name)
            if task is None:
                raise ValueError(f"no consumer for the task {name!r}: this node is older than the one that owed it")
            effect = await held.while_held(claimed, asyncio.ensure_future(task.run(claimed.item)))
            ended = await self._queue.finish(claimed, effect)
            (self.worked.done if ended else self.worked.lost)[name] += 1
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
            await self._queue.fail(claimed, f"{type(error).__name__}: {error}")


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    """End tasks, and wait until they have."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _LeaseLost(Exception):
    """Another consumer may have the item by now."""


class _Held:
    """A batch under lease: which of it is still held, kept so while it is worked on."""

    def __init__(self, queue: Queue, batch: Sequence[Claimed]) -> None:
        self._queue = queue
        self._held = {claimed.id: claimed for claimed in batch}
        self._running: tuple[Claimed, asyncio.Task[Any]] | None = None
        self._third_ns = queue.parameters.item_lease_ns // 3
        self._extend_ns = batch[0].item.vesting_ns - 2 * self._third_ns

    async def keep(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Extend the leases every third of their length, until cancelled."""
        while True:
            await sleep(self._third_ns / _SECOND)
            try:
                await self._extend()
            except Exception as error:
                log.warning("leases could not be extended, and will be tried again: %s", error)

    async def is_held(self, claimed: Claimed) -> bool:
        """Whether to begin with an item: its lease must be known to last for a while."""
        if self._queue.now_ns() >= self._extend_ns:
            await self._extend()
        return claimed.id in self._held

    def let_go(self, claimed: Claimed) -> None:
        """The item is no longer the holder's to extend."""
        self._held.pop(claimed.id, None)

    async def while_held(self, claimed: Claimed, run: asyncio.Task[T]) -> T:
        """What `run` returns; it is cancelled when the lease is lost, and with the caller.

        Raises:
            _LeaseLost: the former.
        """
        self._running = claimed, run
        try:
            return await run
        except asyncio.CancelledError:
            if claimed.id in self._held:
                raise
            raise _LeaseLost from None
        finally:
            self._running = None

    async def _extend(self) -> None:
        asked = list(self._held.values())
        kept = {claimed.id for claimed in await self._queue.extend(asked)}
        self._extend_ns = self._queue.now_ns() + self._third_ns
        for claimed in asked:
            if claimed.id in kept or claimed.id not in self._held:
                continue  # held, or ended meanwhile
            del self._held[claimed.id]
            if self._running is not None and self._running[0] is claimed:
                self._running[1].cancel()
