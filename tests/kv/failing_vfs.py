"""An SQLite VFS over the default one, which fails the Nth write or sync: how every I/O error path is reached.

SQLite's own method: fail operation N for N = 1, 2, 3 ... until a run passes untouched.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import apsw


class FailingVfs(apsw.VFS):
    """Registered under `name` while it lives.

    Attributes:
        operations: writes and syncs seen so far.
    """

    def __init__(self, name: str = "failing") -> None:
        self.name = name
        self.operations = 0
        self._fail_at: int | None = None
        self._times = 0
        self._error: apsw.Error = apsw.FullError("no space left")
        self._kinds: frozenset[str] = frozenset()
        self._lock = threading.Lock()
        super().__init__(name, "")

    def fail(self, after: int, error: apsw.Error, *, times: int = 1, kinds: str = "write truncate sync") -> None:
        """Let `times` operations of `kinds` fail with `error`, once `after` more of them have gone well."""
        with self._lock:
            self.operations = 0
            self._fail_at = after
            self._times = times
            self._error = error
            self._kinds = frozenset(kinds.split())

    def heal(self) -> bool:
        """Fail nothing from now on. Whether anything failed since `fail`."""
        with self._lock:
            failed = self._fail_at is not None and self.operations > self._fail_at
            self._fail_at = None
            return failed

    def before(self, kind: str) -> None:
        with self._lock:
            if self._fail_at is None or kind not in self._kinds:
                return
            self.operations += 1
            if self._fail_at < self.operations <= self._fail_at + self._times:
                raise self._error

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> FailingFile:
        return FailingFile(self, name, flags)


class FailingFile(apsw.VFSFile):
    def __init__(self, vfs: FailingVfs, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._vfs = vfs
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._vfs.before("write")
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:
        self._vfs.before("truncate")
        super().xTruncate(size)

    def xSync(self, flags: int) -> None:
        self._vfs.before("sync")
        super().xSync(flags)


@contextlib.contextmanager
def failing_vfs() -> Iterator[FailingVfs]:
    vfs = FailingVfs()
    try:
        yield vfs
    finally:
        vfs.unregister()
