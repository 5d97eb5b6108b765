"""Bytes elsewhere: other stores that objects are read from, and written to.

`protocol` says what an origin is, and `errors` how it fails; `open_origin` makes one. Nothing here knows of metadata,
of the cache, or of who asks.
"""

from .egress import Egress
from .errors import (
    EgressRefused,
    OriginBroken,
    OriginChanged,
    OriginError,
    OriginMissing,
    OriginRefused,
    OriginUnavailable,
)
from .location import Location
from .opening import Driver, open_origin
from .protocol import Attributes, Buffer, Origin, OriginObject, OriginPage, OriginSummary, Written
from .transport import Timeouts

__all__ = [
    "Attributes",
    "Buffer",
    "Driver",
    "Egress",
    "EgressRefused",
    "Location",
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
    "Timeouts",
    "Written",
    "open_origin",
]
