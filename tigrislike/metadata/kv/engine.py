"""The seam between metadata and the ordered key-value stores that can hold it.

Metadata is written once, as functions over a FoundationDB-shaped `Transaction`; an `Engine` runs them. Engines
are strictly serialisable: what `transact` has returned is durable and seen by every later `transact` and `read`.

The rules for a transaction function, `async def fn(tr, *args)`:

1. It awaits nothing but what its transaction returns. There may be no event loop under it; awaiting anything else
   raises `ForeignAwait`. Reads start when they are called, so call independent reads first and await them after.
2. It has no side effects: it may run many times, on another thread, and an earlier run's result is thrown away.
3. It finishes fast: within 5 seconds on every engine, and on SQLite every writer waits for it.
4. It lets errors of its transaction go up. Any exception that it raises undoes its own writes, nobody else's, and
   reaches the caller once the state that it saw is durable.

Keys are bytes up to 10 kB that do not begin with 0xff, values bytes up to 100 kB, a transaction at most 10 MB
(`limits.py`). Ranges are half open.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Ready(Generic[T_co]):
    """An awaitable that is already done: what a read returns on an engine that answers at once."""

    __slots__ = ("value",)

    def __init__(self, value: T_co) -> None:
        self.value = value

    def __await__(self) -> Generator[None, None, T_co]:
        return self.value
        yield  # type: ignore[unreachable]  # makes this a generator: the iterator that await drives fastest


class Watch(Protocol):
    """A hint that a key may have changed. Always have a poll to fall back on: hints can be lost."""

    async def wait(self, timeout_s: float) -> bool:
        """Wait until the key's value differs from what the transaction saw. False: `timeout_s` passed first."""
        ...

    def cancel(self) -> None:
        """Stop watching. Idempotent; a pending `wait` returns False."""
        ...


class Transaction(Protocol):
    """One attempt at a transaction. Reads see the snapshot overlaid with the transaction's own earlier writes.

    Raises, from every method: `KeyTooLarge`, `KeyOutsideLegalRange`, `ValueTooLarge`, `InvertedRange`, TypeError
    for what is not bytes, at the call; `TransactionEnded` when used after its function returned. Writes raise
    `ReadOnlyTransaction` inside `Engine.read`.
    """

    def get(self, key: bytes, *, snapshot: bool = False) -> Awaitable[bytes | None]:
        """The value under `key`, or None. `snapshot`: without a read conflict on it."""
        ...

    def get_range(
        self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False, snapshot: bool = False
    ) -> Awaitable[list[tuple[bytes, bytes]]]:
        """Keys and values in [begin, end), ascending (descending if `reverse`), at most `limit` (0: all)."""
        ...

    def set(self, key: bytes, value: bytes) -> None:
        """Store `value` under `key`."""
        ...

    def clear(self, key: bytes) -> None:
        """Remove `key` if it is there."""
        ...

    def clear_range(self, begin: bytes, end: bytes) -> None:
        """Remove every key in [begin, end)."""
        ...

    def add(self, key: bytes, delta: int) -> None:
        """Add the signed 64-bit `delta` to a little-endian number, modulo 2**64, without a read conflict."""
        ...

    def max(self, key: bytes, value: int) -> None:
        """Raise a little-endian unsigned 64-bit number to at least `value`, without a read conflict."""
        ...

    def add_read_conflict_key(self, key: bytes) -> None:
        """Abort the commit if anyone changes `key` meanwhile, though it was not read here."""
        ...

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        """Abort the commit if anyone changes a key in [begin, end) meanwhile."""
        ...

    def read_version(self) -> Awaitable[int]:
        """The version that this transaction reads; grows with every commit that it sees. For comparing only."""
        ...

    def watch(self, key: bytes) -> Watch:
        """Watch `key`, from the value that this transaction sees, once it has committed. `TooManyWatches` at 10,000."""
        ...

    def bump_metadata_version(self) -> None:
        """Give the database's metadata version a new, never used value at commit. Never conflicts."""
        ...

    def metadata_version(self) -> Awaitable[bytes]:
        """The metadata version, read without conflict; b"" before the first bump. `Unreadable` after a bump here."""
        ...


class Engine(Protocol):
    """A strictly serialisable, durable, ordered key-value store. Bound to the event loop that opened it.

    Keys are given in full: the engine adds no prefix to them.
    """

    @property
    def prefix(self) -> bytes:
        """Where in the database this store's keys lie; b"" where it has the database to itself."""
        ...

    async def transact(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        """Run `fn(tr, *args)` to a commit, again after every conflict, and return (or raise) what it did.

        Results and exceptions leave only when what they rest on is durable. Cancelling the caller does not undo a
        commit under way: like `AmbiguousCommit`, it leaves the outcome unknown.

        Raises:
            whatever `fn` raises: nothing that it wrote is kept.
            AmbiguousCommit: it may have been committed.
            StoreSealed: it writes, and the store is sealed.
            EngineError: nothing was committed.
        """
        ...

    async def read(self, fn: Callable[..., Awaitable[T]], *args: object, max_age_ns: int = 0) -> T:
        """Run `fn(tr, *args)` on one snapshot, read-only. May run it again if the snapshot grows too old.

        `max_age_ns`: what was committed within the last so many nanoseconds need not be seen, which saves FoundationDB
        asking for a version. For statistics and the like; 0 sees all that was committed before the call.
        """
        ...

    @property
    def background(self) -> Engine:
        """The same store for work that nobody waits for: it gives way to requests. Closed with the engine."""
        ...

    async def seal(self, reason: str) -> None:
        """Refuse every change of this store, by any process, from here on: `transact` raises `StoreSealed`.

        What `transact` had under way is committed, or refused, by the time this returns. Reads go on, across restarts,
        until `unseal`. Sealing a sealed store changes the reason.
        """
        ...

    async def unseal(self) -> None:
        """Allow changes again. Does nothing to an open store."""
        ...

    async def sealed(self) -> str | None:
        """The reason for which this store is sealed; None while it is open."""
        ...

    async def transact_past_seal(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        """`transact` for the one who sealed the store."""
        ...

    def now_ns(self) -> int:
        """The engine's clock: nanoseconds since the Unix epoch. The one clock that metadata uses."""
        ...

    async def checkpoint(self) -> None:
        """Fold away what the engine keeps only for speed (SQLite: the write-ahead log). Cheap to call often."""
        ...

    async def close(self) -> None:
        """Finish what was accepted, refuse the rest with `EngineClosed`, release every resource. Idempotent."""
        ...
