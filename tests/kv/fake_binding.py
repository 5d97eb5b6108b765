"""A client library that is not there: the C functions that the FoundationDB adapter uses, in memory.

It stands in for the native client's *manners*, so that the adapter runs through the contract suite on every
machine: futures complete on another thread, are not ready at first, can be cancelled, deliver ranges in batches
through the C structure, and report errors by number. What it stores is a `MemoryEngine`'s business. It proves
nothing about FoundationDB itself; the same suite does that where a cluster is at hand.

It also keeps account: every future and transaction is freed once, never used after, and none is left.
"""

from __future__ import annotations

import ctypes
import itertools
import queue
import struct
import threading
from collections.abc import Callable
from typing import Any

from tigrislike.metadata.kv.clock import Clock, SystemClock
from tigrislike.metadata.kv.errors import EngineError
from tigrislike.metadata.kv.faults import Faults
from tigrislike.metadata.kv.fdb import FdbEngine
from tigrislike.metadata.kv.fdb_client import Client

from .memory_engine import MemoryEngine, MemoryTransaction

BATCH_ROWS = 700
METADATA_VERSION = b"\xff/metadataVersion"


class Future:
    """A native future. `code` is its error, 0 for none."""

    def __init__(self, library: FakeLibrary) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._ready = False
        self._callback: Callable[[], None] | None = None
        self.code = 0
        self.value: Any = None
        self.result: Callable[[], Any] | None = None
        self.keep: Any = None

    def is_ready(self) -> bool:
        return self._ready

    def on_ready(self, callback: Callable[[], None]) -> None:
        with self._lock:
            assert self._callback is None, "a future has one callback"
            self._callback = callback
            ready = self._ready
        if ready:
            callback()

    def cancel(self) -> None:
        with self._lock:
            if self._ready:
                return
            self._library.cancelled += 1
            self.code = 1101
            self.result = None
        self._library.complete(self)

    def work_out(self) -> None:
        if self.result is not None:
            try:
                with self._library.store_lock:
                    self.value = self.result()
            except EngineError as error:
                self.code = error.number
            self.result = None

    def finish(self) -> None:
        with self._lock:
            if self._ready:
                return
            self.work_out()
            self._ready = True
            callback = self._callback
        if callback is not None:
            callback()


class Native:
    """A native transaction."""

    def __init__(self, engine: MemoryEngine) -> None:
        self.tr = MemoryTransaction(engine, read_only=False)
        self.watches: list[Watch] = []
        self.options: list[tuple[int, bytes | None]] = []


class Watch:
    def __init__(self, library: FakeLibrary, key: bytes, seen: bytes | None) -> None:
        self._library = library
        self._key = key
        self._seen = seen
        self.future = Future(library)
        if planned := library.errors.get("watch"):
            self.future.code = planned.pop(0)
            library.complete(self.future)

    def look(self) -> None:
        store = self._library.store
        if store.value_at(store.version, self._key) != self._seen:
            self._library.complete(self.future)
            store.watched.discard(self)  # type: ignore[arg-type]

    def cancel(self) -> None:
        self._library.store.watched.discard(self)  # type: ignore[arg-type]


class FakeLibrary:
    """The functions of `fdb_client.Library`, and the errors that the next native calls are to end in.

    Attributes:
        errors: numbers by the name of a call ("get", "get_range", "commit", "watch"); the first is used up.
        stalled: futures never complete, as with a cluster that does not answer.
        cancelled: how many native futures were cancelled before they were done.
        natives: all transactions that were made, with their options.
    """

    def __init__(self, store: MemoryEngine) -> None:
        self.store = store
        self.errors: dict[str, list[int]] = {}
        self.stalled = False
        self.cancelled = 0
        self.natives: list[Native] = []
        self.versions_asked = 0
        self.store_lock = threading.Lock()
        self._pointers = itertools.count(1 << 40)
        self._transactions: dict[int, Native] = {}
        self._futures: dict[int, Future] = {}
        self._completing: queue.SimpleQueue[Future | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="fake network", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._completing.put(None)
        self._thread.join()

    def leaks(self) -> int:
        """Transactions and futures that were not freed."""
        return len(self._transactions) + len(self._futures)

    def complete(self, future: Future) -> None:
        self._completing.put(future)

    def describe(self, code: int) -> bytes:
        return b"error number %d" % code

    def version(self) -> str:
        return "0.0.0"

    # Transactions

    def create_transaction(self, _database: int, out: Any) -> int:
        native = Native(self.store)
        self.natives.append(native)
        pointer = next(self._pointers)
        self._transactions[pointer] = native
        out._obj.value = pointer
        return 0

    def destroy_transaction(self, pointer: int) -> None:
        self.store.end(self._transactions.pop(pointer).tr)

    def set_option(self, pointer: int, option: int, value: bytes | None, size: int) -> int:
        assert len(value or b"") == size
        self._transactions[pointer].options.append((option, value))
        return 0

    def set_read_version(self, pointer: int, version: int) -> None:
        self._transactions[pointer].tr.reuse(version)

    def get_read_version(self, pointer: int) -> int:
        self.versions_asked += 1
        return self._future("get_read_version", self._transactions[pointer].tr.current_version, at_once=True)

    def get(self, pointer: int, key: bytes, size: int, snapshot: int) -> int:
        assert len(key) == size
        tr = self._transactions[pointer].tr
        if key == METADATA_VERSION:
            return self._future("get", lambda: tr.metadata_version()._value or None)
        return self._future("get", lambda: tr.get(key, snapshot=bool(snapshot))._value)

    def get_range(self, pointer: int, begin: bytes, begin_size: int, *rest: Any) -> int:
        after_begin, one, end, end_size, after_end, other_one, limit, target, mode, batch, snapshot, reverse = rest
        assert (after_begin, one, after_end, other_one, target) == (0, 1, 0, 1, 0), "first_greater_or_equal"
        assert (len(begin), len(end)) == (begin_size, end_size)
        assert (mode, batch > 0) == (0 if limit else -2, True)
        tr = self._transactions[pointer].tr

        def result() -> tuple[list[tuple[bytes, bytes]], bool]:
            rows = tr.get_range(begin, end, limit=limit, reverse=bool(reverse), snapshot=bool(snapshot))._value
            return rows[:BATCH_ROWS], len(rows) > BATCH_ROWS

        return self._future("get_range", result)

    def set(self, pointer: int, key: bytes, key_size: int, value: bytes, value_size: int) -> None:
        assert (len(key), len(value)) == (key_size, value_size)
        self._transactions[pointer].tr.set(key, value)

    def clear(self, pointer: int, key: bytes, size: int) -> None:
        assert len(key) == size
        self._transactions[pointer].tr.clear(key)

    def clear_range(self, pointer: int, begin: bytes, begin_size: int, end: bytes, end_size: int) -> None:
        assert (len(begin), len(end)) == (begin_size, end_size)
        self._transactions[pointer].tr.clear_range(begin, end)

    def atomic_op(
        self, pointer: int, key: bytes, key_size: int, operand: bytes, operand_size: int, operation: int
    ) -> None:
        assert (len(key), len(operand)) == (key_size, operand_size)
        tr = self._transactions[pointer].tr
        if operation == 2:
            tr.add(key, int.from_bytes(operand, "little", signed=True))
        elif operation == 12:
            tr.max(key, int.from_bytes(operand, "little"))
        else:
            assert (operation, key, operand) == (15, METADATA_VERSION, bytes(14))
            tr.bump_metadata_version()

    def add_conflict_range(
        self, pointer: int, begin: bytes, begin_size: int, end: bytes, end_size: int, kind: int
    ) -> int:
        assert (len(begin), len(end), kind) == (begin_size, end_size, 0)
        self._transactions[pointer].tr.add_read_conflict_range(begin, end)
        return 0

    def watch(self, pointer: int, key: bytes, size: int) -> int:
        assert len(key) == size
        native = self._transactions[pointer]
        watch = Watch(self, key, native.tr.get(key, snapshot=True)._value)
        native.watches.append(watch)
        return self._register(watch.future)

    def commit(self, pointer: int) -> int:
        native = self._transactions[pointer]
        future = self._future("commit", lambda: self.store.apply(native.tr), at_once=True)
        for watch in native.watches:
            self.store.watched.add(watch)  # type: ignore[arg-type]
            watch.look()
        return future

    # Futures

    def is_ready(self, pointer: int) -> int:
        return self._futures[pointer].is_ready()

    def set_callback(self, pointer: int, callback: Callable[[int], None], _parameter: None) -> int:
        self._futures[pointer].on_ready(lambda: callback(pointer))
        return 0

    def cancel(self, pointer: int) -> None:
        self._futures[pointer].cancel()

    def destroy_future(self, pointer: int) -> None:
        self._futures.pop(pointer)

    def future_error(self, pointer: int) -> int:
        return self._taken(pointer).code

    def future_int64(self, pointer: int, out: Any) -> int:
        future = self._taken(pointer)
        if not future.code:
            out._obj.value = future.value
        return future.code

    def future_value(self, pointer: int, present: Any, address: Any, size: Any) -> int:
        future = self._taken(pointer)
        if future.code:
            return future.code
        present._obj.value = future.value is not None
        future.keep = ctypes.create_string_buffer(future.value or b"", len(future.value or b"") or 1)
        address._obj.value = ctypes.addressof(future.keep)
        size._obj.value = len(future.value or b"")
        return 0

    def future_rows(self, pointer: int, address: Any, count: Any, more: Any) -> int:
        future = self._taken(pointer)
        if future.code:
            return future.code
        rows, has_more = future.value
        buffers = [ctypes.create_string_buffer(part, len(part) or 1) for row in rows for part in row]
        places = [ctypes.addressof(buffer) for buffer in buffers]
        packed = b"".join(
            struct.pack("<QiQi", places[2 * n], len(key), places[2 * n + 1], len(value))
            for n, (key, value) in enumerate(rows)
        )
        future.keep = buffers, ctypes.create_string_buffer(packed, len(packed) or 1)
        address._obj.value = ctypes.addressof(future.keep[1])
        count._obj.value = len(rows)
        more._obj.value = has_more
        return 0

    def _taken(self, pointer: int) -> Future:
        future = self._futures[pointer]
        assert future.is_ready(), "what it holds is not there yet"
        return future

    def _future(self, name: str, result: Callable[[], Any], *, at_once: bool = False) -> int:
        """A future of `result()`, worked out on the network thread: it sees writes made meanwhile, as the real one."""
        future = Future(self)
        future.result = result
        planned = self.errors.get(name)
        if planned:
            future.code = planned.pop(0)
            future.result = None
        elif at_once:
            future.work_out()
        if not self.stalled:
            self._completing.put(future)
        return self._register(future)

    def _register(self, future: Future) -> int:
        pointer = next(self._pointers)
        self._futures[pointer] = future
        return pointer

    def _run(self) -> None:
        while (future := self._completing.get()) is not None:
            future.finish()


class FakeFdb:
    """An `FdbEngine` on this library. `client` plans its errors."""

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        faults: Faults | None = None,
        timeout_s: float = 10.0,
        prefix: bytes = b"",
    ) -> None:
        self.store = MemoryEngine(clock=clock or SystemClock())
        self.client = FakeLibrary(self.store)
        client = Client(self.client, 1, None)  # type: ignore[arg-type]
        self.engine = FdbEngine(client, clock or SystemClock(), faults, timeout_s, prefix)

    async def close(self) -> None:
        await self.engine.close()
        self.client.stop()
