"""Whole migrations of shadow buckets: everything is adopted once, wherever a run was cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.bytecache.conftest import scratch
from tests.metadata.world import small
from tests.replication.cluster import Cluster, ClusterNode, cluster
from tests.replication.memory_origin import MemoryOrigin, OneOrigin
from tigrislike.metadata import Bucket, Metadata, origins
from tigrislike.metadata.errors import InvalidRequest, KeyTooLong
from tigrislike.metadata.homes import ANYBODY
from tigrislike.metadata.owed import zone_of
from tigrislike.metadata.records import Elsewhere, Migration, OriginPlace
from tigrislike.metadata.shadow_migration import MIGRATE
from tigrislike.origin import OriginPage, OriginRefused, OriginUnavailable
from tigrislike.replication import migrate
from tigrislike.replication.migrate import Migrate

__all__ = ["scratch"]

PLACE = OriginPlace("s3://models", "http://127.0.0.1:9")


class World:
    """A node that migrates from an origin in memory, and a bucket that looks through to it.

    Attributes:
        asked: the keys that were to be adopted, in order.
        fails: what adopting a key raises.
    """

    def __init__(self, it: Cluster, origin: MemoryOrigin) -> None:
        self.it = it
        self.origin = origin
        self.asked: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.bucket: Bucket

    @property
    def node(self) -> ClusterNode:
        return next(iter(self.it.nodes.values()))

    @property
    def metadata(self) -> Metadata:
        return self.node.metadata

    async def adopt(self, bucket: Bucket, key: str) -> bool:
        self.asked.append(key)
        if key in self.fails:
            raise self.fails[key]
        found = await self.origin.head(key)
        draft = small(self.origin.objects[key].data)
        source = Elsewhere(bucket.shadow, key, found.etag)
        return await self.metadata.adopt(bucket, key, draft, found.modified_ns, source) is not None

    async def migration(self) -> Migration:
        found, _, _ = await self.metadata.migration_standing(self.bucket)
        assert found is not None
        return found

    async def here(self) -> list[str]:
        return [key for key, _ in (await self.metadata.list_objects(self.bucket)).entries]


def play(folder: Path, story: Callable[[World], Awaitable[None]], keys: str = "abcdefg", page: int = 2) -> None:
    async def main() -> None:
        async with cluster(folder, a="iad") as it:
            world = World(it, MemoryOrigin(dict.fromkeys(keys, b"bytes"), page=page))
            node = world.node
            node.tasks = [*node.tasks, Migrate(node.metadata, OneOrigin(world.origin), world.adopt)]
            await it.bucket("models")
            world.bucket = await node.metadata.use_origin("models", origins.SHADOW, PLACE)
            await story(world)

    asyncio.run(main())


def test_everything_is_adopted_that_was_never_here(scratch: Path) -> None:
    async def story(world: World) -> None:
        await world.metadata.put_object(world.bucket, "b", small(b"ours"))
        await world.metadata.delete_object(world.bucket, "c")
        await world.metadata.begin_migration("models")
        await world.it.work(2)
        assert await world.here() == list("abdefg")
        assert sorted(world.asked) == list("adefg")
        done = await world.migration()
        assert (done.looked, done.adopted, done.failed, done.error) == (7, 5, 0, "")
        assert done.ended_ns
        assert (await world.metadata.head_object(world.bucket, "b")).size == 4

    play(scratch, story)


def test_a_prefix_is_all_that_is_looked_at(scratch: Path) -> None:
    async def story(world: World) -> None:
        for key in ("x/1", "x/2", "y"):
            world.origin.have(key, b"bytes")
        await world.metadata.begin_migration("models", "x/")
        await world.it.work(1)
        assert await world.here() == ["x/1", "x/2"]
        # Another prefix is another migration.
        await world.metadata.begin_migration("models", "y")
        await world.it.work(1)
        assert await world.here() == ["x/1", "x/2", "y"]
        assert (await world.migration()).looked == 1

    play(scratch, story, keys="")


def test_an_origin_that_goes_away_is_waited_for_and_the_walk_goes_on_where_it_was(scratch: Path) -> None:
    async def story(world: World) -> None:
        world.fails["e"] = OriginUnavailable("memory is away")
        await world.metadata.begin_migration("models")
        await world.it.work(300)
        waits = await world.migration()
        assert (waits.looked, waits.error, waits.ended_ns) == (4, "memory is away", 0)
        assert (await world.metadata.queue.counts(zone_of(ANYBODY, world.bucket.id)))[MIGRATE].dead == 0
        world.fails.clear()
        world.asked.clear()
        await world.it.work(10)
        assert await world.here() == list("abcdefg")
        assert "a" not in world.asked
        assert (await world.migration()).error == ""

    play(scratch, story)


def test_what_cannot_be_adopted_is_counted_and_left_out(scratch: Path) -> None:
    async def story(world: World) -> None:
        world.fails = {"b": OriginRefused("not this one"), "d": KeyTooLong(2000, 1024)}
        await world.metadata.begin_migration("models")
        await world.it.work(1)
        assert await world.here() == list("acefg")
        done = await world.migration()
        assert (done.looked, done.adopted, done.failed, bool(done.ended_ns)) == (7, 5, 2, True)

    play(scratch, story)


def test_begun_again_it_goes_on_at_another_rate_and_once_it_is_over_anew(scratch: Path) -> None:
    async def story(world: World) -> None:
        world.fails["c"] = OriginUnavailable("memory is away")
        _, first = await world.metadata.begin_migration("models")
        await world.it.work(1)
        _, again = await world.metadata.begin_migration("models", rate=7)
        assert (again.begun_ns, again.looked, again.rate) == (first.begun_ns, 2, 7)
        world.fails.clear()
        await world.it.work(3)
        assert (await world.migration()).ended_ns
        world.origin.have("z", b"bytes")
        _, anew = await world.metadata.begin_migration("models")
        assert (anew.looked, anew.ended_ns) == (0, 0)
        world.asked.clear()
        await world.it.work(2)
        assert world.asked == ["z"]

    play(scratch, story)


def test_words_that_are_good_no_more_start_the_walk_over(scratch: Path) -> None:
    async def story(world: World) -> None:
        world.fails["e"] = OriginUnavailable("memory is away")
        await world.metadata.begin_migration("models")
        await world.it.work(1)
        listing, refused = world.origin.list, 0

        async def forgetful(prefix: str, *, after: str = "", **named: object) -> OriginPage:
            nonlocal refused
            if after == "d" and not refused:
                refused += 1
                raise OriginRefused("no such token")
            return await listing(prefix, after=after, **named)  # type: ignore[arg-type]

        world.origin.list = forgetful  # type: ignore[method-assign, assignment]
        world.fails.clear()
        await world.it.work(10)
        assert refused == 1
        assert await world.here() == list("abcdefg")
        done = await world.migration()
        assert (done.looked, bool(done.ended_ns)) == (7, True)

    play(scratch, story)


def test_an_origin_that_refuses_to_be_listed_is_somebodys_to_look_at(scratch: Path) -> None:
    async def story(world: World) -> None:
        async def refusing(*_: object, **__: object) -> OriginPage:
            raise OriginRefused("no such key pair")

        world.origin.list = refusing  # type: ignore[method-assign]
        await world.metadata.begin_migration("models")
        await world.it.work(300)
        [(_, letter)] = await world.metadata.queue.letters(zone_of(ANYBODY, world.bucket.id))
        assert "no such key pair" in letter.error
        assert (await world.migration()).error == "no such key pair"

    play(scratch, story)


def test_a_bucket_without_a_shadow_is_refused_and_one_that_looks_elsewhere_is_left_alone(scratch: Path) -> None:
    async def story(world: World) -> None:
        await world.it.bucket("plain")
        with pytest.raises(InvalidRequest, match="no shadow"):
            await world.metadata.begin_migration("plain")
        await world.metadata.begin_migration("models")
        await world.metadata.use_origin("models", origins.SHADOW, OriginPlace("s3://other"))
        await world.it.work(1)
        assert world.asked == []
        await world.metadata.begin_migration("models")
        await world.metadata.delete_bucket("models")
        await world.it.work(1)
        assert world.asked == []
        assert not [key for key in world.it.engine.dump() if b"migration" in key]

    play(scratch, story)


def test_objects_are_taken_at_a_rate(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[int] = []

    class Rate:
        def __init__(self, per_s: int) -> None:
            self.per_s = per_s

        async def __call__(self, size: int) -> None:
            assert size == 1
            rates.append(self.per_s)

    monkeypatch.setattr(migrate, "Rate", Rate)

    async def story(world: World) -> None:
        await world.metadata.begin_migration("models", rate=50)
        await world.it.work(1)
        assert rates == [50] * 7

    play(scratch, story)
