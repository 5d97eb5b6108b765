"""An edge in front of real nodes, and in front of scripted ones."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class RunningEdge:
    """Looks like a node to whoever makes clients (`tests.e2e.conftest.client`)."""

    endpoint: str
    access_key_id: str
    secret_access_key: str
    pid: int
    ca_bundle: str | None = None

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])


@contextlib.contextmanager
def running_edge(*flags: str, keys: tuple[str, str] = ("", ""), ca_bundle: str | None = None) -> Iterator[RunningEdge]:
    """`tigrislike edge` as a process of its own, on a free port."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "tigrislike", "edge", "--listen=127.0.0.1:0", f"--ready-fd={writer}", *flags],
        pass_fds=(writer,),
        env={**os.environ, **({"AWS_CA_BUNDLE": ca_bundle} if ca_bundle else {})},
    )
    os.close(writer)
    try:
        readable, _, _ = select.select([reader], [], [], START_TIMEOUT_S)
        url = os.read(reader, 4096).decode().strip() if readable else ""
        assert url, "the edge did not start"
        yield RunningEdge(url, *keys, pid=process.pid, ca_bundle=ca_bundle)
        process.terminate()
        assert process.wait(START_TIMEOUT_S) == 0
    finally:
        os.close(reader)
        if process.poll() is None:
            process.kill()
            process.wait()
