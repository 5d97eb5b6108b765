"""Engines against a dict: any sequence of transactions, and concurrent ones in some order."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tigrislike.metadata.kv import Engine
from tigrislike.metadata.kv.limits import added, maximum

from .engines import ENGINES, EngineUnderTest
from .memory_engine import MemoryEngine, RandomFaults

KEYS = st.sampled_from([b"", b"a", b"a\0", b"ab", b"b", b"b\xff", b"c"])
VALUES = st.binary(max_size=10)
OPERATIONS = st.one_of(
    st.tuples(st.just("set"), KEYS, VALUES),
    st.tuples(st.just("clear"), KEYS),
    st.tuples(st.just("clear_range"), KEYS, KEYS),
    st.tuples(st.just("add"), KEYS, st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just("max"), KEYS, st.integers(0, 2**64 - 1)),
    st.tuples(st.just("get"), KEYS, st.booleans()),
    st.tuples(st.just("get_range"), KEYS, KEYS, st.integers(0, 3), st.booleans(), st.booleans()),
    st.just(("fail",)),
)
TRANSACTIONS = st.lists(st.lists(OPERATIONS, max_size=8), max_size=6)


class Failed(Exception):
    pass


def run_on_model(model: dict[bytes, bytes], operations: list[tuple[Any, ...]]) -> list[Any] | None:
    """What the operations read, `model` changed; None and unchanged if they fail."""
    state = dict(model)
    found: list[Any] = []
    for name, *rest in operations:
        if name == "fail":
            return None
        if name == "set":
            state[rest[0]] = rest[1]
        elif name == "clear":
            state.pop(rest[0], None)
        elif name == "clear_range":
            for key in [key for key in state if min(rest) <= key < max(rest)]:
                del state[key]
        elif name == "add":
            state[rest[0]] = added(state.get(rest[0]), rest[1])
        elif name == "max":
            state[rest[0]] = maximum(state.get(rest[0]), rest[1])
        elif name == "get":
            found.append(state.get(rest[0]))
        else:
            rows = sorted((key, value) for key, value in state.items() if min(rest[:2]) <= key < max(rest[:2]))
            rows = rows[::-1] if rest[3] else rows
            found.append(rows[: rest[2]] if rest[2] else rows)
    model.clear()
    model.update(state)
    return found


async def run_on_engine(tr: Any, operations: list[tuple[Any, ...]]) -> list[Any]:
    pending = []
    for name, *rest in operations:
        if name == "fail":
            raise Failed
        if name == "get":
            pending.append(tr.get(rest[0], snapshot=rest[1]))
        elif name == "get_range":
            begin, end = sorted(rest[:2])
            pending.append(tr.get_range(begin, end, limit=rest[2], reverse=rest[3], snapshot=rest[4]))
        elif name == "clear_range":
            tr.clear_range(*sorted(rest))
        else:
            getattr(tr, name)(*rest)
    return [await read for read in pending]


async def everything(tr: Any) -> dict[bytes, bytes]:
    return dict(await tr.get_range(b"", b"\xfd"))


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(transactions=TRANSACTIONS)
def test_any_sequence_of_transactions_does_what_a_dict_would(name: str, transactions: list[Any]) -> None:
    async def body(kv: Engine) -> None:
        model: dict[bytes, bytes] = {}
        for operations in transactions:
            expected = run_on_model(model, operations)
            if expected is None:
                with pytest.raises(Failed):
                    await kv.transact(run_on_engine, operations)
            else:
                assert await kv.transact(run_on_engine, operations) == expected
            assert await kv.read(everything) == model

    with tempfile.TemporaryDirectory() as directory:
        EngineUnderTest(name, Path(directory)).run(body)


SMALL_KEYS = st.sampled_from([b"a", b"b", b"c"])
SMALL_OPERATIONS = st.one_of(
    st.tuples(st.just("set"), SMALL_KEYS, st.sampled_from([b"1", b"2"])),
    st.tuples(st.just("clear"), SMALL_KEYS),
    st.tuples(st.just("add"), SMALL_KEYS, st.integers(1, 3)),
    st.tuples(st.just("clear_range"), SMALL_KEYS, SMALL_KEYS),
    st.tuples(st.just("get"), SMALL_KEYS, st.just(False)),
    st.tuples(st.just("get_range"), SMALL_KEYS, st.just(b"d"), st.integers(0, 1), st.booleans(), st.just(False)),
)


def explained_by_some_order(histories: list[list[Any]], results: list[Any], final: dict[bytes, bytes]) -> bool:
    """Whether running the transactions one at a time, in some order, gives these results and this end."""
    for order in itertools.permutations(range(len(histories))):
        model: dict[bytes, bytes] = {}
        if all(run_on_model(model, histories[n]) == results[n] for n in order) and model == final:
            return True
    return False


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories=st.lists(st.lists(SMALL_OPERATIONS, min_size=1, max_size=4), min_size=2, max_size=4))
def test_concurrent_transactions_are_explained_by_some_order(name: str, histories: list[Any]) -> None:
    async def body(kv: Engine) -> None:
        results = await asyncio.gather(*(kv.transact(run_on_engine, operations) for operations in histories))
        assert explained_by_some_order(histories, results, await kv.read(everything))

    with tempfile.TemporaryDirectory() as directory:
        EngineUnderTest(name, Path(directory)).run(body)


@settings(max_examples=150, deadline=None)
@given(
    histories=st.lists(st.lists(SMALL_OPERATIONS, min_size=1, max_size=4), min_size=2, max_size=4),
    seed=st.integers(0, 10**6),
)
def test_faults_do_not_show_in_what_transactions_do(histories: list[Any], seed: int) -> None:
    """Every retryable error, and unknown commits of all three outcomes, yet each transaction takes effect once."""

    async def main() -> None:
        kv = MemoryEngine(seed=seed, faults=RandomFaults(seed, read=0.05, refused=0.1, unknown=0.3))
        results = await asyncio.gather(*(kv.transact(run_on_engine, operations) for operations in histories))
        assert explained_by_some_order(histories, results, await kv.read(everything))
        await kv.close()
        assert explained_by_some_order(histories, results, kv.dump())  # nor does anything come late

    asyncio.run(main())
