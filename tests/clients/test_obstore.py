"""obstore: the functions of programs/obstore_objects.py, over http and https."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.environments import cases, client
from tests.nodes import RunningNode

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", cases("obstore_objects.py"))
def test_obstore(either_store: RunningNode, bucket: str, tmp_path: Path, case: str) -> None:
    client("obstore", either_store, tmp_path).case("obstore_objects.py", case, bucket)
