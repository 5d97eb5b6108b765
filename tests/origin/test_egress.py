"""The gate: which addresses pass, and that no client gets around it by another name, another answer, a redirect."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import obstore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import HTTPStore

from tests.bench.scripted_server import answer
from tests.origin import servers
from tests.origin.routed import routed
from tests.server.wire import run
from tigrislike.origin import (
    Attributes,
    EgressRefused,
    Location,
    Origin,
    OriginMissing,
    OriginRefused,
    OriginUnavailable,
    Timeouts,
    open_origin,
)
from tigrislike.origin import egress as gate
from tigrislike.origin import proxy as proxies
from tigrislike.origin.egress import Egress, is_public

PUBLIC = "8.8.8.8"  # is connected to by no test


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.127.255.255",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "198.18.0.1",
        "224.0.0.1",
        "239.1.1.1",
        "255.255.255.255",
        "240.0.0.1",
        "192.88.99.1",
        "203.0.113.7",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "fec0::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::ffff:7f00:1",
        "2002:7f00:1::",
        "2002:808:808::",
        "64:ff9b::7f00:1",
        "64:ff9b::808:808",
        "64:ff9b:1::1",
        "2001::1",
        "2001:db8::1",
        "100::1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "8.8.8.8.",
    ],
)
def test_what_is_on_this_side_of_the_internet_or_stands_for_it_does_not_pass(address: str) -> None:
    assert not is_public(address)
    assert not Egress().permits(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "52.216.0.1", "172.32.0.1", "100.128.0.1", "2600:1f18::1", "2a00::1"])
def test_what_is_on_the_internet_passes(address: str) -> None:
    assert Egress().permits(address)


@given(st.ip_addresses())
def test_nothing_passes_that_python_takes_for_private(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if is_public(str(address)):
        assert address.is_global
        assert not address.is_multicast


def answering(*answers: list[str]) -> tuple[gate.Resolve, list[str]]:
    """A resolver that gives these answers in turn, the last for ever, and the names it was asked."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    return resolve, asked


def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every address that this process connects to from here on; public ones are refused as if nobody was there."""
    to: list[str] = []
    connect = asyncio.BaseEventLoop.sock_connect

    def note(address: Any) -> None:
        to.append(address[0])
        if is_public(address[0]):
            raise ConnectionRefusedError(f"{address[0]} is not really asked by a test")

    async def sock_connect(loop: Any, sock: socket.socket, address: Any) -> None:
        note(address)
        await connect(loop, sock, address)

    monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_connect", sock_connect)
    return to


@asynccontextmanager
async def opened(egress: Egress, url: str, timeouts: Timeouts | None = None, **fields: str) -> AsyncIterator[Origin]:
    origin = open_origin(Location(url, **fields), egress=egress, timeouts=timeouts)  # type: ignore[arg-type]
    try:
        yield origin
    finally:
        await origin.close()
        await egress.aclose()


def asyncio_run(main: Any) -> None:
    """On asyncio's own loop, whose connections a test can look at."""
    asyncio.run(asyncio.wait_for(main, 60))


OK = answer(b"hello", "200 OK", b'ETag: "e"', b"Last-Modified: Sun, 29 Nov 2026 10:41:43 GMT")

# The two clients: aiohttp for S3, HTTP and Google, obstore behind the proxy.
CLIENTS = [
    lambda host, port: (f"http://{host}:{port}/folder", {}),
    lambda host, port: ("s3://bucket", {"endpoint": f"http://{host}:{port}"}),
    lambda host, port: ("az://box", {"endpoint": f"http://{host}:{port}", "access_key": "account"}),
    lambda host, port: ("gs://box", {"endpoint": f"http://{host}:{port}"}),
]
clients = pytest.mark.parametrize("client", CLIENTS, ids=["http", "s3", "azure", "google"])
Client = Callable[[str, int], tuple[str, dict[str, str]]]


@clients
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"])
def test_no_client_asks_this_machine(client: Client, host: str) -> None:
    heads: list[bytes] = []

    async def main(port: int) -> None:
        url, fields = client(host, port)
        async with opened(Egress(), url, **fields) as origin:
            # Some clients take such a number for no address at all; then there is nothing for the gate to refuse.
            with pytest.raises(EgressRefused if host[0] in "1l[" else OriginRefused):
                await origin.head("key")

    with routed(lambda line: OK, heads) as port:
        run(main(port))
    assert heads == []


@clients
def test_with_leave_every_client_asks_this_machine(client: Client) -> None:
    heads: list[bytes] = []

    async def main(port: int) -> None:
        url, fields = client("127.0.0.1", port)
        async with opened(Egress(allow_private=True), url, **fields) as origin:
            assert origin.name
            if url.startswith("s3"):
                with pytest.raises(Exception):  # noqa: B017  # what is answered are no tags
                    await origin.head("key")
            else:
                assert (await origin.head("key")).size == 5

    with routed(lambda line: OK, heads) as port:
        run(main(port))
    assert heads


@clients
def test_a_name_that_is_public_first_and_loopback_later_leads_nowhere(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the second answer is checked as the first, and what is connected to is what was checked."""
    to = dialled(monkeypatch)
    resolve, asked = answering([PUBLIC], ["127.0.0.1"])
    heads: list[bytes] = []

    async def main(port: int) -> None:
        url, fields = client("rebinding.example", port)
        async with opened(Egress(resolve=resolve), url, **fields) as origin:
            with pytest.raises((OriginUnavailable, EgressRefused)):
                await origin.head("key")
        async with opened(Egress(resolve=resolve), url, **fields) as origin:
            with pytest.raises(EgressRefused):
                await origin.head("key")

    with routed(lambda line: OK, heads) as port:
        asyncio_run(main(port))
    assert set(asked) == {"rebinding.example"}
    assert len(asked) >= 2
    assert set(to) <= {PUBLIC}
    assert heads == []


def test_of_several_addresses_only_those_that_pass_are_tried() -> None:
    resolve, _ = answering(["127.0.0.1", PUBLIC, "::1", "169.254.169.254"])
    assert run(Egress(resolve=resolve).addresses("mixed.example", 80)) == [PUBLIC]


def test_a_redirect_to_the_metadata_service_is_not_followed_by_the_http_client() -> None:
    """The front address is allowed here, so that there is somebody to redirect; the next is not."""
    for target in ("http://169.254.169.254/latest/meta-data/", "http://metadata.example/"):
        redirect = answer(b"", "302 Found", f"Location: {target}".encode())

        async def main(port: int) -> None:
            async with opened(OnlyFront(), f"http://127.0.0.1:{port}/folder") as origin:
                with pytest.raises(EgressRefused):
                    await origin.head("key")

        with routed(lambda line, redirect=redirect: redirect) as port:
            run(main(port))


def test_a_redirect_to_the_metadata_service_is_not_followed_by_obstore() -> None:
    """obstore's own HTTP client, which follows redirects, behind the same proxy as the drivers that ride on it."""
    redirect = answer(b"", "302 Found", b"Location: http://169.254.169.254/latest/meta-data/")

    async def main(port: int) -> None:
        egress = OnlyFront()
        given = await egress.issue_pass()
        client: Any = {"proxy_url": given.url, "allow_http": True}
        store = HTTPStore(f"http://127.0.0.1:{port}/", client_options=client, retry_config={"max_retries": 0})
        try:
            # It leaves its pass behind when it goes to another host, and so does not even get as far as the gate.
            with pytest.raises(Exception, match=r"407 Proxy|403 Forbidden"):
                await obstore.get_async(store, "key")
            assert len(heads) == 1
        finally:
            await egress.aclose()

    heads: list[bytes] = []
    with routed(lambda line: redirect, heads) as port:
        run(main(port))


class OnlyFront(Egress):
    """A gate that lets through to 127.0.0.1, in place of a public address that tests have not got, and as ever else."""

    def __init__(self) -> None:
        async def resolve(host: str, port: int) -> list[str]:
            return ["169.254.169.254"] if host == "metadata.example" else [host]

        super().__init__(resolve=resolve)

    def permits(self, address: str) -> bool:
        return address == "127.0.0.1" or super().permits(address)


# -- the proxy ---------------------------------------------------------------------------------------------------------


def test_through_the_proxy_everything_arrives(tmp_path: Path) -> None:
    async def main(endpoint: str) -> None:
        fields = {"endpoint": endpoint, "access_key": "account"}
        egress = OnlyFront()
        async with opened(egress, f"az://{servers.BUCKET}/through", **fields) as origin:

            async def pieces() -> AsyncIterator[bytes]:
                for _ in range(5):
                    yield b"0123456789" * 100_000

            written = await origin.put("a", pieces(), 5_000_000, Attributes())
            read = [bytes(p) async for p in origin.read("a", 1, 4_999_999, size=5_000_000, etag=written.etag)]
            assert b"".join(read) == (b"0123456789" * 500_000)[1:-1]
            await asyncio.gather(*(origin.head("a") for _ in range(20)))
            with pytest.raises(OriginMissing):
                await origin.head("b")

    with servers.azure(tmp_path) as endpoint:
        run(main(endpoint))


async def raw(port: int, *sent: bytes) -> bytes:
    """What a connection to the proxy is answered, to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in sent:
        writer.write(piece)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def on_proxy(test: Callable[..., Any]) -> Callable[[], None]:
    """A test that is given a started proxy's port, and a pass; its way out is one that finds nobody."""

    def bounded() -> None:
        async def main() -> None:
            async def connect(host: str, port: int) -> Any:
                raise OSError("nobody there")

            proxy = proxies.Proxy(connect)
            await proxy.start()
            given = proxy.issue()
            try:
                await test(proxy, given, int(given.url.rpartition(":")[2]))
            finally:
                await proxy.close()

        run(main())

    return bounded


@on_proxy
async def _check_credentials(proxy: proxies.Proxy, given: proxies.Pass, port: int) -> None:
    asking = b"GET http://example.org/ HTTP/1.1\r\nHost: example.org\r\n"
    credential = f"Proxy-Authorization: {given.authorization}\r\n\r\n".encode()
    assert (await raw(port, asking, b"\r\n")).startswith(b"HTTP/1.1 407 ")
    assert (await raw(port, asking, b"Proxy-Authorization: Basic b3JpZ2luOng=\r\n\r\n")).startswith(b"HTTP/1.1 407 ")
    assert (await raw(port, asking, credential)).startswith(b"HTTP/1.1 502 ")
    proxy.revoke(given)
    assert (await raw(port, asking, credential)).startswith(b"HTTP/1.1 407 ")


def test_nobody_without_a_pass_is_served() -> None:
    _check_credentials()


@on_proxy
async def _check_targets(proxy: proxies.Proxy, given: proxies.Pass, port: int) -> None:
    credential = f" HTTP/1.1\r\nProxy-Authorization: {given.authorization}\r\n\r\n".encode()
    for line in (b"GET /path", b"GET https://host/", b"GET ftp://host/", b"CONNECT host", b"CONNECT host:many", b"GET"):
        assert (await raw(port, line, credential)).startswith(b"HTTP/1.1 400 "), line
    assert await raw(port, b"GET " + b"a" * 100_000 + credential) == b""


def test_what_is_no_request_for_a_proxy_is_refused() -> None:
    _check_targets()


def test_a_proxy_serves_no_more_at_once_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxies, "CONNECTIONS", 1)

    @on_proxy
    async def check(proxy: proxies.Proxy, given: proxies.Pass, port: int) -> None:
        _, first = await asyncio.open_connection("127.0.0.1", port)
        first.write(b"GET ")
        while not proxy._serving:  # noqa: ASYNC110  # the first is accepted
            await asyncio.sleep(0)
        assert (await raw(port)).startswith(b"HTTP/1.1 503 ")
        first.close()

    check()


def test_a_head_that_does_not_come_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxies, "HEAD_TIMEOUT_S", 0.05)

    @on_proxy
    async def check(proxy: proxies.Proxy, given: proxies.Pass, port: int) -> None:
        assert await raw(port, b"GET ") == b""

    check()


def test_a_tunnel_carries_both_ways_and_ends_with_its_proxy() -> None:
    async def main() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while piece := await reader.read(1000):
                writer.write(piece)
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        there = server.sockets[0].getsockname()[1]
        egress = Egress(allow_private=True)
        given = await egress.issue_pass()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(given.url.rpartition(":")[2]))
        head = f"CONNECT 127.0.0.1:{there} HTTP/1.1\r\nProxy-Authorization: {given.authorization}\r\n\r\n"
        writer.write(head.encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
        writer.write(b"over there")
        assert await reader.readexactly(10) == b"over there"
        await egress.aclose()
        assert await reader.read() == b""
        writer.close()
        server.close()
        await server.wait_closed()

    run(main())


def test_a_name_that_is_not_resolved_in_time_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "RESOLVE_TIMEOUT_S", 0.01)

    async def resolve(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    async def main() -> None:
        async with opened(Egress(resolve=resolve), "s3://bucket", endpoint="http://slow.example") as origin:
            with pytest.raises(OriginUnavailable):
                await origin.head("key")

    run(main())


@pytest.mark.parametrize("url", ["file:///tmp", "arrow+file:///tmp"])
def test_this_machines_files_are_for_operators(url: str) -> None:
    with pytest.raises(EgressRefused):
        open_origin(Location(url), egress=Egress())
