"""Which contents this node is gaining or giving up: one of the two at a time, in whichever of its processes.

A lock on a byte of a file in the block store's root, one for each content. The kernel drops those of a process that
dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

NAME: Final = "moving.lock"

_LOOK_S: Final = 0.05
"""Between two tries: only a write that waits for a home is in another process than all the others."""


class Moving:
    """One per process: the locks are the process's, and all of them go when one of two is closed.

    Args:
        root: of the block store.
        sleep: waits for seconds between two tries; for tests.
    """

    def __init__(self, root: Path | str, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._file = os.open(Path(root) / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._sleep = sleep
        self._locks: dict[bytes, asyncio.Lock] = {}
        self._waiting: dict[bytes, int] = {}

    def close(self) -> None:
        """Let go of all that is held."""
        os.close(self._file)

    @contextlib.asynccontextmanager
    async def of(self, content_id: bytes) -> AsyncIterator[None]:
        """Wait until nobody else moves a content, and keep others waiting for the length of a `with` block."""
        lock = self._locks.setdefault(content_id, asyncio.Lock())
        self._waiting[content_id] = self._waiting.get(content_id, 0) + 1
        try:
            async with lock, self._apart(byte_of(content_id)):
                yield
        finally:
            self._waiting[content_id] -= 1
            if not self._waiting[content_id]:
                del self._waiting[content_id], self._locks[content_id]

    @contextlib.asynccontextmanager
    async def _apart(self, byte: int) -> AsyncIterator[None]:
        """Keep other processes out."""
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
                break
            except BlockingIOError:
                await self._sleep(_LOOK_S)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)


def byte_of(content_id: bytes) -> int:
    """Where in the file a content's lock is."""
    return int.from_bytes(content_id[-7:], "big")
