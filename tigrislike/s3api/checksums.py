"""The checksums of S3: computing them over a stream, reading them from headers, and putting those of parts together.

Covers every algorithm of the service model: CRC32, CRC32C, CRC64NVME, SHA1, SHA256, SHA512, MD5, XXHASH64, XXHASH3 (the
64-bit XXH3) and XXHASH128. On the wire a checksum is the base64 of its big-endian bytes.

`Digests.update` may be called from a worker thread (from one thread at a time): each library behind it (hashlib, zlib,
xxhash, awscrt) lets go of the GIL while it works on a buffer of more than a few KiB, so the event loop keeps running.

What this module does not do: decide which operations demand a checksum, read trailers (`chunked`), or keep state.

Rules: Amazon S3 User Guide, "Checking object integrity for data uploads in Amazon S3".
"""

import zlib
from base64 import b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import md5, sha1, sha256, sha512
from typing import Any

import msgspec
import xxhash
from awscrt import checksums as crt

from tigrislike.s3api.errors import S3Error

Buffer = bytes | bytearray | memoryview

FULL_OBJECT = "FULL_OBJECT"
COMPOSITE = "COMPOSITE"


class Algorithm(msgspec.Struct, frozen=True):
    """One algorithm.

    `size_bytes` is the length of a digest, `types` what a multipart upload may ask for, its default first. Only a CRC
    of the whole can be had from those of the parts, so only CRCs may be FULL_OBJECT.
    """

    name: str
    size_bytes: int
    types: tuple[str, ...]

    @property
    def header(self) -> str:
        """The header and trailer that carries a value, in lower case."""
        return _HEADER + self.name.lower()

    @property
    def member(self) -> str:
        """The member of the service model's shapes."""
        return f"Checksum{self.name}"


_HEADER = "x-amz-checksum-"
ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm("CRC32", 4, (COMPOSITE, FULL_OBJECT)),
        Algorithm("CRC32C", 4, (COMPOSITE, FULL_OBJECT)),
        Algorithm("CRC64NVME", 8, (FULL_OBJECT,)),
        Algorithm("SHA1", 20, (COMPOSITE,)),
        Algorithm("SHA256", 32, (COMPOSITE,)),
        Algorithm("SHA512", 64, (COMPOSITE,)),
        Algorithm("MD5", 16, (COMPOSITE,)),
        Algorithm("XXHASH64", 8, (COMPOSITE,)),
        Algorithm("XXHASH3", 8, (COMPOSITE,)),
        Algorithm("XXHASH128", 16, (COMPOSITE,)),
    )
}
HEADERS: dict[str, str] = {algorithm.header: algorithm.name for algorithm in ALGORITHMS.values()}
MEMBERS: dict[str, str] = {algorithm.member: algorithm.name for algorithm in ALGORITHMS.values()}


# --- computing -------------------------------------------------------------------------------------------------------


class Digests:
    """Several checksums over one stream: `update` with each piece in order, then read each by its algorithm's name.

    Raises:
        KeyError: an algorithm that S3 does not know, or reading one that was not asked for.
    """

    __slots__ = ("_states", "_updates")

    def __init__(self, algorithms: Iterable[str]) -> None:
        self._states = {name: _START[name]() for name in algorithms}
        self._updates: list[Callable[[Buffer], None]] = [state.update for state in self._states.values()]

    def update(self, data: Buffer) -> None:
        """Hash one piece of the stream with every algorithm. Not safe from two threads at once."""
        for update in self._updates:
            update(data)

    def apart(self) -> "tuple[Callable[[Buffer], None], Callable[[Buffer], None] | None]":
        """Two functions that together do what `update` does and may run at the same time, on two threads.

        MD5 takes longer than all others together, so it is the second; None where it was not asked for.
        """
        rest = [state.update for name, state in self._states.items() if name != "MD5"]

        def update_rest(data: Buffer) -> None:
            for update in rest:
                update(data)

        return update_rest, self._states["MD5"].update if "MD5" in self._states else None

    def digest(self, algorithm: str) -> bytes:
        """The big-endian bytes of a checksum of everything so far."""
        digest: bytes = self._states[algorithm].digest()
        return digest

    def base64(self, algorithm: str) -> str:
        """The checksum as headers and XML carry it."""
        return b64encode(self.digest(algorithm)).decode()

    def hex(self, algorithm: str) -> str:
        """The checksum in lower-case hexadecimal: an ETag, or `x-amz-content-sha256`."""
        return self.digest(algorithm).hex()

    def __contains__(self, algorithm: object) -> bool:
        return algorithm in self._states


class _Crc:
    __slots__ = ("_function", "_size_bytes", "_value")

    def __init__(self, function: Callable[[Buffer, int], int], size_bytes: int) -> None:
        self._function = function
        self._size_bytes = size_bytes
        self._value = 0

    def update(self, data: Buffer) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size_bytes, "big")


_START: dict[str, Callable[[], Any]] = {
    # zlib's CRC32 is as fast as awscrt's (measured: 2.6 GB/s both); its CRC32C and CRC64NVME have no rival.
    "CRC32": lambda: _Crc(zlib.crc32, 4),
    "CRC32C": lambda: _Crc(crt.crc32c, 4),
    "CRC64NVME": lambda: _Crc(crt.crc64nvme, 8),
    "SHA1": sha1,
    "SHA256": sha256,
    "SHA512": sha512,
    "MD5": md5,
    "XXHASH64": xxhash.xxh64,
    "XXHASH3": xxhash.xxh3_64,
    "XXHASH128": xxhash.xxh3_128,
}


# --- what a request declares -----------------------------------------------------------------------------------------


class Declared(msgspec.Struct):
    """The digests that a request promises of its payload.

    `algorithm` names the one S3 checksum that is sent, in a header or to come in a trailer ("" if none). `expected`
    maps algorithms to base64 values already known (Content-MD5 counts as MD5); `trailer` is the algorithm whose value
    will arrive in the trailer ("" if none).
    """

    algorithm: str
    expected: dict[str, str]
    trailer: str


def declared(headers: Mapping[str, str]) -> Declared:
    """Read Content-MD5, `x-amz-checksum-*`, `x-amz-trailer` and `x-amz-sdk-checksum-algorithm`.

    Args:
        headers: by lower-case name, repeated ones joined by commas.

    Raises:
        S3Error: InvalidDigest for a Content-MD5 that is not the base64 of 16 bytes; BadDigest where it contradicts
            `x-amz-checksum-md5`; InvalidRequest for a value of the wrong length, an unknown algorithm, more than one
            checksum, or an SDK's algorithm without its checksum.
    """
    algorithm = ""
    expected: dict[str, str] = {}
    for name in headers:
        if name.startswith(_HEADER) and name not in _NOT_VALUES:
            if name not in HEADERS:
                raise _unsupported()
            if algorithm:
                raise _several()
            algorithm = HEADERS[name]
            expected[algorithm] = check_value(algorithm, headers[name])
    trailer = _trailer_algorithm(headers) if "x-amz-trailer" in headers else ""
    if trailer:
        if algorithm:
            raise _several()
        algorithm = trailer
    if "x-amz-sdk-checksum-algorithm" in headers:
        _check_sdk_algorithm(headers["x-amz-sdk-checksum-algorithm"].strip().upper(), algorithm)
    if "content-md5" in headers:
        value = check_content_md5(headers["content-md5"])
        if expected.setdefault("MD5", value) != value:
            raise S3Error("BadDigest", extra={"ExpectedDigest": value, "CalculatedDigest": expected["MD5"]})
    return Declared(algorithm, expected, trailer)


_NOT_VALUES = frozenset({"x-amz-checksum-mode", "x-amz-checksum-algorithm", "x-amz-checksum-type"})


def check_value(algorithm: str, value: str) -> str:
    """The value of an `x-amz-checksum-*` header or trailer, if it is the base64 of a digest of the right length.

    Raises:
        S3Error: InvalidRequest.
    """
    value = value.strip()
    if _digest_of(value, ALGORITHMS[algorithm].size_bytes) is None:
        raise S3Error("InvalidRequest", f"Value for {ALGORITHMS[algorithm].header} header is invalid.")
    return value


def check_content_md5(value: str) -> str:
    """The value of a Content-MD5 header.

    Raises:
        S3Error: InvalidDigest.
    """
    value = value.strip()
    if _digest_of(value, 16) is None:
        raise S3Error("InvalidDigest", extra={"Content-MD5": value})
    return value


def _digest_of(value: str, size_bytes: int) -> bytes | None:
    if len(value) != (size_bytes + 2) // 3 * 4:
        return None
    try:
        digest = a2b_base64(value, strict_mode=True)
    except (Base64Error, ValueError):
        return None
    # Re-encoding refuses stray bits after the last byte: then one digest has one spelling, and strings can be compared.
    return digest if len(digest) == size_bytes and b64encode(digest).decode() == value else None


def _trailer_algorithm(headers: Mapping[str, str]) -> str:
    names = [name.strip().lower() for name in headers["x-amz-trailer"].split(",") if name.strip()]
    if any(name not in HEADERS for name in names):
        raise S3Error("InvalidRequest", "The value specified in the x-amz-trailer header is not supported")
    if len(names) > 1:
        raise _several()
    if names and not headers.get("x-amz-content-sha256", "").endswith("-TRAILER"):
        raise S3Error(
            "InvalidRequest", "x-amz-trailer is only possible where x-amz-content-sha256 announces a trailer."
        )
    return HEADERS[names[0]] if names else ""


def _check_sdk_algorithm(wanted: str, sent: str) -> None:
    if wanted not in ALGORITHMS:
        raise _unsupported()
    if not sent:
        raise S3Error(
            "InvalidRequest",
            "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer headers "
            "were found.",
        )
    if wanted != sent:
        raise S3Error("InvalidRequest", "Value for x-amz-sdk-checksum-algorithm header is invalid.")


def _several() -> S3Error:
    return S3Error(
        "InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."
    )


def _unsupported() -> S3Error:
    return S3Error(
        "InvalidRequest",
        "Checksum algorithm provided is unsupported. Please try again with any of the valid types: "
        f"[{', '.join(ALGORITHMS)}]",
    )


# --- the parts of a multipart upload ---------------------------------------------------------------------------------


def multipart_type(algorithm: str, wanted: str | None) -> str:
    """COMPOSITE or FULL_OBJECT for a multipart upload that names `algorithm`; "" for one that names none.

    Raises:
        S3Error: InvalidRequest for a type without an algorithm, a type that the algorithm cannot have, or an unknown
            name of either.
    """
    if not algorithm:
        if wanted:
            raise S3Error(
                "InvalidRequest",
                "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.",
            )
        return ""
    if algorithm not in ALGORITHMS:
        raise _unsupported()
    types = ALGORITHMS[algorithm].types
    if not wanted:
        return types[0]
    if wanted not in (COMPOSITE, FULL_OBJECT):
        raise S3Error("InvalidRequest", "Value for x-amz-checksum-type header is invalid.")
    if wanted not in types:
        raise S3Error(
            "InvalidRequest",
            f"The {wanted} checksum type cannot be used with the {algorithm.lower()} checksum algorithm.",
        )
    return wanted


def composite(algorithm: str, parts: Sequence[str]) -> str:
    """The checksum of the parts' checksums (base64, in part order), followed by `-` and their number."""
    digests = Digests((algorithm,))
    for part in parts:
        digests.update(a2b_base64(part))
    return f"{digests.base64(algorithm)}-{len(parts)}"


def combine(algorithm: str, parts: Sequence[tuple[str, int]]) -> str:
    """The CRC (base64) of the whole, from the CRC (base64) and the size in bytes of each part in order.

    Costs some 5 us a part, 15 us for CRC64NVME, so thousands of parts belong in a worker thread.

    Raises:
        KeyError: `algorithm` is not a CRC: no other checksum can be had from those of parts.
    """
    polynomial, size_bytes = _REFLECTED[algorithm]
    whole = 0
    for checksum, size in parts:
        value = int.from_bytes(a2b_base64(checksum), "big")
        whole = _multiply(_shift(algorithm, size), whole, polynomial, size_bytes * 8) ^ value if size else whole
    return b64encode(whole.to_bytes(size_bytes, "big")).decode()


# A CRC is a remainder in GF(2)[x], written with the coefficient of x^0 in the highest bit. Appending n bytes to a
# message multiplies its remainder by x^(8n), and the complement at both ends cancels out, so that
#   crc(A + B) = crc(A) * x^(8 len B) + crc(B).
_REFLECTED: dict[str, tuple[int, int]] = {
    "CRC32": (0xEDB88320, 4),
    "CRC32C": (0x82F63B78, 4),
    "CRC64NVME": (0x9A6C9329AC4BC9B5, 8),
}


def _multiply(a: int, b: int, polynomial: int, bits: int) -> int:
    """a * b modulo the polynomial."""
    product = 0
    probe = 1 << (bits - 1)
    while a:
        if a & probe:
            product ^= b
            a ^= probe
        probe >>= 1
        b = (b >> 1) ^ polynomial if b & 1 else b >> 1
    return product


@lru_cache(maxsize=256)
def _shift(algorithm: str, size: int) -> int:
    """x^(8 * size): what `size` further bytes do to a remainder. All parts but the last usually share one size."""
    polynomial, size_bytes = _REFLECTED[algorithm]
    bits = size_bytes * 8
    power = 1 << (bits - 1 - 8)  # x^8
    result = 1 << (bits - 1)  # x^0
    while size:
        if size & 1:
            result = _multiply(result, power, polynomial, bits)
        power = _multiply(power, power, polynomial, bits)
        size >>= 1
    return result
