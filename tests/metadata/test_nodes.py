"""The nodes of a store: who they are, and their signs of life."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.kv.memory_engine import MemoryEngine, RandomFaults
from tests.metadata.world import both_engines, found, open_world, play
from tigrislike.metadata import Metadata
from tigrislike.metadata.errors import NodeRemoved, NoSuchNode
from tigrislike.metadata.kv import ManualClock
from tigrislike.metadata.records import DRAINING, REMOVED, UP, Beat, Node

ONE, TWO = b"1" * 16, b"2" * 16


def node(node_id: bytes, **fields: object) -> Node:
    return Node(node_id, "iad", "https://10.0.0.1:9000", **fields)  # type: ignore[arg-type]


@both_engines
def test_a_node_joins_once_and_may_move(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with open_world(kind, tmp_path, clock=clock) as metadata:
            first = await metadata.join(node(ONE))
            assert (first.state, first.region) == (UP, "iad")
            assert await metadata.nodes() == [(first, None)]
            again = await metadata.join(Node(ONE, "sjc", "https://10.0.0.2:9000", joined_ns=5))
            assert again == Node(ONE, "sjc", "https://10.0.0.2:9000", UP, first.joined_ns)
            assert await metadata.nodes() == [(again, None)]

    asyncio.run(main())


@both_engines
def test_nodes_are_listed_with_their_last_beats(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        second, first = await metadata.join(node(TWO)), await metadata.join(node(ONE))
        assert await metadata.beat(TWO, Beat(1, 1, b"epoch-01", 100, 50))
        sign = Beat(2, 2, b"epoch-01", 100, 40)
        assert await metadata.beat(TWO, sign)
        assert await metadata.nodes() == [(first, None), (second, sign)]

    play(kind, tmp_path, story)


@both_engines
def test_a_node_that_drains_still_does_after_a_restart_until_it_is_told_otherwise(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        await metadata.join(node(ONE))
        assert (await metadata.set_node_state(ONE, DRAINING)).state == DRAINING
        assert (await metadata.join(node(ONE))).state == DRAINING
        assert await metadata.beat(ONE, Beat(1, 1))
        assert (await metadata.set_node_state(ONE, UP)).state == UP

    play(kind, tmp_path, story)


@both_engines
def test_a_removed_node_stays_removed_and_hears_of_it(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        await metadata.join(node(ONE))
        await metadata.beat(ONE, Beat(1, 1))
        removed = await metadata.set_node_state(ONE, REMOVED)
        assert await metadata.set_node_state(ONE, REMOVED) == removed
        assert await metadata.nodes() == [(removed, None)]
        assert not await metadata.beat(ONE, Beat(2, 2))
        assert await metadata.nodes() == [(removed, None)]
        for attempt in (metadata.join(node(ONE)), metadata.set_node_state(ONE, UP)):
            with pytest.raises(NodeRemoved, match=ONE.hex()):
                await attempt

    play(kind, tmp_path, story)


@both_engines
def test_who_never_joined_is_no_node(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        assert not await metadata.beat(ONE, Beat(1, 1))
        with pytest.raises(NoSuchNode, match=ONE.hex()):
            await metadata.set_node_state(ONE, UP)
        assert await metadata.nodes() == []

    play(kind, tmp_path, story)


@pytest.mark.parametrize("seed", range(30))
def test_a_beat_against_a_removal_leaves_no_beat(seed: int) -> None:
    async def main() -> None:
        engine = MemoryEngine(seed=seed, faults=RandomFaults(seed))
        metadata = await found(engine)
        await metadata.join(node(ONE))
        await asyncio.gather(
            metadata.beat(ONE, Beat(1, 1)), metadata.set_node_state(ONE, REMOVED), metadata.beat(ONE, Beat(2, 2))
        )
        ((removed, sign),) = await metadata.nodes()
        assert (removed.state, sign) == (REMOVED, None)
        await engine.close()

    asyncio.run(main())
