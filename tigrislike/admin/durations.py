"""Durations as people read them, wherever operators do."""

from __future__ import annotations

import itertools
from typing import Final

_UNITS: Final = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def spelled(seconds: float) -> str:
    """In the two largest units: ``4 h 12 min``, ``2 d``, ``12 s``, ``340 ms``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    whole = int(seconds)
    for (name, length), (below, part) in itertools.pairwise(_UNITS):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length:,} {name}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"
