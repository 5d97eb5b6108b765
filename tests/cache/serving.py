"""`tigrislike serve` with a directory of pristine block files as its source: `python -m tests.cache.serving FLAGS`.

The directory is named by the environment. A block that has no file there is nowhere; while a file `away` is there,
nothing can be had, and while `dead` is there, every blob is dead. A block whose inode number names a file in `bad/`
lies on bad sectors: whoever reads it gets EIO.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

from tigrislike import server
from tigrislike.bytecache import NotAtSource, SourceUnavailable, fills, holdings, index
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

    def keeps(self, blob_id: bytes) -> bool:
        return True


def open_source(node: Node) -> PristineBlocks:
    return PristineBlocks(Path(os.environ[VARIABLE]), node.blocks.block_size)


def failing_on(bad: Path, call: Callable[..., int], position: int) -> Callable[..., int]:
    """A system call that reads from the descriptor at `position` of its arguments."""

    def checked(*args: Any) -> int:
        if (bad / str(os.fstat(args[position]).st_ino)).exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return call(*args)

    return checked


if __name__ == "__main__":
    bad = Path(os.environ[VARIABLE]) / "bad"
    os.sendfile, os.preadv = failing_on(bad, os.sendfile, 1), failing_on(bad, os.preadv, 0)
    server.serve = partial(server.serve, open_source=open_source)  # type: ignore[assignment]
    # On a slow machine too readers wait for what they fetch to be kept: tests see whether it is.
    fills.WAIT_S = index._HURRIED_S = 60.0  # type: ignore[misc]
    holdings.CORRELATED_S = 0.0  # type: ignore[misc]  # a read soon after another counts as one too
    sys.argv[1:1] = ["serve", "--fill-timeout=1m"]
    main()
