"""The queue of work owed: by region, task and bucket, zones, items, and what is done about them."""

from __future__ import annotations

from ..page import Page

PAGES: list[Page] = []
