"""The first page: how each region is and why, what waits longest, what is paused."""

from __future__ import annotations

from ..page import Context, Page, Visit


async def show(visit: Visit) -> Context:
    shown = await visit.call("overview")
    regions = [*shown.regions, shown.anybody]
    aged = [row.oldest for row in regions if row.oldest is not None]
    return {"overview": shown, "regions": regions, "oldest": max(aged, key=lambda each: each.age_s, default=None)}


PAGES = [Page("GET", "/", "overview.html", show, nav="Overview")]
