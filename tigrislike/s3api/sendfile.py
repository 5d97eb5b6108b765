"""File ranges and the page cache: what may be sent from the event loop, and what a thread has to read first."""

from __future__ import annotations

import os


def in_page_cache(fd: int, offset: int, count: int) -> bool:
    """Whether a file range is in memory, as far as its first, middle and last bytes tell."""
    try:
        for position in (offset, offset + count // 2, offset + count - 1):
            if not os.preadv(fd, [bytearray(1)], position, os.RWF_NOWAIT):
                return True  # past the end: sendfile will say so
    except BlockingIOError:
        return False
    except OSError:
        return True  # a filesystem without RWF_NOWAIT
    return True


def read_ahead(fd: int, offset: int, count: int) -> None:
    """Bring a file range into the page cache; for a thread."""
    buffer = bytearray(min(count, 256 * 1024))
    end = offset + count
    while offset < end:
        size = os.preadv(fd, [memoryview(buffer)[: end - offset]], offset)
        if not size:
            return
        offset += size
