"""FoundationDB's limits, enforced on every engine so that what runs on one runs on the other.

Source: <https://apple.github.io/foundationdb/known-limitations.html>. Sizes are bytes, times nanoseconds. An
engine adds up the size of a transaction as FoundationDB does, approximately: keys and values written, and the
begin and end keys of the conflict ranges that reads and writes imply.
"""

from __future__ import annotations

from typing import NoReturn

from .errors import InvertedRange, KeyOutsideLegalRange, KeyTooLarge, TransactionTooLarge, ValueTooLarge

KEY_BYTES = 10_000
VALUE_BYTES = 100_000
TRANSACTION_BYTES = 10_000_000
TRANSACTION_NS = 5_000_000_000
WATCHES = 10_000

SYSTEM_PREFIX = b"\xff"
"""Keys from here on are the engine's own; it is also the end of the range that holds every legal key."""

METADATA_VERSION_KEY = b"\xff/metadataVersion"

INT64_MIN = -(1 << 63)
INT64_MAX = (1 << 63) - 1
UINT64_MAX = (1 << 64) - 1


def reject_key(key: bytes) -> NoReturn:
    """Say why `key` may not be used. Only called for a key that may not: the hot paths test, this one explains.

    Raises:
        TypeError: it is not bytes.
        KeyTooLarge, KeyOutsideLegalRange: as named.
    """
    if not isinstance(key, bytes):
        raise TypeError(f"a key is bytes, not {type(key).__name__}")
    if len(key) > KEY_BYTES:
        raise KeyTooLarge(f"key of {len(key)} bytes is longer than {KEY_BYTES}: {key[:32]!r}...")
    raise KeyOutsideLegalRange(f"key {key[:32]!r} begins with 0xff, which is the engine's own")


def reject_value(key: bytes, value: bytes) -> NoReturn:
    """Say why `value` may not be stored under `key`.

    Raises:
        TypeError: it is not bytes.
        ValueTooLarge: it is too long.
    """
    if not isinstance(value, bytes):
        raise TypeError(f"a value is bytes, not {type(value).__name__}")
    raise ValueTooLarge(f"value of {len(value)} bytes under {key[:32]!r} is longer than {VALUE_BYTES}")


def reject_size(size: int) -> NoReturn:
    """Refuse a transaction that has grown to `size` bytes.

    Raises:
        TransactionTooLarge: always.
    """
    raise TransactionTooLarge(f"transaction of {size} bytes is larger than {TRANSACTION_BYTES}")


def check_key(key: bytes) -> None:
    """Raise unless `key` may be read and written."""
    if type(key) is not bytes or len(key) > KEY_BYTES or key >= SYSTEM_PREFIX:
        reject_key(key)


def check_value(key: bytes, value: bytes) -> None:
    """Raise unless `value` may be stored under `key`."""
    if type(value) is not bytes or len(value) > VALUE_BYTES:
        reject_value(key, value)


def check_range(begin: bytes, end: bytes) -> None:
    """Raise unless [begin, end) is a legal range. An end may be one byte longer than a key, or `SYSTEM_PREFIX`."""
    if type(begin) is not bytes or type(end) is not bytes:
        raise TypeError(f"a range is a pair of bytes, not {type(begin).__name__} and {type(end).__name__}")
    if begin > end:
        raise InvertedRange(f"range begins at {begin[:32]!r}, after its end {end[:32]!r}")
    for bound in (begin, end):
        if len(bound) > KEY_BYTES + 1:
            raise KeyTooLarge(f"range bound of {len(bound)} bytes is longer than {KEY_BYTES}: {bound[:32]!r}...")
        if bound > SYSTEM_PREFIX:
            raise KeyOutsideLegalRange(f"range bound {bound[:32]!r} lies beyond 0xff, which is the engine's own")


def check_delta(delta: int) -> None:
    """Raise OverflowError unless `delta` is a signed 64-bit number."""
    if not INT64_MIN <= delta <= INT64_MAX:
        raise OverflowError(f"atomic add of {delta}: not a signed 64-bit number")


def check_maximum(value: int) -> None:
    """Raise OverflowError unless `value` is an unsigned 64-bit number."""
    if not 0 <= value <= UINT64_MAX:
        raise OverflowError(f"atomic max of {value}: not an unsigned 64-bit number")


def added(old: bytes | None, delta: int) -> bytes:
    """The value that atomic `add` leaves: little-endian, modulo 2**64; what was there is cut or padded to 8 bytes."""
    base = int.from_bytes(old[:8], "little") if old else 0
    return ((base + delta) & UINT64_MAX).to_bytes(8, "little")


def maximum(old: bytes | None, value: int) -> bytes:
    """The value that atomic `max` leaves: unsigned little-endian; what was there is cut or padded to 8 bytes."""
    base = int.from_bytes(old[:8], "little") if old else 0
    return (base if base > value else value).to_bytes(8, "little")
