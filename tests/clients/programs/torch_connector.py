"""What users of s3torchconnector do, as functions of a model's place, of what its tensors must be, and of a place to
write to. Run by ../test_weights.py with the Python of the torch environment."""

import functools
import json
import os
import sys
import time

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from expected_tensors import Expected
from s3torchconnector import (
    S3Checkpoint,
    S3ClientConfig,
    S3Exception,
    S3IterableDataset,
    S3MapDataset,
    S3ReaderConstructor,
)
from s3torchconnector.dcp import S3StorageReader, S3StorageWriter

MIB = 1024 * 1024
REGION = os.environ["AWS_REGION"]
# One attempt only: what works at the second is an error that a retry hides.
CONFIG = S3ClientConfig(force_path_style=True, max_attempts=1)
READERS = {
    "sequential": S3ReaderConstructor.sequential(),
    "by ranges": S3ReaderConstructor.range_based(),
    "by ranges, unbuffered": S3ReaderConstructor.range_based(buffer_size=0),
}


def _read(reader):
    return reader.key, reader.read()


def shards_are_read_by_every_kind_of_reader(place: str, expected_path: str, out: str) -> None:
    for name, constructor in READERS.items():
        expected = Expected(expected_path)
        started, size = time.monotonic(), 0
        dataset = S3MapDataset.from_objects(
            [f"{place}/{file}" for file in expected.files],
            region=REGION,
            transform=_read,
            s3client_config=CONFIG,
            reader_constructor=constructor,
        )
        for number in range(len(dataset)):
            key, body = dataset[number]
            assert key.endswith(expected.files[number])
            size += len(body)
            for tensor, value in safetensors.torch.load(body).items():
                expected.see_torch(tensor, value)
        expected.all_seen()
        seconds = time.monotonic() - started
        print(f"{name}: {size / MIB / seconds:.0f} MiB/s, digests included")


def a_shard_is_streamed(place: str, expected_path: str, out: str) -> None:
    expected = Expected(expected_path, ["model-00003-of-00003.safetensors"])
    dataset = S3IterableDataset.from_objects(
        [f"{place}/{expected.files[0]}"], region=REGION, transform=_read, s3client_config=CONFIG
    )
    for _, body in dataset:
        for tensor, value in safetensors.torch.load(body).items():
            expected.see_torch(tensor, value)
    expected.all_seen()


def a_prefix_is_listed_and_shared_by_the_workers_of_a_loader(place: str, expected_path: str, out: str) -> None:
    expected = Expected(expected_path)
    dataset = S3IterableDataset.from_prefix(
        f"{place}/model-", region=REGION, transform=_read, s3client_config=CONFIG, enable_sharding=True
    )
    # Processes made by a fork: each makes a client of its own.
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for _, body in loader:
        for tensor, value in safetensors.torch.load(body).items():
            expected.see_torch(tensor, value)
    expected.all_seen()


def tensors_are_sought_in_a_shard(place: str, expected_path: str, out: str) -> None:
    expected = Expected(expected_path)
    for file in expected.files:
        dataset = S3MapDataset.from_objects(
            [f"{place}/{file}"],
            region=REGION,
            transform=functools.partial(_sought, expected),
            s3client_config=CONFIG,
            reader_constructor=S3ReaderConstructor.range_based(),
        )
        dataset[0]
    expected.all_seen()


def _sought(expected, reader):
    length = int.from_bytes(reader.read(8), "little")
    header = json.loads(reader.read(length))
    header.pop("__metadata__")
    for name, entry in reversed(header.items()):  # from the end: every one is a seek
        start, stop = entry["data_offsets"]
        reader.seek(8 + length + start)
        buffer = bytearray(stop - start)
        filled = 0
        while filled < len(buffer):
            read = reader.readinto(memoryview(buffer)[filled:])
            assert read, f"{name} ends early"
            filled += read
        expected.see(name, entry["dtype"], entry["shape"], buffer)


def _state():
    generator = torch.Generator().manual_seed(5)
    return {
        "embedding": torch.randn(9001, 1024, generator=generator),
        "layers": {
            number: torch.randint(-128, 128, (1021, 1021), dtype=torch.int8, generator=generator)
            for number in range(24)
        },
        "step": torch.tensor(17),
        "half": torch.randn(513, 511, generator=generator).bfloat16(),
    }


def _assert_same(left, right):
    assert left["layers"].keys() == right["layers"].keys()
    for number in left["layers"]:
        assert torch.equal(left["layers"][number], right["layers"][number])
    for name in ("embedding", "step", "half"):
        assert left[name].dtype == right[name].dtype
        assert torch.equal(left[name], right[name])


def checkpoints_are_saved_and_loaded(place: str, expected_path: str, out: str) -> None:
    checkpoint = S3Checkpoint(region=REGION, s3client_config=CONFIG)
    state = _state()
    with checkpoint.writer(f"{out}/step 17+ü/state.pt") as writer:
        torch.save(state, writer)
    with checkpoint.reader(f"{out}/step 17+ü/state.pt") as reader:
        _assert_same(torch.load(reader, weights_only=True), state)
    with checkpoint.writer(f"{out}/empty") as writer:
        pass
    with checkpoint.reader(f"{out}/empty") as reader:
        assert reader.read() == b""
    try:
        checkpoint.reader(f"{out}/nothing").read()
    except S3Exception as error:
        said = str(error)
    else:
        said = "it was read"
    assert said == "Service error: The key does not exist"


def distributed_checkpoints_are_saved_and_loaded(place: str, expected_path: str, out: str) -> None:
    state = _state()
    dcp.save(state, storage_writer=S3StorageWriter(REGION, f"{out}/dcp/", s3client_config=CONFIG, thread_count=3))
    for constructor in (READERS["sequential"], READERS["by ranges"], S3ReaderConstructor.dcp_optimized()):
        loaded = {
            "embedding": torch.zeros(9001, 1024),
            "layers": {number: torch.zeros(1021, 1021, dtype=torch.int8) for number in range(24)},
            "step": torch.tensor(0),
            "half": torch.zeros(513, 511, dtype=torch.bfloat16),
        }
        reader = S3StorageReader(REGION, f"{out}/dcp/", s3client_config=CONFIG, reader_constructor=constructor)
        dcp.load(loaded, storage_reader=reader)
        _assert_same(loaded, state)
    # A part of it, as one that changes how a model is split does.
    part = {"half": torch.zeros(513, 511, dtype=torch.bfloat16)}
    dcp.load(part, storage_reader=S3StorageReader(REGION, f"{out}/dcp/", s3client_config=CONFIG))
    assert torch.equal(part["half"], state["half"])


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
