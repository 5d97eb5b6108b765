"""What a backing origin holds of contents, as the database says it: on every engine, step by step and raced."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.metadata.nodes import owed_now
from tests.metadata.test_races import every_seed, race, together
from tests.metadata.world import MIB, NODE, blob_id, both_engines, large, play
from tigrislike.admin.fsck import fsck
from tigrislike.metadata import BlobDead, Bucket, Metadata, backing, origins
from tigrislike.metadata.errors import NotBacked
from tigrislike.metadata.homes import RELEASE, WRITE_BACK
from tigrislike.metadata.records import ANNOUNCED, BACKED, NOWHERE, Content, Elsewhere, OriginPlace

ONE = blob_id(b"one")
ALIVE = {NODE: "here"}


async def backed(metadata: Metadata, durability: str = "write-back") -> Bucket:
    await metadata.create_bucket("bucket", "me")
    return await metadata.use_origin("bucket", origins.BACKING, OriginPlace("s3://backing"), durability=durability)


async def content_of(metadata: Metadata, content_id: bytes = ONE) -> Content:
    content = await metadata.content(content_id)
    assert content is not None
    return content


def there(bucket: Bucket, content_id: bytes = ONE) -> Elsewhere:
    return Elsewhere(bucket.backing, backing.key_of(content_id), "etag")


async def record(metadata: Metadata, bucket: Bucket, origin_id: bytes | None = None) -> bool:
    written = [(ONE, there(bucket))]
    return await metadata.background(backing.record, metadata.context, ONE, origin_id or bucket.backing, written, ALIVE)


async def tasks(metadata: Metadata) -> set[str]:
    return {task for _, task, _ in await owed_now(metadata)}


async def sound(metadata: Metadata) -> None:
    assert [finding async for finding in fsck(metadata, pause_s=0)] == []


@both_engines
def test_a_content_is_announced_noted_recorded_and_given_up(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await backed(metadata)
        await metadata.put_object(bucket, "k", large(b"one"))
        assert WRITE_BACK in await tasks(metadata)
        assert not await record(metadata, bucket), "nobody announced it"
        assert await metadata.announce_backing(ONE) == bucket.backing
        assert await metadata.announce_backing(ONE) == bucket.backing, "after a crash it goes on"
        assert (await content_of(metadata)).elsewhere == ANNOUNCED
        located = await metadata.locate(ONE)
        assert located is not None
        assert located.elsewhere is None, "it is not relied on yet"
        assert await metadata.unwritten(bucket.backing, [ONE]) == [ONE]
        assert await metadata.note_written(ONE, bucket.backing, [(ONE, there(bucket))])
        assert await metadata.unwritten(bucket.backing, [ONE]) == []
        assert not await metadata.drop_home(ONE, ALIVE), "nor is it counted"
        assert not await record(metadata, bucket, b"o" * 16), "another origin was meant"
        assert await record(metadata, bucket)
        assert (await content_of(metadata)).elsewhere == BACKED
        located = await metadata.locate(ONE)
        assert located is not None
        assert located.elsewhere == there(bucket)
        assert RELEASE in await tasks(metadata)
        await sound(metadata)
        assert await metadata.forgo_backing(ONE, ALIVE) is None, "that is not wanted"

        await metadata.use_origin("bucket", origins.BACKING, None, durability="local")
        content = replace(await content_of(metadata), backing=b"")

        async def unwanted(tr: object) -> None:  # as the bucket's policy is followed
            from tigrislike.metadata import homes

            homes.put_content(tr, metadata.context, ONE, content)  # type: ignore[arg-type]

        await metadata.background(unwanted)
        assert await metadata.forgo_backing(ONE, {}) is None, "no living node holds it"
        assert not await metadata.drop_home(ONE, ALIVE)
        assert await metadata.forgo_backing(ONE, ALIVE) == bucket.backing
        assert (await content_of(metadata)).elsewhere == ANNOUNCED
        assert await metadata.blob_elsewhere(ONE) is None
        await metadata.background(backing.forgone, metadata.context, ONE, bucket.backing)
        assert (await content_of(metadata)).elsewhere == NOWHERE

    play(kind, tmp_path, story)


@both_engines
def test_what_is_sent_ahead_is_discarded_or_committed(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await backed(metadata, "write-through")
        with pytest.raises(NotBacked):
            await metadata.put_object(bucket, "k", large(b"one"))
        await metadata.owe_discard(bucket, ONE, bucket.backing)
        assert backing.DISCARD in await tasks(metadata)
        await metadata.put_object(bucket, "k", replace(large(b"one"), elsewhere=there(bucket)))
        assert backing.DISCARD not in await tasks(metadata)
        assert (await content_of(metadata)).elsewhere == BACKED
        assert not await metadata.give_up_blob(ONE)

        two = blob_id(b"two")
        await metadata.owe_discard(bucket, two, bucket.backing)
        assert await metadata.give_up_blob(two)
        assert await metadata.give_up_blob(two)
        with pytest.raises(BlobDead):
            await metadata.put_object(bucket, "l", replace(large(b"two"), elsewhere=there(bucket, two)))
        await sound(metadata)

    play(kind, tmp_path, story)


@every_seed
def test_a_commit_and_its_discarding_exclude_each_other(seed: int) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await backed(metadata, "write-through")
        await metadata.owe_discard(bucket, ONE, bucket.backing)
        put, given_up = await together(
            metadata.put_object(bucket, "k", replace(large(b"one"), elsewhere=there(bucket))),
            metadata.give_up_blob(ONE),
        )
        assert isinstance(put, BlobDead) == (given_up is True), (put, given_up)
        assert (await metadata.content(ONE) is None) == (given_up is True)

    race(seed, story)


@every_seed
def test_the_last_home_and_the_origins_copy_do_not_both_go(seed: int) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await backed(metadata)
        await metadata.put_object(bucket, "k", large(b"one", MIB))
        await metadata.announce_backing(ONE)
        assert await record(metadata, bucket)
        await metadata.use_origin("bucket", origins.BACKING, None, durability="local")

        async def follow(tr: object) -> None:
            from tigrislike.metadata import homes

            content = await homes.read_content(tr, metadata.context, ONE)  # type: ignore[arg-type]
            assert content is not None
            homes.put_content(tr, metadata.context, ONE, replace(content, backing=b""))  # type: ignore[arg-type]

        async def give_up() -> bytes | None:
            await metadata.background(follow)
            return await metadata.forgo_backing(ONE, ALIVE)

        dropped, forgone = await together(metadata.drop_home(ONE, ALIVE), give_up())
        assert not (dropped is True and forgone is not None)
        content = await content_of(metadata)
        assert content.homes or content.elsewhere == BACKED

    race(seed, story)


@every_seed
def test_a_content_dies_or_is_recorded_and_is_reached_either_way(seed: int) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await backed(metadata)
        await metadata.put_object(bucket, "k", large(b"one"))
        await metadata.delete_object(bucket, "k")

        async def write() -> bool:
            return await metadata.announce_backing(ONE) is not None and await record(metadata, bucket)

        _, wrote = await together(metadata.reclaim_content(ONE), write())
        content = await content_of(metadata)
        announced = content.elsewhere in (ANNOUNCED, BACKED)
        assert announced or wrote is False
        assert await metadata.dead_elsewhere(ONE) == ([(bucket.backing, ONE)] if announced else [])

    race(seed, story)
