"""Multipart uploads: what completing accepts, refuses, keeps and discards."""

import hashlib

import msgspec
import pytest

from tests.metadata.queueing import take_all
from tests.metadata.world import (
    MIB,
    NODE,
    blob_id,
    both_engines,
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
    CompletedPart,
    Extent,
    NoSuchKey,
    Part,
    PreconditionFailed,
    UploadDraft,
    WriteCondition,
    store,
)
from tigrislike.metadata.errors import (
    BadChecksum,
    ContentGone,
    EntityTooLarge,
    EntityTooSmall,
    InvalidArgument,
    InvalidPart,
    InvalidPartOrder,
    InvalidRequest,
    MalformedPartList,
    NoSuchUpload,
)
from tigrislike.metadata.records import part as part_codec


async def begin(metadata, /, key="k", *, versioning="", **fields):
    bucket = await metadata.create_bucket("bucket", "me", versioning=versioning)
    return bucket, (await metadata.create_upload(bucket, key, UploadDraft(**fields))).upload_id


async def complete(metadata, bucket, upload_id, parts, key="k", **options):
    return await metadata.complete_upload(
        bucket, key, upload_id, parts, combine=no_combine, composite=no_composite, **options
    )


async def owed(metadata):
    """(task, subject) of every item that is due."""
    items = []
    items += [(one.item.task, one.item.subject) for one in await take_all(metadata)]
    return sorted(items)


@both_engines
def test_an_upload_becomes_an_object_of_its_parts(kind, tmp_path):
    async def story(metadata):
        bucket, upload_id = await begin(metadata, content_type="a/b", metadata={"m": "1"}, tags={"t": "2"})
        parts = [part(3, b"three", 100), part(1, b"one"), part(2, b"two", 6 * MIB)]
        for one in parts:
            stored = await metadata.put_part(bucket, "k", upload_id, one)
            assert stored.node == NODE
            assert stored.modified_ns > 0
        parts.sort(key=lambda one: one.number)
        version = await complete(metadata, bucket, upload_id, listed(*parts))
        digests = b"".join(bytes.fromhex(one.etag) for one in parts)
        assert version.etag == f"{hashlib.md5(digests).hexdigest()}-3"
        assert (version.size, version.parts, version.content.hex()) == (11 * MIB + 100, 3, upload_id)
        assert (version.content_type, version.metadata, version.tags) == ("a/b", {"m": "1"}, {"t": "2"})
        found = await metadata.find_object(bucket, "k")
        assert found.version == version
        assert [(one.number, one.extents[0].blob) for one in found.parts] == [
            (1, blob_id(b"one")),
            (2, blob_id(b"two")),
            (3, blob_id(b"three")),
        ]
        assert await metadata.object_parts(version) == found.parts
        assert (await metadata.list_uploads(bucket)).entries == []
        usage = await metadata.usage(bucket)
        assert (usage.objects, usage.bytes) == (1, version.size)

    play(kind, tmp_path, story)


@both_engines
def test_completing_again_gives_the_same_answer_even_after_the_object_changed(kind, tmp_path):
    async def story(metadata):
        bucket, upload_id = await begin(metadata)
        one, two = part(1, b"one"), part(2, b"two")
        for each in (one, two):
            await metadata.put_part(bucket, "k", upload_id, each)
        version = await complete(metadata, bucket, upload_id, listed(one, two))
        assert await complete(metadata, bucket, upload_id, listed(one, two)) == version
        assert (await metadata.usage(bucket)).objects == 1
        await metadata.put_object(bucket, "k", small(b"newer"))
        assert await complete(metadata, bucket, upload_id, listed(one, two)) == version
        assert (await metadata.find_object(bucket, "k")).inline == b"newer"
        with pytest.raises(NoSuchUpload):
            await complete(metadata, bucket, upload_id, listed(one))
        with pytest.raises(NoSuchUpload):
            await complete(metadata, bucket, upload_id, listed(one, two), key="other")

    play(kind, tmp_path, story)


@both_engines
def test_replaced_and_unlisted_parts_are_discarded(kind, tmp_path):
    async def story(metadata):
        bucket, upload_id = await begin(metadata)
        await metadata.put_part(bucket, "k", upload_id, part(1, b"first try"))
        await metadata.put_part(bucket, "k", upload_id, part(1, b"one"))
        await metadata.put_part(bucket, "k", upload_id, part(2, b"unlisted"))
        await metadata.put_part(bucket, "k", upload_id, part(7, b"seven"))
        await complete(metadata, bucket, upload_id, listed(part(1, b"one"), part(7, b"seven")))
        found = await metadata.find_object(bucket, "k")
        assert [one.number for one in found.parts] == [1, 7]
        gone = [("reclaim_blob", blob_id(b"first try")), ("reclaim_blob", blob_id(b"unlisted"))]
        assert await owed(metadata) == gone
        for _, blob in gone:
            assert await metadata.reclaim_blob(blob)
            await metadata.forget_blob(blob)
            assert await metadata.blob(blob) is None
        for kept in (b"one", b"seven"):
            assert not await metadata.reclaim_blob(blob_id(kept))

    play(kind, tmp_path, story, grace_s=0)


@both_engines
def test_an_aborted_upload_owes_its_blobs(kind, tmp_path):
    async def story(metadata):
        bucket, upload_id = await begin(metadata)
        for number in (1, 2):
            await metadata.put_part(bucket, "k", upload_id, part(number, b"p%d" % number))
        await metadata.abort_upload(bucket, "k", upload_id)
        for operation in (
            metadata.upload(bucket, "k", upload_id),
            metadata.abort_upload(bucket, "k", upload_id),
            metadata.list_parts(bucket, "k", upload_id),
            metadata.put_part(bucket, "k", upload_id, part(3, b"p3")),
            complete(metadata, bucket, upload_id, listed(part(1, b"p1"))),
        ):
            with pytest.raises(NoSuchUpload):
                await operation
        content_id = bytes.fromhex(upload_id)
        assert await owed(metadata) == [("reclaim", content_id)]
        assert await metadata.reclaim_content(content_id) == [blob_id(b"p1"), blob_id(b"p2")]
        await metadata.forget_content(content_id)
        assert await metadata.blob(blob_id(b"p1")) is None
        assert await metadata.content(content_id) is None

    play(kind, tmp_path, story)


@both_engines
def test_part_lists_that_are_refused(kind, tmp_path):
    async def story(metadata):
        bucket, upload_id = await begin(metadata)
        one, two = part(1, b"one"), part(2, b"two")
        for each in (one, two):
            await metadata.put_part(bucket, "k", upload_id, each)

        async def refused(error, parts, **options):
            with pytest.raises(error):
                await complete(metadata, bucket, upload_id, parts, **options)

        await refused(MalformedPartList, [])
        await refused(MalformedPartList, [CompletedPart(n, "x") for n in range(1, 10_002)])
        await refused(InvalidPartOrder, listed(two, one))
        await refused(InvalidPartOrder, listed(one, one))
        await refused(InvalidArgument, [CompletedPart(0, one.etag)])
        await refused(InvalidArgument, [CompletedPart(10_001, one.etag)])
        await refused(InvalidPart, [CompletedPart(1, two.etag)])
        await refused(InvalidPart, [CompletedPart(4, one.etag)])
        await refused(InvalidRequest, listed(one, two), expected_size=1)

    play(kind, tmp_path, story)


@both_engines
def test_every_part_but_the_last_has_a_least_size(kind, tmp_path):
    async def story(metadata):
        bucket, upload_id = await begin(metadata)
        one, tiny, three = part(1, b"one"), part(2, b"tiny", 10), part(3, b"three")
        for each in (one, tiny, three):
            await metadata.put_part(bucket, "k", upload_id, each)
        with pytest.raises(EntityTooSmall) as caught:
            await complete(metadata, bucket, upload_id, listed(one, tiny, three))
        assert caught.value.extra["PartNumber"] == "2"
        await complete(metadata, bucket, upload_id, listed(one, tiny), expected_size=5 * MIB + 10)

    play(kind, tmp_path, story)


@both_engines
def test_quoted_and_upper_case_etags_are_accepted(kind, tmp_path):
    async def story(metadata):
        bucket, upload_id = await begin(metadata)
        one = await metadata.put_part(bucket, "k", upload_id, part(1, b"one"))
        await complete(metadata, bucket, upload_id, [CompletedPart(1, f'"{one.etag.upper()}"')])

    play(kind, tmp_path, story)


@both_engines
@pytest.mark.parametrize("upload_id", ["", "x", "A" * 32, "zz" * 16, "0" * 31 + " ", "0" * 32, "0" * 33])
def test_unknown_upload_ids(kind, tmp_path, upload_id):
    async def story(metadata):
        bucket, _ = await begin(metadata)
        for operation in (
            metadata.upload(bucket, "k", upload_id),
            metadata.abort_upload(bucket, "k", upload_id),
            metadata.list_parts(bucket, "k", upload_id),
            metadata.put_part(bucket, "k", upload_id, part(1, b"one")),
            complete(metadata, bucket, upload_id, listed(part(1, b"one"))),
        ):
            with pytest.raises(NoSuchUpload):
                await operation

    play(kind, tmp_path, story)


@both_engines
def test_an_upload_belongs_to_its_key(kind, tmp_path):
    async def story(metadata):
        bucket, upload_id = await begin(metadata)
        with pytest.raises(NoSuchUpload):
            await metadata.put_part(bucket, "other", upload_id, part(1, b"one"))

    play(kind, tmp_path, story)


@both_engines
def test_parts_that_cannot_be(kind, tmp_path):
    async def story(metadata):
        bucket, upload_id = await begin(metadata)
        for number in (0, -1, 10_001):
            with pytest.raises(InvalidArgument):
                await metadata.put_part(bucket, "k", upload_id, part(number, b"one"))
        with pytest.raises(EntityTooLarge):
            await metadata.put_part(bucket, "k", upload_id, part(1, b"one", 5 * 1024**3 + 1))
        assert not await metadata.settle_blob(blob_id(b"late"))
        with pytest.raises(BlobDead):
            await metadata.put_part(bucket, "k", upload_id, part(1, b"late"))

    play(kind, tmp_path, story)


@both_engines
def test_an_object_of_more_than_five_tebibytes(kind, tmp_path):
    async def story(metadata):
        bucket, upload_id = await begin(metadata)
        parts = [part(number, b"p%d" % number, 5 * 1024**3) for number in range(1, 1026)]
        for one in parts:
            await metadata.put_part(bucket, "k", upload_id, one)
        with pytest.raises(EntityTooLarge):
            await complete(metadata, bucket, upload_id, listed(*parts))
        await complete(metadata, bucket, upload_id, listed(*parts[:1024]))

    play(kind, tmp_path, story)


@both_engines
def test_parts_are_listed_in_pages(kind, tmp_path):
    async def story(metadata):
        bucket, upload_id = await begin(metadata)
        for number in (1, 5, 300, 9, 10_000):
            await metadata.put_part(bucket, "k", upload_id, part(number, b"p%d" % number))
        page = await metadata.list_parts(bucket, "k", upload_id)
        assert [one.number for one in page.parts] == [1, 5, 9, 300, 10_000]
        assert (page.truncated, page.last, page.upload.upload_id) == (False, 10_000, upload_id)
        page = await metadata.list_parts(bucket, "k", upload_id, 1, 2)
        assert ([one.number for one in page.parts], page.truncated, page.last) == ([5, 9], True, 9)
        page = await metadata.list_parts(bucket, "k", upload_id, 10_000)
        assert (page.parts, page.truncated, page.last) == ([], False, 0)
        page = await metadata.list_parts(bucket, "k", upload_id, 0, 0)
        assert (page.parts, page.truncated) == ([], False)

    play(kind, tmp_path, story)


# --- checksums


@both_engines
def test_composite_and_full_object_checksums(kind, tmp_path):
    async def story(metadata):
        bucket, _ = await begin(metadata)
        for checksum_type, whole in (
            ("COMPOSITE", "CRC32:aa==+bb==-2"),
            ("FULL_OBJECT", f"CRC32:aa==*{5 * MIB}+bb==*7"),
        ):
            upload = await metadata.create_upload(
                bucket, "k", UploadDraft(checksum_algorithm="CRC32", checksum_type=checksum_type)
            )
            one = part(1, checksum_type.encode() + b"1", checksum="aa==")
            two = part(2, checksum_type.encode() + b"2", 7, checksum="bb==")
            for each in (one, two):
                await metadata.put_part(bucket, "k", upload.upload_id, each)
            # S3 demands the checksum of every part for a composite one; here the ETag is enough.
            parts = [CompletedPart(1, one.etag, "aa==", "CRC32"), CompletedPart(2, two.etag)]
            wrong = [CompletedPart(1, one.etag, "cc==", "CRC32"), CompletedPart(2, two.etag)]
            another = [CompletedPart(1, one.etag, "aa==", "CRC32C"), CompletedPart(2, two.etag)]
            for error, attempt, options in (
                (InvalidPart, wrong, {}),
                (InvalidPart, another, {}),
                (BadChecksum, parts, {"expected_checksum": ("CRC32", "other")}),
                (InvalidRequest, parts, {"expected_checksum": ("SHA1", whole)}),
                (InvalidRequest, parts, {"expected_type": "neither"}),
            ):
                with pytest.raises(error):
                    await complete(metadata, bucket, upload.upload_id, attempt, **options)
            version = await complete(
                metadata,
                bucket,
                upload.upload_id,
                parts,
                expected_checksum=("CRC32", whole.removesuffix("-2")),
                expected_type=checksum_type,
            )
            assert (version.checksum, version.checksum_type) == (whole, checksum_type)

    play(kind, tmp_path, story)


@both_engines
def test_a_part_without_the_promised_checksum(kind, tmp_path):
    async def story(metadata):
        bucket, upload_id = await begin(metadata, checksum_algorithm="SHA256", checksum_type="COMPOSITE")
        one = await metadata.put_part(bucket, "k", upload_id, part(1, b"one"))
        with pytest.raises(InvalidRequest):
            await complete(metadata, bucket, upload_id, listed(one))

    play(kind, tmp_path, story)


@both_engines
def test_an_upload_that_names_no_algorithm_gets_the_default_checksum(kind, tmp_path):
    async def story(metadata):
        bucket, upload_id = await begin(metadata)
        one, two = part(1, b"one", checksum="aa=="), part(2, b"two", 7, checksum="bb==")
        for each in (one, two):
            await metadata.put_part(bucket, "k", upload_id, each)
        whole = f"CRC64NVME:aa==*{5 * MIB}+bb==*7"
        with pytest.raises(InvalidPart):  # no checksum of a part was shown to anybody
            await complete(metadata, bucket, upload_id, [CompletedPart(1, one.etag, "aa==", "CRC64NVME")])
        for error, options in (
            (BadChecksum, {"expected_checksum": ("CRC64NVME", "other")}),
            (InvalidRequest, {"expected_checksum": ("CRC32", whole)}),
            (InvalidRequest, {"expected_type": "COMPOSITE"}),
        ):
            with pytest.raises(error):
                await complete(metadata, bucket, upload_id, listed(one, two), **options)
        expected = {"expected_checksum": ("CRC64NVME", whole), "expected_type": "FULL_OBJECT"}
        version = await complete(metadata, bucket, upload_id, listed(one, two), **expected)
        assert (version.checksum_algorithm, version.checksum_type, version.checksum) == (
            "CRC64NVME",
            "FULL_OBJECT",
            whole,
        )

    play(kind, tmp_path, story)


@both_engines
def test_parts_from_before_the_default_checksum_make_an_object_without_one(kind, tmp_path):
    async def story(metadata):
        bucket, upload_id = await begin(metadata)
        one, two = part(1, b"one", checksum="aa=="), part(2, b"two", 7)
        for each in (one, two):
            await metadata.put_part(bucket, "k", upload_id, each)
        expected = ("CRC64NVME", "aa==")
        with pytest.raises(InvalidRequest):
            await complete(metadata, bucket, upload_id, listed(one, two), expected_checksum=expected)
        version = await complete(metadata, bucket, upload_id, listed(one, two))
        assert (version.checksum_algorithm, version.checksum_type, version.checksum) == ("", "", "")

    play(kind, tmp_path, story)


@both_engines
def test_the_checksum_of_many_parts_is_prepared_ahead_of_the_transaction(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PREPARE_PARTS", 1)

    async def story(metadata):
        bucket, upload_id = await begin(metadata, checksum_algorithm="CRC32", checksum_type="COMPOSITE")
        parts = [part(number, b"p%d" % number, checksum="aa==") for number in (1, 2)]
        for one in parts:
            await metadata.put_part(bucket, "k", upload_id, one)
        calls = []

        def composite(algorithm, checksums):
            calls.append(len(checksums))
            return no_composite(algorithm, checksums)

        async def again():
            return await metadata.complete_upload(
                bucket, "k", upload_id, listed(*parts), combine=no_combine, composite=composite
            )

        version = await again()
        assert version.checksum == "CRC32:aa==+aa==-2"
        assert await again() == version
        assert calls == [2]

    play(kind, tmp_path, story)


# --- conditions, versions, slices


@both_engines
def test_completion_is_conditional(kind, tmp_path):
    async def story(metadata):
        bucket, upload_id = await begin(metadata)
        one = await metadata.put_part(bucket, "k", upload_id, part(1, b"one"))
        with pytest.raises(NoSuchKey):
            await complete(metadata, bucket, upload_id, listed(one), condition=WriteCondition(if_match="*"))
        await metadata.put_object(bucket, "k", small(b"there"))
        with pytest.raises(PreconditionFailed):
            await complete(metadata, bucket, upload_id, listed(one), condition=WriteCondition(if_none_match="*"))
        await complete(metadata, bucket, upload_id, listed(one), condition=WriteCondition(if_match=etag_of(b"there")))

    play(kind, tmp_path, story)


@both_engines
def test_completion_makes_a_version(kind, tmp_path):
    async def story(metadata):
        bucket, upload_id = await begin(metadata, versioning="Enabled")
        old = await metadata.put_object(bucket, "k", small(b"old"))
        one = await metadata.put_part(bucket, "k", upload_id, part(1, b"one"))
        version = await complete(metadata, bucket, upload_id, listed(one))
        page = await metadata.list_versions(bucket)
        assert [entry.version.version_id for entry in page.entries] == [version.version_id, old.version_id]

    play(kind, tmp_path, story)


@both_engines
def test_a_slice_of_another_object_keeps_that_objects_bytes(kind, tmp_path):
    async def story(metadata):
        bucket, upload_id = await begin(metadata)
        source = await metadata.put_object(bucket, "source", large(b"source", 9 * MIB))
        slice_ = Part(1, 2 * MIB, etag_of(b"s"), "", 0, (Extent(source.content, MIB, 2 * MIB, 9 * MIB),))
        slice_ = msgspec.structs.replace(slice_, source=source.content)
        stored = await metadata.put_part(bucket, "k", upload_id, slice_)
        await metadata.delete_object(bucket, "source")
        assert await metadata.reclaim_content(source.content) is None
        version = await complete(metadata, bucket, upload_id, listed(stored))
        assert (await metadata.find_object(bucket, "k")).parts[0].extents == slice_.extents
        await metadata.delete_object(bucket, "k")
        assert await metadata.reclaim_content(version.content) == []
        await metadata.forget_content(version.content)
        assert ("reclaim", source.content) in await owed(metadata)
        assert await metadata.reclaim_content(source.content) == [source.content]
        await metadata.forget_content(source.content)
        gone = msgspec.structs.replace(slice_, number=1)
        other = await metadata.create_upload(bucket, "k", UploadDraft())
        with pytest.raises(ContentGone):
            await metadata.put_part(bucket, "k", other.upload_id, gone)

    play(kind, tmp_path, story, grace_s=0)


def test_ten_thousand_parts_fit_into_the_limits(tmp_path):
    async def story(metadata):
        bucket, upload_id = await begin(metadata, key="k" * 1024, checksum_algorithm="SHA512")
        content_id = bytes.fromhex(upload_id)
        parts = [part(number, b"p%d" % number, checksum="x" * 88) for number in range(1, 10_001)]

        async def fill(tr, some):
            for one in some:
                stored = msgspec.structs.replace(one, node=NODE)
                tr.set(metadata.context.keys.part(content_id, one.number), part_codec.encode(stored))

        for start in range(0, 10_000, 1000):
            await metadata.engine.transact(fill, parts[start : start + 1000])
        keep = [one for one in parts if one.number % 2]

        def composite(algorithm, checksums):
            return f"{algorithm}-{len(checksums)}"

        version = await metadata.complete_upload(
            bucket, "k" * 1024, upload_id, listed(*keep), combine=no_combine, composite=composite
        )
        assert (version.parts, version.checksum) == (5000, "SHA512-5000")
        assert len((await metadata.find_object(bucket, "k" * 1024)).parts) == 5000
        await metadata.delete_object(bucket, "k" * 1024)
        assert len(await metadata.reclaim_content(content_id)) == 5000
        await metadata.forget_content(content_id)

    play("sqlite", tmp_path, story)
