"""A caller that goes away while a thread works for it: the job ends as it will, and nobody complains."""

import asyncio
import errno
import gc
import os
import threading
from pathlib import Path

import pytest

from tests.bytecache.blobs import BLOCK
from tests.bytecache.faults import HookedFileSystem, NoSync
from tests.bytecache.scripted_source import ScriptedSource
from tigrislike.bytecache import BlockStore
from tigrislike.bytecache.store import FILL_THREADS

BLOB = bytes(16)


@pytest.mark.parametrize("call", ["warm", "delete_blob"])
def test_an_error_that_comes_after_its_caller_went_is_no_complaint(scratch: Path, call: str) -> None:
    reached, go = threading.Event(), threading.Event()
    armed = False

    def hook(name: str, args: tuple[object, ...]) -> None:
        if armed and name == "open":
            reached.set()
            go.wait()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def main() -> list[object]:
        nonlocal armed
        complaints: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        store = BlockStore.open(scratch / "s", fs=HookedFileSystem(hook))
        armed = True
        calling = asyncio.ensure_future(store.warm(BLOB, 1) if call == "warm" else store.delete_blob(BLOB, 1))
        await asyncio.to_thread(reached.wait)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        go.set()
        await store.aclose()  # waits for its threads
        await asyncio.sleep(0)
        gc.collect()
        return complaints

    assert asyncio.run(main()) == []
    assert reached.is_set()


def test_a_fill_that_is_cancelled_before_its_last_step_is_kept_or_leaves_nothing(scratch: Path) -> None:
    """The store is closed while the block's writing waits for a thread: the thread has all that it needs."""
    data = os.urandom(BLOCK)
    busy, go = threading.Event(), threading.Event()
    all_busy = threading.Barrier(FILL_THREADS + 1)

    async def main() -> tuple[list[object], int]:
        complaints: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        store = BlockStore.open(scratch / "s", block_size=BLOCK, threads=1, fs=NoSync())
        source = ScriptedSource({BLOB: data})

        def block_every_thread(blob_id: bytes) -> None:
            if len(source.lives_asked) == 2:  # the last question before the block is kept
                for _ in range(FILL_THREADS):
                    store._fillers.submit(lambda: (all_busy.wait(), go.wait()))
                all_busy.wait()
                busy.set()

        source.answer = block_every_thread
        store.fill_from(source)
        warming = asyncio.ensure_future(store.warm(BLOB, BLOCK))
        await asyncio.to_thread(busy.wait)
        while not store._fillers._work_queue.qsize():  # noqa: ASYNC110
            await asyncio.sleep(0)
        warming.cancel()
        closing = asyncio.ensure_future(store.aclose())
        while store._fills._running:  # noqa: ASYNC110
            await asyncio.sleep(0)
        go.set()
        await closing
        await asyncio.gather(warming, return_exceptions=True)
        gc.collect()
        return complaints, len(list((scratch / "s" / "filling").iterdir()))

    assert asyncio.run(main()) == ([], 0)
    (kept,) = (scratch / "s" / "cache").rglob("*.0")
    assert kept.read_bytes()[:BLOCK] == data
