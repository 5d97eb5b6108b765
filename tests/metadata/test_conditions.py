"""Preconditions, as S3 and RFC 9110 13.2.2 document them."""

import pytest

from tigrislike.metadata import NoSuchKey, NotModified, PreconditionFailed, ReadCondition, WriteCondition, check_read
from tigrislike.metadata.conditions import check_delete, check_write, etag_matches
from tigrislike.metadata.records import DELETE_MARKER, ObjectVersion

MODIFIED_S = 1_700_000_000
LIVE = ObjectVersion(MODIFIED_S * 10**9 + 999_999_999, 7, "abc")
MARKER = ObjectVersion(MODIFIED_S * 10**9, 0, "", DELETE_MARKER)


@pytest.mark.parametrize("condition", ["abc", '"abc"', "*", '"*"', 'W/"abc"', '"x", "abc"', " abc ,y"])
def test_matching_etags(condition):
    assert etag_matches(condition, "abc")


@pytest.mark.parametrize("condition", ["", "ab", '"abcd"', '"x","y"', "ABC"])
def test_other_etags(condition):
    assert not etag_matches(condition, "abc")


@pytest.mark.parametrize(
    ("condition", "outcome"),
    [
        (None, None),
        (ReadCondition(), None),
        (ReadCondition(if_match='"abc"'), None),
        (ReadCondition(if_match="x"), PreconditionFailed),
        (ReadCondition(if_none_match="x"), None),
        (ReadCondition(if_none_match="abc"), NotModified),
        (ReadCondition(if_none_match="*"), NotModified),
        (ReadCondition(if_modified_since_s=MODIFIED_S), NotModified),
        (ReadCondition(if_modified_since_s=MODIFIED_S - 1), None),
        (ReadCondition(if_unmodified_since_s=MODIFIED_S), None),
        (ReadCondition(if_unmodified_since_s=MODIFIED_S - 1), PreconditionFailed),
        # The stronger validator of each pair decides alone.
        (ReadCondition(if_match="abc", if_unmodified_since_s=0), None),
        (ReadCondition(if_none_match="abc", if_modified_since_s=0), NotModified),
        (ReadCondition(if_none_match="x", if_modified_since_s=MODIFIED_S), None),
        (ReadCondition(if_match="x", if_none_match="abc"), PreconditionFailed),
    ],
)
def test_reads(condition, outcome):
    if outcome is None:
        check_read(condition, LIVE)
        return
    with pytest.raises(outcome):
        check_read(condition, LIVE)


def test_not_modified_says_what_its_headers_need():
    with pytest.raises(NotModified) as caught:
        check_read(ReadCondition(if_none_match="abc"), LIVE)
    assert (caught.value.etag, caught.value.last_modified_ns, caught.value.version_id) == (
        "abc",
        LIVE.stamp,
        LIVE.version_id,
    )


@pytest.mark.parametrize(
    "condition", [ReadCondition(if_none_match="abc"), ReadCondition(if_modified_since_s=MODIFIED_S)]
)
def test_a_copy_knows_no_304(condition):
    with pytest.raises(PreconditionFailed):
        check_read(condition, LIVE, copying=True)


@pytest.mark.parametrize(
    ("condition", "live", "outcome"),
    [
        (None, None, None),
        (WriteCondition(if_none_match="*"), None, None),
        (WriteCondition(if_none_match="*"), LIVE, PreconditionFailed),
        (WriteCondition(if_none_match='"abc"'), LIVE, PreconditionFailed),
        (WriteCondition(if_none_match='"x"'), LIVE, None),
        (WriteCondition(if_match='"abc"'), LIVE, None),
        (WriteCondition(if_match="*"), LIVE, None),
        (WriteCondition(if_match='"x"'), LIVE, PreconditionFailed),
        (WriteCondition(if_match='"abc"'), None, NoSuchKey),
        (WriteCondition(if_match="*"), None, NoSuchKey),
    ],
)
def test_writes(condition, live, outcome):
    if outcome is None:
        check_write(condition, "k", live)
        return
    with pytest.raises(outcome):
        check_write(condition, "k", live)


@pytest.mark.parametrize(
    ("condition", "target", "hidden", "outcome"),
    [
        (None, None, False, None),
        (WriteCondition(), LIVE, False, None),
        (WriteCondition(if_match="abc"), LIVE, False, None),
        (WriteCondition(if_match="*"), LIVE, False, None),
        (WriteCondition(if_match="x"), LIVE, False, PreconditionFailed),
        (WriteCondition(if_match="*"), None, False, NoSuchKey),
        (WriteCondition(if_match="*"), None, True, PreconditionFailed),
        (WriteCondition(if_match="*"), MARKER, False, PreconditionFailed),
        (WriteCondition(if_match_size=7), LIVE, False, None),
        (WriteCondition(if_match_size=8), LIVE, False, PreconditionFailed),
        (WriteCondition(if_match_size=8), None, False, None),
        (WriteCondition(if_match_size=8), MARKER, False, None),
        (WriteCondition(if_match_last_modified_s=MODIFIED_S), LIVE, False, None),
        (WriteCondition(if_match_last_modified_s=MODIFIED_S + 1), LIVE, False, PreconditionFailed),
        (WriteCondition(if_match="abc", if_match_size=8), LIVE, False, PreconditionFailed),
    ],
)
def test_deletes(condition, target, hidden, outcome):
    if outcome is None:
        check_delete(condition, "k", target, hidden)
        return
    with pytest.raises(outcome):
        check_delete(condition, "k", target, hidden)
