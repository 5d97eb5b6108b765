"""`tigrislike nodes`: what its commands show. Tables and progress bars for people, JSON for programs.

Results go to standard output, progress to standard error. Exit status: 0 done, 1 refused or not wholly done. What is
interrupted goes on where it was when it is run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tigrislike.admin import naming, nodes
from tigrislike.admin.nodes import NodesError
from tigrislike.admin.noting import by_command
from tigrislike.config import Settings
from tigrislike.metadata import Metadata, MetadataError
from tigrislike.metadata.kv import EngineError
from tigrislike.metadata.records import DRAINING, UP
from tigrislike.replication.membership import Member, Members

Command = Callable[[Metadata, Members], Awaitable[int]]

_LOOK_S: Final = 2.0
"""How often a drain is looked at."""


def run(settings: Settings, command: Command, action: str = "", **arguments: object) -> int:
    """Carry out a command on the store of the settings; the exit status. One that changes something is an `action` of
    the audit log, with `arguments`.

    Raises:
        NodesError: it was refused or failed.
    """

    async def carry_out() -> int:
        async with nodes.opened(settings) as metadata:
            members = await nodes.watched(metadata)
            async with by_command(metadata, settings, action, arguments):
                return await command(metadata, members)

    try:
        return asyncio.run(carry_out())
    except MetadataError as error:
        raise NodesError(f"{error.code}: {error}") from error
    except (EngineError, OSError, ValueError) as error:
        raise NodesError(str(error)) from error
    except KeyboardInterrupt:
        raise NodesError("interrupted; run it again to go on") from None


def ls(sole: bool, as_json: bool) -> Command:
    """Every node, and how it stands."""

    async def command(metadata: Metadata, members: Members) -> int:
        standings = await nodes.survey(metadata, members, sole=sole)
        if as_json:
            for standing in standings:
                _print_json(standing)
            return 0
        table = Table("node", "region", "endpoint", "state", "alive", box=None)
        for heading in ("last beat", "homes", "used", "free", *(["sole"] if sole else [])):
            table.add_column(heading, justify="right")
        for each in standings:
            age = "never" if each.beat_age_s is None else f"{each.beat_age_s:,.0f} s ago"
            row = [each.node[:8], each.region, each.endpoint, each.state, "yes" if each.alive else "no", age]
            row += [f"{each.homes:,}", decimal(each.used_bytes), decimal(each.free_bytes)]
            table.add_row(*row, *([f"{each.sole:,}"] if each.sole is not None else []))
        _console().print(table)
        return 0

    return command


def drain(prefix: str, wait: bool, *, sleep: nodes.Sleep = asyncio.sleep) -> Command:
    """Have a node give up what it holds; with `wait`, until it holds nothing."""

    async def command(metadata: Metadata, members: Members) -> int:
        member = nodes.found(members, prefix)
        await metadata.drain_node(member.node)
        name = member.node.hex()
        if not member.moving:
            _complain(f"node {name} shows no life: it drains once it runs again")
        if not wait:
            _console().print(f"node {name} drains; `tigrislike nodes` shows how many homes are left")
            return 0
        left = most = await nodes.count_homes(metadata, member.node)
        with _bar(f"draining {name[:8]}", most) as update:
            while left:
                await sleep(_LOOK_S)
                if await _state(metadata, member.node) != DRAINING:
                    raise NodesError(f"node {name} is no longer to drain")
                left = await nodes.count_homes(metadata, member.node)
                most = max(most, left)
                update(completed=most - left, total=most)
        _console().print(f"node {name} holds nothing any more: it can be removed")
        return 0

    return command


def undrain(prefix: str) -> Command:
    """Let a node take homes again."""

    async def command(metadata: Metadata, members: Members) -> int:
        node = await metadata.set_node_state(nodes.found(members, prefix).node, UP)
        _console().print(f"node {node.node.hex()} is up, and takes homes again")
        return 0

    return command


def losses(prefix: str) -> Command:
    """Name what removing a node would lose. Unlike other commands' its status is how many contents those are."""

    async def command(metadata: Metadata, members: Members) -> int:
        member = nodes.found(members, prefix)
        await nodes.check_removable(metadata, members, member, accept_loss=True)
        sole = [each async for each in nodes.sole_contents(metadata, members, member.node)]
        await _print_names(metadata, "to be lost", _each(sole))
        return len(sole)

    return command


def remove(prefix: str, accept_loss: bool, *, sleep: nodes.Sleep = asyncio.sleep) -> Command:
    """Remove a node for good, and name what was lost; 1 where something was and nobody had accepted it."""

    async def command(metadata: Metadata, members: Members) -> int:
        member = nodes.found(members, prefix)
        await nodes.check_removable(metadata, members, member, accept_loss=accept_loss)
        lost = await _remove(metadata, members, member, sleep)
        if lost and not accept_loss:
            _complain(f"{len(lost)} contents were written while it was removed, and are lost:")
        await _print_names(metadata, "lost", _each(lost))
        return 1 if lost and not accept_loss else 0

    return command


def replace(prefix: str, by: str, *, sleep: nodes.Sleep = asyncio.sleep) -> Command:
    """Have one node take the place of another."""

    async def command(metadata: Metadata, members: Members) -> int:
        old, new = nodes.found(members, prefix), nodes.found(members, by)
        await nodes.check_replaceable(metadata, members, old, new)
        most = 0
        with _bar(f"copying to {new.node.hex()[:8]}", None) as update:
            async for left in nodes.hand_over(metadata, old, new, sleep=sleep):
                most = max(most, left)
                update(completed=most - left, total=most)
        lost = await _remove(metadata, members, old, sleep)
        if lost:
            _complain(f"{len(lost)} contents were written while it was removed, and are lost:")
            await _print_names(metadata, "lost", _each(lost))
        return 1 if lost else 0

    return command


async def _remove(metadata: Metadata, members: Members, member: Member, sleep: nodes.Sleep) -> list[bytes]:
    lost: list[bytes] = []
    with _bar(f"removing {member.node.hex()[:8]}", await nodes.count_homes(metadata, member.node)) as update:
        async for rows, gone in nodes.remove(metadata, members, member, sleep=sleep):
            update(advance=rows)
            lost += gone
    left = (
        "what was lost may still be in its cache directory: keep it" if lost else "its cache directory can be deleted"
    )
    _console().print(f"node {member.node.hex()} is removed; {left}")
    return lost


async def _state(metadata: Metadata, node: bytes) -> str:
    return next((each.state for each, _ in await metadata.nodes() if each.node == node), "")


async def _each(content_ids: list[bytes]) -> Any:
    for content_id in content_ids:
        yield content_id


async def _print_names(metadata: Metadata, what: str, content_ids: Any) -> None:
    buckets = await naming.bucket_names(metadata)
    async for content_id in content_ids:
        async for name in naming.names_of(metadata, buckets, content_id):
            print(f"{what} {name}", flush=True)


@contextlib.contextmanager
def _bar(what: str, total: float | None) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error. Yields `Progress.update` of its one task."""
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield partial(progress.update, progress.add_task(what, total=total))


def _console() -> Console:
    """Standard output, as wide as it takes where nobody looks at it."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 4096)


def _print_json(value: Any) -> None:
    print(msgspec.json.encode(value).decode(), flush=True)


def _complain(message: str) -> None:
    print(f"tigrislike: {message}", file=sys.stderr)
