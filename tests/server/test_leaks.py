"""The scan for secrets finds what leaks, in real nodes with a leak planted in them, and fails the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import leaks, nodes
from tests.clients.environments import REPOSITORY
from tests.e2e import wire
from tests.e2e.conftest import client, fetch
from tests.e2e.wire import Caller
from tests.leaks import Scan
from tests.nodes import running_node

LEAKY = """
import logging
from tigrislike import logs
from tigrislike.node import Node
logs.redacted = lambda query: query.decode("latin-1")
ensure_root = Node.ensure_root
async def telling(self):
    key = await ensure_root(self)
    logging.getLogger("tigrislike").warning("the root key is %r", key.secret)
    return key
Node.ensure_root = telling
from tigrislike.cli import main
main()
"""


@pytest.fixture
def scan(monkeypatch: pytest.MonkeyPatch) -> Scan:
    """A scan of the test's own, so that what it plants does not fail the run."""
    scan = Scan()
    for module in (leaks, nodes, wire):
        monkeypatch.setattr(module, "SCAN", scan)
    return scan


def test_what_a_leaky_node_writes_is_found(tmp_path: Path, scan: Scan) -> None:
    command = [sys.executable, "-c", LEAKY, "serve"]
    with running_node(tmp_path / "data", f"--access-log={tmp_path / 'access.log'}", command=command) as node:
        s3 = client(node)
        s3.create_bucket(Bucket="bucket")
        url = s3.generate_presigned_url("list_objects_v2", {"Bucket": "bucket"})
        assert fetch(node, "GET", url)[0] == 200
    assert scan.found == [f"secret key in {tmp_path / 'data.log'}", f"signature in {tmp_path / 'access.log'}"]


def test_in_what_a_node_writes_and_answers_there_is_none(tmp_path: Path, scan: Scan) -> None:
    with running_node(tmp_path / "data", f"--access-log={tmp_path / 'access.log'}") as node:
        s3 = client(node)
        s3.create_bucket(Bucket="bucket")
        assert fetch(node, "GET", s3.generate_presigned_url("list_objects_v2", {"Bucket": "bucket"}))[0] == 200
        forged = Caller(node, secret_access_key="not the secret of this key")
        answer = forged.send("GET", "/bucket")
        assert answer.code == "SignatureDoesNotMatch"
        secret = node.secret_access_key
    assert secret in (tmp_path / "data.log").read_text(), "it was told once, on purpose"
    assert "Signature" in (tmp_path / "access.log").read_text()
    assert scan.found == []


@pytest.mark.parametrize("written", ["abc/def+ghi/jkl+mno", "abc%2Fdef%2Bghi%2Fjkl%2Bmno", r"abc\/def+ghi\/jkl+mno"])
def test_a_secret_is_found_however_it_is_written(written: str) -> None:
    scan = Scan()
    scan.keep("abc/def+ghi/jkl+mno", "secret key")
    scan.look(f"<p>{written}</p>", "a page")
    assert scan.found == ["secret key in a page"]


def test_what_became_known_later_is_found_at_the_end(tmp_path: Path) -> None:
    scan = Scan()
    (tmp_path / "log").write_text("0123456789abcdef0123456789")
    scan.look_at_file(tmp_path / "log")
    scan.look_at_file(tmp_path / "gone")
    assert scan.found == []
    scan.keep("0123456789abcdef", "session token")
    scan.look_again()
    assert scan.found == [f"session token in {tmp_path / 'log'}"]


@pytest.mark.parametrize("together", [[], ["--numprocesses=1"]], ids=["alone", "in a process of xdist's"])
def test_a_find_fails_the_run_and_the_secret_is_not_printed(tmp_path: Path, together: list[str]) -> None:
    (tmp_path / "test_planted.py").write_text(
        "from tests.leaks import SCAN\n\n"
        "def test_passes():\n"
        "    SCAN.keep('planted' + 'planted', 'secret key')\n"
        "    SCAN.look('x' + 'planted' * 2, 'a page')\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.leaks", f"--rootdir={tmp_path}", *together, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    assert "1 passed" in run.stdout
    assert run.returncode == 1
    assert "SECRET LEAKED: secret key in a page" in run.stdout
    assert "plantedplanted" not in run.stdout + run.stderr
