"""Tag sets: S3's rules, in documents and in headers."""

import pytest

from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.tags import BUCKET_TAGS, OBJECT_TAGS, check_tags, parse_tagging_header, tag_set, tags_of


def code(function, *args) -> str:
    with pytest.raises(S3Error) as caught:
        function(*args)
    return caught.value.code


def test_a_tag_set_survives_the_round_trip() -> None:
    tags = {"project": "träumen", "Cost Center": "a+b=c:d/e@f", "empty": ""}
    assert tags_of({"TagSet": tag_set(tags)}, OBJECT_TAGS) == tags


def test_the_header_is_a_query_string() -> None:
    assert parse_tagging_header("a=1&b=&c%20d=x%2By") == {"a": "1", "b": "", "c d": "x+y"}
    assert parse_tagging_header("") == {}
    assert parse_tagging_header("a=1&bare") == {"a": "1", "bare": ""}
    assert code(parse_tagging_header, "=&&") == "InvalidTag"
    assert code(parse_tagging_header, "a=%ff") == "InvalidArgument"


@pytest.mark.parametrize(
    "pairs",
    [
        [("", "v")],
        [("k" * 129, "v")],
        [("k", "v" * 257)],
        [("bad|key", "v")],
        [("k", "bad|value")],
        [("aws:reserved", "v")],
        [("twice", "1"), ("twice", "2")],
    ],
)
def test_bad_tags_are_named(pairs: list[tuple[str, str]]) -> None:
    assert code(check_tags, pairs, OBJECT_TAGS) == "InvalidTag"


def test_there_is_a_limit_to_tags() -> None:
    ten = [(f"k{i}", "v") for i in range(OBJECT_TAGS)]
    assert len(check_tags(ten, OBJECT_TAGS)) == OBJECT_TAGS
    assert code(check_tags, [*ten, ("k10", "v")], OBJECT_TAGS) == "BadRequest"
    assert len(check_tags([(f"k{i}", "v") for i in range(BUCKET_TAGS)], BUCKET_TAGS)) == BUCKET_TAGS
