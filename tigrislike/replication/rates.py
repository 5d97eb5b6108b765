"""Rates: how fast background work may go, so that requests have the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

BURST_S = 1.0
"""What was not used is good for so long."""


class Rate:
    """A rate that everybody who waits for it shares, in the order in which they came.

    Args:
        per_s: bytes a second; 0: as fast as it goes.
        clock_s, sleep: for tests.
    """

    def __init__(
        self,
        per_s: int,
        *,
        clock_s: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._per_s = per_s
        self._clock_s = clock_s or (lambda: asyncio.get_running_loop().time())
        self._sleep = sleep
        self._free_s: float | None = None

    async def __call__(self, size: int) -> bool:
        """Wait until `size` bytes may be moved; whether that took any time."""
        if not self._per_s:
            return False
        now_s = self._clock_s()
        begin_s = now_s if self._free_s is None else max(self._free_s, now_s - BURST_S)
        self._free_s = begin_s + size / self._per_s
        if begin_s <= now_s:
            return False
        await self._sleep(begin_s - now_s)
        return True
