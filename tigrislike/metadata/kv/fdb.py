"""The FoundationDB engine: the official 7.1 binding behind an asyncio adapter.

The binding is pinned to 7.1 with API version 710, which works with client libraries 7.1 and newer; the library in
turn must speak the cluster's protocol. Binding and library are loaded when an engine is opened, so everything else
works where they are absent.

The adapter: a native future tells of its completion on the client's network thread, which wakes the event loop,
once for however many have completed meanwhile. Values are taken out only when ready, so nothing here blocks. A
native transaction lives as long as anything that waits for it (dropped earlier, all that is pending fails with
1025). Ranges are fetched batch by batch by hand: the binding's iterator blocks.

Retries, settling of ambiguous commits and the rules for functions are `retry.Runner`'s. Open after fork: a client
does not survive one.
"""

from __future__ import annotations

import asyncio
import ctypes
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

from .clock import Clock, SystemClock
from .engine import Watch
from .errors import (
    AmbiguousCommit,
    CommitUnknown,
    EngineClosed,
    EngineError,
    EngineUnavailable,
    InvertedRange,
    KeyOutsideLegalRange,
    KeyTooLarge,
    NotCommitted,
    ReadOnlyTransaction,
    TemporarilyRefused,
    TooManyWatches,
    TransactionEnded,
    TransactionTimedOut,
    TransactionTooLarge,
    TransactionTooOld,
    Unreadable,
    ValueTooLarge,
)
from .faults import Faults
from .limits import (
    KEY_BYTES,
    METADATA_VERSION_KEY,
    SYSTEM_PREFIX,
    check_delta,
    check_key,
    check_maximum,
    check_range,
    check_value,
    reject_key,
)
from .retry import Runner

T = TypeVar("T")

API_VERSION = 710

DONE_PREFIX = b"\xfe/done/"
"""Where attempts leave their mark. Tuple-encoded keys never begin with 0xfe."""

TIMEOUT_S = 10.0
"""For one `transact` or `read`, retries and all."""

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

ROW = struct.Struct("<QiQi")
"""One key-value pair of a range, as the C API packs it: key, its length, value, its length."""


def load_binding() -> Any:
    """The `fdb` module at our API version.

    Raises:
        EngineUnavailable: the binding or its library is missing or does not fit, with what to do about it.
    """
    try:
        import fdb
    except ImportError as error:
        raise EngineUnavailable("the Python package foundationdb is missing: pip install 'foundationdb<7.2'") from error
    try:
        fdb.api_version(API_VERSION)
    except Exception as error:  # the binding raises bare Exceptions
        raise EngineUnavailable(LIBRARY_MISSING.format(reason=str(error).rstrip(".!") + ".")) from error
    return fdb


class FdbEngine:
    """An `Engine` on a FoundationDB cluster. Made by `FdbEngine.open`."""

    def __init__(self, binding: Any, database: Any, clock: Clock, faults: Faults | None, timeout_s: float) -> None:
        self._clock = clock
        self._closed = False
        bridge = Bridge()

        def begin(read_only: bool, left_s: float) -> FdbTransaction:
            native = database.create_transaction()
            native.options.set_timeout(max(int(left_s * 1000), 1))
            return FdbTransaction(native, bridge, binding, read_only)

        def runner(read_only: bool) -> Runner:
            return Runner(
                lambda left_s: begin(read_only, left_s),
                clock,
                done_prefix=DONE_PREFIX,
                timeout_s=timeout_s,
                faults=faults,
            )

        self._writes = runner(False)
        self._reads = runner(True)

    @classmethod
    async def open(
        cls,
        cluster_file: str | None = None,
        *,
        clock: Clock | None = None,
        faults: Faults | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> FdbEngine:
        """Open the cluster that `cluster_file` names (None: FoundationDB's default). Does not wait for it to answer.

        Raises:
            EngineUnavailable: the client library is missing, or the cluster file unusable.
        """
        binding = load_binding()
        try:
            database = binding.open(cluster_file)
        except binding.FDBError as error:
            raise EngineUnavailable(f"cluster file {cluster_file or '(default)'}: {_reason(error)}") from error
        return cls(binding, database, clock or SystemClock(), faults, timeout_s)

    async def transact(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        if self._closed:
            raise EngineClosed("the engine has been closed")
        return await self._writes.transact(fn, args)

    async def read(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        if self._closed:
            raise EngineClosed("the engine has been closed")
        return await self._reads.read(fn, args)

    def now_ns(self) -> int:
        return self._clock.now_ns()

    async def checkpoint(self) -> None:
        """Nothing to do: the cluster looks after itself."""

    async def close(self) -> None:
        self._closed = True
        await self._writes.close()
        await self._reads.close()


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


class Reply(Generic[T]):
    """A native future under way. Awaiting it gives what `take` gets out of it."""

    __slots__ = ("_native", "_take", "_tr")

    def __init__(self, tr: FdbTransaction, native: Any, take: Callable[[Any], T]) -> None:
        self._tr = tr
        self._native = native
        self._take = take

    def __await__(self) -> Generator[Any, None, T]:
        yield from self._tr.until_ready(self._native)
        return self._tr.taken(self._take, self._native)


class Rows:
    """A range under way. The first batch was asked for when it was made; awaiting it asks for the others."""

    __slots__ = ("_ask", "_begin", "_end", "_limit", "_native", "_reverse", "_tr")

    def __init__(
        self, tr: FdbTransaction, ask: Callable[..., Any], begin: bytes, end: bytes, limit: int, reverse: bool
    ) -> None:
        self._tr = tr
        self._ask = ask
        self._begin = begin
        self._end = end
        self._limit = limit
        self._reverse = reverse
        self._native = ask(begin, end, limit, 1)

    def __await__(self) -> Generator[Any, None, list[tuple[bytes, bytes]]]:
        rows: list[tuple[bytes, bytes]] = []
        begin, end, native, batch = self._begin, self._end, self._native, 1
        while True:
            yield from self._tr.until_ready(native)
            more = self._tr.taken(take_rows, native, self._tr.row_type, rows)
            if not more or (self._limit and len(rows) >= self._limit):
                return rows
            if rows:
                if self._reverse:
                    end = rows[-1][0]
                else:
                    begin = rows[-1][0] + b"\0"
            batch += 1
            native = self._tr.taken(self._ask, begin, end, self._limit - len(rows) if self._limit else 0, batch)


class FdbTransaction:
    """An `Attempt` on a native transaction."""

    def __init__(self, native: Any, bridge: Bridge, binding: Any, read_only: bool) -> None:
        self._native: Any = native
        self._bridge = bridge
        self._binding = binding
        self._read_only = read_only
        self._bumped = False
        self._watched = False
        self._committing = False
        self.row_type = binding.impl.KeyValueStruct
        self.awaited: asyncio.Future[Any] | None = None
        self.mutates = False

    def get(self, key: bytes, *, snapshot: bool = False) -> Awaitable[bytes | None]:
        if type(key) is not bytes or len(key) > KEY_BYTES or key >= SYSTEM_PREFIX:
            reject_key(key)
        native = self._alive()
        return Reply(self, (native.snapshot if snapshot or self._read_only else native).get(key), take_value)

    def get_range(
        self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False, snapshot: bool = False
    ) -> Awaitable[list[tuple[bytes, bytes]]]:
        check_range(begin, end)
        native = self._alive()
        source = native.snapshot if snapshot or self._read_only else native
        selector = self._binding.KeySelector.first_greater_or_equal
        # All of a limited range in one batch; an unlimited one in the largest batches that the servers send.
        mode = self._binding.StreamingMode.exact if limit else self._binding.StreamingMode.want_all

        def ask(first: bytes, last: bytes, left: int, batch: int) -> Any:
            return source._get_range(selector(first), selector(last), left, mode, batch, reverse)

        return Rows(self, ask, begin, end, limit, reverse)

    def set(self, key: bytes, value: bytes) -> None:
        check_key(key)
        check_value(key, value)
        self._writable("set").set(key, value)

    def clear(self, key: bytes) -> None:
        check_key(key)
        self._writable("clear").clear(key)

    def clear_range(self, begin: bytes, end: bytes) -> None:
        check_range(begin, end)
        self._writable("clear_range").clear_range(begin, end)

    def add(self, key: bytes, delta: int) -> None:
        check_key(key)
        check_delta(delta)
        self._writable("add").add(key, delta.to_bytes(8, "little", signed=True))

    def max(self, key: bytes, value: int) -> None:
        check_key(key)
        check_maximum(value)
        self._writable("max").max(key, value.to_bytes(8, "little"))

    def add_read_conflict_key(self, key: bytes) -> None:
        check_key(key)
        self._alive().add_read_conflict_key(key)

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        check_range(begin, end)
        self._alive().add_read_conflict_range(begin, end)

    def read_version(self) -> Awaitable[int]:
        return Reply(self, self._alive().get_read_version(), take_now)

    def watch(self, key: bytes) -> Watch:
        check_key(key)
        if self._read_only:
            raise self._read_only_error("watch")
        self._watched = True
        return FdbWatch(self._alive(), key, self._bridge, self._binding)

    def bump_metadata_version(self) -> None:
        # The only value that the key may be given: ten bytes of versionstamp at offset 0.
        self._writable("bump_metadata_version").set_versionstamped_value(METADATA_VERSION_KEY, bytes(14))
        self._bumped = True

    def metadata_version(self) -> Awaitable[bytes]:
        native = self._alive()
        if self._bumped:
            raise Unreadable("the metadata version was bumped in this transaction and is known only once it commits")
        return Reply(self, native.snapshot.get(METADATA_VERSION_KEY), take_value_or_empty)

    async def commit(self) -> None:
        native = self._alive()
        self._committing = True
        await Reply(self, native.commit(), take_now)
        if self._watched:
            # The time limit was the transaction's, not its watches'.
            native.options.set_timeout(0)

    def end(self) -> None:
        self._native = None

    # What replies use.

    def until_ready(self, native: Any) -> Generator[Any, None, None]:
        """Suspend until `native` is ready; a cancellation cancels it too."""
        if native.is_ready():
            return
        self.awaited = self._bridge.completion(native, self._native)
        try:
            yield from self.awaited
        except BaseException:
            native.cancel()
            raise

    def taken(self, take: Callable[..., T], *args: Any) -> T:
        """`take(*args)`, with FoundationDB's errors made ours."""
        try:
            return take(*args)
        except self._binding.FDBError as error:
            raise translate(error, committing=self._committing and self.mutates) from error

    def _alive(self) -> Any:
        if self._native is None:
            raise TransactionEnded("a transaction was used after its function had returned")
        return self._native

    def _writable(self, method: str) -> Any:
        native = self._alive()
        if self._read_only:
            raise self._read_only_error(method)
        self.mutates = True
        return native

    def _read_only_error(self, method: str) -> EngineError:
        return ReadOnlyTransaction(f"{method} inside Engine.read, which is read-only: use Engine.transact")


class FdbWatch:
    """A native watch. It is active once its transaction has committed, and may fire for no reason."""

    def __init__(self, native_transaction: Any, key: bytes, bridge: Bridge, binding: Any) -> None:
        self._keep = native_transaction
        self._native = native_transaction.watch(key)
        self._bridge = bridge
        self._binding = binding
        self._fired: asyncio.Future[None] | None = None
        self._cancelled = False

    async def wait(self, timeout_s: float) -> bool:
        if self._cancelled:
            return False
        if self._fired is None:
            self._fired = self._bridge.completion(self._native, self._keep)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._fired)
        except TimeoutError:
            return False
        try:
            self._native.wait()
        except self._binding.FDBError as error:
            if error.code == TooManyWatches.number:
                raise TooManyWatches(f"too many watches on this database: {_reason(error)}") from error
            # Lost, for whatever reason: the owner had better look for itself, unless it cancelled.
            return not self._cancelled
        return not self._cancelled

    def cancel(self) -> None:
        self._cancelled = True
        self._native.cancel()


def take_now(native: Any) -> Any:
    """The result of a native future that is ready."""
    return native.wait()


def take_value(native: Any) -> bytes | None:
    """The value of a `get` that is ready."""
    return native.value  # type: ignore[no-any-return]


def take_value_or_empty(native: Any) -> bytes:
    """The value of a `get` that is ready, b"" for none."""
    return native.value or b""


def take_rows(native: Any, row_type: Any, rows: list[tuple[bytes, bytes]]) -> bool:
    """Append one batch of a range to `rows`; whether there is more. `row_type` is the binding's `KeyValueStruct`.

    The binding's own way makes several ctypes objects for each row, at 2 to 3 us; this takes a third.
    """
    array = ctypes.POINTER(row_type)()
    count = ctypes.c_int()
    more = ctypes.c_int()
    native.capi.fdb_future_get_keyvalue_array(
        native.fpointer, ctypes.byref(array), ctypes.byref(count), ctypes.byref(more)
    )
    if count.value:
        string_at = ctypes.string_at
        packed = string_at(array, count.value * ROW.size)
        rows.extend(
            (string_at(key, key_size), string_at(value, value_size))
            for key, key_size, value, value_size in ROW.iter_unpack(packed)
        )
    return bool(more.value)


def translate(error: Any, *, committing: bool) -> EngineError:
    """Our error for one of FoundationDB's; `committing`: it ended the commit of a transaction that writes."""
    code = error.code
    reason = _reason(error)
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


def _reason(error: Any) -> str:
    description = error.description
    text = description.decode("utf-8", "replace") if isinstance(description, bytes) else str(description)
    return f"{text} ({error.code})"
