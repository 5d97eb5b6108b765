"""Tables say what was measured: medians of runs without an error, and ratios only where both sides have one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.loadgen import Result
from bench.report import BEGIN, END, markdown, ratio, summaries, summarise, write_between_markers
from bench.scenarios import Measurement, Scale, select

RESULT = Result(1000, 1000, 0, 0, 2.0, 1000, 2000, 4000, 9000, 1100, 0, 0, 1, 0.5)


def measurement(
    store: str, rate: float, cpu_us: float, *, errors: int = 0, scenario: str = "get-1k-c32"
) -> Measurement:
    client = replace(RESULT, errors=errors, ok=RESULT.ok - errors)
    return Measurement(store, scenario, 0, "op", rate * 2.0, 2.0, rate * 2.0 * cpu_us / 1e6, client)


def test_medians_and_spread() -> None:
    summary = summarise([measurement("a", rate, cpu) for rate, cpu in ((100, 50), (300, 70), (110, 20))])
    assert (summary.rate, summary.rate_low, summary.rate_high) == (110, 100, 300)
    assert summary.cpu_us == pytest.approx(50)
    assert (summary.cpu_low, summary.cpu_high) == (pytest.approx(20), pytest.approx(70))
    assert (summary.p50_us, summary.p99_us, summary.client_share) == (1000, 4000, 0.25)


def test_a_run_with_errors_counts_for_nothing_but_is_told() -> None:
    mixed = summarise([measurement("a", 100, 50), measurement("a", 999, 1, errors=3)])
    assert (mixed.runs, mixed.errors, mixed.rate) == (1, 3, 100)
    none = summarise([measurement("a", 999, 1, errors=2)])
    assert (none.runs, none.errors, none.rate) == (0, 2, 0)
    assert ratio(none, mixed) is None
    assert ratio(mixed, none) is None


def test_ratio_is_ours_over_the_peers() -> None:
    ours, peer = summarise([measurement("tigrislike", 300, 40)]), summarise([measurement("p", 100, 160)])
    assert ratio(ours, peer) == pytest.approx((3, 1, 1, 0.25))


def test_markdown_has_ratios_measurements_and_failures() -> None:
    runs = [measurement("tigrislike", 300, 40), measurement("p", 100, 160), measurement("q", 5, 5, errors=12)]
    text = markdown(summaries(runs), ["tigrislike", "p", "q"], [("processor", "two")], "1 round")
    assert "- processor: two" in text
    assert "| GET 1 KiB, 32 connections | 3.00 / 1.00 / 1.00 / **0.25** | - |" in text
    assert "300/s (300..300); 1.00/4.00 ms; 40.0 us (40.0..40.0)" in text
    assert "| 12 errors |" in text


def test_gigabytes_are_told_as_throughput() -> None:
    m = replace(measurement("p", 1, 1, scenario="get-1g"), unit="GB", amount=1.0, elapsed_s=0.5, server_cpu_s=0.75)
    text = markdown(summaries([m]), ["p"], [], "")
    assert "2,000 MB/s (2,000..2,000); 0.75 s/GB (0.75..0.75)" in text


def test_results_replace_what_lies_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"# Bench\n{BEGIN}\nold\n{END}\nafter\n")
    write_between_markers(page, "new")
    assert page.read_text() == f"# Bench\n{BEGIN}\n\nnew\n{END}\nafter\n"
    page.write_text("nothing to replace")
    with pytest.raises(ValueError, match="results:begin"):
        write_between_markers(page, "new")
    assert page.read_text() == "nothing to replace"


def test_scenarios_are_chosen_by_name_or_prefix() -> None:
    assert select("get1k,put-64k-c1,list") == ["get-1k-c1", "get-1k-c32", "put-64k-c1", "list"]
    assert select("")[0] == "put-1k-c1"
    with pytest.raises(ValueError, match="get2k"):
        select("get2k")


def test_disk_use_is_bounded_by_the_scale() -> None:
    scale = Scale(puts=(("1k", 10),), objects=(("1k", 5),), listed_keys=0, large_bytes=1000)
    assert scale.bytes_per_round() == 2 * 10 * 1024 + 1000
    assert scale.bytes_loaded() == 5 * 1024 + 1000
