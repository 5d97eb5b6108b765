"""How an origin fails. Messages are for operators; they name no credential, ever."""

from typing import ClassVar


class OriginError(Exception):
    """Something went wrong at an origin.

    Attributes:
        code: what S3 calls it.
        for_operators: the text names places that are no business of clients.
    """

    code: ClassVar[str] = "ServiceUnavailable"
    for_operators: ClassVar[bool] = True


class OriginMissing(OriginError):
    """There is no such object, or no such bucket, at the origin."""


class OriginChanged(OriginError):
    """The object is not the version any more that was asked for."""


class OriginUnavailable(OriginError):
    """The origin does not answer, or asks for patience: try again later.

    Attributes:
        retry_after_s: how long it is of no use to try again, 0 where nothing is known.
    """

    code: ClassVar[str] = "SlowDown"

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OriginRefused(OriginError):
    """The origin understood and said no: credentials, permissions, a request that it does not take."""


class EgressRefused(OriginRefused):
    """The origin's address is one that may not be connected to."""


class OriginBroken(OriginError):
    """The answer contradicts itself, or what was asked: too short, too long, another range, another version. None of
    it may be used; another try may go well."""
