"""Writes to origins against everything that can overtake them: deletes, reclaiming, releases, copies, policies that
change, crashes and outages, on several nodes at once.

Real tasks and block stores over a database whose scheduler interleaves them; a failing run names its seed, which shows
it again. At every moment each object is held by a node that is recorded as its home, or by the origin that is recorded
to have it; in the end nothing is left of what is gone, here or there.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.metadata.world import etag_of, listed, no_combine, no_composite
from tests.replication.several import BLOCK, Node, Several, data_of, play
from tests.replication.test_homes_model import Crash, _blocks
from tigrislike.bytecache.footer import block_count
from tigrislike.metadata import Draft, Extent, NoSuchKey, Part, UploadDraft, copy_draft
from tigrislike.metadata.backing import key_of
from tigrislike.metadata.errors import ContentGone, HomesLacking, NotBacked
from tigrislike.metadata.keyspace import subspace
from tigrislike.metadata.records import BACKED
from tigrislike.replication.backing import Backer, NotAtOrigin

REGIONS = "iad iad sjc"
LONG_S = 2 * 3600.0
DURABILITIES = {"plain": "local", "back": "write-back", "wide": "write-back", "through": "write-through"}
BUCKETS = tuple(DURABILITIES)
KEYS = "abc"


class World:
    """The nodes, and what their objects are."""

    def __init__(self, it: Several, rng: random.Random) -> None:
        self.it = it
        self.rng = rng
        self.objects: dict[tuple[str, str], bytes] = {}
        self.blobs: dict[bytes, bytes] = {}
        """The bytes of every blob that was ever written."""
        self.written = 0

    async def found(self) -> None:
        for name, durability in DURABILITIES.items():
            await self.it.bucket("iad,sjc" if name == "wide" else "", name=name)
            if durability != "local":
                await self.it.back(name, durability)

    def node(self) -> Node:
        return self.rng.choice(self.it.nodes)

    def place(self) -> tuple[str, str]:
        return self.rng.choice(BUCKETS), self.rng.choice(KEYS)

    def data(self) -> bytes:
        self.written += 1
        return data_of(self.written, self.rng.choice((BLOCK // 2, BLOCK + 5)))

    async def store(self, node: Node, data: bytes) -> bytes:
        blob_id = await self.it.store(node, data)
        self.blobs[blob_id] = data
        return blob_id

    # --- what clients do

    async def put(self) -> None:
        node, (name, key), data = self.node(), self.place(), self.data()
        bucket = await node.metadata.bucket(name)
        blob_id = await self.store(node, data)
        elsewhere = None
        try:
            if bucket.durability == "write-through":
                elsewhere = await Backer(node.metadata, node.blocks, node.origins).write(bucket, blob_id, len(data))
            draft = Draft(size=len(data), etag=etag_of(data), blob=blob_id, elsewhere=elsewhere)
            await node.metadata.put_object(bucket, key, draft)
        except (NotAtOrigin, NotBacked):
            node.blocks.release(blob_id)
            return
        self.objects[name, key] = blob_id
        await node.blocks.publish(blob_id)

    async def delete(self) -> None:
        name, key = self.place()
        node = self.node()
        await node.metadata.delete_object(await node.metadata.bucket(name), key)
        self.objects.pop((name, key), None)

    async def copy(self) -> None:
        (source, key), (name, into) = self.place(), self.place()
        metadata = self.node().metadata
        places = (await metadata.bucket(source), key, None), None, await metadata.bucket(name), into, copy_draft
        try:
            version, _ = await metadata.copy_object(*places)
        except (NoSuchKey, NotBacked, ContentGone, HomesLacking):
            return
        self.objects[name, into] = version.content

    async def multipart(self) -> None:
        """Parts on two nodes, one of them replaced."""
        name, key = self.place()
        metadata = self.it.nodes[0].metadata
        bucket = await metadata.bucket(name)
        upload_id = (await metadata.create_upload(bucket, key, UploadDraft())).upload_id
        stored = {}
        for number in (1, 2, 1):
            node, data = self.node(), self.data()
            blob_id = await self.store(node, data)
            elsewhere = None
            with contextlib.suppress(NotAtOrigin):
                if bucket.durability == "write-through":
                    elsewhere = await Backer(node.metadata, node.blocks, node.origins).write(bucket, blob_id, len(data))
            sent = Part(number, len(data), etag_of(data), "", 0, (Extent(blob_id, 0, len(data)),))
            stored[number] = await node.metadata.put_part(bucket, key, upload_id, sent, elsewhere)
            await node.blocks.publish(blob_id)
        if self.rng.random() < 0.3:
            await metadata.abort_upload(bucket, key, upload_id)
            return
        parts = listed(*(stored[number] for number in sorted(stored)))
        await metadata.complete_upload(bucket, key, upload_id, parts, combine=no_combine, composite=no_composite)
        self.objects[name, key] = bytes.fromhex(upload_id)

    # --- what operators and time do

    async def repolicy(self) -> None:
        name = self.rng.choice(BUCKETS[1:])
        if self.rng.random() < 0.4:
            await self.it.unback(name)
        else:
            await self.it.back(name, DURABILITIES[name], self.rng.choice(("origin", "other")))

    async def outage(self) -> None:
        for origin in self.it.origins.values():
            origin.set("away", self.rng.random() < 0.4)

    async def elapse(self) -> None:
        self.it.elapse(self.rng.choice((1.0, 30.0, LONG_S)))

    async def crash(self) -> None:
        """A node ends in the middle of its work, at some step at an origin, or on its disk."""
        node, after = self.node(), self.rng.randrange(4)
        count = 0

        def step() -> None:
            nonlocal count
            count += 1
            if count > after:
                raise Crash("killed")

        async def stepping(*args: Any, **options: Any) -> Any:
            step()
            return await demote(*args, **options)

        demote = node.blocks.demote
        for origin in self.it.origins.values():
            origin.step = step
        node.blocks.demote = stepping  # type: ignore[method-assign]
        try:
            with contextlib.suppress(Crash):
                await node.drain()
        finally:
            node.blocks.demote = demote  # type: ignore[method-assign]
            for origin in self.it.origins.values():
                origin.step = lambda: None
        self.it.elapse(LONG_S)  # its leases are over

    async def work(self) -> None:
        """Nodes work at once, and clients beside them."""
        nodes = self.rng.sample(self.it.nodes, self.rng.randint(1, 3))
        beside: list[Callable[[], Awaitable[None]]] = [self.put, self.delete, self.copy, self.repolicy]
        clients = [self.rng.choice(beside)() for _ in range(self.rng.randint(0, 2))]
        await asyncio.gather(*(node.drain() for node in nodes), *clients)

    # --- what always holds

    async def held(self) -> None:
        metadata = self.it.nodes[0].metadata
        on_disk = {node.id: _blocks(node) for node in self.it.nodes}
        for place, content_id in self.objects.items():
            held = await metadata.held(content_id)
            assert held is not None, f"{place} is dead"
            content = await self.it.content(content_id)
            for blob_id, size in held.blobs:
                located = await metadata.locate(blob_id)
                assert located is not None
                assert located.homes or located.elsewhere, f"nobody is said to have {place}"
                for home in located.homes:
                    assert on_disk[home.node][blob_id] == block_count(size, BLOCK), f"{home} has not all of {place}"
                assert (located.elsewhere is not None) == (content.elsewhere == BACKED)
                if located.elsewhere is not None:
                    found = [each for each in self.it.origins.values() if each.has(key_of(blob_id))]
                    assert any(each.data(key_of(blob_id)) == self.blobs[blob_id] for each in found), place

    async def end(self) -> None:
        """Nothing goes wrong any more and all is worked off; then everything is deleted, and nothing is left."""
        for origin in self.it.origins.values():
            origin.set("away", False)
        await self.rest()
        await self.held()
        await self.it.sound()
        reader = self.it.nodes[-1]
        for (name, _), content_id in self.objects.items():
            content = await self.it.content(content_id)
            assert (content.elsewhere == BACKED) == bool(content.backing), (name, content)
            assert not content.leaving
            held = await reader.metadata.held(content_id)
            assert held is not None
            for blob_id, size in held.blobs:
                assert await reader.read(blob_id, size) == self.blobs[blob_id]
        for name, key in self.objects:
            await reader.metadata.delete_object(await reader.metadata.bucket(name), key)
        await self.rest()
        for node in self.it.nodes:
            assert _blocks(node) == {}, f"node {node.number}"
        for origin in self.it.origins.values():
            assert origin.keys() == set(), origin.name
        keys = reader.metadata.context.keys
        rest = (keys.contents, keys.parts, keys.blobs, keys.homes, keys.elsewheres, keys.queue_items, keys.queue_dead)
        for family in rest:

            async def rows(tr: Any, family: bytes = family) -> list[tuple[bytes, bytes]]:
                return list(await tr.get_range(*subspace(family)))

            assert await self.it.engine.read(rows) == []
        await self.it.sound()

    async def rest(self) -> None:
        for _ in range(8):
            for node in self.it.nodes:
                await node.blocks.sweep(node.metadata.settle_blob)
            self.it.elapse(LONG_S)
            await self.it.drain()


def run(folder: Path, seed: int, steps: int) -> None:
    print(f"seed {seed}")

    async def story(it: Several) -> None:
        world = World(it, random.Random(seed))
        await world.found()
        actions = [world.put, world.put, world.delete, world.copy, world.multipart, world.work, world.work, world.work]
        actions += [world.repolicy, world.outage, world.elapse, world.crash]
        for _ in range(steps):
            action = world.rng.choice(actions)
            print(action.__name__)
            await action()
            await world.held()
        await world.end()

    play(folder, REGIONS, story, seed=seed)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tigrislike.metadata.uploads.MIN_PART_BYTES", 1)


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_writing_back_and_what_overtakes_it(seed: int, tmp_path: Path) -> None:
    run(tmp_path, seed, steps=20)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_many_orders_of_writing_back_and_what_overtakes_it(seed: int, tmp_path: Path) -> None:
    run(tmp_path, seed, steps=60)
