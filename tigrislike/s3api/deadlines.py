"""Time-outs of many connections at the price of two dictionary operations per change of phase.

A timer per request would cost the event loop a heap push, a heap pop and a handle each time. But every connection in
the same phase has the same time-out, so a dictionary in order of entry is already in order of expiry, and one
coarse tick per process needs to look only at the oldest entries of each phase.

Guarantees: nothing expires early; everything expires within one tick of its deadline; a tick costs what expires.
Pure: the time comes from the caller.
"""

from __future__ import annotations

import enum
from typing import Generic, Protocol, TypeVar


class Phase(enum.IntEnum):
    """What a connection waits for. The order is only that of a request's life."""

    IDLE = 0  # the first byte of a request
    HEAD = 1  # the end of its headers
    BODY = 2  # more of its body
    SEND = 3  # the client to take what was written
    CLOSE = 4  # the client to close its side
    WORK = 5  # the application: no deadline


class HasPhase(Protocol):
    phase: Phase


C = TypeVar("C", bound=HasPhase)


class Deadlines(Generic[C]):
    """Which connection must have made progress by when.

    Args:
        timeouts_s: seconds of each phase but WORK.
        now_s: monotonic time now.
    """

    def __init__(self, timeouts_s: dict[Phase, float], now_s: float) -> None:
        self._timeouts_s = [timeouts_s[phase] for phase in Phase if phase is not Phase.WORK]
        self._queues: list[dict[C, float]] = [{} for _ in self._timeouts_s]
        self._now_s = now_s  # of the last tick: a connection that enters later is given up to a tick more
        self.tick_s = max(0.005, min(0.5, min(self._timeouts_s) / 4))

    def enter(self, connection: C, phase: Phase) -> None:
        """Start a phase's clock, also when the connection is in that phase already."""
        old = connection.phase
        if old is not Phase.WORK:
            self._queues[old].pop(connection, None)
        connection.phase = phase
        if phase is not Phase.WORK:
            self._queues[phase][connection] = self._now_s + self._timeouts_s[phase] + self.tick_s

    def leave(self, connection: C) -> None:
        """Forget a connection that is gone."""
        self.enter(connection, Phase.WORK)

    def expired(self, now_s: float) -> list[C]:
        """Advance the clock; the connections whose phase has lasted too long. Each has left its phase's queue."""
        self._now_s = now_s
        late = []
        for queue in self._queues:
            while queue:
                connection = next(iter(queue))
                if queue[connection] > now_s:
                    break
                del queue[connection]
                late.append(connection)
        return late
