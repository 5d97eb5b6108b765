"""The queue's primitives: leases, fences, back-off, dead letters, and zones."""

import pytest

from tests.metadata.world import NODE, both_engines, dump, play
from tigrislike.metadata import owed
from tigrislike.metadata.kv import ManualClock

SECOND = 10**9
ZONE = NODE + b"some bucket's id"


async def enqueue(metadata, subject, **options):
    async def one(tr):
        await owed.enqueue(tr, metadata.context, ZONE, "task", subject, **options)

    await metadata.engine.transact(one)


async def claim(metadata, limit=10, lease_s=30):
    return await metadata.claim(ZONE, limit, lease_s)


def subjects(claimed):
    return [one.item.subject for one in claimed]


def with_clock(kind, folder, story):
    clock = ManualClock()
    play(kind, folder, lambda metadata: story(metadata, clock), clock=clock)


@both_engines
def test_items_are_claimed_by_priority_and_then_by_vesting_time(kind, tmp_path):
    async def story(metadata, clock):
        now = clock.now_ns()
        await enqueue(metadata, b"later", vesting_ns=now + 5 * SECOND)
        await enqueue(metadata, b"second", vesting_ns=now - 1)
        await enqueue(metadata, b"first", vesting_ns=now - 2)
        await enqueue(metadata, b"idle", priority=2)
        await enqueue(metadata, b"at once", priority=0)
        assert subjects(await claim(metadata, 2)) == [b"at once", b"first"]
        assert subjects(await claim(metadata)) == [b"second", b"idle"]
        assert await claim(metadata) == []
        clock.advance(5 * SECOND)
        assert subjects(await claim(metadata)) == [b"later"]
        assert await metadata.queue_depth(ZONE) == 5

    with_clock(kind, tmp_path, story)


@both_engines
def test_a_repeated_cause_is_one_item_that_keeps_the_earlier_time(kind, tmp_path):
    async def story(metadata, clock):
        now = clock.now_ns()
        await enqueue(metadata, b"x", vesting_ns=now + 9 * SECOND)
        await enqueue(metadata, b"x", vesting_ns=now + 5 * SECOND)
        await enqueue(metadata, b"x", vesting_ns=now + 7 * SECOND)
        assert await metadata.queue_depth(ZONE) == 1
        clock.advance(5 * SECOND)
        assert subjects(await claim(metadata)) == [b"x"]

    with_clock(kind, tmp_path, story)


@both_engines
def test_a_dead_holders_item_comes_back_and_the_holder_is_fenced(kind, tmp_path):
    async def story(metadata, clock):
        await enqueue(metadata, b"x")
        (first,) = await claim(metadata)
        assert await claim(metadata) == []
        clock.advance(30 * SECOND)
        (second,) = await claim(metadata)
        assert not await metadata.finish(first)
        assert not await metadata.extend(first, 30)
        assert not await metadata.fail(first, "too late")
        assert await metadata.finish(second)
        assert not await metadata.finish(second)
        assert await metadata.queue_depth(ZONE) == 0

    with_clock(kind, tmp_path, story)


@both_engines
def test_an_extended_lease_holds_and_can_still_be_finished(kind, tmp_path):
    async def story(metadata, clock):
        await enqueue(metadata, b"x")
        (claimed,) = await claim(metadata)
        for _ in range(5):
            clock.advance(20 * SECOND)
            assert await metadata.extend(claimed, 30)
            assert await claim(metadata) == []
        assert await metadata.finish(claimed)
        assert not [key for key in await dump(metadata) if b"queue" in key and (b"item" in key or b"due" in key)]

    with_clock(kind, tmp_path, story)


@both_engines
def test_a_cause_that_recurs_under_lease_is_done_again(kind, tmp_path):
    async def story(metadata, clock):
        await enqueue(metadata, b"x")
        (claimed,) = await claim(metadata)
        now = clock.now_ns()
        await enqueue(metadata, b"x", vesting_ns=now + 9 * SECOND)
        await enqueue(metadata, b"x", vesting_ns=now + 5 * SECOND)
        assert await metadata.finish(claimed)
        assert await claim(metadata) == []
        clock.advance(5 * SECOND)
        (again,) = await claim(metadata)
        assert await metadata.finish(again)
        assert await metadata.queue_depth(ZONE) == 0

    with_clock(kind, tmp_path, story)


@both_engines
def test_failures_back_off_and_end_as_a_dead_letter(kind, tmp_path):
    async def story(metadata, clock):
        await enqueue(metadata, b"x")
        for attempt in range(1, owed.MAX_ATTEMPTS + 1):
            (claimed,) = await claim(metadata)
            assert claimed.item.attempts == attempt - 1
            assert await metadata.fail(claimed, "it broke " * 1000)
            assert await claim(metadata) == []
            clock.advance(90 * SECOND)
        assert await claim(metadata) == []
        assert await metadata.queue_depth(ZONE) == 0
        assert [key for key in await dump(metadata) if b"dead" in key]

    with_clock(kind, tmp_path, story)


@pytest.mark.parametrize(("attempts", "low", "high"), [(1, 0.5, 1.5), (3, 2, 6), (7, 30, 90), (100, 30, 90)])
def test_back_off_doubles_up_to_a_minute(attempts, low, high):
    assert owed.back_off_ns(attempts, 0.0) == low * SECOND
    assert owed.back_off_ns(attempts, 1.0) == high * SECOND


@both_engines
def test_only_an_empty_zone_is_collected(kind, tmp_path):
    async def story(metadata, clock):
        assert await metadata.zones() == []
        await enqueue(metadata, b"x")
        assert await metadata.zones() == [ZONE]
        assert await metadata.zones(after=ZONE) == []
        assert not await metadata.collect_zone(ZONE)
        (claimed,) = await claim(metadata)
        assert not await metadata.collect_zone(ZONE)
        await metadata.finish(claimed)
        assert await metadata.collect_zone(ZONE)
        assert await metadata.zones() == []
        assert not [key for key in await dump(metadata) if b"queue" in key]

    with_clock(kind, tmp_path, story)
