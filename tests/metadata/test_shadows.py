"""Objects adopted from a shadow: when, as what, and what keeps one from coming back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.metadata.nodes import owed_now
from tests.metadata.test_races import every_seed, race, together
from tests.metadata.world import MIB, blob_id, both_engines, found, large, play, small
from tigrislike.metadata import Bucket, MasterKey, Metadata, origins
from tigrislike.metadata.errors import NoSuchKey
from tigrislike.metadata.homes import REPLICATE, add_home, region_destination
from tigrislike.metadata.records import NOWHERE, Content, Draft, Elsewhere, ObjectVersion, OriginPlace

PLACE = OriginPlace("s3://models/v1", "http://127.0.0.1:9", "here", "key", "secret", {"style": "path"})
THEN_NS = 1_600_000_000 * 10**9


async def shadowed(metadata: Metadata, **fields: object) -> Bucket:
    """A bucket that looks through to `PLACE`."""
    await metadata.create_bucket("models", "me", **fields)  # type: ignore[arg-type]
    return await metadata.use_origin("models", origins.SHADOW, PLACE)


def source(bucket: Bucket, key: str, etag: str = "e1") -> Elsewhere:
    return Elsewhere(bucket.shadow, key, etag)


async def adopt(metadata: Metadata, bucket: Bucket, key: str, draft: Draft) -> ObjectVersion | None:
    return await metadata.adopt(bucket, key, draft, THEN_NS, source(bucket, key))


async def gain(metadata: Metadata, content_id: bytes) -> Content | None:
    await metadata.begin_home(content_id)
    home = metadata.context.home
    return await metadata.background(add_home, metadata.context, content_id, {home.node: home.region})


@both_engines
def test_an_adopted_object_keeps_its_time_and_is_found_at_its_origin(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata)
        draft = large(b"one", content_type="text/plain", metadata={"a": "b"}, tags={"t": "u"})
        version = await adopt(metadata, bucket, "k", draft)
        assert version is not None
        assert version.stamp // 10**9 == THEN_NS // 10**9
        found = await metadata.find_object(bucket, "k")
        assert (found.version, found.version.content_type) == (version, "text/plain")
        located = await metadata.locate(blob_id(b"one"))
        assert located is not None
        assert (located.homes, located.elsewhere) == ((), source(bucket, "k"))
        usage = await metadata.usage(bucket)
        assert (usage.objects, usage.bytes) == (1, MIB)
        assert (region_destination("here"), REPLICATE, version.content) in await owed_now(metadata)

    play(kind, tmp_path, story)


@both_engines
def test_a_home_ends_the_dependence_on_the_origin(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata)
        version = await adopt(metadata, bucket, "k", large(b"one"))
        assert version is not None
        content = await gain(metadata, version.content)
        assert content is not None
        assert (content.elsewhere, content.origin) == (NOWHERE, b"")
        located = await metadata.locate(version.content)
        assert located is not None
        assert located.elsewhere is None

    play(kind, tmp_path, story)


@pytest.mark.parametrize("versioning", ["", "Enabled"])
@both_engines
def test_a_deleted_object_does_not_come_back(kind: str, versioning: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata, versioning=versioning)
        assert await adopt(metadata, bucket, "k", large(b"one")) is not None
        await metadata.delete_object(bucket, "k")
        assert await adopt(metadata, bucket, "k", large(b"two")) is None
        # Nor one that was never here,
        await metadata.delete_object(bucket, "never")
        assert await adopt(metadata, bucket, "never", large(b"three")) is None
        # nor when every version and marker is removed, or another object was there for a while.
        page = await metadata.list_versions(bucket)
        for entry in page.entries:
            await metadata.delete_object(bucket, entry.key, entry.version.version_id)
        await metadata.put_object(bucket, "never", small(b"here"))
        await metadata.delete_object(bucket, "never")
        for key in ("k", "never"):
            assert await adopt(metadata, bucket, key, large(b"four")) is None
            assert not await metadata.is_untouched(bucket, key)
        assert await metadata.whiteouts(bucket, "", "", 10) == ["k", "never"]
        assert await metadata.whiteouts(bucket, "n", "", 10) == ["never"]
        assert await metadata.whiteouts(bucket, "", "k", 10) == ["never"]
        assert await metadata.whiteouts(bucket, "a", "k", 10) == []

    play(kind, tmp_path, story)


@both_engines
def test_what_the_bucket_has_wins(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata)
        mine = await metadata.put_object(bucket, "k", small(b"mine"))
        assert await adopt(metadata, bucket, "k", large(b"one")) is None
        assert (await metadata.head_object(bucket, "k")) == mine

    play(kind, tmp_path, story)


@both_engines
def test_what_a_former_shadow_has_is_not_adopted(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata)
        await metadata.use_origin("models", origins.SHADOW, None)
        assert await adopt(metadata, bucket, "k", large(b"one")) is None

    play(kind, tmp_path, story)


@both_engines
def test_an_adopted_object_is_one_version_from_before_versioning(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata, versioning="Enabled")
        await adopt(metadata, bucket, "k", large(b"one"))
        await metadata.put_object(bucket, "k", small(b"newer"))
        page = await metadata.list_versions(bucket)
        assert [(entry.version.size, entry.latest, entry.version.version_id == "null") for entry in page.entries] == [
            (5, True, False),
            (MIB, False, True),
        ]

    play(kind, tmp_path, story)


@both_engines
def test_an_object_replaced_at_its_origin_before_its_bytes_came(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata)
        seen = await adopt(metadata, bucket, "k", large(b"one"))
        assert seen is not None
        newer = source(bucket, "k", "e2")
        assert await metadata.readopt(bucket, "k", seen, large(b"two", 5), THEN_NS + 10**9, newer)
        assert (await metadata.head_object(bucket, "k")).size == 5
        # What was seen before is not there any more.
        assert not await metadata.readopt(bucket, "k", seen, large(b"three"), THEN_NS, newer)
        usage = await metadata.usage(bucket)
        assert (usage.objects, usage.bytes) == (1, 5)
        # It is gone from the origin: as if nothing had ever been here, and no whiteout.
        seen = await metadata.head_object(bucket, "k")
        assert await metadata.readopt(bucket, "k", seen, None, 0, newer)
        with pytest.raises(NoSuchKey):
            await metadata.head_object(bucket, "k")
        assert await metadata.is_untouched(bucket, "k")
        assert (await metadata.usage(bucket)).objects == 0

    play(kind, tmp_path, story)


@both_engines
def test_what_is_at_home_is_not_replaced(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata)
        seen = await adopt(metadata, bucket, "k", large(b"one"))
        assert seen is not None
        await gain(metadata, seen.content)
        assert not await metadata.readopt(bucket, "k", seen, large(b"two"), THEN_NS, source(bucket, "k", "e2"))
        assert await metadata.head_object(bucket, "k") == seen

    play(kind, tmp_path, story)


@both_engines
def test_one_version_among_others_is_not_replaced(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata, versioning="Enabled")
        seen = await adopt(metadata, bucket, "k", large(b"one"))
        assert seen is not None
        newer = await metadata.put_object(bucket, "k", small(b"newer"))
        await metadata.delete_object(bucket, "k", newer.version_id)
        seen = await metadata.head_object(bucket, "k")
        assert not await metadata.readopt(bucket, "k", seen, None, 0, source(bucket, "k", "e2"))
        assert await metadata.head_object(bucket, "k") == seen

    play(kind, tmp_path, story)


@both_engines
def test_a_deleted_bucket_leaves_no_whiteouts(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata)
        await metadata.delete_object(bucket, "k")
        await metadata.delete_bucket("models")
        assert await metadata.whiteouts(bucket, "", "", 10) == []

    play(kind, tmp_path, story)


@both_engines
def test_reclaiming_what_was_never_here_leaves_nothing(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata)
        version = await adopt(metadata, bucket, "k", large(b"one"))
        assert version is not None
        await metadata.delete_object(bucket, "k")
        assert await metadata.reclaim_content(version.content) == [version.content]
        await metadata.forget_content(version.content)
        assert await metadata.content(version.content) is None
        assert await metadata.engine.read(_get, metadata.context.keys.elsewhere(version.content)) is None

    play(kind, tmp_path, story, grace_s=0)


async def _get(tr, key):  # type: ignore[no-untyped-def]
    return await tr.get(key)


@every_seed
def test_adopting_against_deleting_and_putting(seed: int) -> None:
    """Whatever the order, no delete is undone and no put is lost."""

    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata)
        await together(
            adopt(metadata, bucket, "deleted", large(b"one")),
            metadata.delete_object(bucket, "deleted"),
            adopt(metadata, bucket, "put", large(b"two")),
            metadata.put_object(bucket, "put", small(b"put")),
        )
        with pytest.raises(NoSuchKey):
            await metadata.head_object(bucket, "deleted")
        assert (await metadata.head_object(bucket, "put")).size == 3
        usage = await metadata.usage(bucket)
        assert (usage.objects, usage.bytes) == (1, 3)

    race(seed, story)


@every_seed
def test_one_of_many_adopts(seed: int) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata)
        names = [b"one", b"two", b"three"]
        versions = await together(*(adopt(metadata, bucket, "k", large(name)) for name in names))
        assert len([each for each in versions if each is not None]) == 1
        assert (await metadata.usage(bucket)).objects == 1

    race(seed, story)


# --- where origins are


@both_engines
def test_credentials_are_sealed_and_replaced_in_place(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata)
        assert await metadata.origin(bucket.shadow) == PLACE
        assert b"secret" not in repr(await metadata.origins()).encode()
        rotated = OriginPlace(PLACE.url, PLACE.endpoint, "there", "key2", "secret2")
        assert (await metadata.use_origin("models", origins.SHADOW, rotated)).shadow == bucket.shadow
        assert await metadata.origin(bucket.shadow) == rotated
        moved = OriginPlace("s3://elsewhere", PLACE.endpoint)
        other = await metadata.use_origin("models", origins.SHADOW, moved, write_through=True)
        assert other.shadow != bucket.shadow
        assert other.write_through
        # What was adopted from the former goes on from there.
        assert await metadata.origin(bucket.shadow) == rotated
        assert len(await metadata.origins()) == 2
        assert await metadata.origin(bytes(16)) is None

    play(kind, tmp_path, story)


@both_engines
def test_credentials_survive_a_rotation_of_the_master_key(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata)
        new = MasterKey(bytes(range(32, 64)))
        await metadata.rotate_master_key(new)
        assert await metadata.origin(bucket.shadow) == PLACE
        again = await found(metadata.engine, master=new)
        assert await again.origin(bucket.shadow) == PLACE

    play(kind, tmp_path, story)


def test_secrets_stay_out_of_texts() -> None:
    assert "secret" not in repr(PLACE)
    assert "key" not in repr(PLACE)
