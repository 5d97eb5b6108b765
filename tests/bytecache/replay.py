"""Record what a program does to a directory tree; rebuild the tree as a power cut at any moment could leave it.

`Recorder` is a `FileSystem` that does everything for real and keeps a trace of data writes, syncs and directory
changes; `event` puts the program's own marks (such as "committed") between them. `rebuild` takes a prefix of the trace
and makes the tree that a crash right after it may leave, more cruelly than real filesystems do:

- bytes not followed by an fdatasync or fsync of their file are kept, lost, or torn at a 512-byte sector, each write by
  itself;
- a name made, removed or moved is durable once its directory was fsynced after; until then each change is kept or
  lost by itself, in any combination. A rename is one change: both of its names, or neither. The removal of a directory
  is not durable without the changes that emptied it: no filesystem removes a directory that has entries;
- syncing a file does not make its name durable.
"""

import os
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from tigrislike.bytecache.filesystem import FileSystem

Fate = Literal["lost", "kept", "random"]
"""What becomes of the effects that were not synced."""


class Write(NamedTuple):
    file: int
    offset: int
    data: bytes


class Truncate(NamedTuple):
    """Cut a file to `size` bytes, or lengthen it with zeros."""

    file: int
    size: int = 0


class SyncFile(NamedTuple):
    file: int


class SyncDirectory(NamedTuple):
    path: str


class Make(NamedTuple):
    """mkdir, or the creation of a file."""

    path: str
    file: int
    is_directory: bool


class Link(NamedTuple):
    source: str
    target: str


class Remove(NamedTuple):
    """unlink or rmdir."""

    path: str


class Rename(NamedTuple):
    source: str
    target: str


class Event(NamedTuple):
    name: str
    payload: object


Step = Write | Truncate | SyncFile | SyncDirectory | Make | Link | Remove | Rename | Event


class Recorder(FileSystem):
    """Records under one lock, so that the trace has the order in which things really happened.

    Paths in the trace are relative to `root`; what happens elsewhere is not recorded.
    """

    def __init__(self, root: Path) -> None:
        self.root = os.path.abspath(root)
        self.trace: list[Step] = []
        self._files: dict[int, int] = {}
        self._directories: dict[int, str] = {}
        self._inodes: dict[int, int] = {}
        self._lock = threading.RLock()
        self._next = 0

    def event(self, name: str, payload: object = None) -> None:
        with self._lock:
            self.trace.append(Event(name, payload))

    def open(self, path: str, flags: int, mode: int = 0o400) -> int:
        with self._lock:
            relative = self._relative(path)
            existed = os.path.lexists(path)
            fd = super().open(path, flags, mode)
            if relative is not None:
                if flags & os.O_DIRECTORY == os.O_DIRECTORY:
                    self._directories[fd] = path
                elif flags & os.O_ACCMODE != os.O_RDONLY:
                    inode = os.fstat(fd).st_ino
                    if not existed:
                        self._next += 1
                        self._inodes[inode] = self._next
                        self.trace.append(Make(relative, self._next, False))
                    elif flags & os.O_TRUNC:
                        self.trace.append(Truncate(self._inodes[inode]))
                    self._files[fd] = self._inodes[inode]
                elif (file := self._inodes.get(os.fstat(fd).st_ino)) is not None:
                    self._files[fd] = file  # one can sync what one may only read
            return fd

    def close(self, fd: int) -> None:
        with self._lock:
            self._files.pop(fd, None)
            self._directories.pop(fd, None)
            super().close(fd)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        with self._lock:
            written = super().pwrite(fd, data, offset)
            if fd in self._files:
                self.trace.append(Write(self._files[fd], offset, bytes(data[:written])))
            return written

    def fdatasync(self, fd: int) -> None:
        self._sync(fd, super().fdatasync)

    def fsync(self, fd: int) -> None:
        self._sync(fd, super().fsync)

    def mkdir(self, path: str) -> None:
        with self._lock:
            super().mkdir(path)
            if (relative := self._relative(path)) is not None:
                self._next += 1
                self.trace.append(Make(relative, self._next, True))

    def rmdir(self, path: str) -> None:
        self._change(super().rmdir, Remove, path)

    def unlink(self, path: str) -> None:
        self._change(super().unlink, Remove, path)

    def rename(self, source: str, target: str) -> None:
        with self._lock:
            inode = os.stat(source).st_ino
            self._change(super().rename, Rename, source, target)
            for fd in self._directories:
                if os.fstat(fd).st_ino == inode:
                    self._directories[fd] = target

    def link(self, source: str, target: str) -> None:
        self._change(super().link, Link, source, target)

    def _change(self, call: Callable[..., None], step: type[Remove | Rename | Link], *paths: str) -> None:
        with self._lock:
            call(*paths)
            relative = [self._relative(path) for path in paths]
            if None not in relative:
                self.trace.append(step(*relative))  # type: ignore[arg-type]

    def _sync(self, fd: int, call: Callable[[int], None]) -> None:
        with self._lock:
            call(fd)
            if fd in self._files:
                self.trace.append(SyncFile(self._files[fd]))
            elif fd in self._directories and (relative := self._relative(self._directories[fd])) is not None:
                self.trace.append(SyncDirectory(relative))

    def _relative(self, path: str) -> str | None:
        path = os.path.abspath(path)
        if path == self.root:
            return ""
        return path[len(self.root) + 1 :] if path.startswith(self.root + "/") else None


@dataclass
class _File:
    durable: bytearray = field(default_factory=bytearray)
    unsynced: list[Write | Truncate] = field(default_factory=list)

    def sync(self) -> None:
        for step in self.unsynced:
            _apply(self.durable, step)
        self.unsynced.clear()


@dataclass
class _Directory:
    now: dict[str, "_Node"] = field(default_factory=dict)
    durable: dict[str, "_Node"] = field(default_factory=dict)


_Node = _File | _Directory


class _Change(NamedTuple):
    """One change of names that is not yet durable: each (directory, name, node or None) of it, or none."""

    effects: tuple[tuple[_Directory, str, _Node | None], ...]
    removed: _Directory | None = None


class _Tree:
    def __init__(self, trace: Sequence[Step]) -> None:
        self.root = _Directory()
        self.pending: list[_Change] = []
        self._files: dict[int, _File] = {}
        for step in trace:
            self._do(step)

    def _do(self, step: Step) -> None:
        match step:
            case Write(file) | Truncate(file):
                self._files[file].unsynced.append(step)
            case SyncFile(file):
                self._files[file].sync()
            case SyncDirectory(path):
                self._sync(path)
            case Make(path, file, is_directory):
                node: _Node = _Directory() if is_directory else _File()
                if isinstance(node, _File):
                    self._files[file] = node
                self._set((path, node))
            case Link(source, target):
                self._set((target, self._find(source)))
            case Remove(path):
                node = self._find(path)
                self._set((path, None), removed=node if isinstance(node, _Directory) else None)
            case Rename(source, target):
                self._set((target, self._find(source)), (source, None))
            case Event():
                pass

    def _set(self, *changes: tuple[str, _Node | None], removed: _Directory | None = None) -> None:
        effects = []
        for path, node in changes:
            parent, _, name = path.rpartition("/")
            directory = self._find(parent)
            assert isinstance(directory, _Directory)
            _put(directory.now, name, node)
            effects.append((directory, name, node))
        self.pending.append(_Change(tuple(effects), removed))

    def _sync(self, path: str) -> None:
        directory = self._find(path, missing_ok=True)
        self.keep([any(touched is directory for touched, _, _ in change.effects) for change in self.pending])

    def keep(self, chosen: Sequence[bool]) -> None:
        """Make the chosen ones of the pending changes durable, and what each of them needs."""
        kept = list(chosen)
        for index in range(len(kept) - 1, -1, -1):
            removed = self.pending[index].removed
            if kept[index] and removed is not None:
                for earlier in range(index):
                    kept[earlier] |= any(touched is removed for touched, _, _ in self.pending[earlier].effects)
        for change, keep in zip(self.pending, kept, strict=True):
            if keep:
                for directory, name, node in change.effects:
                    _put(directory.durable, name, node)
        self.pending = [change for change, keep in zip(self.pending, kept, strict=True) if not keep]

    def _find(self, path: str, *, missing_ok: bool = False) -> _Node | None:
        node: _Node | None = self.root
        for name in path.split("/") if path else ():
            assert isinstance(node, _Directory)
            node = node.now.get(name)
            if node is None:
                assert missing_ok, f"the trace uses {path}, which it never made"
                return None
        return node


def rebuild(trace: Sequence[Step], target: Path, fate: Fate, rng: random.Random) -> None:
    """Make in `target` what a power cut right after `trace` may leave. Directories that are there already are used,
    so that a test which rebuilds often need not remove and make them all each time (`clear` leaves them).

    Args:
        trace: A prefix of a recorder's trace that began with an empty root.
        target: Where to build; holds no files.
        fate: Of what was not synced.
        rng: Decides when `fate` is "random".
    """
    tree = _Tree(trace)
    tree.keep([fate == "kept" or (fate == "random" and rng.random() < 0.5) for _ in tree.pending])
    made: dict[int, Path] = {}
    _materialise(tree.root, target, fate, rng, made)


def clear(target: Path) -> None:
    """Make `target` ready for another rebuild: everything goes but the fixed fan-out under `home/`."""
    for parent, directories, files in os.walk(target, topdown=False):
        for name in files:
            os.unlink(os.path.join(parent, name))
        for name in directories:
            if Path(parent) != target and Path(parent) != target / "home":
                os.rmdir(os.path.join(parent, name))


def _materialise(directory: _Directory, path: Path, fate: Fate, rng: random.Random, made: dict[int, Path]) -> None:
    for name, node in directory.durable.items():
        target = path / name
        if isinstance(node, _Directory):
            target.mkdir(exist_ok=True)
            _materialise(node, target, fate, rng, made)
        elif id(node) in made:
            os.link(made[id(node)], target)
        else:
            data = bytearray(node.durable)
            for step in node.unsynced:
                if fate == "kept":
                    _apply(data, step)
                elif fate == "random":
                    _apply_perhaps(data, step, rng)
            target.write_bytes(data)
            target.chmod(0o400)
            made[id(node)] = target


def _apply_perhaps(data: bytearray, step: Write | Truncate, rng: random.Random) -> None:
    luck = rng.random()
    if luck < 0.4:
        _apply(data, step)
    elif luck < 0.7 and isinstance(step, Write):
        sectors = rng.randrange(len(step.data) // 512 + 1)
        _apply(data, Write(step.file, step.offset, step.data[: 512 * sectors]))


def _apply(data: bytearray, step: Write | Truncate) -> None:
    if isinstance(step, Truncate):
        del data[step.size :]
        data.extend(bytes(step.size - len(data)))
        return
    if len(data) < step.offset:
        data.extend(bytes(step.offset - len(data)))
    data[step.offset : step.offset + len(step.data)] = step.data


def _put(entries: dict[str, _Node], name: str, node: _Node | None) -> None:
    if node is None:
        entries.pop(name, None)
    else:
        entries[name] = node
