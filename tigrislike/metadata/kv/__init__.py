"""The metadata engine seam: an ordered, transactional key-value store behind one protocol.

`open_engine` opens the engine that a URL names. `engine.py` states the contract and the rules for transaction
functions, `errors.py` draws the tree of errors, `limits.py` holds FoundationDB's limits, which every engine enforces.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlsplit

from tigrislike.config import parse_distance

from .clock import Clock, ManualClock, SteadyClock, SystemClock
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
    StoreSealed,
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
    "SteadyClock",
    "StoreSealed",
    "SystemClock",
    "Transaction",
    "TransactionMisuse",
    "TransactionTimedOut",
    "TransactionTooOld",
    "UnknownFormat",
    "Watch",
    "open_engine",
]

PREFIX_LENGTH = 64
"""It is repeated in every key."""


async def open_engine(url: str, *, clock: Clock | None = None, faults: Faults | None = None) -> Engine:
    """Open the engine that `url` names: `sqlite:///FILE` or `fdb:///CLUSTERFILE`, with options after a `?`.

    The part after `//` is an absolute path, percent-encoded where need be; `sqlite:FILE` names a relative one.
    `fdb:///` alone takes the cluster file that FDB_CLUSTER_FILE names, else the default one. Open after fork, once per
    process and event loop.

    FoundationDB has one option: `prefix=TEXT` is where in the cluster this store's keys lie, so that several can share
    one; none may begin with another's. SQLite's put the file at a distance, for a region in a laboratory
    (`distance.py`): `round-trip=80ms`, `cut-while=PATH`, and `timeout=1s`, which is how long to wait while cut off.

    Raises:
        ValueError: the URL names no engine, or has parts that are not understood.
        EngineUnavailable: it cannot be opened; for FoundationDB also where the client library is missing.
        UnknownFormat, CorruptStore: the SQLite file is not usable.
    """
    parts = urlsplit(url)
    if parts.netloc or parts.fragment:
        raise ValueError(f"metadata URL {url!r}: write sqlite:///absolute/path or fdb:///absolute/path, nothing else")
    path = unquote(parts.path)
    match parts.scheme:
        case "sqlite" if path:
            try:
                distance = parse_distance(parts.query)
            except ValueError as error:
                raise ValueError(f"metadata URL {url!r}: {error}") from error
            from .sqlite import SqliteEngine

            near = await SqliteEngine.open(path, clock=clock, faults=faults)
            if distance is None:
                return near
            from .distance import DistantEngine

            return DistantEngine(
                near, distance.round_trip_s, cut_while=distance.cut_while, timeout_s=distance.timeout_s
            )
        case "fdb":
            from .fdb import FdbEngine

            cluster_file = None if path in ("", "/") else path
            return await FdbEngine.open(cluster_file, prefix=_prefix(url, parts.query), clock=clock, faults=faults)
    raise ValueError(f"metadata URL {url!r} names no engine: write sqlite:///FILE or fdb:///CLUSTERFILE")


def _prefix(url: str, query: str) -> bytes:
    try:
        options = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError as error:
        raise ValueError(f"metadata URL {url!r}: {error}") from error
    if len(options) > 1 or any(name != "prefix" for name, _ in options):
        raise ValueError(f"metadata URL {url!r}: the one option is ?prefix=TEXT")
    prefix = options[0][1] if options else ""
    if len(prefix) > PREFIX_LENGTH or not prefix.isascii() or not prefix.isprintable():
        raise ValueError(f"metadata URL {url!r}: a prefix is at most {PREFIX_LENGTH} printable ASCII characters")
    return prefix.encode()
