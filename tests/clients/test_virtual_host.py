"""boto3 with the bucket in the host name, against a node with `--domain`, over http and https."""

from __future__ import annotations

import http.client
import socket
import ssl
import uuid
from collections.abc import Iterator
from typing import Any
from unittest import mock

import boto3
import pytest
import trustme
from botocore.config import Config

from tests.nodes import RunningNode, running_node

pytestmark = pytest.mark.slow


# Two labels, for OpenSSL takes no wildcard directly under a top-level domain.
DOMAIN = "s3.localhost"


@pytest.fixture(scope="module", params=["http", "https"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    directory = tmp_path_factory.mktemp("domain")
    flags = [f"--domain={DOMAIN}"]
    ca_bundle = None
    if request.param == "https":
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1", DOMAIN, f"*.{DOMAIN}")
        issued.private_key_and_cert_chain_pem.write_to_path(directory / "node.pem")
        authority.cert_pem.write_to_path(directory / "ca.pem")
        ca_bundle = str(directory / "ca.pem")
        flags += [f"--tls-cert={directory / 'node.pem'}", f"--tls-key={directory / 'node.pem'}"]
    with running_node(directory / "data", *flags, ca_bundle=ca_bundle) as running:
        yield running


@pytest.fixture(autouse=True)
def resolver() -> Iterator[None]:
    """Names under localhost are this machine, also where the system's resolver does not know them (RFC 6761, 6.3)."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        local = isinstance(host, str) and host.endswith(".localhost")
        return real("127.0.0.1" if local else host, *arguments, **options)

    with mock.patch("socket.getaddrinfo", getaddrinfo):
        yield


@pytest.fixture
def s3(node: RunningNode) -> Iterator[Any]:
    made = boto3.client(
        "s3",
        endpoint_url=node.endpoint.replace("127.0.0.1", DOMAIN),
        aws_access_key_id=node.access_key_id,
        aws_secret_access_key=node.secret_access_key,
        region_name="auto",
        verify=node.ca_bundle,
        config=Config(s3={"addressing_style": "virtual"}, retries={"total_max_attempts": 1}),
    )
    yield made
    made.close()


@pytest.fixture
def bucket(s3: Any) -> str:
    name = f"virtual-{uuid.uuid4().hex[:20]}"
    s3.create_bucket(Bucket=name)
    return name


def fetch(node: RunningNode, host: str, path: str) -> tuple[int, bytes]:
    """One unsigned GET to this node under a host name."""
    connection: http.client.HTTPConnection
    if node.ca_bundle:
        connection = http.client.HTTPSConnection(
            host, node.port, context=ssl.create_default_context(cafile=node.ca_bundle), timeout=30
        )
    else:
        connection = http.client.HTTPConnection(host, node.port, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_requests_name_the_bucket_in_the_host(s3: Any, bucket: str, node: RunningNode) -> None:
    url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})
    assert url.startswith(f"{node.endpoint.replace('127.0.0.1', f'{bucket}.{DOMAIN}')}/k?")


def test_objects_buckets_and_uploads_are_addressed(s3: Any, bucket: str) -> None:
    for key in ("k", "a/b//c", "ä ö+%2F", bucket, f"{bucket}/k"):
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == key.encode()
    listed = s3.list_objects_v2(Bucket=bucket)
    assert {entry["Key"] for entry in listed["Contents"]} == {"k", "a/b//c", "ä ö+%2F", bucket, f"{bucket}/k"}
    upload = s3.create_multipart_upload(Bucket=bucket, Key="parts")["UploadId"]
    part = s3.upload_part(Bucket=bucket, Key="parts", UploadId=upload, PartNumber=1, Body=b"part")
    s3.complete_multipart_upload(
        Bucket=bucket,
        Key="parts",
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
    )
    s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "parts"})
    assert s3.get_object(Bucket=bucket, Key="copy")["Body"].read() == b"part"
    assert bucket in {entry["Name"] for entry in s3.list_buckets()["Buckets"]}


@pytest.mark.parametrize("key", ["healthz", "readyz", "_tigrislike/storage"])
def test_the_services_own_paths_are_object_keys_under_a_bucket(
    s3: Any, bucket: str, node: RunningNode, key: str
) -> None:
    s3.put_object(Bucket=bucket, Key=key, Body=b"an object")
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == b"an object"
    status, body = fetch(node, f"{bucket}.{DOMAIN}", f"/{key}")
    assert (status, b"<Code>AccessDenied</Code>" in body) == (403, True)
    assert fetch(node, DOMAIN, "/healthz")[0] == 200


def test_a_presigned_url_of_a_bucket_host_works(s3: Any, bucket: str, node: RunningNode) -> None:
    s3.put_object(Bucket=bucket, Key="a b", Body=b"linked")
    url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "a b"})
    assert fetch(node, f"{bucket}.{DOMAIN}", url[url.index("/", 8) :]) == (200, b"linked")


def test_a_deleted_bucket_is_gone_under_its_host(s3: Any, bucket: str) -> None:
    s3.delete_bucket(Bucket=bucket)
    with pytest.raises(s3.exceptions.ClientError) as caught:
        s3.list_objects_v2(Bucket=bucket)
    assert caught.value.response["Error"]["Code"] == "NoSuchBucket"
