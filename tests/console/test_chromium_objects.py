"""Uploads, copies and deletions in the console by its script, in Chromium."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.environments import Client, client
from tests.nodes import RunningNode, running_node

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CHROMIUM = Path("/usr/bin/chromium")
PROGRAM = "console_objects.py"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    if not CHROMIUM.exists():
        pytest.skip(f"Debian's chromium is not installed: there is no {CHROMIUM}")
    with running_node(tmp_path / "data") as node:
        yield node


@pytest.fixture
def chromium(node: RunningNode, tmp_path: Path) -> Client:
    return client("console", node, tmp_path)


def s3_of(node: RunningNode) -> Any:
    return node.client(signature_version="s3v4")


def test_uploads_go_up_whole_and_in_parts_and_come_down_the_same(
    node: RunningNode, chromium: Client, tmp_path: Path
) -> None:
    s3 = s3_of(node)
    s3.create_bucket(Bucket="bucket")
    folder = tmp_path / "files"
    folder.mkdir()
    large = random.Random(1).randbytes(150 << 20)
    contents = {"a.txt": b"text", "b.bin": large, "c d+e.bin": b"", "d.bin": large[: 2 << 20]}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    print(chromium.case(PROGRAM, "uploads", node.endpoint, "bucket", str(folder)))
    for prefix in ("in/", "parts/"):
        for name, data in contents.items():
            if (prefix, name) != ("in/", "a.txt"):  # which was deleted in the end
                found = s3.get_object(Bucket="bucket", Key=prefix + name)
                assert found["Body"].read() == data
                parts = {"b.bin": "-3", "d.bin": "-1"}.get(name, "") if prefix == "parts/" else ""
                assert found["ETag"].strip('"')[32:] == parts
    listed = s3.list_objects_v2(Bucket="bucket", Prefix="broken/")
    assert [each["Key"] for each in listed["Contents"]] == ["broken/d.bin"]
    assert s3.list_multipart_uploads(Bucket="bucket").get("Uploads", []) == []
