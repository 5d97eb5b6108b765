"""A node that is removed hears so while it runs: it stops by itself, and may not come back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nodes import START_TIMEOUT_S, engine_settings, running_node, start_node


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
            subprocess.run(
                [*nodes, "remove", ids["b"], "--accept-loss", *here], capture_output=True, check=False, timeout=120
            )
            assert leaver.process.wait(START_TIMEOUT_S) == 0
            assert "this node was removed from the store: stopping" in leaver.log.read_text()
            with pytest.raises(AssertionError, match="was removed from the store: give it an empty cache directory"):
                start_node(tmp_path / "b", *flags, "--region=b")
        finally:
            leaver.kill()


def node_ids(table: str) -> dict[str, str]:
    """The ids of nodes by their regions, as `tigrislike nodes --json` prints them."""
    rows = [json.loads(line) for line in table.splitlines() if line.startswith("{")]
    return {row["region"]: row["node"] for row in rows}
