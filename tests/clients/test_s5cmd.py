"""s5cmd: wildcards, parallel parts and batches of deletes, over http and https."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.environments import Client, client
from tests.nodes import RunningNode

pytestmark = pytest.mark.slow

MIB = 1024 * 1024


@pytest.fixture
def s5cmd(either_store: RunningNode, tmp_path: Path) -> Callable[..., str]:
    # s5cmd has a variable of its own for the endpoint.
    made: Client = client("s5cmd", either_store, tmp_path, S3_ENDPOINT_URL=either_store.endpoint)

    def run(*arguments: str) -> str:
        # One attempt only: what works at the second is an error that a retry hides.
        return made.run("s5cmd", "--retry-count=0", "--numworkers=8", *arguments)

    return run


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, bytes]:
    """Files under `up/`."""
    files = {f"d{number % 4}/f{number:02}.bin": os.urandom(number * 999) for number in range(40)}
    files |= {"d1/note.txt": b"note", "ü +%2F.txt": b"odd", "empty.txt": b""}
    for name, body in files.items():
        path = tmp_path / "up" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return files


def test_trees_are_copied_by_wildcards(
    s5cmd: Callable[..., str], bucket: str, tree: dict[str, bytes], tmp_path: Path, keys: Callable[[], dict[str, int]]
) -> None:
    s5cmd("cp", "up/", f"s3://{bucket}/tree/")
    assert keys() == {f"tree/{name}": len(body) for name, body in tree.items()}
    s5cmd("cp", f"s3://{bucket}/tree/*", "down/")
    assert {name: (tmp_path / "down" / name).read_bytes() for name in tree} == tree
    s5cmd("cp", f"s3://{bucket}/tree/d1/*.txt", "notes/")
    assert [path.name for path in (tmp_path / "notes").rglob("*")] == ["note.txt"]
    s5cmd("cp", f"s3://{bucket}/tree/d1/*", f"s3://{bucket}/copy/")
    s5cmd("mv", f"s3://{bucket}/copy/*.txt", f"s3://{bucket}/moved/")
    assert [key for key in keys() if key.startswith(("moved", "copy/note"))] == ["moved/note.txt"]


def test_a_tree_is_synchronised(
    s5cmd: Callable[..., str], bucket: str, tree: dict[str, bytes], tmp_path: Path, keys: Callable[[], dict[str, int]]
) -> None:
    assert len(s5cmd("sync", "up/", f"s3://{bucket}/tree/").splitlines()) == len(tree)
    assert s5cmd("sync", "up/", f"s3://{bucket}/tree/") == ""
    (tmp_path / "up" / "d1/note.txt").unlink()
    (tmp_path / "up" / "empty.txt").write_bytes(b"no longer")
    assert len(s5cmd("sync", "--delete", "up/", f"s3://{bucket}/tree/").splitlines()) == 2
    expected = {f"tree/{name}": len(body) for name, body in tree.items() if name != "d1/note.txt"}
    assert keys() == expected | {"tree/empty.txt": 9}
    s5cmd("sync", f"s3://{bucket}/tree/*", "down/")
    assert (tmp_path / "down" / "empty.txt").read_bytes() == b"no longer"


def test_listings_and_sums(s5cmd: Callable[..., str], bucket: str, tree: dict[str, bytes]) -> None:
    s5cmd("cp", "up/", f"s3://{bucket}/")
    assert f"s3://{bucket}" in s5cmd("ls")
    listed = s5cmd("ls", f"s3://{bucket}/*")
    assert sorted(line.split(maxsplit=3)[3] for line in listed.splitlines()) == sorted(tree)
    assert [line.split()[-1] for line in s5cmd("ls", f"s3://{bucket}/d*").splitlines()] == sorted(
        name for name in tree if name.startswith("d")
    )
    total = sum(len(body) for body in tree.values())
    assert s5cmd("du", f"s3://{bucket}/*").startswith(f"{total} bytes in {len(tree)} objects")
    assert s5cmd("cat", f"s3://{bucket}/d1/note.txt") == "note"
    assert "note.txt" in s5cmd("head", f"s3://{bucket}/d1/note.txt")


def test_a_large_file_travels_in_parallel_parts(
    s5cmd: Callable[..., str], bucket: str, tmp_path: Path, keys: Callable[[], dict[str, int]]
) -> None:
    body = os.urandom(43 * MIB + 7)
    (tmp_path / "big").write_bytes(body)
    s5cmd("cp", "--part-size=5", "--concurrency=4", "big", f"s3://{bucket}/big")
    assert keys() == {"big": len(body)}
    s5cmd("cp", "--part-size=7", "--concurrency=4", f"s3://{bucket}/big", "back")
    assert (tmp_path / "back").read_bytes() == body


def test_many_objects_are_removed_in_batches(
    s5cmd: Callable[..., str], bucket: str, tmp_path: Path, keys: Callable[[], dict[str, int]]
) -> None:
    (tmp_path / "many").mkdir()
    for number in range(1205):
        (tmp_path / "many" / f"{number:04}").write_bytes(b"x")
    s5cmd("cp", "many/", f"s3://{bucket}/many/")
    assert len(keys()) == 1205
    s5cmd("rm", f"s3://{bucket}/many/00*")
    assert len(keys()) == 1105
    s5cmd("rm", f"s3://{bucket}/*")
    assert keys() == {}
    s5cmd("rb", f"s3://{bucket}")
    s5cmd("mb", f"s3://{bucket}")
