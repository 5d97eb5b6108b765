"""Nodes: who belongs to the store, where they are reached, and when they last showed life.

A node's record changes when it starts, drains or is removed; its beat is a row of its own, written every few seconds,
so that the two never conflict.
"""

from __future__ import annotations

from msgspec.structs import replace

from .context import Context
from .errors import NodeRemoved, NoSuchNode
from .keyspace import subspace
from .kv.engine import Transaction
from .records import REMOVED, UP, Beat, Node
from .records import beat as beat_codec
from .records import node as node_codec


async def join(tr: Transaction, ctx: Context, node: Node) -> Node:
    """Record that a node has started, or started again; one that was draining still is.

    Raises:
        NodeRemoved: it was removed for good, and others may hold what it held.
    """
    raw = await tr.get(ctx.keys.node(node.node))
    joined_ns = ctx.now_ns()
    state = UP
    if raw is not None:
        old = node_codec.decode(raw)
        if old.state == REMOVED:
            raise NodeRemoved(node.node)
        joined_ns, state = old.joined_ns, old.state
    record = replace(node, joined_ns=joined_ns, state=state)
    tr.set(ctx.keys.node(node.node), node_codec.encode(record))
    return record


async def beat(tr: Transaction, ctx: Context, node_id: bytes, sign: Beat) -> bool:
    """Show that a node is alive. False: it has been removed.

    The record is read so that a removal and a beat conflict: a removed node hears of it with its next one.
    """
    raw = await tr.get(ctx.keys.node(node_id))
    if raw is None or node_codec.decode(raw).state == REMOVED:
        return False
    tr.set(ctx.keys.beat(node_id), beat_codec.encode(sign))
    return True


async def set_state(tr: Transaction, ctx: Context, node_id: bytes, state: str) -> Node:
    """Raises NoSuchNode; NodeRemoved: it was removed, which nothing undoes."""
    raw = await tr.get(ctx.keys.node(node_id))
    if raw is None:
        raise NoSuchNode(node_id)
    node = node_codec.decode(raw)
    if node.state == REMOVED and state != REMOVED:
        raise NodeRemoved(node_id)
    node = replace(node, state=state)
    tr.set(ctx.keys.node(node_id), node_codec.encode(node))
    if state == REMOVED:
        tr.clear(ctx.keys.beat(node_id))
    return node


async def list_nodes(tr: Transaction, ctx: Context) -> list[tuple[Node, Beat | None]]:
    """Every node of the store with its last beat, in the order of their ids; removed ones too."""
    nodes, beats = tr.get_range(*subspace(ctx.keys.nodes)), tr.get_range(*subspace(ctx.keys.beats))
    records = [node_codec.decode(value) for _, value in await nodes]
    signs = {key: beat_codec.decode(value) for key, value in await beats}
    return [(node, signs.get(ctx.keys.beat(node.node))) for node in records]
