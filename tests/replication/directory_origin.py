"""A directory that plays an origin: each object a file, its ETag the MD5 of its bytes.

What it does wrong on request is told by files beside it, so that a test reaches the origin of another process: `away`
(it does not answer), `silent` (what it is sent is not acknowledged as verified), `refusing`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from tigrislike.origin import (
    Attributes,
    Buffer,
    OriginChanged,
    OriginMissing,
    OriginObject,
    OriginPage,
    OriginRefused,
    OriginUnavailable,
    Written,
)

PIECE = 60_000


class DirectoryOrigin:
    """An `Origin` for tests.

    Attributes:
        puts, deletes: keys, in order, of what this process asked for.
        spoils: keys whose next put stores other bytes than were sent.
        began, gate: a put has begun; it waits for the other before anything is stored.
        step: called before and after whatever changes something here; what it raises ends that.
    """

    def __init__(self, root: Path) -> None:
        self.name = root.name
        self.loses: frozenset[str] = frozenset()
        self.root = root
        self.puts: list[str] = []
        self.deletes: list[str] = []
        self.spoils: set[str] = set()
        self.began, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.step: Callable[[], None] = lambda: None
        (root / "objects").mkdir(parents=True, exist_ok=True)

    def set(self, flag: str, on: bool = True) -> None:
        """Let it go wrong in some way from now on, or no longer."""
        path = self.root / flag
        path.touch() if on else path.unlink(missing_ok=True)

    def keys(self) -> set[str]:
        """What there is, whatever is wrong with it."""
        return {path.name for path in (self.root / "objects").iterdir()}

    def has(self, key: str) -> bool:
        return self._path(key).exists()

    def data(self, key: str) -> bytes:
        return self._path(key).read_bytes()

    def _path(self, key: str) -> Path:
        return self.root / "objects" / key

    def _check(self) -> None:
        if (self.root / "away").exists():
            raise OriginUnavailable(f"{self.name} is away", 2.0)
        if (self.root / "refusing").exists():
            raise OriginRefused(f"{self.name} says no")

    async def head(self, key: str) -> OriginObject:
        self._check()
        try:
            data = self.data(key)
        except FileNotFoundError:
            raise OriginMissing(key) from None
        return OriginObject(key, len(data), hashlib.md5(data).hexdigest(), 0, Attributes(), md5=True)

    async def read(self, key: str, start: int, stop: int, *, size: int, etag: str) -> AsyncIterator[Buffer]:
        self._check()
        try:
            data = self.data(key)
        except FileNotFoundError:
            raise OriginMissing(key) from None
        if hashlib.md5(data).hexdigest() != etag or len(data) != size:
            raise OriginChanged(key)
        while start < stop:
            piece = data[start : min(start + PIECE, stop)]
            start += len(piece)
            yield piece
            self._check()

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> OriginPage:
        raise NotImplementedError

    async def put(self, key: str, pieces: AsyncIterator[Buffer], size: int, attributes: Attributes) -> Written:
        self._check()
        self.puts.append(key)
        self.began.set()
        data = b"".join([bytes(piece) async for piece in pieces])
        assert len(data) == size
        self._check()
        await asyncio.sleep(0)
        await self.gate.wait()
        if key in self.spoils:
            self.spoils.discard(key)
            data = data[:-1] + bytes((data[-1] ^ 1,))
        partial = self.root / secrets.token_hex(8)
        self.step()
        partial.write_bytes(data)
        os.replace(partial, self._path(key))
        self.step()
        return Written(hashlib.md5(data).hexdigest(), not (self.root / "silent").exists())

    async def delete(self, key: str) -> None:
        self._check()
        self.deletes.append(key)
        self.step()
        await asyncio.sleep(0)
        with contextlib.suppress(FileNotFoundError):
            self._path(key).unlink()
        self.step()

    async def close(self) -> None:
        pass
