"""Homes gained and lost by the tasks that do so, on real block stores."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.metadata.world import both_engines_at_length, etag_of, listed, no_combine, no_composite
from tests.replication.several import BLOCK, Node, Several, data_of, item, play
from tigrislike.admin.fsck import fsck
from tigrislike.bytecache import BytesError, DiskFull, SourceUnavailable, TooManyOpenFiles
from tigrislike.metadata import Bucket, Extent, Part, UploadDraft, homes
from tigrislike.metadata.deciding import QUEUE
from tigrislike.metadata.homes import HOLD, RELEASE, REPLICATE, region_destination
from tigrislike.metadata.owed import zone_of
from tigrislike.metadata.placing import ranked
from tigrislike.metadata.records import DRAINING, Home
from tigrislike.replication.replicate import NoTaker

DATA = data_of(1)


async def owe(it: Several, task: str, content_id: bytes, node: Node | None = None, region: str = "") -> None:
    metadata = it.nodes[0].metadata
    bucket = (await it.content(content_id)).bucket
    if task == HOLD:
        assert node is not None
        await metadata.background(homes.owe_hold, metadata.context, node.id, bucket, content_id)
    elif task == RELEASE:
        assert node is not None
        await metadata.background(homes.owe_release, metadata.context, node.id, bucket, content_id)
    else:
        await metadata.background(homes.owe_replica, metadata.context, region, bucket, content_id)


# --- gaining


@both_engines_at_length
def test_a_policy_of_two_regions_brings_the_bytes_to_both(kind: str, scratch: Path) -> None:
    async def story(it: Several) -> None:
        iad, sjc = it.nodes
        blob = await it.put(iad, await it.bucket("iad,sjc"), "k", DATA)
        await it.drain()
        assert await it.homes(blob) == {0, 1}
        assert await sjc.home() == {blob: 3}
        assert (sjc.copying.copied, sjc.copying.copied_bytes, sjc.fetched) == (1, len(DATA), len(DATA))
        await it.sound()
        iad.down = True
        assert await sjc.read(blob, len(DATA)) == DATA
        await sjc.disk.verify_blob(blob, len(DATA))

    play(scratch, "iad sjc", story, kind=kind)


@both_engines_at_length
def test_in_a_region_the_node_whose_turn_it_is_holds_the_content_whoever_took_the_item(
    kind: str, scratch: Path
) -> None:
    async def story(it: Several) -> None:
        bucket = await it.bucket("iad,sjc")
        blobs = [await it.put(it.nodes[0], bucket, f"k{number}", data_of(number)) for number in range(12)]
        await it.nodes[1].drain()  # it takes all that sjc is owed
        await it.drain()
        for blob in blobs:
            chosen = ranked(blob, [it.nodes[1].id, it.nodes[2].id])[0]
            assert await it.homes(blob) == {0, it.by_id[chosen].number}
        assert it.nodes[1].copying.copied
        assert it.nodes[2].copying.copied
        await it.sound()

    play(scratch, "iad sjc sjc", story, kind=kind)


@both_engines_at_length
def test_a_region_that_has_a_home_fetches_nothing(kind: str, scratch: Path) -> None:
    async def story(it: Several) -> None:
        blob = await it.put(it.nodes[0], await it.bucket(), "k", DATA)
        await owe(it, HOLD, blob, it.nodes[1])
        await it.drain()
        assert await it.homes(blob) == {0, 1}
        await owe(it, REPLICATE, blob, region="sjc")
        await owe(it, HOLD, blob, it.nodes[1])
        worked = await it.drain()
        assert (worked.done[REPLICATE], worked.done[HOLD]) == (1, 1)
        assert await it.homes(blob) == {0, 1}
        assert it.nodes[2].fetched == 0
        assert it.nodes[1].fetched == len(DATA)

    play(scratch, "iad sjc sjc", story, kind=kind)


@both_engines_at_length
def test_a_region_in_which_nobody_takes_homes_is_tried_again(kind: str, scratch: Path) -> None:
    async def story(it: Several) -> None:
        iad, sjc = it.nodes
        blob = await it.put(iad, await it.bucket("iad,sjc"), "k", DATA)
        await iad.metadata.set_node_state(sjc.id, DRAINING)
        await it.beat()
        with pytest.raises(NoTaker, match="sjc"):
            await sjc.replicate.run(item(REPLICATE, blob))
        assert (await it.drain()).failed[REPLICATE] == 1
        await iad.metadata.set_node_state(sjc.id, "up")
        await it.beat()
        it.elapse(3600)
        await it.drain()
        assert await it.homes(blob) == {0, 1}

    play(scratch, "iad sjc", story, kind=kind)


LONG_S = 3600
MANY = 2 * QUEUE.max_attempts


def test_a_replica_is_owed_for_as_long_as_nobody_who_has_the_bytes_answers(scratch: Path) -> None:
    async def story(it: Several) -> None:
        iad, sjc = it.nodes
        blob = await it.put(iad, await it.bucket("iad,sjc"), "k", DATA)
        iad.down = True
        for _ in range(MANY):
            it.elapse(LONG_S)
            assert (await it.drain()).failed[REPLICATE] == 1
        iad.down = False
        it.elapse(LONG_S)
        await it.drain()
        assert await it.homes(blob) == {0, 1}
        zone = zone_of(region_destination("sjc"), (await it.content(blob)).bucket)
        assert await sjc.metadata.queue.letters(zone) == []

    play(scratch, "iad sjc", story)


@pytest.mark.parametrize("error", [DiskFull("no space"), TooManyOpenFiles("too many")])
def test_a_replica_is_owed_for_as_long_as_there_is_no_room_for_it(scratch: Path, error: BytesError) -> None:
    async def story(it: Several) -> None:
        iad, sjc = it.nodes
        blob = await it.put(iad, await it.bucket("iad,sjc"), "k", DATA)

        async def full(count: int) -> None:
            raise error

        async def gate(count: int) -> None:
            pass

        sjc.gate = full
        for _ in range(MANY):
            it.elapse(LONG_S)
            assert (await it.drain()).failed[REPLICATE] == 1
        sjc.gate = gate
        it.elapse(LONG_S)
        await it.drain()
        assert await it.homes(blob) == {0, 1}

    play(scratch, "iad sjc", story)


@both_engines_at_length
def test_a_fetch_that_broke_off_goes_on_where_it_was(kind: str, scratch: Path) -> None:
    async def story(it: Several) -> None:
        iad, sjc = it.nodes
        data = data_of(1, 8 * BLOCK)
        blob = await it.put(iad, await it.bucket("iad,sjc"), "k", data)
        gated = 0

        async def gate(count: int) -> None:
            nonlocal gated
            gated += 1
            if gated > 5:
                raise SourceUnavailable("the link is down")

        sjc.gate = gate
        assert (await it.drain()).failed[REPLICATE] == 1
        content = await it.content(blob)
        assert (content.homes, content.pending) == ((Home("iad", iad.id),), (Home("sjc", sjc.id),))
        there = (await sjc.home())[blob]
        assert there
        await it.sound()
        gated = 0
        fetched = []

        async def count(size: int) -> None:
            fetched.append(size)

        sjc.gate = count
        it.elapse(3600)
        await it.drain()
        assert 0 < len(fetched) <= 8 - there, "a block that was on its way may have come after all"
        content = await it.content(blob)
        assert ({home.node for home in content.homes}, content.pending) == ({iad.id, sjc.id}, ())
        await sjc.disk.verify_blob(blob, len(data))

    play(scratch, "iad sjc", story, kind=kind)


@both_engines_at_length
def test_an_object_deleted_and_reclaimed_while_it_is_fetched_leaves_nothing_anywhere(kind: str, scratch: Path) -> None:
    async def story(it: Several) -> None:
        iad, sjc = it.nodes
        data = data_of(1, 8 * BLOCK)
        bucket = await it.bucket("iad,sjc")
        blob = await it.put(iad, bucket, "k", data)
        deleted = False

        async def gate(count: int) -> None:
            nonlocal deleted
            if (await sjc.home())[blob] >= 2 and not deleted:
                deleted = True
                await iad.metadata.delete_object(bucket, "k")
                await it.nodes[0].drain()
                # This node, too, has removed what it had, and says so; the other blocks are still on their way.
                await sjc.metadata.reclaim_content(blob)
                await sjc.blocks.delete_blob(blob)
                await sjc.metadata.forget_content(blob)

        sjc.gate = gate
        await sjc.drain()
        assert deleted
        it.elapse(3600)
        await it.drain()
        await it.gone(blob)
        await it.sound()

    play(scratch, "iad sjc", story, kind=kind)


@both_engines_at_length
def test_an_object_deleted_after_its_bytes_came_and_before_they_are_recorded_leaves_nothing_anywhere(
    kind: str,
    scratch: Path,
) -> None:
    async def story(it: Several) -> None:
        iad, sjc = it.nodes
        bucket = await it.bucket("iad,sjc")
        blob = await it.put(iad, bucket, "k", DATA)
        effect = await sjc.replicate.run(item(REPLICATE, blob))
        assert effect is not None
        assert await sjc.home() == {blob: 3}
        await iad.metadata.delete_object(bucket, "k")
        await iad.drain()
        await sjc.metadata.background(effect, sjc.metadata.context)
        it.elapse(3600)
        await it.drain()
        await it.gone(blob)
        await it.sound()

    play(scratch, "iad sjc", story, kind=kind)


@both_engines_at_length
def test_what_is_gone_needs_no_work(kind: str, scratch: Path) -> None:
    async def story(it: Several) -> None:
        (node,) = it.nodes
        for task in node.tasks[:3]:
            assert task.name in (REPLICATE, HOLD, RELEASE)
            assert await task.run(item(task.name, b"n" * 16)) is None

    play(scratch, "iad", story, kind=kind)


@both_engines_at_length
def test_a_replica_whose_file_is_lost_is_reported_by_its_node_and_by_no_other(kind: str, scratch: Path) -> None:
    async def story(it: Several) -> None:
        iad, sjc, _ = it.nodes
        blob = await it.put(iad, await it.bucket("iad,sjc"), "k", DATA)
        await it.drain()
        await it.sound()
        for path in (sjc.root / "home").rglob(f"{blob.hex()}.*"):
            path.unlink()
        kinds = [[found.kind async for found in fsck(node.metadata, node.disk, pause_s=0)] for node in it.nodes]
        assert kinds == [[], ["file-missing"], []]

    play(scratch, "iad sjc ams", story, kind=kind)


# --- losing


@both_engines_at_length
def test_a_home_that_is_given_up_leaves_its_blocks_in_the_cache(kind: str, scratch: Path) -> None:
    async def story(it: Several) -> None:
        iad, sjc = it.nodes
        blob = await it.put(iad, await it.bucket(), "k", DATA)
        await owe(it, HOLD, blob, sjc)
        await it.drain()
        await owe(it, RELEASE, blob, iad)
        await it.drain()
        assert await it.homes(blob) == {1}
        assert (iad.release.released, iad.release.kept) == (1, 0)
        assert await iad.home() == {}
        assert len(await iad.blocks.cached_blocks()) == 3
        assert (await it.content(blob)).leaving == ()
        await it.sound()
        iad.peers.asked.clear()
        assert await iad.read(blob, len(DATA)) == DATA
        assert iad.peers.asked == []
        # The other one is now the last, and stays.
        await owe(it, RELEASE, blob, sjc)
        await it.drain()
        assert (sjc.release.released, sjc.release.kept) == (0, 1)
        assert await it.homes(blob) == {1}
        assert await sjc.home() == {blob: 3}

    play(scratch, "iad sjc", story, kind=kind)


@both_engines_at_length
def test_bytes_that_were_born_outside_the_policy_leave_for_good(kind: str, scratch: Path) -> None:
    async def story(it: Several) -> None:
        iad, sjc = it.nodes
        blob = await it.put(sjc, await it.bucket("iad"), "k", DATA)
        await it.drain()
        assert await it.homes(blob) == {0}
        assert sjc.release.released == 1
        assert await sjc.home() == {}
        assert await sjc.blocks.cached_blocks() == []
        await it.sound()
        assert await sjc.read(blob, len(DATA)) == DATA
        assert await sjc.blocks.cached_blocks() == [], "they are passed through"
        assert await iad.read(blob, len(DATA)) == DATA

    play(scratch, "iad sjc", story, kind=kind)


@pytest.mark.parametrize("deleted", [False, True])
@both_engines_at_length
def test_a_node_that_dies_before_its_files_are_gone_loses_none_of_them_for_ever(
    kind: str, scratch: Path, deleted: bool
) -> None:
    async def story(it: Several) -> None:
        iad, sjc = it.nodes
        bucket = await it.bucket()
        blob = await it.put(iad, bucket, "k", DATA)
        await owe(it, HOLD, blob, sjc)
        await it.drain()
        await owe(it, RELEASE, blob, iad)
        demote = iad.blocks.demote

        async def refuse(*args: object, **options: object) -> int:
            raise SourceUnavailable("the index is busy")

        iad.blocks.demote = refuse  # type: ignore[method-assign]
        assert (await it.drain()).failed[RELEASE] == 1
        assert await it.homes(blob) == {1}
        assert await iad.home() == {blob: 3}
        await it.sound()
        if deleted:
            await iad.metadata.delete_object(bucket, "k")
            await it.drain()
            await it.gone(blob)
        iad.blocks.demote = demote  # type: ignore[method-assign]
        it.elapse(3600)
        await it.drain()
        assert await iad.home() == {}
        if not deleted:
            assert (await it.content(blob)).leaving == ()
        await it.sound()

    play(scratch, "iad sjc", story, kind=kind)


@both_engines_at_length
def test_a_home_counts_only_while_it_lives(kind: str, scratch: Path) -> None:
    async def story(it: Several) -> None:
        iad, sjc = it.nodes
        blob = await it.put(iad, await it.bucket(), "k", DATA)
        await owe(it, HOLD, blob, sjc)
        await it.drain()
        sjc.down = True
        await it.settle()
        await owe(it, RELEASE, blob, iad)
        await it.drain()
        assert iad.release.kept == 1
        assert await it.homes(blob) == {0, 1}

    play(scratch, "iad sjc", story, kind=kind)


@both_engines_at_length
def test_what_is_becoming_a_home_is_not_released(kind: str, scratch: Path) -> None:
    async def story(it: Several) -> None:
        iad, sjc = it.nodes
        blob = await it.put(iad, await it.bucket(), "k", DATA)
        effect = await sjc.copying.become_home(blob)
        assert effect is not None
        later = await sjc.release.run(item(RELEASE, blob))
        assert later is not None, "what becomes of it is not decided yet"
        assert sjc.release.kept == 1
        assert await sjc.home() == {blob: 3}
        await sjc.metadata.background(effect, sjc.metadata.context)
        assert await it.homes(blob) == {0, 1}
        await it.sound()

    play(scratch, "iad sjc", story, kind=kind)


# --- multipart


async def put_part(it: Several, node: Node, bucket: Bucket, upload: str, number: int, data: bytes) -> Part:
    blob_id = await it.store(node, data)
    sent = Part(number, len(data), etag_of(data), "", 0, (Extent(blob_id, 0, len(data)),))
    stored = await node.metadata.put_part(bucket, "m", upload, sent)
    await node.blocks.publish(blob_id)
    return stored


@both_engines_at_length
def test_scattered_parts_are_gathered_where_they_were_put_together_and_then_let_go(
    kind: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tigrislike.metadata.uploads.MIN_PART_BYTES", 1)

    async def story(it: Several) -> None:
        first, second, third = it.nodes
        bucket = await it.bucket()
        upload = (await first.metadata.create_upload(bucket, "m", UploadDraft())).upload_id
        parts = [
            await put_part(it, node, bucket, upload, number, data_of(number))
            for number, node in ((1, first), (2, second), (3, second))
        ]
        await third.metadata.complete_upload(
            bucket, "m", upload, listed(*parts), combine=no_combine, composite=no_composite
        )
        content_id = bytes.fromhex(upload)
        blobs = [part.extents[0].blob for part in parts]
        for node in it.nodes:
            for number, blob in enumerate(blobs, 1):
                assert await node.read(blob, parts[number - 1].size) == data_of(number)
        await it.drain()
        assert await it.homes(content_id) == {2}
        assert await third.home() == dict.fromkeys(blobs, 3)
        assert await first.home() == await second.home() == {}
        assert [home.whole for home in (await it.content(content_id)).homes] == [True]
        await it.sound()
        await second.metadata.delete_object(bucket, "m")
        await it.drain()
        it.elapse(3600)
        await it.drain()
        assert await third.home() == {}
        assert await first.metadata.content(content_id) is None
        assert [await first.metadata.blob(blob) for blob in blobs] == [None] * 3
        await it.sound()

    play(scratch, "iad iad sjc", story, kind=kind)


@both_engines_at_length
def test_an_object_of_slices_takes_what_lends_them_along(kind: str, scratch: Path) -> None:
    async def story(it: Several) -> None:
        iad, sjc, ams = it.nodes
        source = await it.put(ams, await it.bucket(name="source"), "k", DATA)
        bucket = await it.bucket()
        upload = (await iad.metadata.create_upload(bucket, "m", UploadDraft())).upload_id
        sent = Part(1, 9, etag_of(b"x"), "", 0, (Extent(source, 4, 9, len(DATA)),), source=source)
        parts = [await iad.metadata.put_part(bucket, "m", upload, replace(sent))]
        await iad.metadata.complete_upload(
            bucket, "m", upload, listed(*parts), combine=no_combine, composite=no_composite
        )
        content_id = bytes.fromhex(upload)
        await owe(it, HOLD, content_id, sjc)
        await it.drain()
        assert await it.homes(content_id) == {0, 1}
        assert await it.homes(source) == {1, 2}
        assert await sjc.home() == {source: 3}
        await it.sound()

    play(scratch, "iad sjc ams", story, kind=kind)


def test_the_zone_of_a_region_is_its_own() -> None:
    assert len({region_destination(region) for region in ("iad", "sjc", "")} | {homes.ANYBODY}) == 4
    assert all(len(region_destination(region)) == 16 for region in ("iad", ""))
