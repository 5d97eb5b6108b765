"""Decoding of S3's aws-chunked content encoding: signed chunks, signed trailers, and unsigned chunks with a trailer.

::

    decoder = ChunkedDecoder.for_request(verified, decoded_length=size, trailer=headers.get("x-amz-trailer", ""))
    for data in body:
        for piece in decoder.feed(data): ...
    decoder.finish()
    decoder.trailers                                   # {"x-amz-checksum-crc32": "..."}

Bytes of a signed chunk are passed on before all of it has arrived and its signature is checked, so that nothing has to
be buffered. The promise is therefore about the end: once `finish` has returned, every chunk and the trailer carried the
signer's signature, in the signer's order, the length is the one declared, and the trailers are those announced. Nothing
may be committed before.

Memory is bounded by one chunk header or trailer, whatever the client sends. `feed` is plain synchronous code: for a
signed body it hashes (some 1.5 GB/s, the GIL released), so a caller that is given large buffers may run it in a worker
thread, one call at a time.

What this module does not do: check the digest in a trailer against the payload (`checksums`), or HTTP's own chunked
transfer coding, which the HTTP server has already removed.

Rules: Amazon S3 API Reference, "Signature calculations for the Authorization header: transferring payload in multiple
chunks" and "... including trailing headers".
"""

import enum
import hmac
import re
from hashlib import sha256
from typing import Self

from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.sigv4 import EMPTY_SHA256, Payload, Verified, signature_mismatch

# A size of 16 digits, `;chunk-signature=` and 64 digits make 99; the rest is room for extensions.
MAX_CHUNK_HEADER_BYTES = 512
MAX_TRAILER_BYTES = 8192
MIN_CHUNK_BYTES = 8192  # but for the last that holds data


class _Expect(enum.Enum):
    HEADER = enum.auto()
    DATA = enum.auto()
    DATA_END = enum.auto()
    TRAILER = enum.auto()
    LAST_LINE = enum.auto()
    NOTHING = enum.auto()


class ChunkedDecoder:
    """One aws-chunked body, fed in pieces of any size.

    `received` counts decoded bytes; `trailers` (lower-case name to value) is complete after `finish`.
    """

    def __init__(
        self,
        decoded_length: int,
        *,
        trailer_names: frozenset[str] = frozenset(),
        signer: Verified | None = None,
        has_trailer: bool = False,
    ) -> None:
        """
        Args:
            decoded_length: `x-amz-decoded-content-length`.
            trailer_names: the lower-case names in `x-amz-trailer`.
            signer: the verified request that seeds the chain of chunk signatures; None for unsigned chunks.
            has_trailer: whether a trailer (perhaps empty) follows the last chunk.
        """
        self.received = 0
        self.trailers: dict[str, str] = {}
        self._decoded_length = decoded_length
        self._trailer_names = trailer_names
        self._has_trailer = has_trailer
        self._trailer_bytes = 0
        self._expect = _Expect.HEADER
        self._left = 0
        self._chunks = 0
        self._chunk_size = MIN_CHUNK_BYTES
        self._line = bytearray()
        self._chain = _Chain(signer) if signer is not None else None
        self._trailer_lines = bytearray()

    @classmethod
    def for_request(cls, verified: Verified, *, decoded_length: int, trailer: str = "") -> Self:
        """The decoder that `verified.payload` asks for.

        Args:
            decoded_length: `x-amz-decoded-content-length`, in bytes.
            trailer: the `x-amz-trailer` header: names separated by commas.

        Raises:
            ValueError: the payload is not aws-chunked.
        """
        mode = verified.payload
        if not mode.chunked:
            raise ValueError(f"not an aws-chunked payload: {mode.value}")
        return cls(
            decoded_length,
            trailer_names=frozenset(name.strip().lower() for name in trailer.split(",") if name.strip()),
            signer=None if mode is Payload.STREAMING_UNSIGNED_TRAILER else verified,
            has_trailer=mode is not Payload.STREAMING_SIGNED,
        )

    def feed(self, data: bytes | bytearray) -> "list[bytes | bytearray | memoryview]":
        """The payload in the next piece of the body: `data` itself or views of it, never copies.

        Raises:
            S3Error: SignatureDoesNotMatch for a tampered chunk or trailer, IncompleteBody for more data than declared,
                InvalidChunkSizeError for a small chunk that is not the last, InvalidRequest or MalformedTrailerError
                for what is not aws-chunked. The decoder is then useless.
        """
        pieces: list[bytes | bytearray | memoryview] = []
        view = memoryview(data)
        position, end = 0, len(data)
        while position < end:
            if self._expect is _Expect.DATA:
                taken = min(self._left, end - position)
                piece = data if taken == end else view[position : position + taken]
                pieces.append(piece)
                position += taken
                self._left -= taken
                self.received += taken
                if self._chain is not None:
                    self._chain.update(piece)
                if not self._left:
                    self._end_chunk()
            elif self._expect is _Expect.NOTHING:
                raise _malformed("there is data after the end of the last chunk")
            else:
                newline = data.find(b"\n", position)
                stop = end if newline < 0 else newline + 1
                if len(self._line) + stop - position > self._line_limit():
                    raise self._line_too_long()
                self._line += view[position:stop]
                position = stop
                if newline >= 0:
                    line = bytes(self._line)
                    self._line.clear()
                    self._take_line(line)
        return pieces

    def finish(self) -> None:
        """To be called once the body has ended.

        Raises:
            S3Error: IncompleteBody if it ended early, MalformedTrailerError if an announced trailer is missing.
        """
        if self._expect is not _Expect.NOTHING:
            raise S3Error(
                "IncompleteBody", "The request body terminated unexpectedly", extra=self._count(self.received)
            )
        if self.trailers.keys() != self._trailer_names:
            missing = ", ".join(sorted(self._trailer_names - self.trailers.keys()))
            raise _bad_trailer(f"announced in x-amz-trailer but not sent: {missing}")

    def _line_limit(self) -> int:
        if self._expect is _Expect.HEADER:
            return MAX_CHUNK_HEADER_BYTES
        if self._expect is _Expect.TRAILER:
            return MAX_TRAILER_BYTES - self._trailer_bytes
        return 2

    def _line_too_long(self) -> S3Error:
        if self._expect is _Expect.HEADER:
            return _malformed(f"a chunk header is longer than {MAX_CHUNK_HEADER_BYTES} bytes")
        if self._expect is _Expect.TRAILER:
            return _bad_trailer(f"longer than {MAX_TRAILER_BYTES} bytes")
        return _malformed("a chunk is not closed by CRLF")

    def _take_line(self, line: bytes) -> None:
        if self._expect is _Expect.HEADER:
            self._begin_chunk(line)
        elif self._expect is _Expect.TRAILER:
            self._take_trailer(line)
        elif line != b"\r\n":
            raise self._line_too_long()
        else:
            self._expect = _Expect.HEADER if self._expect is _Expect.DATA_END else _Expect.NOTHING

    def _begin_chunk(self, line: bytes) -> None:
        match = (_UNSIGNED_HEADER if self._chain is None else _SIGNED_HEADER).fullmatch(line)
        if match is None:
            raise _malformed(
                "a chunk header is not a hexadecimal size"
                + ("" if self._chain is None else " and a chunk-signature of 64 hexadecimal digits")
            )
        size = int(match[1], 16)
        if self.received + size > self._decoded_length:
            raise S3Error(
                "IncompleteBody",
                "The chunks hold more bytes than x-amz-decoded-content-length says",
                extra=self._count(self.received + size),
            )
        if size and self._chunk_size < MIN_CHUNK_BYTES:
            raise S3Error(
                "InvalidChunkSizeError",
                extra={"Chunk": str(self._chunks + 1), "BadChunkSize": str(self._chunk_size)},
            )
        self._chunks += 1
        self._chunk_size = size
        if self._chain is not None:
            self._chain.begin(match[2].decode())
        if size:
            self._left = size
            self._expect = _Expect.DATA
            return
        if self.received != self._decoded_length:
            raise S3Error(
                "IncompleteBody",
                "The chunks hold fewer bytes than x-amz-decoded-content-length says",
                extra=self._count(self.received),
            )
        self._end_chunk()
        self._expect = _Expect.TRAILER if self._has_trailer else _Expect.LAST_LINE

    def _end_chunk(self) -> None:
        if self._chain is not None:
            self._chain.end()
        self._expect = _Expect.DATA_END

    def _take_trailer(self, line: bytes) -> None:
        self._trailer_bytes += len(line)
        text = line.rstrip(b"\r\n")
        if not text:
            # S3's own example has an empty line between the trailers and their signature.
            unsigned = self._chain is not None and self._trailer_names and not self._chain.closed
            self._expect = _Expect.TRAILER if unsigned else _Expect.NOTHING
            return
        raw_name, colon, raw_value = text.partition(b":")
        name, value = raw_name.strip().lower(), raw_value.strip()
        if not colon or not _TOKEN.fullmatch(name):
            raise _bad_trailer("a line is not `name:value`")
        if self._chain is not None:
            if self._chain.closed:
                raise _bad_trailer("a line follows x-amz-trailer-signature")
            if name == b"x-amz-trailer-signature":
                self._chain.close(bytes(self._trailer_lines), value.decode("latin-1"))
                return
        key = name.decode()
        if key in self.trailers:
            raise _bad_trailer(f"{key} is sent twice")
        if key not in self._trailer_names:
            raise _bad_trailer(f"{key} was not announced in x-amz-trailer")
        self.trailers[key] = value.decode("latin-1")
        self._trailer_lines += name + b":" + value + b"\n"

    def _count(self, provided: int) -> dict[str, str]:
        return {"NumberBytesExpected": str(self._decoded_length), "NumberBytesProvided": str(provided)}


_SIGNED_HEADER = re.compile(rb"([0-9a-fA-F]{1,16});chunk-signature=([0-9a-f]{64})\r\n")
_UNSIGNED_HEADER = re.compile(rb"([0-9a-fA-F]{1,16})(?:;[^\r\n]*)?\r\n")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")


class _Chain:
    """Signatures of chunks: each covers its chunk's data and the signature before it; the request's is the first."""

    def __init__(self, signer: Verified) -> None:
        self.closed = False
        self._access_key_id = signer.access_key_id
        self._key = signer.key
        self._scope = f"{signer.timestamp}\n{signer.scope}\n"
        self._previous = signer.signature
        self._given = ""
        self._digest = sha256()

    def begin(self, signature: str) -> None:
        self._given = signature
        self._digest = sha256()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        self._digest.update(data)

    def end(self) -> None:
        digest = self._digest.hexdigest()
        self._link(f"AWS4-HMAC-SHA256-PAYLOAD\n{self._scope}{self._previous}\n{EMPTY_SHA256}\n{digest}")

    def close(self, trailers: bytes, signature: str) -> None:
        self._given = signature
        self._link(f"AWS4-HMAC-SHA256-TRAILER\n{self._scope}{self._previous}\n{sha256(trailers).hexdigest()}")
        self.closed = True

    def _link(self, text: str) -> None:
        to_sign = text.encode()
        # As bytes: a signature that is not ASCII has to be refused, not to break the comparison.
        if not hmac.compare_digest(self._key.sign(to_sign).encode(), self._given.encode()):
            raise signature_mismatch(self._access_key_id, to_sign, self._given)
        self._previous = self._given


def _malformed(what: str) -> S3Error:
    return S3Error("InvalidRequest", f"The body is not valid aws-chunked content: {what}.")


def _bad_trailer(what: str) -> S3Error:
    return S3Error("MalformedTrailerError", f"The trailer of the aws-chunked body is malformed: {what}.")
