"""One listening socket, many worker processes, and every worker its fair share of the connections.

With SO_REUSEPORT the kernel spreads connections by a hash: of 32 connections over two workers one may get 20 or
more, and the busier worker sets the pace of all. With a plainly shared socket the first worker to wake takes the whole
burst. Here workers share one socket and a table of their connection counts in shared memory, and a worker that has
more than another lets that one go first. A worker that dies loses no backlog, since there is only one.

A worker that is busy or stuck delays a connection by a few milliseconds at most: then whoever is awake takes it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import mmap
import socket
import ssl
from collections.abc import Callable

_LOG = logging.getLogger("tigrislike.accept")

_BATCH = 16
_DEFER_S = 0.001
_DEFERRALS = 4
_NO_DESCRIPTORS_PAUSE_S = 0.1
_ABSENT = 0xFFFFFFFF


class LoadTable:
    """Connections by worker, in memory that forked processes share. One writer per slot, so no lock."""

    def __init__(self, workers: int) -> None:
        self._memory = mmap.mmap(-1, 4 * workers)
        self._slots = memoryview(self._memory).cast("I")
        for index in range(workers):
            self._slots[index] = _ABSENT

    def set(self, index: int, connections: int) -> None:
        self._slots[index] = connections

    def absent(self, index: int) -> None:
        """The worker takes no connections: not yet, or no longer."""
        self._slots[index] = _ABSENT

    def least(self) -> int:
        """The smallest number of connections of any worker present; more than any count when there is none."""
        return min(self._slots)


class Acceptor:
    """Accepts for one worker. Has the two methods that uvicorn expects of a server: `close` and `wait_closed`.

    Args:
        load: this worker's connections, as its protocol counts them.
    """

    def __init__(
        self,
        listener: socket.socket,
        table: LoadTable,
        index: int,
        load: Callable[[], int],
        make_protocol: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        handshake_timeout_s: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._table = table
        self._index = index
        self._load = load
        self._make_protocol = make_protocol
        self._tls = tls
        self._handshake_timeout_s = handshake_timeout_s
        self._establishing: set[asyncio.Task[None]] = set()
        self._deferrals = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def start(self) -> None:
        self._table.set(self._index, self._count())
        self._loop.add_reader(self._listener, self._on_readable)

    def close(self) -> None:
        """Accept no more. Connections that are being established are finished."""
        if not self._closed:
            self._closed = True
            self._table.absent(self._index)
            if self._timer is not None:
                self._timer.cancel()
            self._loop.remove_reader(self._listener)
            self._listener.close()

    async def wait_closed(self) -> None:
        if self._establishing:
            await asyncio.wait(self._establishing)

    def _count(self) -> int:
        return self._load() + len(self._establishing)

    def _on_readable(self) -> None:
        for _ in range(_BATCH):
            count = self._count()
            self._table.set(self._index, count)
            if count > self._table.least() and self._deferrals < _DEFERRALS:
                self._deferrals += 1
                self._pause(_DEFER_S)
                return
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                self._deferrals = 0
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    _LOG.error("cannot accept a connection: %s", error)
                    self._pause(_NO_DESCRIPTORS_PAUSE_S)
                    return
                continue  # the client gave up while it waited
            self._deferrals = 0
            accepted.setblocking(False)
            task = self._loop.create_task(self._establish(accepted))
            self._establishing.add(task)
            task.add_done_callback(self._establishing.discard)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._timer = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._timer = None
        self._loop.add_reader(self._listener, self._on_readable)

    async def _establish(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make_protocol,
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=self._handshake_timeout_s if self._tls is not None else None,
            )
        except (OSError, ssl.SSLError) as error:
            _LOG.debug("a connection was not established: %s", error)
            accepted.close()
