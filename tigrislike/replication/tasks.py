"""What work owed consists in: one small class for each task, with the same four members."""

from __future__ import annotations

from typing import Protocol

from tigrislike.metadata.leasing import Effect
from tigrislike.metadata.records import Item


class NotNow(Exception):
    """What a run needs is away: other nodes, or space on this one. It is repeated, after growing pauses, for as long as
    that lasts."""


class Task(Protocol):
    """A kind of work.

    Its runs are repeated: after a failure, after their holder died, and, where the lease ran out, beside another. So a
    run goes on where an earlier one stopped, and what it does outside the database can be done twice. What must happen
    once is its effect. A run may be cancelled at every await.
    """

    @property
    def name(self) -> str:
        """What items call it (`Item.task`)."""
        ...

    @property
    def priority(self) -> int:
        """With which its items are enqueued; one of `owed.PRIORITIES`."""
        ...

    @property
    def concurrency(self) -> int:
        """How many of its items one consumer runs at a time, at most."""
        ...

    async def run(self, item: Item) -> Effect | None:
        """Do what `item` asks for, as far as it lies outside the database; what is left to be done in the transaction
        that finishes the item, if anything.

        Raises:
            StoreSealed, EngineUnavailable, RetryableError: nothing is wrong with the item; it comes back by itself.
            AmbiguousCommit: it may have been done; it comes back by itself.
            NotNow: it is tried again for as long as it takes.
            Exception: the run failed; after some attempts it becomes a dead letter.
        """
        ...
