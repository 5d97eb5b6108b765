"""The first page: how each region is and why, what waits longest, what is paused."""

from __future__ import annotations

from typing import Final

from tigrislike.admin.overview import RegionRow

from ..page import Context, Page, Visit

_HEALTH: Final = ("stuck", "attention", "ok")


def _urgency(row: RegionRow) -> tuple[int, float]:
    return _HEALTH.index(row.health), -(row.oldest_s or 0.0)


async def show(visit: Visit) -> Context:
    shown = await visit.call("overview")
    regions = sorted([*shown.regions, shown.anybody], key=_urgency)
    aged = [row.oldest for row in regions if row.oldest is not None]
    return {"overview": shown, "regions": regions, "oldest": max(aged, key=lambda each: each.age_s, default=None)}


PAGES = [Page("GET", "/", "overview.html", show, nav="Overview")]
