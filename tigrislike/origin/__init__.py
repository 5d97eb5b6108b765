"""Bytes elsewhere: other stores that objects are read from, and written to.

`protocol` says what an origin is, and `errors` how it fails; nothing here knows of metadata, of the cache, or of who
asks.
"""

from .errors import (
    EgressRefused,
    OriginBroken,
    OriginChanged,
    OriginError,
    OriginMissing,
    OriginRefused,
    OriginUnavailable,
)
from .protocol import Attributes, Buffer, Origin, OriginObject, OriginPage, OriginSummary, Written

__all__ = [
    "Attributes",
    "Buffer",
    "EgressRefused",
    "Origin",
    "OriginBroken",
    "OriginChanged",
    "OriginError",
    "OriginMissing",
    "OriginObject",
    "OriginPage",
    "OriginRefused",
    "OriginSummary",
    "OriginUnavailable",
    "Written",
]
