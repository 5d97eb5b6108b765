"""Buckets: names, owners, configuration, and that only empty ones go."""

import pytest

from tests.metadata.world import both_engines, dump, play, small
from tigrislike.metadata import NoSuchBucket, UploadDraft
from tigrislike.metadata.buckets import check_bucket_name
from tigrislike.metadata.errors import (
    BucketAlreadyExists,
    BucketAlreadyOwnedByYou,
    BucketNotEmpty,
    InvalidArgument,
    InvalidBucketName,
)


@pytest.mark.parametrize("name", ["abc", "a" * 63, "a.b-c.1", "0ab", "192.168.5.4a", "healthz1", "a--b"])
def test_valid_names(name):
    check_bucket_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "ab",
        "a" * 64,
        "Abc",
        "a_b",
        "-abc",
        "abc-",
        ".abc",
        "abc.",
        "a..b",
        "192.168.5.4",
        "xn--abc",
        "sthree-abc",
        "amzn-s3-demo-x",
        "abc-s3alias",
        "abc--ol-s3",
        "abc.mrap",
        "abc--x-s3",
        "abc--table-s3",
        "ünder",
        "abc\n",
        "healthz",
        "readyz",
        "_tigrislike",
    ],
)
def test_invalid_names(name):
    with pytest.raises(InvalidBucketName):
        check_bucket_name(name)


@both_engines
def test_a_bucket_is_found_again_with_what_it_was_given(kind, tmp_path):
    async def story(metadata):
        made = await metadata.create_bucket("photos", "me", public=True)
        assert (made.name, made.owner, made.public, made.versioning) == ("photos", "me", True, "")
        assert made.created_ns == metadata.now_ns() or made.created_ns > 0
        assert await metadata.bucket("photos") == made

    play(kind, tmp_path, story)


@both_engines
def test_a_taken_name_is_refused_by_whose_it_is(kind, tmp_path):
    async def story(metadata):
        await metadata.create_bucket("photos", "me")
        with pytest.raises(BucketAlreadyOwnedByYou):
            await metadata.create_bucket("photos", "me")
        with pytest.raises(BucketAlreadyExists):
            await metadata.create_bucket("photos", "you")

    play(kind, tmp_path, story)


@both_engines
def test_an_unknown_bucket(kind, tmp_path):
    async def story(metadata):
        for name in ("nope", "\ud800"):
            with pytest.raises(NoSuchBucket) as caught:
                await metadata.bucket(name)
            assert caught.value.code == "NoSuchBucket"
        with pytest.raises(NoSuchBucket):
            await metadata.delete_bucket("nope")
        with pytest.raises(NoSuchBucket):
            await metadata.set_versioning("nope", "Enabled")

    play(kind, tmp_path, story)


@both_engines
def test_only_an_empty_bucket_can_be_deleted_and_leaves_nothing(kind, tmp_path):
    async def story(metadata):
        before = set(await dump(metadata))
        bucket = await metadata.create_bucket("photos", "me")
        await metadata.put_object(bucket, "k", small(b"x"))
        with pytest.raises(BucketNotEmpty):
            await metadata.delete_bucket("photos")
        await metadata.delete_object(bucket, "k")
        upload = await metadata.create_upload(bucket, "k", UploadDraft())
        with pytest.raises(BucketNotEmpty):
            await metadata.delete_bucket("photos")
        content_id = upload.content
        await metadata.abort_upload(bucket, "k", upload.upload_id)
        await metadata.reclaim_content(content_id)
        await metadata.forget_content(content_id)
        await metadata.put_bucket_config("photos", "cors", b"doc")
        await metadata.create_access_key("me", "photos")
        await metadata.delete_bucket("photos")
        left = {key for key in set(await dump(metadata)) - before if b"queue" not in key}
        assert left == set()

    play(kind, tmp_path, story)


@both_engines
def test_a_delete_marker_keeps_its_bucket(kind, tmp_path):
    async def story(metadata):
        bucket = await metadata.create_bucket("photos", "me", versioning="Enabled")
        deletion = await metadata.delete_object(bucket, "never-there")
        with pytest.raises(BucketNotEmpty):
            await metadata.delete_bucket("photos")
        await metadata.delete_object(bucket, "never-there", deletion.version_id)
        await metadata.delete_bucket("photos")

    play(kind, tmp_path, story)


@both_engines
def test_writing_to_a_deleted_or_recreated_bucket_fails(kind, tmp_path):
    async def story(metadata):
        await metadata.refresh()
        await metadata.create_bucket("photos", "me")
        old = await metadata.bucket("photos")
        await metadata.delete_bucket("photos")
        with pytest.raises(NoSuchBucket):
            await metadata.put_object(old, "k", small(b"x"))
        await metadata.create_bucket("photos", "me")
        with pytest.raises(NoSuchBucket):
            await metadata.put_object(old, "k", small(b"x"))

    play(kind, tmp_path, story)


@both_engines
def test_buckets_are_listed_by_name_owner_and_prefix_in_pages(kind, tmp_path):
    async def story(metadata):
        for name, owner in [("b-2", "me"), ("a-1", "me"), ("b-1", "you"), ("b-3", "me"), ("c-1", "me")]:
            await metadata.create_bucket(name, owner)

        async def names(*args, **kwargs):
            found, more = await metadata.list_buckets(*args, **kwargs)
            return [bucket.name for bucket in found], more

        assert await names(None) == (["a-1", "b-1", "b-2", "b-3", "c-1"], "")
        assert await names("me") == (["a-1", "b-2", "b-3", "c-1"], "")
        assert await names("me", prefix="b") == (["b-2", "b-3"], "")
        assert await names(None, prefix="b", limit=2) == (["b-1", "b-2"], "b-2")
        assert await names(None, prefix="b", after="b-2") == (["b-3"], "")
        assert await names("me", after="a-1", limit=1) == (["b-2"], "b-2")
        assert await names("nobody") == ([], "")
        assert await names("me", limit=0) == ([], "")
        assert await names(None, prefix="b", after="c") == ([], "")
        assert await names("me", bucket_scope="b-2") == (["b-2"], "")
        assert await names("me", bucket_scope="b-1") == ([], "")
        assert await names("me", bucket_scope="gone") == ([], "")
        assert await names("me", bucket_scope="b-2", prefix="a") == ([], "")

    play(kind, tmp_path, story)


@both_engines
def test_versioning_goes_on_and_is_suspended_but_never_back(kind, tmp_path):
    async def story(metadata):
        await metadata.create_bucket("photos", "me")
        assert (await metadata.set_versioning("photos", "Enabled")).versioning == "Enabled"
        assert (await metadata.set_versioning("photos", "Suspended")).versioning == "Suspended"
        for wrong in ("", "Disabled", "enabled"):
            with pytest.raises(InvalidArgument):
                await metadata.set_versioning("photos", wrong)

    play(kind, tmp_path, story)


@both_engines
def test_a_bucket_is_born_with_its_documents(kind, tmp_path):
    async def story(metadata):
        made = await metadata.create_bucket("photos", "me", documents={"tagging": b"tags"})
        assert made == await metadata.bucket("photos")
        assert await metadata.bucket_config("photos", "tagging") == b"tags"
        assert await metadata.bucket_config("photos", "cors") is None
        with pytest.raises(BucketAlreadyOwnedByYou):
            await metadata.create_bucket("photos", "me", documents={"tagging": b"others"})
        await metadata.refresh()
        assert await metadata.bucket_config("photos", "tagging") == b"tags"

    play(kind, tmp_path, story)


@both_engines
def test_configuration_documents(kind, tmp_path):
    async def story(metadata):
        await metadata.create_bucket("photos", "me")
        await metadata.refresh()
        assert await metadata.bucket_config("photos", "cors") is None
        await metadata.put_bucket_config("photos", "cors", b"one")
        await metadata.put_bucket_config("photos", "tagging", b"tags")
        await metadata.refresh()
        assert await metadata.bucket_config("photos", "cors") == b"one"
        await metadata.put_bucket_config("photos", "cors", b"two")
        await metadata.refresh()
        assert await metadata.bucket_config("photos", "cors") == b"two"
        assert await metadata.bucket_config("photos", "cors") == b"two"
        for _ in range(2):
            await metadata.delete_bucket_config("photos", "cors")
        await metadata.refresh()
        assert await metadata.bucket_config("photos", "cors") is None
        assert await metadata.bucket_config("photos", "tagging") == b"tags"

    play(kind, tmp_path, story)


@both_engines
def test_fields_of_a_bucket_can_be_changed(kind, tmp_path):
    async def story(metadata):
        await metadata.create_bucket("photos", "me")
        assert (await metadata.change_bucket("photos", public=True)).public
        await metadata.refresh()
        assert (await metadata.bucket("photos")).public

    play(kind, tmp_path, story)


@both_engines
def test_storage_is_a_bucket_and_its_key_or_neither(kind, tmp_path):
    async def story(metadata):
        bucket, key = await metadata.create_storage("photos", "me", public=True)
        assert (bucket.name, bucket.public, key.owner, key.bucket) == ("photos", True, "me", "photos")
        assert await metadata.access_key(key.key_id) == key
        with pytest.raises(BucketAlreadyOwnedByYou):
            await metadata.create_storage("photos", "me")
        assert len(await metadata.list_access_keys("me")) == 1
        with pytest.raises(InvalidBucketName):
            await metadata.create_storage("No", "me")

    play(kind, tmp_path, story)


@both_engines
def test_deleting_a_bucket_deletes_the_keys_scoped_to_it_alone(kind, tmp_path):
    async def story(metadata):
        _, scoped = await metadata.create_storage("photos", "me")
        other = await metadata.create_access_key("me")
        await metadata.refresh()
        assert await metadata.access_key(scoped.key_id) is not None
        await metadata.delete_bucket("photos")
        await metadata.refresh()
        assert await metadata.access_key(scoped.key_id) is None
        assert await metadata.access_key(other.key_id) == other
        assert [record.key_id for record in await metadata.list_access_keys("me")] == [other.key_id]

    play(kind, tmp_path, story)
