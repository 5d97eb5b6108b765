"""Processes of a store: start, CPU spent by the whole tree, stop by process id. Linux (`/proc`).

CPU includes children that ended: the kernel adds their time to the parent that waits for them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
STOP_S = 15.0
QUIET_S = 0.005  # of CPU in a tenth of a second: what an idle store spends too


class StoreFailed(RuntimeError):
    """A store did not start, or ended while it was being measured."""


def start(
    command: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, cwd: Path
) -> subprocess.Popen[bytes]:
    """Starts a server in a session of its own, output to `log`; it is asked to end when its starter dies."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )


_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def _end_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_in_order() -> None:
    """Makes SIGTERM and SIGHUP unwind this program as an exit does, so that servers are stopped and data removed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, frame: sys.exit(128 + received))


def tree(root: int) -> dict[int, list[str]]:
    """Process id -> fields of `/proc/<pid>/stat` after the name, for `root`, its descendants and its session."""
    stats: dict[int, list[str]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                stats[int(name)] = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
    found = {pid for pid, fields in stats.items() if pid == root or int(fields[3]) == root}
    while True:
        more = {pid for pid, fields in stats.items() if int(fields[1]) in found} - found
        if not more:
            return {pid: stats[pid] for pid in found}
        found |= more


def running(root: int) -> list[int]:
    """Process ids of the tree that have not ended (one that ended but was not waited for yet has)."""
    return [pid for pid, fields in tree(root).items() if fields[0] != "Z"]


def cpu_s(root: int) -> float:
    """User and system CPU seconds of the tree so far; what ended children spent comes in clock ticks (10 ms)."""
    return sum(_own_cpu_s(pid, fields) + sum(map(int, fields[13:15])) * TICK_S for pid, fields in tree(root).items())


def _own_cpu_s(pid: int, fields: list[str]) -> float:
    """CPU of a process's threads, ended ones included, to the nanosecond (`clock_getcpuclockid(3)`)."""
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:  # it ended a moment ago
        return sum(map(int, fields[11:13])) * TICK_S


def settled_cpu_s(root: int, *, limit_s: float = 1.0) -> float:
    """CPU of the tree once it has gone quiet, so that work done after the last answer is counted too."""
    deadline = time.monotonic() + limit_s
    spent = cpu_s(root)
    while time.monotonic() < deadline:
        time.sleep(0.1)
        before, spent = spent, cpu_s(root)
        if spent - before <= QUIET_S:
            break
    return spent


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the root, then SIGKILL to whatever of its tree is left. Never by name."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    deadline = time.monotonic() + STOP_S
    while (left := running(process.pid)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    process.wait()


def free_ports(count: int, *, below: int = 32768) -> list[int]:
    """Ports nobody listens on now, from under the range that the kernel hands to outgoing connections. From anywhere in
    it: of two programs that look at once, each is to find others."""
    ports: list[int] = []
    for port in range(random.randrange(10000, below - 1000), below):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise StoreFailed("no free ports")


def wait_for_ports(process: subprocess.Popen[bytes], ports: Iterable[int], log: Path, *, limit_s: float = 60) -> None:
    """Returns when all ports accept connections. Raises StoreFailed with the log's end otherwise."""
    deadline = time.monotonic() + limit_s
    for port in ports:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-1500:]
                raise StoreFailed(f"{process.args!r} does not listen on {port} (exit {process.poll()}):\n{tail}")
            time.sleep(0.05)
