"""A process's part in the regions of its store: who there is, where blocks come from, what is wanted here.

What the front door asks of it is in `Regional`; `node.py` makes one per process.
"""

from __future__ import annotations

from tigrislike.metadata import Metadata
from tigrislike.metadata.records import Home

from .demand import Demand
from .membership import Members
from .remote import RemoteSource
from .spreading import Spreader


class Regional:
    """The regions as operations see them.

    Attributes:
        members: the nodes of the store.
        source: where blocks come from that are not here.
        demand: what is read here that is at home elsewhere.
    """

    def __init__(
        self, metadata: Metadata, members: Members, source: RemoteSource, demand: Demand, spreader: Spreader
    ) -> None:
        self.members = members
        self.source = source
        self.demand = demand
        self._metadata = metadata
        self._spreader = spreader

    async def spread(self, blob_id: bytes, size: int, copies: int, regions: tuple[str, ...]) -> tuple[Home, ...]:
        """Have a finished and uncommitted blob made durable on further nodes, until `copies` hold it with this one.

        Raises:
            TooFewHomes: not enough nodes could be reached; the write must not be acknowledged.
        """
        return await self._spreader.spread(blob_id, size, copies, regions)
