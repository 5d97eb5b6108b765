"""A forward proxy on loopback for clients that resolve names themselves, so that they too go through the gate.

It carries CONNECT, for https, and requests in absolute form, for http, one for each connection. Whoever uses it has a
`Pass`, whose credential is made up anew for each: nobody else on this machine is served. It reads no further than the
head of a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from base64 import b64encode
from collections.abc import Awaitable, Callable, Coroutine
from urllib.parse import urlsplit

from .errors import EgressRefused

Connect = Callable[[str, int], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]

CONNECTIONS = 512
HEAD_TIMEOUT_S = 10.0
_MAX_HEAD = 32 << 10
_PIECE = 256 << 10


class Pass:
    """One user's way through the proxy.

    Attributes:
        url: of the proxy, with the credential.
        refused: what was refused to it last; None where nothing was. A client only sees that it got no connection.
    """

    def __init__(self, port: int) -> None:
        credential = f"origin:{secrets.token_urlsafe(32)}"
        self.url = f"http://{credential}@127.0.0.1:{port}"
        self.authorization = f"Basic {b64encode(credential.encode()).decode()}"
        self.refused: EgressRefused | None = None


class Proxy:
    """The proxy, from `start` to `close`.

    Args:
        connect: makes a connection to a host and a port. Raises EgressRefused, OSError.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._passes: dict[str, Pass] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, limit=_MAX_HEAD)

    def issue(self) -> Pass:
        """A pass for one more user."""
        assert self._server is not None
        made = Pass(self._server.sockets[0].getsockname()[1])
        self._passes[made.authorization] = made
        return made

    def revoke(self, given: Pass) -> None:
        self._passes.pop(given.authorization, None)

    async def close(self) -> None:
        """Stop listening and cut off whatever goes on."""
        if self._server is not None:
            self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            if len(self._serving) > CONNECTIONS:
                writer.write(_answer("503 Service Unavailable"))
            else:
                await self._serve(reader, writer)
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            pass  # either side went away, or said too much: its client sees the connection end
        except asyncio.CancelledError:
            pass  # the end of the proxy; asyncio would report it as an error of this handler
        finally:
            self._serving.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head.removesuffix("\r\n\r\n").split("\r\n")
        method, _, rest = line.partition(" ")
        target = rest.partition(" ")[0]
        authorization = next((f.partition(":")[2].strip() for f in fields if _named(f, "proxy-authorization")), "")
        given = self._passes.get(authorization)
        if given is None:
            writer.write(_answer("407 Proxy Authentication Required", 'Proxy-Authenticate: Basic realm="origins"'))
            return
        try:
            host, port = _destination(method, target)
        except ValueError:
            writer.write(_answer("400 Bad Request"))
            return
        try:
            upstream_reader, upstream = await self._connect(host, port)
        except EgressRefused as error:
            given.refused = error
            writer.write(_answer("403 Forbidden"))
            return
        except OSError:
            writer.write(_answer("502 Bad Gateway"))
            return
        try:
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = _carry(upstream_reader, writer)
            else:
                upstream.write(_relayed(method, target, fields))
                back = _carry_answer(upstream_reader, writer)
            await _until_either_ends(_carry(reader, upstream), back)
        finally:
            upstream.close()


def _destination(method: str, target: str) -> tuple[str, int]:
    """Host and port that a request is for. Raises ValueError."""
    parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
    port = parts.port or (80 if parts.scheme == "http" else None)
    if not parts.hostname or port is None or (method != "CONNECT" and parts.scheme != "http"):
        raise ValueError(target)
    return parts.hostname, port


def _relayed(method: str, target: str, fields: list[str]) -> bytes:
    """The head of a request as the origin is to have it."""
    _, _, rest = target.partition("://")
    _, slash, path = rest.partition("/")
    kept = [field for field in fields if not field.lower().startswith("proxy-")]
    return _last(f"{method} {slash or '/'}{path} HTTP/1.1", kept)


def _last(line: str, fields: list[str]) -> bytes:
    """A head that says that its connection ends with this exchange. Either side is told: the next request may be for
    another host, and a connection leads to the one that it was made for."""
    kept = [field for field in fields if not _named(field, "connection")]
    return "\r\n".join([line, *kept, "Connection: close", "", ""]).encode("latin-1")


def _named(field: str, name: str) -> bool:
    return field.partition(":")[0].strip().lower() == name


def _answer(status: str, *fields: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *fields, "Content-Length: 0", "Connection: close", "", ""]).encode()


async def _until_either_ends(*ways: Coroutine[None, None, None]) -> None:
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _carry_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry an answer, with what goes before it: 100 Continue."""
    with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError):
        while True:
            line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
            interim = line.partition(" ")[2].startswith("1")
            writer.write("\r\n".join([line, *fields, "", ""]).encode("latin-1") if interim else _last(line, fields))
            if not interim:
                break
        await _carry(reader, writer)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
