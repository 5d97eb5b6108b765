"""A shelf in memory, and a simulation on it: what share of reads a policy would have answered from a cache."""

from bisect import bisect_right
from dataclasses import dataclass, field

from tigrislike.bytecache.policies.shelf import GHOST, Entry, Key, Policy


@dataclass(slots=True)
class _Queue:
    """Entries by place. Places only grow, so a new one goes last; those of entries that left are skipped and dropped
    in bulk."""

    entries: dict[int, Entry] = field(default_factory=dict)
    places: list[int] = field(default_factory=list)
    start: int = 0
    held_bytes: int = 0

    def add(self, entry: Entry) -> None:
        self.places.append(entry.place)
        self.entries[entry.place] = entry
        self.held_bytes += entry.size

    def remove(self, entry: Entry) -> None:
        del self.entries[entry.place]
        self.held_bytes -= entry.size
        if len(self.places) > 2 * len(self.entries) + 64:
            self.places = list(self.entries)
            self.start = 0

    def first(self, after: int) -> Entry | None:
        index = max(self.start, bisect_right(self.places, after))
        oldest = index == self.start
        while index < len(self.places) and self.places[index] not in self.entries:
            index += 1
        if oldest:
            self.start = index
        return self.entries[self.places[index]] if index < len(self.places) else None


class MemoryShelf:
    """See `Shelf`. Holds blocks of at most `capacity_bytes` if whoever inserts sees to it."""

    def __init__(self, capacity_bytes: int) -> None:
        self.room_bytes = capacity_bytes
        self.hand = -1
        self._queues: dict[str, _Queue] = {}
        self._where: dict[Key, tuple[str, int]] = {}
        self._place = 0

    def __len__(self) -> int:
        """Blocks here, ghosts not counted."""
        return len(self._where) - len(self._queue(GHOST).entries)

    def get(self, key: Key) -> Entry | None:
        where = self._where.get(key)
        return None if where is None else self._queues[where[0]].entries[where[1]]

    def insert(self, key: Key, size: int, queue: str) -> None:
        """Put a block that is not on the shelf at the new end of a queue."""
        self._add(Entry(key, size, queue, self._place, 0))

    def held_bytes(self, queue: str) -> int:
        return self._queue(queue).held_bytes

    def first(self, queue: str, after: int = -1) -> Entry | None:
        return self._queue(queue).first(after)

    def move(self, entry: Entry, queue: str, counter: int = 0) -> None:
        self._queue(entry.queue).remove(entry)
        self._add(Entry(entry.key, entry.size, queue, self._place, counter))

    def count(self, entry: Entry, counter: int) -> None:
        self._queues[entry.queue].entries[entry.place] = entry._replace(counter=counter)

    def drop(self, entry: Entry) -> None:
        self._queue(entry.queue).remove(entry)
        del self._where[entry.key]

    def _add(self, entry: Entry) -> None:
        self._place += 1
        self._queue(entry.queue).add(entry)
        self._where[entry.key] = entry.queue, entry.place

    def _queue(self, name: str) -> _Queue:
        return self._queues.setdefault(name, _Queue())


class Simulation:
    """A cache without bytes: reads go in, hits come out."""

    def __init__(self, policy: Policy, capacity_bytes: int) -> None:
        self.shelf = MemoryShelf(capacity_bytes)
        self._policy = policy

    @property
    def used_bytes(self) -> int:
        return sum(map(self.shelf.held_bytes, self._policy.queues))

    def read(self, key: Key, size: int) -> bool:
        """Read a block of `size` bytes; whether it was here. If not, it is afterwards, unless it is larger than all."""
        entry = self.shelf.get(key)
        if entry is not None and entry.queue != GHOST:
            self._policy.hit(self.shelf, entry)
            return True
        if size > self.shelf.room_bytes:
            return False
        # What is remembered is asked before room is made, for making room forgets.
        queue = self._policy.admit(entry)
        if entry is not None:
            self.shelf.drop(entry)
        while (
            self.used_bytes + size > self.shelf.room_bytes and (victim := self._policy.victim(self.shelf)) is not None
        ):
            self._policy.evicted(self.shelf, victim)
        self.shelf.insert(key, size, queue)
        return False
