"""`tigrislike top`, `buckets ls` and `show`, and `keys`: the store, its buckets and access keys from a terminal."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.text import Text

from tigrislike.replication.inventory_format import OPTIONAL_FIELDS, PARQUET, Plan, arrow_schema, arrow_table

from .client import Api, every
from .commands import (
    Command,
    ago,
    bar,
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
from .overview import Overview, RegionRow
from .stores import BucketRow, BucketShown, KeyRow

_HEALTH = {"ok": "green", "attention": "yellow", "stuck": "bold red"}


def top(interval_s: float, times: int | None, as_json: bool) -> Command:
    """The store at a glance, again and again; as JSON an object a line."""

    async def command(api: Api) -> int:
        if as_json:
            print_json(await api.call("overview"))
            return 0

        async def make() -> RenderableType:
            return _overview(await api.call("overview"))

        await watch(make, interval_s, times)
        return 0

    return command


def _overview(found: Overview) -> RenderableType:
    regions = table_of(
        "region", "health", "nodes", "depth", "in flight", "failing", "dead", "oldest", "in", "out", "where, why",
        right=("nodes", "depth", "in flight", "failing", "dead", "oldest", "in", "out"),
    )  # fmt: skip
    for row in (*found.regions, found.anybody):
        regions.add_row(*_region(row))
    tasks = table_of("task", "depth", "in flight", "failing", "dead", "in", "out", right=("depth", "in flight"))
    for task in found.tasks:
        counts = (f"{count:,}" for count in (task.depth, task.in_flight, task.failing, task.dead))
        tasks.add_row(task.name, *counts, rate(task.rate_in), rate(task.rate_out))
    state = Text.assemble((found.health, _HEALTH[found.health]), f"  {moment(found.at)}  {found.buckets:,} buckets")
    return Group(state, Text(""), regions, Text(""), tasks)


def _region(row: RegionRow) -> list[str | Text]:
    counts = [f"{count:,}" for count in (row.depth, row.in_flight, row.failing, row.dead)]
    where = [row.oldest.label] if row.oldest is not None else []
    return [
        row.region,
        Text(row.health, style=_HEALTH[row.health]),
        f"{row.alive}/{row.nodes}",
        *counts,
        ago(row.oldest_s),
        rate(row.rate_in),
        rate(row.rate_out),
        plain("; ".join([*where, *row.why])),
    ]


# --- buckets


def buckets(prefix: str, as_json: bool) -> Command:
    """Every bucket; JSON is one object a line."""

    async def command(api: Api) -> int:
        numbers = ("objects", "bytes", "pending", "dead")
        table = table_of("bucket", "regions", "durability", "read mode", *numbers, right=numbers)
        async for row in every(api, "buckets", "buckets", prefix=prefix, limit=1000):
            if as_json:
                print_json(row)
            else:
                table.add_row(*_bucket(row))
        if not as_json:
            console().print(table)
        return 0

    return command


def _bucket(row: BucketRow) -> list[str]:
    counts = [f"{row.objects:,}", decimal(row.bytes), f"{row.pending:,}", f"{row.dead:,}"]
    return [row.name, row.regions, row.durability, row.read_mode, *counts]


def bucket(name: str, as_json: bool) -> Command:
    """One bucket in full."""

    async def command(api: Api) -> int:
        shown: BucketShown = await api.call("bucket", bucket=name)
        show(as_json, shown, lambda: _bucket_facts(shown))
        return 0

    return command


def _bucket_facts(shown: BucketShown) -> RenderableType:
    table = facts(
        ("bucket", shown.name),
        ("owner", shown.owner),
        ("made", moment(shown.created)),
        ("regions", shown.regions),
        ("durability", shown.durability),
        ("read mode", shown.read_mode),
        ("versioning", shown.versioning or "off"),
        ("public", "yes" if shown.public else "no"),
        ("objects", f"{shown.objects:,}, and {shown.noncurrent:,} other versions"),
        ("bytes", decimal(shown.bytes)),
        ("origins", _origins_of(shown)),
        ("configured", ", ".join(shown.documents) or "-"),
        ("owed", ", ".join(f"{task} {count:,}" for task, count in shown.work.items()) or "nothing"),
        ("dead letters", f"{shown.dead:,}"),
    )
    of = f"{shown.sampled:,} objects" if shown.complete else f"the first {shown.sampled:,} objects"
    replicas = table_of("region", "objects", "bytes", right=("objects", "bytes"))
    for each in shown.replicas:
        replicas.add_row(each.region, f"{each.objects:,}", decimal(each.bytes))
    return Group(table, Text(""), Text(f"Of {of}, {shown.inline:,} are in the database, and regions hold:"), replicas)


def _origins_of(shown: BucketShown) -> str:
    used = [purpose for purpose, has in (("shadow", shown.shadow), ("backing", shown.backing)) if has]
    return f"{' and '.join(used)}: see `tigrislike origin show {shown.name}`" if used else "-"


def inventory(name: str, file: Path, prefix: str, versions: bool, as_json: bool) -> Command:
    """Write what a bucket holds as Parquet, a row each."""

    async def command(api: Api) -> int:
        shown: BucketShown = await api.call("bucket", bucket=name)
        owner = (await api.call("inventory", bucket=name, limit=1)).owner
        plan = Plan(name, owner, PARQUET, prefix, versions, OPTIONAL_FIELDS)
        schema = arrow_schema(plan)
        total = None if prefix else shown.objects + (shown.noncurrent if versions else 0)
        rows = every(api, "inventory", "objects", bucket=name, prefix=prefix, versions=versions, limit=1000)
        with bar(f"listing {name} into {file}", total) as update:
            written = await write_parquet(file, schema, rows, partial(arrow_table, plan, schema), update)
        if as_json:
            print_json({"file": str(file), "objects": written})
        else:
            console().print(f"{written:,} {'versions' if versions else 'objects'} are in {file}")
        return 0

    return command


# --- keys


def keys(as_json: bool) -> Command:
    """Every access key, without its secret; JSON is one object a line."""

    async def command(api: Api) -> int:
        table = table_of("key", "owner", "reaches", "made", "")
        async for row in every(api, "keys", "keys", limit=1000):
            if as_json:
                print_json(row)
            else:
                table.add_row(*_key(row))
        if not as_json:
            console().print(table)
        return 0

    return command


def _key(row: KeyRow) -> list[str]:
    kind = "root" if row.root else "admin" if row.admin else ""
    return [row.key_id, row.owner, row.bucket or "all buckets", moment(row.created), kind]


def create_key(bucket: str, admin: bool, as_json: bool) -> Command:
    """Make a key, and show its secret this once."""

    async def command(api: Api) -> int:
        made = await api.call("create_key", bucket=bucket, admin=admin)
        _show_pair(made.key_id, made.secret, made, as_json)
        return 0

    return command


def rotate_key(key_id: str, keep: bool, as_json: bool) -> Command:
    """Replace a key by another that may do the same."""

    async def command(api: Api) -> int:
        made = await api.call("rotate_key", key_id=key_id, keep=keep)
        _show_pair(made.key_id, made.secret, made, as_json)
        return 0

    return command


def _show_pair(key_id: str, secret: str, made: object, as_json: bool) -> None:
    if as_json:
        print_json(made)
    else:
        print(f"AWS_ACCESS_KEY_ID={key_id}\nAWS_SECRET_ACCESS_KEY={secret}", flush=True)


def revoke_key(key_id: str, as_json: bool) -> Command:
    """Delete a key."""

    async def command(api: Api) -> int:
        gone = await api.call("revoke_key", key_id=key_id)
        show(as_json, gone, lambda: plain(f"key {gone.key_id} is revoked"))
        return 0

    return command
