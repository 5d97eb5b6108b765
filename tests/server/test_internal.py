"""The internal route of a real node: exact bytes for nodes of its cluster, nothing for anybody else, nothing twice."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.cache.serving import COMMAND, VARIABLE
from tests.e2e.conftest import client
from tests.nodes import RunningNode, engine_settings, running_node
from tests.server.wire import run, serving
from tigrislike.bytecache import DiskFailed, NotAtSource, SourceUnavailable
from tigrislike.bytecache.filesystem import FileSystem
from tigrislike.bytecache.layout import open_layout, parse_block_name
from tigrislike.bytecache.presence import Present
from tigrislike.config import Settings
from tigrislike.metadata.secrets import MasterKey
from tigrislike.node import Node
from tigrislike.replication.epochs import Epochs
from tigrislike.replication.peers import Peer, Peers
from tigrislike.replication.signing import ANSWER_HEADER, KEY_PURPOSE, PREFIX, REQUEST_HEADER, Signer, verify_answer
from tigrislike.s3api.app import create_app

BLOCK = 8 * 1024 * 1024
SIZE = 2 * BLOCK + 12_345
OTHER = bytes(16)


class Stored:
    """A node with one large object, and what another node of its cluster would know of it.

    Attributes:
        data: The object's bytes.
        blob_id: Of the blob that they are.
        key: The cluster's, for the internal route.
        peer: The node, in no epoch of its own.
    """

    def __init__(self, node: RunningNode) -> None:
        self.node = node
        self.data = Random(1).randbytes(SIZE)
        s3 = client(node)
        s3.create_bucket(Bucket="peers")
        before = self._blobs()
        s3.put_object(Bucket="peers", Key="large", Body=self.data)
        s3.close()
        (self.blob_id,) = self._blobs() - before
        master_key = engine_settings(node.data_dir).get("master_key_file", node.data_dir / "master.key")
        self.key = MasterKey.read_file(master_key).derive(KEY_PURPOSE)
        self.node_id = open_layout(FileSystem(), node.data_dir / "cache", BLOCK).node_id
        self.peer = Peer(self.node_id, node.region, node.endpoint, bytes(8))
        self.signer = Signer(self.key)
        with contextlib.closing(self.connect()) as connection:
            signature = self.signer.sign(self.node_id, bytes(8), "GET", f"{PREFIX}ping")
            status, headers, body = exchange(connection, "GET", f"{PREFIX}ping", {REQUEST_HEADER: str(signature)})
            assert status == 409
            self.epoch = verify_answer(self.key, signature, 409, "", body, headers[ANSWER_HEADER])

    @property
    def path(self) -> str:
        return f"{PREFIX}blobs/{self.blob_id.hex()}?size={SIZE}"

    def blocks(self) -> list[Path]:
        return [path for path in (self.node.data_dir / "cache").rglob(f"{self.blob_id.hex()}*") if path.is_file()]

    def connect(self) -> http.client.HTTPConnection:
        if self.node.ca_bundle:
            context = ssl.create_default_context(cafile=self.node.ca_bundle)
            return http.client.HTTPSConnection("127.0.0.1", self.node.port, timeout=30, context=context)
        return http.client.HTTPConnection("127.0.0.1", self.node.port, timeout=30)

    def ask(
        self, method: str, path: str, ranges: str = "", body: bytes = b"", *, header: str | None = None, host: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        """What the node answers to a request that is signed; `header` in the signature's place."""
        signature = self.signer.sign(self.node_id, self.epoch, method, path, ranges, body)
        headers = {REQUEST_HEADER: str(signature) if header is None else header, "range": ranges, "host": host}
        with contextlib.closing(self.connect()) as connection:
            return exchange(connection, method, path, {name: text for name, text in headers.items() if text}, body)

    def _blobs(self) -> set[bytes]:
        names = (path.name for path in (self.node.data_dir / "cache" / "home").rglob("*") if path.is_file())
        return {name[0] for name in map(parse_block_name, names) if name is not None}


def exchange(
    connection: http.client.HTTPConnection, method: str, path: str, headers: dict[str, str], body: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    connection.request(method, path, body or None, headers)
    response = connection.getresponse()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


@pytest.fixture(scope="module")
def plain(store: RunningNode) -> Stored:
    return Stored(store)


@pytest.fixture(scope="module")
def secure(tls_store: RunningNode) -> Stored:
    return Stored(tls_store)


@pytest.fixture(params=["plain", "secure"])
def stored(request: pytest.FixtureRequest) -> Stored:
    found: Stored = request.getfixturevalue(request.param)
    return found


@contextlib.asynccontextmanager
async def peers_of(stored: Stored, **options: Any) -> AsyncIterator[Peers]:
    made = Peers(options.pop("key", stored.key), OTHER, **{"ca": stored.node.ca_bundle, **options})
    try:
        yield made
    finally:
        await made.aclose()


async def fetched(peers: Peers, stored: Stored, start: int, stop: int, size: int = SIZE, **options: Any) -> bytes:
    pieces = peers.read(options.pop("peer", stored.peer), stored.blob_id, size, start, stop, **options)
    return b"".join([bytes(piece) async for piece in pieces])


# -- The client ------------------------------------------------------------------------------------------------------


def test_ranges_come_byte_for_byte(stored: Stored) -> None:
    async def main() -> None:
        async with peers_of(stored) as peers:
            ranges = [(0, SIZE), (0, 1), (SIZE - 1, SIZE), (BLOCK - 3, BLOCK + 3), (BLOCK, 2 * BLOCK), (17, 300_000)]
            for gather in (False, True):
                for start, stop in ranges:
                    assert await fetched(peers, stored, start, stop, gather=gather) == stored.data[start:stop]
            many = await asyncio.gather(*(fetched(peers, stored, at, at + 70_000) for at in range(0, BLOCK, 100_000)))
            assert many == [stored.data[at : at + 70_000] for at in range(0, BLOCK, 100_000)]

    run(main())


def test_what_of_a_content_is_on_a_disk_is_told(stored: Stored) -> None:
    async def main() -> None:
        async with peers_of(stored) as peers:
            assert await peers.presence(stored.peer, stored.blob_id) == Present(3, 3, 0, SIZE)
            assert await peers.presence(stored.peer, b"nothing of it ..") is None

    run(main())


def test_a_ping_tells_who_answers_and_how_soon(stored: Stored) -> None:
    async def main() -> None:
        async with peers_of(stored) as peers:
            seconds, facts = await peers.ping(stored.peer)
            assert 0 < seconds < 60
            assert (facts.node, facts.region) == (stored.node_id.hex(), stored.node.region)
            assert bytes.fromhex(facts.epoch) == peers._epochs[stored.node_id]

    run(main())


def test_a_reader_that_stops_early_breaks_nothing(stored: Stored) -> None:
    async def main() -> None:
        async with peers_of(stored, connections=1) as peers:
            for _ in range(3):
                pieces = peers.read(stored.peer, stored.blob_id, SIZE, 0, SIZE)
                assert bytes(await anext(pieces))
                await pieces.aclose()  # type: ignore[attr-defined]
            assert await fetched(peers, stored, 5, 10) == stored.data[5:10]

    run(main())


def test_a_blob_that_is_nowhere_is_not_at_the_source(stored: Stored) -> None:
    async def main() -> None:
        async with peers_of(stored) as peers:
            for gather in (False, True):
                with pytest.raises(NotAtSource):
                    await anext(peers.read(stored.peer, os.urandom(16), SIZE, 0, 1, gather=gather))

    run(main())


def test_who_has_another_key_or_asks_another_node_gets_nothing(plain: Stored) -> None:
    async def main() -> None:
        async with peers_of(plain, key=bytes(32)) as stranger:
            with pytest.raises(SourceUnavailable, match="403"):
                await fetched(stranger, plain, 0, 1)
        elsewhere = Peer(OTHER, "", plain.node.endpoint, plain.epoch)
        async with peers_of(plain) as peers:
            with pytest.raises(SourceUnavailable, match=r"403.*is for node"):
                await peers.ping(elsewhere)
            with pytest.raises(SourceUnavailable, match=r"503.*cannot be reached"):
                await peers.post_copy(plain.peer, plain.blob_id, SIZE)

    run(main())


def test_a_certificate_of_another_authority_is_refused(secure: Stored) -> None:
    async def main() -> None:
        async with peers_of(secure, ca=None) as peers:
            with pytest.raises(SourceUnavailable, match=r"(?i)certificate"):
                await fetched(peers, secure, 0, 1)

    run(main())


def test_connections_come_from_the_address_that_was_set(plain: Stored) -> None:
    async def main() -> None:
        async with peers_of(plain, source_address="127.0.0.9") as peers:
            assert await fetched(peers, plain, 0, 9) == plain.data[:9]
            (connection,) = next(iter(peers._session.connector._conns.values()))  # type: ignore[union-attr]
            assert connection[0].transport is not None
            assert connection[0].transport.get_extra_info("sockname")[0] == "127.0.0.9"

    run(main())


# -- Raw requests ----------------------------------------------------------------------------------------------------


def test_a_request_is_answered_once_whichever_worker_it_reaches(stored: Stored) -> None:
    path = f"{PREFIX}ping"
    for _ in range(10):
        signature = stored.signer.sign(stored.node_id, stored.epoch, "GET", path)
        with contextlib.ExitStack() as stack:
            # Connections are levelled over the workers, so these four are not all of one.
            connections = [stack.enter_context(contextlib.closing(stored.connect())) for _ in range(4)]
            for connection in connections:
                connection.connect()
            headers = {REQUEST_HEADER: str(signature)}
            answers = [exchange(connection, "GET", path, headers) for connection in connections]
        assert [status for status, _, _ in answers] == [200, 409, 409, 409]
        assert all(b"was seen" in body for _, _, body in answers[1:])


@pytest.mark.parametrize("part", ["method", "path", "range", "body", "header"])
def test_a_request_that_was_changed_on_the_way_is_refused(plain: Stored, part: str) -> None:
    signature = plain.signer.sign(plain.node_id, plain.epoch, "GET", plain.path, "bytes=0-9")
    method, path, ranges, body, header = "GET", plain.path, "bytes=0-9", b"", str(signature)
    if part == "method":
        method, path = "POST", plain.path.replace("blobs", "copies")
    elif part == "path":
        path += "&gather=1"
    elif part == "range":
        ranges = "bytes=0-8"
    elif part == "body":
        body = b"x"
    else:
        header = header.replace(f".{signature.counter}.", f".{signature.counter + 1}.")
    with contextlib.closing(plain.connect()) as connection:
        headers = {REQUEST_HEADER: header, "range": ranges}
        status, answer, document = exchange(connection, method, path, headers, body)
        assert status == 403
        assert "signature" in json.loads(document)["error"]
        if part != "header":
            # What was refused was not noted: the request as it was signed is still answered.
            original = exchange(connection, "GET", plain.path, {REQUEST_HEADER: header, "range": "bytes=0-9"})
            assert (original[0], original[2]) == (206, plain.data[:10])
    assert ANSWER_HEADER not in answer or part != "header"


@pytest.mark.parametrize(
    ("ranges", "status"),
    [
        ("", 400),
        ("bytes=0-", 400),
        ("bytes=-5", 400),
        ("bytes=-5-9", 400),
        ("bytes=0-9,20-29", 400),
        ("bytes=0-9, 5-14", 400),
        ("bytes=0x1-0x9", 400),
        ("bytes=1_0-1_1", 400),
        ("bits=0-9", 400),
        ("bytes=" + "9" * 5000 + "-" + "9" * 5000, 400),
        ("bytes=9-5", 416),
        (f"bytes=0-{SIZE}", 416),
        (f"bytes={SIZE}-{SIZE}", 416),
        ("bytes=0-999999999999999999", 416),
    ],
)
def test_a_range_that_is_none_is_refused(plain: Stored, ranges: str, status: int) -> None:
    answered, headers, body = plain.ask("GET", plain.path, ranges)
    assert (answered, headers["content-type"]) == (status, "application/json")
    assert json.loads(body)["error"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{PREFIX}blobs/{'xy' * 16}?size=1"),
        ("GET", f"{PREFIX}blobs/{'AB' * 16}?size=1"),
        ("GET", f"{PREFIX}blobs/{'ab' * 15}?size=1"),
        ("GET", f"{PREFIX}blobs/{'ab' * 16}"),
        ("GET", f"{PREFIX}blobs/{'ab' * 16}?size=-1"),
        ("GET", f"{PREFIX}blobs/{'ab' * 16}?size={'9' * 5000}"),
        ("GET", f"{PREFIX}blobs/{'ab' * 16}?size=%FF"),
        ("GET", f"{PREFIX}blobs/%2e%2e/{'ab' * 16}?size=1"),
        ("GET", f"{PREFIX}"),
        ("GET", f"{PREFIX}else"),
        ("PUT", f"{PREFIX}ping"),
        ("POST", f"{PREFIX}copies/{'ab' * 16}?size=1"),
        ("POST", f"{PREFIX}copies/{'ab' * 16}?size=1&from=zz"),
        ("POST", f"{PREFIX}copies/{'ab' * 16}?from={'ab' * 16}"),
    ],
)
def test_a_request_that_means_nothing_is_refused(plain: Stored, method: str, path: str) -> None:
    status, _, body = plain.ask(method, path, "bytes=0-0")
    assert status == 400
    assert b"<Error>" not in body


@pytest.mark.parametrize("header", ["", "1", "AWS4-HMAC-SHA256 Credential=x", "1." + ".".join(["0" * 64] * 5)])
def test_a_request_without_a_signature_is_refused(plain: Stored, header: str) -> None:
    status, headers, _ = plain.ask("GET", plain.path, "bytes=0-0", header=header)
    assert status == 403
    assert ANSWER_HEADER not in headers, "nothing is signed for strangers"


def test_a_body_that_is_too_large_is_refused_before_it_is_held(plain: Stored) -> None:
    status, _, _ = plain.ask("POST", f"{PREFIX}copies/{'ab' * 16}?size=1&from={'ab' * 16}", body=bytes(70_000))
    assert status == 400  # EntityTooLarge


def test_a_repeated_range_is_not_the_signed_one(plain: Stored) -> None:
    signature = plain.signer.sign(plain.node_id, plain.epoch, "GET", plain.path, "bytes=0-9")
    with contextlib.closing(plain.connect()) as connection:
        connection.putrequest("GET", plain.path)
        for name, value in ((REQUEST_HEADER, str(signature)), ("range", "bytes=0-9"), ("range", "bytes=0-99")):
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().status == 403


def test_peers_are_counted_apart(plain: Stored) -> None:
    plain.ask("GET", plain.path, "bytes=0-9")
    plain.ask("GET", f"{PREFIX}ping")
    with contextlib.closing(plain.connect()) as connection:
        page = exchange(connection, "GET", "/_tigrislike/metrics", {})[2].decode()
    assert 'tigrislike_requests_total{operation="PeerRead",status="206"}' in page
    assert 'tigrislike_requests_total{operation="PeerPing",status="200"}' in page
    assert '"operation":"PeerRead"' in plain.node.log.read_text()


# -- A node of its own -----------------------------------------------------------------------------------------------


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Stored]:
    flags = ("--workers=1", "--max-peer-requests=1", "--domain=s3.test", "--disk-reserve=0")
    with running_node(tmp_path / "data", *flags) as node:
        yield Stored(node)


def test_peers_have_a_bound_of_their_own(lone: Stored) -> None:
    with contextlib.closing(lone.connect()) as slow:
        signature = lone.signer.sign(lone.node_id, lone.epoch, "GET", lone.path, f"bytes=0-{SIZE - 1}")
        slow.request("GET", lone.path, headers={REQUEST_HEADER: str(signature), "range": f"bytes=0-{SIZE - 1}"})
        response = slow.getresponse()
        assert response.status == 206
        # More is still to come than fits the socket's buffers: the request is in flight.
        status, headers, _ = lone.ask("GET", f"{PREFIX}ping")
        assert (status, headers["retry-after"]) == (503, "1")
        s3 = client(lone.node)
        assert s3.get_object(Bucket="peers", Key="large")["Body"].read() == lone.data
        s3.close()
        assert response.read() == lone.data
    end = [status for _ in range(100) if (status := lone.ask("GET", f"{PREFIX}ping")[0]) == 200]
    assert end


def test_under_a_buckets_host_the_route_is_a_key(lone: Stored) -> None:
    status, headers, body = lone.ask("GET", f"{PREFIX}ping", host="peers.s3.test")
    assert status in (403, 404)
    assert b"<Error>" in body
    assert ANSWER_HEADER not in headers


def test_a_block_that_is_gone_is_missing_at_first_and_cuts_the_connection_later(lone: Stored) -> None:
    second, first = sorted(lone.blocks(), key=lambda path: path.name)[1::-1]
    second.unlink()

    async def main() -> None:
        async with peers_of(lone) as peers:
            assert await fetched(peers, lone, 0, BLOCK) == lone.data[:BLOCK]
            with pytest.raises(NotAtSource):
                await fetched(peers, lone, BLOCK, BLOCK + 1)
            with pytest.raises(SourceUnavailable):
                await fetched(peers, lone, BLOCK - 1000, BLOCK + 1000)
            with first.open("r+b") as file:
                file.write(b"damaged!")
            with pytest.raises(SourceUnavailable, match="500"):
                await fetched(peers, lone, 0, 10)
            assert await fetched(peers, lone, 2 * BLOCK, SIZE) == lone.data[2 * BLOCK :]

    run(main())


def test_a_node_fetches_for_another_only_if_it_is_told_to(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {VARIABLE: str(elsewhere)}
    flags = ("--disk-reserve=0",)
    with running_node(tmp_path / "data", *flags, command=COMMAND, environment=environment) as node:
        stored = Stored(node)
        for path in stored.blocks():
            path.rename(elsewhere / path.name)

        async def main() -> None:
            async with peers_of(stored) as peers:
                with pytest.raises(NotAtSource):
                    await fetched(peers, stored, 0, 10)
                assert await fetched(peers, stored, 0, 10, gather=True) == stored.data[:10]
                (elsewhere / "away").touch()
                with pytest.raises(SourceUnavailable, match="503"):
                    await fetched(peers, stored, 2 * BLOCK, SIZE, gather=True)

        run(main())


class Homely:
    """Stands for the part of a process that becomes a home of contents."""

    def __init__(self, failure: list[Exception]) -> None:
        self.gained: list[bytes] = []
        self._failure = failure

    async def become_home(self, content_id: bytes) -> None:
        self.gained.append(content_id)
        if self._failure:
            raise self._failure[0]

    async def presence(self, content_id: bytes) -> None:
        raise self._failure[0]


def test_a_copy_is_received_by_who_was_given_for_it_and_its_failures_are_told(tmp_path: Path) -> None:
    received: list[tuple[bytes, int, bytes]] = []
    failure: list[Exception] = []
    homely: Any = Homely(failure)

    async def receive_copy(blob_id: bytes, size: int, source: bytes) -> None:
        received.append((blob_id, size, source))
        if failure:
            raise failure[0]

    async def main() -> None:
        data_dir = tmp_path / "data"
        settings = Settings(data_dir=data_dir, **engine_settings(data_dir))
        async with contextlib.AsyncExitStack() as stack:
            node = await stack.enter_async_context(Node.opened(settings))
            parts: Any = {"metadata": node.metadata, "blocks": node.blocks, "settings": settings}
            app = create_app(**parts, epochs=Epochs(senders=1), receive_copy=receive_copy, regional=homely)
            key = node.metadata.derive_key(KEY_PURPOSE)
            running = await stack.enter_async_context(serving(app))
            peer = Peer(node.blocks.node_id, "", f"http://127.0.0.1:{running.port}", bytes(8))
            peers, others = Peers.of(settings, key, OTHER), Peers.of(settings, key, OTHER)
            stack.push_async_callback(peers.aclose)
            stack.push_async_callback(others.aclose)
            await peers.post_copy(peer, b"b" * 16, 5)
            assert received == [(b"b" * 16, 5, OTHER)]
            await peers.post_home(peer, b"c" * 16, 5)
            assert homely.gained == [b"c" * 16]
            for error, told, match in (
                (NotAtSource("nobody"), NotAtSource, "404"),
                (SourceUnavailable("later"), SourceUnavailable, "503"),
                (DiskFailed("broken"), SourceUnavailable, "500"),
                (ValueError("a defect"), SourceUnavailable, "500"),
            ):
                failure[:] = [error]
                for ask in (peers.post_copy, peers.post_home):
                    with pytest.raises(told, match=match):
                        await ask(peer, b"b" * 16, 5)
                with pytest.raises(told, match=match):
                    await peers.presence(peer, b"c" * 16)
            with pytest.raises(SourceUnavailable, match=r"503.*room for no more"):
                await others.ping(peer)

    run(main())


def test_an_agent_begins_an_epoch_and_the_one_before_is_still_accepted_once(lone: Stored) -> None:
    path = f"{PREFIX}ping"

    async def main() -> None:
        async with peers_of(lone) as peers:
            before = (await peers.ping(lone.peer))[1].epoch
            signature = lone.signer.sign(lone.node_id, bytes.fromhex(before), "GET", path)
            os.kill(next(iter(lone.node.children())), signal.SIGKILL)  # another takes its place
            while (await peers.ping(lone.peer))[1].epoch == before:
                pass
            for status in (200, 409):
                with contextlib.closing(lone.connect()) as connection:
                    assert exchange(connection, "GET", path, {REQUEST_HEADER: str(signature)})[0] == status

    run(main())


def test_a_node_that_starts_anew_accepts_nothing_from_before(lone: Stored) -> None:
    path = f"{PREFIX}ping"
    before = lone.signer.sign(lone.node_id, lone.epoch, "GET", path)

    async def main() -> None:
        async with peers_of(lone) as peers:
            await peers.ping(lone.peer)
            assert lone.node.stop() == 0
            with pytest.raises(SourceUnavailable):
                await peers.ping(lone.peer)
            with running_node(lone.node.data_dir, f"--port={lone.node.port}") as again:
                assert again.endpoint == lone.node.endpoint
                _, facts = await peers.ping(lone.peer)
                assert facts.epoch != lone.epoch.hex()
                with contextlib.closing(lone.connect()) as connection:
                    assert exchange(connection, "GET", path, {REQUEST_HEADER: str(before)})[0] == 409

    run(main())
