"""The bench of uploads: what it makes of a trace and of its runs, and that a traced node writes one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import uploads
from bench.loadgen import LoadGenerator
from bench.scenarios import MIB
from bench.traced import Step
from bench.uploads import HashSpeed, Upload, chrome, common_ns, merged, overlap, report, trace
from tests.bench.compiled import compiled_or_skip


def step(what: str, start: int, stop: int) -> Step:
    return Step(what, start, stop, 10, 1, 2)


def test_steps_that_touch_are_one_interval() -> None:
    steps = [step("MD5", 5, 9), step("MD5", 0, 5), step("SHA256", 8, 12), step("write", 9, 99), step("MD5", 20, 21)]
    assert merged(steps, "MD5", "SHA256") == [(0, 12), (20, 21)]
    assert merged(steps, "sync") == []


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([(0, 10)], [(10, 20)], 0),
        ([(0, 10)], [(2, 3), (5, 7), (9, 30)], 4),
        ([(0, 4), (6, 10)], [(3, 7)], 2),
        ([], [(0, 1)], 0),
    ],
)
def test_common_time_is_what_both_were_at_work(
    a: list[tuple[int, int]], b: list[tuple[int, int]], expected: int
) -> None:
    assert common_ns(a, b) == common_ns(b, a) == expected


def test_one_after_the_other_shows_no_overlap_and_side_by_side_shows_all() -> None:
    serial = [step("receive", 0, 10), step("MD5", 10, 20), step("SHA256", 20, 30), step("write", 30, 40)]
    assert set(overlap(serial).values()) == {0.0}
    parallel = [step("receive", 0, 10), step("MD5", 0, 10), step("SHA256", 0, 10), step("write", 0, 10)]
    assert set(overlap(parallel).values()) == {1.0}


def test_what_the_bench_hashes_itself_counts_as_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    stat = "cpu  100 0 100 300 100 0 0 0 0 0\ncpu0 ...\n"
    monkeypatch.setattr(Path, "read_text", lambda path: stat)
    monkeypatch.setattr(uploads, "_TICKS_PER_S", 100)
    with HashSpeed() as speed:
        while not speed.samples["sha256"]:
            pass
        before = speed.spent_s()
        idle_s, all_s = uploads.processor_times(speed)
        after = speed.spent_s()
    assert 4 < 4 + before <= idle_s <= 4 + after
    assert all_s == 6


@pytest.mark.parametrize(("cpu_s", "idle", "rate", "met"), [(2.8, 0.04, 130, True), (2.9, 0.04, 130, False)])
def test_a_goal_that_is_missed_is_said_and_fails_the_run(cpu_s: float, idle: float, rate: float, met: bool) -> None:
    ours = Upload("tigrislike", "four", rate, cpu_s, 1.3, 0.6, idle)
    peer = Upload("rclone", "four", 100, 9, 1.3, 0.6, 0)
    text, all_met = report([ours, peer], {"of something": 0.5})
    assert all_met is met
    assert ("MISSED" in text) is not met
    assert f"{rate / 100:.2f} times the rate of the best peer" in text


def test_a_traced_upload_tells_of_every_byte_in_every_step(tmp_path: Path) -> None:
    size = 3 * MIB + 5
    steps = trace(tmp_path, LoadGenerator(tmp_path, compiled_or_skip()), size)
    sums = {what: sum(s.size for s in steps if s.what == what) for what in ("receive", "MD5", "SHA256")}
    assert sums == dict.fromkeys(sums, size)
    assert sum(s.size for s in steps if s.what == "write") > size
    assert len(json.loads(chrome(steps))["traceEvents"]) == len(steps)
