"""One S3 request as it arrived: which bucket and key it addresses, its query, headers and caller.

Addressing is exact: the path is percent-decoded once, never normalised, so `//`, `.`, `..`, `%2F` and `+` in a key
mean themselves. Nothing here reads the body (`payload.py`) or decides who may do what (`authorisation.py`).
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

from tigrislike.s3api import checksums
from tigrislike.s3api.authorisation import ANONYMOUS, Identity
from tigrislike.s3api.errors import S3Error

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_KEY_BYTES = 1024  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html

# Parameters of the signature itself, and headers about a body.
_NOT_ADOPTED = frozenset(
    {
        "x-amz-algorithm",
        "x-amz-credential",
        "x-amz-date",
        "x-amz-expires",
        "x-amz-signedheaders",
        "x-amz-signature",
        "x-amz-security-token",
        "x-amz-content-sha256",
        "x-amz-decoded-content-length",
        "x-amz-trailer",
        "x-amz-sdk-checksum-algorithm",
    }
)

_process_part = ""
_sequence = itertools.count()


def _begin_request_ids() -> None:
    """Draw what tells the ids of this process from those of every other."""
    global _process_part, _sequence
    _process_part = os.urandom(4).hex().upper()
    _sequence = itertools.count(int.from_bytes(os.urandom(3), "big"))


_begin_request_ids()
# Workers are forked from a process that has imported this module.
os.register_at_fork(after_in_child=_begin_request_ids)


def new_request_id() -> str:
    """16 upper-case hexadecimal digits: a random part per process, then a counter, so that no log has one twice."""
    return f"{_process_part}{next(_sequence) & 0xFFFFFFFF:08X}"


class Request:
    """A parsed request. `bucket` and `key` are "" where the request addresses none."""

    __slots__ = (
        "bucket",
        "headers",
        "host",
        "identity",
        "key",
        "method",
        "notes",
        "query",
        "raw_headers",
        "raw_path",
        "raw_query",
        "receive",
        "request_id",
        "scheme",
        "scope",
        "virtual_host",
        "zero_copy",
    )

    def __init__(self, scope: Scope, receive: Receive, request_id: str) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.raw_path: bytes = scope["raw_path"]
        self.raw_query: bytes = scope["query_string"]
        self.raw_headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.scheme: str = scope["scheme"]
        self.headers = join_headers(self.raw_headers)
        self.host = self.headers.get("host", "")
        self.receive = receive
        self.request_id = request_id
        self.identity: Identity = ANONYMOUS
        self.notes: dict[str, Any] = scope.get("access", {})  # what the access log is to say of this request
        self.bucket = ""
        self.key = ""
        self.query: dict[str, str] = {}
        self.virtual_host = False
        # Whether the server can send from a file: ASGI's "http.response.zerocopysend" extension.
        self.zero_copy = "http.response.zerocopysend" in (scope.get("extensions") or ())

    def address(self, domains: tuple[str, ...]) -> None:
        """Fill in `bucket`, `key` and `query`.

        Raises:
            S3Error: InvalidURI where the path or query is not percent-encoded UTF-8; InvalidBucketName where a key or
                a further slash comes without a bucket.
        """
        if self.raw_query:
            self.query = parse_query(self.raw_query)
        path = self.raw_path
        if path[:1] != b"/":
            # A client may speak to a proxy: `GET http://host/bucket/key`. Only the path part addresses.
            scheme, _, rest = path.partition(b"://")
            if scheme not in (b"http", b"https"):
                raise S3Error("InvalidURI")
            path = b"/" + rest.partition(b"/")[2]
        tail = path[1:]
        bucket = bucket_of_host(self.host, domains) if domains else ""
        if bucket:
            self.virtual_host = True
            self.bucket = bucket
            self.key = decode_path(tail)
            return
        name, slash, key = tail.partition(b"/")
        self.bucket = decode_path(name)
        if slash and not name:
            raise S3Error("InvalidBucketName", extra={"BucketName": ""})
        if slash and key:
            self.key = decode_path(key)

    def adopt_query_headers(self) -> None:
        """Take the headers that a presigned URL carries in its query, as signers put them there who cannot know what
        the URL's user will send: metadata, ACL, storage class, copy source. A header that is sent wins.

        Those about the body stay where they are: the signer had not seen it. S3 ignores such a checksum as well
        (aws/aws-sdk-go-v2#2610), and the JavaScript SDK signs one of an empty body into every URL.
        """
        for name, value in self.query.items():
            header = name.lower()
            if header.startswith("x-amz-") and header not in _NOT_ADOPTED and header not in checksums.HEADERS:
                self.headers.setdefault(header, value)

    async def buffer_body(self, limit: int) -> str:
        """Read the whole body into memory, to be received again from there, and return its SHA-256 in hex.

        Raises:
            S3Error: EntityTooLarge beyond `limit` bytes; IncompleteBody when the client stops early.
        """
        pieces: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await self.receive()
            if message["type"] != "http.request":
                raise S3Error("IncompleteBody")
            piece = message.get("body", b"")
            size += len(piece)
            if size > limit:
                raise S3Error(
                    "EntityTooLarge",
                    "A request signed without x-amz-content-sha256 may not be larger than MaxSizeAllowed",
                    extra={"MaxSizeAllowed": str(limit)},
                )
            pieces.append(piece)
            more = message.get("more_body", False)
        body = b"".join(pieces)

        async def replay() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        self.receive = replay
        return hashlib.sha256(body).hexdigest()

    @property
    def resource(self) -> str:
        """The resource as S3 names it in an error document: `/bucket/key`."""
        try:
            if self.virtual_host:
                return f"/{self.bucket}{decode_path(self.raw_path)}"
            return decode_path(self.raw_path)
        except S3Error:
            return self.raw_path.decode("latin-1")

    @property
    def level(self) -> str:
        """What the request addresses: `service`, `bucket` or `object`."""
        if self.key:
            return "object"
        return "bucket" if self.bucket else "service"


def join_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Lower-case name to value, latin-1 decoded; a repeated header's values joined by commas, as HTTP allows."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name = raw_name.decode("latin-1")
        value = raw_value.decode("latin-1")
        if name in headers:
            value = f"{headers[name]},{value}"
        headers[name] = value
    return headers


def parse_query(raw: bytes) -> dict[str, str]:
    """Query parameters by name; a bare flag (`?uploads`) and an empty one (`?uploads=`) both map to "". First wins."""
    query: dict[str, str] = {}
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict")
    except (UnicodeDecodeError, ValueError):
        raise S3Error("InvalidURI") from None
    for name, value in pairs:
        query.setdefault(name, value)
    return query


def decode_path(raw: bytes) -> str:
    """One path, or part of one, percent-decoded once as UTF-8.

    Raises:
        S3Error: InvalidURI where the bytes are not UTF-8.
    """
    try:
        return (unquote_to_bytes(raw) if b"%" in raw else raw).decode("utf-8")
    except UnicodeDecodeError:
        raise S3Error("InvalidURI") from None


def bucket_of_host(host: str, domains: tuple[str, ...]) -> str:
    """The bucket named by a virtual host `bucket.domain[:port]`, or "" where the host is the service's own."""
    name = host.lower()
    if name[:1] != "[":
        name = name.partition(":")[0]
    for domain in domains:
        if name.endswith(domain) and name[: -len(domain)].endswith("."):
            return name[: -len(domain) - 1]
    return ""
