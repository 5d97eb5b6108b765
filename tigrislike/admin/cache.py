"""What an operator does to the cache of this node's disk: see what is here, fetch, pin, unpin, evict.

Everything is told by objects: `s3://bucket/prefix` is the live objects whose keys begin so, and stands for their blobs.
Blocks in `home/` are here for good; only those in `cache/` can be evicted. All of it works beside a running node and
without one, and may be stopped at any moment: what is done stays done, and doing it again does the rest.

Deliberately absent: versions that are not live, which nobody is about to read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Final

import msgspec

from tigrislike.bytecache import BlockStore
from tigrislike.bytecache.cache import Usage
from tigrislike.bytecache.errors import NotAtSource, SourceUnavailable, from_os_error
from tigrislike.bytecache.presence import on_disk
from tigrislike.bytecache.scrub import ScrubState
from tigrislike.metadata.errors import MethodNotAllowed, NoSuchKey
from tigrislike.node import Node

_AT_A_TIME: Final = 8
"""Objects warmed side by side: enough that small ones do not wait for each other. The store bounds the bytes."""


class Target(msgspec.Struct, frozen=True):
    """The live objects of a bucket whose keys begin with a prefix."""

    bucket: str
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> Target:
        """Read `s3://bucket`, `s3://bucket/` or `s3://bucket/prefix`; the prefix is taken as it stands.

        Raises:
            ValueError: It is something else.
        """
        scheme, _, rest = url.partition("://")
        bucket, _, prefix = rest.partition("/")
        if scheme != "s3" or not bucket:
            raise ValueError(f"{url!r} is no place in a store: expected s3://BUCKET or s3://BUCKET/PREFIX")
        return cls(bucket, prefix)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


class Stored(msgspec.Struct, frozen=True):
    """A live object and what holds its bytes: blob id and size of each, none where they lie beside the record."""

    key: str
    size: int
    blobs: tuple[tuple[bytes, int], ...]


class Presence(msgspec.Struct, frozen=True):
    """How much of an object is on this disk.

    Attributes:
        key, size: Of the object.
        blocks: That it is made of.
        home_blocks, cache_blocks: Of those, durable and evictable ones that are here.
        here_bytes: Data bytes of those; of an object without blocks, its size.
        pinned: Every block of it would be kept.
    """

    key: str
    size: int
    blocks: int
    home_blocks: int
    cache_blocks: int
    here_bytes: int
    pinned: bool


class Warmed(msgspec.Struct, frozen=True):
    """What warming did.

    Attributes:
        objects, bytes: That are here and pinned now.
        fetched_bytes: Of those, that were not here before.
        failed: (key, why) of objects that could not be fetched.
    """

    objects: int
    bytes: int
    fetched_bytes: int
    failed: tuple[tuple[str, str], ...]


class Changed(msgspec.Struct, frozen=True):
    """What pinning, unpinning or evicting did.

    Attributes:
        objects, blobs: That were looked at; `blobs` those that changed.
        bytes: Of files that are gone from the cache.
        left: Objects that were left alone, for they are pinned.
    """

    objects: int
    blobs: int
    bytes: int = 0
    left: int = 0


class Status(msgspec.Struct, frozen=True):
    """The cache as a whole. `pins` counts pinned blobs, whether any block of them is here or not."""

    usage: Usage
    disk_bytes: int
    available_bytes: int
    pins: int
    scrub: ScrubState


async def status(node: Node) -> Status:
    """How full the cache is, and what the scrubber found.

    Raises:
        BytesError
    """
    blocks = node.blocks
    root = blocks.layout.root
    try:
        space = await asyncio.to_thread(blocks.fs.space, root)
    except OSError as error:
        raise from_os_error(error, f"asking for the space of {root}") from error
    pins = 0
    after = b""
    while page := await blocks.pins(after):
        pins += len(page)
        after = page[-1]
    return Status(await blocks.usage(), space.total_bytes, space.available_bytes, pins, await node.scrubber().state())


async def objects(node: Node, target: Target) -> AsyncGenerator[Stored, None]:
    """The objects of a target, in order of their keys. What is deleted meanwhile is left out.

    Raises:
        NoSuchBucket, EngineError
    """
    bucket = await node.metadata.bucket(target.bucket)
    after = ""
    while True:
        page = await node.metadata.list_objects(bucket, target.prefix, after=after)
        for key, _ in page.entries:
            try:
                found = await node.metadata.find_object(bucket, key)
            except (NoSuchKey, MethodNotAllowed):
                continue
            blobs = {extent.blob: extent.blob_size or extent.size for part in found.parts for extent in part.extents}
            yield Stored(key, found.version.size, tuple(blobs.items()))
        if not page.truncated:
            return
        after = page.last


async def size_of(node: Node, target: Target) -> tuple[int, int]:
    """(objects, bytes) of a target, from the listing alone."""
    bucket = await node.metadata.bucket(target.bucket)
    count = size = 0
    after = ""
    while True:
        page = await node.metadata.list_objects(bucket, target.prefix, after=after)
        count += len(page.entries)
        size += sum(summary.size for _, summary in page.entries)
        if not page.truncated:
            return count, size
        after = page.last


async def present(node: Node, target: Target) -> AsyncGenerator[Presence, None]:
    """How much of each object of a target is here.

    Raises:
        As objects(); BytesError.
    """
    pins = await _pins(node.blocks)
    async with aclosing(objects(node, target)) as found:
        async for stored in found:
            yield await asyncio.to_thread(_presence, node.blocks, stored, pins)


async def warm(node: Node, target: Target, progress: Callable[[int], None] = lambda size: None) -> Warmed:
    """Pin every object of a target and fetch what of it is not here. What is here already is not fetched again.

    Args:
        progress: Called with bytes that are newly known to be here.

    Raises:
        As objects(); PinsFull, DiskFull and whatever else makes it pointless to go on.
    """
    await ready(node)
    done: list[tuple[int, int]] = []
    failed: list[tuple[str, str]] = []
    turn = asyncio.Lock()

    async def work() -> None:
        while True:
            async with turn:  # a generator is asked by one at a time
                stored = await anext(found, None)
            if stored is None:
                return
            try:
                fetched = await _warm(node, stored, progress)
            except (NotAtSource, SourceUnavailable) as error:
                failed.append((stored.key, str(error)))
            else:
                done.append((stored.size, fetched))

    async with aclosing(objects(node, target)) as found:
        await _together(work() for _ in range(_AT_A_TIME))
    return Warmed(len(done), sum(size for size, _ in done), sum(size for _, size in done), tuple(sorted(failed)))


async def pin(node: Node, target: Target) -> Changed:
    """Keep what is here of a target's objects, and what will be. Nothing is fetched.

    Raises:
        As objects(); PinsFull.
    """

    async def change(stored: Stored) -> Changed:
        pinned = 0
        for blob_id, _ in stored.blobs:
            pinned += await _pin(node, blob_id)
        return Changed(1, pinned)

    return await _each(node, target, change)


async def unpin(node: Node, target: Target) -> Changed:
    """Let what is here of a target's objects be evicted again, when its turn comes.

    Raises:
        As objects(); BytesError.
    """

    async def change(stored: Stored) -> Changed:
        unpinned = 0
        for blob_id, _ in stored.blobs:
            unpinned += await node.blocks.unpin(blob_id)
        return Changed(1, unpinned)

    return await _each(node, target, change)


async def evict(node: Node, target: Target) -> Changed:
    """Drop what is in the cache of a target's objects at once, but for pinned ones.

    Raises:
        As objects(); BytesError.
    """

    async def change(stored: Stored) -> Changed:
        # Whoever pins it after this look has it spared all the same, by the eviction itself.
        if any([await node.blocks.is_pinned(blob_id) for blob_id, _ in stored.blobs]):
            return Changed(1, 0, left=1)
        freed = [await node.blocks.evict(blob_id) for blob_id, _ in stored.blobs]
        return Changed(1, sum(map(bool, freed)), sum(freed))

    return await _each(node, target, change)


async def ready(node: Node) -> None:
    """See that the cache can keep what is fetched: after a reboot, and without a node, nobody has looked through it.

    Raises:
        BytesError
    """
    if not (await node.blocks.usage()).ready:
        await node.blocks.reconcile()


async def _warm(node: Node, stored: Stored, progress: Callable[[int], None]) -> int:
    """Bytes fetched."""
    if not stored.blobs:
        progress(stored.size)
    fetched = 0
    for blob_id, size in stored.blobs:
        if await _pin(node, blob_id):
            fetched += await node.blocks.warm(blob_id, size, progress)
    return fetched


async def _pin(node: Node, blob_id: bytes) -> bool:
    """Pin a blob. False if it died meanwhile: no pin is left of what is deleted."""
    await node.blocks.pin(blob_id)
    if await node.size_of(blob_id) is not None:
        return True
    await node.blocks.unpin(blob_id)
    return False


async def _pins(blocks: BlockStore) -> frozenset[bytes]:
    found: set[bytes] = set()
    after = b""
    while page := await blocks.pins(after):
        found.update(page)
        after = page[-1]
    return frozenset(found)


async def _each(node: Node, target: Target, change: Callable[[Stored], Awaitable[Changed]]) -> Changed:
    count = blobs = size = left = 0
    async with aclosing(objects(node, target)) as found:
        async for stored in found:
            changed = await change(stored)
            count += changed.objects
            blobs += changed.blobs
            size += changed.bytes
            left += changed.left
    return Changed(count, blobs, size, left)


async def _together(jobs: Iterable[Awaitable[None]]) -> None:
    """All jobs to their ends; the first that fails ends the others and is raised."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _presence(blocks: BlockStore, stored: Stored, pins: frozenset[bytes]) -> Presence:
    found = on_disk(blocks.layout, blocks.block_size, stored.blobs)
    return Presence(
        stored.key,
        stored.size,
        found.blocks,
        found.home_blocks,
        found.cache_blocks,
        found.here_bytes if stored.blobs else stored.size,
        bool(stored.blobs) and all(blob_id in pins for blob_id, _ in stored.blobs),
    )
