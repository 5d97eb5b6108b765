"""`tigrislike buckets inventory`: a bucket as a Parquet file, from a node or from the database itself."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import client
from tests.nodes import RunningNode, running_node
from tests.server.test_cli import tigris

pytestmark = pytest.mark.sqlite


def written(file: Path, *words: str, node: RunningNode, local: bool, status: int = 0) -> Any:
    """The rows of the file that the command wrote, or what it said where it ends with `status`."""
    where = ["--data-dir", str(node.data_dir)] if local else ["--endpoint", node.endpoint]
    done = tigris("buckets", "inventory", words[0], str(file), *words[1:], *where, **({} if local else node.exports))
    assert done.returncode == status, done.stderr
    return done.stderr if status else pq.read_table(file).to_pylist()


KEYS = sorted([f"many/{number:04}" for number in range(1005)] + ['odd/"ü\n"', "odd/+%20"])


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """With a bucket `listed`: more than a page, and some versions."""
    with running_node(tmp_path_factory.mktemp("listed") / "data") as node:
        s3 = client(node)
        s3.create_bucket(Bucket="listed")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: s3.put_object(Bucket="listed", Key=key, Body=b"abc"), KEYS))
        s3.put_bucket_versioning(Bucket="listed", VersioningConfiguration={"Status": "Enabled"})
        s3.put_object(Bucket="listed", Key="odd/+%20", Body=b"again")
        s3.delete_object(Bucket="listed", Key="many/0000")
        yield node


@pytest.mark.slow
@pytest.mark.parametrize("local", [False, True], ids=["of a node", "of the database"])
def test_a_bucket_becomes_a_parquet_file(node: RunningNode, tmp_path: Path, local: bool) -> None:
    file = tmp_path / "all.parquet"
    rows = written(file, "listed", node=node, local=local)
    assert [row["key"] for row in rows] == [key for key in KEYS if key != "many/0000"]
    assert {row["bucket"] for row in rows} == {"listed"}
    head = client(node).head_object(Bucket="listed", Key="odd/+%20")
    (again,) = [row for row in rows if row["key"] == "odd/+%20"]
    assert (again["size"], f'"{again["e_tag"]}"') == (5, head["ETag"])
    assert again["last_modified_date"].replace(microsecond=0) == head["LastModified"]
    versions = written(tmp_path / "odd.parquet", "listed", "--prefix=odd/", "--versions", node=node, local=local)
    assert [(row["key"], row["is_latest"], row["size"]) for row in versions] == [
        ('odd/"ü\n"', True, 3),
        ("odd/+%20", True, 5),
        ("odd/+%20", False, 3),
    ]
    assert "exists already" in written(file, "listed", node=node, local=local, status=1)
    assert "NoSuchBucket" in written(tmp_path / "no.parquet", "nothing", node=node, local=local, status=1)
    assert sorted(path.name for path in tmp_path.glob("*.parquet*")) == ["all.parquet", "odd.parquet"]
