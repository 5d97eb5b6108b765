"""The two engines side by side: the table's figures, whose CPU is the cluster's, and a small run on a real cluster."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from bench import engines
from bench.scenarios import Measurement
from tests import clusters
from tests.bench.compiled import compiled_or_skip
from tests.bench.test_report import measurement


def test_the_table_gives_medians_and_ratios() -> None:
    def runs(store: str, *rates: float) -> list[tuple[Measurement, float]]:
        return [(measurement(store, rate, 100 if store == "sqlite" else 250), 30.0) for rate in rates]

    text = engines.table({"get-1k-c32": {"sqlite": runs("sqlite", 500, 1000, 9000), "fdb": runs("fdb", 800)}})
    row = text.splitlines()[-1]
    assert row.startswith(
        "| GET 1 KiB, 32 connections | 1,000/s; 1.00/4.00 ms; 100 us | 800/s; 1.00/4.00 ms; 250 us; 30 us |"
    )
    assert row.endswith("| 0.80 / 1.00 / 1.00 / 2.50 |")


def test_the_cluster_is_whoever_listens_where_its_file_says(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        file = tmp_path / "fdb.cluster"
        file.write_text(f"# a comment\nname:id@127.0.0.1:{server.getsockname()[1]}\n")
        assert engines.listeners(file) == [os.getpid()]
    assert engines.listeners(file) == []


@pytest.mark.slow
@pytest.mark.fdb
def test_both_engines_answer_rightly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiled_or_skip()
    file = clusters.cluster_file()
    assert file is not None
    arguments = ["--cluster", str(file), "--rounds", "1", "--seconds", "0.2", "--listed-keys", "2000"]
    assert engines.main([*arguments, "--directory", str(tmp_path)]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == len(engines.SCENARIOS)
    assert all(re.search(r"\| [\d.]+ / [\d.]+ / [\d.]+ / [\d.]+ \|$", row) for row in rows)
    assert list(tmp_path.iterdir()) == []
