"""Records that are used again: how they are kept, how old they get, and that they are never older than was asked."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import itertools
from collections.abc import Awaitable
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.kv.memory_engine import MemoryEngine
from tests.metadata.test_round_trips import counted
from tests.metadata.world import MASTER, large, no_combine, no_composite, part, small
from tigrislike.metadata import (
    Bucket,
    CompletedPart,
    Found,
    Metadata,
    NoSuchBucket,
    NoSuchKey,
    ObjectVersion,
    UploadDraft,
)
from tigrislike.metadata.bounded import Bounds, Recalled, Recollection, bound_ns, parse_read_mode
from tigrislike.metadata.errors import InvalidArgument, RecordsChanged
from tigrislike.metadata.kv import EngineUnavailable, Faults, ManualClock

T = TypeVar("T")

SECOND = 1_000_000_000
BOUND = 10 * SECOND
OUTAGE = 60 * SECOND
PLACE = b"bucket", "key"


# --- how a mode is written


@pytest.mark.parametrize(
    ("written", "kept", "bound"),
    [
        ("strong", "strong", 0),
        ("bounded=10", "bounded=10s", 10 * SECOND),
        ("bounded=10s", "bounded=10s", 10 * SECOND),
        ("bounded=1.50", "bounded=1.5s", 3 * SECOND // 2),
        ("bounded=250ms", "bounded=0.25s", SECOND // 4),
        ("bounded=1ms", "bounded=0.001s", SECOND // 1000),
        ("bounded=5m", "bounded=300s", 300 * SECOND),
        ("bounded=1h", "bounded=3600s", 3600 * SECOND),
    ],
)
def test_a_read_mode_is_kept_in_one_way(written: str, kept: str, bound: int) -> None:
    assert parse_read_mode(written) == kept
    assert bound_ns(kept) == bound


@given(st.integers(1, 3_600_000))
def test_every_bound_comes_back(bound_ms: int) -> None:
    kept = parse_read_mode(f"bounded={bound_ms}ms")
    assert bound_ns(kept) == bound_ms * 1_000_000
    assert parse_read_mode(kept) == kept


@pytest.mark.parametrize(
    "nonsense",
    [
        *("", "Strong", "bounded", "bounded=", "bounded=0", "bounded=0.5ms", "bounded=-1s", "bounded=1e3", "eventual"),
        *("bounded=61m", "bounded=10s\n", "bounded=nan", "bounded=9999999h", "bounded=10 s", "bounded=\u0661s"),
        "bounded=10d",
    ],
)
def test_nonsense_is_no_read_mode(nonsense: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_read_mode(nonsense)


def test_a_mode_of_a_newer_release_is_read_as_strong() -> None:
    assert bound_ns("causal=token") == 0


# --- what is kept


def version(stamp: int, size: int = 3) -> ObjectVersion:
    return ObjectVersion(stamp, size, "etag")


def kept(
    memory: Recollection, place: tuple[bytes, str], stamp: int, true_ns: int, inline: bytes | None = b"abc"
) -> None:
    found = None if inline is None else Found(version(stamp), inline)
    with memory.reading(place) as reading:
        memory.keep(place, None, version(stamp), found, true_ns, reading)


def test_a_head_keeps_the_bytes_of_the_same_version_and_drops_those_of_another() -> None:
    memory = Recollection(1_000_000)
    kept(memory, PLACE, 1, 10)
    kept(memory, PLACE, 1, 20, inline=None)
    entry = memory.get(PLACE, None)
    assert entry is not None
    assert entry.true_ns == 20
    assert entry.found == Found(version(1), b"abc")
    kept(memory, PLACE, 2, 30, inline=None)
    entry = memory.get(PLACE, None)
    assert entry is not None
    assert entry.found is None


def test_what_was_read_earlier_does_not_replace_what_was_read_later() -> None:
    memory = Recollection(1_000_000)
    kept(memory, PLACE, 2, 20)
    kept(memory, PLACE, 1, 10)
    entry = memory.get(PLACE, None)
    assert entry is not None
    assert entry.version.stamp == 2


def test_a_read_that_a_write_has_overtaken_is_not_kept() -> None:
    memory = Recollection(1_000_000)
    with memory.reading(PLACE) as early:
        memory.forget(PLACE)
        with memory.reading(PLACE) as late:  # begun after the write, beside the early one
            memory.keep(PLACE, None, version(1), Found(version(1), b""), 1, early)
            assert memory.get(PLACE, None) is None
            memory.keep(PLACE, None, version(2), Found(version(2), b""), 2, late)
    assert memory.get(PLACE, None) is not None
    assert memory._under_way == {}


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 40_000), st.sampled_from(["keep", "forget", "gone"])))
)
def test_memory_is_bounded_whatever_happens(steps: list[tuple[str, int, str]]) -> None:
    memory = Recollection(100_000)
    for n, (key, size, what) in enumerate(steps):
        place = b"bucket", key
        if what == "keep":
            kept(memory, place, n, n, bytes(size))
            assert memory.get(place, None) is not None
        elif what == "forget":
            memory.forget(place)
        else:
            memory.forget_version(place, None)
        assert memory.bytes == sum(entry.weight for some in memory._places.values() for entry in some.values())
        assert memory.bytes <= 100_000
    for key in "abcdef":
        memory.forget((b"bucket", key))
    assert (memory.bytes, len(memory._places)) == (0, 0)


def test_the_least_recently_used_go_first_and_what_is_too_large_is_not_kept() -> None:
    memory = Recollection(100_000)
    for key in "abc":
        kept(memory, (b"bucket", key), 1, 1, bytes(30_000))
    assert memory.get((b"bucket", "a"), None) is not None
    kept(memory, (b"bucket", "d"), 1, 1, bytes(30_000))
    assert [memory.get((b"bucket", key), None) is not None for key in "abcd"] == [True, False, True, True]
    kept(memory, (b"bucket", "huge"), 1, 1, bytes(200_000))
    assert memory.get((b"bucket", "huge"), None) is None


# --- through the store


class Nodes:
    """Two processes over one database, on a clock of the test's; `faults` are of the first one's way to it."""

    def __init__(self, seed: int = 0) -> None:
        self.clock = ManualClock()
        self.faults = Faults()
        self.engine = MemoryEngine(seed=seed, clock=self.clock)
        self.here: Metadata
        self.elsewhere: Metadata

    async def open(self) -> None:
        options = {"master_key": MASTER, "node_id": b"node-of-the-test", "region": "here"}
        bounds = Bounds(outage_ns=OUTAGE)
        cut = Cut(self.engine, self.faults)
        self.here = await Metadata.open(cut, **options, bounds=bounds, monotonic_ns=self.clock.monotonic_ns)  # type: ignore[arg-type]
        self.elsewhere = await Metadata.open(self.engine, **options)  # type: ignore[arg-type]
        await self.elsewhere.create_bucket("bucket", "me", read_mode="bounded=10s")

    async def close(self) -> None:
        await self.here.aclose()
        await self.engine.close()


class Cut:
    """The engine, as far as the faults let it be reached."""

    def __init__(self, engine: MemoryEngine, faults: Faults) -> None:
        self._engine = engine
        self._faults = faults

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    async def read(self, *args: object, **options: object) -> object:
        self._faults.check_reachable()
        return await self._engine.read(*args, **options)  # type: ignore[arg-type]


async def bucket_of(metadata: Metadata, name: str = "bucket") -> Bucket:
    await metadata.refresh()
    return await metadata.bucket(name)


async def ask(metadata: Metadata, key: str, *, whole: bool = True, name: str = "bucket") -> tuple[Recalled | None, str]:
    """What a read is told, as the front door goes about it: what it was recalled from, and the ETag."""
    recalled = metadata.recall(name, key, None, None, whole=whole)
    if recalled is not None and not recalled.fresh:
        recalled = await metadata.renew(recalled, name, None, whole=whole)
    if recalled is not None:
        return recalled, (await recalled.head_object(await recalled.bucket(name), key)).etag
    while True:
        bucket = await bucket_of(metadata, name)
        try:
            if whole:
                return None, (await metadata.find_object(bucket, key, prove=True)).version.etag
            return None, (await metadata.head_object(bucket, key, prove=True)).etag
        except RecordsChanged:
            continue


def play(story: object, seed: int = 0) -> None:
    async def main() -> None:
        nodes = Nodes(seed)
        await nodes.open()
        try:
            await story(nodes)  # type: ignore[operator]
        finally:
            await nodes.close()

    asyncio.run(main())


def test_within_the_bound_the_database_is_asked_nothing() -> None:
    async def story(nodes: Nodes) -> None:
        bucket = await bucket_of(nodes.elsewhere)
        key = await nodes.elsewhere.create_access_key("me")
        upload = await nodes.elsewhere.create_upload(bucket, "parts", UploadDraft())
        parts = [part(n, b"part-%d" % n) for n in (1, 2)]
        for each in parts:
            await nodes.elsewhere.put_part(bucket, "parts", upload.upload_id, each)
        listed = [CompletedPart(each.number, each.etag) for each in parts]
        await nodes.elsewhere.complete_upload(
            bucket, "parts", upload.upload_id, listed, combine=no_combine, composite=no_composite
        )
        await nodes.elsewhere.put_object(bucket, "inline", small(b"bytes"))
        await nodes.elsewhere.put_object(bucket, "blob", large(b"blob"))
        await nodes.here.refresh()
        await nodes.here.access_key(key.key_id)
        for name in ("parts", "inline", "blob"):
            await ask(nodes.here, name)
        trips = counted(nodes.engine)
        nodes.clock.advance(BOUND - SECOND)
        for name in ("parts", "inline", "blob"):
            recalled = nodes.here.recall("bucket", name, None, key.key_id, whole=True)
            assert recalled is not None
            assert recalled.fresh
            assert await recalled.access_key(key.key_id) == key
            bucket = await recalled.bucket("bucket")
            found = await recalled.find_object(bucket, name)
            assert found.inline == b"bytes" or sum(each.size for each in found.parts) == found.version.size > 0
        assert trips.cost() == (0, 0, 0)

    play(story)


def test_at_the_bound_a_record_answers_and_beyond_it_is_proven_anew_in_one_round() -> None:
    async def story(nodes: Nodes) -> None:
        await nodes.elsewhere.put_object(await bucket_of(nodes.elsewhere), "k", small(b"1"))
        begun_ns = nodes.clock.monotonic_ns()
        _, first = await ask(nodes.here, "k")
        await nodes.elsewhere.put_object(await bucket_of(nodes.elsewhere), "k", small(b"2"))
        nodes.clock.advance(begun_ns + BOUND - nodes.clock.monotonic_ns())
        recalled, etag = await ask(nodes.here, "k")
        assert recalled is not None
        assert (recalled.age_ns, etag) == (BOUND, first)
        nodes.clock.advance(1)
        trips = counted(nodes.engine)
        recalled, etag = await ask(nodes.here, "k")
        assert recalled is not None
        assert (recalled.age_ns, etag != first) == (0, True)
        assert trips.cost() == (1, 0, 1)

    play(story)


def test_what_is_not_there_is_asked_for_every_time() -> None:
    async def story(nodes: Nodes) -> None:
        for _ in range(2):
            with pytest.raises(NoSuchKey):
                await ask(nodes.here, "k")
        await nodes.elsewhere.put_object(await bucket_of(nodes.elsewhere), "k", small(b"1"))
        await ask(nodes.here, "k")
        await nodes.elsewhere.delete_object(await bucket_of(nodes.elsewhere), "k")
        nodes.clock.advance(BOUND + 1)
        with pytest.raises(NoSuchKey):
            await ask(nodes.here, "k")
        nodes.faults.cut_off = True  # and then it is not what it was any more
        with pytest.raises(EngineUnavailable):
            await ask(nodes.here, "k")

    play(story)


def test_each_kind_of_own_write_is_read_at_once() -> None:
    async def story(nodes: Nodes) -> None:
        here = nodes.here
        bucket = await bucket_of(here)
        await here.put_object(bucket, "other", small(b"other"))

        async def complete() -> object:
            upload = await here.create_upload(bucket, "k", UploadDraft())
            each = await here.put_part(bucket, "k", upload.upload_id, part(1, b"one"))
            return await here.complete_upload(
                bucket, "k", upload.upload_id, [CompletedPart(1, each.etag)], combine=no_combine, composite=no_composite
            )

        async def copy() -> object:
            return await here.copy_object((bucket, "other", None), None, bucket, "k", lambda _: small(b"copied"))

        await here.put_object(bucket, "k", small(b"0"))
        etags = []
        for write in (lambda: here.put_object(bucket, "k", small(b"1")), complete, copy):
            before = (await ask(here, "k"))[1]
            assert (await ask(here, "k"))[0] is not None
            await write()
            recalled, after = await ask(here, "k")
            assert recalled is None
            assert after != before
            etags.append(after)
        await ask(here, "k")
        await here.put_object_tags(bucket, "k", None, {"a": "b"})
        assert (await here.find_object(await bucket_of(here), "k", prove=True)).version.tags == {"a": "b"}
        assert here.recall("bucket", "k", None, None, whole=True) is not None
        await here.delete_objects(bucket, [("k", None, None)])
        with pytest.raises(NoSuchKey):
            await ask(here, "k")
        await ask(here, "other")
        await here.delete_object(bucket, "other")
        with pytest.raises(NoSuchKey):
            await ask(here, "other")

    play(story)


def test_a_record_that_this_process_changed_answers_no_more_even_in_an_outage() -> None:
    async def story(nodes: Nodes) -> None:
        here = nodes.here
        key = await here.create_access_key("me")
        await here.put_object(await bucket_of(here), "k", small(b"1"))
        await here.access_key(key.key_id)
        await ask(here, "k")
        assert here.recall("bucket", "k", None, key.key_id, whole=True) is not None
        await here.delete_access_key(key.key_id)
        assert here.recall("bucket", "k", None, key.key_id, whole=True) is None
        assert here.recall("bucket", "k", None, None, whole=True) is not None  # the bucket is what it was
        await here.change_bucket("bucket", public=True)
        assert here.recall("bucket", "k", None, None, whole=True) is None
        await ask(here, "k")
        await here.change_bucket("bucket", read_mode="strong")
        await ask(here, "k")
        assert here.recall("bucket", "k", None, None, whole=True) is None

    play(story)


def test_records_that_were_dropped_for_a_change_elsewhere_still_answer_an_outage() -> None:
    async def story(nodes: Nodes) -> None:
        await nodes.elsewhere.put_object(await bucket_of(nodes.elsewhere), "k", small(b"1"))
        _, etag = await ask(nodes.here, "k")
        nodes.clock.advance(BOUND)
        await nodes.elsewhere.create_bucket("unrelated", "me")
        await nodes.elsewhere.change_bucket("unrelated", public=True)
        await nodes.here.refresh()  # which empties the cache
        nodes.faults.cut_off = True
        nodes.clock.advance(SECOND)
        recalled, found = await ask(nodes.here, "k")
        assert found == etag
        assert recalled is not None
        assert not recalled.fresh
        nodes.clock.advance(OUTAGE)
        with pytest.raises(EngineUnavailable):
            await ask(nodes.here, "k")

    play(story)


def test_what_was_learned_of_a_record_holds_in_an_outage_too() -> None:
    async def story(nodes: Nodes) -> None:
        key = await nodes.elsewhere.create_access_key("me")
        await nodes.elsewhere.put_object(await bucket_of(nodes.elsewhere), "k", small(b"1"))
        await nodes.here.refresh()
        await nodes.here.access_key(key.key_id)
        await ask(nodes.here, "k")
        await nodes.elsewhere.delete_access_key(key.key_id)
        await nodes.here.refresh()
        assert nodes.here.recall("bucket", "k", None, key.key_id, whole=True) is not None  # it may be true still
        assert await nodes.here.access_key(key.key_id) is None
        assert nodes.here.recall("bucket", "k", None, key.key_id, whole=True) is None
        await nodes.elsewhere.delete_object(await bucket_of(nodes.elsewhere), "k")
        await nodes.elsewhere.delete_bucket("bucket")
        with pytest.raises(NoSuchBucket):
            await bucket_of(nodes.here)
        nodes.faults.cut_off = True
        assert nodes.here.recall("bucket", "k", None, None, whole=True) is None

    play(story)


def test_a_key_is_as_old_as_it_is_however_often_others_read_the_object() -> None:
    async def story(nodes: Nodes) -> None:
        key = await nodes.elsewhere.create_access_key("me")
        await nodes.elsewhere.put_object(await bucket_of(nodes.elsewhere), "k", small(b"1"))
        await nodes.here.refresh()
        await nodes.here.access_key(key.key_id)
        await ask(nodes.here, "k")
        await nodes.elsewhere.delete_access_key(key.key_id)
        for _ in range(4):
            nodes.clock.advance(BOUND // 2 + SECOND)
            await nodes.here.refresh()
            await ask(nodes.here, "k")
            await ask(nodes.here, "k")
        recalled = nodes.here.recall("bucket", "k", None, None, whole=True)
        assert recalled is not None
        assert recalled.fresh
        recalled = nodes.here.recall("bucket", "k", None, key.key_id, whole=True)
        assert recalled is not None
        assert not recalled.fresh
        assert await nodes.here.renew(recalled, "bucket", key.key_id, whole=True) is None

    play(story)


def test_what_a_slow_read_finds_is_as_old_as_the_read() -> None:
    async def story(nodes: Nodes) -> None:
        await nodes.elsewhere.put_object(await bucket_of(nodes.elsewhere), "k", small(b"1"))
        bucket = await bucket_of(nodes.here)
        engine = nodes.here.engine
        found, go_on = asyncio.Event(), asyncio.Event()

        async def slowly(*args: object) -> object:
            value = await nodes.engine.read(*args)  # type: ignore[arg-type]
            found.set()
            await go_on.wait()
            return value

        nodes.here._records._engine = Slow(engine, slowly)  # type: ignore[assignment]
        read = asyncio.create_task(nodes.here.find_object(bucket, "k", prove=True))
        await found.wait()
        nodes.here._records._engine = engine
        nodes.clock.advance(8 * SECOND)
        await nodes.elsewhere.put_object(await bucket_of(nodes.elsewhere), "k", small(b"2"))
        await nodes.here.refresh()
        go_on.set()
        await read
        recalled = nodes.here.recall("bucket", "k", None, None, whole=True)
        assert recalled is not None
        assert recalled.age_ns >= 8 * SECOND

    play(story)


class Slow:
    """An engine that reads in a way of the test's."""

    def __init__(self, engine: object, read: object) -> None:
        self._engine = engine
        self.read = read


def test_a_change_of_the_bucket_elsewhere_is_noticed_within_the_bound() -> None:
    async def story(nodes: Nodes) -> None:
        await nodes.elsewhere.put_object(await bucket_of(nodes.elsewhere), "k", small(b"1"))
        await ask(nodes.here, "k")
        await nodes.elsewhere.change_bucket("bucket", public=True)
        nodes.clock.advance(BOUND // 2)
        recalled, _ = await ask(nodes.here, "k")
        assert recalled is not None
        assert not (await recalled.bucket("bucket")).public
        nodes.clock.advance(BOUND)
        await ask(nodes.here, "k")
        recalled, _ = await ask(nodes.here, "k")
        assert recalled is not None
        assert (await recalled.bucket("bucket")).public

    play(story)


def test_nothing_is_kept_of_strong_buckets() -> None:
    async def story(nodes: Nodes) -> None:
        await nodes.here.create_bucket("strong", "me")
        await nodes.here.put_object(await bucket_of(nodes.here, "strong"), "k", small(b"1"))
        await ask(nodes.here, "k", name="strong")
        assert nodes.here._recollection.bytes == 0
        assert nodes.here.recall("strong", "k", None, None, whole=True) is None

    play(story)


# --- against a model

KEYS = ["a", "b"]


class History:
    """What one key's live ETag was (None: nothing), since when on the monotonic clock."""

    def __init__(self) -> None:
        self.times = [0]
        self.etags: list[str | None] = [None]

    def add(self, at_ns: int, etag: str | None) -> None:
        self.times.append(at_ns)
        self.etags.append(etag)

    def since(self, at_ns: int) -> list[str | None]:
        """Every state from the moment `at_ns` on."""
        return self.etags[max(bisect.bisect_right(self.times, at_ns) - 1, 0) :]


class BoundedReads(RuleBasedStateMachine):
    """Two processes write; one reads with bounds, and is cut off now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.nodes = Nodes()
        self.do(self.nodes.open())
        self.histories = {key: History() for key in KEYS}
        self.own_writes = dict.fromkeys(KEYS, 0)
        self.numbers = itertools.count()

    def do(self, awaitable: Awaitable[T]) -> T:
        return self.loop.run_until_complete(awaitable)

    def teardown(self) -> None:
        self.do(self.nodes.close())
        self.loop.close()

    def now(self) -> int:
        return self.nodes.clock.monotonic_ns()

    async def write(self, key: str, here: bool) -> None:
        node = self.nodes.here if here else self.nodes.elsewhere
        bucket = await bucket_of(self.nodes.elsewhere)
        made = await node.put_object(bucket, key, small(b"%d" % next(self.numbers)))
        self.histories[key].add(self.now(), made.etag)
        if here:
            self.own_writes[key] = len(self.histories[key].etags) - 1

    async def read(self, key: str, whole: bool) -> None:
        history = self.histories[key]
        cut = self.nodes.faults.cut_off
        begun_ns = self.now()
        try:
            recalled, etag = await ask(self.nodes.here, key, whole=whole)
        except NoSuchKey:
            assert not cut
            assert history.etags[-1] is None
            return
        except EngineUnavailable:
            assert cut or self.nodes.here.outage.certain
            return
        states = history.etags if recalled is None else history.since(begun_ns - recalled.age_ns)
        if recalled is None:
            assert etag == history.etags[-1]
        else:
            assert recalled.age_ns <= (BOUND if recalled.fresh else OUTAGE)
            assert recalled.fresh or self.nodes.here.outage.under_way
            assert etag in states
        # What was written through this process, or is newer.
        assert etag in history.etags[self.own_writes[key] :]

    @rule(key=st.sampled_from(KEYS), here=st.booleans())
    def put(self, key: str, here: bool) -> None:
        self.do(self.write(key, here))

    @rule(key=st.sampled_from(KEYS), here=st.booleans())
    def delete(self, key: str, here: bool) -> None:
        async def delete() -> None:
            node = self.nodes.here if here else self.nodes.elsewhere
            await node.delete_object(await bucket_of(self.nodes.elsewhere), key)

        self.do(delete())
        self.histories[key].add(self.now(), None)
        if here:
            self.own_writes[key] = len(self.histories[key].etags) - 1

    @rule(key=st.sampled_from(KEYS), whole=st.booleans())
    def get(self, key: str, whole: bool) -> None:
        self.do(self.read(key, whole))

    @rule(key=st.sampled_from(KEYS))
    def write_while_reads_are_under_way(self, key: str) -> None:
        async def at_once() -> None:
            async def read() -> None:
                with contextlib.suppress(NoSuchKey, EngineUnavailable):
                    await ask(self.nodes.here, key)

            await asyncio.gather(read(), self.write(key, here=True), read())

        self.do(at_once())

    @rule(public=st.booleans())
    def change_the_bucket(self, public: bool) -> None:
        self.do(self.nodes.elsewhere.change_bucket("bucket", public=public))

    @rule(seconds=st.sampled_from([1, 4, 9, 11, 61]))
    def wait(self, seconds: int) -> None:
        self.nodes.clock.advance(seconds * SECOND)

    @rule(cut=st.booleans())
    def reach(self, cut: bool) -> None:
        self.nodes.faults.cut_off = cut
        if not cut and self.nodes.here.outage.under_way:
            # What the next question in the background will find.
            self.do(self.nodes.here.outage.close())
            self.nodes.here.outage.certain = False

    @invariant()
    def memory_is_what_it_says(self) -> None:
        memory = self.nodes.here._recollection
        assert memory._under_way == {}
        assert memory.bytes == sum(entry.weight for some in memory._places.values() for entry in some.values())


BoundedReads.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
test_an_answer_is_never_older_than_it_says_nor_than_the_bound = BoundedReads.TestCase


@pytest.mark.parametrize("seed", range(40))
def test_own_writes_are_read_whatever_reads_they_overtake(seed: int) -> None:
    async def story(nodes: Nodes) -> None:
        here = nodes.here
        bucket = await bucket_of(here)
        await here.put_object(bucket, "k", small(b"old"))
        made, *_ = await asyncio.gather(
            here.put_object(bucket, "k", small(b"new")), ask(here, "k"), ask(here, "k"), ask(here, "k", whole=False)
        )
        assert (await ask(here, "k"))[1] == made.etag

    play(story, seed)
