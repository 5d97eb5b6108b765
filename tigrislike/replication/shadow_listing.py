"""Listings of a bucket together with its shadow: what the bucket has, and what only its shadow shows.

Two listings, each with its common prefixes, are interleaved. They are disjoint, for of the shadow's the database is
asked, key by key, what the bucket never had: exactly what a read would look through to. A common prefix of the shadow's
shows where something under it does.

A page of the shadow is looked at before the bucket is listed over the same range: what is adopted in between is then
seen twice, which shows at once, and never missed. Pages of the shadow are gone on with by the store's own words
(`OriginPage.after`), so a store whose pages come in another order than its keys is listed whole as well, in that order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from tigrislike.metadata import Metadata, ObjectPage, ObjectSummary
from tigrislike.metadata.records import DEFAULT_STORAGE_CLASS, Bucket
from tigrislike.origin import Origin, OriginPage, OriginSummary

MOST_PAGES: Final = 16
"""Pages of the shadow that one page takes at most: where nearly all of it is hidden, a page ends early."""

_AT_ONCE: Final = 200
"""Keys about which one transaction asks."""


class Row(NamedTuple):
    """A key with what a listing shows of it; None: a common prefix."""

    name: str
    summary: ObjectSummary | None


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """Where a listing of both goes on: in the bucket after the name `own`; in the shadow with the page that is listed
    after `page`, and in it after the name `past`. `page` None: the shadow has been listed to its end."""

    own: str = ""
    page: str | None = ""
    past: str = ""


class Page(NamedTuple):
    """Rows, and where the listing goes on; None: nowhere."""

    rows: list[Row]
    following: Cursor | None

    @property
    def as_objects(self) -> ObjectPage:
        """As a page of the bucket's own."""
        entries = [(row.name, row.summary) for row in self.rows if row.summary is not None]
        prefixes = [row.name for row in self.rows if row.summary is None]
        last = max((row.name for row in self.rows), default="")
        return ObjectPage(entries, prefixes, self.following is not None, last)


class Look(NamedTuple):
    """What shows of a page of the shadow: rows in order, the greatest name that was on it, and what the next page is
    listed after ("": there is none)."""

    rows: list[Row]
    reached: str
    after: str


ListOwn = Callable[[str], Awaitable[tuple[list[Row], bool]]]
"""Rows of the bucket after a name, in order, and whether more follow."""

ListShadow = Callable[[str], Awaitable[Look]]
"""The page of the shadow that is listed after what the page before says."""


async def list_both(
    metadata: Metadata, origin: Origin, bucket: Bucket, prefix: str, delimiter: str, cursor: Cursor, limit: int
) -> Page:
    """A page of what a bucket and its shadow have together: keys and common prefixes, at most `limit`. It may be empty
    and yet be gone on with.

    Raises:
        OriginError.
    """

    async def own(after: str) -> tuple[list[Row], bool]:
        page = await metadata.list_objects(bucket, prefix, delimiter, after, limit)
        return rows_of_own(page), page.truncated

    async def shadow(after: str) -> Look:
        look = await _look(origin, prefix, delimiter, after, limit)
        return look._replace(rows=await visible(metadata, origin, bucket, look.rows))

    return await interleave(own, shadow, cursor, limit)


async def list_shadow(origin: Origin, prefix: str, delimiter: str, cursor: Cursor, limit: int) -> Page:
    """A page of what the shadow has, whatever the bucket has. Raises OriginError."""

    async def own(after: str) -> tuple[list[Row], bool]:
        return [], False

    async def shadow(after: str) -> Look:
        return await _look(origin, prefix, delimiter, after, limit)

    return await interleave(own, shadow, cursor, limit)


async def _look(origin: Origin, prefix: str, delimiter: str, after: str, limit: int) -> Look:
    page = await origin.list(prefix, after=after, delimiter=delimiter, limit=limit)
    rows = rows_of_shadow(page)
    return Look(rows, rows[-1].name if rows else "", page.after)


async def interleave(own: ListOwn, shadow: ListShadow, cursor: Cursor, limit: int) -> Page:
    """A page of both listings, from `cursor` on. Where both have a name, the bucket's counts."""
    rows: list[Row] = []
    if limit <= 0:
        return Page(rows, None)
    position, page, past = cursor.own, cursor.page, cursor.past
    ours: deque[Row] = deque()
    theirs: deque[Row] = deque()
    look: Look | None = None  # at `page`
    more = True
    pages = 0
    while len(rows) < limit:
        if page is not None and look is None:
            if pages == MOST_PAGES:
                break
            pages += 1
            look = await shadow(page)
            theirs = deque(row for row in look.rows if row.name > past)
            ours, more = deque(), True  # what was listed of it before is older than what was just seen of the shadow
        if not ours and more:
            listed, more = await own(position)
            ours.extend(listed)
        if ours and (look is None or ours[0].name <= (theirs[0].name if theirs else look.reached)):
            row = ours.popleft()
            if theirs and theirs[0].name == row.name:
                past = theirs.popleft().name
        elif theirs:
            row = theirs.popleft()
            past = row.name
        elif look is not None:
            page, past, look = look.after or None, "", None
            continue
        elif more:
            continue
        else:
            break
        rows.append(row)
        position = max(position, row.name)
    if look is not None and not theirs and look.reached <= position:
        page, past = look.after or None, ""
    ended = page is None and not ours and not more
    return Page(rows, None if ended else Cursor(position, page, past))


async def visible(metadata: Metadata, origin: Origin, bucket: Bucket, rows: Sequence[Row]) -> list[Row]:
    """Those rows of a shadow that show, for the bucket has not, and never had, anything of that name. Raises
    OriginError."""
    shown: list[Row] = []
    for start in range(0, len(rows), _AT_ONCE):
        some = rows[start : start + _AT_ONCE]
        keys = await metadata.untouched(bucket, [row.name for row in some if row.summary is not None])
        states = await metadata.under_prefixes(bucket, [row.name for row in some if row.summary is None])
        for row in some:
            if row.summary is not None:
                if row.name in keys:
                    shown.append(row)
                continue
            live, touched = states[row.name]
            if not live and (not touched or await _shows_something(metadata, origin, bucket, row.name)):
                shown.append(row)
    return shown


async def _shows_something(metadata: Metadata, origin: Origin, bucket: Bucket, prefix: str) -> bool:
    """Whether a shadow has a key under a prefix that shows. What is hidden was touched, so that it takes no longer than
    touching it took."""
    after = ""
    while True:
        page = await origin.list(prefix, after=after, limit=_AT_ONCE)
        if await metadata.untouched(bucket, [entry.key for entry in page.entries]):
            return True
        after = page.after
        if not after:
            return False


def rows_of_own(page: ObjectPage) -> list[Row]:
    rows = [Row(key, summary) for key, summary in page.entries]
    return sorted([*rows, *(Row(prefix, None) for prefix in page.prefixes)], key=_name)


def rows_of_shadow(page: OriginPage) -> list[Row]:
    rows = [Row(entry.key, summary_of(entry)) for entry in page.entries]
    return sorted([*rows, *(Row(prefix, None) for prefix in page.prefixes)], key=_name)


def summary_of(entry: OriginSummary) -> ObjectSummary:
    """An object of an origin as listings show one."""
    storage_class = entry.storage_class or DEFAULT_STORAGE_CLASS
    return ObjectSummary(entry.modified_ns, entry.size, entry.etag, storage_class=storage_class, null=True)


def _name(row: Row) -> str:
    return row.name
