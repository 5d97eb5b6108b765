"""Who lives and who does not, as one process sees it; its clock is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.kv.memory_engine import MemoryEngine
from tests.metadata.world import NODE, found
from tigrislike.metadata import Metadata
from tigrislike.metadata.kv import EngineUnavailable
from tigrislike.metadata.placing import ranked
from tigrislike.metadata.records import DRAINING, REMOVED, UP, Beat, Node
from tigrislike.replication.membership import BEAT_S, DEAD_AFTER_S, Member, Members, skew_s

REGIONS = {b"%016d" % number: region for number, region in enumerate(("here", "here", "iad", "iad"))}
A, B, C, D = REGIONS
CONTENT = b"c" * 16


class World:
    """A process of the node `NODE` (in "here"), four other nodes, and a clock."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata
        self.now_s = 1000.0
        self.members = Members(metadata, clock_s=lambda: self.now_s)
        self.counts = dict.fromkeys([NODE, *REGIONS], 0)

    async def join(self) -> None:
        for node_id, region in {NODE: "here", **REGIONS}.items():
            await self.metadata.join(Node(node_id, region, f"https://{node_id.decode()}"))

    async def beat(self, *silent: bytes) -> None:
        """Everybody but `silent` shows life, and `BEAT_S` later the process looks."""
        for node_id in self.counts:
            if node_id not in silent:
                self.counts[node_id] += 1
                await self.metadata.beat(node_id, Beat(0, self.counts[node_id]))
        self.now_s += BEAT_S
        await self.members.refresh()

    def taking(self) -> set[bytes]:
        return {each.node for each in self.members.takers()} - {NODE}

    def reached(self) -> set[bytes]:
        return {each.node for each in self.members.reachable(REGIONS)}


def play(story: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        engine = MemoryEngine()
        world = World(await found(engine))
        await world.join()
        await story(world)
        await engine.close()

    asyncio.run(main())


def test_a_node_counts_once_it_is_seen_to_beat() -> None:
    async def story(it: World) -> None:
        assert it.members.alive() == {NODE: "here"}, "before the first look only itself"
        await it.beat()
        # It has beaten; whether it still does is not known. It may be asked, and not be counted on.
        assert it.taking() == set()
        assert it.reached() == set(REGIONS)
        assert it.members.alive() == {NODE: "here"}
        await it.beat()
        assert it.taking() == it.reached() == set(REGIONS)
        assert it.members.alive() == {NODE: "here", **REGIONS}

    play(story)


def test_a_node_takes_what_waited_for_it_at_its_first_look() -> None:
    async def story(it: World) -> None:
        await it.members.refresh()
        assert [each.node for each in it.members.chosen(CONTENT, "here")] == [NODE], (
            "it runs, so it need not be seen to"
        )

    play(story)


def test_regions_are_known_as_soon_as_they_have_a_node() -> None:
    async def story(it: World) -> None:
        assert it.metadata.regions.known == {"here"}
        await it.members.refresh()
        assert it.metadata.regions.known == {"here", "iad"}
        await it.metadata.set_node_state(C, REMOVED)
        await it.members.refresh()
        assert it.metadata.regions.known == {"here", "iad"}
        await it.metadata.set_node_state(D, REMOVED)
        await it.members.refresh()
        assert it.metadata.regions.known == {"here"}

    play(story)


def test_a_node_that_stops_beating_is_dead_after_a_while_and_lives_again_with_its_next_beat() -> None:
    async def story(it: World) -> None:
        await it.beat()
        await it.beat()
        silent_s = 0.0
        while silent_s < DEAD_AFTER_S:
            assert A in it.reached()
            assert A in it.members.alive()
            await it.beat(A)
            silent_s += BEAT_S
        await it.beat(A)
        assert it.taking() == it.reached() == set(REGIONS) - {A}
        assert A not in it.members.alive()
        dead = it.members.get(A)
        assert dead is not None
        assert (dead.dead, dead.takes_homes) == (True, False)
        await it.beat()
        assert it.taking() == it.reached() == set(REGIONS)

    play(story)


def test_a_node_that_was_never_seen_to_beat_dies_too() -> None:
    async def story(it: World) -> None:
        for _ in range(int(DEAD_AFTER_S // BEAT_S) + 2):
            await it.beat(D)
        assert it.reached() == set(REGIONS) - {D}

    play(story)


def test_a_node_whose_count_begins_anew_lives() -> None:
    async def story(it: World) -> None:
        for _ in range(5):
            await it.beat()
        it.counts[A] = 0  # it was started again
        for _ in range(5):
            await it.beat()
            assert A in it.taking()

    play(story)


def test_while_the_database_is_away_nobody_dies_and_after_it_all_have_their_time() -> None:
    async def story(it: World) -> None:
        await it.beat()
        await it.beat()
        await it.beat(A)
        listed, away = it.metadata.nodes, EngineUnavailable("the database is away")

        async def refuse() -> list[tuple[Node, Beat | None]]:
            raise away

        it.metadata.nodes = refuse  # type: ignore[method-assign]
        for _ in range(int(10 * DEAD_AFTER_S / BEAT_S)):
            it.now_s += BEAT_S
            with pytest.raises(EngineUnavailable):
                await it.members.refresh()
            assert it.taking() == it.reached() == set(REGIONS)
        it.metadata.nodes = listed  # type: ignore[method-assign]
        it.now_s += BEAT_S
        await it.members.refresh()  # nobody has had time to beat
        assert it.taking() == it.reached() == set(REGIONS)
        # And who has died meanwhile is found out as ever.
        silent_s = BEAT_S  # before the database went away
        while silent_s <= DEAD_AFTER_S:
            assert A in it.reached()
            await it.beat(A)
            silent_s += BEAT_S
        assert it.reached() == set(REGIONS) - {A}

    play(story)


def test_who_drains_is_asked_and_given_nothing_and_who_was_removed_is_not_there() -> None:
    async def story(it: World) -> None:
        await it.metadata.set_node_state(A, DRAINING)
        await it.beat()
        await it.beat()
        assert it.taking() == set(REGIONS) - {A}
        assert A in it.reached()
        assert A not in it.members.alive(), "what it holds is to be held elsewhere"
        assert not it.members.leaving
        await it.metadata.set_node_state(A, REMOVED)
        await it.beat()
        assert A not in {each.node for each in it.members.all()}
        assert A not in it.members.alive()
        assert A not in it.reached()
        removed = it.members.get(A)
        assert removed is not None
        assert removed.state == REMOVED

    play(story)


def test_a_node_knows_that_it_is_to_leave() -> None:
    async def story(it: World) -> None:
        assert (it.members.own_state, it.members.leaving) == (UP, False)
        await it.metadata.join(Node(it.members.own, "here", "http://own"))
        for state in (UP, DRAINING, REMOVED):
            await it.metadata.set_node_state(it.members.own, state)
            await it.members.refresh()
            assert (it.members.own_state, it.members.leaving) == (state, state != UP)

    play(story)


def test_a_node_without_an_endpoint_is_not_asked() -> None:
    async def story(it: World) -> None:
        await it.metadata.join(Node(A, "here", ""))
        await it.beat()
        assert it.reached() == set(REGIONS) - {A}

    play(story)


def test_the_nearest_are_asked_first_as_measured() -> None:
    async def story(it: World) -> None:
        await it.beat()

        def order() -> list[bytes]:
            return [each.node for each in it.members.reachable([NODE, D, C, b"x" * 16, B, A])]

        assert order() == [A, B, C, D], "its own region first, before anything was measured"
        it.members.measured(D, 0.2)
        it.members.measured(C, 0.3)
        it.members.measured(A, 0.001)
        assert order() == [B, A, D, C]
        for _ in range(20):
            it.members.measured(C, 0.1)
        assert order() == [B, A, C, D]
        member = it.members.get(C)
        assert member is not None
        assert it.members.latency_s(member) == pytest.approx(0.1, abs=0.001)
        it.members.measured(b"x" * 16, 1.0)
        await it.beat()
        assert set(it.members._latency_s) == {A, C, D}, "who is not there is forgotten"

    play(story)


def test_one_slow_answer_moves_a_node_a_little() -> None:
    async def story(it: World) -> None:
        await it.beat()
        it.members.measured(C, 0.1)
        it.members.measured(C, 1.1)
        member = it.members.get(C)
        assert member is not None
        assert it.members.latency_s(member) == pytest.approx(0.4)

    play(story)


def test_a_content_is_for_the_node_that_hashing_names_among_those_that_take() -> None:
    async def story(it: World) -> None:
        await it.beat()
        await it.beat()
        expected = ranked(CONTENT, REGIONS | {NODE: "here"})
        assert [each.node for each in it.members.chosen(CONTENT)] == expected
        assert [each.node for each in it.members.chosen(CONTENT, beside=[NODE, A])] == [
            node for node in expected if node not in (NODE, A)
        ]
        assert [each.node for each in it.members.chosen(CONTENT, "iad")] == ranked(CONTENT, [C, D])
        assert it.members.chosen(CONTENT, "mars") == []
        first = expected[0]
        await it.metadata.set_node_state(first, DRAINING)
        await it.beat()
        assert [each.node for each in it.members.chosen(CONTENT)] == expected[1:]

    play(story)


def member(node: bytes, count: int, at_s: float) -> Member:
    return Member(node, "here", "", b"", UP, count, int(at_s * 1e9), 0.0)


def test_a_clock_that_differs_is_told_by_the_beats_of_the_others() -> None:
    now_ns = 100 * 10**9
    since = {A: 4, B: 4, C: 4}
    moved = [member(A, 5, 101), member(B, 5, 98), member(C, 5, 99.5)]
    assert skew_s(moved, NODE, now_ns, since) == pytest.approx(0.5)
    assert skew_s(moved, B, now_ns, since) == pytest.approx(0.5), "it does not ask itself"
    stopped = [member(A, 4, 1), member(B, 0, 0), member(D, 9, 50), member(C, 5, 90)]
    assert skew_s(stopped, NODE, now_ns, since) == pytest.approx(10), "an old beat, and one of a new node, say nothing"
    assert skew_s(stopped[:3], NODE, now_ns, since) is None
    assert skew_s([], NODE, now_ns, {}) is None
