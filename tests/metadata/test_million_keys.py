"""A page costs the same in a bucket of a million keys as in one of ten thousand: counted in rows read, not in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tigrislike.metadata import Bucket, Draft, MasterKey, Metadata
from tigrislike.metadata.kv import open_engine
from tigrislike.metadata.objects import put_object

BATCH = 500


class CountingReads:
    """An engine that counts the rows and ranges that its reads ask for; everything else is the engine's own."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.ranges = 0
        self.rows = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def read(self, fn: Callable[..., Awaitable[Any]], *args: object) -> Any:
        async def counted(tr: Any) -> Any:
            return await fn(_Counting(tr, self), *args)

        return await self._engine.read(counted)


class _Counting:
    def __init__(self, tr: Any, counts: CountingReads) -> None:
        self._tr = tr
        self._counts = counts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tr, name)

    async def get_range(self, *args: Any, **kwargs: Any) -> Any:
        rows = await self._tr.get_range(*args, **kwargs)
        self._counts.ranges += 1
        self._counts.rows += len(rows)
        return rows


async def fill(metadata: Metadata, bucket: Bucket, count: int) -> None:
    """`count` empty objects under ten prefixes, many to a transaction."""
    draft = Draft(size=0, etag="d41d8cd98f00b204e9800998ecf8427e", inline=b"")

    async def batch(tr: Any, first: int) -> None:
        for number in range(first, first + BATCH):
            key = f"{number % 10}/{number:07d}"
            await put_object(tr, metadata.context, bucket, None, key, draft, None)

    for first in range(0, count, BATCH):
        await metadata.engine.transact(batch, first)


async def pages_cost(path: Path, count: int) -> dict[str, tuple[int, int]]:
    """(ranges, rows) read for pages of a thousand keys from three places, and for the ten prefixes."""
    engine = CountingReads(await open_engine(f"sqlite:///{path}"))
    try:
        metadata = await Metadata.open(engine, master_key=MasterKey(b"k" * 32), node_id=b"n" * 16, region="here")
        bucket = await metadata.create_bucket("large", "owner")
        await fill(metadata, bucket, count)
        costs = {}
        for name, arguments in (
            ("first page", ("", "", "", 1000)),
            ("middle page", ("", "", "5/", 1000)),
            ("page of a prefix", ("7/", "/", "", 1000)),
            ("ten prefixes", ("", "/", "", 1000)),
        ):
            engine.ranges = engine.rows = 0
            page = await metadata.list_objects(bucket, *arguments)
            assert (len(page.entries), len(page.prefixes)) == ((0, 10) if name == "ten prefixes" else (1000, 0))
            costs[name] = engine.ranges, engine.rows
        return costs
    finally:
        await engine.close()


@pytest.mark.slow
def test_a_page_of_a_million_keys_reads_no_more_than_of_ten_thousand(tmp_path: Path) -> None:
    small = asyncio.run(pages_cost(tmp_path / "small.db", 10_000))
    large = asyncio.run(pages_cost(tmp_path / "large.db", 1_000_000))
    for name, (ranges, rows) in large.items():
        assert ranges <= small[name][0]
        assert rows <= small[name][1] + 1  # the row that tells that there is more
    assert small["ten prefixes"][0] <= 25
    assert small["ten prefixes"][1] <= 2500
    assert small["first page"][1] <= 1100
