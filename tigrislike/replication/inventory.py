"""Reports on what buckets hold, as work owed: `inventory`.

A run lists the bucket page by page into files of the destination bucket, at most `FILE_ROWS` rows each (more where
there are very many), and notes each file with where the listing had come (`metadata/inventories.py`); another run goes
on behind the last of them. When the listing ends, the manifest is written, from nothing but what was noted, and then
the report is noted as made. So a report is there when its manifest is, once for each period, and a file that no
manifest names is one whose run was cut off.

As S3's, a report is no instant of its bucket: what changes while it is made may be in it or not, what does not change
is in it exactly once. Memory holds the rows of one row group and their encoding, which is computed on threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import uuid
from collections.abc import AsyncIterator
from typing import Final

import msgspec
from msgspec.structs import replace

from tigrislike.bytecache import BytesError
from tigrislike.metadata import Bucket, Metadata, NoSuchBucket, inventories
from tigrislike.metadata.access import canonical_id
from tigrislike.metadata.context import Context
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.leasing import Effect
from tigrislike.metadata.records import Inventory as Record
from tigrislike.metadata.records import InventoryFile, Item

from .inventory_format import CSV, PARQUET, Place, Plan, Row, encoder_of, manifest_of, place_of, row_of, symlink_of
from .putting import Putter
from .tasks import NotNow

log = logging.getLogger("tigrislike.replication")

GROUP_ROWS: Final = 20_000
FILE_ROWS: Final = 1_000_000
_FILES_OF_A_SIZE: Final = 100
"""After so many files they become larger, by as much again: what is noted of them has to fit into one row."""
_PAGE: Final = 1000

_TYPES: Final = {CSV: "text/csv", PARQUET: "application/vnd.apache.parquet"}


class Configuration(msgspec.Struct, frozen=True):
    """What a report is made by: the fields of an `InventoryConfiguration`, flattened."""

    destination: str
    prefix: str
    format: str
    filter: str = ""
    versions: bool = False
    fields: tuple[str, ...] = ()
    account: str = ""


class Inventory:
    """Make the report that is due.

    Args:
        group_rows, file_rows: rows of a row group and of a file.

    Attributes:
        reports, files: how many were written.
    """

    name = inventories.INVENTORY
    priority = inventories.INVENTORY_PRIORITY
    concurrency = 1

    def __init__(
        self,
        metadata: Metadata,
        putter: Putter,
        *,
        group_rows: int = GROUP_ROWS,
        file_rows: int = FILE_ROWS,
    ) -> None:
        self._metadata = metadata
        self._putter = putter
        self._group_rows = group_rows
        self._file_rows = file_rows
        self.reports = 0
        self.files = 0

    async def run(self, item: Item) -> Effect | None:
        metadata = self._metadata
        bucket_id, id_ = inventories.parse_subject(item.subject)
        record = await metadata.background(inventories.read, metadata.context, bucket_id, id_)
        if record is None or not record.enabled:
            return None
        if not record.period:
            period = inventories.period_of(record.weekly, metadata.now_ns())
            if record.reported >= period.name:
                return _owe(record, period.following_ns)
            record = await self._advance(record, replace(record, period=period.name, begun_ns=metadata.now_ns()))
            if record is None:
                return None  # what replaced it has owed its own
        try:
            return await self._report(record)
        except BytesError as error:
            raise NotNow(f"the report {record.id} on {record.name}: {error}") from error

    async def _report(self, record: Record) -> Effect | None:
        """What is left to be done of a report, and its end."""
        configuration = msgspec.json.decode(record.document, type=Configuration)
        await self._metadata.refresh()
        try:
            source = await self._metadata.bucket(record.name)
            destination = await self._metadata.bucket(configuration.destination)
        except NoSuchBucket as error:
            return self._end(record, f"{error}: {configuration.destination}")
        if source.id != record.bucket:
            return None
        if destination.owner != source.owner:
            return self._end(record, f"the bucket {destination.name} is somebody else's")
        plan = plan_of(configuration, source)
        place = place_of(destination.name, configuration.prefix, source.name, record.id)
        more = not record.files or bool(record.after)
        while more:
            most = self._file_rows * (1 + len(record.files) // _FILES_OF_A_SIZE)
            rows = Rows(self._metadata, source, plan, record.after, record.version, most)
            file = await self._write(destination, place, plan, rows)
            more = rows.more
            if file is None:
                break
            files = (*record.files, file)
            after, version = (rows.after, rows.version) if more else ("", "")
            advanced = await self._advance(record, replace(record, files=files, after=after, version=version))
            if advanced is None:
                return None  # another run goes on with it, or it was replaced
            record = advanced
            self.files += 1
        await self._publish(destination, place, plan, record)
        self.reports += 1
        return self._end(record, "")

    async def _write(self, destination: Bucket, place: Place, plan: Plan, rows: Rows) -> InventoryFile | None:
        """A file of the next rows; None: there are none. Its name is its own, so that no two runs write the same."""
        groups = rows.groups(self._group_rows)
        first = await anext(groups, None)
        if first is None:
            return None
        name = str(uuid.uuid4())
        key = place.data_key(name, plan.format)
        put = await self._putter.put(destination, key, _encoded(plan, first, groups), _TYPES[plan.format])
        return InventoryFile(name, put.size, put.md5, rows.count)

    async def _publish(self, destination: Bucket, place: Place, plan: Plan, record: Record) -> None:
        manifest = manifest_of(plan, place, record.begun_ns, record.files)
        checksum = hashlib.md5(manifest, usedforsecurity=False).hexdigest().encode()
        for key, data, content_type in (
            (place.symlink_key(record.begun_ns), symlink_of(plan, place, record.files), "text/plain"),
            (place.manifest_key(record.begun_ns, "manifest.json"), manifest, "application/json"),
            (place.manifest_key(record.begun_ns, "manifest.checksum"), checksum, "text/plain"),
        ):
            await self._putter.put_bytes(destination, key, data, content_type)

    async def _advance(self, seen: Record, new: Record) -> Record | None:
        return await self._metadata.background(inventories.advance, self._metadata.context, seen, new)

    def _end(self, record: Record, error: str) -> Effect:
        if error:
            log.warning("there is no report %s on %s of %s: %s", record.id, record.name, record.period, error)

        async def finish(tr: Transaction, ctx: Context) -> None:
            await inventories.finish(tr, ctx, record, error)

        return finish


def plan_of(configuration: Configuration, source: Bucket) -> Plan:
    """What a configuration lists of a bucket."""
    return Plan(
        source.name,
        canonical_id(source.owner),
        configuration.format,
        configuration.filter,
        configuration.versions,
        configuration.fields,
    )


class Rows:
    """The next rows of a listing.

    Attributes:
        after, version: the last key that was given, and the version of it.
        count: rows that were given.
        more: whether the listing goes on behind them.
    """

    def __init__(self, metadata: Metadata, bucket: Bucket, plan: Plan, after: str, version: str, limit: int) -> None:
        self._metadata = metadata
        self._bucket = bucket
        self._plan = plan
        self._limit = limit
        self.after = after
        self.version = version
        self.count = 0
        self.more = True

    async def groups(self, size: int) -> AsyncIterator[list[Row]]:
        """Them, `size` at a time. Raises EngineError."""
        group: list[Row] = []
        while self.more and self.count < self._limit:
            rows = await self._page(min(_PAGE, self._limit - self.count, size - len(group)))
            self.count += len(rows)
            group += rows
            if len(group) == size:
                yield group
                group = []
        if group:
            yield group

    async def _page(self, limit: int) -> list[Row]:
        metadata, plan = self._metadata, self._plan
        if plan.versions:
            page = await metadata.list_versions(self._bucket, plan.prefix, "", self.after, self.version, limit)
            rows = [row_of(entry.key, entry.version, entry.latest) for entry in page.entries]
            self.after, self.version = page.next_key_marker, page.next_version_id_marker
            self.more = page.truncated
        else:
            objects = await metadata.list_objects(self._bucket, plan.prefix, "", self.after, limit)
            rows = [row_of(key, summary, True) for key, summary in objects.entries]
            self.after, self.more = objects.last, objects.truncated
        return rows


async def _encoded(plan: Plan, group: list[Row] | None, following: AsyncIterator[list[Row]]) -> AsyncIterator[bytes]:
    encoder = await asyncio.to_thread(encoder_of, plan)
    while group is not None:
        yield await asyncio.to_thread(encoder.add, group)
        group = await anext(following, None)
    yield await asyncio.to_thread(encoder.end)


def _owe(record: Record, vesting_ns: int) -> Effect:
    async def owe(tr: Transaction, ctx: Context) -> None:
        await inventories.owe(tr, ctx, record.bucket, record.id, vesting_ns)

    return owe
