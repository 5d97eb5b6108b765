"""What an origin is: the one interface of every driver.

Keys are S3's: any text of up to 1024 bytes in UTF-8, with empty, dotted and percent-encoded segments meaning
themselves. A driver whose store has no name for some key says so by `OriginRefused`, and never takes another.
A prefix that an operator configured is the driver's business: keys given in and out are without it.

Sizes and positions are bytes, times unix nanoseconds, ETags as S3 shows them without quotes; where a store has no ETag,
a driver makes one that changes whenever the bytes do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Protocol

from msgspec import Struct

Buffer = bytes | memoryview

_NONE: Mapping[str, str] = MappingProxyType({})


class Attributes(Struct, frozen=True):
    """What an object carries beside its bytes.

    `headers` maps S3 member names (CacheControl, ContentDisposition, ContentEncoding, ContentLanguage, Expires,
    WebsiteRedirectLocation) to their values, `metadata` the user's names, in lower case and without ``x-amz-meta-``,
    to theirs. `storage_class` is "" where there is none to speak of.
    """

    content_type: str = ""
    headers: Mapping[str, str] = _NONE
    metadata: Mapping[str, str] = _NONE
    tags: Mapping[str, str] = _NONE
    storage_class: str = ""


class OriginSummary(Struct, frozen=True):
    """What a listing shows of an object."""

    key: str
    size: int
    etag: str
    modified_ns: int
    storage_class: str = ""


class OriginObject(Struct, frozen=True):
    """Everything about an object but its bytes.

    `checksum` is base64, of `checksum_algorithm` (S3's word, such as CRC64NVME) and `checksum_type` (FULL_OBJECT or
    COMPOSITE, then with ``-N`` appended); all empty where none is stored. `md5` says that the ETag is the MD5 of the
    bytes, in hex, and can be held against them.
    """

    key: str
    size: int
    etag: str
    modified_ns: int
    attributes: Attributes
    checksum_algorithm: str = ""
    checksum_type: str = ""
    checksum: str = ""
    md5: bool = False


class OriginPage(Struct, frozen=True):
    """A page of a listing, in the order of UTF-8 bytes. `after` is what `list` goes on after with the next page, in the
    store's own words; "" where there is none. A store that has another order across its pages (SeaweedFS) lists
    everything once all the same, if the pages are asked for one after the other."""

    entries: tuple[OriginSummary, ...]
    prefixes: tuple[str, ...]
    after: str = ""


class Written(Struct, frozen=True):
    """What a put left at the origin: the ETag by which it is read from then on. `verified` says that the bytes there
    are known to be those that were sent: the ETag is computed from them, or the origin checked a digest."""

    etag: str
    verified: bool


class Origin(Protocol):
    """A store of objects elsewhere. Used from one event loop, by any number of tasks at once.

    Attributes:
        name: what it is called in messages and metrics: where it is, without credentials.
        loses: which fields of `Attributes` and of `OriginObject` it cannot tell or keep: "tags", "headers.Expires",
            "checksum" and so on. It may grow: that a service has no tags shows when it is first asked for some.

    Every method raises `OriginError`: `OriginUnavailable`, `OriginRefused` and `OriginBroken` anywhere, the others
    where it says so.
    """

    name: str

    @property
    def loses(self) -> frozenset[str]: ...

    async def head(self, key: str) -> OriginObject:
        """All about an object but its bytes. Raises OriginMissing."""
        ...

    def read(self, key: str, start: int, stop: int, *, size: int, etag: str) -> AsyncIterator[Buffer]:
        """Bytes `start` to `stop` (half open) of an object of `size` bytes, in order, in pieces of any length, all of
        the version that `etag` names.

        What is given out is used before the next piece is asked for. An iterator is closed by `aclose` when it is no
        longer wanted.

        Raises:
            OriginMissing, OriginChanged: before the first piece or after any.
        """
        ...

    async def list(self, prefix: str, *, after: str = "", delimiter: str = "", limit: int = 1000) -> OriginPage:
        """Objects whose keys start with `prefix` and come after `after`, with those that have `delimiter` behind the
        prefix rolled up. `after` is a key or a common prefix, of which all that is rolled up with it is
        past, or what the page before says. At most `limit` entries and prefixes; fewer does not mean the end."""
        ...

    async def put(self, key: str, pieces: AsyncIterator[Buffer], size: int, attributes: Attributes) -> Written:
        """Write an object of `size` bytes, in one request or, where it is large, in parts.

        A piece is left alone until the next is asked for. What `pieces` raises goes up as it is.

        Raises:
            OriginMissing: there is no such bucket.
            OriginRefused: also of an origin that is only read.
            ValueError: there are fewer bytes or more; nothing was written.
        """
        ...

    async def delete(self, key: str) -> None:
        """Delete an object; one that is not there is deleted already."""
        ...

    async def close(self) -> None:
        """Let go of connections. What is under way fails."""
        ...
