"""Requests signed ahead, in bulk, with AWS Signature Version 4 in the Authorization header, as S3 clients send them.

Source of the algorithm: "Authenticating Requests: Using the Authorization Header" in the Amazon S3 API reference.
It shares no code with the store, so that a mistake there cannot hide here. A signature is good for 15 minutes.

It deliberately does not encode paths or queries: the bench's keys need none, and callers pass queries in canonical form
(sorted, percent-encoded, every parameter with its `=`).
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import time
from dataclasses import dataclass, field

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
REGION = "us-east-1"


@dataclass
class Signer:
    """Signs for one endpoint and one key pair."""

    host: str  # as in the Host header: "127.0.0.1:8333"
    access_key: str
    secret_key: str
    region: str = REGION
    _keys: dict[str, bytes] = field(default_factory=dict)

    def head(
        self,
        method: str,
        path: str,
        query: str = "",
        *,
        payload_sha256: str = EMPTY_SHA256,
        length: int | None = None,
        headers: dict[str, str] | None = None,
        now_s: float | None = None,
    ) -> bytes:
        """A whole HTTP/1.1 request head, blank line included: `length` as Content-Length, `headers` unsigned."""
        lines = [f"{name}: {value}" for name, value in self.headers(method, path, query, payload_sha256, now_s).items()]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if length is not None:
            lines.append(f"Content-Length: {length}")
        target = f"{path}?{query}" if query else path
        return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {self.host}", *lines, "", ""]).encode()

    def headers(
        self, method: str, path: str, query: str = "", payload_sha256: str = EMPTY_SHA256, now_s: float | None = None
    ) -> dict[str, str]:
        """The three headers that authenticate a request, beside Host."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
        day = stamp[:8]
        scope = f"{day}/{self.region}/s3/aws4_request"
        canonical = (
            f"{method}\n{path}\n{query}\nhost:{self.host}\nx-amz-content-sha256:{payload_sha256}\nx-amz-date:{stamp}\n\n"
            f"host;x-amz-content-sha256;x-amz-date\n{payload_sha256}"
        )
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(self._key(day), to_sign.encode(), "sha256").hex()
        return {
            "X-Amz-Content-Sha256": payload_sha256,
            "X-Amz-Date": stamp,
            "Authorization": f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, "
            f"SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={signature}",
        }

    def _key(self, day: str) -> bytes:
        key = self._keys.get(day)
        if key is None:
            key = f"AWS4{self.secret_key}".encode()
            for part in (day, self.region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._keys[day] = key
        return key


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes


def call(
    signer: Signer,
    method: str,
    path: str,
    query: str = "",
    body: bytes = b"",
    *,
    payload_sha256: str | None = None,
    anonymous: bool = False,
    timeout_s: float = 60,
) -> Answer:
    """One request outside any measured loop: setting up, checking, completing. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection(signer.host, timeout=timeout_s)
    try:
        digest = payload_sha256 if payload_sha256 is not None else hashlib.sha256(body).hexdigest()
        headers = {} if anonymous else signer.headers(method, path, query, digest)
        connection.request(method, f"{path}?{query}" if query else path, body=body or None, headers=headers)
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()
