"""Concurrent operations under a seeded scheduler: whatever the interleaving, one of the allowed outcomes.

Each test runs many seeds; a failure names its seed, and that seed shows it again. Faults (retryable errors, commits of
unknown outcome) are thrown in.
"""

import asyncio

import pytest
from msgspec.structs import replace

from tests.kv.memory_engine import MemoryEngine, RandomFaults
from tests.metadata.queueing import take_all
from tests.metadata.world import (
    blob_id,
    found,
    large,
    listed,
    no_combine,
    no_composite,
    part,
    small,
)
from tigrislike.metadata import (
    BlobDead,
    MetadataError,
    NoSuchBucket,
    NoSuchKey,
    PreconditionFailed,
    UploadDraft,
    WriteCondition,
    copy_draft,
)
from tigrislike.metadata.deciding import QUEUE
from tigrislike.metadata.errors import BucketNotEmpty, ContentGone, InvalidPart, NoSuchUpload

SEEDS = range(40)
every_seed = pytest.mark.parametrize("seed", SEEDS)


def race(seed, story, *, faults=True):
    async def main():
        engine = MemoryEngine(seed=seed, faults=RandomFaults(seed) if faults else None)
        metadata = await found(engine, grace_s=0)
        try:
            return await story(metadata)
        finally:
            await engine.close()

    return asyncio.run(main())


async def together(*operations):
    """Run all at once; what each returned, or the metadata error that it raised."""
    outcomes = await asyncio.gather(*operations, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, MetadataError):
            raise outcome
    return outcomes


def complete(metadata, bucket, upload_id, parts):
    return metadata.complete_upload(bucket, "k", upload_id, listed(*parts), combine=no_combine, composite=no_composite)


@every_seed
def test_of_conditional_creates_exactly_one_wins(seed):
    async def story(metadata):
        bucket = await metadata.create_bucket("bucket", "me")
        absent = WriteCondition(if_none_match="*")
        outcomes = await together(
            *(metadata.put_object(bucket, "k", small(b"%d" % number), absent) for number in range(6))
        )
        winners = [number for number, outcome in enumerate(outcomes) if not isinstance(outcome, MetadataError)]
        assert len(winners) == 1
        assert all(isinstance(outcome, PreconditionFailed) for n, outcome in enumerate(outcomes) if n != winners[0])
        assert (await metadata.find_object(bucket, "k")).inline == b"%d" % winners[0]

    race(seed, story)


@every_seed
def test_compare_and_swap_loses_no_update(seed):
    async def story(metadata):
        bucket = await metadata.create_bucket("bucket", "me")
        await metadata.put_object(bucket, "k", small(b"0"))

        async def increment():
            while True:
                seen = await metadata.find_object(bucket, "k")
                draft = small(b"%d" % (int(seen.inline) + 1))
                try:
                    await metadata.put_object(bucket, "k", draft, WriteCondition(if_match=seen.version.etag))
                except PreconditionFailed:
                    continue
                return

        await together(*(increment() for _ in range(5)))
        assert (await metadata.find_object(bucket, "k")).inline == b"5"
        usage = await metadata.usage(bucket)
        assert (usage.objects, usage.noncurrent, usage.bytes) == (1, 0, 1)

    race(seed, story)


@every_seed
def test_versions_written_at_once_all_stay(seed):
    async def story(metadata):
        bucket = await metadata.create_bucket("bucket", "me", versioning="Enabled")
        outcomes = await together(
            *(metadata.put_object(bucket, "k", small(b"%d" % number)) for number in range(4)),
            metadata.delete_object(bucket, "k"),
        )
        page = await metadata.list_versions(bucket)
        assert sorted(entry.version.version_id for entry in page.entries) == sorted(
            outcome.version_id for outcome in outcomes
        )
        usage = await metadata.usage(bucket)
        assert (usage.objects + usage.noncurrent, usage.bytes) == (5, 4)

    race(seed, story)


@every_seed
def test_complete_against_abort(seed):
    async def story(metadata):
        bucket = await metadata.create_bucket("bucket", "me")
        upload_id = (await metadata.create_upload(bucket, "k", UploadDraft())).upload_id
        one = await metadata.put_part(bucket, "k", upload_id, part(1, b"one"))
        completed, aborted = await together(
            complete(metadata, bucket, upload_id, [one]), metadata.abort_upload(bucket, "k", upload_id)
        )
        content_id = bytes.fromhex(upload_id)
        if isinstance(completed, NoSuchUpload):
            assert aborted is None
            assert await metadata.reclaim_content(content_id) == [blob_id(b"one")]
            with pytest.raises(NoSuchKey):
                await metadata.head_object(bucket, "k")
        else:
            assert isinstance(aborted, NoSuchUpload)
            assert await metadata.reclaim_content(content_id) is None
            assert (await metadata.find_object(bucket, "k")).version == completed

    race(seed, story)


@every_seed
def test_complete_against_itself_and_a_new_part(seed):
    async def story(metadata):
        bucket = await metadata.create_bucket("bucket", "me")
        upload_id = (await metadata.create_upload(bucket, "k", UploadDraft())).upload_id
        one = await metadata.put_part(bucket, "k", upload_id, part(1, b"one"))
        two = await metadata.put_part(bucket, "k", upload_id, part(2, b"two"))
        first, second, replaced, late = await together(
            complete(metadata, bucket, upload_id, [one, two]),
            complete(metadata, bucket, upload_id, [one, two]),
            metadata.put_part(bucket, "k", upload_id, part(1, b"replaced")),
            metadata.put_part(bucket, "k", upload_id, part(3, b"late")),
        )
        if isinstance(first, InvalidPart):
            assert isinstance(second, InvalidPart)
            assert replaced.etag == part(1, b"replaced").etag
            return
        assert first == second
        assert isinstance(replaced, NoSuchUpload)
        parts = (await metadata.find_object(bucket, "k")).parts
        assert [one.extents[0].blob for one in parts] == [blob_id(b"one"), blob_id(b"two")]
        if not isinstance(late, NoSuchUpload):
            assert await metadata.reclaim_blob(blob_id(b"late"))
        assert (await metadata.usage(bucket)).objects == 1

    race(seed, story)


@every_seed
def test_settling_a_blob_against_committing_it(seed):
    async def story(metadata):
        bucket = await metadata.create_bucket("bucket", "me")
        draft = large(b"one")
        put, committed = await together(metadata.put_object(bucket, "k", draft), metadata.settle_blob(draft.blob))
        if committed:
            assert (await metadata.head_object(bucket, "k")) == put
        else:
            assert isinstance(put, BlobDead)
        assert await metadata.settle_blob(draft.blob) == committed

    race(seed, story)


@every_seed
def test_deleting_a_bucket_against_putting_into_it(seed):
    async def story(metadata):
        await metadata.create_bucket("bucket", "me")
        await metadata.refresh()
        bucket = await metadata.bucket("bucket")
        deleted, put, upload = await together(
            metadata.delete_bucket("bucket"),
            metadata.put_object(bucket, "k", small(b"x")),
            metadata.create_upload(bucket, "k", UploadDraft()),
        )
        if deleted is None:
            assert isinstance(put, NoSuchBucket)
            assert isinstance(upload, NoSuchBucket)
        else:
            assert isinstance(deleted, BucketNotEmpty)
            await metadata.bucket("bucket")

    race(seed, story)


@every_seed
def test_reclaiming_against_copying(seed):
    async def story(metadata):
        bucket = await metadata.create_bucket("bucket", "me", versioning="Enabled")
        version = await metadata.put_object(bucket, "k", large(b"one"))

        async def delete_and_reclaim():
            await metadata.delete_object(bucket, "k", version.version_id)
            return await metadata.reclaim_content(version.content)

        copied, blobs = await together(
            metadata.copy_object((bucket, "k", version.version_id), None, bucket, "c", copy_draft),
            delete_and_reclaim(),
        )
        assert isinstance(copied, MetadataError) == (blobs is not None)
        if blobs is None:
            assert (await metadata.find_object(bucket, "c")).version == copied[1]
            assert await metadata.reclaim_content(version.content) is None

    race(seed, story)


@every_seed
def test_reclaiming_against_taking_a_slice(seed):
    async def story(metadata):
        bucket = await metadata.create_bucket("bucket", "me")
        version = await metadata.put_object(bucket, "k", large(b"one"))
        await metadata.delete_object(bucket, "k")
        upload_id = (await metadata.create_upload(bucket, "k", UploadDraft())).upload_id
        slice_ = part(1, b"one")
        slice_ = replace(slice_, source=version.content)
        taken, blobs = await together(
            metadata.put_part(bucket, "k", upload_id, slice_), metadata.reclaim_content(version.content)
        )
        assert isinstance(taken, ContentGone) == (blobs is not None)

    race(seed, story)


@every_seed
def test_enabling_versioning_against_overwriting(seed):
    async def story(metadata):
        await metadata.create_bucket("bucket", "me")
        await metadata.refresh()
        bucket = await metadata.bucket("bucket")
        old = await metadata.put_object(bucket, "k", small(b"old"))
        _, new = await together(
            metadata.set_versioning("bucket", "Enabled"), metadata.put_object(bucket, "k", small(b"new"))
        )
        page = await metadata.list_versions(await metadata.bucket("bucket"))
        stamps = [entry.version.stamp for entry in page.entries]
        # Either the put came first and replaced, or versioning did and both are kept: decided by what the put saw.
        assert stamps == ([new.stamp] if new.null else [new.stamp, old.stamp])
        usage = await metadata.usage(bucket)
        assert usage.objects + usage.noncurrent == len(stamps)

    race(seed, story)


@every_seed
def test_collecting_a_zone_against_enqueueing_into_it(seed):
    async def story(metadata):
        bucket = await metadata.create_bucket("bucket", "me")
        first = await metadata.put_object(bucket, "a", large(b"one"))
        second = await metadata.put_object(bucket, "b", large(b"two"))
        await metadata.delete_object(bucket, "a")
        (claimed,) = await take_all(metadata)
        zone = claimed.zone
        assert claimed.item.subject == first.content
        assert await metadata.queue.finish(claimed)
        metadata.engine.clock.advance(QUEUE.min_inactive_ns)
        pointer_lease = await metadata.queue.lease(zone)
        await together(metadata.delete_object(bucket, "b"), metadata.queue.claim(zone, pointer_lease))
        assert await metadata.queue.depth(zone) == 1
        items = [item for _, item in await metadata.queue.items(zone)]
        assert [item.subject for item in items] == [second.content]
        if items[0].lease:
            return  # the collector came late, and took the item
        (claimed,) = await take_all(metadata)
        assert claimed.item.subject == second.content

    race(seed, story)


@every_seed
def test_claimers_never_share_an_item(seed):
    async def story(metadata):
        bucket = await metadata.create_bucket("bucket", "me")
        for number in range(6):
            await metadata.put_object(bucket, f"k{number}", large(b"%d" % number))
            await metadata.delete_object(bucket, f"k{number}")
        (zone,) = await metadata.queue.zones()
        # Three consumers come to hold the same lease: none keeps the others out any more but the items themselves.
        pointer_lease = await metadata.queue.lease(zone)
        batches = await together(*(metadata.queue.claim(zone, pointer_lease) for _ in range(3)))
        subjects = [claimed.item.subject for batch in batches if batch for claimed in batch.claimed]
        assert len(subjects) == len(set(subjects)) == 6
        assert await metadata.queue.depth(zone) == 6

    race(seed, story)


@every_seed
def test_a_cached_bucket_never_hides_a_change_acknowledged_before_the_request(seed):
    async def story(metadata):
        other = await found(metadata.engine)
        await metadata.create_bucket("bucket", "me")

        async def writer():
            for number in range(1, 6):
                await other.change_bucket("bucket", region_policy=str(number))
                acknowledged.append(number)

        async def reader():
            while len(acknowledged) < 5:
                known = len(acknowledged)
                await metadata.refresh()
                bucket = await metadata.bucket("bucket")
                assert int(bucket.region_policy or 0) >= known

        acknowledged = []
        await together(writer(), reader(), reader())

    race(seed, story, faults=False)
