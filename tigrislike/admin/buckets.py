"""`tigrislike buckets`: what a bucket's record says of how its objects are kept and read, changed in the database.

It works beside running nodes and without them: they notice as they notice any change of a bucket.
"""

from __future__ import annotations

import asyncio

from tigrislike.admin import nodes
from tigrislike.admin.noting import by_command
from tigrislike.config import Settings
from tigrislike.metadata import Bucket, MetadataError
from tigrislike.metadata.kv import EngineError


class BucketError(Exception):
    """The bucket was not changed; the message is for the person who asked."""


def change(settings: Settings, name: str, changes: dict[str, object]) -> Bucket:
    """Replace fields of the bucket's record, all or none, and return it as it is then.

    Raises:
        BucketError: with the S3 error code and message, or what is wrong with the store.
    """

    async def changed() -> Bucket:
        told = {"bucket": name, **changes}
        async with nodes.opened(settings) as metadata, by_command(metadata, settings, "set_bucket", told):
            return await metadata.change_bucket(name, **changes)

    try:
        return asyncio.run(changed())
    except MetadataError as error:
        raise BucketError(f"{error.code}: {error}") from error
    except (EngineError, OSError, ValueError) as error:
        raise BucketError(str(error)) from error
