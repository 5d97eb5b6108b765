"""Putting a block that was fetched from elsewhere where it stays: in place of a damaged one, or of none in `home/`.

The new file is written beside, under the block's name in `filling/`, where its lock tells a live writer from a dead
one's garbage as it does for every fill. It is durable before it is renamed to its place, so that a power cut leaves
what was there, or the new one. Who deletes a blob removes the draft before the block, so that what is mended at that
moment either goes with it or never comes. Nothing of this is in the cache's index: durable blocks are not evictable.
"""

import contextlib
import errno
import os
from collections.abc import Callable

from tigrislike.bytecache.errors import BlobGone, BlockPresent, from_os_error
from tigrislike.bytecache.filesystem import FileSystem, sync_directory, write_all
from tigrislike.bytecache.filling import claim, close, has_name
from tigrislike.bytecache.reading import Local, Place
from tigrislike.bytecache.verified import Identity, identity


class Mending:
    """A place for a block that will be renamed to its name, over a damaged one if there is one; a `fills.Keeping`.
    Methods block."""

    def __init__(self, fs: FileSystem, draft: str, fd: int, target: str, doing: str) -> None:
        self._fs = fs
        self._draft = draft
        self._fd = fd
        self._target = target
        self._doing = doing

    @classmethod
    def begin(
        cls,
        local: Local,
        blob_id: bytes,
        number: int,
        place: Place,
        damaged: Identity | None,
        claim_space: Callable[[], None],
    ) -> "Mending":
        """Take the place, unless there is something else than the damaged file, or than nothing.

        Args:
            local: The store's.
            blob_id, number: The block.
            place: Where the block belongs: "home", or "incoming" while it is not published.
            damaged: Who is there now; None: nobody is.
            claim_space: See that the disk has room for the new file beside its reserve; raises DiskFull.

        Raises:
            BlockPresent: It has come, or was mended, moved or removed meanwhile: look again.
            FillInProgress: A live process is at it.
            DiskFull, DiskFailed
        """
        fs, target = local.fs, local.path(place, blob_id, number)
        draft = local.layout.filling_block(blob_id, number)
        doing = f"mending block {number} of blob {blob_id.hex()}"
        try:
            fd = claim(fs, draft)
        except OSError as error:
            raise from_os_error(error, doing) from error
        mending = cls(fs, draft, fd, target, doing)
        try:
            if _occupant(fs, target) == damaged:
                claim_space()
                return mending
        except OSError as error:
            mending.abandon()
            raise from_os_error(error, doing) from error
        except BaseException:
            mending.abandon()
            raise
        mending.abandon()
        raise BlockPresent(f"block {number} of blob {blob_id.hex()} is not as it was found any more")

    def commit(self, image: memoryview) -> None:
        """Put the block in place, durably.

        Raises:
            BlobGone: The draft was removed, for the blob was deleted meanwhile; or the upload's directory, for it was
                published.
            DiskFull, DiskFailed: The block is as it was.
        """
        try:
            write_all(self._fs, self._fd, image, 0)
            self._fs.fdatasync(self._fd)
            if not has_name(self._fs, self._fd, self._draft):
                # The name may be a later filler's already.
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._draft)
            self._fs.rename(self._draft, self._target)
            sync_directory(self._fs, os.path.dirname(self._target))
        except FileNotFoundError as error:
            self.abandon()
            raise BlobGone(f"{self._doing}: it was deleted or published meanwhile") from error
        except OSError as error:
            self.abandon()
            raise from_os_error(error, self._doing) from error
        except BaseException:
            self.abandon()
            raise
        close(self._fs, self._fd)

    def abandon(self) -> None:
        """Remove what was written, unless it is in place. Never raises."""
        with contextlib.suppress(OSError):  # whoever finds the lock free removes it
            if has_name(self._fs, self._fd, self._draft):
                self._fs.unlink(self._draft)
        close(self._fs, self._fd)


def _occupant(fs: FileSystem, path: str) -> Identity | None:
    try:
        return identity(fs.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
