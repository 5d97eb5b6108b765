"""One request and its response on an HTTP connection: the ASGI `receive` and `send` of one call of the application.

Guarantees: at most `BODY_BUFFER_BYTES` of a body are held before the application asks for them; the application can
promise no Content-Length that it does not keep, and put no line end into a header; after the client has gone,
`send` raises, so that nothing is read for nobody. What the connection does between requests is `http.py`'s.
"""

from __future__ import annotations

import asyncio
import http
import logging
import os
import time
import urllib.parse
from collections.abc import Iterable, MutableMapping
from typing import TYPE_CHECKING, Any

from tigrislike.s3api.errors import S3Error, error_document
from tigrislike.s3api.sendfile import ClientDisconnected, FileFailed

if TYPE_CHECKING:
    from tigrislike.s3api.http import HttpProtocol

_LOG = logging.getLogger("tigrislike.http")

BODY_BUFFER_BYTES = 512 * 1024  # of one request, before the application asks for it; then reading pauses
_JOIN_BYTES = 64 * 1024  # pieces up to this size are cheaper to copy together than to handle one by one
_DRAIN_BYTES = 256 * 1024  # an unread rest of this size is cheaper to read than a new connection is to make

_KNOWN_STATUS = {int(status): status.phrase for status in http.HTTPStatus}
_STATUS_LINE = {status: f"HTTP/1.1 {status} {_KNOWN_STATUS.get(status, '')}\r\n".encode() for status in range(200, 600)}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Exchange:
    """One request and its response: the ASGI `receive` and `send` of one call of the application."""

    __slots__ = (
        "awaits_continue",
        "body",
        "body_bytes",
        "body_delivered",
        "chunked_body",
        "chunked_response",
        "connection",
        "disconnected",
        "done",
        "head",
        "keep_alive",
        "length_left",
        "method",
        "more_body",
        "notes",
        "received_bytes",
        "recorded",
        "response_left",
        "response_started",
        "scope",
        "sent_bytes",
        "started_ns",
        "status",
        "waiter",
    )

    def __init__(self, connection: HttpProtocol, method: str) -> None:
        self.connection = connection
        self.method = method
        self.scope: dict[str, Any] = {}
        self.notes: dict[str, Any] = {}
        self.keep_alive = False
        self.disconnected = False
        self.done = False
        self.started_ns = time.monotonic_ns()

        self.awaits_continue = False
        self.chunked_body = False
        self.length_left = 0  # of a Content-Length body, not yet received
        self.more_body = False
        self.body: list[bytes] = []  # received, not yet asked for
        self.body_bytes = 0
        self.body_delivered = False
        self.received_bytes = 0
        self.waiter: asyncio.Future[None] | None = None

        self.status = 0
        self.response_started = False
        self.head = b""  # of the response, held back until its first body message
        self.chunked_response = False
        self.response_left = -1  # bytes of the response's body not yet sent; -1: not known, or not to be sent
        self.sent_bytes = 0
        self.recorded = False

    def start(self) -> None:
        connection = self.connection
        if connection.front.draining:
            self.keep_alive = False
        if self.awaits_continue and not self.more_body:
            # Nothing is awaited, and RFC 9110 (10.1.1) lets a server say nothing. But botocore before 1.44, which
            # expects 100 before an empty body too, takes a final answer in its place for a refusal, and then misreads
            # the next answer on the connection: its user waits for the read time-out.
            self._continue()
        task = connection.loop.create_task(self._run())
        connection.front.tasks.add(task)
        task.add_done_callback(connection.front.tasks.discard)

    async def _run(self) -> None:
        try:
            await self.connection.app(self.scope, self.receive, self.send)
            if not self.done and not self._nobody_listens():
                raise RuntimeError("the application returned before the end of its response")
        except ClientDisconnected:
            pass
        except asyncio.CancelledError:
            # Only the end of the drain time-out cancels; the client learns of it by the cut.
            self.connection.transport.abort()
            raise
        except Exception:
            request_id = self.notes.setdefault("request_id", self.connection.front.new_request_id())
            _LOG.exception(
                "request %s %s %r failed",
                request_id,
                self.method,
                self.scope["raw_path"],
                extra={"request_id": request_id},
            )
            if not self.done and not self._nobody_listens():
                self._fail()
        finally:
            self._record()

    def _nobody_listens(self) -> bool:
        return self.disconnected or self.connection.transport.is_closing()

    def _fail(self) -> None:
        connection = self.connection
        if self.response_started and not self.head:
            connection.transport.abort()  # the status has been sent: only a cut tells the client
            return
        self.answer(S3Error("InternalError"))
        connection.exchange_done(self)

    # -- Request -------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """More of the request's body has arrived."""
        connection = self.connection
        size = len(data)
        self.received_bytes += size
        connection.window_bytes += size
        if self.length_left:
            self.length_left -= size
        if self.done or self.disconnected:
            return  # answered already: the rest is drained
        self.body.append(data)
        self.body_bytes += size
        if self.body_bytes >= BODY_BUFFER_BYTES:
            connection.pause_reading()
        self._wake()

    def complete_request(self) -> None:
        self.more_body = False
        self._wake()

    def disconnect(self) -> None:
        self.disconnected = True
        self.body.clear()
        self._wake()

    def _wake(self) -> None:
        waiter = self.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _continue(self) -> None:
        """Tell the client to send the body."""
        self.awaits_continue = False
        if not self.disconnected:
            self.connection.transport.write(_CONTINUE)

    async def receive(self) -> dict[str, Any]:
        """More of the body that has arrived, waiting for some; after its end, the disconnect."""
        connection = self.connection
        if self.awaits_continue:
            self._continue()
            if not self.disconnected:
                connection._enter_phase()
        while not self.disconnected and not self.done:
            if self.body or not (self.more_body or self.body_delivered):
                body = self._take_body()
                more = self.more_body or bool(self.body)
                self.body_delivered = not more
                return {"type": "http.request", "body": body, "more_body": more}
            self.waiter = connection.loop.create_future()
            if self.more_body:
                connection.resume_reading()
            await self.waiter
        return {"type": "http.disconnect"}

    def _take_body(self) -> bytes:
        """What has arrived: large chunks one at a time, for to join them would copy them; small ones together."""
        chunks = self.body
        if len(chunks) > 1 and len(chunks[0]) >= _JOIN_BYTES:
            body = chunks.pop(0)
            self.body_bytes -= len(body)
            return body
        self.body = []
        self.body_bytes = 0
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    # -- Response ------------------------------------------------------------------------------------------------

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """One ASGI message of the response.

        Raises:
            ClientDisconnected: nobody is there to receive it.
            RuntimeError: the messages do not make a valid HTTP response.
        """
        connection = self.connection
        if connection.writable is not None and not self.disconnected:
            await connection.writable
        if self._nobody_listens():
            raise ClientDisconnected("the client has closed the connection")
        kind = message["type"]
        if self.done:
            raise RuntimeError(f"{kind} after the end of the response")
        if kind == "http.response.start":
            if self.response_started:
                raise RuntimeError("a second http.response.start")
            self.write_head(message["status"], message.get("headers", ()))
        elif not self.response_started:
            raise RuntimeError(f"{kind} before http.response.start")
        elif kind == "http.response.body":
            self._write_body(message.get("body", b""), message.get("more_body", False))
        elif kind == "http.response.zerocopysend":
            await self._send_file(message)
        elif kind == "http.response.pathsend":
            fd = os.open(message["path"], os.O_RDONLY | os.O_CLOEXEC)
            try:
                await self._send_file({"file": fd})
            finally:
                os.close(fd)
        else:
            raise RuntimeError(f"unknown message {kind}")

    def write_head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Form the status line and headers; they go out with the first piece of the body."""
        self.status = status
        bodiless = self.method == "HEAD" or status in (204, 304)
        length = -1
        chunked = False
        parts = [_STATUS_LINE[status], self.connection.front.date_header]
        lines = 3
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
            lines += 1
            if name == b"content-length":
                length = int(value)
            elif name == b"connection":
                if b"close" in value.lower():
                    self.keep_alive = False
                parts[-4:] = ()
                lines -= 1
            elif name == b"transfer-encoding":
                chunked = True
        if not bodiless and length < 0:
            if self.scope.get("http_version") == "1.0":
                self.keep_alive = False  # the end of the connection is the end of the body
            else:
                self.chunked_response = True
                if not chunked:
                    parts.append(b"transfer-encoding: chunked\r\n")
                    lines += 1
        if self.more_body and (self.awaits_continue or self.chunked_body or self.length_left > _DRAIN_BYTES):
            self.keep_alive = False
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
            lines += 1
        parts.append(b"\r\n")
        head = b"".join(parts)
        if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
            raise RuntimeError("a response header contains a line end or a NUL")
        self.head = head
        self.response_started = True
        self.response_left = -1 if bodiless or self.chunked_response else length

    def _write_body(self, data: bytes, more: bool) -> None:
        size = len(data)
        if self.chunked_response:
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            if not more:
                data += b"0\r\n\r\n"
        elif self.response_left >= 0:
            self._count(size, more)
        elif self.method == "HEAD" or self.status in (204, 304):
            size, data = 0, b""
        self.sent_bytes += size
        transport = self.connection.transport
        if self.head:
            head, self.head = self.head, b""
            if len(data) <= _JOIN_BYTES:
                transport.write(head + data)
            else:
                transport.write(head)
                transport.write(data)
        elif data:
            transport.write(data)
        if not more:
            self._finish()

    def _count(self, size: int, more: bool) -> None:
        """Hold the application to the Content-Length that it promised."""
        if size > self.response_left:
            raise RuntimeError(f"the response's body is longer than its Content-Length by {size - self.response_left}")
        self.response_left -= size
        if not more and self.response_left:
            raise RuntimeError(f"the response's body is shorter than its Content-Length by {self.response_left}")

    def _finish(self) -> None:
        self.done = True
        self.connection.sending = None  # the next response's file may have the same descriptor
        self._wake()
        try:
            self._record()
        finally:
            self.connection.exchange_done(self)

    def answer(self, error: S3Error) -> None:
        """Write an error document as the whole response. The caller decides what becomes of the connection."""
        request_id = self.notes.setdefault("request_id", self.connection.front.new_request_id())
        resource = urllib.parse.unquote(self.scope["raw_path"].decode("latin-1"))
        body = error_document(error.code, error.message, resource, request_id, error.extra)
        self.head = b""
        self.chunked_response = False
        headers = [
            (b"x-amz-request-id", request_id.encode()),
            (b"content-type", b"application/xml"),
            (b"content-length", b"%d" % len(body)),
            *((name.encode(), value.encode()) for name, value in error.headers.items()),
        ]
        self.write_head(error.status, headers)
        if self.method == "HEAD":
            body = b""
        self.sent_bytes += len(body)
        head, self.head = self.head, b""
        self.connection.transport.write(head + body)
        self.done = True
        self.notes["error"] = error.code
        self._record()

    def _record(self) -> None:
        """Tell the access log of this request, once, however it ended."""
        access_log = self.connection.front.access_log
        if self.recorded or not access_log.enabled:
            return
        self.recorded = True
        access_log.record(
            (
                time.time_ns(),
                self.connection.client_text,
                self.method,
                self.scope["raw_path"],
                self.scope["query_string"],
                self.status,
                self.sent_bytes,
                self.received_bytes,
                time.monotonic_ns() - self.started_ns,
                self.notes,
            )
        )

    # -- File ranges ---------------------------------------------------------------------------------------------

    async def _send_file(self, message: MutableMapping[str, Any]) -> None:
        """Send `count` bytes of `file`, a descriptor or a file object, from `offset`, without their passing through
        Python; by default from where the file stands, and to its end.

        Beyond ASGI's, `ahead` says how many bytes behind them the same file will be asked for next, and `unchanged` is
        asked whether the file still is what it was.

        Raises:
            FileFailed: Not all of it could be sent; the response can go on behind what was.
        """
        connection = self.connection
        file, more = message["file"], message.get("more_body", False)
        fd = file if isinstance(file, int) else file.fileno()
        offset, count = message.get("offset"), message.get("count")
        if offset is None:
            offset = os.lseek(fd, 0, os.SEEK_CUR)
        if count is None:
            count = max(0, os.fstat(fd).st_size - offset)
        if not count or self.method == "HEAD" or self.status in (204, 304):
            self._write_body(b"", more)
            return
        first, left = bool(self.head), self.response_left
        if left >= 0:
            self._count(count, more)
        head, self.head = self.head, b""
        if self.chunked_response:
            head += b"%x\r\n" % count
        if head:
            connection.send_head(head)
        if connection.transport.get_write_buffer_size():
            await connection.flushed()
        ahead, unchanged = message.get("ahead", 0), message.get("unchanged")
        try:
            await connection.front.files.send(connection, fd, offset, count, ahead, first=first, unchanged=unchanged)
        except FileFailed as failure:
            if left >= 0:
                self.response_left = left - failure.sent
            elif self.chunked_response:
                connection.transport.abort()  # the chunk has been announced
            raise
        if self.chunked_response:
            connection.transport.write(b"\r\n" if more else b"\r\n0\r\n\r\n")
        if not more:
            self._finish()
