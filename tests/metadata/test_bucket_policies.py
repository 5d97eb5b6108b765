"""Policies of buckets as they are kept, however they were written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.metadata.world import both_engines, play
from tigrislike.metadata import Metadata
from tigrislike.metadata.errors import InvalidArgument
from tigrislike.metadata.placing import Regions, parse_durability, policy_fields

NAMES = st.lists(st.from_regex(r"[a-z][a-z0-9-]{0,5}[a-z0-9]", fullmatch=True), max_size=6)


@given(st.text(max_size=30) | NAMES.map(",".join))
def test_what_is_kept_of_regions_means_the_same_and_stays_as_it_is(text: str) -> None:
    regions = Regions()
    try:
        kept = policy_fields({"region_policy": text}, regions)
    except InvalidArgument:
        with pytest.raises(InvalidArgument):
            regions.parse(text)
        return
    assert regions.parse(kept["region_policy"]) == regions.parse(text)
    assert policy_fields(kept, regions) == kept


@given(st.text(max_size=10) | st.integers(-1, 11).map(lambda n: f"homes={n}") | st.just("local"))
def test_what_is_kept_of_a_durability_means_the_same_and_stays_as_it_is(text: str) -> None:
    try:
        kept = policy_fields({"durability": text}, Regions())
    except InvalidArgument:
        with pytest.raises(InvalidArgument):
            parse_durability(text)
        return
    assert parse_durability(kept["durability"]) == parse_durability(text)
    assert policy_fields(kept, Regions()) == kept


def test_fields_that_are_no_policies_are_let_be() -> None:
    assert policy_fields({"public": True}, Regions()) == {"public": True}


Made = Callable[[Metadata, dict[str, Any]], Any]


@both_engines
def test_a_bucket_keeps_its_policies_and_changes_them(kind: str, tmp_path: Path) -> None:
    async def story(metadata: Metadata) -> None:
        made = await metadata.create_bucket("photos", "me", region_policy="iad, SJC", durability="homes=2")
        assert (made.region_policy, made.durability) == ("iad,sjc", "homes=2")
        pair = await metadata.create_storage("films", "me", region_policy="usa", durability="homes=3")
        assert (pair[0].region_policy, pair[0].durability) == ("usa", "homes=3")
        changed = await metadata.change_bucket("photos", region_policy="global", durability="homes=1")
        assert (changed.region_policy, changed.durability) == ("", "local")
        await metadata.refresh()
        assert await metadata.bucket("photos") == changed

    play(kind, tmp_path, story)


@pytest.mark.parametrize("fields", [{"region_policy": "a b"}, {"durability": "some"}])
@pytest.mark.parametrize(
    "make",
    [
        lambda metadata, fields: metadata.create_bucket("new", "me", **fields),
        lambda metadata, fields: metadata.create_storage("new", "me", **fields),
        lambda metadata, fields: metadata.change_bucket("photos", **fields),
    ],
)
def test_nonsense_is_refused(make: Made, fields: dict[str, str]) -> None:
    async def story(metadata: Metadata) -> None:
        photos = await metadata.create_bucket("photos", "me")
        with pytest.raises(InvalidArgument):
            await make(metadata, fields)
        assert await metadata.list_buckets("me") == ([photos], "")

    play("memory", Path(), story)
