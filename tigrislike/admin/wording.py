"""How numbers are said to people."""

from __future__ import annotations

import itertools
from typing import Final

_UNITS: Final = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def duration(seconds: float) -> str:
    """How long, in its two largest units: ``4 h 12 min``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    whole = int(seconds)
    for (name, length), (below, part) in itertools.pairwise(_UNITS):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {name}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"


def counted(number: float, one: str, many: str = "") -> str:
    """How many of something: ``1 dead letter``, ``1,024 dead letters``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
