"""The canonical spelling of a request's path and query in Signature Version 4, as S3 wants it.

Clients spell one request in many ways: reserved characters bare or encoded, lower-case hexadecimal, flags with and
without `=`. Each of these functions maps every such spelling to the one that S3 signs, without decoding to text: a
key is bytes. Nothing here looks at headers or signatures (`sigv4`).
"""

import re


def canonical_path(path: bytes) -> bytes:
    """The path decoded once and encoded once, with nothing else normalised: `//` and `..` are part of a key."""
    if _PLAIN_PATH.fullmatch(path):
        return path or b"/"
    return _PATH_TOKEN.sub(lambda token: _PATH_ENCODING[token[0]], path)


def query_pairs(query: bytes) -> list[tuple[bytes, bytes]]:
    """Encoded (name, value) pairs in the order sent. A bare `name` means `name=`; S3 reads `+` as a space."""
    segments = [segment.partition(b"=") for segment in query.split(b"&") if segment]
    if _CANONICAL_QUERY.fullmatch(query):
        return [(name, value) for name, _, value in segments]
    return [(_encode(name), _encode(value)) for name, _, value in segments]


def sorted_query(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """The canonical query string of encoded pairs: by name, then by value."""
    return b"&".join([name + b"=" + value for name, value in sorted(pairs)])


def _encode(text: bytes) -> bytes:
    if _PLAIN.fullmatch(text):
        return text
    return _TOKEN.sub(lambda token: _QUERY_ENCODING[token[0]], text)


_PLAIN_PATH = re.compile(rb"[A-Za-z0-9\-._~/]*")
_PLAIN = re.compile(rb"[A-Za-z0-9\-._~]*")
# What most clients send: unreserved characters bare, all others as upper-case %XX, one `=` a pair. Possessive, for no
# other split of the same bytes could match.
_CANONICAL = rb"(?:[A-Za-z0-9\-._~]++|%(?:[0189A-F][0-9A-F]|2[0-9A-CF]|3[A-F]|40|5[B-E]|60|7[B-DF]))*+"
_CANONICAL_PAIR = _CANONICAL + rb"(?:=" + _CANONICAL + rb")?+"
_CANONICAL_QUERY = re.compile(_CANONICAL_PAIR + rb"(?:&" + _CANONICAL_PAIR + rb")*+")
_PATH_TOKEN = re.compile(rb"%[0-9A-Fa-f]{2}|[^A-Za-z0-9\-._~/]")
_TOKEN = re.compile(rb"%[0-9A-Fa-f]{2}|[^A-Za-z0-9\-._~]")
_UNRESERVED = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"


def _encodings(safe: bytes, plus: bytes) -> dict[bytes, bytes]:
    """Each byte, bare or percent-encoded in either case, to its one canonical form."""
    table: dict[bytes, bytes] = {}
    for code in range(256):
        byte = bytes((code,))
        canonical = byte if byte in safe else b"%%%02X" % code
        digits = {f"{hi}{lo}" for hi in _both_cases(code >> 4) for lo in _both_cases(code & 15)}
        table |= {b"%" + pair.encode(): canonical for pair in digits}
        table[byte] = canonical
    table[b"+"] = plus
    return table


def _both_cases(nibble: int) -> tuple[str, str]:
    return f"{nibble:x}", f"{nibble:X}"


_PATH_ENCODING = _encodings(_UNRESERVED + b"/", b"%2B")
_QUERY_ENCODING = _encodings(_UNRESERVED, b"%20")
