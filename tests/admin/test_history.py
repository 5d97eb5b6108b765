"""Cache and throughput over time: what nodes noted, as rates, across restarts and gaps, for a bounded time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.metadata.world import NODE, both_engines, open_world
from tests.nodes import running_node
from tigrislike.admin.client import RemoteApi
from tigrislike.admin.desk import Desk
from tigrislike.admin.history import RATED, History, over_time, points_of
from tigrislike.config import Settings
from tigrislike.metadata import history
from tigrislike.metadata.keyspace import subspace
from tigrislike.metadata.kv import ManualClock
from tigrislike.metadata.records import NodeSample

SECOND = 10**9
BEGAN = 1_700_000_000 * SECOND


def sample(at_s: float, since_s: float = 0.0, **counted: int) -> NodeSample:
    return NodeSample(BEGAN + round(at_s * SECOND), BEGAN + round(since_s * SECOND), **counted)


def test_rates_are_differences_over_the_time_between() -> None:
    points = list(points_of([sample(0, requests=7), sample(15, requests=22, cache_used=5), sample(30)], 15))
    assert points[0].requests is None, "there is nothing before it"
    assert (points[1].requests, points[1].cache_used_bytes) == (1.0, 5)
    assert points[1].cache_capacity_bytes is None, "only the disk bounds it"


def test_a_node_that_starts_anew_counts_from_its_start() -> None:
    points = list(points_of([sample(0, requests=1_000_000), sample(15, 5, requests=2_000_000)], 15))
    assert points[1].requests == 200_000, "two million in ten seconds, though the counter never went back"
    points = list(points_of([sample(0, requests=1000), sample(15, 5, requests=20), sample(30, 5, requests=50)], 15))
    assert [point.requests for point in points] == [None, 2.0, 2.0]


def test_a_gap_has_a_point_without_values_and_no_rate_after_it() -> None:
    points = list(points_of([sample(0, hits=1), sample(15, hits=1), sample(300, hits=999), sample(315, hits=1014)], 15))
    assert [point.hits for point in points] == [None, 0.0, None, None, 1.0]
    assert [point.cache_used_bytes for point in points] == [0, 0, None, 0, 0]
    assert [point.at for point in points] == sorted(point.at for point in points)


def test_a_node_whose_clock_was_set_back_between_two_samples_has_no_rate_there() -> None:
    points = list(points_of([sample(0, hits=1), sample(15, 20, hits=5)], 15))
    assert points[1].hits is None


@given(
    st.lists(
        st.tuples(
            st.integers(1, 60), st.booleans(), st.lists(st.integers(0, 10**9), min_size=len(RATED), max_size=len(RATED))
        )
    )
)
def test_whatever_happens_rates_are_never_negative_and_add_up_to_what_was_counted(
    steps: list[tuple[int, bool, list[int]]],
) -> None:
    """Each step: seconds that pass, whether the node starts anew at their beginning, and what is then counted."""
    at, since, counted = 0, 0, [0] * len(RATED)
    samples, expected = [sample(0)], [0] * len(RATED)
    for passed, anew, more in steps:
        if anew:
            since, counted = at, [0] * len(RATED)
        at += passed
        counted = [have + new for have, new in zip(counted, more, strict=True)]
        samples.append(sample(at, since, **dict(zip(RATED, counted, strict=True))))
        if passed <= 37.5:
            expected = [have + new for have, new in zip(expected, more, strict=True)]
    points = list(points_of(samples, 15))
    totals = dict.fromkeys(RATED, 0.0)
    for before, point in itertools.pairwise(points):
        for name in RATED:
            rate = getattr(point, name)
            assert rate is None or rate >= 0
            totals[name] += (rate or 0) * (point.at - before.at)
    assert list(totals.values()) == pytest.approx(expected, rel=1e-6, abs=1e-3)


Story = Callable[[Desk, ManualClock], Awaitable[None]]


def play(kind: str, folder: Path, story: Story) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with open_world(kind, folder, clock=clock) as metadata:
            await story(Desk(metadata, Settings(data_dir=folder, region="here")), clock)

    asyncio.run(main())


async def noted(desk: Desk, clock: ManualClock, times: int, step_s: int = 15) -> None:
    ctx = desk.metadata.context
    for number in range(times):
        await desk.metadata.engine.transact(history.note, ctx, NodeSample(clock.now_ns(), 1, requests=number * step_s))
        clock.advance(step_s * SECOND)


@both_engines
def test_an_hour_is_told_finely_and_a_day_coarsely(kind: str, tmp_path: Path) -> None:
    async def story(desk: Desk, clock: ManualClock) -> None:
        assert (await over_time(desk)).nodes == []
        await noted(desk, clock, 600)
        hour = await over_time(desk, span_s=3600)
        assert (hour.step_s, hour.end - hour.begin) == (15, 3600)
        assert [row.node for row in hour.nodes] == [NODE.hex()]
        assert len(hour.nodes[0].points) in (239, 240)
        assert {round(point.requests or 0, 3) for point in hour.nodes[0].points} == {1.0}, "the first one too"
        assert hour.begin <= hour.nodes[0].points[0].at <= hour.nodes[0].points[-1].at <= hour.end
        day = await over_time(desk, span_s=86400)
        assert day.step_s == 300
        assert 30 <= len(day.nodes[0].points) <= 32
        assert {round(point.requests or 0, 3) for point in day.nodes[0].points[1:]} == {1.0}
        assert (await over_time(desk, node="ab")).nodes == []
        assert len((await over_time(desk, node=NODE.hex())).nodes) == 1

    play(kind, tmp_path, story)


def test_what_is_kept_is_bounded_also_of_nodes_that_are_gone(tmp_path: Path) -> None:
    async def story(desk: Desk, clock: ManualClock) -> None:
        ctx = desk.metadata.context

        async def rows() -> int:
            return len(await desk.metadata.engine.read(lambda tr: tr.get_range(*subspace(ctx.keys.histories))))

        clock.advance(10 * 86400 * SECOND)
        await desk.metadata.engine.transact(_set_of_another_node, ctx, clock.now_ns())
        await noted(desk, clock, 2000, 150)
        bound = sum(each.kept_s // each.step_s + 2 for each in history.RESOLUTIONS)
        assert 864 < await rows() <= bound
        nodes = await over_time(desk, span_s=history.RESOLUTIONS[-1].kept_s)
        assert [row.node for row in nodes.nodes] == [NODE.hex()], "the other one's are forgotten"

    async def _set_of_another_node(tr, ctx, now_ns: int) -> None:  # type: ignore[no-untyped-def]
        for step_s, _ in history.RESOLUTIONS:
            slot = now_ns // (step_s * SECOND)
            tr.set(ctx.keys.history(step_s, slot, b"gone"), b"\x92\x00\x00")

    play("memory", tmp_path, story)


@pytest.mark.slow
def test_a_running_node_notes_what_it_does_and_a_restart_is_no_dip(tmp_path: Path) -> None:
    """Two runs of one node: each notes at its start, and both are one node's history."""

    def told(node: object) -> History:
        api = RemoteApi(node.endpoint, node.access_key_id, node.secret_access_key)  # type: ignore[attr-defined]
        try:
            found: History = asyncio.run(api.call("history", span_s=3600))
            return found
        finally:
            api.close()

    with running_node(tmp_path / "data") as node:
        first = told(node)
        while not first.nodes:
            first = told(node)
    with running_node(tmp_path / "data") as node:
        again = told(node)
        while again.nodes[0].points[-1].at == first.nodes[0].points[-1].at:
            again = told(node)
    assert [row.region for row in again.nodes] == [node.region]
    points = again.nodes[0].points
    assert all(point.requests is None or point.requests >= 0 for point in points)
    assert points[-1].cache_used_bytes == 0
