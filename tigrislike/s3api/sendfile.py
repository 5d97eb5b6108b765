"""File ranges on their way to sockets, by `sendfile`: a piece of one connection per turn of the event loop.

Guarantees:

- A turn sends at most `PIECE_BYTES` of one connection, then the loop looks at everything else; connections that can be
  sent to take turns. So a small request waits for one piece and not for a round of all large ones.
- What is not in the page cache is read by a few threads of this module's own before it is sent: a slow disk holds up
  whoever asked for those bytes, and nobody else. One read of at most `CHUNK_BYTES` is under way per connection, at most
  `WINDOW_BYTES` ahead of what has been sent, in order; so readers share the disk evenly too.
- A client that takes nothing costs nothing: its socket is watched, and its time-out runs.
- After every wait, for the client or for the disk, whoever gave the file is asked whether it still is what it was.
- What fails is told with how much was sent before it, so that the rest can come from elsewhere.

Reading ahead is `sendfile` to /dev/null, for it brings pages in as sequential readers do and copies nothing: on a cold
disk file 2.0 GB/s at 0.15 s of CPU per GiB, where preads of 256 KiB reach 0.65 at 1.2 and POSIX_FADV_WILLNEED 0.9 at
0.33. Not here: whether the bytes are right (`bytecache/`), and TLS, whose bytes pass through the process.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, Protocol

PIECE_BYTES: Final = 2 * 1024 * 1024
"""About 0.5 ms of a processor, what the block store gives out at a time, and nginx's default; half of it costs about
10 % more CPU per byte."""
CHUNK_BYTES: Final = 1024 * 1024
FIRST_PIECE_BYTES: Final = 256 * 1024
FIRST_CHUNK_BYTES: Final = FIRST_PIECE_BYTES
"""The first of a stream is short, for somebody waits for its first byte."""
WINDOW_BYTES: Final = 2 * CHUNK_BYTES
READ_THREADS: Final = 8
_PROBE_BYTES: Final = 512 * 1024
_STALE_S: Final = 1.0  # what was read this long ago may have left memory again

_NULL: Final = os.open("/dev/null", os.O_WRONLY)

_CLIENT_GONE: Final = frozenset(
    {errno.EPIPE, errno.ECONNRESET, errno.ECONNABORTED, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTUNREACH}
)


class ClientDisconnected(OSError):
    """The client is gone: raised by whoever sends to it, so that nobody goes on reading for it."""


class FileFailed(Exception):
    """A file cannot be read, is shorter than was said or was changed. No OSError, which from ASGI's `send` means a
    client gone.

    Attributes:
        sent: How many of the bytes that were asked for have been sent.
        error: What reading the file raised; EOFError where it ends early; None where it was changed.
    """

    def __init__(self, message: str, sent: int, error: BaseException | None) -> None:
        super().__init__(message)
        self.sent = sent
        self.error = error


class Outlet(Protocol):
    """A connection as this module needs it."""

    sending: Sending | None

    @property
    def closing(self) -> bool:
        """Whether nothing more can be sent."""

    def file_target(self) -> int:
        """A descriptor of the socket that the loop may watch; non-blocking."""

    def sent(self, count: int) -> None:
        """So many bytes more have been sent."""

    def full(self) -> None:
        """The socket is: while `sending.target` is watched, the client's time to take something runs."""

    def abort(self) -> None: ...


class Sending:
    """A range of one file on its way to one connection. Goes on in place where the next range begins where it ended."""

    __slots__ = (
        "begin",
        "cold",
        "done",
        "end",
        "fd",
        "fresh",
        "full_at",
        "known_end",
        "limit",
        "offset",
        "outlet",
        "reading",
        "target",
        "unchanged",
        "waited",
        "waits",
    )

    def __init__(self, outlet: Outlet, fd: int, offset: int) -> None:
        self.outlet = outlet
        self.fd = fd
        self.begin = offset  # asked for from here
        self.offset = offset  # sent up to here
        self.end = offset  # to be sent up to here
        self.limit = offset  # expected to be asked for up to here: the most that is read ahead
        self.fresh = False  # somebody waits for the first byte of a response
        self.known_end = offset  # read into memory up to here a moment ago
        self.cold = False  # the last read had to wait for the disk: go on ahead of the client
        self.reading = False  # a thread is at it
        self.waits = False  # ... and nothing can be sent before it is done
        self.unchanged: Callable[[], bool] | None = None
        self.waited = False  # since the file was last looked at
        self.target = -1  # watched for room in the socket; -1 where there is some
        self.full_at = 0.0  # since when there is none
        self.done: asyncio.Future[None] | None = None  # None while nothing is asked for


class FileSender:
    """All connections of the running event loop.

    Args:
        probe: Whether a range of a file is in memory: descriptor, offset, count.
        read: What brings one there, on a thread; says whether it had to wait for the disk.

    Attributes:
        sent_bytes: Sent from files so far.
        cold_waits: How often a client had to wait for the disk.
    """

    def __init__(
        self,
        probe: Callable[[int, int, int], bool] | None = None,
        read: Callable[[int, int, int], bool] | None = None,
    ) -> None:
        self.sent_bytes = 0
        self.cold_waits = 0
        self._loop = asyncio.get_running_loop()
        self._probe = probe or in_page_cache
        self._read = read or read_ahead
        self._fresh: deque[Sending] = deque()
        self._ready: deque[Sending] = deque()
        self._turn_was_fresh = False
        self._turning = False
        self._pool = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read-ahead")

    def close(self) -> None:
        """Let go of the threads. Reads that have not begun are forgotten."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def send(
        self,
        outlet: Outlet,
        fd: int,
        offset: int,
        count: int,
        ahead: int = 0,
        *,
        first: bool = False,
        unchanged: Callable[[], bool] | None = None,
    ) -> None:
        """Send `count` bytes of a file from `offset`.

        Args:
            outlet: One that has nothing else in hand, in particular nothing to write by itself.
            fd: Stays open until this returns or raises; nobody looks at it afterwards.
            ahead: How many bytes behind these the same file will be asked for next.
            first: Whether nothing of the response has been sent yet.
            unchanged: Whether the file still is what it was when this was called; takes microseconds.

        Raises:
            ClientDisconnected: Before all of it was taken.
            FileFailed: It cannot be read, ends early, or is not unchanged.
        """
        if not count:
            return
        sending = outlet.sending
        if sending is None or sending.fd != fd or sending.offset != offset:
            sending = outlet.sending = Sending(outlet, fd, offset)
        sending.begin = offset
        sending.end = offset + count
        sending.limit = sending.end + ahead
        sending.unchanged = unchanged
        sending.waited = False
        sending.fresh = first
        done = sending.done = self._loop.create_future()
        self._enqueue(sending)
        try:
            await done
        except BaseException:  # the client has gone, the file has failed, or the server stops
            outlet.sending = None
            sending.limit = 0
            self._unwatch(sending)
            raise
        finally:
            sending.done = None
            sending.waits = False

    def lost(self, sending: Sending) -> None:
        """The connection is gone: whoever waits for it is told."""
        self._unwatch(sending)
        self._fail(sending, ClientDisconnected("the client has closed the connection"))

    # -- Turns

    def _enqueue(self, sending: Sending) -> None:
        (self._fresh if sending.fresh else self._ready).append(sending)
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        # Whoever waits for a first byte goes before those in the middle of theirs, but not twice in a row.
        self._turn_was_fresh = bool(self._fresh) and not (self._turn_was_fresh and self._ready)
        sending = (self._fresh if self._turn_was_fresh else self._ready).popleft()
        if sending.done is not None and not sending.done.done():
            try:
                self._send_piece(sending)
            except ClientDisconnected as error:
                self._fail(sending, error)
            except Exception as error:  # whatever it is, it is this connection's
                self._fail(sending, _file_failed(sending, error))
        if self._ready or self._fresh:
            self._loop.call_soon(self._turn)
        else:
            self._turning = False

    def _send_piece(self, sending: Sending) -> None:
        outlet, fd, offset = sending.outlet, sending.fd, sending.offset
        if outlet.closing:
            raise ClientDisconnected("the client has closed the connection")
        size = min(FIRST_PIECE_BYTES if sending.fresh else PIECE_BYTES, sending.end - offset)
        if offset < sending.known_end:
            size = min(size, sending.known_end - offset)
        elif not self._probe(fd, offset, size):
            self.cold_waits += 1
            sending.waits = True
            self._read_ahead(sending)
            return
        if sending.waited and sending.unchanged is not None:
            sending.waited = False
            if not sending.unchanged():
                failure = f"sending bytes {offset} to {sending.end} of a file: it was changed meanwhile"
                raise FileFailed(failure, offset - sending.begin, None)
        target = outlet.file_target()
        try:
            sent = os.sendfile(target, fd, offset, size)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            if error.errno not in _CLIENT_GONE:
                raise
            outlet.abort()
            raise ClientDisconnected("the client has closed the connection") from error
        else:
            if not sent:
                raise EOFError(f"the file ends {sending.end - offset} bytes early")
        sending.fresh = sending.fresh and not sent
        sending.offset += sent
        outlet.sent(sent)
        self.sent_bytes += sent
        if sending.cold:
            self._read_ahead(sending)
        if sending.offset == sending.end:
            assert sending.done is not None
            sending.done.set_result(None)
        elif sent < size:
            sending.target = target
            sending.full_at = self._loop.time()
            outlet.full()
            self._loop.add_writer(target, self._has_room, sending)
        else:
            self._ready.append(sending)

    def _has_room(self, sending: Sending) -> None:
        self._unwatch(sending)
        sending.waited = True
        if self._loop.time() - sending.full_at > _STALE_S:
            sending.known_end = sending.offset
        self._enqueue(sending)

    def _unwatch(self, sending: Sending) -> None:
        if sending.target >= 0:
            self._loop.remove_writer(sending.target)
            sending.target = -1

    def _fail(self, sending: Sending, error: BaseException) -> None:
        if sending.done is not None and not sending.done.done():
            sending.done.set_exception(error)

    # -- Cold pages

    def _read_ahead(self, sending: Sending) -> None:
        """Have a thread read the next chunk, unless it is reading already or far enough ahead."""
        start = max(sending.offset, sending.known_end)
        # Who waits is not to fail for bytes that were not asked for yet.
        limit = sending.end if sending.waits else sending.limit
        stop = min(start + (CHUNK_BYTES if sending.cold else FIRST_CHUNK_BYTES), limit)
        if sending.reading or stop <= start or start - sending.offset >= WINDOW_BYTES:
            return
        fd = os.dup(sending.fd)  # the reader may close its own before the thread gets round to it
        try:
            reading = self._loop.run_in_executor(self._pool, self._read, fd, start, stop - start)
        except RuntimeError:  # the pool is closed: the server stops
            os.close(fd)
            raise
        sending.reading = True
        reading.add_done_callback(partial(self._have_read, sending, fd, start, stop))

    def _have_read(self, sending: Sending, fd: int, start: int, stop: int, reading: asyncio.Future[bool]) -> None:
        os.close(fd)
        sending.reading = False
        if reading.cancelled():
            return  # the server stops
        error = reading.exception()
        if error is None:
            sending.cold = reading.result()
            sending.known_end = stop
        elif sending.waits and start <= sending.offset and stop <= sending.end:
            self._fail(sending, _file_failed(sending, error))
            return
        else:
            sending.cold = False  # it is met again by who needs those bytes
        sending.waited = True
        if sending.waits:
            sending.waits = False
            self._enqueue(sending)
        if sending.cold:
            self._read_ahead(sending)


def _file_failed(sending: Sending, error: BaseException) -> FileFailed:
    if isinstance(error, FileFailed):
        return error
    message = f"sending bytes {sending.offset} to {sending.end} of a file: {error}"
    failure = FileFailed(message, sending.offset - sending.begin, error)
    failure.__cause__ = error
    return failure


def in_page_cache(fd: int, offset: int, count: int) -> bool:
    """Whether a file range is in memory, as far as probes at its ends and every 512 KiB tell.

    False where the filesystem cannot tell.
    """
    probe = [bytearray(1)]
    end = offset + count - 1
    try:
        for position in (*range(offset, end, _PROBE_BYTES), end):
            os.preadv(fd, probe, position, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
            return False
        raise
    return True


def read_ahead(fd: int, offset: int, count: int) -> bool:
    """Bring a file range into the page cache; for a thread. Whether any of it was not there.

    Raises:
        OSError: It cannot be read. The end of the file is none: whoever sends will meet it.
    """
    if in_page_cache(fd, offset, count):
        return False
    position, end = offset, offset + count
    while position < end:
        read = os.sendfile(_NULL, fd, position, end - position)
        if not read:
            break
        position += read
    # Where its own reading ahead begins, the kernel leaves a mark that makes a probe look cold until it is read.
    for position in (*range(offset, end - 1, _PROBE_BYTES), end - 1):
        os.pread(fd, 1, position)
    return True
