"""The access log: what a line says, what it never says, and that nobody waits for its reader."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from tigrislike import logs
from tigrislike.logs import AccessLog, Record, format_record, redacted


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


@pytest.mark.parametrize("name", ["X-Amz-Signature", "X-Amz-Security-Token", "Signature", "x-amz-signature"])
def test_signatures_are_not_written(name: str) -> None:
    assert redacted(f"a=1&{name}=s3cr3t&b=2".encode()) == f"a=1&{name}=...&b=2"


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
