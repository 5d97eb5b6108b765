"""`python -m bench.cold`: a cold object through a bucket that looks through to it, beside the origin itself.

    python -m bench.cold [--weed PROGRAM] [--mib 1024] [--rounds 3] [--faults-s 20]

The origin is SeaweedFS on loopback, once behind a link of 2 Gbit/s and 20 ms (`lab/link.py`, both ways together) and
once as it is. The client is the same: one connection, one GET, bytes thrown away; each read is of an object that nobody
has read before, straight and through this store in turns. Told are the rate, the time to the first byte (with the
connection made before), and the store's CPU with all its processes. Then 64 clients at once ask for one cold object,
and what the origin sent is counted; a cold range of 8 MiB; and hits are read while the origin fails in every way.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from bench import processes
from bench.blocks import MIB
from bench.report import table
from bench.stores import Store, seaweedfs, tigrislike
from lab.link import call

BYTES_PER_S = 2e9 / 8
ONE_WAY_S = 0.010
READ = 1 << 20


@dataclass(frozen=True)
class Taken:
    """One read: bytes, seconds to the first and to the last, and the store's CPU seconds."""

    size: int
    first_s: float
    whole_s: float
    cpu_s: float = 0.0

    @property
    def mib_per_s(self) -> float:
        return self.size / MIB / self.whole_s


def client(endpoint: str, store: Store) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key,
        region_name="us-east-1",
        config=Config(
            s3={"addressing_style": "path"},
            signature_version="s3v4",
            retries={"total_max_attempts": 1},
            max_pool_connections=80,
        ),
    )


def read(url: str, headers: dict[str, str] | None = None) -> Taken:
    """GET a presigned URL over a connection that is there already."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=300)
    connection.connect()
    buffer = memoryview(bytearray(READ))
    began = time.perf_counter()
    connection.request("GET", f"{parts.path}?{parts.query}", headers=headers or {})
    answer = connection.getresponse()
    assert answer.status in (200, 206), answer.read()
    expected = int(answer.headers["Content-Length"])
    first_s, size = 0.0, 0
    while count := answer.readinto(buffer):
        first_s = first_s or time.perf_counter() - began
        size += count
    assert size == expected, (size, expected)
    taken = Taken(size, first_s, time.perf_counter() - began)
    connection.close()
    return taken


@contextlib.contextmanager
def link(directory: Path, port: int) -> Iterator[tuple[int, Path]]:
    """The origin's port behind a wide area, and where the link takes orders."""
    (far,) = processes.free_ports(1)
    control, log = directory / "link", directory / "link.log"
    command = [sys.executable, "-m", "lab.link", f"--control={control}"]
    command += ["--region=here=127.0.0.1", "--region=there=127.0.2.1"]
    command += [f"--node=there=127.0.0.1:{far}=127.0.0.1:{port}"]
    process = processes.start(command, log, cwd=Path(__file__).parents[1])
    try:
        processes.wait_for_ports(process, [far], log)
        for source, destination in (("here", "there"), ("there", "here")):
            call(control, "set", source=source, destination=destination, latency_s=ONE_WAY_S, bytes_per_s=BYTES_PER_S)
        yield far, control
    finally:
        processes.stop(process)


class Bench:
    """An origin full of objects, and a store whose buckets look through to it."""

    def __init__(self, origin: Store, store: Store, size: int) -> None:
        self.origin = origin
        self.store = store
        self.size = size
        self.at_store = client(f"http://127.0.0.1:{store.port}", store)
        self.at_origin = client(f"http://127.0.0.1:{origin.port}", origin)

    def put(self, key: str, size: int) -> None:
        with tempfile.TemporaryFile() as file:
            piece = os.urandom(MIB)
            for _ in range(size // MIB):
                file.write(piece)
            file.seek(0)
            self.at_origin.upload_fileobj(
                file, self.origin.bucket, key, Config=TransferConfig(multipart_chunksize=64 * MIB)
            )

    def adopt(self, bucket: str, port: int) -> None:
        """A bucket of the store that looks through to the origin at a port, by Tigris' own request."""
        self.at_store.create_bucket(Bucket=bucket)
        shadow = {
            "name": self.origin.bucket,
            "endpoint": f"http://127.0.0.1:{port}",
            "region": "us-east-1",
            "access_key": self.origin.access_key,
            "secret_key": self.origin.secret_key,
        }
        document = json.dumps({"shadow_bucket": shadow}).encode()
        url = f"http://127.0.0.1:{self.store.port}/{bucket}"
        status, body = _patch(url, document, self.store)
        assert status == 200, body

    def straight(self, port: int, key: str) -> Taken:
        at = client(f"http://127.0.0.1:{port}", self.origin)
        return read(at.generate_presigned_url("get_object", Params={"Bucket": self.origin.bucket, "Key": key}))

    def through(self, bucket: str, key: str, headers: dict[str, str] | None = None) -> Taken:
        before = self.store.settled_cpu_s()
        url = self.at_store.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key})
        taken = read(url, headers)
        return Taken(taken.size, taken.first_s, taken.whole_s, self.store.cpu_s() - before)


def _patch(url: str, document: bytes, store: Store) -> tuple[int, bytes]:
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    request = AWSRequest("PATCH", url, data=document, headers={"content-type": "application/json"})
    S3SigV4Auth(Credentials(store.access_key, store.secret_key), "s3", "us-east-1").add_auth(request)
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    connection.request("PATCH", parts.path, document, dict(request.headers))
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def pairs(bench: Bench, bucket: str, port: int, rounds: int, prefix: str) -> tuple[list[Taken], list[Taken]]:
    """The same kind of object straight and through the store, in turns."""
    straight, through = [], []
    for number in range(rounds):
        key = f"{prefix}{number}"
        through.append(bench.through(bucket, key))
        straight.append(bench.straight(port, key))
    return straight, through


HEAD = ("way", "straight, MiB/s", "through, MiB/s", "ratio", "first byte straight, ms", "through", "CPU s/GiB")


def row(name: str, straight: list[Taken], through: list[Taken]) -> list[str]:
    """Medians of both sides, and what they are to each other."""

    def median(values: list[float]) -> float:
        return statistics.median(values)

    rate = median([each.mib_per_s for each in through]) / median([each.mib_per_s for each in straight])
    later_ms = 1000 * (median([each.first_s for each in through]) - median([each.first_s for each in straight]))
    cpu = median([each.cpu_s / (each.size / 2**30) for each in through])
    return [
        name,
        f"{median([each.mib_per_s for each in straight]):.0f}",
        f"{median([each.mib_per_s for each in through]):.0f}",
        f"{rate:.2f}",
        f"{1000 * median([each.first_s for each in straight]):.0f}",
        f"{later_ms:+.0f}",
        f"{cpu:.2f}",
    ]


def hits(bench: Bench, bucket: str, key: str, seconds: float) -> list[float]:
    """How long reads of one small cached object take, one after the other; in seconds, sorted."""
    url = bench.at_store.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key})
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    took = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        connection.request("GET", f"{parts.path}?{parts.query}")
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        took.append(time.perf_counter() - began)
    connection.close()
    return sorted(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weed", default="")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--faults-s", type=float, default=20)
    options = parser.parse_args()
    processes.end_in_order()
    size = options.mib * MIB
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-cold-")))
        for name in ("origin", "store", "link"):
            (scratch / name).mkdir()
        origin, *_ = stack.enter_context(seaweedfs(scratch / "origin", options.weed))
        # Nothing but what is read is fetched: what the queue brings would be counted as somebody's reads.
        arguments = ("--allow-private-origins", "--replication-rate=1")
        (store,) = stack.enter_context(tigrislike(scratch / "store", arguments=arguments))
        far, control = stack.enter_context(link(scratch / "link", origin.port))
        bench = Bench(origin, store, size)
        for number in range(options.rounds):
            bench.put(f"far{number}", size)
            bench.put(f"near{number}", size)
        bench.put("crowd", size)
        bench.put("range", size)
        for number in range(3):
            bench.put(f"hit{number}", MIB)
        bench.adopt("far", far)
        bench.adopt("near", origin.port)

        rows = [
            row("2 Gbit/s, 20 ms", *pairs(bench, "far", far, options.rounds, "far")),
            row("loopback", *pairs(bench, "near", origin.port, options.rounds, "near")),
        ]
        print(table(HEAD, rows))

        def crossed() -> int:
            return int(call(control, "crossed_bytes", source="there", destination="here"))

        before = crossed()
        with ThreadPoolExecutor(64) as pool:
            url = bench.at_store.generate_presigned_url("get_object", Params={"Bucket": "far", "Key": "crowd"})
            sizes = [taken.size for taken in pool.map(lambda _: read(url), range(64))]
        assert sizes == [size] * 64
        print(f"64 clients, one cold object: the origin sent {(crossed() - before) / size:.4f} of it")
        before = crossed()
        taken = bench.through("far", "range", {"Range": f"bytes={64 * MIB}-{72 * MIB - 1}"})
        assert taken.size == 8 * MIB
        print(
            f"a cold range of 8 MiB: the origin sent {(crossed() - before) / MIB:.2f} MiB, first {taken.first_s:.3f} s"
        )

        read(bench.at_store.generate_presigned_url("get_object", Params={"Bucket": "far", "Key": "hit0"}))
        quiet = hits(bench, "far", "hit0", options.faults_s)
        stop = threading.Event()

        def miss() -> None:
            """Ask for what the origin does not give."""
            url = bench.at_store.generate_presigned_url("get_object", Params={"Bucket": "far", "Key": "hit1"})
            while not stop.is_set():
                with contextlib.suppress(Exception):
                    read(url)

        call(control, "partition", source="here", destination="there", established="freeze", arriving="hang")
        with ThreadPoolExecutor(4) as pool:
            for _ in range(4):
                pool.submit(miss)
            frozen = hits(bench, "far", "hit0", options.faults_s)
            stop.set()
        call(control, "heal", source="here", destination="there")
        for name, took in (("origin well", quiet), ("origin silent, 4 clients miss", frozen)):
            at = [1000 * took[int(len(took) * share)] for share in (0.5, 0.99)]
            print(f"hits of 1 MiB, {name}: p50 {at[0]:.2f} ms, p99 {at[1]:.2f} ms, {len(took)} reads")


if __name__ == "__main__":
    main()
