"""Multipart uploads through boto3: parts, copies of parts, checksums, paging, completion and abortion."""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from awscrt import checksums as crt
from boto3.s3.transfer import TransferConfig

from tests.e2e.conftest import client
from tests.e2e.test_objects import code

MIB = 1024 * 1024


def begin(s3: Any, bucket: str, key: str = "k", **arguments: Any) -> str:
    return str(s3.create_multipart_upload(Bucket=bucket, Key=key, **arguments)["UploadId"])


def send(s3: Any, bucket: str, upload: str, number: int, body: bytes, key: str = "k", **arguments: Any) -> Any:
    return s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body, **arguments)


def complete(s3: Any, bucket: str, upload: str, parts: list[dict[str, Any]], key: str = "k", **arguments: Any) -> Any:
    return s3.complete_multipart_upload(
        Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}, **arguments
    )


def sha256(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def etag_of(bodies: list[bytes]) -> str:
    digest = hashlib.md5(b"".join(hashlib.md5(body).digest() for body in bodies)).hexdigest()
    return f'"{digest}-{len(bodies)}"'


def test_an_upload_becomes_an_object(s3: Any, bucket: str) -> None:
    bodies = [os.urandom(5 * MIB), os.urandom(6 * MIB), os.urandom(17)]
    upload = begin(s3, bucket, Metadata={"m": "1"}, ContentType="text/x", Tagging="t=1", StorageClass="STANDARD_IA")
    etags = {
        number: send(s3, bucket, upload, number, body)["ETag"] for number, body in zip((7, 2, 9), bodies, strict=True)
    }
    assert etags[7] == f'"{hashlib.md5(bodies[0]).hexdigest()}"'
    order = [2, 7, 9]
    parts = [{"PartNumber": number, "ETag": etags[number]} for number in order]
    assert code(s3.head_object, Bucket=bucket, Key="k") == "404"
    done = complete(s3, bucket, upload, parts)
    in_order = [bodies[1], bodies[0], bodies[2]]
    assert done["ETag"] == etag_of(in_order)
    assert done["Location"].endswith(f"/{bucket}/k")
    got = s3.get_object(Bucket=bucket, Key="k")
    whole = b"".join(in_order)
    assert got["Body"].read() == whole
    assert (got["Metadata"], got["ContentType"], got["TagCount"], got["StorageClass"]) == (
        {"m": "1"},
        "text/x",
        1,
        "STANDARD_IA",
    )
    part = s3.get_object(Bucket=bucket, Key="k", PartNumber=7)
    assert part["Body"].read() == bodies[0]
    assert part["PartsCount"] == 3
    assert s3.head_object(Bucket=bucket, Key="k", PartNumber=9)["ContentLength"] == 17
    assert code(s3.get_object, Bucket=bucket, Key="k", PartNumber=3) == "InvalidPartNumber"
    ranged = s3.get_object(Bucket=bucket, Key="k", Range=f"bytes={6 * MIB - 3}-{11 * MIB + 5}")
    assert ranged["Body"].read() == whole[6 * MIB - 3 : 11 * MIB + 6]
    # A client that lost the answer may ask again, and is told the same.
    assert complete(s3, bucket, upload, parts)["ETag"] == done["ETag"]
    assert code(s3.list_parts, Bucket=bucket, Key="k", UploadId=upload) == "NoSuchUpload"


def test_parts_are_checked_at_completion(s3: Any, bucket: str) -> None:
    upload = begin(s3, bucket)
    first = send(s3, bucket, upload, 1, b"a" * 5 * MIB)["ETag"]
    small = send(s3, bucket, upload, 2, b"b")["ETag"]
    third = send(s3, bucket, upload, 3, b"c")["ETag"]
    listed = [{"PartNumber": 1, "ETag": first}, {"PartNumber": 3, "ETag": third}]
    assert code(complete, s3=s3, bucket=bucket, upload=upload, parts=list(reversed(listed))) == "InvalidPartOrder"
    twice = [listed[0], listed[0]]
    assert code(complete, s3=s3, bucket=bucket, upload=upload, parts=twice) == "InvalidPartOrder"
    wrong = [{"PartNumber": 1, "ETag": third}]
    assert code(complete, s3=s3, bucket=bucket, upload=upload, parts=wrong) == "InvalidPart"
    missing = [{"PartNumber": 8, "ETag": third}]
    assert code(complete, s3=s3, bucket=bucket, upload=upload, parts=missing) == "InvalidPart"
    middle = [listed[0], {"PartNumber": 2, "ETag": small}, listed[1]]
    assert code(complete, s3=s3, bucket=bucket, upload=upload, parts=middle) == "EntityTooSmall"
    assert code(complete, s3=s3, bucket=bucket, upload=upload, parts=[]) == "MalformedXML"
    wrong_size = {"s3": s3, "bucket": bucket, "upload": upload, "parts": listed, "MpuObjectSize": 3}
    assert code(complete, **wrong_size) == "InvalidRequest"
    assert code(complete, s3=s3, bucket=bucket, upload="0" * 32, parts=listed) == "NoSuchUpload"
    assert code(complete, s3=s3, bucket=bucket, upload="nonsense", parts=listed) == "NoSuchUpload"
    assert code(complete, s3=s3, bucket=bucket, upload=upload, parts=listed, key="other") == "NoSuchUpload"
    unquoted = [{"PartNumber": part["PartNumber"], "ETag": part["ETag"].strip('"')} for part in listed]
    complete(s3, bucket, upload, unquoted)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"a" * 5 * MIB + b"c"


def test_conditions_hold_at_completion(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"there")
    upload = begin(s3, bucket)
    parts = [{"PartNumber": 1, "ETag": send(s3, bucket, upload, 1, b"x")["ETag"]}]
    arguments = {"s3": s3, "bucket": bucket, "upload": upload, "parts": parts}
    assert code(complete, **arguments, IfNoneMatch="*") == "PreconditionFailed"
    assert code(complete, **arguments, IfMatch='"other"') == "PreconditionFailed"
    complete(**arguments, IfMatch=s3.head_object(Bucket=bucket, Key="k")["ETag"])
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"


def test_bad_part_numbers(s3: Any, bucket: str) -> None:
    upload = begin(s3, bucket)
    for number in (0, 10_001):
        assert code(send, s3=s3, bucket=bucket, upload=upload, number=number, body=b"x") == "InvalidArgument"
    assert code(send, s3=s3, bucket=bucket, upload="0" * 32, number=1, body=b"x") == "NoSuchUpload"


def test_an_aborted_upload_is_gone(s3: Any, bucket: str) -> None:
    upload = begin(s3, bucket)
    send(s3, bucket, upload, 1, b"x" * 6 * MIB)
    s3.abort_multipart_upload(Bucket=bucket, Key="k", UploadId=upload)
    assert code(s3.abort_multipart_upload, Bucket=bucket, Key="k", UploadId=upload) == "NoSuchUpload"
    assert code(send, s3=s3, bucket=bucket, upload=upload, number=1, body=b"x") == "NoSuchUpload"
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


def test_unfinished_uploads_go_with_their_bucket_but_do_not_keep_it(s3: Any, bucket: str) -> None:
    uploads = [begin(s3, bucket) for _ in range(3)]
    send(s3, bucket, uploads[0], 1, b"x" * 6 * MIB)
    s3.put_object(Bucket=bucket, Key="object", Body=b"x")
    assert code(s3.delete_bucket, Bucket=bucket) == "BucketNotEmpty"
    assert len(s3.list_multipart_uploads(Bucket=bucket)["Uploads"]) == 3
    s3.delete_object(Bucket=bucket, Key="object")
    s3.delete_bucket(Bucket=bucket)
    assert code(send, s3=s3, bucket=bucket, upload=uploads[0], number=1, body=b"x") == "NoSuchBucket"
    s3.create_bucket(Bucket=bucket)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)


def test_a_part_is_read_with_its_own_checksum(s3: Any, bucket: str) -> None:
    made = s3.create_multipart_upload(Bucket=bucket, Key="k", ChecksumAlgorithm="SHA256")
    bodies = [os.urandom(5 * MIB), b"last"]
    parts = [
        s3.upload_part(
            Bucket=bucket, Key="k", UploadId=made["UploadId"], PartNumber=n, Body=body, ChecksumAlgorithm="SHA256"
        )
        for n, body in enumerate(bodies, 1)
    ]
    listed = [
        {"PartNumber": n, "ETag": part["ETag"], "ChecksumSHA256": part["ChecksumSHA256"]}
        for n, part in enumerate(parts, 1)
    ]
    done = complete(s3, bucket, made["UploadId"], listed)
    for number, (body, part) in enumerate(zip(bodies, parts, strict=True), 1):
        for answer in (
            s3.get_object(Bucket=bucket, Key="k", PartNumber=number, ChecksumMode="ENABLED"),
            s3.head_object(Bucket=bucket, Key="k", PartNumber=number, ChecksumMode="ENABLED"),
        ):
            assert (answer["ChecksumSHA256"], answer["ChecksumType"]) == (part["ChecksumSHA256"], "COMPOSITE")
            assert (answer["ContentLength"], answer["PartsCount"]) == (len(body), 2)
    whole = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert whole["ChecksumSHA256"] == done["ChecksumSHA256"]


def test_a_part_sent_again_replaces_the_first(s3: Any, bucket: str) -> None:
    upload = begin(s3, bucket)
    send(s3, bucket, upload, 1, b"first")
    etag = send(s3, bucket, upload, 1, b"second")["ETag"]
    complete(s3, bucket, upload, [{"PartNumber": 1, "ETag": etag}])
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"second"


@pytest.mark.parametrize("size", [9, 11 * MIB])
def test_parts_copied_from_objects(s3: Any, bucket: str, size: int) -> None:
    source = os.urandom(size)
    s3.put_object(Bucket=bucket, Key="source", Body=source)
    upload = begin(s3, bucket)
    sent = os.urandom(5 * MIB)
    first = send(s3, bucket, upload, 1, sent)["ETag"]
    cut = (2, size - 3)
    copied = s3.upload_part_copy(
        Bucket=bucket,
        Key="k",
        UploadId=upload,
        PartNumber=2,
        CopySource={"Bucket": bucket, "Key": "source"},
        CopySourceRange=f"bytes={cut[0]}-{cut[1] - 1}",
    )["CopyPartResult"]
    piece = source[cut[0] : cut[1]]
    assert copied["ETag"] == f'"{hashlib.md5(piece).hexdigest()}"'
    beyond = {"CopySourceRange": f"bytes=0-{size}"}, {"CopySourceRange": "bytes=5-"}
    for wrong in beyond:
        arguments = {"Bucket": bucket, "Key": "k", "UploadId": upload, "PartNumber": 3, **wrong}
        assert code(s3.upload_part_copy, CopySource=f"{bucket}/source", **arguments) == "InvalidArgument"
    s3.delete_object(Bucket=bucket, Key="source")
    complete(s3, bucket, upload, [{"PartNumber": 1, "ETag": first}, {"PartNumber": 2, "ETag": copied["ETag"]}])
    got = s3.get_object(Bucket=bucket, Key="k")
    assert got["Body"].read() == sent + piece
    # A copy of what itself consists of a slice, and a slice of a slice.
    s3.copy_object(Bucket=bucket, Key="copy", CopySource=f"{bucket}/k")
    upload = begin(s3, bucket, "again")
    start = 5 * MIB - 1
    copied = s3.upload_part_copy(
        Bucket=bucket,
        Key="again",
        UploadId=upload,
        PartNumber=1,
        CopySource=f"{bucket}/copy",
        CopySourceRange=f"bytes={start}-{start + 2}",
    )["CopyPartResult"]
    complete(s3, bucket, upload, [{"PartNumber": 1, "ETag": copied["ETag"]}], key="again")
    assert s3.get_object(Bucket=bucket, Key="again")["Body"].read() == (sent + piece)[start : start + 3]


def test_parts_and_uploads_list_in_pages(s3: Any, bucket: str) -> None:
    upload = begin(s3, bucket, "a")
    for number in range(1, 8):
        send(s3, bucket, upload, number, bytes([number]), key="a")
    pages = list(
        s3.get_paginator("list_parts").paginate(
            Bucket=bucket, Key="a", UploadId=upload, PaginationConfig={"PageSize": 3}
        )
    )
    assert [[part["PartNumber"] for part in page["Parts"]] for page in pages] == [[1, 2, 3], [4, 5, 6], [7]]
    assert pages[0]["Parts"][0]["Size"] == 1
    assert pages[0]["Initiator"]["ID"] == pages[0]["Owner"]["ID"]
    others = sorted([upload, begin(s3, bucket, "a")])
    more = [begin(s3, bucket, key) for key in ("b/1", "b/2", "c")]
    pages = list(s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, PaginationConfig={"PageSize": 2}))
    listed = [(row["Key"], row["UploadId"]) for page in pages for row in page["Uploads"]]
    assert listed == [("a", others[0]), ("a", others[1]), ("b/1", more[0]), ("b/2", more[1]), ("c", more[2])]
    collapsed = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/", Prefix="b")
    assert [row["Prefix"] for row in collapsed["CommonPrefixes"]] == ["b/"]


def test_composite_checksums(s3: Any, bucket: str) -> None:
    bodies = [os.urandom(5 * MIB), os.urandom(100)]
    upload = begin(s3, bucket, ChecksumAlgorithm="SHA256")
    sent = [send(s3, bucket, upload, number, body, ChecksumAlgorithm="SHA256") for number, body in enumerate(bodies, 1)]
    parts = [
        {"PartNumber": number, "ETag": part["ETag"], "ChecksumSHA256": part["ChecksumSHA256"]}
        for number, part in enumerate(sent, 1)
    ]
    listed = s3.list_parts(Bucket=bucket, Key="k", UploadId=upload)
    assert (listed["ChecksumAlgorithm"], listed["ChecksumType"]) == ("SHA256", "COMPOSITE")
    assert [part["ChecksumSHA256"] for part in listed["Parts"]] == [part["ChecksumSHA256"] for part in sent]
    wrong = [{**parts[0], "ChecksumSHA256": parts[1]["ChecksumSHA256"]}, parts[1]]
    assert code(complete, s3=s3, bucket=bucket, upload=upload, parts=wrong) == "InvalidPart"
    done = complete(s3, bucket, upload, parts)
    whole = hashlib.sha256(b"".join(hashlib.sha256(body).digest() for body in bodies)).digest()
    expected = f"{base64.b64encode(whole).decode()}-2"
    assert done["ChecksumSHA256"] == expected
    head = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert (head["ChecksumSHA256"], head["ChecksumType"]) == (expected, "COMPOSITE")
    attributes = s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["ObjectParts", "Checksum"])
    assert attributes["Checksum"] == {"ChecksumSHA256": expected.removesuffix("-2"), "ChecksumType": "COMPOSITE"}
    assert attributes["ObjectParts"]["TotalPartsCount"] == 2
    assert [part["ChecksumSHA256"] for part in attributes["ObjectParts"]["Parts"]] == [
        part["ChecksumSHA256"] for part in sent
    ]


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME"])
def test_full_object_checksums(s3: Any, bucket: str, algorithm: str) -> None:
    bodies = [os.urandom(5 * MIB), os.urandom(333)]
    upload = begin(s3, bucket, ChecksumAlgorithm=algorithm, ChecksumType="FULL_OBJECT")
    sent = [
        send(s3, bucket, upload, number, body, ChecksumAlgorithm=algorithm) for number, body in enumerate(bodies, 1)
    ]
    parts = [{"PartNumber": number, "ETag": part["ETag"]} for number, part in enumerate(sent, 1)]
    function, size = {
        "CRC32": (zlib.crc32, 4),
        "CRC32C": (crt.crc32c, 4),
        "CRC64NVME": (crt.crc64nvme, 8),
    }[algorithm]
    expected = base64.b64encode(function(b"".join(bodies)).to_bytes(size, "big")).decode()
    member = f"Checksum{algorithm}"
    wrong = {member: base64.b64encode(b"\0" * size).decode(), "ChecksumType": "FULL_OBJECT"}
    assert code(complete, s3=s3, bucket=bucket, upload=upload, parts=parts, **wrong) == "BadDigest"
    mixed = {"ChecksumType": "COMPOSITE"}
    assert code(complete, s3=s3, bucket=bucket, upload=upload, parts=parts, **mixed) == "InvalidRequest"
    done = complete(s3, bucket, upload, parts, **{member: expected, "ChecksumType": "FULL_OBJECT"})
    assert done[member] == expected
    assert s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")[member] == expected


@pytest.fixture
def reticent(store: Any) -> Iterator[Any]:
    """A client that sends checksums only where it is told to, as all did before 2025 and many do."""
    made = client(store, request_checksum_calculation="when_required")
    yield made
    made.close()


def crc64nvme(data: bytes) -> str:
    return base64.b64encode(crt.crc64nvme(data).to_bytes(8, "big")).decode()


def test_an_upload_without_an_algorithm_gets_the_default_checksum(reticent: Any, bucket: str) -> None:
    s3 = reticent
    copied = os.urandom(5 * MIB)
    s3.put_object(Bucket=bucket, Key="source", Body=copied)
    s3.put_object(Bucket=bucket, Key="small", Body=b"inline")
    upload = begin(s3, bucket)
    sent = os.urandom(5 * MIB)
    # What a part's client sends is checked, and shown to nobody.
    first = send(s3, bucket, upload, 1, sent, ChecksumSHA256=sha256(sent))
    wrong = {"ChecksumSHA256": base64.b64encode(bytes(32)).decode()}
    assert code(send, s3=s3, bucket=bucket, upload=upload, number=2, body=b"x", **wrong) == "BadDigest"
    etags = [first["ETag"]]
    for number, key in ((2, "source"), (3, "small")):
        arguments = {"Bucket": bucket, "Key": "k", "UploadId": upload, "PartNumber": number}
        answer = s3.upload_part_copy(CopySource=f"{bucket}/{key}", **arguments)["CopyPartResult"]
        assert not any(name.startswith("Checksum") for name in answer)
        etags.append(answer["ETag"])
    assert not any(name.startswith("Checksum") for name in first)
    parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
    listing = s3.list_parts(Bucket=bucket, Key="k", UploadId=upload)
    assert not any(name.startswith("Checksum") for row in (listing, *listing["Parts"]) for name in row)
    given = [{**parts[0], "ChecksumSHA256": sha256(sent)}, *parts[1:]]
    assert code(complete, s3=s3, bucket=bucket, upload=upload, parts=given) == "InvalidPart"
    done = complete(s3, bucket, upload, parts)
    whole = sent + copied + b"inline"
    expected = (crc64nvme(whole), "FULL_OBJECT")
    head = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    got = s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    wanted = ["ObjectParts", "Checksum"]
    attributes = s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=wanted)
    for answer in (done, head, got, attributes["Checksum"]):
        assert (answer["ChecksumCRC64NVME"], answer["ChecksumType"]) == expected
    assert got["Body"].read() == whole
    assert attributes["ObjectParts"]["TotalPartsCount"] == 3
    assert "Parts" not in attributes["ObjectParts"]


@pytest.mark.parametrize(
    ("named", "copied"),
    [
        ({}, ("ChecksumCRC64NVME", crc64nvme)),
        ({"ChecksumAlgorithm": "SHA256"}, ("ChecksumSHA256", sha256)),
        ({"ChecksumAlgorithm": "CRC64NVME"}, ("ChecksumCRC64NVME", crc64nvme)),
    ],
    ids=["none", "composite", "full object"],
)
def test_a_copy_of_a_multipart_object_is_whole(
    reticent: Any, bucket: str, named: dict[str, str], copied: tuple[str, Callable[[bytes], str]]
) -> None:
    s3 = reticent
    bodies = [os.urandom(5 * MIB), os.urandom(9)]
    whole = b"".join(bodies)
    upload = begin(s3, bucket, Metadata={"m": "1"}, **named)
    sent = [send(s3, bucket, upload, number, body, **named) for number, body in enumerate(bodies, 1)]
    complete(s3, bucket, upload, [{"PartNumber": number, "ETag": one["ETag"]} for number, one in enumerate(sent, 1)])
    member, checksum = copied
    etag = f'"{hashlib.md5(whole).hexdigest()}"'
    # Of the copy a copy, which has nothing to hash; and onto itself.
    for source, target, options in (
        ("k", "copy", {}),
        ("copy", "again", {}),
        ("k", "k", {"MetadataDirective": "REPLACE", "Metadata": {"m": "1"}}),
    ):
        result = s3.copy_object(Bucket=bucket, Key=target, CopySource=f"{bucket}/{source}", **options)
        got = s3.get_object(Bucket=bucket, Key=target, ChecksumMode="ENABLED")
        for answer in (result["CopyObjectResult"], got):
            assert (answer["ETag"], answer[member], answer["ChecksumType"]) == (etag, checksum(whole), "FULL_OBJECT")
        assert (got["Body"].read(), got["Metadata"]) == (whole, {"m": "1"})
        attributes = s3.get_object_attributes(
            Bucket=bucket, Key=target, ObjectAttributes=["ETag", "ObjectParts", "Checksum", "ObjectSize"]
        )
        assert "ObjectParts" not in attributes
        assert (attributes["ETag"], attributes["ObjectSize"]) == (etag.strip('"'), len(whole))
        assert attributes["Checksum"] == {member: checksum(whole), "ChecksumType": "FULL_OBJECT"}
        first = s3.get_object(Bucket=bucket, Key=target, PartNumber=1)
        assert (first["Body"].read(), "PartsCount" in first) == (whole, False)
        assert code(s3.get_object, Bucket=bucket, Key=target, PartNumber=2) == "InvalidPartNumber"


def test_checksums_of_another_algorithm_are_refused(s3: Any, bucket: str) -> None:
    upload = begin(s3, bucket, ChecksumAlgorithm="SHA256")
    arguments = {"s3": s3, "bucket": bucket, "upload": upload}
    assert code(send, **arguments, number=1, body=b"x", ChecksumAlgorithm="SHA1") == "InvalidRequest"
    sent = send(s3, bucket, upload, 1, b"x", ChecksumAlgorithm="SHA256")
    part = {"PartNumber": 1, "ETag": sent["ETag"]}
    assert code(complete, **arguments, parts=[{**part, "ChecksumCRC32": "AAAAAA=="}]) == "InvalidPart"
    two = {**part, "ChecksumSHA256": sent["ChecksumSHA256"], "ChecksumCRC32": "AAAAAA=="}
    assert code(complete, **arguments, parts=[two]) == "InvalidArgument"
    complete(**arguments, parts=[{**part, "ChecksumSHA256": sent["ChecksumSHA256"]}])


def test_checksums_that_s3_demands_and_that_may_be_left_out_here(reticent: Any, bucket: str) -> None:
    # S3 refuses a part of such an upload without its checksum, and a part list without those of the parts. The bytes
    # are held to their digests all the same, and clients that name an algorithm only at the start are served.
    s3 = reticent
    upload = begin(s3, bucket, ChecksumAlgorithm="SHA256")
    sent = send(s3, bucket, upload, 1, b"x")
    assert sent["ChecksumSHA256"] == sha256(b"x")  # for clients that make their part lists of the answers
    done = complete(s3, bucket, upload, [{"PartNumber": 1, "ETag": sent["ETag"]}])
    assert done["ChecksumSHA256"] == f"{sha256(hashlib.sha256(b'x').digest())}-1"


def test_managed_transfers_both_ways(s3: Any, bucket: str, tmp_path: Any) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(40 * MIB + 12345))
    config = TransferConfig(multipart_threshold=8 * MIB, multipart_chunksize=8 * MIB, max_concurrency=8)
    s3.upload_file(str(source), bucket, "k", Config=config)
    s3.download_file(bucket, "k", str(back), Config=config)
    assert back.read_bytes() == source.read_bytes()
    assert s3.head_object(Bucket=bucket, Key="k")["ETag"].endswith('-6"')


def test_one_of_many_conditional_completions_wins(s3: Any, bucket: str) -> None:
    uploads = []
    for number in range(8):
        upload = begin(s3, bucket)
        uploads.append((upload, send(s3, bucket, upload, 1, str(number).encode())["ETag"]))

    def attempt(pair: tuple[str, str]) -> str:
        try:
            complete(s3, bucket, pair[0], [{"PartNumber": 1, "ETag": pair[1]}], IfNoneMatch="*")
        except s3.exceptions.ClientError as error:
            return str(error.response["Error"]["Code"])
        return "won"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, uploads))
    assert sorted(outcomes) == ["PreconditionFailed"] * 7 + ["won"]
