"""Nodes whose hosts' clocks are wrong, or set while they run. The other nodes are rows that the test writes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tigrislike import node as node_module
from tigrislike.config import load_settings
from tigrislike.metadata.errors import NodeSkewed
from tigrislike.metadata.records import Beat
from tigrislike.metadata.records import Node as NodeRecord
from tigrislike.node import Node

S = 10**9
HOUR_S = 3600.0
OTHERS = (b"a" * 16, b"b" * 16, b"c" * 16)


class World:
    """A node, and other nodes' rows.

    Attributes:
        off_s: how far the clock of the node's host has been set ahead of the time.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.off_s = 0.0
        self.true_ns = time.time_ns
        self._counts = dict.fromkeys(OTHERS, 0)

    async def others_join(self) -> None:
        for other in OTHERS:
            await self.node.metadata.join(NodeRecord(other, "fra", "http://other.example.com"))

    async def others_beat(self, *ahead_s: float, step_s: float = 0.0) -> None:
        """Each goes by a clock that is so far ahead of the time, and its host's was set `step_s` ahead of that."""
        for other, other_s in zip(OTHERS, ahead_s, strict=True):
            self._counts[other] += 1
            sign = Beat(self.true_ns() + int(other_s * S), self._counts[other], step_ns=int(step_s * S))
            await self.node.metadata.beat(other, sign)

    async def look(self) -> None:
        await self.node.regional.members.refresh()
        self.node.mind_clock()

    def ahead_s(self) -> int:
        """How far the node's time is ahead."""
        return round((self.node.metadata.now_ns() - self.true_ns()) / S)


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    def run(story: Callable[[World], Awaitable[None]]) -> None:
        async def main() -> None:
            async with Node.opened(load_settings({"data_dir": str(tmp_path / "data")}, {})) as node:
                world = World(node)
                monkeypatch.setattr(time, "time_ns", lambda: world.true_ns() + int(world.off_s * S))
                await story(world)

        asyncio.run(main())

    return run


@pytest.mark.parametrize("off_s", [-HOUR_S, HOUR_S])
def test_a_node_whose_clock_is_not_the_others_may_not_join(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch, off_s: float
) -> None:
    monkeypatch.setattr(node_module, "BEAT_S", 0.01)

    async def story(it: World) -> None:
        await it.others_join()

        async def beat_for_ever() -> None:
            while True:
                await it.others_beat(-off_s, -off_s, 0)

        beating = asyncio.create_task(beat_for_ever())
        try:
            await it.others_beat(-off_s, -off_s, 0)
            await it.node.regional.members.refresh()
            way = "behind" if off_s < 0 else "ahead of"
            with pytest.raises(
                NodeSkewed, match=f"this machine's clock is 3600 s {way} the other nodes': set it right"
            ):
                await it.node.join("http://here.example.com")
        finally:
            beating.cancel()
        listed = {each.node for each, _ in await it.node.metadata.nodes()}
        assert listed == set(OTHERS)

    play(story)


def test_a_node_whose_clock_is_not_that_of_nodes_long_gone_may_join(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "BEAT_S", 0.01)

    async def story(it: World) -> None:
        await it.others_join()
        await it.others_beat(-HOUR_S, -HOUR_S, -HOUR_S)
        await it.node.regional.members.refresh()
        await it.node.join("http://here.example.com")
        assert len(await it.node.metadata.nodes()) == 4

    play(story)


def test_a_node_that_is_alone_follows_its_host(play: Callable[..., None]) -> None:
    async def story(it: World) -> None:
        it.off_s = HOUR_S
        assert it.ahead_s() == 0
        await it.look()
        assert it.ahead_s() == HOUR_S
        it.off_s = -HOUR_S
        await it.look()
        assert it.ahead_s() == -HOUR_S

    play(story)


@pytest.mark.parametrize("off_s", [-HOUR_S, HOUR_S])
def test_a_host_that_is_set_wrong_is_not_followed_and_said_so_once(
    play: Callable[..., None], caplog: pytest.LogCaptureFixture, off_s: float
) -> None:
    async def story(it: World) -> None:
        await it.others_join()
        await it.others_beat(0, 0, 0)
        await it.look()
        it.off_s = off_s
        await it.look()  # nobody has beaten meanwhile: it cannot tell
        assert not caplog.messages
        for _ in range(2):
            await it.others_beat(0, 0, 0)
            await it.look()
            assert it.ahead_s() == 0
        assert caplog.messages == [
            f"this machine's clock was set by {off_s:+.1f} s, away from the other nodes': not followed. Set it right"
        ]
        it.off_s = 0
        await it.others_beat(0, 0, 0)
        await it.look()
        assert it.ahead_s() == 0

    play(story)


def test_where_all_have_been_wrong_all_follow_when_they_are_set_right(play: Callable[..., None]) -> None:
    async def story(it: World) -> None:
        await it.others_join()
        await it.others_beat(0, 0, 0)
        await it.look()
        it.off_s = -HOUR_S
        await it.others_beat(0, 0, 0)
        await it.look()
        assert it.ahead_s() == 0
        await it.others_beat(0, 0, 0, step_s=-HOUR_S)
        await it.look()
        assert it.ahead_s() == -HOUR_S

    play(story)


def test_others_that_are_dead_have_no_say(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(it: World) -> None:
        await it.others_join()
        await it.others_beat(0, 0, 0)
        await it.look()
        true_s = time.monotonic
        monkeypatch.setattr(it.node.regional.members, "_clock_s", lambda: true_s() + 60)
        it.off_s = HOUR_S
        await it.look()
        assert it.ahead_s() == HOUR_S

    play(story)
