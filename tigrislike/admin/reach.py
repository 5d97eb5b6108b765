"""Opening a metadata store by its URL for a command: known to be there, and to answer, within seconds.

An engine is open once it has answered, which on FoundationDB has a time limit of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tigrislike.metadata.kv import Engine, EngineUnavailable, open_engine


@contextlib.asynccontextmanager
async def reached(url: str, *, make: bool = False) -> AsyncIterator[Engine]:
    """The engine of `url`, open for the length of a `with` block.

    `make`: an SQLite file that is not there is made; otherwise that is an error.

    Raises:
        ValueError: the URL makes no sense.
        EngineUnavailable: there is nothing, or nothing that answers; with what to do about it.
        EngineError: as `open_engine`.
    """
    path = sqlite_path(url)
    if path is not None and not make and not path.is_file():
        raise EngineUnavailable(f"{url}: there is no such file")
    engine = await open_engine(url)
    try:
        yield engine
    finally:
        await engine.close()


def sqlite_path(url: str) -> Path | None:
    """The file of an SQLite URL, None for any other."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "sqlite" else None
