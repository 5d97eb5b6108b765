"""The queue on the memory engine, beyond what can be explored to the end: many consumers, items, zones and faults.

Each cause counts up a number of its own, in the transaction that enqueues it; each run looks at that when it begins,
and its effect, in the transaction that finishes the item, notes what was seen. Whatever happens in between, in the end
every effect has seen its last cause. Only the wall clock jumps: transactions do not grow old by it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kv.memory_engine import MemoryEngine, RandomFaults
from tests.metadata.queueing import take_all
from tests.metadata.world import NODE, found
from tests.replication.mutants import MUTANTS
from tigrislike.admin.fsck import fsck
from tigrislike.metadata import Metadata, owed
from tigrislike.metadata.deciding import QUEUE
from tigrislike.metadata.kv import AmbiguousCommit
from tigrislike.metadata.records import Claimed

TASK = "task"
ZONES = [NODE + bytes((number,)) * 16 for number in range(3)]
STEPS = [0, 1, QUEUE.poll_ns, QUEUE.pointer_lease_ns, QUEUE.item_lease_ns, QUEUE.min_inactive_ns]


def cause_row(zone: bytes, subject: bytes) -> bytes:
    return b"cause" + zone + subject


def effect_row(zone: bytes, subject: bytes) -> bytes:
    return b"effect" + zone + subject


async def cause(metadata: Metadata, rng: random.Random) -> None:
    zone, subject = rng.choice(ZONES), rng.choice([b"x", b"y", b"z"])
    vesting_ns = rng.choice([0, 0, metadata.now_ns() + rng.choice(STEPS)])
    priority = subject[0] % 3

    async def enqueue(tr: Any) -> None:
        tr.add(cause_row(zone, subject), 1)
        await owed.enqueue(tr, metadata.context, zone, TASK, subject, vesting_ns=vesting_ns, priority=priority)

    await certain(metadata.engine.transact(enqueue))


async def certain(running: Awaitable[Any]) -> Any:
    """Its result; None where the outcome is unknown, which nobody may rely on."""
    try:
        return await running
    except AmbiguousCommit:
        return None


async def run(metadata: Metadata, claimed: Claimed) -> Callable[[Any, Any], Awaitable[None]]:
    async def look(tr: Any) -> bytes:
        seen: bytes = await tr.get(cause_row(claimed.zone, claimed.item.subject))
        return seen

    seen = await metadata.engine.read(look)

    async def effect(tr: Any, ctx: Any) -> None:
        tr.set(effect_row(claimed.zone, claimed.item.subject), seen)

    return effect


async def consume(metadata: Metadata, clock: Any, rng: random.Random, rounds: int) -> None:
    queue = metadata.queue
    for _ in range(rounds):
        clock.step(rng.choice(STEPS))
        peeked = await queue.peek(NODE)
        zone = rng.choice(peeked.zones or ZONES)
        pointer_lease = await certain(queue.lease(zone))
        if pointer_lease is None or rng.random() < 0.1:
            continue
        batch = await certain(queue.claim(zone, pointer_lease))
        for claimed in batch.claimed if batch else ():
            effect = await run(metadata, claimed)
            match rng.randrange(8):
                case 0:
                    await certain(queue.fail(claimed, "as it happens"))
                case 1:
                    clock.step(rng.choice(STEPS))
                    await certain(queue.extend([claimed]))
                    await certain(queue.finish(claimed, effect))
                case 2:
                    break  # dies, with what is left of the batch
                case 3:
                    await certain(queue.finish(claimed, effect))
                    await certain(queue.finish(claimed, effect))
                case _:
                    await certain(queue.finish(claimed, effect))


async def enqueue_some(metadata: Metadata, clock: Any, rng: random.Random, causes: int) -> None:
    for _ in range(causes):
        await cause(metadata, rng)
        if rng.random() < 0.3:
            clock.step(rng.choice(STEPS))


def suffer(engine: MemoryEngine, faults: RandomFaults | None) -> None:
    engine.faults = engine._runner._faults = engine._reader._faults = faults


async def story(seed: int, consumers: int, enqueuers: int, timed_out: float) -> None:
    rng = random.Random(seed)
    engine = MemoryEngine(seed=seed)
    metadata = await found(engine)
    suffer(engine, RandomFaults(seed, timed_out=timed_out))
    clock: Any = engine.clock
    await asyncio.gather(
        *(enqueue_some(metadata, clock, random.Random(rng.random()), 8) for _ in range(enqueuers)),
        *(consume(metadata, clock, random.Random(rng.random()), 10) for _ in range(consumers)),
    )
    await asyncio.gather(*list(engine._late))  # commits that were still under way
    suffer(engine, None)
    assert [finding async for finding in fsck(metadata, pause_s=0)] == []
    # One consumer, with patience
    for _ in range(20):
        for claimed in await take_all(metadata):
            assert await metadata.queue.finish(claimed, await run(metadata, claimed))
        clock.step(QUEUE.min_inactive_ns)
    rows = engine.dump()
    causes = {key[5:]: value for key, value in rows.items() if key.startswith(b"cause")}
    effects = {key[6:]: value for key, value in rows.items() if key.startswith(b"effect")}
    assert effects == causes
    keys = metadata.context.keys
    stays = (keys.queue_bells, keys.queue_sums)
    left = {key: value for key, value in rows.items() if b"queue" in key and not key.startswith(stays)}
    assert left == {}, "every zone is gone, with its counters"
    assert [finding async for finding in fsck(metadata, pause_s=0)] == []
    await engine.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    consumers=st.integers(1, 5),
    enqueuers=st.integers(1, 4),
    timed_out=st.sampled_from([0.0, 0.05]),
)
def test_every_effect_sees_its_last_cause_whatever_goes_wrong(
    seed: int, consumers: int, enqueuers: int, timed_out: float
) -> None:
    asyncio.run(story(seed, consumers, enqueuers, timed_out))


@pytest.mark.parametrize(
    "name",
    [
        "enqueue reads the mark by snapshot",
        "whoever had a lease may finish",
        "a recurrence under lease is lost at the end",
    ],
)
def test_the_runs_see_a_planted_defect(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name].plant(monkeypatch)

    def seen(seed: int) -> bool:
        try:
            asyncio.run(story(seed, 4, 4, 0.0))
        except AssertionError:
            return True
        return False

    assert any(seen(seed) for seed in range(200))
