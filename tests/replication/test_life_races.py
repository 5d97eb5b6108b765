"""The same under faults and races: seeded interleavings, errors and commits of unknown outcome at every transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import combinations
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kv.memory_engine import MemoryEngine, RandomFaults
from tests.metadata.queueing import take_all
from tests.metadata.world import MASTER, large
from tigrislike.metadata import Metadata, copy_draft, homes, nodes, owed, placing
from tigrislike.metadata.kv import AmbiguousCommit, ManualClock
from tigrislike.metadata.placing import Regions
from tigrislike.metadata.records import LIVE, REMOVED, Beat, Content, Home, Node
from tigrislike.replication.lacking import View
from tigrislike.replication.membership import Members
from tigrislike.replication.removing import remove_node
from tigrislike.replication.repair import give_up, owe_for_lost
from tigrislike.replication.repolicy import follow_some

T = TypeVar("T")

SEEDS = range(25)
every_seed = pytest.mark.parametrize("seed", SEEDS)
NODES = {name.encode() * 16: region for name, region in (("a", "iad"), ("b", "iad"), ("c", "sjc"))}
A, B, C = NODES


class Race:
    """One database, three nodes that are alive in all eyes, a bucket, and faults."""

    def __init__(self, seed: int) -> None:
        self.clock = ManualClock()
        self.faults = RandomFaults(seed, read=0, refused=0, unknown=0)
        self.engine = MemoryEngine(seed=seed, faults=self.faults, clock=self.clock)
        self.of: dict[bytes, Metadata] = {}
        self.members: dict[bytes, Members] = {}
        self._seed = seed

    async def __aenter__(self) -> Race:
        for node, region in NODES.items():
            metadata = await Metadata.open(
                self.engine,
                master_key=MASTER,
                node_id=node,
                region=region,
                reclaim_grace_s=0,
                regions=Regions(known=["iad", "sjc"]),
            )
            await metadata.join(Node(node, region, "http://somewhere"))
            self.of[node], self.members[node] = metadata, Members(metadata, clock_s=lambda: 0.0)
        for count in (1, 2):
            for node, metadata in self.of.items():
                await metadata.beat(node, Beat(0, count))
            for members in self.members.values():
                await members.refresh()
        self.bucket = await self.of[A].create_bucket("bucket", "root")
        # From here on, everything may fail.
        vars(self.faults).update(vars(RandomFaults(self._seed)))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.close()

    def view(self, *alive: bytes, by: bytes = C) -> View:
        return View(self.members[by], {node: NODES[node] for node in alive})

    async def put(self, key: str, *others: bytes) -> bytes:
        """An object that A and the `others` hold."""
        draft = large(key.encode(), others=tuple(Home(NODES[node], node) for node in others))
        await self.of[A].put_object(self.bucket, key, draft)
        assert draft.blob is not None
        return draft.blob

    async def items(self) -> set[tuple[bytes, str, bytes]]:
        """What is owed: to whom, which task, about what."""
        queue = self.of[C].queue
        zones = await queue.zones()
        listed = [(zone, item) for zone in zones for _, item in await queue.items(zone)]
        return {(owed.destination_of(zone), item.task, item.subject) for zone, item in listed}


async def retried(work: Callable[..., Awaitable[T]]) -> T:
    """What is repeatable is repeated until its outcome is known."""
    while True:
        try:
            return await work()
        except AmbiguousCommit:
            continue


@every_seed
def test_of_two_that_give_up_at_once_enough_stay(seed: int) -> None:
    async def main() -> None:
        async with Race(seed) as it:
            content_id = await it.put("k", B, C)
            alive = dict(NODES)
            kept = await asyncio.gather(
                *(retried(lambda m=metadata: m.drop_home(content_id, alive)) for metadata in it.of.values())
            )
            content = await it.of[A].content(content_id)
            assert content is not None
            assert len(content.homes) == 1, f"seed {seed}"
            assert kept.count(True) >= 2

    asyncio.run(main())


@every_seed
def test_a_death_is_owed_once_however_many_notice(seed: int) -> None:
    async def main() -> None:
        async with Race(seed) as it:

            async def notice(node: bytes) -> bool:
                context = it.of[node].context
                return bool(await retried(lambda: it.of[node].background(nodes.owe_repair, context, A, 2)))

            await asyncio.gather(notice(B), notice(C), notice(B))
            owed_now = {item for item in await it.items() if item[1] != nodes.OPEN_REGION}
            assert owed_now == {(homes.ANYBODY, nodes.REPAIR, A)}, f"seed {seed}"
            (claimed,) = await take_all(it.of[B])
            assert await retried(lambda: it.of[B].queue.finish(claimed)) in (True, False)
            assert await notice(C) is False, "once for each silence"
            await retried(lambda: it.of[A].beat(A, Beat(0, 3)))
            assert await notice(C) is False, "it lives"

    asyncio.run(main())


@every_seed
def test_two_repairs_owe_what_one_owes(seed: int) -> None:
    async def main() -> None:
        async with Race(seed) as it:
            await retried(lambda: it.of[A].change_bucket("bucket", durability="homes=2"))
            await take_all(it.of[A])
            it.bucket = await it.of[A].bucket("bucket")
            content_id = await it.put("k", B)

            async def repair(node: bytes) -> None:
                view = it.view(B, C, by=node)
                it.members[node]._members.pop(A, None)  # it is dead in their eyes
                metadata = it.of[node]
                await retried(lambda: metadata.background(owe_for_lost, metadata.context, view, "iad", [content_id]))

            await asyncio.gather(repair(B), repair(C))
            about = {(who, task) for who, task, subject in await it.items() if subject == content_id}
            assert about == {(C, homes.HOLD)}, f"seed {seed}"

    asyncio.run(main())


@every_seed
def test_a_drain_against_a_delete_leaves_nothing_that_is_not_owed(seed: int) -> None:
    async def main() -> None:
        async with Race(seed) as it:
            content_id = await it.put("k", B)
            metadata = it.of[A]
            view = it.view(B, C, by=A)

            async def drain() -> None:
                await retried(lambda: metadata.background(give_up, metadata.context, view, [content_id]))
                await retried(lambda: metadata.drop_home(content_id, view.alive))

            await asyncio.gather(drain(), retried(lambda: it.of[C].delete_object(it.bucket, "k")))
            condemned = False
            for who, task, subject in sorted(await it.items()):
                if task == owed.RECLAIM_CONTENT and subject == content_id:
                    condemned |= await retried(lambda w=who: it.of[w].reclaim_content(content_id)) is not None
            assert condemned, f"seed {seed}: whoever is to reclaim it can"
            reached = {who for who, task, _ in await it.items() if task == owed.RECLAIM_CONTENT}
            assert reached == {A, B}, f"seed {seed}: both had files"

    asyncio.run(main())


@every_seed
def test_a_removal_against_a_delete_forgets_the_content_or_has_it_reclaimed(seed: int) -> None:
    async def main() -> None:
        async with Race(seed) as it:
            content_id = await it.put("k", B)

            async def remove() -> None:
                async def once() -> None:
                    async for _ in remove_node(it.of[C], it.members[C], A):
                        pass

                await retried(once)

            async def delete() -> None:
                await retried(lambda: it.of[B].delete_object(it.bucket, "k"))
                await retried(lambda: it.of[B].reclaim_content(content_id))
                await retried(lambda: it.of[B].forget_content(content_id))

            await asyncio.gather(remove(), delete())
            await remove()  # what came in between
            for who, task, subject in sorted(await it.items()):
                assert who != A, f"seed {seed}: {task} is owed to nobody"
                if task == owed.RECLAIM_CONTENT:
                    node = it.of.get(who, it.of[B])
                    await retried(lambda n=node, s=subject: n.reclaim_content(s))
                    await retried(lambda n=node, s=subject: n.forget_content(s))
            assert await it.of[B].content(content_id) is None, f"seed {seed}"
            assert await it.of[B].homes_of(A) == []
            assert {node.state for node, _ in await it.of[B].nodes() if node.node == A} == {REMOVED}

    asyncio.run(main())


@every_seed
def test_of_two_buckets_that_change_at_once_neither_is_forgotten(seed: int) -> None:
    async def main() -> None:
        async with Race(seed) as it:
            content_id = await it.put("k")
            other = await it.of[A].create_bucket("other", "root")
            await it.of[A].copy_object((it.bucket, "k", None), None, other, "k", copy_draft)
            names = {it.bucket.id: "bucket", other.id: "other"}

            async def follow(node: bytes, name: str, bucket_id: bytes, regions: str) -> None:
                metadata = it.of[node]
                await retried(lambda: metadata.change_bucket(name, region_policy=regions))
                view = it.view(*NODES, by=node)
                while (
                    await retried(lambda: metadata.background(follow_some, metadata.context, view, names, bucket_id))
                    is not None
                ):
                    pass

            await asyncio.gather(follow(A, "bucket", it.bucket.id, "iad"), follow(C, "other", other.id, "sjc"))
            content = await it.of[A].content(content_id)
            assert content is not None
            assert set(content.regions) == {"iad", "sjc"}, f"seed {seed}"

    asyncio.run(main())


# -- Arithmetic ------------------------------------------------------------------------------------------------------

REGIONS = ("iad", "sjc", "ams")
STORE = {bytes([number]) * 16: REGIONS[number % 3] for number in range(6)}

contents = st.builds(
    lambda homes, regions, copies: Content(
        1, LIVE, homes=tuple(Home(STORE[node], node) for node in homes), regions=tuple(regions), copies=copies
    ),
    st.lists(st.sampled_from(sorted(STORE)), unique=True, min_size=1),
    st.lists(st.sampled_from(REGIONS), unique=True),
    st.integers(1, 4),
)


@given(contents, st.sets(st.sampled_from(sorted(STORE))))
def test_what_is_in_excess_may_all_go_and_nothing_more(content: Content, living: set[bytes]) -> None:
    alive = {node: STORE[node] for node in living}
    regions = Regions(known=REGIONS)
    excess = placing.excess(content, alive, regions)
    left = Content(
        1,
        LIVE,
        homes=tuple(home for home in content.homes if home not in excess),
        regions=content.regions,
        copies=content.copies,
    )
    if placing.missing_regions(content, alive, regions):
        assert excess == []
        return
    if excess:
        assert placing.missing_regions(left, alive, regions) == []
        assert placing.missing_copies(left, alive, regions) == 0
    # Minimal: of what is left, no home could go as well.
    for home in left.homes:
        assert not placing.may_lose(left, home.node, alive, regions)
    assert all(one != other for one, other in combinations(excess, 2))
