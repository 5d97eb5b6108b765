"""A bucket's objects follow its policies: each content is given what the buckets that it belongs to want now.

Changing a policy owes a `repolicy` and puts its cursor to the start (`buckets.change_bucket`). A run goes through the
bucket's rows page by page; each page, with the cursor behind it, is one transaction, so that a run goes on where an
earlier one stopped, and a policy that changes in between has it start over.

What a content is to be is told by its references, each of which names a bucket or another content that needs this one,
so that what several share is where any of them wants it. All policies are read with a conflict: of two buckets that
change at once, whoever comes second sees both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from tigrislike.metadata import Metadata, buckets, homes, nodes, placing
from tigrislike.metadata.backing import release_excess
from tigrislike.metadata.blobs import load_parts
from tigrislike.metadata.context import Context
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.leasing import Effect
from tigrislike.metadata.placing import Wanted
from tigrislike.metadata.records import Bucket, Item, ObjectVersion, Repolicy
from tigrislike.metadata.records import bucket as bucket_codec
from tigrislike.metadata.records import object_version as version_codec
from tigrislike.metadata.records import referrer as referrer_codec
from tigrislike.metadata.records import repolicy as repolicy_codec

from .lacking import View, owe_missing
from .membership import Members

PAGE: Final = 100
"""Rows of one transaction, each of which takes a handful of reads."""

REFERENCES: Final = 200
"""References of a content that are looked at. One that has more keeps what it has, and gets what these want."""

Names = Mapping[bytes, str]
"""The names of buckets by their ids. Neither ever changes, so an old table is incomplete and never wrong."""

_GONE: Final = ""
"""The name of a bucket that is in no fresh table."""


class UnknownBucket(Exception):
    """A content belongs to a bucket that is not in the table of names."""

    def __init__(self, bucket_id: bytes) -> None:
        super().__init__(f"bucket {bucket_id.hex()} is not in the table of names")
        self.bucket_id = bucket_id


class FollowPolicy:
    """Give the objects of a bucket what its policies want now, as the regions are that have nodes now.

    Attributes:
        changed: contents that were wanted elsewhere, or on other numbers of nodes, than before, or lacked a region.
    """

    name = buckets.REPOLICY
    priority = buckets.REPOLICY_PRIORITY
    concurrency = 1

    def __init__(self, metadata: Metadata, members: Members) -> None:
        self._metadata = metadata
        self._members = members
        self.changed = 0

    async def run(self, item: Item) -> Effect | None:
        metadata = self._metadata
        names = await self._names()
        while True:
            view = View(self._members, self._members.alive())
            try:
                changed = await metadata.background(follow_some, metadata.context, view, names, item.subject)
            except UnknownBucket as error:
                names = {error.bucket_id: _GONE, **await self._names()}
                continue
            if changed is None:
                return None
            self.changed += changed

    async def _names(self) -> Names:
        names: dict[bytes, str] = {}
        after = ""
        while True:
            page, after = await self._metadata.list_buckets(None, after=after)
            names |= {bucket.id: bucket.name for bucket in page}
            if not after:
                return names


class OpenRegion:
    """Have the buckets follow their policies whose geographies contain a region that has got its first node."""

    name = nodes.OPEN_REGION
    priority = nodes.OPEN_REGION_PRIORITY
    concurrency = 1

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    async def run(self, item: Item) -> Effect | None:
        metadata, region = self._metadata, item.subject.decode()
        after = ""
        while True:
            page, after = await metadata.list_buckets(None, after=after)
            for bucket in page:
                names = metadata.regions.parse(bucket.region_policy)
                if region not in names and region in metadata.regions.expand(names):
                    await metadata.background(_follow_again, metadata.context, bucket)
            if not after:
                return None


async def _follow_again(tr: Transaction, ctx: Context, bucket: Bucket) -> None:
    raw = await tr.get(ctx.keys.bucket.key(bucket.name))
    if raw is not None and bucket_codec.decode(raw).id == bucket.id:
        await buckets.owe_repolicy(tr, ctx, bucket)


async def follow_some(tr: Transaction, ctx: Context, view: View, names: Names, bucket_id: bytes) -> int | None:
    """See to the next page of a bucket's rows; how many contents it changed. None: the bucket is done, or gone.

    Raises:
        UnknownBucket: the names are too old.
    """
    row = ctx.keys.repolicy(bucket_id)
    raw = await tr.get(row)
    if raw is None:
        return None
    cursor = repolicy_codec.decode(raw)
    page = await _next_rows(tr, ctx, bucket_id, cursor)
    if not page:
        tr.clear(row)
        return None
    following = _Following(tr, ctx, view, {**names, bucket_id: cursor.name})
    changed = 0
    contents = dict.fromkeys(version.content for _, version in page if version.content)
    for content_id in contents:
        changed += await following.see_to(content_id)
    tr.set(row, repolicy_codec.encode(replace(cursor, after=page[-1][0].removeprefix(ctx.keys.prefix))))
    return changed


async def _next_rows(
    tr: Transaction, ctx: Context, bucket_id: bytes, cursor: Repolicy
) -> list[tuple[bytes, ObjectVersion]]:
    """Live versions, then all versions, in the order of their keys, after the cursor."""
    keys = ctx.keys.in_bucket(bucket_id)
    after = ctx.keys.prefix + cursor.after + b"\x00" if cursor.after else b""
    for family in (keys.current, keys.version):
        begin = max(family.begin, after)
        if begin < family.end:
            rows = await tr.get_range(begin, family.end, limit=PAGE, snapshot=True)
            if rows:
                return [(key, version_codec.decode(value)) for key, value in rows]
    return []


class _Following:
    """One transaction's look at contents and at who refers to them."""

    def __init__(self, tr: Transaction, ctx: Context, view: View, names: Names) -> None:
        self._tr = tr
        self._ctx = ctx
        self._view = view
        self._names = names
        self._policies: dict[tuple[bytes, tuple[str, ...]], Wanted | None] = {}

    async def see_to(self, content_id: bytes) -> int:
        """Set a content, and those that lend it parts, to what is wanted of it, owe what it lacks and the release of
        what it has too much; how many contents that changed."""
        tr, ctx = self._tr, self._ctx
        content = await homes.read_content(tr, ctx, content_id)
        if content is None:
            return 0
        rows = await tr.get_range(*ctx.keys.ref_range(content_id), limit=REFERENCES + 1)
        start = content if len(rows) > REFERENCES else replace(content, regions=(), copies=1, backing=b"")
        new = start
        for _, value in rows[:REFERENCES]:
            referrer = referrer_codec.decode(value)
            if referrer.content:
                other = await homes.read_content(tr, ctx, referrer.content)
                also = Wanted(other.regions, other.copies, other.backing) if other is not None else None
            else:
                also = await self._wanted(referrer.bucket, referrer.regions)
            if also is not None:
                new = placing.merged(new, also)
        view = self._view
        before = set(content.regions), content.copies, content.backing
        if (set(new.regions), new.copies, new.backing) == before:
            if not placing.missing_regions(content, view.alive, ctx.regions):
                return 0
            new = content  # a geography that it names has got another region
        else:
            homes.put_content(tr, ctx, content_id, new)
        await owe_missing(tr, ctx, view, content_id, new, near=ctx.home.region)
        await release_excess(tr, ctx, content_id, new, view.alive)
        await homes.owe_write_back(tr, ctx, content_id, new)
        changed = 1
        if new.parts:
            sources = {part.source for part in await load_parts(tr, ctx, content_id) if part.source}
            for source in sorted(sources):
                changed += await self.see_to(source)
        return changed

    async def _wanted(self, bucket_id: bytes, explicit: tuple[str, ...]) -> Wanted | None:
        """What a bucket wants of a version; None where the bucket is gone."""
        asked = bucket_id, explicit
        if asked not in self._policies:
            name = self._names.get(bucket_id)
            if name is None:
                raise UnknownBucket(bucket_id)
            raw = await self._tr.get(self._ctx.keys.bucket.key(name))
            bucket = bucket_codec.decode(raw) if raw is not None else None
            known = bucket is not None and bucket.id == bucket_id
            self._policies[asked] = placing.wanted(bucket, self._ctx.regions, explicit) if known and bucket else None
        return self._policies[asked]
