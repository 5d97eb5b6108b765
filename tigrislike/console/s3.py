"""S3 operations on behalf of whoever is signed in, by the same way as their own clients' requests go.

The front door of this process is asked (`s3api.app.Gateway`), with the identity of the session's key in place of a
signature: so what a bucket's policies, versions, shadow and durability mean holds here too, and the access log and the
metrics name what was done. Bytes go from and to the socket as they do there, and are never held whole.

Bytes of objects are somebody else's, and would be at the console's origin: what leaves here is a download, or an image
of a kind that can hold no script, and in either case is sandboxed.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode

import msgspec
from starlette.responses import Response

from tigrislike.admin.desk import AdminError
from tigrislike.metadata.records import AccessKey
from tigrislike.s3api.app import Gateway
from tigrislike.s3api.authorisation import Identity
from tigrislike.s3api.operations import Output

from .page import Visit

Message = MutableMapping[str, Any]

# What a browser may say of the part that it wants of a download.
_FORWARDED: Final = ("range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since")
# What logs say of whoever asks.
_DESCRIBING: Final = ("user-agent", "referer")
_SANDBOX: Final = {"content-security-policy": "sandbox; default-src 'none'", "x-content-type-options": "nosniff"}


class Answer(NamedTuple):
    """A response of S3, whole: header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class ErrorDocument(msgspec.Struct):
    """What of an error is told."""

    code: str = msgspec.field(name="Code", default="")
    message: str = msgspec.field(name="Message", default="")


class Caller:
    """Asks S3 for one visitor."""

    def __init__(self, visit: Visit, gateway: Gateway, key: AccessKey) -> None:
        self.key = key
        self._visit = visit
        self._gateway = gateway
        self._identity = Identity(key.key_id, key.owner, key.bucket, key.admin)

    @classmethod
    async def of(cls, visit: Visit) -> Caller:
        """Raises AdminError: NotHere, where no front door is; SignedOut, where the key has gone just now."""
        gateway = visit.desk.gateway
        if gateway is None:
            raise AdminError("NotHere", "objects are shown by a running node only", 404)
        assert visit.session is not None
        key = await visit.desk.metadata.access_key(visit.session.key_id)
        if key is None:
            raise AdminError("SignedOut", "the key that you are signed in with is gone", 403)
        return cls(visit, gateway, key)

    async def call(self, operation: str, **members: Any) -> Output:
        """Perform an operation without a body, from members to members; those that are None or empty are left out.

        Raises:
            S3Error, MetadataError, EngineError
        """
        given = {name: value for name, value in members.items() if value not in (None, "")}
        return await self._gateway.call(self._identity, self._scope("POST", "", "", {}, {}), operation, given)

    async def fetch(
        self,
        method: str,
        bucket: str,
        key: str,
        query: Mapping[str, str | None] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        body: bool = False,
    ) -> Answer:
        """A response that is small. `body`: the visitor's request has the body.

        Raises:
            AdminError: with the code, status and message of the refusal.
        """
        start: dict[str, Any] = {}
        pieces: list[bytes] = []

        async def keep(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                pieces.append(bytes(message.get("body", b"")))

        sent = {**(headers or {}), "accept": "application/json"}
        scope = self._scope(method, bucket, key, query or {}, sent)
        await self._gateway.respond(self._identity, scope, self._visit.request.receive if body else _nothing, keep)
        answer = Answer(start["status"], _by_name(start["headers"]), b"".join(pieces))
        if answer.status >= 400:
            code = self._notes.pop("error", "")
            document = msgspec.json.decode(answer.body, type=ErrorDocument) if answer.body else ErrorDocument()
            raise AdminError(code, document.message or _of_status(answer.status), answer.status)
        return answer

    def response(
        self, bucket: str, key: str, query: Mapping[str, str | None], headers: Mapping[str, str] | None = None
    ) -> Response:
        """A response that streams an object to the visitor, who may want a part of it only."""
        wanted = {name: value for name in _FORWARDED if (value := self._visit.request.headers.get(name)) is not None}
        scope = self._scope(self._visit.request.method, bucket, key, query, {**wanted, **(headers or {})})
        scope["extensions"] = self._visit.request.scope.get("extensions")
        return _Streamed(self._gateway, self._identity, scope)

    @property
    def _notes(self) -> dict[str, Any]:
        notes: dict[str, Any] = self._visit.request.scope.setdefault("access", {})
        return notes

    def _scope(
        self, method: str, bucket: str, key: str, query: Mapping[str, str | None], headers: Mapping[str, str]
    ) -> dict[str, Any]:
        given = {name: value for name, value in query.items() if value is not None}
        outer = self._visit.request.scope
        sent = {name: value for name in _DESCRIBING if (value := self._visit.request.headers.get(name)) is not None}
        extensions = outer.get("extensions") or {}
        return {
            **outer,
            "method": method,
            "raw_path": f"/{quote(bucket, safe='')}/{quote(key, safe='')}".encode(),
            "query_string": urlencode(given, quote_via=quote).encode(),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in {**sent, **headers}.items()],
            # What is kept here is bytes, and no ranges of files.
            "extensions": {name: value for name, value in extensions.items() if not name.startswith("http.response.")},
            "access": self._notes,
        }


class _Streamed(Response):
    """An answer of the gateway, whose headers give way to the console's."""

    def __init__(self, gateway: Gateway, identity: Identity, scope: dict[str, Any]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._gateway = gateway
        self._identity = identity
        self._scope = scope
        self.headers.update(_SANDBOX)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        own = {name for name, _ in self.raw_headers}

        async def pass_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                others = [(name, value) for name, value in message["headers"] if name not in own]
                message = {**message, "headers": [*others, *self.raw_headers]}
            await send(message)

        await self._gateway.respond(self._identity, self._scope, receive, pass_on)


def _by_name(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}


def _of_status(status: int) -> str:
    return "it is not there" if status == 404 else f"it was refused with status {status}"


async def _nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}
