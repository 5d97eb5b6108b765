"""POST Object: forms cut anywhere, policies signed by botocore, and every condition unmet."""

import base64
import datetime
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
from botocore.auth import S3SigV4PostAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from tigrislike.s3api import post_policy, sigv4
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.multipart_form import MAX_PREFACE_BYTES, Field, FileEnd, FileStart, FormParser, base_name
from tigrislike.s3api.post_policy import Policy, PostForm, read_form

KEY_ID, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
NOW_S = sigv4.parse_timestamp("20151229T000000Z")
BOUNDARY = "9431149156168"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def refusal(attempt: Callable[[], object]) -> S3Error:
    with pytest.raises(S3Error) as caught:
        attempt()
    return caught.value


# --- the form --------------------------------------------------------------------------------------------------------


def part(name: str, value: bytes, filename: str | None = None, content_type: str | None = None) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'
    head += f'; filename="{filename}"' if filename is not None else ""
    head += f"\r\nContent-Type: {content_type}" if content_type else ""
    return head.encode() + b"\r\n\r\n" + value + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


def parse(body: bytes, cuts: Iterable[int] = (), content_type: str = CONTENT_TYPE) -> tuple[list[Any], bytes]:
    """Everything but the file's bytes as events, and the file's bytes joined."""
    parser = FormParser(content_type)
    bounds = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    events: list[Any] = []
    data = b""
    for start, stop in pairwise(bounds):
        for event in parser.feed(body[start:stop]):
            if isinstance(event, bytes | memoryview):
                assert len(event) > 0
                data += event
            else:
                events.append(event)
    parser.finish()
    return events, data


def test_a_form_as_browsers_send_it() -> None:
    body = part("key", b"user/${filename}") + part("Content-Type", b"text/plain") + part("empty", b"")
    body += part("file", b"hello\r\n--9431\r\nworld", "a.txt", "text/x-c") + END
    events, data = parse(body)
    assert events == [
        Field("key", "user/${filename}"),
        Field("Content-Type", "text/plain"),
        Field("empty", ""),
        FileStart("a.txt", "text/x-c"),
        FileEnd(20),
    ]
    assert data == b"hello\r\n--9431\r\nworld"


almost = st.text("\r\n-943114915616X", max_size=40).map(str.encode) | st.binary(max_size=60)


@given(value=almost, content=almost, cuts=st.lists(st.integers(0, 500), max_size=25))
@settings(max_examples=300, deadline=None)
def test_a_form_parses_the_same_however_it_is_cut(value: bytes, content: bytes, cuts: list[int]) -> None:
    text = value.decode("latin-1").encode()
    if BOUNDARY.encode() in text or BOUNDARY.encode() in content:
        return
    body = part("key", text) + part("file", content, "f") + part("submit", b"Upload") + END
    events, data = parse(body, cuts)
    assert events == [Field("key", text.decode()), FileStart("f", ""), FileEnd(len(content))]
    assert data == content


def test_byte_by_byte() -> None:
    body = b"preamble\r\n" + part("key", b"k") + part("file", b"\r\r\n\r\n-\r\n--", "f") + END
    assert parse(body, range(len(body))) == ([Field("key", "k"), FileStart("f", ""), FileEnd(10)], b"\r\r\n\r\n-\r\n--")


def test_large_files_are_not_held_back_or_copied() -> None:
    parser = FormParser(CONTENT_TYPE)
    parser.feed(part("file", b"", "f")[:-2])
    block = bytes(1 << 16)
    assert parser.feed(block)[0] is block
    (piece,) = parser.feed(b"abc\r\n--9431")
    assert bytes(piece) == b"abc"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("disposition", "name", "filename"),
    [
        ('form-data; name="file"; filename="a b;c.txt"', "file", "a b;c.txt"),
        ("form-data; name=file; filename=a.txt", "file", "a.txt"),
        ('form-data;name="File";filename="C:\\dir\\a.txt"', "File", "C:\\dir\\a.txt"),
        ('form-data; name="file"; filename="a\\"b"', "file", 'a"b'),
        ('form-data; name="file"; filename="a%22b"', "file", 'a"b'),
        ('form-data; name="file"; filename="x"; filename*=UTF-8\'\'%e2%82%ac.txt', "file", "€.txt"),
        ('form-data; name="file"; filename="ключ"', "file", "ключ"),
        ('form-data; name="file"', "file", ""),
    ],
)
def test_dispositions(disposition: str, name: str, filename: str) -> None:
    body = f"--{BOUNDARY}\r\ncontent-disposition: {disposition}\r\n\r\nx\r\n".encode() + END
    events, _ = parse(body)
    assert events == [FileStart(filename, ""), FileEnd(1)]


def test_quoted_boundaries_and_padding() -> None:
    body = part("file", b"x", "f").replace(b"8\r\n", b"8 \t\r\n", 1) + END
    assert parse(body, content_type=f'Multipart/Form-Data; charset=utf-8; boundary="{BOUNDARY}"')[1] == b"x"


@pytest.mark.parametrize(
    ("content_type", "code"),
    [
        ("application/x-www-form-urlencoded", "RequestIsNotMultiPartContent"),
        ("", "RequestIsNotMultiPartContent"),
        ("multipart/form-data", "MalformedPOSTRequest"),
        ("multipart/form-data; boundary=", "MalformedPOSTRequest"),
        ("multipart/form-data; boundary=" + "x" * 300, "MalformedPOSTRequest"),
        ('multipart/form-data; boundary="é"', "MalformedPOSTRequest"),
    ],
)
def test_content_types(content_type: str, code: str) -> None:
    assert refusal(lambda: FormParser(content_type)).code == code


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no boundary",
        part("key", b"k"),
        part("file", b"x", "f"),
        part("file", b"x", "f").replace(b"8\r\n", b"8x\r\n", 1) + END,
        part("file", b"x", "f").replace(b"form-data", b"attachment") + END,
        part("file", b"x", "f").replace(b'name="file"; ', b"") + END,
        part("file", b"x", "f").replace(b"Content-Disposition:", b"Content-Disposition") + END,
        f"--{BOUNDARY}\r\n\r\nx\r\n".encode() + END,
        part("key", b"\xff") + part("file", b"x", "f") + END,
        part("k\xff", b"").replace("k\xff".encode(), b"k\xff") + END,
        part("file", b"x", "f") + f"--{BOUNDARY}".encode() + b"x" * 10,
        part("file", b"x", "f") + f"--{BOUNDARY}\r\n".encode() + b"x" * 30000,
    ],
)
def test_malformed_forms(body: bytes) -> None:
    # The fourth ends in CRLF where its boundary should stand.
    assert refusal(lambda: parse(body)).code == "MalformedPOSTRequest"


def test_exactly_one_file() -> None:
    none = part("key", b"k") + END
    two = part("file", b"1", "a") + part("submit", b"", None) + END
    assert parse(two)[1] == b"1"
    both = part("file", b"1", "a") + part("FILE", b"2", "b") + END
    for body in (none, both, END):
        error = refusal(lambda body=body: parse(body))
        assert (error.code, error.status) == ("IncorrectNumberOfFilesInPostRequest", 400)


@pytest.mark.parametrize("step", [1000, 100_000])
def test_what_precedes_the_file_is_bounded(step: int) -> None:
    fits = MAX_PREFACE_BYTES - len(part("key", b"") + part("file", b"", "f")) + 2
    for size, accepted in ((fits, True), (fits + 1, False), (10**6, False)):
        body = part("key", b"k" * size) + part("file", b"x" * 50_000, "f") + END
        attempt = lambda body=body: parse(body, range(0, len(body), step))  # noqa: E731
        if accepted:
            assert attempt()[1] == b"x" * 50_000
        else:
            error = refusal(attempt)
            assert (error.code, error.status) == ("MaxPostPreDataLengthExceededError", 400)
    endless = FormParser(CONTENT_TYPE)
    assert refusal(lambda: [endless.feed(b"-" * 100) for _ in range(1000)]).code == "MaxPostPreDataLengthExceededError"


@given(body=st.binary(max_size=100), cuts=st.lists(st.integers(0, 150), max_size=4), prefix=st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_garbage_only_ever_raises_s3_errors(body: bytes, cuts: list[int], prefix: int) -> None:
    start = [b"", f"--{BOUNDARY}".encode(), part("key", b"k"), part("file", b"x", "f")][prefix]
    with suppress(S3Error):
        parse(start + body + END, cuts)


# --- the policy ------------------------------------------------------------------------------------------------------


def sign_form(
    fields: dict[str, str],
    conditions: list[Any],
    expiration: object = "2015-12-30T12:00:00.000Z",
    *,
    token: str | None = None,
    region: str = "auto",
) -> dict[str, str]:
    """The fields of a form as botocore signs them."""
    request = AWSRequest()
    request.context["s3-presign-post-fields"] = dict(fields)
    request.context["s3-presign-post-policy"] = {"expiration": expiration, "conditions": list(conditions)}
    now = datetime.datetime.fromtimestamp(NOW_S, datetime.UTC)
    with mock.patch("botocore.auth.get_current_datetime", return_value=now):
        S3SigV4PostAuth(Credentials(KEY_ID, SECRET, token), "s3", region).add_auth(request)
    signed: dict[str, str] = request.context["s3-presign-post-fields"]
    return signed


def sign_raw(policy: bytes) -> dict[str, str]:
    """A form around any bytes for a policy."""
    fields = sign_form({"key": "k"}, [])
    fields["policy"] = base64.b64encode(policy).decode()
    key = sigv4.signing_key(SECRET, "20151229", "auto", "s3")
    fields["x-amz-signature"] = key.sign(fields["policy"].encode())
    return fields


def verify(
    fields: dict[str, str], *, now_s: float = NOW_S, secret: str = SECRET, bucket: str = "b", filename: str = "a.txt"
) -> Policy:
    claim = post_policy.claim(read_form(fields.items(), filename))
    assert claim is not None
    assert claim.access_key_id == KEY_ID
    return claim.verify(secret, now_s, bucket)


def test_the_documented_example() -> None:
    # "Example: Browser-Based Upload using HTTP POST (Using AWS Signature Version 4)"
    lines = [
        '{ "expiration": "2015-12-30T12:00:00.000Z",',
        '  "conditions": [',
        '    {"bucket": "sigv4examplebucket"},',
        '    ["starts-with", "$key", "user/user1/"],',
        '    {"acl": "public-read"},',
        '    {"success_action_redirect": "http://sigv4examplebucket.s3.amazonaws.com/successful_upload.html"},',
        '    ["starts-with", "$Content-Type", "image/"],',
        '    {"x-amz-meta-uuid": "14365123651274"},',
        '    {"x-amz-server-side-encryption": "AES256"},',
        '    ["starts-with", "$x-amz-meta-tag", ""],',
        "",
        '    {"x-amz-credential": "AKIAIOSFODNN7EXAMPLE/20151229/us-east-1/s3/aws4_request"},',
        '    {"x-amz-algorithm": "AWS4-HMAC-SHA256"},',
        '    {"x-amz-date": "20151229T000000Z" }',
        "  ]",
        "}",
    ]
    fields = {
        "key": "user/user1/${filename}",
        "acl": "public-read",
        "success_action_redirect": "http://sigv4examplebucket.s3.amazonaws.com/successful_upload.html",
        "Content-Type": "image/jpeg",
        "x-amz-meta-uuid": "14365123651274",
        "x-amz-server-side-encryption": "AES256",
        "X-Amz-Credential": "AKIAIOSFODNN7EXAMPLE/20151229/us-east-1/s3/aws4_request",
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Date": "20151229T000000Z",
        "x-amz-meta-tag": "",
        "Policy": base64.b64encode("\r\n".join(lines).encode()).decode(),
        "X-Amz-Signature": "8afdbf4008c03f22c2cd3cdb72e4afbb1f6a588f3255ac628749a66d7f09699e",
    }
    assert verify(fields, bucket="sigv4examplebucket", filename="MyFilename.jpg") == Policy(0, None)
    form = read_form(fields.items(), "MyFilename.jpg")
    assert form.key == "user/user1/MyFilename.jpg"
    assert form.headers == {
        "x-amz-acl": "public-read",
        "content-type": "image/jpeg",
        "x-amz-meta-uuid": "14365123651274",
        "x-amz-server-side-encryption": "AES256",
        "x-amz-meta-tag": "",
    }


def test_forms_signed_by_botocore() -> None:
    fields = sign_form(
        {"key": "u/${filename}", "Content-Type": "text/plain", "x-ignore-me": "1", "tagging": "<Tagging/>"},
        [
            {"bucket": "b"},
            ["starts-with", "$key", "u/"],
            ["starts-with", "$Content-Type", "text/"],
            ["eq", "$tagging", "<Tagging/>"],
            ["content-length-range", 1, "10"],
        ],
        token="tok",
    )
    assert verify(fields) == Policy(1, 10)
    form = read_form(fields.items(), "a.txt")
    assert form.tagging == "<Tagging/>"
    claim = post_policy.claim(form)
    assert claim is not None
    assert (claim.region, claim.security_token) == ("auto", "tok")


def test_a_form_has_no_coding_of_its_body() -> None:
    fields = {"key": "k", "x-amz-trailer": "x-amz-checksum-crc32", "x-amz-content-sha256": "x", "X-Amz-Meta-A": "1"}
    assert read_form(fields.items(), "").headers == {"x-amz-meta-a": "1"}


def test_sizes() -> None:
    ranges = [["content-length-range", 5, 100], ["content-length-range", 0, 20], {"key": "k"}]
    policy = verify(sign_form({"key": "k"}, ranges))
    policy.check_progress(20)
    policy.check_size(5)
    policy.check_size(20)
    error = refusal(lambda: policy.check_progress(21))
    assert (error.code, error.extra) == ("EntityTooLarge", {"ProposedSize": "21", "MaxSizeAllowed": "20"})
    assert refusal(lambda: policy.check_size(21)).code == "EntityTooLarge"
    error = refusal(lambda: policy.check_size(4))
    assert (error.code, error.extra) == ("EntityTooSmall", {"ProposedSize": "4", "MinSizeAllowed": "5"})
    verify(sign_form({"key": "k"}, [{"key": "k"}])).check_size(10**15)


def test_a_form_without_a_signature_is_anonymous() -> None:
    assert post_policy.claim(read_form([("key", "k"), ("acl", "private")], "")) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "other"}, 'Policy Condition failed: {"key": "k"}'),
        ({"acl": "public-read"}, 'Policy Condition failed: ["eq", "$acl", "private"]'),
        ({"acl": None}, 'Policy Condition failed: ["eq", "$acl", "private"]'),
        ({"Content-Type": "text/plain"}, 'Policy Condition failed: ["starts-with", "$Content-Type", "image/"]'),
        ({"Content-Type": "image/png,text/plain"}, "Policy Condition failed"),
        ({"x-amz-meta-a": "1", "x-amz-meta-b": "2"}, "Extra input fields: x-amz-meta-a, x-amz-meta-b"),
        ({"x-amz-security-token": "t"}, "Extra input fields: x-amz-security-token"),
    ],
)
def test_unmet_conditions(changes: dict[str, str | None], message: str) -> None:
    fields: dict[str, Any] = sign_form(
        {"key": "k", "acl": "private", "Content-Type": "image/png"},
        [{"key": "k"}, ["eq", "$acl", "private"], ["starts-with", "$Content-Type", "image/"]],
    )
    verify(fields)
    verify({**fields, "Content-Type": "image/png, image/gif", "X-Ignore-This": "x"})
    changed = {name: value for name, value in {**fields, **changes}.items() if value is not None}
    error = refusal(lambda: verify(changed))
    assert (error.code, error.status) == ("AccessDenied", 403)
    assert error.message.startswith(f"Invalid according to Policy: {message}")


def test_the_bucket_is_the_one_addressed() -> None:
    fields = sign_form({"key": "k"}, [{"bucket": "b"}, {"key": "k"}])
    assert refusal(lambda: verify(fields, bucket="other")).code == "AccessDenied"
    # A bucket field says nothing about where the upload goes.
    lying = sign_form({"key": "k", "bucket": "b"}, [{"bucket": "b"}, {"key": "k"}])
    verify(lying)
    assert refusal(lambda: verify(lying, bucket="other")).code == "AccessDenied"


def test_the_file_name_is_expanded_before_conditions_are_checked() -> None:
    fields = sign_form({"key": "u/${filename}"}, [["eq", "$key", "u/a.txt"]])
    verify(fields, filename="C:\\dir\\a.txt")
    assert refusal(lambda: verify(fields, filename="b.txt")).code == "AccessDenied"


@pytest.mark.parametrize(
    ("filename", "base"),
    [("a.txt", "a.txt"), ("/x/y/a.txt", "a.txt"), ("C:\\x\\a.txt", "a.txt"), ("a/b\\c", "c"), ("", ""), ("a/", "")],
)
def test_base_names(filename: str, base: str) -> None:
    assert base_name(filename) == base


def test_an_expired_policy() -> None:
    fields = sign_form({"key": "k"}, [{"key": "k"}], "2015-12-29T00:00:10Z")
    verify(fields, now_s=NOW_S + 9)
    error = refusal(lambda: verify(fields, now_s=NOW_S + 10))
    assert (error.code, error.message) == ("AccessDenied", "Invalid according to Policy: Policy expired.")


def test_wrong_secret_and_changed_policy() -> None:
    fields = sign_form({"key": "k"}, [{"key": "k"}])
    error = refusal(lambda: verify(fields, secret="other"))
    assert (error.code, error.status) == ("SignatureDoesNotMatch", 403)
    assert error.extra["StringToSign"] == fields["policy"]
    for name in ("policy", "x-amz-signature"):
        changed = {**fields, name: ("A" if fields[name][0] != "A" else "B") + fields[name][1:]}
        assert refusal(lambda changed=changed: verify(changed)).code == "SignatureDoesNotMatch"
    assert refusal(lambda: verify({**fields, "x-amz-signature": "é"})).code == "SignatureDoesNotMatch"


GOOD = {"expiration": "2015-12-30T12:00:00.000Z", "conditions": []}


@pytest.mark.parametrize(
    "policy",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"\xff",
        b"[" * 15_000,
        json.dumps({"conditions": []}).encode(),
        json.dumps({"expiration": "2015-12-30T12:00:00Z"}).encode(),
        json.dumps({**GOOD, "expires": 1}).encode(),
        json.dumps({**GOOD, "\ud800": 1}).encode(),
        *[
            json.dumps({**GOOD, "expiration": value}).encode()
            for value in ("soon", 5, None, "2015-12-30", "2015-12-30T12:00:00", "\ud800T")
        ],
        *[
            json.dumps({**GOOD, "conditions": value}).encode()
            for value in (
                {},
                "x",
                ["x"],
                [1],
                [{}],
                [{"a": "b", "c": "d"}],
                [{"key": 1}],
                [["eq", "$key"]],
                [["eq", "key", "k"]],
                [["eq", "$", "k"]],
                [["eq", 1, "k"]],
                [["eq", "$key", None]],
                [["ends-with", "$key", "k"]],
                [[1, "$key", "k"]],
                [["content-length-range", -1, 5]],
                [["content-length-range", 1.5, 5]],
                [["content-length-range", True, 5]],
                [["content-length-range", "1", "x"]],
                [["content-length-range", 1]],
            )
        ],
    ],
)
def test_policies_that_are_none(policy: bytes) -> None:
    error = refusal(lambda: verify(sign_raw(policy or b" ")))
    assert (error.code, error.status) == ("InvalidPolicyDocument", 400)
    assert error.message.startswith("Invalid Policy: ")
    error.message.encode()


def test_a_policy_that_is_not_base64() -> None:
    fields = sign_raw(b"x")
    fields["policy"] = "!!"
    fields["x-amz-signature"] = sigv4.signing_key(SECRET, "20151229", "auto", "s3").sign(b"!!")
    assert refusal(lambda: verify(fields)).code == "InvalidPolicyDocument"


def test_a_policy_may_escape_dollar_signs() -> None:
    fields = {**sign_form({"key": "a$b\\$"}, []), "x-ignore": ""}
    policy = (
        rb'{"expiration": "2015-12-30T12:00:00Z", "conditions": [["eq", "\$key", "a\$b\\$"], '
        rb'["starts-with", "$x-amz-credential", ""], {"x-amz-algorithm": "AWS4-HMAC-SHA256"}, '
        rb'["starts-with", "$x-amz-date", ""], ["starts-with", "$x-ignore", ""]]}'
    )
    fields["policy"] = base64.encodebytes(policy).decode()
    fields["x-amz-signature"] = sigv4.signing_key(SECRET, "20151229", "auto", "s3").sign(fields["policy"].encode())
    verify(fields)


# --- fields ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["policy", "x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature"])
def test_missing_signature_fields(name: str) -> None:
    fields = sign_form({"key": "k"}, [{"key": "k"}])
    del fields[name]
    error = refusal(lambda: verify(fields))
    assert (error.code, error.extra["ArgumentName"]) == ("InvalidArgument", name)
    assert error.message.startswith(f"Bucket POST must contain a field named '{name}'.")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-amz-algorithm", "AWS4-ECDSA-P256-SHA256"),
        ("x-amz-credential", "a/b"),
        ("x-amz-credential", f"{KEY_ID}/20151229/auto/sqs/aws4_request"),
        ("x-amz-credential", "/20151229/auto/s3/aws4_request"),
        ("x-amz-credential", f"{KEY_ID}é/20151229/auto/s3/aws4_request"),
        ("x-amz-credential", f"{KEY_ID}/20151230/auto/s3/aws4_request"),
        ("x-amz-date", "2015-12-29"),
    ],
)
def test_malformed_signature_fields(name: str, value: str) -> None:
    fields = sign_form({"key": "k"}, [{"key": "k"}])
    error = refusal(lambda: verify({**fields, name: value}))
    assert (error.code, error.status) == ("InvalidArgument", 400)
    assert error.extra == {"ArgumentName": name, "ArgumentValue": value}


@pytest.mark.parametrize("name", ["AWSAccessKeyId", "signature"])
def test_version_2_forms_are_refused_by_name(name: str) -> None:
    error = refusal(lambda: post_policy.claim(read_form([("key", "k"), (name, "x")], "")))
    assert error.code == "InvalidRequest"
    assert error.message.endswith("Please use AWS4-HMAC-SHA256.")


def test_the_key_is_needed_and_nothing_is_given_twice() -> None:
    for fields in ([], [("key", "")], [("key", "${filename}")]):
        error = refusal(lambda fields=fields: read_form(fields, "dir/"))
        assert (error.code, error.extra["ArgumentName"]) == ("InvalidArgument", "key")
    error = refusal(lambda: read_form([("key", "a"), ("Key", "b")], "f"))
    assert error.message == "POST requires exactly one 'Key' field"


@pytest.mark.parametrize(("value", "status"), [("200", 200), ("201", 201), ("204", 204), ("404", 204), ("", 204)])
def test_success_status(value: str, status: int) -> None:
    assert PostForm("k", {"success_action_status": value}).success_status == status
    assert PostForm("k", {}).success_status == 204


def test_redirects() -> None:
    form = read_form([("key", "a b"), ("success_action_redirect", "https://h/p?x=1#top")], "")
    assert form.redirect == "https://h/p?x=1#top"
    assert form.redirect_location("b", "abc") == "https://h/p?x=1&bucket=b&key=a+b&etag=%22abc%22#top"
    old = read_form([("key", "k"), ("redirect", "http://h/")], "")
    assert old.redirect_location("b", "e") == "http://h/?bucket=b&key=k&etag=%22e%22"


@pytest.mark.parametrize("url", ["", "nonsense", "javascript:alert(1)", "http://[", "http://h/\r\na: b", "//h"])
def test_what_is_no_url_is_no_redirect(url: str) -> None:
    assert PostForm("k", {"success_action_redirect": url}).redirect == ""
