"""Calling the admin API: of a running node, over HTTP, or directly on the database, in the same way.

Both take an endpoint's name and its arguments and give its result. A node is asked over one connection, signed with an
admin key; on the database the user of this machine acts, who needs nothing but the master key.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from tigrislike.config import Settings

from .api import ENDPOINTS, PREFIX, ErrorAnswer, perform
from .desk import AdminError, Desk
from .nodes import opened
from .noting import local_actor

_TIMEOUT_S: Final = 30.0


class Api(Protocol):
    """Somewhere to ask."""

    async def call(self, name: str, **arguments: Any) -> Any:
        """The result of an endpoint; arguments that are None are left out.

        Raises:
            AdminError: it was refused, or nobody answered.
        """
        ...


class LocalApi:
    """The database itself."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._actor = local_actor()

    async def call(self, name: str, **arguments: Any) -> Any:
        endpoint = ENDPOINTS[name]
        return await perform(self.desk, endpoint, endpoint.arguments(_given(arguments)), self._actor)


@contextlib.asynccontextmanager
async def local(settings: Settings) -> AsyncIterator[Api]:
    """The store of the settings. Raises as `nodes.opened`."""
    async with opened(settings) as metadata:
        yield LocalApi(Desk(metadata, settings))


class RemoteApi:
    """A running node. Blocks while it waits: it is for programs that do nothing else meanwhile."""

    def __init__(self, endpoint: str, key_id: str, secret: str, ca_bundle: str | None = None) -> None:
        from botocore.credentials import Credentials

        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise AdminError(
                "InvalidArgument", f"{endpoint!r} is no endpoint: expected http://HOST:PORT or https://..."
            )
        self._base = f"{parts.scheme}://{parts.netloc}"
        self._netloc = parts.netloc
        self._credentials = Credentials(key_id, secret)
        self._connection = (
            http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=_TIMEOUT_S, context=ssl.create_default_context(cafile=ca_bundle)
            )
            if parts.scheme == "https"
            else http.client.HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT_S)
        )

    def close(self) -> None:
        self._connection.close()

    async def call(self, name: str, **arguments: Any) -> Any:
        endpoint, given = ENDPOINTS[name], _given(arguments)
        path = PREFIX + endpoint.path.format(
            **{each: quote(str(given.pop(each)), safe="") for each in endpoint.in_path}
        )
        body = b""
        if endpoint.mutates:
            body = msgspec.json.encode(given) if given else b""
        elif given:
            path += "?" + urlencode(sorted((key, _text(value)) for key, value in given.items()), quote_via=quote)
        status, answer = self._ask(endpoint.method, path, body)
        if status != 200:
            try:
                refusal = msgspec.json.decode(answer, type=ErrorAnswer)
            except msgspec.MsgspecError:
                raise AdminError(
                    "NoAnswer", f"HTTP status {status}: does {self._base} serve the admin API of tigrislike?", status
                ) from None
            raise AdminError(refusal.code, refusal.message, status)
        return msgspec.json.decode(answer, type=endpoint.result)

    def _ask(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Send a request, and once more if the connection had been closed while nothing was asked."""
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest

        class Signer(SigV4Auth):  # type: ignore[misc]  # botocore is not typed
            """As for S3, whose paths are signed as they are sent; but bodies always are, over https too."""

            def _normalize_url_path(self, path: str) -> str:
                return path

        fresh = self._connection.sock is None
        headers = {"Host": self._netloc, **({"Content-Type": "application/json"} if body else {})}
        request = AWSRequest(method, self._base + path, data=body, headers=headers)
        Signer(self._credentials, "s3", "auto").add_auth(request)
        try:
            self._connection.request(method, path, body, dict(request.headers.items()))
            response = self._connection.getresponse()
            return response.status, response.read()
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as error:
            self._connection.close()
            if fresh or method != "GET":
                raise AdminError("NoAnswer", f"no answer from {self._base}: {error}", 503) from error
            return self._ask(method, path, body)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise AdminError("NoAnswer", f"no answer from {self._base}: {error}", 503) from error


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


async def every(api: Api, name: str, rows: str, **arguments: Any) -> AsyncIterator[Any]:
    """The rows of all pages of an endpoint."""
    cursor: str | None = None
    while True:
        page = await api.call(name, cursor=cursor, **arguments)
        for row in getattr(page, rows):
            yield row
        cursor = page.cursor
        if cursor is None:
            return
