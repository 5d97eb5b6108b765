"""Copies on several nodes before a write is acknowledged, and what becomes of those that are not committed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.metadata.world import etag_of
from tests.replication.several import Node, Several, data_of, play
from tigrislike.bytecache import BytesError, DiskFull, SourceUnavailable
from tigrislike.metadata import BlobDead, Draft
from tigrislike.metadata.kv import EngineUnavailable
from tigrislike.metadata.placing import ranked
from tigrislike.metadata.records import DRAINING, Home
from tigrislike.replication.membership import Member
from tigrislike.replication.remote import PeerSource
from tigrislike.replication.spreading import Receiver, Spreader, TooFewHomes

BLOB = b"b" * 16
DATA = data_of(1)


class Asker:
    """Takes note of who is asked, and lets `failing` refuse."""

    def __init__(self, *failing: bytes) -> None:
        self.asked: list[bytes] = []
        self.failing: dict[bytes, BytesError] = dict.fromkeys(failing, DiskFull("no room"))

    async def post_copy(self, peer: Member, blob_id: bytes, size: int) -> None:
        self.asked.append(peer.node)
        if peer.node in self.failing:
            raise self.failing[peer.node]

    async def post_home(self, peer: Member, content_id: bytes, size: int) -> None:
        raise AssertionError("bytes that were just received have no content yet")


def spreader_of(node: Node, asker: Asker) -> Spreader:
    return Spreader(node.metadata, node.members, asker, node.copying.become_home_ahead)


def regions_of(it: Several, homes: tuple[Home, ...]) -> list[str]:
    assert all(it.by_id[home.node].region == home.region for home in homes)
    return [home.region for home in homes]


# --- sending


def test_one_copy_is_the_writers_own(scratch: Path) -> None:
    async def story(it: Several) -> None:
        asker = Asker()
        spreader = spreader_of(it.nodes[0], asker)
        assert await spreader.spread(BLOB, 9, 1, ()) == ()
        assert asker.asked == []

    play(scratch, "iad iad", story)


def test_without_a_policy_hashing_says_who_takes_copies(scratch: Path) -> None:
    async def story(it: Several) -> None:
        asker = Asker()
        first = it.nodes[0]
        spread = await spreader_of(first, asker).spread(BLOB, 9, 3, ())
        expected = ranked(BLOB, [node.id for node in it.nodes[1:]])[:2]
        assert [home.node for home in spread] == asker.asked == expected

    play(scratch, "iad iad sjc ams ams", story)


@pytest.mark.parametrize("blob", [bytes((number,)) * 16 for number in range(8)])
def test_wanted_regions_have_a_copy_each_before_one_has_two(scratch: Path, blob: bytes) -> None:
    async def story(it: Several) -> None:
        first = it.nodes[0]
        spreader = spreader_of(first, Asker())
        wanted = ("iad", "sjc", "ams")
        assert sorted(regions_of(it, await spreader.spread(blob, 9, 3, wanted))) == ["ams", "sjc"]
        assert sorted(regions_of(it, await spreader.spread(blob, 9, 4, wanted)))[:1] == ["ams"]
        assert len(set(regions_of(it, await spreader.spread(blob, 9, 4, wanted)))) >= 2
        assert regions_of(it, await spreader.spread(blob, 9, 2, ("sjc",))) == ["sjc"]

    play(scratch, "iad iad sjc sjc ams ams fra", story)


def test_where_one_fails_the_next_is_asked_and_nobody_twice(scratch: Path) -> None:
    async def story(it: Several) -> None:
        first = it.nodes[0]
        order = ranked(BLOB, [node.id for node in it.nodes[1:]])
        asker = Asker(order[0], order[2])
        spread = await spreader_of(first, asker).spread(BLOB, 9, 3, ())
        assert [home.node for home in spread] == [order[1], order[3]]
        assert asker.asked == order

    play(scratch, "iad iad sjc sjc ams", story)


def test_a_region_whose_node_failed_is_tried_by_its_other_node(scratch: Path) -> None:
    async def story(it: Several) -> None:
        first = it.nodes[0]
        sjc = ranked(BLOB, [node.id for node in it.nodes if node.region == "sjc"])
        asker = Asker(sjc[0])
        spread = await spreader_of(first, asker).spread(BLOB, 9, 2, ("iad", "sjc"))
        assert [home.node for home in spread] == [sjc[1]]
        assert asker.asked == sjc

    play(scratch, "iad iad sjc sjc", story)


def test_too_few_are_not_asked_in_vain(scratch: Path) -> None:
    async def story(it: Several) -> None:
        first, second, third = it.nodes
        asker = Asker()
        spreader = spreader_of(first, asker)
        for copies, wanted in ((4, ()), (2, ("iad",)), (3, ("iad", "sjc"))):
            with pytest.raises(TooFewHomes, match=f"only 1 of the {copies}"):
                await spreader.spread(BLOB, 9, copies, wanted)
        assert asker.asked == []
        asker.failing = {second.id: DiskFull("no room"), third.id: SourceUnavailable("no answer")}
        with pytest.raises(TooFewHomes, match="only 1 of the 3"):
            await spreader.spread(BLOB, 9, 3, ())
        assert set(asker.asked) == {second.id, third.id}
        # One that drains takes nothing, and neither does one that is dead.
        asker.failing = {}
        await first.metadata.set_node_state(second.id, DRAINING)
        third.down = True
        await it.settle()
        with pytest.raises(TooFewHomes):
            await spreader.spread(BLOB, 9, 2, ())

    play(scratch, "iad sjc ams", story)


# --- receiving


class Looks:
    """Stands for the time between two looks at the database: the test says when it has passed."""

    def __init__(self) -> None:
        self._asked = asyncio.Semaphore(0)
        self._passed = asyncio.Semaphore(0)

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self._asked.release()
        await self._passed.acquire()

    async def looked(self) -> None:
        """Wait until it has looked in vain."""
        await self._asked.acquire()

    def again(self) -> None:
        self._passed.release()


class Receiving:
    """A writer with a blob that it has not committed, and a node that has a copy of it."""

    def __init__(self, it: Several, receiver: Receiver, looks: Looks, blob: bytes) -> None:
        self.it = it
        self.receiver = receiver
        self.looks = looks
        self.blob = blob
        self.writer, self.node, *_ = it.nodes

    async def commit(self, *others: Node) -> None:
        homes = tuple(Home(node.region, node.id) for node in others)
        draft = Draft(size=len(DATA), etag=etag_of(DATA), blob=self.blob, others=homes)
        bucket = await self.writer.metadata.bucket("bucket")
        await self.writer.metadata.put_object(bucket, "k", draft)

    async def settled(self) -> None:
        while self.receiver._settling:
            await asyncio.wait(self.receiver._settling)

    def incoming(self) -> list[Path]:
        return [path for path in (self.node.root / "incoming").rglob("*") if path.is_file()]

    async def sweep(self) -> tuple[int, int]:
        done = await self.node.blocks.sweep(self.node.metadata.settle_blob)
        assert (done.live, done.failures) == (0, ())
        return done.published, done.removed


def receiving(scratch: Path, story: Callable[[Receiving], Awaitable[None]], *, wait_s: float = 60.0) -> None:
    async def main(it: Several) -> None:
        writer, node, *_ = it.nodes
        await it.bucket()
        blob = await it.store(writer, DATA)
        looks = Looks()

        class FromTheWriter:
            """Reads what the writer has, committed or not."""

            async def read(
                self, peer: Member, blob_id: bytes, size: int, start: int, stop: int, *, gather: bool = False
            ) -> AsyncIterator[bytes]:
                assert (peer.node, gather) == (writer.id, False)
                async for piece in writer.blocks.open_blob(blob_id, size).read(start, stop):
                    yield bytes(piece)

        source = PeerSource(node.members, FromTheWriter())
        receiver = Receiver(node.metadata, node.blocks, source, wait_s=wait_s, sleep=looks.sleep)
        try:
            await receiver.receive(blob, len(DATA), writer.id)
            await story(Receiving(it, receiver, looks, blob))
        finally:
            await receiver.aclose()

    play(scratch, "iad sjc ams", main)


def test_a_copy_is_durable_before_it_is_committed_and_published_after(scratch: Path) -> None:
    async def story(it: Receiving) -> None:
        await it.looks.looked()
        assert it.incoming()
        assert await it.node.home() == {}
        await it.commit(it.node)
        it.looks.again()
        await it.settled()
        assert not it.incoming()
        assert await it.node.home() == {it.blob: 3}
        await it.node.disk.verify_blob(it.blob, len(DATA))
        await it.writer.blocks.publish(it.blob)
        await it.it.sound()

    receiving(scratch, story)


def test_a_copy_that_was_committed_without_this_node_is_removed(scratch: Path) -> None:
    async def story(it: Receiving) -> None:
        await it.looks.looked()
        await it.commit(it.it.nodes[2])
        it.looks.again()
        await it.settled()
        assert not it.incoming()
        assert await it.node.home() == {}
        assert await it.sweep() == (0, 0)

    receiving(scratch, story)


def test_a_copy_whose_blob_was_given_up_is_removed(scratch: Path) -> None:
    async def story(it: Receiving) -> None:
        await it.looks.looked()
        assert not await it.writer.metadata.settle_blob(it.blob)
        it.looks.again()
        await it.settled()
        assert not it.incoming()
        assert await it.node.home() == {}

    receiving(scratch, story)


def test_what_the_database_does_not_tell_is_asked_again(scratch: Path) -> None:
    async def story(it: Receiving) -> None:
        await it.looks.looked()
        await it.commit(it.node)
        blob, settle = it.node.metadata.blob, it.node.metadata.settle_blob

        async def away(*args: Any) -> Any:
            raise EngineUnavailable("the database is away")

        it.node.metadata.blob = away  # type: ignore[method-assign, assignment]
        it.looks.again()
        await it.looks.looked()
        it.node.metadata.blob = blob  # type: ignore[method-assign]
        it.node.metadata.settle_blob = away  # type: ignore[method-assign, assignment]
        it.looks.again()
        await it.looks.looked()
        assert it.incoming()
        it.node.metadata.settle_blob = settle  # type: ignore[method-assign]
        it.looks.again()
        await it.settled()
        assert await it.node.home() == {it.blob: 3}

    receiving(scratch, story)


@pytest.mark.parametrize("committed", [False, True])
def test_after_the_time_a_sweep_finds_out_and_a_commit_that_comes_later_fails(scratch: Path, committed: bool) -> None:
    async def story(it: Receiving) -> None:
        await it.settled()
        assert it.incoming()
        if committed:
            await it.commit(it.node)
            assert await it.sweep() == (1, 0)
            assert await it.node.home() == {it.blob: 3}
        else:
            assert await it.sweep() == (0, 1)
            with pytest.raises(BlobDead):
                await it.commit(it.node)
            assert await it.node.home() == {}

    receiving(scratch, story, wait_s=0.0)


def test_at_the_end_of_the_process_copies_are_left_to_a_sweep(scratch: Path) -> None:
    async def story(it: Receiving) -> None:
        await it.looks.looked()
        await it.receiver.aclose()
        assert it.incoming()
        await it.commit(it.node)
        assert await it.sweep() == (1, 0)
        assert await it.node.home() == {it.blob: 3}

    receiving(scratch, story)


def test_a_copy_that_cannot_be_published_is_left_to_a_sweep(scratch: Path) -> None:
    async def story(it: Receiving) -> None:
        await it.looks.looked()
        await it.commit(it.node)
        publish = it.node.blocks._publish

        def refuse(blob_id: bytes) -> None:
            it.node.blocks.release(blob_id)
            raise DiskFull("no room for a directory entry")

        it.node.blocks._publish = refuse  # type: ignore[method-assign]
        it.looks.again()
        await it.settled()
        it.node.blocks._publish = publish  # type: ignore[method-assign]
        assert it.incoming()
        assert await it.sweep() == (1, 0)

    receiving(scratch, story)


def test_a_copy_that_cannot_be_had_leaves_nothing(scratch: Path) -> None:
    async def story(it: Several) -> None:
        writer, node = it.nodes
        blob = await it.store(writer, DATA)
        receiver = Receiver(node.metadata, node.blocks, PeerSource(node.members, node.peers))
        with pytest.raises(SourceUnavailable, match="cannot be reached"):
            await receiver.receive(blob, len(DATA), b"nobody..........")
        writer.down = True
        with pytest.raises(BytesError):
            await receiver.receive(blob, len(DATA), writer.id)
        await it.settle()
        with pytest.raises(SourceUnavailable, match="cannot be reached"):
            await receiver.receive(blob, len(DATA), writer.id)
        assert [path for path in (node.root / "incoming").rglob("*") if path.is_file()] == []
        with contextlib.suppress(BytesError):
            await node.blocks.sweep(node.metadata.settle_blob)
        await receiver.aclose()

    play(scratch, "iad sjc", story)
