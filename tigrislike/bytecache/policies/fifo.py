"""First in, first out: evicts what has been here longest, read or not."""

from typing import Final

from tigrislike.bytecache.policies.shelf import Entry, Shelf


class Fifo:
    name: Final = "fifo"
    queues: Final = ("all",)

    def admit(self, ghost: Entry | None) -> str:
        return "all"

    def hit(self, shelf: Shelf, entry: Entry) -> None:
        pass

    def victim(self, shelf: Shelf) -> Entry | None:
        return shelf.first("all")

    def evicted(self, shelf: Shelf, entry: Entry) -> None:
        shelf.drop(entry)
