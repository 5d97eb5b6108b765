"""Bodies that go from the socket straight into memory that somebody lends."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from tests.server.wire import respond, run, serving, until
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.payload import Payload

BODY = os.urandom(3_000_000)
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"


def head(size: int) -> bytes:
    return b"PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size


class ScriptedSink:
    """Takes bytes into pieces of `piece` bytes; is full after `limit` of them, until `ready` is let through."""

    def __init__(self, piece: int = 100_000, limit: int = 1 << 40) -> None:
        self.data = bytearray()
        self.lent = 0  # bytes that came by room() and filled()
        self.waits = 0
        self.limit = limit
        self.go_on = asyncio.Event()
        self.failure: Exception | None = None
        self._piece = bytearray(piece)

    @property
    def full(self) -> bool:
        return len(self.data) >= self.limit

    def room(self) -> memoryview:
        return memoryview(self._piece)

    def filled(self, count: int) -> None:
        self.data += self._piece[:count]
        self.lent += count

    async def ready(self) -> None:
        if self.full:
            self.waits += 1
            await self.go_on.wait()
            self.go_on.clear()
            if self.failure is not None:
                raise self.failure

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        self.data += data


class Storing:
    """An application that stores one body, and says how that ended."""

    def __init__(self, sink: ScriptedSink) -> None:
        self.sink = sink
        self.ended: list[str] = []
        self.encrypted = False

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["method"] == "GET":
            await respond(send, b"next")
            return
        receive.__self__.connection.tls = self.encrypted
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        try:
            await Payload(receive, headers, None).store(self.sink)
        except S3Error as error:
            self.ended.append(error.code)
        except OSError as error:
            self.ended.append(str(error))
            await respond(send, b"failed", 503)
        else:
            self.ended.append("whole")
            await respond(send, b"%d" % receive.__self__.received_bytes)


@pytest.mark.parametrize("piece", [777, 100_000, 10_000_000])
@pytest.mark.parametrize("size", [0, 1, 100_000, 300_000, len(BODY)])
def test_a_body_arrives_whole_and_the_next_request_follows_it(piece: int, size: int) -> None:
    async def main() -> None:
        app = Storing(ScriptedSink(piece))
        async with serving(app) as server:
            client = await server.client()
            await client.send(head(size) + BODY[:size] + NEXT)
            assert (await client.response())[2] == b"%d" % size
            assert (await client.response())[2] == b"next"
        assert app.sink.data == BODY[:size]
        if size <= 100_000:
            assert not app.sink.lent, "so little comes with the head, or is not worth it"
        elif size == len(BODY):
            assert app.sink.lent

    run(main())


def test_after_the_go_ahead_the_body_goes_straight_in() -> None:
    async def main() -> None:
        app = Storing(ScriptedSink())
        async with serving(app) as server:
            client = await server.client()
            await client.send(head(len(BODY))[:-2] + b"Expect: 100-continue\r\n\r\n")
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await client.send(BODY)
            assert (await client.response())[2] == b"%d" % len(BODY)
        assert app.sink.data == BODY

    run(main())


def test_a_full_sink_stops_the_reading_and_the_client_is_not_blamed_for_it() -> None:
    async def main() -> None:
        sink = ScriptedSink(limit=1_000_000)
        app = Storing(sink)
        async with serving(app) as server:
            client = await server.client()
            client.writer.write(head(len(BODY)) + BODY)
            await until(lambda: sink.waits == 1)
            assert server.connections[0].reading_paused
            assert sink.limit <= len(sink.data) < sink.limit + 100_000
            server.elapse(1000)
            sink.limit = 2_000_000
            sink.go_on.set()
            await until(lambda: sink.waits == 2)
            sink.limit = 1 << 40
            sink.go_on.set()
            assert (await client.response())[2] == b"%d" % len(BODY)
        assert sink.data == BODY

    run(main())


def test_a_sink_that_fails_ends_the_receiving_and_the_client_is_answered() -> None:
    async def main() -> None:
        sink = ScriptedSink(limit=1_000_000)
        app = Storing(sink)
        async with serving(app) as server:
            client = await server.client()
            client.writer.write(head(len(BODY)) + BODY)
            await until(lambda: sink.waits == 1)
            sink.failure = OSError("the disk is full")
            sink.go_on.set()
            status, headers, body = await client.response()
            assert (status, headers["connection"], body) == (503, "close", b"failed")
            received = len(sink.data)
            await client.rest()
            assert len(sink.data) == received, "what comes after the failure is nobody's"
        assert app.ended == ["the disk is full"]

    run(main())


@pytest.mark.parametrize("how", ["reset", "half_close"])
def test_a_client_that_leaves_in_the_middle_ends_the_wait(how: str) -> None:
    async def main() -> None:
        app = Storing(ScriptedSink())
        async with serving(app) as server:
            client = await server.client()
            await client.send(head(2 * len(BODY)) + BODY)
            await until(lambda: len(app.sink.data) == len(BODY))
            getattr(client, how)()
            await until(lambda: not server.front.connections)
            await until(lambda: bool(app.ended))
        assert app.ended == ["IncompleteBody"]

    run(main())


def test_a_client_that_stalls_is_refused_in_time_and_what_it_still_sends_is_nobodys() -> None:
    async def main() -> None:
        app = Storing(ScriptedSink())
        async with serving(app) as server:
            client = await server.client()
            await client.send(head(2 * len(BODY)) + BODY)
            await until(lambda: len(app.sink.data) == len(BODY))
            server.elapse(21)  # a time-out's window in which much has come
            await asyncio.sleep(0)
            assert not app.ended
            server.elapse(21)  # and one in which nothing has
            connection = server.connections[0]
            receiver = connection.transport.get_protocol()
            assert receiver is not connection, "the application has not run since"
            buffer = receiver.get_buffer(-1)  # type: ignore[attr-defined]
            buffer[:5] = b"tardy"
            receiver.buffer_updated(5)  # type: ignore[attr-defined]
            assert connection.discarded_bytes == 5
            status, _, body = await client.response()
            assert status == 400
            assert b"RequestTimeout" in body
            await until(lambda: bool(app.ended))
            assert connection.transport.get_protocol() is connection
            await client.send(b"x" * 1000)
            await until(lambda: connection.discarded_bytes == 1005)
        assert app.ended == ["IncompleteBody"]
        assert app.sink.data == BODY

    run(main())


def test_a_request_that_is_cancelled_ends_the_wait_and_the_connection() -> None:
    async def main() -> None:
        app = Storing(ScriptedSink())
        async with serving(app) as server:
            client = await server.client()
            await client.send(head(2 * len(BODY)) + BODY)
            await until(lambda: len(app.sink.data) == len(BODY))
            for task in server.front.tasks:
                task.cancel()
            await until(lambda: not server.front.tasks and not server.front.connections)
            assert await client.rest() == b""
        assert app.ended == []

    run(main())


def test_what_is_decrypted_comes_the_usual_way() -> None:
    async def main() -> None:
        app = Storing(ScriptedSink())
        app.encrypted = True
        async with serving(app) as server:
            client = await server.client()
            await client.send(head(len(BODY)) + BODY)
            assert (await client.response())[0] == 200
        assert (app.sink.data, app.sink.lent) == (BODY, 0)

    run(main())


def test_without_a_connection_behind_it_a_body_is_taken_message_by_message() -> None:
    async def main() -> None:
        messages = [{"type": "http.request", "body": BODY[at : at + 500_000], "more_body": True} for at in (0, 500_000)]
        messages.append({"type": "http.request", "body": b"", "more_body": False})

        async def receive() -> Any:
            return messages.pop(0)

        sink = ScriptedSink()
        await Payload(receive, {"content-length": "1000000"}, None).store(sink)
        assert (sink.data, sink.lent) == (BODY[:1_000_000], 0)

    run(main())
