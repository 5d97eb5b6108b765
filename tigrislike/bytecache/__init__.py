"""Bytes on this node's own disk. `BlockStore` is the way in; see `store.py`."""

from tigrislike.bytecache.errors import (
    BlobBusy,
    BlockSizeMismatch,
    BytesError,
    CorruptBlock,
    DiskFailed,
    DiskFull,
    FormatTooNew,
    MissingBlob,
    NotABlockStore,
    TooManyOpenFiles,
    WriterClosed,
)
from tigrislike.bytecache.reader import BlobReader, Segment
from tigrislike.bytecache.statistics import Statistics
from tigrislike.bytecache.store import BlockStore, SweepStats
from tigrislike.bytecache.truth import StoredBlob
from tigrislike.bytecache.writer import BlobWriter

__all__ = [
    "BlobBusy",
    "BlobReader",
    "BlobWriter",
    "BlockSizeMismatch",
    "BlockStore",
    "BytesError",
    "CorruptBlock",
    "DiskFailed",
    "DiskFull",
    "FormatTooNew",
    "MissingBlob",
    "NotABlockStore",
    "Segment",
    "Statistics",
    "StoredBlob",
    "SweepStats",
    "TooManyOpenFiles",
    "WriterClosed",
]
