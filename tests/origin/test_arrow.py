"""Filesystems of Arrow: what the contract does not reach."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

from tests.server.wire import run
from tigrislike.origin import (
    Attributes,
    OriginBroken,
    OriginChanged,
    OriginRefused,
    OriginUnavailable,
    Timeouts,
    arrow,
)
from tigrislike.origin.arrow import ArrowOrigin


@asynccontextmanager
async def opened(filesystem: Any, root: str, timeouts: Timeouts | None = None) -> AsyncIterator[ArrowOrigin]:
    origin = ArrowOrigin(filesystem, root, "here", timeouts or Timeouts())
    try:
        yield origin
    finally:
        await origin.close()


def test_a_file_that_changes_while_it_is_read_is_not_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "_PIECE", 4)
    (tmp_path / "a").write_bytes(b"0123456789")

    async def main() -> None:
        async with opened(pyarrow.fs.LocalFileSystem(), str(tmp_path)) as origin:
            found = await origin.head("a")
            reading = origin.read("a", 0, 10, size=10, etag=found.etag)
            assert bytes(await anext(reading)) == b"0123"
            (tmp_path / "a").write_bytes(b"9876543210")
            os.utime(tmp_path / "a", (1, 1))
            with pytest.raises(OriginChanged):
                await anext(reading)

    run(main())


def test_what_is_no_name_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    async def main() -> None:
        async with opened(pyarrow.fs.LocalFileSystem(), str(tmp_path)) as origin:
            for key in ("file/below", "x" * 300, ".tigrislike-1"):
                with pytest.raises(OriginRefused):
                    await origin.put(key, pieces(), 1, Attributes())
            await origin.delete("folder")
            assert (tmp_path / "folder").is_dir()
            assert [entry.key for entry in (await origin.list("")).entries] == ["file"]

    run(main())


class Odd(pyarrow.fs.FileSystemHandler):
    """A filesystem with one file of ten bytes, told and given as the test wants."""

    def __init__(self, mtime_ns: int | None = 1_795_949_632_000_000_000, data: bytes = b"0123456789") -> None:
        self.mtime_ns = mtime_ns
        self.data = data
        self.hold = threading.Event()
        self.hold.set()

    def get_file_info(self, paths: list[str]) -> list[Any]:
        self.hold.wait()
        mtime_ns = {} if self.mtime_ns is None else {"mtime_ns": self.mtime_ns}
        return [pyarrow.fs.FileInfo(path, pyarrow.fs.FileType.File, size=10, **mtime_ns) for path in paths]

    def open_input_file(self, path: str) -> Any:
        return pyarrow.PythonFile(pyarrow.BufferReader(self.data), mode="r")

    def normalize_path(self, path: str) -> str:
        return path

    def get_type_name(self) -> str:
        return "odd"

    def _unused(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError

    get_file_info_selector = create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _unused
    delete_file = move = copy_file = open_input_stream = open_output_stream = open_append_stream = _unused


def odd(handler: Odd) -> Any:
    return pyarrow.fs.PyFileSystem(handler)


def test_a_filesystem_that_tells_no_times_is_refused() -> None:
    async def main() -> None:
        async with opened(odd(Odd(mtime_ns=None)), "/") as origin:
            with pytest.raises(OriginRefused, match="no version"):
                await origin.head("a")

    run(main())


def test_fewer_bytes_than_the_file_has_are_noticed() -> None:
    async def main() -> None:
        async with opened(odd(Odd(data=b"01234")), "/") as origin:
            found = await origin.head("a")
            with pytest.raises(OriginBroken, match="5 bytes"):
                await anext(origin.read("a", 0, 10, size=10, etag=found.etag))

    run(main())


def test_a_filesystem_that_hangs_is_unavailable() -> None:
    handler = Odd()

    async def main() -> None:
        async with opened(odd(handler), "/", Timeouts(read_s=0.05)) as origin:
            handler.hold.clear()
            with pytest.raises(OriginUnavailable, match="does not answer"):
                await origin.head("a")
            handler.hold.set()

    run(main())


def test_what_a_filesystem_cannot_do_is_refused() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    async def main() -> None:
        async with opened(odd(Odd()), "/") as origin:
            with pytest.raises(OriginRefused):
                await origin.put("a", pieces(), 1, Attributes())

    run(main())
