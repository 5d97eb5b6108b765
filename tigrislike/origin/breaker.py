"""When to leave an origin alone: a circuit breaker, as a state machine without I/O or clock.

*Closed*, requests go. Too many failures in a row, or too large a share of the latest ones, *open* it: nothing goes for
a while, twice as long each time that it opens again without one request having gone well in between. Then it is *half
open*: one request at a time goes as a probe. One that is answered closes the breaker, one that fails opens it.

A request's end counts only where the breaker has not opened since it began: what was under way when the origin failed
says nothing about whether it is back.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Literal

State = Literal["closed", "open", "half-open"]


class Permit:
    """Leave for one request, to be given back once: by `Breaker.succeeded`, `failed` or `abandoned`."""

    __slots__ = ("opened",)

    def __init__(self, opened: int) -> None:
        self.opened: Final = opened  # how often the breaker had opened before


class Breaker:
    """Times are seconds of any clock that does not go back.

    Args:
        in_a_row: failures without a success between them that open it.
        share, window: the share of the latest `window` requests whose failure opens it; fewer requests say nothing.
        pause_s, longest_pause_s: how long it stays open, the first time and at most.
    """

    def __init__(
        self,
        *,
        in_a_row: int = 5,
        share: float = 0.5,
        window: int = 32,
        pause_s: float = 1.0,
        longest_pause_s: float = 30.0,
    ) -> None:
        self._in_a_row = in_a_row
        self._most_failed = share * window
        self._pause_s = pause_s
        self._longest_pause_s = longest_pause_s
        self._next_pause_s = pause_s
        self._latest: deque[bool] = deque(maxlen=window)  # whether each failed
        self._failed_in_a_row = 0
        self._open_until_s: float | None = None  # None: closed
        self._probe: Permit | None = None
        self.opened = 0
        """How often it has opened."""

    def state(self, now_s: float) -> State:
        if self._open_until_s is None:
            return "closed"
        return "open" if now_s < self._open_until_s else "half-open"

    @property
    def probing(self) -> bool:
        """Whether a probe is out: what it finds is known before long."""
        return self._probe is not None

    def wait_s(self, now_s: float) -> float:
        """How long it is of no use to ask for a permit; 0 where `admit` gives one."""
        if self._open_until_s is None:
            return 0.0
        if now_s < self._open_until_s:
            return self._open_until_s - now_s
        return self._pause_s if self.probing else 0.0

    def admit(self, now_s: float) -> Permit | None:
        """Leave for a request, which has to end in one of the three ways below; None: `wait_s` says how long."""
        if self.wait_s(now_s) > 0:
            return None
        permit = Permit(self.opened)
        if self._open_until_s is not None:
            self._probe = permit
        return permit

    def answered(self, permit: Permit) -> None:
        """The origin has begun to answer. Closes a half-open breaker; how the request ends is still to be said."""
        if permit is self._probe:
            self._close()

    def succeeded(self, permit: Permit) -> None:
        """The request is over and went well, or was answered by a no."""
        self.answered(permit)
        if permit.opened == self.opened and self._open_until_s is None:
            self._failed_in_a_row = 0
            self._next_pause_s = self._pause_s
            self._latest.append(False)

    def failed(self, permit: Permit, now_s: float, retry_after_s: float = 0.0) -> None:
        """The request failed. Where that opens the breaker, it stays open for `retry_after_s` at least, as far as
        the longest pause."""
        if permit is self._probe:
            self._open(now_s, retry_after_s)
        elif permit.opened == self.opened and self._open_until_s is None:
            self._failed_in_a_row += 1
            self._latest.append(True)
            mostly = len(self._latest) == self._latest.maxlen and sum(self._latest) >= self._most_failed
            if mostly or self._failed_in_a_row >= self._in_a_row:
                self._open(now_s, retry_after_s)

    def abandoned(self, permit: Permit) -> None:
        """The request ended before it said anything about the origin: nobody wanted it any more."""
        if permit is self._probe:
            self._probe = None

    def _open(self, now_s: float, retry_after_s: float) -> None:
        self.opened += 1
        self._probe = None
        self._open_until_s = now_s + min(max(self._next_pause_s, retry_after_s), self._longest_pause_s)
        self._next_pause_s = min(2 * self._next_pause_s, self._longest_pause_s)

    def _close(self) -> None:
        self._probe = None
        self._open_until_s = None
        self._failed_in_a_row = 0
        self._latest.clear()
