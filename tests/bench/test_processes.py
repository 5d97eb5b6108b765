"""CPU of a whole process tree, ended children included; and servers that are stopped whatever they do."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench import processes
from bench.stores import REPOSITORY

BURN = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"


def script(tmp_path: Path, text: str) -> subprocess.Popen[bytes]:
    return processes.start([sys.executable, "-u", "-c", text], tmp_path / "log", cwd=tmp_path)


def wait_for(tmp_path: Path, text: str, process: subprocess.Popen[bytes]) -> str:
    log = tmp_path / "log"
    while not (text in (said := log.read_text()) and said.endswith("\n")):  # a line may come in pieces
        assert process.poll() is None, said
    return said


def test_cpu_counts_ended_children_and_living_ones(tmp_path: Path) -> None:
    parent = script(
        tmp_path,
        f"import subprocess, sys, signal\nsubprocess.run([sys.executable, '-c', {BURN!r}])\n"
        f"burn = {BURN!r} + 'print(\"burnt\"); time.sleep(60)'\n"
        "child = subprocess.Popen([sys.executable, '-uc', burn])\n"
        "print('waiting'); signal.pause()",
    )
    try:
        wait_for(tmp_path, "burnt", parent)
        assert len(processes.tree(parent.pid)) == 2
        assert 0.5 < processes.cpu_s(parent.pid) < 5
        assert processes.settled_cpu_s(parent.pid) >= 0.5
    finally:
        processes.stop(parent)


def test_stop_ends_a_tree_that_ignores_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_S", 2.0)  # so long a killed process may take to end
    stubborn = (
        "import signal, subprocess, sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        "print('child', child.pid, flush=True)\nsignal.pause()"
    )
    parent = script(tmp_path, stubborn)
    child = int(wait_for(tmp_path, "child", parent).split()[1])
    processes.stop(parent)
    assert parent.returncode == -signal.SIGKILL
    assert child not in processes.running(parent.pid)


RUNNER = """
import signal, sys, time
from pathlib import Path
from bench import processes
processes.end_in_order()
here = Path(sys.argv[1])
server = processes.start([sys.executable, "-c", "import signal; signal.pause()"], here / "server", cwd=here)
try:
    print(server.pid, flush=True)
    signal.pause()
finally:
    processes.stop(server)
    (here / "in-order").touch()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_servers_end_with_a_bench_that_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    runner = subprocess.Popen([sys.executable, "-c", RUNNER, tmp_path], stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert runner.stdout
    server = int(runner.stdout.readline())
    waiting = os.pidfd_open(server)
    runner.send_signal(number)
    assert runner.wait(30) == (128 + number if number != signal.SIGKILL else -number)
    assert select.select([waiting], [], [], 30)[0] == [waiting]
    os.close(waiting)
    runner.stdout.close()
    assert (tmp_path / "in-order").exists() == (number != signal.SIGKILL)


def test_stop_after_the_end_is_harmless(tmp_path: Path) -> None:
    ended = script(tmp_path, "print('bye')")
    ended.wait(30)
    processes.stop(ended)
    assert ended.returncode == 0


def test_a_server_that_ends_early_is_reported_with_its_log(tmp_path: Path) -> None:
    (port,) = processes.free_ports(1)
    broken = script(tmp_path, "import sys; sys.exit('no such flag')")
    with pytest.raises(processes.StoreFailed, match="no such flag"):
        processes.wait_for_ports(broken, [port], tmp_path / "log")


def test_free_ports_are_distinct_and_free() -> None:
    ports = processes.free_ports(20)
    assert len(set(ports)) == 20

    with socket.create_server(("127.0.0.1", ports[0])):
        assert ports[0] not in processes.free_ports(20)
