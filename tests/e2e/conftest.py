"""Clients and buckets for the end-to-end tests, against the node of the `store` fixture."""

from __future__ import annotations

import http.client
import ssl
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config

from tests.nodes import RunningNode


def client(store: Any, **config: Any) -> Any:
    """A boto3 S3 client of the node, as a user with the root key makes one (no retries: a test wants to see errors)."""
    settings = {"retries": {"total_max_attempts": 1}, "max_pool_connections": 50, **config}
    return boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        aws_access_key_id=store.access_key_id,
        aws_secret_access_key=store.secret_access_key,
        region_name="auto",
        verify=getattr(store, "ca_bundle", None),
        config=Config(**settings),
    )


def anonymous(store: Any) -> Any:
    """A boto3 S3 client that signs nothing."""
    return boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        region_name="auto",
        verify=getattr(store, "ca_bundle", None),
        config=Config(signature_version=UNSIGNED, retries={"total_max_attempts": 1}),
    )


@pytest.fixture(scope="session", params=["http", pytest.param("https", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, plain_store: RunningNode, tls_store: RunningNode) -> RunningNode:
    """Every end-to-end test runs over http, and as a slow one over https, where clients send bodies differently."""
    return plain_store if request.param == "http" else tls_store


@pytest.fixture(scope="session")
def s3(store: Any) -> Iterator[Any]:
    made = client(store)
    yield made
    made.close()


@pytest.fixture(scope="session")
def s3_unvalidated(store: Any) -> Iterator[Any]:
    """A client that sends whatever bucket name it is given."""
    made = client(store, s3={"addressing_style": "path"}, parameter_validation=False)
    made.meta.events.unregister("before-parameter-build.s3", _validator(made))
    yield made
    made.close()


def _validator(made: Any) -> Any:
    from botocore.handlers import validate_bucket_name

    return validate_bucket_name


@pytest.fixture(scope="session")
def make_bucket(s3: Any) -> Callable[[], str]:
    """Makes a fresh bucket and returns its name."""

    def make() -> str:
        name = f"test-{uuid.uuid4().hex[:20]}"
        s3.create_bucket(Bucket=name)
        return name

    return make


@pytest.fixture
def bucket(make_bucket: Callable[[], str]) -> str:
    return make_bucket()


def fetch(
    store: Any, method: str, url: str, headers: dict[str, str] | None = None, body: bytes | None = None
) -> tuple[int, bytes]:
    """One plain HTTP request; status and body."""
    parts = urlsplit(url)
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=store.ca_bundle)
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(parts.netloc, context=context)
    else:
        connection = http.client.HTTPConnection(parts.netloc)
    try:
        connection.request(method, url[url.index(parts.netloc) + len(parts.netloc) :], body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
