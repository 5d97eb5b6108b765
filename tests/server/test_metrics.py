"""Metrics: exact over processes, whoever is asked and whoever dies; complete; and they name nobody."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
from botocore.exceptions import ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as BotoConnectionError
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

import tigrislike
from tests.bytecache.faults import FailNth, HookedFileSystem
from tests.nodes import RunningNode, running_node
from tests.server.test_serve import until, workers
from tigrislike.bytecache import BlockStore
from tigrislike.bytecache.statistics import COUNTED, FILL_BOUNDS_S, GAUGES, Counters
from tigrislike.counting import NO_OPERATION, STATUSES, Table, class_of
from tigrislike.families import LEVELS, TOTALS
from tigrislike.logs import Record
from tigrislike.metrics import Metrics, Snapshot, unlinked_bytes
from tigrislike.s3api.errors import ERRORS, S3Error
from tigrislike.s3api.protocol import load_protocol

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def record(operation: str | None = "GetObject", status: int = 200, sent: int = 0, received: int = 0) -> Record:
    notes = {} if operation is None else {"operation": operation}
    return (0, "", "GET", b"/", b"", status, sent, received, 0, notes)


@contextlib.contextmanager
def forked(work: object) -> Iterator[int]:
    """A forked process that runs `work()` and then waits to be killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()  # type: ignore[operator]
            os.write(writer, b"+")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"+"
        yield pid
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# -- The table -------------------------------------------------------------------------------------------------------


def test_what_processes_count_adds_up_and_outlives_them() -> None:
    table = Table(3, ["GetObject", "PutObject"])

    def work(index: int) -> None:
        row = table.row(index)
        row.counters.add(hits=10 + index, open_blocks=2)
        row.counters.filled(3_000_000)
        row.request(record(sent=100))
        row.request(record("PutObject", 503, received=7))
        row.sendfile(1000, 1)
        row.sendfile(1500, 2)

    with forked(lambda: work(0)) as first, forked(lambda: work(2)) as second:
        assert set(table.pids()) == {first, second}
        totals = Snapshot(table).totals
        assert (totals.hits, totals.fills, totals.fill_ns, totals.open_blocks) == (22, 2, 6_000_000, 4)
    for index in (0, 2):
        table.absent(index)
    assert table.pids() == []
    totals = Snapshot(table).totals
    assert (totals.hits, totals.fills, totals.open_blocks) == (22, 2, 0), "a gauge goes with its process"
    with forked(lambda: work(0)):
        snapshot = Snapshot(table)
        assert (snapshot.totals.hits, snapshot.totals.fills, snapshot.totals.open_blocks) == (32, 3, 2)
        assert set(snapshot.requests()) == {("GetObject", 200, 3), ("PutObject", 503, 3)}
        found = samples(snapshot.render("")[0].decode())
        assert found["tigrislike_sendfile_bytes_total", ()] == 4500
        assert found["tigrislike_sendfile_cold_total", ()] == 6
        assert found["tigrislike_request_body_bytes_total", (("operation", "PutObject"),)] == 21
        assert found["tigrislike_response_body_bytes_total", (("operation", "GetObject"),)] == 300


def test_what_other_parts_count_goes_on_after_a_restart_and_what_they_hold_does_not() -> None:
    table = Table(2, [], ["NoSuchKey"], ["warm"])

    def told() -> dict[str, float]:
        text = Snapshot(table).render("")[0].decode()
        return {name: value for (name, _), value in samples(text).items()}

    for round_ in (1, 2):
        rows = [table.row(0), table.row(1)]
        for calls in (5, 7):
            for row in rows:
                row.tell([(("origin_calls",), calls), (("origin_running_requests",), 3)])
                row.tell([(("task_runs", "warm", "done"), calls), (("task_runs", "unheard of", "done"), 1)])
        assert told()["tigrislike_origin_calls_total"] == 2 * 7 * round_
        assert told()["tigrislike_origin_running_requests"] == 6
        sums = dict(table.sums().of("task_runs"))
        assert (sums["warm", "done"], sums["other", "done"]) == ([2 * 7 * round_], [2 * round_])
        table.absent(0)
        assert told()["tigrislike_origin_running_requests"] == 3
        table.absent(1)
        assert told()["tigrislike_origin_running_requests"] == 0


def test_threads_of_a_process_lose_no_count() -> None:
    table = Table(1, [])
    counters = table.row(0).counters
    start = threading.Barrier(8)

    def count(_: int) -> None:
        start.wait()
        for _ in range(5_000):
            counters.add(hits=1, bytes_read=3)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(8)))
    assert (counters["hits"], counters["bytes_read"]) == (40_000, 120_000)


def test_every_counter_of_the_block_store_is_shown() -> None:
    assert set(TOTALS) | set(LEVELS) | {"fill_ns"} == set(COUNTED)
    assert set(LEVELS) == GAUGES
    table = Table(2, [])
    for index in range(2):
        table.row(index).counters.add(**{name: 1000 + at for at, name in enumerate(COUNTED)})
    found = samples(Snapshot(table).render("")[0].decode())
    for at, name in enumerate(COUNTED):
        if name in TOTALS:
            shown, labels = TOTALS[name]
            assert found[f"tigrislike_{shown}_total", tuple(labels.items())] == 2 * (1000 + at)
        elif name in LEVELS:
            assert found[f"tigrislike_{LEVELS[name]}", ()] == 2 * (1000 + at)


def test_an_unknown_name_is_no_counter() -> None:
    with pytest.raises(KeyError):
        Counters().add(nonsense=1)


def test_fills_are_told_apart_by_the_time_they_took() -> None:
    table = Table(2, [])
    first, second = table.row(0).counters, table.row(1).counters
    for counters in (first, second):
        counters.filled(1_000_000)  # a bound belongs to its class
        counters.filled(1_000_001)
        counters.filled(60_000_000_000)
    assert first.snapshot(direct_io=True).fill_times == (1, 1, *[0] * (len(FILL_BOUNDS_S) - 2), 1)
    found = samples(Snapshot(table).render("")[0].decode())
    assert found["tigrislike_fill_seconds_bucket", (("le", "0.001"),)] == 2
    assert found["tigrislike_fill_seconds_bucket", (("le", "0.0025"),)] == 4
    assert found["tigrislike_fill_seconds_bucket", (("le", "10.0"),)] == 4
    assert found["tigrislike_fill_seconds_bucket", (("le", "+Inf"),)] == 6
    assert found["tigrislike_fill_seconds_count", ()] == 6
    assert found["tigrislike_fill_seconds_sum", ()] == pytest.approx(120.004)


def test_what_nobody_foresaw_is_counted_all_the_same() -> None:
    table = Table(1, ["GetObject"])
    row = table.row(0)
    row.request(record(None, 400))
    row.request(record("Frobnicate", 200))
    row.request(record("GetObject", 418))
    row.request(record("GetObject", 0))
    assert set(Snapshot(table).requests()) == {
        (NO_OPERATION, 400, 1),
        (NO_OPERATION, 200, 1),
        ("GetObject", 500, 1),
        ("GetObject", 0, 1),
    }


def test_every_status_that_is_answered_has_a_place() -> None:

    answered = {S3Error(code).status for code in ERRORS}
    answered |= {operation.status for operation in load_protocol()} | {206, 304, 201, 303}
    assert answered <= set(STATUSES)


def test_unlinked_files_are_found_once_in_whichever_process(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    for directory in (root, elsewhere):
        directory.mkdir()
        for name in ("kept", "gone"):
            (directory / name).write_bytes(b"x" * 8192)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in tmp_path.glob("*/*")]
        files.append(stack.enter_context((root / "gone").open("rb")))
        pid = stack.enter_context(forked(lambda: None))
        for directory in (root, elsewhere):
            (directory / "gone").unlink()
        assert unlinked_bytes([os.getpid(), pid, 2**22 + 1], root) == 8192
        for file in files:
            file.close()
        assert unlinked_bytes([os.getpid(), pid], root) == 8192, "the other holds it still"
        assert unlinked_bytes([os.getpid()], root) == 0


# -- A node ----------------------------------------------------------------------------------------------------------


def scrape(node: RunningNode, accept: str = "") -> str:
    request = urllib.request.Request(f"{node.endpoint}/_tigrislike/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=60) as response:
        return str(response.read().decode())


def whole_page(node: RunningNode) -> str:
    """The page with all its gauges: a node that waits long for its disk, or for a busy machine, leaves them out."""
    while re.search(r"tigrislike_part_answers{[^}]*} 0", text := scrape(node)):
        pass
    return text


def s3(node: RunningNode) -> Any:
    return node.client(max_pool_connections=1)


class Tally:
    """What clients have asked for and got: (operation, status) -> requests; operation -> bytes of bodies sent and
    received; error code -> requests."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    def add(self, other: Tally) -> None:
        self.requests += other.requests
        self.sent += other.sent
        self.received += other.received
        self.errors += other.errors

    def watch(self, client: Any) -> None:
        """Count what a client of boto3 sends and is answered."""

        def on_request(request: Any, event_name: str, **_: Any) -> None:
            length = request.headers.get("Content-Length", 0)
            self.sent[event_name.rpartition(".")[2]] += int(length)

        def on_answer(http_response: Any, parsed: dict[str, Any], model: Any, **_: Any) -> None:
            status = http_response.status_code
            self.requests[model.name, status] += 1
            if model.name != "HeadObject":
                self.received[model.name] += int(http_response.headers.get("content-length", 0))
            if status >= 400:
                self.errors[parsed["Error"]["Code"] if model.name != "HeadObject" else "NoSuchKey"] += 1

        client.meta.events.register("before-send.s3", on_request)
        client.meta.events.register("after-call.s3", on_answer)


PART_BYTES = 5 * 1024 * 1024


def load(node: RunningNode, bucket: str, seed: int) -> Tally:
    """A client that puts, reads, misses, copies, lists and deletes, and uploads in parts; sizes inline and in blocks,
    cold and warm."""
    tally = Tally()
    client = s3(node)
    tally.watch(client)
    random = Random(seed)
    for turn in range(8):
        key = f"{seed}/{turn}"
        size = random.choice([0, 1, 5_000, 20_000, 300_000, 9_000_000 if turn == 0 else 1_000_000])
        client.put_object(Bucket=bucket, Key=key, Body=random.randbytes(size))
        for _ in range(random.randrange(4)):
            assert len(client.get_object(Bucket=bucket, Key=key)["Body"].read()) == size
        if size:
            client.get_object(Bucket=bucket, Key=key, Range=f"bytes={size // 2}-")["Body"].read()
        with pytest.raises(ClientError):
            client.head_object(Bucket=bucket, Key=f"{key}/none")
        with pytest.raises(ClientError):
            client.get_object(Bucket=bucket, Key=f"{key}/none")
        client.copy_object(Bucket=bucket, Key=f"{key}/copy", CopySource={"Bucket": bucket, "Key": key})
        client.list_objects_v2(Bucket=bucket, Prefix=f"{seed}/")
        if turn % 3 == 0:
            client.delete_object(Bucket=bucket, Key=key)
    upload = client.create_multipart_upload(Bucket=bucket, Key=f"{seed}/parts")["UploadId"]
    named = {"Bucket": bucket, "Key": f"{seed}/parts", "UploadId": upload}
    parts = [
        {"PartNumber": n, "ETag": client.upload_part(**named, PartNumber=n, Body=random.randbytes(size))["ETag"]}
        for n, size in ((1, PART_BYTES), (2, 100))
    ]
    client.complete_multipart_upload(**named, MultipartUpload={"Parts": parts})
    return tally


def counted(found: Samples) -> Tally:
    tally = Tally()
    for (name, labels), value in found.items():
        label = dict(labels)
        if name == "tigrislike_requests_total":
            tally.requests[label["operation"], int(label["status"])] = int(value)
        elif name == "tigrislike_request_body_bytes_total":
            tally.sent[label["operation"]] = int(value)
        elif name == "tigrislike_response_body_bytes_total":
            tally.received[label["operation"]] = int(value)
        elif name == "tigrislike_errors_total":
            tally.errors[label["code"]] = int(value)
    return tally


def agrees(node: RunningNode, expected: Tally) -> bool:
    """Whether a worker, whichever answers, tells of exactly what the client did: none may tell of more.

    A client may have its answer some microseconds before the worker has counted it.
    """
    told = counted(samples(scrape(node)))
    operations = {operation for operation, _ in expected.requests}
    requests = {of: count for of, count in told.requests.items() if of[0] in operations}
    assert all(count <= expected.requests[of] for of, count in requests.items()), (requests, expected.requests)
    sent, received = ({of: told_bytes[of] for of in operations} for told_bytes in (told.sent, told.received))
    return (
        requests == dict(expected.requests)
        and sent == {of: expected.sent[of] for of in operations}
        and received == {of: expected.received[of] for of in operations}
        and told.errors == expected.errors
    )


def timed(found: Samples, of: str) -> tuple[float, float]:
    """Requests of a class, as its histogram has them, and how many of them took longer than any bound but the last."""
    labels = ("class", of)
    count = found["tigrislike_request_seconds_count", (labels,)]
    assert found["tigrislike_request_seconds_bucket", (labels, ("le", "+Inf"))] == count
    return count, found["tigrislike_request_seconds_sum", (labels,)]


def test_three_workers_add_up_to_what_the_clients_counted_and_outlive_a_worker(tmp_path: Path) -> None:
    with running_node(tmp_path / "data", "--workers=3", "--access-log=off") as node:
        s3(node).create_bucket(Bucket="bucket")
        expected = Tally()

        def serve_four_clients(first_seed: int) -> None:
            with ThreadPoolExecutor(4) as pool:
                for tally in pool.map(lambda seed: load(node, "bucket", seed), range(first_seed, first_seed + 4)):
                    expected.add(tally)
            until(lambda: agrees(node, expected))
            for _ in range(6):
                assert agrees(node, expected), "each worker tells the same, however often it is asked"
            found = samples(scrape(node))
            for of in ("read", "write", "list", "delete"):
                wanted = sum(n for (operation, _), n in expected.requests.items() if class_of(operation) == of)
                count, total_s = timed(found, of)
                assert (count, total_s > 0) == (wanted, True)

        serve_four_clients(0)
        killed = min(workers(node))
        os.kill(killed, signal.SIGKILL)
        until(lambda: len(set(workers(node)) - {killed}) == 3)
        serve_four_clients(4)

        def quiet() -> bool:
            found = samples(scrape(node))
            return found["tigrislike_uploads", ()] == found["tigrislike_open_blocks", ()] == 0

        until(quiet)  # a reader closes its block a moment after its last byte has left
        found = samples(whole_page(node))
        written = found["tigrislike_blocks_written_bytes_total", ()]
        read = found["tigrislike_blocks_read_bytes_total", ()]
        sent = expected.sent["PutObject"] + expected.sent["UploadPart"]
        assert 0 < written < sent, "what is small lies beside its record"
        assert 0 < read <= expected.received["GetObject"]
        assert 0 < found["tigrislike_sendfile_bytes_total", ()] <= read
        assert found["tigrislike_uploads", ()] == found["tigrislike_open_blocks", ()] == 0
        assert found["tigrislike_corrupt_unhealed_total", ()] == 0
        assert found["tigrislike_disk_available_bytes", ()] > 0
        assert ("tigrislike_cache_capacity_bytes", ()) not in found


def test_a_worker_that_is_killed_under_load_takes_along_what_it_had_in_hand_and_nothing_else(tmp_path: Path) -> None:
    clients, each = 4, 60
    under_way = threading.Event()

    def use(node: RunningNode, seed: int) -> tuple[int, int]:
        """Requests that were sent, and those that were answered."""
        client, sent, answered = s3(node), 0, 0
        for turn in range(each):
            if turn == each // 3:
                under_way.set()
            sent += 1
            with contextlib.suppress(BotoConnectionError, HTTPClientError):
                client.put_object(Bucket="bucket", Key=f"{seed}/{turn}", Body=b"x" * 1000)
                answered += 1
        return sent, answered

    with running_node(tmp_path / "data", "--workers=3", "--access-log=off") as node:
        s3(node).create_bucket(Bucket="bucket")
        with ThreadPoolExecutor(clients) as pool:
            using = [pool.submit(use, node, seed) for seed in range(clients)]
            assert under_way.wait(60)
            os.kill(min(workers(node)), signal.SIGKILL)
            sent, answered = map(sum, zip(*(done.result() for done in using), strict=True))

        def told() -> int:
            return counted(samples(scrape(node))).requests["PutObject", 200]

        until(lambda: told() >= answered - clients)
        # A client may have its answer some microseconds before it is counted, and each has one request at a time.
        assert answered - clients <= told() <= sent
        assert sent == clients * each
        assert answered > sent - 3 * clients, "a client that was cut off goes on"


def test_the_page_is_for_anybody_and_names_nobody(tmp_path: Path) -> None:
    with running_node(tmp_path / "data", "--cache-size=1GiB", "--workers=1") as node:
        client = s3(node)
        client.create_bucket(Bucket="secret-bucket")
        client.put_object(Bucket="secret-bucket", Key="secret-key", Body=b"x" * 100_000)
        text = whole_page(node)
        assert "secret" not in text
        assert node.access_key_id not in text
        found = samples(text)
        assert found["tigrislike_build_info", (("version", tigrislike.__version__),)] == 1
        assert found["tigrislike_cache_capacity_bytes", ()] == 1 << 30
        assert found["tigrislike_cache_used_bytes", ()] == 0
        assert found["tigrislike_unlinked_open_bytes", ()] == 0
        assert ("tigrislike_requests_total", (("operation", "PutObject"), ("status", "200"))) in found
        until(lambda: samples(scrape(node)).get(("tigrislike_cache_ready", ())) == 1)
        until(lambda: ("tigrislike_scrub_completed_timestamp_seconds", ()) in samples(scrape(node)))

        names = [family.name for family in text_string_to_metric_families(text)]
        assert len(names) == len(set(names))
        assert all(name.startswith("tigrislike_") for name in names)
        modern = scrape(node, "application/openmetrics-text; version=1.0.0")
        assert {family.name for family in parse_openmetrics(modern)} >= {
            "tigrislike_requests",
            "tigrislike_fill_seconds",
        }
        asked = dict(counted(samples(scrape(node))).requests)
        assert asked["Metrics", 200] >= 4
        for name, status in (("healthz", 200), ("readyz", 200)):
            with urllib.request.urlopen(f"{node.endpoint}/{name}") as response:
                assert response.status == status
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{node.endpoint}/_tigrislike/metrics", data=b"")
        assert refused.value.code == 405
        refused.value.close()
        asked = dict(counted(samples(scrape(node))).requests)
        assert (asked["Healthz", 200], asked["Readyz", 200], asked[NO_OPERATION, 405]) == (1, 1, 1)


def test_a_disk_that_does_not_answer_costs_the_gauges_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tigrislike.metrics._STORE_ANSWERS_S", 60.0)

    async def main() -> Samples:
        table = Table(1, [])
        fail = FailNth(errno.EIO)
        store = BlockStore.open(tmp_path / "s", fs=HookedFileSystem(fail), counters=table.row(0).counters)
        try:
            page, _ = await Metrics(table, store).page("")
            assert ("tigrislike_cache_blocks", ()) in samples(page.decode())
            fail.arm(1, forever=True)
            page, _ = await Metrics(table, store).page("")
            fail.disarm()
        finally:
            await store.aclose()
        return samples(page.decode())

    found = asyncio.run(main())
    assert ("tigrislike_block_hits_total", ()) in found
    assert ("tigrislike_cache_blocks", ()) not in found
    assert "metrics without those of the disk" in caplog.text


def test_a_disk_that_hangs_does_not_hang_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tigrislike.metrics._STORE_ANSWERS_S", 0.0)
    hanging: list[str] = []
    released = threading.Event()

    def hang(name: str, args: tuple[object, ...]) -> None:
        if name == "space":
            hanging.append(name)
            released.wait()

    async def main() -> Samples:
        table = Table(1, [])
        store = BlockStore.open(tmp_path / "s", fs=HookedFileSystem(hang), counters=table.row(0).counters)
        metrics = Metrics(table, store)
        try:
            for _ in range(20):
                page, _ = await metrics.page("")
                found = samples(page.decode())
                assert ("tigrislike_block_hits_total", ()) in found
                assert ("tigrislike_cache_blocks", ()) not in found
            assert "metrics without those of the disk: TimeoutError" in caplog.text
            assert len(hanging) <= 1, "it is asked again while it has not answered"
            released.set()
            monkeypatch.setattr("tigrislike.metrics._STORE_ANSWERS_S", 60.0)
            page, _ = await metrics.page("")
            return samples(page.decode())
        finally:
            released.set()
            await store.aclose()

    assert ("tigrislike_cache_blocks", ()) in asyncio.run(main())
    assert len(hanging) == 1
