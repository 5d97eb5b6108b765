"""Transactions on FoundationDB: native futures made awaitable, in the order of our contract.

Values are taken out of a native future only when it is ready, so nothing here blocks. Ranges are fetched batch by
batch, not row by row. Native transactions and futures are freed by hand: a transaction when its function has returned
(what is then still pending fails with 1025, and nobody waits for it), a future when its value has been taken.
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
from .fdb_client import OPERATION_CANCELLED, TIMED_OUT, Client
from .limits import (
    KEY_BYTES,
    METADATA_VERSION_KEY,
    SYSTEM_PREFIX,
    VALUE_BYTES,
    check_delta,
    check_key,
    check_maximum,
    check_range,
    reject_key,
    reject_value,
)

T = TypeVar("T")

string_at = ctypes.string_at

# Numbers of the C API (fdb_c_options.g.h): transaction options, atomic operations, conflict ranges, streaming modes.
TIMEOUT = 500
TAG = 801  # auto_throttle_tag: with `tag` alone, 800, reads would carry none
PRIORITY_BATCH = 201
ADD = 2
MAX = 12
SET_VERSIONSTAMPED_VALUE = 15
READ_CONFLICT = 0
WANT_ALL = -2
EXACT = 0

ROW = struct.Struct("<QiQi")
"""One key-value pair of a range, as the C API packs it: key, its length, value, its length."""


class FdbTransaction:
    """An `Attempt` on a native transaction.

    A native read sees writes that were made while it was under way, though it was called before them (seen on a
    real cluster, with ranges). So a write waits, with all that comes after it, until the reads called before it
    have their answers. Functions that await what they read before they write, as they nearly all do, never notice.
    """

    __slots__ = (
        "_bumped",
        "_delayed",
        "_metadata_version",
        "_pointer",
        "_read_only",
        "_under_way",
        "_watches",
        "awaited",
        "blind",
        "client",
        "committing",
        "library",
        "mutates",
    )

    def __init__(self, client: Client, pointer: int, read_only: bool) -> None:
        self.client = client
        self.library = client.library
        self._pointer = pointer
        self._read_only = read_only
        self._bumped = False
        self._watches: list[FdbWatch] | None = None
        self._metadata_version: ValueOrEmpty | None = None
        self._under_way: list[Reply[Any]] = []
        self._delayed: deque[Later | Callable[[], object]] | None = None
        self.committing = False
        self.blind = True
        self.awaited: asyncio.Future[Any] | None = None
        self.mutates = False

    def get(self, key: bytes, *, snapshot: bool = False) -> Awaitable[bytes | None]:
        if type(key) is not bytes or len(key) > KEY_BYTES or key >= SYSTEM_PREFIX:
            reject_key(key)
        pointer = self._pointer or self._ended()
        if self._read_only:
            return Value(self, self.library.get(pointer, key, len(key), 1))
        if self._delayed:
            return self._later(lambda: Value(self, self.library.get(pointer, key, len(key), snapshot)))
        self.blind = False
        read = Value(self, self.library.get(pointer, key, len(key), snapshot))
        self._under_way.append(read)
        return read

    def get_range(
        self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False, snapshot: bool = False
    ) -> Awaitable[list[tuple[bytes, bytes]]]:
        check_range(begin, end)
        pointer = self._pointer or self._ended()
        if self._read_only:
            return Rows(self, pointer, begin, end, limit, reverse, True)
        if self._delayed:
            return self._later(lambda: Rows(self, pointer, begin, end, limit, reverse, snapshot))
        self.blind = False
        read = Rows(self, pointer, begin, end, limit, reverse, snapshot)
        self._under_way.append(read)
        return read

    def set(self, key: bytes, value: bytes) -> None:
        if type(key) is not bytes or len(key) > KEY_BYTES or key >= SYSTEM_PREFIX:
            reject_key(key)
        if type(value) is not bytes or len(value) > VALUE_BYTES:
            reject_value(key, value)
        pointer = self._writable("set")
        if self._must_wait():
            self._write(lambda: self.library.set(pointer, key, len(key), value, len(value)))
        else:
            self.library.set(pointer, key, len(key), value, len(value))

    def clear(self, key: bytes) -> None:
        check_key(key)
        pointer = self._writable("clear")
        self._write(lambda: self.library.clear(pointer, key, len(key)))

    def clear_range(self, begin: bytes, end: bytes) -> None:
        check_range(begin, end)
        pointer = self._writable("clear_range")
        self._write(lambda: self.library.clear_range(pointer, begin, len(begin), end, len(end)))

    def add(self, key: bytes, delta: int) -> None:
        check_key(key)
        check_delta(delta)
        self._atomic("add", ADD, key, delta.to_bytes(8, "little", signed=True))

    def max(self, key: bytes, value: int) -> None:
        check_key(key)
        check_maximum(value)
        self._atomic("max", MAX, key, value.to_bytes(8, "little"))

    def add_read_conflict_key(self, key: bytes) -> None:
        check_key(key)
        self.blind = False
        self._conflict(key, key + b"\0")

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        check_range(begin, end)
        self.blind = False
        self._conflict(begin, end)

    def read_version(self) -> Awaitable[int]:
        self.blind = False
        return Number(self, self.library.get_read_version(self._pointer or self._ended()))

    def watch(self, key: bytes) -> Watch:
        check_key(key)
        if self._read_only:
            raise self._read_only_error("watch")
        pointer = self._pointer or self._ended()
        self.blind = False
        watch = FdbWatch(self.client)
        if self._watches is None:
            self._watches = []
        self._watches.append(watch)
        self._write(lambda: watch.start(self.library.watch(pointer, key, len(key))))
        return watch

    def bump_metadata_version(self) -> None:
        pointer = self._writable("bump_metadata_version")
        self._bumped = True
        if self._metadata_version is not None:
            self._under_way.append(self._metadata_version)
        # The only value that the key may be given: ten bytes of versionstamp at offset 0.
        key, value, operation = METADATA_VERSION_KEY, bytes(14), SET_VERSIONSTAMPED_VALUE
        self._write(lambda: self.library.atomic_op(pointer, key, len(key), value, len(value), operation))

    def metadata_version(self) -> Awaitable[bytes]:
        pointer = self._pointer or self._ended()
        if self._bumped:
            raise Unreadable("the metadata version was bumped in this transaction and is known only once it commits")
        if self._metadata_version is None:
            self.blind = False
            # No other write changes it, so it keeps none waiting; and it comes with the read version.
            key = METADATA_VERSION_KEY
            self._metadata_version = ValueOrEmpty(self, self.library.get(pointer, key, len(key), 1))
        return self._metadata_version

    # What the engine uses.

    def mark(self, key: bytes, value: bytes) -> None:
        """Set `key` at commit, and conflict with whoever writes it before."""
        pointer = self._pointer or self._ended()
        self.library.add_conflict_range(pointer, key, len(key), key + b"\0", len(key) + 1, READ_CONFLICT)
        self.library.set(pointer, key, len(key), value, len(value))

    def reuse(self, version: int) -> None:
        """Read at `version` instead of asking for one. Before anything else."""
        self.library.set_read_version(self._pointer, version)

    async def commit(self) -> None:
        if self._delayed:
            await Advance(self)
        if not self.mutates and self._watches is None:
            return  # what was read was read at one version, and is as it was then
        pointer = self._pointer or self._ended()
        self.committing = True
        await Done(self, self.library.commit(pointer))
        if self._watches is not None:
            # The time limit was the transaction's, not its watches'.
            self.library.set_option(pointer, TIMEOUT, bytes(8), 8)

    def end(self) -> None:
        pointer, self._pointer = self._pointer, 0
        if self._watches is not None:
            # A watch lasts as long as the transaction that it was made by.
            kept = Kept(self.client, pointer)
            for watch in self._watches:
                watch.keep(kept)
        elif pointer:
            self.library.destroy_transaction(pointer)

    # What replies use.

    def has_ended(self) -> bool:
        """Whether the function has returned."""
        return not self._pointer

    def check_alive(self) -> None:
        """Raise `TransactionEnded` if the function has returned."""
        self._pointer or self._ended()

    def advance(self, until: Later | None) -> Generator[Any, None, None]:
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
                self.check_alive()
                step()

    def _later(self, start: Callable[[], Reply[Any]]) -> Later:
        assert self._delayed is not None
        later = Later(self, start)
        self._delayed.append(later)
        return later

    def _must_wait(self) -> bool:
        if self._under_way and not self._delayed:
            self._under_way = [read for read in self._under_way if not read.is_fixed()]
        return bool(self._under_way or self._delayed)

    def _write(self, write: Callable[[], object]) -> None:
        if not self._must_wait():
            write()
            return
        if self._delayed is None:
            self._delayed = deque()
        self._delayed.append(write)

    def _atomic(self, method: str, operation: int, key: bytes, operand: bytes) -> None:
        pointer = self._writable(method)
        self._write(lambda: self.library.atomic_op(pointer, key, len(key), operand, len(operand), operation))

    def _conflict(self, begin: bytes, end: bytes) -> None:
        pointer = self._pointer or self._ended()
        code = self.library.add_conflict_range(pointer, begin, len(begin), end, len(end), READ_CONFLICT)
        if code:
            raise self.client.error(code)

    def _ended(self) -> int:
        raise TransactionEnded("a transaction was used after its function had returned")

    def _writable(self, method: str) -> int:
        pointer = self._pointer or self._ended()
        if self._read_only:
            raise self._read_only_error(method)
        self.mutates = True
        return pointer

    def _read_only_error(self, method: str) -> EngineError:
        return ReadOnlyTransaction(f"{method} inside Engine.read, which is read-only: use Engine.transact")


class Advance:
    """Awaiting it does all that a transaction has delayed."""

    __slots__ = ("_tr",)

    def __init__(self, tr: FdbTransaction) -> None:
        self._tr = tr

    def __await__(self) -> Generator[Any, None, None]:
        yield from self._tr.advance(None)


class Kept:
    """A native transaction that lives as long as somebody refers to this."""

    __slots__ = ("_client", "_pointer")

    def __init__(self, client: Client, pointer: int) -> None:
        self._client = client
        self._pointer = pointer

    def __del__(self) -> None:
        self._client.library.destroy_transaction(self._pointer)


class FdbWatch:
    """A native watch. It is active once its transaction has committed, and may fire for no reason.

    Whoever refers to it keeps it alive, and nobody else: not the native future that is waited for.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._native: NativeWatch | None = None
        self._fired: asyncio.Future[None] | None = None
        self._cancelled = False
        client.watches(self)

    def start(self, pointer: int) -> None:
        """Make the native future `pointer` its own."""
        self._native = NativeWatch(self._client, pointer)
        if self._cancelled:
            self._native.cancel()

    def keep(self, transaction: Kept) -> None:
        """Keep `transaction`, which made it, for as long as the native watch is there."""
        if self._native is not None:
            self._native.transaction = transaction

    async def wait(self, timeout_s: float) -> bool:
        if self._cancelled:
            return False
        assert self._native is not None, "its transaction has not committed"
        if self._fired is None:
            self._fired = self._client.wait(self._native)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._fired)
        except TimeoutError:
            return False
        code = self._client.library.future_error(self._native.pointer)
        if code == TooManyWatches.number:
            raise TooManyWatches(f"too many watches on this database: {self._client.error(code)}")
        # With another error it is lost, for whatever reason: the owner had better look for itself, unless it cancelled.
        return not self._cancelled

    def cancel(self) -> None:
        self._cancelled = True
        if self._native is not None:
            self._native.cancel()

    def __del__(self) -> None:
        self.cancel()


class NativeWatch:
    """The native future of a watch, and what it needs. Freed once neither the watch nor the client refers to it."""

    __slots__ = ("_client", "pointer", "transaction")

    def __init__(self, client: Client, pointer: int) -> None:
        self._client = client
        self.pointer = pointer
        self.transaction: Kept | None = None

    def overdue(self) -> None:
        """A watch waits for as long as its owner likes."""

    def cancel(self) -> None:
        """Complete it, if it has not been."""
        self._client.library.cancel(self.pointer)

    def __del__(self) -> None:
        self._client.library.destroy_future(self.pointer)


class Reply(Generic[T]):
    """A native future under way. Awaiting it gives what `take` gets out of it.

    Attributes:
        at_once: it may be ready when it is first waited for.
    """

    __slots__ = ("_error", "_value", "finished", "pointer", "tr")

    at_once = True

    def __init__(self, tr: FdbTransaction, pointer: int) -> None:
        self.tr = tr
        self._error: EngineError | None = None
        self.pointer = pointer
        self.finished = False

    def take(self) -> T:
        """What the native future, which is ready, holds."""
        raise NotImplementedError

    def is_fixed(self) -> bool:
        """Whether no later write of the transaction can change the answer."""
        return self.finished or bool(self.tr.library.is_ready(self.pointer))

    def finish(self) -> Generator[Any, None, None]:
        """Suspend until the answer is here. Its error, if that is what it is, waits to be asked for."""
        if self.finished:
            return
        yield from self._until_ready()
        try:
            self._value = self.take()
        except EngineError as error:
            self._error = error
        self._free()

    def __await__(self) -> Generator[Any, None, T]:
        if not self.finished:
            yield from self.finish()
        if self._error is not None:
            raise self._error
        return self._value

    def overdue(self) -> EngineError:
        """As if its transaction had run into its time limit."""
        return self._of(TIMED_OUT)

    def check(self, code: int) -> None:
        """Raise our error for FoundationDB's number `code`; 0 is none."""
        if code:
            raise self._of(code)

    def _of(self, code: int) -> EngineError:
        return self.tr.client.error(code, committing=self.tr.committing and self.tr.mutates)

    def _until_ready(self) -> Generator[Any, None, None]:
        """Suspend until the native future is ready; a cancellation cancels it too."""
        client = self.tr.client
        if self.at_once and client.library.is_ready(self.pointer):
            return
        self.tr.awaited = waiter = client.wait(self)
        try:
            yield from waiter
        except BaseException as error:
            client.library.cancel(self.pointer)
            # Whoever swallows a cancellation and awaits this again is told, and waits for no native future twice.
            self._error = error if isinstance(error, EngineError) else self._of(OPERATION_CANCELLED)
            self.finished = True
            raise

    def _free(self) -> None:
        self.finished = True
        self.tr.library.destroy_future(self.pointer)
        self.pointer = 0

    def __del__(self) -> None:
        if self.pointer:
            self.tr.library.destroy_future(self.pointer)


class Done(Reply[None]):
    """A commit. It takes a round trip at least, so nobody looks whether it is there at once."""

    __slots__ = ()

    at_once = False

    def take(self) -> None:
        self.check(self.tr.library.future_error(self.pointer))


class Number(Reply[int]):
    """A version."""

    __slots__ = ()

    def take(self) -> int:
        client = self.tr.client
        self.check(client.library.future_int64(self.pointer, client.number_at))
        return client.number.value


class Value(Reply["bytes | None"]):
    """The value of a key, None where there is none."""

    __slots__ = ()

    def take(self) -> bytes | None:
        return take_value(self)


class ValueOrEmpty(Reply[bytes]):
    """The value of a key, b"" where there is none."""

    __slots__ = ()

    def take(self) -> bytes:
        return take_value(self) or b""


class Rows(Reply[list[tuple[bytes, bytes]]]):
    """A range under way. The first batch was asked for when it was made, each other once the one before has come."""

    __slots__ = ("_batch", "_begin", "_end", "_limit", "_native", "_reverse", "_rows", "_snapshot")

    def __init__(
        self, tr: FdbTransaction, native: int, begin: bytes, end: bytes, limit: int, reverse: bool, snapshot: bool
    ) -> None:
        super().__init__(tr, 0)
        self._native = native
        self._begin = begin
        self._end = end
        self._limit = limit
        self._reverse = reverse
        self._snapshot = snapshot
        self._batch = 0
        self._rows: list[tuple[bytes, bytes]] = []
        self._ask()

    def is_fixed(self) -> bool:
        """Whether no later write of the transaction can change the answer: all batches are here."""
        while not self.finished and self.tr.library.is_ready(self.pointer):
            self._absorb()
        return self.finished

    def finish(self) -> Generator[Any, None, None]:
        """Suspend until all batches are here. An error waits to be asked for."""
        while not self.finished:
            yield from self._until_ready()
            self._absorb()

    def take(self) -> list[tuple[bytes, bytes]]:
        return self._rows

    def _ask(self) -> None:
        # All of a limited range in one batch; an unlimited one in the largest batches that the servers send.
        self._batch += 1
        begin, end, limit = self._begin, self._end, self._limit
        self.pointer = self.tr.library.get_range(
            *(self._native, begin, len(begin), 0, 1, end, len(end), 0, 1),
            *(limit - len(self._rows) if limit else 0, 0, EXACT if limit else WANT_ALL),
            *(self._batch, self._snapshot, self._reverse),
        )

    def _absorb(self) -> None:
        rows = self._rows
        try:
            more = self._take_batch(rows)
        except EngineError as error:
            self._error = error
            more = False
        self._free()
        if not more or (self._limit and len(rows) >= self._limit):
            self._value = rows
            return
        if rows:
            if self._reverse:
                self._end = rows[-1][0]
            else:
                self._begin = rows[-1][0] + b"\0"
        if self.tr.has_ended():
            self._error = TransactionEnded("a range was read on after its transaction's function had returned")
            return
        self.finished = False
        self._ask()

    def _take_batch(self, rows: list[tuple[bytes, bytes]]) -> bool:
        """Append a batch to `rows`; whether there is more.

        The binding's own way makes several ctypes objects for each row, at 2 to 3 us; this takes a third.
        """
        client = self.tr.client
        self.check(client.library.future_rows(self.pointer, client.address_at, client.count_at, client.more_at))
        count = client.count.value
        if count:
            rows.extend(
                (string_at(key, key_size), string_at(value, value_size))
                for key, key_size, value, value_size in ROW.iter_unpack(
                    string_at(client.address.value or 0, count * ROW.size)
                )
            )
        return bool(client.more.value)


class Later:
    """A read called after a write that had to wait; it starts when its turn in the transaction's order comes."""

    __slots__ = ("_start", "started", "tr")

    def __init__(self, tr: FdbTransaction, start: Callable[[], Reply[Any]]) -> None:
        self.tr = tr
        self._start = start
        self.started: Reply[Any] | None = None

    def start(self) -> Reply[Any]:
        """Ask for it."""
        self.tr.check_alive()
        self.started = self._start()
        return self.started

    def __await__(self) -> Generator[Any, None, Any]:
        if self.started is None:
            yield from self.tr.advance(self)
        assert self.started is not None
        return (yield from self.started.__await__())


def take_value(reply: Reply[Any]) -> bytes | None:
    """What the future of a `get`, which is ready, holds."""
    client = reply.tr.client
    code = client.library.future_value(reply.pointer, client.present_at, client.address_at, client.count_at)
    if code:
        reply.check(code)
    return string_at(client.address.value or 0, client.count.value) if client.present.value else None
