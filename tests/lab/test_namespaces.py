"""Regions that are network namespaces, and a link that listens in them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from lab.link import Link
from lab.namespaces import Namespace, Sockets

ONE_WAY_S = 0.05

ASK = """
import socket, sys, time
began = time.monotonic()
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as connection:
    connection.sendall(b"question")
    print(connection.recv(100).decode(), time.monotonic() - began)
"""

SERVE = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    print("ready", flush=True)
    connection, address = listener.accept()
    connection.sendall(b"from within: " + connection.recv(100))
"""


@pytest.fixture
def namespace() -> Namespace:
    try:
        return Namespace()
    except PermissionError:
        pytest.skip("needs the right to make network namespaces")


async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"answer to " + await reader.read(100))
    await writer.drain()
    writer.close()


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await body()

    asyncio.run(bounded())


async def ask_in(namespace: Namespace, port: int) -> tuple[str, float]:
    """What a process in a namespace is answered, and after how many seconds."""
    process = await asyncio.create_subprocess_exec(
        *namespace.command, sys.executable, "-c", ASK, "127.0.0.1", str(port), stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    *words, took = out.decode().split()
    return " ".join(words), float(took)


def test_what_is_said_in_a_namespace_crosses_the_wire_of_its_region(namespace: Namespace) -> None:
    async def body() -> None:
        server = await asyncio.start_server(answering, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        link = Link({"here": "127.0.1.1", "there": "127.0.2.1"}, namespaces={"there": namespace.path})
        link.set("here", "there", latency_s=ONE_WAY_S)
        try:
            await link.listen_in("there", "here", ("127.0.0.1", port), port=port)  # the server's own address
            answer, took_s = await ask_in(namespace, port)
            assert answer == "answer to question"
            assert took_s >= 4 * ONE_WAY_S  # the handshake, and the question
            assert (link.crossed_bytes("there", "here"), link.crossed_bytes("here", "there")) == (8, 18)
            with pytest.raises(OSError, match="in use"):
                await link.listen_in("there", "here", ("127.0.0.1", port), port=port)
        finally:
            await link.close()
            server.close()
            namespace.close()

    run(body)


def test_a_node_in_a_namespace_is_reached_from_outside_and_from_nowhere_but_through_the_link(
    namespace: Namespace,
) -> None:
    async def body() -> None:
        link = Link({"here": "127.0.1.1", "there": "127.0.2.1"}, namespaces={"there": namespace.path})
        node = await asyncio.create_subprocess_exec(
            *namespace.command, sys.executable, "-c", SERVE, "9999", stdout=subprocess.PIPE
        )
        try:
            assert node.stdout is not None
            assert await node.stdout.readline() == b"ready\n"
            host, port = await link.listen("there", ("127.0.0.1", 9999))
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", 9999)
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"question")
            assert await reader.read(100) == b"from within: question"
            writer.close()
            await node.wait()
        finally:
            if node.returncode is None:
                node.kill()
            await link.close()
            namespace.close()

    run(body)


def test_a_region_that_is_no_namespace_has_no_listeners_inside() -> None:
    async def body() -> None:
        link = Link({"here": "127.0.1.1", "there": "127.0.2.1"})
        with pytest.raises(ValueError, match="no namespace"):
            await link.listen_in("there", "here", ("127.0.0.1", 1))
        await link.close()

    run(body)


def test_a_file_that_is_no_namespace_cannot_be_entered(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Sockets(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="setns"):
        Sockets(tmp_path / "file")


AS_NOBODY = """
import concurrent.futures.thread, os
from lab.namespaces import Namespace
if os.geteuid() == 0:
    os.setuid(65534)
Namespace()
"""


def test_who_may_not_make_namespaces_is_told_so() -> None:
    done = subprocess.run([sys.executable, "-c", AS_NOBODY], capture_output=True, text=True, check=False)
    assert "PermissionError" in done.stderr
    assert "unshare" in done.stderr
