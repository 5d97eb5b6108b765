"""Give back the space of what nothing refers to any more.

A delete only drops a reference and owes a `reclaim` item, which vests after the grace that running reads are given.
Here the item is worked off: the database proves that nothing refers to the content and marks it dead for ever, only
then do its files go, then its records, then the item. Every step can be repeated, so a node killed anywhere in between
goes on where it was when the item's lease runs out; a step that fails backs off and ends as a dead letter, with its
reason.

A node works only in its own zones: it alone has the files.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tigrislike.bytecache import BlockStore
from tigrislike.metadata import Metadata
from tigrislike.metadata.kv import StoreSealed
from tigrislike.metadata.owed import RECLAIM_BLOB, RECLAIM_CONTENT
from tigrislike.metadata.records import Claimed

log = logging.getLogger("tigrislike.replication")

BATCH = 50  # items under one claim
LEASE_S = 60.0  # far longer than unlinking the largest object's files takes; extended before every item
_ZONE_PAGE = 1000


@dataclass(frozen=True)
class ReclaimStats:
    """What one pass did: contents and single blobs removed, items whose subject turned out to be in use, failures."""

    contents: int = 0
    blobs: int = 0
    in_use: int = 0
    failed: int = 0


async def reclaim_due(metadata: Metadata, blocks: BlockStore) -> ReclaimStats:
    """Work off every reclaim item of this node that is due now; returns when none is left."""
    contents = removed = in_use = failed = 0
    async for zone in _own_zones(metadata, blocks.node_id):
        while claimed := await metadata.claim(zone, BATCH, LEASE_S):
            for item in claimed:
                if not await metadata.extend(item, LEASE_S):
                    continue  # the lease ran out while its neighbours were worked on; another pass has it
                try:
                    outcome = await _reclaim(metadata, blocks, item)
                except StoreSealed:
                    raise  # nothing is wrong with the item, and nothing could be noted of it
                except Exception as error:
                    failed += 1
                    log.warning("reclaiming %s %s failed: %s", item.item.task, item.item.subject.hex(), error)
                    await metadata.fail(item, f"{type(error).__name__}: {error}")
                    continue
                await metadata.finish(item)
                contents += outcome == RECLAIM_CONTENT
                removed += outcome == RECLAIM_BLOB
                in_use += outcome == ""
        if not await metadata.queue_depth(zone):
            await metadata.collect_zone(zone)
    return ReclaimStats(contents, removed, in_use, failed)


async def _reclaim(metadata: Metadata, blocks: BlockStore, claimed: Claimed) -> str:
    """Remove an item's subject if nothing refers to it; the task done, or "" where something does."""
    task, subject = claimed.item.task, claimed.item.subject
    if task == RECLAIM_CONTENT:
        dead = await metadata.reclaim_content(subject)
        if dead is None:
            return ""
        for blob_id in dead:
            await blocks.delete_blob(blob_id)
        await metadata.forget_content(subject)
    elif task == RECLAIM_BLOB:
        if not await metadata.reclaim_blob(subject):
            return ""
        await blocks.delete_blob(subject)
        await metadata.forget_blob(subject)
    else:
        raise ValueError(f"no consumer for the task {task!r}: this node is older than the one that owed it")
    return task


async def _own_zones(metadata: Metadata, node_id: bytes) -> AsyncIterator[bytes]:
    """The zones of this node, which are those whose name begins with its id.

    The first may be the bare id: what crashed uploads left belongs to no bucket.
    """
    after = node_id[:-1]  # sorts before the bare id, with nothing of this node's in between
    while True:
        page = await metadata.zones(after, _ZONE_PAGE)
        for zone in page:
            if zone.startswith(node_id):
                yield zone
            elif zone > node_id:
                return
        if len(page) < _ZONE_PAGE:
            return
        after = page[-1]
