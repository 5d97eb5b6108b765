"""A node whose blocks somebody else has too: stores for the tests of the cache's commands, and their source."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from tests.cache.serving import PristineBlocks
from tigrislike.bytecache.errors import NotAtSource, SourceUnavailable
from tigrislike.bytecache.layout import parse_block_name
from tigrislike.config import Settings
from tigrislike.metadata.records import Draft
from tigrislike.node import Node

BLOCK = 2 * 1024 * 1024


def settings_of(directory: Path, **changes: object) -> Settings:
    metadata = f"sqlite://{directory}/metadata.db"
    return Settings(data_dir=directory, metadata=metadata, block_size=BLOCK, **changes)  # type: ignore[arg-type]


async def put(node: Node, key: str, data: bytes) -> bytes:
    """An object of one blob; its id."""
    writer = node.blocks.create_blob()
    await writer.write(data)
    await writer.finish()
    bucket = await node.metadata.bucket("bucket")
    await node.metadata.put_object(bucket, key, Draft(len(data), "etag", blob=writer.blob_id))
    await node.blocks.publish(writer.blob_id)
    return writer.blob_id


async def make(settings: Settings, **objects: int) -> dict[str, bytes]:
    """A store with a bucket and objects of these sizes in bytes, keys with `_` for `/`; their blobs."""
    async with Node.opened(settings) as node:
        await node.ensure_root()
        await node.metadata.create_bucket("bucket", "root")
        return {
            key.replace("_", "/"): await put(node, key.replace("_", "/"), os.urandom(objects[key])) for key in objects
        }


def give_away(settings: Settings, pristine: Path, *blobs: bytes) -> None:
    """Move the blocks of these blobs out of the store, to where `Pristine` has them."""
    pristine.mkdir(exist_ok=True)
    for blob_id in blobs:
        name = blob_id.hex()
        for path in (settings.cache_dir / "home" / name[:2]).glob(f"{name}.*"):
            os.rename(path, pristine / path.name)


class Pristine(PristineBlocks):
    """A source over a directory of block files.

    Attributes:
        asked: (blob id, start, stop) of every read.
        reads_until_stuck: how many reads are answered before all others wait for ever; None: no limit.
        stuck: set once one waits.
        refuses: by blob, what a read raises in place of bytes.
    """

    def __init__(self, directory: Path, reads_until_stuck: int | None = None) -> None:
        super().__init__(directory, BLOCK)
        self.asked: list[tuple[bytes, int, int]] = []
        self.reads_until_stuck = reads_until_stuck
        self.stuck = asyncio.Event()
        self.refuses: dict[bytes, type[NotAtSource] | type[SourceUnavailable]] = {}

    async def read(self, blob_id: bytes, size: int, start: int, stop: int) -> AsyncIterator[bytes | memoryview]:
        self.asked.append((blob_id, start, stop))
        if self.reads_until_stuck is not None and len(self.asked) > self.reads_until_stuck:
            self.stuck.set()
            await asyncio.Event().wait()
        if blob_id in self.refuses:
            raise self.refuses[blob_id](f"blob {blob_id.hex()} is refused")
        async for piece in super().read(blob_id, size, start, stop):
            yield piece


def files_of(settings: Settings, tree: str) -> set[tuple[bytes, int]]:
    """The blocks in one tree of a store, as the directory has them."""
    found = (parse_block_name(path.name) for path in (settings.cache_dir / tree).rglob("*") if path.is_file())
    return {block for block in found if block is not None}
