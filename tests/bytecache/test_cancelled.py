"""A caller that goes away while a thread works for it: the job ends as it will, and nobody complains."""

import asyncio
import errno
import gc
import os
import threading
from pathlib import Path

import pytest

from tests.bytecache.faults import HookedFileSystem
from tigrislike.bytecache import BlockStore

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
