"""Access keys in the console: a secret is on one page, once, and what was done is in the audit log."""

from __future__ import annotations

import asyncio
import contextlib
import html
import re
from typing import Any

import boto3
import pytest
from botocore.config import Config

from tests.nodes import RunningNode
from tigrislike.admin.client import RemoteApi

from .browser import Answer, Browser


@pytest.fixture
def operator(plain_store: RunningNode) -> Browser:
    browser = Browser(plain_store.endpoint)
    assert browser.sign_in(plain_store.access_key_id, plain_store.secret_access_key).status == 303
    return browser


def call(node: RunningNode, name: str, **arguments: Any) -> Any:
    api = RemoteApi(node.endpoint, node.access_key_id, node.secret_access_key)
    try:
        return asyncio.run(api.call(name, **arguments))
    finally:
        api.close()


def pair(answer: Answer) -> tuple[str, str]:
    """The key id and secret that a page shows."""
    assert answer.status == 200, answer.text
    key_id = re.search('id="made-id" value="([^"]*)"', answer.text)
    secret = re.search('id="made-secret" value="([^"]*)"', answer.text)
    assert key_id is not None
    assert secret is not None
    return html.unescape(key_id[1]), html.unescape(secret[1])


def client_of(node: RunningNode, key: tuple[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=node.endpoint,
        aws_access_key_id=key[0],
        aws_secret_access_key=key[1],
        region_name="auto",
        config=Config(retries={"total_max_attempts": 1}),
    )


def may_list(node: RunningNode, key: tuple[str, str]) -> bool:
    with contextlib.closing(client_of(node, key)) as client, contextlib.suppress(client.exceptions.ClientError):
        client.list_buckets()
        return True
    return False


def test_a_key_is_made_rotated_and_revoked(plain_store: RunningNode, operator: Browser) -> None:
    made = operator.send(operator.get("/keys/create"), "/keys/create")
    key = pair(made)
    assert may_list(plain_store, key)
    listed = operator.get("/keys")
    assert key[0] in listed.html.text
    assert key[1] not in listed.text
    rotated = operator.send(operator.get(f"/keys/{key[0]}/rotate"), f"/keys/{key[0]}/rotate")
    successor = pair(rotated)
    assert not may_list(plain_store, key)
    assert may_list(plain_store, successor)
    done = operator.send(operator.get(f"/keys/{successor[0]}/revoke"), f"/keys/{successor[0]}/revoke")
    assert f"Key {successor[0]} was revoked." in operator.follow(done).html.text
    assert not may_list(plain_store, successor)
    entries = call(plain_store, "audit", limit=20).entries
    noted = [(row.action, row.outcome, row.who) for row in entries if key[0] in row.arguments]
    assert noted == [("rotate_key", "done", plain_store.access_key_id)]
    noted = [(row.action, row.outcome) for row in entries if successor[0] in row.arguments]
    assert noted == [("revoke_key", "done")]
    assert entries[-1].at <= entries[0].at
    assert all(secret not in row.arguments for row in entries for secret in (key[1], successor[1]))


def test_a_key_for_one_bucket_and_one_for_the_store(plain_store: RunningNode, operator: Browser) -> None:
    asked = operator.get("/keys/create")
    scoped = operator.send(asked, "/keys/create", bucket="no-such-bucket")
    assert scoped.status in (400, 404)
    assert "bucket does not exist" in scoped.html.text
    assert "made-secret" not in scoped.text
    client = client_of(plain_store, (plain_store.access_key_id, plain_store.secret_access_key))
    client.create_bucket(Bucket="a-key-of-its-own")
    client.close()
    made = operator.send(asked, "/keys/create", bucket="a-key-of-its-own")
    assert "It reaches bucket a-key-of-its-own only" in made.html.text
    assert may_list(plain_store, pair(made))
    csrf = asked.html.csrf
    admin = pair(operator.post("/keys/create", {"csrf": csrf, "admin": "1"}))
    assert Browser(plain_store.endpoint).sign_in(*admin).status == 303
    plain = pair(operator.post("/keys/create", {"csrf": csrf}))
    assert Browser(plain_store.endpoint).sign_in(*plain).status == 403


def test_a_rotation_may_leave_the_old_key(plain_store: RunningNode, operator: Browser) -> None:
    csrf = operator.get("/keys").html.csrf
    key = pair(operator.post("/keys/create", {"csrf": csrf}))
    successor = pair(operator.post(f"/keys/{key[0]}/rotate", {"csrf": csrf, "keep": "1"}))
    assert may_list(plain_store, key)
    assert may_list(plain_store, successor)


def test_whoever_rotates_their_own_key_is_told_and_signs_in_with_the_new_one(
    plain_store: RunningNode, operator: Browser
) -> None:
    csrf = operator.get("/keys").html.csrf
    key = pair(operator.post("/keys/create", {"csrf": csrf, "admin": "1"}))
    browser = Browser(plain_store.endpoint)
    browser.sign_in(*key)
    asked = browser.get(f"/keys/{key[0]}/rotate")
    assert "You are signed in with it" in asked.html.text
    successor = pair(browser.send(asked, f"/keys/{key[0]}/rotate"))
    assert browser.get("/keys").status == 303
    assert Browser(plain_store.endpoint).sign_in(*successor).status == 303


def test_the_root_key_and_keys_that_are_not_there_are_refused(plain_store: RunningNode, operator: Browser) -> None:
    csrf = operator.get("/keys").html.csrf
    root = plain_store.access_key_id
    assert f"/keys/{root}/revoke" not in operator.get("/keys").text
    for key, status in ((root, (400, 403, 409)), ("nobody", (404,))):
        for action in ("rotate", "revoke"):
            answer = operator.post(f"/keys/{key}/{action}", {"csrf": csrf})
            assert answer.status in status, (key, action)
            assert "made-secret" not in answer.text
    assert operator.get("/").status == 200


def test_nothing_is_done_without_the_token(plain_store: RunningNode, operator: Browser) -> None:
    before = call(plain_store, "keys").keys
    for path in ("/keys/create", f"/keys/{before[0].key_id}/rotate", f"/keys/{before[0].key_id}/revoke"):
        assert operator.post(path, {"admin": "1"}).status == 403
    assert call(plain_store, "keys").keys == before
