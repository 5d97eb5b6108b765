"""What the commands over the admin API share: where they ask, tables and progress bars for people, JSON for programs.

Results go to standard output, progress and complaints to standard error. Exit status: 0 done, 1 refused or failed,
3 where a command that was told to check found something that deserves attention.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tigrislike.config import Settings
from tigrislike.metadata import MetadataError
from tigrislike.metadata.kv import EngineError

from .client import Api, RemoteApi, local
from .desk import AdminError
from .wording import duration

Command = Callable[[Api], Awaitable[int]]

T = TypeVar("T")

ATTENTION: Final = 3
_GROUP_ROWS: Final = 10_000
"""Rows of a group in a Parquet file: what is in memory at a time."""
_SHOW_AFTER_S: Final = 1.0
"""What is over sooner needs no progress bar."""


class CommandError(Exception):
    """A command could not be carried out; the message is for the person who asked."""


def run(settings: Settings, endpoint: str | None, command: Command) -> int:
    """Carry out a command, on the node at `endpoint` or on the store of the settings; the exit status.

    Raises:
        CommandError: it was refused or failed.
    """

    async def carry_out() -> int:
        async with _api(settings, endpoint) as api:
            return await command(api)

    try:
        return asyncio.run(carry_out())
    except (AdminError, MetadataError) as error:
        raise CommandError(f"{error.code}: {error}") from error
    except (EngineError, OSError, ValueError) as error:
        raise CommandError(str(error)) from error
    except KeyboardInterrupt:
        raise CommandError("interrupted") from None


@contextlib.asynccontextmanager
async def _api(settings: Settings, endpoint: str | None) -> AsyncIterator[Api]:
    if endpoint is None:
        async with local(settings) as api:
            yield api
        return
    remote = RemoteApi(endpoint, *_keys(settings), os.environ.get("AWS_CA_BUNDLE") or None)
    with contextlib.closing(remote):
        yield remote


def _keys(settings: Settings) -> tuple[str, str]:
    """An admin key: root's of the settings, or that of AWS's environment variables or profile.

    Raises:
        CommandError: there is none.
    """
    if settings.root_access_key:
        return settings.root_access_key, settings.root_secret_key
    key_id, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not (key_id and secret):
        import botocore.exceptions
        import botocore.session

        session = botocore.session.Session()
        try:
            profile = session.get_config_variable("profile") or "default"
            found = session.full_config.get("profiles", {}).get(profile, {})
        except botocore.exceptions.BotoCoreError as error:
            raise CommandError(str(error)) from error
        key_id, secret = found.get("aws_access_key_id"), found.get("aws_secret_access_key")
    if not (key_id and secret):
        raise CommandError(
            "--endpoint needs an admin key: export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile in "
            "AWS_PROFILE"
        )
    return key_id, secret


# --- showing


def show(as_json: bool, result: Any, table: Callable[[], RenderableType]) -> None:
    """Print a result: as one JSON document, or as what `table` makes of it."""
    if as_json:
        print_json(result)
    else:
        console().print(table())


async def watch(make: Callable[[], Awaitable[RenderableType]], interval_s: float, times: int | None) -> None:
    """Show what `make` makes again and again, in place, until interrupted or so many `times`; once and plainly where
    nobody looks."""
    if not sys.stdout.isatty() and times is None:
        times = 1
    shown = 0
    with Live(console=console(), auto_refresh=False, transient=False) as live:
        while True:
            live.update(await make(), refresh=True)
            shown += 1
            if times is not None and shown >= times:
                return
            await asyncio.sleep(interval_s)


@contextlib.contextmanager
def bar(what: str, total: float | None) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error, once it has taken a second. Yields `Progress.update` of its one task."""
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    progress = Progress(*columns, console=Console(stderr=True))
    task = progress.add_task(what, total=total)
    showing = asyncio.get_running_loop().call_later(_SHOW_AFTER_S, progress.start)
    try:
        yield partial(progress.update, task)
    finally:
        showing.cancel()
        if progress.live.is_started:
            progress.stop()


async def write_parquet(
    file: Path,
    schema: Any,
    rows: AsyncIterator[T],
    table: Callable[[list[T]], Any],
    update: Callable[..., None],
) -> int:
    """Write rows to a new Parquet file, which is there once it is whole; how many they are.

    Args:
        schema, table: of Arrow: the file's, and what makes a table of it out of some rows.
        update: of a `bar`.

    Raises:
        CommandError: there is such a file.
    """
    import pyarrow.parquet as pq

    if file.exists():  # noqa: ASYNC240  # nobody else is waiting
        raise CommandError(f"{file} exists already; it is not overwritten")
    aside = file.with_name(f".{file.name}.part")
    written, batch = 0, list[T]()
    try:
        with pq.ParquetWriter(aside, schema, compression="zstd") as writer:
            async for row in rows:
                batch.append(row)
                written += 1
                update(advance=1)
                if len(batch) == _GROUP_ROWS:
                    writer.write_table(table(batch))
                    batch.clear()
            writer.write_table(table(batch))
        aside.rename(file)
    finally:
        aside.unlink(missing_ok=True)
    return written


def console() -> Console:
    """Standard output, as wide as it takes where nobody looks at it."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 4096)


def table_of(*headings: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return table


def facts(*rows: tuple[str, str]) -> Table:
    """Names and values."""
    table = Table(show_header=False, box=None)
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def print_json(value: Any) -> None:
    print(msgspec.json.encode(value).decode(), flush=True)


def complain(message: str) -> None:
    print(f"tigrislike: {message}", file=sys.stderr)


def plain(text: str) -> Text:
    """Text that somebody else chose, as one line that no terminal takes for commands."""
    return Text(text if text.isprintable() else text.encode("unicode_escape").decode())


def ago(seconds: float | None) -> str:
    """How long; a dash where there is nothing."""
    return "-" if seconds is None else duration(seconds)


def rate(per_second: float | None) -> str:
    return "-" if per_second is None else f"{per_second:,.1f}/s"


def moment(at: float | None) -> str:
    if at is None:
        return "-"
    return f"{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
