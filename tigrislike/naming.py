"""Names of regions: what they look like, and which stand for several."""

from __future__ import annotations

import re

Geographies = tuple[tuple[str, tuple[str, ...]], ...]
"""Names, and the regions that each stands for."""

GEOGRAPHIES: Geographies = (("usa", ("sjc", "ord", "iad")), ("eur", ("ams", "fra")))
"""Tigris' own."""

_REGION = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


def is_region(name: str) -> bool:
    """Whether `name` can be a region's: lowercase letters, digits and hyphens, at most 32."""
    return _REGION.fullmatch(name) is not None
