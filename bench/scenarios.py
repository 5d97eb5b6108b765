"""What is measured: each scenario prepares signed requests ahead, plays them on one store and says what it cost.

A measurement's server CPU is taken from before the first request until the store has gone quiet after the last, over
all its processes. Requests that failed a check are in `errors` and in nothing else.
"""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from bench.loadgen import Check, LoadGenerator, Request, Result, content_md5, content_sha256, keys_hash
from bench.processes import StoreFailed
from bench.signing import call
from bench.stores import Store

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PART_BYTES = 16 * MIB
RANGE_BYTES = 8 * MIB
PAGE_KEYS = 1000
LOAD_CONNECTIONS = 32
SIZES = {"1k": KIB, "64k": 64 * KIB, "1m": MIB}
CLIENT_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "tigrislike-bench"}


@dataclass(frozen=True)
class Scale:
    """How much is done; `--quick` shrinks all of it."""

    seconds: float = 2.0
    objects: tuple[tuple[str, int], ...] = (("1k", 4096), ("64k", 2048), ("1m", 256))  # different keys read back
    # The most PUTs of one run: bounds the disk that five rounds fill, not the speed.
    puts: tuple[tuple[str, int], ...] = (("1k", 24_000), ("64k", 2048), ("1m", 160))
    listed_keys: int = 100_000
    large_bytes: int = GIB
    load_s: float = 900.0  # rclone needs most of it for a directory of 100,000 files

    def bytes_per_round(self) -> int:
        return sum(2 * count * SIZES[size] for size, count in self.puts) + self.large_bytes

    def bytes_loaded(self) -> int:
        return sum(count * SIZES[size] for size, count in self.objects) + self.large_bytes + self.listed_keys * 4 * KIB


QUICK = Scale(
    seconds=0.3,
    objects=(("1k", 256), ("64k", 64), ("1m", 8)),
    puts=(("1k", 1000), ("64k", 64), ("1m", 8)),
    listed_keys=2000,
    large_bytes=48 * MIB + 5,
    load_s=60.0,
)


@dataclass(frozen=True)
class Measurement:
    """One run of one scenario on one store. `unit` is what an operation is: "op" or "GB" (10^9 bytes)."""

    store: str
    scenario: str
    round: int
    unit: str
    amount: float  # operations or GB that succeeded
    elapsed_s: float
    server_cpu_s: float
    client: Result

    @property
    def rate(self) -> float:
        return self.amount / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def cpu_us(self) -> float:
        """Server CPU microseconds per unit."""
        return self.server_cpu_s / self.amount * 1e6 if self.amount else 0.0

    @property
    def valid(self) -> bool:
        return self.client.ok > 0 and self.client.errors == 0

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "rate": self.rate, "cpu_us": self.cpu_us, "valid": self.valid}


@dataclass
class Bench:
    """A store being measured: loads its objects, then measures any scenario by name."""

    store: Store
    generator: LoadGenerator
    scale: Scale

    def load(self, scenarios: list[str]) -> None:
        """Puts what the scenarios read. Raises StoreFailed when a single request fails."""
        read = {name.split("-")[1] for name in scenarios if name.startswith("get-")}
        if any(name.startswith("head") for name in scenarios):
            read.add("1k")
        for size, count in self.scale.objects:
            if size in read:
                self._load(size, [self._put(f"{size}/{i:05d}", i * 7919, SIZES[size]) for i in range(count)])
        if "list" in scenarios:
            self.store.create_bucket(f"{self.store.bucket}-list")
            puts = [self._put(key, i % 512, 64, bucket="-list") for i, key in enumerate(self._listed_keys())]
            self._load("keys", puts)
        if any(name.startswith(("get-1g", "ranges")) for name in scenarios):
            done = self._multipart("large", measured=False)
            if done.client.errors:
                raise StoreFailed(f"{self.store.name}: loading the large object: {done.client.samples}")

    def measure(self, scenario: str, turn: int) -> Measurement:
        """Runs one scenario once. `turn` is the round, so that no PUT repeats a key."""
        if scenario == "multipart":
            return self._multipart(f"multipart-{turn}", measured=True, turn=turn)
        name, _, rest = scenario.partition("-")
        size, _, concurrency = rest.partition("-c")
        large = self.scale.large_bytes
        if scenario == "get-1g":
            whole = [self._get("large", 0, large)]
            return self._measured(scenario, turn, whole, connections=1, unit="GB")
        if scenario == "ranges":
            requests = [self._range(at, min(RANGE_BYTES, large - at)) for at in range(0, large, RANGE_BYTES)]
            return self._measured(scenario, turn, requests, connections=8, unit="GB")
        if scenario == "list":
            return self._measured(scenario, turn, self._pages(), connections=1, cycle=True)
        if name == "head":
            heads = [self._head(f"1k/{i:05d}", KIB) for i in range(dict(self.scale.objects)["1k"])]
            return self._measured(scenario, turn, heads, connections=int(rest[1:]), cycle=True)
        if name == "get":
            gets = [self._get(f"{size}/{i:05d}", i * 7919, SIZES[size]) for i in range(dict(self.scale.objects)[size])]
            return self._measured(scenario, turn, gets, connections=int(concurrency), cycle=True)
        puts = [
            self._put(f"put-{size}-c{concurrency}-r{turn}/{i:06d}", (i % 512) * 7919, SIZES[size])
            for i in range(dict(self.scale.puts)[size])
        ]
        self._open_prefix(puts.pop())
        return self._measured(scenario, turn, puts, connections=int(concurrency))

    # Requests

    def _path(self, key: str, bucket: str = "") -> str:
        return f"/{self.store.bucket}{bucket}/{key}"

    def _put(self, key: str, at: int, size: int, *, bucket: str = "") -> Request:
        # One digest serves many keys: contents repeat where only the key must be new.
        digest = content_sha256(at, size)
        head = self.store.signer.head(
            "PUT", self._path(key, bucket), payload_sha256=digest, length=size, headers=CLIENT_HEADERS
        )
        return Request(head, body_at=at, body_len=size)

    def _get(self, key: str, at: int, size: int) -> Request:
        head = self.store.signer.head("GET", self._path(key), headers=CLIENT_HEADERS)
        return Request(head, check=Check.PATTERN, expect_at=at, expect_len=size)

    def _head(self, key: str, size: int) -> Request:
        head = self.store.signer.head("HEAD", self._path(key), headers=CLIENT_HEADERS)
        return Request(head, check=Check.HEAD, expect_len=size)

    def _range(self, at: int, size: int) -> Request:
        headers = {**CLIENT_HEADERS, "Range": f"bytes={at}-{at + size - 1}"}
        head = self.store.signer.head("GET", self._path("large"), headers=headers)
        return Request(head, status=self.store.range_status, check=Check.PATTERN, expect_at=at, expect_len=size)

    def _listed_keys(self) -> list[str]:
        return [f"key-{i:07d}" for i in range(self.scale.listed_keys)]

    def _pages(self) -> list[Request]:
        """Pages of 1,000 from positions all over the bucket, each checked to be exactly the keys that follow."""
        keys, pages = self._listed_keys(), []
        for i in range(64):
            after = (i * 37) % 64 * (len(keys) - PAGE_KEYS - 1) // 63
            expected = keys[after + 1 : after + 1 + PAGE_KEYS]
            query = f"list-type=2&max-keys={PAGE_KEYS}&start-after={keys[after]}"
            head = self.store.signer.head("GET", f"/{self.store.bucket}-list", query, headers=CLIENT_HEADERS)
            pages.append(Request(head, check=Check.KEYS, expect_hash=keys_hash(expected), expect_count=len(expected)))
        return pages

    # Runs

    def _open_prefix(self, request: Request) -> None:
        """Puts a prefix's first object alone: rclone fails concurrent PUTs into a directory that is not there yet."""
        result = self.generator.run(self.store.port, [request], connections=1, seconds=10)
        if result.ok != 1:
            raise StoreFailed(f"{self.store.name}: a first PUT: {result.samples}")

    def _load(self, what: str, requests: list[Request]) -> None:
        self._open_prefix(requests[0])
        result = self.generator.run(
            self.store.port, requests, connections=LOAD_CONNECTIONS, seconds=self.scale.load_s, max_errors=1
        )
        if result.ok != len(requests):
            raise StoreFailed(f"{self.store.name}: loading {what}: {result.ok} of {len(requests)}; {result.samples}")

    def _measured(
        self,
        scenario: str,
        turn: int,
        requests: list[Request],
        *,
        connections: int,
        cycle: bool = False,
        unit: str = "op",
    ) -> Measurement:
        seconds, timeout_s = (self.scale.seconds, 60.0) if unit == "op" else (120.0, 180.0)
        before = self.store.settled_cpu_s()
        result = self.generator.run(
            self.store.port, requests, connections=connections, seconds=seconds, cycle=cycle, timeout_s=timeout_s
        )
        spent = self.store.settled_cpu_s() - before
        if unit == "op":
            amount = float(result.ok)
        else:
            amount = sum(r.expect_len for r in requests) / 1e9 if result.ok == len(requests) else 0.0
        return Measurement(self.store.name, scenario, turn, unit, amount, result.elapsed_s, spent, result)

    def _multipart(self, key: str, *, measured: bool, turn: int = 0) -> Measurement:
        """A multipart upload from create to complete, parts on 8 connections with signed payloads."""
        size, signer, path = self.scale.large_bytes, self.store.signer, self._path(key)
        parts = [(n + 1, at, min(PART_BYTES, size - at)) for n, at in enumerate(range(0, size, PART_BYTES))]
        for _, at, length in parts:  # hashed before the clock starts
            content_sha256(at, length), content_md5(at, length)
        before = self.store.settled_cpu_s() if measured else 0.0
        start = time.monotonic()
        created = call(signer, "POST", path, "uploads=")
        found = re.search(rb"<UploadId>([^<]+)</UploadId>", created.body)
        if created.status != 200 or not found:
            raise StoreFailed(f"{self.store.name}: CreateMultipartUpload: {created.status} {created.body[:300]!r}")
        upload = quote(found[1].decode(), safe="-_.~")
        requests = []
        for number, at, length in parts:
            head = signer.head(
                "PUT",
                path,
                f"partNumber={number}&uploadId={upload}",
                payload_sha256=content_sha256(at, length),
                length=length,
                headers=CLIENT_HEADERS,
            )
            requests.append(Request(head, body_at=at, body_len=length))
        result = self.generator.run(self.store.port, requests, connections=8, seconds=180, timeout_s=180, max_errors=1)
        if result.errors == 0:
            listed = "".join(
                f'<Part><PartNumber>{number}</PartNumber><ETag>"{content_md5(at, length)}"</ETag></Part>'
                for number, at, length in parts
            )
            body = f'<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{listed}</CompleteMultipartUpload>'
            completed = call(signer, "POST", path, f"uploadId={upload}", body.encode(), timeout_s=180)
            # S3 may answer 200 and put the error in the body.
            if completed.status != 200 or b"<CompleteMultipartUploadResult" not in completed.body:
                detail = f"{completed.status} {completed.body[:300]!r}"
                raise StoreFailed(f"{self.store.name}: CompleteMultipartUpload: {detail}")
        elapsed = time.monotonic() - start
        spent = self.store.settled_cpu_s() - before if measured else 0.0
        if measured:
            checked = self.generator.run(
                self.store.port, [self._get(key, 0, size)], connections=1, seconds=60, timeout_s=180, max_errors=1
            )
            if checked.ok != 1:
                raise StoreFailed(f"{self.store.name}: the multipart object reads back wrong: {checked.samples}")
            call(signer, "DELETE", path, timeout_s=180)
        return Measurement(
            self.store.name, "multipart", turn, "GB", size / 1e9 * (result.errors == 0), elapsed, spent, result
        )


def _names() -> dict[str, tuple[str, bool]]:
    names: dict[str, tuple[str, bool]] = {}
    for size, words in (("1k", "1 KiB"), ("64k", "64 KiB"), ("1m", "1 MiB")):
        for operation in ("put", "get"):
            for concurrency in (1, 32):
                title = f"{operation.upper()} {words}, {concurrency} connection{'s' if concurrency > 1 else ''}"
                names[f"{operation}-{size}-c{concurrency}"] = (title, operation == "put")
    names["head-c1"] = ("HEAD, 1 connection", False)
    names["head-c32"] = ("HEAD, 32 connections", False)
    names["list"] = ("LIST 1,000 of 100,000 keys", False)
    names["get-1g"] = ("GET 1 GiB", False)
    names["ranges"] = ("GET 1 GiB in 8 MiB ranges, 8 connections", False)
    names["multipart"] = ("multipart PUT 1 GiB, 16 MiB parts, 8 connections", True)
    return names


# name -> (title, writes)
SCENARIOS: dict[str, tuple[str, bool]] = _names()


def select(only: str) -> list[str]:
    """Scenario names that a comma-separated filter asks for: exact names or prefixes, dashes optional ("get1k")."""
    wanted = [word.replace("-", "") for word in only.split(",") if word]
    chosen = [name for name in SCENARIOS if not wanted or any(name.replace("-", "").startswith(w) for w in wanted)]
    for word in wanted:
        if not any(name.replace("-", "").startswith(word) for name in SCENARIOS):
            raise ValueError(f"no scenario is called {word!r}; there are: {', '.join(SCENARIOS)}")
    return chosen
