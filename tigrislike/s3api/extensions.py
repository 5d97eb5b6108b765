"""Headers that S3's model lacks: those of Tigris' clients, and this store's own. They become members of the model, so
that operations name them as they name S3's.

Source: Tigris' clients, which send the X-Tigris- headers (tigris-boto3-ext, @tigrisdata/storage, storage-go, tigrisfs).
"""

from __future__ import annotations

from typing import Any, Final

_REGIONS: Final = ("Regions", "X-Tigris-Regions", "ExtensionText")
_DURABILITY: Final = ("Durability", "X-Tigrislike-Durability", "ExtensionText")
_PREFETCH: Final = ("Prefetch", "X-Tigris-Prefetch", "ExtensionFlag")
_SCHEDULE_MIGRATION: Final = ("ScheduleMigration", "X-Tigris-Schedule-Migration", "ExtensionFlag")
_READ_SOURCE: Final = ("ReadSource", "X-Tigris-Read-Source", "ExtensionText")

BLOCK_SHADOW: Final = "block_shadow"
"""Where an object is read from that is its bucket's shadow's, and of which no node is the home yet."""

SERVED_FROM: Final = b"x-tigris-served-from"
"""Of every response of GetObject and HeadObject: the region that the bytes came from. No member, for it is known only
when the first of them have come."""

_SHAPES: Final = {"ExtensionText": {"type": "string"}, "ExtensionFlag": {"type": "boolean"}}

# Structure of the model -> (member, header, shape).
_MEMBERS: Final = {
    "CreateBucketRequest": (_REGIONS, _DURABILITY),
    "HeadBucketOutput": (_REGIONS, _DURABILITY),
    "PutObjectRequest": (_REGIONS,),
    "CopyObjectRequest": (_REGIONS,),
    "CreateMultipartUploadRequest": (_REGIONS,),
    "ListObjectsV2Request": (_PREFETCH,),
    "HeadObjectRequest": (_SCHEDULE_MIGRATION,),
    "HeadObjectOutput": (_READ_SOURCE,),
    "GetObjectOutput": (_READ_SOURCE,),
}


def extend(shapes: dict[str, Any]) -> None:
    """Add the headers to the shapes of a service model."""
    shapes.update(_SHAPES)
    for structure, members in _MEMBERS.items():
        for member, header, shape in members:
            shapes[structure]["members"][member] = {"shape": shape, "location": "header", "locationName": header}
