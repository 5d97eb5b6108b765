"""A power cut after any step of the trace loses nothing that was committed and leaves nothing that was not."""

import asyncio
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.bytecache.blobs import BLOCK, drain, stored_files
from tests.bytecache.faults import NoSync
from tests.bytecache.replay import Event, Fate, Recorder, Step, SyncDirectory, clear, rebuild
from tigrislike.bytecache import BlockStore, BytesError


async def _life(recorder: Recorder, root: Path) -> dict[bytes, bytes]:
    """Uploads of every kind, some at the same time. Returns the bytes of each blob."""
    store = BlockStore.open(root, block_size=BLOCK, fs=recorder)
    rng = random.Random(7)
    contents: dict[bytes, bytes] = {}

    async def upload(size: int, *, end: str) -> None:
        writer = store.create_blob()
        data = contents[writer.blob_id] = rng.randbytes(size)
        for start in range(0, size, 50_000):
            await writer.write(data[start : start + 50_000])
        if end == "unfinished":
            await asyncio.sleep(0)
            await writer.abort()
            return
        await writer.finish()
        if end == "aborted":
            await writer.abort()
            return
        recorder.event("committed", writer.blob_id)
        if end == "released":
            store.release(writer.blob_id)
            return
        await store.publish(writer.blob_id)
        if end == "deleted":
            recorder.event("dead", writer.blob_id)
            await store.delete_blob(writer.blob_id)
            recorder.event("deleted", writer.blob_id)

    await asyncio.gather(upload(2 * BLOCK + 1, end="published"), upload(100, end="released"))
    await asyncio.gather(upload(BLOCK, end="aborted"), upload(3 * BLOCK - 5000, end="published"))
    await asyncio.gather(upload(BLOCK + 9, end="deleted"), upload(2 * BLOCK, end="unfinished"), upload(0, end="kept"))

    async def settle(blob_id: bytes) -> bool:
        return blob_id in _named(recorder.trace, "committed")

    await store.sweep(settle)
    store.close()
    return contents


def _named(trace: list[Step], name: str) -> set[bytes]:
    return {step.payload for step in trace if isinstance(step, Event) and step.name == name}  # type: ignore[misc]


async def _check(root: Path, trace: list[Step], contents: dict[bytes, bytes]) -> None:
    committed, dead, deleted = (_named(trace, name) for name in ("committed", "dead", "deleted"))
    store = BlockStore.open(root, block_size=BLOCK, fs=NoSync())
    try:

        async def settle(blob_id: bytes) -> bool:
            return blob_id in committed and blob_id not in dead

        stats = await store.sweep(settle)
        assert stats.failures == ()
        assert stats.live == 0
        assert not list((root / "incoming").iterdir())
        found = {bytes.fromhex(path.name.partition(".")[0]) for path in stored_files(root)}
        for blob_id in committed - dead:
            data = contents[blob_id]
            assert await drain(store.open_blob(blob_id, len(data)).read(0, len(data))) == data
        assert committed - dead <= found
        assert not deleted & found
        assert found <= committed, "bytes that nobody committed are left"
    finally:
        store.close()


def _replay(scratch: Path, kind: type[Recorder], fates: Callable[[int], Sequence[Fate]], nth: int = 1) -> int:
    """Record a life, cut the power after each `nth` of its steps with each of `fates(step)`; how many were tried."""
    live, target = scratch / "live", scratch / "rebuilt"
    live.mkdir()
    target.mkdir()
    recorder = kind(live)
    contents = asyncio.run(_life(recorder, live))
    trace = recorder.trace
    rebuilt = 0
    for end in range(0, len(trace) + 1, nth):
        for luck, fate in enumerate(fates(end)):
            rebuild(trace[:end], target, fate, random.Random(1000 * end + luck))
            asyncio.run(_check(target, trace[:end], contents))
            clear(target)
            if SyncDirectory("") not in trace[:end]:
                # The fan-out is the check's own; an outcome without a format file would be refused with it.
                shutil.rmtree(target)
                target.mkdir()
            rebuilt += 1
    return rebuilt


@pytest.mark.parametrize("nth", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_after_a_power_cut_at_any_step_the_committed_is_whole_and_nothing_else_is_left(scratch: Path, nth: int) -> None:
    fates: tuple[Fate, ...] = ("lost", "random", "kept", "random")
    assert _replay(scratch, Recorder, lambda end: (fates[end % len(fates)],), nth) > 200 // nth


class _SkipsDataSync(Recorder):
    def fdatasync(self, fd: int) -> None:
        pass


class _SkipsNameSync(Recorder):
    def fsync(self, fd: int) -> None:
        pass


@pytest.mark.parametrize("careless", [_SkipsDataSync, _SkipsNameSync])
def test_the_replay_notices_a_sync_that_is_left_out(scratch: Path, careless: type[Recorder]) -> None:
    with pytest.raises((AssertionError, BytesError)):
        _replay(scratch, careless, lambda end: ("lost",), 7)


@pytest.mark.slow
def test_after_a_power_cut_at_any_step_with_many_outcomes(scratch: Path) -> None:
    assert _replay(scratch, Recorder, lambda end: ("lost", "kept", *["random"] * 20)) > 2000  # type: ignore[return-value]
