"""Reclaim gives back every byte that nothing refers to, and no other, whatever happens to it on the way."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bytecache.faults import FailNth, HookedFileSystem, NoSync
from tests.crash.audit import Rows, assert_nothing_owed, audit, dump
from tests.crash.inprocess import BLOCK, InProcessNode, opened, part_list, text_of
from tests.metadata.queueing import take_all
from tests.nodes import remove_store
from tigrislike.admin.fsck import fsck
from tigrislike.metadata import owed
from tigrislike.metadata.deciding import QUEUE
from tigrislike.metadata.errors import ContentGone
from tigrislike.metadata.kv import ManualClock
from tigrislike.metadata.records import Extent, Part
from tigrislike.replication.reclaim import ReclaimStats, reclaim_due

SECOND = 1_000_000_000
LEASE_S = QUEUE.item_lease_ns / SECOND
IDLE_S = QUEUE.min_inactive_ns / SECOND
GRACE_S = 3600
LARGE = 3 * BLOCK + 17


def data_of(seed: int, size: int = LARGE) -> bytes:
    return random.Random(seed).randbytes(size)


@dataclass
class World:
    node: InProcessNode
    clock: ManualClock
    cache: Path

    async def put(self, key: str, data: bytes) -> None:
        assert (await self.node.request("PUT", f"/bucket/{key}", body=data)).status == 200

    async def get(self, key: str) -> bytes | int:
        answer = await self.node.request("GET", f"/bucket/{key}")
        return answer.body if answer.status == 200 else answer.status

    async def delete(self, key: str) -> None:
        assert (await self.node.request("DELETE", f"/bucket/{key}")).status == 204

    async def copy(self, source: str, key: str) -> None:
        headers = {"x-amz-copy-source": f"/bucket/{source}"}
        assert (await self.node.request("PUT", f"/bucket/{key}", headers=headers)).status == 200

    async def begin(self, key: str) -> str:
        return text_of(await self.node.request("POST", f"/bucket/{key}", {"uploads": ""}), "UploadId")

    async def part(self, key: str, upload: str, number: int, data: bytes) -> str:
        query = {"partNumber": str(number), "uploadId": upload}
        answer = await self.node.request("PUT", f"/bucket/{key}", query, body=data)
        assert answer.status == 200, answer.body
        return answer.headers["etag"]

    async def slice(self, key: str, upload: str, number: int, source: str, first: int, last: int) -> str:
        query = {"partNumber": str(number), "uploadId": upload}
        headers = {"x-amz-copy-source": f"/bucket/{source}", "x-amz-copy-source-range": f"bytes={first}-{last}"}
        answer = await self.node.request("PUT", f"/bucket/{key}", query, headers)
        assert answer.status == 200, answer.body
        return text_of(answer, "ETag")

    async def complete(self, key: str, upload: str, etags: dict[int, str]) -> None:
        answer = await self.node.request("POST", f"/bucket/{key}", {"uploadId": upload}, body=part_list(etags))
        assert answer.status == 200, answer.body

    async def abort(self, key: str, upload: str) -> None:
        assert (await self.node.request("DELETE", f"/bucket/{key}", {"uploadId": upload})).status == 204

    async def reclaim(self) -> ReclaimStats:
        return await reclaim_due(self.node.metadata, self.node.blocks)

    def elapse(self, seconds: float) -> None:
        self.clock.advance(int(seconds * SECOND))

    def files(self) -> int:
        return sum(path.is_file() for path in (self.cache / "home").rglob("*"))

    async def rows(self) -> Rows:
        return Rows(self.node.metadata, await dump(self.node.metadata))

    async def sound(self) -> None:
        assert await audit(self.node.metadata, self.node.blocks) == []

    async def clean(self) -> None:
        """Nothing is left to do, and nothing is left over."""
        await self.sound()
        await assert_nothing_owed(self.node.metadata, self.node.blocks, self.cache)


@contextlib.asynccontextmanager
async def world(folder: Path, *, fs: Any = None, grace_s: float = GRACE_S) -> AsyncIterator[World]:
    clock = ManualClock()
    async with opened(folder, fs=fs or NoSync(), clock=clock, grace_s=grace_s) as node:
        assert (await node.request("PUT", "/bucket")).status == 200
        yield World(node, clock, folder / "cache")


def play(folder: Path, story: Callable[[World], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with world(folder, **options) as it:
            await story(it)

    asyncio.run(main())


# -- What is reclaimed, and when -------------------------------------------------------------------------------------


def test_a_deleted_object_keeps_its_bytes_for_the_grace_and_no_longer(scratch: Path) -> None:
    async def story(it: World) -> None:
        await it.put("k", data_of(1))
        await it.delete("k")
        it.elapse(GRACE_S - 1)
        assert await it.reclaim() == ReclaimStats()
        assert it.files() == 4
        it.elapse(1)
        assert await it.reclaim() == ReclaimStats(contents=1)
        assert it.files() == 0
        await it.clean()
        assert await it.reclaim() == ReclaimStats()

    play(scratch, story)


def test_an_overwritten_object_gives_back_the_old_bytes_only(scratch: Path) -> None:
    async def story(it: World) -> None:
        for seed in range(5):
            await it.put("k", data_of(seed))
        it.elapse(GRACE_S)
        assert (await it.reclaim()).contents == 4
        assert it.files() == 4
        assert await it.get("k") == data_of(4)
        await it.clean()

    play(scratch, story)


def test_an_aborted_upload_gives_back_its_parts_at_once(scratch: Path) -> None:
    async def story(it: World) -> None:
        upload = await it.begin("k")
        for number in (1, 2, 3):
            await it.part("k", upload, number, data_of(number))
        await it.abort("k", upload)
        assert (await it.reclaim()).contents == 1
        assert it.files() == 0
        await it.clean()

    play(scratch, story)


def test_parts_replaced_or_not_listed_are_given_back_and_the_others_are_not(scratch: Path) -> None:
    async def story(it: World) -> None:
        upload = await it.begin("k")
        await it.part("k", upload, 1, data_of(1))
        await it.part("k", upload, 7, data_of(7))
        etag = await it.part("k", upload, 1, data_of(2))
        it.elapse(GRACE_S)
        assert await it.reclaim() == ReclaimStats(blobs=1)
        await it.complete("k", upload, {1: etag})
        it.elapse(GRACE_S)
        assert await it.reclaim() == ReclaimStats(blobs=1)
        assert await it.get("k") == data_of(2)
        assert it.files() == 4
        await it.clean()

    play(scratch, story)


def test_an_empty_part_leaves_no_file(scratch: Path) -> None:
    async def story(it: World) -> None:
        await it.put("empty", b"")
        upload = await it.begin("k")
        etag = await it.part("k", upload, 1, b"")
        query = {"partNumber": "2", "uploadId": upload}
        copied = await it.node.request("PUT", "/bucket/k", query, {"x-amz-copy-source": "/bucket/empty"})
        assert copied.status == 200
        assert it.files() == 0
        await it.sound()
        await it.complete("k", upload, {1: etag})
        assert await it.get("k") == b""
        await it.delete("k")
        it.elapse(GRACE_S)
        await it.reclaim()
        await it.clean()

    play(scratch, story)


def test_what_a_dead_upload_left_is_forgotten_after_the_grace(scratch: Path) -> None:
    """A sweep marks each blob that it removes as dead; the mark goes too, or every crash would leave some for ever."""

    async def story(it: World) -> None:
        for seed in range(3):
            writer = it.node.blocks.create_blob()
            await writer.write(data_of(seed))
            await writer.finish()
            it.node.blocks.release(writer.blob_id)
        await it.node.sweep()
        await it.sound()
        assert len((await it.rows()).blobs) == 3
        it.elapse(GRACE_S)
        assert await it.reclaim() == ReclaimStats(blobs=3)
        await it.clean()
        it.elapse(IDLE_S)
        await it.reclaim()
        assert not (await it.rows()).zones

    play(scratch, story)


def test_another_nodes_work_is_left_to_it(scratch: Path) -> None:
    """Zones of other nodes lie before and after this one's, and none of them is touched."""

    async def story(it: World) -> None:
        own = it.node.blocks.node_id
        number = int.from_bytes(own, "big")
        neighbours = [((number + step) % (1 << 128)).to_bytes(16, "big") for step in (-1, 1)]
        zones = [owed.zone_of(node, bucket) for node in neighbours for bucket in (b"", b"\0" * 16, b"\xff" * 16)]

        async def owe(tr: Any) -> None:
            for zone in zones:
                await owed.enqueue(tr, it.node.metadata.context, zone, owed.RECLAIM_BLOB, zone[:16])

        await it.node.metadata.engine.transact(owe)
        await it.put("k", data_of(1))
        await it.delete("k")
        it.elapse(GRACE_S)
        assert await it.reclaim() == ReclaimStats(contents=1)
        assert {zone for zone, _ in (await it.rows()).items} == set(zones)

    play(scratch, story)


# -- Shared bytes ----------------------------------------------------------------------------------------------------


def test_shared_bytes_stay_until_the_last_of_their_users_goes(scratch: Path) -> None:
    """An object, its copy, and a multipart object of slices of both: in every order of deletion."""

    async def story(it: World) -> None:
        source = data_of(1)
        for order in (("a", "b", "c"), ("b", "a", "c"), ("c", "b", "a"), ("a", "c", "b")):
            await it.put("a", source)
            await it.copy("a", "b")
            upload = await it.begin("c")
            etag = await it.slice("c", upload, 1, "b", 5, BLOCK + 9)
            await it.complete("c", upload, {1: etag})
            contents = {"a": source, "b": source, "c": source[5 : BLOCK + 10]}
            for key in order:
                assert it.files() == 4
                for other, data in contents.items():
                    assert await it.get(other) == data
                await it.delete(key)
                del contents[key]
                for _ in range(2):  # what a forgotten content referred to is given its own grace
                    it.elapse(GRACE_S)
                    await it.reclaim()
                await it.sound()
            assert it.files() == 0
            await it.clean()

    play(scratch, story)


@pytest.mark.parametrize("end", ["replaced", "not listed", "aborted", "replaced by another slice"])
def test_a_slice_that_is_not_used_lets_go_of_its_source(scratch: Path, end: str) -> None:
    async def story(it: World) -> None:
        for key, seed in (("source", 1), ("other", 2)):
            await it.put(key, data_of(seed))
        upload = await it.begin("k")
        etags = {1: await it.part("k", upload, 1, data_of(3))}
        await it.slice("k", upload, 2, "source", 0, BLOCK)
        if end == "aborted":
            await it.abort("k", upload)
        else:
            if end == "replaced":
                await it.part("k", upload, 2, b"something else")
            elif end == "replaced by another slice":
                await it.slice("k", upload, 2, "other", 0, 10)
            await it.complete("k", upload, etags)
        await it.delete("source")
        for _ in range(2):
            it.elapse(GRACE_S)
            await it.reclaim()
        await it.sound()
        assert it.files() == (4 if end == "aborted" else 8), "the source's bytes are held by nobody"
        assert await it.get("other") == data_of(2)
        await it.delete("other")
        if end != "aborted":
            await it.delete("k")
        for _ in range(2):
            it.elapse(GRACE_S)
            await it.reclaim()
        assert it.files() == 0
        await it.clean()

    play(scratch, story)


def test_one_of_two_slices_of_a_source_keeps_it(scratch: Path) -> None:
    async def story(it: World) -> None:
        await it.put("source", data_of(1))
        upload = await it.begin("k")
        etag = await it.slice("k", upload, 1, "source", 0, BLOCK)
        await it.slice("k", upload, 2, "source", 5, 9)
        await it.part("k", upload, 2, b"something else")
        await it.delete("source")
        it.elapse(GRACE_S)
        await it.reclaim()
        await it.sound()
        await it.complete("k", upload, {1: etag})
        it.elapse(GRACE_S)
        await it.reclaim()
        await it.sound()
        assert await it.get("k") == data_of(1)[: BLOCK + 1]

    play(scratch, story)


def test_a_source_deleted_and_reclaimed_while_it_is_copied_makes_the_copy_fail_cleanly(scratch: Path) -> None:
    async def story(it: World) -> None:
        metadata = it.node.metadata
        await it.put("source", data_of(1))
        bucket = await metadata.bucket("bucket")
        found = await metadata.find_object(bucket, "source")
        upload = await it.begin("k")
        await it.delete("source")
        it.elapse(GRACE_S)
        await it.reclaim()
        part = Part(
            1, 10, found.version.etag, "", 0, (Extent(found.version.content, 0, 10),), b"", found.version.content
        )
        with pytest.raises(ContentGone):
            await metadata.put_part(bucket, "k", upload, part)
        await it.clean()

    play(scratch, story)


# -- Reads in progress -----------------------------------------------------------------------------------------------


def test_a_read_that_began_before_the_delete_ends_whole_within_the_grace(scratch: Path) -> None:
    async def story(it: World) -> None:
        data = data_of(1)
        await it.put("k", data)
        bucket = await it.node.metadata.bucket("bucket")
        version = (await it.node.metadata.find_object(bucket, "k")).version
        reader = it.node.blocks.open_blob(version.content, version.size).read(0, len(data))
        pieces = [await anext(reader)]
        await it.delete("k")
        it.elapse(GRACE_S - 1)
        await it.reclaim()
        pieces += [piece async for piece in reader]
        assert b"".join(pieces) == data

    play(scratch, story)


def test_a_block_that_is_being_sent_is_not_cut_even_by_its_reclaiming(scratch: Path) -> None:
    async def story(it: World) -> None:
        data = data_of(1, BLOCK)
        await it.put("k", data)
        bucket = await it.node.metadata.bucket("bucket")
        version = (await it.node.metadata.find_object(bucket, "k")).version
        segments = it.node.blocks.open_blob(version.content, version.size).segments(0, len(data))
        segment = await anext(segments)
        await it.delete("k")
        it.elapse(GRACE_S)
        assert (await it.reclaim()).contents == 1
        assert it.files() == 0
        assert os.pread(segment.fd, segment.length, segment.offset) == data
        await segments.aclose()
        await it.clean()

    play(scratch, story)


def test_fsck_sees_no_damage_in_what_is_being_reclaimed(scratch: Path) -> None:
    """Between the files' removal and that of their records, and with a removal half done."""
    halfway: list[bool] = []

    def hook(name: str, args: tuple[object, ...]) -> None:
        if halfway and name == "unlink" and "home" in str(args[0]) and str(args[0]).endswith(".1"):
            raise OSError(errno.EIO, "killed")

    async def story(it: World) -> None:
        found: list[Any] = []
        real = it.node.metadata.forget_content

        async def look_first(content_id: bytes) -> None:
            found.extend([finding async for finding in fsck(it.node.metadata, it.node.blocks, pause_s=0)])
            await real(content_id)

        it.node.metadata.forget_content = look_first  # type: ignore[method-assign]
        for key in ("a", "b"):
            await it.put(key, data_of(1))
            await it.delete(key)
            it.elapse(GRACE_S)
            stats = await it.reclaim()
            assert (stats.contents, stats.failed) == ((0, 1) if halfway else (1, 0))
            assert found == []
            halfway.append(True)
        assert it.files() == 2, "the last two of four blocks are gone"
        await it.sound()

    play(scratch, story, fs=HookedFileSystem(hook))


# -- Leases ----------------------------------------------------------------------------------------------------------


def test_a_dead_holders_items_come_back_when_the_lease_runs_out(scratch: Path) -> None:
    async def story(it: World) -> None:
        await it.put("k", data_of(1))
        await it.delete("k")
        it.elapse(GRACE_S)
        (claimed,) = await take_all(it.node.metadata)
        it.elapse(LEASE_S - 1)
        assert await it.reclaim() == ReclaimStats()
        it.elapse(1)
        assert await it.reclaim() == ReclaimStats(contents=1)
        assert not await it.node.metadata.queue.finish(claimed), "the old holder must find its lease lost"
        assert await it.node.metadata.queue.extend([claimed]) == []
        assert not await it.node.metadata.queue.fail(claimed, "too late")
        await it.clean()

    play(scratch, story)


def test_a_pass_whose_lease_ran_out_leaves_the_item_to_its_new_holder(scratch: Path) -> None:
    """The run takes so long that its lease is lost to another node process."""

    async def story(it: World) -> None:
        await it.put("k", data_of(1))
        await it.delete("k")
        it.elapse(GRACE_S)
        others: list[int] = []
        real = it.node.metadata.forget_content

        async def slow(content_id: bytes) -> None:
            await real(content_id)
            if not others:
                it.elapse(LEASE_S)
                others.append(0)
                others[0] = (await it.reclaim()).contents

        it.node.metadata.forget_content = slow  # type: ignore[method-assign]
        stats = await it.reclaim()
        assert (others, stats.failed) == ([1], 0)
        await it.clean()

    play(scratch, story)


def test_two_passes_at_once_share_the_work(scratch: Path) -> None:
    async def story(it: World) -> None:
        for number in range(60):
            await it.put(str(number), data_of(number, BLOCK // 2))
            await it.delete(str(number))
        it.elapse(GRACE_S)
        both = await asyncio.gather(it.reclaim(), it.reclaim())
        assert sum(stats.contents for stats in both) == 60
        assert sum(stats.failed for stats in both) == 0
        await it.clean()

    play(scratch, story)


# -- Failures --------------------------------------------------------------------------------------------------------


def test_what_fails_backs_off_and_ends_as_a_dead_letter_with_its_reason(scratch: Path) -> None:
    faults = FailNth(errno.EIO)

    def only_unlinks(name: str, args: tuple[object, ...]) -> None:
        if name == "unlink":
            faults(name, args)

    async def story(it: World) -> None:
        await it.put("bad", data_of(1))
        await it.delete("bad")
        it.elapse(GRACE_S)
        faults.arm(1, forever=True)
        for attempt in range(1, QUEUE.max_attempts + 1):
            assert await it.reclaim() == ReclaimStats(failed=1), attempt
            assert await it.reclaim() == ReclaimStats(), "it must not be tried again before the back-off is over"
            it.elapse(QUEUE.max_back_off_ns * 1.5 / SECOND)
        assert await it.reclaim() == ReclaimStats()
        rows = await it.rows()
        assert not rows.items
        (letter,) = rows.dead_letters.values()
        assert letter.attempts == QUEUE.max_attempts
        assert "DiskFailed" in letter.error
        assert "Input/output error" in letter.error
        # The disk is well again, and the next cause goes through.
        faults.disarm()
        await it.put("good", data_of(2))
        await it.delete("good")
        it.elapse(GRACE_S)
        assert (await it.reclaim()).contents == 1

    play(scratch, story, fs=HookedFileSystem(only_unlinks))


def test_a_cause_that_recurs_during_the_last_try_is_not_buried_with_it(scratch: Path) -> None:
    async def story(it: World) -> None:
        await it.put("k", data_of(1))
        await it.copy("k", "copy")
        await it.delete("k")
        it.elapse(GRACE_S)
        for _ in range(QUEUE.max_attempts - 1):
            (claimed,) = await take_all(it.node.metadata)
            assert await it.node.metadata.queue.fail(claimed, "as it happens")
            it.elapse(100)
        (claimed,) = await take_all(it.node.metadata)
        await it.delete("copy")  # the last reference goes while the item is leased for the last time
        assert await it.node.metadata.queue.fail(claimed, "as it happens")
        assert len((await it.rows()).dead_letters) == 1
        it.elapse(GRACE_S)
        assert await it.reclaim() == ReclaimStats(contents=1)
        assert it.files() == 0
        assert not (await it.rows()).items

    play(scratch, story)


def test_one_bad_item_does_not_hold_up_the_others(scratch: Path) -> None:
    bad: list[str] = []

    def hook(name: str, args: tuple[object, ...]) -> None:
        if name == "unlink" and any(blob in str(args[0]) for blob in bad):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def story(it: World) -> None:
        bucket = await it.node.metadata.bucket("bucket")
        for key in ("a", "b", "c"):
            await it.put(key, data_of(1))
            if key == "b":
                bad.append((await it.node.metadata.head_object(bucket, key)).content.hex())
            await it.delete(key)
        it.elapse(GRACE_S)
        assert await it.reclaim() == ReclaimStats(contents=2, failed=1)
        assert it.files() == 4
        bad.clear()
        it.elapse(60)
        assert await it.reclaim() == ReclaimStats(contents=1)
        await it.clean()

    play(scratch, story, fs=HookedFileSystem(hook))


def test_a_task_that_this_release_does_not_know_becomes_a_dead_letter(scratch: Path) -> None:
    async def story(it: World) -> None:
        zone = owed.zone_of(it.node.blocks.node_id, b"some bucket's id")

        async def owe(tr: Any) -> None:
            await owed.enqueue(tr, it.node.metadata.context, zone, "polish", b"x")

        await it.node.metadata.engine.transact(owe)
        for _ in range(QUEUE.max_attempts):
            assert (await it.reclaim()).failed == 1
            it.elapse(100)
        (letter,) = (await it.rows()).dead_letters.values()
        assert "polish" in letter.error

    play(scratch, story)


class _Killed(BaseException):
    """The process ends here: nothing that comes after it runs, not even error handling."""


async def _estate(it: World) -> None:
    """Something of every kind to reclaim, beside what must stay."""
    await it.put("stays", data_of(1))
    await it.copy("stays", "shared")
    await it.put("goes", data_of(2))
    await it.put("small", b"inline")
    upload = await it.begin("multipart")
    etags = {1: await it.part("multipart", upload, 1, data_of(3))}
    await it.part("multipart", upload, 2, data_of(4, 100))
    await it.complete("multipart", upload, etags)
    upload = await it.begin("sliced")
    etag = await it.slice("sliced", upload, 1, "stays", 0, 9)
    await it.complete("sliced", upload, {1: etag})
    for key in ("shared", "goes", "small", "multipart", "sliced"):
        await it.delete(key)
    upload = await it.begin("aborted")
    await it.part("aborted", upload, 1, data_of(5))
    await it.part("aborted", upload, 1, data_of(6))
    await it.abort("aborted", upload)
    writer = it.node.blocks.create_blob()
    await writer.write(data_of(7))
    await writer.finish()
    it.node.blocks.release(writer.blob_id)
    await it.node.sweep()


async def _converges(it: World) -> None:
    await it.node.sweep()
    for _ in range(4):
        it.elapse(GRACE_S)
        stats = await it.reclaim()
        assert stats.failed == 0
    assert await it.get("stays") == data_of(1)
    assert it.files() == 4
    await it.clean()


def _killed_at_a_call_to_the_disk(folder: Path, nth: int) -> bool:
    """The Nth system call of a pass does not happen and nothing after it does. False: the pass has fewer."""
    calls = 0
    armed = False

    def hook(name: str, args: tuple[object, ...]) -> None:
        nonlocal calls
        calls += armed
        if armed and calls >= nth:
            raise OSError(errno.EIO, "killed")

    async def gone(*_: object) -> bool:
        # The failure is not reported to the queue: the process is gone with its leases in hand.
        raise _Killed

    async def life() -> bool:
        nonlocal armed
        clock = ManualClock()
        killed = False
        async with opened(folder, fs=HookedFileSystem(hook), clock=clock, grace_s=GRACE_S) as node:
            await node.request("PUT", "/bucket")
            it = World(node, clock, folder / "cache")
            await _estate(it)
            it.elapse(GRACE_S)
            node.metadata.queue.fail = gone  # type: ignore[method-assign, assignment]
            node.metadata.queue.release = gone  # type: ignore[method-assign, assignment]
            armed = True
            try:
                await it.reclaim()
            except _Killed:
                killed = True
            armed = False
        async with opened(folder, fs=NoSync(), clock=clock, grace_s=GRACE_S) as node:
            await _converges(World(node, clock, folder / "cache"))
        return killed

    return asyncio.run(life())


def _killed_at_a_transaction(folder: Path, nth: int, *, committed: bool) -> bool:
    """The Nth transaction of a pass is lost, or is `committed` and nobody is alive to hear of it."""

    async def life() -> bool:
        clock = ManualClock()
        killed = False
        async with opened(folder, fs=NoSync(), clock=clock, grace_s=GRACE_S) as node:
            await node.request("PUT", "/bucket")
            it = World(node, clock, folder / "cache")
            await _estate(it)
            it.elapse(GRACE_S)
            left = nth
            background = node.engine.background
            real = background.transact

            async def transact(*args: Any) -> Any:
                nonlocal left
                left -= 1
                if left > 0:
                    return await real(*args)
                if left == 0 and committed:
                    await real(*args)
                raise _Killed

            background.transact = transact  # type: ignore[method-assign]
            try:
                await it.reclaim()
            except _Killed:
                killed = True
        async with opened(folder, fs=NoSync(), clock=clock, grace_s=GRACE_S) as node:
            await _converges(World(node, clock, folder / "cache"))
        return killed

    return asyncio.run(life())


def _try_all(scratch: Path, killed: Callable[[Path, int], bool], numbers: Iterable[int]) -> int:
    """`killed` at each of `numbers` until a pass gets through; how many were killed."""
    for done, nth in enumerate(numbers):
        folder = scratch / "life"
        if not killed(folder, nth):
            return done
        remove_store(folder)
    raise AssertionError("no pass got through")


def test_reclaim_killed_at_calls_to_the_disk_goes_on_afterwards(scratch: Path) -> None:
    assert _try_all(scratch, _killed_at_a_call_to_the_disk, itertools.count(2, 7)) >= 5


def test_reclaim_killed_at_transactions_goes_on_afterwards(scratch: Path) -> None:
    lost = _try_all(scratch, lambda *args: _killed_at_a_transaction(*args, committed=False), itertools.count(1, 6))
    remove_store(scratch / "life")
    kept = _try_all(scratch, lambda *args: _killed_at_a_transaction(*args, committed=True), itertools.count(2, 6))
    assert min(lost, kept) >= 3


@pytest.mark.slow
def test_reclaim_killed_at_every_call_to_the_disk_goes_on_afterwards(scratch: Path) -> None:
    assert _try_all(scratch, _killed_at_a_call_to_the_disk, itertools.count(1)) > 30


@pytest.mark.slow
@pytest.mark.parametrize("committed", [False, True])
def test_reclaim_killed_at_every_transaction_goes_on_afterwards(scratch: Path, committed: bool) -> None:
    killed = _try_all(scratch, lambda *args: _killed_at_a_transaction(*args, committed=committed), itertools.count(1))
    assert killed > 20
