"""Which chunks of which block files were verified since the node started: a table that its processes share.

A slot holds a tag, a bit for each chunk, and a checksum of both. The tag is a hash of who a block file is: blob id,
number, inode, size and times. So what is known is void as soon as the file under a name is another one or was changed,
and nothing has to be told to anybody. A tag has one slot, which the last writer gets.

The table is lossy on purpose, and has no locks: a slot that was taken by another tag, or torn by two writers, is known
by its checksum and means "not verified". Losing one costs one more verification of the chunk, and nothing else; a bit
that nobody set never appears (2^-64 per torn slot). Nothing outlives the processes: a restart verifies all anew.
"""

import mmap
import os
import struct
from typing import Final

import xxhash

SHARED_SLOTS: Final = 1 << 20
"""Of a node: 8 TiB of full blocks. 40 MiB of memory, taken as slots come into use."""
OWN_SLOTS: Final = 1 << 14
"""Of a process that stands alone, such as a command."""

Identity = tuple[int, int, int, int]
"""(inode, size, modification time in ns, change time in ns). The last cannot be set by anybody: a file whose content
was changed has another, whatever was done to hide it."""

_TAG: Final = struct.Struct("<16sIQQqq")
_SLOT: Final = struct.Struct("<16s16sQ")
_BODY: Final = _SLOT.size - 8
_BITS: Final = 16
_EMPTY: Final = bytes(_SLOT.size)


def identity(status: os.stat_result) -> Identity:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def tag_of(blob_id: bytes, number: int, who: Identity) -> bytes:
    """The 16 bytes that stand for a block file as it is now."""
    return xxhash.xxh3_128_digest(_TAG.pack(blob_id, number, *who))


class Verified:
    """The table. Made before the fork it is shared by all processes; any thread of any of them may use it."""

    def __init__(self, slots: int = OWN_SLOTS) -> None:
        self._slots = slots
        self._table = memoryview(mmap.mmap(-1, slots * _SLOT.size))

    @classmethod
    def shared(cls, slots: int = SHARED_SLOTS) -> "Verified":
        """A table for all processes of a node, which are forked from the one that makes it."""
        return cls(slots)

    def get(self, tag: bytes) -> int:
        """The chunks of the file that were verified, as bits: bit i is chunk i."""
        start = self._start(tag)
        slot = bytes(self._table[start : start + _SLOT.size])
        found, bits, checksum = _SLOT.unpack(slot)
        if found != tag or checksum != xxhash.xxh3_64_intdigest(slot[:_BODY]):
            return 0
        return int.from_bytes(bits, "little")

    def add(self, tag: bytes, bits: int) -> None:
        """Add chunks that were verified. Who else adds some at the same moment may lose his, or make this lose its."""
        body = tag + (bits | self.get(tag)).to_bytes(_BITS, "little")
        start = self._start(tag)
        self._table[start : start + _SLOT.size] = body + xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")

    def forget(self, tag: bytes) -> None:
        """Have the file verified again, and whatever else its slot holds."""
        start = self._start(tag)
        self._table[start : start + _SLOT.size] = _EMPTY

    def _start(self, tag: bytes) -> int:
        return int.from_bytes(tag[:8], "little") % self._slots * _SLOT.size
