"""kill -9 at random moments while clients write in every way there is: nothing acknowledged is lost, nothing torn.

The whole process group, one worker or the agent is killed; the node is started again on the same directory (or, where
only one process died, has gone on by itself), and every client checks what it knows. The seed of a failing run is in
its test id and output: the moments are random, so it does not replay exactly, but the requests do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.crash.audit import assert_nothing_owed, audit
from tests.crash.requests import Client
from tests.crash.writers import PLAIN, VERSIONED, Progress, Writer
from tests.nodes import RunningNode, engine_settings, start_node
from tigrislike.bytecache import BlockStore
from tigrislike.config import Settings
from tigrislike.metadata import Metadata
from tigrislike.metadata.kv import ManualClock, open_engine
from tigrislike.node import load_master_key
from tigrislike.replication.reclaim import reclaim_due

BLOCK = 2 * 1024 * 1024
WRITERS = 4
SETTLE_TIMEOUT_S = 90.0
DAY_S = 86_400


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what another process brings about."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.01)


def child_pids(supervisor: int) -> list[int]:
    """The agent and the workers, oldest first: the agent, until it has been replaced."""
    return [int(pid) for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()]


@contextlib.asynccontextmanager
async def at_rest(data_dir: Path, *, days_later: int = 0) -> AsyncIterator[tuple[Metadata, BlockStore]]:
    """The database and blocks of a node that does not run, with the clock set forward so that all leases are over."""
    settings = Settings(data_dir=data_dir, block_size=BLOCK, **engine_settings(data_dir))
    blocks = BlockStore.open(settings.cache_dir, block_size=BLOCK)
    try:
        engine = await open_engine(settings.metadata, clock=ManualClock(time.time_ns() + days_later * DAY_S * 10**9))
        try:
            yield (
                await Metadata.open(
                    engine, master_key=load_master_key(settings), node_id=blocks.node_id, region="local"
                ),
                blocks,
            )
        finally:
            await engine.close()
    finally:
        blocks.close()


async def audit_at_rest(data_dir: Path, *, sweep: bool) -> None:
    async with at_rest(data_dir) as (metadata, blocks):
        if sweep:
            stats = await blocks.sweep(metadata.settle_blob)
            assert stats.failures == ()
            assert stats.live == 0
        assert await audit(metadata, blocks) == []


async def reclaim_all(data_dir: Path) -> None:
    """Whatever was owed can be worked off, and then only live bytes are left."""
    for days in (1, 2, 3):
        async with at_rest(data_dir, days_later=days) as (metadata, blocks):
            stats = await reclaim_due(metadata, blocks)
            assert stats.failed == 0
    async with at_rest(data_dir, days_later=3) as (metadata, blocks):
        assert await audit(metadata, blocks) == []
        await assert_nothing_owed(metadata, blocks, data_dir / "cache")


class Lives:
    """One store, its clients, and its many deaths."""

    def __init__(self, data_dir: Path, seed: int, *flags: str, ca_bundle: str | None = None) -> None:
        print(f"seed {seed}")
        self.rng = random.Random(seed)
        self.data_dir = data_dir
        self.flags = (f"--block-size={BLOCK}", "--disk-reserve=0", "--reclaim-grace=0", "--access-log=off", *flags)
        self.ca_bundle = ca_bundle
        self.progress = Progress()
        self.writers = [Writer(f"w{n}", seed, self.progress) for n in range(WRITERS)]
        self.node: RunningNode | None = None

    def start(self) -> RunningNode:
        sweeping = self.rng.choice(("1s", "5m"))  # during uploads, or at start only
        self.node = start_node(self.data_dir, *self.flags, f"--sweep-interval={sweeping}", ca_bundle=self.ca_bundle)
        return self.node

    def found(self) -> None:
        client = Client(self.start())
        for bucket in (PLAIN, VERSIONED):
            client.call("PUT", f"/{bucket}")
        body = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        client.document("PUT", f"/{VERSIONED}", {"versioning": ""}, body)

    def write(self) -> None:
        assert self.node is not None
        self.writers = [writer.next_life(self.node) for writer in self.writers]
        for writer in self.writers:
            writer.start()

    def after_some(self, least: int, most: int) -> None:
        """A random moment, when some more requests have been acknowledged."""
        self.progress.wait_for(self.progress.acknowledged + self.rng.randrange(least, most))
        time.sleep(self.rng.uniform(0, 0.02))

    def kill_one(self) -> None:
        """One process of the node; the others go on, and it is replaced."""
        assert self.node is not None
        supervisor = self.node.pid
        children = child_pids(supervisor)
        victim = self.rng.choice(children)
        print("killing", "the agent" if victim == children[0] else "a worker")
        os.kill(victim, signal.SIGKILL)
        until(
            lambda: victim not in child_pids(supervisor) and len(child_pids(supervisor)) == len(children),
            "another process has replaced the dead one",
        )

    def kill_all(self) -> None:
        assert self.node is not None
        self.node.kill()
        for writer in self.writers:
            writer.finish()

    def check(self) -> None:
        assert self.node is not None
        for writer in self.writers:
            writer.check(self.node)
        incoming = self.data_dir / "cache" / "incoming"
        until(lambda: not any(incoming.iterdir()), "the sweep has settled all uploads")

    def round(self) -> None:
        self.write()
        self.after_some(5, 60)
        if self.rng.random() < 0.6:
            self.kill_one()
            self.after_some(5, 30)
        self.kill_all()
        if self.rng.random() < 0.5:  # else it is the new agent's sweep that settles
            asyncio.run(audit_at_rest(self.data_dir, sweep=True))
        self.start()
        self.check()

    def end(self) -> None:
        assert self.node is not None
        assert self.node.stop() == 0
        asyncio.run(audit_at_rest(self.data_dir, sweep=False))
        asyncio.run(reclaim_all(self.data_dir))
        self.start()
        self.check()
        assert self.node.stop() == 0
        print(self.progress.acknowledged, "acknowledged,", self.progress.doubts, "in doubt:", self.progress.kinds)
        assert not self.progress.refusals, self.progress.refusals[:5]

    def close(self) -> None:
        for writer in self.writers:
            writer.stop.set()
        if self.node is not None:
            self.node.kill()


def _live(lives: Lives, rounds: int) -> None:
    try:
        lives.found()
        for _ in range(rounds):
            lives.round()
        lives.end()
    except BaseException:
        if lives.node is not None:
            print(lives.node.log.read_text()[-5000:])
        raise
    finally:
        lives.close()


@pytest.mark.parametrize("seed", [1])
def test_a_node_killed_while_clients_write_loses_nothing_and_tears_nothing(tmp_path: Path, seed: int) -> None:
    _live(Lives(tmp_path / "data", seed), rounds=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_a_node_killed_many_times_loses_nothing_and_tears_nothing(tmp_path: Path, seed: int) -> None:
    _live(Lives(tmp_path / "data", seed), rounds=9)


@pytest.mark.slow
# A connection reset before its handshake: CPython's own SSLSocket is then left to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.parametrize("seed", [4])
def test_a_node_killed_many_times_over_tls(tmp_path: Path, certificate: tuple[Path, Path, Path], seed: int) -> None:
    cert, key, authority = certificate
    flags = (f"--tls-cert={cert}", f"--tls-key={key}")
    _live(Lives(tmp_path / "data", seed, *flags, ca_bundle=str(authority)), rounds=9)
