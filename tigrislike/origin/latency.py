"""What is late for this origin: a quantile of the latest answers' times, without a clock."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from math import ceil


class Quantile:
    """The quantile `q` of the latest `window` samples, by the nearest rank: the least sample that at least that share
    of them do not exceed.

    Args:
        q: more than 0, at most 1.
        window: samples that count; with each more, the oldest is forgotten.
        least: samples below which nothing is known.
    """

    __slots__ = ("_least", "_q", "_recent", "_sorted", "_window")

    def __init__(self, q: float, *, window: int, least: int) -> None:
        self._q = q
        self._window = window
        self._least = least
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, sample: float) -> None:
        """A sample, in any unit, no NaN."""
        if len(self._recent) == self._window:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(sample)
        insort(self._sorted, sample)

    @property
    def value(self) -> float | None:
        """The quantile in the unit of the samples; None: too few are known."""
        if len(self._sorted) < self._least:
            return None
        return self._sorted[ceil(self._q * len(self._sorted)) - 1]
