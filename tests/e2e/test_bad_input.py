"""Requests that are wrong in every way that a client can get past authentication with.

Each is refused with its own S3 error, told in XML; nothing is stored, and no file is left in the block store. What is
not even HTTP is the subject of tests/server/test_http_hostile.py.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.wire import (
    STREAMING_SIGNED,
    STREAMING_SIGNED_TRAILER,
    STREAMING_UNSIGNED_TRAILER,
    UNSIGNED,
    Answer,
    Caller,
    connect,
    exchange,
    head_of,
    read_answer,
    refused,
)
from tigrislike.s3api.checksums import ALGORITHMS, Digests

LARGE = 200_000  # bytes: far more than is kept inline, so that a file is written


@pytest.fixture(scope="session")
def caller(store: Any) -> Caller:
    return Caller(store)


def files(store: Any) -> set[Path]:
    """What lies in the block store: blocks at home and of unfinished uploads."""
    root = store.data_dir / "cache"
    # `walk` passes over a directory that is removed between its listing and its visit; `rglob` raises.
    walks = (os.walk(root / tree) for tree in ("home", "incoming"))
    return {Path(directory, name) for walk in walks for directory, _, names in walk for name in names}


@contextlib.contextmanager
def nothing_stored(store: Any, s3: Any, bucket: str) -> Iterator[None]:
    """What runs inside leaves no object, no version, no file and no upload's directory behind."""
    # A client that is gone cannot be told when its upload has been cleared away: not even that of an earlier test.
    wait(lambda: not uploading(store))
    before, listed = files(store), keys(s3, bucket)
    yield
    assert keys(s3, bucket) == listed
    wait(lambda: files(store) <= before and not uploading(store))
    assert files(store) <= before, "some may have gone: the node reclaims what earlier tests aborted"
    assert not uploading(store)


def wait(condition: Callable[[], bool]) -> None:
    """For what the node brings about, or until it is clear that it does not."""
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def uploading(store: Any) -> list[str]:
    return os.listdir(store.data_dir / "cache" / "incoming")


def keys(s3: Any, bucket: str) -> list[tuple[str, str]]:
    return [(row["Key"], row["ETag"]) for row in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]


def md5_of(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body).digest()).decode()


def checksum(algorithm: str, body: bytes) -> str:
    digests = Digests([algorithm])
    digests.update(body)
    return digests.base64(algorithm)


# --- XML bodies ------------------------------------------------------------------------------------------------------

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
# Method, target and a document that would do, for every operation here that reads one.
DOCUMENTS = {
    "CreateBucket": (
        "PUT",
        "/{bucket}-more",
        "<CreateBucketConfiguration><LocationConstraint>x</LocationConstraint></CreateBucketConfiguration>",
    ),
    "PutBucketVersioning": (
        "PUT",
        "/{bucket}?versioning",
        "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>",
    ),
    "PutBucketTagging": (
        "PUT",
        "/{bucket}?tagging",
        "<Tagging><TagSet><Tag><Key>k</Key><Value>v</Value></Tag></TagSet></Tagging>",
    ),
    "PutObjectTagging": (
        "PUT",
        "/{bucket}/k?tagging",
        "<Tagging><TagSet><Tag><Key>k</Key><Value>v</Value></Tag></TagSet></Tagging>",
    ),
    "DeleteObjects": ("POST", "/{bucket}?delete", "<Delete><Object><Key>k</Key></Object></Delete>"),
    "CompleteMultipartUpload": (
        "POST",
        "/{bucket}/k?uploadId=0",
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>x</ETag></Part></CompleteMultipartUpload>",
    ),
}
HEAD = '<?xml version="1.0" encoding="UTF-8"?>'
BROKEN: dict[str, Callable[[str], bytes]] = {
    "not XML": lambda document: b"{}",
    "binary": lambda document: bytes(range(256)),
    "cut": lambda document: document[:-5].encode(),
    "two roots": lambda document: (document + document).encode(),
    "another root": lambda document: b"<Wrong><Key>k</Key></Wrong>",
    "text between elements": lambda document: document.replace(">", ">text", 1).encode(),
    "an end without a start": lambda document: (document + "</x>").encode(),
    "not UTF-8": lambda document: (HEAD + document.replace("><", "><x>ü</x><")).encode("latin-1"),
    "an unknown entity": lambda document: document.replace("><", ">&nope;<", 1).encode(),
    "a null character": lambda document: document.replace(">", ">\0", 1).encode(),
    "entity bomb": lambda document: (
        HEAD
        + "<!DOCTYPE b ["
        + '<!ENTITY a0 "lol">'
        + "".join(f'<!ENTITY a{level} "{f"&a{level - 1};" * 10}">' for level in range(1, 10))
        + "]>"
        + document.replace("><", ">&a9;<", 1)
    ).encode(),
    "external entity": lambda document: (
        HEAD + '<!DOCTYPE b [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + document.replace("><", ">&x;<", 1)
    ).encode(),
    "a DTD elsewhere": lambda document: (HEAD + '<!DOCTYPE b SYSTEM "http://localhost:1/x.dtd">' + document).encode(),
    "deep nesting": lambda document: (document[: document.index(">") + 1] + "<a>" * 100_000).encode(),
    "a million unknown elements": lambda document: (document.replace("><", ">" + "<a/>" * 100_000 + "<", 1)).encode(),
    "a long attribute": lambda document: document.replace(">", f' a="{"x" * 500_000}" a="y">', 1).encode(),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("operation", DOCUMENTS)
def test_documents_that_are_none(
    store: Any, s3: Any, bucket: str, caller: Caller, operation: str, damage: Callable[[str], bytes]
) -> None:
    method, target, document = DOCUMENTS[operation]
    target = target.format(bucket=bucket)
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    body = damage(document)
    with nothing_stored(store, s3, bucket):
        refused(caller.send(method, target, {"content-md5": md5_of(body)}, body), 400, "MalformedXML")
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == []
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)
    assert f"{bucket}-more" not in {row["Name"] for row in s3.list_buckets(Prefix=bucket)["Buckets"]}


@pytest.mark.parametrize("operation", DOCUMENTS)
def test_a_document_longer_than_any_of_its_kind_is_refused_before_it_is_read(
    bucket: str, caller: Caller, operation: str
) -> None:
    method, target, _ = DOCUMENTS[operation]
    headers = {"content-length": str(20 * 1024 * 1024)}
    answer = caller.send(method, target.format(bucket=bucket), headers, payload=UNSIGNED)
    refused(answer, 400, "MaxMessageLengthExceeded")


@pytest.mark.parametrize("operation", [name for name in DOCUMENTS if name != "CreateBucket"])
def test_a_missing_document(bucket: str, caller: Caller, operation: str) -> None:
    method, target, _ = DOCUMENTS[operation]
    answer = caller.send(method, target.format(bucket=bucket), {"content-md5": md5_of(b"")})
    refused(answer, 400, "MissingRequestBodyError" if operation != "CompleteMultipartUpload" else "InvalidRequest")


TAGGING = "<Tagging><TagSet>{}</TagSet></Tagging>"
TAG = "<Tag><Key>{}</Key><Value>{}</Value></Tag>"
OBJECT = "<Object><Key>{}</Key></Object>"
SEMANTICS: dict[str, tuple[str, str, str, int, str]] = {
    "no tag set": ("PUT", "/{bucket}/k?tagging", "<Tagging/>", 400, "MalformedXML"),
    "a tag without a value": (
        "PUT",
        "/{bucket}/k?tagging",
        TAGGING.format("<Tag><Key>a</Key></Tag>"),
        400,
        "MalformedXML",
    ),
    "an empty tag key": ("PUT", "/{bucket}/k?tagging", TAGGING.format(TAG.format("", "v")), 400, "MalformedXML"),
    "a tag twice": ("PUT", "/{bucket}/k?tagging", TAGGING.format(TAG.format("a", "1") * 2), 400, "InvalidTag"),
    "a long tag key": ("PUT", "/{bucket}/k?tagging", TAGGING.format(TAG.format("a" * 129, "1")), 400, "InvalidTag"),
    "a long tag value": ("PUT", "/{bucket}?tagging", TAGGING.format(TAG.format("a", "1" * 257)), 400, "InvalidTag"),
    "a system tag": ("PUT", "/{bucket}?tagging", TAGGING.format(TAG.format("aws:x", "1")), 400, "InvalidTag"),
    "a tag of control characters": (
        "PUT",
        "/{bucket}?tagging",
        TAGGING.format(TAG.format("a\u0085b", "&lt;&gt;")),
        400,
        "InvalidTag",
    ),
    "eleven tags": (
        "PUT",
        "/{bucket}/k?tagging",
        TAGGING.format("".join(TAG.format(f"k{n}", "v") for n in range(11))),
        400,
        "BadRequest",
    ),
    "fifty-one tags": (
        "PUT",
        "/{bucket}?tagging",
        TAGGING.format("".join(TAG.format(f"k{n}", "v") for n in range(51))),
        400,
        "BadRequest",
    ),
    "tags of no object": ("PUT", "/{bucket}/none?tagging", TAGGING.format(TAG.format("a", "b")), 404, "NoSuchKey"),
    "no status": (
        "PUT",
        "/{bucket}?versioning",
        "<VersioningConfiguration/>",
        400,
        "IllegalVersioningConfigurationException",
    ),
    "another status": (
        "PUT",
        "/{bucket}?versioning",
        "<VersioningConfiguration><Status>Off</Status></VersioningConfiguration>",
        400,
        "MalformedXML",
    ),
    "MFA delete": (
        "PUT",
        "/{bucket}?versioning",
        "<VersioningConfiguration><Status>Enabled</Status><MfaDelete>Enabled</MfaDelete></VersioningConfiguration>",
        501,
        "NotImplemented",
    ),
    "nothing to delete": ("POST", "/{bucket}?delete", "<Delete/>", 400, "MalformedXML"),
    "a thousand and one": (
        "POST",
        "/{bucket}?delete",
        f"<Delete>{OBJECT.format('k') * 1001}</Delete>",
        400,
        "MalformedXML",
    ),
    "an object without a key": ("POST", "/{bucket}?delete", "<Delete><Object/></Delete>", 400, "MalformedXML"),
    "an empty key": ("POST", "/{bucket}?delete", f"<Delete>{OBJECT.format('')}</Delete>", 400, "MalformedXML"),
    "quiet is no boolean": (
        "POST",
        "/{bucket}?delete",
        f"<Delete><Quiet>perhaps</Quiet>{OBJECT.format('k')}</Delete>",
        400,
        "MalformedXML",
    ),
    "delete twice in one": (
        "POST",
        "/{bucket}?delete",
        f"<Delete><Quiet>true</Quiet><Quiet>false</Quiet>{OBJECT.format('k')}</Delete>",
        400,
        "MalformedXML",
    ),
}


@pytest.mark.parametrize(("method", "target", "document", "status", "code"), SEMANTICS.values(), ids=SEMANTICS.keys())
def test_documents_that_say_what_cannot_be(
    s3: Any, bucket: str, caller: Caller, method: str, target: str, document: str, status: int, code: str
) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    body = document.encode()
    refused(caller.send(method, target.format(bucket=bucket), {"content-md5": md5_of(body)}, body), status, code)
    assert keys(s3, bucket) == [("k", f'"{hashlib.md5(b"x").hexdigest()}"')]


def test_one_bad_key_does_not_spoil_the_others(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    answer = s3.delete_objects(
        Bucket=bucket,
        Delete={"Objects": [{"Key": "x" * 1025}, {"Key": "k", "VersionId": "garbage"}, {"Key": "k"}, {"Key": "none"}]},
    )
    assert [row["Key"] for row in answer["Deleted"]] == ["k", "none"]
    assert [row["Code"] for row in answer["Errors"]] == ["KeyTooLongError", "InvalidArgument"]


@pytest.mark.parametrize("operation", ["PutBucketVersioning", "PutBucketTagging", "PutObjectTagging", "DeleteObjects"])
def test_a_document_that_needs_a_digest_comes_without(bucket: str, caller: Caller, operation: str) -> None:
    method, target, document = DOCUMENTS[operation]
    answer = caller.send(method, target.format(bucket=bucket), None, document.encode())
    assert "Content-MD5" in refused(answer, 400, "InvalidRequest").error["Message"]
    answer = caller.send(method, target.format(bucket=bucket), {"content-md5": md5_of(b"else")}, document.encode())
    refused(answer, 400, "BadDigest")


# --- names, markers, tokens, versions, numbers -----------------------------------------------------------------------

TARGETS: dict[str, tuple[str, str, int, str]] = {
    "a bucket of two characters": ("PUT", "/ab", 400, "InvalidBucketName"),
    "a long bucket": ("PUT", "/" + "b" * 64, 400, "InvalidBucketName"),
    "a capital bucket": ("PUT", "/Bucket-Name", 400, "InvalidBucketName"),
    "an underscored bucket": ("PUT", "/bucket_name", 400, "InvalidBucketName"),
    "an address for a bucket": ("PUT", "/10.0.0.1", 400, "InvalidBucketName"),
    "two dots in a bucket": ("PUT", "/a..b", 400, "InvalidBucketName"),
    "a reserved prefix": ("PUT", "/xn--bucket", 400, "InvalidBucketName"),
    "a slash in a bucket": ("PUT", "/bucket%2Fname", 400, "InvalidBucketName"),
    "a parent for a bucket": ("PUT", "/%2E%2E%2Fetc", 400, "InvalidBucketName"),
    "a null in a bucket": ("PUT", "/bucket%00name", 400, "InvalidBucketName"),
    "no bucket but a key": ("GET", "//{bucket}/k", 400, "InvalidBucketName"),
    "no bucket but a slash": ("GET", "//", 400, "InvalidBucketName"),
    "a bucket that is none": ("GET", "/no-such-bucket-here", 404, "NoSuchBucket"),
    "a bucket that cannot be": ("GET", "/No_Such!", 404, "NoSuchBucket"),
    "a path that is not UTF-8": ("GET", "/{bucket}/%FF%FE", 400, "InvalidURI"),
    "half a character": ("GET", "/{bucket}/%E2%82", 400, "InvalidURI"),
    "a surrogate": ("GET", "/{bucket}/%ED%A0%80", 400, "InvalidURI"),
    "a query that is not UTF-8": ("GET", "/{bucket}?prefix=%FF", 400, "InvalidURI"),
    "a long key": ("PUT", "/{bucket}/" + "k" * 1025, 400, "KeyTooLongError"),
    "a long key of wide characters": ("PUT", "/{bucket}/" + "%F0%9F%90%AF" * 257, 400, "KeyTooLongError"),
    "two subresources": ("GET", "/{bucket}?acl&policy", 400, "InvalidArgument"),
    "a subresource of another level": ("GET", "/{bucket}?torrent", 405, "MethodNotAllowed"),
    "a subresource of another method": ("DELETE", "/{bucket}?versioning", 405, "MethodNotAllowed"),
    "another method": ("PATCH", "/{bucket}/k", 405, "MethodNotAllowed"),
    "POST to an object": ("POST", "/{bucket}/k", 405, "MethodNotAllowed"),
    "POST to a bucket that is no form": ("POST", "/{bucket}", 412, "PreconditionFailed"),
    "POST to the service": ("POST", "/", 405, "MethodNotAllowed"),
    "max-keys is no number": ("GET", "/{bucket}?max-keys=many", 400, "InvalidArgument"),
    "max-keys is negative": ("GET", "/{bucket}?list-type=2&max-keys=-1", 400, "InvalidArgument"),
    "max-keys is absurd": ("GET", "/{bucket}?max-keys=99999999999999999999999999", 400, "InvalidArgument"),
    "max-buckets is none": ("GET", "/?max-buckets=0", 400, "InvalidArgument"),
    "max-uploads is negative": ("GET", "/{bucket}?uploads&max-uploads=-1", 400, "InvalidArgument"),
    "an unknown encoding": ("GET", "/{bucket}?encoding-type=base64", 400, "InvalidArgument"),
    "an unknown list type": ("GET", "/{bucket}?list-type=3", 400, "InvalidArgument"),
    "a token made up": ("GET", "/{bucket}?list-type=2&continuation-token=abcdefgh", 400, "InvalidArgument"),
    "an empty token": ("GET", "/{bucket}?list-type=2&continuation-token=", 400, "InvalidArgument"),
    "a token of other characters": ("GET", "/?continuation-token=%F0%9F%90%AF", 400, "InvalidArgument"),
    "a version marker alone": ("GET", "/{bucket}?versions&version-id-marker=5", 400, "InvalidArgument"),
    "an empty version marker": ("GET", "/{bucket}?versions&key-marker=k&version-id-marker=", 400, "InvalidArgument"),
    "a version marker that is none": (
        "GET",
        "/{bucket}?versions&key-marker=k&version-id-marker=x",
        400,
        "InvalidArgument",
    ),
    "an upload marker that is none": (
        "GET",
        "/{bucket}?uploads&key-marker=k&upload-id-marker=zz",
        400,
        "InvalidArgument",
    ),
    "a version that is none": ("GET", "/{bucket}/k?versionId=garbage", 400, "InvalidArgument"),
    "an empty version": ("GET", "/{bucket}/k?versionId=", 400, "InvalidArgument"),
    "a negative version": ("DELETE", "/{bucket}/k?versionId=-1", 400, "InvalidArgument"),
    "a null in a version": ("DELETE", "/{bucket}/k?versionId=1%00", 400, "InvalidArgument"),
    "an absurd version": ("GET", "/{bucket}/k?versionId=" + "9" * 500, 400, "InvalidArgument"),
    "a version nobody made": ("GET", "/{bucket}/k?versionId=1", 404, "NoSuchVersion"),
    "a version of an operation without": ("PUT", "/{bucket}/k?versionId=null", 400, "InvalidArgument"),
    "part 0": ("GET", "/{bucket}/k?partNumber=0", 400, "InvalidArgument"),
    "part 10001": ("PUT", "/{bucket}/k?partNumber=10001&uploadId=0", 400, "InvalidArgument"),
    "part of no number": ("PUT", "/{bucket}/k?partNumber=one&uploadId=0", 400, "InvalidArgument"),
    "part 2 of an object put whole": ("GET", "/{bucket}/k?partNumber=2", 416, "InvalidPartNumber"),
    "a part without an upload": ("PUT", "/{bucket}/k?partNumber=1", 400, "InvalidArgument"),
    "an upload without a part": ("PUT", "/{bucket}/k?uploadId=0", 400, "InvalidArgument"),
    "a part of an unknown upload": ("PUT", "/{bucket}/k?partNumber=1&uploadId=zz%00", 404, "NoSuchUpload"),
    "parts of an unknown upload": ("GET", "/{bucket}/k?uploadId=" + "a" * 32, 404, "NoSuchUpload"),
    "an unknown upload aborted": ("DELETE", "/{bucket}/k?uploadId=%F0%9F%90%AF", 404, "NoSuchUpload"),
    "a part marker of no number": ("GET", "/{bucket}/k?uploadId=0&part-number-marker=x", 400, "InvalidArgument"),
    "a negative part marker": ("GET", "/{bucket}/k?uploadId=0&part-number-marker=-1", 400, "InvalidArgument"),
    "a header that would end": ("GET", "/{bucket}/k?response-content-type=%0D%0AX:y", 400, "InvalidArgument"),
    "attributes of nothing named": ("GET", "/{bucket}/k?attributes", 400, "InvalidRequest"),
    "no tags": ("GET", "/{bucket}?tagging", 404, "NoSuchTagSet"),
    "ACL": ("GET", "/{bucket}?acl", 501, "NotImplemented"),
    "policy": ("GET", "/{bucket}?policy", 501, "NotImplemented"),
    "lifecycle": ("DELETE", "/{bucket}?lifecycle", 501, "NotImplemented"),
    "retention": ("GET", "/{bucket}/k?retention", 501, "NotImplemented"),
    "torrent": ("GET", "/{bucket}/k?torrent", 501, "NotImplemented"),
}


@pytest.mark.parametrize(("method", "target", "status", "code"), TARGETS.values(), ids=TARGETS.keys())
def test_targets_that_mean_nothing(
    store: Any, s3: Any, bucket: str, caller: Caller, method: str, target: str, status: int, code: str
) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    with nothing_stored(store, s3, bucket):
        body = b"x" * LARGE if method == "PUT" and target.count("/") > 1 else b""
        refused(caller.send(method, target.format(bucket=bucket), None, body), status, code)


# --- headers ---------------------------------------------------------------------------------------------------------

HEADERS: dict[str, tuple[str, dict[str, str], int, str]] = {
    "length negative": ("PUT", {"content-length": "-1"}, 400, "BadRequest"),
    "length of no number": ("PUT", {"content-length": "five"}, 400, "BadRequest"),
    "length in hexadecimal": ("PUT", {"content-length": "0x5"}, 400, "BadRequest"),
    "length signed": ("PUT", {"content-length": "+5"}, 400, "BadRequest"),
    "length empty": ("PUT", {"content-length": ""}, 400, "BadRequest"),
    "length a list": ("PUT", {"content-length": "5, 5"}, 400, "BadRequest"),
    "length beyond 64 bits": ("PUT", {"content-length": "9" * 30}, 400, "BadRequest"),
    "length beyond what is allowed": ("PUT", {"content-length": str(5 * 1024**3 + 1)}, 400, "EntityTooLarge"),
    "length absurd": ("PUT", {"content-length": "9" * 18}, 400, "EntityTooLarge"),
    "length and chunks": ("PUT", {"content-length": "5", "transfer-encoding": "chunked"}, 400, "BadRequest"),
    "chunks of unknown length": ("PUT", {"transfer-encoding": "chunked"}, 411, "MissingContentLength"),
    "metadata of 3 KB": ("PUT", {"x-amz-meta-a": "x" * 3000}, 400, "MetadataTooLarge"),
    "metadata in many pieces": ("PUT", {f"x-amz-meta-{n}": "x" * 100 for n in range(25)}, 400, "MetadataTooLarge"),
    "a header of 70 KB": ("PUT", {"x-amz-meta-a": "x" * 70_000}, 400, "RequestHeaderSectionTooLarge"),
    "a thousand headers": ("PUT", {f"x-{n}": "x" * 80 for n in range(1000)}, 400, "RequestHeaderSectionTooLarge"),
    "MD5 of no base64": ("PUT", {"content-md5": "!!!"}, 400, "InvalidDigest"),
    "MD5 too short": ("PUT", {"content-md5": "AAAA"}, 400, "InvalidDigest"),
    "MD5 in hexadecimal": ("PUT", {"content-md5": "0" * 32}, 400, "InvalidDigest"),
    "MD5 empty": ("PUT", {"content-md5": ""}, 400, "InvalidDigest"),
    "an unknown checksum": ("PUT", {"x-amz-checksum-crc16": "AAA="}, 400, "InvalidRequest"),
    "an unknown checksum of an SDK": ("PUT", {"x-amz-sdk-checksum-algorithm": "CRC16"}, 400, "InvalidRequest"),
    "a checksum only promised": ("PUT", {"x-amz-sdk-checksum-algorithm": "CRC32"}, 400, "InvalidRequest"),
    "a trailer without chunks": ("PUT", {"x-amz-trailer": "x-amz-checksum-crc32"}, 400, "InvalidRequest"),
    "two checksums": (
        "PUT",
        {"x-amz-checksum-crc32": "AAAAAA==", "x-amz-checksum-crc32c": "AAAAAA=="},
        400,
        "InvalidRequest",
    ),
    "an unknown class": ("PUT", {"x-amz-storage-class": "COLDEST"}, 400, "InvalidStorageClass"),
    "an unknown ACL": ("PUT", {"x-amz-acl": "everybody"}, 400, "InvalidArgument"),
    "a grant": ("PUT", {"x-amz-grant-read": "id=x"}, 400, "AccessControlListNotSupported"),
    "encryption": ("PUT", {"x-amz-server-side-encryption": "AES256"}, 501, "NotImplemented"),
    "encryption with the client's key": (
        "PUT",
        {"x-amz-server-side-encryption-customer-algorithm": "AES256"},
        501,
        "NotImplemented",
    ),
    "a lock": ("PUT", {"x-amz-object-lock-legal-hold": "ON"}, 400, "InvalidRequest"),
    "an append": ("PUT", {"x-amz-write-offset-bytes": "5"}, 501, "NotImplemented"),
    "a redirect to elsewhere": ("PUT", {"x-amz-website-redirect-location": "ftp://x"}, 400, "InvalidRedirectLocation"),
    "tags not encoded": ("PUT", {"x-amz-tagging": "a=%FF"}, 400, "InvalidArgument"),
    "a tag twice": ("PUT", {"x-amz-tagging": "a=1&a=2"}, 400, "InvalidTag"),
    "a tag without a key": ("PUT", {"x-amz-tagging": "=1"}, 400, "InvalidTag"),
    "eleven tags": ("PUT", {"x-amz-tagging": "&".join(f"k{n}=v" for n in range(11))}, 400, "BadRequest"),
    "if-none-match with an ETag": ("PUT", {"if-none-match": "abc"}, 501, "NotImplemented"),
    "both conditions": ("PUT", {"if-none-match": "*", "if-match": "*"}, 400, "InvalidRequest"),
    "another owner's bucket": ("PUT", {"x-amz-expected-bucket-owner": "111122223333"}, 403, "AccessDenied"),
    "a range of nothing": ("GET", {"range": "bytes=-0"}, 416, "InvalidRange"),
    "a range beyond the end": ("GET", {"range": "bytes=1-"}, 416, "InvalidRange"),
    "a range far beyond the end": ("GET", {"range": f"bytes={'9' * 4000}-"}, 416, "InvalidRange"),
    "attributes unknown": ("GET?attributes", {"x-amz-object-attributes": "Colour"}, 400, "InvalidArgument"),
    "max-parts of no number": (
        "GET?attributes",
        {"x-amz-object-attributes": "ObjectParts", "x-amz-max-parts": "x"},
        400,
        "InvalidArgument",
    ),
    "a condition that is no date": ("DELETE", {"x-amz-if-match-last-modified-time": "soon"}, 400, "InvalidArgument"),
    "a condition that is no size": ("DELETE", {"x-amz-if-match-size": "big"}, 400, "InvalidArgument"),
    "a checksum of no algorithm": ("POST?uploads", {"x-amz-checksum-type": "COMPOSITE"}, 400, "InvalidRequest"),
    "an algorithm that is none": ("POST?uploads", {"x-amz-checksum-algorithm": "CRC16"}, 400, "InvalidRequest"),
    "a type the algorithm has not": (
        "POST?uploads",
        {"x-amz-checksum-algorithm": "SHA256", "x-amz-checksum-type": "FULL_OBJECT"},
        400,
        "InvalidRequest",
    ),
    "a payload declared as nonsense": ("PUT", {"x-amz-content-sha256": "UNSIGNED"}, 400, "InvalidArgument"),
    "a date that is none": ("PUT", {"x-amz-date": "yesterday"}, 403, "AccessDenied"),
    "a date that cannot be": ("PUT", {"x-amz-date": "20269931T256199Z"}, 403, "AccessDenied"),
    "another kind of signature": ("PUT", {"authorization": "Basic cm9vdDpyb290"}, 400, "InvalidArgument"),
    "a signature of version 2": ("PUT", {"authorization": "AWS root:c2lnbmF0dXJl"}, 400, "InvalidRequest"),
    "a signature without its parts": (
        "PUT",
        {"authorization": "AWS4-HMAC-SHA256 Credential=x"},
        400,
        "AuthorizationHeaderMalformed",
    ),
}


@pytest.mark.parametrize(("request_", "headers", "status", "code"), HEADERS.values(), ids=HEADERS.keys())
def test_headers_that_cannot_be(
    store: Any, s3: Any, bucket: str, caller: Caller, request_: str, headers: dict[str, str], status: int, code: str
) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    method, flag, subresource = request_.partition("?")
    target = f"/{bucket}/k{flag}{subresource}"
    body = b"x" * LARGE if method == "PUT" else b""
    if "transfer-encoding" in headers:
        body = b"5\r\n12345\r\n0\r\n\r\n"
    signed = {"content-length": str(len(body))} if body and "transfer-encoding" not in headers else {}
    signed |= {name: value for name, value in headers.items() if name not in ("x-amz-date", "authorization")}
    signed = caller.sign(method, target, signed, payload=headers.get("x-amz-content-sha256", UNSIGNED)) | headers
    with nothing_stored(store, s3, bucket):
        refused(exchange(store, method, target, signed, body), status, code)


@pytest.mark.parametrize(
    "headers",
    [{"range": "bytes=5-2"}, {"range": "lines=0-1"}, {"range": "bytes=0-0,0-0"}, {"if-modified-since": "soon"}],
)
def test_what_http_tells_a_server_to_ignore(s3: Any, bucket: str, caller: Caller, headers: dict[str, str]) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"body")
    answer = caller.send("GET", f"/{bucket}/k", headers)
    assert (answer.status, answer.body) == (200, b"body")


COPY_SOURCES = {
    "empty": ("", 400, "InvalidArgument"),
    "a slash": ("/", 400, "InvalidArgument"),
    "no key": ("{bucket}", 400, "InvalidArgument"),
    "an empty key": ("/{bucket}/", 400, "InvalidArgument"),
    "not UTF-8": ("{bucket}/%FF", 400, "InvalidArgument"),
    "a URL": ("http://localhost/{bucket}/k", 404, "NoSuchBucket"),
    "an unknown bucket": ("no-such-bucket-here/k", 404, "NoSuchBucket"),
    "a bucket that cannot be": ("..%2F..%2Fetc/passwd", 404, "NoSuchBucket"),
    "an unknown key": ("{bucket}/none", 404, "NoSuchKey"),
    "a long key": ("{bucket}/" + "k" * 1025, 400, "KeyTooLongError"),
    "a version that is none": ("{bucket}/k?versionId=garbage", 400, "InvalidArgument"),
    "an empty version": ("{bucket}/k?versionId=", 400, "InvalidArgument"),
    "a version nobody made": ("{bucket}/k?versionId=1", 404, "NoSuchVersion"),
}


@pytest.mark.parametrize(("source", "status", "code"), COPY_SOURCES.values(), ids=COPY_SOURCES.keys())
def test_copy_sources_that_are_none(s3: Any, bucket: str, caller: Caller, source: str, status: int, code: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    headers = {"x-amz-copy-source": source.format(bucket=bucket)}
    refused(caller.send("PUT", f"/{bucket}/copy", headers), status, code)
    upload = s3.create_multipart_upload(Bucket=bucket, Key="copy")["UploadId"]
    refused(caller.send("PUT", f"/{bucket}/copy?partNumber=1&uploadId={upload}", headers), status, code)
    assert "Parts" not in s3.list_parts(Bucket=bucket, Key="copy", UploadId=upload)
    assert [key for key, _ in keys(s3, bucket)] == ["k"]


@pytest.mark.parametrize("wanted", ["bytes=0-5", "bytes=5-2", "bytes=-1", "bytes=0-", "0-0", "bytes=0-0,1-1", "x" * 99])
def test_copy_ranges_that_are_none(s3: Any, bucket: str, caller: Caller, wanted: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"12345")
    upload = s3.create_multipart_upload(Bucket=bucket, Key="copy")["UploadId"]
    headers = {"x-amz-copy-source": f"{bucket}/k", "x-amz-copy-source-range": wanted}
    answer = caller.send("PUT", f"/{bucket}/copy?partNumber=1&uploadId={upload}", headers)
    refused(answer, 400, "InvalidArgument")


# --- multipart uploads -----------------------------------------------------------------------------------------------


def complete(caller: Caller, bucket: str, upload: str, *parts: tuple[object, str]) -> Answer:
    listed = "".join(f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>" for number, etag in parts)
    document = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
    return caller.send("POST", f"/{bucket}/m?uploadId={upload}", None, document)


def test_lists_of_parts_that_cannot_be(s3: Any, bucket: str, caller: Caller) -> None:
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]
    first, second = (
        s3.upload_part(Bucket=bucket, Key="m", UploadId=upload, PartNumber=n, Body=b"x" * size)["ETag"].strip('"')
        for n, size in ((1, 100), (2, 5))
    )
    unknown = "0" * 32
    for parts, code in (
        ([], "MalformedXML"),
        ([(2, second), (1, first)], "InvalidPartOrder"),
        ([(1, first), (1, first)], "InvalidPartOrder"),
        ([(1, unknown)], "InvalidPart"),
        ([(1, second)], "InvalidPart"),
        ([(1, "")], "InvalidPart"),
        ([(3, first)], "InvalidPart"),
        ([(1, first), (2, second), (3, first)], "InvalidPart"),
        ([(1, first), (2, second)], "EntityTooSmall"),
        ([("one", first)], "MalformedXML"),
        ([("", first)], "MalformedXML"),
        ([("9" * 40, first)], "MalformedXML"),
        ([(-1, first)], "InvalidPart"),
        ([(0, first)], "InvalidPart"),
        ([(10_001, first)], "InvalidPart"),
        ([(n, first) for n in range(1, 10_002)], "MalformedXML"),
    ):
        assert refused(complete(caller, bucket, upload, *parts), 400, code, "InvalidArgument").code in (
            code,
            *(["InvalidArgument"] if parts and parts[0][0] in (-1, 0, 10_001) else []),
        )
    assert keys(s3, bucket) == []
    for target in (f"/{bucket}/other?uploadId={upload}", f"/{bucket}/m?uploadId={upload[:-1]}x"):
        listed = f"<Part><PartNumber>1</PartNumber><ETag>{first}</ETag></Part>"
        document = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>"
        refused(caller.send("POST", target, None, document.encode()), 404, "NoSuchUpload")
    assert complete(caller, bucket, upload, (1, first)).status == 200
    assert [key for key, _ in keys(s3, bucket)] == ["m"]


def test_a_completion_whose_object_is_another(s3: Any, bucket: str, caller: Caller) -> None:
    made = s3.create_multipart_upload(Bucket=bucket, Key="m", ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")
    upload = made["UploadId"]
    part = s3.upload_part(
        Bucket=bucket, Key="m", UploadId=upload, PartNumber=1, Body=b"body", ChecksumAlgorithm="CRC32"
    )
    document = (
        "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber>"
        f"<ETag>{part['ETag']}</ETag><ChecksumCRC32>{{}}</ChecksumCRC32></Part></CompleteMultipartUpload>"
    )
    right = document.format(part["ChecksumCRC32"]).encode()
    target = f"/{bucket}/m?uploadId={upload}"
    for headers, body, code in (
        ({"x-amz-mp-object-size": "5"}, right, "InvalidRequest"),
        ({"x-amz-mp-object-size": "-1"}, right, "InvalidRequest"),
        ({"x-amz-mp-object-size": "four"}, right, "InvalidArgument"),
        ({"x-amz-checksum-type": "COMPOSITE"}, right, "InvalidRequest"),
        ({"x-amz-checksum-crc32": "AAAAAA=="}, right, "BadDigest"),
        ({"x-amz-checksum-sha256": checksum("SHA256", b"body")}, right, "BadDigest"),
        ({}, document.format("AAAAAA==").encode(), "InvalidPart"),
    ):
        answer = refused(caller.send("POST", target, headers, body), 400, code, "InvalidRequest", "BadDigest")
        assert answer.code in (code, "InvalidRequest", "BadDigest"), headers
    assert keys(s3, bucket) == []
    assert caller.send("POST", target, {"x-amz-mp-object-size": "4"}, right).status == 200


# --- digests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, LARGE])
@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "Content-MD5"])
def test_a_body_that_is_not_what_its_digest_says(
    store: Any, s3: Any, bucket: str, caller: Caller, algorithm: str, size: int
) -> None:
    body = b"x" * size
    header = "content-md5" if algorithm == "Content-MD5" else f"x-amz-checksum-{algorithm.lower()}"
    right = md5_of(body) if algorithm == "Content-MD5" else checksum(algorithm, body)
    wrong = md5_of(b"else") if algorithm == "Content-MD5" else checksum(algorithm, b"else")
    invalid = "InvalidDigest" if algorithm == "Content-MD5" else "InvalidRequest"
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]
    for target in (f"/{bucket}/k", f"/{bucket}/m?partNumber=1&uploadId={upload}"):
        with nothing_stored(store, s3, bucket):
            refused(caller.send("PUT", target, {header: wrong}, body), 400, "BadDigest")
            for value in ("", "x", right[:-4], right + "AAAA", "!" * len(right), right[:-1] + "!"):
                refused(caller.send("PUT", target, {header: value}, body), 400, invalid, "BadDigest")
        assert "Parts" not in s3.list_parts(Bucket=bucket, Key="m", UploadId=upload)
    assert caller.send("PUT", f"/{bucket}/k", {header: right}, body).status == 200


@pytest.mark.parametrize("size", [5, LARGE])
def test_a_body_that_is_not_what_was_signed(store: Any, s3: Any, bucket: str, caller: Caller, size: int) -> None:
    body = b"x" * size
    with nothing_stored(store, s3, bucket):
        answer = caller.send("PUT", f"/{bucket}/k", None, body, payload=hashlib.sha256(b"else").hexdigest())
        refused(answer, 400, "XAmzContentSHA256Mismatch")


# --- lengths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [0, 5, LARGE])
@pytest.mark.parametrize("how", ["goes", "waits", "resets"])
def test_a_client_that_stops_early_leaves_nothing(
    store: Any, s3: Any, bucket: str, caller: Caller, sent: int, how: str
) -> None:
    target = f"/{bucket}/k"
    headers = caller.sign("PUT", target, {"content-length": str(sent + 100_000)}, payload=UNSIGNED)
    with nothing_stored(store, s3, bucket):
        connection = connect(store)
        connection.sendall(head_of("PUT", target, headers) + b"x" * sent)
        if how == "waits" and hasattr(connection, "version"):
            how = "goes"  # TLS has no half-closed connections here
        if how == "waits":
            connection.shutdown(1)  # "I have said all": the rest will never come
            with contextlib.suppress(Exception):
                refused(read_answer(connection), 400, "IncompleteBody")
        elif how == "resets":
            connection.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER of no time: close sends a reset
        connection.close()


def test_what_follows_a_body_is_no_part_of_it(s3: Any, bucket: str, store: Any, caller: Caller) -> None:
    """A body longer than its length is not stored: the rest is no request either, so that the connection ends."""
    target = f"/{bucket}/k"
    headers = caller.sign("PUT", target, {"content-length": "5"}, payload=UNSIGNED)
    answer = exchange(store, "PUT", target, headers, b"12345" + b"67890\r\n\r\n")
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"12345"


# --- aws-chunked -----------------------------------------------------------------------------------------------------

CRC = "x-amz-checksum-crc32"


def streaming(
    caller: Caller,
    target: str,
    payload: str,
    body: bytes,
    *,
    decoded: str,
    trailer: str = "",
    sends: bytes | None = None,
) -> Answer:
    """A PUT whose body is the given frames; `sends` are the bytes in place of `body`, of another length if need be."""
    headers = {"content-length": str(len(body)), "content-encoding": "aws-chunked"}
    headers["x-amz-decoded-content-length"] = decoded
    if trailer:
        headers["x-amz-trailer"] = trailer
    return exchange(caller.store, "PUT", target, caller.sign("PUT", target, headers, payload=payload), sends or body)


def frames(*pieces: bytes, trailer: bytes = b"") -> bytes:
    """An unsigned aws-chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"


UNSIGNED_BODIES: dict[str, tuple[Callable[[bytes, bytes], tuple[bytes, str, str]], str]] = {
    # (data, its CRC32 in base64) -> body, x-amz-decoded-content-length, x-amz-trailer
    "fewer bytes than promised": (lambda data, crc: (frames(data), str(len(data) + 1), ""), "IncompleteBody"),
    "more bytes than promised": (lambda data, crc: (frames(data), str(len(data) - 1), ""), "IncompleteBody"),
    "a length of no number": (lambda data, crc: (frames(data), "many", ""), "InvalidArgument"),
    "a negative length": (lambda data, crc: (frames(data), "-1", ""), "InvalidArgument"),
    "no last chunk": (lambda data, crc: (frames(data)[:-5], str(len(data)), ""), "IncompleteBody"),
    "bytes after the last chunk": (lambda data, crc: (frames(data) + b"more", str(len(data)), ""), "InvalidRequest"),
    "a size that is none": (lambda data, crc: (b"zz\r\n" + data, str(len(data)), ""), "InvalidRequest"),
    "a negative size": (lambda data, crc: (b"-5\r\n" + data, str(len(data)), ""), "InvalidRequest"),
    "an absurd size": (lambda data, crc: (b"f" * 17 + b"\r\n" + data, str(len(data)), ""), "InvalidRequest"),
    "a huge size": (lambda data, crc: (b"f" * 15 + b"\r\n" + data, str(len(data)), ""), "IncompleteBody"),
    "a chunk header without end": (lambda data, crc: (b"5;" + b"x" * 5000, str(len(data)), ""), "InvalidRequest"),
    "a chunk not closed": (
        lambda data, crc: (frames(data).replace(b"\r\n0\r\n", b"x\n0\r\n"), str(len(data)), ""),
        "InvalidRequest",
    ),
    "a trailer missing": (lambda data, crc: (frames(data), str(len(data)), CRC), "MalformedTrailerError"),
    "a trailer not announced": (
        lambda data, crc: (frames(data, trailer=CRC.encode() + b":" + crc + b"\r\n"), str(len(data)), ""),
        "MalformedTrailerError",
    ),
    "a trailer twice": (
        lambda data, crc: (frames(data, trailer=(CRC.encode() + b":" + crc + b"\r\n") * 2), str(len(data)), CRC),
        "MalformedTrailerError",
    ),
    "a trailer that is none": (
        lambda data, crc: (frames(data, trailer=b"no colon\r\n"), str(len(data)), CRC),
        "MalformedTrailerError",
    ),
    "a trailer of no base64": (
        lambda data, crc: (frames(data, trailer=CRC.encode() + b":!!!!\r\n"), str(len(data)), CRC),
        "InvalidRequest",
    ),
    "a trailer that is wrong": (
        lambda data, crc: (frames(data, trailer=CRC.encode() + b":AAAAAA==\r\n"), str(len(data)), CRC),
        "BadDigest",
    ),
    "a trailer without end": (
        lambda data, crc: (frames(data, trailer=b"x" * 20_000), str(len(data)), CRC),
        "MalformedTrailerError",
    ),
    "a trailer of another kind": (lambda data, crc: (frames(data), str(len(data)), "x-amz-meta-a"), "InvalidRequest"),
    "two trailers": (lambda data, crc: (frames(data), str(len(data)), f"{CRC},x-amz-checksum-sha1"), "InvalidRequest"),
}


@pytest.mark.parametrize("size", [5, LARGE])
@pytest.mark.parametrize(("shape", "code"), UNSIGNED_BODIES.values(), ids=UNSIGNED_BODIES.keys())
def test_unsigned_chunks_that_are_wrong(
    store: Any,
    s3: Any,
    bucket: str,
    caller: Caller,
    size: int,
    shape: Callable[[bytes, bytes], tuple[bytes, str, str]],
    code: str,
) -> None:
    data = os.urandom(size)
    body, decoded, trailer = shape(data, checksum("CRC32", data).encode())
    with nothing_stored(store, s3, bucket):
        answer = streaming(caller, f"/{bucket}/k", STREAMING_UNSIGNED_TRAILER, body, decoded=decoded, trailer=trailer)
        refused(answer, 400, code)


def test_chunks_without_a_decoded_length(store: Any, s3: Any, bucket: str, caller: Caller) -> None:
    body = frames(b"12345")
    for payload in (STREAMING_UNSIGNED_TRAILER, STREAMING_SIGNED):
        with nothing_stored(store, s3, bucket):
            answer = caller.send("PUT", f"/{bucket}/k", {"content-encoding": "aws-chunked"}, body, payload=payload)
            refused(answer, 411, "MissingContentLength")


def signed_put(
    caller: Caller, target: str, pieces: list[bytes], change: Callable[[list[bytes]], list[bytes]], crc: str = ""
) -> Answer:
    """A PUT in signed chunks, tampered with on the way by `change`, which is given the frames."""
    size = sum(len(piece) for piece in pieces)
    headers = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": str(size)}
    if crc:
        headers["x-amz-trailer"] = CRC
    payload = STREAMING_SIGNED_TRAILER if crc else STREAMING_SIGNED
    # The length is not signed here: it is known when the frames are, whose signatures grow from the request's.
    signed = caller.sign("PUT", target, headers, payload=payload)
    trailer = f"{CRC}:{crc}\n".encode() if crc else None
    body = b"".join(change(list(caller.chunks(signed, pieces, trailer))))
    return exchange(caller.store, "PUT", target, {**signed, "content-length": str(len(body))}, body)


TAMPERED: dict[str, tuple[Callable[[list[bytes]], list[bytes]], tuple[str, ...]]] = {
    "a byte changed": (
        lambda sent: [sent[0][:-3] + bytes([sent[0][-3] ^ 1]) + sent[0][-2:], *sent[1:]],
        ("SignatureDoesNotMatch",),
    ),
    "chunks in another order": (lambda sent: [sent[1], sent[0], *sent[2:]], ("SignatureDoesNotMatch",)),
    "a chunk sent again": (lambda sent: [sent[0], sent[0], *sent[2:]], ("SignatureDoesNotMatch",)),
    "a chunk left out": (lambda sent: [sent[0], *sent[2:]], ("IncompleteBody", "SignatureDoesNotMatch")),
    "the last chunk left out": (lambda sent: sent[:2], ("IncompleteBody",)),
    "the last chunk early": (lambda sent: [sent[0], *sent[2:]], ("IncompleteBody", "SignatureDoesNotMatch")),
    "a signature of zeros": (
        lambda sent: [sent[0][: sent[0].index(b"=") + 1] + b"0" * 64 + sent[0][sent[0].index(b"\r\n") :], *sent[1:]],
        ("SignatureDoesNotMatch",),
    ),
    "no signature": (lambda sent: [frames(b"x" * 10)], ("InvalidRequest",)),
}


@pytest.mark.parametrize("size", [8192, LARGE])
@pytest.mark.parametrize("crc", [False, True], ids=["plain", "trailer"])
@pytest.mark.parametrize(("change", "codes"), TAMPERED.values(), ids=TAMPERED.keys())
def test_signed_chunks_tampered_with(
    store: Any,
    s3: Any,
    bucket: str,
    caller: Caller,
    size: int,
    crc: bool,
    change: Callable[[list[bytes]], list[bytes]],
    codes: tuple[str, ...],
) -> None:
    pieces = [os.urandom(size), os.urandom(size)]
    value = checksum("CRC32", b"".join(pieces)) if crc else ""
    with nothing_stored(store, s3, bucket):
        answer = signed_put(caller, f"/{bucket}/k", pieces, change, value)
        refused(answer, 403 if answer.status == 403 else 400, *codes)
    assert signed_put(caller, f"/{bucket}/k", pieces, lambda sent: sent, value).status == 200
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"".join(pieces)


TRAILERS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "another value": (
        lambda line: line.replace(b":", b":AAAAAA==", 1)[:30] + b"\r\n" + line[line.index(b"x-amz-t") :],
        "SignatureDoesNotMatch",
    ),
    "no signature": (lambda line: line[: line.index(b"x-amz-trailer-signature")] + b"\r\n", ""),
    "another signature": (lambda line: line.rstrip()[:-64] + b"0" * 64 + b"\r\n\r\n", "SignatureDoesNotMatch"),
    "nothing": (lambda line: b"\r\n", ""),
}


@pytest.mark.parametrize(("change", "code"), TRAILERS.values(), ids=TRAILERS.keys())
def test_signed_trailers_tampered_with(
    store: Any, s3: Any, bucket: str, caller: Caller, change: Callable[[bytes], bytes], code: str
) -> None:
    data = os.urandom(LARGE)
    with nothing_stored(store, s3, bucket):
        answer = signed_put(
            caller,
            f"/{bucket}/k",
            [data],
            lambda sent: [*sent[:-1], change(sent[-1])],
            checksum("CRC32", data),
        )
        refused(answer, 403 if answer.status == 403 else 400, code or "MalformedTrailerError", "IncompleteBody")


def test_a_signed_trailer_whose_checksum_is_wrong(store: Any, s3: Any, bucket: str, caller: Caller) -> None:
    with nothing_stored(store, s3, bucket):
        answer = signed_put(caller, f"/{bucket}/k", [b"x" * LARGE], lambda sent: sent, checksum("CRC32", b"else"))
        refused(answer, 400, "BadDigest")
