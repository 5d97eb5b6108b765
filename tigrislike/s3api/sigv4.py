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

from tigrislike.s3api.errors import S3Error

ALGORITHM = "AWS4-HMAC-SHA256"
EMPTY_SHA256 = sha256(b"").hexdigest()

MAX_SKEW_S = 15 * 60
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


class Verified(msgspec.Struct, frozen=True):
    """A request whose signature holds.

    `timestamp` is the signing time as signed (`20260131T235959Z`), `scope` is `date/region/service/aws4_request`;
    with `signing_key` (32 bytes) and `signature` (hex; the seed of a signed chunk chain) they are what
    `chunked.ChunkedDecoder` needs. `payload_sha256` is hex when `payload` is SIGNED, else empty. `security_token` is
    the token as presented; whoever issued it has to check it.
    """

    access_key_id: str
    payload: Payload
    payload_sha256: str
    signature: str
    signing_key: bytes
    timestamp: str
    scope: str
    region: str
    presigned: bool
    security_token: str


class Claim(msgspec.Struct, frozen=True):
    """What a request says of itself; call `verify` before believing any of it.

    `body_sha256_missing` is true for a request with a body whose signer did not send `x-amz-content-sha256` (plain
    SigV4, as curl signs it): such a signature covers the body's digest, so the caller has to read the whole body
    (bounded) and pass its SHA-256 to `verify`.
    """

    access_key_id: str
    region: str
    payload: Payload
    presigned: bool
    security_token: str
    body_sha256_missing: bool
    _signature: str
    _timestamp: str
    _time_s: int
    _expires_s: int
    _scope: bytes
    _service: str
    _method: str
    _path: bytes
    _query: bytes
    _query_pairs: "list[tuple[bytes, bytes]]"
    _signed_headers: bytes
    _signed_names: "tuple[bytes, ...]"
    _headers: "dict[bytes, bytes]"
    _unsigned: "tuple[bytes, ...]"
    _content_sha256: bytes

    def verify(self, secret: str, now_s: float, *, body_sha256: str | None = None) -> Verified:
        """Check time, completeness and signature; `body_sha256` (hex) only where `body_sha256_missing` asks for it.

        Raises:
            S3Error: RequestTimeTooSkewed, AccessDenied (expired, not yet valid, unsigned `x-amz-*` headers),
                SignatureDoesNotMatch.
        """
        skew_s = self._time_s - now_s
        if self.presigned:
            self._check_lifetime(now_s)
        elif skew_s > MAX_SKEW_S or -skew_s > MAX_SKEW_S:
            raise S3Error(
                "RequestTimeTooSkewed",
                "The difference between the request time and the current time is too large.",
                extra={
                    "RequestTime": self._timestamp,
                    "ServerTime": _iso(now_s),
                    "MaxAllowedSkewMilliseconds": str(MAX_SKEW_S * 1000),
                },
            )
        if self._unsigned:
            raise S3Error(
                "AccessDenied",
                "There were headers present in the request which were not signed",
                extra={"HeadersNotSigned": ", ".join(name.decode("latin-1") for name in self._unsigned)},
            )
        if self._content_sha256:
            content_sha256 = self._content_sha256
        else:
            content_sha256 = (body_sha256 or EMPTY_SHA256).encode()

        names, headers = self._signed_names, self._headers
        canonical = b"%b\n%b\n%b\n%b\n\n%b\n%b" % (
            self._method.encode(),
            _canonical_path(self._path),
            _canonical_query(self._query_pairs),
            b"\n".join([name + b":" + b" ".join(headers.get(name, b"").split()) for name in names]),
            self._signed_headers,
            content_sha256,
        )
        key = signing_key(secret, self._timestamp[:8], self.region, self._service)
        to_sign = self._string_to_sign(canonical)
        if not hmac.compare_digest(hmac.digest(key, to_sign, "sha256").hex(), self._signature):
            for variant in self._variants(content_sha256):
                if hmac.compare_digest(
                    hmac.digest(key, self._string_to_sign(variant), "sha256").hex(), self._signature
                ):
                    break
            else:
                raise signature_mismatch(self.access_key_id, to_sign, self._signature, canonical)
        return Verified(
            self.access_key_id,
            self.payload,
            content_sha256.decode() if self.payload is Payload.SIGNED else "",
            self._signature,
            key,
            self._timestamp,
            self._scope.decode(),
            self.region,
            self.presigned,
            self.security_token,
        )

    def _string_to_sign(self, canonical_request: bytes) -> bytes:
        digest = sha256(canonical_request).hexdigest().encode()
        return b"AWS4-HMAC-SHA256\n%b\n%b\n%b" % (self._timestamp.encode(), self._scope, digest)

    def _check_lifetime(self, now_s: float) -> None:
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

    def _variants(self, content_sha256: bytes) -> Iterable[bytes]:
        """Other canonical requests that mean the same request, for signers that stray from S3's form.

        Two liberties: the path and query exactly as sent, unencoded or over-encoded (curl and HTTP libraries that sign
        what they send), and a default port in or out of `host` (proxies and libraries that add or drop it). Each binds
        the very bytes of this request, so nothing but this request can be authorised by it.
        """
        hosts = [self._headers.get(b"host", b"")]
        name, colon, port = hosts[0].rpartition(b":")
        if colon and port in (b"80", b"443"):
            hosts.append(name)
        elif not colon or port.endswith(b"]"):
            hosts += [hosts[0] + b":80", hosts[0] + b":443"]
        strict = (_canonical_path(self._path), _canonical_query(self._query_pairs))
        as_sent = (self._path, _sorted_query(_as_sent(self._query)))
        for path, query in dict.fromkeys((strict, as_sent)):
            for host in hosts:
                headers = {**self._headers, b"host": host}
                lines = b"\n".join(n + b":" + b" ".join(headers.get(n, b"").split()) for n in self._signed_names)
                yield b"%b\n%b\n%b\n%b\n\n%b\n%b" % (
                    self._method.encode(),
                    path,
                    query,
                    lines,
                    self._signed_headers,
                    content_sha256,
                )


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
    amz: list[bytes] = []
    for name, value in headers:
        if name in values:
            values[name] = values[name].strip() + b"," + value.strip()
        else:
            values[name] = value
            if name[:6] == b"x-amz-":
                amz.append(name)
    pairs = _query_pairs(raw_query) if raw_query else []
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
        return _claim_from_header(method, raw_path, raw_query, pairs, values, amz, authorization, service)
    if in_query:
        return _claim_from_query(method, raw_path, raw_query, pairs, values, amz, service)
    if b"AWSAccessKeyId=" in raw_query and b"Signature=" in raw_query:
        raise _version_2()
    return None


@lru_cache(maxsize=4096)
def signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    """The 32-byte key that signs for one day (`YYYYMMDD`), region and service; the 4096 latest are kept."""
    key = b"AWS4" + secret.encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


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
    """SignatureDoesNotMatch with what S3 tells the client to compare (hex bytes included)."""
    extra = {
        "AWSAccessKeyId": access_key_id,
        "StringToSign": to_sign.decode("utf-8", "replace"),
        "SignatureProvided": provided,
        "StringToSignBytes": to_sign.hex(" "),
    }
    if canonical_request:
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
    amz: list[bytes],
    authorization: bytes,
    service: str,
) -> Claim:
    access_key_id, date, region, signed, signature, scope = _parse_authorization(authorization, service)
    token = values.get(b"x-amz-security-token", b"").decode("latin-1")
    # Tigris's own clients sign with empty keys when a session token stands for them.
    if not access_key_id and not token:
        raise _malformed("a non-empty Access Key (AKID) must be provided in the credential.")
    timestamp, time_s = _header_time(values)
    if timestamp[:8] != date:
        raise _malformed(
            f'Invalid credential date "{date}". This date is not the same as X-Amz-Date: "{timestamp[:8]}".'
        )
    names, known = _split_signed_headers(signed)
    content_sha256 = values.get(b"x-amz-content-sha256", b"")
    payload = _payload(content_sha256) if content_sha256 else Payload.SIGNED
    unsigned = _unsigned(amz, known)
    has_body = not content_sha256 and (values.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in values)
    return Claim(
        access_key_id, region, payload, False, token, has_body, signature, timestamp, time_s, 0, scope, service,
        method, path, query, pairs, signed, names, values, unsigned, content_sha256,
    )  # fmt: skip


_CREDENTIAL = rb"([!-+\--~]*)/([0-9]{8})/([!-+\--.0-~]*)/([!-+\--.0-~]+)/aws4_request"
_AUTHORIZATION = re.compile(
    rb"AWS4-HMAC-SHA256[ \t]+Credential=" + _CREDENTIAL + rb"[ \t]*,[ \t]*SignedHeaders=([^,\s]+)[ \t]*,[ \t]*"
    rb"Signature=([^,\s]+)[ \t]*"
)


def _parse_authorization(value: bytes, service: str) -> tuple[str, str, str, bytes, str, bytes]:
    """Access key id, date, region, SignedHeaders, signature and scope."""
    match = _AUTHORIZATION.fullmatch(value)
    if match is None:
        match = _AUTHORIZATION.fullmatch(_reordered(value))
    if match is None:
        raise _malformed(_CREDENTIAL_FORM)
    key, date, region, named, signed, signature = match.groups()
    if named.decode("latin-1") != service:
        raise _malformed(f'incorrect service "{named.decode("latin-1")}". This endpoint belongs to "{service}".')
    scope = b"%b/%b/%b/aws4_request" % (date, region, named)
    return (
        key.decode(),
        date.decode(),
        region.decode(),
        signed,
        signature.decode("latin-1"),
        scope,
    )


def _reordered(value: bytes) -> bytes:
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
            timestamp = text.strip().decode("latin-1")
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
    amz: list[bytes],
    service: str,
) -> Claim:
    given: dict[bytes, str] = {}
    for name, value in pairs:
        if name.startswith(b"X-Amz-"):
            if name in given:
                raise _bad_query(f"{name.decode('latin-1')} is given more than once")
            try:
                given[name] = unquote_to_bytes(value).decode("ascii")
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

    signed = given[b"X-Amz-SignedHeaders"].encode()
    names, known = _split_signed_headers(signed)
    # The value of x-amz-content-sha256 is the last line of the canonical request, so signed wherever it stands.
    content_sha256 = given.get(b"X-Amz-Content-Sha256", "").encode() or values.get(
        b"x-amz-content-sha256", b"UNSIGNED-PAYLOAD"
    )
    scope = f"{date}/{region}/{service}/aws4_request".encode()
    return Claim(
        access_key_id, region, _payload(content_sha256), True, token, False, given[b"X-Amz-Signature"], timestamp,
        time_s, expires_s, scope, service, method, path, query,
        [pair for pair in pairs if pair[0] != b"X-Amz-Signature"], signed, names, values, _unsigned(amz, known),
        content_sha256,
    )  # fmt: skip


def _presign_credential(text: str, service: str, has_token: bool) -> tuple[str, str, str]:
    fields = text.rsplit("/", 4)
    if len(fields) != 5 or any(c.isspace() for c in text):
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
_CREDENTIAL_FORM = (
    'the Credential is mal-formed; expecting "<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".'
)


@lru_cache(maxsize=256)
def _split_signed_headers(signed: bytes) -> tuple[tuple[bytes, ...], frozenset[bytes]]:
    # Few distinct lists exist per client, and each is asked for on every request.
    names = tuple(signed.lower().split(b";"))
    return names, frozenset(names)


def _unsigned(amz: list[bytes], signed: frozenset[bytes]) -> tuple[bytes, ...]:
    """Headers that S3 wants signed and that are not: `host`, and every `x-amz-*` that arrived."""
    missing = [name for name in amz if name not in signed and name != b"x-amz-content-sha256"]
    if b"host" not in signed:
        missing.insert(0, b"host")
    return tuple(missing)


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


_PLAIN_PATH = re.compile(rb"[A-Za-z0-9\-._~/]*")
_PLAIN = re.compile(rb"[A-Za-z0-9\-._~]*")
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
_QUERY_ENCODING = _encodings(_UNRESERVED, b"%20")  # S3 reads + in a query as a space


def _canonical_path(path: bytes) -> bytes:
    """Decoded once and encoded once, with nothing else normalised: `//` and `..` are part of a key."""
    if _PLAIN_PATH.fullmatch(path):
        return path or b"/"
    return _PATH_TOKEN.sub(lambda token: _PATH_ENCODING[token[0]], path)


def _query_pairs(query: bytes) -> list[tuple[bytes, bytes]]:
    pairs = []
    for segment in query.split(b"&"):
        if segment:
            name, _, value = segment.partition(b"=")
            if not _PLAIN.fullmatch(name):
                name = _TOKEN.sub(lambda token: _QUERY_ENCODING[token[0]], name)
            if not _PLAIN.fullmatch(value):
                value = _TOKEN.sub(lambda token: _QUERY_ENCODING[token[0]], value)
            pairs.append((name, value))
    return pairs


def _canonical_query(pairs: list[tuple[bytes, bytes]]) -> bytes:
    return _sorted_query(pairs) if pairs else b""


def _sorted_query(pairs: list[tuple[bytes, bytes]]) -> bytes:
    return b"&".join([name + b"=" + value for name, value in sorted(pairs)])


def _as_sent(query: bytes) -> list[tuple[bytes, bytes]]:
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
