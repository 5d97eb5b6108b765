"""A large body's way from the socket into the memory that it is written to disk from, without a copy in between.

The usual way is a `bytes` object for every read, which is copied where it is needed; for an upload that costs more CPU
than anything but its digests. While most of a plain body of known length is still to come, a `DirectReceiver` takes the
connection's place at its transport and lends the kernel the sink's own memory. The last bytes come the usual way, so
that the end of the request, and whatever follows it, are the connection's to deal with.

It holds to what the connection promises: reading pauses while the sink is full, time-outs go by bytes received, and a
client that goes away ends the wait. Not here: encrypted connections (what is decrypted lies in memory of its own) and
bodies that have to be decoded.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, Self

from tigrislike.s3api.exchange import Exchange
from tigrislike.s3api.request import Receive

_TAIL_BYTES = 4096  # come the usual way
_WORTHWHILE_BYTES = 128 * 1024  # less than this arrives in a read or two


class Sink(Protocol):
    """Where a body goes: `bytecache.BlobWriter`."""

    @property
    def full(self) -> bool:
        """Whether no more bytes should come before `ready`."""

    def room(self) -> memoryview:
        """Memory for the next bytes, at least one."""

    def filled(self, count: int) -> None:
        """`count` bytes have been put there."""

    async def ready(self) -> None:
        """Wait until it is not full; raises what became of it."""

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Put a copy of `data`."""


class DirectReceiver(asyncio.BufferedProtocol):
    """Receives bodies of one request into one sink."""

    def __init__(self, exchange: Exchange, sink: Sink) -> None:
        self._exchange = exchange
        self._connection = exchange.connection
        self._sink = sink
        self._left = 0
        self._aside = bytearray()

    @classmethod
    def of(cls, receive: Receive, sink: Sink) -> Self | None:
        """A receiver for the request that `receive` belongs to; None where it does not come from a plain socket."""
        exchange = getattr(receive, "__self__", None)
        if not isinstance(exchange, Exchange) or exchange.connection.tls:
            return None
        return cls(exchange, sink)

    async def receive(self) -> int:
        """Fill the sink with all but the last of what is still to come; how many bytes that was.

        Does nothing where bytes have arrived that were not asked for yet, where the client waits for the go-ahead, and
        where little is to come.

        Raises:
            Exception: what became of the sink.
        """
        exchange, connection = self._exchange, self._connection
        wanted = connection.body_left - _TAIL_BYTES
        waiting = exchange.body or exchange.awaits_continue
        if waiting or connection.incoming is not exchange or wanted < _WORTHWHILE_BYTES:
            return 0
        self._left = wanted
        connection.transport.set_protocol(self)
        try:
            while self._left and not exchange.disconnected:
                await self._sink.ready()
                exchange.waiter = connection.loop.create_future()
                connection.resume_reading()
                await exchange.waiter
        finally:
            if connection.transport.get_protocol() is self:
                connection.transport.set_protocol(connection)
        return wanted - self._left

    def get_buffer(self, sizehint: int) -> bytearray | memoryview:
        if self._exchange.disconnected:  # refused, and its task has not noticed yet
            self._aside = bytearray(65536)
            return self._aside
        return self._sink.room()[: self._left]

    def buffer_updated(self, nbytes: int) -> None:
        exchange, connection = self._exchange, self._connection
        if self._aside:
            connection.data_received(bytes(self._aside[:nbytes]))
            return
        self._left -= nbytes
        connection.body_left -= nbytes
        connection.window_bytes += nbytes
        exchange.length_left -= nbytes
        exchange.received_bytes += nbytes
        self._sink.filled(nbytes)
        if not self._left:
            connection.transport.set_protocol(connection)
        elif self._sink.full:
            connection.pause_reading()
        else:
            return
        waiter = exchange.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def eof_received(self) -> bool:
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
