"""The service's own paths, as Starlette routes: `/healthz`, `/readyz`, and management under `/_tigrislike/`.

`/healthz` answers as soon as requests are accepted; `/readyz` only while the database answers, the cache directory can
be used, the master key is the one in force, and the node is to stay: one that drains or was removed serves what still
comes, and is to get no more. A node whose disk is full is ready, and says so: it refuses writes, and goes on reading.
`/_tigrislike/metrics` is for Prometheus, and for anybody where no token is asked for. Management calls are signed with
a root key, like any S3 request, and refused in the same XML.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tigrislike.metadata.auditing import Actor, noted
from tigrislike.metadata.bounded import STRONG
from tigrislike.metadata.placing import LOCAL
from tigrislike.metadata.records import UP
from tigrislike.s3api.authentication import authenticate
from tigrislike.s3api.context import Services
from tigrislike.s3api.errors import S3Error, error_document
from tigrislike.s3api.operations.settings import ShadowBucket, place_of, try_out
from tigrislike.s3api.payload import Payload
from tigrislike.s3api.request import Message, Receive, Request, Scope, Send, new_request_id
from tigrislike.s3api.sigv4 import claim

log = logging.getLogger("tigrislike.s3api")

_MAX_DOCUMENT = 64 * 1024
_READY_S = 2.0  # for each part: a balancer gives up soon, and a node this slow is not ready


class ServiceApplication(Starlette):
    """Routes of the service's own. Each request has an id, which its answer and the access log name: the one that its
    endpoint gave it, or else one made here."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        notes = scope.get("access", {})

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ())]
                given = next((value.decode() for name, value in headers if name.lower() == b"x-amz-request-id"), "")
                request_id = notes.setdefault("request_id", given or new_request_id())
                if not given:
                    message["headers"] = [*headers, (b"x-amz-request-id", request_id.encode())]
            await send(message)

        await super().__call__(scope, receive, named)


class StorageRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /_tigrislike/storage`: the bucket to make together with a key pair scoped to it."""

    name: str
    public: bool = False
    read_mode: str = STRONG
    regions: str = ""
    durability: str = LOCAL
    shadow_bucket: ShadowBucket | None = None


def service_routes(services: Services) -> list[Route]:
    """The routes over an open node's parts."""

    async def healthz(_: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: HttpRequest) -> Response:
        problems = await found_wanting(("database", services.metadata.ping), ("cache", services.blocks.check))
        if "database" not in problems:
            problems |= await found_wanting(("master_key", services.metadata.check_master_key))
        if services.regional is not None and (state := services.regional.members.own_state) != UP:
            problems["node"] = state
        if problems:
            return JSONResponse({"status": "failing", **problems}, 503)
        # It goes on reading, which a balancer must not keep it from: the other nodes may have no more room.
        return JSONResponse({"status": "ok", **await found_wanting(("disk", services.blocks.check_room))})

    async def metrics(http: HttpRequest) -> Response:
        assert services.metrics is not None
        tokens = services.settings.metrics_auth
        if tokens is not None and not _holds(http.headers.get("authorization", ""), read_tokens(tokens)):
            return Response("a bearer token is needed\n", 401, {"www-authenticate": "Bearer"}, "text/plain")
        page, content_type = await services.metrics.page(http.headers.get("accept", ""), naming=tokens is not None)
        return Response(page, media_type=content_type)

    async def storage(request: Request, payload: Payload) -> dict[str, Any]:
        body = await payload.read(_MAX_DOCUMENT)
        payload.finish()
        try:
            wanted = msgspec.json.decode(body, type=StorageRequest)
        except msgspec.DecodeError as error:
            raise S3Error("InvalidRequest", f"The body is not a storage request: {error}") from None
        shadow = wanted.shadow_bucket
        place = place_of(shadow, request, wanted.name) if shadow is not None else None
        if place is not None:
            await try_out(services, place)
        metadata, keep_s = services.metadata, services.settings.audit_retention_s
        client = request.scope.get("client") or ("",)
        actor = Actor(request.identity.key_id, str(client[0]), request.request_id)
        told: dict[str, object] = {"name": wanted.name, "public": wanted.public}
        told |= {"regions": wanted.regions, "durability": wanted.durability}
        if shadow is not None:
            told |= {"shadow_bucket": shadow.name, "shadow_endpoint": shadow.endpoint}
        async with noted(metadata.engine, metadata.context, keep_s, actor, "create_storage", told):
            bucket, key = await metadata.create_storage(
                wanted.name,
                request.identity.owner,
                wanted.public,
                wanted.regions,
                wanted.durability,
                wanted.read_mode,
                place,
                shadow is not None and shadow.write_through,
            )
        return {"bucket": bucket.name, "access_key_id": key.key_id, "secret_access_key": key.secret}

    routes = [
        Route("/healthz", _noted("Healthz", healthz)),
        Route("/readyz", _noted("Readyz", readyz)),
        Route("/_tigrislike/storage", _noted("CreateStorage", _managed(services, storage)), methods=["POST"]),
    ]
    if services.metrics is not None:
        routes.append(Route("/_tigrislike/metrics", _noted("Metrics", metrics)))
    return routes


async def found_wanting(*parts: tuple[str, Callable[[], Awaitable[None]]]) -> dict[str, str]:
    """What is wrong with which parts, asked one after the other. Whatever it is, a balancer must hear of it; of errors
    their kind is told, for their texts may name what lies on this machine."""
    problems: dict[str, str] = {}
    for part, check in parts:
        try:
            async with asyncio.timeout(_READY_S):
                await check()
        except TimeoutError:
            problems[part] = f"no answer within {_READY_S:g} s"
        except Exception as error:
            problems[part] = type(error).__name__
    return problems


def _noted(
    operation: str, endpoint: Callable[[HttpRequest], Awaitable[Response]]
) -> Callable[[HttpRequest], Awaitable[Response]]:
    """An endpoint whose requests are told apart by `operation` in the access log and in the metrics."""

    async def noting(http: HttpRequest) -> Response:
        http.scope.get("access", {})["operation"] = operation
        return await endpoint(http)

    return noting


def read_tokens(path: Path) -> list[bytes]:
    """The tokens in the file of ``--metrics-auth``: none where it cannot be read. It is read each time, so that one can
    be replaced while nodes run."""
    try:
        return path.read_bytes().split()
    except OSError as error:
        log.error("nobody may read the metrics: %s", error)
        return []


def _holds(authorization: str, tokens: list[bytes]) -> bool:
    """Whether an Authorization header has one of the tokens. Takes as long whatever it has."""
    scheme, _, given = authorization.partition(" ")
    held = [hmac.compare_digest(given.strip().encode(), token) for token in tokens]
    return scheme.lower() == "bearer" and any(held)


async def _body_sha256(request: Request) -> str:
    return await request.buffer_body(_MAX_DOCUMENT)


def _managed(
    services: Services, call: Callable[[Request, Payload], Awaitable[dict[str, Any]]]
) -> Callable[[HttpRequest], Awaitable[Response]]:
    """An endpoint that demands a root key's signature, answers JSON, and refuses as S3 does."""

    async def endpoint(http: HttpRequest) -> Response:
        request = Request(http.scope, http.receive, new_request_id())
        headers = {"x-amz-request-id": request.request_id}
        try:
            request.address(())
            claimed = claim(request.method, request.raw_path, request.raw_query, request.raw_headers)
            if claimed is None:
                raise S3Error("AccessDenied")
            await services.metadata.refresh()
            verified = await authenticate(services.metadata, request, claimed, services.metadata.now_ns(), _body_sha256)
            if not request.identity.root:
                raise S3Error("AccessDenied")
            document = await call(request, Payload(request.receive, request.headers, verified))
            return Response(msgspec.json.encode(document), media_type="application/json", headers=headers)
        except Exception as exception:
            error = S3Error.of(exception)
            if error.code == "InternalError":
                raise
            body = error_document(error.code, error.message, request.resource, request.request_id, error.extra)
            return Response(body, error.status, {**headers, **error.headers}, "application/xml")

    return endpoint
