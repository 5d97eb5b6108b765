"""Any service that speaks S3: AWS, MinIO, R2, Ceph, another tigrislike.

Every request is made and signed here, so that any key can be named, and everything that S3 tells of an object is read:
libraries for several clouds have neither (object_store normalises keys, and knows no tags, Expires or checksums of what
it reads). bench/README.md has what that costs.

Large objects are written in parts. A part that fails is sent again here, for nobody else has it: the store behind it
could otherwise never be written to while it refuses one request in ten. All else is tried once.

What is S3's own (how requests are signed, what headers are called, which digests are told) is in members of `S3Origin`
that begin with `_own`, for services that differ in nothing else.

Source of what is asked and answered: the Amazon S3 API reference.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import md5
from typing import Any, ClassVar, NamedTuple, TypeVar
from urllib.parse import unquote_plus, urlsplit
from xml.etree.ElementTree import Element, ParseError
from xml.sax.saxutils import escape

import aiohttp
from awscrt import checksums
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from .egress import Egress
from .errors import OriginBroken, OriginError, OriginRefused, OriginUnavailable
from .location import Location, bucket_and_prefix, checked_url
from .protocol import Attributes, Buffer, OriginObject, OriginPage, OriginSummary, Written
from .signature import Signer, encoded_path, encoded_query
from .transport import Timeouts, Transport, http_time_ns, lowered
from .trees import LAST, rolled_up

T = TypeVar("T")

WHOLE_BYTES = 64 << 20  # what is at most written in one request
PART_BYTES = 16 << 20
MAX_PARTS = 10_000
PARTS_BYTES = 48 << 20  # what parts on their way take of memory, or one part where that is larger
PART_TRIES = 5
_BACK_OFF_S = (0.1, 3.0)  # the first wait, which doubles; the longest
_ABORT_TIMEOUT_S = 10.0
_SETTLE_TIMEOUT_S = 60.0  # a store may put parts together before it answers

_MAX_PAGE = 16 << 20  # a thousand keys of 1 KiB, each byte of them written in three
_MAX_DOCUMENT = 1 << 20
_SHOWN = 300  # characters of a message from elsewhere
_SEGMENT = 256 << 10  # bytes written at a time
_AT_ONCE = 64 << 10  # what is hashed in less time than a thread takes to be asked

# Pages are gone on with by the store's own token, for not all stores list in the order that `start-after` supposes
# (SeaweedFS goes through its directories). No text of XML, and so no token, has this character in it.
_GOES_ON = "\0"

HEADERS = {
    "CacheControl": "cache-control",
    "ContentDisposition": "content-disposition",
    "ContentEncoding": "content-encoding",
    "ContentLanguage": "content-language",
    "Expires": "expires",
    "WebsiteRedirectLocation": "x-amz-website-redirect-location",
}
_CHECKSUM = "x-amz-checksum-"


class Crc(NamedTuple):
    """A checksum that a service computes of whole objects: `over` some bytes, going on from those before."""

    name: str
    length: int
    over: Callable[[Any, int], int]


class S3Origin:
    """A bucket, or a folder of one.

    Options: ``addressing`` (``path`` or ``virtual``; virtual where there is no endpoint), ``session_token``, ``tags``
    (``no``: they are neither asked for nor written, for want of permission).
    """

    _own_headers: ClassVar[Mapping[str, str]] = HEADERS
    _own_prefix: ClassVar[str] = "x-amz-"
    _own_head: ClassVar[Mapping[str, str]] = {"x-amz-checksum-mode": "ENABLED"}
    _own_get: ClassVar[Mapping[str, str]] = {}
    _own_crc: ClassVar[Crc] = Crc("CRC64NVME", 8, checksums.crc64nvme)

    def __init__(self, location: Location, egress: Egress, timeouts: Timeouts) -> None:
        self._bucket, self._prefix = bucket_and_prefix(location)
        region = location.region or "us-east-1"
        endpoint = checked_url(location.endpoint or f"https://s3.{region}.amazonaws.com")
        addressing = location.options.get("addressing") or ("path" if location.endpoint else "virtual")
        if addressing not in ("path", "virtual"):
            raise OriginRefused(f"addressing is path or virtual, not {addressing!r}")
        # A certificate for *.s3.region.amazonaws.com is none for a name with more dots.
        virtual = addressing == "virtual" and "." not in self._bucket
        parts = urlsplit(endpoint)
        self._host = f"{self._bucket}.{parts.netloc}" if virtual else parts.netloc
        self._root = f"{parts.scheme}://{self._host}"
        self._base = encoded_path(parts.path + ("/" if virtual else f"/{self._bucket}/"))
        self._signer = Signer(
            location.access_key, location.secret_key, region, location.options.get("session_token", "")
        )
        self.name = f"{location.scheme}://{self._bucket}/{self._prefix} at {parts.netloc}"
        self.loses: frozenset[str] = frozenset({"tags"} if location.options.get("tags") == "no" else ())
        self._transport = Transport(self.name, egress, timeouts)

    async def head(self, key: str) -> OriginObject:
        tags = asyncio.ensure_future(self._tags(key))
        try:
            async with self._request("HEAD", key, headers=self._own_head) as answer:
                if answer.status != 200:
                    raise self._transport.failure(answer)
                headers = lowered(answer.headers)
            return self._object(key, headers, await tags)
        finally:
            tags.cancel()
            await asyncio.gather(tags, return_exceptions=True)

    async def read(self, key: str, start: int, stop: int, *, size: int, etag: str) -> AsyncIterator[Buffer]:
        if start == stop:
            return
        headers = {"If-Match": f'"{etag}"', "Range": f"bytes={start}-{stop - 1}", **self._own_get}
        async with self._request("GET", key, headers=headers) as answer:
            if answer.status not in (200, 206):
                raise await self._failure(answer)
            self._transport.check_range(answer, start, stop, size)
            if (given := self._etag(lowered(answer.headers))) != etag:
                raise OriginBroken(f"{self.name} answers with version {given!r}, not with {etag!r}")
            async for piece in self._transport.pieces(answer, stop - start):
                yield piece

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> OriginPage:
        query = {
            "list-type": "2",
            "encoding-type": "url",
            "prefix": self._prefix + prefix,
            "max-keys": str(min(limit, 1000)),
        }
        if delimiter:
            query["delimiter"] = delimiter
        if after.startswith(_GOES_ON):
            query["continuation-token"] = after[len(_GOES_ON) :]
        elif after:
            common = rolled_up(after, prefix, delimiter)
            query["start-after"] = self._prefix + (common + LAST if common else after)
        async with self._request("GET", None, query=query) as answer:
            if answer.status != 200:
                raise await self._failure(answer)
            page = _parsed(self.name, await self._transport.document(answer, _MAX_PAGE), "ListBucketResult")
        return self._page(page, after)

    async def put(self, key: str, pieces: AsyncIterator[Buffer], size: int, attributes: Attributes) -> Written:
        headers = self._put_headers(attributes)
        if size > WHOLE_BYTES:
            return await self._put_parts(key, pieces, size, headers)
        feed = _Feed(pieces, size, self._own_crc)
        with feed.its_own_failure():
            async with self._request(
                "PUT", key, headers={**headers, "Content-Length": str(size)}, body=feed.all() if size else None
            ) as answer:
                if answer.status != 200:
                    raise await self._failure(answer)
                told = lowered(answer.headers)
        if not size:
            await feed.end()
        etag = self._etag(told)
        return Written(etag, self._verified(etag, feed.md5.hexdigest(), self._own_told_crc(told), feed))

    async def delete(self, key: str) -> None:
        async with self._request("DELETE", key) as answer:
            if answer.status in (200, 204):
                return
            code, failure = await self._error(answer)
        if code != "NoSuchKey":
            raise failure

    async def close(self) -> None:
        await self._transport.close()

    # -- reading ---------------------------------------------------------------------------------------------------

    async def _tags(self, key: str) -> dict[str, str]:
        if "tags" in self.loses:
            return {}
        async with self._request("GET", key, query={"tagging": ""}) as answer:
            if answer.status in (405, 501):  # a store without tags says so once
                self.loses |= {"tags"}
                return {}
            if answer.status != 200:
                failure = await self._failure(answer)
                if isinstance(failure, OriginRefused):
                    raise OriginRefused(f"{failure} (its tags were asked for; the option tags=no does without)")
                raise failure
            tagging = _parsed(self.name, await self._transport.document(answer, _MAX_DOCUMENT), "Tagging")
        return {_text(tag, "Key"): _text(tag, "Value") for tag in tagging.iter() if _name(tag) == "Tag"}

    def _object(self, key: str, headers: Mapping[str, str], tags: Mapping[str, str]) -> OriginObject:
        length = headers.get("content-length", "")
        if not length.isdigit():
            raise OriginBroken(f"{self.name} does not tell the size of {key!r}")
        etag, meta = self._etag(headers), self._own_prefix + "meta-"
        algorithm, kind, checksum = self._own_checksum(headers)
        return OriginObject(
            key=key,
            size=int(length),
            etag=etag,
            modified_ns=http_time_ns(headers.get("last-modified")),
            attributes=Attributes(
                content_type=headers.get("content-type", ""),
                headers={member: headers[name] for member, name in self._own_headers.items() if name in headers},
                metadata={name[len(meta) :]: value for name, value in headers.items() if name.startswith(meta)},
                tags=tags,
                storage_class=headers.get(self._own_prefix + "storage-class", ""),
            ),
            checksum_algorithm=algorithm,
            checksum_type=kind,
            checksum=checksum,
            md5=self._own_etag_is_md5(etag, headers),
        )

    def _own_checksum(self, headers: Mapping[str, str]) -> tuple[str, str, str]:
        """A checksum that an object is told to have: algorithm, type, value."""
        for name, value in headers.items():
            if _is_checksum(name):
                kind = headers.get("x-amz-checksum-type") or ("COMPOSITE" if "-" in value else "FULL_OBJECT")
                return name[len(_CHECKSUM) :].upper(), kind, value
        return "", "", ""

    def _own_etag_is_md5(self, etag: str, headers: Mapping[str, str]) -> bool:
        encrypted = (
            headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
            or "x-amz-server-side-encryption-customer-algorithm" in headers
        )
        return _is_md5(etag) and not encrypted

    def _etag(self, headers: Mapping[str, str]) -> str:
        etag = headers.get("etag", "").removeprefix("W/").strip('"')
        if not etag:
            raise OriginBroken(f"{self.name} answers without an ETag")
        return etag

    def _page(self, page: Element, after: str) -> OriginPage:
        decode = unquote_plus if _text(page, "EncodingType") == "url" else str
        strip = len(self._prefix)
        entries: dict[str, OriginSummary] = {}
        prefixes: set[str] = set()
        try:
            for element in page:
                if _name(element) == "Contents":
                    key = decode(_text(element, "Key"))[strip:]
                    entries[key] = OriginSummary(
                        key=key,
                        size=int(_text(element, "Size")),
                        etag=_text(element, "ETag").strip('"'),
                        modified_ns=_time_ns(_text(element, "LastModified")),
                        storage_class=_text(element, "StorageClass"),
                    )
                elif _name(element) == "CommonPrefixes":
                    prefixes.add(decode(_text(element, "Prefix"))[strip:])
        except ValueError as error:
            raise OriginBroken(f"{self.name} lists what is no object: {error}") from error
        token = _text(page, "NextContinuationToken")
        going_on = _GOES_ON + token if token else max([*entries, *prefixes], default="")
        more = _text(page, "IsTruncated") == "true"
        if more and (going_on == after or not going_on):
            raise OriginBroken(f"{self.name} lists the same again and again")
        begun = "" if after.startswith(_GOES_ON) else after
        return OriginPage(
            # A key of "" is the folder's own; it has no name here.
            entries=tuple(entry for key, entry in sorted(entries.items()) if key > begun),
            prefixes=tuple(prefix for prefix in sorted(prefixes) if prefix > begun),
            after=going_on if more else "",
        )

    # -- writing ---------------------------------------------------------------------------------------------------

    def _put_headers(self, attributes: Attributes) -> dict[str, str]:
        own, named = self._own_prefix, self._own_headers
        headers = {named[member]: value for member, value in attributes.headers.items() if member in named}
        headers |= {f"{own}meta-{name}": value for name, value in attributes.metadata.items()}
        if attributes.content_type:
            headers["content-type"] = attributes.content_type
        if attributes.tags and "tags" not in self.loses:
            headers[own + "tagging"] = encoded_query(attributes.tags.items())
        if self._own_stores(attributes.storage_class):
            headers[own + "storage-class"] = attributes.storage_class
        return headers

    def _own_stores(self, storage_class: str) -> bool:
        """Whether there is such a storage class, beside the one that goes without saying."""
        return storage_class not in ("", "STANDARD")

    async def _put_parts(self, key: str, pieces: AsyncIterator[Buffer], size: int, headers: dict[str, str]) -> Written:
        part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
        async with self._request("POST", key, query={"uploads": ""}, headers=headers) as answer:
            if answer.status != 200:
                raise await self._failure(answer)
            begun = _parsed(
                self.name, await self._transport.document(answer, _MAX_DOCUMENT), "InitiateMultipartUploadResult"
            )
        upload = _text(begun, "UploadId")
        feed = _Feed(pieces, size, self._own_crc)
        try:
            digests, etags = await self._send_parts(key, upload, feed, size, part_bytes)
            etag, checksum = await self._complete(key, upload, etags)
        except BaseException:
            # What was sent costs until somebody aborts it. A store that does not answer now has rules for that.
            with contextlib.suppress(OriginError, TimeoutError):
                async with asyncio.timeout(_ABORT_TIMEOUT_S):
                    await self._abort(key, upload)
            raise
        expected = f"{md5(b''.join(digests)).hexdigest()}-{len(digests)}"
        return Written(etag, self._verified(etag, expected, checksum, feed))

    async def _send_parts(
        self, key: str, upload: str, feed: _Feed, size: int, part_bytes: int
    ) -> tuple[Sequence[bytes], Sequence[str]]:
        """MD5s and ETags of all parts, a few of which are on their way at once."""
        at_once = max(1, PARTS_BYTES // part_bytes)
        digests: list[bytes] = []
        sent: list[asyncio.Task[str]] = []
        try:
            for start in range(0, size, part_bytes):
                if len(sent) >= at_once:
                    await sent[-at_once]
                part = await feed.part(min(part_bytes, size - start))
                digests.append((await asyncio.to_thread(md5, part)).digest())
                sent.append(asyncio.ensure_future(self._send_part(key, upload, len(digests), part, digests[-1])))
            await feed.end()
            return digests, [await task for task in sent]
        finally:
            for task in sent:
                task.cancel()
            await asyncio.gather(*sent, return_exceptions=True)

    async def _send_part(self, key: str, upload: str, number: int, part: Buffer, digest: bytes) -> str:
        query = {"partNumber": str(number), "uploadId": upload}
        headers = {"Content-Length": str(len(part)), "content-md5": b64encode(digest).decode()}

        async def send() -> str:
            async with self._request("PUT", key, query=query, headers=headers, body=_segments(part)) as answer:
                if answer.status != 200:
                    raise await self._failure(answer)
                return self._etag(lowered(answer.headers))

        return await _tried(send)

    async def _complete(self, key: str, upload: str, etags: Sequence[str]) -> tuple[str, str]:
        """The object's ETag and its CRC, which may be ""."""
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{escape(etag)}&quot;</ETag></Part>"
            for number, etag in enumerate(etags, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()

        async def complete() -> tuple[str, str]:
            async with self._request(
                "POST", key, query={"uploadId": upload}, body=body, read_timeout_s=_SETTLE_TIMEOUT_S
            ) as answer:
                if answer.status != 200:
                    raise await self._failure(answer)
                document = await self._transport.document(answer, _MAX_DOCUMENT)
                told = lowered(answer.headers)
            done = _parsed(self.name, document, "CompleteMultipartUploadResult")
            return self._etag({"etag": _text(done, "ETag")}), self._own_told_crc(told, done)

        return await _tried(complete)

    async def _abort(self, key: str, upload: str) -> None:
        async with self._request("DELETE", key, query={"uploadId": upload}):
            pass

    def _verified(self, etag: str, expected_etag: str, checksum: str, feed: _Feed) -> bool:
        if checksum and checksum != (computed := feed.checksum):
            told = f"{self._own_crc.name} {checksum}"
            raise OriginBroken(f"{self.name} has bytes of {told} where {computed} was written")
        return etag == expected_etag or bool(checksum)

    def _own_told_crc(self, headers: Mapping[str, str], done: Element | None = None) -> str:
        """The CRC of a whole object that was written, as the answer tells it; "" where it does not."""
        if done is None:
            return headers.get(_CHECKSUM + "crc64nvme", "")
        return _text(done, "ChecksumCRC64NVME") if _text(done, "ChecksumType") != "COMPOSITE" else ""

    # -- requests --------------------------------------------------------------------------------------------------

    def _request(
        self,
        method: str,
        key: str | None,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: AsyncIterator[Buffer] | bytes | None = None,
        read_timeout_s: float | None = None,
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """The answer for a key, or for the bucket where that is None."""
        if key == "":
            raise OriginRefused("an object without a name is none")
        path = self._base + (self._own_path(self._prefix + key) if key is not None else "")
        parameters = encoded_query((query or {}).items())
        signed = self._own_signed(method, path, parameters, headers or {})
        url = f"{self._root}{path}?{parameters}" if parameters else self._root + path
        return self._transport.request(method, url, signed, body=body, read_timeout_s=read_timeout_s)

    def _own_path(self, name: str) -> str:
        """The name of an object, encoded. Raises OriginRefused where it can be none."""
        return encoded_path(name)

    def _own_signed(self, method: str, path: str, query: str, headers: Mapping[str, str]) -> dict[str, str]:
        """`headers` and those that authenticate the request; path and query are encoded."""
        return self._signer.signed(method, self._host, path, query, headers)

    async def _failure(self, answer: aiohttp.ClientResponse) -> OriginError:
        """What an answer that is no success means."""
        return (await self._error(answer))[1]

    async def _error(self, answer: aiohttp.ClientResponse) -> tuple[str, OriginError]:
        """S3's code for it, "" where there is none, and what it means."""
        document = await self._transport.document(answer, _MAX_DOCUMENT)
        try:
            code, told = _said(fromstring(document))
        except _NO_XML:
            code, told = "", document[:_SHOWN].decode("utf-8", "replace")
        failure = self._transport.failure(answer, told)
        if code in _PASSING and not isinstance(failure, OriginUnavailable):
            return code, OriginUnavailable(str(failure))
        return code, failure


class _Feed:
    """Pieces of a body on their way: counted, hashed, and told apart from the request when they fail by themselves."""

    def __init__(self, pieces: AsyncIterator[Buffer], size: int, crc: Crc) -> None:
        self._pieces = pieces
        self._left = size
        self._over: bytes = b""  # of a piece, what did not fit into the last part
        self._compute = crc
        self._crc = 0
        self._failed: BaseException | None = None
        self.md5 = md5()

    @property
    def checksum(self) -> str:
        """The CRC of what went out, in base64."""
        return b64encode(self._crc.to_bytes(self._compute.length, "big")).decode()

    async def all(self) -> AsyncIterator[bytes]:
        """Everything, MD5 included."""
        try:
            while self._left:
                # A copy: what a connection has not sent yet when the next piece comes may be overwritten by it.
                piece = bytes(await self._next())
                if len(piece) <= _AT_ONCE:
                    self._digest(piece)
                else:
                    await asyncio.to_thread(self._digest, piece)
                for segment in range(0, len(piece), _SEGMENT):
                    yield piece[segment : segment + _SEGMENT]
            await self.end()
        except Exception as error:
            self._failed = error
            raise

    async def part(self, length: int) -> memoryview:
        """The next `length` bytes, without their MD5."""
        part = bytearray()
        while len(part) < length:
            piece: Buffer = self._over or await self._next()
            self._over = b""
            if len(piece) > (room := length - len(part)):
                self._over = bytes(piece[room:])
                piece = piece[:room]
            part += piece
        self._crc = await asyncio.to_thread(self._compute.over, part, self._crc)
        return memoryview(part)

    async def end(self) -> None:
        """Raises ValueError where there is more."""
        async for piece in self._pieces:
            if len(piece):
                raise ValueError("more bytes are given than were announced")

    @contextlib.contextmanager
    def its_own_failure(self) -> Iterator[None]:
        """Raises what the pieces raised in place of what the request made of it."""
        try:
            yield
        except OriginError:
            if self._failed is not None:
                raise self._failed from None
            raise

    async def _next(self) -> Buffer:
        try:
            piece = await anext(self._pieces)
        except StopAsyncIteration:
            raise ValueError(f"{self._left} bytes fewer are given than were announced") from None
        self._left -= len(piece)
        if self._left < 0:
            raise ValueError("more bytes are given than were announced")
        return piece

    def _digest(self, piece: bytes) -> None:
        self.md5.update(piece)
        self._crc = self._compute.over(piece, self._crc)


async def _tried(attempt: Callable[[], Awaitable[T]]) -> T:
    """What an attempt gives, of several while the origin is unavailable or makes no sense."""
    wait_s, longest_s = _BACK_OFF_S
    for _ in range(PART_TRIES - 1):
        try:
            return await attempt()
        except (OriginUnavailable, OriginBroken) as error:
            asked_s = error.retry_after_s if isinstance(error, OriginUnavailable) else 0.0
            await asyncio.sleep(min(longest_s, max(asked_s, random.uniform(0, wait_s))))
            wait_s *= 2
    return await attempt()


async def _segments(part: Buffer) -> AsyncIterator[Buffer]:
    view = memoryview(part)
    for start in range(0, len(view), _SEGMENT):
        yield view[start : start + _SEGMENT]


def _is_md5(etag: str) -> bool:
    return len(etag) == 32 and all(digit in "0123456789abcdef" for digit in etag)


def _is_checksum(name: str) -> bool:
    return name.startswith(_CHECKSUM) and name not in ("x-amz-checksum-type", "x-amz-checksum-mode")


# -- documents ---------------------------------------------------------------------------------------------------------


def _parsed(name: str, document: bytes, root: str) -> Element:
    """A document whose root element has that name.

    Raises:
        OriginBroken: it is another.
        OriginUnavailable, OriginRefused: it is an error, which S3 may send behind a status of 200.
    """
    try:
        parsed: Element = fromstring(document)
    except _NO_XML as error:
        raise OriginBroken(f"{name} answers with what is no {root}: {error}") from error
    if _name(parsed) == "Error":
        code, told = _said(parsed)
        raise OriginUnavailable(f"{name}: {told}") if code in _PASSING else OriginRefused(f"{name}: {told}")
    if _name(parsed) != root:
        raise OriginBroken(f"{name} answers with a {_name(parsed)}, not with a {root}")
    return parsed


_NO_XML = (ParseError, DefusedXmlException, ValueError)

# Codes that pass, whatever the status that they come with.
_PASSING = frozenset(
    {"InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown", "ThrottlingException"}
)


def _said(error: Element) -> tuple[str, str]:
    """The code of an error, and code and message in one line. What else is in it may be somebody's secret."""
    code = _text(error, "Code")
    return code, " ".join(f"{code}: {_text(error, 'Message')}".split())[:_SHOWN]


def _name(element: Element) -> str:
    return element.tag.rpartition("}")[2]


def _text(element: Element, name: str) -> str:
    """The text of a child, "" where there is none."""
    return next((child.text or "" for child in element if _name(child) == name), "")


def _time_ns(text: str) -> int:
    """Unix nanoseconds of a time as S3's documents write it, in steps of a microsecond. Raises ValueError."""
    return round(datetime.fromisoformat(text).timestamp() * 1e6) * 1000
