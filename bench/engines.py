"""`python -m bench.engines --cluster FILE`: the same store on FoundationDB and on SQLite, in one run.

Both run side by side with the defaults a user gets, one is asked at a time, and the order turns with every round. GET
and PUT of 1 KiB at 1, 32 and 128 connections, HEAD, and LIST of 1,000 keys. Server CPU is the store's own processes';
what the cluster's processes on this machine spent is told apart, since it is theirs to scale. What the run writes into
the cluster lies under a prefix of its own and is removed at the end.
"""

from __future__ import annotations

import argparse
import base64
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from bench.loadgen import LoadGenerator
from bench.processes import StoreFailed, cpu_s, end_in_order
from bench.scenarios import Bench, Measurement, Scale
from bench.stores import Store, tigrislike
from tigrislike.metadata.kv.fdb_client import load_binding

CONNECTIONS = (1, 32, 128)
SCENARIOS = {
    **{f"get-1k-c{n}": f"GET 1 KiB, {n} connection{'s' * (n > 1)}" for n in CONNECTIONS},
    **{f"put-1k-c{n}": f"PUT 1 KiB, {n} connection{'s' * (n > 1)}" for n in CONNECTIONS},
    "head-c32": "HEAD, 32 connections",
    "list": "LIST 1,000 keys, 1 connection",
}


@contextmanager
def cleared_prefix(cluster_file: Path) -> Iterator[str]:
    """A prefix in the cluster that nobody uses; what lies under it is removed at the end."""
    prefix = f"bench-{secrets.token_hex(8)}"
    database = load_binding().open(str(cluster_file))
    try:
        yield prefix
    finally:
        del database[prefix.encode() : prefix.encode() + b"\xff\xff"]


def listeners(cluster_file: Path) -> list[int]:
    """Process ids, on this machine, that listen on a port of the cluster file: the coordinators, often all there is."""
    text = next(line for line in cluster_file.read_text().splitlines() if line and not line.startswith("#"))
    ports = {int(address.split(":")[1]) for address in text.split("@")[1].split(",")}
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) in ports:
                inodes.add(f"socket:[{fields[9]}]")
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(descriptor) in inodes for descriptor in (process / "fd").iterdir()):
                found.append(int(process.name))
        except OSError:  # it ended, or is somebody else's
            continue
    return found


def measure(
    benches: Sequence[Bench], rounds: int, database: Sequence[int]
) -> dict[str, dict[str, list[tuple[Measurement, float]]]]:
    """scenario -> store -> per round: the measurement, and the cluster's CPU microseconds per operation."""
    runs: dict[str, dict[str, list[tuple[Measurement, float]]]] = {}
    for turn in range(rounds):
        for scenario in SCENARIOS:
            for bench in [*benches[turn % len(benches) :], *benches[: turn % len(benches)]]:
                before = sum(cpu_s(pid) for pid in database)
                m = bench.measure(scenario, turn)
                cluster_us = (sum(cpu_s(pid) for pid in database) - before) / max(m.amount, 1) * 1e6
                if not m.valid:
                    raise StoreFailed(f"{bench.store.name}: {scenario}: {m.client.errors} errors {m.client.samples}")
                runs.setdefault(scenario, {}).setdefault(bench.store.name, []).append((m, cluster_us))
                print(
                    f"round {turn + 1}/{rounds} {scenario:12} {bench.store.name:8} {m.rate:9.0f}/s "
                    f"p50 {m.client.p50_us / 1e3:6.2f} ms  {m.cpu_us:7.0f} us",
                    file=sys.stderr,
                    flush=True,
                )
    return runs


def table(runs: dict[str, dict[str, list[tuple[Measurement, float]]]]) -> str:
    """Markdown: medians over the rounds, and FoundationDB's ratio to SQLite."""
    lines = [
        "| scenario | SQLite: rate; p50/p99; server CPU | FoundationDB: the same; the cluster's CPU "
        "| ratio: rate / p50 / p99 / server CPU |",
        "|---|---|---|---|",
    ]
    for scenario, stores in runs.items():
        cells, figures = [], []
        for name in ("sqlite", "fdb"):
            measured = [m for m, _ in stores[name]]
            rate = statistics.median(m.rate for m in measured)
            p50 = statistics.median(m.client.p50_us for m in measured) / 1e3
            p99 = statistics.median(m.client.p99_us for m in measured) / 1e3
            cpu = statistics.median(m.cpu_us for m in measured)
            figures.append((rate, p50, p99, cpu))
            cell = f"{rate:,.0f}/s; {p50:.2f}/{p99:.2f} ms; {cpu:,.0f} us"
            if name == "fdb":
                cell += f"; {statistics.median(us for _, us in stores[name]):,.0f} us"
            cells.append(cell)
        ratios = " / ".join(f"{theirs / ours:.2f}" for ours, theirs in zip(*figures, strict=True))
        lines.append(f"| {SCENARIOS[scenario]} | {cells[0]} | {cells[1]} | {ratios} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.engines", description=__doc__)
    parser.add_argument("--cluster", type=Path, required=True, help="cluster file of a FoundationDB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one run (default %(default)s)")
    parser.add_argument("--listed-keys", type=int, default=20_000)
    parser.add_argument("--directory", type=Path, help="where the stores keep their data (default: a temporary one)")
    try:
        return _run(parser.parse_args(argv))
    except (StoreFailed, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    scale = replace(Scale(), seconds=options.seconds, listed_keys=options.listed_keys)
    with ExitStack() as stack:
        scratch = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="tigrislike-engines-", dir=options.directory))
        )
        prefix = stack.enter_context(cleared_prefix(options.cluster))
        generator = LoadGenerator(scratch)
        on_fdb = f"fdb://{quote(str(options.cluster.resolve()))}?prefix={prefix}"
        key = scratch / "master.key"
        key.touch(mode=0o600)
        key.write_text(base64.b64encode(secrets.token_bytes(32)).decode())
        benches = []
        for name, arguments in (("sqlite", ()), ("fdb", ("--metadata", on_fdb, "--master-key-file", str(key)))):
            directory = scratch / name
            directory.mkdir()
            stores: list[Store] = stack.enter_context(tigrislike(directory, arguments=arguments))
            benches.append(Bench(replace(stores[0], name=name), generator, scale))
        for bench in benches:
            started = time.monotonic()
            bench.load(["get-1k", "list"])
            print(f"loaded {bench.store.name} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        print(table(measure(benches, options.rounds, listeners(options.cluster))))
    return 0


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())
