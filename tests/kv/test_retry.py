"""The retry loop: what is retried, what surfaces, and how an unknown commit is settled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tigrislike.metadata.kv.clock import ManualClock
from tigrislike.metadata.kv.errors import (
    AmbiguousCommit,
    CommitUnknown,
    EngineError,
    EngineUnavailable,
    NotCommitted,
    TemporarilyRefused,
    TransactionTimedOut,
    TransactionTooLarge,
    TransactionTooOld,
)
from tigrislike.metadata.kv.faults import CommitFault, Faults
from tigrislike.metadata.kv.retry import (
    ATTEMPTS,
    KEEP_MINUTES,
    SHARDS,
    VERSIONS_PER_MINUTE,
    Retries,
    Runner,
    WriteIds,
    kind_of,
)

from .memory_engine import DONE_PREFIX, TEMPORARY, MemoryEngine, MemoryTransaction, RandomFaults


class Script(Faults):
    """Faults from a list, for reads and for commits, one each time it is asked."""

    def __init__(
        self, *, reads: list[EngineError | None] | None = None, commits: list[CommitFault | None] | None = None
    ) -> None:
        super().__init__()
        self.reads = reads or []
        self.commits = commits or []

    def read_fault(self) -> EngineError | None:
        return self.reads.pop(0) if self.reads else None

    def commit_fault(self) -> CommitFault | None:
        return self.commits.pop(0) if self.commits else None


MINUTE_NS = 60_000_000_000


async def increment(tr: Any) -> int:
    count = int(await tr.get(b"count") or b"0") + 1
    tr.set(b"count", b"%d" % count)
    return count


async def done_keys(tr: Any) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = await tr.get_range(DONE_PREFIX, DONE_PREFIX + b"\xff")
    return found


RETRYABLE = [NotCommitted("injected"), TransactionTooOld("injected"), *(TemporarilyRefused("", n) for n in TEMPORARY)]


@pytest.mark.parametrize("error", RETRYABLE, ids=lambda error: str(error.number))
def test_each_retryable_error_is_retried_wherever_it_strikes(error: EngineError) -> None:
    async def main() -> None:
        faults = Script(reads=[error, None, error], commits=[CommitFault(error, False)])
        engine = MemoryEngine(faults=faults)
        assert await engine.transact(increment) == 1
        assert await engine.transact(increment) == 2
        faults.reads = [error, None, error]
        assert await engine.read(lambda tr: tr.get(b"count")) == b"2"
        assert not faults.reads
        assert not faults.commits

    asyncio.run(main())


@pytest.mark.parametrize("number", [1021, 1039])
@pytest.mark.parametrize("committed", [True, False])
def test_an_unknown_commit_is_settled_and_its_result_kept(number: int, committed: bool) -> None:
    async def main() -> None:
        runs = 0

        async def counted(tr: Any) -> tuple[int, int]:
            nonlocal runs
            runs += 1
            return runs, await increment(tr)

        engine = MemoryEngine(faults=Script(commits=[CommitFault(CommitUnknown("injected", number), committed)]))
        assert await engine.transact(counted) == ((1, 1) if committed else (2, 1))
        assert engine.dump() == {b"count": b"1"}

    asyncio.run(main())


def test_settling_survives_its_own_failures() -> None:
    unknown = CommitUnknown("injected")

    async def main(outcomes: list[bool]) -> None:
        faults = Script(commits=[CommitFault(unknown, committed) for committed in outcomes])
        engine = MemoryEngine(faults=faults)
        assert await engine.transact(increment) == 1
        assert engine.dump() == {b"count": b"1"}

    # The first is the transaction's own commit; the rest are those of looking for its mark.
    for length in range(1, 6):
        for bits in range(2**length):
            asyncio.run(main([bool(bits >> n & 1) for n in range(length)]))


def test_a_commit_still_under_way_when_it_is_abandoned_never_takes_effect() -> None:
    class Late(RandomFaults):
        left = 1

        def __init__(self) -> None:
            super().__init__(0, read=0, refused=0, unknown=0)

        def late_commit(self) -> EngineError | None:
            if self.left:
                self.left -= 1
                return CommitUnknown("injected, still under way", 1039)
            return None

    async def main(seed: int) -> int:
        runs = 0

        async def counted(tr: Any) -> int:
            nonlocal runs
            runs += 1
            return await increment(tr)

        engine = MemoryEngine(seed=seed, faults=Late())
        assert await engine.transact(counted) == 1
        await engine.close()
        assert engine.dump() == {b"count": b"1"}
        return runs

    # In some interleavings the late commit wins, in others it is fenced off and the function runs again; never both.
    assert {asyncio.run(main(seed)) for seed in range(60)} == {1, 2}


def test_a_timeout_during_commit_surfaces_and_nobody_cleans_up() -> None:
    async def main(committed: bool) -> None:
        engine = MemoryEngine(faults=Script(commits=[CommitFault(TransactionTimedOut("injected"), committed)]))
        with pytest.raises(AmbiguousCommit):
            await engine.transact(increment)
        assert engine.dump() == ({b"count": b"1"} if committed else {})

    asyncio.run(main(True))
    asyncio.run(main(False))


def test_an_unknown_commit_that_cannot_be_settled_surfaces() -> None:
    async def main() -> None:
        unknown = CommitUnknown("the first")
        engine = MemoryEngine(faults=Script(commits=[CommitFault(unknown, True)]))

        class CutOff(Script):
            def check_reachable(self) -> None:
                if not self.commits:
                    raise EngineUnavailable("injected")

        engine = MemoryEngine(faults=CutOff(commits=[CommitFault(unknown, False)]))
        with pytest.raises(CommitUnknown, match="the first") as caught:
            await engine.transact(increment)
        assert isinstance(caught.value.__cause__, EngineUnavailable)

    asyncio.run(main())


@pytest.mark.parametrize("strikes", ["begin", "get", "commit"])
def test_whatever_ends_the_settling_the_first_commit_is_what_is_told(strikes: str) -> None:
    async def main() -> None:
        other = EngineError("disk error (1500)")
        commits: list[CommitFault | None] = [CommitFault(CommitUnknown("the first"), False)]
        faults = Script(commits=[*commits, CommitFault(other, False)] if strikes == "commit" else commits)
        engine = MemoryEngine(faults=faults)

        def fail(_kind: bytes, _left_s: float | None) -> MemoryTransaction:
            raise other

        async def prepare() -> None:
            if strikes == "begin":
                engine._runner._begin = fail
            elif strikes == "get":
                faults.reads = [other]

        settling_after(engine, prepare)
        with pytest.raises(CommitUnknown, match="the first") as caught:
            await engine.transact(increment)
        assert caught.value.__cause__ is other

    asyncio.run(main())


@pytest.mark.parametrize("error", [NotCommitted("over and over"), CommitUnknown("over and over")])
def test_retries_end_with_the_time_limit(error: EngineError) -> None:
    async def main() -> None:
        clock = ManualClock()
        faults = Script(commits=[CommitFault(error, False)] * 100_000)
        engine = MemoryEngine(clock=clock, faults=faults, timeout_s=10)
        with pytest.raises(type(error), match="over and over"):
            await engine.transact(increment)
        assert 8_000_000_000 < clock.monotonic_ns() <= 10_000_000_000
        # Backing off from 10 ms to 1 s: a few dozen attempts, not thousands.
        assert 10 < 100_000 - len(faults.commits) < 60

    asyncio.run(main())


def test_retries_end_with_the_attempts() -> None:
    async def main() -> None:
        faults = Script(commits=[CommitFault(NotCommitted("over and over"), False)] * 100_000)
        engine = MemoryEngine(clock=ManualClock(), faults=faults, timeout_s=3600)
        with pytest.raises(NotCommitted):
            await engine.transact(increment)
        assert 100_000 - len(faults.commits) == ATTEMPTS

    asyncio.run(main())


def test_reads_end_with_the_time_limit() -> None:
    async def main() -> None:
        engine = MemoryEngine(faults=Script(reads=[TransactionTooOld("over and over")] * 100_000), timeout_s=10)
        with pytest.raises(TransactionTooOld):
            await engine.read(lambda tr: tr.get(b"key"))

    asyncio.run(main())


def test_errors_of_the_function_are_not_retried() -> None:
    async def main() -> None:
        runs = 0

        async def too_large(tr: Any) -> None:
            nonlocal runs
            runs += 1
            for n in range(101):
                tr.set(b"%d" % n, bytes(100_000))

        with pytest.raises(TransactionTooLarge):
            await MemoryEngine().transact(too_large)
        assert runs == 1

    asyncio.run(main())


def test_a_transaction_that_writes_nothing_leaves_no_mark() -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.transact(lambda tr: tr.get(b"key"))
        assert await engine.read(done_keys) == []
        await engine.transact(increment)
        assert len(await engine.read(done_keys)) == 1

    asyncio.run(main())


def test_marks_are_cleared_once_no_retry_could_look_for_them() -> None:
    async def main() -> None:
        clock = ManualClock()
        engine = MemoryEngine(clock=clock)
        for _ in range(KEEP_MINUTES + 40):
            await engine.transact(increment)
            clock.advance(MINUTE_NS)
        await engine.close()
        marks = [key for key, _ in engine.range_at(engine.version, DONE_PREFIX, DONE_PREFIX + b"\xff")]
        minutes = {int.from_bytes(key[len(DONE_PREFIX) + 1 : len(DONE_PREFIX) + 6], "big") for key in marks}
        shards = {key[len(DONE_PREFIX)] for key in marks}
        assert len(shards) == SHARDS  # no single server takes every commit's mark
        now = engine.version // VERSIONS_PER_MINUTE
        assert len(minutes) == len(marks)
        assert now - KEEP_MINUTES - 20 < min(minutes) < now - KEEP_MINUTES + 2
        assert max(minutes) == now

    asyncio.run(main())


HOUR_NS = 60 * MINUTE_NS


def settling_after(engine: MemoryEngine, meanwhile: Callable[[], Awaitable[None]]) -> None:
    """Let something happen between the next commit of unknown outcome and the look for what became of it."""
    runner = engine._runner
    was_committed = runner._was_committed

    async def after(done_key: bytes, unknown: CommitUnknown, retries: Retries) -> bool:
        await meanwhile()
        return await was_committed(done_key, unknown, retries)

    runner._was_committed = after  # type: ignore[method-assign]


async def clear_marks(engine: MemoryEngine, clock: ManualClock) -> None:
    """What another process does, whose clock this is: it commits something, and clears old marks."""
    other = Runner(
        lambda _kind, _left_s: MemoryTransaction(engine, read_only=False),
        clock,
        done_prefix=DONE_PREFIX,
        timeout_s=60,
    )
    await other.transact(lambda tr: set_value(tr, b"other"), ())
    assert other._clearing is not None
    await other._clearing


async def set_value(tr: Any, key: bytes) -> None:
    tr.set(key, b"")


def test_marks_of_others_are_safe_from_a_clock_that_is_hours_ahead() -> None:
    async def main() -> None:
        clock = ManualClock()
        ahead = ManualClock(clock.now_ns() + 3 * HOUR_NS)
        engine = MemoryEngine(clock=clock, faults=Script(commits=[CommitFault(CommitUnknown("injected"), True)]))
        settling_after(engine, lambda: clear_marks(engine, ahead))
        assert await engine.transact(increment) == 1
        assert engine.dump()[b"count"] == b"1"

    asyncio.run(main())


def test_nothing_is_concluded_from_a_mark_that_may_have_been_cleared() -> None:
    async def main(minutes: int) -> MemoryEngine:
        engine = MemoryEngine(faults=Script(commits=[CommitFault(CommitUnknown("the first"), True)]))

        async def much_later() -> None:
            engine.version += minutes * VERSIONS_PER_MINUTE
            await clear_marks(engine, ManualClock())

        settling_after(engine, much_later)
        try:
            assert await engine.transact(increment) == 1
        finally:
            assert engine.dump()[b"count"] == b"1"
        return engine

    asyncio.run(main(KEEP_MINUTES - 1))
    with pytest.raises(CommitUnknown, match="the first") as caught:
        asyncio.run(main(KEEP_MINUTES + 1))
    assert "may have been cleared" in str(caught.value.__cause__)


def test_each_unknown_commit_that_is_settled_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        outcomes = ((1021, True), (1039, False))
        faults = Script(commits=[CommitFault(CommitUnknown("injected", number), took) for number, took in outcomes])
        engine = MemoryEngine(faults=faults)
        for _ in range(2):
            await engine.transact(increment)

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    assert [record.getMessage() for record in caplog.records] == [
        "unknown commit (1021) settled: committed",
        "unknown commit (1039) settled: abandoned",
    ]


def test_a_cancelled_caller_leaves_no_one_cleaning_up() -> None:
    async def main(rounds: int) -> set[bytes | None]:
        engine = MemoryEngine(seed=rounds)
        call = asyncio.ensure_future(engine.transact(increment))
        for _ in range(rounds):
            await asyncio.sleep(0)
        cancelled = call.cancel()
        await asyncio.wait([call])
        await engine.close()
        return {engine.dump().get(b"count")} if cancelled else set()

    seen = set[bytes | None]().union(*(asyncio.run(main(rounds)) for rounds in range(1, 40)))
    assert seen == {None, b"1"}  # wherever it struck: all or nothing, and both happen


def test_a_seed_is_an_interleaving() -> None:
    async def main(seed: int) -> tuple[list[list[int]], int, int]:
        engine = MemoryEngine(seed=seed, faults=RandomFaults(seed))

        async def client() -> list[int]:
            return [await engine.transact(increment) for _ in range(5)]

        results = await asyncio.gather(*(client() for _ in range(4)))
        assert sorted(value for mine in results for value in mine) == list(range(1, 21))
        await engine.close()
        return results, engine.commits, engine.conflicts

    assert asyncio.run(main(1)) == asyncio.run(main(1))
    assert len({str(asyncio.run(main(seed))) for seed in range(10)}) > 5


def test_write_ids_are_shared_by_nobody_and_spread_over_the_shards() -> None:
    ids = [source.next() for source in (WriteIds(), WriteIds()) for _ in range(1000)]
    assert len(set(ids)) == 2000
    assert {len(each) for each in ids} == {16}
    assert {each[0] % SHARDS for each in ids[:SHARDS]} == set(range(SHARDS))


def test_a_kind_is_the_functions_name_as_a_tag_can_hold_it() -> None:
    async def _put_object_with_a_long_name(tr: Any) -> None: ...

    assert kind_of(increment) == b"increment"
    assert kind_of(_put_object_with_a_long_name) == b"put_object_with_"
    assert kind_of(lambda tr: None) == b"lambda"
    assert kind_of(Script()) == b"transaction"  # type: ignore[arg-type]


def test_a_read_that_may_be_stale_uses_a_version_again() -> None:
    async def main() -> None:
        clock = ManualClock()
        engine = MemoryEngine(clock=clock)
        await engine.transact(increment)

        async def count(tr: Any) -> int:
            return int(await tr.get(b"count"))

        second = 1_000_000_000
        assert await engine.read(count, max_age_ns=second) == 1
        await engine.transact(increment)
        assert await engine.read(count, max_age_ns=second) == 1  # it may
        assert await engine.read(count) == 2  # it may not
        clock.advance(second)
        assert await engine.read(count, max_age_ns=second) == 2
        # Staleness is bounded from the call on that asked for the version, not the one that used it last.
        await engine.transact(increment)
        clock.advance(second // 2)
        assert await engine.read(count, max_age_ns=second) == 2
        clock.advance(second // 2)
        assert await engine.read(count, max_age_ns=second) == 3

    asyncio.run(main())


def test_a_version_that_has_grown_too_old_is_not_used_again() -> None:
    async def main() -> None:
        faults = Script()
        engine = MemoryEngine(faults=faults)
        await engine.transact(increment)
        assert await engine.read(lambda tr: tr.get(b"count"), max_age_ns=10**12) == b"1"
        await engine.transact(increment)
        faults.reads = [None, TransactionTooOld("injected")]
        assert await engine.read(lambda tr: tr.get(b"count"), max_age_ns=10**12) == b"2"

    asyncio.run(main())
