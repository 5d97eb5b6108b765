"""A block being fetched, from its claim to its file in `cache/`.

The claim is a file in `filling/`, locked while its filler lives. The kernel lets go of a dead one's lock, and a file
whose lock is free is garbage to whoever meets it. The bytes are written to that file, and it is renamed; or they are in
a file of this disk already, which is renamed instead, and the claim goes.
"""

import contextlib
import errno
import os
import secrets
from typing import Final

from tigrislike.bytecache.errors import (
    BlobGone,
    BlockPresent,
    BytesError,
    CacheFull,
    DiskFull,
    FillInProgress,
    MissingBlob,
    from_os_error,
)
from tigrislike.bytecache.filesystem import FileSystem, write_all
from tigrislike.bytecache.holdings import Holdings
from tigrislike.bytecache.index import FILLING, LEAVING, PINNED, Rows
from tigrislike.bytecache.policies import GHOST, Entry, Key

_TRIES: Final = 16


class Filling:
    """Made by `Cache.begin`. Whoever began it ends it, once, with `commit`, `take` or `abandon`; on any thread."""

    def __init__(self, holdings: Holdings, key: Key, size: int, fd: int, *, taken: str | None = None) -> None:
        self._holdings = holdings
        self._fs = holdings.fs
        self._key = key
        self._size = size
        self._fd = fd
        self._path = holdings.layout.filling_block(*key)
        self._taken = taken
        self._target = holdings.layout.cache_block(*key)
        # Tells this fill's row from one of a later filler of the block.
        self._token = secrets.randbits(62)
        # Whether there may be a row: not even a turn that failed at its end is sure to have left none.
        self._reserved = False
        self._ghost: Entry | None = None

    def __repr__(self) -> str:
        return f"<Filling of {block_name(self._key)}>"

    def commit(self, image: memoryview) -> None:
        """Keep the block: its file appears in `cache/`. It is not synced: what a power cut leaves fails its checksums.

        Args:
            image: The whole file: data, padding, footer. Where its memory begins at a page, O_DIRECT is used.

        Raises:
            BlobGone: The blob was removed meanwhile.
            BlobBusy, DiskFull, DiskFailed
            Whatever is raised, nothing of the block is left.
        """
        try:
            if len(image) != self._size:
                raise ValueError(f"{block_name(self._key)} is a file of {self._size} bytes, not {len(image)}")
            self._write(image)
            self._holdings.write(self._publish, hurried=True)
        except OSError as error:
            self.abandon()
            raise from_os_error(error, f"writing {block_name(self._key)}") from error
        except BaseException:
            self.abandon()
            raise
        self._release()

    def take(self) -> None:
        """Keep the block by moving the file that was named to `Cache.begin`.

        Raises:
            MissingBlob: It is gone.
            BlobGone: The blob was removed from the cache meanwhile.
            BlobBusy, DiskFull, DiskFailed
            Whatever is raised, the file is where it was or nowhere.
        """
        try:
            self._holdings.write(self._publish)
        except FileNotFoundError as error:
            self.abandon()
            raise MissingBlob(f"{block_name(self._key)} is gone") from error
        except OSError as error:
            self.abandon()
            raise from_os_error(error, f"moving {block_name(self._key)}") from error
        except BaseException:
            self.abandon()
            raise
        with contextlib.suppress(OSError):  # whoever finds the lock free removes it
            self._unlink(self._path)
        self._release()

    def abandon(self) -> None:
        """Leave the block unfilled. Does nothing after `commit` or `take`. What the disk does not let go of is left as
        a dead filler leaves it; what the index does not, goes with this process's next turn at it."""
        if self._fd < 0:
            return
        if self._reserved:
            try:
                self._holdings.write(self._forget if self._taken is None else self._forget_later, hurried=True)
            except (BytesError, OSError):
                self._holdings.owe(self._token, self._forget_later)
        with contextlib.suppress(OSError):
            self._unlink(self._path)
        self._release()

    def reserve(self, rows: Rows) -> bool:
        """Add the row, evicting what is in its way; False when there is more to evict than fits one turn.

        Raises:
            BlockPresent, CacheFull, PinsFull, DiskFull
        """
        holdings, key = self._holdings, self._key
        if not holdings.is_ready(rows):
            raise CacheFull("the cache takes no blocks until it is reconciled, as a node does when it starts")
        if holdings.status(self._target) is not None:
            raise BlockPresent(f"{block_name(key)} is in the cache")
        entry = rows.get(key)
        if entry is not None and entry.queue == GHOST:
            self._ghost = entry  # kept by this object: making room may make the policy forget it
        elif entry is not None:
            rows.drop(entry)  # a dead filler's, or of a file that is gone
        if holdings.is_pinned(key[0]):
            holdings.check_pins(rows, self._size)
        capacity = holdings.capacity_bytes
        if capacity is not None:
            totals = rows.totals()
            used = sum(total.held_bytes for queue, total in totals.items() if queue != GHOST)
            staying = sum(totals[queue].held_bytes for queue in (FILLING, LEAVING, PINNED) if queue in totals)
            if staying + self._size > capacity:
                raise CacheFull(f"{staying} of the cache's {capacity} bytes are pinned or being filled")
            excess = used + self._size - capacity
            if excess > 0 and (freed := holdings.evict(rows, excess, "capacity")) < excess:
                if not freed:
                    raise CacheFull("everything in the cache turned out to be pinned")
                return False
        if (lacking := holdings.lacking_bytes(self._size if self._taken is None else 0, rows)) > 0:
            raise DiskFull(f"{holdings.layout.root} lacks {lacking} bytes; free space on its filesystem")
        if (entry := rows.get(key)) is not None:
            rows.drop(entry)
        rows.insert(key, self._size, FILLING, self._token)
        self._reserved = True
        return True

    def _write(self, image: memoryview) -> None:
        direct = self._fs.set_direct(self._fd)
        try:
            write_all(self._fs, self._fd, image, 0)
        except OSError as error:
            if error.errno != errno.EINVAL or not direct:
                raise
            # The memory or the device wants another alignment.
            self._fs.drop_direct(self._fd)
            write_all(self._fs, self._fd, image, 0)

    def _publish(self, rows: Rows) -> None:
        entry = self._own_row(rows)
        if entry is None or entry.queue != FILLING:
            raise BlobGone(f"blob {self._key[0].hex()} was removed while its block {self._key[1]} was fetched")
        source = self._taken or self._path
        try:
            self._fs.rename(source, self._target)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                self._fs.mkdir(self._holdings.layout.cache_shard(self._key[0]))
            self._fs.rename(source, self._target)
        if self._holdings.is_pinned(self._key[0]):
            rows.move(entry, PINNED)
        else:
            rows.move(entry, self._holdings.policy(rows).admit(self._ghost))
        self._holdings.is_another_read(rows, self._key)  # the one that it was fetched for

    def _forget(self, rows: Rows) -> None:
        self._unlink(self._target)  # renamed already, and then the index refused
        entry = self._own_row(rows)
        if entry is not None:
            rows.drop(entry)

    def _forget_later(self, rows: Rows) -> None:
        """As `_forget`, when the file is closed, or is one that was taken. While the row is there nobody else has taken
        the block's place, so a file under its name is this fill's."""
        entry = self._own_row(rows)
        if entry is not None and entry.queue in (FILLING, LEAVING):
            with contextlib.suppress(FileNotFoundError):
                self._fs.unlink(self._target)
            rows.drop(entry)

    def _unlink(self, path: str) -> None:
        if has_name(self._fs, self._fd, path):
            self._fs.unlink(path)

    def _own_row(self, rows: Rows) -> Entry | None:
        entry = rows.get(self._key)
        return entry if entry is not None and entry.place == self._token else None

    def _release(self) -> None:
        fd, self._fd = self._fd, -1
        close(self._fs, fd)


def claim(fs: FileSystem, path: str) -> int:
    """Make a file in `filling/`, locked; its descriptor. A dead filler's is removed.

    Raises:
        FillInProgress: A live filler has it.
    """
    for _ in range(_TRIES):
        try:
            fd = fs.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            if not remove_dead(fs, path):
                raise FillInProgress(f"{os.path.basename(path)} is being fetched by another filler") from None
            continue
        try:
            if fs.lock(fd) and has_name(fs, fd, path):
                return fd
        except OSError:
            close(fs, fd)
            with contextlib.suppress(OSError):
                remove_dead(fs, path)
            raise
        close(fs, fd)  # taken for a dead filler's before it was locked
    raise FillInProgress(f"{os.path.basename(path)} was taken for a dead filler's {_TRIES} times in a row")


def remove_dead(fs: FileSystem, path: str) -> bool:
    """Remove a file in `filling/` unless its filler lives; whether it is gone."""
    try:
        fd = fs.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if not fs.lock(fd):
            return False
        if has_name(fs, fd, path):
            fs.unlink(path)
        return True
    finally:
        close(fs, fd)


def close(fs: FileSystem, fd: int) -> None:
    """Close, whatever the system says: what was written is checked when it is read."""
    with contextlib.suppress(OSError):
        fs.close(fd)


def block_name(key: Key) -> str:
    return f"block {key[1]} of blob {key[0].hex()}"


def has_name(fs: FileSystem, fd: int, path: str) -> bool:
    try:
        return fs.fstat(fd).st_ino == fs.stat(path).st_ino
    except FileNotFoundError:
        return False
