"""The admin API on a running node, over real sockets: who may call it, where it is, what it refuses and how."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.nodes import RunningNode, running_node
from tigrislike.admin.api import ENDPOINTS, PREFIX
from tigrislike.admin.client import RemoteApi, every
from tigrislike.admin.desk import AdminError
from tigrislike.admin.openapi import document

ROUTES = [(endpoint.method, endpoint.path) for endpoint in ENDPOINTS.values()] + [("GET", "openapi.json")]


def example(path: str) -> str:
    """A path with something in place of its parameters."""
    return PREFIX + path.format(item="00.00", bucket="nothing", key_id="nobody")


class Signer(SigV4Auth):
    """S3's paths are signed as they are sent."""

    def _normalize_url_path(self, path: str) -> str:
        return path


class Caller:
    """Sends requests to a node, signed in one way or not at all."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self.base = f"{parts.scheme}://{parts.netloc}"
        self.netloc = parts.netloc

    def ask(
        self, method: str, path: str, key: tuple[str, str] | None = None, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        sent = {"Host": self.netloc, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if key is not None:
            request = AWSRequest(method, self.base + path, data=body, headers=sent)
            Signer(Credentials(*key), "s3", "auto").add_auth(request)
            sent = dict(request.headers.items())
        connection = http.client.HTTPConnection(self.netloc, timeout=30)
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        kind = response.headers.get("content-type", "")
        return (
            response.status,
            dict(response.headers),
            json.loads(text) if text and kind == "application/json" else text,
        )


@pytest.fixture(scope="module")
def caller(store: RunningNode) -> Caller:
    return Caller(store.endpoint)


@pytest.fixture
def api(store: RunningNode) -> Iterator[RemoteApi]:
    api = RemoteApi(store.endpoint, store.access_key_id, store.secret_access_key)
    yield api
    api.close()


def call(api: RemoteApi, name: str, **arguments: Any) -> Any:
    return asyncio.run(api.call(name, **arguments))


def root(node: RunningNode) -> tuple[str, str]:
    return node.access_key_id, node.secret_access_key


def test_every_route_refuses_everybody_but_admins(store: RunningNode, caller: Caller, api: RemoteApi) -> None:
    bucket = "of-a-scoped-key"
    s3(store).create_bucket(Bucket=bucket)
    scoped, plain = call(api, "create_key", bucket=bucket), call(api, "create_key")
    revoked = call(api, "create_key", admin=True)
    call(api, "revoke_key", key_id=revoked.key_id)
    before = call(api, "audit", limit=1).entries[0].id
    strangers: dict[str, tuple[tuple[str, str] | None, str]] = {
        "anonymous": (None, "AccessDenied"),
        "unknown key": (("tid_nobody", "s" * 40), "InvalidAccessKeyId"),
        "wrong secret": ((store.access_key_id, "s" * 40), "SignatureDoesNotMatch"),
        "no admin": ((plain.key_id, plain.secret), "AccessDenied"),
        "scoped": ((scoped.key_id, scoped.secret), "AccessDenied"),
        "revoked": ((revoked.key_id, revoked.secret), "InvalidAccessKeyId"),
    }
    for method, path in [*ROUTES, ("GET", "nothing/of/the/kind"), ("PUT", "overview")]:
        for who, (key, code) in strangers.items():
            status, headers, answer = caller.ask(method, example(path), key)
            assert (status, answer["code"]) == (403, code), (method, path, who)
            assert answer["request_id"] == headers["x-amz-request-id"]
            assert headers["x-content-type-options"] == "nosniff"
            assert set(answer) == {"code", "message", "request_id"}
    assert call(api, "audit", limit=1).entries[0].id == before, "nothing of it was done"


def test_every_route_answers_an_admin(store: RunningNode, caller: Caller, api: RemoteApi) -> None:
    key = call(api, "create_key", admin=True)
    answers = {(method, path): caller.ask(method, example(path), (key.key_id, key.secret)) for method, path in ROUTES}
    for (method, path), (status, headers, answer) in answers.items():
        assert headers["content-type"] == "application/json"
        assert headers["cache-control"] == "no-store"
        assert status in (200, 400, 404), (method, path, answer)
        if status != 200:
            assert answer["code"] in ("InvalidArgument", "NoSuchItem", "NoSuchBucket", "NoSuchAccessKey"), (
                path,
                answer,
            )
    assert answers["GET", "overview"][2]["health"] in ("ok", "attention", "stuck")  # before its beats
    assert answers["GET", "openapi.json"][2] == json.loads(json.dumps(document()))


def test_links_and_unsigned_bodies_do_not_count(store: RunningNode, caller: Caller) -> None:
    request = AWSRequest("GET", f"{store.endpoint}{PREFIX}overview")
    S3SigV4QueryAuth(Credentials(*root(store)), "s3", "auto", 60).add_auth(request)
    parts = urlsplit(request.url)
    status, _, answer = caller.ask("GET", f"{parts.path}?{parts.query}")
    assert (status, answer["code"]) == (403, "AccessDenied")
    path = PREFIX + "queue/pause"
    unsigned = {"X_Amz_Content_SHA256": "UNSIGNED-PAYLOAD"}
    status, _, answer = caller.ask("POST", path, root(store), b'{"task":"x"}', **unsigned)
    assert (status, answer["code"]) == (403, "AccessDenied")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "overview/", b"", 404, "NotFound"),
        ("GET", "", b"", 404, "NotFound"),
        ("GET", "line%0Aend", b"", 404, "NotFound"),
        ("PUT", "overview", b"", 405, "MethodNotAllowed"),
        ("HEAD", "overview", b"", 405, None),
        ("POST", "openapi.json", b"", 405, "MethodNotAllowed"),
        ("GET", "queue/items?limit=0", b"", 400, "InvalidArgument"),
        ("GET", "queue/items?limit=many", b"", 400, "InvalidArgument"),
        ("GET", "queue/items?colour=red", b"", 400, "InvalidArgument"),
        ("GET", "queue/items?state=odd", b"", 400, "InvalidArgument"),
        ("GET", "queue/items?cursor=abc", b"", 400, "InvalidCursor"),
        ("GET", "queue/items?cursor=%21", b"", 400, "InvalidArgument"),
        ("GET", "queue/items?zone=none%2Fsuch", b"", 404, "NoSuchZone"),
        ("GET", "queue/zone", b"", 400, "InvalidArgument"),
        ("GET", "queue/items/" + "0" * 600, b"", 400, "InvalidArgument"),
        ("POST", "queue/pause", b"[]", 400, "InvalidArgument"),
        ("POST", "queue/pause", b"{", 400, "InvalidArgument"),
        ("POST", "queue/pause", b'{"task":1}', 400, "InvalidArgument"),
        ("POST", "queue/pause?task=x", b"", 400, "InvalidArgument"),
        ("POST", "queue/items/00.00/delay", b'{"seconds":-1}', 400, "InvalidArgument"),
        ("POST", "queue/items/00.00/delay", b'{"seconds":1,"item":"11.11"}', 400, "InvalidArgument"),
        ("POST", "queue/pause", b" " * 70_000, 400, "EntityTooLarge"),
    ],
)
def test_what_makes_no_sense_is_refused(
    store: RunningNode, caller: Caller, method: str, path: str, body: bytes, status: int, code: str | None
) -> None:
    found, headers, answer = caller.ask(method, PREFIX + path, root(store), body)
    assert found == status, answer
    if code is not None:
        assert answer["code"] == code
    if status == 405:
        assert headers["allow"] == "GET"


def test_what_is_changed_is_in_the_audit_log(store: RunningNode, caller: Caller, api: RemoteApi) -> None:
    admin = call(api, "create_key", admin=True)
    other = RemoteApi(store.endpoint, admin.key_id, admin.secret)
    with pytest.raises(AdminError, match="there is no item"):
        call(other, "drop", item="00.00")
    other.close()
    status, headers, made = caller.ask("POST", PREFIX + "keys", (admin.key_id, admin.secret))
    assert status == 200
    entries = call(api, "audit", limit=2).entries
    assert [(entry.who, entry.where, entry.action) for entry in entries] == [
        (admin.key_id, "127.0.0.1", "create_key"),
        (admin.key_id, "127.0.0.1", "drop"),
    ]
    assert entries[0].outcome == "done"
    assert entries[1].outcome == "refused: NoSuchItem: there is no item 00.00: it may be done"
    assert entries[0].request == headers["x-amz-request-id"]
    for secret in (admin.secret, made["secret"]):
        assert secret not in store.log.read_text()
        assert secret not in str(entries)


def test_storage_that_a_node_makes_is_in_the_audit_log(store: RunningNode, caller: Caller, api: RemoteApi) -> None:
    for status, outcome in ((200, "done"), (409, "failed: BucketAlreadyOwnedByYou: ")):
        body = json.dumps({"name": "noted-storage"}).encode()
        got, headers, made = caller.ask("POST", "/_tigrislike/storage", root(store), body)
        assert got == status
        entry = call(api, "audit", limit=1).entries[0]
        assert (entry.who, entry.where, entry.action) == (store.access_key_id, "127.0.0.1", "create_storage")
        assert json.loads(entry.arguments)["name"] == "noted-storage"
        assert entry.request == headers["x-amz-request-id"]
        assert entry.outcome.startswith(outcome)
        if status == 200:
            assert made["secret_access_key"] not in str(entry)


async def _names(api: RemoteApi) -> set[str]:
    return {row.name async for row in every(api, "buckets", "buckets", limit=1)}


def test_pages_go_on_where_they_ended(store: RunningNode, api: RemoteApi) -> None:
    names = {f"paged-{number}" for number in range(3)}
    for name in names:
        s3(store).create_bucket(Bucket=name)
    assert names <= asyncio.run(_names(api))


def test_under_a_bucket_of_a_virtual_host_no_path_is_the_apis(tmp_path: Path) -> None:
    with running_node(tmp_path / "data", "--domain=s3.test") as node:
        s3(node).create_bucket(Bucket="abc")
        s3(node).put_object(Bucket="abc", Key=PREFIX[1:] + "overview", Body=b"mine")
        caller = Caller(node.endpoint)
        caller.netloc, address = "abc.s3.test", caller.netloc
        request = AWSRequest("GET", f"http://abc.s3.test{PREFIX}overview", headers={"Host": "abc.s3.test"})
        SigV4Auth(Credentials(*root(node)), "s3", "auto").add_auth(request)
        connection = http.client.HTTPConnection(address, timeout=30)
        connection.request("GET", f"{PREFIX}overview", headers=dict(request.headers.items()))
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"mine")
        connection.close()


def test_with_a_listener_of_its_own_it_is_nowhere_else(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    flags = "--admin-listen=127.0.0.1:0", "--slow-request=1ms", "--workers=3"
    with running_node(tmp_path / "data", *flags, facts_to=ready) as node:
        admin_endpoint = json.loads(ready.read_text())["admin_endpoint"]
        assert admin_endpoint != node.endpoint
        status, _, _ = Caller(node.endpoint).ask("GET", PREFIX + "overview", root(node))
        assert status == 404
        own = Caller(admin_endpoint)
        status, _, answer = own.ask("GET", PREFIX + "overview", root(node))
        assert (status, answer["regions"][0]["region"]) == (200, "local")
        status, _, _ = own.ask("GET", "/healthz")
        assert status == 404, "nothing else is served there"
        status, _, answer = own.ask("GET", PREFIX + "overview")
        assert (status, answer["code"]) == (403, "AccessDenied")
        s3(node).create_bucket(Bucket="slow")
        for number in range(12):
            s3(node).put_object(Bucket="slow", Key=f"key-{number}", Body=b"x" * 200_000)
        api = RemoteApi(admin_endpoint, *root(node))
        wanted = {f"/slow/key-{number}" for number in range(12)}
        deadline_s = time.monotonic() + 60
        while True:  # a request is noted once it is over, which its client may know first
            slow = call(api, "slow")
            puts = [each for each in slow.requests if each.operation == "PutObject"]
            if {each.path for each in puts} == wanted:
                break
            assert time.monotonic() < deadline_s, "of all workers"
        assert slow.threshold_s == 0.001
        assert all(each.seconds >= 0.001 and each.access_key == node.access_key_id for each in puts)
        assert [each.at for each in slow.requests] == sorted((each.at for each in slow.requests), reverse=True)
        settings = {row.name: row.value for row in call(api, "settings").settings}
        assert settings["slow-request"] == "0.001"
        assert settings["root-secret-key"] == ""
        caches = call(api, "caches")
        assert caches.here.node == caches.nodes[0].node
        api.close()


def test_an_address_that_is_taken_is_refused_at_start(tmp_path: Path, store: RunningNode) -> None:
    with (
        pytest.raises(AssertionError, match=r"cannot listen on 127\.0\.0\.1 port"),
        running_node(tmp_path / "data", f"--admin-listen=127.0.0.1:{store.port}"),
    ):
        pass


def s3(node: RunningNode) -> Any:
    return node.client(s3={"addressing_style": "path"})
