"""HTTP/1.1 between a socket and the S3 application: a protocol class in uvicorn's place for one.

uvicorn's own protocol is written for any application; this one for an object store that strangers talk to. It

- bounds everything a client may make us hold: connections, headers, buffered body, pipelined requests, and the time
  for each (`deadlines.py`); a body must make minimum progress, so a trickle ends with RequestTimeout;
- answers what is not HTTP, or is two things at once (request smuggling), in S3's XML, and closes;
- honours `Expect: 100-continue`: the go-ahead is sent when the application first asks for the body, so a refused upload
  sends nothing; a body that nobody read is drained when little of it is left, else the connection is closed;
- hands large bodies on without a second copy and without the parser (a Content-Length body is bytes, not syntax);
- sends headers and a small body in one write, and file ranges by `sendfile` (ASGI `http.response.zerocopysend`
  and `pathsend`).

The parser is llhttp (httptools) in its strict mode: both length and chunked, repeated or malformed lengths, bad chunk
headers, bare LF, folded lines, and spaces before the colon are refused there; the rest is refused here.

`scope["raw_path"]` and `scope["query_string"]` are the request's undecoded bytes. `scope["access"]` is a dict in
which the application notes what the access log should say. Over TLS `scope["extensions"]["tls"]` is the version and the
cipher suite. Not here: HTTP/2, WebSocket, proxies' headers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
import urllib.parse
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from tigrislike.config import Settings
from tigrislike.logs import AccessLog
from tigrislike.s3api.deadlines import Deadlines, Phase
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.exchange import Exchange
from tigrislike.s3api.sendfile import FileSender, Sending

_SEND_BUFFER_BYTES = 256 * 1024  # of one connection; then the application waits
_LINGER_BYTES = 4 * 1024 * 1024  # what a client may still send us while it is told to stop
_LINGER_S = 2.0
_PIPELINE_DEPTH = 64

_ASGI = {"version": "3.0", "spec_version": "2.4"}
_EXTENSIONS: dict[str, Any] = {"http.response.zerocopysend": {}, "http.response.pathsend": {}}


@dataclass(frozen=True)
class Limits:
    """What the connections of one process may cost. The fields are `Settings`' own; see their help."""

    max_connections: int
    max_header_bytes: int
    header_timeout_s: float
    body_timeout_s: float
    body_minimum_bytes: int
    idle_timeout_s: float

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(
            max_connections=settings.max_connections,
            max_header_bytes=settings.max_header_bytes,
            header_timeout_s=settings.header_timeout_s,
            body_timeout_s=settings.body_timeout_s,
            body_minimum_bytes=settings.body_minimum_bytes,
            idle_timeout_s=settings.idle_timeout_s,
        )


class Front(ServerState):
    """What all connections of one process share. It takes the place of uvicorn's `ServerState`.

    Args:
        limits: What they may cost.
        access_log: Told of every request exactly once, however it ended.
        new_request_id: Makes the id of an answer that the application did not give.
    """

    def __init__(self, limits: Limits, access_log: AccessLog, new_request_id: Callable[[], str]) -> None:
        super().__init__()
        self.limits = limits
        self.access_log = access_log
        self.new_request_id = new_request_id
        self.draining = False
        self.files = FileSender()
        self.date_header = b""
        self.deadlines: Deadlines[HttpProtocol] = Deadlines(
            {
                Phase.IDLE: limits.idle_timeout_s,
                Phase.HEAD: limits.header_timeout_s,
                Phase.BODY: limits.body_timeout_s,
                Phase.SEND: limits.body_timeout_s,
                Phase.CLOSE: _LINGER_S,
            },
            time.monotonic(),
        )
        self.tick(time.monotonic())

    @property
    def sendfile_bytes(self) -> int:
        """Bytes sent from files, without a copy, so far."""
        return self.files.sent_bytes

    @property
    def sendfile_cold(self) -> int:
        """How often a client has had to wait for the disk before a piece of a file could be sent."""
        return self.files.cold_waits

    async def tick_for_ever(self) -> None:
        """Enforce the deadlines and keep the Date header; a task of the server, cancelled by it at its end."""
        try:
            while True:
                self.tick(time.monotonic())
                await asyncio.sleep(self.deadlines.tick_s)
        finally:
            self.files.close()

    def tick(self, now_s: float) -> None:
        self.date_header = b"date: " + formatdate(time.time(), usegmt=True).encode() + b"\r\n"
        for connection in self.deadlines.expired(now_s):
            connection.on_deadline()


def _tls_of(transport: asyncio.BaseTransport) -> tuple[str, str]:
    """Version and cipher suite, as OpenSSL calls them."""
    tls = transport.get_extra_info("ssl_object")
    return (tls.version() or "", (tls.cipher() or ("",))[0]) if tls is not None else ("", "")


class HttpProtocol(asyncio.Protocol):
    """One connection. The arguments are uvicorn's; `server_state` must be a `Front`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        assert isinstance(server_state, Front)
        self.front = server_state
        self.app: Callable[..., Any] = config.loaded_app
        self.app_state = app_state
        self.loop = _loop or asyncio.get_running_loop()
        self.phase = Phase.WORK
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)  # until connection_made
        self.parser: Any = httptools.HttpRequestParser(self)
        self.refused = False  # over the connection bound: the first request is answered SlowDown
        self.deaf = False  # nothing that still arrives matters
        self.eof = False
        self.reading_paused = False
        self.writable: asyncio.Future[None] | None = None  # pending while the send buffer is full
        self.window_bytes = 0  # progress in the present time-out window: received, or sent by sendfile
        self.window_buffered = 0  # size of the send buffer when the window began
        self.discarded_bytes = 0
        self.file_socket: socket.socket | None = None
        self.sending: Sending | None = None

        # The request that is being parsed; None between requests.
        self.incoming: Exchange | None = None
        self.in_head = False
        self.head_bytes = 0
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body_left = 0  # bytes of a Content-Length body still to come; they bypass the parser

        # The request that the application works on, and those parsed meanwhile.
        self.current: Exchange | None = None
        self.pipeline: deque[Exchange] = deque()

    # -- The transport's side ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_SEND_BUFFER_BYTES)
        self.server = get_local_addr(self.transport)
        self.client = get_remote_addr(self.transport)
        self.client_text = f"{self.client[0]}:{self.client[1]}" if self.client else ""
        self.tls = is_ssl(self.transport)
        self.extensions = {"tls": _tls_of(self.transport)} if self.tls else _EXTENSIONS
        front = self.front
        # Over the bound a connection may still send one request's headers, so that it is given an answer and not a
        # reset; far over it, it may not.
        self.refused = len(front.connections) >= front.limits.max_connections
        if front.draining or len(front.connections) >= 2 * front.limits.max_connections:
            self.deaf = True
            self.loop.call_soon(self.transport.abort)  # the loop is not done with making the connection
            return
        front.connections.add(cast("Any", self))
        front.deadlines.enter(self, Phase.HEAD if self.refused else Phase.IDLE)

    def connection_lost(self, exc: Exception | None) -> None:
        self.front.connections.discard(cast("Any", self))
        self.front.deadlines.leave(self)
        self.deaf = True
        for exchange in (self.incoming, self.current, *self.pipeline):
            if exchange is not None:
                exchange.disconnect()
        self.pipeline.clear()
        if self.writable is not None and not self.writable.done():
            self.writable.set_result(None)
        self.writable = None
        if self.sending is not None:
            self.front.files.lost(self.sending)
            self.sending = None
        if self.file_socket is not None:
            self.file_socket.close()
        self.parser = None

    def eof_received(self) -> bool:
        """Keep the connection for the answer when the request is whole; a request cut short is a client gone."""
        self.eof = True
        return not self.deaf and self.incoming is None and self.current is not None

    def pause_writing(self) -> None:
        if self.writable is None:
            self.writable = self.loop.create_future()
            self.window_buffered = self.transport.get_write_buffer_size()
            self.window_bytes = 0
            if self.phase is not Phase.CLOSE:
                self.front.deadlines.enter(self, Phase.SEND)

    def resume_writing(self) -> None:
        if self.writable is not None:
            if not self.writable.done():
                self.writable.set_result(None)
            self.writable = None
            if self.phase is Phase.SEND:
                self._enter_phase()

    def data_received(self, data: bytes) -> None:
        if self.body_left:
            exchange = self.incoming
            assert exchange is not None
            size = len(data)
            if size < self.body_left:
                self.body_left -= size
                exchange.feed(data)
                return
            rest = data[self.body_left :]
            exchange.feed(data if not rest else data[: self.body_left])
            self.body_left = 0
            self.parser = httptools.HttpRequestParser(self)
            self._message_complete(exchange)
            if not rest:
                return
            data = rest
        if self.deaf:
            self.discarded_bytes += len(data)
            if self.discarded_bytes > _LINGER_BYTES:
                self.transport.abort()
            return
        self._parse(data)
        if self.in_head and not self.deaf:
            # `on_header` counts whole headers; these bytes are of one that has not ended.
            self.head_bytes += len(data)
            if self.head_bytes > 2 * self.front.limits.max_header_bytes:
                self._refuse(self._headers_too_large())
            elif self.phase is Phase.IDLE and self.current is None:
                self.front.deadlines.enter(self, Phase.HEAD)

    def shutdown(self) -> None:
        """Part of a graceful stop: an idle connection closes now, a busy one after its present request."""
        self.front.draining = True
        if self.current is None and self.incoming is None:
            self._close()
        else:
            for exchange in (self.current, self.incoming):
                if exchange is not None:
                    exchange.keep_alive = False

    def on_deadline(self) -> None:
        """The present phase has lasted too long."""
        phase, self.phase = self.phase, Phase.WORK  # it has left the phase's queue already
        minimum = self.front.limits.body_minimum_bytes
        if phase is Phase.IDLE:
            if self.current is not None or self.incoming is not None or self.in_head:
                self._enter_phase()  # a quick request does not bother to leave the phase
            elif self.transport.get_write_buffer_size():
                self.transport.abort()
            else:
                self._close()
        elif phase is Phase.HEAD:
            self._refuse(S3Error("RequestTimeout"))
        elif phase is Phase.BODY:
            if self.window_bytes >= minimum:
                self._enter_phase()
            else:
                self._refuse(S3Error("RequestTimeout"))
        elif phase is Phase.SEND:
            buffered = self.transport.get_write_buffer_size()
            if self.writable is None and (self.sending is None or self.sending.target < 0):
                self._enter_phase()  # it was the client's turn, and is no longer
            elif self.window_bytes + self.window_buffered - buffered >= minimum:
                self.window_bytes, self.window_buffered = 0, buffered
                self.front.deadlines.enter(self, Phase.SEND)
            else:
                self.transport.abort()
        else:
            self.transport.abort()

    # -- The parser's side ---------------------------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # An upgrade is an offer that may be ignored (RFC 9110, 7.8); but the parser has given up the stream.
            self._be_deaf()
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, S3Error):
                raise
            self._refuse(error.__context__)
        except httptools.HttpParserInvalidURLError:
            self._refuse(S3Error("InvalidURI"))
        except httptools.HttpParserError as error:
            self._refuse(S3Error("BadRequest", f"An error occurred when parsing the HTTP request: {error}."))

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.in_head = True
        self.head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.head_bytes += len(name) + len(value) + 4
        if self.in_head:
            self.headers.append((name.lower(), value))
        elif self.head_bytes > self.front.limits.max_header_bytes:
            raise self._headers_too_large()  # trailer fields of a chunked body: bounded, and of no use to S3

    def on_headers_complete(self) -> None:
        if self.deaf:
            raise S3Error("BadRequest")  # ends the parsing; `_refuse` answers nothing any more
        self.in_head = False
        parser = self.parser
        exchange = Exchange(self, parser.get_method().decode("ascii"))
        self.incoming = exchange
        self._read_head(exchange, parser.get_http_version(), parser.should_upgrade())
        exchange.keep_alive = exchange.keep_alive and parser.should_keep_alive() and not self.front.draining
        if self.refused:
            exchange.notes["refused"] = "connections"
            raise S3Error("SlowDown", headers={"retry-after": "1"})
        if self.current is None:
            self.current = exchange
            exchange.start()
        elif len(self.pipeline) < _PIPELINE_DEPTH:
            self.pipeline.append(exchange)
            self.pause_reading()
        else:
            raise S3Error("SlowDown")
        if exchange.more_body:
            self._enter_phase()

    def _read_head(self, exchange: Exchange, version: str, upgrade: bool) -> None:
        """Fill in the exchange from the request line and headers.

        Raises:
            S3Error: the head has two readings, or asks for what is not spoken here.
        """
        exchange.scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "method": exchange.method,
            "scheme": "https" if self.tls else "http",
            "root_path": "",
            "headers": self.headers,
            "server": self.server,
            "client": self.client,
            "extensions": self.extensions,
            "access": exchange.notes,
            "state": self.app_state.copy(),
        }
        raw_path, _, exchange.scope["query_string"] = self.url.partition(b"?")
        exchange.scope["raw_path"] = raw_path
        if self.head_bytes + len(self.url) > self.front.limits.max_header_bytes:
            raise self._headers_too_large()
        hosts = length = 0
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                if value.strip().lower() != b"chunked" or version == "1.0":
                    raise S3Error("NotImplemented")
                exchange.chunked_body = True
            elif name == b"expect" and value.strip() and version == "1.1":
                if value.strip().lower() != b"100-continue":
                    raise S3Error("InvalidRequest", "The only Expect understood is 100-continue.", status=417)
                exchange.awaits_continue = True
        if version == "1.1":
            exchange.keep_alive = True
        elif version != "1.0":
            raise S3Error("BadRequest", "Only HTTP/1.0 and HTTP/1.1 are spoken here.", status=505)
        if hosts > 1 or (not hosts and version == "1.1"):
            raise S3Error("InvalidRequest", "A request must have exactly one Host header.")
        if upgrade:
            if exchange.chunked_body or length or exchange.method == "CONNECT":
                raise S3Error("NotImplemented")
            exchange.keep_alive = False
        exchange.more_body = exchange.chunked_body or length > 0
        exchange.length_left = self.body_left = length
        if raw_path[:1] != b"/":
            raw_path = self._absolute_form(exchange, raw_path)
        path = raw_path.decode("ascii")
        exchange.scope["path"] = urllib.parse.unquote(path) if "%" in path else path

    def _absolute_form(self, exchange: Exchange, target: bytes) -> bytes:
        """The path of `GET http://host/path`, as sent to proxies; its host replaces the header (RFC 9112, 3.2.2)."""
        scheme, separator, rest = target.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            raise S3Error("InvalidURI")
        host, _, tail = rest.partition(b"/")
        self.headers[:] = [(name, host if name == b"host" else value) for name, value in self.headers]
        exchange.scope["raw_path"] = raw_path = b"/" + tail
        return raw_path

    def on_body(self, body: bytes) -> None:
        if self.body_left:
            self.body_left -= len(body)
        if self.incoming is not None:
            self.incoming.feed(body)

    def on_message_complete(self) -> None:
        if self.incoming is not None:
            self._message_complete(self.incoming)

    def _message_complete(self, exchange: Exchange) -> None:
        self.incoming = None
        exchange.complete_request()
        if self.current is None:
            self._next()  # the response went out before the end of the body: the connection is free only now
        elif self.phase is Phase.BODY:
            self._enter_phase()

    def _headers_too_large(self) -> S3Error:
        limit = self.front.limits.max_header_bytes
        return S3Error("RequestHeaderSectionTooLarge", extra={"MaxSizeAllowed": str(limit)})

    # -- The application's side ----------------------------------------------------------------------------------

    def _enter_phase(self) -> None:
        """Start the clock of what the connection waits for now."""
        if self.phase is Phase.CLOSE:
            return
        if self.writable is not None:
            phase = Phase.SEND
        elif self.incoming is not None and not (self.reading_paused or self.incoming.awaits_continue):
            phase = Phase.BODY
            self.window_bytes = 0
        elif self.current is not None:
            phase = Phase.WORK
        else:
            phase = Phase.HEAD if self.in_head else Phase.IDLE
        self.front.deadlines.enter(self, phase)

    def exchange_done(self, exchange: Exchange) -> None:
        """The response of the current exchange has been written whole."""
        self.front.total_requests += 1
        self.current = None
        if self.transport.is_closing():
            return
        if not exchange.keep_alive:
            self._close()
        elif self.incoming is exchange:
            # The rest of the body is little (see `Exchange.write_head`): read it and forget it.
            self.resume_reading()
            self._enter_phase()
        else:
            self._next()

    def _next(self) -> None:
        if self.pipeline:
            self.current = self.pipeline.popleft()
            self.current.start()
        elif self.eof or self.front.draining or self.deaf:
            self._close()
            return
        if not self.pipeline and not self.deaf:
            self.resume_reading()
        self._enter_phase()

    def pause_reading(self) -> None:
        if not self.reading_paused and not self.transport.is_closing():
            self.reading_paused = True
            self.transport.pause_reading()
            if self.phase is Phase.BODY:
                self._enter_phase()

    def resume_reading(self) -> None:
        if self.reading_paused and not self.transport.is_closing():
            self.reading_paused = False
            self.transport.resume_reading()
            if self.incoming is not None:
                self._enter_phase()

    def _be_deaf(self) -> None:
        """Hear nothing more from this client, but finish what the application is working on."""
        self.deaf = True
        self.pipeline.clear()
        if self.current is None:
            self._close()
        else:
            self.current.keep_alive = False
            self.pause_reading()

    def _refuse(self, error: S3Error) -> None:
        """Answer in the application's place, when it has not begun to answer itself, and close."""
        if self.deaf:
            return
        exchange = self.incoming
        self.incoming = None
        self.body_left = 0
        if self.current is not None and exchange is not self.current:
            # Broken input behind a request that is being worked on: that one is answered, this one never.
            self._be_deaf()
            return
        if exchange is None:
            exchange = Exchange(self, "")
            exchange.scope = {"raw_path": self.url.partition(b"?")[0], "query_string": b""}
        self.current = None
        exchange.keep_alive = False
        started = exchange.response_started and not exchange.head
        if not started:
            exchange.answer(error)
        exchange.disconnect()
        if started:
            self.deaf = True
            self.transport.abort()
        else:
            self._close(linger=True)

    def _close(self, *, linger: bool = False) -> None:
        """Close once what was written is sent.

        A client that may still be sending is first told by our end of stream and listened to for a moment: closing
        at once would reset the connection, and the reset would overtake the answer that explains it.
        """
        self.deaf = True
        if self.transport.is_closing():
            return
        self.front.deadlines.enter(self, Phase.CLOSE)
        if (linger or self.incoming is not None) and not self.eof:
            self.body_left = 0
            if self.reading_paused:
                self.reading_paused = False
                self.transport.resume_reading()
            if self.transport.can_write_eof():
                self.transport.write_eof()
        else:
            self.transport.close()

    # -- sendfile ------------------------------------------------------------------------------------------------

    async def flushed(self) -> None:
        """Wait until the transport has written everything, so that bytes may go to the socket behind its back."""
        transport = self.transport
        if transport.get_write_buffer_size():
            # With a high-water mark of zero the transport calls `resume_writing` when its buffer is empty.
            transport.set_write_buffer_limits(high=0)
            try:
                while transport.get_write_buffer_size() and not self.transport.is_closing():
                    if self.writable is None:
                        self.pause_writing()
                    assert self.writable is not None
                    await self.writable
            finally:
                transport.set_write_buffer_limits(high=_SEND_BUFFER_BYTES)

    @property
    def closing(self) -> bool:
        return self.transport.is_closing()

    def full(self) -> None:
        """The socket takes no more of a file for now. A phase that lasts is cheaper than one for every such moment."""
        if self.phase not in (Phase.SEND, Phase.CLOSE):
            self.window_bytes = self.window_buffered = 0
            self.front.deadlines.enter(self, Phase.SEND)

    def sent(self, count: int) -> None:
        """So many bytes of a file have gone out for the current request."""
        self.window_bytes += count
        if self.current is not None:
            self.current.sent_bytes += count

    def file_target(self) -> int:
        """The socket, as a descriptor for `sendfile`."""
        return self._raw_socket().fileno()

    def send_head(self, head: bytes) -> None:
        """Write a response's head of which the body follows from a file: in the same segment, where there is room."""
        if not self.transport.get_write_buffer_size():
            with contextlib.suppress(OSError):  # it is full, or gone: the transport will meet that
                head = head[self._raw_socket().send(head, socket.MSG_MORE) :]
        if head:
            self.transport.write(head)

    def abort(self) -> None:
        self.transport.abort()

    def _raw_socket(self) -> socket.socket:
        if self.file_socket is None:
            # A duplicate, because the loop refuses to watch a descriptor that a transport owns.
            self.file_socket = socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno()))
        return self.file_socket
