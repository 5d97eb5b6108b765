"""What a worker holds in memory does not depend on how large the objects are that pass through it."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.loadgen import Check, LoadGenerator, Request, content
from bench.signing import Signer
from tests.bench.compiled import compiled_or_skip
from tests.crash.requests import Client as Chunked
from tests.nodes import RunningNode, running_node

MIB = 1024**2
CONNECTIONS = 64
OBJECT_BYTES = 256 * MIB
LEAST_BYTES = 64 * MIB
"""Of each object: with smaller ones the test would say little, and look as if it said all."""
LARGEST_BYTES = 4096 * MIB
FRAMED = 4
FRAMED_BYTES = 64 * MIB
"""Uploads in chunks, and their size: their client keeps their bytes in memory."""
RESIDENT_BYTES = 300_000_000
GROWTH_BYTES = 24 * MIB
"""What one connection may add beyond the most that 64 have needed: less than a hundredth of the largest object."""
HEADERS = {"Accept-Encoding": "identity"}


class Client:
    """Many uploads and downloads at once, by a program in C that makes their bytes up and compares what comes back."""

    def __init__(self, node: RunningNode, scratch: Path) -> None:
        self.port = node.port
        self.signer = Signer(f"127.0.0.1:{node.port}", node.access_key_id, node.secret_access_key)
        self.generator = LoadGenerator(scratch, compiled_or_skip())

    def run(self, requests: list[Request]) -> None:
        result = self.generator.run(
            self.port, requests, connections=CONNECTIONS, seconds=600, timeout_s=600, max_errors=1
        )
        assert (result.ok, result.errors) == (len(requests), 0), result.samples

    def put(self, key: str, size: int) -> Request:
        head = self.signer.head("PUT", key, payload_sha256="UNSIGNED-PAYLOAD", length=size, headers=HEADERS)
        return Request(head, body_at=len(key), body_len=size)

    def get(self, key: str, size: int) -> Request:
        head = self.signer.head("GET", key, headers=HEADERS)
        return Request(head, check=Check.PATTERN, expect_at=len(key), expect_len=size)

    def delete(self, key: str) -> Request:
        return Request(self.signer.head("DELETE", key, headers=HEADERS), status=204)


def most_resident(node: RunningNode) -> int:
    """The most bytes of memory that the hungriest of the node's processes has ever had resident."""
    peaks = []
    for pid in node.children():
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        peaks += [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    return max(peaks)


def upload_framed(node: RunningNode) -> None:
    """Objects in aws-chunked, signed chunk by chunk and with a trailer, each deleted when it is there."""
    client = Chunked(node)
    data = content(1, FRAMED_BYTES)

    def upload(number: int) -> None:
        path = f"/bucket/framed-{number}"
        put = client.put_trailer if number % 2 else client.put_signed_chunks
        put(path, {}, data)
        client.call("DELETE", path)

    with ThreadPoolExecutor(FRAMED) as threads:
        list(threads.map(upload, range(FRAMED)))


@pytest.mark.slow
def test_memory_is_bounded_through_many_large_uploads_and_downloads_and_a_very_large_one(tmp_path: Path) -> None:
    # The metadata, and the reserve that uploads may not use, need room too.
    spare = shutil.disk_usage(tmp_path).free - 4096 * MIB
    size = min(OBJECT_BYTES, spare // 2 // CONNECTIONS // MIB * MIB)
    largest = min(LARGEST_BYTES, spare // 2 // MIB * MIB)
    if size < LEAST_BYTES:
        pytest.skip(
            f"the disk has room for {CONNECTIONS} objects of {size // MIB} MiB, and {LEAST_BYTES // MIB} is least"
        )
    print(f"{CONNECTIONS} objects of {size // MIB} MiB (of {OBJECT_BYTES // MIB}), one of {largest // MIB} MiB")
    with running_node(tmp_path / "data", "--workers=1", "--reclaim-grace=0") as node:
        client = Client(node, tmp_path)
        keys = [f"/bucket/{n:03d}" for n in range(CONNECTIONS)]
        client.run([Request(client.signer.head("PUT", "/bucket", headers=HEADERS))])
        client.run([client.put(key, size) for key in keys])
        uploaded = most_resident(node)
        client.run([client.get(key, size) for key in keys])
        downloaded = most_resident(node)
        client.run([client.delete(key) for key in keys])
        upload_framed(node)
        client.run([client.put("/bucket/largest", largest)])
        client.run([client.get("/bucket/largest", largest)])
        client.run([client.delete("/bucket/largest")])
        ended = most_resident(node)
    print(f"most resident: {uploaded // MIB} MiB uploading, {downloaded // MIB} downloading, {ended // MIB} at the end")
    assert ended < RESIDENT_BYTES
    assert ended - downloaded < GROWTH_BYTES
