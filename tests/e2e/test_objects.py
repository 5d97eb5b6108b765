"""Objects through boto3: put, get, head, ranges, conditions, delete, copy, attributes, tags."""

from __future__ import annotations

import base64
import hashlib
import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tigrislike.s3api.text import http_date

SIZES = [0, 1, 16384, 16385, 300_000, 8 * 1024 * 1024, 8 * 1024 * 1024 + 1, 20_000_003]


def code(call: Any, **arguments: Any) -> str:
    """The S3 error code that a call is refused with."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return str(caught.value.response["Error"]["Code"])


def status(call: Any, **arguments: Any) -> int:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return int(caught.value.response["ResponseMetadata"]["HTTPStatusCode"])


@pytest.mark.parametrize("size", SIZES)
def test_what_is_put_is_what_is_got(s3: Any, bucket: str, size: int) -> None:
    body = os.urandom(size)
    put = s3.put_object(Bucket=bucket, Key="k", Body=body)
    assert put["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
    got = s3.get_object(Bucket=bucket, Key="k")
    assert got["Body"].read() == body
    assert got["ContentLength"] == size
    assert got["ETag"] == put["ETag"]
    assert got["AcceptRanges"] == "bytes"
    assert got["ContentType"] == "binary/octet-stream"
    head = s3.head_object(Bucket=bucket, Key="k")
    assert (head["ContentLength"], head["ETag"]) == (size, put["ETag"])


def test_headers_metadata_tags_and_class_are_kept(s3: Any, bucket: str) -> None:
    expires = datetime(2031, 1, 2, 3, 4, 5, tzinfo=UTC)
    s3.put_object(
        Bucket=bucket,
        Key="k",
        Body=b"x",
        CacheControl="max-age=5",
        ContentDisposition='attachment; filename="a b.txt"',
        ContentEncoding="gzip",
        ContentLanguage="de",
        ContentType="text/plain; charset=utf-8",
        Expires=expires,
        Metadata={"one": "1", "two-words": "a  b"},
        StorageClass="STANDARD_IA",
        Tagging="a=1&b=2",
        WebsiteRedirectLocation="/elsewhere",
    )
    for answer in (s3.get_object(Bucket=bucket, Key="k"), s3.head_object(Bucket=bucket, Key="k")):
        assert answer["CacheControl"] == "max-age=5"
        assert answer["ContentDisposition"] == 'attachment; filename="a b.txt"'
        assert answer["ContentEncoding"] == "gzip"
        assert answer["ContentLanguage"] == "de"
        assert answer["ContentType"] == "text/plain; charset=utf-8"
        assert answer["ExpiresString"] == "Thu, 02 Jan 2031 03:04:05 GMT"
        assert answer["Metadata"] == {"one": "1", "two-words": "a  b"}
        assert answer["StorageClass"] == "STANDARD_IA"
        assert answer["WebsiteRedirectLocation"] == "/elsewhere"
    assert s3.get_object(Bucket=bucket, Key="k")["TagCount"] == 2
    tags = s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"]
    assert tags == [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}]


@pytest.mark.parametrize(
    "key",
    [
        "a//b",
        "../up",
        "a/./b",
        "a%2Fb",
        "a+b c",
        "über/日本語/🎉",
        "q?x=1&y#z",
        "'\"<>&",
        "back\\slash",
        "~-_.!*()",
        " lead",
    ],
)
def test_keys_are_exact(s3: Any, bucket: str, key: str) -> None:
    s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == key.encode()
    assert [row["Key"] for row in s3.list_objects_v2(Bucket=bucket)["Contents"]] == [key]
    s3.delete_object(Bucket=bucket, Key=key)
    assert code(s3.get_object, Bucket=bucket, Key=key) == "NoSuchKey"


def test_control_characters_in_keys_list_url_encoded(s3: Any, bucket: str) -> None:
    key = "a\x01b\x1f\tc"
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    assert [row["Key"] for row in s3.list_objects_v2(Bucket=bucket, EncodingType="url")["Contents"]] == ["a%01b%1F%09c"]
    assert [row["Key"] for row in s3.list_objects_v2(Bucket=bucket)["Contents"]] == [key]


@pytest.mark.parametrize("size", [100, 20_000, 9 * 1024 * 1024])
def test_ranges(s3: Any, bucket: str, size: int) -> None:
    body = os.urandom(size)
    s3.put_object(Bucket=bucket, Key="k", Body=body)
    for header, start, stop in (
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        (f"bytes={size // 2}-", size // 2, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=-{size * 2}", 0, size),
        (f"bytes=5-{size * 3}", 5, size),
    ):
        got = s3.get_object(Bucket=bucket, Key="k", Range=header)
        assert got["Body"].read() == body[start:stop]
        assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
        assert got["ContentRange"] == f"bytes {start}-{stop - 1}/{size}"
        head = s3.head_object(Bucket=bucket, Key="k", Range=header)
        assert head["ContentLength"] == stop - start
    assert code(s3.get_object, Bucket=bucket, Key="k", Range=f"bytes={size}-") == "InvalidRange"
    assert status(s3.head_object, Bucket=bucket, Key="k", Range=f"bytes={size}-") == 416
    whole = s3.get_object(Bucket=bucket, Key="k", Range="bytes=3-1")
    assert whole["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert whole["Body"].read() == body


@pytest.mark.parametrize("size", [100, 9 * 1024 * 1024])
def test_a_resumed_download_gets_the_rest_or_everything(s3: Any, bucket: str, size: int) -> None:
    old, new = os.urandom(size), os.urandom(size)
    seen = s3.put_object(Bucket=bucket, Key="k", Body=old)["ETag"]
    date = http_date(s3.head_object(Bucket=bucket, Key="k")["LastModified"])

    def resume(validator: str, key: str = "k", header: str = f"bytes={size // 2}-") -> tuple[int, bytes]:
        s3.meta.events.register(
            "before-sign.s3.GetObject", lambda request, **_: request.headers.add_header("If-Range", validator), "resume"
        )
        try:
            got = s3.get_object(Bucket=bucket, Key=key, Range=header)
        finally:
            s3.meta.events.unregister("before-sign.s3.GetObject", unique_id="resume")
        assert ("ContentRange" in got) == (got["ResponseMetadata"]["HTTPStatusCode"] == 206)
        return got["ResponseMetadata"]["HTTPStatusCode"], got["Body"].read()

    assert resume(seen) == resume(date) == (206, old[size // 2 :])
    s3.put_object(Bucket=bucket, Key="k", Body=new)
    assert resume(seen) == (200, new)
    assert resume("Thu, 01 Jan 2015 00:00:00 GMT") == (200, new)
    assert resume(f"W/{seen}") == (200, new)
    # A range that the new object does not have is ignored like any other.
    assert resume(seen, header=f"bytes={size}-") == (200, new)


def test_response_overrides(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", ContentType="text/plain")
    got = s3.get_object(
        Bucket=bucket,
        Key="k",
        ResponseContentType="application/json",
        ResponseCacheControl="no-store",
        ResponseContentDisposition="inline",
        ResponseContentEncoding="identity",
        ResponseContentLanguage="fr",
    )
    assert got["ContentType"] == "application/json"
    assert got["CacheControl"] == "no-store"
    assert got["ContentDisposition"] == "inline"
    assert got["ContentLanguage"] == "fr"


def test_conditional_reads(s3: Any, bucket: str) -> None:
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"x")["ETag"]
    past, future = datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC) + timedelta(hours=1)
    for call in (s3.get_object, s3.head_object):
        assert call(Bucket=bucket, Key="k", IfMatch=etag)["ETag"] == etag
        assert call(Bucket=bucket, Key="k", IfNoneMatch='"other"')["ETag"] == etag
        assert call(Bucket=bucket, Key="k", IfModifiedSince=past)["ETag"] == etag
        assert call(Bucket=bucket, Key="k", IfUnmodifiedSince=future)["ETag"] == etag
        assert status(call, Bucket=bucket, Key="k", IfMatch='"other"') == 412
        assert status(call, Bucket=bucket, Key="k", IfNoneMatch=etag) == 304
        assert status(call, Bucket=bucket, Key="k", IfUnmodifiedSince=past) == 412
        # RFC 9110: If-None-Match decides alone; If-Match overrules If-Unmodified-Since.
        assert call(Bucket=bucket, Key="k", IfMatch=etag, IfUnmodifiedSince=past)["ETag"] == etag
    with pytest.raises(ClientError) as caught:
        s3.get_object(Bucket=bucket, Key="k", IfNoneMatch=etag)
    assert caught.value.response["ResponseMetadata"]["HTTPHeaders"]["etag"] == etag


@pytest.mark.parametrize("versioned", [False, True])
def test_what_is_not_modified_is_told_what_a_copy_is_renewed_by(s3: Any, bucket: str, versioned: bool) -> None:
    if versioned:
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    expires = "Wed, 21 Oct 2026 07:28:00 GMT"
    put = s3.put_object(
        Bucket=bucket, Key="k", Body=b"x", CacheControl="max-age=60", Expires=expires, Metadata={"a": "1"}
    )
    for call in (s3.get_object, s3.head_object):
        with pytest.raises(ClientError) as caught:
            call(Bucket=bucket, Key="k", IfNoneMatch=put["ETag"])
        answer = caught.value.response["ResponseMetadata"]
        headers = answer["HTTPHeaders"]
        assert answer["HTTPStatusCode"] == 304
        assert headers["etag"] == put["ETag"]
        whole = call(Bucket=bucket, Key="k")["ResponseMetadata"]["HTTPHeaders"]
        assert headers["last-modified"] == whole["last-modified"]
        assert (headers["cache-control"], headers["expires"]) == ("max-age=60", expires)
        assert headers.get("x-amz-version-id") == put.get("VersionId")
        assert not {"x-amz-meta-a", "content-type", "content-length"} & headers.keys()
        with pytest.raises(ClientError) as caught:
            call(Bucket=bucket, Key="k", IfNoneMatch=put["ETag"], ResponseCacheControl="no-store")
        assert caught.value.response["ResponseMetadata"]["HTTPHeaders"]["cache-control"] == "no-store"


def test_reads_with_a_customers_encryption_key_are_refused(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x" * 10)
    key = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "k" * 32}
    upload = s3.create_multipart_upload(Bucket=bucket, Key="copy")["UploadId"]
    part = {"Bucket": bucket, "Key": "copy", "PartNumber": 1, "UploadId": upload, "CopySource": f"{bucket}/k"}
    source = {f"CopySource{name}": value for name, value in key.items()}
    attributes = {"Bucket": bucket, "Key": "k", "ObjectAttributes": ["ETag"]}
    try:
        assert code(s3.get_object, Bucket=bucket, Key="k", **key) == "NotImplemented"
        assert status(s3.head_object, Bucket=bucket, Key="k", **key) == 501
        assert code(s3.get_object_attributes, **attributes, **key) == "NotImplemented"
        assert code(s3.upload_part_copy, **part, **key) == "NotImplemented"
        assert code(s3.upload_part_copy, **part, **source) == "NotImplemented"
        assert code(s3.copy_object, Bucket=bucket, Key="copy", CopySource=f"{bucket}/k", **source) == "NotImplemented"
    finally:
        s3.abort_multipart_upload(Bucket=bucket, Key="copy", UploadId=upload)


def test_conditional_writes(s3: Any, bucket: str) -> None:
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")["ETag"]
    assert code(s3.put_object, Bucket=bucket, Key="k", Body=b"2", IfNoneMatch="*") == "PreconditionFailed"
    second = s3.put_object(Bucket=bucket, Key="k", Body=b"2", IfMatch=etag)["ETag"]
    assert code(s3.put_object, Bucket=bucket, Key="k", Body=b"3", IfMatch=etag) == "PreconditionFailed"
    assert code(s3.put_object, Bucket=bucket, Key="absent", Body=b"3", IfMatch=etag) == "NoSuchKey"
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"2"
    assert code(s3.delete_object, Bucket=bucket, Key="k", IfMatch=etag) == "PreconditionFailed"
    s3.delete_object(Bucket=bucket, Key="k", IfMatch=second)
    assert status(s3.head_object, Bucket=bucket, Key="k") == 404


def test_deleting(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    assert s3.delete_object(Bucket=bucket, Key="k")["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert s3.delete_object(Bucket=bucket, Key="k")["ResponseMetadata"]["HTTPStatusCode"] == 204
    keys = [f"key {number:04}" for number in range(1000)]
    for key in keys[:20]:
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    deleted = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys]})
    assert [row["Key"] for row in deleted["Deleted"]] == keys
    assert "Errors" not in deleted
    quiet = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "x"}], "Quiet": True})
    assert "Deleted" not in quiet
    too_many = [{"Key": str(number)} for number in range(1001)]
    assert code(s3.delete_objects, Bucket=bucket, Delete={"Objects": too_many}) == "MalformedXML"
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


@pytest.mark.parametrize("size", [5, 3_000_000])
def test_copying(s3: Any, bucket: str, size: int) -> None:
    body = os.urandom(size)
    put = s3.put_object(Bucket=bucket, Key="a b/ü", Body=body, Metadata={"m": "1"}, ContentType="text/x", Tagging="t=1")
    copied = s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "a b/ü"})
    assert copied["CopyObjectResult"]["ETag"] == put["ETag"]
    s3.delete_object(Bucket=bucket, Key="a b/ü")
    got = s3.get_object(Bucket=bucket, Key="copy")
    assert got["Body"].read() == body
    assert (got["Metadata"], got["ContentType"], got["TagCount"]) == ({"m": "1"}, "text/x", 1)
    s3.copy_object(
        Bucket=bucket,
        Key="copy",
        CopySource=f"{bucket}/copy",
        MetadataDirective="REPLACE",
        Metadata={"n": "2"},
        TaggingDirective="REPLACE",
        Tagging="u=2",
    )
    got = s3.get_object(Bucket=bucket, Key="copy")
    assert got["Body"].read() == body
    assert got["Metadata"] == {"n": "2"}
    assert s3.get_object_tagging(Bucket=bucket, Key="copy")["TagSet"] == [{"Key": "u", "Value": "2"}]
    assert code(s3.copy_object, Bucket=bucket, Key="copy", CopySource=f"{bucket}/copy") == "InvalidRequest"
    assert code(s3.copy_object, Bucket=bucket, Key="z", CopySource=f"{bucket}/none") == "NoSuchKey"
    assert code(s3.copy_object, Bucket=bucket, Key="z", CopySource="no-such-bucket-here/k") == "NoSuchBucket"
    assert code(s3.copy_object, Bucket=bucket, Key="z", CopySource="nonsense") == "InvalidArgument"
    wrong = {"CopySourceIfMatch": '"x"'}, {"CopySourceIfNoneMatch": put["ETag"]}
    for condition in wrong:
        refused = code(s3.copy_object, Bucket=bucket, Key="z", CopySource=f"{bucket}/copy", **condition)
        assert refused == "PreconditionFailed"
    other = s3.copy_object(Bucket=bucket, Key="z", CopySource=f"{bucket}/copy", ChecksumAlgorithm="SHA256")
    digest = hashlib.sha256(body).digest()
    assert other["CopyObjectResult"]["ChecksumSHA256"] == base64.b64encode(digest).decode()


def test_attributes(s3: Any, bucket: str) -> None:
    put = s3.put_object(Bucket=bucket, Key="k", Body=b"hello", ChecksumAlgorithm="SHA256")
    attributes = s3.get_object_attributes(
        Bucket=bucket, Key="k", ObjectAttributes=["ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"]
    )
    assert attributes["ETag"] == put["ETag"].strip('"')
    assert attributes["Checksum"]["ChecksumSHA256"] == put["ChecksumSHA256"]
    assert attributes["Checksum"]["ChecksumType"] == "FULL_OBJECT"
    assert (attributes["ObjectSize"], attributes["StorageClass"]) == (5, "STANDARD")
    assert "ObjectParts" not in attributes


def test_object_tags_change_without_a_new_version(s3: Any, bucket: str) -> None:
    before = s3.put_object(Bucket=bucket, Key="k", Body=b"x")["ETag"]
    modified = s3.head_object(Bucket=bucket, Key="k")["LastModified"]
    s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": [{"Key": "a", "Value": "ü"}]})
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == [{"Key": "a", "Value": "ü"}]
    head = s3.head_object(Bucket=bucket, Key="k")
    assert (head["ETag"], head["LastModified"]) == (before, modified)
    s3.delete_object_tagging(Bucket=bucket, Key="k")
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == []
    eleven = {"TagSet": [{"Key": str(number), "Value": ""} for number in range(11)]}
    assert code(s3.put_object_tagging, Bucket=bucket, Key="k", Tagging=eleven) == "BadRequest"
    assert code(s3.get_object_tagging, Bucket=bucket, Key="none") == "NoSuchKey"


def test_limits(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k" * 1024, Body=b"x")
    assert code(s3.put_object, Bucket=bucket, Key="k" * 1025, Body=b"x") == "KeyTooLongError"
    assert code(s3.put_object, Bucket=bucket, Key="ü" * 513, Body=b"x") == "KeyTooLongError"
    assert code(s3.put_object, Bucket=bucket, Key="k", Body=b"x", Metadata={"m": "x" * 2048}) == "MetadataTooLarge"
    assert code(s3.put_object, Bucket=bucket, Key="k", Body=b"x", StorageClass="COLD") == "InvalidStorageClass"
    assert code(s3.put_object, Bucket=bucket, Key="k", Body=b"x", ServerSideEncryption="AES256") == "NotImplemented"
    s3.put_object(Bucket=bucket, Key="k", Body=b"x", StorageClass="GLACIER_IR")
    for archive in ("GLACIER", "DEEP_ARCHIVE"):
        asked = {"Bucket": bucket, "Key": "k", "StorageClass": archive}
        assert code(s3.put_object, **asked, Body=b"x") == "InvalidStorageClass"
        assert code(s3.copy_object, **asked, CopySource=f"{bucket}/k") == "InvalidStorageClass"
        assert code(s3.create_multipart_upload, **asked) == "InvalidStorageClass"
    assert code(s3.get_object, Bucket="no-such-bucket-here", Key="k") == "NoSuchBucket"
    assert status(s3.head_object, Bucket=bucket, Key="none") == 404


def test_operations_nobody_wrote_say_so(s3: Any, bucket: str) -> None:
    assert code(s3.get_bucket_policy, Bucket=bucket) == "NotImplemented"
    assert status(s3.get_bucket_website, Bucket=bucket) == 501
