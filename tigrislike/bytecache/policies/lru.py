"""Least recently used: evicts what has not been read for longest. One scan through more than the cache empties it."""

from typing import Final

from tigrislike.bytecache.policies.shelf import Entry, Shelf


class Lru:
    name: Final = "lru"
    queues: Final = ("all",)

    def admit(self, ghost: Entry | None) -> str:
        return "all"

    def hit(self, shelf: Shelf, entry: Entry) -> None:
        shelf.move(entry, "all")

    def victim(self, shelf: Shelf) -> Entry | None:
        return shelf.first("all")

    def evicted(self, shelf: Shelf, entry: Entry) -> None:
        shelf.drop(entry)
