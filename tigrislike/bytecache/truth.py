"""What really lies on the disk, read from names and footers: for fsck and for deep checks, never for serving.

Nothing here trusts what the process remembers, and nothing here changes anything. All of it blocks.
"""

import contextlib
import mmap
import os
from collections import defaultdict
from dataclasses import dataclass

from tigrislike.bytecache.device import DeviceReader
from tigrislike.bytecache.errors import CorruptBlock
from tigrislike.bytecache.filesystem import FileSystem
from tigrislike.bytecache.footer import CHUNK, FOOTER_BYTES, Footer, matches, padded
from tigrislike.bytecache.layout import Layout, parse_blob_name, parse_block_name, parse_number
from tigrislike.bytecache.reading import Local, OpenBlock, Place


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob as the disk has it.

    Attributes:
        blob_id: 16 bytes, from the name.
        size: Bytes of data that the readable footers promise.
        disk_bytes: Bytes of its files, padding and footers included.
        place: "home", or "incoming" while it is not published.
        blocks: Block numbers present, ascending.
        damage: One line for each thing that is wrong; empty if names and footers agree. Data is not read.
    """

    blob_id: bytes
    size: int
    disk_bytes: int
    place: Place
    blocks: tuple[int, ...]
    damage: tuple[str, ...]


def scan_shard(fs: FileSystem, layout: Layout, path: str) -> list[StoredBlob]:
    """The blobs in one directory of `home/`. Files with foreign names are ignored."""
    numbers: defaultdict[bytes, list[int]] = defaultdict(list)
    for name in fs.listdir(path):
        if (block := parse_block_name(name)) is not None:
            numbers[block[0]].append(block[1])
    blobs = []
    for blob_id, found in sorted(numbers.items()):
        files = {number: f"{path}/{blob_id.hex()}.{number}" for number in sorted(found)}
        blobs.append(_describe(fs, layout, blob_id, "home", files))
    return blobs


def scan_incoming(fs: FileSystem, layout: Layout) -> list[StoredBlob]:
    """The blobs in `incoming/`, live or dead. A block that is being written counts as damaged."""
    blobs = []
    for name in sorted(fs.listdir(layout.incoming)):
        blob_id = parse_blob_name(name)
        if blob_id is None:
            continue
        with contextlib.suppress(FileNotFoundError):  # published or swept just now
            numbers = sorted(n for n in map(parse_number, fs.listdir(f"{layout.incoming}/{name}")) if n is not None)
            files = {number: f"{layout.incoming}/{name}/{number}" for number in numbers}
            blobs.append(_describe(fs, layout, blob_id, "incoming", files))
    return blobs


def verify_block(local: Local, blob_id: bytes, size: int, number: int) -> None:
    """Read one block from the device, past the page cache if the filesystem can, and verify every byte of the file.

    Raises:
        MissingBlob, CorruptBlock; OSError as the system calls do.
    """
    block = OpenBlock.open(local, blob_id, size, number)
    try:
        verify_open(local, block)
    finally:
        block.close()


def verify_open(local: Local, block: OpenBlock) -> None:
    """The same for a block that is open."""
    footer = block.read_footer()
    buffer = memoryview(mmap.mmap(-1, CHUNK))
    device = DeviceReader(local.fs, block.fd)
    for start in range(0, padded(block.length), CHUNK):
        chunk = buffer[: min(CHUNK, padded(block.length) - start)]
        if device.read(chunk, start) != len(chunk):
            raise block.damaged(f"its file ends inside chunk {start // CHUNK}")
        if not matches(footer, start // CHUNK, chunk):
            raise block.damaged(f"chunk {start // CHUNK} fails its checksum")


def _describe(fs: FileSystem, layout: Layout, blob_id: bytes, place: Place, files: dict[int, str]) -> StoredBlob:
    size = disk_bytes = 0
    damage = []
    last = max(files, default=-1)
    for number in range(last + 1):
        if number not in files:
            damage.append(f"block {number} is missing")
            continue
        try:
            file_bytes, footer = _read_footer(fs, files[number])
        except FileNotFoundError:
            damage.append(f"block {number} went away")
            continue
        except OSError as error:
            damage.append(f"block {number} cannot be read: {error.strerror}")
            continue
        disk_bytes += file_bytes
        if isinstance(footer, CorruptBlock):
            damage.append(f"block {number}: {footer}")
            continue
        size += footer.length
        if (footer.blob_id, footer.number) != (blob_id, number):
            damage.append(f"block {number} holds block {footer.number} of blob {footer.blob_id.hex()}")
        elif footer.block_size != layout.block_size or (number < last and footer.length != layout.block_size):
            damage.append(f"block {number} has {footer.length} bytes of at most {footer.block_size}")
        elif file_bytes != padded(footer.length) + FOOTER_BYTES:
            damage.append(f"block {number} has a file of {file_bytes} bytes for {footer.length} of data")
    return StoredBlob(blob_id, size, disk_bytes, place, tuple(files), tuple(damage))


def _read_footer(fs: FileSystem, path: str) -> tuple[int, Footer | CorruptBlock]:
    """(bytes of the file, its footer or what is wrong with it)."""
    fd = fs.open(path, os.O_RDONLY)
    try:
        file_bytes = fs.fstat(fd).st_size
        page = bytearray(FOOTER_BYTES)
        got = fs.preadv(fd, [page], file_bytes - FOOTER_BYTES, 0) if file_bytes >= FOOTER_BYTES else file_bytes
        try:
            return file_bytes, Footer.parse(page[:got])
        except CorruptBlock as error:
            return file_bytes, error
    finally:
        fs.close(fd)
