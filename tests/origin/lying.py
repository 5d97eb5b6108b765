"""An S3 server that can be told to be slow, broken, untrue or gone: what an origin does to those who rely on it.

It knows objects in one bucket (GET with ranges and conditions, HEAD, PUT, DELETE, multipart uploads, their tags) and
ListObjectsV2, over plain HTTP on loopback; buckets are not made and signatures not looked at. Whatever is not a `Fault`
is as S3 does it, and what S3 does beyond that is answered 501.

Within the event loop of a test:

    async with Lying() as server:
        server.put("key", b"data")
        server.faults.append(Fault(cut=3))      # of the next request for an object, and only of that
        server.always = Fault(slow_s=1)         # of every one that has none of its own
        await server.go_away()
        await server.come_back()

Beside a test, with threads or processes as its clients (`server.endpoint` is the URL, `server.bucket` the bucket):

    with running_lying() as server:
        server.put(...)
        server.call(server.go_away)
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from email.utils import formatdate
from random import Random
from urllib.parse import parse_qsl, quote, unquote
from xml.sax.saxutils import escape

BUCKET = "origin"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong with the answer to a request for an object; the fields go together as far as they make sense. Its
    tags are always told.

    Attributes:
        methods: Requests that it is about.
        probability: That it happens at all, by `Lying.random`.
        status: Answer so, with S3's document for it; 0: as it is.
        retry_after: What an answer with `status` says of when to come again.
        slow_s: Before the answer begins.
        silent: No answer ever begins.
        drip: Bytes of the body at a time, and seconds between them.
        cut: The connection is closed after so many bytes of the body.
        stall: Nothing comes after so many bytes of the body, and the connection stays open.
        shorter: The answer, of its own accord and consistently, has so many bytes less than asked for.
        longer: It has so many more, zeros behind the range, and says so.
        unframed: The body is ended by the end of the connection: neither its length nor its end can be told.
        shift: The bytes are of a range that begins so many later.
        content_range: What it says of the range, whatever it is.
        etag: What it says of the version, whatever it is.
        change: After so many bytes of the body the object is overwritten with this, and the connection closed.
        whole: The range and its conditions are ignored.
    """

    methods: frozenset[str] = frozenset({"GET"})
    probability: float = 1.0
    status: int = 0
    retry_after: str = ""
    slow_s: float = 0.0
    silent: bool = False
    drip: tuple[int, float] | None = None
    cut: int | None = None
    stall: int | None = None
    shorter: int = 0
    longer: int = 0
    unframed: bool = False
    shift: int = 0
    content_range: str = ""
    etag: str = ""
    change: tuple[int, bytes] | None = None
    whole: bool = False


TRUE = Fault()


@dataclass(frozen=True)
class Stored:
    """An object. `headers`, in lower case, are those of answers beside the ones that S3 makes up."""

    data: bytes
    etag: str
    modified_s: int
    headers: Mapping[str, str]
    tags: Mapping[str, str]


@dataclass
class Request:
    """As it came. `sent` is how many bytes of a body went out in answer."""

    method: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    sent: int = 0


@dataclass
class _Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Lying:
    """Attributes:
    objects: By key; change it as you like.
    faults: Of the next requests for objects, one each, in order.
    always: Of those that have none of their own.
    requests: All that came.
    random: Of what happens with a probability.
    """

    def __init__(self, seed: int = 0) -> None:
        self.bucket = BUCKET
        self.objects: dict[str, Stored] = {}
        self.faults: deque[Fault] = deque()
        self.always = TRUE
        self.requests: list[Request] = []
        self.random = Random(seed)
        self.port = 0
        self._uploads: dict[str, tuple[Request, dict[int, bytes]]] = {}
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def put(
        self, key: str, data: bytes, *, headers: Mapping[str, str] | None = None, tags: Mapping[str, str] | None = None
    ) -> Stored:
        """Put an object there without a request. `headers`: Content-Type, x-amz-meta-* and the like."""
        lower = {name.lower(): value for name, value in (headers or {}).items()}
        stored = Stored(data, hashlib.md5(data).hexdigest(), int(time.time()), lower, tags or {})
        self.objects[key] = stored
        return stored

    def asked(self, method: str) -> int:
        """How many requests of that method came."""
        return sum(request.method == method for request in self.requests)

    @property
    def connections(self) -> int:
        return len(self._connections)

    async def __aenter__(self) -> Lying:
        self._loop = asyncio.get_running_loop()
        await self.come_back()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.go_away()

    async def come_back(self) -> None:
        """Listen, where it did before."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def go_away(self) -> None:
        """Close the port, and cut whatever is under way."""
        assert self._server is not None
        self._server.close()
        ends = list(self._connections)
        for task, writer in self._connections.items():
            writer.transport.abort()
            task.cancel()
        if ends:
            await asyncio.wait(ends)

    def call(self, what: Callable[[], Awaitable[None]]) -> None:
        """Do something of the above from another thread."""
        assert self._loop is not None

        async def done() -> None:
            await what()

        asyncio.run_coroutine_threadsafe(done(), self._loop).result(30)

    # -- HTTP ------------------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client, or the test, has had enough
        finally:
            del self._connections[task]
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer. Returns whether the connection goes on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        method, target, _ = line.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)}
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        path, _, query = target.partition("?")
        bucket, _, key = unquote(path).removeprefix("/").partition("/")
        request = Request(method, key, dict(parse_qsl(query, keep_blank_values=True)), headers, body)
        self.requests.append(request)
        fault = self._fault(request)
        if fault.silent:
            await asyncio.Event().wait()
        if fault.slow_s:
            await asyncio.sleep(fault.slow_s)
        if fault.status:
            answer = _error(fault.status, "SlowDown" if fault.status == 503 else "InternalError")
            if fault.retry_after:
                answer.headers["Retry-After"] = fault.retry_after
        elif bucket != self.bucket:
            answer = _error(404, "NoSuchBucket")
        elif "transfer-encoding" in headers or "aws-chunked" in headers.get("content-encoding", ""):
            answer = _error(501, "NotImplemented")
        else:
            answer = self._answer(request, fault)
        return await self._send(writer, request, answer, fault)

    def _fault(self, request: Request) -> Fault:
        if not request.key or "tagging" in request.query:
            return TRUE
        fault = self.always
        if self.faults and request.method in self.faults[0].methods:
            fault = self.faults.popleft()
        happens = request.method in fault.methods and self.random.random() < fault.probability
        return fault if happens else TRUE

    async def _send(self, writer: asyncio.StreamWriter, request: Request, answer: _Answer, fault: Fault) -> bool:
        body = b"" if request.method == "HEAD" or answer.status in (204, 304) else answer.body
        headers = {"Date": formatdate(usegmt=True), "Server": "lying", "x-amz-request-id": str(len(self.requests))}
        headers |= answer.headers
        if fault.unframed:
            headers["Connection"] = "close"
        elif answer.status != 204:
            headers["Content-Length"] = str(len(answer.body))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {answer.status} x\r\n{lines}\r\n".encode("latin-1"))
        if request.method == "HEAD":
            await writer.drain()
            return not fault.unframed
        ends = [at for at in (fault.cut, fault.stall, fault.change[0] if fault.change else None) if at is not None]
        size, pause_s = fault.drip or (64 * 1024, 0.0)
        body = body[: min(ends)] if ends else body
        for at in range(0, len(body), size):
            if at and pause_s:
                await asyncio.sleep(pause_s)
            writer.write(body[at : at + size])
            request.sent += len(body[at : at + size])
            await writer.drain()
        await writer.drain()
        if fault.change:
            self.put(request.key, fault.change[1])
        if fault.stall is not None:
            await asyncio.Event().wait()
        return not ends and not fault.unframed

    # -- S3 --------------------------------------------------------------------------------------------------------

    def _answer(self, request: Request, fault: Fault) -> _Answer:
        key, query = request.key, request.query
        match request.method:
            case "GET" if not key and query.get("list-type") == "2":
                return self._list(query)
            case "GET" if key and "tagging" in query:
                return self._tagging(key)
            case "GET" | "HEAD" if key and not query.keys() & {"acl", "attributes", "torrent"}:
                return self._get(request, fault)
            case "PUT" if key and "uploadId" in query:
                self._uploads[query["uploadId"]][1][int(query["partNumber"])] = request.body
                return _Answer(200, {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})
            case "PUT" if key and not query.keys() & {"tagging", "acl"} and "x-amz-copy-source" not in request.headers:
                stored = self._store(request, request.body)
                return _Answer(200, {"ETag": f'"{stored.etag}"'})
            case "POST" if key and "uploads" in query:
                upload_id = f"upload-{len(self.requests)}"
                self._uploads[upload_id] = request, {}
                named = f"<Bucket>{BUCKET}</Bucket><Key>{escape(key)}</Key><UploadId>{upload_id}</UploadId>"
                return _document("InitiateMultipartUploadResult", named)
            case "POST" if key and "uploadId" in query:
                return self._complete(request)
            case "DELETE" if key and "uploadId" in query:
                self._uploads.pop(query["uploadId"], None)
                return _Answer(204)
            case "DELETE" if key:
                self.objects.pop(key, None)
                return _Answer(204)
            case _:
                return _error(501, "NotImplemented")

    def _get(self, request: Request, fault: Fault) -> _Answer:
        stored = self.objects.get(request.key)
        if stored is None:
            return _error(404, "NoSuchKey")
        headers = {
            "ETag": f'"{fault.etag or stored.etag}"',
            "Last-Modified": formatdate(stored.modified_s, usegmt=True),
            "Accept-Ranges": "bytes",
            "content-type": "binary/octet-stream",
            **stored.headers,
        }
        if stored.tags:
            headers["x-amz-tagging-count"] = str(len(stored.tags))
        size = len(stored.data)
        if fault.whole:
            return _Answer(200, headers, stored.data)
        conditions = request.headers
        if not _matches(conditions.get("if-match", "*"), stored.etag):
            return _error(412, "PreconditionFailed")
        if "if-none-match" in conditions and _matches(conditions["if-none-match"], stored.etag):
            return _Answer(304, headers)
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", conditions.get("range", ""))
        start, stop = 0, size
        if asked is not None and asked.group(1):
            start, stop = int(asked[1]), min(size, int(asked[2]) + 1) if asked[2] else size
        elif asked is not None and asked[2]:
            start = max(0, size - int(asked[2]))
        if asked is not None and start >= stop:
            return _error(416, "InvalidRange")
        start, stop = start + fault.shift, max(start, stop - fault.shorter) + fault.shift
        body = stored.data[start:stop] + bytes(max(0, stop - size)) + bytes(fault.longer)
        if asked is None:
            return _Answer(200, headers, body)
        said = fault.content_range or f"bytes {start}-{start + len(body) - 1}/{size}"
        return _Answer(206, headers | {"Content-Range": said}, body)

    def _store(self, request: Request, data: bytes) -> Stored:
        kept = (
            "content-type",
            "cache-control",
            "content-disposition",
            "content-encoding",
            "content-language",
            "expires",
        )
        headers = {
            name: value for name, value in request.headers.items() if name in kept or name.startswith("x-amz-meta-")
        }
        return self.put(
            request.key, data, headers=headers, tags=dict(parse_qsl(request.headers.get("x-amz-tagging", "")))
        )

    def _complete(self, request: Request) -> _Answer:
        begun, parts = self._uploads.pop(request.query["uploadId"])
        numbers = [int(number) for number in re.findall(r"<PartNumber>(\d+)</PartNumber>", request.body.decode())]
        data = [parts[number] for number in numbers]
        digests = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in data)).hexdigest()
        stored = self._store(begun, b"".join(data))
        stored = Stored(stored.data, f"{digests}-{len(data)}", stored.modified_s, stored.headers, stored.tags)
        self.objects[request.key] = stored
        told = f"<Key>{escape(request.key)}</Key><ETag>&quot;{stored.etag}&quot;</ETag>"
        return _document("CompleteMultipartUploadResult", f"<Bucket>{BUCKET}</Bucket>{told}")

    def _tagging(self, key: str) -> _Answer:
        stored = self.objects.get(key)
        if stored is None:
            return _error(404, "NoSuchKey")
        tags = "".join(
            f"<Tag><Key>{escape(name)}</Key><Value>{escape(value)}</Value></Tag>" for name, value in stored.tags.items()
        )
        return _document("Tagging", f"<TagSet>{tags}</TagSet>")

    def _list(self, query: Mapping[str, str]) -> _Answer:
        """https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html"""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        limit = min(1000, int(query.get("max-keys", "1000")))
        token = query.get("continuation-token")
        after = base64.urlsafe_b64decode(token).decode() if token else query.get("start-after", "")
        encode = quote if query.get("encoding-type") == "url" else escape
        entries: list[str] = []
        more, last = False, ""
        rolled: set[str] = set()
        for key in sorted(self.objects):
            if not key.startswith(prefix) or key <= after:
                continue
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            common = key[: cut + len(delimiter)] if cut >= 0 else ""
            if common and (common in rolled or (token and common == after)):
                continue
            if len(entries) == limit:
                more = True
                break
            last = common or key
            if common:
                rolled.add(common)
                entries.append(f"<CommonPrefixes><Prefix>{encode(common)}</Prefix></CommonPrefixes>")
                continue
            stored = self.objects[key]
            modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stored.modified_s))
            entries.append(
                f"<Contents><Key>{encode(key)}</Key><LastModified>{modified}</LastModified>"
                f"<ETag>&quot;{stored.etag}&quot;</ETag><Size>{len(stored.data)}</Size>"
                "<StorageClass>STANDARD</StorageClass></Contents>"
            )
        told = f"<Name>{BUCKET}</Name><Prefix>{encode(prefix)}</Prefix><MaxKeys>{limit}</MaxKeys>"
        told += f"<KeyCount>{len(entries)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
        if delimiter:
            told += f"<Delimiter>{encode(delimiter)}</Delimiter>"
        if "encoding-type" in query:
            told += "<EncodingType>url</EncodingType>"
        if more:
            told += f"<NextContinuationToken>{base64.urlsafe_b64encode(last.encode()).decode()}</NextContinuationToken>"
        return _document("ListBucketResult", told + "".join(entries))


def _matches(condition: str, etag: str) -> bool:
    return condition == "*" or etag in [one.strip().strip('"') for one in condition.split(",")]


def _document(name: str, content: str) -> _Answer:
    namespace = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"' if name != "Error" else ""
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name}{namespace}>{content}</{name}>'
    return _Answer(200, {"Content-Type": "application/xml"}, text.encode())


def _error(status: int, code: str) -> _Answer:
    answer = _document("Error", f"<Code>{code}</Code><Message>{code}</Message>")
    answer.status = status
    return answer


@contextlib.contextmanager
def running_lying(seed: int = 0) -> Iterator[Lying]:
    """A server in a thread of its own, for clients that are anywhere."""
    server = Lying(seed)
    done = asyncio.Event()
    listening: Future[asyncio.AbstractEventLoop] = Future()

    async def serve() -> None:
        try:
            async with server:
                listening.set_result(asyncio.get_running_loop())
                await done.wait()
        except OSError as error:
            listening.set_exception(error)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="lying")
    thread.start()
    try:
        loop = listening.result(30)
        try:
            yield server
        finally:
            loop.call_soon_threadsafe(done.set)
    finally:
        thread.join()
