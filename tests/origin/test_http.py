"""A web server as an origin: versions with and without ETags, redirects, and what HTTP cannot do."""

from __future__ import annotations

import functools
import os
import threading
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.bench.scripted_server import answer, serve
from tests.origin.routed import routed
from tests.server.wire import run
from tigrislike.origin import (
    Attributes,
    Egress,
    Location,
    Origin,
    OriginBroken,
    OriginChanged,
    OriginMissing,
    OriginRefused,
    open_origin,
)


@asynccontextmanager
async def opened(url: str, **fields: str) -> AsyncIterator[Origin]:
    origin = open_origin(Location(url, **fields), egress=Egress(allow_private=True))  # type: ignore[arg-type]
    try:
        yield origin
    finally:
        await origin.close()


async def read(origin: Origin, key: str, start: int, stop: int, size: int, etag: str) -> bytes:
    return b"".join([bytes(piece) async for piece in origin.read(key, start, stop, size=size, etag=etag)])


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Python's own server, which has no ETags and answers no ranges."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_file_without_an_etag_has_a_version_all_the_same(web: str, tmp_path: Path) -> None:
    name = "a b#é?.txt"
    (tmp_path / name).write_bytes(b"hello")

    async def main() -> None:
        async with opened(web) as origin:
            found = await origin.head(name)
            assert (found.size, found.attributes.content_type) == (5, "text/plain")
            assert found.modified_ns == int((tmp_path / name).stat().st_mtime) * 10**9
            assert await read(origin, name, 0, 5, 5, found.etag) == b"hello"
            with pytest.raises(OriginBroken):  # a range, and the server answers with everything
                await read(origin, name, 1, 5, 5, found.etag)
            os.utime(tmp_path / name, (1, 1))
            with pytest.raises(OriginChanged):
                await read(origin, name, 0, 5, 5, found.etag)
            with pytest.raises(OriginMissing):
                await origin.head("nothing")

    run(main())


def test_a_range_of_the_version_that_a_strong_etag_names() -> None:
    head = answer(b"hello", "200 OK", b'ETag: "v1"', b"Cache-Control: max-age=3")
    part = answer(b"ell", "206 Partial Content", b'ETag: "v1"', b"Content-Range: bytes 1-3/5")
    other = answer(b"ell", "206 Partial Content", b'ETag: "v2"', b"Content-Range: bytes 1-3/5")

    async def main(port: int) -> None:
        async with opened(f"http://127.0.0.1:{port}/a%20b", access_key="me", secret_key="pass") as origin:
            found = await origin.head("key")
            assert found.attributes.headers == {"CacheControl": "max-age=3"}
            assert await read(origin, "key", 1, 4, 5, found.etag) == b"ell"
            with pytest.raises(OriginChanged):
                await read(origin, "key", 1, 4, 5, found.etag)

    with serve([head.removesuffix(b"hello"), part, other]) as server:
        run(main(server.port))
    assert server.requests[1][0].startswith(b"GET /a%20b/key ")
    assert b'If-Match: "v1"' in server.requests[1][0]
    assert b"Authorization: Basic " + b64encode(b"me:pass") in server.requests[1][0]


@pytest.mark.parametrize(
    ("answered", "raised"),
    [
        (answer(b"hello", "200 OK"), OriginBroken),
        (b'HTTP/1.1 200 OK\r\nETag: "e"\r\nTransfer-Encoding: chunked\r\n\r\n', OriginRefused),
        (answer(b"", "401 Unauthorized"), OriginRefused),
        (answer(b"", "410 Gone"), OriginMissing),
        (answer(b"", "302 Found", b"Location: /again"), OriginRefused),
        (answer(b"", "302 Found", b"Location: ftp://host/"), OriginRefused),
    ],
)
def test_a_head_that_is_of_no_use(answered: bytes, raised: type[Exception]) -> None:
    async def main(port: int) -> None:
        async with opened(f"http://127.0.0.1:{port}/") as origin:
            with pytest.raises(raised):
                await origin.head("key")

    with routed(lambda line: answered) as port:
        run(main(port))


def test_redirects_are_followed_without_the_password() -> None:
    ok = answer(b"hello", "200 OK", b'ETag: "e"')
    heads: list[bytes] = []

    async def main(port: int) -> None:
        async with opened(f"http://127.0.0.1:{port}/", access_key="me", secret_key="pass") as origin:
            assert (await origin.head("key")).etag == "e"

    with routed(lambda line: ok, heads) as there:
        redirect = answer(b"", "302 Found", f"Location: http://localhost:{there}/elsewhere".encode())
        with routed(lambda line: redirect) as front:
            run(main(front))
    assert heads[0].startswith(b"HEAD /elsewhere ")
    assert b"authorization" not in heads[0].lower()


def test_http_neither_lists_nor_writes_nor_leaves_its_folder() -> None:
    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    async def main() -> None:
        async with opened("http://127.0.0.1:1/folder") as origin:
            for asking in (
                origin.list(""),
                origin.put("key", nothing(), 0, Attributes()),
                origin.delete("key"),
                origin.head("../secret"),
                origin.head("a/./b"),
                origin.head(""),
            ):
                with pytest.raises(OriginRefused):
                    await asking

    run(main())
