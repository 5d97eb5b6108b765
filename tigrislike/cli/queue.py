"""`tigrislike queue`: the work that is owed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from tigrislike.cli.base import AS_JSON, DATABASE, ENDPOINT, INTERVAL, TIMES, call_api, command, fail, group
from tigrislike.config import Settings

if TYPE_CHECKING:
    from tigrislike.admin.commands import Command


queue = group("queue", "The work that is owed: look at it, and act on it.")


_ZONE = Annotated[
    str | None, typer.Option(help="Of this zone: REGION/BUCKET, node:ID/BUCKET or its hex name.", metavar="ZONE")
]
_REGION = Annotated[str | None, typer.Option(help="Of this region and its nodes.", metavar="NAME")]
_BUCKET = Annotated[str | None, typer.Option(help="Of this bucket.", metavar="NAME")]
_TASK = Annotated[str | None, typer.Option(help="Of this task.", metavar="NAME")]
_ERROR = Annotated[str | None, typer.Option(help="With this text in the last error.", metavar="TEXT")]
_LIMIT = Annotated[int, typer.Option(help="Most rows to show.", min=1)]
_ITEMS = Annotated[list[str], typer.Argument(help="Items, as `queue items` names them.", metavar="ITEM...")]


def _complete(*words: str) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


_SORTS = ("oldest", "depth", "failing", "dead", "name")
_STATES = ("due", "delayed", "in_flight", "failing", "dead")


def _expect(option: str, value: str | None, words: tuple[str, ...]) -> None:
    if value is not None and value not in words:
        fail(f"{option} {value!r}: expected {', '.join(words[:-1])} or {words[-1]}")


_BY = Annotated[
    str,
    typer.Option(
        help="task, region, destination, bucket or zone.",
        autocompletion=_complete("task", "region", "destination", "bucket", "zone"),
    ),
]
_SORT = Annotated[
    str,
    typer.Option(
        help="Of zones: oldest, depth, failing, dead or name.",
        autocompletion=_complete(*_SORTS),
    ),
]
_STATE = Annotated[
    str | None,
    typer.Option(
        help="due, delayed, in_flight, failing or dead.",
        autocompletion=_complete(*_STATES),
    ),
]


def _queue(settings: Settings, endpoint: str | None, command: Callable[[ModuleType], Command]) -> NoReturn:
    call_api(settings, endpoint, command, "queue_commands")


@command(queue, "ls", DATABASE)
def queue_ls(
    settings: Settings,
    *,
    by: _BY = "task",
    region: _REGION = None,
    bucket: _BUCKET = None,
    task: _TASK = None,
    sort: _SORT = "oldest",
    limit: _LIMIT = 50,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 3 where something fails, is dead or has been due for a minute.")
    ] = False,
    endpoint: ENDPOINT = None,
    as_json: AS_JSON = False,
) -> None:
    """How much is owed, how old it is, how fast it is done: by task, region, destination, bucket or zone."""
    if by not in ("task", "region", "destination", "bucket", "zone"):
        fail(f"--by {by!r}: expected task, region, destination, bucket or zone")
    _expect("--sort", sort, _SORTS)
    filters = {"region": region, "bucket": bucket, "task": task}
    if by != "zone" and any(filters.values()):
        fail("--region, --bucket and --task go with --by zone")
    _queue(settings, endpoint, lambda commands: commands.ls(by, filters, sort, limit, check, as_json))


@command(queue, "top", DATABASE)
def queue_top(
    settings: Settings,
    *,
    sort: _SORT = "oldest",
    limit: _LIMIT = 20,
    interval: INTERVAL = 2.0,
    times: TIMES = None,
    endpoint: ENDPOINT = None,
) -> None:
    """Regions, and the zones that deserve to be looked at, live."""
    _expect("--sort", sort, _SORTS)
    _queue(settings, endpoint, lambda commands: commands.top(sort, limit, interval, times))


@command(queue, "show", DATABASE)
def queue_show(
    settings: Settings,
    name: Annotated[str, typer.Argument(help="A zone (REGION/BUCKET) or an item.", metavar="NAME")],
    *,
    endpoint: ENDPOINT = None,
    as_json: AS_JSON = False,
) -> None:
    """A zone by task, or an item with its last failed runs."""
    _queue(settings, endpoint, lambda commands: commands.show_one(name, as_json))


@command(queue, "items", DATABASE)
def queue_items(
    settings: Settings,
    *,
    zone: _ZONE = None,
    region: _REGION = None,
    bucket: _BUCKET = None,
    task: _TASK = None,
    state: _STATE = None,
    error: _ERROR = None,
    limit: _LIMIT = 50,
    endpoint: ENDPOINT = None,
    as_json: AS_JSON = False,
) -> None:
    """Items, those of a zone in the order in which they are done."""
    _expect("--state", state, _STATES)
    filters = {"zone": zone, "region": region, "bucket": bucket, "task": task, "state": state, "error": error}
    _queue(settings, endpoint, lambda commands: commands.items(filters, limit, as_json))


@command(queue, "dead", DATABASE)
def queue_dead(
    settings: Settings,
    *,
    zone: _ZONE = None,
    region: _REGION = None,
    bucket: _BUCKET = None,
    task: _TASK = None,
    error: _ERROR = None,
    limit: _LIMIT = 50,
    endpoint: ENDPOINT = None,
    as_json: AS_JSON = False,
) -> None:
    """Dead letters: what failed too often, and is tried no more until it is retried."""
    filters = {"zone": zone, "region": region, "bucket": bucket, "task": task, "state": "dead", "error": error}
    _queue(settings, endpoint, lambda commands: commands.items(filters, limit, as_json))


@command(queue, "retry", DATABASE)
def queue_retry(
    settings: Settings,
    items: Annotated[list[str] | None, typer.Argument(help="Items, as `queue items` names them.")] = None,
    *,
    dead: Annotated[bool, typer.Option("--dead", help="All dead letters that the filters want.")] = False,
    zone: _ZONE = None,
    region: _REGION = None,
    bucket: _BUCKET = None,
    task: _TASK = None,
    error: _ERROR = None,
    endpoint: ENDPOINT = None,
    as_json: AS_JSON = False,
) -> None:
    """Have items done at once, dead letters with all their attempts anew."""
    filters = {"zone": zone, "region": region, "bucket": bucket, "task": task, "error": error}
    if bool(items) == dead:
        fail("name items, or --dead for dead letters")
    if any(filters.values()) and not dead:
        fail("the filters go with --dead")
    _queue(settings, endpoint, lambda commands: commands.retry(items or [], dead, filters, as_json))


@command(queue, "delay", DATABASE)
def queue_delay(
    settings: Settings,
    items: _ITEMS,
    *,
    by: Annotated[str, typer.Option("--for", help="How long, such as 30m.", metavar="DURATION")],
    endpoint: ENDPOINT = None,
    as_json: AS_JSON = False,
) -> None:
    """Have waiting items not begun for a while. Those that are due later than that anyway stay as they are."""
    from tigrislike.config import parse_duration

    try:
        seconds = parse_duration(by)
    except ValueError as error:
        fail(f"--for {by!r}: {error}")
    _queue(settings, endpoint, lambda commands: commands.delay(items, seconds, as_json))


@command(queue, "drop", DATABASE)
def queue_drop(
    settings: Settings,
    items: _ITEMS,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    endpoint: ENDPOINT = None,
    as_json: AS_JSON = False,
) -> None:
    """Give items up: what they owe is never done."""
    if not yes and not typer.confirm(f"Never do what these {len(items)} items owe?", err=True):
        fail("nothing was dropped")
    _queue(settings, endpoint, lambda commands: commands.drop(items, as_json))


@command(queue, "pause", DATABASE)
def queue_pause(
    settings: Settings,
    *,
    zone: _ZONE = None,
    region: _REGION = None,
    task: _TASK = None,
    endpoint: ENDPOINT = None,
    as_json: AS_JSON = False,
) -> None:
    """Start nothing more of a zone, region or task; what is under way goes on. Without a name: show what is paused."""
    what = {"zone": zone, "region": region, "task": task}
    _queue(settings, endpoint, lambda commands: commands.pause(True, what, as_json))


@command(queue, "resume", DATABASE)
def queue_resume(
    settings: Settings,
    *,
    zone: _ZONE = None,
    region: _REGION = None,
    task: _TASK = None,
    endpoint: ENDPOINT = None,
    as_json: AS_JSON = False,
) -> None:
    """Go on with what was paused."""
    what = {"zone": zone, "region": region, "task": task}
    if not any(what.values()):
        fail("name a zone, region or task; `tigrislike queue pause` shows what is paused")
    _queue(settings, endpoint, lambda commands: commands.pause(False, what, as_json))


@command(queue, "export", DATABASE)
def queue_export(
    settings: Settings,
    file: Annotated[Path, typer.Argument(help="The Parquet file to write; a new one.", metavar="FILE")],
    *,
    zone: _ZONE = None,
    region: _REGION = None,
    bucket: _BUCKET = None,
    task: _TASK = None,
    state: _STATE = None,
    error: _ERROR = None,
    endpoint: ENDPOINT = None,
    as_json: AS_JSON = False,
) -> None:
    """Write items to a Parquet file, a row each."""
    _expect("--state", state, _STATES)
    filters = {"zone": zone, "region": region, "bucket": bucket, "task": task, "state": state, "error": error}
    _queue(settings, endpoint, lambda commands: commands.export(file, filters, as_json))
