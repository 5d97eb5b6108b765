"""`tigrislike serve` with a directory of pristine block files as its source: `python -m tests.cache.serving FLAGS`.

The directory is named by the environment. A block that has no file there is nowhere; while a file `away` is there,
nothing can be had, and while `dead` is there, every blob is dead.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from tigrislike import server
from tigrislike.bytecache import NotAtSource, SourceUnavailable
from tigrislike.cli import main
from tigrislike.node import Node

VARIABLE = "PRISTINE_BLOCKS"
COMMAND = [sys.executable, "-m", "tests.cache.serving"]
_PIECE = 100_000


class PristineBlocks:
    """A source of the bytes in block files, whatever comes behind the data in them."""

    def __init__(self, directory: Path, block_size: int) -> None:
        self._directory = directory
        self._block_size = block_size

    async def read(self, blob_id: bytes, size: int, start: int, stop: int) -> AsyncIterator[bytes | memoryview]:
        if (self._directory / "away").exists():
            raise SourceUnavailable("whoever has the blocks is away")
        while start < stop:
            number, offset = divmod(start, self._block_size)
            try:
                file = (self._directory / f"{blob_id.hex()}.{number}").open("rb")
            except FileNotFoundError as error:
                raise NotAtSource(f"nobody has block {number}") from error
            with file:
                file.seek(offset)
                data = file.read(min(stop - start, self._block_size - offset, _PIECE))
            start += len(data)
            yield data

    async def lives(self, blob_id: bytes) -> bool:
        return not (self._directory / "dead").exists()


def open_source(node: Node) -> PristineBlocks:
    return PristineBlocks(Path(os.environ[VARIABLE]), node.blocks.block_size)


if __name__ == "__main__":
    server.serve = partial(server.serve, open_source=open_source)  # type: ignore[assignment]
    sys.argv.insert(1, "serve")
    main()
