"""`tigrislike origin`: what its commands show. Tables and progress for people, JSON for programs.

Results go to standard output, progress to standard error. Exit status: 0 done, 1 refused or failed, or a report that
found differences. What is interrupted goes on where it was when it is run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tigrislike.admin import nodes, origins
from tigrislike.admin.nodes import Sleep
from tigrislike.admin.noting import by_command
from tigrislike.admin.origins import Difference, OriginsError, Use
from tigrislike.config import Settings
from tigrislike.metadata import Metadata, MetadataError
from tigrislike.metadata.kv import EngineError
from tigrislike.metadata.origins import SHADOW
from tigrislike.metadata.records import OriginPlace
from tigrislike.origin import OriginError
from tigrislike.replication.origins import OpenOrigin

Command = Callable[[Metadata], Awaitable[int]]

_LOOK_S: Final = 2.0
"""How often a migration is looked at."""

_ROWS: Final = 10_000
"""Differences of one row group of a report."""


def run(settings: Settings, command: Command, action: str = "", **arguments: object) -> int:
    """Carry out a command on the store of the settings; the exit status. One that changes something is an `action` of
    the audit log, with `arguments`.

    Raises:
        OriginsError: it was refused or failed.
    """

    async def carry_out() -> int:
        async with nodes.opened(settings) as metadata, by_command(metadata, settings, action, arguments):
            return await command(metadata)

    try:
        return asyncio.run(carry_out())
    except MetadataError as error:
        raise OriginsError(f"{error.code}: {error}") from error
    except (EngineError, OriginError, OSError, ValueError) as error:
        raise OriginsError(str(error)) from error
    except KeyboardInterrupt:
        raise OriginsError("interrupted; run it again to go on") from None


def use(name: str, place: OriginPlace, write_through: bool, as_json: bool) -> Command:
    """Have a bucket look through to the origin at `place`."""

    async def command(metadata: Metadata) -> int:
        bucket = await metadata.use_origin(name, SHADOW, place, write_through=write_through)
        _show([use for use in await origins.uses(metadata, bucket) if use.purpose == SHADOW], as_json)
        return 0

    return command


def show(name: str, as_json: bool) -> Command:
    """What a bucket uses, and how its migration stands."""

    async def command(metadata: Metadata) -> int:
        bucket = await metadata.bucket(name)
        uses = await origins.uses(metadata, bucket)
        if not uses:
            raise OriginsError(f"bucket {name} uses no origin")
        _show(uses, as_json)
        standing = await origins.progress(metadata, bucket)
        if standing is not None:
            _print(standing, as_json, _said(standing))
        elif any(msgspec.structs.astuple(owed := await origins.owed(metadata, bucket))):
            _print(owed, as_json, ", ".join(_said_of(owed)))
        return 0

    return command


def clear(name: str, purpose: str) -> Command:
    """Have a bucket use none any more. What it has of it stays."""

    async def command(metadata: Metadata) -> int:
        await origins.place_of(metadata, await metadata.bucket(name), purpose)
        also = {"write_through": False} if purpose == SHADOW else {}
        await metadata.use_origin(name, purpose, None, **also)
        _console().print(f"bucket {name} has no {purpose} origin any more")
        return 0

    return command


def ls(as_json: bool) -> Command:
    """What every bucket uses."""

    async def command(metadata: Metadata) -> int:
        _show([use async for use in origins.all_uses(metadata)], as_json)
        return 0

    return command


def check(name: str, purpose: str, open_origin: OpenOrigin, as_json: bool) -> Command:
    """Whether a bucket's origin answers, from here."""

    async def command(metadata: Metadata) -> int:
        place = await origins.place_of(metadata, await metadata.bucket(name), purpose)
        async with origins.opened(open_origin, place) as origin:
            checked = await origins.check(origin)
        found = "it is empty" if checked.key is None else f"{_plain(checked.key)} ({checked.size:,} bytes) was read"
        lost = f"; what it cannot tell or keep: {', '.join(checked.loses)}" if checked.loses else ""
        _print(checked, as_json, f"{checked.name} answers: {found}{lost}")
        return 0

    return command


def migrate(name: str, prefix: str, rate: int, wait: bool, as_json: bool, *, sleep: Sleep = asyncio.sleep) -> Command:
    """Have everything of a bucket's shadow brought here; with `wait`, until it is."""

    async def command(metadata: Metadata) -> int:
        bucket, _ = await metadata.begin_migration(name, prefix, rate)
        standing = await origins.progress(metadata, bucket)
        if not wait:
            _print(standing, as_json, f"bucket {name} migrates; `tigrislike origin show {name}` says how far it is")
            return 0
        with _bar(f"migrating {name}") as update:
            while True:
                standing = await origins.progress(metadata, bucket)
                if standing is None:
                    raise OriginsError(f"bucket {name} was deleted")
                update(_said(standing))
                if standing.done:
                    break
                await sleep(_LOOK_S)
        _print(standing, as_json, _said(standing))
        return 1 if standing.failed or standing.given_up else 0

    return command


def report(name: str, prefix: str, output: Path, open_origin: OpenOrigin, as_json: bool) -> Command:
    """Write what differs between a bucket and its shadow into a Parquet file; 1 where something does."""

    async def command(metadata: Metadata) -> int:
        bucket = await metadata.bucket(name)
        place = await origins.place_of(metadata, bucket)
        looked = differing = 0

        def noticed(keys: int) -> None:
            nonlocal looked
            looked += keys
            update(f"{looked:,} keys, {differing:,} differ")

        async with origins.opened(open_origin, place) as origin:
            with _bar(f"comparing {name}") as update, _report_file(output) as write:
                async with aclosing(origins.differences(metadata, origin, bucket, prefix, noticed=noticed)) as found:  # type: ignore[type-var]
                    async for difference in found:
                        differing += 1
                        write(difference)
            loses = sorted(origin.loses)
        told = f"{looked:,} keys, {differing:,} differ: {output}"
        lost = f"; not compared, for the origin does not tell it: {', '.join(loses)}" if loses else ""
        _print({"looked": looked, "differ": differing, "output": str(output), "loses": loses}, as_json, told + lost)
        return 1 if differing else 0

    return command


@contextlib.contextmanager
def _report_file(path: Path) -> Iterator[Callable[[Difference], None]]:
    """A Parquet file that appears whole when the block ends well, or not at all. Yields what adds a row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    moment = pa.timestamp("ns", tz="UTC")
    schema = pa.schema(
        {
            "key": pa.string(),
            "differs": pa.list_(pa.string()),
            "size_here": pa.int64(),
            "size_there": pa.int64(),
            "etag_here": pa.string(),
            "etag_there": pa.string(),
            "modified_here": moment,
            "modified_there": moment,
        }
    )
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    rows: list[tuple[Any, ...]] = []

    def flush() -> None:
        columns = zip(*rows, strict=True) if rows else [()] * len(schema)
        arrays = [pa.array(list(column), field.type) for column, field in zip(columns, schema, strict=True)]
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        rows.clear()

    def write(difference: Difference) -> None:
        rows.append(msgspec.structs.astuple(difference))
        if len(rows) == _ROWS:
            flush()

    try:
        with pq.ParquetWriter(aside, schema) as writer:
            yield write
            flush()
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _said(standing: origins.Progress) -> str:
    parts = [f"{standing.looked:,} keys", f"{standing.adopted:,} adopted"]
    if standing.failed:
        parts.append(f"{standing.failed:,} failed")
    parts += _said_of(standing)
    if standing.error:
        parts.append(f"waits: {standing.error}")
    return ", ".join([*parts, "done" if standing.done else "under way"])


def _said_of(owed: origins.Owed) -> list[str]:
    parts = [f"bytes of {owed.fetching:,} to fetch" if owed.fetching else "no bytes to fetch"]
    if owed.mirroring:
        parts.append(f"{owed.mirroring:,} to mirror")
    if owed.given_up:
        parts.append(f"{owed.given_up:,} given up")
    return parts


def _show(uses: list[Use], as_json: bool) -> None:
    if as_json:
        for each in uses:
            _print_json(each)
        return
    table = Table("bucket", "purpose", "origin", "endpoint", "region", "access key", "write-through", box=None)
    for each in uses:
        through = "yes" if each.write_through else "no"
        table.add_row(
            each.bucket,
            each.purpose,
            each.url,
            each.endpoint or "-",
            each.region or "-",
            each.access_key or "-",
            through,
        )
    _console().print(table)


def _print(value: Any, as_json: bool, said: str) -> None:
    if as_json:
        _print_json(value)
    else:
        _console().print(said)


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Callable[[str], None]]:
    """A line on standard error that shows that something goes on, and what it says of itself."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[said]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=None, said="")
        yield lambda said: progress.update(task, said=said)


def _console() -> Console:
    """Standard output, as wide as it takes where nobody looks at it."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 4096)


def _print_json(value: Any) -> None:
    print(msgspec.json.encode(value).decode(), flush=True)


def _plain(text: str) -> str:
    """A key as one line that no terminal takes for commands."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
