"""FoundationDB's client library under asyncio: loading it, waiting for it, and what its error numbers mean.

Binding and library are loaded by `load_binding`, not by importing this module. `Library` is the part of the C API that
the engine uses, `Client` carries completions from the client's network thread to the event loop; `translate` knows
the numbers of `fdb_error_predicate` in all release lines from 7.1 on.
"""

from __future__ import annotations

import asyncio
import ctypes
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from .engine import Watch
from .errors import (
    AmbiguousCommit,
    CommitUnknown,
    EngineError,
    EngineUnavailable,
    InvertedRange,
    KeyOutsideLegalRange,
    KeyTooLarge,
    NotCommitted,
    TemporarilyRefused,
    TooManyWatches,
    TransactionTimedOut,
    TransactionTooLarge,
    TransactionTooOld,
    Unreadable,
    ValueTooLarge,
)

API_VERSION = 710

MAYBE_COMMITTED = frozenset({1021, 1039})
"""commit_unknown_result, cluster_version_changed."""

TEMPORARY = frozenset({1009, 1037, 1038, 1042, 1051, 1078, 1213, 1223, 1235, 1242})
"""With 1020 and 1007, what fdb_error_predicate calls retryable and not committed (bindings/c/fdb_c.cpp), in any of the
releases 7.1.67, 7.3.79 and 7.4.6. Left out is 2137, unknown_tenant: there are no tenants here."""

TIMED_OUT = 1031
OPERATION_CANCELLED = 1101
CANCELLED = frozenset({1025, OPERATION_CANCELLED})

MISUSES: dict[int, type[EngineError]] = {
    1032: TooManyWatches,
    1036: Unreadable,
    2004: KeyOutsideLegalRange,
    2005: InvertedRange,
    2101: TransactionTooLarge,
    2102: KeyTooLarge,
    2103: ValueTooLarge,
}

LIBRARY_MISSING = (
    "FoundationDB's client library (libfdb_c) cannot be used: {reason} Install the foundationdb-clients package of the "
    "cluster's version from https://github.com/apple/foundationdb/releases, or add the directory that holds "
    "libfdb_c.so to LD_LIBRARY_PATH"
)


def load_binding() -> Any:
    """The `fdb` module at our API version.

    Raises:
        EngineUnavailable: the binding or its library is missing or does not fit, with what to do about it.
    """
    finders = list(sys.meta_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)
        try:
            import fdb
        except ImportError as error:
            raise EngineUnavailable("the package foundationdb is missing: pip install 'foundationdb<7.2'") from error
        try:
            fdb.api_version(API_VERSION)
        except Exception as error:  # the binding raises bare Exceptions
            raise EngineUnavailable(LIBRARY_MISSING.format(reason=str(error).rstrip(".!") + ".")) from error
        finally:
            # Its copy of six adds a finder of the protocol of old: every later import in the process would warn.
            sys.meta_path[:] = [
                finder for finder in sys.meta_path if finder in finders or type(finder).__module__ != "fdb.six"
            ]
    return fdb


LOOK_S = 2.0
OVERDUE_LOOKS = 7
"""Twelve to fourteen seconds: longer than the time limit of any transaction."""


class Library:
    """The C functions that the engine uses, found by the binding.

    They are called past the binding's classes: half of what a small read costs there is spent on Python objects that
    asyncio has no use for, above all a C callback made and pinned for every future. None of these functions blocks, or
    calls back while it holds a lock, so they are called without giving up the interpreter: the hand-over to the
    network thread and back would cost more than they do.

    Pointers are integers; functions that can fail return FoundationDB's error number, 0 for none.
    """

    def __init__(self, binding: Any) -> None:
        capi = binding.impl._capi
        calls = ctypes.PyDLL(capi._name, handle=capi._handle)
        pointer, number, wide, data = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_char_p

        def function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
            call = getattr(calls, f"fdb_{name}")
            call.restype = result
            call.argtypes = arguments
            return call  # type: ignore[no-any-return]

        self.create_transaction = function("database_create_transaction", number, pointer, pointer)
        self.destroy_transaction = function("transaction_destroy", None, pointer)
        self.set_option = function("transaction_set_option", number, pointer, number, data, number)
        self.set_read_version = function("transaction_set_read_version", None, pointer, wide)
        self.get_read_version = function("transaction_get_read_version", pointer, pointer)
        self.get = function("transaction_get", pointer, pointer, data, number, number)
        selector = (data, number, number, number)
        self.get_range = function("transaction_get_range", pointer, pointer, *selector, *selector, *(number,) * 6)
        self.set = function("transaction_set", None, pointer, data, number, data, number)
        self.clear = function("transaction_clear", None, pointer, data, number)
        self.clear_range = function("transaction_clear_range", None, pointer, data, number, data, number)
        self.atomic_op = function("transaction_atomic_op", None, pointer, data, number, data, number, number)
        self.add_conflict_range = function(
            "transaction_add_conflict_range", number, pointer, data, number, data, number, number
        )
        self.watch = function("transaction_watch", pointer, pointer, data, number)
        self.commit = function("transaction_commit", pointer, pointer)
        self.is_ready = function("future_is_ready", number, pointer)
        self.set_callback = function("future_set_callback", number, pointer, CALLBACK, pointer)
        self.cancel = function("future_cancel", None, pointer)
        self.destroy_future = function("future_destroy", None, pointer)
        self.future_error = function("future_get_error", number, pointer)
        self.future_int64 = function("future_get_int64", number, pointer, pointer)
        self.future_value = function("future_get_value", number, pointer, pointer, pointer, pointer)
        self.future_rows = function("future_get_keyvalue_array", number, pointer, pointer, pointer, pointer)
        self.describe = function("get_error", data, number)
        self._version = function("get_client_version", data)

    def version(self) -> str:
        """The library's version, for people."""
        return str(self._version().split(b",")[0].decode())


CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
"""Called by the client with a future that is ready. What else it passes is not looked at."""


class Pending(Protocol):
    """A native future that is waited for. It is kept alive until the client has called back, come what may."""

    pointer: int

    def overdue(self) -> EngineError | None:
        """What whoever waits for it is told once it has taken too long; None: it may take for ever."""
        ...


_waited_for: dict[int, tuple[Client, asyncio.Future[None], Pending]] = {}
"""By native future. The client's network thread takes them out."""


def _completed(pointer: int) -> None:
    client, waiter, pending = _waited_for.pop(pointer)
    client.completed(waiter, pending)


_callback = CALLBACK(_completed)


class Client:
    """One engine's use of the library: carries completions from the client's network thread to the event loop.

    There is one callback for all futures of the process, and it is never freed; a future that somebody waits for stays
    until it has been called.

    It is the network thread that keeps transactions' time limits. Should that thread itself hang, a look at what is
    waited for, every `look_s` while anything is, ends what has been there for `OVERDUE_LOOKS` of them.

    Args:
        database: pointer to the native database, and `keep` what keeps it open.
    """

    def __init__(self, library: Library, database: int, keep: object, *, look_s: float = LOOK_S) -> None:
        self.library = library
        self.database = database
        self._keep = keep
        self._loop = asyncio.get_running_loop()
        self._completed: deque[tuple[asyncio.Future[None], Pending]] = deque()
        self._scheduled = False
        self._look_s = look_s
        self._looks: dict[asyncio.Future[None], int] = {}
        self._looking = False
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()
        # Where the library leaves results. One of each is enough: nothing comes between a call and taking them.
        self.number = ctypes.c_int64()
        self.present, self.count, self.more = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self.address = ctypes.c_void_p()
        self.number_at, self.present_at, self.address_at = map(ctypes.byref, (self.number, self.present, self.address))
        self.count_at, self.more_at = ctypes.byref(self.count), ctypes.byref(self.more)

    def wait(self, pending: Pending) -> asyncio.Future[None]:
        """A future that is done once `pending` is."""
        waiter = self._loop.create_future()
        if not self._looking:
            self._looking = True
            self._loop.call_later(self._look_s, self._look)
        _waited_for[pending.pointer] = self, waiter, pending
        self.library.set_callback(pending.pointer, _callback, None)
        return waiter

    def watches(self, watch: Watch) -> None:
        """Cancel `watch` when this client is closed."""
        self._watches.add(watch)

    def close(self) -> None:
        """Cancel every watch: whoever waits for one is told, and what keeps it alive is let go."""
        for watch in list(self._watches):
            watch.cancel()

    def completed(self, waiter: asyncio.Future[None], pending: Pending) -> None:
        """Wake `waiter`; called on any thread."""
        self._completed.append((waiter, pending))
        if not self._scheduled:
            self._scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:
                if not self._loop.is_closed():
                    raise
                # The loop has ended, and whoever waited with it.

    def _wake(self) -> None:
        # Cleared first: what completes from here on schedules anew, what came before is in the queue.
        self._scheduled = False
        completed = self._completed
        while completed:
            waiter, _ = completed.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _look(self) -> None:
        before, self._looks = self._looks, {}
        for client, waiter, pending in list(_waited_for.values()):
            if client is not self or waiter.done():
                continue
            looks = before.get(waiter, 0) + 1
            error = pending.overdue() if looks >= OVERDUE_LOOKS else None
            if error is None:
                self._looks[waiter] = looks
            else:
                waiter.set_exception(error)
        self._looking = bool(self._looks)
        if self._looking:
            self._loop.call_later(self._look_s, self._look)

    def error(self, code: int, *, committing: bool = False) -> EngineError:
        """Our error for FoundationDB's number `code`."""
        return translate(code, self.library.describe(code).decode("utf-8", "replace"), committing=committing)


def translate(code: int, description: str, *, committing: bool) -> EngineError:
    """Our error for one of FoundationDB's; `committing`: it ended the commit of a transaction that writes."""
    reason = f"{description} ({code})"
    if code == NotCommitted.number:
        return NotCommitted(reason)
    if code == TransactionTooOld.number:
        return TransactionTooOld(reason)
    if code in MAYBE_COMMITTED:
        return CommitUnknown(reason, code) if committing else TemporarilyRefused(reason, code)
    if code in TEMPORARY:
        return TemporarilyRefused(reason, code)
    if code == TIMED_OUT:
        if committing:
            return TransactionTimedOut(reason)
        return EngineUnavailable(f"FoundationDB did not answer in time: {reason}")
    if code in MISUSES:
        return MISUSES[code](reason)
    if committing:  # of nothing else is it known that it came before the commit took effect
        return AmbiguousCommit(reason)
    return EngineUnavailable(reason) if code in CANCELLED else EngineError(reason)


def reason_of(error: Any) -> str:
    """What one of the binding's errors says."""
    description = error.description
    text = description.decode("utf-8", "replace") if isinstance(description, bytes) else str(description)
    return f"{text} ({error.code})"
