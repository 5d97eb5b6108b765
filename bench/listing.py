"""`python -m bench.listing`: does a page cost the same in a large bucket as in a small one?

Two buckets of this store, ten thousand keys and a million, under ten prefixes each. Server CPU of a 1,000-key page
from positions all over the bucket, and of the delimiter listing that collapses the whole bucket into its ten prefixes.
Every answer is compared with the listing it must be. Exit status 1 where the large bucket costs more than twice the
small one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from bench.loadgen import Check, LoadGenerator, Request, content_sha256, keys_hash
from bench.processes import StoreFailed, end_in_order
from bench.stores import Store, tigrislike

PREFIXES = 10
PAGE_KEYS = 1000
LIMIT = 2.0
BATCH = 50_000
SMALL, LARGE = 10_000, 1_000_000


@dataclass(frozen=True)
class Cost:
    """Server CPU of one listing, microseconds, in the small and the large bucket: medians over the rounds."""

    what: str
    small_us: float
    large_us: float

    @property
    def ratio(self) -> float:
        return self.large_us / self.small_us


def key(index: int, keys: int) -> str:
    """The `index`-th of `keys` keys in listing order."""
    per_prefix = keys // PREFIXES
    return f"prefix-{index // per_prefix}/{index % per_prefix:07d}"


def _batches(store: Store, bucket: str, keys: int) -> Iterator[list[Request]]:
    digest = content_sha256(0, 64)
    for start in range(0, keys, BATCH):
        paths = (f"/{bucket}/{key(i, keys)}" for i in range(start, min(start + BATCH, keys)))
        yield [
            Request(store.signer.head("PUT", path, payload_sha256=digest, length=64), body_at=0, body_len=64)
            for path in paths
        ]


def load(store: Store, generator: LoadGenerator, bucket: str, keys: int) -> None:
    """Creates the bucket and puts all keys over HTTP, batch by batch. Raises StoreFailed on a failed request."""
    store.create_bucket(bucket)
    for batch in _batches(store, bucket, keys):
        result = generator.run(store.port, batch, connections=64, seconds=600, max_errors=1)
        if result.ok != len(batch):
            raise StoreFailed(f"loading {bucket}: {result.ok} of {len(batch)}; {result.samples}")


def pages(store: Store, bucket: str, keys: int) -> list[Request]:
    """Signed requests for 1,000-key pages that start all over the bucket."""
    requests = []
    for i in range(64):
        after = (i * 37) % 64 * (keys - PAGE_KEYS - 1) // 63
        expected = [key(n, keys) for n in range(after + 1, after + 1 + PAGE_KEYS)]
        query = f"list-type=2&max-keys={PAGE_KEYS}&start-after={key(after, keys).replace('/', '%2F')}"
        head = store.signer.head("GET", f"/{bucket}", query)
        requests.append(Request(head, check=Check.KEYS, expect_hash=keys_hash(expected), expect_count=PAGE_KEYS))
    return requests


def collapsed(store: Store, bucket: str) -> list[Request]:
    """The one listing that collapses the whole bucket."""
    expected = keys_hash([f"prefix-{n}/" for n in range(PREFIXES)])
    head = store.signer.head("GET", f"/{bucket}", "delimiter=%2F&list-type=2")
    return [Request(head, check=Check.PREFIXES, expect_hash=expected, expect_count=PREFIXES)]


def cpu_us(store: Store, generator: LoadGenerator, requests: list[Request], count: int) -> float:
    """Server CPU microseconds per listing over `count` of them. Raises StoreFailed on any wrong answer."""
    before = store.settled_cpu_s()
    result = generator.run(store.port, requests, connections=4, seconds=300, count=count, cycle=True, max_errors=1)
    spent = store.settled_cpu_s() - before
    if result.ok != count:
        raise StoreFailed(f"listing: {result.ok} of {count} right; {result.samples}")
    return spent / count * 1e6


def measure(store: Store, scratch: Path, *, small: int, large: int, rounds: int, count: int) -> list[Cost]:
    """Loads both buckets, then lists them in turn `rounds` times, `count` pages and 4 x `count` collapsed listings."""
    generator = LoadGenerator(scratch)
    sizes = {"small": small, "large": large}
    for name, keys in sizes.items():
        started = time.monotonic()
        load(store, generator, name, keys)
        print(f"loaded {keys:,} keys in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    costs = []
    for what, times in (("1,000-key page", count), (f"delimiter listing into {PREFIXES} prefixes", count * 4)):
        spent: dict[str, list[float]] = {name: [] for name in sizes}
        for _ in range(rounds):
            for name, keys in sizes.items():
                requests = pages(store, name, keys) if times == count else collapsed(store, name)
                spent[name].append(cpu_us(store, generator, requests, times))
        costs.append(Cost(what, statistics.median(spent["small"]), statistics.median(spent["large"])))
    return costs


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.listing", description=__doc__)
    parser.add_argument("--small", type=int, default=SMALL, help="keys in the small bucket (default %(default)s)")
    parser.add_argument("--large", type=int, default=LARGE, help="keys in the large bucket (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=200, help="pages per round (default %(default)s)")
    parser.add_argument("--directory", type=Path, help="where the store keeps its data (default: a temporary one)")
    try:
        return _run(parser.parse_args(argv))
    except (StoreFailed, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="tigrislike-listing-", dir=options.directory) as path:
        scratch = Path(path)
        running: AbstractContextManager[list[Store]] = tigrislike(scratch)
        with running as (store,):
            costs = measure(
                store, scratch, small=options.small, large=options.large, rounds=options.rounds, count=options.count
            )
    print(f"| server CPU | {options.small:,} keys | {options.large:,} keys | ratio |\n|---|---|---|---|")
    for cost in costs:
        print(f"| {cost.what} | {cost.small_us:,.0f} us | {cost.large_us:,.0f} us | {cost.ratio:.2f} |")
    return int(any(cost.ratio > LIMIT for cost in costs))


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())
