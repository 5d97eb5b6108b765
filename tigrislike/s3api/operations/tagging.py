"""Tags of objects and of buckets."""

from __future__ import annotations

import msgspec

from tigrislike.s3api.context import Context
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.operations import Input, Output, operation
from tigrislike.s3api.shadowing import adopt_first
from tigrislike.s3api.tags import BUCKET_TAGS, OBJECT_TAGS, tag_set, tags_of

TAGGING = "tagging"  # the kind of a bucket's configuration document


def tagging_document(tagging: Input) -> bytes:
    """What is kept of a bucket's Tagging. Raises as `check_tags`."""
    return msgspec.json.encode(tags_of(tagging, BUCKET_TAGS))


def _version(bucket_versioned: bool, version_id: str) -> Output:
    return {"VersionId": version_id} if bucket_versioned else {}


@operation("GetObjectTagging")
async def get_object_tagging(ctx: Context, inp: Input) -> Output:
    await adopt_first(ctx, ctx.bucket, inp["Key"])
    version = await ctx.metadata.head_object(ctx.bucket, inp["Key"], inp.get("VersionId"))
    return {"TagSet": tag_set(version.tags), **_version(bool(ctx.bucket.versioning), version.version_id)}


@operation("PutObjectTagging")
async def put_object_tagging(ctx: Context, inp: Input) -> Output:
    tags = tags_of(inp["Tagging"], OBJECT_TAGS)
    await adopt_first(ctx, ctx.bucket, inp["Key"])
    version = await ctx.metadata.put_object_tags(ctx.bucket, inp["Key"], inp.get("VersionId"), tags)
    return _version(bool(ctx.bucket.versioning), version.version_id)


@operation("DeleteObjectTagging")
async def delete_object_tagging(ctx: Context, inp: Input) -> Output:
    await adopt_first(ctx, ctx.bucket, inp["Key"])
    version = await ctx.metadata.put_object_tags(ctx.bucket, inp["Key"], inp.get("VersionId"), {})
    return _version(bool(ctx.bucket.versioning), version.version_id)


@operation("GetBucketTagging")
async def get_bucket_tagging(ctx: Context, inp: Input) -> Output:
    document = await ctx.metadata.bucket_config(ctx.bucket.name, TAGGING)
    if document is None:
        raise S3Error("NoSuchTagSet", extra={"BucketName": ctx.bucket.name})
    return {"TagSet": tag_set(msgspec.json.decode(document, type=dict[str, str]))}


@operation("PutBucketTagging")
async def put_bucket_tagging(ctx: Context, inp: Input) -> Output:
    await ctx.metadata.put_bucket_config(ctx.bucket.name, TAGGING, tagging_document(inp["Tagging"]))
    return {}


@operation("DeleteBucketTagging")
async def delete_bucket_tagging(ctx: Context, inp: Input) -> Output:
    await ctx.metadata.delete_bucket_config(ctx.bucket.name, TAGGING)
    return {}
