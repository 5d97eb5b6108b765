"""Copies: CopyObject, and finding the source that CopyObject and UploadPartCopy share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import msgspec

from tigrislike.metadata.placing import Alive
from tigrislike.metadata.records import DEFAULT_CHECKSUM_ALGORITHM, Bucket, Draft, ObjectVersion, copy_draft
from tigrislike.s3api.attributes import (
    object_class,
    object_headers,
    object_regions,
    object_tags,
    refuse_unsupported,
    stored_checksum,
    user_metadata,
)
from tigrislike.s3api.authorisation import authorise_bucket, authorise_name
from tigrislike.s3api.context import Context
from tigrislike.s3api.errors import S3Error, invalid_argument
from tigrislike.s3api.ingest import hash_object, sharing
from tigrislike.s3api.operations import Input, Output, operation
from tigrislike.s3api.operations.objects import read_condition, write_condition
from tigrislike.s3api.shadowing import adopt_first

# What a copy of an object to itself may be there to change, beside what it replaces.
_CHANGES = ("StorageClass", "WebsiteRedirectLocation", "ChecksumAlgorithm", "Regions")
MAX_COPY_BYTES = 5 * 1024**3  # https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html


@dataclass(frozen=True)
class Source:
    """The object that a copy reads: its bucket, its key and the version asked for (None: the current one)."""

    bucket: Bucket
    key: str
    version_id: str | None


def parse_copy_source(header: str) -> tuple[str, str, str | None]:
    """Bucket, key and version id of an `x-amz-copy-source`: `[/]bucket/key[?versionId=id]`, percent-encoded.

    Raises:
        S3Error: InvalidArgument where it names no bucket and key, or an empty version id.
    """
    path, versioned, version_id = header.partition("?versionId=")
    bucket, _, key = unquote(path, errors="strict").removeprefix("/").partition("/")
    if not bucket or not key:
        raise invalid_argument(
            "Copy Source must mention the source bucket and key: sourcebucket/sourcekey", "x-amz-copy-source", header
        )
    if versioned and not version_id:
        raise invalid_argument("Version id cannot be the empty string", "x-amz-copy-source", header)
    return bucket, key, version_id or None


async def find_source(ctx: Context, inp: Input) -> Source:
    """Where a copy reads from; the caller may read there.

    Raises:
        S3Error: InvalidArgument, AccessDenied, NoSuchBucket.
    """
    try:
        name, key, version_id = parse_copy_source(inp["CopySource"])
    except UnicodeDecodeError:
        raise invalid_argument("The copy source is not UTF-8", "x-amz-copy-source", inp["CopySource"]) from None
    identity = ctx.request.identity
    authorise_name(identity, "GetObject", name)
    bucket = await ctx.metadata.bucket(name)
    authorise_bucket(identity, "GetObject", bucket)
    expected = inp.get("ExpectedSourceBucketOwner")
    if expected is not None and expected != ctx.owner(bucket.owner)["ID"]:
        raise S3Error("AccessDenied")
    return Source(bucket, key, version_id)


@operation("CopyObject")
async def copy_object(ctx: Context, inp: Input) -> Output:
    refuse_unsupported(inp)
    source = await find_source(ctx, inp)
    replace = inp.get("MetadataDirective") == "REPLACE"
    replacements = _replacements(inp, replace) | {"regions": object_regions(ctx.metadata.regions, inp)}
    if (
        (source.bucket.id, source.key, source.version_id) == (ctx.bucket.id, inp["Key"], None)
        and not replace
        and not any(inp.get(name) for name in _CHANGES)
    ):
        raise S3Error(
            "InvalidRequest",
            "This copy request is illegal because it is trying to copy an object to itself without changing the "
            "object's metadata, storage class, website redirect location or encryption attributes.",
        )
    if source.version_id is None:
        await adopt_first(ctx, source.bucket, source.key)
    condition = write_condition(inp)
    if condition is not None:
        await adopt_first(ctx, ctx.bucket, inp["Key"])
    algorithm = inp.get("ChecksumAlgorithm", "")
    hashed: _Hashed | None = None

    def draft_from(version: ObjectVersion) -> Draft:
        check_copy_size(version.size)
        changes = dict(replacements)
        if not replace:
            # A copy never takes its source's redirect along.
            changes["headers"] = {**version.headers, **replacements["headers"]}
            if "WebsiteRedirectLocation" not in replacements["headers"]:
                changes["headers"].pop("WebsiteRedirectLocation", None)
        if _must_hash(version, algorithm):
            if hashed is None:
                raise _Unhashed
            if hashed.stamp != version.stamp:
                raise S3Error("ConditionalRequestConflict", "The source changed while it was being copied; try again.")
            changes.update(
                etag=hashed.etag,
                checksum_algorithm=hashed.algorithm,
                checksum_type="FULL_OBJECT",
                checksum=hashed.checksum,
            )
        return msgspec.structs.replace(copy_draft(version), **changes)

    async def copy(alive: Alive | None) -> tuple[ObjectVersion, ObjectVersion]:
        return await ctx.metadata.copy_object(
            (source.bucket, source.key, source.version_id),
            read_condition(inp, "CopySource"),
            ctx.bucket,
            inp["Key"],
            draft_from,
            condition,
            alive=alive,
        )

    try:
        version, copied = await sharing(ctx, copy)
    except _Unhashed:
        # Only now, because a copy whose conditions fail needs no bytes read.
        hashed = await _hash(ctx, source, algorithm)
        version, copied = await sharing(ctx, copy)
    output: Output = {
        "CopyObjectResult": {
            "ETag": f'"{copied.etag}"',
            "LastModified": copied.stamp,
            **stored_checksum(copied),
        }
    }
    if source.bucket.versioning:
        output["CopySourceVersionId"] = version.version_id
    if ctx.bucket.versioning == "Enabled":
        output["VersionId"] = copied.version_id
    return output


def check_copy_size(size: int) -> None:
    """Refuse to copy more in one request than S3 does.

    Raises:
        S3Error: InvalidRequest.
    """
    if size > MAX_COPY_BYTES:
        raise S3Error(
            "InvalidRequest",
            f"The specified copy source is larger than the maximum allowable size for a copy source: {MAX_COPY_BYTES}",
        )


def _replacements(inp: Input, replace: bool) -> dict[str, Any]:
    """The fields of the new version that the request sets, whatever the source says."""
    fields: dict[str, Any] = {"storage_class": object_class(inp), "headers": {}}
    if replace:
        fields.update(content_type=inp.get("ContentType", ""), headers=object_headers(inp), metadata=user_metadata(inp))
    elif "WebsiteRedirectLocation" in inp:
        fields["headers"] = object_headers({"WebsiteRedirectLocation": inp["WebsiteRedirectLocation"]})
    if inp.get("TaggingDirective") == "REPLACE":
        fields["tags"] = object_tags(inp)
    return fields


class _Unhashed(Exception):
    """The copy is to say of its bytes what only reading them all tells."""


@dataclass(frozen=True)
class _Hashed:
    stamp: int
    etag: str
    algorithm: str
    checksum: str


def _must_hash(version: ObjectVersion, algorithm: str) -> bool:
    """Whether a copy of `version` has another ETag or checksum than it.

    A copy is one object written whole: its ETag is the MD5 of its bytes and its checksum a direct one, whether or not
    its source came from a multipart upload. Without `algorithm` it keeps the source's.
    Source: S3 User Guide, "Checking object integrity in Amazon S3" and "Copying, moving, and renaming objects".
    """
    if version.uploaded_parts:
        return True
    return bool(algorithm) and (version.checksum_algorithm, version.checksum_type) != (algorithm, "FULL_OBJECT")


async def _hash(ctx: Context, source: Source, algorithm: str) -> _Hashed:
    """Read the source through for what its copy is to say."""
    found = await ctx.metadata.find_object(source.bucket, source.key, source.version_id)
    version = found.version
    check_copy_size(version.size)
    algorithm = algorithm or version.checksum_algorithm or DEFAULT_CHECKSUM_ALGORITHM
    digests = await hash_object(ctx, found, 0, version.size, algorithm)
    return _Hashed(version.stamp, digests.hex("MD5"), algorithm, digests.base64(algorithm))
