"""A wide area in user space: TCP connections between regions, with latency, a bandwidth, cuts and partitions.

A `Link` knows each region by a loopback address (127.0.1.1, 127.0.2.1, ...) from which its processes connect, and
listens in front of each node of a destination. Two regions are joined by one wire, which has two lanes, one for each
direction; all connections between the two share them, whoever opened them. What a region sends to itself, and what
comes from an address that is no region's, passes at once.

A region can also be a network namespace (`namespaces.py`). Then the link has listeners in it, and what they take comes
from that region, whatever address it is sent from: for clients like FoundationDB's, to which neither an address to
connect from nor another one to connect to can be given.

What a connection meets:

- A *handshake*: a round trip passes before the first byte leaves. (The kernel has accepted it by then, at once.)
- *Latency*: each byte arrives one latency after it left, to a millisecond. Bytes are in flight together, at most
  `window_bytes` of a connection's in each direction; a sender that is further ahead waits, as TCP's does.
- *Bandwidth*: a token bucket for each lane, 10 ms deep.
- *Partitions*: see `Link.partition`. What was in flight is delivered after the healing, as TCP would send it again.
- *Ends*: a half-close and a reset arrive one latency later, behind the bytes before them. A reset that the wire itself
  makes, or whose bytes were still unread in the kernel, may overtake these, as resets do.

Not modelled: lost packets and congestion (a lane is either slow or silent), and refusals before the kernel's handshake:
a refused connection is one that is reset before its first byte.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import random
import socket
import struct
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import uvloop

from lab.namespaces import Sockets

Established = Literal["freeze", "reset"]
Arriving = Literal["hang", "refuse"]

BURST_S = 0.01
"""Depth of a token bucket: the loop's timers have a grain of a millisecond, which must not cost bandwidth."""

CHUNK_BYTES = 256 * 1024
CHUNK_S = 0.005
"""A chunk is at most so many bytes, and so much of its lane's time: connections take turns by chunks."""

LEAST_WINDOW_BYTES = 1 << 20
MOST_WINDOW_BYTES = 64 << 20

DOOMED_BYTES = 64 * 1024
"""A connection that is to be cut is reset somewhere in its first so many bytes, both directions counted."""

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER without patience: close sends a reset


class Lane:
    """One direction of a wire: a token bucket and a counter."""

    __slots__ = ("_free_at", "crossed_bytes")

    def __init__(self) -> None:
        self.crossed_bytes = 0
        self._free_at = -math.inf

    def departure(self, size: int, bytes_per_s: float, now: float) -> float:
        """When the last of `size` bytes that are given to the lane `now` has left, in the time of `now`."""
        self._free_at = max(self._free_at, now - BURST_S) + size / bytes_per_s
        return max(self._free_at, now)


class Wire:
    """What lies between two regions."""

    def __init__(self, *regions: str) -> None:
        self.lanes = {region: Lane() for region in regions}  # by the region that sends
        self.latency_s = 0.0
        self.bytes_per_s = math.inf
        self.cut = 0.0
        self.arriving: Arriving | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.connections: set[asyncio.Task[None]] = set()

    @property
    def chunk_bytes(self) -> int:
        return int(max(1024, min(CHUNK_BYTES, self.bytes_per_s * CHUNK_S)))

    @property
    def window_bytes(self) -> int:
        """Most bytes of one connection in flight in one direction: twice what the lane holds, within bounds."""
        if not self.latency_s:
            return LEAST_WINDOW_BYTES
        return int(max(LEAST_WINDOW_BYTES, min(MOST_WINDOW_BYTES, 2 * self.latency_s * self.bytes_per_s)))


class Link:
    """The wires between regions, and the listeners of nodes. Used from the event loop that it is made in.

    Args:
        regions: name -> the address from which its processes connect.
        namespaces: the files of those that are namespaces, by the regions' names.
        seed: of the connections that are cut, and where.

    Raises:
        OSError: a namespace cannot be entered.
    """

    def __init__(
        self, regions: Mapping[str, str], *, namespaces: Mapping[str, Path] | None = None, seed: int = 0
    ) -> None:
        self._regions = tuple(regions)
        self._by_address = {address: name for name, address in regions.items()}
        if len(self._by_address) != len(regions):
            raise ValueError(f"two regions have one address: {dict(regions)}")
        self._wires = {frozenset((one, other)): Wire(one, other) for one in regions for other in regions if one < other}
        self._sockets = {region: Sockets(path) for region, path in (namespaces or {}).items()}
        self._rng = random.Random(seed)
        self._listeners: list[tuple[asyncio.Task[None], socket.socket]] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._control: asyncio.Server | None = None

    async def listen(
        self, destination: str, target: tuple[str, int], host: str = "127.0.0.1", port: int = 0
    ) -> tuple[str, int]:
        """Listen in front of the node of `destination` that is at `target`; the address listened on.

        Raises:
            ValueError: there is no such region.
            OSError: the address cannot be bound.
        """
        return self._listen(socket.create_server((host, port), backlog=1024), destination, target)

    async def listen_in(
        self, source: str, destination: str, target: tuple[str, int], host: str = "127.0.0.1", port: int = 0
    ) -> tuple[str, int]:
        """The same in the namespace of `source`.

        Raises:
            ValueError: there is no such region, or `source` is no namespace.
            OSError: the address cannot be bound.
        """
        if source not in self._sockets:
            raise ValueError(f"region {source!r} is no namespace")
        listener = await self._sockets[source].make()
        try:
            listener.bind((host, port))
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
        return self._listen(listener, destination, target, source)

    def _listen(
        self, listener: socket.socket, destination: str, target: tuple[str, int], source: str | None = None
    ) -> tuple[str, int]:
        listener.setblocking(False)
        if destination not in self._regions:
            listener.close()
            raise ValueError(f"there is no region {destination!r}; there are {', '.join(self._regions)}")
        task = asyncio.create_task(self._accept(listener, source, destination, target), name=f"link to {destination}")
        self._listeners.append((task, listener))
        address: tuple[str, int] = listener.getsockname()
        return address

    def set(
        self,
        source: str,
        destination: str,
        *,
        latency_s: float | None = None,
        bytes_per_s: float | None = None,
        cut: float | None = None,
    ) -> None:
        """Change the wire between two regions, for what is sent from now on; what is None stays as it is.

        Args:
            latency_s: one way; a round trip is two.
            bytes_per_s: of each direction; `math.inf` is no limit.
            cut: the fraction (0 to 1) of new connections that are reset in their first 64 KiB.

        Raises:
            ValueError: no such wire, or a value that makes no sense.
        """
        wire = self._wire(source, destination)
        if latency_s is not None and not 0 <= latency_s < math.inf:
            raise ValueError(f"latency_s {latency_s}: expected seconds, zero or more")
        if bytes_per_s is not None and not bytes_per_s > 0:
            raise ValueError(f"bytes_per_s {bytes_per_s}: expected more than zero; to stop a wire, partition it")
        if cut is not None and not 0 <= cut <= 1:
            raise ValueError(f"cut {cut}: expected a fraction from 0 to 1")
        wire.latency_s = wire.latency_s if latency_s is None else latency_s
        wire.bytes_per_s = wire.bytes_per_s if bytes_per_s is None else bytes_per_s
        wire.cut = wire.cut if cut is None else cut

    def partition(
        self, source: str, destination: str, *, established: Established = "freeze", arriving: Arriving = "hang"
    ) -> None:
        """Let nothing cross between two regions, either way, until `heal`.

        Args:
            established: what becomes of connections: `freeze` (they go on after the healing) or `reset`.
            arriving: what becomes of new ones: `hang` (they go on after the healing) or `refuse`.

        Raises:
            ValueError: no such wire, or another word.
        """
        wire = self._wire(source, destination)
        if established not in get_args(Established) or arriving not in get_args(Arriving):
            raise ValueError(f"{established!r}, {arriving!r}: expected freeze or reset, and hang or refuse")
        wire.arriving = arriving
        wire.open.clear()
        if established == "reset":
            for connection in wire.connections:
                connection.cancel()

    def heal(self, source: str, destination: str) -> None:
        """End a partition. Does nothing where there is none."""
        wire = self._wire(source, destination)
        wire.arriving = None
        wire.open.set()

    def crossed_bytes(self, source: str, destination: str) -> int:
        """Bytes that have arrived in `destination` from `source` so far, whoever opened the connection."""
        return self._wire(source, destination).lanes[source].crossed_bytes

    async def control(self, path: Path) -> None:
        """Listen on a Unix socket for `call`: a JSON object a line, answered by one."""
        self._control = await asyncio.start_unix_server(self._obey, path)

    async def close(self) -> None:
        """Stop listening and reset every connection."""
        if self._control is not None:
            self._control.close()
            await self._control.wait_closed()
        tasks = [task for task, _ in self._listeners] + list(self._connections)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for _, listener in self._listeners:
            listener.close()
        for sockets in self._sockets.values():
            sockets.close()

    def _wire(self, source: str, destination: str) -> Wire:
        wire = self._wires.get(frozenset((source, destination)))
        if wire is None:
            raise ValueError(
                f"no wire joins {source!r} and {destination!r}; it joins two of {', '.join(self._regions)}"
            )
        return wire

    async def _accept(
        self, listener: socket.socket, source: str | None, destination: str, target: tuple[str, int]
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, address = await loop.sock_accept(listener)
            sender = source or self._by_address.get(address[0], destination)
            wire = self._wires.get(frozenset((sender, destination)))
            if wire is None:
                wire = Wire(sender)  # within a region there is nothing between
            doomed = self._rng.randrange(DOOMED_BYTES) if self._rng.random() < wire.cut else None
            connection = asyncio.create_task(self._carry(client, target, wire, sender, destination, doomed))
            for owners in (self._connections, wire.connections):
                owners.add(connection)
                connection.add_done_callback(owners.discard)

    async def _carry(
        self,
        client: socket.socket,
        target: tuple[str, int],
        wire: Wire,
        source: str,
        destination: str,
        doomed: int | None,
    ) -> None:
        with client:
            if destination in self._sockets:
                node = await self._sockets[destination].make()
            else:
                node = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET)
            with node:
                await _connection(client, node, target, wire, source, destination, doomed)

    async def _obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                try:
                    order = json.loads(line)
                    name = order.pop("call")
                    if name not in ("set", "partition", "heal", "crossed_bytes"):
                        raise ValueError(f"{name!r}: expected set, partition, heal or crossed_bytes")
                    answer = {"result": getattr(self, name)(**order)}
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            pass  # whoever gave orders is gone
        finally:
            writer.close()


def call(path: Path, name: str, **arguments: Any) -> Any:
    """Do `set`, `partition`, `heal` or `crossed_bytes` of the link whose control socket is at `path`; its result.

    Raises:
        ValueError: the link refused.
        OSError: there is none.
    """
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(str(path))
        control.sendall(json.dumps({"call": name, **arguments}).encode() + b"\n")
        with control.makefile() as answers:
            answer = json.loads(answers.readline())
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["result"]


class _Cut(Exception):
    """The connection ends in a reset."""


async def _connection(
    client: socket.socket,
    node: socket.socket,
    target: tuple[str, int],
    wire: Wire,
    source: str,
    destination: str,
    doomed: int | None,
) -> None:
    """Carry one connection to its end: when both sockets are closed after it, that end is seen as what it is."""
    loop = asyncio.get_running_loop()
    reset = True
    try:
        for end in (client, node):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if wire.arriving == "refuse":
            raise _Cut
        await wire.open.wait()
        await asyncio.sleep(2 * wire.latency_s)
        await loop.sock_connect(node, target)
        budget = _Budget(doomed)
        there = _Direction(client, node, wire, wire.lanes[source], budget)
        # A wire within a region has one lane, and nobody reads its counter.
        back = _Direction(node, client, wire, wire.lanes.get(destination, wire.lanes[source]), budget)
        async with asyncio.TaskGroup() as group:
            for direction in (there, back):
                group.create_task(direction.receive())
                group.create_task(direction.deliver())
        reset = False
    except* (_Cut, OSError):
        pass
    finally:
        for end in (client, node):
            if reset:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


class _Budget:
    """How many more bytes a connection carries before it is cut; None: it is not."""

    def __init__(self, left: int | None) -> None:
        self.left = left

    def spend(self, size: int) -> int:
        """How many of `size` bytes may pass; fewer than `size`: then the connection is cut."""
        if self.left is None:
            return size
        passed = min(size, self.left)
        self.left -= passed
        return passed


class _Direction:
    """Bytes of one connection, one way: those in flight, who puts them there and who takes them."""

    def __init__(self, sender: socket.socket, receiver: socket.socket, wire: Wire, lane: Lane, budget: _Budget) -> None:
        self._sender = sender
        self._receiver = receiver
        self._wire = wire
        self._lane = lane
        self._budget = budget
        self._in_flight: deque[tuple[float, bytes | None]] = deque()  # when it arrives, and what; None is a reset
        self._in_flight_bytes = 0
        self._sent = asyncio.Event()
        self._room = asyncio.Event()

    async def receive(self) -> None:
        """Take from the sender as the lane has time, until its end."""
        loop = asyncio.get_running_loop()
        wire = self._wire
        data: bytes | None = None
        while data != b"":
            await wire.open.wait()
            while self._in_flight_bytes >= wire.window_bytes:
                self._room.clear()
                await self._room.wait()
            try:
                data = await loop.sock_recv(self._sender, wire.chunk_bytes)
            except OSError:
                data = None
            now = loop.time()
            departs_at = now
            if data:
                departs_at = self._lane.departure(len(data), wire.bytes_per_s, now)
                self._in_flight_bytes += len(data)
                if departs_at > now:
                    await asyncio.sleep(departs_at - now)
            self._in_flight.append((departs_at + wire.latency_s, data))
            self._sent.set()
            if data is None:
                return

    async def deliver(self) -> None:
        """Give to the receiver what has arrived, until its end.

        Raises:
            _Cut: the end is a reset.
        """
        loop = asyncio.get_running_loop()
        wire = self._wire
        while True:
            while not self._in_flight:
                self._sent.clear()
                await self._sent.wait()
            arrives_at, data = self._in_flight.popleft()
            if (wait_s := arrives_at - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            await wire.open.wait()
            if data is None:
                raise _Cut
            try:
                if not data:
                    self._receiver.shutdown(socket.SHUT_WR)
                    return
                passed = self._budget.spend(len(data))
                self._lane.crossed_bytes += passed
                await loop.sock_sendall(self._receiver, data[:passed])
            except OSError:
                await asyncio.sleep(wire.latency_s)  # the receiver's reset is on its way back
                raise _Cut from None
            if passed < len(data):
                raise _Cut
            self._in_flight_bytes -= len(data)
            self._room.set()


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lab.link", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--control", type=Path, required=True, help="Unix socket for orders")
    parser.add_argument("--region", action="append", required=True, metavar="NAME=ADDRESS")
    parser.add_argument("--node", action="append", required=True, metavar="REGION=HOST:PORT=HOST:PORT",
                        help="where to listen for a node of REGION, and where it is")  # fmt: skip
    parser.add_argument("--namespace", action="append", default=[], metavar="REGION=PATH",
                        help="a region that is a network namespace: nodes are listened for there too")  # fmt: skip
    parser.add_argument("--inside", action="append", default=[], metavar="REGION=HOST:PORT",
                        help="what is reached at its own address from the namespaces of other regions")  # fmt: skip
    return parser.parse_args(arguments)


def _address(text: str) -> tuple[str, int]:
    host, port = text.rsplit(":", 1)
    return host, int(port)


async def _main(arguments: argparse.Namespace) -> None:
    namespaces = {region: Path(path) for region, path in (each.split("=", 1) for each in arguments.namespace)}
    link = Link(dict(region.split("=", 1) for region in arguments.region), namespaces=namespaces)
    for node in arguments.node:
        region, here, there = node.split("=")
        await link.listen(region, _address(there), *_address(here))
        for source in namespaces:
            await link.listen_in(source, region, _address(there), *_address(here))
    for each in arguments.inside:
        region, address = each.split("=")
        for source in namespaces:
            if source != region:
                await link.listen_in(source, region, _address(address), *_address(address))
    await link.control(arguments.control)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_main(_arguments(sys.argv[1:])))
