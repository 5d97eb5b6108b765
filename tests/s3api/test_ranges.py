"""Byte ranges: what a Range header means over an object of a given size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.ranges import content_range, if_range_holds, parse_copy_range, parse_range


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        ("bytes=0-0", 10, (0, 1)),
        ("bytes=2-5", 10, (2, 6)),
        ("bytes=2-", 10, (2, 10)),
        ("bytes=-3", 10, (7, 10)),
        ("bytes=-30", 10, (0, 10)),
        ("bytes=5-999", 10, (5, 10)),
        ("bytes=5-" + "9" * 5000, 10, (5, 10)),
        ("bytes=-" + "9" * 5000, 10, (0, 10)),
        ("bytes=" + "0" * 5000 + "5-6", 10, (5, 7)),
        ("BYTES= 1 - 2 ", 10, (1, 3)),
    ],
)
def test_one_range_is_honoured(header: str, size: int, expected: tuple[int, int]) -> None:
    assert parse_range(header, size) == expected


@pytest.mark.parametrize("header", ["bytes=", "bytes=-", "bytes=5-2", "bytes=0-1,3-4", "lines=0-1", "bytes=a-b", ""])
def test_what_is_no_single_range_is_ignored(header: str) -> None:
    assert parse_range(header, 10) is None


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("bytes=10-", 10),
        ("bytes=10-12", 10),
        ("bytes=" + "9" * 5000 + "-", 10),
        ("bytes=-0", 10),
        ("bytes=-1", 0),
        ("bytes=0-", 0),
    ],
)
def test_a_range_without_a_byte_is_refused(header: str, size: int) -> None:
    with pytest.raises(S3Error) as caught:
        parse_range(header, size)
    assert caught.value.code == "InvalidRange"
    assert caught.value.status == 416
    assert caught.value.extra == {"RangeRequested": header, "ActualObjectSize": str(size)}
    assert caught.value.headers["content-range"] == f"bytes */{size}"


@pytest.mark.parametrize(
    ("header", "holds"),
    [
        ('"abc"', True),
        ("abc", True),
        (' "abc" ', True),
        ('W/"abc"', False),  # a weak ETag does not promise the same bytes
        ('"abcd"', False),
        ('"abc", "abcd"', False),
        ("*", False),
        ("", False),
        ("Thu, 01 Jan 1970 00:16:40 GMT", True),
        ("Thu, 01 Jan 1970 00:16:39 GMT", False),
        ("Thu, 01 Jan 1970 00:16:41 GMT", False),  # later is no match: another object may have been there then
        ("Thu, 32 Jan 1970 00:16:40 GMT", False),
    ],
)
def test_if_range_names_one_object(header: str, holds: bool) -> None:
    assert if_range_holds(header, "abc", 1000) is holds


@given(st.integers(0, 50), st.integers(0, 60), st.integers(0, 60))
def test_a_range_selects_what_slicing_selects(size: int, first: int, last: int) -> None:
    data = bytes(range(size))
    try:
        span = parse_range(f"bytes={first}-{last}", size)
    except S3Error:
        assert first >= size
        return
    if span is None:
        assert last < first
        return
    assert data[slice(*span)] == data[first : last + 1]
    assert content_range(*span, size) == f"bytes {first}-{min(last, size - 1)}/{size}"


def test_a_copy_range_lies_inside_its_source() -> None:
    assert parse_copy_range("bytes=0-9", 10) == (0, 10)
    for header in ("bytes=0-10", "bytes=5-", "bytes=-5", "bytes=6-5", "0-5", "bytes=0-1,3-4"):
        with pytest.raises(S3Error) as caught:
            parse_copy_range(header, 10)
        assert caught.value.code == "InvalidArgument"
        assert caught.value.extra["ArgumentName"] == "x-amz-copy-source-range"
