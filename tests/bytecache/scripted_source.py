"""A `BlobSource` in memory whose faults are scripted, and which remembers what it was asked."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

from tigrislike.bytecache import NotAtSource

PIECE = 16 * 1024


@dataclass
class ScriptedSource:
    """What it has is `blobs`; everything else may be replaced in the middle of a test.

    Attributes:
        blobs: Content by blob id.
        dead: Blobs that `lives` denies.
        unkept: Blobs that `keeps` denies.
        script: Called before each piece with (blob id, start of the piece); what it raises ends the read. An awaitable
            that it returns is awaited.
        cut: Applied to the pieces of each read: short, long, differently cut.
        asked: (blob id, start, stop) of every read.
        lives_asked: Blob ids, once for each question.
        open_reads: How many iterators are not closed.
    """

    blobs: dict[bytes, bytes] = field(default_factory=dict)
    dead: set[bytes] = field(default_factory=set)
    unkept: set[bytes] = field(default_factory=set)
    script: Callable[[bytes, int], object] = lambda blob_id, start: None
    cut: Callable[[Iterator[bytes]], Iterator[bytes]] = lambda pieces: pieces
    answer: Callable[[bytes], object] = lambda blob_id: None
    asked: list[tuple[bytes, int, int]] = field(default_factory=list)
    lives_asked: list[bytes] = field(default_factory=list)
    open_reads: int = 0

    async def read(self, blob_id: bytes, size: int, start: int, stop: int) -> AsyncIterator[bytes | memoryview]:
        self.asked.append((blob_id, start, stop))
        self.open_reads += 1
        try:
            if blob_id not in self.blobs:
                raise NotAtSource(f"blob {blob_id.hex()} is nowhere")
            data = self.blobs[blob_id]
            assert len(data) == size
            assert 0 <= start < stop <= size
            position = start
            for piece in self.cut(data[at : min(at + PIECE, stop)] for at in range(start, stop, PIECE)):
                waiting = self.script(blob_id, position)
                if asyncio.iscoroutine(waiting) or asyncio.isfuture(waiting):
                    await waiting
                # Used again for the next piece, as a source that reads into one buffer does.
                buffer = bytearray(piece)
                yield memoryview(buffer)
                buffer[:] = b"\xee" * len(buffer)
                position += len(piece)
        finally:
            self.open_reads -= 1

    async def lives(self, blob_id: bytes) -> bool:
        self.lives_asked.append(blob_id)
        waiting = self.answer(blob_id)
        if asyncio.iscoroutine(waiting) or asyncio.isfuture(waiting):
            await waiting
        return blob_id not in self.dead

    def keeps(self, blob_id: bytes) -> bool:
        return blob_id not in self.unkept
