"""The life of nodes, as work owed: what a silent node held is owed to others, a node that drains gives up its homes.

`repair` is owed by whichever node has watched another one be silent for long enough, once for each silence; any node
may do it. `drain` is owed to the node itself, which goes round again until its state changes: what is written at it
meanwhile is owed elsewhere with the next round. `return` is owed to a node that is back after its silence was repaired:
of what it held, homes beyond what policy wants are released, the latest first.

All go through the contents that a node holds page by page, each page a bounded transaction that only owes. So they can
be cut off anywhere and begun again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Final

from msgspec.structs import replace

from tigrislike.metadata import Metadata, homes, nodes, placing, uploads
from tigrislike.metadata.context import Context
from tigrislike.metadata.deciding import SECOND
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.leasing import Effect
from tigrislike.metadata.placing import Alive
from tigrislike.metadata.records import DRAINING, LIVE, Content, Item
from tigrislike.metadata.records import content as content_codec

from .demand import decaying
from .lacking import View, owe_missing, owe_possible
from .membership import Members

log = logging.getLogger("tigrislike.replication")

PAGE: Final = 200
"""Contents of one transaction: a few thousand reads and writes at most."""

ROUND_NS: Final = 5 * SECOND
"""How long a draining node rests between two rounds: what it owes takes time, and each round asks for it again."""


async def watch_for_dead(metadata: Metadata, members: Members, after_s: float) -> list[bytes]:
    """Owe the repair of nodes that have been silent for `after_s` seconds. Their ids.

    For a node's agent to run every few seconds, after `Members.refresh`; whoever is first owes it for all. Silence
    counts from when this process began to watch.
    """
    owed = []
    for member in members.all():
        silent_s = members.silent_s(member)
        if not member.dead or not member.count or member.node == members.own or silent_s < after_s:
            continue
        if await metadata.background(nodes.owe_repair, metadata.context, member.node, member.count):
            name = member.node.hex()
            log.warning("node %s has been silent for %.0f s: what it held is owed to others", name, silent_s)
            owed.append(member.node)
    return owed


class Repair:
    """Owe other nodes what a node held that is silent. Contents that nobody else holds are left as they are: `admin
    check` lists them."""

    name = nodes.REPAIR
    priority = nodes.REPAIR_PRIORITY
    concurrency = 1

    def __init__(self, metadata: Metadata, members: Members) -> None:
        self._metadata = metadata
        self._members = members

    async def run(self, item: Item) -> Effect | None:
        after = b""
        while page := await self._metadata.homes_of(item.subject, after, PAGE):
            silent = self._members.get(item.subject)
            if silent is None or silent.moving:
                return None  # it is back
            if not silent.dead:
                return partial(_later, node=item.subject)  # nor is it known yet who else is alive
            view = View(self._members, self._members.alive())
            await self._metadata.background(owe_for_lost, self._metadata.context, view, silent.region, page)
            after = page[-1]
        return None


async def _later(tr: Transaction, ctx: Context, node: bytes) -> None:
    await nodes.enqueue_repair(tr, ctx, node, ctx.now_ns() + ROUND_NS)


async def owe_for_lost(tr: Transaction, ctx: Context, view: View, near: str, content_ids: Sequence[bytes]) -> None:
    """Owe the homes that contents lack, but for those that nobody can give, and to others what they were to write to
    an origin."""
    # By snapshot: nothing rests on it, and contents that are in use need not wait for each other.
    asked = [(content_id, tr.get(ctx.keys.content(content_id), snapshot=True)) for content_id in content_ids]
    for content_id, stored in asked:
        raw = await stored
        content = content_codec.decode(raw) if raw is not None else None
        if content is None or content.state != LIVE:
            continue
        if await homes.survives(tr, ctx, content_id, content, view.alive):
            await owe_missing(tr, ctx, view, content_id, content, near=near)
            await _have_another_write(tr, ctx, view.alive, content_id, content)


async def _have_another_write(tr: Transaction, ctx: Context, alive: Alive, content_id: bytes, seen: Content) -> None:
    """Make a living home the first one, which writes to the origin, where the first one is silent."""
    if seen.homes and seen.homes[0].node not in alive and placing.awaits_origin(seen):
        content = await homes.read_content(tr, ctx, content_id)
        living = placing.whole_homes(content, alive) if content is not None else []
        if content is not None and living and content.homes[0].node not in alive:
            others = (home for home in content.homes if home != living[0])
            content = replace(content, homes=(living[0], *others))
            homes.put_content(tr, ctx, content_id, content)
            await homes.owe_write_back(tr, ctx, content_id, content)


class Return:
    """Have homes released that are too many now that this node is back, round after round until there are none."""

    name = nodes.RETURN
    priority = nodes.RETURN_PRIORITY
    concurrency = 1

    def __init__(self, metadata: Metadata, members: Members) -> None:
        self._metadata = metadata
        self._members = members

    async def run(self, item: Item) -> Effect | None:
        own, after, some = self._members.own, b"", False
        while page := await self._metadata.homes_of(own, after, PAGE):
            alive = self._members.alive()
            some |= await self._metadata.background(let_go, self._metadata.context, alive, page)
            after = page[-1]
        return partial(nodes.owe_return, node_id=own) if some else None


async def let_go(tr: Transaction, ctx: Context, alive: Alive, content_ids: Sequence[bytes]) -> bool:
    """Owe the release of homes beyond what is wanted of contents, but for those that demand has made, which decay by
    themselves. Whether there are any, or some are about to be."""
    asked = [(content_id, tr.get(ctx.keys.content(content_id), snapshot=True)) for content_id in content_ids]
    some = False
    for content_id, stored in asked:
        raw = await stored
        content = content_codec.decode(raw) if raw is not None else None
        if content is None or content.state != LIVE:
            continue
        some |= bool(content.pending)
        if not placing.excess(content, alive, ctx.regions):
            continue
        demanded = await decaying(tr, ctx, content_id, content)
        settled = replace(content, homes=tuple(home for home in content.homes if home.region not in demanded))
        for home in placing.excess(settled, alive, ctx.regions):
            await homes.owe_release(tr, ctx, home.node, content.bucket, content_id)
            some = True
    return some


class Drain:
    """Give up every home of this node, once others have taken what it held."""

    name = nodes.DRAIN
    priority = nodes.DRAIN_PRIORITY
    concurrency = 1

    def __init__(self, metadata: Metadata, members: Members) -> None:
        self._metadata = metadata
        self._members = members

    async def run(self, item: Item) -> Effect | None:
        own = self._members.own
        if not await self._drains(own):
            return None
        after = b""
        while page := await self._metadata.homes_of(own, after, PAGE):
            view = View(self._members, self._members.alive()).without(own)
            await self._metadata.background(give_up, self._metadata.context, view, page)
            after = page[-1]

        async def go_round(tr: Transaction, ctx: Context) -> None:
            node = await nodes.read_node(tr, ctx, own)
            if node is not None and node.state == DRAINING:
                await nodes.owe_drain(tr, ctx, own, ctx.now_ns() + ROUND_NS)

        return go_round

    async def _drains(self, own: bytes) -> bool:
        return any(node.node == own and node.state == DRAINING for node, _ in await self._metadata.nodes())


async def give_up(tr: Transaction, ctx: Context, view: View, content_ids: Sequence[bytes]) -> None:
    """Owe the homes that contents lack where this node, which `view` leaves out, does not count, and owe it to this
    node to be none of the homes of those that lack nothing. Of uploads in progress, others are to take the parts."""
    asked = [(content_id, tr.get(ctx.keys.content(content_id), snapshot=True)) for content_id in content_ids]
    for content_id, stored in asked:
        raw = await stored
        content = content_codec.decode(raw) if raw is not None else None
        if content is None:
            await owe_parts(tr, ctx, view, content_id)
            continue
        if content.state != LIVE:
            continue  # whoever reclaims it removes the bytes
        await owe_possible(tr, ctx, view, content_id, content, near=ctx.home.region)
        if placing.may_lose(content, ctx.home.node, view.alive, ctx.regions):
            await homes.owe_release(tr, ctx, ctx.home.node, content.bucket, content_id)


async def owe_parts(tr: Transaction, ctx: Context, view: View, content_id: bytes) -> None:
    """Owe it to others to take what this node has of an upload in progress: for each part to one that has it not. Where
    the upload has ended, nothing is to be taken."""
    takers: set[bytes] = set()
    for part in await uploads.held_parts(tr, ctx, content_id, {ctx.home.node}):
        chosen = view.members.chosen(content_id, beside=uploads.holders(part))
        takers.update(each.node for each in sorted(chosen, key=lambda each: each.region != ctx.home.region)[:1])
    for node in sorted(takers):
        await homes.owe_hold(tr, ctx, node, b"", content_id)
