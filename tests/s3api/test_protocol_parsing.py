"""Requests that are wrong, or unusual, and what becomes of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.protocol import Protocol, load_protocol
from tigrislike.s3api.text import decode_header, encode_header

PROTOCOL: Protocol = load_protocol()
NAMES = sorted(operation.name for operation in PROTOCOL)
NO_INTEGER = "Provided max-keys not an integer or within integer range"
XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def parse(
    name: str, query: dict[str, str] | None = None, headers: dict[str, str] | None = None, body: bytes | str = b""
) -> dict[str, Any]:
    raw = body.encode() if isinstance(body, str) else body
    return PROTOCOL[name].parse("b", "k", query or {}, headers or {}, raw)


def refusal(
    name: str, query: dict[str, str] | None = None, headers: dict[str, str] | None = None, body: bytes | str = b""
) -> S3Error:
    with pytest.raises(S3Error) as refused:
        parse(name, query, headers, body)
    return refused.value


# --- query and headers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "query", "message", "argument"),
    [
        ("ListObjectsV2", {"max-keys": "x"}, NO_INTEGER, "max-keys"),
        ("ListObjectsV2", {"max-keys": ""}, NO_INTEGER, "max-keys"),
        ("ListObjectsV2", {"max-keys": "1_0"}, NO_INTEGER, "max-keys"),
        ("ListObjectsV2", {"max-keys": "\u0661"}, NO_INTEGER, "max-keys"),
        ("ListObjectsV2", {"max-keys": "99999999999"}, NO_INTEGER, "maxKeys"),
        ("ListObjects", {"max-keys": "-1"}, "Argument maxKeys must be an integer between 0 and 2147483647", "maxKeys"),
        ("UploadPart", {"partNumber": "0", "uploadId": "u"}, None, "partNumber"),
        ("UploadPart", {"partNumber": "10001", "uploadId": "u"}, None, "partNumber"),
        ("UploadPart", {"partNumber": "one", "uploadId": "u"}, None, "partNumber"),
        ("GetObject", {"partNumber": "-1"}, None, "partNumber"),
        (
            "ListBuckets",
            {"max-buckets": "0"},
            "Argument max-buckets must be an integer between 1 and 10000",
            "max-buckets",
        ),
        ("ListObjectsV2", {"encoding-type": "x"}, "Invalid Encoding Method specified in Request", "encoding-type"),
        ("ListObjectsV2", {"fetch-owner": "maybe"}, "fetch-owner must be true or false", "fetch-owner"),
        ("ListObjects", {"list-type": "3"}, "Invalid List Type specified in Request", "list-type"),
        ("GetObject", {"versionId": ""}, "Version id cannot be the empty string", "versionId"),
        ("ListObjectVersions", {"version-id-marker": ""}, "A version-id marker cannot be empty.", "version-id-marker"),
        ("PutObject", {"versionId": "1"}, "This operation does not accept a version-id.", "versionId"),
        (
            "GetObject",
            {"response-content-disposition": "\u20ac.txt"},
            "Header value cannot be represented using ISO-8859-1.",
            "response-content-disposition",
        ),
        (
            "GetObject",
            {"response-content-type": "text/html\r\nx-evil: 1"},
            "Header value contains control characters.",
            "response-content-type",
        ),
        ("GetObject", {"response-expires": "\x7f"}, "Header value contains control characters.", "response-expires"),
        ("GetBucketInventoryConfiguration", {}, "The query parameter id is required", "id"),
    ],
)
def test_a_bad_query_parameter_is_named_in_the_error(
    name: str, query: dict[str, str], message: str | None, argument: str
) -> None:
    error = refusal(name, query)
    assert error.code == "InvalidArgument"
    assert error.message == (message or "Part number must be an integer between 1 and 10000, inclusive")
    assert error.extra["ArgumentName"] == argument
    assert error.extra["ArgumentValue"] == (next(iter(query.values())) if query else "")


@pytest.mark.parametrize(
    ("name", "header", "value", "code", "message"),
    [
        ("PutObject", "x-amz-storage-class", "COLD", "InvalidStorageClass", None),
        ("CopyObject", "x-amz-metadata-directive", "KEEP", "InvalidArgument", "Unknown metadata directive."),
        ("CopyObject", "x-amz-tagging-directive", "KEEP", "InvalidArgument", "Unknown tagging directive."),
        ("PutObject", "x-amz-object-lock-mode", "SOFT", "InvalidArgument", "Unknown wormMode directive."),
        (
            "PutObject",
            "x-amz-object-lock-legal-hold",
            "MAYBE",
            "InvalidArgument",
            "Legal Hold must be either of 'ON' or 'OFF'",
        ),
        ("PutObject", "x-amz-acl", "mine", "InvalidArgument", "The value specified for x-amz-acl is not valid"),
        (
            "PutObject",
            "x-amz-sdk-checksum-algorithm",
            "CRC8",
            "InvalidRequest",
            "Value for x-amz-sdk-checksum-algorithm header is invalid.",
        ),
        (
            "CreateMultipartUpload",
            "x-amz-checksum-type",
            "HALF",
            "InvalidRequest",
            "Value for x-amz-checksum-type header is invalid.",
        ),
        (
            "PutObject",
            "x-amz-object-lock-retain-until-date",
            "soon",
            "InvalidArgument",
            "x-amz-object-lock-retain-until-date is not a valid date",
        ),
        ("DeleteObject", "x-amz-bypass-governance-retention", "perhaps", "InvalidArgument", None),
        ("DeleteObject", "x-amz-if-match-size", "big", "InvalidArgument", None),
        ("GetObjectAttributes", "x-amz-object-attributes", "ETag,Colour", "InvalidArgument", None),
    ],
)
def test_a_bad_header_gets_the_error_that_s3_gives(
    name: str, header: str, value: str, code: str, message: str | None
) -> None:
    headers = {"x-amz-copy-source": "b/k", header: value}
    error = refusal(name, {}, headers)
    assert error.code == code
    assert message is None or error.message == message
    if code == "InvalidArgument":
        assert error.extra["ArgumentName"] == header


def test_an_unsupported_checksum_algorithm_lists_the_supported() -> None:
    error = refusal("CreateMultipartUpload", {}, {"x-amz-checksum-algorithm": "CRC8"})
    assert error.code == "InvalidRequest"
    assert "any of the valid types: [CRC32, CRC32C" in error.message


def test_checksum_algorithms_and_modes_are_read_in_any_case() -> None:
    assert parse("CreateMultipartUpload", {}, {"x-amz-checksum-algorithm": "crc32c"})["ChecksumAlgorithm"] == "CRC32C"
    assert parse("GetObject", {}, {"x-amz-checksum-mode": "enabled"})["ChecksumMode"] == "ENABLED"


def test_object_attributes_come_as_a_list() -> None:
    assert parse("GetObjectAttributes", {}, {"x-amz-object-attributes": 'ETag, "Checksum" ,ObjectSize'})[
        "ObjectAttributes"
    ] == ["ETag", "Checksum", "ObjectSize"]


@pytest.mark.parametrize("headers", [{}, {"x-amz-object-attributes": ""}, {"x-amz-object-attributes": " , "}])
def test_object_attributes_must_be_asked_for(headers: dict[str, str]) -> None:
    error = refusal("GetObjectAttributes", {}, headers)
    assert error.code == "InvalidRequest"
    assert "either missing or empty" in error.message


def test_a_missing_header_is_named() -> None:
    error = refusal("RenameObject")
    assert (error.code, error.extra) == ("MissingSecurityHeader", {"MissingHeaderName": "x-amz-rename-source"})


def test_an_empty_choice_is_no_choice() -> None:
    assert "ACL" not in parse("PutObject", {}, {"x-amz-acl": ""})


@pytest.mark.parametrize(
    "date", ["Fri, 02 Jan 2026 03:04:05 GMT", "Friday, 02-Jan-26 03:04:05 GMT", "Fri Jan  2 03:04:05 2026"]
)
def test_conditional_dates_are_read_in_every_form_of_http(date: str) -> None:
    assert parse("GetObject", {}, {"if-modified-since": date})["IfModifiedSince"] == datetime(
        2026, 1, 2, 3, 4, 5, tzinfo=UTC
    )


def test_a_conditional_date_that_is_none_is_ignored() -> None:
    assert "IfModifiedSince" not in parse("GetObject", {}, {"if-modified-since": "yesterday"})
    assert "IfUnmodifiedSince" not in parse("HeadObject", {}, {"if-unmodified-since": "31 Feb"})


def test_expires_stays_as_the_client_wrote_it() -> None:
    assert parse("PutObject", {}, {"expires": "whenever"})["Expires"] == "whenever"
    assert parse("GetObject", {"response-expires": "never"})["ResponseExpires"] == "never"


def test_a_latin_1_override_passes() -> None:
    assert parse("GetObject", {"response-content-disposition": "\u00fc"})["ResponseContentDisposition"] == "\u00fc"


def test_unknown_parameters_and_headers_are_ignored() -> None:
    assert parse("GetObject", {"x-id": "GetObject", "foo": "1"}, {"x-foo": "1", "host": "h"}) == {
        "Bucket": "b",
        "Key": "k",
    }


def test_a_copy_source_in_raw_utf_8_is_read_as_such() -> None:
    raw = "b/\u00fc".encode().decode("latin-1")
    assert parse("CopyObject", {}, {"x-amz-copy-source": raw})["CopySource"] == "b/\u00fc"


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        ("plain", "plain"),
        ("gr\u00fcn".encode().decode("latin-1"), "gr\u00fcn"),
        ("gr\u00fcn", "gr\u00fcn"),
        ("=?UTF-8?B?Z3LDvG4=?=", "gr\u00fcn"),
        ("=?utf-8?Q?gr=C3=BCn_und_blau?=", "gr\u00fcn und blau"),
        ("=?ISO-8859-1?Q?gr=FCn?= ja", "gr\u00fcn ja"),
        ("=?UTF-8?B?Z3I=?= =?UTF-8?B?w7xu?=", "gr\u00fcn"),
        ("=?UTF-8?B?!!!?=", "=?UTF-8?B?!!!?="),
        ("=?KLINGON?B?Z3I=?=", "=?KLINGON?B?Z3I=?="),
        ("=?UTF-8?B?/w==?=", "=?UTF-8?B?/w==?="),
        ("what=?", "what=?"),
    ],
)
def test_user_metadata_is_text_however_it_was_sent(sent: str, text: str) -> None:
    assert parse("PutObject", {}, {"x-amz-meta-colour": sent})["Metadata"] == {"colour": text}


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_user_metadata_comes_back_as_it_was(text: str) -> None:
    encoded = encode_header(text)
    assert encoded.isascii()
    assert b"\r" not in encoded
    assert b"\n" not in encoded
    assert decode_header(encoded.decode("latin-1")) == text


# --- XML -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        f"<Tagging {XMLNS}><TagSet><Tag><Key>a</Key><Value>1</Value></Tag></TagSet></Tagging>",
        "<Tagging><TagSet><Tag><Value>1</Value><Key>a</Key></Tag></TagSet></Tagging>",
        f'<?xml version="1.0" encoding="UTF-8"?>\n<s:Tagging {XMLNS.replace("xmlns", "xmlns:s")}>\n  <s:TagSet>\n'
        "<s:Tag><s:Key>a</s:Key>\n<s:Value>1</s:Value></s:Tag></s:TagSet>\n</s:Tagging>\n",
        "\ufeff<Tagging><!-- hello --><TagSet><Tag><Key><![CDATA[a]]></Key><Value>&#49;</Value></Tag></TagSet>"
        "</Tagging>",
        '<Tagging xmlns="urn:other" new="1"><Extra><Deep>x</Deep> y</Extra><TagSet><Tag><Key>a</Key><Value>1</Value>'
        "<More/></Tag></TagSet></Tagging>",
    ],
)
def test_a_document_is_read_however_it_is_written(body: str) -> None:
    assert parse("PutBucketTagging", body=body)["Tagging"] == {"TagSet": [{"Key": "a", "Value": "1"}]}


def test_white_space_belongs_to_text_but_not_to_other_values() -> None:
    body = "<Delete><Object><Key> a\n</Key><Size> 7 </Size></Object><Quiet> TRUE\n</Quiet></Delete>"
    assert parse("DeleteObjects", body=body)["Delete"] == {"Objects": [{"Key": " a\n", "Size": 7}], "Quiet": True}


def test_the_type_of_a_grantee_is_an_attribute() -> None:
    body = (
        "<AccessControlPolicy><AccessControlList><Grant>"
        '<Grantee xmlns:t="http://www.w3.org/2001/XMLSchema-instance" t:type="CanonicalUser"><ID>x</ID></Grantee>'
        "<Permission>READ</Permission></Grant></AccessControlList><Owner><ID>y</ID></Owner></AccessControlPolicy>"
    )
    assert parse("PutBucketAcl", body=body)["AccessControlPolicy"] == {
        "Grants": [{"Grantee": {"Type": "CanonicalUser", "ID": "x"}, "Permission": "READ"}],
        "Owner": {"ID": "y"},
    }


BOMB = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(9))


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("PutBucketTagging", b"<Tagging>"),
        ("PutBucketTagging", b"not xml"),
        ("PutBucketTagging", b"\xff\xfe<\x00T\x00"),
        ("PutBucketTagging", b"<Tagging>\xff</Tagging>"),
        ("PutBucketTagging", b"<Tagging><TagSet/></Tagging><Tagging/>"),
        ("PutBucketTagging", b"<Tagging></Tagging>"),
        ("PutBucketTagging", b"<Other><TagSet/></Other>"),
        ("PutBucketTagging", b"<Tagging><TagSet>text</TagSet></Tagging>"),
        ("PutBucketTagging", b"<Tagging>text<TagSet/></Tagging>"),
        ("PutBucketTagging", b"<Tagging><TagSet/><TagSet/></Tagging>"),
        ("PutBucketTagging", b"<Tagging><TagSet><Tag><Key>a</Key></Tag></TagSet></Tagging>"),
        ("PutBucketTagging", b"<Tagging><TagSet><Tag><Key>a<b/></Key><Value/></Tag></TagSet></Tagging>"),
        ("PutBucketTagging", b"<Tagging><TagSet><Tag><Key></Key><Value/></Tag></TagSet></Tagging>"),
        ("PutBucketTagging", b"<!DOCTYPE Tagging><Tagging><TagSet/></Tagging>"),
        (
            "PutBucketTagging",
            f'<!DOCTYPE x [<!ENTITY a0 "x">{BOMB}]><Tagging><TagSet>&a9;</TagSet></Tagging>'.encode(),
        ),
        (
            "PutBucketTagging",
            b'<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><Tagging><TagSet>&f;</TagSet></Tagging>',
        ),
        ("PutBucketTagging", b"<Tagging>" + b"<x>" * 40 + b"</x>" * 40 + b"<TagSet/></Tagging>"),
        ("PutBucketTagging", b"<Tagging>" + b"<x>" * 100_000),
        ("PutBucketTagging", b"<Tagging>" + b"<x/>" * 1001 + b"<TagSet/></Tagging>"),
        ("PutBucketVersioning", b"<VersioningConfiguration><Status>On</Status></VersioningConfiguration>"),
        ("DeleteObjects", b"<Delete/>"),
        ("DeleteObjects", b"<Delete><Object/></Delete>"),
        ("DeleteObjects", b"<Delete><Object><Key/></Object></Delete>"),
        ("DeleteObjects", b"<Delete><Object><Key>a</Key></Object><Quiet>yes</Quiet></Delete>"),
        ("DeleteObjects", b"<Delete><Object><Key>a</Key><Size>1e3</Size></Object></Delete>"),
        ("DeleteObjects", b"<Delete><Object><Key>a</Key><LastModifiedTime>now</LastModifiedTime></Object></Delete>"),
        ("DeleteObjects", b"<Delete>" + b"<Object><Key>a</Key></Object>" * 1001 + b"</Delete>"),
        ("CompleteMultipartUpload", b"<CompleteMultipartUpload/>"),
        ("CompleteMultipartUpload", b"<CompleteMultipartUpload><Part><ETag>a</ETag></Part></CompleteMultipartUpload>"),
        (
            "CompleteMultipartUpload",
            b"<CompleteMultipartUpload><Part><ETag>a</ETag><PartNumber>99999999999</PartNumber></Part>"
            b"</CompleteMultipartUpload>",
        ),
    ],
)
def test_a_document_that_is_wrong_is_malformed(name: str, body: bytes) -> None:
    error = refusal(name, {"uploadId": "u"} if name.startswith("Complete") else {}, {}, body)
    assert (error.code, error.status) == ("MalformedXML", 400)


def test_a_document_may_nest_but_not_for_ever() -> None:
    body = b"<Tagging>" + b"<x>" * 20 + b"</x>" * 20 + b"<TagSet/></Tagging>"
    assert parse("PutBucketTagging", body=body)["Tagging"] == {"TagSet": []}


@pytest.mark.parametrize(
    ("name", "body", "code"),
    [
        ("PutBucketTagging", b"", "MissingRequestBodyError"),
        ("PutBucketTagging", b" \n", "MissingRequestBodyError"),
        ("DeleteObjects", b"", "MissingRequestBodyError"),
        ("PutBucketPolicy", b"", "MissingRequestBodyError"),
        ("SelectObjectContent", b"", "MissingRequestBodyError"),
        ("PutBucketPolicy", b"\xff", "MalformedPolicy"),
        ("PutBucketVersioning", b"<VersioningConfiguration/>", "IllegalVersioningConfigurationException"),
        ("PutBucketTagging", b"x" * (1024 * 1024 + 1), "MaxMessageLengthExceeded"),
    ],
)
def test_a_body_that_cannot_be_read_gets_its_own_error(name: str, body: bytes, code: str) -> None:
    assert refusal(name, {}, {}, body).code == code


def test_completing_needs_parts() -> None:
    error = refusal("CompleteMultipartUpload", {"uploadId": "u"})
    assert (error.code, error.message) == ("InvalidRequest", "You must specify at least one part")


def test_an_unknown_event_is_not_malformed() -> None:
    body = (
        "<NotificationConfiguration><QueueConfiguration><Queue>q</Queue><Event>s3:Never</Event></QueueConfiguration>"
        "</NotificationConfiguration>"
    )
    error = refusal("PutBucketNotificationConfiguration", body=body)
    assert (error.code, error.message) == ("InvalidArgument", "A specified event is not supported for notifications.")


def test_any_location_is_a_location() -> None:
    body = "<CreateBucketConfiguration><LocationConstraint>auto</LocationConstraint></CreateBucketConfiguration>"
    assert parse("CreateBucket", body=body)["CreateBucketConfiguration"] == {"LocationConstraint": "auto"}
    assert "CreateBucketConfiguration" not in parse("CreateBucket")


def test_a_policy_is_text() -> None:
    assert parse("PutBucketPolicy", body='{"Version": "\u00fc"}')["Policy"] == '{"Version": "\u00fc"}'


# --- whatever comes --------------------------------------------------------------------------------------------------

TAGS = st.sampled_from(
    [
        "Tagging",
        "TagSet",
        "Tag",
        "Key",
        "Value",
        "Delete",
        "Object",
        "Quiet",
        "VersioningConfiguration",
        "Status",
        "CompleteMultipartUpload",
        "Part",
        "PartNumber",
        "ETag",
        "AccessControlPolicy",
        "Grant",
        "Grantee",
        "Extra",
    ]
)
DOCUMENTS = st.recursive(
    st.text(max_size=5),
    lambda inner: st.builds(
        lambda tag, children: f"<{tag}>{''.join(children)}</{tag}>", TAGS, st.lists(inner, max_size=3)
    ),
    max_leaves=8,
).map(lambda text: text.encode("utf-8", "surrogatepass"))
WIRE_NAMES = st.sampled_from(
    [
        "max-keys",
        "partNumber",
        "uploadId",
        "versionId",
        "encoding-type",
        "fetch-owner",
        "list-type",
        "id",
        "response-expires",
        "response-content-type",
        "version-id-marker",
        "x-amz-acl",
        "x-amz-meta-",
        "x-amz-meta-a",
        "x-amz-storage-class",
        "if-modified-since",
        "x-amz-copy-source",
        "x-amz-object-attributes",
        "expires",
        "x-amz-checksum-algorithm",
        "x-amz-if-match-size",
        "x-amz-if-match-last-modified-time",
        "content-length",
        "x-amz-object-lock-retain-until-date",
        "x-amz-bypass-governance-retention",
        "x-amz-mfa",
    ]
)
VALUES = (
    st.text(max_size=20)
    | st.sampled_from(["99999999999999999999", "-1", "true", "0001-01-01T00:00:00+23:59", "=?UTF-8?Q?=ZZ?=", "9" * 12])
    | st.from_regex(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d (GMT|[+-]\d{4})")
    | st.datetimes().map(str)
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.dictionaries(WIRE_NAMES | st.text(max_size=5), VALUES, max_size=5),
    st.dictionaries(WIRE_NAMES | st.text(max_size=5), VALUES, max_size=5),
    st.binary(max_size=40) | DOCUMENTS,
)
def test_whatever_comes_is_parsed_or_refused(
    name: str, query: dict[str, str], headers: dict[str, str], body: bytes
) -> None:
    try:
        outcome: object = PROTOCOL[name].parse("b", "k", query, headers, body)
    except S3Error as error:
        outcome = error.status
    assert isinstance(outcome, dict) or outcome == 400
