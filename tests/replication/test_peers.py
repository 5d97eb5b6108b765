"""The client of the internal route against a server that does what nodes do not: every way of answering wrongly."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256
from typing import Any

import pytest

from tests.server.wire import run
from tigrislike.bytecache import NotAtSource, SourceUnavailable
from tigrislike.replication.peers import Peer, Peers
from tigrislike.replication.signing import ANSWER_HEADER, REQUEST_HEADER, Signature, sign_answer

KEY, NODE, OURS = bytes(range(32)), b"n" * 16, b"o" * 16
FIRST, SECOND = b"epoch..1", b"epoch..2"
BLOB = b"b" * 16
DATA = bytes(range(100))


class Asked:
    """One request as the server got it."""

    def __init__(self, head: bytes) -> None:
        line, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        self.method, self.path, _ = line.split(" ")
        self.headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in lines)}
        self.signature = Signature.parse(self.headers[REQUEST_HEADER])

    def answer(
        self,
        status: int,
        body: bytes,
        content_range: str = "",
        *,
        epoch: bytes = FIRST,
        length: int | None = None,
        signed: bool = True,
        headers: dict[str, str] | None = None,
    ) -> bytes:
        """A response; what is not said otherwise is as a node says it."""
        document = b"" if status == 206 else body
        fields = {"content-length": str(len(body) if length is None else length)} | (headers or {})
        if content_range:
            fields["content-range"] = content_range
        if signed:
            fields[ANSWER_HEADER] = sign_answer(KEY, self.signature, status, epoch, content_range, document)
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
        return f"HTTP/1.1 {status} x\r\n{lines}\r\n".encode() + body


Answer = Callable[[Asked, asyncio.StreamWriter], Awaitable[None] | None]


class Server:
    """Answers each request by what `answer` does; closes the connection where that is to be cut."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.peer = Peer(NODE, "there", "", FIRST)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                asked = Asked(await reader.readuntil(b"\r\n\r\n"))
                asked.signature.verify(
                    KEY,
                    NODE,
                    asked.method,
                    asked.path.encode(),
                    asked.headers.get("range", ""),
                    sha256(b"").digest(),
                )
                self.asked.append(asked)
                done = self.answer(asked, writer)
                if done is not None:
                    await done
                if writer.is_closing():
                    break
        writer.close()


@contextlib.asynccontextmanager
async def server(answer: Answer, **options: Any) -> AsyncIterator[tuple[Server, Peers]]:
    scripted = Server(answer)
    listening = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    scripted.peer = Peer(NODE, "there", f"http://127.0.0.1:{port}", FIRST)
    peers = Peers(KEY, OURS, **options)
    try:
        yield scripted, peers
    finally:
        await peers.aclose()
        listening.close()


async def read(peers: Peers, peer: Peer) -> bytes:
    return b"".join([bytes(piece) async for piece in peers.read(peer, BLOB, 100, 10, 20)])


RANGE = "bytes 10-19/100"
GOOD = DATA[10:20]


def say(status: int, body: bytes, content_range: str = "", **options: Any) -> Answer:
    def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(asked.answer(status, body, content_range, **options))

    return answer


def cut(status: int, body: bytes, content_range: str = "", **options: Any) -> Answer:
    def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(asked.answer(status, body, content_range, **options))
        writer.close()

    return answer


def reset(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


def chunked(asked: Asked, writer: asyncio.StreamWriter) -> None:
    head = asked.answer(206, b"", RANGE, headers={"content-length": "", "transfer-encoding": "chunked"})
    writer.write(head + b"a\r\n" + GOOD + b"\r\n0\r\n\r\n")


def garbage(asked: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SMTP ready\r\n\r\n")
    writer.close()


def test_what_a_node_answers_is_given_out_and_connections_are_used_again() -> None:
    async def main() -> None:
        async with server(say(206, GOOD, RANGE)) as (scripted, peers):
            for _ in range(3):
                assert await read(peers, scripted.peer) == GOOD
            assert [asked.signature.counter for asked in scripted.asked] == [1, 2, 3]
            assert {asked.headers["accept-encoding"] for asked in scripted.asked} == {"identity"}
            connections = peers._session.connector._conns.values()  # type: ignore[union-attr]
            assert sum(map(len, connections)) == 1

    run(main())


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(say(206, GOOD, RANGE, signed=False), id="unsigned"),
        pytest.param(say(404, b"{}", signed=False), id="unsigned 404"),
        pytest.param(say(409, b"{}", signed=False, epoch=SECOND), id="unsigned 409"),
        pytest.param(say(206, GOOD, "bytes 11-20/100"), id="another range"),
        pytest.param(say(206, GOOD, "bytes 10-19/101"), id="another size"),
        pytest.param(say(206, GOOD), id="no range"),
        pytest.param(say(200, GOOD), id="all of it"),
        pytest.param(say(206, GOOD[:9], RANGE), id="too short"),
        pytest.param(say(206, GOOD + b"x", RANGE), id="too long"),
        pytest.param(cut(206, GOOD[:9], RANGE, length=10), id="cut short"),
        pytest.param(cut(206, b"", RANGE, length=10), id="cut at once"),
        pytest.param(cut(404, b"{", length=10), id="document cut"),
        pytest.param(say(404, bytes(70_000)), id="document too large"),
        pytest.param(say(500, b"{}"), id="failed"),
        pytest.param(say(503, b"{}"), id="overloaded"),
        pytest.param(say(302, b"{}", headers={"location": "/elsewhere"}), id="redirect"),
        pytest.param(say(409, b"{}"), id="always another epoch"),
        pytest.param(chunked, id="chunked"),
        pytest.param(reset, id="reset"),
        pytest.param(garbage, id="not http"),
    ],
)
def test_any_other_answer_is_no_answer(answer: Answer) -> None:
    async def main() -> None:
        async with server(answer) as (scripted, peers):
            with pytest.raises(SourceUnavailable, match="of there at http"):
                await read(peers, scripted.peer)
            assert 1 <= len(scripted.asked) <= 2
            # The next is not confused by what was left of this one.
            scripted.answer = say(206, GOOD, RANGE)
            assert await read(peers, scripted.peer) == GOOD

    run(main())


def test_only_a_signed_answer_says_that_it_is_not_there() -> None:
    async def main() -> None:
        async with server(say(404, b'{"error":"no"}')) as (scripted, peers):
            with pytest.raises(NotAtSource, match="no"):
                await read(peers, scripted.peer)
            with pytest.raises(NotAtSource):
                await peers.post_copy(scripted.peer, BLOB, 100)
            assert scripted.asked[-1].path.endswith(f"copies/{BLOB.hex()}?size=100&from={OURS.hex()}")

    run(main())


def test_another_epoch_costs_one_request_and_is_remembered() -> None:
    def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        good = asked.signature.epoch == SECOND
        said = asked.answer(206, GOOD, RANGE, epoch=SECOND) if good else asked.answer(409, b"{}", epoch=SECOND)
        writer.write(said)

    async def main() -> None:
        async with server(answer) as (scripted, peers):
            for _ in range(2):
                assert await read(peers, scripted.peer) == GOOD
            assert [asked.signature.epoch for asked in scripted.asked] == [FIRST, SECOND, SECOND]

    run(main())


def test_an_epoch_that_comes_with_an_answer_is_the_next_requests() -> None:
    async def main() -> None:
        async with server(say(206, GOOD, RANGE, epoch=SECOND)) as (scripted, peers):
            for _ in range(2):
                assert await read(peers, scripted.peer) == GOOD
            assert [asked.signature.epoch for asked in scripted.asked] == [FIRST, SECOND]

    run(main())


def silent(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Says nothing."""


def test_silence_ends_at_the_time_out() -> None:
    async def main() -> None:
        for answer in (silent, say(206, GOOD[:5], RANGE, length=10)):
            async with server(answer, timeout_s=0.05) as (scripted, peers):
                with pytest.raises(SourceUnavailable):
                    await read(peers, scripted.peer)
        async with server(silent) as (scripted, peers):
            with pytest.raises(SourceUnavailable):
                await peers.ping(scripted.peer, timeout_s=0.05)

    run(main())


def test_who_moves_many_bytes_before_it_answers_may_be_silent_for_longer() -> None:
    async def main() -> None:
        asked_for_much, many = asyncio.Event(), 100 << 20
        waiting: list[tuple[Asked, asyncio.StreamWriter]] = []

        def answer_later(asked: Asked, writer: asyncio.StreamWriter) -> None:
            if f"size={many}" in asked.path:
                waiting.append((asked, writer))
                asked_for_much.set()

        async with server(answer_later, timeout_s=0.05) as (scripted, peers):
            patient = asyncio.create_task(peers.post_copy(scripted.peer, BLOB, many))
            await asked_for_much.wait()
            with pytest.raises(SourceUnavailable):
                await peers.post_copy(scripted.peer, BLOB, 1)
            assert not patient.done()
            ((asked, writer),) = waiting
            writer.write(asked.answer(200, b"{}"))
            await patient

    run(main())


def test_who_finds_all_connections_taken_does_not_wait_for_ever() -> None:
    async def main() -> None:
        first = asyncio.Event()

        def hang(asked: Asked, writer: asyncio.StreamWriter) -> None:
            first.set()

        async with server(hang, connections=1, timeout_s=0.2) as (scripted, peers):
            holding = asyncio.create_task(read(peers, scripted.peer))
            await first.wait()
            with pytest.raises(SourceUnavailable):
                await read(peers, scripted.peer)
            with pytest.raises(SourceUnavailable):
                await holding
            assert len(scripted.asked) <= 2

    run(main())


def test_nobody_there_is_no_answer() -> None:
    async def main() -> None:
        async with server(silent) as (scripted, peers):
            pass
        peers = Peers(KEY, OURS, connect_timeout_s=0.05)
        try:
            with pytest.raises(SourceUnavailable):
                await read(peers, scripted.peer)
            # Whose backlog is full, or whose packets are dropped: no connection comes about.
            full = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, backlog=0, start_serving=False)
            address = full.sockets[0].getsockname()
            unreachable = Peer(NODE, "there", f"http://{address[0]}:{address[1]}", FIRST)
            with pytest.raises(SourceUnavailable):
                await read(peers, unreachable)
            full.close()
            for endpoint in ("http://", "nonsense", "http://127.0.0.1:70000"):
                with pytest.raises(SourceUnavailable):
                    await read(peers, Peer(NODE, "there", endpoint, FIRST))
        finally:
            await peers.aclose()

    run(main())


def test_what_a_peer_says_of_itself_has_to_be_understood() -> None:
    async def main() -> None:
        async with server(say(200, b'{"node":1}')) as (scripted, peers):
            for ask in (peers.ping(scripted.peer), peers.presence(scripted.peer, BLOB)):
                with pytest.raises(SourceUnavailable, match="not understood"):
                    await ask
            scripted.answer = say(206, b"", "bytes 0-0/1")
            with pytest.raises(SourceUnavailable, match="206"):
                await peers.post_copy(scripted.peer, os.urandom(16), 1)
            scripted.answer = say(200, b"{}")
            await peers.post_copy(scripted.peer, os.urandom(16), 1)

    run(main())
