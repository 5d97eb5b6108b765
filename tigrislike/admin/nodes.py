"""The nodes of a store as operators see them, and what they do about them; see `nodes_commands` for what is shown.

All of it works on the database, from any machine that reaches it: what it says of who is alive is what it sees itself,
by looking until each node has shown life, or has had time enough to. Whoever does this is no node: what it owes, it
owes to anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from typing import Final

import msgspec

from tigrislike.admin.reach import reached
from tigrislike.config import Settings
from tigrislike.existing import check_database
from tigrislike.metadata import Metadata, homes, uploads
from tigrislike.metadata.bounded import Bounds, elapsed_ns
from tigrislike.metadata.context import Context
from tigrislike.metadata.keyspace import Keyspace
from tigrislike.metadata.kv import Engine, Transaction
from tigrislike.metadata.placing import Regions
from tigrislike.metadata.records import DRAINING, LIVE, LOST, REMOVED, UP, Cluster, Home
from tigrislike.metadata.records import content as content_codec
from tigrislike.metadata.secrets import MasterKey
from tigrislike.replication.membership import BEAT_S, Member, Members
from tigrislike.replication.removing import remove_node

PATIENCE_S: Final = 3 * BEAT_S
"""How long a node is given to show life."""

LOOK_S: Final = 0.5
_PAGE: Final = 200

Sleep = Callable[[float], Awaitable[None]]


class NodesError(Exception):
    """Something was refused; the message is for the person who asked."""


class Standing(msgspec.Struct, frozen=True):
    """How a node stands. `beat_age_s` is by the clocks of this machine and of the node, None before its first beat;
    `homes` counts contents, and `sole` those that no other living node has (None: not counted). Sizes are of its disk.
    """

    node: str
    region: str
    endpoint: str
    state: str
    alive: bool
    beat_age_s: float | None
    homes: int
    used_bytes: int
    free_bytes: int
    sole: int | None = None


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Metadata]:
    """The metadata of the settings' store, for the length of a `with` block, as nobody's.

    Raises:
        OSError, ValueError, EngineError, MetadataError
    """
    check_database(settings)
    master = MasterKey.load(settings.master_key or None, settings.master_key_path, create=False)
    async with reached(settings.metadata) as engine:
        yield await Metadata.open(
            engine,
            master_key=master,
            node_id=homes.ANYBODY,
            region="",
            reclaim_grace_s=settings.reclaim_grace_s,
            regions=Regions(settings.geographies),
        )


def as_nobody(engine: Engine, cluster: Cluster) -> Metadata:
    """The metadata of a store for looking only: nothing is founded or migrated, and no secret can be read."""
    context = Context(Keyspace(engine.prefix), cluster.number, engine.now_ns, Home("", homes.ANYBODY), 0)
    return Metadata(engine, context, MasterKey(bytes(32)), cluster, Bounds(), elapsed_ns)


async def watched(metadata: Metadata, *, sleep: Sleep = asyncio.sleep) -> Members:
    """The members, once each of them has been seen to beat, or has not for `PATIENCE_S`."""
    members = Members(metadata)
    await members.refresh()
    looks = int(PATIENCE_S / LOOK_S)
    while looks and not all(each.moving for each in members.all()):
        await sleep(LOOK_S)
        await members.refresh()
        looks -= 1
    return members


def found(members: Members, prefix: str) -> Member:
    """The node whose id, in hex, begins with `prefix`; a removed one too. Raises NodesError."""
    matching = [each for each in members.known() if each.node.hex().startswith(prefix.lower())]
    if not prefix or not matching:
        raise NodesError(f"no node's id begins with {prefix!r}")
    if len(matching) > 1:
        raise NodesError(f"{len(matching)} nodes' ids begin with {prefix!r}: give more of it")
    return matching[0]


async def survey(metadata: Metadata, members: Members, *, sole: bool = False) -> list[Standing]:
    """How each node stands that was not removed. With `sole`, every content of each is looked at."""
    standings = []
    for node, beat in await metadata.nodes():
        member = members.get(node.node)
        if node.state == REMOVED or member is None:
            continue
        standings.append(
            Standing(
                node.node.hex(),
                node.region,
                node.endpoint,
                node.state,
                member.moving,
                round((metadata.now_ns() - beat.at_ns) / 1e9, 1) if beat is not None else None,
                await count_homes(metadata, node.node),
                beat.capacity - beat.free if beat is not None else 0,
                beat.free if beat is not None else 0,
                await count_sole(metadata, members, node.node) if sole else None,
            )
        )
    return standings


async def count_homes(metadata: Metadata, node: bytes) -> int:
    """How many contents a node holds."""
    count, after = 0, b""
    while page := await metadata.homes_of(node, after):
        count += len(page)
        after = page[-1]
    return count


async def count_sole(metadata: Metadata, members: Members, node: bytes) -> int:
    return sum([1 async for _ in sole_contents(metadata, members, node)])


async def sole_contents(metadata: Metadata, members: Members, node: bytes) -> AsyncIterator[bytes]:
    """Contents that a node holds, and that the living nodes beside it cannot give."""
    others = {each.node for each in members.all() if each.moving} - {node}
    async for content_id in _held_without(metadata, node, others):
        yield content_id


async def lost_contents(metadata: Metadata, members: Members) -> AsyncIterator[bytes]:
    """Contents that only nodes held which were removed: no node of the store has them, alive or not."""
    async for content_id in _held_without(metadata, LOST, {each.node for each in members.all()}):
        yield content_id


async def _held_without(metadata: Metadata, node: bytes, others: Container[bytes]) -> AsyncIterator[bytes]:
    after = b""
    while page := await metadata.homes_of(node, after, _PAGE):
        for content_id in await metadata.engine.background.read(_without, metadata.context, others, page):
            yield content_id
        after = page[-1]


async def _without(tr: Transaction, ctx: Context, nodes: Container[bytes], content_ids: list[bytes]) -> list[bytes]:
    """Those of live contents, and of uploads in progress, that `nodes` do not hold."""
    asked = [(content_id, tr.get(ctx.keys.content(content_id))) for content_id in content_ids]
    missing = []
    for content_id, stored in asked:
        raw = await stored
        content = content_codec.decode(raw) if raw is not None else None
        if content is None:
            survives = await homes.parts_survive(tr, ctx, content_id, nodes, or_origin=True)
        else:
            survives = content.state != LIVE or await homes.survives(tr, ctx, content_id, content, nodes)
        if not survives:
            missing.append(content_id)
    return missing


# --- what is done


async def check_removable(metadata: Metadata, members: Members, member: Member, *, accept_loss: bool = False) -> None:
    """Refuse a node that serves, and what would lose something unless that is accepted. Raises NodesError."""
    if member.state == REMOVED:
        return  # it goes on with what an earlier one left
    name = member.node.hex()
    if member.moving and member.state != DRAINING:
        raise NodesError(f"node {name} is alive: drain it first, with `tigrislike nodes drain {name[:8]} --wait`")
    sole = 0 if accept_loss else await count_sole(metadata, members, member.node)
    if sole:
        how = "wait until it is drained" if member.moving else "start it again and drain it"
        raise NodesError(f"{sole} contents are on no other living node: {how}, or give them up with --accept-loss")


async def remove(
    metadata: Metadata, members: Members, member: Member, *, sleep: Sleep = asyncio.sleep
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Remove a node; rows taken over from it, and contents lost with it, page by page. Cut off, run it again."""
    async for taken in remove_node(metadata, members, member.node):
        yield taken.rows, taken.lost
    if member.moving:  # it may have written until it heard of it
        await sleep(PATIENCE_S)
        async for taken in remove_node(metadata, members, member.node):
            yield taken.rows, taken.lost


async def check_replaceable(metadata: Metadata, members: Members, old: Member, new: Member) -> None:
    """Raises NodesError: there is something that the new node could not get, or it could get nothing."""
    if old.node == new.node:
        raise NodesError("a node cannot replace itself")
    if not new.takes_homes:
        why = f"is {new.state}" if new.state != UP else "shows no life"
        raise NodesError(f"node {new.node.hex()} {why}: it can replace no other")
    if old.state == REMOVED:
        raise NodesError(f"node {old.node.hex()} was removed already")
    if not old.moving and (sole := await count_sole(metadata, members, old.node)):
        raise NodesError(
            f"node {old.node.hex()} shows no life, and {sole} contents are on no other living node: start it again"
        )


async def hand_over(
    metadata: Metadata, old: Member, new: Member, *, sleep: Sleep = asyncio.sleep
) -> AsyncIterator[int]:
    """Have `new` become a home of everything that `old` holds; how much is left to do, until nothing is.

    `old` takes no homes meanwhile; it is for the caller to remove it.
    """
    await metadata.set_node_state(old.node, DRAINING)
    while True:
        left, after = 0, b""
        while page := await metadata.homes_of(old.node, after, _PAGE):
            left += await metadata.background(_hand_some, metadata.context, old.node, new.node, page)
            after = page[-1]
        yield left
        if not left:
            return
        await sleep(2 * LOOK_S)


async def _hand_some(tr: Transaction, ctx: Context, old: bytes, node: bytes, content_ids: list[bytes]) -> int:
    asked = [(content_id, tr.get(ctx.keys.content(content_id), snapshot=True)) for content_id in content_ids]
    left = 0
    for content_id, stored in asked:
        raw = await stored
        content = content_codec.decode(raw) if raw is not None else None
        if content is None:
            parts = await uploads.held_parts(tr, ctx, content_id, {old})
            if any(node not in uploads.holders(part) for part in parts):
                await homes.owe_hold(tr, ctx, node, b"", content_id)
                left += 1
            continue
        if content.state == LIVE and not any(home.node == node and home.whole for home in content.homes):
            await homes.owe_hold(tr, ctx, node, content.bucket, content_id)
            left += 1
    return left
