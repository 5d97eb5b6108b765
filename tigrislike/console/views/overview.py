"""The first page: how each region is and why, what waits longest, what is paused."""

from __future__ import annotations

from typing import Final

from ..page import Context, Page, Visit

_URGENCY: Final = ("stuck", "attention", "ok")


async def show(visit: Visit) -> Context:
    shown = await visit.call("overview")
    regions = sorted([*shown.regions, shown.anybody], key=lambda row: _URGENCY.index(row.health))
    aged = [row.oldest for row in regions if row.oldest is not None]
    return {"overview": shown, "regions": regions, "oldest": max(aged, key=lambda each: each.age_s, default=None)}


PAGES = [Page("GET", "/", "overview.html", show, nav="Overview")]
