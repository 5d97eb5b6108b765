"""A node's epochs, and which requests it has accepted in them: memory that its processes share.

Guarantees: a (epoch, sender, counter) is accepted once, whichever of the processes it reaches and whichever of them
dies in the middle. Nothing accepted is forgotten while its epoch lasts: where there is no room for one more sender,
that one is refused until the next epoch. The present epoch and the one before are accepted.

The memory has two halves, one for each epoch: its bytes, and a hash table by sender. A half has one lock, a byte range
of the file behind the memory, which the kernel lets go of when its holder dies. It is held for microseconds, and nobody
blocks on it: an event loop whose neighbour was stopped meanwhile goes on with other things.

A window is written highest counter first (`signing.advance` says why), so that a process killed between the two leaves
one that refuses too much, and never too little.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
import secrets
import struct
import weakref
from collections.abc import AsyncIterator
from typing import Final

from tigrislike.replication.signing import EPOCH_BYTES, SENDER_BYTES, WINDOW, TableFull, UnknownEpoch, advance

SENDERS: Final = 4096
"""Processes of other nodes that may ask in one epoch; each that starts anew is another. 1.2 MB for both halves."""
RENEW_S: Final = 180.0
"""How long an epoch is the present one: a request that was held up is refused after one to two of these."""

_RETRY_S: Final = 0.001
_GIVE_UP_S: Final = 1.0
_PRESENT: Final = struct.Struct("=Q")
_HALF: Final = struct.Struct("=8sQ")  # its epoch, zeros for none; how many senders
_ENTRY: Final = struct.Struct(f"=8sQ{WINDOW // 8}s")
_HIGHEST_AT: Final = SENDER_BYTES
_SEEN_AT: Final = SENDER_BYTES + 8
_NONE: Final = bytes(EPOCH_BYTES)


class Epochs:
    """Made before the fork; each process uses it from one thread. In the first epoch when it is made.

    Args:
        senders: For how many there is room in an epoch.
    """

    def __init__(self, senders: int = SENDERS) -> None:
        # Twice as many places as senders, so that looking for one takes few looks.
        self._senders = senders
        self._places = 2 * senders
        self._half_bytes = _HALF.size + self._places * _ENTRY.size
        size = _PRESENT.size + 2 * self._half_bytes
        self._fd = os.memfd_create("tigrislike-epochs")
        weakref.finalize(self, os.close, self._fd)
        os.ftruncate(self._fd, size)
        self._memory = mmap.mmap(self._fd, size)
        _HALF.pack_into(self._memory, self._start(0), secrets.token_bytes(EPOCH_BYTES), 0)

    @property
    def current(self) -> bytes:
        """The present epoch: what others are to sign for."""
        return self._epoch(self._present())

    @property
    def previous(self) -> bytes | None:
        """The one before, which is accepted too."""
        epoch = self._epoch(1 - self._present())
        return None if epoch == _NONE else epoch

    async def renew(self) -> None:
        """Begin an epoch: the present one becomes the one before, and that is forgotten. For one process at a time.

        Raises:
            TableFull: Others have held the lock for too long.
        """
        half = 1 - self._present()
        start = self._start(half)
        async with self._locked(half):
            # Whoever is killed in between leaves a half of no epoch.
            _HALF.pack_into(self._memory, start, _NONE, 0)
            self._memory[start : start + self._half_bytes] = bytes(self._half_bytes)
            self._memory[start : start + EPOCH_BYTES] = secrets.token_bytes(EPOCH_BYTES)
            _PRESENT.pack_into(self._memory, 0, half)

    async def accept(self, epoch: bytes, sender: bytes, counter: int) -> None:
        """Note a request whose signature is verified, before anything is done for it.

        Raises:
            UnknownEpoch, Replayed, TableFull
        """
        half = self._half_of(epoch)
        async with self._locked(half):
            if self._epoch(half) != epoch:
                raise UnknownEpoch("the epoch has just ended")
            at = self._entry(half, sender)
            _, highest, seen = _ENTRY.unpack_from(self._memory, at)
            highest, bits = advance(highest, int.from_bytes(seen, "little"), counter)
            _PRESENT.pack_into(self._memory, at + _HIGHEST_AT, highest)
            self._memory[at + _SEEN_AT : at + _ENTRY.size] = bits.to_bytes(WINDOW // 8, "little")

    def _entry(self, half: int, sender: bytes) -> int:
        """Where a sender's window lies; made if there is none."""
        memory, start = self._memory, self._start(half)
        place = int.from_bytes(sender, "little")
        while True:
            place %= self._places
            at = start + _HALF.size + place * _ENTRY.size
            found = memory[at : at + SENDER_BYTES]
            if found == sender:
                return at
            if found == bytes(SENDER_BYTES):
                break
            place += 1
        epoch, senders = _HALF.unpack_from(memory, start)
        if senders >= self._senders:
            raise TableFull(f"{senders} senders are noted, and there is room for no more before the next epoch")
        _HALF.pack_into(memory, start, epoch, senders + 1)
        memory[at : at + SENDER_BYTES] = sender
        return at

    def _half_of(self, epoch: bytes) -> int:
        if epoch != _NONE:
            for half in (0, 1):
                if self._epoch(half) == epoch:
                    return half
        raise UnknownEpoch("the epoch is neither the present one nor the one before")

    @contextlib.asynccontextmanager
    async def _locked(self, half: int) -> AsyncIterator[None]:
        """Keep other processes out. Inside nothing is awaited, which keeps this one's other tasks out."""
        waited_s = 0.0
        while True:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, half)
                break
            except BlockingIOError:
                if waited_s >= _GIVE_UP_S:
                    raise TableFull("another process keeps the table locked") from None
            waited_s += _RETRY_S
            await asyncio.sleep(_RETRY_S)
        try:
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, half)

    def _present(self) -> int:
        half: int = _PRESENT.unpack_from(self._memory, 0)[0]
        return half

    def _start(self, half: int) -> int:
        return _PRESENT.size + half * self._half_bytes

    def _epoch(self, half: int) -> bytes:
        start = self._start(half)
        return self._memory[start : start + EPOCH_BYTES]
