"""The internal route, `/_tigrislike/internal/v1/`: what other nodes of the cluster ask of this one.

    GET  blobs/{blob}?size=N[&gather=1]     206     a range of a blob: what lies on this node's disk; with `gather`
                                                    also what it has to fetch itself
    GET  ping                               200     node, region, epoch and version of who answers
    GET  contents/{content}                 200     what of a content lies on this node's disk
    POST copies/{blob}?size=N&from=NODE     200     once this node has a copy of a blob that `from` has
    POST homes/{content}                    200     once this node is a home of a content, or that is gone

A request is verified, and noted so that it is accepted once, before anything is done for it (`replication/signing.py`,
`replication/epochs.py`). The answer is signed; a refusal of what is not signed by a node is not. A block that is not
here is a 404 where that shows with the first bytes; later it cuts the connection. Peers have a bound of their own on
requests in flight, so that neither they nor clients can take the other's place.

Bytes leave as those of objects do: verified, and from their files without a copy.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.routing import Route

from tigrislike import __version__
from tigrislike.bytecache import BytesError, MissingBlob
from tigrislike.replication.epochs import Epochs
from tigrislike.replication.signing import (
    ANSWER_HEADER,
    KEY_PURPOSE,
    PREFIX,
    REQUEST_HEADER,
    Refused,
    Signature,
    sign_answer,
)
from tigrislike.s3api.context import Services
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.reading import send_pieces
from tigrislike.s3api.request import Receive, Request, Scope, Send, new_request_id, parse_query

log = logging.getLogger("tigrislike.s3api")

ReceiveCopy = Callable[[bytes, int, bytes], Awaitable[None]]
"""Given a blob's id, its size in bytes and the id of a node that has it: returns once this node has it too, durably.

Raises:
    NotAtSource: that node has it not.
    BytesError: it cannot be had or kept now.
"""

_MAX_BODY: Final = 64 * 1024
_BLOB: Final = re.compile(r"blobs/([0-9a-f]{32})")
_COPY: Final = re.compile(r"copies/([0-9a-f]{32})")
_HOME: Final = re.compile(r"homes/([0-9a-f]{32})")
_CONTENT: Final = re.compile(r"contents/([0-9a-f]{32})")
_NODE: Final = re.compile(r"[0-9a-f]{32}")
_RANGE: Final = re.compile(r"bytes=([0-9]{1,18})-([0-9]{1,18})")
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_RETRY_AFTER: Final = (b"retry-after", b"1")


def internal_route(services: Services, epochs: Epochs, receive_copy: ReceiveCopy | None = None) -> Route:
    """The route of `create_app`'s Starlette; without `receive_copy` this node takes no copies."""
    return Route(PREFIX + "{rest:path}", InternalRoute(services, epochs, receive_copy))


class _Answer(Exception):
    """What is answered in place of what was asked for."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class InternalRoute:
    """An ASGI application; one per process."""

    def __init__(self, services: Services, epochs: Epochs, receive_copy: ReceiveCopy | None) -> None:
        self._blocks = services.blocks
        self._regional = services.regional
        self._region = services.settings.region
        self._epochs = epochs
        self._receive_copy = receive_copy
        self._key = services.metadata.derive_key(KEY_PURPOSE)
        self._most = services.settings.max_peer_requests
        self._requests = 0  # in flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, new_request_id())
        request.notes["request_id"] = request.request_id
        signature: Signature | None = None
        try:
            operation, act, blob_id = self._route(request)
            request.notes["operation"] = operation
            signature = await self._verified(request)
            await self._epochs.accept(signature.epoch, signature.sender, signature.counter)
            if self._requests >= self._most:
                raise _Answer(503, f"{self._most} requests of other nodes are in flight")
            self._requests += 1
            try:
                await act(request, signature, blob_id, send)
            finally:
                self._requests -= 1
        except (_Answer, Refused) as error:
            await self._refuse(request, signature, error.status, str(error), send)
        except S3Error as error:
            await self._refuse(request, signature, error.status, error.message, send)
        except BytesError as error:
            # Only who has the key gets so far: it may be told what the log is told.
            status = 404 if isinstance(error, MissingBlob) else 503 if error.code == "SlowDown" else 500
            if status == 500:
                log.error("request %s: %s", request.request_id, error)
            await self._refuse(request, signature, status, str(error), send)

    def _route(self, request: Request) -> tuple[str, _Act, bytes]:
        """The operation's name in logs and metrics, what performs it, and the blob or content it is about."""
        method, path = request.method, request.raw_path.decode("ascii", "replace").removeprefix(PREFIX)
        if path == "ping" and method == "GET":
            return "PeerPing", self._ping, b""
        if (match := _BLOB.fullmatch(path)) and method == "GET":
            return "PeerRead", self._read, bytes.fromhex(match[1])
        if (match := _CONTENT.fullmatch(path)) and method == "GET":
            return "PeerPresence", self._presence, bytes.fromhex(match[1])
        if (match := _COPY.fullmatch(path)) and method == "POST":
            return "PeerCopy", self._copy, bytes.fromhex(match[1])
        if (match := _HOME.fullmatch(path)) and method == "POST":
            return "PeerHome", self._home, bytes.fromhex(match[1])
        raise _Answer(400, "other nodes ask for no such thing")

    async def _verified(self, request: Request) -> Signature:
        """The signature of a request that a node of this cluster has made for this one."""
        signature = Signature.parse(request.headers.get(REQUEST_HEADER, ""))
        path = request.raw_path + (b"?" + request.raw_query if request.raw_query else b"")
        body = bytes.fromhex(await request.buffer_body(_MAX_BODY))
        ranges = request.headers.get("range", "")
        signature.verify(self._key, self._blocks.node_id, request.method, path, ranges, body)
        request.query = parse_query(request.raw_query)
        return signature

    async def _read(self, request: Request, signature: Signature, blob_id: bytes, send: Send) -> None:
        size = _size(request)
        match = _RANGE.fullmatch(request.headers.get("range", ""))
        if match is None:
            raise _Answer(400, "a Range of the form bytes=FIRST-LAST is needed")
        first, last = int(match[1]), int(match[2])
        if not first <= last < size:
            raise _Answer(416, f"the range is not within a blob of {size} bytes")
        reader = self._blocks.open_blob(blob_id, size, fetch=request.query.get("gather") == "1")
        read = reader.segments if request.zero_copy else reader.read
        content_range = f"bytes {first}-{last}/{size}"
        headers = [
            (b"content-type", b"application/octet-stream"),
            (b"content-length", b"%d" % (last + 1 - first)),
            (b"content-range", content_range.encode()),
            *self._signed(request, signature, 206, content_range, b""),
        ]
        start = {"type": "http.response.start", "status": 206, "headers": headers}
        await send_pieces(request.request_id, start, read(first, last + 1), send)

    async def _ping(self, request: Request, signature: Signature, _: bytes, send: Send) -> None:
        facts = {
            "node": self._blocks.node_id.hex(),
            "region": self._region,
            "epoch": self._epochs.current.hex(),
            "version": __version__,
        }
        await self._send(request, signature, 200, facts, send)

    async def _presence(self, request: Request, signature: Signature, content_id: bytes, send: Send) -> None:
        if self._regional is None:
            raise _Answer(501, "this node does not know")
        await self._send(request, signature, 200, await self._regional.presence(content_id), send)

    async def _copy(self, request: Request, signature: Signature, blob_id: bytes, send: Send) -> None:
        size, source = _size(request), request.query.get("from", "")
        if not _NODE.fullmatch(source):
            raise _Answer(400, "`from` is to be a node's id")
        if self._receive_copy is None:
            raise _Answer(501, "this node takes no copies")
        await self._receive_copy(blob_id, size, bytes.fromhex(source))
        await self._send(request, signature, 200, {}, send)

    async def _home(self, request: Request, signature: Signature, content_id: bytes, send: Send) -> None:
        if self._regional is None:
            raise _Answer(501, "this node takes no copies")
        await self._regional.become_home(content_id)
        await self._send(request, signature, 200, {}, send)

    async def _refuse(self, request: Request, signature: Signature | None, status: int, why: str, send: Send) -> None:
        request.notes["error"] = HTTPStatus(status).phrase
        await self._send(request, signature, status, {"error": why}, send)

    async def _send(
        self, request: Request, signature: Signature | None, status: int, document: Any, send: Send
    ) -> None:
        body = msgspec.json.encode(document)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *self._signed(request, signature, status, "", body),
        ]
        if status == 503:
            headers.append(_RETRY_AFTER)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _signed(
        self, request: Request, signature: Signature | None, status: int, content_range: str, body: bytes
    ) -> list[tuple[bytes, bytes]]:
        headers = [(b"x-amz-request-id", request.request_id.encode())]
        if signature is not None:
            signed = sign_answer(self._key, signature, status, self._epochs.current, content_range, body)
            headers.append((ANSWER_HEADER.encode(), signed.encode()))
        return headers


_Act = Callable[[Request, Signature, bytes, Send], Awaitable[None]]


def _size(request: Request) -> int:
    size = request.query.get("size", "")
    if not _NUMBER.fullmatch(size):
        raise _Answer(400, "`size` is to be the blob's size in bytes")
    return int(size)
