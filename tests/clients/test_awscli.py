"""The AWS command line: `aws s3` and `aws s3api`, with the printed exports, over http and https."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.environments import Client, client
from tests.nodes import RunningNode

pytestmark = pytest.mark.slow

MIB = 1024 * 1024


@pytest.fixture
def aws(either_store: RunningNode, tmp_path: Path) -> Client:
    # One attempt only: what works at the second is an error that a retry hides.
    return client("awscli", either_store, tmp_path, AWS_MAX_ATTEMPTS="1")


@pytest.fixture
def api(aws: Client, bucket: str) -> Callable[..., Any]:
    """`aws s3api OPERATION --bucket BUCKET ...`; what it answers."""

    def call(operation: str, *arguments: str) -> Any:
        output = aws.run("aws", "s3api", operation, "--bucket", bucket, *arguments)
        return json.loads(output) if output.strip() else None

    return call


def test_buckets_are_made_listed_and_removed(aws: Client, bucket: str) -> None:
    name = f"{bucket}-2"
    assert aws.run("aws", "s3", "mb", f"s3://{name}") == f"make_bucket: {name}\n"
    assert f" {name}\n" in aws.run("aws", "s3", "ls")
    aws.run("aws", "s3api", "head-bucket", "--bucket", name)
    assert aws.run("aws", "s3", "rb", f"s3://{name}") == f"remove_bucket: {name}\n"
    made = json.loads(aws.run("aws", "s3api", "create-bucket", "--bucket", name))
    assert made["Location"].endswith(name)
    (aws.directory / "file").write_bytes(b"x")
    aws.run("aws", "s3", "cp", "file", f"s3://{name}/file")
    status, output = aws.attempt("aws", "s3", "rb", f"s3://{name}")
    assert (status, "BucketNotEmpty" in output) == (1, True)
    aws.run("aws", "s3", "rb", "--force", f"s3://{name}")
    assert name not in aws.run("aws", "s3", "ls")


def test_a_bucket_with_a_location_constraint_is_made(aws: Client, bucket: str) -> None:
    configuration = "LocationConstraint=eu-central-1"
    aws.run("aws", "s3api", "create-bucket", f"--bucket={bucket}-eu", "--create-bucket-configuration", configuration)


def test_files_are_copied_moved_listed_and_removed(aws: Client, bucket: str) -> None:
    body = os.urandom(100_000)
    (aws.directory / "a file ü+%2F").write_bytes(body)
    aws.run("aws", "s3", "cp", "a file ü+%2F", f"s3://{bucket}/dir/", "--content-type", "text/x-test")
    aws.run("aws", "s3", "mv", f"s3://{bucket}/dir/a file ü+%2F", f"s3://{bucket}/dir/moved")
    assert aws.run("aws", "s3", "ls", f"s3://{bucket}/dir/").endswith(" 100000 moved\n")
    assert aws.run("aws", "s3", "ls", f"s3://{bucket}").split() == ["PRE", "dir/"]
    aws.run("aws", "s3", "cp", f"s3://{bucket}/dir/moved", "back")
    assert (aws.directory / "back").read_bytes() == body
    aws.run("aws", "s3", "mv", f"s3://{bucket}/dir/moved", "moved here")
    assert (aws.directory / "moved here").read_bytes() == body
    _, output = aws.attempt("aws", "s3", "ls", "--recursive", f"s3://{bucket}/", "--summarize")
    assert "Total Objects: 0" in output


def test_standard_input_and_output_are_streamed(aws: Client, bucket: str) -> None:
    (aws.directory / "in").write_bytes(os.urandom(19 * MIB + 1))
    aws.run("sh", "-c", f"aws s3 cp - s3://{bucket}/stream < in && aws s3 cp s3://{bucket}/stream - > out")
    assert (aws.directory / "out").read_bytes() == (aws.directory / "in").read_bytes()


def test_a_tree_is_synchronised_both_ways(aws: Client, bucket: str, keys: Callable[[], dict[str, int]]) -> None:
    files = {f"d{number % 3}/f{number}": os.urandom(number * 1000) for number in range(30)} | {
        "big": os.urandom(9 * MIB)
    }
    for name, body in files.items():
        path = aws.directory / "up" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    assert aws.run("aws", "s3", "sync", "up", f"s3://{bucket}/tree", "--no-progress").count("upload: ") == len(files)
    assert aws.run("aws", "s3", "sync", "up", f"s3://{bucket}/tree") == ""
    assert keys() == {f"tree/{name}": len(body) for name, body in files.items()}
    aws.run("aws", "s3", "sync", f"s3://{bucket}/tree", "down")
    assert {name: (aws.directory / "down" / name).read_bytes() for name in files} == files
    (aws.directory / "up" / "big").unlink()
    (aws.directory / "up" / "d0" / "f0").write_bytes(b"changed")
    output = aws.run("aws", "s3", "sync", "--delete", "up", f"s3://{bucket}/tree")
    assert (output.count("delete: "), output.count("upload: ")) == (1, 1)
    aws.run("aws", "s3", "sync", f"s3://{bucket}/tree", f"s3://{bucket}/copy")
    aws.run("aws", "s3", "rm", "--recursive", f"s3://{bucket}/tree")
    assert keys() == {f"copy/{name}": len(body) for name, body in files.items() if name != "big"} | {"copy/d0/f0": 7}


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_large_files_go_in_parts_with_a_checksum(aws: Client, s3: Any, bucket: str, algorithm: str) -> None:
    body = os.urandom(21 * MIB + 9)
    (aws.directory / "big").write_bytes(body)
    aws.run("aws", "s3", "cp", "big", f"s3://{bucket}/big", "--checksum-algorithm", algorithm)
    head = s3.head_object(Bucket=bucket, Key="big", ChecksumMode="ENABLED")
    assert head["ETag"].endswith('-3"')
    assert head[f"Checksum{algorithm}"]
    aws.run("aws", "s3", "cp", f"s3://{bucket}/big", "back", "--checksum-mode", "ENABLED")
    assert (aws.directory / "back").read_bytes() == body


def test_a_link_is_signed(aws: Client, bucket: str) -> None:
    (aws.directory / "file").write_bytes(b"linked")
    aws.run("aws", "s3", "cp", "file", f"s3://{bucket}/a b")
    url = aws.run("aws", "s3", "presign", f"s3://{bucket}/a b", "--expires-in", "60", "--region", "auto").strip()
    program = "import ssl, sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read())"
    assert aws.run("python", "-c", program, url) == "b'linked'\n"


def test_an_object_is_put_got_and_described(aws: Client, api: Callable[..., Any], bucket: str) -> None:
    (aws.directory / "file").write_bytes(b"0123456789")
    digest = base64.b64encode(hashlib.sha256(b"0123456789").digest()).decode()
    put = api(
        *("put-object", "--key", "k", "--body", "file", "--metadata", "one=1,two=2"),
        *("--checksum-algorithm", "SHA256", "--tagging", "a=1", "--content-type", "text/plain"),
    )
    assert put["ETag"] == f'"{hashlib.md5(b"0123456789").hexdigest()}"'
    assert put["ChecksumSHA256"] == digest
    head = api("head-object", "--key", "k", "--checksum-mode", "ENABLED")
    assert (head["ContentLength"], head["ContentType"], head["Metadata"]) == (
        10,
        "text/plain",
        {"one": "1", "two": "2"},
    )
    assert head["ChecksumSHA256"] == digest
    got = api("get-object", "--key", "k", "--range", "bytes=2-4", "back")
    assert (got["ContentRange"], (aws.directory / "back").read_bytes()) == ("bytes 2-4/10", b"234")
    assert api("get-object-tagging", "--key", "k")["TagSet"] == [{"Key": "a", "Value": "1"}]
    attributes = api("get-object-attributes", "--key", "k", "--object-attributes", "ObjectSize", "Checksum", "ETag")
    assert attributes["ObjectSize"] == 10
    copied = api("copy-object", "--key", "copy", "--copy-source", f"{bucket}/k")
    assert copied["CopyObjectResult"]["ETag"] == put["ETag"]


def test_pages_are_followed(aws: Client, api: Callable[..., Any], s3: Any, bucket: str) -> None:
    names = [f"k{number:02}" for number in range(25)]
    for name in names:
        s3.put_object(Bucket=bucket, Key=name, Body=b"x")
    listed = api("list-objects-v2", "--page-size", "7")
    assert [entry["Key"] for entry in listed["Contents"]] == names
    first = api("list-objects-v2", "--page-size", "4", "--max-items", "10")
    rest = api("list-objects-v2", "--starting-token", first["NextToken"])
    assert [entry["Key"] for entry in first["Contents"] + rest["Contents"]] == names
    assert len(api("list-objects", "--page-size", "10")["Contents"]) == 25
    assert len(api("list-object-versions", "--page-size", "10")["Versions"]) == 25
    assert "Contents" not in (api("list-objects-v2", "--prefix", "nothing") or {})
    document = json.dumps({"Objects": [{"Key": name} for name in names], "Quiet": False})
    assert len(api("delete-objects", "--delete", document)["Deleted"]) == 25


def test_versions_are_kept(aws: Client, api: Callable[..., Any], bucket: str) -> None:
    api("put-bucket-versioning", "--versioning-configuration", "Status=Enabled")
    assert api("get-bucket-versioning")["Status"] == "Enabled"
    versions = []
    for body in (b"first", b"second"):
        (aws.directory / "file").write_bytes(body)
        versions.append(api("put-object", "--key", "k", "--body", "file")["VersionId"])
    marker = api("delete-object", "--key", "k")
    assert marker["DeleteMarker"] is True
    status, output = aws.attempt("aws", "s3", "cp", f"s3://{bucket}/k", "back")
    assert (status, "404" in output) == (1, True)
    api("get-object", "--key", "k", "--version-id", versions[0], "back")
    assert (aws.directory / "back").read_bytes() == b"first"
    listed = api("list-object-versions", "--prefix", "k")
    assert [entry["VersionId"] for entry in listed["Versions"]] == versions[::-1]
    assert [entry["VersionId"] for entry in listed["DeleteMarkers"]] == [marker["VersionId"]]
    api("delete-object", "--key", "k", "--version-id", marker["VersionId"])
    assert api("head-object", "--key", "k")["VersionId"] == versions[1]


def test_a_multipart_upload_by_hand(aws: Client, api: Callable[..., Any]) -> None:
    bodies = [os.urandom(5 * MIB), os.urandom(123)]
    upload = api("create-multipart-upload", "--key", "k", "--checksum-algorithm", "CRC32")["UploadId"]
    parts = []
    for number, body in enumerate(bodies, 1):
        (aws.directory / "part").write_bytes(body)
        answer = api(
            *("upload-part", "--key", "k", "--upload-id", upload, "--part-number", str(number), "--body", "part"),
            *("--checksum-algorithm", "CRC32"),
        )
        assert answer["ChecksumCRC32"] == base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()
        parts.append({"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": answer["ChecksumCRC32"]})
    assert [part["Size"] for part in api("list-parts", "--key", "k", "--upload-id", upload)["Parts"]] == [5 * MIB, 123]
    assert [entry["UploadId"] for entry in api("list-multipart-uploads")["Uploads"]] == [upload]
    done = api(
        *("complete-multipart-upload", "--key", "k", "--upload-id", upload),
        *("--multipart-upload", json.dumps({"Parts": parts})),
    )
    assert done["ETag"].endswith('-2"')
    api("get-object", "--key", "k", "back")
    assert (aws.directory / "back").read_bytes() == b"".join(bodies)
    aborted = api("create-multipart-upload", "--key", "aborted")["UploadId"]
    api("abort-multipart-upload", "--key", "aborted", "--upload-id", aborted)
    assert api("list-multipart-uploads") is None or "Uploads" not in api("list-multipart-uploads")


def test_errors_are_named(aws: Client, bucket: str) -> None:
    (aws.directory / "file").write_bytes(b"x")
    aws.run("aws", "s3api", "put-object", f"--bucket={bucket}", "--key=k", "--body=file")
    for code, arguments in {
        "NoSuchKey": ("get-object", f"--bucket={bucket}", "--key=nothing", "out"),
        "NoSuchBucket": ("list-objects-v2", "--bucket=no-such-bucket-at-all"),
        "BucketAlreadyOwnedByYou": ("create-bucket", f"--bucket={bucket}"),
        "NoSuchUpload": ("list-parts", f"--bucket={bucket}", "--key=k", "--upload-id=" + "0" * 32),
        "InvalidRange": ("get-object", f"--bucket={bucket}", "--key=k", "--range=bytes=5-", "out"),
    }.items():
        status, output = aws.attempt("aws", "s3api", *arguments)
        assert status != 0, arguments
        assert f"({code})" in output


def test_a_wrong_secret_is_refused(aws: Client, bucket: str) -> None:
    status, output = aws.attempt("aws", "s3", "ls", environment={"AWS_SECRET_ACCESS_KEY": "wrong"})
    assert (status != 0, "SignatureDoesNotMatch" in output) == (True, True)
