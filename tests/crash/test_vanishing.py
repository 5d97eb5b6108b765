"""A client that vanishes, or sends something else than it promised, leaves nothing: no object, no file, no row."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import random
import socket
import time
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests.bytecache.faults import NoSync
from tests.crash.audit import audit
from tests.crash.inprocess import BLOCK, INLINE, Vanished, opened, text_of
from tests.e2e.wire import (
    STREAMING_SIGNED,
    STREAMING_UNSIGNED_TRAILER,
    UNSIGNED,
    Caller,
    connect,
    head_of,
    read_answer,
    refused,
)
from tests.nodes import RunningNode

SIZE = 6 * 1024 * 1024
BOUNDARY = "the-boundary"
SETTLE_TIMEOUT_S = 60.0


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what the node brings about; it has no way to tell."""
    end = time.monotonic() + SETTLE_TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, f"still not: {what}"
        time.sleep(0.005)


class Bench:
    """One bucket of a running node, and what lies on its disk."""

    def __init__(self, store: RunningNode) -> None:
        self.store = store
        self.caller = Caller(store)
        self.bucket = f"vanishing-{uuid.uuid4().hex[:12]}"
        assert self.caller.send("PUT", f"/{self.bucket}").status == 200
        self.upload = text_of(self.caller.send("POST", f"/{self.bucket}/parts?uploads"), "UploadId")
        self.cache = store.data_dir / "cache"
        self.before = self.files()

    def files(self) -> set[Path]:
        return set((self.cache / "home").glob("*/*"))

    def incoming(self) -> list[Path]:
        return list((self.cache / "incoming").iterdir())

    def nothing_is_left(self) -> None:
        until(lambda: not self.incoming(), "the upload's directory is gone")
        assert self.files() <= self.before  # what other tests have deleted may be reclaimed meanwhile
        answer = self.caller.send("GET", f"/{self.bucket}?list-type=2")
        assert b"<Key>" not in answer.body
        parts = self.caller.send("GET", f"/{self.bucket}/parts?uploadId={self.upload}")
        assert parts.status == 200
        assert b"<Part>" not in parts.body

    def request(self, kind: str, data: bytes) -> tuple[bytes, bytes]:
        """Head and body of an upload of `data`."""
        key = f"/{self.bucket}/k"
        match kind:
            case "put" | "part":
                target = key if kind == "put" else f"/{self.bucket}/parts?partNumber=1&uploadId={self.upload}"
                digest = hashlib.sha256(data).hexdigest()
                signed = self.caller.sign("PUT", target, {"content-length": str(len(data))}, payload=digest)
                return head_of("PUT", target, signed), data
            case "signed chunks":
                pieces = [data[at : at + 65536] for at in range(0, len(data), 65536)]
                frames = [b"%x;chunk-signature=" % len(piece) for piece in (*pieces, b"")]
                length = sum(len(frame) + 64 + 4 for frame in frames) + len(data)
                headers = {
                    "content-encoding": "aws-chunked",
                    "x-amz-decoded-content-length": str(len(data)),
                    "content-length": str(length),
                }
                signed = self.caller.sign("PUT", key, headers, payload=STREAMING_SIGNED)
                return head_of("PUT", key, signed), b"".join(self.caller.chunks(signed, pieces))
            case "trailer":
                headers = {
                    "content-encoding": "aws-chunked",
                    "x-amz-decoded-content-length": str(len(data)),
                    "x-amz-trailer": "x-amz-checksum-crc32",
                }
                checksum = base64.b64encode(zlib.crc32(data).to_bytes(4, "big"))
                body = b"%x\r\n%b\r\n0\r\nx-amz-checksum-crc32:%b\r\n\r\n" % (len(data), data, checksum)
                headers["content-length"] = str(len(body))
                signed = self.caller.sign("PUT", key, headers, payload=STREAMING_UNSIGNED_TRAILER)
                return head_of("PUT", key, signed), body
            case "form":
                signer = boto3.client(
                    "s3",
                    endpoint_url=self.store.endpoint,
                    aws_access_key_id=self.store.access_key_id,
                    aws_secret_access_key=self.store.secret_access_key,
                    region_name="auto",
                    config=Config(signature_version="s3v4"),
                )
                fields = signer.generate_presigned_post(self.bucket, "k")["fields"]
                body = bytearray()
                for name, value in fields.items():
                    body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
                body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'.encode()
                body += data + f"\r\n--{BOUNDARY}--\r\n".encode()
                headers = {
                    "host": self.caller.host,
                    "content-type": f"multipart/form-data; boundary={BOUNDARY}",
                    "content-length": str(len(body)),
                }
                return head_of("POST", f"/{self.bucket}", headers), bytes(body)
        raise AssertionError(kind)


@pytest.fixture
def bench(either_store: RunningNode) -> Bench:
    return Bench(either_store)


def _vanish(connection: socket.socket, how: str) -> None:
    """End a connection as a crash does (a reset), or as a closed program does (an end of file)."""
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


@pytest.mark.parametrize("how", ["reset", "end of file"])
@pytest.mark.parametrize("kind", ["put", "part", "signed chunks", "trailer", "form"])
def test_a_client_that_vanishes_in_the_middle_leaves_nothing(bench: Bench, kind: str, how: str) -> None:
    head, body = bench.request(kind, os.urandom(SIZE))
    connection = connect(bench.store)
    connection.sendall(head + body[: SIZE - 100_000])
    until(lambda: bool(bench.incoming()), "the upload has begun to reach the disk")
    _vanish(connection, how)
    bench.nothing_is_left()


def test_a_client_that_vanishes_before_the_last_byte_or_within_the_head_leaves_nothing(bench: Bench) -> None:
    head, body = bench.request("put", os.urandom(SIZE))
    for sent in (head + body[:-1], head, head[:-2], head[: len(head) // 2]):
        connection = connect(bench.store)
        connection.sendall(sent)
        _vanish(connection, "reset")
    bench.nothing_is_left()


def test_many_clients_that_vanish_at_once_leave_nothing(bench: Bench) -> None:
    rng = random.Random(5)
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(20):
            head, body = bench.request(rng.choice(("put", "signed chunks", "trailer")), os.urandom(SIZE // 4))
            connection = stack.enter_context(contextlib.closing(connect(bench.store)))
            connection.sendall(head + body[: rng.randrange(len(body))])
            connections.append(connection)
        for connection in connections:
            _vanish(connection, rng.choice(("reset", "end of file")))
    bench.nothing_is_left()


# -- Other than promised ---------------------------------------------------------------------------------------------


def _shorter(bench: Bench, kind: str) -> tuple[bytes, bytes]:
    """A chunked body that ends early, well-formed but for its length."""
    data = os.urandom(SIZE)
    headers = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(SIZE + 1)}
    return _chunked(bench, headers, data, zlib.crc32(data))


def _longer(bench: Bench, kind: str) -> tuple[bytes, bytes]:
    data = os.urandom(SIZE)
    headers = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(SIZE - 1)}
    return _chunked(bench, headers, data, zlib.crc32(data))


def _wrong_trailer(bench: Bench, kind: str) -> tuple[bytes, bytes]:
    data = os.urandom(SIZE)
    headers = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(SIZE)}
    return _chunked(bench, headers, data, zlib.crc32(data) ^ 1)


def _chunked(bench: Bench, headers: dict[str, str], data: bytes, crc: int) -> tuple[bytes, bytes]:
    checksum = base64.b64encode(crc.to_bytes(4, "big"))
    # Small chunks, so that what is wrong shows near the end: who is refused early may lose the answer in a reset.
    pieces = [data[at : at + 65536] for at in range(0, len(data), 65536)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    body += b"0\r\nx-amz-checksum-crc32:%b\r\n\r\n" % checksum
    headers = {**headers, "x-amz-trailer": "x-amz-checksum-crc32", "content-length": str(len(body))}
    target = f"/{bench.bucket}/k"
    return head_of("PUT", target, bench.caller.sign("PUT", target, headers, payload=STREAMING_UNSIGNED_TRAILER)), body


def _plain(bench: Bench, kind: str, headers: dict[str, str], payload: str) -> tuple[bytes, bytes]:
    data = os.urandom(SIZE)
    target = f"/{bench.bucket}/k" if kind == "put" else f"/{bench.bucket}/parts?partNumber=1&uploadId={bench.upload}"
    headers = {"content-length": str(len(data)), **headers}
    return head_of("PUT", target, bench.caller.sign("PUT", target, headers, payload=payload)), data


def _wrong_md5(bench: Bench, kind: str) -> tuple[bytes, bytes]:
    return _plain(bench, kind, {"content-md5": base64.b64encode(bytes(16)).decode()}, UNSIGNED)


def _wrong_sha256(bench: Bench, kind: str) -> tuple[bytes, bytes]:
    return _plain(bench, kind, {}, hashlib.sha256(b"something else").hexdigest())


def _wrong_checksum(bench: Bench, kind: str) -> tuple[bytes, bytes]:
    return _plain(bench, kind, {"x-amz-checksum-crc32": base64.b64encode(bytes(4)).decode()}, UNSIGNED)


def _tampered_chunk(bench: Bench, kind: str) -> tuple[bytes, bytes]:
    head, body = bench.request("signed chunks", os.urandom(SIZE))
    at = body.index(b"\r\n") + 1000  # of the data: in a frame it may be refused as malformed
    return head, body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


@pytest.mark.parametrize(
    ("make", "kind", "codes"),
    [
        (_shorter, "put", ("IncompleteBody",)),
        (_longer, "put", ("IncompleteBody", "InvalidRequest")),
        (_wrong_trailer, "put", ("BadDigest",)),
        (_wrong_md5, "put", ("BadDigest",)),
        (_wrong_md5, "part", ("BadDigest",)),
        (_wrong_sha256, "put", ("XAmzContentSHA256Mismatch",)),
        (_wrong_sha256, "part", ("XAmzContentSHA256Mismatch",)),
        (_wrong_checksum, "put", ("BadDigest",)),
        (_wrong_checksum, "part", ("BadDigest",)),
        (_tampered_chunk, "put", ("SignatureDoesNotMatch",)),
    ],
)
def test_a_body_other_than_promised_is_refused_and_leaves_nothing(
    bench: Bench, make: Callable[[Bench, str], tuple[bytes, bytes]], kind: str, codes: tuple[str, ...]
) -> None:
    head, body = make(bench, kind)
    with contextlib.closing(connect(bench.store)) as connection:
        with contextlib.suppress(OSError):  # it may be refused before it has all been sent
            connection.sendall(head + body)
        answer = read_answer(connection, "PUT")
    refused(answer, 403 if codes == ("SignatureDoesNotMatch",) else 400, *codes)
    bench.nothing_is_left()
    head, body = bench.request("put", b"x" * SIZE)
    with contextlib.closing(connect(bench.store)) as connection:
        connection.sendall(head + body)
        assert read_answer(connection, "PUT").status == 200


# -- At every piece of a body, without sockets -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [INLINE, 3 * BLOCK])
def test_a_client_that_vanishes_after_any_piece_leaves_no_row_and_no_file(scratch: Path, size: int) -> None:
    data = os.urandom(size)
    pieces: list[bytes] = [data[at : at + size // 12] for at in range(0, size, size // 12)]

    async def story() -> None:
        async with opened(scratch / "data", fs=NoSync()) as node:
            assert (await node.request("PUT", "/bucket")).status == 200
            upload = text_of(await node.request("POST", "/bucket/parts", {"uploads": ""}), "UploadId")
            requests: list[tuple[str, dict[str, str]]] = [
                ("/bucket/k", {}),
                ("/bucket/parts", {"partNumber": "1", "uploadId": upload}),
            ]
            for path, query in requests:
                for number in range(len(pieces)):
                    body: list[Any] = [*pieces[:number], Vanished()]
                    with pytest.raises(ConnectionError):
                        await node.request("PUT", path, query, body=body, length=size)
                    assert not list((scratch / "data" / "cache" / "incoming").iterdir())
            assert not list((scratch / "data" / "cache" / "home").glob("*/*"))
            assert await audit(node.metadata, node.blocks) == []
            assert (await node.request("PUT", "/bucket/k", body=data)).status == 200

    asyncio.run(story())
