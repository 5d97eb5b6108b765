"""What of some blobs is on this disk, told by the names of their blocks; nothing is opened or counted as read."""

from __future__ import annotations

import os
from collections.abc import Iterable

from msgspec import Struct

from .footer import block_count, block_length
from .layout import Layout


class Present(Struct, frozen=True):
    """Of `blocks`, how many are here durably and how many to be evicted, and the data bytes of both."""

    blocks: int
    home_blocks: int
    cache_blocks: int
    here_bytes: int


def on_disk(layout: Layout, block_size: int, blobs: Iterable[tuple[bytes, int]]) -> Present:
    """What is here of blobs, given by id and size. Blocks for some microseconds a block."""
    home = cached = total = here = 0
    for blob_id, size in blobs:
        for number in range(block_count(size, block_size)):
            total += 1
            if os.path.exists(layout.home_block(blob_id, number)) or os.path.exists(
                layout.incoming_block(blob_id, number)
            ):
                home += 1
            elif os.path.exists(layout.cache_block(blob_id, number)):
                cached += 1
            else:
                continue
            here += block_length(size, block_size, number)
    return Present(total, home, cached, here)
