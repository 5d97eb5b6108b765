"""The nodes of the store, and what the node that answers tells of itself: slow requests and settings."""

from __future__ import annotations

from ..page import Context, Page, Visit


async def nodes(visit: Visit) -> Context:
    rows = (await visit.call("nodes")).nodes
    return {"nodes": sorted(rows, key=lambda row: (row.region, row.node))}


async def slow(visit: Visit) -> Context:
    return {"slow": await visit.call("slow")}


async def settings(visit: Visit) -> Context:
    wanted = visit.query.get("name", "").strip().lower()
    rows = (await visit.call("settings")).settings
    return {"settings": [row for row in rows if wanted in row.name], "name": wanted}


NODES = [Page("GET", "/nodes", "nodes.html", nodes, nav="Nodes")]
PAGES = [
    Page("GET", "/slow", "slow.html", slow, nav="Slow requests"),
    Page("GET", "/settings", "settings.html", settings, nav="Settings"),
]
