"""Files of a web server, by HTTP or HTTPS: read, never written. There are no listings.

A version is what the server's strong ETag says. Where there is none, it is made of what else changes with the bytes:
a weak ETag, Last-Modified and the size; then a file that is replaced twice within a second may pass for itself.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from hashlib import sha256

from .egress import Egress
from .errors import OriginBroken, OriginChanged, OriginRefused
from .location import Location, as_folder, checked_url
from .protocol import Attributes, Buffer, OriginObject, OriginPage, Written
from .signature import encoded_path
from .transport import Timeouts, Transport, http_time_ns, lowered

REDIRECTS = 5
_SHOWN = 200
_HEADERS = {
    "CacheControl": "cache-control",
    "ContentDisposition": "content-disposition",
    "ContentEncoding": "content-encoding",
    "ContentLanguage": "content-language",
    "Expires": "expires",
}


class HTTPOrigin:
    """A folder of a web server. An access key and a secret key are a name and a password (Basic)."""

    loses = frozenset({"metadata", "tags", "storage_class", "checksum", "md5", "headers.WebsiteRedirectLocation"})

    def __init__(self, location: Location, egress: Egress, timeouts: Timeouts) -> None:
        self._base = as_folder(checked_url(location.url))
        self.name = self._base
        self._headers: dict[str, str] = {}
        if location.access_key:
            pair = f"{location.access_key}:{location.secret_key}".encode()
            self._headers["Authorization"] = f"Basic {b64encode(pair).decode()}"
        self._transport = Transport(self.name, egress, timeouts, redirects=REDIRECTS)

    async def head(self, key: str) -> OriginObject:
        async with self._transport.request("HEAD", self._url(key), self._headers) as answer:
            if answer.status != 200:
                raise self._transport.failure(answer)
            headers = lowered(answer.headers)
        length = headers.get("content-length", "")
        if not length.isdigit():
            raise OriginRefused(f"{self.name} does not tell the size of {key!r}")
        return OriginObject(
            key=key,
            size=int(length),
            etag=self._version(headers, int(length)),
            modified_ns=http_time_ns(headers.get("last-modified")),
            attributes=Attributes(
                content_type=headers.get("content-type", ""),
                headers={member: headers[name] for member, name in _HEADERS.items() if name in headers},
            ),
        )

    async def read(self, key: str, start: int, stop: int, *, size: int, etag: str) -> AsyncIterator[Buffer]:
        if start == stop:
            return
        made = etag.startswith(_MADE)
        headers = {**self._headers, "Range": f"bytes={start}-{stop - 1}"}
        if not made:
            headers["If-Match"] = f'"{etag}"'
        async with self._transport.request("GET", self._url(key), headers) as answer:
            if answer.status not in (200, 206):
                raise self._transport.failure(answer)
            given = lowered(answer.headers)
            total = given.get("content-range", "").rpartition("/")[2] or given.get("content-length", "")
            if self._version(given, int(total) if total.isdigit() else -1) != etag:
                # Not every server knows If-Match, and for a version made here it was not asked.
                raise OriginChanged(f"{self.name} has another version of {key!r}")
            self._transport.check_range(answer, start, stop, size)
            async for piece in self._transport.pieces(answer, stop - start):
                yield piece

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> OriginPage:
        raise OriginRefused(f"{self.name} cannot be listed: HTTP has no way to")

    async def put(self, key: str, pieces: AsyncIterator[Buffer], size: int, attributes: Attributes) -> Written:
        raise OriginRefused(f"{self.name} is only read")

    async def delete(self, key: str) -> None:
        raise OriginRefused(f"{self.name} is only read")

    async def close(self) -> None:
        await self._transport.close()

    def _url(self, key: str) -> str:
        # A server takes `..` for the folder above, which is not this origin's.
        if not key or any(segment in (".", "..") for segment in key.split("/")):
            raise OriginRefused(f"HTTP has no name for {key[:_SHOWN]!r}")
        return self._base + encoded_path(key)

    def _version(self, headers: Mapping[str, str], size: int) -> str:
        etag, modified = headers.get("etag", ""), headers.get("last-modified", "")
        if etag.startswith('"') and len(etag) > 2:
            return etag.strip('"')
        if not etag and not modified:
            raise OriginBroken(f"{self.name} names no version: neither ETag nor Last-Modified")
        return _MADE + sha256(f"{etag}\n{modified}\n{size}".encode()).hexdigest()[:32]


_MADE = "made-"
