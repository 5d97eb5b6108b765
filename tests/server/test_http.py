"""HTTP as well-behaved clients speak it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.wire import echo, read_body, respond, run, serving, until
from tigrislike.s3api.exchange import BODY_BUFFER_BYTES
from tigrislike.s3api.sendfile import ClientDisconnected, FileFailed

GET = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n"


def test_a_connection_is_kept_for_the_next_request() -> None:
    async def main() -> None:
        async with serving(echo) as server:
            client = await server.client()
            for path in (b"one", b"two"):
                await client.send(GET % path)
                status, headers, body = await client.response()
                assert (status, body) == (200, b"GET /" + path + b"? ")
                assert "connection" not in headers
                assert headers["date"].endswith("GMT")

    run(main())


def test_path_and_query_arrive_as_they_were_sent() -> None:
    async def main() -> None:
        async with serving(echo) as server:
            client = await server.client()
            target = b"/b//a%2Fb/../%00%c3%a9+%20?x=%2F+&y"
            await client.send(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await client.response())[2] == b"GET " + target + b" "

    run(main())


def test_pipelined_requests_are_answered_in_order() -> None:
    async def main() -> None:
        turns: list[bytes] = []

        async def slow_first(scope: dict[str, Any], receive: Any, send: Any) -> None:
            body = await read_body(receive)
            if scope["path"] == "/1":
                await asyncio.sleep(0.02)
            turns.append(scope["raw_path"])
            await respond(send, scope["raw_path"] + body)

        async with serving(slow_first) as server:
            client = await server.client()
            put = b"PUT /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
            chunked = b"PUT /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            await client.send(GET % b"1" + put + chunked + GET % b"4")
            bodies = [(await client.response())[2] for _ in range(4)]
            assert bodies == [b"/1", b"/2hello", b"/3abc", b"/4"]
            assert turns == [b"/1", b"/2", b"/3", b"/4"]

    run(main())


STREAM = (
    GET % b"a"
    + b"PUT /b HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n\r\n\r\nGET /"
    + b"POST /c?d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"4\r\n1234\r\n2;x=y\r\n56\r\n0\r\nT: 1\r\n\r\n"
    + b"HEAD /e HTTP/1.1\r\nHost: a\r\n\r\n"
    + b"DELETE /f HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_the_answers_do_not_depend_on_how_the_bytes_are_cut(cuts: list[int]) -> None:
    async def main() -> None:
        async with serving(echo) as server:
            client = await server.client()
            edges = sorted({0, *cuts, len(STREAM)})
            for start, stop in itertools.pairwise(edges):
                await client.send(STREAM[start:stop])
                await asyncio.sleep(0)
            bodies = [(await client.response(head=method == "HEAD"))[2] for method in ("", "", "", "HEAD", "")]
            assert bodies == [b"GET /a? ", b"PUT /b? \r\n\r\nGET /", b"POST /c?d 123456", b"", b"DELETE /f? "]

    run(main())


def test_a_large_body_is_handed_on_whole_and_the_next_request_follows_it() -> None:
    async def main() -> None:
        async with serving(echo) as server:
            client = await server.client()
            body = bytes(range(256)) * 12_000
            await client.send(
                b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body + GET % b"y"
            )
            assert (await client.response())[2] == b"PUT /x? " + body
            assert (await client.response())[2] == b"GET /y? "

    run(main())


def test_a_body_that_nobody_asks_for_stops_being_read() -> None:
    async def main() -> None:
        ask = asyncio.Event()

        async def late(scope: dict[str, Any], receive: Any, send: Any) -> None:
            await ask.wait()
            await respond(send, b"%d" % len(await read_body(receive)))

        async with serving(late) as server:
            client = await server.client()
            size = 16 * 1024 * 1024  # more than the kernel takes between the two
            client.writer.write(b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
            client.writer.write(bytes(size))
            await until(lambda: server.connections[0].reading_paused)
            exchange = server.connections[0].current
            assert exchange is not None
            assert exchange.body_bytes < BODY_BUFFER_BYTES + 300_000
            server.elapse(1000)  # nor is a client blamed for the pause
            ask.set()
            assert (await client.response())[2] == b"%d" % size

    run(main())


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304), ("HEAD", 404)])
def test_a_response_without_a_body_sends_none(method: str, status: int) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"7")]})
        await send({"type": "http.response.body", "body": b"1234567"})

    async def main() -> None:
        async with serving(app) as server:
            client = await server.client()
            await client.send(f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n".encode() + GET % b"x")
            assert (await client.response(head=True))[0] == status
            assert (await client.reader.readline()).startswith(b"HTTP/1.1 ")

    run(main())


async def streamed(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for piece in (b"one", b"", b"two"):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})


def test_a_response_of_unknown_length_is_chunked() -> None:
    async def main() -> None:
        async with serving(streamed) as server:
            client = await server.client()
            await client.send(GET % b"" + GET % b"")
            for _ in range(2):
                assert (await client.response())[2] == b"onetwo"

    run(main())


def test_to_http_1_0_the_end_of_the_connection_is_the_end_of_the_body() -> None:
    async def main() -> None:
        async with serving(streamed) as server:
            client = await server.client()
            await client.send(b"GET / HTTP/1.0\r\n\r\n")
            _, headers, body = await client.response()
            assert body == b"onetwo"
            assert headers["connection"] == "close"
            assert "transfer-encoding" not in headers

    run(main())


def test_connection_close_is_honoured() -> None:
    async def main() -> None:
        async with serving(echo) as server:
            client = await server.client()
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert (await client.response())[1]["connection"] == "close"
            assert await client.rest() == b""

    run(main())


def test_a_client_that_closes_its_sending_side_still_gets_its_answer() -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
            await go.wait()
            await respond(send, b"late")

        async with serving(app) as server:
            client = await server.client()
            await client.send(GET % b"")
            client.half_close()
            await until(lambda: server.connections[0].eof)
            go.set()
            assert (await client.response())[2] == b"late"
            assert await client.rest() == b""

    run(main())


def test_an_absolute_target_addresses_its_own_host() -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        host = dict(scope["headers"])[b"host"]
        await respond(send, host + b" " + scope["raw_path"] + b" " + scope["query_string"])

    async def main() -> None:
        async with serving(app) as server:
            client = await server.client()
            await client.send(b"GET http://b.example:80/k%20?q HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await client.response())[2] == b"b.example:80 /k%20 q"

    run(main())


def test_an_offer_to_upgrade_is_ignored() -> None:
    async def main() -> None:
        async with serving(echo) as server:
            client = await server.client()
            await client.send(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
            status, headers, body = await client.response()
            assert (status, headers["connection"], body) == (200, "close", b"GET /x? ")
            assert await client.rest() == b""

    run(main())


# -- Expect: 100-continue, and answers before the end of the body --------------------------------------------------


def test_the_go_ahead_is_sent_when_the_body_is_asked_for() -> None:
    async def main() -> None:
        ask = asyncio.Event()

        async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
            await ask.wait()
            await echo(scope, receive, send)

        async with serving(app) as server:
            client = await server.client()
            await client.send(b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-Continue\r\n\r\n")
            await until(lambda: server.connections[0].current is not None)
            server.elapse(1000)  # waiting for us is not idling
            ask.set()
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await client.send(b"abc")
            status, headers, body = await client.response()
            assert (status, body) == (200, b"PUT /x? abc")
            assert "connection" not in headers

    run(main())


async def refuse(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await respond(send, b"no", 403)


def test_a_refused_upload_that_waits_for_the_go_ahead_never_gets_it() -> None:
    async def main() -> None:
        async with serving(refuse) as server:
            client = await server.client()
            await client.send(
                b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5368709120\r\nExpect: 100-continue\r\n\r\n"
            )
            status, headers, _ = await client.response()
            assert (status, headers["connection"]) == (403, "close")
            assert await client.rest() == b""

    run(main())


def test_a_refused_upload_that_is_being_sent_is_cut_off_after_its_answer() -> None:
    async def main() -> None:
        async with serving(refuse) as server:
            client = await server.client()
            client.writer.write(b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5368709120\r\n\r\n")
            status, headers, _ = await client.response()
            assert (status, headers["connection"]) == (403, "close")
            assert await client.rest() == b""  # our end of stream, while the client could still send
            connection = server.connections[0]
            client.writer.write(bytes(64 * 1024 * 1024))
            await until(lambda: not server.connections)
            assert connection.discarded_bytes < 5_000_000

    run(main())


def test_a_refused_client_that_says_nothing_more_is_closed_in_time() -> None:
    async def main() -> None:
        async with serving(refuse) as server:
            client = await server.client()
            await client.send(b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5368709120\r\n\r\n")
            assert (await client.response())[0] == 403
            server.elapse(3)
            await until(lambda: not server.connections)

    run(main())


def test_the_little_rest_of_a_refused_upload_is_read_and_the_connection_kept() -> None:
    async def main() -> None:
        async with serving(refuse) as server:
            client = await server.client()
            await client.send(b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
            status, headers, _ = await client.response()
            assert status == 403
            assert "connection" not in headers
            await client.send(bytes(100_000) + GET % b"")
            assert (await client.response())[0] == 403

    run(main())


# -- Files -----------------------------------------------------------------------------------------------------------


def test_file_ranges_are_sent_between_bodies(tmp_path: Any) -> None:
    content = bytes(range(256)) * 20_000
    path = tmp_path / "block"
    path.write_bytes(content)

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert "http.response.zerocopysend" in scope["extensions"]
        length = 5 + 5_000_000 + 3 + 10
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % length)]})
        with path.open("rb") as file:
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            ranges = [(100, 5_000_000), (0, 3)]
            for offset, count in ranges:
                await send(
                    {
                        "type": "http.response.zerocopysend",
                        "file": file.fileno(),
                        "offset": offset,
                        "count": count,
                        "more_body": True,
                    }
                )
            await send({"type": "http.response.zerocopysend", "file": file, "offset": 7, "count": 10})

    async def main() -> None:
        async with serving(app) as server:
            client = await server.client()
            for _ in range(2):
                await client.send(GET % b"")
                expected = b"first" + content[100:5_000_100] + content[:3] + content[7:17]
                assert (await client.response())[2] == expected

    run(main())


@pytest.mark.parametrize("length", ["told", "chunked"])
def test_a_file_is_sent_from_where_it_stands_to_its_end_unless_something_else_is_said(
    tmp_path: Any, length: str
) -> None:
    content = bytes(range(256)) * 2000
    path = tmp_path / "block"
    path.write_bytes(content)
    expected = b"first" + content[300:] + content[-10:] + content

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"%d" % len(expected))] if length == "told" else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        with path.open("rb", buffering=0) as file:
            file.seek(300)
            await send({"type": "http.response.zerocopysend", "file": file, "more_body": True})
            offset = len(content) - 10
            await send({"type": "http.response.zerocopysend", "file": file, "offset": offset, "more_body": True})
            file.seek(0, os.SEEK_END)
            await send({"type": "http.response.zerocopysend", "file": file, "more_body": True})  # nothing
        await send({"type": "http.response.pathsend", "path": str(path)})

    async def main() -> None:
        async with serving(app) as server:
            client = await server.client()
            for _ in range(2):
                await client.send(GET % b"")
                assert (await client.response())[2] == expected
            await client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + GET % b"")
            assert (await client.response(head=True))[0] == 200
            assert (await client.response())[2] == expected

    run(main())


def test_a_path_is_sent_whole_and_one_that_is_not_there_is_the_applications_error(tmp_path: Any) -> None:
    path = tmp_path / "block"
    path.write_bytes(b"12345")

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert "http.response.pathsend" in scope["extensions"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        with contextlib.suppress(FileNotFoundError):
            await send({"type": "http.response.pathsend", "path": str(tmp_path / "nowhere")})
            raise AssertionError
        await send({"type": "http.response.pathsend", "path": str(path)})

    async def main() -> None:
        async with serving(app) as server:
            client = await server.client()
            await client.send(GET % b"")
            assert (await client.response())[2] == b"12345"

    run(main())


@pytest.mark.parametrize("length", ["told", "chunked"])
def test_behind_a_file_that_fails_a_response_can_go_on_unless_a_chunk_was_announced(tmp_path: Any, length: str) -> None:
    path = tmp_path / "block"
    path.write_bytes(b"12345")

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"8")] if length == "told" else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        with path.open("rb") as file:
            message = {"type": "http.response.zerocopysend", "file": file, "offset": 0, "count": 8, "more_body": True}
            with pytest.raises(FileFailed) as failed:
                await send(message)
            assert failed.value.sent == 5
        await send({"type": "http.response.body", "body": b"678"})

    async def main() -> None:
        async with serving(app) as server:
            client = await server.client()
            await client.send(GET % b"")
            if length == "told":
                assert (await client.response())[2] == b"12345678"
            else:
                assert (await client.rest()).endswith(b"8\r\n12345")

    run(main())


def test_a_file_that_is_too_short_cuts_the_response(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "block"
    path.write_bytes(b"12345")

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
        with path.open("rb") as file:
            await send({"type": "http.response.zerocopysend", "file": file, "offset": 0, "count": 6})

    async def main() -> None:
        async with serving(app) as server:
            client = await server.client()
            await client.send(GET % b"")
            assert (await client.rest()).endswith(b"12345")

    run(main())
    assert "the file ends 1 bytes early" in caplog.text


def test_a_client_that_leaves_during_a_file_ends_the_sending(tmp_path: Any) -> None:
    path = tmp_path / "block"
    path.write_bytes(bytes(32 * 1024 * 1024))
    left = asyncio.Event()

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"33554432")]})
        try:
            with path.open("rb") as file:
                await send({"type": "http.response.zerocopysend", "file": file, "offset": 0, "count": 33554432})
        except ClientDisconnected:
            left.set()
            raise

    async def main() -> None:
        async with serving(app) as server:
            client = await server.client()
            await client.send(GET % b"")
            await client.reader.readexactly(1000)
            client.reset()
            await left.wait()
            await until(lambda: not server.connections)

    run(main())


# -- Applications that fail ------------------------------------------------------------------------------------------


def start(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": list(headers)}


LENGTH_3 = start((b"content-length", b"3"))


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [LENGTH_3],
        [{"type": "http.response.body"}],
        [LENGTH_3, LENGTH_3],
        [LENGTH_3, {"type": "http.response.body", "body": b"1234"}],
        [LENGTH_3, {"type": "http.response.body", "body": b"12"}],
        [start((b"x-amz-meta-a", b"b\r\nset-cookie: c"))],
        [start((b"x-amz-meta-a", b"b\rc"))],
        [start((b"x-amz-meta-a", b"b\nc"))],
        [start((b"x-amz-meta-a", b"b\0c"))],
        [{"type": "websocket.accept"}],
        [LENGTH_3, {"type": "websocket.accept"}],
    ],
)
def test_a_response_that_makes_no_sense_becomes_internal_error(
    messages: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["path"] == "/ok":
            await respond(send, b"ok")
            return
        for message in messages:
            await send(message)

    async def main() -> None:
        async with serving(app) as server:
            client = await server.client()
            await client.send(GET % b"x" + GET % b"ok")
            status, headers, body = await client.response()
            assert status == 500
            assert headers["content-type"] == "application/xml"
            assert b"<Code>InternalError</Code>" in body
            assert (await client.response())[2] == b"ok"

    run(main())
    assert "failed" in caplog.text


def test_a_response_that_fails_in_the_middle_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send(LENGTH_3)
        await send({"type": "http.response.body", "body": b"12", "more_body": True})
        raise ValueError("the disk is gone")

    async def main() -> None:
        async with serving(app) as server:
            client = await server.client()
            await client.send(GET % b"")
            await client.rest()
            await until(lambda: not server.connections)

    run(main())
    assert "the disk is gone" in caplog.text


def test_messages_after_the_end_are_refused_and_receive_tells_the_end() -> None:
    seen: list[str] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await respond(send, b"ok")
        seen.append((await receive())["type"])
        with pytest.raises(RuntimeError, match="after the end"):
            await send({"type": "http.response.body"})

    async def main() -> None:
        async with serving(app) as server:
            client = await server.client()
            await client.send(GET % b"")
            await client.response()
            await until(lambda: not server.front.tasks)

    run(main())
    assert seen == ["http.disconnect"]
