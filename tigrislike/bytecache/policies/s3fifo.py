"""S3-FIFO (Yang et al., SOSP '23, algorithm 1): three FIFO queues, and most of what is read once leaves by the first.

A block begins in *small*, a tenth of the room. When it comes to that queue's old end it moves to *main* if it was read
more than once since it came, else it is evicted and becomes a *ghost*. A block that comes back while its ghost is
remembered begins in main. At main's old end, a block that was read goes round again for one read less, to at most
three times; others are evicted. So a scan passes through small and leaves main alone.

Sizes are in bytes: the ghosts stand for as much as main may hold.
"""

from typing import Final

from tigrislike.bytecache.policies.shelf import GHOST, Entry, Shelf

SMALL: Final = "small"
MAIN: Final = "main"
SMALL_SHARE: Final = 0.1
"""The paper's; it found miss ratios flat between 0.05 and 0.2."""
MOST_COUNTED: Final = 3
"""The paper's two bits."""


class S3Fifo:
    name: Final = "s3fifo"
    queues: Final = (SMALL, MAIN)

    def admit(self, ghost: Entry | None) -> str:
        return SMALL if ghost is None else MAIN

    def hit(self, shelf: Shelf, entry: Entry, hits: int) -> None:
        if entry.counter < MOST_COUNTED:
            shelf.count(entry, min(MOST_COUNTED, entry.counter + hits))

    def victim(self, shelf: Shelf) -> Entry | None:
        share = int(SMALL_SHARE * shelf.room_bytes)
        while True:
            small, main = shelf.first(SMALL), shelf.first(MAIN)
            if small is not None and (main is None or shelf.held_bytes(SMALL) >= share):
                if small.counter <= 1:
                    return small
                shelf.move(small, MAIN)
            elif main is not None:
                if not main.counter:
                    return main
                shelf.move(main, MAIN, main.counter - 1)
            else:
                return None

    def evicted(self, shelf: Shelf, entry: Entry) -> None:
        if entry.queue != SMALL:
            shelf.drop(entry)
            return
        shelf.move(entry, GHOST)
        most = shelf.room_bytes - int(SMALL_SHARE * shelf.room_bytes)
        while shelf.held_bytes(GHOST) > most and (oldest := shelf.first(GHOST)) is not None:
            shelf.drop(oldest)
