"""Which chunks of which block files this process has verified since it started.

A bounded table from (blob id, block number) to the file's identity, footer and a bit per verified chunk. An entry is
void as soon as the file under that name has another inode, size or modification time. Losing an entry, or a bit to a
race between threads, costs one more verification and nothing else.
"""

import os
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Final

from tigrislike.bytecache.footer import Footer

MAX_BLOCKS: Final = 65536
"""Half a TiB of 8 MiB blocks, at about 0.6 KiB of memory each: 40 MiB at the very most."""

Identity = tuple[int, int, int]
"""(inode, size, modification time in ns)."""


def identity(status: os.stat_result) -> Identity:
    return status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(slots=True)
class BlockState:
    """Of one block file: who it is, what its footer says, and which of its chunks (bit i: chunk i) were verified."""

    identity: Identity
    footer: Footer
    verified: int = 0


class Verified:
    """The table. Least recently used entries are forgotten. Safe to use from several threads."""

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._states: OrderedDict[tuple[bytes, int], BlockState] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._states)

    def get(self, blob_id: bytes, number: int, expected: Identity) -> BlockState | None:
        """The state of the block, if it is known and its file still is `expected`."""
        with self._lock:
            state = self._states.get((blob_id, number))
            if state is None or state.identity != expected:
                return None
            self._states.move_to_end((blob_id, number))
            return state

    def __contains__(self, block: tuple[bytes, int]) -> bool:
        return block in self._states

    def put(self, state: BlockState) -> None:
        with self._lock:
            key = (state.footer.blob_id, state.footer.number)
            self._states[key] = state
            self._states.move_to_end(key)
            if len(self._states) > self._max_blocks:
                self._states.popitem(last=False)

    def forget(self, blob_id: bytes, number: int) -> None:
        with self._lock:
            self._states.pop((blob_id, number), None)
