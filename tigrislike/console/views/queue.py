"""The queue of work owed: by region, task and bucket, zones, items, and what is done about them.

Whoever wants to do something is asked first, on a page of its own that says what comes of it; doing it leads back to
where it was asked, with a line that says what was done.
"""

from __future__ import annotations

import time
from typing import Any, Final, NamedTuple, get_args

from tigrislike.admin import queues
from tigrislike.admin.desk import AdminError
from tigrislike.admin.queues import ItemShown, Sort, State
from tigrislike.admin.wording import counted

from ..page import Context, Page, Shown, Visit, Went, segment, url

_ROWS: Final = 50
_ZONE_ROWS: Final = 20
_BULK_S: Final = 5.0
"""How long retrying dead letters goes on before it says how far it came."""

_GROUPS: Final = ("region", "task", "bucket", "destination")
_ITEM_FILTERS: Final = ("region", "task", "bucket", "zone", "state", "error")
_DEAD_FILTERS: Final = ("region", "task", "bucket", "zone", "error")
_ZONE_FILTERS: Final = ("region", "task", "bucket", "sort")
_DELAYS: Final = {"60": "a minute", "600": "ten minutes", "3600": "an hour", "21600": "six hours", "86400": "a day"}


def _given(visit: Visit, names: tuple[str, ...]) -> dict[str, str]:
    """Those of the query's, or the form's, filters that were filled in."""
    given = {**visit.query, **visit.form}
    return {name: given[name].strip() for name in names if given.get(name, "").strip()}


async def _choices(visit: Visit) -> dict[str, Any]:
    """What a filter can choose from."""
    names = await visit.desk.names()
    return {"regions": names.regions, "tasks": sorted(await queues.tasks(visit.desk))}


# --- looking


async def groups(visit: Visit) -> Context:
    by = visit.query.get("by", "region")
    return {
        "by": by,
        "kinds": _GROUPS,
        "groups": (await visit.call("queue", by=by)).groups,
        "paused": await visit.call("paused"),
    }


async def zones(visit: Visit) -> Context:
    filters = _given(visit, _ZONE_FILTERS)
    page, refused = None, ""
    try:
        page = await visit.call("zones", **filters, cursor=visit.query.get("cursor"), limit=_ROWS)
    except AdminError as error:
        refused = str(error)
    return {
        "filters": dict.fromkeys(_ZONE_FILTERS, "") | filters,
        "page": page,
        "refused": refused,
        "first": "cursor" in visit.query,
        "sorts": get_args(Sort),
        **await _choices(visit),
    }


async def zone(visit: Visit) -> Context | Shown:
    try:
        shown = await visit.call("zone", zone=visit.params["zone"])
    except AdminError as error:
        if error.code != "NoSuchZone":
            raise
        return Shown({"zone": None, "why": str(error)}, 404)
    state = visit.query.get("state")
    page = await visit.call("items", zone=shown.zone, state=state, cursor=visit.query.get("cursor"), limit=_ZONE_ROWS)
    return {"zone": shown, "page": page, "state": state, "first": "cursor" in visit.query}


async def items(visit: Visit) -> Context:
    return await _items(visit, _ITEM_FILTERS)


async def dead(visit: Visit) -> Context:
    return await _items(visit, _DEAD_FILTERS, state="dead")


async def _items(visit: Visit, names: tuple[str, ...], **fixed: str) -> Context:
    filters = _given(visit, names)
    page, refused = None, ""
    try:
        page = await visit.call("items", **filters, **fixed, cursor=visit.query.get("cursor"), limit=_ROWS)
    except AdminError as error:
        refused = str(error)
    return {
        "filters": dict.fromkeys(names, "") | filters,
        "filtered": bool(filters),
        "page": page,
        "refused": refused,
        "first": "cursor" in visit.query,
        "states": get_args(State),
        **await _choices(visit),
    }


async def item(visit: Visit) -> Context | Shown:
    try:
        return {"item": await _item(visit)}
    except AdminError as error:
        if error.code != "NoSuchItem":
            raise
        return Shown({"item": None, "name": visit.params["item"], "zone": visit.params["item"].partition(".")[0]}, 404)


async def _item(visit: Visit) -> ItemShown:
    shown: ItemShown = await visit.call("item", item=visit.params["item"])
    return shown


# --- one item


async def ask_item(visit: Visit) -> Context:
    action, shown = visit.params["action"], await _item(visit)
    what = f"{shown.task} in {shown.label}"
    asked = {
        "retry": {
            "question": f"Retry {what}?",
            "consequence": "It is begun at once, with all its attempts anew."
            if shown.letter
            else "It is begun at once instead of when its turn comes.",
            "button": "Retry",
            "kind": "primary",
        },
        "delay": {
            "question": f"Delay {what}?",
            "consequence": "It is not begun before then, nor sooner than it was due. Others of its zone go on.",
            "button": "Delay",
            "kind": "primary",
        },
        "drop": {
            "question": f"Drop {what}?",
            "consequence": "What it owes is never done, and this cannot be taken back.",
            "button": "Drop",
            "kind": "danger",
        },
    }
    if action not in asked:
        raise AdminError("NotFound", "there is no such page", 404)
    at = f"/queue/items/{shown.item}"
    delays = _DELAYS if action == "delay" else {}
    return {**asked[action], "to": url(f"{at}/{action}"), "back": url(at), "fields": {}, "delays": delays}


async def act_on_item(visit: Visit) -> Went:
    action, name = visit.params["action"], visit.params["item"]
    zone_of = url(f"/queue/zones/{segment(name.partition('.')[0])}")
    at = url(f"/queue/items/{segment(name)}")
    if action == "retry":
        await visit.call("retry", item=name)
        return Went(at, "It is being retried.")
    if action == "delay":
        seconds = visit.needed("seconds")
        await visit.call("delay", item=name, seconds=seconds)
        return Went(at, f"It is delayed by {_DELAYS.get(seconds, seconds + ' s')}.")
    if action == "drop":
        await visit.call("drop", item=name)
        return Went(zone_of, f"Item {name.partition('.')[2]} was dropped.")
    raise AdminError("NotFound", "there is no such page", 404)


# --- dead letters


async def ask_retry_dead(visit: Visit) -> Context:
    filters = _given(visit, _DEAD_FILTERS)
    those = ", ".join(f"{name} {value}" for name, value in filters.items())
    return {
        "question": "Retry all dead letters?" if not those else "Retry these dead letters?",
        "consequence": (f"Those of {those}" if those else "All of them, of every region,")
        + " are begun at once, with all their attempts anew.",
        "to": url("/queue/dead/retry"),
        "fields": filters,
        "button": "Retry them",
        "kind": "primary",
        "back": url("/queue/dead", **filters),
    }


async def retry_dead(visit: Visit) -> Went:
    filters = _given(visit, _DEAD_FILTERS)
    retried, cursor, until_s = 0, None, time.monotonic() + _BULK_S
    while True:
        done = await visit.call("retry_dead", **filters, cursor=cursor)
        retried += done.retried
        cursor = done.cursor
        if cursor is None or time.monotonic() > until_s:
            break
    letters = counted(retried, "dead letter is", "dead letters are")
    rest = "" if cursor is None else " There are more: retry again."
    return Went(url("/queue/dead", **filters), f"{letters} being retried.{rest}")


# --- pausing


class _Pausable(NamedTuple):
    """Something that can be paused: a zone, region or task, how people call it, and where it is looked at."""

    kind: str
    name: str
    called: str
    place: str


async def _pausable(visit: Visit) -> _Pausable:
    """What the query or the form names. Raises AdminError: InvalidArgument, NoSuchZone."""
    given = _given(visit, ("zone", "region", "task"))
    if len(given) != 1:
        raise AdminError("InvalidArgument", "name one zone, region or task")
    ((kind, name),) = given.items()
    if kind == "zone":
        found = await queues.resolve_zone(visit.desk, name)
        label = (await visit.desk.names()).zone(found)
        return _Pausable(kind, found.hex(), f"zone {label}", url(f"/queue/zones/{found.hex()}"))
    place = url("/queue/zones", region=name) if kind == "region" else url("/queue", by="task")
    return _Pausable(kind, name, f"{kind} {name}", place)


async def ask_pause(visit: Visit) -> Context:
    what = await _pausable(visit)
    return {
        "question": f"Pause {what.called}?",
        "consequence": "Nothing more of it is begun until it is resumed; what is under way goes on to its end.",
        "to": url("/queue/pause"),
        "fields": {what.kind: what.name},
        "button": "Pause",
        "kind": "primary",
        "back": what.place,
    }


async def ask_resume(visit: Visit) -> Context:
    what = await _pausable(visit)
    return {
        "question": f"Resume {what.called}?",
        "consequence": "What is owed is begun again, what has been due longest first.",
        "to": url("/queue/resume"),
        "fields": {what.kind: what.name},
        "button": "Resume",
        "kind": "primary",
        "back": what.place,
    }


async def pause(visit: Visit) -> Went:
    what = await _pausable(visit)
    await visit.call("pause", **{what.kind: what.name})
    return Went(what.place, f"Paused: {what.called}.")


async def resume(visit: Visit) -> Went:
    what = await _pausable(visit)
    await visit.call("resume", **{what.kind: what.name})
    return Went(what.place, f"Resumed: {what.called}.")


PAGES = [
    Page("GET", "/queue", "queue.html", groups, nav="Queue"),
    Page("GET", "/queue/zones", "zones.html", zones),
    Page("GET", "/queue/zones/{zone}", "zone.html", zone),
    Page("GET", "/queue/items", "items.html", items),
    Page("GET", "/queue/items/{item}", "item.html", item),
    Page("GET", "/queue/items/{item}/{action}", "ask-item.html", ask_item),
    Page("POST", "/queue/items/{item}/{action}", "", act_on_item),
    Page("GET", "/queue/dead", "dead.html", dead, nav="Dead letters"),
    Page("GET", "/queue/dead/retry", "ask.html", ask_retry_dead),
    Page("POST", "/queue/dead/retry", "", retry_dead),
    Page("GET", "/queue/pause", "ask.html", ask_pause),
    Page("POST", "/queue/pause", "", pause),
    Page("GET", "/queue/resume", "ask.html", ask_resume),
    Page("POST", "/queue/resume", "", resume),
]
