"""A node that is removed hears so while it runs: it stops by itself, and may not come back."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.crash.test_kill import until
from tests.nodes import START_TIMEOUT_S, RunningNode, engine_settings, running_node, start_node


@pytest.mark.slow
def test_a_node_that_is_removed_while_it_runs_stops_and_may_not_return(tmp_path: Path) -> None:
    settings = engine_settings(tmp_path / "shared") or {"metadata": f"sqlite://{tmp_path / 'shared.db'}"}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    with running_node(tmp_path / "a", *flags, "--region=a"):
        leaver = start_node(tmp_path / "b", *flags, "--region=b")
        try:
            nodes = [sys.executable, "-m", "tigrislike", "nodes"]
            here = [*flags, f"--data-dir={tmp_path / 'a'}"]
            table = subprocess.run([*nodes, "--json", *here], capture_output=True, text=True, check=True, timeout=60)
            ids = node_ids(table.stdout)
            for command in (("drain", ids["b"], "--wait"), ("remove", ids["b"])):
                subprocess.run([*nodes, *command, *here], capture_output=True, check=True, timeout=120)
            assert leaver.process.wait(START_TIMEOUT_S) == 0
            assert "this node was removed from the store: stopping" in leaver.log.read_text()
            with pytest.raises(AssertionError, match="was removed from the store: give it an empty cache directory"):
                start_node(tmp_path / "b", *flags, "--region=b")
        finally:
            leaver.kill()


def readyz(node: RunningNode) -> tuple[int, dict[str, str]]:
    try:
        with urllib.request.urlopen(f"{node.endpoint}/readyz") as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.load(refused)


@pytest.mark.slow
@pytest.mark.sqlite
def test_a_node_that_drains_is_not_ready_and_serves(tmp_path: Path) -> None:
    with running_node(tmp_path / "a") as node:
        nodes = [sys.executable, "-m", "tigrislike", "nodes"]
        here = [f"--data-dir={tmp_path / 'a'}"]
        table = subprocess.run([*nodes, "--json", *here], capture_output=True, text=True, check=True, timeout=60)
        (own,) = node_ids(table.stdout).values()
        assert readyz(node) == (200, {"status": "ok"})
        for command, expected in (
            ("drain", (503, {"status": "failing", "node": "draining"})),
            ("undrain", (200, {"status": "ok"})),
        ):
            subprocess.run([*nodes, command, own, *here], capture_output=True, check=True, timeout=60)
            until(lambda expected=expected: readyz(node) == expected, command)  # type: ignore[misc]
            with urllib.request.urlopen(f"{node.endpoint}/healthz") as answer:
                assert answer.status == 200
        until(lambda: "this node drains no more" in node.log.read_text(), "it says so")
        assert node.log.read_text().count("this node drains:") == 1


def node_ids(table: str) -> dict[str, str]:
    """The ids of nodes by their regions, as `tigrislike nodes --json` prints them."""
    rows = [json.loads(line) for line in table.splitlines() if line.startswith("{")]
    return {row["region"]: row["node"] for row in rows}
