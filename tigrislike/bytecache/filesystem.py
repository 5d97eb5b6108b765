"""The seam between the block store and the kernel: every system call that it makes, one method each.

The tests put their own between: one that fails the Nth call, and one that records writes, syncs and directory changes
so that a power cut can be replayed. Nothing here retries, buffers or translates errors.
"""

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple

_FALLOC_FL_KEEP_SIZE: Final = 1
# The system call itself: the C library's posix_fallocate, which os has, writes to every page of the file where the
# filesystem cannot reserve space.
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Space(NamedTuple):
    """Of a filesystem, in bytes: its size, and what an ordinary user may still write."""

    total_bytes: int
    available_bytes: int

    def reserve(self, wanted_bytes: int) -> int:
        """What is left free where so much is wanted: a tenth of the size at most, so that one default suits all."""
        return min(wanted_bytes, self.total_bytes // 10)


class FileSystem:
    """The real one. Methods raise OSError as the system calls do."""

    def open(self, path: str, flags: int, mode: int = 0o400) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def fallocate(self, fd: int, length: int) -> bool:
        """Reserve space for the first `length` bytes of a file, whose size stays; False where that cannot be done."""
        while _fallocate(fd, _FALLOC_FL_KEEP_SIZE, 0, length):
            code = ctypes.get_errno()
            if code in (errno.EOPNOTSUPP, errno.ENOSYS):
                return False
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code))
        return True

    def fadvise(self, fd: int, offset: int, length: int, advice: int) -> None:
        """posix_fadvise; `advice` is one of os.POSIX_FADV_*."""
        os.posix_fadvise(fd, offset, length, advice)

    def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int, flags: int) -> int:
        return os.preadv(fd, buffers, offset, flags)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def stat(self, path: str) -> os.stat_result:
        return os.stat(path)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def scandir(self, path: str) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
        return os.scandir(path)

    def mkdir(self, path: str) -> None:
        os.mkdir(path, 0o700)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def utime(self, path: str) -> None:
        """Give a file the present time."""
        os.utime(path)

    def lock(self, fd: int) -> bool:
        """Take an exclusive flock without waiting; False when somebody else has it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                return False
            raise
        return True

    def lock_waiting(self, fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX)

    def drop_direct(self, fd: int) -> None:
        """Turn O_DIRECT off on an open file."""
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)

    def set_direct(self, fd: int) -> bool:
        """Turn O_DIRECT on for an open file; False where the filesystem has none."""
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
        return True

    def space(self, path: str) -> Space:
        answer = os.statvfs(path)
        return Space(answer.f_blocks * answer.f_frsize, answer.f_bavail * answer.f_frsize)


def write_all(fs: FileSystem, fd: int, data: bytes | memoryview, offset: int) -> None:
    """pwrite until everything is written: a disk that fills up half-way first answers with a short count."""
    view = memoryview(data)
    while view:
        written = fs.pwrite(fd, view, offset)
        if written <= 0:
            raise OSError(errno.EIO, "pwrite wrote nothing")
        view = view[written:]
        offset += written


def sync_directory(fs: FileSystem, path: str) -> None:
    """fsync a directory by path."""
    fd = fs.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fs.fsync(fd)
    finally:
        fs.close(fd)
