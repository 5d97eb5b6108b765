"""A power cut at any step of a node's life, blocks and database together, loses nothing that was answered with success.

The trace of one life has every write, sync and change of names, and between them what clients asked and were told.
After each prefix the disk is rebuilt with what was not synced lost, kept, or each thing by its own luck; the node is
opened again and swept. Then each object, part and version is in one of the states that its client can account for, the
audit finds no contradiction and no orphan, uploads go on, and whatever is owed can be worked off. Where FoundationDB is
under test the cut is through the blocks alone, and the database has what it had at that moment.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import random
import shutil
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.bytecache.faults import NoSync
from tests.bytecache.replay import Event, Fate, Step, clear, rebuild
from tests.clusters import engine_under_test
from tests.crash.audit import assert_nothing_owed, audit
from tests.crash.inprocess import BLOCK, InProcessNode, key_list, opened, part_list, text_of
from tests.crash.recording import DiskRecorder, RecordedEngine, put_rows, recording
from tests.e2e.wire import Answer
from tests.nodes import engine_settings
from tigrislike.bytecache import BytesError
from tigrislike.config import Settings
from tigrislike.metadata import MetadataError
from tigrislike.metadata.kv import Engine, EngineError, ManualClock, open_engine
from tigrislike.metadata.records import part as part_codec
from tigrislike.node import Node
from tigrislike.replication.reclaim import reclaim_due

Subject = tuple[str, ...]
State = Any
"""What a subject may be: the bytes of an object or part, None where it is absent; of a key with versions, a tuple of
them, newest first, with b"" for a delete marker; of a bucket or upload, whether it is there."""

GONE = None


class Life:
    """Requests to a node that is being recorded, each noted before it is sent and when it has been acknowledged."""

    def __init__(self, node: InProcessNode, recorder: DiskRecorder, seed: int) -> None:
        self.node = node
        self.recorder = recorder
        self.rng = random.Random(seed)
        self.versions: dict[str, tuple[bytes, ...]] = {}

    async def ask(self, changes: dict[Subject, State], status: int, *request: Any, **more: Any) -> Answer:
        """One request that makes each of `changes` true."""
        self.recorder.event("asked", changes)
        answer = await self.node.request(*request, **more)
        assert answer.status == status, answer.body
        self.recorder.event("acknowledged", changes)
        return answer

    def bytes_of(self, size: int) -> bytes:
        return self.rng.randbytes(size)

    async def bucket(self, name: str, *, versioned: bool = False) -> None:
        await self.ask({("bucket", name): True}, 200, "PUT", f"/{name}")
        if versioned:
            body = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
            headers = _md5(body)
            assert (await self.node.request("PUT", f"/{name}", {"versioning": ""}, headers, body)).status == 200

    async def put(self, key: str, size: int) -> bytes:
        data = self.bytes_of(size)
        pieces = [data[at : at + 30_000] for at in range(0, size, 30_000)]
        await self.ask({("object", key): data}, 200, "PUT", f"/bucket/{key}", body=pieces)
        return data

    async def copy(self, source: str, key: str, data: bytes) -> None:
        headers = {"x-amz-copy-source": f"/bucket/{source}"}
        await self.ask({("object", key): data}, 200, "PUT", f"/bucket/{key}", None, headers)

    async def delete(self, key: str) -> None:
        await self.ask({("object", key): GONE}, 204, "DELETE", f"/bucket/{key}")

    async def delete_many(self, *keys: str) -> None:
        body = key_list(keys)
        changes: dict[Subject, State] = {("object", key): GONE for key in keys}
        await self.ask(changes, 200, "POST", "/bucket", {"delete": ""}, _md5(body), body)

    async def version(self, key: str, size: int) -> None:
        """A new version of a key in the versioned bucket, a delete marker if `size` is 0."""
        data = self.bytes_of(size)
        self.versions[key] = (data, *self.versions.get(key, ()))
        changes: dict[Subject, State] = {("versions", key): self.versions[key]}
        if size:
            await self.ask(changes, 200, "PUT", f"/versioned/{key}", body=data)
        else:
            await self.ask(changes, 204, "DELETE", f"/versioned/{key}")

    async def begin(self, key: str) -> str:
        answer = await self.node.request("POST", f"/bucket/{key}", {"uploads": ""})
        upload = text_of(answer, "UploadId")
        self.recorder.event("acknowledged", {("upload", key, upload): True})
        return upload

    async def part(self, key: str, upload: str, number: int, size: int) -> bytes:
        data = self.bytes_of(size)
        query = {"partNumber": str(number), "uploadId": upload}
        changes: dict[Subject, State] = {("part", upload, str(number)): data}
        await self.ask(changes, 200, "PUT", f"/bucket/{key}", query, body=data)
        return data

    async def part_copy(self, key: str, upload: str, number: int, source: str, data: bytes) -> bytes:
        query = {"partNumber": str(number), "uploadId": upload}
        headers = {"x-amz-copy-source": f"/bucket/{source}", "x-amz-copy-source-range": "bytes=9-70008"}
        part = data[9:70009]
        await self.ask({("part", upload, str(number)): part}, 200, "PUT", f"/bucket/{key}", query, headers)
        return part

    async def complete(self, key: str, upload: str, number: int, part: bytes) -> None:
        body = part_list({number: hashlib.md5(part).hexdigest()})
        changes: dict[Subject, State] = {("object", key): part, ("upload", key, upload): GONE}
        await self.ask(changes, 200, "POST", f"/bucket/{key}", {"uploadId": upload}, body=body)

    async def abort(self, key: str, upload: str) -> None:
        changes: dict[Subject, State] = {("upload", key, upload): GONE}
        await self.ask(changes, 204, "DELETE", f"/bucket/{key}", {"uploadId": upload})

    async def reclaim(self) -> None:
        stats = await reclaim_due(self.node.metadata, self.node.blocks)
        assert stats.failed == 0


def _md5(body: bytes) -> dict[str, str]:
    return {"content-md5": base64.b64encode(hashlib.md5(body).digest()).decode()}


async def short_life(life: Life) -> None:
    await life.bucket("bucket")
    await life.put("small", 100)
    await life.put("large", BLOCK + 5)
    await asyncio.gather(life.put("large", BLOCK // 2), life.put("small", 200))
    await life.delete("large")
    await life.reclaim()


async def long_life(life: Life) -> None:
    await life.bucket("bucket")
    await life.bucket("versioned", versioned=True)

    async def objects() -> None:
        large = await life.put("large", 2 * BLOCK + 77)
        await life.copy("large", "copy", large)
        await life.put("large", 5000)
        await life.put("small", 3)
        await life.put("form", 4097)
        await life.delete("copy")
        await life.put("small", 4096)
        await life.delete_many("small", "form", "never")

    async def multipart() -> None:
        source = await life.put("source", 2 * BLOCK)
        upload = await life.begin("joined")
        await life.part("joined", upload, 1, 9)
        await life.part("joined", upload, 1, BLOCK + 1)
        last = await life.part_copy("joined", upload, 2, "source", source)
        await life.complete("joined", upload, 2, last)
        given_up = await life.begin("given up")
        await life.part("given up", given_up, 1, BLOCK)
        await life.abort("given up", given_up)
        left = await life.begin("left")
        await life.part("left", left, 1, 10)
        await life.part("left", left, 2, 2 * BLOCK)
        await life.delete("source")

    async def versions() -> None:
        for size in (10, BLOCK + 1, 0, 3000, 2 * BLOCK):
            await life.version("v", size)

    async def chores() -> None:
        for _ in range(4):
            await asyncio.sleep(0)
            await life.reclaim()
            await life.node.engine.checkpoint()

    await asyncio.gather(objects(), multipart(), versions(), chores())
    await chores()
    await life.put("last", BLOCK)


async def _record(root: Path, recorder: DiskRecorder, vfs: str, story: Callable[[Life], Any], seed: int) -> None:
    def recorded(engine: Engine) -> Engine:
        return engine if _on_disk() else RecordedEngine(engine, recorder)  # type: ignore[return-value]

    async with opened(root, fs=recorder, vfs=vfs if _on_disk() else None, around=recorded) as node:
        recorder.event("opened")
        await story(Life(node, recorder, seed))
        recorder.event("ended")


def _on_disk() -> bool:
    """Whether the database is files on the disk whose power goes."""
    return engine_under_test() == "sqlite"


# -- After the cut ---------------------------------------------------------------------------------------------------


def _states(trace: Sequence[Step]) -> dict[Subject, list[State]]:
    """Each subject's possible states when the power went: what was acknowledged last, or what was asked since."""
    possible: dict[Subject, list[State]] = {}
    for step in trace:
        if isinstance(step, Event) and step.name in ("asked", "acknowledged"):
            for subject, state in step.payload.items():  # type: ignore[attr-defined]
                if step.name == "asked":
                    start: list[State] = [()] if subject[0] == "versions" else [GONE]
                    possible.setdefault(subject, start).append(state)
                else:
                    possible[subject] = [state]
    return possible


async def _put_database(root: Path, trace: Sequence[Step]) -> None:
    """Give a store in `root` the database of the moment at which `trace` ends, where it is on no disk of the node's."""
    rows: dict[bytes, bytes] = {}
    for step in trace:
        if isinstance(step, Event) and step.name == "database":
            rows = step.payload  # type: ignore[assignment]
    engine = await open_engine(engine_settings(root)["metadata"])
    try:
        await put_rows(engine, rows)
    finally:
        await engine.close()


async def _check(root: Path, states: dict[Subject, list[State]]) -> None:
    # A day later, so that no lease of the life before stands in the way.
    clock = ManualClock(time.time_ns() + 86_400 * 10**9)
    async with opened(root, fs=NoSync(), clock=clock) as node:
        await node.sweep()
        assert await audit(node.metadata, node.blocks) == []
        found: dict[Subject, State] = {}
        for subject, possible in sorted(states.items(), key=lambda item: item[0][0] == "part"):
            if subject[0] == "part" and not found[_upload_of(states, subject[1])]:
                continue  # of an upload that is completed or given up
            found[subject] = await _find(node, subject)
            assert found[subject] in possible, f"{subject} is {_short(found[subject])}: {_short(possible)}"
        await _check_listing(node, {s[1]: data for s, data in found.items() if s[0] == "object"})
        await _go_on(node, found)
        for _ in range(3):
            clock.advance(3600 * 10**9)
            assert (await reclaim_due(node.metadata, node.blocks)).failed == 0
        await assert_nothing_owed(node.metadata, node.blocks, root / "cache")


def _upload_of(states: dict[Subject, list[State]], upload: str) -> Subject:
    return next(subject for subject in states if subject[0] == "upload" and subject[2] == upload)


def _short(state: State) -> str:
    return f"{len(state)} bytes {state[:4].hex()}" if isinstance(state, bytes) else str([state])[:200]


async def _find(node: InProcessNode, subject: Subject) -> State:
    match subject:
        case ("bucket", name):
            return True if (await node.request("HEAD", f"/{name}")).status == 200 else GONE
        case ("object", key):
            answer = await node.request("GET", f"/bucket/{key}")
            if answer.status != 200:
                assert answer.code in ("NoSuchKey", "NoSuchBucket")
                return GONE
            if not answer.headers["etag"].endswith('-1"'):
                assert answer.headers["etag"] == f'"{hashlib.md5(answer.body).hexdigest()}"'
            return answer.body
        case ("versions", key):
            rows = await _rows(node, "/versioned", {"versions": "", "prefix": key}, "Version", "DeleteMarker")
            found = []
            for row in sorted(rows, key=lambda row: int(row["VersionId"]), reverse=True):
                answer = await node.request("GET", f"/versioned/{key}", {"versionId": row["VersionId"]})
                found.append(answer.body if answer.status == 200 else b"")
            return tuple(found)
        case ("upload", key, upload):
            answer = await node.request("GET", f"/bucket/{key}", {"uploadId": upload})
            return True if answer.status == 200 else GONE
        case ("part", upload, number):
            # A part cannot be read before it is completed: its record tells its ETag, its blob has the bytes.
            begin, end = node.metadata.context.keys.part_range(bytes.fromhex(upload))

            async def load(tr: Any) -> Any:
                return await tr.get_range(begin, end)

            for _, raw in await node.metadata.engine.read(load):
                part = part_codec.decode(raw)
                if part.number == int(number):
                    data = b""
                    for extent in part.extents:
                        reader = node.blocks.open_blob(extent.blob, extent.blob_size or extent.size)
                        async for piece in reader.read(extent.offset, extent.offset + extent.size):
                            data += piece
                    assert hashlib.md5(data).hexdigest() == part.etag
                    return data
            return GONE
    raise AssertionError(subject)


async def _rows(node: InProcessNode, path: str, query: dict[str, str], *names: str) -> list[dict[str, str]]:
    answer = await node.request("GET", path, query)
    if answer.status == 404:
        return []
    rows = [child for child in ET.fromstring(answer.body) if child.tag.rpartition("}")[2] in names]
    return [{element.tag.rpartition("}")[2]: element.text or "" for element in row} for row in rows]


async def _check_listing(node: InProcessNode, objects: dict[str, bytes | None]) -> None:
    listed = {row["Key"]: int(row["Size"]) for row in await _rows(node, "/bucket", {"list-type": "2"}, "Contents")}
    assert listed == {key: len(data) for key, data in objects.items() if data is not None}


async def _go_on(node: InProcessNode, found: dict[Subject, State]) -> None:
    """Uploads that are there take another part and are completed; a completed one is not there."""
    for subject, present in found.items():
        if subject[0] != "upload":
            continue
        _, key, upload = subject
        if ("object", key) in found:
            assert (found["object", key] is None) == bool(present), "completing is not all or nothing"
        if present:
            parts = {int(s[2]): data for s, data in found.items() if s[:2] == ("part", upload) and data is not None}
            number, data = max(parts.items(), default=(1, b"a late part"))
            if not parts:
                query = {"partNumber": "1", "uploadId": upload}
                assert (await node.request("PUT", f"/bucket/{key}", query, body=data)).status == 200
            body = part_list({number: hashlib.md5(data).hexdigest()})
            answer = await node.request("POST", f"/bucket/{key}", {"uploadId": upload}, body=body)
            assert answer.status == 200, answer.body
            assert (await node.request("GET", f"/bucket/{key}")).body == data


# -- The cuts --------------------------------------------------------------------------------------------------------


def _cut(
    scratch: Path,
    story: Callable[[Life], Any],
    choose: Callable[[int, int], Iterator[tuple[int, Fate]]],
    *,
    seed: int = 1,
    forgets: str = "",
) -> int:
    """Record a life and cut it where `choose(where it begins, its length)` says; how many cuts there were."""
    live, target = scratch / "live", scratch / "rebuilt"
    live.mkdir()
    with recording(live, forgets) as (recorder, vfs):
        asyncio.run(_record(live, recorder, vfs, story, seed))
    trace = recorder.trace
    opened_at = next(at for at, step in enumerate(trace) if isinstance(step, Event) and step.name == "opened")
    cuts = 0
    for end, fate in choose(opened_at, len(trace)):
        if end < opened_at:
            shutil.rmtree(target, ignore_errors=True)
        target.mkdir(exist_ok=True)
        rebuild(trace[:end], target, fate, random.Random(f"{seed} {end} {cuts}"))
        for path in target.glob("metadata.db*"):
            path.chmod(0o600)
        if not _on_disk():
            asyncio.run(_put_database(target, trace[:end]))
        try:
            asyncio.run(_check(target, _states(trace[:end])))
        except BaseException:
            print(f"seed {seed}, cut after step {end} of {len(trace)} ({trace[max(0, end - 3) : end]!r:.500}), {fate}")
            raise
        if end < opened_at:
            shutil.rmtree(target)
        else:  # the fan-out is durable by then, and slow to make and remove
            clear(target / "cache")
            for path in target.glob("metadata.db*"):
                path.unlink()
        cuts += 1
    print(f"{cuts} cuts in {len(trace)} steps, the first {opened_at} of which make the store")
    return cuts


def _every(nth: int) -> Callable[[int, int], Iterator[tuple[int, Fate]]]:
    """Every nth step, with each fate in turn."""

    def choose(opened_at: int, length: int) -> Iterator[tuple[int, Fate]]:
        fates: tuple[Fate, ...] = ("lost", "random", "kept", "random")
        for end in range(opened_at, length + 1, nth):
            yield end, fates[end % len(fates)]

    return choose


def _sampled(count: int, seed: int) -> Callable[[int, int], Iterator[tuple[int, Fate]]]:
    rng = random.Random(seed)
    print(f"seed {seed}")

    def choose(opened_at: int, length: int) -> Iterator[tuple[int, Fate]]:
        for turn in range(count):
            # One in eight while the store is being made, which is most of the trace and the least of the trouble.
            end = rng.randrange(opened_at) if turn % 8 == 0 else rng.randrange(opened_at, length + 1)
            yield end, rng.choice(("lost", "random", "random", "kept"))

    return choose


def test_power_cuts_in_a_short_life(scratch: Path) -> None:
    assert _cut(scratch, short_life, _every(3)) > 15  # more where the database is files too


@pytest.mark.slow
def test_a_power_cut_at_every_step_of_a_short_life(scratch: Path) -> None:
    assert _cut(scratch, short_life, _every(1)) > 50


def test_power_cuts_in_a_long_life(scratch: Path) -> None:
    assert _cut(scratch, long_life, _sampled(20, seed=1)) == 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_many_power_cuts_in_a_long_life(scratch: Path, seed: int) -> None:
    assert _cut(scratch, long_life, _sampled(400, seed), seed=seed) == 400


@pytest.mark.parametrize("forgets", ["data", "names", pytest.param("database", marks=pytest.mark.sqlite)])
def test_the_replay_notices_a_sync_that_is_left_out(scratch: Path, forgets: str) -> None:
    def lost(opened_at: int, length: int) -> Iterator[tuple[int, Fate]]:
        for end in range(opened_at, length + 1, 5):
            yield end, "lost"

    with pytest.raises((AssertionError, BytesError, EngineError, MetadataError)):
        _cut(scratch, short_life, lost, forgets=forgets)


def test_the_directories_that_a_node_makes_have_durable_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything lies in them: a data directory whose own name goes with the power takes all of it along."""
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    data_dir, cache_dir = tmp_path / "a" / "data", tmp_path / "b" / "c" / "cache"
    settings = Settings(data_dir=data_dir, cache_dir=cache_dir, reserve_bytes=0, **engine_settings(data_dir))

    async def start() -> None:
        async with Node.opened(settings):
            pass

    asyncio.run(start())
    assert {str(tmp_path), str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "b" / "c")} <= set(synced)
    synced.clear()
    asyncio.run(start())
    assert {str(tmp_path / "a"), str(tmp_path / "b" / "c")} <= set(synced), "the first start may have died too early"
