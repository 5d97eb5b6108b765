"""`python -m tests.chaos.doubtful_node`: `tigrislike serve` to which the answers of many commits are lost.

One commit in ten ends with an unknown outcome, and half of those took effect. With PRESUME_LOST set the node also has a
defect that chaos must find: it simply tries again, as a plain retry loop would, without asking what became of the
first attempt, so that some writes take effect twice.
"""

from __future__ import annotations

import os
import random
import sys
from typing import Any

from tigrislike import node
from tigrislike.cli import main
from tigrislike.metadata.kv import CommitFault, CommitUnknown, Engine, Faults, open_engine
from tigrislike.metadata.kv.retry import Retries, Runner

VARIABLE = "PRESUME_LOST"
SHARE = 0.1


class LostAnswers(Faults):
    """Commits whose outcome the engine is not told."""

    def __init__(self) -> None:
        super().__init__()
        self._rng = random.Random(os.getpid())

    def commit_fault(self) -> CommitFault | None:
        if self._rng.random() >= SHARE:
            return None
        return CommitFault(CommitUnknown("the answer of a commit was lost"), self._rng.random() < 0.5)


async def open_doubtful(url: str, **options: Any) -> Engine:
    return await open_engine(url, **options, faults=LostAnswers())


async def presume_lost(runner: Runner, done_key: bytes, unknown: CommitUnknown, retries: Retries) -> bool:
    """In place of looking."""
    return False


if __name__ == "__main__":
    node.open_engine = open_doubtful  # type: ignore[attr-defined]
    if os.environ.get(VARIABLE):
        Runner._was_committed = presume_lost  # type: ignore[assignment,method-assign]
    sys.argv.insert(1, "serve")
    main()
