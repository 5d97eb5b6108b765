"""The audit log: who changed what."""

from __future__ import annotations

from ..page import Context, Page, Visit


async def audit(visit: Visit) -> Context:
    page = await visit.call("audit", cursor=visit.query.get("cursor"), limit=50)
    return {"page": page, "first": "cursor" in visit.query}


PAGES = [Page("GET", "/audit", "audit.html", audit, nav="Audit log")]
