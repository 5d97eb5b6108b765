"""An event loop whose clock stands still while anything happens and leaps to the next timer when nothing does: a minute
of waiting takes no time, and a bound can be asserted to the millisecond. Sockets may be used within the loop, where
quiet is believed only after a moment. Threads may not: they are not seen to be at work."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")

QUIET_S = 0.01
"""Real time for which no socket may have anything to say: what was sent over loopback is there long before."""


class _Selector(selectors.DefaultSelector):
    def __init__(self, quiet_s: float) -> None:
        super().__init__()
        self.quiet_s = quiet_s
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        events = super().select(self.quiet_s)
        if not events:
            self.now_s += timeout
        return events


class LeapingLoop(asyncio.SelectorEventLoop):
    def __init__(self, quiet_s: float) -> None:
        self._leaping = _Selector(quiet_s)
        super().__init__(self._leaping)

    def time(self) -> float:
        return self._leaping.now_s


def run(story: Coroutine[Any, Any, _T], *, sockets: bool = False) -> _T:
    """Run a test on such a loop, whose clock begins at 0."""
    with asyncio.Runner(loop_factory=lambda: LeapingLoop(QUIET_S if sockets else 0.0)) as runner:
        return runner.run(story)
