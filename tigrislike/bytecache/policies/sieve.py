"""SIEVE (Zhang et al., NSDI '24, algorithm 1): FIFO order, a visited bit, and a hand that moves from old to new.

The hand evicts the first block that was not read since it last came by, and clears the bits that it passes. Nothing is
ever moved, so that new blocks are judged soon and read ones stay. Cheap, and good where no scans come.
"""

from typing import Final

from tigrislike.bytecache.policies.shelf import MOST_SPARED, Entry, Shelf


class Sieve:
    name: Final = "sieve"
    queues: Final = ("all",)

    def admit(self, ghost: Entry | None) -> str:
        return "all"

    def hit(self, shelf: Shelf, entry: Entry) -> None:
        if not entry.counter:
            shelf.count(entry, 1)

    def victim(self, shelf: Shelf) -> Entry | None:
        hand = shelf.hand
        spared = 0
        while (entry := shelf.first("all", hand) or shelf.first("all")) is not None:
            if not entry.counter or spared == MOST_SPARED:
                following = shelf.first("all", entry.place)
                shelf.hand = -1 if following is None else following.place - 1
                return entry
            shelf.count(entry, 0)
            hand = entry.place
            spared += 1
        return None

    def evicted(self, shelf: Shelf, entry: Entry) -> None:
        shelf.drop(entry)
