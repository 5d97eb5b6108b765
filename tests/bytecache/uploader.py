"""A process that uploads until it is killed; run by test_processes.py as `python uploader.py ROOT MODE`.

It prints one line per step, unbuffered: "begun ID", "committed ID SEED SIZE" (the commit is the line's arrival),
"published ID". Mode "loop": four uploads at a time, for ever. Mode "hold": one upload, which waits half-way for a line
on standard input before it goes on.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

from tigrislike.bytecache import BlockStore

BLOCK = 64 * 1024


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


async def upload(store: BlockStore, seed: int, *, hold: bool) -> None:
    size = seed * 7919 % (4 * BLOCK)
    data = content(seed, size)
    writer = store.create_blob()
    await writer.write(data[: size // 2])
    if hold:
        # So much that write() had to wait for some of it to reach the disk: the directory exists.
        extra = content(seed, 5 * 1024 * 1024)
        await writer.write(extra)
        say("begun", writer.blob_id.hex())
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    else:
        say("begun", writer.blob_id.hex())
        await writer.write(data[size // 2 :])
    await writer.finish()
    say("committed", writer.blob_id.hex(), seed, writer.size)
    await store.publish(writer.blob_id)
    say("published", writer.blob_id.hex())


async def main(root: Path, mode: str) -> None:
    store = BlockStore.open(root, block_size=BLOCK)

    async def keep_on(worker: int) -> None:
        for turn in range(1_000_000):
            await upload(store, 4 * turn + worker + 1, hold=False)

    if mode == "hold":
        await upload(store, 5, hold=True)
    else:
        await asyncio.gather(*map(keep_on, range(4)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
