"""The composition root: the one module that knows every part of a node, opens them in order, closes them in reverse.

Guarantees: a directory or key this node makes for itself is readable by its owner only; a part that fails to open
leaves nothing open behind it; background work that fails is reported and tried again, never silently given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from tigrislike.bytecache import BlockStore, BytesError
from tigrislike.bytecache.filesystem import FileSystem, sync_directory
from tigrislike.bytecache.hold import passing
from tigrislike.bytecache.scrub import Remedies, Scrubber, ScrubRunning
from tigrislike.bytecache.source import BlobSource
from tigrislike.bytecache.verified import Verified
from tigrislike.config import Settings
from tigrislike.counting import DATABASE_KINDS, ORIGIN_FAILURES, OTHER, RESULTS, Column, Row, Table
from tigrislike.existing import check_store
from tigrislike.metadata import AccessKey, Metadata, MetadataError, history, surveying
from tigrislike.metadata.bounded import Bounds
from tigrislike.metadata.deciding import QueueParameters
from tigrislike.metadata.errors import NodeSkewed
from tigrislike.metadata.homes import ANYBODY, region_destination
from tigrislike.metadata.kv import (
    AmbiguousCommit,
    Engine,
    EngineError,
    EngineUnavailable,
    RetryableError,
    SteadyClock,
    StoreSealed,
    open_engine,
)
from tigrislike.metadata.kv.observed import Kind, Observe, ObservedEngine
from tigrislike.metadata.placing import Regions
from tigrislike.metadata.records import DRAINING, LIVE, UP, Beat, Item, NodeSample, OriginPlace
from tigrislike.metadata.records import Node as NodeRecord
from tigrislike.metadata.secrets import MasterKey
from tigrislike.metrics import Snapshot
from tigrislike.origin import Origin
from tigrislike.origin.egress import Egress
from tigrislike.origin.location import Location
from tigrislike.origin.opening import open_origin
from tigrislike.origin.resilient import Limits, Resilient
from tigrislike.replication.consumer import Consumer
from tigrislike.replication.demand import FLUSH_S, Decay, forget_old
from tigrislike.replication.epochs import RENEW_S, Epochs
from tigrislike.replication.inventory import Inventory
from tigrislike.replication.lacking import Restore
from tigrislike.replication.log_delivery import LOOK_S, Delivery
from tigrislike.replication.log_spool import Spool
from tigrislike.replication.membership import BEAT_S, Members, skew_s
from tigrislike.replication.migrate import Migrate
from tigrislike.replication.mirror import Mirror
from tigrislike.replication.origins import OpenOrigin, Origins
from tigrislike.replication.peers import Peers
from tigrislike.replication.putting import Putter
from tigrislike.replication.rates import Rate
from tigrislike.replication.reclaim import ReclaimBlob, ReclaimContent, reclaim_tasks
from tigrislike.replication.regional import PROBE_S, Regional
from tigrislike.replication.repair import Drain, Repair, Return, watch_for_dead
from tigrislike.replication.replicate import Copying, Hold, Release, Replicate
from tigrislike.replication.repolicy import FollowPolicy, OpenRegion
from tigrislike.replication.signing import KEY_PURPOSE
from tigrislike.replication.tasks import Task
from tigrislike.replication.warming import Warm
from tigrislike.replication.write_back import Discard, WriteBack

if TYPE_CHECKING:
    from tigrislike.tracing import Tracing

_LOG = logging.getLogger("tigrislike.node")

_CHECKPOINT_INTERVAL_S = 5.0
_RECONCILE_INTERVAL_S = 86400.0
_RECONCILE_LOOK_S = 5.0  # how often the agent looks whether the index was lost
_SCRUB_LOOK_S = 60.0  # how often the agent looks whether a scrub is due
HIT_INTERVAL_S = 1.0  # how often a process tells the index what was read
_RETRY_S = 30.0  # after background work failed
_OUTAGE_RETRY_S = 2.0  # after the database could not be reached: others wait for this node's beat, and for its work
_DEAD_LOOK_S = 5.0
_STEP_NS = 1_000_000_000  # less than this is between what two looks at a clock show, and harms nobody
_CACHE_LOOK_S = 10.0
_DEMAND_LOOK_S = 3600.0  # how often the agent removes counts that are too old

NODE_REFUSES = (EngineError, MetadataError, BytesError, OSError)
"""What opening a node raises where something about the store, and not about this program, has to be put right."""


Duty = tuple[str, Callable[[], Awaitable[None]], float]
"""Its name, what it does, and the seconds to rest after it."""


class Stop(Protocol):
    """What `asyncio.Event` offers: set once the process is to end."""

    def is_set(self) -> bool: ...
    async def wait(self) -> bool: ...


class Node:
    """The open parts of a node: `settings`, `engine`, `metadata`, `blocks`, `regional`."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        metadata: Metadata,
        blocks: BlockStore,
        regional: Regional,
        clock: SteadyClock,
        row: Row | None = None,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.metadata = metadata
        self.blocks = blocks
        self.regional = regional
        self._clock = clock
        self._seen: dict[bytes, int] = {}
        self._refused_step_ns = 0
        self._reconcile_due_s = 0.0
        self._endpoint = ""
        self._beats = 0
        self._joined = False
        self._state = UP
        self._cache_usage = (0, -1)
        self._supervisor = os.getppid()
        self._row = row
        self._consumer: Consumer | None = None
        self.tracing: Tracing | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(
        cls,
        settings: Settings,
        *,
        make: bool = True,
        policy: str | None = None,
        open_source: OpenSource | None = None,
        open_origin: OpenOrigin | None = None,
        verified: Verified | None = None,
        row: Row | None = None,
        tracing: Tracing | None = None,
        clock: SteadyClock | None = None,
    ) -> AsyncIterator[Node]:
        """A node for the length of a `with` block, its directories and master key made at first start.

        Args:
            make: a store that is not there is made; otherwise that is an error.
            policy: of eviction; by default whatever the cache is arranged by, for it is the server's to say.
            open_source: given the node, says where blocks that are not here come from; by default from the other nodes.
            open_origin: opens stores elsewhere; by default by the drivers that there are for their URLs.
            verified: what the processes of the node share of what they have verified.
            row: where this process counts.
            tracing: what it traces with.
            clock: what the processes of the node go by.

        Raises:
            OSError: a directory or file cannot be used, or with `make` false is not there.
            EngineError, MetadataError, BytesError: a part refuses to open: a wrong master key, a newer format.
        """
        if not make:
            check_store(settings)
        make_directories(settings)
        master_key = load_master_key(settings)
        blocks = BlockStore.open(
            settings.cache_dir,
            block_size=settings.block_size,
            reserve_bytes=settings.reserve_bytes,
            cache_bytes=settings.cache_bytes,
            policy=policy,
            fill_bytes=settings.fill_bytes,
            fill_timeout_s=settings.fill_timeout_s,
            verify=settings.verify,
            verified=verified,
            counters=row.counters if row is not None else None,
        )
        try:
            clock = clock or SteadyClock()
            engine = await open_engine(settings.metadata, clock=clock)
            if row is not None:
                engine = ObservedEngine(engine, _noting(row))
            if tracing is not None:
                engine = ObservedEngine(engine, tracing.transaction)
            try:
                metadata = await Metadata.open(
                    engine,
                    master_key=master_key,
                    node_id=blocks.node_id,
                    region=settings.region,
                    reclaim_grace_s=settings.reclaim_grace_s,
                    regions=Regions(settings.geographies, [settings.region]),
                    replica_decay_s=settings.replica_decay_s,
                    bounds=Bounds(
                        settings.bounded_memory, int(settings.bounded_outage_s * 1e9), settings.bounded_wait_s
                    ),
                    queue=queue_parameters(settings),
                )
                async with contextlib.aclosing(metadata):
                    peers = Peers.of(settings, metadata.derive_key(KEY_PURPOSE), blocks.node_id)
                    egress = Egress(allow_private=settings.allow_private_origins)
                    origins = Origins(metadata, open_origin or origin_opener(settings, egress))
                    regional = Regional(
                        metadata,
                        blocks,
                        peers,
                        origins,
                        dead_after_s=settings.dead_after_s,
                        replicate_after=settings.replicate_after,
                        inline_bytes=settings.inline_bytes,
                    )
                    async with (
                        contextlib.aclosing(egress),
                        contextlib.aclosing(origins),
                        contextlib.aclosing(regional),
                    ):
                        node = cls(settings, engine, metadata, blocks, regional, clock, row)
                        await regional.members.refresh()
                        source = regional.source if open_source is None else open_source(node)
                        if tracing is not None:
                            node.tracing, peers.tell = tracing, tracing.outgoing
                            source = tracing.source(source, regional.source.served_from)
                        blocks.fill_from(source)
                        try:
                            yield node
                        finally:
                            await blocks.aclose()  # fills in progress read from other nodes
            finally:
                await engine.close()
        finally:
            await blocks.aclose()

    async def ensure_root(self) -> AccessKey:
        """The root user's key: the configured one, else the one made at first start."""
        key, created = await self.metadata.ensure_root(
            self.settings.root_access_key or None, self.settings.root_secret_key or None
        )
        if created:
            _LOG.info("made the root access key %s", key.key_id)
        return key

    async def join(self, endpoint: str) -> None:
        """Make this node one of the store's, reached by the others at `endpoint`.

        Raises:
            NodeRemoved: it was removed. NodeSkewed: its clock is too far from the others'.
        """
        members = self.regional.members
        self._endpoint = endpoint
        await self._check_clock(members)
        own = members.get(self.blocks.node_id)
        self._beats = own.count if own is not None else 0
        others = {each.region for each in members.all()} - {self.settings.region}
        if others and self.settings.sqlite_path is not None:
            _LOG.warning(
                "region %s shares an SQLite file with %s: that is for one machine only, and over a network file system "
                "loses data; regions of several machines share FoundationDB",
                self.settings.region,
                ", ".join(sorted(others)),
            )
        with contextlib.suppress(StoreSealed):  # it can be read; once it takes writes again, a beat makes up for it
            await self._join()

    async def _join(self) -> None:
        await self.metadata.join(NodeRecord(self.blocks.node_id, self.settings.region, self._endpoint))
        self._joined = True

    async def _check_clock(self, members: Members) -> None:
        """Refuse a clock that is not the others'. A beat that seems old may just be of a node that is down, so that
        they are watched for one beat."""
        most_s = self.settings.max_clock_skew_s
        now_ns = self.metadata.now_ns()
        behind = [(now_ns - each.at_ns) / 1e9 for each in members.all() if each.count and each.node != members.own]
        if all(abs(each_s) <= most_s for each_s in behind):
            return
        since = {each.node: each.count for each in members.all()}
        await asyncio.sleep(1.5 * BEAT_S)
        await members.refresh()
        ahead_s = skew_s(members.all(), members.own, self.metadata.now_ns(), since)
        if ahead_s is not None and abs(ahead_s) > most_s:
            raise NodeSkewed(ahead_s)

    async def beat(self, epoch: bytes) -> None:
        """Show the others that this node is alive. One that was removed meanwhile stops."""
        if not self._joined:
            await self._join()
        self._note_state()
        disk = os.statvfs(self.settings.cache_dir)
        capacity, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
        self._beats += 1
        self.mind_clock()
        sign = Beat(
            self.metadata.now_ns(), self._beats, epoch, capacity, free, self._clock.step_ns(), *self._cache_usage
        )
        if not await self.metadata.beat(self.blocks.node_id, sign):
            _LOG.critical("this node was removed from the store: stopping")
            if os.getppid() == self._supervisor:  # else it is gone, and whoever took its place is none of ours
                os.kill(self._supervisor, signal.SIGTERM)

    def _note_state(self) -> None:
        """Log when this node begins to drain, and when that is called off."""
        state, before = self.regional.members.own_state, self._state
        self._state = state
        if state == DRAINING != before:
            _LOG.info("this node drains: it gives up what it holds once others have it, and takes no copies")
        elif state == UP and before == DRAINING:
            _LOG.info("this node drains no more, and takes copies again")

    def mind_clock(self) -> None:
        """Follow where the host's clock has been set while this node runs, if that is nearer to what the hosts of the
        other nodes show, or if there are none. Else go on by the time as it was before.

        So one host that is set wrong disturbs nobody, and where all were wrong, all follow when they are set right.
        """
        members, step_ns = self.regional.members, self._clock.step_ns()
        since, self._seen = self._seen, {each.node: each.count for each in members.all()}
        if abs(step_ns) < _STEP_NS:
            self._refused_step_ns = 0
            return
        others = [each for each in members.all() if each.count and not each.dead and each.node != members.own]
        ahead_s = skew_s(others, members.own, self.metadata.now_ns(), since, hosts=True)
        if not others or (ahead_s is not None and abs(ahead_s + step_ns / 1e9) < abs(ahead_s)):
            _LOG.warning("this machine's clock was set by %+.1f s: followed", step_ns / 1e9)
            self._clock.follow()
        elif ahead_s is not None and abs(step_ns - self._refused_step_ns) >= _STEP_NS:
            _LOG.error(
                "this machine's clock was set by %+.1f s, away from the other nodes': not followed. Set it right",
                step_ns / 1e9,
            )
            self._refused_step_ns = step_ns

    def counted(self) -> Iterator[tuple[Column, int]]:
        """What this process has counted so far of databases, origins and work owed, for `Row.tell`."""
        yield ("database_unreachable_processes",), int(self.metadata.outage.certain)
        origins = self.regional.origins.counted()
        for name, field in _ORIGIN_COUNTS.items():
            yield (name,), origins[field]
        for failure in ORIGIN_FAILURES:
            yield ("origin_request_failures", failure), origins[failure]
        if self._consumer is not None:
            for result in RESULTS:
                for task, count in getattr(self._consumer.worked, result).items():
                    yield ("task_runs", task, result), count

    def regional_duties(self) -> list[Duty]:
        """What each process of the node does to know the others."""
        return [
            ("members", self.regional.members.refresh, BEAT_S),
            ("probe", self.regional.probe, PROBE_S),
            ("demand", self.regional.demand.flush, FLUSH_S),
        ]

    async def work(self, stop: Stop, epochs: Epochs, table: Table) -> None:
        """Do this node's background work until `stop` is set: one task per duty, each with a pace of its own.

        Args:
            table: what all processes of the node count in.
        """

        known = asyncio.Event()
        consumer = self._consumer = self.consumer()

        async def beat() -> None:
            await self.beat(epochs.current)
            if not known.is_set():
                await self.regional.members.refresh()
                known.set()

        async def consume() -> None:
            await known.wait()  # else what has waited for a node of this region is put off, for want of one
            await consumer.run()

        duties: list[Duty] = [
            ("beat", beat, BEAT_S),
            ("epochs", epochs.renew, RENEW_S),
            *self.regional_duties(),
            ("old demand", self._forget_demand, _DEMAND_LOOK_S),
            ("dead nodes", self._watch_for_dead, _DEAD_LOOK_S),
            ("queue sample", self._sample_queue, surveying.SAMPLE_NS / 1e9),
            ("history", partial(self.note_history, table), history.SAMPLE_S),
            ("cache usage", self._look_at_cache, _CACHE_LOOK_S),
            ("sweep", self._sweep, self.settings.sweep_interval_s),
            ("queue", consume, 0.0),
            ("log delivery", self.log_delivery().run, min(LOOK_S, self.settings.server_log_interval_s)),
            ("checkpoint", self.engine.checkpoint, _CHECKPOINT_INTERVAL_S),
            ("reconcile", self._reconcile, _RECONCILE_LOOK_S),
            ("hits", self.blocks.flush_hits, HIT_INTERVAL_S),
        ]
        if self.settings.scrub_interval_s:
            duties.append(("scrub", self._scrub, _SCRUB_LOOK_S))
        async with repeating(duties):
            await stop.wait()

    @property
    def log_spool(self) -> Spool:
        """Where the log of requests to buckets gathers, of all processes of the node."""
        settings = self.settings
        return Spool(settings.data_dir / "server-logs", settings.server_log_spool_bytes, settings.reserve_bytes)

    @property
    def putter(self) -> Putter:
        """What writes objects of the store's own accord."""
        return Putter(self.metadata, self.blocks, self.regional, self.settings.inline_bytes)

    def log_delivery(self) -> Delivery:
        """What brings the log of requests to the target buckets."""
        settings = self.settings
        return Delivery(
            self.metadata,
            self.log_spool,
            self.putter,
            settings.region,
            interval_s=settings.server_log_interval_s,
            most_bytes=settings.server_log_bytes,
            clock=time.monotonic,
        )

    def consumer(self) -> Consumer:
        """A consumer of what is owed to this node, to its region, and to anybody.

        It begins nothing while a backup is being made.
        """
        metadata, blocks, members = self.metadata, self.blocks, self.regional.members
        moving, origins = self.regional.moving, self.regional.origins
        copying = Copying(metadata, blocks, members, moving, Rate(self.settings.replication_rate))
        tasks: list[Task] = [
            *reclaim_tasks(metadata, blocks, origins, moving),
            Replicate(metadata, members, copying),
            Hold(copying),
            Release(metadata, blocks, members, moving),
            Decay(metadata, members),
            Warm(metadata, blocks, self.settings.region),
            Repair(metadata, members),
            Return(metadata, members),
            Drain(metadata, members),
            FollowPolicy(metadata, members),
            Mirror(metadata, blocks, origins, Rate(self.settings.mirror_rate)),
            OpenRegion(metadata),
            Restore(metadata, members),
            Migrate(metadata, origins, self.regional.shadows.find),
            WriteBack(metadata, blocks, members, moving, origins),
            Discard(metadata, origins),
            Inventory(metadata, self.putter),
        ]
        return Consumer(
            metadata.queue,
            [blocks.node_id, region_destination(self.settings.region), ANYBODY],
            tasks if self.tracing is None else list(map(self.tracing.task, tasks)),
            workers=self.settings.queue_workers,
            gate=lambda: passing(self.settings.cache_dir),
            on_done=self._on_done,
        )

    def _on_done(self, item: Item) -> None:
        if self._row is not None:
            self._row.timer("task_delay_seconds", item.task)(max(0, self.metadata.now_ns() - item.enqueued_ns))

    async def _watch_for_dead(self) -> None:
        """Have copied again what nodes held that have been dead for too long."""
        await watch_for_dead(self.metadata, self.regional.members, self.settings.repair_after_s)

    async def _sample_queue(self) -> None:
        await self.metadata.background(surveying.sample, self.metadata.context)

    async def note_history(self, table: Table) -> None:
        """Keep what this node has counted until now, for plots."""
        snapshot = Snapshot(table)
        totals = snapshot.totals
        sample = NodeSample(
            self.metadata.now_ns(),
            table.since_ns,
            *snapshot.traffic(),
            totals.hits,
            totals.misses,
            totals.fills,
            totals.fill_bytes,
            totals.evicted_bytes,
            *self._cache_usage,
        )
        await self.metadata.background(history.note, self.metadata.context, sample)

    async def _look_at_cache(self) -> None:
        """What beats say of the cache."""
        usage = await self.blocks.usage()
        self._cache_usage = usage.used_bytes, -1 if usage.capacity_bytes is None else usage.capacity_bytes

    async def _forget_demand(self) -> None:
        await self.metadata.background(forget_old, self.metadata.context)

    def scrubber(self, rate: int | None = None) -> Scrubber:
        """The scrubber of this node's disk, at most at `rate` bytes a second, by default the configured one."""
        blocks = self.blocks
        remedies = Remedies(self.size_of, blocks.mend, blocks.drop, blocks.restore)
        return Scrubber(blocks.fs, blocks.layout, blocks.counters, remedies, rate or self.settings.scrub_rate)

    async def _sweep(self) -> None:
        """Settle what crashed uploads left behind: publish what was committed, remove the rest."""
        stats = await self.blocks.sweep(self.metadata.settle_blob)
        if stats.published or stats.removed:
            _LOG.info("sweep: %d uploads published, %d removed", stats.published, stats.removed)
        for blob_id, error in stats.failures:
            _LOG.error("sweep: blob %s: %s", blob_id.hex(), error)

    async def _reconcile(self) -> None:
        """Hold the cache's index and its directory against each other where it is due: until then, after a reboot or
        where the index was lost, nothing is kept or evicted."""
        now_s = time.monotonic()
        if now_s < self._reconcile_due_s and (await self.blocks.usage()).ready:
            return
        done = await self.blocks.reconcile()
        self._reconcile_due_s = now_s + _RECONCILE_INTERVAL_S
        if done.added or done.removed or done.garbage:
            _LOG.info("reconcile: %d added, %d removed, %d dead fills", done.added, done.removed, done.garbage)

    async def _scrub(self) -> None:
        """Verify what lies on the disk, if it is time."""
        try:
            done = await self.scrubber().run_if_due(self.settings.scrub_interval_s)
        except ScrubRunning:
            return  # somebody does it by hand
        if done is None:
            return
        took_s = (done.completed_ns - done.started_ns) / 1e9
        _LOG.log(
            logging.ERROR if done.damaged else logging.INFO,
            "scrub: %d blocks in %.0f s, %d healed, %d damaged",
            done.blocks,
            took_s,
            done.healed,
            done.damaged,
        )
        if took_s > self.settings.scrub_interval_s:
            _LOG.warning("scrub: it took longer than --scrub-interval; raise --scrub-rate")

    async def size_of(self, blob_id: bytes) -> int | None:
        blob = await self.metadata.blob(blob_id)
        return blob.size if blob is not None and blob.state == LIVE else None


OpenSource = Callable[[Node], BlobSource]

TASKS: Final = tuple(
    task.name
    for task in (
        ReclaimContent,
        ReclaimBlob,
        Replicate,
        Hold,
        Release,
        Decay,
        Warm,
        Repair,
        Return,
        Restore,
        Drain,
        FollowPolicy,
        Mirror,
        OpenRegion,
        Migrate,
        WriteBack,
        Discard,
        Inventory,
    )
)
"""The kinds of work that a node does."""

_ORIGIN_COUNTS: Final = {
    "origin_calls": "calls",
    "origin_requests": "requests",
    "origin_retries": "retries",
    "origin_retries_denied": "retries_denied",
    "origin_hedges": "hedges",
    "origin_hedges_won": "hedges_won",
    "origin_hedges_denied": "hedges_denied",
    "origin_breaker_openings": "opened",
    "origin_left_alone": "left_alone",
    "origin_read_bytes": "bytes_read",
    "origin_written_bytes": "bytes_written",
    "origin_running_requests": "running",
    "origin_waiting_requests": "waiting",
    "origin_breakers_open": "state",
}
"""Metrics of origins, and the fields of `Origins.counted` that they show."""


def _noting(row: Row) -> Observe:
    """What counts transactions in a row."""
    timers = {kind: row.timer("database_seconds", kind) for kind in DATABASE_KINDS}

    def note(kind: Kind, name: str, took_ns: int, error: EngineError | None) -> None:
        timers[kind](took_ns)
        if error is not None:
            row.add("database_errors", _kind_of(error))

    return note


def _kind_of(error: EngineError) -> str:
    return next((label for kind, label in _ENGINE_ERRORS.items() if isinstance(error, kind)), OTHER)


_ENGINE_ERRORS: Final[dict[type[EngineError], str]] = {
    EngineUnavailable: "unavailable",
    AmbiguousCommit: "ambiguous",
    RetryableError: "retryable",
    StoreSealed: "sealed",
}


def queue_parameters(settings: Settings) -> QueueParameters:
    """How the queue of work owed is paced, as the settings have it."""

    def ns(duration_s: float) -> int:
        return round(duration_s * 1e9)

    return QueueParameters(
        pointer_lease_ns=ns(settings.queue_pointer_lease_s),
        item_lease_ns=ns(settings.queue_item_lease_s),
        poll_ns=ns(settings.queue_poll_s),
        scan_ns=ns(settings.queue_scan_s),
        min_inactive_ns=ns(settings.queue_min_inactive_s),
        batch=settings.queue_batch,
        back_off_ns=ns(settings.queue_back_off_s),
        max_back_off_ns=ns(settings.queue_max_back_off_s),
        max_attempts=settings.queue_attempts,
    )


def origin_limits(settings: Settings) -> Limits:
    """How patient a node is with its origins, as the settings have it."""
    return Limits(
        timeout_s=settings.origin_timeout_s,
        silence_s=settings.origin_silence_s,
        slowest=settings.origin_minimum_bytes,
        attempts=settings.origin_attempts,
        concurrency=settings.origin_concurrency,
    )


def origin_opener(settings: Settings, egress: Egress | None = None) -> OpenOrigin:
    """How origins are opened under these settings, with connections of `egress`: by default, of one that lasts for as
    long as the process."""
    egress = egress or Egress(allow_private=settings.allow_private_origins)
    limits = origin_limits(settings)

    def open_place(place: OriginPlace) -> Origin:
        location = Location(place.url, place.endpoint, place.region, place.access_key, place.secret_key, place.options)
        return Resilient(open_origin(location, egress=egress), limits)

    return open_place


def load_master_key(settings: Settings) -> MasterKey:
    """The configured master key. The file is made for a new SQLite database; otherwise it must be there: a database
    that exists was made with some key, which no other replaces."""
    path, database = settings.master_key_path, settings.sqlite_path
    # Looked at before the key: whoever else makes this store meanwhile makes the key first.
    new = database is not None and not database.exists()
    if path is not None and new:
        path.parent.mkdir(parents=True, exist_ok=True)
    return MasterKey.load(settings.master_key or None, path, create=new)


@contextlib.asynccontextmanager
async def repeating(duties: Iterable[Duty]) -> AsyncIterator[None]:
    """Do each duty again and again for the length of a `with` block, in a task of its own."""
    tasks = [asyncio.create_task(_repeat(name, duty, pause_s), name=name) for name, duty, pause_s in duties]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _repeat(name: str, duty: Callable[[], Awaitable[None]], pause_s: float) -> None:
    seal = outage = ""
    while True:
        try:
            await duty()
        except StoreSealed as error:
            # No failure: it rests for as long as the store does, and says so once.
            if error.reason != seal:
                seal = error.reason
                _LOG.warning("%s rests, for the store is sealed: %s", name, seal)
            await asyncio.sleep(max(pause_s, _RETRY_S))
        except (EngineUnavailable, RetryableError, AmbiguousCommit) as error:  # as while a cluster recovers
            if not outage:
                outage = str(error)
                _LOG.warning("%s waits for the database: %s", name, outage)
            await asyncio.sleep(max(pause_s, _OUTAGE_RETRY_S))
        except Exception:
            _LOG.exception("%s failed; next try in %.0f s", name, max(pause_s, _RETRY_S))
            await asyncio.sleep(max(pause_s, _RETRY_S))
        else:
            if seal or outage:
                seal = outage = ""
                _LOG.info("%s goes on", name)
            await asyncio.sleep(pause_s)


def make_directories(settings: Settings) -> None:
    """Make those of a node's directories that are not there. Raises OSError."""
    _make_private(settings.data_dir)
    _make_private(settings.cache_dir)
    if settings.sqlite_path is not None:
        _make_private(settings.sqlite_path.parent)


def _make_private(directory: Path) -> None:
    """Make a directory that only its owner may enter, its name durable; an existing one keeps the mode it has."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Also where it was there already: whoever made it may have died before this line.
    for path in {directory, *missing}:
        if os.access(path.parent, os.R_OK):  # what is not ours to read was not made by us
            sync_directory(FileSystem(), str(path.parent))
