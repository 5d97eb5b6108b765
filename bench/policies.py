"""Which share of reads each eviction policy answers from the cache, on traces that are made here.

    python -m bench.policies [--reads 400000] [--seed 1]

The traces: single blocks by a Zipf law (some are read far more often than most); whole models, each of many blocks read
in order, chosen by a Zipf law; and both again, mixed half and half with scans of blocks that are read once and never
again. Capacities are shares of the blocks that can be read more than once. Policies run as in the cache, on a shelf in
memory. Prints a Markdown table.
"""

import argparse
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from typing import Final

from tigrislike.bytecache.policies import Key, named, names
from tigrislike.bytecache.policies.memory import Simulation

Trace = list[Key]

SIZE: Final = 8 * 1024 * 1024 + 4096
"""Bytes of a block's file."""
CAPACITIES: Final = (0.02, 0.1)


def _key(blob: int, number: int) -> Key:
    return blob.to_bytes(16, "big"), number


def _weights(count: int, alpha: float) -> list[float]:
    return list(itertools.accumulate((rank + 1) ** -alpha for rank in range(count)))


def zipf(rng: random.Random, reads: int, blocks: int = 10_000, alpha: float = 1.0) -> Trace:
    """Independent reads of single blocks."""
    return [_key(blob, 0) for blob in rng.choices(range(blocks), cum_weights=_weights(blocks, alpha), k=reads)]


def models(rng: random.Random, reads: int, blocks: int = 10_000, alpha: float = 1.0) -> Trace:
    """Models of 20 to 180 blocks, 100 on average, read whole and in order."""
    sizes = [rng.randrange(20, 181) for _ in range(blocks // 100)]
    weights = _weights(len(sizes), alpha)
    trace: Trace = []
    while len(trace) < reads:
        [model] = rng.choices(range(len(sizes)), cum_weights=weights)
        trace += [_key(model, number) for number in range(sizes[model])]
    return trace[:reads]


def with_scans(rng: random.Random, trace: Trace) -> Trace:
    """The trace in pieces, and between them as many reads again of blocks that never come back."""
    mixed: Trace = []
    start, scan = 0, 1 << 64
    while start < len(trace):
        length = rng.randrange(50, 1000)
        mixed += trace[start : start + length]
        mixed += [_key(scan, number) for number in range(length)]
        start += length
        scan += 1
    return mixed


def traces(seed: int, reads: int, blocks: int = 10_000) -> Iterator[tuple[str, Trace]]:
    """The four, by name; the same for the same arguments."""
    for title, make in (("Zipf 1.0", zipf), ("whole models", models)):
        rng = random.Random(seed)
        trace = make(rng, reads, blocks)
        yield title, trace
        yield f"{title}, with scans", with_scans(rng, trace)


def hit_ratio(policy: str, trace: Trace, capacity_blocks: int) -> float:
    """Over the whole trace, from an empty cache."""
    simulation = Simulation(named(policy), capacity_blocks * SIZE)
    return sum(simulation.read(key, SIZE) for key in trace) / len(trace)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.policies", description=__doc__)
    parser.add_argument("--reads", type=int, default=400_000, help="length of a trace without scans")
    parser.add_argument("--blocks", type=int, default=10_000, help="that can be read more than once")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    columns = names()
    print(f"| trace | cache | {' | '.join(columns)} |")
    print(f"|---|---:|{'---:|' * len(columns)}")
    spent, reads = dict.fromkeys(columns, 0.0), 0
    for title, trace in traces(options.seed, options.reads, options.blocks):
        for share in CAPACITIES:
            ratios = []
            for policy in columns:
                started = time.process_time()
                ratios.append(hit_ratio(policy, trace, int(share * options.blocks)))
                spent[policy] += time.process_time() - started
            reads += len(trace)
            print(f"| {title} | {share:.0%} | {' | '.join(f'{ratio:.3f}' for ratio in ratios)} |", flush=True)
    costs = " | ".join(f"{spent[policy] / reads * 1e6:.1f}" for policy in columns)
    print(f"| CPU per simulated read, µs | | {costs} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
