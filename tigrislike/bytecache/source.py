"""The seam to whoever else has a blob's bytes: another node that is its home, or the origin.

A source gives ranges of a blob. It checks what it fetched as well as it can; the block store counts the bytes, but has
no checksum of its own to hold them against. What it does not do: cache, share one fetch between readers, or bound how
much is fetched at once; `fills.py` does.
"""

from collections.abc import AsyncIterator
from typing import Protocol


class BlobSource(Protocol):
    """Where blocks that are not here come from. Used from one event loop; any number of reads at once."""

    def read(self, blob_id: bytes, size: int, start: int, stop: int) -> AsyncIterator[bytes | memoryview]:
        """Bytes `start` to `stop` (half open) of the blob, in order, in pieces of any length.

        What is given out is used before the next piece is asked for. An iterator with an `aclose` is closed when it is
        no longer wanted.

        Args:
            blob_id: 16 bytes.
            size: Of the whole blob, in bytes.
            start, stop: 0 <= start < stop <= size.

        Raises:
            SourceUnavailable: Nobody who has the bytes can give them now.
            NotAtSource: Nobody has them.
        """
        ...

    async def lives(self, blob_id: bytes) -> bool:
        """Whether the blob is still wanted: False once it is decided for ever that it is deleted.

        Asked after the room for a block is taken and before the block is kept, so that a deletion comes either before
        one of the questions or after the block can be found and removed.

        Raises:
            SourceUnavailable: It cannot be told now.
        """
        ...

    def keeps(self, blob_id: bytes) -> bool:
        """Whether blocks of the blob may be kept in this node's cache. False, for a blob whose bytes may not lie where
        this node is: they are passed through to readers. Asked before each fetch, and again, on a thread, before what
        was fetched is kept: answer from memory, which the fetch may have filled.

        A source without this attribute lets everything be kept.
        """
        return True
