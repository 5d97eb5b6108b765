"""`tigrislike admin check`: can a node work with this store, and how well, asked of everything it stands on.

The engine and its version, how long a read version, a read and a commit take, clocks, free space, formats, the master
key, whether the store takes writes, which of several nodes are alive and what nobody can give. Nothing is made that is
not there, and nothing is changed but one key of the engine's own, which is removed again. What does not answer is
reported as such within 5 seconds; a node is given 6 to show life.

What this does not do: look at the data, beyond what silent nodes held. That is `fsck.py`'s work.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import apsw
import msgspec

from tigrislike.admin.naming import Name, bucket_names, names_of, plain
from tigrislike.admin.nodes import LOOK_S, PATIENCE_S, Sleep, as_nobody, lost_contents, sole_contents
from tigrislike.admin.reach import reached
from tigrislike.bytecache import layout
from tigrislike.config import Settings
from tigrislike.metadata import Metadata
from tigrislike.metadata.access import check_master
from tigrislike.metadata.context import Context
from tigrislike.metadata.errors import MetadataError, WrongMasterKey
from tigrislike.metadata.keyspace import Keyspace
from tigrislike.metadata.kv import Engine, EngineError, Transaction
from tigrislike.metadata.kv.errors import ReadOnlyTransaction
from tigrislike.metadata.kv.seal import CLOCK_FLOOR, COPYING, OWN, seal_members
from tigrislike.metadata.kv.sqlite_file import FORMAT_VERSION
from tigrislike.metadata.migrating import FORMAT
from tigrislike.metadata.records import Home
from tigrislike.metadata.records import cluster as cluster_codec
from tigrislike.metadata.secrets import MasterKey
from tigrislike.replication.membership import Members

Verdict = Literal["ok", "attention", "failed"]

STATUS_KEY = b"\xff\xff/status/json"
"""Where FoundationDB says how its cluster is (https://apple.github.io/foundationdb/mr-status.html)."""
STATUS_TIMEOUT_S = 3.0

SKEW_S = 1.0
"""A clock that is further off deserves attention."""
LITTLE_BYTES = 1 << 30
"""FoundationDB and SQLite stop taking writes some way before a disk is full."""
SHOWN = 10
"""Objects that are named where all are not asked for."""
LONG_WAL_BYTES = 256 << 20
"""An agent folds the write-ahead log long before."""


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        name: engine, cluster, latency, clock, space, format, master-key, writes, nodes or contents.
        verdict: "failed" is what keeps a node from working, "attention" what someone should look into.
        detail: for people.
        facts: the numbers; sizes in bytes, times in seconds, and names that say so.
    """

    name: str
    verdict: Verdict
    detail: str
    facts: dict[str, Any]


def worst(checks: list[Check]) -> Verdict:
    """The verdict on all of them together."""
    verdicts = {check.verdict for check in checks}
    return "failed" if "failed" in verdicts else "attention" if "attention" in verdicts else "ok"


async def check_store(settings: Settings, *, samples: int = 100, full: bool = False) -> AsyncIterator[Check]:
    """Look at everything a node with these settings stands on, one thing after the other.

    `samples`: how often each latency is measured; `full`: name everything that nobody can give.
    """
    try:
        async with reached(settings.metadata) as engine:
            sqlite = settings.sqlite_path
            yield _sqlite(sqlite) if sqlite is not None else await _foundationdb(settings.metadata)
            if sqlite is None:
                async for found in _cluster(settings.metadata):
                    yield found
            yield await _latency(engine, samples)
            async for found in _store(engine, settings, full):
                yield found
    except (EngineError, ValueError) as error:
        yield Check("engine", "failed", str(error), {"url": settings.metadata})
    yield await asyncio.to_thread(_file_clock, settings)
    for name, path in _directories(settings):
        yield await asyncio.to_thread(_space, name, path, settings)
    yield await asyncio.to_thread(_block_format, settings)


# -- The engine


def _sqlite(path: Path) -> Check:
    wal = path.with_name(path.name + "-wal")
    facts: dict[str, Any] = {
        "engine": "sqlite",
        "version": apsw.sqlite_lib_version(),
        "file": str(path),
        "file_bytes": path.stat().st_size,
        "wal_bytes": wal.stat().st_size if wal.exists() else 0,
        "format": FORMAT_VERSION,
    }
    detail = f"SQLite {facts['version']}, {path}: {_size(facts['file_bytes'])}, log {_size(facts['wal_bytes'])}"
    if facts["wal_bytes"] > LONG_WAL_BYTES:
        return Check("engine", "attention", f"{detail}, which no agent folds back", facts)
    return Check("engine", "ok", detail, facts)


async def _foundationdb(url: str) -> Check:
    from tigrislike.metadata.kv.fdb_client import Library, load_binding

    version = Library(load_binding()).version()
    return Check(
        "engine",
        "ok",
        f"FoundationDB, client library {version}, {url}",
        {"engine": "foundationdb", "client_version": version, "url": url},
    )


async def _cluster(url: str) -> AsyncIterator[Check]:
    """What the cluster says of itself: its version and health, the space on its machines, its clock."""
    asked_ns = time.time_ns()
    try:
        status = json.loads(await asyncio.to_thread(read_status, url))
    except Exception as error:  # the binding's errors have no base class of their own
        yield Check("cluster", "attention", f"the cluster's status cannot be read: {error}", {})
        return
    answered_ns = time.time_ns()
    for found in cluster_checks(status, asked_ns, answered_ns):
        yield found


def cluster_checks(status: dict[str, Any], asked_ns: int, answered_ns: int) -> list[Check]:
    """What a cluster's status comes to. It was asked for, and here, at these times of this machine's clock."""
    cluster, client = status.get("cluster", {}), status.get("client", {})
    configuration, data = cluster.get("configuration", {}), cluster.get("data", {})
    processes = cluster.get("processes", {}).values()
    facts = {
        "versions": sorted({str(process.get("version", "unknown")) for process in processes}),
        "processes": len(processes),
        "redundancy": configuration.get("redundancy_mode"),
        "storage_engine": configuration.get("storage_engine"),
        "available": client.get("database_status", {}).get("available", False),
        "healthy": data.get("state", {}).get("healthy", False),
        "state": data.get("state", {}).get("name", "unknown"),
        "quorum": client.get("coordinators", {}).get("quorum_reachable", False),
        "messages": [message.get("name", "") for message in cluster.get("messages", [])],
    }
    detail = (
        f"version {', '.join(facts['versions']) or 'unknown'}, {facts['processes']} processes, "
        f"{facts['redundancy']} {facts['storage_engine']}, {facts['state']}"
    )
    if not (facts["available"] and facts["quorum"]):
        health = Check("cluster", "failed", f"{detail}; not available", facts)
    elif not facts["healthy"] or facts["messages"]:
        health = Check("cluster", "attention", "; ".join([detail, *facts["messages"]]), facts)
    else:
        health = Check("cluster", "ok", detail, facts)
    found = [health]

    free = [
        data[name]
        for name in ("least_operating_space_bytes_storage_server", "least_operating_space_bytes_log_server")
        if name in data
    ]
    if free:
        space = {
            "place": "cluster",
            "free_bytes": min(free),
            "used_bytes": data.get("total_disk_used_bytes", 0),
            "data_bytes": data.get("total_kv_size_bytes", 0),
        }
        detail = (
            f"cluster: {_size(space['free_bytes'])} free on its fullest disk, before it stops taking writes; "
            f"{_size(space['used_bytes'])} used"
        )
        found.append(Check("space", "attention" if min(free) < LITTLE_BYTES else "ok", detail, space))

    stamp_s = cluster.get("cluster_controller_timestamp")
    if isinstance(stamp_s, int | float):
        # In whole seconds, taken somewhere between question and answer: the skew is known to lie in a range.
        least_s, most_s = stamp_s - answered_ns / 1e9, stamp_s + 1 - asked_ns / 1e9
        nearest_s = max(least_s, 0.0) if least_s > 0 else min(most_s, 0.0)
        facts = {"against": "cluster controller", "skew_least_s": round(least_s, 3), "skew_most_s": round(most_s, 3)}
        detail = f"the cluster's clock is between {least_s:+.1f} and {most_s:+.1f} s from this machine's"
        found.append(Check("clock", "attention" if abs(nearest_s) > SKEW_S else "ok", detail, facts))
    return found


def read_status(url: str) -> bytes:
    from urllib.parse import unquote, urlsplit

    from tigrislike.metadata.kv.fdb_client import load_binding

    path = unquote(urlsplit(url).path)
    native = load_binding().open(path if path not in ("", "/") else None).create_transaction()
    native.options.set_timeout(int(STATUS_TIMEOUT_S * 1000))
    value: bytes = native.get(STATUS_KEY).value
    return bytes(value)


# -- Latency


async def _latency(engine: Engine, samples: int) -> Check:
    """Of one small transaction at a time; a node has many under way."""
    key = engine.prefix + OWN + b"/check/" + secrets.token_bytes(8)

    async def read_version(tr: Transaction) -> int:
        return await tr.read_version()

    async def read(tr: Transaction) -> bytes | None:
        return await tr.get(Keyspace(engine.prefix).cluster)

    async def write(tr: Transaction) -> None:
        tr.set(key, b"")

    async def remove(tr: Transaction) -> None:
        tr.clear(key)

    facts: dict[str, Any] = {"samples": samples}
    kinds: list[tuple[str, Callable[[], Awaitable[object]]]] = [
        ("read version", lambda: engine.read(read_version)),
        ("read", lambda: engine.read(read)),
        ("commit", lambda: engine.transact_past_seal(write)),  # a sealed store is measured like any other
    ]
    try:
        for name, run in kinds:
            taken_s = sorted([await _timed(run) for _ in range(samples)])
            slug = name.replace(" ", "_")
            facts[f"{slug}_p50_s"] = taken_s[(samples - 1) // 2]
            facts[f"{slug}_p99_s"] = taken_s[max(0, -(-samples * 99 // 100) - 1)]
    finally:
        await engine.transact_past_seal(remove)
    detail = ", ".join(
        f"{name} {facts[slug + '_p50_s'] * 1000:.2f}/{facts[slug + '_p99_s'] * 1000:.2f} ms"
        for name, slug in (("read version", "read_version"), ("read", "read"), ("commit", "commit"))
    )
    return Check("latency", "ok", f"{detail} (p50/p99 of {samples}, one at a time)", facts)


async def _timed(run: Callable[[], Awaitable[object]]) -> float:
    began_ns = time.perf_counter_ns()
    await run()
    return (time.perf_counter_ns() - began_ns) / 1e9


# -- The store in it


async def _store(engine: Engine, settings: Settings, full: bool) -> AsyncIterator[Check]:
    prefix = engine.prefix
    keys = Keyspace(prefix)

    async def look(tr: Transaction) -> list[bytes | None]:
        found = [tr.get(key) for key in (keys.cluster, prefix + COPYING, prefix + CLOCK_FLOOR)]
        return [await one for one in found]

    raw, copying, floor = await engine.read(look)
    if copying is not None:
        source = seal_members(copying)["source"]
        yield Check("writes", "failed", f"an unfinished copy of {source}: no node can open it", {"copy_of": source})
        return
    if raw is None:
        yield Check("format", "attention", "no store yet: the first node to start makes it", {"format": None})
        return
    cluster = cluster_codec.decode(raw)
    facts: dict[str, Any] = {"format": cluster.format, "newest_known": FORMAT, "store": cluster.uuid.hex()}
    detail = f"keyspace format {cluster.format}, store {cluster.uuid.hex()}"
    if cluster.format > FORMAT:
        yield Check("format", "failed", f"{detail}: this program knows formats up to {FORMAT}, upgrade it", facts)
        return
    yield Check("format", "ok", detail, facts)
    yield await _master_key(engine, settings)
    reason = await engine.sealed()
    if reason is None:
        yield Check("writes", "ok", "the store takes writes", {"sealed": False})
    else:
        yield Check("writes", "attention", f"the store takes no writes: {reason}", {"sealed": True, "reason": reason})
    behind_s = (int.from_bytes(floor or b"", "big") - engine.now_ns()) / 1e9
    if floor is not None and behind_s >= 0:
        yield Check(
            "clock",
            "failed",
            f"this machine's clock is {behind_s:.1f} s behind the store that was copied here; nodes refuse to start",
            {"against": "copied store", "skew_least_s": behind_s},
        )
    async for found in check_nodes(as_nobody(engine, cluster), full=full):
        yield found


async def _master_key(engine: Engine, settings: Settings) -> Check:
    try:
        master = MasterKey.load(settings.master_key or None, settings.master_key_path, create=False)
        context = Context(Keyspace(engine.prefix), 0, engine.now_ns, Home(settings.region, bytes(16)), 0)
        await engine.read(check_master, context, master)
    except (WrongMasterKey, OSError) as error:
        return Check("master-key", "failed", str(error), {})
    except ReadOnlyTransaction:  # it would have put the check value there
        return Check("master-key", "failed", "the store lacks the check value of its master key", {})
    return Check("master-key", "ok", f"master key {master.id.hex()} is the store's", {"id": master.id.hex()})


# -- The other nodes


async def check_nodes(metadata: Metadata, *, full: bool, sleep: Sleep = asyncio.sleep) -> AsyncIterator[Check]:
    """Which nodes are alive, whether their clocks agree with this machine's, and what no living node can give. One that
    is alone need not run to be checked: then only what is lost is looked for."""
    members = Members(metadata)
    await members.refresh()
    if alone := len(members.all()) < 2:
        yield await _contents(metadata, members, full, alone)
        return
    clocks = dict[bytes, tuple[float, float]]()
    looks, before_ns = int(PATIENCE_S / LOOK_S), metadata.now_ns()
    while looks and not all(each.moving for each in members.all()):
        await sleep(LOOK_S)
        seen = {each.node for each in members.all() if each.moving}
        await members.refresh()
        now_ns = metadata.now_ns()
        for each in members.all():
            if each.moving and each.node not in seen:  # it has beaten since the look before
                clocks[each.node] = (each.at_ns - now_ns) / 1e9, (each.at_ns - before_ns) / 1e9
        looks, before_ns = looks - 1, now_ns
    for each in members.all():
        name = f"node {each.node.hex()} ({each.region}, {each.endpoint})"
        facts: dict[str, Any] = {"node": each.node.hex(), "region": each.region, "state": each.state}
        if not each.moving:
            age_s = (metadata.now_ns() - each.at_ns) / 1e9 if each.count else None
            since = f"its last beat was {age_s:,.0f} s ago" if age_s is not None else "it has never beaten"
            facts |= {"alive": False, "beat_age_s": age_s}
            yield Check("nodes", "attention", f"{name} shows no life: {since}", facts)
            continue
        yield Check("nodes", "ok", f"{name} is alive, and {each.state}", facts | {"alive": True})
        least_s, most_s = clocks[each.node]
        nearest_s = max(least_s, 0.0) if least_s > 0 else min(most_s, 0.0)
        if abs(nearest_s) > SKEW_S:
            facts = {"against": each.node.hex(), "skew_least_s": round(least_s, 3), "skew_most_s": round(most_s, 3)}
            detail = f"the clock of {name} is between {least_s:+.1f} and {most_s:+.1f} s from this machine's"
            yield Check("clock", "attention", detail, facts)
        if abs(step_s := each.step_ns / 1e9) > SKEW_S:
            facts = {"against": each.node.hex(), "step_s": round(step_s, 3)}
            detail = f"the clock of {name} was set {step_s:+.1f} s off since it started: it goes by the time before"
            yield Check("clock", "attention", detail, facts)
    yield await _contents(metadata, members, full, alone)


async def _contents(metadata: Metadata, members: Members, full: bool, alone: bool) -> Check:
    silent = [each.node for each in members.all() if not each.moving and not alone]
    unreachable = {each: None for node in silent async for each in sole_contents(metadata, members, node)}
    lost = [each async for each in lost_contents(metadata, members)]
    buckets = await bucket_names(metadata) if unreachable or lost else {}
    names: list[Name] = []
    for content_id in [*lost, *unreachable]:
        async for found in names_of(metadata, buckets, content_id):
            names.append(found)
            if not full and len(names) == SHOWN:
                break
        if not full and len(names) == SHOWN:
            break
    facts = {"unreachable": len(unreachable), "lost": len(lost), "objects": names}
    if not names:
        detail = "nothing was lost with a removed node" if alone else "everything is on a node that is alive"
        return Check("contents", "ok", detail, facts)
    listed = ", ".join(f"{name.bucket}/{plain(name.key)}" for name in names)
    detail = (
        f"{len(unreachable):,} contents are only on nodes that show no life, {len(lost):,} were lost with nodes that "
        f"were removed: {listed}" + (", ..." if len(names) == SHOWN and not full else "")
    )
    return Check("contents", "attention", detail, facts)


# -- This machine


def _directories(settings: Settings) -> list[tuple[str, Path]]:
    places = [("data directory", settings.data_dir), ("cache directory", settings.cache_dir)]
    if settings.sqlite_path is not None:
        places.append(("metadata", settings.sqlite_path.parent))
    return places


def _space(name: str, path: Path, settings: Settings) -> Check:
    facts: dict[str, Any] = {"place": name, "path": str(path)}
    try:
        usage = shutil.disk_usage(path)
    except FileNotFoundError:
        return Check("space", "attention", f"{name} {path} is not there yet", facts)
    except OSError as error:
        return Check("space", "failed", f"{name} {path}: {error.strerror}", facts)
    reserve = min(settings.reserve_bytes, usage.total // 10) if name == "cache directory" else 0
    facts |= {"free_bytes": usage.free, "total_bytes": usage.total, "reserve_bytes": reserve}
    detail = f"{name} {path}: {_size(usage.free)} free of {_size(usage.total)}"
    if usage.free <= reserve:
        return Check(
            "space", "failed", f"{detail}, less than its reserve of {_size(reserve)}: writes answer 503", facts
        )
    if usage.free < reserve + min(LITTLE_BYTES, usage.total // 20):
        return Check("space", "attention", f"{detail}: it is nearly full", facts)
    return Check("space", "ok", detail, facts)


def _file_clock(settings: Settings) -> Check:
    """This machine's clock against that of the data directory's file system: another machine's only if it is remote."""
    facts: dict[str, Any] = {"against": "file system"}
    try:
        with tempfile.NamedTemporaryFile(dir=settings.data_dir, prefix=".check-") as file:
            before_ns = time.time_ns()
            os.utime(file.fileno())
            os.write(file.fileno(), b"\0")
            os.fsync(file.fileno())
            stamp_ns, after_ns = os.stat(file.name).st_mtime_ns, time.time_ns()
    except OSError as error:
        return Check("clock", "attention", f"not compared with the file system's: {error}", facts)
    # A kernel stamps files with a clock that ticks every few milliseconds.
    skew_s = 0.0 if before_ns - 20_000_000 <= stamp_ns <= after_ns else (stamp_ns - after_ns) / 1e9
    facts["skew_s"] = round(skew_s, 3)
    detail = f"the data directory's file system stamps files {skew_s:+.3f} s from this machine's clock"
    return Check("clock", "attention" if abs(skew_s) > SKEW_S else "ok", detail, facts)


def _block_format(settings: Settings) -> Check:
    path = settings.cache_dir / "format.json"
    try:
        document = json.loads(path.read_text())
        version, node, block_size = document["format"], document["node"], document["block_size"]
    except FileNotFoundError:
        return Check("format", "attention", f"no block store in {settings.cache_dir} yet", {"block_format": None})
    except (OSError, ValueError, TypeError, KeyError) as error:
        return Check("format", "failed", f"{path} cannot be read: {error}", {})
    facts = {"block_format": version, "newest_known": layout.FORMAT, "node": node, "block_size_bytes": block_size}
    detail = f"block format {version}, node {node}, blocks of {_size(block_size)}"
    if version > layout.FORMAT:
        return Check("format", "failed", f"{detail}: this program knows formats up to {layout.FORMAT}", facts)
    if block_size != settings.block_size:
        return Check("format", "failed", f"{detail}, but the setting block-size is {_size(settings.block_size)}", facts)
    return Check("format", "ok", detail, facts)


def _size(size: int) -> str:
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


async def all_checks(settings: Settings, *, samples: int = 100, full: bool = False) -> list[Check]:
    """`check_store`, with what went wrong in the middle of it as a check of its own."""
    found: list[Check] = []
    try:
        async for check in check_store(settings, samples=samples, full=full):
            found.append(check)  # noqa: PERF401  # what was found before an error counts
    except (MetadataError, EngineError, OSError) as error:
        found.append(Check("engine", "failed", str(error), {}))
    return found
