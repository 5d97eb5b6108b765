"""File ranges on their way to sockets: whose turn it is, what is read ahead, and what goes wrong."""

from __future__ import annotations

import array
import asyncio
import errno
import itertools
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server import wire
from tests.server.wire import run, serving, until
from tigrislike.logs import AccessLog
from tigrislike.s3api import sendfile
from tigrislike.s3api.http import HttpProtocol
from tigrislike.s3api.sendfile import (
    CHUNK_BYTES,
    FIRST_CHUNK_BYTES,
    FIRST_PIECE_BYTES,
    PIECE_BYTES,
    READ_THREADS,
    WINDOW_BYTES,
    ClientDisconnected,
    FileFailed,
    FileSender,
    Sending,
    in_page_cache,
    read_ahead,
)

GET = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n"
MIB = 1024 * 1024
SIZE = 16 * MIB


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "file"
    found.write_bytes(content(0, SIZE))
    return found


CONTENT = array.array("Q", range(0, SIZE, 8)).tobytes()  # each eight bytes say where they are


def content(start: int, stop: int) -> bytes:
    return CONTENT[start:stop]


class Outlet:
    """A connection whose socket is any descriptor: /dev/null takes everything at once."""

    def __init__(self, target: int, name: str = "") -> None:
        self.target = target
        self.name = name
        self.sending: Sending | None = None
        self.closing = False
        self.aborted = False
        self.stalls = 0
        self.pieces: list[int] = []

    def sent(self, count: int) -> None:
        self.pieces.append(count)

    def file_target(self) -> int:
        return self.target

    def full(self) -> None:
        self.stalls += 1

    def abort(self) -> None:
        self.aborted = self.closing = True


@pytest.fixture
def null(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A descriptor of /dev/null which, unlike the kernel's now and then, takes all of what it is sent at once."""
    fd = os.open(os.devnull, os.O_WRONLY)
    kernel = os.sendfile

    def sendfile(target: int, source: int, offset: int, count: int) -> int:
        sent = 0
        while (more := kernel(target, source, offset + sent, count - sent)) and target == fd:
            sent += more
        return sent or more

    monkeypatch.setattr(os, "sendfile", sendfile)
    yield fd
    os.close(fd)


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


class Disk:
    """A disk that the test moves: what is in memory, and when a read ends. Its reads wait for `go`."""

    def __init__(self, *, blocked: bool = False) -> None:
        self.memory: set[int] = set()  # numbers of the 64 KiB units that are there
        self.reads: list[tuple[int, int]] = []
        self.go = threading.Event()
        if not blocked:
            self.go.set()
        self.error: OSError | None = None
        self.under_way = 0

    def probe(self, fd: int, offset: int, count: int) -> bool:
        return self._units(offset, count) <= self.memory

    def read(self, fd: int, offset: int, count: int) -> bool:
        assert self.under_way == 0
        self.under_way += 1
        os.fstat(fd)
        self.reads.append((offset, count))
        self.go.wait()
        self.under_way -= 1
        if self.error is not None:
            raise self.error
        cold = not self.probe(fd, offset, count)
        self.memory |= self._units(offset, count)
        return cold

    @staticmethod
    def _units(offset: int, count: int) -> set[int]:
        return set(range(offset // 65536, -(-(offset + count) // 65536)))


def drive(body: Callable[[FileSender], Awaitable[None]], **seams: Any) -> None:
    """Run a test with a sender, and see that it lets go of everything."""

    async def main() -> None:
        before = len(os.listdir("/proc/self/fd"))
        sender = FileSender(**seams)
        try:
            await body(sender)
        finally:
            # Fewer where the garbage of other tests was collected meanwhile.
            await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
            sender.close()

    run(main())


# -- Turns -----------------------------------------------------------------------------------------------------------


def test_connections_take_turns_of_one_piece(fd: int, null: int) -> None:
    async def body(sender: FileSender) -> None:
        turns: list[str] = []

        class Watched(Outlet):
            def sent(self, count: int) -> None:
                turns.append(self.name)
                assert count <= PIECE_BYTES

        outlets = [Watched(null, name) for name in "abc"]
        await asyncio.gather(*(sender.send(outlet, fd, 0, SIZE) for outlet in outlets))
        assert "".join(turns) == "abc" * (SIZE // PIECE_BYTES)
        assert sender.sent_bytes == 3 * SIZE

    drive(body, probe=lambda *_: True)


def test_a_first_byte_goes_before_the_middle_of_others_but_does_not_starve_them(fd: int, null: int) -> None:
    async def body(sender: FileSender) -> None:
        turns: list[str] = []
        small: list[asyncio.Future[None]] = []

        class Watched(Outlet):
            def sent(self, count: int) -> None:
                turns.append(self.name)
                assert (count == FIRST_PIECE_BYTES) == (self.name == "b")
                if len(turns) == 8:
                    late = [Watched(null, "b") for _ in range(4)]
                    small.extend(
                        asyncio.ensure_future(sender.send(outlet, fd, 0, FIRST_PIECE_BYTES, first=True))
                        for outlet in late
                    )

        await asyncio.gather(*(sender.send(Watched(null, "A"), fd, 0, SIZE) for _ in range(4)))
        await asyncio.gather(*small)
        assert "".join(turns).strip("A") == "bAbAbAb"

    drive(body, probe=lambda *_: True)


def test_the_loop_gets_round_to_others_between_two_pieces(fd: int, null: int) -> None:
    async def body(sender: FileSender) -> None:
        outlets = [Outlet(null) for _ in range(8)]
        sending = asyncio.gather(*(sender.send(outlet, fd, 0, SIZE) for outlet in outlets))
        seen = [0]
        while not sending.done():
            await asyncio.sleep(0)
            seen.append(sum(len(outlet.pieces) for outlet in outlets))
        await sending
        assert max(after - before for before, after in itertools.pairwise(seen)) == 1

    drive(body, probe=lambda *_: True)


def test_nothing_is_sent_for_an_empty_range(fd: int, null: int) -> None:
    async def body(sender: FileSender) -> None:
        outlet = Outlet(null)
        await sender.send(outlet, fd, 5, 0)
        assert outlet.pieces == []

    drive(body)


def test_a_full_socket_is_waited_for_and_others_go_on(fd: int, null: int) -> None:
    async def body(sender: FileSender) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            stalled = Outlet(ours.fileno())
            sending = asyncio.ensure_future(sender.send(stalled, fd, 0, SIZE))
            await until(lambda: stalled.stalls == 1)
            before = sum(stalled.pieces)
            await sender.send(Outlet(null), fd, 0, SIZE)
            assert sum(stalled.pieces) == before
            theirs.setblocking(False)
            loop, received = asyncio.get_running_loop(), b""
            while len(received) < SIZE:
                received += await loop.sock_recv(theirs, MIB)
            await sending
            assert received == content(0, SIZE)
            assert stalled.stalls > 0

    drive(body)


# -- Cold pages ------------------------------------------------------------------------------------------------------


def test_a_slow_disk_holds_up_only_who_asked_for_its_bytes(fd: int, null: int) -> None:
    cold = Disk(blocked=True)

    async def body(sender: FileSender) -> None:
        waiting = Outlet(null)
        sending = asyncio.ensure_future(sender.send(waiting, fd, 0, SIZE))
        await until(lambda: bool(cold.reads))
        cold.memory |= cold._units(8 * MIB, 8 * MIB)
        quick = Outlet(null)
        await sender.send(quick, fd, 8 * MIB, 8 * MIB)
        assert sum(quick.pieces) == 8 * MIB
        assert waiting.pieces == []
        assert sender.cold_waits == 1
        cold.go.set()
        await sending
        assert sum(waiting.pieces) == SIZE

    drive(body, probe=cold.probe, read=cold.read)


def test_a_cold_stream_is_read_in_order_once_and_first_a_little(fd: int, null: int) -> None:
    disk = Disk()

    async def body(sender: FileSender) -> None:
        await sender.send(Outlet(null), fd, 0, 5 * MIB)
        assert disk.reads[0] == (0, FIRST_CHUNK_BYTES)
        position = 0
        for offset, count in disk.reads:
            assert offset == position
            assert count <= CHUNK_BYTES
            position += count
        assert position == 5 * MIB

    drive(body, probe=disk.probe, read=disk.read)


def test_reading_ahead_stays_within_its_window_of_a_client_that_takes_nothing(fd: int) -> None:
    disk = Disk()

    async def body(sender: FileSender) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            outlet = Outlet(ours.fileno())
            sending = asyncio.ensure_future(sender.send(outlet, fd, 0, SIZE))
            await until(lambda: outlet.stalls == 1 and outlet.sending is not None and not outlet.sending.reading)
            assert outlet.sending is not None
            ahead = sum(count for _, count in disk.reads) - outlet.sending.offset
            assert 0 < ahead < WINDOW_BYTES + CHUNK_BYTES
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending

    drive(body, probe=disk.probe, read=disk.read)


def test_reading_ahead_goes_on_into_the_next_segment_and_not_beyond_what_will_be_asked_for(fd: int, null: int) -> None:
    disk = Disk()

    async def body(sender: FileSender) -> None:
        outlet = Outlet(null)
        for start in range(0, 6 * MIB, 2 * MIB):
            await sender.send(outlet, fd, start, 2 * MIB, 4 * MIB - start)
        assert sum(outlet.pieces) == 6 * MIB
        assert max(offset + count for offset, count in disk.reads) == 6 * MIB
        assert sum(count for _, count in disk.reads) == 6 * MIB
        assert {offset for offset, _ in disk.reads}.isdisjoint({2 * MIB, 4 * MIB})  # no chunk ends with its segment

    drive(body, probe=disk.probe, read=disk.read)


def test_what_is_in_memory_ends_reading_ahead(fd: int, null: int) -> None:
    disk = Disk()
    disk.memory |= Disk._units(2 * MIB, 14 * MIB)

    async def body(sender: FileSender) -> None:
        await sender.send(Outlet(null), fd, 0, SIZE)
        await until(lambda: disk.under_way == 0)
        assert sum(count for _, count in disk.reads) <= 2 * MIB + 2 * CHUNK_BYTES

    drive(body, probe=disk.probe, read=disk.read)


def test_what_was_read_long_ago_is_looked_for_again(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sendfile, "_STALE_S", -1.0)
    disk = Disk()

    async def body(sender: FileSender) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            outlet = Outlet(ours.fileno())
            sending = asyncio.ensure_future(sender.send(outlet, fd, 0, SIZE))
            await until(lambda: outlet.stalls == 1 and outlet.sending is not None and not outlet.sending.reading)
            waits = sender.cold_waits
            disk.memory.clear()  # somebody else needed it
            loop, received = asyncio.get_running_loop(), b""
            while len(received) < SIZE:
                received += await loop.sock_recv(theirs, MIB)
            await sending
            assert received == content(0, SIZE)
            assert sender.cold_waits > waits

    drive(body, probe=disk.probe, read=disk.read)


def test_pages_dropped_by_the_kernel_come_back(path: Path) -> None:
    with path.open("rb") as file:
        fd = file.fileno()
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        was_there = in_page_cache(fd, 0, SIZE)  # a filesystem in memory keeps its pages
        assert read_ahead(fd, 0, SIZE) is not was_there
        assert in_page_cache(fd, 0, SIZE)
        assert not read_ahead(fd, 0, SIZE)
        assert in_page_cache(fd, SIZE - 10, 10)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0


def test_reading_ahead_beyond_the_end_of_a_file_ends_there(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        read_ahead(file.fileno(), SIZE - 100, MIB)


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EOPNOTSUPP])
def test_where_the_filesystem_cannot_tell_everything_is_read_first(
    code: int, fd: int, null: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: Any) -> int:
        raise OSError(code, "cannot tell")

    monkeypatch.setattr(os, "preadv", cannot)

    async def body(sender: FileSender) -> None:
        outlet = Outlet(null)
        await sender.send(outlet, fd, 0, SIZE)
        assert sum(outlet.pieces) == SIZE
        assert sender.cold_waits > 0

    drive(body)


# -- What goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("disk_error", [errno.EIO, errno.ENOMEM])
def test_a_disk_that_fails_fails_the_reader(fd: int, null: int, disk_error: int) -> None:
    disk = Disk()
    disk.error = OSError(disk_error, os.strerror(disk_error))

    async def body(sender: FileSender) -> None:
        with pytest.raises(FileFailed, match=os.strerror(disk_error)):
            await sender.send(Outlet(null), fd, 0, SIZE)

    drive(body, probe=disk.probe, read=disk.read)


def test_a_probe_that_fails_fails_the_reader_and_no_other(fd: int, null: int, tmp_path: Path) -> None:
    async def body(sender: FileSender) -> None:
        write_only = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
        other = Outlet(null)
        sending = asyncio.ensure_future(sender.send(other, fd, 0, SIZE))
        with pytest.raises(FileFailed, match="Bad file descriptor"):
            await sender.send(Outlet(null), write_only, 0, 100)
        os.close(write_only)
        await sending
        assert sum(other.pieces) == SIZE

    drive(body)


def test_a_read_that_fails_in_sendfile_fails_the_reader(fd: int, null: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    async def body(sender: FileSender) -> None:
        monkeypatch.setattr(os, "sendfile", fail)
        outlet = Outlet(null)
        with pytest.raises(FileFailed, match="Input/output"):
            await sender.send(outlet, fd, 0, SIZE)
        assert not outlet.aborted

    drive(body, probe=lambda *_: True)


def test_a_file_that_ends_early_fails_the_reader(fd: int) -> None:
    async def body(sender: FileSender) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            outlet = Outlet(ours.fileno())
            with pytest.raises(FileFailed, match="10 bytes early"):
                await sender.send(outlet, fd, SIZE - 100, 110)
            assert sum(outlet.pieces) == 100

    drive(body, probe=lambda *_: True)


def test_a_failure_says_how_much_was_sent_before_it_and_why(fd: int, null: int) -> None:
    disk = Disk()
    disk.memory |= Disk._units(0, 3 * PIECE_BYTES)
    disk.error = OSError(errno.EIO, os.strerror(errno.EIO))

    async def body(sender: FileSender) -> None:
        outlet = Outlet(null)
        await sender.send(outlet, fd, 0, PIECE_BYTES)
        with pytest.raises(FileFailed) as failed:
            await sender.send(outlet, fd, PIECE_BYTES, SIZE - PIECE_BYTES)
        assert (failed.value.sent, failed.value.error) == (2 * PIECE_BYTES, disk.error)
        assert outlet.sending is None

    drive(body, probe=disk.probe, read=disk.read)


def test_a_disk_that_fails_ahead_of_a_reader_is_no_failure_of_what_he_has_asked_for(fd: int, null: int) -> None:
    disk = Disk()
    bad = range(PIECE_BYTES, PIECE_BYTES + CHUNK_BYTES)
    failed = 0

    def read(fd: int, offset: int, count: int) -> bool:
        nonlocal failed
        if offset < bad.stop and bad.start < offset + count:
            failed += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return disk.read(fd, offset, count)

    async def body(sender: FileSender) -> None:
        outlet = Outlet(null)
        await sender.send(outlet, fd, 0, PIECE_BYTES, ahead=SIZE - PIECE_BYTES)
        await until(lambda: failed > 0)
        assert sum(outlet.pieces) == PIECE_BYTES
        with pytest.raises(FileFailed) as failure:
            await sender.send(outlet, fd, PIECE_BYTES, PIECE_BYTES)
        assert failure.value.sent == 0

    drive(body, probe=disk.probe, read=read)


@pytest.mark.parametrize("wait", ["client", "disk"])
def test_a_file_that_is_changed_while_something_is_waited_for_is_sent_no_further(fd: int, null: int, wait: str) -> None:
    disk = Disk(blocked=wait == "disk")
    if wait == "client":
        disk.memory |= Disk._units(0, SIZE)
    looks: list[bool] = []

    def unchanged() -> bool:
        looks.append(len(looks) < 2)
        return looks[-1]

    async def body(sender: FileSender) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            outlet = Outlet(null if wait == "disk" else ours.fileno())
            sending = asyncio.ensure_future(sender.send(outlet, fd, 0, SIZE, unchanged=unchanged))
            if wait == "disk":
                await until(lambda: bool(disk.reads))
                assert looks == []
                disk.go.set()
            while not sending.done():
                try:
                    theirs.recv(1 << 20)
                except BlockingIOError:
                    await until(lambda: sending.done() or bool(in_flight(theirs)))
            with pytest.raises(FileFailed, match="changed") as failed:
                await sending
            assert looks == [True, True, False]
            assert failed.value.error is None
            assert failed.value.sent == sum(outlet.pieces) < SIZE

    drive(body, probe=disk.probe, read=disk.read)


def in_flight(receiver: socket.socket) -> bytes:
    """Whether there is something to receive."""
    try:
        return receiver.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return b""


def test_out_of_descriptors_fails_the_reader(fd: int, null: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    async def body(sender: FileSender) -> None:
        monkeypatch.setattr(os, "dup", no_more)
        with pytest.raises(FileFailed, match="Too many open files"):
            await sender.send(Outlet(null), fd, 0, SIZE)

    drive(body, probe=lambda *_: False)


def test_a_client_that_reset_is_gone(fd: int) -> None:
    async def body(sender: FileSender) -> None:
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            theirs.close()
            outlet = Outlet(ours.fileno())
            with pytest.raises(ClientDisconnected):
                await sender.send(outlet, fd, 0, SIZE)
            assert outlet.aborted

    drive(body)


def test_nothing_is_sent_on_a_connection_that_closes(fd: int, null: int) -> None:
    async def body(sender: FileSender) -> None:
        outlet = Outlet(null)
        outlet.closing = True
        with pytest.raises(ClientDisconnected):
            await sender.send(outlet, fd, 0, SIZE)
        assert outlet.pieces == []

    drive(body)


def test_a_client_lost_while_the_disk_is_waited_for_is_let_go_at_once(fd: int, null: int) -> None:
    disk = Disk(blocked=True)

    async def body(sender: FileSender) -> None:
        outlet = Outlet(null)
        sending = asyncio.ensure_future(sender.send(outlet, fd, 0, SIZE))
        await until(lambda: bool(disk.reads))
        assert outlet.sending is not None
        sender.lost(outlet.sending)
        with pytest.raises(ClientDisconnected):
            await sending
        assert disk.under_way == 1
        disk.go.set()

    drive(body, probe=disk.probe, read=disk.read)


def test_a_client_lost_while_its_socket_is_full_is_let_go(fd: int) -> None:
    async def body(sender: FileSender) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            outlet = Outlet(ours.fileno())
            sending = asyncio.ensure_future(sender.send(outlet, fd, 0, SIZE))
            await until(lambda: outlet.stalls == 1)
            assert outlet.sending is not None
            sender.lost(outlet.sending)
            assert outlet.sending.target == -1
            with pytest.raises(ClientDisconnected):
                await sending

    drive(body)


def test_reads_that_have_not_begun_are_forgotten_at_the_end(fd: int, null: int) -> None:
    go, begun = threading.Event(), threading.Semaphore(0)

    def read(fd: int, offset: int, count: int) -> bool:
        begun.release()
        return go.wait()

    async def body(sender: FileSender) -> None:
        sendings = [asyncio.ensure_future(sender.send(Outlet(null), fd, 0, SIZE)) for _ in range(3 * READ_THREADS)]
        await until(lambda: sender.cold_waits == len(sendings))
        for _ in range(READ_THREADS):
            begun.acquire()
        sender.close()
        for sending in sendings:
            sending.cancel()
        await asyncio.gather(*sendings, return_exceptions=True)
        go.set()

    drive(body, probe=lambda *_: False, read=read)
    assert not begun.acquire(blocking=False)


# -- Over HTTP -------------------------------------------------------------------------------------------------------


def sends(path: Path, *segments: tuple[int, int, int]) -> wire.App:
    """An application that answers with these (offset, count, ahead) of a file."""
    length = sum(count for _, count, _ in segments)

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % length)]})
        with path.open("rb") as file:
            for offset, count, ahead in segments:
                message = {"type": "http.response.zerocopysend", "file": file, "offset": offset, "count": count}
                await send({**message, "ahead": ahead, "more_body": True})
        await send({"type": "http.response.body"})

    return app


def stalled(connections: list[HttpProtocol]) -> bool:
    """Whether a client leaves its socket full."""
    return any(c.sending is not None and c.sending.target >= 0 for c in connections)


def test_a_stalled_and_a_cold_client_hold_up_nobody(path: Path) -> None:
    cold = Disk(blocked=True)
    cold.memory |= Disk._units(0, 15 * MIB)

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        start = 15 * MIB if scope["path"] == "/cold" else 0
        count = MIB if scope["path"] == "/cold" else 100 if scope["path"] == "/small" else 15 * MIB
        await sends(path, (start, count, 0))(scope, receive, send)

    async def main() -> None:
        async with serving(app) as server:
            server.front.files = FileSender(cold.probe, cold.read)
            waiting, slow, small = await server.client(), await server.client(), await server.client()
            slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await waiting.send(GET % b"cold")
            await slow.send(GET % b"large")
            await until(lambda: bool(cold.reads))
            await until(lambda: stalled(server.connections))
            for _ in range(100):
                await small.send(GET % b"small")
                assert (await small.response())[2] == content(0, 100)
            cold.go.set()
            assert (await waiting.response())[2] == content(15 * MIB, 16 * MIB)
            slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert (await slow.response())[2] == content(0, 15 * MIB)
            assert server.front.sendfile_bytes == 16 * MIB + 100 * 100
            assert server.front.sendfile_cold >= 1
            server.front.files.close()

    run(main())


def test_a_client_that_takes_nothing_of_a_file_is_cut_off_in_time(path: Path) -> None:
    async def main() -> None:
        async with serving(sends(path, (0, SIZE, 0))) as server:
            client = await server.client()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(GET % b"")
            await until(lambda: stalled(server.connections))
            server.elapse(30)
            await until(lambda: not server.connections and not server.front.tasks)

    run(main())


def test_a_disk_that_is_slow_is_not_held_against_the_client(path: Path) -> None:
    disk = Disk()
    disk.memory |= Disk._units(0, 8 * MIB)

    async def main() -> None:
        async with serving(sends(path, (0, SIZE, 0))) as server:
            server.front.files = FileSender(disk.probe, disk.read)
            client = await server.client()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(GET % b"")
            await until(lambda: stalled(server.connections))  # the client's turn
            disk.go.clear()
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            received = (await client.reader.readuntil(b"\r\n\r\n"))[:0]
            while not server.front.sendfile_cold:
                received += await client.reader.read(MIB)
            for _ in range(5):
                server.elapse(30)  # the disk's turn
            disk.go.set()
            assert received + await client.reader.readexactly(SIZE - len(received)) == content(0, SIZE)
            server.front.files.close()

    run(main())


def test_a_client_that_takes_a_file_slowly_is_served(path: Path) -> None:
    async def main() -> None:
        async with serving(sends(path, (0, SIZE, 0))) as server:
            client = await server.client()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(GET % b"")
            await until(lambda: stalled(server.connections))
            server.elapse(15)  # of 20 seconds to take something
            sent = server.front.sendfile_bytes
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            received = (await client.reader.readuntil(b"\r\n\r\n"))[:0]
            while len(received) < SIZE:
                if server.front.sendfile_bytes > sent and stalled(server.connections):
                    sent = server.front.sendfile_bytes
                    server.elapse(15)
                piece = await client.reader.read(MIB)
                assert piece
                received += piece
            assert received == content(0, SIZE)

    run(main())


def test_a_disk_that_fails_in_the_middle_cuts_the_response(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    disk.memory |= Disk._units(0, MIB)
    disk.error = OSError(errno.EIO, "Input/output error")

    async def main() -> None:
        async with serving(sends(path, (0, 2 * MIB, 0))) as server:
            server.front.files = FileSender(disk.probe, disk.read)
            client = await server.client()
            await client.send(GET % b"")
            body = (await client.rest()).partition(b"\r\n\r\n")[2]
            assert body == content(0, len(body))
            assert len(body) < 2 * MIB
            server.front.files.close()

    run(main())
    assert "Input/output error" in caplog.text


def test_head_and_first_bytes_leave_together_and_a_written_answer_goes_before_them(path: Path) -> None:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["path"] == "/written":
            await wire.respond(send, bytes(200_000))
        else:
            await sends(path, (0, 1000, 0))(scope, receive, send)

    async def main() -> None:
        async with serving(app) as server:
            client = await server.client()
            await client.send(GET % b"written" + GET % b"file" + GET % b"written" + GET % b"file")
            for _ in range(2):
                assert (await client.response())[2] == bytes(200_000)
                assert (await client.response())[2] == content(0, 1000)

    run(main())


def test_the_log_tells_of_a_cut_download_once_and_what_was_sent_of_it(path: Path) -> None:
    records: list[Any] = []

    async def main() -> None:
        async with serving(sends(path, (0, SIZE, 0))) as server:
            server.front.access_log = AccessLog("off", records.append)
            client = await server.client()
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(GET % b"")
            await until(lambda: stalled(server.connections))
            client.reset()
            await until(lambda: not server.connections and not server.front.tasks)
            sent = server.front.sendfile_bytes  # until the reset came some more may have found room
            assert [record[6] for record in records] == [sent]
            assert 0 < sent < SIZE

    run(main())
