"""What operators see of origins: reports name each key that differs and in what, and nothing where nothing does."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from tests.metadata.world import blob_id, large, open_world, small
from tests.replication.memory_origin import MemoryOrigin
from tigrislike.admin import origin_commands, origins
from tigrislike.admin.origins import OriginsError, differences
from tigrislike.metadata import Bucket, Metadata
from tigrislike.metadata import origins as places
from tigrislike.metadata.homes import ANYBODY, add_home
from tigrislike.metadata.mirroring import MIRROR, subject_of
from tigrislike.metadata.owed import item_id, zone_of
from tigrislike.metadata.records import Elsewhere, OriginPlace
from tigrislike.metadata.shadow_migration import MIGRATE
from tigrislike.origin import Attributes, OriginUnavailable

PLACE = OriginPlace("s3://models/v1", "http://127.0.0.1:9", "here", "key", "the-secret")


def play(story: Callable[[Metadata, Bucket], Awaitable[None]], *, write_through: bool = False) -> None:
    async def main() -> None:
        async with open_world("memory", Path("unused")) as metadata:
            await metadata.create_bucket("models", "me")
            also = {"write_through": write_through}
            await story(metadata, await metadata.use_origin("models", places.SHADOW, PLACE, **also))

    asyncio.run(main())


async def differ(metadata: Metadata, origin: MemoryOrigin, bucket: Bucket, prefix: str = "") -> dict[str, list[str]]:
    return {each.key: each.differs async for each in differences(metadata, origin, bucket, prefix)}


async def put_alike(metadata: Metadata, origin: MemoryOrigin, bucket: Bucket, key: str, data: bytes = b"bytes") -> None:
    """The same object on both sides."""
    about = Attributes("a/b", {"Expires": "x"}, {"m": "n"}, {"t": "u"})
    origin.have(key, data, about)
    fields = {"content_type": "a/b", "headers": {"Expires": "x"}, "metadata": {"m": "n"}, "tags": {"t": "u"}}
    await metadata.put_object(bucket, key, small(data, **fields))


def test_every_kind_of_difference_is_told() -> None:
    async def story(metadata: Metadata, bucket: Bucket) -> None:
        origin = MemoryOrigin(page=3)
        keys = ("alike", "etag", "size", "type", "header", "metadata", "tags", "class")
        for key in keys:
            await put_alike(metadata, origin, bucket, key)
        assert await differ(metadata, origin, bucket) == {}
        for key, changes in {
            "type": {"content_type": "c/d"},
            "header": {"headers": {"Expires": "y", "CacheControl": "z"}},
            "metadata": {"metadata": {}},
            "tags": {"tags": {"t": "v"}},
            "class": {"storage_class": "GLACIER_IR"},
        }.items():
            origin.objects[key].attributes = replace(origin.objects[key].attributes, **changes)
        await metadata.put_object(bucket, "etag", small(b"BYTES", content_type="a/b"))
        origin.have("size", b"longer bytes", origin.objects["size"].attributes)
        origin.have("missing", b"x")
        await metadata.delete_object(bucket, "deleted")
        origin.have("deleted", b"x")
        origin.have("lent", b"bytes")
        draft = replace(large(b"one", size=5), etag=origin.objects["lent"].etag)
        await metadata.adopt(bucket, "lent", draft, 1, Elsewhere(bucket.shadow, "lent", draft.etag))
        await metadata.put_object(bucket, "only here", small(b"x"))
        found = await differ(metadata, origin, bucket)
        assert found == {
            "class": ["storage_class"],
            "etag": ["etag", "metadata", "tags", "headers.Expires"],
            "header": ["headers.CacheControl", "headers.Expires"],
            "lent": ["bytes"],
            "metadata": ["metadata"],
            "missing": ["missing"],
            "size": ["size", "etag"],
            "tags": ["tags"],
            "type": ["content_type"],
        }
        assert set(await differ(metadata, origin, bucket, "m")) == {"metadata", "missing"}
        # What the driver cannot tell is held against nobody.
        origin.loses = frozenset({"tags", "headers.Expires", "metadata"})
        assert {"tags", "metadata"}.isdisjoint(await differ(metadata, origin, bucket))
        home = metadata.context.home
        await metadata.begin_home(blob_id(b"one"))
        await metadata.background(add_home, metadata.context, blob_id(b"one"), {home.node: home.region})
        assert "lent" not in await differ(metadata, origin, bucket)

    play(story)


def test_a_shadow_that_is_written_through_to_is_compared_both_ways() -> None:
    async def story(metadata: Metadata, bucket: Bucket) -> None:
        origin = MemoryOrigin(page=1)
        for key in ("a", "b", "c"):
            await put_alike(metadata, origin, bucket, key)
        assert await differ(metadata, origin, bucket) == {}
        await metadata.delete_object(bucket, "a")
        await metadata.put_object(bucket, "d", small(b"x"))
        assert await differ(metadata, origin, bucket) == {"a": ["deleted"], "d": ["extra"]}

    play(story, write_through=True)


def test_a_report_is_a_file_of_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def story(metadata: Metadata, bucket: Bucket) -> None:
        origin = MemoryOrigin({"missing": b"12345"})
        await put_alike(metadata, origin, bucket, "alike")
        output = tmp_path / "report.parquet"
        report = origin_commands.report("models", "", output, lambda place: origin, True)
        assert await report(metadata) == 1
        told = json.loads(capsys.readouterr().out)
        assert (told["looked"], told["differ"], told["loses"]) == (2, 1, [])
        [row] = pq.read_table(output).to_pylist()
        assert (row["key"], row["differs"], row["size_there"], row["size_here"]) == ("missing", ["missing"], 5, None)
        assert row["modified_there"].year == 2020
        # One that is cut off leaves the one before.
        origin.away = True
        with pytest.raises(OriginUnavailable):
            await report(metadata)
        assert pq.read_table(output).num_rows == 1
        assert os.listdir(tmp_path) == ["report.parquet"]

    play(story)


def test_a_migration_that_was_given_up_says_so_to_whoever_waits(capsys: pytest.CaptureFixture[str]) -> None:
    async def story(metadata: Metadata, bucket: Bucket) -> None:
        looks = 0

        async def sleep(_: float) -> None:
            nonlocal looks
            looks += 1
            zone = zone_of(ANYBODY, bucket.id)
            for _ in range(metadata.queue.parameters.max_attempts):
                await metadata.queue.delay(zone, item_id(MIGRATE, bucket.id), 0)
                lease = await metadata.queue.lease(zone, early_ns=10**12)
                assert lease is not None
                batch = await metadata.queue.claim(zone, lease)
                assert batch is not None
                [claimed] = batch.claimed
                await metadata.queue.fail(claimed, "no such key pair")

        with pytest.raises(OriginsError, match="no such key pair"):
            await origin_commands.migrate("models", "", 0, True, False, sleep=sleep)(metadata)
        assert looks == 1

    play(story)


def test_a_migration_whose_item_was_dropped_is_not_said_to_be_under_way() -> None:
    async def story(metadata: Metadata, bucket: Bucket) -> None:
        await metadata.begin_migration("models")
        assert await metadata.queue.drop(zone_of(ANYBODY, bucket.id), item_id(MIGRATE, bucket.id))
        with pytest.raises(OriginsError, match="dropped from the queue; begin it again"):
            await origin_commands.show("models", False)(metadata)

    play(story)


def test_a_bucket_that_is_deleted_while_somebody_waits_for_its_migration_says_so() -> None:
    async def story(metadata: Metadata, bucket: Bucket) -> None:
        async def sleep(_: float) -> None:
            await metadata.delete_bucket("models")

        with pytest.raises(OriginsError, match="was deleted"):
            await origin_commands.migrate("models", "", 0, True, True, sleep=sleep)(metadata)

    play(story)


def test_what_is_owed_and_what_was_given_up_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    async def story(metadata: Metadata, bucket: Bucket) -> None:
        show = origin_commands.show("models", True)
        await show(metadata)
        assert len(capsys.readouterr().out.splitlines()) == 1
        await metadata.put_object(bucket, "k", small(b"x"))
        await metadata.adopt(bucket, "lent", large(b"one"), 1, Elsewhere(bucket.shadow, "lent", "e"))
        await show(metadata)
        assert json.loads(capsys.readouterr().out.splitlines()[1]) == {"fetching": 1, "mirroring": 1, "given_up": 0}
        zone, subject = zone_of(ANYBODY, bucket.id), subject_of(bucket, "k")
        for _ in range(metadata.queue.parameters.max_attempts):
            await metadata.queue.delay(zone, item_id(MIRROR, subject), 0)
            lease = await metadata.queue.lease(zone, early_ns=10**12)
            assert lease is not None
            batch = await metadata.queue.claim(zone, lease)
            assert batch is not None
            await metadata.queue.fail(batch.claimed[0], "no such key pair")
        await origin_commands.show("models", False)(metadata)
        assert "bytes of 1 to fetch, 1 given up" in capsys.readouterr().out

    play(story, write_through=True)


def test_no_secret_is_ever_shown(capsys: pytest.CaptureFixture[str]) -> None:
    async def story(metadata: Metadata, bucket: Bucket) -> None:
        for as_json in (False, True):
            await origin_commands.use("models", PLACE, True, as_json)(metadata)
            await origin_commands.show("models", as_json)(metadata)
            await origin_commands.ls(as_json)(metadata)
        await metadata.begin_migration("models")
        await origin_commands.show("models", False)(metadata)
        shown = capsys.readouterr()
        assert "0 keys, 0 adopted, no bytes to fetch, under way" in shown.out
        assert "the-secret" not in shown.out + shown.err + repr(PLACE)
        assert [use.write_through async for use in origins.all_uses(metadata)] == [True]
        await origin_commands.clear("models", places.SHADOW)(metadata)
        assert [use async for use in origins.all_uses(metadata)] == []

    play(story)
