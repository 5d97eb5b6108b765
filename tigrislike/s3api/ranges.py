"""Byte-range arithmetic for GET, HEAD and UploadPartCopy: pure functions over sizes.

S3 honours one range per request; a header that it cannot parse, or that names several ranges, is ignored and the whole
object served, as RFC 9110 section 14.2 allows. Offsets are half open.
"""

from __future__ import annotations

import re

from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.text import parse_timestamp

_RANGE = re.compile(r"bytes=\s*(\d*)\s*-\s*(\d*)\s*\Z", re.ASCII | re.IGNORECASE)
_COPY_RANGE = re.compile(r"bytes=(\d{1,19})-(\d{1,19})\Z", re.ASCII)
# Far beyond any object; longer digit strings mean the same and would only cost time to convert.
_BEYOND_DIGITS = 19
_BEYOND = 10**_BEYOND_DIGITS


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """`(start, stop)` of a Range header over `size` bytes; None where the whole object is to be served.

    Raises:
        S3Error: InvalidRange where no byte of the object lies in the range.
    """
    match = _RANGE.match(header)
    if match is None:
        return None
    first, last = match[1], match[2]
    if not first and not last:
        return None
    if not first:
        length = _offset(last)
        if length == 0 or size == 0:
            raise invalid_range(header, size)
        return max(0, size - length), size
    start, end = _offset(first), _offset(last) if last else _BEYOND
    if end < start:
        return None
    if start >= size:
        raise invalid_range(header, size)
    return start, min(end + 1, size)


def if_range_holds(header: str, etag: str, modified_s: int) -> bool:
    """Whether an If-Range header names the object that has `etag` (unquoted) and was last modified at `modified_s`, in
    seconds since 1970. Where it does not, the Range header beside it is to be ignored and the whole object served.

    Unlike those of other conditions, its ETag is compared strongly and its date exactly: bytes that a client has are
    about to be joined with others. ETags without quotes are accepted, as in all conditions of S3.
    Source: https://www.rfc-editor.org/rfc/rfc9110#section-13.1.5
    """
    validator = header.strip()
    if validator.strip('"') == etag:
        return True
    try:
        return parse_timestamp(validator).timestamp() == modified_s
    except ValueError:
        return False


def _offset(digits: str) -> int:
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) < _BEYOND_DIGITS else _BEYOND


def parse_copy_range(header: str, size: int) -> tuple[int, int]:
    """`(start, stop)` of an `x-amz-copy-source-range`: both ends given, both inside the source.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPartCopy.html

    Raises:
        S3Error: InvalidArgument where the form is wrong or the range goes beyond the source.
    """
    match = _COPY_RANGE.match(header)
    if match is None or int(match[2]) < int(match[1]):
        raise S3Error(
            "InvalidArgument",
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the "
            "zero-based offsets of the first and last bytes to copy",
            extra={"ArgumentName": "x-amz-copy-source-range", "ArgumentValue": header},
        )
    start, stop = int(match[1]), int(match[2]) + 1
    if stop > size:
        raise S3Error(
            "InvalidArgument",
            f"Range specified is not valid for source object of size: {size}",
            extra={"ArgumentName": "x-amz-copy-source-range", "ArgumentValue": header},
        )
    return start, stop


def content_range(start: int, stop: int, size: int) -> str:
    """The Content-Range header of bytes `[start, stop)` of `size`."""
    return f"bytes {start}-{stop - 1}/{size}"


def invalid_range(header: str, size: int) -> S3Error:
    """The 416 that names the range asked for and the size there is."""
    return S3Error(
        "InvalidRange",
        extra={"RangeRequested": header, "ActualObjectSize": str(size)},
        headers={"content-range": f"bytes */{size}"},
    )
