"""A worker's log of requests: what it notes, what that costs where nothing is logged, and what finds no room."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.server.access_lines import parse
from tigrislike.logs import Record, format_record
from tigrislike.metadata import Metadata
from tigrislike.metadata.records import Logging
from tigrislike.replication.log_spool import Spool
from tigrislike.s3api import server_log
from tigrislike.s3api.request import Request
from tigrislike.s3api.server_log import NOTE, ServerLog

BUCKET = bytes(range(16))
END_NS = 1_700_000_000 * 10**9  # 14 November 2023, 22:13:20 UTC


class Rows:
    """The rows that the database has."""

    def __init__(self, *rows: Logging) -> None:
        self.rows = list(rows)

    async def logged_buckets(self) -> list[Logging]:
        return self.rows


def log_of(spool: Spool, *rows: Logging, **more: Any) -> tuple[ServerLog, Any]:
    database: Any = Rows(*(rows or (Logging(BUCKET, "logged", "root", "target"),)))
    metadata: Metadata = database
    return ServerLog(metadata, spool, lambda account: f"<{account}>", **more), database


def request(path: str = "/logged/key", **headers: str) -> Request:
    async def nothing() -> dict[str, Any]:
        raise AssertionError("nobody reads the body")

    scope = {
        "method": "GET",
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
        "scheme": "http",
        "http_version": "1.1",
        "access": {},
    }
    made = Request(scope, nothing, "3E57427F33A59F07")
    made.notes.update(request_id=made.request_id, operation="GetObject")
    made.address(())
    return made


def over(made: Request, status: int = 200) -> Record:
    return END_NS, "[::1]:4711", "GET", made.raw_path, made.raw_query, status, 3, 0, 5 * 10**6, made.notes


def test_only_logged_buckets_requests_are_noted_and_no_record_keeps_the_note(tmp_path: Path) -> None:
    async def story() -> None:
        spool = Spool(tmp_path, 1 << 20)
        log, database = log_of(spool)
        assert not log.logged, "nothing is known before the first look"
        await log.look()
        logged, other = request(), request("/other/key")
        for made in (logged, other):
            log.note(made)
            log.take(over(made))
            assert NOTE not in made.notes
            format_record(over(made))
        await log.flush()
        (file,) = (tmp_path / BUCKET.hex()).iterdir()
        (line,) = file.read_text().splitlines()
        assert file.name == "2023-11-14"
        read = parse(line)
        assert (read.owner, read.bucket, read.key, read.remote_ip) == ("<root>", "logged", "key", "[::1]")
        seen = log.logged
        database.rows = [Logging(BUCKET, "logged", "root", "target", ended_ns=1)]
        await log.look()
        assert log.logged is seen == {}, "the gateway looks at this dictionary"

    asyncio.run(story())


def test_a_copy_is_told_to_its_sources_log_alone_where_only_that_is_logged(tmp_path: Path) -> None:
    async def story() -> None:
        log, _ = log_of(Spool(tmp_path, 1 << 20))
        await log.look()
        made = request("/other/key", x_amz_copy_source="/logged/a%20key?versionId=17")
        log.note(made)
        made.notes[NOTE].performed("CopyObject", {"CopySource": "/logged/a%20key?versionId=17"}, {})
        log.take(over(made))
        await log.flush()
        (file,) = (tmp_path / BUCKET.hex()).iterdir()
        read = parse(file.read_text().rstrip("\n"))
        assert (read.operation, read.bucket, read.key, read.version_id) == (
            "REST.COPY.OBJECT_GET",
            "logged",
            "a%20key",
            "17",
        )

    asyncio.run(story())


def test_a_copy_by_a_link_is_noted_too(tmp_path: Path) -> None:
    async def story() -> None:
        log, _ = log_of(Spool(tmp_path, 1 << 20))
        await log.look()
        made = request("/other/key")
        made.query["X-Amz-Copy-Source"] = "/logged/key"
        log.note(made)
        assert NOTE in made.notes

    asyncio.run(story())


def test_one_request_does_not_fill_the_log_with_keys_that_nothing_can_have(tmp_path: Path) -> None:
    async def story() -> None:
        log, _ = log_of(Spool(tmp_path, 1 << 20))
        await log.look()
        made = request("/logged")
        log.note(made)
        entries = {"Delete": {"Objects": [{"Key": "é" * 700_000}, {"Key": "a", "VersionId": "v" * 700_000}]}}
        made.notes[NOTE].performed("DeleteObjects", entries, {})
        log.take(over(made))
        await log.flush()
        (file,) = (tmp_path / BUCKET.hex()).iterdir()
        assert file.stat().st_size < 8192
        assert [parse(line).key for line in file.read_text().splitlines()] == ["-", "a"]

    asyncio.run(story())


def test_a_key_that_could_not_be_deleted_is_told_with_its_error(tmp_path: Path) -> None:
    async def story() -> None:
        log, _ = log_of(Spool(tmp_path, 1 << 20))
        await log.look()
        made = request("/logged")
        log.note(made)
        entries = {"Delete": {"Objects": [{"Key": "a"}, {"Key": "b", "VersionId": "9"}], "Quiet": True}}
        errors = {"Errors": [{"Key": "b", "VersionId": "9", "Code": "NoSuchVersion", "Message": ""}]}
        made.notes[NOTE].performed("DeleteObjects", entries, errors)
        log.take(over(made))
        await log.flush()
        (file,) = (tmp_path / BUCKET.hex()).iterdir()
        _, first, second = map(parse, file.read_text().splitlines())
        assert (first.key, first.status, first.error) == ("a", "204", "-")
        assert (second.key, second.version_id, second.status, second.error) == ("b", "9", "404", "NoSuchVersion")

    asyncio.run(story())


def test_a_request_across_midnight_belongs_to_the_day_on_which_it_came(tmp_path: Path) -> None:
    async def story() -> None:
        log, _ = log_of(Spool(tmp_path, 1 << 20))
        await log.look()
        made = request()
        log.note(made)
        midnight_ns = 1_699_920_000 * 10**9
        log.take((midnight_ns + 1, *over(made)[1:]))
        await log.flush()
        (file,) = (tmp_path / BUCKET.hex()).iterdir()
        assert file.name == "2023-11-13"

    asyncio.run(story())


def dropped_of(text: str) -> int:
    """How many lines a message says were dropped."""
    (number,) = re.findall(r"(\d+) lines dropped", text)
    return int(number)


def test_a_flood_is_dropped_and_counted_and_other_buckets_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        monkeypatch.setattr(server_log, "MOST_PENDING_BYTES", 3000)
        other = bytes(16)
        counted: list[tuple[str, int]] = []
        rows = [Logging(id_, name, "root", "target") for id_, name in ((BUCKET, "logged"), (other, "quiet"))]
        log, _ = log_of(Spool(tmp_path, 4000), *rows, count=lambda result, lines: counted.append((result, lines)))
        await log.look()

        def ask(path: str) -> None:
            made = request(path)
            log.note(made)
            log.take(over(made))

        for _ in range(100):
            ask("/logged/key")
        ask("/quiet/key")
        with caplog.at_level(logging.WARNING):
            await log.flush()
        assert counted == [("taken", 101 - dropped_of(caplog.text)), ("dropped", dropped_of(caplog.text))]
        kept = len((tmp_path / BUCKET.hex() / "2023-11-14").read_text().splitlines())
        assert f"{100 - kept} lines dropped" in caplog.text
        assert len((tmp_path / other.hex() / "2023-11-14").read_text().splitlines()) == 1
        caplog.clear()
        for _ in range(5):
            ask("/logged/key")
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                await log.flush()
                for _ in range(10):
                    ask("/logged/key")
        assert "10 lines dropped" in caplog.text, "the spool has no room either"

    asyncio.run(story())


def test_a_flush_that_is_cancelled_loses_nothing(tmp_path: Path) -> None:
    """As when a worker ends: its last flush comes while another one has just been cut off."""

    class Slow(Spool):
        def append(self, bucket: bytes, day: str, records: bytes | bytearray) -> bool:
            assert going.wait(30)
            return super().append(bucket, day, records)

    async def story() -> None:
        log, _ = log_of(Slow(tmp_path, 1 << 20))
        await log.look()

        def ask() -> None:
            made = request()
            log.note(made)
            log.take(over(made))

        ask()
        first = asyncio.ensure_future(log.flush())
        await asyncio.sleep(0)
        ask()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        going.set()
        await log.flush()
        assert len((tmp_path / BUCKET.hex() / "2023-11-14").read_text().splitlines()) == 2

    going = threading.Event()
    asyncio.run(story())


def test_what_the_disk_refuses_is_dropped_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        (tmp_path / "spool").touch()
        log, _ = log_of(Spool(tmp_path / "spool" / "below a file", 1 << 20))
        await log.look()
        made = request()
        log.note(made)
        log.take(over(made))
        with caplog.at_level(logging.WARNING):
            await log.flush()
        assert "cannot be written" in caplog.text
        assert "1 lines dropped" in caplog.text

    asyncio.run(story())
