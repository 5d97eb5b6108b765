"""The metadata engine seam: an ordered, transactional key-value store behind one protocol.

`open_engine` opens the engine that a URL names. `engine.py` states the contract and the rules for transaction
functions, `errors.py` draws the tree of errors, `limits.py` holds FoundationDB's limits, which every engine enforces.
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from .clock import Clock, ManualClock, SystemClock
from .engine import Engine, Ready, Transaction, Watch
from .errors import (
    AmbiguousCommit,
    CommitUnknown,
    CorruptStore,
    DiskFull,
    EngineBusy,
    EngineClosed,
    EngineError,
    EngineUnavailable,
    NotCommitted,
    RetryableError,
    TransactionMisuse,
    TransactionTimedOut,
    TransactionTooOld,
    UnknownFormat,
)
from .faults import CommitFault, Faults

__all__ = [
    "AmbiguousCommit",
    "Clock",
    "CommitFault",
    "CommitUnknown",
    "CorruptStore",
    "DiskFull",
    "Engine",
    "EngineBusy",
    "EngineClosed",
    "EngineError",
    "EngineUnavailable",
    "Faults",
    "ManualClock",
    "NotCommitted",
    "Ready",
    "RetryableError",
    "SystemClock",
    "Transaction",
    "TransactionMisuse",
    "TransactionTimedOut",
    "TransactionTooOld",
    "UnknownFormat",
    "Watch",
    "open_engine",
]


async def open_engine(url: str, *, clock: Clock | None = None, faults: Faults | None = None) -> Engine:
    """Open the engine that `url` names: `sqlite:///FILE` or `fdb:///CLUSTERFILE`.

    The part after `//` is an absolute path, percent-encoded where need be; `sqlite:FILE` names a relative one.
    `fdb:` alone takes FoundationDB's default cluster file. Open after fork, once per process and event loop.

    Raises:
        ValueError: the URL names no engine, or has parts that are not understood.
        EngineUnavailable: it cannot be opened; for FoundationDB also where the client library is missing.
        UnknownFormat, CorruptStore: the SQLite file is not usable.
    """
    parts = urlsplit(url)
    if parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"metadata URL {url!r}: write sqlite:///absolute/path or fdb:///absolute/path, nothing else")
    path = unquote(parts.path)
    match parts.scheme:
        case "sqlite" if path:
            from .sqlite import SqliteEngine

            return await SqliteEngine.open(path, clock=clock, faults=faults)
        case "fdb":
            from .fdb import FdbEngine

            return await FdbEngine.open(path or None, clock=clock, faults=faults)
    raise ValueError(f"metadata URL {url!r} names no engine: write sqlite:///FILE or fdb:///CLUSTERFILE")
