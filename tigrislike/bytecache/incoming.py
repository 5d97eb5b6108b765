"""An upload's own directory, and the lock that says whether its owner lives.

The lock is a flock on the directory itself, so that nothing has to be removed when the owner dies: the kernel lets go.
Being old means nothing; only a free lock means a dead owner. The directory appears under its final name already locked
(made under another name, locked, renamed), so a sweeper can never catch it in between.

Publishing links each block into `home/`, makes the links durable, and only then unlinks: at every moment, and after a
power cut at every moment, each block can be found in one of the two places. Every step may be repeated.

The lock lives in an open file description: a process that forks without exec shares it with its child. Open stores
after forking.
"""

import contextlib
import os
from typing import Final

from tigrislike.bytecache.filesystem import FileSystem, sync_directory
from tigrislike.bytecache.layout import Layout, parse_number

NEW: Final = "new-"
_TRIES: Final = 16


class Incoming:
    """A locked directory `incoming/<blob hex>/`. All methods block and raise OSError; call them on a worker thread."""

    __slots__ = ("_fd", "_fs", "_layout", "blob_id", "path")

    def __init__(self, fs: FileSystem, layout: Layout, blob_id: bytes, fd: int) -> None:
        self._fs = fs
        self._layout = layout
        self._fd = fd
        self.blob_id = blob_id
        self.path = layout.incoming_blob(blob_id)

    @classmethod
    def create(cls, fs: FileSystem, layout: Layout, blob_id: bytes) -> "Incoming":
        """Make the directory of a new blob, locked."""
        for attempt in range(_TRIES):
            draft = f"{layout.incoming}/{NEW}{blob_id.hex()}.{attempt}"
            fs.mkdir(draft)
            fd = -1
            try:
                fd = fs.open(draft, os.O_RDONLY | os.O_DIRECTORY)
                if fs.lock(fd):
                    fs.rename(draft, layout.incoming_blob(blob_id))
                    return cls(fs, layout, blob_id, fd)
            except FileNotFoundError:
                pass  # a sweeper took the draft for a dead one before it was locked: make another
            except OSError:
                with contextlib.suppress(OSError):
                    fs.rmdir(draft)
                _close_quietly(fs, fd)
                raise
            _close_quietly(fs, fd)
        raise BlockingIOError(f"sweepers removed {_TRIES} fresh directories of {blob_id.hex()} in a row")

    @classmethod
    def adopt(cls, fs: FileSystem, layout: Layout, blob_id: bytes) -> "Incoming | None":
        """Lock the directory of a dead owner.

        Raises:
            FileNotFoundError: There is no such directory (any more).

        Returns:
            None when its owner lives.
        """
        path = layout.incoming_blob(blob_id)
        fd = fs.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if not fs.lock(fd):
                fs.close(fd)
                return None
            # The last owner may have removed it between the open and the lock.
            if fs.fstat(fd).st_ino != fs.stat(path).st_ino:
                raise FileNotFoundError(path)
        except OSError:
            _close_quietly(fs, fd)
            raise
        return cls(fs, layout, blob_id, fd)

    def __del__(self) -> None:
        # An adopter that was cancelled, a writer that was dropped: the lock must not outlive them.
        self.release()

    def sync(self) -> None:
        """Make the names of the blocks, and of the directory itself, durable."""
        self._fs.fsync(self._fd)
        sync_directory(self._fs, self._layout.incoming)

    def blocks(self) -> list[int]:
        """Numbers of the blocks in it, ascending."""
        return sorted(n for n in map(parse_number, self._fs.listdir(self.path)) if n is not None)

    def publish(self) -> None:
        """Move every block to `home/`, remove the directory, let go of the lock."""
        numbers = self.blocks()
        for number in numbers:
            with contextlib.suppress(FileExistsError):  # linked by an owner that died before unlinking
                self._fs.link(f"{self.path}/{number}", self._layout.home_block(self.blob_id, number))
        if numbers:
            sync_directory(self._fs, self._layout.shard(self.blob_id))
        self._remove(numbers)

    def discard(self) -> None:
        """Remove the blocks and the directory, let go of the lock."""
        self._remove(self.blocks())

    def release(self) -> None:
        """Let go of the lock and leave everything to a sweeper."""
        fd, self._fd = self._fd, -1
        _close_quietly(self._fs, fd)

    def _remove(self, numbers: list[int]) -> None:
        # Descending, so that what an interrupted removal leaves is a blob cut short, never one with a hole.
        for number in reversed(numbers):
            with contextlib.suppress(FileNotFoundError):
                self._fs.unlink(f"{self.path}/{number}")
        with contextlib.suppress(FileNotFoundError):
            self._fs.rmdir(self.path)
        self.release()


def remove_draft(fs: FileSystem, layout: Layout, name: str) -> bool:
    """Remove `incoming/new-...` unless its maker is about to rename it. True if it went.

    A maker that renamed it meanwhile holds the lock, or has let go of an emptied directory: `path` is gone either way.
    """
    path = f"{layout.incoming}/{name}"
    try:
        fd = fs.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        if not fs.lock(fd):
            return False
        # A power cut can undo the rename and yet keep blocks that were made after it. They were never committed: that
        # takes a sync of the directory that the rename changed.
        for block in fs.listdir(path):
            fs.unlink(f"{path}/{block}")
        fs.rmdir(path)
    except FileNotFoundError:
        return False
    finally:
        _close_quietly(fs, fd)
    return True


def _close_quietly(fs: FileSystem, fd: int) -> None:
    """Close a directory: nothing was written through it, so an error has nothing to tell."""
    if fd >= 0:
        with contextlib.suppress(OSError):
            fs.close(fd)
