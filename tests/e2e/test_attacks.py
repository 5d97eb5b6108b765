"""What an attacker tries: to get out of a scoped key's bucket, to bend signed requests, to act without a key.

The attacker holds a key scoped to a bucket of their own (`own`), sees every signed request on the wire, and wants the
object `secret` of the bucket `victim`, or to write there.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import client
from tests.e2e.test_access import As, manage
from tests.e2e.test_forms import error_code, post
from tests.e2e.wire import (
    STREAMING_SIGNED,
    STREAMING_UNSIGNED_TRAILER,
    UNSIGNED,
    Answer,
    Caller,
    connect,
    exchange,
    head_of,
    now,
    read_answer,
    refused,
)
from tests.nodes import running_node
from tigrislike.s3api.operations import load_operations
from tigrislike.s3api.protocol import load_protocol

SECRET = b"what only the owner may read"


@dataclass
class Scene:
    """The attacker's bucket and key, the victim's bucket and upload, and the owner's client."""

    own: str
    victim: str
    attacker: Caller
    keys: As
    owner: Any
    upload_id: str
    version_id: str

    def clear(self) -> None:
        """Empty the attacker's bucket of what earlier tests left."""
        for row in self.owner.list_objects_v2(Bucket=self.own).get("Contents", []):
            self.owner.delete_object(Bucket=self.own, Key=row["Key"])

    def intact(self) -> bool:
        """Whether the victim's bucket holds what it did, and the attacker's nothing of it."""
        listed = [row["Key"] for row in self.owner.list_objects_v2(Bucket=self.victim)["Contents"]]
        stolen = [
            row["Key"]
            for row in self.owner.list_objects_v2(Bucket=self.own).get("Contents", [])
            if SECRET in self.owner.get_object(Bucket=self.own, Key=row["Key"])["Body"].read()
        ]
        return listed == ["secret"] and not stolen


@pytest.fixture(scope="module")
def scene(store: Any, s3: Any) -> Scene:
    victim = f"victim-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=victim)
    s3.put_bucket_versioning(Bucket=victim, VersioningConfiguration={"Status": "Enabled"})
    version_id = s3.put_object(Bucket=victim, Key="secret", Body=SECRET)["VersionId"]
    upload_id = s3.create_multipart_upload(Bucket=victim, Key="secret")["UploadId"]
    answered, body = manage(store, {"name": f"own-{uuid.uuid4().hex[:12]}"})
    assert answered == 200
    made = json.loads(body)
    keys = As(store, made["access_key_id"], made["secret_access_key"])
    attacker = Caller(store, keys.access_key_id, keys.secret_access_key)
    return Scene(made["bucket"], victim, attacker, keys, s3, upload_id, version_id)


def untold(answer: Answer) -> dict[str, str]:
    """An error without what the request itself said."""
    return {name: value for name, value in answer.error.items() if name not in ("RequestId", "Resource")}


# --- out of the bucket -----------------------------------------------------------------------------------------------

ESCAPES = [
    ("GET", "/{victim}/secret"),
    ("HEAD", "/{victim}/secret"),
    ("GET", "/{victim}/secret?versionId={version}"),
    ("GET", "/{victim}/secret?attributes"),
    ("GET", "/{victim}/secret?tagging"),
    ("GET", "/{victim}/secret?partNumber=1"),
    ("GET", "/{victim}"),
    ("GET", "/{victim}/"),
    ("HEAD", "/{victim}"),
    ("GET", "/{victim}?list-type=2"),
    ("GET", "/{victim}?versions"),
    ("GET", "/{victim}?uploads"),
    ("GET", "/{victim}?location"),
    ("GET", "/{victim}?versioning"),
    ("GET", "/{victim}?tagging"),
    ("GET", "/{victim}/secret?uploadId={upload}"),
    ("PUT", "/{victim}/planted"),
    ("PUT", "/{victim}/secret"),
    ("PUT", "/{victim}/secret?tagging"),
    ("PUT", "/{victim}/secret?partNumber=1&uploadId={upload}"),
    ("POST", "/{victim}/secret?uploads"),
    ("POST", "/{victim}/secret?uploadId={upload}"),
    ("POST", "/{victim}?delete"),
    ("DELETE", "/{victim}/secret"),
    ("DELETE", "/{victim}/secret?versionId={version}"),
    ("DELETE", "/{victim}/secret?uploadId={upload}"),
    ("DELETE", "/{victim}"),
    ("PUT", "/{victim}?versioning"),
    ("PUT", "/{victim}?acl"),
    ("PUT", "/{victim}?policy"),
    ("DELETE", "/{own}"),
    ("PUT", "/{own}"),
    ("PUT", "/brand-new-bucket"),
    ("GET", "/{victim}%2Fsecret"),
    ("GET", "/{own}%2F..%2F{victim}/secret"),
    ("GET", "/%2E%2E/{victim}/secret"),
    ("GET", "/./{victim}/secret"),
    ("GET", "/{victim}%00/secret"),
    ("GET", "/{victim};/secret"),
    ("GET", "/{victim}%20/secret"),
    ("GET", "/{own},{victim}/secret"),
]


@pytest.mark.parametrize(("method", "target"), ESCAPES)
def test_a_scoped_key_reaches_no_other_bucket(scene: Scene, method: str, target: str) -> None:
    target = target.format(own=scene.own, victim=scene.victim, upload=scene.upload_id, version=scene.version_id)
    body = b"<planted/>" if method in ("PUT", "POST") else b""
    answer = scene.attacker.send(method, target, {"x-amz-object-attributes": "ETag"}, body)
    if method == "HEAD":
        assert (answer.status, answer.body) == (403, b"")
    else:
        refused(answer, 403, "AccessDenied")
        assert untold(answer) == {"Code": "AccessDenied", "Message": "Access Denied"}  # nothing told of the victim
    assert scene.intact()


@pytest.mark.parametrize(
    "target",
    [
        "/{own}/../{victim}/secret",
        "/{own}/..%2F{victim}%2Fsecret",
        "/{own}/%2e%2e/{victim}/secret",
        "/{own}//{victim}/secret",
        "/{own}/{victim}/secret",
        "/{own}/secret?versionId={version}",
        "/{own}/secret?uploadId={upload}",
        "//{victim}/secret",
        "/{own}/..\\{victim}\\secret",
    ],
)
def test_a_path_within_the_bucket_leads_nowhere_else(scene: Scene, target: str) -> None:
    scene.clear()
    target = target.format(own=scene.own, victim=scene.victim, upload=scene.upload_id, version=scene.version_id)
    answer = scene.attacker.send("GET", target)
    assert answer.status in (400, 404)
    assert SECRET not in answer.body
    answer = scene.attacker.send("PUT", target.partition("?")[0], None, b"planted")
    assert answer.status in (200, 400)  # a key of the attacker's own bucket, whatever it looks like
    assert scene.intact()


def test_another_bucket_and_none_look_the_same(scene: Scene) -> None:
    for method, rest in (("GET", "/k"), ("GET", "?versions"), ("PUT", "/k"), ("DELETE", ""), ("PUT", "")):
        there = scene.attacker.send(method, f"/{scene.victim}{rest}")
        nowhere = scene.attacker.send(method, f"/nobody-has-this-bucket{rest}")
        assert (there.status, untold(there)) == (nowhere.status, untold(nowhere))


@pytest.mark.parametrize(
    "source",
    [
        "{victim}/secret",
        "/{victim}/secret",
        "%2F{victim}%2Fsecret",
        "{victim}%2Fsecret",
        "{victim}/secret?versionId={version}",
        "{own}/../{victim}/secret",
        "{own}%2F..%2F{victim}/secret",
        "//{victim}/secret",
        "./{victim}/secret",
        "arn:aws:s3:::{victim}/secret",
        "{own}/k?versionId={version}",
        "{victim}/secret?versionId=null",
    ],
)
def test_a_copy_takes_nothing_from_another_bucket(scene: Scene, source: str) -> None:
    scene.clear()
    scene.owner.put_object(Bucket=scene.own, Key="k", Body=b"mine")
    upload = scene.owner.create_multipart_upload(Bucket=scene.own, Key="k")["UploadId"]
    header = {"x-amz-copy-source": source.format(own=scene.own, victim=scene.victim, version=scene.version_id)}
    for target in (f"/{scene.own}/stolen", f"/{scene.own}/k?partNumber=1&uploadId={upload}"):
        answer = scene.attacker.send("PUT", target, header)
        assert answer.status in (400, 403, 404)
        assert answer.code in ("AccessDenied", "InvalidArgument", "NoSuchKey", "NoSuchVersion", "NoSuchBucket")
        url = scene.attacker.presign("PUT", target, header)
        assert exchange(scene.keys, "PUT", url, {"host": scene.attacker.host, **header}).status == answer.status
    header = {"x-amz-copy-source": f"{scene.own}/k"}
    refused(scene.attacker.send("PUT", f"/{scene.victim}/planted", header), 403, "AccessDenied")
    target = f"/{scene.victim}/secret?partNumber=1&uploadId={scene.upload_id}"
    refused(scene.attacker.send("PUT", target, header), 403, "AccessDenied")
    assert scene.intact()


def test_listings_show_a_scoped_key_its_own(scene: Scene, store: Any) -> None:
    root = Caller(store)
    token = re.search(rb"<ContinuationToken>(.*)</ContinuationToken>", root.send("GET", "/?max-buckets=1").body)
    assert token is not None
    for query in ("", "?prefix=victim", f"?continuation-token={token[1].decode()}", "?max-buckets=1"):
        body = scene.attacker.send("GET", f"/{query}").body
        assert set(re.findall(rb"<Name>(.*?)</Name>", body)) <= {scene.own.encode()}
    for number in range(3):
        scene.owner.put_object(Bucket=scene.own, Key=f"page{number}", Body=b"")
    foreign = client(store).list_objects_v2(Bucket=scene.own, MaxKeys=1)["NextContinuationToken"]
    answer = root.send("GET", f"/{scene.victim}?list-type=2&continuation-token={foreign}")
    refused(answer, 400, "InvalidArgument")


def test_a_key_dies_with_its_bucket(store: Any, s3: Any) -> None:
    name = f"short-{uuid.uuid4().hex[:12]}"
    made = json.loads(manage(store, {"name": name})[1])
    scoped = Caller(store, made["access_key_id"], made["secret_access_key"])
    for _ in range(8):  # connections of their own, so that every worker has the key at hand
        assert scoped.send("GET", f"/{name}").status == 200
    s3.delete_bucket(Bucket=name)
    s3.create_bucket(Bucket=name)
    s3.put_object(Bucket=name, Key="secret", Body=SECRET)
    for _ in range(8):
        refused(scoped.send("GET", f"/{name}/secret"), 403, "InvalidAccessKeyId")
        refused(scoped.send("PUT", f"/{name}/planted", None, b"x"), 403, "InvalidAccessKeyId")


def test_management_is_the_owners(scene: Scene, store: Any) -> None:
    body = json.dumps({"name": f"made-{uuid.uuid4().hex[:12]}"}).encode()
    for target in ("/_tigrislike/storage", "/_tigrislike/storage/", "/%5Ftigrislike/storage", "//_tigrislike/storage"):
        answer = scene.attacker.send("POST", target, None, body)
        assert answer.status in (400, 403, 404, 405, 307), answer
        assert b"secret_access_key" not in answer.body
        assert exchange(store, "POST", target, {"host": scene.attacker.host}, b"").status != 200
    root = Caller(store)
    for target in ("/healthz", "/readyz", "/_tigrislike", "/%68ealthz", "/readyz%2F"):
        assert root.send("PUT", target).status in (400, 404, 405)
    assert not {"healthz", "readyz", "_tigrislike"} & {row["Name"] for row in scene.owner.list_buckets()["Buckets"]}


# --- the host --------------------------------------------------------------------------------------------------------


def test_the_host_that_was_signed_is_the_bucket_that_is_meant(tmp_path: Path) -> None:
    with running_node(tmp_path / "data", "--domain=s3.example.test", "--workers=1") as node:
        root = Caller(node)
        root.send("PUT", "/victim")
        root.send("PUT", "/victim/secret", None, SECRET)
        made = json.loads(manage(node, {"name": "own"})[1])
        attacker = Caller(node, made["access_key_id"], made["secret_access_key"])
        attacker.host = "own.s3.example.test"
        assert attacker.send("PUT", "/k", None, b"mine").status == 200
        assert root.send("GET", "/own/k").body == b"mine"
        assert attacker.send("GET", "/victim/secret").code == "NoSuchKey"  # a key of `own`
        for host in ("victim.s3.example.test", "VICTIM.s3.example.test:80", "victim.S3.EXAMPLE.test"):
            attacker.host = host
            refused(attacker.send("GET", "/secret"), 403, "AccessDenied")
        attacker.host = "own.s3.example.test"
        signed = attacker.sign("GET", "/secret")
        swapped = {**signed, "host": "victim.s3.example.test"}
        refused(exchange(node, "GET", "/secret", swapped), 403, "SignatureDoesNotMatch")
        both = {**signed, "Host": "victim.s3.example.test"}
        refused(exchange(node, "GET", "/secret", both), 400, "InvalidRequest")
        # The target's authority is not signed; the Host header is.
        absolute = exchange(node, "GET", "http://victim.s3.example.test/secret", signed)
        assert absolute.status in (400, 403, 404)
        assert SECRET not in absolute.body
        for host in ("victim.s3.example.test.", "victim%2F.s3.example.test", "..s3.example.test", ".s3.example.test"):
            attacker.host = host
            answer = attacker.send("GET", "/secret")
            assert answer.status in (400, 403, 404)
            assert SECRET not in answer.body
        # The service's own paths are keys under a bucket's host.
        attacker.host = "own.s3.example.test"
        assert attacker.send("PUT", "/healthz", None, b"mine").status == 200
        assert attacker.send("GET", "/healthz").body == b"mine"
        refused(exchange(node, "POST", "/_tigrislike/storage", {"host": attacker.host}), 405, "MethodNotAllowed")


# --- forms -----------------------------------------------------------------------------------------------------------


def form(caller: Caller, url: str, key: str, conditions: list[Any], **fields: str) -> dict[str, Any]:
    """A form whose policy has just these conditions beside those of the signature, as `test_forms.post` takes it."""
    moment = now()
    credential = f"{caller.access_key_id}/{moment[:8]}/auto/s3/aws4_request"
    signature = {"x-amz-algorithm": "AWS4-HMAC-SHA256", "x-amz-credential": credential, "x-amz-date": moment}
    policy = {
        "expiration": (datetime.now(UTC) + timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "conditions": [*conditions, *({name: value} for name, value in signature.items())],
    }
    encoded = base64.b64encode(json.dumps(policy).encode()).decode()
    signed = caller._signature(moment, encoded)
    return {
        "url": url,
        "fields": {"key": key, **fields, **signature, "policy": encoded, "x-amz-signature": signed},
    }


def test_a_form_writes_to_no_other_bucket(scene: Scene, store: Any) -> None:
    url = f"{store.endpoint}/{{}}"
    any_key = ["starts-with", "$key", ""]
    for conditions in ([any_key], [any_key, {"bucket": scene.victim}], [any_key, {"bucket": scene.own}]):
        made = form(scene.attacker, url.format(scene.victim), "planted", conditions)
        assert error_code(post(store, made, b"x")) == "AccessDenied"
    elsewhere = form(scene.attacker, url.format(scene.own), "k", [any_key, {"bucket": scene.victim}])
    assert error_code(post(store, elsewhere, b"x")) == "AccessDenied"
    smuggled = form(scene.attacker, url.format(scene.own), "k", [any_key], bucket=scene.victim)
    assert error_code(post(store, smuggled, b"x")) == "AccessDenied"
    # A policy of the owner's for their own bucket, posted by somebody who has seen it.
    owners = form(Caller(store), url.format(scene.victim), "allowed", [{"key": "allowed"}, {"bucket": scene.victim}])
    assert error_code(post(store, {**owners, "url": url.format(scene.own)}, b"x")) == "AccessDenied"
    for field, value in (
        ("key", "secret"),
        ("policy", base64.b64encode(b'{"expiration":"2099-01-01T00:00:00Z","conditions":[]}').decode()),
        (
            "x-amz-credential",
            owners["fields"]["x-amz-credential"].replace(store.access_key_id, scene.keys.access_key_id),
        ),
        ("x-amz-signature", "0" * 64),
        ("x-amz-signature", "ü"),
    ):
        answer = post(store, {**owners, "fields": {**owners["fields"], field: value}}, b"x")
        assert error_code(answer) in ("AccessDenied", "SignatureDoesNotMatch"), field
    up = form(scene.attacker, url.format(scene.own), f"../{scene.victim}/secret", [any_key])
    assert post(store, up, b"x").status == 204
    copied = [any_key, ["starts-with", "$x-amz-copy-source", ""]]
    fields = {"x-amz-copy-source": f"{scene.victim}/secret"}
    assert post(store, form(scene.attacker, url.format(scene.own), "k", copied, **fields), b"mine").status == 204
    assert scene.owner.get_object(Bucket=scene.own, Key="k")["Body"].read() == b"mine"
    assert scene.intact()


def test_a_form_puts_nothing_into_response_headers(scene: Scene, store: Any) -> None:
    url = f"{store.endpoint}/{scene.own}"
    evil = "x\r\nX-Evil: 1"
    for name in (
        "x-amz-meta-a",
        "Content-Type",
        "Cache-Control",
        "Content-Disposition",
        "x-amz-website-redirect-location",
    ):
        value = f"/{evil}" if name.endswith("location") else evil
        made = form(scene.attacker, url, "k", [["starts-with", "$key", ""], ["starts-with", f"${name}", ""]])
        answer = post(store, made, b"x", **{name: value})
        assert answer.status in (204, 400)
        got = scene.attacker.send("GET", f"/{scene.own}/k")
        assert (got.status, "x-evil" in got.headers) == (200, False), name
    for name in ("x-amz-meta-a b", "x-amz-meta-ü", "x-amz-meta-a:b", "x-amz-meta-("):
        made = form(scene.attacker, url, "k", [["starts-with", "$key", ""], ["starts-with", f"${name}", ""]])
        assert error_code(post(store, made, b"x", **{name: "v"})) == "InvalidArgument"
    redirect = f"https://example.com/{evil}"
    made = form(
        scene.attacker, url, "k", [["starts-with", "$key", ""], ["starts-with", "$success_action_redirect", ""]]
    )
    answer = post(store, made, b"x", success_action_redirect=redirect)
    assert answer.headers["X-Evil"] is None


# --- presigned URLs --------------------------------------------------------------------------------------------------

QUERY_TAMPERING: dict[str, tuple[Callable[[str], str], tuple[str, ...]]] = {
    "another key": (lambda url: url.replace("/shown", "/secret"), ("SignatureDoesNotMatch",)),
    "a parameter more": (lambda url: url + "&response-content-type=text/html", ("SignatureDoesNotMatch",)),
    "a version": (lambda url: url + "&versionId=null", ("SignatureDoesNotMatch",)),
    "a subresource": (lambda url: url.replace("?", "?tagging&", 1), ("SignatureDoesNotMatch",)),
    "a copy": (lambda url: url + "&x-amz-copy-source=a/b", ("SignatureDoesNotMatch",)),
    "a longer life": (lambda url: url.replace("Expires=600", "Expires=86400"), ("SignatureDoesNotMatch",)),
    "a second life": (lambda url: url + "&X-Amz-Expires=86400", ("AuthorizationQueryParametersError",)),
    "an endless life": (
        lambda url: url.replace("Expires=600", "Expires=99999999"),
        ("AuthorizationQueryParametersError",),
    ),
    "no life": (lambda url: url.replace("&X-Amz-Expires=600", ""), ("AuthorizationQueryParametersError",)),
    "no signature": (lambda url: url[: url.index("&X-Amz-Signature")], ("AuthorizationQueryParametersError",)),
    "an empty signature": (lambda url: url[: url.index("Signature=") + 10], ("AuthorizationQueryParametersError",)),
    "a shorter signature": (lambda url: url[:-1], ("SignatureDoesNotMatch",)),
    "a signature in capitals": (
        lambda url: url[: url.index("Signature=") + 10] + url[url.index("Signature=") + 10 :].upper(),
        ("SignatureDoesNotMatch",),
    ),
    "no signed headers": (
        lambda url: url.replace("SignedHeaders=host", "SignedHeaders="),
        ("AuthorizationQueryParametersError",),
    ),
    "other signed headers": (
        lambda url: url.replace("SignedHeaders=host", "SignedHeaders=accept"),
        ("AccessDenied", "SignatureDoesNotMatch"),
    ),
    "another algorithm": (lambda url: url.replace("HMAC-SHA256", "HMAC-SHA1"), ("AuthorizationQueryParametersError",)),
    "another day": (
        lambda url: re.sub(r"Date=\d{8}", "Date=20200101", url),
        ("AuthorizationQueryParametersError", "AccessDenied"),
    ),
    "a payload declared": (
        lambda url: url + "&X-Amz-Content-Sha256=STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        ("SignatureDoesNotMatch",),
    ),
}


@pytest.mark.parametrize(("change", "codes"), QUERY_TAMPERING.values(), ids=QUERY_TAMPERING.keys())
def test_presigned_urls_cannot_be_changed(
    scene: Scene, store: Any, change: Callable[[str], str], codes: tuple[str, ...]
) -> None:
    root = Caller(store)
    scene.owner.put_object(Bucket=scene.own, Key="shown", Body=b"shown")
    scene.owner.put_object(Bucket=scene.own, Key="secret", Body=b"other")
    url = root.presign("GET", f"/{scene.own}/shown")
    plain = {"host": root.host}
    assert exchange(store, "GET", url, plain).body == b"shown"
    answer = exchange(store, "GET", change(url), plain)
    refused(answer, 400 if answer.status == 400 else 403, *codes)


def test_presigned_urls_are_for_one_method_and_no_further_headers(scene: Scene, store: Any) -> None:
    root = Caller(store)
    scene.owner.put_object(Bucket=scene.own, Key="shown", Body=b"shown")
    target = f"/{scene.own}/shown"
    plain = {"host": root.host}
    url = root.presign("GET", target)
    for method in ("PUT", "DELETE", "POST"):
        refused(
            exchange(store, method, url, plain),
            405 if method == "POST" else 403,
            "SignatureDoesNotMatch",
            "MethodNotAllowed",
        )
    assert exchange(store, "HEAD", url, plain).status == 403
    url = root.presign("PUT", target)
    for name, value in {
        "x-amz-copy-source": f"{scene.victim}/secret",
        "x-amz-acl": "public-read",
        "x-amz-meta-a": "b",
        "x-amz-tagging": "a=b",
        "x-amz-date": now(),
    }.items():
        refused(exchange(store, "PUT", url, {**plain, name: value, "content-length": "0"}), 403, "AccessDenied")
    for value in ("STREAMING-UNSIGNED-PAYLOAD-TRAILER", hashlib.sha256(b"x").hexdigest()):
        headers = {**plain, "x-amz-content-sha256": value, "content-length": "1", "x-amz-decoded-content-length": "1"}
        refused(exchange(store, "PUT", url, headers, b"x"), 403, "SignatureDoesNotMatch", "AccessDenied")
    # Two mechanisms at once: neither counts.
    both = scene.attacker.sign("GET", url)
    refused(exchange(store, "GET", url, both), 400, "InvalidArgument")
    refused(exchange(store, "GET", url, {**plain, "authorization": "AWS x:y"}), 400, "InvalidArgument")
    # A signature without its query is no signature.
    refused(exchange(store, "GET", target, plain), 403, "AccessDenied")
    assert scene.owner.get_object(Bucket=scene.own, Key="shown")["Body"].read() == b"shown"


def test_a_presigned_url_carries_the_headers_that_its_signer_wanted(scene: Scene, store: Any) -> None:
    root = Caller(store)
    target = f"/{scene.own}/hoisted?x-amz-meta-colour=blue&X-Amz-Tagging=a%3Db&x-amz-checksum-crc32=AAAAAA%3D%3D"
    url = root.presign("PUT", target + "&x-amz-sdk-checksum-algorithm=CRC32&x-amz-storage-class=STANDARD_IA")
    answer = exchange(store, "PUT", url, {"host": root.host, "content-length": "4"}, b"body")
    assert answer.status == 200
    head = scene.owner.head_object(Bucket=scene.own, Key="hoisted")
    assert (head["Metadata"], head["StorageClass"]) == ({"colour": "blue"}, "STANDARD_IA")
    assert scene.owner.get_object_tagging(Bucket=scene.own, Key="hoisted")["TagSet"] == [{"Key": "a", "Value": "b"}]
    for query in ("x-amz-meta-a%0D%0AX-Evil=1", "x-amz-meta-%C3%BC=1", "x-amz-meta-a%3Ab=1"):
        url = root.presign("PUT", f"/{scene.own}/hoisted?{query}")
        answer = exchange(store, "PUT", url, {"host": root.host, "content-length": "4"}, b"body")
        refused(answer, 400, "InvalidArgument")


# --- signed headers --------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(scene: Scene, store: Any) -> tuple[str, dict[str, str], bytes]:
    """A request of the owner's that the attacker has seen: its target, headers and body."""
    target = f"/{scene.own}/seen"
    body = b"what the owner sent"
    headers = {"content-length": str(len(body)), "x-amz-meta-a": "b"}
    return target, Caller(store).sign("PUT", target, headers, payload=hashlib.sha256(body).hexdigest()), body


def test_a_signed_body_cannot_be_replaced(seen: tuple[str, dict[str, str], bytes], store: Any, scene: Scene) -> None:
    target, headers, body = seen
    other = body.upper()
    digest = "x-amz-content-sha256"
    refused(exchange(store, "PUT", target, headers, other), 400, "XAmzContentSHA256Mismatch")
    for value in (UNSIGNED, STREAMING_UNSIGNED_TRAILER, STREAMING_SIGNED, hashlib.sha256(other).hexdigest()):
        changed = {**headers, digest: value, "x-amz-decoded-content-length": "5"}
        refused(exchange(store, "PUT", target, changed, other), 403, "SignatureDoesNotMatch", "AccessDenied")
        changed.pop("x-amz-decoded-content-length")
        refused(exchange(store, "PUT", target, changed, other), 403, "SignatureDoesNotMatch")
    without = {name: value for name, value in headers.items() if name != digest}
    refused(exchange(store, "PUT", target, without, other), 403, "SignatureDoesNotMatch")
    twice = {**headers, "X-Amz-Content-SHA256": UNSIGNED}
    refused(exchange(store, "PUT", target, twice, other), 400, "InvalidArgument")
    assert exchange(store, "PUT", target, headers, body).status == 200
    assert scene.owner.get_object(Bucket=scene.own, Key="seen")["Body"].read() == body


def test_a_signed_request_cannot_be_redirected(
    seen: tuple[str, dict[str, str], bytes], store: Any, scene: Scene
) -> None:
    target, headers, body = seen
    for elsewhere in (
        f"/{scene.victim}/seen",
        f"/{scene.own}/other",
        f"{target}/",
        f"/{target}",
        f"{target}?tagging",
        f"{target}?versionId=null",
        target.replace("seen", "se%65n%00"),
        target.replace("seen", "Seen"),
    ):
        answer = exchange(store, "PUT", elsewhere, headers, body)
        refused(answer, 400 if elsewhere.startswith("//") else 403, "SignatureDoesNotMatch", "InvalidBucketName")
    for name, value in (("x-amz-meta-a", "c"), ("x-amz-date", now()[:-2] + "0Z"), ("host", "elsewhere")):
        if headers[name] != value:
            refused(exchange(store, "PUT", target, {**headers, name: value}, body), 403, "SignatureDoesNotMatch")
    for name, value in (("x-amz-acl", "public-read"), ("x-amz-copy-source", f"{scene.victim}/secret")):
        refused(exchange(store, "PUT", target, {**headers, name: value}, body), 403, "AccessDenied")
    for method in ("GET", "DELETE"):
        refused(exchange(store, method, target, headers, body), 403, "SignatureDoesNotMatch")
    forged = headers["authorization"].replace(store.access_key_id, scene.keys.access_key_id)
    refused(exchange(store, "PUT", target, {**headers, "authorization": forged}, body), 403, "SignatureDoesNotMatch")
    assert scene.intact()


def test_requests_of_another_time_are_refused(store: Any, scene: Scene) -> None:
    root = Caller(store)
    for minutes in (-16, 16, -60 * 24 * 400):
        moment = (datetime.now(UTC) + timedelta(minutes=minutes)).strftime("%Y%m%dT%H%M%SZ")
        headers = root.sign("GET", f"/{scene.victim}/secret", moment=moment)
        refused(exchange(store, "GET", f"/{scene.victim}/secret", headers), 403, "RequestTimeTooSkewed")


def test_unsigned_amz_headers_are_refused(store: Any, scene: Scene) -> None:
    root = Caller(store)
    target = f"/{scene.own}/k"
    headers = root.sign("PUT", target, {"x-amz-acl": "public-read"}, payload=UNSIGNED, unsigned={"x-amz-acl"})
    refused(exchange(store, "PUT", target, headers | {"content-length": "0"}), 403, "AccessDenied")
    headers = root.sign("PUT", target, payload=UNSIGNED, unsigned={"host"})
    refused(exchange(store, "PUT", target, headers | {"content-length": "0"}), 403, "AccessDenied")


def test_chunks_are_worth_nothing_in_another_request(store: Any, scene: Scene) -> None:
    root = Caller(store)
    pieces = [b"first chunk" * 1000, b"second chunk"]
    size = {"x-amz-decoded-content-length": str(sum(map(len, pieces)))}
    seen = root.sign("PUT", f"/{scene.own}/seen", size, payload=STREAMING_SIGNED)
    body = b"".join(root.chunks(seen, pieces))
    length = {"content-length": str(len(body))}
    for target, caller in ((f"/{scene.own}/other", root), (f"/{scene.own}/mine", scene.attacker)):
        headers = caller.sign("PUT", target, size, payload=STREAMING_SIGNED)
        refused(exchange(store, "PUT", target, headers | length, body), 403, "SignatureDoesNotMatch")
    assert exchange(store, "PUT", f"/{scene.own}/seen", seen | length, body).status == 200


# --- in somebody's name ----------------------------------------------------------------------------------------------


def begin(node: Any, caller: Caller, held: contextlib.ExitStack, *, digest: str = "") -> Any:
    """A PUT whose body is asked for and never comes, signed by `caller`; without a digest, the node has to read it
    before it can check the signature."""
    headers = {"content-length": "1000", "expect": "100-continue"}
    signed = caller.sign("PUT", "/bucket/k", headers, payload=digest or UNSIGNED)
    if not digest:
        del signed["x-amz-content-sha256"]
    connection = held.enter_context(contextlib.closing(connect(node)))
    connection.sendall(head_of("PUT", "/bucket/k", signed))
    return connection


def continued(connection: Any) -> bool:
    """Whether the node asks for the body, so has let the request in; otherwise it answers."""
    start: bytes = connection.recv(12, socket.MSG_WAITALL)
    return start == b"HTTP/1.1 100"


def test_nobody_uses_up_the_share_of_a_key_that_is_not_theirs(tmp_path: Path) -> None:
    flags = ("--max-requests=16", "--max-requests-per-key=8", "--workers=1")
    with running_node(tmp_path / "data", *flags) as node, contextlib.ExitStack() as held:
        root = Caller(node)
        root.send("PUT", "/bucket")
        root.send("PUT", "/bucket/k", None, b"here")
        # Keys that are made up are refused before the body, and count for nothing.
        for number in range(40):
            answer = read_answer(begin(node, Caller(node, f"invented-{number}", "secret"), held), "PUT")
            refused(answer, 403, "InvalidAccessKeyId")
        # A known key's id with a signature that will turn out to be wrong: two bodies may wait, and none of root's.
        forger = Caller(node, root.access_key_id, "not the secret")
        assert [continued(begin(node, forger, held)) for _ in range(12)] == [True] * 2 + [False] * 10
        # All that a key may have at once, it has.
        assert [continued(begin(node, root, held, digest=UNSIGNED)) for _ in range(7)] == [True] * 7
        assert root.send("GET", "/bucket/k").body == b"here"


def test_a_wrong_signature_over_a_body_without_a_digest_is_found_out(store: Any, scene: Scene) -> None:
    forger = Caller(store, store.access_key_id, "not the secret")
    for _ in range(100):  # more than may wait at once: each gives back what it held
        signed = forger.sign("PUT", f"/{scene.victim}/planted", {"content-length": "5"}, payload=UNSIGNED)
        del signed["x-amz-content-sha256"]
        refused(exchange(store, "PUT", f"/{scene.victim}/planted", signed, b"12345"), 403, "SignatureDoesNotMatch")
    assert scene.intact()


# --- without a key ---------------------------------------------------------------------------------------------------


def targets(bucket: str) -> list[tuple[str, str, str]]:
    """(operation, method, target) of every operation of the model."""
    found = []
    for name in load_operations().keys() | {"GetBucketAcl", "PutBucketPolicy", "GetObjectRetention"}:
        operation = load_protocol()[name]
        flags = [f"{flag}={value}" if value else flag for flag, value in operation.uri_query.items()]
        flags += [f"{flag}=1" for flag in operation.required_query if flag not in operation.uri_query]
        path = {"service": "/", "bucket": f"/{bucket}", "object": f"/{bucket}/k"}[operation.level]
        found.append((name, operation.method, path + ("?" + "&".join(flags) if flags else "")))
    return sorted(found)


@pytest.mark.parametrize("public", [False, True], ids=["private", "public"])
def test_without_a_key_nothing_is_done(store: Any, s3: Any, public: bool) -> None:
    bucket = f"open-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=bucket, ACL="public-read" if public else "private")
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    old = s3.put_object(Bucket=bucket, Key="k", Body=SECRET)["VersionId"]
    s3.put_object(Bucket=bucket, Key="k", Body=b"published")
    host = {"host": Caller(store).host}
    for name, method, target in targets(bucket):
        headers = {**host, "x-amz-object-attributes": "ETag"}
        if name in ("CopyObject", "UploadPartCopy"):
            headers["x-amz-copy-source"] = f"{bucket}/k"
        answer = exchange(store, method, target, headers | ({"content-length": "0"} if method != "GET" else {}))
        if public and name in ("GetObject", "HeadObject"):
            assert (answer.status, answer.body) == (200, b"published" if method == "GET" else b"")
        elif method == "HEAD":
            assert answer.status == 403
        else:
            refused(answer, 403, "AccessDenied")
    refused(exchange(store, "GET", f"/{bucket}/k?versionId={old}", host), 403, "AccessDenied")
    refused(exchange(store, "GET", "/nobody-has-this-bucket/k", host), 404, "NoSuchBucket")
    url = f"{store.endpoint}/{bucket}"
    assert error_code(post(store, {"url": url, "fields": {"key": "planted"}}, b"x")) == "AccessDenied"
    empty = {"authorization": ""}
    assert exchange(store, "PUT", f"/{bucket}/planted", {**host, **empty, "content-length": "0"}).status in (400, 403)
    listed = s3.list_object_versions(Bucket=bucket)
    assert [row["Key"] for row in listed["Versions"]] == ["k", "k"]
    assert "DeleteMarkers" not in listed


# --- keys ------------------------------------------------------------------------------------------------------------

STRANGE = [
    "\0",
    "a",
    "a\0",
    "a\0\0",
    "a\0\xff",
    "a\0b",
    "a\x01",
    "a\x00\x01",
    "a\x02",
    "a\xff",
    "a\uffff",
    "a\U0010ffff",
    "..",
    ".",
    "/",
    "//",
    "a/",
    "a/../b",
    "\\",
    "%2e%2e%2f",
    "\x15\x16\x14",
    "current",
    "\x02bucket\x00",
]


def test_strange_keys_are_keys_like_any_other(scene: Scene, make_bucket: Callable[[], str]) -> None:
    """Whatever the database's own keys look like, no object's key reaches beyond its bucket."""
    s3 = scene.owner
    first, second = make_bucket(), make_bucket()
    for key in STRANGE:
        s3.put_object(Bucket=first, Key=key, Body=f"first {key}".encode())
    s3.put_object(Bucket=second, Key="a\0secret", Body=SECRET)
    by_bytes = sorted(STRANGE, key=str.encode)
    listed = [row["Key"] for row in s3.list_objects_v2(Bucket=first)["Contents"]]
    assert listed == by_bytes
    for key in STRANGE:
        assert s3.get_object(Bucket=first, Key=key)["Body"].read() == f"first {key}".encode()
        page = s3.list_objects_v2(Bucket=first, Prefix=key)
        assert [row["Key"] for row in page["Contents"]] == [name for name in by_bytes if name.startswith(key)]
        page = s3.list_objects_v2(Bucket=first, StartAfter=key)
        after = [name for name in by_bytes if name.encode() > key.encode()]
        assert [row["Key"] for row in page.get("Contents", [])] == after
    for key in STRANGE:
        s3.delete_object(Bucket=first, Key=key)
    assert "Contents" not in s3.list_objects_v2(Bucket=first)
    assert [row["Key"] for row in s3.list_objects_v2(Bucket=second)["Contents"]] == ["a\0secret"]
