"""File systems that misbehave on purpose."""

import errno
import os
import threading
from collections.abc import Callable, Sequence

from tigrislike.bytecache.filesystem import FileSystem, Space

CALLS = tuple(name for name in vars(FileSystem) if not name.startswith("_"))
"""Every system call of the seam."""


class HookedFileSystem(FileSystem):
    """Calls `hook(name, args)` before each system call, which may raise, block or look around.

    A close always closes: Linux lets go of the descriptor even when close() fails.
    """

    def __init__(self, hook: Callable[[str, tuple[object, ...]], None]) -> None:
        self.hook = hook


def _hooked(name: str) -> Callable[..., object]:
    real = getattr(FileSystem, name)

    def call(self: HookedFileSystem, *args: object) -> object:
        if name == "close":
            real(self, *args)
            self.hook(name, args)
            return None
        self.hook(name, args)
        return real(self, *args)

    return call


for _name in CALLS:
    setattr(HookedFileSystem, _name, _hooked(_name))


class FailNth:
    """A hook that fails call number `nth` (from 1), and, if `forever`, all after it, until `nth` is set to 0."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.nth = 0
        self.forever = False
        self.failed: list[str] = []
        self._count = 0
        self._lock = threading.Lock()

    def arm(self, nth: int, *, forever: bool = False) -> None:
        self._count, self.nth, self.forever, self.failed = 0, nth, forever, []

    def disarm(self) -> None:
        self.nth = 0

    def __call__(self, name: str, args: tuple[object, ...]) -> None:
        with self._lock:
            if not self.nth:
                return
            self._count += 1
            if self._count == self.nth or (self.forever and self._count > self.nth):
                self.failed.append(name)
                raise OSError(self.code, os.strerror(self.code))


class NoSync(FileSystem):
    """The real one without waiting for the device: for tests in which no power is lost."""

    def fdatasync(self, fd: int) -> None:
        pass

    def fsync(self, fd: int) -> None:
        pass


class NoDirectAtOpen(NoSync):
    """As a filesystem without O_DIRECT does: makes the file, then refuses to open it."""

    def open(self, path: str, flags: int, mode: int = 0o400) -> int:
        if flags & os.O_DIRECT:
            os.close(super().open(path, flags & ~os.O_DIRECT, mode))
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return super().open(path, flags, mode)

    def set_direct(self, fd: int) -> bool:
        return False


class NoDirectAtWrite(NoSync):
    """Opens with O_DIRECT and then wants an alignment that pages do not have."""

    def __init__(self) -> None:
        self.direct: set[int] = set()

    def open(self, path: str, flags: int, mode: int = 0o400) -> int:
        fd = super().open(path, flags, mode)
        if flags & os.O_DIRECT:
            self.direct.add(fd)
        else:
            self.direct.discard(fd)
        return fd

    def drop_direct(self, fd: int) -> None:
        super().drop_direct(fd)
        self.direct.discard(fd)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        if fd in self.direct:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return super().pwrite(fd, data, offset)


class Residency(NoSync):
    """Answers RWF_NOWAIT reads as if every page were cold, or as a filesystem that cannot tell."""

    def __init__(self, code: int = errno.EAGAIN) -> None:
        self.code = code
        self.waited = 0

    def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int, flags: int) -> int:
        if flags & os.RWF_NOWAIT:
            raise OSError(self.code, os.strerror(self.code))
        self.waited += 1
        return super().preadv(fd, buffers, offset, flags)


class Warm(NoSync):
    """Everything counts as being in the page cache."""

    def preadv(self, fd: int, buffers: Sequence[bytearray | memoryview], offset: int, flags: int) -> int:
        return super().preadv(fd, buffers, offset, 0)


class SmallDisk(NoSync):
    """Reports `available_bytes` of space on a volume of `total_bytes`."""

    def __init__(self, total_bytes: int, available_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.available_bytes = available_bytes

    def space(self, path: str) -> Space:
        return Space(self.total_bytes, self.available_bytes)


class ShortWrites(NoSync):
    """Writes at most one page at a time."""

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        return super().pwrite(fd, memoryview(data)[:4096], offset)
