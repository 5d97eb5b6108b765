"""The command line over the admin API, as people and scripts use it: processes of its own, on a node or a database."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.admin.scene import BUSY, FLOOD, HERE, MODELS, POISONED_KEY, STUCK, WHY, Scene, built
from tests.admin.stage import staged
from tests.nodes import RunningNode
from tests.server.test_cli import tigris
from tigrislike.admin import queue_commands
from tigrislike.admin.queues import ItemRow
from tigrislike.cli import app

pytestmark = pytest.mark.sqlite

SEED = int.from_bytes(os.urandom(4), "big")
DRAINED_S = 60.0


@dataclass
class Stage:
    """The scene, and how to run a command on it."""

    data_dir: Path
    node: RunningNode | None = None
    scene: Scene | None = None

    def run(self, *words: str, status: int = 0) -> str:
        """Standard output of a command that ends with `status`; on the node, where there is one."""
        where = ["--data-dir", str(self.data_dir)]
        environment: dict[str, str] = {}
        if self.node is not None:
            where, environment = ["--endpoint", self.node.endpoint], self.node.exports
        done = tigris(*words, *where, **environment)
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if status != 1 else done.stderr

    def json(self, *words: str, status: int = 0) -> Any:
        return json.loads(self.run(*words, "--json", status=status))

    def lines(self, *words: str) -> list[Any]:
        return [json.loads(line) for line in self.run(*words, "--json").splitlines()]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    data_dir = tmp_path_factory.mktemp("stage") / "data"

    async def make() -> Scene:
        async with built(data_dir, SEED, flood=300) as (scene, _):
            return scene

    return Stage(data_dir, None, asyncio.run(make()))


def test_tables_are_for_people(stage: Stage) -> None:
    shown = stage.run("queue", "ls", "--by", "region")
    assert STUCK in shown
    assert "oldest" in shown
    shown = stage.run("queue", "show", stage.scene.poisoned)
    assert WHY in shown
    assert "3 in a row" in shown
    assert "no node is alive" in stage.run("top")


def test_the_table_of_items_says_when_each_is_due() -> None:
    now = 1_800_000_000.0
    items = [
        ItemRow(
            item="00.00", zone="00", label="iad/photos", task="inventory", subject="s", bucket="photos", region="iad",
            destination="iad", state=state, attempts=0, error="", enqueued=now, age_s=1.0, vests=vests, priority=0,
        )
        for state, vests in (("due", 0.0), ("delayed", now), ("in_flight", now), ("dead", None))
    ]  # fmt: skip
    table = queue_commands._item_table(items)
    (due,) = (column for column in table.columns if column.header == "due")
    assert [*due.cells] == ["at once", "2027-01-15 08:00:00 UTC", "-", "-"]


@pytest.mark.parametrize(
    "words", [("items", "--state"), ("export", "x", "--state"), ("ls", "--sort"), ("top", "--sort")]
)
def test_a_word_that_is_none_of_the_choices_is_answered_with_them(words: tuple[str, ...], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["queue", *words, "odd", "--data-dir", str(tmp_path / "none")])
    assert done.exit_code == 1
    choices = (
        "due, delayed, in_flight, failing or dead" if "--state" in words else "oldest, depth, failing, dead or name"
    )
    assert f"{words[-1]} 'odd': expected {choices}" in done.output


@pytest.mark.slow
def test_each_command_says_what_it_shows_as_json_too(stage: Stage, tmp_path: Path) -> None:
    assert {row["name"] for row in stage.json("queue", "ls")["groups"]} == {"replicate", "warm"}
    assert stage.json("queue", "ls", "--check", status=3)["by"] == "task"
    zones = stage.json("queue", "ls", "--by", "zone", "--sort", "depth", "--limit", "2")
    assert zones["zones"][0]["label"] == f"{BUSY}/{FLOOD}"
    assert "... of" in stage.run("queue", "ls", "--by", "zone", "--limit", "2")
    assert f"{BUSY}/{FLOOD}" in stage.run("queue", "top", "--times", "1", "--sort", "depth")
    assert stage.json("queue", "show", f"{STUCK}/{MODELS}")["depth"] == stage.scene.stuck // 2
    assert f"{STUCK}/{MODELS}" in stage.run("queue", "show", f"{STUCK}/{MODELS}")
    rows = stage.lines("queue", "items", "--bucket", FLOOD, "--limit", "1000")
    assert len(rows) == stage.scene.flood + 1
    assert stage.scene.failing in stage.run("queue", "items", "--state", "failing")
    assert [row["item"] for row in stage.lines("queue", "dead")] == [stage.scene.poisoned]
    file = tmp_path / "items.parquet"
    assert stage.json("queue", "export", str(file), "--task", "replicate")["items"] == stage.scene.flood + 24 + 41
    table = pq.read_table(file).to_pylist()
    assert {row["task"] for row in table} == {"replicate"}
    assert sum(row["label"] == f"{BUSY}/{FLOOD}" for row in table) == stage.scene.flood
    assert "exists already" in stage.run("queue", "export", str(file), status=1)
    assert stage.lines("buckets", "ls")[0]["name"] == FLOOD
    assert stage.json("buckets", "show", MODELS)["work"]["replicate"] == stage.scene.stuck // 2
    assert stage.json("top")["health"] == "stuck"


@pytest.mark.slow
def test_what_is_refused_ends_with_1_and_one_line(stage: Stage) -> None:
    for words, why in {
        ("queue", "show", "00.00"): "NoSuchItem",
        ("queue", "show", "mars/nothing"): "NoSuchZone",
        ("queue", "drop", "--yes", "00.00"): "NoSuchItem",
        ("queue", "retry"): "name items, or --dead",
        ("queue", "retry", "00.00", "--task", "x"): "filters go with --dead",
        ("queue", "drop", "00.00"): "",
        ("queue", "delay", "00.00", "--for", "soon"): "--for 'soon'",
        ("queue", "pause", "--task", "nothing"): "NoSuchTask",
        ("queue", "resume"): "name a zone",
        ("queue", "ls", "--by", "colour"): "expected task",
        ("queue", "ls", "--bucket", "x"): "go with --by zone",
        ("queue", "items", "--state", "odd"): "--state 'odd': expected due, delayed, in_flight, failing or dead",
        ("queue", "resume", "--task", "nothing"): "NoSuchTask",
        ("buckets", "show", "nothing"): "NoSuchBucket",
        ("keys", "revoke", "nobody"): "NoSuchAccessKey",
    }.items():
        assert why in stage.run(*words, status=1), words
    done = tigris("top", "--endpoint", "http://127.0.0.1:1", HOME="/nonexistent")
    assert (done.returncode, "needs an admin key" in done.stderr) == (1, True)
    keys = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "s" * 40}
    done = tigris("top", "--endpoint", "http://127.0.0.1:1", **keys)
    assert (done.returncode, "no answer from" in done.stderr) == (1, True)
    done = tigris("top", "--endpoint", "gopher://x", **keys)
    assert (done.returncode, "is no endpoint" in done.stderr) == (1, True)


@pytest.mark.slow
def test_a_key_of_a_profile_is_made_used_rotated_and_revoked(store: RunningNode, tmp_path: Path) -> None:
    stage = Stage(tmp_path, store)
    made = stage.json("keys", "create", "--admin")
    credentials = tmp_path / "credentials"
    credentials.write_text(
        f"[operators]\naws_access_key_id = {made['key_id']}\naws_secret_access_key = {made['secret']}\n"
    )
    profile = {"AWS_SHARED_CREDENTIALS_FILE": str(credentials), "AWS_PROFILE": "operators"}
    done = tigris("keys", "ls", "--json", "--endpoint", store.endpoint, **profile)
    rows = {row["key_id"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert rows[made["key_id"]]["admin"]
    assert rows[store.access_key_id]["root"]
    fresh = stage.run("keys", "rotate", made["key_id"])
    assert fresh.startswith("AWS_ACCESS_KEY_ID=tid_")
    done = tigris("keys", "ls", "--endpoint", store.endpoint, **profile)
    assert (done.returncode, "InvalidAccessKeyId" in done.stderr) == (1, True)
    key_id = fresh.splitlines()[0].partition("=")[2]
    assert key_id in stage.run("keys", "ls")
    assert "is revoked" in stage.run("keys", "revoke", key_id)


@pytest.mark.slow
def test_the_scene_is_solved_from_the_command_line_alone(tmp_path: Path) -> None:
    """The oldest stuck item is found, why it is stuck is read, it is retried and drains; the flood is seen and made to
    wait; the stuck region gets a node, and drains too; the migration goes on and ends."""
    with staged(tmp_path, SEED + 1) as live:
        scene, node = live.scene, live.node
        stage = Stage(live.data_dir, node, scene)
        overview = stage.json("top")
        assert overview["health"] == "stuck"
        regions = {row["region"]: row for row in overview["regions"]}
        assert "1 dead letter" in regions[HERE]["why"]
        assert "no node is alive" in regions[STUCK]["why"]
        assert (regions[BUSY]["alive"], regions[BUSY]["depth"]) == (1, scene.flood + 24)

        dead = stage.lines("queue", "dead")
        oldest = max(dead, key=lambda row: row["age_s"])
        assert oldest["age_s"] > 5 * 3600
        shown = stage.json("queue", "show", oldest["item"])
        assert [attempt["error"] for attempt in shown["history"]] == [WHY] * 3
        before = len(live.origin.requests)
        assert "retried" in stage.run("queue", "retry", oldest["item"])
        drained(lambda: "NoSuchItem" in stage_error(stage, "queue", "show", oldest["item"]))
        assert any(request.key == POISONED_KEY for request in live.origin.requests[before:]), "its bytes are here now"
        drained(lambda: _of(stage, "region", HERE)["failing"] == 0)
        assert _of(stage, "region", HERE)["dead"] == 0, "what only failed once was tried again by itself"

        flooding = max(stage.json("queue", "ls", "--by", "bucket")["groups"], key=lambda row: row["depth"])
        assert flooding["name"] == FLOOD
        stage.run("queue", "pause", "--zone", f"{BUSY}/{FLOOD}")
        assert stage.json("queue", "show", f"{BUSY}/{FLOOD}")["paused"]
        stage.run("queue", "resume", "--zone", f"{BUSY}/{FLOOD}")

        zones = stage.json("queue", "ls", "--by", "zone", "--sort", "oldest", "--limit", "1")
        assert zones["zones"][0]["zone"] == scene.stuck_zone
        with live.second():
            drained(lambda: _of(stage, "region", STUCK)["depth"] == 0)

        beside = Stage(live.data_dir)
        _, standing = beside.lines("origin", "show", MODELS)
        assert (standing["looked"], standing["walked"]) == (len(live.origin.objects) // 2, False)
        (waiting,) = stage.lines("queue", "items", "--task", "migrate")
        assert (waiting["item"], waiting["state"]) == (scene.migrate, "delayed")
        assert "retried" in stage.run("queue", "retry", waiting["item"])
        over = beside.json("origin", "migrate", MODELS, "--wait")
        assert (over["looked"], over["failed"], over["fetching"]) == (len(live.origin.objects), 0, 0)
        compared = ("origin", "report", MODELS, "--allow-private-origins", "--output", str(tmp_path / "report.parquet"))
        assert beside.json(*compared)["differ"] == 0
        actions = [(row.action, json.loads(row.arguments)) for row in audit_of(node)]
        assert [at["item"] for action, at in actions if action == "retry"] == [scene.migrate, oldest["item"]]


def _of(stage: Stage, by: str, name: str) -> Any:
    return {row["name"]: row for row in stage.json("queue", "ls", "--by", by)["groups"]}[name]


def stage_error(stage: Stage, *words: str) -> str:
    done = tigris(*words, "--endpoint", stage.node.endpoint, **stage.node.exports)  # type: ignore[union-attr]
    return done.stderr


def audit_of(node: RunningNode) -> Any:
    from tigrislike.admin.client import RemoteApi

    api = RemoteApi(node.endpoint, node.access_key_id, node.secret_access_key)
    with contextlib.closing(api):
        return asyncio.run(api.call("audit")).entries


def drained(is_over: Callable[[], bool]) -> None:
    """Ask until it is so; each question is a process of its own, which is pause enough."""
    until = time.monotonic() + DRAINED_S
    while not is_over():
        assert time.monotonic() < until, "it does not drain"
