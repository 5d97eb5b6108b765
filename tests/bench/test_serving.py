"""The measurement of serving runs end to end at a small scale, and drops what it says it drops."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import serving
from bench.processes import StoreFailed
from tests.bench.compiled import compiled_or_skip


def test_only_files_with_object_bytes_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("block.0", 2 << 20), ("metadata.sqlite", 2 << 20), ("7.ldb", 2 << 20), ("small", 10)):
        (tmp_path / name).write_bytes(bytes(size))
    advised = []

    def advise(fd: int, offset: int, length: int, advice: int) -> None:
        advised.append((os.readlink(f"/proc/self/fd/{fd}"), advice))

    def not_cached(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(os, "preadv", not_cached)
    serving.drop_from_page_cache(tmp_path)
    assert advised == [(str(tmp_path / "block.0"), os.POSIX_FADV_DONTNEED)]


def test_pages_that_stay_are_no_cold_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "block.0").write_bytes(bytes(2 << 20))
    monkeypatch.setattr(os, "preadv", lambda *_: 1)
    monkeypatch.setattr("bench.serving.time.sleep", lambda _: None)
    with pytest.raises(StoreFailed, match="2 of 2 pages"):
        serving.drop_from_page_cache(tmp_path)


def test_an_unknown_server_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serving.main(["--stores", "nginx,apache"])
    assert "takes tigrislike and any of" in capsys.readouterr().err


@pytest.mark.slow
def test_serving_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiled_or_skip()
    # A fraction of a second on a shared machine says nothing about speed: here only that every answer was right.
    arguments = ["--stores", "tigrislike,tigrislike-always", "--rounds", "1", "--seconds", "0.3", "--large-mib", "64"]
    assert serving.main([*arguments, "--directory", str(tmp_path), "--json", str(tmp_path / "all.json")]) in (0, 1)
    printed = capsys.readouterr()
    assert printed.err == ""
    head, _, *rows = printed.out[printed.out.index("| GET 1 GiB |") :].splitlines()[:4]
    assert head == "| GET 1 GiB | tigrislike | tigrislike-always |"
    assert [row.split(" | ")[0] for row in rows] == ["| one connection", "| 8 MiB ranges, 8 connections"]
    assert all(row.count(" s/GiB") == 2 for row in rows)
    assert all(f"| {name} | " in printed.out for name in serving.PASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["all.json"]
