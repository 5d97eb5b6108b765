"""One blob's life in one process: written, finished, published, read, deleted."""

import asyncio
import hashlib
import os
from pathlib import Path

from tests.bytecache.blobs import BLOCK, drain, put, stored_files
from tigrislike.bytecache import BlockStore


def test_a_published_blob_reads_back_whole_and_lies_in_home_with_mode_0400(tmp_path: Path) -> None:
    store = BlockStore.open(tmp_path, block_size=BLOCK)
    data = os.urandom(3 * BLOCK + 17)

    async def story() -> None:
        writer = store.create_blob()
        await writer.write(data)
        await writer.finish()
        assert await drain(store.open_blob(writer.blob_id, len(data)).read(0, len(data))) == data
        await store.publish(writer.blob_id)
        assert await drain(store.open_blob(writer.blob_id, len(data)).read(0, len(data))) == data
        files = stored_files(tmp_path)
        assert [path.name for path in files] == [f"{writer.blob_id.hex()}.{n}" for n in range(4)]
        assert all(path.stat().st_mode & 0o777 == 0o400 for path in files)
        assert os.listdir(tmp_path / "incoming") == []

    asyncio.run(story())
    store.close()


def test_the_digest_sees_every_byte_in_order(tmp_path: Path) -> None:
    store = BlockStore.open(tmp_path)
    data = os.urandom(5 * 1024 * 1024 + 3)
    digest = hashlib.md5(usedforsecurity=False)

    async def story() -> None:
        writer = store.create_blob(digest.update)
        for start in range(0, len(data), 65_521):
            await writer.write(data[start : start + 65_521])
        await writer.finish()
        assert writer.size == len(data)
        await writer.abort()

    asyncio.run(story())
    assert digest.digest() == hashlib.md5(data, usedforsecurity=False).digest()
    store.close()


def test_an_empty_blob_exists(tmp_path: Path) -> None:
    store = BlockStore.open(tmp_path, block_size=BLOCK)

    async def story() -> None:
        blob_id = await put(store, b"")
        assert await drain(store.open_blob(blob_id, 0).read(0, 0)) == b""
        assert [(blob.blob_id, blob.size) async for blob in store.blobs()] == [(blob_id, 0)]
        await store.verify_blob(blob_id, 0)

    asyncio.run(story())
    store.close()
