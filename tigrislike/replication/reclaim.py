"""Give back the space of what nothing refers to any more.

A delete only drops a reference and owes a `reclaim` item, which vests after the grace that running reads are given.
Here the item is worked off: the database proves that nothing refers to the content and marks it dead for ever, only
then do its files go, on every node that has some, then what its backing origin has of it, then its records, then the
item. Every step can be repeated, so a node killed anywhere in between goes on where it was when the item's lease runs
out; a step that fails backs off and ends as a dead letter, with its reason. While an origin is away, its part waits.

A node works only in its own zones: it alone has the files.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from functools import partial

from tigrislike.bytecache import BlockStore
from tigrislike.metadata import Metadata
from tigrislike.metadata.blobs import forget_blob, owe_blob, owe_reclaim
from tigrislike.metadata.context import Context
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.leasing import Effect
from tigrislike.metadata.owed import RECLAIM_BLOB, RECLAIM_CONTENT, RECLAIM_PRIORITY
from tigrislike.metadata.records import LIVE, Item
from tigrislike.origin import OriginUnavailable

from .backing import NoOrigins, Origins, delete_all
from .consumer import Consumer
from .moving import Moving
from .write_back import later_ns

log = logging.getLogger("tigrislike.replication")

CONCURRENCY = 4
"""Removing files waits for the disk, which has that much to give beside requests."""


class ReclaimContent:
    """Remove a content's files here, if nothing refers to it; whoever is the last to do so removes its records."""

    name = RECLAIM_CONTENT
    priority = RECLAIM_PRIORITY
    concurrency = CONCURRENCY

    def __init__(self, metadata: Metadata, blocks: BlockStore, origins: Origins, moving: Moving) -> None:
        self._metadata = metadata
        self._blocks = blocks
        self._origins = origins
        self._moving = moving
        self.removed = 0
        self.in_use = 0
        """Runs that found the content referred to."""

    async def run(self, item: Item) -> Effect | None:
        # It may be on its way to an origin.
        async with self._moving.of(item.subject):
            dead = await self._metadata.reclaim_content(item.subject)
            if dead is None:
                self.in_use += 1
                return None
            for blob_id in dead:
                await self._blocks.delete_blob(blob_id)
            elsewhere = await self._metadata.dead_elsewhere(item.subject)
            # The last node to have bytes of it: until then others may still be writing to the origin.
            if elsewhere and await self._metadata.leave_content(item.subject):
                try:
                    await delete_all(self._origins, elsewhere)
                except OriginUnavailable as error:
                    log.warning("content %s waits for its origin to be reclaimed: %s", item.subject.hex(), error)
                    return partial(self._later, item, error.retry_after_s)
            # In transactions of their own, for there may be ten thousand parts.
            await self._metadata.forget_content(item.subject)
        self.removed += 1
        return None

    async def _later(self, item: Item, retry_after_s: float, tr: Transaction, ctx: Context) -> None:
        node, vesting_ns = ctx.home.node, later_ns(item, ctx.now_ns(), retry_after_s)
        await owe_reclaim(tr, ctx, node, item.bucket, item.subject, vesting_ns=vesting_ns)


class ReclaimBlob:
    """Remove the files of one blob, and its record, if its content does not use it. Where it does, and this node is not
    to hold it any more, its files here become cache."""

    name = RECLAIM_BLOB
    priority = RECLAIM_PRIORITY
    concurrency = CONCURRENCY

    def __init__(self, metadata: Metadata, blocks: BlockStore, origins: Origins, moving: Moving) -> None:
        self._metadata = metadata
        self._blocks = blocks
        self._origins = origins
        self._moving = moving
        self.removed = 0
        self.in_use = 0
        """Runs that found the blob used."""

    async def run(self, item: Item) -> Effect | None:
        if not await self._metadata.reclaim_blob(item.subject):
            self.in_use += 1
            await self._leave(item.subject)
            return None
        await self._blocks.delete_blob(item.subject)
        elsewhere = await self._metadata.blob_elsewhere(item.subject)
        if elsewhere is not None:  # a part that was written through
            try:
                await delete_all(self._origins, [(elsewhere.origin, item.subject)])
            except OriginUnavailable as error:
                return partial(self._later, item, error.retry_after_s)
        self.removed += 1

        async def forget(tr: Transaction, ctx: Context) -> None:
            await forget_blob(tr, ctx, item.subject)

        return forget

    async def _leave(self, blob_id: bytes) -> None:
        blob = await self._metadata.blob(blob_id)
        if blob is None or blob.state != LIVE:
            return
        async with self._moving.of(blob.content):
            if not await self._metadata.is_held_here(blob_id):
                await self._blocks.demote(blob_id, blob.size)

    async def _later(self, item: Item, retry_after_s: float, tr: Transaction, ctx: Context) -> None:
        node, vesting_ns = ctx.home.node, later_ns(item, ctx.now_ns(), retry_after_s)
        await owe_blob(tr, ctx, node, item.bucket, item.subject, vesting_ns=vesting_ns)


def reclaim_tasks(
    metadata: Metadata, blocks: BlockStore, origins: Origins, moving: Moving
) -> tuple[ReclaimContent, ReclaimBlob]:
    """Both tasks. `moving` is this process's."""
    return ReclaimContent(metadata, blocks, origins, moving), ReclaimBlob(metadata, blocks, origins, moving)


@dataclass(frozen=True)
class ReclaimStats:
    """What one pass did: contents and single blobs removed, items whose subject turned out to be in use, failures."""

    contents: int = 0
    blobs: int = 0
    in_use: int = 0
    failed: int = 0


async def reclaim_due(metadata: Metadata, blocks: BlockStore, origins: Origins | None = None) -> ReclaimStats:
    """Work off every reclaim item of this node that is due now, in one pass; returns when none is left."""
    with contextlib.closing(Moving(blocks.layout.root)) as moving:
        content, blob = reclaim_tasks(metadata, blocks, origins or NoOrigins(), moving)
        consumer = Consumer(metadata.queue, [blocks.node_id], [content, blob])
        await consumer.drain()
    return ReclaimStats(content.removed, blob.removed, content.in_use + blob.in_use, consumer.worked.failed.total())
