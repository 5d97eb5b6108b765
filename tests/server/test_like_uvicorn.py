"""The same bytes to this server's HTTP protocol and to uvicorn's own: the same observable answers.

What is meant to differ is listed at the end, each with the reason, and asserted on both sides, so that neither a change
of ours nor one of uvicorn's goes unnoticed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from tests.server.wire import App, Client, echo, read_body, respond, run, serving, until

PROBE = b"GET /probe HTTP/1.1\r\nHost: a\r\n\r\n"
Observed = tuple[list[tuple[int, dict[str, str], bytes]], bool]


@dataclass
class Server:
    """One of the two protocols, serving."""

    port: int
    begin_shutdown: Callable[[], object]
    connections: Callable[[], int]
    clients: list[Client] = field(default_factory=list)

    async def client(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client


@contextlib.asynccontextmanager
async def ours(app: App) -> AsyncIterator[Server]:
    async with serving(app) as running:
        server = Server(
            running.port,
            lambda: [connection.shutdown() for connection in running.connections],  # type: ignore[func-returns-value]
            lambda: len(running.connections),
        )
        running.clients = server.clients
        yield server


@contextlib.asynccontextmanager
async def uvicorns(app: App) -> AsyncIterator[Server]:
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=60,
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(
        lambda: HttpToolsProtocol(config=config, server_state=state, app_state={}, _loop=loop), "127.0.0.1", 0
    )
    server = Server(
        listening.sockets[0].getsockname()[1],
        lambda: [connection.shutdown() for connection in list(state.connections)],
        lambda: len(state.connections),
    )
    try:
        yield server
    finally:
        listening.close()
        for client in server.clients:
            await client.close()
        for connection in list(state.connections):
            connection.transport.abort()
        await until(lambda: not state.connections)
        for task in list(state.tasks):
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)


PROTOCOLS = {"ours": ours, "uvicorn's": uvicorns}


async def observe(server: Server, requests: bytes, methods: str) -> Observed:
    """The answers to `requests`, whose methods are named, and whether the connection is kept after them."""
    client = await server.client()
    await client.send(requests)
    answers = []
    try:
        for method in methods.split():
            status, headers, body = await client.response(head=method == "HEAD")
            answers.append((status, {k: v for k, v in headers.items() if k != "date"}, body))
        await client.send(PROBE)
        return answers, (await client.response())[0] > 0
    except (asyncio.IncompleteReadError, ConnectionError):
        return answers, False


def observed(app: App, requests: bytes, methods: str) -> dict[str, Observed]:
    async def main() -> dict[str, Observed]:
        found = {}
        for name, protocol in PROTOCOLS.items():
            async with protocol(app) as server:
                found[name] = await observe(server, requests, methods)
        return found

    return run(main())


async def streamed(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await read_body(receive)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"b")]})
    for piece in (b"one", b"", b"two"):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})


def answering(status: int, *headers: tuple[bytes, bytes], body: bytes = b"1234567") -> App:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await read_body(receive)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


async def unread(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await respond(send, b"refused", 403)


def get(path: str = "", version: str = "1.1", *headers: str) -> bytes:
    lines = [f"GET /{path} HTTP/{version}", "Host: a", *headers, "", ""]
    return "\r\n".join(lines).encode()


PUT = b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"PUT /y?q=1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;e=1\r\nde\r\n0\r\nT: 1\r\n\r\n"
)
SEVEN = (b"content-length", b"7")


@pytest.mark.parametrize(
    ("app", "requests", "methods"),
    [
        pytest.param(echo, get("a?b=%20c"), "GET", id="GET"),
        pytest.param(echo, get("a") + get("b"), "GET GET", id="kept for a second request"),
        pytest.param(echo, get("1") + PUT + CHUNKED + get("2"), "GET PUT PUT GET", id="pipelined, with bodies"),
        pytest.param(echo, get("") * 64, " ".join(["GET"] * 64), id="64 pipelined"),
        pytest.param(echo, PUT, "PUT", id="body with a length"),
        pytest.param(echo, CHUNKED, "PUT", id="chunked body"),
        pytest.param(echo, get("", "1.1", "Connection: close"), "GET", id="the client wants it closed"),
        pytest.param(echo, get("", "1.1", "Connection: close") + get("b"), "GET", id="nothing after the last request"),
        pytest.param(echo, get("", "1.0"), "GET", id="HTTP/1.0"),
        pytest.param(echo, b"\r\n" + get("a"), "GET", id="an empty line before the request"),
        pytest.param(streamed, get(""), "GET", id="chunked response"),
        pytest.param(streamed, get("") + get(""), "GET GET", id="two chunked responses"),
        pytest.param(answering(200, SEVEN), b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + get(""), "HEAD GET", id="HEAD"),
        pytest.param(answering(404, SEVEN), b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + get(""), "HEAD GET", id="HEAD 404"),
        pytest.param(answering(204, body=b""), get("") + get(""), "GET GET", id="204"),
        pytest.param(answering(304, body=b""), get("") + get(""), "GET GET", id="304"),
        pytest.param(
            answering(200, SEVEN, (b"connection", b"close")), get(""), "GET", id="the application wants it closed"
        ),
        pytest.param(
            echo,
            b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
            "100",
            id="Expect: 100-continue is answered when the body is asked for",
        ),
        pytest.param(unread, PUT + get(""), "PUT GET", id="a small body that nobody read"),
    ],
)
def test_same_bytes_same_answers(app: App, requests: bytes, methods: str) -> None:
    found = observed(app, requests, methods)
    assert found["ours"] == found["uvicorn's"]
    assert len(found["ours"][0]) == len(methods.split())


def both(scenario: Callable[[Server], Awaitable[Any]], app: App) -> None:
    """Run a scenario on both servers: what it returns has to be the same."""

    async def main() -> None:
        found = []
        for protocol in PROTOCOLS.values():
            async with protocol(app) as server:
                found.append(await scenario(server))
        assert found[0] == found[1]

    run(main())


def test_an_application_waits_for_a_client_that_does_not_read() -> None:
    sent: list[int] = []
    total, piece = 64, bytes(1024 * 1024)

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"%d" % (total * len(piece)))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for n in range(total):
            await send({"type": "http.response.body", "body": piece, "more_body": n < total - 1})
            sent.append(n)

    async def scenario(server: Server) -> tuple[bool, int]:
        sent.clear()
        client = await server.client()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(get(""))
        seen = -1
        while len(sent) != seen or not sent:  # until it has come to rest
            seen = len(sent)
            for _ in range(50):
                await asyncio.sleep(0)
        rested = len(sent) < total
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        return rested, len((await client.response())[2])

    both(scenario, app)


def test_a_client_waits_for_an_application_that_does_not_read() -> None:
    go = asyncio.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await go.wait()
        await respond(send, b"%d" % len(await read_body(receive)))

    async def scenario(server: Server) -> tuple[bool, bytes]:
        go.clear()
        client = await server.client()
        size = 16 * 1024 * 1024
        client.writer.write(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        seen = -1
        while (left := client.writer.transport.get_write_buffer_size()) != seen:
            seen = left
            for _ in range(50):
                await asyncio.sleep(0)
        go.set()
        return left > 0, (await client.response())[2]

    both(scenario, app)


@pytest.mark.parametrize("during", ["the request", "the response"])
def test_an_application_learns_that_its_client_has_gone(during: str) -> None:
    heard: list[str] = []
    begun = asyncio.Event()
    over = asyncio.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if during == "the response":
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": [SEVEN]})
            await send({"type": "http.response.body", "body": b"1", "more_body": True})
        begun.set()
        heard.append((await receive())["type"])
        if heard[-1] == "http.request":
            heard.append((await receive())["type"])
        over.set()

    async def scenario(server: Server) -> list[str]:
        heard.clear()
        begun.clear()
        over.clear()
        client = await server.client()
        await client.send(get("") if during == "the response" else PUT[:-2])
        await begun.wait()
        client.reset()
        await over.wait()
        await until(lambda: server.connections() == 0)
        return list(heard)

    both(scenario, app)


def test_a_stop_closes_idle_connections_and_answers_busy_ones_first() -> None:
    go, begun = asyncio.Event(), asyncio.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["path"] == "/busy":
            begun.set()
            await go.wait()
        await respond(send, b"ok")

    async def scenario(server: Server) -> tuple[bytes, Any, bytes]:
        go.clear()
        begun.clear()
        idle, busy = await server.client(), await server.client()
        await idle.send(get("idle"))
        await idle.response()
        await busy.send(get("busy"))
        await begun.wait()
        server.begin_shutdown()
        closed = await idle.rest()
        go.set()
        answer = (await busy.response())[2]
        return closed, answer, await busy.rest()

    both(scenario, app)


# -- What is meant to differ -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requests", "ours", "uvicorns"),
    [
        # Which host is addressed decides which bucket is: no host, or two, has no one meaning (RFC 9112, 3.2).
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", (400, False), (200, True), id="no Host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", (400, False), (200, True), id="two Hosts"),
        # S3 has no other coding, and whoever decodes it otherwise than a proxy did is two requests (RFC 9112, 6.1).
        pytest.param(
            b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            (501, False),
            (200, True),
            id="an unknown transfer coding",
        ),
        # An unknown expectation is refused, not ignored (RFC 9110, 10.1.1).
        pytest.param(get("", "1.1", "Expect: something"), (417, False), (200, True), id="an unknown expectation"),
        # Headers are memory that strangers make us hold.
        pytest.param(get("", "1.1", f"X: {'x' * 10_000}"), (400, False), (200, True), id="headers over the bound"),
        # An offer to upgrade is ignored, as RFC 9110 (7.8) lets us; but the parser has given up the stream after it.
        pytest.param(get("", "1.1", "Connection: Upgrade", "Upgrade: h2c"), (200, False), (200, True), id="an upgrade"),
    ],
)
def test_differences_in_what_is_refused(
    requests: bytes, ours: tuple[int, bool], uvicorns: tuple[int, bool], caplog: pytest.LogCaptureFixture
) -> None:
    found = observed(echo, requests, "GET")
    for name, expected in (("ours", ours), ("uvicorn's", uvicorns)):
        answers, kept = found[name]
        assert ([status for status, _, _ in answers], kept) == ([expected[0]], expected[1]), name


def test_difference_what_is_not_http_is_refused_in_the_language_of_the_clients(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = observed(echo, b"NOT HTTP AT ALL\r\n\r\n", "GET")
    assert [(status, kept) for answers, kept in found.values() for status, _, _ in answers] == [(400, False)] * 2
    assert b"<Code>BadRequest</Code>" in found["ours"][0][0][2]
    assert found["uvicorn's"][0][0][2] == b"Invalid HTTP request received."


def test_difference_a_large_body_that_nobody_will_read_is_not_received() -> None:
    # uvicorn keeps the connection, and so reads gigabytes of an upload that was refused at its first byte.
    kept = []

    async def main() -> None:
        for protocol in PROTOCOLS.values():
            async with protocol(unread) as server:
                client = await server.client()
                await client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000000\r\n\r\n")
                status, headers, _ = await client.response()
                assert status == 403
                kept.append("connection" not in headers)

    run(main())
    assert kept == [False, True]


def test_difference_http_1_0_does_not_know_chunks() -> None:
    # RFC 9112, 6.1: a server must not send Transfer-Encoding in answer to HTTP/1.0. uvicorn does.
    found = observed(streamed, get("", "1.0"), "GET")
    assert found["ours"] == ([(200, {"x-a": "b", "connection": "close"}, b"onetwo")], False)
    assert found["uvicorn's"][0][0][1]["transfer-encoding"] == "chunked"


def test_difference_a_body_where_there_can_be_none_is_left_out() -> None:
    # uvicorn answers the first and ends the connection; the application's slip costs our clients nothing.
    found = observed(answering(204), get("") + get(""), "GET GET")
    assert found["ours"] == ([(204, {}, b"")] * 2, True)
    assert found["uvicorn's"] == ([(204, {}, b"")], False)


def test_difference_an_application_that_sends_to_nobody_is_told() -> None:
    # ASGI lets a server drop what is sent after the client has gone (uvicorn does), or raise OSError: we raise, so
    # that nothing more is read from the disk.
    outcome: list[str] = []
    begun, gone, over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        begun.set()
        await gone.wait()
        try:
            await respond(send, b"late")
            outcome.append("dropped")
        except OSError as error:
            outcome.append(type(error).__name__)
        over.set()

    async def main() -> None:
        for protocol in PROTOCOLS.values():
            for event in (begun, gone, over):
                event.clear()
            async with protocol(app) as server:
                client = await server.client()
                await client.send(get(""))
                await begun.wait()  # a reset may overtake a request that nobody has read yet
                client.reset()
                await until(lambda server=server: server.connections() == 0)  # type: ignore[misc]
                gone.set()
                await over.wait()

    run(main())
    assert outcome == ["ClientDisconnected", "dropped"]
