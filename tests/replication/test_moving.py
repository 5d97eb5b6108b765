"""One content is gained or given up at a time, in whichever process of a node."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path

from tigrislike.replication.moving import NAME, Moving, byte_of


def test_gaining_and_losing_one_content_come_one_after_the_other_and_others_go_on(tmp_path: Path) -> None:
    async def main() -> None:
        moving = Moving(tmp_path)
        inside: list[str] = []

        async def move(content_id: bytes, name: str, go: asyncio.Event) -> None:
            async with moving.of(content_id):
                inside.append(name)
                await go.wait()
                inside.append(f"/{name}")

        first, second, other = asyncio.Event(), asyncio.Event(), asyncio.Event()
        other.set()
        running = [asyncio.create_task(move(b"1", "first", first)), asyncio.create_task(move(b"1", "second", second))]
        running.append(asyncio.create_task(move(b"2", "other", other)))
        await running[2]
        assert inside == ["first", "other", "/other"]
        late = asyncio.create_task(move(b"1", "late", other))
        await asyncio.sleep(0)
        late.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await late
        second.set()
        first.set()
        await asyncio.gather(*running)
        assert inside[3:] == ["/first", "second", "/second"]
        assert not moving._locks
        assert not moving._waiting

    asyncio.run(main())


_OTHER_PROCESS = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX, 1, int(sys.argv[2]))
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_another_process_that_moves_it_is_waited_for_until_it_ends_or_dies(tmp_path: Path) -> None:
    one, two = b"1" * 16, b"2" * 16
    looks = 0

    async def look(seconds: float) -> None:
        nonlocal looks
        assert seconds > 0
        looks += 1
        if looks == 3:
            other.kill()
            other.wait()

    async def main() -> None:
        async with moving.of(two):
            assert looks == 0
        async with moving.of(one):
            assert looks == 3
        async with moving.of(one):
            assert looks == 3

    with contextlib.closing(Moving(tmp_path, sleep=look)) as moving:
        command = [sys.executable, "-c", _OTHER_PROCESS, str(tmp_path / NAME), str(byte_of(one))]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"locked\n"
            asyncio.run(main())
