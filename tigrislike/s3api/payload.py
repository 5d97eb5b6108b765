"""A request's payload: taken from the connection, decoded, counted and checked against everything promised of it.

A payload arrives plain or in the aws-chunked encoding (signed chunk by chunk, or closed by a trailer). Whoever stores
it iterates over the decoded pieces, feeds them to `digests.update` (in a worker thread where they are many), and calls
`finish`, which refuses a payload that is shorter, longer or other than its headers, trailers or signature say. Nothing
may be committed before `finish` has returned.

Bytes are never held back: a piece of a signed chunk is passed on before its signature is known, which is sound because
the commit waits for all of them.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator

from tigrislike.s3api import checksums
from tigrislike.s3api.chunked import ChunkedDecoder
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.receiving import DirectReceiver, Sink
from tigrislike.s3api.request import Receive
from tigrislike.s3api.sigv4 import Payload as Mode
from tigrislike.s3api.sigv4 import Verified

Buffer = bytes | bytearray | memoryview


class Payload:
    """The body of one request. Iterate over `pieces()` once, or call `read()` or `store()`; then `finish()`.

    `size` is the decoded length that the client promised; unless it is `exact`, a bound until `pieces` has ended.
    `algorithm` is the checksum kept with an object made of this payload, `given` tells whether the client sent one.
    """

    exact = True

    def __init__(
        self,
        receive: Receive,
        headers: dict[str, str],
        verified: Verified | None,
        *,
        checksums_of_body: bool = True,
    ) -> None:
        """
        Args:
            receive: ASGI's.
            headers: the request's, by lower-case name.
            verified: the signature that covers the payload in some way, None where there is none.
            checksums_of_body: whether `x-amz-checksum-*` headers speak of this body. Those of CompleteMultipartUpload
                speak of the object.
        """
        self._receive = receive
        self._mode = verified.payload if verified is not None else Mode.UNSIGNED
        self._sha256 = verified.payload_sha256 if verified is not None else ""
        self.size = _promised_size(headers, self._mode)
        if not checksums_of_body:
            headers = {name: value for name, value in headers.items() if not name.startswith("x-amz-checksum-")}
        declared = checksums.declared(headers)
        self._expected = declared.expected
        self._trailer = declared.trailer
        self.algorithm = declared.algorithm
        self.given = bool(declared.algorithm)
        self._decoder = (
            ChunkedDecoder.for_request(verified, decoded_length=self.size, trailer=headers.get("x-amz-trailer", ""))
            if verified is not None and self._mode.chunked
            else None
        )
        if self._trailer and self._decoder is None:
            raise S3Error("InvalidRequest", "A trailer is possible only in a signed request's aws-chunked body.")
        self.digests: checksums.Digests | None = None
        self._received = 0
        self._direct: DirectReceiver | None = None

    def start_digests(self, algorithms: set[str]) -> checksums.Digests:
        """Begin hashing with `algorithms` and with whatever it takes to check what the client promised."""
        wanted = set(algorithms)
        wanted.update(self._expected)
        if self._trailer:
            wanted.add(self._trailer)
        if self._sha256:
            wanted.add("SHA256")
        self.digests = checksums.Digests(sorted(wanted))
        return self.digests

    def require_algorithm(self, algorithm: str) -> None:
        """Keep the checksum `algorithm` with what is stored, as an upload that named one at its start demands.

        Raises:
            S3Error: InvalidRequest where the client sent another one.
        """
        if self.given and self.algorithm != algorithm:
            raise S3Error(
                "InvalidRequest",
                f"Checksum Type mismatch occurred, expected checksum Type: {algorithm.lower()}, "
                f"actual checksum Type: {self.algorithm.lower()}",
            )
        self.algorithm = algorithm

    async def store(self, sink: Sink) -> None:
        """Put the decoded payload into `sink`, without a copy where its bytes come as they are to be stored.

        Raises:
            S3Error: as `pieces`.
            Exception: what the sink raises.
        """
        if self._decoder is None:
            self._direct = DirectReceiver.of(self._receive, sink)
        async for piece in self.pieces():
            await sink.write(piece)

    async def pieces(self) -> AsyncIterator[Buffer]:
        """The decoded payload, piece by piece as it arrives, less what goes past here into the sink of `store`.

        Raises:
            S3Error: IncompleteBody when the client stops early; what the chunk decoder refuses.
        """
        decoder = self._decoder
        receive = self._receive
        while True:
            if self._direct is not None:
                self._received += await self._direct.receive()
            message = await receive()
            if message["type"] != "http.request":
                raise S3Error("IncompleteBody")
            data = message.get("body", b"")
            if data:
                if decoder is None:
                    self._received += len(data)
                    if self._received > self.size:
                        raise S3Error("IncompleteBody")
                    yield data
                else:
                    for piece in decoder.feed(data):
                        self._received += len(piece)
                        yield piece
            if not message.get("more_body", False):
                break
        if decoder is not None:
            decoder.finish()
        if self._received != self.size:
            raise S3Error(
                "IncompleteBody",
                extra={"NumberBytesExpected": str(self.size), "NumberBytesProvided": str(self._received)},
            )

    async def read(self, limit: int, *, too_large: str = "MaxMessageLengthExceeded") -> bytes:
        """The whole payload, hashed as `start_digests` (or the promises alone) asked.

        Raises:
            S3Error: `too_large` beyond `limit` bytes, before any is read.
        """
        if self.size > limit:
            raise S3Error(too_large, extra={"MaxMessageLengthBytes": str(limit)})
        digests = self.digests or self.start_digests(set())
        pieces = [bytes(piece) async for piece in self.pieces()]
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if body:
            digests.update(body)
        return body

    def finish(self) -> None:
        """Check the payload, all of it received and hashed, against every digest promised.

        Raises:
            S3Error: XAmzContentSHA256Mismatch, BadDigest, or InvalidRequest for a trailer that is missing.
        """
        digests = self.digests
        assert digests is not None, "start_digests comes before finish"
        if self._sha256 and not hmac.compare_digest(digests.hex("SHA256"), self._sha256):
            raise S3Error(
                "XAmzContentSHA256Mismatch",
                extra={
                    "ClientComputedContentSHA256": self._sha256,
                    "S3ComputedContentSHA256": digests.hex("SHA256"),
                },
            )
        if self._trailer:
            assert self._decoder is not None
            value = self._decoder.trailers.get(f"x-amz-checksum-{self._trailer.lower()}")
            if value is None:
                raise S3Error("MalformedTrailerError")
            self._expected[self._trailer] = checksums.check_value(self._trailer, value)
        for algorithm, expected in self._expected.items():
            if not hmac.compare_digest(digests.base64(algorithm), expected):
                if algorithm == "MD5":
                    raise S3Error(
                        "BadDigest",
                        extra={"ExpectedDigest": expected, "CalculatedDigest": digests.base64("MD5")},
                    )
                raise S3Error("BadDigest", f"The {algorithm} you specified did not match the calculated checksum.")

    @property
    def promised(self) -> bool:
        """Whether the client sent any digest that `finish` checks (what some operations demand)."""
        return bool(self._expected or self._trailer)


def _promised_size(headers: dict[str, str], mode: Mode) -> int:
    """The decoded length promised.

    Raises:
        S3Error: MissingContentLength where a body comes without one, InvalidArgument where it is no number.
    """
    if mode.chunked:
        decoded = headers.get("x-amz-decoded-content-length")
        if decoded is None:
            raise S3Error("MissingContentLength")
        return _length(decoded, "x-amz-decoded-content-length")
    if "content-length" in headers:
        return _length(headers["content-length"], "Content-Length")
    if "transfer-encoding" in headers:
        raise S3Error("MissingContentLength")
    return 0


def _length(value: str, argument: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 19:
        raise S3Error(
            "InvalidArgument",
            f"{argument} must be a non-negative integer",
            extra={"ArgumentName": argument, "ArgumentValue": value[:64]},
        )
    return int(value)
