"""What to evict: the seam between the policies, one module each, and the shelf that they arrange blocks on.

A policy is pure decisions over a `Shelf`: named queues of blocks, oldest first, with a small counter per block. It does
no I/O and keeps nothing to itself, so that several processes can take turns at deciding over one shelf. There are two
shelves: `memory.MemoryShelf`, for simulations, and the rows of the cache's index (`index.Rows`).

Deliberately absent from what a policy sees: pins, fills, files. Blocks in its queues may be evicted at once.
"""

from typing import Final, NamedTuple, Protocol

Key = tuple[bytes, int]
"""(blob id, block number)"""

GHOST: Final = "ghost"
"""The queue of blocks that are not here any more and that a policy wants to recognise when they come back."""


MOST_SPARED: Final = 128
"""Most blocks that a policy passes over for one victim. The papers pass over all that were read; where that is all of a
cache of a hundred thousand blocks, the one who wants room would wait for seconds, and every other filler with it. What
is spared then counts for the next victim."""


class Entry(NamedTuple):
    """A block on a shelf, as of when it was looked at.

    Attributes:
        key: Which block.
        size: Bytes of its file.
        queue: Where it is.
        place: Its order in the queue: older blocks have smaller ones. Never negative.
        counter: The policy's own.
    """

    key: Key
    size: int
    queue: str
    place: int
    counter: int


class Shelf(Protocol):
    """What a policy may look at and change."""

    @property
    def room_bytes(self) -> int:
        """What all queues but the ghosts' may hold together; what they do hold where nothing limits it."""
        ...

    @property
    def hand(self) -> int:
        """A number that the shelf keeps for the policy; -1 at first."""
        ...

    @hand.setter
    def hand(self, place: int) -> None: ...

    def held_bytes(self, queue: str) -> int:
        """Sum of the sizes in a queue."""
        ...

    def first(self, queue: str, after: int = -1) -> Entry | None:
        """The oldest block of a queue whose place is beyond `after`."""
        ...

    def move(self, entry: Entry, queue: str, counter: int = 0) -> None:
        """Put a block at the new end of a queue (its own, or another)."""
        ...

    def count(self, entry: Entry, counter: int) -> None:
        """Set a block's counter where it is."""
        ...

    def drop(self, entry: Entry) -> None:
        """Take a block off the shelf."""
        ...


class Policy(Protocol):
    """How to choose. Implementations hold no state."""

    @property
    def name(self) -> str: ...

    @property
    def queues(self) -> tuple[str, ...]:
        """Names of the queues of blocks that are here; the first takes blocks of which nothing is known."""
        ...

    def admit(self, ghost: Entry | None) -> str:
        """The queue at whose new end a block begins, given what the shelf remembers of it."""
        ...

    def hit(self, shelf: Shelf, entry: Entry) -> None:
        """A block in one of `queues` was read."""
        ...

    def victim(self, shelf: Shelf) -> Entry | None:
        """The block to evict, which stays where it is until it is `evicted`. None if the queues are empty."""
        ...

    def evicted(self, shelf: Shelf, entry: Entry) -> None:
        """The victim's file is gone: take it off the shelf, or remember it in the queue `GHOST`."""
        ...
