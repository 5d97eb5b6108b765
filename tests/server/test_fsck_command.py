"""`tigrislike admin fsck` on the directory of a node that serves meanwhile."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.nodes import RunningNode, running_node


def fsck(node: RunningNode, *flags: str) -> tuple[int, list[dict[str, Any]]]:
    command = [sys.executable, "-m", "tigrislike", "admin", "fsck", "--json", "--data-dir", str(node.data_dir), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_running_store_is_checked_and_mended(tmp_path: Path) -> None:
    with running_node(tmp_path / "data") as node:
        s3 = boto3.client("s3", **_credentials(node))
        s3.create_bucket(Bucket="checked")
        for key in ("kept", "damaged"):
            s3.put_object(Bucket="checked", Key=key, Body=os.urandom(100_000))
        assert fsck(node) == (0, [])

        files = sorted((node.data_dir / "cache" / "home").rglob("*.*"))
        assert len(files) == 2
        name = secrets.token_hex(16) + files[0].suffix
        stray = node.data_dir / "cache" / "home" / name[:2] / name
        stray.parent.mkdir(exist_ok=True)
        shutil.copy(files[0], stray)
        status, findings = fsck(node)
        assert (status, [finding["kind"] for finding in findings]) == (1, ["file-orphan"])
        status, findings = fsck(node, "--repair")
        assert (status, [finding["repaired"] for finding in findings]) == (0, [True])
        assert not stray.exists()
        assert fsck(node) == (0, [])

        files[1].unlink()
        status, findings = fsck(node, "--repair")
        assert status == 1
        assert [finding["repaired"] for finding in findings] == [False], findings
        s3.close()


def _credentials(node: RunningNode) -> dict[str, str]:
    return {
        "endpoint_url": node.endpoint,
        "aws_access_key_id": node.access_key_id,
        "aws_secret_access_key": node.secret_access_key,
        "region_name": "auto",
    }
