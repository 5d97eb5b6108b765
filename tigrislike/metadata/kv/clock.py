"""The one clock: everything in the store that asks for the time asks a `Clock`.

A seam because tests must move time without waiting for it. `now_ns` is wall time and may step; `monotonic_ns`
never goes back and is only good for differences. Nothing here sleeps.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of wall time and of elapsed time, both in integer nanoseconds."""

    def now_ns(self) -> int:
        """Nanoseconds since the Unix epoch (UTC). May step either way when the host's clock is set."""
        ...

    def monotonic_ns(self) -> int:
        """Nanoseconds since an arbitrary moment; never decreases."""
        ...


class SystemClock:
    """The host's clock."""

    now_ns = staticmethod(time.time_ns)
    monotonic_ns = staticmethod(time.monotonic_ns)


class ManualClock:
    """A clock that moves only when told to, so that tests never wait."""

    def __init__(self, now_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now_ns = now_ns
        self._monotonic_ns = 0

    def now_ns(self) -> int:
        return self._now_ns

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def advance(self, duration_ns: int) -> None:
        """Let `duration_ns` pass on both scales."""
        if duration_ns < 0:
            raise ValueError(f"time does not run backwards: advance({duration_ns})")
        self._now_ns += duration_ns
        self._monotonic_ns += duration_ns

    def step(self, offset_ns: int) -> None:
        """Set the wall clock by `offset_ns` (either sign) without time passing, as an operator or NTP may."""
        self._now_ns += offset_ns
