"""The queue over all zones: what counters and indexes say is what a walk over every item finds, whatever happened."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.metadata.world import NODE, both_engines, play
from tigrislike.admin.fsck import fsck
from tigrislike.metadata import Metadata, overseeing, owed, records, surveying
from tigrislike.metadata.keyspace import subspace, unpack_bytes
from tigrislike.metadata.kv import ManualClock
from tigrislike.metadata.overseeing import Pausable
from tigrislike.metadata.records import Counts

SECOND = 10**9
DESTINATIONS = [NODE, b"\x00" * 16, b"\xff" * 15 + b"\x00"]
ZONES = [destination + bytes((number,)) * 16 for destination in DESTINATIONS for number in range(3)]
TASKS = ["hold", "replicate"]


async def something(metadata: Metadata, rng: random.Random, clock: ManualClock, held: list[Any]) -> None:
    """One thing that happens to a queue."""
    queue, zone = metadata.queue, rng.choice(ZONES)
    match rng.randrange(11):
        case 0 | 1 | 2:
            subject, task = b"%d" % rng.randrange(5), rng.choice(TASKS)
            vesting_ns = rng.choice([0, 0, clock.now_ns() + rng.randrange(60) * SECOND])
            await metadata.engine.transact(
                lambda tr: owed.enqueue(tr, metadata.context, zone, task, subject, vesting_ns=vesting_ns, priority=1)
            )
        case 3 | 4:
            lease = await queue.lease(zone, early_ns=SECOND)
            if lease is not None:
                room = {task: rng.randrange(3) for task in TASKS}
                batch = await queue.claim(zone, lease, room)
                held += batch.claimed if batch is not None else []
        case 5 if held:
            await queue.finish(held.pop(rng.randrange(len(held))))
        case 6 if held:
            await queue.fail(held.pop(rng.randrange(len(held))), "it broke")
        case 7 if held:
            await queue.release([held.pop(rng.randrange(len(held)))])
        case 8:
            clock.advance(rng.randrange(1, 90) * SECOND)
        case 9:
            items = await queue.items(zone) + await queue.letters(zone)
            if items:
                id_, _ = rng.choice(items)
                act = rng.choice([queue.drop, queue.retry, lambda zone, id_: queue.delay(zone, id_, 0)])
                await act(zone, id_)
        case 10:
            change = rng.choice([queue.pause, queue.resume])
            await change(Pausable.TASK, rng.choice(TASKS).encode())


async def walked(metadata: Metadata) -> dict[bytes, dict[str, Counter[str]]]:
    """What there is, by destination and task."""
    keys = metadata.context.keys
    found: dict[bytes, dict[str, Counter[str]]] = {}

    async def rows(tr: Any, family: bytes) -> list[tuple[bytes, bytes]]:
        return await tr.get_range(*subspace(family))

    for family, letters in ((keys.queue_items, False), (keys.queue_dead, True)):
        for key, value in await metadata.engine.read(rows, family):
            zone, _ = unpack_bytes(key, len(family))
            item = records.item.decode(value)
            counts = found.setdefault(owed.destination_of(zone), {}).setdefault(item.task, Counter())
            if letters:
                counts["dead"] += 1
            else:
                counts.update(waiting=1, leased=int(bool(item.lease)), failing=int(bool(item.attempts)))
    return found


def held(counts: Counts | Counter[str]) -> dict[str, int]:
    names = ("waiting", "leased", "failing", "dead")
    got = counts.get if isinstance(counts, Counter) else lambda name, _: getattr(counts, name)
    return {name: got(name, 0) for name in names if got(name, 0)}


@both_engines
def test_sums_are_what_a_walk_finds(kind: str, tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    clock = ManualClock()

    async def story(metadata: Metadata) -> None:
        rng, claimed = random.Random(seed), list[Any]()
        for step in range(400):
            await something(metadata, rng, clock, claimed)
            if step % 40:
                continue
            sums = await metadata.engine.read(surveying.sums, metadata.context)
            there = await walked(metadata)
            for destination in DESTINATIONS:
                tasks = {task: held(counts) for task, counts in sums.get(destination, {}).items()}
                assert {task: each for task, each in tasks.items() if each} == {
                    task: held(counts) for task, counts in there.get(destination, {}).items()
                }
                zones = await metadata.engine.read(
                    lambda tr, destination=destination: surveying.counted(tr, metadata.context, destination, limit=1000)
                )
                assert {task: held(counts) for task, counts in zones.items() if held(counts)} == {
                    task: each for task, each in tasks.items() if each
                }
        assert await metadata.engine.read(surveying.destinations, metadata.context) == sorted(sums)
        kinds = [finding.kind async for finding in fsck(metadata, pause_s=0)]
        assert [kind for kind in kinds if kind.startswith(("zone", "failing", "due", "item"))] == []

    play(kind, tmp_path, story, clock=clock)


@both_engines
def test_what_is_due_is_done_in_the_order_in_which_it_was_owed(kind: str, tmp_path: Path) -> None:
    clock = ManualClock()

    async def story(metadata: Metadata) -> None:
        zone = ZONES[0]
        began_ns = clock.now_ns()
        subjects = [b"%d" % number for number in range(20)]
        for subject in subjects:
            clock.advance(1000)
            await metadata.engine.transact(
                lambda tr, subject=subject: owed.enqueue(tr, metadata.context, zone, "hold", subject)
            )
        since_ns = await metadata.engine.read(surveying.due_since_ns, metadata.context, zone)
        assert since_ns == pytest.approx(began_ns + 1000, abs=1000)
        (aged,) = await metadata.engine.read(surveying.pointers, metadata.context, b"", 10)
        assert aged.since_ns(clock.now_ns()) == since_ns
        lease = await metadata.queue.lease(zone)
        assert lease is not None
        batch = await metadata.queue.claim(zone, lease, {"hold": 5})
        assert batch is not None
        assert [claimed.item.subject for claimed in batch.claimed] == subjects[:5]
        rows = await metadata.engine.read(surveying.in_order, metadata.context, zone, 0, b"", 100)
        assert [place.item.subject for _, place in rows] == subjects[5:] + subjects[:5]

    play(kind, tmp_path, story, clock=clock)


def test_a_zone_is_as_old_as_its_pointer_knows() -> None:
    def since(vesting_ns: int, active_ns: int, since_ns: int, now_ns: int) -> int | None:
        return surveying.Aged(b"z", records.Pointer(vesting_ns, b"", active_ns, since_ns)).since_ns(now_ns)

    assert since(0, 50, 0, 100) == 50, "announced, and nobody came"
    assert since(120, 90, 30, 100) == 30, "looked at, and something was left"
    assert since(120, 90, 0, 100) is None, "at rest"
    assert since(80, 20, 0, 100) == 80, "it was to be looked at then"
    assert since(80, 20, 30, 100) == 30
    assert since(120, 90, 120, 100) is None, "announced for later"
    assert since(120, 90, 120, 120) == 120, "which it is now"


def test_a_zone_in_which_all_is_due_later_is_not_old(tmp_path: Path) -> None:
    clock = ManualClock()

    async def story(metadata: Metadata) -> None:
        later_ns = clock.now_ns() + 3600 * SECOND
        await metadata.engine.transact(
            lambda tr: owed.enqueue(tr, metadata.context, ZONES[0], "reclaim", b"x", vesting_ns=later_ns)
        )
        (aged,) = await metadata.engine.read(surveying.pointers, metadata.context, b"", 10)
        assert aged.since_ns(clock.now_ns()) is None
        clock.advance(3601 * SECOND)
        assert aged.since_ns(clock.now_ns()) == later_ns

    play("memory", tmp_path, story, clock=clock)


def test_a_failing_item_remembers_its_last_runs(tmp_path: Path) -> None:
    clock = ManualClock()

    async def story(metadata: Metadata) -> None:
        zone = ZONES[0]
        await metadata.engine.transact(lambda tr: owed.enqueue(tr, metadata.context, zone, "hold", b"x"))
        for number in range(25):
            clock.advance(120 * SECOND)
            lease = await metadata.queue.lease(zone)
            assert lease is not None
            batch = await metadata.queue.claim(zone, lease)
            assert batch is not None
            (claimed,) = batch.claimed
            await metadata.queue.fail(claimed, f"{number} " + "x" * 2000)
            if number == 9:
                await metadata.queue.retry(zone, claimed.id)
            if number == 19:
                await metadata.queue.retry(zone, claimed.id)
        item, _ = await metadata.queue.show(zone, claimed.id)
        assert item is not None
        assert item.attempts == 5
        assert [attempt.error.partition(" ")[0] for attempt in item.history] == [str(n) for n in range(15, 25)]
        assert max(len(attempt.error) for attempt in item.history) == 300
        assert {attempt.node for attempt in item.history} == {NODE}
        counts = (await metadata.engine.read(overseeing.counts, metadata.context, zone))["hold"]
        assert (counts.failing, counts.waiting, counts.dead) == (1, 1, 0)

    play("memory", tmp_path, story, clock=clock)
