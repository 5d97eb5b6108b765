"""Transactions on FoundationDB: native futures made awaitable, in the order of our contract.

Values are taken out of a native future only when it is ready, so nothing here blocks. Ranges are fetched batch by
batch by hand, because the binding's iterator blocks. A native transaction lives as long as anything that waits for
it: dropped earlier, all that is pending fails with 1025.
"""

from __future__ import annotations

import asyncio
import ctypes
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

from .engine import Watch
from .errors import EngineError, ReadOnlyTransaction, TooManyWatches, TransactionEnded, Unreadable
from .fdb_client import Bridge, reason_of, translate
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

T = TypeVar("T")

ROW = struct.Struct("<QiQi")
"""One key-value pair of a range, as the C API packs it: key, its length, value, its length."""


class FdbTransaction:
    """An `Attempt` on a native transaction.

    A native read sees writes that were made while it was under way, though it was called before them (seen on a
    real cluster, with ranges). So a write waits, with all that comes after it, until the reads called before it
    have their answers. Functions that await what they read before they write, as they nearly all do, never notice.
    """

    def __init__(self, native: Any, bridge: Bridge, binding: Any, read_only: bool) -> None:
        self._native: Any = native
        self._bridge = bridge
        self._binding = binding
        self._read_only = read_only
        self._bumped = False
        self._watched = False
        self._committing = False
        self._under_way: list[Reply[Any] | Rows] = []
        self._delayed: deque[Later[Any] | Callable[[], object]] = deque()
        self.row_type = binding.impl.KeyValueStruct
        self.awaited: asyncio.Future[Any] | None = None
        self.mutates = False

    def get(self, key: bytes, *, snapshot: bool = False) -> Awaitable[bytes | None]:
        if type(key) is not bytes or len(key) > KEY_BYTES or key >= SYSTEM_PREFIX:
            reject_key(key)
        native = self._alive()
        source = native.snapshot if snapshot or self._read_only else native
        return self._read(lambda: Reply(self, source.get(key), take_value))

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

        return self._read(lambda: Rows(self, ask, begin, end, limit, reverse))

    def set(self, key: bytes, value: bytes) -> None:
        check_key(key)
        check_value(key, value)
        native = self._writable("set")
        self._write(lambda: native.set(key, value))

    def clear(self, key: bytes) -> None:
        check_key(key)
        native = self._writable("clear")
        self._write(lambda: native.clear(key))

    def clear_range(self, begin: bytes, end: bytes) -> None:
        check_range(begin, end)
        native = self._writable("clear_range")
        self._write(lambda: native.clear_range(begin, end))

    def add(self, key: bytes, delta: int) -> None:
        check_key(key)
        check_delta(delta)
        native = self._writable("add")
        self._write(lambda: native.add(key, delta.to_bytes(8, "little", signed=True)))

    def max(self, key: bytes, value: int) -> None:
        check_key(key)
        check_maximum(value)
        native = self._writable("max")
        self._write(lambda: native.max(key, value.to_bytes(8, "little")))

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
        native = self._alive()
        self._watched = True
        watch = FdbWatch(key, self._bridge, self._binding)
        self._write(lambda: watch.start(native))
        return watch

    def bump_metadata_version(self) -> None:
        native = self._writable("bump_metadata_version")
        self._bumped = True
        # The only value that the key may be given: ten bytes of versionstamp at offset 0.
        self._write(lambda: native.set_versionstamped_value(METADATA_VERSION_KEY, bytes(14)))

    def metadata_version(self) -> Awaitable[bytes]:
        native = self._alive()
        if self._bumped:
            raise Unreadable("the metadata version was bumped in this transaction and is known only once it commits")
        return self._read(lambda: Reply(self, native.snapshot.get(METADATA_VERSION_KEY), take_value_or_empty))

    async def commit(self) -> None:
        native = self._alive()
        if self._delayed:
            await Advance(self)
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

    def advance(self, until: Later[Any] | None) -> Generator[Any, None, None]:
        """Do what was delayed, in order, up to the start of `until`; None: all of it."""
        while self._delayed:
            step = self._delayed.popleft()
            if isinstance(step, Later):
                self._under_way.append(step.start())
                if step is until:
                    return
            else:
                for read in self._under_way:
                    yield from read.finish()
                self._under_way.clear()
                step()

    def _read(self, start: Callable[[], Reply[T] | Rows]) -> Awaitable[Any]:
        if self._delayed:
            later = Later(self, start)
            self._delayed.append(later)
            return later
        read = start()
        if not self._read_only:
            self._under_way.append(read)
        return read

    def _write(self, write: Callable[[], object]) -> None:
        if not self._delayed:
            if self._under_way:
                self._under_way = [read for read in self._under_way if not read.is_fixed()]
            if not self._under_way:
                write()
                return
        self._delayed.append(write)

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


class Advance:
    """Awaiting it does all that a transaction has delayed."""

    __slots__ = ("_tr",)

    def __init__(self, tr: FdbTransaction) -> None:
        self._tr = tr

    def __await__(self) -> Generator[Any, None, None]:
        yield from self._tr.advance(None)


class FdbWatch:
    """A native watch. It is active once its transaction has committed, and may fire for no reason."""

    def __init__(self, key: bytes, bridge: Bridge, binding: Any) -> None:
        self._key = key
        self._keep: Any = None
        self._native: Any = None
        self._bridge = bridge
        self._binding = binding
        self._fired: asyncio.Future[None] | None = None
        self._cancelled = False

    def start(self, native_transaction: Any) -> None:
        """Make it part of the transaction."""
        self._keep = native_transaction
        self._native = native_transaction.watch(self._key)

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
                raise TooManyWatches(f"too many watches on this database: {reason_of(error)}") from error
            # Lost, for whatever reason: the owner had better look for itself, unless it cancelled.
            return not self._cancelled
        return not self._cancelled

    def cancel(self) -> None:
        self._cancelled = True
        if self._native is not None:
            self._native.cancel()


class Reply(Generic[T]):
    """A native future under way. Awaiting it gives what `take` gets out of it."""

    __slots__ = ("_error", "_native", "_take", "_tr", "_value", "finished")

    def __init__(self, tr: FdbTransaction, native: Any, take: Callable[[Any], T]) -> None:
        self._tr = tr
        self._native = native
        self._take = take
        self._error: EngineError | None = None
        self.finished = False

    def is_fixed(self) -> bool:
        """Whether no later write of the transaction can change the answer."""
        return self.finished or bool(self._native.is_ready())

    def finish(self) -> Generator[Any, None, None]:
        """Suspend until the answer is here. Its error, if that is what it is, waits to be asked for."""
        if not self.finished:
            yield from self._tr.until_ready(self._native)
            try:
                self._value = self._tr.taken(self._take, self._native)
            except EngineError as error:
                self._error = error
            self.finished = True

    def __await__(self) -> Generator[Any, None, T]:
        yield from self.finish()
        if self._error is not None:
            raise self._error
        return self._value


class Rows:
    """A range under way. The first batch was asked for when it was made, the others are once that has come."""

    __slots__ = (
        "_ask",
        "_batch",
        "_begin",
        "_end",
        "_error",
        "_limit",
        "_native",
        "_reverse",
        "_rows",
        "_tr",
        "finished",
    )

    def __init__(
        self, tr: FdbTransaction, ask: Callable[..., Any], begin: bytes, end: bytes, limit: int, reverse: bool
    ) -> None:
        self._tr = tr
        self._ask = ask
        self._begin = begin
        self._end = end
        self._limit = limit
        self._reverse = reverse
        self._batch = 1
        self._rows: list[tuple[bytes, bytes]] = []
        self._error: EngineError | None = None
        self._native = ask(begin, end, limit, 1)
        self.finished = False

    def is_fixed(self) -> bool:
        """Whether no later write of the transaction can change the answer: all batches are here."""
        if not self.finished and self._native.is_ready():
            self._absorb()
        return self.finished

    def finish(self) -> Generator[Any, None, None]:
        """Suspend until all batches are here. An error waits to be asked for."""
        while not self.finished:
            yield from self._tr.until_ready(self._native)
            self._absorb()

    def __await__(self) -> Generator[Any, None, list[tuple[bytes, bytes]]]:
        yield from self.finish()
        if self._error is not None:
            raise self._error
        return self._rows

    def _absorb(self) -> None:
        rows = self._rows
        try:
            more = self._tr.taken(take_rows, self._native, self._tr.row_type, rows)
            if not more or (self._limit and len(rows) >= self._limit):
                self.finished = True
                return
            if rows:
                if self._reverse:
                    self._end = rows[-1][0]
                else:
                    self._begin = rows[-1][0] + b"\0"
            self._batch += 1
            left = self._limit - len(rows) if self._limit else 0
            self._native = self._tr.taken(self._ask, self._begin, self._end, left, self._batch)
        except EngineError as error:
            self._error = error
            self.finished = True


class Later(Generic[T]):
    """A read called after a write that had to wait; it starts when its turn in the transaction's order comes."""

    __slots__ = ("_start", "_tr", "started")

    def __init__(self, tr: FdbTransaction, start: Callable[[], Reply[T] | Rows]) -> None:
        self._tr = tr
        self._start = start
        self.started: Reply[T] | Rows | None = None

    def start(self) -> Reply[T] | Rows:
        """Ask for it."""
        self.started = self._start()
        return self.started

    def __await__(self) -> Generator[Any, None, Any]:
        if self.started is None:
            yield from self._tr.advance(self)
        assert self.started is not None
        return (yield from self.started.__await__())


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
