"""Addressing: which bucket and key a request line and Host header name."""

import os
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.request import Request, bucket_of_host, new_request_id, parse_query


async def nothing() -> dict[str, object]:
    raise AssertionError("the body is not read here")


def request(path: bytes, host: str = "localhost:9000", query: bytes = b"", domains: tuple[str, ...] = ()) -> Request:
    scope = {
        "method": "GET",
        "raw_path": path,
        "query_string": query,
        "headers": [(b"host", host.encode())],
        "scheme": "http",
    }
    parsed = Request(scope, nothing, new_request_id())
    parsed.address(domains)
    return parsed


@pytest.mark.parametrize(
    ("path", "bucket", "key", "level"),
    [
        (b"/", "", "", "service"),
        (b"/b", "b", "", "bucket"),
        (b"/b/", "b", "", "bucket"),
        (b"/b/k", "b", "k", "object"),
        (b"/b//k", "b", "/k", "object"),
        (b"/b/a/../c", "b", "a/../c", "object"),
        (b"/b/a%2Fb+c%20d", "b", "a/b+c d", "object"),
        (b"/b/%C3%A9%00", "b", "\u00e9\x00", "object"),
        (b"/b/k/", "b", "k/", "object"),
        (b"http://host:1/b/k", "b", "k", "object"),
    ],
)
def test_the_path_names_bucket_and_key_exactly(path: bytes, bucket: str, key: str, level: str) -> None:
    parsed = request(path)
    assert (parsed.bucket, parsed.key, parsed.level) == (bucket, key, level)


@given(st.text(min_size=1, max_size=40).filter(lambda key: key.encode("utf-8", "ignore").decode() == key))
def test_every_key_survives_its_url(key: str) -> None:
    assert request(b"/b/" + quote(key, safe="").encode()).key == key
    assert request(b"/b/" + quote(key).encode()).key == key


def test_a_virtual_host_names_the_bucket() -> None:
    parsed = request(b"/healthz", host="my.bucket.s3.example.com:9000", domains=("s3.example.com",))
    assert (parsed.bucket, parsed.key, parsed.virtual_host) == ("my.bucket", "healthz", True)
    assert parsed.resource == "/my.bucket/healthz"
    assert request(b"/b/k", host="s3.example.com", domains=("s3.example.com",)).bucket == "b"


@pytest.mark.parametrize("host", ["s3.example.com", "xs3.example.com", "example.com", "[::1]:80", ""])
def test_other_hosts_name_no_bucket(host: str) -> None:
    assert bucket_of_host(host, ("s3.example.com",)) == ""


def test_bare_and_empty_flags_are_the_same() -> None:
    assert parse_query(b"uploads") == parse_query(b"uploads=") == {"uploads": ""}
    assert parse_query(b"prefix=a%20b+c&prefix=x") == {"prefix": "a b c"}


@pytest.mark.parametrize("path", [b"/b/%ff", b"/%ff/k", b"ftp://x/b"])
def test_what_is_no_address_is_refused(path: bytes) -> None:
    with pytest.raises(S3Error) as caught:
        request(path)
    assert caught.value.code == "InvalidURI"
    with pytest.raises(S3Error):
        parse_query(b"a=%ff")


@pytest.mark.parametrize("path", [b"//", b"//b/k", b"///", b"http://host//k"])
def test_a_key_without_a_bucket_is_refused(path: bytes) -> None:
    with pytest.raises(S3Error) as caught:
        request(path)
    assert caught.value.code == "InvalidBucketName"


def test_a_presigned_query_carries_headers() -> None:
    query = (
        b"X-Amz-Meta-Colour=blue&x-amz-acl=private&X-Amz-Date=20260101T000000Z&X-Amz-Signature=0&x-id=PutObject"
        b"&x-amz-checksum-crc32=AAAAAA%3D%3D&x-amz-sdk-checksum-algorithm=CRC32&x-amz-checksum-algorithm=SHA256"
    )
    parsed = request(b"/b/k", query=query)
    parsed.headers["x-amz-acl"] = "public-read"
    parsed.adopt_query_headers()
    assert parsed.headers == {
        "host": "localhost:9000",
        "x-amz-meta-colour": "blue",
        "x-amz-acl": "public-read",
        "x-amz-checksum-algorithm": "SHA256",
    }


def test_request_ids_differ() -> None:
    ids = {new_request_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(request_id) == 16 for request_id in ids)


def test_request_ids_of_forked_processes_differ() -> None:
    ids = []
    for _ in range(3):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.write(writing, new_request_id().encode())
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            ids.append(pipe.read())
        os.waitpid(child, 0)
    assert len({*ids, new_request_id().encode()}) == 4
    assert all(len(request_id) == 16 for request_id in ids)
