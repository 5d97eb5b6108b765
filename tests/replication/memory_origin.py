"""An origin in memory: what S3 does, in forty lines, with a switch for going away."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator

from msgspec import Struct

from tigrislike.metadata.collapse import group_of
from tigrislike.origin import (
    Attributes,
    Buffer,
    OriginChanged,
    OriginMissing,
    OriginObject,
    OriginPage,
    OriginSummary,
    OriginUnavailable,
    Written,
)

THEN_NS = 1_600_000_000 * 10**9


class Stored(Struct):
    data: bytes
    attributes: Attributes
    etag: str
    modified_ns: int = THEN_NS


class MemoryOrigin:
    """Objects by key.

    Args:
        page: keys and prefixes on one page of a listing, at most.

    Attributes:
        away: every call fails, as of an origin that does not answer.
        puts, deletes, lists: how often each was asked for.
    """

    name = "memory"

    def __init__(self, objects: dict[str, bytes] | None = None, *, page: int = 1000) -> None:
        self.objects: dict[str, Stored] = {}
        for key, data in (objects or {}).items():
            self.have(key, data)
        self.loses: frozenset[str] = frozenset()
        self.page = page
        self.away = False
        self.puts: list[str] = []
        self.deletes: list[str] = []
        self.lists = 0

    def have(self, key: str, data: bytes, attributes: Attributes | None = None) -> None:
        self.objects[key] = Stored(data, attributes or Attributes(), hashlib.md5(data).hexdigest())

    def _reach(self) -> None:
        if self.away:
            raise OriginUnavailable("memory is away")

    async def head(self, key: str) -> OriginObject:
        self._reach()
        if key not in self.objects:
            raise OriginMissing(key)
        stored = self.objects[key]
        return OriginObject(key, len(stored.data), stored.etag, stored.modified_ns, stored.attributes, md5=True)

    async def read(self, key: str, start: int, stop: int, *, size: int, etag: str) -> AsyncIterator[Buffer]:
        self._reach()
        if key not in self.objects:
            raise OriginMissing(key)
        if self.objects[key].etag != etag:
            raise OriginChanged(key)
        yield self.objects[key].data[start:stop]

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> OriginPage:
        self._reach()
        self.lists += 1
        rolled = {key: group_of(key, prefix, delimiter) for key in self.objects if key.startswith(prefix)}
        names = sorted(name for name in {group or key for key, group in rolled.items()} if name > after)
        some = names[: min(limit, self.page)]
        entries = [
            OriginSummary(name, len(found.data), found.etag, found.modified_ns)
            for name in some
            if rolled.get(name, "") is None and (found := self.objects[name])
        ]
        prefixes = [name for name in some if rolled.get(name, "") is not None]
        return OriginPage(tuple(entries), tuple(prefixes), some[-1] if len(names) > len(some) else "")

    async def put(self, key: str, pieces: AsyncIterator[Buffer], size: int, attributes: Attributes) -> Written:
        self._reach()
        data = b"".join([bytes(piece) async for piece in pieces])
        if len(data) != size:
            raise ValueError(f"{len(data)} bytes of {size}")
        self._reach()
        self.puts.append(key)
        self.have(key, data, attributes)
        return Written(self.objects[key].etag, True)

    async def delete(self, key: str) -> None:
        self._reach()
        self.deletes.append(key)
        self.objects.pop(key, None)

    async def close(self) -> None:
        pass


class OneOrigin:
    """What `replication.origins.Origins` is to its users, with this origin behind every id."""

    def __init__(self, origin: MemoryOrigin) -> None:
        self.origin = origin

    @contextlib.asynccontextmanager
    async def using(self, origin_id: bytes) -> AsyncIterator[MemoryOrigin]:
        yield self.origin
