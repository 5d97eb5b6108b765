"""A bucket's settings as one JSON document, in the requests that Tigris' clients send."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.e2e.wire import Answer, Caller, exchange

JSON = {"accept": "application/json", "content-type": "application/json"}
SHADOW = {
    "name": "src",
    "endpoint": "https://s3.invalid",  # a name that nobody has, so that it just does not answer
    "region": "us-east-1",
    "access_key": "AKIAEXAMPLE",
    "secret_key": "the-secret-of-the-source",
    "write_through": True,
}


def update(caller: Caller, bucket: str, document: object, **headers: str) -> Answer:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return caller.send("PATCH", f"/{bucket}", {**JSON, "content-length": str(len(body)), **given}, body)


def metadata(caller: Caller, bucket: str, *, size: bool = False) -> dict[str, Any]:
    answer = caller.send("GET", f"/{bucket}?metadata" + ("&with-size=true" if size else ""), JSON)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json"), answer.body
    document: dict[str, Any] = json.loads(answer.body)
    return document


@pytest.fixture
def caller(store: Any) -> Caller:
    return Caller(store)


def test_what_is_known_of_a_bucket_is_shown(caller: Caller, s3: Any, bucket: str) -> None:
    shown = metadata(caller, bucket)
    assert (shown["name"], shown["type"], shown["storage_class"], shown["object_regions"]) == (
        bucket,
        0,
        "STANDARD",
        "",
    )
    assert shown["created_at"].endswith("Z")
    assert shown["md"]["X-Amz-Acl"] == "private"
    assert "shadow_bucket" not in shown
    assert "estimated_size" not in shown
    s3.put_object(Bucket=bucket, Key="k", Body=b"12345")
    sized = metadata(caller, bucket, size=True)
    assert (sized["estimated_unique_rows"], sized["estimated_rows"], sized["estimated_size"]) == (1, 1, 5)


def test_a_shadow_is_set_shown_without_its_secret_and_cleared(caller: Caller, bucket: str) -> None:
    answer = update(caller, bucket, {"shadow_bucket": SHADOW})
    assert (answer.status, json.loads(answer.body)) == (200, {"Bucket": bucket, "Update": "success"})
    assert answer.headers["content-type"] == "application/json"
    expected = {name: value for name, value in SHADOW.items() if name != "secret_key"}
    assert metadata(caller, bucket)["shadow_bucket"] == expected
    assert update(caller, bucket, {"shadow_bucket": {}}).status == 200
    assert "shadow_bucket" not in metadata(caller, bucket)


def test_settings_change_together_or_not_at_all(caller: Caller, bucket: str) -> None:
    document = {"shadow_bucket": SHADOW, "object_regions": "iad"}
    assert update(caller, bucket, document, x_amz_acl="public-read").status == 200
    shown = metadata(caller, bucket)
    assert (shown["object_regions"], shown["md"]["X-Amz-Acl"]) == ("iad", "public-read")
    for refused in ({"object_regions": "sjc,,!"}, {"object_regions": "sjc", "nonsense": 1}):
        assert update(caller, bucket, refused, x_amz_acl="private").status == 400
    assert metadata(caller, bucket) == shown
    assert update(caller, bucket, {"object_regions": ""}).status == 200
    assert metadata(caller, bucket)["object_regions"] == ""


def test_neutral_values_of_what_is_not_there_are_taken(caller: Caller, bucket: str) -> None:
    neutral = {
        "type": 0,
        "cors": None,
        "acl_settings": {"allow_object_acl": False},
        "soft_delete": {"enabled": False, "retention_days": 7},
        "protection": {"protected": False},
        "object_notifications": {},
        "additional_http_headers": None,
        "lifecycle_rules": [],
        "storage_class": "STANDARD",
    }
    assert update(caller, bucket, neutral, x_amz_acl_public_list_objects_enabled="false").status == 200
    assert caller.send("PATCH", f"/{bucket}", {"x-amz-acl": "public-read", "content-length": "0"}).status == 200
    assert metadata(caller, bucket)["md"]["X-Amz-Acl"] == "public-read"


@pytest.mark.parametrize(
    "document",
    [
        {"type": 1},
        {"soft_delete": {"enabled": True, "retention_days": 14}},
        {"protection": {"protected": True}},
        {"storage_class": "GLACIER"},
        {"cors": {"rules": [{"allowedOrigin": ["*"]}]}},
        {"object_notifications": {"enabled": True, "web_hook": "https://h.example.com/x"}},
        {"acl_settings": {"allow_object_acl": True}},
        {"cache_control": "max-age=60"},
        {"shares": [{"team_id": "all", "role": "ReadOnly"}]},
    ],
)
def test_what_is_not_there_is_refused_by_its_name(caller: Caller, bucket: str, document: dict[str, Any]) -> None:
    answer = update(caller, bucket, document)
    error = json.loads(answer.body)
    assert (answer.status, error["Code"]) == (501, "NotImplemented")
    assert next(iter(document)) in error["Message"]


@pytest.mark.parametrize(
    ("document", "code", "says"),
    [
        ({"nonsense": True}, "InvalidArgument", "nonsense"),
        ({"object_regions": 7}, "InvalidArgument", "object_regions"),
        (b"{", "InvalidRequest", "JSON"),
        (b"[]", "InvalidRequest", "JSON"),
        ({"shadow_bucket": {**SHADOW, "bucket": "x"}}, "InvalidArgument", "`bucket`"),
        ({"shadow_bucket": {"name": "src"}}, "InvalidArgument", "`endpoint`"),
        ({"shadow_bucket": {**SHADOW, "secret_key": ""}}, "InvalidArgument", "secret key"),
        ({"shadow_bucket": {**SHADOW, "endpoint": "ftp://s3.invalid"}}, "InvalidArgument", "URL"),
        (
            {"shadow_bucket": {**SHADOW, "endpoint": "https://user:word@s3.invalid"}},
            "InvalidArgument",
            "credentials",
        ),
        ({"shadow_bucket": {**SHADOW, "endpoint": "https://s3.invalid/?a=b"}}, "InvalidArgument", "query"),
        ({"shadow_bucket": {**SHADOW, "endpoint": "https://[::1"}}, "InvalidArgument", "URL"),
        ({"shadow_bucket": {**SHADOW, "name": "a/b"}}, "InvalidArgument", "slashes"),
    ],
)
def test_what_makes_no_sense_is_refused(caller: Caller, bucket: str, document: Any, code: str, says: str) -> None:
    answer = update(caller, bucket, document)
    error = json.loads(answer.body)
    assert (answer.status, error["Code"]) == (400, code)
    assert says in error["Message"]
    assert b"the-secret-of-the-source" not in answer.body
    assert b"word" not in answer.body
    assert "shadow_bucket" not in metadata(caller, bucket)


def test_listings_for_everybody_are_refused(caller: Caller, bucket: str) -> None:
    assert update(caller, bucket, {}, x_amz_acl_public_list_objects_enabled="true").status == 501


def test_a_bucket_is_not_its_own_shadow(caller: Caller, store: Any, bucket: str) -> None:
    answer = update(caller, bucket, {"shadow_bucket": {**SHADOW, "name": bucket, "endpoint": store.endpoint + "/"}})
    assert json.loads(answer.body)["Code"] == "InvalidArgument"


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:9", "http://169.254.169.254", "http://[::1]:9", "http://10.0.0.1"]
)
def test_a_shadow_at_a_private_address_is_refused(caller: Caller, bucket: str, endpoint: str) -> None:
    answer = update(caller, bucket, {"shadow_bucket": {**SHADOW, "endpoint": endpoint}})
    assert (answer.status, json.loads(answer.body)["Code"]) == (400, "InvalidArgument")
    assert "shadow_bucket" not in metadata(caller, bucket)


def test_only_the_owner_changes_settings(caller: Caller, store: Any, bucket: str, s3: Any) -> None:
    body = json.dumps({"name": (name := f"test-{uuid.uuid4().hex}")}).encode()
    made = json.loads(caller.send("POST", "/_tigrislike/storage", {}, body).body)
    scoped = Caller(store, made["access_key_id"], made["secret_access_key"])
    assert json.loads(update(scoped, name, {"shadow_bucket": SHADOW}).body)["Code"] == "AccessDenied"
    assert metadata(scoped, name)["name"] == name
    assert update(scoped, bucket, {}).status == 403
    for method, target in (("PATCH", f"/{bucket}"), ("GET", f"/{bucket}?metadata")):
        assert exchange(store, method, target, {"host": scoped.host, "content-length": "0"}).status == 403


def test_errors_are_json_for_those_who_read_nothing_else(caller: Caller) -> None:
    answer = caller.send("GET", "/no-such-bucket-here?metadata", JSON)
    error = json.loads(answer.body)
    assert (answer.status, error["Code"]) == (404, "NoSuchBucket")
    assert error["RequestId"] == answer.headers["x-amz-request-id"]
    assert caller.send("GET", "/no-such-bucket-here?metadata").code == "NoSuchBucket"  # XML


def test_a_document_too_large_is_refused(caller: Caller, bucket: str) -> None:
    answer = update(caller, bucket, b'{"type": 0' + b" " * (1 << 20) + b"}")
    assert (answer.status, json.loads(answer.body)["Code"]) == (400, "MaxMessageLengthExceeded")
