"""What a process remembers, and that it never remembers too long."""

import asyncio

import pytest

from tests.kv.memory_engine import MemoryEngine
from tests.metadata.world import both_engines, found, part, play
from tigrislike.metadata import NoSuchBucket, caches
from tigrislike.metadata.caches import ManifestCache, RecordCache


@both_engines
def test_a_cached_record_is_served_until_the_database_says_otherwise(kind, tmp_path):
    async def story(metadata):
        other = await found(metadata.engine)
        await metadata.create_bucket("bucket", "me")
        await metadata.refresh()
        bucket = await metadata.bucket("bucket")
        await metadata.refresh()
        assert await metadata.bucket("bucket") is bucket
        await other.set_versioning("bucket", "Enabled")
        assert await metadata.bucket("bucket") is bucket  # not refreshed yet: the same request goes on
        await metadata.refresh()
        assert (await metadata.bucket("bucket")).versioning == "Enabled"
        await other.delete_bucket("bucket")
        await metadata.refresh()
        with pytest.raises(NoSuchBucket):
            await metadata.bucket("bucket")
        await other.create_bucket("bucket", "me")
        assert (await metadata.bucket("bucket")).versioning == ""  # absence was not remembered

    play(kind, tmp_path, story)


def test_a_full_cache_starts_over(monkeypatch):
    monkeypatch.setattr(caches, "RECORDS", 3)

    async def main():
        engine = MemoryEngine()
        cache = RecordCache(engine)
        await cache.refresh()
        kept = {}

        async def value(tr, number):
            return number

        for number in range(5):
            await cache.load(kept, number, value, number)
        assert kept == {3: 3, 4: 4}
        await engine.close()

    asyncio.run(main())


def test_a_refresh_overtaken_by_a_later_one_is_ignored():
    async def main():
        engine = MemoryEngine()
        cache = RecordCache(engine)
        real_read = engine.read
        arrived, release = asyncio.Event(), asyncio.Event()

        async def slow_read(fn, *args):
            value = await real_read(fn, *args)
            arrived.set()
            await release.wait()
            return value

        async def bump(tr):
            tr.bump_metadata_version()

        engine.read = slow_read
        early = asyncio.create_task(cache.refresh())
        await arrived.wait()
        engine.read = real_read
        await engine.transact(bump)
        await cache.refresh()
        cache.buckets["b"] = bucket = type("B", (), {"name": "b"})()
        token = cache.token(bucket)
        release.set()
        await early
        assert cache.token(bucket) == token is not None
        await engine.close()

    asyncio.run(main())


def test_manifests_are_bounded_by_their_parts_and_dropped_least_recently_used_first(monkeypatch):
    monkeypatch.setattr(caches, "MANIFEST_PARTS", 5)
    cache = ManifestCache()
    cache.put(b"a", (part(1, b"a"),) * 2)
    cache.put(b"b", (part(1, b"b"),) * 2)
    assert cache.get(b"a")
    cache.put(b"c", (part(1, b"c"),) * 2)
    assert (bool(cache.get(b"a")), bool(cache.get(b"b")), bool(cache.get(b"c"))) == (True, False, True)
    cache.put(b"huge", (part(1, b"h"),) * 9)
    assert [bool(cache.get(name)) for name in (b"a", b"c", b"huge")] == [False, False, True]
    cache.drop(b"huge")
    cache.drop(b"never")
    cache.put(b"empty", ())
    assert cache.get(b"empty") is None
    cache.put(b"a", (part(1, b"a"),) * 5)
    assert cache.get(b"a")
