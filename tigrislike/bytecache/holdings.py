"""What the cache holds, as jobs within one transaction of the index: each changes files and their rows together.

Names in `cache/` and `pins/` change only in such jobs, that is, while the process has its turn at the index. What fails
half-way leaves rows that claim too much, never too little.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TypeVar, get_args

from tigrislike.bytecache.errors import PinsFull
from tigrislike.bytecache.filesystem import FileSystem
from tigrislike.bytecache.index import FILLING, LEAVING, PINNED, Index, Rows
from tigrislike.bytecache.layout import Layout, parse_blob_name
from tigrislike.bytecache.policies import GHOST, Entry, Key, Policy, named, names
from tigrislike.bytecache.statistics import Counters
from tigrislike.bytecache.verified import Identity, identity

Reason = Literal["capacity", "reserve", "request", "corrupt", "deleted"]
"""Why a block leaves: no room in the cache or on the disk, an operator, damage, or the blob is dead."""

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
"""A row that is `leaving` has the place of its reason among these as its counter."""
PINNED_SHARE: Final = 0.9
"""Of a given capacity: the rest stays for what is read and not pinned."""
BATCH: Final = 64
"""Most files unlinked in one turn at the index."""
_UNSEEN_S: Final = 1.0
"""How long unlinked files may keep their space before others are evicted in their stead."""
_MOST_HITS: Final = 65536
"""Blocks whose hits are remembered between two flushes; more are not counted, which is a pity and nothing worse."""
CORRELATED_S: Final = 10.0
"""For so long after a block came or was hit, further hits are taken for parts of the same read: whoever reads a block
once in many small ranges has read it once. (O'Neil et al., SIGMOD '93, section 2.1.1, call it the correlated reference
period.) Enough for one who takes a megabyte a second; far less than a block stays in a cache worth having."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

T = TypeVar("T")

_LOG = logging.getLogger("tigrislike.bytecache")


class Hits:
    """Blocks read since the policy was last told. Thread-safe."""

    def __init__(self) -> None:
        self._hits: dict[Key, None] = {}
        self._lock = threading.Lock()

    def add(self, key: Key) -> None:
        with self._lock:
            # Taken out and put back, so that blocks are in order of their last hit.
            self._hits.pop(key, None)
            if len(self._hits) < _MOST_HITS:
                self._hits[key] = None

    def take(self) -> list[Key]:
        with self._lock:
            hits, self._hits = self._hits, {}
        return list(hits)


class Holdings:
    """One process's hands on the files and rows of a root.

    Attributes:
        capacity_bytes: Most that `cache/` may hold, fills in progress included; None: what the disk allows.
        hits: Not yet told to the policy.
        default_policy: For an index that nobody has arranged yet.
    """

    def __init__(
        self,
        fs: FileSystem,
        layout: Layout,
        counters: Counters,
        index: Index,
        capacity_bytes: int | None,
        reserve_bytes: int,
        policy: Policy,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fs = fs
        self.layout = layout
        self.index = index
        self.capacity_bytes = capacity_bytes
        self.hits = Hits()
        self._counters = counters
        self._reserve_bytes = reserve_bytes
        self.default_policy = policy
        self._policy = policy
        self._boot = _BOOT_ID.read_text().strip()
        self._clock_s = clock_s
        # What was evicted for space that the filesystem has not shown since, when it had how much, and until when
        # that is waited for.
        self._unseen_bytes = 0
        self._seen_bytes = 0
        self._unseen_until_s = 0.0
        self._owed: dict[object, Callable[[Rows], object]] = {}

    def write(self, job: Callable[[Rows], T], *, hurried: bool = False) -> T:
        """Run a job in a turn of its own, after what is owed. Raises as `Index.write` does."""
        owed = dict(self._owed)

        def run(rows: Rows) -> T:
            for debt in owed.values():
                try:
                    debt(rows)
                except OSError as error:
                    _LOG.warning("the cache's index: what could not be done earlier fails again: %s", error)
            return job(rows)

        result = self.index.write(run if owed else job, self.capacity_bytes, hurried=hurried)
        for name in owed:
            self._owed.pop(name, None)
        return result

    def owe(self, name: object, job: Callable[[Rows], object]) -> None:
        """Have a job that the index did not take run before the next one that it takes; maybe several times."""
        self._owed[name] = job

    # What is so.

    def is_ready(self, rows: Rows) -> bool:
        """Whether rows and files were compared since the machine started: what a power cut took is known."""
        return bool(rows.meta("boot") == self._boot)

    def make_ready(self, rows: Rows) -> None:
        rows.set_meta("boot", self._boot)

    def policy(self, rows: Rows) -> Policy:
        """The one that the rows are arranged by: another process may have chosen since."""
        recorded = rows.meta("policy")
        if recorded == self._policy.name:
            return self._policy
        if recorded in names():
            self._policy = named(recorded)
        else:
            self.choose(rows, self.default_policy)
        return self._policy

    def choose(self, rows: Rows, policy: Policy) -> None:
        """Arrange the rows for a policy."""
        self._policy = policy
        if rows.meta("policy") != policy.name:
            rows.rearrange(policy.queues[0])
            rows.set_meta("policy", policy.name)

    def is_pinned(self, blob_id: bytes) -> bool:
        return self.status(self.layout.pin(blob_id)) is not None

    def pinned(self) -> set[bytes]:
        """Ids of all pinned blobs."""
        blob_ids = map(parse_blob_name, self.fs.listdir(self.layout.pins))
        return {blob_id for blob_id in blob_ids if blob_id is not None}

    def is_being_filled(self, entry: Entry) -> bool:
        """Whether a row stands for a fill whose filler lives, or is not yet known to be dead."""
        if entry.queue not in (FILLING, LEAVING):
            return False
        return self.status(self.layout.filling_block(*entry.key)) is not None

    def status(self, path: str) -> os.stat_result | None:
        try:
            return self.fs.stat(path)
        except FileNotFoundError:
            return None

    def lacking_bytes(self, wanted_bytes: int, rows: Rows) -> int:
        """How much the filesystem lacks of having `wanted_bytes` beyond the reserve and what fills will write."""
        space = self.fs.space(self.layout.root)
        self._see(space.available_bytes)
        reserve = space.reserve(self._reserve_bytes)
        return wanted_bytes + rows.held_bytes(FILLING) + reserve - space.available_bytes

    def relieve(self, rows: Rows, wanted_bytes: int) -> int:
        """Evict a batch of what the filesystem lacks; bytes, 0 where nothing or more than can be evicted is lacking."""
        available = self.fs.space(self.layout.root).available_bytes
        lacking = self.lacking_bytes(wanted_bytes, rows) - self._unseen_bytes
        if not 0 < lacking <= self._evictable_bytes(rows):
            return 0
        freed = self.evict(rows, lacking, "reserve")
        shown = self.fs.space(self.layout.root).available_bytes
        self._unseen_bytes += max(0, freed - max(0, shown - available))
        self._seen_bytes = shown
        self._unseen_until_s = self._clock_s() + _UNSEEN_S
        return freed

    def could_relieve(self, rows: Rows, wanted_bytes: int) -> bool:
        """Whether the filesystem would have enough if all that may be evicted were."""
        lacking = self.lacking_bytes(wanted_bytes, rows) - self._unseen_bytes
        return lacking <= (self._evictable_bytes(rows) if self.is_ready(rows) else 0)

    def _evictable_bytes(self, rows: Rows) -> int:
        other = (FILLING, LEAVING, PINNED, GHOST)
        return sum(total.held_bytes for queue, total in rows.totals().items() if queue not in other)

    def _see(self, available_bytes: int) -> None:
        """Note how much of what was evicted lately has appeared; readers hold the rest, or the filesystem is slow."""
        if self._clock_s() >= self._unseen_until_s:
            self._unseen_bytes = 0
        self._unseen_bytes = max(0, self._unseen_bytes - max(0, available_bytes - self._seen_bytes))
        self._seen_bytes = available_bytes

    # What leaves.

    def note(self, rows: Rows, hits: list[Key]) -> None:
        """Tell the policy of reads, once for those of a block that come together, whichever process they came to."""
        policy = self.policy(rows)
        for key in hits:
            entry = rows.get(key)
            if entry is not None and entry.queue in policy.queues and self.is_another_read(rows, key):
                policy.hit(rows, entry)

    def is_another_read(self, rows: Rows, key: Key) -> bool:
        """Whether a block was last read long enough ago; from now on, it was read now."""
        return rows.renew(key, self._clock_s(), CORRELATED_S)

    def evict(self, rows: Rows, wanted_bytes: int, reason: Reason) -> int:
        """Evict until rows of `wanted_bytes` are gone or a batch is full; how much it was, 0 if nothing is left that
        may be evicted."""
        if not self.is_ready(rows):
            return 0
        self.note(rows, self.hits.take())
        policy = self.policy(rows)
        freed = unlinked = 0
        while freed < wanted_bytes and unlinked < BATCH and (victim := policy.victim(rows)) is not None:
            if self.is_pinned(victim.key[0]):
                rows.move(victim, PINNED)
                continue
            self.unlink(rows, victim.key, reason)
            policy.evicted(rows, victim)
            freed += victim.size
            unlinked += 1
        return freed

    def remove(
        self, rows: Rows, keys: list[Key], reason: Reason, *, only: Identity | None = None, spare_pinned: bool = False
    ) -> int:
        """Remove blocks; bytes of their files. What is being filled is left to its filler.

        Args:
            only: Who the file is, if another one is to be left.
            spare_pinned: Whether blocks of pinned blobs are to be left.
        """
        freed = 0
        for key in keys:
            if spare_pinned and self.is_pinned(key[0]):
                continue
            if only is not None and not self._is_still(key, only):
                continue
            entry = rows.get(key)
            if entry is None or not self.is_being_filled(entry):
                freed += self.unlink(rows, key, reason)
                if entry is not None:
                    rows.drop(entry)
        return freed

    def give(self, rows: Rows, key: Key, path: str, only: Identity) -> bool:
        """Move a block's file to another tree, if it is `only`; whether it was."""
        if not self._is_still(key, only):
            return False
        self.fs.rename(self.layout.cache_block(*key), path)
        entry = rows.get(key)
        # A row of a fill says that its filler was killed at the last step: it goes as those of dead fills do.
        if entry is not None and not self.is_being_filled(entry):
            rows.drop(entry)
        return True

    def _is_still(self, key: Key, who: Identity) -> bool:
        file = self.status(self.layout.cache_block(*key))
        return file is not None and identity(file) == who

    def unlink(self, rows: Rows, key: Key, reason: Reason) -> int:
        """Remove a block's file; its bytes, 0 if there was none. One that the disk keeps leaves the policy's queues and
        stays accounted for."""
        path = self.layout.cache_block(*key)
        try:
            size = self.fs.stat(path).st_size
            self.fs.unlink(path)
        except FileNotFoundError:
            return 0
        except OSError:
            entry = rows.get(key)
            if entry is not None and entry.queue != GHOST:
                rows.move(entry, LEAVING, REASONS.index(reason))
            raise
        self._counters.add(**{f"evicted_{reason}": 1, "evicted_bytes": size})
        return size

    # Pins.

    def pin(self, rows: Rows, blob_id: bytes) -> None:
        moving = [entry for entry in rows.of_blob(blob_id) if entry.queue not in (GHOST, FILLING, LEAVING, PINNED)]
        if not self.is_pinned(blob_id):
            self.check_pins(rows, sum(entry.size for entry in moving))
            fd = self.fs.open(self.layout.pin(blob_id), os.O_CREAT | os.O_WRONLY)
            with contextlib.suppress(OSError):  # nothing was written through it
                self.fs.close(fd)
        for entry in moving:
            rows.move(entry, PINNED)

    def unpin(self, rows: Rows, blob_id: bytes) -> bool:
        try:
            self.fs.unlink(self.layout.pin(blob_id))
        except FileNotFoundError:
            return False
        queue = self.policy(rows).admit(None)
        for entry in rows.of_blob(blob_id):
            if entry.queue == PINNED:
                rows.move(entry, queue)
        return True

    def check_pins(self, rows: Rows, size: int) -> None:
        """See whether `size` bytes more may be pinned, were all fills in progress pinned.

        Raises:
            PinsFull
        """
        if self.capacity_bytes is None:
            return
        most, pinned = int(PINNED_SHARE * self.capacity_bytes), rows.held_bytes(PINNED)
        if pinned + rows.held_bytes(FILLING) + size > most:
            raise PinsFull(
                f"{pinned} bytes are pinned of a cache of {self.capacity_bytes}, and pins may not take up more than "
                f"{most}: {size} more do not fit beside fills in progress; unpin something, or make the cache larger"
            )
