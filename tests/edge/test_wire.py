"""The edge byte by byte: raw clients in front of it, scripted nodes behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from tigrislike import edge as edge_module
from tigrislike.edge import Edge, EdgeError, Node, Regions, parse_regions

Script = Callable[["ScriptedNode", Reader, Writer], Awaitable[None]]

NEVER_S = 3600.0


class ScriptedNode:
    """Answers `/readyz`, and other connections by its script. `seen` is what it was sent, connection by connection."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.seen: list[bytearray] = []
        self.ready = b"200 OK"
        self.reset = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def head(self, reader: Reader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        self.seen[-1] += head
        return head

    async def body(self, reader: Reader, size: int) -> bytes:
        body = await reader.readexactly(size)
        self.seen[-1] += body
        return body

    async def _serve(self, reader: Reader, writer: Writer) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET /readyz"):
                writer.write(b"HTTP/1.1 %s\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}" % self.ready)
                return
            self.seen.append(bytearray(head))
            await self.script(self, reader, writer)
        except ConnectionResetError:
            self.reset.set()
        except asyncio.IncompleteReadError:
            pass
        finally:
            self._tasks.discard(task)
            writer.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main, 60)

    uvloop.run(bounded())


class World:
    def __init__(self, edge: Edge, nodes: list[ScriptedNode], port: int) -> None:
        self.edge = edge
        self.nodes = nodes
        self.port = port

    async def connect(self) -> tuple[Reader, Writer]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def talk(self, data: bytes) -> bytes:
        """Send, and read to the end of the connection."""
        reader, writer = await self.connect()
        writer.write(data)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        return answer


@contextlib.asynccontextmanager
async def world(*scripts: Script, interval_s: float = NEVER_S) -> AsyncIterator[World]:
    nodes = [ScriptedNode(script) for script in scripts]
    urls = [await node.start() for node in nodes]
    regions = Regions(parse_regions([f"r{number}={url}" for number, url in enumerate(urls)], None), interval_s)
    edge = Edge(regions)
    try:
        port = await edge.listen("127.0.0.1", 0)
        for distance, behind in enumerate(regions.nodes):
            behind.latency_s = 0.001 * 2**distance  # nearest first, whatever this machine was busy with
        regions._preferred = "r0"
        yield World(edge, nodes, port)
    finally:
        await edge.close(0)
        for node in nodes:
            await node.stop()


async def answer_all(node: ScriptedNode, reader: Reader, writer: Writer) -> None:
    """`OK` and two bytes, again and again."""
    number = 0
    while True:
        writer.write(OK + b"%02d" % number)
        await writer.drain()
        number += 1
        await node.head(reader)


def with_edge(response: bytes, region: str = "r0") -> bytes:
    return response.replace(b"\r\n\r\n", b"\r\nX-Tigrislike-Edge: %s\r\n\r\n" % region.encode(), 1)


def test_a_head_arrives_byte_for_byte() -> None:
    head = (
        b"GET /b/k%20%2F?list-type=2&x&=y HTTP/1.1\r\nhost:  Edge:9080\r\nX-B: 2\r\nx-a:1 \r\nX-B: 3\r\n"
        b"Authorization: AWS4-HMAC-SHA256 Credential=x\r\nConnection: keep-alive, x-a\r\nX-Utf: \xc3\xa9\r\n\r\n"
    )

    async def body() -> None:
        async with world(answer_all) as lab:
            assert await lab.talk(head) == with_edge(OK) + b"00"
            assert lab.nodes[0].seen == [head]

    run(body())


def test_pipelined_requests_are_answered_in_order_over_one_connection() -> None:
    async def body() -> None:
        async with world(answer_all) as lab:
            requests = [b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(5)]
            assert await lab.talk(b"".join(requests)) == b"".join(
                with_edge(OK) + b"%02d" % number for number in range(5)
            )
            assert lab.nodes[0].seen == [b"".join(requests)]

    run(body())


def test_nothing_of_an_ambiguous_request_reaches_a_node() -> None:
    async def body() -> None:
        async with world(answer_all) as lab:
            for fields in (
                b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                b"Content-Length: 5\r\nContent-Length: 6\r\n",
                b"Transfer-Encoding: xchunked\r\n",
                b"Content-Length: 0\n\r\n",
            ):
                smuggled = b"0\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n"
                answer = await lab.talk(b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n" + smuggled)
                assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
                assert b"<Code>BadRequest</Code>" in answer
                assert answer.count(b"HTTP/1.1") == 1
            assert (await lab.talk(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(b"HTTP/1.1 400")
            long = b"GET /" + b"x" * 70_000
            assert (await lab.talk(long)).startswith(b"HTTP/1.1 400")
            assert lab.nodes[0].seen == []

    run(body())


def test_a_body_that_is_not_chunked_as_it_claims_is_refused_and_the_node_is_cut_off() -> None:
    async def wait_for_more(node: ScriptedNode, reader: Reader, writer: Writer) -> None:
        while True:
            await node.body(reader, 1)

    async def body() -> None:
        async with world(wait_for_more) as lab:
            answer = await lab.talk(
                b"PUT /k HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\nGET / HTTP/1.1\r\n\r\n"
            )
            assert answer.startswith(b"HTTP/1.1 400")
            assert b"GET" not in b"".join(lab.nodes[0].seen)
            await lab.nodes[0].reset.wait()

    run(body())


def test_chunked_bodies_pass_both_ways_with_trailers_and_end_where_they_end() -> None:
    chunked = b"5;chunk-signature=ab\r\nhello\r\n3\r\n\r\n\x00\r\n0\r\nx-amz-trailer: v\r\n\r\n"
    response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def echo(node: ScriptedNode, reader: Reader, writer: Writer) -> None:
        while True:
            writer.write(response + await node.body(reader, len(chunked)))
            await node.head(reader)

    async def body() -> None:
        async with world(echo) as lab:
            request = b"PUT /k HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked
            assert await lab.talk(request * 2) == (with_edge(response) + chunked) * 2
            assert lab.nodes[0].seen == [request * 2]

    run(body())


def test_bodies_of_any_size_pass_unchanged_and_in_bounded_memory() -> None:
    size = 64 << 20

    async def take_slowly(node: ScriptedNode, reader: Reader, writer: Writer) -> None:
        await gate.wait()
        left = size
        while left:
            left -= len(data := await reader.read(1 << 20))
            assert data.count(b"x") == len(data)
        writer.write(OK + b"ok")

    gate = asyncio.Event()

    async def body() -> None:
        async with world(take_slowly) as lab:
            reader, writer = await lab.connect()
            writer.transport.set_write_buffer_limits(0)
            writer.write(b"PUT /k HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < size:
                    writer.write(b"x" * (1 << 20))
                    await asyncio.wait_for(writer.drain(), 1)
                    sent += 1 << 20
            assert sent < 40 << 20  # the rest waits for the node: what there is fills the kernel's buffers
            gate.set()
            await writer.drain()
            sent += 1 << 20
            while sent < size:
                writer.write(b"x" * (1 << 20))
                await writer.drain()
                sent += 1 << 20
            assert await reader.readexactly(len(with_edge(OK)) + 2) == with_edge(OK) + b"ok"
            writer.close()

    run(body())


def test_a_client_that_waits_for_100_continue_gets_the_nodes() -> None:
    async def expecting(node: ScriptedNode, reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await node.body(reader, 5) == b"hello"
        writer.write(OK + b"ok")
        await node.head(reader)
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        await node.body(reader, 1)

    async def body() -> None:
        async with world(expecting) as lab:
            reader, writer = await lab.connect()
            head = b"PUT /k HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
            writer.write(head)
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"hello")
            assert await reader.readexactly(len(with_edge(OK)) + 2) == with_edge(OK) + b"ok"
            # A refusal instead: what would follow is never read as a request, so the connection ends.
            writer.write(head)
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
            assert b"\r\nConnection: close\r\n" in answer
            assert answer.endswith(b"\r\n\r\nno")
            writer.close()
            assert lab.nodes[0].seen == [head + b"hello" + head]

    run(body())


def test_responses_without_bodies_keep_the_connection() -> None:
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
    ]

    async def scripted(node: ScriptedNode, reader: Reader, writer: Writer) -> None:
        for answer in answers:
            writer.write(answer)
            await node.head(reader)
        writer.write(OK + b"ok")

    async def body() -> None:
        async with world(scripted) as lab:
            requests = [
                b"%s /k HTTP/1.1\r\nHost: a\r\n\r\n" % method for method in (b"HEAD", b"DELETE", b"GET", b"GET")
            ]
            answer = await lab.talk(b"".join(requests))
            assert answer == b"".join(map(with_edge, answers)) + with_edge(OK) + b"ok"

    run(body())


def test_a_response_that_ends_with_its_connection_does() -> None:
    response = b"HTTP/1.1 200 OK\r\n\r\n"

    async def until_close(node: ScriptedNode, reader: Reader, writer: Writer) -> None:
        writer.write(response + b"some bytes")

    async def body() -> None:
        async with world(until_close) as lab:
            assert await lab.talk(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2) == with_edge(response) + b"some bytes"

    run(body())


def test_a_response_that_is_cut_short_is_a_reset() -> None:
    async def cut(node: ScriptedNode, reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")

    async def body() -> None:
        async with world(cut) as lab:
            reader, writer = await lab.connect()
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1000)
            writer.close()

    run(body())


def test_a_client_that_aborts_is_passed_on() -> None:
    async def hold(node: ScriptedNode, reader: Reader, writer: Writer) -> None:
        held.set()
        await reader.read()

    held = asyncio.Event()

    async def body() -> None:
        async with world(hold) as lab:
            for data in (
                b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
                b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
            ):
                held.clear()
                lab.nodes[0].reset.clear()
                _, writer = await lab.connect()
                writer.write(data)
                await held.wait()
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
                await lab.nodes[0].reset.wait()
            # An end within a body is an abort too.
            held.clear()
            lab.nodes[0].reset.clear()
            with pytest.raises(ConnectionResetError):
                await lab.talk(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf")
            await lab.nodes[0].reset.wait()

    run(body())


def test_a_connection_that_the_node_closed_while_idle_is_made_anew() -> None:
    async def once(node: ScriptedNode, reader: Reader, writer: Writer) -> None:
        writer.write(OK + b"ok")

    async def once_and_then_cut(node: ScriptedNode, reader: Reader, writer: Writer) -> None:
        writer.write(OK + b"ok")
        if len(node.seen) == 1:
            await node.head(reader)  # takes the second request, and closes without an answer

    async def body() -> None:
        for script in (once, once_and_then_cut):
            async with world(script, answer_all) as lab:
                reader, writer = await lab.connect()
                for _ in range(2):
                    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                    assert await reader.readexactly(len(with_edge(OK)) + 2) == with_edge(OK) + b"ok"
                assert len(lab.nodes[0].seen) == 2
                writer.close()

    run(body())


async def close_at_once(node: ScriptedNode, reader: Reader, writer: Writer) -> None:
    """Takes a request and ends."""


async def take_and_close(node: ScriptedNode, reader: Reader, writer: Writer) -> None:
    await node.body(reader, 4)


async def change_protocol(node: ScriptedNode, reader: Reader, writer: Writer) -> None:
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")


async def talk_nonsense(node: ScriptedNode, reader: Reader, writer: Writer) -> None:
    writer.write(b"hello\r\n\r\n")


@pytest.mark.parametrize("script", [close_at_once, change_protocol, talk_nonsense])
def test_what_a_node_did_not_answer_the_next_region_does_if_that_is_safe(script: Script) -> None:
    async def body() -> None:
        async with world(script, answer_all) as lab:
            for method in (b"GET", b"PUT", b"DELETE", b"HEAD"):
                request = method + b" / HTTP/1.1\r\nHost: a\r\n\r\n"
                assert (await lab.talk(request)).startswith(with_edge(OK, "r1"))
            answer = await lab.talk(b"POST / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"\r\nRetry-After: 1\r\n" in answer
            assert b"<Code>ServiceUnavailable</Code>" in answer
            assert len(lab.nodes[1].seen) == 4

    run(body())


def test_a_body_that_was_sent_is_not_sent_again() -> None:
    async def body() -> None:
        async with world(take_and_close, answer_all) as lab:
            answer = await lab.talk(b"PUT /k HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody")
            assert answer.startswith(b"HTTP/1.1 503")
            assert lab.nodes[1].seen == []

    run(body())


def test_a_node_that_refuses_connections_is_passed_over_whatever_the_method() -> None:
    async def body() -> None:
        async with world(answer_all, answer_all) as lab:
            await lab.nodes[0].stop()
            body = b"POST /k HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
            assert (await lab.talk(body)).startswith(with_edge(OK, "r1"))
            assert [node.healthy for node in lab.edge.regions.nodes] == [False, True]
            await lab.nodes[1].stop()
            answer = await lab.talk(b"HEAD /k HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
            assert answer.count(b"HTTP/1.1 503") == 2  # without bodies, and the connection is kept
            assert b"<Error>" not in answer

    run(body())


def test_what_a_node_owes_goes_elsewhere_once_it_is_found_not_to_be_ready() -> None:
    async def hang(node: ScriptedNode, reader: Reader, writer: Writer) -> None:
        node.ready = b"503 Service Unavailable"
        await reader.read()

    async def body() -> None:
        async with world(hang, answer_all, interval_s=0.02) as lab:
            assert (await lab.talk(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(with_edge(OK, "r1"))

    run(body())


def test_a_response_that_stands_still_is_cut_when_its_node_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_module, "STALLED_S", 0.05)

    async def stall(node: ScriptedNode, reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")
        await reader.read()

    async def body() -> None:
        async with world(stall) as lab:
            reader, writer = await lab.connect()
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await reader.readuntil(b"some")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.3)  # a healthy node may take its time
            lab.edge.regions.nodes[0].down("test")
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
            writer.close()

    run(body())


def test_time_limits_of_heads_of_idle_connections_and_of_clients_that_take_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HEAD_S", "IDLE_S", "TAKEN_S"):
        monkeypatch.setattr(edge_module, name, 0.1)

    async def endless(node: ScriptedNode, reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            writer.write(bytes(1 << 20))
            await writer.drain()

    async def body() -> None:
        async with world(endless) as lab:
            reader, writer = await lab.connect()
            assert await reader.read() == b""  # idle
            writer.close()
            reader, writer = await lab.connect()
            writer.write(b"GET / HT")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            _, writer = await lab.connect()
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await lab.nodes[0].reset.wait()
            writer.transport.abort()

    run(body())


def test_idle_connections_close_at_once_when_the_edge_stops_and_busy_ones_end() -> None:
    async def slow(node: ScriptedNode, reader: Reader, writer: Writer) -> None:
        asked.set()
        await release.wait()
        writer.write(OK + b"ok")

    asked, release = asyncio.Event(), asyncio.Event()

    async def body() -> None:
        async with world(slow) as lab:
            idle, idle_writer = await lab.connect()
            busy, busy_writer = await lab.connect()
            busy_writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await asked.wait()
            closing = asyncio.create_task(lab.edge.close(30))
            assert await idle.read() == b""
            assert not closing.done()
            release.set()
            assert await busy.read() == with_edge(OK) + b"ok"
            await closing
            idle_writer.close()
            busy_writer.close()

    run(body())


def test_the_region_in_use_is_left_for_one_that_is_clearly_nearer() -> None:
    near, far = (Node(name, f"http://{name}", name, 80, None) for name in ("near", "far"))
    regions = Regions([far, near], NEVER_S)

    def first() -> str | None:
        return regions.nearest_first()[0].region if regions.nearest_first() else None

    assert first() is None
    far.up(0.1)
    assert first() == "far"
    near.up(0.09)
    assert first() == "far"
    near.latency_s = 0.05
    assert first() == "near"
    near.down("test")
    assert first() == "far"
    near.up(0.05)
    assert [node.region for node in regions.nearest_first()] == ["near", "far"]
    far.up(0.6)
    assert far.latency_s == pytest.approx(0.2)


def test_nodes_of_a_region_take_turns() -> None:
    nodes = [Node("r", f"http://{number}", str(number), 80, None) for number in range(3)]
    for node in nodes:
        node.up(0.01)
    regions = Regions(nodes, NEVER_S)
    assert {regions.nearest_first()[0].host for _ in range(3)} == {"0", "1", "2"}


@pytest.mark.parametrize(
    "regions",
    [[], ["a"], ["=http://a"], ["a="], ["a=ftp://a"], ["a=http://"], ["a=http://a/path"], ["a=http://a:99999"],
     ["a=http://a", "a=http://b"], ["a b=http://a"], ["a=http://a,"]],
)  # fmt: skip
def test_regions_that_make_no_sense_are_refused(regions: list[str]) -> None:
    with pytest.raises(EdgeError, match="region"):
        parse_regions(regions, None)
