"""What users of Arrow do, as functions of a bucket's name. Run by ../test_pyarrow.py with pyarrow's own Python."""

import os
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

MIB = 1024 * 1024


def _filesystem() -> fs.S3FileSystem:
    scheme, _, address = os.environ["AWS_ENDPOINT_URL"].partition("://")
    return fs.S3FileSystem(
        endpoint_override=address,
        scheme=scheme,
        region=os.environ["AWS_REGION"],
        tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE"),
    )


def _table(rows: int) -> pa.Table:
    numbers = pa.array(range(rows))
    return pa.table({"n": numbers, "part": pc.bit_wise_and(numbers, 7), "text": pc.cast(numbers, pa.string())})


def a_partitioned_dataset_is_written_and_queried(bucket: str) -> None:
    filesystem = _filesystem()
    table = _table(200_000)
    partitioning = ds.partitioning(pa.schema([("part", pa.int64())]), flavor="hive")
    ds.write_dataset(table, f"{bucket}/set", filesystem=filesystem, format="parquet", partitioning=partitioning)
    dataset = ds.dataset(f"{bucket}/set", filesystem=filesystem, format="parquet", partitioning=partitioning)
    assert len(dataset.files) == 8
    assert dataset.to_table(columns=table.column_names).sort_by("n") == table
    chosen = dataset.to_table(filter=(ds.field("part") == 3) & (ds.field("n") < 1000), columns=["n"])
    assert sorted(chosen["n"].to_pylist()) == list(range(3, 1000, 8))
    ds.write_dataset(
        table.slice(0, 10),
        f"{bucket}/set",
        filesystem=filesystem,
        format="parquet",
        partitioning=partitioning,
        existing_data_behavior="delete_matching",
    )
    again = ds.dataset(f"{bucket}/set", filesystem=filesystem, format="parquet", partitioning=partitioning)
    assert again.count_rows() == 10


def a_parquet_file_is_read_by_row_group(bucket: str) -> None:
    filesystem = _filesystem()
    table = _table(100_000)
    pq.write_table(table, f"{bucket}/file.parquet", filesystem=filesystem, row_group_size=10_000)
    with filesystem.open_input_file(f"{bucket}/file.parquet") as file:
        parquet = pq.ParquetFile(file, pre_buffer=True)
        assert parquet.num_row_groups == 10
        assert parquet.read_row_group(7) == table.slice(70_000, 10_000)
    assert pq.read_table(f"{bucket}/file.parquet", filesystem=filesystem, columns=["n"])["n"].equals(table["n"])


def a_large_stream_is_written_in_parts_and_read_back(bucket: str) -> None:
    filesystem = _filesystem()
    body = os.urandom(23 * MIB + 3)
    with filesystem.open_output_stream(f"{bucket}/large", metadata={"Content-Type": "application/x-weights"}) as out:
        for start in range(0, len(body), 3 * MIB):
            out.write(body[start : start + 3 * MIB])
    with filesystem.open_input_stream(f"{bucket}/large") as stream:
        assert stream.read() == body
        assert stream.metadata()["Content-Type"] == b"application/x-weights"
    with filesystem.open_input_file(f"{bucket}/large") as file:
        assert file.size() == len(body)
        assert file.read_at(100, 10 * MIB - 50) == body[10 * MIB - 50 : 10 * MIB + 50]


def empty_files_are_files(bucket: str) -> None:
    filesystem = _filesystem()
    with filesystem.open_output_stream(f"{bucket}/empty"):
        pass
    info = filesystem.get_file_info(f"{bucket}/empty")
    assert (info.type, info.size) == (fs.FileType.File, 0)


def directories_are_made_listed_moved_and_removed(bucket: str) -> None:
    filesystem = _filesystem()
    filesystem.create_dir(f"{bucket}/a/b/c", recursive=True)
    for name in ("a/one", "a/b/two", "a/b/ü + %2F"):
        with filesystem.open_output_stream(f"{bucket}/{name}") as out:
            out.write(name.encode())
    everything = filesystem.get_file_info(fs.FileSelector(bucket, recursive=True))
    assert {(info.path.removeprefix(bucket + "/"), info.is_file) for info in everything} == {
        ("a", False),
        ("a/b", False),
        ("a/b/c", False),
        ("a/one", True),
        ("a/b/two", True),
        ("a/b/ü + %2F", True),
    }
    filesystem.copy_file(f"{bucket}/a/one", f"{bucket}/a/copy")
    filesystem.move(f"{bucket}/a/b/ü + %2F", f"{bucket}/moved")
    with filesystem.open_input_stream(f"{bucket}/moved") as stream:
        assert stream.read() == "a/b/ü + %2F".encode()
    filesystem.delete_file(f"{bucket}/moved")
    filesystem.delete_dir_contents(f"{bucket}/a")
    filesystem.delete_dir(f"{bucket}/a")
    assert filesystem.get_file_info(fs.FileSelector(bucket, recursive=True)) == []
    assert filesystem.get_file_info(f"{bucket}/a").type == fs.FileType.NotFound


def a_tree_is_copied_between_file_systems(bucket: str) -> None:
    os.makedirs("tree/sub")
    body = os.urandom(7 * MIB)
    with open("tree/sub/file", "wb") as file:
        file.write(body)
    fs.copy_files(os.path.abspath("tree"), f"{bucket}/tree", destination_filesystem=_filesystem())
    fs.copy_files(f"{bucket}/tree", os.path.abspath("back"), source_filesystem=_filesystem())
    with open("back/sub/file", "rb") as file:
        assert file.read() == body


def what_is_not_there_is_not_found(bucket: str) -> None:
    filesystem = _filesystem()
    for path in (f"{bucket}/nothing", "no-such-bucket-at-all/nothing"):
        assert filesystem.get_file_info(path).type == fs.FileType.NotFound
        try:
            filesystem.open_input_file(path)
        except FileNotFoundError:
            continue
        raise AssertionError(f"{path} was opened")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
