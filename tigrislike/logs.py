"""What a node writes about itself: its own messages, and one access record per request.

Messages go through the standard `logging` package to standard error, as text, or as a JSON object a line. Access
records take another way, because the logging package would cost as much as the request itself: the event loop formats a
line (about 2 us) and appends it; a writer thread hands what has gathered to the kernel several times a second.

Guarantees: the event loop never waits for the log's reader; records of one worker come out in order; no line is
cut by another process's (whole lines, in writes that a pipe keeps together); signatures in query strings are
not written. When the reader falls behind, records are dropped and their number is logged.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import msgspec

_LOG = logging.getLogger("tigrislike")

_FLUSH_INTERVAL_S = 0.2
_MAX_PENDING = 50_000  # records, about 25 MB; a reader this far behind has stopped
_PIPE_BUF = 4096  # POSIX: writes of at most this many bytes to a pipe are not interleaved

# (time_ns, client, method, raw path, raw query, status, sent bytes, received bytes, duration_ns, notes)
Record = tuple[int, str, str, bytes, bytes, int, int, int, int, dict[str, Any]]


def setup_logging(level: str, role: str, format_: str = "text") -> None:
    """Send this process's messages to standard error, marked with its role (`supervisor`, `agent`, `worker 3`): as
    text, or as ``json``, where warnings of Python's become messages too, so that each line is an object."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(role) if format_ == "json" else _text_formatter(role))
    logging.captureWarnings(format_ == "json")
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # uvicorn reports its own life cycle at this level; the supervisor says the same in fewer words.
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, root.level))


def _text_formatter(role: str) -> logging.Formatter:
    formatter = logging.Formatter(
        f"%(asctime)s.%(msecs)03dZ %(levelname)s {role} [%(process)d] %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    return formatter


class _JsonFormatter(logging.Formatter):
    """An object on one line. One about a request names it, where whoever logs it gives `extra` a `request_id`."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time_ns": round(record.created * 1e9),
            "level": record.levelname.lower(),
            "role": self._role,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = getattr(record, "request_id", None)
        if request_id is not None:
            line["request_id"] = request_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # Whatever a message is made of: a lone surrogate is written as what stands for it.
        return json.dumps(line)


class AccessLog:
    """The access log of one process: `record` is called on the event loop, a thread of its own writes."""

    def __init__(self, destination: str, count: Callable[[Record], None] | None = None) -> None:
        """Open the log.

        Args:
            destination: `-` for standard error, `off` for none, else a file that is appended to.
            count: given each record first, on the event loop, also where none is written.

        Raises:
            OSError: the file cannot be opened.
        """
        self._count = count
        self._pending: deque[bytes] = deque()  # appended by the event loop, emptied by the thread
        self._dropped = 0
        self._stop = threading.Event()
        self._fd = -1
        self._thread: threading.Thread | None = None
        if destination != "off":
            self._fd = os.dup(2) if destination == "-" else open_log(destination)
            self._is_pipe = stat.S_ISFIFO(os.fstat(self._fd).st_mode)
            self._thread = threading.Thread(target=self._write_batches, name="access-log", daemon=True)
            self._thread.start()

    @property
    def enabled(self) -> bool:
        """Whether anybody wants records."""
        return self._thread is not None or self._count is not None

    def record(self, record: Record) -> None:
        """Take one record."""
        if self._count is not None:
            try:
                self._count(record)
            except Exception:  # what looks at a request may not break it, nor keep it out of the log
                _LOG.exception("a request could not be counted")
        if self._thread is None:
            return
        if len(self._pending) < _MAX_PENDING:
            self._pending.append(format_record(record))
        else:
            self._dropped += 1

    def close(self) -> None:
        """Write what is left and stop the thread; waits at most two seconds for a reader that does not read."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join(timeout=2.0)
        self._thread = None

    def _write_batches(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(_FLUSH_INTERVAL_S)
            batch = [self._pending.popleft() for _ in range(len(self._pending))]
            dropped, self._dropped = self._dropped, 0
            if dropped:
                _LOG.warning("access log: %d records dropped, its reader is too slow", dropped)
            if batch:
                try:
                    self._write(batch)
                except OSError as error:
                    _LOG.warning("access log: %d records lost: %s", len(batch), error)
        os.close(self._fd)

    def _write(self, batch: list[bytes]) -> None:
        limit = _PIPE_BUF if self._is_pipe else 1 << 16
        chunk = bytearray()
        for line in batch:
            if chunk and len(chunk) + len(line) > limit:
                _write_all(self._fd, chunk)
                chunk = bytearray()
            chunk += line
        _write_all(self._fd, chunk)


def open_log(path: str) -> int:
    """A descriptor that appends to a log file, which is made if it is not there. Raises OSError."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def _write_all(fd: int, data: bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


_encode = msgspec.json.Encoder().encode


def format_record(record: Record) -> bytes:
    """The JSON line of one record; `notes` are whatever the application said about the request."""
    time_ns, client, method, path, query, status, sent, received, duration_ns, notes = record
    line = {
        "time_ns": time_ns,
        "client": client,
        "method": method,
        "path": path.decode("latin-1"),
        "query": redacted(query),
        "status": status,
        "sent_bytes": sent,
        "received_bytes": received,
        "duration_us": duration_ns // 1000,
        **notes,
    }
    return _encode(line) + b"\n"


def redacted(query: bytes) -> str:
    """A query string without what would let its reader act as the caller: signatures and session tokens."""
    if b"ignature=" not in query and b"oken=" not in query and b"%" not in query:
        return query.decode("latin-1")
    kept = []
    for pair in query.decode("latin-1").split("&"):
        name, _, value = pair.partition("=")
        secret = unquote(name).lower() in ("x-amz-signature", "x-amz-security-token", "signature")
        kept.append(f"{name}=..." if secret and value else pair)
    return "&".join(kept)
