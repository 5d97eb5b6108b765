"""Buckets for the client tests, and boto3 to look from outside at what a client did."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.nodes import RunningNode


@pytest.fixture
def s3(either_store: RunningNode) -> Iterator[Any]:
    """boto3 with the settings that a user has who only pastes the exports."""
    made = either_store.client()
    yield made
    made.close()


@pytest.fixture
def bucket(s3: Any) -> str:
    name = f"client-{uuid.uuid4().hex[:20]}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def keys(s3: Any, bucket: str) -> Any:
    """A call that lists the bucket: key -> size."""

    def listed() -> dict[str, int]:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", [])}

    return listed
