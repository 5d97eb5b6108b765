"""`tigrislike admin check`: what it says of stores that are well, and of each thing that can be wrong."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import fresh_url
from tests.nodes import running_node
from tigrislike.admin import check
from tigrislike.admin.check import Check, all_checks, cluster_checks, worst
from tigrislike.admin.copy import COPYING
from tigrislike.config import Settings
from tigrislike.metadata.kv import open_engine
from tigrislike.metadata.kv.seal import CLOCK_FLOOR
from tigrislike.metadata.migrating import FORMAT
from tigrislike.node import Node

NAMES = {"engine", "latency", "clock", "space", "format", "master-key", "writes", "contents"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a store that exists and is well."""
    made = Settings(data_dir=tmp_path / "data", reserve_bytes=0)
    asyncio.run(_found(made))
    return made


async def _found(settings: Settings) -> None:
    async with Node.opened(settings) as node:
        await node.ensure_root()


async def _change(settings: Settings, change: Callable[[Any], None]) -> None:
    engine = await open_engine(settings.metadata)

    async def fn(tr: Any) -> None:
        change(tr)

    await engine.transact_past_seal(fn)
    await engine.close()


def checks(settings: Settings) -> list[Check]:
    return asyncio.run(all_checks(settings, samples=5))


def the(name: str, found: list[Check], **facts: object) -> Check:
    """The one check of this name with these facts."""
    (one,) = (one for one in found if one.name == name and facts.items() <= one.facts.items())
    return one


def rows(settings: Settings) -> list[tuple[bytes, bytes]]:
    async def every() -> list[tuple[bytes, bytes]]:
        engine = await open_engine(settings.metadata)
        found = await engine.read(lambda tr: tr.get_range(b"", b"\xff"))
        await engine.close()
        return found

    return asyncio.run(every())


def test_a_store_that_is_well(settings: Settings) -> None:
    before = rows(settings)
    found = checks(settings)
    assert worst(found) == "ok", found
    assert {one.name for one in found} == NAMES
    engine = the("engine", found)
    assert engine.facts["engine"] == "sqlite"
    assert engine.facts["file_bytes"] == (settings.data_dir / "metadata.db").stat().st_size
    latency = the("latency", found).facts
    for kind in ("read_version", "read", "commit"):
        assert 0 < latency[f"{kind}_p50_s"] <= latency[f"{kind}_p99_s"] < 60
    assert latency["samples"] == 5
    assert the("format", found, newest_known=FORMAT, format=FORMAT).verdict == "ok"
    assert the("space", found, place="cache directory").facts["free_bytes"] > 0
    assert abs(the("clock", found).facts["skew_s"]) < 1
    assert rows(settings) == before, "it leaves nothing behind"


def test_nothing_is_made_that_is_not_there(tmp_path: Path) -> None:
    found = checks(Settings(data_dir=tmp_path / "none"))
    assert the("engine", found).verdict == "failed"
    assert "there is no such file" in the("engine", found).detail
    assert the("space", found, place="data directory").verdict == "attention"
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database_is_no_store_yet(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    asyncio.run(_change(settings, lambda tr: tr.clear(b"nothing")))
    found = checks(settings)
    assert the("format", found, format=None).verdict == "attention"
    assert not (tmp_path / "master.key").exists()


def test_a_url_that_makes_no_sense(tmp_path: Path) -> None:
    found = checks(Settings(data_dir=tmp_path, metadata="mysql:///file"))
    assert the("engine", found).verdict == "failed"
    assert "names no engine" in the("engine", found).detail


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "metadata.db").write_bytes(b"not a database, but long enough to be taken for one" * 100)
    found = checks(Settings(data_dir=tmp_path))
    assert the("engine", found).verdict == "failed"
    assert "not a database" in the("engine", found).detail


def test_a_sealed_store_deserves_attention(settings: Settings) -> None:
    async def seal() -> None:
        engine = await open_engine(settings.metadata)
        await engine.seal("it moves")
        await engine.close()

    asyncio.run(seal())
    found = checks(settings)
    writes = the("writes", found)
    assert (writes.verdict, writes.facts["reason"]) == ("attention", "it moves")
    assert worst(found) == "attention"
    assert the("latency", found).verdict == "ok", "commits are measured all the same"


def test_an_unfinished_copy_cannot_be_used(settings: Settings) -> None:
    asyncio.run(_change(settings, lambda tr: tr.set(COPYING, b'{"source": "sqlite:///there"}')))
    writes = the("writes", checks(settings))
    assert writes.verdict == "failed"
    assert "unfinished copy of sqlite:///there" in writes.detail


def test_a_clock_behind_the_copied_store_fails(settings: Settings) -> None:
    floor = time.time_ns() + 600_000_000_000
    asyncio.run(_change(settings, lambda tr: tr.set(CLOCK_FLOOR, floor.to_bytes(8, "big"))))
    clock = the("clock", checks(settings), against="copied store")
    assert clock.verdict == "failed"
    assert 500 < clock.facts["skew_least_s"] < 600


def test_another_master_key_fails(settings: Settings) -> None:
    key = settings.data_dir / "master.key"
    key.write_text("ab" * 32)
    assert the("master-key", checks(settings)).verdict == "failed"
    key.unlink()
    missing = the("master-key", checks(settings))
    assert missing.verdict == "failed"
    assert "does not exist" in missing.detail
    assert not key.exists()


def test_newer_formats_fail(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "FORMAT", 0)
    assert the("format", checks(settings), newest_known=0).verdict == "failed"
    path = settings.cache_dir / "format.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "format": 2}))
    assert the("format", checks(settings), block_format=2).verdict == "failed"
    path.write_text("{")
    assert "cannot be read" in [one for one in checks(settings) if one.name == "format"][-1].detail
    path.write_text(json.dumps({**document, "block_size": 4096}))
    assert "block-size" in the("format", checks(settings), block_size_bytes=4096).detail


@pytest.mark.parametrize(
    ("free", "verdict"), [(10 << 30, "ok"), ((1 << 30) + 1, "attention"), (1 << 30, "failed"), (0, "failed")]
)
def test_free_space_is_held_against_the_reserve(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, free: int, verdict: str
) -> None:
    import shutil

    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(check.shutil, "disk_usage", lambda _: usage(100 << 30, 0, free))
    full = Settings(data_dir=settings.data_dir, reserve_bytes=1 << 30)
    assert the("space", checks(full), place="cache directory").verdict == verdict


def test_a_directory_that_cannot_be_asked_or_written_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(check.shutil, "disk_usage", refuse)
    monkeypatch.setattr(check.os, "fsync", refuse)
    found = checks(settings)
    assert the("space", found, place="cache directory").verdict == "failed"
    clock = the("clock", found)
    assert clock.verdict == "attention"
    assert "Permission denied" in clock.detail


def test_a_file_system_with_another_clock_deserves_attention(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns = time.time_ns
    monkeypatch.setattr(check.time, "time_ns", lambda: now_ns() + 90_000_000_000)
    clock = next(one for one in checks(settings) if one.facts.get("against") == "file system")
    assert clock.verdict == "attention"
    assert clock.facts["skew_s"] == pytest.approx(-90, abs=30), "a sync lies between stamp and clock"


def test_a_log_that_nobody_folds_deserves_attention(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LONG_WAL_BYTES", -1)
    assert the("engine", checks(settings)).verdict == "attention"


# -- What a cluster says of itself


STATUS: dict[str, Any] = {
    "client": {"database_status": {"available": True}, "coordinators": {"quorum_reachable": True}},
    "cluster": {
        "processes": {"a": {"version": "7.1.67"}, "b": {"version": "7.1.67"}},
        "configuration": {"redundancy_mode": "double", "storage_engine": "ssd-2"},
        "data": {
            "state": {"healthy": True, "name": "healthy"},
            "least_operating_space_bytes_storage_server": 20 << 30,
            "least_operating_space_bytes_log_server": 30 << 30,
            "total_disk_used_bytes": 5,
            "total_kv_size_bytes": 3,
        },
        "messages": [],
        "cluster_controller_timestamp": 1_700_000_000,
    },
}
AT_NS = 1_700_000_000_500_000_000


def status(**cluster: Any) -> list[Check]:
    return cluster_checks({**STATUS, "cluster": {**STATUS["cluster"], **cluster}}, AT_NS, AT_NS)


def test_a_cluster_that_is_well() -> None:
    found = status()
    assert worst(found) == "ok"
    assert the("cluster", found).facts["versions"] == ["7.1.67"]
    assert the("space", found).facts["free_bytes"] == 20 << 30
    clock = the("clock", found).facts
    assert (clock["skew_least_s"], clock["skew_most_s"]) == (-0.5, 0.5)


def test_a_cluster_that_is_not() -> None:
    degraded = {**STATUS["cluster"]["data"], "state": {"healthy": False, "name": "healing"}}
    assert the("cluster", status(data=degraded)).verdict == "attention"
    assert the("cluster", status(messages=[{"name": "unreachable_processes"}])).verdict == "attention"
    full = {**STATUS["cluster"]["data"], "least_operating_space_bytes_log_server": 1000}
    assert the("space", status(data=full)).verdict == "attention"
    gone = cluster_checks({"client": {"database_status": {"available": False}}}, AT_NS, AT_NS)
    assert worst(gone) == "failed"
    assert [one.name for one in gone] == ["cluster"]


@pytest.mark.parametrize(("stamp_s", "verdict"), [(-2, "attention"), (-1, "ok"), (1, "ok"), (2, "attention")])
def test_a_cluster_with_another_clock(stamp_s: int, verdict: str) -> None:
    clock = the("clock", status(cluster_controller_timestamp=1_700_000_000 + stamp_s))
    assert clock.verdict == verdict


# -- As a command


def run(*flags: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tigrislike", "admin", "check", "--samples=5", *flags]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIGRISLIKE_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, env=environment)


def test_the_command_beside_a_running_node(tmp_path: Path) -> None:
    with running_node(tmp_path / "data", f"--metadata=sqlite://{tmp_path}/data/metadata.db") as node:
        flags = (f"--data-dir={node.data_dir}", f"--metadata=sqlite://{tmp_path}/data/metadata.db")
        said = run(*flags)
        assert said.returncode == 0, said.stdout + said.stderr
        assert "SQLite 3." in said.stdout
        answer = json.loads(run(*flags, "--json").stdout)
        assert answer["verdict"] == "ok"
        assert {one["name"] for one in answer["checks"]} == NAMES


def test_the_exit_status_says_how_bad_it_is(settings: Settings) -> None:
    flag = f"--data-dir={settings.data_dir}"
    assert run(flag).returncode in (0, 3)  # 3 on a machine whose disk is nearly full
    asyncio.run(_change(settings, lambda tr: tr.set(b"\xfe/sealed", b'{"reason": "it moves"}')))
    attention = run(flag)
    assert attention.returncode == 3
    assert "it moves" in attention.stdout
    (settings.data_dir / "master.key").unlink()
    assert run(flag).returncode == 1


@pytest.mark.fdb
def test_a_cluster_is_asked_for_everything(tmp_path: Path) -> None:
    with fresh_url() as url:
        key = tmp_path / "master.key"
        key.write_text("ab" * 32)
        flags = (f"--data-dir={tmp_path}/data", f"--metadata={url}", f"--master-key-file={key}")
        with running_node(tmp_path / "data", *flags[1:]):
            said = run(*flags, "--json")
        found = [Check(**one) for one in json.loads(said.stdout)["checks"]]
        assert {one.name for one in found} == NAMES | {"cluster"}
        assert not [one for one in found if one.verdict == "failed"]
        assert the("engine", found).facts["client_version"]
        assert the("cluster", found).facts["versions"]
        assert the("space", found, place="cluster").facts["free_bytes"] > 0
        clock = the("clock", found, against="cluster controller").facts
        assert clock["skew_least_s"] < clock["skew_most_s"]


@pytest.mark.fdb
@pytest.mark.parametrize("accepts", [False, True], ids=["away", "silent"])
def test_an_unreachable_cluster_is_an_error_within_five_seconds(tmp_path: Path, accepts: bool) -> None:
    dead = tmp_path / "dead.cluster"
    key = tmp_path / "master.key"
    key.write_text("ab" * 32)
    began_s = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections come about, and nobody looks at them
        port = silent.getsockname()[1] if accepts else 1
        dead.write_text(f"nobody:nobody@127.0.0.1:{port}\n")
        said = run(f"--data-dir={tmp_path}", f"--metadata=fdb://{dead}", f"--master-key-file={key}", "--json")
    assert time.monotonic() - began_s < 8, "5 s, and what an interpreter takes to start on a busy machine"
    assert said.returncode == 1
    engine = the("engine", [Check(**one) for one in json.loads(said.stdout)["checks"]])
    assert "does not answer" in engine.detail


def test_a_missing_cluster_file_is_named(tmp_path: Path) -> None:
    key = tmp_path / "master.key"
    key.write_text("ab" * 32)
    said = run(f"--data-dir={tmp_path}", f"--metadata=fdb://{tmp_path}/none.cluster", f"--master-key-file={key}")
    assert said.returncode == 1
    assert "failed     engine" in said.stdout


def test_a_status_that_cannot_be_read_deserves_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> list[Check]:
        return [one async for one in check._cluster("fdb:///none")]

    def refuse(_url: str) -> bytes:
        raise RuntimeError("status timed out")

    monkeypatch.setattr(check, "read_status", refuse)
    (only,) = asyncio.run(main())
    assert (only.name, only.verdict) == ("cluster", "attention")
