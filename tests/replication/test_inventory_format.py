"""The files of inventories: whatever a key is, it is read back from CSV and Parquet; they are written as they come."""

from __future__ import annotations

import csv
import gzip
import io
from urllib.parse import unquote_plus

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tigrislike.replication.inventory_format import (
    CSV,
    FORMATS,
    OPTIONAL_FIELDS,
    PARQUET,
    Plan,
    Row,
    encoder_of,
    place_of,
    schema_of,
)

keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
rows = st.builds(
    Row,
    key=keys,
    version_id=st.from_regex(r"null|[1-9]\d{18}", fullmatch=True),
    latest=st.booleans(),
    delete_marker=st.booleans(),
    size=st.integers(0, 1 << 50),
    modified_ms=st.integers(0, 4_000_000_000_000),
    etag=st.from_regex(r"[0-9a-f]{32}(-[1-9]\d{0,3})?", fullmatch=True),
    storage_class=st.sampled_from(["STANDARD", "GLACIER"]),
    checksum_algorithm=st.sampled_from(["", "CRC32", "CRC64NVME"]),
)


def encoded(plan: Plan, *groups: list[Row]) -> bytes:
    encoder = encoder_of(plan)
    return b"".join([*(encoder.add(group) for group in groups), encoder.end()])


@given(st.lists(rows, max_size=5), st.lists(rows, min_size=1, max_size=5))
def test_what_is_written_is_read_back(first: list[Row], second: list[Row]) -> None:
    plan = Plan("bucket", "owner", CSV, "", True, OPTIONAL_FIELDS)
    data = gzip.decompress(encoded(plan, first, second)).decode()
    as_text = list(csv.reader(io.StringIO(data, newline="")))
    plan = Plan("bucket", "owner", PARQUET, "", True, OPTIONAL_FIELDS)
    table = pq.read_table(io.BytesIO(encoded(plan, first, second))).to_pylist()
    written = first + second
    assert len(as_text) == len(table) == len(written)
    for row, text, typed in zip(written, as_text, table, strict=True):
        assert unquote_plus(text[1]) == typed["key"] == row.key
        assert text[2] == typed["version_id"] == row.version_id
        assert (text[3] == "true", text[4] == "true") == (row.latest, row.delete_marker)
        assert typed["is_latest"] == row.latest
        size = None if row.delete_marker else row.size
        assert typed["size"] == size
        assert text[5] == ("" if size is None else str(size))
        assert round(typed["last_modified_date"].timestamp() * 1000) == row.modified_ms
        assert text[6].endswith(f"{row.modified_ms % 1000:03}Z")
        multipart = None if row.delete_marker else "-" in row.etag
        assert typed["is_multipart_uploaded"] == multipart
        assert typed["replication_status"] is None
        assert (typed["checksum_algorithm"] or "") == ("" if row.delete_marker else row.checksum_algorithm)


def plain(number: int) -> Row:
    return Row(f"key/{number:08}", "null", True, False, number, number, f"{number:032x}", "STANDARD", "CRC64NVME")


@pytest.mark.parametrize("format_", FORMATS)
def test_each_group_leaves_memory_when_it_is_written(format_: str) -> None:
    encoder = encoder_of(Plan("bucket", "owner", format_, "", False, OPTIONAL_FIELDS))
    pieces = [encoder.add([plain(number) for number in range(start, start + 5000)]) for start in range(0, 50_000, 5000)]
    end = encoder.end()
    if format_ == PARQUET:
        # CSV leaves what its compressor has not yet given out, some tens of kilobytes.
        assert pq.ParquetFile(io.BytesIO(b"".join([*pieces, end]))).num_row_groups == 10
    assert min(map(len, pieces)) * 2 > max(map(len, pieces)), "no group waits for the next"
    assert len(end) < len(pieces[0]) / 2


def test_columns_are_in_s3s_order_whatever_was_asked_for_first() -> None:
    plan = Plan("bucket", "owner", CSV, "", False, ("ETag", "Size"))
    assert schema_of(plan) == "Bucket, Key, Size, ETag"
    assert encoded(plan, []) != b""


@pytest.mark.parametrize("prefix", ["", "reports", "reports/"])
def test_reports_lie_where_s3_puts_them(prefix: str) -> None:
    place = place_of("there", prefix, "source", "daily")
    folder = "reports/source/daily" if prefix else "source/daily"
    begun_ns = 1_700_000_000 * 10**9
    assert place.manifest_key(begun_ns, "manifest.json") == f"{folder}/2023-11-14T22-13Z/manifest.json"
    assert place.symlink_key(begun_ns) == f"{folder}/hive/dt=2023-11-14-22-13/symlink.txt"
    assert place.data_key("name", CSV) == f"{folder}/data/name.csv.gz"
    assert place.data_key("name", PARQUET) == f"{folder}/data/name.parquet"
