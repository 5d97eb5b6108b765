"""Requests that no client library would send: signed by hand, written to the socket byte for byte.

`Caller` signs as a key's holder would, over exactly what is sent, so that whatever is wrong with a request gets past
authentication and has to be refused for what it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import re
import socket
import ssl
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlsplit

from tests.leaks import SCAN

UNSIGNED = "UNSIGNED-PAYLOAD"
STREAMING_SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
STREAMING_SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
STREAMING_UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_NOT_XML = re.compile(rb"&#x(?:[0-8bcef]|1[0-9a-f]|fff[ef]);")
TIMEOUT_S = 30.0  # a node that has not answered by then hangs


@dataclass(frozen=True)
class Answer:
    """A response; `headers` by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, str]:
        """The elements of the error document."""
        # S3 writes references to characters that XML cannot have.
        root = ET.fromstring(_NOT_XML.sub(b"?", self.body))
        assert root.tag == "Error", self.body
        return {child.tag: child.text or "" for child in root}

    @property
    def code(self) -> str:
        return self.error["Code"]


def connect(store: Any) -> socket.socket:
    plain = socket.create_connection(("127.0.0.1", urlsplit(store.endpoint).port or 0), TIMEOUT_S)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not store.endpoint.startswith("https"):
        return plain
    return ssl.create_default_context(cafile=store.ca_bundle).wrap_socket(plain, server_hostname="127.0.0.1")


def read_answer(connection: socket.socket, method: str = "GET") -> Answer:
    """The response on a connection.

    Raises:
        ConnectionError, http.client.HTTPException: the node closed the connection without a whole response.
        TimeoutError: nothing came for `TIMEOUT_S`.
    """
    with contextlib.closing(http.client.HTTPResponse(connection, method=method)) as response:
        response.begin()
        body = response.read()
        if response.status >= 400:
            SCAN.look(body, f"the answer to a {method}, status {response.status}", signatures=False)
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)


def head_of(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def exchange(store: Any, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
    """One request on a connection of its own, sent as given."""
    with contextlib.closing(connect(store)) as connection:
        # The node may answer and close before it has read everything.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
            connection.sendall(head_of(method, target, headers) + body)
        return read_answer(connection, method)


class Caller:
    """The holder of a key pair, speaking to one node.

    Args:
        store: where to, and whose keys by default.
    """

    def __init__(
        self, store: Any, access_key_id: str = "", secret_access_key: str = "", *, region: str = "auto"
    ) -> None:
        self.store = store
        self.access_key_id = access_key_id or store.access_key_id
        self.secret_access_key = secret_access_key or store.secret_access_key
        SCAN.keep(self.secret_access_key, "secret key")
        self.region = region
        self.host = urlsplit(store.endpoint).netloc

    def _key(self, day: str) -> bytes:
        key = b"AWS4" + self.secret_access_key.encode()
        for part in (day, self.region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return key

    def _signature(self, moment: str, text: str) -> str:
        signature = hmac.new(self._key(moment[:8]), text.encode(), "sha256").hexdigest()
        SCAN.keep_signature(signature)
        return signature

    def sign(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        *,
        payload: str = EMPTY_SHA256,
        moment: str = "",
        unsigned: Iterable[str] = (),
    ) -> dict[str, str]:
        """The headers of a signed request, the given ones among them.

        Args:
            target: path and query as they will be sent.
            payload: the value of x-amz-content-sha256.
            moment: the time of signing, `20260131T235959Z`; now by default.
            unsigned: lower-case names to leave out of the signature.
        """
        moment = moment or now()
        path, _, query = target.partition("?")
        signed = {
            "host": self.host,
            "x-amz-content-sha256": payload,
            "x-amz-date": moment,
            **{name.lower(): value for name, value in (headers or {}).items()},
        }
        names = sorted(set(signed) - set(unsigned))
        lines = "".join(f"{name}:{collapsed(signed[name])}\n" for name in names)
        canonical = "\n".join(
            [method, path, sorted_query(query), lines, ";".join(names), signed["x-amz-content-sha256"]]
        )
        scope = f"{moment[:8]}/{self.region}/s3/aws4_request"
        digest = hashlib.sha256(canonical.encode("latin-1")).hexdigest()
        signature = self._signature(moment, f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{digest}")
        signed["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.access_key_id}/{scope}, SignedHeaders={';'.join(names)}, "
            f"Signature={signature}"
        )
        return signed

    def presign(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, *, expires_s: str = "600"
    ) -> str:
        """`target` with a signature in its query, over `host` and the given headers."""
        moment = now()
        path, _, query = target.partition("?")
        signed = {"host": self.host, **{name.lower(): value for name, value in (headers or {}).items()}}
        names = sorted(signed)
        scope = f"{moment[:8]}/{self.region}/s3/aws4_request"
        added = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{self.access_key_id}/{scope}",
            "X-Amz-Date": moment,
            "X-Amz-Expires": expires_s,
            "X-Amz-SignedHeaders": ";".join(names),
        }
        query = "&".join(
            [*filter(None, [query]), *(f"{name}={quote(value, safe='')}" for name, value in added.items())]
        )
        lines = "".join(f"{name}:{signed[name].strip()}\n" for name in names)
        canonical = "\n".join([method, path, sorted_query(query), lines, ";".join(names), UNSIGNED])
        digest = hashlib.sha256(canonical.encode("latin-1")).hexdigest()
        signature = self._signature(moment, f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{digest}")
        return f"{path}?{query}&X-Amz-Signature={signature}"

    def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        payload: str | None = None,
    ) -> Answer:
        """One signed request; the body's length and digest are the true ones unless the headers say otherwise."""
        headers = dict(headers or {})
        lower = {name.lower() for name in headers}
        if "content-length" not in lower and "transfer-encoding" not in lower and (body or method in ("PUT", "POST")):
            headers["content-length"] = str(len(body))
        payload = hashlib.sha256(body).hexdigest() if payload is None else payload
        return exchange(self.store, method, target, self.sign(method, target, headers, payload=payload), body)

    def chunks(
        self, headers: Mapping[str, str], pieces: Iterable[bytes], trailer: bytes | None = None
    ) -> Iterator[bytes]:
        """The frames of a signed aws-chunked body whose request has `headers` (as `sign` made them).

        Yields one frame for each piece, the last one of no bytes, and then the trailer's lines (each ending in a bare
        newline, as they are signed) with their signature.
        """
        moment = headers["x-amz-date"]
        previous = headers["authorization"].rpartition("Signature=")[2]
        scope = f"{moment}\n{moment[:8]}/{self.region}/s3/aws4_request"
        for piece in (*pieces, b""):
            digest = hashlib.sha256(piece).hexdigest()
            previous = self._signature(
                moment, f"AWS4-HMAC-SHA256-PAYLOAD\n{scope}\n{previous}\n{EMPTY_SHA256}\n{digest}"
            )
            frame = b"%x;chunk-signature=%b\r\n%b" % (len(piece), previous.encode(), piece)
            yield frame + (b"" if trailer is not None and not piece else b"\r\n")
        if trailer is not None:
            digest = hashlib.sha256(trailer).hexdigest()
            signature = self._signature(moment, f"AWS4-HMAC-SHA256-TRAILER\n{scope}\n{previous}\n{digest}")
            yield trailer.replace(b"\n", b"\r\n") + f"x-amz-trailer-signature:{signature}\r\n\r\n".encode()


def now() -> str:
    return moment_of(time.time())


def moment_of(unix_s: float) -> str:
    """A time as signatures name it."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y%m%dT%H%M%SZ")


def sorted_query(query: str) -> str:
    """The canonical query of one that is encoded as it is to be sent."""
    segments = [segment.partition("=") for segment in query.split("&") if segment]
    pairs = sorted((canonical(name), canonical(value)) for name, _, value in segments)
    return "&".join(f"{name}={value}" for name, value in pairs)


def collapsed(value: str) -> str:
    """A header value as it is signed."""
    return b" ".join(value.encode("latin-1").split()).decode("latin-1")


def canonical(text: str) -> str:
    """`text` with each byte percent-encoded as a signature wants it."""
    return quote(unquote_to_bytes(text.replace("+", " ").encode("latin-1")), safe="-._~")


def refused(answer: Answer, status: int, *codes: str) -> Answer:
    """The answer is one of these S3 errors, told the way S3 tells it."""
    assert (answer.status, answer.code in codes) == (status, True), (answer.status, answer.body[:500], codes)
    error = answer.error
    assert error["Message"]
    assert error["RequestId"] == answer.headers["x-amz-request-id"]
    assert "Resource" in error
    assert answer.headers["content-type"] == "application/xml"
    assert int(answer.headers["content-length"]) == len(answer.body)
    return answer
