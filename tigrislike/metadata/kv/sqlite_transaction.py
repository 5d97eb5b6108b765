"""Transactions on an SQLite connection: `Reading` on a snapshot, `Writing` inside a group's write transaction.

Both answer at once, so a transaction function is driven to its end without an event loop (`drive`). Writes go
straight into the connection, which is what makes them visible to later reads of the same function; undoing them
is the writer's business. Limits are those of FoundationDB.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import islice
from types import CoroutineType
from typing import Any, NoReturn, TypeVar

import apsw

from .clock import Clock
from .engine import Ready, Watch
from .errors import (
    EngineError,
    ForeignAwait,
    ReadOnlyTransaction,
    TransactionEnded,
    TransactionMisuse,
    TransactionTooOld,
    Unreadable,
)
from .limits import (
    KEY_BYTES,
    METADATA_VERSION_KEY,
    SYSTEM_PREFIX,
    TRANSACTION_BYTES,
    TRANSACTION_NS,
    VALUE_BYTES,
    added,
    check_delta,
    check_key,
    check_maximum,
    check_range,
    maximum,
    reject_key,
    reject_size,
    reject_value,
)
from .sqlite_file import translate
from .sqlite_watch import SqliteWatch, Watches

T = TypeVar("T")

COMMIT_VERSION_KEY = b"\xff/commitVersion"
"""Counts the transactions that wrote; 8 bytes, big-endian."""

GET = "SELECT value FROM kv WHERE key=?"
PUT = "INSERT INTO kv VALUES(?,?) ON CONFLICT(key) DO UPDATE SET value=excluded.value"
CLEAR = "DELETE FROM kv WHERE key=?"
CLEAR_RANGE = "DELETE FROM kv WHERE key>=? AND key<?"
# Without LIMIT: SQLite compiles a statement anew whenever a bound LIMIT changes its plan, which doubles a short read.
ASCENDING = "SELECT key,value FROM kv WHERE key>=? AND key<? ORDER BY key"
DESCENDING = "SELECT key,value FROM kv WHERE key>=? AND key<? ORDER BY key DESC"


def drive(awaitable: Awaitable[T]) -> T:
    """Run a transaction function's coroutine to its end, which it reaches without ever suspending.

    Raises:
        ForeignAwait: it awaited something that was not ready: not one of its transaction's reads.
    """
    if type(awaitable) is CoroutineType:
        try:
            awaitable.send(None)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        awaitable.close()
        raise ForeignAwait(
            f"{awaitable.__qualname__} awaited something other than its transaction's reads; "
            "a transaction function may await nothing else"
        )
    if not isinstance(awaitable, Awaitable):
        raise TransactionMisuse(f"a transaction function returned {type(awaitable).__name__}, not an awaitable")
    return drive(_awaited(awaitable))


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable


def _ended(*_: object) -> NoReturn:
    raise TransactionEnded("a transaction was used after its function had returned")


class Reading:
    """A read-only transaction. The caller has begun a snapshot on the connection behind `execute`."""

    __slots__ = ("_clock", "_execute", "_path", "_started_ns")

    def __init__(self, execute: Callable[..., Any], clock: Clock, path: str) -> None:
        self._execute = execute
        self._clock = clock
        self._path = path
        self._started_ns = clock.monotonic_ns()

    def get(self, key: bytes, *, snapshot: bool = False) -> Ready[bytes | None]:
        if type(key) is not bytes or len(key) > KEY_BYTES or key >= SYSTEM_PREFIX:
            reject_key(key)
        try:
            row = self._execute(GET, (key,)).fetchone()
        except apsw.Error as error:
            raise self._failure(error) from error
        return Ready(None if row is None else row[0])

    def get_range(
        self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False, snapshot: bool = False
    ) -> Ready[list[tuple[bytes, bytes]]]:
        check_range(begin, end)
        self.check_age()
        try:
            cursor = self._execute(DESCENDING if reverse else ASCENDING, (begin, end))
            rows = list(islice(cursor, limit)) if limit else cursor.fetchall()
        except apsw.Error as error:
            raise self._failure(error) from error
        return Ready(rows)

    def set(self, key: bytes, value: bytes) -> None:
        raise self._read_only("set")

    def clear(self, key: bytes) -> None:
        raise self._read_only("clear")

    def clear_range(self, begin: bytes, end: bytes) -> None:
        raise self._read_only("clear_range")

    def add(self, key: bytes, delta: int) -> None:
        raise self._read_only("add")

    def max(self, key: bytes, value: int) -> None:
        raise self._read_only("max")

    def bump_metadata_version(self) -> None:
        raise self._read_only("bump_metadata_version")

    def watch(self, key: bytes) -> Watch:
        raise self._read_only("watch")

    def add_read_conflict_key(self, key: bytes) -> None:
        check_key(key)

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        check_range(begin, end)

    def read_version(self) -> Ready[int]:
        return Ready(int.from_bytes(self._row(COMMIT_VERSION_KEY) or b"", "big"))

    def metadata_version(self) -> Ready[bytes]:
        return Ready(self._row(METADATA_VERSION_KEY) or b"")

    def check_age(self) -> None:
        """Raise `TransactionTooOld` once the transaction has run for 5 seconds."""
        if self._clock.monotonic_ns() - self._started_ns > TRANSACTION_NS:
            raise TransactionTooOld(f"transaction has run for more than {TRANSACTION_NS / 1e9:g} s")

    def end(self) -> None:
        """Make every further use raise `TransactionEnded`."""
        self._execute = _ended

    def _check_alive(self) -> None:
        if self._execute is _ended:
            _ended()

    def _row(self, key: bytes) -> bytes | None:
        try:
            row = self._execute(GET, (key,)).fetchone()
        except apsw.Error as error:
            raise self._failure(error) from error
        return None if row is None else row[0]

    def _failure(self, error: apsw.Error) -> EngineError:
        return translate(error, self._path)

    def _read_only(self, method: str) -> EngineError:
        self._check_alive()
        return ReadOnlyTransaction(f"{method} inside Engine.read, which is read-only: use Engine.transact")


class Writing(Reading):
    """A transaction inside a group.

    Attributes:
        wrote: something was written, so that undoing the function takes more than forgetting it.
        size: bytes written and read, as FoundationDB counts them.
        failure: the SQLite error that one of its statements ended in. The group cannot be committed then, whether
            or not the function let the error go up.
    """

    __slots__ = ("_bumped", "_version", "_watches", "failure", "size", "wrote")

    def __init__(self, execute: Callable[..., Any], clock: Clock, path: str, watches: Watches, version: int) -> None:
        self._execute = execute
        self._clock = clock
        self._path = path
        self._started_ns = clock.monotonic_ns()
        self._watches = watches
        self._version = version
        self._bumped = False
        self.wrote = False
        self.size = 0
        self.failure: apsw.Error | None = None

    def get(self, key: bytes, *, snapshot: bool = False) -> Ready[bytes | None]:
        if type(key) is not bytes or len(key) > KEY_BYTES or key >= SYSTEM_PREFIX:
            reject_key(key)
        if not snapshot:
            self._grow(2 * len(key) + 1)
        try:
            row = self._execute(GET, (key,)).fetchone()
        except apsw.Error as error:
            raise self._failure(error) from error
        return Ready(None if row is None else row[0])

    def get_range(
        self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False, snapshot: bool = False
    ) -> Ready[list[tuple[bytes, bytes]]]:
        check_range(begin, end)
        if not snapshot:
            self._grow(len(begin) + len(end))
        return super().get_range(begin, end, limit=limit, reverse=reverse)

    def set(self, key: bytes, value: bytes) -> None:
        if type(key) is not bytes or len(key) > KEY_BYTES or key >= SYSTEM_PREFIX:
            reject_key(key)
        if type(value) is not bytes or len(value) > VALUE_BYTES:
            reject_value(key, value)
        self._grow(3 * len(key) + len(value) + 1)
        self.wrote = True
        try:
            self._execute(PUT, (key, value))
        except apsw.Error as error:
            raise self._failure(error) from error

    def clear(self, key: bytes) -> None:
        check_key(key)
        self._grow(4 * len(key) + 2)
        self._change(CLEAR, (key,))

    def clear_range(self, begin: bytes, end: bytes) -> None:
        check_range(begin, end)
        self._grow(2 * (len(begin) + len(end)))
        self._change(CLEAR_RANGE, (begin, end))

    def add(self, key: bytes, delta: int) -> None:
        check_key(key)
        check_delta(delta)
        self._grow(3 * len(key) + 9)
        self._change(PUT, (key, added(self._row(key), delta)))

    def max(self, key: bytes, value: int) -> None:
        check_key(key)
        check_maximum(value)
        self._grow(3 * len(key) + 9)
        self._change(PUT, (key, maximum(self._row(key), value)))

    def bump_metadata_version(self) -> None:
        # Ten bytes, as FoundationDB's. The row counts up, so no value ever comes back.
        version = int.from_bytes(self._row(METADATA_VERSION_KEY) or b"", "big") + 1
        self._change(PUT, (METADATA_VERSION_KEY, version.to_bytes(10, "big")))
        self._bumped = True

    def metadata_version(self) -> Ready[bytes]:
        if self._bumped:
            raise Unreadable("the metadata version was bumped in this transaction and is known only once it commits")
        return super().metadata_version()

    def watch(self, key: bytes) -> Watch:
        check_key(key)
        return SqliteWatch(self._watches, key, self._row(key))

    def add_read_conflict_key(self, key: bytes) -> None:
        check_key(key)
        self._grow(2 * len(key) + 1)

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        check_range(begin, end)
        self._grow(len(begin) + len(end))

    def read_version(self) -> Ready[int]:
        self._check_alive()
        return Ready(self._version)

    def _change(self, statement: str, bindings: tuple[bytes, ...]) -> None:
        self.wrote = True
        try:
            self._execute(statement, bindings)
        except apsw.Error as error:
            raise self._failure(error) from error

    def _grow(self, size: int) -> None:
        self.size += size
        if self.size > TRANSACTION_BYTES:
            reject_size(self.size)

    def _failure(self, error: apsw.Error) -> EngineError:
        self.failure = error
        return translate(error, self._path)
