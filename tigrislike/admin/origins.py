"""`tigrislike origin`: which buckets use which stores elsewhere, and how far what a shadow has was brought here.

All of it works in the database, beside running nodes and without them. Credentials go in and never come out.
"""

from __future__ import annotations

import asyncio
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from hashlib import blake2b
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from tigrislike.metadata import Bucket, Metadata, ObjectVersion
from tigrislike.metadata.homes import REPLICATE
from tigrislike.metadata.mirroring import MIRROR
from tigrislike.metadata.origins import BACKING, SHADOW
from tigrislike.metadata.owed import DESTINATION_BYTES
from tigrislike.metadata.records import DEFAULT_STORAGE_CLASS, OriginPlace
from tigrislike.metadata.shadows import Standing
from tigrislike.origin import Origin, OriginMissing, OriginObject
from tigrislike.replication.origins import OpenOrigin

PURPOSES: Final = (SHADOW, BACKING)
AT_ONCE: Final = 32
"""Objects that a report asks an origin for at a time."""

_PAGE: Final = 500


class OriginsError(Exception):
    """A command could not be carried out; the message is for the person who asked."""


class Use(Struct, frozen=True):
    """A bucket's use of a store elsewhere, as operators see it: without the secret."""

    bucket: str
    purpose: str
    url: str
    endpoint: str
    region: str
    access_key: str
    options: dict[str, str]
    write_through: bool


async def uses(metadata: Metadata, bucket: Bucket) -> list[Use]:
    """What a bucket uses, for each purpose."""
    found = []
    for purpose in PURPOSES:
        origin_id: bytes = getattr(bucket, purpose)
        place = await metadata.origin(origin_id) if origin_id else None
        if place is not None:
            shown = (place.url, place.endpoint, place.region, place.access_key, place.options)
            through = purpose == SHADOW and bucket.write_through
            found.append(Use(bucket.name, purpose, *shown, through))
    return found


async def all_uses(metadata: Metadata) -> AsyncIterator[Use]:
    """What any bucket uses, in the order of their names."""
    after = ""
    while True:
        buckets, after = await metadata.list_buckets(None, after=after, limit=_PAGE)
        for bucket in buckets:
            for use in await uses(metadata, bucket):
                yield use
        if not after:
            return


async def place_of(metadata: Metadata, bucket: Bucket, purpose: str = SHADOW) -> OriginPlace:
    """Raises OriginsError: the bucket uses none."""
    origin_id: bytes = getattr(bucket, purpose)
    place = await metadata.origin(origin_id) if origin_id else None
    if place is None:
        raise OriginsError(f"bucket {bucket.name} has no {purpose} origin: see `tigrislike origin set`")
    return place


@asynccontextmanager
async def opened(open_origin: OpenOrigin, place: OriginPlace) -> AsyncIterator[Origin]:
    """An origin for the length of a `with` block. Raises OriginError."""
    origin = open_origin(place)
    try:
        yield origin
    finally:
        await origin.close()


class Checked(Struct, frozen=True):
    """What an origin showed when it was asked once: the first `key` that it lists and its `size`, None where it has
    nothing; and what the driver cannot tell or keep (`loses`)."""

    name: str
    key: str | None
    size: int | None
    loses: list[str]


async def check(origin: Origin) -> Checked:
    """List an origin, and read a byte of the first object that has some. Raises OriginError."""
    page = await origin.list("", limit=10)
    first = next((entry for entry in page.entries if entry.size), next(iter(page.entries), None))
    if first is not None:
        found = await origin.head(first.key)
        if found.size:
            pieces = origin.read(first.key, 0, 1, size=found.size, etag=found.etag)
            async with aclosing(pieces) as reading:  # type: ignore[type-var]
                async for _ in reading:
                    pass
    key, size = (first.key, first.size) if first is not None else (None, None)
    return Checked(origin.name, key, size, sorted(origin.loses))


# --- migration


class Owed(Struct, frozen=True):
    """What is owed between a bucket and its shadow: `fetching` contents whose bytes are to get a home, `mirroring` keys
    that the shadow is to have; and how many of either were `given_up`, as dead letters that somebody has to look at."""

    fetching: int
    mirroring: int
    given_up: int


class Progress(Owed, frozen=True):
    """How a migration stands: of its walk, the counts of `records.Migration`, and what is owed."""

    bucket: str
    prefix: str
    looked: int
    adopted: int
    failed: int
    error: str
    walked: bool

    @property
    def done(self) -> bool:
        return self.walked and not self.fetching


async def progress(metadata: Metadata, bucket: Bucket) -> Progress | None:
    """How a bucket's last migration stands; None where there was none.

    Raises:
        OriginsError: it was given up, or dropped.
    """
    migration, item, letter = await metadata.migration_standing(bucket)
    if migration is None:
        return None
    if item is None and not migration.ended_ns:
        became = f"given up: {letter.error}" if letter is not None else "dropped from the queue"
        raise OriginsError(f"the migration of {bucket.name} was {became}; begin it again to go on")
    left = await owed(metadata, bucket)
    return Progress(
        fetching=left.fetching,
        mirroring=left.mirroring,
        given_up=left.given_up,
        bucket=bucket.name,
        prefix=migration.prefix,
        looked=migration.looked,
        adopted=migration.adopted,
        failed=migration.failed,
        error=migration.error or (item.error if item is not None else ""),
        walked=bool(migration.ended_ns),
    )


async def owed(metadata: Metadata, bucket: Bucket) -> Owed:
    """What is owed between a bucket and its shadow, wherever."""
    waiting: Counter[str] = Counter()
    dead: Counter[str] = Counter()
    after = b""
    while zones := await metadata.queue.zones(after):
        for zone in zones:
            if zone[DESTINATION_BYTES:] == bucket.id:
                for task, counts in (await metadata.queue.counts(zone)).items():
                    waiting[task] += counts.waiting
                    dead[task] += counts.dead
        after = zones[-1]
    return Owed(waiting[REPLICATE], waiting[MIRROR], dead[REPLICATE] + dead[MIRROR])


# --- what differs


class Difference(Struct, frozen=True):
    """A key that is not the same on both sides. `differs` says in what:

    missing: it is not here. deleted: nor is it meant to be, and the shadow, which is written through to, has it still.
    extra: the shadow, which is written through to, has it not. bytes: only the shadow has its bytes. size, etag,
    checksum, content_type, metadata, tags, storage_class, and content headers as ``headers.Expires``: it has another.

    Sizes are bytes, times unix ns; None where there is no such object.
    """

    key: str
    differs: list[str]
    size_here: int | None = None
    size_there: int | None = None
    etag_here: str | None = None
    etag_there: str | None = None
    modified_here_ns: int | None = None
    modified_there_ns: int | None = None


Noticed = Callable[[int], None]
"""Told how many more keys were looked at."""


async def differences(
    metadata: Metadata, origin: Origin, bucket: Bucket, prefix: str = "", *, noticed: Noticed = lambda _: None
) -> AsyncIterator[Difference]:
    """The keys of a bucket's shadow that differ from the bucket's; where it is written through to, the bucket's that
    the shadow lacks as well. What the driver cannot tell of an object is not held against it (`Origin.loses`).

    Raises:
        OriginError, EngineError.
    """
    known = array("Q")
    after = ""
    while True:
        page = await origin.list(prefix, after=after, limit=_PAGE)
        keys = [entry.key for entry in page.entries]
        if bucket.write_through:
            known.extend(map(_digest, keys))
        for key, there, here in await _both_sides(metadata, origin, bucket, keys):
            difference = _compared(bucket, key, there, here, origin.loses)
            if difference is not None:
                yield difference
        noticed(len(keys))
        after = page.after
        if not after:
            break
    if not bucket.write_through:
        return
    known = array("Q", sorted(known))
    after, more = "", True
    while more:
        own = await metadata.list_objects(bucket, prefix, after=after, limit=_PAGE)
        unknown = [key for key, _ in own.entries if not _contains(known, _digest(key))]
        for key, there, here in await _both_sides(metadata, origin, bucket, unknown):
            if here.version is not None and there is None:
                yield _described(key, ["extra"], here.version, None)
        noticed(len(own.entries))
        after, more = own.last, own.truncated


async def _both_sides(
    metadata: Metadata, origin: Origin, bucket: Bucket, keys: list[str]
) -> Iterable[tuple[str, OriginObject | None, Standing]]:
    room = asyncio.Semaphore(AT_ONCE)

    async def look(key: str) -> OriginObject | None:
        async with room:
            try:
                return await origin.head(key)
            except OriginMissing:
                return None

    there = await asyncio.gather(*map(look, keys))
    here = await metadata.standings(bucket, keys)
    return zip(keys, there, here, strict=True)


def _compared(
    bucket: Bucket, key: str, there: OriginObject | None, here: Standing, loses: frozenset[str]
) -> Difference | None:
    version = here.version
    if there is None:
        return None  # it went while it was listed
    if version is None:
        if not here.touched:
            return _described(key, ["missing"], None, there)
        return _described(key, ["deleted"], None, there) if bucket.write_through else None
    differs = ["bytes"] if here.lent else []
    pairs: dict[str, tuple[object, object]] = {
        "size": (version.size, there.size),
        "etag": (version.etag, there.etag),
        "content_type": (version.content_type, there.attributes.content_type),
        "metadata": (version.metadata, there.attributes.metadata),
        "tags": (version.tags, there.attributes.tags),
        "storage_class": (version.storage_class, there.attributes.storage_class or DEFAULT_STORAGE_CLASS),
    }
    for header in sorted({*version.headers, *there.attributes.headers}):
        pairs[f"headers.{header}"] = (version.headers.get(header), there.attributes.headers.get(header))
    if version.checksum_algorithm == there.checksum_algorithm:
        pairs["checksum"] = (version.checksum, there.checksum)
    differs += [name for name, (mine, theirs) in pairs.items() if mine != theirs and name not in loses]
    return _described(key, differs, version, there) if differs else None


def _described(key: str, differs: list[str], here: ObjectVersion | None, there: OriginObject | None) -> Difference:
    difference = Difference(key, differs)
    if here is not None:
        difference = replace(difference, size_here=here.size, etag_here=here.etag, modified_here_ns=here.stamp)
    if there is not None:
        difference = replace(
            difference, size_there=there.size, etag_there=there.etag, modified_there_ns=there.modified_ns
        )
    return difference


def _digest(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")


def _contains(sorted_digests: array[int], digest: int) -> bool:
    at = bisect_left(sorted_digests, digest)
    return at < len(sorted_digests) and sorted_digests[at] == digest
