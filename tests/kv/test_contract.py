"""What every engine promises, method by method. Runs over each engine that is available."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tigrislike.metadata.kv import Engine, Faults, ManualClock, NotCommitted, TransactionMisuse, limits
from tigrislike.metadata.kv.errors import (
    AmbiguousCommit,
    CommitUnknown,
    EngineClosed,
    EngineUnavailable,
    ForeignAwait,
    InvertedRange,
    KeyOutsideLegalRange,
    KeyTooLarge,
    ReadOnlyTransaction,
    TransactionEnded,
    TransactionTimedOut,
    TransactionTooLarge,
    TransactionTooOld,
    Unreadable,
    ValueTooLarge,
)

from .engines import EngineUnderTest

Tr = Any  # tests misuse transactions on purpose


async def put(engine: Engine, **pairs: bytes) -> None:
    async def fn(tr: Tr) -> None:
        for key, value in pairs.items():
            tr.set(key.encode(), value)

    await engine.transact(fn)


async def rows(engine: Engine) -> list[tuple[bytes, bytes]]:
    async def fn(tr: Tr) -> list[tuple[bytes, bytes]]:
        return await tr.get_range(b"", b"\xfd")

    return await engine.read(fn)


# Reading what was written


def test_a_committed_value_is_read_back(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        await put(kv, key=b"value")

        async def get(tr: Tr, key: bytes) -> bytes | None:
            return await tr.get(key)

        assert await kv.read(get, b"key") == b"value"
        assert await kv.transact(get, b"key") == b"value"
        assert await kv.read(get, b"absent") is None

    engine.run(body)


def test_empty_keys_and_values_and_every_byte_are_kept(engine: EngineUnderTest) -> None:
    every_byte = bytes(range(256))

    async def body(kv: Engine) -> None:
        async def write(tr: Tr) -> None:
            tr.set(b"", every_byte)
            tr.set(b"a" + every_byte, b"")

        await kv.transact(write)
        assert await rows(kv) == [(b"", every_byte), (b"a" + every_byte, b"")]

    engine.run(body)


def test_a_read_function_may_be_anything_that_returns_an_awaitable(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        await put(kv, key=b"value")
        assert await kv.read(lambda tr: tr.get(b"key")) == b"value"
        assert await kv.transact(lambda tr: tr.get(b"key")) == b"value"
        with pytest.raises(TransactionMisuse, match="not an awaitable"):
            await kv.read(lambda tr: 5)  # type: ignore[arg-type,return-value]
        with pytest.raises(TransactionMisuse, match="not an awaitable"):
            await kv.transact(lambda tr: 5)  # type: ignore[arg-type,return-value]

    engine.run(body)


def test_reads_start_when_called_and_do_not_see_writes_made_after(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        await put(kv, key=b"old")

        async def fn(tr: Tr) -> tuple[bytes | None, bytes | None]:
            before = tr.get(b"key")
            tr.set(b"key", b"new")
            after = tr.get(b"key")
            return await before, await after

        assert await kv.transact(fn) == (b"old", b"new")

    engine.run(body)


def test_each_read_sees_exactly_the_writes_called_before_it(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        await put(kv, a=b"0", b=b"0")

        async def fn(tr: Tr) -> list[Any]:
            reads = [tr.get_range(b"a", b"z"), tr.get(b"c"), tr.metadata_version()]
            tr.set(b"c", b"1")
            reads += [tr.get_range(b"a", b"z"), tr.get(b"c")]
            tr.clear_range(b"a", b"b\0")
            tr.add(b"n", 1)
            reads += [tr.get_range(b"a", b"z", reverse=True), tr.get(b"n")]
            tr.clear(b"n")
            tr.bump_metadata_version()
            last = await tr.get_range(b"a", b"z")
            first = [await read for read in reads]
            tr.set(b"d", b"2")
            return [*first, last, await tr.get(b"d")]

        version = await kv.read(_metadata_version)
        old = [(b"a", b"0"), (b"b", b"0")]
        assert await kv.transact(fn) == [
            old,
            None,
            version,
            [*old, (b"c", b"1")],
            b"1",
            [(b"n", little(1)), (b"c", b"1")],
            little(1),
            [(b"c", b"1")],
            b"2",
        ]
        assert await rows(kv) == [(b"c", b"1"), (b"d", b"2")]
        assert await kv.read(_metadata_version) != version

    engine.run(body)


def test_writes_made_while_reads_are_never_awaited_are_committed(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def fn(tr: Tr) -> None:
            tr.get_range(b"a", b"z")
            tr.set(b"a", b"1")
            tr.get(b"a")
            tr.set(b"b", b"2")

        await kv.transact(fn)
        assert await rows(kv) == [(b"a", b"1"), (b"b", b"2")]

    engine.run(body)


def test_a_read_that_nobody_awaits_does_no_harm(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def fn(tr: Tr) -> int:
            tr.get(b"key")
            tr.get_range(b"a", b"z")
            return 1

        assert await kv.read(fn) == 1
        assert await kv.transact(fn) == 1

    engine.run(body)


RANGES: list[tuple[bytes, bytes, dict[str, Any], list[bytes]]] = [
    (b"a", b"d", {}, [b"a", b"b", b"b\0", b"c"]),
    (b"b", b"c", {}, [b"b", b"b\0"]),
    (b"b\0", b"zz", {}, [b"b\0", b"c", b"d"]),
    (b"", limits.SYSTEM_PREFIX, {}, [b"a", b"b", b"b\0", b"c", b"d"]),
    (b"a", b"z", {"limit": 2}, [b"a", b"b"]),
    (b"a", b"z", {"limit": 99}, [b"a", b"b", b"b\0", b"c", b"d"]),
    (b"a", b"d", {"reverse": True}, [b"c", b"b\0", b"b", b"a"]),
    (b"a", b"d", {"reverse": True, "limit": 2}, [b"c", b"b\0"]),
    (b"b", b"b", {}, []),
    (b"x", b"z", {}, []),
    (b"a", b"d", {"snapshot": True}, [b"a", b"b", b"b\0", b"c"]),
]


@pytest.mark.parametrize(("begin", "end", "options", "expected"), RANGES)
def test_ranges_are_half_open_ordered_and_limited(
    engine: EngineUnderTest, begin: bytes, end: bytes, options: dict[str, Any], expected: list[bytes]
) -> None:
    async def body(kv: Engine) -> None:
        async def write(tr: Tr) -> None:
            for key in (b"c", b"a", b"b\0", b"d", b"b"):
                tr.set(key, b"=" + key)

        await kv.transact(write)

        async def fn(tr: Tr) -> list[tuple[bytes, bytes]]:
            return await tr.get_range(begin, end, **options)

        wanted = [(key, b"=" + key) for key in expected]
        # FoundationDB's own bookkeeping of settled commits lies at 0xfe.
        assert [row for row in await kv.read(fn) if row[0] < b"\xfd"] == wanted
        assert [row for row in await kv.transact(fn) if row[0] < b"\xfd"] == wanted

    engine.run(body)


def test_a_long_range_arrives_whole_and_in_order(engine: EngineUnderTest) -> None:
    expected = [(b"%05d" % n, bytes(500)) for n in range(3000)]

    async def body(kv: Engine) -> None:
        async def write(tr: Tr) -> None:
            for key, value in expected:
                tr.set(key, value)

        await kv.transact(write)

        async def fn(tr: Tr, options: dict[str, Any]) -> list[tuple[bytes, bytes]]:
            return await tr.get_range(b"0", b"1", **options)

        assert await kv.read(fn, {}) == expected
        assert await kv.read(fn, {"reverse": True}) == expected[::-1]
        assert await kv.read(fn, {"limit": 2500}) == expected[:2500]
        assert await kv.read(fn, {"limit": 2500, "reverse": True}) == expected[:499:-1]

    engine.run(body)


# A transaction sees its own writes


def test_own_writes_show_in_gets_and_ranges(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        await put(kv, a=b"1", b=b"2", c=b"3", d=b"4")

        async def fn(tr: Tr) -> tuple[Any, ...]:
            tr.set(b"b", b"changed")
            tr.set(b"bb", b"new")
            tr.clear(b"c")
            tr.clear(b"absent")
            return await tr.get(b"b"), await tr.get(b"c"), await tr.get_range(b"a", b"z")

        expected = [(b"a", b"1"), (b"b", b"changed"), (b"bb", b"new"), (b"d", b"4")]
        assert await kv.transact(fn) == (b"changed", None, expected)
        assert await rows(kv) == expected

    engine.run(body)


def test_clear_range_hides_what_was_before_it_and_not_what_comes_after(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        await put(kv, a=b"1", b=b"2", c=b"3", d=b"4")

        async def fn(tr: Tr) -> tuple[Any, ...]:
            tr.set(b"bb", b"new")
            tr.clear_range(b"b", b"d")
            inside = await tr.get(b"bb")
            tr.set(b"c", b"again")
            return inside, await tr.get_range(b"a", b"z"), await tr.get_range(b"a", b"z", limit=2, reverse=True)

        expected = [(b"a", b"1"), (b"c", b"again"), (b"d", b"4")]
        assert await kv.transact(fn) == (None, expected, expected[:0:-1])
        assert await rows(kv) == expected

    engine.run(body)


def test_limits_of_ranges_count_what_is_left_after_own_clears(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        await put(kv, a=b"1", b=b"2", c=b"3", d=b"4")

        async def fn(tr: Tr) -> Any:
            tr.clear_range(b"a", b"c")
            return await tr.get_range(b"a", b"z", limit=2)

        assert await kv.transact(fn) == [(b"c", b"3"), (b"d", b"4")]

    engine.run(body)


def little(value: int) -> bytes:
    return (value % 2**64).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("stored", "delta", "expected"),
    [
        (None, 5, little(5)),
        (None, -1, b"\xff" * 8),
        (little(7), -8, b"\xff" * 8),
        (little(2**63 - 1), 1, little(2**63)),
        (b"\xff" * 8, 1, little(0)),
        (b"\x05", 1, little(6)),
        (little(1) + b"beyond", 1, little(2)),
        (b"", 3, little(3)),
        (little(0), -(2**63), little(2**63)),
        (little(0), 2**63 - 1, little(2**63 - 1)),
    ],
)
def test_add_is_modulo_two_to_the_64th(
    engine: EngineUnderTest, stored: bytes | None, delta: int, expected: bytes
) -> None:
    async def body(kv: Engine) -> None:
        if stored is not None:
            await put(kv, n=stored)

        async def fn(tr: Tr) -> tuple[Any, ...]:
            tr.add(b"n", delta)
            return await tr.get(b"n"), await tr.get_range(b"a", b"z")

        assert await kv.transact(fn) == (expected, [(b"n", expected)])
        assert await rows(kv) == [(b"n", expected)]

    engine.run(body)


@pytest.mark.parametrize(
    ("stored", "value", "expected"),
    [
        (None, 5, 5),
        (None, 0, 0),
        (little(7), 6, 7),
        (little(7), 8, 8),
        (little(1), 2**64 - 1, 2**64 - 1),
        (b"\xff" * 8, 1, 2**64 - 1),
        (b"\x05", 1, 5),
    ],
)
def test_max_is_unsigned(engine: EngineUnderTest, stored: bytes | None, value: int, expected: int) -> None:
    async def body(kv: Engine) -> None:
        if stored is not None:
            await put(kv, n=stored)

        async def fn(tr: Tr) -> bytes | None:
            tr.max(b"n", value)
            return await tr.get(b"n")

        assert await kv.transact(fn) == little(expected)
        assert await rows(kv) == [(b"n", little(expected))]

    engine.run(body)


def test_atomic_operations_compose_with_sets_and_clears(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        await put(kv, n=little(100), m=little(100))

        async def fn(tr: Tr) -> Any:
            tr.add(b"n", 1)
            tr.clear(b"n")
            tr.add(b"n", 5)
            tr.max(b"n", 3)
            tr.set(b"m", little(1))
            tr.add(b"m", 1)
            tr.add(b"m", 1)
            return await tr.get(b"n"), await tr.get(b"m")

        assert await kv.transact(fn) == (little(5), little(3))

    engine.run(body)


# Isolation


def test_concurrent_increments_are_never_lost(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def increment(tr: Tr) -> int:
            count = int(await tr.get(b"count") or b"0") + 1
            tr.set(b"count", b"%d" % count)
            return count

        async def client() -> list[int]:
            return [await kv.transact(increment) for _ in range(10)]

        results = await asyncio.gather(*(client() for _ in range(8)))
        assert sorted(count for result in results for count in result) == list(range(1, 81))
        assert all(result == sorted(result) for result in results)

    engine.run(body)


def test_two_doctors_cannot_both_go_off_call(engine: EngineUnderTest) -> None:
    """Write skew: each transaction reads a range and writes outside what the other writes."""

    async def body(kv: Engine) -> None:
        for round_ in range(10):
            await put(kv, **{"doctor/alice": b"on", "doctor/bob": b"on"})

            async def leave(tr: Tr, who: bytes) -> bool:
                on_call = [key for key, value in await tr.get_range(b"doctor/", b"doctor0") if value == b"on"]
                if len(on_call) < 2:
                    return False
                tr.set(b"doctor/" + who, b"off")
                return True

            left = await asyncio.gather(kv.transact(leave, b"alice"), kv.transact(leave, b"bob"))
            assert sorted(left) == [False, True], round_

    engine.run(body)


def test_a_phantom_insert_into_a_range_that_was_read_conflicts(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def claim(tr: Tr, name: bytes) -> bool:
            if await tr.get_range(b"claim/", b"claim0"):
                return False
            tr.set(b"claim/" + name, b"")
            return True

        won = await asyncio.gather(*(kv.transact(claim, b"%d" % n) for n in range(10)))
        assert sum(won) == 1

    engine.run(body)


def test_an_added_read_conflict_guards_what_was_read_by_snapshot(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def claim(tr: Tr, name: bytes, by_range: bool) -> bool:
            taken = await tr.get(b"claim", snapshot=True)
            if by_range:
                tr.add_read_conflict_range(b"c", b"d")
            else:
                tr.add_read_conflict_key(b"claim")
            if taken is not None:
                return False
            tr.set(b"claim", name)
            return True

        for by_range in (False, True):
            won = await asyncio.gather(*(kv.transact(claim, b"%d" % n, by_range) for n in range(10)))
            assert sum(won) == 1
            await kv.transact(_clear, b"claim")

    engine.run(body)


def test_atomic_adds_all_count(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def bump(tr: Tr) -> None:
            tr.add(b"count", 3)

        await asyncio.gather(*(kv.transact(bump) for _ in range(50)))
        assert await rows(kv) == [(b"count", little(150))]

    engine.run(body)


def test_a_read_sees_one_snapshot(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def move(tr: Tr, n: int) -> None:
            tr.set(b"left", b"%d" % n)
            tr.set(b"right", b"%d" % n)

        async def look(tr: Tr) -> tuple[Any, ...]:
            left = await tr.get(b"left")
            return left, await tr.get(b"right"), [value for _, value in await tr.get_range(b"a", b"z")]

        await kv.transact(move, 0)

        async def reader() -> None:
            for _ in range(20):
                left, right, both = await kv.read(look)
                assert [left, right] == both
                assert left == right

        await asyncio.gather(*(kv.transact(move, n) for n in range(30)), reader(), reader())

    engine.run(body)


def test_what_transact_returned_is_seen_by_the_next_read(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def client(name: bytes) -> None:
            for n in range(10):
                await kv.transact(_set, name, b"%d" % n)
                assert await kv.read(_get, name) == b"%d" % n

        await asyncio.gather(*(client(b"%d" % n) for n in range(6)))

    engine.run(body)


def test_read_versions_grow_with_commits(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def version(tr: Tr) -> int:
            return await tr.read_version()  # type: ignore[no-any-return]

        seen = [await kv.read(version)]
        for n in range(3):
            await put(kv, key=b"%d" % n)
            seen.append(await kv.read(version))
            seen.append(await kv.transact(version))
        assert seen == sorted(seen)
        assert len(set(seen)) >= 4

    engine.run(body)


# Failure of a function


class Refusal(Exception):
    pass


def test_an_exception_undoes_its_own_function_only(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        await put(kv, kept=b"1")

        async def good(tr: Tr, n: int) -> int:
            tr.set(b"good/%02d" % n, b"")
            return n

        async def bad(tr: Tr, n: int) -> None:
            tr.set(b"bad/%02d" % n, b"")
            tr.clear(b"kept")
            tr.add(b"count", 1)
            raise Refusal(n)

        calls = [kv.transact(bad if n % 3 == 0 else good, n) for n in range(30)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        for n, result in enumerate(results):
            if n % 3 == 0:
                assert isinstance(result, Refusal)
                assert result.args == (n,)
            else:
                assert result == n
        expected = [(b"good/%02d" % n, b"") for n in range(30) if n % 3] + [(b"kept", b"1")]
        assert await rows(kv) == expected

    engine.run(body)


def test_an_exception_from_a_read_reaches_its_caller(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def refuse(tr: Tr) -> None:
            await tr.get(b"key")
            raise Refusal

        for run in (kv.read, kv.transact):
            with pytest.raises(Refusal):
                await run(refuse)
        await put(kv, key=b"1")
        assert await kv.read(_get, b"key") == b"1"

    engine.run(body)


def test_a_caller_that_is_cancelled_leaves_the_engine_working(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        calls = [asyncio.ensure_future(kv.transact(_set, b"%02d" % n, b"")) for n in range(20)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
        assert all(result is None for result in results[1::2])
        present = {key for key, _ in await rows(kv)}
        assert present >= {b"%02d" % n for n in range(1, 20, 2)}

    engine.run(body)


# Rules for functions


def test_awaiting_anything_else_is_refused(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def naps(tr: Tr) -> None:
            tr.set(b"key", b"")
            await asyncio.sleep(0)

        async def naps_long(tr: Tr) -> None:
            await asyncio.sleep(60)

        for fn in (naps, naps_long):
            with pytest.raises(ForeignAwait):
                await kv.transact(fn)
        with pytest.raises(ForeignAwait):
            await kv.read(naps_long)
        assert await rows(kv) == []

    engine.run(body)


def test_a_transaction_cannot_be_used_after_its_function(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def leak(tr: Tr) -> Tr:
            return tr

        for tr in (await kv.read(leak), await kv.transact(leak)):
            with pytest.raises(TransactionEnded):
                await tr.get(b"key")
            with pytest.raises(TransactionEnded):
                await tr.get_range(b"a", b"z")
            with pytest.raises(TransactionEnded):
                await tr.read_version()
            with pytest.raises(TransactionEnded):
                await tr.metadata_version()
            with pytest.raises(TransactionEnded):
                tr.set(b"key", b"")
            with pytest.raises(TransactionEnded):
                tr.bump_metadata_version()

    engine.run(body)


def test_reads_are_read_only(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        writes = [
            lambda tr: tr.set(b"k", b""),
            lambda tr: tr.clear(b"k"),
            lambda tr: tr.clear_range(b"a", b"b"),
            lambda tr: tr.add(b"k", 1),
            lambda tr: tr.max(b"k", 1),
            lambda tr: tr.bump_metadata_version(),
            lambda tr: tr.watch(b"k"),
        ]
        for write in writes:

            async def fn(tr: Tr, write: Any = write) -> None:
                write(tr)

            with pytest.raises(ReadOnlyTransaction):
                await kv.read(fn)

    engine.run(body)


# Limits


MISUSES: list[tuple[str, Any, type[BaseException]]] = [
    ("long key in get", lambda tr: tr.get(bytes(10_001)), KeyTooLarge),
    ("long key in set", lambda tr: tr.set(bytes(10_001), b""), KeyTooLarge),
    ("long key in clear", lambda tr: tr.clear(bytes(10_001)), KeyTooLarge),
    ("long key in add", lambda tr: tr.add(bytes(10_001), 1), KeyTooLarge),
    ("long key in max", lambda tr: tr.max(bytes(10_001), 1), KeyTooLarge),
    ("long key in conflict", lambda tr: tr.add_read_conflict_key(bytes(10_001)), KeyTooLarge),
    ("long bound in range", lambda tr: tr.get_range(b"", bytes(10_002)), KeyTooLarge),
    ("system key in get", lambda tr: tr.get(b"\xff"), KeyOutsideLegalRange),
    ("system key in set", lambda tr: tr.set(b"\xff/x", b""), KeyOutsideLegalRange),
    ("system key in watch", lambda tr: tr.watch(b"\xff/x"), KeyOutsideLegalRange),
    ("system bound in range", lambda tr: tr.get_range(b"", b"\xff\0"), KeyOutsideLegalRange),
    ("system bound in clear_range", lambda tr: tr.clear_range(b"", b"\xff\xff"), KeyOutsideLegalRange),
    ("inverted range", lambda tr: tr.get_range(b"b", b"a"), InvertedRange),
    ("inverted clear_range", lambda tr: tr.clear_range(b"b", b"a"), InvertedRange),
    ("inverted conflict", lambda tr: tr.add_read_conflict_range(b"b", b"a"), InvertedRange),
    ("long value", lambda tr: tr.set(b"k", bytes(100_001)), ValueTooLarge),
    ("text key in get", lambda tr: tr.get("k"), TypeError),
    ("text key in set", lambda tr: tr.set("k", b""), TypeError),
    ("text value", lambda tr: tr.set(b"k", "v"), TypeError),
    ("no value", lambda tr: tr.set(b"k", None), TypeError),
    ("text bound", lambda tr: tr.get_range("a", b"z"), TypeError),
    ("large delta", lambda tr: tr.add(b"k", 2**63), OverflowError),
    ("small delta", lambda tr: tr.add(b"k", -(2**63) - 1), OverflowError),
    ("negative maximum", lambda tr: tr.max(b"k", -1), OverflowError),
    ("large maximum", lambda tr: tr.max(b"k", 2**64), OverflowError),
]


@pytest.mark.parametrize(("misuse", "error"), [case[1:] for case in MISUSES], ids=[case[0] for case in MISUSES])
def test_misuse_is_refused_at_the_call(engine: EngineUnderTest, misuse: Any, error: type[BaseException]) -> None:
    async def body(kv: Engine) -> None:
        async def fn(tr: Tr) -> None:
            tr.set(b"before", b"")
            misuse(tr)
            pytest.fail("not refused")

        with pytest.raises(error):
            await kv.transact(fn)
        assert await rows(kv) == []

    engine.run(body)


def test_the_largest_key_and_value_fit(engine: EngineUnderTest) -> None:
    key, value = b"k" * limits.KEY_BYTES, b"v" * limits.VALUE_BYTES

    async def body(kv: Engine) -> None:
        await kv.transact(_set, key, value)
        assert await kv.read(_get, key) == value

        async def around(tr: Tr) -> list[tuple[bytes, bytes]]:
            return await tr.get_range(key, key + b"\0")

        assert await kv.read(around) == [(key, value)]

    engine.run(body)


def test_a_transaction_has_a_size_limit(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def fn(tr: Tr, count: int) -> None:
            for n in range(count):
                tr.set(b"%03d" % n, bytes(100_000))

        with pytest.raises(TransactionTooLarge):
            await kv.transact(fn, 101)
        assert await rows(kv) == []
        await kv.transact(fn, 95)
        assert len(await rows(kv)) == 95

    engine.run(body)


def test_conflict_ranges_count_towards_the_size(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def fn(tr: Tr) -> None:
            tr.set(b"k", b"")
            for n in range(600):
                tr.add_read_conflict_key(b"%09990d" % n)

        with pytest.raises(TransactionTooLarge):
            await kv.transact(fn)

    engine.run(body)


def test_a_transaction_has_five_seconds(engine_in_virtual_time: EngineUnderTest) -> None:
    engine = engine_in_virtual_time
    clock = ManualClock()

    async def body(kv: Engine) -> None:
        async def slow(tr: Tr) -> None:
            await tr.get(b"key")
            tr.set(b"key", b"")
            clock.advance(limits.TRANSACTION_NS + 1)

        async def slow_between_reads(tr: Tr) -> None:
            await tr.get(b"key")
            clock.advance(limits.TRANSACTION_NS + 1)
            await tr.get_range(b"a", b"z")

        with pytest.raises(TransactionTooOld):
            await kv.transact(slow)
        with pytest.raises(TransactionTooOld):
            await kv.transact(slow_between_reads)
        with pytest.raises(TransactionTooOld):
            await kv.read(slow_between_reads)
        assert await rows(kv) == []

    engine.run(body, clock=clock)


# The metadata version


def test_the_metadata_version_changes_with_each_bump_and_only_then(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def bump(tr: Tr) -> None:
            tr.bump_metadata_version()

        seen = [await kv.read(_metadata_version)]
        for n in range(4):
            await kv.transact(bump)
            seen.append(await kv.read(_metadata_version))
            await put(kv, key=b"%d" % n)
            assert await kv.transact(_metadata_version) == seen[-1]
        assert len(set(seen)) == 5
        assert all(isinstance(version, bytes) for version in seen)

    engine.run(body)


def test_a_bump_commits_or_not_with_its_transaction(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def bump_and_fail(tr: Tr) -> None:
            tr.bump_metadata_version()
            tr.bump_metadata_version()
            raise Refusal

        before = await kv.read(_metadata_version)
        with pytest.raises(Refusal):
            await kv.transact(bump_and_fail)
        assert await kv.read(_metadata_version) == before

    engine.run(body)


def test_a_bumped_metadata_version_cannot_be_read_before_the_commit(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def fn(tr: Tr) -> bytes:
            tr.bump_metadata_version()
            return await tr.metadata_version()  # type: ignore[no-any-return]

        with pytest.raises(Unreadable):
            await kv.transact(fn)

    engine.run(body)


def test_the_metadata_version_is_no_key(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def fn(tr: Tr) -> None:
            tr.bump_metadata_version()
            tr.clear_range(b"", b"\xff")

        await kv.transact(fn)
        assert await rows(kv) == []
        assert await kv.read(_metadata_version) != b""

    engine.run(body)


# Watches


def test_a_watch_tells_of_a_change(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        watch = await kv.transact(_watch, b"key")
        waiting = asyncio.ensure_future(watch.wait(30))
        await put(kv, other=b"")
        await put(kv, key=b"1")
        assert await waiting is True

    engine.run(body)


def test_a_watch_sees_a_change_made_before_it_is_waited_for(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        watch = await kv.transact(_watch, b"key")
        await put(kv, key=b"1")
        assert await watch.wait(30) is True

    engine.run(body)


def test_a_watch_starts_from_its_own_transactions_write(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        async def write_and_watch(tr: Tr) -> Any:
            tr.set(b"key", b"mine")
            return tr.watch(b"key")

        watch = await kv.transact(write_and_watch)
        assert await watch.wait(0.05) is False
        await put(kv, key=b"other")
        assert await watch.wait(30) is True

    engine.run(body)


def test_a_cancelled_watch_returns_false(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        watch = await kv.transact(_watch, b"key")
        waiting = asyncio.ensure_future(watch.wait(30))
        await asyncio.sleep(0)
        watch.cancel()
        assert await waiting is False
        assert await watch.wait(30) is False

    engine.run(body)


# Closing


def test_a_closed_engine_refuses(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        await kv.close()
        await kv.close()
        with pytest.raises(EngineClosed):
            await kv.read(_get, b"key")
        with pytest.raises(EngineClosed):
            await kv.transact(_get, b"key")

    engine.run(body)


def test_closing_ends_a_pending_wait(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        watch = await kv.transact(_watch, b"key")
        waiting = asyncio.ensure_future(watch.wait(600))
        await asyncio.sleep(0)
        await kv.close()
        async with asyncio.timeout(30):
            assert await waiting is False

    engine.run(body)


def test_closing_finishes_what_was_accepted(engine: EngineUnderTest) -> None:
    async def body(kv: Engine) -> None:
        calls = [asyncio.ensure_future(kv.transact(_set, b"%02d" % n, b"")) for n in range(20)]
        await asyncio.sleep(0)
        await kv.close()
        await asyncio.gather(*calls)

    engine.run(body)


# Faults


@pytest.mark.parametrize("committed", [False, True])
def test_an_injected_ambiguous_timeout_surfaces_and_took_effect_or_not(
    engine: EngineUnderTest, committed: bool
) -> None:
    faults = Faults()

    async def body(kv: Engine) -> None:
        faults.fail_commit(TransactionTimedOut("injected"), committed=committed)
        with pytest.raises(AmbiguousCommit):
            await put(kv, key=b"1")
        assert await kv.read(_get, b"key") == (b"1" if committed else None)
        await put(kv, key=b"2")
        assert await kv.read(_get, b"key") == b"2"

    engine.run(body, faults=faults)


@pytest.mark.parametrize("committed", [False, True])
def test_an_unknown_commit_takes_effect_once_or_says_so(engine: EngineUnderTest, committed: bool) -> None:
    faults = Faults()

    async def body(kv: Engine) -> None:
        async def increment(tr: Tr) -> int:
            count = int(await tr.get(b"count") or b"0") + 1
            tr.set(b"count", b"%d" % count)
            return count

        assert await kv.transact(increment) == 1
        faults.fail_commit(CommitUnknown("injected"), committed=committed)
        try:
            assert await kv.transact(increment) == 2
        except CommitUnknown:
            assert engine.name in ("sqlite", "sqlite-afar")
            assert await kv.read(_get, b"count") == (b"2" if committed else b"1")
        else:
            assert await kv.read(_get, b"count") == b"2"

    engine.run(body, faults=faults)


def test_a_retryable_failure_is_retried(engine: EngineUnderTest) -> None:
    faults = Faults()

    async def body(kv: Engine) -> None:
        faults.fail_commit(NotCommitted("injected"))
        faults.fail_commit(NotCommitted("injected"))
        await put(kv, key=b"1")
        assert await kv.read(_get, b"key") == b"1"

    engine.run(body, faults=faults)


def test_the_nth_commit_can_be_failed(engine: EngineUnderTest) -> None:
    faults = Faults()

    async def body(kv: Engine) -> None:
        faults.fail_commit(TransactionTimedOut("injected"), after=2)
        outcomes = []
        for n in range(4):
            try:
                await kv.transact(_set, b"%d" % n, b"")
                outcomes.append(True)
            except TransactionTimedOut:
                outcomes.append(False)
        assert outcomes == [True, True, False, True]
        assert [key for key, _ in await rows(kv)] == [b"0", b"1", b"3"]

    engine.run(body, faults=faults)


def test_an_engine_that_is_cut_off_says_so_and_comes_back(engine: EngineUnderTest) -> None:
    faults = Faults()

    async def body(kv: Engine) -> None:
        faults.cut_off = True
        with pytest.raises(EngineUnavailable):
            await kv.read(_get, b"key")
        with pytest.raises(EngineUnavailable):
            await put(kv, key=b"1")
        faults.cut_off = False
        assert await kv.read(_get, b"key") is None
        await put(kv, key=b"1")

    engine.run(body, faults=faults)


def test_delays_are_added_to_reads_and_commits(engine: EngineUnderTest) -> None:
    faults = Faults(read_delay_s=0.001, commit_delay_s=0.002)

    async def body(kv: Engine) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        await put(kv, key=b"1")
        await kv.read(_get, b"key")
        if engine.name != "memory":  # whose time is virtual
            assert loop.time() - start >= 0.004

    engine.run(body, faults=faults)


async def _get(tr: Tr, key: bytes) -> bytes | None:
    return await tr.get(key)  # type: ignore[no-any-return]


async def _set(tr: Tr, key: bytes, value: bytes) -> None:
    tr.set(key, value)


async def _clear(tr: Tr, key: bytes) -> None:
    tr.clear(key)


async def _watch(tr: Tr, key: bytes) -> Any:
    await tr.get(key)
    return tr.watch(key)


async def _metadata_version(tr: Tr) -> bytes:
    return await tr.metadata_version()  # type: ignore[no-any-return]
