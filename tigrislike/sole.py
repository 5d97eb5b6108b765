"""One node at a time on a cache directory: a second one would take the first one's place among the nodes.

A lock on a file there, which the supervisor holds for as long as it lives. The kernel lets go of it however that ends,
so that a node that was killed starts again at once. A forked child has to close what it inherits of it, for children
may outlive the supervisor by the time that they take to stop. Commands beside a running node do not ask for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Final

NAME: Final = "serve.lock"
PATIENCE_S: Final = 3.0
"""For one that is just ending, or has just forked."""
_PAUSE_S: Final = 0.05


class Occupied(Exception):
    """Another node runs on the directory; the message says which process that is."""


def occupy(directory: Path, patience_s: float = PATIENCE_S) -> int:
    """The descriptor of the lock, held until it is closed. Blocks the thread for up to `patience_s`.

    Raises:
        Occupied: somebody else has it. OSError: the file cannot be made or locked.
    """
    fd = os.open(directory / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline_s = time.monotonic() + patience_s
        while not _locked(fd):
            if time.monotonic() >= deadline_s:
                holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
                raise Occupied(f"a node runs on {directory} already (process {holder}): stop it, or use another one")
            time.sleep(_PAUSE_S)
        with contextlib.suppress(OSError):  # a full disk: it can be locked, but does not say by whom
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
