"""Bytes on several nodes before a write is acknowledged.

The node that took them asks others to fetch them from it, each into an upload's directory of its own, durably. The
transaction that commits the blob names them all as homes. If it never comes, each of them finds out from the database
(`receiving`): the blob is settled as any upload is whose owner died.

A write that shares stored bytes has their content gain the homes that it wants, by the protocol of `metadata/homes.py`,
before its transaction, which finds them recorded or is not committed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container, Iterable, Sequence
from typing import ClassVar, Final, Protocol

from tigrislike.bytecache import BlockStore, BytesError, SourceUnavailable
from tigrislike.bytecache.copies import Copy
from tigrislike.metadata import Metadata, placing
from tigrislike.metadata.kv import EngineError
from tigrislike.metadata.placing import Wanted
from tigrislike.metadata.records import LIVE, Home

from .membership import Member, Members
from .remote import PeerSource

log = logging.getLogger("tigrislike.replication")

COMMIT_WAIT_S: Final = 60.0
"""How long a node that has received a copy waits for its commit before it leaves it to the sweep."""

_LOOK_S: Final = 0.25


class TooFewHomes(SourceUnavailable):
    """Fewer nodes than a write must reach could be reached."""

    code: ClassVar[str] = "ServiceUnavailable"
    for_operators: ClassVar[bool] = False


class CopyAsker(Protocol):
    """What is asked of other nodes; see `peers.Peers`."""

    async def post_copy(self, peer: Member, blob_id: bytes, size: int) -> None: ...

    async def post_home(self, peer: Member, content_id: bytes, size: int) -> None: ...


class Spreader:
    """Sends copies of blobs that this node has just received, and has stored contents gain homes.

    Args:
        become_home: makes this node a home of a content; see `replicate.Copying.become_home_ahead`.
    """

    def __init__(
        self,
        metadata: Metadata,
        members: Members,
        peers: CopyAsker,
        become_home: Callable[[bytes], Awaitable[None]],
    ) -> None:
        self._metadata = metadata
        self._members = members
        self._peers = peers
        self._become_home = become_home

    async def spread(self, blob_id: bytes, size: int, copies: int, regions: tuple[str, ...]) -> tuple[Home, ...]:
        """The nodes that hold the blob durably beside this one: `copies` less one of them, or more.

        Nodes of the wanted regions are asked first, and of these the ones in regions that have no copy yet; then by
        rendezvous hashing. Where one fails, the next is asked.

        Raises:
            TooFewHomes
        """
        wanted = self._metadata.regions.expand(regions)
        candidates = self._members.chosen(blob_id, beside=[self._members.own])
        candidates = [each for each in candidates if not wanted or each.region in wanted]

        async def ask(member: Member) -> None:
            await self._peers.post_copy(member, blob_id, size)

        asked = await self._ask(ask, candidates, copies, copies - 1, [self._members.region], wanted)
        return tuple(Home(each.region, each.node) for each in asked)

    async def secure(self, contents: Sequence[tuple[bytes, int]], regions: tuple[str, ...], copies: int) -> None:
        """See to it that stored contents, given with their sizes in bytes, are on as many nodes as a write that shares
        them is to be (`placing.copies_lacking`): these become homes of them, until it shows that nothing wants that.

        Nodes are asked as for `spread`, the same for all, so that what lends a content parts is where that is.

        Raises:
            TooFewHomes
        """
        for content_id, size in contents:
            content = await self._metadata.content(content_id)
            if content is None or content.state != LIVE:
                continue  # whoever is to share it finds out
            alive = self._members.alive()
            wanted = Wanted(regions, copies)
            lacking = placing.copies_lacking(content, wanted, alive, self._metadata.regions)
            whole = placing.whole_homes(content, alive)
            names = self._metadata.regions.expand(regions)
            candidates = self._members.chosen(contents[0][0], beside=[home.node for home in whole])
            candidates = [each for each in candidates if not names or each.region in names]
            first = self._metadata.regions.expand(placing.merged(content, wanted).regions)

            async def ask(member: Member, content_id: bytes = content_id, size: int = size) -> None:
                if member.node == self._members.own:
                    await self._become_home(content_id)
                else:
                    await self._peers.post_home(member, content_id, size)

            have = [alive[home.node] for home in whole]
            await self._ask(ask, candidates, copies, lacking, have, first)

    async def _ask(
        self,
        ask: Callable[[Member], Awaitable[None]],
        candidates: list[Member],
        copies: int,
        lacking: int,
        have: Iterable[str],
        wanted: Container[str],
    ) -> list[Member]:
        """Ask `candidates` until as many as are `lacking` of `copies` have done it: those.

        Args:
            have: regions that have a copy.
            wanted: regions that come first, and of these those without a copy.
        """
        done: list[Member] = []
        while (left := lacking - len(done)) > 0:
            if left > len(candidates):
                raise TooFewHomes(
                    f"only {copies - left} of the {copies} nodes that must hold this object have it, "
                    f"and {len(candidates)} others can be asked"
                )
            regions = {*have, *(each.region for each in done)}
            asked: list[Member] = []
            while len(asked) < left:
                # `min` takes the first of equals.
                best = min(
                    candidates, key=lambda each: 2 if each.region not in wanted else 1 if each.region in regions else 0
                )
                candidates.remove(best)
                asked.append(best)
                regions.add(best.region)
            outcomes = await asyncio.gather(*(self._succeeds(ask, each) for each in asked))
            done += [each for each, success in zip(asked, outcomes, strict=True) if success]
        return done

    async def _succeeds(self, ask: Callable[[Member], Awaitable[None]], member: Member) -> bool:
        try:
            await ask(member)
        except BytesError as error:
            log.warning("node %s took no copy: %s", member.node.hex(), error)
            return False
        return True


class Receiver:
    """Takes copies that other nodes send, and sees them through to their commit.

    Args:
        wait_s: how long it waits for a commit.
        sleep: waits for seconds between two looks; for tests, which do not.
    """

    def __init__(
        self,
        metadata: Metadata,
        blocks: BlockStore,
        source: PeerSource,
        *,
        wait_s: float = COMMIT_WAIT_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._metadata = metadata
        self._blocks = blocks
        self._source = source
        self._wait_s = wait_s
        self._sleep = sleep
        self._settling: set[asyncio.Task[None]] = set()

    async def receive(self, blob_id: bytes, size: int, sender: bytes) -> None:
        """Fetch a blob from the node that has just received it; it is durable here when this returns.

        Raises:
            BytesError: it could not be had, or not be kept.
        """
        copy = await self._blocks.receive_copy(blob_id, size, self._source.of(sender))
        task = asyncio.create_task(self._settle(copy, blob_id), name=f"copy {blob_id.hex()}")
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _settle(self, copy: Copy, blob_id: bytes) -> None:
        """Publish the copy once its blob is committed with this node among its homes, remove it when it is decided
        otherwise. What is not decided within the time is the sweep's to settle."""
        try:
            async with asyncio.timeout(self._wait_s):
                while (wanted := await self._decided(blob_id)) is None:
                    await self._sleep(_LOOK_S)
            if wanted:
                await copy.publish()
            else:
                await copy.abort()
        except (TimeoutError, BytesError) as error:
            log.info("the copy of blob %s is left to the sweep: %s", blob_id.hex(), str(error) or "no commit came")
        finally:
            copy.release()

    async def _decided(self, blob_id: bytes) -> bool | None:
        """Whether a blob is to stay here, None while that is not decided, or not known."""
        try:
            if await self._metadata.blob(blob_id) is None:
                return None
            return await self._metadata.settle_blob(blob_id)
        except EngineError as error:
            log.warning("whether blob %s was committed, the database does not tell: %s", blob_id.hex(), error)
            return None

    async def aclose(self) -> None:
        """Let go of every copy that is not settled."""
        for task in self._settling:
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)
