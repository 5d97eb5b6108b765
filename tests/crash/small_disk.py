"""`tigrislike` on a disk whose space and faults a test decides: run as `python -m tests.crash.small_disk serve ...`.

The file named by DISK_SPACE_FILE, if any, holds two numbers, the size of the volume and what is available on it, both
in bytes. The file named by DISK_FAULT_FILE, if any, holds `nth code serial`: from when it was last replaced by one of
another serial, call number `nth` of those that take space fails with that errno, in each process; a file beside it,
with `.fired`, then holds the call's name.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tigrislike.bytecache.filesystem import FileSystem, Space
from tigrislike.cli import main

TAKES_SPACE = frozenset({"mkdir", "fallocate", "pwrite", "fdatasync", "fsync", "link", "rename"})
"""Calls that may need space on a disk; `open` with O_CREAT is one too."""


def takes_space(name: str, args: tuple[Any, ...]) -> bool:
    return name in TAKES_SPACE or (name == "open" and bool(args[1] & os.O_CREAT))


def _space(self: FileSystem, path: str) -> Space:
    total, available = Path(os.environ["DISK_SPACE_FILE"]).read_text().split()
    return Space(int(total), int(available))


class _Faults:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._serial = -1
        self._count = 0
        self._lock = threading.Lock()

    def around(self, name: str) -> Callable[..., Any]:
        real = getattr(FileSystem, name)

        def call(fs: FileSystem, *args: Any) -> Any:
            if takes_space(name, args):
                self._perhaps(name)
            return real(fs, *args)

        return call

    def _perhaps(self, name: str) -> None:
        with self._lock:
            nth, code, serial = map(int, self._file.read_text().split())
            if serial != self._serial:
                self._serial, self._count = serial, 0
            self._count += 1
            if self._count == nth:
                self._file.with_name(self._file.name + ".fired").write_text(name)
                raise OSError(code, os.strerror(code))


if __name__ == "__main__":
    if "DISK_SPACE_FILE" in os.environ:
        FileSystem.space = _space  # type: ignore[method-assign]
    if "DISK_FAULT_FILE" in os.environ:
        faults = _Faults(Path(os.environ["DISK_FAULT_FILE"]))
        for call in ("open", *TAKES_SPACE):
            setattr(FileSystem, call, faults.around(call))
    main()
