"""Regions through the headers that Tigris' clients send, as boto3 signs them, against one node."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import client
from tests.e2e.test_objects import code, status
from tests.e2e.wire import EMPTY_SHA256, Caller, exchange

SERVED_FROM = "x-tigris-served-from"


@pytest.fixture
def tigris(store: Any) -> Iterator[Any]:
    """A client with `send`: the headers to add to its next requests, as tigris-boto3-ext adds them."""
    made = client(store)
    made.send = {}

    def add(request: Any, **_: Any) -> None:
        for name, value in made.send.items():
            request.headers[name] = value

    made.meta.events.register("before-sign.s3", add)
    yield made
    made.close()


def headers_of(answer: Any) -> dict[str, str]:
    headers: dict[str, str] = answer["ResponseMetadata"]["HTTPHeaders"]
    return headers


def test_a_bucket_is_made_as_each_client_makes_it(s3: Any, store: Any) -> None:
    caller = Caller(store)
    location = b"<CreateBucketConfiguration><LocationConstraint>auto</LocationConstraint></CreateBucketConfiguration>"
    requests = {
        "js": ("/", {"x-amz-acl-public-list-objects-enabled": "false", "x-amz-storage-class": "STANDARD"}, location),
        "py": ("", {"x-amz-acl": "public-read", "x-amz-acl-public-list-objects-enabled": "true"}, b""),
    }
    for kind, (slash, headers, body) in requests.items():
        target = f"/{kind}-{uuid.uuid4().hex}{slash}"
        given = {"x-tigris-regions": "iad,sjc", "content-length": str(len(body)), **headers}
        answer = exchange(store, "PUT", target, caller.sign("PUT", target, given, payload="UNSIGNED-PAYLOAD"), body)
        assert (answer.status, answer.headers["location"]) == (200, target.rstrip("/"))
        assert headers_of(s3.head_bucket(Bucket=target.strip("/")))["x-tigris-regions"] == "iad,sjc"


def test_policies_are_shown_where_there_are_some(tigris: Any, bucket: str) -> None:
    shown = headers_of(tigris.head_bucket(Bucket=bucket))
    assert {"x-tigris-regions", "x-tigrislike-durability"}.isdisjoint(shown)
    name = f"test-{uuid.uuid4().hex}"
    tigris.send = {"X-Tigris-Regions": "usa", "X-Tigrislike-Durability": "homes=2"}
    tigris.create_bucket(Bucket=name)
    shown = headers_of(tigris.head_bucket(Bucket=name))
    assert (shown["x-tigris-regions"], shown["x-tigrislike-durability"]) == ("usa", "homes=2")
    tigris.send = {"X-Tigris-Regions": "iad sjc"}
    assert code(tigris.create_bucket, Bucket=f"test-{uuid.uuid4().hex}") == "InvalidArgument"


def test_a_write_that_one_node_alone_cannot_make_safe_is_refused(tigris: Any) -> None:
    name = f"test-{uuid.uuid4().hex}"
    tigris.send = {"X-Tigrislike-Durability": "homes=2"}
    tigris.create_bucket(Bucket=name)
    tigris.put_object(Bucket=name, Key="small", Body=b"the database holds it")
    assert code(tigris.put_object, Bucket=name, Key="large", Body=os.urandom(300_000)) == "ServiceUnavailable"
    assert status(tigris.head_object, Bucket=name, Key="large") == 404
    assert tigris.list_objects_v2(Bucket=name)["KeyCount"] == 1


def test_an_object_in_a_region_of_its_own_is_written_and_read(tigris: Any, bucket: str) -> None:
    body = os.urandom(300_000)
    tigris.send = {"X-Tigris-Regions": "fra"}
    tigris.put_object(Bucket=bucket, Key="k", Body=body)
    assert tigris.get_object(Bucket=bucket, Key="k")["Body"].read() == body
    tigris.send = {"X-Tigris-Regions": "/"}
    assert code(tigris.put_object, Bucket=bucket, Key="k", Body=b"") == "InvalidArgument"


@pytest.mark.parametrize("size", [0, 100, 200_000, 20 * 1024**2])
def test_every_read_says_where_its_bytes_came_from(s3: Any, store: Any, bucket: str, size: int) -> None:
    body = os.urandom(size)
    etag = s3.put_object(Bucket=bucket, Key="k", Body=body)["ETag"]
    assert headers_of(s3.head_object(Bucket=bucket, Key="k"))[SERVED_FROM] == store.region
    for _ in range(2):
        got = s3.get_object(Bucket=bucket, Key="k")
        assert (headers_of(got)[SERVED_FROM], got["Body"].read()) == (store.region, body)
    if size:
        got = s3.get_object(Bucket=bucket, Key="k", Range="bytes=-50")
        assert (headers_of(got)[SERVED_FROM], got["Body"].read()) == (store.region, body[-50:])
    target = f"/{bucket}/k"
    signed = Caller(store).sign("GET", target, {"if-none-match": etag}, payload=EMPTY_SHA256)
    answer = exchange(store, "GET", target, signed)
    assert (answer.status, answer.headers[SERVED_FROM]) == (304, store.region)


def test_acceleration(s3: Any, bucket: str) -> None:
    assert "Status" not in s3.get_bucket_accelerate_configuration(Bucket=bucket)
    for state in ("Enabled", "Suspended"):
        s3.put_bucket_accelerate_configuration(Bucket=bucket, AccelerateConfiguration={"Status": state})
        assert s3.get_bucket_accelerate_configuration(Bucket=bucket)["Status"] == state
    s3.put_object(Bucket=bucket, Key="k", Body=os.urandom(200_000))


def test_prefetching_changes_nothing_of_a_listing(tigris: Any, bucket: str) -> None:
    tigris.put_object(Bucket=bucket, Key="k", Body=os.urandom(200_000))
    plain = tigris.list_objects_v2(Bucket=bucket)["Contents"]
    tigris.send = {"X-Tigris-Prefetch": "true"}
    assert tigris.list_objects_v2(Bucket=bucket)["Contents"] == plain
    tigris.send = {"X-Tigris-Prefetch": "perhaps"}
    assert code(tigris.list_objects_v2, Bucket=bucket) == "InvalidArgument"
