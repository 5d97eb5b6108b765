"""As much of Google Cloud Storage's XML API as a client of it asks for: objects in memory, in one bucket that anybody
may read, and that whoever signs with one service account's key may write.

Source: the reference of the XML API (Download, Upload and Delete an object, List objects, multipart uploads), and the
pages on transcoding, on hashes and ETags, and on self-signed JSON Web Tokens. Written after these and not after the
client, so that what the client makes of it is what is tested.

Run with the file of the account's public key (PEM), the account's name, and a port. `GET /` lists the `Authorization`
of every request that there has been, for tests.
"""

from __future__ import annotations

import binascii
import gzip
import hashlib
import itertools
import json
import re
import sys
import time
from base64 import b64decode, b64encode, urlsafe_b64decode
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from awscrt import checksums
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding

BUCKET = "elsewhere"
SCOPES = {f"https://www.googleapis.com/auth/{scope}" for scope in ("devstorage.full_control", "devstorage.read_write")}
MIN_PART_BYTES = 5 << 20
MAX_NAME_BYTES = 1024

_KEPT = ["Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Type"]
_XML = "<?xml version='1.0' encoding='UTF-8'?>"
_IS_XML = {"Content-Type": "application/xml; charset=UTF-8"}


@dataclass
class Object:
    body: bytes
    etag: str
    kept: dict[str, str]
    digests: str
    generation: int = field(default_factory=lambda: next(generations))
    modified_s: float = field(default_factory=time.time)


@dataclass
class Upload:
    name: str
    kept: dict[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


generations = itertools.count(time.time_ns() // 1000)
objects: dict[str, Object] = {}
uploads: dict[str, Upload] = {}
asked: list[str] = []


class Refused(Exception):
    """Status, and the code and text of the error's document."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        self._serve(self._put)

    def do_GET(self) -> None:
        self._serve(self._get)

    def do_HEAD(self) -> None:
        self._serve(self._get)

    def do_POST(self) -> None:
        self._serve(self._post)

    def do_DELETE(self) -> None:
        self._serve(self._delete)

    def _serve(self, perform: object) -> None:
        parts = urlsplit(self.path)
        self.query = {name: found[0] for name, found in parse_qs(parts.query, keep_blank_values=True).items()}
        bucket, _, name = parts.path.removeprefix("/").partition("/")
        self.name = unquote(name)
        length = int(self.headers.get("Content-Length", "0"))
        self.body = self.rfile.read(length)
        if len(self.body) < length:  # whoever sent it has gone
            self.close_connection = True
            return None
        if not bucket:
            return self._answer(200, body=json.dumps(asked).encode())
        asked.append(self.headers.get("Authorization", ""))
        try:
            self._authenticate()
            if unquote(bucket) != BUCKET:
                raise Refused(404, "NoSuchBucket", "The specified bucket does not exist.")
            return perform()
        except Refused as error:
            status, code, text = error.args
            document = f"{_XML}<Error><Code>{code}</Code><Message>{text}</Message></Error>"
            return self._answer(status, _IS_XML, document.encode())

    def _authenticate(self) -> None:
        """Whoever says nothing may read; whoever says something that is not true may nothing."""
        said = self.headers.get("Authorization", "")
        if said and not _is_signed(said.removeprefix("Bearer ")):
            raise Refused(401, "AuthenticationRequired", "Authentication required.")
        if not said and self.command not in ("GET", "HEAD"):
            raise Refused(401, "AccessDenied", "Anonymous caller does not have storage.objects.create access.")

    # -- objects

    def _put(self) -> None:
        digest = hashlib.md5(self.body).digest()
        given = self.headers.get("Content-MD5")
        if given is not None and b64decode(given) != digest:
            raise Refused(400, "BadDigest", "The Content-MD5 you specified did not match what was received.")
        if "uploadId" in self.query:
            self._upload().parts[int(self.query["partNumber"])] = self.body
            return self._answer(200, {"ETag": _quoted(digest.hex())})
        digests = f"crc32c={_crc32c(self.body)},md5={b64encode(digest).decode()}"
        return self._keep(Object(self.body, digest.hex(), self._told(), digests))

    def _keep(self, made: Object, document: str = "") -> None:
        if not self.name or "\r" in self.name or "\n" in self.name or self.name in (".", ".."):
            raise Refused(400, "InvalidObjectName", "The specified object name is not valid.")
        if len(self.name.encode()) > MAX_NAME_BYTES:
            raise Refused(400, "KeyTooLongError", "The specified object name is too long.")
        expected = self.headers.get("x-goog-if-generation-match")
        there = objects.get(self.name)
        if expected is not None and int(expected) != (there.generation if there else 0):
            raise Refused(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")
        objects[self.name] = made
        return self._answer(200, _version(made), document.encode())

    def _get(self) -> None:
        if not self.name:
            return self._list_uploads() if "uploads" in self.query else self._list()
        there = self._there()
        if self.headers.get("If-Match", _quoted(there.etag)) != _quoted(there.etag):
            raise Refused(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold.")
        told = (
            _version(there)
            | there.kept
            | {
                "Last-Modified": formatdate(there.modified_s, usegmt=True),
                "x-goog-stored-content-encoding": there.kept.get("Content-Encoding", "identity"),
                "x-goog-stored-content-length": str(len(there.body)),
                "Accept-Ranges": "bytes",
            }
        )
        # What anybody may read, and nobody has said anything else of, may be cached.
        told.setdefault("Cache-Control", "public, max-age=3600")
        if self._is_to_be_decompressed(there):
            # Ranges are ignored, and no length is told.
            del told["Content-Encoding"], told["Accept-Ranges"]
            return self._answer(
                200, told | {"Warning": "214 UploadServer gunzipped"}, gzip.decompress(there.body), True
            )
        wanted = self.headers.get("Range")
        if wanted is None:
            return self._answer(200, told, there.body)
        first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
        stop = min(len(there.body), int(last) + 1 if last else len(there.body))
        if int(first) >= len(there.body):
            raise Refused(416, "InvalidRange", "The requested range cannot be satisfied.")
        told["Content-Range"] = f"bytes {first}-{stop - 1}/{len(there.body)}"
        return self._answer(206, told, there.body[int(first) : stop])

    def _is_to_be_decompressed(self, there: Object) -> bool:
        return (
            there.kept.get("Content-Encoding") == "gzip"
            and "gzip" not in self.headers.get("Accept-Encoding", "")
            and "no-transform" not in there.kept.get("Cache-Control", "")
        )

    def _delete(self) -> None:
        if "uploadId" in self.query:
            self._upload()
            del uploads[self.query["uploadId"]]
        else:
            self._there()
            objects.pop(self.name, None)
        return self._answer(204)

    def _there(self) -> Object:
        if self.name not in objects:
            raise Refused(404, "NoSuchKey", "The specified key does not exist.")
        return objects[self.name]

    def _told(self) -> dict[str, str]:
        """The headers of a request that its object is answered with."""
        kept = {name: self.headers[name] for name in _KEPT if name in self.headers}
        kept.setdefault("Content-Type", "application/octet-stream")
        kept["x-goog-storage-class"] = self.headers.get("x-goog-storage-class", "STANDARD")
        meta = {name: value for name, value in self.headers.items() if name.lower().startswith("x-goog-meta-")}
        return kept | meta

    # -- multipart uploads

    def _post(self) -> None:
        if "uploads" in self.query:
            upload_id = f"ABPnzm{next(generations)}"
            uploads[upload_id] = Upload(self.name, self._told())
            return self._document(
                "InitiateMultipartUploadResult",
                f"<Bucket>{BUCKET}</Bucket><Key>{escape(self.name)}</Key><UploadId>{upload_id}</UploadId>",
            )
        upload = self._upload()
        named = re.findall(r"<Part>(.*?)</Part>", self.body.decode(), re.DOTALL)
        bodies = []
        for part in named:
            number = int(re.search(r"<PartNumber>(\d+)<", part)[1])
            etag = re.search(r"<ETag>(.*?)</ETag>", part)[1].replace("&quot;", '"').strip('"')
            body = upload.parts.get(number)
            if body is None or hashlib.md5(body).hexdigest() != etag:
                raise Refused(400, "InvalidPart", "One or more of the specified parts could not be found.")
            bodies.append(body)
        if not bodies:
            raise Refused(400, "MalformedCompleteMultipartUploadRequest", "No parts were specified.")
        if any(len(body) < MIN_PART_BYTES for body in bodies[:-1]):
            raise Refused(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size.")
        del uploads[self.query["uploadId"]]
        # Such an object has no MD5, and what its ETag is nobody says.
        whole = b"".join(bodies)
        etag = f"{binascii.crc32(whole):08x}-{len(bodies)}"
        named = f"<Bucket>{BUCKET}</Bucket><Key>{escape(self.name)}</Key><ETag>&quot;{etag}&quot;</ETag>"
        document = f"<CompleteMultipartUploadResult>{named}</CompleteMultipartUploadResult>"
        return self._keep(Object(whole, etag, upload.kept, f"crc32c={_crc32c(whole)}"), document)

    def _upload(self) -> Upload:
        upload = uploads.get(self.query["uploadId"])
        if upload is None or upload.name != self.name:
            raise Refused(404, "NoSuchUpload", "The requested upload was not found.")
        return upload

    def _list_uploads(self) -> None:
        listed = "".join(
            f"<Upload><Key>{escape(upload.name)}</Key><UploadId>{upload_id}</UploadId></Upload>"
            for upload_id, upload in sorted(uploads.items())
        )
        return self._document("ListMultipartUploadsResult", f"<Bucket>{BUCKET}</Bucket>{listed}")

    # -- listing

    def _list(self) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        begin = self.query.get("continuation-token") or self.query.get("start-after", "")
        limit = min(int(self.query.get("max-keys", "1000")), 1000)
        found: list[str] = []  # keys and common prefixes, in their order
        more = False
        for name in sorted(objects, key=str.encode):
            if not name.startswith(prefix):
                continue
            common = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            shown = prefix + common[0] + delimiter if common[1] else name
            if shown.encode() <= begin.encode() or shown in found[-1:]:
                continue
            if len(found) == limit:
                more = True
                break
            found.append(shown)
        listed = "".join(self._entry(shown) for shown in found)
        token = f"<NextContinuationToken>{escape(found[-1])}</NextContinuationToken>" if more else ""
        return self._document(
            "ListBucketResult",
            f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(found)}</KeyCount>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{listed}",
        )

    def _entry(self, shown: str) -> str:
        if shown not in objects:
            return f"<CommonPrefixes><Prefix>{_text(shown)}</Prefix></CommonPrefixes>"
        there = objects[shown]
        modified = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(there.modified_s))
        return (
            f"<Contents><Key>{_text(shown)}</Key><Generation>{there.generation}</Generation>"
            f"<MetaGeneration>1</MetaGeneration><LastModified>{modified}.{int(there.modified_s % 1 * 1000):03}Z"
            f"</LastModified><ETag>&quot;{there.etag}&quot;</ETag><Size>{len(there.body)}</Size></Contents>"
        )

    # -- answers

    def _document(self, root: str, inside: str) -> None:
        opened = f"{_XML}<{root} xmlns='http://doc.s3.amazonaws.com/2006-03-01'>"
        return self._answer(200, _IS_XML, f"{opened}{inside}</{root}>".encode())

    def _answer(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", in_chunks: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            # Digests come as several headers of one name.
            for one in value.split(",") if name == "x-goog-hash" else [value]:
                self.send_header(name, one)
        if in_chunks:
            self.send_header("Transfer-Encoding", "chunked")
            body = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        sys.stderr.write(f"{self.command} {self.path}: {format % args}\n")


def _is_signed(token: str) -> bool:
    """Whether a JSON Web Token is the account's, for now and for what is wanted here."""
    message, _, signature = token.rpartition(".")
    try:
        PUBLIC_KEY.verify(_decoded(signature), message.encode(), padding.PKCS1v15(), hashes.SHA256())
        claims = json.loads(_decoded(message.partition(".")[2]))
    except (InvalidSignature, ValueError):
        return False
    now = time.time()
    return (
        claims["iss"] == claims["sub"] == ACCOUNT
        and claims["scope"] in SCOPES
        and claims["iat"] - 60 <= now < claims["exp"] <= claims["iat"] + 3600
    )


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _version(of: Object) -> dict[str, str]:
    return {
        "ETag": _quoted(of.etag),
        "x-goog-generation": str(of.generation),
        "x-goog-metageneration": "1",
        "x-goog-hash": of.digests,
    }


def _crc32c(body: bytes) -> str:
    return b64encode(checksums.crc32c(body).to_bytes(4, "big")).decode()


def _quoted(etag: str) -> str:
    return f'"{etag}"'


def _text(name: str) -> str:
    return escape(name, {"\t": "&#9;"})


if __name__ == "__main__":
    PUBLIC_KEY = serialization.load_pem_public_key(Path(sys.argv[1]).read_bytes())
    ACCOUNT = sys.argv[2]
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[3])), Handler).serve_forever()
