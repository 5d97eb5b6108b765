"""What CopyObject reads of its source, and when: nothing for a copy that is refused, and one version only."""

from __future__ import annotations

import asyncio
import hashlib
from base64 import b64encode
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.metadata.world import open_world, small
from tigrislike.metadata import Metadata, PreconditionFailed
from tigrislike.s3api.authorisation import Identity
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.operations.copies import copy_object

COPY = {"CopySource": "bucket/k", "Key": "copy", "ChecksumAlgorithm": "SHA256"}


class Watched:
    """A metadata store in which the source is overwritten `times` times, each time that it has been looked up to be
    read."""

    def __init__(self, metadata: Metadata, times: int = 0) -> None:
        self._metadata = metadata
        self._times = times
        self.looked_up = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._metadata, name)

    async def find_object(self, bucket: Any, key: str, version_id: str | None) -> Any:
        found = await self._metadata.find_object(bucket, key, version_id)
        self.looked_up += 1
        if self.looked_up <= self._times:
            await self._metadata.put_object(bucket, key, small(b"newer"))
        return found


async def context(metadata: Metadata, watched: Watched) -> Any:
    bucket = await metadata.create_bucket("bucket", "me")
    await metadata.put_object(bucket, "k", small(b"data"))
    request = SimpleNamespace(identity=Identity("key", "me", ""))
    services = SimpleNamespace(regional=None)
    return SimpleNamespace(metadata=watched, bucket=bucket, blocks=None, request=request, services=services)


def test_a_source_that_changes_while_it_is_hashed_is_a_conflict(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world("memory", tmp_path) as metadata:
            ctx = await context(metadata, Watched(metadata, times=1))
            with pytest.raises(S3Error) as caught:
                await copy_object(ctx, COPY)
            assert caught.value.code == "ConditionalRequestConflict"
            # Tried again, as it asks for, it copies what is there now.
            copied = (await copy_object(ctx, COPY))["CopyObjectResult"]
            assert copied["ChecksumSHA256"] == b64encode(hashlib.sha256(b"newer").digest()).decode()

    asyncio.run(main())


def test_a_copy_whose_condition_fails_reads_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world("memory", tmp_path) as metadata:
            watched = Watched(metadata)
            ctx = await context(metadata, watched)
            with pytest.raises(PreconditionFailed):
                await copy_object(ctx, {**COPY, "CopySourceIfMatch": '"another"'})
            assert watched.looked_up == 0
            await copy_object(ctx, COPY)
            assert watched.looked_up == 1
            # The copy has the checksum that is asked for: a copy of it has nothing to read.
            await copy_object(ctx, {**COPY, "CopySource": "bucket/copy", "Key": "again"})
            assert watched.looked_up == 1

    asyncio.run(main())
