"""Where contents are wanted, and what of them is lacking or too much: arithmetic, so properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tigrislike.metadata import placing
from tigrislike.metadata.errors import InvalidArgument
from tigrislike.metadata.placing import MAX_REGIONS, Regions, Wanted
from tigrislike.metadata.records import LIVE, Bucket, Content, Home
from tigrislike.naming import is_region

KNOWN = ("ams", "fra", "iad", "ord", "sjc", "lab")
REGIONS = Regions(known=KNOWN)
NODES = {bytes((number,)) * 16: region for number, region in enumerate(2 * KNOWN)}

names = st.sampled_from([*KNOWN, "usa", "eur", "nrt"])
some_names = st.lists(names, max_size=4, unique=True).map(tuple)
some_nodes = st.dictionaries(st.sampled_from(sorted(NODES)), st.booleans(), max_size=8)
node_ids = st.binary(min_size=16, max_size=16)


@st.composite
def contents(draw: st.DrawFn) -> Content:
    homes = tuple(Home(NODES[node], node, whole) for node, whole in draw(some_nodes).items())
    return Content(1, LIVE, homes=homes, regions=draw(some_names), copies=draw(st.integers(0, 4)))


alive = st.sets(st.sampled_from(sorted(NODES))).map(lambda nodes: {node: NODES[node] for node in nodes})


# --- policies


@pytest.mark.parametrize("text", ["", " ", "global", "Global", " global "])
def test_no_policy_and_global_name_no_region(text: str) -> None:
    assert REGIONS.parse(text) == ()


@given(st.lists(names, min_size=1, unique=True))
def test_a_policy_is_its_names_however_it_is_written(given_names: list[str]) -> None:
    text = " , ".join(name.upper() for name in [*given_names, given_names[0]])
    assert REGIONS.parse(text) == tuple(given_names)
    assert REGIONS.parse(",".join(given_names)) == tuple(given_names)


TOO_MANY = ",".join(f"r{number}" for number in range(MAX_REGIONS + 1))
WITH_GAPS = [",", "iad,", ",iad", "iad,,sjc"]
MALFORMED = ["-iad", "iad-", "ia d", "i_d", "x" * 33, "ïad", "a\0b"]


@pytest.mark.parametrize("text", [*WITH_GAPS, *MALFORMED, "iad,global", "global,", TOO_MANY])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        REGIONS.parse(text)


@given(st.text())
def test_what_is_not_refused_is_a_bounded_list_of_regions(text: str) -> None:
    try:
        parsed = REGIONS.parse(text)
    except InvalidArgument:
        return
    assert len(parsed) <= MAX_REGIONS
    assert len(set(parsed)) == len(parsed)
    assert all(is_region(name) and name.isascii() for name in parsed)
    assert REGIONS.parse(",".join(parsed)) == parsed


def test_a_geography_is_its_regions_that_have_nodes() -> None:
    assert Regions(known=["ord", "iad", "fra"]).expand(["usa"]) == {"ord", "iad"}
    assert Regions(known=["ord"]).expand(["usa", "nrt"]) == {"ord", "nrt"}
    assert Regions(known=["ord"]).expand(["eur"]) == frozenset()
    assert Regions((("all", ("a", "b")),), ["a", "b", "iad"]).expand(["all", "usa"]) == {"a", "b", "usa"}


@given(some_names, names)
def test_bytes_may_be_kept_where_they_are_wanted_and_anywhere_without_a_policy(
    policy: tuple[str, ...], at: str
) -> None:
    assert REGIONS.allow(policy, at) == (not policy or at in REGIONS.expand(policy))


def test_a_geography_without_nodes_lets_bytes_be_kept_nowhere() -> None:
    """They are not to lie about wherever they are read, only because nobody knows yet of a node where they belong."""
    assert not Regions(known=["iad"]).allow(["eur"], "iad")


def test_a_write_to_several_regions_is_on_two_nodes_before_it_is_acknowledged() -> None:
    def wanted(policy: str, durability: str = "local", explicit: tuple[str, ...] = ()) -> Wanted:
        bucket = Bucket(b"", "bucket", "me", 0, region_policy=policy, durability=durability)
        return placing.wanted(bucket, REGIONS, explicit)

    assert wanted("") == Wanted((), 1)
    assert wanted("iad") == Wanted(("iad",), 1)
    assert wanted("iad,sjc") == Wanted(("iad", "sjc"), 2)
    assert wanted("usa") == Wanted(("usa",), 2)
    assert wanted("", "homes=3") == Wanted((), 3)
    assert wanted("usa", "homes=3") == Wanted(("usa",), 3)
    assert wanted("usa", explicit=("ams",)) == Wanted(("ams",), 1)


@pytest.mark.parametrize("text", ["", "homes", "homes=0", "homes=10", "homes=-1", "homes=1 ", "Local", "homes=²"])
def test_a_durability_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        placing.parse_durability(text)


@given(contents(), some_names, st.integers(1, 4))
def test_a_shared_content_is_wanted_wherever_either_bucket_wants_it(
    content: Content, policy: tuple[str, ...], copies: int
) -> None:
    shared = placing.merged(content, Wanted(policy, copies))
    assert set(shared.regions) == {*content.regions, *policy}
    assert shared.copies == max(content.copies, copies)
    assert placing.merged(shared, Wanted(policy, copies)) == shared
    assert shared.homes == content.homes


# --- what is lacking, and what is too much


@given(contents(), alive)
def test_what_is_missing_added_leaves_nothing_missing(content: Content, alive: dict[bytes, str]) -> None:
    missing = placing.missing_regions(content, alive, REGIONS)
    more = placing.missing_copies(content, alive, REGIONS)
    added = [Home(region, b"new" + region.encode()) for region in [*missing, *["lab"] * more]]
    added = [replace(home, node=home.node + bytes((number,))) for number, home in enumerate(added)]
    after = replace(content, homes=(*content.homes, *added))
    still = {**alive, **{home.node: home.region for home in added}}
    assert placing.missing_regions(after, still, REGIONS) == []
    assert placing.missing_copies(after, still, REGIONS) == 0
    if added:  # and one fewer would not have done
        short = replace(after, homes=after.homes[:-1])
        assert placing.missing_regions(short, still, REGIONS) or placing.missing_copies(short, still, REGIONS)


@given(contents(), alive)
def test_the_dead_and_parts_of_a_content_count_for_nothing(content: Content, alive: dict[bytes, str]) -> None:
    counted = [home for home in content.homes if home.whole and home.node in alive]
    less = replace(content, homes=tuple(counted))
    assert placing.whole_homes(content, alive) == counted
    assert placing.missing_regions(content, alive, REGIONS) == placing.missing_regions(less, alive, REGIONS)
    assert placing.missing_copies(content, alive, REGIONS) == placing.missing_copies(less, alive, REGIONS)


@given(contents(), alive, st.data())
def test_a_home_that_may_be_lost_is_not_missed(content: Content, alive: dict[bytes, str], data: st.DataObject) -> None:
    node = data.draw(st.sampled_from(sorted(NODES)))
    before = placing.missing_regions(content, alive, REGIONS)
    after = replace(content, homes=tuple(home for home in content.homes if home.node != node))
    if placing.may_lose(content, node, alive, REGIONS):
        assert placing.missing_regions(after, alive, REGIONS) == before
        assert len(placing.whole_homes(after, alive)) >= max(content.copies, 1)
    elif len(placing.whole_homes(after, alive)) >= max(content.copies, 1):
        # Then it stays for its region's sake.
        regions = {home.region for home in content.homes if home.node == node} | {alive.get(node, "")}
        assert regions & REGIONS.expand(content.regions)


@given(contents(), alive, st.randoms(use_true_random=False))
def test_giving_up_all_that_is_too_much_one_after_the_other_leaves_enough(
    content: Content, alive: dict[bytes, str], rng: object
) -> None:
    short = placing.missing_regions(content, alive, REGIONS)
    given_up = []
    while surplus := placing.surplus(content, alive, REGIONS):
        assert not short, "what lacks something has nothing too much"
        home = rng.choice(surplus)  # type: ignore[attr-defined]
        assert home in content.homes
        content = replace(content, homes=tuple(other for other in content.homes if other != home))
        given_up.append(home)
        assert placing.missing_regions(content, alive, REGIONS) == []
        assert placing.missing_copies(content, alive, REGIONS) == 0
        assert placing.whole_homes(content, alive)
    wanted = REGIONS.expand(content.regions)
    assert all(not home.whole or alive.get(home.node, home.region) not in wanted for home in given_up)
    if not short and given_up:
        # What is left of the unwanted is there for the number of copies.
        others = [home for home in placing.whole_homes(content, alive) if alive[home.node] not in wanted]
        assert not wanted or not others or len(placing.whole_homes(content, alive)) <= max(content.copies, 1)


# --- who is to hold


@given(node_ids, st.sets(node_ids, min_size=1, max_size=12), node_ids)
def test_a_node_that_comes_or_goes_moves_only_what_it_gains_or_had(
    content: bytes, nodes: set[bytes], new: bytes
) -> None:
    before = placing.ranked(content, nodes)
    after = placing.ranked(content, {*nodes, new})
    assert sorted(before) == sorted(nodes)
    assert [node for node in after if node != new] == [node for node in before if node != new]
    assert after[0] in (before[0], new)
    assert placing.ranked(content, reversed(before)) == before


def test_contents_are_spread_evenly_over_nodes() -> None:
    nodes = [bytes((number,)) * 16 for number in range(5)]
    first = [placing.ranked(number.to_bytes(16, "big"), nodes)[0] for number in range(5000)]
    assert all(850 < first.count(node) < 1150 for node in nodes)
