"""A model's weights, made from a seed: safetensors shards as a repository of models has them, and what each tensor must
be once a reader has loaded it.

The format is written here and not by the safetensors package (https://github.com/huggingface/safetensors, "Format"),
so that a reader which shares that package's code is not asked to agree with itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 20240229
ITEM_BYTES = {"F64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1, "BOOL": 1}

# Name, type, shape. Larger items first, as the safetensors package lays them out, so that each tensor is aligned. The
# sizes are such that tensors begin and end anywhere in the 8 MiB by which readers and the store cut what is between.
Layout = list[tuple[str, str, tuple[int, ...]]]
SHARDS: list[Layout] = [
    [
        ("model.embed_tokens.weight", "F32", (17_011, 1024)),
        ("model.layers.0.input_layernorm.weight", "F32", (1024,)),
        ("model.layers.0.self_attn.q_proj.weight", "BF16", (4096, 3001)),
        ("model.layers.0.mlp.down_proj.weight.quantised", "I8", (7, 333_333)),
        ("model.layers.0.mlp.mask", "BOOL", (77,)),
    ],
    [
        ("model.rotary.inv_freq", "F64", (64,)),
        ("model.layers.1.scale", "F32", ()),
        *((f"model.layers.1.mlp.experts.{number}.weight", "BF16", (1024, 509)) for number in range(64)),
        *((f"model.layers.1.mlp.experts.{number}.bias", "F16", (509,)) for number in range(64)),
    ],
    [
        ("model.norm.weight", "F32", (1024,)),
        ("model.token_ids", "I32", (32_003,)),
        ("lm_head.weight", "F16", (17_011, 3072)),
        ("lm_head.zero_points", "U8", (17_011,)),
    ],
]


@dataclass(frozen=True)
class Model:
    """A model on disk.

    Attributes:
        directory: what a repository of models holds: the shards, their index and the small files beside them.
        expected: path of a JSON file, tensor name -> {"file", "dtype", "shape", "sha256" of its bytes}.
        files: names in `directory`, the shards in their order first.
        size: of all tensors, in bytes.
    """

    directory: Path
    expected: Path
    files: list[str]
    size: int


def write_model(directory: Path) -> Model:
    """Write the model into a new directory, and its `expected` beside that."""
    directory.mkdir(parents=True)
    source = random.Random(SEED)
    expected: dict[str, dict[str, Any]] = {}
    names = [f"model-{number:05}-of-{len(SHARDS):05}.safetensors" for number in range(1, len(SHARDS) + 1)]
    size = 0
    for name, layout in zip(names, SHARDS, strict=True):
        size += _write_shard(directory / name, layout, source, expected)
    small = {
        "model.safetensors.index.json": {
            "metadata": {"total_size": size},
            "weight_map": {tensor: entry["file"] for tensor, entry in expected.items()},
        },
        "config.json": {"architectures": ["TestForCausalLM"], "hidden_size": 1024, "torch_dtype": "bfloat16"},
        "tokenizer/vocabulary.json": {f"token {number}": number for number in range(32_003)},
    }
    for name, document in small.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document), encoding="utf-8")
    beside = directory.with_name(directory.name + ".expected.json")
    beside.write_text(json.dumps(expected), encoding="utf-8")
    return Model(directory, beside, [*names, *small], size)


def _write_shard(path: Path, layout: Layout, source: random.Random, expected: dict[str, dict[str, Any]]) -> int:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for name, dtype, shape in layout:
        start, stop = stop, stop + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, dtype, shape in layout:
            data = source.randbytes(math.prod(shape) * ITEM_BYTES[dtype])
            if dtype == "BOOL":
                data = bytes(byte & 1 for byte in data)
            file.write(data)
            expected[name] = {
                "file": path.name,
                "dtype": dtype,
                "shape": list(shape),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
    return stop
