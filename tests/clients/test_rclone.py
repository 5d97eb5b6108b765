"""rclone: sync and check both ways, over http and https. Configured by environment variables alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.environments import Client, client
from tests.nodes import RunningNode

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
NOTHING = "There was nothing to transfer"


@pytest.fixture
def rclone(either_store: RunningNode, tmp_path: Path) -> Callable[..., str]:
    config = tmp_path / "rclone.conf"
    config.touch()
    made: Client = client(
        "rclone",
        either_store,
        tmp_path,
        RCLONE_CONFIG=str(config),
        RCLONE_CONFIG_NODE_TYPE="s3",
        RCLONE_CONFIG_NODE_PROVIDER="Other",
        RCLONE_CONFIG_NODE_ENV_AUTH="true",
        RCLONE_CONFIG_NODE_ENDPOINT=either_store.endpoint,
        RCLONE_CONFIG_NODE_REGION="auto",
        # One attempt only: what works at the second is an error that a retry hides.
        RCLONE_RETRIES="1",
        RCLONE_LOW_LEVEL_RETRIES="1",
    )

    def run(*arguments: str) -> str:
        return made.run("rclone", "-v", "--stats=0", *arguments)

    return run


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, bytes]:
    """Files under `up/`."""
    files = {f"d{number % 4}/f{number:02}": os.urandom(number * 999) for number in range(40)}
    files |= {"ü +%2F & = #?": b"odd", "sp ace/trailing .txt": b"x", "empty": b"", "large": os.urandom(23 * MIB + 1)}
    for name, body in files.items():
        path = tmp_path / "up" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return files


@pytest.mark.parametrize("flags", [(), ("--s3-chunk-size=5Mi", "--s3-upload-cutoff=5Mi")], ids=["single", "multipart"])
def test_a_tree_is_synchronised_both_ways(
    rclone: Callable[..., str], s3: Any, bucket: str, tree: dict[str, bytes], tmp_path: Path, flags: tuple[str, ...]
) -> None:
    remote = f"node:{bucket}/tree"
    assert rclone("sync", "up", remote, *flags).count(": Copied (new)") == len(tree)
    assert NOTHING in rclone("sync", "up", remote, *flags)
    assert "0 differences found" in rclone("check", "up", remote)
    assert "0 differences found" in rclone("check", "--download", "up", remote)
    etag = s3.head_object(Bucket=bucket, Key="tree/large")["ETag"]
    assert ("-" in etag) == bool(flags)
    rclone("sync", remote, "down")
    assert {name: (tmp_path / "down" / name).read_bytes() for name in tree} == tree
    assert NOTHING in rclone("sync", remote, "down")
    assert "0 differences found" in rclone("check", remote, "down")
    assert "0 differences found" in rclone("check", "--download", remote, "down")


def test_a_second_sync_carries_only_what_changed(
    rclone: Callable[..., str], bucket: str, tree: dict[str, bytes], tmp_path: Path, keys: Callable[[], dict[str, int]]
) -> None:
    rclone("sync", "up", f"node:{bucket}")
    (tmp_path / "up" / "empty").unlink()
    (tmp_path / "up" / "d1/f01").write_bytes(b"changed")
    (tmp_path / "up" / "new").write_bytes(b"new")
    output = rclone("sync", "up", f"node:{bucket}")
    assert (output.count("Copied (new)"), output.count("Copied (replaced existing)")) == (1, 1)
    assert output.count("Deleted") == 1
    expected = {name: len(body) for name, body in tree.items() if name != "empty"}
    assert keys() == expected | {"d1/f01": 7, "new": 3}


def test_objects_are_copied_and_moved_on_the_server(
    rclone: Callable[..., str], bucket: str, tree: dict[str, bytes], keys: Callable[[], dict[str, int]]
) -> None:
    rclone("sync", "up", f"node:{bucket}/a")
    assert rclone("copy", f"node:{bucket}/a", f"node:{bucket}/b").count("(server-side copy)") == len(tree)
    rclone("move", f"node:{bucket}/a", f"node:{bucket}/c")
    sizes = {name: len(body) for name, body in tree.items()}
    assert keys() == {f"{root}/{name}": size for root in "bc" for name, size in sizes.items()}
    assert "0 differences found" in rclone("check", "up", f"node:{bucket}/c")


def test_objects_are_streamed_listed_and_purged(
    rclone: Callable[..., str], bucket: str, tree: dict[str, bytes]
) -> None:
    rclone("sync", "up", f"node:{bucket}/tree")
    listed = rclone("lsf", "-R", "--files-only", f"node:{bucket}/tree").splitlines()
    assert sorted(listed) == sorted(tree)
    assert f"Total objects: {len(tree)}" in rclone("size", f"node:{bucket}")
    assert rclone("cat", f"node:{bucket}/tree/ü +%2F & = #?") == "odd"
    rclone("purge", f"node:{bucket}")
    assert f"{bucket}/" not in rclone("lsf", "node:").splitlines()
    rclone("mkdir", f"node:{bucket}")
    assert f"{bucket}/" in rclone("lsf", "node:").splitlines()
