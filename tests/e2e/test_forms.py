"""Form uploads (POST Object), signed by boto3 and sent by a plain HTTP client, as a browser would."""

from __future__ import annotations

import http.client
import os
import ssl
import xml.etree.ElementTree as ET
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest


def post(store: Any, post: dict[str, Any], file: bytes, **more: str) -> http.client.HTTPResponse:
    """Send the form that `generate_presigned_post` described."""
    boundary = "form-boundary-7MA4YWxk"
    body = bytearray()
    for name, value in {**post["fields"], **more}.items():
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    body += (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="dir/my file.txt"\r\n'
        "Content-Type: text/plain\r\n\r\n"
    ).encode()
    body += file + f"\r\n--{boundary}--\r\n".encode()
    url = urlsplit(post["url"])
    if url.scheme == "https":
        context = ssl.create_default_context(cafile=store.ca_bundle)
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(url.netloc, context=context)
    else:
        connection = http.client.HTTPConnection(url.netloc)
    try:
        connection.request("POST", url.path, bytes(body), {"Content-Type": f"multipart/form-data; boundary={boundary}"})
        answer = connection.getresponse()
        answer.document = answer.read()  # type: ignore[attr-defined]
        return answer
    finally:
        connection.close()


def error_code(answer: Any) -> str:
    return str(ET.fromstring(answer.document).findtext("Code"))


@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_a_form_uploads_its_file(s3: Any, store: Any, bucket: str, size: int) -> None:
    file = os.urandom(size)
    form = s3.generate_presigned_post(
        bucket,
        "up/${filename}",
        Fields={"x-amz-meta-from": "form", "Content-Type": "text/x"},
        Conditions=[["starts-with", "$key", "up/"], {"x-amz-meta-from": "form"}, {"Content-Type": "text/x"}],
    )
    answer = post(store, form, file)
    assert (answer.status, answer.document) == (204, b"")
    got = s3.get_object(Bucket=bucket, Key="up/my file.txt")
    assert got["Body"].read() == file
    assert (got["Metadata"], got["ContentType"]) == ({"from": "form"}, "text/x")
    assert answer.headers["ETag"] == got["ETag"]


def test_the_answer_is_the_one_asked_for(s3: Any, store: Any, bucket: str) -> None:
    fields = {"success_action_status": "201"}
    form = s3.generate_presigned_post(bucket, "a<b", Fields=fields, Conditions=[fields])
    answer = post(store, form, b"x")
    assert answer.status == 201
    document = ET.fromstring(answer.document)
    assert document.tag == "PostResponse"
    assert document.findtext("Key") == "a<b"
    assert document.findtext("Bucket") == bucket
    fields = {"success_action_redirect": "https://example.com/done?x=1"}
    form = s3.generate_presigned_post(bucket, "k", Fields=fields, Conditions=[fields])
    answer = post(store, form, b"x")
    assert answer.status == 303
    location = urlsplit(answer.headers["Location"])
    assert parse_qs(location.query)["key"] == ["k"]
    assert parse_qs(location.query)["bucket"] == [bucket]


def test_the_policy_is_enforced(s3: Any, store: Any, bucket: str) -> None:
    limited = s3.generate_presigned_post(bucket, "k", Conditions=[["content-length-range", 3, 5]])
    assert error_code(post(store, limited, b"xx")) == "EntityTooSmall"
    assert error_code(post(store, limited, b"x" * 6)) == "EntityTooLarge"
    assert error_code(post(store, limited, b"x" * 400_000)) == "EntityTooLarge"
    assert post(store, limited, b"xxxx").status == 204
    plain = s3.generate_presigned_post(bucket, "k")
    assert error_code(post(store, plain, b"x", **{"x-amz-meta-more": "1"})) == "AccessDenied"
    assert error_code(post(store, {**plain, "fields": {**plain["fields"], "key": "other"}}, b"x")) == "AccessDenied"
    tampered = {**plain["fields"], "x-amz-signature": "0" * 64}
    assert error_code(post(store, {**plain, "fields": tampered}, b"x")) == "SignatureDoesNotMatch"
    unsigned = {"key": "k"}
    assert error_code(post(store, {**plain, "fields": unsigned}, b"x")) == "AccessDenied"
    expired = s3.generate_presigned_post(bucket, "k", ExpiresIn=-5)
    assert error_code(post(store, expired, b"x")) == "AccessDenied"
    keys = {row["Key"] for row in s3.list_objects_v2(Bucket=bucket)["Contents"]}
    assert keys == {"k"}


def test_tags_of_a_form(s3: Any, store: Any, bucket: str) -> None:
    tagging = "<Tagging><TagSet><Tag><Key>a</Key><Value>1 &amp; 2</Value></Tag></TagSet></Tagging>".replace(
        " &amp; ", "-"
    )
    form = s3.generate_presigned_post(bucket, "k", Fields={"tagging": tagging}, Conditions=[{"tagging": tagging}])
    assert post(store, form, b"x").status == 204
    assert s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"] == [{"Key": "a", "Value": "1-2"}]
