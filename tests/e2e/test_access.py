"""Who may do what: signatures in headers and URLs, wrong ones, scoped keys, public buckets."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import boto3
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.e2e.conftest import anonymous, client, fetch
from tests.e2e.test_forms import error_code, post
from tests.e2e.test_objects import code, status
from tests.e2e.wire import Caller, refused


class As:
    """The same node with another key pair."""

    def __init__(self, store: Any, access_key_id: str, secret_access_key: str) -> None:
        self.endpoint = store.endpoint
        self.ca_bundle = getattr(store, "ca_bundle", None)
        self.access_key_id = access_key_id
        self.secret_access_key = secret_access_key


def manage(store: Any, document: Any, caller: Any = None) -> tuple[int, bytes]:
    """A signed POST to the service's storage endpoint."""
    caller = caller or store
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    url = f"{store.endpoint}/_tigrislike/storage"
    request = AWSRequest("POST", url, data=body)
    S3SigV4Auth(Credentials(caller.access_key_id, caller.secret_access_key), "s3", "auto").add_auth(request)
    return fetch(store, "POST", url, dict(request.headers), body)


@pytest.fixture
def storage(store: Any) -> dict[str, str]:
    answered, body = manage(store, {"name": f"scoped-{uuid.uuid4().hex[:12]}"})
    assert answered == 200
    made: dict[str, str] = json.loads(body)
    return made


@contextlib.contextmanager
def clock_at(moment: datetime) -> Iterator[None]:
    """What botocore's signers, its own and the C runtime's, take for now."""
    naive = moment.replace(tzinfo=None)
    with contextlib.ExitStack() as stack:
        for module in ("botocore.auth", "botocore.crt.auth"):
            stack.enter_context(mock.patch(f"{module}.get_current_datetime", return_value=naive))
        yield


def test_wrong_keys_and_signatures(store: Any, bucket: str) -> None:
    unknown = client(As(store, "tid_unknown", store.secret_access_key))
    assert code(unknown.list_objects_v2, Bucket=bucket) == "InvalidAccessKeyId"
    wrong = client(As(store, store.access_key_id, "wrong" * 5))
    assert code(wrong.list_objects_v2, Bucket=bucket) == "SignatureDoesNotMatch"
    assert code(wrong.put_object, Bucket=bucket, Key="k", Body=b"x" * 100_000) in ("SignatureDoesNotMatch", "400")


def test_a_session_token_is_refused_while_nobody_issues_any(store: Any, s3: Any, bucket: str) -> None:
    with_token = boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        aws_access_key_id=store.access_key_id,
        aws_secret_access_key=store.secret_access_key,
        aws_session_token="made up",
        region_name="auto",
        verify=getattr(store, "ca_bundle", None),
    )
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    assert code(with_token.get_object, Bucket=bucket, Key="k") == "InvalidToken"
    assert code(with_token.put_object, Bucket=bucket, Key="k", Body=b"y") == "InvalidToken"
    url = with_token.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "k"})
    answered, body = fetch(store, "GET", url)
    assert (answered, b"<Code>InvalidToken</Code>" in body) == (400, True)
    form = with_token.generate_presigned_post(bucket, "k")
    assert error_code(post(store, form, b"y")) == "InvalidToken"
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"


def test_a_key_id_of_any_length_is_only_ever_unknown(store: Any, bucket: str) -> None:
    for length in (129, 12_000):
        answer = Caller(store, "k" * length, "secret").send("GET", f"/{bucket}")
        refused(answer, 403, "InvalidAccessKeyId")


def test_a_skewed_clock(store: Any, bucket: str) -> None:
    with clock_at(datetime.now(UTC) + timedelta(minutes=20)):
        assert code(client(store).list_objects_v2, Bucket=bucket) == "RequestTimeTooSkewed"


def test_any_region_is_accepted(store: Any, bucket: str) -> None:
    for region in ("auto", "us-east-1", "mars-north-7"):
        made = boto3.client(
            "s3",
            endpoint_url=store.endpoint,
            aws_access_key_id=store.access_key_id,
            aws_secret_access_key=store.secret_access_key,
            region_name=region,
            verify=getattr(store, "ca_bundle", None),
        )
        assert made.head_bucket(Bucket=bucket)
        made.close()


def test_presigned_urls(s3: Any, store: Any, bucket: str) -> None:
    key = "a b/ü+c"
    put = s3.generate_presigned_url("put_object", {"Bucket": bucket, "Key": key}, ExpiresIn=60)
    assert fetch(store, "PUT", put, {}, b"hello")[0] == 200
    ninety_days = 90 * 24 * 3600
    get = s3.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, ExpiresIn=ninety_days)
    assert fetch(store, "GET", get) == (200, b"hello")
    assert fetch(store, "GET", get.replace("X-Amz-Expires", "X-Amz-Expires2"))[0] == 400
    answered, body = fetch(store, "GET", get[:-1] + ("0" if get[-1] != "0" else "1"))
    assert (answered, b"SignatureDoesNotMatch" in body) == (403, True)
    long = s3.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, ExpiresIn=ninety_days + 1)
    answered, body = fetch(store, "GET", long)
    assert (answered, b"AuthorizationQueryParametersError" in body) == (400, True)
    with clock_at(datetime.now(UTC) - timedelta(seconds=100)):
        expired = s3.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}, ExpiresIn=10)
    answered, body = fetch(store, "GET", expired)
    assert answered == 403
    assert b"Request has expired" in body


def test_nobody_sees_a_private_bucket(store: Any, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    nobody = anonymous(store)
    for call, arguments in (
        (nobody.list_buckets, {}),
        (nobody.list_objects_v2, {"Bucket": bucket}),
        (nobody.get_object, {"Bucket": bucket, "Key": "k"}),
        (nobody.get_object, {"Bucket": "no-such-bucket-here", "Key": "k"}),
        (nobody.put_object, {"Bucket": bucket, "Key": "k", "Body": b"y"}),
        (nobody.create_bucket, {"Bucket": "no-such-bucket-here"}),
    ):
        assert status(call, **arguments) == (403 if "no-such" not in str(arguments) else mock.ANY)


def test_anybody_reads_the_objects_of_a_public_bucket(store: Any, s3: Any) -> None:
    name = f"public-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name, ACL="public-read")
    s3.put_object(Bucket=name, Key="k", Body=b"x")
    nobody = anonymous(store)
    assert nobody.get_object(Bucket=name, Key="k")["Body"].read() == b"x"
    assert nobody.head_object(Bucket=name, Key="k")["ContentLength"] == 1
    assert status(nobody.get_object, Bucket=name, Key="none") == 404
    assert code(nobody.list_objects_v2, Bucket=name) == "AccessDenied"
    assert code(nobody.delete_object, Bucket=name, Key="k") == "AccessDenied"
    assert code(nobody.get_object, Bucket=name, Key="k", ResponseContentType="text/x") == "InvalidRequest"


def test_a_scoped_key_rules_its_bucket_and_sees_no_other(store: Any, s3: Any, bucket: str, storage: Any) -> None:
    own = storage["bucket"]
    scoped = client(As(store, storage["access_key_id"], storage["secret_access_key"]))
    assert [row["Name"] for row in scoped.list_buckets()["Buckets"]] == [own]
    scoped.put_object(Bucket=own, Key="k", Body=b"x" * 50_000)
    assert scoped.get_object(Bucket=own, Key="k")["Body"].read() == b"x" * 50_000
    scoped.put_bucket_versioning(Bucket=own, VersioningConfiguration={"Status": "Enabled"})
    upload = scoped.create_multipart_upload(Bucket=own, Key="m")["UploadId"]
    scoped.abort_multipart_upload(Bucket=own, Key="m", UploadId=upload)
    assert s3.get_object(Bucket=own, Key="k")["ContentLength"] == 50_000
    s3.put_object(Bucket=bucket, Key="secret", Body=b"x")
    refused = [
        (scoped.delete_bucket, {"Bucket": own}),
        (scoped.create_bucket, {"Bucket": f"more-{uuid.uuid4().hex[:8]}"}),
        (scoped.create_bucket, {"Bucket": own}),
        (scoped.list_objects_v2, {"Bucket": bucket}),
        (scoped.get_object, {"Bucket": bucket, "Key": "secret"}),
        (scoped.put_object, {"Bucket": bucket, "Key": "k", "Body": b""}),
        (scoped.list_objects_v2, {"Bucket": "no-such-bucket-here"}),
        (scoped.copy_object, {"Bucket": own, "Key": "stolen", "CopySource": f"{bucket}/secret"}),
        (scoped.copy_object, {"Bucket": bucket, "Key": "planted", "CopySource": f"{own}/k"}),
    ]
    for call, arguments in refused:
        assert code(call, **arguments) == "AccessDenied"
    assert (
        manage(store, {"name": "another-bucket"}, As(store, storage["access_key_id"], storage["secret_access_key"]))[0]
        == 403
    )


def test_storage_is_made_once(store: Any, storage: Any) -> None:
    answered, body = manage(store, {"name": storage["bucket"]})
    assert (answered, b"BucketAlreadyOwnedByYou" in body) == (409, True)
    for document in ({"name": "Bad_Name"}, {"nome": "x"}, b"{", {"name": 5}, {"name": "ok-name", "more": 1}):
        answered, body = manage(store, document)
        assert answered == 400, body
    assert fetch(store, "POST", f"{store.endpoint}/_tigrislike/storage", {}, b"{}")[0] == 403


def test_a_request_signed_without_its_body_digest(store: Any, s3: Any, bucket: str) -> None:
    """Plain SigV4, as curl signs it: no x-amz-content-sha256, the body's digest inside the signature."""
    from botocore.auth import SigV4Auth

    url = f"{store.endpoint}/{bucket}/curl"
    request = AWSRequest("PUT", url, data=b"payload")
    SigV4Auth(Credentials(store.access_key_id, store.secret_access_key), "s3", "auto").add_auth(request)
    headers = {name: value for name, value in request.headers.items() if name.lower() != "x-amz-content-sha256"}
    assert fetch(store, "PUT", url, headers, b"payload")[0] == 200
    assert s3.get_object(Bucket=bucket, Key="curl")["Body"].read() == b"payload"
    assert fetch(store, "PUT", url, headers, b"tampered")[0] == 403
