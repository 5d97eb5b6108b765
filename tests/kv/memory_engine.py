"""An in-memory, multi-version engine that shows the races which SQLite cannot.

Strictly serialisable, like FoundationDB: a transaction reads at a read version, its writes take effect at commit,
and the commit is refused if anything that it read has changed since. At every read and around every commit the
running transaction stands aside and a seeded scheduler picks who goes on, so one seed is one interleaving and
another seed another. With `RandomFaults` each of FoundationDB's retryable errors, ambiguous commits of both
outcomes, and commits that take effect only after their caller was told "unknown", are thrown in.

    engine = MemoryEngine(seed=7, faults=RandomFaults(7))
    await engine.transact(fn, ...)

Runs are reproducible as long as everything else on the event loop is. Time is virtual: it moves a microsecond with
every commit, and by what a retry would have slept. Transactions run through the same retry loop as FoundationDB's.
"""

from __future__ import annotations

import asyncio
import bisect
import random
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

from tigrislike.metadata.kv.clock import Clock, ManualClock
from tigrislike.metadata.kv.engine import Watch
from tigrislike.metadata.kv.errors import (
    CommitUnknown,
    EngineClosed,
    EngineError,
    NotCommitted,
    ReadOnlyTransaction,
    TemporarilyRefused,
    TooManyWatches,
    TransactionEnded,
    TransactionTimedOut,
    TransactionTooOld,
    Unreadable,
)
from tigrislike.metadata.kv.faults import CommitFault, Faults
from tigrislike.metadata.kv.limits import (
    METADATA_VERSION_KEY,
    TRANSACTION_BYTES,
    TRANSACTION_NS,
    WATCHES,
    added,
    check_delta,
    check_key,
    check_maximum,
    check_range,
    check_value,
    maximum,
    reject_size,
)
from tigrislike.metadata.kv.retry import Runner
from tigrislike.metadata.kv.seal import Sealable, SealCheck

T = TypeVar("T")

Range = tuple[bytes, bytes]
Change = Callable[[bytes | None], bytes | None]

DONE_PREFIX = b"\xfe/done/"
KEPT_VERSIONS = TRANSACTION_NS // 1000
"""How many versions stay readable though nobody reads them: a later transaction may, see `Runner.read`."""

TEMPORARY = (1009, 1037, 1038, 1042, 1051, 1078, 1213, 1223, 1235, 1242)
"""future_version, process_behind, database_locked, commit and GRV proxies short of memory, four kinds of
throttling, range_locked: retryable, and certainly not committed."""


class RandomFaults(Faults):
    """Faults at random, by rates between 0 and 1.

    Args:
        read: of reads that fail with an error that may be retried.
        refused: of commits that fail with one.
        unknown: of commits with an unknown outcome; about a third each took effect, never do, and do so later.
        timed_out: of commits that run into the time limit (1031), which surface as `TransactionTimedOut`; as above.
    """

    def __init__(
        self, seed: int, *, read: float = 0.02, refused: float = 0.05, unknown: float = 0.05, timed_out: float = 0.0
    ) -> None:
        super().__init__()
        self._rng = random.Random(seed)
        self._read = read
        self._refused = refused
        self._unknown = unknown
        self._timed_out = timed_out

    def read_fault(self) -> EngineError | None:
        return self._retryable() if self._rng.random() < self._read else None

    def commit_fault(self) -> CommitFault | None:
        if (planned := super().commit_fault()) is not None:
            return planned
        draw = self._rng.random()
        if draw < self._refused:
            return CommitFault(self._retryable(), committed=False)
        if draw < self._refused + self._unknown:
            return CommitFault(CommitUnknown("injected", self._rng.choice((1021, 1039))), self._rng.random() < 0.5)
        if draw < self._refused + self._unknown + self._timed_out:
            return CommitFault(TransactionTimedOut("injected"), self._rng.random() < 0.5)
        return None

    def late_commit(self) -> EngineError | None:
        """The ambiguous error of a commit that takes effect, if at all, only after the error has been raised."""
        draw = self._rng.random()
        if draw < self._unknown / 2:
            return CommitUnknown("injected, still under way", 1039)
        if draw < (self._unknown + self._timed_out) / 2:
            return TransactionTimedOut("injected, still under way")
        return None

    def _retryable(self) -> EngineError:
        number = self._rng.choice((1007, 1020, *TEMPORARY))
        if number == 1007:
            return TransactionTooOld("injected")
        if number == 1020:
            return NotCommitted("injected")
        return TemporarilyRefused(f"injected {number}", number)


class Scheduler:
    """Decides, from a seed, which of the transactions that stand aside goes on."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._aside: list[asyncio.Future[None]] = []
        self._ticking = False

    def stand_aside(self) -> asyncio.Future[None]:
        """A future that is done when the caller may go on."""
        turn = asyncio.get_running_loop().create_future()
        self._aside.append(turn)
        if not self._ticking:
            self._ticking = True
            self._tick_after(self._rng.randrange(4))
        return turn

    def draw(self, bound: int) -> int:
        """A number below `bound`, from the seed."""
        return self._rng.randrange(bound)

    def _tick_after(self, rounds: int) -> None:
        # Rounds of the event loop give others time to come and stand aside too.
        asyncio.get_running_loop().call_soon(*((self._tick_after, rounds - 1) if rounds else (self._tick,)))

    def _tick(self) -> None:
        turn = self._aside.pop(self._rng.randrange(len(self._aside)))
        if not turn.done():
            turn.set_result(None)
        if self._aside:
            self._tick_after(self._rng.randrange(4))
        else:
            self._ticking = False


class MemoryEngine(Sealable):
    """An `Engine` in memory. See the module's docstring.

    Attributes:
        scheduler: who goes on next.
        commits: transactions that took effect, and `conflicts`: that were refused; for tests that want both.
    """

    prefix = b""

    def __init__(
        self, *, seed: int = 0, faults: Faults | None = None, clock: Clock | None = None, timeout_s: float = 60.0
    ) -> None:
        self.scheduler = Scheduler(seed)
        self.faults = faults
        self.clock = clock or ManualClock()
        self.version = self._due_version()
        self.commits = 0
        self.conflicts = 0
        self.watched: set[MemoryWatch] = set()
        self._values: dict[bytes, list[tuple[int, bytes | None]]] = {}
        self._keys: list[bytes] = []
        self._log: list[tuple[int, list[Range]]] = []
        self._reading: dict[int, int] = {}
        self._late: set[asyncio.Task[None]] = set()
        self._closed = False
        rng = random.Random(seed)
        self._runner = Runner(
            lambda _kind, _left_s: MemoryTransaction(self, read_only=False),
            self.clock,
            done_prefix=DONE_PREFIX,
            timeout_s=timeout_s,
            faults=faults,
            sleep=self._sleep,
            rng=rng,
            write_id=lambda: rng.randbytes(16),
            seal=SealCheck(self.prefix),
        )
        self._reader = Runner(
            lambda _kind, _left_s: MemoryTransaction(self, read_only=True),
            self.clock,
            done_prefix=DONE_PREFIX,
            timeout_s=timeout_s,
            faults=faults,
            sleep=self._sleep,
            rng=rng,
        )

    async def transact(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        self._check_open()
        return await self._runner.transact(fn, args)

    async def transact_past_seal(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        self._check_open()
        return await self._runner.transact(fn, args, past_seal=True)

    async def read(self, fn: Callable[..., Awaitable[T]], *args: object, max_age_ns: int = 0) -> T:
        self._check_open()
        return await self._reader.read(fn, args, max_age_ns=max_age_ns)

    @property
    def background(self) -> MemoryEngine:
        return self

    def now_ns(self) -> int:
        return self.clock.now_ns()

    async def checkpoint(self) -> None:
        """Nothing to fold."""

    async def close(self) -> None:
        self._closed = True
        for watch in list(self.watched):
            watch.cancel()
        await self._runner.close()
        await self._reader.close()
        if self._late:
            await asyncio.wait(self._late)

    def dump(self) -> dict[bytes, bytes]:
        """What is stored now, without the retry loop's own keys: for a test's last look."""
        found = self.range_at(self.version, b"", b"\xff")
        return {key: value for key, value in found if not key.startswith(DONE_PREFIX)}

    # What transactions use.

    def begin(self, tr: MemoryTransaction, version: int | None = None) -> int:
        """The read version for `tr` (or the one given), kept readable until `end`."""
        self.version = max(self.version, self._due_version())
        if version is not None and version < self._oldest():
            raise TransactionTooOld(f"version {version} has been forgotten")
        self._reading[id(tr)] = version = self.version if version is None else version
        return version

    def end(self, tr: MemoryTransaction) -> None:
        """Forget `tr`; prunes what nobody can read any more."""
        self._reading.pop(id(tr), None)
        oldest = self._oldest()
        del self._log[: bisect.bisect_right(self._log, oldest, key=lambda entry: entry[0])]

    def value_at(self, version: int, key: bytes) -> bytes | None:
        """The value under `key` as of `version`."""
        for written, value in reversed(self._values.get(key, ())):
            if written <= version:
                return value
        return None

    def range_at(self, version: int, begin: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        """Keys and values in [begin, end) as of `version`."""
        keys = self._keys[bisect.bisect_left(self._keys, begin) : bisect.bisect_left(self._keys, end)]
        return [(key, value) for key in keys if (value := self.value_at(version, key)) is not None]

    def apply(self, tr: MemoryTransaction) -> None:
        """Let `tr` take effect, atomically.

        Raises:
            NotCommitted: something that it read has changed.
            TransactionTooOld: it began more than 5 seconds ago.
        """
        if not tr.mutates:
            return
        version = tr.current_version()
        tr.check_age()
        start = bisect.bisect_right(self._log, version, key=lambda entry: entry[0])
        for _, written in self._log[start:]:
            if any(begin < last and first < end for begin, end in tr.reads for first, last in written):
                self.conflicts += 1
                raise NotCommitted(f"conflict with a commit after version {version}")
        self.version = max(self.version + 1, self._due_version())
        self.commits += 1
        for begin, end, change in tr.changes:
            keys = [begin] if end is None else [key for key, _ in self.range_at(self.version, begin, end)]
            for key in keys:
                self._store(key, change(self.value_at(self.version, key)))
        if tr.bumps:
            self._store(METADATA_VERSION_KEY, self.version.to_bytes(10, "big"))
        self._log.append((self.version, tr.written_ranges()))
        if isinstance(self.clock, ManualClock):
            self.clock.advance(1000)
        for watch in list(self.watched):
            watch.look()

    def apply_late(self, tr: MemoryTransaction) -> None:
        """Let `tr` take effect a little later, if it then still can."""
        token = object()  # keeps what `tr` has read comparable, though `tr` ends at once
        self._reading[id(token)] = tr.current_version()
        task = asyncio.get_running_loop().create_task(self._apply_late(tr, token))
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _apply_late(self, tr: MemoryTransaction, token: object) -> None:
        try:
            for _ in range(self.scheduler.draw(6)):
                await self.scheduler.stand_aside()
            self.apply(tr)
        except (NotCommitted, TransactionTooOld):
            pass  # and nobody will ever know
        finally:
            self._reading.pop(id(token))

    def _due_version(self) -> int:
        """A million versions a second, as FoundationDB has them."""
        return 1 + self.clock.monotonic_ns() // 1000

    def _oldest(self) -> int:
        """The oldest version that can be read."""
        return min(self._reading.values(), default=self.version) - KEPT_VERSIONS

    def _store(self, key: bytes, value: bytes | None) -> None:
        history = self._values.get(key)
        if history is None:
            history = self._values[key] = []
            bisect.insort(self._keys, key)
        if history and history[-1][0] == self.version:
            history.pop()
        history.append((self.version, value))
        oldest = self._oldest()
        while len(history) > 1 and history[1][0] <= oldest:
            del history[0]

    async def _sleep(self, duration_s: float) -> None:
        if isinstance(self.clock, ManualClock):
            self.clock.advance(int(duration_s * 1e9))
        await self.scheduler.stand_aside()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosed("the engine has been closed")


class Pending(Generic[T]):
    """A read under way: awaiting it stands aside once, then gives the value or raises the error that it drew."""

    __slots__ = ("_error", "_taken", "_tr", "_value")

    def __init__(self, tr: MemoryTransaction, value: T, error: EngineError | None) -> None:
        self._tr = tr
        self._value = value
        self._error = error
        self._taken = False

    def __await__(self) -> Generator[Any, None, T]:
        if not self._taken:
            self._taken = True
            yield from self._tr.stand_aside()
        if self._error is not None:
            raise self._error
        return self._value


class MemoryTransaction:
    """An `Attempt`. Changes are kept as a list and replayed, over what is stored, for each read and at commit."""

    def __init__(self, engine: MemoryEngine, *, read_only: bool) -> None:
        self._engine = engine
        self._read_only = read_only
        self._version: int | None = None
        self._began_ns = engine.clock.monotonic_ns()
        self._size = 0
        self._ended = False
        self._watches: list[MemoryWatch] = []
        self.awaited: asyncio.Future[Any] | None = None
        self.changes: list[tuple[bytes, bytes | None, Change]] = []
        self.reads: list[Range] = []
        self.bumps = False

    @property
    def mutates(self) -> bool:
        return bool(self.changes) or self.bumps

    def get(self, key: bytes, *, snapshot: bool = False) -> Pending[bytes | None]:
        check_key(key)
        self._use()
        if not snapshot:
            self._conflict(key, key + b"\0")
        value = self._engine.value_at(self.current_version(), key)
        for begin, end, change in self.changes:
            if begin == key if end is None else begin <= key < end:
                value = change(value)
        return self._pending(value)

    def get_range(
        self, begin: bytes, end: bytes, *, limit: int = 0, reverse: bool = False, snapshot: bool = False
    ) -> Pending[list[tuple[bytes, bytes]]]:
        check_range(begin, end)
        self._use()
        found: dict[bytes, bytes | None] = dict(self._engine.range_at(self.current_version(), begin, end))
        for first, last, change in self.changes:
            if last is not None:
                for key in found:
                    if first <= key < last:
                        found[key] = change(found[key])
            elif begin <= first < end:
                found[first] = change(found.get(first))
        rows = sorted(((key, value) for key, value in found.items() if value is not None), reverse=reverse)
        if limit and len(rows) > limit:
            rows = rows[:limit]
        if not snapshot:
            # With a limit only what was looked at conflicts, as on FoundationDB.
            if limit and len(rows) == limit:
                begin, end = (rows[-1][0], end) if reverse else (begin, rows[-1][0] + b"\0")
            self._conflict(begin, end)
        return self._pending(rows)

    def set(self, key: bytes, value: bytes) -> None:
        check_key(key)
        check_value(key, value)
        self._change(key, None, lambda _: value, 3 * len(key) + len(value) + 1)

    def clear(self, key: bytes) -> None:
        check_key(key)
        self._change(key, None, lambda _: None, 4 * len(key) + 2)

    def clear_range(self, begin: bytes, end: bytes) -> None:
        check_range(begin, end)
        self._change(begin, end, lambda _: None, 2 * (len(begin) + len(end)))

    def add(self, key: bytes, delta: int) -> None:
        check_key(key)
        check_delta(delta)
        self._change(key, None, lambda old: added(old, delta), 3 * len(key) + 9)

    def max(self, key: bytes, value: int) -> None:
        check_key(key)
        check_maximum(value)
        self._change(key, None, lambda old: maximum(old, value), 3 * len(key) + 9)

    def add_read_conflict_key(self, key: bytes) -> None:
        check_key(key)
        self._use()
        self._conflict(key, key + b"\0")

    def add_read_conflict_range(self, begin: bytes, end: bytes) -> None:
        check_range(begin, end)
        self._use()
        self._conflict(begin, end)

    def read_version(self) -> Pending[int]:
        self._use()
        return self._pending(self.current_version())

    def watch(self, key: bytes) -> Watch:
        check_key(key)
        self._use(writing="watch")
        value = self._engine.value_at(self.current_version(), key)
        for begin, end, change in self.changes:
            if begin == key if end is None else begin <= key < end:
                value = change(value)
        return MemoryWatch(self._engine, key, value)

    def bump_metadata_version(self) -> None:
        self._use(writing="bump_metadata_version")
        self.bumps = True

    def metadata_version(self) -> Pending[bytes]:
        self._use()
        if self.bumps:
            raise Unreadable("the metadata version was bumped in this transaction and is known only once it commits")
        return self._pending(self._engine.value_at(self.current_version(), METADATA_VERSION_KEY) or b"")

    blind = False
    """So that every transaction has a version of its own, which is where the interleavings are."""

    def mark(self, key: bytes, value: bytes) -> None:
        self.add_read_conflict_key(key)
        self.set(key, value)

    def reuse(self, version: int) -> None:
        self._version = self._engine.begin(self, version)

    async def commit(self) -> None:
        scheduler = self._engine.scheduler
        if self.mutates:
            self.current_version()
        await scheduler.stand_aside()
        faults = self._engine.faults
        if self.mutates and isinstance(faults, RandomFaults) and (error := faults.late_commit()) is not None:
            self._engine.apply_late(self)
            raise error
        self._engine.apply(self)
        await scheduler.stand_aside()

    def end(self) -> None:
        self._ended = True
        self._engine.end(self)

    # What the engine uses.

    def current_version(self) -> int:
        """The read version, got at the first need of it."""
        if self._version is None:
            self._version = self._engine.begin(self)
        return self._version

    def check_age(self) -> None:
        """Raise `TransactionTooOld` once the transaction has run for 5 seconds."""
        if self._engine.clock.monotonic_ns() - self._began_ns > TRANSACTION_NS:
            raise TransactionTooOld("transaction has run for more than 5 s")

    def written_ranges(self) -> list[Range]:
        """The write conflict ranges."""
        return [(begin, begin + b"\0" if end is None else end) for begin, end, _ in self.changes]

    def stand_aside(self) -> Generator[Any, None, None]:
        self.awaited = self._engine.scheduler.stand_aside()
        yield from self.awaited

    def _pending(self, value: T) -> Pending[T]:
        faults = self._engine.faults
        error: EngineError | None = None if faults is None else faults.read_fault()
        if error is None:
            try:
                self.check_age()
            except TransactionTooOld as too_old:
                error = too_old
        return Pending(self, value, error)

    def _change(self, begin: bytes, end: bytes | None, change: Change, size: int) -> None:
        self._use(writing="a write")
        self._grow(size)
        self.changes.append((begin, end, change))

    def _conflict(self, begin: bytes, end: bytes) -> None:
        if not self._read_only:
            self._grow(len(begin) + len(end))
            self.reads.append((begin, end))

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > TRANSACTION_BYTES:
            reject_size(self._size)

    def _use(self, *, writing: str = "") -> None:
        if self._ended:
            raise TransactionEnded("a transaction was used after its function had returned")
        if writing and self._read_only:
            raise ReadOnlyTransaction(f"{writing} inside Engine.read, which is read-only: use Engine.transact")


class MemoryWatch:
    """A watch on one key, looked at after every commit."""

    def __init__(self, engine: MemoryEngine, key: bytes, seen: bytes | None) -> None:
        self._engine = engine
        self._key = key
        self._seen = seen
        self._cancelled = False
        self._changed: asyncio.Future[bool] | None = None

    async def wait(self, timeout_s: float) -> bool:
        if self._cancelled:
            return False
        if len(self._engine.watched) >= WATCHES:
            raise TooManyWatches(f"{WATCHES} watches are waited for already")
        self._changed = asyncio.get_running_loop().create_future()
        self._engine.watched.add(self)
        try:
            self.look()
            async with asyncio.timeout(timeout_s):
                return await self._changed
        except TimeoutError:
            return False
        finally:
            self._engine.watched.discard(self)

    def look(self) -> None:
        """Wake the waiter if the value differs now."""
        if self._engine.value_at(self._engine.version, self._key) != self._seen:
            self._settle(True)

    def cancel(self) -> None:
        self._cancelled = True
        self._settle(False)

    def _settle(self, changed: bool) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(changed)
