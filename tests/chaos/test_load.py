"""What clients write down of the answers they hear."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bench.signing import Signer
from tests.chaos.load import Client, Load, Record

ETAG = "0123456789abcdef" * 2


def heard(listed: list[str]) -> Record:
    """The record of a listing that shows these keys."""
    rows = "".join(f'<Contents><Key>{key}</Key><ETag>"{ETAG}"</ETag></Contents>' for key in listed)
    body = f"<ListBucketResult>{rows}</ListBucketResult>".encode()

    async def main() -> Record:
        load = Load(Signer("host:1", "key", "secret"), "bucket", 1, 8, 1.0, 0, Path())
        reader = asyncio.StreamReader()
        reader.feed_data(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        record = Record(0, "list", load.keys[0])
        await Client(load, 0)._hear(record, reader, "GET")
        return record

    return asyncio.run(main())


def test_a_listing_shows_what_is_there_and_what_is_not() -> None:
    record = heard(["group-0/key-0", "group-0/key-2"])
    assert not record.trouble
    assert [key[-1] for key, etag in record.seen.items() if etag == ETAG] == ["0", "2"]
    assert list(record.seen.values()).count(None) == 6


@pytest.mark.parametrize("listed", [["group-0/key-0", "group-0/key-0"], ["group-0/key-0", ""]], ids=["twice", "unread"])
def test_a_listing_with_a_key_twice_or_with_one_that_cannot_be_read_is_damage(listed: list[str]) -> None:
    assert heard(listed).trouble == "damage"
