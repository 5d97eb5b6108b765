"""A server whose answer depends on what it is asked: raw bytes from the request line, in any order of requests."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def routed(route: Callable[[str], bytes], heads: list[bytes] | None = None, *, closes: bool = False) -> Iterator[int]:
    """Answers requests without bodies until the block ends; its port.

    Args:
        route: from the request line to the whole answer.
        heads: is given the head of each request.
        closes: whether a connection ends with its first answer.
    """

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                while line := self.rfile.readline():
                    head = line
                    while (field := self.rfile.readline()).strip():
                        head += field
                    if heads is not None:
                        heads.append(head)
                    answer = route(line.decode("latin-1"))
                    if line.startswith(b"HEAD "):
                        answer = answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
                    self.wfile.write(answer)
                    if closes:
                        return

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()
