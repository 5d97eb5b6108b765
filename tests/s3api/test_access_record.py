"""Lines of server access logs: whatever a client sends, AWS' own expression takes a line apart as it was meant."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.access_lines import parse
from tigrislike.logs import Record
from tigrislike.s3api.access_record import Facts, Part, line_of, line_of_part, operation_name
from tigrislike.s3api.protocol import load_protocol

OWNER = "0" * 64

headers = st.text(st.characters(max_codepoint=255), max_size=60)
"""What a header may hold, as latin-1; line ends too, though no parser of HTTP lets them through."""
keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
targets = st.binary(max_size=60).map(lambda data: data.replace(b"?", b""))


def record(path: bytes = b"/b/k", query: bytes = b"", method: str = "GET", **notes: str) -> Record:
    return (
        1_700_000_001_500_000_000,
        "192.0.2.3:4711",
        method,
        path,
        query,
        200,
        10,
        0,
        1_500_000_000,
        {"operation": "GetObject", "request_id": "3E57427F33A59F07", **notes},
    )


def facts(**more: Any) -> Facts:
    plain: dict[str, Any] = {
        "bucket": "bucket",
        "requester": "",
        "key": "key",
        "operation": "GetObject",
        "version_id": "",
        "object_bytes": -1,
        "turn_around_ns": -1,
        "referrer": "",
        "user_agent": "",
        "signed": "",
        "host": "localhost",
        "tls": (),
        "http_version": "1.1",
        "acl_required": False,
    }
    return Facts(**{**plain, **more})


def test_a_line_is_what_s3_would_write() -> None:
    line = line_of(
        facts(
            requester="1" * 64,
            key="photos/puppy dog.jpg",
            version_id="3/L4kqtJlcpXroDTDmJ+rmSpXd3dIbrHY",
            object_bytes=3462992,
            turn_around_ns=10_400_000,
            referrer="http://www.example.com/webservices",
            user_agent="curl/7.15.1",
            signed="AuthHeader",
            tls=("TLSv1.2", "ECDHE-RSA-AES128-GCM-SHA256"),
            host="bucket.s3.example.com",
            acl_required=True,
        ),
        OWNER,
        record(b"/bucket/photos/puppy%20dog.jpg", b"x-foo=bar"),
    )
    assert line.decode() == (
        f"{OWNER} bucket [14/Nov/2023:22:13:20 +0000] 192.0.2.3 {'1' * 64} 3E57427F33A59F07 REST.GET.OBJECT "
        'photos/puppy%20dog.jpg "GET /bucket/photos/puppy%20dog.jpg?x-foo=bar HTTP/1.1" 200 - 10 3462992 1500 10 '
        '"http://www.example.com/webservices" "curl/7.15.1" 3/L4kqtJlcpXroDTDmJ%2BrmSpXd3dIbrHY - SigV4 '
        "ECDHE-RSA-AES128-GCM-SHA256 AuthHeader bucket.s3.example.com TLSv1.2 - Yes -\n"
    )


@given(key=keys, referrer=headers, user_agent=headers, host=headers, version=keys, path=targets, query=targets)
def test_no_request_breaks_its_line(
    key: str, referrer: str, user_agent: str, host: str, version: str, path: bytes, query: bytes
) -> None:
    line = line_of(
        facts(key=key, referrer=referrer, user_agent=user_agent, host=host, version_id=version),
        OWNER,
        record(path, query),
    )
    assert line.endswith(b"\n")
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert b"\r" not in line
    read = parse(line[:-1].decode())
    assert unquote_to_bytes(read.key).decode() == (key or "-")
    assert unquote_to_bytes(read.version_id).decode() == (version or "-")
    # What is percent-encoded already is left as it is, so that what is compared is what both stand for.
    assert meaning(read.referrer) == b'"' + (meaning(referrer) or b"-") + b'"'
    assert meaning(read.user_agent) == b'"' + (meaning(user_agent) or b"-") + b'"'
    assert meaning(read.host) == (meaning(host) or b"-")
    assert (read.status, read.total_ms) == ("200", "1500")


def meaning(text: str) -> bytes:
    return unquote_to_bytes(text.encode("latin-1"))


def test_signatures_are_left_out() -> None:
    line = line_of(facts(), OWNER, record(b"/b/k", b"X-Amz-Signature=abcdef&X-Amz-Security-Token=hush&a=1"))
    assert parse(line[:-1].decode()).uri == '"GET /b/k?X-Amz-Signature=...&X-Amz-Security-Token=...&a=1 HTTP/1.1"'


def test_nor_are_they_in_the_address_of_the_page_that_led_here() -> None:
    url = "https://example/b/k?X-Amz-Signature=abcdef&a=1"
    line = line_of(facts(referrer=url), OWNER, record())
    assert parse(line[:-1].decode()).referrer == '"https://example/b/k?X-Amz-Signature=...&a=1"'


def test_a_long_user_agent_is_cut_off() -> None:
    line = line_of(facts(user_agent="a" * 10_000, referrer="b" * 10_000), OWNER, record())
    assert len(line) < 5000


@given(key=keys, version=keys)
def test_a_part_of_a_request_has_a_line_of_its_own(key: str, version: str) -> None:
    part = Part("other", "BATCH.DELETE.OBJECT", key, version, 403, "AccessDenied")
    read = parse(line_of_part(facts(), OWNER, part, record(error="MalformedXML"))[:-1].decode())
    assert (read.bucket, read.operation, read.status, read.error) == (
        "other",
        "BATCH.DELETE.OBJECT",
        "403",
        "AccessDenied",
    )
    assert (read.uri, read.bytes_sent, read.total_ms) == ("-", "-", "-")
    assert read.request_id == "3E57427F33A59F07"
    assert unquote_to_bytes(read.key).decode() == (key or "-")


@pytest.mark.parametrize(
    ("operation", "method", "has_key", "name"),
    [
        ("GetObject", "GET", True, "REST.GET.OBJECT"),
        ("HeadBucket", "HEAD", False, "REST.HEAD.BUCKET"),
        ("ListObjectsV2", "GET", False, "REST.GET.BUCKET"),
        ("PostObject", "POST", True, "REST.POST.OBJECT"),
        ("GetBucketLogging", "GET", False, "REST.GET.LOGGING_STATUS"),
        ("PutBucketInventoryConfiguration", "PUT", False, "REST.PUT.INVENTORY"),
        ("ListBucketInventoryConfigurations", "GET", False, "REST.GET.INVENTORY"),
        ("GetBucketRequestPayment", "GET", False, "REST.GET.REQUEST_PAYMENT"),
        ("UploadPartCopy", "PUT", True, "REST.COPY.PART"),
        ("", "PATCH", False, "REST.PATCH.BUCKET"),
    ],
)
def test_operations_have_s3s_names(operation: str, method: str, has_key: bool, name: str) -> None:
    assert operation_name(operation, method, has_key) == name


def test_every_operation_has_a_name() -> None:
    for operation in load_protocol():
        name = operation_name(operation.name, operation.method, operation.level == "object")
        assert re.fullmatch(r"REST\.[A-Z]+\.[A-Z_]+", name), (operation.name, name)
