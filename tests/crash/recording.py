"""One trace of everything that a node does to its disk: block files and SQLite's files, with the answers in between.

The block store's recorder (`tests/bytecache/replay.py`) takes what goes through its seam; `RecordingVfs` adds what
SQLite writes, so that a power cut can be replayed at any moment of both. What SQLite's own Unix layer does beside the
calls that a VFS sees is recorded as it does it: the first sync of a fresh journal or log also syncs the directory that
names it (SQLite's os_unix.c, UNIXFILE_DIRSYNC). Shared memory (`-shm`) is rebuilt from the log and is no part of the
truth, nor is the file of turns.

A database that is elsewhere, in a FoundationDB cluster, keeps what it has when a node's power goes: then the trace has
all its rows after each commit (`RecordedEngine`), and the cut is through the node's own disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import apsw

from tests.bytecache.replay import Make, Recorder, Remove, SyncDirectory, SyncFile, Truncate, Write
from tigrislike.metadata.kv import Engine

T = TypeVar("T")

_JOURNALS = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL | apsw.SQLITE_OPEN_WAL
_COUNTER = itertools.count()


class DiskRecorder(Recorder):
    """Records a data directory: the file system of its block store, and the trace of its `RecordingVfs`.

    Args:
        root: the data directory, empty.
        forgets: "data", "names" or "database": syncs of blocks, of directories or of SQLite's files that are left out
            of the trace, to see that the replay notices.
    """

    def __init__(self, root: Path, forgets: str = "") -> None:
        super().__init__(root)
        self.forgets = forgets
        self._numbers: dict[str, int] = {}

    def fdatasync(self, fd: int) -> None:
        if self.forgets != "data":
            super().fdatasync(fd)

    def fsync(self, fd: int) -> None:
        if self.forgets != "names":
            super().fsync(fd)

    # -- What SQLite does, called after it has done it, in order

    def opened(self, path: str, existed: bool) -> int:
        """The number of a file of SQLite's in the trace."""
        with self._lock:
            relative = self._relative(path)
            assert relative is not None, path
            if not existed:
                self._next += 1
                self._numbers[relative] = self._next
                self.trace.append(Make(relative, self._next, False))
            return self._numbers[relative]

    def wrote(self, number: int, offset: int, data: bytes) -> None:
        self.trace.append(Write(number, offset, bytes(data)))

    def truncated(self, number: int, size: int) -> None:
        self.trace.append(Truncate(number, size))

    def synced(self, number: int, directory_of: str) -> None:
        """A file is durable; and its name too, if `directory_of` is its path."""
        if self.forgets != "database":
            self.trace.append(SyncFile(number))
            if directory_of:
                self.trace.append(SyncDirectory(os.path.dirname(self._relative(directory_of) or "")))

    def removed(self, path: str, synced: bool) -> None:
        with self._lock:
            relative = self._relative(path)
            assert relative is not None, path
            del self._numbers[relative]
            self.trace.append(Remove(relative))
            if synced and self.forgets != "database":
                self.trace.append(SyncDirectory(os.path.dirname(relative)))


class RecordingVfs(apsw.VFS):
    """SQLite's own VFS, with what it writes put into a recorder's trace. Registered under `name` while it lives."""

    def __init__(self, recorder: DiskRecorder) -> None:
        self.name = f"recording{next(_COUNTER)}"
        self.recorder = recorder
        super().__init__(self.name, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> RecordingFile:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        assert path is not None, "a temporary file: the engine has temp_store=MEMORY"
        with self.recorder._lock:
            existed = os.path.lexists(path)
            fresh_journal = bool(flags[0] & apsw.SQLITE_OPEN_CREATE and flags[0] & _JOURNALS)
            file = RecordingFile(name, flags)
            file.recorder = self.recorder
            file.number = self.recorder.opened(path, existed)
            file.unsynced_name = path if fresh_journal else ""
            return file

    def xDelete(self, filename: str, syncdir: bool) -> None:
        with self.recorder._lock:
            super().xDelete(filename, syncdir)
            self.recorder.removed(filename, syncdir)


class RecordingFile(apsw.VFSFile):
    recorder: DiskRecorder
    number: int
    unsynced_name: str

    def __init__(self, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        with self.recorder._lock:
            super().xWrite(data, offset)
            self.recorder.wrote(self.number, offset, data)

    def xTruncate(self, size: int) -> None:
        with self.recorder._lock:
            super().xTruncate(size)
            self.recorder.truncated(self.number, size)

    def xSync(self, flags: int) -> None:
        with self.recorder._lock:
            super().xSync(flags)
            self.recorder.synced(self.number, self.unsynced_name)
            self.unsynced_name = ""


@contextlib.contextmanager
def recording(root: Path, forgets: str = "") -> Iterator[tuple[DiskRecorder, str]]:
    """A recorder over an empty directory, and the name of the VFS that belongs to it."""
    recorder = DiskRecorder(root, forgets)
    vfs = RecordingVfs(recorder)
    try:
        yield recorder, vfs.name
    finally:
        vfs.unregister()


# -- A database elsewhere ---------------------------------------------------------------------------------------------

_ROWS = 5000


class RecordedEngine:
    """An engine with each commit in a recorder's trace: an event `database` whose payload is all rows of the store.

    One transaction runs at a time, and nobody reads before a commit is in the trace: whatever rests on a commit comes
    after it there. Block files are written as concurrently as ever.
    """

    def __init__(self, engine: Engine, recorder: Recorder) -> None:
        self._engine = engine
        self._recorder = recorder
        self._turn = asyncio.Lock()
        self._last: dict[bytes, bytes] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @property
    def background(self) -> RecordedEngine:
        return self

    async def transact(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        async with self._turn:
            try:
                return await self._engine.transact(fn, *args)
            finally:
                rows = await all_rows(self._engine)
                if rows != self._last:
                    self._last = rows
                    self._recorder.event("database", rows)

    async def read(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        async with self._turn:
            return await self._engine.read(fn, *args)


async def all_rows(engine: Engine) -> dict[bytes, bytes]:
    """Every row of a small store, its keys without the prefix; without what the engine keeps for itself."""

    async def load(tr: Any) -> dict[bytes, bytes]:
        rows = await tr.get_range(engine.prefix, engine.prefix + b"\xfe", limit=_ROWS)
        assert len(rows) < _ROWS
        return {key[len(engine.prefix) :]: value for key, value in rows}

    return await engine.read(load)


async def put_rows(engine: Engine, rows: dict[bytes, bytes]) -> None:
    """Make `rows` all that a store has."""

    async def replace(tr: Any) -> None:
        tr.clear_range(engine.prefix, engine.prefix + b"\xff")
        for key, value in rows.items():
            tr.set(engine.prefix + key, value)
        tr.bump_metadata_version()

    await engine.transact(replace)
