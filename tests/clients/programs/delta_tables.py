"""One writer of a Delta table, and one reader. Run by ../test_deltalake.py with deltalake's own Python."""

import os
import sys

from arro3.core import Array, DataType, Table
from deltalake import CommitProperties, DeltaTable, QueryBuilder, write_deltalake

# What object_store takes from no environment variable; conditional puts are its default.
_OPTIONS = {"AWS_ALLOW_HTTP": "true"}


def create(table: str) -> None:
    write_deltalake(table, _rows(-1, 0), storage_options=_OPTIONS)


def append(table: str, writer: str, commits: str) -> None:
    """Append one row for each commit, in one commit each."""
    for number in range(int(commits)):
        write_deltalake(
            table,
            _rows(int(writer), number),
            mode="append",
            storage_options=_OPTIONS,
            # A writer that lost its turn tries the next version number; with many writers it loses often.
            commit_properties=CommitProperties(max_commit_retries=200),
        )


def check(table: str, writers: str, commits: str) -> None:
    """Every commit of every writer is one version, and its row is there once."""
    loaded = DeltaTable(table, storage_options=_OPTIONS)
    assert loaded.version() == int(writers) * int(commits), loaded.version()
    found = _read(loaded)
    expected = [(-1, 0)] + [(writer, number) for writer in range(int(writers)) for number in range(int(commits))]
    assert found == expected, found


def optimise(table: str) -> None:
    """A rewrite of the table into one file, a checkpoint, and the old files removed."""
    loaded = DeltaTable(table, storage_options=_OPTIONS)
    before = _read(loaded)
    loaded.optimize.compact()
    loaded.create_checkpoint()
    loaded.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    again = DeltaTable(table, storage_options=_OPTIONS)
    assert _read(again) == before
    assert len(again.file_uris()) == 1


def _rows(writer: int, number: int) -> Table:
    columns = {"writer": writer, "number": number, "pid": os.getpid()}
    return Table.from_pydict({name: Array([value], DataType.int64()) for name, value in columns.items()})


def _read(table: DeltaTable) -> list[tuple[int, int]]:
    """Writer and number of each row, in order."""
    query = "SELECT writer, number FROM t ORDER BY writer, number"
    rows = QueryBuilder().register("t", table).execute(query).read_all()
    return list(zip(rows["writer"].to_pylist(), rows["number"].to_pylist(), strict=True))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
