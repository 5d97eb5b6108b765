"""Where the log of requests to buckets lies on its way to their target buckets: files of a node's own disk.

For each bucket and day there is one file that all workers append to, whole records only, under a lock of the file. Who
delivers takes it: renames it under the same lock, so that nobody appends to it any more, and removes it when its
records are an object. What a process has appended survives its death; a power cut may take what the kernel has not yet
written, some seconds of it, for nothing here is synced. An append that was cut off in the middle is cut out by the next
one.

What lies there of one bucket is bounded; what comes beyond that is not taken.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_BUCKET = re.compile("[0-9a-f]{32}")
_OPEN = re.compile(r"(\d{4}-\d{2}-\d{2})")
_TAKEN = re.compile(r"(\d{4}-\d{2}-\d{2})\.(\d+)\.[0-9a-f]{16}")
_TAIL_BYTES = 1 << 18  # a record is shorter: the request's head that it is made from is bounded


class Taken(NamedTuple):
    """A file that nobody appends to any more: of which bucket, what happened on which `day` (``2026-01-31``), taken
    when, in Unix nanoseconds."""

    path: Path
    bucket: bytes
    day: str
    at_ns: int


class Spool:
    """The files under `directory`, at most `most_bytes` of them for each bucket, and no more where less than
    `reserve_bytes` of the disk are free. Every method blocks for some time."""

    def __init__(self, directory: Path, most_bytes: int, reserve_bytes: int = 0) -> None:
        self._directory = directory
        self._most_bytes = most_bytes
        self._reserve_bytes = reserve_bytes

    def append(self, bucket: bytes, day: str, records: bytes | bytearray) -> bool:
        """Append whole records, each ending in a newline. False: there is no room for them.

        Raises:
            OSError.
        """
        directory = self._directory / bucket.hex()
        if self._size(directory) + len(records) > self._most_bytes or not self._has_room(len(records)):
            return False
        with self._locked(directory / day) as fd:
            assert fd is not None
            _cut_torn(fd)
            view = memoryview(records)
            while view:
                view = view[os.write(fd, view) :]
        return True

    def take(self, bucket: bytes, day: str, now_ns: int) -> None:
        """Let nobody append any more to what there is of a bucket's `day`. Raises OSError."""
        path = self._directory / bucket.hex() / day
        with self._locked(path, create=False) as fd:
            if fd is not None:
                _cut_torn(fd)
                path.rename(path.with_name(f"{day}.{now_ns}.{secrets.token_hex(8)}"))

    def buckets(self) -> list[bytes]:
        """The ids of buckets of which something lies here."""
        with contextlib.suppress(FileNotFoundError):
            names = [entry.name for entry in os.scandir(self._directory)]
            return sorted(bytes.fromhex(name) for name in names if _BUCKET.fullmatch(name))
        return []

    def growing(self, bucket: bytes) -> dict[str, int]:
        """The days of which something lies here that is still appended to, and how many bytes."""
        return {name: size for name, size in self._files(bucket) if _OPEN.fullmatch(name)}

    def taken(self, bucket: bytes) -> list[Taken]:
        """What has been taken and not yet been removed, the oldest first."""
        directory = self._directory / bucket.hex()
        found = [
            Taken(directory / name, bucket, match[1], int(match[2]))
            for name, _ in self._files(bucket)
            if (match := _TAKEN.fullmatch(name))
        ]
        return sorted(found, key=lambda each: (each.at_ns, each.path))

    def tidy(self, bucket: bytes) -> None:
        """Remove the directory of a bucket of which nothing lies here."""
        with contextlib.suppress(OSError):
            (self._directory / bucket.hex()).rmdir()

    def _files(self, bucket: bytes) -> list[tuple[str, int]]:
        with contextlib.suppress(FileNotFoundError):
            return [(entry.name, entry.stat().st_size) for entry in os.scandir(self._directory / bucket.hex())]
        return []

    def _has_room(self, size: int) -> bool:
        if not self._reserve_bytes:
            return True
        self._directory.mkdir(parents=True, exist_ok=True)
        disk = os.statvfs(self._directory)
        return disk.f_bavail * disk.f_frsize - size >= self._reserve_bytes

    def _size(self, directory: Path) -> int:
        with contextlib.suppress(FileNotFoundError):
            return sum(entry.stat().st_size for entry in os.scandir(directory))
        return 0

    @contextlib.contextmanager
    def _locked(self, path: Path, *, create: bool = True) -> Iterator[int | None]:
        """The file of this name, open and locked; None where there is none and none is to be made."""
        while True:
            try:
                fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
            except FileNotFoundError:
                if not create:
                    yield None
                    return
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if _is(fd, path):  # else it was taken between the two calls
                    yield fd
                    return
            finally:
                os.close(fd)


def _is(fd: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), path.stat())
    return False


def _cut_torn(fd: int) -> None:
    """Remove what follows the last whole record: somebody died while he appended it."""
    size = os.fstat(fd).st_size
    if not size or os.pread(fd, 1, size - 1) == b"\n":
        return
    start = max(0, size - _TAIL_BYTES)
    os.ftruncate(fd, start + os.pread(fd, size - start, start).rfind(b"\n") + 1)
