"""A report is made once, and lists every object once, while the nodes that make it are killed again and again."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import client
from tests.nodes import RunningNode, start_node
from tests.server.test_inventory import configuration, put

pytestmark = [pytest.mark.slow, pytest.mark.sqlite]

SEED = int.from_bytes(os.urandom(4), "big")
KEYS = [f"key-{number:04}" for number in range(600)]
WAIT_S = 120.0

# Files of 50 rows, and time between them to be killed in.
SLOW = """
import asyncio, functools
from tigrislike import node
from tigrislike.replication.inventory import Inventory
from tigrislike.replication.putting import Putter
put = Putter.put
async def slowly(self, *args):
    await asyncio.sleep(0.2)
    return await put(self, *args)
Putter.put = slowly
node.Inventory = functools.partial(Inventory, group_rows=10, file_rows=50)
from tigrislike.cli import main
main()
"""


def test_one_report_whoever_is_killed(tmp_path: Path, record_property: Any) -> None:
    record_property("told", f"inventory under kills: seed {SEED}")
    random_ = random.Random(SEED)
    key_file = tmp_path / "master.key"
    key_file.touch(mode=0o600)
    key_file.write_text(base64.b64encode(os.urandom(32)).decode())

    def start(name: str) -> RunningNode:
        flags = (
            f"--metadata=sqlite://{tmp_path}/metadata.db",
            f"--master-key-file={key_file}",
            "--queue-item-lease=3s",
        )
        return start_node(tmp_path / name, *flags, command=[sys.executable, "-c", SLOW, "serve"])

    nodes = {name: start(name) for name in ("east", "west")}

    def listed() -> list[str]:
        for node in nodes.values():
            if node.process.poll() is None:
                return [entry["Key"] for entry in client(node).list_objects_v2(Bucket="reports").get("Contents", ())]
        raise AssertionError("one of them is always up")

    try:
        s3 = client(nodes["east"])
        for bucket in ("source", "reports"):
            s3.create_bucket(Bucket=bucket)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: s3.put_object(Bucket="source", Key=key, Body=b"x"), KEYS))
        put(s3, "source", configuration("reports"))
        deadline, kills, next_kill = time.monotonic() + WAIT_S, 0, 1
        while not any(key.endswith("manifest.checksum") for key in listed()):
            keys = listed()
            assert time.monotonic() < deadline, keys
            if len(keys) >= next_kill and kills < 5:
                name = random_.choice(sorted(nodes))
                nodes[name].kill()
                nodes[name] = start(name)
                kills, next_kill = kills + 1, len(keys) + random_.randint(1, 3)
            time.sleep(0.05)
        assert kills, "somebody was killed"
        # The report is complete, and the next one is due tomorrow: nobody begins another.
        for node in nodes.values():
            node.kill()
        nodes = {name: start(name) for name in nodes}
        s3 = client(nodes["west"])
        items = {key: s3.get_object(Bucket="reports", Key=key)["Body"].read() for key in listed()}
    finally:
        for node in nodes.values():
            node.stop()
            node.kill()
    (manifest,) = [json.loads(body) for key, body in items.items() if key.endswith("manifest.json")]
    rows = []
    for file in manifest["files"]:
        rows += [row[1] for row in csv.reader(io.StringIO(gzip.decompress(items[file["key"]]).decode()))]
    assert rows == KEYS
    stray = len([key for key in items if "/data/" in key]) - len(manifest["files"])
    assert 0 <= stray <= kills, "a killed run leaves one file behind at most"
