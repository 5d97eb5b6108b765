"""HTTP to an origin: one request, no retries, and every way in which it fails as an `OriginError`.

Nothing is decompressed, no proxy of the environment is used, no cookie kept. Time-outs are for making a connection and
between bytes, never for a whole body.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from msgspec import Struct
from yarl import URL

from .egress import Egress
from .errors import OriginBroken, OriginChanged, OriginError, OriginMissing, OriginRefused, OriginUnavailable
from .protocol import Buffer

CONNECTIONS = 256  # to one origin; who asks for more waits
_POOL_TIMEOUT_S = 30.0
_READ_BUFFER = 1 << 20  # what a connection holds of a body that nobody takes
_MAX_HEADER = 16384


class Timeouts(Struct, frozen=True):
    """For a connection to be made, with TLS; and for the next bytes to come."""

    connect_s: float = 5.0
    read_s: float = 10.0


class Transport:
    """Connections to one origin. Made anywhere, used on one event loop.

    Args:
        name: the origin's, for messages.
        redirects: how many are followed.
    """

    def __init__(self, name: str, egress: Egress, timeouts: Timeouts, *, redirects: int = 0) -> None:
        self.name = name
        self._egress = egress
        self._timeouts = timeouts
        self._redirects = redirects
        self._session: aiohttp.ClientSession | None = None

    @contextlib.asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        body: AsyncIterator[Buffer] | bytes | None = None,
        read_timeout_s: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a request, whatever its status. A connection whose answer was read to its end is used again.

        Args:
            url: sent as it is spelled.
            headers: with Content-Length where `body` is an iterator.

        Raises:
            OriginUnavailable, OriginBroken, OriginRefused: also from within the block, for what is read there.
        """
        with self.translated():
            answer = await self._opened().request(
                method,
                URL(url, encoded=True),
                headers=headers,
                data=body,
                allow_redirects=self._redirects > 0,
                max_redirects=self._redirects,
                timeout=self._timeout(read_timeout_s),
            )
            try:
                yield answer
            except BaseException:
                answer.close()
                raise
            if answer.content.at_eof():
                answer.release()
            else:
                answer.close()

    async def document(self, answer: aiohttp.ClientResponse, limit: int) -> bytes:
        """The whole body of an answer. Raises OriginBroken where it has more than `limit` bytes."""
        body = bytearray()
        while piece := await answer.content.readany():
            body += piece
            if len(body) > limit:
                raise OriginBroken(f"{self.name} answers with more than {limit} bytes where a document was expected")
        return bytes(body)

    async def pieces(self, answer: aiohttp.ClientResponse, length: int) -> AsyncIterator[Buffer]:
        """The body of an answer, which must have exactly `length` bytes. Raises OriginBroken where it has not."""
        if answer.content_length is not None and answer.content_length != length:
            raise OriginBroken(f"{self.name} announces {answer.content_length} bytes where {length} were asked for")
        left = length
        while piece := await answer.content.readany():
            left -= len(piece)
            if left < 0:
                raise OriginBroken(f"{self.name} goes on behind the {length} bytes asked for")
            yield piece
        if left:
            raise OriginBroken(f"{self.name} ends {left} bytes early, of {length}")

    def check_range(self, answer: aiohttp.ClientResponse, start: int, stop: int, size: int) -> None:
        """Raises OriginBroken unless a successful answer is that range of an object of that size."""
        expected = f"bytes {start}-{stop - 1}/{size}"
        told = answer.headers.get("Content-Range", "")
        whole = answer.status == 200 and not told and (start, stop) == (0, size)
        if not whole and (answer.status != 206 or told.lower() != expected):
            raise OriginBroken(f"{self.name} answers {answer.status} with {told!r}, not with {expected!r}")

    def failure(self, answer: aiohttp.ClientResponse, told: str = "") -> OriginError:
        """What an answer that is no success means."""
        message = f"{self.name} answers {answer.status}{': ' if told else ''}{told}"
        if answer.status in (404, 410):
            return OriginMissing(message)
        if answer.status in (412, 416):  # 416: the object is shorter than the version that was asked for
            return OriginChanged(message)
        if answer.status in (408, 425, 429) or (answer.status >= 500 and answer.status not in (501, 505)):
            return OriginUnavailable(message, _retry_after_s(answer.headers.get("Retry-After", "")))
        return OriginRefused(message)

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Whatever aiohttp raises, as an OriginError."""
        try:
            yield
        except TimeoutError as error:
            raise OriginUnavailable(f"{self.name} does not answer in time ({type(error).__name__})") from error
        except aiohttp.ClientPayloadError as error:
            raise OriginBroken(f"{self.name} ends its answer early: {error}") from error
        except aiohttp.TooManyRedirects as error:
            raise OriginRefused(f"{self.name} redirects more than {self._redirects} times") from error
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise OriginRefused(f"{self.name} redirects to, or is, what is no URL of HTTP") from error
        except aiohttp.ClientResponseError as error:
            raise OriginBroken(f"{self.name} does not answer in HTTP: {error.message}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise OriginUnavailable(f"{self.name} cannot be asked: {error or type(error).__name__}") from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=self._egress.connector(connections=CONNECTIONS),
                timeout=self._timeout(None),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "tigrislike"},
                skip_auto_headers=("Content-Type",),
                read_bufsize=_READ_BUFFER,
                max_field_size=_MAX_HEADER,
            )
            # aiohttp would send GET, PUT and DELETE again on another connection where one ends without an answer, and
            # what a PUT is fed from cannot be read twice.
            self._session._retry_connection = False
        elif self._session.closed:
            raise OriginUnavailable(f"{self.name} has been closed")
        return self._session

    def _timeout(self, read_s: float | None) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(
            total=None,
            connect=_POOL_TIMEOUT_S,
            sock_connect=self._timeouts.connect_s,
            sock_read=self._timeouts.read_s if read_s is None else read_s,
        )


def http_time_ns(text: str | None) -> int:
    """Unix nanoseconds of a date as HTTP writes it; 0 where it is none."""
    try:
        return int(parsedate_to_datetime(text or "").timestamp()) * 1_000_000_000
    except (ValueError, OverflowError):
        return 0


def _retry_after_s(text: str) -> float:
    """Seconds from a Retry-After header, which holds a number or a date; 0 where it says nothing."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    at_ns = http_time_ns(text)
    return max(0.0, at_ns / 1e9 - time.time()) if at_ns else 0.0


def header_text(value: str) -> str:
    """A header's value as text: UTF-8 where it is that, and Latin-1 otherwise, as HTTP had it first."""
    try:
        value.encode()
    except UnicodeEncodeError:  # aiohttp keeps what is no UTF-8 as lone surrogates
        return value.encode("utf-8", "surrogateescape").decode("latin-1")
    return value


def lowered(headers: Mapping[str, Any]) -> dict[str, str]:
    """Headers by name in lower case, values as text; those that come several times as the one list that they are."""
    told: dict[str, list[str]] = {}
    for name, value in headers.items():
        told.setdefault(name.lower(), []).append(header_text(value))
    return {name: ", ".join(values) for name, values in told.items()}
