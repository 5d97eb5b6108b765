"""The queue's bench, in miniature: items flow through real processes, and the tables say what was measured."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bench import queue
from bench.queue import Flow, Results, Wait
from tests import clusters


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("fdb", marks=pytest.mark.fdb)])
def test_items_flow_and_are_timed(kind: str) -> None:
    async def main() -> None:
        cluster = clusters.cluster_file() if kind == "fdb" else None
        with queue.engines(cluster) as stores:
            urls, processes = list(stores.values())[-1]
            flow = await queue.flow(next(urls), processes, consumers=2, zones=3, seconds=0.5)
            assert flow.rate > 0
            assert flow.cpu_us > 0
            assert 0 <= flow.conflicts < 1
            wait = await queue.wait(next(urls), seconds=0.4, large=500)
            assert 0 < wait.p50_ms <= wait.p99_ms
            assert wait.others > 0
            if kind == "sqlite":
                away = await queue.wait(next(urls), 0.4, 0, "?round-trip=10ms", 0.2)
                assert away.p50_ms > 70  # seven round trips

    asyncio.run(main())


def test_a_preload_is_what_enqueues_would_have_made(tmp_path: Path) -> None:
    async def main() -> None:
        async with queue.opened(f"sqlite://{tmp_path}/m.db") as metadata:
            zone = queue.zone_at(0)
            await queue.preload(metadata, zone, queue.PRELOAD + 1)
            assert await metadata.queue.depth(zone) == queue.PRELOAD + 1
            assert len(await metadata.queue.items(zone)) == queue.PRELOAD + 1
            assert (await metadata.queue.peek(queue.NODE)).zones == [zone]

    asyncio.run(main())


def test_a_consumer_that_fails_ends_the_bench(tmp_path: Path) -> None:
    with pytest.raises(EOFError):
        queue.Consuming(f"sqlite://{tmp_path}/absent/m.db", 1).wait_ready()


def test_the_tables_give_medians_and_ratios() -> None:
    flows = [Flow(rate, 200.4, 80, 0.01) for rate in (500, 1000, 9000)]
    results = Results(
        {(engine, n, z): flows for engine in ("SQLite", "FoundationDB") for n in queue.CONSUMERS for z in queue.ZONES},
        {("SQLite", 0): [Wait(2, 4, 0)], ("SQLite", 1000): [Wait(3, 5, 700)]},
    )
    lines = queue.tables(results).splitlines()
    assert lines[2].startswith("| SQLite | 1 | 1,000/s; 200 us | ")
    assert lines[5].startswith("| FoundationDB | 1 | 1,000/s; 200 us; 80 us; 1.00% | ")
    assert lines[-2] == "| SQLite | nothing | 2.0 ms | 4.0 ms | - |"
    assert lines[-1] == "| SQLite | a zone of 1,000 items, 700/s of which are done | 3.0 ms | 5.0 ms | 1.50, 1.25 |"
