"""What is done about failures, over a driver in memory and a clock that leaps: each bound to the millisecond."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from itertools import pairwise
from random import Random
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.origin.leaping import run
from tigrislike.origin import (
    Attributes,
    Buffer,
    OriginBroken,
    OriginChanged,
    OriginError,
    OriginMissing,
    OriginObject,
    OriginPage,
    OriginRefused,
    OriginSummary,
    OriginUnavailable,
    Written,
)
from tigrislike.origin.breaker import Breaker
from tigrislike.origin.budget import Budget
from tigrislike.origin.latency import Quantile
from tigrislike.origin.resilient import Limits, Resilient, _Replayed

DATA = bytes(range(256)) * 16
SIZE = len(DATA)
FOUND = OriginObject(key="k", size=SIZE, etag="e", modified_ns=1, attributes=Attributes())

Pieces = AsyncGenerator[Buffer, None]
Step = Callable[[int, int], Pieces]


async def well(start: int, stop: int) -> Pieces:
    for at in range(start, stop, 100):
        yield DATA[at : min(at + 100, stop)]


def fails(error: OriginError, after: int = 0) -> Step:
    async def step(start: int, stop: int) -> Pieces:
        if after:
            yield DATA[start : min(start + after, stop)]
        raise error

    return step


def fails_after(pause_s: float) -> Step:
    async def step(start: int, stop: int) -> Pieces:
        await asyncio.sleep(pause_s)
        raise unavailable()
        yield b""  # type: ignore[unreachable]

    return step


def paced(piece: int, pause_s: float, first_s: float = 0.0) -> Step:
    async def step(start: int, stop: int) -> Pieces:
        await asyncio.sleep(first_s)
        for at in range(start, stop, piece):
            await asyncio.sleep(pause_s)
            yield DATA[at : min(at + piece, stop)]

    return step


def gives(*pieces: Buffer) -> Step:
    async def step(start: int, stop: int) -> Pieces:
        for piece in pieces:
            yield piece

    return step


def unavailable(retry_after_s: float = 0.0) -> OriginUnavailable:
    return OriginUnavailable("gone", retry_after_s)


class Scripted:
    """A driver: each request takes the next step of the script, and goes well where there is none."""

    name = "scripted"
    loses: frozenset[str] = frozenset({"tags"})

    def __init__(self, *steps: Step, otherwise: Step = well) -> None:
        self.steps = list(steps)
        self.otherwise = otherwise
        self.asked: list[tuple[float, int, int]] = []  # when, and for what
        self.open = 0
        self.closed = False
        self.page = OriginPage((), ())
        self.taken = 0
        self.written = b""

    async def _step(self, start: int, stop: int) -> Pieces:
        self.asked.append((asyncio.get_running_loop().time(), start, stop))
        step = self.steps.pop(0) if self.steps else self.otherwise
        self.open += 1
        try:
            async with aclosing(step(start, stop)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self.open -= 1

    def read(self, key: str, start: int, stop: int, *, size: int, etag: str) -> AsyncIterator[Buffer]:
        assert (size, etag) == (SIZE, "e")
        return self._step(start, stop)

    async def head(self, key: str) -> OriginObject:
        async for _ in self._step(0, 1):
            pass
        return FOUND

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> OriginPage:
        async for _ in self._step(0, 1):
            pass
        return self.page

    async def put(self, key: str, pieces: AsyncIterator[Buffer], size: int, attributes: Attributes) -> Written:
        data = bytearray()
        async for piece in pieces:
            data += piece
            if len(data) >= self.taken:
                async for _ in self._step(0, 1):
                    pass
        self.written = bytes(data)
        return Written("e", verified=True)

    async def delete(self, key: str) -> None:
        async for _ in self._step(0, 1):
            pass

    async def close(self) -> None:
        self.closed = True


def now_s() -> float:
    return asyncio.get_running_loop().time()


def resilient(driver: Scripted, limits: Limits | None = None, **options: Any) -> Resilient:
    """A patient one, where the test says nothing else."""
    usual = {"breaker": Breaker(in_a_row=1000, window=1000), "retries": Budget(1, 1000), "random": Random(1)}
    given: dict[str, Any] = usual | options
    return Resilient(driver, limits, **given)


async def read(origin: Resilient, start: int = 0, stop: int = SIZE) -> bytes:
    given = bytearray()
    async for piece in origin.read("k", start, stop, size=SIZE, etag="e"):
        given += piece
        assert given == DATA[start : start + len(given)]
    return bytes(given)


async def raises(error: type[OriginError], ask: Coroutine[Any, Any, Any]) -> Any:
    with pytest.raises(error) as raised:
        await ask
    assert raised.type is error or issubclass(raised.type, error)
    return raised.value


async def settled() -> None:
    """Whatever is left to close is closed."""
    for _ in range(10):
        await asyncio.sleep(0)


# -- Trying again ----------------------------------------------------------------------------------------------------


def test_it_is_called_what_its_driver_is() -> None:
    async def story() -> None:
        driver = Scripted()
        origin = resilient(driver)
        assert (origin.name, origin.loses) == ("scripted", frozenset({"tags"}))
        driver.loses = frozenset({"tags", "checksum"})
        assert origin.loses == {"tags", "checksum"}
        await origin.close()
        assert driver.closed

    run(story())


@pytest.mark.parametrize("error", [unavailable(), OriginBroken("lies")])
def test_what_may_go_well_another_time_is_tried_again(error: OriginError) -> None:
    async def story() -> None:
        driver = Scripted(fails(error), fails(error, 1000), fails(error, 5))
        origin = resilient(driver)
        assert await read(origin, 10, 3000) == DATA[10:3000]
        assert [asked[1:] for asked in driver.asked] == [(10, 3000), (10, 3000), (1010, 3000), (1015, 3000)]
        counts = origin.statistics()
        assert (counts.calls, counts.requests, counts.retries, counts.bytes_read) == (1, 4, 3, 2990)
        assert counts.unavailable + counts.broken == 3
        for ask in (lambda: origin.head("k"), lambda: origin.list(""), lambda: origin.delete("k")):
            driver.steps = [fails(error)]
            await ask()
        assert origin.statistics().retries == 6
        await settled()
        assert driver.open == origin.statistics().running == 0

    run(story())


@pytest.mark.parametrize("error", [OriginMissing("no"), OriginChanged("no"), OriginRefused("no")])
def test_an_answer_is_not_tried_again_and_no_failure(error: OriginError) -> None:
    async def story() -> None:
        driver = Scripted(otherwise=fails(error))
        origin = resilient(driver, breaker=Breaker(in_a_row=1))
        for ask in (
            lambda: read(origin),
            lambda: origin.head("k"),
            lambda: origin.list(""),
            lambda: origin.delete("k"),
        ):
            assert await raises(type(error), ask()) is error
        driver.steps = [fails(error, 10)]
        assert await raises(type(error), read(origin)) is error
        counts = origin.statistics()
        assert counts.requests == 5 == counts.missing + counts.changed + counts.refused
        assert (counts.retries, counts.state) == (0, "closed")

    run(story())


def test_tries_of_a_call_are_bounded_and_the_last_error_is_the_answer() -> None:
    async def story() -> None:
        driver = Scripted(fails(OriginBroken("lies")), otherwise=fails(unavailable()))
        assert (await raises(OriginUnavailable, read(resilient(driver, Limits(attempts=3))))).args == ("gone",)
        assert len(driver.asked) == 3

    run(story())


def test_back_off_is_full_jitter_that_doubles() -> None:
    async def story(seed: int) -> list[float]:
        driver = Scripted(otherwise=fails(unavailable()))
        await raises(OriginUnavailable, resilient(driver, Limits(attempts=9), random=Random(seed)).delete("k"))
        whens = [when for when, _, _ in driver.asked]
        return [later - when for when, later in pairwise(whens)]

    pauses = [run(story(seed)) for seed in range(300)]
    for tries, of_a_try in enumerate(zip(*pauses, strict=True)):
        most = min(5.0, 0.1 * 2**tries)
        assert max(of_a_try) <= most
        # Uniform from nought: 300 of them leave neither end empty.
        assert min(of_a_try) < 0.1 * most
        assert max(of_a_try) > 0.9 * most


def test_an_origin_that_says_when_to_come_again_is_asked_no_sooner() -> None:
    async def story() -> None:
        driver = Scripted(fails(unavailable(7.0)))
        await resilient(driver).head("k")
        assert [when for when, _, _ in driver.asked] == [0.0, 7.0]
        driver = Scripted(fails(unavailable(31.0)))
        error = await raises(OriginUnavailable, resilient(driver).head("k"))
        assert (error.retry_after_s, now_s()) == (31.0, 7.0)  # it would be too late: said at once

    run(story())


def test_an_outage_is_not_multiplied() -> None:
    async def story() -> None:
        driver = Scripted(otherwise=fails(unavailable()))
        origin = resilient(driver, retries=None)
        for _ in range(1000):
            await raises(OriginUnavailable, origin.head("k"))
        assert len(driver.asked) <= 1000 * 1.2 + 10
        assert origin.statistics().retries_denied >= 790

    run(story())


# -- Bounds of time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["head", "read", "list", "delete"])
def test_silence_ends_a_try_and_all_tries_end_in_time(what: str) -> None:
    async def story() -> None:
        driver = Scripted(otherwise=paced(1, 1000))
        origin = resilient(driver, Limits(timeout_s=12, silence_s=5))
        asks: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "head": lambda: origin.head("k"),
            "read": lambda: read(origin, 0, 1),
            "list": lambda: origin.list(""),
            "delete": lambda: origin.delete("k"),
        }
        await raises(OriginUnavailable, asks[what]())
        assert 10 < now_s() <= 12.001  # a byte more time for the byte
        assert len(driver.asked) == 3
        await settled()
        assert driver.open == 0

    run(story())


def test_a_put_may_be_silent_until_its_time_is_over() -> None:
    async def pieces() -> AsyncIterator[Buffer]:
        yield DATA[:1] * 100

    async def story() -> None:
        driver = Scripted(otherwise=paced(1, 1000))
        origin = resilient(driver, Limits(timeout_s=12, silence_s=5, slowest=100))
        await raises(OriginUnavailable, origin.put("k", pieces(), 100, Attributes()))
        assert now_s() == 13.0
        assert len(driver.asked) == 1

    run(story())


def test_a_dripping_origin_is_given_up_and_what_it_gave_is_kept() -> None:
    async def story() -> None:
        # A byte a second where ten are asked for: after five and a half seconds it is five behind.
        driver = Scripted(paced(1, 1.0), well)
        origin = resilient(driver, Limits(timeout_s=30, silence_s=5, slowest=10))
        assert await read(origin, 0, 1000) == DATA[:1000]
        assert driver.asked[1][1] == 5
        assert 5 <= driver.asked[1][0] <= 5.6

    run(story())


def test_an_origin_that_drips_every_time_fails_within_the_bound() -> None:
    async def story() -> None:
        driver = Scripted(otherwise=paced(1, 1.0))
        origin = resilient(driver, Limits(timeout_s=20, silence_s=5, slowest=1000, attempts=1000))
        await raises(OriginUnavailable, read(origin, 0, 1000))
        assert now_s() <= 20 + 1

    run(story())


def test_what_was_quick_once_may_not_be_silent_for_longer_later() -> None:
    async def story() -> None:
        async def stalls(start: int, stop: int) -> Pieces:
            yield DATA[start : stop - 1]
            await asyncio.sleep(1000)

        driver = Scripted(stalls)
        assert await read(resilient(driver, Limits(silence_s=5, slowest=1))) == DATA
        assert driver.asked[1][0] >= 5
        assert driver.asked[1][0] <= 5.1
        assert driver.asked[1][1:] == (SIZE - 1, SIZE)

    run(story())


def test_the_time_of_a_reader_is_not_the_origins() -> None:
    async def story() -> None:
        origin = resilient(Scripted(otherwise=paced(100, 0.01)), Limits(timeout_s=1, silence_s=1))
        given = bytearray()
        async for piece in origin.read("k", 0, SIZE, size=SIZE, etag="e"):
            given += piece
            await asyncio.sleep(100)
        assert given == DATA

    run(story())


@given(
    st.lists(
        st.one_of(
            st.just(well),
            st.builds(lambda after: fails(unavailable(), after), st.integers(0, 900)),
            st.builds(lambda after: fails(OriginBroken("lies"), after), st.integers(0, 900)),
            st.builds(lambda asked: fails(unavailable(asked)), st.floats(0, 100)),
            st.builds(lambda size: gives(DATA[:size]), st.integers(0, 900)),
            st.builds(paced, st.integers(1, 300), st.floats(0, 8), st.floats(0, 8)),
        ),
        max_size=12,
    ),
    st.integers(0, 1000),
    st.integers(1, 1000),
    st.integers(0, 2**32),
)
def test_whatever_goes_wrong_the_bytes_are_right_or_there_is_an_error_in_time(
    steps: list[Step], start: int, length: int, seed: int
) -> None:
    async def story() -> None:
        # Pieces of another place are what no count can tell: let them be of the right one.
        def placed(step: Step) -> Step:
            async def moved(begin: int, stop: int) -> Pieces:
                at = begin
                async for piece in step(begin, stop):
                    yield DATA[at : at + len(piece)]
                    at += len(piece)

            return moved

        driver = Scripted(*map(placed, steps))
        limits = Limits(timeout_s=20, silence_s=5, slowest=100)
        origin = Resilient(driver, limits, random=Random(seed), late=Quantile(0.99, window=10, least=1))
        for _ in range(4):
            began_s, stop = now_s(), start + length
            given = bytearray()
            try:
                async for piece in origin.read("k", start, stop, size=SIZE, etag="e"):
                    given += piece
            except (OriginUnavailable, OriginBroken):
                assert given == DATA[start : start + len(given)]
            else:
                assert given == DATA[start:stop]
            assert now_s() - began_s <= 20 + length / 100 + 1e-6
        await asyncio.sleep(10)
        counts = origin.statistics()
        assert driver.open == counts.running == counts.waiting == 0
        assert counts.requests == len(driver.asked)

    run(story())


# -- Counting bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [(), (DATA[:99],), (b"", DATA[:50], b"", DATA[50:99], b"")])
def test_an_answer_that_is_too_short_is_gone_on_with(pieces: tuple[bytes, ...]) -> None:
    async def story() -> None:
        driver = Scripted(gives(*pieces))
        origin = resilient(driver)
        assert await read(origin, 0, 100) == DATA[:100]
        assert driver.asked[1][1:] == (len(b"".join(pieces)), 100)
        assert origin.statistics().broken == 1
        await raises(OriginBroken, read(resilient(Scripted(otherwise=gives())), 0, 100))

    run(story())


@pytest.mark.parametrize("pieces", [(DATA[:101],), (DATA[:100], b"x"), (DATA[:100], b"", b"x"), (memoryview(DATA),)])
def test_of_an_answer_that_is_too_long_nothing_is_used(pieces: tuple[Buffer, ...]) -> None:
    async def story() -> None:
        driver = Scripted(gives(*pieces))
        assert await read(resilient(driver), 0, 100) == DATA[:100]
        assert driver.asked[1][1:] == (0, 100)
        origin = resilient(Scripted(otherwise=gives(*pieces)))
        reading = origin.read("k", 0, 100, size=SIZE, etag="e")
        with pytest.raises(OriginBroken):
            await anext(reading)

    run(story())


def test_one_that_turns_out_too_long_after_some_of_it_was_used_is_an_error_at_once() -> None:
    async def story() -> None:
        driver = Scripted(gives(DATA[:50], DATA[50:101]))
        origin = resilient(driver)
        await raises(OriginBroken, read(origin, 0, 100))
        assert (len(driver.asked), origin.statistics().broken) == (1, 1)

    run(story())


def test_the_last_piece_is_not_the_drivers_any_more() -> None:
    async def story() -> None:
        async def reuses(start: int, stop: int) -> Pieces:
            buffer = bytearray(50)
            for at in range(start, stop, 50):
                buffer[:] = DATA[at : at + 50]
                yield memoryview(buffer)
            buffer[:] = bytes(50)

        assert await read(resilient(Scripted(reuses)), 0, 200) == DATA[:200]

    run(story())


def test_nothing_is_asked_for_where_nothing_is_wanted() -> None:
    async def story() -> None:
        driver = Scripted()
        assert await read(resilient(driver), 5, 5) == b""
        assert driver.asked == []

    run(story())


def test_what_a_driver_does_not_know_to_raise_goes_up_and_leaves_nothing_behind() -> None:
    async def story() -> None:
        async def bug(start: int, stop: int) -> Pieces:
            yield DATA[start : start + 1]
            raise ZeroDivisionError

        driver = Scripted(otherwise=bug)
        origin = resilient(driver, breaker=Breaker(in_a_row=1))
        with pytest.raises(ZeroDivisionError):
            await read(origin)
        with pytest.raises(ZeroDivisionError):
            await origin.head("k")
        await settled()
        counts = origin.statistics()
        assert (driver.open, counts.running, counts.state) == (0, 0, "closed")

    run(story())


def summary(key: str) -> OriginSummary:
    return OriginSummary(key=key, size=1, etag="e", modified_ns=1)


@pytest.mark.parametrize(
    ("keys", "prefixes", "after", "limit", "right"),
    [
        (["pb", "pc"], ["pba/"], "pc", 3, True),
        ([], [], "", 3, True),
        ([], [], "pb", 3, True),
        (["qb"], [], "", 3, False),
        (["pb"], ["q/"], "", 3, False),
        (["pc", "pb"], [], "", 3, False),
        (["pb", "pb"], [], "", 3, False),
        ([], ["p\U0001f600", "p\ufffd"], "", 3, False),
        ([], ["p\ufffd", "p\U0001f600"], "", 3, True),
        (["pb", "pc"], ["pba/"], "", 2, False),
        ([], [], "pa", 3, False),
    ],
)
def test_a_page_is_of_what_was_asked_for_and_is_followed_by_another_one(
    keys: list[str], prefixes: list[str], after: str, limit: int, right: bool
) -> None:
    async def story() -> None:
        driver = Scripted()
        driver.page = OriginPage(tuple(map(summary, keys)), tuple(prefixes), after)
        origin = resilient(driver, Limits(attempts=2))
        ask = origin.list("p", after="pa", limit=limit)
        if right:
            assert await ask is driver.page
        else:
            await raises(OriginBroken, ask)
            assert origin.statistics().broken == len(driver.asked) == 2

    run(story())


# -- Writing ---------------------------------------------------------------------------------------------------------


async def body(size: int, piece: int = 65536, error: Exception | None = None) -> AsyncIterator[Buffer]:
    """Pieces that are all in one buffer, one after the other."""
    buffer = bytearray(piece)
    for at in range(0, size, piece):
        buffer[:] = DATA[at // piece : at // piece + 1] * piece
        yield memoryview(buffer)[: min(piece, size - at)]
    if error is not None:
        raise error


def written(size: int) -> bytes:
    """What `body` gives."""
    return b"".join(DATA[at : at + 1] * 65536 for at in range(-(-size // 65536)))[:size]


def test_a_small_put_is_tried_again_with_the_same_bytes() -> None:
    async def story() -> None:
        driver = Scripted(fails(unavailable()), fails(OriginBroken("lies")))
        driver.taken = 1 << 20
        origin = resilient(driver)
        assert await origin.put("k", body(1 << 20), 1 << 20, Attributes()) == Written("e", verified=True)
        assert len(driver.asked) == 3
        assert driver.written == written(1 << 20)
        assert origin.statistics().bytes_written == 1 << 20

    run(story())


def test_a_large_one_is_tried_again_only_before_much_of_it_was_taken() -> None:
    async def story() -> None:
        driver = Scripted(fails(unavailable()))
        driver.taken = 1 << 19
        origin = resilient(driver)
        await origin.put("k", body(2 << 20), 2 << 20, Attributes())
        assert driver.written == written(2 << 20)
        assert origin.statistics().retries == 1
        driver.steps, driver.taken = [fails(unavailable())], (1 << 20) + 1
        await raises(OriginUnavailable, origin.put("k", body(2 << 20), 2 << 20, Attributes()))
        assert origin.statistics().retries == 1

    run(story())


def test_of_a_large_one_little_is_kept() -> None:
    async def story() -> None:
        replayed = _Replayed(body(2 << 20))
        async for _ in replayed.from_start():
            assert sum(map(len, replayed._kept)) <= 1 << 20
        assert not replayed.at_hand
        assert replayed._kept == []

    run(story())


def test_bytes_that_cannot_be_had_are_nobodys_failure_here() -> None:
    async def story() -> None:
        driver = Scripted()
        driver.taken = 1000
        origin = resilient(driver, breaker=Breaker(in_a_row=1))
        with pytest.raises(KeyError):
            await origin.put("k", body(10, 5, KeyError("disk")), 20, Attributes())
        assert origin.statistics().state == "closed"
        error = OriginBroken("another origin's")
        assert await raises(OriginBroken, origin.put("k", body(10, 5, error), 20, Attributes())) is error
        counts = origin.statistics()
        assert (counts.retries, counts.broken, counts.state, counts.running) == (0, 0, "closed", 0)

    run(story())


# -- Hedges ----------------------------------------------------------------------------------------------------------


async def with_samples(origin: Resilient) -> None:
    """A hundred answers are known."""
    for _ in range(100):
        await origin.head("k")


def hedging(driver: Scripted, limits: Limits | None = None, **options: Any) -> Resilient:
    return resilient(driver, limits, hedges=options.pop("hedges", Budget(1, 1000)), **options)


def test_a_late_first_byte_is_asked_for_again_and_the_first_answer_is_taken() -> None:
    async def story() -> None:
        driver = Scripted(otherwise=paced(100, 0.0, first_s=0.1))
        origin = hedging(driver)
        await with_samples(origin)
        for ask in (lambda: read(origin), lambda: origin.head("k")):
            driver.steps, driver.asked, began_s = [paced(100, 0.0, first_s=3.0)], [], now_s()
            await ask()
            assert now_s() - began_s == pytest.approx(0.2)
            assert [when - began_s for when, _, _ in driver.asked] == pytest.approx([0.0, 0.1])
            await settled()
            assert driver.open == 0  # the other one is closed
        counts = origin.statistics()
        assert (counts.hedges, counts.hedges_won, counts.retries, counts.running) == (2, 2, 0, 0)

    run(story())


def test_no_request_is_late_before_ten_milliseconds() -> None:
    async def story() -> None:
        driver = Scripted()
        origin = hedging(driver)
        await with_samples(origin)
        driver.steps, driver.asked = [paced(100, 0.0, first_s=1.0)], []
        await origin.head("k")
        assert [when for when, _, _ in driver.asked] == [0.0, 0.01]

    run(story())


def test_a_late_answer_that_was_not_waited_for_counts_as_late() -> None:
    async def story() -> None:
        late = Quantile(1.0, window=1000, least=100)
        driver = Scripted(otherwise=paced(100, 0.0, first_s=0.1))
        origin = hedging(driver, late=late)
        await with_samples(origin)
        assert late.value == pytest.approx(0.1)
        driver.steps = [paced(100, 0.0, first_s=3.0)]
        await origin.head("k")
        assert late.value == pytest.approx(0.2)  # or origins would seem the quicker, the more of them is hedged

    run(story())


def test_the_first_request_may_still_win() -> None:
    async def story() -> None:
        driver = Scripted(otherwise=paced(100, 0.0, first_s=0.1))
        origin = hedging(driver)
        await with_samples(origin)
        driver.steps = [paced(100, 0.0, first_s=0.15)]
        assert await read(origin) == DATA
        await settled()
        counts = origin.statistics()
        assert (counts.hedges, counts.hedges_won, driver.open) == (1, 0, 0)

    run(story())


def test_a_hedge_that_fails_waits_for_the_first_one_and_an_answer_does_not() -> None:
    async def story() -> None:
        driver = Scripted(otherwise=paced(100, 0.0, first_s=0.1))
        origin = hedging(driver)
        await with_samples(origin)
        driver.otherwise = well
        driver.steps = [paced(100, 0.0, first_s=1.0), fails(unavailable())]
        assert await read(origin) == DATA
        driver.steps = [paced(100, 0.0, first_s=1.0), fails(OriginMissing("no"))]
        began_s = now_s()
        await raises(OriginMissing, origin.head("k"))
        assert now_s() - began_s < 0.9
        driver.steps = [paced(100, 1000.0), fails(unavailable())]
        assert await read(origin) == DATA  # both failed: tried again
        counts = origin.statistics()
        assert (counts.hedges, counts.hedges_won, counts.retries) == (3, 0, 1)

    run(story())


def test_hedges_are_a_share_of_calls_however_slow_the_origin_becomes() -> None:
    async def story() -> None:
        driver = Scripted(otherwise=paced(100, 0.0, first_s=0.1))
        origin = resilient(driver)
        await with_samples(origin)
        driver.otherwise = paced(100, 0.0, first_s=1.0)
        for _ in range(1000):
            await origin.head("k")
        counts = origin.statistics()
        assert 0 < counts.hedges <= 0.01 * counts.calls + 1
        # And it learns: what is usual is not late.
        driver.asked, driver.otherwise = [], paced(100, 0.0, first_s=0.9)
        await origin.head("k")
        assert len(driver.asked) == 1

    run(story())


def test_hedges_need_a_known_origin_room_and_a_closed_breaker() -> None:
    async def story() -> None:
        slow = paced(100, 0.0, first_s=1.0)
        driver = Scripted(slow)
        origin = hedging(driver)
        await origin.head("k")
        assert len(driver.asked) == 1  # nothing is known
        origin = hedging(driver, Limits(concurrency=1))
        await with_samples(origin)
        driver.steps, driver.asked = [slow], []
        await origin.head("k")
        assert len(driver.asked) == 1  # no room
        origin = hedging(driver, breaker=Breaker(in_a_row=1))
        await with_samples(origin)
        driver.steps, driver.asked = [fails(unavailable(2.0)), slow], []
        await raises(OriginUnavailable, origin.head("k"))
        await asyncio.sleep(2.0)
        await origin.head("k")
        assert len(driver.asked) == 2  # one probe
        origin = hedging(driver, hedges=Budget(0, 0))
        await with_samples(origin)
        driver.steps, driver.asked = [slow], []
        await origin.head("k")
        assert (len(driver.asked), origin.statistics().hedges_denied) == (1, 1)

    run(story())


# -- The breaker and the places ----------------------------------------------------------------------------------------


def test_an_origin_that_keeps_failing_is_left_alone_and_calls_say_for_how_long() -> None:
    async def story() -> None:
        driver = Scripted(otherwise=fails(unavailable()))
        origin = resilient(driver, Limits(attempts=1), breaker=Breaker(in_a_row=3, pause_s=8.0))
        for _ in range(2):
            assert (await raises(OriginUnavailable, origin.head("k"))).retry_after_s == 0
        assert (await raises(OriginUnavailable, origin.head("k"))).retry_after_s == 8.0
        await asyncio.sleep(3.0)
        began_s = now_s()
        for ask in (lambda: read(origin), lambda: origin.list("")):
            error = await raises(OriginUnavailable, ask())
            assert (error.retry_after_s, now_s()) == (5.0, began_s)
        counts = origin.statistics()
        assert (len(driver.asked), counts.left_alone, counts.opened, counts.state) == (3, 2, 1, "open")
        driver.otherwise = paced(100, 0.0, first_s=1.0)
        await asyncio.sleep(5.0)
        assert origin.statistics().state == "half-open"
        probe = asyncio.create_task(read(origin))
        await asyncio.sleep(0.5)
        # What comes meanwhile waits for what the probe finds: a reader of several blocks is not cut off by its first.
        began_s = now_s()
        assert await asyncio.gather(*(read(origin, start, start + 10) for start in range(0, 30, 10))) == [
            DATA[start : start + 10] for start in range(0, 30, 10)
        ]
        assert now_s() == began_s + 0.5 + 1.0
        assert await probe == DATA
        assert origin.statistics().state == "closed"

    run(story())


@pytest.mark.parametrize("silent", [True, False])
def test_who_waits_for_a_probe_is_told_when_it_fails_or_finds_nothing_in_time(silent: bool) -> None:
    async def story() -> None:
        driver = Scripted(fails(unavailable()), paced(1, 1.0, first_s=60.0) if silent else fails_after(0.25))
        origin = resilient(driver, Limits(attempts=1), breaker=Breaker(in_a_row=1, pause_s=8.0))
        await raises(OriginUnavailable, origin.head("k"))
        await asyncio.sleep(8.0)
        probe = asyncio.create_task(read(origin))
        await asyncio.sleep(0)
        began_s = now_s()
        errors = await asyncio.gather(*(origin.head("k") for _ in range(5)), return_exceptions=True)
        assert all(isinstance(error, OriginUnavailable) for error in errors)
        assert now_s() == began_s + (1.0 if silent else 0.25)
        assert len(driver.asked) == 2, "the probe and what opened it"
        with pytest.raises(OriginUnavailable):
            await probe

    run(story())


def test_a_read_counts_as_well_gone_at_its_end_and_not_before() -> None:
    async def story() -> None:
        driver = Scripted()
        origin = resilient(driver, Limits(attempts=1), breaker=Breaker(in_a_row=3))
        for _ in range(5):
            for _ in range(2):
                driver.steps = [fails(unavailable(), after=10)]
                await raises(OriginUnavailable, read(origin))
            await read(origin)
        assert origin.statistics().state == "closed"
        for _ in range(3):  # each of them begins well
            driver.steps = [fails(unavailable(), after=10)]
            await raises(OriginUnavailable, read(origin))
        assert origin.statistics().state == "open"

    run(story())


def test_calls_under_way_stop_trying_when_it_opens() -> None:
    async def story() -> None:
        driver = Scripted(otherwise=fails(unavailable()))
        origin = resilient(driver, Limits(attempts=100), breaker=Breaker(in_a_row=5, pause_s=8.0))
        errors = await asyncio.gather(*(origin.head("k") for _ in range(50)), return_exceptions=True)
        assert all(isinstance(error, OriginUnavailable) for error in errors)
        assert len(driver.asked) <= 50
        assert now_s() <= 0.1

    run(story())


def test_a_probe_that_nobody_wants_any_more_leaves_the_way_to_another() -> None:
    async def story() -> None:
        driver = Scripted(fails(unavailable()), paced(1, 1.0))
        origin = resilient(driver, Limits(attempts=1), breaker=Breaker(in_a_row=1, pause_s=8.0))
        await raises(OriginUnavailable, origin.head("k"))
        await asyncio.sleep(8.0)
        probe = asyncio.create_task(origin.head("k"))
        await asyncio.sleep(0.5)
        probe.cancel()
        await asyncio.wait({probe})
        assert await read(origin) == DATA

    run(story())


def test_a_reader_may_leave_at_any_time() -> None:
    async def story() -> None:
        driver = Scripted()
        origin = resilient(driver, Limits(concurrency=1))
        reading = origin.read("k", 0, SIZE, size=SIZE, etag="e")
        assert await anext(reading) == DATA[:100]
        assert (driver.open, origin.statistics().running) == (1, 1)
        await cast("Pieces", reading).aclose()
        await origin.close()
        assert (driver.open, origin.statistics().running) == (0, 0)
        for pause in range(6):  # cancelled at any step of its beginning
            task = asyncio.create_task(read(origin))
            for _ in range(pause):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
        await origin.close()
        assert (driver.open, origin.statistics().running) == (0, 0)
        assert await read(origin) == DATA

    run(story())


def test_requests_at_once_are_bounded_and_others_wait() -> None:
    async def story() -> None:
        most = 0

        async def counted(start: int, stop: int) -> Pieces:
            nonlocal most
            most = max(most, driver.open)
            await asyncio.sleep(1.0)
            yield DATA[start:stop]

        driver = Scripted(otherwise=counted)
        origin = resilient(driver, Limits(concurrency=4))
        tasks = [asyncio.create_task(read(origin)) for _ in range(10)]
        await asyncio.sleep(0.5)
        counts = origin.statistics()
        assert (counts.running, counts.waiting) == (4, 6)
        assert [task.result() for task in (await asyncio.wait(tasks))[0]] == [DATA] * 10
        assert (most, now_s()) == (4, 3.0)

    run(story())


def test_who_waits_for_a_place_does_so_within_the_bound_and_it_is_no_failure_of_the_origin() -> None:
    async def story() -> None:
        origin = resilient(Scripted(), Limits(concurrency=1, timeout_s=10), breaker=Breaker(in_a_row=1))
        reading = origin.read("k", 0, SIZE, size=SIZE, etag="e")
        await anext(reading)
        error = await raises(OriginUnavailable, origin.head("k"))
        assert (now_s(), error.retry_after_s) == (10.0, 1.0)
        counts = origin.statistics()
        assert (counts.state, counts.requests, counts.waiting) == ("closed", 1, 0)
        await cast("Pieces", reading).aclose()
        await origin.head("k")

    run(story())


def test_who_waits_for_a_place_is_told_when_the_breaker_opens_meanwhile() -> None:
    async def story() -> None:
        driver = Scripted(otherwise=fails_after(1.0))
        origin = resilient(driver, Limits(concurrency=1), breaker=Breaker(in_a_row=1, pause_s=8.0))
        answers = await asyncio.gather(*(origin.head("k") for _ in range(3)), return_exceptions=True)
        assert all(isinstance(answer, OriginUnavailable) for answer in answers)
        assert (len(driver.asked), now_s(), origin.statistics().running) == (1, 1.0, 0)

    run(story())


def test_an_origin_that_does_not_let_go_holds_a_place_for_a_while_only() -> None:
    async def story() -> None:
        async def clings(start: int, stop: int) -> Pieces:
            try:
                yield DATA[start : start + 1]
            finally:
                await asyncio.sleep(1000)

        origin = resilient(Scripted(clings), Limits(concurrency=1, silence_s=5))
        reading = origin.read("k", 0, SIZE, size=SIZE, etag="e")
        await anext(reading)
        await cast("Pieces", reading).aclose()
        assert now_s() == 0  # the reader need not wait for it
        assert await read(origin) == DATA
        assert now_s() == 5.0

    run(story())
