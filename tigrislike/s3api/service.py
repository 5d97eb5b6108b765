"""The service's own paths: `/healthz`, `/readyz`, and management under `/_tigrislike/`.

`/healthz` answers as soon as requests are accepted; `/readyz` only while the database answers and the cache directory
can be used. Management calls are signed with a root key like any S3 request; the front door has checked that.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tigrislike.s3api.context import Services
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.payload import Payload
from tigrislike.s3api.request import Request

_MAX_DOCUMENT = 64 * 1024
_JSON = [(b"content-type", b"application/json")]


class StorageRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of `POST /_tigrislike/storage`: the bucket to make together with a key pair scoped to it."""

    name: str
    public: bool = False


class ServiceEndpoints:
    """The handlers of the service's own paths."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def probe(self, request: Request) -> tuple[int, list[tuple[bytes, bytes]], Any]:
        """Answer `/healthz` or `/readyz`; 503 with the reason where the node cannot serve."""
        if request.method not in ("GET", "HEAD"):
            raise S3Error("MethodNotAllowed", headers={"allow": "GET, HEAD"})
        if request.key:
            raise S3Error("InvalidURI")
        problems: dict[str, str] = {}
        if request.bucket == "readyz":
            try:
                await self._services.metadata.refresh()
            except Exception as error:
                problems["database"] = type(error).__name__
            try:
                self._services.blocks.statistics()
            except Exception as error:
                problems["cache"] = type(error).__name__
        body = msgspec.json.encode({"status": "failing" if problems else "ok", **problems})
        return (503 if problems else 200), list(_JSON), (b"" if request.method == "HEAD" else body)

    async def manage(self, request: Request, payload: Payload) -> tuple[int, list[tuple[bytes, bytes]], Any]:
        """Answer a management call of a root key.

        Raises:
            S3Error: MethodNotAllowed for a path or method that is none; InvalidRequest for a body that is not its
                document; what the metadata layer refuses.
        """
        if request.key != "storage" or request.method != "POST":
            raise S3Error("MethodNotAllowed", headers={"allow": "POST"})
        body = await payload.read(_MAX_DOCUMENT)
        payload.finish()
        try:
            wanted = msgspec.json.decode(body, type=StorageRequest)
        except msgspec.DecodeError as error:
            raise S3Error("InvalidRequest", f"The body is not a storage request: {error}") from None
        bucket, key = await self._services.metadata.create_storage(
            wanted.name, request.identity.owner, public=wanted.public
        )
        document = {"bucket": bucket.name, "access_key_id": key.key_id, "secret_access_key": key.secret}
        return 200, list(_JSON), msgspec.json.encode(document)
