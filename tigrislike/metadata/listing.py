"""Listings of objects, versions, uploads: range reads around `collapse`.

A page is read in several short transactions, each bounded in seeks and rows, so a listing holds no snapshot for long; a
page is therefore not one instant of a bucket that changes meanwhile, but every key that does not change is listed
exactly once over the pages. Reads are snapshot reads: a listing conflicts with nobody.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

from .collapse import Collapse, group_of
from .context import Context
from .errors import InvalidArgument
from .keyspace import TextKeys, pack_stamp
from .kv.engine import Transaction
from .records import (
    OBJECT,
    Bucket,
    ObjectPage,
    ObjectSummary,
    UploadPage,
    UploadSummary,
    VersionEntry,
    VersionPage,
)
from .records import object_summary as summary_codec
from .records import upload_summary as upload_codec
from .versions import parse_version_id, unpack_null

T = TypeVar("T")
P = TypeVar("P")

SEEKS_PER_TRANSACTION = 32
ROWS_PER_TRANSACTION = 1000
MIN_CHUNK = 16
"""Rows asked for where the last chunk mostly fell into one common prefix: the next may too."""
FIRST_CHUNK = 64
"""Rows asked for at first where there is a delimiter."""
SCAN_LIMIT = 50_000
"""Rows read for one page; after that it ends early, truncated, with what it has."""


class Batch(NamedTuple, Generic[P, T]):
    """Rows in key order, where to go on (None: nothing follows), and the greatest key looked at."""

    rows: list[tuple[str, T]]
    position: P | None
    reached: str


class Source(Protocol[P, T]):
    """Where a listing's rows come from. Positions are opaque to the scan."""

    async def fetch(self, tr: Transaction, position: P, limit: int) -> Batch[P, T]:
        """At most `limit` rows from `position` on; fewer, even none, does not mean the end."""
        ...

    def past(self, prefix: str) -> P:
        """The position behind every key that starts with `prefix`."""
        ...


class Scan(Generic[P, T]):
    """A page being read: the state between two transactions. Transactions work on a fork, because they may be run
    again."""

    __slots__ = ("chunk", "collapse", "position", "reached", "scanned", "source")

    def __init__(self, source: Source[P, T], collapse: Collapse[T], position: P | None) -> None:
        self.source = source
        self.collapse = collapse
        self.position = position
        self.chunk = FIRST_CHUNK if collapse.delimiter else collapse.limit + 1
        self.scanned = 0
        self.reached = ""

    def fork(self) -> Scan[P, T]:
        copy: Scan[P, T] = Scan(self.source, self.collapse.fork(), self.position)
        copy.chunk = self.chunk
        copy.scanned = self.scanned
        copy.reached = self.reached
        return copy

    @property
    def done(self) -> bool:
        return self.position is None or self.collapse.truncated

    @property
    def truncated(self) -> bool:
        return self.position is not None or self.collapse.truncated

    @property
    def last(self) -> str:
        """Where the next page goes on after."""
        if self.collapse.truncated or self.position is None:
            return self.collapse.last()
        return self.collapse.inside or self.reached

    async def list_rows(self, tr: Transaction) -> Scan[P, T]:
        """Read on, within the bounds of one transaction; returns the new state."""
        scan = self.fork()
        collapse = scan.collapse
        budget = ROWS_PER_TRANSACTION + 1
        for _ in range(SEEKS_PER_TRANSACTION):
            if scan.position is None:
                break
            limit = min(scan.chunk, budget)
            batch = await scan.source.fetch(tr, scan.position, limit)
            rolled = collapse.feed(batch.rows)
            scan.scanned += limit
            budget -= limit
            scan.position = batch.position
            scan.reached = batch.reached
            if collapse.truncated or scan.position is None:
                break
            if collapse.inside is not None:
                scan.position = scan.source.past(collapse.inside)
            if rolled * 2 > limit:
                scan.chunk = MIN_CHUNK
            else:
                scan.chunk = min(scan.chunk * 2, ROWS_PER_TRANSACTION)
            if budget <= 0:
                break
        return scan


async def run(
    read: Callable[[Callable[[Transaction], Awaitable[Scan[P, T]]]], Awaitable[Scan[P, T]]],
    pause: Callable[[], Awaitable[None]],
    scan: Scan[P, T],
) -> Scan[P, T]:
    """Advance a scan to the end of its page. `read` runs a function on a snapshot; `pause` lets others have the loop
    between two of them."""
    if scan.collapse.limit <= 0:
        scan.position = None
        return scan
    while True:
        scan = await read(scan.list_rows)
        if scan.done or scan.scanned >= SCAN_LIMIT:
            return scan
        await pause()


def _bounds(family: TextKeys, prefix: str) -> tuple[bytes, bytes]:
    return (family.at_least(prefix) if prefix else family.begin), family.after_prefix(prefix)


# --- objects


class _Objects:
    """Live objects of a bucket. A position is the key to read from."""

    def __init__(self, family: TextKeys, end: bytes) -> None:
        self.family = family
        self.end = end

    async def fetch(self, tr: Transaction, position: bytes, limit: int) -> Batch[bytes, ObjectSummary]:
        if position >= self.end:
            return Batch([], None, "")
        rows = await tr.get_range(position, self.end, limit=limit, snapshot=True)
        if not rows:
            return Batch([], None, "")
        decode = summary_codec.decode
        keys = self.family.texts(rows)
        found = list(zip(keys, [decode(value) for _, value in rows], strict=True))
        reached = found[-1][0]
        for _, summary in found:
            if summary.kind != OBJECT:
                found = [row for row in found if row[1].kind == OBJECT]
                break
        return Batch(found, rows[-1][0] + b"\x00" if len(rows) == limit else None, reached)

    def past(self, prefix: str) -> bytes:
        return self.family.after_prefix(prefix)


def objects_scan(
    ctx: Context, bucket: Bucket, prefix: str, delimiter: str, after: str, limit: int
) -> Scan[bytes, ObjectSummary]:
    """The scan for a page of live objects whose keys come after `after` (a key, or a common prefix of an earlier
    page: then everything under it is left out)."""
    family = ctx.keys.in_bucket(bucket.id).current
    begin, end = _bounds(family, prefix)
    group = group_of(after, prefix, delimiter)
    if group is not None:
        begin = max(begin, family.after_prefix(group))
    elif after:
        begin = max(begin, family.after(after))
    return Scan(_Objects(family, end), Collapse(prefix, delimiter, limit, group), begin)


def objects_page(scan: Scan[bytes, ObjectSummary]) -> ObjectPage:
    return ObjectPage(scan.collapse.entries, scan.collapse.prefixes, scan.truncated, scan.last)


# --- versions


class VersionRow(NamedTuple):
    summary: ObjectSummary
    latest: bool


class VersionPosition(NamedTuple):
    """Where to read ``version`` and ``current`` rows from; `open` is a key some of whose versions came before."""

    version: bytes
    current: bytes
    open: str | None


class _Versions:
    """Every version and delete marker of a bucket: its ``version`` rows, and the live null versions that were written
    before versioning was switched on and so lie in ``current`` alone."""

    def __init__(self, version: TextKeys, current: TextKeys, prefix: str) -> None:
        self.version = version
        self.current = current
        self.version_end = version.after_prefix(prefix)
        self.current_end = current.after_prefix(prefix)

    async def _range(self, tr: Transaction, begin: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return [] if begin >= end else await tr.get_range(begin, end, limit=limit, snapshot=True)

    async def fetch(self, tr: Transaction, position: VersionPosition, limit: int) -> Batch[VersionPosition, VersionRow]:
        versions = await self._range(tr, position.version, self.version_end, limit)
        currents = await self._range(tr, position.current, self.current_end, limit)
        decode = summary_codec.decode
        named = [(self.version.text_and_rest(key)[0], decode(value)) for key, value in versions]
        live = [(self.current.text(key), decode(value)) for key, value in currents]

        # Beyond the last key of a range that was cut short, nothing can be said yet.
        cut: str | None = None
        following: VersionPosition | None = None
        if len(live) == limit:
            cut = live[-1][0]
            following = VersionPosition(self.version.after(cut), self.current.after(cut), None)
        if len(named) == limit and (cut is None or named[-1][0] <= cut):
            cut = named[-1][0]
            following = VersionPosition(versions[-1][0] + b"\x00", self.current.after(cut), cut)

        rows: list[tuple[str, VersionRow]] = []
        previous = position.open
        for key, summary in named:
            if cut is not None and key > cut:
                break
            rows.append((key, VersionRow(summary, key != previous)))
            previous = key
        having = {key for key, _ in named}
        having.add(position.open or "")
        alone = [
            (key, VersionRow(summary, True))
            for key, summary in live
            if summary.null and summary.kind == OBJECT and key not in having and (cut is None or key <= cut)
        ]
        if alone:
            rows = sorted(rows + alone, key=_key_of)  # stable: the versions of a key stay newest first
        return Batch(rows, following, cut or "")

    def past(self, prefix: str) -> VersionPosition:
        return VersionPosition(self.version.after_prefix(prefix), self.current.after_prefix(prefix), None)


def _key_of(row: tuple[str, VersionRow]) -> str:
    return row[0]


async def marker_stamp(tr: Transaction, ctx: Context, bucket: Bucket, key: str, version_id: str) -> int:
    """The stamp that a version-id marker names; 0 where all versions of `key` come before it.

    Raises:
        InvalidArgument: it is no version id.
    """
    stamp = parse_version_id(version_id)
    if stamp is None:
        raw = await tr.get(ctx.keys.in_bucket(bucket.id).null.key(key), snapshot=True)
        return unpack_null(raw) if raw is not None else 0
    return stamp


def versions_scan(
    ctx: Context, bucket: Bucket, prefix: str, delimiter: str, key_marker: str, marker: int | None, limit: int
) -> Scan[VersionPosition, VersionRow]:
    """The scan for a page of versions after `key_marker`; `marker` is the stamp of the last version of that key to
    leave out (None or 0: all of them)."""
    keys = ctx.keys.in_bucket(bucket.id)
    source = _Versions(keys.version, keys.current, prefix)
    version, _ = _bounds(keys.version, prefix)
    current, _ = _bounds(keys.current, prefix)
    group = group_of(key_marker, prefix, delimiter)
    open_key = None
    if group is not None:
        version = max(version, keys.version.after_prefix(group))
        current = max(current, keys.current.after_prefix(group))
    elif key_marker:
        if marker and key_marker.startswith(prefix):
            version = max(version, keys.version.key(key_marker) + pack_stamp(marker) + b"\x00")
            open_key = key_marker
        else:
            version = max(version, keys.version.after(key_marker))
        current = max(current, keys.current.after(key_marker))
    return Scan(source, Collapse(prefix, delimiter, limit, group), VersionPosition(version, current, open_key))


def versions_page(scan: Scan[VersionPosition, VersionRow]) -> VersionPage:
    entries = [VersionEntry(key, row.summary, row.latest) for key, row in scan.collapse.entries]
    key_marker = version_marker = ""
    if scan.truncated:
        key_marker = scan.last
        if entries and entries[-1].key == key_marker:
            version_marker = entries[-1].version.version_id
    return VersionPage(entries, scan.collapse.prefixes, scan.truncated, key_marker, version_marker)


def check_version_markers(key_marker: str, version_id_marker: str) -> None:
    if version_id_marker and not key_marker:
        raise InvalidArgument(
            "version-id-marker", version_id_marker, "A version-id marker cannot be specified without a key marker."
        )


# --- uploads


class _Uploads:
    """Uploads in progress, by key and then upload id. A position is the key to read from."""

    def __init__(self, family: TextKeys, end: bytes) -> None:
        self.family = family
        self.end = end

    async def fetch(self, tr: Transaction, position: bytes, limit: int) -> Batch[bytes, UploadSummary]:
        if position >= self.end:
            return Batch([], None, "")
        rows = await tr.get_range(position, self.end, limit=limit, snapshot=True)
        found = [(self.family.text_and_rest(key)[0], upload_codec.decode(value)) for key, value in rows]
        if len(rows) < limit:
            return Batch(found, None, "")
        return Batch(found, rows[-1][0] + b"\x00", found[-1][0])

    def past(self, prefix: str) -> bytes:
        return self.family.after_prefix(prefix)


def uploads_scan(
    ctx: Context, bucket: Bucket, prefix: str, delimiter: str, key_marker: str, after_row: bytes | None, limit: int
) -> Scan[bytes, UploadSummary]:
    """The scan for a page of uploads after `key_marker`; `after_row` is the row of the last upload of that key to
    leave out (None: all of them)."""
    family = ctx.keys.in_bucket(bucket.id).upload
    begin, end = _bounds(family, prefix)
    group = group_of(key_marker, prefix, delimiter)
    if group is not None:
        begin = max(begin, family.after_prefix(group))
    elif key_marker:
        begin = max(begin, after_row + b"\x00" if after_row is not None else family.after(key_marker))
    return Scan(_Uploads(family, end), Collapse(prefix, delimiter, limit, group), begin)


def uploads_page(scan: Scan[bytes, UploadSummary]) -> UploadPage:
    entries = scan.collapse.entries
    key_marker = upload_marker = ""
    if scan.truncated:
        key_marker = scan.last
        if entries and entries[-1][0] == key_marker:
            upload_marker = entries[-1][1].upload_id
    return UploadPage(entries, scan.collapse.prefixes, scan.truncated, key_marker, upload_marker)
