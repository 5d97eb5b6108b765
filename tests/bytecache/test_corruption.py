"""Damage anywhere in a block file is found before any byte of the damaged chunk is given out."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bytecache.blobs import drain, put, stored_files
from tests.bytecache.faults import NoSync, Residency, Warm
from tigrislike.bytecache import BlockStore, CorruptBlock, MissingBlob, Segment
from tigrislike.bytecache.filesystem import FileSystem
from tigrislike.bytecache.footer import CHUNK, FOOTER_BYTES, padded

BLOCK = 3 * CHUNK
TAIL = CHUNK + 1000
DATA = os.urandom(BLOCK + TAIL)
"""A whole block of three chunks, and one of a whole chunk and 1000 bytes."""
TAIL_FILE = padded(TAIL) + FOOTER_BYTES


def _edit(path: Path, change: Callable[[bytearray], None]) -> None:
    """Change a block file behind the store's back; its modification time moves on, however coarse the clock."""
    before = path.stat().st_mtime_ns
    data = bytearray(path.read_bytes())
    change(data)
    path.chmod(0o600)
    path.write_bytes(data)
    path.chmod(0o400)
    os.utime(path, ns=(before, before + 1_000_000_000))


def _flip(offset: int, bit: int = 0) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[offset] ^= 1 << bit

    return change


async def _read_until_corrupt(store: BlockStore, blob_id: bytes) -> bytes:
    """What a read gives out before it raises CorruptBlock."""
    got = bytearray()
    with pytest.raises(CorruptBlock):
        await _collect(store, blob_id, got)
    return bytes(got)


async def _collect(store: BlockStore, blob_id: bytes, got: bytearray) -> None:
    async for piece in store.open_blob(blob_id, len(DATA)).read(0, len(DATA), CHUNK):
        got += piece


PLACES = {
    "first-byte": (0, 0),
    "inside-second-chunk": (0, CHUNK + 77),
    "last-byte-of-a-block": (0, BLOCK - 1),
    "footer-magic": (0, BLOCK),
    "footer-checksums": (0, BLOCK + 50),
    "footer-zeros": (0, BLOCK + 2000),
    "footer-checksum": (0, BLOCK + FOOTER_BYTES - 1),
    "tail-data": (1, TAIL - 1),
    "tail-padding": (1, TAIL),
    "last-byte-of-padding": (1, padded(TAIL) - 1),
    "tail-footer-length": (1, padded(TAIL) + 36),
}


@pytest.mark.parametrize("fs", [Warm(), Residency()], ids=["warm", "cold"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("known", [False, True], ids=["first-serve", "after-a-read"])
def test_a_flipped_bit_is_found_and_no_wrong_byte_is_given_out(
    scratch: Path, fs: FileSystem, place: str, known: bool
) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=fs)
    number, offset = PLACES[place]

    async def story() -> None:
        blob_id = await put(store, DATA)
        if known:  # the change of the file's times must void what was verified
            assert await drain(store.open_blob(blob_id, len(DATA)).read(0, len(DATA))) == DATA
        _edit(stored_files(scratch)[number], _flip(offset, offset % 8))
        got = await _read_until_corrupt(store, blob_id)
        assert DATA.startswith(got)
        assert len(got) <= number * BLOCK + offset
        assert store.statistics().verify_failures >= 1
        with pytest.raises(CorruptBlock):
            await store.verify_blob(blob_id, len(DATA))

    asyncio.run(story())
    store.close()  # waits for what was read ahead
    assert store.statistics().open_blocks == 0


def test_undamaged_chunks_of_a_damaged_block_are_still_served(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())

    async def story() -> None:
        blob_id = await put(store, DATA)
        _edit(stored_files(scratch)[0], _flip(CHUNK + 1))
        reader = store.open_blob(blob_id, len(DATA))
        assert await drain(reader.read(5, CHUNK)) == DATA[5:CHUNK]
        assert await drain(reader.read(2 * CHUNK, len(DATA))) == DATA[2 * CHUNK :]
        with pytest.raises(CorruptBlock, match="chunk 1"):
            await drain(reader.read(2 * CHUNK - 1, 2 * CHUNK))

    asyncio.run(story())
    store.close()


def test_every_kind_of_truncation_and_growth_is_found(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())

    async def story() -> None:
        for size in (0, 1, 100, TAIL, TAIL_FILE - FOOTER_BYTES, TAIL_FILE - 1, TAIL_FILE + 1, 2 * TAIL_FILE):
            blob_id = await put(store, DATA)
            file = stored_files(scratch)[1]

            def resize(data: bytearray, size: int = size) -> None:
                data[:] = data[:size].ljust(size, b"\0")

            _edit(file, resize)
            assert await _read_until_corrupt(store, blob_id) == DATA[:BLOCK]
            (blob,) = [blob async for blob in store.blobs()]
            assert len(blob.damage) == 1
            assert "block 1" in blob.damage[0]
            await store.delete_blob(blob_id)

    asyncio.run(story())
    store.close()


def test_files_under_each_others_names_are_found(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=CHUNK, fs=NoSync())

    async def story() -> None:
        data = os.urandom(2 * CHUNK)
        first, second = await put(store, data), await put(store, data)
        names = {blob_id: [p for p in stored_files(scratch) if blob_id.hex() in p.name] for blob_id in (first, second)}
        spare = scratch / "spare"
        for one, other in ((names[first][0], names[first][1]), (names[first][0], names[second][0])):
            for source, target in ((one, spare), (other, one), (spare, other)):
                source.rename(target)
            with pytest.raises(CorruptBlock, match="were expected"):
                await drain(store.open_blob(first, len(data)).read(0, len(data)))
            assert any("holds block" in line for blob in [b async for b in store.blobs()] for line in blob.damage)
            for source, target in ((one, spare), (other, one), (spare, other)):
                source.rename(target)
        assert await drain(store.open_blob(first, len(data)).read(0, len(data))) == data

    asyncio.run(story())
    store.close()


def test_a_replaced_file_is_verified_anew(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=Warm())

    async def story() -> None:
        blob_id = await put(store, DATA)
        reader = store.open_blob(blob_id, len(DATA))
        assert await drain(reader.read(0, len(DATA))) == DATA
        assert reader.read_cached(0, 10) == DATA[:10]
        file = stored_files(scratch)[0]
        copy = file.with_name("copy")
        content = bytearray(file.read_bytes())
        content[3] ^= 255
        copy.write_bytes(content)
        os.utime(copy, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
        copy.rename(file)
        assert reader.read_cached(0, 10) is None
        with pytest.raises(CorruptBlock):
            await drain(reader.read(0, 10))

    asyncio.run(story())
    store.close()


def test_a_wrong_size_in_the_metadata_is_refused(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())

    async def story() -> None:
        blob_id = await put(store, DATA)
        for size, error in ((len(DATA) - 1, CorruptBlock), (len(DATA) + 4096, CorruptBlock), (3 * BLOCK, CorruptBlock)):
            with pytest.raises(error):
                await drain(store.open_blob(blob_id, size).read(0, size))
        with pytest.raises(MissingBlob):
            await drain(store.open_blob(blob_id, 3 * BLOCK).read(2 * BLOCK, 3 * BLOCK))

    asyncio.run(story())
    store.close()


def test_segments_are_verified_before_they_are_given_out(scratch: Path) -> None:
    store = BlockStore.open(scratch, block_size=BLOCK, fs=NoSync())

    async def story() -> None:
        blob_id = await put(store, DATA)
        _edit(stored_files(scratch)[1], _flip(0))
        segments = store.open_blob(blob_id, len(DATA)).segments(10, len(DATA))
        first = await anext(segments)
        assert isinstance(first, Segment)
        assert (first.offset, first.length) == (10, BLOCK - 10)
        with pytest.raises(CorruptBlock):
            await anext(segments)

    asyncio.run(story())
    store.close()  # waits for what was read ahead
    assert store.statistics().open_blocks == 0
