"""`python -m tests.chaos.load`: clients of one node that keep a record of everything they asked and were told.

A process of its own, so that its clients are no slower for what the tests do. Each client has one connection, does one
thing at a time and never repeats anything: what an answer leaves open is written down as open. Every body is unlike all
others, so its ETag names one write for good.

The record is a file of JSON lines, `Record`s; times are nanoseconds of CLOCK_MONOTONIC, which all processes of a
machine share. The load ends after `--seconds` and then reads every key once more.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import uvloop

from bench.signing import EMPTY_SHA256, Signer
from tests.chaos.linearisability import Kind, Operation, Outcome

GROUP = 8
"""Keys that one listing shows."""

GIVE_UP_S = 45.0
"""How long a client waits for an answer: far longer than any may take."""

SMALL, LARGE = 300, 40_000
"""Bytes of a body that becomes a row, and of one that becomes a file. Each also carries its own name."""

MIX = {"put": 18, "large": 4, "create": 10, "replace": 10, "delete": 12, "get": 26, "head": 10, "list": 10}
"""What clients do, by weight."""


@dataclass
class Record:
    """One request.

    Attributes:
        action: a key of `MIX`.
        status: of the answer; 0 for none, and then `trouble` says why.
        code: S3's, of an error that came with a document.
        retry_after: the header's text.
        trouble: "refused" (no connection, so certainly no effect), "cut" (the connection ended without an answer),
            "silence" (no answer for `GIVE_UP_S`), "damage" (an answer that contradicts itself).
        value, expected: ETags of a write and of its If-Match.
        seen: what a read showed: ETag by key, None for absent ones.
    """

    client: int
    action: str
    key: str
    start_ns: int = 0
    end_ns: int = 0
    status: int = 0
    code: str = ""
    retry_after: str = ""
    trouble: str = ""
    value: str | None = None
    expected: str | None = None
    seen: dict[str, str | None] = field(default_factory=dict)

    @property
    def succeeded(self) -> bool:
        """The store did what was asked, or told truly why it could not be."""
        return 200 <= self.status < 500 and not self.trouble

    def operations(self) -> Iterator[Operation]:
        """What it says of each key it touches."""
        if self.action in ("get", "head", "list"):
            for key, etag in self.seen.items():
                yield self._operation(key, Kind.READ, Outcome.OK, observed=etag)
            return
        kind = {"put": Kind.PUT, "large": Kind.PUT}.get(self.action) or Kind(self.action)
        if self.status in (200, 204):
            outcome = Outcome.OK
        elif self.status == 412:
            outcome = Outcome.EXISTS
        elif self.status == 404 and kind is Kind.REPLACE:
            outcome = Outcome.ABSENT
        elif self.trouble == "refused" or 400 <= self.status < 500:
            outcome = Outcome.FAILED
        else:
            outcome = Outcome.AMBIGUOUS
        yield self._operation(self.key, kind, outcome, value=self.value, expected=self.expected)

    def _operation(self, key: str, kind: Kind, outcome: Outcome, **values: str | None) -> Operation:
        name = f"client {self.client} {self.action} {self.status or self.trouble}"
        return Operation(key, kind, outcome, self.start_ns, self.end_ns, name=name, **values)


def records_of(path: Path) -> list[Record]:
    """What a load wrote; a last line that was cut off is left out."""
    lines = path.read_text().split("\n")[:-1]
    return [Record(**json.loads(line)) for line in lines]


class Client:
    """One client."""

    def __init__(self, load: Load, number: int) -> None:
        self._load = load
        self._number = number
        self._rng = random.Random(f"{load.seed} {number}")
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def run(self, until_s: float) -> None:
        rng, load = self._rng, self._load
        pause_s = rng.uniform(0, 1 / load.rate)
        while time.monotonic() + pause_s < until_s:
            await asyncio.sleep(pause_s)
            pause_s = rng.expovariate(load.rate)
            record = await self.ask(rng.choices(list(MIX), list(MIX.values()))[0], rng.choice(load.keys))
            if not record.succeeded:
                pause_s += float(record.retry_after or 0.2)
        self.close()

    async def read_everything(self) -> None:
        for key in self._load.keys:
            for action in ("get", "head"):
                await self.ask(action, key)
        for key in self._load.keys[::GROUP]:
            await self.ask("list", key)
        self.close()

    async def ask(self, action: str, key: str) -> Record:
        """One request; written down."""
        load, rng = self._load, self._rng
        record = Record(self._number, action, key)
        method, path, query, body = "GET", f"/{load.bucket}/{key}", "", b""
        headers: dict[str, str] = {}
        if action in ("put", "large", "create", "replace"):
            method = "PUT"
            body = rng.randbytes(16).hex().encode() + load.filler[: LARGE if action == "large" else SMALL]
            record.value = hashlib.md5(body).hexdigest()
            if action == "create":
                headers["If-None-Match"] = "*"
            elif action == "replace":
                record.expected = load.known.get(key, "0" * 32)
                headers["If-Match"] = f'"{record.expected}"'
        elif action == "list":
            path, query = f"/{load.bucket}", f"list-type=2&prefix={key.rpartition('/')[0]}%2F"
        elif action in ("head", "delete"):
            method = action.upper()
        digest = hashlib.sha256(body).hexdigest() if body else EMPTY_SHA256
        length = len(body) if method == "PUT" else None
        head = load.signer.head(method, path, query, payload_sha256=digest, length=length, headers=headers)
        record.start_ns = time.monotonic_ns()
        try:
            async with asyncio.timeout(GIVE_UP_S):
                try:
                    reader, writer = await self._connection()
                except OSError:
                    record.trouble = "refused"
                else:
                    writer.write(head + body)
                    await self._hear(record, reader, method)
        except TimeoutError:
            record.trouble = "silence"
        except (OSError, asyncio.IncompleteReadError):
            record.trouble = "cut"
        if record.trouble:
            self.close()
        record.end_ns = time.monotonic_ns()
        load.write(record)
        return record

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None or self._reader.at_eof():
            self.close()
            host, _, port = self._load.signer.host.partition(":")
            self._reader, self._writer = await asyncio.open_connection(host, int(port))
        return self._reader, self._writer

    async def _hear(self, record: Record, reader: asyncio.StreamReader, method: str) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in head[1:] if line)
        headers = {name.lower(): value.strip() for name, _, value in fields}
        status = int(head[0].split(" ")[1])
        bodiless = method == "HEAD" or status in (204, 304)
        body = b"" if bodiless else await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection", "").lower() == "close":
            self.close()
        record.status = status
        record.retry_after = headers.get("retry-after", "")
        if status >= 300:
            code = re.search(rb"<Code>(\w+)</Code>", body)
            record.code = code[1].decode() if code else ""
        etag = headers.get("etag", "").strip('"')
        if record.action in ("get", "head"):
            if status == 200:
                record.seen = {record.key: etag}
                if method == "GET" and hashlib.md5(body).hexdigest() != etag:
                    record.trouble = "damage"
            elif status == 404 and (bodiless or record.code == "NoSuchKey"):
                record.seen = {record.key: None}
        elif record.action == "list" and status == 200:
            rows = re.findall(rb"<Contents>.*?<Key>([^<]+)</Key>.*?<ETag>[^0-9a-f]*([0-9a-f]{32}).*?</Contents>", body)
            once = len({key for key, _ in rows}) == len(rows)
            if not once or len(rows) != body.count(b"<Contents>") or b"<IsTruncated>true" in body:
                record.trouble = "damage"
            group = record.key.rpartition("/")[0] + "/"
            record.seen = {key: None for key in self._load.keys if key.startswith(group)}
            record.seen.update((key.decode(), value.decode()) for key, value in rows)
        elif record.value is not None and status == 200 and etag != record.value:
            record.trouble = "damage"
        for key, value in (*record.seen.items(), (record.key, record.value if status == 200 else None)):
            if value is not None:
                self._load.known[key] = value

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


class Load:
    """All clients of a run and what they share."""

    def __init__(
        self, signer: Signer, bucket: str, clients: int, keys: int, rate: float, seed: int, record: Path
    ) -> None:
        self.signer = signer
        self.bucket = bucket
        self.rate = rate / clients
        self.seed = seed
        self.keys = [f"group-{n // GROUP}/key-{n % GROUP}" for n in range(keys)]
        self.known: dict[str, str] = {}
        self.filler = random.Random(seed).randbytes(LARGE)
        self._clients = clients
        self._record = record

    async def run(self, seconds: float) -> None:
        with self._record.open("w", buffering=1 << 16) as self._file:
            until_s = time.monotonic() + seconds
            await asyncio.gather(*(Client(self, number).run(until_s) for number in range(self._clients)))
            await Client(self, self._clients).read_everything()

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(asdict(record)) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("host", "access-key", "secret-key", "bucket", "record"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--keys", type=int, default=80)
    parser.add_argument("--rate", type=float, default=300, help="requests a second that all clients together aim at")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    signer = Signer(given.host, given.access_key, given.secret_key, "auto")
    load = Load(signer, given.bucket, given.clients, given.keys, given.rate, given.seed, Path(given.record))
    uvloop.run(load.run(given.seconds))


if __name__ == "__main__":
    main()
