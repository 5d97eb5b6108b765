"""pyarrow: the functions of programs/arrow_datasets.py, over http and https."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.environments import cases, client
from tests.nodes import RunningNode

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", cases("arrow_datasets.py"))
def test_pyarrow(either_store: RunningNode, bucket: str, tmp_path: Path, case: str) -> None:
    client("pyarrow", either_store, tmp_path).case("arrow_datasets.py", case, bucket)
