"""The bench of an open console: what it opens is a console, and what it compares is beside each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import console
from bench.processes import StoreFailed


@pytest.mark.slow
def test_runs_with_and_without_a_console_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "FIRST_S", 0.1)
    found = console.compare(tmp_path, items=200, zones=20, pairs=2, seconds=1.0, path="/")
    assert len(found) == 2
    for without, with_it, answers in found:
        assert without.cpu_us > 0
        assert with_it.cpu_us > 0
        assert answers >= 1, "it was refreshed meanwhile"


@pytest.mark.slow
def test_a_page_that_is_not_there_is_no_open_console(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match="404 for"):
        console.compare(tmp_path, items=20, zones=20, pairs=1, seconds=0.2, path="/no/such/page")
