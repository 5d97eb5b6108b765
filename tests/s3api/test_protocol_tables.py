"""A list given as a table reads exactly as the same list of dicts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tigrislike.s3api.protocol import load_protocol
from tigrislike.s3api.serialising import Table

OPERATION = load_protocol()["ListObjectsV2"]
MEMBERS = ("Owner", "Key", "ETag", "Size", "LastModified", "StorageClass", "ChecksumAlgorithm", "ChecksumType")
texts = st.text(max_size=8) | st.sampled_from(["a&b", "100%", '"q"', "%s", "<x>"])
owner = st.fixed_dictionaries({"ID": texts, "DisplayName": texts})
row = st.tuples(
    st.none() | owner,
    texts,
    st.none() | texts,
    st.integers(0, 2**60),
    st.integers(0, 2**62),
    st.sampled_from(["STANDARD", "GLACIER", "a%b"]),
    st.none() | st.lists(texts, max_size=2).map(tuple),
    st.none() | st.just("FULL_OBJECT"),
)


def as_dicts(rows: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [
        {member: value for member, value in zip(MEMBERS, values, strict=True) if value is not None} for values in rows
    ]


@given(st.lists(row, max_size=4))
def test_a_table_reads_as_its_rows(rows: list[tuple[Any, ...]]) -> None:
    expected = OPERATION.serialise({"Name": "b", "Contents": as_dicts(rows)})
    assert OPERATION.serialise({"Name": "b", "Contents": Table(MEMBERS, rows)}) == expected


@given(row, st.integers(1, 4))
def test_rows_that_are_all_the_same(values: tuple[Any, ...], count: int) -> None:
    expected = OPERATION.serialise({"Contents": as_dicts([values] * count)})
    assert OPERATION.serialise({"Contents": Table(MEMBERS, [values] * count)}) == expected


def test_a_member_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(TypeError, match="Colour"):
        OPERATION.serialise({"Contents": Table(("Key", "Colour"), [("k", "red")])})
