"""Which work gives way: what nobody waits for runs at the engine's background priority, and nothing else does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tests.kv.fake_binding import FakeFdb
from tests.metadata.queueing import take
from tests.metadata.world import MASTER, NODE, blob_id, small
from tigrislike.admin.fsck import fsck
from tigrislike.metadata import Metadata
from tigrislike.metadata.kv.fdb_transaction import PRIORITY_BATCH, TAG


def kinds(story: Callable[[Metadata], Awaitable[Any]]) -> dict[bytes, bool]:
    """The kinds of transactions that `story` makes, and whether the cluster was told that they may wait."""

    async def main() -> dict[bytes, bool]:
        fake = FakeFdb()
        try:
            metadata = await Metadata.open(fake.engine, master_key=MASTER, node_id=NODE, region="here")
            await metadata.create_bucket("bucket", "owner")
            before = len(fake.client.natives)
            await story(metadata)
            seen = [dict(native.options) for native in fake.client.natives[before:]]
        finally:
            await fake.close()
        return {options[TAG]: PRIORITY_BATCH in options for options in seen if options[TAG] != b"clear done keys"}

    return asyncio.run(main())


def test_requests_do_not_give_way() -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await metadata.bucket("bucket")
        await metadata.put_object(bucket, "key", small(b"bytes"))
        await metadata.refresh()
        await metadata.find_object(bucket, "key", prove=True)
        await metadata.list_objects(bucket)
        await metadata.delete_object(bucket, "key")

    seen = kinds(story)
    assert {b"put_object", b"find_object", b"delete_object"} <= seen.keys()
    assert not any(seen.values())


def test_sweeping_and_reclaiming_give_way() -> None:
    async def story(metadata: Metadata) -> None:
        assert not await metadata.settle_blob(blob_id(b"dead"))
        for zone in await metadata.queue.zones():
            await take(metadata, zone)
            await metadata.queue.depth(zone)
        await metadata.reclaim_content(bytes(16))
        await metadata.forget_content(bytes(16))

    seen = kinds(story)
    assert {b"settle_blob", b"lease", b"depth", b"condemn_content", b"forget_some"} <= seen.keys()
    assert all(seen.values())


def test_fsck_gives_way() -> None:
    async def story(metadata: Metadata) -> None:
        assert [finding async for finding in fsck(metadata)] == []

    seen = kinds(story)
    assert seen
    assert all(seen.values())
