"""s3fs: the functions of programs/s3fs_files.py, over http and https."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.environments import cases, client
from tests.nodes import RunningNode

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", cases("s3fs_files.py"))
def test_s3fs(either_store: RunningNode, bucket: str, tmp_path: Path, case: str) -> None:
    client("s3fs", either_store, tmp_path, AWS_MAX_ATTEMPTS="1").case("s3fs_files.py", case, bucket)
