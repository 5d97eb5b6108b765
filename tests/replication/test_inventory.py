"""Reports on what buckets hold: one for each period, whoever makes it and wherever a run was cut off."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.bytecache.conftest import scratch
from tests.metadata.world import small
from tests.replication.cluster import Cluster, ClusterNode, cluster
from tests.replication.test_log_delivery import NobodyElse
from tigrislike.bytecache import DiskFull
from tigrislike.metadata import Bucket, Metadata
from tigrislike.metadata.errors import NoSuchConfiguration, TooManyConfigurations
from tigrislike.metadata.homes import ANYBODY
from tigrislike.metadata.inventories import INVENTORY, period_of
from tigrislike.metadata.owed import zone_of
from tigrislike.metadata.records import Inventory as Record
from tigrislike.metadata.records import InventoryFile, Item
from tigrislike.metadata.records import inventory as codec
from tigrislike.replication import inventory
from tigrislike.replication.consumer import Consumer
from tigrislike.replication.inventory import Configuration, Inventory
from tigrislike.replication.mirror import pieces_of
from tigrislike.replication.putting import Putter
from tigrislike.replication.tasks import NotNow

__all__ = ["scratch"]

SECOND = 1_000_000_000
DAY_NS = 86400 * SECOND
ID = "each"
SEEDS = [random.Random(20261129).getrandbits(32) for _ in range(10)]


class World:
    """Two nodes, of which either makes reports, a bucket `source` and one `reports`."""

    def __init__(self, it: Cluster) -> None:
        self.it = it
        self.tasks = {name: self.task(node) for name, node in it.nodes.items()}
        self.source: Bucket
        self.reports: Bucket

    @property
    def metadata(self) -> Metadata:
        return self.it["a"].metadata

    def task(self, node: ClusterNode) -> Inventory:
        """With groups of 5 rows and files of 20."""
        putter = Putter(node.metadata, node.blocks, NobodyElse(), 100)
        return Inventory(node.metadata, putter, group_rows=5, file_rows=20)

    async def put(self, *keys: str) -> None:
        for key in keys:
            await self.metadata.put_object(self.source, key, small(key.encode()))

    async def configure(self, *, weekly: bool = False, enabled: bool = True, id_: str = ID, **more: Any) -> None:
        configuration = Configuration(**{"destination": "reports", "prefix": "", "format": "CSV", **more})
        await self.metadata.put_inventory(
            "source", id_, msgspec.json.encode(configuration), enabled=enabled, weekly=weekly
        )

    async def work(self, name: str = "a") -> Consumer:
        """Work off what is due on a node."""
        consumer = Consumer(self.it[name].metadata.queue, [ANYBODY], [self.tasks[name]])
        await consumer.drain()
        return consumer

    async def item(self) -> Item | None:
        """What is owed of the configuration."""
        zone = zone_of(ANYBODY, self.source.id)
        found = [item for _, item in (await self.metadata.queue.items(zone)) if item.task == INVENTORY]
        return found[0] if found else None

    async def keys(self, part: str) -> list[str]:
        page = await self.metadata.list_objects(self.reports)
        return [key for key, _ in page.entries if part in key]

    async def read(self, key: str) -> bytes:
        found = await self.metadata.find_object(self.reports, key)
        return b"".join([bytes(piece) async for piece in pieces_of(self.it["a"].blocks, found)])

    async def listed(self) -> list[list[str]]:
        """The keys that each report lists, file by file in their order."""
        reports = []
        for manifest in await self.keys("manifest.json"):
            lines: list[str] = []
            for file in json.loads(await self.read(manifest))["files"]:
                rows = gzip.decompress(await self.read(file["key"])).decode().splitlines()
                assert 0 < len(rows) <= 20
                lines += [row.split('","')[1].rstrip('"') for row in rows]
            reports.append(lines)
        return reports


def story(scratch: Path, tell: Callable[[World], Awaitable[None]], *, seed: int = 0) -> None:
    async def run() -> None:
        async with cluster(scratch, seed=seed, a="here", b="here") as it:
            world = World(it)
            for name in ("source", "reports"):
                await world.metadata.create_bucket(name, "root")
            world.source = await world.metadata.bucket("source")
            world.reports = await world.metadata.bucket("reports")
            await tell(world)

    asyncio.run(run())


KEYS = [f"key-{number:03}" for number in range(73)]


def test_a_report_is_made_at_once_and_then_once_a_day(scratch: Path) -> None:
    async def tell(world: World) -> None:
        await world.put(*KEYS)
        await world.configure()
        await world.work("a")
        await world.work("b")
        assert await world.listed() == [KEYS]
        assert len(await world.keys("/data/")) == 4
        now_ns = world.metadata.now_ns()
        following_ns = period_of(False, now_ns).following_ns
        world.it.clock.advance(following_ns - now_ns - SECOND)
        await world.work("b")
        assert len(await world.listed()) == 1, "its day is not over"
        await world.put("one-more")
        world.it.clock.advance(2 * SECOND)
        await world.work("b")
        await world.work("a")
        assert await world.listed() == [KEYS, [*KEYS, "one-more"]]
        world.it.clock.advance(5 * DAY_NS)
        await world.work("a")
        await world.work("b")
        assert len(await world.listed()) == 3, "what was missed while no node ran is not made up for"

    story(scratch, tell)


def test_weeks_begin_on_sundays() -> None:
    def at(text: str) -> int:
        return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND

    sunday = at("2026-11-29")
    assert period_of(True, sunday) == ("2026-11-29", at("2026-12-06"))
    assert period_of(True, sunday - 1) == ("2026-11-22", sunday)
    assert period_of(True, at("2026-12-05T23:59:59")) == ("2026-11-29", at("2026-12-06"))
    assert period_of(False, sunday - 1) == ("2026-11-28", sunday)
    assert period_of(False, sunday) == ("2026-11-29", at("2026-11-30"))


def test_a_weekly_report_is_made_once_a_week(scratch: Path) -> None:
    async def tell(world: World) -> None:
        await world.put(*KEYS)
        await world.configure(weekly=True)
        for _ in range(15):
            await world.work("a")
            world.it.clock.advance(DAY_NS)
        assert len(await world.listed()) == 3

    story(scratch, tell)


class Cut(BaseException):
    """A node dies."""


@pytest.mark.parametrize("fatal", range(1, 9))
def test_a_run_that_is_cut_off_is_gone_on_with_by_another_node(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, fatal: int
) -> None:
    """The first node dies at its n-th write of an object: before or after it, as the number is odd or even."""

    async def tell(world: World) -> None:
        await world.put(*KEYS)
        await world.configure()
        put_object = world.it["a"].metadata.put_object
        writes = 0

        async def dying(*args: Any, **options: Any) -> Any:
            nonlocal writes
            writes += 1
            if writes == (fatal + 1) // 2 and fatal % 2:
                raise Cut
            result = await put_object(*args, **options)
            if writes == (fatal + 1) // 2:
                raise Cut
            return result

        item = await world.item()
        assert item is not None
        with monkeypatch.context() as death:
            death.setattr(world.it["a"].metadata, "put_object", dying)
            with pytest.raises(Cut):
                await world.tasks["a"].run(item)
        assert await world.keys("manifest.json") == []
        await world.work("b")
        assert await world.listed() == [KEYS]
        written = (fatal - 1) // 2
        assert world.tasks["b"].files == 4 - min(written, 4), "what was there is not listed again"
        assert len(await world.keys("/data/")) <= 5, "one file at most is nobody's"
        await world.work("a")
        assert len(await world.keys("manifest.json")) == 1

    story(scratch, tell)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_runs_at_once_make_one_report(scratch: Path, seed: int) -> None:
    async def tell(world: World) -> None:
        await world.put(*KEYS)
        await world.configure()
        item = await world.item()
        assert item is not None
        effects = await asyncio.gather(world.tasks["a"].run(item), world.tasks["b"].run(item))
        for effect in effects:
            if effect is not None:
                await world.metadata.background(effect, world.metadata.context)
        assert await world.listed() == [KEYS]
        row = await world.metadata.inventory(world.source, ID)
        assert row.reported
        assert (row.period, row.files) == ("", ())

    story(scratch, tell, seed=seed)


def test_a_replaced_configuration_begins_anew_but_not_twice_in_a_period(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def tell(world: World) -> None:
        await world.put(*KEYS)
        await world.configure()
        item = await world.item()
        assert item is not None
        put = Putter.put

        async def replacing(*args: Any, **options: Any) -> Any:
            monkeypatch.setattr(Putter, "put", put)
            await world.configure(filter="key-00")
            return await put(*args, **options)

        monkeypatch.setattr(Putter, "put", replacing)
        assert await world.tasks["a"].run(item) is None, "it is not what is wanted any more"
        await world.work("b")
        assert await world.listed() == [KEYS[:10]]
        await world.configure(filter="key-01")
        await world.work("a")
        assert len(await world.listed()) == 1
        world.it.clock.advance(DAY_NS)
        await world.work("a")
        assert await world.listed() == [KEYS[:10], KEYS[10:20]]

    story(scratch, tell)


def test_a_report_that_takes_longer_than_its_day_is_finished_and_followed_by_the_next(scratch: Path) -> None:
    async def tell(world: World) -> None:
        await world.put(*KEYS)
        await world.configure()
        record = await world.metadata.inventory(world.source, ID)
        begun = msgspec.structs.replace(record, period="2020-01-01", begun_ns=1)
        context = world.metadata.context
        from tigrislike.metadata import inventories

        assert await world.metadata.background(inventories.advance, context, record, begun) == begun
        await world.work("a")
        assert await world.listed() == [KEYS, KEYS]
        assert (await world.metadata.inventory(world.source, ID)).reported > "2020-01-01"

    story(scratch, tell)


def test_no_report_is_made_of_what_is_disabled_deleted_or_gone(scratch: Path) -> None:
    async def tell(world: World) -> None:
        await world.put(*KEYS)
        await world.configure()
        await world.configure(enabled=False)
        await world.work("a")
        await world.configure()
        await world.metadata.delete_inventory("source", ID)
        await world.work("a")
        with pytest.raises(NoSuchConfiguration):
            await world.metadata.inventory(world.source, ID)
        await world.configure()
        await world.metadata.delete_objects(world.source, [(key, None, None) for key in KEYS])
        await world.metadata.delete_bucket("source")
        consumer = await world.work("a")
        assert consumer.worked.failed.total() == 0
        assert await world.keys("") == []

    story(scratch, tell)


@pytest.mark.parametrize("whose", ["nobody's", "somebody else's"])
def test_a_destination_that_is_gone_is_told_and_tried_again_in_the_next_period(scratch: Path, whose: str) -> None:
    async def tell(world: World) -> None:
        await world.put(*KEYS)
        await world.configure()
        await world.metadata.delete_bucket("reports")
        if whose != "nobody's":
            await world.metadata.create_bucket("reports", "somebody")
        consumer = await world.work("a")
        assert consumer.worked.failed.total() == 0
        assert "reports" in (await world.metadata.inventory(world.source, ID)).error
        if whose != "nobody's":
            await world.metadata.delete_bucket("reports")
        await world.metadata.create_bucket("reports", "root")
        world.reports = await world.metadata.bucket("reports")
        world.it.clock.advance(DAY_NS)
        await world.work("a")
        assert await world.listed() == [KEYS]
        assert (await world.metadata.inventory(world.source, ID)).error == ""

    story(scratch, tell)


def test_while_the_disk_is_full_a_report_waits(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def tell(world: World) -> None:
        await world.put(*KEYS)
        await world.configure()
        item = await world.item()
        assert item is not None

        def full(*args: object, **options: object) -> None:
            raise DiskFull("no room")

        with monkeypatch.context() as no_room:
            no_room.setattr(world.it["a"].blocks, "create_blob", full)
            with pytest.raises(NotNow):
                await world.tasks["a"].run(item)
        await world.work("a")
        assert await world.listed() == [KEYS]

    story(scratch, tell)


def test_every_version_of_many_is_listed_once_across_files(scratch: Path) -> None:
    async def tell(world: World) -> None:
        await world.metadata.set_versioning("source", "Enabled")
        world.source = await world.metadata.bucket("source")
        for _ in range(15):
            await world.put("a", "b", "c")
        await world.configure(versions=True, fields=("Size",))
        await world.work("a")
        assert await world.listed() == [["a"] * 15 + ["b"] * 15 + ["c"] * 15]
        assert len(await world.keys("/data/")) == 3

    story(scratch, tell)


def test_where_there_are_many_files_they_become_larger_so_that_a_row_has_room_for_them(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = InventoryFile(str(uuid.uuid4()), 1 << 33, "f" * 32, 10_000_000)
    many = Record(b"b" * 16, "n" * 63, "i" * 64, b"d" * 3000, True, False, 1 << 60, files=(file,) * 1000)
    assert len(codec.encode(many)) < 100_000, "what a value of the database holds"

    async def tell(world: World) -> None:
        monkeypatch.setattr(inventory, "_FILES_OF_A_SIZE", 1)
        await world.put(*KEYS)
        await world.configure()
        await world.work("a")
        (manifest,) = await world.keys("manifest.json")
        files = json.loads(await world.read(manifest))["files"]
        rows = [len(gzip.decompress(await world.read(file["key"])).splitlines()) for file in files]
        assert rows == [20, 40, 13]

    story(scratch, tell)


def test_an_empty_bucket_has_a_report_without_files(scratch: Path) -> None:
    async def tell(world: World) -> None:
        await world.configure(format="Parquet")
        await world.work("a")
        assert await world.listed() == [[]]

    story(scratch, tell)


def test_a_bucket_has_a_thousand_configurations(scratch: Path) -> None:
    async def tell(world: World) -> None:
        for number in range(1000):
            await world.configure(id_=f"id-{number:04}", enabled=False)
        with pytest.raises(TooManyConfigurations):
            await world.configure(id_="one-more", enabled=False)
        await world.configure(id_="id-0500", enabled=False)
        listed = await world.metadata.list_inventories(world.source, "id-0997", 100)
        assert [each.id for each in listed] == ["id-0998", "id-0999"]
        await world.metadata.delete_inventory("source", "id-0000")
        await world.configure(id_="one-more", enabled=False)

    story(scratch, tell)
