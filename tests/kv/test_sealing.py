"""A sealed store: every change refused, in every process, from its next transaction on; reads as ever."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import fresh_url
from tigrislike.metadata.kv import CommitUnknown, Engine, Faults, StoreSealed, open_engine
from tigrislike.metadata.kv.errors import AmbiguousCommit, EngineUnavailable, NotCommitted
from tigrislike.metadata.kv.seal import SEALED

from .engines import TEST_CLUSTER, EngineUnderTest
from .memory_engine import MemoryEngine, RandomFaults

Tr = Any

REASON = "the store moves to another place"


async def put(tr: Tr, key: bytes, value: bytes) -> None:
    tr.set(key, value)


async def get(tr: Tr, key: bytes) -> bytes | None:
    value: bytes | None = await tr.get(key)
    return value


async def increment(tr: Tr, key: bytes) -> int:
    count = int(await tr.get(key) or b"0") + 1
    tr.set(key, b"%d" % count)
    return count


async def clear(tr: Tr) -> None:
    tr.clear(b"key")


async def clear_range(tr: Tr) -> None:
    tr.clear_range(b"", b"\xfd")


async def add(tr: Tr) -> None:
    tr.add(b"number", 1)


async def raise_maximum(tr: Tr) -> None:
    tr.max(b"number", 1)


async def bump(tr: Tr) -> None:
    tr.bump_metadata_version()


async def read_then_write(tr: Tr) -> None:
    await tr.get_range(b"", b"\xfd", limit=10)
    tr.set(b"key", b"new")


async def write_then_read(tr: Tr) -> None:
    tr.set(b"key", b"new")
    await tr.get(b"key")


WRITES = [clear, clear_range, add, raise_maximum, bump, read_then_write, write_then_read]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_no_kind_of_write_gets_through(engine: EngineUnderTest, write: Any) -> None:
    async def body(kv: Engine) -> None:
        await kv.transact(put, b"key", b"old")
        before = await kv.read(lambda tr: tr.metadata_version())
        assert await kv.sealed() is None
        await kv.seal(REASON)
        assert await kv.sealed() == REASON
        sealed_at = await kv.read(lambda tr: tr.metadata_version())
        assert sealed_at != before
        for _ in range(2):
            with pytest.raises(StoreSealed) as refused:
                await kv.transact(write)
            assert refused.value.reason == REASON
            assert refused.value.code == "SlowDown"
            assert REASON not in str(refused.value), "clients see the text"
        assert await kv.read(get, b"key") == b"old"
        assert await kv.read(get, b"number") is None
        assert await kv.read(lambda tr: tr.metadata_version()) == sealed_at
        await kv.unseal()
        assert await kv.sealed() is None
        await kv.transact(write)

    engine.run(body)


def test_reads_and_transactions_that_write_nothing_go_on(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        await kv.transact(put, b"key", b"value")
        await kv.seal(REASON)
        assert await kv.read(get, b"key") == b"value"
        assert await kv.transact(get, b"key") == b"value"
        await kv.checkpoint()

    engine.run(body)


def test_what_the_function_raises_is_what_its_caller_gets(engine: EngineUnderTest) -> None:
    async def refuse(tr: Tr) -> None:
        tr.set(b"key", b"value")
        raise KeyError("no such thing")

    async def body(kv: Engine) -> None:
        await kv.seal(REASON)
        with pytest.raises(KeyError):
            await kv.transact(refuse)
        assert await kv.read(get, b"key") is None

    engine.run(body)


def test_only_who_goes_past_the_seal_writes(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        await kv.seal(REASON)
        await kv.transact_past_seal(put, b"key", b"value")
        assert await kv.read(get, b"key") == b"value"
        with pytest.raises(StoreSealed):
            await kv.transact(put, b"key", b"other")
        assert await kv.read(get, b"key") == b"value"

    engine.run(body)


def test_sealing_again_changes_the_reason_and_unsealing_again_does_nothing(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        await kv.seal("one")
        await kv.seal("two")
        assert await kv.sealed() == "two"
        with pytest.raises(StoreSealed) as refused:
            await kv.transact(put, b"key", b"value")
        assert refused.value.reason == "two"
        await kv.unseal()
        await kv.unseal()
        await kv.transact(put, b"key", b"value")

    engine.run(body)


def test_a_store_can_be_sealed_and_opened_many_times(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        for count in range(1, 6):
            assert await kv.transact(increment, b"key") == count
            await kv.seal(REASON)
            with pytest.raises(StoreSealed):
                await kv.transact(increment, b"key")
            await kv.unseal()

    engine.run(body)


def test_of_transactions_racing_with_the_seal_each_is_whole_or_refused(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def attempt(number: int) -> bool:
            try:
                await kv.transact(put, b"%d" % number, b"")
            except StoreSealed:
                return False
            return True

        racing = [asyncio.ensure_future(attempt(number)) for number in range(50)]
        await asyncio.sleep(0)
        await kv.seal(REASON)
        at_seal = await kv.read(lambda tr: tr.get_range(b"", b"\xfd"))
        committed = await asyncio.gather(*racing)
        at_end = await kv.read(lambda tr: tr.get_range(b"", b"\xfd"))
        assert at_end == at_seal, "nothing changes once seal() has returned"
        assert len([key for key, _ in at_end if key.isdigit()]) == sum(committed)

    engine.run(body)


def test_one_refused_write_does_not_spoil_its_group(tmp_path: Path) -> None:
    async def main() -> None:
        kv = await open_engine(f"sqlite://{tmp_path}/metadata.db")
        await kv.seal(REASON)
        one = asyncio.ensure_future(kv.transact(put, b"refused", b""))
        two = asyncio.ensure_future(kv.transact_past_seal(put, b"passes", b""))
        three = asyncio.ensure_future(kv.transact(get, b"passes"))
        results = await asyncio.gather(one, two, three, return_exceptions=True)
        assert isinstance(results[0], StoreSealed)
        assert results[1:] == [None, b""]
        opened = asyncio.ensure_future(kv.unseal())
        written = asyncio.ensure_future(kv.transact(put, b"written", b""))
        closed = asyncio.ensure_future(kv.seal(REASON))
        late = asyncio.ensure_future(kv.transact(put, b"late", b""))
        results = await asyncio.gather(opened, written, closed, late, return_exceptions=True)
        assert results[:3] == [None, None, None], "one group: each job sees what the one before it did to the seal"
        assert isinstance(results[3], StoreSealed)
        assert await kv.read(get, b"written") == b""
        assert await kv.read(get, b"late") is None
        await kv.close()

    asyncio.run(main())


def test_an_injected_fault_cannot_commit_what_the_seal_refuses(engine: EngineUnderTest) -> None:
    faults = Faults()

    async def body(kv: Engine) -> None:
        await kv.seal(REASON)
        faults.fail_commit(CommitUnknown("injected"), committed=True)
        with pytest.raises((StoreSealed, AmbiguousCommit)):
            await kv.transact(put, b"key", b"value")
        assert await kv.read(get, b"key") is None

    engine.run(body, faults=faults)


def test_other_processes_see_the_seal_at_their_next_transaction(tmp_path: Path) -> None:
    asyncio.run(_two_engines(f"sqlite://{tmp_path}/metadata.db"))


@pytest.mark.fdb
def test_other_clients_of_a_cluster_see_the_seal_at_their_next_transaction() -> None:
    with fresh_url() as url:
        asyncio.run(_two_engines(url))


async def _two_engines(url: str) -> None:
    one, two = await open_engine(url), await open_engine(url)
    key = one.prefix + b"key"
    try:
        assert await two.transact(increment, key) == 1  # has seen the store open
        await one.seal(REASON)
        with pytest.raises(StoreSealed):
            await two.transact(increment, key)
        assert await two.sealed() == REASON
        await one.unseal()
        assert await two.transact(increment, key) == 2
        assert await one.transact(increment, key) == 3
    finally:
        await one.close()
        await two.close()


@pytest.mark.fdb
def test_a_seal_is_its_own_stores_and_no_neighbours() -> None:
    async def main(one_url: str, two_url: str) -> None:
        one, two = await open_engine(one_url), await open_engine(two_url)
        try:
            await one.seal(REASON)
            assert await two.sealed() is None
            await two.transact(put, two.prefix + b"key", b"value")
            with pytest.raises(StoreSealed):
                await one.transact(put, one.prefix + b"key", b"value")
        finally:
            await one.close()
            await two.close()

    with fresh_url() as one_url, fresh_url() as two_url:
        asyncio.run(main(one_url, two_url))


@pytest.mark.parametrize("seed", range(30))
def test_nothing_changes_after_the_seal_in_any_interleaving(seed: int) -> None:
    """Writers, some blind and some not, race with a seal, with every fault of a cluster thrown in."""
    print(f"seed {seed}")

    async def main() -> None:
        kv = MemoryEngine(seed=seed, faults=RandomFaults(seed, timed_out=0.02))
        rng = random.Random(seed)
        acknowledged: dict[bytes, int] = {}
        refused = 0

        async def writer(number: int) -> None:
            nonlocal refused
            key = b"w%d" % number
            for count in range(1, 12):
                try:
                    if rng.random() < 0.5:
                        await kv.transact(put, key, b"%d" % count)
                    else:
                        await kv.transact(increment, key)
                    acknowledged[key] = count
                except StoreSealed:
                    refused += 1
                    return
                except (AmbiguousCommit, EngineUnavailable, NotCommitted):
                    return  # in doubt: whichever it was, the check below holds

        writers = [asyncio.ensure_future(writer(number)) for number in range(6)]
        for _ in range(rng.randrange(200)):
            await asyncio.sleep(0)
        for _ in range(50):  # an ambiguous seal is set again until it is certain
            try:
                await kv.seal(REASON)
                break
            except AmbiguousCommit:
                continue
        at_seal = await kv.read(lambda tr: tr.get_range(b"", b"\xfe"))
        await asyncio.gather(*writers)
        at_end = await kv.read(lambda tr: tr.get_range(b"", b"\xfe"))
        assert at_end == at_seal
        assert refused or len(acknowledged) == 6
        for key, count in acknowledged.items():
            assert int(dict(at_end)[key]) >= count, "acknowledged before the seal and lost"
        await kv.close()

    asyncio.run(main())


def test_the_seal_lies_where_no_record_can(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        await kv.seal(REASON)
        assert await kv.read(get, kv.prefix + SEALED) is not None
        rows = await kv.read(lambda tr: tr.get_range(b"", kv.prefix + b"\xfe"))
        assert [key for key, _ in rows if key != TEST_CLUSTER] == []

    engine.run(body)
