"""Reads that look through a bucket to its shadow, where the bucket itself has nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from tigrislike.metadata.errors import NoSuchKey
from tigrislike.metadata.records import SHADOWED, Bucket, Found, ObjectVersion
from tigrislike.s3api.context import Context
from tigrislike.s3api.extensions import BLOCK_SHADOW
from tigrislike.s3api.operations import Output

T = TypeVar("T")


async def looking_through(ctx: Context, bucket: Bucket, key: str, read: Callable[[], Awaitable[T]]) -> T:
    """What `read` gives of a key; where there is none, once more after the bucket has adopted its shadow's object.

    Raises:
        NoSuchKey: neither has it. OriginError. What `read` raises.
    """
    try:
        return await read()
    except NoSuchKey:
        if not bucket.shadow:
            raise
        regional = ctx.services.regional
        if regional is None or not await regional.shadows.find(bucket, key):
            raise
    return await read()


async def find_through(ctx: Context, bucket: Bucket, key: str, version_id: str | None) -> Found:
    """A version and where its bytes are. Raises as `Metadata.find_object`; OriginError."""

    async def find() -> Found:
        return await ctx.metadata.find_object(bucket, key, version_id)

    return await looking_through(ctx, bucket, key, find) if version_id is None else await find()


async def adopt_first(ctx: Context, bucket: Bucket, key: str) -> None:
    """Have a key's object, if only the shadow has it, before something depends on whether there is one."""
    if bucket.shadow and ctx.services.regional is not None:
        await ctx.services.regional.shadows.find(bucket, key)


async def read_source(ctx: Context, version: ObjectVersion) -> Output:
    """The member that says that a version is read from the bucket's shadow; empty where it is not."""
    if ctx.bucket.shadow and version.content:
        content = await ctx.metadata.content(version.content)
        if content is not None and content.elsewhere == SHADOWED:
            return {"ReadSource": BLOCK_SHADOW}
    return {}
