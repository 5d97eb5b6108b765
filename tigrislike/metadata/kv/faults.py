"""Telling an engine to be slow, absent or unreliable, for tests and for measuring what distance costs.

An engine that was opened with a `Faults` asks it at every read and commit; without one nothing is asked. What is
injected is what a real engine may do: a delay, a definite failure, or an ambiguous commit that did or did not
happen. Damage to stored bytes is not injected here: tests of that damage the file.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from .errors import EngineError, EngineUnavailable


class CommitFault(NamedTuple):
    """What becomes of one commit: `error` is raised, and the transaction takes effect or not."""

    error: EngineError
    committed: bool


@dataclass
class Faults:
    """A plan of faults, changeable while the engine runs.

    Attributes:
        read_delay_s: added before each `read` and before the reads of each `transact`.
        commit_delay_s: added before each commit.
        cut_off: every use fails with `EngineUnavailable`, as on a node that lost its network.
    """

    read_delay_s: float = 0.0
    commit_delay_s: float = 0.0
    cut_off: bool = False
    _commits: deque[CommitFault | None] = field(default_factory=deque)

    def fail_commit(self, error: EngineError, *, committed: bool = False, after: int = 0) -> None:
        """Let one commit end in `error`, once `after` more commits than those already planned have gone well."""
        self._commits.extend([None] * after)
        self._commits.append(CommitFault(error, committed))

    def check_reachable(self) -> None:
        """Raise `EngineUnavailable` while cut off."""
        if self.cut_off:
            raise EngineUnavailable("cut off from the metadata database by an injected fault")

    def read_fault(self) -> EngineError | None:
        """The error that the next read ends in; asked once per read, overridden by engines' own tests."""
        return None

    def commit_fault(self) -> CommitFault | None:
        """What becomes of the next commit; None: it goes well."""
        return self._commits.popleft() if self._commits else None
