"""The slow requests of a node's workers: the latest of each, in memory that they share.

Each worker writes into a ring of its own; whoever is asked reads all of them. An entry is written length last, so that
one that is half written is not taken for an entry.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Struct

from tigrislike.logs import Record

SLOTS: Final = 64
"""Entries that one worker keeps."""

_SLOT: Final = 1024
_HEADER: Final = 4
_TEXT: Final = 256


class SlowRequest(Struct, frozen=True):
    """A request that took long: Unix seconds at its beginning, how long it took, and what it was. `path` and `client`
    are cut off after some hundred characters."""

    at: float
    seconds: float
    operation: str
    method: str
    path: str
    status: int
    sent_bytes: int
    received_bytes: int
    access_key: str
    client: str
    request_id: str


class SlowRequests:
    """The rings of `workers` workers. Those that take `threshold_s` or more are kept (0: none)."""

    def __init__(self, workers: int, threshold_s: float) -> None:
        self.threshold_s = threshold_s
        self._threshold_ns = int(threshold_s * 1e9) or 1 << 63
        self._cells = mmap.mmap(-1, max(workers, 1) * SLOTS * _SLOT)
        self._workers = workers
        self._next = 0

    def note(self, worker: int, record: Record) -> None:
        """Keep a request that is over, if it was slow. For the event loop of that worker only."""
        time_ns, client, method, path, _, status, sent, received, duration_ns, notes = record
        if duration_ns < self._threshold_ns:
            return
        entry = SlowRequest(
            (time_ns - duration_ns) / 1e9,
            round(duration_ns / 1e9, 6),
            notes.get("operation", ""),
            method,
            path.decode("latin-1")[:_TEXT],
            status,
            sent,
            received,
            notes.get("access_key", ""),
            client[:_TEXT],
            notes.get("request_id", ""),
        )
        packed = msgspec.msgpack.encode(entry)[: _SLOT - _HEADER]
        at = (worker * SLOTS + self._next) * _SLOT
        self._next = (self._next + 1) % SLOTS
        self._cells[at : at + _HEADER] = bytes(_HEADER)
        self._cells[at + _HEADER : at + _HEADER + len(packed)] = packed
        self._cells[at : at + _HEADER] = len(packed).to_bytes(_HEADER, "big")

    def entries(self) -> list[SlowRequest]:
        """What all workers keep, the latest first."""
        return sorted(self._entries(), key=lambda entry: -entry.at)

    def _entries(self) -> Iterator[SlowRequest]:
        for slot in range(self._workers * SLOTS):
            at = slot * _SLOT
            size = int.from_bytes(self._cells[at : at + _HEADER], "big")
            if not 0 < size <= _SLOT - _HEADER:
                continue
            try:
                yield msgspec.msgpack.decode(self._cells[at + _HEADER : at + _HEADER + size], type=SlowRequest)
            except msgspec.MsgspecError:
                continue  # it is being written
