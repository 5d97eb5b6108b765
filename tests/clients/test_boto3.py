"""boto3 with every checksum it computes: managed transfers, multipart, over http and https.

Over https botocore sends bodies as aws-chunked without a Content-Length, and the checksum in a trailer.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.httpchecksum import _CHECKSUM_CLS

from tests.nodes import RunningNode

MIB = 1024 * 1024
ALGORITHMS = sorted(name.upper() for name in _CHECKSUM_CLS)
QUICK = {"CRC32", "CRC64NVME", "SHA256"}
MULTIPART = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, max_concurrency=3)
SINGLE = TransferConfig(multipart_threshold=64 * MIB)


def algorithms(*names: str) -> list[Any]:
    """Parameters: all of them in the slow tests, a few in the quick ones."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


every_algorithm = pytest.mark.parametrize("algorithm", algorithms(*ALGORITHMS))
# Which algorithm gives which type of checksum to a multipart upload, S3 says:
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
COMPOSITE = [name for name in ALGORITHMS if name != "CRC64NVME"]
FULL_OBJECT = [name for name in ALGORITHMS if name.startswith("CRC")]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("boto3") / "file"
    path.write_bytes(os.urandom(13 * MIB + 7))
    return path


def test_the_installed_runtime_computes_more_than_python_does() -> None:
    assert {"CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"} <= set(ALGORITHMS)


@every_algorithm
@pytest.mark.parametrize("transfer", [SINGLE, MULTIPART], ids=["single", "multipart"])
def test_a_managed_transfer_goes_both_ways(
    s3: Any, bucket: str, file: Path, tmp_path: Path, algorithm: str, transfer: TransferConfig
) -> None:
    s3.upload_file(str(file), bucket, "k", Config=transfer, ExtraArgs={"ChecksumAlgorithm": algorithm})
    head = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert head[f"Checksum{algorithm}"]
    assert head["ContentLength"] == file.stat().st_size
    assert head["ETag"].endswith('-3"') == (transfer is MULTIPART)
    s3.download_file(bucket, "k", str(tmp_path / "back"), Config=transfer, ExtraArgs={"ChecksumMode": "ENABLED"})
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


@every_algorithm
def test_a_put_is_answered_with_the_checksum_that_the_client_computed(s3: Any, bucket: str, algorithm: str) -> None:
    body = os.urandom(300_001)
    put = s3.put_object(Bucket=bucket, Key="k", Body=body, ChecksumAlgorithm=algorithm)
    computed = _CHECKSUM_CLS[algorithm.lower()]().handle(body)
    assert put[f"Checksum{algorithm}"] == computed
    assert put["ChecksumType"] == "FULL_OBJECT"
    got = s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert got[f"Checksum{algorithm}"] == computed
    assert got["Body"].read() == body  # botocore checks the digest as it reads
    attributes = s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["Checksum", "ObjectSize"])
    assert attributes["Checksum"] == {f"Checksum{algorithm}": computed, "ChecksumType": "FULL_OBJECT"}


@every_algorithm
def test_a_body_with_a_wrong_checksum_is_refused(s3: Any, bucket: str, algorithm: str) -> None:
    wrong = _CHECKSUM_CLS[algorithm.lower()]().handle(b"another body")
    with pytest.raises(s3.exceptions.ClientError) as caught:
        s3.put_object(Bucket=bucket, Key="k", Body=b"this body", **{f"Checksum{algorithm}": wrong})
    assert caught.value.response["Error"]["Code"] == "BadDigest"
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)


def upload_by_hand(s3: Any, bucket: str, algorithm: str, kind: str, bodies: list[bytes]) -> tuple[dict[str, Any], str]:
    """A multipart upload, call by call: what completing it answers, and what a composite checksum of it is."""
    made = s3.create_multipart_upload(Bucket=bucket, Key="k", ChecksumAlgorithm=algorithm, ChecksumType=kind)
    assert (made["ChecksumAlgorithm"], made["ChecksumType"]) == (algorithm, kind)
    upload = {"Bucket": bucket, "Key": "k", "UploadId": made["UploadId"]}
    member = f"Checksum{algorithm}"
    parts = []
    for number, body in enumerate(bodies, 1):
        answer = s3.upload_part(**upload, PartNumber=number, Body=body, ChecksumAlgorithm=algorithm)
        parts.append({"PartNumber": number, "ETag": answer["ETag"], member: answer[member]})
    done = s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, ChecksumType=kind)
    digests = b"".join(base64.b64decode(part[member]) for part in parts)
    return done, f"{_CHECKSUM_CLS[algorithm.lower()]().handle(digests)}-{len(bodies)}"


def check_upload(s3: Any, bucket: str, algorithm: str, kind: str, bodies: list[bytes], expected: str) -> None:
    head = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert (head[f"Checksum{algorithm}"], head["ChecksumType"]) == (expected, kind)
    got = s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert got["Body"].read() == b"".join(bodies)
    second = s3.get_object(Bucket=bucket, Key="k", PartNumber=2, ChecksumMode="ENABLED")
    assert second["Body"].read() == bodies[1]


@pytest.mark.parametrize("algorithm", algorithms(*COMPOSITE))
def test_a_multipart_upload_has_the_checksum_of_its_parts(s3: Any, bucket: str, algorithm: str) -> None:
    bodies = [os.urandom(5 * MIB), os.urandom(5 * MIB), os.urandom(1234)]
    done, composite = upload_by_hand(s3, bucket, algorithm, "COMPOSITE", bodies)
    assert (done[f"Checksum{algorithm}"], done["ChecksumType"]) == (composite, "COMPOSITE")
    check_upload(s3, bucket, algorithm, "COMPOSITE", bodies, composite)


@pytest.mark.parametrize("algorithm", algorithms(*FULL_OBJECT))
def test_a_multipart_upload_has_the_checksum_of_the_whole(s3: Any, bucket: str, algorithm: str) -> None:
    bodies = [os.urandom(5 * MIB), os.urandom(5 * MIB), os.urandom(1234)]
    done, _ = upload_by_hand(s3, bucket, algorithm, "FULL_OBJECT", bodies)
    whole = _CHECKSUM_CLS[algorithm.lower()]().handle(b"".join(bodies))
    assert (done[f"Checksum{algorithm}"], done["ChecksumType"]) == (whole, "FULL_OBJECT")
    check_upload(s3, bucket, algorithm, "FULL_OBJECT", bodies, whole)


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [(name, "COMPOSITE") for name in ALGORITHMS if name not in COMPOSITE]
    + [(name, "FULL_OBJECT") for name in ALGORITHMS if name not in FULL_OBJECT],
)
def test_types_that_an_algorithm_does_not_have_are_refused(s3: Any, bucket: str, algorithm: str, kind: str) -> None:
    with pytest.raises(s3.exceptions.ClientError) as caught:
        s3.create_multipart_upload(Bucket=bucket, Key="k", ChecksumAlgorithm=algorithm, ChecksumType=kind)
    assert caught.value.response["Error"]["Code"] == "InvalidRequest"


def test_md5_goes_by_its_explicit_headers(s3: Any, bucket: str) -> None:
    body = os.urandom(300_001)
    digest = base64.b64encode(hashlib.md5(body).digest()).decode()
    wrong = base64.b64encode(hashlib.md5(b"another").digest()).decode()
    s3.put_object(Bucket=bucket, Key="content-md5", Body=body, ContentMD5=digest)
    put = s3.put_object(Bucket=bucket, Key="checksum-md5", Body=body, ChecksumMD5=digest)
    assert (put["ChecksumMD5"], put["ChecksumType"]) == (digest, "FULL_OBJECT")
    assert s3.head_object(Bucket=bucket, Key="checksum-md5", ChecksumMode="ENABLED")["ChecksumMD5"] == digest
    for header in ("ContentMD5", "ChecksumMD5"):
        with pytest.raises(s3.exceptions.ClientError) as caught:
            s3.put_object(Bucket=bucket, Key="refused", Body=body, **{header: wrong})
        assert caught.value.response["Error"]["Code"] == "BadDigest"
    upload = s3.create_multipart_upload(Bucket=bucket, Key="parts")
    ids = {"Bucket": bucket, "Key": "parts", "UploadId": upload["UploadId"]}
    part = s3.upload_part(**ids, PartNumber=1, Body=body, ContentMD5=digest)
    with pytest.raises(s3.exceptions.ClientError) as caught:
        s3.upload_part(**ids, PartNumber=2, Body=body, ContentMD5=wrong)
    assert caught.value.response["Error"]["Code"] == "BadDigest"
    s3.complete_multipart_upload(**ids, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
    listed = s3.list_objects_v2(Bucket=bucket)["Contents"]
    assert [entry["Key"] for entry in listed] == ["checksum-md5", "content-md5", "parts"]


def test_a_stream_of_unknown_length_is_uploaded(s3: Any, bucket: str, file: Path) -> None:
    class Stream:
        def __init__(self) -> None:
            self.file = file.open("rb")

        def read(self, size: int = -1) -> bytes:
            return self.file.read(size)

    stream = Stream()
    with stream.file:
        s3.upload_fileobj(stream, bucket, "k", Config=MULTIPART)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == file.read_bytes()


def test_a_managed_copy_of_a_large_object_is_made_of_ranges(s3: Any, bucket: str, file: Path) -> None:
    s3.upload_file(str(file), bucket, "k", Config=MULTIPART)
    s3.copy({"Bucket": bucket, "Key": "k"}, bucket, "copy", Config=MULTIPART)
    assert s3.head_object(Bucket=bucket, Key="copy")["ETag"].endswith('-3"')
    assert s3.get_object(Bucket=bucket, Key="copy")["Body"].read() == file.read_bytes()


def test_a_connection_is_good_after_an_empty_file(either_store: RunningNode, bucket: str) -> None:
    # botocore awaits 100 (Continue) even before an empty body. When a final answer comes in its place, it takes the
    # first line of the connection's next answer for a header, and waits for the rest until it times out.
    s3 = either_store.client(max_pool_connections=1, read_timeout=30)
    for key, body in (("empty", b""), ("one", b"1"), ("empty again", b""), ("two", b"22")):
        s3.put_object(Bucket=bucket, Key=key, Body=io.BytesIO(body))
    assert [entry["Size"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]] == [0, 0, 1, 2]
    s3.close()
