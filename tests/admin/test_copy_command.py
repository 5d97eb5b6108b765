"""`tigrislike admin copy-metadata` and `admin backup` as commands: what they print, and their exit statuses."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tigrislike.config import Settings
from tigrislike.node import Node


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Of a store."""

    async def found() -> None:
        directory = tmp_path / "data"
        async with Node.opened(Settings(data_dir=directory, metadata=f"sqlite://{directory}/metadata.db")) as node:
            await node.ensure_root()
            await node.metadata.create_bucket("bucket", "root")

    asyncio.run(found())
    return tmp_path / "data"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIGRISLIKE_")}
    command = [sys.executable, "-m", "tigrislike", "admin", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def copy(data_dir: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return run("copy-metadata", f"--from=sqlite://{data_dir}/metadata.db", *flags)


def test_a_move_says_how_it_goes_and_where_the_store_is(data_dir: Path, tmp_path: Path) -> None:
    target = f"sqlite://{tmp_path}/target.db"
    done = copy(data_dir, f"--to={target}")
    assert done.returncode == 0, done.stderr
    assert "the same on both sides" in done.stdout
    assert f"start its nodes with --metadata {target}" in done.stdout
    assert "verify" in done.stderr
    again = copy(data_dir, f"--to={target}", "--json")
    assert again.returncode == 0, "running it once more finds it complete"
    *steps, result = [json.loads(line) for line in again.stdout.splitlines()]
    assert {step["phase"] for step in steps} == {"verify"}
    assert result["resumed_rows"] == result["rows"] > 0
    assert len(result["digest"]) == 32
    refused = copy(data_dir, "--abort")
    assert refused.returncode == 1
    assert "there is nothing to abort" in refused.stderr
    forced = copy(data_dir, "--abort", "--force", "--json")
    assert forced.returncode == 0
    assert "takes writes again" in json.loads(forced.stdout)["aborted"]


def test_a_backup_copy_lets_the_source_go_on(data_dir: Path, tmp_path: Path) -> None:
    done = copy(data_dir, f"--to=sqlite://{tmp_path}/target.db", "--keep-source")
    assert done.returncode == 0, done.stderr
    assert "takes writes again" in done.stdout
    assert "was not sealed" in copy(data_dir, "--abort").stdout


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--to=sqlite:///nowhere/at/all.db"], "nowhere"),
        (["--to=mysql:///file"], "names no engine"),
        ([], "--to is missing"),
        (["--force", "--to=sqlite:////tmp/x.db"], "--force goes with --abort"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(data_dir: Path, flags: list[str], complaint: str) -> None:
    done = copy(data_dir, *flags)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "not sealed" in copy(data_dir, "--abort").stdout, "and nothing has been sealed"


def test_a_source_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    done = copy(tmp_path, f"--to=sqlite://{tmp_path}/target.db")
    assert done.returncode == 1
    assert "there is no such file" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_node_does_not_start_on_a_copy_that_has_not_finished(data_dir: Path) -> None:
    async def leave_unfinished() -> None:
        from tigrislike.metadata.kv import open_engine
        from tigrislike.metadata.kv.seal import COPYING

        engine = await open_engine(f"sqlite://{data_dir}/metadata.db")

        async def mark(tr: object) -> None:
            tr.set(COPYING, b'{"source": "sqlite:///elsewhere"}')  # type: ignore[attr-defined]

        await engine.transact(mark)
        await engine.close()

    asyncio.run(leave_unfinished())
    done = run("fsck", f"--data-dir={data_dir}", f"--metadata=sqlite://{data_dir}/metadata.db")
    assert done.returncode == 1
    assert "unfinished copy of sqlite:///elsewhere" in done.stderr
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIGRISLIKE_")}
    served = subprocess.run(
        [sys.executable, "-m", "tigrislike", "serve", f"--data-dir={data_dir}", "--port=0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert served.returncode != 0
    assert "unfinished copy of sqlite:///elsewhere and may not be opened" in served.stderr


def test_a_backup_says_what_it_holds(data_dir: Path, tmp_path: Path) -> None:
    flags = (f"--data-dir={data_dir}", f"--metadata=sqlite://{data_dir}/metadata.db")
    done = run("backup", str(tmp_path / "backup"), *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("metadata and 0 blocks (0 bytes) of node ")
    assert "the master key is not in it" in done.stderr
    answer = json.loads(run("backup", str(tmp_path / "backup"), *flags, "--with-master-key", "--json").stdout)
    assert (answer["complete"], answer["blocks"], answer["missing"]) == (True, 0, 0)
    assert (tmp_path / "backup" / "master.key").exists()
    refused = run("backup", str(data_dir), *flags)
    assert refused.returncode == 1
    assert "choose another place" in refused.stderr
