"""The log of requests to buckets: what a worker does for S3's server access logging.

Which buckets are logged is looked up every other second, not by requests, and what a request costs where none is, is
one look at an empty dictionary. A logged request is noted by the gateway while it knows what it is about, becomes a
line when it is over, and lies in memory until the lines of the last half second are appended to the node's spool, by a
thread. So that is what the death of a worker loses, and no more. What gathers in memory is bounded for each bucket;
lines that find no room, there or in the spool, are dropped, and their number is logged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from tigrislike.logs import Record
from tigrislike.metadata import Metadata
from tigrislike.metadata.records import Logging
from tigrislike.replication.log_spool import Spool
from tigrislike.s3api.access_record import Facts, Part, line_of, line_of_part
from tigrislike.s3api.errors import ERRORS
from tigrislike.s3api.operations.copies import parse_copy_source
from tigrislike.s3api.request import MAX_KEY_BYTES, Request, join_headers

log = logging.getLogger("tigrislike.s3api")

Headers = list[tuple[bytes, bytes]]

LOOK_S: Final = 2.0
"""How often a worker looks up which buckets are logged."""
FLUSH_S: Final = 0.5
MOST_PENDING_BYTES: Final = 4 * 1024 * 1024
"""Lines of one bucket that wait for the next flush."""

NOTE: Final = "server log"
"""Under which name a request's notes hold its `Noted`, until `ServerLog.take` takes it out."""

_MOST_DIGITS: Final = 18
"""Of a size that somebody says: a number of any length is nobody's object."""

_COPY_SOURCE: Final = "x-amz-copy-source"
_COPIES: Final = {"CopyObject": "REST.COPY.OBJECT_GET", "UploadPartCopy": "REST.COPY.PART_GET"}


class Noted:
    """A request that is to be logged, as far as it has come."""

    __slots__ = ("answered_ns", "headers", "parts", "request")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.answered_ns = 0
        self.headers: Headers = []
        self.parts: list[Part] = []

    def performed(self, operation: str, inp: Mapping[str, Any], output: Mapping[str, Any]) -> None:
        """Note what the request did to other objects than the one that it addresses."""
        if operation == "DeleteObjects":
            codes = {(each["Key"], each.get("VersionId", "")): each["Code"] for each in output.get("Errors", ())}
            for entry in inp["Delete"]["Objects"]:
                key, version_id = entry["Key"], entry.get("VersionId", "")
                if len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES:
                    continue  # no object has such a key
                code = codes.get((key, version_id), "")
                status = ERRORS[code][0] if code in ERRORS else 204
                self.parts.append(Part(self.request.bucket, "BATCH.DELETE.OBJECT", key, version_id, status, code))
        elif operation in _COPIES:
            bucket, key, version_id = parse_copy_source(inp["CopySource"])
            self.parts.append(Part(bucket, _COPIES[operation], key, version_id or "", 200))

    def answered(self, headers: Headers) -> None:
        """Note that the answer begins now, with these headers."""
        self.answered_ns = time.monotonic_ns()
        self.headers = headers


class ServerLog:
    """A worker's log of requests.

    Args:
        canonical: the canonical id of an account.
        count: told how many lines were ``taken`` or ``dropped``.

    Attributes:
        logged: the buckets that are logged, by name. It stays the same dictionary.
    """

    def __init__(
        self,
        metadata: Metadata,
        spool: Spool,
        canonical: Callable[[str], str],
        count: Callable[[str, int], None] = lambda result, lines: None,
    ) -> None:
        self.logged: dict[str, Logging] = {}
        self._count = count
        self._dropped = 0
        self._metadata = metadata
        self._spool = spool
        self._canonical = canonical
        self._pending: dict[tuple[bytes, str], bytearray] = {}
        self._writing: asyncio.Future[None] | None = None

    async def look(self) -> None:
        """Learn which buckets are logged. Raises EngineError."""
        found = await self._metadata.logged_buckets()
        self.logged.clear()
        self.logged.update((each.name, each) for each in found if not each.ended_ns)

    def note(self, request: Request) -> None:
        """Have a request logged, if it is one to log. What it addresses is known, and nothing else."""
        # The parameters of a presigned PUT may be headers, and these have no case.
        copies = _COPY_SOURCE in request.headers or _COPY_SOURCE in map(str.lower, request.query)
        if copies or request.bucket in self.logged:
            request.notes[NOTE] = Noted(request)

    def take(self, record: Record) -> None:
        """Take a request that is over. For the event loop; its notes hold no `Noted` any more."""
        noted = record[9].pop(NOTE, None)
        if noted is None:
            return
        facts = _facts(noted, record, self._canonical)
        if (into := self.logged.get(noted.request.bucket)) is not None:
            self._add(into, record, line_of(facts, self._canonical(into.owner), record))
        for part in noted.parts:
            if (into := self.logged.get(part.bucket)) is not None:
                self._add(into, record, line_of_part(facts, self._canonical(into.owner), part, record))

    def _add(self, into: Logging, record: Record, line: bytes) -> None:
        day = time.strftime("%Y-%m-%d", time.gmtime((record[0] - record[8]) // 1_000_000_000))
        pending = self._pending.setdefault((into.bucket, day), bytearray())
        if len(pending) + len(line) <= MOST_PENDING_BYTES:
            pending += line
        else:
            self._dropped += 1

    async def flush(self) -> None:
        """Append what has gathered to the spool. Where this is cancelled, what is under way is not, and the next one
        waits for it."""
        if self._writing is not None:
            await asyncio.shield(self._writing)
        if self._pending:
            pending, self._pending = self._pending, {}
            self._writing = asyncio.ensure_future(self._write(pending))
            await asyncio.shield(self._writing)

    async def _write(self, pending: Mapping[tuple[bytes, str], bytearray]) -> None:
        before, self._dropped = self._dropped, 0
        taken, dropped = await asyncio.to_thread(self._append, pending)
        dropped += before
        self._count("taken", taken)
        self._count("dropped", dropped)
        if dropped:
            log.warning("the log of requests: %d lines dropped, more came than is taken", dropped)

    def _append(self, pending: Mapping[tuple[bytes, str], bytearray]) -> tuple[int, int]:
        """How many lines found room, and how many did not."""
        taken = dropped = 0
        for (bucket, day), lines in pending.items():
            count = lines.count(b"\n")
            try:
                room = self._spool.append(bucket, day, lines)
            except OSError as error:
                log.warning("the log of requests cannot be written: %s", error)
                room = False
            taken, dropped = (taken + count, dropped) if room else (taken, dropped + count)
        return taken, dropped


def _facts(noted: Noted, record: Record, canonical: Callable[[str], str]) -> Facts:
    request, headers = noted.request, join_headers(noted.headers)
    _, _, _, _, _, status, _, _, duration_ns, notes = record
    identity, scope = request.identity, request.scope
    received = request.headers
    began_ns = time.monotonic_ns() - duration_ns
    bodiless = request.method in ("GET", "HEAD", "DELETE")
    signed = ""
    if "authorization" in received:
        signed = "AuthHeader"
    elif "X-Amz-Signature" in request.query:
        signed = "QueryString"
    return Facts(
        bucket=request.bucket,
        requester="" if identity.anonymous else canonical(identity.owner),
        key=request.key,
        operation=notes.get("operation", ""),
        version_id=headers.get("x-amz-version-id") or request.query.get("versionId", ""),
        object_bytes=_object_bytes(notes.get("operation", ""), status, headers, received),
        turn_around_ns=max(0, noted.answered_ns - began_ns) if bodiless and noted.answered_ns else -1,
        referrer=received.get("referer", ""),
        user_agent=received.get("user-agent", ""),
        signed=signed,
        host=request.host,
        tls=(scope.get("extensions") or {}).get("tls", ()),
        http_version=scope["http_version"],
        acl_required=identity.anonymous and status < 400,
        method=request.method,
    )


def _object_bytes(operation: str, status: int, answer: Mapping[str, str], received: Mapping[str, str]) -> int:
    """The size of the object that a request reads or writes as a whole, or a part of; -1: it does neither."""
    size = ""
    if operation in ("GetObject", "HeadObject") and status in (200, 206):
        size = answer.get("content-range", "").rpartition("/")[2] or answer.get("content-length", "")
    elif operation in ("PutObject", "UploadPart"):
        size = received.get("x-amz-decoded-content-length") or received.get("content-length", "")
    return int(size) if size.isdecimal() and len(size) <= _MOST_DIGITS else -1
