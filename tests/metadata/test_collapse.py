"""Collapsing keys into common prefixes, against the definition."""

from hypothesis import given
from hypothesis import strategies as st

from tigrislike.metadata.collapse import Collapse, group_of

ALPHABET = "ab/\x00é"
keys = st.text(st.sampled_from(ALPHABET), min_size=1, max_size=6)
delimiters = st.sampled_from(["", "/", "a", "//", "\x00", "é"])


def naive(all_keys, prefix, delimiter, after, limit):
    """S3's definition, item by item: (keys, common prefixes, truncated)."""
    items = []
    for key in sorted(all_keys):
        if not key.startswith(prefix):
            continue
        at = key.find(delimiter, len(prefix)) if delimiter else -1
        item = key if at < 0 else key[: at + len(delimiter)]
        rolled = at >= 0
        if item > after and (item, rolled) not in items:
            items.append((item, rolled))
    page = items[:limit]
    truncated = len(items) > limit > 0
    return [i for i, rolled in page if not rolled], [i for i, rolled in page if rolled], truncated


@given(st.sets(keys, max_size=30), delimiters, st.sampled_from(["", "a", "a/", "/"]), st.integers(1, 8), st.data())
def test_a_page_is_what_the_definition_says_however_the_rows_arrive(all_keys, delimiter, prefix, limit, data):
    rows = [(key, None) for key in sorted(all_keys) if key.startswith(prefix)]
    collapse = Collapse(prefix, delimiter, limit)
    while rows and not collapse.truncated:
        size = data.draw(st.integers(1, len(rows)))
        chunk, rows = rows[:size], rows[size:]
        collapse.feed(chunk)
        if collapse.inside is not None and data.draw(st.booleans()):
            rows = [row for row in rows if not row[0].startswith(collapse.inside)]  # a seek
    expected = naive(all_keys, prefix, delimiter, "", limit)
    assert ([key for key, _ in collapse.entries], collapse.prefixes, collapse.truncated) == expected


def test_a_fork_goes_its_own_way():
    collapse = Collapse("", "/", 10)
    collapse.feed([("a", 1), ("b/c", 2)])
    fork = collapse.fork()
    fork.feed([("b/d", 3), ("e", 4)])
    assert [key for key, _ in fork.entries] == ["a", "e"]
    assert [key for key, _ in collapse.entries] == ["a"]
    assert (collapse.inside, fork.inside) == ("b/", None)


def test_feeding_tells_how_much_went_into_the_last_prefix():
    collapse = Collapse("", "/", 10)
    assert collapse.feed([("a", 1), ("b/1", 1), ("b/2", 1)]) == 2
    assert collapse.feed([("b/3", 1), ("c", 1)]) == 0


def test_nothing_changes_once_the_page_is_full():
    collapse = Collapse("", "", 1)
    collapse.feed([("a", 1), ("b", 2)])
    assert collapse.truncated
    collapse.feed([("c", 3)])
    assert collapse.entries == [("a", 1)]


def test_last_is_the_greater_of_key_and_prefix():
    collapse = Collapse("", "/", 10)
    assert collapse.last() == ""
    collapse.feed([("a", 1), ("b/1", 1)])
    assert collapse.last() == "b/"
    collapse.feed([("c", 1)])
    assert collapse.last() == "c"


def test_groups():
    assert group_of("a/b/c", "", "/") == "a/"
    assert group_of("a/b/c", "a/", "/") == "a/b/"
    assert group_of("a/b/c", "a/b/", "/") is None
    assert group_of("b/c", "a", "/") is None
    assert group_of("a/b", "", "") is None
