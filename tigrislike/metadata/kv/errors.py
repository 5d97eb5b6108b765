"""Everything that can go wrong below a transaction, as one tree:

    EngineError
    ├── TransactionMisuse                  the caller's code is wrong: never retried
    │   ├── KeyTooLarge
    │   ├── KeyOutsideLegalRange
    │   ├── ValueTooLarge
    │   ├── TransactionTooLarge
    │   ├── InvertedRange
    │   ├── ReadOnlyTransaction
    │   ├── ForeignAwait
    │   ├── Unreadable
    │   └── TransactionEnded
    ├── RetryableError                     certainly not committed; `transact` retries these itself
    │   ├── NotCommitted
    │   ├── TransactionTooOld
    │   └── TemporarilyRefused
    ├── AmbiguousCommit                    may or may not have been committed
    │   ├── CommitUnknown                  and is no longer under way
    │   └── TransactionTimedOut            and may still be under way: clean up nothing
    ├── EngineUnavailable                  nothing was committed; the engine cannot serve now
    │   ├── EngineBusy
    │   ├── DiskFull
    │   └── EngineClosed
    ├── StoreSealed                        the store takes no writes: it is being moved, or has moved
    ├── CorruptStore                       what is stored cannot be read
    ├── UnknownFormat                      the store was written by a newer release, or is not ours
    └── TooManyWatches

`code` is the S3 error that a request failing for this reason answers. `number` is FoundationDB's error number
(<https://apple.github.io/foundationdb/api-error-codes.html>) where there is one, whatever the engine.
"""

from __future__ import annotations

from typing import ClassVar


class EngineError(Exception):
    """Base of every error of a metadata engine.

    Attributes:
        for_operators: the text names files, keys or a cluster: it belongs in a log, not in an answer to a client.
    """

    code: ClassVar[str] = "InternalError"
    for_operators: ClassVar[bool] = True
    number: int = 0


class TransactionMisuse(EngineError):
    """The code that used the transaction broke one of its rules."""


class KeyTooLarge(TransactionMisuse):
    """A key is longer than `limits.KEY_BYTES`."""

    code = "KeyTooLongError"
    number = 2102


class KeyOutsideLegalRange(TransactionMisuse):
    """A key begins with 0xff, which belongs to the engine."""

    number = 2004


class ValueTooLarge(TransactionMisuse):
    """A value is longer than `limits.VALUE_BYTES`."""

    number = 2103


class TransactionTooLarge(TransactionMisuse):
    """A transaction's writes and conflict ranges exceed `limits.TRANSACTION_BYTES`."""

    number = 2101


class InvertedRange(TransactionMisuse):
    """A range's begin lies after its end."""

    number = 2005


class ReadOnlyTransaction(TransactionMisuse):
    """A function given to `Engine.read` tried to write."""

    number = 2023


class ForeignAwait(TransactionMisuse):
    """A transaction function awaited something other than its transaction."""


class Unreadable(TransactionMisuse):
    """The metadata version was read after being bumped in the same transaction; its new value is not known yet."""

    number = 1036


class TransactionEnded(TransactionMisuse):
    """A transaction was used after its function had returned."""

    number = 1025


class RetryableError(EngineError):
    """The attempt was certainly not committed and may be tried again."""

    code = "SlowDown"


class NotCommitted(RetryableError):
    """Another transaction changed what this one had read."""

    number = 1020


class TransactionTooOld(RetryableError):
    """The transaction took longer than `limits.TRANSACTION_NS`."""

    number = 1007


class TemporarilyRefused(RetryableError):
    """The cluster asked for the transaction to be tried later: throttled, locked, recovering or short of memory."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class AmbiguousCommit(EngineError):
    """The transaction may or may not have been committed, and the engine could not find out which."""

    code = "SlowDown"


class CommitUnknown(AmbiguousCommit):
    """The outcome is unknown; the transaction is no longer in flight."""

    def __init__(self, message: str, number: int = 1021) -> None:
        super().__init__(message)
        self.number = number


class TransactionTimedOut(AmbiguousCommit):
    """The time limit passed with a commit under way; it may yet take effect, so nobody may clean up after it."""

    number = 1031


class EngineUnavailable(EngineError):
    """The engine cannot serve now. Nothing was committed."""

    code = "SlowDown"


class EngineBusy(EngineUnavailable):
    """Another process holds the database for longer than a request should wait."""


class DiskFull(EngineUnavailable):
    """The file system that holds the database has no space left. Reads go on; writes resume when space returns."""


class EngineClosed(EngineUnavailable):
    """The engine has been closed."""


class StoreSealed(EngineError):
    """The transaction writes and the store is sealed (`seal.py`). Nothing was committed.

    Attributes:
        reason: why, for operators. It may name places, so it is no part of the text, which clients get to see.
    """

    code = "SlowDown"
    for_operators = False

    def __init__(self, reason: str) -> None:
        super().__init__("The store takes no writes for now; try again later")
        self.reason = reason


class CorruptStore(EngineError):
    """The stored database is damaged."""


class UnknownFormat(EngineError):
    """The database is not one of ours, or was written by a release newer than this one."""


class TooManyWatches(EngineError):
    """More watches than `limits.WATCHES` are outstanding on one engine."""

    code = "SlowDown"
    number = 1032
