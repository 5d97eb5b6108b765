"""The cache's index: which blocks are in `cache/`, in which order to evict them, and how many bytes that makes.

An SQLite file of one row per block, shared by all processes of a root. It is derived: the directory is the truth, and
`Cache.reconcile` makes the rows agree with it. So it is not synced on commit, a damaged one is set aside for a fresh
one, and it may be deleted (with its -wal and -shm) at any time.

What it guarantees: jobs given to `write` run one at a time over all processes; totals are exact sums of the rows,
always (triggers keep them). A job changes files and their rows together, so however it ends, what it did is committed;
only SQLite's own failure rolls rows back. The file system's errors and those of jobs pass through as they are.
"""

import contextlib
import fcntl
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import apsw

from tigrislike.bytecache.errors import BlobBusy, BytesError, DiskFailed, DiskFull, from_os_error
from tigrislike.bytecache.policies import GHOST, Entry, Key

FILLING: Final = "filling"
"""The queue of blocks being fetched: their bytes are spoken for, their `place` is the filler's token."""
LEAVING: Final = "leaving"
"""The queue of what is not wanted any more but not gone: fills in progress of a removed blob, and files that the disk
would not let go of."""
PINNED: Final = "pinned"
"""The queue of blocks that no policy sees."""

T = TypeVar("T")

_LOG = logging.getLogger("tigrislike.bytecache")
_HURRIED_S: Final = 2.0
"""The longest wait of a job that can be done without: a fill, whose bytes are served all the same."""
_BROKEN_S: Final = 1.0
"""After a job that waited in vain, for so long hurried ones do not wait."""
_BROKEN_LOCK_S: Final = 0.1
"""What they wait meanwhile for this process's other threads, which may be waiting for that turn."""
_APPLICATION_ID: Final = 0x54674243
"""`TgBC`"""
_VERSION: Final = 2
_SCHEMA: Final = """
CREATE TABLE block(
    blob BLOB NOT NULL, number INTEGER NOT NULL, bytes INTEGER NOT NULL,
    queue TEXT NOT NULL, place INTEGER NOT NULL, counter INTEGER NOT NULL, read_s REAL,
    PRIMARY KEY (blob, number)) WITHOUT ROWID;
CREATE INDEX block_order ON block(queue, place);
CREATE TABLE total(queue TEXT PRIMARY KEY, blocks INTEGER NOT NULL, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER block_in AFTER INSERT ON block BEGIN
    INSERT INTO total VALUES (new.queue, 1, new.bytes)
        ON CONFLICT DO UPDATE SET blocks = blocks + 1, bytes = bytes + excluded.bytes; END;
CREATE TRIGGER block_out AFTER DELETE ON block BEGIN
    UPDATE total SET blocks = blocks - 1, bytes = bytes - old.bytes WHERE queue = old.queue; END;
CREATE TRIGGER block_moved AFTER UPDATE OF bytes, queue ON block BEGIN
    UPDATE total SET blocks = blocks - 1, bytes = bytes - old.bytes WHERE queue = old.queue;
    INSERT INTO total VALUES (new.queue, 1, new.bytes)
        ON CONFLICT DO UPDATE SET blocks = blocks + 1, bytes = bytes + excluded.bytes; END;
CREATE TABLE meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
"""
_ENTRY: Final = "SELECT blob, number, bytes, queue, place, counter FROM block"


class Total(NamedTuple):
    """Of one queue."""

    blocks: int
    held_bytes: int


_NONE: Final = Total(0, 0)


class Rows:
    """The index within one transaction: a `Shelf`, and what the cache needs beside."""

    def __init__(self, connection: apsw.Connection, capacity_bytes: int | None) -> None:
        self._execute = connection.execute
        self._many = connection.executemany
        self._changes = connection.changes
        self._capacity_bytes = capacity_bytes

    # What a policy sees.

    @property
    def room_bytes(self) -> int:
        totals = self.totals()
        pinned = totals.get(PINNED, _NONE).held_bytes
        if self._capacity_bytes is not None:
            return max(0, self._capacity_bytes - pinned)
        other = (FILLING, LEAVING, PINNED, GHOST)
        return sum(total.held_bytes for queue, total in totals.items() if queue not in other)

    @property
    def hand(self) -> int:
        place = self.meta("hand")
        return -1 if place is None else int(place)

    @hand.setter
    def hand(self, place: int) -> None:
        self.set_meta("hand", place)

    def held_bytes(self, queue: str) -> int:
        return self.totals().get(queue, _NONE).held_bytes

    def first(self, queue: str, after: int = -1) -> Entry | None:
        return self._one(f"{_ENTRY} WHERE queue = ? AND place > ? ORDER BY place LIMIT 1", (queue, after))

    def move(self, entry: Entry, queue: str, counter: int = 0, place: int | None = None) -> None:
        self._execute(
            "UPDATE block SET queue = ?, place = ?, counter = ? WHERE blob = ? AND number = ?",
            (queue, self._new_place(queue) if place is None else place, counter, *entry.key),
        )

    def count(self, entry: Entry, counter: int) -> None:
        self._execute("UPDATE block SET counter = ? WHERE blob = ? AND number = ?", (counter, *entry.key))

    def drop(self, entry: Entry) -> None:
        self._execute("DELETE FROM block WHERE blob = ? AND number = ?", entry.key)

    # What the cache needs beside.

    def get(self, key: Key) -> Entry | None:
        return self._one(f"{_ENTRY} WHERE blob = ? AND number = ?", key)

    def insert(self, key: Key, size: int, queue: str, place: int | None = None) -> None:
        """Add a block that has no row; at the new end of the queue unless its `place` is given."""
        self._execute(
            "INSERT INTO block VALUES (?, ?, ?, ?, ?, 0, NULL)",
            (*key, size, queue, self._new_place(queue) if place is None else place),
        )

    def insert_missing(self, blocks: list[tuple[Key, int]], queue: str) -> int:
        """Add those (key, size) that have no row at the new end of a queue; how many."""
        place = self._new_place(queue)
        before = self.totals().get(queue, _NONE).blocks
        self._many(
            "INSERT INTO block VALUES (?, ?, ?, ?, ?, 0, NULL) "
            "ON CONFLICT DO UPDATE SET bytes = excluded.bytes, queue = excluded.queue, place = excluded.place "
            "WHERE queue = ?",
            ((*key, size, queue, place + index, GHOST) for index, (key, size) in enumerate(blocks)),
        )
        return self.totals().get(queue, _NONE).blocks - before

    def renew(self, key: Key, now_s: float, within_s: float) -> bool:
        """Have a block read now, by a clock that all processes share, unless it was within the last `within_s`; whether
        it was not. Times to come are of before the machine started."""
        self._execute(
            "UPDATE block SET read_s = ? WHERE blob = ? AND number = ? AND (read_s BETWEEN ? AND ?) IS NOT TRUE",
            (now_s, *key, now_s - within_s, now_s),
        )
        return self._changes() > 0

    def resize(self, entry: Entry, size: int) -> None:
        self._execute("UPDATE block SET bytes = ? WHERE blob = ? AND number = ?", (size, *entry.key))

    def of_blob(self, blob_id: bytes) -> list[Entry]:
        """All rows of a blob, ghosts included, by number."""
        return self._all(f"{_ENTRY} WHERE blob = ? ORDER BY number", (blob_id,))

    def of_shard(self, shard: int) -> Iterator[Entry]:
        """All rows of blobs whose id begins with the byte `shard`, ghosts included."""
        bounds: tuple[bytes, ...] = (bytes([shard]),) if shard == 255 else (bytes([shard]), bytes([shard + 1]))
        where = "blob >= ?" if shard == 255 else "blob >= ? AND blob < ?"
        return map(_entry, self._execute(f"{_ENTRY} WHERE {where}", bounds))

    def of_queue(self, queue: str) -> list[Entry]:
        return self._all(f"{_ENTRY} WHERE queue = ? ORDER BY place", (queue,))

    def page(self, after: Key, limit: int) -> list[Entry]:
        """Up to `limit` rows beyond the key `after`, by key, ghosts not included."""
        return self._all(
            f"{_ENTRY} WHERE (blob, number) > (?, ?) AND queue <> ? ORDER BY blob, number LIMIT ?",
            (*after, GHOST, limit),
        )

    def totals(self) -> dict[str, Total]:
        """By queue; those that never held anything are missing."""
        rows = self._execute("SELECT queue, blocks, bytes FROM total")
        return {queue: Total(blocks, held_bytes) for queue, blocks, held_bytes in rows}

    def rearrange(self, queue: str) -> None:
        """Put everything that a policy arranged into one queue, in order of place, and forget the ghosts."""
        self._execute("DELETE FROM block WHERE queue = ?", (GHOST,))
        self._execute(
            "UPDATE block SET queue = ?, counter = 0 WHERE queue NOT IN (?, ?, ?)", (queue, FILLING, LEAVING, PINNED)
        )

    def meta(self, name: str) -> Any:
        row = self._execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def set_meta(self, name: str, value: str | int) -> None:
        self._execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def _new_place(self, queue: str) -> int:
        newest = self._execute("SELECT max(place) FROM block WHERE queue = ?", (queue,)).get
        return 0 if newest is None else int(newest) + 1

    def _one(self, query: str, bindings: Sequence[Any]) -> Entry | None:
        row = self._execute(query, bindings).fetchone()
        return None if row is None else _entry(row)

    def _all(self, query: str, bindings: Sequence[Any]) -> list[Entry]:
        return list(map(_entry, self._execute(query, bindings)))


def _entry(row: Sequence[Any]) -> Entry:
    blob_id, number, *rest = row
    return Entry((blob_id, number), *rest)


class Index:
    """The file. Thread-safe; several per process and root are fine.

    Attributes:
        generation: Counts the files that this object has used, for whoever must know whether rows that it wrote in
            several steps are all in one.
    """

    def __init__(
        self,
        path: str,
        *,
        busy_s: float,
        vfs: str | None = None,
        is_full: Callable[[], bool] = lambda: False,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Does no I/O.

        Args:
            path: Of the file; it and its directory's lock are made and taken as needed.
            busy_s: How long a job waits for its turn.
            vfs: SQLite's, for tests.
            is_full: Whether the file's disk is: SQLite tells some failures for want of space from others, not all.
            clock_s: A steady clock, for tests; it does not measure the waits.
        """
        self.generation = 0
        self._path = path
        self._busy_s = busy_s
        self._vfs = vfs
        self._lock = threading.Lock()
        self._connection: apsw.Connection | None = None
        self._inode = -1
        self._is_full = is_full
        self._clock_s = clock_s
        self._broken_until_s = float("-inf")
        self._limit_s = busy_s

    def write(self, job: Callable[[Rows], T], capacity_bytes: int | None = None, *, hurried: bool = False) -> T:
        """Run `job` alone on the rows. It runs again, on a fresh index, when the file turns out to be damaged.

        Args:
            job: Given the rows.
            capacity_bytes: For `Rows.room_bytes`.
            hurried: Wait two seconds at most, and not at all where another job has just waited in vain: jobs wait one
                after the other, and behind a process that is stopped their waits would add up.

        Raises:
            BlobBusy: No turn within `busy_s`.
            DiskFull, DiskFailed: SQLite could not write.
            Exception: What the job raised; what it had done by then is committed.
        """
        return self._run("BEGIN IMMEDIATE", job, capacity_bytes, hurried)

    def read(self, job: Callable[[Rows], T]) -> T:
        """Run `job`, which changes nothing, on one snapshot of the rows. Raises as `write` does."""
        return self._run("BEGIN", job, None, False)

    def close(self) -> None:
        with self._lock:
            self._disconnect()

    def _run(self, begin: str, job: Callable[[Rows], T], capacity_bytes: int | None, hurried: bool) -> T:
        hurried_s = min(self._busy_s, _HURRIED_S)
        if not self._lock.acquire(timeout=-1 if not hurried else _BROKEN_LOCK_S if self._is_broken() else hurried_s):
            raise BlobBusy(f"{self._path}: other threads have waited for the cache's index for more than {hurried_s} s")
        try:
            self._limit_s = self._busy_s if not hurried else 0.0 if self._is_broken() else hurried_s
            try:
                try:
                    return self._transact(begin, job, capacity_bytes)
                except (apsw.CorruptError, apsw.NotADBError) as error:
                    self._set_aside(error)
                    return self._transact(begin, job, capacity_bytes)
            except (apsw.BusyError, apsw.LockedError) as error:
                if self._limit_s:
                    self._broken_until_s = self._clock_s() + _BROKEN_S
                raise self._translate(error) from error
            except apsw.Error as error:
                raise self._translate(error) from error
        finally:
            self._lock.release()

    def _is_broken(self) -> bool:
        return self._clock_s() < self._broken_until_s

    def _transact(self, begin: str, job: Callable[[Rows], T], capacity_bytes: int | None) -> T:
        connection = self._connect()
        try:
            connection.execute(begin)
            try:
                result = job(Rows(connection, capacity_bytes))
            except apsw.Error:
                raise
            except BaseException:
                connection.execute("COMMIT")
                raise
            connection.execute("COMMIT")
            return result
        except apsw.Error:
            if connection.in_transaction:
                with contextlib.suppress(apsw.Error):  # the first error is the one to tell
                    connection.execute("ROLLBACK")
            raise

    def _connect(self) -> apsw.Connection:
        """The connection to the file that has the name now."""
        try:
            return self._connect_anew_if_replaced()
        except OSError as error:
            raise from_os_error(error, f"opening {self._path}") from error

    def _connect_anew_if_replaced(self) -> apsw.Connection:
        if self._connection is not None:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self._path).st_ino == self._inode:
                    return self._connection
            self._disconnect()
        with self._directory_locked():
            if not os.path.exists(self._path):
                self._remove_log()
            connection = apsw.Connection(self._path, vfs=self._vfs)
            try:
                self._inode = os.stat(self._path).st_ino
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
        self._connection = connection
        self.generation += 1
        return connection

    def _prepare(self, connection: apsw.Connection) -> None:
        deadline_s = 0.0

        def wait_for_turn(tries: int) -> bool:
            # A short wait of about equal length for all: SQLite's own grows with each try, which starves the patient.
            nonlocal deadline_s
            now_s = time.monotonic()
            if tries == 0:
                deadline_s = now_s + self._limit_s
            if now_s >= deadline_s:
                return False
            time.sleep(random.uniform(0.0005, 0.0015))
            return True

        connection.set_busy_handler(wait_for_turn)
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "NORMAL")
        connection.pragma("cache_size", -8 * 1024)
        if connection.pragma("user_version") == 0 and not connection.execute("SELECT count(*) FROM sqlite_schema").get:
            connection.execute(
                f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id = {_APPLICATION_ID}; "
                f"PRAGMA user_version = {_VERSION}; COMMIT"
            )
        elif (connection.pragma("application_id"), connection.pragma("user_version")) != (_APPLICATION_ID, _VERSION):
            raise apsw.NotADBError("not an index of this version")

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(apsw.Error):  # all that was worth keeping is committed
                connection.close()

    def _set_aside(self, error: apsw.Error) -> None:
        """Make the name free for a fresh file, unless another process has done so since."""
        _LOG.warning("%s is set aside (%s); the cache takes no blocks until it is reconciled", self._path, error)
        with self._directory_locked():
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self._path).st_ino == self._inode:
                    os.rename(self._path, f"{self._path}.damaged")
                    self._remove_log()
            self._disconnect()

    def _remove_log(self) -> None:
        for suffix in ("-wal", "-shm"):
            Path(self._path + suffix).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _directory_locked(self) -> Iterator[None]:
        """For making and replacing the file: held for milliseconds, by one process at a time."""
        fd = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _translate(self, error: apsw.Error) -> BytesError:
        text = f"{self._path}: {error}"
        lacks_space = isinstance(error, apsw.IOError | apsw.CantOpenError) and self._is_full()
        if isinstance(error, apsw.FullError) or lacks_space:
            return DiskFull(f"{text}; free space on the cache directory's filesystem")
        if isinstance(error, apsw.BusyError | apsw.LockedError):
            return BlobBusy(f"{text}: other processes keep the cache's index for more than {self._limit_s} s")
        return DiskFailed(text)
