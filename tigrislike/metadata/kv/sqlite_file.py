"""Opening the SQLite file that holds the embedded metadata store, and saying what SQLite's errors mean.

Guarantees: write-ahead log with `synchronous=FULL` (a commit that returned survives power loss), one table
`kv(key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID`, an application id and a format version in the file's header.
A newer format is refused; there is no older one yet.
"""

from __future__ import annotations

import apsw

from .errors import CorruptStore, DiskFull, EngineBusy, EngineError, EngineUnavailable, UnknownFormat

APPLICATION_ID = 0x54674B56
"""`TgKV`, in the header of every file of ours."""

FORMAT_VERSION = 1

PAGE_BYTES = 8192
"""A row of up to about 2 kB then lies in its page; what overflows costs a read of its own, past the page cache."""

CACHE_KIB = 32 * 1024
"""Page cache of one connection. It is filled only as far as pages are used."""


def connect(path: str, *, busy_ms: int, vfs: str | None = None) -> apsw.Connection:
    """Open a connection to the file at `path`, made if it is not there.

    `busy_ms` bounds how long a statement waits for a lock that another process holds.

    Raises:
        EngineUnavailable: it cannot be opened, or cannot have a write-ahead log.
        CorruptStore, DiskFull, EngineBusy: as named.
    """
    try:
        connection = apsw.Connection(path, vfs=vfs, statementcachesize=64)
        connection.set_busy_timeout(busy_ms)
        connection.pragma("page_size", PAGE_BYTES)  # of a file that is made now; an existing one keeps its own
        mode = connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "FULL")
        connection.pragma("wal_autocheckpoint", 0)
        connection.pragma("cache_size", -CACHE_KIB)
        connection.pragma("temp_store", "MEMORY")
    except apsw.Error as error:
        raise translate(error, path) from error
    if mode != "wal":
        connection.close()
        raise EngineUnavailable(f"{path}: its file system cannot hold SQLite's write-ahead log (mode is {mode!r})")
    return connection


def prepare(connection: apsw.Connection, path: str) -> None:
    """Make the table in a fresh file, or check that the file is ours and of a format known here.

    Raises:
        UnknownFormat: it is another application's, or newer than this release.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            application_id = connection.pragma("application_id")
            version = connection.pragma("user_version")
            tables = connection.execute("SELECT count(*) FROM sqlite_schema").get
            if application_id == 0 and version == 0 and tables == 0:
                connection.pragma("application_id", APPLICATION_ID)
                connection.pragma("user_version", FORMAT_VERSION)
                connection.execute("CREATE TABLE kv(key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
            elif application_id != APPLICATION_ID:
                raise UnknownFormat(f"{path} is an SQLite file of another application (id {application_id:#x})")
            elif version != FORMAT_VERSION:
                raise UnknownFormat(
                    f"{path} has format version {version}, this release knows {FORMAT_VERSION}: use a newer release"
                )
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
    except apsw.Error as error:
        raise translate(error, path) from error


def translate(error: apsw.Error, path: str) -> EngineError:
    """The engine's error for one of SQLite's that certainly left nothing committed.

    A full disk is `DiskFull`, a lock that could not be had `EngineBusy`, damage `CorruptStore`, everything about
    reaching the file `EngineUnavailable`.
    """
    reason = f"{path}: {error}"
    if isinstance(error, apsw.FullError):
        return DiskFull(f"{reason}: no space left for metadata")
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return EngineBusy(f"{reason}: another process holds the database")
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return CorruptStore(f"{reason}: the file is damaged or not a database")
    if isinstance(error, apsw.IOError | apsw.CantOpenError | apsw.ReadOnlyError | apsw.PermissionsError):
        return EngineUnavailable(reason)
    return EngineError(f"{reason} ({type(error).__name__})")
