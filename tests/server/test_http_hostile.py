"""HTTP as broken, slow and hostile clients speak it: each is answered or cut, and none of them holds anything."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from tests.server.wire import Client, echo, read_body, respond, run, serving, until
from tigrislike.s3api.deadlines import Phase

HEAD = b"PUT /b/k HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


async def refusal(client: Client) -> tuple[int, str]:
    """The S3 error that the server ends the connection with."""
    status, headers, body = await client.response()
    assert headers["content-type"] == "application/xml"
    assert headers["connection"] == "close"
    assert headers["x-amz-request-id"] == "0123456789ABCDEF"
    assert b"<RequestId>0123456789ABCDEF</RequestId>" in body
    assert b"<Resource>" in body
    assert await client.rest() == b""
    code = re.search(rb"<Code>(\w+)</Code>", body)
    assert code is not None
    return status, code[1].decode()


MALFORMED = {
    "both length and chunked": HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both chunked and length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "length twice": HEAD + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "two lengths": HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "length list": HEAD + b"Content-Length: 3, 3\r\n\r\nabc",
    "negative length": HEAD + b"Content-Length: -3\r\n\r\nabc",
    "signed length": HEAD + b"Content-Length: +3\r\n\r\nabc",
    "hexadecimal length": HEAD + b"Content-Length: 0x3\r\n\r\nabc",
    "empty length": HEAD + b"Content-Length: \r\n\r\nabc",
    "absurd length": HEAD + b"Content-Length: 99999999999999999999999\r\n\r\nabc",
    "chunked twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, then identity": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "bare line feeds": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare line feed in headers": HEAD + b"X-A: b\nX-B: c\r\n\r\n",
    "bare carriage return": HEAD + b"X-A: b\rX-B: c\r\n\r\n",
    "folded line": HEAD + b"X-A: b\r\n c\r\n\r\n",
    "space before colon": HEAD + b"Content-Length : 3\r\n\r\nabc",
    "no header name": HEAD + b": b\r\n\r\n",
    "NUL in a header": HEAD + b"X-A: b\0c\r\n\r\n",
    "control character in a name": HEAD + b"X\x01A: b\r\n\r\n",
    "space in the target": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "unknown method": b"FETCH / HTTP/1.1\r\nHost: a\r\n\r\n",
    "unknown version": b"GET / HTTP/1.7\r\nHost: a\r\n\r\n",
    "TLS on a plain port": bytes.fromhex("1603010200010001fc0303") + bytes(100),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_not_http_or_has_two_readings_is_refused_unseen(request_bytes: bytes) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        raise AssertionError("the application saw it")

    async def main() -> None:
        async with serving(app) as server:
            client = await server.client()
            await client.send(request_bytes)
            assert await refusal(client) == (400, "BadRequest")

    run(main())


OTHERS = {
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, "InvalidRequest"),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "InvalidRequest"),
    "compressed transfer": (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "NotImplemented"),
    "transfer not chunked": (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 501, "NotImplemented"),
    "chunked in 1.0": (b"PUT / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501, "NotImplemented"),
    "another expectation": (HEAD + b"Expect: the-moon\r\n\r\n", 417, "InvalidRequest"),
    "CONNECT": (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 501, "NotImplemented"),
    "upgrade with a body": (
        HEAD + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc",
        501,
        "NotImplemented",
    ),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400, "InvalidURI"),
    "target of another scheme": (b"GET ftp://a/b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "InvalidURI"),
    "raw bytes in the target": ("GET /é HTTP/1.1\r\nHost: a\r\n\r\n".encode(), 400, "InvalidURI"),
    "old version": (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505, "BadRequest"),
}


@pytest.mark.parametrize(("request_bytes", "status", "code"), OTHERS.values(), ids=OTHERS.keys())
def test_what_is_not_spoken_here_is_refused_by_its_name(request_bytes: bytes, status: int, code: str) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        raise AssertionError("the application saw it")

    async def main() -> None:
        async with serving(app) as server:
            client = await server.client()
            await client.send(request_bytes)
            assert await refusal(client) == (status, code)

    run(main())


BAD_CHUNKS = {
    "no number": b"zz\r\nabc\r\n",
    "negative": b"-1\r\nabc\r\n",
    "prefixed": b"0x3\r\nabc\r\n0\r\n\r\n",
    "bare line feed": b"3\nabc\r\n0\r\n\r\n",
    "longer than said": b"3\r\nabcd\r\n0\r\n\r\n",
    "overflow": b"ffffffffffffffffff\r\nabc",
    "space": b"3 \r\nabc\r\n0\r\n\r\n",
    "length in the trailer": b"3\r\nabc\r\n0\r\nContent-Length: 1\r\n\r\n",
}


@pytest.mark.parametrize("chunks", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
def test_bad_chunks_end_the_request_and_the_application_learns_it(chunks: bytes) -> None:
    async def main() -> None:
        gone = asyncio.Event()

        async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
            try:
                await read_body(receive)
            except ConnectionError:
                gone.set()
                await respond(send, b"too late")

        async with serving(app) as server:
            client = await server.client()
            await client.send(CHUNKED + chunks)
            assert await refusal(client) == (400, "BadRequest")
            await gone.wait()

    run(main())


def test_broken_input_behind_a_request_does_not_spoil_its_answer() -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
            await go.wait()
            await echo(scope, receive, send)

        async with serving(app) as server:
            client = await server.client()
            await client.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\nGARBAGE\r\n\r\n")
            await until(lambda: bool(server.connections) and server.connections[0].deaf)
            server.elapse(1000)
            go.set()
            assert (await client.response())[2] == b"GET /x? "
            assert await client.rest() == b""

    run(main())


def test_a_flood_of_pipelined_requests_is_bounded() -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
            await go.wait()
            await respond(send, b"")

        async with serving(app) as server:
            client = await server.client()
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)
            await until(lambda: server.connections[0].deaf)
            assert len(server.connections[0].pipeline) == 0
            go.set()
            assert (await client.response())[0] == 200
            assert await client.rest() == b""

    run(main())


# -- Size of headers -------------------------------------------------------------------------------------------------

LARGE = {
    "many headers": HEAD + b"".join(b"X-%d: %b\r\n" % (n, b"v" * 90) for n in range(100)) + b"\r\n",
    "one header": HEAD + b"X-A: " + b"v" * 9000 + b"\r\n\r\n",
    "the target": b"GET /" + b"k" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "a header without end": HEAD + b"X-A: " + b"v" * 300_000,
    "a target without end": b"GET /" + b"k" * 300_000,
    "a header name without end": HEAD + b"v" * 300_000,
}


@pytest.mark.parametrize("request_bytes", LARGE.values(), ids=LARGE.keys())
def test_headers_over_the_bound_are_refused(request_bytes: bytes) -> None:
    async def main() -> None:
        async with serving(echo) as server:
            client = await server.client()
            client.writer.write(request_bytes)
            assert await refusal(client) == (400, "RequestHeaderSectionTooLarge")

    run(main())


def test_headers_within_the_bound_pass() -> None:
    async def main() -> None:
        async with serving(echo) as server:
            client = await server.client()
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-A: " + b"v" * 8000 + b"\r\n\r\n")
            assert (await client.response())[0] == 200

    run(main())


def test_trailer_fields_are_bounded_and_never_become_headers() -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await read_body(receive)
        await respond(send, b"%d" % len(scope["headers"]))

    async def main() -> None:
        async with serving(app) as server:
            client = await server.client()
            await client.send(CHUNKED + b"3\r\nabc\r\n0\r\nAuthorization: x\r\n\r\n")
            assert (await client.response())[2] == b"2"
            await client.send(CHUNKED + b"3\r\nabc\r\n0\r\n" + b"X-A: bcdefgh\r\n" * 1000 + b"\r\n")
            assert await refusal(client) == (400, "RequestHeaderSectionTooLarge")

    run(main())


# -- Time ------------------------------------------------------------------------------------------------------------


def test_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    async def main() -> None:
        async with serving(echo) as server:
            fresh = await server.client()
            used = await server.client()
            await used.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await used.response()
            server.elapse(59)
            assert len(server.connections) == 2
            server.elapse(30)
            assert await fresh.rest() == await used.rest() == b""

    run(main())


def test_slow_headers_end_with_request_timeout_however_often_a_byte_comes() -> None:
    async def main() -> None:
        async with serving(echo) as server:
            client = await server.client()
            await client.send(b"GET / HTTP/1.1\r\n")
            for byte in (b"H", b"o", b"s"):
                await until(lambda: server.connections[0].in_head)
                server.elapse(3)
                await client.send(byte)
            server.elapse(3)
            assert await refusal(client) == (400, "RequestTimeout")

    run(main())


@pytest.mark.parametrize("head", [HEAD + b"Content-Length: 100000\r\n\r\n", CHUNKED + b"10000\r\n"])
def test_a_trickling_body_ends_with_request_timeout(head: bytes) -> None:
    async def main() -> None:
        gone = asyncio.Event()

        async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
            try:
                await read_body(receive)
            except ConnectionError:
                gone.set()

        async with serving(app) as server:
            client = await server.client()
            await client.send(head)
            await until(lambda: server.connections[0].incoming is not None)
            for _ in range(3):
                server.elapse(9)
                await client.send(b"x")
                await asyncio.sleep(0.005)
            assert await refusal(client) == (400, "RequestTimeout")
            await gone.wait()

    run(main())


def test_a_slow_body_that_makes_progress_is_left_alone() -> None:
    async def main() -> None:
        async with serving(echo) as server:
            client = await server.client()
            await client.send(HEAD + b"Content-Length: 20000\r\n\r\n")
            for left in range(18_000, 0, -2000):
                await client.send(b"x" * 2000)
                await until(lambda left=left: server.connections[0].body_left == left)
                server.elapse(21)
            await client.send(b"x" * 2000)
            assert (await client.response())[2] == b"PUT /b/k? " + b"x" * 20_000

    run(main())


@pytest.mark.parametrize("file", [False, True])
def test_a_client_that_does_not_take_its_response_is_cut(tmp_path: Any, file: bool) -> None:
    path = tmp_path / "block"
    path.write_bytes(bytes(64 * 1024 * 1024))

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"67108864")]})
        if file:
            with path.open("rb") as block:
                await send({"type": "http.response.zerocopysend", "file": block, "offset": 0, "count": 67108864})
        else:
            for _ in range(64):
                await send({"type": "http.response.body", "body": bytes(1024 * 1024), "more_body": True})

    async def main() -> None:
        async with serving(app) as server:
            client = await server.client()
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            client.writer.transport.pause_reading()
            await until(lambda: server.connections[0].phase is Phase.SEND)
            while server.connections:  # the socket buffers may still be filling
                server.elapse(21)
                await asyncio.sleep(0)
            await until(lambda: not server.front.tasks)
            client.reset()

    run(main())


def test_a_client_that_never_fetches_the_last_bytes_is_cut_when_idle() -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await respond(send, bytes(8 * 1024 * 1024))

    async def main() -> None:
        async with serving(app) as server:
            client = await server.client()
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            client.writer.transport.pause_reading()
            await until(lambda: server.connections[0].current is None)
            for _ in range(6):
                server.elapse(61)
            await until(lambda: not server.connections)
            client.reset()

    run(main())


# -- Numbers ---------------------------------------------------------------------------------------------------------


def test_connections_over_the_bound_are_told_to_slow_down() -> None:
    async def main() -> None:
        async with serving(echo, max_connections=2) as server:
            first, _ = await server.client(), await server.client()
            third = await server.client()
            await third.send(b"PUT /b/k HTTP/1.1\r\nHost: a\r\nContent-Length: 5368709120\r\n\r\n")
            status, headers, body = await third.response()
            assert status == 503
            assert headers["retry-after"] == "1"
            assert headers["connection"] == "close"
            assert b"<Code>SlowDown</Code>" in body
            assert await third.rest() == b""
            await first.send(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await first.response())[0] == 200

    run(main())


def test_connections_far_over_the_bound_are_not_even_heard() -> None:
    async def main() -> None:
        async with serving(echo, max_connections=1) as server:
            for _ in range(2):
                await server.client()
            third = Client(*await asyncio.open_connection("127.0.0.1", server.port))
            assert await third.rest() == b""
            await third.close()

    run(main())


def test_a_refused_connection_that_says_nothing_is_closed_soon() -> None:
    async def main() -> None:
        async with serving(echo, max_connections=1) as server:
            _, refused = await server.client(), await server.client()
            server.elapse(11)
            assert b"RequestTimeout" in await refused.rest()
            await refused.close()
            await until(lambda: len(server.connections) == 1)

    run(main())


# -- Clients that vanish ---------------------------------------------------------------------------------------------


def test_a_client_that_vanishes_in_its_upload_disconnects_the_application() -> None:
    async def main() -> None:
        gone = asyncio.Event()

        async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
            try:
                await read_body(receive)
            except ConnectionError:
                gone.set()

        async with serving(app) as server:
            for how in ("reset", "half_close"):
                gone.clear()
                client = await server.client()
                await client.send(HEAD + b"Content-Length: 100\r\n\r\nabc")
                await until(lambda: any(c.incoming is not None for c in server.connections))
                getattr(client, how)()
                await gone.wait()
                await until(lambda: not server.connections)
                client.writer.transport.abort()

    run(main())


def test_a_client_that_vanishes_in_its_download_stops_the_application() -> None:
    async def main() -> None:
        sent = 0
        stopped = asyncio.Event()

        async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
            nonlocal sent
            await send({"type": "http.response.start", "status": 200, "headers": []})
            try:
                while True:
                    await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
                    sent += 1
            except OSError:
                stopped.set()
                raise

        async with serving(app) as server:
            client = await server.client()
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await client.reader.readexactly(100_000)
            client.reset()
            await stopped.wait()
            await until(lambda: not server.connections)

    run(main())


# -- Draining --------------------------------------------------------------------------------------------------------


def test_a_drain_closes_idle_connections_and_lets_busy_ones_finish() -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
            body = await read_body(receive)
            await go.wait()
            await respond(send, b"done " + body)

        async with serving(app) as server:
            idle, busy, uploading = await server.client(), await server.client(), await server.client()
            await busy.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await uploading.send(HEAD + b"Content-Length: 3\r\n\r\na")
            await until(lambda: len(server.front.tasks) == 2)
            for connection in server.connections:
                connection.shutdown()
            assert await idle.rest() == b""
            await uploading.send(b"bc")
            go.set()
            for client, expected in ((busy, b"done "), (uploading, b"done abc")):
                _, headers, body = await client.response()
                assert (headers["connection"], body) == ("close", expected)
                assert await client.rest() == b""

    run(main())
