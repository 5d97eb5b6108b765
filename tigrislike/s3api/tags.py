"""Tag sets: the rules that S3 documents, for objects (10 tags) and buckets (50).

Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import parse_qsl

from tigrislike.s3api.errors import S3Error

OBJECT_TAGS = 10
BUCKET_TAGS = 50
_MAX_KEY = 128
_MAX_VALUE = 256
# Letters, numbers and spaces of any script, and + - = . _ : / @
_ALLOWED = re.compile(r"[\w\s+\-=.:/@]*\Z")


def check_tags(pairs: Iterable[tuple[str, str]], limit: int) -> dict[str, str]:
    """The tag set of `pairs`, in their order.

    Raises:
        S3Error: InvalidTag for a bad key, value or repetition; BadRequest for too many tags.
    """
    tags: dict[str, str] = {}
    for key, value in pairs:
        if not key or len(key) > _MAX_KEY or not _ALLOWED.match(key):
            raise S3Error("InvalidTag", "The TagKey you have provided is invalid", extra={"TagKey": key})
        if len(value) > _MAX_VALUE or not _ALLOWED.match(value):
            raise S3Error(
                "InvalidTag", "The TagValue you have provided is invalid", extra={"TagKey": key, "TagValue": value}
            )
        if key.lower().startswith("aws:"):
            raise S3Error("InvalidTag", "System tags cannot be added/updated by requester", extra={"TagKey": key})
        if key in tags:
            raise S3Error("InvalidTag", "Cannot provide multiple Tags with the same key", extra={"TagKey": key})
        tags[key] = value
    if len(tags) > limit:
        kind = "Object" if limit == OBJECT_TAGS else "Bucket"
        raise S3Error("BadRequest", f"{kind} tags cannot be greater than {limit}")
    return tags


def parse_tagging_header(header: str) -> dict[str, str]:
    """The tag set of an `x-amz-tagging` header, written as URL query parameters.

    Raises:
        S3Error: InvalidArgument where it is not such a string; as `check_tags` otherwise.
    """
    try:
        pairs = parse_qsl(header, keep_blank_values=True, errors="strict")
    except ValueError:
        raise S3Error(
            "InvalidArgument",
            "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters without tag "
            "name duplicates.",
            extra={"ArgumentName": "x-amz-tagging", "ArgumentValue": header},
        ) from None
    return check_tags(pairs, OBJECT_TAGS)


def tag_set(tags: dict[str, str]) -> list[dict[str, str]]:
    """The model's TagSet list."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def tags_of(tagging: dict[str, list[dict[str, str]]], limit: int) -> dict[str, str]:
    """The tag set of a parsed Tagging document."""
    return check_tags(((tag.get("Key", ""), tag.get("Value", "")) for tag in tagging.get("TagSet", ())), limit)
