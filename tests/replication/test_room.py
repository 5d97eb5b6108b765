"""Room for copies: so many bytes at a time, in the order of asking."""

from __future__ import annotations

import asyncio

import pytest

from tigrislike.replication.replicate import Room


class Copies:
    """Copies that have room, each until it is told to end."""

    def __init__(self, room: Room) -> None:
        self.under_way: list[str] = []
        self._room = room
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def begin(self, name: str, size: int) -> None:
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self.copy(name, size))
        await settle()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self._tasks[name]
        await settle()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._tasks[name]
        await settle()

    async def copy(self, name: str, size: int) -> None:
        async with self._room.of(size):
            self.under_way.append(name)
            try:
                await self._ends[name].wait()
            finally:
                self.under_way.remove(name)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_has_no_room_waits_and_keeps_its_place_before_the_smaller() -> None:
    async def main() -> None:
        copies = Copies(Room(10))
        await copies.begin("six", 6)
        await copies.begin("five", 5)
        await copies.begin("one", 1)
        assert copies.under_way == ["six"]
        await copies.end("six")
        assert copies.under_way == ["five", "one"]

    asyncio.run(main())


def test_what_is_larger_than_the_room_has_it_alone() -> None:
    async def main() -> None:
        copies = Copies(Room(10))
        await copies.begin("eleven", 11)
        await copies.begin("one", 1)
        assert copies.under_way == ["eleven"]
        await copies.end("eleven")
        assert copies.under_way == ["one"]

    asyncio.run(main())


def test_who_gives_up_leaves_the_room_to_others() -> None:
    async def main() -> None:
        copies = Copies(Room(10))
        await copies.begin("ten", 10)
        await copies.begin("nine", 9)
        await copies.begin("two", 2)
        await copies.cancel("nine")
        assert copies.under_way == ["ten"]
        await copies.cancel("ten")
        assert copies.under_way == ["two"]

    asyncio.run(main())


def test_who_is_let_in_and_gives_up_before_he_runs_leaves_nothing_taken() -> None:
    async def main() -> None:
        room = Room(10)
        copies = Copies(room)
        async with room.of(10):
            waiting = asyncio.create_task(copies.copy("another", 10))
            await settle()
        waiting.cancel()  # it has been let in, and has not run since
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await copies.begin("last", 10)
        assert copies.under_way == ["last"]

    asyncio.run(main())
