"""`python -m bench.serving`: what is served from the page cache and from the disk, beside nginx and SeaweedFS.

First, throughput and server CPU: one 1 GiB object on one connection, and in 8 MiB ranges on eight. nginx serves the
same bytes as a plain file with `sendfile on`, and neither checks a signature nor looks anything up: the floor. This
store runs twice, as it comes and with `--verify always`, which checks bytes at every read and not once.

Second, the first byte: 8 MiB ranges on 32 connections, warm and with the store's files dropped from the page cache
before each pass, while small GETs come beside them at a fixed rate, timed from when they were due. The ranges come as
fast as they are answered ("full"), and at a rate that every store can keep ("paced"), since two busy clients and two
busy workers on two cores measure the scheduler as much as the store.

Servers run side by side, one is asked at a time, in an order that turns; the tables hold medians of the rounds. The
exit status is 1 when anything was answered wrongly or a goal of the last table is missed, 2 when something could not be
run. nginx comes from the system (`apt-get install nginx-light`); `--stores` leaves it out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import processes
from bench.loadgen import Check, LoadGenerator, Request, Result, Run, content
from bench.machine import machine
from bench.processes import StoreFailed, end_in_order
from bench.scenarios import CLIENT_HEADERS, GIB, KIB, MIB, RANGE_BYTES, Bench, Measurement, Scale
from bench.stores import Store, seaweedfs, tigrislike

OURS, ALWAYS = "tigrislike", "tigrislike-always"
THROUGHPUT = ("get-1g", "ranges")
TITLES = {"get-1g": "one connection", "ranges": "8 MiB ranges, 8 connections"}
RANGE_CONNECTIONS = 32
SMALL_CONNECTIONS, SMALL_RATE = 4, 400.0
PACED_RATE = 40.0  # ranges a second: 335 MB/s
# The goals of the last table.
NGINX_RATE, NGINX_CPU, SEAWEEDFS_CPU, FIRST_BYTE, SMALL_P99 = 0.9, 1.1, 0.5, 1.0, 2.0

_NGINX = """\
daemon off;
worker_processes {workers};
{user}
pid {directory}/pid;
error_log stderr;
events {{ }}
http {{
    access_log off;
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 100000000;
    client_body_temp_path {directory}/tmp;
    proxy_temp_path {directory}/tmp;
    fastcgi_temp_path {directory}/tmp;
    uwsgi_temp_path {directory}/tmp;
    scgi_temp_path {directory}/tmp;
    server {{ listen 127.0.0.1:{port}; root {directory}/data; }}
}}
"""


@contextlib.contextmanager
def nginx(directory: Path) -> Iterator[list[Store]]:
    """nginx as Debian configures it, on files; it takes every signature."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise StoreFailed("nginx is not installed: apt-get install nginx-light, or --stores without it")
    (port,) = processes.free_ports(1)
    (directory / "data" / "bench" / "1k").mkdir(parents=True)
    configuration = directory / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    configuration.write_text(_NGINX.format(workers=os.cpu_count(), user=user, directory=directory, port=port))
    log = directory / "log"
    process = processes.start([program, "-p", str(directory), "-c", str(configuration)], log, cwd=directory)
    try:
        processes.wait_for_ports(process, [port], log)
        yield [Store(name="nginx", title="nginx", durability="", port=port, process=process, log=log)]
    finally:
        processes.stop(process)


@contextlib.contextmanager
def always(directory: Path) -> Iterator[list[Store]]:
    """This store, verifying every read."""
    with tigrislike(directory, arguments=("--verify", "always")) as (store,):
        yield [replace(store, name=ALWAYS, title="tigrislike --verify always")]


STORES: dict[str, Callable[[Path], AbstractContextManager[list[Store]]]] = {
    OURS: tigrislike,
    ALWAYS: always,
    "nginx": nginx,
    "seaweedfs": seaweedfs,
}


def drop_from_page_cache(directory: Path) -> None:
    """Write back and drop the pages of a store's files with object bytes; what it knows of them stays in memory.

    Raises:
        StoreFailed: More than a twentieth of them stays there.
    """
    for _ in range(20):
        looked, found = _dropped(directory)
        if found <= looked // 20:
            return
        time.sleep(0.1)  # what is on its way through a socket, or to the disk, cannot be dropped yet
    raise StoreFailed(f"{found} of {looked} pages of {directory} looked at are still in memory")


def _dropped(directory: Path) -> tuple[int, int]:
    looked = found = 0
    for path in directory.rglob("*"):
        if path.suffix in (".idx", ".ldb", ".log") or "sqlite" in path.name:
            continue  # SeaweedFS's and our metadata
        try:
            if not path.is_file() or path.stat().st_size < MIB:
                continue
            fd = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue  # it has been removed meanwhile
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for offset in range(0, os.fstat(fd).st_size, MIB):
                looked += 1
                with contextlib.suppress(BlockingIOError):
                    found += bool(os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT))
        finally:
            os.close(fd)
    return looked, found


@dataclass(frozen=True)
class FirstByte:
    """One pass of ranges with small GETs beside them. Microseconds; p99 of 128 ranges or more."""

    first_p50_us: float
    first_p99_us: float
    ranges_per_s: float
    small_p99_us: float
    errors: int


@dataclass
class Serving:
    """One server being measured, with the objects that it serves already there."""

    bench: Bench
    directory: Path
    throughput: list[Measurement] = field(default_factory=list)
    alone: list[Result] = field(default_factory=list)  # small GETs with nothing beside them
    passes: dict[str, list[FirstByte]] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        return self.bench.store

    @property
    def errors(self) -> int:
        results = [m.client for m in self.throughput] + self.alone
        return sum(r.errors for r in results) + sum(p.errors for passes in self.passes.values() for p in passes)

    def fill(self) -> None:
        """Put the objects, and read each once, so that what is checked on first sight has been."""
        if self.store.name == "nginx":
            root = self.directory / "data" / self.store.bucket
            (root / "large").write_bytes(content(0, self.bench.scale.large_bytes))
            for i in range(dict(self.bench.scale.objects)["1k"]):
                (root / "1k" / f"{i:05d}").write_bytes(content(i * 7919, KIB))
        else:
            self.bench.load(["get-1k-c1", *THROUGHPUT])
        for _ in range(2 * (os.cpu_count() or 1)):
            self._run(self._ranges(), connections=8, seconds=120)

    def measure_throughput(self, turn: int) -> None:
        self.throughput += [self.bench.measure(name, turn) for name in THROUGHPUT]

    def measure_alone(self, seconds: float) -> None:
        self.alone.append(self._small(seconds).result())

    def measure_first_byte(self, name: str, *, cold: bool, rate: float, seconds: float) -> None:
        """One pass over the ranges, in an order of its own; cold: each range once, right after the drop."""
        requests = self._ranges()
        passes = self.passes.setdefault(name, [])
        if cold:
            drop_from_page_cache(self.directory)
            seconds = 120.0
        small = self._small(600.0)
        try:
            large = self._run(requests, connections=RANGE_CONNECTIONS, seconds=seconds, cycle=not cold, rate=rate)
        finally:
            beside = small.stop()
        passes.append(
            FirstByte(
                large.first_p50_us,
                large.first_p99_us,
                large.ok / large.elapsed_s,
                beside.p99_us,
                large.errors + beside.errors,
            )
        )

    def _ranges(self) -> list[Request]:
        size = self.bench.scale.large_bytes
        requests = []
        for at in range(0, size, RANGE_BYTES):
            length = min(RANGE_BYTES, size - at)
            headers = {**CLIENT_HEADERS, "Range": f"bytes={at}-{at + length - 1}"}
            head = self.store.signer.head("GET", f"/{self.store.bucket}/large", headers=headers)
            requests.append(Request(head, status=206, check=Check.PATTERN, expect_at=at, expect_len=length))
        return requests

    def _run(self, requests: list[Request], **bounds: Any) -> Result:
        result = self.bench.generator.run(self.store.port, requests, timeout_s=60.0, **bounds)
        if result.errors:
            print(f"{self.store.name}: {result.failures} {result.samples}", file=sys.stderr)
        return result

    def _small(self, seconds: float) -> Run:
        count = dict(self.bench.scale.objects)["1k"]
        signer, bucket = self.store.signer, self.store.bucket
        requests = []
        for i in range(count):
            head = signer.head("GET", f"/{bucket}/1k/{i:05d}", headers=CLIENT_HEADERS)
            requests.append(Request(head, check=Check.PATTERN, expect_at=i * 7919, expect_len=KIB))
        return self.bench.generator.start(
            self.store.port, requests, connections=SMALL_CONNECTIONS, seconds=seconds, rate=SMALL_RATE, cycle=True
        )


PASSES = {  # name -> cold, ranges a second (0: as fast as they are answered)
    "warm, full": (False, 0.0),
    "warm, paced": (False, PACED_RATE),
    "cold, full": (True, 0.0),
    "cold, paced": (True, PACED_RATE),
}


def measure(servings: Sequence[Serving], *, rounds: int, seconds: float) -> None:
    """Everything once per round on every server, in an order that turns."""
    for turn in range(rounds):
        order = [*servings[turn % len(servings) :], *servings[: turn % len(servings)]]
        for serving in order:
            serving.measure_throughput(turn)
        for serving in order:
            serving.measure_alone(seconds)
        for name, (cold, rate) in PASSES.items():
            for serving in order:
                serving.measure_first_byte(name, cold=cold, rate=rate, seconds=seconds)


def throughput_table(servings: Sequence[Serving]) -> str:
    """GiB/s and server CPU seconds per GiB: median (least..most)."""
    lines = ["| GET 1 GiB | " + " | ".join(s.store.name for s in servings) + " |", "|" + "---|" * (len(servings) + 1)]
    for name in THROUGHPUT:
        cells = []
        for serving in servings:
            runs = [m for m in serving.throughput if m.scenario == name and m.valid]
            if not runs:
                cells.append("errors")
                continue
            rates = sorted(m.rate * 1e9 / GIB for m in runs)
            costs = sorted(m.cpu_us / 1e6 * GIB / 1e9 for m in runs)
            client = statistics.median(m.client.client_cpu_s / m.elapsed_s for m in runs)
            cells.append(
                f"{statistics.median(rates):.2f} GiB/s ({rates[0]:.2f}..{rates[-1]:.2f}); "
                f"**{statistics.median(costs):.3f} s/GiB** ({costs[0]:.3f}..{costs[-1]:.3f}); client {client:.0%}"
            )
        lines.append(f"| {TITLES[name]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def first_byte_table(servings: Sequence[Serving]) -> str:
    """First byte p50/p99 of the ranges; p99 of the small GETs beside them, and over what it is alone."""
    head = ["| first byte of 8 MiB, 32 connections", *(s.store.name for s in servings)]
    lines = [" | ".join(head) + " |", "|" + "---|" * (len(servings) + 1)]
    for name in PASSES:
        cells = []
        for serving in servings:
            p50, p99, rate, small, ratio = medians(serving, name)
            cells.append(f"{p50:.2f}/**{p99:.2f} ms**, {rate:.0f}/s; small p99 {small:.2f} ms, {ratio:.2f}x alone")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def medians(serving: Serving, name: str) -> tuple[float, float, float, float, float]:
    """First byte p50 and p99 (ms), ranges a second, p99 of the small GETs (ms), and that over what it is alone."""
    passes = serving.passes[name]
    small = statistics.median(p.small_p99_us for p in passes)
    return (
        statistics.median(p.first_p50_us for p in passes) / 1e3,
        statistics.median(p.first_p99_us for p in passes) / 1e3,
        statistics.median(p.ranges_per_s for p in passes),
        small / 1e3,
        small / statistics.median(r.p99_us for r in serving.alone),
    )


def goals(servings: Sequence[Serving]) -> list[tuple[str, float, float, bool]]:
    """What was aimed at: text, ratio measured, bound, whether it was met."""
    by_name = {s.store.name: s for s in servings}
    ours = by_name[OURS]
    found: list[tuple[str, float, float, bool]] = []

    def at_most(what: str, ratio: float, bound: float) -> None:
        found.append((what, ratio, bound, ratio <= bound))

    for name in THROUGHPUT:
        mine = _throughput(ours, name)
        if "nginx" in by_name:
            theirs = _throughput(by_name["nginx"], name)
            rate = mine[0] / theirs[0]
            found.append((f"{TITLES[name]}: throughput over nginx's, at least", rate, NGINX_RATE, rate >= NGINX_RATE))
            at_most(f"{TITLES[name]}: CPU per GiB over nginx's, at most", mine[1] / theirs[1], NGINX_CPU)
        if "seaweedfs" in by_name:
            theirs = _throughput(by_name["seaweedfs"], name)
            at_most(f"{TITLES[name]}: CPU per GiB over SeaweedFS's, at most", mine[1] / theirs[1], SEAWEEDFS_CPU)
    for name in PASSES:
        mine_passes = medians(ours, name)
        if "seaweedfs" in by_name:
            their_p99 = medians(by_name["seaweedfs"], name)[1]
            at_most(f"{name}: p99 of the first byte over SeaweedFS's, at most", mine_passes[1] / their_p99, FIRST_BYTE)
        at_most(f"{name}: p99 of small GETs beside over alone, at most", mine_passes[4], SMALL_P99)
    return found


def _throughput(serving: Serving, name: str) -> tuple[float, float]:
    runs = [m for m in serving.throughput if m.scenario == name and m.valid]
    return statistics.median(m.rate for m in runs), statistics.median(m.cpu_us for m in runs)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one warm pass (default %(default)s)")
    parser.add_argument("--large-mib", type=int, default=1024, help="size of the object (default %(default)s)")
    parser.add_argument("--stores", default=",".join(STORES), help="which servers (default %(default)s)")
    parser.add_argument("--directory", type=Path, help="where they keep their data (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write every measurement to this file")
    options = parser.parse_args(argv)
    names = options.stores.split(",")
    if OURS not in names or not set(names) <= set(STORES):
        parser.error(f"--stores takes {OURS} and any of {', '.join(STORES)}")
    try:
        return _run(options, names)
    except (StoreFailed, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, names: list[str]) -> int:
    scale = replace(Scale(), objects=(("1k", 1024),), large_bytes=options.large_mib * MIB)
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(tempfile.TemporaryDirectory(prefix="tigrislike-serving-", dir=options.directory))
        generator = LoadGenerator(Path(path))
        servings = []
        for name in names:
            directory = Path(path) / name
            directory.mkdir()
            store = stack.enter_context(STORES[name](directory))[0]
            servings.append(Serving(Bench(store, generator, scale), directory))
        for serving in servings:
            serving.fill()
        measure(servings, rounds=options.rounds, seconds=options.seconds)
    met = goals(servings)
    for name, value in machine().items():
        print(f"- {name}: {value}")
    print(f"\n{options.rounds} rounds, {options.seconds:g} s a warm pass, an object of {options.large_mib} MiB\n")
    print(throughput_table(servings), end="\n\n")
    print(first_byte_table(servings), end="\n\n")
    print("| goal | measured | bound | met |\n|---|---|---|---|")
    for what, ratio, bound, good in met:
        print(f"| {what} | {ratio:.2f} | {bound:g} | {'yes' if good else '**no**'} |")
    if options.json:
        records = {
            s.store.name: {
                "throughput": [m.record() for m in s.throughput],
                "alone": [asdict(r) for r in s.alone],
                "first_byte": {name: [asdict(p) for p in passes] for name, passes in s.passes.items()},
            }
            for s in servings
        }
        options.json.write_text(json.dumps(records, indent=1))
    wrong = sum(s.errors for s in servings)
    if wrong:
        print(f"{wrong} wrong answers", file=sys.stderr)
    return int(bool(wrong) or not all(good for *_, good in met))


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())
