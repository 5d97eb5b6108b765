"""`python -m bench`: this store and its peers, interleaved, one table of ratios.

Servers run side by side on loopback, one is asked at a time, and the order turns with every round. Each server is
stopped by its process id and its data removed, also when the run fails. The exit status is 1 when this store answered
anything wrongly, 2 when something could not be run.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench import machine, report
from bench.loadgen import HERE, LoadGenerator
from bench.processes import StoreFailed
from bench.scenarios import QUICK, SCENARIOS, Bench, Measurement, Scale, select
from bench.stores import PEERS, REPOSITORY, STORES, Store


def measure(
    names: Sequence[str], scenarios: list[str], scale: Scale, rounds: int, scratch: Path
) -> tuple[list[Store], list[Measurement]]:
    """Starts the stores, loads them, measures every scenario `rounds` times on each, round robin."""
    generator = LoadGenerator(scratch)
    measurements: list[Measurement] = []
    with contextlib.ExitStack() as stack:
        benches: list[Bench] = []
        for name in names:
            directory = scratch / name
            directory.mkdir()
            benches += [Bench(store, generator, scale) for store in stack.enter_context(STORES[name](directory))]
        for bench in benches:
            started = time.monotonic()
            bench.load([name for name in scenarios if SCENARIOS[name][1] or not bench.store.writes_only])
            print(f"loaded {bench.store.name} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        for turn in range(rounds):
            for scenario in scenarios:
                order = benches[turn % len(benches) :] + benches[: turn % len(benches)]
                for bench in order:
                    if bench.store.writes_only and not SCENARIOS[scenario][1]:
                        continue
                    if bench.store.process.poll() is not None:
                        tail = bench.store.log.read_text(errors="replace")[-1500:]
                        raise StoreFailed(f"{bench.store.name} ended: {tail}")
                    m = bench.measure(scenario, turn)
                    measurements.append(m)
                    print(f"round {turn + 1}/{rounds} {describe(m)}", file=sys.stderr, flush=True)
        return [bench.store for bench in benches], measurements


def describe(m: Measurement) -> str:
    """One measurement on one line, for the person who waits."""
    failed = f" ERRORS {m.client.errors}: {m.client.samples[:1]}" if m.client.errors else ""
    return (
        f"{m.scenario:12} {m.store:16} {m.rate:10.2f} {m.unit}/s  p50 {m.client.p50_us / 1e3:8.2f} ms  "
        f"p99 {m.client.p99_us / 1e3:8.2f} ms  server {m.cpu_us:11.0f} us/{m.unit}{failed}"
    )


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run: little data, one round")
    parser.add_argument("--only", default="", help=f"scenarios, by name or prefix: {', '.join(SCENARIOS)}")
    parser.add_argument("--peers", default=",".join(PEERS), help="which peers (default: %(default)s); empty for none")
    parser.add_argument("--without-ours", action="store_true", help="measure the peers alone")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default 5; 1 with --quick)")
    parser.add_argument("--seconds", type=float, help="length of one run (default 2; 0.3 with --quick)")
    parser.add_argument("--listed-keys", type=int, help="keys in the bucket that LIST reads (default 100000)")
    parser.add_argument("--directory", type=Path, help="where the stores keep their data (default: a temporary one)")
    parser.add_argument(
        "--results", type=Path, default=HERE / "results", help="where the JSON goes (default: %(default)s)"
    )
    parser.add_argument("--readme", action="store_true", help="write the tables into bench/README.md")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    try:
        return _run(options)
    except (StoreFailed, ValueError, OSError, http.client.HTTPException, subprocess.SubprocessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    if options.readme and options.quick:
        raise ValueError("the numbers of --quick say nothing: they are not for --readme")
    scenarios = select(options.only)
    peers = [name for name in options.peers.split(",") if name]
    if unknown := set(peers) - set(PEERS):
        raise ValueError(f"no such peer: {', '.join(sorted(unknown))}; there are: {', '.join(PEERS)}")
    names = peers if options.without_ours else [report.OURS, *peers]
    scale = QUICK if options.quick else Scale()
    scale = replace(
        scale, seconds=options.seconds or scale.seconds, listed_keys=options.listed_keys or scale.listed_keys
    )
    rounds = options.rounds or (1 if options.quick else 5)
    facts = {**machine.machine(), "date": time.strftime("%Y-%m-%d", time.gmtime())}
    with tempfile.TemporaryDirectory(prefix="tigrislike-bench-", dir=options.directory) as path:
        scratch = Path(path)
        facts["file system"] = machine.filesystem(scratch)
        # SeaweedFS is measured twice, and what it deletes stays in its volumes until a vacuum.
        needed = (len(names) + ("seaweedfs" in names)) * (scale.bytes_loaded() + rounds * scale.bytes_per_round())
        if (free := machine.free_bytes(scratch)) < needed:
            advice = "see --directory, --only, --rounds"
            raise ValueError(f"{scratch} has {free >> 30} GiB free; this run may need {(needed >> 30) + 1}: {advice}")
        stores, measurements = measure(names, scenarios, scale, rounds, scratch)
    results = report.summaries(measurements)
    numbers = machine.versions()
    described = [
        (" ".join([store.title, *numbers.get(store.name, "").split()]), "; ".join([store.durability, *store.notes]))
        for store in stores
    ]
    text = report.markdown(
        results,
        [store.name for store in stores],
        [*facts.items(), *described],
        f"{rounds} interleaved round{'s' if rounds > 1 else ''}, {scale.seconds:g} s a run"
        f", LIST over {scale.listed_keys:,} keys"
        + (", a smoke run: these numbers say nothing." if options.quick else "."),
    )
    print(text)
    options.results.mkdir(parents=True, exist_ok=True)
    saved = options.results / time.strftime("%Y%m%dT%H%M%SZ.json", time.gmtime())
    record = {
        "facts": facts,
        "versions": numbers,
        "stores": [{"name": s.name, "title": s.title, "durability": s.durability, "notes": s.notes} for s in stores],
        "measurements": [m.record() for m in measurements],
    }
    saved.write_text(json.dumps(record, indent=1))
    print(f"saved {saved.relative_to(REPOSITORY) if saved.is_relative_to(REPOSITORY) else saved}", file=sys.stderr)
    if options.readme:
        report.write_between_markers(HERE / "README.md", text)
    return int(any(m.store == report.OURS and not m.valid for m in measurements))
