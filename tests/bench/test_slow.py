"""The slow clients stay connected, trickle, and come back when they are sent away."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from bench import slow
from bench.signing import Signer


def test_slow_clients_trickle_headers_and_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow, "BEAT_S", 0.02)
    received: dict[int, bytes] = {}
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        peers = [listener.accept()[0] for _ in range(4)]
        while any(peer.fileno() >= 0 for peer in peers):
            for i, peer in enumerate(peers):
                if peer.fileno() >= 0:
                    data = peer.recv(65536)
                    received[i] = received.get(i, b"") + data
                    if not data:
                        peer.close()

    thread = threading.Thread(target=accept)
    thread.start()
    reading, writing = os.pipe()
    seen = slow.run(Signer(f"127.0.0.1:{listener.getsockname()[1]}", "AK", "SK"), "b", 4, 1.5, writing)
    thread.join()
    listener.close()
    with open(reading, "rb") as ready:
        assert ready.read() == b"1"
    assert seen == {"opened": 4, "open at the end": 4}
    heads = [data for data in received.values() if data.startswith(b"GET")]
    bodies = [data for data in received.values() if data.startswith(b"PUT")]
    assert len(heads) == len(bodies) == 2
    assert all(b"\r\n\r\n" not in data and data.endswith(b"aaa") for data in heads)
    assert all(3 < len(data.partition(b"\r\n\r\n")[2]) < 100 for data in bodies)


def test_slow_clients_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow, "BEAT_S", 0.02)
    listener = socket.create_server(("127.0.0.1", 0))

    def turn_away() -> None:
        for i in range(6):
            peer, _ = listener.accept()
            if i == 5:
                listener.close()  # before the client is sent away, or it may be back first
            if i % 2:
                peer.sendall(b"HTTP/1.1 503 Slow Down\r\n\r\n")
                while peer.recv(65536):  # until it hangs up: a reset would overtake the answer
                    pass
            peer.close()

    thread = threading.Thread(target=turn_away)
    thread.start()
    seen = slow.run(Signer(f"127.0.0.1:{listener.getsockname()[1]}", "AK", "SK"), "b", 1, 3.0)
    thread.join()
    assert seen["opened"] == 6
    assert seen["answered 503"] >= 1
    assert seen["refused"] >= 1
    assert seen["open at the end"] == 0
