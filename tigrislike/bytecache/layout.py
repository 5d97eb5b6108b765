"""Where things lie under a block store's root, and the file that says what the root is.

    format.json                     {"format": 1, "node": "<uuid hex>", "block_size": 8388608}
    home/<2 hex>/<blob hex>.<n>     durable blocks, never evicted
    incoming/<blob hex>/<n>         blocks of an upload not yet published; the directory is locked while its owner lives
    incoming/new-<hex>.<try>        such a directory before its lock is taken; holds nothing of worth
    cache/<2 hex>/<blob hex>.<n>    evictable copies of blocks; `<2 hex>` is made with the first block in it
    filling/<blob hex>.<n>          a block being fetched; locked while its filler lives, garbage after
    pins/<blob hex>                 empty; the blob's blocks in `cache/` are not evicted
    index.sqlite, -wal, -shm        what is in `cache/` and in which order to evict it; derived (`index.py`)

The block size is fixed when the root is made: with it, the file and offset of any byte follow from the blob id alone,
whether or not the blob's first block is here.

Opening is safe from several processes at once (they take turns by a lock on the root) and after a crash at any step. A
root of a newer format is refused. There is one format so far, so there is nothing to migrate from.
"""

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tigrislike.bytecache.errors import BlockSizeMismatch, FormatTooNew, NotABlockStore, from_os_error
from tigrislike.bytecache.filesystem import FileSystem, sync_directory, write_all
from tigrislike.bytecache.footer import ID_BYTES, MAX_BLOCK_SIZE, PAGE

FORMAT: Final = 1
_FORMAT_FILE: Final = "format.json"
_SHARDS: Final = tuple(f"{shard:02x}" for shard in range(256))


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths under one root.

    Attributes:
        root: Absolute path.
        node_id: 16 bytes made with the root; a wiped directory is a new node.
        block_size: Bytes of data in every block but a blob's last.
    """

    root: str
    node_id: bytes
    block_size: int

    @property
    def incoming(self) -> str:
        return f"{self.root}/incoming"

    def shards(self) -> tuple[str, ...]:
        """The directories that blocks in `home/` are spread over."""
        return tuple(f"{self.root}/home/{shard}" for shard in _SHARDS)

    def shard(self, blob_id: bytes) -> str:
        return f"{self.root}/home/{blob_id[:1].hex()}"

    def home_block(self, blob_id: bytes, number: int) -> str:
        name = blob_id.hex()
        return f"{self.root}/home/{name[:2]}/{name}.{number}"

    def incoming_blob(self, blob_id: bytes) -> str:
        return f"{self.root}/incoming/{blob_id.hex()}"

    def incoming_block(self, blob_id: bytes, number: int) -> str:
        return f"{self.root}/incoming/{blob_id.hex()}/{number}"

    @property
    def cache(self) -> str:
        return f"{self.root}/cache"

    def cache_shard(self, blob_id: bytes) -> str:
        return f"{self.root}/cache/{blob_id[:1].hex()}"

    def cache_block(self, blob_id: bytes, number: int) -> str:
        name = blob_id.hex()
        return f"{self.root}/cache/{name[:2]}/{name}.{number}"

    @property
    def filling(self) -> str:
        return f"{self.root}/filling"

    def filling_block(self, blob_id: bytes, number: int) -> str:
        return f"{self.root}/filling/{blob_id.hex()}.{number}"

    @property
    def pins(self) -> str:
        return f"{self.root}/pins"

    def pin(self, blob_id: bytes) -> str:
        return f"{self.root}/pins/{blob_id.hex()}"

    @property
    def index(self) -> str:
        return f"{self.root}/index.sqlite"


def parse_blob_name(name: str) -> bytes | None:
    """The blob id that a directory name in `incoming/` stands for; None for any other name."""
    if len(name) != 2 * ID_BYTES or name.strip("0123456789abcdef"):
        return None
    return bytes.fromhex(name)


def parse_number(name: str) -> int | None:
    """The block number that a name stands for; None for anything but plain decimal without leading zeros."""
    if not name.isascii() or not name.isdecimal() or (name != "0" and name.startswith("0")) or len(name) > 10:
        return None
    return int(name)


def parse_block_name(name: str) -> tuple[bytes, int] | None:
    """(blob id, block number) that a file name in home, cache or filling stands for; None for any other name."""
    stem, _, suffix = name.partition(".")
    blob_id, number = parse_blob_name(stem), parse_number(suffix)
    return None if blob_id is None or number is None else (blob_id, number)


def open_layout(fs: FileSystem, root: Path, block_size: int) -> Layout:
    """Open a root, making it if it is not there.

    Args:
        fs: The system calls to use.
        root: Directory; its missing parents are made too.
        block_size: In bytes, a multiple of 4096, at most 32 MiB.

    Raises:
        ValueError: `block_size` is out of range.
        FormatTooNew, NotABlockStore, BlockSizeMismatch: The directory is not one that this version may use so.
        DiskFull, DiskFailed: The filesystem refused.
    """
    if block_size <= 0 or block_size % PAGE or block_size > MAX_BLOCK_SIZE:
        raise ValueError(f"block_size must be a multiple of {PAGE} up to {MAX_BLOCK_SIZE}, not {block_size}")
    path = os.path.abspath(root)
    try:
        _make_directory(fs, path)
        fd = fs.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # Held for the few milliseconds of opening, so that two processes do not each invent a node id.
            fs.lock_waiting(fd)
            layout = _read_format(fs, path)
            if layout is None:
                layout = _create_format(fs, path, block_size)
            # Before the trees, for trees without a format file are refused; and always, not only when something was
            # made, for whoever made it may have died before this line.
            fs.fsync(fd)
            _make_trees(fs, path)
            fs.fsync(fd)
        finally:
            fs.close(fd)
    except OSError as error:
        raise from_os_error(error, f"opening the block store {path}") from error
    if layout.block_size != block_size:
        raise BlockSizeMismatch(
            f"{path} was made with blocks of {layout.block_size} bytes and keeps them; "
            f"ask for that block size instead of {block_size}, or use another directory"
        )
    return layout


def _make_directory(fs: FileSystem, path: str) -> None:
    """mkdir -p, each new name made durable in its parent."""
    try:
        fs.mkdir(path)
    except FileExistsError:
        return
    except FileNotFoundError:
        _make_directory(fs, os.path.dirname(path))
        _make_directory(fs, path)
        return
    sync_directory(fs, os.path.dirname(path))


def _read_format(fs: FileSystem, path: str) -> Layout | None:
    try:
        fd = fs.open(f"{path}/{_FORMAT_FILE}", os.O_RDONLY)
    except FileNotFoundError:
        if {"home", "incoming"} & set(fs.listdir(path)):
            # Blocks whose node id is lost must not be adopted under a new one by accident.
            raise NotABlockStore(f"{path} has block directories but no {_FORMAT_FILE}; restore it") from None
        return None
    try:
        buffer = bytearray(PAGE)
        text = bytes(buffer[: fs.preadv(fd, [buffer], 0, 0)])
    finally:
        fs.close(fd)
    try:
        document = json.loads(text)
        version = int(document["format"])
    except (ValueError, TypeError, KeyError) as error:
        raise NotABlockStore(f"{path}/{_FORMAT_FILE} cannot be read as a format file; restore it") from error
    if version > FORMAT:
        raise FormatTooNew(f"{path} has format {version}; this software knows up to {FORMAT}: install a newer one")
    try:
        node_id, block_size = bytes.fromhex(document["node"]), int(document["block_size"])
    except (ValueError, TypeError, KeyError) as error:
        raise NotABlockStore(f"{path}/{_FORMAT_FILE} lacks a node id or block size; restore it") from error
    if version != FORMAT or len(node_id) != ID_BYTES or not 0 < block_size <= MAX_BLOCK_SIZE:
        raise NotABlockStore(f"{path}/{_FORMAT_FILE} holds values that no version wrote; restore it")
    return Layout(path, node_id, block_size)


def _create_format(fs: FileSystem, path: str, block_size: int) -> Layout:
    layout = Layout(path, secrets.token_bytes(ID_BYTES), block_size)
    text = json.dumps({"format": FORMAT, "node": layout.node_id.hex(), "block_size": block_size}) + "\n"
    draft = f"{path}/{_FORMAT_FILE}.new"
    fd = fs.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    try:
        write_all(fs, fd, text.encode(), 0)
        fs.fdatasync(fd)
    finally:
        fs.close(fd)
    fs.rename(draft, f"{path}/{_FORMAT_FILE}")
    return layout


def _make_trees(fs: FileSystem, path: str) -> None:
    """The fixed directories: made once and for ever, so that no upload or pin has to think about their durability."""
    for name in sorted({"home", "incoming", "cache", "filling", "pins"} - set(fs.listdir(path))):
        fs.mkdir(f"{path}/{name}")
    home = f"{path}/home"
    for name in sorted(set(_SHARDS) - set(fs.listdir(home))):
        fs.mkdir(f"{home}/{name}")
    sync_directory(fs, home)
