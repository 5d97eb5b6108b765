"""What operators see of a scene and do about it: the functions that API, console and command line call."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.admin import scene
from tests.admin.scene import BUSY, FLOOD, HERE, MODELS, STUCK, WHY, Scene
from tests.metadata.world import MASTER, both_engines, open_world
from tigrislike.admin import acting, gauges, overview, queues, stores
from tigrislike.admin.api import ENDPOINTS, perform
from tigrislike.admin.client import LocalApi, every
from tigrislike.admin.desk import AdminError, Desk
from tigrislike.admin.queues import ItemFilter
from tigrislike.config import Settings
from tigrislike.metadata import surveying
from tigrislike.metadata.auditing import Actor
from tigrislike.metadata.context import Context
from tigrislike.metadata.kv import ManualClock, Transaction
from tigrislike.metadata.overseeing import Pausable
from tigrislike.metadata.records import LOST

Story = Callable[[Desk, Scene, ManualClock], Awaitable[None]]

SEED = int.from_bytes(os.urandom(4), "big")


class TickingClock(ManualClock):
    """Each look at it takes a microsecond."""

    def now_ns(self) -> int:
        self.advance(1000)
        return super().now_ns()


def play(kind: str, folder: Path, story: Story, *, flood: int = 300) -> None:
    async def main() -> None:
        clock = TickingClock()
        async with open_world(kind, folder, clock=clock) as metadata:
            made = await scene.build(metadata.engine, MASTER, SEED, flood=flood)
            await story(Desk(metadata, Settings(data_dir=folder, region=HERE)), made, clock)

    asyncio.run(main())


def refused(code: str, status: int) -> Any:
    return pytest.raises(AdminError, check=lambda error: (error.code, error.status) == (code, status))


@both_engines
def test_the_overview_says_what_is_wrong_and_where(kind: str, tmp_path: Path) -> None:
    async def story(desk: Desk, made: Scene, clock: ManualClock) -> None:
        shown = await overview.overview(desk)
        regions = {row.region: row for row in shown.regions}
        assert shown.health == regions[STUCK].health == "stuck"
        assert regions[STUCK].why[0] == "2 of 2 nodes show no life" or regions[STUCK].why[0] == "no node is alive"
        assert (regions[STUCK].nodes, regions[STUCK].alive, regions[STUCK].depth) == (2, 0, made.stuck)
        oldest = regions[STUCK].oldest
        assert oldest is not None
        assert (oldest.zone, oldest.label) == (made.stuck_zone, f"{STUCK}/{MODELS}")
        assert oldest.age_s == pytest.approx(4 * 3600, abs=5)
        assert regions[HERE].dead == 1
        assert regions[HERE].failing == 1
        assert "1 dead letter" in regions[HERE].why
        assert (regions[BUSY].nodes, regions[BUSY].alive) == (1, 1)
        assert regions[BUSY].depth == made.flood + 8 * 3
        assert regions[BUSY].oldest_s == pytest.approx(18, abs=5)
        assert shown.queue.depth == sum(row.depth for row in shown.regions)
        assert {task.name for task in shown.tasks} == {"replicate", "warm"}
        assert shown.buckets == len(made.buckets)
        nodes = {row.node: row for row in (await overview.nodes(desk)).nodes}
        assert not nodes[made.nodes["stuck"].hex()].alive
        assert nodes[made.nodes["busy"].hex()].alive
        assert [row.region for row in (await overview.regions(desk)).regions] == [BUSY, HERE, STUCK, "anybody"]

    play(kind, tmp_path, story)


@both_engines
def test_the_metrics_say_what_the_overview_says(kind: str, tmp_path: Path) -> None:
    async def short_and_lost(tr: Transaction, ctx: Context) -> None:
        for content in (b"1" * 16, b"2" * 16):
            tr.set(ctx.keys.short(content), b"")
        tr.set(ctx.keys.home(LOST, b"3" * 16), b"")

    async def story(desk: Desk, made: Scene, clock: ManualClock) -> None:
        shown = await overview.overview(desk)
        await desk.metadata.engine.transact(short_and_lost, desk.metadata.context)
        readings = list(await gauges.store(desk)())
        values = {(name, labels): value for name, labels, value in readings}
        assert len(values) == len(readings)

        def told(name: str, region: str) -> float:
            return sum(value for (of, labels), value in values.items() if of == name and labels[0] == region)

        for row in shown.regions:
            assert told("queue_items", row.region) == row.depth
            assert told("queue_failing_items", row.region) == row.failing
            assert told("queue_in_flight_items", row.region) == row.in_flight
            assert told("queue_dead_letters", row.region) == row.dead
            assert told("queue_oldest_due_seconds", row.region) == pytest.approx(row.oldest_s or 0.0, abs=5)
            assert told("region_nodes", row.region) == row.nodes
            assert told("region_alive_nodes", row.region) == row.alive
        assert told("queue_oldest_due_seconds", "anybody") == 0
        assert values["queue_dead_letters", (HERE, "replicate")] == 1
        stuck, busy = (made.nodes[name].hex() for name in ("stuck", "busy"))
        assert (values["node_alive", (stuck, STUCK)], values["node_alive", (busy, BUSY)]) == (False, True)
        assert values["node_beat_age_seconds", (stuck, STUCK)] > 3600
        assert (values["short_contents", ()], values["lost_contents", ()]) == (2, 1)

        named = {labels[0]: value for name, labels, value in await gauges.buckets(desk)() if name == "bucket_objects"}
        assert named == {bucket.name: bucket.objects for bucket in (await stores.buckets(desk)).buckets}

    play(kind, tmp_path, story)


@both_engines
def test_zones_and_groups_are_sorted_by_what_is_asked(kind: str, tmp_path: Path) -> None:
    async def story(desk: Desk, made: Scene, clock: ManualClock) -> None:
        oldest = await queues.zones(desk)
        assert oldest.zones[0].zone == made.failing.partition(".")[0] or oldest.zones[0].zone == made.stuck_zone
        ages = [zone.oldest_s for zone in oldest.zones if zone.oldest_s is not None]
        assert max(ages) == pytest.approx(4 * 3600, abs=5)
        deepest = await queues.zones(desk, sort="depth", limit=1)
        assert [(zone.zone, zone.depth, zone.bucket) for zone in deepest.zones] == [
            (made.flooded_zone, made.flood, FLOOD)
        ]
        assert (await queues.zones(desk, sort="dead", limit=1)).zones[0].label == f"{HERE}/{MODELS}"
        assert (await queues.zones(desk, sort="failing", limit=1)).zones[0].label == f"{HERE}/team-1"
        every_zone, cursor = [], None
        while True:
            page = await queues.zones(desk, sort="name", cursor=cursor, limit=4)
            every_zone += [zone.zone for zone in page.zones]
            cursor = page.cursor
            if cursor is None:
                break
        assert every_zone == sorted(every_zone)
        assert len(every_zone) == page.total == len(set(every_zone))
        assert {zone.region for zone in (await queues.zones(desk, region=STUCK)).zones} == {STUCK}
        assert len((await queues.zones(desk, bucket=MODELS)).zones) == 2
        assert len((await queues.zones(desk, task="warm")).zones) == len(made.buckets)
        by_bucket = await queues.groups(desk, "bucket")
        assert (by_bucket.groups[0].name, by_bucket.groups[0].depth) == (FLOOD, made.flood + 1)
        by_region = {row.name: row for row in (await queues.groups(desk, "region")).groups}
        assert by_region[STUCK].depth == made.stuck
        assert by_region[STUCK].zones == 3
        by_task = {row.name: row for row in (await queues.groups(desk, "task")).groups}
        assert (by_task["replicate"].dead, by_task["warm"].depth) == (1, len(made.buckets))
        assert {row.name for row in (await queues.groups(desk, "destination")).groups} == {HERE, BUSY, STUCK}
        zone = await queues.show_zone(desk, f"{STUCK}/{MODELS}")
        assert (zone.zone, zone.depth, [each.task for each in zone.by_task]) == (
            made.stuck_zone,
            made.stuck // 2,
            ["replicate"],
        )
        with refused("NoSuchZone", 404):
            await queues.show_zone(desk, f"{STUCK}/nothing")
        with refused("NoSuchZone", 404):
            await queues.show_zone(desk, "ab" * 32)
        with refused("NoSuchZone", 404):
            await queues.show_zone(desk, "no hex")
        with refused("NoSuchRegion", 404):
            await queues.zones(desk, region="mars")
        with refused("NoSuchBucket", 404):
            await queues.zones(desk, bucket="nothing")
        with refused("InvalidCursor", 400):
            await queues.zones(desk, cursor="rubbish")

    play(kind, tmp_path, story)


async def listed(desk: Desk, limit: int = 100, **wanted: Any) -> list[queues.ItemRow]:
    rows: list[queues.ItemRow] = []
    cursor = None
    while True:
        page = await queues.items(desk, ItemFilter(**wanted), cursor=cursor, limit=limit)
        rows += page.items
        cursor = page.cursor
        if cursor is None:
            return rows


@both_engines
def test_items_are_found_by_what_is_known_of_them(kind: str, tmp_path: Path) -> None:
    async def story(desk: Desk, made: Scene, clock: ManualClock) -> None:
        everything = await listed(desk, limit=7)
        assert len({row.item for row in everything}) == len(everything)
        assert len(everything) == made.flood + 8 * 3 + made.stuck + 1 + len(made.buckets)
        assert [row.item for row in await listed(desk, limit=1000)] == [row.item for row in everything]
        stuck = await listed(desk, region=STUCK)
        assert len(stuck) == made.stuck
        in_order = await listed(desk, zone=f"{STUCK}/{MODELS}")
        assert [row.enqueued for row in in_order] == sorted(row.enqueued for row in in_order)
        assert {row.state for row in in_order} == {"due"}
        assert len(await listed(desk, bucket=FLOOD)) == made.flood + 1
        assert len(await listed(desk, bucket=FLOOD, region=BUSY)) == made.flood
        assert {row.task for row in await listed(desk, task="warm")} == {"warm"}
        assert len(await listed(desk, state="delayed")) == len(made.buckets)
        assert [row.item for row in await listed(desk, state="dead")] == [made.poisoned]
        assert [row.item for row in await listed(desk, state="dead", region=HERE, bucket=MODELS)] == [made.poisoned]
        assert await listed(desk, state="dead", region=STUCK) == []
        assert [row.item for row in await listed(desk, state="failing")] == [made.failing]
        assert [row.item for row in await listed(desk, state="failing", zone=made.failing.partition(".")[0])] == [
            made.failing
        ]
        assert [row.item for row in await listed(desk, error="ANSWERED 503")] == [made.failing, made.poisoned]
        assert [row.item for row in await listed(desk, error="answered 503", limit=1)] == [made.failing, made.poisoned]
        assert await listed(desk, error="something else") == []
        assert await listed(desk, state="in_flight") == []
        assert await listed(desk, zone=made.stuck_zone, region=HERE) == []
        page = await queues.items(desk, ItemFilter(region=BUSY), limit=5)
        assert page.cursor is not None
        with refused("InvalidCursor", 400):
            await queues.items(
                desk, ItemFilter(), cursor=queues.pack_cursor((b"\x03\x01" + bytes.fromhex(made.stuck_zone), b"x"))
            )
        with refused("InvalidCursor", 400):
            await queues.items(desk, ItemFilter(state="dead"), cursor=queues.pack_cursor((b"\x02\0\0\0\0", b"x")))

    play(kind, tmp_path, story)


def test_a_long_search_ends_with_a_cursor_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "LOOK_S", -1.0)

    async def story(desk: Desk, made: Scene, clock: ManualClock) -> None:
        page = await queues.items(desk, ItemFilter(task="warm"))
        assert len(page.items) <= 1
        assert page.cursor is not None, "it looked at one thing"
        assert {row.task for row in await listed(desk, task="warm")} == {"warm"}
        assert len(await listed(desk, task="warm")) == len(made.buckets)
        assert await listed(desk, task="nothing") == []

    play("memory", tmp_path, story, flood=20)


@both_engines
def test_an_item_tells_its_failures_and_is_acted_upon(kind: str, tmp_path: Path) -> None:
    async def story(desk: Desk, made: Scene, clock: ManualClock) -> None:
        letter = await queues.show_item(desk, made.poisoned)
        assert (letter.state, letter.letter, letter.attempts, letter.error) == ("dead", True, 3, WHY)
        assert [attempt.error for attempt in letter.history] == [WHY] * 3
        assert {attempt.node for attempt in letter.history} == {b"maker-of-a-scene".hex()}
        assert [attempt.at for attempt in letter.history] == sorted(attempt.at for attempt in letter.history)
        assert letter.age_s == pytest.approx(6 * 3600, abs=5)
        with refused("ItemDead", 409):
            await acting.delay(desk, made.poisoned, 60)
        assert (await acting.retry(desk, made.poisoned)).done == "retried"
        retried = await queues.show_item(desk, made.poisoned)
        assert (retried.state, retried.letter, retried.attempts, retried.error) == ("due", False, 0, WHY)
        assert len(retried.history) == 3, "what it was is not forgotten"
        assert (await acting.delay(desk, made.poisoned, 60)).done == "delayed"
        assert (await queues.show_item(desk, made.poisoned)).state == "delayed"
        assert (await acting.retry(desk, made.poisoned)).done == "retried"
        zone, id_ = queues.parse_item(made.poisoned)
        clock.advance(10**9)
        pointer_lease = await desk.metadata.queue.lease(zone, early_ns=10**9)
        assert pointer_lease is not None
        batch = await desk.metadata.queue.claim(zone, pointer_lease)
        assert batch is not None
        assert [claimed.id for claimed in batch.claimed] == [id_]
        assert (await queues.show_item(desk, made.poisoned)).state == "in_flight"
        assert [row.item for row in await listed(desk, state="in_flight")] == [made.poisoned]
        assert (await queues.show_zone(desk, zone.hex())).in_flight == 1
        with refused("ItemInFlight", 409):
            await acting.retry(desk, made.poisoned)
        assert (await acting.drop(desk, made.poisoned)).done == "dropped"
        assert not await desk.metadata.queue.finish(batch.claimed[0]), "its lease is lost"
        for act in (acting.retry, acting.drop, queues.show_item):
            with refused("NoSuchItem", 404):
                await act(desk, made.poisoned)
            with refused("NoSuchItem", 404):
                await act(desk, "no item at all")
        with refused("NoSuchItem", 404):
            await acting.delay(desk, made.poisoned, 1)
        counts = (await queues.show_zone(desk, zone.hex())).by_task[0]
        assert (counts.depth, counts.in_flight, counts.failing, counts.dead) == (0, 0, 0, 0)

    play(kind, tmp_path, story, flood=20)


def test_many_dead_letters_are_retried_page_by_page(tmp_path: Path) -> None:
    async def story(desk: Desk, made: Scene, clock: ManualClock) -> None:
        for name in ("team-5", "team-6"):
            bucket = made.buckets[name]
            for number in range(5):
                zone = bytes.fromhex(made.poisoned.partition(".")[0])[:16] + bucket.id
                await _bury(desk, zone, b"subject %d" % number)
        assert len(await listed(desk, state="dead")) == 11
        none = await acting.retry_dead(desk, ItemFilter(error="no such error"))
        assert (none.retried, none.examined, none.cursor) == (0, 11, None)
        none = await acting.retry_dead(desk, ItemFilter(task="other"))
        assert none.retried == 0
        some = await acting.retry_dead(desk, ItemFilter(bucket="team-5"), limit=2)
        assert some.retried == 2
        assert some.cursor is not None
        rest = await acting.retry_dead(desk, ItemFilter(bucket="team-5"), cursor=some.cursor)
        assert (rest.retried, rest.cursor) == (3, None)
        with refused("InvalidCursor", 400):
            await acting.retry_dead(desk, ItemFilter(), cursor=queues.pack_cursor((b"\x02\0\0\0\0", b"x")))
        assert {row.bucket for row in await listed(desk, state="dead")} == {MODELS, "team-6"}
        assert (await acting.retry_dead(desk, ItemFilter())).retried == 6
        assert await listed(desk, state="dead") == []

    play("memory", tmp_path, story, flood=20)


async def _bury(desk: Desk, zone: bytes, subject: bytes) -> None:
    from tigrislike.metadata import owed
    from tigrislike.metadata.records import Item
    from tigrislike.metadata.records import item as codec

    async def bury(tr: Any, ctx: Any) -> None:
        id_ = owed.item_id("warm", subject)
        tr.set(ctx.keys.queue_dead_item(zone, id_), codec.encode(Item("warm", subject, 0, 1, attempts=10, error="x")))
        owed.count(tr, ctx, zone, "warm", enqueued=1, dropped=1, dead=1)

    await desk.metadata.engine.transact(bury, desk.metadata.context)


@both_engines
def test_what_is_paused_is_shown_and_goes_on(kind: str, tmp_path: Path) -> None:
    async def story(desk: Desk, made: Scene, clock: ManualClock) -> None:
        await acting.set_paused(desk, True, region=STUCK)
        await acting.set_paused(desk, True, zone=f"{BUSY}/{FLOOD}")
        await acting.set_paused(desk, True, task="warm")
        nodes = sorted(f"node:{made.nodes[name].hex()[:8]}" for name in ("stuck", "stuck too"))
        assert await queues.paused(desk) == queues.Paused([f"{BUSY}/{FLOOD}"], [*nodes, STUCK], ["warm"])
        regions = {row.region: row for row in (await overview.overview(desk)).regions}
        assert regions[STUCK].paused
        assert "it is paused" in regions[STUCK].why
        assert (await queues.show_zone(desk, made.flooded_zone)).paused
        assert {row.name for row in (await queues.groups(desk, "region")).groups if row.paused} == {STUCK}
        assert (await queues.show_item(desk, made.failing)).paused is False
        for what in ({"region": STUCK}, {"zone": made.flooded_zone}, {"task": "warm"}):
            await acting.set_paused(desk, False, **what)
        assert await queues.paused(desk) == queues.Paused([], [], [])
        with refused("InvalidArgument", 400):
            await acting.set_paused(desk, True)
        with refused("InvalidArgument", 400):
            await acting.set_paused(desk, True, region=STUCK, task="warm")
        with refused("NoSuchTask", 404):
            await acting.set_paused(desk, True, task="nothing")
        with refused("NoSuchTask", 404):
            await acting.set_paused(desk, False, task="nothing")
        await desk.metadata.queue.pause(Pausable.TASK, b"of-old")
        assert not (await acting.set_paused(desk, False, task="of-old")).paused, "what is paused can go on"
        with refused("NoSuchRegion", 404):
            await acting.set_paused(desk, True, region="mars")

    play(kind, tmp_path, story, flood=20)


def test_rates_come_from_samples_and_from_earlier_looks(tmp_path: Path) -> None:
    async def story(desk: Desk, made: Scene, clock: ManualClock) -> None:
        at = [1000.0]
        desk = Desk(desk.metadata, desk.settings, clock_s=lambda: at[0])
        metadata = desk.metadata
        assert await metadata.engine.transact(surveying.sample, metadata.context)
        assert not await metadata.engine.transact(surveying.sample, metadata.context), "once in a while is enough"
        assert (await queues.zones(desk, sort="depth", limit=1)).zones[0].rate_in is None
        clock.advance(20 * 10**9)
        at[0] += 20
        zone = bytes.fromhex(made.flooded_zone)
        done = 0
        while done < 20:
            pointer_lease = await metadata.queue.lease(zone, early_ns=10**9)
            assert pointer_lease is not None
            batch = await metadata.queue.claim(zone, pointer_lease, {"replicate": 20 - done})
            assert batch is not None
            for claimed in batch.claimed:
                done += await metadata.queue.finish(claimed)
        flooded = (await queues.zones(desk, sort="depth", limit=1)).zones[0]
        assert flooded.rate_out == pytest.approx(1.0, rel=0.01)
        assert flooded.rate_in == 0.0
        by_bucket = {row.name: row for row in (await queues.groups(desk, "bucket")).groups}
        assert by_bucket[FLOOD].rate_out == pytest.approx(1.0, rel=0.01)
        by_task = {row.name: row for row in (await queues.groups(desk, "task")).groups}
        assert by_task["replicate"].rate_out == pytest.approx(1.0, rel=0.01)
        assert by_task["warm"].rate_out == 0.0
        assert (await overview.overview(desk)).queue.rate_out == pytest.approx(1.0, rel=0.01)
        clock.advance(2 * 3600 * 10**9)
        assert await metadata.engine.transact(surveying.sample, metadata.context)
        found = await metadata.engine.read(surveying.samples, metadata.context, metadata.now_ns(), 1 << 56)
        assert len(found) == 1, "the old one is forgotten"
        assert found[0].sums == await metadata.engine.read(surveying.sums, metadata.context)

    play("memory", tmp_path, story, flood=50)


@both_engines
def test_buckets_keys_and_settings_are_shown_without_secrets(kind: str, tmp_path: Path) -> None:
    async def story(desk: Desk, made: Scene, clock: ManualClock) -> None:
        from tests.metadata.world import large, small

        flood = made.buckets[FLOOD]
        await desk.metadata.put_object(flood, "in the database", small(b"x"))
        await desk.metadata.put_object(flood, "on a disk", large(b"a", 1000))
        page = await stores.buckets(desk, limit=3)
        assert [row.name for row in page.buckets] == sorted(made.buckets)[:3]
        rest = await stores.buckets(desk, cursor=page.cursor, limit=1000)
        assert [row.name for row in rest.buckets] == sorted(made.buckets)[3:]
        assert rest.cursor is None
        assert [row.name for row in (await stores.buckets(desk, prefix="flood")).buckets] == [FLOOD]
        shown = await stores.show_bucket(desk, FLOOD)
        assert (shown.objects, shown.bytes, shown.inline, shown.sampled) == (2, 1001, 1, 2)
        assert shown.complete
        assert shown.replicas == [stores.Replicas("here", 1, 1000)]
        assert shown.work["replicate"] == made.flood
        assert shown.pending >= made.flood + 1
        with refused("NoSuchBucket", 404):
            await stores.show_bucket(desk, "nothing")

        scoped = await acting.create_key(desk, bucket=FLOOD)
        admin = await acting.create_key(desk, admin=True)
        keys = {row.key_id: row for row in (await stores.keys(desk, limit=1)).keys}
        cursor = (await stores.keys(desk, limit=1)).cursor
        keys |= {row.key_id: row for row in (await stores.keys(desk, cursor=cursor)).keys}
        assert (keys[scoped.key_id].bucket, keys[scoped.key_id].admin) == (FLOOD, False)
        assert keys[admin.key_id].admin
        fresh = await acting.rotate_key(desk, admin.key_id)
        assert fresh.admin
        assert await desk.metadata.access_key(admin.key_id) is None
        kept = await acting.rotate_key(desk, scoped.key_id, keep=True)
        assert kept.bucket == FLOOD
        assert (await acting.revoke_key(desk, scoped.key_id)).key_id == scoped.key_id
        root, _ = await desk.metadata.ensure_root()
        assert root.admin
        for refuse in (acting.revoke_key, acting.rotate_key):
            with refused("InvalidArgument", 400):
                await refuse(desk, root.key_id)
            with refused("NoSuchAccessKey", 404):
                await refuse(desk, scoped.key_id)
        with refused("NoSuchBucket", 404):
            await acting.create_key(desk, bucket="nothing")
        with refused("InvalidArgument", 400):
            await acting.create_key(desk, bucket=FLOOD, admin=True)

        secret = Settings(data_dir=tmp_path, root_access_key="root-key", root_secret_key="a secret", region=HERE)
        settings = await stores.settings(Desk(desk.metadata, secret))
        assert {row.name: row.value for row in settings.settings}["root-secret-key"] == "(set)"
        assert "a secret" not in str(settings)
        caches = await stores.caches(desk)
        assert caches.here is None
        assert {row.capacity_bytes for row in caches.nodes} == {10**11}
        with refused("NotHere", 404):
            await stores.slow_requests(desk)

    play(kind, tmp_path, story, flood=100)


@both_engines
def test_the_audit_log_has_what_was_changed_and_what_came_of_it(kind: str, tmp_path: Path) -> None:
    async def story(desk: Desk, made: Scene, clock: ManualClock) -> None:
        api = LocalApi(desk)
        await api.call("overview")
        await api.call("retry", item=made.poisoned)
        with refused("NoSuchRegion", 404):
            await api.call("pause", region="mars")
        made_key = await api.call("create_key")
        rows = [row async for row in every(api, "audit", "entries", limit=2)]
        assert [(row.action, row.outcome.partition(":")[0]) for row in rows] == [
            ("create_key", "done"),
            ("pause", "refused"),
            ("retry", "done"),
        ]
        assert rows[0].who.startswith("local:")
        assert made.poisoned in rows[2].arguments
        assert made_key.secret not in str(rows)
        with refused("InvalidCursor", 400):
            await api.call("audit", cursor=queues.pack_cursor((1, b"x")))
        with refused("InvalidArgument", 400):
            await api.call("items", limit=0)
        clock.advance(91 * 86400 * 10**9)
        await api.call("resume", task="replicate")
        assert [row.action async for row in every(api, "audit", "entries")] == ["resume"]

    play(kind, tmp_path, story, flood=20)


def test_an_action_that_is_cut_off_is_in_the_audit_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(desk: Desk, made: Scene, clock: ManualClock) -> None:
        from tigrislike.metadata.kv import AmbiguousCommit, EngineUnavailable

        failures: list[BaseException] = [asyncio.CancelledError(), AmbiguousCommit(), EngineUnavailable("away")]

        async def fails(*_: Any) -> bool:
            raise failures[0]

        monkeypatch.setattr(desk.metadata.queue, "retry", fails)
        outcomes = []
        while failures:
            with pytest.raises(type(failures[0])):
                await perform(desk, ENDPOINTS["retry"], ENDPOINTS["retry"].args(item=made.poisoned), Actor("me"))  # type: ignore[call-arg]
            outcomes.append((await stores.audit(desk)).entries[0].outcome)
            failures.pop(0)
        assert outcomes == ["begun", "begun", "failed: EngineUnavailable: away"]

    play("memory", tmp_path, story, flood=20)
