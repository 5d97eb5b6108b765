"""From a range of an object to its bytes: which extents of which blobs hold it, read one after the other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from tigrislike.bytecache import BlockStore
from tigrislike.metadata import Extent, Found


def extents_of(found: Found, start: int, stop: int) -> Iterator[Extent]:
    """The extents that hold bytes `[start, stop)` of the object, in order and cut to the range."""
    position = 0
    for part in found.parts:
        end = position + part.size
        if end > start:
            if position >= stop:
                return
            offset = position
            for extent in part.extents:
                first, last = max(start, offset), min(stop, offset + extent.size)
                if first < last:
                    yield Extent(blob=extent.blob, offset=extent.offset + first - offset, size=last - first)
                offset += extent.size
        position = end


async def read_object(blocks: BlockStore, found: Found, start: int, stop: int) -> AsyncIterator[bytes]:
    """The object's bytes `[start, stop)`, in chunks of the block store's choosing.

    Raises:
        CorruptBlock, MissingBlob: before a wrong byte leaves.
    """
    for extent in extents_of(found, start, stop):
        reader = blocks.open_blob(extent.blob)
        async for chunk in reader.read(extent.offset, extent.offset + extent.size):
            yield chunk
