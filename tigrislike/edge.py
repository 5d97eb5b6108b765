"""The front for places without anycast: each request goes to the nearest region that is healthy (`tigrislike edge`).

Nothing of a message is changed. A head is read only to find where the message ends (`framing.py`) and goes on byte for
byte, `Host` included, which SigV4 signs; a body is passed on as it comes, with back-pressure both ways. Responses carry
one header more, `X-Tigrislike-Edge`, which names the region. What could be understood as two requests is refused.

**Nearest** is measured: every node's `/readyz` is asked again and again, over a connection of its own, and a moving
average of the time it takes is its distance. A region is as near as the nearest of its nodes, which take turns. The
region in use is left for one that is clearly nearer, or when none of its nodes is healthy.

**Failing over.** A node that refuses a connection, or does not answer in time that it is ready, is out until it does.
What it has not begun to answer by then goes to the next region if that is safe: the method is idempotent and nothing of
the body has been sent. (Clients that wait for `100 Continue` have sent nothing to a node that is gone.) Otherwise the
answer is 503 with Retry-After, and the client decides. A response that has begun ends with its node: the connection is
reset, so that nobody takes a part for the whole.

A connection to a node belongs to one client's connection, so that no response can reach another client. Time-outs of
bodies are the nodes' business; the edge has its own for heads, and for clients that take nothing.

Not done here: caching, signing, access logs (nodes see the edge's address), IP filtering.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote_to_bytes, urlsplit

import uvloop

from tigrislike.framing import Body, ChunkedBody, FramingError, RequestHead, parse_request, parse_response
from tigrislike.s3api.errors import ERRORS, error_document
from tigrislike.s3api.request import new_request_id

log = logging.getLogger(__name__)

Mode = Literal["forward", "redirect"]

CHUNK_BYTES = 256 * 1024
HEAD_BYTES = 64 * 1024
"""Most that a head may have; nodes allow less."""

HEAD_S = 10.0
IDLE_S = 75.0
CONNECT_S = 2.0
PROBE_S = 2.0
TAKEN_S = 60.0
"""How long a client may take nothing of a response."""

STALLED_S = 10.0
"""How long a response that has begun may stand still before its node's health is asked after."""

LINGER_S = 2.0
LINGER_BYTES = 16 << 20
"""What is still read of a request that was answered early: to close on unread bytes would destroy the answer."""

DRAIN_S = 30.0
MAX_CONNECTIONS = 4096

SMOOTHING = 0.2
CLEARLY_NEARER = 0.8

IDEMPOTENT = {b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"}
REDIRECTED = {b"GET", b"HEAD", b"PUT"}

_RESET = struct.pack("ii", 1, 0)


class EdgeError(Exception):
    """The edge cannot start as it was told to; the message says why."""


@dataclass(eq=False)
class Node:
    """A node of a region, and how it is.

    Attributes:
        url: scheme, host and port; no path.
        latency_s: moving average of what a probe takes; infinite before the first.
        unanswered: connections on which it owes the head of a response: cut when it is found to be down.
    """

    region: str
    url: str
    host: str
    port: int
    tls: ssl.SSLContext | None
    healthy: bool = False
    latency_s: float = math.inf
    unanswered: set[_Stream] = field(default_factory=set)

    @classmethod
    def parse(cls, region: str, url: str, tls: Callable[[], ssl.SSLContext]) -> Node:
        """A node from its URL. Raises EdgeError for what is not http(s)://HOST[:PORT]."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise EdgeError(f"region {region}: {url!r}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise EdgeError(f"region {region}: {url!r}: expected http://HOST:PORT or https://HOST:PORT")
        https = parts.scheme == "https"
        return cls(
            region, f"{parts.scheme}://{parts.netloc}", parts.hostname, port or (443 if https else 80),
            tls() if https else None,
        )  # fmt: skip

    def up(self, took_s: float) -> None:
        """A probe was answered."""
        first = math.isinf(self.latency_s)
        self.latency_s = took_s if first else self.latency_s + SMOOTHING * (took_s - self.latency_s)
        if not self.healthy:
            log.info("%s (%s) is up, %.1f ms away", self.url, self.region, 1e3 * self.latency_s)
        self.healthy = True

    def down(self, reason: str) -> None:
        """It cannot be used; what it owes is somebody else's to answer."""
        if self.healthy:
            log.warning("%s (%s) is down: %s", self.url, self.region, reason)
        self.healthy = False
        for stream in list(self.unanswered):
            # A reset also takes back what a node that hangs has not read yet: it must not do it when it wakes up.
            stream.abort(reset=True)

    async def connect(self) -> _Stream:
        """Raises OSError (TimeoutError too)."""
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(self.host, self.port, ssl=self.tls, limit=CHUNK_BYTES)
        return _Stream(reader, writer)

    async def probe(self) -> None:
        """Ask whether it is ready."""
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            async with asyncio.timeout(PROBE_S):
                stream = await self.connect()
                try:
                    host = f"[{self.host}]" if ":" in self.host else self.host
                    stream.writer.write(f"GET /readyz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                    status = parse_response(await stream.head(), b"GET").status
                finally:
                    stream.abort()
        except (OSError, EOFError, FramingError) as error:
            self.down(str(error) or type(error).__name__)
        else:
            if status == 200:
                self.up(clock() - began)
            else:
                self.down(f"/readyz answers {status}")


class Regions:
    """Every node of every region, and which one is to be asked."""

    def __init__(self, nodes: Sequence[Node], check_interval_s: float) -> None:
        self.nodes = nodes
        self._check_interval_s = check_interval_s
        self._preferred: str | None = None
        self._turn = 0
        self._probing: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Ask every node once, then go on asking until `stop`."""
        await asyncio.gather(*[node.probe() for node in self.nodes])
        self._probing = [asyncio.create_task(self._probe(node), name=f"probe {node.url}") for node in self.nodes]

    async def stop(self) -> None:
        for task in self._probing:
            task.cancel()
        if self._probing:
            await asyncio.wait(self._probing)

    def nearest_first(self) -> list[Node]:
        """The healthy nodes, by region, the one to use first."""
        regions: dict[str, list[Node]] = {}
        for node in self.nodes:
            if node.healthy:
                regions.setdefault(node.region, []).append(node)
        far = {region: min(node.latency_s for node in nodes) for region, nodes in regions.items()}
        order = sorted(regions, key=far.__getitem__)
        if order and self._preferred != order[0]:
            # Two regions that are about as far must not take turns: what is cached lies in one of them.
            if self._preferred in far and far[order[0]] > CLEARLY_NEARER * far[self._preferred]:
                order.remove(self._preferred)
                order.insert(0, self._preferred)
            self._preferred = order[0]
        self._turn += 1
        return [node for region in order for node in _rotated(regions[region], self._turn)]

    async def _probe(self, node: Node) -> None:
        while True:
            await asyncio.sleep(self._check_interval_s)
            await node.probe()


def _rotated(nodes: list[Node], turn: int) -> list[Node]:
    start = turn % len(nodes)
    return nodes[start:] + nodes[:start]


class _Stream:
    """A connection, read by heads and by bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._ahead = b""

    @property
    def quiet(self) -> bool:
        """It is open, and nothing has come that nobody asked for."""
        # at_eof() is only true once what came before has been read; idle, there is nothing before.
        return not (self._ahead or self.reader.at_eof() or self.writer.is_closing() or self.reader.exception())

    async def head(self) -> bytes:
        """The bytes up to and with the next empty line.

        Raises:
            EOFError: the other side ended, or was cut off, before.
            FramingError: it is too long.
            TimeoutError: it began, and did not end in time.
        """
        try:
            async with asyncio.timeout(HEAD_S):
                while (end := self._ahead.find(b"\r\n\r\n") + 4) < 4:
                    if len(self._ahead) > HEAD_BYTES:
                        raise FramingError("The head is too long.")
                    data = await self.reader.read(HEAD_BYTES)
                    if not data:
                        raise EOFError("ended within a head")
                    self._ahead += data
        except ConnectionError as error:
            raise EOFError(str(error)) from None
        head, self._ahead = self._ahead[:end], self._ahead[end:]
        return head

    async def begun(self) -> bool:
        """Wait for the first byte of a message. False: there is none."""
        if not self._ahead:
            try:
                self._ahead = await self.reader.read(HEAD_BYTES)
            except ConnectionError:
                return False
        return bool(self._ahead)

    async def read(self, most: int) -> bytes:
        """Some bytes; b"" at the end. Raises ConnectionError."""
        if self._ahead:
            data, self._ahead = self._ahead[:most], self._ahead[most:]
            return data
        return await self.reader.read(most)

    def unread(self, data: bytes) -> None:
        self._ahead = data + self._ahead

    def abort(self, *, reset: bool = False) -> None:
        """Close at once. `reset`: so that nobody takes a part for the whole."""
        if reset and (raw := self.writer.get_extra_info("socket")) is not None:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.writer.transport.abort()


class _Body:
    """The body of a message that is being read from a stream."""

    def __init__(self, stream: _Stream, body: Body) -> None:
        self._stream = stream
        self._chunks = ChunkedBody() if body == "chunked" else None
        self._left = body if isinstance(body, int) else None

    @property
    def done(self) -> bool:
        return self._left == 0 if self._chunks is None else self._chunks.done

    async def next(self) -> bytes:
        """The next bytes; b"" after the end.

        Raises:
            EOFError: the other side ended within it.
            ConnectionError: it was cut off.
            FramingError: it is not chunked as it claims.
        """
        if self.done:
            return b""
        data = await self._stream.read(CHUNK_BYTES if self._left is None else min(CHUNK_BYTES, self._left))
        if self._chunks is not None:
            taken = self._chunks.feed(data)
            self._stream.unread(data[taken:])
            data = data[:taken]
        elif self._left is not None:
            self._left -= len(data)
        else:
            return data  # its end is the connection's
        if not data:
            raise EOFError("ended within a body")
        return data


class _Unanswered(Exception):
    """A node did not begin to answer.

    Attributes:
        safe: nothing that it may have done is done twice when another is asked.
        stale: the connection was one from an earlier request.
    """

    def __init__(self, reason: str, *, safe: bool, stale: bool) -> None:
        super().__init__(reason)
        self.safe = safe
        self.stale = stale


class _Gone(Exception):
    """The client, or the node within its response: there is nobody left to tell, or no way to."""


class _ClientProtocol(asyncio.StreamReaderProtocol):
    """Tells at once of a client that is gone, which a stream shows only to who reads."""

    client: _Client | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self.client is not None:
            self.client.lost()
        super().connection_lost(exc)


class _Client:
    """One client's connection: its requests, one after the other, and the connection to a node that they go over."""

    def __init__(self, edge: Edge, stream: _Stream) -> None:
        self._edge = edge
        self._stream = stream
        self._node: Node | None = None
        self._upstream: _Stream | None = None
        self.idle = True

    async def serve(self) -> None:
        """Answer until either side ends."""
        try:
            while await self._begun():
                try:
                    head = await self._stream.head()
                    request = parse_request(head)
                    if request.method == b"CONNECT":
                        raise FramingError("This is no proxy.")
                except FramingError as error:
                    await self._refuse("BadRequest", str(error), b"GET", b"/")
                    await self._linger()
                    return
                if not await self._answer(request, head) or self._edge.draining:
                    return
        except (_Gone, EOFError, OSError):
            # Whoever ended knows; the other side is reset, so that it does not take a part for the whole.
            self._stream.abort(reset=True)
        finally:
            self._drop_upstream()
            self._stream.writer.close()

    def close_if_idle(self) -> None:
        if self.idle:
            self._stream.abort()

    def lost(self) -> None:
        """The client takes no more."""
        if self._upstream is not None:
            self._upstream.abort(reset=True)

    async def _begun(self) -> bool:
        self.idle = True
        try:
            async with asyncio.timeout(IDLE_S):
                return await self._stream.begun()
        except TimeoutError:
            return False
        finally:
            self.idle = False

    async def _answer(self, request: RequestHead, head: bytes) -> bool:
        """Answer one request. False: the connection can take no other."""
        body = _Body(self._stream, request.body)
        nodes = self._edge.regions.nearest_first()
        if nodes and self._edge.mode == "redirect" and request.method in REDIRECTED:
            region = nodes[0].region
            headers = {
                "Location": self._edge.location(nodes[0], request),
                "X-Tigrislike-Edge": region,
                # Without it botocore asks for the bucket's region, which is redirected too, without end.
                "x-amz-bucket-region": region,
            }
            message = "Send this request to the nearest region."
            keep = request.persists and body.done
            await self._refuse("TemporaryRedirect", message, request.method, request.target, headers, keep=keep)
            if not body.done:
                await self._linger()
            return keep
        if self._node in nodes and self._node.region == nodes[0].region:
            # A client's connection stays with its node while that is one of the nearest region.
            nodes.remove(self._node)
            nodes.insert(0, self._node)
        while nodes:
            node = nodes.pop(0)
            try:
                return await self._forward(node, request, head, body)
            except _Unanswered as error:
                self._drop_upstream()
                log.info("%s did not answer %s: %s", node.url, request.method.decode(), error)
                if not error.safe:
                    break
                if error.stale and node.healthy:
                    nodes.insert(0, node)  # it closed a connection that was idle, as nodes do
            except FramingError as error:
                await self._refuse("BadRequest", str(error), request.method, request.target)
                await self._linger()
                return False
        message = "No region can answer this now; try again."
        keep, headers = request.persists and body.done, {"Retry-After": "1"}
        await self._refuse("ServiceUnavailable", message, request.method, request.target, headers, keep=keep)
        if not body.done:
            await self._linger()
        return keep

    async def _forward(self, node: Node, request: RequestHead, head: bytes, body: _Body) -> bool:
        """Pass a request to a node, and its response back. False: the client's connection can take no other.

        Raises:
            _Unanswered: there is no response, and nothing has been sent to the client.
            FramingError: nor is there, because the request's body is malformed.
            _Gone: one of the two went away.
        """
        upstream, stale = await self._connected(node)
        sending: asyncio.Task[None] | None = None
        sent_body = False

        async def send_body() -> None:
            nonlocal sent_body
            while data := await body.next():
                sent_body = True
                upstream.writer.write(data)
                await upstream.writer.drain()

        node.unanswered.add(upstream)
        try:
            upstream.writer.write(head)
            if not body.done:
                sending = asyncio.create_task(send_body())
                sending.add_done_callback(lambda task: self._sent(task, upstream))
            try:
                response_head = await self._response_head(upstream, request)
            except (EOFError, OSError, FramingError) as error:
                failure = sending.exception() if sending is not None and sending.done() else None
                if isinstance(failure, FramingError):
                    raise failure from None
                if isinstance(failure, EOFError) or self._stream.writer.is_closing():
                    raise _Gone from None
                safe = request.method in IDEMPOTENT and not sent_body
                raise _Unanswered(str(error) or type(error).__name__, safe=safe, stale=stale) from None
            finally:
                node.unanswered.discard(upstream)
            response = parse_response(response_head, request.method)
            # Answered before it was whole: whether the rest will come, nobody knows. None of it is read as a request.
            early = not body.done
            added = b"X-Tigrislike-Edge: %s\r\n" % node.region.encode()
            if early and response.persists:
                added += b"Connection: close\r\n"
            await self._write(b"%s%s\r\n" % (response_head[:-2], added))
            await self._pass_back(node, _Body(upstream, response.body))
            if early:
                await self._linger(sending)
                return False
            if not response.persists or upstream.writer.is_closing():
                self._drop_upstream()
            return request.persists and response.persists
        finally:
            if sending is not None:
                sending.cancel()
                await asyncio.wait([sending])

    def _sent(self, sending: asyncio.Task[None], upstream: _Stream) -> None:
        if not sending.cancelled() and isinstance(sending.exception(), EOFError | FramingError):
            upstream.abort(reset=True)  # the client ended, or went on with what is no body

    async def _connected(self, node: Node) -> tuple[_Stream, bool]:
        """A connection to the node, and whether it is one from before."""
        if self._upstream is not None and self._node is node and self._upstream.quiet:
            return self._upstream, True
        self._drop_upstream()
        try:
            upstream = await node.connect()
        except OSError as error:
            node.down(str(error) or type(error).__name__)
            raise _Unanswered(str(error), safe=True, stale=False) from None
        self._node, self._upstream = node, upstream
        if self._stream.writer.is_closing():
            raise _Gone
        return upstream, False

    async def _response_head(self, upstream: _Stream, request: RequestHead) -> bytes:
        """The head of the final response; interim ones are passed on."""
        while True:
            if not await upstream.begun():
                raise EOFError("it closed the connection")
            head = await upstream.head()
            status = parse_response(head, request.method).status
            if status == 101:
                raise FramingError("The node changes the protocol.")
            if status >= 200:
                return head
            await self._write(head)

    async def _pass_back(self, node: Node, body: _Body) -> None:
        while True:
            try:
                async with asyncio.timeout(STALLED_S):
                    data = await body.next()
            except TimeoutError:
                if node.healthy:
                    continue
                raise _Gone from None
            except (EOFError, FramingError) as error:
                raise _Gone from error
            if not data:
                return
            await self._write(data)

    async def _write(self, data: bytes) -> None:
        if self._stream.writer.is_closing():
            raise _Gone
        self._stream.writer.write(data)
        async with asyncio.timeout(TAKEN_S):
            await self._stream.writer.drain()

    async def _refuse(
        self,
        code: str,
        message: str,
        method: bytes,
        target: bytes,
        headers: dict[str, str] | None = None,
        *,
        keep: bool = False,
    ) -> None:
        """Answer in the nodes' place, as S3 does."""
        status, request_id = ERRORS[code][0], new_request_id()
        resource = unquote_to_bytes(target.partition(b"?")[0]).decode("utf-8", "replace")
        document = error_document(code, message, resource, request_id)
        fields = {
            "Content-Type": "application/xml",
            "Content-Length": str(len(document)),
            "x-amz-request-id": request_id,
            **(headers or {}),
            **({} if keep else {"Connection": "close"}),
        }
        lines = [f"HTTP/1.1 {status} {_REASONS[status]}", *(f"{name}: {value}" for name, value in fields.items())]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        await self._write(head if method == b"HEAD" else head + document)

    async def _linger(self, sending: asyncio.Task[None] | None = None) -> None:
        """End the response, and read on for a while, so that the client gets to read it."""
        if sending is not None:
            sending.cancel()
            await asyncio.wait([sending])
        self._drop_upstream()
        if self._stream.writer.can_write_eof():
            self._stream.writer.write_eof()
        left = LINGER_BYTES
        with contextlib.suppress(OSError):
            async with asyncio.timeout(LINGER_S):
                while left > 0 and (data := await self._stream.read(CHUNK_BYTES)):
                    left -= len(data)

    def _drop_upstream(self) -> None:
        if self._upstream is not None:
            self._upstream.abort()
            self._upstream = None


_REASONS = {307: "Temporary Redirect", 400: "Bad Request", 503: "Service Unavailable"}


class Edge:
    """The listener, and the connections that it took.

    Args:
        mode: `forward`, or `redirect`: GET, HEAD and PUT are answered 307 with the place of a node.
        domain: host name under which BUCKET.DOMAIN addresses a bucket; redirects address it in the path.
    """

    def __init__(self, regions: Regions, mode: Mode = "forward", domain: str = "") -> None:
        self.regions = regions
        self.mode = mode
        self.draining = False
        self._suffix = b"." + domain.encode() if domain else b""
        self._clients: dict[asyncio.Task[None], _Client] = {}
        self._server: asyncio.Server | None = None

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Ask every region how it is, then listen; the port. Raises OSError."""
        await self.regions.start()
        loop = asyncio.get_running_loop()

        def protocol() -> asyncio.Protocol:
            reader = asyncio.StreamReader(limit=CHUNK_BYTES, loop=loop)
            made = _ClientProtocol(reader, lambda reader, writer: self._accept(made, reader, writer), loop=loop)
            return made

        self._server = await loop.create_server(protocol, host, port, ssl=tls, backlog=1024)
        listening: int = self._server.sockets[0].getsockname()[1]
        return listening

    async def close(self, drain_s: float = DRAIN_S) -> None:
        """Take no more connections, give requests `drain_s` to end, then cut them."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        for client in self._clients.values():
            client.close_if_idle()
        if self._clients:
            await asyncio.wait(list(self._clients), timeout=drain_s)
        for task in self._clients:
            task.cancel()
        if self._clients:
            await asyncio.wait(list(self._clients))
        await self.regions.stop()

    def location(self, node: Node, request: RequestHead) -> str:
        """Where on `node` a request belongs."""
        target = request.target
        if not target.startswith(b"/"):  # the absolute form
            target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
        host = request.host.rpartition(b":")[0] if b":" in request.host else request.host
        if self._suffix and host.endswith(self._suffix):
            target = b"/" + host[: -len(self._suffix)] + target
        return node.url + target.decode("latin-1")

    def _accept(self, protocol: _ClientProtocol, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MAX_CONNECTIONS or self.draining:
            writer.close()
            return
        protocol.client = client = _Client(self, _Stream(reader, writer))
        task = asyncio.get_running_loop().create_task(client.serve(), name="edge client")
        self._clients[task] = client
        task.add_done_callback(self._clients.pop)


def parse_regions(regions: Sequence[str], ca_bundle: str | None) -> list[Node]:
    """The nodes of `NAME=URL[,URL...]`, each region once. Raises EdgeError."""
    contexts: list[ssl.SSLContext] = []

    def tls() -> ssl.SSLContext:
        if not contexts:
            contexts.append(ssl.create_default_context(cafile=ca_bundle))
        return contexts[0]

    nodes: dict[str, list[Node]] = {}
    for text in regions:
        name, _, urls = text.partition("=")
        if not (name.isascii() and name.isprintable() and name and urls) or " " in name:
            raise EdgeError(f"--region {text!r}: expected NAME=URL or NAME=URL,URL")
        if name in nodes:
            raise EdgeError(f"--region {name}: given twice; name all its nodes at once: {name}=URL,URL")
        nodes[name] = [Node.parse(name, url, tls) for url in urls.split(",")]
    if not nodes:
        raise EdgeError("--region NAME=URL is missing: where are requests to go?")
    return [node for region in nodes.values() for node in region]


def serve_edge(
    nodes: Sequence[Node],
    host: str,
    port: int,
    *,
    mode: Mode,
    domain: str,
    tls: ssl.SSLContext | None,
    check_interval_s: float,
    on_ready: Callable[[str], None],
) -> None:
    """Run until SIGTERM or SIGINT. `on_ready` is told the URL listened on.

    Raises:
        EdgeError: the address cannot be listened on.
    """

    async def main() -> None:
        edge = Edge(Regions(nodes, check_interval_s), mode, domain)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        try:
            try:
                listening = await edge.listen(host, port, tls)
            except OSError as error:
                raise EdgeError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
            shown = f"[{host}]" if ":" in host else host
            on_ready(f"{'https' if tls else 'http'}://{shown}:{listening}")
            await stop.wait()
        finally:
            await edge.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
