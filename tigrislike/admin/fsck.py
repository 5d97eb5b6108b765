"""Check a running store, and mend what can be mended safely.

`fsck` walks every family of rows in short read transactions and checks each row against the rows that must agree with
it (`checks`), then what needs more than one transaction: parts that belong to nothing, counters of buckets and zones,
and, given a block store, the files of this node. It is online: writers go on, and what they do is never taken for
damage, because each judgement is made within one snapshot or confirmed by a later look that no writer can confuse.

With `repair`, each finding is found again inside the transaction that mends it. Lost bytes cannot be mended and are
only reported. It reads at a pace that the caller sets, and holds in memory 16 bytes for each upload in progress and,
with a block store, for each blob on the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TypeVar

import msgspec
from msgspec import Struct

from tigrislike.bytecache import BlockStore, BytesError, MissingBlob, StoredBlob
from tigrislike.metadata import Metadata, Usage, blobs, homes, overseeing, owed, records, surveying
from tigrislike.metadata.buckets import usage
from tigrislike.metadata.context import count
from tigrislike.metadata.keyspace import subspace, unpack_bytes
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.records import LIVE, OBJECT, Bucket, Content

from .checks import Check, Problem, View, families, owed_anywhere
from .naming import bucket_names, owners

T = TypeVar("T")

CHUNK = 50
"""Rows checked in one transaction: a few milliseconds."""

SUM_CHUNK = 200
"""Rows added up in one transaction."""

SUM_ATTEMPTS = 3
"""Times that a busy bucket's counters are added up before they are left unchecked."""


class Finding(Struct, frozen=True):
    """Something wrong: a stable `kind`, the thing (`key`), what is wrong about it, and what came of it."""

    kind: str
    key: str
    detail: str
    repairable: bool
    repaired: bool = False


_HELD: dict[str, tuple[str, int]] = {
    "waiting": ("dropped", -1),
    "leased": ("returned", -1),
    "failing": ("failing", 1),
    "dead": ("dead", 1),
}
"""What the queue says it holds now, and the counter that is added to, with which sign, where that is wrong."""

UNREADABLE = (msgspec.MsgspecError, ValueError, IndexError)
"""What decoding a damaged key or record raises."""


async def fsck(
    metadata: Metadata, blocks: BlockStore | None = None, *, repair: bool = False, pause_s: float = 0.002
) -> AsyncIterator[Finding]:
    """Check everything; yield each finding as it is made.

    Args:
        blocks: this node's block store, to check its files too.
        repair: mend what can be mended.
        pause_s: how long to wait between two transactions, so that others have the database.

    Raises:
        EngineError, BytesError: the database or the disk cannot be read at all.
    """
    check = _Fsck(metadata, blocks, repair, pause_s)
    counts = check.counters(), check.zone_counts(), check.zone_sums()
    for step in (check.rows(), check.orphan_parts(), *counts, check.files()):
        async for finding in step:
            yield finding


class _Fsck:
    """One run."""

    def __init__(self, metadata: Metadata, blocks: BlockStore | None, repair: bool, pause_s: float) -> None:
        self.metadata = metadata
        self.engine = metadata.engine.background
        self.ctx = metadata.context
        self.blocks = blocks
        self.repair = repair
        self.pause_s = pause_s
        self.view = View(self.ctx)
        self.buckets: dict[bytes, str] | None = None

    async def pause(self) -> None:
        await asyncio.sleep(self.pause_s)

    async def scan(
        self, begin: bytes, end: bytes, judge: Callable[[Transaction, bytes, bytes], Awaitable[T]], chunk: int
    ) -> AsyncIterator[tuple[bytes, T]]:
        """Every row's key with what `judge` makes of it, each chunk in a transaction of its own."""
        position: bytes | None = begin

        async def judged(tr: Transaction) -> tuple[list[tuple[bytes, T]], bytes | None]:
            assert position is not None
            rows = await tr.get_range(position, end, limit=chunk)
            verdicts = []
            for key, value in rows:
                with contextlib.suppress(*UNREADABLE):  # `rows` has reported it
                    verdicts.append((key, await judge(tr, key, value)))
            return verdicts, rows[-1][0] + b"\x00" if len(rows) == chunk else None

        while position is not None:
            verdicts, position = await self.engine.read(judged)
            for verdict in verdicts:
                yield verdict
            await self.pause()

    # --- rows against rows

    async def rows(self) -> AsyncIterator[Finding]:
        for prefix, check in families(self.ctx):

            async def judge(tr: Transaction, key: bytes, value: bytes, check: Check = check) -> list[Problem]:
                return await self.judge(tr, key, value, check)

            async for key, problems in self.scan(*subspace(prefix), judge, CHUNK):
                if problems:
                    for finding in await self.settle(key, check, problems):
                        yield finding

    async def judge(self, tr: Transaction, key: bytes, value: bytes, check: Check) -> list[Problem]:
        try:
            return await check(self.view, tr, key, value)
        except UNREADABLE as error:
            return [Problem("unreadable", repr(key[:80]), f"the row, or one it depends on, cannot be decoded: {error}")]

    async def settle(self, key: bytes, check: Check, problems: list[Problem]) -> list[Finding]:
        """Findings of a row's problems; mended first, if that is wanted."""
        if not self.repair:
            return [_finding(problem) for problem in problems]

        async def mend(tr: Transaction) -> list[Problem]:
            value = await tr.get(key)
            found = await self.judge(tr, key, value, check) if value is not None else []
            for problem in found:
                if problem.mend is not None:
                    await problem.mend(tr)
            return found

        return [_finding(problem, problem.mend is not None) for problem in await self.engine.transact(mend)]

    # --- parts of nothing

    async def uploads(self) -> set[bytes]:
        """The content ids of the uploads in progress."""

        async def content_of(tr: Transaction, key: bytes, value: bytes) -> bytes:
            return records.upload.decode(value).content

        begin, end = subspace(self.ctx.keys.upload)
        return {content_id async for _, content_id in self.scan(begin, end, content_of, SUM_CHUNK)}

    async def orphan_parts(self) -> AsyncIterator[Finding]:
        """Parts whose content does not exist and whose upload is not in progress.

        An upload that ends writes its content in the same transaction. So what is suspected on one snapshot is orphaned
        if no later scan shows its upload and its content still does not exist after that.
        """
        prefix = self.ctx.keys.parts

        async def lonely(tr: Transaction, key: bytes, value: bytes) -> bytes | None:
            content_id, _ = unpack_bytes(key, len(prefix))
            return content_id if await tr.get(self.ctx.keys.content(content_id)) is None else None

        suspects = {found async for _, found in self.scan(*subspace(prefix), lonely, SUM_CHUNK) if found is not None}
        if not suspects:
            return
        suspects -= await self.uploads()
        for content_id in sorted(suspects):

            async def confirm(tr: Transaction, content_id: bytes = content_id) -> bool:
                key = self.ctx.keys.content(content_id)
                if await tr.get(key) is not None:
                    return False
                if not await tr.get_range(*self.ctx.keys.part_range(content_id), limit=1):
                    return False
                if self.repair:
                    content = Content(0, LIVE, 1, (self.ctx.home,))
                    tr.set(key, records.content.encode(content))
                    await blobs.owe_reclaim(tr, self.ctx, self.ctx.home.node, b"", content_id)
                return True

            confirmed = await (self.engine.transact if self.repair else self.engine.read)(confirm)
            if confirmed:
                yield Finding("part-orphan", content_id.hex(), "parts of no content and no upload", True, self.repair)

    # --- counters

    async def counters(self) -> AsyncIterator[Finding]:
        async def bucket_of(tr: Transaction, key: bytes, value: bytes) -> Bucket:
            return records.bucket.decode(value)

        family = self.ctx.keys.bucket
        async for _, bucket in self.scan(family.begin, family.end, bucket_of, SUM_CHUNK):
            drift = await self.drift(bucket)
            if drift is None:
                continue
            if self.repair:

                async def mend(tr: Transaction, bucket: Bucket = bucket, drift: Usage = drift) -> None:
                    # Adding the difference is right whatever is counted meanwhile.
                    count(tr, self.ctx, bucket.id, objects=drift.objects, noncurrent=drift.noncurrent, size=drift.bytes)

                await self.engine.transact(mend)
            detail = f"are off by {-drift.objects} objects, {-drift.noncurrent} other versions, {-drift.bytes} bytes"
            yield Finding("counters", bucket.name, detail, True, self.repair)

    async def drift(self, bucket: Bucket) -> Usage | None:
        """What has to be added to the bucket's counters, None if they are right, or change too fast to tell.

        The rows are added up twice, with the counters the same before, between and after, so that a writer meanwhile
        shows, unless it undoes what it did each time.
        """
        for _ in range(SUM_ATTEMPTS):
            before = await self.counted(bucket)
            first = await self.total(bucket)
            between = await self.counted(bucket)
            if first == before == between:
                return None
            second = await self.total(bucket)
            if first != second or not before == between == await self.counted(bucket):
                continue
            return Usage(
                first.objects - before.objects, first.noncurrent - before.noncurrent, first.bytes - before.bytes
            )
        return None

    async def counted(self, bucket: Bucket) -> Usage:
        return await self.engine.read(usage, self.ctx, bucket.id)

    async def total(self, bucket: Bucket) -> Usage:
        """The counters as the rows say they should be."""
        keys = self.ctx.keys.in_bucket(bucket.id)
        objects = size = retained = 0

        async def live(tr: Transaction, key: bytes, value: bytes) -> tuple[bool, int, bool]:
            """Whether it counts as an object, its bytes, and whether it has no version row."""
            summary = records.object_summary.decode(value)
            name = keys.current.text(key)
            versions = keys.version
            alone = summary.null and not await tr.get_range(versions.key(name), versions.after(name), limit=1)
            return summary.kind == OBJECT, summary.size, alone

        async def kept(tr: Transaction, key: bytes, value: bytes) -> int:
            return records.object_summary.decode(value).size

        async for _, (is_object, its_size, alone) in self.scan(keys.current.begin, keys.current.end, live, SUM_CHUNK):
            objects += is_object
            retained += alone
            size += its_size if alone else 0
        async for _, its_size in self.scan(keys.version.begin, keys.version.end, kept, SUM_CHUNK):
            retained += 1
            size += its_size
        return Usage(objects, retained - objects, size)

    async def zone_counts(self) -> AsyncIterator[Finding]:
        """Each zone's counts of items and dead letters, for zones small enough to be counted in one transaction."""
        after = b""
        while zones := await self.metadata.queue.zones(after):
            after = zones[-1]
            for zone in zones:

                async def settle(tr: Transaction, zone: bytes = zone) -> Counter[tuple[str, str]]:
                    """What has to be added, by task and counter."""
                    keys = self.ctx.keys
                    off: Counter[tuple[str, str]] = Counter()
                    counted = await overseeing.counts(tr, self.ctx, zone)
                    found = await tr.get_range(*keys.queue_item_range(zone), limit=SUM_CHUNK)
                    if len(found) < SUM_CHUNK:
                        for item in (records.item.decode(value) for _, value in found):
                            off[item.task, "waiting"] += 1
                            off[item.task, "leased"] += bool(item.lease)
                            off[item.task, "failing"] += bool(item.attempts)
                        for task, each in counted.items():
                            off.subtract({(task, kind): getattr(each, kind) for kind in _HELD if kind != "dead"})
                    found = await tr.get_range(*keys.queue_dead_range(zone), limit=SUM_CHUNK)
                    if len(found) < SUM_CHUNK:
                        off.update((records.item.decode(value).task, "dead") for _, value in found)
                        off.subtract({(task, "dead"): each.dead for task, each in counted.items()})
                    self._mend(tr, off, partial(keys.queue_count, zone))
                    return off

                off = await (self.engine.transact if self.repair else self.engine.read)(settle)
                for (task, counter), delta in off.items():
                    if delta:
                        detail = f"{task} {counter}: is off by {-delta}"
                        yield Finding("zone-count", zone.hex(), detail, True, self.repair)
                await self.pause()

    async def zone_sums(self) -> AsyncIterator[Finding]:
        """The sums over the zones of each destination, for destinations of few enough zones to be added up at once."""
        for destination in await self.engine.read(surveying.destinations, self.ctx):

            async def settle(tr: Transaction, destination: bytes = destination) -> Counter[tuple[str, str]]:
                """What has to be added, by task and what of it is held."""
                off: Counter[tuple[str, str]] = Counter()
                zones = await surveying.counted(tr, self.ctx, destination, limit=10 * SUM_CHUNK)
                if zones is None:
                    return off
                for task, each in (await surveying.summed(tr, self.ctx, destination)).items():
                    off.subtract({(task, kind): getattr(each, kind) for kind in _HELD})
                for task, each in zones.items():
                    off.update({(task, kind): getattr(each, kind) for kind in _HELD})
                keys = self.ctx.keys
                self._mend(tr, off, lambda task, counter: keys.queue_sum(destination, task, counter, 0))
                return off

            off = await (self.engine.transact if self.repair else self.engine.read)(settle)
            for (task, kind), delta in off.items():
                if delta:
                    detail = f"{task} {kind}: is off by {-delta}"
                    yield Finding("zone-sum", destination.hex(), detail, True, self.repair)
            await self.pause()

    def _mend(self, tr: Transaction, off: Counter[tuple[str, str]], row: Callable[[str, str], bytes]) -> None:
        if self.repair:
            for (task, kind), delta in off.items():
                counter, sign = _HELD[kind]
                if delta:
                    tr.add(row(task, counter), sign * delta)

    # --- files

    async def files(self) -> AsyncIterator[Finding]:
        if self.blocks is None:
            return
        on_disk: set[bytes] = set()
        async for stored in self.blocks.blobs():
            on_disk.add(stored.blob_id)
            name = stored.blob_id.hex()
            if stored.place == "incoming":
                continue  # an upload under way, or a dead one: the sweeper's business
            blob = await self.metadata.blob(stored.blob_id)
            if blob is None:
                orphan = await self.orphan_file(stored)
                if orphan is not None:
                    yield orphan
            elif blob.state == LIVE and await self.stray(stored):
                yield await self.settle_stray(stored)
            elif (stored.damage or blob.size != stored.size) and await self.needed(stored.blob_id):
                of = await self.owners(stored.blob_id)
                for damage in stored.damage:
                    yield Finding("file-damaged", name, damage + of, False)
                if not stored.damage:
                    yield Finding("file-size", name, f"has {stored.size} bytes, its row says {blob.size}{of}", False)
            await self.pause()

        async def ours(tr: Transaction, key: bytes, value: bytes) -> tuple[bytes, int] | None:
            blob, blob_id = records.blob.decode(value), unpack_bytes(key, len(self.ctx.keys.blobs))[0]
            return (blob_id, blob.size) if blob.size > 0 and await self.held(tr, blob_id) else None

        async for _, found in self.scan(*subspace(self.ctx.keys.blobs), ours, SUM_CHUNK):
            if found is not None and found[0] not in on_disk and await self.missing(*found):
                detail = f"its {found[1]} bytes are not on this node{await self.owners(found[0])}"
                yield Finding("file-missing", found[0].hex(), detail, False)

    async def owners(self, blob_id: bytes) -> str:
        """Of which objects a blob is, to end a finding with."""
        with contextlib.suppress(*UNREADABLE):  # `rows` has reported it
            if self.buckets is None:
                self.buckets = await bucket_names(self.metadata)
            return f"; of {await owners(self.metadata, self.buckets, blob_id)}"
        return ""

    async def orphan_file(self, stored: StoredBlob) -> Finding | None:
        """A file in ``home/`` that no row knows.

        Files are deleted before their row is forgotten, and published after it is written: so one that is still there
        when its row is not was never committed, or its row was lost. Unless a content of that id exists it may go;
        settling it first makes sure that no commit can still arrive.
        """
        assert self.blocks is not None
        blob_id = stored.blob_id
        if await self.metadata.content(blob_id) is not None or not await self.present(blob_id, max(stored.size, 1)):
            return None
        if self.repair:
            if await self.metadata.settle_blob(blob_id):
                return None
            await self.blocks.delete_blob(blob_id)
        return Finding("file-orphan", blob_id.hex(), f"{stored.disk_bytes} bytes that no row knows", True, self.repair)

    async def stray(self, stored: StoredBlob) -> bool:
        """Whether a live blob lies in ``home/`` of a node that is not to hold it, and nothing is owed about that.

        Looked at before and after the files are: who becomes a home says so first, and who is one no longer says so
        last.
        """
        return await self.unwanted(stored.blob_id) and self.at_home(stored) and await self.unwanted(stored.blob_id)

    async def unwanted(self, blob_id: bytes) -> bool:
        async def read(tr: Transaction) -> bool:
            if await homes.is_held_here(tr, self.ctx, blob_id) or await homes.locate(tr, self.ctx, blob_id) is None:
                return False  # what is dead is being reclaimed
            return not await owed_anywhere(tr, self.ctx, owed.RECLAIM_BLOB, blob_id)

        return await self.engine.read(read)

    def at_home(self, stored: StoredBlob) -> bool:
        assert self.blocks is not None
        layout = self.blocks.layout
        return any(os.path.exists(layout.home_block(stored.blob_id, number)) for number in stored.blocks)

    async def settle_stray(self, stored: StoredBlob) -> Finding:
        """Have a stray file removed, unless nobody else has its bytes: they were lost with this node, and are all that
        is left of an object."""
        name = stored.blob_id.hex()

        async def settle(tr: Transaction) -> bool:
            last = await self.is_last(tr, stored.blob_id)
            if self.repair and not last:
                await blobs.owe_blob(tr, self.ctx, self.ctx.home.node, b"", stored.blob_id)
            return last

        if await (self.engine.transact if self.repair else self.engine.read)(settle):
            of = await self.owners(stored.blob_id)
            detail = f"{stored.disk_bytes} bytes that no node of the store holds: lost, unless copied from here{of}"
            return Finding("file-lost", name, detail, False)
        detail = f"{stored.disk_bytes} bytes at home on a node that is not to hold it"
        return Finding("file-stray", name, detail, True, self.repair)

    async def is_last(self, tr: Transaction, blob_id: bytes) -> bool:
        """Whether a blob is of a live content, and neither a node of the store nor an origin has it."""
        located = await homes.locate(tr, self.ctx, blob_id)
        if located is None or located.homes or located.elsewhere is not None:
            return False
        return await homes.read_content(tr, self.ctx, located.content_id) is not None

    async def missing(self, blob_id: bytes, size: int) -> bool:
        """Whether a live blob has no files: it may have been committed, or reclaimed, since the disk was read."""
        return not await self.present(blob_id, size) and await self.needed(blob_id)

    async def needed(self, blob_id: bytes) -> bool:
        """Whether a blob's files must be here and whole. Those of a dead content are being reclaimed, and may be gone
        in any part while the blob's own row still says live; so may those of a home to be, or given up."""
        return await self.engine.read(self.held, blob_id)

    async def held(self, tr: Transaction, blob_id: bytes) -> bool:
        located = await homes.locate(tr, self.ctx, blob_id)
        return located is not None and any(home.node == self.ctx.home.node for home in located.homes)

    async def present(self, blob_id: bytes, size: int) -> bool:
        """Whether the blob's first block is on the disk now."""
        assert self.blocks is not None
        try:
            async for _ in self.blocks.open_blob(blob_id, size, fetch=False).read(0, 1):
                pass
        except MissingBlob:
            return False
        except BytesError:
            return True  # it is there, though damaged
        return True


def _finding(problem: Problem, repaired: bool = False) -> Finding:
    return Finding(problem.kind, problem.subject, problem.detail, problem.mend is not None, repaired)
