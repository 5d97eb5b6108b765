"""Shadow buckets, as the front door has them: what a bucket does not have, its origin may.

What a read misses is looked up at the origin and, if it is there, *adopted* (`metadata/shadows.py`): from then on it
is an object of the bucket, whose bytes come from the origin until a node is their home. So a GET that misses goes on as
any other, its blocks are filled once however many readers wait, and only those that are read; what is left is fetched
by the queue. Small objects are adopted with their bytes.

That the origin has nothing is remembered for a moment. Of concurrent reads of one key, one asks.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import aclosing
from typing import Final

from tigrislike.metadata import Metadata
from tigrislike.metadata.errors import NoSuchKey
from tigrislike.metadata.records import Bucket, Draft, Elsewhere, ObjectVersion
from tigrislike.origin import Origin, OriginChanged, OriginMissing, OriginObject

from .origins import Origins

_ABSENT_S: Final = 2.0
"""How long it is believed that the origin has no such object."""

_ABSENT_MOST: Final = 10_000
_TRIES: Final = 3
"""How often an object is looked at that changes while it is read."""


class Shadows:
    """The shadows of a store's buckets, for one process.

    Args:
        inline_bytes: objects of at most so many bytes are adopted with them.
        clock_s: monotonic; for tests.
    """

    def __init__(
        self,
        metadata: Metadata,
        origins: Origins,
        *,
        inline_bytes: int,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metadata = metadata
        self._origins = origins
        self._inline_bytes = inline_bytes
        self._clock_s = clock_s
        self._absent: OrderedDict[tuple[bytes, bytes, str], float] = OrderedDict()
        self._adopting: dict[tuple[bytes, bytes, str], asyncio.Task[bool]] = {}

    async def find(self, bucket: Bucket, key: str) -> bool:
        """Adopt an object that the bucket lacks, if its shadow has one. Whether it is worth looking again.

        Raises:
            OriginError, EngineError, NoSuchBucket.
        """
        if not bucket.shadow or self._is_absent(bucket, key):
            return False
        place = (bucket.id, bucket.shadow, key)
        task = self._adopting.get(place)
        if task is None:
            # It belongs to none of its readers: one that goes away leaves it to the others.
            task = asyncio.create_task(self._adopt(bucket, key))
            self._adopting[place] = task
            task.add_done_callback(lambda done: self._adopted(place, done))
        return await asyncio.shield(task)

    def _adopted(self, place: tuple[bytes, bytes, str], done: asyncio.Task[bool]) -> None:
        del self._adopting[place]
        if not done.cancelled():
            done.exception()  # whoever waited has it; perhaps nobody does any more

    async def _adopt(self, bucket: Bucket, key: str) -> bool:
        if not await self._metadata.is_untouched(bucket, key):
            # It was deleted here, or put by somebody else while this was on its way.
            return await self._has(bucket, key)
        async with self._origins.using(bucket.shadow) as origin:
            for _ in range(_TRIES):
                try:
                    found = await origin.head(key)
                    draft = await self._draft(origin, found)
                except OriginMissing:
                    self._remember_absent(bucket, key)
                    return False
                except OriginChanged:
                    continue
                await self._metadata.adopt(bucket, key, draft, found.modified_ns, _source(bucket, found))
                return True
        return False

    async def _has(self, bucket: Bucket, key: str) -> bool:
        try:
            await self._metadata.head_object(bucket, key)
        except NoSuchKey:
            return False
        return True

    async def head(self, bucket: Bucket, key: str) -> ObjectVersion | None:
        """What adopting an object would make of it, which is not done; None: the shadow has none that shows.

        Raises:
            OriginError, EngineError.
        """
        if not bucket.shadow or self._is_absent(bucket, key) or not await self._metadata.is_untouched(bucket, key):
            return None
        async with self._origins.using(bucket.shadow) as origin:
            try:
                found = await origin.head(key)
            except OriginMissing:
                self._remember_absent(bucket, key)
                return None
        draft = _describe(found)
        return ObjectVersion(
            found.modified_ns,
            found.size,
            found.etag,
            storage_class=draft.storage_class,
            checksum_algorithm=draft.checksum_algorithm,
            checksum_type=draft.checksum_type,
            null=True,
            checksum=draft.checksum,
            content_type=draft.content_type,
            headers=draft.headers,
            metadata=draft.metadata,
            tags=draft.tags,
        )

    async def renew(self, bucket: Bucket, key: str, content_id: bytes) -> bool:
        """Look again at an adopted object whose bytes the origin does not have any more: it was replaced there, or
        deleted, before they came. Whether the key has been brought up to date, by whomever.

        Raises:
            OriginError, EngineError, NoSuchBucket.
        """
        try:
            seen = await self._metadata.head_object(bucket, key)
        except NoSuchKey:
            return True
        if seen.content != content_id:
            return True
        async with self._origins.using(bucket.shadow) as origin:
            for _ in range(_TRIES):
                draft, modified_ns, source = None, 0, Elsewhere(bucket.shadow, key, "")
                try:
                    found = await origin.head(key)
                    draft, modified_ns = await self._draft(origin, found), found.modified_ns
                    source = _source(bucket, found)
                except OriginMissing:
                    pass
                except OriginChanged:
                    continue
                return await self._metadata.readopt(bucket, key, seen, draft, modified_ns, source)
        return False

    async def _draft(self, origin: Origin, found: OriginObject) -> Draft:
        """What adopting makes of an object, with its bytes where they are few. Raises OriginError."""
        if found.size > self._inline_bytes:
            return _describe(found, blob=secrets.token_bytes(16))
        data = bytearray()
        if found.size:
            pieces = origin.read(found.key, 0, found.size, size=found.size, etag=found.etag)
            async with aclosing(pieces):  # type: ignore[type-var]
                async for piece in pieces:
                    data += piece
        return _describe(found, inline=bytes(data))

    def _is_absent(self, bucket: Bucket, key: str) -> bool:
        until_s = self._absent.get((bucket.id, bucket.shadow, key))
        return until_s is not None and self._clock_s() < until_s

    def _remember_absent(self, bucket: Bucket, key: str) -> None:
        place = (bucket.id, bucket.shadow, key)
        self._absent[place] = self._clock_s() + _ABSENT_S
        self._absent.move_to_end(place)
        if len(self._absent) > _ABSENT_MOST:
            self._absent.popitem(last=False)


def _source(bucket: Bucket, found: OriginObject) -> Elsewhere:
    return Elsewhere(bucket.shadow, found.key, found.etag)


def _describe(found: OriginObject, *, inline: bytes | None = None, blob: bytes | None = None) -> Draft:
    """An object of an origin as it is kept here."""
    attributes = found.attributes
    return Draft(
        size=found.size,
        etag=found.etag,
        inline=inline,
        blob=blob,
        storage_class=attributes.storage_class or "STANDARD",
        checksum_algorithm=found.checksum_algorithm,
        checksum_type=found.checksum_type,
        checksum=found.checksum,
        content_type=attributes.content_type,
        headers=dict(attributes.headers),
        metadata=dict(attributes.metadata),
        tags=dict(attributes.tags),
    )
