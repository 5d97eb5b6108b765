"""`tigrislike nodes`: who is there, and who is to go."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from tigrislike.cli.base import AS_JSON, DATABASE, command, fail, group
from tigrislike.config import Settings

if TYPE_CHECKING:
    from tigrislike.admin.nodes_commands import Command


nodes = group("nodes", "The nodes of the store.", alone=True)


_NODE = Annotated[str, typer.Argument(help="The beginning of a node's id, as `tigrislike nodes` shows it.")]


def _carried_out(
    settings: Settings, command: Callable[[ModuleType], Command], action: str = "", **arguments: object
) -> int:
    """The status of a command of `nodes_commands`, which is given to `command` once it is imported; as its `run`."""
    from tigrislike.admin import nodes_commands
    from tigrislike.admin.nodes import NodesError

    try:
        return nodes_commands.run(settings, command(nodes_commands), action, **arguments)
    except NodesError as error:
        fail(str(error))


def _nodes(
    settings: Settings, command: Callable[[ModuleType], Command], action: str = "", **arguments: object
) -> NoReturn:
    """Carry out such a command and exit as it says."""
    raise typer.Exit(_carried_out(settings, command, action, **arguments))


@command(nodes, None, DATABASE)
def nodes_ls(
    settings: Settings,
    context: typer.Context,
    *,
    sole: Annotated[
        bool, typer.Option("--sole", help="Count what no other living node has: looks at everything.")
    ] = False,
    as_json: AS_JSON = False,
) -> None:
    """Show every node: its region and state, whether it is alive, what it holds, and how full its disk is."""
    if context.invoked_subcommand is None:
        _nodes(settings, lambda commands: commands.ls(sole, as_json))


@command(nodes, "drain", DATABASE)
def nodes_drain(
    settings: Settings,
    node: _NODE,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Until it holds nothing, with a progress bar.")] = False,
) -> None:
    """Have a node give up what it holds, once others have it. It serves meanwhile, and takes no copies."""
    _nodes(settings, lambda commands: commands.drain(node, wait), "drain_node", node=node)


@command(nodes, "undrain", DATABASE)
def nodes_undrain(settings: Settings, node: _NODE) -> None:
    """Let a node that drains take copies again. What it gave up stays where it is."""
    _nodes(settings, lambda commands: commands.undrain(node), "undrain_node", node=node)


@command(nodes, "remove", DATABASE)
def nodes_remove(
    settings: Settings,
    node: _NODE,
    *,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Also where that loses objects; they are printed, and it asks, first.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --accept-loss: do not ask.")] = False,
) -> None:
    """Remove a node for good: one that is drained, or that is dead and whose objects are elsewhere too."""
    if accept_loss:
        lost = _carried_out(settings, lambda commands: commands.losses(node))
        if lost and not yes and not typer.confirm(f"Lose these {lost:,} contents for good?", err=True):
            fail("nothing was removed")
    arguments = {"node": node, "accept_loss": accept_loss}
    _nodes(settings, lambda commands: commands.remove(node, accept_loss), "remove_node", **arguments)


@command(nodes, "replace", DATABASE)
def nodes_replace(
    settings: Settings,
    old: _NODE,
    *,
    new: Annotated[str, typer.Option("--with", help="The beginning of the id of the node that takes its place.")],
) -> None:
    """Copy everything that a node holds to another one, then remove it."""
    _nodes(settings, lambda commands: commands.replace(old, new), "replace_node", node=old, by=new)
