"""Objects: put, find, delete and copy, with and without versioning."""

import msgspec
import pytest

from tests.metadata.queueing import take
from tests.metadata.world import (
    NODE,
    both_engines,
    dump,
    etag_of,
    large,
    listed,
    no_combine,
    no_composite,
    part,
    play,
    small,
)
from tigrislike.metadata import (
    BlobDead,
    Deletion,
    MethodNotAllowed,
    NoSuchKey,
    NoSuchVersion,
    PreconditionFailed,
    ReadCondition,
    UploadDraft,
    WriteCondition,
    copy_draft,
)
from tigrislike.metadata.errors import ContentGone, InvalidArgument, InvalidRequest, KeyTooLong, MissingInline
from tigrislike.metadata.keyspace import pack_stamp
from tigrislike.metadata.kv import ManualClock


async def bucket_of(metadata, versioning=""):
    return await metadata.create_bucket("bucket", "me", versioning=versioning)


async def reclaimable(metadata):
    """Subjects of the reclaim items that are due once the grace has passed."""
    subjects = []
    for zone in await metadata.queue.zones():
        for claimed in await take(metadata, zone):
            assert claimed.zone[:16] == NODE
            subjects.append(claimed.item.subject)
    return subjects


KEYS = ["k", "a//b/../c", "/", "\x00", "a\x00b\x01", "näme/日本", "\U0001f600" * 256, "x" * 1024, "%2F+ ?&", "\uffff"]


@both_engines
@pytest.mark.parametrize("key", KEYS)
def test_any_key_holds_its_bytes(kind, tmp_path, key):
    async def story(metadata):
        bucket = await bucket_of(metadata)
        version = await metadata.put_object(bucket, key, small(b"data", content_type="text/plain", tags={"a": "b"}))
        found = await metadata.find_object(bucket, key)
        assert (found.version, found.inline, found.parts) == (version, b"data", ())
        assert (version.version_id, version.etag, version.size) == ("null", etag_of(b"data"), 4)
        assert await metadata.head_object(bucket, key) == version
        await metadata.delete_object(bucket, key)
        with pytest.raises(NoSuchKey):
            await metadata.find_object(bucket, key)

    play(kind, tmp_path, story)


@both_engines
def test_keys_that_cannot_be(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata)
        for key in ("x" * 1025, "é" * 513):
            with pytest.raises(KeyTooLong):
                await metadata.put_object(bucket, key, small(b""))
            with pytest.raises(KeyTooLong):
                await metadata.find_object(bucket, key)
        for key in ("", "\ud800"):
            with pytest.raises(InvalidArgument):
                await metadata.put_object(bucket, key, small(b""))

    play(kind, tmp_path, story)


@both_engines
def test_an_empty_object_needs_no_row_for_its_bytes(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata)
        await metadata.put_object(bucket, "k", small(b""))
        assert (await metadata.find_object(bucket, "k")).inline == b""

    play(kind, tmp_path, story)


@both_engines
def test_a_fresh_small_object_costs_few_rows(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata)
        before = set(await dump(metadata))
        await metadata.put_object(bucket, "k", small(b"data"))
        rows = [key for key in set(await dump(metadata)) - before if b"count" not in key]
        assert len(rows) == 2  # current and inline

    play(kind, tmp_path, story)


@both_engines
def test_a_large_object_names_its_blob(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata)
        draft = large(b"one", 7_000_000)
        version = await metadata.put_object(bucket, "k", draft)
        found = await metadata.find_object(bucket, "k")
        assert found.inline is None
        (part,) = found.parts
        (extent,) = part.extents
        assert (extent.blob, extent.offset, extent.size) == (draft.blob, 0, 7_000_000)
        assert await metadata.settle_blob(draft.blob)
        content = await metadata.content(version.content)
        assert [home.node for home in content.homes] == [NODE]

    play(kind, tmp_path, story)


@both_engines
def test_a_blob_that_was_given_up_cannot_be_committed(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata)
        draft = large(b"late")
        assert not await metadata.settle_blob(draft.blob)
        with pytest.raises(BlobDead):
            await metadata.put_object(bucket, "k", draft)
        with pytest.raises(NoSuchKey):
            await metadata.head_object(bucket, "k")

    play(kind, tmp_path, story)


@both_engines
def test_overwriting_lets_go_of_the_old_bytes(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata)
        first = await metadata.put_object(bucket, "k", large(b"one"))
        await metadata.put_object(bucket, "k", small(b"two"))
        await metadata.put_object(bucket, "k", large(b"three"))
        assert (await metadata.find_object(bucket, "k")).inline is None
        assert await reclaimable(metadata) == [first.content]
        rows = await dump(metadata)
        assert not [key for key in rows if b"inline" in key]
        usage = await metadata.usage(bucket)
        assert (usage.objects, usage.noncurrent, usage.bytes) == (1, 0, 1024**2)

    play(kind, tmp_path, story, grace_s=0)


@both_engines
def test_reclaiming_waits_for_the_grace(kind, tmp_path):
    clock = ManualClock()

    async def story(metadata):
        bucket = await bucket_of(metadata)
        version = await metadata.put_object(bucket, "k", large(b"one"))
        await metadata.delete_object(bucket, "k")
        assert await reclaimable(metadata) == []
        clock.advance(10 * 10**9)
        assert await reclaimable(metadata) == [version.content]

    play(kind, tmp_path, story, grace_s=10, clock=clock)


@both_engines
def test_missing_inline_bytes_are_damage_not_an_empty_object(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata)
        version = await metadata.put_object(bucket, "k", small(b"data"))
        row = metadata.context.keys.in_bucket(bucket.id).inline.key("k") + pack_stamp(version.stamp)

        async def damage(tr):
            tr.clear(row)

        await metadata.engine.transact(damage)
        with pytest.raises(MissingInline):
            await metadata.find_object(bucket, "k")

    play(kind, tmp_path, story)


# --- versions


@both_engines
def test_versions_are_kept_and_read_by_their_ids(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata, "Enabled")
        one = await metadata.put_object(bucket, "k", small(b"one"))
        two = await metadata.put_object(bucket, "k", small(b"two"))
        assert two.stamp > one.stamp
        assert (await metadata.find_object(bucket, "k")).inline == b"two"
        assert (await metadata.find_object(bucket, "k", one.version_id)).inline == b"one"
        assert (await metadata.find_object(bucket, "k", two.version_id)).inline == b"two"
        assert await metadata.head_object(bucket, "k", one.version_id) == one
        usage = await metadata.usage(bucket)
        assert (usage.objects, usage.noncurrent, usage.bytes) == (1, 1, 6)

    play(kind, tmp_path, story)


@both_engines
def test_stamps_rise_though_the_clock_is_set_back(kind, tmp_path):
    clock = ManualClock()

    async def story(metadata):
        bucket = await bucket_of(metadata, "Enabled")
        stamps = []
        for _ in range(3):
            stamps.append((await metadata.put_object(bucket, "k", small(b"x"))).stamp)
            clock.step(-3600 * 10**9)
        await metadata.delete_object(bucket, "k")
        stamps.append((await metadata.put_object(bucket, "k", small(b"x"))).stamp)
        assert stamps == sorted(set(stamps))
        assert all(stamp & 0xFF == 0 for stamp in stamps)

    play(kind, tmp_path, story, clock=clock)


@both_engines
def test_a_delete_marker_hides_and_its_deletion_restores(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata, "Enabled")
        version = await metadata.put_object(bucket, "k", small(b"data"))
        deletion = await metadata.delete_object(bucket, "k")
        assert deletion.delete_marker
        with pytest.raises(NoSuchKey) as caught:
            await metadata.find_object(bucket, "k")
        assert (caught.value.delete_marker, caught.value.version_id) == (True, deletion.version_id)
        with pytest.raises(MethodNotAllowed) as refused:
            await metadata.find_object(bucket, "k", deletion.version_id)
        assert refused.value.delete_marker
        assert refused.value.last_modified_ns == int(deletion.version_id)
        assert await metadata.delete_object(bucket, "k", deletion.version_id) == Deletion(deletion.version_id, True)
        assert (await metadata.find_object(bucket, "k")).version == version

    play(kind, tmp_path, story)


@both_engines
def test_deleting_the_live_version_brings_back_the_one_before(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata, "Enabled")
        one = await metadata.put_object(bucket, "k", large(b"one"))
        two = await metadata.put_object(bucket, "k", large(b"two"))
        assert await metadata.delete_object(bucket, "k", two.version_id) == Deletion(two.version_id, False)
        assert await metadata.head_object(bucket, "k") == one
        assert await reclaimable(metadata) == [two.content]
        await metadata.delete_object(bucket, "k", one.version_id)
        with pytest.raises(NoSuchKey) as caught:
            await metadata.head_object(bucket, "k")
        assert not caught.value.delete_marker
        usage = await metadata.usage(bucket)
        assert (usage.objects, usage.noncurrent, usage.bytes) == (0, 0, 0)

    play(kind, tmp_path, story, grace_s=0)


@both_engines
def test_deleting_what_is_not_there_succeeds(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata)
        assert await metadata.delete_object(bucket, "k") == Deletion(None, False)
        assert await metadata.delete_object(bucket, "k", "null") == Deletion("null", False)
        stamp = "1600000000000000000"
        assert await metadata.delete_object(bucket, "k", stamp) == Deletion(stamp, False)
        await metadata.put_object(bucket, "k", small(b"x"))
        assert await metadata.delete_object(bucket, "k", stamp) == Deletion(stamp, False)
        assert (await metadata.find_object(bucket, "k", "null")).inline == b"x"
        assert await metadata.delete_object(bucket, "k", "null") == Deletion("null", False)
        with pytest.raises(NoSuchVersion):
            await metadata.head_object(bucket, "k", "null")

    play(kind, tmp_path, story)


@both_engines
@pytest.mark.parametrize("version_id", ["1", "0", "9" * 20, "1600000000000000000", "01600000000000000000"])
def test_a_well_formed_unknown_version(kind, tmp_path, version_id):
    async def story(metadata):
        bucket = await bucket_of(metadata, "Enabled")
        await metadata.put_object(bucket, "k", small(b"x"))
        with pytest.raises(NoSuchVersion):
            await metadata.head_object(bucket, "k", version_id)
        await metadata.delete_object(bucket, "k", version_id)
        assert (await metadata.find_object(bucket, "k")).inline == b"x"

    play(kind, tmp_path, story)


@both_engines
@pytest.mark.parametrize("version_id", ["", "abc", "-1", "NULL", "²", "9" * 21])
def test_a_malformed_version_id(kind, tmp_path, version_id):
    async def story(metadata):
        bucket = await bucket_of(metadata, "Enabled")
        for operation in (metadata.find_object, metadata.head_object, metadata.delete_object):
            with pytest.raises(InvalidArgument):
                await operation(bucket, "k", version_id)

    play(kind, tmp_path, story)


@both_engines
def test_an_object_from_before_versioning_becomes_the_null_version(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata)
        old = await metadata.put_object(bucket, "k", small(b"old"))
        bucket = await metadata.set_versioning("bucket", "Enabled")
        assert (await metadata.find_object(bucket, "k", "null")).version == old
        new = await metadata.put_object(bucket, "k", small(b"new"))
        assert (await metadata.find_object(bucket, "k")).inline == b"new"
        assert (await metadata.find_object(bucket, "k", "null")).inline == b"old"
        with pytest.raises(NoSuchVersion):
            await metadata.find_object(bucket, "k", str(old.stamp))
        await metadata.delete_object(bucket, "k", new.version_id)
        assert (await metadata.find_object(bucket, "k")).version == old
        await metadata.delete_object(bucket, "k", "null")
        with pytest.raises(NoSuchKey):
            await metadata.find_object(bucket, "k")

    play(kind, tmp_path, story)


@both_engines
def test_suspended_puts_replace_the_null_version_only(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata, "Enabled")
        kept = await metadata.put_object(bucket, "k", small(b"kept"))
        bucket = await metadata.set_versioning("bucket", "Suspended")
        first = await metadata.put_object(bucket, "k", small(b"first"))
        second = await metadata.put_object(bucket, "k", small(b"second"))
        assert (first.version_id, second.version_id) == ("null", "null")
        page = await metadata.list_versions(bucket)
        assert [entry.version.stamp for entry in page.entries] == [second.stamp, kept.stamp]
        bucket = await metadata.set_versioning("bucket", "Enabled")
        third = await metadata.put_object(bucket, "k", small(b"third"))
        bucket = await metadata.set_versioning("bucket", "Suspended")
        await metadata.put_object(bucket, "k", small(b"fourth"))
        page = await metadata.list_versions(bucket)
        ids = [entry.version.version_id for entry in page.entries]
        assert ids == ["null", third.version_id, kept.version_id]
        usage = await metadata.usage(bucket)
        assert (usage.objects, usage.noncurrent, usage.bytes) == (1, 2, len("fourth" + "third" + "kept"))

    play(kind, tmp_path, story)


@both_engines
def test_a_suspended_delete_leaves_a_null_marker_in_place_of_the_null_version(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata)
        await metadata.put_object(bucket, "k", large(b"old"))
        bucket = await metadata.set_versioning("bucket", "Suspended")
        for _ in range(2):
            assert await metadata.delete_object(bucket, "k") == Deletion("null", True)
            page = await metadata.list_versions(bucket)
            assert [(entry.version.version_id, entry.version.delete_marker) for entry in page.entries] == [
                ("null", True)
            ]
        with pytest.raises(MethodNotAllowed):
            await metadata.head_object(bucket, "k", "null")
        assert await metadata.delete_object(bucket, "k", "null") == Deletion("null", True)
        assert (await metadata.list_versions(bucket)).entries == []
        usage = await metadata.usage(bucket)
        assert (usage.objects, usage.noncurrent, usage.bytes) == (0, 0, 0)

    play(kind, tmp_path, story)


# --- conditions


@both_engines
@pytest.mark.parametrize("versioning", ["", "Enabled", "Suspended"])
def test_conditional_puts(kind, tmp_path, versioning):
    async def story(metadata):
        bucket = await bucket_of(metadata, versioning)
        absent = WriteCondition(if_none_match="*")
        with pytest.raises(NoSuchKey):
            await metadata.put_object(bucket, "k", small(b"a"), WriteCondition(if_match=etag_of(b"a")))
        first = await metadata.put_object(bucket, "k", small(b"a"), absent)
        with pytest.raises(PreconditionFailed):
            await metadata.put_object(bucket, "k", small(b"b"), absent)
        with pytest.raises(PreconditionFailed):
            await metadata.put_object(bucket, "k", small(b"b"), WriteCondition(if_match="other"))
        assert (await metadata.find_object(bucket, "k")).version == first
        await metadata.put_object(bucket, "k", small(b"b"), WriteCondition(if_match=f'"{first.etag}"'))
        await metadata.delete_object(bucket, "k")
        with pytest.raises(NoSuchKey):
            await metadata.put_object(bucket, "k", small(b"c"), WriteCondition(if_match="*"))
        await metadata.put_object(bucket, "k", small(b"c"), absent)

    play(kind, tmp_path, story)


@both_engines
def test_conditional_deletes(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata, "Enabled")
        any_etag = WriteCondition(if_match="*")
        with pytest.raises(NoSuchKey):
            await metadata.delete_object(bucket, "k", condition=any_etag)
        version = await metadata.put_object(bucket, "k", small(b"a"))
        with pytest.raises(PreconditionFailed):
            await metadata.delete_object(bucket, "k", condition=WriteCondition(if_match="x"))
        with pytest.raises(PreconditionFailed):
            await metadata.delete_object(bucket, "k", version.version_id, WriteCondition(if_match="x"))
        deletion = await metadata.delete_object(bucket, "k", condition=any_etag)
        with pytest.raises(PreconditionFailed):
            await metadata.delete_object(bucket, "k", condition=any_etag)
        with pytest.raises(PreconditionFailed):
            await metadata.delete_object(bucket, "k", deletion.version_id, any_etag)
        await metadata.delete_object(bucket, "k", version.version_id, WriteCondition(if_match=version.etag))

    play(kind, tmp_path, story)


@both_engines
def test_many_deletes_each_succeed_or_fail_by_themselves(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata)
        for number in range(250):
            await metadata.put_object(bucket, f"k{number}", small(b"x"))
        targets = [(f"k{number}", None, None) for number in range(248)]
        targets.insert(5, ("k248", None, WriteCondition(if_match="no")))
        targets.insert(6, ("k249", "bad id", None))
        targets.insert(7, ("x" * 2000, None, None))
        targets.append(("k0", None, None))
        outcomes = await metadata.delete_objects(bucket, targets)
        assert [type(outcome).__name__ for outcome in outcomes[5:8]] == [
            "PreconditionFailed",
            "InvalidArgument",
            "KeyTooLong",
        ]
        assert all(isinstance(outcome, Deletion) for outcome in outcomes[:5] + outcomes[8:])
        page = await metadata.list_objects(bucket)
        assert [key for key, _ in page.entries] == ["k248", "k249"]

    play(kind, tmp_path, story)


# --- copies


@both_engines
def test_a_copy_shares_the_bytes(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata)
        other = await metadata.create_bucket("other", "me")
        source = await metadata.put_object(bucket, "k", large(b"one", content_type="a/b", metadata={"m": "1"}))
        seen, copied = await metadata.copy_object((bucket, "k", None), None, other, "c", copy_draft)
        assert seen == source
        assert (copied.content, copied.etag, copied.metadata) == (source.content, source.etag, {"m": "1"})
        await metadata.delete_object(bucket, "k")
        assert await metadata.reclaim_content(source.content) is None
        assert (await metadata.find_object(other, "c")).parts
        await metadata.delete_object(other, "c")
        assert await metadata.reclaim_content(source.content) == [source.content]

    play(kind, tmp_path, story)


@both_engines
def test_a_copy_of_a_multipart_object_is_whole(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata)
        upload = await metadata.create_upload(bucket, "k", UploadDraft())
        parts = [part(1, b"one"), part(2, b"two", 7)]
        for one in parts:
            await metadata.put_part(bucket, "k", upload.upload_id, one)
        source = await metadata.complete_upload(
            bucket, "k", upload.upload_id, listed(*parts), combine=no_combine, composite=no_composite
        )
        assert source.uploaded_parts == 2

        def rehashed(version):
            return msgspec.structs.replace(copy_draft(version), etag=etag_of(b"onetwo"))

        await metadata.copy_object((bucket, "k", None), None, bucket, "copy", rehashed)
        # What is whole stays so, and needs no other ETag.
        _, again = await metadata.copy_object((bucket, "copy", None), None, bucket, "again", copy_draft)
        assert (again.uploaded_parts, again.etag, again.content) == (0, etag_of(b"onetwo"), source.content)
        await metadata.delete_object(bucket, "k")
        for key in ("copy", "again"):
            found = await metadata.find_object(bucket, key)
            assert [one.extents for one in found.parts] == [one.extents for one in parts]

    play(kind, tmp_path, story)


@both_engines
def test_a_copy_of_a_small_object_has_its_own_bytes(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata)
        await metadata.put_object(bucket, "k", small(b"data"))
        await metadata.copy_object((bucket, "k", None), None, bucket, "c", copy_draft)
        await metadata.delete_object(bucket, "k")
        assert (await metadata.find_object(bucket, "c")).inline == b"data"

    play(kind, tmp_path, story)


@both_engines
@pytest.mark.parametrize("draft", [small(b"data"), large(b"data")])
@pytest.mark.parametrize("versioning", ["", "Enabled", "Suspended"])
def test_a_copy_onto_itself_changes_the_metadata_and_keeps_the_bytes(kind, tmp_path, draft, versioning):
    async def story(metadata):
        bucket = await bucket_of(metadata, versioning)
        before = await metadata.put_object(bucket, "k", draft)

        def changed(source):
            return msgspec.structs.replace(copy_draft(source), metadata={"new": "1"}, content_type="x/y")

        _, after = await metadata.copy_object((bucket, "k", None), None, bucket, "k", changed)
        assert after.stamp > before.stamp
        found = await metadata.find_object(bucket, "k")
        assert (found.version.metadata, found.version.content_type) == ({"new": "1"}, "x/y")
        assert found.inline == draft.inline
        if draft.blob:
            assert await metadata.reclaim_content(draft.blob) is None
            if versioning != "Enabled":
                assert await reclaimable(metadata) == []

    play(kind, tmp_path, story, grace_s=0)


@both_engines
def test_what_a_copy_refuses(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata, "Enabled")
        with pytest.raises(NoSuchKey):
            await metadata.copy_object((bucket, "k", None), None, bucket, "c", copy_draft)
        version = await metadata.put_object(bucket, "k", large(b"one"))
        with pytest.raises(NoSuchVersion):
            await metadata.copy_object((bucket, "k", "1600000000000000000"), None, bucket, "c", copy_draft)
        for condition in (
            ReadCondition(if_match="x"),
            ReadCondition(if_none_match=version.etag),
            ReadCondition(if_modified_since_s=version.stamp // 10**9),
        ):
            with pytest.raises(PreconditionFailed):
                await metadata.copy_object((bucket, "k", None), condition, bucket, "c", copy_draft)
        with pytest.raises(NoSuchKey):
            await metadata.copy_object((bucket, "k", None), None, bucket, "c", copy_draft, WriteCondition(if_match="*"))
        deletion = await metadata.delete_object(bucket, "k")
        with pytest.raises(InvalidRequest):
            await metadata.copy_object((bucket, "k", deletion.version_id), None, bucket, "c", copy_draft)
        with pytest.raises(NoSuchKey):
            await metadata.copy_object((bucket, "k", None), None, bucket, "c", copy_draft)
        await metadata.copy_object((bucket, "k", version.version_id), None, bucket, "c", copy_draft)

    play(kind, tmp_path, story)


@both_engines
def test_a_copy_refuses_a_content_that_is_gone(kind, tmp_path):
    async def story(metadata):
        bucket = await bucket_of(metadata)
        version = await metadata.put_object(bucket, "k", large(b"one"))

        async def lose(tr):
            tr.clear(metadata.context.keys.content(version.content))

        await metadata.engine.transact(lose)
        with pytest.raises(ContentGone):
            await metadata.copy_object((bucket, "k", None), None, bucket, "c", copy_draft)

    play(kind, tmp_path, story)


# --- tags


@both_engines
@pytest.mark.parametrize("versioning", ["", "Enabled", "Suspended"])
def test_tags_belong_to_a_version_and_do_not_change_it(kind, tmp_path, versioning):
    async def story(metadata):
        bucket = await bucket_of(metadata, versioning)
        version = await metadata.put_object(bucket, "k", small(b"data", tags={"a": "1"}))
        tagged = await metadata.put_object_tags(bucket, "k", None, {"b": "2"})
        assert tagged == msgspec.structs.replace(version, tags={"b": "2"})
        assert await metadata.head_object(bucket, "k") == tagged
        assert await metadata.head_object(bucket, "k", version.version_id) == tagged
        await metadata.put_object_tags(bucket, "k", version.version_id, {})
        assert (await metadata.head_object(bucket, "k")).tags == {}
        if versioning == "Enabled":
            newer = await metadata.put_object(bucket, "k", small(b"newer"))
            await metadata.put_object_tags(bucket, "k", version.version_id, {"c": "3"})
            assert await metadata.head_object(bucket, "k") == newer
            assert (await metadata.head_object(bucket, "k", version.version_id)).tags == {"c": "3"}
        with pytest.raises(NoSuchKey):
            await metadata.put_object_tags(bucket, "absent", None, {})

    play(kind, tmp_path, story)
