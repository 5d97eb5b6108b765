"""The blocking half of writing a blob: turns units of bytes into sealed block files. Runs on worker threads.

Each unit lies in an aligned buffer from the moment it is received; it is given to the digest, checksummed and written
from there. New files are written with O_DIRECT: that costs a small fraction of the CPU that fresh page cache does
(bench/blocks.py measures it), and an upload does not push out what is being read. A filesystem that refuses O_DIRECT
gets ordinary writes from then on, whose pages are let go of once they are on the disk.

Space is claimed before it is used, and evicted for, block by block: who announces much and sends little pushes out
little. Where a blob's size is known, a disk that is too small for it says so before the first byte is written; and the
file of each block is allocated at once, so that blocks that grow side by side do not lie in pieces. Blocks are synced
in groups: the filesystem commits the names and sizes of a group at once, which leaves the syncs after the first little
to do.
"""

import contextlib
import errno
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from tigrislike.bytecache.errors import BytesError, DiskFull, from_os_error
from tigrislike.bytecache.filesystem import FileSystem, write_all
from tigrislike.bytecache.footer import (
    CHUNK,
    FOOTER_BYTES,
    Footer,
    block_count,
    block_length,
    chunk_checksum,
    padded,
)
from tigrislike.bytecache.incoming import Incoming, NamesSync
from tigrislike.bytecache.layout import Layout
from tigrislike.bytecache.statistics import Counters

T = TypeVar("T")

Digest = Callable[[memoryview], object]
"""Called on a worker thread with each piece of a blob, in order. The buffer is reused after the call. What it raises
fails the upload."""

UNIT: Final = 1024 * 1024
"""Most bytes written at once: long enough to hide the cost of a thread hop, short enough to overlap with receiving."""
_SMALL_UNIT: Final = 64 * 1024
"""Buffers come in this size too, for the many blobs that are smaller than a unit."""
_KEPT_BUFFERS: Final = 32
"""Of each size, while nobody uses them."""
_SYNC_GROUP: Final = 8
"""Blocks of one upload that wait for their sync, each with a descriptor: at 8 MiB a sync every 64 MiB."""
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(slots=True)
class Unit:
    """Consecutive bytes of one block on their way to disk.

    Attributes:
        buffer: Page-aligned, with room for padding and a footer behind `capacity`.
        capacity: Most bytes of data it is to take.
        length: Bytes of data in it.
    """

    buffer: memoryview
    capacity: int
    length: int = 0

    @property
    def data(self) -> memoryview:
        return self.buffer[: self.length]


class Buffers:
    """Page-aligned memory for units, reused: on a virtual machine a fresh page costs more than writing to it."""

    def __init__(self) -> None:
        self._free: dict[int, list[memoryview]] = {_SMALL_UNIT: [], UNIT: []}
        self._lock = threading.Lock()

    def take(self, capacity: int) -> Unit:
        """An empty unit for `capacity` bytes, at most UNIT."""
        size = _SMALL_UNIT if capacity <= _SMALL_UNIT else UNIT
        with self._lock:
            free = self._free[size]
            buffer = free.pop() if free else None
        return Unit(buffer or memoryview(mmap.mmap(-1, size + FOOTER_BYTES)), capacity)

    def give(self, unit: Unit) -> None:
        """Take back the memory of a unit that nobody reads or writes any more."""
        with self._lock:
            free = self._free[len(unit.buffer) - FOOTER_BYTES]
            if len(free) < _KEPT_BUFFERS:
                free.append(unit.buffer)


@dataclass(slots=True)
class Disk:
    """What all writers of a store share.

    Attributes:
        fs: The system calls.
        layout: Where things lie.
        reserve_bytes: Space on the filesystem that no upload may use.
        counters: The store's.
        make_room: Asked for so many bytes beyond the reserve before an upload is refused for want of them; answers how
            many it has freed. None where nothing can be evicted.
        could_make_room: Whether that would get so many bytes.
        direct: Whether to try O_DIRECT; turned off by the first refusal.
        preallocate: Whether to try fallocate; turned off by the first refusal.
        buffers: Memory for units.
        names: The sync of `incoming/` that uploads share.
        held: Directories of finished blobs whose fate is not yet known, by blob id.
    """

    fs: FileSystem
    layout: Layout
    reserve_bytes: int
    counters: Counters
    make_room: Callable[[int], int] | None = None
    could_make_room: Callable[[int], bool] | None = None
    direct: bool = True
    preallocate: bool = True
    buffers: Buffers = field(default_factory=Buffers)
    held: dict[bytes, Incoming] = field(default_factory=dict)
    names: NamesSync = field(init=False)

    def __post_init__(self) -> None:
        self.names = NamesSync(self.fs, self.layout)

    def claim(self, wanted_bytes: int) -> None:
        """See that so many bytes fit beside the reserve, evicting what must go for it.

        Raises:
            DiskFull: They do not.
        """
        refusal = self._refusal(wanted_bytes)
        if refusal is not None and self.evict(wanted_bytes):
            refusal = self._refusal(wanted_bytes)
        if refusal is not None:
            raise refusal

    def check(self, wanted_bytes: int) -> None:
        """See that so many bytes fit beside the reserve, or would if what can be evicted were.

        Raises:
            DiskFull: They do not.
        """
        refusal = self._refusal(wanted_bytes)
        if refusal is None:
            return
        with contextlib.suppress(BytesError):  # it is the upload's want of space that is reported
            if self.could_make_room is not None and self.could_make_room(wanted_bytes):
                return
        raise refusal

    def discard(self, incoming: Incoming) -> None:
        """Remove an upload. What the disk will not let go of stays, unlocked, for a sweeper."""
        self.counters.add(uploads=-1)
        try:
            incoming.discard()
        except OSError:
            incoming.release()

    def _refusal(self, wanted_bytes: int) -> DiskFull | None:
        """What there is to say against so many bytes more."""
        space = self.fs.space(self.layout.root)
        reserve = space.reserve(self.reserve_bytes)
        if space.available_bytes - wanted_bytes >= reserve:
            return None
        return DiskFull(
            f"{self.layout.root} has {space.available_bytes} bytes available, keeps {reserve} in reserve and is asked "
            f"for {wanted_bytes}; free space on its filesystem"
        )

    def evict(self, wanted_bytes: int) -> bool:
        """Ask for room; whether any was made."""
        if self.make_room is None:
            return False
        try:
            return self.make_room(wanted_bytes) > 0
        except BytesError:
            return False  # it is the upload's want of space that is reported


class BlockSealer:
    """Writes the blocks of one blob, one call at a time, on any thread.

    Args:
        disk: The store's.
        blob_id: 16 bytes.
        digest: Called with each unit before it is written.
        size: Most bytes that the blob can have, if it is known beforehand.
        create: Makes the directory.
    """

    def __init__(
        self,
        disk: Disk,
        blob_id: bytes,
        digest: Digest | None,
        size: int | None = None,
        create: Callable[[FileSystem, Layout, bytes], Incoming] = Incoming.create,
    ) -> None:
        self.buffers = disk.buffers
        self._disk = disk
        self._fs = disk.fs
        self._blob_id = blob_id
        self._digest = digest
        self._size = size
        self._create_directory = create
        self._incoming: Incoming | None = None
        self._sealed = False
        self._unsynced: list[int] = []  # descriptors of sealed blocks
        # Of the block being written: its file and whether that is past the page cache, number, bytes, checksums so far.
        self._fd = -1
        self._direct = False
        self._number = 0
        self._length = 0
        self._checksums = b""

    def write(self, units: Sequence[Unit], last: bool) -> None:
        """Write `units`, of which none crosses a block boundary.

        Every unit but the very last of a blob must be a multiple of 256 KiB long or end its block. With `last`, seal
        the blob and make it durable, names included; its locked directory is then in `Disk.held`.

        Raises:
            BytesError: The disk refused; `discard` is due.
            Exception: Whatever the digest raised; likewise.
        """
        try:
            if self._incoming is None:
                if self._size is not None:
                    footers = block_count(self._size, self._disk.layout.block_size) * FOOTER_BYTES
                    self._disk.check(padded(self._size) + footers)
                self._incoming = self._create_directory(self._fs, self._disk.layout, self._blob_id)
                self._disk.counters.add(uploads=1)
            for index, unit in enumerate(units):
                self._write_unit(unit, seal=last and index == len(units) - 1)
            if last:
                if self._fd >= 0 or self._number == 0:
                    unit = self.buffers.take(0)
                    try:
                        self._write_unit(unit, seal=True)
                    finally:
                        self.buffers.give(unit)
                self._sync_blocks()
                self._incoming.sync(self._number, self._disk.names)
                self._disk.held[self._blob_id] = self._incoming
                self._sealed = True
        except OSError as error:
            raise from_os_error(error, f"writing block {self._number} of blob {self._blob_id.hex()}") from error

    def discard(self) -> None:
        """Remove all that was written, unless it has been published or released since.

        What the disk will not let go of stays, unlocked, for a sweeper.
        """
        if self._fd >= 0:
            self._unsynced.append(self._fd)
            self._fd = -1
        while self._unsynced:
            with contextlib.suppress(OSError):  # the file is about to be removed
                self._fs.close(self._unsynced.pop())
        incoming, self._incoming = self._incoming, None
        if incoming is not None and (not self._sealed or self._disk.held.get(self._blob_id) is incoming):
            self._disk.held.pop(self._blob_id, None)
            self._disk.discard(incoming)

    def _write_unit(self, unit: Unit, *, seal: bool) -> None:
        buffer, length = unit.buffer, unit.length
        if length and self._digest is not None:
            self._digest(unit.data)
        end = padded(length)
        if end > length:
            buffer[length:end] = bytes(end - length)
        for start in range(0, end, CHUNK):
            self._checksums += chunk_checksum(buffer[start : min(start + CHUNK, end)])
        if self._fd < 0:
            self._open_block(unit)
        offset = self._length
        self._length += length
        if seal or self._length == self._disk.layout.block_size:
            footer = Footer(self._blob_id, self._number, self._length, self._disk.layout.block_size, self._checksums)
            buffer[end : end + FOOTER_BYTES] = footer.encode()
            self._pwrite(buffer[: end + FOOTER_BYTES], padded(offset))
            self._unsynced.append(self._fd)
            self._fd = -1
            self._number += 1
            self._length = 0
            self._checksums = b""
            if len(self._unsynced) == _SYNC_GROUP:
                self._sync_blocks()
        else:
            self._pwrite(buffer[:end], offset)
        self._disk.counters.add(bytes_written=length)

    def _sync_blocks(self) -> None:
        for fd in self._unsynced:
            self._fs.fdatasync(fd)
            if not self._disk.direct:  # an upload is not to push out what is being read
                self._fs.fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        while self._unsynced:
            self._fs.close(self._unsynced.pop())

    def _open_block(self, first: Unit) -> None:
        disk = self._disk
        block_size = disk.layout.block_size
        length = block_size if self._size is None else block_length(self._size, block_size, self._number)
        disk.claim(padded(length) + FOOTER_BYTES)
        assert self._incoming is not None
        self._fd = self._create(f"{self._incoming.path}/{self._number}")
        if self._size is None or not disk.preallocate:
            return
        if length > first.length:  # what comes in one write is allocated by it
            reserve = padded(length) + FOOTER_BYTES
            disk.preallocate = self._with_room(reserve, lambda: self._fs.fallocate(self._fd, reserve))

    def _create(self, path: str) -> int:
        disk = self._disk
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        if disk.direct:
            try:
                fd = self._fs.open(path, flags | os.O_DIRECT)
                self._direct = True
                return fd
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            disk.direct = False
            # A filesystem without O_DIRECT makes the file first and refuses then.
            with contextlib.suppress(FileNotFoundError):
                self._fs.unlink(path)
        self._direct = False
        return self._fs.open(path, flags)

    def _pwrite(self, data: memoryview, offset: int) -> None:
        try:
            self._with_room(len(data), lambda: write_all(self._fs, self._fd, data, offset))
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
            # Opened with O_DIRECT but not written: the device wants another alignment than pages.
            self._disk.direct = self._direct = False
            self._fs.drop_direct(self._fd)
            write_all(self._fs, self._fd, data, offset)

    def _with_room(self, wanted_bytes: int, attempt: Callable[[], T]) -> T:
        """Do what takes space; once more where there is none and some can be made."""
        try:
            return attempt()
        except OSError as error:
            if error.errno not in _NO_SPACE or not self._disk.evict(wanted_bytes):
                raise
        return attempt()
