"""Slow requests: kept by each worker, read by any, never half."""

from __future__ import annotations

from typing import Any

from tigrislike.logs import Record
from tigrislike.slow import SLOTS, SlowRequests


def record(at_s: float, took_s: float, path: bytes = b"/b/k", **notes: Any) -> Record:
    ns = 10**9
    return int((at_s + took_s) * ns), "::1", "GET", path, b"", 200, 5, 0, int(took_s * ns), {"operation": "Op", **notes}


def test_only_slow_requests_are_kept_the_latest_first() -> None:
    slow = SlowRequests(2, 0.5)
    slow.note(0, record(10, 0.5, access_key="key", request_id="ID"))
    slow.note(1, record(20, 0.6))
    slow.note(1, record(30, 0.4))
    assert [(each.at, each.seconds) for each in slow.entries()] == [(20.0, 0.6), (10.0, 0.5)]
    kept = slow.entries()[1]
    assert (kept.operation, kept.method, kept.path, kept.status) == ("Op", "GET", "/b/k", 200)
    assert (kept.access_key, kept.request_id, kept.client, kept.sent_bytes) == ("key", "ID", "::1", 5)


def test_each_worker_keeps_the_latest_few() -> None:
    slow = SlowRequests(2, 0.5)
    for number in range(3 * SLOTS):
        slow.note(1, record(number, 1))
    assert [each.at for each in slow.entries()] == [float(number) for number in range(3 * SLOTS - 1, 2 * SLOTS - 1, -1)]


def test_an_endless_path_is_cut_off_and_others_are_untouched() -> None:
    slow = SlowRequests(1, 0.5)
    for number in range(3):
        slow.note(0, record(number, 1, b"/" + b"\xff\x00" * 5000))
    assert [len(each.path) for each in slow.entries()] == [256] * 3


def test_what_is_half_written_is_not_shown() -> None:
    slow = SlowRequests(1, 0.5)
    slow.note(0, record(1, 1))
    slow.note(0, record(2, 1))
    slow._cells[10:20] = b"\xc1" * 10
    assert [each.at for each in slow.entries()] == [2.0]


def test_a_threshold_of_zero_keeps_none() -> None:
    slow = SlowRequests(1, 0)
    slow.note(0, record(1, 1000))
    assert slow.entries() == []
