"""Filesystems of Arrow as origins: HDFS, ViewFS, and whatever fsspec has, through `pyarrow.fs`.

They know files and folders and nothing else, so that a key has a name here only where a path has it, and nothing is
kept but bytes. A version is told by size and time of change, before each piece that is given out; a filesystem that
tells no times is refused. A file appears under its name only when it is whole, by a rename.

Calls block, and so run in threads of this origin's own: what hangs there keeps nobody else waiting. These filesystems
make their connections themselves, past the gate of `egress`, and are for operators only.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pyarrow import ArrowException
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from . import trees
from .egress import Egress
from .errors import EgressRefused, OriginBroken, OriginChanged, OriginMissing, OriginRefused, OriginUnavailable
from .location import Location
from .protocol import Attributes, Buffer, OriginObject, OriginPage, OriginSummary, Written
from .transport import Timeouts

T = TypeVar("T")

THREADS = 16
_PIECE = 4 << 20
_SHOWN = 300
# Of a file whose name is too long, or where a folder is, or in a folder that is a file.
_NO_NAME = {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST}
_UNFINISHED = ".tigrislike-"  # a file that is being written; no key has a segment that begins so


def open_arrow(location: Location, egress: Egress, timeouts: Timeouts) -> ArrowOrigin:
    """``arrow+URL``, of which Arrow makes the filesystem: ``arrow+hdfs://host:port/path``, ``arrow+file:///path``,
    ``arrow+fsspec+memory://path`` with fsspec installed."""
    if not egress.allow_private:
        raise EgressRefused("filesystems make connections of their own: the operator has to allow private origins")
    url = location.url.partition("+")[2]
    try:
        filesystem, path = FileSystem.from_uri(url)
    except (ArrowException, OSError, ValueError, ImportError) as error:
        raise OriginRefused(f"Arrow makes no filesystem of {location!r}: {_first_line(error)}") from error
    return ArrowOrigin(filesystem, path, f"{url.partition('://')[0]}:{path}", timeouts)


class ArrowOrigin:
    """A folder of a filesystem.

    Args:
        root: the folder's path there.
    """

    loses = frozenset(
        {
            "content_type",
            "headers",
            "metadata",
            "tags",
            "storage_class",
            "checksum",
            "md5",
        }
    )

    def __init__(self, filesystem: FileSystem, root: str, name: str, timeouts: Timeouts) -> None:
        self.name = name
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self._timeouts = timeouts
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="origin")

    async def head(self, key: str) -> OriginObject:
        told = await self._info(key)
        return OriginObject(key, told.size, told.etag, told.modified_ns, Attributes())

    async def read(self, key: str, start: int, stop: int, *, size: int, etag: str) -> AsyncIterator[Buffer]:
        path = self._path(key)
        await self._check_version(key, size, etag)
        file = await self._run(lambda: self._filesystem.open_input_file(path))
        try:
            for at in range(start, stop, _PIECE):
                length = min(_PIECE, stop - at)
                piece = memoryview(await self._run(lambda at=at, length=length: file.read_at(length, at)))  # type: ignore[misc]
                # What was read before the file changed is a piece of what it was.
                await self._check_version(key, size, etag)
                if len(piece) != length:
                    raise OriginBroken(f"{self.name} gives {len(piece)} bytes of {key!r} at {at}, not {length}")
                yield piece
        finally:
            # The thread that closes it needs nobody to wait.
            self._threads.submit(file.close)

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> OriginPage:
        return await trees.page(self._children, prefix, after, delimiter, limit)

    async def put(self, key: str, pieces: AsyncIterator[Buffer], size: int, attributes: Attributes) -> Written:
        path = self._path(key)
        folder = path.rpartition("/")[0]
        unfinished = f"{folder}/{_UNFINISHED}{uuid.uuid4().hex}"
        await self._run(lambda: self._filesystem.create_dir(folder, recursive=True))
        file = await self._run(lambda: self._filesystem.open_output_stream(unfinished))
        try:
            left = size
            async for piece in pieces:
                left -= len(piece)
                if left < 0:
                    raise ValueError("more bytes are given than were announced")
                await self._run(lambda piece=piece: file.write(piece))  # type: ignore[misc]
            if left:
                raise ValueError(f"{left} bytes fewer are given than were announced")
            await self._run(file.close)
            await self._run(lambda: self._filesystem.move(unfinished, path))
        except BaseException:
            self._threads.submit(self._discard, file, unfinished)
            raise
        return Written((await self._info(key)).etag, False)

    async def delete(self, key: str) -> None:
        path = self._path(key)
        with contextlib.suppress(OriginMissing):
            await self._info(key)  # a folder is no object, and stays
            await self._run(lambda: self._filesystem.delete_file(path))

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _info(self, key: str) -> OriginSummary:
        path = self._path(key)
        (info,) = await self._run(lambda: self._filesystem.get_file_info([path]))
        if info.type != FileType.File:
            raise OriginMissing(f"{self.name} has no {key!r}")
        return self._summary(key, info)

    async def _check_version(self, key: str, size: int, etag: str) -> None:
        told = await self._info(key)
        if (told.etag, told.size) != (etag, size):
            raise OriginChanged(f"{self.name} has another version of {key!r}")

    async def _children(self, folder: str) -> tuple[Sequence[OriginSummary], Sequence[str]]:
        if folder.startswith("/") or "//" in folder:
            return (), ()  # no file has such a name here
        selector = FileSelector(f"{self._root}/{folder}".rstrip("/") or "/", allow_not_found=True)
        found: list[FileInfo] = await self._run(lambda: self._filesystem.get_file_info(selector))
        files = [info for info in found if info.type == FileType.File and not info.base_name.startswith(_UNFINISHED)]
        folders = [f"{folder}{info.base_name}/" for info in found if info.type == FileType.Directory]
        return [self._summary(folder + info.base_name, info) for info in files], folders

    def _summary(self, key: str, info: FileInfo) -> OriginSummary:
        if info.mtime_ns is None or info.size is None:
            raise OriginRefused(f"{self.name} does not tell when {key!r} changed, and so no version of it")
        return OriginSummary(key, info.size, f"{info.mtime_ns:x}-{info.size:x}", info.mtime_ns)

    def _path(self, key: str) -> str:
        if any(segment in ("", ".", "..") or segment.startswith(_UNFINISHED) for segment in key.split("/")):
            raise OriginRefused(f"{self.name} has no name for {key[:_SHOWN]!r}")
        return f"{self._root}/{key}"

    def _discard(self, file: Any, path: str) -> None:
        with contextlib.suppress(ArrowException, OSError):
            file.close()
        with contextlib.suppress(ArrowException, OSError):
            self._filesystem.delete_file(path)

    async def _run(self, call: Callable[[], T]) -> T:
        """What a call gives, which runs in a thread. One that hangs is left alone there."""
        with self._translated():
            async with asyncio.timeout(self._timeouts.read_s):
                return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise OriginMissing(f"{self.name}: {_first_line(error)}") from error
        except (PermissionError, NotImplementedError, ValueError) as error:
            raise OriginRefused(f"{self.name}: {_first_line(error)}") from error
        except TimeoutError as error:
            raise OriginUnavailable(f"{self.name} does not answer within {self._timeouts.read_s:g} s") from error
        except (ArrowException, OSError, RuntimeError) as error:
            if getattr(error, "errno", None) in _NO_NAME:
                raise OriginRefused(f"{self.name}: {_first_line(error)}") from error
            raise OriginUnavailable(f"{self.name}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:_SHOWN]
