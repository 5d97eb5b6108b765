"""A model of the cache: several objects and processes fill, read, evict, pin, remove, die and open it again, in any
order, and after every step what the index says is what the disk holds."""

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.bytecache.blobs import drain
from tests.bytecache.cached import BLOCK, FILE, blob, check, files_of, image, layout_of, open_cache, opened, rows_of
from tests.bytecache.faults import SmallDisk
from tests.bytecache.filler import Fillers, fillers
from tests.bytecache.test_cache import reboot
from tigrislike.bytecache.cache import Cache, Filling, Reason
from tigrislike.bytecache.errors import (
    BlobGone,
    BlockPresent,
    BytesError,
    CacheFull,
    FillInProgress,
    MissingBlob,
    PinsFull,
)
from tigrislike.bytecache.policies import Key, names
from tigrislike.bytecache.reader import BlobReader
from tigrislike.bytecache.reading import Local
from tigrislike.bytecache.recovery import Recovery
from tigrislike.bytecache.statistics import Counters
from tigrislike.bytecache.verified import Verified

CAPACITY = 4 * FILE
keys = st.tuples(st.integers(0, 2).map(blob), st.integers(0, 1))
slots = st.integers(0, 1)
reasons: "st.SearchStrategy[Reason]" = st.sampled_from(["request", "corrupt", "deleted"])
jobs = st.sampled_from(["fill", "begin", "remove_block", "remove_blob", "delete_blob", "pin", "unpin", "reconcile"])
UNBOUNDED = 10**12


class Nowhere(Recovery):
    """Nobody else has anything."""

    def __init__(self) -> None:
        pass

    async def fetch(self, *args: Any, **options: Any) -> AsyncGenerator[bytes, None]:
        [reason] = [value for value in (*args, *options.values()) if isinstance(value, BytesError)]
        raise reason
        yield b""


NOWHERE = Nowhere()


class CacheMachine(RuleBasedStateMachine):
    """What must be true is here; what is true comes from the disk."""

    root: ClassVar[Path]
    others: ClassVar[Fillers]
    threads: ClassVar[Executor]

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory(dir=self.root)
        self.path = Path(self.directory.name)
        self.disk = SmallDisk(UNBOUNDED, UNBOUNDED)
        self.caches: list[Cache] = []
        self.fills: dict[Key, tuple[int, Filling]] = {}
        self.doomed: set[Key] = set()
        self.pinned: set[bytes] = set()
        self.protected: set[Key] = set()
        # Nobody was killed since rows and files were last compared.
        self.quiet = True
        # Fills whose rows were lost with the index.
        self.orphans: set[Key] = set()

    @initialize(policy=st.sampled_from(names()))
    def open(self, policy: str) -> None:
        self.local = Local(self.disk, layout_of(self.path), Counters(), Verified())
        self.policy = policy
        self.caches = [self._open(policy), self._open(None)]

    now_s = 1000.0

    def _open(self, policy: str | None) -> Cache:
        return open_cache(self.path, fs=self.disk, policy=policy, capacity_bytes=CAPACITY, clock_s=lambda: self.now_s)

    # Filling.

    @rule(slot=slots, key=keys)
    def begin(self, slot: int, key: Key) -> None:
        rows, files = rows_of(self.path), files_of(self.path)
        try:
            filling = self.caches[slot].begin(*key, BLOCK)
        except FillInProgress:
            assert key in self.fills
        except BlockPresent:
            assert key in files
        except PinsFull:
            assert key[0] in self.pinned
        except CacheFull:
            staying = sum(
                size for k, (queue, size) in rows.items() if queue not in ("small", "main", "all") and k != key
            )
            assert staying + FILE > CAPACITY
        else:
            assert key not in self.fills
            assert key not in files
            self.fills[key] = slot, filling

    @rule(slot=slots, key=keys)
    def fill(self, slot: int, key: Key) -> None:
        """Most fills end soon and well."""
        waiting = set(self.fills)
        self.begin(slot, key)
        if key in self.fills.keys() - waiting:
            self._commit(key)

    @rule(slot=slots, key=keys, reason=reasons)
    def fill_of_what_is_removed_meanwhile(self, slot: int, key: Key, reason: Reason) -> None:
        waiting = set(self.fills)
        self.begin(slot, key)
        if key in self.fills.keys() - waiting:
            self.remove_blob(1 - slot, key, reason)
            self._commit(key)

    @precondition(lambda self: self.fills)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        self._commit(data.draw(st.sampled_from(sorted(self.fills))))

    def _commit(self, key: Key) -> None:
        _, filling = self.fills.pop(key)
        if key in self.doomed:
            self.doomed.remove(key)
            with pytest.raises(BlobGone):
                filling.commit(image(key))
            assert key not in files_of(self.path)
        else:
            filling.commit(image(key))
            assert key in files_of(self.path)

    @precondition(lambda self: self.fills)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.fills)))
        self.doomed.discard(key)
        self.fills.pop(key)[1].abandon()

    # Reading and evicting.

    @rule(slot=slots, key=keys)
    def touch(self, slot: int, key: Key) -> None:
        self.caches[slot].touch(*key)

    @rule(slot=slots, key=keys, length=st.integers(1, BLOCK))
    def read(self, slot: int, key: Key, length: int) -> None:
        """As the store reads: what is here gives its bytes and is a hit, what is not says so."""
        files = files_of(self.path)
        reader = BlobReader(self.local, self.caches[slot], NOWHERE, self.threads, key[0], 2 * BLOCK)
        start = key[1] * BLOCK

        async def whole() -> bytes:
            return await drain(reader.read(start, start + length))

        try:
            assert asyncio.run(whole()) == IMAGES[key][:length]
        except MissingBlob:
            assert key not in files
        else:
            assert key in files
            assert key in self.caches[slot]._holdings.hits._hits

    @rule(slot=slots, passed_s=st.integers(0, 20))
    def flush(self, slot: int, passed_s: int) -> None:
        self.now_s += passed_s
        self.caches[slot].flush()

    @rule(slot=slots, wanted=st.integers(1, 4))
    def make_room(self, slot: int, wanted: int) -> None:
        before = sum(files_of(self.path).values())
        filling = self.caches[slot].usage().filling_bytes
        self.disk.available_bytes = filling
        evictable = sum(
            size for queue, size in rows_of(self.path).values() if queue not in ("pinned", "filling", "leaving")
        )
        self.now_s += 10  # what went before is not waited for any more
        try:
            freed = self.caches[slot].make_room(wanted * FILE)
        finally:
            self.disk.available_bytes = UNBOUNDED
        after = sum(files_of(self.path).values())
        if self.quiet:
            assert freed == before - after
            assert freed == (wanted * FILE if wanted * FILE <= evictable else 0)

    @rule(slot=slots, key=keys, reason=reasons)
    def remove_block(self, slot: int, key: Key, reason: Reason) -> None:
        here = key in files_of(self.path)
        assert self.caches[slot].remove_block(*key, reason) == here
        assert key not in files_of(self.path)
        self.protected.discard(key)

    @rule(slot=slots, key=keys, reason=reasons)
    def remove_blob(self, slot: int, key: Key, reason: Reason) -> None:
        expected = sum(size for other, size in files_of(self.path).items() if other[0] == key[0])
        assert self.caches[slot].remove_blob(key[0], reason) == expected
        self._removed(key[0], reason == "deleted")

    def _removed(self, blob_id: bytes, deleted: bool) -> None:
        assert not [key for key in files_of(self.path) if key[0] == blob_id]
        self.protected = {key for key in self.protected if key[0] != blob_id}
        self.doomed |= {key for key in self.fills if key[0] == blob_id}
        if deleted:
            self.pinned.discard(blob_id)

    # Pins.

    @rule(slot=slots, key=keys)
    def pin(self, slot: int, key: Key) -> None:
        try:
            self.caches[slot].pin(key[0])
        except PinsFull:
            assert key[0] not in self.pinned
        else:
            self.pinned.add(key[0])

    @rule(slot=slots, key=keys)
    def unpin(self, slot: int, key: Key) -> None:
        assert self.caches[slot].unpin(key[0]) == (key[0] in self.pinned)
        self.pinned.discard(key[0])

    # Dying and coming back.

    @rule(job=jobs, key=keys, moment=st.integers(-40, 60))
    def another_process(self, job: str, key: Key, moment: int) -> None:
        """Does one thing, and is killed at some moment or not at all."""
        before = files_of(self.path)
        ended = self.others.run(self.path, job, key, moment, capacity_bytes=CAPACITY)
        files = files_of(self.path)
        if ended == "killed":
            self.quiet = False
            # Its job was done, half of it, or nothing: the disk says which, and any is right.
            pins = {bytes.fromhex(name) for name in os.listdir(self.path / "pins")}
            if job == "pin":
                assert pins in (self.pinned, self.pinned | {key[0]})
            elif job in ("unpin", "delete_blob"):
                assert pins in (self.pinned, self.pinned - {key[0]})
            self.pinned = pins
            if job in ("remove_block", "remove_blob", "delete_blob"):
                self.protected = {other for other in self.protected if other in files or other[0] != key[0]}
            if job in ("remove_blob", "delete_blob"):
                rows = rows_of(self.path)
                self.doomed |= {other for other in self.fills if rows.get(other, ("", 0))[0] != "filling"}
            return
        if ended == "refused":
            assert job in ("fill", "begin", "pin")
        elif job == "fill":
            assert key in files
            assert key not in before
        elif job == "remove_block":
            assert key not in files
            self.protected.discard(key)
        elif job in ("remove_blob", "delete_blob"):
            self._removed(key[0], job == "delete_blob")
        elif job == "pin":
            self.pinned.add(key[0])
        elif job == "unpin":
            self.pinned.discard(key[0])

    @precondition(lambda self: self.fills)
    @rule(data=st.data())
    def filler_dies(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.fills)))
        self._die(key)

    def _die(self, key: Key) -> None:
        self.doomed.discard(key)
        self.fills.pop(key)[1]._release()  # all that the kernel does for a dead process
        self.quiet = False

    @rule(slot=slots)
    def reopen(self, slot: int) -> None:
        """Its fills die with it, whether it is closed or killed."""
        for key in [key for key, (owner, _) in self.fills.items() if owner == slot]:
            self._die(key)
        self.caches[slot].close()
        self.caches[slot] = self._open(None)

    @rule(slot=slots, policy=st.sampled_from(names()))
    def reopen_with_another_policy(self, slot: int, policy: str) -> None:
        self.reopen(slot)
        self.caches[slot].close()
        self.caches[slot] = self._open(policy)

    @rule(slot=slots)
    def reconcile(self, slot: int) -> None:
        self.caches[slot].reconcile()
        self.quiet = True

    @rule(slot=slots, key=keys)
    def lose_the_index(self, slot: int, key: Key) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path}/index.sqlite{suffix}").unlink(missing_ok=True)
        self._not_ready(slot, key)
        self.doomed |= set(self.fills)
        self.orphans |= set(self.fills)

    @rule(slot=slots, key=keys)
    def reboot(self, slot: int, key: Key) -> None:
        for filling in list(self.fills):
            self._die(filling)
        reboot(self.path)
        self._not_ready(slot, key)

    def _not_ready(self, slot: int, key: Key) -> None:
        files = files_of(self.path)
        for cache in self.caches:
            assert not cache.usage().ready
            if key not in self.fills:
                with pytest.raises(CacheFull):
                    cache.begin(*key, BLOCK)
        assert files_of(self.path) == files
        added = self.caches[slot].reconcile().added
        assert added <= len(files)
        assert files_of(self.path) == files
        self.quiet = True

    # What must be true.

    @invariant()
    def rows_are_what_the_disk_holds(self) -> None:
        if not self.caches:
            return
        self.orphans &= self.fills.keys()
        for cache in self.caches:
            check(cache, self.path, quiet=self.quiet and not self.orphans)
        files = files_of(self.path)
        assert self.protected <= files.keys(), "a pinned block was evicted"
        self.protected = {key for key in files if key[0] in self.pinned}
        assert self.caches[0].pins() == sorted(self.pinned)
        layout = layout_of(self.path)
        for key in files:
            assert Path(layout.cache_block(*key)).read_bytes() == IMAGES[key]
        assert {f"{key[0].hex()}.{key[1]}" for key in self.fills} <= set(os.listdir(self.path / "filling"))

    def teardown(self) -> None:
        for _, filling in self.fills.values():
            filling.abandon()
        if self.caches:
            self.caches[0].reconcile()
            check(self.caches[0], self.path)
        for cache in self.caches:
            cache.close()
        self.directory.cleanup()


IMAGES = {(blob(number), block): bytes(image((blob(number), block))) for number in range(3) for block in range(2)}


@pytest.fixture(scope="module")
def others() -> Iterator[Fillers]:
    with fillers() as started:
        yield started


def run(root: Path, others: Fillers, **bounds: Any) -> None:
    CacheMachine.root, CacheMachine.others = root, others
    with ThreadPoolExecutor(1) as CacheMachine.threads:
        run_state_machine_as_test(
            CacheMachine,
            settings=settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, **bounds),
        )


def test_the_cache_is_what_the_model_says(scratch: Path, others: Fillers) -> None:
    run(scratch, others, max_examples=30, stateful_step_count=30)


@pytest.mark.slow
def test_the_cache_is_what_the_model_says_at_length(scratch: Path, others: Fillers) -> None:
    run(scratch, others, max_examples=200, stateful_step_count=50)


@pytest.mark.parametrize("job", ["fill", "remove_block", "delete_blob", "pin", "unpin", "reconcile"])
def test_a_process_killed_at_every_moment_of_a_job_leaves_what_others_can_settle(
    scratch: Path, others: Fillers, job: str
) -> None:
    old = [(blob(number), 0) for number in range(3)]
    key = (blob(7), 0) if job == "fill" else old[0]
    # Reconciling makes hundreds of calls, most of them alike.
    moments = [*range(1, 30), *range(30, 2000, 50)] if job == "reconcile" else range(1, 1000)
    for moment in moments:
        with opened(scratch, capacity_bytes=3 * FILE) as cache:
            for other in old:
                if other not in files_of(scratch):
                    cache.remove_blob(blob(7), "request")
                    cache.begin(*other, BLOCK).commit(image(other))
            cache.pin(old[1][0])
            if job == "unpin":
                cache.pin(key[0])
            elif job == "pin":
                cache.unpin(key[0])
            ended = others.run(scratch, job, key, moment, capacity_bytes=3 * FILE)
            check(cache, scratch, quiet=ended != "killed")
            assert old[1] in files_of(scratch), "a pinned block is gone"
            assert cache.pinned(old[1][0])
            if ended == "done":
                return
            if job == "fill" and key not in files_of(scratch):
                cache.begin(*key, BLOCK).commit(image(key))  # taken over at once
            cache.reconcile()
            check(cache, scratch)
    pytest.fail("it was killed at every moment and never got through")
