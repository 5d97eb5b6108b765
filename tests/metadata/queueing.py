"""Short ways for a test to be a consumer of the queue."""

from __future__ import annotations

from tigrislike.metadata import Claimed, Metadata
from tigrislike.metadata.deciding import QUEUE


async def take(metadata: Metadata, zone: bytes) -> list[Claimed]:
    """A batch of the zone's due items under lease; empty where none is due, or a consumer was there just now."""
    pointer_lease = await metadata.queue.lease(zone, early_ns=QUEUE.poll_ns)
    if pointer_lease is None:
        return []
    batch = await metadata.queue.claim(zone, pointer_lease)
    assert batch is not None, "nobody else is there"
    return batch.claimed


async def take_all(metadata: Metadata) -> list[Claimed]:
    """Everything due, under lease."""
    claimed = []
    for zone in await metadata.queue.zones():
        while batch := await take(metadata, zone):
            claimed += batch
    return claimed
