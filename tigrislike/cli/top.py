"""`tigrislike top`: the store at a glance."""

from __future__ import annotations

from tigrislike.cli.base import AS_JSON, DATABASE, ENDPOINT, INTERVAL, TIMES, app, command, stores
from tigrislike.config import Settings


@command(app, "top", DATABASE)
def top(
    settings: Settings,
    *,
    interval: INTERVAL = 2.0,
    times: TIMES = None,
    endpoint: ENDPOINT = None,
    as_json: AS_JSON = False,
) -> None:
    """The store at a glance, live: regions and their health, tasks, what waits longest."""
    stores(settings, endpoint, lambda commands: commands.top(interval, times, as_json))
