"""Where an operator sits: a store's metadata, what is known of its nodes, and the names that things have for people.

The queries of `queues`, `stores` and `overview` and the actions of `acting` are functions of a `Desk`; the HTTP API,
the console and the command line call the same ones. None of them reads the queue's items to count them, and what looks
at every zone (`Desk.zones`) is shared by everybody at the desk for as long as twenty times what it cost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tigrislike.config import Settings
from tigrislike.metadata import Metadata, surveying
from tigrislike.metadata.homes import ANYBODY, region_destination
from tigrislike.metadata.owed import DESTINATION_BYTES
from tigrislike.metadata.records import REMOVED, Beat, Counts, Node
from tigrislike.replication.membership import DEAD_AFTER_S, Members

if TYPE_CHECKING:
    from tigrislike.bytecache import BlockStore
    from tigrislike.bytecache.presence import Present
    from tigrislike.metrics import Metrics
    from tigrislike.s3api.app import Gateway
    from tigrislike.slow import SlowRequests

_ROWS: Final = 500
"""Rows that are read, and worked on, at a time: a millisecond or two."""

_SHARE: Final = 20
_LEAST_S: Final = 1.0
_RATE_AFTER_S: Final = 2.0
"""How far apart two looks at the zones are, at least, for a rate to be told from them."""

_NAMES_S: Final = 10.0


class AdminError(Exception):
    """Something was refused: a stable `code`, its HTTP status, and a message for the person who asked."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


@dataclass(frozen=True, slots=True)
class Place:
    """Who is to do something: `kind` is ``node``, ``region``, ``anybody`` or, where nobody is known any more,
    ``unknown``; `name` the region's name or the node's id in hex, and `region` where that is."""

    destination: bytes
    kind: str
    name: str
    region: str

    @property
    def label(self) -> str:
        """As people write it."""
        if self.kind == "node":
            return f"node:{self.name[:8]}"
        return self.name if self.kind in ("region", "anybody") else f"unknown:{self.name[:8]}"


@dataclass(frozen=True, slots=True)
class ZoneFacts:
    """One zone, as of the latest look at all of them: its counters by task, and since when something is due."""

    zone: bytes
    tasks: dict[str, Counts]
    since_ns: int | None

    @property
    def total(self) -> Counts:
        return sum(self.tasks.values(), Counts())


@dataclass(slots=True)
class Look:
    """All zones at one moment (`at_s` monotonic)."""

    at_s: float
    cost_s: float
    zones: dict[bytes, ZoneFacts]


@dataclass(slots=True)
class Names:
    """Who and what there is, as of one moment."""

    at_s: float
    places: dict[bytes, Place]
    buckets: dict[bytes, str]
    nodes: list[tuple[Node, Beat | None]]
    bucket_ids: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bucket_ids = {name: bucket_id for bucket_id, name in self.buckets.items()}

    def place(self, destination: bytes) -> Place:
        return self.places.get(destination) or Place(destination, "unknown", destination.hex(), "unknown")

    def bucket(self, bucket_id: bytes) -> str:
        """A bucket's name; its id in hex where it is gone; empty for what concerns no bucket."""
        return self.buckets.get(bucket_id, bucket_id.hex())

    def zone(self, zone: bytes) -> str:
        """A zone as people write it: ``iad/photos``."""
        destination, bucket_id = zone[:DESTINATION_BYTES], zone[DESTINATION_BYTES:]
        return f"{self.place(destination).label}/{self.bucket(bucket_id)}"

    @property
    def regions(self) -> list[str]:
        return sorted({place.region for place in self.places.values() if place.kind == "region"})


class Desk:
    """One operator's, or one process's.

    Args:
        members: what this process sees of the others; None where it has not watched them.
        blocks, metrics, slow: this node's, where there is one.

    Attributes:
        gateway: this process's front door, where there is one, for those who look at objects.
        presences: tells what each node's disk has of a content, by the content's id, where there are nodes to ask.
    """

    gateway: Gateway | None = None
    presences: Callable[[bytes], Awaitable[Mapping[bytes, Present]]] | None = None

    def __init__(
        self,
        metadata: Metadata,
        settings: Settings,
        *,
        members: Members | None = None,
        blocks: BlockStore | None = None,
        metrics: Metrics | None = None,
        slow: SlowRequests | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metadata = metadata
        self.settings = settings
        self.members = members
        self.blocks = blocks
        self.metrics = metrics
        self.slow = slow
        self._clock_s = clock_s
        self._looks: list[Look] = []
        self._looking = asyncio.Lock()
        self._names: Names | None = None

    def now_ns(self) -> int:
        return self.metadata.now_ns()

    # --- names

    async def names(self, *, fresh: bool = False) -> Names:
        """Names of destinations and buckets, some seconds old at most; `fresh` for something that was not found."""
        known = self._names
        if known is not None and not fresh and self._clock_s() - known.at_s < _NAMES_S:
            return known
        nodes = await self.metadata.nodes()
        buckets: dict[bytes, str] = {}
        page, after = await self.metadata.list_buckets(None)
        while True:
            buckets |= {bucket.id: bucket.name for bucket in page}
            if not after:
                break
            page, after = await self.metadata.list_buckets(None, after=after)
        self._names = Names(self._clock_s(), self.places(nodes), buckets, nodes)
        return self._names

    def places(self, nodes: Sequence[tuple[Node, Beat | None]]) -> dict[bytes, Place]:
        """Whoever something can be owed to, by destination, given the nodes of the store."""
        regions = {self.settings.region, *self.metadata.regions.known, *(node.region for node, _ in nodes)} - {""}
        for _, members in self.settings.geographies:
            regions.update(members)
        places = {ANYBODY: Place(ANYBODY, "anybody", "anybody", "")}
        for region in regions:
            destination = region_destination(region)
            places[destination] = Place(destination, "region", region, region)
        for node, _ in nodes:
            if node.state != REMOVED:
                places[node.node] = Place(node.node, "node", node.node.hex(), node.region)
        return places

    def is_alive(self, node: Node, beat: Beat | None) -> bool:
        """Whether a node shows life: as this process has seen it, or else by the clocks of both machines."""
        member = self.members.get(node.node) if self.members is not None else None
        if member is not None and (member.moving or member.dead):
            return member.moving
        return beat is not None and self.now_ns() - beat.at_ns < DEAD_AFTER_S * 1e9

    # --- zones

    async def zones(self) -> Look:
        """All zones that have, or had, something: the latest look, or a new one."""
        async with self._looking:  # whoever comes meanwhile gets the same
            now_s = self._clock_s()
            last = self._looks[-1] if self._looks else None
            if last is None or now_s - last.at_s > max(_LEAST_S, _SHARE * last.cost_s):
                last = await self._look()
                kept = [look for look in self._looks if last.at_s - look.at_s < 300][-20:]
                self._looks = [*kept, last]
            return last

    async def _look(self) -> Look:
        began_s = self._clock_s()
        ctx, engine, now_ns = self.metadata.context, self.metadata.engine.background, self.now_ns()
        counters: dict[bytes, dict[str, dict[str, int]]] = {}
        begin = b""
        while rows := await engine.read(surveying.zone_counters, ctx, begin, _ROWS):
            surveying.grouped(ctx, rows, counters)
            begin = rows[-1][0] + b"\x00"
            await asyncio.sleep(0)
        since: dict[bytes, int | None] = {}
        after = b""
        while page := await engine.read(surveying.pointers, ctx, after, _ROWS):
            since.update((aged.zone, aged.since_ns(now_ns)) for aged in page)
            after = page[-1].zone
            await asyncio.sleep(0)
        zones: dict[bytes, ZoneFacts] = {}
        for zone in sorted({*counters, *since}):
            tasks = {task: Counts.of(counted) for task, counted in counters.get(zone, {}).items()}
            waits = any(counts.waiting for counts in tasks.values())
            zones[zone] = ZoneFacts(zone, tasks, since.get(zone) if waits else None)
            if len(zones) % _ROWS == 0:
                await asyncio.sleep(0)
        return Look(began_s, self._clock_s() - began_s, zones)

    def earlier(self, look: Look) -> Look | None:
        """A look before `look`, far enough from it for rates."""
        return next(
            (each for each in reversed(self._looks) if look.at_s - each.at_s >= _RATE_AFTER_S),
            None,
        )
