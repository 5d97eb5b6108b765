"""The files of an inventory: rows as CSV or Parquet, and the manifest that names them. Pure code, but for pyarrow.

Source: S3 User Guide, "Amazon S3 Inventory list", "Locating your inventory list".
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import quote

from msgspec import Struct

from tigrislike.metadata.records import InventoryFile, ObjectSummary

if TYPE_CHECKING:
    import pyarrow as pa

CSV: Final = "CSV"
PARQUET: Final = "Parquet"
FORMATS: Final = (CSV, PARQUET)


class Row(Struct, frozen=True):
    """A version of an object, as a listing shows it; `modified_ms` is in Unix milliseconds. A delete marker has neither
    size nor what is told of bytes."""

    key: str
    version_id: str
    latest: bool
    delete_marker: bool
    size: int
    modified_ms: int
    etag: str
    storage_class: str
    checksum_algorithm: str


def row_of(key: str, version: ObjectSummary, latest: bool) -> Row:
    """The row of a version."""
    return Row(
        key,
        version.version_id,
        latest,
        version.delete_marker,
        version.size,
        version.stamp // 1_000_000,
        version.etag,
        version.storage_class,
        version.checksum_algorithm,
    )


class Column(NamedTuple):
    """A column: S3's name of it in configurations and CSV, that in Parquet, its type there, and its value, None where a
    version has none."""

    name: str
    column: str
    kind: str
    value: Callable[[Row, Plan], Any]


class Plan(Struct, frozen=True):
    """What is listed: of which bucket and owner (a canonical id), under which prefix, every version or the current
    ones, with which optional fields, and how it is written."""

    bucket: str
    owner: str
    format: str
    prefix: str = ""
    versions: bool = False
    fields: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[Column, ...]:
        more = _OF_VERSIONS if self.versions else ()
        return (*_ALWAYS, *more, *(column for column in _OPTIONAL if column.name in self.fields))


def _of_object(value: Callable[[Row, Plan], Any]) -> Callable[[Row, Plan], Any]:
    """A value that delete markers have not."""
    return lambda row, plan: None if row.delete_marker else value(row, plan)


_ALWAYS: Final = (
    Column("Bucket", "bucket", "required string", lambda row, plan: plan.bucket),
    Column("Key", "key", "required string", lambda row, plan: row.key),
)
_OF_VERSIONS: Final = (
    Column("VersionId", "version_id", "string", lambda row, plan: row.version_id),
    Column("IsLatest", "is_latest", "boolean", lambda row, plan: row.latest),
    Column("IsDeleteMarker", "is_delete_marker", "boolean", lambda row, plan: row.delete_marker),
)
_OPTIONAL: Final = (
    Column("Size", "size", "int64", _of_object(lambda row, plan: row.size)),
    Column("LastModifiedDate", "last_modified_date", "timestamp", lambda row, plan: row.modified_ms),
    Column("ETag", "e_tag", "string", _of_object(lambda row, plan: row.etag)),
    Column("StorageClass", "storage_class", "string", _of_object(lambda row, plan: row.storage_class)),
    # An ETag with a dash is that of a multipart upload: a copy of such an object has one of its own.
    Column(
        "IsMultipartUploaded",
        "is_multipart_uploaded",
        "boolean",
        _of_object(lambda row, plan: "-" in row.etag),
    ),
    Column("ReplicationStatus", "replication_status", "string", lambda row, plan: None),
    Column("EncryptionStatus", "encryption_status", "string", _of_object(lambda row, plan: "NOT-SSE")),
    Column(
        "ChecksumAlgorithm",
        "checksum_algorithm",
        "string",
        _of_object(lambda row, plan: row.checksum_algorithm or None),
    ),
    Column("ObjectOwner", "object_owner", "string", lambda row, plan: plan.owner),
)
OPTIONAL_FIELDS: Final = tuple(column.name for column in _OPTIONAL)
"""Those that can be asked for. What S3 has beyond them is of features that this store has not."""


class Encoder(Protocol):
    """Turns rows into the bytes of a file, piece by piece; its methods compute for some time."""

    def add(self, rows: Sequence[Row]) -> bytes: ...
    def end(self) -> bytes: ...


class CsvEncoder:
    """Gzipped CSV without a header: every field in quotes, keys percent-encoded."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._sink = io.BytesIO()
        self._gzip = gzip.GzipFile(filename="", mode="wb", fileobj=self._sink, mtime=0)

    def add(self, rows: Sequence[Row]) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
        columns = self._plan.columns
        writer.writerows([_csv_cell(column, column.value(row, self._plan)) for column in columns] for row in rows)
        self._gzip.write(text.getvalue().encode())
        return self._taken()

    def end(self) -> bytes:
        self._gzip.close()
        return self._taken()

    def _taken(self) -> bytes:
        data = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return data


def _csv_cell(column: Column, value: Any) -> str:
    if value is None:
        return ""
    if column.name == "Key":
        return quote(value.encode("utf-8", "surrogatepass"), safe="/")
    if column.kind == "boolean":
        return "true" if value else "false"
    if column.kind == "timestamp":
        return datetime.fromtimestamp(value // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{value % 1000:03}Z"
    return str(value)


class ParquetEncoder:
    """Parquet, with a row group for each call of `add`."""

    def __init__(self, plan: Plan) -> None:
        import pyarrow.parquet as pq

        self._plan = plan
        self._sink = _Sink()
        self._schema = arrow_schema(plan)
        self._writer = pq.ParquetWriter(self._sink, self._schema, compression="snappy")

    def add(self, rows: Sequence[Row]) -> bytes:
        self._writer.write_table(arrow_table(self._plan, self._schema, rows))
        return self._sink.taken()

    def end(self) -> bytes:
        self._writer.close()
        return self._sink.taken()


class _Sink(io.RawIOBase):
    """A file that is only written to, and remembers only what has not been taken yet."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []
        self._position = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        self._position += len(piece)
        return len(piece)

    def taken(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def encoder_of(plan: Plan) -> Encoder:
    return CsvEncoder(plan) if plan.format == CSV else ParquetEncoder(plan)


def arrow_schema(plan: Plan) -> pa.Schema:
    """The columns of a plan, as pyarrow has them."""
    import pyarrow as pa

    kinds = {
        "string": pa.string(),
        "boolean": pa.bool_(),
        "int64": pa.int64(),
        "timestamp": pa.timestamp("ms", tz="UTC"),
    }
    fields = [(column.column, *column.kind.rpartition(" ")) for column in plan.columns]
    return pa.schema([pa.field(name, kinds[kind], nullable=not required) for name, required, _, kind in fields])


def arrow_table(plan: Plan, schema: pa.Schema, rows: Iterable[Row]) -> pa.Table:
    """Rows in columns."""
    import pyarrow as pa

    kept = list(rows)
    return pa.table({column.column: [column.value(row, plan) for row in kept] for column in plan.columns}, schema)


# --- what names the files

_MESSAGE: Final = {
    "required string": "required binary {} (STRING)",
    "string": "optional binary {} (STRING)",
    "boolean": "optional boolean {}",
    "int64": "optional int64 {}",
    "timestamp": "optional int64 {} (TIMESTAMP(MILLIS,true))",
}


def schema_of(plan: Plan) -> str:
    """The schema of the files, as a manifest tells it."""
    if plan.format == CSV:
        return ", ".join(column.name for column in plan.columns)
    fields = "".join(f"  {_MESSAGE[column.kind].format(column.column)};" for column in plan.columns)
    return f"message s3.inventory {{{fields}}}"


class Place(NamedTuple):
    """Where reports lie: in which bucket, under which prefix, which is of the destination, the source and the
    configuration."""

    bucket: str
    prefix: str

    def data_key(self, name: str, format_: str) -> str:
        return f"{self.prefix}/data/{name}.{'csv.gz' if format_ == CSV else 'parquet'}"

    def manifest_key(self, begun_ns: int, name: str) -> str:
        """That of ``manifest.json`` or ``manifest.checksum``."""
        return f"{self.prefix}/{_moment(begun_ns):%Y-%m-%dT%H-%MZ}/{name}"

    def symlink_key(self, begun_ns: int) -> str:
        return f"{self.prefix}/hive/dt={_moment(begun_ns):%Y-%m-%d-%H-%M}/symlink.txt"


def place_of(destination: str, prefix: str, source: str, id_: str) -> Place:
    """Where reports on the bucket `source` lie, given the destination's prefix, which may be empty."""
    return Place(destination, "/".join([*filter(None, [prefix.rstrip("/")]), source, id_]))


def manifest_of(plan: Plan, place: Place, begun_ns: int, files: Sequence[InventoryFile]) -> bytes:
    """``manifest.json``."""
    named = [(place.data_key(file.name, plan.format), file) for file in files]
    document = {
        "sourceBucket": plan.bucket,
        "destinationBucket": f"arn:aws:s3:::{place.bucket}",
        "version": "2016-11-30",
        "creationTimestamp": str(begun_ns // 1_000_000),
        "fileFormat": plan.format,
        "fileSchema": schema_of(plan),
        "files": [{"key": key, "size": file.size, "MD5checksum": file.md5} for key, file in named],
    }
    return json.dumps(document, indent=2).encode()


def symlink_of(plan: Plan, place: Place, files: Sequence[InventoryFile]) -> bytes:
    """``symlink.txt``, by which Hive finds the files."""
    return "\n".join(f"s3://{place.bucket}/{place.data_key(file.name, plan.format)}" for file in files).encode()


def _moment(at_ns: int) -> datetime:
    return datetime.fromtimestamp(at_ns // 1_000_000_000, UTC)
