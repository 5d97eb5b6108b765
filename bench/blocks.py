"""What the block store costs: MB/s and CPU seconds per GiB of writing and reading, beside the bare system calls.

    python -m bench.blocks [DIRECTORY] [--mib 512] [--rounds 3]

Measures in DIRECTORY (a fresh one beneath it; default: the current directory), on whatever disk that is. CPU is user
and system time of this process with all its threads. Rounds are interleaved; the median is printed with the spread.
"""

import argparse
import asyncio
import hashlib
import mmap
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

from tigrislike.bytecache import BlockStore, Segment
from tigrislike.bytecache.reader import READ_PIECE
from tigrislike.bytecache.sealing import Digest

MIB = 1024 * 1024
BLOCK = 8 * MIB
PIECE = 64 * 1024
"""What an HTTP server hands over at a time."""


class Table:
    """Samples by label: (bytes per second, CPU seconds per GiB)."""

    def __init__(self) -> None:
        self.samples: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)

    @contextmanager
    def measure(self, label: str, size: int) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.samples[label].append((size / wall, cpu * 1024 * MIB / size))

    def print(self) -> None:
        print(f"{'':50} {'MB/s':>6} {'(min..max)':>13} {'CPU s/GiB':>10} {'(min..max)':>13}")
        for label, samples in self.samples.items():
            rates = sorted(rate / 1e6 for rate, _ in samples)
            costs = sorted(cost for _, cost in samples)
            print(
                f"{label:50} {statistics.median(rates):6.0f} {f'({rates[0]:.0f}..{rates[-1]:.0f})':>13} "
                f"{statistics.median(costs):10.2f} {f'({costs[0]:.2f}..{costs[-1]:.2f})':>13}"
            )


def write_bare(root: Path, size: int, how: str) -> None:
    """Block-sized new files in 1 MiB writes from one warm buffer, each fdatasynced: what the choice was made from."""
    buffer = mmap.mmap(-1, MIB)
    buffer.write(os.urandom(MIB))
    for number in range(size // BLOCK):
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | (os.O_DIRECT if how.startswith("direct") else 0)
        fd = os.open(root / f"bare.{number}", flags)
        if how.endswith("preallocated"):
            os.posix_fallocate(fd, 0, BLOCK)
        for offset in range(0, BLOCK, MIB):
            os.pwrite(fd, buffer, offset)
            if how.endswith("early writeback"):
                # Starts writing the dirty pages out, as sync_file_range does, and drops what is clean.
                os.posix_fadvise(fd, 0, offset + MIB, os.POSIX_FADV_DONTNEED)
        os.fdatasync(fd)
        os.close(fd)
    for number in range(size // BLOCK):
        os.unlink(root / f"bare.{number}")


def read_bare(path: Path, size: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    for offset in range(0, size, 256 * 1024):
        os.pread(fd, 256 * 1024, offset)
    os.close(fd)


def drop_from_page_cache(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


async def write_blob(store: BlockStore, size: int, digest: Digest | None, piece: bytes) -> bytes:
    writer = store.create_blob(digest)
    for _ in range(size // len(piece)):
        await writer.write(piece)
    await writer.finish()
    await store.publish(writer.blob_id)
    return writer.blob_id


async def read_blob(store: BlockStore, blob_id: bytes, size: int, chunk: int) -> None:
    total = 0
    async for piece in store.open_blob(blob_id, size).read(0, size, chunk):
        total += len(piece)
    assert total == size


async def take_extents(store: BlockStore, blob_id: bytes, size: int) -> None:
    """What serving with sendfile costs beside the sending: opening, and verifying what was not yet."""
    total = 0
    async for part in store.open_blob(blob_id, size).segments(0, size):
        total += part.length if isinstance(part, Segment) else len(part)
    assert total == size


class Memory:
    """A source that costs next to nothing: the same piece over and over."""

    def __init__(self, piece: bytes) -> None:
        self.piece = piece

    async def read(self, blob_id: bytes, size: int, start: int, stop: int) -> AsyncIterator[bytes | memoryview]:
        for at in range(start, stop, len(self.piece)):
            yield self.piece[: stop - at]

    async def lives(self, blob_id: bytes) -> bool:
        return True

    def keeps(self, blob_id: bytes) -> bool:
        return True


async def one_round(root: Path, size: int, table: Table) -> None:
    piece = os.urandom(PIECE)
    for how in ("buffered", "buffered, early writeback", "direct", "direct, preallocated"):
        with table.measure(f"bare write, {how}", size):
            write_bare(root, size, how)
    store = BlockStore.open(root / "store")
    for label, digest in (("with MD5", hashlib.md5(usedforsecurity=False)), ("without digest", None)):
        with table.measure(f"write {label}", size):
            blob_id = await write_blob(store, size, digest and digest.update, piece)
        await store.delete_blob(blob_id, size)
    with table.measure("write with MD5, 4 at a time", size):
        digests = [hashlib.md5(usedforsecurity=False) for _ in range(4)]
        blobs = await asyncio.gather(*(write_blob(store, size // 4, digest.update, piece) for digest in digests))
    for blob_id in blobs:
        await store.delete_blob(blob_id, size // 4)
    with table.measure("write 1 MiB blobs with MD5, 16 at a time", size):
        todo = iter(range(size // MIB))

        async def uploads() -> list[bytes]:
            return [await write_blob(store, MIB, hashlib.md5(usedforsecurity=False).update, piece) for _ in todo]

        small = [blob_id for blobs in await asyncio.gather(*(uploads() for _ in range(16))) for blob_id in blobs]
    await asyncio.gather(*(store.delete_blob(blob_id, MIB) for blob_id in small))
    blob_id = await write_blob(store, size, None, piece)
    for chunk in (256 * 1024, 512 * 1024, MIB):
        drop_from_page_cache(root)
        with table.measure(f"read cold, {chunk // 1024} KiB pieces", size):
            await read_blob(store, blob_id, size, chunk)
        store.close()
        store = BlockStore.open(root / "store")
        with table.measure(f"read warm and verify, {chunk // 1024} KiB pieces", size):
            await read_blob(store, blob_id, size, chunk)
        with table.measure(f"read warm, {chunk // 1024} KiB pieces", size):
            await read_blob(store, blob_id, size, chunk)
    store.close()
    store = BlockStore.open(root / "store")
    with table.measure("extents for sendfile, warm and verify", size):
        await take_extents(store, blob_id, size)
    with table.measure("extents for sendfile, warm", size):
        await take_extents(store, blob_id, size)
    store.close()
    store = BlockStore.open(root / "store", verify="always")
    with table.measure("read warm, verify always", size):
        await read_blob(store, blob_id, size, READ_PIECE)
    store.close()
    store = BlockStore.open(root / "store")
    store.fill_from(Memory(piece))
    with table.measure("read of what is elsewhere: fetch, serve and keep", size):
        await read_blob(store, bytes(16), size, READ_PIECE)
    with table.measure("read of what is elsewhere, kept", size):
        await read_blob(store, bytes(16), size, READ_PIECE)
    await store.evict(bytes(16))
    bare = root / "bare"
    bare.write_bytes(piece * (size // PIECE))
    read_bare(bare, size)
    with table.measure("bare read warm, 256 KiB pread", size):
        read_bare(bare, size)
    bare.unlink()
    with table.measure("verify_blob", size):
        await store.verify_blob(blob_id, size)
    await store.delete_blob(blob_id, size)
    await store.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=Path.cwd())
    parser.add_argument("--mib", type=int, default=512, help="bytes per measurement, in MiB (a multiple of 32)")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    table = Table()
    for _ in range(arguments.rounds):
        root = Path(tempfile.mkdtemp(dir=arguments.directory, prefix="blocks-"))
        try:
            asyncio.run(one_round(root, arguments.mib * MIB, table))
        finally:
            shutil.rmtree(root)
    table.print()


if __name__ == "__main__":
    main()
