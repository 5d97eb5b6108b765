"""How often an operation waits for the database, counted: on a distant one that is what it costs.

A *round* is a wait for reads that were asked for together. The read version that every transaction asks for first, and
the metadata version that comes with it, are not counted; a commit is counted by itself. The count is taken below the
retry loop, on the memory engine, and so includes what the engine itself reads (whether the store is sealed).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.kv.memory_engine import MemoryEngine
from tests.metadata.world import NODE, blob_id, large, listed, no_combine, no_composite, part, play, small
from tigrislike.metadata import Bucket, Deletion, Metadata, UploadDraft, owed
from tigrislike.metadata.homes import ACCELERATION
from tigrislike.metadata.store import DELETE_BATCH


class Trips:
    """What a stretch of work cost: `rounds` of reads, `commits`, `transactions`."""

    def __init__(self) -> None:
        self.rounds = 0
        self.commits = 0
        self.transactions = 0

    def __repr__(self) -> str:
        return f"{self.rounds} rounds, {self.commits} commits, {self.transactions} transactions"

    def cost(self) -> tuple[int, int, int]:
        return self.rounds, self.commits, self.transactions


class CountedRead:
    """A read that knows whether its answer has come with that of another."""

    def __init__(self, tr: CountedTransaction, read: Awaitable[Any]) -> None:
        self._tr = tr
        self._read = read
        self._asked_in = tr.round

    def __await__(self) -> Generator[Any, Any, Any]:
        if self._asked_in == self._tr.round:
            # Whatever was asked for by now travels together.
            self._tr.round += 1
            self._tr.trips.rounds += 1
        return (yield from self._read.__await__())


WRITES = frozenset({"set", "clear", "clear_range", "add", "max", "bump_metadata_version"})


class CountedTransaction:
    """An attempt of the memory engine, counted."""

    def __init__(self, tr: Any, trips: Trips) -> None:
        self._tr = tr
        self.trips = trips
        self.round = 0
        self._asked_in = -1
        self._written = False
        trips.transactions += 1

    def __getattr__(self, name: str) -> Any:
        if name in WRITES and self._asked_in == self.round:
            self._written = True
        return getattr(self._tr, name)

    def get(self, *args: Any, **options: Any) -> CountedRead:
        return self._asked(self._tr.get(*args, **options))

    def get_range(self, *args: Any, **options: Any) -> CountedRead:
        return self._asked(self._tr.get_range(*args, **options))

    def _asked(self, read: Awaitable[Any]) -> CountedRead:
        if self._written and self._asked_in == self.round:
            # On FoundationDB a write waits for the reads before it, and what comes after it waits too.
            self.round += 1
            self.trips.rounds += 1
        self._written = False
        self._asked_in = self.round
        return CountedRead(self, read)

    async def commit(self) -> None:
        self.trips.commits += self._tr.mutates
        await self._tr.commit()


def counted(engine: MemoryEngine) -> Trips:
    """Count what `engine` does from here on."""
    trips = Trips()
    for runner in (engine._runner, engine._reader):
        begin = runner._begin
        runner._begin = lambda kind, left_s, begin=begin: CountedTransaction(  # type: ignore[assignment, misc, return-value]
            begin(kind, left_s), trips
        )
    return trips


Story = Callable[[Metadata, Bucket], Awaitable[Any]]


def trips_of(story: Story, *, before: Story | None = None, versioning: str = "", policy: str = "") -> Trips:
    """What `story` costs, in a bucket where `before` has happened, for a process that has seen the bucket."""

    async def main(metadata: Metadata) -> Trips:
        await metadata.create_bucket("bucket", "owner", region_policy=policy)
        if versioning:
            await metadata.set_versioning("bucket", versioning)
        await metadata.refresh()
        bucket = await metadata.bucket("bucket")
        if before is not None:
            await before(metadata, bucket)
        # A transaction of the process has seen that the store is not sealed.
        await metadata.put_object(bucket, "warm", small(b"up"))
        assert isinstance(metadata.engine, MemoryEngine)
        trips = counted(metadata.engine)
        await story(metadata, bucket)
        return trips

    return play("memory", Path(), main)


async def put(metadata: Metadata, bucket: Bucket) -> None:
    await metadata.put_object(bucket, "key", small(b"bytes"))


async def put_large(metadata: Metadata, bucket: Bucket) -> None:
    await metadata.put_object(bucket, "key", large(b"one"))


async def put_other_large(metadata: Metadata, bucket: Bucket) -> None:
    await metadata.put_object(bucket, "key", large(b"two"))


async def get(metadata: Metadata, bucket: Bucket) -> None:
    await metadata.find_object(bucket, "key", prove=True)


async def head(metadata: Metadata, bucket: Bucket) -> None:
    await metadata.head_object(bucket, "key", prove=True)


async def delete(metadata: Metadata, bucket: Bucket) -> None:
    await metadata.delete_object(bucket, "key")


async def many(metadata: Metadata, bucket: Bucket) -> None:
    for n in range(1100):
        await metadata.put_object(bucket, f"{n:04d}", small(b"x"))


async def list_page(metadata: Metadata, bucket: Bucket) -> None:
    assert len((await metadata.list_objects(bucket)).entries) == 1000


PARTS = [part(n, b"part-%d" % n) for n in range(1, 4)]


class Upload:
    upload_id = ""

    async def create(self, metadata: Metadata, bucket: Bucket) -> None:
        self.upload_id = (await metadata.create_upload(bucket, "key", UploadDraft())).upload_id

    async def put_parts(self, metadata: Metadata, bucket: Bucket) -> None:
        await self.create(metadata, bucket)
        for each in PARTS:
            await metadata.put_part(bucket, "key", self.upload_id, each)

    async def put_part(self, metadata: Metadata, bucket: Bucket) -> None:
        await metadata.put_part(bucket, "key", self.upload_id, PARTS[0])

    async def complete(self, metadata: Metadata, bucket: Bucket) -> None:
        await metadata.complete_upload(
            bucket, "key", self.upload_id, listed(*PARTS), combine=no_combine, composite=no_composite
        )

    async def complete_without_the_first(self, metadata: Metadata, bucket: Bucket) -> None:
        await metadata.complete_upload(
            bucket, "key", self.upload_id, listed(*PARTS[1:]), combine=no_combine, composite=no_composite
        )

    async def abort(self, metadata: Metadata, bucket: Bucket) -> None:
        await metadata.abort_upload(bucket, "key", self.upload_id)


def after(*stories: Story) -> Story:
    """One story after another."""

    async def all_of_them(metadata: Metadata, bucket: Bucket) -> None:
        for story in stories:
            await story(metadata, bucket)

    return all_of_them


@pytest.mark.parametrize("versioning", ["", "Enabled", "Suspended"])
@pytest.mark.parametrize("story", [get, head])
@pytest.mark.parametrize("before", [put, put_large])
def test_a_read_of_one_object_is_one_round_trip(story: Story, before: Story, versioning: str) -> None:
    # And the proof that bucket and key are still what the process remembers comes along.
    assert trips_of(story, before=before, versioning=versioning).cost() == (1, 0, 1)


def test_a_multipart_object_is_found_in_one_round_trip_once_its_manifest_is_known() -> None:
    upload = Upload()
    assert trips_of(get, before=after(upload.put_parts, upload.complete)).cost() == (2, 0, 2)
    upload = Upload()
    assert trips_of(get, before=after(upload.put_parts, upload.complete, get)).cost() == (1, 0, 1)


@pytest.mark.parametrize("versioning", ["", "Enabled", "Suspended"])
@pytest.mark.parametrize("story", [put, put_large])
@pytest.mark.parametrize("before", [None, put])
def test_a_put_asks_for_all_it_reads_together_and_commits(story: Story, before: Story | None, versioning: str) -> None:
    assert trips_of(story, before=before, versioning=versioning).cost() == (1, 1, 1)


async def accelerate(metadata: Metadata, bucket: Bucket) -> None:
    metadata.regions.known = frozenset({"here", "there", "elsewhere"})
    await metadata.put_bucket_config("bucket", ACCELERATION, b"Enabled")
    await metadata.refresh()
    await metadata.bucket("bucket")


async def put_large_as_it_is_now(metadata: Metadata, bucket: Bucket) -> None:
    await metadata.put_object(await metadata.bucket("bucket"), "key", large(b"one"))


def test_an_accelerated_put_asks_once_more_for_all_regions_together() -> None:
    assert trips_of(put_large_as_it_is_now, before=accelerate).cost() == (2, 1, 1)


async def prefetch(metadata: Metadata, bucket: Bucket) -> None:
    await metadata.owe_warm_objects(bucket, [f"{n}" for n in range(100)])


async def put_a_hundred(metadata: Metadata, bucket: Bucket) -> None:
    for n in range(100):
        await metadata.put_object(bucket, f"{n}", large(b"%d" % n))


def test_owing_the_warming_of_a_hundred_objects_is_two_round_trips_and_a_commit() -> None:
    assert trips_of(prefetch, before=put_a_hundred).cost() == (2, 1, 1)


@pytest.mark.parametrize("story", [put, put_other_large, delete])
def test_bytes_in_files_that_are_replaced_or_deleted_cost_one_round_trip_more(story: Story) -> None:
    # What owes their reclaiming can only be asked for once it is known what they are.
    assert trips_of(story, before=put_large).cost() == (2, 1, 1)
    assert trips_of(story, before=put_large, versioning="Enabled").cost() == (1, 1, 1)  # they stay


@pytest.mark.parametrize("versioning", ["", "Enabled", "Suspended"])
def test_a_delete_is_one_round_trip_and_a_commit(versioning: str) -> None:
    assert trips_of(delete, before=put, versioning=versioning).cost() == (1, 1, 1)


def test_deleting_what_is_not_there_commits_nothing() -> None:
    assert trips_of(delete).cost() == (1, 0, 1)


def test_deleting_many_is_one_round_trip_for_each_batch() -> None:
    async def delete_many(metadata: Metadata, bucket: Bucket) -> None:
        keys = [f"{n:04d}" for n in range(2 * DELETE_BATCH)]
        outcomes = await metadata.delete_objects(bucket, [(key, None, None) for key in keys])
        assert all(isinstance(outcome, Deletion) for outcome in outcomes)

    assert trips_of(delete_many, before=many).cost() == (2, 2, 2)


def test_a_page_of_a_listing_is_one_round_trip() -> None:
    assert trips_of(list_page, before=many).cost() == (1, 0, 1)


def test_multipart_uploads() -> None:
    upload = Upload()
    assert trips_of(upload.create).cost() == (0, 1, 1)
    upload = Upload()
    assert trips_of(upload.put_part, before=upload.create).cost() == (1, 1, 1)
    upload = Upload()
    assert trips_of(upload.put_part, before=upload.put_parts).cost() == (2, 1, 1)  # the part's old bytes are owed
    for before in (None, put):
        upload = Upload()
        assert trips_of(upload.complete, before=after(*filter(None, [before, upload.put_parts]))).cost() == (1, 1, 1)
    upload = Upload()
    assert trips_of(upload.complete, before=after(put_large, upload.put_parts)).cost() == (2, 1, 1)
    upload = Upload()
    assert trips_of(upload.complete_without_the_first, before=upload.put_parts).cost() == (2, 1, 1)
    upload = Upload()
    assert trips_of(upload.abort, before=upload.put_parts).cost() == (1, 1, 1)


POLICIES = ["here", "here,there", "here,there,elsewhere"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("story", [get, head])
def test_a_policy_costs_reads_nothing(story: Story, policy: str) -> None:
    assert trips_of(story, before=put_large, policy=policy).cost() == (1, 0, 1)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_costs_small_objects_nothing(policy: str) -> None:
    assert trips_of(put, policy=policy).cost() == (1, 1, 1)
    assert trips_of(delete, before=put, policy=policy).cost() == (1, 1, 1)


@pytest.mark.parametrize("policy", POLICIES)
def test_homes_elsewhere_are_owed_at_one_round_trip_more_however_many(policy: str) -> None:
    owing = policy != "here"
    assert trips_of(put_large, policy=policy).cost() == (1 + owing, 1, 1)
    assert trips_of(delete, before=put_large, policy=policy).cost() == (2, 1, 1)
    upload = Upload()
    assert trips_of(upload.put_part, before=upload.create, policy=policy).cost() == (1, 1, 1)
    upload = Upload()
    assert trips_of(upload.complete, before=upload.put_parts, policy=policy).cost() == (1 + owing, 1, 1)


def test_finding_the_homes_of_a_blob_is_one_round_trip_and_for_a_part_two() -> None:
    async def locate(metadata: Metadata, bucket: Bucket) -> None:
        assert await metadata.locate(blob_id(b"one")) is not None

    async def locate_part(metadata: Metadata, bucket: Bucket) -> None:
        assert await metadata.locate(PARTS[0].extents[0].blob) is not None

    assert trips_of(locate, before=put_large).cost() == (1, 0, 1)
    upload = Upload()
    assert trips_of(locate_part, before=upload.put_parts).cost() == (2, 0, 1)


def test_the_queue() -> None:
    async def main(metadata: Metadata) -> None:
        zone = NODE + bytes(16)

        async def owe(tr: Any) -> None:
            for number in range(4):
                await owed.enqueue(tr, metadata.context, zone, "task", b"%d" % number)

        await metadata.engine.transact(owe)
        assert isinstance(metadata.engine, MemoryEngine)
        trips = counted(metadata.engine)

        async def of(running: Awaitable[Any], *cost: int) -> Any:
            before = trips.cost()
            result = await running
            assert tuple(now - then for now, then in zip(trips.cost(), before, strict=True)) == cost
            return result

        queue = metadata.queue
        peeked = await of(queue.peek(NODE), 1, 0, 1)
        assert peeked.zones == [zone]
        lease = await of(queue.lease(zone), 1, 1, 1)
        claimed = (await of(queue.claim(zone, lease), 2, 1, 1)).claimed  # which items, and then these
        assert await of(queue.extend(claimed), 1, 1, 1) == claimed
        assert await of(queue.finish(claimed[0]), 1, 1, 1)
        assert await of(queue.fail(claimed[1], "it broke"), 1, 1, 1)
        await metadata.engine.transact(owe)
        assert await of(queue.finish(claimed[2]), 2, 1, 1)  # its cause has recurred: how is it to be announced?
        lease = await queue.lease(zone, early_ns=metadata.context.queue.poll_ns)
        assert lease is not None
        await queue.claim(zone, lease)
        lease = await queue.lease(zone, early_ns=metadata.context.queue.poll_ns)
        assert lease is not None
        assert (await of(queue.claim(zone, lease), 2, 1, 1)).claimed == []  # what is due, and what else there is

    play("memory", Path(), main)


def test_the_count_itself() -> None:
    """Together is one, one after the other is two, and a write between makes two of what would be one."""

    async def main(fn: Callable[[Any], Awaitable[Any]]) -> tuple[int, int, int]:
        engine = MemoryEngine()
        trips = counted(engine)
        await engine.transact(fn)
        return trips.cost()

    async def together(tr: Any) -> None:
        first, second = tr.get(b"1"), tr.get_range(b"2", b"3")
        await second
        await first

    async def in_turn(tr: Any) -> None:
        await tr.get(b"1")
        await tr.get(b"2")

    async def with_a_write_between(tr: Any) -> None:
        first = tr.get(b"1")
        tr.set(b"3", b"")
        second = tr.get(b"2")
        await first
        await second

    async def with_the_version(tr: Any) -> None:
        await tr.metadata_version()
        await tr.read_version()
        await tr.get(b"1")

    assert asyncio.run(main(together)) == (1, 0, 1)
    assert asyncio.run(main(in_turn)) == (2, 0, 1)
    # One more to see, the first time, that the store is not sealed.
    assert asyncio.run(main(with_a_write_between)) == (3, 1, 1)
    assert asyncio.run(main(with_the_version)) == (1, 0, 1)
