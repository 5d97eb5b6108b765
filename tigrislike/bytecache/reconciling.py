"""Making the cache's index agree with its files: after a power cut, a lost or damaged index, or a bug.

Files and rows are compared a directory at a time, without a turn at the index, and others go on meanwhile. So what
seems to differ is only suspected; it is looked at again, and put right, within a turn. Only names and sizes are looked
at: what is in a file is verified when it is read.
"""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from tigrislike.bytecache.filling import remove_dead
from tigrislike.bytecache.holdings import REASONS, Holdings
from tigrislike.bytecache.index import FILLING, LEAVING, PINNED, Rows
from tigrislike.bytecache.layout import parse_block_name
from tigrislike.bytecache.policies import GHOST, Key
from tigrislike.bytecache.reading import BAD_SECTOR

_LOG = logging.getLogger("tigrislike.bytecache")
_ROWS: Final = 1000
"""Most rows changed in one turn: ten milliseconds."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What a reconciliation corrected.

    Attributes:
        added: Files that had no row.
        removed: Rows that had no file.
        garbage: Files of dead fills.
    """

    added: int = 0
    removed: int = 0
    garbage: int = 0

    def __add__(self, other: "Reconciled") -> "Reconciled":
        return Reconciled(self.added + other.added, self.removed + other.removed, self.garbage + other.garbage)


def reconcile(holdings: Holdings, progress: Callable[[int], None] | None) -> Reconciled:
    """Compare all files with all rows, then declare the cache ready. See `Cache.reconcile`."""
    done = Reconciled()
    seen = 0
    while True:
        done += settle_fills(holdings)
        generation = holdings.index.generation
        pinned = holdings.pinned()
        for shard in range(256):
            try:
                suspects, unknown, count = _compare(holdings, shard, pinned)
            except OSError as error:
                if error.errno not in BAD_SECTOR:
                    raise
                _LOG.error("%s/%02x cannot be read, its rows stay as they are: %s", holdings.layout.cache, shard, error)
                continue
            for job, keys in ((_settle, suspects), (_adopt, unknown)):
                for start in range(0, len(keys), _ROWS):
                    done += holdings.write(partial(job, holdings=holdings, keys=keys[start : start + _ROWS]))
            seen += count
            if progress is not None:
                progress(seen)
        if holdings.write(partial(_make_ready, holdings=holdings, generation=generation)):
            return done


def _make_ready(rows: Rows, holdings: Holdings, generation: int) -> bool:
    """Declare the rows compared, if they still are those that were; the turn itself may have met a fresh index."""
    if holdings.index.generation != generation:
        return False
    holdings.make_ready(rows)
    return True


def settle_fills(holdings: Holdings) -> Reconciled:
    """Remove what dead fillers left."""
    garbage = remove_dead_fills(holdings)
    return holdings.write(partial(settle_rows, holdings=holdings)) + Reconciled(garbage=garbage)


def remove_dead_fills(holdings: Holdings) -> int:
    """Remove the files of dead fillers, for which no turn at the index is needed; how many."""
    fs, path = holdings.fs, holdings.layout.filling
    garbage = 0
    for name in fs.listdir(path):
        if parse_block_name(name) is not None:
            try:
                garbage += remove_dead(fs, f"{path}/{name}")
            except OSError as error:  # its space is spoken for; everything else can go on
                _LOG.warning("cannot remove what a dead filler left, %s/%s: %s", path, name, error)
    return garbage


def settle_rows(rows: Rows, holdings: Holdings) -> Reconciled:
    """Make the rows of fills whose files are gone say what has become of their blocks."""
    entries = [*rows.of_queue(FILLING), *rows.of_queue(LEAVING)]
    return _settle(rows, holdings, [entry.key for entry in entries])


def _compare(holdings: Holdings, shard: int, pinned: set[bytes]) -> tuple[list[Key], list[Key], int]:
    """Of one directory: keys whose row may be wrong, keys of files that have no row, and how many files there are."""
    # By file name, which is cheaper to make of a row than a key is of a name.
    rows = holdings.index.read(
        lambda rows: {
            f"{entry.key[0].hex()}.{entry.key[1]}": (
                -1 if (entry.queue == PINNED) != (entry.key[0] in pinned) else entry.size
            )
            for entry in rows.of_shard(shard)
            if entry.queue != GHOST
        }
    )
    suspects, unknown, count = [], [], 0
    with (
        contextlib.suppress(FileNotFoundError),
        holdings.fs.scandir(f"{holdings.layout.cache}/{shard:02x}") as files,
    ):
        for file in files:
            count += 1
            size = rows.pop(file.name, None)
            if size is None:
                unknown.append(file.name)
                continue
            try:
                if file.stat(follow_symlinks=False).st_size != size:
                    suspects.append(file.name)
            except FileNotFoundError:
                suspects.append(file.name)
    suspects += rows
    return _keys(suspects), [key for key in _keys(unknown) if key[0][0] == shard], count


def _keys(names: list[str]) -> list[Key]:
    """In order, for neighbours in the index are changed together."""
    return sorted(key for key in map(parse_block_name, names) if key is not None)


def _adopt(rows: Rows, holdings: Holdings, keys: list[Key]) -> Reconciled:
    """Add rows for files that had none. The order in which they came is lost with their rows."""
    pinned = holdings.pinned()
    queue = holdings.policy(rows).admit(None)
    found = [(key, holdings.status(holdings.layout.cache_block(*key))) for key in keys]
    added = 0
    for target, wanted in ((PINNED, True), (queue, False)):
        missing = [(key, file.st_size) for key, file in found if file is not None and (key[0] in pinned) == wanted]
        added += rows.insert_missing(missing, target)
    return Reconciled(added=added)


def _settle(rows: Rows, holdings: Holdings, keys: list[Key]) -> Reconciled:
    """Make the rows of blocks say what their files are."""
    removed = 0
    policy = holdings.policy(rows)
    for key in keys:
        entry = rows.get(key)
        if entry is None or entry.queue == GHOST or holdings.is_being_filled(entry):
            continue
        if entry.queue == LEAVING:
            try:
                holdings.unlink(rows, key, REASONS[entry.counter])
            except OSError as error:
                _LOG.warning("cannot remove %s: %s", holdings.layout.cache_block(*key), error)
                continue
        file = holdings.status(holdings.layout.cache_block(*key))
        if file is None:
            rows.drop(entry)
            removed += 1
            continue
        if holdings.is_pinned(key[0]):
            queue = PINNED
        elif entry.queue in policy.queues:
            queue = entry.queue
        else:
            queue = policy.admit(None)
        if queue != entry.queue:
            rows.move(entry, queue)
        if file.st_size != entry.size:
            rows.resize(entry, file.st_size)
    return Reconciled(removed=removed)
