"""Nodes: who belongs to the store, where they are reached, and when they last showed life.

A node's record changes when it starts, drains or is removed; its beat is a row of its own, written every few seconds,
so that the two never conflict.
"""

from __future__ import annotations

from msgspec.structs import replace

from . import owed
from .context import Context
from .errors import NodeRemoved, NoSuchNode, ProtocolsApart
from .homes import ANYBODY
from .keyspace import subspace
from .kv.engine import Transaction
from .records import DRAINING, REMOVED, UP, Beat, Node
from .records import beat as beat_codec
from .records import node as node_codec

PROTOCOL = 1
"""What nodes of this release say to each other. Each release serves beside the one before and the one after it."""

REPAIR = "repair"
DRAIN = "drain"
RETURN = "return"
OPEN_REGION = "open_region"
"""Tasks: what a silent node held is to be owed to others; a node is to hold nothing any more; a node that was silent is
back, and what others took in its stead is too much; a region has got its first node, and what policies want there is to
be owed to it."""

REPAIR_PRIORITY = 0
DRAIN_PRIORITY = 1
RETURN_PRIORITY = 2
OPEN_REGION_PRIORITY = 1

OPEN_REGION_NS = 10 * 1_000_000_000
"""How long after a region's first node joined others know of it."""

RETURN_NS = 10 * 1_000_000_000
"""How long after a node's return, and between two rounds, it is left alone: others have to see it, and what was owed to
them for its silence may still be under way."""


async def join(tr: Transaction, ctx: Context, node: Node) -> Node:
    """Record that a node has started, or started again; one that was draining still is.

    Raises:
        NodeRemoved: it was removed for good, and others may hold what it held.
        ProtocolsApart: a node of the store is of a release that this one does not serve beside.
    """
    asked, rows = tr.get(ctx.keys.node(node.node)), tr.get_range(*subspace(ctx.keys.nodes))
    raw = await asked
    present = [other for other in (node_codec.decode(value) for _, value in await rows) if other.state != REMOVED]
    for other in present:
        # One that is not running counts too: it may be starting at this moment.
        if other.node != node.node and abs(other.protocol - PROTOCOL) > 1:
            raise ProtocolsApart(other.node, other.protocol, PROTOCOL)
    joined_ns = ctx.now_ns()
    state = UP
    if raw is not None:
        old = node_codec.decode(raw)
        if old.state == REMOVED:
            raise NodeRemoved(node.node)
        joined_ns, state = old.joined_ns, old.state
    record = replace(node, joined_ns=joined_ns, state=state, protocol=PROTOCOL)
    tr.set(ctx.keys.node(node.node), node_codec.encode(record))
    opens = present and all(other.region != node.region for other in present)
    if opens and ctx.regions.in_geography(node.region):
        await owe_region(tr, ctx, node.region)
    return record


async def owe_region(tr: Transaction, ctx: Context, region: str) -> None:
    """Owe it to whoever comes first that a region gets what policies want there that do not name it: what is named has
    been waiting for it."""
    zone = owed.zone_of(ANYBODY, b"")
    vesting_ns = ctx.now_ns() + OPEN_REGION_NS
    subject = region.encode()
    await owed.enqueue(tr, ctx, zone, OPEN_REGION, subject, vesting_ns=vesting_ns, priority=OPEN_REGION_PRIORITY)


async def beat(tr: Transaction, ctx: Context, node_id: bytes, sign: Beat) -> bool:
    """Show that a node is alive. False: it has been removed. The first one after a silence that was repaired owes the
    release of homes that are now too many.

    The record is read so that a removal and a beat conflict: a removed node hears of it with its next one.
    """
    raw = await tr.get(ctx.keys.node(node_id))
    node = node_codec.decode(raw) if raw is not None else None
    if node is None or node.state == REMOVED:
        return False
    if node.repaired >= 0:
        tr.set(ctx.keys.node(node_id), node_codec.encode(replace(node, repaired=-1)))
        await owe_return(tr, ctx, node_id)
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


async def drain(tr: Transaction, ctx: Context, node_id: bytes) -> Node:
    """Let a node take no new homes, and owe it to itself to give up those that it has. Raises as `set_state`."""
    node = await set_state(tr, ctx, node_id, DRAINING)
    await owe_drain(tr, ctx, node_id)
    return node


async def owe_drain(tr: Transaction, ctx: Context, node_id: bytes, vesting_ns: int = 0) -> None:
    """Owe a round of giving up homes."""
    zone = owed.zone_of(node_id, b"")
    await owed.enqueue(tr, ctx, zone, DRAIN, node_id, vesting_ns=vesting_ns, priority=DRAIN_PRIORITY)


async def owe_return(tr: Transaction, ctx: Context, node_id: bytes) -> None:
    """Owe a round of releasing what is too much now that the node is back."""
    zone = owed.zone_of(node_id, b"")
    vesting_ns = ctx.now_ns() + RETURN_NS
    await owed.enqueue(tr, ctx, zone, RETURN, node_id, vesting_ns=vesting_ns, priority=RETURN_PRIORITY)


async def owe_repair(tr: Transaction, ctx: Context, node_id: bytes, count: int) -> bool:
    """Owe it to others to hold what a node held that has been silent since its beat `count`, once for each silence.

    False: it has shown life since, was removed, or is owed already.
    """
    stored, sign = tr.get(ctx.keys.node(node_id)), tr.get(ctx.keys.beat(node_id))
    raw, last = await stored, await sign
    if raw is None or last is None or beat_codec.decode(last).count != count:
        return False
    node = node_codec.decode(raw)
    if node.state == REMOVED or node.repaired == count:
        return False
    tr.set(ctx.keys.node(node_id), node_codec.encode(replace(node, repaired=count)))
    await enqueue_repair(tr, ctx, node_id)
    return True


async def enqueue_repair(tr: Transaction, ctx: Context, node_id: bytes, vesting_ns: int = 0) -> None:
    """Owe it to whoever comes first."""
    zone = owed.zone_of(ANYBODY, b"")
    await owed.enqueue(tr, ctx, zone, REPAIR, node_id, vesting_ns=vesting_ns, priority=REPAIR_PRIORITY)


async def read_node(tr: Transaction, ctx: Context, node_id: bytes) -> Node | None:
    raw = await tr.get(ctx.keys.node(node_id))
    return node_codec.decode(raw) if raw is not None else None


async def list_nodes(tr: Transaction, ctx: Context) -> list[tuple[Node, Beat | None]]:
    """Every node of the store with its last beat, in the order of their ids; removed ones too."""
    nodes, beats = tr.get_range(*subspace(ctx.keys.nodes)), tr.get_range(*subspace(ctx.keys.beats))
    records = [node_codec.decode(value) for _, value in await nodes]
    signs = {key: beat_codec.decode(value) for key, value in await beats}
    return [(node, signs.get(ctx.keys.beat(node.node))) for node in records]
