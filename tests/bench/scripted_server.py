"""A server that answers each request with the next of some prepared bytes, and remembers what it was sent."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

HANG = b""  # takes the request and never answers
CLOSE = None  # takes the request and closes


@dataclass
class ScriptedServer:
    """Answers come in turn, over all connections, and start again after the last."""

    port: int
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)  # head, body
    connections: int = 0


def answer(body: bytes = b"", status: str = "200 OK", *headers: bytes) -> bytes:
    """A response with Content-Length."""
    lines = [f"HTTP/1.1 {status}".encode(), b"Content-Length: %d" % len(body), *headers, b"", body]
    return b"\r\n".join(lines)


def _read_request(stream: socket.SocketIO) -> tuple[bytes, bytes] | None:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = stream.read(1)
        if not byte:
            return None
        head += byte
    length = next((int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length")), 0)
    body = b""
    while len(body) < length:
        more = stream.read(length - len(body))
        if not more:
            return None
        body += more
    return head, body


@contextmanager
def serve(answers: Sequence[bytes | None]) -> Iterator[ScriptedServer]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = ScriptedServer(listener.getsockname()[1])
    script, lock, open_sockets = itertools.cycle(answers), threading.Lock(), set[socket.socket]()

    def talk(peer: socket.socket) -> None:
        with peer, peer.makefile("rb", buffering=0) as stream, suppress(OSError):
            while request := _read_request(stream):
                with lock:
                    server.requests.append(request)
                    response = next(script)
                if response is CLOSE:
                    return
                peer.sendall(response)

    def listen() -> None:
        with suppress(OSError):
            while True:
                peer, _ = listener.accept()
                server.connections += 1
                open_sockets.add(peer)
                threads.append(thread := threading.Thread(target=talk, args=(peer,)))
                thread.start()

    threads: list[threading.Thread] = []
    acceptor = threading.Thread(target=listen)
    acceptor.start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for peer in open_sockets:
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
