"""`tigrislike admin backup`: a copy of a node's store, made while it serves, that is itself a data directory.

The metadata is copied first, as of one moment, and the blocks after it. A block that those records name was there
before them, does not change, and is not removed while a backup holds the store (`bytecache/hold.py`); what is written
later is of no concern. The other way round, records would name blocks that were not copied.

A backup into the directory of an earlier one copies only what is new. The earlier one stays whole until the new one
is: blocks are added, then the records replaced in one step, then blocks removed that nothing names any more.

Where the metadata is in FoundationDB, this copies the blocks of this node alone; its own tools, or `copy-metadata`,
copy the metadata, before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import msgspec

from tigrislike.admin.reach import reached
from tigrislike.bytecache.filesystem import FileSystem, sync_directory
from tigrislike.bytecache.footer import block_count
from tigrislike.bytecache.hold import holding
from tigrislike.bytecache.layout import Layout, open_layout, parse_block_name
from tigrislike.config import Settings
from tigrislike.existing import check_store
from tigrislike.metadata import homes
from tigrislike.metadata.context import Context
from tigrislike.metadata.keyspace import Keyspace, subspace, unpack_bytes
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.kv.sqlite_file import translate
from tigrislike.metadata.records import LIVE, Home
from tigrislike.metadata.records import blob as blob_codec
from tigrislike.metadata.records import cluster as cluster_codec

NOTE = "backup.json"
"""In a backup: of which store and node, when its records were copied, and how much it holds."""

HOLD_TIMEOUT_S = 60.0
_PAGE = 500


class BackupError(Exception):
    """There is no new backup; an earlier one in the same directory is still whole. The message says what to do."""


class BackedUp(msgspec.Struct, frozen=True):
    """What a backup holds, and what of it this run copied.

    Attributes:
        taken_ns: the moment, in unix ns, as of which it is.
        missing: blocks that records name and that were not there: damage that `admin fsck` explains.
    """

    store: str
    node: str
    taken_ns: int
    metadata: bool
    blocks: int
    bytes: int
    copied_blocks: int
    copied_bytes: int
    removed_blocks: int
    missing: int
    complete: bool = True
    format: int = 1


def back_up(
    settings: Settings,
    directory: Path,
    *,
    link: bool = False,
    with_master_key: bool = False,
    report: Callable[[int, int], None] = lambda *_: None,
) -> BackedUp:
    """Copy the store of the settings into `directory`, or bring an earlier backup there up to date.

    Args:
        link: blocks become hard links in place of copies: at once, for no space, on the same disk.
        with_master_key: copy the key file too.
        report: told blocks and bytes so far.

    Raises:
        BackupError: the directory is something else, or the store is.
        EngineError, BytesError, OSError: as the disk and the database fail.
    """
    try:
        check_store(settings)
    except FileNotFoundError as error:
        raise BackupError(str(error)) from None
    source = open_layout(FileSystem(), settings.cache_dir, settings.block_size)
    directory = directory.absolute()
    for inner, outer in ((directory, settings.data_dir.absolute()), (settings.cache_dir.absolute(), directory)):
        if inner.is_relative_to(outer):
            raise BackupError(f"{directory} and the store's own directories lie in each other: choose another place")
    with holding(settings.cache_dir, HOLD_TIMEOUT_S):
        return _Run(settings, source, directory, link, report).run(with_master_key)


class _Run:
    def __init__(
        self, settings: Settings, source: Layout, directory: Path, link: bool, report: Callable[[int, int], None]
    ) -> None:
        self.settings = settings
        self.source = source
        self.directory = directory
        self.link = link
        self.report = report
        self.fs = FileSystem()
        self.wanted: set[str] = set()
        self.bytes = self.copied = self.copied_bytes = self.missing = 0

    def run(self, with_master_key: bool) -> BackedUp:
        note = self._earlier()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        taken_ns = time.time_ns()
        draft = self.directory / "metadata.db.new"
        url = self.settings.metadata
        if self.settings.sqlite_path is not None:
            for leftover in self.directory.glob(draft.name + "*"):
                leftover.unlink()
            _snapshot(self.settings.sqlite_path, draft)
            url = f"sqlite://{draft}"
        store, blobs = asyncio.run(_live_blobs(url, self.source.node_id))
        if note is not None and (note["store"], note["node"]) != (store, self.source.node_id.hex()):
            raise BackupError(f"{self.directory} holds a backup of another store or node: choose another directory")
        if note is None:
            note = {"store": store, "node": self.source.node_id.hex(), "complete": False}
            self._write(self.directory / NOTE, json.dumps(note).encode() + b"\n")
        self._copy_blocks(blobs)
        self._copy_file(Path(self.source.root) / "format.json", self.directory / "cache" / "format.json")
        if with_master_key:
            path = self.settings.master_key_path
            if self.settings.master_key or path is None:
                raise BackupError(
                    "the master key is not in a file, so it cannot be copied: leave --with-master-key out"
                )
            self._copy_file(path, self.directory / "master.key")
        if self.settings.sqlite_path is not None:
            self._replace_metadata(draft)
        removed = self._remove_unwanted()
        made = BackedUp(
            store,
            self.source.node_id.hex(),
            taken_ns,
            self.settings.sqlite_path is not None,
            len(self.wanted),
            self.bytes,
            self.copied,
            self.copied_bytes,
            removed,
            self.missing,
        )
        self._write(self.directory / NOTE, msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n")
        return made

    def _earlier(self) -> dict[str, Any] | None:
        """What the backup in the directory says of itself; None where there is none."""
        path = self.directory / NOTE
        if path.exists():
            note: dict[str, Any] = json.loads(path.read_text())
            wal = self.directory / "metadata.db-wal"
            if wal.exists() and wal.stat().st_size:
                raise BackupError(
                    f"a node has been started on {self.directory} itself: it is no backup any more, choose another one"
                )
            return note
        # Where the metadata is in FoundationDB, a copy of it in a file may be there already.
        taken = ["cache", "metadata.db"] if self.settings.sqlite_path is not None else ["cache"]
        if any((self.directory / name).exists() for name in taken):
            raise BackupError(f"{self.directory} holds something else than a backup: choose another directory")
        return None

    def _copy_blocks(self, blobs: list[tuple[bytes, int]]) -> None:
        target = Layout(str(self.directory / "cache"), self.source.node_id, self.source.block_size)
        for path in (*target.shards(), target.incoming):
            os.makedirs(path, mode=0o700, exist_ok=True)
        touched = set()
        for blob_id, size in blobs:
            for number in range(block_count(size, self.source.block_size)):
                goal = Path(target.home_block(blob_id, number))
                self.wanted.add(goal.name)
                copied = self._copy_block(blob_id, number, goal)
                if copied is None:
                    self.missing += 1
                    continue
                self.bytes += goal.stat().st_size
                if copied:
                    touched.add(goal.parent)
                self.report(len(self.wanted), self.bytes)
        for shard in touched:
            sync_directory(self.fs, str(shard))

    def _copy_block(self, blob_id: bytes, number: int, goal: Path) -> bool | None:
        """Whether it was copied just now; None where it cannot be found."""
        home = Path(self.source.home_block(blob_id, number))
        # Last in `home/` again: it may be on its way there from where it is looked for in between.
        for origin in (home, Path(self.source.incoming_block(blob_id, number)), home):
            try:
                size = origin.stat().st_size
                if goal.exists() and goal.stat().st_size == size:
                    return False  # a block never changes, and comes to have its name only when it is whole
                self._copy_file(origin, goal, link=self.link)
            except FileNotFoundError:
                continue
            self.copied += 1
            self.copied_bytes += size
            return True
        return None

    def _copy_file(self, origin: Path, goal: Path, *, link: bool = False) -> None:
        draft = goal.with_name(goal.name + ".new")
        draft.unlink(missing_ok=True)
        if link:
            os.link(origin, draft)
        else:
            with origin.open("rb") as reader, draft.open("xb") as writer:
                os.fchmod(writer.fileno(), os.fstat(reader.fileno()).st_mode & 0o777)
                shutil.copyfileobj(reader, writer, 1 << 20)
                writer.flush()
                os.fsync(writer.fileno())
        draft.rename(goal)

    def _write(self, goal: Path, data: bytes) -> None:
        draft = goal.with_name(goal.name + ".new")
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(goal)
        sync_directory(self.fs, str(goal.parent))

    def _replace_metadata(self, draft: Path) -> None:
        # Reading it has left it a log, of which nothing is in force once it is closed.
        for leftover in self.directory.glob(draft.name + "-*"):
            leftover.unlink()
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.rename(self.directory / "metadata.db")
        for leftover in self.directory.glob("metadata.db-*"):
            leftover.unlink()
        sync_directory(self.fs, str(self.directory))

    def _remove_unwanted(self) -> int:
        removed = 0
        for shard in (self.directory / "cache" / "home").iterdir():
            for path in shard.iterdir():
                draft = path.name.endswith(".new")
                if draft or (parse_block_name(path.name) is not None and path.name not in self.wanted):
                    path.unlink()
                    removed += not draft
        return removed


def _snapshot(path: Path, draft: Path) -> None:
    """Copy an SQLite database as of one moment, while others read and write it."""
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        with contextlib.closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)) as origin:
            origin.set_busy_timeout(5000)
            # One read transaction over all of it: with the write-ahead log, nobody waits for that.
            goal = apsw.Connection(str(draft))
            with contextlib.closing(goal), goal.backup("main", origin, "main") as copying:
                while not copying.done:
                    copying.step(-1)
    except apsw.Error as error:
        raise translate(error, str(path)) from error


async def _live_blobs(url: str, node_id: bytes) -> tuple[str, list[tuple[bytes, int]]]:
    """The id of the store, and id and size of every live blob that this node holds: what others hold, or an origin, is
    not here."""
    async with reached(url) as opened:
        engine = opened.background  # the store goes on meanwhile
        keys = Keyspace(engine.prefix)
        raw = await engine.read(_get, keys.cluster)
        if raw is None:
            raise BackupError("there is no store in the metadata database")
        cluster = cluster_codec.decode(raw)
        ctx = Context(keys, cluster.number, engine.now_ns, Home("", node_id), 0)
        found: list[tuple[bytes, int]] = []
        begin: bytes | None
        begin, end = subspace(keys.blobs)
        while begin is not None:
            some, begin = await engine.read(_held_some, ctx, begin, end)
            found += some
        return cluster.uuid.hex(), found


async def _get(tr: Transaction, key: bytes) -> bytes | None:
    return await tr.get(key)


async def _held_some(
    tr: Transaction, ctx: Context, begin: bytes, end: bytes
) -> tuple[list[tuple[bytes, int]], bytes | None]:
    """Some of the blobs that this node holds, and where to go on; None: that was all."""
    rows = await tr.get_range(begin, end, limit=_PAGE)
    held = []
    for key, value in rows:
        blob, blob_id = blob_codec.decode(value), unpack_bytes(key, len(ctx.keys.blobs))[0]
        located = await homes.locate(tr, ctx, blob_id) if blob.state == LIVE else None
        if located is not None and any(home.node == ctx.home.node for home in located.homes):
            held.append((blob_id, blob.size))
    return held, rows[-1][0] + b"\x00" if len(rows) == _PAGE else None
