"""Homes of contents: gained, lost and found, one after the other and all at once.

The races run under a seeded scheduler with faults; a failure names its seed, and that seed shows it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.kv.memory_engine import RandomFaults
from tests.metadata.nodes import (
    ALIVE,
    add_home,
    bucket_of,
    finish_all,
    home,
    left_home,
    node_id,
    open_nodes,
    owed_now,
    reclaim,
    rows_left,
)
from tests.metadata.world import blob_id, both_engines, large, listed, no_combine, no_composite, open_kind, part
from tigrislike.admin.fsck import fsck
from tigrislike.metadata import BlobDead, Bucket, Metadata, Part, UploadDraft, copy_draft, homes, owed, placing
from tigrislike.metadata.errors import ContentGone, HomesLacking, NoSuchKey
from tigrislike.metadata.homes import AHEAD_NS, HOLD, RELEASE, REPLICATE, region_destination
from tigrislike.metadata.placing import Alive, ranked
from tigrislike.metadata.records import DEAD, LIVE, Content, Home, Item

every_seed = pytest.mark.parametrize("seed", range(30))

Nodes = list[Metadata]
ONE = blob_id(b"one")


def play(kind: str, folder: Path, story: Callable[[Nodes], Awaitable[Any]], *, seed: int | None = None) -> Any:
    async def main() -> Any:
        faults = RandomFaults(seed) if seed is not None else None
        async with open_kind(kind, folder, seed=seed or 0, faults=faults) as engine:
            return await story(await open_nodes(engine))

    return asyncio.run(main())


def race(seed: int, story: Callable[[Nodes], Awaitable[Any]]) -> Any:
    return play("memory", Path(), story, seed=seed)


async def content_of(metadata: Metadata, content_id: bytes = ONE) -> Content:
    content = await metadata.content(content_id)
    assert content is not None
    return content


async def sound(metadata: Metadata) -> None:
    assert [finding async for finding in fsck(metadata, pause_s=0)] == []


async def items_of(metadata: Metadata) -> list[Item]:
    zones = await metadata.queue.zones()
    return [item for zone in zones for _, item in await metadata.queue.items(zone)]


async def become_home(metadata: Metadata, content_id: bytes = ONE) -> None:
    assert await metadata.begin_home(content_id) is not None
    assert await add_home(metadata, content_id) is not None


# --- one after the other


@both_engines
def test_a_home_is_announced_recorded_and_given_up(kind: str, tmp_path: Path) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, *_ = nodes
        bucket = await bucket_of(first)
        await first.put_object(bucket, "k", large(b"one", 7))
        assert (await content_of(first)).homes == (home(0),)
        assert await first.begin_home(ONE) is None, "it is one already"

        assert await second.begin_home(ONE) == homes.Held(((ONE, 7),), ())
        assert (await content_of(first)).pending == (home(1),)
        assert await second.begin_home(ONE) == homes.Held(((ONE, 7),), ()), "after a crash it goes on"
        assert (await content_of(first)).pending == (home(1),)
        assert not await second.drop_home(ONE, ALIVE), "it is about to become one"
        assert await second.homes_of(node_id(1)) == []

        assert await add_home(second, ONE) is not None
        content = await content_of(first)
        assert (content.homes, content.pending) == ((home(0), home(1)), ())
        assert await second.homes_of(node_id(1)) == [ONE]
        await sound(first)

        assert await first.drop_home(ONE, ALIVE)
        content = await content_of(first)
        assert (content.homes, content.leaving) == ((home(1),), (home(0),))
        assert await first.homes_of(node_id(0)) == []
        assert await first.drop_home(ONE, ALIVE), "after a crash it goes on"
        assert not await second.drop_home(ONE, ALIVE), "it is the last"
        await left_home(first, ONE)
        await left_home(first, ONE)
        assert (await content_of(first)).leaving == ()
        await sound(first)

    play(kind, tmp_path, story)


@both_engines
def test_who_left_half_way_may_become_a_home_again(kind: str, tmp_path: Path) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, *_ = nodes
        await first.put_object(await bucket_of(first), "k", large(b"one"))
        await become_home(second)
        assert await first.drop_home(ONE, ALIVE)
        assert await first.begin_home(ONE) is not None
        assert not await first.drop_home(ONE, ALIVE)
        await left_home(first, ONE)
        assert (await content_of(first)).pending == (home(0),)
        assert await add_home(first, ONE) is not None
        content = await content_of(first)
        assert (content.homes, content.pending, content.leaving) == ((home(1), home(0)), (), ())

    play(kind, tmp_path, story)


@both_engines
def test_what_is_gone_has_no_homes(kind: str, tmp_path: Path) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, *_ = nodes
        bucket = await bucket_of(first)
        for _ in range(2):  # never there, and forgotten
            assert await second.locate(ONE) is None
            assert await second.held(ONE) is None
            assert await second.begin_home(ONE) is None
            assert await add_home(second, ONE) is None
            assert await second.drop_home(ONE, ALIVE)
            await left_home(second, ONE)
            if await second.blob(ONE) is None and not await owed_now(first):
                await first.put_object(bucket, "k", large(b"one"))
                assert await second.locate(ONE) == homes.Located(ONE, (home(0),), ())
                await first.delete_object(bucket, "k")
                assert await second.locate(ONE) is not None, "it is read as long as the grace lasts"
                assert await first.reclaim_content(ONE) == [ONE]
                assert await second.locate(ONE) is None, "its blob's row still says that it lives"
                assert await second.held(ONE) is None
                assert await second.begin_home(ONE) is None
                assert await add_home(second, ONE) is None
                await first.forget_content(ONE)
        assert await rows_left(first, ONE) == []

    play(kind, tmp_path, story)


@both_engines
def test_the_contents_of_a_node_are_listed_in_pages(kind: str, tmp_path: Path) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, *_ = nodes
        bucket = await bucket_of(first)
        ids = [bytes((0, number % 2 * 255)) * 4 + bytes((number,)) * 8 for number in range(7)]
        for number, content_id in enumerate(ids):
            await first.put_object(bucket, f"k{number}", replace(large(b""), blob=content_id))
            await become_home(second, content_id)
        for each in (first, second):
            found: list[bytes] = []
            while page := await each.homes_of(each.context.home.node, found[-1] if found else b"", 3):
                assert len(page) <= 3
                found += page
            assert found == sorted(ids)
        assert await first.homes_of(node_id(2)) == []

    play(kind, tmp_path, story)


@both_engines
def test_a_write_under_a_policy_owes_each_region_a_home_and_the_last_one_releases_what_is_outside(
    kind: str, tmp_path: Path
) -> None:
    async def story(nodes: Nodes) -> None:
        _, second, third, fourth = nodes
        bucket = await bucket_of(second, "iad,ams")
        await second.put_object(bucket, "k", large(b"one", others=(home(2),)))
        content = await content_of(second)
        assert (content.homes, content.regions, content.copies) == ((home(1), home(2)), ("iad", "ams"), 2)
        assert await owed_now(second) == {(region_destination("iad"), REPLICATE, ONE)}
        await finish_all(second)
        await become_home(fourth)  # of iad
        assert await owed_now(second) == {(node_id(1), RELEASE, ONE)}
        assert not await third.drop_home(ONE, ALIVE), "it is what ams has"
        assert await second.drop_home(ONE, ALIVE)
        assert (await content_of(second)).homes == (home(2), home(3))
        await finish_all(second)
        await sound(second)

    play(kind, tmp_path, story)


@both_engines
def test_a_copy_into_a_bucket_of_another_policy_is_wanted_there_too(kind: str, tmp_path: Path) -> None:
    async def story(nodes: Nodes) -> None:
        first, *_ = nodes
        source = await bucket_of(first, "iad")
        target = await bucket_of(first, "ams", name="target")
        await first.put_object(source, "k", large(b"one"))
        assert await owed_now(first) == set()
        await first.copy_object((source, "k", None), None, target, "c", copy_draft)
        content = await content_of(first)
        assert (content.regions, content.copies, content.homes) == (("iad", "ams"), 1, (home(0),))
        assert await owed_now(first) == {(region_destination("ams"), REPLICATE, ONE)}
        await first.copy_object((source, "k", None), None, target, "d", copy_draft)
        assert await content_of(first) == content
        await sound(first)

    play(kind, tmp_path, story)


@both_engines
@pytest.mark.parametrize(
    ("policy", "durability", "others", "enough"),
    [
        ("", "homes=2", (), False),
        ("", "homes=2", (1,), True),
        ("", "homes=3", (1,), False),
        ("", "homes=2", (4,), False),  # a node that is dead
        ("sjc,ams", "local", (), False),
        ("sjc,ams", "local", (3,), False),  # one may be outside, not two
        ("sjc,ams", "local", (3, 2), True),
        ("ams", "homes=2", (2,), True),
        ("ams", "local", (), True),  # it is owed one, and keeps nobody waiting
    ],
)
def test_bytes_are_shared_once_they_are_on_as_many_nodes_as_a_write_would_bring_them_to(
    kind: str, tmp_path: Path, policy: str, durability: str, others: tuple[int, ...], enough: bool
) -> None:
    async def story(nodes: Nodes) -> None:
        first, *_ = nodes
        source = await bucket_of(first, name="source")
        held_by = tuple(home(each) if each < 4 else Home("ams", node_id(each)) for each in others)
        await first.put_object(source, "k", large(b"one", others=held_by))
        before = await content_of(first)
        target = await bucket_of(first, policy, durability)
        upload = await Multipart.create(first, target)

        async def copy() -> None:
            await first.copy_object((source, "k", None), None, target, "c", copy_draft, alive=ALIVE)

        if enough:
            await copy()
            await upload.complete(first, await upload.slice(first, 1, ONE))
            await first.head_object(target, "c")
            content = await content_of(first)
            wanted = placing.wanted(target, first.regions)
            assert (content.homes, content.regions, content.copies, content.backing) == (before.homes, *wanted)
        else:
            for share in (copy(), upload.slice(first, 1, ONE)):
                with pytest.raises(HomesLacking) as refused:
                    await share
                assert refused.value.contents == ((ONE, before.size),)
                assert refused.value.copies == placing.wanted(target, first.regions).copies
            assert await content_of(first) == before
            with pytest.raises(NoSuchKey):
                await first.head_object(target, "c")
        await sound(first)

    play(kind, tmp_path, story)


@both_engines
def test_what_lends_shared_bytes_parts_has_to_be_on_as_many_nodes_too(kind: str, tmp_path: Path) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, *_ = nodes
        source = await bucket_of(first, name="source")
        await first.put_object(source, "k", large(b"one"))
        slices = await Multipart.create(first, source)
        content = await slices.complete(first, await slices.slice(first, 1, ONE))
        again = await Multipart.create(first, source)
        await again.complete(first, await again.slice(first, 1, slices.content_id))
        target = await bucket_of(first, durability="homes=2")
        with pytest.raises(HomesLacking) as refused:
            await first.copy_object((source, "m", None), None, target, "c", copy_draft, alive=ALIVE)
        everything = {slices.content_id: content.size, again.content_id: content.size, ONE: large(b"one").size}
        assert dict(refused.value.contents) == everything
        for each in everything:
            await become_home(second, each)
        await first.copy_object((source, "m", None), None, target, "c", copy_draft, alive=ALIVE)
        assert {(await content_of(first, each)).copies for each in everything} == {2}
        # A home of what lends it parts may have gone since a part was taken.
        upload = await Multipart.create(first, target)
        sent = await upload.slice(first, 1, ONE)
        dead = {node: region for node, region in ALIVE.items() if node != node_id(1)}
        with pytest.raises(HomesLacking):
            await upload.complete(first, sent, alive=dead)
        await upload.complete(first, sent)
        await sound(first)

    play(kind, tmp_path, story)


@both_engines
def test_an_upload_from_before_its_bucket_wanted_more_homes_is_owed_them(kind: str, tmp_path: Path) -> None:
    async def story(nodes: Nodes) -> None:
        first, *_ = nodes
        upload = await Multipart.create(first, await bucket_of(first))
        sent = await upload.put(first, 1)
        await first.change_bucket("bucket", durability="homes=3")
        await upload.complete(first, sent)
        others = ranked(upload.content_id, [node for node in ALIVE if node != node_id(0)])
        assert await owed_now(first) == {(node, HOLD, upload.content_id) for node in others[:2]}

    play(kind, tmp_path, story)


@both_engines
def test_a_home_gained_ahead_of_a_write_is_finished_by_others_and_given_up_where_nothing_wants_it(
    kind: str, tmp_path: Path
) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, *_ = nodes
        await first.put_object(await bucket_of(first), "k", large(b"one"))
        began_ns = first.now_ns()
        assert await second.begin_home(ONE, ahead=True) is not None
        assert await owed_now(first) == {(node_id(1), HOLD, ONE), (node_id(1), RELEASE, ONE)}
        vesting = {item.task: item.vesting_ns - began_ns for item in await items_of(first)}
        assert AHEAD_NS <= vesting[HOLD] < 1.5 * AHEAD_NS < 2 * AHEAD_NS <= vesting[RELEASE]
        await add_home(second, ONE)
        assert await second.begin_home(ONE, ahead=True) is None
        await sound(first)

    play(kind, tmp_path, story)


@both_engines
def test_who_gave_a_home_up_meanwhile_does_not_record_it(kind: str, tmp_path: Path) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, *_ = nodes
        await first.put_object(await bucket_of(first), "k", large(b"one"))
        await become_home(second)
        assert await add_home(second, ONE) is not None, "another run has"
        assert await second.drop_home(ONE, ALIVE)
        assert await add_home(second, ONE) is None
        assert (await content_of(first)).homes == (home(0),)

    play(kind, tmp_path, story)


@both_engines
def test_a_copy_that_was_committed_without_a_node_is_not_for_it_to_keep(kind: str, tmp_path: Path) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, third, fourth = nodes
        bucket = await bucket_of(first)
        await first.put_object(bucket, "k", large(b"one", others=(home(1),)))
        assert [await each.settle_blob(ONE) for each in nodes] == [True, True, False, False]
        await third.begin_home(ONE)
        assert await third.settle_blob(ONE), "it is about to be a home: what it has may be of use"
        assert await second.drop_home(ONE, ALIVE) is True
        assert await second.settle_blob(ONE), "it is still leaving, and removes its files itself"
        await left_home(second, ONE)
        assert not await second.settle_blob(ONE)
        assert await first.locate(ONE) == homes.Located(ONE, (home(0),), ()), "nobody settled it to death"
        # A blob that nobody committed dies, and then nobody can.
        assert not await fourth.settle_blob(blob_id(b"two"))
        with pytest.raises(BlobDead):
            await first.put_object(bucket, "l", large(b"two", others=(home(3),)))

    play(kind, tmp_path, story)


@both_engines
def test_whoever_may_have_bytes_of_a_dead_content_is_told(kind: str, tmp_path: Path) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, third, fourth = nodes
        bucket = await bucket_of(first)
        await first.put_object(bucket, "k", large(b"one", others=(home(1),)))
        await third.begin_home(ONE)
        await become_home(fourth)
        assert await fourth.drop_home(ONE, ALIVE)  # and dies before its files are gone
        await first.delete_object(bucket, "k")
        assert await owed_now(first) == {(node_id(0), owed.RECLAIM_CONTENT, ONE)}
        assert await first.reclaim_content(ONE) == [ONE]
        assert await owed_now(first) == {(node_id(number), owed.RECLAIM_CONTENT, ONE) for number in range(4)}
        for each in (first, second, third):
            await each.forget_content(ONE)
            assert await rows_left(first, ONE) != []
            await each.forget_content(ONE)
            assert (await content_of(first)).state == DEAD, "it waits for the others"
            assert await fourth.reclaim_content(ONE) == [ONE]
        await fourth.forget_content(ONE)
        assert await rows_left(first, ONE) == []
        await finish_all(first)
        await sound(first)

    play(kind, tmp_path, story)


@both_engines
def test_who_has_no_bytes_asks_one_who_has_to_reclaim(kind: str, tmp_path: Path) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, third, _ = nodes
        bucket = await bucket_of(first)
        await first.put_object(bucket, "k", large(b"one"))
        await third.delete_object(bucket, "k")
        assert await owed_now(first) == {(node_id(0), owed.RECLAIM_CONTENT, ONE)}
        # Somebody else may begin with it all the same.
        assert await second.reclaim_content(ONE) == [ONE]
        await reclaim([second, first], ONE)
        assert await rows_left(first, ONE) == []

    play(kind, tmp_path, story)


# --- multipart


class Multipart:
    def __init__(self, bucket: Bucket, upload_id: str) -> None:
        self.bucket = bucket
        self.upload_id = upload_id
        self.content_id = bytes.fromhex(upload_id)

    @classmethod
    async def create(cls, metadata: Metadata, bucket: Bucket, draft: UploadDraft | None = None) -> Multipart:
        upload = await metadata.create_upload(bucket, "m", draft or UploadDraft())
        return cls(bucket, upload.upload_id)

    async def put(self, metadata: Metadata, number: int, *others: int) -> Part:
        sent = replace(part(number, b"part-%d" % number), others=tuple(home(each) for each in others))
        return await metadata.put_part(self.bucket, "m", self.upload_id, sent)

    async def slice(self, metadata: Metadata, number: int, source: bytes) -> Part:
        sent = replace(part(number, source), source=source)
        return await metadata.put_part(self.bucket, "m", self.upload_id, sent, alive=ALIVE)

    async def complete(self, metadata: Metadata, *parts: Part, alive: Alive = ALIVE) -> Content:
        await metadata.complete_upload(
            self.bucket,
            "m",
            self.upload_id,
            listed(*parts),
            combine=no_combine,
            composite=no_composite,
            alive=alive,
        )
        return await content_of(metadata, self.content_id)

    async def located(self, metadata: Metadata, number: int) -> tuple[bytes, ...]:
        found = await metadata.locate(blob_id(b"part-%d" % number))
        assert found is not None
        assert found.content_id == self.content_id
        return tuple(each.node for each in found.homes)


@both_engines
def test_parts_on_several_nodes_are_found_where_they_are_and_gathered(kind: str, tmp_path: Path) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, third, fourth = nodes
        upload = await Multipart.create(first, await bucket_of(first))
        parts = [await upload.put(first, 1), await upload.put(second, 2, 2)]
        assert await upload.located(third, 1) == (node_id(0),)
        assert await upload.located(third, 2) == (node_id(1), node_id(2))
        content = await upload.complete(fourth, *parts)
        assert content.homes == tuple(home(number, whole=False) for number in range(3))
        assert await upload.located(third, 1) == (node_id(0),)
        assert await upload.located(third, 2) == (node_id(1), node_id(2))
        assert await owed_now(first) == {(node_id(3), HOLD, upload.content_id)}
        await sound(first)
        for each in (first, second, third):
            assert not await each.drop_home(upload.content_id, ALIVE)
            assert await each.homes_of(each.context.home.node) == [upload.content_id]

        await finish_all(first)
        held = await fourth.begin_home(upload.content_id)
        assert held is not None
        assert [blob for blob, _ in held.blobs] == [blob_id(b"part-1"), blob_id(b"part-2")]
        assert await add_home(fourth, upload.content_id) is not None
        assert await owed_now(first) == {(node_id(number), RELEASE, upload.content_id) for number in range(3)}
        assert await upload.located(third, 2) == (node_id(3), node_id(1), node_id(2))
        for each in (second, first):
            assert await each.drop_home(upload.content_id, ALIVE)
        assert await upload.located(third, 1) == (node_id(3),)
        assert await upload.located(third, 2) == (node_id(3), node_id(2)), "whose other node has left"
        assert not await fourth.drop_home(upload.content_id, ALIVE)
        await sound(first)

    play(kind, tmp_path, story)


@both_engines
def test_who_holds_every_part_is_a_whole_home(kind: str, tmp_path: Path) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, third, _ = nodes
        upload = await Multipart.create(first, await bucket_of(first))
        parts = [await upload.put(first, 1, 1), await upload.put(second, 2, 2), await upload.put(third, 3, 1)]
        content = await upload.complete(first, *parts)
        assert content.homes == (home(0, whole=False), home(1), home(2, whole=False))
        assert await owed_now(first) == set(), "nothing is to be gathered"
        # A partial home that becomes a whole one is one home.
        await become_home(third, upload.content_id)
        content = await content_of(first, upload.content_id)
        assert content.homes == (home(0, whole=False), home(1), home(2))

    play(kind, tmp_path, story)


@both_engines
@pytest.mark.parametrize("end", ["replaced", "not listed"])
def test_every_copy_of_a_part_that_is_not_used_is_owed(kind: str, tmp_path: Path, end: str) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, third, _ = nodes
        upload = await Multipart.create(first, await bucket_of(first))
        await upload.put(second, 1, 2)
        if end == "replaced":
            other = replace(part(1, b"part-9"), others=())
            await first.put_part(upload.bucket, "m", upload.upload_id, other)
        else:
            await upload.complete(first, await upload.put(first, 2))
        blob = blob_id(b"part-1")
        assert await owed_now(first) == {(node_id(number), owed.RECLAIM_BLOB, blob) for number in (1, 2)}
        for each in (second, third):
            assert await each.reclaim_blob(blob)
            await each.forget_blob(blob)
        assert await first.blob(blob) is None
        await finish_all(first)
        await sound(first)

    play(kind, tmp_path, story)


@both_engines
def test_an_aborted_upload_is_reclaimed_wherever_its_parts_are(kind: str, tmp_path: Path) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, third, fourth = nodes
        upload = await Multipart.create(first, await bucket_of(first))
        await upload.put(first, 1)
        await upload.put(second, 2, 2)
        await fourth.abort_upload(upload.bucket, "m", upload.upload_id)
        assert await owed_now(first) == {(node_id(3), owed.RECLAIM_CONTENT, upload.content_id)}
        await finish_all(first)
        assert await fourth.reclaim_content(upload.content_id) == [blob_id(b"part-1"), blob_id(b"part-2")]
        assert await owed_now(first) == {
            (node_id(number), owed.RECLAIM_CONTENT, upload.content_id) for number in range(3)
        }
        await fourth.forget_content(upload.content_id)
        await reclaim([third, second], upload.content_id)
        assert await rows_left(first, upload.content_id) != []
        await reclaim([first], upload.content_id)
        await finish_all(first)
        assert await rows_left(first, upload.content_id) == []
        assert await first.blob(blob_id(b"part-2")) is None
        await sound(first)

    play(kind, tmp_path, story)


@both_engines
def test_what_slices_are_of_is_wanted_where_the_whole_is(kind: str, tmp_path: Path) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, third, _ = nodes
        await second.put_object(await bucket_of(first, "", name="source"), "k", large(b"one", others=(home(0),)))
        upload = await Multipart.create(first, await bucket_of(first, "ams,sjc", "homes=2"))
        parts = [await upload.slice(first, 1, ONE), await upload.slice(first, 2, ONE)]
        content = await upload.complete(first, *parts)
        assert (content.homes, content.regions, content.copies) == ((home(0),), ("ams", "sjc"), 2)
        source = await content_of(first)
        assert (source.homes, source.regions, source.copies) == ((home(1), home(0)), ("ams", "sjc"), 2)
        ams, sjc = region_destination("ams"), region_destination("sjc")
        assert await owed_now(first) == {
            (ams, REPLICATE, ONE),
            (ams, REPLICATE, upload.content_id),
            (sjc, REPLICATE, upload.content_id),
        }
        assert await third.begin_home(upload.content_id) == homes.Held((), (ONE,)), "it has no bytes of its own"
        await sound(first)

    play(kind, tmp_path, story)


# --- all at once


@every_seed
def test_of_two_homes_that_give_up_at_once_one_stays(seed: int) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, third, _ = nodes
        await first.put_object(await bucket_of(first), "k", large(b"one", others=(home(1), home(2))))
        dropped = await asyncio.gather(*(each.drop_home(ONE, ALIVE) for each in (first, second, third)))
        assert sorted(dropped) == [False, True, True]
        content = await content_of(first)
        assert content.homes == (home(dropped.index(False)),)
        assert len(content.leaving) == 2
        await sound(first)

    race(seed, story)


@every_seed
def test_giving_up_against_becoming_a_home(seed: int) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, third, _ = nodes
        await first.put_object(await bucket_of(first), "k", large(b"one", others=(home(1),)))
        outcome = await asyncio.gather(
            first.drop_home(ONE, ALIVE), become_home(third), second.drop_home(ONE, ALIVE), return_exceptions=True
        )
        content = await content_of(first)
        assert home(2) in content.homes
        assert (home(0) not in content.homes) == (outcome[0] is True)
        assert (home(1) not in content.homes) == (outcome[2] is True)
        await sound(first)

    race(seed, story)


@every_seed
def test_a_content_that_dies_while_a_home_of_it_is_made_leaves_nobody_out(seed: int) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, *_ = nodes
        bucket = await bucket_of(first, "iad,ams", "homes=1")
        await first.put_object(bucket, "k", large(b"one", others=(home(1),)))
        have = {0, 1}
        """Nodes that have files of it."""

        async def become(number: int) -> None:
            each = nodes[number]
            if await each.begin_home(ONE) is None:
                return
            have.add(number)
            await add_home(each, ONE)

        async def delete() -> None:
            await first.delete_object(bucket, "k")
            assert await first.reclaim_content(ONE) == [ONE]

        await asyncio.gather(become(2), become(3), second.drop_home(ONE, ALIVE), delete())
        told = {destination for destination, task, _ in await owed_now(first) if task == owed.RECLAIM_CONTENT}
        assert told >= {node_id(number) for number in have}
        await asyncio.gather(*(each.forget_content(ONE) for each in nodes))
        await asyncio.gather(*(each.forget_content(ONE) for each in nodes))
        assert await rows_left(first, ONE) == []
        await finish_all(first)
        await finish_all(first)
        await sound(first)

    race(seed, story)


@every_seed
def test_copying_against_reclaiming_under_a_policy(seed: int) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, *_ = nodes
        source = await bucket_of(first)
        target = await bucket_of(first, "ams", name="target")
        await first.put_object(source, "k", large(b"one"))

        async def delete() -> list[bytes] | None:
            await first.delete_object(source, "k")
            return await first.reclaim_content(ONE)

        copied, blobs = await asyncio.gather(
            second.copy_object((source, "k", None), None, target, "c", copy_draft), delete(), return_exceptions=True
        )
        content = await content_of(first)
        assert isinstance(copied, Exception) == (blobs is not None) == (content.state == DEAD)
        replicas = {(region_destination("ams"), REPLICATE, ONE)}
        assert (await owed_now(first) & replicas != set()) == (content.state == LIVE)

    race(seed, story)


@every_seed
def test_taking_a_slice_against_reclaiming_on_two_nodes(seed: int) -> None:
    async def story(nodes: Nodes) -> None:
        first, second, third, _ = nodes
        bucket = await bucket_of(first)
        await first.put_object(bucket, "k", large(b"one", others=(home(1),)))
        await first.delete_object(bucket, "k")
        upload = await Multipart.create(first, bucket)
        taken, *reclaimed = await asyncio.gather(
            upload.slice(third, 1, ONE),
            first.reclaim_content(ONE),
            second.reclaim_content(ONE),
            return_exceptions=True,
        )
        if isinstance(taken, ContentGone):
            assert [ONE] in reclaimed
            assert {node_id(0), node_id(1)} <= {each[0] for each in await owed_now(first)} | {
                node_id(number) for number in (0, 1) if reclaimed[number] == [ONE]
            }
        else:
            assert isinstance(taken, Part)
            assert reclaimed == [None, None]

    race(seed, story)
