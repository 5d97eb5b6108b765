"""What operators see of the queue of work owed: how much of it there is, how old, how fast, and item by item.

Sums come from the counters of destinations, lists of zones from one look at all of them (`Desk.zones`), items from the
indexes of their zones: a page of items costs as much as the items on it, and where a filter finds few it ends after
`LOOK_S` with a cursor to go on from. Ages and times are seconds, moments Unix seconds.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from itertools import islice
from typing import Annotated, Final, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Struct

from tigrislike.metadata import overseeing, surveying
from tigrislike.metadata.context import Context
from tigrislike.metadata.homes import region_destination
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.overseeing import Pausable
from tigrislike.metadata.owed import DESTINATION_BYTES, PRIORITIES, destination_of
from tigrislike.metadata.records import REMOVED, Counts, Item, Pointer

from .desk import AdminError, Desk, Look, Names, Place, ZoneFacts

T = TypeVar("T")

LOOK_S: Final = 0.15
"""How long one page of items looks for what its filters want."""

_CHUNK: Final = 100
_ZONES: Final = 200
_NS: Final = 1_000_000_000

Limit = Annotated[int, Meta(ge=1, le=1000, description="Most rows of a page.")]


class Load(Struct, frozen=True, kw_only=True):
    """How much work is owed. `depth` counts items, those `in_flight` and `failing` among them; `dead` letters come on
    top. `enqueued`, `done` and `failed` only grow, but start again where a zone was empty for a while. Rates are items
    a second; null where nothing is known to compare with. `oldest_s` is how long the first of what is due has been due;
    null: nothing is."""

    depth: int
    in_flight: int
    failing: int
    dead: int
    enqueued: int
    done: int
    failed: int
    oldest_s: float | None = None
    rate_in: float | None = None
    rate_out: float | None = None


class ZoneRow(Load, frozen=True, kw_only=True):
    """A zone: what is owed to one destination for one bucket. `zone` is its name in hex, `label` as people write it."""

    zone: str
    label: str
    destination: str
    region: str
    bucket: str
    tasks: list[str]
    paused: bool


class ZonePage(Struct, frozen=True):
    """Zones; `cursor` is where to go on, null at the end."""

    zones: list[ZoneRow]
    cursor: str | None
    total: int


class GroupRow(Load, frozen=True, kw_only=True):
    """The queue of a task, region, destination or bucket."""

    name: str
    zones: int | None = None
    paused: bool = False


class Groups(Struct, frozen=True):
    by: str
    groups: list[GroupRow]


class TaskLoad(Load, frozen=True, kw_only=True):
    """One task's part of a zone."""

    task: str


class ZoneShown(ZoneRow, frozen=True, kw_only=True):
    """A zone in full: by task, and when consumers are to look at it next."""

    by_task: list[TaskLoad]
    next_look: float | None
    leased: bool


class AttemptRow(Struct, frozen=True):
    """A failed run: when it ended, on which node, how."""

    at: float
    node: str
    error: str


State = Literal["due", "delayed", "in_flight", "failing", "dead"]


class ItemRow(Struct, frozen=True, kw_only=True):
    """A piece of work owed. `item` names it (its zone and id). `vests` is when it may be begun, or, in flight, when its
    lease ends; null for dead letters. `error` is of the latest failure."""

    item: str
    zone: str
    label: str
    task: str
    subject: str
    bucket: str
    region: str
    destination: str
    state: State
    attempts: int
    error: str
    enqueued: float
    age_s: float
    vests: float | None
    priority: int


class ItemPage(Struct, frozen=True):
    """Items; `cursor` is where to go on, null at the end. A page may have few items, or none, and a cursor: where a
    filter finds little it stops looking after a while."""

    items: list[ItemRow]
    cursor: str | None


class ItemShown(ItemRow, frozen=True, kw_only=True):
    """An item in full: its last failed runs, newest last. `letter` says that it is also, or only, a dead letter, and
    `recurred` that its cause came up again while it was in flight."""

    history: list[AttemptRow]
    letter: bool
    recurred: bool
    paused: bool


class ItemFilter(Struct, frozen=True, kw_only=True):
    """Which items: those of a task, bucket, region or zone, in a state, with an error that has a text in it. Without a
    state, everything but dead letters; with an error, what fails and what is dead."""

    task: str | None = None
    bucket: str | None = None
    region: str | None = None
    zone: str | None = None
    state: State | None = None
    error: str | None = None


class Paused(Struct, frozen=True):
    """What is paused: labels of zones and destinations, names of tasks."""

    zones: list[str]
    destinations: list[str]
    tasks: list[str]


# --- names


async def resolve_zone(desk: Desk, text: str) -> bytes:
    """A zone by its hex name or its label (``iad/photos``, ``node:1a2b/photos``, ``anybody/``).

    Raises:
        AdminError: NoSuchZone.
    """
    if "/" not in text:
        with contextlib.suppress(ValueError):
            zone = bytes.fromhex(text)
            if DESTINATION_BYTES <= len(zone) <= 256:
                return zone
        raise AdminError("NoSuchZone", f"there is no zone {text!r}", 404)
    where, _, bucket = text.partition("/")
    for fresh in (False, True):
        names = await desk.names(fresh=fresh)
        bucket_id = names.bucket_ids.get(bucket, b"" if not bucket else None)
        if bucket_id is None and all(digit in "0123456789abcdef" for digit in bucket) and len(bucket) == 32:
            bucket_id = bytes.fromhex(bucket)
        places = [place for place in names.places.values() if _is_called(place, where)]
        if len(places) == 1 and bucket_id is not None:
            return places[0].destination + bucket_id
    raise AdminError("NoSuchZone", f"there is no zone {text!r}", 404)


def _is_called(place: Place, text: str) -> bool:
    if place.kind == "node":
        prefix = text.removeprefix("node:")
        return len(prefix) >= 4 and text.startswith("node:") and place.name.startswith(prefix)
    return place.name == text


def parse_item(text: str) -> tuple[bytes, bytes]:
    """Zone and id of an item by its name. Raises AdminError."""
    zone, _, id_ = text.partition(".")
    try:
        names = bytes.fromhex(zone), bytes.fromhex(id_)
    except ValueError:
        names = b"", b""
    if not all(names) or len(text) > 512:
        raise AdminError("NoSuchItem", f"{text!r} names no item", 404)
    return names


def name_of(zone: bytes, id_: bytes) -> str:
    return f"{zone.hex()}.{id_.hex()}"


async def destinations_of(desk: Desk, region: str) -> list[bytes]:
    """To whom a region's work is owed: to the region and to each of its nodes; ``anybody`` is nobody's region.

    Raises:
        AdminError: NoSuchRegion.
    """
    for fresh in (False, True):
        names = await desk.names(fresh=fresh)
        found = [place.destination for place in names.places.values() if region in (place.region, place.name)]
        if found:
            return sorted(found)
    raise AdminError("NoSuchRegion", f"there is no region {region!r}", 404)


async def bucket_id_of(desk: Desk, bucket: str) -> bytes:
    """Raises AdminError: NoSuchBucket."""
    for fresh in (False, True):
        bucket_id = (await desk.names(fresh=fresh)).bucket_ids.get(bucket)
        if bucket_id is not None:
            return bucket_id
    if len(bucket) == 32 and all(digit in "0123456789abcdef" for digit in bucket):
        return bytes.fromhex(bucket)  # one that is gone, with work left
    raise AdminError("NoSuchBucket", f"there is no bucket {bucket!r}", 404)


# --- sums


class Sums(NamedTuple):
    """The counters of all destinations by task, and the latest sample before them that is old enough for rates."""

    at_ns: int
    sums: dict[bytes, surveying.ByTask]
    before: surveying.Sample | None


async def read_sums(desk: Desk) -> Sums:
    async def read(tr: Transaction, ctx: Context) -> Sums:
        now_ns = ctx.now_ns()
        sums = await surveying.sums(tr, ctx)
        oldest_ns = now_ns - 20 * surveying.SAMPLE_NS
        samples = await surveying.samples(tr, ctx, now_ns - surveying.SAMPLE_NS // 3, oldest_ns)
        return Sums(now_ns, sums, samples[0] if samples else None)

    return await desk.metadata.engine.read(read, desk.metadata.context)


async def tasks(desk: Desk) -> set[str]:
    """The kinds of work that was ever owed to anybody there is."""
    return {task for by_task in (await read_sums(desk)).sums.values() for task in by_task}


def load_of(
    counts: Counts, since_ns: int | None, now_ns: int, before: Counts | None = None, elapsed_s: float = 0.0
) -> dict[str, float | int | None]:
    """The fields of a `Load`."""
    rate_in = rate_out = None
    # Where a zone began anew in between, its counters did too.
    if before is not None and elapsed_s > 0 and counts.enqueued >= before.enqueued and counts.done >= before.done:
        rate_in = round((counts.enqueued - before.enqueued) / elapsed_s, 3)
        rate_out = round((counts.done - before.done) / elapsed_s, 3)
    return {
        "depth": max(counts.waiting, 0),
        "in_flight": max(counts.leased, 0),
        "failing": max(counts.failing, 0),
        "dead": max(counts.dead, 0),
        "enqueued": counts.enqueued,
        "done": counts.done,
        "failed": counts.failed,
        "oldest_s": None if since_ns is None else age_s(since_ns, now_ns),
        "rate_in": rate_in,
        "rate_out": rate_out,
    }


def age_s(since_ns: int, now_ns: int) -> float:
    return max(round((now_ns - since_ns) / _NS, 3), 0.0)


def total(by_task: Iterable[Counts]) -> Counts:
    return sum(by_task, Counts())


def group_load(
    sums: Sums, wanted: Callable[[bytes, str], bool], since_ns: int | None = None
) -> dict[str, float | int | None]:
    """The fields of a `Load` over those destinations and tasks that are `wanted`."""
    now = total(counts for place, tasks in sums.sums.items() for task, counts in tasks.items() if wanted(place, task))
    if sums.before is None:
        return load_of(now, since_ns, sums.at_ns)
    then = total(
        counts for place, tasks in sums.before.sums.items() for task, counts in tasks.items() if wanted(place, task)
    )
    return load_of(now, since_ns, sums.at_ns, then, (sums.at_ns - sums.before.at_ns) / _NS)


async def groups(desk: Desk, by: Literal["task", "region", "destination", "bucket"]) -> Groups:
    """The queue by task, by region, by destination or by bucket, those with most in them first."""
    names, look, paused = await desk.names(), await desk.zones(), await desk.metadata.queue.paused()
    if by == "bucket":
        return Groups(by, _by_bucket(desk, names, look))
    sums = await read_sums(desk)
    rows = []
    if by == "task":
        for name in sorted({task for tasks in sums.sums.values() for task in tasks}):
            since = [facts.since_ns for facts in look.zones.values() if name in facts.tasks]
            zones = sum(bool(facts.tasks[name].waiting) for facts in look.zones.values() if name in facts.tasks)
            load = group_load(sums, lambda _, task, name=name: task == name, _earliest(since))  # type: ignore[misc]
            is_paused = name.encode() in paused[Pausable.TASK]
            rows.append(_group(name, zones, is_paused, load))
    else:
        called: dict[str, set[bytes]] = {}
        peopled = {region_destination(node.region) for node, _ in names.nodes if node.state != REMOVED}
        for destination in {*sums.sums, *peopled}:
            place = names.place(destination)
            name = place.label if by == "destination" else place.region or place.name
            called.setdefault(name, set()).add(destination)
        for name, members in sorted(called.items()):
            mine = [facts for facts in look.zones.values() if destination_of(facts.zone) in members]
            load = group_load(
                sums,
                lambda place, _, members=members: place in members,  # type: ignore[misc]
                _earliest(facts.since_ns for facts in mine),
            )
            is_paused = members <= paused[Pausable.DESTINATION]
            rows.append(_group(name, sum(facts.total.waiting > 0 for facts in mine), is_paused, load))
    return Groups(by, sorted(rows, key=_weight))


def _group(name: str, zones: int, paused: bool, load: dict[str, float | int | None]) -> GroupRow:
    return msgspec.convert({"name": name, "zones": zones, "paused": paused, **load}, GroupRow)


def _weight(row: GroupRow) -> tuple[float, ...]:
    return (-row.depth - row.dead, -row.enqueued)


def _earliest(times: Iterable[int | None]) -> int | None:
    return min((at for at in times if at is not None), default=None)


def _by_bucket(desk: Desk, names: Names, look: Look) -> list[GroupRow]:
    now_ns, earlier = desk.now_ns(), desk.earlier(look)
    found: dict[str, list[ZoneFacts]] = {}
    for facts in look.zones.values():
        found.setdefault(names.bucket(facts.zone[DESTINATION_BYTES:]), []).append(facts)
    rows = []
    for name, mine in found.items():
        counts = total(facts.total for facts in mine)
        before, elapsed_s = None, 0.0
        if earlier is not None:
            before = total(earlier.zones[each.zone].total for each in mine if each.zone in earlier.zones)
            elapsed_s = look.at_s - earlier.at_s
        load = load_of(counts, _earliest(each.since_ns for each in mine), now_ns, before, elapsed_s)
        if counts.waiting or counts.dead:
            rows.append(_group(name, sum(facts.total.waiting > 0 for facts in mine), False, load))
    return sorted(rows, key=_weight)


# --- zones

Sort = Literal["oldest", "depth", "failing", "dead", "name"]

_SORTS: Final[dict[str, Callable[[ZoneFacts], int]]] = {
    "oldest": lambda facts: facts.since_ns if facts.since_ns is not None else 1 << 63,
    "depth": lambda facts: -facts.total.waiting,
    "failing": lambda facts: -facts.total.failing,
    "dead": lambda facts: -facts.total.dead,
    "name": lambda facts: 0,
}


async def zones(
    desk: Desk,
    *,
    region: str | None = None,
    bucket: str | None = None,
    task: str | None = None,
    sort: Sort = "oldest",
    cursor: str | None = None,
    limit: int = 100,
) -> ZonePage:
    """Zones that hold something, sorted: by age those that have waited longest first, by a number the largest."""
    look, names = await desk.zones(), await desk.names()
    places = set(await destinations_of(desk, region)) if region is not None else None
    bucket_id = await bucket_id_of(desk, bucket) if bucket is not None else None
    key = _SORTS[sort]
    chosen = sorted(
        (key(facts), zone)
        for zone, facts in look.zones.items()
        if (places is None or destination_of(zone) in places)
        and (bucket_id is None or zone[DESTINATION_BYTES:] == bucket_id)
        and any((counts.waiting or counts.dead) for name, counts in facts.tasks.items() if task in (None, name))
    )
    after = unpack_cursor(cursor, tuple[int, bytes]) if cursor is not None else None
    rest = [entry for entry in chosen if after is None or entry > after]
    page = rest[:limit]
    rows = await _zone_rows(desk, names, look, [zone for _, zone in page])
    return ZonePage(rows, pack_cursor(page[-1]) if len(rest) > limit else None, len(chosen))


async def _zone_rows(desk: Desk, names: Names, look: Look, wanted: Sequence[bytes]) -> list[ZoneRow]:
    async def read(tr: Transaction, ctx: Context) -> list[int | None]:
        return [await surveying.due_since_ns(tr, ctx, zone) for zone in wanted]

    since = await desk.metadata.engine.read(read, desk.metadata.context)
    paused = await desk.metadata.queue.paused()
    earlier, now_ns = desk.earlier(look), desk.now_ns()
    rows = []
    for zone, since_ns in zip(wanted, since, strict=True):
        facts = look.zones[zone]
        before = earlier.zones[zone].total if earlier is not None and zone in earlier.zones else None
        elapsed_s = look.at_s - earlier.at_s if earlier is not None else 0.0
        load = load_of(facts.total, since_ns, now_ns, before, elapsed_s)
        rows.append(msgspec.convert({**_zone_names(names, zone, facts.tasks, paused), **load}, ZoneRow))
    return rows


def _zone_names(
    names: Names, zone: bytes, tasks: Iterable[str], paused: dict[Pausable, set[bytes]]
) -> dict[str, object]:
    place = names.place(destination_of(zone))
    return {
        "zone": zone.hex(),
        "label": names.zone(zone),
        "destination": place.label,
        "region": place.region,
        "bucket": names.bucket(zone[DESTINATION_BYTES:]),
        "tasks": sorted(tasks),
        "paused": zone in paused[Pausable.ZONE] or place.destination in paused[Pausable.DESTINATION],
    }


async def show_zone(desk: Desk, name: str) -> ZoneShown:
    """One zone, as it is now. Raises AdminError: NoSuchZone."""
    zone = await resolve_zone(desk, name)

    async def read(tr: Transaction, ctx: Context) -> tuple[dict[str, Counts], int | None, Pointer | None]:
        counts = await overseeing.counts(tr, ctx, zone)
        return counts, await surveying.due_since_ns(tr, ctx, zone), await overseeing.pointer(tr, ctx, zone)

    counts, since_ns, pointer = await desk.metadata.engine.read(read, desk.metadata.context)
    if not counts and pointer is None:
        raise AdminError("NoSuchZone", f"there is no zone {name!r}", 404)
    names, paused, now_ns = await desk.names(), await desk.metadata.queue.paused(), desk.now_ns()
    by_task = [{"task": task, **load_of(each, None, now_ns)} for task, each in sorted(counts.items())]
    return msgspec.convert(
        {
            **_zone_names(names, zone, counts, paused),
            **load_of(total(counts.values()), since_ns, now_ns),
            "by_task": by_task,
            "next_look": pointer.vesting_ns / _NS if pointer is not None else None,
            "leased": bool(pointer is not None and pointer.lease),
        },
        ZoneShown,
    )


async def paused(desk: Desk) -> Paused:
    """What is paused."""
    found, names = await desk.metadata.queue.paused(), await desk.names()
    return Paused(
        sorted(names.zone(zone) for zone in found[Pausable.ZONE]),
        sorted(names.place(place).label for place in found[Pausable.DESTINATION]),
        sorted(task.decode() for task in found[Pausable.TASK]),
    )


# --- items


class At(NamedTuple):
    """Where a page of items ended: in which part of what is to be listed, and after which row of it."""

    part: bytes
    after: bytes


class Found(NamedTuple):
    at: At
    place: surveying.Place
    letter: bool


async def items(desk: Desk, wanted: ItemFilter, *, cursor: str | None = None, limit: int = 100) -> ItemPage:
    """Items in the order of their zones; within a zone by urgency, and then those due longest first.

    Raises:
        AdminError: InvalidCursor, NoSuchZone, NoSuchRegion, NoSuchBucket.
    """
    start = At(*unpack_cursor(cursor, tuple[bytes, bytes])) if cursor is not None else None
    found: list[Found] = []
    at, more = start, False
    until_s = time.monotonic() + LOOK_S
    try:
        async for each in scan(desk, wanted, start):
            if len(found) >= limit or (time.monotonic() > until_s and at != start):
                more = True
                break
            at = each if isinstance(each, At) else each.at
            if isinstance(each, Found) and _matches(wanted, each, desk.now_ns()):
                found.append(each)
    except (ValueError, IndexError):
        if start is None:
            raise
        raise AdminError("InvalidCursor", "this cursor does not belong to this listing") from None
    names = await desk.names()
    rows = [item_row(names, each.place, each.letter, desk.now_ns()) for each in found]
    return ItemPage(rows, pack_cursor(at) if more and at is not None else None)


def _matches(wanted: ItemFilter, found: Found, now_ns: int) -> bool:
    item = found.place.item
    if wanted.task is not None and item.task != wanted.task:
        return False
    if wanted.error is not None and wanted.error.lower() not in last_error(item).lower():
        return False
    return wanted.state is None or found.letter or wanted.state in _states(item, now_ns)


def _states(item: Item, now_ns: int) -> tuple[State, ...]:
    """What an item is; what fails may also be in flight."""
    first: State = "failing" if item.attempts else "delayed" if item.vesting_ns > now_ns else "due"
    if item.lease and item.vesting_ns > now_ns:
        return ("in_flight", first) if item.attempts else ("in_flight",)
    return (first,)


def last_error(item: Item) -> str:
    return item.error or (item.history[-1].error if item.history else "")


async def scan(desk: Desk, wanted: ItemFilter, start: At | None = None) -> AsyncIterator[Found | At]:
    """Everything in those zones that may hold what is wanted, from a place on; `At` where a part held nothing, which
    has to be looked at all the same."""
    ctx, engine = desk.metadata.context, desk.metadata.engine.background
    kinds: tuple[bytes, ...]
    if wanted.error is not None and wanted.state is None:
        kinds = (_FAILING, _DEAD)
    elif wanted.state == "dead":
        kinds = (_DEAD,)
    elif wanted.state == "failing" or wanted.error is not None:
        kinds = (_FAILING,)
    else:
        kinds = (_IN_ORDER,)
    for kind in kinds:
        if start is not None and start.part[:1] > kind:
            continue
        here = start if start is not None and start.part[:1] == kind else None
        if kind == _IN_ORDER:
            async for each in _scan_in_order(desk, wanted, here):
                yield each
            continue
        read = surveying.failing if kind == _FAILING else surveying.dead
        family = ctx.keys.queue_failing if kind == _FAILING else ctx.keys.queue_dead
        for number, ranged in enumerate(await _ranges(desk, wanted, family)):
            part = kind + number.to_bytes(4, "big")
            if here is not None and part < here.part:
                continue
            after = here.after if here is not None and part == here.part else b""
            while rows := await engine.read(read, ctx, ranged, after, _CHUNK):
                for key, place in rows:
                    yield Found(At(part, key), place, kind == _DEAD)
                after = rows[-1][0]


_FAILING, _DEAD, _IN_ORDER = b"\x01", b"\x02", b"\x03"
"""The parts of a listing, in their order, by the first byte of their names."""


async def _ranges(desk: Desk, wanted: ItemFilter, family: bytes) -> list[tuple[bytes, bytes]]:
    """The rows of a family, whose keys begin with a zone, of the zones that are wanted."""
    keys = desk.metadata.context.keys
    chosen = await _chosen(desk, wanted)
    if chosen.zones is not None:
        # A zone's rows, as `queue_failing_range` and `queue_dead_range` have them.
        failing = family == keys.queue_failing
        return [keys.queue_failing_range(zone) if failing else keys.queue_dead_range(zone) for zone in chosen.zones]
    if chosen.destinations is not None:
        return [keys.queue_of(family, destination) for destination in chosen.destinations]
    return [(family + b"\x00", family + b"\xff")]


class Chosen(NamedTuple):
    """The zones that a filter is about: some, those of some destinations, or all."""

    zones: list[bytes] | None
    destinations: list[bytes] | None


async def _chosen(desk: Desk, wanted: ItemFilter) -> Chosen:
    if wanted.zone is not None:
        zone = await resolve_zone(desk, wanted.zone)
        fits = wanted.region is None or destination_of(zone) in await destinations_of(desk, wanted.region)
        if wanted.bucket is not None:
            fits = fits and zone[DESTINATION_BYTES:] == await bucket_id_of(desk, wanted.bucket)
        return Chosen([zone] if fits else [], None)
    destinations = await destinations_of(desk, wanted.region) if wanted.region is not None else None
    if wanted.bucket is None:
        return Chosen(None, destinations)
    bucket_id = await bucket_id_of(desk, wanted.bucket)
    if destinations is None:
        destinations = await desk.metadata.engine.read(surveying.destinations, desk.metadata.context)
    return Chosen([destination + bucket_id for destination in sorted(destinations)], None)


async def _scan_in_order(desk: Desk, wanted: ItemFilter, start: At | None) -> AsyncIterator[Found | At]:
    """Items of zones in their order. A part's name is its zone and priority."""
    ctx, engine = desk.metadata.context, desk.metadata.engine.background
    first = start.part[2:] if start is not None else b""
    async for page in _zones_in_order(desk, await _chosen(desk, wanted), first):
        holding = await engine.read(_with_items, ctx, page, wanted.task)
        for zone in page:
            if zone not in holding:
                continue
            for priority in PRIORITIES:
                part = _IN_ORDER + bytes((priority,)) + zone
                after = b""
                if start is not None and zone == first:
                    if priority < start.part[1]:
                        continue
                    after = start.after if priority == start.part[1] else b""
                while rows := await engine.read(surveying.in_order, ctx, zone, priority, after, _CHUNK):
                    for key, place in rows:
                        yield Found(At(part, key), place, False)
                    after = rows[-1][0]
        # Also where nothing was found, so that a long search can end here and go on later.
        yield At(_IN_ORDER + bytes((PRIORITIES[-1] + 1,)) + page[-1], b"")


async def _zones_in_order(desk: Desk, chosen: Chosen, first: bytes) -> AsyncIterator[list[bytes]]:
    """Pages of zones, from `first` on (b"": from the first that there is)."""
    ctx, engine = desk.metadata.context, desk.metadata.engine.background
    if chosen.zones is not None:
        ordered = iter(sorted(zone for zone in chosen.zones if zone >= first))
        while page := list(islice(ordered, _ZONES)):
            yield page
        return
    if first:
        yield [first]
    for destination in chosen.destinations if chosen.destinations is not None else [b""]:
        if destination < destination_of(first) and destination:
            continue
        after = first if not destination or destination == destination_of(first) else b""
        while found := await engine.read(surveying.pointers, ctx, after, _ZONES, destination):
            after = found[-1].zone
            yield [each.zone for each in found]


async def _with_items(tr: Transaction, ctx: Context, zones: Sequence[bytes], task: str | None) -> set[bytes]:
    """Those zones that hold items, of `task` if it is given."""
    found = set()
    for zone in zones:
        counts = await overseeing.counts(tr, ctx, zone)
        if any(each.waiting for name, each in counts.items() if task in (None, name)):
            found.add(zone)
    return found


def item_row(names: Names, place: surveying.Place, letter: bool, now_ns: int) -> ItemRow:
    return msgspec.convert(_item_fields(names, place, letter, now_ns), ItemRow)


def _item_fields(names: Names, place: surveying.Place, letter: bool, now_ns: int) -> dict[str, object]:
    zone, id_, item = place
    where = names.place(destination_of(zone))
    return {
        "item": name_of(zone, id_),
        "zone": zone.hex(),
        "label": names.zone(zone),
        "task": item.task,
        "subject": item.subject.hex(),
        "bucket": names.bucket(item.bucket or zone[DESTINATION_BYTES:]),
        "region": where.region,
        "destination": where.label,
        "state": "dead" if letter else _states(item, now_ns)[0],
        "attempts": item.attempts,
        "error": last_error(item),
        "enqueued": item.enqueued_ns / _NS,
        "age_s": age_s(item.enqueued_ns, now_ns),
        "vests": None if letter else item.vesting_ns / _NS,
        "priority": item.priority,
    }


async def show_item(desk: Desk, name: str) -> ItemShown:
    """One item. Raises AdminError: NoSuchItem."""
    zone, id_ = parse_item(name)
    item, letter = await desk.metadata.queue.show(zone, id_)
    shown = item or letter
    if shown is None:
        raise AdminError("NoSuchItem", f"there is no item {name}: it may be done", 404)
    names, paused = await desk.names(), await desk.metadata.queue.paused()
    history = shown.history or (letter.history if letter is not None else ())
    is_paused = (
        zone in paused[Pausable.ZONE]
        or destination_of(zone) in paused[Pausable.DESTINATION]
        or shown.task.encode() in paused[Pausable.TASK]
    )
    return msgspec.convert(
        {
            **_item_fields(names, surveying.Place(zone, id_, shown), item is None, desk.now_ns()),
            "history": [{"at": each.at_ns / _NS, "node": each.node.hex(), "error": each.error} for each in history],
            "letter": letter is not None,
            "recurred": shown.again_ns >= 0,
            "paused": is_paused,
        },
        ItemShown,
    )


# --- cursors


def pack_cursor(at: object) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(at)).decode().rstrip("=")


def unpack_cursor(text: str, type_: type[T]) -> T:
    """Raises AdminError: InvalidCursor."""
    try:
        packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return msgspec.msgpack.decode(packed, type=type_)
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        raise AdminError("InvalidCursor", "this cursor is not one that was given out here") from None
