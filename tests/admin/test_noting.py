"""What commands change on the database is in the audit log: by whom, with which arguments and no secrets, what became
of it. What only looks is not."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tigrislike.admin import nodes
from tigrislike.cli import app
from tigrislike.config import Settings
from tigrislike.metadata import Metadata, auditing
from tigrislike.metadata.records import Audit
from tigrislike.metadata.records import Node as NodeRecord

pytestmark = pytest.mark.sqlite

BUCKET, SECRET, NODE = "photos", "not-to-be-told", bytes(range(16))


class Store:
    """A store in a directory without a running node, and its audit log, oldest first."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.told: list[Audit] = []

    def run(self, *words: str, status: int = 0) -> None:
        done = CliRunner().invoke(app, [*words, "--data-dir", str(self.data_dir)])
        assert done.exit_code == status, f"{words}: {done.output}"

    def on(self, act: Any) -> Any:
        async def opened() -> Any:
            async with nodes.opened(Settings(data_dir=self.data_dir)) as metadata:
                return await act(metadata)

        return asyncio.run(opened())

    def noted(self) -> list[tuple[str, dict[str, Any], str]]:
        """Action, arguments and outcome of what came to the log since the last look."""

        async def read(metadata: Metadata) -> list[Audit]:
            return await metadata.engine.read(auditing.entries, metadata.context, None, 1000)

        entries = self.on(read)[::-1]
        new, self.told = entries[len(self.told) :], entries
        return [(each.action, json.loads(each.arguments), each.outcome) for each in new]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(nodes, "PATIENCE_S", 0)
    made = Store(tmp_path / "data")
    made.run("storage", "create", BUCKET, "--regions", "global")
    return made


def test_buckets_made_and_set(store: Store) -> None:
    made = {"name": BUCKET, "public": False, "regions": "global", "durability": "local"}
    assert store.noted() == [("create_storage", made, "done")]
    assert (store.told[0].who, store.told[0].where) == (f"local:{getpass.getuser()}", os.uname().nodename)
    store.run("buckets", "set", BUCKET, "--read-mode", "bounded=10s")
    store.run("buckets", "set", "nothing", "--read-mode", "strong", status=1)
    store.run("storage", "create", BUCKET, status=1)
    (one, told, outcome), (_, _, failed), (_, _, taken) = store.noted()
    assert (one, told, outcome) == ("set_bucket", {"bucket": BUCKET, "read_mode": "bounded=10s"}, "done")
    assert failed.startswith("failed: NoSuchBucket: ")
    assert taken.startswith("failed: Bucket")
    store.run("buckets", "ls")
    store.run("nodes")
    store.run("origin", "ls")
    assert store.noted() == []


def test_origins_and_none_of_their_secrets(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORIGIN_SECRET_KEY", SECRET)
    store.noted()
    store.run("origin", "set", BUCKET, "--bucket=old", "--endpoint=http://127.0.0.1:1", "--access-key=AKIA")
    store.run("origin", "migrate", BUCKET)
    store.run("origin", "clear", BUCKET)
    (tmp_path / "origin").mkdir()
    store.run("origin", "back", BUCKET, "--url", f"file://{tmp_path}/origin", "--allow-private-origins")
    store.run("origin", "unback", BUCKET)
    url = f"gs://user@host/b?sig={SECRET}"
    store.run("origin", "set", BUCKET, "--url", url, f"--option=token={SECRET}")
    noted = store.noted()
    assert [(action, outcome) for action, _, outcome in noted[:5]] == [
        (action, "done") for action in ("set_origin", "migrate", "clear_origin", "back", "unback")
    ]
    place = {"url": "s3://old", "endpoint": "http://127.0.0.1:1", "access_key": "AKIA"}
    assert noted[0][1] == {"bucket": BUCKET, **place, "write_through": False}
    assert noted[3][1] == {"bucket": BUCKET, "url": f"file://{tmp_path}/origin", "durability": "write-back"}
    assert noted[5][1] == {"bucket": BUCKET, "url": "gs://host/b", "options": ["token"], "write_through": False}
    assert SECRET not in str(store.told)


def test_nodes_drained_kept_and_removed(store: Store) -> None:
    store.on(lambda metadata: metadata.join(NodeRecord(NODE, "iad", "http://127.0.0.1:1")))
    store.noted()
    name = NODE.hex()
    store.run("nodes", "drain", name)
    store.run("nodes", "undrain", name)
    store.run("nodes", "replace", name, "--with", "ff", status=1)
    store.run("nodes", "remove", name, "--accept-loss", "--yes")
    drained, undrained, replaced, removed = store.noted()
    assert drained == ("drain_node", {"node": name}, "done")
    assert undrained == ("undrain_node", {"node": name}, "done")
    assert replaced == ("replace_node", {"node": name, "by": "ff"}, "failed: NodesError: no node's id begins with 'ff'")
    assert removed == ("remove_node", {"node": name, "accept_loss": True}, "done")


def test_a_rotated_master_key_and_a_repair(store: Store) -> None:
    store.noted()
    store.run("admin", "rotate-master-key")
    store.run("admin", "fsck")
    store.run("admin", "fsck", "--repair")
    (rotated, told, outcome), repaired = store.noted()
    assert (rotated, [*told], outcome) == ("rotate_master_key", ["key"], "done")
    assert repaired == ("repair", {}, "done")
