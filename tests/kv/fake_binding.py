"""A client library that is not there: the surface of the FoundationDB binding that the adapter uses, in memory.

It stands in for the native client's *manners*, so that the adapter runs through the contract suite on every
machine: futures complete on another thread, are not ready at first, can be cancelled, deliver ranges in batches
through the C structure, and report errors by number. What it stores is a `MemoryEngine`'s business. It proves
nothing about FoundationDB itself; the same suite does that where a cluster is at hand.
"""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tigrislike.metadata.kv.clock import Clock
from tigrislike.metadata.kv.errors import EngineError
from tigrislike.metadata.kv.faults import Faults
from tigrislike.metadata.kv.fdb import FdbEngine

from .memory_engine import MemoryEngine, MemoryTransaction

BATCH_ROWS = 700


class FDBError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
        self.description = b"error number %d" % code


class KeyValueStruct(ctypes.Structure):
    _pack_ = 4
    _fields_ = (
        ("key", ctypes.POINTER(ctypes.c_byte)),
        ("key_length", ctypes.c_int),
        ("value", ctypes.POINTER(ctypes.c_byte)),
        ("value_length", ctypes.c_int),
    )


class Client:
    """The network thread, and the errors that the next native calls are to end in.

    Attributes:
        errors: numbers by the name of a call ("get", "get_range", "commit", "watch"); the first is used up.
        stalled: futures never complete, as with a cluster that does not answer.
        cancelled: how many native futures were cancelled before they were done.
    """

    def __init__(self) -> None:
        self.errors: dict[str, list[int]] = {}
        self.stalled = False
        self.cancelled = 0
        self.store_lock = threading.Lock()
        self._completing: queue.SimpleQueue[Future | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="fake network", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._completing.put(None)
        self._thread.join()

    def future(self, name: str, result: Callable[[], Any], *, at_once: bool = False) -> Future:
        """A future of `result()`, worked out on the network thread: it sees writes made meanwhile, as the real one."""
        future = Future(self)
        future.result = result
        planned = self.errors.get(name)
        if planned:
            future.outcome = None, FDBError(planned.pop(0))
            future.result = None
        elif at_once:
            future.work_out()
        if not self.stalled:
            self._completing.put(future)
        return future

    def complete(self, future: Future) -> None:
        self._completing.put(future)

    def _run(self) -> None:
        while (future := self._completing.get()) is not None:
            future.finish()


class Future:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._ready = False
        self._callback: Callable[[Future], None] | None = None
        self.outcome: tuple[Any, FDBError | None] = None, None
        self.result: Callable[[], Any] | None = None
        self.fpointer = self
        self.capi = SimpleNamespace(fdb_future_get_keyvalue_array=get_keyvalue_array)

    def is_ready(self) -> bool:
        return self._ready

    def on_ready(self, callback: Callable[[Future], None]) -> None:
        with self._lock:
            self._callback = callback
            ready = self._ready
        if ready:
            callback(self)

    def cancel(self) -> None:
        with self._lock:
            if self._ready:
                return
            self._client.cancelled += 1
            self.outcome = None, FDBError(1101)
            self.result = None
        self._client.complete(self)

    def work_out(self) -> None:
        if self.result is not None:
            try:
                with self._client.store_lock:
                    self.outcome = self.result(), None
            except EngineError as error:
                self.outcome = None, FDBError(error.number)
            self.result = None

    def finish(self) -> None:
        with self._lock:
            if self._ready:
                return
            self.work_out()
            self._ready = True
            callback = self._callback
        if callback is not None:
            callback(self)

    def wait(self) -> Any:
        assert self._ready, "waiting for this would block the event loop"
        value, error = self.outcome
        if error is not None:
            raise error
        return value

    @property
    def value(self) -> Any:
        return self.wait()


def get_keyvalue_array(future: Future, array: Any, count: Any, more: Any) -> None:
    rows, has_more = future.wait()
    packed = (KeyValueStruct * max(len(rows), 1))()
    buffers = []
    for slot, row in zip(packed, rows, strict=False):
        key, value = (ctypes.create_string_buffer(part, len(part) or 1) for part in row)
        buffers += [key, value]
        slot.key = ctypes.cast(key, ctypes.POINTER(ctypes.c_byte))
        slot.key_length = len(row[0])
        slot.value = ctypes.cast(value, ctypes.POINTER(ctypes.c_byte))
        slot.value_length = len(row[1])
    future.keep = packed, buffers  # type: ignore[attr-defined]
    array._obj.contents = packed[0]
    count._obj.value = len(rows)
    more._obj.value = has_more


class Selector:
    def __init__(self, key: bytes) -> None:
        self.key = key

    @classmethod
    def first_greater_or_equal(cls, key: bytes) -> Selector:
        return cls(key)


class Reads:
    def __init__(self, client: Client, tr: MemoryTransaction, snapshot: bool) -> None:
        self._client = client
        self._tr = tr
        self._is_snapshot = snapshot

    def get(self, key: bytes) -> Future:
        if key == b"\xff/metadataVersion":
            return self._client.future("get", lambda: self._tr.metadata_version()._value or None)
        return self._client.future("get", lambda: self._tr.get(key, snapshot=self._is_snapshot)._value)

    def _get_range(self, begin: Selector, end: Selector, limit: int, mode: int, batch: int, reverse: bool) -> Future:
        def result() -> tuple[list[tuple[bytes, bytes]], bool]:
            rows = self._tr.get_range(
                begin.key, end.key, limit=limit, reverse=reverse, snapshot=self._is_snapshot
            )._value
            return rows[:BATCH_ROWS], len(rows) > BATCH_ROWS

        return self._client.future("get_range", result)


class Transaction(Reads):
    def __init__(self, client: Client, engine: MemoryEngine) -> None:
        super().__init__(client, MemoryTransaction(engine, read_only=False), False)
        self._engine = engine
        self.snapshot = Reads(client, self._tr, True)
        self.timeouts_ms: list[int] = []
        self.options = SimpleNamespace(set_timeout=self.timeouts_ms.append)
        for name in ("set", "clear", "clear_range", "add_read_conflict_key", "add_read_conflict_range"):
            setattr(self, name, getattr(self._tr, name))

    def __del__(self) -> None:
        self._engine.end(self._tr)

    def add(self, key: bytes, parameter: bytes) -> None:
        self._tr.add(key, int.from_bytes(parameter, "little", signed=True))

    def max(self, key: bytes, parameter: bytes) -> None:
        self._tr.max(key, int.from_bytes(parameter, "little"))

    def set_versionstamped_value(self, key: bytes, parameter: bytes) -> None:
        assert (key, parameter) == (b"\xff/metadataVersion", bytes(14))
        self._tr.bump_metadata_version()

    def get_read_version(self) -> Future:
        return self._client.future("get_read_version", self._tr.current_version, at_once=True)

    def watch(self, key: bytes) -> Future:
        watch = Watch(self._client, self._engine, key, self._tr.get(key, snapshot=True)._value)
        self._watches = [*getattr(self, "_watches", ()), watch]
        return watch.future

    def commit(self) -> Future:
        future = self._client.future("commit", lambda: self._engine.apply(self._tr), at_once=True)
        for watch in getattr(self, "_watches", ()):
            self._engine.watched.add(watch)
            watch.look()
        return future


class Watch:
    def __init__(self, client: Client, engine: MemoryEngine, key: bytes, seen: bytes | None) -> None:
        self._client = client
        self._engine = engine
        self._key = key
        self._seen = seen
        self.future = Future(client)
        if planned := client.errors.get("watch"):
            self.future.outcome = None, FDBError(planned.pop(0))
            client.complete(self.future)

    def look(self) -> None:
        if self._engine.value_at(self._engine.version, self._key) != self._seen:
            self._client.complete(self.future)
            self._engine.watched.discard(self)  # type: ignore[arg-type]

    def cancel(self) -> None:
        self._engine.watched.discard(self)  # type: ignore[arg-type]


class FakeFdb:
    """An `FdbEngine` on this client. `client` plans its errors; `transactions` are all that were made."""

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        faults: Faults | None = None,
        timeout_s: float = 10.0,
        prefix: bytes = b"",
    ) -> None:
        from tigrislike.metadata.kv.clock import SystemClock

        self.client = Client()
        self.store = MemoryEngine(clock=clock or SystemClock())
        self.timeouts_ms: list[list[int]] = []

        def create_transaction() -> Transaction:
            native = Transaction(self.client, self.store)
            self.timeouts_ms.append(native.timeouts_ms)
            return native

        binding = SimpleNamespace(
            FDBError=FDBError,
            KeySelector=Selector,
            StreamingMode=SimpleNamespace(exact=1, want_all=-1),
            impl=SimpleNamespace(KeyValueStruct=KeyValueStruct),
        )
        database = SimpleNamespace(create_transaction=create_transaction)
        self.engine = FdbEngine(binding, database, clock or SystemClock(), faults, timeout_s, prefix)

    async def close(self) -> None:
        await self.engine.close()
        self.client.stop()
