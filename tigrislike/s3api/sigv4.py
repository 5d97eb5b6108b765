"""AWS Signature Version 4, the server's side, for requests signed in a header or in the query string.

Authentication takes two steps, because the secret lies in a database::

    claimed = claim(method, raw_path, raw_query, headers)       # None: the request is anonymous
    verified = claimed.verify(secret_of(claimed.access_key_id), now_s)

`claim` only parses; nothing in a `Claim` can be trusted until `verify` has returned. The signature is checked over the
request exactly as it arrived: the caller passes the raw, undecoded path and query and every header line, never a
normalised copy. Any region is accepted, `auto` included.

A verified request promises that its method, path, query, signed headers and the payload *declaration* are the
signer's. It does not promise the payload: `Verified.payload` says how the body has to be checked while it streams
(against `payload_sha256`, or by `chunked.ChunkedDecoder`). Form uploads (`post_policy`), Signature Version 2 and the
asymmetric Version 4A are not handled here.

Rules: AWS General Reference, "Create a signed request"; Amazon S3 API Reference, "Authenticating Requests
(AWS Signature Version 4)".
"""

import enum
import hmac
import re
from calendar import timegm
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import mktime_tz, parsedate_tz
from functools import lru_cache
from hashlib import sha256
from time import gmtime, strftime
from urllib.parse import unquote_to_bytes

import msgspec

from tigrislike.s3api.canonical import canonical_path, query_pairs, sorted_query
from tigrislike.s3api.errors import S3Error

ALGORITHM = "AWS4-HMAC-SHA256"
EMPTY_SHA256 = sha256(b"").hexdigest()

MAX_SKEW_S = 15 * 60
# What a refused signature is explained with is longer than the request, so it is for requests of an ordinary size.
MAX_EXPLAINED_BYTES = 16 * 1024
MAX_KEPT_BYTES = 1024  # of a request's signature in a cache
# AWS stops at seven days; Tigris signs links for up to ninety, and its clients ask for them.
MAX_EXPIRES_S = 90 * 24 * 3600


class Payload(enum.Enum):
    """How the request declares its body, and so how the body has to be checked."""

    SIGNED = "SHA256"
    UNSIGNED = "UNSIGNED-PAYLOAD"
    STREAMING_SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
    STREAMING_SIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
    STREAMING_UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"

    @property
    def chunked(self) -> bool:
        """Whether the body is in the aws-chunked encoding."""
        return self in _CHUNKED


_CHUNKED = frozenset({Payload.STREAMING_SIGNED, Payload.STREAMING_SIGNED_TRAILER, Payload.STREAMING_UNSIGNED_TRAILER})
_DECLARED = {mode.value.encode(): mode for mode in Payload if mode is not Payload.SIGNED}


class SigningKey:
    """The key of one secret, day, region and service, ready to sign.

    HMAC-SHA256 with both of its first blocks already hashed: 0.7 us a signature, where `hmac.digest` takes 1.7 us
    (mostly to look up the algorithm).
    """

    __slots__ = ("_inner", "_outer", "_terms", "kept")

    def __init__(self, secret: str, date: str, region: str, service: str) -> None:
        self.kept = False
        self._terms = (secret, date, region, service)
        key = b"AWS4" + secret.encode()
        for part in (date, region, service, "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        block = key.ljust(64, b"\0")
        self._inner = sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = sha256(bytes(byte ^ 0x5C for byte in block))

    def sign(self, message: bytes) -> str:
        """The HMAC-SHA256 of `message`, in lower-case hexadecimal."""
        inner = self._inner.copy()
        inner.update(message)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.hexdigest()

    def keep(self) -> None:
        """Let `signing_key` find this key again: for its holder only, since anybody may name any day and region."""
        if len(_signing_keys) >= _MAX_SIGNING_KEYS:
            _signing_keys.pop(next(iter(_signing_keys))).kept = False
        _signing_keys[self._terms] = self
        self.kept = True


_MAX_SIGNING_KEYS = 4096
_signing_keys: dict[tuple[str, str, str, str], SigningKey] = {}  # those that verified a signature, oldest first


def signing_key(secret: str, date: str, region: str, service: str) -> SigningKey:
    """The key that signs for one day (`YYYYMMDD`), region and service; one that was kept need not be derived."""
    return _signing_keys.get((secret, date, region, service)) or SigningKey(secret, date, region, service)


class Verified(msgspec.Struct, frozen=True):
    """A request whose signature holds.

    `timestamp` is the signing time as signed (`20260131T235959Z`), `scope` is `date/region/service/aws4_request`;
    with `key` and `signature` (hex; the seed of a signed chunk chain) they are what `chunked.ChunkedDecoder` needs.
    `payload_sha256` is hex when `payload` is SIGNED, else empty. `security_token` is the token as presented ("" if
    none); whoever issued it has to check it.
    """

    access_key_id: str
    payload: Payload
    payload_sha256: str
    signature: str
    key: SigningKey
    timestamp: str
    scope: str
    region: str
    presigned: bool
    security_token: str


class _Signer(msgspec.Struct, frozen=True):
    """What of a signature is the same from request to request of one client on one day."""

    access_key_id: str
    date: str
    region: str
    service: str
    scope: str
    signed_headers: bytes
    names: tuple[bytes, ...]
    known: frozenset[bytes]


class Claim(msgspec.Struct, frozen=True):
    """What a request says of itself; call `verify` before believing any of it.

    `body_sha256_missing` is true for a request with a body whose signer did not send `x-amz-content-sha256` (plain
    SigV4, as curl signs it): such a signature covers the body's digest, so the caller has to read the whole body
    (bounded) and pass its SHA-256 to `verify`.
    """

    access_key_id: str
    payload: Payload
    presigned: bool
    security_token: str
    body_sha256_missing: bool
    _signer: _Signer
    _signature: bytes
    _timestamp: str
    _time_s: int
    _expires_s: int
    _unsigned: list[bytes]
    _content_sha256: bytes
    _method: str
    _path: bytes
    _query: bytes
    _pairs: list[tuple[bytes, bytes]]
    _headers: dict[bytes, bytes]

    @property
    def region(self) -> str:
        """The region in the credential scope: whatever the client was configured with."""
        return self._signer.region

    def verify(self, secret: str, now_s: float, *, body_sha256: str | None = None) -> Verified:
        """Check time, completeness and signature; `body_sha256` (hex) only where `body_sha256_missing` asks for it.

        Raises:
            S3Error: RequestTimeTooSkewed, AccessDenied (expired, not yet valid, unsigned `x-amz-*` headers),
                SignatureDoesNotMatch.
        """
        if self.presigned or not -MAX_SKEW_S <= self._time_s - now_s <= MAX_SKEW_S:
            self._check_time(now_s)
        if self._unsigned:
            raise S3Error(
                "AccessDenied",
                "There were headers present in the request which were not signed",
                extra={"HeadersNotSigned": ", ".join([name.decode("latin-1") for name in self._unsigned])},
            )
        signer = self._signer
        content_sha256 = self._content_sha256 or (body_sha256 or EMPTY_SHA256).encode()
        key = signing_key(secret, signer.date, signer.region, signer.service)
        lines = self._signed_lines()
        canonical = self._canonical(
            canonical_path(self._path), sorted_query(self._pairs) if self._pairs else b"", lines, content_sha256
        )
        to_sign = self._string_to_sign(canonical)
        if not hmac.compare_digest(key.sign(to_sign).encode(), self._signature):
            for variant in self._variants(lines, content_sha256):
                if hmac.compare_digest(key.sign(self._string_to_sign(variant)).encode(), self._signature):
                    break
            else:
                raise signature_mismatch(self.access_key_id, to_sign, self._signature.decode("latin-1"), canonical)
        if not key.kept:
            key.keep()
        return Verified(
            self.access_key_id,
            self.payload,
            content_sha256.decode() if self.payload is Payload.SIGNED else "",
            self._signature.decode(),
            key,
            self._timestamp,
            signer.scope,
            signer.region,
            self.presigned,
            self.security_token,
        )

    def _signed_lines(self) -> list[bytes]:
        # A header that is signed but absent counts as empty: the signature decides whether that was meant.
        headers = self._headers
        return [b"%b:%b\n" % (name, b" ".join(headers.get(name, b"").split())) for name in self._signer.names]

    def _canonical(self, path: bytes, query: bytes, lines: list[bytes], content_sha256: bytes) -> bytes:
        return b"%b\n%b\n%b\n%b\n%b\n%b" % (
            self._method.encode(),
            path,
            query,
            b"".join(lines),
            self._signer.signed_headers,
            content_sha256,
        )

    def _string_to_sign(self, canonical_request: bytes) -> bytes:
        digest = sha256(canonical_request).hexdigest()
        return f"AWS4-HMAC-SHA256\n{self._timestamp}\n{self._signer.scope}\n{digest}".encode()

    def _check_time(self, now_s: float) -> None:
        if not self.presigned:
            raise S3Error(
                "RequestTimeTooSkewed",
                extra={
                    "RequestTime": self._timestamp,
                    "ServerTime": _iso(now_s),
                    "MaxAllowedSkewMilliseconds": str(MAX_SKEW_S * 1000),
                },
            )
        if self._time_s - now_s > MAX_SKEW_S:
            raise S3Error(
                "AccessDenied",
                "Request is not valid yet",
                extra={"X-Amz-Date": self._timestamp, "ServerTime": _iso(now_s)},
            )
        if now_s > self._time_s + self._expires_s:
            raise S3Error(
                "AccessDenied",
                "Request has expired",
                extra={
                    "X-Amz-Expires": str(self._expires_s),
                    "Expires": _iso(self._time_s + self._expires_s),
                    "ServerTime": _iso(now_s),
                },
            )

    def _variants(self, lines: list[bytes], content_sha256: bytes) -> Iterable[bytes]:
        """Other canonical requests that mean the same request, for signers that stray from S3's form.

        Two liberties: the path and query exactly as sent, unencoded or over-encoded (curl and HTTP libraries that sign
        what they send), and a default port in or out of `host` (proxies and libraries that add or drop it). Each binds
        what this request asks for, so a signature over one authorises nothing else.
        """
        host = self._headers.get(b"host", b"")
        hosts = [host]
        name, colon, port = host.rpartition(b":")
        if colon and port in (b"80", b"443"):
            hosts.append(name)
        elif not colon or port.endswith(b"]"):
            hosts += [host + b":80", host + b":443"]
        strict = (canonical_path(self._path), sorted_query(self._pairs))
        as_sent = (self._path, sorted_query(_pairs_as_sent(self._query)))
        at = self._signer.names.index(b"host")
        for path, query in dict.fromkeys((strict, as_sent)):
            for variant in hosts:
                varied = [*lines[:at], b"host:%b\n" % b" ".join(variant.split()), *lines[at + 1 :]]
                yield self._canonical(path, query, varied, content_sha256)


def claim(
    method: str,
    raw_path: bytes,
    raw_query: bytes,
    headers: Iterable[tuple[bytes, bytes]],
    *,
    service: str = "s3",
) -> Claim | None:
    """Parse the signature of a request, or return None if it has none (an anonymous request).

    Args:
        method: upper case, as in the request line.
        raw_path: the path of the request target as sent, still percent-encoded, without the query.
        raw_query: what follows the first `?`, as sent.
        headers: every header line in order, names in lower case (as ASGI delivers them).
        service: the service that the credential scope has to name.

    Raises:
        S3Error: AuthorizationHeaderMalformed, AuthorizationQueryParametersError, InvalidArgument (two mechanisms at
            once, unknown mechanism, bad x-amz-content-sha256), InvalidRequest (Signature Version 2), AccessDenied (no
            usable date).
    """
    values: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in values:
            values[name] = values[name].strip() + b"," + value.strip()
        else:
            values[name] = value
    pairs = query_pairs(raw_query) if raw_query else []
    authorization = values.get(b"authorization")
    in_query = b"X-Amz-" in raw_query and any(name in _PRESIGN_MARKERS for name, _ in pairs)
    if authorization is not None:
        if in_query or (b"Signature=" in raw_query and any(name == b"Signature" for name, _ in pairs)):
            raise S3Error(
                "InvalidArgument",
                "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string "
                "parameter or the Authorization header should be specified",
                extra={"ArgumentName": "Authorization", "ArgumentValue": authorization.decode("latin-1")},
            )
        return _claim_from_header(method, raw_path, raw_query, pairs, values, authorization, service)
    if in_query:
        return _claim_from_query(method, raw_path, raw_query, pairs, values, service)
    if b"AWSAccessKeyId=" in raw_query and b"Signature=" in raw_query:
        raise _version_2()
    return None


@lru_cache(maxsize=4096)
def parse_timestamp(text: str) -> int:
    """Seconds since the epoch of `YYYYMMDD'T'HHMMSS'Z'`.

    Raises:
        ValueError: it is not such a time.
    """
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise ValueError(f"not in the form yyyyMMdd'T'HHmmss'Z': {text!r}")
    year, month, day, hour, minute, second = map(int, match.groups())
    return timegm(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timetuple())


def signature_mismatch(access_key_id: str, to_sign: bytes, provided: str, canonical_request: bytes = b"") -> S3Error:
    """SignatureDoesNotMatch with what S3 tells the client to compare (hex bytes included), but for a canonical request
    of more than `MAX_EXPLAINED_BYTES`."""
    extra = {
        "AWSAccessKeyId": access_key_id,
        "StringToSign": to_sign.decode("utf-8", "replace"),
        "SignatureProvided": provided,
        "StringToSignBytes": to_sign.hex(" "),
    }
    if 0 < len(canonical_request) <= MAX_EXPLAINED_BYTES:
        extra["CanonicalRequest"] = canonical_request.decode("utf-8", "replace")
        extra["CanonicalRequestBytes"] = canonical_request.hex(" ")
    return S3Error(
        "SignatureDoesNotMatch",
        "The request signature we calculated does not match the signature you provided. "
        "Check your key and signing method.",
        extra=extra,
    )


# --- the Authorization header ----------------------------------------------------------------------------------------


def _claim_from_header(
    method: str,
    path: bytes,
    query: bytes,
    pairs: list[tuple[bytes, bytes]],
    values: dict[bytes, bytes],
    authorization: bytes,
    service: str,
) -> Claim:
    front, marker, signature = authorization.rpartition(b"Signature=")
    # All but the signature is the same from request to request. What is long is not kept: senders choose it.
    signer = _signer(front, service) if marker and signature and len(front) < MAX_KEPT_BYTES else None
    if signer is None:
        front, _, signature = _in_order(authorization).rpartition(b"Signature=")
        signer = _parse_signer(front, service)
        if signer is None:
            raise _malformed(_CREDENTIAL_FORM)
    token = values.get(b"x-amz-security-token", b"").decode("latin-1")
    # Tigris's own clients sign with empty keys when a session token stands for them.
    if not signer.access_key_id and not token:
        raise _malformed("a non-empty Access Key (AKID) must be provided in the credential.")
    timestamp, time_s = _header_time(values)
    if not timestamp.startswith(signer.date):
        raise _malformed(
            f'Invalid credential date "{signer.date}". This date is not the same as X-Amz-Date: "{timestamp[:8]}".'
        )
    content_sha256 = values.get(b"x-amz-content-sha256", b"")
    return Claim(
        signer.access_key_id,
        _payload(content_sha256) if content_sha256 else Payload.SIGNED,
        False,
        token,
        not content_sha256 and (values.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in values),
        signer,
        signature.rstrip(),
        timestamp,
        time_s,
        0,
        _not_signed(values, signer.known),
        content_sha256,
        method,
        path,
        query,
        pairs,
        values,
    )


_SIGNER = re.compile(
    rb"AWS4-HMAC-SHA256[ \t]+Credential=([!-+\--~]*)/([0-9]{8})/([!-+\--.0-~]*)/([!-+\--.0-~]+)/aws4_request[ \t]*,"
    rb"[ \t]*SignedHeaders=([^,\s]+)[ \t]*,[ \t]*"
)


def _parse_signer(front: bytes, service: str) -> _Signer | None:
    match = _SIGNER.fullmatch(front)
    if match is None:
        return None
    access_key_id, date, region, named = (group.decode() for group in match.groups()[:4])
    if named != service:
        raise _malformed(f'incorrect service "{named}". This endpoint belongs to "{service}".')
    signer = _new_signer(access_key_id, date, region, service, match[5])
    if signer is None:
        raise _malformed("SignedHeaders names a header more than once.")
    return signer


_signer = lru_cache(maxsize=1024)(_parse_signer)


def _new_signer(access_key_id: str, date: str, region: str, service: str, signed_headers: bytes) -> _Signer | None:
    """None where a header is named twice: each time would repeat its value, so that little asks for much hashing."""
    names = tuple(signed_headers.lower().split(b";"))
    known = frozenset(names)
    if len(known) != len(names):
        return None
    scope = f"{date}/{region}/{service}/aws4_request"
    return _Signer(access_key_id, date, region, service, scope, signed_headers, names, known)


_presigner = lru_cache(maxsize=256)(_new_signer)


def _in_order(value: bytes) -> bytes:
    """The header with its three components in the usual order, or the error that says what is wrong with it."""
    mechanism, _, rest = value.strip().partition(b" ")
    if mechanism == b"AWS":
        raise _version_2()
    if mechanism != b"AWS4-HMAC-SHA256":
        raise S3Error(
            "InvalidArgument",
            "Unsupported Authorization Type",
            extra={"ArgumentName": "Authorization", "ArgumentValue": value.decode("latin-1")},
        )
    parts: dict[bytes, bytes] = {}
    for component in rest.split(b","):
        name, _, text = component.strip().partition(b"=")
        if name in parts:
            raise _malformed(f"{name.decode('latin-1')} is given twice.")
        parts[name] = text.strip()
    missing = [name for name in (b"Credential", b"SignedHeaders", b"Signature") if not parts.get(name)]
    if missing:
        raise _malformed(
            "the authorization header requires three components: Credential, SignedHeaders, and Signature; "
            f"missing {', '.join(name.decode() for name in missing)}."
        )
    fields = parts[b"Credential"].rsplit(b"/", 4)
    if len(fields) != 5:
        raise _malformed(_CREDENTIAL_FORM)
    if not re.fullmatch(rb"[0-9]{8}", fields[1]):
        raise _malformed(
            f'incorrect date format "{fields[1].decode("latin-1")}". '
            'This date in the credential must be in the format "yyyyMMdd".'
        )
    if fields[4] != b"aws4_request":
        raise _malformed(f'incorrect terminal "{fields[4].decode("latin-1")}". This endpoint uses "aws4_request".')
    return b"AWS4-HMAC-SHA256 Credential=%b, SignedHeaders=%b, Signature=%b" % (
        parts[b"Credential"],
        parts[b"SignedHeaders"],
        parts[b"Signature"],
    )


def _header_time(values: dict[bytes, bytes]) -> tuple[str, int]:
    text = values.get(b"x-amz-date")
    try:
        if text is not None:
            timestamp = text.decode("latin-1").strip()
            return timestamp, parse_timestamp(timestamp)
        date = values.get(b"date", b"").strip().decode("latin-1")
        if _TIMESTAMP.fullmatch(date):
            return date, parse_timestamp(date)
        parsed = parsedate_tz(date)
        if parsed is not None:
            seconds = mktime_tz(parsed)
            return strftime("%Y%m%dT%H%M%SZ", gmtime(seconds)), seconds
    except (ValueError, OverflowError, OSError):
        pass  # falls through to the one error for every unusable date
    raise S3Error("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header")


# --- the query string ------------------------------------------------------------------------------------------------

_PRESIGN_MARKERS = frozenset({b"X-Amz-Algorithm", b"X-Amz-Credential", b"X-Amz-Signature"})
_PRESIGN_REQUIRED = (
    b"X-Amz-Algorithm",
    b"X-Amz-Credential",
    b"X-Amz-Signature",
    b"X-Amz-Date",
    b"X-Amz-SignedHeaders",
    b"X-Amz-Expires",
)


def _claim_from_query(
    method: str,
    path: bytes,
    query: bytes,
    pairs: list[tuple[bytes, bytes]],
    values: dict[bytes, bytes],
    service: str,
) -> Claim:
    given: dict[bytes, str] = {}
    for name, value in pairs:
        if name.startswith(b"X-Amz-"):
            if name in given:
                raise _bad_query(f"{name.decode('latin-1')} is given more than once")
            try:
                given[name] = (unquote_to_bytes(value) if b"%" in value else value).decode("ascii")
            except UnicodeDecodeError:
                raise _bad_query(f"{name.decode('latin-1')} has characters that are not ASCII") from None
    if any(not given.get(name) for name in _PRESIGN_REQUIRED):
        raise _bad_query(
            "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, X-Amz-Signature, "
            "X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters."
        )
    if given[b"X-Amz-Algorithm"] != ALGORITHM:
        raise _bad_query(f'X-Amz-Algorithm only supports "{ALGORITHM}"')
    token = given.get(b"X-Amz-Security-Token") or values.get(b"x-amz-security-token", b"").decode("latin-1")
    access_key_id, date, region = _presign_credential(given[b"X-Amz-Credential"], service, bool(token))
    timestamp = given[b"X-Amz-Date"]
    try:
        time_s = parse_timestamp(timestamp)
    except ValueError:
        raise _bad_query(
            "X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"",
        ) from None
    if timestamp[:8] != date:
        raise _bad_query(
            f'Invalid credential date "{date}". This date is not the same as X-Amz-Date: "{timestamp[:8]}".'
        )
    expires_s = _presign_expires(given[b"X-Amz-Expires"])

    signed_headers = given[b"X-Amz-SignedHeaders"].encode()
    new_signer = _presigner if len(query) < MAX_KEPT_BYTES else _new_signer
    signer = new_signer(access_key_id, date, region, service, signed_headers)
    if signer is None:
        raise _bad_query("X-Amz-SignedHeaders names a header more than once")
    # The value of x-amz-content-sha256 is the last line of the canonical request, so signed wherever it stands.
    content_sha256 = given.get(b"X-Amz-Content-Sha256", "").encode() or values.get(
        b"x-amz-content-sha256", b"UNSIGNED-PAYLOAD"
    )
    return Claim(
        access_key_id,
        _payload(content_sha256),
        True,
        token,
        False,
        signer,
        given[b"X-Amz-Signature"].encode(),
        timestamp,
        time_s,
        expires_s,
        _not_signed(values, signer.known),
        content_sha256,
        method,
        path,
        query,
        [pair for pair in pairs if pair[0] != b"X-Amz-Signature"],
        values,
    )


@lru_cache(maxsize=256)
def _presign_credential(text: str, service: str, has_token: bool) -> tuple[str, str, str]:
    fields = text.rsplit("/", 4)
    if len(fields) != 5 or not text.isprintable() or " " in text:
        raise _bad_query(f"Error parsing the X-Amz-Credential parameter; {_CREDENTIAL_FORM}")
    access_key_id, date, region, named, terminal = fields
    prefix = "Error parsing the X-Amz-Credential parameter; "
    if not re.fullmatch("[0-9]{8}", date):
        raise _bad_query(
            f'{prefix}incorrect date format "{date}". This date in the credential must be in the format "yyyyMMdd".'
        )
    if named != service:
        raise _bad_query(f'{prefix}incorrect service "{named}". This endpoint belongs to "{service}".')
    if terminal != "aws4_request":
        raise _bad_query(f'{prefix}incorrect terminal "{terminal}". This endpoint uses "aws4_request".')
    if not access_key_id and not has_token:
        raise _bad_query(f"{prefix}a non-empty Access Key (AKID) must be provided in the credential.")
    return access_key_id, date, region


def _presign_expires(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise _bad_query("X-Amz-Expires should be a number")
    expires_s = int(text)
    if expires_s < 0:
        raise _bad_query("X-Amz-Expires must be non-negative")
    if expires_s > MAX_EXPIRES_S:
        raise _bad_query(
            "X-Amz-Expires must be less than 90 days (in seconds); "
            f"that is, the given X-Amz-Expires must be less than {MAX_EXPIRES_S} seconds"
        )
    return expires_s


# --- what both share -------------------------------------------------------------------------------------------------

_TIMESTAMP = re.compile(r"((?:19[7-9]|2[0-9][0-9])[0-9])([0-9]{2})([0-9]{2})T([0-9]{2})([0-9]{2})([0-9]{2})Z")
_SHA256 = re.compile(rb"[0-9a-f]{64}")
_CREDENTIAL_FORM = 'the Credential is mal-formed; expecting "<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".'


def _not_signed(headers: dict[bytes, bytes], signed: frozenset[bytes]) -> list[bytes]:
    """Headers that S3 wants signed and that are not: `host`, and every `x-amz-*` that arrived.

    `x-amz-content-sha256` is signed in any case, by its value in the last line of the canonical request.
    """
    missing = [
        name for name in headers if name[:6] == b"x-amz-" and name not in signed and name != b"x-amz-content-sha256"
    ]
    return missing if b"host" in signed else [b"host", *missing]


def _payload(content_sha256: bytes) -> Payload:
    mode = _DECLARED.get(content_sha256)
    if mode is not None:
        return mode
    if _SHA256.fullmatch(content_sha256):
        return Payload.SIGNED
    raise S3Error(
        "InvalidArgument",
        "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, "
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a valid sha256 value.",
        extra={"ArgumentName": "x-amz-content-sha256", "ArgumentValue": content_sha256.decode("latin-1")},
    )


def _pairs_as_sent(query: bytes) -> list[tuple[bytes, bytes]]:
    segments = (segment.partition(b"=") for segment in query.split(b"&") if segment)
    return [(name, value) for name, _, value in segments if name != b"X-Amz-Signature"]


def _iso(time_s: float) -> str:
    return strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(time_s))


def _malformed(what: str) -> S3Error:
    return S3Error("AuthorizationHeaderMalformed", f"The authorization header is malformed; {what}")


def _bad_query(what: str) -> S3Error:
    return S3Error("AuthorizationQueryParametersError", what)


def _version_2() -> S3Error:
    return S3Error(
        "InvalidRequest",
        "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.",
    )
