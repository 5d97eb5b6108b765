"""The objects that a content belongs to, by the names that people know them by.

Records and files name contents by their ids. Whoever is told that one is damaged or lost wants to know of which
objects: its references say, and there may be more than one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import msgspec

from tigrislike.metadata import Metadata
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.records import blob as blob_codec
from tigrislike.metadata.records import referrer as referrer_codec

NAMED: Final = 3
"""Objects that are named where a line is to stay one."""


class Name(msgspec.Struct, frozen=True):
    """A version of an object, in a bucket by its name (by its id in hex, where it has none any more)."""

    bucket: str
    key: str
    version: int
    content: str

    def __str__(self) -> str:
        return f"{self.bucket}/{plain(self.key)} (version {self.version})"


def plain(text: str) -> str:
    """A key as one line that no terminal takes for commands."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


async def bucket_names(metadata: Metadata) -> dict[bytes, str]:
    names: dict[bytes, str] = {}
    after = ""
    while True:
        page, after = await metadata.list_buckets(None, after=after)
        names |= {bucket.id: bucket.name for bucket in page}
        if not after:
            return names


async def names_of(metadata: Metadata, buckets: dict[bytes, str], content_id: bytes) -> AsyncGenerator[Name, None]:
    """The versions that a content belongs to, or that have slices of it."""
    waiting, seen = [content_id], {content_id}
    while waiting:
        at = waiting.pop()
        begin, end = metadata.context.keys.ref_range(at)
        while rows := await metadata.engine.background.read(_refs, begin, end):
            for _, value in rows:
                referrer = referrer_codec.decode(value)
                if referrer.content:
                    waiting += [referrer.content] if referrer.content not in seen else []
                    seen.add(referrer.content)
                else:
                    bucket = buckets.get(referrer.bucket, referrer.bucket.hex())
                    yield Name(bucket, referrer.key, referrer.stamp, content_id.hex())
            begin = rows[-1][0] + b"\x00"


async def _refs(tr: Transaction, begin: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
    return await tr.get_range(begin, end, limit=1000)


async def owners(metadata: Metadata, buckets: dict[bytes, str], blob_id: bytes) -> str:
    """The objects that a blob is bytes of, `NAMED` at most, as the end of a sentence; "no object" for an upload's."""

    async def content_of(tr: Transaction) -> bytes:
        raw = await tr.get(metadata.context.keys.blob(blob_id))
        return blob_codec.decode(raw).content if raw is not None else blob_id

    content_id = await metadata.engine.background.read(content_of)
    named: list[str] = []
    async with aclosing(names_of(metadata, buckets, content_id)) as found:
        async for name in found:
            if len(named) == NAMED:
                named.append("...")
                break
            named.append(str(name))
    return ", ".join(named) or "no object"
