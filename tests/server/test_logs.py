"""The access log: what a line says, what it never says, and that nobody waits for its reader."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.wire import Answer, Caller, exchange
from tests.leaks import SCAN
from tests.nodes import running_node
from tigrislike import logs
from tigrislike.logs import AccessLog, Record, format_record, redacted, setup_logging


def record(query: bytes = b"", path: bytes = b"/b/k") -> Record:
    return (
        1_700_000_000_000_000_000,
        "127.0.0.1:5",
        "GET",
        path,
        query,
        200,
        10,
        0,
        1_500_000,
        {"operation": "GetObject"},
    )


def test_a_record_is_one_json_line() -> None:
    line = format_record(record(b"x-id=GetObject", b'/b/"quoted"%0a'))
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "time_ns": 1_700_000_000_000_000_000,
        "client": "127.0.0.1:5",
        "method": "GET",
        "path": '/b/"quoted"%0a',
        "query": "x-id=GetObject",
        "status": 200,
        "sent_bytes": 10,
        "received_bytes": 0,
        "duration_us": 1500,
        "operation": "GetObject",
    }


@pytest.mark.parametrize(
    "name", ["X-Amz-Signature", "X-Amz-Security-Token", "Signature", "x-amz-signature", "X-Amz-Sig%6eature"]
)
def test_signatures_are_not_written(name: str) -> None:
    assert redacted(f"a=1&{name}=s3cr3t&b=2".encode()) == f"a=1&{name}=...&b=2"


def test_what_cannot_be_counted_is_logged_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def count(record: Record) -> None:
        raise ValueError("a hostile number")

    log = AccessLog(str(tmp_path / "log"), count)
    log.record(record())
    log.close()
    assert "GetObject" in (tmp_path / "log").read_text()
    assert "could not be counted" in caplog.text


@pytest.fixture
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("logging_restored")
def test_messages_are_objects_on_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("debug", "worker 3", "json")
    log = logging.getLogger("tigrislike.test")
    log.warning("two\nlines, %s and \udcff", '"quotes"', extra={"request_id": "3E57427F33A59F07"})
    try:
        raise ValueError("why")
    except ValueError:
        log.exception("it failed")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn("old", stacklevel=1)
    said, failed, warned = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert said["message"] == 'two\nlines, "quotes" and \udcff'
    assert (said["level"], said["role"], said["logger"], said["pid"]) == (
        "warning",
        "worker 3",
        "tigrislike.test",
        os.getpid(),
    )
    assert said["request_id"] == "3E57427F33A59F07"
    assert abs(said["time_ns"] - time.time_ns()) < 60 * 10**9
    assert "ValueError: why" in failed["exception"]
    assert "request_id" not in failed
    assert "UserWarning: old" in warned["message"]


FAILING = """
from tigrislike.s3api.operations import HANDLERS, load_operations
load_operations()
async def failing(ctx, inp):
    raise ZeroDivisionError("nobody foresaw this")
HANDLERS["GetBucketLocation"] = failing
from tigrislike.cli import main
main()
"""


def test_every_line_of_a_node_is_an_object_and_a_request_is_found_by_its_id(tmp_path: Path) -> None:
    errors = tmp_path / "stderr"
    command = ["bash", "-c", f'exec "$0" -c "$1" serve "${{@:2}}" 2>{errors}', sys.executable, FAILING]
    answers: dict[str, Answer] = {}
    with running_node(tmp_path / "data", "--log-format=json", "--log-level=debug", command=command) as node:
        caller = Caller(node)
        answers["made"] = caller.send("PUT", "/bucket")
        answers["absent"] = caller.send("GET", "/bucket/absent")
        answers["failed"] = caller.send("GET", "/bucket?location")
        answers["refused"] = exchange(node, "GET", "/bucket", {"host": "localhost"})
        answers["malformed"] = exchange(node, "GET", "/bucket", {"host": "localhost", "content-length": "-1"})
        for path in ("healthz", "readyz", "_tigrislike/metrics", "_tigrislike/nothing", "_tigrislike/admin/v1/queue"):
            answers[path] = exchange(node, "GET", f"/{path}", {"host": "localhost"})
        answers["storage"] = caller.send("POST", "/_tigrislike/storage", body=b"{}")
        answers["operator"] = caller.send("POST", "/_tigrislike/admin/v1/keys", body=b'{"bucket": "bucket"}')
        SCAN.keep(json.loads(answers["operator"].body)["secret"], "secret key")
        (entry,) = json.loads(caller.send("GET", "/_tigrislike/admin/v1/audit").body)["entries"]
    assert {name: answer.status for name, answer in answers.items() if answer.status >= 500} == {"failed": 500}
    SCAN.look_at_file(errors)
    lines = [json.loads(line) for line in errors.read_text().splitlines()]
    requests = {line["request_id"]: line for line in lines if "method" in line}
    messages = [line for line in lines if "method" not in line]
    assert all({"time_ns", "level", "role", "pid", "logger", "message"} <= set(line) for line in messages)
    assert {line["role"] for line in messages} >= {"supervisor", "agent"}
    assert len(requests) == len([line for line in lines if "method" in line]), "each request has an id of its own"
    for name, answer in answers.items():
        assert requests[answer.headers["x-amz-request-id"]]["status"] == answer.status, name
    assert entry["request"] == answers["operator"].headers["x-amz-request-id"]
    failed = answers["failed"]
    assert failed.error["RequestId"] == failed.headers["x-amz-request-id"]
    (message,) = [line for line in messages if line.get("request_id") == failed.headers["x-amz-request-id"]]
    assert message["level"] == "error"
    assert "ZeroDivisionError: nobody foresaw this" in message["exception"]
    assert b"nobody foresaw this" not in failed.body


def test_records_come_out_in_order_and_close_waits_for_the_last(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "access.log"))
    for number in range(5000):
        log.record(record(b"%d" % number))
    log.close()
    lines = (tmp_path / "access.log").read_text().splitlines()
    assert [json.loads(line)["query"] for line in lines] == [str(number) for number in range(5000)]


def test_a_log_that_is_off_writes_nothing() -> None:
    log = AccessLog("off")
    assert not log.enabled
    log.close()


def test_a_reader_that_stops_costs_records_not_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setattr(logs, "_MAX_PENDING", 100)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog(str(fifo))
    try:
        for _ in range(100_000):
            log.record(record())
        assert log._dropped > 0
        assert len(log._pending) <= 100
    finally:
        os.close(reader)  # the writer's next write fails, so that its thread can end
        with caplog.at_level(logging.WARNING):
            log.close()
    assert "dropped" in caplog.text or "lost" in caplog.text


def test_records_are_counted_also_where_none_is_written(tmp_path: Path) -> None:
    for destination in ("off", str(tmp_path / "access.log")):
        counted: list[Record] = []
        log = AccessLog(destination, counted.append)
        assert log.enabled
        for number in range(3):
            log.record(record(b"%d" % number))
        log.close()
        log.record(record(b"late"))
        assert [found[4] for found in counted] == [b"0", b"1", b"2", b"late"]
    assert len((tmp_path / "access.log").read_text().splitlines()) == 3
    assert not AccessLog("off").enabled
