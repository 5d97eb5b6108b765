"""What contents lack, and to whom it is owed: where homes are gone, or about to go, others are found.

A wanted region that has no home is owed a replica. Further homes are owed to nodes chosen by rendezvous hashing, so
that whoever looks comes to the same ones: in wanted regions first, then near where the bytes were, then anywhere that
is allowed.
Owing is no promise: what is owed twice is one item, and whoever takes it looks again.
"""

from __future__ import annotations

from typing import NamedTuple

from tigrislike.metadata import homes, placing
from tigrislike.metadata.context import Context
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.placing import Alive
from tigrislike.metadata.records import UP, Content

from .membership import Member, Members


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
    """Owe the homes that a content lacks, as far as there are nodes for them. False: there are too few now.

    Args:
        near: the region where homes are looked for once the wanted regions are served.
    """
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
