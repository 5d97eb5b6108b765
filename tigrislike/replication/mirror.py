"""Write-through of shadow buckets, as work owed: `mirror`.

A put or a delete is acknowledged once it is done here, and owes its key to the shadow (`metadata/mirroring.py`). A run
writes what the key is by then: its bytes and all that the origin can keep beside them, or a delete. So it does not
matter in which order runs come, nor how often.

While the origin, or whoever has the bytes, does not answer, the item waits for as long as it takes. What the origin
refuses is tried a few times and then a dead letter, for somebody has to look at it.

A node writes a few objects at a time, and where it has a rate waits before each until those before it are paid for: not
in the middle of one, for then the origin would have to wait, which takes that for a client that died.

A run that loses its lease is cancelled. What it had on its way to the origin at that moment may still arrive there, and
then stands until the key is written again.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Final, Protocol

from tigrislike.bytecache import BlockStore, SourceUnavailable
from tigrislike.metadata import Bucket, Found, Metadata, NoSuchBucket, NoSuchKey, ObjectVersion, mirroring
from tigrislike.metadata.context import Context
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.leasing import Effect
from tigrislike.metadata.records import Item
from tigrislike.origin import Attributes, Buffer, Origin, OriginBroken, OriginUnavailable

from .rates import Rate

log = logging.getLogger("tigrislike.replication")

CONCURRENCY: Final = 4
"""Objects that a node writes to shadows at a time."""

_NS: Final = 1_000_000_000
_FIRST_WAIT_NS: Final = _NS
_LONGEST_WAIT_NS: Final = 60 * _NS


class Using(Protocol):
    """What is asked of a process's origins; see `origins.Origins.using`."""

    def using(self, origin_id: bytes) -> AbstractAsyncContextManager[Origin]: ...


class Mirror:
    """Make a shadow's object what a key of the bucket is.

    Args:
        gate: waited for before so many bytes are written: the node's rate limit.

    Attributes:
        written, deleted: objects of shadows.
        put_off: runs that found the origin, or the bytes, out of reach, or the shadow's object still needed.
    """

    name = mirroring.MIRROR
    priority = mirroring.MIRROR_PRIORITY
    concurrency = CONCURRENCY

    def __init__(self, metadata: Metadata, blocks: BlockStore, origins: Using, gate: Rate) -> None:
        self._metadata = metadata
        self._blocks = blocks
        self._origins = origins
        self._gate = gate
        self.written = 0
        self.deleted = 0
        self.put_off = 0

    async def run(self, item: Item) -> Effect | None:
        metadata = self._metadata
        name, key = mirroring.parse_subject(item.subject)
        await metadata.refresh()
        try:
            bucket = await metadata.bucket(name)
        except NoSuchBucket:
            return None
        if bucket.id != item.bucket or not (bucket.shadow and bucket.write_through):
            return None
        if await metadata.background(mirroring.is_needed, metadata.context, bucket, key):
            return self._again(bucket, key, self._wait_ns(item))
        try:
            await self._write(bucket, key)
        except OriginUnavailable as error:
            log.info("%s/%s is not mirrored yet: %s", name, key, error)
            return self._again(bucket, key, max(self._wait_ns(item), round(error.retry_after_s * _NS)))
        except (OriginBroken, SourceUnavailable) as error:
            log.warning("%s/%s is not mirrored yet: %s", name, key, error)
            return self._again(bucket, key, self._wait_ns(item))
        return None

    def _again(self, bucket: Bucket, key: str, wait_ns: int) -> Effect:
        self.put_off += 1

        async def owe(tr: Transaction, ctx: Context) -> None:
            await mirroring.owe(tr, ctx, bucket, key, vesting_ns=ctx.now_ns() + wait_ns)

        return owe

    def _wait_ns(self, item: Item) -> int:
        """As long again as it has been waited for."""
        waited_ns = self._metadata.now_ns() - item.enqueued_ns
        return min(max(waited_ns, _FIRST_WAIT_NS), _LONGEST_WAIT_NS)

    async def _write(self, bucket: Bucket, key: str) -> None:
        found = await self._find(bucket, key)
        if found is not None and await self._gate(found.version.size):
            found = await self._find(bucket, key)  # its bytes may have gone since
        async with self._origins.using(bucket.shadow) as origin:
            if found is None:
                await origin.delete(key)
                self.deleted += 1
                return
            version = found.version
            async with aclosing(pieces_of(self._blocks, found)) as pieces:
                await origin.put(key, pieces, version.size, attributes_of(version))
            self.written += 1

    async def _find(self, bucket: Bucket, key: str) -> Found | None:
        try:
            return await self._metadata.find_object(bucket, key)
        except NoSuchKey:
            return None


def attributes_of(version: ObjectVersion) -> Attributes:
    """What an object carries beside its bytes, as an origin takes it."""
    return Attributes(version.content_type, version.headers, version.metadata, version.tags, version.storage_class)


async def pieces_of(blocks: BlockStore, found: Found) -> AsyncGenerator[Buffer, None]:
    """The bytes of an object in order. Raises BytesError."""
    if found.inline is not None:
        if found.inline:
            yield found.inline
        return
    for part in found.parts:
        for extent in part.extents:
            reader = blocks.open_blob(extent.blob, extent.blob_size or extent.size)
            async with aclosing(reader.read(extent.offset, extent.offset + extent.size)) as pieces:
                async for piece in pieces:
                    yield piece if isinstance(piece, bytes) else memoryview(piece)
