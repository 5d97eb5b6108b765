"""The FoundationDB adapter's own side: numbers to errors, cancellation, time limits, and a library that is missing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tigrislike.metadata.kv import SystemClock, fdb, open_engine
from tigrislike.metadata.kv.errors import (
    AmbiguousCommit,
    CommitUnknown,
    EngineClosed,
    EngineError,
    EngineUnavailable,
    InvertedRange,
    KeyOutsideLegalRange,
    KeyTooLarge,
    RetryableError,
    TooManyWatches,
    TransactionTimedOut,
    TransactionTooLarge,
    Unreadable,
    ValueTooLarge,
)
from tigrislike.metadata.kv.fdb_client import Client, load_binding, translate
from tigrislike.metadata.kv.fdb_transaction import PRIORITY_BATCH, TAG, TIMEOUT, FdbWatch

from .fake_binding import FakeFdb, Future
from .memory_engine import TEMPORARY


def run(body: Callable[[FakeFdb], Awaitable[Any]], **options: Any) -> Any:
    async def main() -> Any:
        fake = FakeFdb(**options)
        try:
            result = await body(fake)
        finally:
            await fake.close()
        library = fake.client
        del fake
        await asyncio.sleep(0)  # what completed last is let go of by the loop
        gc.collect()
        assert library.leaks() == 0
        return result

    return asyncio.run(main())


async def increment(tr: Any) -> int:
    count = int(await tr.get(b"count") or b"0") + 1
    tr.set(b"count", b"%d" % count)
    return count


async def get(tr: Any, key: bytes) -> bytes | None:
    value: bytes | None = await tr.get(key)
    return value


@pytest.mark.parametrize("number", [1007, 1020, *TEMPORARY, 1021, 1039])
@pytest.mark.parametrize("call", ["get", "commit"])
def test_exactly_these_numbers_are_retried(call: str, number: int) -> None:
    async def body(fake: FakeFdb) -> None:
        fake.client.errors = {call: [number]}
        assert await fake.engine.transact(increment) == 1
        assert not fake.client.errors[call]
        assert await fake.engine.read(get, b"count") == b"1"

    run(body)


@pytest.mark.parametrize(
    ("call", "number", "expected"),
    [
        ("get", 1031, EngineUnavailable),
        ("commit", 1031, TransactionTimedOut),
        ("get", 1025, EngineUnavailable),
        ("commit", 1025, AmbiguousCommit),
        ("commit", 1101, AmbiguousCommit),
        ("get", 1036, Unreadable),
        ("commit", 2004, KeyOutsideLegalRange),
        ("commit", 2005, InvertedRange),
        ("commit", 2101, TransactionTooLarge),
        ("commit", 2102, KeyTooLarge),
        ("commit", 2103, ValueTooLarge),
        ("get", 1100, EngineError),
        ("get", 1500, EngineError),
        ("get", 4100, EngineError),
        # Of these nobody says that the commit has not taken effect.
        ("commit", 1100, AmbiguousCommit),
        ("commit", 1500, AmbiguousCommit),
        ("commit", 1510, AmbiguousCommit),
        ("commit", 2000, AmbiguousCommit),
        ("commit", 4100, AmbiguousCommit),
    ],
)
def test_every_other_number_surfaces_as_what_it_is(call: str, number: int, expected: type[EngineError]) -> None:
    async def body(fake: FakeFdb) -> None:
        fake.client.errors = {call: [number]}
        with pytest.raises(EngineError, match=f"error number {number}") as caught:
            await fake.engine.transact(increment)
        assert type(caught.value) is expected

    run(body)


RETRYABLE, MAYBE_COMMITTED, RETRYABLE_NOT_COMMITTED = 50000, 50001, 50002
NEWER = {1078, 1223, 1235, 1242}
"""Which not every release line has."""
UNUSED = {2137}
"""unknown_tenant, retryable in 7.1."""


@pytest.mark.fdb
def test_the_librarys_own_predicate_says_the_same() -> None:
    predicate = load_binding().impl._capi.fdb_error_predicate

    def those(test: int) -> set[int]:
        return {number for number in range(1, 5001) if predicate(test, number)}

    def ours(kind: type[EngineError]) -> set[int]:
        return {n for n in range(1, 5001) if isinstance(translate(n, "", committing=True), kind)}

    assert those(MAYBE_COMMITTED) == ours(CommitUnknown)
    assert those(RETRYABLE_NOT_COMMITTED) - UNUSED == ours(RetryableError) - (NEWER - those(RETRYABLE))
    assert those(RETRYABLE) == those(MAYBE_COMMITTED) | those(RETRYABLE_NOT_COMMITTED)


def test_a_timeout_of_a_commit_that_writes_nothing_is_not_ambiguous() -> None:
    async def body(fake: FakeFdb) -> None:
        fake.client.errors = {"commit": [1031]}
        with pytest.raises(EngineUnavailable):
            await fake.engine.transact(_watch)
        # Without a watch there is nothing to commit at all.
        fake.client.errors = {"commit": [1031]}
        assert await fake.engine.transact(get, b"key") is None
        assert fake.client.errors == {"commit": [1031]}

    run(body)


def test_an_error_in_a_later_batch_of_a_range_is_retried() -> None:
    async def body(fake: FakeFdb) -> None:
        async def fill(tr: Any) -> None:
            for n in range(2000):
                tr.set(b"%04d" % n, b"")

        async def count(tr: Any) -> int:
            return len(await tr.get_range(b"0", b"9"))

        await fake.engine.transact(fill)
        assert await fake.engine.read(count) == 2000
        for batch in range(3):
            # None stands for a batch that goes well.
            fake.client.errors = {"get_range": Nth(batch, 1007)}  # type: ignore[dict-item]
            assert await fake.engine.read(count) == 2000

    run(body)


class Nth:
    """Errors of a call: one, after `after` calls that go well."""

    def __init__(self, after: int, number: int) -> None:
        self._after = after
        self._number = number

    def __bool__(self) -> bool:
        self._after -= 1
        return self._after == -1

    def pop(self, _index: int) -> int:
        return self._number


def test_cancelling_a_caller_cancels_the_native_future() -> None:
    async def body(fake: FakeFdb) -> None:
        fake.client.stalled = True
        calls = [asyncio.ensure_future(fake.engine.read(get, b"key")) for _ in range(3)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert all(call.cancelled() for call in calls)
        assert fake.client.cancelled == 3
        fake.client.stalled = False
        assert await fake.engine.read(get, b"key") is None

    run(body)


def test_a_read_that_was_cancelled_is_not_waited_for_again() -> None:
    async def stubborn(tr: Any) -> None:
        read = tr.get(b"key")
        with contextlib.suppress(asyncio.CancelledError):
            await read
        await read

    async def body(fake: FakeFdb) -> None:
        fake.client.stalled = True
        call = asyncio.ensure_future(fake.engine.read(stubborn))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(EngineUnavailable, match="1101"):
            await call
        assert fake.client.cancelled == 1

    run(body)


def test_nobody_waits_for_ever_for_a_network_thread_that_hangs() -> None:
    """That thread keeps transactions' time limits, so when it hangs nothing native ends. A watch may wait on."""

    async def body(fake: FakeFdb) -> None:
        # Seven looks: far longer than the thread that does not hang takes on a busy machine.
        client = Client(fake.client, 1, None, look_s=0.1)  # type: ignore[arg-type]
        engine = fdb.FdbEngine(client, SystemClock(), None, 10.0, b"")
        watch = await engine.transact(lambda tr: _watch(tr))
        fired = asyncio.ensure_future(watch.wait(30))
        fake.client.stalled = True
        with pytest.raises(EngineUnavailable, match="1031"):
            await engine.read(get, b"key")

        fake.client.stalled = False
        commit = fake.client.commit

        def stall_and_commit(pointer: int) -> int:
            fake.client.stalled = True
            return commit(pointer)

        fake.client.commit = stall_and_commit  # type: ignore[method-assign]
        with pytest.raises(TransactionTimedOut):
            await engine.transact(increment)
        assert fake.client.cancelled == 2
        assert not fired.done()
        fake.client.stalled = False
        watch.cancel()
        assert not await fired
        await engine.close()

    run(body)


def test_a_transaction_lives_until_what_waits_for_it_is_done() -> None:
    async def body(fake: FakeFdb) -> None:
        calls = [asyncio.ensure_future(fake.engine.transact(increment)) for _ in range(5)]
        for _ in range(200):  # some, and no more: transactions have a time limit
            gc.collect()
            await asyncio.sleep(0)
        await asyncio.wait(calls)
        assert sorted(call.result() for call in calls) == list(range(1, 6))

    gc.freeze()  # what all the other tests hold: to search it at every step takes longer than a transaction may
    try:
        run(body)
    finally:
        gc.unfreeze()


def test_each_attempt_has_what_is_left_of_the_time() -> None:
    async def body(fake: FakeFdb) -> None:
        fake.client.errors = {"commit": [1020, 1020], "get": [1007]}
        await fake.engine.transact(increment)
        limits = [dict(native.options).get(TIMEOUT) for native in fake.client.natives]
        first, *later = (None if limit is None else int.from_bytes(limit, "little") for limit in limits)
        assert first is None  # the database's own option is the whole of it
        assert len(later) == 3
        assert all(30_000 >= one >= other > 0 for one, other in itertools.pairwise(later))

    run(body, timeout_s=30.0)


def test_a_watch_outlives_its_transactions_time_limit() -> None:
    async def body(fake: FakeFdb) -> None:
        await fake.engine.transact(lambda tr: _watch(tr))
        assert fake.client.natives[-1].options[-1] == (TIMEOUT, bytes(8))

    run(body)


async def _watch(tr: Any) -> Any:
    return tr.watch(b"key")


def test_a_watch_that_nobody_waits_for_any_more_is_let_go() -> None:
    async def body(fake: FakeFdb) -> None:
        watch = await fake.engine.transact(_watch)
        assert await watch.wait(0) is False
        waiting = asyncio.ensure_future(watch.wait(30))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        before = fake.client.cancelled
        del watch, waiting
        assert (before, fake.client.cancelled) == (0, 1)  # and `run` sees that nothing is left

    run(body)


def test_a_watch_that_is_cancelled_before_it_starts_never_lives() -> None:
    async def body(fake: FakeFdb) -> None:
        watch = FdbWatch(Client(fake.client, 1, None))  # type: ignore[arg-type]
        watch.cancel()
        watch.start(fake.client._register(Future(fake.client)))
        assert fake.client.cancelled == 1
        assert await watch.wait(30) is False

    run(body)


def test_a_lost_watch_is_a_hint_to_look_and_too_many_are_refused() -> None:
    async def body(fake: FakeFdb) -> None:
        fake.client.errors = {"watch": [1009]}
        watch = await fake.engine.transact(_watch)
        assert await watch.wait(30) is True
        fake.client.errors = {"watch": [1032]}
        watch = await fake.engine.transact(_watch)
        with pytest.raises(TooManyWatches):
            await watch.wait(30)

    run(body)


def test_without_the_client_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        @staticmethod
        def api_version(_version: int) -> None:
            raise Exception("Unable to locate the FoundationDB API shared library!")  # as the binding does

    monkeypatch.setitem(sys.modules, "fdb", Broken)
    with pytest.raises(EngineUnavailable, match=r"libfdb_c.*foundationdb-clients.*LD_LIBRARY_PATH") as caught:
        asyncio.run(open_engine("fdb:///etc/foundationdb/fdb.cluster"))
    assert caught.value.code == "SlowDown"


def test_without_the_binding_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fdb", None)
    with pytest.raises(EngineUnavailable, match="pip install"):
        asyncio.run(open_engine("fdb:"))


class FDBError(Exception):
    code = 2104
    description = b"Connection string invalid"


def test_a_cluster_file_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Impl:
        _network_thread = object()

        @staticmethod
        def create_database(_cluster_file: str) -> None:
            raise FDBError

    class Binding:
        FDBError = FDBError
        impl = Impl

        def api_version(self, version: int) -> None:
            assert version == 710

    path = tmp_path / "fdb.cluster"
    path.write_text("nonsense")
    monkeypatch.setitem(sys.modules, "fdb", Binding())  # type: ignore[arg-type]
    with pytest.raises(EngineUnavailable, match=rf"{path} cannot be used: Connection string invalid \(2104\)"):
        asyncio.run(open_engine(f"fdb://{path}"))


@pytest.mark.parametrize("named_by", ["url", "environment", "nobody"])
def test_a_missing_cluster_file_is_named_and_where_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named_by: str
) -> None:
    class Binding:
        def api_version(self, version: int) -> None: ...

    monkeypatch.setitem(sys.modules, "fdb", Binding())  # type: ignore[arg-type]
    monkeypatch.setattr(fdb, "CLUSTER_FILES", (str(tmp_path / "default"),))
    monkeypatch.delenv("FDB_CLUSTER_FILE", raising=False)
    if named_by == "environment":
        monkeypatch.setenv("FDB_CLUSTER_FILE", str(tmp_path / "environment"))
    url = f"fdb://{tmp_path}/url" if named_by == "url" else "fdb:///"
    named = tmp_path / {"nobody": "default"}.get(named_by, named_by)
    with pytest.raises(EngineUnavailable, match=rf"cluster file {named} is missing.*Copy it.*FDB_CLUSTER_FILE"):
        asyncio.run(open_engine(url))


@pytest.mark.parametrize(
    ("query", "prefix"),
    [("", b""), ("?prefix=store-1", b"store-1"), ("?prefix=a%2Fb%20c", b"a/b c"), ("?prefix=", b"")],
)
def test_the_url_says_where_in_the_cluster_the_keys_lie(
    monkeypatch: pytest.MonkeyPatch, query: str, prefix: bytes
) -> None:
    opened: list[tuple[str | None, bytes]] = []

    async def record(cluster_file: str | None, *, prefix: bytes, **_: object) -> None:
        opened.append((cluster_file, prefix))

    monkeypatch.setattr(fdb.FdbEngine, "open", record)
    for url in ("fdb:///etc/fdb.cluster", "fdb:///", "fdb:"):
        asyncio.run(open_engine(url + query))
    assert opened == [("/etc/fdb.cluster", prefix), (None, prefix), (None, prefix)]


@pytest.mark.parametrize(
    "query",
    [
        "?prefix",
        "?other=1",
        "?prefix=a&other=1",
        "?prefix=a&prefix=b",
        "?prefix=%FF",
        "?prefix=%00",
        "?prefix=%C3%A9",
        "?prefix=" + "a" * 65,
        "#fragment",
    ],
)
def test_a_url_with_other_options_is_refused(query: str) -> None:
    with pytest.raises(ValueError, match="metadata URL"):
        asyncio.run(open_engine(f"fdb:///etc/fdb.cluster{query}"))


def test_the_cluster_sees_what_kind_each_transaction_is_and_whether_it_may_wait() -> None:
    async def body(fake: FakeFdb) -> None:
        await fake.engine.transact(increment)
        await fake.engine.read(get, b"count")
        await fake.engine.background.transact(increment)
        await fake.engine.background.read(get, b"count")
        seen = [dict(native.options) for native in fake.client.natives]
        # The first that writes also clears old marks, beside it, and that may wait.
        assert {PRIORITY_BATCH in options for options in seen if options[TAG] == b"clear done keys"} == {True}
        asked = [options for options in seen if options[TAG] != b"clear done keys"]
        assert [options[TAG] for options in asked] == [b"increment", b"get", b"increment", b"get"]
        assert [PRIORITY_BATCH in options for options in asked] == [False, False, True, True]

    run(body)


def test_the_background_closes_with_the_engine() -> None:
    async def body(fake: FakeFdb) -> None:
        background = fake.engine.background
        assert background.background is background
        assert background.prefix == fake.engine.prefix
        await fake.engine.close()
        with pytest.raises(EngineClosed):
            await background.read(get, b"key")

    run(body)


def test_a_read_that_may_be_stale_asks_for_a_version_once() -> None:
    async def body(fake: FakeFdb) -> None:
        for _ in range(3):
            assert await fake.engine.read(get, b"key", max_age_ns=10**12) is None
        assert fake.client.versions_asked == 1

    run(body)


def test_the_metadata_version_is_asked_for_once_in_a_transaction() -> None:
    async def twice(tr: Any) -> bool:
        first, second = tr.metadata_version(), tr.metadata_version()
        return bool(await first == await second and first is second)

    async def body(fake: FakeFdb) -> None:
        assert await fake.engine.transact(twice)

    run(body)


def test_marks_lie_under_the_stores_prefix() -> None:
    async def body(fake: FakeFdb) -> None:
        await fake.engine.transact(increment)
        written = [key for key, _ in fake.store.range_at(fake.store.version, b"", b"\xff")]
        assert [key.startswith(b"store-1/\xfe/done/") for key in written] == [False, True]

    run(body, prefix=b"store-1/")


def test_importing_the_package_loads_no_client_library() -> None:
    program = "import sys, tigrislike.metadata.kv, tigrislike.metadata.kv.fdb; sys.exit('fdb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
