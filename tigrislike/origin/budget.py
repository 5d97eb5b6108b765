"""A bound on what is done beside requests, as a share of them: retries, and hedges.

A token bucket that requests fill and extras empty, as in gRPC's retry throttling and Finagle's retry budgets. It has
no clock: when nothing is asked, nothing is earned. In any stretch of time the extras are at most `reserve` and `ratio`
of the requests, so that an origin in trouble gets hardly more to do than it had.
"""

from __future__ import annotations


class Budget:
    """Args:
    ratio: extras for each request, 0.2 is one for five.
    reserve: extras that need no requests before them; the bucket is full at first and never holds more.
    """

    __slots__ = ("_ratio", "_reserve", "_tokens")

    def __init__(self, ratio: float, reserve: float) -> None:
        self._ratio = ratio
        self._reserve = reserve
        self._tokens = reserve

    def earn(self) -> None:
        """There was a request."""
        self._tokens = min(self._reserve, self._tokens + self._ratio)

    def spend(self) -> bool:
        """Whether there may be one more extra; if so, it is taken to happen."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
