"""Stored bytes gain homes before a write that shares them is acknowledged, and keep them only where it was."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.metadata.world import etag_of, listed, no_combine, no_composite
from tests.replication.several import Node, Several, data_of, play
from tigrislike.bytecache import BytesError, DiskFull, SourceUnavailable
from tigrislike.metadata import Bucket, Part, UploadDraft, copy_draft
from tigrislike.metadata.errors import HomesLacking
from tigrislike.metadata.homes import AHEAD_NS
from tigrislike.metadata.placing import ranked
from tigrislike.metadata.records import Extent
from tigrislike.replication.membership import Member
from tigrislike.replication.spreading import Spreader, TooFewHomes

DATA = data_of(1)
AHEAD_S = AHEAD_NS / 1e9


class Asker:
    """Asks other nodes without a network: they become homes, but for those that are `failing`."""

    def __init__(self, it: Several, *failing: Node) -> None:
        self._it = it
        self.asked: list[int] = []
        self.failing: dict[int, BytesError] = {node.number: DiskFull("no room") for node in failing}

    async def post_copy(self, peer: Member, blob_id: bytes, size: int) -> None:
        raise AssertionError("these bytes are committed")

    async def post_home(self, peer: Member, content_id: bytes, size: int) -> None:
        node = self._it.by_id[peer.node]
        self.asked.append(node.number)
        if node.number in self.failing:
            raise self.failing[node.number]
        await node.copying.become_home_ahead(content_id)


class Sharing:
    """An object on node 0, alone, and a bucket that wants copies of it to be on more."""

    def __init__(self, it: Several, source: Bucket, target: Bucket, blob: bytes) -> None:
        self.it = it
        self.source = source
        self.target = target
        self.blob = blob
        self.first = it.nodes[0]
        self.asker = Asker(it)

    async def copy(self, key: str = "c", source: str = "k") -> None:
        members = self.first.members
        await self.first.metadata.copy_object(
            (self.source, source, None), None, self.target, key, copy_draft, alive=members.alive()
        )

    async def secure(self, lacking: HomesLacking) -> None:
        spreader = Spreader(self.first.metadata, self.first.members, self.asker, self.first.copying.become_home_ahead)
        await spreader.secure(lacking.contents, lacking.regions, lacking.copies)

    async def lacking(self, source: str = "k") -> HomesLacking:
        with pytest.raises(HomesLacking) as refused:
            await self.copy(source=source)
        return refused.value

    async def share(self, source: str = "k") -> None:
        await self.secure(await self.lacking(source))
        await self.copy(source=source)

    async def elapse(self) -> None:
        """Let all vest that was owed ahead of a write, and be done."""
        for _ in range(2):
            self.it.elapse(1.1 * AHEAD_S)
            assert not (await self.it.drain()).failed


def sharing(
    scratch: Path,
    regions: str,
    story: Callable[[Sharing], Awaitable[None]],
    *,
    policy: str = "",
    durability: str = "homes=2",
) -> None:
    async def main(it: Several) -> None:
        for node in it.nodes:
            node.metadata.regions.known = frozenset(regions.split())
        metadata = it.nodes[0].metadata
        source = await metadata.create_bucket("source", "me")
        target = await metadata.create_bucket("target", "me", region_policy=policy, durability=durability)
        blob = await it.put(it.nodes[0], source, "k", DATA)
        await story(Sharing(it, source, target, blob))
        await it.sound()

    play(scratch, regions, main)


async def holding(it: Several, blob: bytes) -> set[int]:
    """The numbers of the nodes that have all of a blob at home."""
    return {node.number for node in it.nodes if (await node.home())[blob] == 3}


@pytest.mark.parametrize("copies", [2, 3])
def test_a_copy_is_committed_once_as_many_nodes_hold_the_bytes_and_these_keep_them(scratch: Path, copies: int) -> None:
    async def story(it: Sharing) -> None:
        await it.share()
        chosen = ranked(it.blob, [node.id for node in it.it.nodes[1:]])[: copies - 1]
        expected = {0, *(it.it.by_id[node].number for node in chosen)}
        assert await it.it.homes(it.blob) == await holding(it.it, it.blob) == expected
        await it.elapse()
        assert await it.it.homes(it.blob) == await holding(it.it, it.blob) == expected
        assert (await it.it.content(it.blob)).copies == copies
        asked = list(it.asker.asked)
        await it.copy("another")
        assert it.asker.asked == asked

    sharing(scratch, "iad sjc ams fra", story, durability=f"homes={copies}")


def test_homes_for_a_copy_that_never_came_are_given_up(scratch: Path) -> None:
    async def story(it: Sharing) -> None:
        await it.secure(await it.lacking())
        assert len(await it.it.homes(it.blob)) == 2
        await it.elapse()
        assert await it.it.homes(it.blob) == await holding(it.it, it.blob) == {0}
        content = await it.it.content(it.blob)
        assert (content.pending, content.leaving) == ((), ())

    sharing(scratch, "iad sjc ams", story)


@pytest.mark.parametrize("adopted", [False, True], ids=["announced", "bytes moved"])
@pytest.mark.parametrize("comes", [False, True], ids=["given up", "copied after all"])
def test_a_node_that_dies_on_the_way_to_be_a_home_leaves_nothing_undone(
    scratch: Path, adopted: bool, comes: bool
) -> None:
    async def story(it: Sharing) -> None:
        second = it.it.nodes[1]
        held = await second.metadata.begin_home(it.blob, ahead=True)
        assert held is not None
        if adopted:
            await second.blocks.adopt(it.blob, len(DATA))
        it.it.elapse(1.1 * AHEAD_S)
        assert not (await it.it.drain()).failed
        assert await it.it.homes(it.blob) == {0, 1}, "its agent goes on"
        if comes:
            await it.copy()
        await it.elapse()
        assert await it.it.homes(it.blob) == await holding(it.it, it.blob) == ({0, 1} if comes else {0})

    sharing(scratch, "iad sjc", story)


def test_a_release_that_comes_while_a_home_is_gained_looks_again(scratch: Path) -> None:
    async def story(it: Sharing) -> None:
        second = it.it.nodes[1]
        second.down = True  # its agent: what is owed to it waits
        assert await second.metadata.begin_home(it.blob, ahead=True) is not None
        it.it.elapse(2.2 * AHEAD_S)
        second.down = False
        worked = await second.drain()
        assert not worked.failed
        assert await it.it.homes(it.blob) == {0, 1}
        it.it.elapse(11)
        await it.it.drain()
        assert await it.it.homes(it.blob) == await holding(it.it, it.blob) == {0}

    sharing(scratch, "iad sjc", story)


def test_where_one_fails_the_next_is_asked_and_too_few_refuse_the_copy(scratch: Path) -> None:
    async def story(it: Sharing) -> None:
        order = [it.it.by_id[node].number for node in ranked(it.blob, [node.id for node in it.it.nodes[1:]])]
        it.asker.failing = {order[0]: SourceUnavailable("no answer")}
        await it.share()
        assert it.asker.asked == order[:2]
        assert await it.it.homes(it.blob) == {0, order[1]}
        blob = await it.it.put(it.first, it.source, "other", DATA)
        it.asker.failing = {number: DiskFull("no room") for number in order}
        with pytest.raises(TooFewHomes, match="only 1 of the 2 nodes that must hold this object have it"):
            await it.share("other")
        assert await it.it.homes(blob) == {0}
        it.asker.failing = {}
        for node in it.it.nodes[1:]:
            node.down = True
        await it.it.settle()
        with pytest.raises(TooFewHomes, match="and 0 others can be asked"):
            await it.share("other")

    sharing(scratch, "iad sjc ams", story)


@pytest.mark.parametrize(
    ("policy", "regions"),
    [
        ("sjc,ams", {"sjc", "ams"}),
        ("ams,fra", {"ams", "fra"}),
        ("usa", {"sjc"}),  # of iad, where another node could have it, the object is already
    ],
)
def test_copies_are_in_the_regions_of_the_policy_but_for_one(scratch: Path, policy: str, regions: set[str]) -> None:
    async def story(it: Sharing) -> None:
        await it.share()
        (other,) = await it.it.homes(it.blob) - {0}
        assert it.it.nodes[other].region in regions
        assert (await it.it.content(it.blob)).regions == tuple(policy.split(","))

    sharing(scratch, "iad iad sjc ams fra", story, policy=policy, durability="local")


def test_the_writers_own_node_may_be_the_one_that_gains_it(scratch: Path) -> None:
    async def story(it: Sharing) -> None:
        it.first = it.it.nodes[1]
        await it.share()
        assert it.asker.asked == []
        assert await it.it.homes(it.blob) == {0, 1}

    sharing(scratch, "iad sjc", story)


def test_a_home_that_is_dead_does_not_count(scratch: Path) -> None:
    async def story(it: Sharing) -> None:
        await it.share()
        (other,) = await it.it.homes(it.blob) - {0}
        it.it.nodes[other].down = True
        await it.it.settle()
        await it.secure(await it.lacking())
        await it.copy("again")
        assert await it.it.homes(it.blob) == {0, 1, 2}

    sharing(scratch, "iad sjc ams", story)


async def sliced(it: Several, node: Node, bucket: Bucket, key: str, *sources: bytes) -> bytes:
    """An object of slices."""
    upload = (await node.metadata.create_upload(bucket, key, UploadDraft())).upload_id
    size = 5 << 20
    parts = []
    for number, source in enumerate(sources, 1):
        extent = Extent(source, 4, size if number < len(sources) else 9, len(DATA))
        part = Part(number, extent.size, etag_of(b"x"), "", 0, (extent,), source=source)
        parts.append(await node.metadata.put_part(bucket, key, upload, part))
    await node.metadata.complete_upload(
        bucket, key, upload, listed(*parts), combine=no_combine, composite=no_composite, alive=node.members.alive()
    )
    return bytes.fromhex(upload)


def test_what_lends_a_copy_its_parts_is_brought_to_the_same_nodes(scratch: Path) -> None:
    async def story(it: Sharing) -> None:
        content_id = await sliced(it.it, it.first, it.source, "slices", it.blob)
        await it.share("slices")
        await it.it.drain()
        homes = await it.it.homes(content_id)
        assert len(homes) == 2
        assert await it.it.homes(it.blob) == homes == await holding(it.it, it.blob)
        await it.elapse()
        assert await it.it.homes(it.blob) == homes

    sharing(scratch, "iad sjc ams fra", story)


def test_what_is_deleted_meanwhile_is_nobodys_to_hold(scratch: Path) -> None:
    async def story(it: Sharing) -> None:
        lacking = await it.lacking()
        await it.first.metadata.delete_object(it.source, "k")
        await it.it.drain()
        await it.secure(lacking)
        assert it.asker.asked == []
        for node in it.it.nodes:
            await node.copying.become_home_ahead(it.blob)
        await it.elapse()
        await it.it.gone(it.blob)

    sharing(scratch, "iad sjc", story)
