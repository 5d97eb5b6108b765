"""The format of a block file, without I/O.

A block file is

    data            `length` bytes from offset 0
    padding         zeros up to a multiple of 4096
    footer          one page of 4096 bytes

so that it can be written with O_DIRECT as it comes, mapped from offset 0, and sent with sendfile. The footer says whose
bytes these are and carries an xxh3 per 256 KiB chunk; the last chunk's covers the padding too, so that no bit of the
file is unguarded. Footer layout, little-endian:

    0     8   magic "TGRBLOCK"
    8     2   version (1)
    10    2   cipher (0: none; the tags below are zero)
    12    4   block size of the store
    16   16   blob id
    32    4   block number
    36    4   length of the data
    40    4   chunk size (262144)
    44    4   number of chunks
    48   8*c  xxh3-64 of each chunk
         16*c authentication tag of each chunk, for the cipher
         ...  zeros
    4088  8   xxh3-64 of the 4088 bytes before it

Deliberately absent: anything mutable. A block never changes after it is sealed.
"""

import struct
from dataclasses import dataclass
from typing import Final

import xxhash

from tigrislike.bytecache.errors import CorruptBlock

PAGE: Final = 4096
"""Unit of alignment. O_DIRECT needs the device's logical block size, which is 512 or 4096 on every disk in use."""
CHUNK: Final = 256 * 1024
"""Unit of verification: small enough that a 1-byte read of an unverified chunk costs about 50 us, large enough that
the checksums of a block fit in one page."""
FOOTER_BYTES: Final = PAGE
MAX_BLOCK_SIZE: Final = 32 * 1024 * 1024
"""The largest block whose chunk checksums and tags fit in the footer's page, rounded down to a power of two."""
ID_BYTES: Final = 16

_MAGIC: Final = b"TGRBLOCK"
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<8sHHI16sIIII")
_TAG_BYTES: Final = 16
_CHECKSUM: Final = struct.Struct("<Q")


def padded(length: int) -> int:
    """`length` rounded up to whole pages: where the footer of a block with that much data starts."""
    return -(-length // PAGE) * PAGE


def chunk_count(length: int) -> int:
    """How many checksummed chunks `length` bytes of data make."""
    return -(-length // CHUNK)


def block_count(size: int, block_size: int) -> int:
    """How many block files a blob of `size` bytes has. An empty blob has one, so that it exists."""
    return max(1, -(-size // block_size))


def block_length(size: int, block_size: int, number: int) -> int:
    """Bytes of data in block `number` of a blob of `size` bytes."""
    return max(0, min(block_size, size - number * block_size))


def checksum(data: bytes | bytearray | memoryview) -> int:
    """xxh3-64 of `data`."""
    return int(xxhash.xxh3_64_intdigest(data))


@dataclass(frozen=True, slots=True)
class Footer:
    """What a block file says about itself.

    Attributes:
        blob_id: 16 bytes.
        number: Which block of the blob, from 0.
        length: Bytes of data, 0 to `block_size`.
        block_size: Of the store that wrote it, in bytes.
        checksums: xxh3-64 of each 256 KiB chunk, the last over data and padding; 8 little-endian bytes each.
    """

    blob_id: bytes
    number: int
    length: int
    block_size: int
    checksums: bytes

    def encode(self) -> bytes:
        """The footer's 4096 bytes."""
        count = len(self.checksums) // _CHECKSUM.size
        head = _HEAD.pack(_MAGIC, _VERSION, 0, self.block_size, self.blob_id, self.number, self.length, CHUNK, count)
        body = (head + self.checksums).ljust(FOOTER_BYTES - _CHECKSUM.size, b"\0")
        return body + _CHECKSUM.pack(checksum(body))

    @classmethod
    def parse(cls, page: bytes | bytearray | memoryview) -> "Footer":
        """Read a footer back.

        Raises:
            CorruptBlock: `page` is not exactly a footer that this version wrote; the message says why.
        """
        if len(page) != FOOTER_BYTES:
            raise CorruptBlock(f"the footer has {len(page)} bytes instead of {FOOTER_BYTES}")
        body = memoryview(page)[: -_CHECKSUM.size]
        magic, version, cipher, block_size, blob_id, number, length, chunk, count = _HEAD.unpack_from(page)
        if magic != _MAGIC:
            raise CorruptBlock("the footer's magic is wrong: this is not a block file, or its end is damaged")
        if checksum(body) != _CHECKSUM.unpack_from(page, FOOTER_BYTES - _CHECKSUM.size)[0]:
            raise CorruptBlock("the footer fails its own checksum")
        if version != _VERSION:
            raise CorruptBlock(f"the footer has version {version}; this software reads version {_VERSION}")
        if cipher != 0:
            raise CorruptBlock(f"the block is encrypted with cipher {cipher}, which this software does not know")
        fits = chunk == CHUNK and length <= block_size <= MAX_BLOCK_SIZE and block_size > 0
        if not fits or count != chunk_count(length):
            raise CorruptBlock(
                f"the footer contradicts itself: {length} bytes in {count} chunks of {chunk}, blocks of {block_size}"
            )
        if any(page[_HEAD.size + 8 * count :][: -_CHECKSUM.size]):
            raise CorruptBlock("the footer has authentication tags or trailing bytes where there must be zeros")
        return cls(blob_id, number, length, block_size, bytes(body[_HEAD.size : _HEAD.size + _CHECKSUM.size * count]))


def chunk_checksum(data: bytes | bytearray | memoryview) -> bytes:
    """What `Footer.checksums` holds for a chunk; `data` includes the padding if the chunk is the last."""
    return _CHECKSUM.pack(checksum(data))


def matches(footer: Footer, index: int, data: bytes | bytearray | memoryview) -> bool:
    """Whether `data`, with its padding if it is the last, is chunk `index` as it was written."""
    return footer.checksums[_CHECKSUM.size * index :][: _CHECKSUM.size] == chunk_checksum(data)
