"""A driver with nothing to it: one request over aiohttp for each call, and such doubts as only a driver can have. It
holds status, version and place of an answer against what was asked; that lengths are right it takes on trust."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from email.utils import parsedate_to_datetime
from urllib.parse import quote

import aiohttp
from defusedxml import ElementTree
from yarl import URL

from tests.origin.lying import Lying
from tigrislike.origin import (
    Attributes,
    Buffer,
    OriginBroken,
    OriginChanged,
    OriginMissing,
    OriginObject,
    OriginPage,
    OriginRefused,
    OriginSummary,
    OriginUnavailable,
    Written,
)


class Plain:
    loses: frozenset[str] = frozenset()

    def __init__(self, server: Lying) -> None:
        self.name = server.endpoint
        self._bucket = f"{server.endpoint}/{server.bucket}"
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None), connector=aiohttp.TCPConnector(limit=0), auto_decompress=False
        )

    async def head(self, key: str) -> OriginObject:
        with _translated():
            async with self._session.head(self._url(key)) as answer:
                _check(answer)
                return OriginObject(
                    key=key,
                    size=int(answer.headers["Content-Length"]),
                    etag=answer.headers["ETag"].strip('"'),
                    modified_ns=int(parsedate_to_datetime(answer.headers["Last-Modified"]).timestamp()) * 10**9,
                    attributes=Attributes(content_type=answer.headers["Content-Type"]),
                )

    async def read(self, key: str, start: int, stop: int, *, size: int, etag: str) -> AsyncIterator[Buffer]:
        headers = {"Range": f"bytes={start}-{stop - 1}", "If-Match": f'"{etag}"'}
        with _translated():
            async with self._session.get(self._url(key), headers=headers) as answer:
                _check(answer)
                if answer.status != 206 or not answer.headers["Content-Range"].startswith(f"bytes {start}-"):
                    raise OriginBroken(f"{self.name} answers with another range than was asked for")
                if answer.headers["ETag"] != f'"{etag}"':
                    raise OriginChanged(f"{self.name} answers with another version")
                async for piece in answer.content.iter_any():
                    yield piece

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> OriginPage:
        query = {"list-type": "2", "prefix": prefix, "start-after": after, "delimiter": delimiter}
        query["max-keys"] = str(limit)
        with _translated():
            async with self._session.get(self._bucket, params=query) as answer:
                _check(answer)
                document = ElementTree.fromstring(await answer.read())
        space = {"s3": "http://s3.amazonaws.com/doc/2006-03-01/"}
        entries = tuple(
            OriginSummary(
                key=one.findtext("s3:Key", "", space),
                size=int(one.findtext("s3:Size", "", space)),
                etag=one.findtext("s3:ETag", "", space).strip('"'),
                modified_ns=0,
            )
            for one in document.iterfind("s3:Contents", space)
        )
        prefixes = tuple(one.text or "" for one in document.iterfind("s3:CommonPrefixes/s3:Prefix", space))
        more = document.findtext("s3:IsTruncated", "", space) == "true"
        last = max([entry.key for entry in entries] + list(prefixes), default="")
        return OriginPage(entries, prefixes, last if more else "")

    async def put(self, key: str, pieces: AsyncIterator[Buffer], size: int, attributes: Attributes) -> Written:
        data = b"".join([bytes(piece) async for piece in pieces])
        with _translated():
            async with self._session.put(self._url(key), data=data) as answer:
                _check(answer)
                return Written(answer.headers["ETag"].strip('"'), verified=True)

    async def delete(self, key: str) -> None:
        with _translated():
            async with self._session.delete(self._url(key)) as answer:
                _check(answer)

    async def close(self) -> None:
        await self._session.close()

    def _url(self, key: str) -> URL:
        return URL(f"{self._bucket}/{quote(key)}", encoded=True)


def _check(answer: aiohttp.ClientResponse) -> None:
    match answer.status:
        case 404:
            raise OriginMissing(f"{answer.url} is not there")
        case 412:
            raise OriginChanged(f"{answer.url} is another version")
        case status if status >= 500:
            retry_after_s = float(answer.headers.get("Retry-After", 0))
            raise OriginUnavailable(f"{answer.url} answers {status}", retry_after_s)
        case status if status >= 400:
            raise OriginRefused(f"{answer.url} answers {status}")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
        raise OriginUnavailable(f"connection: {error or type(error).__name__}") from error
    except aiohttp.ClientError as error:
        raise OriginBroken(f"no HTTP: {error}") from error
