"""What S3's model lacks: headers and operations of Tigris' clients, and headers of this store's own. They become part
of the model, so that operations name them as they name S3's, and requests are routed, parsed and authorised alike.

Source: Tigris' clients, which send the X-Tigris- headers and JSON documents (tigris-boto3-ext, @tigrisdata/storage,
storage-go, tigrisfs).
"""

from __future__ import annotations

from typing import Any, Final

_REGIONS: Final = ("Regions", "X-Tigris-Regions", "ExtensionText")
_DURABILITY: Final = ("Durability", "X-Tigrislike-Durability", "ExtensionText")
_PREFETCH: Final = ("Prefetch", "X-Tigris-Prefetch", "ExtensionFlag")
_LIST_SOURCE: Final = ("ListSource", "X-Tigris-List-Source", "ExtensionText")
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
    "ListObjectsRequest": (_LIST_SOURCE,),
    "ListObjectsV2Request": (_LIST_SOURCE, _PREFETCH),
    "HeadObjectRequest": (_SCHEDULE_MIGRATION,),
    "HeadObjectOutput": (_READ_SOURCE,),
    "GetObjectOutput": (_READ_SOURCE,),
}

_TEXT: Final = {"shape": "ExtensionText"}
_BUCKET: Final = {"shape": "BucketName", "location": "uri", "locationName": "Bucket"}
_DOCUMENT: Final = {"type": "structure", "members": {"Document": _TEXT}, "payload": "Document"}

# A bucket's settings as one JSON document: shown, and changed as far as the document names them.
_DOCUMENT_SHAPES: Final = {
    "GetBucketMetadataRequest": {
        "type": "structure",
        "required": ["Bucket"],
        "members": {
            "Bucket": _BUCKET,
            "WithSize": {"shape": "ExtensionFlag", "location": "querystring", "locationName": "with-size"},
        },
    },
    "GetBucketMetadataOutput": _DOCUMENT,
    "UpdateBucketRequest": {
        "type": "structure",
        "required": ["Bucket"],
        "members": {
            "Bucket": _BUCKET,
            "ACL": {"shape": "ExtensionText", "location": "header", "locationName": "x-amz-acl"},
            "PublicList": {
                "shape": "ExtensionText",
                "location": "header",
                "locationName": "x-amz-acl-public-list-objects-enabled",
            },
            "Document": _TEXT,
        },
        "payload": "Document",
    },
    "UpdateBucketOutput": _DOCUMENT,
}
_OPERATIONS: Final = {
    "GetBucketMetadata": ("GET", "/{Bucket}?metadata"),
    "UpdateBucket": ("PATCH", "/{Bucket}"),
}


def extend(model: dict[str, Any]) -> None:
    """Add headers and operations to a service model."""
    shapes = model["shapes"]
    shapes.update(_SHAPES)
    shapes.update(_DOCUMENT_SHAPES)
    for name, (method, uri) in _OPERATIONS.items():
        model["operations"][name] = {
            "name": name,
            "http": {"method": method, "requestUri": uri},
            "input": {"shape": f"{name}Request"},
            "output": {"shape": f"{name}Output"},
        }
    for structure, members in _MEMBERS.items():
        for member, header, shape in members:
            shapes[structure]["members"][member] = {"shape": shape, "location": "header", "locationName": header}
