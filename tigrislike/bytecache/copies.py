"""A copy of a blob that another node receives: durable here before that node commits it.

It lies in `incoming/` as an upload of this node's own does, locked while its owner lives; who commits it is elsewhere,
and a sweep asks as ever what became of it. Under the blob's own name it is whole (`incoming.py`), so that what another
node commits without waiting for this one is never taken for more than it is.
"""

from collections.abc import Awaitable, Callable
from contextlib import aclosing

from tigrislike.bytecache.errors import BlobBusy
from tigrislike.bytecache.filesystem import sync_directory
from tigrislike.bytecache.fills import Fills
from tigrislike.bytecache.footer import FOOTER_BYTES, block_count, block_length, padded
from tigrislike.bytecache.incoming import Incoming
from tigrislike.bytecache.sealing import Disk
from tigrislike.bytecache.source import BlobSource
from tigrislike.bytecache.writer import BlobWriter


class Copy:
    """Of a blob, whole and durable here, not known to be committed. Made by `BlockStore.receive_copy`; ended once, by
    one of its methods, after which the others do nothing.

    Attributes:
        blob_id: 16 bytes.
    """

    def __init__(
        self,
        blob_id: bytes,
        publish: Callable[[bytes], Awaitable[None]],
        release: Callable[[bytes], None],
        discard: Callable[[bytes], Awaitable[None]],
    ) -> None:
        self.blob_id = blob_id
        self._publish = publish
        self._release = release
        self._discard = discard
        self._ended = False

    async def publish(self) -> None:
        """The blob is committed: move it to `home/`. When it fails, a sweep does.

        Raises:
            DiskFull, DiskFailed
        """
        if self._ends():
            await self._publish(self.blob_id)

    def release(self) -> None:
        """Whether the blob is committed is not known: let a sweep find out, and settle it."""
        if self._ends():
            self._release(self.blob_id)

    async def abort(self) -> None:
        """The blob will not be committed: remove the copy. What is in `home/` already stays. Never raises BytesError;
        what the disk does not let go of is left to a sweep."""
        if self._ends():
            await self._discard(self.blob_id)

    def _ends(self) -> bool:
        ended, self._ended = self._ended, True
        return not ended


async def receive(writer: BlobWriter, size: int, fills: Fills, pieces: BlobSource) -> None:
    """Write what a source has of a blob, all of it; on return it is durable, else nothing is left.

    Raises:
        As `BlockStore.receive_copy`.
    """
    try:
        if size:
            async with aclosing(fills.received(pieces, writer.blob_id, size, 0, size)) as received:
                async for piece in received:
                    await writer.write(piece)
        await writer.finish()
    except BaseException:
        await writer.abort()
        raise


def take_over(disk: Disk, blob_id: bytes, size: int) -> bool:
    """Whether a blob is whole and durable here: in `home/`, or in `incoming/`, where its owner died. It is then held by
    this process, as far as it is not in `home/`. Blocks; raises OSError.

    Raises:
        BlobBusy: It is in `incoming/`, and its owner lives.
    """
    fs, layout = disk.fs, disk.layout
    incoming: Incoming | None = None
    try:
        incoming = Incoming.adopt(fs, layout, blob_id)
        if incoming is None:
            raise BlobBusy(f"blob {blob_id.hex()} is being stored by another process; let that one settle it")
    except FileNotFoundError:
        pass
    try:
        for number in range(block_count(size, layout.block_size)):
            expected = padded(block_length(size, layout.block_size, number)) + FOOTER_BYTES
            paths = layout.home_block(blob_id, number), layout.incoming_block(blob_id, number)
            if expected not in (_size(disk, path) for path in paths):
                if incoming is not None:
                    incoming.discard()  # what an interrupted removal left
                return False
        sync_directory(fs, layout.shard(blob_id))
        if incoming is not None:
            disk.names.sync()
            disk.held[blob_id] = incoming
            disk.counters.add(uploads=1)
    except BaseException:
        if incoming is not None:
            incoming.release()
        raise
    return True


def _size(disk: Disk, path: str) -> int:
    try:
        return disk.fs.stat(path).st_size
    except (FileNotFoundError, NotADirectoryError):
        return -1
