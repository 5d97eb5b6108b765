"""What `tigrislike admin copy-metadata` shows: a progress bar for people, JSON lines for programs."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator

import msgspec

from tigrislike.admin.copy import Copied, Step, Store, abort_copy, copy_metadata
from tigrislike.admin.reach import reached


def run_copy(source_url: str, target_url: str, *, keep_source: bool, as_json: bool) -> None:
    """Copy, telling on standard output how it ended.

    With `as_json` that is one object a line: steps with `phase`, `rows`, `bytes`; then the result, with `digest`.

    Raises:
        CopyError, EngineError, OSError, ValueError: as `copy_metadata` and `reached`.
    """

    async def run(report: Callable[[Step], None]) -> Copied:
        async with reached(source_url) as source, reached(target_url, make=True) as target:
            return await copy_metadata(
                Store(source, source_url), Store(target, target_url), keep_source=keep_source, report=report
            )

    with _telling_json() if as_json else _bars() as report:
        copied = asyncio.run(run(report))
    if as_json:
        print(msgspec.json.encode(copied).decode(), flush=True)
        return
    resumed = f" ({copied.resumed_rows:,} of them by an earlier run)" if copied.resumed_rows else ""
    print(f"{copied.rows:,} rows, {copied.bytes:,} bytes{resumed}, the same on both sides: {copied.digest}")
    if keep_source:
        print(f"{source_url} takes writes again; {target_url} is a copy of it")
    else:
        print(f"the store has moved: start its nodes with --metadata {target_url}")


def run_abort(source_url: str, target_url: str | None, *, force: bool) -> str:
    """Give a copy up; a sentence for the operator.

    Raises:
        CopyError, EngineError, OSError, ValueError: as `abort_copy` and `reached`.
    """

    async def run() -> str:
        async with contextlib.AsyncExitStack() as opened:
            source = Store(await opened.enter_async_context(reached(source_url)), source_url)
            target = None
            if target_url is not None:
                target = Store(await opened.enter_async_context(reached(target_url)), target_url)
            return await abort_copy(source, target, force=force)

    return asyncio.run(run())


@contextlib.contextmanager
def _telling_json() -> Iterator[Callable[[Step], None]]:
    def report(step: Step) -> None:
        print(msgspec.json.encode(step).decode(), flush=True)

    yield report


@contextlib.contextmanager
def _bars() -> Iterator[Callable[[Step], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    progress = Progress(*columns, console=Console(file=sys.stderr))
    tasks: dict[str, TaskID] = {}
    with contextlib.ExitStack() as shown:

        def report(step: Step) -> None:
            if not tasks:  # what is refused before anything was copied is told without a bar
                shown.enter_context(progress)
            if step.phase not in tasks:
                tasks[step.phase] = progress.add_task(step.phase, total=None, rows=0)
            progress.update(tasks[step.phase], completed=step.bytes, total=step.of_bytes or None, rows=step.rows)

        yield report
