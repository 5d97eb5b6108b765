"""Copies in caches, as work owed: `warm`.

A region is owed a copy where a bucket has what is written warmed everywhere, or where a client asks for what it lists
to be fetched ahead of its reads. Whoever takes the item fetches what its node lacks; where several nodes share a region
the blocks come through the one where its copies gather (`remote`), which so has them too.

It is a kindness and no promise: what finds no room in the cache is left out, and evicted when its turn comes.
"""

from __future__ import annotations

import logging
from typing import Final

from tigrislike.bytecache import BlockStore
from tigrislike.bytecache.errors import CacheFull, DiskFull
from tigrislike.metadata import Metadata, homes
from tigrislike.metadata.context import Context
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.leasing import Effect
from tigrislike.metadata.records import LIVE, Item

from .remote import BytesLost

log = logging.getLogger("tigrislike.replication")

WARMED_AT_ONCE: Final = 2
"""Contents that a node warms at a time: fewer than it copies, for nothing depends on them."""


class Warm:
    """See to it that this region has a copy of a content, in this node's cache at least.

    Args:
        region: this node's.
    """

    name = homes.WARM
    priority = homes.WARM_PRIORITY
    concurrency = WARMED_AT_ONCE

    def __init__(self, metadata: Metadata, blocks: BlockStore, region: str) -> None:
        self._metadata = metadata
        self._blocks = blocks
        self._region = region
        self.warmed = 0
        self.warmed_bytes = 0
        self.left_out = 0
        """Contents that were warmed, bytes fetched for them, and contents that found no room."""

    async def run(self, item: Item) -> Effect | None:
        content = await self._metadata.content(item.subject)
        if content is None or content.state != LIVE:
            return None
        if not self._metadata.regions.allow(content.regions, self._region):
            return None
        if any(home.region == self._region and home.whole for home in content.homes):
            return None
        held = await self._metadata.held(item.subject)
        if held is None:
            return None
        try:
            for blob_id, size in held.blobs:
                fetched = await self._blocks.warm(blob_id, size)
                self.warmed_bytes += fetched  # not in one, for others add to it meanwhile
        except (CacheFull, DiskFull, BytesLost) as error:
            log.info("content %s is not warmed: %s", item.subject.hex(), error)
            self.left_out += 1
            return None
        self.warmed += 1
        if not held.sources:
            return None

        async def go_on(tr: Transaction, ctx: Context) -> None:
            for source in held.sources:  # what lends it parts
                await homes.owe_warm(tr, ctx, self._region, item.bucket, source)

        return go_on
