"""AWS Signature Version 4 for requests that go out, in the Authorization header.

Paths and queries are signed as they are sent, so what this module encodes is what has to be sent: everything but
unreserved characters percent-encoded, and slashes in a path left alone. Bodies are not signed; what has to arrive whole
has a digest of its own.

Source: "Authenticating Requests: Using the Authorization Header" in the Amazon S3 API reference.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterable, Mapping
from urllib.parse import quote

UNSIGNED = "UNSIGNED-PAYLOAD"


def encoded_path(path: str) -> str:
    """A path with every byte of its UTF-8 that S3 does not take as it is percent-encoded; `//` and `..` stay."""
    return quote(path, safe="/~")


def encoded_query(pairs: Iterable[tuple[str, str]]) -> str:
    """The canonical query of these pairs."""
    return "&".join(
        f"{name}={value}" for name, value in sorted((quote(n, safe="~"), quote(v, safe="~")) for n, v in pairs)
    )


class Signer:
    """Signs for one key pair and one region. With an empty access key it signs nothing: requests are anybody's."""

    def __init__(self, access_key: str, secret_key: str, region: str, session_token: str = "") -> None:
        self._access_key = access_key
        self._secret_key = secret_key
        self._region = region
        self._session_token = session_token
        self._key: tuple[str, bytes] = ("", b"")

    def signed(
        self,
        method: str,
        host: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        *,
        now_s: float | None = None,
    ) -> dict[str, str]:
        """`headers` and those that authenticate the request.

        Args:
            host: as the Host header will have it.
            path, query: encoded, as `encoded_path` and `encoded_query` do.
            headers: all that S3 wants signed: `x-amz-*`, `content-md5`, `content-type`; names in any case.
            now_s: unix time; None: now.
        """
        if not self._access_key:
            return dict(headers)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
        sent = {**headers, "x-amz-date": stamp, "x-amz-content-sha256": UNSIGNED}
        if self._session_token:
            sent["x-amz-security-token"] = self._session_token
        # A range is left out: proxies may narrow it, and S3 does not ask for it.
        canonical = {name.lower(): " ".join(value.split()) for name, value in sent.items() if _is_signed(name.lower())}
        canonical["host"] = host
        names = sorted(canonical)
        signed_headers = ";".join(names)
        lines = [method, path, query, *(f"{name}:{canonical[name]}" for name in names), "", signed_headers, UNSIGNED]
        scope = f"{stamp[:8]}/{self._region}/s3/aws4_request"
        digest = hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
        signature = hmac.digest(self._day_key(stamp[:8]), to_sign.encode(), "sha256").hex()
        sent["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self._access_key}/{scope}, SignedHeaders={signed_headers}, "
            f"Signature={signature}"
        )
        return sent

    def _day_key(self, day: str) -> bytes:
        if self._key[0] != day:
            key = f"AWS4{self._secret_key}".encode()
            for part in (day, self._region, "s3", "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key = (day, key)
        return self._key[1]


def _is_signed(name: str) -> bool:
    return name.startswith("x-amz-") or name in ("content-md5", "content-type")
