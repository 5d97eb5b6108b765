"""Contents and blobs: what may be reclaimed, and that repeating a step is harmless."""

from tests.metadata.queueing import take_all
from tests.metadata.world import blob_id, both_engines, dump, large, play
from tigrislike.metadata import copy_draft


@both_engines
def test_a_content_goes_with_its_last_reference_and_leaves_nothing(kind, tmp_path):
    async def story(metadata):
        bucket = await metadata.create_bucket("bucket", "me")
        before = set(await dump(metadata))
        version = await metadata.put_object(bucket, "k", large(b"one"))
        await metadata.copy_object((bucket, "k", None), None, bucket, "c", copy_draft)
        await metadata.delete_object(bucket, "k")
        assert await metadata.reclaim_content(version.content) is None
        await metadata.forget_content(version.content)  # not dead: does nothing
        assert (await metadata.find_object(bucket, "c")).parts
        await metadata.delete_object(bucket, "c")
        for _ in range(2):
            assert await metadata.reclaim_content(version.content) == [version.content]
        for _ in range(2):
            await metadata.forget_content(version.content)
        assert await metadata.reclaim_content(version.content) == []
        left = {key for key in set(await dump(metadata)) - before if b"queue" not in key and b"count" not in key}
        assert left == set()

    play(kind, tmp_path, story)


@both_engines
def test_settling_is_final_and_its_row_is_forgotten_later(kind, tmp_path):
    async def story(metadata):
        blob = blob_id(b"orphan")
        assert await metadata.blob(blob) is None
        for _ in range(2):
            assert not await metadata.settle_blob(blob)
        (claimed,) = await take_all(metadata)
        assert (claimed.item.task, claimed.item.subject) == ("reclaim_blob", blob)
        assert await metadata.reclaim_blob(blob)
        await metadata.forget_blob(blob)
        assert await metadata.blob(blob) is None
        assert await metadata.reclaim_blob(blob)

    play(kind, tmp_path, story, grace_s=0)


@both_engines
def test_the_blob_of_a_live_content_is_not_reclaimed_or_forgotten(kind, tmp_path):
    async def story(metadata):
        bucket = await metadata.create_bucket("bucket", "me")
        version = await metadata.put_object(bucket, "k", large(b"one"))
        assert not await metadata.reclaim_blob(version.content)
        await metadata.forget_blob(version.content)
        assert (await metadata.blob(version.content)).content == version.content

    play(kind, tmp_path, story)
