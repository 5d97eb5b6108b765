"""From measurements to tables: medians and spread per store, and this store's ratio to each peer. Pure functions.

A ratio is of medians over the rounds of one run on one machine. A run with an error in it counts for nothing: the
table says how many there were instead.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.scenarios import SCENARIOS, Measurement

OURS = "tigrislike"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


@dataclass(frozen=True)
class Summary:
    """Medians over the rounds of one scenario on one store; `low` and `high` bound the rate and CPU seen."""

    runs: int
    errors: int
    unit: str
    rate: float
    rate_low: float
    rate_high: float
    p50_us: float
    p99_us: float
    cpu_us: float
    cpu_low: float
    cpu_high: float
    client_share: float  # of one core, while the run lasted


def summarise(measurements: Sequence[Measurement]) -> Summary:
    """All rounds of one scenario on one store; at least one."""
    valid = [m for m in measurements if m.valid]
    errors = sum(m.client.errors for m in measurements)
    if not valid:
        return Summary(0, errors, measurements[0].unit, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    rates, cpus = [m.rate for m in valid], [m.cpu_us for m in valid]
    return Summary(
        runs=len(valid),
        errors=errors,
        unit=valid[0].unit,
        rate=statistics.median(rates),
        rate_low=min(rates),
        rate_high=max(rates),
        p50_us=statistics.median(m.client.p50_us for m in valid),
        p99_us=statistics.median(m.client.p99_us for m in valid),
        cpu_us=statistics.median(cpus),
        cpu_low=min(cpus),
        cpu_high=max(cpus),
        client_share=statistics.median(m.client.client_cpu_s / m.client.elapsed_s for m in valid),
    )


def summaries(measurements: Sequence[Measurement]) -> dict[str, dict[str, Summary]]:
    """scenario -> store -> summary, in the order of `SCENARIOS` and of the stores' first appearance."""
    grouped: dict[str, dict[str, list[Measurement]]] = defaultdict(lambda: defaultdict(list))
    for m in measurements:
        grouped[m.scenario][m.store].append(m)
    return {
        scenario: {store: summarise(runs) for store, runs in grouped[scenario].items()}
        for scenario in SCENARIOS
        if scenario in grouped
    }


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _cell(s: Summary) -> str:
    """Rate (spread), p50/p99 in ms, CPU per operation in us or per GB in s (spread)."""
    if not s.runs:
        return f"{s.errors} errors"
    if s.unit == "GB":
        rate = f"{s.rate * 1e3:,.0f} MB/s ({s.rate_low * 1e3:,.0f}..{s.rate_high * 1e3:,.0f})"
        cpu = f"{s.cpu_us / 1e6:.2f} s/GB ({s.cpu_low / 1e6:.2f}..{s.cpu_high / 1e6:.2f})"
        text = f"{rate}; {cpu}"
    else:
        rate = f"{_number(s.rate)}/s ({_number(s.rate_low)}..{_number(s.rate_high)})"
        latency = f"{_number(s.p50_us / 1e3)}/{_number(s.p99_us / 1e3)} ms"
        text = f"{rate}; {latency}; {_number(s.cpu_us)} us ({_number(s.cpu_low)}..{_number(s.cpu_high)})"
    return text + (f"; {s.errors} errors" if s.errors else "")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def measured_table(results: dict[str, dict[str, Summary]], stores: Sequence[str]) -> str:
    """One row per scenario, one column per store: what was measured. The last column is the client's own CPU."""
    rows = []
    for scenario, by_store in results.items():
        shares = [s.client_share for s in by_store.values() if s.runs]
        client = f"{max(shares):.0%}" if shares else "-"
        rows.append([SCENARIOS[scenario][0], *(_cell(by_store[s]) if s in by_store else "-" for s in stores), client])
    return table(["scenario", *stores, "client, of a core (most)"], rows)


def ratio(ours: Summary, peer: Summary) -> tuple[float, float, float, float] | None:
    """This store over the peer: rate, p50, p99, server CPU per operation. None where either has no valid run."""
    if not ours.runs or not peer.runs or not all((peer.rate, peer.p50_us, peer.p99_us, peer.cpu_us)):
        return None
    return ours.rate / peer.rate, ours.p50_us / peer.p50_us, ours.p99_us / peer.p99_us, ours.cpu_us / peer.cpu_us


def ratio_table(results: dict[str, dict[str, Summary]], peers: Sequence[str]) -> str:
    """One row per scenario, one column per peer: rate, p50, p99, server CPU per operation, ours over the peer's."""
    rows = []
    for scenario, by_store in results.items():
        cells = []
        for peer in peers:
            found = ratio(by_store[OURS], by_store[peer]) if OURS in by_store and peer in by_store else None
            cells.append(f"{found[0]:.2f} / {found[1]:.2f} / {found[2]:.2f} / **{found[3]:.2f}**" if found else "-")
        rows.append([SCENARIOS[scenario][0], *cells])
    return table(["scenario", *peers], rows)


def markdown(
    results: dict[str, dict[str, Summary]], stores: Sequence[str], facts: Sequence[tuple[str, str]], scale: str
) -> str:
    """The results section of `bench/README.md`."""
    peers = [name for name in stores if name != OURS]
    parts = ["\n".join(f"- {name}: {value}" for name, value in facts), scale]
    if OURS in stores and peers:
        parts += [
            "Ratios, tigrislike over the peer: rate / p50 / p99 / **server CPU per operation**. "
            "For the rate more is better, for the rest less.",
            ratio_table(results, peers),
        ]
    parts += [
        "Measured (median of the rounds, least..most): operations per second; p50/p99 latency; server CPU per "
        "operation. For 1 GiB: MB/s; server CPU seconds per GB (10^9 bytes).",
        measured_table(results, stores),
    ]
    return "\n\n".join(parts) + "\n"


def write_between_markers(readme: Path, text: str) -> None:
    """Replaces what lies between the two markers. Raises ValueError where they are not there."""
    page = readme.read_text()
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} has no {BEGIN} and {END}")
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
