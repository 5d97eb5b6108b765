"""SigV4 against AWS's published examples, botocore's signers, and everything that can be wrong with a signature."""

import datetime
import hashlib
from collections.abc import Callable
from typing import Any
from unittest import mock
from urllib.parse import quote, urlsplit

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from tigrislike.s3api import sigv4
from tigrislike.s3api.canonical import canonical_path, query_pairs, sorted_query
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.sigv4 import Claim, Payload, Verified

KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
NOW_S = sigv4.parse_timestamp("20130524T000000Z")
SCOPE = "20130524/us-east-1/s3/aws4_request"

Wire = tuple[str, bytes, bytes, list[tuple[bytes, bytes]]]


def header_wire(
    method: str, target: str, headers: dict[str, str], signed: str, signature: str, scope: str = SCOPE, key: str = KEY
) -> Wire:
    path, _, query = target.partition("?")
    authorization = f"AWS4-HMAC-SHA256 Credential={key}/{scope},SignedHeaders={signed},Signature={signature}"
    lines = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return method, path.encode(), query.encode(), [*lines, (b"authorization", authorization.encode())]


def claimed(wire: Wire, **options: Any) -> Claim:
    claim = sigv4.claim(*wire, **options)
    assert claim is not None
    return claim


def verify(wire: Wire, now_s: float = NOW_S, secret: str = SECRET, **options: Any) -> Verified:
    return claimed(wire).verify(secret, now_s, **options)


def refusal(attempt: Callable[[], object]) -> S3Error:
    with pytest.raises(S3Error) as caught:
        attempt()
    return caught.value


def botocore_wire(
    method: str,
    url: str,
    headers: dict[str, str] | None = None,
    data: bytes = b"",
    *,
    expires: int | None = None,
    region: str = "auto",
    service: str = "s3",
    token: str | None = None,
    when: str = "20130524T000000Z",
    unsigned_payload: bool = False,
) -> Wire:
    request = AWSRequest(method, url, headers=headers or {}, data=data)
    request.context["payload_signing_enabled"] = not unsigned_payload
    if unsigned_payload:
        request.context["client_config"] = mock.Mock(s3={"payload_signing_enabled": False})
    credentials = Credentials(KEY, SECRET, token)
    if expires is not None:
        signer = S3SigV4QueryAuth(credentials, service, region, expires=expires)
    elif service == "s3":
        signer = S3SigV4Auth(credentials, service, region)
    else:
        signer = SigV4Auth(credentials, service, region)
    now = datetime.datetime.strptime(when, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
    with mock.patch("botocore.auth.get_current_datetime", return_value=now):
        signer.add_auth(request)
    parts = urlsplit(request.url)
    lines = [(name.lower().encode(), value.encode("utf-8")) for name, value in request.headers.items()]
    if all(name != b"host" for name, _ in lines):
        lines.append((b"host", parts.netloc.encode()))
    return request.method, parts.path.encode(), parts.query.encode(), lines


def with_header(wire: Wire, name: str, value: str | None) -> Wire:
    method, path, query, lines = wire
    kept = [line for line in lines if line[0] != name.encode()]
    return method, path, query, kept if value is None else [*kept, (name.encode(), value.encode())]


# --- AWS's examples: "Authenticating Requests: Using the Authorization Header" / "Using Query Parameters" -------------

EXAMPLE_HOST = "examplebucket.s3.amazonaws.com"
EMPTY = hashlib.sha256(b"").hexdigest()


def test_example_get_object_with_range() -> None:
    wire = header_wire(
        "GET",
        "/test.txt",
        {
            "Host": EXAMPLE_HOST,
            "Range": "bytes=0-9",
            "x-amz-content-sha256": EMPTY,
            "x-amz-date": "20130524T000000Z",
        },
        "host;range;x-amz-content-sha256;x-amz-date",
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    )
    verified = verify(wire)
    assert verified.access_key_id == KEY
    assert verified.payload is Payload.SIGNED
    assert verified.payload_sha256 == EMPTY
    assert verified.scope == SCOPE
    assert verified.region == "us-east-1"
    assert not verified.presigned
    assert verified.security_token == ""


def test_example_put_object() -> None:
    body_sha256 = hashlib.sha256(b"Welcome to Amazon S3.").hexdigest()
    wire = header_wire(
        "PUT",
        "/test%24file.text",
        {
            "Date": "Fri, 24 May 2013 00:00:00 GMT",
            "Host": EXAMPLE_HOST,
            "x-amz-content-sha256": body_sha256,
            "x-amz-date": "20130524T000000Z",
            "x-amz-storage-class": "REDUCED_REDUNDANCY",
        },
        "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
        "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    )
    assert verify(wire).payload_sha256 == body_sha256
    # The same request with the reserved character sent bare is the same request.
    assert verify((wire[0], b"/test$file.text", wire[2], wire[3])).payload_sha256 == body_sha256


@pytest.mark.parametrize("target", ["/?lifecycle", "/?lifecycle="])
def test_example_bare_query_flag(target: str) -> None:
    wire = header_wire(
        "GET",
        target,
        {"Host": EXAMPLE_HOST, "x-amz-content-sha256": EMPTY, "x-amz-date": "20130524T000000Z"},
        "host;x-amz-content-sha256;x-amz-date",
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
    )
    verify(wire)


@pytest.mark.parametrize("target", ["/?max-keys=2&prefix=J", "/?prefix=J&max-keys=2"])
def test_example_list_objects(target: str) -> None:
    wire = header_wire(
        "GET",
        target,
        {"Host": EXAMPLE_HOST, "x-amz-content-sha256": EMPTY, "x-amz-date": "20130524T000000Z"},
        "host;x-amz-content-sha256;x-amz-date",
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
    )
    verify(wire)


PRESIGNED = (
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
    "&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
    "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
)


def presigned_wire(query: str = PRESIGNED) -> Wire:
    return "GET", b"/test.txt", query.encode(), [(b"host", EXAMPLE_HOST.encode())]


def test_example_presigned_url() -> None:
    verified = verify(presigned_wire(), NOW_S + 86400)
    assert verified.presigned
    assert verified.payload is Payload.UNSIGNED
    assert verified.payload_sha256 == ""


def test_example_seed_of_a_chunked_upload() -> None:
    wire = header_wire(
        "PUT",
        "/examplebucket/chunkObject.txt",
        {
            "Host": "s3.amazonaws.com",
            "x-amz-date": "20130524T000000Z",
            "x-amz-storage-class": "REDUCED_REDUNDANCY",
            "x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
            "Content-Encoding": "aws-chunked",
            "x-amz-decoded-content-length": "66560",
            "Content-Length": "66824",
        },
        "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;"
        "x-amz-storage-class",
        "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
    )
    verified = verify(wire)
    assert verified.payload is Payload.STREAMING_SIGNED
    assert verified.payload.chunked
    assert verified.payload_sha256 == ""
    assert verified.timestamp == "20130524T000000Z"


# --- what botocore signs, verifies -----------------------------------------------------------------------------------

keys = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40) | st.sampled_from(
    ["a//b", "/a", "a/../b", "..", "a%2Fb", "a+b c", "ключ/文件", "\x00\x01\x7f", "a~b*c'(d)!", "%", "%zz", "a?b#c"]
)
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
queries = st.dictionaries(
    st.sampled_from(["prefix", "delimiter", "list-type", "marker", "versionId", "uploads", "x-id"]), keys | st.just("")
)
metadata = st.dictionaries(st.from_regex(r"x-amz-meta-[a-z0-9-]{1,8}", fullmatch=True), texts, max_size=4)


def url_of(key: str, query: dict[str, str], host: str = "127.0.0.1:9000") -> str:
    text = "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in query.items())
    return f"http://{host}/bucket/{quote(key, safe='/-_.~')}" + (f"?{text}" if text else "")


@given(key=keys, query=queries, headers=metadata, data=st.binary(max_size=50), region=st.sampled_from(["auto", "x"]))
@settings(max_examples=200, deadline=None)
def test_every_header_signed_by_botocore_verifies(
    key: str, query: dict[str, str], headers: dict[str, str], data: bytes, region: str
) -> None:
    verified = verify(botocore_wire("PUT", url_of(key, query), headers, data, region=region))
    assert verified.region == region
    assert verified.payload_sha256 == hashlib.sha256(data).hexdigest()


@given(key=keys, query=queries, expires=st.integers(1, sigv4.MAX_EXPIRES_S), headers=metadata)
@settings(max_examples=200, deadline=None)
def test_every_url_presigned_by_botocore_verifies(
    key: str, query: dict[str, str], expires: int, headers: dict[str, str]
) -> None:
    wire = botocore_wire("GET", url_of(key, query), headers, expires=expires)
    assert verify(wire, NOW_S + expires).presigned


@given(
    wire=st.sampled_from(
        [
            botocore_wire("PUT", url_of("some/key é", {"tagging": "", "x": "1 2"}), {"x-amz-meta-a": "b  c"}, b"data"),
            botocore_wire("GET", url_of("some/key", {"versionId": "7"}), expires=100),
        ]
    ),
    data=st.data(),
)
@settings(max_examples=400, deadline=None)
def test_one_changed_byte_anywhere_never_verifies(wire: Wire, data: st.DataObject) -> None:
    method, path, query, lines = wire
    signed = [(name, value) for name, value in lines if name not in (b"accept-encoding", b"user-agent")]
    places: list[Any] = ["method", "path", *(["query"] if query else []), *range(len(signed))]
    place = data.draw(st.sampled_from(places))
    original = {"method": method.encode(), "path": path, "query": query}.get(place) if isinstance(place, str) else None
    text = signed[place][1] if original is None else original
    position = data.draw(st.integers(0, len(text) - 1))
    byte = data.draw(st.integers(33, 126).filter(lambda code: code != text[position]))
    changed = text[:position] + bytes((byte,)) + text[position + 1 :]
    if isinstance(place, int):
        signed = [*signed[:place], (signed[place][0], changed), *signed[place + 1 :]]
    tampered: Wire = (
        changed.decode("latin-1") if place == "method" else method,
        changed if place == "path" else path,
        changed if place == "query" else query,
        signed,
    )
    # Another spelling of the same request is the same request, and no spelling of another.
    if (
        place in ("path", "query")
        and canonical_path(tampered[1]) == canonical_path(path)
        and sorted_query(query_pairs(tampered[2])) == sorted_query(query_pairs(query))
    ):
        return
    try:
        claim = sigv4.claim(*tampered)
        if claim is not None and claim.access_key_id == KEY:
            claim.verify(SECRET, NOW_S)
        else:
            return  # anonymous or another key: nothing is authorised by this secret
    except S3Error:
        return
    pytest.fail(f"accepted {tampered!r}")


def test_wrong_secret_explains_what_was_signed() -> None:
    wire = botocore_wire("GET", "http://h/bucket/key?b=2&a=1")
    error = refusal(lambda: verify(wire, secret="another"))
    assert (error.code, error.status) == ("SignatureDoesNotMatch", 403)
    assert error.extra["AWSAccessKeyId"] == KEY
    assert error.extra["CanonicalRequest"].startswith("GET\n/bucket/key\na=1&b=2\n")
    assert error.extra["StringToSign"].startswith("AWS4-HMAC-SHA256\n20130524T000000Z\n20130524/auto/s3/aws4_request\n")
    assert bytes.fromhex(error.extra["StringToSignBytes"]) == error.extra["StringToSign"].encode()
    assert bytes.fromhex(error.extra["CanonicalRequestBytes"]) == error.extra["CanonicalRequest"].encode()
    assert len(error.extra["SignatureProvided"]) == 64


@pytest.mark.parametrize("spare", [0, 1])
def test_what_was_signed_is_explained_for_requests_of_an_ordinary_size(spare: int) -> None:
    empty = len(
        refusal(lambda: verify(botocore_wire("GET", "http://h/b/"), secret="another")).extra["CanonicalRequest"]
    )
    key = "k" * (sigv4.MAX_EXPLAINED_BYTES - empty + spare)
    error = refusal(lambda: verify(botocore_wire("GET", f"http://h/b/{key}"), secret="another"))
    assert error.code == "SignatureDoesNotMatch"
    assert ("CanonicalRequest" in error.extra) is ("CanonicalRequestBytes" in error.extra) is (not spare)


@pytest.mark.parametrize("names", ["host;host", "host;a;a", "HOST;host", ";".join(["host", *["a"] * 4000])])
def test_no_header_is_signed_twice(names: str) -> None:
    # Its value would be repeated for each time: 8 KB that ask for megabytes to be hashed.
    wire = header_wire("GET", "/", {"Host": "h", "x-amz-date": "20130524T000000Z", "a": "v" * 100}, names, "0" * 64)
    error = refusal(lambda: sigv4.claim(*wire))
    assert (error.code, error.status) == ("AuthorizationHeaderMalformed", 400)
    assert "names a header more than once" in error.message
    presigned = presigned_wire(PRESIGNED.replace("SignedHeaders=host", f"SignedHeaders={quote(names)}"))
    for _ in range(2):  # what is remembered of it is no better
        error = refusal(lambda: sigv4.claim(*presigned))
        assert (error.code, error.status) == ("AuthorizationQueryParametersError", 400)
        assert "names a header more than once" in error.message


def test_a_canonical_request_is_hardly_longer_than_the_request() -> None:
    names = ["host", *(f"{number:03x}" for number in range(3000)), "x-amz-content-sha256", "x-amz-date"]
    lines = [*plain_wire()[3], (b"000", b"v" * 3000)]
    headers = {name.decode(): value.decode() for name, value in lines}
    wire = header_wire("GET", "/b/k", headers, ";".join(names), "0" * 64)
    made = claimed(wire)
    for canonical in made._variants(made._signed_lines(), b""):
        assert len(canonical) < 3 * sum(len(name) + len(value) for name, value in wire[3])


# --- spelling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        (b"", b"/"),
        (b"/a/b", b"/a/b"),
        (b"/a//b/../c/./", b"/a//b/../c/./"),
        (b"/a%2fb", b"/a/b"),
        (b"/a%252Fb", b"/a%252Fb"),
        (b"/a+b c%20d", b"/a%2Bb%20c%20d"),
        (b"/%41%7e~", b"/A~~"),
        (b"/%C3%a9\xc3\xa9", b"/%C3%A9%C3%A9"),
        (b"/100%", b"/100%25"),
        (b"/%zz%4", b"/%25zz%254"),
        (b"/!*'()", b"/%21%2A%27%28%29"),
    ],
)
def test_canonical_path(raw: bytes, canonical: bytes) -> None:
    assert canonical_path(raw) == canonical


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        (b"uploads", b"uploads="),
        (b"uploads=", b"uploads="),
        (b"b=1&a=2&a=1", b"a=1&a=2&b=1"),
        (b"a-b=1&a=2", b"a=2&a-b=1"),
        (b"p=a+b", b"p=a%20b"),
        (b"p=a%2bb", b"p=a%2Bb"),
        (b"p=a/b=c", b"p=a%2Fb%3Dc"),
        (b"&&p=%7E&", b"p=~"),
        (b"%70=1", b"p=1"),
    ],
)
def test_canonical_query(raw: bytes, canonical: bytes) -> None:
    assert sorted_query(query_pairs(raw)) == canonical


@given(st.binary(max_size=30))
def test_canonical_forms_are_fixed_points(raw: bytes) -> None:
    path = canonical_path(raw)
    assert canonical_path(path) == path
    query = sorted_query(query_pairs(raw))
    assert sorted_query(query_pairs(query)) == query


def sign(
    wire: Wire, signed: list[str], path: bytes, query: bytes, host: bytes | None = None, body: str = EMPTY
) -> Wire:
    """Sign by hand, over whatever canonical form a test wants."""
    method, _, _, lines = wire
    values = dict(lines) | ({b"host": host} if host is not None else {})
    headers = b"".join(b"%b:%b\n" % (name.encode(), values[name.encode()]) for name in signed)
    names = ";".join(signed).encode()
    canonical = b"%b\n%b\n%b\n%b\n%b\n%b" % (method.encode(), path, query, headers, names, body.encode())
    to_sign = f"AWS4-HMAC-SHA256\n20130524T000000Z\n{SCOPE}\n{hashlib.sha256(canonical).hexdigest()}"
    signature = sigv4.signing_key(SECRET, "20130524", "us-east-1", "s3").sign(to_sign.encode())
    authorization = f"AWS4-HMAC-SHA256 Credential={KEY}/{SCOPE}, SignedHeaders={names.decode()}, Signature={signature}"
    return with_header(wire, "authorization", authorization)


def plain_wire(method: str = "GET", path: bytes = b"/b/k", query: bytes = b"", host: bytes = b"h") -> Wire:
    return method, path, query, [
        (b"host", host),
        (b"x-amz-date", b"20130524T000000Z"),
        (b"x-amz-content-sha256", EMPTY.encode()),
    ]  # fmt: skip


SIGNED = ["host", "x-amz-content-sha256", "x-amz-date"]


@pytest.mark.parametrize("path", [b"/b/a(1)*.txt", b"/b/a%2Fb", b"/b/%e6%96", b"/b/a$b"])
def test_a_client_that_signs_the_path_as_it_sends_it_is_understood(path: bytes) -> None:
    wire = plain_wire(path=path)
    verify(sign(wire, SIGNED, path, b""))
    verify(sign(wire, SIGNED, canonical_path(path), b""))


def test_a_client_that_signs_the_query_as_it_sends_it_is_understood() -> None:
    verify(sign(plain_wire(query=b"prefix=a/b&acl"), SIGNED, b"/b/k", b"acl=&prefix=a/b"))
    verify(sign(plain_wire(query=b"prefix=a/b&acl"), SIGNED, b"/b/k", b"acl=&prefix=a%2Fb"))


@pytest.mark.parametrize(
    ("sent", "signed"), [(b"h:80", b"h"), (b"h:443", b"h"), (b"h", b"h:80"), (b"h", b"h:443"), (b"[::1]", b"[::1]:80")]
)
def test_a_default_port_may_come_and_go(sent: bytes, signed: bytes) -> None:
    verify(sign(plain_wire(host=sent), SIGNED, b"/b/k", b"", host=signed))


def test_another_port_may_not() -> None:
    wire = sign(plain_wire(host=b"h:9000"), SIGNED, b"/b/k", b"", host=b"h")
    assert refusal(lambda: verify(wire)).code == "SignatureDoesNotMatch"


def test_header_whitespace_collapses_and_repeated_headers_join() -> None:
    method, path, query, lines = plain_wire()
    wire = sign(
        (method, path, query, [*lines, (b"x-amz-meta-a", b"one two,three")]), ["host", "x-amz-content-sha256",
        "x-amz-date", "x-amz-meta-a"], b"/b/k", b"",
    )  # fmt: skip
    spread = [line for line in wire[3] if line[0] != b"x-amz-meta-a"]
    spread += [(b"x-amz-meta-a", b"  one   two "), (b"x-amz-meta-a", b"three")]
    verify((method, path, query, spread))


def test_components_of_the_header_in_any_order_and_spacing() -> None:
    wire = botocore_wire("GET", "http://h/b/k")
    value = dict(wire[3])[b"authorization"].decode()
    credential, signed, signature = value.removeprefix("AWS4-HMAC-SHA256 ").split(", ")
    for text in (
        f"AWS4-HMAC-SHA256 {signature}, {signed}, {credential}",
        f"AWS4-HMAC-SHA256   {credential} ,{signed},  {signature} ",
        f"AWS4-HMAC-SHA256 {credential},{signed},{signature}",
    ):
        assert verify(with_header(wire, "authorization", text)).access_key_id == KEY


def test_an_access_key_may_contain_a_slash() -> None:
    wire = header_wire("GET", "/", {"Host": "h", "x-amz-date": "20130524T000000Z"}, "host", "0" * 64, key="a/b")
    assert claimed(wire).access_key_id == "a/b"


def test_another_service_can_be_asked_for() -> None:
    wire = botocore_wire("POST", "http://iam/", data=b"", service="iam", region="us-east-1")
    claim = claimed(wire, service="iam")
    assert claim.region == "us-east-1"
    assert claim.verify(SECRET, NOW_S).scope == "20130524/us-east-1/iam/aws4_request"
    assert refusal(lambda: sigv4.claim(*wire)).code == "AuthorizationHeaderMalformed"


# --- payload declarations, tokens, dates -----------------------------------------------------------------------------


def test_unsigned_payload() -> None:
    wire = botocore_wire("PUT", "https://h/b/k", {"content-md5": "x"}, b"data", unsigned_payload=True)
    assert verify(wire).payload is Payload.UNSIGNED


def test_a_body_digest_that_was_signed_but_not_sent_is_taken_from_the_body() -> None:
    body_sha256 = hashlib.sha256(b"data").hexdigest()
    method, path, query, lines = plain_wire("PUT")
    bare: Wire = (method, path, query, [line for line in lines if line[0] != b"x-amz-content-sha256"])
    wire = sign(with_header(bare, "content-length", "4"), ["host", "x-amz-date"], path, b"", body=body_sha256)
    claim = claimed(wire)
    assert claim.body_sha256_missing
    assert claim.verify(SECRET, NOW_S, body_sha256=body_sha256).payload_sha256 == body_sha256
    assert refusal(lambda: claim.verify(SECRET, NOW_S)).code == "SignatureDoesNotMatch"
    empty = claimed(sign(bare, ["host", "x-amz-date"], path, b""))
    assert not empty.body_sha256_missing
    assert empty.verify(SECRET, NOW_S).payload_sha256 == EMPTY


@pytest.mark.parametrize("value", ["", "abc", EMPTY.upper(), "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"])
def test_a_payload_declaration_that_is_none(value: str) -> None:
    wire = with_header(botocore_wire("GET", "http://h/b/k"), "x-amz-content-sha256", value or " ")
    error = refusal(lambda: sigv4.claim(*wire))
    assert error.code == "InvalidArgument"
    assert error.extra["ArgumentName"] == "x-amz-content-sha256"


def test_presigned_payload_digest_in_the_query_or_a_header() -> None:
    body_sha256 = hashlib.sha256(b"data").hexdigest()
    url = f"http://h/b/k?X-Amz-Content-Sha256={body_sha256}"
    method, path, query, lines = botocore_wire("PUT", url, expires=60)
    claim = claimed((method, path, query, lines))
    assert claim.payload is Payload.SIGNED
    method, path, query, lines = botocore_wire("PUT", "http://h/b/k", expires=60)
    declared = claimed((method, path, query, [*lines, (b"x-amz-content-sha256", body_sha256.encode())]))
    assert declared.payload is Payload.SIGNED
    assert refusal(lambda: declared.verify(SECRET, NOW_S)).code == "SignatureDoesNotMatch"


def test_session_token_in_header_and_query() -> None:
    assert verify(botocore_wire("GET", "http://h/b/k", token="tok/en+")).security_token == "tok/en+"
    assert verify(botocore_wire("GET", "http://h/b/k", token="tok/en+", expires=5)).security_token == "tok/en+"


def test_an_empty_key_is_only_for_sessions() -> None:
    wire = header_wire("GET", "/", {"Host": "h", "x-amz-date": "20130524T000000Z"}, "host", "0" * 64, key="")
    assert "non-empty Access Key" in refusal(lambda: sigv4.claim(*wire)).message
    assert claimed(with_header(wire, "x-amz-security-token", "jwt")).access_key_id == ""
    query = PRESIGNED.replace(KEY, "")
    assert "non-empty Access Key" in refusal(lambda: sigv4.claim(*presigned_wire(query))).message
    assert claimed(presigned_wire(f"{query}&X-Amz-Security-Token=jwt")).access_key_id == ""


@pytest.mark.parametrize("date", ["Fri, 24 May 2013 00:00:00 GMT", "20130524T000000Z"])
def test_the_date_header_will_do(date: str) -> None:
    _, path, query, _ = plain_wire()
    lines = [(b"host", b"h"), (b"date", date.encode()), (b"x-amz-content-sha256", EMPTY.encode())]
    verified = verify(sign(("GET", path, query, lines), ["date", "host", "x-amz-content-sha256"], path, b""))
    assert verified.timestamp == "20130524T000000Z"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-amz-date", None),
        ("x-amz-date", "20130524"),
        ("x-amz-date", "20131324T000000Z"),
        ("x-amz-date", "20130230T000000Z"),
        ("x-amz-date", "20130524T000000Z\xff"),
        ("date", "yesterday"),
        ("date", "Fri, 24 May 99999999999999 00:00:00 GMT"),
    ],
)
def test_no_usable_date(name: str, value: str | None) -> None:
    wire = with_header(plain_wire(), "x-amz-date", None)
    authorization = f"AWS4-HMAC-SHA256 Credential={KEY}/{SCOPE}, SignedHeaders=host, Signature=0"
    wire = with_header(wire, "authorization", authorization)
    error = refusal(lambda: sigv4.claim(*with_header(wire, name, value)))
    assert (error.code, error.status) == ("AccessDenied", 403)
    assert error.message == "AWS authentication requires a valid Date or x-amz-date header"


# --- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew_s", [-900, 0, 900])
def test_a_skew_of_fifteen_minutes_is_tolerated(skew_s: int) -> None:
    verify(botocore_wire("GET", "http://h/b/k"), NOW_S + skew_s)


@pytest.mark.parametrize("skew_s", [-901, 901, 10**8])
def test_more_is_not(skew_s: int) -> None:
    error = refusal(lambda: verify(botocore_wire("GET", "http://h/b/k"), NOW_S + skew_s))
    assert (error.code, error.status) == ("RequestTimeTooSkewed", 403)
    assert error.extra["RequestTime"] == "20130524T000000Z"
    assert error.extra["MaxAllowedSkewMilliseconds"] == "900000"
    assert error.extra["ServerTime"].endswith("Z")


def test_a_link_expires() -> None:
    wire = botocore_wire("GET", "http://h/b/k", expires=60)
    verify(wire, NOW_S + 60)
    error = refusal(lambda: verify(wire, NOW_S + 61))
    assert (error.code, error.message) == ("AccessDenied", "Request has expired")
    assert error.extra == {
        "X-Amz-Expires": "60",
        "Expires": "2013-05-24T00:01:00Z",
        "ServerTime": "2013-05-24T00:01:01Z",
    }


def test_a_link_from_the_future_is_not_valid_yet() -> None:
    wire = botocore_wire("GET", "http://h/b/k", expires=60)
    verify(wire, NOW_S - 900)
    assert refusal(lambda: verify(wire, NOW_S - 901)).message == "Request is not valid yet"


def test_a_link_may_live_for_ninety_days() -> None:
    verify(botocore_wire("GET", "http://h/b/k", expires=7_776_000), NOW_S + 7_776_000)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("7776001", "X-Amz-Expires must be less than 90 days"),
        ("-1", "X-Amz-Expires must be non-negative"),
        ("soon", "X-Amz-Expires should be a number"),
        ("1.5", "X-Amz-Expires should be a number"),
        ("9" * 30, "X-Amz-Expires should be a number"),
        ("", "Query-string authentication version 4 requires"),
    ],
)
def test_bad_lifetimes(value: str, message: str) -> None:
    wire = presigned_wire(PRESIGNED.replace("X-Amz-Expires=86400", f"X-Amz-Expires={value}"))
    error = refusal(lambda: sigv4.claim(*wire))
    assert (error.code, error.status) == ("AuthorizationQueryParametersError", 400)
    assert error.message.startswith(message)


# --- completeness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expires", [None, 60])
def test_every_amz_header_has_to_be_signed(expires: int | None) -> None:
    method, path, query, lines = botocore_wire("PUT", "http://h/b/k", expires=expires)
    wire: Wire = (method, path, query, [*lines, (b"x-amz-acl", b"public-read"), (b"x-amz-meta-a", b"b")])
    error = refusal(lambda: verify(wire))
    assert (error.code, error.status) == ("AccessDenied", 403)
    assert error.message == "There were headers present in the request which were not signed"
    assert error.extra == {"HeadersNotSigned": "x-amz-acl, x-amz-meta-a"}


def test_the_host_has_to_be_signed() -> None:
    wire = sign(plain_wire(), ["x-amz-content-sha256", "x-amz-date"], b"/b/k", b"")
    assert refusal(lambda: verify(wire)).extra == {"HeadersNotSigned": "host"}


def test_the_payload_declaration_is_signed_by_its_value() -> None:
    verify(sign(plain_wire(), ["host", "x-amz-date"], b"/b/k", b""))


def test_a_signed_header_that_was_removed_on_the_way() -> None:
    wire = with_header(botocore_wire("GET", "http://h/b/k", {"range": "bytes=0-1"}), "range", None)
    assert refusal(lambda: verify(wire)).code == "SignatureDoesNotMatch"


# --- malformed -------------------------------------------------------------------------------------------------------


def test_no_signature_is_an_anonymous_request() -> None:
    assert sigv4.claim("GET", b"/b/k", b"versionId=1&X-Amz-Nothing=1", [(b"host", b"h")]) is None


def test_two_mechanisms_at_once() -> None:
    method, path, _, lines = botocore_wire("GET", "http://h/b/k")
    for query in (PRESIGNED.encode(), b"AWSAccessKeyId=a&Signature=b&Expires=1", b"X-Amz-Algorithm=AWS4-HMAC-SHA256"):
        error = refusal(lambda query=query: sigv4.claim(method, path, query, lines))
        assert error.code == "InvalidArgument"
        assert error.message.startswith("Only one auth mechanism allowed")
        assert error.extra["ArgumentName"] == "Authorization"


def test_version_2_is_refused_by_name() -> None:
    for wire in (
        ("GET", b"/", b"", [(b"host", b"h"), (b"authorization", b"AWS AKID:frJIUN8DYpKDtOLCwo//yllqDzg=")]),
        ("GET", b"/", b"AWSAccessKeyId=AKID&Expires=1&Signature=x", [(b"host", b"h")]),
    ):
        error = refusal(lambda wire=wire: sigv4.claim(*wire))
        assert error.code == "InvalidRequest"
        assert error.message.endswith("Please use AWS4-HMAC-SHA256.")


@pytest.mark.parametrize("value", ["Bearer abc", "Basic dTpw", "AWS4-ECDSA-P256-SHA256 Credential=a", "x", ""])
def test_other_mechanisms(value: str) -> None:
    error = refusal(lambda: sigv4.claim("GET", b"/", b"", [(b"authorization", value.encode())]))
    assert (error.code, error.message) == ("InvalidArgument", "Unsupported Authorization Type")
    assert error.extra == {"ArgumentName": "Authorization", "ArgumentValue": value}


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ("", "requires three components"),
        (f"Credential={KEY}/{SCOPE}", "missing SignedHeaders, Signature"),
        (f"Credential={KEY}/{SCOPE}, SignedHeaders=host, Signature=", "missing Signature"),
        (f"Credential={KEY}/{SCOPE}, Credential=x, SignedHeaders=host, Signature=0", "Credential is given twice"),
        (f"Credential={KEY}/{SCOPE}, Signature=1, SignedHeaders=host, Signature=0", "Signature is given twice"),
        (f"Credential={KEY}, SignedHeaders=host, Signature=0", "the Credential is mal-formed"),
        (f"Credential={KEY}/2013/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0", "incorrect date format"),
        (f"Credential={KEY}/20130524/us-east-1/s3/aws4, SignedHeaders=host, Signature=0", "incorrect terminal"),
        (f"Credential={KEY}/20130524/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=0", "incorrect service"),
        (f"Credential={KEY}/20130525/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0", "not the same as"),
        (f"Credential={KEY}\xe9/{SCOPE}, SignedHeaders=host, Signature=0", "the Credential is mal-formed"),
        (f"Credential={KEY}/{SCOPE}, SignedHeaders=host x, Signature=0", "the Credential is mal-formed"),
    ],
)
def test_malformed_headers(components: str, message: str) -> None:
    wire = with_header(plain_wire(), "authorization", f"AWS4-HMAC-SHA256 {components}")
    error = refusal(lambda: sigv4.claim(*wire))
    assert (error.code, error.status) == ("AuthorizationHeaderMalformed", 400)
    assert error.message.startswith("The authorization header is malformed; ")
    assert message in error.message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("X-Amz-Algorithm=AWS4-HMAC-SHA256&", "", "requires the X-Amz-Algorithm"),
        ("=AWS4-HMAC-SHA256", "=AWS4-ECDSA-P256-SHA256", "X-Amz-Algorithm only supports"),
        ("&X-Amz-Date=20130524T000000Z", "", "requires the X-Amz-Algorithm"),
        ("20130524T000000Z", "20130524T0000Z", "ISO8601 Long Format"),
        ("20130524T000000Z", "20130525T000000Z", "Invalid credential date"),
        ("&X-Amz-SignedHeaders=host", "", "requires the X-Amz-Algorithm"),
        ("%2F20130524%2F", "%2F2013%2F", "incorrect date format"),
        ("%2Fs3%2F", "%2Fsqs%2F", "incorrect service"),
        ("aws4_request", "aws5_request", "incorrect terminal"),
        (f"{KEY}%2F", "", "Credential is mal-formed"),
        (f"{KEY}%2F", "A%20B%2F", "Credential is mal-formed"),
        (KEY, "%C3%A9", "not ASCII"),
        ("&X-Amz-Expires", "&X-Amz-Expires=1&X-Amz-Expires", "more than once"),
    ],
)
def test_malformed_queries(old: str, new: str, message: str) -> None:
    assert old in PRESIGNED
    error = refusal(lambda: sigv4.claim(*presigned_wire(PRESIGNED.replace(old, new, 1))))
    assert (error.code, error.status) == ("AuthorizationQueryParametersError", 400)
    assert message in error.message


@given(
    authorization=st.none() | st.binary(max_size=60) | st.binary(max_size=60).map(lambda b: b"AWS4-HMAC-SHA256 " + b),
    query=st.binary(max_size=60) | st.binary(max_size=20).map(lambda b: PRESIGNED.encode() + b),
    path=st.binary(max_size=20),
    lines=st.lists(
        st.tuples(st.sampled_from([b"host", b"x-amz-date", b"date", b"x-amz-content-sha256"]), st.binary(max_size=20)),
        max_size=4,
    ),
)
@settings(max_examples=300, deadline=None)
def test_garbage_only_ever_raises_s3_errors(
    authorization: bytes | None, query: bytes, path: bytes, lines: list[tuple[bytes, bytes]]
) -> None:
    headers = lines if authorization is None else [*lines, (b"authorization", authorization)]
    try:
        claim = sigv4.claim("GET", path, query, headers)
        if claim is not None:
            claim.verify(SECRET, NOW_S)
    except S3Error:
        pass


@pytest.mark.parametrize("signature", ["", "0", "\xe9" * 64, "0" * 64, "F0" * 32])
def test_a_signature_of_any_shape_is_only_ever_wrong(signature: str) -> None:
    wire = presigned_wire(PRESIGNED[: -len("aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404")])
    query = wire[2] + quote(signature).encode()
    error = refusal(lambda: verify((wire[0], wire[1], query, wire[3])))
    assert error.code in ("SignatureDoesNotMatch", "AuthorizationQueryParametersError")
    header = header_wire("GET", "/", {"Host": "h", "x-amz-date": "20130524T000000Z"}, "host", signature)
    error = refusal(lambda: verify(header))
    assert error.code in ("AccessDenied", "AuthorizationHeaderMalformed")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """The signing keys that are kept: none at first."""
    keys: dict[Any, Any] = {}
    monkeypatch.setattr(sigv4, "_signing_keys", keys)
    return keys


def test_a_signing_key_that_verified_is_kept(kept: dict[Any, Any]) -> None:
    key = verify(botocore_wire("GET", "http://h/b/k")).key
    assert verify(botocore_wire("GET", "http://h/b/other")).key is key
    assert sigv4.signing_key(SECRET, "20130524", "auto", "s3") is key
    assert len(kept) == 1


def test_a_refused_signature_keeps_no_signing_key(kept: dict[Any, Any]) -> None:
    verify(botocore_wire("GET", "http://h/b/k"))
    honest = list(kept)
    elsewhere = botocore_wire("GET", "http://h/b/k", region="elsewhere")
    assert refusal(lambda: verify(with_header(elsewhere, "host", "other"))).code == "SignatureDoesNotMatch"
    assert list(kept) == honest
    verify(elsewhere)
    assert len(kept) == 2


def test_signing_keys_are_kept_within_bounds(kept: dict[Any, Any]) -> None:
    keys = [sigv4.signing_key("secret", str(day), "auto", "s3") for day in range(4100)]
    for key in keys:
        key.keep()
    assert len(kept) == 4096
    assert sigv4.signing_key("secret", "4099", "auto", "s3") is keys[-1]
    again = sigv4.signing_key("secret", "0", "auto", "s3")
    assert again is not keys[0]
    assert (again.kept, keys[0].kept, keys[-1].kept) == (False, False, True)
    assert again.sign(b"x") == keys[0].sign(b"x")
