"""How far the shadows of buckets have been adopted: every bucket that looks through to one, and its migration."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

from tigrislike.metadata import Bucket
from tigrislike.metadata.homes import REPLICATE
from tigrislike.metadata.mirroring import MIRROR
from tigrislike.metadata.owed import DESTINATION_BYTES
from tigrislike.metadata.records import Counts, Item, Migration

from .desk import Desk, Look

_NS: Final = 1_000_000_000
_PAGE: Final = 500

Stage = Literal["not begun", "walking", "fetching", "done", "given up"]


class MigrationRow(Struct, frozen=True, kw_only=True):
    """A bucket with a shadow. A migration walks through the shadow's listing first (`looked` keys, of which `adopted`
    became the bucket's and `failed` should have), and the bytes follow (`fetching` contents have no home yet).
    `mirroring` keys are owed to the shadow; `given_up` is dead letters of either. `error` is what kept it last, `last`
    the latest key that it came to. Times are Unix seconds, null where there is none."""

    bucket: str
    url: str
    endpoint: str
    write_through: bool
    stage: Stage
    prefix: str
    begun: float | None
    ended: float | None
    last: str
    looked: int
    adopted: int
    failed: int
    error: str
    fetching: int
    mirroring: int
    given_up: int


class Migrations(Struct, frozen=True):
    migrations: list[MigrationRow]


async def migrations(desk: Desk) -> Migrations:
    """Every bucket that has a shadow, in the order of their names."""
    metadata, look = desk.metadata, await desk.zones()
    rows: list[MigrationRow] = []
    after = ""
    while True:
        buckets, after = await metadata.list_buckets(None, after=after, limit=_PAGE)
        rows += [await _row(desk, look, bucket) for bucket in buckets if bucket.shadow]
        if not after:
            return Migrations(rows)


async def _row(desk: Desk, look: Look, bucket: Bucket) -> MigrationRow:
    place = await desk.metadata.origin(bucket.shadow)
    migration, item, _ = await desk.metadata.migration_standing(bucket)
    owed: dict[str, Counts] = {}
    for zone, facts in look.zones.items():
        if zone[DESTINATION_BYTES:] == bucket.id:
            for task, counts in facts.tasks.items():
                owed[task] = owed.get(task, Counts()) + counts
    nothing = Counts()
    fetching, mirroring = owed.get(REPLICATE, nothing), owed.get(MIRROR, nothing)
    known = migration or Migration(bucket.name, bucket.shadow, "", 0, 0)
    return MigrationRow(
        bucket=bucket.name,
        url=place.url if place is not None else "",
        endpoint=place.endpoint if place is not None else "",
        write_through=bucket.write_through,
        stage=_stage(migration, item, fetching.waiting),
        prefix=known.prefix,
        begun=known.begun_ns / _NS if known.begun_ns else None,
        ended=known.ended_ns / _NS if known.ended_ns else None,
        last=known.after,
        looked=known.looked,
        adopted=known.adopted,
        failed=known.failed,
        error=known.error,
        fetching=fetching.waiting,
        mirroring=mirroring.waiting,
        given_up=fetching.dead + mirroring.dead,
    )


def _stage(migration: Migration | None, item: Item | None, fetching: int) -> Stage:
    """`item` is what goes on with it; where there is none it was given up, or dropped."""
    if migration is None:
        return "not begun"
    if not migration.ended_ns:
        return "walking" if item is not None else "given up"
    return "fetching" if fetching else "done"
