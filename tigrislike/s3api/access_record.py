"""A line of a bucket's server access log, in S3's format. Pure code.

A line is 27 fields with a space between them; `-` is what does not apply or is not known. Time is in brackets; request
line, referrer and user agent are in quotes. What a client sent is written percent-encoded wherever it could break that
up: quotes, spaces, line ends, everything that is not printable ASCII. (S3's own are not, so that its lines cannot
always be told apart.) Signatures and session tokens are left out, as in the node's own access log.

Source: S3 User Guide, "Amazon S3 server access log format".
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from tigrislike.logs import Record, redacted
from tigrislike.s3api.request import MAX_KEY_BYTES

_OPERATIONS: Final = {
    "AbortMultipartUpload": "DELETE.UPLOAD",
    "CompleteMultipartUpload": "POST.UPLOAD",
    "CopyObject": "COPY.OBJECT",
    "CreateMultipartUpload": "POST.UPLOADS",
    "DeleteBucketTagging": "DELETE.TAGGING",
    "DeleteObjectTagging": "DELETE.OBJECT_TAGGING",
    "DeleteObjects": "POST.MULTI_OBJECT_DELETE",
    "GetBucketAccelerateConfiguration": "GET.ACCELERATE",
    "GetBucketLocation": "GET.LOCATION",
    "GetBucketLogging": "GET.LOGGING_STATUS",
    "GetBucketTagging": "GET.TAGGING",
    "GetBucketVersioning": "GET.VERSIONING",
    "GetObjectAttributes": "GET.OBJECT_ATTRIBUTES",
    "GetObjectTagging": "GET.OBJECT_TAGGING",
    "ListMultipartUploads": "GET.UPLOADS",
    "ListObjectVersions": "GET.BUCKETVERSIONS",
    "ListParts": "GET.UPLOAD",
    "PutBucketAccelerateConfiguration": "PUT.ACCELERATE",
    "PutBucketLogging": "PUT.LOGGING_STATUS",
    "PutBucketTagging": "PUT.TAGGING",
    "PutBucketVersioning": "PUT.VERSIONING",
    "PutObjectTagging": "PUT.OBJECT_TAGGING",
    "UploadPart": "PUT.PART",
    "UploadPartCopy": "COPY.PART",
}
"""What S3 calls operations that their method and OBJECT or BUCKET do not name."""

_PRINTABLE: Final = "".join(map(chr, range(0x21, 0x7F)))
_OF_URI: Final = _PRINTABLE.replace('"', "")
_OF_AGENT: Final = _OF_URI + " "
_OF_KEY: Final = "/-._~!*'()"
_MOST_OF_HEADER: Final = 2048
"""Characters of a referrer or user agent: a line stays short whatever is sent."""


class Part(NamedTuple):
    """What one request did to another object than the one that it addresses, and is told in a line of its own: a key
    deleted among others, the source of a copy."""

    bucket: str
    operation: str
    key: str
    version_id: str
    status: int
    error: str = ""


class Facts(NamedTuple):
    """What the front door knows of a request to a bucket beyond its `Record`.

    `requester` is a canonical id, "" for anybody; `signed` is ``AuthHeader``, ``QueryString``, or "" for a request that
    bears no signature; `tls` names version and cipher suite. `object_bytes` and `turn_around_ns` are -1 where there are
    none. `method` is S3's where the request itself has another one, as one to the console has.
    """

    bucket: str
    requester: str
    key: str
    operation: str
    version_id: str
    object_bytes: int
    turn_around_ns: int
    referrer: str
    user_agent: str
    signed: str
    host: str
    tls: Sequence[str]
    http_version: str
    acl_required: bool
    method: str = ""


def line_of(facts: Facts, owner: str, record: Record) -> bytes:
    """The line of a request to a bucket of `owner` (a canonical id), with the newline that ends it."""
    _, _, method, path, query, status, sent, _, duration_ns, notes = record
    target = path.decode("latin-1") + ("?" + redacted(query) if query else "")
    uri = quote(f"{method} {target} HTTP/{facts.http_version}", safe=_OF_AGENT, encoding="latin-1")
    return _line(
        facts,
        owner,
        record,
        facts.bucket,
        operation_name(facts.operation, facts.method or method, bool(facts.key)),
        facts.key,
        f'"{uri}"',
        str(status),
        notes.get("error", ""),
        _number(sent),
        "-" if facts.object_bytes < 0 else str(facts.object_bytes),
        str(duration_ns // 1_000_000),
        "-" if facts.turn_around_ns < 0 else str(facts.turn_around_ns // 1_000_000),
        facts.version_id,
    )


def line_of_part(facts: Facts, owner: str, part: Part, record: Record) -> bytes:
    """The line of something else that a request did, in a bucket of `owner`."""
    return _line(
        facts,
        owner,
        record,
        part.bucket,
        part.operation,
        part.key,
        "-",
        str(part.status),
        part.error,
        "-",
        "-",
        "-",
        "-",
        part.version_id,
    )


def _line(
    facts: Facts,
    owner: str,
    record: Record,
    bucket: str,
    operation: str,
    key: str,
    uri: str,
    status: str,
    error: str,
    sent: str,
    size: str,
    total_ms: str,
    turn_around_ms: str,
    version_id: str,
) -> bytes:
    time_ns, client, _, _, _, _, _, _, duration_ns, notes = record
    fields: tuple[Any, ...] = (
        owner,
        bucket,
        time.strftime("[%d/%b/%Y:%H:%M:%S +0000]", time.gmtime((time_ns - duration_ns) // 1_000_000_000)),
        client.rpartition(":")[0],
        facts.requester,
        notes.get("request_id", ""),
        operation,
        quote(key.encode("utf-8", "surrogatepass")[:MAX_KEY_BYTES], safe=_OF_KEY),
        uri,
        status,
        error,
        sent,
        size,
        total_ms,
        turn_around_ms,
        _quoted(_address(facts.referrer), _OF_URI),
        _quoted(facts.user_agent, _OF_AGENT),
        quote(version_id[:_MOST_OF_HEADER], safe=_OF_KEY),
        "",  # host id: no x-amz-id-2 is sent
        "SigV4" if facts.signed else "",
        facts.tls[1] if facts.tls else "",
        facts.signed,
        quote(facts.host, safe=_OF_URI, encoding="latin-1"),
        facts.tls[0] if facts.tls else "",
        "",  # access point
        "Yes" if facts.acl_required else "",
        "",  # source region
    )
    return (" ".join([field or "-" for field in fields]) + "\n").encode()


def operation_name(operation: str, method: str, has_key: bool) -> str:
    """What S3's log calls an operation of its model, "" for what was refused before it was known to be one."""
    named = _OPERATIONS.get(operation)
    return f"REST.{named}" if named else f"REST.{method}.{'OBJECT' if has_key else _resource(operation)}"


def _resource(operation: str) -> str:
    """BUCKET, or the document of a bucket that an operation without a name of its own is about, in S3's manner."""
    for verb in ("Get", "Put", "Delete", "List"):
        if operation.startswith(f"{verb}Bucket") and not operation.endswith("Bucket"):
            words = re.sub("Configurations?$", "", operation.removeprefix(f"{verb}Bucket"))
            return re.sub("(?<!^)(?=[A-Z])", "_", words).upper()
    return "OBJECT" if operation == "PostObject" else "BUCKET"


def _number(value: int) -> str:
    return str(value) if value else "-"


def _address(url: str) -> str:
    """A URL without signatures in its query."""
    path, asked, query = url.partition("?")
    return path + asked + redacted(query.encode("latin-1")) if asked else url


def _quoted(text: str, safe: str) -> str:
    return f'"{quote(text[:_MOST_OF_HEADER], safe=safe, encoding="latin-1") or "-"}"'
