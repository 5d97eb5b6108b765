"""`engine`: each engine that can run here. FoundationDB is collected only where a cluster was given and answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from .engines import EngineUnderTest, cluster_file, fdb_unreachable

ENGINES = ["memory", "sqlite", "fdb-adapter", *(["fdb"] if cluster_file() is not None else [])]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> EngineUnderTest:
    if request.param == "fdb" and (reason := fdb_unreachable()):
        pytest.skip(reason)
    return EngineUnderTest(request.param, tmp_path)


@pytest.fixture(params=["memory", "sqlite"])
def engine_in_virtual_time(request: pytest.FixtureRequest, tmp_path: Path) -> EngineUnderTest:
    """Engines whose sense of time is the clock that they were given. FoundationDB's is its cluster's."""
    return EngineUnderTest(request.param, tmp_path)
