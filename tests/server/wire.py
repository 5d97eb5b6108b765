"""The HTTP protocol under test, on a real socket in this process, with its clock in the test's hands.

`serving` runs one ASGI application; `Client` is a raw socket. Both live on the same event loop, so a test can look at
the server's state; `Serving.elapse` moves the time that all time-outs go by, so that no test waits for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

import uvicorn
import uvloop

from tigrislike.logs import AccessLog
from tigrislike.s3api.http import Front, HttpProtocol, Limits

T = TypeVar("T")
Message = MutableMapping[str, Any]
App = Callable[
    [dict[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

LIMITS = {
    "max_connections": 100,
    "max_header_bytes": 8192,
    "header_timeout_s": 10.0,
    "body_timeout_s": 20.0,
    "body_minimum_bytes": 1000,
    "idle_timeout_s": 60.0,
}


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a test on the event loop that the server uses, bounded in time."""

    async def bounded() -> T:
        return await asyncio.wait_for(main, 120)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that the other side of a socket brings about."""
    while not condition():  # noqa: ASYNC110  # the server has no reason to have an event for it
        await asyncio.sleep(0.001)


class Serving:
    def __init__(self, front: Front, port: int) -> None:
        self.front = front
        self.port = port
        self.clients: list[Client] = []
        self._now_s = time.monotonic()

    @property
    def connections(self) -> list[HttpProtocol]:
        return list(self.front.connections)  # type: ignore[arg-type]

    def elapse(self, seconds: float) -> None:
        self._now_s += seconds
        self.front.tick(self._now_s)

    async def client(self) -> Client:
        before = len(self.front.connections)
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        await until(lambda: len(self.front.connections) > before)
        return client


@contextlib.asynccontextmanager
async def serving(app: App, **limits: Any) -> AsyncIterator[Serving]:
    config = uvicorn.Config(app, interface="asgi3", ws="none", log_config=None, lifespan="off", proxy_headers=False)
    config.load()
    front = Front(Limits(**{**LIMITS, **limits}), AccessLog("off"), lambda: "0123456789ABCDEF")
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: HttpProtocol(config, front, {}, loop), "127.0.0.1", 0)
    running = Serving(front, server.sockets[0].getsockname()[1])
    try:
        yield running
    finally:
        server.close()
        for client in running.clients:
            await client.close()
        for connection in list(front.connections):
            connection.transport.abort()  # type: ignore[union-attr]
        await until(lambda: not front.connections)
        if front.tasks:
            await asyncio.wait(front.tasks, timeout=5)


class Client:
    """A raw HTTP client: what it sends is what the test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def response(self, *, head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """The next response: status, headers in lower case, body as its framing says."""
        raw = await self.reader.readuntil(b"\r\n\r\n")
        status_line, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        status = int(status_line.split(" ")[1])
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if head or status in (204, 304) or status < 200:
            return status, headers, b""
        if "content-length" in headers:
            return status, headers, await self.reader.readexactly(int(headers["content-length"]))
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.reader.readline(), 16):
                body += await self.reader.readexactly(size)
                assert await self.reader.readexactly(2) == b"\r\n"
            assert await self.reader.readexactly(2) == b"\r\n"
            return status, headers, body
        return status, headers, await self.reader.read()

    async def rest(self) -> bytes:
        """Everything until the server closes; b"" when it is closed already. A reset counts as closed."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""

    def half_close(self) -> None:
        self.writer.write_eof()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    def reset(self) -> None:
        """Vanish, as a client that crashes does."""
        raw: socket.socket = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()


async def read_body(receive: Callable[[], Awaitable[Message]]) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client went away")
        body += message["body"]
        if not message["more_body"]:
            return body


async def respond(send: Callable[[Message], Awaitable[None]], body: bytes, status: int = 200, **headers: str) -> None:
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    lines.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers with the method, the raw path and query, and the body."""
    body = await read_body(receive)
    line = f"{scope['method']} ".encode() + scope["raw_path"] + b"?" + scope["query_string"] + b" "
    await respond(send, line + body)
