"""The link between regions: what distance does to a connection, and what it never does to its bytes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import resource
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from lab.link import BURST_S, DOOMED_BYTES, LEAST_WINDOW_BYTES, Lane, Link, call

A, B = "127.0.1.1", "127.0.2.1"

GRAIN_S = 0.003
"""The loop counts whole milliseconds, and so may each of a few waits end that much early."""

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


class World:
    """A node in region b, behind a link; clients in both regions."""

    def __init__(self, link: Link, address: tuple[str, int]) -> None:
        self.link = link
        self.address = address

    async def connect(self, source: str = A) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.address, local_addr=(source, 0))

    async def ask(self, data: bytes, source: str = A) -> bytes:
        """Send, end, and read to the end."""
        reader, writer = await self.connect(source)
        try:
            sending = asyncio.create_task(_send(writer, data))
            received = await reader.read()
            await sending
            return received
        finally:
            writer.close()


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
    writer.write_eof()


@contextlib.asynccontextmanager
async def world(serve: Serve = echo, seed: int = 0) -> AsyncIterator[World]:
    link = Link({"a": A, "b": B}, seed=seed)
    serving: set[asyncio.Task[None]] = set()

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await serve(reader, writer)
        finally:
            serving.discard(task)
            writer.close()

    node = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    try:
        yield World(link, await link.listen("b", node.sockets[0].getsockname()))
    finally:
        await link.close()
        node.close()
        for task in serving:
            task.cancel()
        if serving:
            await asyncio.wait(serving)


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_request_over_a_fresh_connection_costs_two_round_trips_and_the_next_one_costs_one() -> None:
    async def body() -> None:
        async with world() as lab:
            lab.link.set("a", "b", latency_s=0.06)
            began = now()
            reader, writer = await lab.connect()
            for round_trips in (2, 3):
                writer.write(b"ping")
                assert await reader.readexactly(4) == b"ping"
                assert now() - began >= round_trips * 0.12 - GRAIN_S
            writer.close()

    uvloop.run(body())


def test_latency_is_a_delay_and_no_limit_to_throughput() -> None:
    data = random.Random(1).randbytes(8 << 20)

    async def body() -> None:
        async with world() as lab:
            lab.link.set("a", "b", latency_s=0.25)
            began = now()
            assert await lab.ask(data) == data
            # At one chunk per latency it would be 32 times 0.25 s, and as much again for the way back.
            assert 4 * 0.25 - GRAIN_S <= now() - began < 8

    uvloop.run(body())


def test_connections_share_a_lane_and_the_other_lane_is_another() -> None:
    rate, size = 4_000_000, 1_000_000

    async def body() -> None:
        async with world() as lab:
            lab.link.set("a", "b", bytes_per_s=rate)
            began = now()
            answers = await asyncio.gather(*[lab.ask(bytes(size)) for _ in range(4)])
            assert now() - began >= 4 * size / rate - BURST_S - GRAIN_S
            assert answers == [bytes(size)] * 4
            assert lab.link.crossed_bytes("a", "b") == lab.link.crossed_bytes("b", "a") == 4 * size

    uvloop.run(body())


def test_a_lane_gives_its_rate_and_no_more_whatever_the_chunks() -> None:
    rng = random.Random(7)
    lane, at, sent = Lane(), 100.0, 0
    while at < 102.0:
        size = rng.randrange(1, 100_000)
        sent += size
        departed = lane.departure(size, 1e6, at)
        assert departed >= 100.0 + sent / 1e6 - BURST_S - 1e-6
        # The one who waits is told late, which a timer's grain may do: it costs no bandwidth.
        at = max(at, departed) + rng.random() * BURST_S / 2
    assert sent == pytest.approx(2e6, rel=0.06)


def test_a_lane_that_was_idle_owes_no_more_than_a_burst() -> None:
    lane = Lane()
    lane.departure(1000, 1e6, 0.0)
    assert lane.departure(100_000, 1e6, 50.0) == pytest.approx(50.1 - BURST_S)


def test_every_byte_arrives_once_and_in_order_whatever_the_chunks() -> None:
    async def body(seed: int) -> None:
        rng = random.Random(seed)
        data = rng.randbytes(rng.randrange(1, 1 << 20))

        async with world() as lab:
            lab.link.set("a", "b", latency_s=0.01, bytes_per_s=20e6)
            reader, writer = await lab.connect()

            async def send() -> None:
                at = 0
                while at < len(data):
                    size = rng.randrange(1, 100_000)
                    writer.write(data[at : at + size])
                    await writer.drain()
                    at += size
                    lab.link.set(
                        "a", "b", latency_s=rng.random() * 0.01, bytes_per_s=rng.choice([20e6, 50e6, math.inf])
                    )
                writer.write_eof()

            sending = asyncio.create_task(send())
            assert await reader.read() == data
            await sending
            writer.close()

    for seed in range(8):
        print(f"seed {seed}")
        uvloop.run(body(seed))


def test_a_region_reaches_itself_and_strangers_reach_it_at_once_and_uncounted() -> None:
    async def body() -> None:
        async with world() as lab:
            lab.link.set("a", "b", latency_s=30)
            lab.link.partition("a", "b")
            assert await lab.ask(b"near", B) == b"near"
            assert await lab.ask(b"client", "127.0.0.1") == b"client"
            assert lab.link.crossed_bytes("a", "b") == 0

    uvloop.run(body())


def test_a_frozen_connection_goes_on_after_the_healing() -> None:
    async def body() -> None:
        async with world() as lab:
            lab.link.set("a", "b", latency_s=0.01)
            reader, writer = await lab.connect()
            writer.write(b"before")
            assert await reader.readexactly(6) == b"before"
            lab.link.partition("a", "b")
            writer.write(b"during")
            late, late_writer = await lab.connect()
            late_writer.write(b"new one")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.readexactly(1), 0.2)
            assert lab.link.crossed_bytes("a", "b") == len(b"before")
            lab.link.heal("a", "b")
            assert await reader.readexactly(6) == b"during"
            assert await late.readexactly(7) == b"new one"
            writer.close()
            late_writer.close()

    uvloop.run(body())


def test_connections_can_be_reset_and_refused_instead() -> None:
    async def body() -> None:
        async with world() as lab:
            reader, writer = await lab.connect()
            writer.write(b"before")
            assert await reader.readexactly(6) == b"before"
            lab.link.partition("a", "b", established="reset", arriving="refuse")
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            refused, refused_writer = await lab.connect()
            with pytest.raises(ConnectionResetError):
                await refused.readexactly(1)
            lab.link.heal("a", "b")
            assert await lab.ask(b"healed") == b"healed"
            writer.close()
            refused_writer.close()

    uvloop.run(body())


def test_a_fraction_of_connections_is_cut_and_the_same_ones_for_a_seed() -> None:
    async def body() -> list[bool]:
        async with world(seed=3) as lab:
            lab.link.set("a", "b", cut=0.4)
            whole = []
            for _ in range(40):
                try:
                    whole.append(await lab.ask(bytes(DOOMED_BYTES)) == bytes(DOOMED_BYTES))
                except ConnectionError:
                    whole.append(False)
            return whole

    whole = uvloop.run(body())
    rng = random.Random(3)
    assert whole == [not (rng.random() < 0.4 and rng.randrange(DOOMED_BYTES) >= 0) for _ in range(40)]
    assert 10 < sum(whole) < 35


def test_a_half_close_arrives_and_the_answer_still_comes() -> None:
    async def length(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%d" % len(await reader.read()))

    async def body() -> None:
        async with world(length) as lab:
            lab.link.set("a", "b", latency_s=0.02)
            assert await lab.ask(bytes(300_000)) == b"300000"

    uvloop.run(body())


def test_a_client_that_resets_is_seen_by_the_node_as_one() -> None:
    async def body() -> None:
        seen: asyncio.Future[float] = asyncio.get_running_loop().create_future()

        async def expects_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(2))  # a reset may overtake bytes; not those that have arrived
            with pytest.raises(ConnectionResetError):
                await reader.read()
            seen.set_result(now())

        async with world(expects_reset) as lab:
            lab.link.set("a", "b", latency_s=0.05)
            reader, writer = await lab.connect()
            writer.write(b"hi")
            assert await reader.readexactly(2) == b"hi"
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            reset_at = now()
            writer.transport.abort()
            assert await asyncio.wait_for(seen, 20) - reset_at >= 0.05 - GRAIN_S

    uvloop.run(body())


def test_a_node_that_resets_is_seen_by_the_client_as_one() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(2)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def body() -> None:
        async with world(reset) as lab:
            reader, writer = await lab.connect()
            writer.write(b"hi")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    uvloop.run(body())


def test_a_node_that_is_not_there_is_a_reset() -> None:
    async def body() -> None:
        async with world() as lab:
            with socket.create_server(("127.0.0.1", 0)) as gone:
                nobody = gone.getsockname()
            address = await lab.link.listen("b", nobody)
            reader, writer = await asyncio.open_connection(*address, local_addr=(A, 0))
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            writer.close()

    uvloop.run(body())


def test_memory_is_bounded_while_the_receiver_takes_nothing() -> None:
    async def body() -> None:
        stalled = asyncio.Event()

        async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await stalled.wait()

        async with world(deaf) as lab:
            _, writer = await lab.connect()
            writer.transport.set_write_buffer_limits(0)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < 1 << 30:
                    writer.write(bytes(1 << 20))
                    await asyncio.wait_for(writer.drain(), 1)
                    sent += 1 << 20
            # The link's window, the reader's two limits, and four socket buffers of the kernel's choosing.
            assert sent <= LEAST_WINDOW_BYTES + (48 << 20)
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
            writer.transport.abort()

    uvloop.run(body())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda link: link.set("a", "c", cut=0), "'a' and 'c'"),
        (lambda link: link.set("a", "a", cut=0), "'a' and 'a'"),
        (lambda link: link.set("a", "b", latency_s=-1), "latency_s -1"),
        (lambda link: link.set("a", "b", latency_s=math.inf), "latency_s inf"),
        (lambda link: link.set("a", "b", bytes_per_s=0), "partition it"),
        (lambda link: link.set("a", "b", cut=1.5), "cut 1.5"),
        (lambda link: link.partition("a", "b", arriving="wait"), "'wait'"),
        (lambda link: link.heal("b", "c"), "'b' and 'c'"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(change: Callable[[Link], None], said: str) -> None:
    async def body() -> None:
        async with world() as lab:
            with pytest.raises(ValueError, match=said):
                change(lab.link)
            assert await lab.ask(b"as before") == b"as before"

    uvloop.run(body())


def test_regions_are_told_apart() -> None:
    with pytest.raises(ValueError, match="one address"):
        Link({"a": A, "b": A})

    async def body() -> None:
        with pytest.raises(ValueError, match="no region 'c'"):
            await Link({"a": A, "b": B}).listen("c", (A, 1))

    uvloop.run(body())


def test_a_link_of_its_own_process_takes_orders_on_its_socket(tmp_path: Path) -> None:
    control = tmp_path / "control"
    with socket.create_server(("127.0.0.1", 0)) as node, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        places = f"b=127.0.0.1:{port}=127.0.0.1:{node.getsockname()[1]}"
        command = [sys.executable, "-m", "lab.link", f"--control={control}", f"--node={places}"]
        process = subprocess.Popen([*command, f"--region=a={A}", f"--region=b={B}"], stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            call(control, "set", source="a", destination="b", latency_s=0.001, bytes_per_s=math.inf)
            with socket.create_connection(("127.0.0.1", port), source_address=(A, 0)) as client:
                client.sendall(b"hello")
                accepted, _ = node.accept()
                with accepted:
                    assert accepted.recv(5, socket.MSG_WAITALL) == b"hello"
                    assert call(control, "crossed_bytes", source="a", destination="b") == 5
                    call(control, "partition", source="a", destination="b", established="reset")
                    with pytest.raises(ConnectionResetError):
                        client.recv(1)
            call(control, "heal", source="a", destination="b")
            for order, said in [
                ({"name": "close"}, "expected set, partition"),
                ({"name": "set", "source": "a"}, "TypeError"),
                ({"name": "set", "source": "a", "destination": "b", "cut": 2}, "fraction"),
            ]:
                with pytest.raises(ValueError, match=said):
                    call(control, **order)  # type: ignore[arg-type]
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
