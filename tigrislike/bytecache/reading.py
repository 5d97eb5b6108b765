"""The blocking half of reading a blob: find a block file, check who it is, read a range, verify what was not yet.

Every function here can be told not to wait for the disk (`wait=False`): it then answers None instead of reading what
is not in the page cache, and may run on the event loop. Nothing unverified ever leaves.
"""

import contextlib
import errno
import os
from dataclasses import dataclass
from typing import Final

from tigrislike.bytecache.errors import CorruptBlock, MissingBlob, from_os_error
from tigrislike.bytecache.filesystem import FileSystem
from tigrislike.bytecache.footer import CHUNK, FOOTER_BYTES, Footer, block_length, matches, padded
from tigrislike.bytecache.layout import Layout
from tigrislike.bytecache.statistics import Counters
from tigrislike.bytecache.verified import BlockState, Identity, Verified, identity

Buffer = bytearray | memoryview
"""What reads give: memory of its own, which nobody else changes."""

_NOT_CACHED: Final = frozenset({errno.EAGAIN, errno.EOPNOTSUPP})
"""RWF_NOWAIT: the pages are not in the cache, or this filesystem cannot tell."""


@dataclass(frozen=True, slots=True)
class Source:
    """What all readers of a store share."""

    fs: FileSystem
    layout: Layout
    counters: Counters
    verified: Verified


class OpenBlock:
    """A block file held open. Survives its removal. Whoever opens it closes it."""

    __slots__ = ("_identity", "_source", "blob_id", "fd", "length", "number")

    def __init__(self, source: Source, blob_id: bytes, number: int, length: int, fd: int, who: Identity) -> None:
        self._source = source
        self._identity = who
        self.blob_id = blob_id
        self.number = number
        self.length = length
        self.fd = fd

    @classmethod
    def open(cls, source: Source, blob_id: bytes, size: int, number: int) -> "OpenBlock":
        """Open block `number` of a blob of `size` bytes.

        Raises:
            MissingBlob, CorruptBlock, TooManyOpenFiles, DiskFailed
        """
        layout, fs = source.layout, source.fs
        home, incoming = layout.home_block(blob_id, number), layout.incoming_block(blob_id, number)
        # Home again at the end: between the first two looks the block may have been moved.
        for path in (home, incoming, home):
            try:
                fd = fs.open(path, os.O_RDONLY)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise from_os_error(error, f"opening block {number} of blob {blob_id.hex()}") from error
            break
        else:
            raise MissingBlob(f"block {number} of blob {blob_id.hex()} is not on this node; restore it from a copy")
        length = block_length(size, layout.block_size, number)
        try:
            status = fs.fstat(fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                fs.close(fd)
            raise from_os_error(error, f"opening block {number} of blob {blob_id.hex()}") from error
        block = cls(source, blob_id, number, length, fd, identity(status))
        source.counters.add(open_blocks=1)
        if status.st_size != padded(length) + FOOTER_BYTES:
            block.close()
            raise block.corrupt(f"its file has {status.st_size} bytes instead of {padded(length) + FOOTER_BYTES}")
        return block

    def close(self) -> None:
        self._source.counters.add(open_blocks=-1)
        with contextlib.suppress(OSError):  # nothing was written through it: an error has nothing to tell
            self._source.fs.close(self.fd)

    def read(self, start: int, stop: int, *, wait: bool, into: bytearray | None = None) -> Buffer | None:
        """Bytes `start` to `stop` of the block, verified; None if that would need the disk and `wait` is False.

        Args:
            start, stop: Within the data.
            wait: Whether the disk may be waited for.
            into: Of `stop - start` bytes; used and returned where whole chunks are not needed instead.

        Raises:
            CorruptBlock, DiskFailed
        """
        state = self._state(wait=wait)
        if state is None:
            return None
        wanted = (1 << -(-stop // CHUNK)) - (1 << start // CHUNK)
        if state.verified & wanted == wanted:
            return self._pread(start, stop, wait=wait, into=into)
        # Whole chunks, the last with its padding.
        first = start // CHUNK * CHUNK
        end = min(-(-stop // CHUNK) * CHUNK, padded(self.length))
        data = self._pread(first, end, wait=wait, into=into)
        if data is None:
            return None
        view = memoryview(data)
        for offset in range(first, end, CHUNK):
            index = offset // CHUNK
            if not state.verified >> index & 1:
                if not matches(state.footer, index, view[offset - first : min(offset + CHUNK, end) - first]):
                    raise self.corrupt(f"chunk {index} fails its checksum")
                state.verified |= 1 << index
        return data if (first, end) == (start, stop) else view[start - first : stop - first]

    def verify(self, start: int, stop: int) -> None:
        """Verify what was not yet of the chunks that hold bytes `start` to `stop`. Waits for the disk.

        Raises:
            CorruptBlock, DiskFailed
        """
        for offset in range(start // CHUNK * CHUNK, stop, CHUNK):
            state = self._state(wait=True)
            if state is None or not state.verified >> offset // CHUNK & 1:
                self.read(offset, min(offset + CHUNK, self.length), wait=True)

    def corrupt(self, why: str) -> CorruptBlock:
        """The error to raise, counted; what was known about the block is forgotten."""
        self._source.counters.add(verify_failures=1)
        self._source.verified.forget(self.blob_id, self.number)
        return CorruptBlock(f"block {self.number} of blob {self.blob_id.hex()}: {why}; restore it from another copy")

    def _state(self, *, wait: bool) -> BlockState | None:
        state = self._source.verified.get(self.blob_id, self.number, self._identity)
        if state is not None:
            return state
        footer = self.read_footer(wait=wait)
        if footer is None:
            return None
        state = BlockState(self._identity, footer)
        self._source.verified.put(state)
        return state

    def read_footer(self, *, wait: bool) -> Footer | None:
        """The footer, if it is the one that this block must have; None if that would need the disk and may not.

        Raises:
            CorruptBlock, DiskFailed
        """
        page = self._pread(padded(self.length), padded(self.length) + FOOTER_BYTES, wait=wait)
        if page is None:
            return None
        try:
            footer = Footer.parse(page)
        except CorruptBlock as error:
            raise self.corrupt(str(error)) from error
        expected = (self.blob_id, self.number, self.length, self._source.layout.block_size)
        found = (footer.blob_id, footer.number, footer.length, footer.block_size)
        if found != expected:
            raise self.corrupt(
                f"its file holds block {footer.number} of blob {footer.blob_id.hex()}, {footer.length} bytes of at "
                f"most {footer.block_size}, where {self.length} of at most {expected[3]} were expected"
            )
        return footer

    def _pread(self, start: int, stop: int, *, wait: bool, into: bytearray | None = None) -> bytearray | None:
        data = into if into is not None and len(into) == stop - start else bytearray(stop - start)
        got = 0
        try:
            while got < len(data):
                more = self._source.fs.preadv(
                    self.fd, [memoryview(data)[got:]], start + got, 0 if wait else os.RWF_NOWAIT
                )
                got += more
                if more == 0:
                    raise self.corrupt(f"its file ends at {start + got}")
        except OSError as error:
            if not wait and error.errno in _NOT_CACHED:
                return None
            raise from_os_error(error, f"reading block {self.number} of blob {self.blob_id.hex()}") from error
        return data
