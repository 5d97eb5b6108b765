"""What published implementations of QuiCK get wrong, each as a design of ours that has the defect and is found out.

Each story passes with the queue as it is, and fails with the defect planted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.kv.memory_engine import MemoryEngine, MemoryTransaction
from tests.metadata.queueing import take
from tests.metadata.world import NODE, found
from tests.replication.mutants import Mutant
from tigrislike.metadata import Metadata, deciding, leasing, overseeing, owed
from tigrislike.metadata.deciding import QUEUE

ZONE = NODE + b"some bucket's id"

Story = Callable[[Metadata, Any], Awaitable[None]]


def play(story: Story) -> None:
    async def main() -> None:
        engine = MemoryEngine()
        try:
            await story(await found(engine), engine.clock)
        finally:
            await engine.close()

    asyncio.run(main())


async def enqueue(metadata: Metadata, subject: bytes, **options: Any) -> None:
    async def one(tr: Any) -> None:
        await owed.enqueue(tr, metadata.context, ZONE, "task", subject, **options)

    await metadata.engine.transact(one)


async def a_dead_workers_item_is_visible_again(metadata: Metadata, clock: Any) -> None:
    await enqueue(metadata, b"x")
    assert len(await take(metadata, ZONE)) == 1
    clock.advance(QUEUE.item_lease_ns)
    assert len(await take(metadata, ZONE)) == 1


async def a_zone_has_one_pointer_however_often_it_moves(metadata: Metadata, clock: Any) -> None:
    begin, end = metadata.context.keys.queue_top_range(NODE)

    async def tops(tr: Any) -> int:
        return len(await tr.get_range(begin, end))

    for number in range(5):
        await enqueue(metadata, b"%d" % number)
        (claimed,) = await take(metadata, ZONE)
        await metadata.queue.fail(claimed, "it broke")
        await take(metadata, ZONE)
        assert await metadata.engine.read(tops) == 1


async def a_run_longer_than_its_first_lease_can_be_ended(metadata: Metadata, clock: Any) -> None:
    for end in (metadata.queue.finish, lambda claimed: metadata.queue.fail(claimed, "it broke")):
        await enqueue(metadata, b"x")
        (claimed,) = await take(metadata, ZONE)
        for _ in range(5):
            clock.advance(QUEUE.item_lease_ns // 3)
            assert await metadata.queue.extend([claimed]) == [claimed]
        assert await end(claimed)
        keys = metadata.context.keys
        rows = metadata.engine.dump()  # type: ignore[attr-defined]
        items = [key for key in rows if key.startswith(keys.queue_items)]
        due = [key for key in rows if key.startswith(keys.queue_due)]
        assert len(items) == len(due) == await metadata.queue.depth(ZONE)
    clock.advance(QUEUE.max_back_off_ns)
    assert len(await take(metadata, ZONE)) == 1


async def what_is_leased_or_delayed_hides_nothing(metadata: Metadata, clock: Any) -> None:
    for number in range(2 * QUEUE.batch):
        await enqueue(metadata, b"leased %d" % number, priority=1)
        await enqueue(metadata, b"delayed %d" % number, priority=1, vesting_ns=clock.now_ns() + 10**12)
    assert len(await take(metadata, ZONE)) == len(await take(metadata, ZONE)) == QUEUE.batch
    await enqueue(metadata, b"due", priority=2)
    assert [claimed.item.subject for claimed in await take(metadata, ZONE)] == [b"due"]


async def a_leased_pointer_keeps_others_out(metadata: Metadata, clock: Any) -> None:
    await enqueue(metadata, b"x")
    pointer_lease = await metadata.queue.lease(ZONE)
    assert pointer_lease is not None
    assert await metadata.queue.lease(ZONE) is None
    assert (await metadata.queue.peek(NODE)).zones == []
    batch = await metadata.queue.claim(ZONE, pointer_lease)
    assert batch is not None
    assert len(batch.claimed) == 1


async def what_a_zone_holds_is_known_without_counting(metadata: Metadata, clock: Any) -> None:
    for number in range(50):
        await enqueue(metadata, b"%d" % number)
    rows = 0
    with pytest.MonkeyPatch.context() as patch:
        real = MemoryTransaction.get_range

        def counted(self: Any, *args: Any, **options: Any) -> Any:
            nonlocal rows
            found = real(self, *args, **options)
            rows += len(found._value)
            return found

        patch.setattr(MemoryTransaction, "get_range", counted)
        assert await metadata.queue.depth(ZONE) == 50
        assert await metadata.queue.oldest_ns(ZONE) == 0
    assert rows < 10


DEFECTS = {
    "an item under a lease that ran out stays invisible": (
        a_dead_workers_item_is_visible_again,
        Mutant(deciding, "taken", "if item.vesting_ns > now_ns:", "if item.lease or item.vesting_ns > now_ns:"),
    ),
    "each move makes another pointer": (
        a_zone_has_one_pointer_however_often_it_moves,
        Mutant(owed, "put_pointer", "if old is not None:", "if False:"),
    ),
    "a run ends the item as it was when it was leased": (
        a_run_longer_than_its_first_lease_can_be_ended,
        Mutant(
            leasing,
            "finish",
            "put_item(tr, ctx, claimed.zone, claimed.id, item, again)",
            "put_item(tr, ctx, claimed.zone, claimed.id, claimed.item, again)",
        ),
    ),
    "a failure gives back the item as it was when it was leased": (
        a_run_longer_than_its_first_lease_can_be_ended,
        Mutant(
            leasing,
            "fail",
            "put_item(tr, ctx, zone, claimed.id, item, again)",
            "put_item(tr, ctx, zone, claimed.id, claimed.item, again)",
        ),
    ),
    "a bounded look goes through what is not due": (
        what_is_leased_or_delayed_hides_nothing,
        Mutant(
            leasing,
            "claim",
            "[(keys.queue_due_range(zone, each)[0], keys.queue_due_until(zone, each, now_ns)) for each in PRIORITIES]",
            "[(keys.queue_due_range(zone, 1)[0], keys.queue_due_range(zone, 2)[1])]",
        ),
    ),
    "a lease on the pointer does not move it": (
        a_leased_pointer_keeps_others_out,
        Mutant(deciding, "leased", ", vesting_ns=now_ns + parameters.pointer_lease_ns", ""),
    ),
    "depth is counted by a scan": (
        what_a_zone_holds_is_known_without_counting,
        Mutant(
            overseeing,
            "depth",
            "sum(counted.waiting for counted in (await counts(tr, ctx, zone)).values())",
            "len(await items(tr, ctx, zone, b'', 0))",
        ),
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_the_queue_does_not_have_it(name: str) -> None:
    story, _ = DEFECTS[name]
    play(story)


@pytest.mark.parametrize("name", DEFECTS)
def test_with_the_defect_the_story_fails(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    story, defect = DEFECTS[name]
    defect.plant(monkeypatch)
    with pytest.raises(AssertionError):
        play(story)
