"""Homes gained and lost, as work owed: `replicate` and `release`.

A replica is owed to a region or to a node. In a region, whoever takes the item finds by rendezvous hashing which of its
nodes is to hold the content, and does it or passes it on. The bytes become durable block by block, so that a run goes
on where an earlier one stopped; the record comes in the transaction that ends the item. What the policy then has too
much of is released, by the node that has it, if enough others hold it at that moment.

On one node, gaining and losing the same content never overlap.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from tigrislike.bytecache import BlockStore
from tigrislike.metadata import Metadata, homes
from tigrislike.metadata.leasing import Effect
from tigrislike.metadata.records import Item

from .membership import Members

Gate = Callable[[int], Awaitable[None]]
"""Awaited before so many bytes are fetched."""

COPIES_AT_ONCE: Final = 4
"""Contents that a node fetches at a time: enough to hide the distance, few enough to leave the link to readers."""


class NoTaker(Exception):
    """No node of the region can hold a content now."""


class Moving:
    """Which contents are being gained or given up here; one of the two at a time."""

    def __init__(self) -> None:
        self._locks: dict[bytes, asyncio.Lock] = {}
        self._waiting: dict[bytes, int] = {}

    @contextlib.asynccontextmanager
    async def of(self, content_id: bytes) -> AsyncIterator[None]:
        """Wait until nobody else moves a content, and keep others waiting for the length of a `with` block."""
        lock = self._locks.setdefault(content_id, asyncio.Lock())
        self._waiting[content_id] = self._waiting.get(content_id, 0) + 1
        try:
            async with lock:
                yield
        finally:
            self._waiting[content_id] -= 1
            if not self._waiting[content_id]:
                del self._waiting[content_id], self._locks[content_id]


class Replicate:
    """Make this node, or the one of its region whose turn it is, a home of a content."""

    name = homes.REPLICATE
    priority = homes.REPLICATE_PRIORITY
    concurrency = COPIES_AT_ONCE

    def __init__(self, metadata: Metadata, blocks: BlockStore, members: Members, moving: Moving, gate: Gate) -> None:
        self._metadata = metadata
        self._blocks = blocks
        self._members = members
        self._moving = moving
        self._gate = gate
        self.copied = 0
        self.copied_bytes = 0

    async def run(self, item: Item) -> Effect | None:
        raise NotImplementedError
