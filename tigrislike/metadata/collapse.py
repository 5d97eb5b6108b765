"""Rolling keys up into common prefixes: the pure part of every listing.

`Collapse` is fed rows in key order and keeps the page: entries, common prefixes, whether more follows. It does no I/O
and does not know what a row is; `listing` reads, and asks it where to go on, so that a common prefix of a million keys
costs one seek and not a scan.

Python compares strings by code point, which is the order of their UTF-8 bytes and so the order of the keys.
Source: S3 API, ListObjectsV2: prefixes and keys together count against max-keys, and a common prefix "is filtered out
from results if it is not lexicographically greater than" the marker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


def group_of(key: str, prefix: str, delimiter: str) -> str | None:
    """The common prefix that `key` rolls up into: up to the first delimiter after `prefix`, or None."""
    if not delimiter or not key.startswith(prefix):
        return None
    at = key.find(delimiter, len(prefix))
    return None if at < 0 else key[: at + len(delimiter)]


class Collapse(Generic[T]):
    """The page under construction.

    Invariants: ``len(entries) + len(prefixes) <= limit``; `truncated` is set by the first item that does not fit and
    then nothing changes any more; `inside` is the common prefix of the last row fed, if it was rolled up.
    """

    __slots__ = ("delimiter", "entries", "inside", "limit", "prefix", "prefixes", "truncated")

    def __init__(self, prefix: str, delimiter: str, limit: int, inside: str | None = None) -> None:
        """`inside`: a common prefix to leave out, because the marker lies in it."""
        self.prefix = prefix
        self.delimiter = delimiter
        self.limit = limit
        self.inside = inside
        self.entries: list[tuple[str, T]] = []
        self.prefixes: list[str] = []
        self.truncated = False

    def fork(self) -> Collapse[T]:
        """An independent copy."""
        copy: Collapse[T] = Collapse(self.prefix, self.delimiter, self.limit, self.inside)
        copy.entries = self.entries.copy()
        copy.prefixes = self.prefixes.copy()
        copy.truncated = self.truncated
        return copy

    def feed(self, rows: Sequence[tuple[str, T]]) -> int:
        """Take rows that follow all earlier ones and start with `prefix`; returns how many of them were rolled up into
        the last common prefix."""
        if self.truncated:
            return 0
        if not self.delimiter:
            room = self.limit - len(self.entries)
            self.entries += rows[:room]
            self.truncated = len(rows) > room
            return 0
        inside = self.inside
        skip = len(self.prefix)
        width = len(self.delimiter)
        used = len(self.entries) + len(self.prefixes)
        rolled = 0
        for row in rows:
            key = row[0]
            if inside is not None and key.startswith(inside):
                rolled += 1
                continue
            if used == self.limit:
                self.truncated = True
                return 0
            used += 1
            at = key.find(self.delimiter, skip)
            if at < 0:
                self.entries.append(row)
                inside = None
            else:
                inside = key[: at + width]
                self.prefixes.append(inside)
                rolled = 1
        self.inside = inside
        return rolled if inside is not None else 0

    def last(self) -> str:
        """The greatest key or common prefix on the page, empty if there is none."""
        entry = self.entries[-1][0] if self.entries else ""
        prefix = self.prefixes[-1] if self.prefixes else ""
        return max(entry, prefix)
