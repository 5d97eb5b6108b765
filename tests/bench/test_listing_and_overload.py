"""The two measurements beside the table run end to end on this store, at a small scale."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import listing, overload
from tests.bench.compiled import compiled_or_skip


def test_keys_are_in_listing_order() -> None:
    keys = [listing.key(i, 5000) for i in range(5000)]
    assert keys == sorted(set(keys))
    assert {key.split("/")[0] for key in keys} == {f"prefix-{n}" for n in range(10)}


@pytest.mark.slow
def test_a_page_of_a_ten_times_larger_bucket_costs_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiled_or_skip()
    arguments = ["--small", "2000", "--large", "20000", "--rounds", "3", "--count", "100", "--directory", str(tmp_path)]
    assert listing.main(arguments) == 0
    assert len(re.findall(r" us \| [\d,]+ us \| \d+\.\d\d \|", capsys.readouterr().out)) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_honest_clients_are_all_served_beside_slow_and_flooding_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled_or_skip()
    # One second on a shared machine says nothing about a p99: here only that everyone honest is served.
    arguments = ["--rounds", "1", "--seconds", "1", "--slow-connections", "100", "--directory", str(tmp_path)]
    assert overload.main(arguments) in (0, 1)
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == 2
    assert [row.split(" | ")[5] for row in rows] == ["0", "0"]
    assert list(tmp_path.iterdir()) == []
