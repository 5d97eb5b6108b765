"""Buckets: list, create, find, delete, place, and the state of versioning."""

from __future__ import annotations

import contextlib

from tigrislike.metadata.bounded import STRONG
from tigrislike.metadata.errors import BucketNotEmpty, NoSuchUpload
from tigrislike.metadata.placing import LOCAL
from tigrislike.metadata.records import Bucket
from tigrislike.s3api.context import Context
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.listing_tokens import open_token, seal_token
from tigrislike.s3api.operations import Input, Output, operation
from tigrislike.s3api.operations.tagging import TAGGING, tagging_document

MAX_BUCKETS = 10_000  # https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListBuckets.html
_BUCKET_ACLS = {"private": False, "public-read": True}
READ_MODE = "x-tigrislike-read-mode"  # a header of our own: S3's model has none for it
_GRANTS = ("GrantFullControl", "GrantRead", "GrantReadACP", "GrantWrite", "GrantWriteACP")


@operation("ListBuckets")
async def list_buckets(ctx: Context, inp: Input) -> Output:
    limit = inp.get("MaxBuckets", MAX_BUCKETS)
    if not 1 <= limit <= MAX_BUCKETS:
        raise S3Error(
            "InvalidArgument",
            f"Argument max-buckets must be an integer between 1 and {MAX_BUCKETS}",
            extra={"ArgumentName": "max-buckets", "ArgumentValue": str(limit)},
        )
    identity = ctx.request.identity
    prefix = inp.get("Prefix", "")
    token = inp.get("ContinuationToken", "")
    after = open_token(ctx.token_key, "buckets", token, "continuation-token") if token else ""
    region = inp.get("BucketRegion", "")
    buckets: list[Bucket] = []
    more = ""
    if region in ("", ctx.settings.region):
        buckets, more = await ctx.metadata.list_buckets(
            identity.owner, bucket_scope=identity.bucket, prefix=prefix, after=after, limit=limit
        )
    output: Output = {
        "Owner": ctx.owner(identity.owner),
        "Buckets": [
            {"Name": bucket.name, "CreationDate": bucket.created_ns, "BucketRegion": ctx.settings.region}
            for bucket in buckets
        ],
    }
    if prefix:
        output["Prefix"] = prefix
    if more:
        output["ContinuationToken"] = seal_token(ctx.token_key, "buckets", more)
    return output


def canned_acl(acl: str) -> bool:
    """Whether a bucket with this canned ACL is public. Raises S3Error: NotImplemented."""
    if acl not in _BUCKET_ACLS:
        raise S3Error("NotImplemented", f"The canned ACL {acl} is not implemented; private and public-read are.")
    return _BUCKET_ACLS[acl]


@operation("CreateBucket")
async def create_bucket(ctx: Context, inp: Input) -> Output:
    public = canned_acl(inp.get("ACL", "private"))
    if any(inp.get(grant) for grant in _GRANTS):
        raise S3Error("AccessControlListNotSupported")
    if inp.get("ObjectLockEnabledForBucket"):
        raise S3Error("NotImplemented", "Object Lock is not implemented.")
    tags = inp.get("CreateBucketConfiguration", {}).get("Tags")
    name = inp["Bucket"]
    await ctx.metadata.create_bucket(
        name,
        ctx.request.identity.owner,
        public=public,
        read_mode=ctx.request.headers.get(READ_MODE, STRONG),
        region_policy=inp.get("Regions", ""),
        durability=inp.get("Durability", LOCAL),
        documents={TAGGING: tagging_document({"TagSet": tags})} if tags else {},
    )
    return {"Location": f"/{name}"}


@operation("HeadBucket")
async def head_bucket(ctx: Context, inp: Input) -> Output:
    bucket = ctx.bucket
    return {
        "BucketRegion": ctx.settings.region,
        "AccessPointAlias": False,
        "Regions": bucket.region_policy or None,
        "Durability": bucket.durability if bucket.durability != LOCAL else None,
        "Headers": [(READ_MODE.encode(), bucket.read_mode.encode())],
    }


@operation("DeleteBucket")
async def delete_bucket(ctx: Context, inp: Input) -> Output:
    try:
        await ctx.metadata.delete_bucket(ctx.bucket.name)
    except BucketNotEmpty:
        # Only objects keep a bucket: what was begun and never completed goes with it. An object that comes in between
        # keeps the bucket all the same, though not those uploads.
        page = await ctx.metadata.list_versions(ctx.bucket, limit=1)
        if page.entries:
            raise
        await _abort_uploads(ctx)
        await ctx.metadata.delete_bucket(ctx.bucket.name)
    return {}


async def _abort_uploads(ctx: Context) -> None:
    while True:
        page = await ctx.metadata.list_uploads(ctx.bucket)
        for key, upload in page.entries:
            with contextlib.suppress(NoSuchUpload):  # its owner completed or aborted it meanwhile
                await ctx.metadata.abort_upload(ctx.bucket, key, upload.upload_id)
        if not page.truncated:
            return


@operation("GetBucketLocation")
async def get_bucket_location(ctx: Context, inp: Input) -> Output:
    # S3 leaves the constraint of its first region empty, and clients map empty back to it.
    region = ctx.settings.region
    return {} if region == "us-east-1" else {"LocationConstraint": region}


@operation("GetBucketVersioning")
async def get_bucket_versioning(ctx: Context, inp: Input) -> Output:
    return {"Status": ctx.bucket.versioning} if ctx.bucket.versioning else {}


@operation("PutBucketVersioning")
async def put_bucket_versioning(ctx: Context, inp: Input) -> Output:
    configuration = inp["VersioningConfiguration"]
    if inp.get("MFA") or configuration.get("MFADelete") == "Enabled":
        raise S3Error("NotImplemented", "MFA delete is not implemented.")
    status = configuration.get("Status")
    if status is None:
        raise S3Error(
            "IllegalVersioningConfigurationException",
            "The Versioning element must be specified",
        )
    await ctx.metadata.set_versioning(ctx.bucket.name, status)
    return {}
