"""The admin API over HTTP: routes, who may call them, JSON both ways.

A request is signed like any S3 request (SigV4, in its headers, its body included), by a key that is marked admin or is
root's; everything else is refused before anything is looked up. Errors are JSON with a code, a message and the
request's id. A page of it must never be taken for something of its caller's: answers say `nosniff` and `no-store`.
"""

from __future__ import annotations

import logging
import re
from typing import Any, Final

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from tigrislike.metadata import Metadata
from tigrislike.metadata.auditing import Actor
from tigrislike.metadata.kv import EngineError
from tigrislike.s3api.authentication import authenticate
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.payload import Payload
from tigrislike.s3api.request import Request, new_request_id
from tigrislike.s3api.sigv4 import Verified, claim

from .api import ENDPOINTS, PREFIX, Args, Endpoint, ErrorAnswer, perform
from .desk import AdminError, Desk
from .openapi import document

log = logging.getLogger("tigrislike.admin")

OPERATION: Final = "Admin"
"""What these requests are called in the access log and the metrics."""

_MAX_BODY: Final = 64 * 1024
_METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


def admin_routes(desk: Desk) -> list[Route]:
    """The routes of the admin API, for `s3api.app.create_app` or an application of their own."""
    route = Route(PREFIX + "{rest:path}", AdminApi(desk).answer, methods=_METHODS)
    route.path_regex = re.compile(route.path_regex.pattern, re.DOTALL)  # a path may have a line end in it
    return [route]


class AdminApi:
    """Answers requests; one per process."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def answer(self, http: HttpRequest) -> Response:
        request = Request(http.scope, http.receive, new_request_id())
        request.notes["operation"] = OPERATION
        request.notes["request_id"] = request.request_id
        try:
            status, body = 200, await self._result(request, http)
        except AdminError as refused:
            return self._refusal(request, refused.status, refused.code, str(refused))
        except Exception as exception:
            error = S3Error.of(exception)
            if error.code == "InternalError":
                what = request.request_id, request.method, request.raw_path
                log.error(
                    "request %s %s %r failed", *what, exc_info=exception, extra={"request_id": request.request_id}
                )
            headers = {"Retry-After": "1"} if error.status == 503 else {}
            tells = isinstance(exception, EngineError) and request.identity.admin
            message = str(exception) if tells else error.message
            return self._refusal(request, error.status, error.code, message, headers)
        return _json(status, body, {"X-Amz-Request-Id": request.request_id})

    def _refusal(
        self, request: Request, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> Response:
        request.notes["error"] = code
        answer = ErrorAnswer(code, message, request.request_id)
        allow = {"Allow": message.rpartition(" ")[2]} if code == "MethodNotAllowed" else {}
        return _json(status, answer, {"X-Amz-Request-Id": request.request_id, **allow, **(headers or {})})

    async def _result(self, request: Request, http: HttpRequest) -> Any:
        request.address(())
        verified = await authenticate_admin(self._desk.metadata, request)
        path = http.path_params["rest"]
        if path == "openapi.json":
            if request.method != "GET":
                raise AdminError("MethodNotAllowed", "this path takes GET", 405)
            return document()
        endpoint, found = _matched(request.method, path)
        args = await _arguments(request, endpoint, found, verified)
        client = http.scope.get("client")
        actor = Actor(request.identity.key_id, str(client[0]) if client else "", request.request_id)
        return await perform(self._desk, endpoint, args, actor)


async def authenticate_admin(metadata: Metadata, request: Request) -> Verified:
    """Find out who asks, and refuse whoever is no admin.

    Raises:
        S3Error: AccessDenied and the refusals of `authenticate`.
    """
    claimed = claim(request.method, request.raw_path, request.raw_query, request.raw_headers)
    if claimed is None or claimed.presigned:  # a link that acts would be in histories and logs
        raise S3Error("AccessDenied")
    await metadata.refresh()
    verified = await authenticate(metadata, request, claimed, metadata.now_ns(), _body_sha256)
    if not request.identity.admin:
        raise S3Error("AccessDenied")
    return verified


async def _body_sha256(request: Request) -> str:
    return await request.buffer_body(_MAX_BODY)


def _matched(method: str, path: str) -> tuple[Endpoint, dict[str, str]]:
    """Raises AdminError: NotFound, MethodNotAllowed."""
    allowed = []
    for endpoint in ENDPOINTS.values():
        if (match := endpoint.pattern.fullmatch(path)) is not None:
            if endpoint.method == method:
                return endpoint, match.groupdict()
            allowed.append(endpoint.method)
    if allowed:
        raise AdminError("MethodNotAllowed", f"this path takes {','.join(allowed)}", 405)
    raise AdminError("NotFound", f"the admin API has no {path!r}", 404)


async def _arguments(request: Request, endpoint: Endpoint, found: dict[str, str], verified: Verified) -> Args:
    """What the endpoint is given, checked. Raises AdminError: InvalidArgument; S3Error: of the body."""
    payload = Payload(request.receive, request.headers, verified)
    if not endpoint.mutates:
        return endpoint.arguments({**request.query, **found}, strict=False)
    if request.query:
        raise AdminError("InvalidArgument", "this takes no query, but a JSON object")
    if request.headers.get("x-amz-content-sha256") == "UNSIGNED-PAYLOAD":
        raise AdminError("AccessDenied", "the body is to be signed too", 403)
    body = await payload.read(_MAX_BODY)
    payload.finish()
    try:
        given = msgspec.json.decode(body) if body else {}
    except msgspec.DecodeError as error:
        raise AdminError("InvalidArgument", f"the body is no JSON: {error}") from None
    if not isinstance(given, dict) or given.keys() & found.keys():
        raise AdminError("InvalidArgument", "the body is to be an object of what the path does not say")
    return endpoint.arguments({**given, **found})


def _json(status: int, body: Any, headers: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(body), status, {**_HEADERS, **headers}, "application/json")
