"""Acceptors that share a socket, in one event loop, so that none is ever kept from running by the machine."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from functools import partial

from tests.server.wire import until
from tigrislike.accept import Acceptor, LoadTable


class _Counted(asyncio.Protocol):
    def __init__(self, connections: set[_Counted]) -> None:
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)


async def _shares(workers: int, clients: int, *, stuck: int = 0) -> list[int]:
    """Connections of each worker once all clients are taken; `stuck` further ones have none and take none."""
    table = LoadTable(workers + stuck)
    for index in range(workers, workers + stuck):
        table.set(index, 0)
    connections: list[set[_Counted]] = [set() for _ in range(workers)]
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        listener.setblocking(False)
        acceptors = [
            Acceptor(
                listener.dup(),
                table,
                index,
                partial(len, mine),
                partial(_Counted, mine),
                tls=None,
                handshake_timeout_s=1,
            )
            for index, mine in enumerate(connections)
        ]
        for acceptor in acceptors:
            acceptor.start()
        for _ in range(clients):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        async with asyncio.timeout(20):
            await until(lambda: sum(map(len, connections)) == clients)
        shares = [len(mine) for mine in connections]
        for acceptor in acceptors:
            acceptor.close()
            await acceptor.wait_closed()
    async with asyncio.timeout(20):
        await until(lambda: not any(connections))
    return shares


def test_a_burst_is_shared_evenly() -> None:
    shares = asyncio.run(_shares(3, 48))
    assert max(shares) - min(shares) <= 2


def test_a_stuck_worker_holds_up_nobody() -> None:
    assert asyncio.run(_shares(1, 40, stuck=1)) == [40]
