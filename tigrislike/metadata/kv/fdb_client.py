"""FoundationDB's client library under asyncio: loading it, waiting for it, and what its error numbers mean.

Binding and library are loaded by `load_binding`, not by importing this module. `Bridge` carries completions from
the client's network thread to the event loop; `translate` maps exactly the numbers of `fdb_error_predicate`.
"""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections import deque
from typing import Any

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

TEMPORARY = frozenset({1009, 1037, 1038, 1042, 1051, 1078, 1213, 1235, 1242})
"""With 1020 and 1007, exactly what fdb_error_predicate calls retryable and not committed (bindings/c/fdb_c.cpp)."""

TIMED_OUT = 1031
CANCELLED = frozenset({1025, 1101})

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


class Bridge:
    """Carries completions from the client's network thread to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._completed: deque[asyncio.Future[None]] = deque()
        self._scheduled = False

    def completion(self, native: Any, keep: Any) -> asyncio.Future[None]:
        """A future that is done once `native` is. `keep` is kept alive until then."""
        waiter = self._loop.create_future()

        def completed(_native: Any, _keep: Any = keep) -> None:
            self._completed.append(waiter)
            if not self._scheduled:
                self._scheduled = True
                try:
                    self._loop.call_soon_threadsafe(self._wake)
                except RuntimeError:
                    if not self._loop.is_closed():
                        raise
                    # The loop has ended, and whoever waited with it.

        native.on_ready(completed)  # the binding pins the callback until it has been called
        return waiter

    def _wake(self) -> None:
        # Cleared first: what completes from here on schedules anew, what came before is in the queue.
        self._scheduled = False
        while self._completed:
            waiter = self._completed.popleft()
            if not waiter.done():
                waiter.set_result(None)


def translate(error: Any, *, committing: bool) -> EngineError:
    """Our error for one of FoundationDB's; `committing`: it ended the commit of a transaction that writes."""
    code = error.code
    reason = reason_of(error)
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
    if code in CANCELLED:
        return AmbiguousCommit(reason) if committing else EngineUnavailable(reason)
    if code in MISUSES:
        return MISUSES[code](reason)
    return AmbiguousCommit(reason) if committing and code >= 4000 else EngineError(reason)


def reason_of(error: Any) -> str:
    description = error.description
    text = description.decode("utf-8", "replace") if isinstance(description, bytes) else str(description)
    return f"{text} ({error.code})"
