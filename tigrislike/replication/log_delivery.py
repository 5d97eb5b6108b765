"""Delivery of the log of requests: from this node's spool to objects of the target buckets.

What gathers is delivered some minutes after its first record, or when there is much of it, each file as one object; a
file is removed once its object is committed, and its object's name follows from its own, so that one that is delivered
again after a crash becomes the same object. What has been logged of a bucket that is logged no longer, or is gone, is
delivered at once. Where the target is gone, or has become somebody else's, there is nobody to deliver to: the records
are dropped, and their number of bytes is told. While the database or the disk refuses, files wait, within the bound of
the spool. Deliveries are no requests: they are not logged themselves, also where a bucket's log goes to that bucket.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tigrislike.bytecache import BytesError
from tigrislike.metadata import Bucket, Metadata, MetadataError, NoSuchBucket, server_logging
from tigrislike.metadata.records import Logging

from .log_spool import Spool, Taken
from .putting import Putter

log = logging.getLogger("tigrislike.replication")

LOOK_S: Final = 5.0
"""How often what has gathered is looked at."""

_PIECE_BYTES: Final = 1 << 20
_KEPT_NS: Final = 86400 * 1_000_000_000
"""How long it is remembered where the last of a log goes: as long as a node may be away with some of it."""


class Delivery:
    """Takes what is due from a spool.

    Args:
        region: this node's, which log objects in folders name.
        interval_s, most_bytes: how long records gather, and how many bytes of them.
        clock: monotonic seconds.

    Attributes:
        delivered: objects.
        dropped_bytes: what nobody could be given.
    """

    def __init__(
        self,
        metadata: Metadata,
        spool: Spool,
        putter: Putter,
        region: str,
        *,
        interval_s: float,
        most_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        self._metadata = metadata
        self._spool = spool
        self._putter = putter
        self._region = region
        self._interval_s = interval_s
        self._most_bytes = most_bytes
        self._clock = clock
        self._since: dict[tuple[bytes, str], float] = {}
        self.delivered = 0
        self.dropped_bytes = 0

    async def run(self) -> None:
        """Deliver what is due. Raises EngineError."""
        gathered = await asyncio.to_thread(self._spool.buckets)
        rows = {each.bucket: each for each in await self._metadata.logged_buckets()}
        for bucket in gathered:
            row = rows.get(bucket)
            try:
                await self._take(bucket, at_once=row is None or bool(row.ended_ns))
                for taken in await asyncio.to_thread(self._spool.taken, bucket):
                    await self._deliver(taken, row)
            except (MetadataError, BytesError, OSError) as error:
                log.warning("the log of requests to %s waits: %s", _name(row, bucket), error)
            await asyncio.to_thread(self._spool.tidy, bucket)
        for row in rows.values():
            if row.ended_ns and self._metadata.now_ns() - row.ended_ns > _KEPT_NS:
                await self._metadata.forget_logging(row.bucket)

    async def _take(self, bucket: bytes, *, at_once: bool) -> None:
        now_s = self._clock()
        for day, size in (await asyncio.to_thread(self._spool.growing, bucket)).items():
            since_s = self._since.setdefault((bucket, day), now_s)
            if at_once or size >= self._most_bytes or now_s - since_s >= self._interval_s:
                await asyncio.to_thread(self._spool.take, bucket, day, self._metadata.now_ns())
                del self._since[bucket, day]

    async def _deliver(self, taken: Taken, logged: Logging | None) -> None:
        if (target := await self._target(logged)) is None or logged is None:
            size = await asyncio.to_thread(lambda: taken.path.stat().st_size)
            self.dropped_bytes += size
            log.warning("%d bytes of the log of requests to %s dropped: no target", size, _name(logged, taken.bucket))
        else:
            key = key_of(logged, self._region, taken)
            await self._putter.put(target, key, _pieces(taken.path), "text/plain")
            self.delivered += 1
        await asyncio.to_thread(taken.path.unlink)

    async def _target(self, logged: Logging | None) -> Bucket | None:
        if logged is None:
            return None
        await self._metadata.refresh()
        try:
            target = await self._metadata.bucket(logged.target)
        except NoSuchBucket:
            return None
        return target if target.owner == logged.owner else None


def _name(row: Logging | None, bucket: bytes) -> str:
    return row.name if row is not None else f"a former bucket ({bucket.hex()})"


def key_of(logged: Logging, region: str, taken: Taken) -> str:
    """The key of the object that a file becomes.

    Source: S3 API reference, "PartitionedPrefix", "SimplePrefix".
    """
    unique = hashlib.sha256(taken.path.name.encode()).hexdigest()[:16].upper()
    at = datetime.fromtimestamp(taken.at_ns // 1_000_000_000, UTC)
    if logged.partition == server_logging.SIMPLE:
        return f"{logged.prefix}{at:%Y-%m-%d-%H-%M-%S}-{unique}"
    if logged.partition == server_logging.EVENT_TIME:
        at = datetime.fromisoformat(taken.day)
    folders = f"{logged.owner}/{region}/{logged.name}/{at:%Y/%m/%d}"
    return f"{logged.prefix}{folders}/{at:%Y-%m-%d-%H-%M-%S}-{unique}"


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
            yield piece
