"""`python -m bench.uploads`: large uploads, what they cost beyond their digests, and whether the work overlaps.

Stores are measured side by side, one at a time, in turn: one PUT whose payload is signed, one whose payload is not,
four at once, and a multipart upload. A thread of this program hashes a megabyte now and then with MD5 and SHA-256, so
that what those cost on this machine, as busy as it was, is measured in the same run; the time that it takes for that
counts as idle. Then the store runs once more with `bench.traced`, and the trace says how much of the hashing went on
while bytes were received and written.

Goals: CPU at most that of MD5 (and of SHA-256 where the payload is signed) and 0.9 s per GB; four uploads leave under
5 % of the processors idle; at least 1.3 times the rate of the best peer. Exit status 1 when one is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import machine
from bench.loadgen import LoadGenerator, Request, content, content_md5, content_sha256
from bench.processes import StoreFailed, end_in_order
from bench.scenarios import CLIENT_HEADERS, MIB, Bench, Scale
from bench.stores import PEERS, STORES, Store, tigrislike
from bench.traced import Step

OURS = "tigrislike"
SCENARIOS = {
    "signed": "one PUT, payload signed",
    "unsigned": "one PUT, payload not signed",
    "four": "four PUTs at once, payloads signed",
    "multipart": "multipart, 16 MiB parts, 8 connections, payloads signed",
}
BEYOND_S = 0.9
IDLE = 0.05
FASTER = 1.3
_SAMPLE_S = 0.05
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class HashSpeed:
    """CPU seconds per GB (10^9 bytes) of MD5 and SHA-256 while it is entered."""

    def __init__(self) -> None:
        self.samples: defaultdict[str, list[float]] = defaultdict(list)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> HashSpeed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def cost_s(self, algorithm: str) -> float:
        return statistics.median(self.samples[algorithm])

    def spent_s(self) -> float:
        """CPU seconds that the hashing itself has taken so far, while it is entered."""
        assert self._thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))

    def _run(self) -> None:
        data = content(0, MIB)
        while True:
            for algorithm in ("md5", "sha256"):
                before = time.thread_time()
                hashlib.new(algorithm, data)
                self.samples[algorithm].append((time.thread_time() - before) / len(data) * 1e9)
            if self._stop.wait(_SAMPLE_S):
                return


@dataclass(frozen=True)
class Upload:
    """One measured run of a scenario. Seconds of server CPU are per GB (10^9 bytes)."""

    store: str
    scenario: str
    mb_per_s: float
    cpu_s: float
    md5_s: float
    sha256_s: float
    idle: float

    @property
    def beyond_s(self) -> float:
        """CPU beside the digests that the request asks for."""
        return self.cpu_s - self.md5_s - (0 if self.scenario == "unsigned" else self.sha256_s)


def processor_times(speed: HashSpeed) -> tuple[float, float]:
    """(idle, all) seconds of the machine's processors so far; waiting for a disk and this hashing are idle too."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (ticks[3] + ticks[4]) / _TICKS_PER_S + speed.spent_s(), sum(ticks) / _TICKS_PER_S


def measure(store: Store, generator: LoadGenerator, scenario: str, size: int, turn: int) -> Upload:
    """Run one scenario once, on fresh keys, which are removed again.

    Raises:
        StoreFailed: a request was not answered as it should be.
    """
    pieces = [(0, size)] if scenario != "four" else [(n * 7919, size // 4) for n in range(4)]
    requests = [_put(store, f"{scenario}-{turn}-{n}", at, length, scenario) for n, (at, length) in enumerate(pieces)]
    if scenario == "multipart":  # hashed before the clock starts
        for at in range(0, size, 16 * MIB):
            content_sha256(at, min(16 * MIB, size - at))
            content_md5(at, min(16 * MIB, size - at))
    with HashSpeed() as speed:
        cpu_s = store.settled_cpu_s()
        idle_s, all_s = processor_times(speed)
        if scenario == "multipart":
            bench = Bench(store, generator, replace(Scale(), large_bytes=size))
            run = bench.measure("multipart", turn)
            elapsed_s, spent_s, failures = run.elapsed_s, run.server_cpu_s, run.client.samples
        else:
            result = generator.run(
                store.port, requests, connections=len(requests), seconds=300, timeout_s=300, max_errors=1
            )
            elapsed_s, failures = result.elapsed_s, result.samples
        now_idle_s, now_all_s = processor_times(speed)
        if scenario != "multipart":
            spent_s = store.settled_cpu_s() - cpu_s
    if failures:
        raise StoreFailed(f"{store.name}: {scenario}: {failures[:1]}")
    for n in range(len(requests)):
        path = f"/{store.bucket}/{scenario}-{turn}-{n}"
        generator.run(store.port, [Request(store.signer.head("DELETE", path), status=204)], connections=1, seconds=30)
    gigabytes = sum(length for _, length in pieces) / 1e9
    return Upload(
        store.name,
        scenario,
        gigabytes * 1e3 / elapsed_s,
        spent_s / gigabytes,
        speed.cost_s("md5"),
        speed.cost_s("sha256"),
        (now_idle_s - idle_s) / max(1 / _TICKS_PER_S, now_all_s - all_s),
    )


def _put(store: Store, key: str, at: int, size: int, scenario: str) -> Request:
    digest = "UNSIGNED-PAYLOAD" if scenario == "unsigned" else content_sha256(at, size)
    head = store.signer.head(
        "PUT", f"/{store.bucket}/{key}", payload_sha256=digest, length=size, headers=CLIENT_HEADERS
    )
    return Request(head, body_at=at, body_len=size)


# -- The trace ---------------------------------------------------------------------------------------------------------


def trace(scratch: Path, generator: LoadGenerator, size: int) -> list[Step]:
    """Every step of one signed PUT of `size` bytes."""
    directory, file = scratch / "traced", scratch / "trace"
    directory.mkdir()
    with tigrislike(directory, module="bench.traced", environment={"TRACE_FILE": str(file)}) as (store,):
        file.write_bytes(b"")  # what starting and checking wrote
        measure(store, generator, "signed", size, 0)
        return [Step.parse(line) for line in file.read_text().splitlines()]


def merged(steps: Sequence[Step], *kinds: str) -> list[tuple[int, int]]:
    """When at least one step of these kinds was going on: intervals in order, none touching the next."""
    result: list[tuple[int, int]] = []
    for start, stop in sorted((step.start_ns, step.stop_ns) for step in steps if step.what in kinds):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(stop, result[-1][1]))
        else:
            result.append((start, stop))
    return result


def common_ns(a: Sequence[tuple[int, int]], b: Sequence[tuple[int, int]]) -> int:
    """How long something of both was going on."""
    total = i = j = 0
    while i < len(a) and j < len(b):
        total += max(0, min(a[i][1], b[j][1]) - max(a[i][0], b[j][0]))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return total


def overlap(steps: Sequence[Step]) -> dict[str, float]:
    """What a trace shows, as shares of a time: 0 for one after the other, 1 for wholly at the same time."""
    hashing, receiving = merged(steps, "MD5", "SHA256"), merged(steps, "receive")
    writing, md5, sha256 = merged(steps, "write", "sync"), merged(steps, "MD5"), merged(steps, "SHA256")
    return {
        "of the time of receiving, something was hashed": common_ns(receiving, hashing) / max(1, _length(receiving)),
        "of the time of writing, something was hashed": common_ns(writing, hashing) / max(1, _length(writing)),
        "of SHA-256's time, MD5 was computed too": common_ns(sha256, md5) / max(1, _length(sha256)),
    }


def _length(intervals: Sequence[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in intervals)


def chrome(steps: Sequence[Step]) -> str:
    """The trace in the format that chrome://tracing and ui.perfetto.dev show."""
    events = [
        {
            "name": step.what,
            "ph": "X",
            "ts": step.start_ns / 1e3,
            "dur": max(1.0, (step.stop_ns - step.start_ns) / 1e3),
            "pid": step.process,
            "tid": step.thread,
            "args": {"bytes": step.size},
        }
        for step in steps
    ]
    return json.dumps({"traceEvents": events})


# -- The report --------------------------------------------------------------------------------------------------------


def report(uploads: Sequence[Upload], shares: dict[str, float]) -> tuple[str, bool]:
    """The tables in Markdown, medians of the rounds; whether every goal is met."""
    runs: defaultdict[tuple[str, str], list[Upload]] = defaultdict(list)
    for upload in uploads:
        runs[upload.scenario, upload.store].append(upload)
    stores = list(dict.fromkeys(upload.store for upload in uploads))
    lines = ["| scenario | " + " | ".join(stores) + " |", "|---" * (len(stores) + 1) + "|"]
    goals: list[tuple[str, bool]] = []
    for scenario, title in SCENARIOS.items():
        cells = []
        for store in stores:
            if not (found := runs[scenario, store]):
                cells.append("-")
                continue
            rate, cpu_s, beyond_s, idle = _medians(found)
            cells.append(f"{rate:.0f} MB/s; {cpu_s:.2f} s/GB, {beyond_s:.2f} beyond the digests; {idle:.0%} idle")
            if store == OURS:
                goals.append((f"{title}: {beyond_s:.2f} s/GB beyond its digests", beyond_s <= BEYOND_S))
                if scenario == "four":
                    goals.append((f"{title}: {idle:.1%} of the processors idle", idle < IDLE))
        peers = [_medians(runs[scenario, store])[0] for store in stores if store != OURS and runs[scenario, store]]
        if peers and runs[scenario, OURS]:
            ratio = _medians(runs[scenario, OURS])[0] / max(peers)
            goals.append((f"{title}: {ratio:.2f} times the rate of the best peer", ratio >= FASTER))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    hashes = [(upload.md5_s, upload.sha256_s) for upload in uploads]
    md5_s, sha256_s = (statistics.median(cost) for cost in zip(*hashes, strict=True))
    lines += ["", f"In the same run MD5 cost {md5_s:.2f} s/GB and SHA-256 {sha256_s:.2f} s/GB. One signed PUT, traced:"]
    lines += [f"{share:.0%} {what}." for what, share in shares.items()]
    lines += ["", *(f"- {'met' if met else 'MISSED'}: {goal}" for goal, met in goals)]
    return "\n".join(lines), all(met for _, met in goals)


def _medians(runs: Sequence[Upload]) -> tuple[float, float, float, float]:
    return (
        statistics.median(run.mb_per_s for run in runs),
        statistics.median(run.cpu_s for run in runs),
        statistics.median(run.beyond_s for run in runs),
        statistics.median(run.idle for run in runs),
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.uploads", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="bytes of one run, in MiB (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default=",".join(PEERS), help="which (default: %(default)s); empty for none")
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios (default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="where the stores keep their data (default: a temporary one)")
    parser.add_argument("--trace", type=Path, help="write the trace here, for chrome://tracing or ui.perfetto.dev")
    options = parser.parse_args(argv)
    end_in_order()
    scenarios = options.only.split(",")
    if unknown := set(scenarios) - set(SCENARIOS):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    size = options.mib * MIB
    uploads = []
    try:
        with tempfile.TemporaryDirectory(prefix="tigrislike-uploads-", dir=options.directory) as path:
            scratch = Path(path)
            # SeaweedFS keeps what it deletes until a vacuum.
            needed = size * (len(STORES) + options.rounds * (len(scenarios) + 1))
            if (free := machine.free_bytes(scratch)) < needed:
                raise ValueError(f"{scratch} has {free >> 20} MiB free and this run may need {needed >> 20}: see --mib")
            generator = LoadGenerator(scratch)
            with contextlib.ExitStack() as stack:
                stores = []
                for name in (OURS, *filter(None, options.peers.split(","))):
                    (scratch / name).mkdir()
                    stores += stack.enter_context(STORES[name](scratch / name))
                for turn in range(options.rounds):
                    for scenario in scenarios:
                        for store in stores[turn % len(stores) :] + stores[: turn % len(stores)]:
                            upload = measure(store, generator, scenario, size, turn)
                            uploads.append(upload)
                            print(upload, file=sys.stderr, flush=True)
            steps = trace(scratch, generator, size)
    except (StoreFailed, ValueError, OSError, RuntimeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if options.trace:
        options.trace.write_text(chrome(steps))
    text, met = report(uploads, overlap(steps))
    print(text)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
