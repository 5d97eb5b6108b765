"""Listings through boto3: prefixes, delimiters, pages, markers, encodings."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.test_objects import code

KEYS = sorted(
    ["a", "a/", "a/1", "a/2", "a/b/1", "a0", "b/1", "b/2", "c", "c//d", "ü/1", "ü/2", "z z", "z+z", "z%z"],
    key=lambda key: key.encode(),
)


@pytest.fixture(scope="module")
def filled(s3: Any, make_bucket: Any) -> str:
    name: str = make_bucket()
    for key in KEYS:
        s3.put_object(Bucket=name, Key=key, Body=key.encode())
    return name


def naive(prefix: str, delimiter: str, after: str = "") -> tuple[list[str], list[str]]:
    """Keys and common prefixes as S3 documents them, from the plain list of keys."""
    keys: list[str] = []
    prefixes: list[str] = []
    for key in KEYS:
        if not key.startswith(prefix) or key.encode() <= after.encode():
            continue
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        if cut < 0:
            keys.append(key)
        elif (common := key[: cut + len(delimiter)]) not in prefixes:
            prefixes.append(common)
    return keys, prefixes


@pytest.mark.parametrize("page", [1, 2, 3, 1000])
@pytest.mark.parametrize("delimiter", ["", "/", "//", "/1"])
@pytest.mark.parametrize("prefix", ["", "a", "a/", "b", "ü", "nothing"])
@pytest.mark.parametrize("operation", ["list_objects", "list_objects_v2"])
def test_every_page_size_lists_the_same(
    s3: Any, filled: str, operation: str, prefix: str, delimiter: str, page: int
) -> None:
    pages = list(
        s3.get_paginator(operation).paginate(
            Bucket=filled, Prefix=prefix, Delimiter=delimiter, PaginationConfig={"PageSize": page}
        )
    )
    keys = [row["Key"] for answer in pages for row in answer.get("Contents", [])]
    prefixes = [row["Prefix"] for answer in pages for row in answer.get("CommonPrefixes", [])]
    assert (keys, prefixes) == naive(prefix, delimiter)
    for answer in pages:
        assert len(answer.get("Contents", [])) + len(answer.get("CommonPrefixes", [])) <= page
        if operation == "list_objects_v2":
            assert answer["KeyCount"] == len(answer.get("Contents", [])) + len(answer.get("CommonPrefixes", []))


def test_start_after_and_marker(s3: Any, filled: str) -> None:
    for after in ("", "a", "a/", "a/2", "zzzz", "a/b"):
        listed = s3.list_objects_v2(Bucket=filled, StartAfter=after)
        assert [row["Key"] for row in listed.get("Contents", [])] == naive("", "", after)[0]
        listed = s3.list_objects(Bucket=filled, Marker=after)
        assert [row["Key"] for row in listed.get("Contents", [])] == naive("", "", after)[0]


def test_a_row_says_what_head_says(s3: Any, filled: str) -> None:
    row = s3.list_objects_v2(Bucket=filled, Prefix="z%z", FetchOwner=True)["Contents"][0]
    head = s3.head_object(Bucket=filled, Key="z%z")
    assert (row["ETag"], row["Size"], row["StorageClass"]) == (head["ETag"], head["ContentLength"], "STANDARD")
    assert row["LastModified"].replace(microsecond=0) == head["LastModified"]
    assert row["Owner"] == s3.list_buckets()["Owner"]
    assert "Owner" not in s3.list_objects_v2(Bucket=filled, Prefix="z%z")["Contents"][0]
    assert "Owner" in s3.list_objects(Bucket=filled, Prefix="z%z")["Contents"][0]


def test_no_keys_asked_for(s3: Any, filled: str) -> None:
    listed = s3.list_objects_v2(Bucket=filled, MaxKeys=0)
    assert (listed["KeyCount"], listed["IsTruncated"]) == (0, False)


def test_bad_arguments(s3: Any, filled: str) -> None:
    assert code(s3.list_objects_v2, Bucket=filled, MaxKeys=-1) == "InvalidArgument"
    assert code(s3.list_objects_v2, Bucket=filled, ContinuationToken="made-up") == "InvalidArgument"
    assert code(s3.list_objects_v2, Bucket=filled, ContinuationToken="") == "InvalidArgument"
    assert code(s3.list_objects_v2, Bucket=filled, EncodingType="rot13") == "InvalidArgument"
    assert code(s3.list_object_versions, Bucket=filled, VersionIdMarker="1") == "InvalidArgument"
