"""Every setting of a node, in one frozen record, and where its value came from.

A value is looked for in the command line's flags, then in environment variables `TIGRISLIKE_<NAME>`, then in
the settings file (TOML), and else is the default below; the first found wins. A value that cannot be used
is refused with the setting's name, the value and its source. Sizes are written `8MiB`, `64 kB` or as a
number of bytes; durations `30s`, `5m`, `250ms` or as a number of seconds.

What this does not do: read secrets from flags (they would show in the process list), or watch the file.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from tigrislike.naming import GEOGRAPHIES, Geographies, is_region

ENVIRONMENT_PREFIX = "TIGRISLIKE_"

_SIZE_UNITS = {
    "": 1, "b": 1,
    "k": 1024, "kib": 1024, "kb": 1000,
    "m": 1024**2, "mib": 1024**2, "mb": 1000**2,
    "g": 1024**3, "gib": 1024**3, "gb": 1000**3,
    "t": 1024**4, "tib": 1024**4, "tb": 1000**4,
}  # fmt: skip
_DURATION_UNITS_S = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", re.ASCII)
_MIB = 1024 * 1024


class ConfigError(Exception):
    """A setting that cannot be used; the message names the setting, the value and the source."""


def parse_size(text: str) -> int:
    """Bytes of a human size: `8MiB` and `8M` are binary, `8MB` is decimal, a bare number is bytes."""
    number, unit = _quantity(text, _SIZE_UNITS, "a size such as 8MiB")
    size = number * unit
    if size != int(size):
        raise ValueError("a size must come to a whole number of bytes")
    return int(size)


def parse_duration(text: str) -> float:
    """Seconds of a human duration: `250ms`, `30s`, `5m`, `1h`, `7d`; a bare number is seconds."""
    number, unit = _quantity(text, _DURATION_UNITS_S, "a duration such as 30s")
    return number * unit


def _quantity(text: str, units: Mapping[str, float], expected: str) -> tuple[float, float]:
    match = _QUANTITY.fullmatch(text.strip())
    unit = units.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"expected {expected}")
    return float(match[1]), unit


def _parse_count(text: str) -> int:
    if not re.fullmatch(r"\d+", text.strip(), re.ASCII):
        raise ValueError("expected a whole number, zero or more")
    return int(text)


def _parse_switch(text: str) -> bool:
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError("expected 1 or 0")


def _parse_port(text: str) -> int:
    port = _parse_count(text)
    if port > 65535:
        raise ValueError("a port is at most 65535")
    return port


def _parse_choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return text

    return parse


def _parse_block_size(text: str) -> int:
    size = parse_size(text)
    # Blocks are verified and sent in 256 KiB chunks and aligned for huge pages and O_DIRECT.
    if size == 0 or size % (2 * _MIB):
        raise ValueError("a block is a multiple of 2MiB")
    return size


@dataclass(frozen=True, slots=True)
class Distance:
    """How far an SQLite file is made to be, for a region in a laboratory: `metadata/kv/distance.py`."""

    round_trip_s: float
    cut_while: Path | None
    timeout_s: float


def parse_distance(query: str) -> Distance | None:
    """What an SQLite URL's query says: `round-trip=80ms&cut-while=PATH&timeout=1s`, each optional; None: nothing."""
    if not query:
        return None
    given = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict")
    options = dict(given)
    if len(options) < len(given) or not options.keys() <= {"round-trip", "cut-while", "timeout"}:
        raise ValueError("the options of SQLite are round-trip, cut-while and timeout, each once")
    return Distance(
        round_trip_s=parse_duration(options.get("round-trip", "0")),
        cut_while=_path(options["cut-while"]) if "cut-while" in options else None,
        timeout_s=parse_duration(options.get("timeout", "1s")),
    )


def _parse_url(text: str) -> str:
    if not text.startswith(("sqlite:///", "fdb:///")):
        raise ValueError("expected sqlite:///FILE or fdb:///CLUSTERFILE")
    parts = urlsplit(text)
    if parts.scheme == "sqlite":
        parse_distance(parts.query)
    return text


def _parse_domain(text: str) -> str:
    domain = text.strip().lower().strip(".")
    if domain and not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", domain):
        raise ValueError("expected a host name such as s3.example.com")
    return domain


def _parse_endpoint(text: str) -> str:
    parts = urlsplit(text)
    # `port` raises ValueError where it is none.
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError("expected a URL such as http://10.0.0.1:9000")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise ValueError("expected a URL of scheme, host and port only")
    return f"{parts.scheme}://{parts.netloc}"


def _parse_collector(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError("expected a URL such as http://127.0.0.1:4318")
    if parts.query or parts.fragment or parts.username is not None:
        raise ValueError(
            "expected a URL of scheme, host, port and path; credentials go into OTEL_EXPORTER_OTLP_HEADERS"
        )
    return text.rstrip("/")


def _parse_address(text: str) -> str:
    return str(ip_address(text))


def _parse_listen(text: str) -> str:
    host, _, port = text.rpartition(":")
    if text and not host:
        raise ValueError("expected HOST:PORT")
    return f"{host}:{_parse_port(port)}" if text else ""


def _parse_capacity(text: str) -> int | None:
    if text.strip().lower() == "auto":
        return None
    size = parse_size(text)
    if size <= 0:
        raise ValueError("must be more than zero, or auto")
    return size


def _parse_region(text: str) -> str:
    if not is_region(text):
        raise ValueError("a region is lowercase letters, digits and hyphens, at most 32 of them")
    return text


def _parse_geographies(text: str) -> Geographies:
    geographies = {}
    for entry in filter(None, text.replace(" ", "").split(",")):
        name, equals, regions = entry.partition("=")
        members = tuple(regions.split("+"))
        if not equals or not all(map(is_region, (name, *members))):
            raise ValueError("expected NAME=REGION+REGION,...")
        geographies[name] = members
    return tuple(geographies.items())


def _positive(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse_positive(text: str) -> Any:
        value = parse(text)
        if value <= 0:
            raise ValueError("must be more than zero")
        return value

    return parse_positive


def _text(text: str) -> str:
    return text


def _path(text: str) -> Path:
    if not text:
        raise ValueError("expected a path")
    return Path(text)


@dataclass(frozen=True, slots=True)
class Option:
    """How one field of `Settings` is written by people.

    `name` is the word used in flags (`--header-timeout`), the environment (`TIGRISLIKE_HEADER_TIMEOUT`) and
    the file (`header-timeout`); `shown` is the default as the help prints it; a `secret` has no flag, and the flag of a
    `switch` no value.
    """

    attribute: str
    name: str
    help: str
    shown: str
    parse: Callable[[str], Any]
    secret: bool
    switch: bool

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.upper().replace("-", "_")


def _setting(
    default: Any, parse: Callable[[str], Any], help: str, *, name: str = "", shown: str = "", secret: bool = False
) -> Any:
    return field(
        default=default,
        metadata={"help": help, "parse": parse, "name": name, "shown": shown or str(default), "secret": secret},
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a node is told. Sizes are bytes, durations seconds; limits named "per worker" are per process."""

    data_dir: Path = _setting(
        Path("data"), _path, "Directory of everything this node keeps, unless a part is put elsewhere below."
    )
    metadata: str = _setting(
        "",
        _parse_url,
        "Metadata database: sqlite:///FILE (embedded, one machine) or fdb:///CLUSTERFILE (FoundationDB); an absolute "
        "path, percent-encoded where need be.",
        shown="sqlite:///DATA_DIR/metadata.db",
    )
    cache_dir: Path = _setting(
        Path(), _path, "Directory of the blocks: put it on the fastest local disk.", shown="DATA_DIR/cache"
    )
    host: str = _setting(
        "127.0.0.1", _text, "Address to listen on; 0.0.0.0 is every IPv4 address and :: every address."
    )
    port: int = _setting(9000, _parse_port, "TCP port to listen on; 0 takes a free one and prints it.")
    workers: int = _setting(
        0,
        _parse_count,
        "Front-end processes that answer requests; one agent process for background work comes on top.",
        shown="one per CPU core",
    )
    region: str = _setting(
        "local", _parse_region, "Region this node is in. Clients may sign for any region name, `auto` included."
    )
    domain: str = _setting(
        "", _parse_domain, "Host name under which BUCKET.DOMAIN addresses a bucket; path-style always works.",
        shown="path-style only",
    )  # fmt: skip
    tls_cert: Path | None = _setting(
        None, _path, "PEM file of the certificate chain: serve https only. Needs --tls-key.", shown="plain http"
    )
    tls_key: Path | None = _setting(None, _path, "PEM file of the certificate's private key.", shown="none")
    root_access_key: str = _setting(
        "", _text, "Access key id of the root user; by default made at first start.", secret=True
    )
    root_secret_key: str = _setting(
        "", _text, "Secret key of the root user; by default made at first start.", secret=True
    )
    master_key: str = _setting(
        "", _text, "Master key itself (base64 of 32 bytes), which encrypts secrets at rest.", secret=True
    )
    master_key_file: Path | None = _setting(
        None,
        _path,
        "File with the master key, which encrypts secrets at rest. It must be given (or TIGRISLIKE_MASTER_KEY) "
        "with FoundationDB; beside SQLite it is made at first start, readable by its owner only.",
        shown="master.key beside the SQLite file",
    )
    block_size: int = _setting(
        8 * _MIB, _parse_block_size, "Size of the block files that objects are cut into.", shown="8MiB"
    )
    inline_bytes: int = _setting(
        16 * 1024,
        parse_size,
        "Objects up to this size are kept in the metadata database beside their record, which saves a file.",
        name="inline-size",
        shown="16KiB",
    )
    reserve_bytes: int = _setting(
        1024 * _MIB,
        parse_size,
        "Free space to leave on the cache directory's disk: below it writes answer 503 SlowDown.",
        name="disk-reserve",
        shown="1GiB",
    )
    cache_bytes: int | None = _setting(
        None,
        _parse_capacity,
        "Most bytes of evictable blocks to keep in the cache directory; `auto`: as the disk has room for beside "
        "--disk-reserve. Blocks that only this node holds are not counted: they are never evicted.",
        name="cache-size",
        shown="auto",
    )
    cache_policy: str = _setting(
        "s3fifo",
        _parse_choice("s3fifo", "fifo", "lru", "sieve"),
        "Which blocks to evict when the cache is full. s3fifo survives scans: what is read once does not push out "
        "what is read again and again.",
    )
    fill_bytes: int = _setting(
        128 * _MIB,
        _positive(parse_size),
        "Memory a worker gives to blocks on their way into the cache; beyond it reads pass through unkept.",
        name="fill-memory",
        shown="128MiB",
    )
    fill_timeout_s: float = _setting(
        10.0,
        _positive(parse_duration),
        "How long a fetch of a block may make no progress before it fails.",
        name="fill-timeout",
        shown="10s",
    )
    verify: Literal["once", "always"] = _setting(
        "once",
        _parse_choice("once", "always"),
        "When bytes are compared with their checksums: `once` before the first read since start or fill (and by the "
        "scrubber), or `always`, at every read, which costs the copying of every byte.",
    )
    scrub_interval_s: float = _setting(
        14 * 86400.0,
        parse_duration,
        "How often every block on the disk is read and verified in the background; 0 is never.",
        name="scrub-interval",
        shown="14d",
    )
    scrub_rate: int = _setting(
        64 * _MIB, _positive(parse_size), "Bytes a second that background verification reads at most.", shown="64MiB"
    )
    reclaim_grace_s: float = _setting(
        3600.0,
        parse_duration,
        "How long the bytes of a deleted or overwritten object are kept; longer than the longest download.",
        name="reclaim-grace",
        shown="1h",
    )
    replicate_after: int = _setting(
        3,
        _positive(_parse_count),
        "Reads of an object within an hour, in a region that only has copies of it, after which it gets a durable "
        "replica there.",
    )
    replica_decay_s: float = _setting(
        7 * 86400.0,
        _positive(parse_duration),
        "How long a replica that was made because of reads stays without any.",
        name="replica-decay",
        shown="7d",
    )
    replication_rate: int = _setting(
        0, parse_size, "Bytes a second that a node fetches for replicas at most; 0 is no limit.", shown="no limit"
    )
    mirror_rate: int = _setting(
        0,
        parse_size,
        "Bytes a second that a node writes at most to shadows that are written through to; 0 is no limit.",
        shown="no limit",
    )
    repair_after_s: float = _setting(
        900.0,
        _positive(parse_duration),
        "How long a node may show no life before what it held is copied again from other homes.",
        name="repair-after",
        shown="15m",
    )
    allow_private_origins: bool = _setting(
        False,
        _parse_switch,
        "Let origins be at loopback, private and link-local addresses, which otherwise may not be connected to.",
        shown="no",
    )
    origin_timeout_s: float = _setting(
        30.0,
        _positive(parse_duration),
        "How long a request to an origin may take, tried again included; one that carries bytes has the time that they "
        "take at --origin-minimum on top.",
        name="origin-timeout",
        shown="30s",
    )
    origin_silence_s: float = _setting(
        5.0,
        _positive(parse_duration),
        "How long an origin may be silent, or behind --origin-minimum, before a read is tried again.",
        name="origin-silence",
        shown="5s",
    )
    origin_minimum_bytes: int = _setting(
        64 * 1024,
        _positive(parse_size),
        "Bytes a second that are expected of an origin at least, for each request.",
        name="origin-minimum",
        shown="64KiB",
    )
    origin_attempts: int = _setting(
        4,
        _positive(_parse_count),
        "How often a request to an origin is tried at most; fewer times where many requests fail.",
    )
    origin_concurrency: int = _setting(
        64, _positive(_parse_count), "Requests to one origin in flight in a process; further ones wait."
    )
    dead_after_s: float = _setting(
        12.0,
        _positive(parse_duration),
        "How long a node may miss its beats (one every two seconds) before others stop asking it.",
        name="dead-after",
        shown="12s",
    )
    max_clock_skew_s: float = _setting(
        300.0,
        _positive(parse_duration),
        "How far this machine's clock may be from other nodes': with more, the node refuses to start.",
        name="max-clock-skew",
        shown="5m",
    )
    geographies: Geographies = _setting(
        GEOGRAPHIES,
        _parse_geographies,
        "Names for several regions in buckets' policies: NAME=REGION+REGION,...",
        shown="usa=sjc+ord+iad,eur=ams+fra",
    )
    sweep_interval_s: float = _setting(
        300.0,
        _positive(parse_duration),
        "How often the agent looks for what crashed uploads left behind (also once at start).",
        name="sweep-interval",
        shown="5m",
    )
    bounded_memory: int = _setting(
        64 * _MIB,
        parse_size,
        "Memory a worker gives to records that reads of bounded buckets use again, small objects' bytes included.",
        shown="64MiB",
    )
    bounded_outage_s: float = _setting(
        3600.0,
        parse_duration,
        "Greatest age of a record that answers reads of bounded buckets while the database is out of reach.",
        name="bounded-outage",
        shown="1h",
    )
    bounded_wait_s: float = _setting(
        0.5,
        _positive(parse_duration),
        "How long a read of a bounded bucket, whose answer is known, waits for the database before it is taken to be "
        "out of reach.",
        name="bounded-wait",
        shown="500ms",
    )
    queue_workers: int = _setting(
        160,
        _positive(_parse_count),
        "Pieces of work owed that the agent does at a time, of all kinds; each kind has a bound of its own below this, "
        "and one place is kept for each.",
    )
    queue_item_lease_s: float = _setting(
        30.0,
        parse_duration,
        "How long a piece of work stays with a node that died before others take it up; at least 3s.",
        name="queue-item-lease",
        shown="30s",
    )
    queue_pointer_lease_s: float = _setting(
        5.0,
        parse_duration,
        "How long a node may take to choose its work from a zone of the queue before others may; longer than the "
        "slowest two commits.",
        name="queue-pointer-lease",
        shown="5s",
    )
    queue_poll_s: float = _setting(
        0.1,
        _positive(parse_duration),
        "How soon a zone of the queue that had work a moment ago is looked at again.",
        name="queue-poll",
        shown="100ms",
    )
    queue_scan_s: float = _setting(
        1.0,
        _positive(parse_duration),
        "How often an idle agent looks for work by itself; otherwise it is woken.",
        name="queue-scan",
        shown="1s",
    )
    queue_batch: int = _setting(
        64,
        _positive(_parse_count),
        "Most pieces of work that are taken from a zone of the queue at once; at most 100.",
    )
    queue_back_off_s: float = _setting(
        1.0,
        _positive(parse_duration),
        "How long a piece of work waits after its first failure; then twice as long each time.",
        name="queue-back-off",
        shown="1s",
    )
    queue_max_back_off_s: float = _setting(
        60.0,
        _positive(parse_duration),
        "How long it waits at most.",
        name="queue-max-back-off",
        shown="1m",
    )
    queue_attempts: int = _setting(
        10, _positive(_parse_count), "Failures in a row after which it is put aside as a dead letter."
    )
    queue_min_inactive_s: float = _setting(
        60.0,
        parse_duration,
        "How long an empty zone of the queue is kept: one that is used every now and then is not made anew each time.",
        name="queue-min-inactive",
        shown="1m",
    )
    max_connections: int = _setting(
        4096,
        _positive(_parse_count),
        "Connections a worker keeps open; further ones are answered 503 SlowDown and closed.",
    )
    max_requests: int = _setting(
        1024, _positive(_parse_count), "Requests in flight in a worker, over all keys; beyond it 503 SlowDown."
    )
    max_requests_per_key: int = _setting(
        512, _positive(_parse_count), "Requests in flight in a worker for one access key; beyond it 503 SlowDown."
    )
    max_peer_requests: int = _setting(
        256,
        _positive(_parse_count),
        "Requests of other nodes in flight in a worker, beside those of clients; beyond it 503.",
    )
    max_body_memory_bytes: int = _setting(
        512 * _MIB,
        _positive(parse_size),
        "Memory a worker gives to request bodies on their way to disk; beyond it 503 SlowDown.",
        name="max-body-memory",
        shown="512MiB",
    )
    max_header_bytes: int = _setting(
        16 * 1024,
        _positive(parse_size),
        "Request line and headers together; larger ones answer RequestHeaderSectionTooLarge. S3 allows 8 KiB.",
        name="max-header-size",
        shown="16KiB",
    )
    header_timeout_s: float = _setting(
        10.0,
        _positive(parse_duration),
        "Time for a request's headers to arrive, from their first byte (and for a TLS handshake).",
        name="header-timeout",
        shown="10s",
    )
    body_timeout_s: float = _setting(
        20.0,
        _positive(parse_duration),
        "Window in which at least --body-minimum bytes of a request body must arrive, or of a response be taken.",
        name="body-timeout",
        shown="20s",
    )
    body_minimum_bytes: int = _setting(
        16 * 1024,
        _positive(parse_size),
        "Least progress of a body in each --body-timeout; slower ones answer RequestTimeout and are closed.",
        name="body-minimum",
        shown="16KiB",
    )
    idle_timeout_s: float = _setting(
        75.0,
        _positive(parse_duration),
        "How long a connection without a request is kept open.",
        name="idle-timeout",
        shown="75s",
    )
    drain_timeout_s: float = _setting(
        30.0,
        _positive(parse_duration),
        "How long requests in flight may go on after SIGTERM; then they are cut.",
        name="drain-timeout",
        shown="30s",
    )
    advertise: str = _setting(
        "",
        _parse_endpoint,
        "URL at which other nodes reach this one, if it is not that of --host and --port.",
        shown="--host and --port; this machine's primary address where --host is every address",
    )
    peer_ca: Path | None = _setting(
        None,
        _path,
        "PEM file of the authorities to trust for other nodes' https endpoints, and no others.",
        shown="those of the system",
    )
    peer_source_address: str = _setting(
        "",
        _parse_address,
        "Address of this machine to reach other nodes from, where it has several.",
        shown="as the system routes",
    )
    peer_connect_timeout_s: float = _setting(
        2.0,
        _positive(parse_duration),
        "How long connecting to another node may take.",
        name="peer-connect-timeout",
        shown="2s",
    )
    admin_listen: str = _setting(
        "",
        _parse_listen,
        "HOST:PORT of a listener of its own for the admin API and the console, which are then not served beside S3; "
        "port 0 takes a free one.",
        shown="both are served beside S3, on the service's own host name",
    )
    public_endpoint: str = _setting(
        "",
        _parse_endpoint,
        "URL by which clients reach S3: links that the console makes begin with it.",
        shown="the console's own, or with --admin-listen that by which other nodes reach this one",
    )
    console_session_s: float = _setting(
        12 * 3600.0,
        _positive(parse_duration),
        "How long somebody who signed in to the console stays signed in.",
        name="console-session",
        shown="12h",
    )
    metrics_auth: Path | None = _setting(
        None,
        _path,
        "File with a token, or several, one a line: /_tigrislike/metrics answers only who sends one as a bearer token, "
        "and tells of buckets by name.",
        shown="anybody may read the metrics, which name no bucket",
    )
    audit_retention_s: float = _setting(
        90 * 86400.0,
        _positive(parse_duration),
        "How long the audit log keeps what operators changed, and by whom.",
        name="audit-retention",
        shown="90d",
    )
    slow_request_s: float = _setting(
        1.0,
        parse_duration,
        "A request that takes this long is among the slow requests that the admin API shows; 0 shows none.",
        name="slow-request",
        shown="1s",
    )
    server_log_interval_s: float = _setting(
        300.0,
        _positive(parse_duration),
        "How often the log of a bucket's requests (S3's server access logging) is written to its target bucket.",
        name="server-log-interval",
        shown="5m",
    )
    server_log_bytes: int = _setting(
        16 * _MIB,
        _positive(parse_size),
        "A log of a bucket's requests of this size is written to its target bucket at once.",
        name="server-log-size",
        shown="16MiB",
    )
    server_log_spool_bytes: int = _setting(
        64 * _MIB,
        _positive(parse_size),
        "What of the log of one bucket's requests may lie on this node's disk, not yet written to its target bucket; "
        "what comes beyond it is dropped and counted.",
        name="server-log-spool",
        shown="64MiB",
    )
    otel_endpoint: str = _setting(
        "",
        _parse_collector,
        "URL of an OpenTelemetry collector (OTLP over HTTP) that gets traces of requests and of work owed; needs the "
        "packages of tigrislike[otel].",
        shown="no traces",
    )
    otel_trust_callers: bool = _setting(
        False,
        _parse_switch,
        "Continue the traces that callers have begun (traceparent), for all callers are trusted; else they are linked.",
        shown="no",
    )
    access_log: str = _setting(
        "-", _text, "Where one JSON line per request goes: `-` is standard error, else a file, or `off`."
    )
    log_format: str = _setting(
        "text",
        _parse_choice("text", "json"),
        "How the node's own messages are written to standard error: `text`, or `json`, an object a line, as the access "
        "log is.",
    )
    log_level: str = _setting(
        "info", _parse_choice("debug", "info", "warning", "error"), "Least severe of the node's own messages to print."
    )

    def __post_init__(self) -> None:
        """Fill in what follows from other settings, so that a reader never has to know the rule."""
        derived: dict[str, Any] = {}
        if not self.metadata:
            derived["metadata"] = f"sqlite://{quote(str(self.data_dir.absolute() / 'metadata.db'))}"
        if self.cache_dir == Path():
            derived["cache_dir"] = self.data_dir / "cache"
        if not self.workers:
            derived["workers"] = len(os.sched_getaffinity(0))
        for attribute, value in derived.items():
            object.__setattr__(self, attribute, value)

    @property
    def sqlite_path(self) -> Path | None:
        """The SQLite file, or None when the database is FoundationDB."""
        parts = urlsplit(self.metadata)
        return Path(unquote(parts.path)) if parts.scheme == "sqlite" else None

    @property
    def master_key_path(self) -> Path | None:
        """The file the master key is read from (and, beside SQLite, made in); None when none applies."""
        if self.master_key_file is not None:
            return self.master_key_file
        database = self.sqlite_path
        return database.with_name("master.key") if database is not None else None


def options() -> Iterator[Option]:
    """Every setting, in the order of the help page."""
    for item in fields(Settings):
        yield Option(
            attribute=item.name,
            name=item.metadata["name"] or item.name.replace("_", "-"),
            help=item.metadata["help"],
            shown=item.metadata["shown"],
            parse=item.metadata["parse"],
            secret=item.metadata["secret"],
            switch=item.metadata["parse"] is _parse_switch,
        )


def load_settings(
    flags: Mapping[str, str | None],
    environment: Mapping[str, str],
    file: Path | None = None,
) -> Settings:
    """The settings of a node from its three sources.

    Args:
        flags: attribute of `Settings` -> text of the flag; None or absent where it was not given.
        environment: usually `os.environ`; an empty variable counts as absent, as container tools set them.
        file: a TOML file of `name = value` pairs, or None.

    Raises:
        ConfigError: unreadable file, unknown name in the file, unusable value, or values that do not go together.
    """
    from_file = _read_file(file) if file is not None else {}
    values: dict[str, Any] = {}
    for option in options():
        source, text = f"flag --{option.name}", flags.get(option.attribute)
        if text is None:
            source, text = f"environment variable {option.variable}", environment.get(option.variable) or None
        if text is None and option.name in from_file:
            source, text = f"file {file}", from_file[option.name]
        if text is None:
            continue
        try:
            values[option.attribute] = option.parse(text)
        except ValueError as error:
            shown = "(not shown)" if option.secret else repr(text)
            raise ConfigError(f"setting {option.name}: {shown} from the {source}: {error}") from None
    settings = Settings(**values)
    _check_together(settings)
    return settings


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each `TIGRISLIKE_*` variable that is no setting: most likely a slip of the pen.

    They are not refused: an orchestrator may set such names by itself (Kubernetes: `<SERVICE>_SERVICE_HOST`).
    """
    known = [option.variable for option in options()]
    return [
        f"environment variable {name} is no setting{_suggestion(name, known)}"
        for name in sorted(environment)
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known
    ]


def _read_file(path: Path) -> dict[str, str]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"settings file {path}: {error}") from None
    known = [option.name for option in options()]
    values = {}
    for raw_name, value in document.items():
        name = raw_name.replace("_", "-")
        if name not in known:
            raise ConfigError(f"settings file {path}: {raw_name} is no setting{_suggestion(name, known)}")
        if not isinstance(value, str | int | float):
            raise ConfigError(f"setting {name}: {value!r} from the file {path}: expected a text or a number")
        values[name] = str(value)
    return values


def _suggestion(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _check_together(settings: Settings) -> None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        given, missing = ("tls-cert", "tls-key") if settings.tls_cert else ("tls-key", "tls-cert")
        raise ConfigError(f"setting {given} is given without {missing}: https needs both")
    if bool(settings.root_access_key) != bool(settings.root_secret_key):
        raise ConfigError(
            "settings root-access-key and root-secret-key (TIGRISLIKE_ROOT_ACCESS_KEY, TIGRISLIKE_ROOT_SECRET_KEY) "
            "must be given together"
        )
    if settings.master_key and settings.master_key_file is not None:
        raise ConfigError("settings master-key and master-key-file are both given: which one holds?")
    if settings.master_key_path is None and not settings.master_key:
        raise ConfigError(
            "setting master-key-file (or the environment variable TIGRISLIKE_MASTER_KEY) must be given with "
            "FoundationDB, so that every node has the same one"
        )
    _check_queue(settings)
    if settings.otel_endpoint and not _has_opentelemetry():
        raise ConfigError("setting otel-endpoint needs OpenTelemetry: install tigrislike[otel]")
    if settings.inline_bytes > 90_000:
        # One database value holds at most 100,000 bytes on every engine.
        raise ConfigError(f"setting inline-size: {settings.inline_bytes} bytes: at most 90000 fit beside a record")


def _has_opentelemetry() -> bool:
    return all(find_spec(name) is not None for name in ("opentelemetry", "google.protobuf", "requests"))


def _check_queue(settings: Settings) -> None:
    if settings.queue_item_lease_s < 3:
        raise ConfigError(
            f"setting queue-item-lease: {settings.queue_item_lease_s:g} s: at least 3s, for it is extended every third"
        )
    if settings.queue_poll_s >= settings.queue_pointer_lease_s:
        raise ConfigError("setting queue-poll must be less than queue-pointer-lease")
    if settings.queue_poll_s > settings.queue_scan_s:
        raise ConfigError("setting queue-poll must not be more than queue-scan")
    if settings.queue_back_off_s > settings.queue_max_back_off_s:
        raise ConfigError("setting queue-back-off must not be more than queue-max-back-off")
    if settings.queue_batch > 100:
        # A claim reads and writes so many items in one transaction, and looks at three times as many.
        raise ConfigError(f"setting queue-batch: {settings.queue_batch}: at most 100 fit into one claim")
