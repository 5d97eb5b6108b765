"""Faults of a FoundationDB server on this machine, found by its cluster file.

The process is the one that listens where the cluster file says; what it was started with (command line, directory,
environment) comes from /proc, so that it can be started again as it was. Signals go to that process alone, by a file
descriptor that cannot come to mean another.

It deliberately does not deal with clusters of several processes, nor with a monitor that starts servers by itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

TIMEOUT_S = 30.0


class NotLocal(Exception):
    """The cluster file does not name one fdbserver of this user on this machine."""


class LocalServer:
    """The one server of a cluster.

    Args:
        cluster_file: its path.

    Raises:
        NotLocal
    """

    def __init__(self, cluster_file: Path) -> None:
        self.address = coordinator(cluster_file)
        self.pid = listener_pid(self.address)
        process = Path(f"/proc/{self.pid}")
        try:
            self.arguments = arguments_of(self.pid)
            pairs = (entry.partition(b"=") for entry in (process / "environ").read_bytes().split(b"\0") if entry)
            self.environment = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
            self.directory = os.readlink(process / "cwd")
            self.program = os.readlink(process / "exe")
            self.output = os.readlink(process / "fd" / "1")
        except PermissionError as error:
            raise NotLocal(f"the server of {cluster_file} (process {self.pid}) is another user's") from error
        if Path(self.program).name != "fdbserver":
            raise NotLocal(f"what listens on {self.address} is {self.program}, not fdbserver")
        # Whoever stops this server later may look for it here.
        beside = [path for path in cluster_file.parent.glob("*pid") if path.is_file()]
        self._pid_files = [path for path in beside if path.read_text().strip() == str(self.pid)]

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        with self._handle() as handle:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            gone, _, _ = select.select([handle], [], [], TIMEOUT_S)
            assert gone, f"process {self.pid} outlives SIGKILL"

    def start(self) -> None:
        """Start it again as it was, a child of nobody here; returns once it listens."""
        output = self.output if Path(self.output).is_file() else os.devnull
        launched = subprocess.run(
            ["setsid", "sh", "-c", '"$@" >>"$0" 2>&1 </dev/null & echo $!', output, self.program, *self.arguments],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            check=True,
        )
        self.pid = int(launched.stdout)
        for path in self._pid_files:
            path.write_text(f"{self.pid}\n")
        deadline_s = time.monotonic() + TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(self.address, 1):
                return
            assert time.monotonic() < deadline_s, f"fdbserver does not listen on {self.address}; see {output}"
            select.select([], [], [], 0.05)

    def pause(self) -> None:
        """SIGSTOP: it is there and does nothing."""
        with self._handle() as handle:
            signal.pidfd_send_signal(handle, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        with self._handle() as handle:
            signal.pidfd_send_signal(handle, signal.SIGCONT)

    def mend(self) -> None:
        """Whatever was done to it, it runs."""
        try:
            self.resume()
        except ProcessLookupError:
            self.start()

    @contextlib.contextmanager
    def _handle(self) -> Iterator[int]:
        handle = os.pidfd_open(self.pid)
        try:
            if arguments_of(self.pid) != self.arguments:
                raise ProcessLookupError(f"process {self.pid} is no longer the server on {self.address}")
            yield handle
        finally:
            os.close(handle)


def arguments_of(pid: int) -> list[str]:
    """What a process was started with, beside its program; empty for one that has ended."""
    return [os.fsdecode(part) for part in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:-1]]


def coordinator(cluster_file: Path) -> tuple[str, int]:
    """The one address that a cluster file names."""
    lines = [line.strip() for line in cluster_file.read_text().splitlines()]
    text = next((line for line in lines if line and not line.startswith("#")), "")
    found = re.fullmatch(r"[^@]+@([0-9.]+):(\d+)", text)
    if found is None:
        raise NotLocal(f"{cluster_file} names something other than one address without TLS: {text!r}")
    return found[1], int(found[2])


def listener_pid(address: tuple[str, int]) -> int:
    """The process that listens on an IPv4 address.

    Raises:
        NotLocal: nobody does on this machine, or it cannot be told who.
    """
    wanted = f"{socket.inet_aton(address[0])[::-1].hex().upper()}:{address[1]:04X}"  # as a little-endian host shows it
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {f"socket:[{row[9]}]" for row in rows if row[1] == wanted and row[3] == "0A"}
    if not inodes:
        raise NotLocal(f"nobody listens on {address[0]}:{address[1]} here")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(process / "fd"):
                with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                    if os.readlink(process / "fd" / descriptor) in inodes:
                        return int(process.name)
    raise NotLocal(f"the process that listens on {address[0]}:{address[1]} is not to be seen")
