"""The keyspace: where each record lies.

Keys are FoundationDB tuples (tuple layer encoding, so any FoundationDB tool can read them) under one configurable
prefix. The packers here are written out by hand because the generic packer costs several times a whole SQLite read;
the tests hold them equal to ``fdb.tuple``. Strings sort by their UTF-8 bytes, which is the order S3 lists keys in.

Stamps are stored inverted (``~stamp``, a negative tuple integer), so the newest version of a key sorts first.

This module packs and unpacks; it reads nothing and knows no record.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

MAX_KEY_BYTES = 1024
"""S3's limit on an object key, in bytes of UTF-8."""

MIN_STAMP = 1 << 56
MAX_STAMP = (1 << 63) - 1
"""Stamps outside this range are never given out (the lower bound is in 1972); inside it all pack to 9 bytes."""

_INVERTED_BASE = (1 << 64) - 2
_STAMP_BYTES = 9


def escape(data: bytes) -> bytes:
    """The body of a tuple-layer string: NUL bytes are followed by 0xff, so that a bare NUL ends it."""
    return data.replace(b"\x00", b"\x00\xff") if b"\x00" in data else data


def unescape(data: bytes) -> bytes:
    return data.replace(b"\x00\xff", b"\x00") if b"\x00" in data else data


def pack_text(text: str) -> bytes:
    """`text` as a tuple element. Raises UnicodeEncodeError for lone surrogates."""
    return b"\x02" + escape(text.encode()) + b"\x00"


def pack_bytes(data: bytes) -> bytes:
    """`data` as a tuple element."""
    return b"\x01" + escape(data) + b"\x00"


def pack_int(number: int) -> bytes:
    """A non-negative integer below 2**64 - 1 as a tuple element."""
    if number == 0:
        return b"\x14"
    size = (number.bit_length() + 7) >> 3
    return bytes((0x14 + size,)) + number.to_bytes(size, "big")


def pack_stamp(stamp: int) -> bytes:
    """``~stamp`` as a tuple element: newer stamps sort first. `stamp` is in MIN_STAMP..MAX_STAMP."""
    return b"\x0c" + (_INVERTED_BASE - stamp).to_bytes(8, "big")


def unpack_stamp(packed: bytes) -> int:
    """The stamp in the last 9 bytes of `packed`."""
    return _INVERTED_BASE - int.from_bytes(packed[-8:], "big")


def unpack_bytes(packed: bytes, start: int = 0) -> tuple[bytes, int]:
    """The byte or text element at `start`, and where the next one begins."""
    end = packed.index(b"\x00", start + 1)
    while packed[end + 1 : end + 2] == b"\xff":
        end = packed.index(b"\x00", end + 2)
    return unescape(packed[start + 1 : end]), end + 1


def unpack_text(packed: bytes, start: int = 0) -> tuple[str, int]:
    """The text element at `start`, and where the next one begins."""
    data, end = unpack_bytes(packed, start)
    return data.decode(), end


def unpack_int(packed: bytes, start: int = 0) -> tuple[int, int]:
    """The non-negative integer element at `start`, and where the next one begins."""
    end = start + 1 + packed[start] - 0x14
    return int.from_bytes(packed[start + 1 : end], "big"), end


def strinc(key: bytes) -> bytes:
    """The first key after every key that starts with `key` (which must not consist of 0xff bytes only)."""
    stripped = key.rstrip(b"\xff")
    return stripped[:-1] + bytes((stripped[-1] + 1,))


def subspace(prefix: bytes) -> tuple[bytes, bytes]:
    """Begin and end of the keys that extend `prefix` by further tuple elements (never `prefix` itself)."""
    return prefix + b"\x00", prefix + b"\xff"


class TextKeys:
    """A family of keys ``prefix, text [, more]``, with the ranges that listings need."""

    __slots__ = ("_skip", "begin", "end", "prefix")

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        self._skip = len(prefix) + 1
        self.begin = prefix + b"\x00"
        self.end = prefix + b"\xff"

    def key(self, text: str) -> bytes:
        return self.prefix + b"\x02" + escape(text.encode()) + b"\x00"

    def text(self, packed: bytes) -> str:
        """The text of a row that has nothing after it."""
        body = packed[self._skip : -1]
        if b"\x00" in body:
            body = body.replace(b"\x00\xff", b"\x00")
        return body.decode()

    def texts(self, rows: Sequence[tuple[bytes, bytes]]) -> list[str]:
        """The texts of many such rows."""
        skip = self._skip
        bodies = [key[skip:-1] for key, _ in rows]
        if b"\x00" in b"".join(bodies):
            return [self.text(key) for key, _ in rows]
        return [body.decode() for body in bodies]

    def text_and_rest(self, packed: bytes) -> tuple[str, bytes]:
        """The text of a row, and the packed elements after it."""
        text, end = unpack_text(packed, self._skip - 1)
        return text, packed[end:]

    def at_least(self, text: str) -> bytes:
        """The first key whose text starts with `text` or sorts after it."""
        return self.prefix + b"\x02" + escape(text.encode())

    def after(self, text: str) -> bytes:
        """The first key whose text sorts after `text`: past everything that belongs to `text` itself."""
        return self.key(text) + b"\xff"

    def after_prefix(self, text: str) -> bytes:
        """The first key past every text that starts with `text`; the end of the family for the empty text."""
        return strinc(self.at_least(text)) if text else self.end


class BucketKeys:
    """The key families of one bucket, packed once."""

    __slots__ = ("count", "current", "inline", "needed", "null", "upload", "version", "whiteout")

    def __init__(self, space: Keyspace, bucket_id: bytes) -> None:
        packed = pack_bytes(bucket_id)
        self.current = TextKeys(space.current + packed)
        self.version = TextKeys(space.version + packed)
        self.null = TextKeys(space.null + packed)
        self.inline = TextKeys(space.inline + packed)
        self.upload = TextKeys(space.upload + packed)
        self.whiteout = TextKeys(space.whiteout + packed)
        self.needed = TextKeys(space.needed + packed)
        self.count = space.count + packed


class Keyspace:
    """Every key family under one `prefix` of raw bytes. Attributes named after a family are its packed prefix."""

    def __init__(self, prefix: bytes = b"") -> None:
        self.prefix = prefix

        def family(name: str) -> bytes:
            return prefix + pack_text(name)

        self.current = family("current")
        self.version = family("version")
        self.null = family("null")
        self.inline = family("inline")
        self.upload = family("upload")
        self.whiteout = family("whiteout")
        self.needed = family("needed")
        self.count = family("count")
        self.contents = family("content")
        self.parts = family("part")
        self.refs = family("ref")
        self.blobs = family("blob")
        self.homes = family("home")
        self.nodes = family("node")
        self.beats = family("beat")
        self.demands = family("demand")
        self.repolicies = family("repolicy")
        self.shorts = family("short")
        self.migrations = family("migration")
        self.configs = family("config")
        self.elsewheres = family("elsewhere")
        self.origins = family("origin")
        self.bucket = TextKeys(family("bucket"))
        self.loggings = family("logging")
        self.inventories = family("inventory")
        self.owners = family("owner")
        meta = family("meta")
        self.cluster = meta + pack_text("cluster")
        self.master = meta + pack_text("master")
        self.root = meta + pack_text("root")
        access = family("access")
        self.access = TextKeys(access + pack_text("key"))
        self.access_of_owner = access + pack_text("owner")
        self.access_of_bucket = access + pack_text("bucket")
        queue = family("queue")
        self.queue_items = queue + pack_text("item")
        self.queue_due = queue + pack_text("due")
        self.queue_zones = queue + pack_text("zone")
        self.queue_pointers = queue + pack_text("pointer")
        self.queue_tops = queue + pack_text("top")
        self.queue_bells = queue + pack_text("bell")
        self.queue_pauses = queue + pack_text("pause")
        self.queue_counts = queue + pack_text("count")
        self.queue_dead = queue + pack_text("dead")
        self.queue_failing = queue + pack_text("failing")
        self.queue_sums = queue + pack_text("sum")
        self.queue_samples = queue + pack_text("sample")
        self.audits = family("audit")
        self.histories = family("history")
        self.in_bucket = functools.lru_cache(4096)(functools.partial(BucketKeys, self))

    # -- contents and blobs (ids are 16 random bytes)

    def content(self, content_id: bytes) -> bytes:
        return self.contents + pack_bytes(content_id)

    def part_range(self, content_id: bytes) -> tuple[bytes, bytes]:
        return subspace(self.parts + pack_bytes(content_id))

    def part(self, content_id: bytes, number: int) -> bytes:
        return self.parts + pack_bytes(content_id) + pack_int(number)

    def ref_range(self, content_id: bytes) -> tuple[bytes, bytes]:
        return subspace(self.refs + pack_bytes(content_id))

    def ref(self, content_id: bytes, referrer: bytes) -> bytes:
        return self.refs + pack_bytes(content_id) + pack_bytes(referrer)

    def blob(self, blob_id: bytes) -> bytes:
        return self.blobs + pack_bytes(blob_id)

    def home(self, node_id: bytes, content_id: bytes) -> bytes:
        return self.homes + pack_bytes(node_id) + pack_bytes(content_id)

    def homes_of(self, node_id: bytes) -> tuple[bytes, bytes]:
        return subspace(self.homes + pack_bytes(node_id))

    # -- origins

    def elsewhere(self, blob_id: bytes) -> bytes:
        return self.elsewheres + pack_bytes(blob_id)

    def origin(self, origin_id: bytes) -> bytes:
        return self.origins + pack_bytes(origin_id)

    # -- nodes and regions

    def node(self, node_id: bytes) -> bytes:
        return self.nodes + pack_bytes(node_id)

    def beat(self, node_id: bytes) -> bytes:
        return self.beats + pack_bytes(node_id)

    def demand(self, period: int, region: str, content_id: bytes) -> bytes:
        return self.demands + pack_int(period) + pack_text(region) + pack_bytes(content_id)

    def demand_before(self, period: int) -> tuple[bytes, bytes]:
        """The demand of every period before `period`."""
        return self.demands + b"\x00", self.demands + pack_int(period)

    # -- buckets

    def short(self, content_id: bytes) -> bytes:
        return self.shorts + pack_bytes(content_id)

    def repolicy(self, bucket_id: bytes) -> bytes:
        return self.repolicies + pack_bytes(bucket_id)

    def migration(self, bucket_id: bytes) -> bytes:
        return self.migrations + pack_bytes(bucket_id)

    def logging(self, bucket_id: bytes) -> bytes:
        return self.loggings + pack_bytes(bucket_id)

    def inventories_of(self, bucket_id: bytes) -> bytes:
        return self.inventories + pack_bytes(bucket_id)

    def inventory(self, bucket_id: bytes, inventory_id: str) -> bytes:
        return self.inventories + pack_bytes(bucket_id) + pack_text(inventory_id)

    def config(self, bucket_id: bytes, kind: str) -> bytes:
        return self.configs + pack_bytes(bucket_id) + pack_text(kind)

    def config_range(self, bucket_id: bytes) -> tuple[bytes, bytes]:
        return subspace(self.configs + pack_bytes(bucket_id))

    def owned(self, owner: str) -> TextKeys:
        """The names of an owner's buckets."""
        return TextKeys(self.owners + pack_text(owner))

    def access_owned(self, owner: str) -> TextKeys:
        """The key ids of an owner's access keys."""
        return TextKeys(self.access_of_owner + pack_text(owner))

    def access_scoped(self, bucket_name: str) -> TextKeys:
        """The key ids of the access keys scoped to a bucket."""
        return TextKeys(self.access_of_bucket + pack_text(bucket_name))

    # -- the queue (a zone and an item id are byte strings)

    def queue_item(self, zone: bytes, item_id: bytes) -> bytes:
        return self.queue_items + pack_bytes(zone) + pack_bytes(item_id)

    def queue_item_range(self, zone: bytes) -> tuple[bytes, bytes]:
        return subspace(self.queue_items + pack_bytes(zone))

    def queue_due_range(self, zone: bytes, priority: int) -> tuple[bytes, bytes]:
        return subspace(self.queue_due + pack_bytes(zone) + pack_int(priority))

    def queue_due_key(self, zone: bytes, priority: int, vesting_ns: int, enqueued_ns: int, item_id: bytes) -> bytes:
        return b"".join(
            (
                self.queue_due,
                pack_bytes(zone),
                pack_int(priority),
                pack_int(vesting_ns),
                pack_int(enqueued_ns),
                pack_bytes(item_id),
            )
        )

    def queue_due_until(self, zone: bytes, priority: int, vesting_ns: int) -> bytes:
        """The end of the items of `zone` and `priority` that vest at `vesting_ns` or before."""
        return self.queue_due + pack_bytes(zone) + pack_int(priority) + pack_int(vesting_ns) + b"\xff"

    def queue_of(self, family: bytes, destination: bytes) -> tuple[bytes, bytes]:
        """The rows of a family whose keys begin with a zone, of all zones of a destination: the packed zone, but for
        what ends it."""
        begin = family + pack_bytes(destination)[:-1]
        return begin, strinc(begin)

    def queue_zone(self, zone: bytes) -> bytes:
        return self.queue_zones + pack_bytes(zone)

    def queue_pointer(self, zone: bytes) -> bytes:
        return self.queue_pointers + pack_bytes(zone)

    def queue_top_range(self, destination: bytes) -> tuple[bytes, bytes]:
        return subspace(self.queue_tops + pack_bytes(destination))

    def queue_top(self, destination: bytes, vesting_ns: int, zone: bytes) -> bytes:
        return self.queue_tops + pack_bytes(destination) + pack_int(vesting_ns) + pack_bytes(zone)

    def queue_top_until(self, destination: bytes, vesting_ns: int) -> bytes:
        """The end of the pointers to `destination` that vest at `vesting_ns` or before."""
        return self.queue_tops + pack_bytes(destination) + pack_int(vesting_ns) + b"\xff"

    def queue_bell(self, destination: bytes) -> bytes:
        return self.queue_bells + pack_bytes(destination)

    def queue_pause_range(self, kind: str) -> tuple[bytes, bytes]:
        return subspace(self.queue_pauses + pack_text(kind))

    def queue_pause(self, kind: str, name: bytes) -> bytes:
        return self.queue_pauses + pack_text(kind) + pack_bytes(name)

    def queue_count_range(self, zone: bytes) -> tuple[bytes, bytes]:
        return subspace(self.queue_counts + pack_bytes(zone))

    def queue_count(self, zone: bytes, task: str, counter: str) -> bytes:
        return self.queue_counts + pack_bytes(zone) + pack_text(task) + pack_text(counter)

    def queue_sum_range(self, destination: bytes) -> tuple[bytes, bytes]:
        return subspace(self.queue_sums + pack_bytes(destination))

    def queue_sum(self, destination: bytes, task: str, counter: str, shard: int) -> bytes:
        return self.queue_sums + pack_bytes(destination) + pack_text(task) + pack_text(counter) + pack_int(shard)

    def queue_sample(self, at_ns: int, destination: bytes) -> bytes:
        return self.queue_samples + pack_stamp(at_ns) + pack_bytes(destination)

    def queue_samples_before(self, at_ns: int) -> tuple[bytes, bytes]:
        """The samples taken at `at_ns` or before, the newest first."""
        return self.queue_samples + pack_stamp(at_ns), self.queue_samples + b"\xff"

    def queue_failing_range(self, zone: bytes) -> tuple[bytes, bytes]:
        return subspace(self.queue_failing + pack_bytes(zone))

    def queue_failing_key(self, zone: bytes, enqueued_ns: int, item_id: bytes) -> bytes:
        return self.queue_failing + pack_bytes(zone) + pack_int(enqueued_ns) + pack_bytes(item_id)

    # -- what nodes counted

    def history(self, step_s: int, slot: int, node_id: bytes) -> bytes:
        return self.histories + pack_int(step_s) + pack_int(slot) + pack_bytes(node_id)

    def history_range(self, step_s: int, first: int, end: int) -> tuple[bytes, bytes]:
        """The rows of the slots from `first` up to, not including, `end`."""
        prefix = self.histories + pack_int(step_s)
        return prefix + pack_int(first), prefix + pack_int(end)

    # -- what operators did

    def audit(self, at_ns: int, audit_id: bytes) -> bytes:
        return self.audits + pack_stamp(at_ns) + pack_bytes(audit_id)

    def audits_before(self, at_ns: int) -> tuple[bytes, bytes]:
        """What was done at `at_ns` or before, the newest first."""
        return self.audits + pack_stamp(at_ns), self.audits + b"\xff"

    def queue_dead_range(self, zone: bytes) -> tuple[bytes, bytes]:
        return subspace(self.queue_dead + pack_bytes(zone))

    def queue_dead_item(self, zone: bytes, item_id: bytes) -> bytes:
        return self.queue_dead + pack_bytes(zone) + pack_bytes(item_id)
