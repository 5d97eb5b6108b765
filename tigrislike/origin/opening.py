"""From a location to the origin that is there.

Drivers are found by the scheme of the URL, up to a `+`: ``arrow+hdfs`` is the driver ``arrow``'s. Other distributions
add theirs as entry points of the group `tigrislike.origins`, whose name is the scheme and whose object is a `Driver`; a
scheme that is taken here stays taken.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from .egress import Egress
from .errors import OriginRefused
from .location import Location
from .protocol import Origin
from .transport import Timeouts

GROUP = "tigrislike.origins"

Driver = Callable[[Location, Egress, Timeouts], Origin]

_HERE = {
    scheme: EntryPoint(scheme, f"tigrislike.origin.{target}", GROUP)
    for scheme, target in {
        "s3": "s3:S3Origin",
        "gs": "google:GoogleOrigin",
        "az": "objectstore:open_azure",
        "http": "http:HTTPOrigin",
        "https": "http:HTTPOrigin",
        "file": "objectstore:open_directory",
        "arrow": "arrow:open_arrow",
    }.items()
}


def open_origin(location: Location, *, egress: Egress, timeouts: Timeouts | None = None) -> Origin:
    """The origin at a location. Nothing is connected to yet; the caller closes it.

    Raises:
        OriginRefused: no driver knows such a URL, or the driver finds something wrong with the location.
    """
    scheme = location.scheme.partition("+")[0]
    found = _HERE.get(scheme) or next(iter(entry_points(group=GROUP, name=scheme)), None)
    if found is None or "://" not in location.url:
        known = sorted({*_HERE, *entry_points(group=GROUP).names})
        raise OriginRefused(f"no driver for {scheme!r} origins; there are: {', '.join(known)}")
    driver: Driver = found.load()
    return driver(location, egress, timeouts or Timeouts())
