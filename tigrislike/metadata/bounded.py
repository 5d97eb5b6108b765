"""The read mode `bounded=SECONDS` of a bucket: object records that are used again without asking the database.

`Recollection` keeps what reads of bounded buckets found, and since when each is not known to be true any more: the
moment before the read that last proved it. A record at most SECONDS old answers by itself; an older one only while the
database is out of reach. What this process writes, it forgets first, so that whoever reads through the same process
reads what was written.

What is not there (NoSuchKey and the like) is never kept, and nothing here decides a write.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

import msgspec

from .errors import InvalidArgument
from .records import AccessKey, Bucket, Found, ObjectVersion

STRONG = "strong"

MAX_BOUND_MS = 3_600_000
"""An hour: by then the bytes of what was deleted may be gone (`--reclaim-grace`)."""

_BOUNDED = re.compile(r"bounded=(\d{1,7}(?:\.\d{1,3})?)(ms|s|m|h|)", re.ASCII)
_UNIT_MS = {"ms": 1, "": 1000, "s": 1000, "m": 60_000, "h": 3_600_000}

# What an entry takes beside its texts and bytes, and what a part of a manifest does, roughly.
_ENTRY_BYTES = 1500
_PART_BYTES = 500

Place = tuple[bytes, str]
"""Bucket id and key."""


def parse_read_mode(text: str) -> str:
    """A bucket's read mode as it is kept: ``strong``, or ``bounded=10s``, in whole or decimal seconds.

    Written `bounded=` and a number with the unit ms, s, m or h, by default seconds; from 1 ms to 1 h.

    Raises:
        InvalidArgument.
    """
    if text == STRONG:
        return STRONG
    bound_ms = _bound_ms(text)
    if bound_ms != int(bound_ms) or not 1 <= bound_ms <= MAX_BOUND_MS:
        raise InvalidArgument("ReadMode", text, "A read mode is strong, or bounded=10s: from 1ms to 1h")
    whole, thousandths = divmod(int(bound_ms), 1000)
    return f"bounded={whole}{f'.{thousandths:03}'.rstrip('0').rstrip('.')}s"


@lru_cache(256)
def bound_ns(read_mode: str) -> int:
    """For how long records of a bucket with this read mode are used again; 0: not at all. So is a mode that only a
    newer release knows."""
    return int(_bound_ms(read_mode) * 1_000_000)


def _bound_ms(text: str) -> Decimal:
    """0 where it is no bound."""
    match = _BOUNDED.fullmatch(text)
    return Decimal(match[1]) * _UNIT_MS[match[2]] if match else Decimal()


@dataclass(frozen=True)
class Bounds:
    """Of reads of bounded buckets: `memory_bytes` for what is remembered, `outage_ns` is the greatest age of what
    answers while the database is away, `wait_s` how long a read waits for the database before it is taken to be."""

    memory_bytes: int = 64 * 1024**2
    outage_ns: int = 3600 * 1_000_000_000
    wait_s: float = 0.5


def elapsed_ns() -> int:
    """The clock of ages, for differences: monotonic, and it goes on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Entry(msgspec.Struct, frozen=True):
    """A version that was `true_ns` on the monotonic clock; where its bytes are too, if a read has asked for that."""

    version: ObjectVersion
    found: Found | None
    true_ns: int
    weight: int


class Reading:
    """Reads of one place that are under way. A write takes them off the list: what they find may be outdated."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Recollection:
    """Versions by bucket id, key and version id (as asked for; None: the live one), least recently used dropped first.

    Args:
        capacity: bytes that all entries may take, inline bytes and manifests included.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._places: OrderedDict[Place, dict[str | None, Entry]] = OrderedDict()
        self._under_way: dict[Place, Reading] = {}
        self.bytes = 0

    def get(self, place: Place, version_id: str | None) -> Entry | None:
        entries = self._places.get(place)
        if entries is None:
            return None
        self._places.move_to_end(place)
        return entries.get(version_id)

    @contextmanager
    def reading(self, place: Place) -> Iterator[Reading]:
        """Read `place` from the database in the block; `keep` what comes of it, with what this yields."""
        reading = self._under_way.get(place)
        if reading is None:
            reading = self._under_way[place] = Reading()
        reading.count += 1
        try:
            yield reading
        finally:
            reading.count -= 1
            if not reading.count and self._under_way.get(place) is reading:
                del self._under_way[place]

    def keep(
        self,
        place: Place,
        version_id: str | None,
        version: ObjectVersion,
        found: Found | None,
        true_ns: int,
        reading: Reading,
    ) -> Entry:
        """Remember what a read found that began at `true_ns`, unless this process has written there since.

        Where the bytes are is kept on when the version is still the same.
        """
        if self._under_way.get(place) is not reading:
            return Entry(version, found, true_ns, 0)
        entries = self._places.setdefault(place, {})
        self._places.move_to_end(place)
        former = entries.get(version_id)
        if former is not None:
            if former.true_ns > true_ns:
                return Entry(version, found, true_ns, 0)
            if found is None and former.version == version:
                found = former.found
            self.bytes -= former.weight
        entry = Entry(version, found, true_ns, _weigh(place, version, found))
        entries[version_id] = entry
        self.bytes += entry.weight
        while self.bytes > self._capacity:
            _, dropped = self._places.popitem(last=False)
            self._discount(dropped)
        return entry

    def forget(self, place: Place) -> None:
        """Forget every version at `place`, and what reads that are under way will find: something was written there."""
        self._under_way.pop(place, None)
        self._discount(self._places.pop(place, {}))

    def forget_version(self, place: Place, version_id: str | None) -> None:
        """Forget one entry, for it is not there any more."""
        entries = self._places.get(place, {})
        if (entry := entries.pop(version_id, None)) is not None:
            self.bytes -= entry.weight
            if not entries:
                del self._places[place]

    def _discount(self, entries: dict[str | None, Entry]) -> None:
        self.bytes -= sum(entry.weight for entry in entries.values())


def _weigh(place: Place, version: ObjectVersion, found: Found | None) -> int:
    texts = sum(len(k) + len(v) for part in (version.headers, version.metadata, version.tags) for k, v in part.items())
    weight = _ENTRY_BYTES + 4 * (len(place[1]) + texts)  # a text takes up to four bytes a character
    if found is not None:
        weight += len(found.inline or b"") + _PART_BYTES * len(found.parts)
    return weight


class Recalled:
    """What one read of an object is answered from in place of the database: the caller's key, bucket, and version.

    Attributes:
        age_ns: how long ago all of them were last known to be true, at most.
        bound_ns: up to which age they answer by themselves.
    """

    __slots__ = ("_access", "_bucket", "_entry", "age_ns", "bound_ns", "key", "version_id")

    def __init__(
        self,
        access: AccessKey | None,
        bucket: Bucket,
        key: str,
        version_id: str | None,
        entry: Entry,
        age_ns: int,
        bound_ns: int,
    ) -> None:
        self._access = access
        self._bucket = bucket
        self.key = key
        self.version_id = version_id
        self._entry = entry
        self.age_ns = age_ns
        self.bound_ns = bound_ns

    @property
    def fresh(self) -> bool:
        """Whether it is within the bucket's bound."""
        return self.age_ns <= self.bound_ns

    # What a read of an object asks `Metadata`. It asks for nothing but what it was recalled for.

    async def access_key(self, key_id: str) -> AccessKey | None:
        return self._access

    async def bucket(self, name: str) -> Bucket:
        return self._bucket

    async def find_object(
        self, bucket: Bucket, key: str, version_id: str | None = None, *, prove: bool = False
    ) -> Found:
        assert self._entry.found is not None
        return self._entry.found

    async def head_object(
        self, bucket: Bucket, key: str, version_id: str | None = None, *, prove: bool = False
    ) -> ObjectVersion:
        return self._entry.version
