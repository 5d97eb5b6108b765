"""What readers of weights do without torch, as functions of a model's place, of what its tensors must be, and of a
place to write to: safetensors over s3fs, and Arrow. Run by ../test_weights.py with the Python of the weights
environment."""

import concurrent.futures
import functools
import json
import os
import sys

import numpy
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import s3fs
import safetensors
from expected_tensors import Expected
from pyarrow import fs

MIB = 1024 * 1024


def _s3fs() -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(use_listings_cache=False)


def _arrow() -> fs.S3FileSystem:
    scheme, _, address = os.environ["AWS_ENDPOINT_URL"].partition("://")
    return fs.S3FileSystem(
        endpoint_override=address,
        scheme=scheme,
        region=os.environ["AWS_REGION"],
        tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE"),
    )


def _header(prefix: bytes) -> tuple[dict, int]:
    """The header of a shard that begins with `prefix`, and where its tensors begin."""
    length = int.from_bytes(prefix[:8], "little")
    header = json.loads(prefix[8 : 8 + length])
    del header["__metadata__"]
    return header, 8 + length


def whole_shards_are_loaded_through_s3fs(place: str, expected_path: str, out: str) -> None:
    expected = Expected(expected_path)
    shards = _s3fs().cat([f"{place}/{file}" for file in expected.files])  # all at once
    for body in shards.values():
        for name, view in safetensors.deserialize(body):
            expected.see(name, view["dtype"], view["shape"], view["data"])
    expected.all_seen()


def tensors_are_loaded_by_their_ranges_through_s3fs(place: str, expected_path: str, out: str) -> None:
    files, expected = _s3fs(), Expected(expected_path)
    for file in expected.files:
        path = f"{place}/{file}"
        header, begin = _header(files.cat_file(path, end=64 * 1024))
        starts = [begin + entry["data_offsets"][0] for entry in header.values()]
        stops = [begin + entry["data_offsets"][1] for entry in header.values()]
        bodies = files.cat_ranges([path] * len(header), starts, stops)  # a request each, many at a time
        for (name, entry), body in zip(header.items(), bodies, strict=True):
            expected.see(name, entry["dtype"], entry["shape"], body)
    expected.all_seen()


def tensors_are_sought_in_an_open_file_of_s3fs(place: str, expected_path: str, out: str) -> None:
    files, expected = _s3fs(), Expected(expected_path)
    for file, cache in zip(expected.files, ("readahead", "bytes", "background"), strict=True):
        with files.open(f"{place}/{file}", "rb", block_size=8 * MIB, cache_type=cache) as opened:
            header, begin = _header(opened.read(64 * 1024))
            for name, entry in header.items():
                opened.seek(begin + entry["data_offsets"][0])
                body = opened.read(entry["data_offsets"][1] - entry["data_offsets"][0])
                expected.see(name, entry["dtype"], entry["shape"], body)
    expected.all_seen()


def a_fetched_shard_is_mapped(place: str, expected_path: str, out: str) -> None:
    files, expected = _s3fs(), Expected(expected_path, ["model-00003-of-00003.safetensors"])
    files.get(f"{place}/{expected.files[0]}", "shard")
    for backend in ("mmap", "pread"):
        with safetensors.safe_open("shard", framework="numpy", backend=backend) as shard:
            assert sorted(shard.keys()) == sorted(expected.entries)
            half = shard.get_slice("lm_head.weight")[8000:9000]
            assert half.tobytes() == shard.get_tensor("lm_head.weight")[8000:9000].tobytes()
    with safetensors.safe_open("shard", framework="numpy") as shard:
        named = {"float32": "F32", "int32": "I32", "float16": "F16", "uint8": "U8"}
        for name in expected.entries:
            tensor = shard.get_tensor(name)
            expected.see(name, named[tensor.dtype.name], tensor.shape, tensor.tobytes())
    expected.all_seen()
    os.remove("shard")


def shards_are_read_by_many_ranges_at_once_through_arrow(place: str, expected_path: str, out: str) -> None:
    expected = Expected(expected_path)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for file in expected.files:
            with _arrow().open_input_file(f"{place}/{file}") as opened:
                starts = range(0, opened.size(), 8 * MIB)
                pieces = pool.map(functools.partial(opened.read_at, 8 * MIB), starts)
                body = b"".join(pieces)
            for name, view in safetensors.deserialize(body):
                expected.see(name, view["dtype"], view["shape"], view["data"])
    expected.all_seen()


def shards_are_streamed_through_arrow(place: str, expected_path: str, out: str) -> None:
    expected = Expected(expected_path)
    for file in expected.files:
        with _arrow().open_input_stream(f"{place}/{file}", buffer_size=MIB) as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
            del header["__metadata__"]
            for name, entry in header.items():  # in the order in which they lie
                body = stream.read(entry["data_offsets"][1] - entry["data_offsets"][0])
                expected.see(name, entry["dtype"], entry["shape"], body)
            assert stream.read() == b""
    expected.all_seen()


def embeddings_are_a_dataset_of_arrow(place: str, expected_path: str, out: str) -> None:
    # 96 MiB of vectors in six files, which compression cannot make smaller.
    filesystem, rows, width = _arrow(), 4096, 1024
    source = numpy.random.default_rng(11)
    vectors = [source.random((rows, width), dtype=numpy.float32) for _ in range(6)]
    for number, block in enumerate(vectors):
        column = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), width)
        table = pa.table({"id": pa.array(range(number * rows, (number + 1) * rows)), "vector": column})
        with filesystem.open_output_stream(f"{out}/embeddings/{number:02}.parquet") as stream:
            pq.write_table(table, stream, row_group_size=1024, compression="none")
    dataset = ds.dataset(f"{out}/embeddings", filesystem=filesystem, format="parquet")
    assert dataset.count_rows() == 6 * rows
    read = dataset.to_table().sort_by("id").combine_chunks()
    assert read["id"].to_pylist() == list(range(6 * rows))
    flat = numpy.concatenate([chunk.flatten().to_numpy() for chunk in read["vector"].chunks])
    assert numpy.array_equal(flat, numpy.concatenate(vectors).ravel())
    # One row group of one file, and one column of all of them.
    chosen = dataset.to_table(filter=(pc.field("id") >= 20_000) & (pc.field("id") < 20_010))
    found = chosen.sort_by("id")["vector"].combine_chunks().flatten().to_numpy()
    assert numpy.array_equal(found, vectors[4][20_000 - 4 * rows : 20_010 - 4 * rows].ravel())
    assert dataset.to_table(columns=["id"]).num_rows == 6 * rows


def weights_are_an_arrow_file(place: str, expected_path: str, out: str) -> None:
    filesystem = _arrow()
    weights = numpy.random.default_rng(13).integers(0, 256, 40 * MIB, dtype=numpy.uint8)
    table = pa.table({"weights": weights})
    with filesystem.open_output_stream(f"{out}/weights.arrow") as stream, pa.ipc.new_file(stream, table.schema) as file:
        file.write_table(table, max_chunksize=5 * MIB + 1)
    with filesystem.open_input_file(f"{out}/weights.arrow") as file:
        batches = pa.ipc.open_file(file)
        assert batches.num_record_batches == 8
        last = batches.get_batch(7)["weights"].to_numpy()
        assert numpy.array_equal(last, weights[7 * (5 * MIB + 1) :])
        assert batches.read_all()["weights"].combine_chunks().equals(table["weights"].combine_chunks())


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
