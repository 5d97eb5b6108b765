"""Delta tables: writers in several processes append at once, and no commit is lost, over http and https.

A commit is a PUT of `_delta_log/VERSION.json` with If-None-Match: *. Two writers that both believed to have made the
same version would show as fewer versions than commits, or as rows that are missing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.environments import PROGRAMS, Client, client
from tests.nodes import RunningNode

pytestmark = pytest.mark.slow

PROGRAM = "delta_tables.py"


@pytest.fixture
def deltalake(either_store: RunningNode, tmp_path: Path) -> Client:
    return client("deltalake", either_store, tmp_path)


def test_no_commit_of_concurrent_writers_is_lost(deltalake: Client, bucket: str) -> None:
    table, writers, commits = f"s3://{bucket}/table", 4, 15
    deltalake.case(PROGRAM, "create", table)
    running = [
        deltalake.start("python", str(PROGRAMS / PROGRAM), "append", table, str(writer), str(commits))
        for writer in range(writers)
    ]
    ended = [(process.communicate(timeout=240)[0].decode(), process.returncode) for process in running]
    assert [status for _, status in ended] == [0] * writers, ended
    deltalake.case(PROGRAM, "check", table, str(writers), str(commits))


def test_a_table_is_compacted_and_vacuumed(deltalake: Client, bucket: str) -> None:
    table = f"s3://{bucket}/table"
    deltalake.case(PROGRAM, "create", table)
    deltalake.case(PROGRAM, "append", table, "0", "5")
    deltalake.case(PROGRAM, "optimise", table)
