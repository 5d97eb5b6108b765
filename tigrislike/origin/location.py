"""Where an origin is and who may ask it: what an operator writes down, in one record that never shows a secret."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import urlsplit

from msgspec import Struct

from .errors import OriginRefused

_NONE: Mapping[str, str] = MappingProxyType({})


class Location(Struct, frozen=True):
    """An origin's place.

    A path in `url` is a folder: ``s3://bucket/models`` and ``s3://bucket/models/`` are the same place, of which the key
    ``a`` is ``models/a``. docs/origins.md has the forms.

    Attributes:
        endpoint: URL of the service, "" for the one that the scheme is known for (AWS, Google Cloud, Azure).
        options: the driver's own, by the names of docs/origins.md.
    """

    url: str
    endpoint: str = ""
    region: str = ""
    access_key: str = ""
    secret_key: str = ""
    options: Mapping[str, str] = _NONE

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0].lower()

    def __repr__(self) -> str:
        # Whatever might be a secret is left out, also what somebody put into the wrong field.
        url = self.url if "@" not in self.url and "?" not in self.url else f"{self.scheme}://..."
        return f"Location({url!r}, endpoint={_host(self.endpoint)!r}, region={self.region!r})"


def bucket_and_prefix(location: Location) -> tuple[str, str]:
    """Bucket and prefix, which is "" or ends in a slash, of ``scheme://bucket/prefix``. Nothing is decoded.

    Raises:
        OriginRefused: there is no bucket.
    """
    bucket, _, prefix = location.url.partition("://")[2].partition("/")
    if not bucket or "@" in bucket:
        raise OriginRefused(f"an origin of this kind is written {location.scheme}://bucket/prefix")
    return bucket, as_folder(prefix)


def as_folder(prefix: str) -> str:
    return prefix if not prefix or prefix.endswith("/") else prefix + "/"


def checked_url(url: str) -> str:
    """An http or https URL without what is after its path; no slash at the end.

    Raises:
        OriginRefused: it is none, or has credentials in it.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises where it is no number
    except ValueError as error:
        raise OriginRefused(f"an endpoint is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OriginRefused("an endpoint is written http://host:port or https://host:port")
    if parts.username is not None or parts.query or parts.fragment:
        raise OriginRefused("an endpoint has neither credentials in it nor a query: there are fields for these")
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")


def _host(endpoint: str) -> str:
    return endpoint.rpartition("@")[2].partition("?")[0]
