"""What docs/foundationdb.md tells operators, held against a cluster: what its status has, and a locked database."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests import clusters
from tests.clusters import fresh_url
from tests.crash.test_kill import until
from tests.e2e.conftest import client
from tests.nodes import RunningNode, running_node
from tests.regions.regions import succeeds
from tigrislike.metadata.kv.fdb_client import load_binding

pytestmark = pytest.mark.fdb

DOCUMENT = Path(__file__).parents[2] / "docs" / "foundationdb.md"
LOCK = b"\xff\xff/management/db_locked"
SETTLE_TIMEOUT_S = 60.0
STATUS = b"\xff\xff/status/json"


def native() -> Any:
    transaction = load_binding().open(str(clusters.cluster_file())).create_transaction()
    transaction.options.set_timeout(5000)
    return transaction


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """The whole database locked, as `lock` in fdbcli does it."""

    def set_lock(lock: bool) -> None:
        transaction = native()
        transaction.options.set_special_key_space_enable_writes()
        transaction.options.set_lock_aware()
        if lock:
            transaction.set(LOCK, b"0123456789abcdef" * 2)
        else:
            transaction.clear(LOCK)
        transaction.commit().wait()

    set_lock(True)
    try:
        yield
    finally:
        set_lock(False)


def status_of_cluster() -> Any:
    transaction = native()
    return json.loads(bytes(transaction.get(STATUS).wait()))


def lookup(status: Any, name: str) -> Any:
    """What a dotted name leads to, `*` being any; None where it leads nowhere."""
    for step in name.split("."):
        status = next(iter(status.values()), {}) if step == "*" else status.get(step, {})
    return None if status == {} else status


def test_the_status_has_what_operators_are_told_to_watch() -> None:
    rows = [line.split("|")[1] for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if "| `cluster." in line]
    named = [name for row in rows for name in re.findall(r"`(cluster\.[^`]+)`", row)]
    assert len(named) > 12
    end = time.monotonic() + SETTLE_TIMEOUT_S
    # A cluster that has just recovered, from another test's blows, tells only a part at first.
    while missing := [name for name in named if lookup(status := status_of_cluster(), name) is None]:
        assert time.monotonic() < end, missing
        time.sleep(0.5)
    process = next(iter(status["cluster"]["processes"].values()))
    assert process["memory"]["limit_bytes"] > process["memory"]["used_bytes"] > 0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    directory = tmp_path_factory.mktemp("locked")
    key = directory / "master.key"
    key.touch(mode=0o600)
    key.write_text(base64.b64encode(os.urandom(32)).decode())
    with (
        fresh_url() as url,
        running_node(directory / "data", f"--metadata={url}", f"--master-key-file={key}") as node,
    ):
        yield node


def status_of(node: RunningNode, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status


def test_a_locked_database_is_answered_slow_down_and_serves_again_soon(node: RunningNode) -> None:
    s3 = client(node)
    with contextlib.closing(s3):
        s3.create_bucket(Bucket="bucket")
        s3.put_object(Bucket="bucket", Key="k", Body=b"before")
        calls = [
            lambda: s3.put_object(Bucket="bucket", Key="k", Body=b"after"),
            lambda: s3.get_object(Bucket="bucket", Key="k"),
            lambda: s3.list_objects_v2(Bucket="bucket"),
        ]

        def refused(call: Any) -> dict[str, Any]:
            with pytest.raises(ClientError) as error:
                call()
            response: dict[str, Any] = error.value.response
            return response

        with locked(), ThreadPoolExecutor() as threads:
            answers = [threads.submit(refused, call) for call in calls]
            ready, healthy = (threads.submit(status_of, node, path) for path in ("/readyz", "/healthz"))
            for answer in answers:
                response = answer.result()
                metadata = response["ResponseMetadata"]
                assert (metadata["HTTPStatusCode"], response["Error"]["Code"]) == (503, "SlowDown")
                assert int(metadata["HTTPHeaders"]["retry-after"]) > 0
            assert (ready.result(), healthy.result()) == (503, 200)
        # Each process asks once a second whether the database is there again.
        until(lambda: status_of(node, "/readyz") == 200, "the node is ready again")
        until(lambda: succeeds(s3.head_object, Bucket="bucket", Key="k"), "and serves")
        assert s3.get_object(Bucket="bucket", Key="k")["Body"].read() == b"before"
        s3.put_object(Bucket="bucket", Key="k", Body=b"after")
        assert status_of(node, "/readyz") == 200
