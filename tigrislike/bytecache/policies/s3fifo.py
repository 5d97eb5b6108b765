"""S3-FIFO (Yang et al., SOSP '23, algorithm 1): three FIFO queues, and most of what is read once leaves by the first.

A block begins in *small*, a tenth of the room. When it comes to that queue's old end it moves to *main* if it was read
more than once since it came, else it is evicted and becomes a *ghost*. A block that comes back while its ghost is
remembered begins in main. At main's old end, a block that was read goes round again for one read less, to at most
three times; others are evicted. So a scan passes through small and leaves main alone.

Sizes are in bytes: the ghosts stand for as much as main may hold.
"""

from typing import Final

from tigrislike.bytecache.policies.shelf import GHOST, MOST_SPARED, Entry, Shelf

SMALL: Final = "small"
MAIN: Final = "main"
SMALL_SHARE: Final = 0.1
"""The paper's."""
MOST_COUNTED: Final = 3
"""The paper's two bits."""
_SPARED_BEYOND: Final = {SMALL: 1, MAIN: 0}


class S3Fifo:
    name: Final = "s3fifo"
    queues: Final = (SMALL, MAIN)

    def admit(self, ghost: Entry | None) -> str:
        return SMALL if ghost is None else MAIN

    def hit(self, shelf: Shelf, entry: Entry) -> None:
        if entry.counter < MOST_COUNTED:
            shelf.count(entry, entry.counter + 1)

    def victim(self, shelf: Shelf) -> Entry | None:
        share = int(SMALL_SHARE * shelf.room_bytes)
        for _ in range(MOST_SPARED):
            oldest = self._oldest(shelf, share)
            if oldest is None or oldest.counter <= _SPARED_BEYOND[oldest.queue]:
                return oldest
            shelf.move(oldest, MAIN, 0 if oldest.queue == SMALL else oldest.counter - 1)
        return self._oldest(shelf, share)

    def _oldest(self, shelf: Shelf, share: int) -> Entry | None:
        """The oldest block of the queue that has too much."""
        small, main = shelf.first(SMALL), shelf.first(MAIN)
        return small if main is None or (small is not None and shelf.held_bytes(SMALL) >= share) else main

    def evicted(self, shelf: Shelf, entry: Entry) -> None:
        if entry.queue != SMALL:
            shelf.drop(entry)
            return
        shelf.move(entry, GHOST)
        most = shelf.room_bytes - int(SMALL_SHARE * shelf.room_bytes)
        while shelf.held_bytes(GHOST) > most and (oldest := shelf.first(GHOST)) is not None:
            shelf.drop(oldest)
