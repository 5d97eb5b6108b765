"""A run of chaos: the load, the faults during it, and everything that must be true of what the clients wrote down."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.linearisability import check
from tests.chaos.load import Record, records_of
from tests.nodes import RunningNode

RESUME_S = 10.0
"""Within which the service goes on by itself once a fault has ended."""

ANSWER_S = 16.0
"""The longest that a request may take, fault or none: the engine's limit, what it grants a hanging thread, and some."""

BUCKET = "chaos"
S = 1_000_000_000


@dataclass
class Fault:
    """Something that was done to the store, from its beginning to its end.

    Attributes:
        silence_s: for which nothing can be served, if it does what it is meant to.
    """

    name: str
    begun_ns: int
    silence_s: float = 0.0
    ended_ns: int = 0

    def __str__(self) -> str:
        return f"{self.name} ({(self.ended_ns - self.begun_ns) / S:.1f} s)"


@dataclass
class Run:
    """A load on one node, and what is done to the node meanwhile."""

    load: subprocess.Popen[bytes]
    record: Path
    begun_ns: int = field(default_factory=time.monotonic_ns)
    faults: list[Fault] = field(default_factory=list)

    @property
    def elapsed_s(self) -> float:
        return (time.monotonic_ns() - self.begun_ns) / S

    @property
    def fault_s(self) -> float:
        """Since the last fault began."""
        return (time.monotonic_ns() - self.faults[-1].begun_ns) / S

    def go_on(self, seconds: float) -> None:
        """Let the load go on for a while."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.load.wait(seconds)
            raise AssertionError(f"the load ended early, with status {self.load.returncode}")

    @contextlib.contextmanager
    def fault(self, name: str, *, silence_s: float = 0.0) -> Iterator[None]:
        """What happens inside the `with` block is the fault."""
        self.faults.append(Fault(name, time.monotonic_ns(), silence_s))
        try:
            yield
        finally:
            self.faults[-1].ended_ns = time.monotonic_ns()

    def finish(self, timeout_s: float) -> list[Record]:
        """What the clients wrote down, once the load has ended by itself."""
        assert self.load.wait(timeout_s) == 0
        return records_of(self.record)


@contextlib.contextmanager
def running(node: RunningNode, directory: Path, *, seed: int, seconds: float, clients: int = 100) -> Iterator[Run]:
    """A run for the length of a `with` block, over a bucket made for it."""
    s3 = node.client()
    # A node that repeats commits is told so by its own work.
    with contextlib.suppress(s3.exceptions.BucketAlreadyOwnedByYou):
        s3.create_bucket(Bucket=BUCKET)
    s3.close()
    record = directory / "record"
    command = [sys.executable, "-m", "tests.chaos.load", "--host", node.endpoint.partition("//")[2]]
    command += ["--access-key", node.access_key_id, "--secret-key", node.secret_access_key, "--bucket", BUCKET]
    command += ["--clients", str(clients), "--seconds", str(seconds), "--seed", str(seed), "--record", str(record)]
    load = subprocess.Popen(command)
    try:
        yield Run(load, record)
    finally:
        load.kill()
        load.wait()


def describe(run: Run, records: list[Record]) -> None:
    """Print what happened."""
    succeeded = [record for record in records if record.succeeded]
    done = Counter(record.action for record in succeeded)
    failed = Counter(record.trouble or f"{record.status} {record.code}".strip() for record in records)
    print(f"{len(records)} requests, {len(succeeded)} served: {dict(sorted(done.items()))}")
    print(f"answers: {dict(failed.most_common())}")
    longest = max(records, key=lambda record: record.end_ns - record.start_ns)
    print(f"longest: {(longest.end_ns - longest.start_ns) / S:.2f} s ({longest.action}, {longest.status})")
    for fault, until_ns in _spans(run):
        gap_ns = longest_gap_ns(fault, until_ns, records)
        again_ns = min((r.end_ns for r in records if r.succeeded and r.end_ns > fault.ended_ns), default=0)
        unserved = [r for r in records if fault.begun_ns <= r.end_ns < until_ns and not r.succeeded]
        slowest_ns = max((r.end_ns - r.start_ns for r in records if fault.begun_ns <= r.end_ns < until_ns), default=0)
        last_ns = max((r.end_ns - fault.ended_ns for r in unserved), default=0)
        print(
            f"{(fault.begun_ns - run.begun_ns) / S:6.1f} s: {fault}: nothing served for {gap_ns / S:.2f} s, "
            f"served again {(again_ns - fault.ended_ns) / S:+.2f} s after its end; {len(unserved)} unserved, the last "
            f"{last_ns / S:+.2f} s after its end; the slowest answer took {slowest_ns / S:.2f} s"
        )


def _spans(run: Run) -> Iterator[tuple[Fault, int]]:
    """Each fault with the beginning of the next."""
    begins = [fault.begun_ns for fault in run.faults[1:]]
    return zip(run.faults, [*begins, 1 << 63], strict=False)


def longest_gap_ns(fault: Fault, until_ns: int, records: list[Record]) -> int:
    """The longest time around a fault in which nobody had an answer that served."""
    ends = sorted(r.end_ns for r in records if r.succeeded)
    pairs = itertools.pairwise(ends)
    last_ns = min(fault.ended_ns + S, until_ns)
    return max((two - one for one, two in pairs if two > fault.begun_ns and one < last_ns), default=0)


def assert_faults_bit(run: Run, records: list[Record]) -> None:
    """A fault that nothing can be served through was one."""
    for fault, until_ns in _spans(run):
        gap_s = longest_gap_ns(fault, until_ns, records) / S
        assert gap_s >= 0.8 * fault.silence_s, f"requests were served during {fault}: they ceased for {gap_s:.2f} s"


def settled_commits(node: RunningNode) -> Counter[str]:
    """How many commits of unknown outcome the node has settled, by FoundationDB's number and what became of them."""
    return Counter(re.findall(r"unknown commit (\(\d+\) settled: \w+)", node.log.read_text()))


def assert_served_again(run: Run, records: list[Record]) -> None:
    """After each fault reads and writes are served again, and soon none is refused for its sake."""
    for fault, until_ns in _spans(run):
        limit_ns = fault.ended_ns + int(RESUME_S * S)
        for name, actions in (("reads", ("get", "head", "list")), ("writes", ("put", "large", "create", "delete"))):
            served = [r.end_ns for r in records if r.action in actions and r.succeeded and r.start_ns > fault.ended_ns]
            assert served, f"no {name} are served after {fault}"
            assert min(served) <= limit_ns, (
                f"{name} are served again {(min(served) - fault.ended_ns) / S} s after {fault}"
            )
        late = [r for r in records if limit_ns < r.start_ns and r.end_ns < until_ns and not r.succeeded]
        assert not late, f"{len(late)} unserved long after {fault}: {late[0]}"


def assert_honest(records: list[Record], *, cut_is_fair: bool = False) -> None:
    """Every request has an answer, in time; what is not served is 503 SlowDown with Retry-After and nothing else.

    Args:
        cut_is_fair: connections may end without an answer, or not come about.
    """
    for record in records:
        if record.trouble in ("cut", "refused") and cut_is_fair:
            continue
        assert not record.trouble, record
        assert record.end_ns - record.start_ns < ANSWER_S * S, record
        if record.status >= 500:
            assert record.status == 503, record
            assert record.code == "SlowDown" or record.action == "head", record
            assert record.retry_after.isdigit(), record
        else:
            expected = {200, 204, 404, 412}
            assert record.status in expected, record
            assert record.code in ("", "NoSuchKey", "PreconditionFailed"), record


def assert_linearisable(records: list[Record]) -> None:
    """No acknowledged write is lost, none takes effect twice, and nobody sees what was not there."""
    began_s = time.process_time()
    history = [operation for record in records for operation in record.operations()]
    violations = check(history)
    keys = len({operation.key for operation in history})
    doubtful = sum(operation.outcome.value == "ambiguous" for operation in history)
    print(
        f"{len(history)} operations on {keys} keys, {doubtful} of them of unknown outcome: {len(violations)} keys not "
        f"linearisable ({time.process_time() - began_s:.1f} s)"
    )
    assert not violations, "\n".join(map(str, violations[:5]))


def assert_store_is_whole(node: RunningNode, *flags: str) -> None:
    """fsck finds nothing: no counter, reference or file that contradicts another."""
    command = [sys.executable, "-m", "tigrislike", "admin", "fsck", "--json", "--data-dir", str(node.data_dir), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, findings) == (0, []), (done.stderr, findings[:5])
