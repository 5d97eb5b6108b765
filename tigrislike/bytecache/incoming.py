"""An upload's own directory, and the lock that says whether its owner lives.

The lock is a flock on the directory itself, so that nothing has to be removed when the owner dies: the kernel lets go.
Being old means nothing; only a free lock means a dead owner. The directory appears under its final name already locked
(made under another name, locked, renamed), so a sweeper can never catch it in between.

A copy of what another node receives keeps that other name until it is whole and synced. For it is not this node that
commits it: whatever bears a blob's own name here, and is committed, is whole.

Publishing renames each block into `home/`: at every moment, and after a power cut at every moment, each block can be
found in one of the two places, and so nothing has to be synced. It rests on what every journaling filesystem gives: a
rename between directories is kept or lost as one, and a directory's removal is not kept without what emptied it. Every
step may be repeated.

The lock lives in an open file description: a process that forks without exec shares it with its child. Open stores
after forking.
"""

import contextlib
import errno
import os
import threading
from typing import Final

from tigrislike.bytecache.errors import BlobBusy
from tigrislike.bytecache.filesystem import FileSystem, sync_directory
from tigrislike.bytecache.layout import Layout, parse_number

NEW: Final = "new-"
_TRIES: Final = 16


class Incoming:
    """A locked directory `incoming/<blob hex>/`. All methods block and raise OSError; call them on a worker thread."""

    __slots__ = ("_fd", "_fs", "_layout", "_written", "blob_id", "path")

    def __init__(self, fs: FileSystem, layout: Layout, blob_id: bytes, fd: int, path: str | None = None) -> None:
        self._fs = fs
        self._layout = layout
        self._fd = fd
        self._written: int | None = None  # blocks in it, where its writer has said so
        self.blob_id = blob_id
        self.path = path or layout.incoming_blob(blob_id)

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
    def receive(cls, fs: FileSystem, layout: Layout, blob_id: bytes) -> "Incoming":
        """Make the directory of a copy, locked. It has the blob's own name from `sync` on.

        Raises:
            BlobBusy: The blob is here, or on its way.
        """
        draft = f"{layout.incoming}/{NEW}{blob_id.hex()}.copy"
        for _ in range(_TRIES):
            try:
                fs.mkdir(draft)
            except FileExistsError:
                remove_draft(fs, layout, os.path.basename(draft))  # unless its owner lives
                continue
            fd = -1
            try:
                fd = fs.open(draft, os.O_RDONLY | os.O_DIRECTORY)
                if fs.lock(fd) and _is_at(fs, fd, draft):
                    try:
                        fs.stat(layout.incoming_blob(blob_id))
                    except FileNotFoundError:
                        return cls(fs, layout, blob_id, fd, draft)
                    fs.rmdir(draft)
            except FileNotFoundError:
                pass  # taken for a dead one's before it was locked
            except OSError:
                with contextlib.suppress(OSError):
                    fs.rmdir(draft)
                _close_quietly(fs, fd)
                raise
            _close_quietly(fs, fd)
        raise BlobBusy(f"blob {blob_id.hex()} is being received by another process, or has been; try again later")

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
            if not _is_at(fs, fd, path):
                raise FileNotFoundError(path)
        except OSError:
            _close_quietly(fs, fd)
            raise
        return cls(fs, layout, blob_id, fd)

    def __del__(self) -> None:
        # An adopter that was cancelled, a writer that was dropped: the lock must not outlive them.
        self.release()

    def sync(self, blocks: int, names: "NamesSync") -> None:
        """Make the names of its `blocks` blocks, numbered from 0, and of the directory itself durable."""
        self._fs.fsync(self._fd)
        path = self._layout.incoming_blob(self.blob_id)
        if self.path != path:
            self._fs.rename(self.path, path)
            self.path = path
        names.sync()
        self._written = blocks

    def blocks(self) -> list[int]:
        """Numbers of the blocks in it, ascending."""
        if self._written is not None:
            return list(range(self._written))
        return sorted(n for n in map(parse_number, self._fs.listdir(self.path)) if n is not None)

    def publish(self) -> None:
        """Move every block to `home/`, remove the directory, let go of the lock."""
        for number in self.blocks():
            self._fs.rename(f"{self.path}/{number}", self._layout.home_block(self.blob_id, number))
        try:
            self._fs.rmdir(self.path)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            self._unlink_twins()
            self._fs.rmdir(self.path)
        self.release()

    def _unlink_twins(self) -> None:
        """Unlink what has its name in `home/` too: to rename one name of a file to another of its names does nothing.

        Versions that published by links leave it so when they die at it.
        """
        self._written = None
        for number in self.blocks():
            source, target = f"{self.path}/{number}", self._layout.home_block(self.blob_id, number)
            if self._fs.stat(source).st_ino == self._fs.stat(target).st_ino:
                self._fs.unlink(source)

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


class NamesSync:
    """fsync of `incoming/`, for many uploads at a time: those that end while one runs share the next."""

    def __init__(self, fs: FileSystem, layout: Layout) -> None:
        self._fs = fs
        self._path = layout.incoming
        self._changed = threading.Condition()
        self._begun = 0
        self._done = 0
        self._running = False
        self._failure: tuple[int, OSError] | None = None  # the last sync that failed

    def sync(self) -> None:
        """Make durable what was done to names in the directory before this call. Blocks; raises OSError.

        The kernel reports a failed write to one caller of fsync only, so all that share it are told.
        """
        with self._changed:
            mine = self._begun + 1
            while self._running and self._done < mine:
                self._changed.wait()
            if self._done >= mine:
                if self._failure is not None and self._failure[0] >= mine:
                    error = self._failure[1]
                    raise OSError(error.errno, error.strerror)
                return
            self._running = True
            self._begun = mine = self._begun + 1
        failure: OSError | None = None
        try:
            sync_directory(self._fs, self._path)
        except OSError as error:
            failure = error
            raise
        finally:
            with self._changed:
                self._running = False
                self._done = mine
                if failure is not None:
                    self._failure = (mine, failure)
                self._changed.notify_all()


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
        # Its owner may have let go of it, and another have made one of that name, between the open and the lock.
        if not fs.lock(fd) or not _is_at(fs, fd, path):
            return False
        # A power cut can undo the rename and yet keep blocks that were made after it. They were never committed: that
        # takes a sync of the directory that the rename changed. And what was received of a copy is none yet.
        for block in fs.listdir(path):
            fs.unlink(f"{path}/{block}")
        fs.rmdir(path)
    except FileNotFoundError:
        return False
    finally:
        _close_quietly(fs, fd)
    return True


def _is_at(fs: FileSystem, fd: int, path: str) -> bool:
    """Whether an open directory is the one at `path`. Raises FileNotFoundError where there is none."""
    return fs.fstat(fd).st_ino == fs.stat(path).st_ino


def _close_quietly(fs: FileSystem, fd: int) -> None:
    """Close a directory: nothing was written through it, so an error has nothing to tell."""
    if fd >= 0:
        with contextlib.suppress(OSError):
            fs.close(fd)
