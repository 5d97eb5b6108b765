"""`tigrislike queue`: the queue of work owed, looked at and acted upon from a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .client import Api, every
from .commands import (
    ATTENTION,
    Command,
    ago,
    bar,
    complain,
    console,
    facts,
    moment,
    plain,
    print_json,
    rate,
    show,
    table_of,
    watch,
    write_parquet,
)
from .desk import AdminError
from .queues import GroupRow, Groups, ItemRow, ItemShown, Load, ZonePage, ZoneShown

_PAGE: Final = 1000
_NUMBERS: Final = ("depth", "in flight", "failing", "dead", "oldest", "in", "out")


def _numbers(load: Load) -> list[str]:
    counts = (f"{count:,}" for count in (load.depth, load.in_flight, load.failing, load.dead))
    return [*counts, ago(load.oldest_s), rate(load.rate_in), rate(load.rate_out)]


# --- looking


def ls(by: str, filters: dict[str, Any], sort: str, limit: int, check: bool, as_json: bool) -> Command:
    """The queue by task, region, destination or bucket, or zone by zone; with `check`, 3 where something fails, is dead
    or has been due for a minute."""

    async def command(api: Api) -> int:
        rows: list[Any]
        if by == "zone":
            page: ZonePage = await api.call("zones", sort=sort, limit=limit, **filters)
            rows = page.zones
            show(as_json, page, lambda: _zone_table(page))
        else:
            groups: Groups = await api.call("queue", by=by)
            rows = groups.groups
            show(as_json, groups, lambda: _group_table(by, groups.groups))
        late = any(row.failing or row.dead or (row.oldest_s or 0) >= 60 for row in rows)
        return ATTENTION if check and late else 0

    return command


def _group_table(by: str, groups: list[GroupRow]) -> Table:
    table = table_of(by, "zones", *_NUMBERS, "", right=("zones", *_NUMBERS))
    for group in groups:
        zones = "-" if group.zones is None else f"{group.zones:,}"
        table.add_row(plain(group.name or "-"), zones, *_numbers(group), "paused" if group.paused else "")
    return table


def _zone_table(page: ZonePage) -> RenderableType:
    table = table_of("zone", "tasks", *_NUMBERS, "", right=_NUMBERS)
    for zone in page.zones:
        table.add_row(plain(zone.label), ",".join(zone.tasks), *_numbers(zone), "paused" if zone.paused else "")
    if page.cursor is None:
        return table
    return Group(table, Text(f"... of {page.total:,} zones; --limit shows more"))


def top(sort: str, limit: int, interval_s: float, times: int | None) -> Command:
    """The zones that deserve to be looked at, again and again."""

    async def command(api: Api) -> int:
        async def make() -> RenderableType:
            groups: Groups = await api.call("queue", by="region")
            page: ZonePage = await api.call("zones", sort=sort, limit=limit)
            return Group(_group_table("region", groups.groups), Text(""), _zone_table(page))

        await watch(make, interval_s, times)
        return 0

    return command


def show_one(name: str, as_json: bool) -> Command:
    """A zone or an item in full."""

    async def command(api: Api) -> int:
        if "." in name:
            item: ItemShown = await api.call("item", item=name)
            show(as_json, item, lambda: _item_facts(item))
        else:
            zone: ZoneShown = await api.call("zone", zone=name)
            show(as_json, zone, lambda: _zone_facts(zone))
        return 0

    return command


def _item_facts(item: ItemShown) -> RenderableType:
    state = item.state + (", paused" if item.paused else "") + (", and recurred" if item.recurred else "")
    table = facts(
        ("item", item.item),
        ("zone", item.label),
        ("task", item.task),
        ("subject", item.subject),
        ("bucket", item.bucket or "-"),
        ("state", state + (", with a dead letter" if item.letter and item.state != "dead" else "")),
        ("owed since", f"{moment(item.enqueued)} ({ago(item.age_s)} ago)"),
        ("lease ends" if item.state == "in_flight" else "due", "at once" if item.vests == 0 else moment(item.vests)),
        ("failures", f"{item.attempts:,} in a row"),
        ("last error", str(plain(item.error or "-"))),
    )
    if not item.history:
        return table
    history = table_of("failed", "on node", "error")
    for attempt in item.history:
        history.add_row(moment(attempt.at), attempt.node[:8], plain(attempt.error))
    return Group(table, Text(""), history)


def _zone_facts(zone: ZoneShown) -> RenderableType:
    table = facts(
        ("zone", zone.label),
        ("name", zone.zone),
        ("destination", f"{zone.destination} (region {zone.region or '-'})"),
        ("bucket", zone.bucket or "-"),
        ("oldest due", ago(zone.oldest_s)),
        ("next looked at", "at once" if zone.next_look == 0 else moment(zone.next_look)),
        ("state", "paused" if zone.paused else "a consumer has it" if zone.leased else "open"),
    )
    tasks = table_of("task", *_NUMBERS[:4], "done", "failed", right=(*_NUMBERS[:4], "done", "failed"))
    for each in zone.by_task:
        tasks.add_row(each.task, *_numbers(each)[:4], f"{each.done:,}", f"{each.failed:,}")
    return Group(table, Text(""), tasks)


def items(filters: dict[str, Any], limit: int, as_json: bool) -> Command:
    """Items, those of one zone in their order; JSON is one object a line."""

    async def command(api: Api) -> int:
        rows = await _some(api, filters, limit)
        if as_json:
            for row in rows:
                print_json(row)
        else:
            console().print(_item_table(rows))
        return 0

    return command


async def _some(api: Api, filters: dict[str, Any], limit: int) -> list[ItemRow]:
    rows: list[ItemRow] = []
    with bar("looking", limit) as update:
        async for row in every(api, "items", "items", limit=min(limit, _PAGE), **filters):
            rows.append(row)
            update(advance=1)
            if len(rows) >= limit:
                break
    return rows


def _item_table(rows: list[ItemRow]) -> Table:
    headings = ("zone", "task", "state", "failures", "age", "due", "error", "item")
    table = table_of(*headings, right=("failures", "age"))
    for row in rows:
        error = plain(row.error if len(row.error) <= 80 else row.error[:79] + "…")
        due = "-" if row.state == "in_flight" else "at once" if row.vests == 0 else moment(row.vests)
        about = (row.state, f"{row.attempts:,}", ago(row.age_s), due)
        table.add_row(plain(row.label), row.task, *about, error, row.item)
    return table


# --- acting


def retry(names: list[str], all_dead: bool, filters: dict[str, Any], as_json: bool) -> Command:
    """Have items done at once, or all dead letters that the filters want."""

    async def command(api: Api) -> int:
        if all_dead:
            return await _retry_dead(api, filters, as_json)
        return await _each(api, "retry", names, as_json)

    return command


async def _retry_dead(api: Api, filters: dict[str, Any], as_json: bool) -> int:
    retried, cursor = 0, None
    total = sum(group.dead for group in (await api.call("queue", by="task")).groups)
    with bar("retrying dead letters", total) as update:
        while True:
            done = await api.call("retry_dead", cursor=cursor, **filters)
            retried += done.retried
            update(advance=done.examined)
            cursor = done.cursor
            if cursor is None:
                break
    if as_json:
        print_json({"retried": retried})
    else:
        console().print(f"{retried:,} dead letters are to be tried again")
    return 0


async def _each(api: Api, action: str, names: list[str], as_json: bool, **arguments: Any) -> int:
    """Do something to each item; 1 where one of them was refused."""
    failed = 0
    with bar(action, len(names)) as update:
        for name in names:
            try:
                done = await api.call(action, item=name, **arguments)
            except AdminError as error:
                failed += 1
                complain(f"{name}: {error.code}: {error}")
            else:
                if as_json:
                    print_json(done)
                else:
                    console().print(f"{done.item} {done.done}")
            update(advance=1)
    return 1 if failed else 0


def delay(names: list[str], seconds: float, as_json: bool) -> Command:
    """Have waiting items not begun for so long."""

    async def command(api: Api) -> int:
        return await _each(api, "delay", names, as_json, seconds=seconds)

    return command


def drop(names: list[str], as_json: bool) -> Command:
    """Give items up."""

    async def command(api: Api) -> int:
        return await _each(api, "drop", names, as_json)

    return command


def pause(paused: bool, what: dict[str, str | None], as_json: bool) -> Command:
    """Start nothing more of something, or go on with it; without a name, show what is paused."""

    async def command(api: Api) -> int:
        if not any(what.values()):
            found = await api.call("paused")
            rows = [("zone", each) for each in found.zones] + [("all to", each) for each in found.destinations]
            rows += [("task", each) for each in found.tasks]
            show(as_json, found, lambda: facts(*rows) if rows else Text("nothing is paused"))
            return 0
        done = await api.call("pause" if paused else "resume", **what)
        show(as_json, done, lambda: plain(f"{done.kind} {done.name} {'is paused' if done.paused else 'goes on'}"))
        return 0

    return command


# --- exporting


def export(file: Path, filters: dict[str, Any], as_json: bool) -> Command:
    """Write items as Parquet, a row each."""

    async def command(api: Api) -> int:
        import pyarrow as pa

        schema = pa.schema(
            [
                *((name, pa.string()) for name in ("item", "zone", "label", "task", "subject", "bucket", "region")),
                *((name, pa.string()) for name in ("destination", "state", "error")),
                ("attempts", pa.int64()),
                ("priority", pa.int64()),
                ("enqueued", pa.timestamp("us", tz="UTC")),
                ("vests", pa.timestamp("us", tz="UTC")),
                ("age_s", pa.float64()),
            ]
        )
        dead = filters.get("state") == "dead"
        groups = (await api.call("queue", by="task")).groups

        def table(batch: list[ItemRow]) -> pa.Table:
            columns = {name: [_cell(name, getattr(row, name)) for row in batch] for name in schema.names}
            return pa.table(columns, schema=schema)

        rows = every(api, "items", "items", limit=_PAGE, **filters)
        with bar(f"exporting to {file}", sum(each.dead if dead else each.depth for each in groups)) as update:
            written = await write_parquet(file, schema, rows, table, update)
        if as_json:
            print_json({"file": str(file), "items": written})
        else:
            console().print(f"{written:,} items are in {file}")
        return 0

    return command


def _cell(name: str, value: Any) -> Any:
    return round(value * 1e6) if name in ("enqueued", "vests") and value is not None else value
