"""Contents at backing origins: written, released, read from there, reclaimed, and given up again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.metadata.world import etag_of, listed, no_combine, no_composite
from tests.replication.several import BLOCK, Node, Several, data_of, play
from tigrislike.admin.fsck import fsck
from tigrislike.bytecache import SourceUnavailable
from tigrislike.metadata import Bucket, Draft, Extent, Part, UploadDraft, copy_draft
from tigrislike.metadata import origins as places
from tigrislike.metadata.backing import DISCARD_NS, key_of
from tigrislike.metadata.context import Context
from tigrislike.metadata.errors import InvalidArgument, InvalidPart, NotBacked
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.owed import enqueue, zone_of
from tigrislike.metadata.records import ANNOUNCED, BACKED, NOWHERE, SHADOWED, Elsewhere, OriginPlace
from tigrislike.metadata.uploads import holders, take_parts
from tigrislike.replication.backing import Backer, NoOrigins, NotAtOrigin, deliver
from tigrislike.replication.lacking import View
from tigrislike.replication.repair import owe_for_lost
from tigrislike.replication.write_back import later_ns

HOUR_S = 3700.0


async def in_cache(node: Node) -> set[bytes]:
    return {block.blob_id for block in await node.blocks.cached_blocks()}


async def lose_disk(it: Several, node: Node) -> None:
    """The node's blocks are gone, whatever holds them."""
    for tree in ("home", "cache"):
        for path in (node.root / tree).rglob("*"):
            if path.is_file():
                path.unlink()
    await node.blocks.reconcile()


async def owed(node: Node) -> list[tuple[str, bytes]]:
    items = []
    for zone in await node.metadata.queue.zones():
        items += [(item.task, item.subject) for _, item in await node.metadata.queue.items(zone)]
    return items


# --- write-back


def test_what_is_written_is_at_the_origin_soon_and_here_only_cache(tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        (node,) = it.nodes
        await it.bucket()
        bucket = await it.back()
        data = data_of(1)
        blob_id = await it.put(node, bucket, "k", data)
        content = await it.content(blob_id)
        assert (content.elsewhere, content.backing) == (NOWHERE, bucket.backing)
        assert await it.homes(blob_id) == {0}

        worked = await it.drain()
        assert not worked.failed
        origin = it.origins["file:///origin"]
        assert origin.data(key_of(blob_id)) == data
        content = await it.content(blob_id)
        assert (content.elsewhere, content.origin, content.homes) == (BACKED, bucket.backing, ())
        assert not await node.home()
        assert await in_cache(node) == {blob_id}
        assert await node.read(blob_id, len(data)) == data
        await it.sound()

        await lose_disk(it, node)
        assert await node.read(blob_id, len(data)) == data
        await it.sound()

    play(tmp_path, "iad", story)


def test_regions_of_a_policy_keep_their_homes(tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        first, *_ = it.nodes
        await it.bucket("iad,sjc")
        bucket = await it.back()
        blob_id = await it.put(first, bucket, "k", data_of(1))
        await it.drain()
        assert (await it.content(blob_id)).elsewhere == BACKED
        assert await it.homes(blob_id) == {0, 1}

    play(tmp_path, "iad sjc", story)


@pytest.mark.parametrize("broken", [False, True])
def test_what_an_origin_does_not_vouch_for_is_read_back(broken: bool, tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        (node,) = it.nodes
        await it.bucket()
        bucket = await it.back()
        origin = it.origins["file:///origin"]
        origin.set("silent")
        data = data_of(1)
        blob_id = await it.put(node, bucket, "k", data)
        if broken:
            origin.spoils = {key_of(blob_id)}
        worked = await it.drain()
        assert worked.failed["write_back"] == broken
        assert (await it.content(blob_id)).elsewhere == (ANNOUNCED if broken else BACKED)
        it.elapse(60)
        await it.drain()
        assert (await it.content(blob_id)).elsewhere == BACKED
        assert origin.data(key_of(blob_id)) == data
        assert len(origin.puts) == 1 + broken

    play(tmp_path, "iad", story)


def test_an_origin_that_is_away_is_waited_for_and_nothing_is_given_up(tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        (node,) = it.nodes
        await it.bucket()
        bucket = await it.back()
        origin = it.origins["file:///origin"]
        origin.set("away")
        blob_ids = [await it.put(node, bucket, f"k{n}", data_of(n)) for n in range(5)]
        for _ in range(20):  # longer than any number of attempts
            await it.drain()
            it.elapse(300)
        for n, blob_id in enumerate(blob_ids):
            assert await it.homes(blob_id) == {0}
            assert await node.read(blob_id, len(data_of(n))) == data_of(n)
        assert sorted(await owed(node)) == sorted(("write_back", blob_id) for blob_id in blob_ids)
        await it.sound()

        origin.set("away", False)
        it.elapse(300)
        await it.drain()
        assert origin.keys() == {key_of(blob_id) for blob_id in blob_ids}
        assert not await node.home()
        assert await owed(node) == []

        origin.set("away")
        await lose_disk(it, node)
        with pytest.raises(SourceUnavailable):
            await node.read(blob_ids[0], len(data_of(0)))

    play(tmp_path, "iad", story)


def test_an_origin_that_refuses_makes_dead_letters_and_loses_nothing(tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        (node,) = it.nodes
        await it.bucket()
        bucket = await it.back()
        it.origins["file:///origin"].set("refusing")
        blob_id = await it.put(node, bucket, "k", data_of(1))
        failed = 0
        for _ in range(30):
            failed += (await it.drain()).failed["write_back"]
            it.elapse(3600)
        assert failed > 3
        zone = zone_of(node.id, bucket.id)
        ((letter_id, letter),) = await node.metadata.queue.letters(zone)
        assert "OriginRefused" in letter.error
        assert await it.homes(blob_id) == {0}

        it.origins["file:///origin"].set("refusing", False)
        assert await node.metadata.queue.retry(zone, letter_id)
        await it.drain()
        assert (await it.content(blob_id)).elsewhere == BACKED

    play(tmp_path, "iad", story)


async def upload(it: Several, node: Node, bucket: Bucket, key: str, *datas: bytes) -> bytes:
    """A multipart object; its content's id."""
    metadata = node.metadata
    upload_id = (await metadata.create_upload(bucket, key, UploadDraft())).upload_id
    parts = []
    for number, data in enumerate(datas, 1):
        blob_id = await it.store(node, data)
        sent = Part(number, len(data), etag_of(data), "", 0, (Extent(blob_id, 0, len(data)),))
        parts.append(await metadata.put_part(bucket, key, upload_id, sent))
        await node.blocks.publish(blob_id)
    await metadata.complete_upload(bucket, key, upload_id, listed(*parts), combine=no_combine, composite=no_composite)
    return bytes.fromhex(upload_id)


def test_blobs_that_are_noted_are_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tigrislike.metadata.uploads.MIN_PART_BYTES", 1)

    async def story(it: Several) -> None:
        (node,) = it.nodes
        await it.bucket()
        bucket = await it.back()
        origin = it.origins["file:///origin"]
        datas = [data_of(n, BLOCK + n) for n in range(11)]
        content_id = await upload(it, node, bucket, "k", *datas)
        held = await node.metadata.held(content_id)
        assert held is not None
        spoilt = key_of(held.blobs[5][0])
        origin.set("silent")
        origin.spoils = {spoilt}
        await it.drain()
        assert (await it.content(content_id)).elsewhere == ANNOUNCED
        assert len(origin.puts) == 8, "the second four of eleven, and no more after one of them failed"
        it.elapse(60)
        await it.drain()
        assert (await it.content(content_id)).elsewhere == BACKED
        assert sorted(origin.puts) == sorted([*origin.keys(), spoilt])
        assert not await node.home()
        await lose_disk(it, node)
        for (blob_id, size), data in zip(held.blobs, datas, strict=True):
            assert await node.read(blob_id, size) == data
        await it.sound()

    play(tmp_path, "iad", story)


def test_slices_are_backed_once_their_source_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tigrislike.metadata.uploads.MIN_PART_BYTES", 1)

    async def story(it: Several) -> None:
        (node,) = it.nodes
        plain = await it.bucket(name="plain")
        await it.bucket()
        bucket = await it.back()
        source = await it.put(node, plain, "k", data_of(1))
        await it.drain()
        assert (await it.content(source)).backing == b""
        upload_id = (await node.metadata.create_upload(bucket, "k", UploadDraft())).upload_id
        sent = Part(1, 9, etag_of(b"slice"), "", 0, (Extent(source, 0, 9, len(data_of(1))),), source=source)
        part = await node.metadata.put_part(bucket, "k", upload_id, sent)
        await node.metadata.complete_upload(
            bucket, "k", upload_id, listed(part), combine=no_combine, composite=no_composite
        )
        for _ in range(3):
            await it.drain()
            it.elapse(60)
        for content_id in (source, bytes.fromhex(upload_id)):
            assert (await it.content(content_id)).elsewhere == BACKED
        assert it.origins["file:///origin"].keys() == {key_of(source)}
        await it.sound()

        # The bucket of the source wants none of this; what is sliced from it does.
        await node.metadata.delete_object(plain, "k")
        it.elapse(HOUR_S)
        await it.drain()
        assert it.origins["file:///origin"].keys() == {key_of(source)}
        await node.metadata.delete_object(bucket, "k")
        for _ in range(3):
            it.elapse(HOUR_S)
            await it.drain()
        assert it.origins["file:///origin"].keys() == set()
        await it.gone(source)

    play(tmp_path, "iad", story)


def test_an_adopted_object_goes_to_the_backing_origin_once_a_node_has_it(tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        (node,) = it.nodes
        await it.bucket()
        await it.back()
        data = data_of(1)
        shadow = it.origin(OriginPlace("file:///shadow"))
        (shadow.root / "objects" / "k").write_bytes(data)
        bucket = await node.metadata.use_origin("bucket", places.SHADOW, OriginPlace("file:///shadow"))
        seen = await shadow.head("k")
        content_id = b"adopted-content."
        draft = Draft(size=len(data), etag=etag_of(data), blob=content_id)
        source = Elsewhere(bucket.shadow, "k", seen.etag)
        assert await node.metadata.adopt(bucket, "k", draft, 1, source) is not None
        content = await it.content(content_id)
        assert (content.elsewhere, content.backing) == (SHADOWED, bucket.backing)
        shadow.set("away")
        await it.drain()
        assert (await it.content(content_id)).elsewhere == SHADOWED
        shadow.set("away", False)
        for _ in range(4):
            it.elapse(60)
            await it.drain()
        content = await it.content(content_id)
        assert (content.elsewhere, content.origin, content.homes) == (BACKED, bucket.backing, ())
        assert it.origins["file:///origin"].data(key_of(content_id)) == data
        await node.metadata.delete_object(bucket, "k")
        it.elapse(HOUR_S)
        await it.drain()
        assert it.origins["file:///origin"].keys() == set()
        assert shadow.keys() == {"k"}, "that is somebody else's"
        await it.sound()

    play(tmp_path, "iad", story)


# --- reclaiming


def test_what_is_deleted_goes_from_the_origin_too_before_it_is_forgotten(tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        first, second = it.nodes
        await it.bucket("iad,sjc")
        bucket = await it.back()
        origin = it.origins["file:///origin"]
        blob_id = await it.put(first, bucket, "k", data_of(1))
        await it.drain()
        assert origin.keys() == {key_of(blob_id)}
        await first.metadata.delete_object(bucket, "k")
        origin.set("away")
        for _ in range(20):
            it.elapse(HOUR_S)
            worked = await it.drain()
            assert not worked.failed
        content = await it.content(blob_id)
        assert (content.elsewhere, content.homes) == (BACKED, ())
        assert not await first.home()
        assert not await second.home()
        origin.set("away", False)
        it.elapse(HOUR_S)
        await it.drain()
        assert origin.keys() == set()
        await it.gone(blob_id)
        await it.sound()

    play(tmp_path, "iad sjc", story)


def test_what_was_only_announced_is_reclaimed_at_the_origin(tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        (node,) = it.nodes
        await it.bucket()
        bucket = await it.back()
        blob_id = await it.put(node, bucket, "k", data_of(1))
        # The process ends when the object is there, and before that is noted.
        assert await node.metadata.announce_backing(blob_id) == bucket.backing
        await deliver(node.origins, bucket.backing, node.blocks, blob_id, len(data_of(1)))
        await node.metadata.delete_object(bucket, "k")
        it.elapse(HOUR_S)
        await it.drain()
        assert it.origins["file:///origin"].keys() == set()
        await it.gone(blob_id)

    play(tmp_path, "iad", story)


async def held_by_two(it: Several) -> tuple[Bucket, bytes]:
    """A content with two homes that waits for its origin."""
    await it.bucket("iad,sjc")
    bucket = await it.back()
    it.origins["file:///origin"].set("away")
    blob_id = await it.put(it.nodes[0], bucket, "k", data_of(1))
    await it.drain()
    assert await it.homes(blob_id) == {0, 1}
    it.origins["file:///origin"].set("away", False)
    it.elapse(60)
    return bucket, blob_id


def test_the_last_node_with_bytes_of_it_deletes_what_the_origin_has(tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        first, second = it.nodes
        bucket, blob_id = await held_by_two(it)
        origin = it.origins["file:///origin"]
        origin.gate.clear()
        writing = asyncio.create_task(first.drain())
        await origin.began.wait()
        await second.metadata.delete_object(bucket, "k")
        await second.drain()
        assert origin.deletes == [], "the other is still at it"
        assert await second.metadata.content(blob_id) is not None
        origin.gate.set()
        await writing
        await it.drain()
        assert origin.keys() == set()
        await it.gone(blob_id)
        await it.sound()

    play(tmp_path, "iad sjc", story)


def test_only_the_first_home_writes(tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        first, second = it.nodes
        bucket, blob_id = await held_by_two(it)
        origin = it.origins["file:///origin"]

        async def owe(tr: Transaction, ctx: Context) -> None:
            await enqueue(tr, ctx, zone_of(second.id, bucket.id), "write_back", blob_id, bucket=bucket.id)

        await second.metadata.background(owe, second.metadata.context)
        await second.drain()
        assert origin.puts == []
        await first.drain()
        assert origin.puts == [key_of(blob_id)]
        assert (await it.content(blob_id)).elsewhere == BACKED

    play(tmp_path, "iad sjc", story)


def test_what_a_dead_node_was_to_write_another_home_writes_and_the_dead_one_when_it_returns_does_not(
    tmp_path: Path,
) -> None:
    async def story(it: Several) -> None:
        first, second = it.nodes
        _, blob_id = await held_by_two(it)
        origin = it.origins["file:///origin"]
        first.down = True
        await it.settle()
        view = View(second.members, second.members.alive())
        assert first.id not in view.alive
        for _ in range(2):  # whoever repairs it again finds it done
            await second.metadata.background(owe_for_lost, second.metadata.context, view, "iad", [blob_id])
        await second.drain()
        assert origin.puts == [key_of(blob_id)]
        assert (await it.content(blob_id)).elsewhere == BACKED
        first.down = False
        it.elapse(60)  # by then nobody asks any more for the home that was lacking meanwhile
        await it.settle()
        await it.drain()
        assert origin.puts == [key_of(blob_id)]
        assert await owed(first) == await owed(second) == []
        assert [finding async for finding in fsck(second.metadata, second.disk, pause_s=0)] == []

    play(tmp_path, "iad sjc", story)


# --- policies that change


def test_a_bucket_becomes_write_back_and_local_again(tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        first, *_ = it.nodes
        bucket = await it.bucket()
        blob_id = await it.put(first, bucket, "old", data_of(1))
        bucket = await it.back()
        await it.drain()
        origin = it.origins["file:///origin"]
        assert (await it.content(blob_id)).elsewhere == BACKED
        assert await it.homes(blob_id) == set()

        await it.unback(durability="homes=2")
        for _ in range(4):
            await it.drain()
            it.elapse(60)
        content = await it.content(blob_id)
        assert (content.elsewhere, content.origin, content.backing) == (NOWHERE, b"", b"")
        assert len(await it.homes(blob_id)) == 2
        assert origin.keys() == set()
        await it.sound()
        for node in it.nodes:
            assert await node.read(blob_id, len(data_of(1))) == data_of(1)

    play(tmp_path, "iad iad iad", story)


def test_the_origins_copy_stays_until_enough_nodes_have_it(tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        first, second = it.nodes
        await it.bucket()
        bucket = await it.back()
        blob_id = await it.put(first, bucket, "k", data_of(1))
        await it.drain()
        second.down = True
        await it.settle()
        await it.unback(durability="homes=2")
        for _ in range(4):
            await it.drain()
            it.elapse(60)
        assert (await it.content(blob_id)).elsewhere == BACKED
        assert it.origins["file:///origin"].keys() == {key_of(blob_id)}
        assert await it.homes(blob_id) == {0}
        second.down = False
        await it.settle()
        for _ in range(6):
            it.elapse(400)
            await it.drain()
        assert (await it.content(blob_id)).elsewhere == NOWHERE
        assert await it.homes(blob_id) == {0, 1}

    play(tmp_path, "iad iad", story)


def test_a_bucket_moves_to_another_origin(tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        (node,) = it.nodes
        await it.bucket()
        bucket = await it.back()
        blob_id = await it.put(node, bucket, "k", data_of(1))
        await it.drain()
        bucket = await it.back(origin="other")
        for _ in range(6):
            await it.drain()
            it.elapse(400)
        content = await it.content(blob_id)
        assert (content.elsewhere, content.origin) == (BACKED, bucket.backing)
        assert it.origins["file:///origin"].keys() == set()
        assert it.origins["file:///other"].data(key_of(blob_id)) == data_of(1)
        assert not await node.home()
        await lose_disk(it, node)
        assert await node.read(blob_id, len(data_of(1))) == data_of(1)

    play(tmp_path, "iad", story)


def test_a_durability_that_needs_an_origin_is_refused_without_one(tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        metadata = it.nodes[0].metadata
        await it.bucket()
        for durability in ("write-back", "write-through"):
            with pytest.raises(InvalidArgument, match="backing origin"):
                await metadata.change_bucket("bucket", durability=durability)
            with pytest.raises(InvalidArgument, match="backing origin"):
                await metadata.create_bucket("other", "me", durability=durability)
            await it.back(durability=durability)
            with pytest.raises(InvalidArgument, match="backing origin"):
                await metadata.use_origin("bucket", "backing", None)
            await it.unback()

    play(tmp_path, "iad", story)


# --- nodes that go


def test_a_node_lost_for_good_loses_nothing_that_is_backed(tmp_path: Path) -> None:
    from tigrislike.admin.nodes import count_sole
    from tigrislike.replication.removing import remove_node

    async def story(it: Several) -> None:
        first, second = it.nodes
        await it.bucket("iad")
        bucket = await it.back()
        backed = await it.put(first, bucket, "backed", data_of(1))
        await it.drain()
        assert await it.homes(backed) == {0}, "its policy wants it there"
        it.origins["file:///origin"].set("away")
        waiting = await it.put(first, bucket, "waiting", data_of(2))
        assert await count_sole(second.metadata, second.members, first.id) == 1, "the other is at its origin"
        deleted = await it.put(first, bucket, "deleted", data_of(3))
        await first.metadata.delete_object(bucket, "deleted")
        it.origins["file:///origin"].set("away", False)
        first.down = True
        await it.settle()
        lost = [each async for taken in remove_node(second.metadata, second.members, first.id) for each in taken.lost]
        assert set(lost) <= {waiting, deleted}
        assert waiting in lost
        it.elapse(HOUR_S)
        await it.drain()
        assert await second.read(backed, len(data_of(1))) == data_of(1)
        assert (await it.content(backed)).elsewhere == BACKED

    play(tmp_path, "iad sjc", story)


def test_the_dead_contents_of_a_removed_node_go_from_their_origin(tmp_path: Path) -> None:
    from tigrislike.replication.removing import remove_node

    async def story(it: Several) -> None:
        first, second = it.nodes
        await it.bucket("iad")
        bucket = await it.back()
        blob_id = await it.put(first, bucket, "k", data_of(1))
        await it.drain()
        await second.metadata.delete_object(bucket, "k")
        first.down = True
        await it.settle()
        it.elapse(HOUR_S)
        assert await second.metadata.reclaim_content(blob_id) is not None, "dead, and the first is yet to hear of it"
        assert not await second.metadata.leave_content(blob_id)
        async for _ in remove_node(second.metadata, second.members, first.id):
            pass
        await it.drain()
        assert it.origins["file:///origin"].keys() == set()
        assert await second.metadata.content(blob_id) is None
        assert [finding async for finding in fsck(second.metadata, second.disk, pause_s=0)] == []

    play(tmp_path, "iad sjc", story)


def test_what_a_removed_node_was_to_write_others_write(tmp_path: Path) -> None:
    from tigrislike.replication.removing import remove_node

    async def story(it: Several) -> None:
        first, second = it.nodes
        await it.bucket("iad,sjc")
        bucket = await it.back()
        it.origins["file:///origin"].set("away")
        blob_id = await it.put(first, bucket, "k", data_of(1))
        await it.drain()
        assert await it.homes(blob_id) == {0, 1}
        first.down = True
        await it.settle()
        async for taken in remove_node(second.metadata, second.members, first.id):
            assert taken.lost == []
        it.origins["file:///origin"].set("away", False)
        it.elapse(400)
        await it.drain()
        assert (await it.content(blob_id)).elsewhere == BACKED
        assert it.origins["file:///origin"].data(key_of(blob_id)) == data_of(1)

    play(tmp_path, "iad sjc", story)


# --- write-through


async def put_through(it: Several, node: Node, bucket: Bucket, key: str, data: bytes) -> bytes:
    """As the front door does it."""
    blob_id = await it.store(node, data)
    elsewhere = await Backer(node.metadata, node.blocks, node.origins).write(bucket, blob_id, len(data))
    await node.metadata.put_object(
        bucket, key, Draft(size=len(data), etag=etag_of(data), blob=blob_id, elsewhere=elsewhere)
    )
    await node.blocks.publish(blob_id)
    return blob_id


def test_a_write_through_is_at_the_origin_with_its_commit(tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        (node,) = it.nodes
        await it.bucket()
        bucket = await it.back(durability="write-through")
        data = data_of(1)
        blob_id = await put_through(it, node, bucket, "k", data)
        content = await it.content(blob_id)
        assert (content.elsewhere, content.origin) == (BACKED, bucket.backing)
        assert ("release", blob_id) in await owed(node)
        assert "discard" not in {task for task, _ in await owed(node)}
        await it.drain()
        assert not await node.home()
        await lose_disk(it, node)
        assert await node.read(blob_id, len(data)) == data
        await it.sound()

    play(tmp_path, "iad", story)


def test_an_upload_without_a_commit_leaves_nothing_at_the_origin(tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        (node,) = it.nodes
        await it.bucket()
        bucket = await it.back(durability="write-through")
        blob_id = await it.store(node, data_of(1))
        elsewhere = await Backer(node.metadata, node.blocks, node.origins).write(bucket, blob_id, len(data_of(1)))
        origin = it.origins["file:///origin"]
        await it.drain()
        assert origin.keys() == {elsewhere.key}, "its commit may come yet"
        it.elapse(DISCARD_NS / 1e9 + 1)
        origin.set("away")
        await it.drain()
        assert origin.keys() == {elsewhere.key}
        origin.set("away", False)
        it.elapse(3600)
        await it.drain()
        assert origin.keys() == set()
        with pytest.raises(Exception, match="given up"):
            await node.metadata.put_object(
                bucket, "k", Draft(size=len(data_of(1)), etag="e", blob=blob_id, elsewhere=elsewhere)
            )
        it.elapse(HOUR_S)
        node.blocks.release(blob_id)
        await node.blocks.sweep(node.metadata.settle_blob)
        await it.drain()
        await it.gone(blob_id)
        await it.sound()

    play(tmp_path, "iad", story)


def test_a_commit_that_overtakes_its_discarding_stands(tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        (node,) = it.nodes
        await it.bucket()
        bucket = await it.back(durability="write-through")
        blob_id = await put_through(it, node, bucket, "k", data_of(1))
        # As if it had been under lease when the commit came.
        await node.metadata.owe_discard(bucket, blob_id, bucket.backing)
        it.elapse(DISCARD_NS / 1e9 + 1)
        await it.drain()
        assert it.origins["file:///origin"].keys() == {key_of(blob_id)}
        assert await owed(node) == []

    play(tmp_path, "iad", story)


def test_an_origin_that_is_away_refuses_a_write_through(tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        (node,) = it.nodes
        await it.bucket()
        bucket = await it.back(durability="write-through")
        origin = it.origins["file:///origin"]
        origin.set("away")
        with pytest.raises(NotAtOrigin) as refused:
            await put_through(it, node, bucket, "k", data_of(1))
        assert (refused.value.code, refused.value.retry_after_s) == ("SlowDown", 2.0)
        origin.set("away", False)
        origin.set("refusing")
        with pytest.raises(NotAtOrigin, match="does not take"):
            await put_through(it, node, bucket, "k", data_of(1))
        blob_id = await it.store(node, data_of(1))
        with pytest.raises(NotBacked):
            await node.metadata.put_object(bucket, "k", Draft(size=1, etag="e", blob=blob_id))
        with pytest.raises(Exception, match="opens no origins"):
            await deliver(NoOrigins(), bucket.backing, node.blocks, blob_id, 1)

    play(tmp_path, "iad", story)


def test_parts_are_written_through_and_discarded_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tigrislike.metadata.uploads.MIN_PART_BYTES", 1)

    async def story(it: Several) -> None:
        (node,) = it.nodes
        await it.bucket()
        bucket = await it.back(durability="write-through")
        backer = Backer(node.metadata, node.blocks, node.origins)
        origin = it.origins["file:///origin"]

        async def put_parts(key: str) -> tuple[str, list[Part]]:
            upload_id = (await node.metadata.create_upload(bucket, key, UploadDraft())).upload_id
            parts = {}
            for number, seed in ((1, 1), (2, 2), (1, 3), (3, 4)):  # the first is replaced
                data = data_of(seed, BLOCK + seed)
                blob_id = await it.store(node, data)
                sent = Part(number, len(data), etag_of(data), "", 0, (Extent(blob_id, 0, len(data)),))
                there = await backer.write(bucket, blob_id, len(data))
                parts[number] = await node.metadata.put_part(bucket, key, upload_id, sent, there)
                await node.blocks.publish(blob_id)
            return upload_id, [parts[number] for number in sorted(parts)]

        upload_id, parts = await put_parts("k")
        chosen = parts[:2]
        await node.metadata.complete_upload(
            bucket, "k", upload_id, listed(*chosen), combine=no_combine, composite=no_composite
        )
        assert (await it.content(bytes.fromhex(upload_id))).elsewhere == BACKED
        aborted, _ = await put_parts("aborted")
        await node.metadata.abort_upload(bucket, "aborted", aborted)
        assert len(origin.keys()) == 8
        for _ in range(2):
            it.elapse(HOUR_S)
            await it.drain()
        assert origin.keys() == {key_of(part.extents[0].blob) for part in chosen}
        assert not await node.home()
        await it.sound()
        await node.metadata.delete_object(bucket, "k")
        for _ in range(2):
            it.elapse(HOUR_S)
            await it.drain()
        assert origin.keys() == set()
        await it.sound()

    play(tmp_path, "iad", story)


async def begin_upload(it: Several, bucket: Bucket, key: str) -> tuple[str, list[Part], bytes]:
    """Three parts written through, the last at the second node, the others at the first; what they are together."""
    upload_id = (await it.nodes[0].metadata.create_upload(bucket, key, UploadDraft())).upload_id
    parts, whole = [], b""
    for number in (1, 2, 3):
        parts.append(await put_part_through(it, it.nodes[number // 3], bucket, key, upload_id, number))
        whole += data_of(number, BLOCK + number)
    return upload_id, parts, whole


async def put_part_through(it: Several, node: Node, bucket: Bucket, key: str, upload_id: str, number: int) -> Part:
    data = data_of(number, BLOCK + number)
    blob_id = await it.store(node, data)
    there = await Backer(node.metadata, node.blocks, node.origins).write(bucket, blob_id, len(data))
    part = Part(number, len(data), etag_of(data), "", 0, (Extent(blob_id, 0, len(data)),))
    part = await node.metadata.put_part(bucket, key, upload_id, part, there)
    await node.blocks.publish(blob_id)
    return part


async def lose_first(it: Several) -> list[bytes]:
    """The first node is gone for ever, and removed by the second, which asks first what is lost with it; what is."""
    from tigrislike.admin.nodes import sole_contents
    from tigrislike.replication.removing import remove_node

    first, second = it.nodes
    sole = {content_id async for content_id in sole_contents(second.metadata, second.members, first.id)}
    first.down = True
    await it.settle()
    lost = [each async for taken in remove_node(second.metadata, second.members, first.id) for each in taken.lost]
    assert set(lost) == sole
    return lost


async def complete(node: Node, bucket: Bucket, key: str, upload_id: str, parts: list[Part]) -> None:
    await node.metadata.complete_upload(
        bucket, key, upload_id, listed(*parts), combine=no_combine, composite=no_composite
    )


@pytest.mark.parametrize("removed", [False, True])
def test_an_upload_of_which_a_node_is_lost_is_completed_from_the_origin(
    removed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tigrislike.metadata.uploads.MIN_PART_BYTES", 1)

    async def story(it: Several) -> None:
        first, second = it.nodes
        await it.bucket()
        bucket = await it.back(durability="write-through")
        upload_id, parts, whole = await begin_upload(it, bucket, "k")
        if removed:
            assert await lose_first(it) == []
        else:
            first.down = True
            await it.settle()
        page = await second.metadata.list_parts(bucket, "k", upload_id, 0, 10)
        assert [part.etag for part in page.parts] == [part.etag for part in parts]
        await complete(second, bucket, "k", upload_id, parts)
        content = await it.content(bytes.fromhex(upload_id))
        assert content.elsewhere == BACKED
        assert [home.node for home in content.homes if home.whole] == []
        read = [await second.read(part.extents[0].blob, part.size) for part in parts]
        assert b"".join(read) == whole
        if removed:
            assert [finding async for finding in fsck(second.metadata, second.disk, pause_s=0)] == []
            await second.metadata.delete_object(bucket, "k")
            for _ in range(2):
                it.elapse(HOUR_S)
                await it.drain()
            assert it.origins["file:///origin"].keys() == set()
            assert [finding async for finding in fsck(second.metadata, second.disk, pause_s=0)] == []

    play(tmp_path, "iad sjc", story)


@pytest.mark.parametrize("end", ["abort", "replace", "leave out"])
def test_what_a_lost_node_left_at_the_origin_goes_with_its_upload(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tigrislike.metadata.uploads.MIN_PART_BYTES", 1)

    async def story(it: Several) -> None:
        second = it.nodes[1]
        await it.bucket()
        bucket = await it.back(durability="write-through")
        upload_id, parts, _ = await begin_upload(it, bucket, "k")
        assert await lose_first(it) == []
        if end == "abort":
            await second.metadata.abort_upload(bucket, "k", upload_id)
            parts = []
        else:
            if end == "replace":
                for at, number in enumerate((1, 2)):
                    parts[at] = await put_part_through(it, second, bucket, "k", upload_id, number)
            else:
                parts = parts[2:]
            await complete(second, bucket, "k", upload_id, parts)
        for _ in range(3):
            it.elapse(HOUR_S)
            await it.drain()
        assert it.origins["file:///origin"].keys() == {key_of(part.extents[0].blob) for part in parts}
        assert [finding async for finding in fsck(second.metadata, second.disk, pause_s=0)] == []

    play(tmp_path, "iad sjc", story)


def test_parts_at_an_origin_that_is_the_buckets_no_more_are_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tigrislike.metadata.uploads.MIN_PART_BYTES", 1)

    async def story(it: Several) -> None:
        second = it.nodes[1]
        await it.bucket()
        bucket = await it.back(durability="write-through")
        upload_id, parts, _ = await begin_upload(it, bucket, "k")
        assert await lose_first(it) == []
        bucket = await it.back(durability="write-through", origin="other")
        with pytest.raises(InvalidPart):
            await complete(second, bucket, "k", upload_id, parts)
        for at, number in enumerate((1, 2)):
            parts[at] = await put_part_through(it, second, bucket, "k", upload_id, number)
        await complete(second, bucket, "k", upload_id, parts)
        for _ in range(3):
            it.elapse(HOUR_S)
            await it.drain()
        keys = [key_of(part.extents[0].blob) for part in parts]
        assert it.origins["file:///other"].keys() == set(keys)
        assert it.origins["file:///origin"].keys() == {keys[2]}, "the part's, for as long as it is one"
        await second.metadata.delete_object(bucket, "k")
        for _ in range(3):
            it.elapse(HOUR_S)
            await it.drain()
        assert it.origins["file:///origin"].keys() == it.origins["file:///other"].keys() == set()


def test_whoever_was_about_to_take_a_lost_nodes_parts_has_them(tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        second = it.nodes[1]
        await it.bucket()
        bucket = await it.back(durability="write-through")
        upload_id = (await second.metadata.create_upload(bucket, "k", UploadDraft())).upload_id
        part = await put_part_through(it, it.nodes[0], bucket, "k", upload_id, 1)
        content_id, blob_id = bytes.fromhex(upload_id), part.extents[0].blob
        leaving = {it.nodes[0].id}
        assert await second.metadata.begin_parts(content_id, leaving) == [(blob_id, part.size)]
        await second.blocks.adopt(blob_id, part.size)
        assert await lose_first(it) == []
        await second.metadata.background(take_parts, second.metadata.context, content_id, leaving)
        [taken] = (await second.metadata.list_parts(bucket, "k", upload_id, 0, 10)).parts
        assert holders(taken) == [second.id]
        it.elapse(HOUR_S)
        await it.drain()
        assert await second.home() == {blob_id: 2}
        assert [finding async for finding in fsck(second.metadata, second.disk, pause_s=0)] == []
        await second.metadata.abort_upload(bucket, "k", upload_id)
        for _ in range(2):
            it.elapse(HOUR_S)
            await it.drain()
        assert not await second.home()
        assert it.origins["file:///origin"].keys() == set()

    play(tmp_path, "iad sjc", story)

    play(tmp_path, "iad sjc", story)


def test_a_copy_into_a_write_through_bucket_waits_for_the_origin(tmp_path: Path) -> None:
    async def story(it: Several) -> None:
        (node,) = it.nodes
        plain = await it.bucket(name="plain")
        await it.bucket()
        bucket = await it.back(durability="write-through")
        origin = it.origins["file:///origin"]
        blob_id = await it.put(node, plain, "k", data_of(1))

        async def copy() -> None:
            await node.metadata.copy_object((plain, "k", None), None, bucket, "k", copy_draft)

        with pytest.raises(NotBacked) as refused:
            await copy()
        assert refused.value.content_id == blob_id
        looks: list[float] = []

        async def look(seconds: float) -> None:
            looks.append(seconds)
            if len(looks) == 3:
                origin.set("away", False)
                await it.drain()

        origin.set("away")
        await Backer(node.metadata, node.blocks, node.origins, sleep=look).ensure(bucket, blob_id)
        assert looks == [0.05, 0.1, 0.2]
        await copy()
        assert (await it.content(blob_id)).elsewhere == BACKED
        await it.sound()

        other = await it.put(node, plain, "other", data_of(2))
        with pytest.raises(NotAtOrigin, match="still being written"):
            await Backer(node.metadata, node.blocks, node.origins, wait_s=0.0).ensure(bucket, other)

    play(tmp_path, "iad", story)


def test_waiting_is_bounded_and_grows_with_age() -> None:
    from tests.replication.several import SECOND, item

    fresh = item("write_back", b"x")
    assert later_ns(fresh, 0) == 5 * SECOND
    assert later_ns(fresh, 0, 7.0) == 7 * SECOND
    assert later_ns(fresh, 400 * SECOND) == 500 * SECOND
    assert later_ns(fresh, 10**6 * SECOND, 10**5) == (10**6 + 300) * SECOND
