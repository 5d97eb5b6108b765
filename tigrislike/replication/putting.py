"""Objects that the store writes of its own accord: logs of requests, reports.

They are objects as any other: on as many nodes, and at the origin, as their bucket wants, before they are committed.
"""

from __future__ import annotations

import hashlib
import logging
from base64 import b64encode
from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol

from awscrt import checksums
from msgspec.structs import replace

from tigrislike.bytecache import BlobWriter, BlockStore, BytesError
from tigrislike.metadata import Bucket, Metadata, MetadataError, placing
from tigrislike.metadata.kv import EngineUnavailable, RetryableError, StoreSealed
from tigrislike.metadata.records import DEFAULT_CHECKSUM_ALGORITHM, Draft, Elsewhere, Home

log = logging.getLogger("tigrislike.replication")


class Backs(Protocol):
    """What makes blobs durable at origins; see `backing.Backer`."""

    async def write(self, bucket: Bucket, blob_id: bytes, size: int) -> Elsewhere: ...


class Spreads(Protocol):
    """What makes blobs durable elsewhere; see `regional.Regional`."""

    @property
    def backer(self) -> Backs: ...

    async def spread(self, blob_id: bytes, size: int, copies: int, regions: tuple[str, ...]) -> tuple[Home, ...]: ...


class Put(NamedTuple):
    """What was written: its size in bytes, and its MD5 in hexadecimal, which is its ETag."""

    size: int
    md5: str


class _Digests:
    """MD5 and the default checksum over one stream."""

    def __init__(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._crc = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        self._md5.update(data)
        self._crc = checksums.crc64nvme(data, self._crc)

    def describe(self, size: int, content_type: str) -> Draft:
        return Draft(
            size,
            self._md5.hexdigest(),
            checksum_algorithm=DEFAULT_CHECKSUM_ALGORITHM,
            checksum_type="FULL_OBJECT",
            checksum=b64encode(self._crc.to_bytes(8, "big")).decode(),
            content_type=content_type,
        )


class Putter:
    """Writes objects. One of up to `inline_bytes` becomes a part of its record."""

    def __init__(self, metadata: Metadata, blocks: BlockStore, spreads: Spreads, inline_bytes: int) -> None:
        self._metadata = metadata
        self._blocks = blocks
        self._spreads = spreads
        self._inline_bytes = inline_bytes

    async def put(self, bucket: Bucket, key: str, pieces: AsyncIterator[bytes], content_type: str) -> Put:
        """Make `pieces` the newest version of an object.

        Raises:
            MetadataError, EngineError: see `Metadata.put_object`.
            BytesError: the bytes could not be kept, here or elsewhere. Nothing is left behind.
        """
        digests, head, size = _Digests(), bytearray(), 0
        writer: BlobWriter | None = None
        try:
            async for piece in pieces:
                size += len(piece)
                if writer is None:
                    head += piece
                    if size <= self._inline_bytes:
                        continue
                    writer = self._blocks.create_blob(digests.update)
                    piece = bytes(head)
                await writer.write(piece)
            if writer is None:
                digests.update(head)
                draft = digests.describe(size, content_type)
                await self._metadata.put_object(bucket, key, replace(draft, inline=bytes(head)))
            else:
                await writer.finish()
                draft = replace(digests.describe(size, content_type), blob=writer.blob_id)
                blob, writer = writer, None
                await self._commit(bucket, key, draft, blob)
        finally:
            if writer is not None:
                await writer.abort()
        return Put(size, draft.etag)

    async def put_bytes(self, bucket: Bucket, key: str, data: bytes, content_type: str) -> Put:
        """`put` for an object that is in memory."""

        async def once() -> AsyncIterator[bytes]:
            yield data

        return await self.put(bucket, key, once(), content_type)

    async def _commit(self, bucket: Bucket, key: str, draft: Draft, writer: BlobWriter) -> None:
        """Make the bytes durable wherever they are to be, commit them, and move them home."""
        blocks = self._blocks
        try:
            wanted = placing.wanted(bucket, self._metadata.regions, ())
            if wanted.copies > 1:
                others = await self._spreads.spread(writer.blob_id, draft.size, wanted.copies, wanted.regions)
                draft = replace(draft, others=others)
            if bucket.durability == placing.WRITE_THROUGH:
                draft = replace(draft, elsewhere=await self._spreads.backer.write(bucket, writer.blob_id, draft.size))
        except BaseException:
            await writer.abort()
            raise
        try:
            await self._metadata.put_object(bucket, key, draft)
        except (MetadataError, EngineUnavailable, RetryableError, StoreSealed):
            await writer.abort()
            raise
        except BaseException:
            blocks.release(writer.blob_id)  # it may be committed: the sweeper asks
            raise
        try:
            await blocks.publish(writer.blob_id)
        except BytesError as error:
            log.warning("blob %s stays in its upload directory until the next sweep: %s", writer.blob_id.hex(), error)
