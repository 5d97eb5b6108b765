"""The comparison of the FoundationDB engine with the bare binding, in miniature."""

from __future__ import annotations

import asyncio

import pytest

from bench.fdb_binding import Cost, run, table
from tests import clusters


@pytest.mark.fdb
def test_both_sides_do_every_operation() -> None:
    costs = asyncio.run(run(str(clusters.cluster_file()), 0.02, 1, "", [2]))
    assert [(cost.operation, cost.tasks) for cost in costs] == [("get", 2), ("commit", 2), ("range", 2)]
    assert all(cost.engine_rate > 0 and cost.bare_rate > 0 for cost in costs)


def test_the_table_shows_the_ratio() -> None:
    cost = Cost("get", 16, 60.4, 75.2, 0.803, 14000.0, 12000.0)
    assert table([cost]).splitlines()[-1] == "| get | 16 | 60 | 75 | 0.80 | 14000 | 12000 |"
