"""Watches on the SQLite engine: hints, by polling.

A commit of this process is noticed at once, one of another process at the next poll of `PRAGMA data_version`,
which costs a few microseconds and runs only while somebody waits. Values are compared, so a change back and forth
between two looks goes unnoticed, as on FoundationDB.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .errors import EngineClosed, TooManyWatches
from .limits import WATCHES

POLL_S = 0.05
"""How long a change by another process may go unnoticed."""

KEYS_PER_SLICE = 50
"""Keys compared before the event loop gets its turn: about 0.3 ms."""


class SqliteWatch:
    """A watch on one key, holding the value that its transaction saw."""

    __slots__ = ("_cancelled", "_changed", "_watches", "key", "seen")

    def __init__(self, watches: Watches, key: bytes, seen: bytes | None) -> None:
        self._watches = watches
        self._changed: asyncio.Future[bool] | None = None
        self._cancelled = False
        self.key = key
        self.seen = seen

    async def wait(self, timeout_s: float) -> bool:
        """True once the key's value differs from what the transaction saw, False after `timeout_s` or a cancel.

        Raises:
            TooManyWatches: 10,000 others are waited for already.
            EngineClosed: the engine has been closed.
        """
        if self._cancelled:
            return False
        if self._changed is None or self._changed.done():
            self._changed = asyncio.get_running_loop().create_future()
        self._watches.add(self)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._changed)
        except TimeoutError:
            return False
        finally:
            self._watches.discard(self)

    def cancel(self) -> None:
        self._cancelled = True
        self.settle(False)

    def settle(self, changed: bool) -> None:
        """Let a pending `wait` return `changed`."""
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(changed)


class Watches:
    """The watches of one engine that somebody waits for."""

    def __init__(self, read: Callable[[bytes], bytes | None], data_version: Callable[[], int]) -> None:
        self._read = read
        self._data_version = data_version
        self._waited: set[SqliteWatch] = set()
        self._poller: asyncio.Task[None] | None = None
        self._nudge = asyncio.Event()
        self._closed = False

    def add(self, watch: SqliteWatch) -> None:
        """Begin to compare `watch`'s key."""
        if self._closed:
            raise EngineClosed("the engine has been closed")
        if len(self._waited) >= WATCHES:
            raise TooManyWatches(f"{WATCHES} watches are waited for already")
        self._waited.add(watch)
        self._nudge.set()  # what changed since the transaction is found without waiting for a poll
        if self._poller is None or self._poller.done():
            self._poller = asyncio.get_running_loop().create_task(self._poll(), name="sqlite watches")

    def discard(self, watch: SqliteWatch) -> None:
        """Stop comparing `watch`'s key."""
        self._waited.discard(watch)

    def committed(self) -> None:
        """Tell that this process has committed something."""
        if self._waited:
            self._nudge.set()

    async def close(self) -> None:
        """Let every wait return False and stop polling."""
        self._closed = True
        for watch in list(self._waited):
            watch.cancel()
        self._nudge.set()
        if self._poller is not None:
            await self._poller

    async def _poll(self) -> None:
        seen_version: int | None = None
        while self._waited and not self._closed:
            nudged = self._nudge.is_set()
            self._nudge.clear()
            version = self._data_version()
            if nudged or version != seen_version:
                seen_version = version
                await self._compare()
            try:
                async with asyncio.timeout(POLL_S):
                    await self._nudge.wait()
            except TimeoutError:
                continue

    async def _compare(self) -> None:
        for index, watch in enumerate(list(self._waited)):
            if index % KEYS_PER_SLICE == KEYS_PER_SLICE - 1:
                await asyncio.sleep(0)
            if self._closed:
                return
            if self._read(watch.key) != watch.seen:
                watch.settle(True)
