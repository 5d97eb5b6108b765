"""Reading files as the device has them, and leaving the page cache to those who serve from it.

With O_DIRECT both come by themselves. Where the filesystem has none, what is in the page cache already is read from
there, for only the kernel could say what lies beneath; what is not is read, and let go of again.
"""

import errno
import os

from tigrislike.bytecache.filesystem import FileSystem


class DeviceReader:
    """Reads an open file. Its flags are changed; it stays the caller's."""

    def __init__(self, fs: FileSystem, fd: int) -> None:
        self._fs = fs
        self._fd = fd
        self._direct = fs.set_direct(fd)
        if not self._direct:
            self._forgo_readahead()

    def read(self, buffer: memoryview, offset: int) -> int:
        """As preadv: how many bytes came. Buffer and offset are aligned to pages. Raises OSError."""
        if self._direct:
            try:
                return self._fs.preadv(self._fd, [buffer], offset, 0)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            # The device wants another alignment.
            self._fs.drop_direct(self._fd)
            self._direct = False
            self._forgo_readahead()
        try:
            if self._fs.preadv(self._fd, [buffer], offset, os.RWF_NOWAIT) == len(buffer):
                return len(buffer)
            is_cold = True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                raise
            # Where it cannot be told, what others read is not dropped.
            is_cold = error.errno == errno.EAGAIN
        got = self._fs.preadv(self._fd, [buffer], offset, 0)
        if is_cold:
            self._fs.fadvise(self._fd, offset, len(buffer), os.POSIX_FADV_DONTNEED)
        return got

    def _forgo_readahead(self) -> None:
        # It would make warm what is about to be read.
        self._fs.fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)
