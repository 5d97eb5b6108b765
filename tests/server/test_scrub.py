"""A running node and its cache: what it fetches, what it finds damaged, what its agent does for the index."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.admin.pristine import BLOCK, files_of, give_away, make, put, settings_of
from tests.cache.serving import COMMAND, VARIABLE
from tests.nodes import RunningNode, running_node
from tests.server.test_cache_command import command
from tests.server.test_metrics import Samples, samples, whole_page
from tests.server.test_serve import s3, until
from tigrislike.config import Settings
from tigrislike.node import Node

pytestmark = pytest.mark.sqlite  # stores are made by the tests themselves, with SQLite

SIZE = 3 * BLOCK + 1000


class Store:
    """A store with objects `one` and `two` of four blocks each."""

    def __init__(self, directory: Path) -> None:
        self.settings: Settings = settings_of(directory / "data")
        self.pristine = directory / "pristine"
        self.pristine.mkdir()
        self.blobs = asyncio.run(make(self.settings, one=SIZE, two=SIZE))
        self.bytes = {
            key: b"".join(
                self.path(key, number).read_bytes()[: min(BLOCK, SIZE - number * BLOCK)] for number in range(4)
            )
            for key in self.blobs
        }

    def _data(self, key: str, number: int) -> bytes:
        return self.path(key, number).read_bytes()[: min(BLOCK, SIZE - number * BLOCK)]

    def path(self, key: str, number: int, tree: str = "home") -> Path:
        name = self.blobs[key].hex()
        return self.settings.cache_dir / tree / name[:2] / f"{name}.{number}"

    def give_away(self, *keys: str) -> None:
        give_away(self.settings, self.pristine, *(self.blobs[key] for key in keys))

    @contextlib.contextmanager
    def running(self, *flags: str, source: bool = False) -> Iterator[RunningNode]:
        options: dict[str, Any] = {}
        if source:
            options["command"] = COMMAND
            options["environment"] = {VARIABLE: str(self.pristine)}
        with running_node(self.settings.data_dir, f"--block-size={BLOCK}", *flags, **options) as node:
            yield node


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def get(node: RunningNode, key: str) -> bytes:
    return bytes(s3(node).get_object(Bucket="bucket", Key=key)["Body"].read())


def metrics(node: RunningNode) -> Samples:
    return samples(whole_page(node))


def decay(path: Path, offset: int) -> None:
    """Flip a bit on the disk, as a disk does: no time changes, and the page cache is not asked."""
    status = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    path.chmod(0o400)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_blocks_are_fetched_once_by_whichever_worker_and_counted(store: Store) -> None:
    store.give_away("one", "two")
    with store.running("--workers=3", source=True) as node:
        with ThreadPoolExecutor(12) as pool:
            read = list(pool.map(lambda at: get(node, "one" if at % 2 else "two"), range(24)))
        assert all(data == store.bytes["one" if at % 2 else "two"] for at, data in enumerate(read))
        kept = "tigrislike_fills_total", (("result", "kept"),)

        def over() -> bool:
            # A block is in the index a moment before its fill is counted and its readers let go of the memory.
            found = metrics(node)
            return found["tigrislike_cache_blocks", ()] == found[kept] == 8 and not found[memory]

        memory = "tigrislike_fill_memory_bytes", ()
        until(over)
        found = metrics(node)
        assert found[kept] == found["tigrislike_fill_seconds_count", ()] == 8, (
            "one fill per block, however many readers wait"
        )
        assert found["tigrislike_fill_bytes_total", ()] == 2 * SIZE
        assert found["tigrislike_passed_through_total", ()] == 0
        assert found["tigrislike_cache_used_bytes", ()] == sum(
            path.stat().st_size for path in (store.settings.cache_dir / "cache").rglob("*.*")
        )
        assert found[memory] == 0
        assert len(files_of(store.settings, "cache")) == 8

        hits = metrics(node)["tigrislike_block_hits_total", ()]
        assert get(node, "one") == store.bytes["one"]
        until(lambda: metrics(node)["tigrislike_block_hits_total", ()] > hits)
        assert metrics(node)["tigrislike_fill_bytes_total", ()] == 2 * SIZE

        async def counters() -> dict[bytes, int]:
            async with Node.opened(store.settings) as other:
                return {block.blob_id: block.counter for block in await other.blocks.cached_blocks()}

        until(lambda: asyncio.run(counters())[store.blobs["one"]] > 0)


def test_what_is_evicted_is_read_to_its_end_and_its_space_is_accounted_for(store: Store) -> None:
    """A client stalls; what it reads is evicted under it; it goes on, and gets every byte."""
    blob, size = asyncio.run(_add(store, "huge", 20 * BLOCK))
    store.give_away("huge")
    with store.running(source=True) as node:
        assert get(node, "huge") == store.bytes["huge"]
        until(lambda: metrics(node)["tigrislike_cache_blocks", ()] == 20)
        signed = s3(node).generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "huge"})
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.connect(("127.0.0.1", node.port))
            path = signed.removeprefix(node.endpoint)
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{node.port}\r\n\r\n".encode())
            stream = client.makefile("rb")
            while stream.readline() != b"\r\n":
                pass
            read = stream.read(1000)
            until(lambda: metrics(node)["tigrislike_open_blocks", ()] >= 1)
            done = command(store.settings.data_dir, "evict", "s3://bucket/huge", f"--block-size={BLOCK}", "--json")
            assert json.loads(done.stdout)["blobs"] == 1, done.stderr
            found = metrics(node)
            assert found["tigrislike_cache_used_bytes", ()] == 0
            assert found["tigrislike_unlinked_open_bytes", ()] >= BLOCK
            read += stream.read(size - 1000)
        assert read == store.bytes["huge"]
        until(lambda: metrics(node)["tigrislike_unlinked_open_bytes", ()] == 0)
    assert blob in {blob_id for blob_id, _ in files_of(store.settings, "cache")}, "and fetched what was left of it anew"


async def _add(store: Store, key: str, size: int) -> tuple[bytes, int]:
    data = os.urandom(size)
    async with Node.opened(store.settings) as node:
        blob = await put(node, key, data)
    store.blobs[key] = blob
    store.bytes[key] = data
    return blob, size


def test_settings_of_the_cache_reach_every_process(store: Store) -> None:
    store.give_away("one")
    (store.pristine / "away").touch()
    with store.running("--verify=always", "--cache-policy=sieve", "--cache-size=1GiB", source=True) as node:
        for read in range(1, 5):
            assert get(node, "two") == store.bytes["two"]
            until(lambda read=read: metrics(node)["tigrislike_verified_bytes_total", ()] >= read * SIZE)  # type: ignore[misc]
        with pytest.raises(ClientError) as refused:
            get(node, "one")
        assert refused.value.response["Error"]["Code"] == "SlowDown"
        found = metrics(node)
        assert found["tigrislike_sendfile_bytes_total", ()] == 0, "what is verified at every read is a copy"
        assert found["tigrislike_fills_total", (("result", "failed"),)] >= 1
        assert found["tigrislike_cache_capacity_bytes", ()] == 1 << 30
        done = command(store.settings.data_dir, "stat", f"--block-size={BLOCK}", "--json")
        assert json.loads(done.stdout)["usage"]["policy"] == "sieve"


def test_an_index_that_is_lost_is_made_anew_while_the_node_serves(store: Store) -> None:
    store.give_away("one")
    with store.running(source=True) as node:
        assert get(node, "one") == store.bytes["one"]
        until(lambda: metrics(node)["tigrislike_cache_blocks", ()] == 4)
    for path in store.settings.cache_dir.glob("index.sqlite*"):
        path.unlink()
    with store.running(source=True) as node:
        assert get(node, "one") == store.bytes["one"]
        until(lambda: metrics(node)["tigrislike_cache_ready", ()] == 1)
        until(lambda: metrics(node)["tigrislike_cache_blocks", ()] == 4)
        assert metrics(node)["tigrislike_fill_bytes_total", ()] == 0, "the files are what counts"


def test_the_agent_finds_what_has_decayed_and_mends_what_somebody_else_has(store: Store) -> None:
    store.give_away("one")
    with store.running(source=True) as node:
        assert get(node, "one") == store.bytes["one"]
        until(lambda: metrics(node)["tigrislike_cache_blocks", ()] == 4)
    (store.pristine / store.path("two", 2).name).write_bytes(store.path("two", 2).read_bytes())
    decay(store.path("one", 1, "cache"), 5000)
    decay(store.path("two", 2), 5000)
    (store.settings.cache_dir / "scrub.json").unlink()  # so that the agent's next pass is due
    with store.running(source=True) as node:
        until(lambda: metrics(node).get(("tigrislike_scrub_completed_timestamp_seconds", ()), 0) > 0)
        found = metrics(node)
        assert found["tigrislike_verify_failures_total", ()] == 2
        assert found["tigrislike_healed_total", ()] == 1
        assert found["tigrislike_evictions_total", (("reason", "corrupt"),)] == 1
        assert found["tigrislike_corrupt_unhealed_total", ()] == 0
        assert found["tigrislike_scrub_damaged_blocks", ()] == 0
        assert found["tigrislike_scrubbed_blocks_total", ()] == 6
        assert {key: get(node, key) for key in store.blobs} == store.bytes
        until(lambda: "2 healed, 0 damaged" in node.log.read_text())  # said a moment after it can be seen


def test_what_nobody_else_has_is_reported_and_never_served(store: Store) -> None:
    with store.running() as node:
        assert {key: get(node, key) for key in store.blobs} == store.bytes
        until(lambda: metrics(node).get(("tigrislike_scrub_completed_timestamp_seconds", ()), 0) > 0)
        decay(store.path("two", 1), 70_000)
        done = command(store.settings.data_dir, "scrub", f"--block-size={BLOCK}")
        assert done.returncode == 1, done.stderr
        name = str(store.path("two", 1).relative_to(store.settings.cache_dir))
        assert f"{name} is damaged" in done.stderr
        assert metrics(node)["tigrislike_scrub_damaged_blocks", ()] == 1
        for _ in range(6):  # whichever worker answers, and although each had verified the block before
            with pytest.raises(ClientError) as refused:
                s3(node).get_object(Bucket="bucket", Key="two", Range=f"bytes={BLOCK}-{BLOCK + 99_999}")
            assert refused.value.response["Error"]["Code"] == "InternalError"
            assert str(store.settings.cache_dir) not in str(refused.value.response)
        until(lambda: metrics(node)["tigrislike_corrupt_unhealed_total", ()] >= 6)
        assert get(node, "one") == store.bytes["one"]
        first = s3(node).get_object(Bucket="bucket", Key="two", Range=f"bytes=0-{BLOCK - 1}")["Body"].read()
        assert first == store.bytes["two"][:BLOCK], "the other blocks are as good as ever"


def test_scrubbing_can_be_turned_off(store: Store) -> None:
    decay(store.path("two", 1), 5)
    with store.running("--scrub-interval=0") as node:
        assert get(node, "one") == store.bytes["one"]
        found = metrics(node)
        assert found["tigrislike_scrubbed_blocks_total", ()] == 0
        assert ("tigrislike_scrub_completed_timestamp_seconds", ()) not in found
    assert not (store.settings.cache_dir / "scrub.json").exists()


# -- What the agent says ---------------------------------------------------------------------------------------------


def test_a_scrub_that_somebody_does_by_hand_is_left_to_them(store: Store) -> None:
    async def main() -> None:
        async with Node.opened(store.settings) as node:
            fd = os.open(store.settings.cache_dir / "scrub.lock", os.O_RDWR | os.O_CREAT)
            fcntl.flock(fd, fcntl.LOCK_EX)
            await node._scrub()
            assert not (await node.scrubber().state()).started_ns
            os.close(fd)
            await node._scrub()
            assert (await node.scrubber().state()).blocks == 8

    asyncio.run(main())


def test_a_scrub_that_takes_longer_than_its_interval_is_complained_about(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with Node.opened(replace(store.settings, scrub_interval_s=1e-9)) as node:
            await node._scrub()

    asyncio.run(main())
    assert "raise --scrub-rate" in caplog.text


def test_what_a_reconciliation_corrects_is_said(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def main() -> None:
        async with Node.opened(store.settings) as node:
            path = store.path("one", 0, "cache")
            path.parent.mkdir(parents=True)
            store.path("one", 0).rename(path)
            await node._reconcile()
            await node._reconcile()
            assert (await node.blocks.usage()).blocks == 1

    asyncio.run(main())
    assert caplog.text.count("reconcile: 1 added, 0 removed, 0 dead fills") == 1
