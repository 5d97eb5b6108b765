"""Copying a store's metadata to another engine: whole, verified, and wherever it is cut off, to be gone on with or
given up, with at most one of the two stores open."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import fresh_url
from tests.kv.memory_engine import MemoryEngine, RandomFaults
from tigrislike.admin import copy
from tigrislike.admin.copy import Copied, CopyError, Step, Store, abort_copy, copy_metadata
from tigrislike.admin.rows import Digest, digest
from tigrislike.metadata import Metadata
from tigrislike.metadata.errors import ClockBehind, StoreIncomplete
from tigrislike.metadata.kv import (
    CommitUnknown,
    Engine,
    EngineUnavailable,
    Faults,
    ManualClock,
    StoreSealed,
    SystemClock,
    open_engine,
)
from tigrislike.metadata.kv.seal import OWN, SEALED
from tigrislike.metadata.migrating import FORMAT
from tigrislike.metadata.records import Draft
from tigrislike.metadata.secrets import MasterKey

Tr = Any

MASTER = MasterKey(bytes(32))
NODE = bytes(16)


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small store takes many transactions."""
    monkeypatch.setattr(copy, "CHUNK_ROWS", 7)
    monkeypatch.setattr(copy, "IN_FLIGHT", 3)


async def opened(engine: Engine, master: MasterKey = MASTER) -> Metadata:
    return await Metadata.open(engine, master_key=master, node_id=NODE, region="here")


def draft(data: bytes) -> Draft:
    return Draft(len(data), '"etag"', inline=data)


async def populate(engine: Engine, objects: int = 40, seed: int = 0) -> Metadata:
    """A store with objects of both kinds of bucket, some of them deleted, and keys of every shape."""
    rng = random.Random(seed)
    metadata = await opened(engine)
    await metadata.ensure_root()
    plain = await metadata.create_bucket("plain", "root")
    await metadata.create_bucket("versioned", "root")
    versioned = await metadata.set_versioning("versioned", "Enabled")
    keys = ["", "\x00", "a\x00b", "ü/é", "k" * 1000, *(f"key/{n:04d}" for n in range(objects))]
    for key in keys[1:]:
        await metadata.put_object(plain, key, draft(rng.randbytes(rng.randrange(300))))
        await metadata.put_object(versioned, key, draft(rng.randbytes(20)))
    for key in rng.sample(keys[5:], min(5, objects)):
        await metadata.delete_object(plain, key)
        await metadata.delete_object(versioned, key)
    return metadata


async def digest_of(engine: Engine) -> Digest:
    return [found async for found in digest(engine)][-1]


async def all_rows(engine: Engine) -> dict[bytes, bytes]:
    """Rows without the prefix and without what is the engine's own."""

    async def every(tr: Tr) -> list[tuple[bytes, bytes]]:
        rows: list[tuple[bytes, bytes]] = await tr.get_range(engine.prefix, engine.prefix + OWN)
        return rows

    return {key[len(engine.prefix) :]: value for key, value in await engine.read(every)}


class Pair:
    """Source and target of a copy, and how to open them again."""

    def __init__(self, source: Engine, target: Engine) -> None:
        self.source = Store(source, "sqlite:///source")
        self.target = Store(target, "fdb:///target")

    async def copy(self, **options: Any) -> Copied:
        return await copy_metadata(self.source, self.target, **options)

    async def abort(self, *, to: bool = True, force: bool = False) -> str:
        return await abort_copy(self.source, self.target if to else None, force=force)


def run(body: Callable[[Pair], Awaitable[None]], kinds: tuple[str, str], directory: Path) -> None:
    @contextlib.asynccontextmanager
    async def engine(kind: str, name: str) -> AsyncIterator[Engine]:
        with contextlib.ExitStack() as stack:
            if kind == "memory":
                made: Engine = MemoryEngine(clock=SystemClock())
            else:
                url = f"sqlite://{directory}/{name}.db" if kind == "sqlite" else stack.enter_context(fresh_url())
                made = await open_engine(url)
            try:
                yield made
            finally:
                await made.close()

    async def main() -> None:
        async with engine(kinds[0], "source") as source, engine(kinds[1], "target") as target:
            await body(Pair(source, target))

    asyncio.run(main())


KINDS = [
    ("sqlite", "sqlite"),
    ("memory", "sqlite"),
    ("sqlite", "memory"),
    pytest.param(("sqlite", "fdb"), marks=pytest.mark.fdb),
    pytest.param(("fdb", "sqlite"), marks=pytest.mark.fdb),
    pytest.param(("fdb", "fdb"), marks=pytest.mark.fdb),
]


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_a_copy_holds_every_row_and_takes_over(kinds: tuple[str, str], tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        before = await populate(pair.source.engine)
        plain = await before.bucket("plain")
        usage = await before.usage(plain)
        expected = await all_rows(pair.source.engine)
        steps: list[Step] = []
        copied = await pair.copy(report=steps.append)
        assert await all_rows(pair.target.engine) == expected
        assert copied.rows == len(expected)
        assert copied.bytes == sum(len(key) + len(value) for key, value in expected.items())
        assert copied.digest == (await digest_of(pair.target.engine)).digest
        assert copied.resumed_rows == 0
        assert {step.phase for step in steps} == {"copy", "verify"}
        assert [step.rows for step in steps if step.phase == "copy"][-1] == copied.rows

        # The target takes writes, and the source does not, and says why.
        after = await opened(pair.target.engine)
        assert await pair.target.engine.sealed() is None
        assert after.cluster == before.cluster
        plain = await after.bucket("plain")
        assert await after.usage(plain) == usage
        await after.put_object(plain, "new", draft(b"new"))
        assert (await after.usage(plain)).objects == usage.objects + 1, "counters go on from where they were"
        assert (await after.find_object(plain, "new")).inline == b"new"
        assert await pair.source.engine.sealed() == "the store has moved to fdb:///target"
        with pytest.raises(StoreSealed):
            await before.put_object(await before.bucket("plain"), "lost", draft(b""))
        assert (await before.find_object(await before.bucket("plain"), "ü/é")).inline is not None, "reads go on"

    run(body, kinds, tmp_path)


def test_a_store_may_go_round_and_come_back(tmp_path: Path) -> None:
    async def main() -> None:
        urls = [f"sqlite://{tmp_path}/{n}.db" for n in range(3)]
        engine = await open_engine(urls[0])
        await populate(engine)
        expected = await all_rows(engine)
        await engine.close()
        for one, two in itertools.pairwise(urls):
            source, target = await open_engine(one), await open_engine(two)
            await copy_metadata(Store(source, one), Store(target, two))
            assert await all_rows(target) == expected
            await source.close()
            await target.close()

    asyncio.run(main())


def test_a_backup_leaves_the_source_open(tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        metadata = await populate(pair.source.engine)
        expected = await all_rows(pair.source.engine)
        await pair.copy(keep_source=True)
        assert await pair.source.engine.sealed() is None
        await metadata.put_object(await metadata.bucket("plain"), "later", draft(b"later"))
        assert await all_rows(pair.target.engine) == expected
        await opened(pair.target.engine)

    run(body, ("sqlite", "memory"), tmp_path)


def test_the_source_is_read_only_while_it_is_copied_and_the_target_closed(tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        metadata = await populate(pair.source.engine)
        plain = await metadata.bucket("plain")
        seen: list[BaseException] = []

        async def look() -> None:
            with pytest.raises(StoreSealed) as refused:
                await metadata.put_object(plain, "during", draft(b""))
            seen.append(refused.value)
            with pytest.raises(StoreIncomplete, match="sqlite:///source") as incomplete:
                await opened(pair.target.engine)
            seen.append(incomplete.value)

        looks: list[asyncio.Task[None]] = []
        await pair.copy(report=lambda step: looks.append(asyncio.ensure_future(look())) if not looks else None)
        await asyncio.gather(*looks)
        assert len(seen) == 2

    # Memory's scheduler lets the looks in between; the copy has many steps left when they begin.
    run(body, ("sqlite", "memory"), tmp_path)


# -- What is refused


def test_a_target_with_a_store_is_refused_before_anything_is_sealed(tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        await populate(pair.source.engine, 5)
        await opened(pair.target.engine)
        with pytest.raises(CopyError, match="fdb:///target is not empty"):
            await pair.copy()
        assert await pair.source.engine.sealed() is None

    run(body, ("sqlite", "memory"), tmp_path)


def test_a_store_cannot_be_copied_onto_itself(tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        await populate(pair.source.engine, 5)
        with pytest.raises(CopyError, match="is not empty"):
            await copy_metadata(pair.source, Store(pair.source.engine, "sqlite:///same"))
        assert await pair.source.engine.sealed() is None

    run(body, ("sqlite", "memory"), tmp_path)


def test_a_source_without_a_store_is_refused(tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        with pytest.raises(CopyError, match="there is no store in sqlite:///source"):
            await pair.copy()
        assert await pair.target.engine.sealed() is None

    run(body, ("memory", "memory"), tmp_path)


def test_a_source_that_shares_its_place_is_refused(tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        await populate(pair.source.engine, 5)

        async def intrude(tr: Tr) -> None:
            tr.set(b"somebody else's", b"")

        await pair.source.engine.transact(intrude)
        with pytest.raises(CopyError, match='holds more than a store, for instance the key b"somebody else\'s"'):
            await pair.copy()

    run(body, ("memory", "memory"), tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(pair: Pair) -> None:
        await populate(pair.source.engine, 1)
        monkeypatch.setattr(copy, "FORMAT", 0)
        with pytest.raises(CopyError, match=f"keyspace format {FORMAT}, this program knows up to 0"):
            await pair.copy()

    run(body, ("memory", "memory"), tmp_path)


def test_an_unfinished_copy_of_another_store_is_left_alone(tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        await populate(pair.source.engine, 5)
        await half_copy(pair)
        other = MemoryEngine(clock=SystemClock())
        await populate(other, 1)
        with pytest.raises(CopyError, match="unfinished copy of another store, sqlite:///source"):
            await copy_metadata(Store(other, "sqlite:///other"), pair.target)
        assert await other.sealed() is None
        with pytest.raises(CopyError, match="unfinished copy of another store"):
            await abort_copy(Store(other, "sqlite:///other"), pair.target)
        with pytest.raises(CopyError, match="is itself an unfinished copy"):
            await copy_metadata(pair.target, Store(MemoryEngine(), "sqlite:///third"))
        await pair.copy()

    run(body, ("memory", "memory"), tmp_path)


def test_a_source_under_way_elsewhere_or_moved_or_sealed_by_others_is_refused(tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        await populate(pair.source.engine, 5)
        third = Store(MemoryEngine(clock=SystemClock()), "fdb:///third")
        await half_copy(pair)
        with pytest.raises(CopyError, match="is being copied to fdb:///target: go on with that"):
            await copy_metadata(pair.source, third)
        await pair.copy()
        with pytest.raises(CopyError, match="has moved to fdb:///target"):
            await copy_metadata(pair.source, third)
        await third.engine.seal("maintenance")
        with pytest.raises(CopyError, match="sealed, but by no copy: maintenance"):
            await abort_copy(third, None)

        with pytest.raises(CopyError, match="there is no store"):
            await copy_metadata(third, Store(MemoryEngine(), "fdb:///fourth"))

    run(body, ("memory", "memory"), tmp_path)


def test_a_store_sealed_for_another_reason_is_not_copied(tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        await populate(pair.source.engine, 5)
        await pair.source.engine.seal("maintenance")
        with pytest.raises(CopyError, match="is sealed: maintenance"):
            await pair.copy()

    run(body, ("memory", "memory"), tmp_path)


def test_a_moved_store_whose_target_is_gone_is_not_quietly_copied_again(tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        metadata = await populate(pair.source.engine, 5)
        await pair.copy()
        pair.target = Store(MemoryEngine(clock=SystemClock()), "fdb:///target")
        with pytest.raises(CopyError, match="has moved to fdb:///target, but that is not there"):
            await pair.copy()
        with pytest.raises(CopyError, match="nothing to abort"):
            await pair.abort(to=False)
        assert "takes writes again" in await pair.abort(to=False, force=True)
        await metadata.put_object(await metadata.bucket("plain"), "again", draft(b""))

    run(body, ("memory", "memory"), tmp_path)


# -- Verifying


def test_a_row_that_is_not_as_it_was_keeps_the_target_closed(tmp_path: Path) -> None:
    async def change(tr: Tr) -> None:
        ((key, value),) = await tr.get_range(b"\x02", b"\x03", limit=1)
        tr.set(key, value[:-1] + bytes([value[-1] ^ 1]))

    async def lose(tr: Tr) -> None:
        ((key, _),) = await tr.get_range(b"\x02", b"\x03", limit=1)
        tr.clear(key)

    async def invent(tr: Tr) -> None:
        tr.set(b"\x02access\x00", b"")

    async def body(pair: Pair) -> None:
        metadata = await populate(pair.source.engine)
        for spoil in (change, lose, invent):
            assert await cut_copy(pair, 8, after=True)
            await pair.target.engine.transact_past_seal(spoil)
            with pytest.raises(CopyError, match="the copy is not what was copied"):
                await pair.copy()
            with pytest.raises(StoreIncomplete):
                await opened(pair.target.engine)
            assert "takes writes again; fdb:///target is empty" in await pair.abort()
            await metadata.put_object(await metadata.bucket("plain"), "again", draft(b""))
        await pair.copy()

    run(body, ("sqlite", "memory"), tmp_path)


# -- Clocks


def test_no_stamp_of_the_target_is_below_one_of_the_source(tmp_path: Path) -> None:
    async def main() -> None:
        now_ns = SystemClock().now_ns()
        ahead = ManualClock(now_ns + 2_000_000_000)
        source = Store(MemoryEngine(clock=ahead), "sqlite:///source")
        here = ManualClock(now_ns)
        target = Store(MemoryEngine(clock=here), "fdb:///target")
        before = await populate(source.engine, 5)
        newest = (await digest_of(source.engine)).latest_stamp
        waits: list[float] = []

        async def sleep(duration_s: float) -> None:
            waits.append(duration_s)
            here.advance(int(duration_s * 1e9))

        await copy_metadata(source, target, sleep=sleep)
        assert sum(waits) >= 1.9, "it waits for the other clock's time to come"
        after = await opened(target.engine)
        bucket = await before.bucket("versioned")
        version = await after.put_object(bucket, "key/0001", draft(b""))
        assert version.stamp > newest
        late = MemoryEngine(clock=ManualClock(newest - 10_000_000_000))
        await late.transact(_load, await target.engine.read(lambda tr: tr.get_range(b"", b"\xff")))
        with pytest.raises(ClockBehind, match=r"clock is 1\d\.\d s behind"):
            await opened(late)

    asyncio.run(main())


async def _load(tr: Tr, rows: list[tuple[bytes, bytes]]) -> None:
    for key, value in rows:
        tr.set(key, value)


def test_a_clock_far_behind_stops_the_copy_before_the_target_opens(tmp_path: Path) -> None:
    async def main() -> None:
        now_ns = SystemClock().now_ns()
        source = Store(MemoryEngine(clock=ManualClock(now_ns + 60_000_000_000)), "sqlite:///source")
        clock = ManualClock(now_ns)
        target = Store(MemoryEngine(clock=clock), "fdb:///target")
        await populate(source.engine, 5)
        with pytest.raises(CopyError, match=r"clock is [56]\d\.\d s behind"):
            await copy_metadata(source, target)
        with pytest.raises(StoreIncomplete):
            await opened(target.engine)
        clock.advance(61_000_000_000)
        await copy_metadata(source, target)
        await opened(target.engine)

    asyncio.run(main())


# -- Interruptions


class Cut(Exception):
    """The copy was killed."""


class Counting:
    """An engine that is cut off at the `nth` transaction that it is asked for: before it, or after it has committed."""

    def __init__(self, engine: Engine, nth: list[int], *, after: bool) -> None:
        self._engine = engine
        self._nth = nth  # shared by both engines of a copy
        self._after = after
        self.prefix = engine.prefix

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def transact_past_seal(self, fn: Any, *args: Any) -> Any:
        self._nth[0] -= 1
        if self._nth[0] < 0 or (self._nth[0] == 0 and not self._after):
            raise Cut
        result = await self._engine.transact_past_seal(fn, *args)
        if self._nth[0] == 0:
            raise Cut
        return result


async def cut_copy(pair: Pair, nth: int, *, after: bool, keep_source: bool = False) -> bool:
    """Copy, killed at the `nth` transaction. False: it ended before that."""
    left = [nth]
    source = Store(Counting(pair.source.engine, left, after=after), pair.source.url)  # type: ignore[arg-type]
    target = Store(Counting(pair.target.engine, left, after=after), pair.target.url)  # type: ignore[arg-type]
    try:
        await copy_metadata(source, target, keep_source=keep_source)
    except Cut:
        return True
    return False


async def half_copy(pair: Pair) -> None:
    assert await cut_copy(pair, 5, after=True)


@pytest.mark.parametrize("keep_source", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_a_copy_killed_at_any_transaction_goes_on_to_the_same_end(after: bool, keep_source: bool) -> None:
    async def main(nth: int) -> bool:
        pair = Pair(MemoryEngine(seed=nth, clock=SystemClock()), MemoryEngine(seed=nth, clock=SystemClock()))
        await populate(pair.source.engine, 20)
        expected = await all_rows(pair.source.engine)
        if not await cut_copy(pair, nth, after=after, keep_source=keep_source):
            return False
        writable = [await takes_writes(side.engine) for side in (pair.source, pair.target)]
        assert writable != [True, True] or keep_source, "two open stores"
        if writable[0] and nth > 1:  # only keep_source's very last step opens it
            assert keep_source
            assert after
            return True
        copied = await pair.copy(keep_source=keep_source)
        assert await all_rows(pair.target.engine) == expected
        assert copied.rows == len(expected)
        assert await takes_writes(pair.target.engine)
        assert await takes_writes(pair.source.engine) is keep_source
        return True

    ends = next(nth for nth in itertools.count(1) if not asyncio.run(main(nth)))
    assert ends > 25, "the copy takes many transactions"


@pytest.mark.parametrize("to", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_a_copy_killed_at_any_transaction_can_be_given_up(after: bool, to: bool) -> None:
    async def main(nth: int) -> bool:
        pair = Pair(MemoryEngine(seed=nth, clock=SystemClock()), MemoryEngine(seed=nth, clock=SystemClock()))
        metadata = await populate(pair.source.engine, 20)
        plain = await metadata.bucket("plain")
        if not await cut_copy(pair, nth, after=after):
            return False
        opened_already = await takes_writes(pair.target.engine)
        try:
            await pair.abort(to=to)
        except CopyError:
            # Too late, or perhaps too late: the source stays shut.
            assert opened_already or not to
            assert not await takes_writes(pair.source.engine)
            await pair.copy()
            assert await takes_writes(pair.target.engine)
            return True
        assert await takes_writes(pair.source.engine)
        assert not opened_already
        version = await metadata.put_object(plain, "afterwards", draft(b"afterwards"))
        if to:
            assert await all_rows(pair.target.engine) == {}
            assert await pair.target.engine.sealed() is None
        # Another attempt is a fresh one, whatever the first left, and has what was written in between.
        await pair.copy()
        assert await all_rows(pair.target.engine) == await all_rows(pair.source.engine)
        found = await (await opened(pair.target.engine)).head_object(plain, "afterwards")
        assert found.stamp == version.stamp
        return True

    assert next(nth for nth in itertools.count(1) if not asyncio.run(main(nth))) > 25


async def takes_writes(engine: Engine) -> bool:
    """Whether a node could open the store and write to it."""
    if await engine.sealed() is not None or not await all_rows(engine):
        return False
    try:
        await opened(engine)
    except StoreIncomplete:
        return False
    return True


def test_giving_up_killed_at_any_transaction_can_be_done_again_or_gone_back_on() -> None:
    async def main(nth: int, again: bool) -> bool:
        pair = Pair(MemoryEngine(seed=nth, clock=SystemClock()), MemoryEngine(seed=nth, clock=SystemClock()))
        await populate(pair.source.engine, 20)
        await half_copy(pair)
        left = [nth]
        source = Store(Counting(pair.source.engine, left, after=True), pair.source.url)  # type: ignore[arg-type]
        target = Store(Counting(pair.target.engine, left, after=True), pair.target.url)  # type: ignore[arg-type]
        try:
            await abort_copy(source, target)
        except Cut:
            pass
        else:
            return False
        assert not await takes_writes(pair.target.engine)
        if again:
            await pair.abort()
            assert await takes_writes(pair.source.engine)
            assert await all_rows(pair.target.engine) == {}
        await pair.copy()
        assert await all_rows(pair.target.engine) == await all_rows(pair.source.engine)
        return True

    for again in (False, True):
        assert next(nth for nth in itertools.count(1) if not asyncio.run(main(nth, again))) > 3


def test_giving_up_what_never_began_does_nothing(tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        await populate(pair.source.engine, 5)
        assert await pair.abort() == "sqlite:///source was not sealed"
        assert await takes_writes(pair.source.engine)

    run(body, ("memory", "memory"), tmp_path)


@pytest.mark.parametrize("seed", range(20))
def test_of_two_copies_at_once_one_ends_it_and_the_other_stops(seed: int) -> None:
    print(f"seed {seed}")

    async def main() -> None:
        pair = Pair(MemoryEngine(seed=seed, clock=SystemClock()), MemoryEngine(seed=seed, clock=SystemClock()))
        await populate(pair.source.engine, 20)
        ended = await asyncio.gather(pair.copy(), pair.copy(), return_exceptions=True)
        assert all(isinstance(one, Copied | CopyError) for one in ended), ended
        if not any(isinstance(one, Copied) for one in ended):
            await pair.copy()
        assert await all_rows(pair.target.engine) == await all_rows(pair.source.engine)
        assert await takes_writes(pair.target.engine)
        assert not await takes_writes(pair.source.engine)

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(40))
def test_a_copy_given_up_while_it_runs_never_leaves_two_open_stores(seed: int) -> None:
    print(f"seed {seed}")

    async def main() -> None:
        pair = Pair(MemoryEngine(seed=seed, clock=SystemClock()), MemoryEngine(seed=seed, clock=SystemClock()))
        await populate(pair.source.engine, 10)
        copying = asyncio.ensure_future(pair.copy())
        for _ in range(random.Random(seed).randrange(900)):
            await asyncio.sleep(0)
        to = seed % 2 == 0
        given_up = await asyncio.gather(pair.abort(to=to), return_exceptions=True)
        ended = await asyncio.gather(copying, return_exceptions=True)
        for one in (*given_up, *ended):
            assert isinstance(one, str | Copied | CopyError), one
        writable = [await takes_writes(side.engine) for side in (pair.source, pair.target)]
        assert writable != [True, True]
        if isinstance(ended[0], Copied):
            assert writable == [False, True]

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(10))
def test_a_copy_goes_through_every_fault_of_a_cluster(seed: int) -> None:
    print(f"seed {seed}")

    async def main() -> None:
        pair = Pair(MemoryEngine(seed=seed, clock=SystemClock()), MemoryEngine(seed=seed, clock=SystemClock()))
        await populate(pair.source.engine, 20)
        expected = await all_rows(pair.source.engine)
        pair.source.engine.faults = RandomFaults(seed, timed_out=0.02)  # type: ignore[attr-defined]
        pair.target.engine.faults = RandomFaults(seed, timed_out=0.02)  # type: ignore[attr-defined]
        for side in (pair.source, pair.target):
            for runner in (side.engine._runner, side.engine._reader):  # type: ignore[attr-defined]
                runner._faults = side.engine.faults  # type: ignore[attr-defined]
        await pair.copy(sleep=lambda _: asyncio.sleep(0))
        assert await all_rows(pair.target.engine) == expected

    asyncio.run(main())


def test_an_engine_that_stays_away_ends_the_copy_with_what_to_do(tmp_path: Path) -> None:
    async def main() -> None:
        faults = Faults()
        pair = Pair(MemoryEngine(clock=SystemClock()), MemoryEngine(clock=SystemClock(), faults=faults))
        await populate(pair.source.engine, 20)

        def away(step: Step) -> None:
            faults.cut_off = True

        with pytest.raises(CopyError, match=r"fdb:///target: .* Run this again to go on where it stopped"):
            await pair.copy(report=away, sleep=lambda _: asyncio.sleep(0), patience_s=0)
        faults.cut_off = False
        copied = await pair.copy()
        assert copied.resumed_rows > 0
        assert await all_rows(pair.target.engine) == await all_rows(pair.source.engine)

    asyncio.run(main())


def test_an_unknown_outcome_of_any_step_is_settled(tmp_path: Path) -> None:
    """Each transaction of a copy in turn takes effect, or does not, while its caller is told that nobody knows."""

    async def main(nth: int, committed: bool) -> bool:
        pair = Pair(MemoryEngine(clock=SystemClock()), MemoryEngine(clock=SystemClock()))
        await populate(pair.source.engine, 3)
        struck = []

        class Doubtful(Counting):
            async def transact_past_seal(self, fn: Any, *args: Any) -> Any:
                self._nth[0] -= 1
                if self._nth[0] == 0:
                    struck.append(fn)
                    if committed:
                        await self._engine.transact_past_seal(fn, *args)
                    raise CommitUnknown("injected")
                return await self._engine.transact_past_seal(fn, *args)

        left = [nth]
        source = Store(Doubtful(pair.source.engine, left, after=True), pair.source.url)  # type: ignore[arg-type]
        target = Store(Doubtful(pair.target.engine, left, after=True), pair.target.url)  # type: ignore[arg-type]
        await copy_metadata(source, target, sleep=lambda _: asyncio.sleep(0))
        assert await all_rows(pair.target.engine) == await all_rows(pair.source.engine)
        assert await takes_writes(pair.target.engine)
        assert not await takes_writes(pair.source.engine)
        return bool(struck)

    for committed in (False, True):
        assert next(nth for nth in itertools.count(1) if not asyncio.run(main(nth, committed))) > 8


def test_what_an_engine_keeps_for_itself_stays_behind(tmp_path: Path) -> None:
    async def body(pair: Pair) -> None:
        await populate(pair.source.engine, 5)
        await pair.copy()
        own = await pair.target.engine.read(lambda tr: tr.get_range(OWN, b"\xff"))
        names = {key for key, _ in own if not key.startswith(b"\xfe/done/")}
        assert names == {b"\xfe/copied", b"\xfe/clock-floor"}
        assert SEALED not in names

    run(body, ("memory", "memory"), tmp_path)


def test_an_absent_engine_is_an_engine_error(tmp_path: Path) -> None:
    async def main() -> None:
        source = MemoryEngine(clock=SystemClock())
        await populate(source, 1)
        faults = Faults()
        faults.cut_off = True
        with pytest.raises(EngineUnavailable):
            await abort_copy(Store(source, "sqlite:///s"), Store(MemoryEngine(faults=faults), "fdb:///t"))

    asyncio.run(main())
