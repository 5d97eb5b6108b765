"""The blocking half of writing a blob: turns units of bytes into sealed block files. Runs on worker threads.

Each unit is copied into an aligned buffer, given to the digest, checksummed and written. New files are written with
O_DIRECT: that costs a small fraction of the CPU that fresh page cache does (bench/blocks.py measures it), and an upload
does not push out what is being read. A filesystem that refuses O_DIRECT gets ordinary writes from then on.

Any failure removes all that was written for the blob.
"""

import contextlib
import errno
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tigrislike.bytecache.errors import DiskFull, from_os_error
from tigrislike.bytecache.filesystem import FileSystem, write_all
from tigrislike.bytecache.footer import CHUNK, FOOTER_BYTES, Footer, chunk_checksum, padded
from tigrislike.bytecache.incoming import Incoming
from tigrislike.bytecache.layout import Layout
from tigrislike.bytecache.statistics import Counters

Digest = Callable[[memoryview], object]
"""Called on a worker thread with each piece of a blob, in order, before it is written. The buffer is reused after the
call. What it raises fails the upload."""

UNIT: Final = 1024 * 1024
"""Most bytes written at once: long enough to hide the cost of a thread hop, short enough to overlap with receiving."""


class AlignedBuffers:
    """Page-aligned buffers, reused: on a virtual machine a fresh page costs more than writing what it holds.

    One is in use per busy worker thread, and no more than that are ever made.
    """

    def __init__(self) -> None:
        self._free: list[memoryview] = []
        self._lock = threading.Lock()

    def take(self) -> memoryview:
        with self._lock:
            if self._free:
                return self._free.pop()
        return memoryview(mmap.mmap(-1, UNIT + FOOTER_BYTES))

    def give(self, buffer: memoryview) -> None:
        with self._lock:
            self._free.append(buffer)


@dataclass(slots=True)
class Disk:
    """What all writers of a store share.

    Attributes:
        fs: The system calls.
        layout: Where things lie.
        reserve_bytes: Space on the filesystem that no upload may use.
        counters: The store's.
        direct: Whether to try O_DIRECT; turned off by the first refusal.
        buffers: For the worker threads.
        held: Directories of finished blobs whose fate is not yet known, by blob id.
    """

    fs: FileSystem
    layout: Layout
    reserve_bytes: int
    counters: Counters
    direct: bool = True
    buffers: AlignedBuffers = field(default_factory=AlignedBuffers)
    held: dict[bytes, Incoming] = field(default_factory=dict)


class BlockSealer:
    """Writes the blocks of one blob, one call at a time, on any thread."""

    def __init__(self, disk: Disk, blob_id: bytes, digest: Digest | None) -> None:
        self._disk = disk
        self._fs = disk.fs
        self._blob_id = blob_id
        self._digest = digest
        self._incoming: Incoming | None = None
        self._fd = -1
        # Of the block being written: its number, bytes so far, checksums so far.
        self._number = 0
        self._length = 0
        self._checksums = b""

    def write(self, units: Sequence[Sequence[bytes | bytearray | memoryview]], last: bool) -> None:
        """Write `units`, each a list of pieces that together neither exceed `UNIT` nor cross a block boundary.

        Every unit but the very last of a blob must be `UNIT` bytes long or end its block. With `last`, seal the blob
        and make it durable, names included; its locked directory is then in `Disk.held`.

        Raises:
            BytesError: The disk refused. Everything written for this blob is gone.
            Exception: Whatever the digest raised; likewise.
        """
        try:
            if self._incoming is None:
                self._incoming = Incoming.create(self._fs, self._disk.layout, self._blob_id)
                self._disk.counters.add(uploads=1)
            for index, unit in enumerate(units):
                self._write_unit(unit, seal=last and index == len(units) - 1)
            if last:
                if self._fd >= 0 or self._number == 0:
                    self._write_unit((), seal=True)
                self._incoming.sync()
                self._disk.held[self._blob_id] = self._incoming
                self._incoming = None
        except OSError as error:
            self.discard()
            raise from_os_error(error, f"writing block {self._number} of blob {self._blob_id.hex()}") from error
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove all that was written, unless it has been published or released since.

        What the disk will not let go of stays, unlocked, for a sweeper.
        """
        self._close_block()
        incoming, self._incoming = self._incoming or self._disk.held.pop(self._blob_id, None), None
        if incoming is not None:
            self._disk.counters.add(uploads=-1)
            try:
                incoming.discard()
            except OSError:
                incoming.release()

    def _write_unit(self, pieces: Sequence[bytes | bytearray | memoryview], *, seal: bool) -> None:
        buffer = self._disk.buffers.take()
        try:
            length = 0
            for piece in pieces:
                buffer[length : length + len(piece)] = piece
                length += len(piece)
            if length and self._digest is not None:
                self._digest(buffer[:length])
            end = padded(length)
            buffer[length:end] = bytes(end - length)
            for start in range(0, end, CHUNK):
                self._checksums += chunk_checksum(buffer[start : min(start + CHUNK, end)])
            if self._fd < 0:
                self._open_block()
            offset = self._length
            self._length += length
            if seal or self._length == self._disk.layout.block_size:
                footer = Footer(
                    self._blob_id, self._number, self._length, self._disk.layout.block_size, self._checksums
                )
                buffer[end : end + FOOTER_BYTES] = footer.encode()
                self._pwrite(buffer[: end + FOOTER_BYTES], padded(offset))
                self._fs.fdatasync(self._fd)
                fd, self._fd = self._fd, -1
                self._fs.close(fd)
                self._number += 1
                self._length = 0
                self._checksums = b""
            else:
                self._pwrite(buffer[:end], offset)
        finally:
            self._disk.buffers.give(buffer)
        self._disk.counters.add(bytes_written=length)

    def _open_block(self) -> None:
        disk = self._disk
        space = self._fs.space(disk.layout.root)
        # A tenth of the volume at most, so that the default suits a small one too.
        reserve = min(disk.reserve_bytes, space.total_bytes // 10)
        if space.available_bytes - disk.layout.block_size < reserve:
            raise DiskFull(
                f"{disk.layout.root} has {space.available_bytes} bytes available and keeps {reserve} in reserve; "
                "free space on its filesystem"
            )
        path = disk.layout.incoming_block(self._blob_id, self._number)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        if disk.direct:
            try:
                self._fd = self._fs.open(path, flags | os.O_DIRECT)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            disk.direct = False
            # A filesystem without O_DIRECT makes the file first and refuses then.
            with contextlib.suppress(FileNotFoundError):
                self._fs.unlink(path)
        self._fd = self._fs.open(path, flags)

    def _pwrite(self, data: memoryview, offset: int) -> None:
        try:
            write_all(self._fs, self._fd, data, offset)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._disk.direct:
                raise
            # Opened with O_DIRECT but not written: the device wants another alignment than pages.
            self._disk.direct = False
            self._fs.drop_direct(self._fd)
            write_all(self._fs, self._fd, data, offset)

    def _close_block(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # the file is about to be removed
                self._fs.close(fd)
