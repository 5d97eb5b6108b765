"""Consumers: every run ends as done, failed or ambiguous; leases last as long as is needed; zones take turns."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.metadata.world import NODE, both_engines, dump, play
from tigrislike.metadata import Metadata, owed
from tigrislike.metadata.deciding import QUEUE
from tigrislike.metadata.kv import AmbiguousCommit, EngineUnavailable, ManualClock, StoreSealed
from tigrislike.metadata.leasing import Effect
from tigrislike.metadata.overseeing import Pausable
from tigrislike.metadata.records import Claimed, Counts, Item
from tigrislike.replication.consumer import Consumer, _Lane

ZONES = [NODE + bytes((number,)) * 16 for number in range(4)]
SECOND = 10**9


class Scripted:
    """A task whose runs do what a test says: by their subject, or nothing."""

    priority = 0

    def __init__(
        self, name: str = "task", concurrency: int = 1, **acts: Callable[[], Awaitable[Effect | None]]
    ) -> None:
        self.name = name
        self.concurrency = concurrency
        self.acts = acts
        self.ran: list[bytes] = []

    async def run(self, item: Item) -> Effect | None:
        self.ran.append(item.subject)
        act = self.acts.get(item.subject.decode())
        return await act() if act is not None else None


async def enqueue(
    metadata: Metadata, *subjects: bytes, zone: bytes = ZONES[0], task: str = "task", **options: Any
) -> None:
    async def some(tr: Any) -> None:
        for subject in subjects:
            await owed.enqueue(tr, metadata.context, zone, task, subject, **options)

    await metadata.engine.transact(some)


async def never(duration_s: float) -> None:
    """In place of sleeping: leases are then extended only where a run begins."""
    await asyncio.Event().wait()


def consumer_of(metadata: Metadata, *tasks: Any, **options: Any) -> Consumer:
    return Consumer(metadata.queue, [NODE], tasks, sleep=options.pop("sleep", never), rng=random.Random(1), **options)


def raising(error: Exception) -> Callable[[], Awaitable[None]]:
    async def act() -> None:
        raise error

    return act


def with_clock(
    story: Callable[[Metadata, ManualClock], Awaitable[None]], kind: str = "memory", folder: Path = Path()
) -> None:
    clock = ManualClock()
    play(kind, folder, lambda metadata: story(metadata, clock), clock=clock)


# -- How runs end ----------------------------------------------------------------------------------------------------


@both_engines
def test_what_is_due_is_drained_whatever_its_zone(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        for zone in ZONES:
            await enqueue(metadata, *(b"%d" % number for number in range(2 * QUEUE.batch + 1)), zone=zone)
        await enqueue(metadata, b"later", vesting_ns=clock.now_ns() + SECOND)
        task = Scripted()
        consumer = consumer_of(metadata, task)
        await consumer.drain()
        assert len(task.ran) == consumer.worked.done["task"] == len(ZONES) * (2 * QUEUE.batch + 1)
        assert b"later" not in task.ran
        clock.advance(SECOND)
        await consumer.drain()
        assert task.ran[-1] == b"later"

    with_clock(story, kind, tmp_path)


def test_an_effect_happens_with_the_items_end() -> None:
    async def effect(tr: Any, ctx: Any) -> None:
        tr.add(b"effects", 1)

    async def act() -> Effect:
        return effect

    async def story(metadata: Metadata, clock: ManualClock) -> None:
        await enqueue(metadata, b"x")
        await consumer_of(metadata, Scripted(x=act)).drain()
        assert (await dump(metadata))[b"effects"] == (1).to_bytes(8, "little")
        assert await metadata.queue.depth(ZONES[0]) == 0

    with_clock(story)


def test_a_failure_is_noted_and_holds_up_no_other_item() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        await enqueue(metadata, b"bad", b"good")
        consumer = consumer_of(metadata, Scripted(bad=raising(OSError("it broke"))))
        await consumer.drain()
        assert (consumer.worked.done["task"], consumer.worked.failed["task"]) == (1, 1)
        ((_, item),) = await metadata.queue.items(ZONES[0])
        assert (item.subject, item.attempts, item.error) == (b"bad", 1, "OSError: it broke")

    with_clock(story)


def test_an_ambiguous_run_is_left_to_its_lease() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        await enqueue(metadata, b"x", b"y")
        task = Scripted(x=raising(AmbiguousCommit("who knows")))
        consumer = consumer_of(metadata, task)
        await consumer.drain()
        assert (consumer.worked.ambiguous["task"], consumer.worked.done["task"]) == (1, 1)
        ((_, item),) = await metadata.queue.items(ZONES[0])
        assert (item.attempts, bool(item.lease)) == (0, True)
        del task.acts["x"]
        clock.advance(QUEUE.item_lease_ns)
        await consumer.drain()
        assert await metadata.queue.depth(ZONES[0]) == 0

    with_clock(story)


@pytest.mark.parametrize("error", [StoreSealed("it moves"), EngineUnavailable("it recovers")])
def test_what_is_the_databases_fault_is_no_items(error: Exception) -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        await enqueue(metadata, b"x")
        for working in (Consumer.drain, Consumer.run):
            with pytest.raises(type(error)):
                await working(consumer_of(metadata, Scripted(x=raising(error))))
            clock.advance(QUEUE.item_lease_ns)
        ((_, item),) = await metadata.queue.items(ZONES[0])
        assert item.attempts == 0

    with_clock(story)


def test_a_task_that_nobody_knows_fails() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        await enqueue(metadata, b"x")
        await consumer_of(metadata).drain()
        ((_, item),) = await metadata.queue.items(ZONES[0])
        assert "no consumer for the task 'task'" in item.error

    with_clock(story)


def test_items_of_a_paused_task_are_not_run() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        await enqueue(metadata, *(b"%d" % number for number in range(2 * QUEUE.batch)))
        await metadata.queue.pause(Pausable.TASK, b"task")
        task = Scripted()
        consumer = consumer_of(metadata, task)
        await consumer.drain()
        assert task.ran == []
        await metadata.queue.resume(Pausable.TASK, b"task")
        clock.advance(QUEUE.set_back_ns)
        await consumer.drain()
        assert await metadata.queue.counts(ZONES[0]) == {"task": Counts(enqueued=2 * QUEUE.batch, done=2 * QUEUE.batch)}

    with_clock(story)


# -- Leases ----------------------------------------------------------------------------------------------------------


def test_a_lease_is_extended_for_as_long_as_a_run_takes() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        thirds: asyncio.Queue[None] = asyncio.Queue()

        async def third(duration_s: float) -> None:
            assert duration_s == QUEUE.item_lease_ns // 3 / SECOND
            await thirds.get()

        async def slow() -> None:
            for _ in range(6):
                before = await metadata.queue.show(ZONES[0], owed.item_id("task", b"slow"))
                clock.advance(QUEUE.item_lease_ns // 3)
                thirds.put_nowait(None)
                async with asyncio.timeout(60):
                    while await metadata.queue.show(ZONES[0], owed.item_id("task", b"slow")) == before:  # noqa: ASYNC110
                        await asyncio.sleep(0)

        await enqueue(metadata, b"slow", b"next")
        task = Scripted(slow=slow)
        consumer = consumer_of(metadata, task, sleep=third)
        await consumer.drain()
        assert sorted(task.ran) == [b"next", b"slow"]
        assert consumer.worked.done["task"] == 2

    with_clock(story)


def test_a_run_whose_lease_is_lost_is_cancelled() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        thirds: asyncio.Queue[None] = asyncio.Queue()
        cancelled = []

        async def third(duration_s: float) -> None:
            await thirds.get()

        async def slow() -> None:
            clock.advance(QUEUE.item_lease_ns)
            other = Scripted()
            await consumer_of(metadata, other).drain()
            assert other.ran == [b"slow"]
            thirds.put_nowait(None)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        await enqueue(metadata, b"slow")
        task = Scripted(slow=slow)
        consumer = consumer_of(metadata, task, sleep=third)
        await consumer.drain()
        assert (task.ran, cancelled, consumer.worked.lost["task"]) == ([b"slow"], [True], 1)
        assert await metadata.queue.counts(ZONES[0]) == {"task": Counts(enqueued=1, done=1)}

    with_clock(story)


def test_an_item_claimed_ahead_is_not_begun_once_its_lease_is_lost() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        async def slow() -> None:
            clock.advance(QUEUE.item_lease_ns)
            other = Scripted()
            await consumer_of(metadata, other).drain()
            assert sorted(other.ran) == [b"next", b"slow"]

        await enqueue(metadata, b"known")
        task = Scripted(slow=slow)
        consumer = consumer_of(metadata, task)
        await consumer.drain()  # now it is known how long runs take, and items are claimed ahead
        await enqueue(metadata, b"slow")
        await enqueue(metadata, b"next", priority=1)
        await consumer.drain()
        assert (task.ran, consumer.worked.lost["task"]) == ([b"known", b"slow"], 2)
        assert await metadata.queue.counts(ZONES[0]) == {"task": Counts(enqueued=3, done=3)}

    with_clock(story)


def test_what_waits_for_a_third_of_its_lease_is_given_back() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        thirds: asyncio.Queue[None] = asyncio.Queue()
        other = Scripted()

        async def third(duration_s: float) -> None:
            await thirds.get()

        async def slow() -> None:
            thirds.put_nowait(None)  # too early: a lease is as good as new
            async with asyncio.timeout(60):
                while not thirds.empty():  # noqa: ASYNC110 - what it waits for is not ours to signal
                    await asyncio.sleep(0)
            assert consumer.worked.given_back.total() == 0
            clock.advance(QUEUE.item_lease_ns // 3)
            thirds.put_nowait(None)
            await until(lambda: consumer.worked.given_back["task"] == 2)
            await consumer_of(metadata, other).drain()

        await enqueue(metadata, b"known")
        task = Scripted(slow=slow)
        consumer = consumer_of(metadata, task, sleep=third)
        await consumer.drain()
        await enqueue(metadata, b"slow")
        await enqueue(metadata, b"next", b"last", priority=1)
        await consumer.drain()
        assert (task.ran, sorted(other.ran)) == ([b"known", b"slow"], [b"last", b"next"])
        assert await metadata.queue.counts(ZONES[0]) == {"task": Counts(enqueued=4, done=4)}

    with_clock(story)


def test_a_run_that_ends_after_its_lease_has_no_effect() -> None:
    async def effect(tr: Any, ctx: Any) -> None:
        tr.add(b"effects", 1)

    async def story(metadata: Metadata, clock: ManualClock) -> None:
        async def slow() -> Effect:
            clock.advance(QUEUE.item_lease_ns)
            await consumer_of(metadata, Scripted()).drain()
            return effect

        await enqueue(metadata, b"slow")
        consumer = consumer_of(metadata, Scripted(slow=slow))
        await consumer.drain()
        assert consumer.worked.lost["task"] == 1
        assert b"effects" not in await dump(metadata)

    with_clock(story)


def test_an_extension_that_fails_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        thirds: asyncio.Queue[None] = asyncio.Queue()
        extended = asyncio.Event()
        real, left = metadata.queue.extend, [True]

        async def extend(batch: Any) -> Any:
            if left:
                left.pop()
                thirds.put_nowait(None)
                raise EngineUnavailable("it recovers")
            extended.set()
            return await real(batch)

        async def third(duration_s: float) -> None:
            await thirds.get()

        async def slow() -> None:
            thirds.put_nowait(None)
            await extended.wait()

        metadata.queue.extend = extend  # type: ignore[method-assign]
        await enqueue(metadata, b"slow")
        consumer = consumer_of(metadata, Scripted(slow=slow), sleep=third)
        await consumer.drain()
        assert consumer.worked.done["task"] == 1

    with_clock(story)
    assert "leases could not be extended" in caplog.text


# -- Running for good ------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def running(consumer: Consumer) -> Any:
    task = asyncio.create_task(consumer.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(truth: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not truth():  # noqa: ASYNC110 - what it waits for is not ours to signal
            await asyncio.sleep(0)


@both_engines
def test_an_idle_consumer_is_woken(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        task = Scripted()
        idle = asyncio.Event()
        consumer = consumer_of(metadata, task)

        def pause_s(next_ns: int | None) -> float:
            idle.set()
            return 60.0  # only the bell wakes it

        consumer._pause_s = pause_s  # type: ignore[method-assign]
        async with running(consumer):
            await idle.wait()
            await enqueue(metadata, b"x")
            await until(lambda: task.ran == [b"x"])

    with_clock(story, kind, tmp_path)


def test_a_consumer_sleeps_until_the_next_pointer_vests_and_never_for_long() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        consumer = consumer_of(metadata)
        scan_s = QUEUE.scan_ns / SECOND
        assert 0.8 * scan_s <= consumer._pause_s(None) <= 1.2 * scan_s
        assert consumer._pause_s(clock.now_ns() + SECOND // 10) == 0.1
        assert consumer._pause_s(clock.now_ns() + 10**15) <= 1.2 * scan_s
        assert consumer._pause_s(clock.now_ns() - SECOND) == 0

    with_clock(story)


def test_a_consumer_that_came_too_late_looks_again_soon() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        looks: list[int | None] = []
        consumer = consumer_of(metadata, Scripted())
        real = consumer._pause_s

        def pause_s(next_ns: int | None) -> float:
            looks.append(next_ns)
            return real(next_ns)

        async def too_late(zone: bytes, *, early_ns: int = 0) -> None:
            return None

        await enqueue(metadata, b"x")
        consumer._pause_s = pause_s  # type: ignore[method-assign]
        metadata.queue.lease = too_late  # type: ignore[method-assign]
        async with running(consumer):
            await until(lambda: len(looks) > 1)
        assert looks[0] == pytest.approx(clock.now_ns() + QUEUE.poll_ns, abs=10**6)

    with_clock(story)


def test_a_large_zone_does_not_keep_the_others_waiting() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        for start in range(0, 300, 50):
            await enqueue(metadata, *(b"large %d" % number for number in range(start, start + 50)))
        await enqueue(metadata, b"fresh", zone=ZONES[1])
        task = Scripted()
        async with running(consumer_of(metadata, task, workers=1)):
            await until(lambda: b"fresh" in task.ran)
        assert task.ran.index(b"fresh") < 150

    with_clock(story)


class Unhurried(Scripted):
    """A task whose runs take a while, in which others look around."""

    async def run(self, item: Item) -> Effect | None:
        for _ in range(100):
            await asyncio.sleep(0)
        return await super().run(item)


def test_a_zone_of_which_much_waits_is_not_claimed_from_item_by_item() -> None:
    items = 10 * QUEUE.batch

    async def story(metadata: Metadata, clock: ManualClock) -> None:
        for start in range(0, items, 64):
            await enqueue(metadata, *(b"%d" % number for number in range(start, start + 64)))
        claimed: list[int] = []
        real = metadata.queue.claim

        async def claim(*args: Any) -> Any:
            batch = await real(*args)
            claimed.append(len(batch.claimed) if batch is not None else 0)
            return batch

        metadata.queue.claim = claim  # type: ignore[method-assign, assignment]
        task = Unhurried(concurrency=4)
        async with running(consumer_of(metadata, task)):
            await until(lambda: len(task.ran) == items)
        assert statistics.mean(claimed) > QUEUE.batch / 3

    with_clock(story)


def test_a_zone_of_which_much_waits_is_claimed_from_again_soon_for_what_there_is_room_for() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        await enqueue(metadata, b"known", task="many")
        many, other = Blocking("many"), Scripted("other")
        consumer = consumer_of(metadata, many, other)
        many.release.set()
        await consumer.drain()  # now it is known that runs are short, and items are claimed ahead
        many.release.clear()
        # Those that stay behind are fewer than a claim looks at: what is owed after them is seen.
        await enqueue(metadata, *(b"%d" % number for number in range(QUEUE.batch + QUEUE.batch // 2)), task="many")
        clock.advance(QUEUE.poll_ns)
        async with running(consumer):
            await until(lambda: many.at_work == 1)
            await enqueue(metadata, b"urgent", task="other")
            await settled()
            assert other.ran == []
            clock.advance(SECOND)
            await until(lambda: other.ran == [b"urgent"])

    with_clock(story)


def test_one_zone_does_not_take_all_the_room_ahead() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        await enqueue(metadata, b"known")
        task = Blocking("task")
        consumer = consumer_of(metadata, task)
        task.release.set()
        await consumer.drain()  # now it is known that runs are short, and items are claimed ahead
        task.release.clear()
        for start in range(0, 640, 64):
            await enqueue(metadata, *(b"%d" % number for number in range(start, start + 64)))
        claims: list[bytes] = []
        real = metadata.queue.claim

        async def claim(zone: bytes, *args: Any) -> Any:
            batch = await real(zone, *args)
            claims.extend(each.zone for each in (batch.claimed if batch is not None else ()))
            return batch

        metadata.queue.claim = claim  # type: ignore[method-assign, assignment]
        clock.advance(QUEUE.poll_ns)
        async with running(consumer):
            for _ in range(4):
                claims.clear()
                await until(lambda: len(claims) > 0)
                clock.advance(SECOND)
            await enqueue(metadata, b"fresh", zone=ZONES[1])
            await until(lambda: ZONES[1] in claims)

    with_clock(story)


class Blocking(Scripted):
    """A task whose runs do not end before they are told to."""

    def __init__(self, name: str, concurrency: int = 1, priority: int = 0) -> None:
        super().__init__(name, concurrency)
        self.priority = priority
        self.at_work = 0
        self.most = 0
        self.release = asyncio.Event()

    async def run(self, item: Item) -> Effect | None:
        self.ran.append(item.subject)
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        try:
            await self.release.wait()
        finally:
            self.at_work -= 1
        return None


async def settled() -> None:
    """Everything has happened that happens by itself."""
    for _ in range(2000):
        await asyncio.sleep(0)


def test_no_more_items_run_than_there_are_workers_nor_than_a_task_allows() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        for zone in ZONES:
            await enqueue(metadata, *(b"%d" % number for number in range(5)), zone=zone)
        for workers, concurrency, most in ((2, 9, 2), (9, 3, 3), (1, 1, 1)):
            task = Blocking("task", concurrency)
            async with running(consumer_of(metadata, task, workers=workers)):
                await until(lambda task=task, most=most: task.at_work == most)  # type: ignore[misc]
                await settled()
                assert task.most == most
                leased = [item for zone in ZONES for _, item in await metadata.queue.items(zone) if item.lease]
                assert len(leased) == most, "nothing is claimed that cannot be begun soon"
        task = Blocking("task", 3)
        async with running(consumer_of(metadata, task, workers=9)):
            task.release.set()
            await until(lambda: len(task.ran) == 20)
        assert task.most <= 3

    with_clock(story)


def test_what_takes_long_keeps_a_worker_for_every_other_task() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        await enqueue(metadata, *(b"long %d" % number for number in range(20)), task="long")
        await enqueue(metadata, *(b"longer %d" % number for number in range(20)), task="longer", priority=1)
        await enqueue(metadata, *(b"short %d" % number for number in range(20)), priority=2)
        long, longer, short = Blocking("long", 9), Blocking("longer", 9), Scripted(concurrency=4)
        async with running(consumer_of(metadata, long, longer, short, workers=6)):
            await until(lambda: len(short.ran) == 20)
            await until(lambda: long.at_work + longer.at_work == 5)
            assert long.at_work > 0
            assert longer.at_work > 0
            long.release.set()
            await until(lambda: len(long.ran) == 20)
            assert len(longer.ran) == longer.at_work

    with_clock(story)


def test_what_comes_in_masses_keeps_a_worker_for_what_takes_long() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        for start in range(0, 500, 100):
            await enqueue(metadata, *(b"%d" % number for number in range(start, start + 100)))
        await enqueue(metadata, b"long", task="long", priority=2, zone=ZONES[1])
        long, short = Blocking("long"), Scripted(concurrency=9)
        async with running(consumer_of(metadata, long, short, workers=2)):
            await until(lambda: bool(long.ran))
            assert len(short.ran) < 250
            await until(lambda: len(short.ran) == 500)

    with_clock(story)


def test_zones_are_taken_from_at_the_same_time_and_what_waits_comes_in_turn() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        await enqueue(metadata, b"known")
        task = Scripted()
        consumer = consumer_of(metadata, task)
        await consumer.drain()  # now it is known how long runs take, and items are claimed ahead
        for zone in ZONES:
            await enqueue(metadata, *(b"%d of " % number + zone[-1:] for number in range(10)), zone=zone)
        claiming, most = 0, 0
        real = metadata.queue.claim

        async def claim(*args: Any) -> Any:
            nonlocal claiming, most
            claiming += 1
            most = max(most, claiming)
            batch = await real(*args)
            claiming -= 1
            return batch

        metadata.queue.claim = claim  # type: ignore[method-assign, assignment]
        clock.advance(QUEUE.poll_ns)
        async with running(consumer):
            await until(lambda: len(task.ran) == 41)
        assert most == len(ZONES)
        firsts = [next(at for at, subject in enumerate(task.ran[1:]) if subject[-1:] == zone[-1:]) for zone in ZONES]
        assert max(firsts) < 20

    with_clock(story)


def test_a_zone_that_is_slow_to_be_taken_from_holds_up_no_other() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        task = Scripted(concurrency=2)
        consumer = consumer_of(metadata, task)
        await enqueue(metadata, b"known")
        await consumer.drain()  # now there is room for more than one zone
        await enqueue(metadata, b"slow", zone=ZONES[0])
        real, held = metadata.queue.claim, asyncio.Event()

        async def claim(zone: bytes, *args: Any) -> Any:
            if zone == ZONES[0]:
                await held.wait()
            return await real(zone, *args)

        metadata.queue.claim = claim  # type: ignore[method-assign, assignment]
        clock.advance(QUEUE.poll_ns)
        async with running(consumer):
            await until(lambda: ZONES[0] in consumer._taking)
            await enqueue(metadata, b"quick", zone=ZONES[1])
            await until(lambda: task.ran == [b"known", b"quick"])
            held.set()
            await until(lambda: task.ran == [b"known", b"quick", b"slow"])

    with_clock(story)


def test_what_fails_while_a_zone_is_taken_from_ends_the_consumer() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        await enqueue(metadata, b"x")

        async def claim(*args: Any) -> Any:
            raise EngineUnavailable("the database is away")

        metadata.queue.claim = claim  # type: ignore[method-assign, assignment]
        consumer = consumer_of(metadata, Scripted())
        with pytest.raises(EngineUnavailable):
            await asyncio.wait_for(consumer.run(), 60)
        assert not consumer._taking

    with_clock(story)


def test_what_is_claimed_while_another_zone_fails_is_given_back() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        task = Scripted(concurrency=2)
        consumer = consumer_of(metadata, task)
        await enqueue(metadata, b"known")
        await consumer.drain()  # now there is room for more than one zone
        for zone in ZONES[:2]:
            await enqueue(metadata, b"x", zone=zone)
        real = metadata.queue.claim
        claiming = asyncio.Event()

        async def claim(zone: bytes, *args: Any) -> Any:
            if zone == ZONES[0]:
                await claiming.wait()
                raise EngineUnavailable("the database is away")
            claiming.set()
            batch = await real(zone, *args)
            await settled()  # the other has failed by now
            return batch

        metadata.queue.claim = claim  # type: ignore[method-assign, assignment]
        clock.advance(QUEUE.poll_ns)
        with pytest.raises(EngineUnavailable):
            await asyncio.wait_for(consumer.run(), 60)
        ((_, item),) = await metadata.queue.items(ZONES[1])
        assert (item.lease, consumer.worked.given_back["task"]) == (b"", 1)

    with_clock(story)


def test_a_batch_that_had_no_turn_yet_gets_every_other_one() -> None:
    def batch(zone: bytes, number: int) -> deque[Claimed]:
        item = Item("task", b"", 0, 0, 0)
        return deque(Claimed(zone, b"%d" % each, b"", item) for each in range(number))

    lane = _Lane(Scripted(), QUEUE.batch)
    lane.add(batch(ZONES[0], 8))
    lane.add(batch(ZONES[1], 8))
    order = [lane.next().zone for _ in range(4)]
    lane.add(batch(ZONES[2], 1))
    lane.add(batch(ZONES[3], 1))
    order += [lane.next().zone for _ in range(4)]
    names = [ZONES.index(zone) for zone in order]
    assert names[4:] in ([2, 0, 3, 1], [0, 2, 1, 3], [2, 1, 3, 0], [1, 2, 0, 3])
    assert {0, 1} == set(names[:4])
    lane.remove(next(iter(lane.waiting))[0])
    left = 8 + 8 - names.count(0) - names.count(1) - 1
    assert sum(map(len, lane.waiting)) == left
    assert len([lane.next() for _ in range(left)]) == left
    assert not lane.waiting


def test_zones_that_were_left_for_want_of_room_are_taken_from_when_there_is() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        for zone in ZONES:
            await enqueue(metadata, b"1" + zone, b"2" + zone, zone=zone)
        claims = 0
        real = metadata.queue.claim

        async def claim(*args: Any) -> Any:
            nonlocal claims
            claims += 1
            return await real(*args)

        metadata.queue.claim = claim  # type: ignore[method-assign, assignment]
        task, other = Blocking("task"), Scripted("other")
        consumer = consumer_of(metadata, task, other)
        consumer._pause_s = lambda next_ns: 0.0  # type: ignore[method-assign]
        async with running(consumer):
            await until(lambda: len(consumer._left) == len(ZONES))
            await settled()
            assert claims <= len(ZONES) + 1, "it does not go there again and again"
            task.release.set()
            await until(lambda: len(task.ran) == 8)

    with_clock(story)


def test_zones_that_were_left_are_looked_at_again_every_now_and_then() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        await enqueue(metadata, b"1", b"2")
        task, other = Blocking("task"), Scripted("other")
        consumer = consumer_of(metadata, task, other)
        pauses = 0

        def pause_s(next_ns: int | None) -> float:
            nonlocal pauses
            pauses += 1
            clock.advance(SECOND // 5)
            return 0.0

        consumer._pause_s = pause_s  # type: ignore[method-assign]
        async with running(consumer):
            await until(lambda: ZONES[0] in consumer._left)
            await enqueue(metadata, b"x", task="other")
            pauses = 0
            await until(lambda: other.ran == [b"x"])
            assert pauses <= 10

    with_clock(story)


def test_destinations_take_turns_and_each_bell_wakes() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        region, anybody = b"r" * 16, b"a" * 16
        for number in range(60):
            await enqueue(metadata, b"mine", zone=NODE + b"%016d" % number)
        for destination in (region, anybody):
            await enqueue(metadata, destination, zone=destination + bytes(16))
        task = Scripted()
        consumer = Consumer(
            metadata.queue, [NODE, region, anybody], [task], sleep=never, rng=random.Random(1), workers=1
        )
        idle = asyncio.Event()

        def pause_s(next_ns: int | None) -> float:
            idle.set()
            return 60.0

        async with running(consumer):
            await until(lambda: len(task.ran) == 62)
            assert max(task.ran.index(region), task.ran.index(anybody)) < 12
            consumer._pause_s = pause_s  # type: ignore[method-assign]
            for number, destination in enumerate((anybody, NODE, region, region, NODE)):
                idle.clear()
                await asyncio.wait_for(idle.wait(), 60)
                await enqueue(metadata, b"woken %d" % number, zone=destination + b"%016d" % (99 + number))
                await until(lambda number=number: b"woken %d" % number in task.ran)  # type: ignore[misc]
        clock.advance(QUEUE.poll_ns)
        await enqueue(metadata, b"last", zone=anybody + bytes(16))
        await consumer.drain()
        assert b"last" in task.ran

    with_clock(story)


def test_nothing_is_begun_while_the_gate_is_closed() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        free, inside = False, 0

        @contextlib.contextmanager
        def gate() -> Iterator[bool]:
            nonlocal inside
            inside += 1
            yield free
            inside -= 1

        async def look() -> None:
            assert inside == 1

        await enqueue(metadata, b"x")
        task = Scripted(x=look)
        consumer = consumer_of(metadata, task, gate=gate)
        await consumer.drain()
        assert task.ran == []
        free = True
        await consumer.drain()
        assert (task.ran, inside, consumer.worked.done["task"]) == ([b"x"], 0, 1)

    with_clock(story)


def test_a_gate_that_closes_before_a_run_begins_gives_the_item_back() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        answers = [True, False]

        @contextlib.contextmanager
        def gate() -> Iterator[bool]:
            yield answers.pop(0) if answers else False

        await enqueue(metadata, b"x")
        task = Scripted()
        consumer = consumer_of(metadata, task, gate=gate)
        await consumer.drain()
        assert (task.ran, consumer.worked.given_back["task"]) == ([], 1)
        ((_, item),) = await metadata.queue.items(ZONES[0])
        assert (item.lease, item.vesting_ns, item.attempts) == (b"", 0, 0)

    with_clock(story)


@both_engines
def test_a_consumer_that_is_stopped_gives_its_items_back(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        stopped = Blocking("task", 2)
        await enqueue(metadata, b"x", b"y", b"z")
        consumer = consumer_of(metadata, stopped)
        async with running(consumer):
            await until(lambda: stopped.at_work == 2)
        assert (stopped.at_work, consumer.worked.given_back["task"]) == (0, 2)
        task = Scripted()
        await consumer_of(metadata, task).drain()
        assert sorted(task.ran) == [b"x", b"y", b"z"]
        assert await metadata.queue.counts(ZONES[0]) == {"task": Counts(enqueued=3, done=3)}

    with_clock(story, kind, tmp_path)


def test_a_consumer_that_was_stopped_can_go_on() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        task = Blocking("task", 2)
        await enqueue(metadata, b"x", b"y", b"z")
        consumer = consumer_of(metadata, task)
        for _ in range(3):
            async with running(consumer):
                await until(lambda: task.at_work == 2)
        async with running(consumer):
            task.release.set()
            await until(lambda: consumer.worked.done["task"] == 3)

    with_clock(story)


def test_what_cannot_be_given_back_is_left_to_its_lease(caplog: pytest.LogCaptureFixture) -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        async def release(batch: Any) -> Any:
            raise EngineUnavailable("it recovers")

        real, metadata.queue.release = metadata.queue.release, release  # type: ignore[method-assign]
        await enqueue(metadata, b"x")
        stopped = Blocking("task")
        async with running(consumer_of(metadata, stopped)):
            await until(lambda: stopped.at_work == 1)
        metadata.queue.release = real  # type: ignore[method-assign]
        task = Scripted()
        await consumer_of(metadata, task).drain()
        assert task.ran == []
        clock.advance(QUEUE.item_lease_ns)
        await consumer_of(metadata, task).drain()
        assert task.ran == [b"x"]

    with_clock(story)
    assert "could not be given back" in caplog.text


def test_a_random_part_is_chosen_at_least_one_and_never_too_many() -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        consumer = consumer_of(metadata)
        zones = [b"%d" % number for number in range(1000)]
        assert consumer._choose([]) == []
        assert consumer._choose(zones[:1]) == zones[:1]
        chosen = consumer._choose(zones)
        assert len(set(chosen)) == 1000 * QUEUE.selection_fraction
        assert chosen != consumer._choose(zones)
        assert len(consumer._choose(zones * 200)) == QUEUE.selection_max

    with_clock(story)
