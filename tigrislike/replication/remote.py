"""Blocks that are not here, from the nodes that hold them: the block store's source.

The database says who holds a blob. Who is nearest, as measured, is asked first, and of those that are about as near
each for a share of the blobs; an origin that has it is asked last. Where one fails in the middle, the next goes on from
there. In a region of several nodes, one of them is where copies gather, so that a block crosses the wide area once for
all of them: it is asked before any node of another region.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Final, Protocol, TypeVar

from tigrislike.bytecache import NotAtSource, SourceUnavailable
from tigrislike.bytecache.source import BlobSource
from tigrislike.metadata import Metadata
from tigrislike.metadata.homes import Located
from tigrislike.metadata.kv import EngineError
from tigrislike.metadata.placing import ranked
from tigrislike.metadata.records import Elsewhere, Home

from .membership import Member, Members
from .origins import MovedAtOrigin, OriginSilent

log = logging.getLogger("tigrislike.replication")

_REMEMBERED: Final = 4096
_LOOKUP_S: Final = 30.0
"""How long a lookup is relied on. Homes change seldom, and who is asked in vain has the next lookup made anew."""

_ALIKE: Final = 1.5
"""Who is at most so many times as far as the nearest is as near. Measured is also how busy a node is: one that has much
more to give than others seems farther, and is asked less."""

Buffer = bytes | memoryview
T = TypeVar("T")


class HomesSilent(SourceUnavailable):
    """All nodes that hold the bytes are down, or out of reach."""

    code = "ServiceUnavailable"
    for_operators = False


class BytesLost(NotAtSource):
    """No node of the store holds the bytes, and none will."""

    for_operators = False


class BlockReader(Protocol):
    """What is asked of other nodes; see `peers.Peers.read`."""

    def read(
        self, peer: Member, blob_id: bytes, size: int, start: int, stop: int, *, gather: bool = False
    ) -> AsyncIterator[Buffer]: ...


class OriginReader(Protocol):
    """What is asked of origins; see `origins.Origins.read`."""

    def read(self, elsewhere: Elsewhere, size: int, start: int, stop: int) -> AsyncGenerator[Buffer, None]: ...


FROM_ORIGIN: Final = "origin"
"""Where bytes were served from that no region gave."""


class RemoteSource:
    """A `bytecache.source.BlobSource` over the other nodes of a store, and its origins. One per process.

    Args:
        peers: how the nodes are asked.
        origins: how origins are, None where there are none.
        clock_s: monotonic; for tests.
    """

    def __init__(
        self,
        metadata: Metadata,
        members: Members,
        peers: BlockReader,
        *,
        origins: OriginReader | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metadata = metadata
        self._members = members
        self._peers = peers
        self._origins = origins
        self._clock_s = clock_s
        self._located: OrderedDict[bytes, tuple[Located, float]] = OrderedDict()
        self._served: OrderedDict[bytes, str] = OrderedDict()

    async def read(self, blob_id: bytes, size: int, start: int, stop: int) -> AsyncGenerator[Buffer, None]:
        """Bytes of a blob, from whoever gives them first.

        Raises:
            NotAtSource: nobody holds the blob, or whoever does says that it has it not. MovedAtOrigin: the origin has
                another object there by now.
            SourceUnavailable: a node or origin that holds it does not answer, or the database does not.
        """
        remembered = blob_id in self._located
        located = await self.locate(blob_id)
        while True:
            failure: SourceUnavailable | None = None
            for member, gather in self._order(located, blob_id):
                try:
                    async with aclosing(self._from(member, blob_id, size, start, stop, gather)) as pieces:
                        async for piece in pieces:
                            yield piece
                            start += len(piece)
                    if start >= stop:
                        return
                    failure = SourceUnavailable(f"node {member.node.hex()} gave too little of blob {blob_id.hex()}")
                except NotAtSource:
                    log.info("node %s has no blob %s", member.node.hex(), blob_id.hex())
                except SourceUnavailable as error:
                    log.warning("blob %s from node %s: %s", blob_id.hex(), member.node.hex(), error)
                    failure = error
            moved: MovedAtOrigin | None = None
            if located.elsewhere is not None and self._origins is not None:
                try:
                    async with aclosing(self._origins.read(located.elsewhere, size, start, stop)) as pieces:
                        async for piece in pieces:
                            _remember(self._served, blob_id, FROM_ORIGIN)
                            yield piece
                            start += len(piece)
                    if start >= stop:
                        return
                    failure = OriginSilent(f"the origin gave too little of {located.elsewhere.key!r}")
                except MovedAtOrigin as error:
                    moved = error
                except SourceUnavailable as error:
                    failure = error
            _remember(self._located, blob_id, (located, -math.inf))
            if not remembered:
                break
            remembered, before = False, located
            located = await self.locate(blob_id)
            if (located.homes, located.elsewhere) == (before.homes, before.elsewhere):
                break  # it has not moved since it was last looked for
        if moved is not None:
            raise moved
        if isinstance(failure, OriginSilent):
            raise failure
        if failure is not None:
            raise _silence(located.homes) from failure
        silent = [home for home in located.homes if home.node != self._members.own and not self._answers(home.node)]
        if silent:
            where = ", ".join(f"{home.node.hex()} ({home.region or 'region unknown'})" for home in silent)
            log.warning("blob %s is held by nodes that do not answer: %s", blob_id.hex(), where)
            raise _silence(silent)
        if not located.homes:
            log.error("blob %s was held by nodes that were removed only", blob_id.hex())
            raise BytesLost(
                "The bytes of this object are lost: the nodes that held them were removed from the store. Trying again "
                "will not help; put the object again, or delete it."
            )
        raise NotAtSource(f"no other node has blob {blob_id.hex()}")

    async def _from(
        self, member: Member, blob_id: bytes, size: int, start: int, stop: int, gather: bool
    ) -> AsyncGenerator[Buffer, None]:
        """What one node gives; how long its first piece takes is how far away it is, unless it has to gather it."""
        began_s: float | None = None if gather else self._clock_s()
        pieces = self._peers.read(member, blob_id, size, start, stop, gather=gather)
        try:
            async for piece in pieces:
                if began_s is not None:
                    self._members.measured(member.node, self._clock_s() - began_s)
                    began_s = None
                _remember(self._served, blob_id, member.region)
                yield piece
        finally:
            if (close := getattr(pieces, "aclose", None)) is not None:
                await close()

    async def lives(self, blob_id: bytes) -> bool:
        """Whether the blob is wanted: neither it nor its content is dead. Raises SourceUnavailable."""
        try:
            return await self._metadata.locate(blob_id) is not None
        except EngineError as error:
            raise SourceUnavailable(
                f"the database does not tell whether blob {blob_id.hex()} lives: {error}"
            ) from error

    def keeps(self, blob_id: bytes) -> bool:
        """Whether copies of the blob may be kept here, as far as its policy is known yet."""
        known = self._located.get(blob_id)
        return known is None or self._metadata.regions.allow(known[0].regions, self._members.region)

    def served_from(self, blob_id: bytes) -> str:
        """The region that the blob's bytes last came from; this one where they never came from elsewhere."""
        return self._served.get(blob_id, self._members.region)

    # --- whom to ask

    async def locate(self, blob_id: bytes) -> Located:
        """Who holds a blob, as of half a minute ago at most. Raises NotAtSource, SourceUnavailable."""
        known = self._located.get(blob_id)
        if known is not None and self._clock_s() - known[1] < _LOOKUP_S:
            return known[0]
        try:
            located = await self._metadata.locate(blob_id)
        except EngineError as error:
            if known is not None:  # homes stay where they are while the database is away
                return known[0]
            raise SourceUnavailable(f"the database does not tell who holds blob {blob_id.hex()}: {error}") from error
        if located is None:
            self._located.pop(blob_id, None)
            raise NotAtSource(f"blob {blob_id.hex()} is not committed, or deleted")
        _remember(self._located, blob_id, (located, self._clock_s()))
        return located

    def _order(self, located: Located, blob_id: bytes) -> list[tuple[Member, bool]]:
        homes = self._members.reachable(home.node for home in located.homes)
        near = self._shared([member for member in homes if member.region == self._members.region], blob_id)
        far = self._shared([member for member in homes if member.region != self._members.region], blob_id)
        own = self._members.own
        mates = {each.node: each for each in self._members.takers(self._members.region)}
        gathering = ranked(blob_id, {*mates, own})[0]
        if near or gathering == own:
            return near + far
        return [(mates[gathering], True), *far]

    def _shared(self, nearest_first: list[Member], blob_id: bytes) -> list[tuple[Member, bool]]:
        """Whom to ask, as `_order`: those that are about as near in an order of the blob's own."""
        reach_s = _ALIKE * min(map(self._members.latency_s, nearest_first), default=0.0)
        alike = {each.node: each for each in nearest_first if self._members.latency_s(each) <= reach_s}
        order = [alike[node] for node in ranked(blob_id, alike)]
        return [(each, False) for each in (*order, *nearest_first[len(alike) :])]

    def _answers(self, node: bytes) -> bool:
        return bool(self._members.reachable([node]))


def _silence(homes: Iterable[Home]) -> HomesSilent:
    """The error that says where those are that do not answer."""
    regions = sorted({home.region for home in homes if home.region})
    nearby = f" (in {', '.join(regions)})" if regions else ""
    return HomesSilent(f"The object is held by nodes that do not answer now{nearby}. Please try again.")


class PeerSource:
    """What one other node has, whatever the database says of it: for blobs that are not committed."""

    def __init__(self, members: Members, peers: BlockReader) -> None:
        self._members = members
        self._peers = peers

    def of(self, node: bytes) -> BlobSource:
        """The blobs on a node's disk. Raises SourceUnavailable: it is not known, or known to be dead."""
        found = self._members.reachable([node])
        if not found:
            raise SourceUnavailable(f"node {node.hex()} cannot be reached")
        return _OnePeer(self._peers, found[0])


class _OnePeer:
    def __init__(self, peers: BlockReader, peer: Member) -> None:
        self._peers = peers
        self._peer = peer

    def read(self, blob_id: bytes, size: int, start: int, stop: int) -> AsyncIterator[Buffer]:
        return self._peers.read(self._peer, blob_id, size, start, stop)

    async def lives(self, blob_id: bytes) -> bool:
        return True

    def keeps(self, blob_id: bytes) -> bool:
        return True


def _remember(table: OrderedDict[bytes, T], blob_id: bytes, value: T) -> None:
    """Put a value into a bounded table, of which the oldest goes."""
    table[blob_id] = value
    table.move_to_end(blob_id)
    if len(table) > _REMEMBERED:
        table.popitem(last=False)
