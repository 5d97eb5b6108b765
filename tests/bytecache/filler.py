"""Other processes of a cache, for tests: each does one job and is killed where the test says.

`python -m tests.bytecache.filler` reads one job a line and forks a process for each, which opens the cache, does it,
and, if told so, kills itself with SIGKILL just before or after one of its system calls. `Fillers` is its other end.
`python -m tests.bytecache.filler ROOT CAPACITY SEED` does all kinds of things until it is killed; see `churn`.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bytecache.cached import BLOCK, blob, fill, open_cache
from tests.bytecache.faults import CALLS
from tigrislike.bytecache.errors import (
    BlobBusy,
    BlobGone,
    BlockPresent,
    BytesError,
    CacheFull,
    FillInProgress,
    PinsFull,
)
from tigrislike.bytecache.filesystem import FileSystem

REPOSITORY = Path(__file__).parents[2]
ANSWERS = (FillInProgress, BlockPresent, CacheFull, PinsFull, BlobGone, BlobBusy)
"""What the cache may say to one of several."""


class Suicidal(FileSystem):
    """Kills its process at a moment: each system call has one just before and one just after it."""

    def __init__(self, moment: int) -> None:
        self.left = moment

    def pass_by(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _suicidal(name: str) -> object:
    real = getattr(FileSystem, name)

    def call(self: Suicidal, *args: object) -> object:
        self.pass_by()
        try:
            return None if name in ("fsync", "fdatasync") else real(self, *args)
        finally:
            self.pass_by()

    return call


for _name in CALLS:
    setattr(Suicidal, _name, _suicidal(_name))


def _work(root: str, settings: dict[str, object], job: str, blob_id: bytes, number: int, moment: int) -> None:
    """Do one job; moments are counted from after the opening, or from before it where they are negative."""
    fs = Suicidal(max(0, -moment))
    cache = open_cache(Path(root), fs=fs, **settings)
    if moment >= 0:
        fs.left = moment
    key = blob_id, number
    if job == "fill":
        fill(cache, key)
    elif job == "begin":
        cache.begin(*key, BLOCK)
        os.kill(os.getpid(), signal.SIGKILL)
    elif job == "remove_block":
        cache.remove_block(*key, "request")
    elif job == "remove_blob":
        cache.remove_blob(blob_id, "request")
    elif job == "delete_blob":
        cache.remove_blob(blob_id, "deleted")
    elif job == "pin":
        cache.pin(blob_id)
    elif job == "unpin":
        cache.unpin(blob_id)
    elif job == "reconcile":
        cache.reconcile()
    else:
        raise ValueError(job)


def churn(root: str, capacity: str, seed: str) -> None:
    """Fill, read, remove and pin blocks of a few blobs until killed; a byte on standard output for each turn."""
    rng = random.Random(int(seed))
    cache = open_cache(Path(root), capacity_bytes=int(capacity))
    for _ in range(10**9):
        key = blob(rng.randrange(4)), rng.randrange(6)
        with contextlib.suppress(*ANSWERS):
            chance = rng.random()
            if chance < 0.8:
                cache.touch(*key)
                fill(cache, key)
            elif chance < 0.85:
                cache.remove_block(*key, "request")
            elif chance < 0.9:
                cache.remove_blob(key[0], "deleted")
            elif chance < 0.95:
                cache.pin(key[0])
            else:
                cache.unpin(key[0])
        os.write(1, b".")


def main() -> None:
    if sys.argv[1:]:
        churn(*sys.argv[1:])
    for line in sys.stdin:
        order = json.loads(line)
        order["blob_id"] = bytes.fromhex(order["blob_id"])
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _work(**order)
                code = 0
            except BytesError as error:
                print(f"# {type(error).__name__}: {error}", file=sys.stderr)
                code = 2
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())


class Fillers:
    """Makes processes one at a time."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def run(self, root: Path, job: str, key: tuple[bytes, int], moment: int = 0, **settings: object) -> str:
        """Let a process do a job. How it ended: "done", "refused" (with a BytesError) or "killed".

        Args:
            moment: At which to kill it: counted in halves of system calls, from 1, after it has opened the cache; if
                negative, from the beginning of that; 0: not at all.
        """
        order = {
            "root": str(root),
            "settings": settings,
            "job": job,
            "blob_id": key[0].hex(),
            "number": key[1],
            "moment": moment,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        assert code in (0, 2, -signal.SIGKILL), f"{job} ended with {code}"
        return {0: "done", 2: "refused"}.get(code, "killed")


@contextlib.contextmanager
def fillers() -> Iterator[Fillers]:
    command = [sys.executable, "-m", "tests.bytecache.filler"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        try:
            yield Fillers(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


if __name__ == "__main__":
    main()
