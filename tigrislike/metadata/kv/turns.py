"""Fair turns between the processes that write one SQLite file.

SQLite's own busy handler polls, so one eager writer starves the others, and a plain file lock goes to whoever is
scheduled first. Here writers queue as for a CLH lock, made of kernel file locks: each takes the next number from a
shared counter, locks the byte of that number, waits for the byte of the number before it, and so is served strictly
in the order of arrival. A byte of its own, locked last, is the turn itself: whatever becomes of the queue, two
never hold it at once.

The kernel drops a dead process's locks. Its successor in the queue then goes on too early, at worst beside the one
that the dead one waited for, and waits for the turn itself instead: fairness suffers for a moment, nothing else.

The turn serialises our own writers. SQLite's locks still guard the file against everyone else. Linux only (open
file description locks), and only on file systems whose locks work, as for SQLite itself.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct

COUNTER = struct.Struct("=Q")
LOCK = struct.Struct("hhqqi4x")
"""`struct flock`: type, whence, start, length, process."""

TURN_BYTE = 0
FIRST_PLACE_BYTE = 4096
MAX_TICKET = 1 << 62


def _lock(kind: int, byte: int) -> bytes:
    return LOCK.pack(kind, os.SEEK_SET, byte, 1, 0)


TURN = _lock(fcntl.F_WRLCK, TURN_BYTE)
TURN_OVER = _lock(fcntl.F_UNLCK, TURN_BYTE)


class Turns:
    """One writer's place in the queue for `path`. Not thread-safe; several in one process queue like processes."""

    def __init__(self, path: str) -> None:
        """Open (and make, if need be) the lock file `path`-turns.

        Raises:
            OSError: it cannot be opened.
        """
        self._file = os.open(f"{path}-turns", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(self._file).st_size < COUNTER.size:
                os.ftruncate(self._file, COUNTER.size)
            self._counter = mmap.mmap(self._file, COUNTER.size)
        except BaseException:
            os.close(self._file)
            raise
        self._leave = b""

    def take(self) -> None:
        """Wait for the turn, however long it takes.

        Raises:
            OSError: the kernel refuses the lock.
        """
        file = self._file
        fcntl.flock(file, fcntl.LOCK_EX)  # held for microseconds, to draw a number
        try:
            ticket = COUNTER.unpack_from(self._counter)[0] % MAX_TICKET
            COUNTER.pack_into(self._counter, 0, ticket + 1)
            place = FIRST_PLACE_BYTE + ticket
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, _lock(fcntl.F_WRLCK, place))
            self._leave = _lock(fcntl.F_UNLCK, place)
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLKW, _lock(fcntl.F_RDLCK, place - 1))
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, _lock(fcntl.F_UNLCK, place - 1))
            fcntl.fcntl(file, fcntl.F_OFD_SETLKW, TURN)
        except BaseException:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, self._leave)
            raise

    def give(self) -> None:
        """Pass the turn on."""
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, TURN_OVER)
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, self._leave)

    def close(self) -> None:
        """Give up whatever is held."""
        self._counter.close()
        os.close(self._file)
