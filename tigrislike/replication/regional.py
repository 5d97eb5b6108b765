"""A process's part in the regions of its store: who there is, where blocks come from, what is wanted here.

What the front door asks of it is in `Regional`; `node.py` opens one per process.
"""

from __future__ import annotations

import asyncio
import logging

from tigrislike.bytecache import BlockStore, BytesError, SourceUnavailable
from tigrislike.bytecache.footer import block_count
from tigrislike.bytecache.presence import Present, on_disk
from tigrislike.metadata import Metadata
from tigrislike.metadata.errors import HomesLacking
from tigrislike.metadata.records import Home

from .backing import Backer
from .demand import Demand
from .membership import Member, Members
from .moving import Moving
from .origins import Origins
from .peers import Peers
from .remote import PeerSource, RemoteSource
from .replicate import Copying
from .shadow import Shadows
from .spreading import Receiver, Spreader

log = logging.getLogger("tigrislike.replication")

PROBE_S = 10.0
"""How often a process measures how far other nodes are."""

_PROBE_TIMEOUT_S = 2.0
_PRESENCE_TIMEOUT_S = 2.0

MAX_PRESENCE_BLOCKS = 4096
"""Blocks of a content that are looked for on a disk; of one that has more nothing is said."""


class Regional:
    """The regions as one process sees them.

    Attributes:
        members: the nodes of the store.
        source: where blocks come from that are not here.
        demand: what is read here that is at home elsewhere.
        receiver: takes copies that other nodes send before they acknowledge a write.
        origins: stores elsewhere; the caller's to close, after this.
        shadows: what buckets lack, and an origin may have.
        backer: what is to be at an origin before it is acknowledged.
        moving: which contents this node is gaining or giving up.
    """

    def __init__(
        self,
        metadata: Metadata,
        blocks: BlockStore,
        peers: Peers,
        origins: Origins,
        *,
        dead_after_s: float,
        replicate_after: int,
        inline_bytes: int,
    ) -> None:
        self.members = Members(metadata, dead_after_s=dead_after_s)
        self.origins = origins
        self.shadows = Shadows(metadata, origins, inline_bytes=inline_bytes)
        self.backer = Backer(metadata, blocks, origins)
        self.source = RemoteSource(metadata, self.members, peers, origins=origins)
        self.demand = Demand(metadata, self.members, self.source, threshold=replicate_after)
        self.receiver = Receiver(metadata, blocks, PeerSource(self.members, peers))
        self.moving = Moving(blocks.layout.root)
        # Nobody's rate: writes wait for it.
        self._copying = Copying(metadata, blocks, self.members, self.moving, _at_once)
        self._spreader = Spreader(metadata, self.members, peers, self.become_home)
        self._peers = peers
        self._metadata = metadata
        self._blocks = blocks

    async def spread(self, blob_id: bytes, size: int, copies: int, regions: tuple[str, ...]) -> tuple[Home, ...]:
        """Have a finished and uncommitted blob made durable on further nodes, until `copies` hold it with this one.

        Raises:
            TooFewHomes: not enough nodes could be reached; the write must not be acknowledged.
        """
        return await self._spreader.spread(blob_id, size, copies, regions)

    async def secure(self, lacking: HomesLacking) -> None:
        """Have stored contents gain the homes that a write lacks that shares them.

        Raises:
            TooFewHomes: not enough nodes could be reached; the write must not be acknowledged.
        """
        await self._spreader.secure(lacking.contents, lacking.regions, lacking.copies)

    async def become_home(self, content_id: bytes) -> None:
        """Make this node a home of a content, for a write that waits for it.

        Raises:
            SourceUnavailable: this node is about to leave, and takes nothing.
            BytesError: the bytes could not be had, or not be kept.
        """
        if self.members.leaving:
            raise SourceUnavailable("this node gives up what it holds")
        await self._copying.become_home_ahead(content_id)

    async def presence(self, content_id: bytes) -> Present | None:
        """What this node's disk has of a content. None: the content is gone, or of too many blocks to look for."""
        held = await self._metadata.held(content_id)
        blocks = self._blocks
        if held is None or sum(block_count(size, blocks.block_size) for _, size in held.blobs) > MAX_PRESENCE_BLOCKS:
            return None
        return await asyncio.to_thread(on_disk, blocks.layout, blocks.block_size, held.blobs)

    async def presences(self, content_id: bytes) -> dict[bytes, Present]:
        """What each node's disk has of a content, as far as nodes tell within two seconds."""

        async def ask(member: Member) -> Present | None:
            try:
                return await self._peers.presence(member, content_id, _PRESENCE_TIMEOUT_S)
            except BytesError as error:
                log.debug("node %s does not tell: %s", member.node.hex(), error)
                return None

        others = self.members.reachable(each.node for each in self.members.all())
        own, *told = await asyncio.gather(self.presence(content_id), *(ask(each) for each in others))
        nodes = [self._blocks.node_id, *(each.node for each in others)]
        return {node: found for node, found in zip(nodes, (own, *told), strict=True) if found is not None}

    async def probe(self) -> None:
        """Measure how far other nodes are; one that does not answer counts as far as the time-out."""
        others = self.members.reachable(each.node for each in self.members.all())
        await asyncio.gather(*(self._probe(each) for each in others))

    async def _probe(self, member: Member) -> None:
        try:
            round_trip_s, _ = await self._peers.ping(member, _PROBE_TIMEOUT_S)
        except BytesError as error:
            log.debug("node %s does not answer: %s", member.node.hex(), error)
            round_trip_s = _PROBE_TIMEOUT_S
        self.members.measured(member.node, round_trip_s)

    async def aclose(self) -> None:
        """Let go of what is under way, and close the connections."""
        await self.receiver.aclose()
        await self._peers.aclose()
        self.moving.close()


async def _at_once(size: int) -> None:
    """The gate of what waits for nothing."""
