"""Tens of thousands of reads by clients that pipeline, stall, vanish and reset, over a disk that keeps forgetting.

The whole node is in this process, behind real sockets, so that what it holds can be counted: not a descriptor, a task,
a connection or an open block may be left, and not a byte may be wrong that any client, however short its stay, got.
"""

from __future__ import annotations

import asyncio
import collections
import gc
import os
import random
import socket
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

from tests.crash.inprocess import InProcessNode, opened
from tests.server.wire import Serving, serving, until

CLIENTS = 48
SIZES = {"small": 1_500, "medium": 300_000, "large": 6_000_000}
BOUND_S = 600
FORGET_EVERY = 64  # reads between two moments at which the kernel is told to drop some files' pages


@dataclass
class World:
    """What all clients share. `reads` counts requests sent."""

    port: int
    targets: dict[str, str]
    contents: dict[str, bytes]
    files: list[Path]
    goal: int
    reads: int = 0
    stalled: int = 0
    seen: collections.Counter[str] = field(default_factory=collections.Counter)
    progress: asyncio.Event = field(default_factory=asyncio.Event)

    def count(self) -> None:
        self.reads += 1
        if self.reads % FORGET_EVERY == 0:
            self.progress.set()
            self.progress = asyncio.Event()
            fd = os.open(self.files[self.reads // FORGET_EVERY % len(self.files)], os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


class Peer:
    """A client's socket, and the check of every byte that comes out of it."""

    def __init__(self, raw: socket.socket) -> None:
        self.raw = raw
        self.data = bytearray()

    @classmethod
    async def connected(cls, world: World, *, narrow: bool = False) -> Peer:
        raw = socket.socket()
        raw.setblocking(False)
        if narrow:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        try:
            await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", world.port))
        except BaseException:
            raw.close()
            raise
        return cls(raw)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.raw, data)

    async def _more(self) -> None:
        data = await asyncio.get_running_loop().sock_recv(self.raw, 256 * 1024)
        if not data:
            raise ConnectionError("closed by the server")
        self.data += data

    async def answer(self, expected: bytes, *, at_most: int | None = None) -> bool:
        """Read an answer, all of it or `at_most` bytes of the body; whether it was all."""
        while (end := self.data.find(b"\r\n\r\n")) < 0:
            await self._more()
        head = bytes(self.data[:end]).lower()
        assert head.startswith(b"http/1.1 206 "), head
        assert b"content-length: %d" % len(expected) in head.split(b"\r\n")
        del self.data[: end + 4]
        wanted = len(expected) if at_most is None else min(at_most, len(expected))
        while len(self.data) < wanted:
            await self._more()
        body = bytes(self.data[: len(expected)])
        assert body == expected[: len(body)], "wrong bytes"
        del self.data[: len(expected)]
        return len(body) == len(expected)

    def reset(self) -> None:
        self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.raw.close()


class Client:
    """One visitor after the other, each of a random kind."""

    def __init__(self, world: World, seed: int, number: int) -> None:
        self.world = world
        self.random = random.Random(f"{seed} {number}")
        self.kinds = [
            self.loyal,
            self.pipelining,
            self.vanishing,
            self.resetting,
            self.stalling,
            self.half_closed,
            self.cut,
        ]
        self.next = self.kinds[number % len(self.kinds)]

    def read(self, *, at_least: int = 1) -> tuple[bytes, bytes]:
        """A request for a random range, and the bytes that must come."""
        rng, world = self.random, self.world
        name = rng.choice([name for name, size in SIZES.items() if size >= at_least])
        size = SIZES[name]
        length = max(at_least, min(size, int(rng.paretovariate(0.5) * 64)))
        start = rng.randrange(size - length + 1)
        world.count()
        lines = [f"GET {world.targets[name]} HTTP/1.1", "Host: node.test", f"Range: bytes={start}-{start + length - 1}"]
        return "\r\n".join([*lines, "", ""]).encode(), world.contents[name][start : start + length]

    async def run(self) -> None:
        while self.world.reads < self.world.goal:
            kind = self.next
            (self.next,) = self.random.choices(self.kinds, [8, 3, 3, 3, 1, 2, 1])
            peer = await Peer.connected(self.world, narrow=kind == self.stalling)
            try:
                await kind(peer)
            finally:
                peer.raw.close()
            self.world.seen[kind.__name__] += 1

    async def loyal(self, peer: Peer) -> None:
        for _ in range(self.random.randint(1, 12)):
            request, expected = self.read()
            await peer.send(request)
            assert await peer.answer(expected)

    async def pipelining(self, peer: Peer) -> None:
        reads = [self.read() for _ in range(self.random.randint(2, 12))]
        await peer.send(b"".join(request for request, _ in reads))
        leave_after = self.random.choice([len(reads), self.random.randrange(len(reads))])
        for _, expected in reads[:leave_after]:
            assert await peer.answer(expected)

    async def vanishing(self, peer: Peer) -> None:
        request, expected = self.read()
        await peer.send(request)
        if self.random.random() < 0.8:
            await peer.answer(expected, at_most=self.random.randrange(len(expected)))

    async def resetting(self, peer: Peer) -> None:
        request, expected = self.read()
        await peer.send(request)
        if self.random.random() < 0.8:
            await peer.answer(expected, at_most=self.random.randrange(len(expected)))
        peer.reset()

    async def stalling(self, peer: Peer) -> None:
        request, expected = self.read(at_least=2_000_000)
        await peer.send(request)
        world = self.world
        if world.reads < world.goal - 10 * FORGET_EVERY and world.stalled < CLIENTS // 2:
            world.stalled += 1
            await world.progress.wait()  # the others go on
            world.stalled -= 1
        if self.random.random() < 0.5:
            assert await peer.answer(expected)
        else:
            peer.reset()

    async def half_closed(self, peer: Peer) -> None:
        request, expected = self.read()
        await peer.send(request)
        peer.raw.shutdown(socket.SHUT_WR)
        assert await peer.answer(expected)
        with pytest.raises(ConnectionError):
            await peer.answer(b"")

    async def cut(self, peer: Peer) -> None:
        """Half a request; now and then behind a whole one."""
        request, expected = self.read()
        whole = self.random.random() < 0.5
        await peer.send((request if whole else b"") + request[: self.random.randrange(1, len(request))])
        if whole:
            assert await peer.answer(expected)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def block_files(data_dir: Path) -> list[Path]:
    found = sorted(path for path in data_dir.rglob("home/*/*") if path.is_file())
    assert len(found) > 50
    return found


async def torture(node: InProcessNode, server: Serving, data_dir: Path, goal: int, seed: int) -> World:
    contents = {name: random.Random(size).randbytes(size) for name, size in SIZES.items()}
    assert (await node.request("PUT", "/reads")).status == 200
    for name, body in contents.items():
        assert (await node.request("PUT", f"/reads/{name}", body=body)).status == 200
    targets = {name: node.caller.presign("GET", f"/reads/{name}") for name in SIZES}
    world = World(server.port, targets, contents, block_files(data_dir), goal)
    clients = [Client(world, seed, n) for n in range(CLIENTS)]

    # Once before the counting: pools of threads and caches of connections come with the first who need them.
    world.goal = 200
    await asyncio.gather(*(client.run() for client in clients))
    world.goal = goal
    await until(lambda: not server.front.connections and not server.front.tasks)
    tasks = asyncio.all_tasks()
    await until(lambda: node.blocks.statistics().open_blocks == 0)
    before = descriptors()

    await asyncio.gather(*(client.run() for client in clients))

    await until(lambda: not server.front.connections and not server.front.tasks)
    await until(lambda: node.blocks.statistics().open_blocks == 0)
    # Fewer where a thread was still reading ahead for a client that had gone when they were counted first.
    await until(lambda: descriptors() <= before)
    await until(lambda: asyncio.all_tasks() <= tasks)
    return world


@pytest.mark.parametrize("goal", [1_500, pytest.param(50_000, marks=pytest.mark.slow)])
def test_reads_by_all_kinds_of_clients_leave_nothing_behind(
    tmp_path: Path, goal: int, caplog: pytest.LogCaptureFixture
) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    gc.collect()  # what other tests have left is neither this one's descriptors nor its complaints
    caplog.clear()

    async def main() -> None:
        async with opened(tmp_path / "data") as node, serving(node.app, max_connections=10_000) as server:
            world = await asyncio.wait_for(torture(node, server, tmp_path / "data", goal, seed), BOUND_S)
            print(
                world.reads,
                dict(world.seen),
                f"{server.front.sendfile_bytes:,} bytes by sendfile,",
                server.front.sendfile_cold,
                "cold waits",
            )
            assert world.reads >= goal
            assert len(world.seen) == 7, "a kind never came"

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    gc.collect()
    assert [record.message for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []
