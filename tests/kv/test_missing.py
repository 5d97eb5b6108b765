"""A node told to use a FoundationDB that it cannot reach says within five seconds what is missing and how to get it.

Seen from outside: `tigrislike serve` in a process of its own. What the messages are made from is in `test_fdb.py`.
"""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

WITHIN_S = 10.0

SERVE = "import sys; from tigrislike.cli import main; sys.argv[0] = 'tigrislike'; main()"

SERVE_WITHOUT_LIBRARY = f"""
import ctypes
whole = ctypes.CDLL

class CDLL(whole):
    def __init__(self, name, *rest, **options):
        if name and "fdb_c" in str(name):
            raise OSError("libfdb_c.so: cannot open shared object file: No such file or directory")
        super().__init__(name, *rest, **options)

ctypes.CDLL = CDLL
{SERVE}
"""


def serve(program: str, directory: Path, metadata: str, **environment: str) -> str:
    """What `tigrislike serve` says before it gives up. It must give up, and soon."""
    key = base64.b64encode(os.urandom(32)).decode()
    command = [sys.executable, "-c", program, "serve", "--data-dir", str(directory / "data"), "--port", "0"]
    before = time.monotonic()
    ended = subprocess.run(
        [*command, "--workers", "1", "--metadata", metadata],
        env={**os.environ, "TIGRISLIKE_MASTER_KEY": key, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    took_s = time.monotonic() - before
    said = ended.stdout + ended.stderr
    assert ended.returncode != 0, said
    assert "Traceback" not in said
    # A process of Python takes a while to start on a busy machine; the message itself must not.
    assert took_s < WITHIN_S + start_s(), said
    return said


def start_s() -> float:
    """How long a process that only imports the command takes, now."""
    before = time.monotonic()
    subprocess.run([sys.executable, "-c", "import tigrislike.cli, tigrislike.server"], check=True)
    return time.monotonic() - before


def test_without_the_client_library(tmp_path: Path) -> None:
    said = serve(SERVE_WITHOUT_LIBRARY, tmp_path, "fdb:///nowhere", LD_LIBRARY_PATH="")
    assert "client library (libfdb_c) cannot be used" in said
    assert "Install the foundationdb-clients package" in said
    assert "https://github.com/apple/foundationdb/releases" in said


@pytest.mark.fdb
def test_without_a_cluster_file(tmp_path: Path) -> None:
    said = serve(SERVE, tmp_path, "fdb:///nowhere")
    assert "the cluster file /nowhere is missing" in said
    assert "Copy it from a machine of the cluster" in said


@pytest.mark.fdb
def test_with_the_cluster_file_of_a_cluster_that_is_away(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else can
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        path = tmp_path / "fdb.cluster"
        path.write_text(f"# a cluster that is away\ntest:test@{address}\n")
        said = serve(SERVE, tmp_path, f"fdb://{path}")
    assert f"the FoundationDB cluster of {path} does not answer" in said
    assert f"fdbcli -C {path} --exec status" in said
    assert f"coordinators ({address}) are reachable" in said


@pytest.mark.fdb
def test_with_the_cluster_file_of_a_cluster_that_says_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections come about, and nobody looks at them
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        path = tmp_path / "fdb.cluster"
        path.write_text(f"test:test@{address}\n")
        said = serve(SERVE, tmp_path, f"fdb://{path}")
    assert f"the FoundationDB cluster of {path} does not answer" in said
    assert f"coordinators ({address}) are reachable" in said


@pytest.mark.fdb
def test_with_a_cluster_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "fdb.cluster"
    path.write_text("nonsense\n")
    said = serve(SERVE, tmp_path, f"fdb://{path}")
    assert f"the cluster file {path} cannot be used" in said or f"cluster of {path} does not answer" in said
