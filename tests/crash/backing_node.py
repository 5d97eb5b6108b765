"""`tigrislike serve` whose origins are directories, killed at a step: `python -m tests.crash.backing_node FLAGS`.

The directory that holds them is named by the environment, and so is the step at which every process of the node is
killed at once: the steps of all of them are counted, before and after whatever a write to an origin, its discarding,
the release of homes and reclaiming consist of.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.replication.directory_origin import DirectoryOrigin
from tigrislike import node
from tigrislike.bytecache import BlockStore
from tigrislike.cli import main
from tigrislike.config import Settings
from tigrislike.metadata import Metadata
from tigrislike.metadata.queue import Queue
from tigrislike.metadata.records import OriginPlace
from tigrislike.origin.egress import Egress

ORIGINS, KILL_AT = "BACKING_ORIGINS", "BACKING_KILL_AT"
COMMAND = [sys.executable, "-m", "tests.crash.backing_node"]
STEPS: list[tuple[type, str]] = [
    (DirectoryOrigin, "put"),
    (DirectoryOrigin, "delete"),
    (Metadata, "owe_discard"),
    (Metadata, "put_object"),
    (Metadata, "put_part"),
    (Metadata, "complete_upload"),
    (Metadata, "copy_object"),
    (Metadata, "announce_backing"),
    (Metadata, "note_written"),
    (Metadata, "drop_home"),
    (Metadata, "reclaim_content"),
    (Metadata, "leave_content"),
    (Metadata, "forget_content"),
    (Queue, "finish"),
    (BlockStore, "demote"),
    (BlockStore, "delete_blob"),
]


def open_directory(root: Path, place: OriginPlace) -> DirectoryOrigin:
    return DirectoryOrigin(root / place.url.rpartition("/")[2])


def opener(settings: Settings, egress: Egress | None = None) -> Callable[[OriginPlace], DirectoryOrigin]:
    return functools.partial(open_directory, Path(os.environ[ORIGINS]))


class Deadline:
    """Counts the steps of all processes by the length of a file, and kills them at one."""

    def __init__(self, file: Path, at: int) -> None:
        self._file = os.open(file, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600)
        self._at = at

    def step(self) -> None:
        os.write(self._file, b".")
        if os.fstat(self._file).st_size >= self._at:
            os.killpg(0, signal.SIGKILL)

    def around(self, method: Any) -> Any:
        @functools.wraps(method)
        async def stepping(*args: Any, **options: Any) -> Any:
            self.step()
            result = await method(*args, **options)
            self.step()
            return result

        return stepping


if __name__ == "__main__":
    node.origin_opener = opener  # type: ignore[assignment]
    if at := int(os.environ.get(KILL_AT, "0")):
        deadline = Deadline(Path(os.environ[ORIGINS]) / "steps", at)
        for owner, name in STEPS:
            setattr(owner, name, deadline.around(getattr(owner, name)))
    sys.argv[1:1] = ["serve"]
    main()
