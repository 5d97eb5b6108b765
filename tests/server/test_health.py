"""`/healthz` and `/readyz` in every state that a node can be in: what they answer, and that `/readyz` says why not."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.chaos.cut_off_node import COMMAND, VARIABLE
from tests.crash.test_disk_full import GIB, volume  # noqa: F401  # a fixture
from tests.nodes import RunningNode, running_node
from tests.server.test_serve import until, workers
from tigrislike.config import Settings
from tigrislike.rotation import rotate
from tigrislike.s3api.service import found_wanting


def asked(node: RunningNode, path: str) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


OK = 200, {"status": "ok"}


@pytest.mark.parametrize(("how", "why"), [("refused", "EngineUnavailable"), ("hang", "no answer within 2 s")])
def test_a_node_whose_database_is_away_lives_and_is_not_ready(tmp_path: Path, how: str, why: str) -> None:
    cut = tmp_path / "cut"
    with running_node(tmp_path / "data", command=COMMAND, environment={VARIABLE: str(cut)}) as node:
        assert asked(node, "/healthz") == asked(node, "/readyz") == OK
        cut.write_text(how)
        assert asked(node, "/readyz") == (503, {"status": "failing", "database": why})
        assert asked(node, "/healthz") == OK
        cut.unlink()
        until(lambda: asked(node, "/readyz") == OK)


def test_a_node_whose_blocks_are_gone_is_not_ready(tmp_path: Path) -> None:
    with running_node(tmp_path / "data") as node:
        incoming = node.data_dir / "cache" / "incoming"
        incoming.rename(incoming.with_name("elsewhere"))
        try:
            assert asked(node, "/readyz") == (503, {"status": "failing", "cache": "DiskFailed"})
            assert asked(node, "/healthz") == OK
        finally:
            incoming.with_name("elsewhere").rename(incoming)
        assert asked(node, "/readyz") == OK


def test_a_node_whose_disk_is_full_is_ready_and_says_so(
    volume: tuple[RunningNode, Callable[[int], None]],  # noqa: F811
) -> None:
    node, available = volume
    assert asked(node, "/readyz") == OK
    available(GIB // 2)
    assert asked(node, "/readyz") == (200, {"status": "ok", "disk": "DiskFull"})
    available(50 * GIB)
    assert asked(node, "/readyz") == OK


def test_a_node_that_stops_takes_no_connections_while_it_finishes(tmp_path: Path) -> None:
    with (
        running_node(tmp_path / "data", "--workers=1") as node,
        socket.create_connection(("127.0.0.1", node.port)) as slow,
    ):
        slow.sendall(b"POST /_tigrislike/storage HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n")
        until(lambda: asked(node, "/readyz") == OK)
        os.kill(node.pid, signal.SIGTERM)

        def refused() -> bool:
            try:
                asked(node, "/readyz")
            except OSError:
                return True
            return False

        until(refused)
        assert node.process.wait(60) == 0


@pytest.mark.sqlite
def test_a_node_whose_master_key_was_replaced_is_not_ready_until_it_is_restarted(tmp_path: Path) -> None:
    with running_node(tmp_path / "data") as node:
        s3 = node.client()
        s3.create_bucket(Bucket="before")
        rotate(Settings(data_dir=tmp_path / "data"), None)
        assert asked(node, "/readyz") == (503, {"status": "failing", "master_key": "WrongMasterKey"})
        assert asked(node, "/healthz") == OK
        with pytest.raises(ClientError) as refused:
            s3.list_buckets()
        assert refused.value.response["Error"]["Code"] == "ServiceUnavailable"
        assert "key" not in refused.value.response["Error"]["Message"]
    with running_node(tmp_path / "data") as node:
        assert asked(node, "/readyz") == OK


@pytest.mark.sqlite
def test_a_node_with_the_wrong_master_key_never_answers(tmp_path: Path) -> None:
    keys = [base64.b64encode(bytes([byte]) * 32).decode() for byte in (1, 2)]
    flags = ["--port=0", f"--data-dir={tmp_path / 'data'}"]
    with running_node(tmp_path / "data", environment={"TIGRISLIKE_MASTER_KEY": keys[0]}) as node:
        assert asked(node, "/readyz") == OK
    done = subprocess.run(
        [sys.executable, "-m", "tigrislike", "serve", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "TIGRISLIKE_MASTER_KEY": keys[1]},
    )
    assert done.returncode == 1
    assert "cannot open the store: this database was made with master key" in done.stderr


def test_a_node_whose_workers_are_starting_answers_once_they_are_there(tmp_path: Path) -> None:
    with running_node(tmp_path / "data", "--workers=1") as node:
        (worker,) = workers(node)
        os.kill(worker, signal.SIGKILL)
        assert asked(node, "/readyz") == OK, "the port is open meanwhile, and whoever asks waits"
        assert workers(node) != [worker]


def test_every_part_that_is_wanting_is_told() -> None:
    async def fine() -> None:
        pass

    async def broken() -> None:
        raise OSError("/a/path/of/this/machine")

    async def late() -> None:
        raise TimeoutError

    found = asyncio.run(found_wanting(("a", fine), ("b", broken), ("c", late)))
    assert found == {"b": "OSError", "c": "no answer within 2 s"}
