"""The writer thread of an SQLite engine: group commit.

Everything queued when the turn comes is run as one group and committed once. Each function's result or exception
is kept until the COMMIT has returned; if that fails, every function of the group gets the failure instead, and the
next group starts afresh. Nothing here touches the event loop but one `call_soon_threadsafe` per group.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Any, NamedTuple

import apsw

from .clock import Clock
from .errors import CommitUnknown, EngineBusy, EngineClosed, EngineError, ForeignAwait, StoreSealed, TransactionMisuse
from .faults import CommitFault
from .seal import SEALED, seal_reason
from .sqlite_file import connect, translate
from .sqlite_transaction import COMMIT_VERSION_KEY, GET, PUT, Writing, drive
from .sqlite_watch import Watches
from .turns import Turns

GROUP_FUNCTIONS = 1000
GROUP_BYTES = 8_000_000
GROUP_NS = 50_000_000
"""Bounds of a group, so that the first of it does not wait long for the last and other processes get their turn."""

BUSY_MS = 5_000
"""How long to wait for a lock held by something that does not take turns (an sqlite3 shell, a recovery)."""

TURN_WAIT_S = 10.0
"""How long a transaction stays queued while another process keeps the turn."""


class Job(NamedTuple):
    """One transaction waiting for the writer."""

    fn: Callable[..., Awaitable[Any]]
    args: tuple[object, ...]
    future: asyncio.Future[Any]
    fault: CommitFault | None
    past_seal: bool


Outcome = tuple["asyncio.Future[Any]", Any, BaseException | None]


class Writer:
    """The one thread of a process that writes the file at `path`."""

    def __init__(
        self,
        path: str,
        connection: apsw.Connection,
        turns: Turns,
        clock: Clock,
        watches: Watches,
        committed: Callable[[int], None],
        vfs: str | None,
    ) -> None:
        """`committed` is called on the loop after each group, with the pages that the write-ahead log has grown to."""
        self._path = path
        self._vfs = vfs
        self._turns = turns
        self._clock = clock
        self._watches = watches
        self._committed = committed
        self._loop = asyncio.get_running_loop()
        self._pending: deque[Job] = deque()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._awake = False
        self._closing = False
        self._turn_asked_ns = 0
        self._expiry: asyncio.TimerHandle | None = None
        self._wal_pages = 0
        self._adopt(connection)
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="sqlite writer", daemon=True)
        self._thread.start()

    def submit(
        self,
        fn: Callable[..., Awaitable[Any]],
        args: tuple[object, ...],
        fault: CommitFault | None = None,
        *,
        past_seal: bool = False,
    ) -> asyncio.Future[Any]:
        """Queue a transaction; the future gets what becomes of it. `past_seal`: though the store be sealed.

        Raises:
            EngineClosed: the writer is closing.
        """
        if self._closing:
            raise EngineClosed(f"{self._path}: the engine has been closed")
        future = self._loop.create_future()
        self._pending.append(Job(fn, args, future, fault, past_seal))
        if not self._awake:
            self._awake = True
            self._wake.put(None)
        if self._expiry is None:
            self._expiry = self._loop.call_later(TURN_WAIT_S, self._expire)
        return future

    async def close(self) -> None:
        """Commit what is queued and end the thread.

        Raises:
            EngineBusy: another process has kept the turn for so long that the thread had to be left behind.
        """
        self._closing = True
        self._wake.put(None)
        try:
            await asyncio.wait_for(asyncio.shield(self._ended), 2 * TURN_WAIT_S)
        except TimeoutError:
            self._refuse_waiting()
            raise EngineBusy(f"{self._path}: another process has kept the turn to write; not closed cleanly") from None
        finally:
            if self._expiry is not None:
                self._expiry.cancel()

    def _expire(self) -> None:
        # A stopped (not dead: the kernel sees to those) process that keeps the turn must not hang this one's
        # requests. Only jobs not yet begun are refused, so what they are told is certain.
        self._expiry = None
        asked_ns = self._turn_asked_ns
        if asked_ns and self._clock.monotonic_ns() - asked_ns >= TURN_WAIT_S * 1e9:
            self._refuse_waiting()
        if self._pending or self._awake:
            self._expiry = self._loop.call_later(TURN_WAIT_S, self._expire)

    def _refuse_waiting(self) -> None:
        while self._pending:
            job = self._pending.popleft()
            if not job.future.done():
                job.future.set_exception(
                    EngineBusy(f"{self._path}: another process has kept the turn to write for {TURN_WAIT_S:g} s")
                )

    def _deliver(self, outcomes: list[Outcome]) -> None:
        for future, value, error in outcomes:
            if future.done():  # its caller was cancelled
                continue
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        self._committed(self._wal_pages)

    # From here on: the writer thread.

    def _adopt(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._execute: Callable[..., Any] = connection.cursor().execute
        connection.set_wal_hook(self._after_commit)

    def _after_commit(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _run(self) -> None:
        while True:
            self._wake.get()
            while True:
                while self._pending:
                    self._run_group()
                self._awake = False
                # The loop's thread appends, then looks at _awake; so this thread clears _awake, then looks again.
                if not self._pending:
                    break
                self._awake = True
            if self._closing:
                break
        self._connection.close()
        self._turns.close()
        self._tell(self._finish)

    def _finish(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def _tell(self, callback: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            # Nobody is left to tell: the loop ended without closing the engine.

    def _run_group(self) -> None:
        self._turn_asked_ns = self._clock.monotonic_ns()
        try:
            self._turns.take()
        except OSError as error:
            outcomes = self._refuse_pending(error)
        else:
            self._turn_asked_ns = 0
            try:
                outcomes = self._commit_group()
            finally:
                self._turns.give()
        self._turn_asked_ns = 0
        self._tell(self._deliver, outcomes)

    def _commit_group(self) -> list[Outcome]:
        group: list[Job] = []
        committing = False
        try:
            self._execute("BEGIN IMMEDIATE")
            outcomes = self._run_jobs(group)
            if outcomes is None:
                self._execute("ROLLBACK")
                self._execute("BEGIN IMMEDIATE")
                outcomes = self._run_with_savepoints(group)
            committing = True
            self._execute("COMMIT")
        except Exception as error:
            self._recover()
            if not group:
                return self._refuse_pending(error)
            return [(job.future, None, self._failure(error, committing)) for job in group]
        return outcomes

    def _run_jobs(self, group: list[Job]) -> list[Outcome] | None:
        """Take jobs off the queue into `group` and run them; None if one has to be undone, which needs savepoints."""
        outcomes: list[Outcome] = []
        version = first_version = self._commit_version()
        sealed = self._sealed()
        monotonic_ns = self._clock.monotonic_ns
        deadline_ns = monotonic_ns() + GROUP_NS
        size = 0
        while self._pending and len(group) < GROUP_FUNCTIONS and size < GROUP_BYTES and monotonic_ns() < deadline_ns:
            try:
                job = self._pending.popleft()
            except IndexError:  # the loop's thread has just refused the last one
                break
            if job.future.done():  # its caller was cancelled before it began
                continue
            group.append(job)
            tr = Writing(self._execute, self._clock, self._path, self._watches, version)
            outcome = self._run_job(job, tr, sealed)
            if tr.wrote:
                if job.past_seal:
                    sealed = self._sealed()
                if outcome[2] is not None and not _committed_with(job, outcome[2]):
                    return None
                version += 1
                size += tr.size
            outcomes.append(outcome)
        if version != first_version:
            self._execute(PUT, (COMMIT_VERSION_KEY, version.to_bytes(8, "big")))
        return outcomes

    def _run_with_savepoints(self, group: list[Job]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        version = first_version = self._commit_version()
        sealed = self._sealed()
        for job in group:
            tr = Writing(self._execute, self._clock, self._path, self._watches, version)
            self._execute("SAVEPOINT job")
            outcome = self._run_job(job, tr, sealed)
            if outcome[2] is not None and not _committed_with(job, outcome[2]):
                self._execute("ROLLBACK TO job")
            elif tr.wrote:
                version += 1
            self._execute("RELEASE job")
            if job.past_seal:
                sealed = self._sealed()
            outcomes.append(outcome)
        if version != first_version:
            self._execute(PUT, (COMMIT_VERSION_KEY, version.to_bytes(8, "big")))
        return outcomes

    def _run_job(self, job: Job, tr: Writing, sealed: str | None) -> Outcome:
        value: Any = None
        error: BaseException | None = None
        try:
            value = drive(job.fn(tr, *job.args))
            tr.check_age()
            if sealed is not None and tr.wrote and not job.past_seal:
                error = StoreSealed(sealed)
        except StopIteration:
            error = TransactionMisuse("a transaction function raised StopIteration")
        except RuntimeError as failure:
            error = failure
            if str(failure) == "no running event loop":
                error = ForeignAwait("a transaction function used the event loop; it may await only its transaction")
                error.__cause__ = failure
        except BaseException as failure:
            # Even a CancelledError is the function's own here; this thread has nothing else to be cancelled for.
            error = failure
        tr.end()
        if tr.failure is not None:
            # SQLite may have rolled the whole group back with the statement, whatever the function made of it.
            raise tr.failure
        if job.fault is not None and not isinstance(error, StoreSealed):
            error = job.fault.error
        return job.future, value, error

    def _sealed(self) -> str | None:
        row = self._execute(GET, (SEALED,)).fetchone()
        return None if row is None else seal_reason(row[0])

    def _commit_version(self) -> int:
        row = self._execute(GET, (COMMIT_VERSION_KEY,)).fetchone()
        return 0 if row is None else int.from_bytes(row[0], "big")

    def _refuse_pending(self, reason: Exception) -> list[Outcome]:
        # Nobody has been taken off the queue yet, and those on it would only meet the same.
        outcomes: list[Outcome] = []
        while self._pending:
            try:
                job = self._pending.popleft()
            except IndexError:
                break
            outcomes.append((job.future, None, self._failure(reason, False)))
        return outcomes

    def _failure(self, error: Exception, committing: bool) -> EngineError:
        """A fresh error for each caller: a shared instance would collect all their tracebacks."""
        if committing and isinstance(error, apsw.IOError):
            # The frames may have reached the disk, and a recovery after a crash may then find them.
            failure: EngineError = CommitUnknown(f"{self._path}: commit failed on the way to the disk: {error}")
        elif isinstance(error, apsw.Error):
            failure = translate(error, self._path)
        elif isinstance(error, OSError):
            failure = EngineBusy(f"{self._path}: no turn to write: {error}")
        else:
            failure = EngineError(f"{self._path}: {type(error).__name__}: {error}")
        failure.__cause__ = error
        return failure

    def _recover(self) -> None:
        """Bring the connection back to where BEGIN may follow."""
        try:
            if self._connection.in_transaction:
                self._execute("ROLLBACK")
        except apsw.Error:
            self._connection.close(True)
            # Should this fail too, the next group meets a closed connection, and comes here again.
            with contextlib.suppress(EngineError):
                self._adopt(connect(self._path, busy_ms=BUSY_MS, vfs=self._vfs))


def _committed_with(job: Job, error: BaseException) -> bool:
    """Whether `error` is that of an injected fault after which the transaction is in force."""
    return job.fault is not None and job.fault.committed and error is job.fault.error
