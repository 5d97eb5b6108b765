"""Demand: what is read in a region whose home is elsewhere, and how it gets a home here.

Each process counts in memory and adds its counts to the database every few seconds, a row for each content that was
read; where a content has been read often enough within a period, a replica is owed to the region, and a look later on
whether it is still read: what is not, is released again.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from tigrislike.bytecache import NotAtSource, SourceUnavailable
from tigrislike.metadata import Metadata, homes, owed, placing
from tigrislike.metadata.context import Context
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.leasing import Effect
from tigrislike.metadata.records import LIVE, Content, Item

from .membership import Members
from .remote import RemoteSource

PERIOD_NS: Final = 3600 * 1_000_000_000
"""Reads are counted by the hour."""

FLUSH_S: Final = 5.0
_FLUSH_MOST: Final = 500
"""Contents of one flush, the most read first: what is left out is not in demand."""

_NATIVES_MOST: Final = 1 << 16
"""Blobs that are remembered to be born here: a few MB, and more than are read again within an hour."""

DECAY = "decay"
DECAY_PRIORITY = 2


class Demand:
    """Reads of one process, by blob, since they were last added to the database's."""

    def __init__(self, metadata: Metadata, members: Members, source: RemoteSource, *, threshold: int) -> None:
        self._metadata = metadata
        self._members = members
        self._source = source
        self._threshold = threshold
        self._reads: Counter[bytes] = Counter()
        self._natives: set[bytes] = set()
        """Blobs that were born here, as was found in the present period: who holds them is not asked again in it."""
        self._period = 0

    def count(self, blob_id: bytes) -> None:
        """An object that begins with this blob was read."""
        if len(self._metadata.regions.known) > 1 and blob_id not in self._natives:
            self._reads[blob_id] += 1

    async def flush(self) -> None:
        """Add what was counted to the database's counts. Raises what the database raises; the counts are then lost,
        which delays a replica and nothing else."""
        reads, self._reads = self._reads, Counter()
        period = self._metadata.now_ns() // PERIOD_NS
        if period != self._period or len(self._natives) > _NATIVES_MOST:
            self._natives.clear()  # a node may have given up what was born on it
            self._period = period
        wanted: dict[bytes, int] = {}
        for blob_id, count in reads.most_common(_FLUSH_MOST):
            try:
                located = await self._source.locate(blob_id)
            except (NotAtSource, SourceUnavailable):
                continue
            # Where a content was born it is at home without anybody's demand.
            if located.homes and located.homes[0].node == self._members.own:
                self._natives.add(blob_id)
            elif located.homes:
                wanted[located.content_id] = wanted.get(located.content_id, 0) + count
        if wanted:
            await self._metadata.background(_add, self._metadata.context, self._members.region, wanted, self._threshold)


async def _add(tr: Transaction, ctx: Context, region: str, reads: dict[bytes, int], threshold: int) -> None:
    period = ctx.now_ns() // PERIOD_NS
    keys = {content_id: ctx.keys.demand(period, region, content_id) for content_id in reads}
    # By snapshot: of two processes that cross the threshold at once, one at least sees it the next time.
    asked = {content_id: tr.get(key, snapshot=True) for content_id, key in keys.items()}
    for content_id, count in reads.items():
        before = int.from_bytes(await asked[content_id] or b"", "little")
        tr.add(keys[content_id], count)
        if before + count >= threshold:
            await _want(tr, ctx, region, content_id)


async def _want(tr: Transaction, ctx: Context, region: str, content_id: bytes) -> None:
    content = await homes.read_content(tr, ctx, content_id)
    if content is None or not ctx.regions.allow(content.regions, region):
        return
    if any(home.region == region and home.whole for home in content.homes):
        return
    await homes.owe_replica(tr, ctx, region, content.bucket, content_id)
    await owe_decay(tr, ctx, region, content.bucket, content_id)


async def owe_decay(tr: Transaction, ctx: Context, region: str, bucket_id: bytes, content_id: bytes) -> None:
    """Owe a look, once the time is over for which an unused replica stays, whether it is still read."""
    zone = owed.zone_of(homes.region_destination(region), bucket_id)
    vesting_ns = ctx.now_ns() + ctx.decay_ns
    await owed.enqueue(
        tr, ctx, zone, DECAY, content_id, vesting_ns=vesting_ns, priority=DECAY_PRIORITY, bucket=bucket_id
    )


async def decaying(tr: Transaction, ctx: Context, content_id: bytes, content: Content) -> set[str]:
    """Regions in which a content's homes are there for demand alone, and are looked after by `Decay`."""
    regions = {home.region for home in content.homes} - ctx.regions.expand(content.regions)
    id_ = owed.item_id(DECAY, content_id)
    zones = {region: owed.zone_of(homes.region_destination(region), content.bucket) for region in sorted(regions)}
    asked = {region: tr.get(ctx.keys.queue_item(zone, id_), snapshot=True) for region, zone in zones.items()}
    return {region for region, item in asked.items() if await item is not None}


async def demanded(tr: Transaction, ctx: Context, region: str, content_id: bytes) -> int:
    """Reads of a content in a region within the time for which an unused replica stays."""
    last = ctx.now_ns() // PERIOD_NS
    # Whole periods, this one too: what made the replica, a decay ago, does not keep it for another.
    periods = range(last - max(1, ctx.decay_ns // PERIOD_NS) + 1, last + 1)
    asked = [tr.get(ctx.keys.demand(period, region, content_id), snapshot=True) for period in periods]
    return sum([int.from_bytes(await read or b"", "little") for read in asked])


class Decay:
    """See whether a replica that was made on demand is still in demand; if not, have it released."""

    name = DECAY
    priority = DECAY_PRIORITY
    concurrency = 1

    def __init__(self, metadata: Metadata, members: Members) -> None:
        self._metadata = metadata
        self._members = members

    async def run(self, item: Item) -> Effect | None:
        region, content_id = self._members.region, item.subject
        content = await self._metadata.content(content_id)
        if content is None or content.state != LIVE or region in self._metadata.regions.expand(content.regions):
            return None
        here = [home.node for home in placing.whole_homes(content, self._members.alive()) if home.region == region]

        async def settle(tr: Transaction, ctx: Context) -> None:
            if await demanded(tr, ctx, region, content_id):
                await owe_decay(tr, ctx, region, item.bucket, content_id)
                return
            for node in here:
                await homes.owe_release(tr, ctx, node, item.bucket, content_id)

        return settle


async def forget_old(tr: Transaction, ctx: Context) -> None:
    """Remove the counts of periods that nobody asks about any more."""
    period = ctx.now_ns() // PERIOD_NS - ctx.decay_ns // PERIOD_NS
    if period > 0:
        tr.clear_range(*ctx.keys.demand_before(period))
