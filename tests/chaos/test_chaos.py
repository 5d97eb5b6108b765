"""Chaos: a node serves a hundred clients while what it stands on fails, and keeps every promise.

On FoundationDB the server is killed and started again, stopped and continued, and the node's network threads hang. On
SQLite it is the node's own processes that are killed. The clients' record is then held against the definition of a
store that does one thing at a time, and the store against itself.

The full run takes CHAOS_SECONDS (300 by default) of load. The seed of a run is printed and can be set with CHAOS_SEED;
the schedule of faults and what clients ask follow from it, though not the moment at which a request meets a fault.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.chaos.cluster_faults import LocalServer, NotLocal
from tests.chaos.doubtful_node import VARIABLE as PRESUME_LOST
from tests.chaos.linearisability import check
from tests.chaos.runs import (
    ANSWER_S,
    RESUME_S,
    Run,
    assert_faults_bit,
    assert_honest,
    assert_linearisable,
    assert_served_again,
    assert_store_is_whole,
    describe,
    running,
    settled_commits,
)
from tests.chaos.stalling_node import VARIABLE, stall
from tests.clusters import CLUSTER_VARIABLE, fresh_url
from tests.crash.test_kill import child_pids, until
from tests.nodes import RunningNode, engine_settings, running_node, start_node

PAUSE_S = 10.0
LONGEST_S = 25.0
HEALTHY_S = 14.0
"""Between two faults of a full run: longer than the service may take to come back."""


def seed_of(default: int) -> int:
    seed = int(os.environ.get("CHAOS_SEED", default))
    print(f"seed {seed}")
    return seed


def full_seconds() -> float:
    return float(os.environ.get("CHAOS_SECONDS", "300"))


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """The server of the cluster under test; it runs again when the test is over."""
    try:
        found = LocalServer(Path(os.environ[CLUSTER_VARIABLE]))
    except NotLocal as reason:
        pytest.fail(f"chaos needs a cluster of one process on this machine: {reason}")
    try:
        yield found
    finally:
        found.mend()


READY_S = 5.0
"""Within which a node whose database is away says that it cannot serve."""


class ClusterChaos:
    """The faults of a cluster and of its client."""

    def __init__(self, run: Run, server: LocalServer, node: RunningNode, sockets: Path, rng: random.Random) -> None:
        self.run = run
        self.server = server
        self.node = node
        self.sockets = sockets
        self.rng = rng

    def kill(self) -> None:
        """At a moment when it has much in hand: it has just gone on after a pause, and dies among its commits."""
        with self.run.fault("fdbserver killed and started again"):
            self.server.pause()
            self.run.go_on(0.5)
            self.server.resume()
            self.run.go_on(self.rng.uniform(0, 0.03))
            self.server.kill()
            self.server.start()

    def outage(self) -> None:
        """Longer than any request waits. The node says that it lives and cannot serve, and then that it can."""
        with self.run.fault("fdbserver killed, and started again much later", silence_s=LONGEST_S):
            self.server.kill()
            self.run.go_on(2)
            assert self.status_of("/healthz") == 200
            before_s = time.monotonic()
            assert self.status_of("/readyz") == 503
            assert time.monotonic() - before_s < READY_S
            self.run.go_on(LONGEST_S - self.run.fault_s)
            self.server.start()
        self.run.go_on(RESUME_S)
        assert self.status_of("/readyz") == 200

    def status_of(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.node.port, timeout=ANSWER_S)
        with contextlib.closing(connection):
            connection.request("GET", path)
            return connection.getresponse().status

    def pause(self, seconds: float = PAUSE_S) -> None:
        with self.run.fault("fdbserver stopped", silence_s=seconds):
            self.server.pause()
            self.run.go_on(seconds)
            self.server.resume()

    def long_stall(self) -> None:
        self.stall(2 * PAUSE_S)

    def stall(self, seconds: float = PAUSE_S) -> None:
        """The network threads of one worker or of all processes hang."""
        processes = child_pids(self.node.pid)
        silence_s = seconds
        if self.rng.random() < 0.5:
            processes, silence_s = [processes[-1]], 0.0  # the others serve
        with self.run.fault(f"network threads of {len(processes)} processes stalled", silence_s=silence_s):
            stall(self.sockets, processes, seconds)
            self.run.go_on(seconds)


@contextlib.contextmanager
def node_on_cluster(
    directory: Path, program: str = "tests.chaos.stalling_node", environment: Mapping[str, str] | None = None
) -> Iterator[tuple[RunningNode, tuple[str, ...], Path]]:
    """A node on the cluster under test; the flags that name its store; where to ask for stalls."""
    sockets = directory / "stall"
    sockets.mkdir()
    key = directory / "master.key"
    key.touch(mode=0o600)
    key.write_text(base64.b64encode(os.urandom(32)).decode())
    with fresh_url() as url:
        flags = (f"--metadata={url}", f"--master-key-file={key}")
        command = [sys.executable, "-m", program]
        environment = {VARIABLE: str(sockets), **(environment or {})}
        with running_node(
            directory / "data", *flags, "--access-log=off", command=command, environment=environment
        ) as node:
            yield node, flags, sockets


@pytest.fixture
def fdb_node(tmp_path: Path) -> Iterator[tuple[RunningNode, tuple[str, ...], Path]]:
    with node_on_cluster(tmp_path) as found:
        yield found


def judge(run: Run, node: RunningNode, flags: tuple[str, ...] = ()) -> None:
    """Everything that must be true of a run on a cluster, once its load has ended."""
    pids = child_pids(node.pid)
    records = run.finish(120)
    describe(run, records)
    print(f"commits of unknown outcome: {dict(settled_commits(node)) or 'none was met'}")
    assert_linearisable(records)
    assert_honest(records)
    assert_faults_bit(run, records)
    assert_served_again(run, records)
    assert child_pids(node.pid) == pids
    assert_store_is_whole(node, *flags)


@pytest.mark.fdb
def test_a_cluster_killed_paused_and_stalled_under_load(
    fdb_node: tuple[RunningNode, tuple[str, ...], Path], server: LocalServer, tmp_path: Path
) -> None:
    node, flags, sockets = fdb_node
    rng = random.Random(seed := seed_of(1))
    pids = child_pids(node.pid)
    with running(node, tmp_path, seed=seed, seconds=24) as run:
        chaos = ClusterChaos(run, server, node, sockets, rng)
        run.go_on(2)
        chaos.kill()
        run.go_on(4)
        chaos.pause(3)
        run.go_on(4)
        chaos.stall(3)
        judge(run, node, flags)
    assert child_pids(node.pid) == pids


@pytest.mark.fdb
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_minutes_of_chaos_on_a_cluster(
    fdb_node: tuple[RunningNode, tuple[str, ...], Path], server: LocalServer, tmp_path: Path
) -> None:
    node, flags, sockets = fdb_node
    seconds = full_seconds()
    rng = random.Random(seed := seed_of(2))
    pids = child_pids(node.pid)
    with running(node, tmp_path, seed=seed, seconds=seconds) as run:
        chaos = ClusterChaos(run, server, node, sockets, rng)
        faults: list[Callable[[], None]] = []
        run.go_on(5)
        while run.elapsed_s < seconds - LONGEST_S - RESUME_S - HEALTHY_S:
            faults = faults or rng.sample([chaos.kill, chaos.outage, chaos.pause, chaos.stall, chaos.long_stall], 5)
            faults.pop()()
            run.go_on(HEALTHY_S)
        judge(run, node, flags)
        assert settled_commits(node), "no commit lost its answer: the run says nothing of what becomes of those"
    assert child_pids(node.pid) == pids


@pytest.mark.fdb
@pytest.mark.parametrize("defect", ["", "1"], ids=["settled", "presumed lost"])
def test_commits_whose_answers_are_lost_take_effect_once(defect: str, tmp_path: Path) -> None:
    """And a node that repeats them without asking is found out, by the same load and judgement."""
    doubtful = node_on_cluster(tmp_path, "tests.chaos.doubtful_node", {PRESUME_LOST: defect})
    with doubtful as (node, flags, _), running(node, tmp_path, seed=seed_of(4), seconds=8) as run:
        if not defect:
            judge(run, node, flags)
            assert {"(1021) settled: committed", "(1021) settled: abandoned"} <= settled_commits(node).keys()
            return
        records = run.finish(60)
        describe(run, records)
        found = check(operation for record in records for operation in record.operations())
        print(f"{len(found)} keys not linearisable")
        assert found


class NodeChaos:
    """The faults of a node itself; `node` is the one that runs now, always at the same address."""

    def __init__(self, data_dir: Path, rng: random.Random) -> None:
        self.data_dir = data_dir
        self.rng = rng
        self.node = self.begin(0)
        self.run: Run

    def begin(self, port: int) -> RunningNode:
        return start_node(self.data_dir, f"--port={port}", "--access-log=off", "--sweep-interval=1s")

    def kill_one(self) -> None:
        victim = self.rng.choice(child_pids(self.node.pid))
        with self.run.fault("a process of the node killed"):
            os.kill(victim, signal.SIGKILL)

    def kill_all(self) -> None:
        with self.run.fault("the node killed and started again"):
            self.node.kill()
            self.node = self.begin(self.node.port)


@pytest.mark.slow
def test_a_node_and_its_processes_killed_under_load(tmp_path: Path) -> None:
    """Whoever speaks to a process that dies is cut off, and learns nothing; all that is told is true."""
    rng = random.Random(seed := seed_of(3))
    chaos = NodeChaos(tmp_path / "data", rng)
    try:
        # Some of it after the last fault, however long a node under load takes to start.
        with running(chaos.node, tmp_path, seed=seed, seconds=45) as run:
            chaos.run = run
            while run.elapsed_s < 24:
                run.go_on(rng.uniform(1, 3))
                rng.choice([chaos.kill_one, chaos.kill_one, chaos.kill_all])()
            records = run.finish(120)
        describe(run, records)
        assert_linearisable(records)
        assert_honest(records, cut_is_fair=True)
        assert_served_again(run, records)
        incoming = tmp_path / "data" / "cache" / "incoming"
        until(lambda: not any(incoming.iterdir()), "the sweep has settled all uploads")
        flags = (f"--{name.replace('_', '-')}={value}" for name, value in engine_settings(chaos.data_dir).items())
        assert_store_is_whole(chaos.node, *flags)
    finally:
        chaos.node.kill()
