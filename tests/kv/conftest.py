"""`engine`: each engine, FoundationDB where a cluster answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from .engines import ENGINES, EngineUnderTest


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> EngineUnderTest:
    return EngineUnderTest(request.param, tmp_path)


@pytest.fixture(params=["memory", "sqlite"])
def engine_in_virtual_time(request: pytest.FixtureRequest, tmp_path: Path) -> EngineUnderTest:
    """Engines whose sense of time is the clock that they were given. FoundationDB's is its cluster's."""
    return EngineUnderTest(request.param, tmp_path)
