"""Write-through of shadow buckets: whatever happens in the bucket, the shadow comes to have what the bucket has."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.bytecache.conftest import scratch
from tests.metadata.world import blob_id, etag_of, large, listed, no_combine, no_composite, small
from tests.replication.cluster import Cluster, ClusterNode, cluster, data_of
from tests.replication.memory_origin import MemoryOrigin, OneOrigin
from tigrislike.metadata import Bucket, Extent, Part, UploadDraft, copy_draft, origins
from tigrislike.metadata.homes import ANYBODY, add_home
from tigrislike.metadata.mirroring import MIRROR
from tigrislike.metadata.owed import zone_of
from tigrislike.metadata.records import Counts, Elsewhere, ObjectVersion, OriginPlace
from tigrislike.origin import Attributes, OriginBroken, OriginRefused, OriginUnavailable
from tigrislike.replication.mirror import Mirror, attributes_of
from tigrislike.replication.rates import Rate

__all__ = ["scratch"]

PLACE = OriginPlace("s3://models", "http://127.0.0.1:9")
LONG = 300
"""Rounds of two seconds, in which an item that fails becomes a dead letter."""


class World:
    """A cluster whose nodes mirror to one origin in memory, and a bucket that is written through to it."""

    def __init__(self, it: Cluster, origin: MemoryOrigin) -> None:
        self.it = it
        self.origin = origin
        self.bucket: Bucket

    @property
    def node(self) -> ClusterNode:
        return next(iter(self.it.nodes.values()))

    async def put(self, key: str, data: bytes = b"data", node: ClusterNode | None = None, **fields: object) -> None:
        await (node or self.node).metadata.put_object(self.bucket, key, small(data, **fields))

    async def delete(self, key: str, version_id: str | None = None) -> None:
        await self.node.metadata.delete_object(self.bucket, key, version_id)

    async def counts(self) -> Counts:
        found = await self.node.metadata.queue.counts(zone_of(ANYBODY, self.bucket.id))
        return found.get(MIRROR, Counts())

    def there(self) -> dict[str, bytes]:
        return {key: stored.data for key, stored in self.origin.objects.items()}


def play(
    folder: Path,
    story: Callable[[World], Awaitable[None]],
    *,
    seed: int = 0,
    versioning: str = "",
    write_through: bool = True,
    **regions: str,
) -> None:
    async def main() -> None:
        async with cluster(folder, seed=seed, **(regions or {"a": "iad"})) as it:
            world = World(it, MemoryOrigin())
            for node in it.nodes.values():
                node.tasks = [*node.tasks, Mirror(node.metadata, node.blocks, OneOrigin(world.origin), Rate(0))]
            await it.bucket("models")
            metadata = world.node.metadata
            if versioning:
                await metadata.set_versioning("models", versioning)
            world.bucket = await metadata.use_origin("models", origins.SHADOW, PLACE, write_through=write_through)
            await story(world)

    asyncio.run(main())


def test_every_way_of_writing_reaches_the_shadow(scratch: Path) -> None:
    data = data_of(1)

    async def story(world: World) -> None:
        node, bucket = world.node, world.bucket
        await world.put(
            "put", b"1", content_type="text/plain", headers={"CacheControl": "no-cache"}, metadata={"a": "b"}
        )
        await node.put("large", data, bucket="models")
        await node.metadata.copy_object((bucket, "large", None), None, bucket, "copy", copy_draft)
        upload = await node.metadata.create_upload(bucket, "parts", UploadDraft(content_type="image/png"))
        stored = await node.store(data)
        part = Part(1, len(data), etag_of(data), "", 0, (Extent(stored, 0, len(data)),))
        await node.metadata.put_part(bucket, "parts", upload.upload_id, part)
        await node.metadata.complete_upload(
            bucket, "parts", upload.upload_id, listed(part), combine=no_combine, composite=no_composite
        )
        await node.blocks.publish(stored)
        await world.put("empty", b"")
        await world.put("slashes//and ü", b"2")
        await world.it.work(2)
        expected = {"put": b"1", "large": data, "copy": data, "parts": data, "empty": b"", "slashes//and ü": b"2"}
        assert world.there() == expected
        attributes = world.origin.objects["put"].attributes
        assert (attributes.content_type, attributes.headers, attributes.metadata) == (
            "text/plain",
            {"CacheControl": "no-cache"},
            {"a": "b"},
        )
        await node.metadata.put_object_tags(bucket, "put", None, {"t": "u"})
        await world.put("large", b"smaller")
        await node.metadata.delete_objects(bucket, [("copy", None, None), ("only-there", None, None)])
        world.origin.have("only-there", b"x")
        await world.it.work(2)
        assert world.there() == {key: value for key, value in expected.items() if key != "copy"} | {"large": b"smaller"}
        assert world.origin.objects["put"].attributes.tags == {"t": "u"}
        assert await world.counts() == Counts(enqueued=10, done=10)

    play(scratch, story)


def test_nothing_is_owed_where_nothing_is_written_through_or_adopted(scratch: Path) -> None:
    async def without(world: World) -> None:
        await world.put("k")
        await world.delete("k")
        assert await world.counts() == Counts()

    play(scratch / "without", without, write_through=False)

    async def adopted(world: World) -> None:
        bucket = world.bucket
        source = Elsewhere(bucket.shadow, "k", "e")
        seen = await world.node.metadata.adopt(bucket, "k", large(b"one"), 1, source)
        assert seen is not None
        assert await world.node.metadata.readopt(bucket, "k", seen, None, 0, source)
        assert await world.counts() == Counts()

    play(scratch / "adopted", adopted)


def test_what_is_owed_outlasts_an_origin_that_is_away(scratch: Path) -> None:
    async def story(world: World) -> None:
        world.origin.away = True
        await world.put("a", b"1")
        await world.put("b", b"1")
        await world.delete("b")
        world.origin.have("b", b"old")
        await world.it.work(LONG)
        counts = await world.counts()
        assert (counts.waiting, counts.dead, counts.failed) == (2, 0, 0)
        # It is not asked without a pause.
        assert counts.done < 100
        world.origin.away = False
        await world.it.work(60)
        assert world.there() == {"a": b"1"}
        assert (await world.counts()).waiting == 0

    play(scratch, story)


def test_an_answer_that_makes_no_sense_is_waited_out_and_a_refusal_is_somebodys_to_look_at(scratch: Path) -> None:
    async def story(world: World) -> None:
        put = world.origin.put
        fails: list[Exception] = []

        async def failing(*args: object, **named: object) -> object:
            if fails:
                raise fails[0]
            return await put(*args, **named)  # type: ignore[arg-type]

        world.origin.put = failing  # type: ignore[method-assign, assignment]
        fails.append(OriginBroken("too short"))
        await world.put("a", b"1")
        await world.it.work(LONG)
        assert (await world.counts()).dead == 0
        fails.clear()
        await world.it.work(60)
        assert world.there() == {"a": b"1"}
        fails.append(OriginRefused("no such key pair"))
        await world.put("a", b"2")
        await world.it.work(LONG)
        zone = zone_of(ANYBODY, world.bucket.id)
        [(letter, item)] = await world.node.metadata.queue.letters(zone)
        assert "no such key pair" in item.error
        fails.clear()
        assert await world.node.metadata.queue.retry(zone, letter)
        await world.it.work(2)
        assert world.there() == {"a": b"2"}

    play(scratch, story)


def test_bytes_out_of_reach_are_waited_for(scratch: Path) -> None:
    data = data_of(2)

    async def story(world: World) -> None:
        await world.it["a"].put("k", data, bucket="models")
        world.it.kill("a")
        await world.it.work(40, only=["b"])
        assert (await world.counts()).dead == 0
        assert world.there() == {}
        world.it.revive("a")
        await world.it.work(60, only=["b"])
        assert world.there() == {"k": data}

    play(scratch, story, a="iad", b="sjc")


def test_versions_come_and_go_and_the_shadow_has_what_is_current(scratch: Path) -> None:
    async def story(world: World) -> None:
        await world.put("k", b"1")
        await world.put("k", b"2")
        marker = await world.node.metadata.delete_object(world.bucket, "k")
        await world.it.work(2)
        assert world.there() == {}
        await world.delete("k", marker.version_id)
        await world.it.work(2)
        assert world.there() == {"k": b"2"}
        newest = await world.node.metadata.head_object(world.bucket, "k")
        await world.delete("k", newest.version_id)
        await world.it.work(2)
        assert world.there() == {"k": b"1"}

    play(scratch, story, versioning="Enabled")


@pytest.mark.parametrize("versioned", [False, True])
def test_the_shadows_object_stays_while_its_bytes_are_needed_here_and_nowhere_else(
    scratch: Path, versioned: bool
) -> None:
    async def story(world: World) -> None:
        node, bucket = world.node, world.bucket
        world.origin.have("k", b"theirs")
        await node.metadata.adopt(bucket, "k", large(b"one", size=6), 1, Elsewhere(bucket.shadow, "k", "e"))
        if versioned:
            await world.put("k", b"ours")  # the adopted version is one of the key's
        else:
            await node.metadata.copy_object((bucket, "k", None), None, bucket, "copy", copy_draft)
            await world.delete("k")
        await world.it.work(5, only=["none"])
        mirror = Mirror(node.metadata, node.blocks, OneOrigin(world.origin), Rate(0))
        node.tasks = [mirror]
        await world.it.work(5)
        assert world.there()["k"] == b"theirs"
        assert mirror.put_off
        home = node.metadata.context.home
        await node.metadata.begin_home(blob_id(b"one"))
        await node.metadata.background(add_home, node.metadata.context, blob_id(b"one"), {home.node: home.region})
        await world.it.work(5)
        assert world.there().get("k") == (b"ours" if versioned else None)
        assert not [key for key in world.it.engine.dump() if b"needed" in key]

    play(scratch, story, versioning="Enabled" if versioned else "")


def test_an_object_is_not_written_over_what_it_is_itself_read_from(scratch: Path) -> None:
    async def story(world: World) -> None:
        node, bucket = world.node, world.bucket
        world.origin.have("k", b"theirs")
        await node.metadata.adopt(bucket, "k", large(b"one", size=6), 1, Elsewhere(bucket.shadow, "k", "e"))
        await node.metadata.put_object_tags(bucket, "k", None, {"t": "u"})
        [mirror] = [task for task in node.tasks if isinstance(task, Mirror)]
        node.tasks = [mirror]
        await world.it.work(5)
        assert (world.origin.puts, (await world.counts()).waiting) == ([], 1)
        assert mirror.put_off

    play(scratch, story)


def test_an_adopted_object_that_nothing_needs_is_overwritten_at_once(scratch: Path) -> None:
    async def story(world: World) -> None:
        bucket = world.bucket
        world.origin.have("k", b"theirs")
        await world.node.metadata.adopt(bucket, "k", large(b"one", size=6), 1, Elsewhere(bucket.shadow, "k", "e"))
        await world.put("k", b"ours")
        await world.it.work(1)
        assert world.there() == {"k": b"ours"}

    play(scratch, story)


def test_a_bucket_that_is_gone_or_looks_elsewhere_owes_nothing_any_more(scratch: Path) -> None:
    async def story(world: World) -> None:
        await world.put("k")
        await world.node.metadata.use_origin("models", origins.SHADOW, None, write_through=False)
        await world.it.work(1)
        assert (world.there(), await world.counts()) == ({}, Counts(enqueued=1, done=1))
        world.bucket = await world.node.metadata.use_origin("models", origins.SHADOW, PLACE, write_through=True)
        await world.delete("k")
        await world.node.metadata.delete_bucket("models")
        await world.it.bucket("models")  # another one of the same name
        await world.it.work(1)
        assert world.origin.deletes == []

    play(scratch, story)


@pytest.mark.parametrize("seed", range(6))
def test_in_whatever_order_things_happen_both_sides_end_up_alike(scratch: Path, seed: int) -> None:
    rng = random.Random(seed)

    async def story(world: World) -> None:
        ours: dict[str, bytes] = {}
        nodes = list(world.it.nodes.values())
        for _ in range(40):
            key = rng.choice("abc")
            step = rng.random()
            if step < 0.4:
                ours[key] = rng.randbytes(3)
                await world.put(key, ours[key], rng.choice(nodes))
            elif step < 0.6:
                await world.delete(key)
                ours.pop(key, None)
            elif step < 0.75:
                world.origin.away = not world.origin.away
            else:
                await world.it.work(1, only=[rng.choice(nodes).name])
        world.origin.away = False
        await world.it.work(80)
        assert world.there() == ours

    play(scratch, story, seed=seed, a="iad", b="sjc")


def test_a_node_writes_at_its_rate_what_is_there_when_its_turn_comes(scratch: Path) -> None:
    async def story(world: World) -> None:
        now_s, waits = 0.0, list[float]()
        for key in ("a", "b", "c"):
            await world.put(key, bytes(30))

        async def sleep(seconds: float) -> None:
            nonlocal now_s
            if not waits:  # the second waits for the first to be paid for
                [first] = world.there()
                for key in {"a", "b", "c"} - {first}:
                    await world.delete(key)
            waits.append(seconds)
            now_s += seconds

        mirror = Mirror(
            world.node.metadata,
            world.node.blocks,
            OneOrigin(world.origin),
            Rate(10, clock_s=lambda: now_s, sleep=sleep),
        )
        mirror.concurrency = 1  # type: ignore[misc]
        world.node.tasks = [mirror]
        await world.it.work(4)
        assert waits == [3.0]
        assert len(world.origin.puts) == 1
        assert {*world.origin.puts, *world.origin.deletes} == {"a", "b", "c"}
        assert (await world.counts()).waiting == 0

    play(scratch, story)


def test_without_a_rate_nobody_waits(scratch: Path) -> None:
    async def story(world: World) -> None:
        async def sleep(seconds: float) -> None:
            raise AssertionError(seconds)

        world.node.tasks = [
            Mirror(world.node.metadata, world.node.blocks, OneOrigin(world.origin), Rate(0, sleep=sleep))
        ]
        for key in ("a", "b", "c"):
            await world.put(key, bytes(10_000))
        await world.it.work(2)
        assert len(world.there()) == 3

    play(scratch, story)


def test_the_origins_own_pause_is_kept(scratch: Path) -> None:
    async def story(world: World) -> None:
        asked: list[int] = []

        async def patience(*args: object, **named: object) -> object:
            asked.append(world.node.metadata.now_ns())
            raise OriginUnavailable("slow down", retry_after_s=50.0)

        world.origin.put = patience  # type: ignore[method-assign, assignment]
        await world.put("a")
        await world.it.work(60)  # of two seconds each
        assert len(asked) >= 2
        assert asked[1] - asked[0] >= 50 * 10**9

    play(scratch, story)


def test_what_an_origin_is_given_is_what_an_object_carries() -> None:
    version = ObjectVersion(
        1, 1, "e", content_type="a/b", headers={"Expires": "x"}, metadata={"m": "n"}, tags={"t": "u"}
    )
    assert attributes_of(version) == Attributes("a/b", {"Expires": "x"}, {"m": "n"}, {"t": "u"}, "STANDARD")
    assert attributes_of(replace(version, storage_class="GLACIER_IR")).storage_class == "GLACIER_IR"
