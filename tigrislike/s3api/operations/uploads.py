"""Multipart uploads: create, parts (sent or copied), list parts, complete, abort."""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial

from tigrislike.metadata.conditions import check_read
from tigrislike.metadata.placing import WRITE_THROUGH, Alive
from tigrislike.metadata.records import DEFAULT_CHECKSUM_ALGORITHM, CompletedPart, Part, Upload, UploadDraft
from tigrislike.s3api import checksums
from tigrislike.s3api.attributes import (
    object_class,
    object_headers,
    object_regions,
    object_tags,
    refuse_unsupported,
    user_metadata,
)
from tigrislike.s3api.context import Context
from tigrislike.s3api.errors import S3Error, invalid_argument
from tigrislike.s3api.ingest import ensure_backed, hash_object, ingest, ingest_bytes, sharing
from tigrislike.s3api.operations import Input, Output, operation
from tigrislike.s3api.operations.copies import check_copy_size, find_source
from tigrislike.s3api.operations.objects import MAX_PUT_BYTES, read_condition, write_condition
from tigrislike.s3api.ranges import parse_copy_range
from tigrislike.s3api.reading import extents_of
from tigrislike.s3api.shadowing import adopt_first, find_through

MAX_PARTS = 10_000  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MAX_OBJECT_BYTES = 5 * 1024**4
_PAGE = 1000


@operation("CreateMultipartUpload")
async def create_multipart_upload(ctx: Context, inp: Input) -> Output:
    refuse_unsupported(inp)
    algorithm = inp.get("ChecksumAlgorithm", "")
    checksum_type = checksums.multipart_type(algorithm, inp.get("ChecksumType"))
    upload = await ctx.metadata.create_upload(
        ctx.bucket,
        inp["Key"],
        UploadDraft(
            storage_class=object_class(inp),
            checksum_algorithm=algorithm,
            checksum_type=checksum_type,
            content_type=inp.get("ContentType", ""),
            headers=object_headers(inp),
            metadata=user_metadata(inp),
            tags=object_tags(inp),
            regions=object_regions(ctx.metadata.regions, inp),
        ),
    )
    output: Output = {"Bucket": ctx.bucket.name, "Key": inp["Key"], "UploadId": upload.upload_id}
    if algorithm:
        output["ChecksumAlgorithm"] = algorithm
        output["ChecksumType"] = checksum_type
    return output


def _part_number(inp: Input) -> int:
    number: int = inp["PartNumber"]
    if not 1 <= number <= MAX_PARTS:
        raise S3Error(
            "InvalidArgument",
            f"Part number must be an integer between 1 and {MAX_PARTS}, inclusive",
            extra={"ArgumentName": "partNumber", "ArgumentValue": str(number)},
        )
    return number


@operation("UploadPart")
async def upload_part(ctx: Context, inp: Input) -> Output:
    refuse_unsupported(inp)
    number = _part_number(inp)
    upload = await ctx.metadata.upload(ctx.bucket, inp["Key"], inp["UploadId"])
    if upload.checksum_algorithm:
        # S3 refuses a part without the checksum that a composite one is made of. Here it is computed then, for clients
        # that name an algorithm at the start only (ceph/s3-tests#596).
        ctx.payload.require_algorithm(upload.checksum_algorithm)
    else:
        # What the client sends is checked and not kept, as S3 has it since SDKs send CRC32 unasked
        # (localstack/localstack#12401); before, it refused any checksum here.
        ctx.payload.algorithm = DEFAULT_CHECKSUM_ALGORITHM
    async with ingest(ctx, ctx.payload, MAX_PUT_BYTES, always_blob=True, regions=upload.regions) as received:
        part = Part(
            number=number,
            size=received.size,
            etag=received.etag,
            checksum=received.checksum,
            modified_ns=0,
            extents=received.extents,
            others=received.others,
        )
        putting = ctx.metadata.put_part(ctx.bucket, inp["Key"], inp["UploadId"], part, received.elsewhere)
        part = await received.commit(putting)
    return {"ETag": f'"{part.etag}"', **_part_checksum(part, upload)}


@operation("UploadPartCopy")
async def upload_part_copy(ctx: Context, inp: Input) -> Output:
    refuse_unsupported(inp)
    number = _part_number(inp)
    upload = await ctx.metadata.upload(ctx.bucket, inp["Key"], inp["UploadId"])
    source = await find_source(ctx, inp)
    found = await find_through(ctx, source.bucket, source.key, source.version_id)
    condition = read_condition(inp, "CopySource")
    if condition is not None:
        check_read(condition, found.version, copying=True)
    start, stop = 0, found.version.size
    if "CopySourceRange" in inp:
        start, stop = parse_copy_range(inp["CopySourceRange"], found.version.size)
    check_copy_size(stop - start)
    algorithm = upload.checksum_algorithm or DEFAULT_CHECKSUM_ALGORITHM
    if found.inline is not None:
        # The bytes lie in the source's metadata row, so the part gets a blob of its own.
        async with ingest_bytes(ctx, found.inline[start:stop], algorithm, regions=upload.regions) as received:
            part = Part(
                number=number,
                size=received.size,
                etag=received.etag,
                checksum=received.checksum,
                modified_ns=0,
                extents=received.extents,
                others=received.others,
            )
            putting = ctx.metadata.put_part(ctx.bucket, inp["Key"], inp["UploadId"], part, received.elsewhere)
            part = await received.commit(putting)
    else:
        digests = await hash_object(ctx, found, start, stop, algorithm)
        slice_ = Part(
            number=number,
            size=stop - start,
            etag=digests.hex("MD5"),
            checksum=digests.base64(algorithm),
            modified_ns=0,
            extents=tuple(extents_of(found, start, stop)),
            source=found.version.content,
        )

        def put(alive: Alive | None) -> Awaitable[Part]:
            return ctx.metadata.put_part(ctx.bucket, inp["Key"], inp["UploadId"], slice_, alive=alive)

        part = await sharing(ctx, put)
    output: Output = {
        "CopyPartResult": {
            "ETag": f'"{part.etag}"',
            "LastModified": part.modified_ns,
            **_part_checksum(part, upload),
        }
    }
    if source.bucket.versioning:
        output["CopySourceVersionId"] = found.version.version_id
    return output


@operation("CompleteMultipartUpload")
async def complete_multipart_upload(ctx: Context, inp: Input) -> Output:
    parts = inp.get("MultipartUpload", {}).get("Parts") or ()
    if not parts:
        raise S3Error("MalformedXML")
    listed: list[CompletedPart] = []
    for part in parts:
        if "PartNumber" not in part or "ETag" not in part:
            raise S3Error("MalformedXML")
        listed.append(CompletedPart(part["PartNumber"], part["ETag"], *_given_checksum(part)))
    expected = ((checksums.MEMBERS[name], inp[name]) for name in inp if name in checksums.MEMBERS)
    condition = write_condition(inp)
    if condition is not None:
        await adopt_first(ctx, ctx.bucket, inp["Key"])
    complete = partial(
        ctx.metadata.complete_upload,
        ctx.bucket,
        inp["Key"],
        inp["UploadId"],
        listed,
        combine=checksums.combine,
        composite=checksums.composite,
        condition=condition,
        expected_checksum=next(expected, None),
        expected_type=inp.get("ChecksumType"),
        expected_size=inp.get("MpuObjectSize"),
    )
    version = await sharing(ctx, lambda alive: complete(alive=alive))
    if ctx.bucket.durability == WRITE_THROUGH:
        # Mostly it is there: what its parts were not written with is slices, and parts from before the bucket was this.
        await ensure_backed(ctx, version.content)
    output: Output = {
        "Location": ctx.object_url(inp["Key"]),
        "Bucket": ctx.bucket.name,
        "Key": inp["Key"],
        "ETag": f'"{version.etag}"',
    }
    if version.checksum_algorithm:
        output[f"Checksum{version.checksum_algorithm}"] = version.checksum
        output["ChecksumType"] = version.checksum_type
    if ctx.bucket.versioning == "Enabled":
        output["VersionId"] = version.version_id
    return output


def _given_checksum(part: Input) -> tuple[str | None, str]:
    """The checksum that a part list gives for `part`, and its algorithm; `(None, "")` where it gives none.

    Raises:
        S3Error: InvalidArgument for more than one.
    """
    given = [(part[name], algorithm) for name, algorithm in checksums.MEMBERS.items() if name in part]
    if len(given) > 1:
        raise invalid_argument(
            "Invalid Base64 or multiple checksums present in request",
            "Checksum",
            "".join(f"{algorithm}:{value};" for value, algorithm in given),
        )
    return given[0] if given else (None, "")


@operation("AbortMultipartUpload")
async def abort_multipart_upload(ctx: Context, inp: Input) -> Output:
    await ctx.metadata.abort_upload(ctx.bucket, inp["Key"], inp["UploadId"])
    return {}


@operation("ListParts")
async def list_parts(ctx: Context, inp: Input) -> Output:
    limit = min(inp.get("MaxParts", _PAGE), _PAGE)
    marker = int(inp.get("PartNumberMarker", 0))
    if limit < 0 or marker < 0:
        raise S3Error("InvalidArgument", "max-parts and part-number-marker must not be negative")
    page = await ctx.metadata.list_parts(ctx.bucket, inp["Key"], inp["UploadId"], marker, limit)
    upload = page.upload
    owner = ctx.owner(ctx.bucket.owner)
    output: Output = {
        "Bucket": ctx.bucket.name,
        "Key": inp["Key"],
        "UploadId": inp["UploadId"],
        "PartNumberMarker": str(marker),
        "NextPartNumberMarker": str(page.last),
        "MaxParts": limit,
        "IsTruncated": page.truncated,
        "Parts": [_listed_part(part, upload) for part in page.parts],
        "Initiator": owner,
        "Owner": owner,
        "StorageClass": upload.storage_class,
    }
    if upload.checksum_algorithm:
        output["ChecksumAlgorithm"] = upload.checksum_algorithm
        output["ChecksumType"] = upload.checksum_type
    return output


def _listed_part(part: Part, upload: Upload) -> Output:
    return {
        "PartNumber": part.number,
        "LastModified": part.modified_ns,
        "ETag": f'"{part.etag}"',
        "Size": part.size,
        **_part_checksum(part, upload),
    }


def _part_checksum(part: Part, upload: Upload) -> Output:
    """The checksum member of a part; none for the default checksum, which S3 shows only of the object that is made."""
    return {f"Checksum{upload.checksum_algorithm}": part.checksum} if upload.checksum_algorithm else {}
