"""Opening a metadata store by its URL for a command: known to be there, and to answer, within seconds.

A server waits for a database that is away; an operator wants to be told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tigrislike.metadata.kv import Engine, EngineUnavailable, Transaction, open_engine

ANSWER_S = 4.0
"""How long an engine may take for its first answer, so that the command that asked ends within 5 seconds."""


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
        try:
            async with asyncio.timeout(ANSWER_S):
                await engine.read(_read_version)
        except TimeoutError:
            raise EngineUnavailable(
                f"{url} does not answer: is the cluster running, does its cluster file name the right coordinators, "
                "and does the client library (libfdb_c) speak the cluster's version? `fdbcli --exec status` tells more"
            ) from None
        yield engine
    finally:
        await engine.close()


def sqlite_path(url: str) -> Path | None:
    """The file of an SQLite URL, None for any other."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "sqlite" else None


async def _read_version(tr: Transaction) -> int:
    return await tr.read_version()
