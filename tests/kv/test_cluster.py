"""The engine on a real cluster: what no stand-in can show. Skipped where there is none."""

from __future__ import annotations

import asyncio
import gc
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests import clusters
from tigrislike.metadata.kv import Engine, Faults, fdb_client
from tigrislike.metadata.kv.errors import (
    CommitUnknown,
    StoreSealed,
    TemporarilyRefused,
    TransactionTimedOut,
    TransactionTooLarge,
    TransactionTooOld,
)
from tigrislike.metadata.kv.fdb import FdbEngine

from .engines import (
    TEST_CLUSTER,
    UNDER_TEST,
    EngineUnderTest,
    NotATestCluster,
    clear_for_a_test,
    on_the_cluster,
)

pytestmark = pytest.mark.fdb


@pytest.fixture
def cluster(tmp_path: Any) -> EngineUnderTest:
    return EngineUnderTest("fdb", tmp_path)


def run(cluster: EngineUnderTest, body: Callable[[Engine], Awaitable[Any]]) -> Any:
    return cluster.run(body)


def test_the_suite_refuses_to_clear_what_is_not_a_tests(cluster: EngineUnderTest) -> None:
    async def somebodys(tr: Any) -> None:
        tr.clear(UNDER_TEST)
        tr.set(b"somebody's", b"data")

    async def body(kv: Engine) -> None:
        await kv.transact(somebodys)
        with pytest.raises(NotATestCluster, match="somebody's"):
            await on_the_cluster(clear_for_a_test)
        await kv.transact(lambda tr: _mark(tr))
        await on_the_cluster(clear_for_a_test)
        assert await kv.read(lambda tr: tr.get(b"somebody's")) is None

    run(cluster, body)


async def _mark(tr: Any) -> None:
    tr.set(TEST_CLUSTER, b"")


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[FdbEngine]:
    """An engine in a place of the cluster that is empty, and is cleared."""
    prefix = clusters.PREFIX.encode() + secrets.token_hex(6).encode() + b"/"
    engine = await FdbEngine.open(str(clusters.cluster_file()), prefix=options.pop("prefix", prefix), **options)
    try:
        yield engine
    finally:
        await engine.transact_past_seal(_clear_prefix, engine.prefix)
        await engine.close()


async def _clear_prefix(tr: Any, prefix: bytes) -> None:
    tr.clear_range(prefix, prefix + b"\xff")


async def _set(tr: Any, key: bytes, value: bytes) -> None:
    tr.set(key, value)


async def _get(tr: Any, key: bytes) -> bytes | None:
    value: bytes | None = await tr.get(key)
    return value


async def _increment(tr: Any, key: bytes) -> int:
    count = int(await tr.get(key) or b"0") + 1
    tr.set(key, b"%d" % count)
    return count


def test_cancelled_reads_and_commits_leave_nothing_waiting() -> None:
    async def main() -> None:
        async with opened() as kv:
            key = kv.prefix + b"count"
            committed = await kv.transact(_increment, key)
            for rounds in range(40):
                calls = [asyncio.ensure_future(kv.transact(_increment, key)), asyncio.ensure_future(kv.read(_get, key))]
                for _ in range(rounds):
                    await asyncio.sleep(0)
                for call in calls:
                    call.cancel()
                await asyncio.wait(calls)
                committed += not calls[0].cancelled()
            # A commit whose caller was cancelled took effect, or did not, or may yet.
            assert committed <= int(await kv.read(_get, key) or b"0") <= 41

    asyncio.run(main())
    gc.collect()
    assert not fdb_client._waited_for  # every callback has come, and taken its future along


def test_a_version_that_the_cluster_has_forgotten_is_retried_with_a_fresh_one() -> None:
    async def main() -> None:
        async with opened() as kv:
            await kv.transact(_set, kv.prefix + b"k", b"v")
            tr = kv._reads._begin(b"test", None)
            version = await tr.read_version()
            tr.end()
            old = version - 20_000_000  # the cluster counts a million a second, and keeps five seconds
            tr = kv._reads._begin(b"test", None)
            tr.reuse(max(old, 1))
            with pytest.raises(TransactionTooOld):
                await tr.get(kv.prefix + b"k")
            tr.end()
            now_ns = kv._clock.monotonic_ns()
            kv._reads._recent = max(old, 1), now_ns
            assert await kv.read(_get, kv.prefix + b"k", max_age_ns=60 * 10**9) == b"v"
            assert kv._reads._recent[0] >= version
            for _ in range(3):
                assert await kv.read(_get, kv.prefix + b"k", max_age_ns=10**9) == b"v"

    asyncio.run(main())


@pytest.mark.parametrize("number", [1021, 1039])
@pytest.mark.parametrize("committed", [True, False])
def test_an_unknown_commit_is_settled_on_the_cluster(number: int, committed: bool) -> None:
    async def main() -> None:
        faults = Faults()
        async with opened(faults=faults) as kv:
            key = kv.prefix + b"count"
            for expected in (1, 2, 3):
                faults.fail_commit(CommitUnknown("injected", number), committed=committed)
                assert await kv.transact(_increment, key) == expected
            assert await kv.read(_get, key) == b"3"

    asyncio.run(main())


def test_a_commit_that_ran_out_of_time_surfaces() -> None:
    async def main(committed: bool) -> None:
        faults = Faults()
        async with opened(faults=faults) as kv:
            faults.fail_commit(TransactionTimedOut("injected"), committed=committed)
            with pytest.raises(TransactionTimedOut):
                await kv.transact(_increment, kv.prefix + b"count")
            assert await kv.read(_get, kv.prefix + b"count") == (b"1" if committed else None)

    asyncio.run(main(True))
    asyncio.run(main(False))


def test_a_locked_database_refuses_for_now_and_serves_again() -> None:
    lock = b"\xff\xff/management/db_locked"

    def set_lock(locked: bool) -> None:
        native = fdb_client.load_binding().open(str(clusters.cluster_file())).create_transaction()
        native.options.set_special_key_space_enable_writes()
        native.options.set_lock_aware()
        if locked:
            native.set(lock, b"0123456789abcdef" * 2)
        else:
            native.clear(lock)
        native.commit().wait()

    async def main() -> None:
        async with opened() as kv, opened(timeout_s=0.5, prefix=kv.prefix) as hasty:
            key = kv.prefix + b"count"
            set_lock(True)
            try:
                with pytest.raises(TemporarilyRefused) as refused:
                    await hasty.transact(_increment, key)
                assert refused.value.number == 1038
                with pytest.raises(TemporarilyRefused):
                    await hasty.read(_get, key)
                patient = asyncio.ensure_future(kv.transact(_increment, key))
                await asyncio.sleep(0)
            finally:
                set_lock(False)
            assert await patient == 1

    asyncio.run(main())


def test_a_transaction_that_is_too_large_is_refused_by_the_cluster_too() -> None:
    async def too_large(tr: Any, prefix: bytes) -> None:
        for n in range(101):
            tr.set(prefix + b"%d" % n, bytes(100_000))

    async def main() -> None:
        async with opened() as kv:
            with pytest.raises(TransactionTooLarge):
                await kv.transact(too_large, kv.prefix)

    asyncio.run(main())


def test_the_background_sees_and_writes_the_same_store() -> None:
    async def main() -> None:
        async with opened() as kv:
            key = kv.prefix + b"count"
            assert await kv.transact(_increment, key) == 1
            assert await kv.background.transact(_increment, key) == 2
            assert await kv.read(_get, key) == await kv.background.read(_get, key) == b"2"

    asyncio.run(main())


def test_writing_without_reading_minds_a_seal_that_another_process_set() -> None:
    async def main() -> None:
        async with opened() as mine, opened(prefix=mine.prefix) as others:
            key = mine.prefix + b"k"
            for value in (b"1", b"2", b"3"):  # the later ones take the first one's version
                await mine.transact(_set, key, value)
            await others.seal("being moved")
            for _ in range(2):
                with pytest.raises(StoreSealed):
                    await mine.transact(_set, key, b"4")
            await others.unseal()
            await mine.transact(_set, key, b"5")
            assert await others.read(_get, key) == b"5"

    asyncio.run(main())


def test_writes_of_several_processes_without_reading_never_conflict() -> None:
    async def main() -> None:
        faults = Faults()
        async with opened() as one, opened(prefix=one.prefix, faults=faults) as other:
            key = one.prefix + b"k"
            for value in range(50):
                await asyncio.gather(
                    one.transact(_set, key, b"%d" % value),
                    other.transact(_set, key, b"%d" % value),
                )
                assert await one.read(_get, key) == b"%d" % value

    asyncio.run(main())


STATUS = b"\xff\xff/status/json"


async def reading_a_lot(tr: Any) -> None:
    await tr.get(b"key")


@pytest.mark.slow
def test_the_status_names_the_kind_of_transaction_that_reads_most(cluster: EngineUnderTest) -> None:
    """One read in a hundred carries its tag; servers look at them every 30 seconds."""

    def busiest() -> set[str]:
        native = fdb_client.load_binding().open(str(clusters.cluster_file())).create_transaction()
        status = json.loads(bytes(native.get(STATUS).wait()))
        roles = [role for process in status["cluster"]["processes"].values() for role in process["roles"]]
        return {role["busiest_read_tag"]["tag"] for role in roles if "busiest_read_tag" in role}

    async def body(kv: Engine) -> None:
        async def reader() -> None:
            while True:
                await kv.read(reading_a_lot)

        readers = [asyncio.ensure_future(reader()) for _ in range(16)]
        async with asyncio.timeout(120):
            while "reading_a_lot" not in await asyncio.to_thread(busiest):
                await kv.read(reading_a_lot)
        for each in readers:
            each.cancel()
        await asyncio.wait(readers)

    run(cluster, body)
