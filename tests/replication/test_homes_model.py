"""Any order of writes, deletes, homes gained and lost, crashes and deaths: what is recorded as held is held, and in the
end nothing is left of what is gone.

Real tasks, real block stores, a database whose scheduler interleaves nodes that work at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.metadata.world import etag_of, listed, no_combine, no_composite
from tests.replication.several import BLOCK, Node, Several, data_of, several
from tigrislike.bytecache import BytesError, DiskFailed, SourceUnavailable
from tigrislike.bytecache.footer import block_count
from tigrislike.metadata import Bucket, Draft, Extent, NoSuchKey, Part, UploadDraft, copy_draft, homes
from tigrislike.metadata.errors import HomesLacking
from tigrislike.metadata.keyspace import subspace
from tigrislike.metadata.placing import Alive
from tigrislike.metadata.records import Home
from tigrislike.replication.membership import Member
from tigrislike.replication.remote import PeerSource
from tigrislike.replication.spreading import Spreader, TooFewHomes

T = TypeVar("T")

REGIONS = ("iad", "iad", "sjc", "ams")
POLICIES = ("", "iad", "iad,sjc", "sjc,ams")
SIZES = (BLOCK // 2, 2 * BLOCK + 5)
LONG_S = 2 * 3600.0

nodes = st.sampled_from(range(len(REGIONS)))
policies = st.sampled_from(POLICIES)
keys = st.sampled_from("abc")


class Crash(BaseException):
    """The node's process ends here."""


class Homes(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = contextlib.AsyncExitStack()
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self.buckets: dict[str, Bucket] = {}
        self.objects: dict[tuple[str, str], bytes] = {}
        """The content of each object that there is, by bucket and key."""
        self.written = 0
        self.it: Several

    def do(self, work: Awaitable[T]) -> T:
        async def main() -> T:
            return await work

        return self.runner.run(main())

    @initialize()
    def found(self) -> None:
        async def make() -> None:
            self.it = await self.stack.enter_async_context(several(Path(self.folder.name), REGIONS))
            for number, policy in enumerate(POLICIES):
                self.buckets[policy] = await self.it.bucket(policy, name=f"bucket-{number}")

        self.do(make())

    def data(self) -> bytes:
        self.written += 1
        return data_of(self.written, SIZES[self.written % len(SIZES)])

    # --- what clients do

    @rule(number=nodes, other=st.none() | nodes, policy=policies, key=keys, publishes=st.booleans())
    def put(self, number: int, other: int | None, policy: str, key: str, publishes: bool) -> None:
        """With a copy on `other`; `publishes` says whether the copy's owner lives to see the commit."""
        writer, data = self.it.nodes[number], self.data()

        async def put() -> bytes:
            blob_id = await self.it.store(writer, data)
            copies = []
            if other is not None and other != number:
                node = self.it.nodes[other]
                with contextlib.suppress(Exception):  # it is dead
                    source = PeerSource(node.members, node.peers).of(writer.id)
                    copies.append((node, await node.blocks.receive_copy(blob_id, len(data), source)))
            draft = Draft(
                size=len(data),
                etag=etag_of(data),
                blob=blob_id,
                others=tuple(Home(node.region, node.id) for node, _ in copies),
            )
            await writer.metadata.put_object(self.buckets[policy], key, draft)
            await writer.blocks.publish(blob_id)
            for _, copy in copies:
                if publishes:
                    await copy.publish()
                copy.release()
            return blob_id

        self.objects[policy, key] = self.do(put())

    @rule(number=nodes, policy=policies, key=keys)
    def delete(self, number: int, policy: str, key: str) -> None:
        self.do(self.it.nodes[number].metadata.delete_object(self.buckets[policy], key))
        self.objects.pop((policy, key), None)

    @rule(number=nodes, source=policies, key=keys, into=policies)
    def copy(self, number: int, source: str, key: str, into: str) -> None:
        node = self.it.nodes[number]

        async def copy(alive: Alive) -> None:
            await node.metadata.copy_object(
                (self.buckets[source], key, None), None, self.buckets[into], key, copy_draft, alive=alive
            )

        try:
            self.do(self.share(node, copy))
        except NoSuchKey:
            assert (source, key) not in self.objects
        except TooFewHomes:
            pass
        else:
            self.objects[into, key] = self.objects[source, key]

    async def share(self, node: Node, share: Callable[[Alive], Awaitable[T]]) -> T:
        """What a front door does where a write shares stored bytes. Raises TooFewHomes."""
        spreader = Spreader(node.metadata, node.members, _Asker(self.it), node.copying.become_home_ahead)
        while True:
            try:
                return await share(node.members.alive())
            except HomesLacking as lacking:
                await spreader.secure(lacking.contents, lacking.regions, lacking.copies)

    @rule(number=nodes, data=st.data(), crashes=st.booleans())
    def gain_ahead(self, number: int, data: st.DataObject, crashes: bool) -> None:
        """A write makes a node a home and never comes, or the node dies on the way."""
        node = self.it.nodes[number]
        if not self.objects or node.down:
            return
        content_id = data.draw(st.sampled_from(sorted(self.objects.values())))
        failing = _failing(node, "fetch", 0, Crash("killed")) if crashes else contextlib.nullcontext()
        with failing, contextlib.suppress(Crash, BytesError):
            self.do(node.copying.become_home_ahead(content_id))

    @rule(
        parts=st.lists(st.tuples(st.integers(1, 3), nodes, st.booleans()), min_size=1, max_size=4),
        at=nodes,
        policy=policies,
        key=keys,
        end=st.sampled_from(["complete", "complete", "some", "abort"]),
    )
    def multipart(self, parts: list[tuple[int, int, bool]], at: int, policy: str, key: str, end: str) -> None:
        """Parts (number, node, whether it is a slice of an object), some of them replaced. Where too few nodes can hold
        them the upload is given up."""
        it, bucket = self.it, self.buckets[policy]

        async def upload() -> bytes | None:
            metadata = it.nodes[at].metadata
            upload_id = (await metadata.create_upload(bucket, key, UploadDraft())).upload_id
            stored: dict[int, Part] = {}
            for number, index, sliced in parts:
                node = it.nodes[index]
                source = next(iter(self.objects.values()), None) if sliced else None
                content = await it.content(source) if source is not None else None
                if source is not None and content is not None and not content.parts:
                    sent = Part(number, 9, etag_of(source), "", 0, (Extent(source, 0, 9, content.size),), source=source)
                    put = partial(node.metadata.put_part, bucket, key, upload_id, sent)
                    try:
                        stored[number] = await self.share(node, lambda alive, put=put: put(alive=alive))  # type: ignore[misc]
                    except TooFewHomes:
                        await metadata.abort_upload(bucket, key, upload_id)
                        return None
                    continue
                data = self.data()
                blob_id = await it.store(node, data)
                sent = Part(number, len(data), etag_of(data), "", 0, (Extent(blob_id, 0, len(data)),))
                stored[number] = await node.metadata.put_part(bucket, key, upload_id, sent)
                await node.blocks.publish(blob_id)
            if end == "abort":
                await metadata.abort_upload(bucket, key, upload_id)
            else:
                chosen = [stored[number] for number in sorted(stored)][: 1 if end == "some" else None]
                complete = partial(metadata.complete_upload, combine=no_combine, composite=no_composite)
                await self.share(
                    it.nodes[at], lambda alive: complete(bucket, key, upload_id, listed(*chosen), alive=alive)
                )
            return bytes.fromhex(upload_id)

        content_id = self.do(upload())
        if content_id is not None and end != "abort":
            self.objects[policy, key] = content_id

    # --- what nodes do

    @rule(number=nodes, gains=st.booleans(), data=st.data())
    def owe(self, number: int, gains: bool, data: st.DataObject) -> None:
        """Somebody wants that a node becomes a home, or is none any more."""
        if not self.objects:
            return
        content_id = data.draw(st.sampled_from(sorted(self.objects.values())))
        node = self.it.nodes[number]

        async def owe() -> None:
            fn = homes.owe_hold if gains else homes.owe_release
            bucket = (await self.it.content(content_id)).bucket
            await node.metadata.background(fn, node.metadata.context, node.id, bucket, content_id)

        self.do(owe())

    @rule(numbers=st.sets(nodes, min_size=1, max_size=3), at_once=st.booleans())
    def work(self, numbers: set[int], at_once: bool) -> None:
        working = [node.drain() for number in numbers if not (node := self.it.nodes[number]).down]
        if at_once:
            self.do(_gather(working))
        else:
            for each in working:
                self.do(each)

    @rule(number=nodes, after=st.integers(0, 4), step=st.sampled_from(["fetch", "demote", "delete", "forget", "left"]))
    def crash(self, number: int, after: int, step: str) -> None:
        """The node's process dies in the middle of its work, and is started again."""
        node = self.it.nodes[number]
        if not node.down:
            with _failing(node, step, after, Crash("killed")), contextlib.suppress(Crash):
                self.do(node.drain())

    @rule(number=nodes, after=st.integers(0, 2), step=st.sampled_from(["fetch", "demote", "delete"]))
    def fail(self, number: int, after: int, step: str) -> None:
        node = self.it.nodes[number]
        if not node.down:
            with _failing(node, step, after, DiskFailed("it broke")):
                self.do(node.drain())

    @rule(number=nodes)
    def sweep(self, number: int) -> None:
        node = self.it.nodes[number]
        self.do(node.blocks.sweep(node.metadata.settle_blob))

    @rule(number=nodes, down=st.booleans())
    def die_or_return(self, number: int, down: bool) -> None:
        self.it.nodes[number].down = down
        self.do(self.it.settle())

    @rule(seconds=st.sampled_from([10.0, LONG_S]))
    def elapse(self, seconds: float) -> None:
        self.it.elapse(seconds)

    # --- what always holds

    @invariant()
    def what_is_recorded_as_held_is_held(self) -> None:
        if self.buckets:
            self.do(self.held())

    async def held(self) -> None:
        on_disk = {node.id: _blocks(node) for node in self.it.nodes}
        seen = set()
        wanted = list(self.objects.values())
        while wanted:
            content_id = wanted.pop()
            if content_id in seen:
                continue
            seen.add(content_id)
            held = await self.it.nodes[0].metadata.held(content_id)
            assert held is not None, f"{content_id.hex()} is dead, and an object needs it"
            wanted += held.sources
            content = await self.it.content(content_id)
            assert content.homes
            for blob_id, size in held.blobs:
                located = await self.it.nodes[0].metadata.locate(blob_id)
                assert located is not None
                assert located.homes, f"nobody is said to have blob {blob_id.hex()}"
                for home in located.homes:
                    blocks = on_disk[home.node][blob_id]
                    assert blocks == block_count(size, BLOCK), f"{home} has {blocks} blocks of {blob_id.hex()}"

    def teardown(self) -> None:
        try:
            if self.buckets:
                self.do(self.end())
        finally:
            self.do(self.stack.aclose())
            self.runner.close()
            self.folder.cleanup()

    async def end(self) -> None:
        """All come back and work off what is owed; then everything is deleted, and nothing is left."""
        for node in self.it.nodes:
            node.down = False
        await self.it.settle()
        await self.rest()
        await self.held()
        await self.it.sound()
        for policy, key in self.objects:
            content = await self.it.content(self.objects[policy, key])
            there = {home.region for home in content.homes if home.whole}
            assert there >= self.it.nodes[0].metadata.regions.expand(content.regions), (content, policy)
            assert not content.leaving
            await self.it.nodes[0].metadata.delete_object(self.buckets[policy], key)
        await self.rest()
        for node in self.it.nodes:
            assert _blocks(node) == {}, f"node {node.number}"
        keys = self.it.nodes[0].metadata.context.keys
        for family in (keys.contents, keys.parts, keys.refs, keys.blobs, keys.homes, keys.queue_items, keys.queue_dead):

            async def rows(tr: Any, family: bytes = family) -> list[tuple[bytes, bytes]]:
                return list(await tr.get_range(*subspace(family)))

            assert await self.it.engine.read(rows) == []
        await self.it.sound()

    async def rest(self) -> None:
        for _ in range(4):  # what is forgotten lets go of others, whose turn comes then
            for node in self.it.nodes:
                await node.blocks.sweep(node.metadata.settle_blob)
            self.it.elapse(LONG_S)
            await self.it.drain()


class _Asker:
    """Has other nodes become homes, without a network."""

    def __init__(self, it: Several) -> None:
        self._it = it

    async def post_copy(self, peer: Member, blob_id: bytes, size: int) -> None:
        raise AssertionError("these bytes are committed")

    async def post_home(self, peer: Member, content_id: bytes, size: int) -> None:
        node = self._it.by_id[peer.node]
        if node.down:
            raise SourceUnavailable(f"node {node.number} is down")
        await node.copying.become_home_ahead(content_id)


def _blocks(node: Node) -> Counter[bytes]:
    """Blocks that a node has durably, by their blobs."""
    found: Counter[bytes] = Counter()
    for path in (node.root / "home").rglob("*"):
        if path.is_file():
            found[bytes.fromhex(path.name.partition(".")[0])] += 1
    for path in (node.root / "incoming").rglob("*"):
        if path.is_file() and len(path.parent.name) == 32:
            found[bytes.fromhex(path.parent.name)] += 1
    return found


async def _gather(working: list[Any]) -> None:
    await asyncio.gather(*working)


@contextlib.contextmanager
def _failing(node: Node, step: str, after: int, error: BaseException) -> Any:
    """A step of a node's work fails, after so many times that it did not."""
    count = 0

    def due() -> None:
        nonlocal count
        count += 1
        if count > after:
            raise error

    def failing(method: Any) -> Any:
        async def wrapped(*args: Any, **options: Any) -> Any:
            due()
            return await method(*args, **options)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        if step == "fetch":
            patch.setattr(node, "gate", failing(node.gate))
        elif step == "demote":
            patch.setattr(node.blocks, "demote", failing(node.blocks.demote))
        elif step == "delete":
            patch.setattr(node.blocks, "delete_blob", failing(node.blocks.delete_blob))
        elif step == "forget":
            patch.setattr(node.metadata, "forget_content", failing(node.metadata.forget_content))
        else:
            patch.setattr(homes, "left_home", failing(homes.left_home))
        yield


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tigrislike.metadata.uploads.MIN_PART_BYTES", 1)


class TestHomes(Homes.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(max_examples=5, stateful_step_count=20, deadline=None)


@pytest.mark.slow
class TestManyHomes(Homes.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
