"""Which operation a request means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.protocol import Protocol, load_protocol

PROTOCOL: Protocol = load_protocol()
COPY = {"x-amz-copy-source": "b/k"}


@pytest.mark.parametrize(
    ("method", "level", "query", "headers", "name"),
    [
        ("GET", "service", {}, {}, "ListBuckets"),
        ("GET", "service", {"x-id": "ListBuckets"}, {}, "ListBuckets"),
        ("GET", "service", {"max-directory-buckets": "5"}, {}, "ListDirectoryBuckets"),
        ("PUT", "bucket", {}, {}, "CreateBucket"),
        ("HEAD", "bucket", {}, {}, "HeadBucket"),
        ("DELETE", "bucket", {}, {}, "DeleteBucket"),
        ("GET", "bucket", {}, {}, "ListObjects"),
        ("GET", "bucket", {"prefix": "a", "delimiter": "/"}, {}, "ListObjects"),
        ("GET", "bucket", {"list-type": "2"}, {}, "ListObjectsV2"),
        ("GET", "bucket", {"list-type": "1"}, {}, "ListObjects"),
        ("GET", "bucket", {"versions": ""}, {}, "ListObjectVersions"),
        ("GET", "bucket", {"versions": "", "list-type": "2"}, {}, "ListObjectVersions"),
        ("GET", "bucket", {"uploads": ""}, {}, "ListMultipartUploads"),
        ("GET", "bucket", {"location": ""}, {}, "GetBucketLocation"),
        ("GET", "bucket", {"session": ""}, {}, "CreateSession"),
        ("GET", "bucket", {"lifecycle": ""}, {}, "GetBucketLifecycleConfiguration"),
        ("PUT", "bucket", {"lifecycle": ""}, {}, "PutBucketLifecycleConfiguration"),
        ("GET", "bucket", {"notification": ""}, {}, "GetBucketNotificationConfiguration"),
        ("PUT", "bucket", {"notification": ""}, {}, "PutBucketNotificationConfiguration"),
        ("GET", "bucket", {"inventory": ""}, {}, "ListBucketInventoryConfigurations"),
        ("GET", "bucket", {"inventory": "", "id": "x"}, {}, "GetBucketInventoryConfiguration"),
        ("GET", "bucket", {"analytics": "", "id": "x"}, {}, "GetBucketAnalyticsConfiguration"),
        ("GET", "bucket", {"metrics": ""}, {}, "ListBucketMetricsConfigurations"),
        ("DELETE", "bucket", {"metrics": ""}, {}, "DeleteBucketMetricsConfiguration"),
        ("POST", "bucket", {"delete": ""}, {}, "DeleteObjects"),
        ("GET", "object", {}, {}, "GetObject"),
        ("GET", "object", {"versionId": "1"}, {}, "GetObject"),
        ("GET", "object", {"partNumber": "1"}, {}, "GetObject"),
        ("GET", "object", {"X-Amz-Signature": "0", "X-Amz-Expires": "60"}, {}, "GetObject"),
        ("GET", "object", {"some": "thing"}, {}, "GetObject"),
        ("HEAD", "object", {}, {}, "HeadObject"),
        ("PUT", "object", {"x-id": "PutObject"}, {}, "PutObject"),
        ("PUT", "object", {}, COPY, "CopyObject"),
        ("PUT", "object", {"x-id": "CopyObject"}, COPY, "CopyObject"),
        ("PUT", "object", {"uploadId": "u", "partNumber": "1"}, {}, "UploadPart"),
        ("PUT", "object", {"partNumber": "1", "uploadId": "u"}, {}, "UploadPart"),
        ("PUT", "object", {"partNumber": "1"}, {}, "UploadPart"),
        ("PUT", "object", {"uploadId": "u"}, {}, "UploadPart"),
        ("PUT", "object", {"uploadId": "u", "partNumber": "1"}, COPY, "UploadPartCopy"),
        ("POST", "object", {"uploads": ""}, {}, "CreateMultipartUpload"),
        ("POST", "object", {"uploadId": "u"}, {}, "CompleteMultipartUpload"),
        ("DELETE", "object", {"uploadId": "u"}, {}, "AbortMultipartUpload"),
        ("GET", "object", {"uploadId": "u"}, {}, "ListParts"),
        ("DELETE", "object", {"versionId": "1"}, {}, "DeleteObject"),
        ("GET", "object", {"tagging": ""}, {}, "GetObjectTagging"),
        ("GET", "object", {"attributes": ""}, {}, "GetObjectAttributes"),
        ("POST", "object", {"select": "", "select-type": "2"}, {}, "SelectObjectContent"),
        ("POST", "object", {"restore": "", "versionId": "1"}, {}, "RestoreObject"),
    ],
)
def test_a_request_means_this_operation(
    method: str, level: str, query: dict[str, str], headers: dict[str, str], name: str
) -> None:
    assert PROTOCOL.route(method, level, query, headers).name == name


@pytest.mark.parametrize("value", ["", "true", "anything"])
def test_a_flag_means_the_same_whatever_its_value(value: str) -> None:
    assert PROTOCOL.route("GET", "bucket", {"acl": value}, {}).name == "GetBucketAcl"


@pytest.mark.parametrize(
    ("method", "level", "query", "resource", "allow"),
    [
        ("PATCH", "object", {}, "OBJECT", "DELETE, GET, HEAD, PUT"),
        ("POST", "object", {}, "OBJECT", "DELETE, GET, HEAD, PUT"),
        ("OPTIONS", "bucket", {}, "BUCKET", "DELETE, GET, HEAD, PATCH, PUT"),
        ("PUT", "service", {}, "SERVICE", "GET"),
        ("DELETE", "bucket", {"acl": ""}, "ACL", "GET, PUT"),
        ("POST", "object", {"tagging": ""}, "TAGGING", "DELETE, GET, PUT"),
        ("PUT", "object", {"lifecycle": ""}, "LIFECYCLE", ""),
        ("DELETE", "object", {"acl": ""}, "ACL", "GET, PUT"),
        ("GET", "bucket", {"delete": ""}, "DELETE", "POST"),
        ("HEAD", "object", {"uploadId": "u"}, "UPLOADID", "DELETE, GET, POST, PUT"),
    ],
)
def test_a_method_that_a_resource_lacks_is_refused(
    method: str, level: str, query: dict[str, str], resource: str, allow: str
) -> None:
    with pytest.raises(S3Error) as refused:
        PROTOCOL.route(method, level, query, {})
    assert (refused.value.code, refused.value.status) == ("MethodNotAllowed", 405)
    assert refused.value.extra == {"Method": method, "ResourceType": resource}
    assert refused.value.headers == {"allow": allow}


@pytest.mark.parametrize(
    "query", [{"acl": "", "policy": ""}, {"uploads": "", "uploadId": "u"}, {"acl": "", "torrent": ""}]
)
def test_two_subresources_conflict(query: dict[str, str]) -> None:
    level = "object" if "uploadId" in query else "bucket"
    with pytest.raises(S3Error) as refused:
        PROTOCOL.route("POST" if level == "object" else "GET", level, query, {})
    first, second = query
    assert refused.value.code == "InvalidArgument"
    assert refused.value.message == f"Conflicting query string parameters: {first}, {second}"
    assert refused.value.extra == {"ArgumentName": "ResourceType", "ArgumentValue": first}


def test_a_post_to_a_bucket_must_be_a_form() -> None:
    with pytest.raises(S3Error) as refused:
        PROTOCOL.route("POST", "bucket", {}, {})
    assert (refused.value.code, refused.value.status) == ("PreconditionFailed", 412)
    assert refused.value.extra == {"Condition": "Bucket POST must be of the enclosure-type multipart/form-data"}


def test_every_operation_of_the_model_is_there() -> None:
    assert len(PROTOCOL) == len(list(PROTOCOL)) > 90
    assert {"PutObject", "WriteGetObjectResponse", "GetBucketLifecycle"} <= {operation.name for operation in PROTOCOL}


def test_an_operation_tells_what_the_app_must_know() -> None:
    put, delete, get, copy = (PROTOCOL[name] for name in ("PutObject", "DeleteObjects", "GetObject", "CopyObject"))
    assert (put.streams_body, put.has_body, put.checksum_required) == (True, True, False)
    assert put.checksum_algorithm_member == "ChecksumAlgorithm"
    assert (delete.streams_body, delete.has_body, delete.checksum_required) == (False, True, True)
    assert delete.max_body > put.max_body
    assert (get.streams_body, get.has_body, get.checksum_mode_member) == (False, False, "ChecksumMode")
    assert {"CRC32", "CRC32C", "SHA1", "SHA256"} <= set(get.response_checksums)
    assert (copy.has_body, copy.required_headers) == (False, {"x-amz-copy-source"})
    assert PROTOCOL["UploadPart"].required_query == {"partNumber", "uploadId"}
    assert PROTOCOL["DeleteObject"].status == 204
    assert repr(put) == "<Operation PutObject>"


@given(
    st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", ""]) | st.text(max_size=5),
    st.sampled_from(["service", "bucket", "object"]),
    st.dictionaries(
        st.sampled_from(["acl", "uploads", "uploadId", "partNumber", "versions", "list-type", "id", "tagging"])
        | st.text(max_size=5),
        st.text(max_size=5),
        max_size=4,
    ),
    st.dictionaries(st.sampled_from(["x-amz-copy-source", "host"]), st.text(max_size=5)),
)
def test_whatever_comes_is_routed_or_refused(
    method: str, level: str, query: dict[str, str], headers: dict[str, str]
) -> None:
    try:
        operation = PROTOCOL.route(method, level, query, headers)
    except S3Error:
        return
    assert (operation.method, operation.level) == (method, level)
