"""The console in the process of a test: one request, one answer, no sockets."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tigrislike.console.serving import Console
from tigrislike.console.session import Sessions
from tigrislike.metadata import Metadata

from .browser import POLICY


async def signed_in(metadata: Metadata) -> str:
    """The cookie of somebody with an admin key."""
    key = await metadata.create_access_key("root", admin=True)
    sessions = Sessions(metadata, 3600.0)
    session = await sessions.sign_in(key.key_id, key.secret)
    assert session is not None
    return sessions.cookie(session)


async def ask(
    console: Console, path: str, cookie: str = "", method: str = "GET", body: Any = None, **more: str
) -> Response:
    headers = [(b"cookie", f"tigrislike-console={cookie}".encode()), (b"host", b"here"), (b"origin", b"http://here")]
    headers += [(name.replace("_", "-").encode(), value.encode()) for name, value in more.items()]
    if body is not None:
        headers.append((b"content-type", b"application/x-www-form-urlencoded"))
    where, _, query = path.partition("?")

    async def receive() -> Any:
        if isinstance(body, Exception):
            raise body
        return {"type": "http.request", "body": body or b""}

    scope = {
        "type": "http",
        "method": method,
        "path": where,
        "path_params": {"rest": where},
        "query_string": query.encode(),
        "headers": headers,
        "scheme": "http",
        "client": None,
    }
    response = await console.answer(Request(scope, receive))
    assert {name: response.headers[name] for name in POLICY} == POLICY
    return response


def text_of(response: Response) -> str:
    return bytes(response.body).decode()
