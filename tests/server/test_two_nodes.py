"""Two nodes with disks of their own over one FoundationDB: what they share, and what only one of them has."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.clusters import fresh_url
from tests.e2e.conftest import client
from tests.nodes import RunningNode, start_node
from tests.server.test_cli import tigris

pytestmark = pytest.mark.fdb

LARGE = 20_000_000
"""Three blocks."""

SETTLE_TIMEOUT_S = 30.0


class Pair:
    """Nodes `east` and `west`, started at the same moment over an empty place in the cluster."""

    def __init__(self, directory: Path, url: str) -> None:
        self.key = directory / "master.key"
        self.key.touch(mode=0o600)
        self.key.write_text(base64.b64encode(os.urandom(32)).decode())
        self.url = url
        self.directory = directory
        with ThreadPoolExecutor() as threads:
            starts = [threads.submit(self.start, region) for region in ("east", "west")]
        self.east, self.west = (start.result() for start in starts)

    @property
    def nodes(self) -> list[RunningNode]:
        return [self.east, self.west]

    def flags(self, region: str) -> tuple[str, ...]:
        return f"--metadata={self.url}", f"--master-key-file={self.key}", f"--region={region}"

    def start(self, region: str) -> RunningNode:
        return start_node(self.directory / region, *self.flags(region), "--reclaim-grace=0", "--disk-reserve=0")

    def restart(self, region: str) -> None:
        setattr(self, region, self.start(region))

    def blocks(self, region: str) -> list[Path]:
        return [path for path in (self.directory / region / "cache" / "home").rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with fresh_url() as url:
        pair = Pair(tmp_path_factory.mktemp("two"), url)
        try:
            yield pair
        finally:
            for node in pair.nodes:
                node.stop()
                node.kill()


@pytest.fixture
def east(pair: Pair) -> Iterator[Any]:
    made = client(pair.east)
    yield made
    made.close()


@pytest.fixture
def west(pair: Pair) -> Iterator[Any]:
    made = client(pair.west)
    yield made
    made.close()


def test_nodes_that_start_at_once_have_one_root_user(pair: Pair) -> None:
    assert pair.east.exports["AWS_ACCESS_KEY_ID"] == pair.west.exports["AWS_ACCESS_KEY_ID"]
    assert pair.east.secret_access_key == pair.west.secret_access_key
    assert (pair.east.region, pair.west.region) == ("east", "west")


def test_what_one_node_writes_the_other_lists_and_reads_at_once(east: Any, west: Any) -> None:
    east.create_bucket(Bucket="shared")
    for number in range(20):
        writer, reader = (east, west) if number % 2 else (west, east)
        writer.put_object(Bucket="shared", Key=f"small/{number}", Body=b"%d" % number)
        assert reader.get_object(Bucket="shared", Key=f"small/{number}")["Body"].read() == b"%d" % number
        assert reader.list_objects_v2(Bucket="shared", Prefix="small/")["KeyCount"] == number + 1
    with pytest.raises(ClientError, match="PreconditionFailed"):
        west.put_object(Bucket="shared", Key="small/1", Body=b"", IfNoneMatch="*")
    west.delete_object(Bucket="shared", Key="small/1")
    with pytest.raises(ClientError, match="NoSuchKey"):
        east.get_object(Bucket="shared", Key="small/1")


def test_bytes_that_only_the_other_node_has_come_from_it(east: Any, west: Any) -> None:
    data = os.urandom(LARGE)
    east.create_bucket(Bucket="large")
    east.put_object(Bucket="large", Key="k", Body=data)
    assert west.head_object(Bucket="large", Key="k")["ContentLength"] == LARGE
    part = west.get_object(Bucket="large", Key="k", Range="bytes=9000000-9000010")
    assert part["Body"].read() == data[9000000:9000011]
    west.copy_object(Bucket="large", Key="copy", CopySource="large/k")  # a matter of metadata
    for reader in (east, west):
        for key in ("k", "copy"):
            assert reader.get_object(Bucket="large", Key=key)["Body"].read() == data


def test_while_the_node_that_has_the_bytes_does_not_run_they_are_refused_clearly(pair: Pair, west: Any) -> None:
    east = client(pair.east)
    data = os.urandom(LARGE)
    east.create_bucket(Bucket="apart")
    east.put_object(Bucket="apart", Key="k", Body=data)
    east.close()
    pair.east.stop()
    try:
        for ranged in ({}, {"Range": "bytes=9000000-9000010"}):
            begin = time.monotonic()
            with pytest.raises(ClientError) as refused:
                west.get_object(Bucket="apart", Key="k", **ranged)
            assert time.monotonic() - begin < SETTLE_TIMEOUT_S
            error = refused.value.response
            assert (error["ResponseMetadata"]["HTTPStatusCode"], error["Error"]["Code"]) == (503, "ServiceUnavailable")
            assert "held by nodes that do not answer now (in east)" in error["Error"]["Message"]
            assert str(pair.directory) not in str(error)
    finally:
        pair.restart("east")
    east = client(pair.east)
    assert east.get_object(Bucket="apart", Key="k")["Body"].read() == data
    east.close()


def test_each_node_checks_what_it_has_and_leaves_the_others_alone(pair: Pair, east: Any, west: Any) -> None:
    for writer, bucket in ((east, "of-east"), (west, "of-west")):
        writer.create_bucket(Bucket=bucket)
        writer.put_object(Bucket=bucket, Key="k", Body=bytes(LARGE))
    for region in ("east", "west"):
        data_dir = f"--data-dir={pair.directory / region}"
        done = tigris("admin", "fsck", "--repair", data_dir, *pair.flags(region))
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
    for reader, bucket in ((east, "of-east"), (west, "of-west")):
        assert reader.get_object(Bucket=bucket, Key="k")["Body"].read() == bytes(LARGE)


def test_what_is_deleted_through_one_node_is_reclaimed_by_the_one_that_has_it(pair: Pair, east: Any, west: Any) -> None:
    east.create_bucket(Bucket="reclaimed")
    before = set(pair.blocks("east"))
    east.put_object(Bucket="reclaimed", Key="k", Body=bytes(LARGE))
    assert len(set(pair.blocks("east")) - before) == 3
    west.delete_object(Bucket="reclaimed", Key="k")
    end = time.monotonic() + SETTLE_TIMEOUT_S
    while set(pair.blocks("east")) - before:
        assert time.monotonic() < end, "the blocks are still there"
        time.sleep(0.1)


def test_a_node_with_another_master_key_is_refused(pair: Pair, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    other.touch(mode=0o600)
    other.write_text(base64.b64encode(os.urandom(32)).decode())
    with pytest.raises(AssertionError, match="master key"):
        start_node(tmp_path / "data", f"--metadata={pair.url}", f"--master-key-file={other}")
