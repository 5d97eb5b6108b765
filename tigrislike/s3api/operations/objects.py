"""Objects: put, get, head, delete one or a thousand, and the attributes of one."""

from __future__ import annotations

from typing import Any

from tigrislike.metadata import MetadataError, NotModified
from tigrislike.metadata.conditions import check_read
from tigrislike.metadata.errors import NoSuchKey
from tigrislike.metadata.records import Draft, Found, ObjectVersion, ReadCondition, WriteCondition
from tigrislike.s3api.attributes import (
    describe,
    object_class,
    object_headers,
    object_regions,
    object_tags,
    refuse_unsupported,
    stored_checksum,
    user_metadata,
)
from tigrislike.s3api.context import Context
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.extensions import BLOCK_SHADOW
from tigrislike.s3api.ingest import ingest
from tigrislike.s3api.operations import Input, Output, operation
from tigrislike.s3api.ranges import content_range, if_range_holds, parse_range
from tigrislike.s3api.reading import extents_of
from tigrislike.s3api.shadowing import adopt_first, find_through, looking_through, read_source

MAX_PUT_BYTES = 5 * 1024**3  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MAX_DELETE_KEYS = 1000
_OVERRIDES = (
    ("ResponseCacheControl", "CacheControl"),
    ("ResponseContentDisposition", "ContentDisposition"),
    ("ResponseContentEncoding", "ContentEncoding"),
    ("ResponseContentLanguage", "ContentLanguage"),
    ("ResponseContentType", "ContentType"),
    ("ResponseExpires", "Expires"),
)
# What a cache renews its copy by: https://www.rfc-editor.org/rfc/rfc9110#section-15.4.5
_OF_NOT_MODIFIED = ("ETag", "LastModified", "CacheControl", "Expires", "VersionId")


def write_condition(inp: Input) -> WriteCondition | None:
    """The condition of a write, None where there is none."""
    if_match, if_none_match = inp.get("IfMatch"), inp.get("IfNoneMatch")
    if if_match is None and if_none_match is None:
        return None
    if if_none_match is not None and if_none_match.strip('"') != "*":
        raise S3Error(
            "NotImplemented",
            "A header you provided implies functionality that is not implemented",
            extra={
                "Header": "If-None-Match",
                "additionalMessage": "We don't accept the provided value of If-None-Match",
            },
        )
    if if_match is not None and if_none_match is not None:
        raise S3Error("InvalidRequest", "Only one of If-Match and If-None-Match may be given.")
    return WriteCondition(if_match=if_match, if_none_match=if_none_match)


@operation("PutObject")
async def put_object(ctx: Context, inp: Input) -> Output:
    refuse_unsupported(inp)
    if "WriteOffsetBytes" in inp:
        raise S3Error("NotImplemented", "Appending to an object is not implemented.")
    condition = write_condition(inp)
    storage_class = object_class(inp)
    headers, metadata, tags = object_headers(inp), user_metadata(inp), object_tags(inp)
    regions = object_regions(ctx.metadata.regions, inp)
    if condition is not None:
        await adopt_first(ctx, ctx.bucket, inp["Key"])
    async with ingest(ctx, ctx.payload, MAX_PUT_BYTES, regions=regions) as received:
        version = await received.commit(
            ctx.metadata.put_object(
                ctx.bucket,
                inp["Key"],
                Draft(
                    size=received.size,
                    etag=received.etag,
                    storage_class=storage_class,
                    checksum_algorithm=received.checksum_algorithm,
                    checksum_type="FULL_OBJECT",
                    checksum=received.checksum,
                    content_type=inp.get("ContentType", ""),
                    headers=headers,
                    metadata=metadata,
                    tags=tags,
                    inline=received.inline,
                    blob=received.blob,
                    others=received.others,
                    regions=regions,
                    elsewhere=received.elsewhere,
                ),
                condition,
            )
        )
    output: Output = {"ETag": f'"{version.etag}"', **stored_checksum(version)}
    if ctx.bucket.versioning == "Enabled":
        output["VersionId"] = version.version_id
    return output


def read_condition(inp: Input, prefix: str = "") -> ReadCondition | None:
    """The condition of a read (or, with the prefix `CopySource`, of a copy's source), None where there is none."""
    names = [f"{prefix}{name}" for name in ("IfMatch", "IfNoneMatch", "IfModifiedSince", "IfUnmodifiedSince")]
    if not any(name in inp for name in names):
        return None
    since, until = inp.get(names[2]), inp.get(names[3])
    return ReadCondition(
        if_match=inp.get(names[0]),
        if_none_match=inp.get(names[1]),
        if_modified_since_s=None if since is None else int(since.timestamp()),
        if_unmodified_since_s=None if until is None else int(until.timestamp()),
    )


@operation("GetObject")
async def get_object(ctx: Context, inp: Input) -> Output:
    return await _get(ctx, inp, body=True)


@operation("HeadObject")
async def head_object(ctx: Context, inp: Input) -> Output:
    return await _get(ctx, inp, body=False)


async def _get(ctx: Context, inp: Input, *, body: bool) -> Output:
    if ctx.request.identity.anonymous and "VersionId" in inp:
        # Public is what is current: what its owner has replaced or deleted is not.
        raise S3Error("AccessDenied")
    refuse_unsupported(inp)
    versioned = bool(ctx.bucket.versioning)
    part_number = inp.get("PartNumber")
    range_header = inp.get("Range")
    if part_number is not None and range_header is not None:
        raise S3Error("InvalidRequest", "Cannot specify both Range header and partNumber query parameter")
    found = None
    whole = body or part_number is not None
    output: Output = {}
    if whole:
        found = await _looked_up(ctx, inp)
        version = found.version
    else:
        version = await _looked_at(ctx, inp, output)
    if ctx.bucket.shadow and not output:
        output = await read_source(ctx, version)
    describe(version, versioned=versioned, output=output)
    for member, overridden in _OVERRIDES:
        if member in inp:
            if ctx.request.identity.anonymous:
                raise S3Error(
                    "InvalidRequest", "Request specific response headers cannot be used for anonymous GET requests."
                )
            output[overridden] = inp[member]
    condition = read_condition(inp)
    if condition is not None:
        try:
            check_read(condition, version)
        except NotModified:
            return {member: output[member] for member in _OF_NOT_MODIFIED if member in output} | {"StatusCode": 304}

    start, stop = 0, version.size
    partial = False
    checksum = stored_checksum(version)
    if part_number is not None:
        assert found is not None
        start, stop = _part_range(found, part_number)
        partial = version.size > 0
        if version.uploaded_parts:
            output["PartsCount"] = version.uploaded_parts
            checksum = _part_checksum(found, part_number)
    elif range_header is not None and _same_as_before(ctx, version):
        span = parse_range(range_header, version.size)
        if span is not None:
            start, stop = span
            partial = True
            if span != (0, version.size):
                checksum = {}
    if partial:
        output["ContentRange"] = content_range(start, stop, version.size)
        output["StatusCode"] = 206
    if inp.get("ChecksumMode") == "ENABLED":
        output.update(checksum)
    output["ContentLength"] = stop - start
    if body:
        assert found is not None
        inline = found.inline
        output["Body"] = inline[start:stop] if inline is not None else list(extents_of(found, start, stop)) or b""
    return output


async def _looked_up(ctx: Context, inp: Input) -> Found:
    """The version that a request names and where its bytes are, also where only the bucket's shadow has it."""
    key, version_id = inp["Key"], inp.get("VersionId")

    async def find() -> Found:
        return await ctx.objects.find_object(ctx.bucket, key, version_id, prove=True)

    if version_id is not None or not ctx.bucket.shadow:
        return await find()
    return await looking_through(ctx, ctx.bucket, key, find)


async def _looked_at(ctx: Context, inp: Input, output: Output) -> ObjectVersion:
    """The version that a request names; of what only the bucket's shadow has nothing is kept, and `output` says so."""
    key, version_id = inp["Key"], inp.get("VersionId")
    try:
        return await ctx.objects.head_object(ctx.bucket, key, version_id, prove=True)
    except NoSuchKey:
        regional = ctx.services.regional
        if regional is None or version_id is not None or not ctx.bucket.shadow:
            raise
        shadowed = await regional.shadows.head(ctx.bucket, key)
        if shadowed is None:
            raise
        if inp.get("ScheduleMigration"):
            await regional.shadows.find(ctx.bucket, key)
        output["ReadSource"] = BLOCK_SHADOW
        return shadowed


def _same_as_before(ctx: Context, version: ObjectVersion) -> bool:
    """Whether the object is still the one that the client has the rest of: S3 heeds If-Range, which its model lacks."""
    header = ctx.request.headers.get("if-range")
    return header is None or if_range_holds(header, version.etag, version.stamp // 1_000_000_000)


def _part_range(found: Any, number: int) -> tuple[int, int]:
    """`(start, stop)` of a part of a multipart object; an object put whole has one part."""
    if not found.version.uploaded_parts:
        if number != 1:
            raise _no_such_part(number)
        return 0, found.version.size
    start = 0
    for part in found.parts:
        if part.number == number:
            return start, start + part.size
        start += part.size
    raise _no_such_part(number)


def _part_checksum(found: Any, number: int) -> Output:
    """The checksum of one part of a multipart object, empty where it was uploaded without one."""
    version = found.version
    for part in found.parts:
        if part.number == number and part.checksum and version.checksum_algorithm:
            return {f"Checksum{version.checksum_algorithm}": part.checksum, "ChecksumType": version.checksum_type}
    return {}


def _no_such_part(number: int) -> S3Error:
    return S3Error("InvalidPartNumber", extra={"PartNumberRequested": str(number)})


@operation("DeleteObject")
async def delete_object(ctx: Context, inp: Input) -> Output:
    condition = _delete_condition(inp)
    if condition is not None:
        await adopt_first(ctx, ctx.bucket, inp["Key"])
    deletion = await ctx.metadata.delete_object(ctx.bucket, inp["Key"], inp.get("VersionId"), condition)
    return _deletion(deletion)


def _delete_condition(inp: Input) -> WriteCondition | None:
    if_match = inp.get("IfMatch") or inp.get("ETag")
    modified = inp.get("IfMatchLastModifiedTime") or inp.get("LastModifiedTime")
    size = inp.get("IfMatchSize", inp.get("Size"))
    if if_match is None and modified is None and size is None:
        return None
    return WriteCondition(
        if_match=if_match,
        if_match_last_modified_s=None if modified is None else int(modified.timestamp()),
        if_match_size=size,
    )


def _deletion(deletion: Any) -> Output:
    output: Output = {}
    if deletion.version_id is not None:
        output["VersionId"] = deletion.version_id
    if deletion.delete_marker:
        output["DeleteMarker"] = True
    return output


@operation("DeleteObjects")
async def delete_objects(ctx: Context, inp: Input) -> Output:
    delete = inp["Delete"]
    objects = delete.get("Objects", ())
    if not 1 <= len(objects) <= MAX_DELETE_KEYS:
        raise S3Error("MalformedXML")
    targets = [(item["Key"], item.get("VersionId"), _delete_condition(item)) for item in objects]
    for key, _, condition in targets:
        if condition is not None:
            await adopt_first(ctx, ctx.bucket, key)
    results = await ctx.metadata.delete_objects(ctx.bucket, targets)
    deleted: list[Output] = []
    errors: list[Output] = []
    for item, result in zip(objects, results, strict=True):
        named: Output = {"Key": item["Key"]}
        if "VersionId" in item:
            named["VersionId"] = item["VersionId"]
        if isinstance(result, MetadataError):
            error = S3Error.of(result)
            errors.append({**named, "Code": error.code, "Message": error.message})
            continue
        if result.delete_marker:
            named["DeleteMarker"] = True
            named["DeleteMarkerVersionId"] = result.version_id
        deleted.append(named)
    output: Output = {"Errors": errors}
    if not delete.get("Quiet"):
        output["Deleted"] = deleted
    return output


_ATTRIBUTES = frozenset({"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"})
_PAGE_PARTS = 1000


@operation("GetObjectAttributes")
async def get_object_attributes(ctx: Context, inp: Input) -> Output:
    refuse_unsupported(inp)
    wanted = {name.strip() for names in inp.get("ObjectAttributes", ()) for name in names.split(",")}
    if not wanted or not wanted <= _ATTRIBUTES:
        raise S3Error(
            "InvalidArgument",
            "Invalid attribute name specified.",
            extra={"ArgumentName": "x-amz-object-attributes", "ArgumentValue": ",".join(sorted(wanted - _ATTRIBUTES))},
        )
    found = await find_through(ctx, ctx.bucket, inp["Key"], inp.get("VersionId"))
    version = found.version
    output: Output = {"LastModified": version.stamp}
    if ctx.bucket.versioning:
        output["VersionId"] = version.version_id
    if "ETag" in wanted:
        output["ETag"] = version.etag
    if "StorageClass" in wanted:
        output["StorageClass"] = version.storage_class
    if "ObjectSize" in wanted:
        output["ObjectSize"] = version.size
    if "Checksum" in wanted and version.checksum_algorithm:
        # Without the number of parts, unlike everywhere else (floci-io/floci#3093 has S3's answers).
        output["Checksum"] = {name: value.partition("-")[0] for name, value in stored_checksum(version).items()}
    if "ObjectParts" in wanted and version.uploaded_parts:
        output["ObjectParts"] = _object_parts(found, inp)
    return output


def _object_parts(found: Any, inp: Input) -> Output:
    limit = min(inp.get("MaxParts", _PAGE_PARTS), _PAGE_PARTS)
    marker = int(inp.get("PartNumberMarker", 0))
    algorithm = found.version.checksum_algorithm
    rest = [part for part in found.parts if part.number > marker]
    page = rest[:limit]
    parts: Output = {
        "TotalPartsCount": found.version.uploaded_parts,
        "PartNumberMarker": str(marker),
        "MaxParts": limit,
        "IsTruncated": len(rest) > len(page),
        "NextPartNumberMarker": str(page[-1].number if page else marker),
    }
    # S3 lists the parts only where the object's checksum is made of theirs (localstack/localstack#12764).
    if found.version.checksum_type == "COMPOSITE":
        parts["Parts"] = [
            {"PartNumber": part.number, "Size": part.size, f"Checksum{algorithm}": part.checksum} for part in page
        ]
    return parts
