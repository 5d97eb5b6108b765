"""As much of Azure's blob service as a client of it asks for: blobs in memory, in one container. No authentication.

Source: the REST reference of the Blob service: Put Blob, Put Block, Put Block List, Get Blob, Delete Blob, List Blobs.
Written after that and not after the client, so that what the client makes of it is what is tested.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import sys
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

CONTAINER = "elsewhere"

Blob = tuple[bytes, dict[str, str]]  # the bytes, and headers as they are answered

blobs: dict[str, Blob] = {}
blocks: dict[tuple[str, str], bytes] = {}
numbers = itertools.count(1)

_KEPT = {
    "x-ms-blob-content-type": "Content-Type",
    "x-ms-blob-cache-control": "Cache-Control",
    "x-ms-blob-content-disposition": "Content-Disposition",
    "x-ms-blob-content-encoding": "Content-Encoding",
    "x-ms-blob-content-language": "Content-Language",
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        name, query = self._asked()
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if query.get("comp") == "block":
            blocks[name, query["blockid"]] = body
            return self._answer(201)
        if query.get("comp") == "blocklist":
            ids = re.findall(r"<(?:Latest|Uncommitted|Committed)>([^<]*)<", body.decode())
            body = b"".join(blocks.pop((name, one)) for one in ids)
        kept = {to: self.headers[name] for name, to in _KEPT.items() if name in self.headers}
        if "x-ms-blob-content-type" not in self.headers:
            kept["Content-Type"] = self.headers.get("Content-Type", "application/octet-stream")
        kept |= {field: value for field, value in self.headers.items() if field.lower().startswith("x-ms-meta-")}
        kept |= {"ETag": f'"0x{next(numbers):X}"', "Last-Modified": formatdate(usegmt=True)}
        blobs[name] = body, kept
        return self._answer(201, {"ETag": kept["ETag"], "Last-Modified": kept["Last-Modified"]})

    def do_GET(self) -> None:
        name, query = self._asked()
        if query.get("comp") == "list":
            return self._list(query)
        if name not in blobs:
            return self._answer(404, body=b"<Error><Code>BlobNotFound</Code></Error>")
        body, headers = blobs[name]
        if self.headers.get("If-Match", headers["ETag"]) != headers["ETag"]:
            return self._answer(412, body=b"<Error><Code>ConditionNotMet</Code></Error>")
        wanted = self.headers.get("x-ms-range") or self.headers.get("Range")
        if wanted is None:
            return self._answer(200, headers, body)
        first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
        stop = min(len(body), int(last) + 1 if last else len(body))
        told = {"Content-Range": f"bytes {first}-{stop - 1}/{len(body)}"}
        return self._answer(206, headers | told, body[int(first) : stop])

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Blob Batch: deletes, each a request within a part."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        parts = []
        for number, path in enumerate(re.findall(r"^DELETE (\S+) HTTP", body, re.MULTILINE)):
            name = unquote(urlsplit(path).path).removeprefix(f"/{CONTAINER}").removeprefix("/")
            status = "202 Accepted" if blobs.pop(name, None) else "404 The specified blob does not exist."
            parts.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\n"
                f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"
            )
        self._answer(202, {"Content-Type": "multipart/mixed; boundary=batch"}, ("".join(parts) + "--batch--").encode())

    def do_DELETE(self) -> None:
        name, _ = self._asked()
        self._answer(202 if blobs.pop(name, None) else 404)

    def _list(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        begin = query.get("marker") or query.get("startFrom", "")
        found, rolled, more = [], [], ""
        for name in sorted(blobs):
            if not name.startswith(prefix) or name < begin:
                continue
            if len(found) == int(query.get("maxresults", "5000")):
                more = name
                break
            if delimiter and delimiter in name[len(prefix) :]:
                common = prefix + name[len(prefix) :].partition(delimiter)[0] + delimiter
                rolled += [common] if common not in rolled else []
                continue
            found.append(name)
        listed = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>{blobs[name][1]['Last-Modified']}"
            f"</Last-Modified><Etag>{blobs[name][1]['ETag'].strip(chr(34))}</Etag>"
            f"<Content-Length>{len(blobs[name][0])}</Content-Length>"
            f"<Content-Type>{blobs[name][1]['Content-Type']}</Content-Type></Properties></Blob>"
            for name in found
        )
        listed += "".join(f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>" for name in rolled)
        body = (
            f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="{CONTAINER}">'
            f"<Blobs>{listed}</Blobs><NextMarker>{escape(more)}</NextMarker></EnumerationResults>"
        )
        self._answer(200, {"Content-Type": "application/xml"}, body.encode())

    def _asked(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        name = unquote(parts.path).removeprefix(f"/{CONTAINER}").removeprefix("/")
        return name, {field: values[0] for field, values in parse_qs(parts.query).items()}

    def _answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-ms-request-id", hashlib.md5(self.path.encode()).hexdigest())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        sys.stderr.write(f"{self.command} {self.path}: {format % args}\n")


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
