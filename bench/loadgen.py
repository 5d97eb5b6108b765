"""The compiled load generator (`loadgen.c`) as Python sees it: build it, write its plans, run it, read its result.

Everything dear (signing, hashing) happens before the run, so that the measured loop is C alone. Errors are reported
beside successes and never among them.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import subprocess
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, BinaryIO

HERE = Path(__file__).parent
BUILDS = HERE / "bin"

# Odd and a little over 1 MiB: small enough for a CPU's cache, and no power of two divides it, so that a store which
# mixes up blocks, parts or ranges is caught. Random, so that nothing compresses it.
PATTERN_BYTES = (1 << 20) + 4099


class Check(IntEnum):
    """What makes a response body right, beside its status."""

    STATUS = 0  # any body
    PATTERN = 1  # exactly this slice of the pattern
    KEYS = 2  # a listing of exactly these keys, in this order
    HEAD = 3  # no body, this Content-Length
    PREFIXES = 4  # a listing of exactly these common prefixes, in this order


@cache
def pattern() -> bytes:
    return random.Random(0).randbytes(PATTERN_BYTES)


def content(at: int, size: int) -> bytes:
    """The slice `[at, at + size)` of the endlessly repeated pattern."""
    start = at % PATTERN_BYTES
    return (pattern() * ((start + size) // PATTERN_BYTES + 1))[start : start + size]


@lru_cache(maxsize=16384)
def content_sha256(at: int, size: int) -> str:
    return hashlib.sha256(content(at, size)).hexdigest()


@lru_cache(maxsize=16384)
def content_md5(at: int, size: int) -> str:
    return hashlib.md5(content(at, size)).hexdigest()


def keys_hash(keys: list[str]) -> int:
    """FNV-1a over each key and a newline: what `Check.KEYS` and `Check.PREFIXES` compare."""
    value = 14695981039346656037
    for byte in "".join(f"{key}\n" for key in keys).encode():
        value = ((value ^ byte) * 1099511628211) & 0xFFFFFFFFFFFFFFFF
    return value


@dataclass(frozen=True)
class Request:
    """One entry of a plan. Bodies and expectations are slices of the pattern: offset, size."""

    head: bytes
    status: int = 200
    refused: int = 0  # a status counted apart from success and error; 0 for none
    check: Check = Check.STATUS
    body_at: int = 0
    body_len: int = 0
    expect_at: int = 0
    expect_len: int = 0
    expect_hash: int = 0
    expect_count: int = 0


@dataclass(frozen=True)
class Result:
    """What one run of the load generator saw. Latencies are of successes only."""

    issued: int
    ok: int
    refused: int
    errors: int
    elapsed_s: float
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float
    mean_us: float
    bytes_in: int
    bytes_out: int
    connects: int
    client_cpu_s: float
    failures: dict[str, int] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)
    first_p50_us: float = 0.0  # to the first byte of the body
    first_p99_us: float = 0.0


def compile_loadgen(directory: Path = BUILDS) -> Path:
    """Compiles the load generator unless a build of this very source is there; returns the program's path.

    Raises:
        FileNotFoundError: there is no `cc`.
        CalledProcessError: it fails.
    """
    source = HERE / "loadgen.c"
    program = directory / f"loadgen-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if not program.exists():
        directory.mkdir(parents=True, exist_ok=True)
        unfinished = program.with_suffix(".tmp")
        subprocess.run(["cc", "-O2", "-std=gnu11", "-o", str(unfinished), str(source)], check=True)
        unfinished.rename(program)
    return program


def write_plan(file: BinaryIO, requests: list[Request]) -> None:
    """Writes requests in the format that `loadgen.c` documents."""
    file.write(struct.pack("<8sQ", b"TLPLAN01", len(requests)))
    for r in requests:
        padding = b"\0" * (-len(r.head) % 8)
        fixed = struct.pack(
            "<4I6Q",
            len(r.head),
            r.status,
            r.refused,
            r.check,
            r.body_at,
            r.body_len,
            r.expect_at,
            r.expect_len,
            r.expect_hash,
            r.expect_count,
        )
        file.write(fixed + r.head + padding)


@dataclass
class LoadGenerator:
    """Runs plans against one machine. `scratch` is a directory for plans and the pattern."""

    scratch: Path
    program: Path = field(default_factory=compile_loadgen)
    _plans: int = 0

    def __post_init__(self) -> None:
        (self.scratch / "pattern").write_bytes(pattern())

    def start(
        self,
        port: int,
        requests: list[Request],
        *,
        connections: int,
        seconds: float,
        count: int | None = None,
        cycle: bool = False,
        rate: float = 0,
        timeout_s: float = 30,
        max_errors: int = 100,
    ) -> Run:
        """Begins a run: at most `count` requests, none issued after `seconds`, each ended within `timeout_s`.

        Without `cycle` the plan is played once; with `rate` (requests per second) latencies count from when a request
        was due, otherwise every connection asks again as soon as it is answered.
        """
        self._plans += 1
        plan = self.scratch / f"plan-{self._plans}"
        with plan.open("wb") as file:
            write_plan(file, requests)
        command = [
            str(self.program),
            "--port",
            str(port),
            "--plan",
            str(plan),
            "--pattern",
            str(self.scratch / "pattern"),
        ]
        command += ["--connections", str(connections), "--seconds", str(seconds), "--timeout", str(timeout_s)]
        command += ["--rate", str(rate), "--max-errors", str(max_errors)]
        command += ["--count", str(count)] if count is not None else []
        command += ["--cycle"] if cycle else []
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return Run(process, plan, seconds + timeout_s + 30)

    def run(self, port: int, requests: list[Request], **bounds: Any) -> Result:
        """`start`, then wait."""
        return self.start(port, requests, **bounds).result()


@dataclass
class Run:
    """A load generator at work."""

    process: subprocess.Popen[str]
    plan: Path
    limit_s: float

    def stop(self) -> Result:
        """Issues nothing more; the result of what was issued."""
        self.process.terminate()
        return self.result()

    def result(self) -> Result:
        """Waits for the end. Raises RuntimeError if the generator itself failed, TimeoutExpired if it hangs."""
        try:
            output, _ = self.process.communicate(timeout=self.limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        finally:
            self.plan.unlink(missing_ok=True)
        if self.process.returncode:
            raise RuntimeError(f"the load generator exited with {self.process.returncode}")
        return Result(**json.loads(output))
