"""Admission: the bounds, the shares, and whose turn it is."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.server.wire import run
from tigrislike.s3api.admission import Admission, Permit
from tigrislike.s3api.errors import S3Error

MIB = 1024 * 1024


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def admission(requests: int = 100, per_key: int = 60, memory: int = 64 * MIB) -> tuple[Admission, Clock]:
    clock = Clock()
    return Admission(requests, per_key, memory, clock), clock


def refused(gate: Admission, key: str, length: int = 0) -> bool:
    try:
        with gate.admit(key, length):
            return False
    except S3Error as error:
        return (error.code, error.headers) == ("SlowDown", {"retry-after": "1"})


def test_a_key_is_bounded_and_what_it_gives_back_can_be_had_again() -> None:
    gate, _ = admission()
    with contextlib.ExitStack() as held:
        for _ in range(60):
            held.enter_context(gate.admit("a", 0))
        assert refused(gate, "a")
        assert not refused(gate, "b")
    assert gate.requests == 0
    assert not refused(gate, "a")


def test_a_flooding_key_leaves_room_for_others() -> None:
    gate, _ = admission(requests=100, per_key=60)
    with contextlib.ExitStack() as held:
        for _ in range(60):
            held.enter_context(gate.admit("flood", 0))
        for _ in range(40):
            held.enter_context(gate.admit("b", 0))
        assert refused(gate, "b")
        assert refused(gate, "c")


def test_a_key_may_hold_only_its_share_while_others_are_active() -> None:
    gate, clock = admission(requests=100, per_key=60)
    with contextlib.ExitStack() as held:
        for key in ("b", "c", "d"):
            held.enter_context(gate.admit(key, 0))
        for _ in range(25):
            held.enter_context(gate.admit("a", 0))
        assert refused(gate, "a")
        clock.now_s += 10  # the others have been quiet
        assert not refused(gate, "a")


def test_memory_for_bodies_is_bounded_over_all_and_per_key() -> None:
    gate, _ = admission(memory=112 * MIB)  # an upload counts for 3.5 at most, and a key may have half
    with contextlib.ExitStack() as held:
        for _ in range(16):
            held.enter_context(gate.admit("a", 5 * 1024 * MIB))
        assert refused(gate, "a", 5 * 1024 * MIB)
        assert refused(gate, "a", -1)
        assert not refused(gate, "a", 0)
        for _ in range(16):
            held.enter_context(gate.admit("b", -1))
        assert refused(gate, "c", 1)
        assert not refused(gate, "c", 0)
    assert gate.body_memory_bytes == 0


def test_a_small_bound_still_lets_one_body_in() -> None:
    gate, _ = admission(memory=1)
    with gate.admit("a", 100 * MIB):
        assert refused(gate, "b", 1)
    assert not refused(gate, "b", 100 * MIB)


def test_who_is_not_verified_is_charged_to_nobody() -> None:
    gate, _ = admission(requests=80, per_key=60, memory=64 * MIB)
    with contextlib.ExitStack() as held:
        for _ in range(4):
            held.enter_context(gate.admit_unverified(2 * MIB))
        with pytest.raises(S3Error, match="SlowDown"):  # 8 MiB: an eighth
            gate.admit_unverified(2 * MIB)
        for _ in range(60):  # no key has become active: this one is alone
            held.enter_context(gate.admit("a", 0))
        held.enter_context(gate.admit("b", 32 * MIB))
    assert (gate.requests, gate.body_memory_bytes, gate._keys) == (0, 0, {})


def test_requests_that_are_not_verified_are_bounded_too() -> None:
    gate, _ = admission(requests=80, per_key=60)
    with contextlib.ExitStack() as held:
        for _ in range(10):
            held.enter_context(gate.admit_unverified(1))
        with pytest.raises(S3Error, match="SlowDown"):
            gate.admit_unverified(1)
        for _ in range(60):
            held.enter_context(gate.admit("a", 0))
    with gate.admit_unverified(1):
        assert gate.requests == 1


def test_a_small_bound_still_lets_one_body_be_verified() -> None:
    gate, _ = admission(requests=1, memory=1)
    with gate.admit_unverified(MIB), pytest.raises(S3Error, match="SlowDown"):
        gate.admit_unverified(MIB)
    with gate.admit_unverified(MIB):
        pass


def test_what_is_remembered_of_keys_is_bounded() -> None:
    gate, _ = admission(requests=10, per_key=10)
    for number in range(1000):
        assert not refused(gate, f"key{number}")
    assert len(gate._recent) == 10
    with gate.admit("a", 0):
        assert refused(gate, "a")  # ten others are active, or more: a share is one request


async def hold(permit: Permit, entered: list[str], name: str, release: asyncio.Event) -> None:
    async with permit:
        entered.append(name)
        await release.wait()


def test_a_key_that_is_alone_never_waits() -> None:
    async def main() -> None:
        gate, _ = admission()
        entered: list[str] = []
        release = asyncio.Event()
        tasks = [asyncio.create_task(hold(gate.admit("a", 0), entered, str(n), release)) for n in range(60)]
        await asyncio.sleep(0)
        assert len(entered) == 60
        release.set()
        await asyncio.gather(*tasks)

    run(main())


def test_while_keys_compete_each_runs_a_few_and_the_rest_wait_in_order() -> None:
    async def main() -> None:
        gate, _ = admission()
        entered: list[str] = []
        with gate.admit("other", 0):
            releases = [asyncio.Event() for _ in range(30)]
            tasks = [asyncio.create_task(hold(gate.admit("flood", 0), entered, str(n), releases[n])) for n in range(30)]
            for _ in range(6):
                await asyncio.sleep(0)
            assert entered == ["0"]
            late = asyncio.Event()
            honest = asyncio.create_task(hold(gate.admit("other", 0), entered, "honest", late))
            await asyncio.sleep(0)
            assert entered[-1] == "honest"
            for n in range(22):
                releases[n].set()
                await tasks[n]
                for _ in range(3):
                    await asyncio.sleep(0)
                assert entered[-1] == str(n + 1)
            late.set()
            for release in releases:
                release.set()
            await asyncio.gather(honest, *tasks)
        assert gate.requests == 0

    run(main())


def test_requests_that_end_at_once_count_in_their_round_too() -> None:
    async def quick(gate: Admission, ended: list[str], name: str) -> None:
        async with gate.admit("flood", 0):
            ended.append(name)

    async def main() -> None:
        gate, clock = admission()
        ended: list[str] = []
        with gate.admit("other", 0):
            tasks = [asyncio.create_task(quick(gate, ended, str(n))) for n in range(9)]
            for rounds in range(1, 5):
                await asyncio.sleep(0)
                assert len(ended) <= rounds
            await asyncio.gather(*tasks)
            assert ended == [str(n) for n in range(9)]
        clock.now_s += 10
        await asyncio.gather(*(quick(gate, ended, "alone") for _ in range(50)))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not gate._keys  # nothing is kept of keys that have gone
        assert not gate._counting

    run(main())


def test_large_bodies_wait_for_no_turn() -> None:
    async def main() -> None:
        gate, _ = admission()
        entered: list[str] = []
        release = asyncio.Event()
        with gate.admit("other", 0):
            tasks = [asyncio.create_task(hold(gate.admit("a", MIB), entered, str(n), release)) for n in range(20)]
            await asyncio.sleep(0)
            assert len(entered) == 20
            release.set()
            await asyncio.gather(*tasks)

    run(main())


def test_a_request_that_takes_long_does_not_hold_up_the_others_of_its_key() -> None:
    async def main() -> None:
        gate, _ = admission()
        entered: list[str] = []
        trickling, quick = asyncio.Event(), asyncio.Event()
        quick.set()
        with gate.admit("other", 0):
            slow = [asyncio.create_task(hold(gate.admit("a", 9), entered, "slow", trickling)) for _ in range(3)]
            await asyncio.sleep(0)
            others = [asyncio.create_task(hold(gate.admit("a", 9), entered, str(n), quick)) for n in range(3)]
            await asyncio.gather(*others)
            assert entered == ["slow", "slow", "slow", "0", "1", "2"]
            assert not any(task.done() for task in slow)
            trickling.set()
            await asyncio.gather(*slow)
        assert gate.requests == 0

    run(main())


def test_a_request_cancelled_in_line_gives_its_place_up() -> None:
    async def main() -> None:
        gate, _ = admission()
        entered: list[str] = []
        release = asyncio.Event()
        with gate.admit("other", 0):
            tasks = [asyncio.create_task(hold(gate.admit("a", 0), entered, str(n), release)) for n in range(10)]
            await asyncio.sleep(0)
            tasks[8].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[8]
            release.set()
            await asyncio.gather(*tasks[:8], tasks[9])
        assert entered == [*(str(n) for n in range(8)), "9"]
        assert gate.requests == 0

    run(main())


def test_rounds_are_counted_only_while_something_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tigrislike.s3api.admission._TURN_S", 60.0)  # that nobody loses his turn on a busy machine

    async def main() -> None:
        gate, _ = admission()
        entered: list[str] = []
        release = asyncio.Event()
        with gate.admit("other", 0):
            tasks = [asyncio.create_task(hold(gate.admit("flood", 0), entered, str(n), release)) for n in range(12)]
            for _ in range(10):
                await asyncio.sleep(0)
            assert len(entered) == 1  # all turns are taken, and nothing spins until one is given back
            assert not gate._counting
            release.set()
            await asyncio.gather(*tasks)
            assert len(entered) == 12
        for _ in range(3):
            await asyncio.sleep(0)
        assert not gate._counting

    run(main())
