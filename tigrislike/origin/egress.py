"""The one way out: whichever address an origin is said to have, it is looked at before a connection is made to it.

Who may set an origin could otherwise make this node ask what only this node can reach: services on its loopback, its
cloud's metadata service, its neighbours. A name is resolved here, every address that it has is checked, and the
connection is made to an address that passed, not to the name: a name that has another address a moment later gains
nothing by it, nor does one behind a redirect. Clients that resolve names themselves go through a proxy (`proxy`) that
does the same.

With `allow_private` every address passes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from .errors import EgressRefused
from .proxy import Pass, Proxy

Resolve = Callable[[str, int], Awaitable[list[str]]]

RESOLVE_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 5.0

# Only what the registries call global unicast may be connected to: IANA IPv4 and IPv6 Special-Purpose Address
# Registries. Within that, addresses that stand for others, and one that Azure's hosts answer on.
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_REFUSED = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; also Alibaba Cloud's metadata service
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's platform
        "169.254.0.0/16",  # link-local; metadata services of AWS, Google Cloud, Azure
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments; Oracle Cloud's metadata service
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
        "2001::/23",  # protocol assignments; Teredo is in it
        "2001:db8::/32",
        "2002::/16",  # 6to4: stands for an IPv4 address
        "3fff::/20",
    )
)


def is_public(address: str) -> bool:
    """Whether an IPv4 or IPv6 address, written in digits, is one of the Internet's and not of this side of it."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if parsed.version == 6 and parsed not in _GLOBAL_V6:  # also IPv4-mapped, NAT64, unique local, link-local
        return False
    return not any(parsed in network for network in _REFUSED if network.version == parsed.version)


class Egress:
    """Connections to where they may go. One for a process: `close` ends what it has open by itself.

    Args:
        allow_private: whether everything passes.
        ca: PEM file of the authorities to trust beside the system's.
        resolve: from a name and a port to addresses in digits; raises OSError. None: the system's resolver.
    """

    def __init__(self, *, allow_private: bool = False, ca: str | None = None, resolve: Resolve | None = None) -> None:
        self.allow_private = allow_private
        self.ca = Path(ca).read_bytes() if ca is not None else None
        self._resolve = resolve or _resolve
        self._ssl: ssl.SSLContext | None = None
        self._proxy: Proxy | None = None

    def permits(self, address: str) -> bool:
        """Whether an address, in digits, may be connected to."""
        return self.allow_private or is_public(address)

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host that may be connected to; at least one.

        Raises:
            EgressRefused: it has none.
            OSError: it cannot be resolved.
        """
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                found = await self._resolve(host, port)
        except TimeoutError:
            raise OSError(f"{host} is not resolved within {RESOLVE_TIMEOUT_S:g} s") from None
        passed = [address for address in found if self.permits(address)]
        if not passed:
            raise _refused(host)
        return passed

    def connector(self, *, connections: int) -> aiohttp.TCPConnector:
        """A connector for aiohttp, which belongs to the session it is given to; at most `connections` to a host."""
        if self._ssl is None:
            self._ssl = ssl.create_default_context()
            if self.ca is not None:
                self._ssl.load_verify_locations(cadata=self.ca.decode())
        return aiohttp.TCPConnector(
            limit=0,
            limit_per_host=connections,
            resolver=_Resolver(self),
            socket_factory=self._socket,
            ssl=self._ssl,
        )

    async def connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to one of a host's addresses.

        Raises:
            EgressRefused: it has none that may be connected to.
            OSError: none of them answers.
        """
        failure = OSError(f"{host} has no address")
        for address in await self.addresses(host, port):
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    return await asyncio.open_connection(address, port)
            except OSError as error:  # TimeoutError is one
                failure = error
        raise failure

    async def issue_pass(self) -> Pass:
        """A pass through the proxy, for one client that resolves names itself; `revoke_pass` ends it."""
        if self._proxy is None:
            self._proxy = Proxy(self.connect)
            await self._proxy.start()
        return self._proxy.issue()

    def revoke_pass(self, given: Pass) -> None:
        if self._proxy is not None:
            self._proxy.revoke(given)

    async def aclose(self) -> None:
        """Stop the proxy, if there is one, and with it what goes through it."""
        if self._proxy is not None:
            await self._proxy.close()

    def _socket(self, info: tuple[Any, ...]) -> socket.socket:
        """A socket to an address as getaddrinfo says it. A host in digits is asked of no resolver, and caught here."""
        family, kind, protocol, _, to = info
        if not self.permits(to[0]):
            raise _refused(to[0])
        return socket.socket(family, kind, protocol)


class _Resolver(AbstractResolver):
    def __init__(self, egress: Egress) -> None:
        self._egress = egress

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in await self._egress.addresses(host, port)
        ]

    async def close(self) -> None:
        pass


async def _resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _refused(host: str) -> EgressRefused:
    return EgressRefused(
        f"{host} is an address of this machine, of its network or of its cloud, which origins may not be at unless the "
        "operator allows it"
    )
