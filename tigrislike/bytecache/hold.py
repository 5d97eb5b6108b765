"""Holding a block store still: no block that a record needed a moment ago goes away while somebody copies the files.

A lock on a file in the store's root. Who gives back space takes it shared, for one pass and without waiting; who copies
takes it alone, for as long as that takes. The kernel lets go of it when its holder dies.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from tigrislike.bytecache.errors import BlobBusy, from_os_error

NAME = "hold.lock"
_PAUSE_S = 0.1


@contextlib.contextmanager
def passing(root: Path) -> Iterator[bool]:
    """For one pass that removes blocks. Yields False where the store is held: leave it be."""
    fd = _open(root)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


@contextlib.contextmanager
def holding(root: Path, timeout_s: float) -> Iterator[None]:
    """For as long as blocks must stay. Waits for passes under way. Blocks the thread.

    Raises:
        BlobBusy: somebody else holds the store, or a pass did not end in time.
    """
    fd = _open(root)
    try:
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    raise BlobBusy(f"{root} is held by another backup, or space is being given back there") from None
                time.sleep(_PAUSE_S)
        yield
    finally:
        os.close(fd)


def _open(root: Path) -> int:
    try:
        return os.open(root / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise from_os_error(error, f"holding {root}") from error
