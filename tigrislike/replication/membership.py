"""Who belongs to the store, as one process sees it: which nodes live, in which regions, and how far away they are.

A node is alive while its beat goes on, as watched from here: its `count` grows, and how long it has not is measured by
this process's own clock. So nobody's clock has to be right. While the database is out of reach the view stays as it
was: silence then says nothing about the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tigrislike.metadata import Metadata
from tigrislike.metadata.kv import EngineError
from tigrislike.metadata.placing import Alive, ranked
from tigrislike.metadata.records import REMOVED, UP, Beat, Node

from .peers import Peer

BEAT_S = 2.0
"""How often a node shows life, and looks for others."""

DEAD_AFTER_S = 12.0
"""How long a node may miss its beats: several may get lost while a database recovers."""

_SMOOTHING = 0.3
_UNKNOWN_S = 1.0
"""What is assumed of a node that was never measured: far away."""


@dataclass(frozen=True, slots=True)
class Member(Peer):
    """A node as seen from here.

    Attributes:
        state: of its record: up, draining or removed.
        count: of its last beat, 0 where there is none.
        at_ns: what its clock said at that beat.
        step_ns: how far its host's clock had been set ahead of that.
        seen_s: when that beat was first seen here (monotonic), later by as long as the database was away since.
        moving: it has been seen to beat, not only to have beaten.
        dead: it has missed its beats for too long.
    """

    state: str
    count: int
    at_ns: int
    seen_s: float
    step_ns: int = 0
    moving: bool = False
    dead: bool = False

    @property
    def takes_homes(self) -> bool:
        """Whether it may be given something to hold."""
        return self.state == UP and self.moving and not self.dead


class Members:
    """The members of one store, as seen by its node. Call `refresh` every `BEAT_S`."""

    def __init__(
        self,
        metadata: Metadata,
        *,
        dead_after_s: float = DEAD_AFTER_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metadata = metadata
        self._dead_after_s = dead_after_s
        self._clock_s = clock_s
        self._members: dict[bytes, Member] = {}
        self._latency_s: dict[bytes, float] = {}
        self._looked_s = clock_s()
        self._blind = False
        self.own = metadata.context.home.node
        self.region = metadata.context.home.region

    async def refresh(self) -> None:
        """Look again. Raises what the database raises when it cannot serve; the view then stays as it was."""
        try:
            listed = await self._metadata.nodes()
        except EngineError:
            self._blind = True
            raise
        now_s = self._clock_s()
        # Nobody could beat while the database was away: that silence is nobody's.
        excused_s = now_s - self._looked_s if self._blind else 0.0
        self._looked_s, self._blind = now_s, False
        self._members = {node.node: self._seen(node, beat, now_s, excused_s) for node, beat in listed}
        self._latency_s = {node: s for node, s in self._latency_s.items() if node in self._members}
        self._metadata.regions.known = frozenset(
            {self.region, *(each.region for each in self._members.values() if each.state != REMOVED)}
        )

    def _seen(self, node: Node, beat: Beat | None, now_s: float, excused_s: float) -> Member:
        old = self._members.get(node.node)
        beat = beat or Beat(0, 0)
        seen_s = now_s
        # This node runs, or nobody would look: what has waited for it need not wait until it has seen itself beat.
        moving = node.node == self.own
        if old is not None:
            moved = beat.count != old.count
            seen_s = now_s if moved else old.seen_s + excused_s
            moving = moving or old.moving or moved
        dead = now_s - seen_s > self._dead_after_s
        return Member(
            node.node,
            node.region,
            node.endpoint,
            beat.epoch,
            node.state,
            beat.count,
            beat.at_ns,
            seen_s,
            beat.step_ns,
            moving and not dead,
            dead,
        )

    # --- who there is

    def get(self, node: bytes) -> Member | None:
        return self._members.get(node)

    def known(self) -> list[Member]:
        """Every node that ever joined, in the order of their ids."""
        return list(self._members.values())

    def all(self) -> list[Member]:
        """Every node that was not removed, this one too."""
        return [each for each in self._members.values() if each.state != REMOVED]

    def alive(self) -> Alive:
        """Nodes that can be counted on to hold what they hold: this one, and those seen to beat; none that drains."""
        alive = {each.node: each.region for each in self._members.values() if each.takes_homes}
        if not self.leaving:
            alive[self.own] = self.region
        return alive

    @property
    def leaving(self) -> bool:
        """Whether this node gives up what it holds, and takes nothing."""
        return self.own_state != UP

    @property
    def own_state(self) -> str:
        """That of this node's record; up where it has none yet."""
        own = self._members.get(self.own)
        return own.state if own is not None else UP

    def silent_s(self, member: Member) -> float:
        """How long a node had not been seen to beat when this process last looked."""
        return self._looked_s - member.seen_s

    def reachable(self, nodes: Iterable[bytes]) -> list[Member]:
        """Those of `nodes` worth asking, nearest first: not this one, and not known to be dead."""
        found = [self._members[node] for node in nodes if node in self._members and node != self.own]
        found = [each for each in found if each.endpoint and each.state != REMOVED and not each.dead]
        return sorted(found, key=lambda each: (self.latency_s(each), each.node))

    def takers(self, region: str | None = None) -> list[Member]:
        """Nodes that may be given something to hold, in `region` or anywhere."""
        return [each for each in self._members.values() if each.takes_homes and region in (None, each.region)]

    def chosen(self, content_id: bytes, region: str | None = None, *, beside: Iterable[bytes] = ()) -> list[Member]:
        """`takers` in the order in which they are to hold a content, less the nodes `beside`."""
        candidates = {each.node: each for each in self.takers(region)}
        for node in beside:
            candidates.pop(node, None)
        return [candidates[node] for node in ranked(content_id, candidates)]

    # --- how far they are

    def latency_s(self, member: Member) -> float:
        """How long a round trip to a node takes, as far as it was measured."""
        known = self._latency_s.get(member.node)
        if known is not None:
            return known
        return 0.0 if member.region == self.region else _UNKNOWN_S

    def measured(self, node: bytes, round_trip_s: float) -> None:
        """Take note of one measurement."""
        old = self._latency_s.get(node)
        self._latency_s[node] = round_trip_s if old is None else old + _SMOOTHING * (round_trip_s - old)


def skew_s(
    members: Iterable[Member], own: bytes, now_ns: int, since: dict[bytes, int], *, hosts: bool = False
) -> float | None:
    """How far this machine's clock is ahead of the others', in seconds: the median over nodes whose beat has moved
    since `since` (their counts then). None: none has. `hosts`: of what their hosts' clocks show, which they may not
    go by."""
    ahead = sorted(
        (now_ns - each.at_ns - (each.step_ns if hosts else 0)) / 1e9
        for each in members
        if each.node != own and each.count and each.count != since.get(each.node, each.count)
    )
    return ahead[len(ahead) // 2] if ahead else None
