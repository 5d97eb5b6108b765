"""What the tensors of a model must be, as ../weights.py wrote it: for the programs beside this file that read them."""

import hashlib
import json


class Expected:
    """Every tensor of a model, or of some of its files; each is to be seen once.

    Args:
        path: of the JSON file that ../weights.py wrote.
        files: names of the shards that are read, None for all.
    """

    def __init__(self, path, files=None):
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)
        self.entries = {name: entry for name, entry in entries.items() if files is None or entry["file"] in files}
        self.files = sorted({entry["file"] for entry in self.entries.values()})
        self._unseen = set(self.entries)

    def choose(self, wanted):
        """Only the tensors whose names `wanted` says yes to are to be seen."""
        self.entries = {name: entry for name, entry in self.entries.items() if wanted(name)}
        self._unseen = set(self.entries)

    def see(self, name, dtype, shape, data):
        """One tensor was read. `dtype` is named as safetensors names it; `data` is a buffer of its bytes."""
        entry = self.entries[name]
        assert (dtype, list(shape)) == (entry["dtype"], entry["shape"]), (name, dtype, shape, entry)
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], f"{name} was read with other bytes"
        self._unseen.remove(name)

    def see_torch(self, name, tensor):
        import torch

        named = {
            torch.float64: "F64",
            torch.float32: "F32",
            torch.int32: "I32",
            torch.bfloat16: "BF16",
            torch.float16: "F16",
            torch.int8: "I8",
            torch.uint8: "U8",
            torch.bool: "BOOL",
        }
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        self.see(name, named[tensor.dtype], tensor.shape, data)

    def all_seen(self):
        assert not self._unseen, f"never read: {sorted(self._unseen)[:5]}"
