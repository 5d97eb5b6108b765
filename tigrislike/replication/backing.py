"""Blobs at the origins that hold them durably: written and verified, and what a write-through waits for.

A blob is one object there, under a key that tells nothing (`metadata.backing.key_of`), streamed from this node's block
store, which verifies what it gives. Where the origin does not say itself that it has the bytes that were sent, they are
read back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import ClassVar, Final, Protocol

import xxhash

from tigrislike.bytecache import BlockStore, SourceUnavailable
from tigrislike.metadata import Metadata
from tigrislike.metadata.backing import key_of
from tigrislike.metadata.records import Bucket, Elsewhere
from tigrislike.origin import Attributes, Buffer, Origin, OriginBroken, OriginError, OriginRefused, OriginUnavailable

WAIT_S: Final = 30.0
"""How long a request waits until bytes that are here already are at an origin too."""

_LOOK_S: Final = 0.05
_LOOK_MOST_S: Final = 1.0

DELETES_AT_ONCE: Final = 8


class Origins(Protocol):
    """What is asked for origins; see `origins.Origins`."""

    def using(self, origin_id: bytes) -> AbstractAsyncContextManager[Origin]:
        """An origin, open for the length of a `with` block. Raises OriginError, EngineError."""
        ...


class NoOrigins:
    """The origins of a process that opens none."""

    def using(self, origin_id: bytes) -> AbstractAsyncContextManager[Origin]:
        raise OriginRefused(f"this process opens no origins, and needs {origin_id.hex()}")


class NotAtOrigin(SourceUnavailable):
    """What is written here must be at the bucket's origin before it is acknowledged, and is not."""

    code: ClassVar[str] = "SlowDown"
    for_operators: ClassVar[bool] = False

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


async def deliver(origins: Origins, origin_id: bytes, blocks: BlockStore, blob_id: bytes, size: int) -> Elsewhere:
    """Write a finished blob of `size` bytes to an origin; where it lies there, known to be what was sent.

    Raises:
        OriginError, EngineError: it was not written, or not for certain.
        BytesError: the blob cannot be read.
    """
    key = key_of(blob_id)
    sent = xxhash.xxh3_128()

    async def pieces() -> AsyncGenerator[Buffer, None]:
        async with aclosing(blocks.open_blob(blob_id, size).read(0, size)) as found:
            async for piece in found:
                sent.update(piece)
                yield memoryview(piece)

    async with origins.using(origin_id) as origin:
        async with aclosing(pieces()) as stream:
            written = await origin.put(key, stream, size, Attributes())
        if not written.verified:
            there = xxhash.xxh3_128()
            back = origin.read(key, 0, size, size=size, etag=written.etag)
            async for piece in back:
                there.update(piece)
            if there.digest() != sent.digest():
                raise OriginBroken(f"{origin.name} gives other bytes of {key} than it was sent")
    return Elsewhere(origin_id, key, written.etag)


async def delete_all(origins: Origins, blobs: Iterable[tuple[bytes, bytes]]) -> None:
    """Delete what origins have of blobs, (origin, blob) each. May be cut off and done again.

    Raises:
        OriginError, EngineError: some are left.
    """
    left = list(blobs)

    async def delete_some() -> None:
        while left:
            origin_id, blob_id = left.pop()
            async with origins.using(origin_id) as origin:
                await origin.delete(key_of(blob_id))

    outcomes = await asyncio.gather(*(delete_some() for _ in range(DELETES_AT_ONCE)), return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


class Backer:
    """What a write-through does before it is acknowledged.

    Args:
        wait_s: how long it waits for work that others do.
        sleep: waits for seconds between two looks; for tests, which do not.
    """

    def __init__(
        self,
        metadata: Metadata,
        blocks: BlockStore,
        origins: Origins,
        *,
        wait_s: float = WAIT_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._metadata = metadata
        self._blocks = blocks
        self._origins = origins
        self._wait_s = wait_s
        self._sleep = sleep

    async def write(self, bucket: Bucket, blob_id: bytes, size: int) -> Elsewhere:
        """Write a finished blob that is not committed yet to its bucket's origin. If it never is, the object goes.

        Raises:
            NotAtOrigin
        """
        await self._metadata.owe_discard(bucket, blob_id, bucket.backing)
        try:
            return await deliver(self._origins, bucket.backing, self._blocks, blob_id, size)
        except OriginUnavailable as error:
            raise NotAtOrigin(
                "The bucket's origin does not answer now. Please try again.", error.retry_after_s
            ) from error
        except OriginError as error:
            raise NotAtOrigin("The bucket's origin does not take the object now.") from error

    async def ensure(self, bucket: Bucket, content_id: bytes) -> None:
        """Have a committed content at its bucket's origin.

        Raises:
            NotAtOrigin: it is not there yet. It is owed, and will be.
        """
        if not bucket.backing:  # it has one since a moment ago
            raise NotAtOrigin("The bucket has just been given an origin. Please try again.")
        look_s = _LOOK_S
        try:
            async with asyncio.timeout(self._wait_s):
                while not await self._metadata.want_backing(content_id, bucket.backing):
                    await self._sleep(look_s)
                    look_s = min(2 * look_s, _LOOK_MOST_S)
        except TimeoutError:
            raise NotAtOrigin("The bytes are still being written to the bucket's origin. Please try again.") from None
