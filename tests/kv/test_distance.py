"""A database at a distance: what it costs, and what happens while it is cut off."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tigrislike.config import ConfigError, load_settings
from tigrislike.metadata.kv import (
    CommitUnknown,
    Engine,
    EngineError,
    EngineUnavailable,
    Faults,
    Transaction,
    TransactionTimedOut,
    open_engine,
)
from tigrislike.metadata.kv.distance import DistantEngine
from tigrislike.metadata.kv.sqlite import SqliteEngine

from .memory_engine import MemoryEngine

ROUND_TRIP_S = 0.1


async def put(tr: Transaction, value: bytes) -> bytes:
    tr.set(b"key", value)
    return value


async def get(tr: Transaction) -> bytes | None:
    return await tr.get(b"key")


async def watch(tr: Transaction) -> Any:
    return tr.watch(b"key")


class Refused(Exception):
    """A transaction function's own."""


async def refuse(tr: Transaction) -> None:
    tr.set(b"key", b"refused")
    raise Refused


@asynccontextmanager
async def afar(
    directory: Path, round_trip_s: float = ROUND_TRIP_S, timeout_s: float = 0.2, faults: Faults | None = None
) -> AsyncIterator[tuple[Engine, Engine]]:
    """The engine from afar, and from near."""
    near = await SqliteEngine.open(str(directory / "metadata.db"), faults=faults)
    try:
        yield DistantEngine(near, round_trip_s, cut_while=directory / "cut", timeout_s=timeout_s), near
    finally:
        await near.close()


@pytest.mark.parametrize(
    ("round_trips", "operation"),
    [
        (1, lambda kv: kv.read(get)),
        (1, lambda kv: kv.read(get, max_age_ns=10**9)),
        (1, lambda kv: kv.sealed()),
        (3, lambda kv: kv.transact(put, b"value")),
        (3, lambda kv: kv.transact(get)),
        (3, lambda kv: kv.background.transact(put, b"value")),
        (3, lambda kv: kv.transact_past_seal(put, b"value")),
        (3, lambda kv: kv.seal("moving")),
        (3, lambda kv: kv.unseal()),
    ],
)
def test_an_operation_takes_its_round_trips(
    tmp_path: Path, round_trips: int, operation: Callable[[Engine], Awaitable[Any]]
) -> None:
    async def body() -> None:
        async with afar(tmp_path) as (kv, _):
            began = time.monotonic()
            await operation(kv)
            assert time.monotonic() - began >= round_trips * ROUND_TRIP_S

    asyncio.run(body())


def test_round_trips_pass_side_by_side(tmp_path: Path) -> None:
    async def body() -> None:
        async with afar(tmp_path) as (kv, _):
            began = time.monotonic()
            await asyncio.gather(*[kv.read(get) for _ in range(200)])
            assert time.monotonic() - began < 200 * ROUND_TRIP_S / 2

    asyncio.run(body())


def test_a_commit_is_seen_by_whoever_is_near_before_it_returns_afar(tmp_path: Path) -> None:
    async def body() -> None:
        async with afar(tmp_path, round_trip_s=0.4) as (kv, near):
            seen = await near.transact(watch)
            committing = asyncio.create_task(kv.transact(put, b"value"))
            assert await seen.wait(30)
            assert not committing.done()
            assert await near.read(get) == b"value"
            assert await committing == b"value"

    asyncio.run(body())


def test_a_watch_fires_late_and_within_its_time_or_not_at_all(tmp_path: Path) -> None:
    async def body() -> None:
        async with afar(tmp_path) as (kv, near):
            watched = await kv.transact(watch)
            waiting = asyncio.create_task(watched.wait(30))
            began = time.monotonic()
            await near.transact(put, b"value")
            assert await waiting is True
            assert time.monotonic() - began >= ROUND_TRIP_S / 2
            assert await watched.wait(ROUND_TRIP_S / 4) is False
            assert await watched.wait(30) is True

    asyncio.run(body())


def test_watches_are_silent_while_cut_off_and_tell_after_the_healing(tmp_path: Path) -> None:
    async def body() -> None:
        async with afar(tmp_path) as (kv, near):
            watched = await kv.transact(watch)
            (tmp_path / "cut").touch()
            await near.transact(put, b"value")
            assert await watched.wait(0.2) is False
            waiting = asyncio.create_task(watched.wait(30))
            (tmp_path / "cut").unlink()
            assert await waiting is True

    asyncio.run(body())


def test_a_watch_can_be_cancelled_while_its_hint_is_on_its_way(tmp_path: Path) -> None:
    async def body() -> None:
        async with afar(tmp_path, round_trip_s=0.01) as (kv, near):
            watched = await kv.transact(watch)
            (tmp_path / "cut").touch()
            await near.transact(put, b"value")
            fired = await near.transact(watch)
            waiting = asyncio.create_task(watched.wait(30))
            assert await fired.wait(0.1) is False  # the poll of watches has gone round meanwhile
            watched.cancel()
            assert await waiting is False

            again = asyncio.create_task((await near.transact(watch)).wait(30))
            await asyncio.sleep(0)
            again.cancel()
            with pytest.raises(asyncio.CancelledError):
                await again

    asyncio.run(body())


@pytest.mark.parametrize(
    "operation",
    [
        lambda kv: kv.read(get),
        lambda kv: kv.transact(put, b"lost"),
        lambda kv: kv.background.transact(put, b"lost"),
        lambda kv: kv.transact_past_seal(put, b"lost"),
        lambda kv: kv.seal("lost"),
        lambda kv: kv.sealed(),
    ],
)
def test_what_is_asked_while_cut_off_is_unavailable_in_its_time_and_did_nothing(
    tmp_path: Path, operation: Callable[[Engine], Awaitable[Any]]
) -> None:
    async def body() -> None:
        async with afar(tmp_path) as (kv, near):
            (tmp_path / "cut").touch()
            began = time.monotonic()
            with pytest.raises(EngineUnavailable, match="cut off"):
                await operation(kv)
            assert time.monotonic() - began >= 0.2
            assert await near.read(get) is None
            assert await near.sealed() is None
            (tmp_path / "cut").unlink()
            assert await kv.transact(put, b"healed") == b"healed"

    asyncio.run(body())


def test_who_waits_goes_on_when_the_wire_is_whole_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with afar(tmp_path, timeout_s=60) as (kv, _):
            (tmp_path / "cut").touch()
            waiting = asyncio.create_task(kv.transact(put, b"value"))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(waiting), 0.1)
            (tmp_path / "cut").unlink()
            assert await waiting == b"value"

    asyncio.run(body())


@pytest.mark.parametrize(
    ("fn", "args", "raised", "kept"),
    [
        (put, (b"value",), TransactionTimedOut, b"value"),  # an answer lost: the commit took effect
        (refuse, (), EngineUnavailable, None),
    ],
)
def test_an_answer_lost_on_its_way_back_says_what_may_have_happened(
    tmp_path: Path, fn: Any, args: tuple[bytes, ...], raised: type[EngineError], kept: bytes | None
) -> None:
    async def body() -> None:
        async with afar(tmp_path, round_trip_s=0) as (kv, near):
            # Without a distance nothing suspends between the look on the way there and the function.
            def cut_on_the_way(tr: Transaction, *args: bytes) -> Awaitable[object]:
                (tmp_path / "cut").touch()
                return fn(tr, *args)  # type: ignore[no-any-return]

            with pytest.raises(raised):
                await kv.transact(cut_on_the_way, *args)
            assert await near.read(get) == kept

            (tmp_path / "cut").unlink()
            with pytest.raises(EngineUnavailable):
                await kv.read(lambda tr: cut_on_the_way_of(tmp_path, tr))

    asyncio.run(body())


def cut_on_the_way_of(directory: Path, tr: Transaction) -> Awaitable[bytes | None]:
    (directory / "cut").touch()
    return get(tr)


def test_a_doubtful_commit_stays_doubtful_when_its_answer_is_lost(tmp_path: Path) -> None:
    faults = Faults()

    async def body() -> None:
        async with afar(tmp_path, round_trip_s=0, faults=faults) as (kv, _):
            faults.fail_commit(CommitUnknown("injected"), committed=True)
            with pytest.raises(CommitUnknown):
                await kv.transact(put, b"value")

            def cut_on_the_way(tr: Transaction) -> Awaitable[bytes]:
                (tmp_path / "cut").touch()
                return put(tr, b"again")

            faults.fail_commit(CommitUnknown("injected"), committed=True)
            with pytest.raises(TransactionTimedOut):
                await kv.transact(cut_on_the_way)

    asyncio.run(body())


def test_the_engine_for_background_work_is_as_far_where_it_is_another() -> None:
    class Engines(MemoryEngine):
        other: Engine

        @property
        def background(self) -> Any:
            return self.other

    async def body() -> None:
        near = Engines(seed=1)
        near.other = MemoryEngine(seed=2)
        kv = DistantEngine(near, ROUND_TRIP_S)
        began = time.monotonic()
        assert await kv.background.read(get) is None
        assert time.monotonic() - began >= ROUND_TRIP_S
        await near.other.close()
        await kv.close()

    asyncio.run(body())


def test_a_url_says_how_far_the_file_is(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/metadata.db"

    async def body() -> None:
        kv = await open_engine(f"{url}?round-trip=100ms&cut-while={tmp_path}/c%20ut&timeout=10ms")
        try:
            began = time.monotonic()
            assert await kv.read(get) is None
            assert time.monotonic() - began >= 0.1
            (tmp_path / "c ut").touch()
            with pytest.raises(EngineUnavailable, match="c ut"):
                await kv.read(get)
            await kv.checkpoint()
        finally:
            await kv.close()
        near = await open_engine(url)
        assert type(near) is SqliteEngine  # nothing is added where nothing is asked for
        await near.close()

    asyncio.run(body())


@pytest.mark.parametrize(
    "query", ["round-trip=far", "round-trip=1s&round-trip=1s", "cut-while=", "prefix=x", "timeout", "timeout=-1"]
)
def test_a_url_that_makes_no_sense_is_refused_by_the_engine_and_among_settings(tmp_path: Path, query: str) -> None:
    url = f"sqlite://{tmp_path}/metadata.db?{query}"
    with pytest.raises(ValueError, match="metadata URL"):
        asyncio.run(open_engine(url))
    with pytest.raises(ConfigError, match="setting metadata"):
        load_settings({"metadata": url}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_has_a_distance_of_its_own() -> None:
    with pytest.raises(ValueError, match="prefix"):
        asyncio.run(open_engine("fdb:///nowhere?round-trip=80ms"))


def test_settings_see_the_file_of_a_url_with_a_distance(tmp_path: Path) -> None:
    settings = load_settings({"metadata": f"sqlite://{tmp_path}/m.db?round-trip=80ms"}, {})
    assert settings.sqlite_path == tmp_path / "m.db"
