"""`python -m tests.chaos.unsettled_node`: `tigrislike serve` with a defect that chaos must find.

Where the outcome of a commit is unknown it simply tries again, as a plain retry loop would, without asking whether the
first attempt was committed: so some writes take effect twice.
"""

from __future__ import annotations

import sys

from tigrislike.cli import main
from tigrislike.metadata.kv.errors import CommitUnknown
from tigrislike.metadata.kv.retry import Retries, Runner


async def presume_lost(runner: Runner, done_key: bytes, unknown: CommitUnknown, retries: Retries) -> bool:
    """In place of looking."""
    return False


if __name__ == "__main__":
    Runner._was_committed = presume_lost  # type: ignore[assignment,method-assign]
    sys.argv.insert(1, "serve")
    main()
