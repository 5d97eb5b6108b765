"""Nodes die, drain and go, and buckets change their policies: no content is left with fewer homes than it can have."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.metadata.world import both_engines_at_length, dump, etag_of
from tests.replication.cluster import BUCKET, Cluster, cluster, data_of
from tigrislike.metadata import CompletedPart, Draft, Extent, Part, UploadDraft, copy_draft, nodes, owed
from tigrislike.metadata.deciding import SECOND
from tigrislike.metadata.errors import NodeRemoved, ProtocolsApart
from tigrislike.metadata.homes import ANYBODY, add_home, begin_home, owe_hold
from tigrislike.metadata.keyspace import pack_bytes, subspace
from tigrislike.metadata.kv import EngineUnavailable
from tigrislike.metadata.records import DEAD, DRAINING, LOST, UP, Home, Node, repolicy
from tigrislike.replication.demand import _want
from tigrislike.replication.lacking import View
from tigrislike.replication.remote import BytesLost, HomesSilent
from tigrislike.replication.removing import remove_node
from tigrislike.replication.repair import watch_for_dead
from tigrislike.replication.repolicy import follow_some
from tigrislike.s3api.errors import S3Error

REPAIR_AFTER_S = 900.0
LONG = int(REPAIR_AFTER_S / 2) + 10
"""Beats after which a node that stopped is to be repaired."""


def play(folder: Path, story: Callable[[Cluster], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with cluster(folder, **options) as it:
            await story(it)

    asyncio.run(main())


async def remove(it: Cluster, name: str, *, by: str) -> list[bytes]:
    """Remove a node; the contents that are lost with it."""
    lost = []
    async for taken in remove_node(it[by].metadata, it[by].members, it[name].id):
        lost += taken.lost
    return lost


async def nothing_owed_to(it: Cluster, name: str) -> None:
    metadata = next(node for node in it.nodes.values() if node.name != name).metadata
    packed = pack_bytes(it[name].id)[1:-1]
    rows = [key for key in await dump(metadata) if packed in key]
    record = metadata.context.keys.node(it[name].id).removeprefix(metadata.engine.prefix)
    assert rows == [record], "nothing is left of it but its record"


# -- Repair ----------------------------------------------------------------------------------------------------------


@both_engines_at_length
def test_what_a_dead_node_held_gets_homes_elsewhere(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket(regions="iad,sjc")
        content = await it["a"].put("k", data_of(1))
        await it.work()
        assert await it.homes(content) == {"a", "s"}
        it.kill("a")
        await it.beat(LONG)
        assert await watch_for_dead(it["s"].metadata, it["s"].members, REPAIR_AFTER_S) == [it["a"].id]
        await it.work()
        assert await it.homes(content) == {"a", "b", "s"}
        assert await it["b"].get(content) == data_of(1)
        assert it["b"].files() == 3
        assert it.failed() == 0

    play(scratch, story, kind=kind, a="iad", b="iad", s="sjc")


@both_engines_at_length
def test_a_death_is_repaired_once_and_the_next_one_again(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        async def look(name: str) -> list[bytes]:
            return await watch_for_dead(it[name].metadata, it[name].members, REPAIR_AFTER_S)

        it.kill("a")
        await it.beat(int(REPAIR_AFTER_S / 2) - 1)
        assert await look("b") == [], "not yet"
        await it.beat(11)
        assert [*await look("b"), *await look("c"), *await look("b")] == [it["a"].id]
        it.revive("a")
        await it.beat(2)
        assert await look("b") == []
        it.kill("a")
        await it.beat(LONG)
        assert await look("c") == [it["a"].id]

    play(scratch, story, kind=kind, a="iad", b="iad", c="iad")


@both_engines_at_length
def test_silence_while_the_database_is_away_is_nobodys_death(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        b = it["b"]
        asked = b.metadata.nodes

        async def away() -> Any:
            raise EngineUnavailable("away")

        b.metadata.nodes = away  # type: ignore[method-assign]
        it.clock.advance(int(2 * REPAIR_AFTER_S * SECOND))
        with pytest.raises(EngineUnavailable):
            await b.members.refresh()
        b.metadata.nodes = asked  # type: ignore[method-assign]
        await b.members.refresh()
        assert await watch_for_dead(b.metadata, b.members, REPAIR_AFTER_S) == []

    play(scratch, story, kind=kind, a="iad", b="iad")


@both_engines_at_length
def test_a_node_that_comes_back_before_its_repair_is_left_alone(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket(durability="homes=2")
        content = await it["a"].put("k", data_of(1), others=(Home("iad", it["b"].id),))
        it.kill("a")
        await it.beat(LONG)
        await watch_for_dead(it["b"].metadata, it["b"].members, REPAIR_AFTER_S)
        it.revive("a")
        await it.beat(2)
        await it.work(only=["b", "c"])
        assert await it.homes(content) == {"a", "b"}

    play(scratch, story, kind=kind, a="iad", b="iad", c="iad")


async def die_and_be_repaired(it: Cluster, name: str, *, by: str) -> None:
    it.kill(name)
    await it.beat(LONG)
    assert await watch_for_dead(it[by].metadata, it[by].members, REPAIR_AFTER_S) == [it[name].id]
    await it.work()


@pytest.mark.parametrize("policy", [{"durability": "homes=2"}, {"regions": "iad,sjc"}], ids=["homes=2", "dual"])
def test_a_repaired_node_that_returns_leaves_nothing_with_more_homes_than_are_wanted(
    scratch: Path, policy: dict[str, str]
) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket(**policy)
        contents = [await it["a"].put(f"k{number}", data_of(number)) for number in range(5)]
        for content in contents:
            await it["a"].metadata.background(_owe_hold, it["a"].metadata.context, it["s"].id, content)
        await it.work()
        await die_and_be_repaired(it, "a", by="s")
        for content in contents:
            assert await it.homes(content) == {"a", "b", "s"}
        it.revive("a")
        await it.beat()
        await it.work(rounds=2)
        assert await it.homes(contents[0]) == {"a", "b", "s"}, "others have to see it first"
        await it.work(rounds=16)
        for number, content in enumerate(contents):
            assert await it.homes(content) == {"a", "s"}
            assert await it["b"].get(content) == data_of(number)
        assert it["b"].files() == 0
        assert it["a"].files() == it["s"].files() == 15
        assert it.failed() == 0
        # It is over: the next silence is repaired again.
        assert await it["a"].metadata.queue.depth(owed.zone_of(it["a"].id, b"")) == 0
        await die_and_be_repaired(it, "a", by="s")
        assert await it.homes(contents[0]) == {"a", "b", "s"}

    play(scratch, story, a="iad", b="iad", s="sjc")


def test_what_is_about_to_become_too_much_when_a_node_returns_is_seen_to_later(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket(durability="homes=2")
        content = await it["a"].put("k", data_of(1))
        await it["a"].metadata.background(_owe_hold, it["a"].metadata.context, it["c"].id, content)
        await it.work()
        it.kill("a")
        await it.beat(LONG)
        assert await watch_for_dead(it["c"].metadata, it["c"].members, REPAIR_AFTER_S) == [it["a"].id]
        await it.work(rounds=2, only=["c"])
        assert await it["b"].metadata.begin_home(content) is not None
        it.revive("a")
        await it.work(rounds=10, only=["a", "c"])
        assert await it["a"].metadata.queue.depth(owed.zone_of(it["a"].id, b"")) == 1
        await it.work(rounds=2, only=["b"])
        assert await it.homes(content) == {"a", "b", "c"}
        await it.work(rounds=16)
        assert await it.homes(content) == {"a", "c"}
        assert await it["a"].metadata.queue.depth(owed.zone_of(it["a"].id, b"")) == 0

    play(scratch, story, a="iad", b="iad", c="iad")


def test_a_return_leaves_demand_its_replicas(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        content = await it["a"].put("k", data_of(1))
        metadata = it["s"].metadata
        await metadata.background(_want, metadata.context, "sjc", content)
        await it.work()
        assert await it.homes(content) == {"a", "s"}
        await die_and_be_repaired(it, "a", by="s")
        it.revive("a")
        await it.work(rounds=16)
        assert await it.homes(content) == {"a", "s"}

    play(scratch, story, a="iad", b="iad", s="sjc")


@both_engines_at_length
def test_who_does_not_know_the_others_yet_leaves_a_repair_for_later(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket(durability="homes=2")
        content = await it["a"].put("k", data_of(1), others=(Home("iad", it["b"].id),))
        await it["b"].store(data_of(1))
        it.kill("a")
        await it.beat(LONG)
        await watch_for_dead(it["b"].metadata, it["b"].members, REPAIR_AFTER_S)
        await it.add("new", "iad")
        await it["new"].members.refresh()
        await it.work(rounds=1, only=["new"])
        assert await it["b"].metadata.queue.depth(owed.zone_of(ANYBODY, b"")) == 1, "it is owed still"
        assert await it.homes(content) == {"a", "b"}

    play(scratch, story, kind=kind, a="iad", b="iad", c="iad")


@both_engines_at_length
def test_a_repair_done_twice_at_once_makes_no_home_too_many(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket(regions="iad,sjc")
        contents = [await it["a"].put(f"k{number}", data_of(number)) for number in range(5)]
        await it.work()
        it.kill("a")
        await it.beat(LONG)
        await watch_for_dead(it["s"].metadata, it["s"].members, REPAIR_AFTER_S)
        item = (await it["s"].metadata.queue.items(owed.zone_of(ANYBODY, b"")))[0][1]
        repairs = [task for name in "bs" for task in it[name].tasks if task.name == nodes.REPAIR]
        await asyncio.gather(*(task.run(item) for task in repairs))
        await it.work()
        for content in contents:
            homes = await it.homes(content)
            assert len(homes) == 3
            assert {"a", "s"} < homes

    play(scratch, story, kind=kind, a="iad", b="iad", c="iad", s="sjc")


@both_engines_at_length
def test_a_content_that_only_the_dead_node_has_is_left(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        content = await it["a"].put("k", data_of(1))
        it.kill("a")
        await it.beat(LONG)
        await watch_for_dead(it["b"].metadata, it["b"].members, REPAIR_AFTER_S)
        await it.work()
        assert await it.homes(content) == {"a"}
        assert it.failed() == 0
        with pytest.raises(HomesSilent) as error:
            await it["b"].get(content)
        answer = S3Error.of(error.value)
        assert (answer.code, answer.status) == ("ServiceUnavailable", 503)
        assert "do not answer now (in iad)" in answer.message
        assert it["a"].id.hex() not in answer.message

    play(scratch, story, kind=kind, a="iad", b="iad")


@pytest.mark.parametrize("where", [{"regions": "iad,sjc"}, {"durability": "homes=2"}], ids=["regions", "copies"])
def test_a_repair_that_finds_nobody_yet_serves_who_has_just_come(scratch: Path, where: dict[str, str]) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket(**where)
        others = () if "regions" in where else (Home("sjc", it["b"].id),)
        content = await it["a"].put("k", data_of(1), others=others)
        await it.work()
        assert await it.homes(content) == {"a", "b"}
        it.kill("b")
        await it.beat(LONG)
        await watch_for_dead(it["a"].metadata, it["a"].members, REPAIR_AFTER_S)
        await it.add("new", "sjc")
        await it["a"].members.refresh()
        assert it["new"].id not in it["a"].members.alive(), "it has joined, and not been seen to beat"
        await it.work(rounds=1, only=["a"])
        await it.beat(60)
        await it.work()
        assert {"a", "new"} <= await it.homes(content)

    play(scratch, story, a="iad", b="sjc")


async def noted(it: Cluster) -> int:
    """How many contents are noted as short of homes."""

    async def rows(tr: Any, ctx: Any) -> int:
        return len(await tr.get_range(*subspace(ctx.keys.shorts)))

    metadata = next(iter(it.nodes.values())).metadata
    return await metadata.background(rows, metadata.context)


@both_engines_at_length
def test_what_too_few_nodes_were_left_for_goes_to_who_joins(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket(durability="homes=2")
        both = (Home("iad", it["b"].id),)
        contents = [await it["a"].put(f"k{number}", data_of(number), others=both) for number in range(3)]
        it.kill("b")
        await it.beat(LONG)
        assert await remove(it, "b", by="a") == []
        await it.beat(60)
        await it.work()
        assert [await it.homes(content) for content in contents] == [{"a"}] * 3
        assert await noted(it) == 3
        await it["a"].metadata.delete_object(await it["a"].metadata.bucket(BUCKET), "k2")
        await it.beat(60)
        await it.work()
        assert await noted(it) == 2, "what is deleted waits for nothing"
        await it.add("new", "iad")
        await it.beat(60)
        await it.work()
        await it.beat(60)
        await it.work()
        assert [await it.homes(content) for content in contents[:2]] == [{"a", "new"}] * 2
        assert await noted(it) == 0
        assert await it["a"].metadata.queue.depth(owed.zone_of(ANYBODY, b"")) == 0, "and nobody asks any more"
        assert it.failed() == 0

    play(scratch, story, kind=kind, a="iad", b="iad")


def test_a_policy_that_wants_more_homes_than_there_are_nodes_is_followed_when_there_are(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        content = await it["a"].put("k", data_of(1))
        await it["a"].metadata.change_bucket(BUCKET, durability="homes=3")
        await it.work()
        assert await it.homes(content) == {"a", "b"}
        await it.add("new", "iad")
        await it.beat(60)
        await it.work()
        await it.beat(60)
        await it.work()
        assert await it.homes(content) == {"a", "b", "new"}

    play(scratch, story, a="iad", b="iad")


def test_what_is_lost_is_owed_to_nobody_any_more(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        content = await it["a"].put("k", data_of(1))
        metadata = it["b"].metadata
        bucket = (await metadata.bucket(BUCKET)).id
        await metadata.background(owe_hold, metadata.context, it["b"].id, bucket, content)
        it.kill("a")
        await it.beat(LONG)
        await it.work(rounds=3)
        assert await metadata.queue.depth(owed.zone_of(it["b"].id, bucket)) == 1
        assert it.failed() > 0
        assert await remove(it, "a", by="b") == [content]
        await it.beat(60)
        await it.work(rounds=3)
        assert await metadata.queue.depth(owed.zone_of(it["b"].id, bucket)) == 0
        assert await metadata.queue.letters(owed.zone_of(it["b"].id, bucket)) == []

    play(scratch, story, a="iad", b="iad")


# -- Drain -----------------------------------------------------------------------------------------------------------


@both_engines_at_length
def test_a_node_drains_until_it_holds_nothing(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        contents = {await it["a"].put(f"k{seed}", data_of(seed)): seed for seed in range(6)}
        await it["b"].metadata.drain_node(it["a"].id)
        await it.beat(2)
        await it.work(rounds=12)
        assert await it["b"].metadata.homes_of(it["a"].id) == []
        assert it["a"].files() == 0
        assert it.failed() == 0
        it.kill("a")
        for content, seed in contents.items():
            assert await it.homes(content) <= {"b", "c"}
            assert await it["b"].get(content) == data_of(seed)

    play(scratch, story, kind=kind, a="iad", b="iad", c="iad")


@both_engines_at_length
def test_what_is_written_at_a_draining_node_is_taken_and_goes_elsewhere(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        await it["a"].metadata.drain_node(it["a"].id)
        await it.beat(2)
        await it.work(rounds=4)
        content = await it["a"].put("late", data_of(1))
        await it.work(rounds=12)
        assert await it.homes(content) == {"b"}

    play(scratch, story, kind=kind, a="iad", b="sjc")


@both_engines_at_length
def test_a_draining_node_keeps_what_nobody_may_take(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket(regions="iad")
        content = await it["a"].put("k", data_of(1))
        await it["a"].metadata.drain_node(it["a"].id)
        await it.beat(2)
        await it.work(rounds=12)
        assert await it.homes(content) == {"a"}
        assert it["a"].files() == 3
        assert it.failed() == 0, "nobody is asked for what nobody can do"
        await it.add("new", "iad")
        await it.beat(2)
        await it.work(rounds=12)
        assert await it.homes(content) == {"new"}
        assert it["a"].files() == 0

    play(scratch, story, kind=kind, a="iad", b="sjc")


@both_engines_at_length
def test_a_node_that_is_no_longer_to_drain_keeps_the_rest(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        content = await it["a"].put("k", data_of(1))
        await it["a"].metadata.drain_node(it["a"].id)
        await it["a"].metadata.set_node_state(it["a"].id, UP)
        await it.beat(2)
        await it.work()
        assert await it.homes(content) == {"a"}
        assert await it["a"].metadata.queue.depth(owed.zone_of(it["a"].id, b"")) == 0

    play(scratch, story, kind=kind, a="iad", b="iad")


@both_engines_at_length
def test_two_that_drain_do_not_lean_on_each_other(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket(durability="homes=2")
        content = await it["a"].put("k", data_of(1))
        await it.beat(1)
        view_a, view_b = it["a"].members.alive(), it["b"].members.alive()
        await it["b"].metadata.background(_also_home, it["b"].metadata.context, content)
        # Both give up at once, each counting on the other.
        kept = await asyncio.gather(
            it["a"].metadata.drop_home(content, view_a), it["b"].metadata.drop_home(content, view_b)
        )
        assert not any(kept), "two are wanted"
        await it["a"].metadata.change_bucket(BUCKET, durability="local")
        await it.work(only=["c"])
        await it.beat(1)
        kept = await asyncio.gather(
            it["a"].metadata.drop_home(content, view_a), it["b"].metadata.drop_home(content, view_b)
        )
        assert sorted(kept) == [False, True]
        assert len(await it.homes(content)) == 1

    play(scratch, story, kind=kind, a="iad", b="iad", c="iad")


async def _also_home(tr: Any, ctx: Any, content_id: bytes) -> None:
    await begin_home(tr, ctx, content_id)
    await add_home(tr, ctx, content_id, {})


@both_engines_at_length
def test_a_hold_owed_to_a_draining_node_is_passed_on(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket(durability="homes=2")
        content = await it["a"].put("k", data_of(1))
        metadata = it["a"].metadata
        await metadata.background(owe_hold, metadata.context, it["b"].id, b"", content)
        await metadata.set_node_state(it["b"].id, DRAINING)
        await it.beat(2)
        await it.work()
        assert await it.homes(content) == {"a", "c"}

    play(scratch, story, kind=kind, a="iad", b="iad", c="iad")


def test_a_delete_beside_a_drain_leaves_nothing(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        bucket = await it.bucket()
        content = await it["a"].put("k", data_of(1))
        await it["a"].metadata.drain_node(it["a"].id)
        await it.beat(2)
        await asyncio.gather(
            it.work(rounds=6), it["b"].metadata.delete_object(await it["b"].metadata.bucket(BUCKET), "k")
        )
        await it.work(rounds=12)
        assert await it["a"].metadata.content(content) is None, bucket.name
        assert it["a"].files() == it["b"].files() == 0

    for seed in range(5):
        play(scratch / str(seed), story, a="iad", b="iad", seed=seed)


# -- Removal ---------------------------------------------------------------------------------------------------------


@both_engines_at_length
def test_a_removed_node_leaves_no_rows_and_its_homes_go_to_others(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket(durability="homes=2")
        content = await it["a"].put("k", data_of(1), others=())
        await it.beat(1)
        await it["b"].metadata.background(_owe_hold, it["b"].metadata.context, it["b"].id, content)
        await it.work()
        assert await it.homes(content) == {"a", "b"}
        await it.silence("a")
        assert await remove(it, "a", by="c") == []
        await it.work()
        assert await it.homes(content) == {"b", "c"}
        await nothing_owed_to(it, "a")
        with pytest.raises(NodeRemoved):
            await it["a"].metadata.join(Node(it["a"].id, "iad", ""))

    play(scratch, story, kind=kind, a="iad", b="iad", c="iad")


async def _owe_hold(tr: Any, ctx: Any, node: bytes, content_id: bytes) -> None:
    await owe_hold(tr, ctx, node, b"", content_id)


@both_engines_at_length
def test_what_only_a_removed_node_had_is_lost_says_so_and_can_be_deleted(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        content = await it["a"].put("k", data_of(1))
        await it.silence("a")
        assert await remove(it, "a", by="b") == [content]
        assert await it["b"].metadata.homes_of(LOST) == [content]
        with pytest.raises(BytesLost) as error:
            await it["b"].get(content)
        answer = S3Error.of(error.value)
        assert (answer.code, answer.status) == ("InternalError", 500)
        assert "lost" in answer.message
        await it["b"].metadata.delete_object(await it["b"].metadata.bucket(BUCKET), "k")
        await it.work()
        assert await it["b"].metadata.content(content) is None
        assert await it["b"].metadata.homes_of(LOST) == []
        await nothing_owed_to(it, "a")

    play(scratch, story, kind=kind, a="iad", b="iad")


@both_engines_at_length
def test_a_running_node_hears_of_its_removal_with_its_next_beat(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await remove(it, "a", by="b")
        await it.beat()
        assert not it["a"].up

    play(scratch, story, kind=kind, a="iad", b="iad")


@both_engines_at_length
def test_what_was_deleted_before_the_removal_is_forgotten_by_it(kind: str, scratch: Path) -> None:
    """Dead everywhere but on the node that went: its records go with it."""

    async def story(it: Cluster) -> None:
        await it.bucket(durability="homes=2")
        content = await it["a"].put("k", data_of(1))
        await it["b"].metadata.background(_owe_hold, it["b"].metadata.context, it["b"].id, content)
        await it.work()
        await it.silence("a")
        await it["b"].metadata.delete_object(await it["b"].metadata.bucket(BUCKET), "k")
        await it.work(only=["b", "c"])
        assert (await it.content(content)).state == DEAD, "it waits for the dead node"
        await remove(it, "a", by="c")
        await it.work()
        assert await it["c"].metadata.content(content) is None
        assert it["b"].files() == 0
        await nothing_owed_to(it, "a")

    play(scratch, story, kind=kind, a="iad", b="iad", c="iad")


@both_engines_at_length
def test_a_deletion_after_the_removal_asks_the_removed_node_nothing(kind: str, scratch: Path) -> None:
    """It had announced itself as a home, which no row of its own says."""

    async def story(it: Cluster) -> None:
        await it.bucket()
        content = await it["b"].put("k", data_of(1))
        assert await it["a"].metadata.begin_home(content) is not None
        await it.silence("a")
        await remove(it, "a", by="b")
        await it["b"].metadata.delete_object(await it["b"].metadata.bucket(BUCKET), "k")
        await it.work()
        assert await it["b"].metadata.content(content) is None
        await nothing_owed_to(it, "a")

    play(scratch, story, kind=kind, a="iad", b="iad")


@both_engines_at_length
def test_parts_that_are_scattered_over_others_are_gathered_by_another(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        bucket = await it.bucket()
        upload = await it["a"].metadata.create_upload(bucket, "k", UploadDraft())
        etags = []
        for number, name in ((1, "a"), (2, "b")):
            blob = await it[name].store(data_of(number, 6 * 1024**2))
            part = Part(number, 6 * 1024**2, f"{number:032x}", "", 0, (Extent(blob, 0, 6 * 1024**2),))
            await it[name].metadata.put_part(bucket, "k", upload.upload_id, part)
            await it[name].blocks.publish(blob)
            etags.append(CompletedPart(number, part.etag))
        # Completed where no part is: c is to gather them, and goes before it does.
        await it["c"].metadata.complete_upload(
            bucket, "k", upload.upload_id, etags, combine=lambda *_: "", composite=lambda *_: ""
        )
        await it.silence("c")
        await remove(it, "c", by="a")
        await it.work()
        content = await it.content(upload.content)
        assert [home.whole for home in content.homes] == [True]
        await nothing_owed_to(it, "c")

    play(scratch, story, kind=kind, a="iad", b="iad", c="iad")


# -- Policies --------------------------------------------------------------------------------------------------------


@both_engines_at_length
def test_objects_follow_their_buckets_policy(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        contents = [await it["a"].put(f"k{seed:03}", data_of(seed, 100)) for seed in range(120)]
        await it["a"].metadata.change_bucket(BUCKET, region_policy="iad,sjc")
        await it.work(rounds=10)
        assert {frozenset(await it.homes(content)) for content in contents} == {frozenset({"a", "s"})}
        await it["a"].metadata.change_bucket(BUCKET, region_policy="sjc")
        await it.work(rounds=10)
        assert {frozenset(await it.homes(content)) for content in contents} == {frozenset({"s"})}
        assert it["a"].files() == 0
        assert it.failed() == 0
        await it["a"].metadata.change_bucket(BUCKET, region_policy="", durability="homes=2")
        await it.work(rounds=10)
        assert {frozenset(await it.homes(content)) for content in contents} == {frozenset({"a", "s"})}
        await it["a"].metadata.change_bucket(BUCKET, durability="local")
        await it.work(rounds=10)
        assert {len(await it.homes(content)) for content in contents} == {1}
        assert it["a"].files() + it["s"].files() == len(contents)

    play(scratch, story, kind=kind, a="iad", s="sjc")


@both_engines_at_length
def test_old_versions_follow_too(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        await it["a"].metadata.set_versioning(BUCKET, "Enabled")
        contents = [await it["a"].put("k", data_of(seed)) for seed in range(3)]
        await it["a"].metadata.change_bucket(BUCKET, region_policy="iad,sjc")
        await it.work()
        for content in contents:
            assert await it.homes(content) == {"a", "s"}

    play(scratch, story, kind=kind, a="iad", s="sjc")


def test_a_region_that_joins_a_geography_gets_what_was_there_before(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket(regions="usa")
        await it.bucket("elsewhere", regions="eur")
        await it.bucket("anywhere")
        old = [await it["a"].put(f"k{number}", data_of(number)) for number in range(3)]
        others = [await it["a"].put("k", data_of(9), bucket=name) for name in ("elsewhere", "anywhere")]
        shared = await it["a"].put("shared", data_of(8))
        metadata = it["a"].metadata
        source, target = await metadata.bucket(BUCKET), await metadata.bucket("anywhere")
        await metadata.copy_object((source, "shared", None), None, target, "copy", _same)
        await it.work(rounds=10)
        before = [await it.homes(content) for content in others]
        assert [await it.homes(content) for content in old] == [{"a"}] * 3
        await it.add("s", "sjc")
        await it.work(rounds=16)
        assert [await it.homes(content) for content in [*old, shared]] == [{"a", "s"}] * 4
        assert [await it.homes(content) for content in others] == before
        # Another node of a region that has one changes nothing, nor does one that starts again.
        await it.add("t", "sjc")
        await it["s"].metadata.join(Node(it["s"].id, "sjc", "http://s"))
        assert await it["a"].metadata.queue.depth(owed.zone_of(ANYBODY, b"")) == 0
        await it.work(rounds=10)
        assert [await it.homes(content) for content in [*old, shared]] == [{"a", "s"}] * 4
        assert it.failed() == 0

    play(scratch, story, a="iad", m="ams")


@both_engines_at_length
def test_what_several_buckets_share_is_where_any_of_them_wants_it(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket(regions="iad")
        await it.bucket("other", regions="sjc")
        content = await it["a"].put("k", data_of(1))
        metadata = it["a"].metadata
        source, target = await metadata.bucket(BUCKET), await metadata.bucket("other")
        await metadata.copy_object((source, "k", None), None, target, "copy", _same)
        await it.work()
        assert await it.homes(content) == {"a", "s"}
        await metadata.change_bucket(BUCKET, region_policy="ams")
        await it.work()
        assert await it.homes(content) == {"m", "s"}
        await metadata.change_bucket("other", region_policy="ams")
        await it.work()
        assert await it.homes(content) == {"m"}

    play(scratch, story, kind=kind, a="iad", s="sjc", m="ams")


def _same(version: Any) -> Any:
    return copy_draft(version)


@both_engines_at_length
def test_an_object_that_names_its_regions_itself_stays_there(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        bucket = await it.bucket()
        blob = await it["a"].store(data_of(1))
        size = len(data_of(1))
        await it["a"].metadata.put_object(
            bucket, "own", Draft(size, etag_of(data_of(1)), blob=blob, regions=("iad", "ams"))
        )
        await it["a"].blocks.publish(blob)
        await it.work()
        await it["a"].metadata.change_bucket(BUCKET, region_policy="sjc")
        await it.work()
        assert await it.homes(blob) == {"a", "m"}

    play(scratch, story, kind=kind, a="iad", s="sjc", m="ams")


@both_engines_at_length
def test_a_policy_that_changes_on_the_way_has_the_walk_start_over(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        bucket = await it.bucket()
        for seed in range(150):
            await it["a"].put(f"k{seed:03}", data_of(seed, 10))
        a = it["a"].metadata
        await a.change_bucket(BUCKET, region_policy="iad,sjc")
        view = View(it["a"].members, it["a"].members.alive())
        assert await a.background(follow_some, a.context, view, {}, bucket.id) == 100
        row = a.context.keys.repolicy(bucket.id).removeprefix(a.engine.prefix)
        assert repolicy.decode((await dump(a))[row]).after
        await a.change_bucket(BUCKET, region_policy="sjc")
        assert await a.background(follow_some, a.context, view, {}, bucket.id) == 100
        assert await a.background(follow_some, a.context, view, {}, bucket.id) == 50
        assert await a.background(follow_some, a.context, view, {}, bucket.id) is None
        assert row not in await dump(a)
        await it.work(rounds=12)
        assert await a.homes_of(it["a"].id) == []

    play(scratch, story, kind=kind, a="iad", s="sjc")


@both_engines_at_length
def test_a_bucket_that_is_deleted_has_nothing_to_follow(kind: str, scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        bucket = await it.bucket()
        await it["a"].metadata.change_bucket(BUCKET, region_policy="sjc")
        await it["a"].metadata.delete_bucket(BUCKET)
        await it.work(rounds=2)
        assert it.failed() == 0
        metadata = it["a"].metadata
        row = metadata.context.keys.repolicy(bucket.id).removeprefix(metadata.engine.prefix)
        assert row not in await dump(metadata)

    play(scratch, story, kind=kind, a="iad", s="sjc")


# -- Upgrades --------------------------------------------------------------------------------------------------------


@both_engines_at_length
def test_neighbouring_releases_serve_side_by_side_and_others_do_not(
    kind: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(it: Cluster) -> None:
        await it.bucket()
        monkeypatch.setattr(nodes, "PROTOCOL", nodes.PROTOCOL + 1)
        await it.add("next", "iad")
        await it.beat(2)
        content = await it["a"].put("k", data_of(1))
        assert await it["next"].get(content) == data_of(1)
        monkeypatch.setattr(nodes, "PROTOCOL", nodes.PROTOCOL + 1)
        with pytest.raises(ProtocolsApart, match="one release at a time"):
            await it.add("far", "iad")
        await it["a"].metadata.join(Node(it["a"].id, "iad", ""))  # now that a itself is upgraded, it may
        await it.add("farther", "iad")

    play(scratch, story, kind=kind, a="iad")


@both_engines_at_length
def test_a_release_that_is_too_old_is_told_to_upgrade(
    kind: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(it: Cluster) -> None:
        monkeypatch.setattr(nodes, "PROTOCOL", nodes.PROTOCOL - 2)
        with pytest.raises(ProtocolsApart, match="upgrade this node"):
            await it.add("old", "iad")

    play(scratch, story, kind=kind, a="iad")
