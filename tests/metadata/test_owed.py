"""The queue: leases, fences, back-off, dead letters, zones and their pointers, and what operators do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.metadata.queueing import take
from tests.metadata.world import NODE, both_engines, dump, play
from tigrislike.metadata import overseeing, owed
from tigrislike.metadata.deciding import QUEUE, back_off_ns
from tigrislike.metadata.kv import ManualClock
from tigrislike.metadata.overseeing import Pausable
from tigrislike.metadata.records import Counts

SECOND = 10**9
LEASE = QUEUE.item_lease_ns
ZONE = NODE + b"some bucket's id"
OTHER = NODE + b"other bucket's i"


async def enqueue(metadata, subject, zone=ZONE, task="task", **options):
    async def one(tr):
        await owed.enqueue(tr, metadata.context, zone, task, subject, **options)

    await metadata.engine.transact(one)


async def rows(metadata):
    """Every row, under its full key: some engines have a prefix."""
    return {metadata.engine.prefix + key: value for key, value in (await dump(metadata)).items()}


def near(time_ns):
    """The clock of the memory engine moves a little with every commit."""
    return pytest.approx(time_ns, abs=10**6)


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
        assert subjects(await take(metadata, ZONE)) == [b"at once", b"first", b"second", b"idle"]
        assert await take(metadata, ZONE) == []
        clock.advance(5 * SECOND)
        assert subjects(await take(metadata, ZONE)) == [b"later"]
        assert await metadata.queue.depth(ZONE) == 5

    with_clock(kind, tmp_path, story)


@both_engines
def test_a_batch_is_bounded_and_what_is_more_can_be_claimed_at_once(kind, tmp_path):
    async def story(metadata, clock):
        for number in range(QUEUE.batch + 1):
            await enqueue(metadata, b"%d" % number)
        assert len(await take(metadata, ZONE)) == QUEUE.batch
        assert (await metadata.queue.peek(NODE)).zones == [ZONE]
        assert len(await take(metadata, ZONE)) == 1
        assert (await metadata.queue.peek(NODE)) == ([], near(clock.now_ns() + QUEUE.poll_ns))

    with_clock(kind, tmp_path, story)


@both_engines
def test_a_repeated_cause_is_one_item_that_keeps_the_earlier_time(kind, tmp_path):
    async def story(metadata, clock):
        now = clock.now_ns()
        await enqueue(metadata, b"x", vesting_ns=now + 9 * SECOND)
        await enqueue(metadata, b"x", vesting_ns=now + 5 * SECOND)
        await enqueue(metadata, b"x", vesting_ns=now + 7 * SECOND)
        assert await metadata.queue.depth(ZONE) == 1
        clock.advance(5 * SECOND)
        assert subjects(await take(metadata, ZONE)) == [b"x"]

    with_clock(kind, tmp_path, story)


@both_engines
def test_a_dead_holders_item_comes_back_and_the_holder_is_fenced(kind, tmp_path):
    async def story(metadata, clock):
        await enqueue(metadata, b"x")
        (first,) = await take(metadata, ZONE)
        assert await take(metadata, ZONE) == []
        clock.advance(LEASE)
        (second,) = await take(metadata, ZONE)
        assert not await metadata.queue.finish(first)
        assert await metadata.queue.extend([first]) == []
        assert not await metadata.queue.fail(first, "too late")
        assert await metadata.queue.finish(second)
        assert not await metadata.queue.finish(second)
        assert await metadata.queue.depth(ZONE) == 0

    with_clock(kind, tmp_path, story)


@both_engines
def test_an_extended_lease_holds_and_can_still_be_finished(kind, tmp_path):
    async def story(metadata, clock):
        await enqueue(metadata, b"x")
        (claimed,) = await take(metadata, ZONE)
        for _ in range(5):
            clock.advance(20 * SECOND)
            assert await metadata.queue.extend([claimed]) == [claimed]
            assert await take(metadata, ZONE) == []
        assert await metadata.queue.finish(claimed)
        assert not [key for key in await rows(metadata) if b"queue" in key and (b"item" in key or b"due" in key)]

    with_clock(kind, tmp_path, story)


@both_engines
def test_a_clock_set_back_does_not_shorten_a_lease(kind, tmp_path):
    async def story(metadata, clock):
        await enqueue(metadata, b"x")
        (claimed,) = await take(metadata, ZONE)
        clock.step(-3600 * SECOND)
        assert await metadata.queue.extend([claimed]) == [claimed]
        assert await metadata.queue.oldest_ns(ZONE) == claimed.item.vesting_ns

    with_clock(kind, tmp_path, story)


@both_engines
def test_what_a_run_comes_to_happens_once_with_its_end(kind, tmp_path):
    async def story(metadata, clock):
        async def effect(tr, ctx):
            tr.add(ctx.keys.prefix + b"effects", 1)

        await enqueue(metadata, b"x")
        (first,) = await take(metadata, ZONE)
        clock.advance(LEASE)
        (second,) = await take(metadata, ZONE)
        assert await metadata.queue.finish(second, effect)
        assert not await metadata.queue.finish(first, effect)
        assert (await dump(metadata))[b"effects"] == (1).to_bytes(8, "little")

    with_clock(kind, tmp_path, story)


@both_engines
def test_an_effect_that_fails_leaves_the_item_leased(kind, tmp_path):
    async def story(metadata, clock):
        async def effect(tr, ctx):
            tr.set(ctx.keys.prefix + b"effects", b"")
            raise ZeroDivisionError

        await enqueue(metadata, b"x")
        (claimed,) = await take(metadata, ZONE)
        with pytest.raises(ZeroDivisionError):
            await metadata.queue.finish(claimed, effect)
        assert b"effects" not in await rows(metadata)
        assert await metadata.queue.fail(claimed, "as it failed")

    with_clock(kind, tmp_path, story)


@both_engines
def test_a_cause_that_recurs_under_lease_is_done_again(kind, tmp_path):
    async def story(metadata, clock):
        await enqueue(metadata, b"x")
        (claimed,) = await take(metadata, ZONE)
        now = clock.now_ns()
        await enqueue(metadata, b"x", vesting_ns=now + 9 * SECOND)
        await enqueue(metadata, b"x", vesting_ns=now + 5 * SECOND)
        assert await metadata.queue.finish(claimed)
        assert await take(metadata, ZONE) == []
        clock.advance(5 * SECOND)
        (again,) = await take(metadata, ZONE)
        assert await metadata.queue.finish(again)
        assert await metadata.queue.counts(ZONE) == {"task": Counts(enqueued=2, done=2)}

    with_clock(kind, tmp_path, story)


@both_engines
def test_failures_back_off_and_end_as_a_dead_letter_that_can_be_retried(kind, tmp_path):
    async def story(metadata, clock):
        async def use_up_all_attempts():
            for attempt in range(1, QUEUE.max_attempts + 1):
                (claimed,) = await take(metadata, ZONE)
                assert claimed.item.attempts == attempt - 1
                assert await metadata.queue.fail(claimed, "it broke " * 1000)
                assert await take(metadata, ZONE) == []
                if attempt < QUEUE.max_attempts:
                    clock.advance(90 * SECOND)

        await enqueue(metadata, b"x")
        await use_up_all_attempts()
        assert await metadata.queue.counts(ZONE) == {"task": Counts(enqueued=1, failed=10, dead=1)}
        ((id_, letter),) = await metadata.queue.letters(ZONE)
        assert (letter.subject, letter.attempts, letter.error) == (b"x", 10, ("it broke " * 1000)[:1000])
        assert await metadata.queue.letters(ZONE, id_) == []
        assert await metadata.queue.show(ZONE, id_) == (None, letter)
        assert await metadata.queue.retry(ZONE, id_)
        assert not await metadata.queue.retry(ZONE, id_)
        # A cause that recurs while there is a letter makes an item, which may end as a letter in its turn.
        await use_up_all_attempts()
        await enqueue(metadata, b"x")
        await use_up_all_attempts()
        assert await metadata.queue.counts(ZONE) == {"task": Counts(enqueued=3, failed=30, dead=1)}
        await enqueue(metadata, b"x")
        assert await metadata.queue.retry(ZONE, id_)
        assert await metadata.queue.counts(ZONE) == {"task": Counts(waiting=1, enqueued=4, failed=30)}
        assert len(await take(metadata, ZONE)) == 1

    with_clock(kind, tmp_path, story)


@both_engines
def test_a_cause_that_recurs_during_the_last_attempt_gets_attempts_of_its_own(kind, tmp_path):
    async def story(metadata, clock):
        await enqueue(metadata, b"x")
        for attempt in range(1, QUEUE.max_attempts + 1):
            (claimed,) = await take(metadata, ZONE)
            if attempt == QUEUE.max_attempts:
                await enqueue(metadata, b"x")
            assert await metadata.queue.fail(claimed, "it broke")
            clock.advance(90 * SECOND)
        assert await metadata.queue.counts(ZONE) == {"task": Counts(1, enqueued=2, failed=10, dead=1)}
        (claimed,) = await take(metadata, ZONE)
        assert claimed.item.attempts == 0

    with_clock(kind, tmp_path, story)


@pytest.mark.parametrize(("attempts", "low", "high"), [(1, 0.5, 1.5), (3, 2, 6), (7, 30, 90), (100, 30, 90)])
def test_back_off_doubles_up_to_a_minute(attempts, low, high):
    assert back_off_ns(QUEUE, attempts, 0.0) == low * SECOND
    assert back_off_ns(QUEUE, attempts, 1.0) == high * SECOND


@both_engines
def test_what_fails_only_for_now_keeps_its_attempts_and_waits_as_long_again_as_it_has(kind, tmp_path):
    async def story(metadata, clock):
        began_ns = clock.now_ns()
        await enqueue(metadata, b"x")
        for _ in range(2 * QUEUE.max_attempts):
            (claimed,) = await take(metadata, ZONE)
            owed_ns = clock.now_ns() - began_ns
            assert await metadata.queue.fail(claimed, "not now", for_now=True)
            ((_, item),) = await metadata.queue.items(ZONE)
            assert (item.lease, item.attempts, item.error) == (b"", 0, "not now")
            wait_ns = item.vesting_ns - clock.now_ns()
            expected_ns = min(max(owed_ns, QUEUE.back_off_ns), QUEUE.max_back_off_ns)
            assert 0.5 * expected_ns - 1000 <= wait_ns <= 1.5 * expected_ns + 1000
            clock.advance(wait_ns + 1)
        assert await metadata.queue.letters(ZONE) == []
        assert len(await take(metadata, ZONE)) == 1

    with_clock(kind, tmp_path, story)


# --- zones and their pointers


async def pointers(metadata):
    """Zones in the order in which consumers see their pointers, with their times."""
    keys = metadata.context.keys
    begin, end = keys.queue_top_range(NODE)

    async def read(tr):
        return [key[len(begin) - 1 :] for key, _ in await tr.get_range(begin, end)]

    rows = await metadata.engine.read(read)
    return [
        (zone, (await metadata.queue.pointer(zone)).vesting_ns)
        for row in rows
        for zone in (ZONE, OTHER)
        if row.endswith(zone[16:] + b"\x00")
    ]


@both_engines
def test_only_a_zone_empty_for_a_while_is_collected(kind, tmp_path):
    async def story(metadata, clock):
        assert await metadata.queue.zones() == []
        await enqueue(metadata, b"x")
        assert await metadata.queue.zones() == [ZONE]
        assert await metadata.queue.zones(after=ZONE) == []
        (claimed,) = await take(metadata, ZONE)
        await metadata.queue.finish(claimed)
        assert await take(metadata, ZONE) == []
        assert await pointers(metadata) == [(ZONE, near(clock.now_ns() + QUEUE.min_inactive_ns))]
        clock.advance(QUEUE.min_inactive_ns - SECOND)
        assert await metadata.queue.lease(ZONE) is None
        clock.advance(SECOND)
        assert await take(metadata, ZONE) == []
        assert await metadata.queue.zones() == []
        keys = metadata.context.keys
        left = [key for key in await rows(metadata) if b"queue" in key and not key.startswith(keys.queue_sums)]
        assert left == [keys.queue_bell(NODE)]

    with_clock(kind, tmp_path, story)


@both_engines
def test_a_leased_item_keeps_its_zone(kind, tmp_path):
    async def story(metadata, clock):
        await enqueue(metadata, b"x")
        (claimed,) = await take(metadata, ZONE)
        assert await take(metadata, ZONE) == []
        assert await pointers(metadata) == [(ZONE, claimed.item.vesting_ns)]

    with_clock(kind, tmp_path, story)


@both_engines
def test_dead_letters_and_their_number_outlive_their_zone(kind, tmp_path):
    async def story(metadata, clock):
        await enqueue(metadata, b"x")
        for _ in range(QUEUE.max_attempts):
            (claimed,) = await take(metadata, ZONE)
            await metadata.queue.fail(claimed, "it broke")
            clock.advance(90 * SECOND)
        await take(metadata, ZONE)
        assert await metadata.queue.zones() == []
        assert await metadata.queue.counts(ZONE) == {"task": Counts(dead=1)}
        ((id_, _),) = await metadata.queue.letters(ZONE)
        assert await metadata.queue.retry(ZONE, id_)
        assert await metadata.queue.zones() == [ZONE]
        assert len(await take(metadata, ZONE)) == 1

    with_clock(kind, tmp_path, story)


@both_engines
def test_a_deferred_pointer_is_pulled_by_what_vests_earlier_and_by_nothing_else(kind, tmp_path):
    async def story(metadata, clock):
        now = clock.now_ns()
        await enqueue(metadata, b"a", vesting_ns=now + 9 * SECOND)
        assert await pointers(metadata) == [(ZONE, now + 9 * SECOND)]
        before = await rows(metadata)
        await enqueue(metadata, b"b", vesting_ns=now + 9 * SECOND)
        same = [key for key, value in (await rows(metadata)).items() if before.get(key) == value]
        keys = metadata.context.keys
        untouched = [keys.queue_zone(ZONE), keys.queue_pointer(ZONE), keys.queue_bell(NODE)]
        assert set(untouched) <= set(same)
        await enqueue(metadata, b"c", vesting_ns=now + 5 * SECOND)
        assert await pointers(metadata) == [(ZONE, now + 5 * SECOND)]
        await enqueue(metadata, b"a")
        assert await pointers(metadata) == [(ZONE, 0)]

    with_clock(kind, tmp_path, story)


@both_engines
def test_a_failure_and_a_recurrence_pull_the_pointer_that_was_deferred_to_the_end_of_the_lease(kind, tmp_path):
    async def story(metadata, clock):
        await enqueue(metadata, b"fails")
        await enqueue(metadata, b"recurs")
        fails, recurs = await take(metadata, ZONE)
        assert await take(metadata, ZONE) == []
        assert await pointers(metadata) == [(ZONE, near(clock.now_ns() + LEASE))]
        assert await metadata.queue.fail(fails, "it broke")
        ((_, vesting_ns),) = await pointers(metadata)
        assert vesting_ns <= clock.now_ns() + 1.5 * SECOND
        await enqueue(metadata, b"recurs")
        assert await metadata.queue.finish(recurs)
        assert await pointers(metadata) == [(ZONE, 0)]

    with_clock(kind, tmp_path, story)


@both_engines
def test_a_busy_zone_is_enqueued_into_without_a_word_about_its_pointer(kind, tmp_path):
    async def story(metadata, clock):
        await enqueue(metadata, b"a")
        keys = metadata.context.keys
        quiet = [keys.queue_zone(ZONE), keys.queue_pointer(ZONE), keys.queue_bell(NODE)]
        before = await rows(metadata)
        pointer_lease = await metadata.queue.lease(ZONE)
        held = await rows(metadata)
        assert held[quiet[0]] == before[quiet[0]] == b"", "the mark does not say who holds the pointer"
        await enqueue(metadata, b"b")
        assert [(await rows(metadata))[key] for key in quiet] == [held[key] for key in quiet]
        assert len((await metadata.queue.claim(ZONE, pointer_lease)).claimed) == 2

    with_clock(kind, tmp_path, story)


@both_engines
def test_a_pointer_is_leased_by_one_and_a_lost_lease_claims_nothing(kind, tmp_path):
    async def story(metadata, clock):
        await enqueue(metadata, b"x")
        first = await metadata.queue.lease(ZONE)
        assert first is not None
        assert await metadata.queue.lease(ZONE, early_ns=QUEUE.poll_ns) is None
        assert await metadata.queue.lease(OTHER) is None
        clock.advance(QUEUE.pointer_lease_ns)
        second = await metadata.queue.lease(ZONE)
        assert await metadata.queue.claim(ZONE, first) is None
        assert await metadata.queue.oldest_ns(ZONE) == 0
        assert len((await metadata.queue.claim(ZONE, second)).claimed) == 1
        assert await metadata.queue.claim(ZONE, second) is None

    with_clock(kind, tmp_path, story)


@both_engines
def test_peeking_shows_what_has_vested_and_when_the_next_will(kind, tmp_path):
    async def story(metadata, clock):
        assert await metadata.queue.peek(NODE) == ([], None)
        soon = clock.now_ns() + SECOND
        await enqueue(metadata, b"x", zone=OTHER, vesting_ns=soon)
        await enqueue(metadata, b"x", zone=b"another node's i" + bytes(16))
        assert await metadata.queue.peek(NODE) == ([], soon)
        assert await metadata.queue.peek(NODE, early_ns=SECOND) == ([OTHER], None)
        await enqueue(metadata, b"x")
        assert await metadata.queue.peek(NODE) == ([ZONE], soon)
        clock.advance(SECOND)
        assert await metadata.queue.peek(NODE) == ([ZONE, OTHER], None)

    with_clock(kind, tmp_path, story)


@both_engines
def test_the_bell_rings_when_a_pointer_is_made_or_pulled(kind, tmp_path):
    async def story(metadata, clock):
        bell = await metadata.queue.listen(NODE)
        await enqueue(metadata, b"a", vesting_ns=clock.now_ns() + SECOND)
        assert await bell.wait(5)
        bell = await metadata.queue.listen(NODE)
        await enqueue(metadata, b"b")
        assert await bell.wait(5)
        bell = await metadata.queue.listen(NODE)
        await enqueue(metadata, b"c")
        assert not await bell.wait(0)

    with_clock(kind, tmp_path, story)


# --- operators


@both_engines
def test_items_are_listed_delayed_and_dropped(kind, tmp_path):
    async def story(metadata, clock):
        queue = metadata.queue
        assert await queue.oldest_ns(ZONE) is None
        assert await queue.pointer(ZONE) is None
        await enqueue(metadata, b"a")
        await enqueue(metadata, b"b", vesting_ns=clock.now_ns() + SECOND, priority=1)
        assert await queue.oldest_ns(ZONE) == 0
        listed = await queue.items(ZONE)
        assert {item.subject for _, item in listed} == {b"a", b"b"}
        assert await queue.items(ZONE, listed[0][0], 1) == [listed[1]]
        assert await queue.show(ZONE, listed[0][0]) == (listed[0][1], None)
        assert await queue.show(ZONE, bytes(16)) == (None, None)
        ids = {item.subject: id_ for id_, item in listed}
        assert await queue.delay(ZONE, ids[b"a"], clock.now_ns() + 9 * SECOND)
        assert await take(metadata, ZONE) == []
        assert await pointers(metadata) == [(ZONE, near(clock.now_ns() + SECOND))]
        assert await queue.delay(ZONE, ids[b"b"], clock.now_ns() + SECOND // 2)
        assert [item.vesting_ns for _, item in await queue.items(ZONE) if item.subject == b"b"] == [
            near(clock.now_ns() + SECOND)
        ], "what is due later anyway is not hastened"
        assert await queue.delay(ZONE, ids[b"b"], 0)
        (claimed,) = await take(metadata, ZONE)
        assert claimed.id == ids[b"b"]
        assert not await queue.delay(ZONE, ids[b"b"], 0), "it is being worked on"
        assert not await queue.delay(ZONE, bytes(16), 0)
        assert await queue.drop(ZONE, ids[b"b"])
        assert not await queue.drop(ZONE, ids[b"b"])
        assert not await queue.finish(claimed)
        assert await queue.depth(ZONE) == 1

    with_clock(kind, tmp_path, story)


@both_engines
def test_a_dead_letter_is_dropped(kind, tmp_path):
    async def story(metadata, clock):
        await enqueue(metadata, b"x")
        for _ in range(QUEUE.max_attempts):
            (claimed,) = await take(metadata, ZONE)
            await metadata.queue.fail(claimed, "it broke")
            clock.advance(90 * SECOND)
        assert await metadata.queue.drop(ZONE, claimed.id)
        assert await metadata.queue.letters(ZONE) == []
        assert (await metadata.queue.counts(ZONE))["task"].dead == 0

    with_clock(kind, tmp_path, story)


@both_engines
@pytest.mark.parametrize(("what", "name"), [(Pausable.ZONE, ZONE), (Pausable.DESTINATION, NODE)])
def test_a_paused_zone_or_destination_is_not_leased(kind, tmp_path, what, name):
    async def story(metadata, clock):
        await enqueue(metadata, b"x")
        await enqueue(metadata, b"x", zone=OTHER)
        await metadata.queue.pause(what, name)
        assert (await metadata.queue.paused())[what] == {name}
        assert (await metadata.queue.peek(NODE)).zones == ([OTHER] if what is Pausable.ZONE else [])
        assert await metadata.queue.lease(ZONE) is None
        bell = await metadata.queue.listen(NODE)
        await metadata.queue.resume(what, name)
        assert await bell.wait(5)
        assert not any((await metadata.queue.paused()).values())
        assert len(await take(metadata, ZONE)) == 1

    with_clock(kind, tmp_path, story)


@both_engines
def test_items_of_a_paused_task_wait_and_hide_no_others(kind, tmp_path):
    async def story(metadata, clock):
        for number in range(2 * QUEUE.batch):
            await enqueue(metadata, b"%d" % number, task="paused")
        await enqueue(metadata, b"x", priority=2)
        await metadata.queue.pause(Pausable.TASK, b"paused")
        taken = []
        for _ in range(3):
            taken += await take(metadata, ZONE)
        assert subjects(taken) == [b"x"]
        assert (await metadata.queue.counts(ZONE))["paused"].waiting == 2 * QUEUE.batch
        await metadata.queue.resume(Pausable.TASK, b"paused")
        clock.advance(QUEUE.set_back_ns)
        for _ in range(3):
            taken += await take(metadata, ZONE)
        assert len(taken) == 2 * QUEUE.batch + 1

    with_clock(kind, tmp_path, story)


@both_engines
def test_a_damaged_zone_is_woken(kind, tmp_path):
    async def story(metadata, clock):
        await enqueue(metadata, b"x", vesting_ns=clock.now_ns() + SECOND)

        async def damage(tr):
            tr.clear(metadata.context.keys.queue_zone(ZONE))

        async def wake(tr):
            await overseeing.wake(tr, metadata.context, ZONE)

        await metadata.engine.transact(damage)
        await metadata.engine.transact(wake)
        assert await pointers(metadata) == [(ZONE, 0)]
        assert await take(metadata, ZONE) == []
        assert await pointers(metadata) == [(ZONE, near(clock.now_ns() + SECOND))]

    with_clock(kind, tmp_path, story)


ACTS = st.tuples(st.sampled_from(["enqueue", "take", "elapse"]), st.lists(st.sampled_from("abcd"), max_size=6))


@given(st.lists(ACTS, max_size=8))
def test_many_enqueued_at_once_are_what_they_are_one_by_one(acts):
    """Whatever lies in the zone already: nothing, the same items, some under lease, a pointer that is deferred."""

    async def outcome(metadata, clock, at_once):
        for act, names in acts:
            ids = [name.encode() for name in names]
            if act == "take":
                await take(metadata, ZONE)
            elif act == "elapse":
                clock.advance(LEASE)
            elif at_once:

                async def all_of_them(tr, ids=ids):
                    await owed.enqueue_all(tr, metadata.context, ZONE, "task", ids, priority=1, bucket=b"b")

                await metadata.engine.transact(all_of_them)
            else:
                for id_ in ids:
                    await enqueue(metadata, id_, priority=1, bucket=b"b")
        items = [item for _, item in await metadata.queue.items(ZONE)]
        seen = [(item.subject, item.priority, item.bucket, bool(item.lease), item.again_ns) for item in items]
        due = subjects(await take(metadata, ZONE)) if (await metadata.queue.peek(NODE)).zones else None
        return seen, await metadata.queue.counts(ZONE), due and sorted(due)

    def play_out(at_once):
        clock = ManualClock()
        return play("memory", None, lambda metadata: outcome(metadata, clock, at_once), clock=clock)

    assert play_out(True) == play_out(False)
