"""Where contents are wanted: policies, and what a content's homes still lack or have too many of.

Everything here is arithmetic on records and on who is alive; nothing reads or writes.

A bucket's policy names regions, geographies (names for several regions), or nothing: then bytes stay where they were
born, are cached where they are read, and get further homes where they are read often.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from msgspec.structs import replace

from tigrislike.naming import GEOGRAPHIES, Geographies, is_region

from .errors import InvalidArgument
from .records import ANNOUNCED, BACKED, NOWHERE, Bucket, Content, Home

MAX_REGIONS = 16
GLOBAL = "global"
"""The policy that names no region."""

LOCAL = "local"
"""The durability of a bucket whose writes are acknowledged once one node holds them."""

WRITE_BACK = "write-back"
WRITE_THROUGH = "write-through"
"""Durabilities of a bucket whose backing origin holds what is written: some time after a node does, or before the write
is acknowledged. What the origin holds, no node needs to."""

Alive = Mapping[bytes, str]
"""Nodes that may be counted on, by id, and their regions."""


class Regions:
    """What the names in policies mean in one store.

    Attributes:
        known: regions that have nodes, as far as is known; whoever learns of others replaces it.
    """

    def __init__(self, geographies: Geographies = GEOGRAPHIES, known: Iterable[str] = ()) -> None:
        self._geographies = dict(geographies)
        self.known = frozenset(known)

    def parse(self, text: str) -> tuple[str, ...]:
        """The names in a policy such as "iad", "iad,sjc" or "usa"; () for an empty text or "global".

        Raises:
            InvalidArgument: it is no list of region names.
        """
        if text.strip().lower() in ("", GLOBAL):
            return ()
        names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",")))
        if len(names) > MAX_REGIONS or GLOBAL in names or not all(is_region(name) for name in names):
            raise InvalidArgument("X-Tigris-Regions", text, "Regions are names separated by commas, at most 16")
        return names

    def in_geography(self, region: str) -> bool:
        """Whether a policy can want a region without naming it."""
        return any(region in members for members in self._geographies.values())

    def expand(self, names: Iterable[str]) -> frozenset[str]:
        """The regions that `names` stand for: those of a geography as far as they have nodes."""
        wanted: set[str] = set()
        for name in names:
            members = self._geographies.get(name)
            wanted.update((name,) if members is None else self.known.intersection(members))
        return frozenset(wanted)

    def copies(self, names: Iterable[str]) -> int:
        """How many nodes must have the bytes before a write under such a policy is acknowledged: two where several of
        its regions have nodes, so that no single one of them holds the only copy at any time. A region that nobody has
        set up yet is owed its replica, and keeps nobody from writing."""
        return 2 if len(self.expand(names) & self.known) > 1 else 1

    def allow(self, names: Iterable[str], region: str) -> bool:
        """Whether bytes under such a policy may be kept in `region`. A geography without nodes allows none."""
        names = tuple(names)
        return not names or region in self.expand(names)


class Wanted(NamedTuple):
    """Where a content is wanted: names of regions, on how many nodes before its write is acknowledged, and at which
    origin, by its id (empty: at none)."""

    regions: tuple[str, ...]
    copies: int
    backing: bytes = b""


def parse_durability(text: str) -> int:
    """How many nodes, its origin counted as one, must hold bytes durably under a bucket's durability: N for "homes=N",
    otherwise 1.

    Raises:
        InvalidArgument.
    """
    if text in (LOCAL, WRITE_BACK, WRITE_THROUGH):
        return 1
    match = re.fullmatch(r"homes=([1-9])", text)
    if match is None:
        raise InvalidArgument(
            "X-Tigrislike-Durability", text, "Durability is local, write-back, write-through, or homes=N, N from 1 to 9"
        )
    return int(match[1])


def needs_backing(durability: str) -> bool:
    """Whether a bucket of this durability has a backing origin."""
    return durability in (WRITE_BACK, WRITE_THROUGH)


def policy_fields(fields: Mapping[str, Any], regions: Regions) -> dict[str, Any]:
    """Fields of a bucket's record with its policies as they are kept, whatever way of writing them was chosen.

    Raises:
        InvalidArgument.
    """
    kept = dict(fields)
    if "region_policy" in kept:
        kept["region_policy"] = ",".join(regions.parse(kept["region_policy"]))
    if "durability" in kept:
        copies = parse_durability(kept["durability"])
        if not needs_backing(kept["durability"]):
            kept["durability"] = LOCAL if copies == 1 else f"homes={copies}"
    return kept


def wanted(bucket: Bucket, regions: Regions, explicit: tuple[str, ...] = ()) -> Wanted:
    """What a bucket wants of its objects; `explicit` are the regions that a request names instead of the bucket's."""
    names = explicit or regions.parse(bucket.region_policy)
    backing = bucket.backing if needs_backing(bucket.durability) else b""
    return Wanted(names, max(parse_durability(bucket.durability), regions.copies(names)), backing)


def merged(content: Content, also: Wanted) -> Content:
    """A content that a further bucket shares: it is wanted wherever either wants it, and at one origin, that of whoever
    came first."""
    regions = tuple(dict.fromkeys((*content.regions, *also.regions)))
    copies = max(content.copies, also.copies)
    return replace(content, regions=regions, copies=copies, backing=content.backing or also.backing)


def whole_homes(content: Content, alive: Alive) -> list[Home]:
    """The homes that hold all of a content and can be counted on."""
    return [home for home in content.homes if home.whole and home.node in alive]


def is_backed(content: Content) -> bool:
    """Whether the origin that is to hold a content does: only then it counts."""
    return content.elsewhere == BACKED and content.origin == content.backing


def is_to_be_given_up(content: Content) -> bool:
    """Whether an origin holds a content, or some of it, for which that is not wanted any more."""
    return content.elsewhere in (ANNOUNCED, BACKED) and content.origin != content.backing


def is_to_be_written(content: Content) -> bool:
    """Whether a content is to be written to its origin. Not while it is somebody else's object: once a node has it."""
    return bool(content.backing) and (
        content.elsewhere == NOWHERE or (content.elsewhere == ANNOUNCED and content.origin == content.backing)
    )


def awaits_origin(content: Content) -> bool:
    """Whether something is lacking between what an origin has of a content and what is wanted there."""
    return is_to_be_written(content) or is_to_be_given_up(content)


def may_be_given_up(content: Content, alive: Alive) -> bool:
    """Whether the copy of an origin may go: as many live nodes hold the content as must have it."""
    return content.elsewhere != BACKED or len(whole_homes(content, alive)) >= max(content.copies, 1)


def copies_lacking(content: Content, also: Wanted, alive: Alive, regions: Regions) -> int:
    """How many homes a stored content lacks before a write that shares it is acknowledged. As of bytes that have just
    been received, one may be anywhere, where `also` names regions, and the others are in these."""
    names = regions.expand(also.regions)
    whole = whole_homes(content, alive)
    inside = sum(not names or alive[home.node] in names for home in whole)
    return max(0, also.copies - inside - (len(whole) > inside))


def missing_regions(content: Content, alive: Alive, regions: Regions) -> list[str]:
    """Wanted regions in which no live node holds the content, in order."""
    have = {alive[home.node] for home in whole_homes(content, alive)}
    return sorted(regions.expand(content.regions) - have)


def missing_copies(content: Content, alive: Alive, regions: Regions) -> int:
    """How many homes are lacking once every wanted region has one."""
    missing = missing_regions(content, alive, regions)
    have = len(whole_homes(content, alive)) + is_backed(content)
    return max(0, max(content.copies, 1) - have - len(missing))


def may_lose(content: Content, node: bytes, alive: Alive, regions: Regions) -> bool:
    """Whether what is wanted of a content holds without the home on `node`: as many live homes as it must have, its
    backing origin counted as one, and one in each wanted region that has one now."""
    others = [home for home in whole_homes(content, alive) if home.node != node]
    if len(others) + is_backed(content) < max(content.copies, 1):
        return False
    mine = {home.region for home in content.homes if home.node == node} | {alive.get(node, "")}
    return not (mine & regions.expand(content.regions)) - {alive[home.node] for home in others}


def surplus(content: Content, alive: Alive, regions: Regions) -> list[Home]:
    """Homes that a policy does not want: outside its regions, or with a part only of what others hold whole. Only where
    nothing that it wants is lacking; each may be lost, though perhaps not all of them."""
    if missing_regions(content, alive, regions) or not whole_homes(content, alive):
        return []
    wanted = regions.expand(content.regions)
    outside = [home for home in content.homes if wanted and alive.get(home.node, home.region) not in wanted]
    partial = [home for home in content.homes if not home.whole and home not in outside]
    return [home for home in (*outside, *partial) if may_lose(content, home.node, alive, regions)]


def excess(content: Content, alive: Alive, regions: Regions) -> list[Home]:
    """Homes beyond what is wanted, all of which may be lost together; where something is lacking, none. Those that
    cannot be counted on come first, then those outside the wanted regions, then the latest."""
    if missing_regions(content, alive, regions):
        return []
    wanted = regions.expand(content.regions)

    def order(home: Home) -> tuple[bool, bool]:
        return home.node in alive, not wanted or alive.get(home.node, home.region) in wanted

    latest_first = list(reversed(content.homes))
    dispensable = []
    for home in sorted(latest_first, key=order):
        if may_lose(content, home.node, alive, regions):
            dispensable.append(home)
            content = replace(content, homes=tuple(each for each in content.homes if each != home))
    return dispensable


def ranked(content_id: bytes, nodes: Iterable[bytes]) -> list[bytes]:
    """`nodes` in the order in which they are to hold a content: rendezvous hashing, so that a node that comes or goes
    moves only what it gains or had. Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates",
    1998."""

    def weight(node: bytes) -> bytes:
        return hashlib.blake2b(content_id, digest_size=8, key=node).digest()

    return sorted(nodes, key=weight, reverse=True)
