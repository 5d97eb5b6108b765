"""What the database says of homes, asked beside it: an observer that is no node and changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Final

from tigrislike.metadata import Metadata
from tigrislike.metadata.kv import Engine, open_engine
from tigrislike.metadata.secrets import MasterKey

POLL_S: Final = 0.1
_MOST: Final = 100_000


class Observer:
    """For the length of a `with` block, one who reads the metadata of a store that runs.

    Args:
        url: of the metadata.
        master_key: the file with the store's key.
    """

    def __init__(self, url: str, master_key: Path) -> None:
        self._url = url
        self._master_key = master_key
        self._runner = asyncio.Runner()

    def __enter__(self) -> Observer:
        self._runner.__enter__()
        self._runner.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._runner.run(self._close())
        finally:
            self._runner.close()

    def homes(self) -> Counter[str]:
        """How many contents each region holds durably, as recorded."""
        return self._runner.run(self._homes())

    def wait_for(self, homes: dict[str, int], within_s: float) -> bool:
        """Wait until each region holds so many contents, or more. False: `within_s` passed first."""
        deadline_s = time.monotonic() + within_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            have = self.homes()
            if all(have[region] >= count for region, count in homes.items()):
                return True
            time.sleep(min(POLL_S, left_s))
        return False

    async def _open(self) -> None:
        self._engine: Engine = await open_engine(self._url)
        key = MasterKey.read_file(self._master_key)
        self._metadata = await Metadata.open(self._engine, master_key=key, node_id=bytes(16), region="observer")

    async def _close(self) -> None:
        await self._metadata.aclose()
        await self._engine.close()

    async def _homes(self) -> Counter[str]:
        homes: Counter[str] = Counter()
        for node, _ in await self._metadata.nodes():
            homes[node.region] += len(await self._metadata.homes_of(node.node, limit=_MOST))
        return homes
