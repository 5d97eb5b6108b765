"""The one clock: everything in the store that asks for the time asks a `Clock`.

A seam because tests must move time without waiting for it. `now_ns` is wall time and may step; `monotonic_ns`
never goes back and is only good for differences. Nothing here sleeps.
"""

from __future__ import annotations

import mmap
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


class SteadyClock:
    """The host's wall clock as it was when this object was made; from then on time is what the kernel counts, which
    nobody sets: where somebody sets the wall clock, this one goes on. `follow` takes over what it shows.

    Processes that are forked later share it, what is followed too.
    """

    monotonic_ns = staticmethod(time.monotonic_ns)

    def __init__(self) -> None:
        self._booted_ns = memoryview(mmap.mmap(-1, 8)).cast("q")
        self.follow()

    def now_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self._booted_ns[0]

    def step_ns(self) -> int:
        """How far the host's wall clock has been set ahead of this one."""
        return time.time_ns() - self.now_ns()

    def follow(self) -> None:
        """Go by the host's wall clock as it is now."""
        self._booted_ns[0] = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)


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
