"""Fair turns between the processes that write one SQLite file.

SQLite's own busy handler polls, so one eager writer starves the others. Here a writer stands in a two-stage queue
of kernel file locks: whoever holds the first is next in line and waits for the second, which is the turn itself.
A process that has just had its turn has to pass the first stage again, behind everyone who already waits there,
and so cannot barge in. The kernel releases the locks of a process that dies, at whichever stage.

The turn serialises our writers for fairness only: SQLite's own locks still guard the file against everyone else.
"""

from __future__ import annotations

import fcntl
import os


class Turns:
    """One writer's place in the queue for `path`. Not thread-safe; several in one process queue like processes."""

    def __init__(self, path: str) -> None:
        """Open (and make, if need be) the lock files `path`-next and `path`-turn.

        Raises:
            OSError: they cannot be opened.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._next = os.open(f"{path}-next", flags, 0o600)
        try:
            self._turn = os.open(f"{path}-turn", flags, 0o600)
        except OSError:
            os.close(self._next)
            raise

    def take(self) -> None:
        """Wait for the turn, however long it takes."""
        fcntl.flock(self._next, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._turn, fcntl.LOCK_EX)
        finally:
            fcntl.flock(self._next, fcntl.LOCK_UN)

    def give(self) -> None:
        """Pass the turn on."""
        fcntl.flock(self._turn, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the lock files, which gives up whatever is held."""
        os.close(self._next)
        os.close(self._turn)
