"""What becomes of stored bytes when the transaction that should name them fails: gone, or left to the sweeper."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tigrislike.bytecache import BlockStore
from tigrislike.metadata import NoSuchBucket
from tigrislike.metadata.kv import (
    AmbiguousCommit,
    CommitUnknown,
    DiskFull,
    EngineBusy,
    EngineError,
    NotCommitted,
    StoreSealed,
    TransactionTimedOut,
)
from tigrislike.metadata.placing import Regions
from tigrislike.metadata.records import Bucket
from tigrislike.s3api.ingest import ingest_bytes


async def places(blocks: BlockStore) -> list[str]:
    return [str(blob.place) async for blob in blocks.blobs()]


def places_after(root: Path, error: BaseException | None) -> list[str]:
    async def transaction() -> None:
        if error is not None:
            raise error

    async def main() -> list[str]:
        blocks = BlockStore.open(root)
        try:
            metadata = SimpleNamespace(regions=Regions())
            ctx: Any = SimpleNamespace(blocks=blocks, metadata=metadata, bucket=Bucket(b"i" * 16, "b", "me", 0))
            expected = contextlib.nullcontext() if error is None else pytest.raises(type(error))
            with expected:
                async with ingest_bytes(ctx, b"data" * 10_000, "CRC32") as received:
                    assert await places(blocks) == ["incoming"]
                    await received.commit(transaction())
            return await places(blocks)
        finally:
            blocks.close()

    return asyncio.run(main())


def test_committed_bytes_move_home(tmp_path: Path) -> None:
    assert places_after(tmp_path, None) == ["home"]


@pytest.mark.parametrize(
    "error",
    [NoSuchBucket("b"), NotCommitted("x"), EngineBusy("x"), DiskFull("x"), StoreSealed("moved")],
    ids=lambda error: type(error).__name__,
)
def test_bytes_are_gone_where_nothing_was_committed(tmp_path: Path, error: Exception) -> None:
    assert places_after(tmp_path, error) == []


@pytest.mark.parametrize(
    "error",
    [AmbiguousCommit("x"), CommitUnknown("x"), TransactionTimedOut("x"), EngineError("x"), asyncio.CancelledError()],
    ids=lambda error: type(error).__name__,
)
def test_bytes_stay_where_the_outcome_is_open(tmp_path: Path, error: BaseException) -> None:
    assert places_after(tmp_path, error) == ["incoming"]
