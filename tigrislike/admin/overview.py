"""The store at a glance: each region's health and why, the queue as a whole, what waits longest, what is paused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final, Literal

import msgspec
from msgspec import Struct

from tigrislike import __version__
from tigrislike.metadata import surveying
from tigrislike.metadata.context import Context
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.owed import destination_of
from tigrislike.metadata.records import DRAINING, REMOVED

from .desk import Desk, Names
from .queues import GroupRow, Load, Paused, Sums, age_s, group_load, paused, read_sums
from .wording import counted, duration

LATE_S: Final = 60.0
"""How long something may be due before its region wants attention, and `STUCK_S` before it is stuck."""
STUCK_S: Final = 600.0

_ZONES: Final = 2000
_CANDIDATES: Final = 5
"""Zones of a destination whose age is looked at exactly, of those whose pointers say that they wait longest."""

Health = Literal["ok", "attention", "stuck"]


class NodeRow(Struct, frozen=True, kw_only=True):
    """A node: whether it shows life, how old its last beat is by the clocks of both machines, and how long the first of
    what is owed to it has been due."""

    node: str
    region: str
    endpoint: str
    state: str
    alive: bool
    beat_age_s: float | None
    disk_bytes: int
    disk_free_bytes: int
    depth: int
    dead: int
    lag_s: float | None


class Oldest(Struct, frozen=True):
    """The zone where something has been due the longest."""

    zone: str
    label: str
    age_s: float


class RegionRow(Load, frozen=True, kw_only=True):
    """A region: its nodes, what is owed to it and them, and how it is, with the reasons where it is not well."""

    region: str
    health: Health
    why: list[str]
    nodes: int
    alive: int
    draining: int
    paused: bool
    oldest: Oldest | None


class Regions(Struct, frozen=True):
    regions: list[RegionRow]


class Nodes(Struct, frozen=True):
    nodes: list[NodeRow]


class Overview(Struct, frozen=True, kw_only=True):
    """The store at one moment (Unix seconds). `anybody` is what any node may do."""

    at: float
    version: str
    cluster: str
    health: Health
    regions: list[RegionRow]
    anybody: RegionRow
    queue: Load
    tasks: list[GroupRow]
    paused: Paused
    buckets: int


async def overview(desk: Desk) -> Overview:
    """Everything that fits on one page, as fresh as the database."""
    names, sums, oldest = await desk.names(), await read_sums(desk), await oldest_zones(desk)
    is_paused = await paused(desk)
    rows = _regions(desk, names, sums, oldest, is_paused)
    anybody = rows.pop("")
    tasks = []
    for task in sorted({task for by_task in sums.sums.values() for task in by_task}):
        load = group_load(sums, lambda _, each, task=task: each == task)  # type: ignore[misc]
        tasks.append(msgspec.convert({"name": task, "paused": task in is_paused.tasks, **load}, GroupRow))
    since_ns = min((ns for each in oldest.values() for ns, _ in each[:1]), default=None)
    worst = [row.health for row in (*rows.values(), anybody)]
    return Overview(
        at=sums.at_ns / 1e9,
        version=__version__,
        cluster=desk.metadata.cluster.uuid.hex(),
        health=_worst(worst),
        regions=list(rows.values()),
        anybody=anybody,
        queue=msgspec.convert(group_load(sums, lambda _, __: True, since_ns), Load),
        tasks=tasks,
        paused=is_paused,
        buckets=len(names.buckets),
    )


async def regions(desk: Desk) -> Regions:
    """The regions by name, and last what any node may do (region ``anybody``), and what is owed to nobody known."""
    rows = _regions(desk, await desk.names(), await read_sums(desk), await oldest_zones(desk), await paused(desk))
    anybody = rows.pop("")
    return Regions([*rows.values(), anybody])


async def nodes(desk: Desk) -> Nodes:
    """Every node that was not removed."""
    names, sums, oldest = await desk.names(fresh=True), await read_sums(desk), await oldest_zones(desk)
    rows = []
    for node, beat in names.nodes:
        if node.state == REMOVED:
            continue
        load = group_load(sums, lambda place, _, mine=node.node: place == mine)  # type: ignore[misc]
        since_ns = oldest[node.node][0][0] if oldest.get(node.node) else None
        rows.append(
            NodeRow(
                node=node.node.hex(),
                region=node.region,
                endpoint=node.endpoint,
                state=node.state,
                alive=desk.is_alive(node, beat),
                beat_age_s=age_s(beat.at_ns, desk.now_ns()) if beat is not None else None,
                disk_bytes=beat.capacity if beat is not None else 0,
                disk_free_bytes=beat.free if beat is not None else 0,
                depth=int(load["depth"] or 0),
                dead=int(load["dead"] or 0),
                lag_s=None if since_ns is None else age_s(since_ns, desk.now_ns()),
            )
        )
    return Nodes(rows)


def _worst(health: Iterable[Health]) -> Health:
    found = set(health)
    return "stuck" if "stuck" in found else "attention" if "attention" in found else "ok"


Aged = list[tuple[int, bytes]]
"""Since when something is due, and in which zone, the earliest first."""


async def oldest_zones(desk: Desk) -> dict[bytes, Aged]:
    """The zone of each destination where something has been due longest, if there is one.

    The pointers of all zones are looked at, and the order of only those few zones that they say wait longest.
    """
    ctx, engine, now_ns = desk.metadata.context, desk.metadata.engine.background, desk.now_ns()
    candidates: dict[bytes, Aged] = {}
    after = b""
    while page := await engine.read(surveying.pointers, ctx, after, _ZONES):
        after = page[-1].zone
        for each in page:
            since_ns = each.since_ns(now_ns)
            if since_ns is not None:
                candidates.setdefault(destination_of(each.zone), []).append((since_ns, each.zone))
        await asyncio.sleep(0)

    async def confirmed(tr: Transaction, ctx: Context) -> dict[bytes, Aged]:
        found: dict[bytes, Aged] = {}
        for destination, aged in candidates.items():
            exact = []
            for _, zone in sorted(aged)[:_CANDIDATES]:
                since_ns = await surveying.due_since_ns(tr, ctx, zone)
                if since_ns is not None:
                    exact.append((since_ns, zone))
            if exact:
                found[destination] = [min(exact)]
        return found

    return await engine.read(confirmed, ctx)


def _regions(
    desk: Desk, names: Names, sums: Sums, oldest: dict[bytes, Aged], is_paused: Paused
) -> dict[str, RegionRow]:
    """By name; under the empty one, what any node may do."""
    members: dict[str, set[bytes]] = {"": set()}
    peopled = {node.region for node, _ in names.nodes if node.state != REMOVED}
    for destination in {*names.places, *sums.sums}:
        place = names.place(destination)
        if place.kind == "region" and place.region not in peopled and destination not in sums.sums:
            continue  # a name in a policy, and nothing there
        members.setdefault(place.region, set()).add(destination)
    return {
        region: _region(desk, names, sums, oldest, is_paused, region, places)
        for region, places in sorted(members.items())
    }


def _region(
    desk: Desk,
    names: Names,
    sums: Sums,
    oldest: dict[bytes, Aged],
    is_paused: Paused,
    region: str,
    places: set[bytes],
) -> RegionRow:
    known = [(node, beat) for node, beat in names.nodes if node.region == region and node.state != REMOVED]
    alive = sum(desk.is_alive(node, beat) for node, beat in known)
    aged = sorted(each for place in places for each in oldest.get(place, []))
    since_ns = aged[0][0] if aged else None
    load = group_load(sums, lambda place, _: place in places, since_ns)
    labels = [names.place(place).label for place in places]
    everything_paused = bool(labels) and all(label in is_paused.destinations for label in labels)
    age = age_s(since_ns, sums.at_ns) if since_ns is not None else 0.0
    why = []
    if region and not alive:
        why.append("no node is alive" if known else "it has no nodes")
    elif alive < len(known):
        why.append(f"{len(known) - alive} of {len(known)} nodes show no life")
    if everything_paused:
        why.append("it is paused")
    if age >= LATE_S:
        why.append(f"something has been due for {duration(age)}")
    if load["dead"]:
        why.append(counted(load["dead"], "dead letter"))
    if load["failing"]:
        why.append(counted(load["failing"], "item fails", "items fail"))
    depth = load["depth"] or 0
    stuck = age >= STUCK_S or bool(depth and region and not alive)
    row = {
        "region": region or "anybody",
        "health": "stuck" if stuck else "attention" if why else "ok",
        "why": why,
        "nodes": len(known),
        "alive": alive,
        "draining": sum(node.state == DRAINING for node, _ in known),
        "paused": everything_paused,
        "oldest": None if not aged else {"zone": aged[0][1].hex(), "label": names.zone(aged[0][1]), "age_s": age},
        **load,
    }
    return msgspec.convert(row, RegionRow)
