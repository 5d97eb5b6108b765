"""Every metric of a node's page: its kind, what it says, its labels. docs/metrics.md has the same list for people.

Names are what follows ``tigrislike_``, without the ``_total`` of counters, and in Prometheus' conventions: base units
(seconds, bytes, ratios), one meaning for all values of a label. No label holds the name of a bucket or a key, but for
the families in `NAMING`, which only those are shown who bring the token of ``--metrics-auth``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from tigrislike.bytecache.statistics import FILL_BOUNDS_S

PREFIX: Final = "tigrislike_"


class Family(NamedTuple):
    """One metric. `bounds` are the upper bounds of a histogram's classes."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


def shown_name(name: str) -> str:
    """What a family is called on the page: ``tigrislike_fills_total``."""
    return PREFIX + name + ("_total" if FAMILIES[name].kind == "counter" else "")


# --- of the processes of a node, counted in the table that they share

REQUEST_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
DATABASE_BOUNDS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
LAG_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
TASK_BOUNDS_S: Final = (0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0, 3600.0, 86400.0)

_PROCESSES: Final[Mapping[str, Family]] = {
    "requests": Family(
        "counter",
        "Requests that are over, by S3 operation and HTTP status (0: the client went away before the answer).",
        ("operation", "status"),
    ),
    "request_body_bytes": Family("counter", "Bytes of request bodies received.", ("operation",)),
    "response_body_bytes": Family("counter", "Bytes of response bodies sent.", ("operation",)),
    "request_seconds": Family(
        "histogram",
        "Time from a request's first byte to the end of its answer, bodies included, by class of operation.",
        ("class",),
        REQUEST_BOUNDS_S,
    ),
    "errors": Family("counter", "Requests that were refused or failed, by the code of the error.", ("code",)),
    "refusals": Family(
        "counter",
        "Requests that were answered SlowDown at once, by the bound that they met: connections, requests in flight, "
        "those of one key, memory for bodies.",
        ("reason",),
    ),
    "bounded_hits": Family("counter", "Reads of bounded buckets answered within the bound, without the database."),
    "bounded_stale": Family(
        "counter", "Reads of bounded buckets answered beyond the bound, for the database was out of reach."
    ),
    "sendfile_bytes": Family("counter", "Bytes sent from files without a copy."),
    "sendfile_cold": Family("counter", "How often sending waited for the disk, for the pages were not in memory."),
    "server_log_lines": Family(
        "counter",
        "Lines of the logs of requests to buckets: on their way to a target bucket, or dropped, for more came than is "
        "taken.",
        ("result",),
    ),
    "database_seconds": Family(
        "histogram",
        "Time that transactions on the metadata database took, repetitions included: reads, writes, and those that "
        "nobody waits for.",
        ("kind",),
        DATABASE_BOUNDS_S,
    ),
    "database_errors": Family(
        "counter", "Transactions that the metadata database failed, by how; those that were repeated aside.", ("error",)
    ),
    "database_unreachable_processes": Family(
        "gauge", "Processes of this node that leave the database alone, for it does not answer."
    ),
    "event_loop_lag_seconds": Family(
        "histogram", "How late the event loops of this node's processes woke up.", ("process",), LAG_BOUNDS_S
    ),
    "task_runs": Family("counter", "Runs of work owed on this node, by task and how they ended.", ("task", "result")),
    "task_delay_seconds": Family(
        "histogram",
        "Time from when work was owed to when this node had done it, by task.",
        ("task",),
        TASK_BOUNDS_S,
    ),
    "origin_calls": Family("counter", "Calls of origins; each is one request or more."),
    "origin_requests": Family("counter", "Requests sent to origins, retries and hedges included."),
    "origin_request_failures": Family("counter", "Requests to origins that failed, by how.", ("error",)),
    "origin_retries": Family("counter", "Requests to origins that were tried again."),
    "origin_retries_denied": Family("counter", "Requests to origins not tried again, for too many others were."),
    "origin_hedges": Family("counter", "Second requests, sent because the first was late."),
    "origin_hedges_won": Family("counter", "Second requests that answered first."),
    "origin_hedges_denied": Family("counter", "Second requests that were not sent, for too many others were."),
    "origin_breaker_openings": Family("counter", "How often a process began to leave an origin alone."),
    "origin_left_alone": Family("counter", "Calls that failed unasked because their origin is left alone."),
    "origin_read_bytes": Family("counter", "Bytes read from origins."),
    "origin_written_bytes": Family("counter", "Bytes written to origins."),
    "origin_running_requests": Family("gauge", "Requests to origins under way."),
    "origin_waiting_requests": Family("gauge", "Requests to origins that wait for another one to end."),
    "origin_breakers_open": Family("gauge", "Origins that are left alone, counted in each process that does."),
}

# Each field of `bytecache.Statistics` that is a total: (family, label values).
TOTALS: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "bytes_written": ("blocks_written_bytes", {}),
    "bytes_read": ("blocks_read_bytes", {}),
    "hits": ("block_hits", {}),
    "hits_home": ("block_hits_by_place", {"place": "home"}),
    "hits_cache": ("block_hits_by_place", {"place": "cache"}),
    "hits_incoming": ("block_hits_by_place", {"place": "incoming"}),
    "misses": ("block_misses", {}),
    "fills": ("fills", {"result": "kept"}),
    "fills_failed": ("fills", {"result": "failed"}),
    "fills_dropped": ("fills", {"result": "deleted"}),
    "fills_joined": ("fills_joined", {}),
    "fill_bytes": ("fill_bytes", {}),
    "passed_through": ("passed_through", {}),
    "passed_through_bytes": ("passed_through_bytes", {}),
    "evicted_capacity": ("evictions", {"reason": "capacity"}),
    "evicted_reserve": ("evictions", {"reason": "reserve"}),
    "evicted_request": ("evictions", {"reason": "request"}),
    "evicted_deleted": ("evictions", {"reason": "deleted"}),
    "evicted_corrupt": ("evictions", {"reason": "corrupt"}),
    "evicted_bytes": ("evicted_bytes", {}),
    "verify_failures": ("verify_failures", {}),
    "verified_bytes": ("verified_bytes", {}),
    "healed": ("healed", {}),
    "corrupt_unhealed": ("corrupt_unhealed", {}),
    "missing_unhealed": ("missing_unhealed", {}),
    "scrubbed_blocks": ("scrubbed_blocks", {}),
    "scrubbed_bytes": ("scrubbed_bytes", {}),
}
# And each that is a gauge.
LEVELS: Final[Mapping[str, str]] = {
    "open_blocks": "open_blocks",
    "uploads": "uploads",
    "in_flight_bytes": "upload_in_flight_bytes",
    "filling_bytes": "fill_memory_bytes",
}

_BLOCKS: Final[Mapping[str, Family]] = {
    "blocks_written_bytes": Family("counter", "Data bytes that uploads wrote to blocks."),
    "blocks_read_bytes": Family("counter", "Data bytes of blocks handed to readers."),
    "block_hits": Family("counter", "Blocks asked for and found on this node's disk."),
    "block_hits_by_place": Family("counter", "The same by where on the disk they were.", ("place",)),
    "block_misses": Family("counter", "Blocks asked for and not on this node's disk."),
    "fills": Family("counter", "Fetches of a block from a source, by how they ended.", ("result",)),
    "fills_joined": Family("counter", "Readers that waited for a fill that somebody else had begun."),
    "fill_bytes": Family("counter", "Bytes received from sources."),
    "fill_seconds": Family("histogram", "Time that fetches of a block took which were kept.", bounds=FILL_BOUNDS_S),
    "passed_through": Family("counter", "Fetches from a source that were not kept."),
    "passed_through_bytes": Family("counter", "Bytes fetched from a source and not kept."),
    "evictions": Family("counter", "Blocks dropped from the cache, by reason.", ("reason",)),
    "evicted_bytes": Family("counter", "Bytes of files dropped from the cache."),
    "verify_failures": Family("counter", "Blocks or chunks that were not what was written."),
    "verified_bytes": Family("counter", "Bytes compared with their checksums before they were served."),
    "healed": Family("counter", "Damaged blocks that were replaced from a source."),
    "corrupt_unhealed": Family(
        "counter", "Reads and scrubs that met a damaged block nobody else has. Data is lost: page somebody."
    ),
    "missing_unhealed": Family(
        "counter",
        "Reads that met a block which is nowhere. Data is lost, or its object was deleted long ago: page somebody.",
    ),
    "scrubbed_blocks": Family("counter", "Blocks verified by the scrubber."),
    "scrubbed_bytes": Family("counter", "Bytes of files verified by the scrubber."),
    "open_blocks": Family("gauge", "Block files that readers hold open."),
    "uploads": Family("gauge", "Uploads that hold a directory: receiving, or not yet published."),
    "upload_in_flight_bytes": Family("gauge", "Received by uploads and not yet on disk."),
    "fill_memory_bytes": Family("gauge", "Memory held by fills."),
}

# --- of the node, looked at when the page is asked for

_NODE: Final[Mapping[str, Family]] = {
    "build_info": Family("gauge", "The version that runs.", ("version",)),
    "part_answers": Family(
        "gauge",
        "Whether a part of this page could be found out in time: disk, database, store, certificate, buckets.",
        ("part",),
    ),
    "database_ping_seconds": Family("gauge", "How long one small read of the metadata database took just now."),
    "tls_certificate_expiry_timestamp_seconds": Family("gauge", "When the certificate that is served is void."),
    "unlinked_open_bytes": Family("gauge", "Bytes of deleted blocks that are still being read."),
    "disk_bytes": Family("gauge", "Size of the filesystem of the blocks."),
    "disk_available_bytes": Family("gauge", "Bytes free on the filesystem of the blocks."),
    "disk_reserve_bytes": Family("gauge", "Free bytes that are left alone: below this, writes are refused."),
    "scrub_completed_timestamp_seconds": Family("gauge", "When every block was last verified."),
    "scrub_progress_ratio": Family("gauge", "How much of its present pass the scrubber has done."),
    "scrub_damaged_blocks": Family("gauge", "Damaged blocks of the present pass that stay so."),
    "cache_used_bytes": Family("gauge", "Bytes of files in the cache tree."),
    "cache_pinned_bytes": Family("gauge", "Bytes of files in the cache tree that are pinned."),
    "cache_filling_bytes": Family("gauge", "Bytes reserved for blocks that are being fetched."),
    "cache_blocks": Family("gauge", "Blocks in the cache tree."),
    "cache_pinned_blocks": Family("gauge", "Blocks in the cache tree that are pinned."),
    "cache_ready": Family("gauge", "Whether the cache keeps and evicts: 0 until it is reconciled."),
    "cache_capacity_bytes": Family("gauge", "Most bytes of files the cache tree may hold."),
}

# --- of the store, the same on each of its nodes: take the greatest, not the sum

_STORE: Final[Mapping[str, Family]] = {
    "queue_items": Family("gauge", "Pieces of work owed to a region and its nodes, by task.", ("region", "task")),
    "queue_in_flight_items": Family("gauge", "Of these, those that are being worked on.", ("region", "task")),
    "queue_failing_items": Family("gauge", "Of these, those whose last run failed.", ("region", "task")),
    "queue_dead_letters": Family("gauge", "Work that was given up, by task.", ("region", "task")),
    "queue_oldest_due_seconds": Family(
        "gauge", "How long the first of what is due in a region has been due: its lag.", ("region",)
    ),
    "short_contents": Family(
        "gauge", "Contents that have fewer homes than they are to have, for want of nodes; at most 1000 are counted."
    ),
    "lost_contents": Family(
        "gauge", "Contents that no node has any more, as a removal found; at most 1000 are counted."
    ),
    "region_nodes": Family("gauge", "Nodes of a region that were not removed.", ("region",)),
    "region_alive_nodes": Family("gauge", "Of these, those that show life.", ("region",)),
    "node_alive": Family("gauge", "Whether a node shows life.", ("node", "region")),
    "node_draining": Family("gauge", "Whether a node is giving up what it holds.", ("node", "region")),
    "node_beat_age_seconds": Family(
        "gauge",
        "Age of a node's last sign of life, by its clock and this one's: where it is alive, how far they are apart.",
        ("node", "region"),
    ),
}

NAMING: Final[Mapping[str, Family]] = {
    "bucket_objects": Family("gauge", "Objects of a bucket.", ("bucket",)),
    "bucket_bytes": Family("gauge", "Bytes of a bucket's objects, other versions included.", ("bucket",)),
}

COUNTED_BY_PROCESSES: Final = frozenset(_PROCESSES)
FAMILIES: Final[Mapping[str, Family]] = {**_PROCESSES, **_BLOCKS, **_NODE, **_STORE, **NAMING}
