"""`python -m bench.overload`: what honest clients feel while others misbehave.

First: honest clients beside 1,000 connections that send one byte a second, half of them in the headers and half in
a body signed with a key of their own (a key's requests in flight are bounded, so that sharing one is sharing its
bound). Second: a client of one key beside another key that floods the store, ignoring every 503. Honest requests come
at a fixed rate and are timed from when they were due, so that a stall is felt by all it delays. Each pair of runs,
without and with, is repeated in turn; the ratio is of the medians of p99. Exit status 1 where it is above 2 (slow) or
3 (flood), or where an honest request failed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.loadgen import Check, LoadGenerator, Request, Result, content_sha256
from bench.processes import StoreFailed, end_in_order
from bench.stores import REPOSITORY, Store, tigrislike

KIB = 1 << 10
SLOW_LIMIT, FLOOD_LIMIT = 2.0, 3.0
OBJECTS = 1000


@dataclass(frozen=True)
class Effect:
    """p99 of honest requests, microseconds, medians over the rounds."""

    what: str
    alone_us: float
    beside_us: float
    errors: int
    limit: float
    others: str

    @property
    def ratio(self) -> float:
        return self.beside_us / self.alone_us

    @property
    def good(self) -> bool:
        return self.ratio <= self.limit and not self.errors


@dataclass(frozen=True)
class Honest:
    """The clients whose latency counts."""

    connections: int = 8
    rate: float = 300.0
    seconds: float = 5.0


def requests(store: Store, count: int, *, prefix: str, refused: int = 0) -> list[Request]:
    """PUT and GET of 1 KiB in turn over `count` keys."""
    mixed = []
    for i in range(count):
        path = f"/{store.bucket}/{prefix}{i:05d}"
        put = store.signer.head("PUT", path, payload_sha256=content_sha256(i, KIB), length=KIB)
        mixed.append(Request(put, body_at=i, body_len=KIB, refused=refused))
        # The key before: its PUT has been answered, or another is under way that writes the same bytes.
        back = (i - 64) % count
        get = store.signer.head("GET", f"/{store.bucket}/{prefix}{back:05d}")
        mixed.append(Request(get, check=Check.PATTERN, expect_at=back, expect_len=KIB, refused=refused))
    return mixed


def fill(store: Store, generator: LoadGenerator, *, prefix: str) -> None:
    """Puts every key that `requests` reads."""
    puts = [r for r in requests(store, OBJECTS, prefix=prefix) if r.body_len]
    result = generator.run(store.port, puts, connections=8, seconds=60, max_errors=1)
    if result.ok != len(puts):
        raise StoreFailed(f"filling {store.bucket}: {result.ok} of {len(puts)}; {result.samples}")


def _effect(
    what: str,
    limit: float,
    rounds: int,
    honest: Callable[[], Result],
    trouble: Callable[[], AbstractContextManager[list[str]]],
) -> Effect:
    alone, beside, others = [], [], [""]
    for _ in range(rounds):
        alone.append(honest())
        with trouble() as said:
            beside.append(honest())
        others = said
    for result in alone + beside:
        if result.errors:
            print(f"honest errors: {result.failures} {result.samples}", file=sys.stderr)
    return Effect(
        what,
        statistics.median(r.p99_us for r in alone),
        statistics.median(r.p99_us for r in beside),
        sum(r.errors for r in alone + beside),
        limit,
        others[0],
    )


def slow_connections(
    store: Store, generator: LoadGenerator, *, connections: int, rounds: int, honest: Honest = Honest()
) -> Effect:
    """Honest clients with and without `connections` slow ones, whose uploads are signed with another key."""
    others = scoped_store(store, "slow")
    fill(store, generator, prefix="honest/")
    plan = requests(store, OBJECTS, prefix="honest/")

    @contextmanager
    def slow() -> Iterator[list[str]]:
        said: list[str] = []
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "bench.slow", "--port", str(store.port), "--bucket", others.bucket]
        command += ["--access-key", others.access_key, "--secret-key", others.secret_key]
        command += ["--connections", str(connections), "--seconds", str(honest.seconds + 2), "--ready-fd", str(writing)]
        process = subprocess.Popen(command, cwd=REPOSITORY, pass_fds=[writing], stdout=subprocess.PIPE, text=True)
        os.close(writing)
        try:
            with open(reading, "rb") as ready:
                if not ready.read(1):
                    raise StoreFailed(f"the store never held {connections} slow connections at once")
            yield said
            said.append(process.communicate(timeout=60)[0].strip())
        finally:
            process.kill()
            process.wait()

    def run() -> Result:
        return generator.run(
            store.port, plan, connections=honest.connections, seconds=honest.seconds, rate=honest.rate, cycle=True
        )

    return _effect(f"{connections} slow-header and slow-body connections", SLOW_LIMIT, rounds, run, slow)


def scoped_store(store: Store, bucket: str) -> Store:
    """A bucket with a key pair of its own, made as an operator makes one."""
    command = [sys.executable, "-m", "tigrislike", "storage", "create", bucket, "--json"]
    command += ["--endpoint", f"http://127.0.0.1:{store.port}"]
    keys = {"TIGRISLIKE_ROOT_ACCESS_KEY": store.access_key, "TIGRISLIKE_ROOT_SECRET_KEY": store.secret_key}
    done = subprocess.run(
        command, env={**os.environ, **keys}, cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        raise StoreFailed(f"storage create {bucket}: {done.stdout[-300:]} {done.stderr[-600:]}")
    made = json.loads(done.stdout)
    return replace(
        store,
        bucket=bucket,
        access_key=made["AWS_ACCESS_KEY_ID"],
        secret_key=made["AWS_SECRET_ACCESS_KEY"],
        _signers={},
    )


def flooding_key(
    store: Store, generator: LoadGenerator, *, connections: int, rounds: int, honest: Honest = Honest(4, 100.0)
) -> Effect:
    """One key's clients with and without another key's flood on `connections` connections."""
    calm, flood = scoped_store(store, "calm"), scoped_store(store, "flood")
    for owner in (calm, flood):
        fill(owner, generator, prefix="")
    plan, flooding = requests(calm, OBJECTS, prefix=""), requests(flood, OBJECTS, prefix="", refused=503)

    @contextmanager
    def trouble() -> Iterator[list[str]]:
        said: list[str] = []
        running = generator.start(
            store.port, flooding, connections=connections, seconds=honest.seconds + 1, cycle=True, max_errors=10_000
        )
        try:
            yield said
            result = running.result()
            said.append(f"flood: {result.ok} served, {result.refused} refused, {result.errors} errors")
        finally:
            running.process.kill()
            running.process.wait()

    def run() -> Result:
        return generator.run(
            store.port, plan, connections=honest.connections, seconds=honest.seconds, rate=honest.rate, cycle=True
        )

    return _effect(f"another key flooding on {connections} connections", FLOOD_LIMIT, rounds, run, trouble)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.overload", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one run (default %(default)s)")
    parser.add_argument("--slow-connections", type=int, default=1000)
    parser.add_argument("--flood-connections", type=int, default=64)
    parser.add_argument("--only", choices=("slow", "flood"))
    parser.add_argument("--directory", type=Path, help="where the store keeps its data (default: a temporary one)")
    try:
        return _run(parser.parse_args(argv))
    except (StoreFailed, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    effects: list[Effect] = []
    with tempfile.TemporaryDirectory(prefix="tigrislike-overload-", dir=options.directory) as path:
        scratch = Path(path)
        generator = LoadGenerator(scratch)
        running: AbstractContextManager[list[Store]] = tigrislike(scratch)
        with running as (store,):
            if options.only != "flood":
                honest = Honest(seconds=options.seconds)
                effects.append(
                    slow_connections(
                        store, generator, connections=options.slow_connections, rounds=options.rounds, honest=honest
                    )
                )
            if options.only != "slow":
                honest = Honest(4, 100.0, options.seconds)
                effects.append(
                    flooding_key(
                        store, generator, connections=options.flood_connections, rounds=options.rounds, honest=honest
                    )
                )
    print("| beside | p99 alone | p99 beside | ratio | at most | honest errors | the others |\n|" + "---|" * 7)
    for e in effects:
        p99 = f"{e.alone_us / 1e3:.2f} ms | {e.beside_us / 1e3:.2f} ms"
        print(f"| {e.what} | {p99} | {e.ratio:.2f} | {e.limit:g} | {e.errors} | {e.others} |")
    return int(not all(e.good for e in effects))


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())
