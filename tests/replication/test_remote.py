"""Where blocks come from that are not here: who is asked, in which order, and what comes of it when one fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing

import pytest
from msgspec.structs import replace

from tests.kv.memory_engine import MemoryEngine
from tests.metadata.nodes import REGIONS, add_home, bucket_of, home, node_id, open_nodes
from tests.metadata.world import blob_id, large
from tigrislike.bytecache import NotAtSource, SourceUnavailable
from tigrislike.metadata import Bucket, Metadata
from tigrislike.metadata.kv import EngineUnavailable
from tigrislike.metadata.placing import ranked
from tigrislike.metadata.records import Beat, Node
from tigrislike.replication import remote
from tigrislike.replication.membership import BEAT_S, Member, Members
from tigrislike.replication.remote import HomesSilent, PeerSource, RemoteSource

ONE = blob_id(b"one")
DATA = bytes(range(100))
PIECE = 10


class FakePeers:
    """Others, of whom each has what is in `has`, breaks off after so many bytes (`breaks`), or is refused (`errors`).

    Attributes:
        asked: (number of the node, start, gather) of each read.
        open: reads that are not closed.
        on_piece: called before each piece.
    """

    def __init__(self) -> None:
        self.has: set[int] = {0, 1, 2, 3}
        self.breaks: dict[int, int] = {}
        self.short: dict[int, int] = {}
        self.asked: list[tuple[int, int, bool]] = []
        self.open = 0
        self.on_piece: Callable[[int], None] = lambda number: None

    async def read(
        self, peer: Member, blob_id: bytes, size: int, start: int, stop: int, *, gather: bool = False
    ) -> AsyncIterator[bytes]:
        number = int(peer.node[-1:])
        self.asked.append((number, start, gather))
        self.open += 1
        try:
            if number not in self.has:
                raise NotAtSource(f"node {number} has it not")
            given = 0
            for at in range(start, stop, PIECE):
                if given >= self.breaks.get(number, size):
                    raise SourceUnavailable(f"node {number} broke off")
                if given >= self.short.get(number, size):
                    return
                self.on_piece(number)
                yield DATA[at : min(at + PIECE, stop)]
                given += PIECE
        finally:
            self.open -= 1


class World:
    """A node in iad (number 0), another there (3), and two elsewhere (1 in sjc, 2 in ams)."""

    def __init__(self, nodes: list[Metadata]) -> None:
        self.nodes = nodes
        self.now_s = 1000.0
        self.metadata = nodes[0]
        self.members = Members(self.metadata, clock_s=lambda: self.now_s)
        self.peers = FakePeers()
        self.source = RemoteSource(self.metadata, self.members, self.peers, clock_s=lambda: self.now_s)
        self.beats = [0] * len(nodes)
        self.lookups = 0
        locate = self.metadata.locate

        async def counted(blob: bytes) -> object:
            self.lookups += 1
            return await locate(blob)

        self.metadata.locate = counted  # type: ignore[method-assign, assignment]
        self.bucket: Bucket

    async def live(self, *silent: int, times: int = 2) -> None:
        for _ in range(times):
            for number in range(len(self.nodes)):
                if number not in silent:
                    self.beats[number] += 1
                    await self.metadata.beat(node_id(number), Beat(0, self.beats[number]))
            self.now_s += BEAT_S
            await self.members.refresh()

    async def at(self, first: int, *others: int, blob: bytes = ONE) -> None:
        """Put an object whose homes are these."""
        draft = large(b"", len(DATA), others=tuple(home(number) for number in others))
        await self.nodes[first].put_object(self.bucket, blob.hex(), replace(draft, blob=blob))

    async def read(self, start: int = 0, stop: int = len(DATA), blob: bytes = ONE) -> bytes:
        return b"".join([bytes(piece) async for piece in self.source.read(blob, len(DATA), start, stop)])

    def asked(self) -> list[int]:
        asked, self.peers.asked = [number for number, _, _ in self.peers.asked], []
        return asked

    def away(self) -> None:
        """From now on the database is out of reach."""

        async def refuse(*args: object) -> object:
            raise EngineUnavailable("the database is away")

        self.metadata.locate = refuse  # type: ignore[method-assign, assignment]


def blob_gathered_at(number: int) -> bytes:
    """A blob that node `number` gathers for iad."""
    candidates = (each.to_bytes(16, "big") for each in range(1, 1000))
    return next(blob for blob in candidates if ranked(blob, [node_id(0), node_id(3)])[0] == node_id(number))


def play(story: Callable[[World], Awaitable[None]], *, policy: str = "") -> None:
    async def main() -> None:
        engine = MemoryEngine()
        nodes = await open_nodes(engine)
        it = World(nodes)
        for number, region in enumerate(REGIONS):
            await it.metadata.join(Node(node_id(number), region, f"https://node-{number}"))
        it.bucket = await bucket_of(it.metadata, policy)
        await it.live()
        await story(it)
        await engine.close()

    asyncio.run(main())


HERE = blob_gathered_at(0)
MATE = blob_gathered_at(3)


# --- whom it asks


def test_who_is_in_the_region_is_asked_before_who_is_nearer_by_measure() -> None:
    async def story(it: World) -> None:
        await it.at(1, 2, 3)
        it.members.measured(node_id(3), 0.5)
        it.members.measured(node_id(2), 0.1)
        it.members.measured(node_id(1), 0.2)
        it.peers.has = set()
        with pytest.raises(NotAtSource):
            await it.read()
        assert it.asked() == [3, 2, 1]

    play(story)


def test_those_that_are_about_as_near_share_the_asking_and_the_same_blob_is_asked_of_the_same() -> None:
    blobs = [number.to_bytes(16, "big") for number in range(1, 41)]

    async def story(it: World) -> None:
        await it.live(3, times=10)  # nobody else gathers
        for blob in blobs:
            await it.at(1, 2, blob=blob)

        async def asked_while(**far_s: float) -> list[int]:
            for number in (1, 2):
                for _ in range(40):  # measurements are smoothed
                    it.members.measured(node_id(number), far_s[f"node_{number}"])

            def take_long(number: int) -> None:
                it.now_s += far_s[f"node_{number}"]

            it.peers.on_piece = take_long
            for blob in blobs:
                assert await it.read(blob=blob) == DATA
            return it.asked()

        shared = await asked_while(node_1=0.11, node_2=0.08)
        assert 10 < shared.count(1) < 30
        assert len(shared) == len(blobs)
        assert await asked_while(node_1=0.08, node_2=0.11) == shared
        assert set(await asked_while(node_1=0.2, node_2=0.08)) == {2}
        it.peers.has = {1}
        assert await it.read(blob=blobs[0]) == DATA
        assert it.asked() == [2, 1], "who is farther is asked when the nearer have it not"

    play(story)


def test_in_a_region_of_several_nodes_one_gathers_for_all() -> None:
    async def story(it: World) -> None:
        await it.at(1, 2, blob=MATE)
        await it.at(1, 2, blob=HERE)
        assert await it.read(blob=MATE) == DATA
        assert it.peers.asked == [(3, 0, True)]
        it.peers.asked.clear()
        assert await it.read(blob=HERE) == DATA
        assert it.peers.asked[0][0] in (1, 2), "it is this node that gathers"
        assert not it.peers.asked[0][2]
        it.peers.asked.clear()
        it.peers.has = {1}
        assert await it.read(blob=MATE) == DATA
        assert it.asked()[0] == 3
        # One that does not answer gathers nothing.
        await it.live(3, times=10)
        assert await it.read(blob=MATE) == DATA
        assert 3 not in it.asked()

    play(story)


def test_how_long_a_node_takes_to_gather_does_not_make_it_distant() -> None:
    async def story(it: World) -> None:
        def slow(number: int) -> None:
            it.now_s += 0.25

        it.peers.on_piece = slow
        await it.at(1, blob=MATE)
        assert await it.read(blob=MATE) == DATA
        mate, far = it.members.get(node_id(3)), it.members.get(node_id(1))
        assert mate is not None
        assert far is not None
        assert it.members.latency_s(mate) == 0.0
        await it.at(1, blob=HERE)
        assert await it.read(blob=HERE) == DATA
        assert it.members.latency_s(far) == pytest.approx(0.25), "its first piece, and not all of them"

    play(story)


# --- what it gives


@pytest.mark.parametrize(("start", "stop"), [(0, 100), (0, 1), (7, 93), (99, 100)])
def test_a_read_that_breaks_off_goes_on_with_the_next(start: int, stop: int) -> None:
    async def story(it: World) -> None:
        await it.at(1, 2, 3)
        it.members.measured(node_id(1), 0.1)
        it.peers.breaks = {3: 30, 1: 20}
        assert await it.read(start, stop) == DATA[start:stop]
        if stop - start > 50:
            assert it.peers.asked == [(3, start, False), (1, start + 30, False), (2, start + 50, False)]
        assert it.source.served_from(ONE) in ("iad", "ams")

    play(story)


def test_one_that_gives_too_little_is_taken_for_one_that_fails() -> None:
    async def story(it: World) -> None:
        await it.at(1, 3)
        it.peers.short = {3: 30}
        assert await it.read() == DATA
        assert it.peers.asked == [(3, 0, False), (1, 30, False)]
        it.peers.short = {3: 30, 1: 30}
        it.peers.asked.clear()
        with pytest.raises(HomesSilent, match="sjc"):
            await it.read()
        assert it.peers.open == 0

    play(story)


def test_it_is_told_from_where_bytes_came() -> None:
    async def story(it: World) -> None:
        await it.at(2, blob=HERE)
        assert it.source.served_from(HERE) == "iad"
        await it.read(blob=HERE)
        assert it.source.served_from(HERE) == "ams"

    play(story)


def test_a_read_that_is_not_wanted_any_more_is_closed_at_once() -> None:
    async def story(it: World) -> None:
        await it.at(1, 3)
        async with aclosing(it.source.read(ONE, len(DATA), 0, len(DATA))) as pieces:
            assert await anext(pieces) == DATA[:PIECE]
            assert it.peers.open == 1
        assert it.peers.open == 0
        it.peers.breaks = {3: PIECE}
        async with aclosing(it.source.read(ONE, len(DATA), 0, len(DATA))) as pieces:
            await anext(pieces)
            await anext(pieces)
            assert it.peers.open == 1, "the one that failed is closed"
        assert it.peers.open == 0

    play(story)


# --- when nobody gives it


def test_what_nobody_has_is_not_there_and_what_is_silent_may_be() -> None:
    async def story(it: World) -> None:
        await it.at(1, 3)
        it.peers.has = set()
        with pytest.raises(NotAtSource, match="no other node"):
            await it.read()
        it.peers.has = {1}
        it.peers.breaks = {1: 0}
        with pytest.raises(HomesSilent, match="sjc"):
            await it.read()
        it.peers.breaks = {}
        it.peers.has = set()
        await it.live(1, times=10)
        it.asked()
        with pytest.raises(SourceUnavailable, match=r"do not answer.*sjc"):
            await it.read()
        assert it.asked() == [3], "the dead are not asked"
        await it.at(0, blob=HERE)
        with pytest.raises(NotAtSource):
            await it.read(blob=HERE)

    play(story)


def test_a_blob_that_is_dead_or_unknown_is_at_no_source() -> None:
    async def story(it: World) -> None:
        assert not await it.source.lives(ONE)
        with pytest.raises(NotAtSource, match="not committed, or deleted"):
            await it.read()
        await it.at(1)
        assert await it.source.lives(ONE)
        await it.read()
        await it.metadata.delete_object(it.bucket, ONE.hex())
        assert await it.source.lives(ONE), "within the grace it is read"
        await it.nodes[1].reclaim_content(ONE)
        assert not await it.source.lives(ONE)
        it.now_s += 60
        with pytest.raises(NotAtSource):
            await it.read()

    play(story)


# --- lookups


def test_a_lookup_is_used_again_for_a_while() -> None:
    async def story(it: World) -> None:
        await it.at(1)
        for _ in range(3):
            await it.read()
        assert it.lookups == 1
        it.now_s += 30
        await it.read()
        assert it.lookups == 2

    play(story)


@pytest.mark.parametrize("error", ["has it not", "broke off"])
def test_what_moved_since_the_lookup_is_found_where_it_is_now(error: str) -> None:
    async def story(it: World) -> None:
        await it.at(1, blob=HERE)
        await it.read(blob=HERE)
        moved = it.nodes[2]
        assert await moved.begin_home(HERE) is not None
        assert await add_home(moved, HERE) is not None
        alive = {node_id(number): region for number, region in enumerate(REGIONS)}
        assert await it.nodes[1].drop_home(HERE, alive)
        if error == "broke off":
            it.peers.breaks = {1: 20}
        else:
            it.peers.has = {2}
        it.peers.asked.clear()
        assert await it.read(blob=HERE) == DATA
        assert it.peers.asked == [(1, 0, False), (2, 20 if error == "broke off" else 0, False)]
        assert it.lookups == 2

    play(story)


def test_what_has_not_moved_is_not_asked_for_twice() -> None:
    async def story(it: World) -> None:
        await it.at(1, 3)
        await it.read()
        it.asked()
        it.peers.has = set()
        with pytest.raises(NotAtSource):
            await it.read()
        assert it.asked() == [3, 1]
        assert it.lookups == 2
        it.peers.has = {1}
        assert await it.read() == DATA

    play(story)


def test_while_the_database_is_away_old_lookups_do() -> None:
    async def story(it: World) -> None:
        await it.at(1, blob=HERE)
        await it.read(blob=HERE)
        it.away()
        it.now_s += 3600
        assert await it.read(blob=HERE) == DATA
        it.peers.breaks = {1: 10}
        with pytest.raises(HomesSilent, match="sjc"):
            await it.read(blob=HERE)
        it.peers.breaks = {}
        assert await it.read(blob=HERE) == DATA, "a failure does not take away what is known"
        with pytest.raises(SourceUnavailable, match="the database does not tell who holds"):
            await it.read(blob=MATE)
        with pytest.raises(SourceUnavailable, match="the database does not tell whether"):
            await it.source.lives(HERE)

    play(story)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_REMEMBERED", 3)

    async def story(it: World) -> None:
        blobs = [bytes((number,)) * 16 for number in range(1, 8)]
        for blob in blobs:
            await it.at(1, blob=blob)
            await it.read(blob=blob)
        assert list(it.source._located) == list(it.source._served) == blobs[-3:]

    play(story)


def test_copies_are_kept_where_the_policy_allows_it_as_far_as_it_is_known() -> None:
    async def story(it: World) -> None:
        await it.at(1)
        assert it.source.keeps(ONE)
        located = await it.source.locate(ONE)
        assert it.source.keeps(ONE) == (located.regions != ("sjc",))

    for policy in ("sjc", "sjc,iad", ""):
        play(story, policy=policy)


# --- one peer


def test_one_peer_gives_what_it_has_whatever_the_database_says() -> None:
    async def story(it: World) -> None:
        source = PeerSource(it.members, it.peers)
        one = source.of(node_id(1))
        assert b"".join([bytes(piece) async for piece in one.read(ONE, len(DATA), 5, 25)]) == DATA[5:25]
        assert it.peers.asked == [(1, 5, False)]
        assert await one.lives(ONE)
        assert one.keeps(ONE)
        for stranger in (b"x" * 16, node_id(0)):
            with pytest.raises(SourceUnavailable, match="cannot be reached"):
                source.of(stranger)
        await it.live(1, times=10)
        with pytest.raises(SourceUnavailable, match="cannot be reached"):
            source.of(node_id(1))

    play(story)
