"""The blocking half of reading a blob: find a block file, check who it is, read a range, verify what was not yet.

Every function here can be told not to wait for the disk (`wait=False`): it then answers None instead of reading what
is not in the page cache, and may run on the event loop. Nothing unverified ever leaves.

What was verified is known of a file as it is (`verified.py`), so an open file is looked at again after each read, and
before each extent is given out: one that was changed meanwhile is verified anew. The errors of damage and of unreadable
sectors carry the file they were met in, so that whoever catches them can drop or mend it.
"""

import contextlib
import errno
import mmap
import os
import threading
from dataclasses import dataclass, field
from typing import Final, Literal

from tigrislike.bytecache.errors import BytesError, CorruptBlock, DiskFailed, MissingBlob, from_os_error
from tigrislike.bytecache.filesystem import FileSystem
from tigrislike.bytecache.footer import CHUNK, FOOTER_BYTES, Footer, block_length, matches, padded
from tigrislike.bytecache.layout import Layout
from tigrislike.bytecache.statistics import Counters
from tigrislike.bytecache.verified import Identity, Verified, identity, tag_of

Buffer = bytes | bytearray | memoryview
"""What reads give: memory of its own, which nobody else changes."""
Place = Literal["home", "cache", "incoming"]
"""A tree of this node's disk."""

_NOT_CACHED: Final = frozenset({errno.EAGAIN, errno.EOPNOTSUPP})
"""RWF_NOWAIT: the pages are not in the cache, or this filesystem cannot tell."""
BAD_SECTOR: Final = frozenset(
    {errno.EIO, errno.ENODATA, errno.EBADMSG, errno.EUCLEAN, errno.EILSEQ, errno.EREMOTEIO, errno.ETIMEDOUT}
)
"""What devices and filesystems answer for bytes that they have lost."""
_MAX_KNOWN: Final = 65536
"""Half a TiB of 8 MiB blocks, at about 200 bytes of memory each."""


class DamagedBlock(CorruptBlock):
    """A CorruptBlock that says in which file it was found."""

    def __init__(self, message: str, place: Place, who: Identity) -> None:
        super().__init__(message)
        self.place: Final = place
        self.who: Final = who


class UnreadableBlock(DiskFailed):
    """A DiskFailed that says which file could not be read: a bad sector is damage like any other."""

    def __init__(self, message: str, place: Place, who: Identity) -> None:
        super().__init__(message)
        self.place: Final = place
        self.who: Final = who


class Known:
    """Blocks that this process opened lately, and where: their names and inodes are in the kernel's caches, so that
    opening them again takes microseconds. Bounded; the oldest are forgotten."""

    def __init__(self, most: int = _MAX_KNOWN) -> None:
        self._most = most
        self._places: dict[tuple[bytes, int], Place] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, block: tuple[bytes, int]) -> bool:
        return block in self._places

    def place(self, blob_id: bytes, number: int) -> Place | None:
        return self._places.get((blob_id, number))

    def add(self, blob_id: bytes, number: int, place: Place) -> None:
        if self._places.get((blob_id, number)) == place:
            return
        with self._lock:
            self._places[blob_id, number] = place
            if len(self._places) > self._most:
                del self._places[next(iter(self._places))]

    def forget(self, blob_id: bytes, number: int) -> None:
        with self._lock:
            self._places.pop((blob_id, number), None)


@dataclass(frozen=True, slots=True)
class Local:
    """What all readers of a store share to read what is here.

    Attributes:
        fs: The system calls.
        layout: Where things lie.
        counters: The store's.
        verified: Which chunks were verified, in any process of the node.
        always: Verify at every read, whatever was verified before.
        known: Blocks that may be opened on the event loop.
    """

    fs: FileSystem
    layout: Layout
    counters: Counters
    verified: Verified
    always: bool = False
    known: Known = field(default_factory=Known)

    def path(self, place: Place, blob_id: bytes, number: int) -> str:
        if place == "home":
            return self.layout.home_block(blob_id, number)
        if place == "cache":
            return self.layout.cache_block(blob_id, number)
        return self.layout.incoming_block(blob_id, number)


_LOOKS: Final[tuple[Place, ...]] = ("home", "cache", "incoming", "home")
"""Home again at the end: an upload's block may have been moved there between the first look and the third."""


class OpenBlock:
    """A block file held open. Survives its removal. Whoever opens it closes it; one thread at a time uses it.

    Attributes:
        fd: Its descriptor.
        place: The tree it was found in.
        who: Who it was when it was last looked at.
    """

    __slots__ = ("_bits", "_footer", "_local", "_tag", "blob_id", "fd", "length", "number", "place", "who")

    def __init__(self, local: Local, blob_id: bytes, number: int, length: int, place: Place, fd: int) -> None:
        self._local = local
        self.blob_id = blob_id
        self.number = number
        self.length = length
        self.place: Place = place
        self.fd = fd
        self.who: Identity = (0, 0, 0, 0)
        self._tag = b""
        self._bits = 0
        self._footer: Footer | None = None

    @classmethod
    def open(cls, local: Local, blob_id: bytes, size: int, number: int) -> "OpenBlock":
        """Open block `number` of a blob of `size` bytes.

        Raises:
            MissingBlob, CorruptBlock, TooManyOpenFiles, DiskFailed
        """
        for place in _LOOKS:
            try:
                fd = local.fs.open(local.path(place, blob_id, number), os.O_RDONLY)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise from_os_error(error, f"opening block {number} of blob {blob_id.hex()}") from error
            break
        else:
            local.known.forget(blob_id, number)
            raise MissingBlob(f"block {number} of blob {blob_id.hex()} is not on this node; restore it from a copy")
        block = cls(local, blob_id, number, block_length(size, local.layout.block_size, number), place, fd)
        local.counters.add(open_blocks=1)
        try:
            block._look()
        except BytesError:
            block.close()
            raise
        local.known.add(blob_id, number, place)
        return block

    def close(self) -> None:
        self._local.counters.add(open_blocks=-1)
        with contextlib.suppress(OSError):  # nothing was written through it: an error has nothing to tell
            self._local.fs.close(self.fd)

    def read(self, start: int, stop: int, *, wait: bool, into: bytearray | None = None) -> Buffer | None:
        """Bytes `start` to `stop` of the block, verified; None if that would need the disk and `wait` is False.

        Args:
            start, stop: Within the data.
            wait: Whether the disk may be waited for.
            into: Of `stop - start` bytes; used and returned where whole chunks are not needed instead.

        Raises:
            CorruptBlock, DiskFailed
        """
        if self._is_known(start, stop):
            data = self._pread(start, stop, wait=wait, into=into)
            # Looked at after the bytes were read: what was verified still is what these are.
            if data is None or not self._look():
                return data
        return self._read_and_verify(start, stop, wait=wait, into=into)

    def is_verified(self, start: int, stop: int) -> bool:
        """Whether the file is, at this moment, one in which bytes `start` to `stop` were verified. Takes microseconds.

        Raises:
            CorruptBlock: It has another size.
            DiskFailed
        """
        self._look()
        return self._is_known(start, stop)

    def verify(self, start: int, stop: int) -> None:
        """Verify what was not yet of the chunks that hold bytes `start` to `stop`. Waits for the disk.

        Raises:
            CorruptBlock, DiskFailed
        """
        self._look()
        buffer = _scratch()
        for index in range(start // CHUNK, -(-stop // CHUNK)):
            if self._is_known(index * CHUNK, index * CHUNK + 1):
                continue
            footer = self._read_footer(wait=True)
            assert footer is not None
            chunk = buffer[: min(CHUNK, padded(self.length) - index * CHUNK)]
            self._fill(chunk, index * CHUNK, 0)
            if not matches(footer, index, chunk):
                raise self.damaged(f"chunk {index} fails its checksum")
            self._remember(1 << index, len(chunk))

    def read_footer(self) -> Footer:
        """The footer, read anew, if it is the one that this block must have. Waits for the disk.

        Raises:
            CorruptBlock, DiskFailed
        """
        self._footer = None
        footer = self._read_footer(wait=True)
        assert footer is not None
        return footer

    def is_still(self, who: Identity) -> bool:
        """Whether the file is `who` at this moment. Takes microseconds."""
        try:
            return identity(self._local.fs.fstat(self.fd)) == who
        except OSError:
            return False  # the look that follows says why

    def forget(self) -> None:
        """Have all of the file verified again."""
        self._bits = 0
        self._local.verified.forget(self._tag)

    def _look(self) -> bool:
        """See who the file is now; whether that is somebody else than before."""
        try:
            status = self._local.fs.fstat(self.fd)
        except OSError as error:
            raise from_os_error(error, f"opening block {self.number} of blob {self.blob_id.hex()}") from error
        who = identity(status)
        if who == self.who:
            return False
        self.who = who
        self._tag = tag_of(self.blob_id, self.number, who)
        self._bits = 0
        self._footer = None
        expected = padded(self.length) + FOOTER_BYTES
        if status.st_size != expected:
            raise self.damaged(f"its file has {status.st_size} bytes instead of {expected}")
        return True

    def _is_known(self, start: int, stop: int) -> bool:
        """Whether the chunks of these bytes are verified, of the file as it was when it was last looked at."""
        wanted = (1 << -(-stop // CHUNK)) - (1 << start // CHUNK)
        if self._bits & wanted != wanted and not self._local.always:
            self._bits |= self._local.verified.get(self._tag)
        return self._bits & wanted == wanted

    def _remember(self, bits: int, verified_bytes: int) -> None:
        self._local.counters.add(verified_bytes=verified_bytes)
        if not self._local.always:
            self._bits |= bits
            self._local.verified.add(self._tag, bits)

    def _read_and_verify(self, start: int, stop: int, *, wait: bool, into: bytearray | None) -> Buffer | None:
        """Whole chunks, the last with its padding, of which what was asked for is given."""
        footer = self._read_footer(wait=wait)
        if footer is None:
            return None
        first = start // CHUNK * CHUNK
        end = min(-(-stop // CHUNK) * CHUNK, padded(self.length))
        data = self._pread(first, end, wait=wait, into=into)
        if data is None:
            return None
        view = memoryview(data)
        for offset in range(first, end, CHUNK):
            if not matches(footer, offset // CHUNK, view[offset - first : min(offset + CHUNK, end) - first]):
                raise self.damaged(f"chunk {offset // CHUNK} fails its checksum")
        self._remember((1 << -(-end // CHUNK)) - (1 << first // CHUNK), end - first)
        return data if (first, end) == (start, stop) else view[start - first : stop - first]

    def _read_footer(self, *, wait: bool) -> Footer | None:
        if self._footer is not None:
            return self._footer
        page = self._pread(padded(self.length), padded(self.length) + FOOTER_BYTES, wait=wait)
        if page is None:
            return None
        try:
            footer = Footer.parse(page)
        except CorruptBlock as error:
            raise self.damaged(str(error)) from error
        expected = (self.blob_id, self.number, self.length, self._local.layout.block_size)
        found = (footer.blob_id, footer.number, footer.length, footer.block_size)
        if found != expected:
            raise self.damaged(
                f"its file holds block {footer.number} of blob {footer.blob_id.hex()}, {footer.length} bytes of at "
                f"most {footer.block_size}, where {self.length} of at most {expected[3]} were expected"
            )
        self._footer = footer
        return footer

    def _pread(self, start: int, stop: int, *, wait: bool, into: bytearray | None = None) -> bytearray | None:
        data = into if into is not None and len(into) == stop - start else bytearray(stop - start)
        return data if self._fill(memoryview(data), start, 0 if wait else os.RWF_NOWAIT) else None

    def _fill(self, view: memoryview, start: int, flags: int) -> bool:
        """Read until the buffer is full; False if the pages are not in the cache and `flags` forbid to wait."""
        try:
            while view:
                got = self._local.fs.preadv(self.fd, [view], start, flags)
                if got == 0:
                    raise self.damaged(f"its file ends at {start}")
                view, start = view[got:], start + got
        except OSError as error:
            if flags & os.RWF_NOWAIT and error.errno in _NOT_CACHED:
                return False
            raise self.unreadable(error) from error
        return True

    def unreadable(self, error: BaseException) -> BytesError:
        """The error to raise for one that reading the file gave. A bad sector is damage, and so is an early end: what
        was known about the file is void."""
        if not isinstance(error, OSError):
            return self.damaged(str(error))
        doing = f"reading block {self.number} of blob {self.blob_id.hex()}"
        if error.errno not in BAD_SECTOR:
            return from_os_error(error, doing)
        self.forget()
        return UnreadableBlock(f"{doing}: {error.strerror}", self.place, self.who)

    def damaged(self, why: str) -> DamagedBlock:
        """The error to raise, counted; what was known about the file is void."""
        self.forget()
        self._local.counters.add(verify_failures=1)
        message = f"block {self.number} of blob {self.blob_id.hex()}: {why}; restore it from another copy"
        return DamagedBlock(message, self.place, self.who)


_THREAD = threading.local()


def _scratch() -> memoryview:
    """This thread's buffer of a chunk: small enough to stay in the processor's cache, and never made anew."""
    buffer: memoryview | None = getattr(_THREAD, "buffer", None)
    if buffer is None:
        buffer = _THREAD.buffer = memoryview(mmap.mmap(-1, CHUNK))
    return buffer
