"""How far shadows were adopted, as operators see it: also one of which the rest was given up."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.metadata.world import open_world
from tigrislike.admin.desk import Desk
from tigrislike.admin.migrations import MigrationRow, migrations
from tigrislike.config import Settings
from tigrislike.metadata import Metadata, origins
from tigrislike.metadata.homes import ANYBODY
from tigrislike.metadata.kv import ManualClock
from tigrislike.metadata.owed import item_id, zone_of
from tigrislike.metadata.records import OriginPlace
from tigrislike.metadata.shadow_migration import MIGRATE


async def only(metadata: Metadata, folder: Path) -> MigrationRow:
    """The one bucket that has a shadow, as a fresh desk sees it."""
    (row,) = (await migrations(Desk(metadata, Settings(data_dir=folder)))).migrations
    return row


def test_a_migration_that_is_given_up_says_so_until_it_is_begun_again(tmp_path: Path) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with open_world("memory", tmp_path, clock=clock) as metadata:
            assert (await migrations(Desk(metadata, Settings(data_dir=tmp_path)))).migrations == []
            await metadata.create_bucket("alone", "root")
            bucket = await metadata.create_bucket("bucket", "root")
            secret = "a secret of the origin"
            place = OriginPlace("s3://other/prefix", "http://origin.example", access_key="key", secret_key=secret)
            await metadata.use_origin("bucket", origins.SHADOW, place)
            row = await only(metadata, tmp_path)
            assert (row.bucket, row.stage, row.begun, row.ended) == ("bucket", "not begun", None, None)
            assert (row.url, row.endpoint) == ("s3://other/prefix", "http://origin.example")
            assert secret not in repr(row)
            await metadata.begin_migration("bucket", "photos/")
            row = await only(metadata, tmp_path)
            assert (row.stage, row.prefix, row.looked) == ("walking", "photos/", 0)
            assert row.begun is not None
            queue, zone = metadata.queue, zone_of(ANYBODY, bucket.id)
            for _ in range(queue.parameters.max_attempts):
                clock.advance(queue.parameters.max_back_off_ns * 2)
                lease = await queue.lease(zone, early_ns=10**18)
                assert lease is not None
                batch = await queue.claim(zone, lease)
                assert batch is not None
                await queue.fail(batch.claimed[0], "the origin is gone")
            assert (await only(metadata, tmp_path)).stage == "given up"
            await metadata.begin_migration("bucket")
            assert (await only(metadata, tmp_path)).stage == "walking"
            assert await queue.drop(zone, item_id(MIGRATE, bucket.id))
            assert (await only(metadata, tmp_path)).stage == "given up"

    asyncio.run(main())
