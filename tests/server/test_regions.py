"""A node that joins a store which has other regions."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tigrislike.config import load_settings
from tigrislike.node import Node


async def join(directory: Path, region: str, metadata: Path) -> None:
    flags = {"data_dir": str(directory / region), "region": region, "metadata": f"sqlite://{metadata}"}
    async with Node.opened(load_settings(flags, {})) as node:
        await node.join(f"http://{region}.example.com")


@pytest.mark.sqlite
def test_the_second_region_over_sqlite_is_told_what_that_is_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = tmp_path / "metadata.db"
    asyncio.run(join(tmp_path, "iad", metadata))
    asyncio.run(join(tmp_path, "iad", metadata))
    assert caplog.messages == []
    asyncio.run(join(tmp_path, "fra", metadata))
    (warning,) = caplog.messages
    assert warning.startswith("region fra shares an SQLite file with iad: that is for one machine only")
