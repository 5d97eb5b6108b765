"""Listings of a bucket and its shadow together, against the definition: what S3 would list of the union."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metadata.test_collapse import naive
from tests.metadata.world import both_engines, open_world, play, small
from tests.replication.memory_origin import MemoryOrigin
from tigrislike.metadata import Bucket, Metadata, ObjectSummary, origins
from tigrislike.metadata.records import Elsewhere, OriginPlace
from tigrislike.origin import OriginUnavailable
from tigrislike.replication import shadow_listing
from tigrislike.replication.shadow_listing import Cursor, Look, Page, Row, interleave, list_both, list_shadow

PLACE = OriginPlace("s3://models", "http://127.0.0.1:9")
SUMMARY = ObjectSummary(1, 1, "e")
names = st.text(st.sampled_from("abc/"), min_size=1, max_size=4)


def row(name: str) -> Row:
    return Row(name, SUMMARY)


@given(st.sets(names), st.sets(names), st.sets(names), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_two_listings_are_interleaved_whole_and_in_order(
    ours: set[str], theirs: set[str], hidden: set[str], limit: int, own_page: int, shadow_page: int
) -> None:
    async def own(after: str) -> tuple[list[Row], bool]:
        left = sorted(name for name in ours if name > after)
        return [row(name) for name in left[:own_page]], len(left) > own_page

    async def shadow(after: str) -> Look:
        left = sorted(name for name in theirs if name > after)
        some = left[:shadow_page]
        shown = [row(name) for name in some if name not in hidden]
        return Look(shown, some[-1] if some else "", some[-1] if len(left) > shadow_page else "")

    async def everything() -> list[Page]:
        pages = [await interleave(own, shadow, Cursor(), limit)]
        while (following := pages[-1].following) is not None:
            pages.append(await interleave(own, shadow, following, limit))
        return pages

    pages = asyncio.run(everything())
    assert [each.name for page in pages for each in page.rows] == sorted(ours | (theirs - hidden))
    assert all(len(page.rows) <= limit for page in pages)


@given(st.lists(names, unique=True), st.sets(names), st.integers(1, 3), st.integers(1, 3))
def test_a_store_of_another_order_is_listed_whole(
    order: list[str], ours: set[str], limit: int, shadow_page: int
) -> None:
    # Pages in the store's own order, each sorted in itself; of what both have, the shadow's is hidden.
    async def own(after: str) -> tuple[list[Row], bool]:
        return [row(name) for name in sorted(ours) if name > after], False

    async def shadow(after: str) -> Look:
        start = int(after or 0)
        some = sorted(order[start : start + shadow_page])
        following = str(start + shadow_page) if start + shadow_page < len(order) else ""
        return Look([row(name) for name in some if name not in ours], some[-1] if some else "", following)

    async def everything() -> list[str]:
        found: list[str] = []
        cursor: Cursor | None = Cursor()
        while cursor is not None:
            page = await interleave(own, shadow, cursor, limit)
            found += [each.name for each in page.rows]
            cursor = page.following
        return found

    found = asyncio.run(everything())
    # Behind a page of the shadow that goes back, the bucket's own listing does not.
    assert sorted(found) == sorted(ours | set(order))


async def shadowed(metadata: Metadata, **fields: object) -> Bucket:
    await metadata.create_bucket("models", "me", **fields)  # type: ignore[arg-type]
    return await metadata.use_origin("models", origins.SHADOW, PLACE, write_through=True)


async def walk(metadata: Metadata, origin: MemoryOrigin, bucket: Bucket, prefix: str, delimiter: str, limit: int):
    cursor: Cursor | None = Cursor()
    while cursor is not None:
        page = await list_both(metadata, origin, bucket, prefix, delimiter, cursor, limit)
        yield page
        cursor = page.following


@settings(max_examples=60, deadline=None)
@given(
    st.sets(names, max_size=8),
    st.sets(names, max_size=8),
    st.sets(names, max_size=5),
    st.sampled_from(["", "/", "a"]),
    st.sampled_from(["", "a", "a/", "/"]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
)
def test_a_bucket_and_its_shadow_list_as_their_union_less_what_was_deleted_here(
    ours: set[str],
    theirs: set[str],
    deleted: set[str],
    delimiter: str,
    prefix: str,
    limit: int,
    shadow_page: int,
    versioned: bool,
) -> None:
    async def story() -> None:
        async with open_world("memory", Path("unused")) as metadata:
            bucket = await shadowed(metadata, versioning="Enabled" if versioned else "")
            for key in sorted(ours | deleted):
                await metadata.put_object(bucket, key, small(b"ours"))
            for key in sorted(deleted):
                await metadata.delete_object(bucket, key)
            origin = MemoryOrigin(dict.fromkeys(theirs, b"theirs"), page=shadow_page)
            pages = [page async for page in walk(metadata, origin, bucket, prefix, delimiter, limit)]
            rows = [each for page in pages for each in page.rows]
            keys, prefixes, _ = naive((ours | theirs) - deleted, prefix, delimiter, "", 1000)
            assert [each.name for each in rows] == sorted([*keys, *prefixes])
            assert [each.name for each in rows if each.summary is None] == prefixes
            sizes = {each.name: each.summary.size for each in rows if each.summary is not None}
            assert sizes == {key: 4 if key in ours else 6 for key in keys}

    asyncio.run(story())


@both_engines
def test_an_object_adopted_in_between_is_listed_once(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata)
        origin = MemoryOrigin(dict.fromkeys("abcdef", b"bytes"))
        found: list[str] = []
        async for page in walk(metadata, origin, bucket, "", "", 2):
            found += [each.name for each in page.rows]
            for key in "abcdef":  # whatever was listed, and whatever is to come
                await metadata.adopt(bucket, key, small(b"bytes"), 1, Elsewhere(bucket.shadow, key, "e"))
        assert found == list("abcdef")

    play(kind, tmp_path, story)


@both_engines
def test_what_was_migrated_costs_one_listing_of_the_shadow_a_page(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata)
        origin = MemoryOrigin({f"{n:02}": b"bytes" for n in range(20)})
        for n in range(20):
            await metadata.put_object(bucket, f"{n:02}", small(b"bytes"))
        pages = [page async for page in walk(metadata, origin, bucket, "", "", 5)]
        assert sum(len(page.rows) for page in pages) == 20
        assert origin.lists == 4

    play(kind, tmp_path, story)


@both_engines
def test_a_prefix_of_the_shadow_under_which_everything_was_deleted_is_not_listed(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata)
        origin = MemoryOrigin({f"gone/{n}": b"x" for n in range(5)} | {"left/1": b"x", "left/2": b"x"}, page=2)
        for key in [f"gone/{n}" for n in range(5)] + ["left/1"]:
            await metadata.delete_object(bucket, key)
        page = await list_both(metadata, origin, bucket, "", "/", Cursor(), 10)
        assert [each.name for each in page.rows] == ["left/"]

    play(kind, tmp_path, story)


def test_a_page_ends_early_where_nearly_all_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow_listing, "MOST_PAGES", 2)

    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata)
        origin = MemoryOrigin(dict.fromkeys("abcdef", b"x"), page=1)
        for key in "abcde":
            await metadata.delete_object(bucket, key)
        pages = [page async for page in walk(metadata, origin, bucket, "", "", 5)]
        assert [[each.name for each in page.rows] for page in pages] == [[], [], ["f"]]

    play("memory", tmp_path, story)


def test_the_shadow_alone_is_listed_whatever_is_here(tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        bucket = await shadowed(metadata)
        await metadata.put_object(bucket, "a", small(b"ours"))
        await metadata.delete_object(bucket, "b")
        origin = MemoryOrigin({"b": b"1", "c/1": b"2", "c/2": b"3", "d": b"4"}, page=1)
        found, cursor = [], Cursor("b", "b", "b")
        first = await list_shadow(origin, "", "/", Cursor(), 1)
        assert [each.name for each in first.rows] == ["b"]
        while cursor is not None:
            page = await list_shadow(origin, "", "/", cursor, 1)
            found += [each.name for each in page.rows]
            cursor = page.following
        assert found == ["c/", "d"]
        assert await list_shadow(origin, "", "", Cursor(), 0) == Page([], None)
        origin.away = True
        with pytest.raises(OriginUnavailable):
            await list_both(metadata, origin, bucket, "", "", Cursor(), 1)

    play("memory", tmp_path, story)
