"""The front door: an ASGI application that answers S3.

A request travels one way: address (`request`), route (`protocol`), authenticate (`authentication`), authorise
(`authorisation`), admit (`admission`), parse (`protocol`), perform (`operations`), serialise and send. Whatever goes
wrong on that way ends in `_refuse`, as an S3 error document.

A read of an object in a bounded bucket first looks at what this process knows (`_reuse`): that decides who asks,
whether they may, and what they get, all by records of a stated age.

The service's own names (`/healthz`, `/readyz`, `/_tigrislike/...`) live on the service's own host only; under
`bucket.domain` every path is a key.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from starlette.routing import Route

from tigrislike.bytecache import BlobReader, BlockStore, BytesError, Segment
from tigrislike.config import Settings
from tigrislike.metadata import Metadata
from tigrislike.metadata.bounded import Recalled
from tigrislike.metadata.errors import MetadataError, RecordsChanged
from tigrislike.metadata.kv import EngineError
from tigrislike.metadata.records import Bucket, Extent
from tigrislike.metrics import Metrics
from tigrislike.replication.epochs import Epochs
from tigrislike.replication.origins import MovedAtOrigin
from tigrislike.replication.regional import Regional
from tigrislike.s3api.admission import Admission, Refused
from tigrislike.s3api.authentication import authenticate
from tigrislike.s3api.authorisation import Identity, authorise_bucket, authorise_name, authorise_service
from tigrislike.s3api.context import Context, Services
from tigrislike.s3api.errors import S3Error, error_document, error_json
from tigrislike.s3api.extensions import SERVED_FROM
from tigrislike.s3api.internal import ReceiveCopy, internal_route
from tigrislike.s3api.operations import Input, Output, load_operations
from tigrislike.s3api.payload import Payload
from tigrislike.s3api.post import is_form, post_object
from tigrislike.s3api.protocol import Operation, load_protocol
from tigrislike.s3api.reading import Buffer, open_extent, read_extents, segments_of, send_pieces
from tigrislike.s3api.request import (
    MAX_KEY_BYTES,
    Message,
    Receive,
    Request,
    Scope,
    Send,
    bucket_of_host,
    new_request_id,
)
from tigrislike.s3api.server_log import NOTE, ServerLog
from tigrislike.s3api.service import ServiceApplication, service_routes
from tigrislike.s3api.sigv4 import Claim, claim

log = logging.getLogger("tigrislike.s3api")

# Where no bucket may lie: the service's own paths.
RESERVED = frozenset({b"healthz", b"readyz", b"_tigrislike"})
# Reads whose own transaction proves that the records they rest on are current, so that nothing is read before it.
_PROVING = frozenset({"GetObject", "HeadObject"})
_ATTEMPTS = 8
CONSISTENT = "x-tigris-consistent"
MAX_BUFFERED_BODY = 2 * 1024 * 1024
_PARSED_ON_LOOP_BYTES = 64 * 1024  # about a millisecond of parsing
RETRY_AFTER_S = 1
# Up to this size a stored object is read and written in one go when it is in the page cache; sendfile gains nothing.
INLINE_SEND_BYTES = 256 * 1024

# Where the console is at the same origin, no object is a page of that origin: it runs no script, and is taken for
# nothing but what its Content-Type says. No request can set these two, so that what is added is all there is.
_GUARDS = ((b"content-security-policy", b"sandbox"), (b"x-content-type-options", b"nosniff"))

_XML = (b"content-type", b"application/xml")
_JSON = (b"content-type", b"application/json")


def create_app(
    *,
    metadata: Metadata,
    blocks: BlockStore,
    settings: Settings,
    metrics: Metrics | None = None,
    epochs: Epochs | None = None,
    receive_copy: ReceiveCopy | None = None,
    regional: Regional | None = None,
    server_log: ServerLog | None = None,
    also: Sequence[Route] = (),
) -> S3Application:
    """The application over an open node's parts; they stay the caller's to close.

    Args:
        epochs: the node's; without them other nodes are not answered.
        receive_copy: what takes a blob that another node has and this one is to have.
        regional: what is known of other nodes and regions.
        server_log: where requests to buckets that are logged are noted; by default none are.
        also: further routes under ``/_tigrislike/``, on the service's own host.
    """
    services = Services(metadata, blocks, settings, metrics, regional, server_log)
    routes = [*service_routes(services), *also]
    if epochs is not None:
        routes.append(internal_route(services, epochs, receive_copy))
    return S3Application(Gateway(services), routes)


class S3Application(ServiceApplication):
    """Starlette for the service's own paths; every other request is S3 and goes to the gateway at once.

    Starlette's middleware and routing would cost a tenth of a small GET, and S3's routing is not by path.
    """

    def __init__(self, gateway: Gateway, routes: list[Route]) -> None:
        super().__init__(routes=routes)
        self.gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self.gateway.is_own(scope):
            await self.gateway(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class Gateway:
    """The ASGI callable that speaks S3: one request in, one response out.

    `respond` and `call` are for those in this process who know already on whose behalf they ask (the console).
    """

    def __init__(self, services: Services) -> None:
        settings = services.settings
        self._services = services
        self._metadata = services.metadata
        self._protocol = load_protocol()
        self._handlers = load_operations()
        self._domains = (settings.domain,) if settings.domain else ()
        self._admission = Admission.from_settings(settings)
        # Consulted by every request: empty where no bucket's requests are logged.
        self._server_log = services.server_log
        self._logged: Mapping[str, object] = services.server_log.logged if services.server_log is not None else {}
        self._served_here = (SERVED_FROM, services.metadata.context.home.region.encode())
        self._guards = () if settings.admin_listen else _GUARDS

    def is_own(self, scope: Scope) -> bool:
        """Whether a request addresses one of the service's own paths, on the service's own host."""
        path: bytes = scope["raw_path"]
        if path[1:2] not in b"hr_" or path.split(b"/", 2)[1] not in RESERVED:
            return False
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        return not (self._domains and bucket_of_host(host.decode("latin-1"), self._domains))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, new_request_id())
        request.notes["request_id"] = request.request_id
        await self._respond(request, send)

    async def respond(self, identity: Identity, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request of somebody who is known already: `scope` has no signature, and names bucket and key in its
        path. Everything else is as for any request, errors too."""
        request = Request(scope, receive, new_request_id())
        request.notes["access_key"] = identity.key_id
        request.identity = identity
        await self._respond(request, send)

    async def call(self, identity: Identity, scope: Scope, name: str, members: Input) -> Output:
        """Perform an operation without a body for somebody who is known already, from members to members.

        Args:
            scope: of the request that this is part of, whose access record is to name the operation.

        Raises:
            S3Error, MetadataError, EngineError: what else would be an error document.
        """
        operation = self._protocol[name]
        assert not operation.streams_body, f"{name} takes a body"
        request = Request(scope, _nothing, new_request_id())
        request.identity, request.bucket, request.key = identity, members.get("Bucket", ""), members.get("Key", "")
        request.method = operation.method
        request.notes.update(operation=name, access_key=identity.key_id)
        if self._logged and self._server_log is not None:
            self._server_log.note(request)
        await self._metadata.refresh()
        bucket = await self._authorise(request, operation)
        async with self._admission.admit(identity.key_id, 0):
            return await self._handlers[name](Context(self._services, request, bucket, None), members)

    async def _respond(self, request: Request, send: Send) -> None:
        try:
            request.address(self._domains)
            if self._logged and self._server_log is not None:
                self._server_log.note(request)
            status, headers, body = await self._answer(request)
        except Exception as exception:
            await self._refuse(request, exception, send)
            return
        try:
            await self._send(request, status, headers, body, send)
        except BytesError as error:
            try:
                again = await self._bring_up_to_date(request, error, body)
            except Exception as exception:
                await self._refuse(request, exception, send)
                return
            if again:
                await self._respond(request, send)
            else:
                await self._refuse(request, error, send)

    async def _bring_up_to_date(self, request: Request, error: BytesError, body: Body) -> bool:
        """Whether what was answered rested on records that were too old, and is worth answering again, once."""
        if request.notes.pop("reused", None) == "fresh":
            # The record was within its bound, and its bytes are gone already: what is there now?
            request.headers[CONSISTENT] = "true"
            return True
        regional = self._services.regional
        moved = isinstance(error, MovedAtOrigin) and "renewed" not in request.notes
        if moved and regional is not None and isinstance(body, list):
            request.notes["renewed"] = True
            bucket = await self._metadata.bucket(request.bucket)
            return await regional.shadows.renew(bucket, request.key, body[0].blob)
        return False

    # --- from a request to a response

    async def _answer(self, request: Request) -> Response:
        claimed = claim(request.method, request.raw_path, request.raw_query, request.raw_headers)
        if claimed is None and is_form(request):
            return await post_object(self._services, self._protocol, self._admission, request)
        if claimed is not None and claimed.presigned:
            request.adopt_query_headers()
        operation = self._protocol.route(request.method, request.level, request.query, request.headers)
        request.notes["operation"] = operation.name
        if operation.name not in _PROVING:
            await self._metadata.refresh()
            return await self._perform(request, claimed, operation)
        if self._metadata.is_bounded(request.bucket):
            reused = await self._reuse(request, claimed, operation)
            if reused is not None:
                return reused
        for _ in range(_ATTEMPTS):
            version = self._metadata.record_version
            try:
                return await self._perform(request, claimed, operation)
            except EngineError:
                raise  # no refusal; and to ask a database that is away once more takes as long again
            except Exception as exception:
                # A refusal may rest on an outdated key or bucket as well: it stands only if they were current.
                await self._metadata.refresh()
                if not isinstance(exception, RecordsChanged) and self._metadata.record_version == version:
                    raise
        raise S3Error("SlowDown")

    async def _reuse(self, request: Request, claimed: Claim | None, operation: Operation) -> Response | None:
        """What a read is answered from what this process knows, as far as the read mode of the bucket allows it.

        None: ask the database. While that answers, it also decides about whatever would be refused here.
        """
        key_id = None if claimed is None else claimed.access_key_id
        whole = operation.name == "GetObject" or "partNumber" in request.query
        version_id = request.query.get("versionId")
        recalled = self._metadata.recall(request.bucket, request.key, version_id, key_id, whole=whole)
        if recalled is None or request.headers.get(CONSISTENT, "").lower() == "true":
            return None
        if not recalled.fresh:
            recalled = await self._metadata.renew(recalled, request.bucket, key_id, whole=whole)
            if recalled is None:
                return None
        try:
            status, headers, body = await self._perform(request, claimed, operation, recalled)
        except (S3Error, MetadataError):
            if recalled.fresh:
                return None
            raise
        request.notes["reused"] = "fresh" if recalled.fresh else "stale"
        age_s = recalled.age_ns // 1_000_000_000
        left_s = (recalled.bound_ns - recalled.age_ns) // 1_000_000_000
        headers.append((b"age", b"%d" % age_s))
        headers.append((b"cache-status", b"tigrislike; hit; ttl=%d" % left_s))
        return status, headers, body

    async def _perform(
        self, request: Request, claimed: Claim | None, operation: Operation, recalled: Recalled | None = None
    ) -> Response:
        verified = None
        if claimed is not None:
            now_ns = self._metadata.now_ns()
            verified = await authenticate(recalled or self._metadata, request, claimed, now_ns, self._body_sha256)
        bucket = await self._authorise(request, operation, recalled)
        if len(request.key) * 4 > MAX_KEY_BYTES and len(request.key.encode()) > MAX_KEY_BYTES:
            raise S3Error(
                "KeyTooLongError",
                extra={"Size": str(len(request.key.encode())), "MaxSizeAllowed": str(MAX_KEY_BYTES)},
            )
        handler = self._handlers.get(operation.name)
        if handler is None:
            raise S3Error("NotImplemented", extra={"Operation": operation.name})
        payload = None
        if operation.has_body:
            payload = Payload(
                request.receive,
                request.headers,
                verified,
                checksums_of_body=operation.streams_body or bool(operation.checksum_algorithm_member),
            )
        size = payload.size if payload is not None else 0
        async with self._admission.admit(request.identity.key_id, size):
            body = b""
            if payload is not None and not operation.streams_body:
                body = await payload.read(operation.max_body)
                payload.finish()
                if operation.checksum_required and not payload.promised:
                    raise S3Error(
                        "InvalidRequest", "Missing required header for this request: Content-MD5 OR x-amz-checksum-*"
                    )
            arguments = (request.bucket, request.key, request.query, request.headers, body)
            if len(body) > _PARSED_ON_LOOP_BYTES:
                inp = await asyncio.to_thread(operation.parse, *arguments)
            else:
                inp = operation.parse(*arguments)
            output = await handler(Context(self._services, request, bucket, payload, recalled), inp)
        if self._logged and (noted := request.notes.get(NOTE)) is not None:
            noted.performed(operation.name, inp, output)
        content = output.pop("Body", None)
        own_headers = output.pop("Headers", ())
        status, headers, document = operation.serialise(output, output.pop("StatusCode", None))
        headers.extend(own_headers)
        if operation.name in _PROVING and not isinstance(content, list):
            headers.append(self._served_here)
        return status, headers, document if content is None else content

    async def _body_sha256(self, request: Request) -> str:
        """The digest that a signer left out of the headers and signed all the same (plain SigV4, as old curls do).

        The body has to be in memory before the signature can be checked, so it is small, and charged to nobody's share
        but that of all such bodies.
        """
        with self._admission.admit_unverified(MAX_BUFFERED_BODY):
            return await request.buffer_body(MAX_BUFFERED_BODY)

    async def _authorise(
        self, request: Request, operation: Operation, recalled: Recalled | None = None
    ) -> Bucket | None:
        """The bucket that the request addresses, None where it addresses none (yet).

        Raises:
            S3Error: AccessDenied; NoSuchBucket to a caller who may know.
        """
        identity = request.identity
        if not request.bucket:
            authorise_service(identity, operation.name)
            return None
        authorise_name(identity, operation.name, request.bucket)
        if operation.name == "CreateBucket":
            return None
        bucket = await (recalled or self._metadata).bucket(request.bucket)
        authorise_bucket(identity, operation.name, bucket)
        expected = request.headers.get("x-amz-expected-bucket-owner")
        if expected is not None and expected != self._services.owner(bucket.owner)["ID"]:
            raise S3Error("AccessDenied")
        return bucket

    # --- from a response to the wire

    async def _send(self, request: Request, status: int, headers: Headers, body: Body, send: Send) -> None:
        headers.append((b"x-amz-request-id", request.request_id.encode()))
        headers.extend(self._guards)
        if self._logged and (noted := request.notes.get(NOTE)) is not None:
            noted.answered(headers)
        try:
            if isinstance(body, list):
                await self._send_extents(request, status, headers, body, send)
                return
            if status not in (204, 304) and request.method != "HEAD":
                _set_length(headers, len(body))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        except OSError as error:
            # The client is gone; nobody is left to tell.
            log.debug("request %s: the client went away: %s", request.request_id, error)

    async def _send_extents(
        self, request: Request, status: int, headers: Headers, extents: list[Extent], send: Send
    ) -> None:
        """Send stored bytes, one at least: small ones in one write, large ones from their files, where the server can,
        uncopied. Where the first piece came from is said in the headers."""
        blocks, regional = self._services.blocks, self._services.regional
        start = {"type": "http.response.start", "status": status, "headers": headers}
        extent = extents[0]
        if regional is not None:
            regional.demand.count(extent.blob)
        reader = open_extent(blocks, extent)
        if len(extents) == 1 and extent.size <= INLINE_SEND_BYTES:
            data = reader.read_cached(extent.offset, extent.offset + extent.size)
            if data is not None:
                headers.append(self._served_here)
                await send(start)
                await send({"type": "http.response.body", "body": data})
                return
        pieces: AsyncGenerator[Segment | Buffer, None]
        pieces = (segments_of if request.zero_copy else read_extents)(blocks, extents, reader)
        await send_pieces(request.request_id, start, self._telling(headers, reader, pieces), send)

    async def _telling(
        self, headers: Headers, first: BlobReader, pieces: AsyncGenerator[Segment | Buffer, None]
    ) -> AsyncGenerator[Segment | Buffer, None]:
        """The pieces; before the first of them is given out, the headers say where the reader `first` had it from."""
        told = False
        async with aclosing(pieces):
            async for piece in pieces:
                if not told:
                    told = True
                    headers.append(self._served_from(first))
                yield piece

    def _served_from(self, reader: BlobReader) -> Header:
        regional = self._services.regional
        if reader.served_from != "source" or regional is None:
            return self._served_here
        return SERVED_FROM, regional.source.served_from(reader.blob_id).encode()

    async def _refuse(self, request: Request, exception: Exception, send: Send) -> None:
        error = S3Error.of(exception)
        request.notes["error"] = error.code
        if isinstance(error, Refused):
            request.notes["refused"] = error.bound
        if error.status >= 500 and error.code not in ("SlowDown", "NotImplemented", "ServiceUnavailable"):
            log.error(
                "request %s %s %r failed",
                request.request_id,
                request.method,
                request.raw_path,
                exc_info=exception,
                extra={"request_id": request.request_id},
            )
        headers: Headers = [
            (name.encode(), value.encode("latin-1", "replace")) for name, value in error.headers.items()
        ]
        headers.extend(_version_headers(exception))
        headers.append((b"x-amz-request-id", request.request_id.encode()))
        headers.extend(self._guards)
        if error.status == 503 and not _has(headers, b"retry-after"):
            after_s = math.ceil(getattr(exception, "retry_after_s", 0.0))
            headers.append((b"retry-after", str(max(after_s, RETRY_AFTER_S)).encode()))
        body = b""
        reads_json = request.headers.get("accept") == "application/json"
        headers.append(_JSON if reads_json else _XML)
        if request.method != "HEAD":
            if reads_json:
                body = error_json(error.code, error.message, request.request_id, error.extra)
            else:
                body = error_document(error.code, error.message, request.resource, request.request_id, error.extra)
            headers.append((b"content-length", str(len(body)).encode()))
        if self._logged and (noted := request.notes.get(NOTE)) is not None:
            noted.answered(headers)
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _nothing() -> Message:
    """The `receive` of a request without a body."""
    return {"type": "http.request", "body": b"", "more_body": False}


Header = tuple[bytes, bytes]
Headers = list[Header]
Body = bytes | list[Extent]
Response = tuple[int, Headers, Body]


def _set_length(headers: Headers, length: int) -> None:
    if not _has(headers, b"content-length"):
        headers.append((b"content-length", str(length).encode()))


def _has(headers: Headers, name: bytes) -> bool:
    return any(present == name for present, _ in headers)


def _version_headers(exception: Exception) -> Headers:
    """What an error still says of an object's version: a delete marker's id."""
    headers: Headers = []
    if getattr(exception, "delete_marker", False):
        headers.append((b"x-amz-delete-marker", b"true"))
        version_id = getattr(exception, "version_id", None)
        if version_id:
            headers.append((b"x-amz-version-id", version_id.encode()))
    return headers
