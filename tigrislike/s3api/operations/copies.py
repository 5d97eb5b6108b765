"""Copies: CopyObject, and finding the source that CopyObject and UploadPartCopy share."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

import msgspec

from tigrislike.metadata import Bucket, Draft, Found, ObjectVersion, copy_draft
from tigrislike.s3api.attributes import object_headers, object_tags, refuse_unsupported, user_metadata
from tigrislike.s3api.authorisation import authorise_bucket, authorise_name
from tigrislike.s3api.context import Context
from tigrislike.s3api.errors import S3Error, invalid_argument
from tigrislike.s3api.ingest import hash_object
from tigrislike.s3api.operations import Input, Output, operation
from tigrislike.s3api.operations.objects import read_condition, write_condition

MAX_COPY_BYTES = 5 * 1024**3  # https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html


@dataclass(frozen=True)
class Source:
    """The object version that a copy reads: its bucket, key, the version asked for, and what was found."""

    bucket: Bucket
    key: str
    version_id: str | None
    found: Found


def parse_copy_source(header: str) -> tuple[str, str, str | None]:
    """Bucket, key and version id of an `x-amz-copy-source`: `[/]bucket/key[?versionId=id]`, percent-encoded.

    Raises:
        S3Error: InvalidArgument where it names no bucket and key.
    """
    path, _, query = header.partition("?versionId=")
    bucket, _, key = unquote(path, errors="strict").removeprefix("/").partition("/")
    if not bucket or not key:
        raise invalid_argument(
            "Copy Source must mention the source bucket and key: sourcebucket/sourcekey", "x-amz-copy-source", header
        )
    return bucket, key, query or None


async def find_source(ctx: Context, inp: Input) -> Source:
    """The source of a copy, which the caller may read and whose conditions hold.

    Raises:
        S3Error: AccessDenied, PreconditionFailed, and what reading the object would answer.
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
    found = await ctx.metadata.find_object(bucket, key, version_id)
    condition = read_condition(inp, "CopySource")
    if condition is not None and not condition.holds(found.version.etag, found.version.stamp):
        raise S3Error("PreconditionFailed")
    return Source(bucket, key, version_id, found)


@operation("CopyObject")
async def copy_object(ctx: Context, inp: Input) -> Output:
    refuse_unsupported(inp)
    source = await find_source(ctx, inp)
    version = source.found.version
    replace = inp.get("MetadataDirective") == "REPLACE"
    to_itself = source.bucket.id == ctx.bucket.id and source.key == inp["Key"] and source.version_id is None
    if to_itself and not (
        replace or inp.get("StorageClass") or inp.get("WebsiteRedirectLocation") or inp.get("ChecksumAlgorithm")
    ):
        raise S3Error(
            "InvalidRequest",
            "This copy request is illegal because it is trying to copy an object to itself without changing the "
            "object's metadata, storage class, website redirect location or encryption attributes.",
        )
    if version.size > MAX_COPY_BYTES:
        raise S3Error(
            "InvalidRequest",
            f"The specified copy source is larger than the maximum allowable size for a copy source: {MAX_COPY_BYTES}",
        )
    draft = _draft(inp, version, replace)
    algorithm = inp.get("ChecksumAlgorithm")
    if algorithm and algorithm != version.checksum_algorithm:
        digests = await hash_object(ctx, source.found, 0, version.size, algorithm)
        draft = msgspec.structs.replace(
            draft, checksum_algorithm=algorithm, checksum_type="FULL_OBJECT", checksum=digests.base64(algorithm)
        )
    copied = await ctx.metadata.copy_object(
        source.bucket, source.key, version, ctx.bucket, inp["Key"], draft, write_condition(inp)
    )
    result: Output = {"ETag": f'"{copied.etag}"', "LastModified": copied.stamp}
    if copied.checksum_algorithm:
        result[f"Checksum{copied.checksum_algorithm}"] = copied.checksum
        result["ChecksumType"] = copied.checksum_type
    output: Output = {"CopyObjectResult": result}
    if source.bucket.versioning:
        output["CopySourceVersionId"] = version.version_id
    if ctx.bucket.versioning == "Enabled":
        output["VersionId"] = copied.version_id
    return output


def _draft(inp: Input, version: ObjectVersion, replace: bool) -> Draft:
    """The copy to be: the source's, but for what the request replaces."""
    draft = copy_draft(version)
    changes: dict[str, object] = {"storage_class": inp.get("StorageClass", "STANDARD")}
    if replace:
        changes.update(
            content_type=inp.get("ContentType", ""), headers=object_headers(inp), metadata=user_metadata(inp)
        )
    else:
        # A copy never takes its source's redirect along.
        headers = {name: value for name, value in version.headers.items() if name != "WebsiteRedirectLocation"}
        if "WebsiteRedirectLocation" in inp:
            headers["WebsiteRedirectLocation"] = inp["WebsiteRedirectLocation"]
        changes["headers"] = headers
    if inp.get("TaggingDirective") == "REPLACE":
        changes["tags"] = object_tags(inp)
    return msgspec.structs.replace(draft, **changes)
