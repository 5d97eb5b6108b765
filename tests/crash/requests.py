"""Uploads of every kind as a client sends them, and what the client knows of each afterwards."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import random
import zlib
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import quote, urlencode

import boto3
from botocore.config import Config

from tests.e2e.wire import (
    EMPTY_SHA256,
    STREAMING_SIGNED,
    STREAMING_UNSIGNED_TRAILER,
    UNSIGNED,
    Answer,
    Caller,
    connect,
    head_of,
)


class NotSent(Exception):
    """The request never left: nothing of it can have happened."""


class InDoubt(Exception):
    """The request left and no answer came, or one that does not tell: it happened whole or not at all."""


class Refused(Exception):
    """The store refused the request: nothing of it happened."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.status} {answer.body[:300]!r}")
        self.answer = answer


class Client:
    """Sends requests to one node with the root key.

    Every method raises NotSent, InDoubt or Refused unless the answer is a success.
    """

    def __init__(self, node: Any) -> None:
        self.node = node
        self.caller = Caller(node)

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        payload: str | None = None,
    ) -> Answer:
        """One signed request. `path` is `/bucket/key`, not yet encoded."""
        given = dict(headers or {})
        if body or method in ("PUT", "POST"):
            given.setdefault("content-length", str(len(body)))
        payload = payload or (hashlib.sha256(body).hexdigest() if body else EMPTY_SHA256)
        target = quote(path) + (f"?{urlencode(query)}" if query else "")
        return self.exchange(method, target, self.caller.sign(method, target, given, payload=payload), body)

    def exchange(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        try:
            connection = connect(self.node)
        except OSError as error:
            raise NotSent(str(error)) from error
        try:
            with contextlib.closing(connection):
                # A store that refuses may answer and close before it has read everything.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(head_of(method, target, headers) + body)
                with contextlib.closing(http.client.HTTPResponse(connection, method=method)) as response:
                    response.begin()
                    body = response.read()
                    found = {name.lower(): value for name, value in response.getheaders()}
                    answer = Answer(response.status, found, body)
        except (OSError, http.client.HTTPException) as error:
            raise InDoubt(f"{type(error).__name__}: {error}") from error
        if answer.status >= 500:
            raise InDoubt(f"{answer.status} {answer.body[:300]!r}")
        if answer.status >= 300:
            raise Refused(answer)
        return answer

    # -- Uploads, one method for each way of sending the bytes

    def put_signed(self, path: str, query: Mapping[str, str], data: bytes) -> Answer:
        return self.call("PUT", path, query, body=data)

    def put_unsigned(self, path: str, query: Mapping[str, str], data: bytes) -> Answer:
        return self.call("PUT", path, query, body=data, payload=UNSIGNED)

    def put_signed_chunks(self, path: str, query: Mapping[str, str], data: bytes) -> Answer:
        pieces = [data[at : at + 65536] for at in range(0, len(data), 65536)]
        target = quote(path) + (f"?{urlencode(query)}" if query else "")
        length = sum(len(b"%x;chunk-signature=" % len(piece)) + 64 + 4 + len(piece) for piece in (*pieces, b""))
        headers = {
            "content-encoding": "aws-chunked",
            "x-amz-decoded-content-length": str(len(data)),
            "content-length": str(length),
        }
        signed = self.caller.sign("PUT", target, headers, payload=STREAMING_SIGNED)
        body = b"".join(self.caller.chunks(signed, pieces))
        assert len(body) == length
        return self.exchange("PUT", target, signed, body)

    def put_trailer(self, path: str, query: Mapping[str, str], data: bytes) -> Answer:
        """As boto3 does over TLS: unsigned chunks and a checksum behind them, no Content-Length."""
        checksum = base64.b64encode(zlib.crc32(data).to_bytes(4, "big"))
        pieces = [data[at : at + 65536] for at in range(0, len(data), 65536)]
        inner = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        inner += b"0\r\nx-amz-checksum-crc32:%b\r\n\r\n" % checksum
        cut = [inner[at : at + 100_000] for at in range(0, len(inner), 100_000)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in cut) + b"0\r\n\r\n"
        target = quote(path) + (f"?{urlencode(query)}" if query else "")
        headers = {
            "content-encoding": "aws-chunked",
            "transfer-encoding": "chunked",
            "x-amz-decoded-content-length": str(len(data)),
            "x-amz-trailer": "x-amz-checksum-crc32",
        }
        signed = self.caller.sign(
            "PUT", target, headers, payload=STREAMING_UNSIGNED_TRAILER, unsigned=("transfer-encoding",)
        )
        return self.exchange("PUT", target, signed, body)

    def put_somehow(self, rng: random.Random, path: str, query: Mapping[str, str], data: bytes) -> Answer:
        ways = [self.put_signed, self.put_unsigned, self.put_signed_chunks, self.put_trailer]
        return rng.choice(ways)(path, query, data)

    def form(self, bucket: str, key: str, data: bytes) -> Answer:
        fields = _signer(self.node.access_key_id, self.node.secret_access_key).generate_presigned_post(bucket, key)
        boundary = "boundary-of-a-form"
        body = bytearray()
        for name, value in fields["fields"].items():
            body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'.encode()
        body += data + f"\r\n--{boundary}--\r\n".encode()
        headers = {
            "host": self.caller.host,
            "content-type": f"multipart/form-data; boundary={boundary}",
            "content-length": str(len(body)),
        }
        return self.exchange("POST", f"/{bucket}", headers, bytes(body))

    def delete_objects(self, bucket: str, keys: list[str]) -> Answer:
        rows = "".join(f"<Object><Key>{key}</Key></Object>" for key in keys)
        return self.document("POST", f"/{bucket}", {"delete": ""}, f"<Delete>{rows}</Delete>".encode())

    def document(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> Answer:
        """A request whose body is an XML document, with the digest that S3 demands of some."""
        digest = base64.b64encode(hashlib.md5(body).digest()).decode()
        return self.call(method, path, query, {"content-md5": digest}, body)


@cache
def _signer(key_id: str, secret: str) -> Any:
    """Makes signed forms; speaks to nobody."""
    return boto3.client(
        "s3",
        endpoint_url="http://127.0.0.1:1",
        aws_access_key_id=key_id,
        aws_secret_access_key=secret,
        region_name="auto",
        config=Config(signature_version="s3v4"),
    )
