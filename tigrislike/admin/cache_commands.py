"""`tigrislike cache`: what its commands show. Tables and progress bars for people, JSON for programs.

Results go to standard output, progress to standard error. Exit status: 0 done, 1 something could not be done (each
thing is named), and nothing is left half done by an interruption.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from functools import partial
from pathlib import PurePath
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from tigrislike.admin import cache, naming
from tigrislike.admin.cache import Changed, Presence, Target
from tigrislike.bytecache import BytesError
from tigrislike.bytecache.scrub import ScrubState
from tigrislike.config import Settings
from tigrislike.metadata import MetadataError
from tigrislike.metadata.kv import EngineError
from tigrislike.node import Node, OpenSource

_PAGE: Final = 1000
"""Rows of one table: a million objects are shown in many."""

_SHOW_AFTER_S: Final = 1.0
"""What is over sooner needs no progress bar."""

Command = Callable[[Node], Awaitable[int]]


class CacheError(Exception):
    """A command could not be carried out; the message is for the person who asked."""


def run(settings: Settings, command: Command, *, open_source: OpenSource | None = None) -> int:
    """Carry out a command on the store of the settings, whether or not a node runs on it; the exit status.

    Args:
        open_source: where blocks come from that are not here; by default from nowhere.

    Raises:
        CacheError: it was refused or failed.
    """

    async def carry_out() -> int:
        async with Node.opened(settings, make=False, open_source=open_source) as node:
            return await command(node)

    try:
        return asyncio.run(carry_out())
    except MetadataError as error:
        raise CacheError(f"{error.code}: {error}") from error
    except (EngineError, BytesError, OSError) as error:
        raise CacheError(str(error)) from error
    except KeyboardInterrupt:
        raise CacheError("interrupted; what is done stays done: run it again to go on") from None


def stat(as_json: bool) -> Command:
    """How full the cache is."""

    async def command(node: Node) -> int:
        status = await cache.status(node)
        if as_json:
            _print_json(status)
            return 0
        usage, scrub = status.usage, status.scrub
        table = Table(show_header=False, box=None)
        capacity = "as the disk allows" if usage.capacity_bytes is None else decimal(usage.capacity_bytes)
        table.add_row("capacity", capacity)
        table.add_row("used", f"{decimal(usage.used_bytes)} in {usage.blocks:,} blocks")
        table.add_row(
            "pinned", f"{decimal(usage.pinned_bytes)} in {usage.pinned_blocks:,} blocks; {status.pins:,} pins"
        )
        table.add_row("being fetched", decimal(usage.filling_bytes))
        table.add_row("policy", usage.policy)
        table.add_row("ready", "yes" if usage.ready else "no: not reconciled since the machine or the index was new")
        table.add_row("disk", f"{decimal(status.available_bytes)} free of {decimal(status.disk_bytes)}")
        table.add_row("last scrub", _when(scrub))
        if scrub.under_way:
            table.add_row("scrub", f"{scrub.progress:.0%} of a pass, {scrub.blocks:,} blocks")
        table.add_row("damaged", f"{scrub.damaged:,} blocks" + "".join(f"\n  {name}" for name in scrub.names))
        _console().print(table)
        return 0

    return command


def ls(target: Target, as_json: bool) -> Command:
    """How much of each object is here."""

    async def command(node: Node) -> int:
        rows: list[Presence] = []
        count = size = here = 0
        async with aclosing(cache.present(node, target)) as found:
            async for presence in found:
                count += 1
                size += presence.size
                here += presence.here_bytes
                if as_json:
                    _print_json(presence)
                    continue
                rows.append(presence)
                if len(rows) == _PAGE:
                    _print_objects(rows)
                    rows.clear()
        if not as_json:
            _print_objects(rows)
            _console().print(f"{count:,} objects, {decimal(here)} of {decimal(size)} here")
        return 0

    return command


def warm(target: Target, as_json: bool) -> Command:
    """Fetch and pin; 1 where an object could not be fetched."""

    async def command(node: Node) -> int:
        count, size = await cache.size_of(node, target)
        columns = DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
        with _bar(f"warming {target}", size, *columns) as update:
            done = await cache.warm(node, target, lambda size: update(advance=size))
        if as_json:
            _print_json(done)
        else:
            _console().print(
                f"{done.objects:,} of {count:,} objects are here and pinned: {decimal(done.bytes)}, "
                f"{decimal(done.fetched_bytes)} of them fetched now"
            )
            for key, why in done.failed:
                _complain(f"{_plain(key)}: {why}")
        return 1 if done.failed else 0

    return command


def pin(target: Target, as_json: bool) -> Command:
    return _changing(cache.pin, target, as_json, "{objects:,} objects pinned")


def unpin(target: Target, as_json: bool) -> Command:
    return _changing(cache.unpin, target, as_json, "{objects:,} objects may be evicted; {blobs:,} pins dropped")


def evict(target: Target, as_json: bool) -> Command:
    return _changing(cache.evict, target, as_json, "{objects:,} objects: {size} evicted; {left:,} are pinned and stay")


def scrub(as_json: bool) -> Command:
    """Verify every block now; 1 where one is damaged for good."""

    async def command(node: Node) -> int:
        with _bar("scrubbing", 1.0, TaskProgressColumn(), TimeRemainingColumn()) as update:
            state = await node.scrubber().run(lambda state: update(completed=state.progress))
            update(completed=state.progress)
        if as_json:
            _print_json(state)
        else:
            _console().print(
                f"{state.blocks:,} blocks ({decimal(state.bytes)}) verified: "
                f"{state.healed:,} healed, {state.damaged:,} damaged"
            )
            buckets = await naming.bucket_names(node.metadata) if state.names else {}
            for name in state.names:
                of = await naming.owners(node.metadata, buckets, bytes.fromhex(PurePath(name).stem))
                _complain(f"{name} is damaged, and nobody else has it; of {of}")
        return 1 if state.damaged else 0

    return command


def _changing(
    change: Callable[[Node, Target], Awaitable[Changed]], target: Target, as_json: bool, sentence: str
) -> Command:
    async def command(node: Node) -> int:
        with _bar(str(target), None, TimeElapsedColumn()):
            done = await change(node, target)
        if as_json:
            _print_json(done)
        else:
            facts = {"objects": done.objects, "blobs": done.blobs, "size": decimal(done.bytes), "left": done.left}
            _console().print(sentence.format(**facts))
        return 0

    return command


@contextlib.contextmanager
def _bar(what: str, total: float | None, *columns: ProgressColumn) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error, once it has taken a second. Yields `Progress.update` of its one task."""
    described = TextColumn("{task.description}", markup=False)
    progress = Progress(described, BarColumn(), *columns, console=Console(stderr=True))
    task = progress.add_task(_plain(what), total=total)
    showing = asyncio.get_running_loop().call_later(_SHOW_AFTER_S, progress.start)
    try:
        yield partial(progress.update, task)
    finally:
        showing.cancel()
        if progress.live.is_started:
            progress.stop()


def _print_objects(rows: list[Presence]) -> None:
    if not rows:
        return
    table = Table("key", box=None)
    for heading in ("size", "here", "home", "cache", "blocks"):
        table.add_column(heading, justify="right")
    table.add_column("pinned")
    for row in rows:
        here = f"{row.here_bytes / row.size:.0%}" if row.size else "100%"
        counts = (f"{count:,}" for count in (row.home_blocks, row.cache_blocks, row.blocks))
        table.add_row(Text(_plain(row.key)), decimal(row.size), here, *counts, "pinned" if row.pinned else "")
    _console().print(table)


def _console() -> Console:
    """Standard output, as wide as it takes where nobody looks at it."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 4096)


def _print_json(value: Any) -> None:
    print(msgspec.json.encode(value).decode(), flush=True)


def _complain(message: str) -> None:
    print(f"tigrislike: {message}", file=sys.stderr)


def _plain(text: str) -> str:
    """A key as one line that no terminal takes for commands."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _when(scrub: ScrubState) -> str:
    if not scrub.completed_ns:
        return "never"
    moment = datetime.datetime.fromtimestamp(scrub.completed_ns / 1e9, datetime.UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
