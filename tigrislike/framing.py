"""Where HTTP/1.1 messages begin and end, for who passes them on without changing a byte (RFC 9112, sections 2 to 7).

Pure functions over bytes. Whatever two readers might understand differently is an error, so that who stands before a
node and the node itself never disagree on where a request ends (request smuggling): bare line feeds, folded lines,
space before a colon, two lengths, a length beside a transfer coding, a coding other than `chunked`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Body = int | Literal["chunked", "close"]
"""How a message's body is delimited: bytes, chunks, or the end of the connection."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e\x80-\xff]+) HTTP/1\.([01])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: [\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_LENGTH = re.compile(rb"\d{1,18}")

_LONGEST_LINE = 16 * 1024
_LONGEST_TRAILER = 64 * 1024


class FramingError(ValueError):
    """The bytes are no message, or could be understood as two."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """Attributes: `target` as sent; `host` the Host field, lowercase; `persists`: another request may follow."""

    method: bytes
    target: bytes
    host: bytes
    body: Body
    persists: bool


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Attributes: `body` of the request's method and this status; `persists`: another response may follow."""

    status: int
    body: Body
    persists: bool


def parse_request(head: bytes) -> RequestHead:
    """What a request's head, up to and with its empty line, says of where the request ends.

    Raises:
        FramingError: see above.
    """
    line, fields = _fields(head)
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise FramingError("The request line is not one of HTTP/1.1.")
    if len(hosts := fields.get(b"host", [])) > 1:
        raise FramingError("The request has two hosts.")
    body = _body(fields, old=match[3] == b"0")
    host = hosts[0].lower() if hosts else b""
    # An old client would have to ask for more, and what its requests mean then depends on who reads them.
    persists = match[3] == b"1" and b"close" not in _options(fields)
    return RequestHead(match[1], match[2], host, 0 if body is None else body, persists)


def parse_response(head: bytes, method: bytes) -> ResponseHead:
    """The same for a response to a request of `method`.

    Raises:
        FramingError: see above.
    """
    line, fields = _fields(head)
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise FramingError("The status line is not one of HTTP/1.1.")
    status = int(match[2])
    body = _body(fields, old=match[1] == b"0")
    if body is None:
        body = "close"
    if method == b"HEAD" or status < 200 or status in (204, 304):
        body = 0
    persists = match[1] == b"1" and b"close" not in _options(fields) and body != "close"
    return ResponseHead(status, body, persists)


class ChunkedBody:
    """Finds the end of a chunked body, trailers and all, in bytes that come in pieces."""

    def __init__(self) -> None:
        self.done = False
        self._expected: Literal["size", "end of chunk", "trailer"] = "size"
        self._left = 0
        self._line = b""
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> int:
        """How many of the next bytes belong to the body: all of them, but at its end.

        Raises:
            FramingError: they are no chunks.
        """
        at = 0
        while at < len(data) and not self.done:
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            end = data.find(b"\n", at) + 1
            piece = data[at : end or len(data)]
            at += len(piece)
            self._line += piece
            if len(self._line) > _LONGEST_LINE:
                raise FramingError("A line of the chunked body is too long.")
            if end:
                line, self._line = self._line, b""
                self._take(line)
        return at

    def _take(self, line: bytes) -> None:
        if not line.endswith(b"\r\n"):
            raise FramingError("A line of the chunked body ends in a bare line feed.")
        line = line[:-2]
        if self._expected == "size":
            match = _CHUNK_SIZE.fullmatch(line)
            if match is None:
                raise FramingError("The size of a chunk is no number.")
            self._left = int(match[1], 16)
            self._expected = "end of chunk" if self._left else "trailer"
        elif self._expected == "end of chunk":
            if line:
                raise FramingError("A chunk is longer than its size.")
            self._expected = "size"
        elif not line:
            self.done = True
        else:
            self._trailer_bytes += len(line)
            if _FIELD.fullmatch(line) is None or self._trailer_bytes > _LONGEST_TRAILER:
                raise FramingError("What follows the chunks is no trailer, or too long.")


def _fields(head: bytes) -> tuple[bytes, dict[bytes, list[bytes]]]:
    if not head.endswith(b"\r\n\r\n"):
        raise FramingError("The head has no end.")
    line, *lines = head[:-4].split(b"\r\n")
    fields: dict[bytes, list[bytes]] = {}
    for field in lines:
        match = _FIELD.fullmatch(field)
        if match is None:
            raise FramingError("A line of the head is no header field.")
        fields.setdefault(match[1].lower(), []).append(match[2].rstrip(b" \t"))
    return line, fields


def _options(fields: dict[bytes, list[bytes]]) -> set[bytes]:
    return {option.strip().lower() for value in fields.get(b"connection", []) for option in value.split(b",")}


def _body(fields: dict[bytes, list[bytes]], *, old: bool) -> Body | None:
    lengths, codings = fields.get(b"content-length", []), fields.get(b"transfer-encoding", [])
    if codings:
        if lengths or old or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise FramingError("The transfer coding is not chunked alone, or stands beside a length.")
        return "chunked"
    if not lengths:
        return None
    if len(lengths) > 1 or _LENGTH.fullmatch(lengths[0]) is None:
        raise FramingError("The content length is no single number.")
    return int(lengths[0])
