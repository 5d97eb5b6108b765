"""Bytes on several nodes before a write is acknowledged.

The node that took them asks others to fetch them from it, each into an upload's directory of its own, durably. The
transaction that commits the blob names them all as homes. If it never comes, each of them finds out from the database
(`receiving`): the blob is settled as any upload is whose owner died.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import ClassVar, Final, Protocol

from tigrislike.bytecache import BlockStore, BytesError, SourceUnavailable
from tigrislike.bytecache.copies import Copy
from tigrislike.metadata import Metadata
from tigrislike.metadata.kv import EngineError
from tigrislike.metadata.records import Home

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
    """What is asked of other nodes; see `peers.Peers.post_copy`."""

    async def post_copy(self, peer: Member, blob_id: bytes, size: int) -> None: ...


class Spreader:
    """Sends copies of blobs that this node has just received."""

    def __init__(self, metadata: Metadata, members: Members, peers: CopyAsker) -> None:
        self._metadata = metadata
        self._members = members
        self._peers = peers

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
        spread: list[Home] = []
        while (lacking := copies - 1 - len(spread)) > 0:
            if lacking > len(candidates):
                raise TooFewHomes(
                    f"only {1 + len(spread)} of the {copies} nodes that must hold this object have it, "
                    f"and {len(candidates)} others can be asked"
                )
            have = {self._members.region, *(home.region for home in spread)}
            asked: list[Member] = []
            while len(asked) < lacking:
                # Of regions without a copy first; `min` takes the first of equals.
                best = min(candidates, key=lambda each: bool(wanted) and each.region in have)
                candidates.remove(best)
                asked.append(best)
                have.add(best.region)
            outcomes = await asyncio.gather(*(self._ask(each, blob_id, size) for each in asked))
            spread += [Home(each.region, each.node) for each, done in zip(asked, outcomes, strict=True) if done]
        return tuple(spread)

    async def _ask(self, member: Member, blob_id: bytes, size: int) -> bool:
        try:
            await self._peers.post_copy(member, blob_id, size)
        except BytesError as error:
            log.warning("node %s took no copy of blob %s: %s", member.node.hex(), blob_id.hex(), error)
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
