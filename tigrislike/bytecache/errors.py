"""Everything that can go wrong with bytes on this node's disk.

    BytesError                  InternalError
    +-- NotABlockStore          InternalError   the directory is something else, or damaged
    +-- FormatTooNew            InternalError   written by a newer version of this software
    +-- BlockSizeMismatch       InternalError   made with another block size
    +-- DiskFull                SlowDown        no space beyond the reserve; comes good when space returns
    +-- TooManyOpenFiles        SlowDown        the process or the machine is out of descriptors
    +-- BlobBusy                SlowDown        another process holds the upload's directory
    +-- DiskFailed              InternalError   the disk refused for another reason (EIO, EROFS, ...)
    +-- CorruptBlock            InternalError   what is stored is not what was written; none of it was served
    +-- MissingBlob             InternalError   a block that should be here is not
    |   +-- NotAtSource         InternalError   and nobody else has it either
    +-- SourceUnavailable       SlowDown        who has the block does not answer, or not with its bytes; try again
    +-- FillInProgress          SlowDown        another process is fetching the block just now
    +-- BlockPresent            SlowDown        the block is in the cache already
    +-- CacheFull               SlowDown        nothing can be evicted for it, or the cache is not reconciled yet
    |   +-- NotKept             SlowDown        bytes of the blob may not lie in this node's cache
    +-- BlobGone                InternalError   the blob was deleted or evicted while its block was fetched
    +-- PinsFull                SlowDown        pins may not take up the whole cache
    +-- WriterClosed            InternalError   a writer was used after finish() or abort(): a programming error

The six from FillInProgress to PinsFull are the cache's answers (`cache.py`) to who fills or pins: no client sees them.
`code` is the S3 error code that each becomes (S3 API Reference, "Error responses"). Nothing here knows HTTP.
"""

import errno
from typing import ClassVar


class BytesError(Exception):
    """Root of the tree.

    Attributes:
        code: The S3 error code.
        for_operators: The text names blobs, paths and sizes of this node: it belongs in a log, not in an answer.
    """

    code: ClassVar[str] = "InternalError"
    for_operators: ClassVar[bool] = True


class NotABlockStore(BytesError):
    """The directory holds something that no block store made, or its format file cannot be read."""


class FormatTooNew(BytesError):
    """The directory was written by a newer version; using it could destroy what that version added."""


class BlockSizeMismatch(BytesError):
    """The directory was made with another block size, which decides where each byte lies and so cannot change."""


class DiskFull(BytesError):
    """Writing would eat into the reserve, or the filesystem is full or over quota."""

    code: ClassVar[str] = "SlowDown"


class TooManyOpenFiles(BytesError):
    """EMFILE or ENFILE: more uploads and reads at once than the descriptor limit allows."""

    code: ClassVar[str] = "SlowDown"


class BlobBusy(BytesError):
    """The upload's directory is locked by a live owner; try again later."""

    code: ClassVar[str] = "SlowDown"


class DiskFailed(BytesError):
    """The filesystem refused an operation for a reason other than space."""


class CorruptBlock(BytesError):
    """A block failed verification. Raised before any byte of the failed chunk leaves."""


class MissingBlob(BytesError):
    """No file holds a block that the caller believes to be here."""


class NotAtSource(MissingBlob):
    """Whoever could have the block says that it has not."""


class SourceUnavailable(BytesError):
    """Bytes could not be fetched: no answer in time, too few of them, too many, or a failure on the way."""

    code: ClassVar[str] = "SlowDown"


class FillInProgress(BytesError):
    """A live process holds the lock of the block's file in `filling/`."""

    code: ClassVar[str] = "SlowDown"


class BlockPresent(BytesError):
    """There is nothing to fill: the block is in `cache/`."""

    code: ClassVar[str] = "SlowDown"


class CacheFull(BytesError):
    """There is no room for the block and none can be made; what is fetched is served without being kept."""

    code: ClassVar[str] = "SlowDown"


class NotKept(CacheFull):
    """The source says that blocks of the blob are not for this node's cache; what is fetched is passed through."""


class BlobGone(BytesError):
    """The blob was deleted, or removed from the cache during the fill: what was fetched must not be kept."""


class PinsFull(BytesError):
    """Pinning the blob would leave too little of the cache to everything else."""

    code: ClassVar[str] = "SlowDown"


class WriterClosed(BytesError):
    """write() or finish() on a writer that was finished, released or aborted."""


_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})


def from_os_error(error: OSError, doing: str) -> BytesError:
    """The tree's error for `error`, which happened while `doing` (a phrase such as "writing block 3 of 00ff...")."""
    text = f"{doing}: {error.strerror or error}"
    if error.errno in _SPACE:
        return DiskFull(f"{text}; free space on the cache directory's filesystem")
    if error.errno in _DESCRIPTORS:
        return TooManyOpenFiles(f"{text}; raise the limit on open files (ulimit -n)")
    return DiskFailed(text)
