"""`python -m bench.traced serve ...`: this store, with a line in the file TRACE_FILE for every step of an upload.

A line is `what start_ns stop_ns bytes process thread`; times are CLOCK_MONOTONIC's, so that lines of several processes
compare. `what` is receive (from the socket into memory; an instant where that went through a bytes object), MD5,
SHA256, write or sync. It costs some microseconds a step, and a step is up to 1 MiB.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tigrislike.bytecache.filesystem import FileSystem
from tigrislike.cli import main
from tigrislike.s3api import checksums
from tigrislike.s3api.exchange import Exchange
from tigrislike.s3api.receiving import DirectReceiver


class Step(NamedTuple):
    """One line of the trace."""

    what: str
    start_ns: int
    stop_ns: int
    size: int
    process: int
    thread: int

    @classmethod
    def parse(cls, line: str) -> Step:
        what, *numbers = line.split()
        return cls(what, *map(int, numbers))


class _Recorder:
    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    def record(self, what: str, start_ns: int, size: int) -> None:
        now_ns = time.monotonic_ns()
        line = f"{what} {start_ns or now_ns} {now_ns} {size} {os.getpid()} {threading.get_native_id()}\n"
        os.write(self._fd, line.encode())  # one write, which O_APPEND keeps in one piece

    def timed(self, what: str, call: Callable[..., Any], size: Callable[..., int]) -> Callable[..., Any]:
        def recorded(*arguments: Any) -> Any:
            start_ns = time.monotonic_ns()
            result = call(*arguments)
            self.record(what, start_ns, size(*arguments))
            return result

        return recorded


class _Digest:
    """A digest of hashlib whose updates are recorded."""

    def __init__(self, recorder: _Recorder, what: str, digest: Any) -> None:
        self.update = recorder.timed(what, digest.update, len)
        self.digest = digest.digest


def install(recorder: _Recorder) -> None:
    """Put the recorder around every step, in this process and those that it forks."""
    for what in ("MD5", "SHA256"):
        start = checksums._START[what]
        checksums._START[what] = lambda what=what, start=start: _Digest(recorder, what, start())
    FileSystem.pwrite = recorder.timed(  # type: ignore[method-assign]
        "write", FileSystem.pwrite, lambda fs, fd, data, offset: len(data)
    )
    FileSystem.fdatasync = recorder.timed("sync", FileSystem.fdatasync, lambda fs, fd: 0)  # type: ignore[method-assign]
    feed, lend, updated = Exchange.feed, DirectReceiver.get_buffer, DirectReceiver.buffer_updated
    lent_ns = 0  # the loop reads one socket at a time

    def fed(exchange: Exchange, data: bytes) -> None:
        recorder.record("receive", 0, len(data))
        feed(exchange, data)

    def lent(receiver: DirectReceiver, sizehint: int) -> bytearray | memoryview:
        nonlocal lent_ns
        buffer = lend(receiver, sizehint)
        lent_ns = time.monotonic_ns()
        return buffer

    def received(receiver: DirectReceiver, nbytes: int) -> None:
        recorder.record("receive", lent_ns, nbytes)
        updated(receiver, nbytes)

    Exchange.feed = fed  # type: ignore[method-assign]
    DirectReceiver.get_buffer = lent  # type: ignore[method-assign]
    DirectReceiver.buffer_updated = received  # type: ignore[method-assign]


if __name__ == "__main__":
    install(_Recorder(os.environ["TRACE_FILE"]))
    main()
