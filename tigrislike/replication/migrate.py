"""Migration of a whole shadow bucket, as work owed: `migrate`.

A run walks the shadow's listing and has each key adopted that the bucket has not, and never had; the mark that each
page leaves (`metadata/shadow_migration.py`) is where another run goes on. What is adopted owes its bytes, which
`replicate` fetches at its own rate; so a migration is over when that is worked off as well.

A key that cannot be adopted is counted and left out, for the report to show. While the origin does not answer, the item
waits for as long as it takes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from msgspec.structs import replace

from tigrislike.metadata import Bucket, Metadata, MetadataError, NoSuchBucket, shadow_migration
from tigrislike.metadata.context import Context
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.leasing import Effect
from tigrislike.metadata.records import Item, Migration
from tigrislike.origin import OriginError, OriginPage, OriginRefused, OriginUnavailable

from .mirror import Using
from .rates import Rate

log = logging.getLogger("tigrislike.replication")

Adopt = Callable[[Bucket, str], Awaitable[bool]]
"""Adopts an object that the bucket lacks; whether it is there then. See `shadow.Shadows.find`."""

PAGE: Final = 200
AT_ONCE: Final = 16
"""Objects that a run adopts at a time: a few requests to the origin for each."""

_WAIT_NS: Final = 10 * 1_000_000_000


class Migrate:
    """Have a bucket adopt what its shadow has.

    Args:
        adopt: how a key is adopted.
    """

    name = shadow_migration.MIGRATE
    priority = shadow_migration.MIGRATE_PRIORITY
    concurrency = 1

    def __init__(self, metadata: Metadata, origins: Using, adopt: Adopt) -> None:
        self._metadata = metadata
        self._origins = origins
        self._adopt = adopt

    async def run(self, item: Item) -> Effect | None:
        metadata = self._metadata
        migration = await metadata.background(shadow_migration.read, metadata.context, item.subject)
        rate = Rate(migration.rate if migration is not None else 0)
        while migration is not None and not migration.ended_ns:
            await metadata.refresh()
            try:
                bucket = await metadata.bucket(migration.name)
            except NoSuchBucket:
                return None
            if bucket.id != item.subject or bucket.shadow != migration.origin:
                return None  # it looks elsewhere by now
            try:
                new = await self._page(bucket, migration, rate)
            except OriginUnavailable as error:
                log.info("the migration of %s waits: %s", bucket.name, error)
                await self._advance(item, migration, replace(migration, error=str(error)))
                return _later(item, max(_WAIT_NS, round(error.retry_after_s * 1e9)))
            except OriginError as error:
                await self._advance(item, migration, replace(migration, error=str(error)))
                raise
            before, migration = migration, await self._advance(item, migration, new)
            if migration is not None and migration.rate != before.rate:
                rate = Rate(migration.rate)
        return None

    async def _advance(self, item: Item, seen: Migration, new: Migration) -> Migration | None:
        metadata = self._metadata
        return await metadata.background(shadow_migration.advance, metadata.context, item.subject, seen, new)

    async def _page(self, bucket: Bucket, migration: Migration, rate: Rate) -> Migration:
        """See to the next page; how the migration stands then. Raises OriginError."""
        async with self._origins.using(bucket.shadow) as origin:
            page: OriginPage
            try:
                page = await origin.list(migration.prefix, after=migration.after, limit=PAGE)
            except OriginRefused:
                if not migration.after:
                    raise
                # Its words for where a page begins may not be good for ever. What is adopted already costs little.
                log.warning("the migration of %s starts over: its origin does not go on", bucket.name)
                return replace(migration, after="", looked=0, failed=0, error="")
        adopted, failed = await self._take(bucket, [entry.key for entry in page.entries], rate)
        return replace(
            migration,
            after=page.after,
            looked=migration.looked + len(page.entries),
            adopted=migration.adopted + adopted,
            failed=migration.failed + failed,
            error="",
            ended_ns=0 if page.after else self._metadata.now_ns(),
        )

    async def _take(self, bucket: Bucket, keys: Sequence[str], rate: Rate) -> tuple[int, int]:
        """Adopt what the bucket has not; how many it did, and how many it could not. Raises OriginUnavailable."""
        wanted = await self._metadata.untouched(bucket, keys)
        room = asyncio.Semaphore(AT_ONCE)

        async def take(key: str) -> int:
            async with room:
                await rate(1)
                try:
                    return int(await self._adopt(bucket, key))  # it may be gone there by now
                except OriginUnavailable:
                    raise
                except (OriginError, MetadataError) as error:
                    log.warning("%s/%s cannot be adopted: %s", bucket.name, key, error)
                    return -1

        # All come to their ends, whatever becomes of one.
        results = await asyncio.gather(*(take(key) for key in keys if key in wanted), return_exceptions=True)
        done = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            done.append(result)
        return done.count(1), done.count(-1)


def _later(item: Item, wait_ns: int) -> Effect:
    async def owe(tr: Transaction, ctx: Context) -> None:
        await shadow_migration.owe(tr, ctx, item.subject, vesting_ns=ctx.now_ns() + wait_ns)

    return owe
