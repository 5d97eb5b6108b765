"""The FoundationDB adapter's own side: numbers to errors, cancellation, time limits, and a library that is missing."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tigrislike.metadata.kv import open_engine
from tigrislike.metadata.kv.errors import (
    AmbiguousCommit,
    EngineError,
    EngineUnavailable,
    InvertedRange,
    KeyOutsideLegalRange,
    KeyTooLarge,
    TooManyWatches,
    TransactionTimedOut,
    TransactionTooLarge,
    Unreadable,
    ValueTooLarge,
)

from .fake_binding import FakeFdb
from .memory_engine import TEMPORARY


def run(body: Callable[[FakeFdb], Awaitable[Any]], **options: Any) -> Any:
    async def main() -> Any:
        fake = FakeFdb(**options)
        try:
            return await body(fake)
        finally:
            await fake.close()

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
        ("get", 1500, EngineError),
        ("get", 4100, EngineError),
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


def test_a_timeout_of_a_commit_that_writes_nothing_is_not_ambiguous() -> None:
    async def body(fake: FakeFdb) -> None:
        fake.client.errors = {"commit": [1031]}
        with pytest.raises(EngineUnavailable):
            await fake.engine.transact(get, b"key")

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


def test_a_transaction_lives_until_what_waits_for_it_is_done() -> None:
    async def body(fake: FakeFdb) -> None:
        calls = [asyncio.ensure_future(fake.engine.transact(increment)) for _ in range(5)]
        while not all(call.done() for call in calls):
            gc.collect()
            await asyncio.sleep(0)
        assert sorted(call.result() for call in calls) == list(range(1, 6))

    run(body)


def test_each_attempt_has_what_is_left_of_the_time() -> None:
    async def body(fake: FakeFdb) -> None:
        await fake.engine.transact(increment)
        await fake.engine.read(get, b"count")
        assert fake.timeouts_ms
        assert all(0 < first <= 3000 for first, *_ in fake.timeouts_ms)

    run(body, timeout_s=3.0)


def test_a_watch_outlives_its_transactions_time_limit() -> None:
    async def body(fake: FakeFdb) -> None:
        await fake.engine.transact(lambda tr: _watch(tr))
        assert fake.timeouts_ms[-1][-1] == 0

    run(body)


async def _watch(tr: Any) -> Any:
    return tr.watch(b"key")


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


def test_an_unusable_cluster_file_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    class FDBError(Exception):
        code = 1515
        description = b"No cluster file found"

    class Binding:
        def __init__(self) -> None:
            self.FDBError = FDBError

        def api_version(self, version: int) -> None:
            assert version == 710

        def open(self, cluster_file: str) -> None:
            assert cluster_file == "/absent/fdb.cluster"
            raise FDBError

    monkeypatch.setitem(sys.modules, "fdb", Binding())  # type: ignore[arg-type]
    with pytest.raises(EngineUnavailable, match=r"/absent/fdb.cluster: No cluster file found \(1515\)"):
        asyncio.run(open_engine("fdb:///absent/fdb.cluster"))


@pytest.mark.parametrize(
    ("query", "prefix"),
    [("", b""), ("?prefix=store-1", b"store-1"), ("?prefix=a%2Fb%20c", b"a/b c"), ("?prefix=", b"")],
)
def test_the_url_says_where_in_the_cluster_the_keys_lie(
    monkeypatch: pytest.MonkeyPatch, query: str, prefix: bytes
) -> None:
    opened: list[str | None] = []

    class Binding:
        FDBError = RuntimeError

        def api_version(self, _version: int) -> None: ...

        def open(self, cluster_file: str | None) -> object:
            opened.append(cluster_file)
            return object()

    async def main(url: str) -> bytes:
        engine = await open_engine(url)
        try:
            return engine.prefix
        finally:
            await engine.close()

    monkeypatch.setitem(sys.modules, "fdb", Binding())  # type: ignore[arg-type]
    assert asyncio.run(main(f"fdb:///etc/fdb.cluster{query}")) == prefix
    assert asyncio.run(main(f"fdb:///{query}")) == prefix
    assert asyncio.run(main(f"fdb:{query}")) == prefix
    assert opened == ["/etc/fdb.cluster", None, None]


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


def test_marks_lie_under_the_stores_prefix() -> None:
    async def body(fake: FakeFdb) -> None:
        await fake.engine.transact(increment)
        written = [key for key, _ in fake.store.range_at(fake.store.version, b"", b"\xff")]
        assert [key.startswith(b"store-1/\xfe/done/") for key in written] == [False, True]

    run(body, prefix=b"store-1/")


def test_importing_the_package_loads_no_client_library() -> None:
    program = "import sys, tigrislike.metadata.kv, tigrislike.metadata.kv.fdb; sys.exit('fdb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
