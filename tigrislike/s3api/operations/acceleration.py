"""Acceleration: S3 speeds up a bucket's transfers; here, as with Tigris, what is written to it is fetched into the
caches of every region at once, ahead of its first read there."""

from __future__ import annotations

from tigrislike.metadata.homes import ACCELERATION
from tigrislike.s3api.context import Context
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.operations import Input, Output, operation


@operation("GetBucketAccelerateConfiguration")
async def get_bucket_accelerate_configuration(ctx: Context, inp: Input) -> Output:
    document = await ctx.metadata.bucket_config(ctx.bucket.name, ACCELERATION)
    return {} if document is None else {"Status": document.decode()}


@operation("PutBucketAccelerateConfiguration")
async def put_bucket_accelerate_configuration(ctx: Context, inp: Input) -> Output:
    status = inp["AccelerateConfiguration"].get("Status")
    if status is None:
        raise S3Error("MalformedXML")
    await ctx.metadata.put_bucket_config(ctx.bucket.name, ACCELERATION, status.encode())
    return {}
