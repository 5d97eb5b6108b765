"""The embedded engine: one SQLite file, shared by the processes of one machine.

Reads run on the event loop's thread, driven to the end without suspending: a get costs a few microseconds and a
snapshot lives as long as one `read`. Writes go to one writer thread per process (`sqlite_writer.py`), which takes
everything that is queued as one group and commits it once; a lone writer waits for nobody. Processes take fair
turns (`turns.py`).

Transactions run one at a time, so they never conflict: read conflicts added by hand have nothing to do, and
`transact` never retries. Open it after fork, use it from the loop that opened it.

The write-ahead log is folded back by `checkpoint`, which an agent calls every few seconds; when nobody does, each
process does so itself once the log has grown beyond a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import apsw

from .clock import Clock, SystemClock
from .errors import EngineClosed, EngineError, EngineUnavailable, RetryableError, TransactionMisuse
from .faults import Faults
from .seal import Sealable
from .sqlite_file import connect, prepare, translate
from .sqlite_transaction import GET, Reading, drive
from .sqlite_watch import Watches
from .sqlite_writer import BUSY_MS, TURN_WAIT_S, Writer
from .turns import Turns

T = TypeVar("T")

log = logging.getLogger(__name__)

READ_BUSY_MS = 250
"""How long a read may wait for a recovery by another process: it blocks the event loop meanwhile."""

WAL_PAGES = 2048
"""The length (16 MiB) from which the write-ahead log is folded back without being asked."""

RESET_PAGES = 512
"""From here on a checkpoint also takes the turn to write, so that the log starts anew instead of growing on."""

FOLD_BUSY_MS = 20
"""How long to wait, with the turn, for readers that still use the end of the log."""

FOLD_PASSES = 5
FEW_PAGES = 64
"""Folding is repeated, that often at most, until there is so little left that nobody minds waiting for it."""

CHECKPOINT_PAUSE_NS = 250_000_000
"""Between two checkpoints that nobody asked for."""


class SqliteEngine(Sealable):
    """An `Engine` on one SQLite file. Made by `SqliteEngine.open`."""

    prefix = b""

    def __init__(
        self, path: str, reader: apsw.Connection, clock: Clock, faults: Faults | None, vfs: str | None
    ) -> None:
        self._path = path
        self._reader = reader
        self._execute: Callable[..., Any] = reader.cursor().execute
        self._clock = clock
        self._faults = faults
        self._vfs = vfs
        self._watches = Watches(self._peek, self._data_version)
        self._reading = False
        self._checkpoint_lock = threading.Lock()
        self._checkpoint: asyncio.Task[None] | None = None
        self._checkpointed_ns = 0
        self._closed = False
        self._writer: Writer

    @classmethod
    async def open(
        cls, path: str, *, clock: Clock | None = None, faults: Faults | None = None, vfs: str | None = None
    ) -> SqliteEngine:
        """Open the file at `path`, made if it is not there. `vfs` names an apsw VFS, for tests that break the disk.

        Raises:
            EngineUnavailable: it cannot be opened or made.
            UnknownFormat: it is not ours, or newer than this release.
            CorruptStore: it is damaged.
        """
        clock = clock or SystemClock()

        def connections() -> tuple[apsw.Connection, apsw.Connection, Turns]:
            try:
                turns = Turns(path)
            except OSError as error:
                raise EngineUnavailable(f"{path}: {error}") from error
            try:
                turns.take()
                try:
                    writer = connect(path, busy_ms=BUSY_MS, vfs=vfs)
                    try:
                        prepare(writer, path)
                        return writer, connect(path, busy_ms=READ_BUSY_MS, vfs=vfs), turns
                    except BaseException:
                        writer.close()
                        raise
                finally:
                    turns.give()
            except BaseException:
                turns.close()
                raise

        writer, reader, turns = await asyncio.to_thread(connections)
        engine = cls(path, reader, clock, faults, vfs)
        engine._writer = Writer(path, writer, turns, clock, engine._watches, engine._committed, vfs)
        return engine

    async def transact(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        if self._faults is not None:
            return await self._transact_faultily(self._faults, fn, args)
        return await self._writer.submit(fn, args)  # type: ignore[no-any-return]

    async def transact_past_seal(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        if self._faults is not None:
            return await self._transact_faultily(self._faults, fn, args, past_seal=True)
        return await self._writer.submit(fn, args, past_seal=True)  # type: ignore[no-any-return]

    @property
    def background(self) -> SqliteEngine:
        return self

    async def read(self, fn: Callable[..., Awaitable[T]], *args: object, max_age_ns: int = 0) -> T:
        if self._faults is not None:
            await self._suffer(self._faults)
        if self._reading:
            raise TransactionMisuse("Engine.read inside a transaction function: pass the transaction on instead")
        execute = self._execute
        tr = Reading(execute, self._clock, self._path)
        self._reading = True
        try:
            execute("BEGIN")
            try:
                return drive(fn(tr, *args))
            finally:
                tr.end()
                execute("COMMIT")
        except apsw.Error as error:
            raise self._read_failure(error) from error
        finally:
            self._reading = False

    def now_ns(self) -> int:
        return self._clock.now_ns()

    async def checkpoint(self) -> None:
        """Fold the write-ahead log back into the file, and start it anew if it has grown long.

        Readers and writers go on meanwhile, but for the last part of folding a long log. If another process is at
        it, or a reader keeps an old snapshot, as much as possible is done.

        Raises:
            DiskFull, CorruptStore, EngineUnavailable: as named; nothing is lost.
        """
        if self._closed:
            raise EngineClosed(f"{self._path}: the engine has been closed")
        await asyncio.to_thread(self._fold)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await self._watches.close()
            if self._checkpoint is not None:
                await asyncio.wait([self._checkpoint], timeout=TURN_WAIT_S)
            await self._writer.close()
        finally:
            self._execute = _closed
            self._reader.close()

    async def _transact_faultily(
        self, faults: Faults, fn: Callable[..., Awaitable[T]], args: tuple[object, ...], *, past_seal: bool = False
    ) -> T:
        while True:
            await self._suffer(faults)
            if faults.commit_delay_s:
                await asyncio.sleep(faults.commit_delay_s)
            fault = faults.commit_fault()
            try:
                return await self._writer.submit(fn, args, fault, past_seal=past_seal)  # type: ignore[no-any-return]
            except RetryableError as error:
                if fault is None or error is not fault.error:
                    raise

    async def _suffer(self, faults: Faults) -> None:
        faults.check_reachable()
        if faults.read_delay_s:
            await asyncio.sleep(faults.read_delay_s)
            faults.check_reachable()
        if (error := faults.read_fault()) is not None:
            raise error

    def _committed(self, wal_pages: int) -> None:
        self._watches.committed()
        if wal_pages >= WAL_PAGES and not self._closed and (self._checkpoint is None or self._checkpoint.done()):
            now_ns = self._clock.monotonic_ns()
            if now_ns - self._checkpointed_ns >= CHECKPOINT_PAUSE_NS or not self._checkpointed_ns:
                self._checkpointed_ns = now_ns
                self._checkpoint = asyncio.get_running_loop().create_task(self._fold_unasked(), name="checkpoint")

    async def _fold_unasked(self) -> None:
        try:
            await asyncio.to_thread(self._fold)
        except EngineError as error:
            # The log stays as it is, and the next commit asks again; what was committed is safe in it.
            log.warning("checkpoint of %s failed: %s", self._path, error)

    def _fold(self) -> None:
        with self._checkpoint_lock:
            connection = connect(self._path, busy_ms=FOLD_BUSY_MS, vfs=self._vfs)
            try:
                folded = 0
                for _ in range(FOLD_PASSES):
                    before = folded
                    pages, folded = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                    if pages - before < FEW_PAGES:
                        break
                if pages >= RESET_PAGES:
                    self._restart_log(connection)
            except apsw.BusyError:
                # Another process folds, or a reader keeps an old snapshot: they will be gone the next time.
                log.debug("checkpoint of %s left to the next time", self._path)
            except apsw.Error as error:
                raise translate(error, self._path) from error
            finally:
                connection.close()

    def _restart_log(self, connection: apsw.Connection) -> None:
        # Folding while others write never catches up with them. With the turn nobody writes, little is left to
        # fold, and the next commit starts at the head of the log, over blocks that are allocated already.
        try:
            turns = Turns(self._path)
        except OSError as error:
            raise EngineUnavailable(f"{self._path}: {error}") from error
        try:
            turns.take()
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
        finally:
            turns.close()

    def _peek(self, key: bytes) -> bytes | None:
        try:
            row = self._execute(GET, (key,)).fetchone()
            value: bytes | None = None if row is None else row[0]
            self._execute("SELECT 1").fetchall()  # ends the snapshot of the get
        except apsw.Error as error:
            raise self._read_failure(error) from error
        return value

    def _data_version(self) -> int:
        try:
            return self._execute("PRAGMA data_version").fetchall()[0][0]  # type: ignore[no-any-return]
        except apsw.Error as error:
            raise self._read_failure(error) from error

    def _read_failure(self, error: apsw.Error) -> EngineError:
        if self._reader.in_transaction:
            with contextlib.suppress(apsw.Error):
                self._execute("ROLLBACK")
        return translate(error, self._path)


def _closed(*_: object) -> NoReturn:
    raise EngineClosed("the engine has been closed")
