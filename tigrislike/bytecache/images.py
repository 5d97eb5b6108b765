"""Memory for blocks on their way in: page-aligned, bounded in bytes, given out in the order it was asked for."""

import asyncio
import mmap
from collections import deque
from collections.abc import Callable
from typing import Final

_SPARES: Final = 2
"""Images kept for the next fill: on a virtual machine fresh pages cost more than copying a block."""


class Images:
    """The memory of one process's fills. Used from one event loop.

    Args:
        limit_bytes: Of all images that are out at once.
        count: Told of every change of the bytes that are out.
        reclaim: Called when there is no room; gives back what can be spared, by calling `give`.
    """

    def __init__(self, limit_bytes: int, count: Callable[[int], None], reclaim: Callable[[], None]) -> None:
        self._limit_bytes = limit_bytes
        self._count = count
        self._reclaim = reclaim
        self._used_bytes = 0
        self._queue: deque[object] = deque()
        self._changed = asyncio.Event()
        self._spares: list[memoryview] = []

    def has_room(self, length: int) -> bool:
        """Whether `take` would give an image at once, and take it from nobody."""
        return not self._queue and self._used_bytes + length <= self._limit_bytes

    async def take(self, length: int, timeout_s: float) -> memoryview | None:
        """An image of `length` bytes with any content; None if there was no room for so long, or never can be."""
        if length > self._limit_bytes:
            return None
        turn = object()
        self._queue.append(turn)
        try:
            async with asyncio.timeout(timeout_s):
                while self._queue[0] is not turn or not self._makes_room(length):
                    await self._changed.wait()
            self._used_bytes += length
        except TimeoutError:
            return None
        finally:
            self._queue.remove(turn)
            self._tell()
        self._count(length)
        for spare in self._spares:
            if len(spare) == length:
                self._spares.remove(spare)
                return spare
        return memoryview(mmap.mmap(-1, length))

    def give(self, image: memoryview, *, reuse: bool = True) -> None:
        """Give an image back. Nobody looks at it any more, or else `reuse` is False."""
        self._used_bytes -= len(image)
        self._count(-len(image))
        if reuse:
            self._spares = [image, *self._spares][:_SPARES]
        self._tell()

    def _makes_room(self, length: int) -> bool:
        if self._used_bytes + length > self._limit_bytes:
            self._reclaim()
        return self._used_bytes + length <= self._limit_bytes

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
