"""From a payload to stored bytes awaiting their commit.

A small payload is kept in memory and becomes a row of the metadata; a larger one streams into a blob of the block
store, hashed by the worker threads that write it, and is held by as many nodes as its bucket wants, and by the origin
of one that writes through, before anybody may hear of it. Either way nothing exists for anybody until `Received.commit`
has run the metadata transaction; leaving the context without it removes every trace.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from tigrislike.bytecache import BlobWriter, BytesError
from tigrislike.metadata import MetadataError, placing
from tigrislike.metadata.errors import HomesLacking, NotBacked
from tigrislike.metadata.kv import EngineUnavailable, RetryableError, StoreSealed
from tigrislike.metadata.records import DEFAULT_CHECKSUM_ALGORITHM, Elsewhere, Extent, Found, Home
from tigrislike.replication.backing import NotAtOrigin
from tigrislike.replication.regional import Regional
from tigrislike.s3api import checksums
from tigrislike.s3api.context import Context
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.payload import Payload
from tigrislike.s3api.reading import extents_of, read_extents

T = TypeVar("T")

log = logging.getLogger("tigrislike.s3api")

_SHARING_TRIES = 4
"""The source may become another one, or a home of it may die, while the first one gains homes."""


class Received:
    """Stored, verified bytes that no record names yet.

    `blob` is None where they are `inline`; `others` are the nodes that hold it durably beside this one, `elsewhere` is
    where an origin does.
    """

    def __init__(self, ctx: Context, writer: BlobWriter | None) -> None:
        self._ctx = ctx
        self._writer = writer
        self._settled = False
        self.size = 0
        self.inline: bytes | None = None
        self.etag = ""
        self.checksum_algorithm = ""
        self.checksum = ""
        self.others: tuple[Home, ...] = ()
        self.elsewhere: Elsewhere | None = None

    @property
    def blob(self) -> bytes | None:
        return None if self._writer is None else self._writer.blob_id

    @property
    def extents(self) -> tuple[Extent, ...]:
        """The one extent that the blob is, none for an empty payload, which has no blob."""
        if not self.size:
            return ()
        assert self._writer is not None
        return (Extent(blob=self._writer.blob_id, offset=0, size=self.size),)

    async def commit(self, transaction: Awaitable[T]) -> T:
        """Run the metadata transaction that gives the bytes a name, and move them to their home.

        Raises:
            MetadataError, EngineUnavailable, RetryableError, StoreSealed: certainly nothing was committed; the bytes
                are gone when the context ends.
            Exception: anything else leaves it open whether the transaction committed; the bytes are left to the
                sweeper, which asks the database.
        """
        try:
            result = await transaction
        except (MetadataError, EngineUnavailable, RetryableError, StoreSealed):
            raise
        except BaseException:
            self._settled = True
            if self._writer is not None:
                self._ctx.blocks.release(self._writer.blob_id)
            raise
        self._settled = True
        if self._writer is not None:
            await self._publish(self._writer.blob_id)
        return result

    async def _publish(self, blob_id: bytes) -> None:
        """Move the blob home. It is committed and readable where it lies, so a failure is the sweeper's to mend."""
        try:
            await self._ctx.blocks.publish(blob_id)
        except BytesError as error:
            log.warning("blob %s stays in its upload directory until the next sweep: %s", blob_id.hex(), error)

    async def discard(self) -> None:
        """Remove the bytes unless they were committed, or may have been."""
        if not self._settled and self._writer is not None:
            await self._writer.abort()

    async def spread(self, reach: Reach | None) -> None:
        """Have a finished blob held by as many nodes as are to, and by the origin that is to. Raises TooFewHomes,
        NotAtOrigin."""
        if reach is None or self._writer is None or not self.size:
            return
        regional, wanted = reach
        if wanted.copies > 1:
            self.others = await regional.spread(self._writer.blob_id, self.size, wanted.copies, wanted.regions)
        if self._ctx.bucket.durability == placing.WRITE_THROUGH:
            self.elsewhere = await regional.backer.write(self._ctx.bucket, self._writer.blob_id, self.size)

    def _describe(self, digests: checksums.Digests, algorithm: str) -> None:
        self.etag = digests.hex("MD5")
        self.checksum_algorithm = algorithm
        self.checksum = digests.base64(algorithm)


Reach = tuple[Regional, placing.Wanted]
"""Who makes a blob durable on further nodes and at its origin, and on how many nodes and where."""


def _reach(ctx: Context, regions: tuple[str, ...]) -> Reach | None:
    """None where this node is enough. Raises S3Error (ServiceUnavailable) where it knows of no other."""
    wanted = placing.wanted(ctx.bucket, ctx.metadata.regions, regions)
    if wanted.copies == 1 and ctx.bucket.durability != placing.WRITE_THROUGH:
        return None
    regional = ctx.services.regional
    if regional is None:
        raise S3Error(
            "ServiceUnavailable",
            "This object must be held by others beside this node before it is acknowledged, and there are none.",
        )
    return regional, wanted


@asynccontextmanager
async def ingest(
    ctx: Context, payload: Payload, limit: int, *, always_blob: bool = False, regions: tuple[str, ...] = ()
) -> AsyncIterator[Received]:
    """Receive `payload` (at most `limit` bytes) and hold it ready to be committed.

    `regions` is where the object is to be kept, if the bucket is not to say.

    Raises:
        S3Error: EntityTooLarge, and whatever is wrong with the payload; ServiceUnavailable where it is to be on several
            nodes and there is only this one.
        DiskFull: the disk has no room; nothing is left behind.
        TooFewHomes: fewer nodes could be reached than must hold it; nothing is left behind.
        NotAtOrigin: the bucket writes through, and its origin did not take it. What may be left there is owed to go.
    """
    if payload.size > limit:
        raise S3Error("EntityTooLarge", extra={"ProposedSize": str(payload.size), "MaxSizeAllowed": str(limit)})
    algorithm = payload.algorithm or DEFAULT_CHECKSUM_ALGORITHM
    digests = payload.start_digests({"MD5", algorithm})
    # An empty payload has no blob in any case: no record would name it, and its file would never go.
    if payload.size <= (0 if always_blob else ctx.settings.inline_bytes):
        received = Received(ctx, None)
        received.inline = await payload.read(limit)
        received.size = len(received.inline)
        payload.finish()
        received._describe(digests, algorithm)
        yield received
        return
    reach = _reach(ctx, regions)
    digest, beside = digests.apart()
    writer = ctx.blocks.create_blob(digest, beside=beside, size=payload.size if payload.exact else None)
    received = Received(ctx, writer)
    try:
        await payload.store(writer)
        await writer.finish()
        received.size = writer.size
        payload.finish()
        received._describe(digests, algorithm)
        await received.spread(reach)
        yield received
    finally:
        await received.discard()


@asynccontextmanager
async def ingest_bytes(
    ctx: Context, data: bytes, algorithm: str, *, regions: tuple[str, ...] = ()
) -> AsyncIterator[Received]:
    """Hold `data` as a blob ready to be committed, hashed with MD5 and `algorithm`. Otherwise as `ingest`."""
    digests = checksums.Digests(sorted({"MD5", algorithm}))
    if not data:
        received = Received(ctx, None)
        received.inline = b""
        received._describe(digests, algorithm)
        yield received
        return
    reach = _reach(ctx, regions)
    digest, beside = digests.apart()
    writer = ctx.blocks.create_blob(digest, beside=beside, size=len(data))
    received = Received(ctx, writer)
    try:
        await writer.write(data)
        await writer.finish()
        received.size = writer.size
        received._describe(digests, algorithm)
        await received.spread(reach)
        yield received
    finally:
        await received.discard()


async def ensure_backed(ctx: Context, content_id: bytes) -> None:
    """Have bytes that are committed already at the origin of the addressed bucket. Raises NotAtOrigin."""
    regional = ctx.services.regional
    if regional is None:
        raise NotAtOrigin("The bytes have to be written to the bucket's origin, and this node reaches none.")
    await regional.backer.ensure(ctx.bucket, content_id)


async def sharing(ctx: Context, share: Callable[[placing.Alive | None], Awaitable[T]]) -> T:
    """Run the metadata transaction of a write that shares stored bytes, given the nodes that count. Where these are on
    fewer nodes than the bucket wants, or at no origin though it writes through, they are brought there first: one that
    is committed needs nothing more.

    Raises:
        HomesLacking, TooFewHomes: too few nodes hold them, or could be reached; nothing was committed.
        NotBacked, NotAtOrigin: nor is the origin that is to hold them.
        Exception: whatever `share` raises.
    """
    regional = ctx.services.regional
    if regional is None:
        return await share(None)
    for _ in range(_SHARING_TRIES - 1):
        try:
            return await share(regional.members.alive())
        except HomesLacking as lacking:
            await regional.secure(lacking)
        except NotBacked as unbacked:
            await regional.backer.ensure(ctx.bucket, unbacked.content_id)
    return await share(regional.members.alive())


async def hash_object(ctx: Context, found: Found, start: int, stop: int, algorithm: str) -> checksums.Digests:
    """MD5 and `algorithm` over stored bytes `[start, stop)`, hashed off the event loop."""
    digests = checksums.Digests(sorted({"MD5", algorithm}))
    if found.inline is not None:
        digests.update(found.inline[start:stop])
        return digests
    async for piece in read_extents(ctx.blocks, extents_of(found, start, stop)):
        await asyncio.to_thread(digests.update, piece)
    return digests
