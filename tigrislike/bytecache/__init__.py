"""Bytes on this node's own disk. `BlockStore` is the way in; see `store.py`."""

from tigrislike.bytecache.cache import CachedBlock, Reconciled, Usage
from tigrislike.bytecache.copies import Copy
from tigrislike.bytecache.errors import (
    BlobBusy,
    BlobGone,
    BlockPresent,
    BlockSizeMismatch,
    BytesError,
    CacheFull,
    CorruptBlock,
    DiskFailed,
    DiskFull,
    FillInProgress,
    FormatTooNew,
    MissingBlob,
    NotABlockStore,
    NotAtSource,
    NotKept,
    PinsFull,
    SourceUnavailable,
    TooManyOpenFiles,
    WriterClosed,
)
from tigrislike.bytecache.reader import BlobReader, Segment
from tigrislike.bytecache.source import BlobSource
from tigrislike.bytecache.statistics import Statistics
from tigrislike.bytecache.store import BlockStore, SweepStats
from tigrislike.bytecache.truth import StoredBlob
from tigrislike.bytecache.verified import Verified
from tigrislike.bytecache.writer import BlobWriter

__all__ = [
    "BlobBusy",
    "BlobGone",
    "BlobReader",
    "BlobSource",
    "BlobWriter",
    "BlockPresent",
    "BlockSizeMismatch",
    "BlockStore",
    "BytesError",
    "CacheFull",
    "CachedBlock",
    "Copy",
    "CorruptBlock",
    "DiskFailed",
    "DiskFull",
    "FillInProgress",
    "FormatTooNew",
    "MissingBlob",
    "NotABlockStore",
    "NotAtSource",
    "NotKept",
    "PinsFull",
    "Reconciled",
    "Segment",
    "SourceUnavailable",
    "Statistics",
    "StoredBlob",
    "SweepStats",
    "TooManyOpenFiles",
    "Usage",
    "Verified",
    "WriterClosed",
]
