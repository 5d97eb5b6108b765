"""The eviction policies do what the papers say, on either shelf."""

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.policies import SIZE, Trace, hit_ratio, traces, zipf
from tests.bytecache.cached import FILE, files_of, fill, opened
from tigrislike.bytecache.index import Index, Rows
from tigrislike.bytecache.policies import DEFAULT, GHOST, MOST_SPARED, Entry, Key, Policy, Shelf, named, names
from tigrislike.bytecache.policies.memory import MemoryShelf, Simulation

# Reference simulations, written from the papers and from nothing else here: blocks are of one size, capacities count
# them. Each returns the number of hits.


def reference_fifo(trace: Iterable[Key], capacity: int) -> int:
    here: OrderedDict[Key, None] = OrderedDict()
    hits = 0
    for key in trace:
        if key in here:
            hits += 1
            continue
        if len(here) == capacity:
            here.popitem(last=False)
        here[key] = None
    return hits


def reference_lru(trace: Iterable[Key], capacity: int) -> int:
    here: OrderedDict[Key, None] = OrderedDict()
    hits = 0
    for key in trace:
        if key in here:
            here.move_to_end(key)
            hits += 1
            continue
        if len(here) == capacity:
            here.popitem(last=False)
        here[key] = None
    return hits


def reference_sieve(trace: Iterable[Key], capacity: int) -> int:
    """NSDI '24, algorithm 1: a doubly linked list, new objects at the head, the hand moves from tail to head."""
    newer: dict[Key | None, Key | None] = {None: None}  # None: beyond the tail on one side, the head on the other
    older: dict[Key | None, Key | None] = {None: None}
    visited: dict[Key, bool] = {}
    hand: Key | None = None
    hits = 0
    for key in trace:
        if key in visited:
            visited[key] = True
            hits += 1
            continue
        if len(visited) == capacity:
            item = hand if hand is not None else newer[None]
            while item is not None and visited[item]:
                visited[item] = False
                item = newer[item] if newer[item] is not None else newer[None]
            assert item is not None
            hand = newer[item]
            newer[older[item]], older[newer[item]] = newer[item], older[item]
            del newer[item], older[item], visited[item]
        head = older[None]
        newer[head], older[key], newer[key], older[None] = key, head, None, key
        visited[key] = False
    return hits


def reference_s3fifo(trace: Iterable[Key], capacity: int) -> int:
    """SOSP '23, algorithm 1. Deques with the tail, where objects leave, on the left."""
    small: deque[Key] = deque()
    main: deque[Key] = deque()
    ghost: OrderedDict[Key, None] = OrderedDict()
    freq: dict[Key, int] = {}
    hits = 0

    def evict_main() -> None:
        while main:
            tail = main.popleft()
            if freq[tail] > 0:
                freq[tail] -= 1
                main.append(tail)
            else:
                del freq[tail]
                return

    def evict_small() -> None:
        while small:
            tail = small.popleft()
            if freq[tail] > 1:
                freq[tail] = 0
                if len(main) >= capacity - capacity // 10:
                    evict_main()
                main.append(tail)
            else:
                del freq[tail]
                ghost[tail] = None
                if len(ghost) > capacity - capacity // 10:
                    ghost.popitem(last=False)
                return

    for key in trace:
        if key in freq:
            freq[key] = min(freq[key] + 1, 3)
            hits += 1
            continue
        remembered = key in ghost
        while len(freq) >= capacity:
            if len(small) >= capacity // 10:
                evict_small()
            else:
                evict_main()
        if remembered:
            ghost.pop(key, None)
            main.append(key)
        else:
            small.append(key)
        freq[key] = 0
    return hits


REFERENCES: dict[str, Callable[[Iterable[Key], int], int]] = {
    "s3fifo": reference_s3fifo,
    "fifo": reference_fifo,
    "lru": reference_lru,
    "sieve": reference_sieve,
}
BLOCKS = 2000


@pytest.fixture(scope="module")
def recorded() -> dict[str, Trace]:
    return dict(traces(seed=20, reads=12_000, blocks=BLOCKS))


@pytest.mark.parametrize("capacity", [BLOCKS // 50, BLOCKS // 10])
@pytest.mark.parametrize("policy", list(REFERENCES))
def test_hit_ratios_are_those_of_the_published_algorithm(
    recorded: dict[str, Trace], policy: str, capacity: int
) -> None:
    for title, trace in recorded.items():
        expected = REFERENCES[policy](trace, capacity) / len(trace)
        ratio = hit_ratio(policy, trace, capacity)
        print(f"{title}, {capacity} blocks, {policy}: {ratio:.4f}, by the paper {expected:.4f}")
        assert abs(ratio - expected) <= 0.02 * expected, title


@pytest.mark.parametrize("policy", ["fifo", "lru", "sieve"])
def test_the_simple_policies_hit_exactly_as_their_references_do(policy: str) -> None:
    trace = zipf(random.Random(3), 5000, 500)
    assert hit_ratio(policy, trace, 37) == REFERENCES[policy](trace, 37) / len(trace)


def test_a_scan_leaves_what_is_read_often(recorded: dict[str, Trace]) -> None:
    scanned = next(trace for title, trace in recorded.items() if title == "Zipf 1.0, with scans")
    ratios = {policy: hit_ratio(policy, scanned, BLOCKS // 10) for policy in names()}
    assert ratios["s3fifo"] > 1.2 * ratios["lru"]
    assert ratios["s3fifo"] > 1.2 * ratios["fifo"]


def test_a_scan_in_ranges_smaller_than_a_block_leaves_what_is_read_often(scratch: Path) -> None:
    now_s = 0.0
    often, once = [[(bytes([n]).ljust(16, kind), 0) for n in range(count)] for kind, count in ((b"o", 8), (b"s", 60))]
    with opened(scratch, policy="s3fifo", capacity_bytes=10 * FILE, clock_s=lambda: now_s) as cache:
        fill(cache, *often)
        for _ in range(3):
            now_s += 3600
            for key in often:
                cache.touch(*key)
            cache.flush()
        for key in once:
            fill(cache, key)
            for _ in range(8):
                now_s += 1
                cache.touch(*key)
                cache.flush()
        assert set(often) <= files_of(scratch).keys()


def test_policies_are_found_by_name_and_an_unknown_name_lists_them() -> None:
    assert names()[0] == DEFAULT == "s3fifo"
    assert [named(name).name for name in names()] == list(names())
    with pytest.raises(ValueError, match=r"'arc'.*s3fifo, fifo, lru, sieve"):
        named("arc")


def test_a_block_larger_than_everything_is_not_kept_and_evicts_nothing() -> None:
    simulation = Simulation(named("s3fifo"), 10)
    simulation.read((b"a", 0), 6)
    assert not simulation.read((b"b", 0), 11)
    assert not simulation.read((b"b", 0), 11)
    assert simulation.read((b"a", 0), 6)
    assert len(simulation.shelf) == 1


class CountingShelf(MemoryShelf):
    """Counts what a policy changes."""

    changes = 0

    def move(self, entry: Entry, queue: str, counter: int = 0) -> None:
        self.changes += 1
        super().move(entry, queue, counter)

    def count(self, entry: Entry, counter: int) -> None:
        self.changes += 1
        super().count(entry, counter)


@pytest.mark.parametrize("policy", names())
def test_a_victim_is_found_soon_even_where_every_block_was_read(policy: str) -> None:
    chosen = named(policy)
    shelf = CountingShelf(1000 * SIZE)
    for blob in range(1000):
        shelf.insert((blob.to_bytes(2, "big"), 0), SIZE, chosen.queues[-1])
    for _ in range(3):
        for blob in range(1000):
            entry = shelf.get((blob.to_bytes(2, "big"), 0))
            assert entry is not None
            chosen.hit(shelf, entry)
    for _ in range(30):
        shelf.changes = 0
        victim = chosen.victim(shelf)
        assert victim is not None
        chosen.evicted(shelf, victim)
        assert shelf.changes <= MOST_SPARED
    assert len(shelf) == 970


reads = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 4)), max_size=120)


@settings(deadline=None)
@given(policy=st.sampled_from(names()), capacity=st.integers(1, 12), reads=reads)
def test_no_policy_exceeds_the_capacity_and_a_block_just_read_is_here(
    policy: str, capacity: int, reads: list[tuple[int, int]]
) -> None:
    simulation = Simulation(named(policy), capacity)
    sizes: dict[int, int] = {}
    for blob, size in reads:
        size = sizes.setdefault(blob, size)
        key = bytes([blob]), 0
        simulation.read(key, size)
        entry = simulation.shelf.get(key)
        assert (entry is not None and entry.queue != GHOST) == (size <= capacity)
        assert simulation.used_bytes <= capacity
        assert simulation.shelf.held_bytes(GHOST) <= capacity


class Recorded:
    """A cache's worth of decisions on any shelf: what is read, and what was evicted for it."""

    def __init__(self, policy: Policy, shelf: "MemoryShelf | Rows") -> None:
        self._policy = policy
        self._shelf = shelf
        self.evicted: list[Key] = []

    def read(self, key: Key, size: int, capacity: int) -> None:
        policy, shelf = self._policy, self._shelf
        entry = shelf.get(key)
        if entry is not None and entry.queue != GHOST:
            policy.hit(shelf, entry)
            return
        queue = policy.admit(entry)
        if entry is not None:
            shelf.drop(entry)
        while sum(map(shelf.held_bytes, policy.queues)) + size > capacity:
            victim = policy.victim(shelf)
            assert victim is not None
            policy.evicted(shelf, victim)
            self.evicted.append(victim.key)
        shelf.insert(key, size, queue)


@pytest.mark.parametrize("policy", names())
def test_the_index_is_a_shelf_as_the_one_in_memory_is(scratch: Path, policy: str) -> None:
    rng = random.Random(5)
    capacity = 60
    sizes = {blob: rng.randrange(1, 8) for blob in range(60)}
    trace = rng.choices(range(60), weights=[1 / (rank + 1) for rank in range(60)], k=1500)
    index = Index(str(scratch / "index.sqlite"), busy_s=1.0)

    def play(shelf: "MemoryShelf | Rows") -> list[Key]:
        recorded = Recorded(named(policy), shelf)
        for blob in trace:
            recorded.read((blob.to_bytes(16, "big"), 0), sizes[blob], capacity)
        return recorded.evicted

    in_memory = play(MemoryShelf(capacity))
    assert len(in_memory) > 100
    assert index.write(play, capacity) == in_memory
    index.close()


def test_without_a_capacity_small_is_a_tenth_of_what_is_held(scratch: Path) -> None:
    index = Index(str(scratch / "index.sqlite"), busy_s=1.0)

    def fill(rows: Rows) -> tuple[int, Key | None, Key | None]:
        shelf: Shelf = rows
        policy = named("s3fifo")
        for blob in range(90):
            rows.insert((bytes([blob]), 0), SIZE, "main")
        for blob in range(90, 100):
            rows.insert((bytes([blob]), 0), SIZE, "small")
        room = shelf.room_bytes
        first = policy.victim(shelf)
        assert first is not None
        policy.evicted(shelf, first)
        second = policy.victim(shelf)
        return room, first.key, second.key if second is not None else None

    assert index.write(fill) == (100 * SIZE, (bytes([90]), 0), (bytes([0]), 0))
    index.close()
