"""Listings over the engine: paging, markers, and that a common prefix costs a seek."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kv.memory_engine import MemoryEngine
from tests.metadata.test_collapse import naive
from tests.metadata.world import both_engines, found, open_world, play, small
from tigrislike.metadata import UploadDraft
from tigrislike.metadata.errors import InvalidArgument


async def filled(metadata, keys, versioning=""):
    bucket = await metadata.create_bucket("bucket", "me", versioning=versioning)
    for key in keys:
        await metadata.put_object(bucket, key, small(b"x"))
    return bucket


class CountingEngine(MemoryEngine):
    """Counts the range reads and the rows that they give."""

    reads = 0
    rows = 0

    async def read(self, fn, *args):
        outer = self

        async def counted(tr):
            inner = tr.get_range

            def get_range(*range_args, **options):
                pending = inner(*range_args, **options)

                async def count():
                    rows = await pending
                    outer.reads += 1
                    outer.rows += len(rows)
                    return rows

                return count()

            tr.get_range = get_range
            return await fn(tr, *args)

        return await super().read(counted)


@settings(max_examples=60, deadline=None)
@given(
    st.sets(st.text(st.sampled_from("ab/\x00é"), min_size=1, max_size=5), max_size=25),
    st.sampled_from(["", "/", "a", "//", "\x00"]),
    st.sampled_from(["", "a", "a/", "/", "\x00"]),
    st.text(st.sampled_from("ab/\x00"), max_size=4),
    st.integers(1, 5),
)
def test_a_page_is_what_the_definition_says(tmp_path_factory, keys, delimiter, prefix, after, limit):
    async def main():
        async with open_world("memory", tmp_path_factory.getbasetemp()) as metadata:
            bucket = await filled(metadata, keys)
            page = await metadata.list_objects(bucket, prefix, delimiter, after, limit)
            return [key for key, _ in page.entries], page.prefixes, page.truncated

    # A common prefix that holds the marker is left out: it is not greater than the marker.
    assert asyncio.run(main()) == naive(keys, prefix, delimiter, after, limit)


@both_engines
def test_pages_follow_each_other_without_gap_or_repetition(kind, tmp_path):
    keys = [f"k{number:03}" for number in range(95)]

    async def story(metadata):
        bucket = await filled(metadata, keys)
        for limit in (1, 7, 94, 95, 96, 1000):
            got, after = [], ""
            while True:
                page = await metadata.list_objects(bucket, after=after, limit=limit)
                got += [key for key, _ in page.entries]
                if not page.truncated:
                    break
                assert page.last == got[-1]
                after = page.last
            assert got == keys

    play(kind, tmp_path, story)


@both_engines
def test_markers(kind, tmp_path):
    async def story(metadata):
        bucket = await filled(metadata, ["a", "d/1", "d/2", "e", "f/1"])

        async def listed(**options):
            page = await metadata.list_objects(bucket, **options)
            return [key for key, _ in page.entries], page.prefixes

        assert await listed(delimiter="/") == (["a", "e"], ["d/", "f/"])
        assert await listed(delimiter="/", after="d/") == (["e"], ["f/"])
        assert await listed(delimiter="/", after="d/1") == (["e"], ["f/"])
        assert await listed(delimiter="/", after="d") == (["e"], ["d/", "f/"])
        assert await listed(delimiter="/", after="c") == (["e"], ["d/", "f/"])
        assert await listed(after="d/") == (["d/1", "d/2", "e", "f/1"], [])
        assert await listed(prefix="d/", after="d/1") == (["d/2"], [])
        assert await listed(prefix="d/", delimiter="/", after="d/1") == (["d/2"], [])
        assert await listed(prefix="d/", after="a") == (["d/1", "d/2"], [])
        assert await listed(prefix="d/", after="z") == ([], [])
        assert await listed(after="zz") == ([], [])

    play(kind, tmp_path, story)


@both_engines
def test_a_page_of_nothing(kind, tmp_path):
    async def story(metadata):
        bucket = await filled(metadata, ["a", "b"])
        page = await metadata.list_objects(bucket, limit=0)
        assert (page.entries, page.prefixes, page.truncated, page.last) == ([], [], False, "")
        versions = await metadata.list_versions(bucket, limit=0)
        assert (versions.entries, versions.truncated) == ([], False)
        uploads = await metadata.list_uploads(bucket, limit=0)
        assert (uploads.entries, uploads.truncated) == ([], False)

    play(kind, tmp_path, story)


def cost_of_folders(per_folder):
    """Range reads and rows of a delimiter listing of ten folders with `per_folder` keys each."""

    async def main():
        engine = CountingEngine()
        metadata = await found(engine)
        bucket = await metadata.create_bucket("bucket", "me")
        key_of = metadata.context.keys.in_bucket(bucket.id).current.key
        value = b"\x93\x00\x00\xa0"

        async def fill(tr, folder):
            for number in range(per_folder):
                tr.set(key_of(f"{folder}/{number:06}"), value)

        for folder in range(10):
            await engine.transact(fill, folder)
        engine.reads = engine.rows = 0
        page = await metadata.list_objects(bucket, delimiter="/")
        assert page.prefixes == [f"{folder}/" for folder in range(10)]
        assert not page.truncated
        await engine.close()
        return engine.reads, engine.rows

    return asyncio.run(main())


def test_a_common_prefix_costs_a_seek_however_many_keys_it_holds():
    assert cost_of_folders(2000) == cost_of_folders(200)
    reads, rows = cost_of_folders(2000)
    assert reads <= 12
    assert rows <= 300


def test_a_page_of_many_small_folders_reads_about_as_many_rows_as_there_are():
    async def main():
        engine = CountingEngine()
        metadata = await found(engine)
        bucket = await filled(metadata, [f"{number:03}/{leaf}" for number in range(150) for leaf in range(3)])
        engine.reads = engine.rows = 0
        page = await metadata.list_objects(bucket, delimiter="/")
        assert len(page.prefixes) == 150
        await engine.close()
        return engine.reads, engine.rows

    reads, rows = asyncio.run(main())
    assert rows <= 2 * 450
    assert reads <= 40


@both_engines
def test_a_listing_that_scans_too_much_ends_early_and_goes_on(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("tigrislike.metadata.listing.SCAN_LIMIT", 100)
    monkeypatch.setattr("tigrislike.metadata.listing.ROWS_PER_TRANSACTION", 50)
    keys = [f"{number:03}/{leaf}" for number in range(60) for leaf in range(3)]

    async def story(metadata):
        bucket = await filled(metadata, keys)
        prefixes, after, pages = [], "", 0
        while True:
            page = await metadata.list_objects(bucket, delimiter="/", after=after)
            prefixes += page.prefixes
            pages += 1
            if not page.truncated:
                break
            after = page.last
        assert prefixes == [f"{number:03}/" for number in range(60)]
        assert pages > 1

    play(kind, tmp_path, story)


# --- versions


@both_engines
def test_versions_of_one_key_over_pages(kind, tmp_path):
    async def story(metadata):
        bucket = await filled(metadata, ["k"] * 25, "Enabled")
        got, key_marker, version_marker = [], "", ""
        while True:
            page = await metadata.list_versions(
                bucket, key_marker=key_marker, version_id_marker=version_marker, limit=4
            )
            got += page.entries
            if not page.truncated:
                assert (page.next_key_marker, page.next_version_id_marker) == ("", "")
                break
            key_marker, version_marker = page.next_key_marker, page.next_version_id_marker
        stamps = [entry.version.stamp for entry in got]
        assert stamps == sorted(set(stamps), reverse=True)
        assert len(stamps) == 25
        assert [entry.latest for entry in got] == [True] + [False] * 24

    play(kind, tmp_path, story)


@both_engines
def test_version_markers(kind, tmp_path):
    async def story(metadata):
        bucket = await metadata.create_bucket("bucket", "me")
        await metadata.put_object(bucket, "a", small(b"null, alone"))
        await metadata.put_object(bucket, "b", small(b"null"))
        bucket = await metadata.set_versioning("bucket", "Enabled")
        newer = await metadata.put_object(bucket, "b", small(b"newer"))
        deletion = await metadata.delete_object(bucket, "b")

        async def listed(**options):
            page = await metadata.list_versions(bucket, **options)
            return [(entry.key, entry.version.version_id) for entry in page.entries]

        everything = [("a", "null"), ("b", deletion.version_id), ("b", newer.version_id), ("b", "null")]
        assert await listed() == everything
        assert await listed(key_marker="a") == everything[1:]
        assert await listed(key_marker="a", version_id_marker="null") == everything[1:]
        assert await listed(key_marker="b", version_id_marker=deletion.version_id) == everything[2:]
        assert await listed(key_marker="b", version_id_marker=newer.version_id) == everything[3:]
        assert await listed(key_marker="b", version_id_marker="null") == []
        assert await listed(key_marker="b") == []
        assert await listed(key_marker="a", version_id_marker="null", prefix="b") == everything[1:]
        with pytest.raises(InvalidArgument):
            await listed(version_id_marker="null")
        with pytest.raises(InvalidArgument):
            await listed(key_marker="b", version_id_marker="nonsense")

    play(kind, tmp_path, story)


# --- uploads


@both_engines
def test_uploads_over_pages_with_folders_and_markers(kind, tmp_path):
    async def story(metadata):
        bucket = await metadata.create_bucket("bucket", "me")
        made = []
        for key in ["a", "a", "a", "d/1", "d/2", "e", "e\x00"]:
            upload = await metadata.create_upload(bucket, key, UploadDraft(storage_class="GLACIER"))
            made.append((key, upload.upload_id))
        made.sort()
        for limit in (1, 2, 3, 100):
            got, key_marker, id_marker = [], "", ""
            while True:
                page = await metadata.list_uploads(
                    bucket, key_marker=key_marker, upload_id_marker=id_marker, limit=limit
                )
                got += [(key, upload.upload_id) for key, upload in page.entries]
                assert all(upload.storage_class == "GLACIER" for _, upload in page.entries)
                if not page.truncated:
                    break
                key_marker, id_marker = page.next_key_marker, page.next_upload_id_marker
            assert got == made
        page = await metadata.list_uploads(bucket, delimiter="/")
        assert ([key for key, _ in page.entries], page.prefixes) == (["a", "a", "a", "e", "e\x00"], ["d/"])
        page = await metadata.list_uploads(bucket, delimiter="/", key_marker="a", limit=1)
        assert (page.prefixes, page.truncated, page.next_key_marker, page.next_upload_id_marker) == (
            ["d/"],
            True,
            "d/",
            "",
        )
        page = await metadata.list_uploads(bucket, delimiter="/", key_marker="d/")
        assert [key for key, _ in page.entries] == ["e", "e\x00"]
        page = await metadata.list_uploads(bucket, prefix="d/")
        assert [key for key, _ in page.entries] == ["d/1", "d/2"]
        page = await metadata.list_uploads(bucket, upload_id_marker="f" * 32)
        assert len(page.entries) == 7  # without a key marker the id marker is ignored
        with pytest.raises(InvalidArgument):
            await metadata.list_uploads(bucket, key_marker="a", upload_id_marker="nonsense")

    play(kind, tmp_path, story)
