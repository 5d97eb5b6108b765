"""Without faults the lying server is an S3 server to clients that know nothing of it; with them it fails as told."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import boto3
import obstore
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from obstore.store import S3Store

from tests.origin.lying import Fault, Lying, running_lying

KEYS = ["a", "a/b", "a/c/d", "b//", "b/ä +%", "c"]


@pytest.fixture
def server() -> Iterator[Lying]:
    with running_lying() as server:
        yield server


@pytest.fixture
def s3(server: Lying) -> Iterator[Any]:
    made = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id="any",
        aws_secret_access_key="any",
        region_name="us-east-1",
        config=Config(
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            s3={"addressing_style": "path"},
        ),
    )
    yield made
    made.close()


def test_objects_come_back_as_they_were_put(server: Lying, s3: Any) -> None:
    put = s3.put_object(
        Bucket=server.bucket,
        Key="k /ü",
        Body=b"0123456789",
        ContentType="text/plain",
        Metadata={"a": "b"},
        Tagging="x=1",
    )
    got = s3.get_object(Bucket=server.bucket, Key="k /ü", Range="bytes=2-4", IfMatch=put["ETag"])
    assert (got["Body"].read(), got["ContentRange"], got["ContentType"]) == (b"234", "bytes 2-4/10", "text/plain")
    head = s3.head_object(Bucket=server.bucket, Key="k /ü")
    assert (head["ContentLength"], head["ETag"], head["Metadata"]) == (10, put["ETag"], {"a": "b"})
    tags = s3.get_object_tagging(Bucket=server.bucket, Key="k /ü")["TagSet"]
    assert tags == [{"Key": "x", "Value": "1"}]
    assert s3.get_object(Bucket=server.bucket, Key="k /ü", Range="bytes=-3")["Body"].read() == b"789"
    s3.delete_object(Bucket=server.bucket, Key="k /ü")
    assert server.objects == {}
    assert server.asked("DELETE") == 1


@pytest.mark.parametrize(
    ("ask", "status"),
    [
        ({"Key": "none"}, 404),
        ({"Key": "k", "IfMatch": '"other"'}, 412),
        ({"Key": "k", "IfNoneMatch": "*"}, 304),
        ({"Key": "k", "Range": "bytes=10-"}, 416),
        ({"Key": "k", "Bucket": "another"}, 404),
    ],
)
def test_refusals_are_those_of_s3(server: Lying, s3: Any, ask: dict[str, str], status: int) -> None:
    server.put("k", b"0123456789")
    with pytest.raises(ClientError) as raised:
        s3.get_object(**{"Bucket": server.bucket} | ask)
    assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == status


def test_what_it_does_not_know_it_says(server: Lying, s3: Any) -> None:
    with pytest.raises(ClientError, match="NotImplemented"):
        s3.get_object_acl(Bucket=server.bucket, Key="k")


def test_parts_become_an_object(server: Lying, s3: Any) -> None:
    upload = s3.create_multipart_upload(Bucket=server.bucket, Key="k", ContentType="text/plain")["UploadId"]
    parts = [
        {
            "PartNumber": number,
            "ETag": s3.upload_part(Bucket=server.bucket, Key="k", UploadId=upload, PartNumber=number, Body=body)[
                "ETag"
            ],
        }
        for number, body in ((1, b"one"), (2, b"two"))
    ]
    done = s3.complete_multipart_upload(
        Bucket=server.bucket, Key="k", UploadId=upload, MultipartUpload={"Parts": parts}
    )
    assert server.objects["k"].data == b"onetwo"
    assert done["ETag"] == f'"{server.objects["k"].etag}"'
    assert done["ETag"].endswith('-2"')
    assert server.objects["k"].headers["content-type"] == "text/plain"
    upload = s3.create_multipart_upload(Bucket=server.bucket, Key="k")["UploadId"]
    s3.abort_multipart_upload(Bucket=server.bucket, Key="k", UploadId=upload)
    assert server.objects["k"].data == b"onetwo"


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_listings_have_all_keys_in_pages(server: Lying, s3: Any, size: int) -> None:
    for key in KEYS:
        server.put(key, b"x")

    def listed(**options: Any) -> tuple[list[str], list[str]]:
        keys, prefixes = [], []
        pages = s3.get_paginator("list_objects_v2").paginate(
            Bucket=server.bucket, PaginationConfig={"PageSize": size}, **options
        )
        for page in pages:
            assert page["KeyCount"] <= size
            keys += [entry["Key"] for entry in page.get("Contents", [])]
            prefixes += [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
        return keys, prefixes

    assert listed() == (KEYS, [])
    assert listed(Prefix="b/") == (["b//", "b/ä +%"], [])
    assert listed(Delimiter="/") == (["a", "c"], ["a/", "b/"])
    assert listed(Delimiter="/", Prefix="a/") == (["a/b"], ["a/c/"])
    assert listed(StartAfter="a/c") == (KEYS[2:], [])


def test_obstore_takes_it_for_s3(server: Lying) -> None:
    store = S3Store(
        server.bucket,
        endpoint=server.endpoint,
        access_key_id="any",
        secret_access_key="any",
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    obstore.put(store, "dir/k", b"0123456789", use_multipart=False)
    assert bytes(obstore.get_range(store, "dir/k", start=2, end=5)) == b"234"
    assert obstore.head(store, "dir/k")["size"] == 10
    assert [entry["path"] for page in obstore.list(store, "dir") for entry in page] == ["dir/k"]


def test_a_fault_is_of_one_request_or_of_all(server: Lying, s3: Any) -> None:
    server.put("k", b"0123456789")
    server.faults.append(Fault(status=503, retry_after="7"))
    with pytest.raises(ClientError, match="SlowDown") as raised:
        s3.get_object(Bucket=server.bucket, Key="k")
    assert raised.value.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"] == "7"
    assert s3.get_object(Bucket=server.bucket, Key="k")["Body"].read() == b"0123456789"
    server.always = Fault(cut=3)
    for _ in range(2):
        with pytest.raises(BotoCoreError):
            s3.get_object(Bucket=server.bucket, Key="k")["Body"].read()
    assert server.requests[-1].sent == 3
    assert s3.head_object(Bucket=server.bucket, Key="k")["ContentLength"] == 10  # not of this method


def test_it_goes_away_and_comes_back_where_it_was(server: Lying) -> None:
    url = f"{server.endpoint}/{server.bucket}/k"
    server.put("k", b"x")
    server.call(server.go_away)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url)
    server.call(server.come_back)
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"x"


def test_who_uses_it_sees_its_own_errors_and_not_the_servers_end() -> None:
    with pytest.raises(ZeroDivisionError), running_lying():
        raise ZeroDivisionError
