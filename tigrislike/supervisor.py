"""One parent process and its children: start them, replace the one that dies, stop them all without cutting a request.

The parent does nothing else and never opens the database, because what it opens before a fork its children would
share (a FoundationDB client does not survive that at all). A child tells the parent over a pipe that it is ready; it
learns that the parent is gone, however that came about, from the end of another pipe, and then stops as on SIGTERM.

Guarantees: a child that was ready once is replaced when it dies, at once the first time and with growing pauses when
its successors die young; a child that cannot even start ends the whole; on SIGTERM or SIGINT the front children
get SIGTERM and their time to drain, the others only after them; a second signal ends everything at once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_LOG = logging.getLogger("tigrislike.supervisor")

_YOUNG_S = 10.0  # a child that dies within this of its start counts as one more failure in a row
_MAX_PAUSE_S = 10.0
_STOP_GRACE_S = 5.0  # for closing down, after the drain time-out


@dataclass(frozen=True)
class Role:
    """What a child process is for.

    `run` is called in the child with (announce, lifeline): it calls `announce(facts)` once when ready, ends when
    SIGTERM arrives or the descriptor `lifeline` becomes readable, and returns the exit status.
    `front` children are the ones that hold clients' requests: they are stopped first and given time.
    """

    name: str
    run: Callable[[Callable[[dict[str, Any]], None], int], int]
    front: bool = False
    on_exit: Callable[[], None] = lambda: None


@dataclass(eq=False)
class _Child:
    role: Role
    pid: int = 0
    pipe: int = -1
    received: bytes = b""
    ready: bool = False
    was_ready: bool = False  # this one or one of its predecessors
    started_s: float = 0.0
    failures: int = 0
    restart_at_s: float | None = None


@dataclass
class Supervisor:
    """Run `roles` in order: each starts when all before it are ready, so the first may prepare the ground for the rest.

    Args:
        drain_timeout_s: how long front children may take after SIGTERM.
        on_ready: called once, when every child is ready, with the facts announced by role name.
        on_stop: called at the beginning of a stop, before any child is told (close listening sockets here).
    """

    roles: list[Role]
    drain_timeout_s: float
    on_ready: Callable[[dict[str, dict[str, Any]]], None]
    on_stop: Callable[[], None] = lambda: None
    _children: list[_Child] = field(default_factory=list)
    _facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    _told: bool = False
    _stop_deadline_s: float | None = None
    _failed: bool = False
    _cut: bool = False

    def run(self) -> int:
        """Supervise until told to stop. Returns 0 after a clean stop, 1 when a child failed to start or was cut."""
        self._children = [_Child(role) for role in self.roles]
        self._lifeline, self._lifeline_end = os.pipe2(os.O_CLOEXEC)
        signals, signals_end = socket.socketpair()
        signals.setblocking(False)
        signals_end.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(signals, selectors.EVENT_READ)
        self._inherited = [signals, signals_end]
        old_wakeup = signal.set_wakeup_fd(signals_end.fileno())
        watched = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
        old_handlers = {number: signal.signal(number, lambda *_: None) for number in watched}
        try:
            self._start_next()
            while self._stop_deadline_s is None or any(child.pid for child in self._children):
                for key, _ in self._selector.select(self._pause_s()):
                    if key.fileobj is signals:
                        self._on_signals(signals)
                    else:
                        self._on_pipe(key.data)
                self._on_time()
        finally:
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(old_wakeup)
            self._selector.close()
            signals.close()
            signals_end.close()
            os.close(self._lifeline)
            os.close(self._lifeline_end)
        return 1 if self._failed or self._cut else 0

    # -- Events --------------------------------------------------------------------------------------------------

    def _on_signals(self, signals: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in signals.recv(4096):
                if number in (signal.SIGTERM, signal.SIGINT):
                    if self._stop_deadline_s is None:
                        self._stop()
                    else:
                        self._kill_all()
        self._reap()

    def _reap(self) -> None:
        for child in self._children:
            if child.pid:
                pid, status = os.waitpid(child.pid, os.WNOHANG)
                if pid:
                    self._on_exit(child, os.waitstatus_to_exitcode(status))

    def _on_exit(self, child: _Child, code: int) -> None:
        child.pid = 0
        child.ready = False
        if child.pipe >= 0:
            self._close_pipe(child)
        child.role.on_exit()
        how = f"signal {-code}" if code < 0 else f"status {code}"
        if self._stop_deadline_s is not None:
            if code != 0:
                _LOG.warning("%s ended with %s while stopping", child.role.name, how)
            self._stop_others()
        elif not child.was_ready:
            _LOG.error("%s ended with %s before it was ready", child.role.name, how)
            self._failed = True
            self._stop()
        else:
            now_s = time.monotonic()
            child.failures = child.failures + 1 if now_s - child.started_s < _YOUNG_S else 0
            pause_s = min(_MAX_PAUSE_S, 0.1 * 2**child.failures) if child.failures else 0.0
            _LOG.error("%s ended with %s; a new one starts in %.1f s", child.role.name, how, pause_s)
            child.restart_at_s = now_s + pause_s

    def _on_pipe(self, child: _Child) -> None:
        data = os.read(child.pipe, 65536)
        child.received += data
        if not data or child.received.endswith(b"\n"):
            self._close_pipe(child)
        if child.received.endswith(b"\n"):
            self._facts[child.role.name] = json.loads(child.received)
            child.ready = child.was_ready = True
            self._start_next()

    def _on_time(self) -> None:
        now_s = time.monotonic()
        if self._stop_deadline_s is not None:
            if now_s >= self._stop_deadline_s:
                self._kill_all()
            return
        for child in self._children:
            if child.restart_at_s is not None and now_s >= child.restart_at_s:
                self._start(child)

    def _pause_s(self) -> float | None:
        moments = [child.restart_at_s for child in self._children if child.restart_at_s is not None]
        if self._stop_deadline_s is not None:
            moments = [self._stop_deadline_s]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    # -- Children ------------------------------------------------------------------------------------------------

    def _start_next(self) -> None:
        """Start what is due at first start: the first role, then all others together."""
        if self._stop_deadline_s is not None or self._told:
            return
        if not self._children[0].pid:
            self._start(self._children[0])
        elif self._children[0].ready:
            for child in self._children[1:]:
                if not child.pid:
                    self._start(child)
            if all(child.ready for child in self._children):
                self._told = True
                self.on_ready(self._facts)

    def _start(self, child: _Child) -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        child.restart_at_s = None
        child.received = b""
        child.started_s = time.monotonic()
        child.pid = os.fork()
        if child.pid == 0:
            os.close(reader)
            self._be_child(child.role, writer)
        os.close(writer)
        child.pipe = reader
        self._selector.register(reader, selectors.EVENT_READ, child)

    def _be_child(self, role: Role, writer: int) -> None:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            # A terminal sends Ctrl-C to the whole group; the parent passes it on as an orderly stop.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._selector.close()
            for inherited in self._inherited:
                inherited.close()
            os.close(self._lifeline_end)
            for sibling in self._children:
                if sibling.pipe >= 0:
                    os.close(sibling.pipe)

            def announce(facts: dict[str, Any]) -> None:
                os.write(writer, json.dumps(facts).encode() + b"\n")
                os.close(writer)

            code = role.run(announce, self._lifeline)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            logging.getLogger("tigrislike").exception("%s failed", role.name)
        finally:
            logging.shutdown()
            os._exit(code)

    def _close_pipe(self, child: _Child) -> None:
        self._selector.unregister(child.pipe)
        os.close(child.pipe)
        child.pipe = -1

    # -- Stopping ------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        self._stop_deadline_s = time.monotonic() + self.drain_timeout_s + _STOP_GRACE_S
        self.on_stop()
        for child in self._children:
            if child.pid and child.role.front:
                os.kill(child.pid, signal.SIGTERM)
        self._stop_others()

    def _stop_others(self) -> None:
        """Once no front child is left, stop the rest."""
        if not any(child.pid and child.role.front for child in self._children):
            self._stop_deadline_s = time.monotonic() + _STOP_GRACE_S
            for child in self._children:
                if child.pid:
                    os.kill(child.pid, signal.SIGTERM)

    def _kill_all(self) -> None:
        self._stop_deadline_s = time.monotonic() + _STOP_GRACE_S
        for child in self._children:
            if child.pid:
                _LOG.warning("%s is cut short", child.role.name)
                self._cut = True
                os.kill(child.pid, signal.SIGKILL)
