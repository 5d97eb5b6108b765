"""Faults hit the server of the cluster file, and nothing else."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.processes import free_ports
from tests.chaos.cluster_faults import LocalServer, NotLocal, coordinator

LISTEN = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); print(s, flush=True); "
LISTEN += "signal = __import__('signal'); signal.pause()"


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A program named fdbserver that only listens, and its cluster file."""
    program = tmp_path / "fdbserver"
    shutil.copy(os.path.realpath(sys.executable), program)
    (port,) = free_ports(1)
    file = tmp_path / "fdb.cluster"
    file.write_text(f"# a comment\ntest:0123@127.0.0.1:{port}\n")
    environment = {**os.environ, "PYTHONHOME": sys.base_prefix, "MARK": "kept"}
    process = subprocess.Popen(
        [program, "-c", LISTEN, str(port)], stdout=subprocess.PIPE, env=environment, cwd=tmp_path
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    (tmp_path / "pid").write_text(f"{process.pid}\n")
    yield file, process
    process.stdout.close()
    process.kill()
    process.wait()


def test_a_server_is_stopped_continued_killed_and_started_as_it_was(
    listener: tuple[Path, subprocess.Popen[bytes]],
) -> None:
    file, process = listener
    server = LocalServer(file)
    assert server.pid == process.pid
    server.pause()
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    server.mend()
    _, status = os.waitpid(process.pid, os.WCONTINUED)
    assert os.WIFCONTINUED(status)
    server.kill()
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        server.pause()
    server.mend()
    try:
        again = LocalServer(file)
        assert again.pid == server.pid != process.pid
        assert (again.arguments, again.directory) == (server.arguments, server.directory)
        assert again.environment["MARK"] == "kept"
        assert (file.parent / "pid").read_text() == f"{again.pid}\n"
    finally:
        server.kill()


def test_a_process_that_is_no_fdbserver_is_left_alone(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        file = tmp_path / "fdb.cluster"
        file.write_text(f"a:b@127.0.0.1:{listener.getsockname()[1]}\n")
        with pytest.raises(NotLocal, match="not fdbserver"):
            LocalServer(file)


def test_a_cluster_that_is_not_here_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "fdb.cluster"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else can
        file.write_text(f"a:b@127.0.0.1:{closed.getsockname()[1]}\n")
        with pytest.raises(NotLocal, match="nobody listens"):
            LocalServer(file)


@pytest.mark.parametrize("text", ["", "a:b@127.0.0.1:1,127.0.0.1:2\n", "a:b@127.0.0.1:1:tls\n", "a:b@host:1\n"])
def test_a_cluster_of_several_processes_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "fdb.cluster"
    file.write_text(text)
    with pytest.raises(NotLocal, match="one address"):
        coordinator(file)
