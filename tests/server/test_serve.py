"""`tigrislike serve` as processes: starting, being killed in parts, draining, and sharing one port evenly."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.nodes import RunningNode, running_node


def s3(node: RunningNode, **config: Any) -> Any:
    return node.client(**config)


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for what other processes bring about; they have no way to tell this one."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def workers(node: RunningNode) -> list[int]:
    """The worker processes: those children that hold the listening socket (the agent does not)."""
    return [pid for pid in node.children() if listens(pid, node.port)]


def listens(pid: int, port: int) -> bool:
    """Whether a process holds the listening socket; one that has ended meanwhile does not."""
    try:
        inodes = {
            line.split()[9]
            for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
            if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
        }
        return any(link == f"socket:[{inode}]" for link in descriptors(pid) for inode in inodes)
    except (FileNotFoundError, ProcessLookupError):
        return False


def descriptors(pid: int) -> list[str]:
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(os.readlink(entry))
    return links


def test_the_parts_of_a_node_are_private_and_root_keys_stay(tmp_path: Path) -> None:
    with running_node(tmp_path / "data") as node:
        first = node.exports
        s3(node).create_bucket(Bucket="kept")
    assert "export AWS_SECRET_ACCESS_KEY=" + first["AWS_SECRET_ACCESS_KEY"] in node.log.read_text()
    assert (tmp_path / "data" / "master.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "data" / "metadata.db").stat().st_mode & 0o077 == 0
    with running_node(tmp_path / "data") as node:
        assert node.access_key_id == first["AWS_ACCESS_KEY_ID"]
        assert [bucket["Name"] for bucket in s3(node).list_buckets()["Buckets"]] == ["kept"]


def test_root_keys_that_the_operator_gives_are_used_and_not_printed(tmp_path: Path) -> None:
    keys = {"TIGRISLIKE_ROOT_ACCESS_KEY": "rootrootroot", "TIGRISLIKE_ROOT_SECRET_KEY": "hush-hush-hush-hush"}
    with running_node(tmp_path / "data", environment=keys) as node:
        assert node.access_key_id == "rootrootroot"
        assert s3(node).list_buckets()["Buckets"] == []
        assert "hush-hush" not in node.log.read_text()


def test_a_wrong_master_key_is_noticed_at_start(tmp_path: Path) -> None:
    with running_node(tmp_path / "data"):
        pass
    (tmp_path / "data" / "master.key").write_text("00" * 32)
    with pytest.raises(AssertionError, match="master key"), running_node(tmp_path / "data"):
        pass


def test_a_port_that_is_taken_is_refused_by_name(store: RunningNode, tmp_path: Path) -> None:
    refusal = pytest.raises(AssertionError, match=f"cannot listen on 127.0.0.1 port {store.port}")
    with refusal, running_node(tmp_path / "data", f"--port={store.port}"):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_requests_in_flight_finish_and_refuses_new_ones(tmp_path: Path, number: signal.Signals) -> None:
    with running_node(tmp_path / "data") as node:
        client = s3(node)
        client.create_bucket(Bucket="bucket")
        url = urlsplit(client.generate_presigned_url("put_object", Params={"Bucket": "bucket", "Key": "k"}))
        with (
            socket.create_connection((url.hostname, url.port)) as upload,
            contextlib.closing(http.client.HTTPConnection(node.endpoint.partition("//")[2], timeout=60)) as idle,
        ):
            idle.request("GET", "/healthz")  # so that a worker has it: a connection that none has taken yet is reset
            idle.getresponse().read()
            head = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: 6\r\n"
            upload.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
            assert upload.recv(100).startswith(b"HTTP/1.1 100")  # the request is in flight
            upload.sendall(b"abc")
            node.process.send_signal(number)
            assert idle.sock.recv(1) == b""
            until(lambda: not can_connect(node.port))
            upload.sendall(b"def")
            answer = upload.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in answer
        assert node.process.wait(30) == 0
    with running_node(tmp_path / "data") as node:
        assert s3(node).get_object(Bucket="bucket", Key="k")["Body"].read() == b"abcdef"


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    except ConnectionResetError:
        pass
    return True


def test_requests_that_outlast_the_drain_are_cut(tmp_path: Path) -> None:
    with running_node(tmp_path / "data", "--drain-timeout=100ms") as node:
        client = s3(node)
        client.create_bucket(Bucket="bucket")
        url = urlsplit(client.generate_presigned_url("put_object", Params={"Bucket": "bucket", "Key": "k"}))
        with socket.create_connection((url.hostname, url.port)) as upload:
            head = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: 6\r\n"
            upload.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
            assert upload.recv(100).startswith(b"HTTP/1.1 100")
            assert node.stop() == 0
            with contextlib.suppress(ConnectionResetError):
                assert upload.recv(100) == b""
    with running_node(tmp_path / "data") as node:
        assert "Contents" not in s3(node).list_objects_v2(Bucket="bucket")


def test_a_killed_worker_is_replaced_and_the_others_go_on(tmp_path: Path) -> None:
    with running_node(tmp_path / "data") as node:
        client = s3(node, retries={"total_max_attempts": 4})
        client.create_bucket(Bucket="bucket")
        before = workers(node)
        assert len(before) == 2
        for pid in before:
            os.kill(pid, signal.SIGKILL)
            client.put_object(Bucket="bucket", Key=str(pid), Body=b"x")
            until(lambda: len(workers(node)) == 2)
        assert not set(before) & set(workers(node))
        assert client.list_objects_v2(Bucket="bucket")["KeyCount"] == 2
        assert node.stop() == 0
        assert "ended with signal 9" in node.log.read_text()


def test_a_killed_agent_is_replaced(tmp_path: Path) -> None:
    with running_node(tmp_path / "data") as node:
        (agent,) = set(node.children()) - set(workers(node))
        os.kill(agent, signal.SIGKILL)
        until(lambda: len(node.children()) == 3 and agent not in node.children())
        assert s3(node).list_buckets()["Buckets"] == []
        assert node.stop() == 0


def test_when_the_supervisor_is_killed_its_children_stop(tmp_path: Path) -> None:
    with running_node(tmp_path / "data") as node:
        children = list(node.children())
        assert len(children) == 3
        os.kill(node.pid, signal.SIGKILL)
        node.process.wait(60)
        until(lambda: all(gone(pid) for pid in children))


def test_a_second_signal_ends_everything_at_once(tmp_path: Path) -> None:
    with running_node(tmp_path / "data") as node:
        client = s3(node)
        client.create_bucket(Bucket="bucket")
        url = urlsplit(client.generate_presigned_url("put_object", Params={"Bucket": "bucket", "Key": "k"}))
        with socket.create_connection((url.hostname, url.port)) as upload:
            head = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: 6\r\n"
            upload.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
            assert upload.recv(100).startswith(b"HTTP/1.1 100")
            node.process.send_signal(signal.SIGTERM)
            until(lambda: not can_connect(node.port))
            node.process.send_signal(signal.SIGTERM)
            assert node.process.wait(60) == 1


def test_connections_are_spread_over_the_workers(tmp_path: Path) -> None:
    """How evenly is test_accept's: here the machine may keep a worker from running for as long as a burst takes."""
    with running_node(tmp_path / "data") as node, contextlib.ExitStack() as stack:
        processes = workers(node)

        def sockets() -> list[int]:
            return [sum(link.startswith("socket:") for link in descriptors(pid)) for pid in processes]

        before = sockets()
        for made in range(1, 65):
            stack.enter_context(socket.create_connection(("127.0.0.1", node.port)))
            until(lambda made=made: sum(sockets()) - sum(before) == made)  # type: ignore[misc]
        shares = [after - earlier for after, earlier in zip(sockets(), before, strict=True)]
        assert min(shares) >= 16


def test_broken_http_is_answered_in_s3_xml(either_store: RunningNode) -> None:
    import ssl

    with socket.create_connection(("127.0.0.1", either_store.port)) as plain:
        connection: socket.socket = plain
        if either_store.ca_bundle:
            context = ssl.create_default_context(cafile=either_store.ca_bundle)
            connection = context.wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=True)
        with connection:
            connection.sendall(b"PUT /b/k HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n")
            answer = b""
            while data := connection.recv(65536):
                answer += data
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"<Code>BadRequest</Code>" in answer


def test_objects_travel_over_http_and_https(either_store: RunningNode) -> None:
    client = s3(either_store)
    bucket = f"travel-{urlsplit(either_store.endpoint).scheme}"
    client.create_bucket(Bucket=bucket)
    for size in (0, 1000, 3_000_000, 20_000_000):
        body = os.urandom(size)
        client.put_object(Bucket=bucket, Key=str(size), Body=body)
        assert client.get_object(Bucket=bucket, Key=str(size))["Body"].read() == body


def test_each_request_is_one_line_of_the_access_log(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with running_node(tmp_path / "data", f"--access-log={log}") as node:
        client = s3(node)
        client.create_bucket(Bucket="bucket")
        client.put_object(Bucket="bucket", Key="a/b c", Body=b"12345")
        with pytest.raises(client.exceptions.NoSuchKey):
            client.get_object(Bucket="bucket", Key="none")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines = [line for line in lines if not line["path"].startswith("/_tigrislike/")]  # what the scan for secrets asks
    assert sorted((line["method"], line["path"], line["status"]) for line in lines) == [
        ("GET", "/bucket/none", 404),
        ("PUT", "/bucket", 200),
        ("PUT", "/bucket/a/b%20c", 200),
    ]


def test_health_is_answered_without_a_key(store: RunningNode) -> None:
    for path in ("/healthz", "/readyz"):
        connection = http.client.HTTPConnection("127.0.0.1", store.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", path)
            assert connection.getresponse().status == 200


def test_nothing_that_is_imported_before_the_fork_starts_a_thread() -> None:
    code = "from tigrislike.server import _preload; import os; _preload(); print(len(os.listdir('/proc/self/task')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "1\n"
