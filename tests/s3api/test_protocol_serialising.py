"""Responses as S3 writes them, byte for byte where that matters."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tigrislike.s3api.protocol import Protocol, load_protocol

PROTOCOL: Protocol = load_protocol()
DECLARATION = b'<?xml version="1.0" encoding="UTF-8"?>\n'
XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
MOMENT_NS = 1_767_323_045_678_999_999


def body_of(name: str, output: dict[str, Any]) -> str:
    _, headers, body = PROTOCOL[name].serialise(output)
    assert (b"content-type", b"application/xml") in headers
    assert body.startswith(DECLARATION)
    return body[len(DECLARATION) :].decode()


def test_a_listing_reads_as_s3_writes_it() -> None:
    row = {
        "Key": "a&b<c>",
        "LastModified": MOMENT_NS,
        "ETag": '"0f-2"',
        "Size": 7,
        "StorageClass": "STANDARD",
        "ChecksumAlgorithm": ["CRC32", "SHA1"],
        "ChecksumType": "FULL_OBJECT",
        "Owner": {"ID": "me"},
    }
    assert body_of("ListObjectsV2", {"Name": "b", "Prefix": "", "IsTruncated": False, "Contents": [row]}) == (
        f"<ListBucketResult {XMLNS}><IsTruncated>false</IsTruncated><Contents><Key>a&amp;b&lt;c&gt;</Key>"
        "<LastModified>2026-01-02T03:04:05.678Z</LastModified><ETag>&quot;0f-2&quot;</ETag>"
        "<ChecksumAlgorithm>CRC32</ChecksumAlgorithm><ChecksumAlgorithm>SHA1</ChecksumAlgorithm>"
        "<ChecksumType>FULL_OBJECT</ChecksumType><Size>7</Size><StorageClass>STANDARD</StorageClass>"
        "<Owner><ID>me</ID></Owner></Contents><Name>b</Name><Prefix></Prefix></ListBucketResult>"
    )


@pytest.mark.parametrize(
    ("name", "root"),
    [
        ("ListBuckets", "ListAllMyBucketsResult"),
        ("ListObjects", "ListBucketResult"),
        ("ListObjectVersions", "ListVersionsResult"),
        ("ListMultipartUploads", "ListMultipartUploadsResult"),
        ("ListParts", "ListPartsResult"),
        ("CreateMultipartUpload", "InitiateMultipartUploadResult"),
        ("CompleteMultipartUpload", "CompleteMultipartUploadResult"),
        ("DeleteObjects", "DeleteResult"),
        ("GetBucketVersioning", "VersioningConfiguration"),
        ("GetBucketTagging", "Tagging"),
        ("GetObjectTagging", "Tagging"),
        ("GetBucketAcl", "AccessControlPolicy"),
        ("GetBucketLocation", "LocationConstraint"),
        ("GetBucketCors", "CORSConfiguration"),
        ("GetBucketLifecycleConfiguration", "LifecycleConfiguration"),
        ("GetObjectAttributes", "GetObjectAttributesResponse"),
    ],
)
def test_an_answer_without_members_is_its_document_element(name: str, root: str) -> None:
    assert body_of(name, {}) == f"<{root} {XMLNS}></{root}>"


@pytest.mark.parametrize(
    ("name", "member", "root"),
    [
        ("CopyObject", "CopyObjectResult", "CopyObjectResult"),
        ("UploadPartCopy", "CopyPartResult", "CopyPartResult"),
        ("GetObjectRetention", "Retention", "Retention"),
        ("GetObjectLegalHold", "LegalHold", "LegalHold"),
        ("GetBucketEncryption", "ServerSideEncryptionConfiguration", "ServerSideEncryptionConfiguration"),
    ],
)
def test_a_structured_payload_is_the_document(name: str, member: str, root: str) -> None:
    assert body_of(name, {member: {}}) == f"<{root} {XMLNS}></{root}>"
    assert PROTOCOL[name].serialise({}) == (200, [], b"")


def test_a_location_is_the_text_of_its_element() -> None:
    assert body_of("GetBucketLocation", {"LocationConstraint": "auto"}) == (
        f"<LocationConstraint {XMLNS}>auto</LocationConstraint>"
    )


def test_a_grantee_carries_its_type() -> None:
    grants = [{"Grantee": {"Type": "CanonicalUser", "ID": "x"}, "Permission": "FULL_CONTROL"}]
    assert (
        '<Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="CanonicalUser"><ID>x</ID></Grantee>'
    ) in body_of("GetBucketAcl", {"Grants": grants})


def test_wrapped_lists_show_even_when_empty_and_flat_ones_do_not() -> None:
    assert "<Buckets></Buckets>" in body_of("ListBuckets", {"Buckets": []})
    assert "Contents" not in body_of("ListObjects", {"Contents": [], "CommonPrefixes": None})


def test_keys_with_control_characters_are_written_as_references() -> None:
    body = body_of("ListObjects", {"Contents": [{"Key": "a\x01\r\n\t\x00\ufffe\ud800"}]})
    assert "<Key>a&#x1;&#xd;\n\t&#x0;&#xfffe;&#55296;</Key>" in body


def test_a_policy_is_json() -> None:
    assert PROTOCOL["GetBucketPolicy"].serialise({"Policy": '{"\u00fc": 1}'}) == (
        200,
        [(b"content-type", b"application/json")],
        '{"\u00fc": 1}'.encode(),
    )


def test_headers_of_an_object() -> None:
    output = {
        "ETag": '"0f"',
        "ContentLength": 5,
        "LastModified": MOMENT_NS,
        "ContentDisposition": "\u00fc\u00a0x",
        "ContentLanguage": "\u20ac",
        "Expires": "whenever",
        "ObjectLockRetainUntilDate": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "DeleteMarker": False,
        "VersionId": None,
        "Metadata": {"a": "b", "colour": "gr\u00fcn", "fake": "=?UTF-8?B?YQ==?=", "lines": "a\r\nb"},
        "Body": b"12345",
    }
    status, headers, body = PROTOCOL["GetObject"].serialise(output, 206)
    assert (status, body) == (206, b"")
    assert headers == PROTOCOL["GetObject"].headers(output)
    assert headers == [
        (b"etag", b'"0f"'),
        (b"content-length", b"5"),
        (b"last-modified", b"Fri, 02 Jan 2026 03:04:05 GMT"),
        (b"content-disposition", b"\xfc\xa0x"),
        (b"content-language", "\u20ac".encode()),
        (b"expires", b"whenever"),
        (b"x-amz-object-lock-retain-until-date", b"2026-01-02T03:04:05.000Z"),
        (b"x-amz-delete-marker", b"false"),
        (b"x-amz-meta-a", b"b"),
        (b"x-amz-meta-colour", b"=?UTF-8?B?Z3LDvG4=?="),
        (b"x-amz-meta-fake", b"=?UTF-8?B?PT9VVEYtOD9CP1lRPT0/PQ==?="),
        (b"x-amz-meta-lines", b"=?UTF-8?B?YQ0KYg==?="),
    ]


def test_no_value_ends_its_header() -> None:
    assert PROTOCOL["GetObject"].headers({"ContentType": "a\r\nx-evil: 1\x00\x7f"}) == [
        (b"content-type", b"a  x-evil: 1  ")
    ]


def test_a_member_that_the_model_does_not_know_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="the output of GetObject has no member 'Etag'"):
        PROTOCOL["GetObject"].serialise({"Etag": "x"})


def test_deleting_answers_without_content() -> None:
    assert PROTOCOL["DeleteObject"].serialise({}) == (204, [], b"")
    assert PROTOCOL["DeleteBucket"].serialise({}) == (204, [], b"")
