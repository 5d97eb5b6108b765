"""`python -m tests.chaos.stalling_node`: `tigrislike serve` whose FoundationDB network threads can be made to hang.

The client library runs its callbacks on its network thread, so one that waits blocks everything that goes to or comes
from the cluster in that process. Each process of the node that opens a cluster listens, in a thread of its own, on a
Unix datagram socket named after its process id in the directory STALL_DIRECTORY; a number of seconds sent there blocks
its network thread for so long.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tigrislike import node
from tigrislike.cli import main
from tigrislike.metadata.kv import Engine, open_engine
from tigrislike.metadata.kv.fdb_client import load_binding

VARIABLE = "STALL_DIRECTORY"


def stall(directory: Path, pids: list[int], seconds: float) -> None:
    """Block the network threads of these processes; returns when all of them are blocked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as caller:
        caller.bind(str(directory / "caller"))
        try:
            caller.settimeout(10)
            for pid in pids:
                caller.sendto(str(seconds).encode(), str(directory / f"{pid}"))
            for _ in pids:
                assert caller.recv(100) == b"stalled"
        finally:
            (directory / "caller").unlink()


def listen(url: str, directory: Path) -> None:
    """Obey `stall` for the life of the process."""
    database = load_binding().open(unquote(urlsplit(url).path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(directory / f"{os.getpid()}"))
        while True:
            request, caller = ear.recvfrom(100)
            while not block(database, float(request)):
                pass
            ear.sendto(b"stalled", caller)


def block(database: Any, seconds: float) -> bool:
    """Block the network thread; False if the answer was there before the callback, which then ran right here."""
    transaction = database.create_transaction()
    entered: list[bool] = []
    begun = threading.Event()
    caller = threading.get_ident()

    def callback(_: Any) -> None:
        entered.append(threading.get_ident() != caller)
        begun.set()
        if entered[0]:
            threading.Event().wait(seconds)

    transaction.get_read_version().on_ready(callback)
    begun.wait()
    return entered[0]


def install() -> None:
    """Let every process that opens a cluster listen from then on."""
    directory = Path(os.environ[VARIABLE])

    async def listening(url: str, **options: Any) -> Engine:
        engine = await open_engine(url, **options)
        threading.Thread(target=listen, args=(url, directory), daemon=True).start()
        return engine

    node.open_engine = listening  # type: ignore[attr-defined]


if __name__ == "__main__":
    install()
    sys.argv.insert(1, "serve")
    main()
