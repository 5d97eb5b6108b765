"""Requests signed in bulk carry the signature that botocore would give them."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime
from unittest.mock import patch

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from bench.signing import Signer, call
from tests.bench.scripted_server import answer, serve

WHEN = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


@pytest.mark.parametrize(
    ("method", "path", "query"),
    [
        ("GET", "/bucket/key-0001", ""),
        ("PUT", "/bucket/a/b/c", ""),
        ("GET", "/bucket", "list-type=2&max-keys=1000&start-after=key-0000001"),
        ("POST", "/bucket/key", "uploads="),
        ("PUT", "/bucket/key", "partNumber=3&uploadId=abc.def_-~"),
    ],
)
def test_signature_is_botocores(method: str, path: str, query: str) -> None:
    signer = Signer("127.0.0.1:8333", "AKIDEXAMPLE", "secret/+secret", "eu-west-9")
    ours = signer.headers(method, path, query, "f" * 64, calendar.timegm(WHEN.timetuple()))
    request = AWSRequest(method, f"http://127.0.0.1:8333{path}", headers={"X-Amz-Content-SHA256": "f" * 64})
    request.params = dict(pair.split("=") for pair in query.split("&")) if query else {}
    auth = S3SigV4Auth(Credentials("AKIDEXAMPLE", "secret/+secret"), "s3", "eu-west-9")
    with (
        patch("botocore.auth.get_current_datetime", lambda: WHEN.replace(tzinfo=None)),
        patch.object(S3SigV4Auth, "payload", lambda self, request: "f" * 64),
    ):
        auth.add_auth(request)
    assert ours["Authorization"] == request.headers["Authorization"]


def test_head_is_a_whole_http_request_head() -> None:
    signer = Signer("127.0.0.1:8333", "AK", "SK")
    head = signer.head("PUT", "/b/k", "x-id=PutObject", length=5, headers={"Range": "bytes=0-1"}, now_s=0)
    lines = head.decode().split("\r\n")
    assert lines[0] == "PUT /b/k?x-id=PutObject HTTP/1.1"
    assert lines[1] == "Host: 127.0.0.1:8333"
    assert "Content-Length: 5" in lines
    assert "Range: bytes=0-1" in lines
    assert "X-Amz-Date: 19700101T000000Z" in lines
    assert lines[-2:] == ["", ""]


def test_call_sends_the_body_and_returns_the_answer() -> None:
    with serve([answer(b"hello", "201 Created", b"X-Some: Thing")]) as server:
        got = call(Signer(f"127.0.0.1:{server.port}", "AK", "SK"), "PUT", "/b/k", "a=b", b"body")
    assert (got.status, got.body, got.headers["x-some"]) == (201, b"hello", "Thing")
    head, body = server.requests[0]
    assert head.startswith(b"PUT /b/k?a=b HTTP/1.1\r\n")
    assert b"Authorization: AWS4-HMAC-SHA256 Credential=AK/" in head
    assert body == b"body"


def test_an_anonymous_call_carries_no_signature() -> None:
    with serve([answer()]) as server:
        call(Signer(f"127.0.0.1:{server.port}", "AK", "SK"), "GET", "/b/k", anonymous=True)
    assert b"authorization" not in server.requests[0][0].lower()
