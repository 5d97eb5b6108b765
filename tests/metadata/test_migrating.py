"""A keyspace of an older format becomes one of the present format when it is opened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.metadata.queueing import take_all
from tests.metadata.world import NODE, both_engines, dump, found, play
from tigrislike.admin.fsck import fsck
from tigrislike.metadata import Metadata, migrating, owed, records
from tigrislike.metadata.keyspace import pack_bytes, pack_int, subspace
from tigrislike.metadata.kv import ManualClock
from tigrislike.metadata.migrating import FORMAT
from tigrislike.metadata.records import Counts

ZONES = [NODE + bytes((number,)) * 16 for number in range(3)]
LETTER = records.Item("reclaim_blob", b"dead", 0, 0, attempts=10, error="it broke")


async def plant_format_1(metadata: Metadata, now_ns: int) -> None:
    """Two zones with items, one leased and one with a dead letter, and an empty zone, as format 1 had them."""
    keys = metadata.context.keys

    def put(tr: Any, zone: bytes, item: records.Item) -> None:
        id_ = owed.item_id(item.task, item.subject)
        tr.set(keys.queue_item(zone, id_), records.item.encode(item))
        order = pack_int(item.priority) + pack_int(item.vesting_ns)
        tr.set(keys.queue_due + pack_bytes(zone) + order + pack_bytes(id_), b"")
        tr.add(keys.queue_counts + pack_bytes(zone), 1)

    async def plant(tr: Any) -> None:
        for zone in ZONES:
            tr.set(keys.queue_zone(zone), b"")
        put(tr, ZONES[0], records.Item("reclaim", b"due", 0, 0))
        put(tr, ZONES[0], records.Item("reclaim", b"leased", now_ns + 30 * 10**9, 0, lease=b"somebody's"))
        put(tr, ZONES[1], records.Item("reclaim_blob", b"later", now_ns + 60 * 10**9, 0))
        tr.set(keys.queue_dead_item(ZONES[1], owed.item_id("reclaim_blob", b"dead")), records.item.encode(LETTER))
        tr.add(keys.queue_counts + pack_bytes(ZONES[2]), 0)
        tr.set(keys.cluster, records.cluster.encode(msgspec.structs.replace(metadata.cluster, format=1)))

    await metadata.engine.transact(plant)


def migrated(kind: str, folder: Any, story: Callable[[Metadata, ManualClock], Any]) -> None:
    clock = ManualClock()

    async def main(metadata: Metadata) -> None:
        await plant_format_1(metadata, clock.now_ns())
        await story(await found(metadata.engine), clock)

    play(kind, folder, main, clock=clock)


@both_engines
def test_every_zone_gets_a_pointer_and_counters_by_task(kind: str, tmp_path: Any) -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        assert metadata.cluster.format == FORMAT
        assert [finding async for finding in fsck(metadata, pause_s=0) if finding.kind != "content-leaked"] == []
        assert (await metadata.queue.peek(NODE)).zones == ZONES
        assert await metadata.queue.counts(ZONES[0]) == {"reclaim": Counts(waiting=2, enqueued=2, leased=1)}
        assert await metadata.queue.counts(ZONES[1]) == {"reclaim_blob": Counts(waiting=1, enqueued=1, dead=1)}
        assert await metadata.queue.counts(ZONES[2]) == {}
        rows = await dump(metadata)
        prefix = len(metadata.engine.prefix)
        old = [(metadata.context.keys.queue_counts + pack_bytes(zone))[prefix:] for zone in ZONES]
        assert not rows.keys() & set(old)

    migrated(kind, tmp_path, story)


@both_engines
def test_what_was_owed_is_done_and_leases_hold(kind: str, tmp_path: Any) -> None:
    async def story(metadata: Metadata, clock: ManualClock) -> None:
        assert [claimed.item.subject for claimed in await take_all(metadata)] == [b"due"]
        clock.advance(30 * 10**9)
        assert {claimed.item.subject for claimed in await take_all(metadata)} == {b"due", b"leased"}
        clock.advance(30 * 10**9)
        assert b"later" in [claimed.item.subject for claimed in await take_all(metadata)]

    migrated(kind, tmp_path, story)


@both_engines
def test_a_migration_cut_off_anywhere_is_taken_up_again(kind: str, tmp_path: Any) -> None:
    clock = ManualClock()

    async def main(metadata: Metadata) -> None:
        await plant_format_1(metadata, clock.now_ns())
        fresh = metadata.context
        real = migrating._give_pointer
        for left in (0, 1, 2):

            async def give_some(tr: Any, ctx: Any, zone: bytes, tally: Any, left: int = left) -> None:
                if zone >= ZONES[left]:
                    raise ConnectionResetError
                await real(tr, ctx, zone, tally)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(migrating, "_give_pointer", give_some)
                with pytest.raises(ConnectionResetError):
                    await found(metadata.engine)
        assert (await found(metadata.engine)).cluster.format == FORMAT
        assert (await metadata.queue.peek(NODE)).zones == ZONES
        assert (await metadata.queue.counts(ZONES[0])) == {"reclaim": Counts(waiting=2, enqueued=2, leased=1)}
        # Who comes late with what it has counted changes nothing.
        before = await dump(metadata)
        await metadata.engine.transact(migrating._give_pointer, fresh, ZONES[0], {})
        assert (await migrating.migrate(metadata.engine, fresh)).format == FORMAT
        assert await dump(metadata) == before

    play(kind, tmp_path, main, clock=clock)


@both_engines
def test_a_sealed_store_is_read_as_it_is_and_migrated_when_it_is_opened_again(kind: str, tmp_path: Any) -> None:
    clock = ManualClock()

    async def main(metadata: Metadata) -> None:
        await plant_format_1(metadata, clock.now_ns())
        await metadata.engine.seal("it moves")
        sealed = await found(metadata.engine)
        assert sealed.cluster.format == 1
        assert len(await sealed.queue.items(ZONES[0])) == 2
        await metadata.engine.unseal()
        assert (await found(metadata.engine)).cluster.format == FORMAT

    play(kind, tmp_path, main, clock=clock)


def test_a_zone_with_more_items_than_a_page_is_counted(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrating, "_PAGE", 1)
    monkeypatch.setattr(migrating, "_MOVED", 1)

    async def story(metadata: Metadata, clock: ManualClock) -> None:
        assert await metadata.queue.counts(ZONES[0]) == {"reclaim": Counts(waiting=2, enqueued=2, leased=1)}
        assert (await metadata.queue.peek(NODE)).zones == ZONES
        begin, end = subspace(metadata.context.keys.queue_zones)

        async def marks(tr: Any) -> int:
            return len(await tr.get_range(begin, end))

        assert await metadata.engine.read(marks) == len(ZONES)

    migrated("memory", tmp_path, story)
