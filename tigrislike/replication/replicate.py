"""Homes gained and lost, as work owed: `replicate`, `hold` and `release`.

A replica is owed to a region or to a node. In a region, whoever takes the item finds by rendezvous hashing which of its
nodes is to hold the content, and does it or passes it on. The bytes become durable block by block, so that a run goes
on where an earlier one stopped; the record comes in the transaction that ends the item. What the policy then has too
much of is released, by the node that has it, if enough others hold it at that moment.

On one node, gaining and losing the same content never overlap (`moving`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Final

from tigrislike.bytecache import BlockStore, DiskFull, SourceUnavailable, TooManyOpenFiles
from tigrislike.bytecache.homing import Gate
from tigrislike.metadata import Metadata, homes, placing, uploads
from tigrislike.metadata.context import Context
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.leasing import Effect
from tigrislike.metadata.records import DRAINING, LIVE, Item

from .lacking import View, owe_missing
from .membership import Members
from .moving import Moving
from .remote import BytesLost
from .tasks import NotNow

log = logging.getLogger("tigrislike.replication")

COPIES_AT_ONCE: Final = 128
"""Contents that a node copies at a time, of one task. A small one takes ten round trips, and of the wire hardly any
time: at 80 ms these are 150 a second."""

RELEASES_AT_ONCE: Final = 16
"""Contents that a node gives up at a time: mostly it waits for the database, seven round trips each."""

COPY_BYTES: Final = 32 << 20
"""Bytes of contents that it fetches at a time: enough to hide the distance, few enough to leave memory and link to
readers. A content that is larger is fetched alone."""


_PASSING: Final = (SourceUnavailable, DiskFull, TooManyOpenFiles)
"""Why bytes cannot be had or kept for a while. A region that was cut off for hours, say, gets its replicas after it."""

_LOOK_AGAIN_NS: Final = 10 * 1_000_000_000
"""After which a home that its policy does not want, and that had to stay, is looked at again."""


class NoTaker(NotNow):
    """No node of the region can hold a content now."""


class Room:
    """So many bytes for whoever is under way, in the order of asking."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def of(self, size: int) -> AsyncIterator[None]:
        """Wait until there is room for `size` bytes, and have it for the length of a `with` block; for more than there
        ever is, wait for all of it."""
        size = min(size, self._size)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.cancelled():
                self._waiting.remove((size, turn))
            else:
                self._taken -= size
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._taken + self._waiting[0][0] <= self._size:
            size, turn = self._waiting.popleft()
            self._taken += size
            turn.set_result(None)


class Copying:
    """Becoming a home of contents, for the tasks that do so.

    Args:
        gate: waited for before bytes are fetched: the node's rate limit.
    """

    def __init__(self, metadata: Metadata, blocks: BlockStore, members: Members, moving: Moving, gate: Gate) -> None:
        self._metadata = metadata
        self._blocks = blocks
        self._members = members
        self._moving = moving
        self._gate = gate
        self._room = Room(COPY_BYTES)
        self.copied = 0
        self.copied_bytes = 0
        """Contents that this node has become a home of, and bytes fetched for them."""

    async def become_home(self, content_id: bytes) -> Effect | None:
        """Make a content's bytes durable here; the effect that records it. None: it is gone or lost, or held
        here already.

        Raises:
            NotNow: those who have them do not answer, or there is no room for them here.
            BytesError: they could not be had, or not be kept.
        """
        async with self._moving.of(content_id):
            with _passing():
                try:
                    return await self._adopt(content_id, await self._metadata.begin_home(content_id))
                except BytesLost:
                    log.warning("content %s is lost: it gets no home here", content_id.hex())
                    return None

    async def become_home_ahead(self, content_id: bytes) -> None:
        """Become a home of a content for a write that waits for it, unless it is gone, and record it. Nothing is wrong
        if the write never comes, or this is cut off: what is left then is owed.

        Raises:
            BytesError: the bytes could not be had, or not be kept.
        """
        metadata = self._metadata
        async with self._moving.of(content_id):
            record = await self._adopt(content_id, await metadata.begin_home(content_id, ahead=True))
            if record is not None:
                await metadata.engine.transact(record, metadata.context)

    async def take_parts(self, content_id: bytes) -> Effect | None:
        """Make the parts of an upload in progress durable here that nodes hold which leave; the effect that records it.
        None: there are none.

        Raises:
            NotNow, BytesError: as `become_home`.
        """
        leaving = frozenset(each.node for each in self._members.all() if each.state == DRAINING)
        async with self._moving.of(content_id):
            blobs = await self._metadata.begin_parts(content_id, leaving)
            with _passing():
                for blob_id, size in blobs or ():
                    await self._fetch(blob_id, size)

        async def record(tr: Transaction, ctx: Context) -> None:
            await uploads.take_parts(tr, ctx, content_id, leaving)

        return record if blobs is not None else None

    async def _adopt(self, content_id: bytes, held: homes.Held | None) -> Effect | None:
        if held is None:
            return None
        for blob_id, size in held.blobs:
            await self._fetch(blob_id, size)
        alive = self._members.alive()

        async def record(tr: Transaction, ctx: Context) -> None:
            content = await homes.add_home(tr, ctx, content_id, alive)
            if content is not None:
                for source in held.sources:  # what lends it parts is to be here as well
                    await homes.owe_hold(tr, ctx, ctx.home.node, content.bucket, source)

        self.copied += 1
        return record

    async def _fetch(self, blob_id: bytes, size: int) -> None:
        async with self._room.of(size):
            fetched = await self._blocks.adopt(blob_id, size, gate=self._gate)
            self.copied_bytes += fetched  # not in one, for others add to it meanwhile

    async def declines(self, content_id: bytes) -> bool:
        """Whether this node, which drains, has somebody else hold a content. What it has begun to hold it finishes: it
        gives that up as it does the rest."""
        if not self._members.leaving:
            return False
        content = await self._metadata.content(content_id)
        return content is not None and self._metadata.context.home not in content.pending

    async def pass_on(self, tr: Transaction, ctx: Context, content_id: bytes) -> None:
        """Owe to others whatever homes a content lacks."""
        content = await homes.read_content(tr, ctx, content_id)
        if content is not None:
            view = View(self._members, self._members.alive())
            await owe_missing(tr, ctx, view, content_id, content, near=ctx.home.region)


@contextlib.contextmanager
def _passing() -> Iterator[None]:
    """What passes is no failure of the work. Raises NotNow."""
    try:
        yield
    except BytesLost:
        raise
    except _PASSING as error:
        raise NotNow(f"{type(error).__name__}: {error}") from error


class Replicate:
    """See to it that this region has a home of a content: here, or on the node of the region whose turn it is."""

    name = homes.REPLICATE
    priority = homes.REPLICATE_PRIORITY
    concurrency = COPIES_AT_ONCE

    def __init__(self, metadata: Metadata, members: Members, copying: Copying) -> None:
        self._metadata = metadata
        self._members = members
        self._copying = copying

    async def run(self, item: Item) -> Effect | None:
        content = await self._metadata.content(item.subject)
        if content is None or content.state != LIVE:
            return None
        alive = self._members.alive()
        region = self._members.region
        if any(alive[home.node] == region for home in placing.whole_homes(content, alive)):
            return None
        chosen = self._members.chosen(item.subject, region)
        if not chosen:
            raise NoTaker(f"no node of region {region} takes replicas now")
        node = chosen[0].node
        if node == self._members.own:
            return await self._copying.become_home(item.subject)

        async def pass_on(tr: Transaction, ctx: Context) -> None:
            await homes.owe_hold(tr, ctx, node, item.bucket, item.subject)

        return pass_on


class Hold:
    """Make this node a home of a content, or of what a node that leaves has of an upload in progress."""

    name = homes.HOLD
    priority = homes.REPLICATE_PRIORITY
    concurrency = COPIES_AT_ONCE

    def __init__(self, copying: Copying) -> None:
        self._copying = copying

    async def run(self, item: Item) -> Effect | None:
        if await self._copying.declines(item.subject):

            async def pass_on(tr: Transaction, ctx: Context) -> None:
                await self._copying.pass_on(tr, ctx, item.subject)

            return pass_on
        effect = await self._copying.become_home(item.subject)
        return effect if effect is not None else await self._copying.take_parts(item.subject)


class Release:
    """Let this node be a home of a content no longer, if enough others are: its blocks become cache."""

    name = homes.RELEASE
    priority = homes.RELEASE_PRIORITY
    concurrency = RELEASES_AT_ONCE

    def __init__(self, metadata: Metadata, blocks: BlockStore, members: Members, moving: Moving) -> None:
        self._metadata = metadata
        self._blocks = blocks
        self._members = members
        self._moving = moving
        self.released = 0
        self.kept = 0
        """Contents given up, and those of which this node had to stay a home."""

    async def run(self, item: Item) -> Effect | None:
        async with self._moving.of(item.subject):
            held = await self._metadata.held(item.subject)
            if held is None:
                return None  # whoever reclaims it removes the bytes
            content = await self._metadata.content(item.subject)
            keep = content is not None and self._metadata.regions.allow(content.regions, self._members.region)
            if not await self._metadata.drop_home(item.subject, self._members.alive()):
                self.kept += 1
                # Where its policy does not want it, it goes once the others can be counted on; where it is about to
                # be gained, nothing is decided yet.
                gaining = content is not None and self._metadata.context.home in content.pending
                return None if keep and not gaining else partial(self._later, item)
            for blob_id, size in held.blobs:
                await self._blocks.demote(blob_id, size, keep=keep)
            self.released += 1

        async def left(tr: Transaction, ctx: Context) -> None:
            await homes.left_home(tr, ctx, item.subject)

        return left

    async def _later(self, item: Item, tr: Transaction, ctx: Context) -> None:
        vesting_ns = ctx.now_ns() + _LOOK_AGAIN_NS
        await homes.owe_release(tr, ctx, ctx.home.node, item.bucket, item.subject, vesting_ns=vesting_ns)
