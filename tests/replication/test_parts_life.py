"""Parts of uploads in progress whose node drains or goes: others take them, and the upload completes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.metadata.world import listed, no_combine, no_composite
from tests.replication.cluster import Cluster, cluster, data_of
from tests.replication.test_life import nothing_owed_to, remove
from tigrislike.admin.fsck import fsck
from tigrislike.admin.nodes import sole_contents
from tigrislike.metadata import Bucket, Extent, Part, UploadDraft, owed
from tigrislike.metadata.errors import InvalidPart, NoSuchUpload
from tigrislike.metadata.homes import HOLD, owe_hold
from tigrislike.metadata.records import Home
from tigrislike.replication.tasks import Task

SIZE = 5 << 20


class Upload:
    """An upload in progress: parts by their numbers, and what they are the bytes of."""

    def __init__(self, it: Cluster, bucket: Bucket, upload_id: str) -> None:
        self.it = it
        self.bucket = bucket
        self.upload_id = upload_id
        self.content_id = bytes.fromhex(upload_id)
        self.parts: dict[int, Part] = {}
        self.data: dict[int, bytes] = {}

    @classmethod
    async def create(cls, it: Cluster) -> Upload:
        bucket = await it.bucket()
        upload = await next(iter(it.nodes.values())).metadata.create_upload(bucket, "k", UploadDraft())
        return cls(it, bucket, upload.upload_id)

    async def put(self, name: str, number: int, *others: str, seed: int = 0) -> bytes:
        """Send a part to a node; its blob. `others` have a copy too."""
        node, data = self.it[name], data_of(seed or number, SIZE)
        blob = await node.store(data)
        homes = tuple(Home(self.it[other].region, self.it[other].id) for other in others)
        part = Part(number, SIZE, f"{seed or number:032x}", "", 0, (Extent(blob, 0, SIZE),), others=homes)
        self.parts[number] = await node.metadata.put_part(self.bucket, "k", self.upload_id, part)
        self.data[number] = data
        await node.blocks.publish(blob)
        for other in others:
            await self.it[other].blocks.adopt(blob, SIZE)
        return blob

    async def complete(self, name: str) -> None:
        await self.it[name].metadata.complete_upload(
            self.bucket, "k", self.upload_id, listed(*self.parts.values()), combine=no_combine, composite=no_composite
        )

    async def abort(self, name: str) -> None:
        await self.it[name].metadata.abort_upload(self.bucket, "k", self.upload_id)

    async def whole(self, name: str) -> None:
        """What was completed can be read at a node."""
        found = await self.it[name].metadata.find_object(self.bucket, "k")
        for part in found.parts:
            assert await self.it[name].get(part.extents[0].blob, SIZE) == self.data[part.number]

    async def holders(self) -> dict[int, set[str]]:
        names = {node.id: name for name, node in self.it.nodes.items()}
        page = await self.it[next(iter(self.it.nodes))].metadata.list_parts(self.bucket, "k", self.upload_id)
        return {part.number: {names[part.node], *(names[home.node] for home in part.others)} for part in page.parts}

    def task(self, name: str, task: str) -> Task:
        return next(each for each in self.it[name].tasks if each.name == task)


def play(folder: Path, story: Callable[[Cluster], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with cluster(folder, **options) as it:
            await story(it)
            for node in it.nodes.values():
                if node.up:
                    assert [finding async for finding in fsck(node.metadata, node.blocks, pause_s=0)] == []

    asyncio.run(main())


async def drain(it: Cluster, name: str) -> None:
    await it[name].metadata.drain_node(it[name].id)
    await it.beat(2)


def test_a_draining_node_gives_its_parts_to_others_and_the_upload_completes_when_it_is_gone(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        upload = await Upload.create(it)
        await upload.put("a", 1)
        await upload.put("b", 2)
        await upload.put("a", 3, "b")
        await drain(it, "a")
        await it.work(rounds=12)
        assert await it["b"].metadata.homes_of(it["a"].id) == []
        held = await upload.holders()
        assert held[1] <= {"b", "c"}
        assert (held[2], held[3]) == ({"b"}, {"b", "c"})
        assert it["a"].files() == 0, "the space is given back"
        assert it.failed() == 0
        it.kill("a")
        assert await remove(it, "a", by="b") == []
        await nothing_owed_to(it, "a")
        await upload.complete("c")
        await upload.whole("b")
        await it.work()
        await upload.whole("c")
        await it["b"].metadata.delete_object(upload.bucket, "k")
        await it.work(rounds=12)
        assert it["b"].files() == it["c"].files() == 0

    play(scratch, story, a="iad", b="iad", c="iad")


def test_who_has_no_part_any_more_is_not_said_to_have_some(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        upload = await Upload.create(it)
        await upload.put("a", 1)
        await upload.put("a", 2)
        await upload.put("b", 1, seed=7)
        assert await it["b"].metadata.homes_of(it["a"].id) == [upload.content_id]
        await upload.put("b", 2, seed=8)
        assert await it["b"].metadata.homes_of(it["a"].id) == []
        assert await upload.holders() == {1: {"b"}, 2: {"b"}}
        await upload.complete("b")
        await upload.whole("b")

    play(scratch, story, a="iad", b="iad")


@pytest.mark.parametrize("end", ["complete", "abort"])
def test_an_upload_that_ends_while_its_parts_are_taken_leaves_nothing_stray(scratch: Path, end: str) -> None:
    async def story(it: Cluster) -> None:
        upload = await Upload.create(it)
        blob = await upload.put("a", 1)
        await drain(it, "a")
        await it.work(rounds=1, only=["a"])
        ((_, item),) = await it["b"].metadata.queue.items(owed.zone_of(it["b"].id, b""))
        assert (item.task, item.subject) == (HOLD, upload.content_id)
        effect = await upload.task("b", HOLD).run(item)
        assert effect is not None
        assert it["b"].files() > 0
        await (upload.complete if end == "complete" else upload.abort)("a")
        await it["b"].metadata.background(effect, it["b"].metadata.context)
        await it.work(rounds=16)
        assert it["a"].files() == 0
        if end == "abort":
            assert it["b"].files() == 0
            assert await it["b"].metadata.blob(blob) is None
            with pytest.raises(NoSuchUpload):
                await upload.holders()
        else:
            assert await it.homes(upload.content_id) == {"b"}
            await upload.whole("b")

    play(scratch, story, a="iad", b="iad")


def test_of_two_that_take_a_part_one_keeps_it(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        upload = await Upload.create(it)
        blob = await upload.put("a", 1)
        await drain(it, "a")
        leaving = frozenset({it["a"].id})
        for name in "bc":
            assert await it[name].metadata.begin_parts(upload.content_id, leaving) == [(blob, SIZE)]
            assert await it[name].metadata.begin_parts(upload.content_id, leaving) == [(blob, SIZE)], "it goes on"
        for name in "bc":
            await it["a"].metadata.background(_owe_hold, it["a"].metadata.context, it[name].id, upload.content_id)
        await it.work(rounds=12)
        ((holder,),) = (await upload.holders()).values()
        assert holder in "bc"
        assert {name for name in "abc" if it[name].files()} == {holder}

    play(scratch, story, a="iad", b="iad", c="iad")


def test_parts_that_only_a_removed_node_had_are_no_parts_any_more(scratch: Path) -> None:
    async def story(it: Cluster) -> None:
        upload = await Upload.create(it)
        await upload.put("a", 1)
        await upload.put("a", 2, "b")
        await it.silence("a")
        assert [each async for each in sole_contents(it["b"].metadata, it["b"].members, it["a"].id)] == [
            upload.content_id
        ]
        assert await remove(it, "a", by="b") == [upload.content_id]
        await nothing_owed_to(it, "a")
        assert await upload.holders() == {2: {"b"}}
        with pytest.raises(InvalidPart):
            await upload.complete("b")
        await upload.put("b", 1)
        await upload.complete("b")
        await upload.whole("b")

    play(scratch, story, a="iad", b="iad")


async def _owe_hold(tr: Any, ctx: Any, node: bytes, content_id: bytes) -> None:
    await owe_hold(tr, ctx, node, b"", content_id)
