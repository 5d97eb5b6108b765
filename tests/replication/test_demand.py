"""What is read in a region gets a home there, and loses it when it is read no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.replication.several import Node, Several, data_of, play
from tigrislike.metadata import Bucket, copy_draft
from tigrislike.metadata.homes import RELEASE, REPLICATE, Located
from tigrislike.metadata.keyspace import subspace
from tigrislike.metadata.kv import EngineUnavailable
from tigrislike.replication.demand import DECAY, PERIOD_NS, Decay, Demand, demanded, forget_old

HOUR_S = PERIOD_NS / 1e9
DECAY_S = 24 * HOUR_S
THRESHOLD = 3
DATA = data_of(1)


class Reading:
    """A process in a region, whose reads are counted."""

    def __init__(self, it: Several, node: Node) -> None:
        self.it = it
        self.node = node
        self.demand = Demand(node.metadata, node.members, node.source, threshold=THRESHOLD)
        if not any(task.name == DECAY for task in node.tasks):
            node.tasks.append(Decay(node.metadata, node.members))

    async def read(self, blob: bytes, times: int = 1) -> None:
        for _ in range(times):
            self.demand.count(blob)
        await self.demand.flush()

    async def demanded(self, content_id: bytes) -> int:
        metadata = self.node.metadata
        return await metadata.background(demanded, metadata.context, self.node.region, content_id)


async def scene(it: Several, policy: str = "") -> tuple[Reading, Bucket, bytes]:
    bucket = await it.bucket(policy)
    blob = await it.put(it.nodes[0], bucket, "k", DATA)
    it.elapse(HOUR_S - it.clock.now_ns() % PERIOD_NS / 1e9)  # to the beginning of a period
    return Reading(it, it.nodes[1]), bucket, blob


def test_what_is_read_often_enough_within_a_period_gets_a_home_in_the_region(scratch: Path) -> None:
    async def story(it: Several) -> None:
        sjc, _, blob = await scene(it)
        await sjc.read(blob, THRESHOLD - 1)
        it.elapse(HOUR_S)
        await sjc.read(blob, THRESHOLD - 1)  # in another period
        assert not (await it.drain()).done
        assert await sjc.demanded(blob) == 2 * (THRESHOLD - 1)
        await sjc.read(blob)
        assert (await it.drain()).done == {REPLICATE: 1}
        assert await it.homes(blob) == {0, 1}
        await sjc.read(blob, 5)
        assert not (await it.drain()).done, "it has one"
        await it.sound()

    play(scratch, "iad sjc", story, decay_s=DECAY_S)


def test_the_reads_of_several_processes_add_up(scratch: Path) -> None:
    async def story(it: Several) -> None:
        first, _, blob = await scene(it)
        second = Reading(it, it.nodes[2])
        await first.read(blob, 1)
        await second.read(blob, 1)
        assert not (await it.drain()).done
        await first.read(blob, 1)
        await it.drain()
        assert len(await it.homes(blob)) == 2

    play(scratch, "iad sjc sjc", story, decay_s=DECAY_S)


def test_a_replica_that_is_read_no_more_is_released_after_the_decay(scratch: Path) -> None:
    async def story(it: Several) -> None:
        sjc, _, blob = await scene(it)
        await sjc.read(blob, THRESHOLD)
        await it.drain()
        it.elapse(DECAY_S - 1)
        assert not (await it.drain()).done
        it.elapse(1)
        assert (await it.drain()).done == {DECAY: 1, RELEASE: 1}
        assert await it.homes(blob) == {0}
        assert await sjc.node.home() == {}
        await it.sound()
        await sjc.read(blob, THRESHOLD)
        await it.drain()
        assert await it.homes(blob) == {0, 1}

    play(scratch, "iad sjc", story, decay_s=DECAY_S)


def test_a_replica_that_is_read_stays_and_is_looked_at_again(scratch: Path) -> None:
    async def story(it: Several) -> None:
        sjc, _, blob = await scene(it)
        await sjc.read(blob, THRESHOLD)
        await it.drain()
        for _ in range(3):
            it.elapse(DECAY_S / 2)
            await sjc.read(blob)
            it.elapse(DECAY_S / 2)
            assert (await it.drain()).done == {DECAY: 1}
            assert await it.homes(blob) == {0, 1}
        it.elapse(DECAY_S)
        assert (await it.drain()).done == {DECAY: 1, RELEASE: 1}
        assert await it.homes(blob) == {0}
        it.elapse(2 * DECAY_S)
        assert not (await it.drain()).done

    play(scratch, "iad sjc", story, decay_s=DECAY_S)


def test_a_policy_that_names_the_region_meanwhile_keeps_the_replica(scratch: Path) -> None:
    async def story(it: Several) -> None:
        sjc, bucket, blob = await scene(it)
        await sjc.read(blob, THRESHOLD)
        await it.drain()
        there = await it.bucket("iad,sjc", name="there")
        first = it.nodes[0]
        alive = first.members.alive()
        await first.metadata.copy_object((bucket, "k", None), None, there, "k", copy_draft, alive=alive)
        it.elapse(DECAY_S)
        assert (await it.drain()).done == {DECAY: 1}
        assert await it.homes(blob) == {0, 1}

    play(scratch, "iad sjc", story, decay_s=DECAY_S)


def test_the_decay_of_what_is_gone_does_nothing(scratch: Path) -> None:
    async def story(it: Several) -> None:
        sjc, bucket, blob = await scene(it)
        await sjc.read(blob, THRESHOLD)
        await it.drain()
        await it.nodes[0].metadata.delete_object(bucket, "k")
        await it.drain()
        await it.gone(blob)
        it.elapse(DECAY_S)
        assert (await it.drain()).done == {DECAY: 1}
        await sjc.read(blob, THRESHOLD)
        assert not (await it.drain()).done
        await it.sound()

    play(scratch, "iad sjc", story, decay_s=DECAY_S)


def test_a_region_outside_the_policy_gets_no_home_however_much_it_reads(scratch: Path) -> None:
    async def story(it: Several) -> None:
        sjc, _, blob = await scene(it, "iad")
        await sjc.read(blob, 100)
        assert not (await it.drain()).done
        assert await it.homes(blob) == {0}

    play(scratch, "iad sjc", story, decay_s=DECAY_S)


def test_where_a_content_was_born_and_where_there_is_one_region_nothing_is_counted(scratch: Path) -> None:
    async def story(it: Several) -> None:
        sjc, _, blob = await scene(it)
        born = Reading(it, it.nodes[0])
        await born.read(blob, 100)
        assert await born.demanded(blob) == 0
        sjc.node.metadata.regions.known = frozenset({"sjc"})
        await sjc.read(blob, 100)
        assert await sjc.demanded(blob) == 0

    play(scratch, "iad sjc", story, decay_s=DECAY_S)


def test_counts_that_cannot_be_added_are_lost_and_others_are_not(scratch: Path) -> None:
    async def story(it: Several) -> None:
        sjc, _, blob = await scene(it)
        await sjc.read(b"nowhere".ljust(16), 5)
        sjc.demand.count(b"nowhere".ljust(16))
        await sjc.read(blob, 1)
        assert await sjc.demanded(blob) == 1
        background = sjc.node.metadata.background

        async def away(*args: object) -> None:
            raise EngineUnavailable("the database is away")

        sjc.node.metadata.background = away  # type: ignore[assignment, method-assign]
        with pytest.raises(EngineUnavailable):
            await sjc.read(blob, 1)
        sjc.node.metadata.background = background  # type: ignore[method-assign]
        await sjc.read(blob, 1)
        assert await sjc.demanded(blob) == 2

    play(scratch, "iad sjc", story, decay_s=DECAY_S)


def test_one_flush_adds_the_most_read(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tigrislike.replication.demand._FLUSH_MOST", 2)

    async def story(it: Several) -> None:
        sjc, bucket, _ = await scene(it)
        blobs = [await it.put(it.nodes[0], bucket, f"k{number}", b"x") for number in range(3)]
        for blob, times in zip(blobs, (1, 3, 2), strict=True):
            for _ in range(times):
                sjc.demand.count(blob)
        await sjc.demand.flush()
        assert [await sjc.demanded(blob) for blob in blobs] == [0, 3, 2]

    play(scratch, "iad sjc", story, decay_s=DECAY_S)


@pytest.mark.parametrize("decay_s", [DECAY_S, HOUR_S, HOUR_S / 6])
def test_old_counts_are_forgotten_and_none_that_is_asked_for(scratch: Path, decay_s: float) -> None:
    async def story(it: Several) -> None:
        sjc, _, blob = await scene(it)
        metadata = sjc.node.metadata
        counted = []
        for _ in range(int(decay_s // HOUR_S) + 5):
            await sjc.read(blob, 1)
            before = await sjc.demanded(blob)
            await metadata.background(forget_old, metadata.context)
            assert await sjc.demanded(blob) == before
            rows = await metadata.engine.read(lambda tr: tr.get_range(*subspace(metadata.context.keys.demands)))
            counted.append(len(rows))
            it.elapse(HOUR_S)
        assert counted[-1] == counted[-2] == decay_s // HOUR_S + 1
        assert before == max(1, decay_s // HOUR_S)

    play(scratch, "iad sjc", story, decay_s=decay_s)


def test_where_an_object_was_born_its_reads_cost_one_lookup_an_hour(scratch: Path) -> None:
    async def story(it: Several) -> None:
        _, _, blob = await scene(it)
        born = Reading(it, it.nodes[0])
        born.node.metadata.regions.known = frozenset({"iad", "sjc"})
        locate, looked = born.node.metadata.locate, 0

        async def counting(blob_id: bytes) -> Located | None:
            nonlocal looked
            looked += 1
            return await locate(blob_id)

        born.node.metadata.locate = counting  # type: ignore[method-assign]
        for _ in range(3):
            await born.read(blob, THRESHOLD)
            it.now_s += 60  # what is remembered of homes is older than it may be
        assert looked == 1
        # Once it is at home elsewhere only, it is in demand here like anything else.
        it.nodes[1].metadata.regions.known = born.node.metadata.regions.known
        await it.nodes[1].copying.become_home_ahead(blob)
        await it.settle()
        assert await born.node.metadata.drop_home(blob, born.node.members.alive())
        it.elapse(HOUR_S)
        await born.demand.flush()
        await born.read(blob, THRESHOLD)
        assert looked == 2
        assert await born.demanded(blob) == THRESHOLD

    play(scratch, "iad sjc", story, decay_s=DECAY_S)


@pytest.mark.parametrize("most", [0, 5])
def test_what_is_remembered_of_births_is_bounded(scratch: Path, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tigrislike.replication.demand._NATIVES_MOST", most)

    async def story(it: Several) -> None:
        _, bucket, _ = await scene(it)
        born = Reading(it, it.nodes[0])
        born.node.metadata.regions.known = frozenset({"iad", "sjc"})
        for number in range(9):
            await born.read(await it.put(it.nodes[0], bucket, f"k{number}", data_of(number, 100_000)))
            assert len(born.demand._natives) <= most + 1

    play(scratch, "iad sjc", story, decay_s=DECAY_S)
