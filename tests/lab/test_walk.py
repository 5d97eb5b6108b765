"""`python -m lab` to its end, in processes of its own: what it measures is what distance and the promises allow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import clusters

ROUND_TRIP_MS = 80


@pytest.mark.slow
@pytest.mark.sqlite
@pytest.mark.parametrize("engine", ["sqlite", pytest.param("fdb", marks=pytest.mark.fdb)])
def test_the_walk_shows_what_distance_costs_and_what_it_does_not(tmp_path: Path, engine: str) -> None:
    figures_file = tmp_path / "figures.json"
    flags = ["--quick", f"--json={figures_file}"]
    round_trips = 1
    if engine == "fdb":
        flags.append(f"--fdb={clusters.cluster_file()}")
        round_trips = 2  # one for the version to read at, which SQLite's distance does not count
    walk = subprocess.run([sys.executable, "-m", "lab", *flags], capture_output=True, text=True, timeout=180)
    assert walk.returncode == 0, walk.stdout + walk.stderr
    assert "Where bytes went" in walk.stdout
    figures = json.loads(figures_file.read_text())
    first, second = figures["gets"]
    assert (first["served_from"], second["served_from"]) == ("a", "b")
    assert first["ms"] >= (round_trips + 1) * ROUND_TRIP_MS  # the database, and the bytes
    assert first["crossed_bytes"] >= 4_000_000 > second["crossed_bytes"]
    # Whatever crosses meanwhile is nodes' talk of who is there, and over the same wire the database's.
    assert second["crossed_bytes"] < 10_000
    assert figures["without_origin"] == {"status": 200, "served_from": "b"}
    assert figures["strong_ms"]["least"] >= round_trips * ROUND_TRIP_MS - 2  # timers count whole milliseconds
    assert figures["bounded_ms"]["median"] < figures["strong_ms"]["least"]
    cut_off = figures["cut_off"]
    assert (cut_off["bounded_get"], cut_off["strong_get"], cut_off["put"]) == (200, 503, 503)
    convergence = figures["convergence"]
    crossed = convergence["crossed_bytes"]
    for region, sources in {"b": "ac", "c": "ab"}.items():
        assert sum(crossed[f"{source}-{region}"] for source in sources) >= convergence["bytes"]
    # A region is fed by two wires at most.
    assert convergence["took_s"] >= convergence["ideal_s"] / 2


def test_a_cluster_that_does_not_answer_ends_the_walk_before_it_begins(tmp_path: Path) -> None:
    walk = subprocess.run(
        [sys.executable, "-m", "lab", f"--fdb={tmp_path / 'fdb.cluster'}"], capture_output=True, text=True, timeout=60
    )
    assert (walk.returncode, walk.stdout) == (1, "")
    assert walk.stderr.startswith("lab: ")


@pytest.mark.slow
@pytest.mark.sqlite
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_whoever_stops_the_walk_leaves_no_process_behind(tmp_path: Path, stop: signal.Signals) -> None:
    walk = subprocess.Popen(
        [sys.executable, "-m", "lab", "--quick"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert walk.stdout is not None
    with walk.stdout:
        for line in walk.stdout:
            if "is put in a" in line:
                break
        walk.send_signal(stop)
        walk.stdout.read()
    assert walk.wait(60) != 0
    assert list(tmp_path.iterdir()) == []
    mentioning = [
        path
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(tmp_path).encode() in (path.read_bytes() if path.exists() else b"")
    ]
    assert mentioning == []
