"""Replacing a damaged block of `home/` by one fetched from elsewhere.

The new file is written beside, under the block's name in `filling/`, where its lock tells a live writer from a dead
one's garbage as it does for every fill. It is durable before it is renamed over the damaged one, so that a power cut
leaves one of the two. Who deletes a blob removes the draft before the block, so that what is mended at that moment
either goes with it or never comes. Nothing of this is in the cache's index: home blocks are not evictable.
"""

import contextlib

from tigrislike.bytecache.errors import BlobGone, BlockPresent, from_os_error
from tigrislike.bytecache.filesystem import FileSystem, sync_directory, write_all
from tigrislike.bytecache.filling import claim, close
from tigrislike.bytecache.layout import Layout
from tigrislike.bytecache.reading import Local, Place
from tigrislike.bytecache.verified import Identity, identity


class Mending:
    """A place for a block that will be renamed into `home/`; a `fills.Keeping`. Methods block."""

    def __init__(self, fs: FileSystem, layout: Layout, blob_id: bytes, number: int, fd: int) -> None:
        self._fs = fs
        self._draft = layout.filling_block(blob_id, number)
        self._target = layout.home_block(blob_id, number)
        self._shard = layout.shard(blob_id)
        self._doing = f"mending block {number} of blob {blob_id.hex()}"
        self._fd = fd

    @classmethod
    def begin(cls, local: Local, blob_id: bytes, number: int, place: Place, damaged: Identity) -> "Mending":
        """Take the place, unless the file is not the damaged one any more.

        Args:
            local: The store's.
            blob_id, number: The block.
            place: Where the damaged file is: "home", or "incoming" while it is about to be moved there.
            damaged: Who it is.

        Raises:
            BlockPresent: It was mended, moved or removed meanwhile: look again.
            FillInProgress: A live process is at it.
            DiskFull, DiskFailed
        """
        fs, layout = local.fs, local.layout
        doing = f"mending block {number} of blob {blob_id.hex()}"
        try:
            fd = claim(fs, layout.filling_block(blob_id, number))
        except OSError as error:
            raise from_os_error(error, doing) from error
        mending = cls(fs, layout, blob_id, number, fd)
        try:
            if identity(fs.stat(local.path(place, blob_id, number))) == damaged:
                return mending
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            mending.abandon()
            raise from_os_error(error, doing) from error
        mending.abandon()
        raise BlockPresent(f"block {number} of blob {blob_id.hex()} is not the damaged one any more")

    def commit(self, image: memoryview) -> None:
        """Put the block in place, durably.

        Raises:
            BlobGone: The draft was removed: the blob was deleted meanwhile.
            DiskFull, DiskFailed: The block is as it was.
        """
        try:
            write_all(self._fs, self._fd, image, 0)
            self._fs.fdatasync(self._fd)
            self._fs.rename(self._draft, self._target)
            sync_directory(self._fs, self._shard)
        except FileNotFoundError as error:
            self.abandon()
            raise BlobGone(f"{self._doing}: it was deleted meanwhile") from error
        except OSError as error:
            self.abandon()
            raise from_os_error(error, self._doing) from error
        close(self._fs, self._fd)

    def abandon(self) -> None:
        """Remove what was written, unless it is in place. Never raises."""
        with contextlib.suppress(OSError):  # whoever finds the lock free removes it
            self._fs.unlink(self._draft)
        close(self._fs, self._fd)
