"""From a range of an object to its bytes: which extents of which blobs hold it, read one after the other and sent."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing

from tigrislike.bytecache import BlobReader, BlockStore, BytesError, Segment
from tigrislike.metadata.records import Extent, Found
from tigrislike.s3api.request import Message, Send
from tigrislike.s3api.sendfile import FileFailed

log = logging.getLogger("tigrislike.s3api")

Buffer = bytes | bytearray | memoryview


class ResponseCut(Exception):
    """A response that had begun cannot be completed: the server closes the connection."""


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
                    yield _cut(extent, first - offset, last - offset)
                offset += extent.size
        position = end


def _cut(extent: Extent, start: int, stop: int) -> Extent:
    """Bytes `[start, stop)` of an extent, as an extent of the same blob."""
    if (start, stop) == (0, extent.size):
        return extent
    return Extent(extent.blob, extent.offset + start, stop - start, extent.blob_size or extent.size)


def open_extent(blocks: BlockStore, extent: Extent) -> BlobReader:
    """A reader of the blob that an extent lies in."""
    return blocks.open_blob(extent.blob, extent.blob_size or extent.size)


async def read_extents(
    blocks: BlockStore, extents: Iterable[Extent], first: BlobReader | None = None
) -> AsyncGenerator[Buffer, None]:
    """The bytes of `extents`, in pieces of the block store's choosing.

    `first` is the reader of the first of them, if the caller has opened it.

    Raises:
        CorruptBlock, MissingBlob: before a wrong byte leaves; nobody else has the right ones.
        SourceUnavailable: whoever has them does not answer.
    """
    for extent in extents:
        reader, first = first or open_extent(blocks, extent), None
        async with aclosing(reader.read(extent.offset, extent.offset + extent.size)) as pieces:
            async for piece in pieces:
                yield piece


async def segments_of(
    blocks: BlockStore, extents: Iterable[Extent], first: BlobReader | None = None
) -> AsyncGenerator[Segment | Buffer, None]:
    """The same bytes as verified extents of open files, for a connection that can send from a file; and as bytes where
    they are not in one."""
    for extent in extents:
        reader, first = first or open_extent(blocks, extent), None
        async with aclosing(reader.segments(extent.offset, extent.offset + extent.size)) as segments:
            async for segment in segments:
                yield segment


async def send_pieces(
    request_id: str,
    start: Message,
    pieces: AsyncGenerator[Segment | Buffer, None],
    send: Send,
) -> None:
    """Send a response of stored bytes: from their files where they come as segments.

    The first piece is verified before `start`, with the status, goes out: what fails there still gets a proper error.
    What fails later cuts the connection, so that the client cannot take the part for the whole.

    Raises:
        BytesError: nothing was sent.
        ResponseCut
    """
    started = False
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                if not started:
                    started = True
                    await send(start)
                if isinstance(piece, Segment):
                    message = {
                        "type": "http.response.zerocopysend",
                        "file": piece.fd,
                        "offset": piece.offset,
                        "count": piece.length,
                        "ahead": piece.ahead,
                        "unchanged": piece.unchanged,
                        "more_body": True,
                    }
                    try:
                        await send(message)
                    except FileFailed as failure:
                        log.warning("request %s: %s", request_id, failure)
                        piece.stopped_at(failure.sent, failure.error)
                else:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        if not started:
            await send(start)
        await send({"type": "http.response.body", "body": b""})
    except BytesError as error:
        if not started:
            raise
        log.error("request %s: %s; the connection is cut", request_id, error)
        raise ResponseCut from error
