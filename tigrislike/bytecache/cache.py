"""The evictable half of a node's disk: blocks in `cache/` that somebody else has too, kept within a capacity.

Several processes fill, evict, pin and remove at once, over files and an index that they share. Every crash is harmless:

- A row exists from before its file appears until after it is gone. Whatever is killed when, the rows' bytes are at
  least the files'; a row without a file goes when its turn to be evicted comes, or with `reconcile`.
- A block being fetched is a locked file in `filling/`. What a dead filler left is taken over or removed by the next
  filler of that block, the next process that opens the cache, or `reconcile`.
- What `pins/` says is pinned, whatever the rows say: a victim is looked up there before it goes.

Readers need none of this: they open blocks by name. After a reboot, or without an index, nothing is filled or evicted
until `reconcile` has run.

Deliberately absent: fetching, reading and verifying; who else has a blob; memory of what is here. All of it blocks:
call it on worker threads. The work is done in `holdings.py` (transactions), `filling.py`, `reconciling.py`
and `index.py`.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from tigrislike.bytecache.errors import BytesError, from_os_error
from tigrislike.bytecache.filesystem import FileSystem, sync_directory
from tigrislike.bytecache.filling import Filling, block_name, claim
from tigrislike.bytecache.footer import FOOTER_BYTES, padded
from tigrislike.bytecache.holdings import BATCH, Holdings, Reason
from tigrislike.bytecache.index import FILLING, LEAVING, PINNED, Index, Rows
from tigrislike.bytecache.layout import Layout, parse_block_name
from tigrislike.bytecache.policies import DEFAULT, GHOST, Entry, Key, Policy, named
from tigrislike.bytecache.reconciling import Reconciled, reconcile, remove_dead_fills, settle_rows
from tigrislike.bytecache.statistics import Counters
from tigrislike.bytecache.verified import Identity

__all__ = ["Cache", "CachedBlock", "Filling", "Reason", "Reconciled", "State", "Usage"]

State = Literal["filling", "present", "leaving"]

_LOG = logging.getLogger("tigrislike.bytecache")
DEFAULT_RESERVE_BYTES: Final = 1024 * 1024 * 1024
BUSY_S: Final = 10.0
"""A turn at the index takes a millisecond, or as long as unlinking a batch of files: who waits longer waits for a
process that is stopped."""
_INDEX_BYTES: Final = 64 * 1024
"""With less than this free SQLite cannot work: it needs 32 KiB at a time for what its processes share."""
_ROWS: Final = 1000
"""Most rows changed in one turn where no files are."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the cache holds, over all processes. Bytes are those of files.

    Attributes:
        capacity_bytes: The logical limit; None where only the disk sets one.
        used_bytes: Of blocks in `cache/`, pinned ones included.
        filling_bytes: Spoken for by fills in progress; not in `used_bytes`.
        pinned_bytes: Of blocks of pinned blobs.
        blocks: In `cache/`.
        pinned_blocks: Of pinned blobs.
        ready: Whether blocks can be taken in: the index was compared with the files since the machine started.
        policy: Its name.
    """

    capacity_bytes: int | None
    used_bytes: int
    filling_bytes: int
    pinned_bytes: int
    blocks: int
    pinned_blocks: int
    ready: bool
    policy: str


@dataclass(frozen=True, slots=True)
class CachedBlock:
    """One block, as the index has it.

    Attributes:
        blob_id: 16 bytes.
        number: Which block of the blob.
        bytes: Of its file.
        queue: The policy's, or "pinned", "filling", "leaving".
        counter: The policy's.
        pinned: Whether eviction passes it by.
        state: "filling" until it is here, "leaving" while it is not wanted but not gone.
    """

    blob_id: bytes
    number: int
    bytes: int
    queue: str
    counter: int
    pinned: bool
    state: State


class Cache:
    """Open with `Cache.open`, after any fork. Thread-safe; several per root are fine. What it raises is a BytesError.

    Every method that touches the index may raise BlobBusy (another process keeps it), DiskFull and DiskFailed.
    """

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._fs = holdings.fs
        self._layout = holdings.layout

    @classmethod
    def open(
        cls,
        fs: FileSystem,
        layout: Layout,
        counters: Counters,
        *,
        capacity_bytes: int | None = None,
        reserve_bytes: int = DEFAULT_RESERVE_BYTES,
        policy: Policy | None = None,
        busy_s: float = BUSY_S,
        vfs: str | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> "Cache":
        """Open the cache of a root; milliseconds, however much it holds. An index that cannot be used just now is no
        reason to fail: nothing is filled or evicted until it can be.

        Args:
            fs: The system calls for all files but the index's.
            layout: Of the root.
            counters: For evictions.
            capacity_bytes: Most that `cache/` may hold; None: what the disk has beyond the reserve.
            reserve_bytes: Free space that fills may not use; at most a tenth of the filesystem is kept.
            policy: None: the one that the index was last arranged by, at first S3-FIFO. With another one than that, it
                starts over from the order in which blocks came.
            busy_s: How long to wait for a turn at the index.
            vfs: SQLite's, for tests.
            clock_s: A steady clock that all processes share, for tests.
        """
        with _translated("opening the cache"):
            index = Index(
                layout.index,
                busy_s=busy_s,
                vfs=vfs,
                is_full=lambda: fs.space(layout.root).available_bytes < _INDEX_BYTES,
                clock_s=clock_s,
            )
            holdings = Holdings(
                fs, layout, counters, index, capacity_bytes, reserve_bytes, policy or named(DEFAULT), clock_s
            )
        cache = cls(holdings)

        def begin(rows: Rows) -> None:
            if policy is not None:
                holdings.choose(rows, policy)
            settle_rows(rows, holdings)

        try:
            with _translated("opening the cache"):
                remove_dead_fills(holdings)
                try:
                    holdings.write(begin, hurried=True)
                    if not index.read(holdings.is_ready) and cache._is_empty():
                        cache.reconcile()
                except BytesError as error:
                    # What is read needs no index, and a node that does not start serves nothing.
                    _LOG.warning("the cache takes no blocks for the present: %s", error)
                    holdings.owe("beginning", begin)
        except BaseException:
            index.close()
            raise
        return cache

    def close(self) -> None:
        """Hits since the last flush are lost."""
        self._holdings.index.close()

    def begin(self, blob_id: bytes, number: int, length: int, *, taken: str | None = None) -> Filling:
        """Claim a block that is to be fetched, and make room for it.

        Args:
            blob_id: 16 bytes.
            number: Which block.
            length: Bytes of its data.
            taken: Path of a file of this disk that will become the block's, by `Filling.take`: it needs no space.

        Raises:
            FillInProgress: A live filler has it.
            BlockPresent: It is in `cache/`.
            CacheFull: There is no room and none to be made, or the cache is not reconciled yet.
            PinsFull: The blob is pinned, and pins take up what they may.
            DiskFull: The filesystem has no more than the reserve, even after evicting; nothing is evicted for a file
                that is taken.
        """
        key = blob_id, number
        size = padded(length) + FOOTER_BYTES
        with _translated(f"claiming {block_name(key)}"):
            # Claimed first: who is refused evicts nothing.
            fd = claim(self._fs, self._layout.filling_block(*key))
            filling = Filling(self._holdings, key, size, fd, taken=taken)
            try:
                if taken is None and self._holdings.status(self._layout.cache_block(*key)) is None:
                    self.make_room(size)
                while not self._holdings.write(filling.reserve, hurried=True):
                    pass  # made some of the room; others get their turn in between
            except BaseException:
                filling.abandon()
                raise
            return filling

    def give(self, blob_id: bytes, number: int, path: str, only: Identity) -> bool:
        """Let a block go by moving its file to `path`, of another tree; whether that was done.

        Args:
            blob_id, number: The block.
            path: Where to; what is there is replaced.
            only: Who its file is: another one under that name is left.
        """
        key = blob_id, number
        with _translated(f"giving away {block_name(key)}"):
            return self._holdings.write(partial(self._holdings.give, key=key, path=path, only=only))

    def touch(self, blob_id: bytes, number: int) -> None:
        """Note that a block was read, whole or in part. No I/O. What is not in `cache/` is ignored in the end."""
        self._holdings.hits.add((blob_id, number))

    def flush(self) -> None:
        """Tell the policy of the hits so far. When it raises, they are forgotten."""
        hits = self._holdings.hits.take()
        with _translated("noting hits"):
            for start in range(0, len(hits), _ROWS):
                self._holdings.write(partial(self._holdings.note, hits=hits[start : start + _ROWS]), hurried=True)

    def make_room(self, wanted_bytes: int) -> int:
        """Evict until the filesystem has `wanted_bytes` beyond the reserve and the fills in progress; nothing if that
        is more than eviction can give.

        Returns:
            Bytes evicted. What readers hold open gives its space back when they close it; until then, for a second, it
            is not evicted for again.
        """
        with _translated("making room"):
            total = 0
            while self._holdings.index.read(partial(self._holdings.lacking_bytes, wanted_bytes)) > 0:
                relieve = partial(self._holdings.relieve, wanted_bytes=wanted_bytes)
                freed = self._holdings.write(relieve, hurried=True)
                if not freed:
                    break
                total += freed
            return total

    def could_make_room(self, wanted_bytes: int) -> bool:
        """Whether the filesystem has `wanted_bytes` beyond the reserve and the fills in progress, or would if all that
        may be evicted were."""
        with _translated("looking for room"):
            return self._holdings.index.read(partial(self._holdings.could_relieve, wanted_bytes=wanted_bytes))

    def remove_block(self, blob_id: bytes, number: int, reason: Reason, only: Identity | None = None) -> bool:
        """Remove one block, pinned or not; whether it was here. A fill of it in progress goes on.

        Args:
            blob_id, number: The block.
            reason: For the counters.
            only: Who its file is, if another one under that name is to be left.
        """
        key = blob_id, number
        with _translated(f"removing {block_name(key)}"):
            return self._holdings.write(partial(self._holdings.remove, keys=[key], reason=reason, only=only)) > 0

    def remove_blob(self, blob_id: bytes, reason: Reason, *, spare_pinned: bool = False) -> int:
        """Remove every block of a blob; bytes of their files. Fills of it in progress will not be kept. A deleted blob
        loses its pin too. When it raises, some may be left: try again.

        Args:
            blob_id: 16 bytes.
            reason: For the counters.
            spare_pinned: Whether what is pinned, or is meanwhile, is to be left.
        """
        freed = 0
        with _translated(f"removing blob {blob_id.hex()}"):
            keys = self._holdings.write(partial(self._doom, blob_id=blob_id, spare_pinned=spare_pinned))
            for start in range(0, len(keys), BATCH):
                batch = keys[start : start + BATCH]
                remove = partial(self._holdings.remove, keys=batch, reason=reason, spare_pinned=spare_pinned)
                freed += self._holdings.write(remove)
            if reason == "deleted":
                self.unpin(blob_id)
        return freed

    def _doom(self, rows: Rows, blob_id: bytes, *, spare_pinned: bool) -> list[Key]:
        """See to it that fills of a blob come to nothing; what else there is of it."""
        if spare_pinned and self._holdings.is_pinned(blob_id):
            return []
        keys = set()
        for entry in rows.of_blob(blob_id):
            if entry.queue == FILLING:
                rows.move(entry, LEAVING, place=entry.place)
            keys.add(entry.key)
        if not self._holdings.is_ready(rows):
            # There may be files without a row.
            with contextlib.suppress(FileNotFoundError):
                found = map(parse_block_name, self._fs.listdir(self._layout.cache_shard(blob_id)))
                keys |= {key for key in found if key is not None and key[0] == blob_id}
        return sorted(keys)

    def pin(self, blob_id: bytes) -> None:
        """Keep the blob's blocks, those here and those to come, from eviction. Durable when it returns; doing it again
        is fine.

        Raises:
            PinsFull: Of a given capacity, a tenth stays for other blocks.
        """
        with _translated(f"pinning blob {blob_id.hex()}"):
            self._holdings.write(partial(self._holdings.pin, blob_id=blob_id))
            sync_directory(self._fs, self._layout.pins)

    def unpin(self, blob_id: bytes) -> bool:
        """Let the blob's blocks be evicted again; whether it was pinned."""
        with _translated(f"unpinning blob {blob_id.hex()}"):
            if not self._holdings.write(partial(self._holdings.unpin, blob_id=blob_id)):
                return False
            sync_directory(self._fs, self._layout.pins)
            return True

    def pinned(self, blob_id: bytes) -> bool:
        """Whether the blob is pinned."""
        with _translated(f"looking for the pin of blob {blob_id.hex()}"):
            return self._holdings.is_pinned(blob_id)

    def pins(self, after: bytes = b"", limit: int = _ROWS) -> list[bytes]:
        """Ids of pinned blobs beyond `after`, ascending, `limit` at most."""
        with _translated("listing pins"):
            return sorted(blob_id for blob_id in self._holdings.pinned() if blob_id > after)[:limit]

    def usage(self) -> Usage:
        """As of one moment, over all processes."""
        with _translated("looking at the index"):
            return self._holdings.index.read(self._usage)

    def _usage(self, rows: Rows) -> Usage:
        totals = rows.totals()
        here = [total for queue, total in totals.items() if queue not in (GHOST, FILLING)]
        return Usage(
            capacity_bytes=self._holdings.capacity_bytes,
            used_bytes=sum(total.held_bytes for total in here),
            filling_bytes=rows.held_bytes(FILLING),
            pinned_bytes=rows.held_bytes(PINNED),
            blocks=sum(total.blocks for total in here),
            pinned_blocks=totals[PINNED].blocks if PINNED in totals else 0,
            ready=self._holdings.is_ready(rows),
            policy=str(rows.meta("policy") or self._holdings.default_policy.name),
        )

    def blocks(self, after: Key | None = None, limit: int = _ROWS) -> list[CachedBlock]:
        """A page of the index: up to `limit` blocks beyond `after`, by blob id and number."""
        with _translated("listing the cache"):
            entries = self._holdings.index.read(lambda rows: rows.page(after or (b"", -1), limit))
        return list(map(_described, entries))

    def reconcile(self, progress: Callable[[int], None] | None = None) -> Reconciled:
        """Compare the files with the index and correct the index; remove what dead fills left. Others fill, evict and
        read meanwhile. From then on, until the machine restarts, the cache takes blocks.

        Args:
            progress: Told after each of 256 directories how many files were compared so far.
        """
        with _translated("reconciling the cache"):
            return reconcile(self._holdings, progress)

    def _is_empty(self) -> bool:
        cache = self._layout.cache
        return not any(self._fs.listdir(f"{cache}/{shard}") for shard in self._fs.listdir(cache))


def _described(entry: Entry) -> CachedBlock:
    state: State = "filling" if entry.queue == FILLING else "leaving" if entry.queue == LEAVING else "present"
    pinned = entry.queue == PINNED
    return CachedBlock(*entry.key, entry.size, entry.queue, entry.counter, pinned, state)


@contextlib.contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(error, doing) from error
