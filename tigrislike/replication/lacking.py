"""What contents lack, and to whom it is owed: where homes are gone, or about to go, others are found.

A wanted region that has no home is owed a replica. Further homes are owed to nodes chosen by rendezvous hashing, so
that whoever looks comes to the same ones: in wanted regions first, then near where the bytes were, then anywhere that
is allowed.
Owing is no promise: what is owed twice is one item, and whoever takes it looks again.

A content for which there are too few nodes is noted, under `short`, and `Restore` asks again until there are enough:
a node that joins, or comes back, gets what was waiting for it.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Final, NamedTuple

from tigrislike.metadata import Metadata, homes, owed, placing
from tigrislike.metadata.context import Context
from tigrislike.metadata.deciding import SECOND
from tigrislike.metadata.keyspace import subspace, unpack_bytes
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.leasing import Effect
from tigrislike.metadata.placing import Alive
from tigrislike.metadata.records import LIVE, UP, Content, Item

from .membership import Member, Members

RESTORE: Final = "restore"
RESTORE_PRIORITY: Final = 0

AGAIN_S: Final = 30.0
"""How long nobody asks whether there are enough nodes by now, at least; and at most a twentieth of the time is spent
on asking."""
_SHARE: Final = 20

PAGE: Final = 200
"""Contents of one transaction: a few thousand reads and writes at most."""


class View(NamedTuple):
    """The members of the store, and which nodes count as homes."""

    members: Members
    alive: Alive

    def without(self, node: bytes) -> View:
        """The same, but `node` does not count."""
        return View(self.members, {each: region for each, region in self.alive.items() if each != node})


async def owe_missing(
    tr: Transaction, ctx: Context, view: View, content_id: bytes, content: Content, *, near: str
) -> bool:
    """Owe the homes that a content lacks, as far as there are nodes for them. False: there are too few now, and it is
    noted that the others are owed once there are.

    Args:
        near: the region where homes are looked for once the wanted regions are served.
    """
    served = await owe_possible(tr, ctx, view, content_id, content, near=near)
    if not served:
        tr.set(ctx.keys.short(content_id), near.encode())
        await owe_restore(tr, ctx)
    return served


async def owe_possible(
    tr: Transaction, ctx: Context, view: View, content_id: bytes, content: Content, *, near: str
) -> bool:
    """Owe the homes that a content lacks, as far as there are nodes for them. False: there are too few now. As
    `owe_missing`, but nothing is noted: for whoever asks again by himself."""
    members, regions = view.members, ctx.regions
    missing = placing.missing_regions(content, view.alive, regions)
    served: list[Member] = []
    for region in missing:
        chosen = members.chosen(content_id, region)[:1]
        served += chosen
        # Where nobody is, a replica waits for who comes, or has come and not beaten yet; where all drain, they would
        # only refuse it.
        living = [each for each in members.all() if each.region == region and not each.dead]
        if chosen or not living or any(each.state == UP for each in living):
            await homes.owe_replica(tr, ctx, region, content.bucket, content_id)
    have = len(placing.whole_homes(content, view.alive)) + placing.is_backed(content)
    lacking = max(content.copies, 1) - have - len(served)
    if lacking <= 0:
        return True
    wanted = regions.expand(content.regions)
    whole = [home.node for home in content.homes if home.whole]
    takers = members.chosen(content_id, beside=[*whole, *(each.node for each in served)])
    takers = [each for each in takers if regions.allow(content.regions, each.region)]
    takers.sort(key=lambda each: (each.region not in wanted, each.region != near))
    for each in takers[:lacking]:
        await homes.owe_hold(tr, ctx, each.node, content.bucket, content_id)
    return len(takers) >= lacking


class Restore:
    """Owe the homes that contents lack for which there were too few nodes, as far as there are nodes now."""

    name = RESTORE
    priority = RESTORE_PRIORITY
    concurrency = 1

    def __init__(self, metadata: Metadata, members: Members) -> None:
        self._metadata = metadata
        self._members = members

    async def run(self, item: Item) -> Effect | None:
        metadata, started_s = self._metadata, time.monotonic()
        after: bytes | None = b""
        left = 0
        while after is not None:
            view = View(self._members, self._members.alive())
            after, still = await metadata.background(restore_some, metadata.context, view, after)
            left += still
        if not left:
            return partial(_restore_rest, after_s=0.0)
        return partial(_restore_rest, after_s=max(AGAIN_S, _SHARE * (time.monotonic() - started_s)))


async def restore_some(tr: Transaction, ctx: Context, view: View, after: bytes) -> tuple[bytes | None, int]:
    """See to the contents noted as short after `after`: where to go on (None: that was all), and how many still are."""
    begin, end = subspace(ctx.keys.shorts)
    rows = await tr.get_range(ctx.keys.short(after) + b"\x00" if after else begin, end, limit=PAGE)
    contents = [unpack_bytes(key, len(ctx.keys.shorts))[0] for key, _ in rows]
    still = 0
    for (row, near), content_id in zip(rows, contents, strict=True):
        content = await homes.read_content(tr, ctx, content_id)
        if content is not None and content.state == LIVE:
            # What no living node has waits too: for its home.
            able = await homes.survives(tr, ctx, content_id, content, view.alive)
            if not able or not await owe_possible(tr, ctx, view, content_id, content, near=near.decode()):
                still += 1
                continue
        tr.clear(row)
    return (contents[-1] if len(rows) == PAGE else None), still


async def _restore_rest(tr: Transaction, ctx: Context, after_s: float) -> None:
    """Go on asking, unless nothing is short any more: what was noted while a run went on found it owed already."""
    begin, end = subspace(ctx.keys.shorts)
    if await tr.get_range(begin, end, limit=1):
        await owe_restore(tr, ctx, after_s)


async def owe_restore(tr: Transaction, ctx: Context, after_s: float = AGAIN_S) -> None:
    """Owe another look at what is noted as short, to whoever comes first."""
    zone = owed.zone_of(homes.ANYBODY, b"")
    vesting_ns = ctx.now_ns() + int(after_s * SECOND)
    await owed.enqueue(tr, ctx, zone, RESTORE, b"", vesting_ns=vesting_ns, priority=RESTORE_PRIORITY)
