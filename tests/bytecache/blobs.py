"""What the tests of the block store share: small blocks, and short ways to put and get."""

from collections.abc import AsyncIterator
from pathlib import Path

from tigrislike.bytecache import BlockStore

BLOCK = 64 * 1024
"""Small enough that a blob of several blocks is cheap."""


async def drain(pieces: AsyncIterator[bytes | bytearray | memoryview]) -> bytes:
    """All bytes of a read."""
    return b"".join([piece async for piece in pieces])


async def put(store: BlockStore, data: bytes) -> bytes:
    """Store `data` as a published blob; its id."""
    writer = store.create_blob()
    await writer.write(data)
    await writer.finish()
    await store.publish(writer.blob_id)
    return writer.blob_id


def stored_files(root: Path) -> list[Path]:
    """Every block file under `root`, in either tree, in order of their paths."""
    return sorted(path for tree in ("home", "incoming") for path in (root / tree).rglob("*") if path.is_file())
