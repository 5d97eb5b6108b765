"""Processes that adopt, demote and receive, for tests: each does one job, and is killed where the test says.

`python -m tests.bytecache.homer` reads one job a line and forks a process for each. `Homers` is its other end.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bytecache.blobs import BLOCK
from tests.bytecache.filler import REPOSITORY, Suicidal
from tests.bytecache.scripted_source import ScriptedSource
from tigrislike.bytecache import BlockStore

SIZE = 2 * BLOCK + 777
BLOCKS = 3
BLOB = bytes(range(16))


def content(blob_id: bytes, size: int = SIZE) -> bytes:
    """The bytes of a blob, which follow from its id."""
    return random.Random(blob_id).randbytes(size)


async def _do(store: BlockStore, job: str) -> None:
    if job == "adopt":
        await store.adopt(BLOB, SIZE)
    elif job == "demote":
        await store.demote(BLOB, SIZE)
    elif job == "receive":
        assert store._fills.source is not None
        await store.receive_copy(BLOB, SIZE, store._fills.source)
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        raise ValueError(job)


def _work(root: str, job: str, moment: int) -> None:
    fs = Suicidal(0)
    store = BlockStore.open(Path(root), block_size=BLOCK, reserve_bytes=0, fs=fs)
    store.fill_from(ScriptedSource({BLOB: content(BLOB)}))
    fs.left = moment
    asyncio.run(_do(store, job))


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _work(**json.loads(line))
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())


class Homers:
    """Makes processes one at a time."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def run(self, root: Path, job: str, moment: int = 0) -> bool:
        """Let a process do a job; whether it was killed at `moment`, counted in halves of system calls from 1."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"root": str(root), "job": job, "moment": moment}).encode() + b"\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        assert code in (0, -signal.SIGKILL), f"{job} ended with {code}"
        return code != 0


@contextlib.contextmanager
def homers() -> Iterator[Homers]:
    command = [sys.executable, "-m", "tests.bytecache.homer"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        try:
            yield Homers(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


if __name__ == "__main__":
    main()
