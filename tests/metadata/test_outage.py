"""The breaker: when the database counts as away, who waits for it, and how it is found to be back."""

from __future__ import annotations

import asyncio

import pytest

from tigrislike.metadata.kv import EngineClosed, EngineUnavailable
from tigrislike.metadata.outage import PROBE_S, Outage


class Database:
    """Answers questions while `up`; says that it cannot, or hangs, while it is not."""

    def __init__(self) -> None:
        self.up = True
        self.hangs = False
        self.closed = False
        self.asked = 0
        self.pauses: asyncio.Queue[float] = asyncio.Queue()
        self.paused = asyncio.Event()

    async def ask(self) -> None:
        self.asked += 1
        if self.closed:
            raise EngineClosed
        if self.hangs:
            await asyncio.Event().wait()
        if not self.up:
            raise EngineUnavailable("it is away")

    async def sleep(self, seconds: float) -> None:
        """Until the test says that it is over."""
        self.paused.set()
        assert await self.pauses.get() == seconds

    async def pause_is_over(self) -> None:
        await self.paused.wait()
        self.paused.clear()
        self.pauses.put_nowait(PROBE_S)

    def outage(self) -> Outage:
        return Outage(self.ask, sleep=self.sleep, answer_s=0.01)


async def ended(outage: Outage) -> None:
    assert outage._probing is not None
    await asyncio.wait([outage._probing])
    assert not outage.under_way


def test_what_the_engine_says_is_certain_and_nobody_waits_until_it_answers_again() -> None:
    async def main() -> None:
        database = Database()
        outage = database.outage()
        database.up = False
        with pytest.raises(EngineUnavailable, match="it is away"), outage:
            await database.ask()
        assert (outage.under_way, outage.certain) == (True, True)
        entered = False
        with pytest.raises(EngineUnavailable, match="cannot be reached"), outage:
            entered = True
        assert not entered
        await database.pause_is_over()
        await database.paused.wait()
        assert database.asked == 3  # by us, and once before each pause
        database.up = True
        await database.pause_is_over()
        await ended(outage)
        assert not outage.certain
        with outage:
            await database.ask()

    asyncio.run(main())


def test_a_wait_that_was_too_long_is_a_suspicion_that_the_first_answer_ends() -> None:
    async def main() -> None:
        database = Database()
        outage = database.outage()
        outage.suspect()
        outage.suspect()
        assert (outage.under_way, outage.certain) == (True, False)
        with outage:
            pass  # others ask as ever
        await ended(outage)
        assert database.asked == 1

    asyncio.run(main())


def test_a_question_that_is_not_answered_makes_it_certain() -> None:
    async def main() -> None:
        database = Database()
        outage = database.outage()
        database.hangs = True
        outage.suspect()
        await database.paused.wait()
        assert outage.certain
        database.hangs = False
        await database.pause_is_over()
        await ended(outage)
        assert not outage.certain

    asyncio.run(main())


def test_an_engine_that_is_closed_is_no_outage() -> None:
    async def main() -> None:
        database = Database()
        outage = database.outage()
        database.closed = True
        with pytest.raises(EngineClosed), outage:
            await database.ask()
        assert not outage.under_way
        outage.suspect()
        await ended(outage)
        assert not outage.certain

    asyncio.run(main())


def test_closing_ends_the_questions() -> None:
    async def main() -> None:
        database = Database()
        outage = database.outage()
        await outage.close()
        database.up = False
        outage.suspect()
        await database.paused.wait()
        await outage.close()
        assert not outage.under_way
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
