"""Delivery of the log of requests: what is due becomes objects, once, and what nobody can be given is let go."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bytecache.conftest import scratch
from tests.replication.cluster import Cluster, cluster
from tigrislike.bytecache import DiskFull
from tigrislike.metadata import Bucket, Metadata
from tigrislike.metadata.kv import EngineUnavailable
from tigrislike.metadata.records import Home
from tigrislike.replication.log_delivery import Delivery
from tigrislike.replication.log_spool import Spool
from tigrislike.replication.mirror import pieces_of
from tigrislike.replication.putting import Putter
from tigrislike.replication.spreading import TooFewHomes

__all__ = ["scratch"]

DAY = "2026-01-31"


class NobodyElse:
    """A node that is alone: no write is spread."""

    backer: Any = None

    async def spread(self, blob_id: bytes, size: int, copies: int, regions: tuple[str, ...]) -> tuple[Home, ...]:
        raise AssertionError("one node is enough")


class Desk:
    """A node with a spool, a logged bucket `source` and its target.

    Attributes:
        now_s: the time by which the delivery goes.
    """

    def __init__(self, it: Cluster, folder: Path) -> None:
        self.it = it
        self.node = next(iter(it.nodes.values()))
        self.metadata: Metadata = self.node.metadata
        self.spool = Spool(folder / "spool", 1 << 20)
        self.now_s = 0.0
        self.source: Bucket
        self.delivery = self.another()

    def another(self) -> Delivery:
        """The delivery of a process that has just been started."""
        putter = Putter(self.metadata, self.node.blocks, NobodyElse(), 1000)
        return Delivery(
            self.metadata, self.spool, putter, "here", interval_s=300, most_bytes=5000, clock=lambda: self.now_s
        )

    async def delivered(self, name: str = "target") -> dict[str, bytes]:
        bucket = await self.metadata.bucket(name)
        found = {}
        for key, _ in (await self.metadata.list_objects(bucket)).entries:
            pieces = pieces_of(self.node.blocks, await self.metadata.find_object(bucket, key))
            found[key] = b"".join([bytes(piece) async for piece in pieces])
        return found


def scene(story: Callable[[Desk], Awaitable[None]], folder: Path) -> None:
    async def run() -> None:
        async with cluster(folder, a="here") as it:
            desk = Desk(it, folder)
            for name in ("source", "target"):
                await desk.metadata.create_bucket(name, "root")
            desk.source = await desk.metadata.bucket("source")
            await desk.metadata.log_requests("source", "target", "log/", "")
            await story(desk)

    asyncio.run(run())


def test_records_gather_until_the_interval_is_over(scratch: Path) -> None:
    async def story(desk: Desk) -> None:
        desk.spool.append(desk.source.id, DAY, b"one\n")
        await desk.delivery.run()
        desk.now_s = 299
        desk.spool.append(desk.source.id, DAY, b"two\n")
        await desk.delivery.run()
        assert await desk.delivered() == {}
        desk.now_s = 300
        await desk.delivery.run()
        assert list((await desk.delivered()).values()) == [b"one\ntwo\n"]
        assert desk.spool.buckets() == []
        desk.spool.append(desk.source.id, DAY, b"three\n")
        await desk.delivery.run()
        desk.now_s = 599
        await desk.delivery.run()
        assert len(await desk.delivered()) == 1, "the next interval begins with its first record"
        desk.now_s = 600
        await desk.delivery.run()
        assert sorted((await desk.delivered()).values()) == [b"one\ntwo\n", b"three\n"]

    scene(story, scratch)


def test_much_is_delivered_at_once_and_may_be_larger_than_a_record(scratch: Path) -> None:
    async def story(desk: Desk) -> None:
        lines = b"".join(b"line %d\n" % number for number in range(1000))
        desk.spool.append(desk.source.id, DAY, lines)
        await desk.delivery.run()
        assert list((await desk.delivered()).values()) == [lines]
        (key,) = await desk.delivered()
        version = await desk.metadata.head_object(await desk.metadata.bucket("target"), key)
        assert (version.content_type, version.checksum_algorithm) == ("text/plain", "CRC64NVME")

    scene(story, scratch)


def test_a_delivery_that_is_repeated_after_a_crash_makes_the_same_object(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(desk: Desk) -> None:
        desk.spool.append(desk.source.id, DAY, b"one\n" * 2000)

        def crash(path: Path) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as dying:
            dying.setattr(Path, "unlink", crash)
            with pytest.raises(KeyboardInterrupt):
                await desk.delivery.run()
        before = await desk.delivered()
        assert len(before) == 1
        await desk.another().run()
        assert await desk.delivered() == before
        assert desk.spool.buckets() == []

    scene(story, scratch)


@pytest.mark.parametrize("gone", ["deleted", "somebody else's"])
def test_what_has_no_target_is_dropped_and_said(gone: str, scratch: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story(desk: Desk) -> None:
        await desk.metadata.delete_bucket("target")
        if gone != "deleted":
            await desk.metadata.create_bucket("target", "somebody")
        desk.spool.append(desk.source.id, DAY, b"lost\n")
        await desk.delivery.run()
        desk.now_s = 300
        with caplog.at_level(logging.WARNING):
            await desk.delivery.run()
        assert "5 bytes of the log of requests to source dropped" in caplog.text
        assert desk.delivery.dropped_bytes == 5
        assert desk.spool.buckets() == []
        if gone != "deleted":
            assert await desk.delivered() == {}

    scene(story, scratch)


def test_the_last_of_a_deleted_buckets_log_is_delivered_at_once_and_then_forgotten(scratch: Path) -> None:
    async def story(desk: Desk) -> None:
        desk.spool.append(desk.source.id, DAY, b"DELETE\n")
        await desk.metadata.delete_bucket("source")
        await desk.metadata.create_bucket("source", "somebody")
        assert await desk.metadata.logging(await desk.metadata.bucket("source")) is None
        await desk.delivery.run()
        assert list((await desk.delivered()).values()) == [b"DELETE\n"]
        assert [row.name for row in await desk.metadata.logged_buckets()] == ["source"]
        desk.it.clock.advance(25 * 3600 * 10**9)
        await desk.delivery.run()
        assert await desk.metadata.logged_buckets() == []

    scene(story, scratch)


def test_of_a_bucket_that_is_not_known_any_more_nothing_is_kept(
    scratch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(desk: Desk) -> None:
        desk.spool.append(bytes(16), DAY, b"whose?\n")
        with caplog.at_level(logging.WARNING):
            await desk.delivery.run()
        assert "former bucket" in caplog.text
        assert desk.spool.buckets() == []

    scene(story, scratch)


def test_logging_that_is_switched_on_again_is_not_forgotten(scratch: Path) -> None:
    async def story(desk: Desk) -> None:
        await desk.metadata.log_no_requests("source")
        assert await desk.metadata.logging(desk.source) is None
        await desk.metadata.log_requests("source", "target", "again/", "")
        desk.it.clock.advance(25 * 3600 * 10**9)
        await desk.delivery.run()
        await desk.metadata.forget_logging(desk.source.id)
        logged = await desk.metadata.logging(desk.source)
        assert logged is not None
        assert logged.prefix == "again/"

    scene(story, scratch)


def test_while_the_disk_or_the_database_refuses_files_wait_and_others_are_delivered(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(desk: Desk) -> None:
        await desk.metadata.create_bucket("other", "root")
        other = await desk.metadata.bucket("other")
        await desk.metadata.log_requests("other", "target", "other/", "")
        desk.spool.append(desk.source.id, DAY, b"x" * 5000 + b"\n")
        desk.spool.append(other.id, DAY, b"\n")
        await desk.delivery.run()
        desk.now_s = 300

        def full(*args: object, **more: object) -> None:
            raise DiskFull("no room")

        desk.spool.append(desk.source.id, DAY, b"x" * 5000 + b"\n")
        with monkeypatch.context() as refusing, caplog.at_level(logging.WARNING):
            refusing.setattr(desk.node.blocks, "create_blob", full)
            await desk.delivery.run()
        assert "the log of requests to source waits" in caplog.text
        assert len(desk.spool.taken(desk.source.id)) == 1
        assert [key for key in await desk.delivered() if key.startswith("other/")]

        async def away(*args: object, **more: object) -> None:
            raise EngineUnavailable("away")

        with monkeypatch.context() as refusing:
            refusing.setattr(desk.metadata, "put_object", away)
            with pytest.raises(EngineUnavailable):
                await desk.delivery.run()
        await desk.delivery.run()
        assert len([key for key in await desk.delivered() if key.startswith("log/")]) == 2
        assert desk.spool.buckets() == []

    scene(story, scratch)


def test_objects_are_spread_as_their_bucket_wants_or_not_written(scratch: Path) -> None:
    async def story(desk: Desk) -> None:
        asked: list[tuple[int, int]] = []

        class Others(NobodyElse):
            async def spread(
                self, blob_id: bytes, size: int, copies: int, regions: tuple[str, ...]
            ) -> tuple[Home, ...]:
                asked.append((size, copies))
                if len(asked) > 1:
                    raise TooFewHomes("nobody is there")
                return (Home("there", b"n" * 16),)

        target = await desk.metadata.change_bucket("target", durability="homes=2")
        putter = Putter(desk.metadata, desk.node.blocks, Others(), 10)
        put = await putter.put_bytes(target, "key", b"x" * 100, "text/plain")
        assert put == (100, hashlib.md5(b"x" * 100, usedforsecurity=False).hexdigest())
        assert asked == [(100, 2)]
        (part,) = (await desk.metadata.find_object(target, "key")).parts
        content = await desk.it.content((await desk.metadata.head_object(target, "key")).content)
        assert {home.node for home in content.homes} == {b"n" * 16, desk.node.id}
        with pytest.raises(TooFewHomes):
            await putter.put_bytes(target, "refused", b"x" * 100, "text/plain")
        assert list(await desk.delivered()) == ["key"]
        assert part.size == 100

    scene(story, scratch)
