"""What backing origins hold, as work owed: `write_back` and `discard`.

A `write_back` brings about what is wanted: that the content's origin holds all of it, or none of it any more. It is
owed to the first home of the content, which alone does either. Blobs that are noted as written are not written again,
so a run goes on where an earlier one stopped; that the origin holds the content is recorded in the transaction that
ends the item, and then the homes that are more than its policy wants are released: their blocks become cache.

While an origin is away, what is owed to it waits, and is tried again, less and less often, for as long as that takes.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final

from tigrislike.bytecache import BlockStore
from tigrislike.metadata import Metadata, backing, homes, placing
from tigrislike.metadata.context import Context
from tigrislike.metadata.deciding import SECOND
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.leasing import Effect
from tigrislike.metadata.records import LIVE, Content, Elsewhere, Item
from tigrislike.origin import OriginUnavailable

from .backing import Origins, delete_all, deliver
from .lacking import View, owe_missing
from .membership import Members
from .moving import Moving

log = logging.getLogger("tigrislike.replication")

WRITES_AT_ONCE: Final = 8
"""Contents that a node writes to origins at a time."""

BLOBS_AT_ONCE: Final = 4
"""Blobs of one content."""

NOTED_AT_ONCE: Final = 64
"""Blobs after which it is noted where they lie: so many may be written twice."""

_SOON_NS: Final = 5 * SECOND
_LATE_NS: Final = 300 * SECOND


def later_ns(item: Item, now_ns: int, retry_after_s: float = 0.0) -> int:
    """When to try again what an origin keeps from being done: after a quarter of the time that it is owed for, but
    within five minutes."""
    waited_ns = max((now_ns - item.enqueued_ns) // 4, int(retry_after_s * SECOND), _SOON_NS)
    return now_ns + min(waited_ns, _LATE_NS)


class WriteBack:
    """Have a content's origin hold what is wanted of it."""

    name = homes.WRITE_BACK
    priority = homes.WRITE_BACK_PRIORITY
    concurrency = WRITES_AT_ONCE

    def __init__(
        self, metadata: Metadata, blocks: BlockStore, members: Members, moving: Moving, origins: Origins
    ) -> None:
        self._metadata = metadata
        self._blocks = blocks
        self._members = members
        self._moving = moving
        self._origins = origins
        self.written = 0
        self.written_bytes = 0
        """Blobs written, and their bytes."""

    async def run(self, item: Item) -> Effect | None:
        content_id = item.subject
        try:
            async with self._moving.of(content_id):
                content = await self._metadata.content(content_id)
                if content is None or content.state != LIVE:
                    return None  # whoever reclaims it sees to what the origin has
                if placing.is_to_be_given_up(content):
                    return await self._give_up(item, content)
                if placing.is_to_be_written(content):
                    return await self._write(item)
                return None
        except OriginUnavailable as error:
            log.warning("content %s waits for its origin: %s", content_id.hex(), error)
            return partial(self._later, item, error.retry_after_s)

    async def _write(self, item: Item) -> Effect | None:
        metadata, content_id = self._metadata, item.subject
        origin_id = await metadata.announce_backing(content_id)
        held = await metadata.held(content_id)
        if origin_id is None or held is None:
            return partial(self._later, item, 0.0)  # whose turn it is, if there is still something to do
        sizes = dict(held.blobs)
        written: list[tuple[bytes, Elsewhere]] = []
        unwritten = await metadata.unwritten(origin_id, list(sizes))
        while unwritten:
            some, unwritten = unwritten[:BLOBS_AT_ONCE], unwritten[BLOBS_AT_ONCE:]
            writing = (deliver(self._origins, origin_id, self._blocks, blob_id, sizes[blob_id]) for blob_id in some)
            outcomes = await asyncio.gather(*writing, return_exceptions=True)
            for blob_id, outcome in zip(some, outcomes, strict=True):
                if not isinstance(outcome, BaseException):
                    written.append((blob_id, outcome))
                    self.written += 1
                    self.written_bytes += sizes[blob_id]
            failure = next((outcome for outcome in outcomes if isinstance(outcome, BaseException)), None)
            if failure is not None or len(written) >= NOTED_AT_ONCE:
                noted = await metadata.note_written(content_id, origin_id, written)
                written = []
                if failure is not None:
                    raise failure
                if not noted:
                    return partial(self._later, item, 0.0)
        alive = self._members.alive()

        async def record(tr: Transaction, ctx: Context) -> None:
            if not await backing.record(tr, ctx, content_id, origin_id, written, alive):
                await self._later(item, 0.0, tr, ctx)

        return record

    async def _give_up(self, item: Item, content: Content) -> Effect | None:
        metadata, content_id = self._metadata, item.subject
        held = await metadata.held(content_id)
        origin_id = await metadata.forgo_backing(content_id, self._members.alive())
        if origin_id is None or held is None:
            return partial(self._later, item, 0.0)
        await delete_all(self._origins, ((origin_id, blob_id) for blob_id, _ in held.blobs))

        async def forgone(tr: Transaction, ctx: Context) -> None:
            await backing.forgone(tr, ctx, content_id, origin_id)

        return forgone

    async def _later(self, item: Item, retry_after_s: float, tr: Transaction, ctx: Context) -> None:
        """Owe it again, to whoever is to do it then, if there is still something to do; and the homes that it takes."""
        content = await homes.read_content(tr, ctx, item.subject)
        if content is None:
            return
        if placing.is_to_be_given_up(content):
            view = View(self._members, self._members.alive())
            await owe_missing(tr, ctx, view, item.subject, content, near=ctx.home.region)
        vesting_ns = later_ns(item, ctx.now_ns(), retry_after_s)
        if content.homes and content.homes[0].node != ctx.home.node:
            vesting_ns = 0
        await homes.owe_write_back(tr, ctx, item.subject, content, vesting_ns=vesting_ns)


class Discard:
    """Delete what an origin was sent for a blob that was never committed."""

    name = backing.DISCARD
    priority = backing.DISCARD_PRIORITY
    concurrency = WRITES_AT_ONCE

    def __init__(self, metadata: Metadata, origins: Origins) -> None:
        self._metadata = metadata
        self._origins = origins
        self.discarded = 0

    async def run(self, item: Item) -> Effect | None:
        blob_id, origin_id = backing.discard_of(item.subject)
        if not await self._metadata.give_up_blob(blob_id):
            return None
        try:
            await delete_all(self._origins, [(origin_id, blob_id)])
        except OriginUnavailable as error:
            return partial(self._later, item, error.retry_after_s)
        self.discarded += 1
        return None

    async def _later(self, item: Item, retry_after_s: float, tr: Transaction, ctx: Context) -> None:
        vesting_ns = later_ns(item, ctx.now_ns(), retry_after_s)
        await backing.owe_discard(tr, ctx, item.bucket, *backing.discard_of(item.subject), vesting_ns=vesting_ns)
