"""`python -m bench.slow`: clients that send one byte a second, half in the headers, half in a body, and never finish.

A connection that the server closes is opened again after a second, so that their number holds. Reads no more than it
must. Prints one JSON object when its time is up: what became of the connections.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import heapq
import json
import resource
import selectors
import socket
import sys
import time
from collections.abc import Sequence

from bench.signing import Signer
from bench.stores import ACCESS_KEY, SECRET_KEY

BEAT_S = 1.0
BODY_BYTES = 1 << 20


def opening(index: int, signer: Signer, bucket: str) -> bytes:
    """What a connection sends at once: an unfinished head (even), or a signed head and no body yet (odd)."""
    if index % 2:
        path = f"/{bucket}/slow-{index:04d}"
        return signer.head("PUT", path, payload_sha256="UNSIGNED-PAYLOAD", length=BODY_BYTES)
    return f"GET /{bucket}/slow HTTP/1.1\r\nHost: {signer.host}\r\nX-Slow: ".encode()


def run(signer: Signer, bucket: str, connections: int, seconds: float, ready: int | None = None) -> dict[str, int]:
    """Holds the connections for `seconds`. Writes a byte to the file descriptor `ready` once they are open."""
    host, _, port = signer.host.partition(":")
    seen: collections.Counter[str] = collections.Counter()
    selector = selectors.DefaultSelector()
    sockets: dict[int, socket.socket] = {}
    start = time.monotonic()
    # Spread over the beat: in step, a thousand bytes a second would be a burst and not a trickle. Sorted, hence a heap.
    due = [(start + BEAT_S * index / connections, index) for index in range(connections)]

    def close(index: int) -> None:
        peer = sockets.pop(index)
        selector.unregister(peer)
        peer.close()

    while (now := time.monotonic()) < start + seconds:
        while due and due[0][0] <= now:
            beat, index = heapq.heappop(due)
            try:
                if index in sockets:
                    sockets[index].send(b"a")
                else:
                    peer = socket.create_connection((host, int(port)), timeout=5)
                    peer.send(opening(index, signer, bucket))
                    peer.setblocking(False)
                    sockets[index] = peer
                    selector.register(peer, selectors.EVENT_READ, index)
                    seen["opened"] += 1
            except OSError:
                seen["refused"] += 1
                if index in sockets:
                    close(index)
            heapq.heappush(due, (beat + BEAT_S, index))
        if ready is not None and len(sockets) >= 0.95 * connections:  # a few are always between two attempts
            with open(ready, "wb") as waiting:
                waiting.write(b"1")
            ready = None
        for event, _ in selector.select(max(0.0, min(due[0][0] - time.monotonic(), 0.05))):
            index = event.data
            data = b""
            with contextlib.suppress(OSError):
                data = sockets[index].recv(65536)
            seen[f"answered {data[9:12].decode(errors='replace')}" if data.startswith(b"HTTP/1.1") else "closed"] += 1
            close(index)
    seen["open at the end"] = len(sockets)
    for index in list(sockets):
        close(index)
    return dict(seen)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.slow", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--bucket", default="bench")
    parser.add_argument("--access-key", default=ACCESS_KEY)
    parser.add_argument("--secret-key", default=SECRET_KEY)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--ready-fd", type=int)
    options = parser.parse_args(argv)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signer = Signer(f"127.0.0.1:{options.port}", options.access_key, options.secret_key)
    print(json.dumps(run(signer, options.bucket, options.connections, options.seconds, options.ready_fd)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
