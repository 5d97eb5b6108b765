"""What vLLM and SGLang do with Run:ai's model streamer, as functions of a model's place and of what its tensors must
be. Run by ../test_weights.py with the Python of the torch environment."""

import json
import os
import sys
import time

from expected_tensors import Expected
from runai_model_streamer import ObjectStorageModel, SafetensorsStreamer, list_safetensors

MIB = 1024 * 1024


def _stream(paths, seen, **options):
    started = time.monotonic()
    with SafetensorsStreamer() as streamer:
        streamer.stream_files(paths, **options)
        for name, tensor in streamer.get_tensors():
            seen(name, tensor)
        size = streamer.total_size
    rate = size / MIB / (time.monotonic() - started)
    print(f"model streamer: {size / MIB:.0f} MiB at {rate:.0f} MiB/s, digests included")
    return size


def every_shard_is_streamed(place: str, expected_path: str) -> None:
    expected = Expected(expected_path)
    paths = sorted(list_safetensors(place))
    assert paths == [f"{place}/{name}" for name in expected.files]
    _stream(paths, expected.see_torch)
    expected.all_seen()


def a_model_larger_than_the_memory_allowed_is_streamed_in_pieces(place: str, expected_path: str) -> None:
    # The largest tensor is 100 MiB: the buffers are filled several times over.
    os.environ["RUNAI_STREAMER_MEMORY_LIMIT"] = str(110 * MIB)
    expected = Expected(expected_path)
    # Views into buffers that the streamer fills again: bytes that come late would be found in the wrong tensor.
    _stream(list_safetensors(place), expected.see_torch, owned=False)
    expected.all_seen()


def chosen_tensors_are_streamed_alone(place: str, expected_path: str) -> None:
    # As a rank of an expert-parallel model does: ranges with gaps between them, most of them small.
    expected = Expected(expected_path, ["model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"])
    expected.choose(lambda name: ".experts.1" in name or name.endswith(("scale", "zero_points")))
    paths = [f"{place}/{file}" for file in expected.files]
    size = _stream(paths, expected.see_torch, tensor_names=list(expected.entries))
    expected.all_seen()
    assert 0 < size < 30 * MIB


def the_small_files_are_pulled_first(place: str, expected_path: str) -> None:
    # The first of vLLM's two phases: configuration and tokenizer to disk, weights not.
    with ObjectStorageModel(place, "pulled") as model:
        model.pull_files(ignore_pattern=["*.safetensors"])
    found = sorted(
        os.path.relpath(os.path.join(root, name), "pulled") for root, _, names in os.walk("pulled") for name in names
    )
    assert found == [".runai_complete", "config.json", "model.safetensors.index.json", "tokenizer/vocabulary.json"]
    with open("pulled/model.safetensors.index.json", encoding="utf-8") as file:
        shards = set(json.load(file)["weight_map"].values())
    assert sorted(shards) == Expected(expected_path).files


def a_shard_that_is_not_there_is_an_error_and_no_wait(place: str, expected_path: str) -> None:
    try:
        _stream([f"{place}/nothing.safetensors"], print)
    except ValueError as error:
        print(error)  # "File access error" is all that it says
    else:
        raise AssertionError("a file that does not exist was streamed")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
