"""A bucket's settings as one JSON document, as Tigris' clients read and change them: `GET /bucket?metadata` and
`PATCH /bucket`.

A change is made whole or not at all. Settings of Tigris' that this server does not have are known by name: their
neutral value, which asks for nothing, is taken, and any other is refused as not implemented. No field is passed over in
silence.

Source: the documents that tigris-boto3-ext, @tigrisdata/storage and terraform-provider-tigris send and read.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Final

import msgspec

from tigrislike.metadata import origins
from tigrislike.metadata.errors import InvalidArgument
from tigrislike.metadata.origins import SHADOW
from tigrislike.metadata.records import OriginPlace
from tigrislike.origin import EgressRefused, OriginError, OriginMissing, OriginRefused
from tigrislike.s3api.context import Context, Services
from tigrislike.s3api.errors import S3Error, invalid_argument
from tigrislike.s3api.operations import Input, Output, operation
from tigrislike.s3api.operations.buckets import canned_acl
from tigrislike.s3api.request import Request
from tigrislike.s3api.text import iso8601

log = logging.getLogger("tigrislike.s3api")

_NEUTRAL: Final = {
    "acl_settings": {"allow_object_acl": False},
    "additional_http_headers": {},
    "cache_control": "",
    "cors": {"rules": []},
    "lifecycle_rules": [],
    "object_notifications": {},
    "protection": {"protected": False},
    "shares": [],
    "soft_delete": {"enabled": False},
    "type": 0,
    "website": {},
}
"""Settings that this server does not have, as it shows them."""


class ShadowBucket(msgspec.Struct, forbid_unknown_fields=True):
    """Where the bucket looks through to, as a client names it."""

    name: str
    endpoint: str
    region: str = ""
    access_key: str = ""
    secret_key: str = ""
    write_through: bool = False


@operation("GetBucketMetadata")
async def get_bucket_metadata(ctx: Context, inp: Input) -> Output:
    bucket = ctx.bucket
    document: dict[str, Any] = {
        "name": bucket.name,
        "created_at": iso8601(bucket.created_ns),
        "storage_class": bucket.storage_class,
        "object_regions": bucket.region_policy,
        **_NEUTRAL,
        "md": {
            "X-Amz-Acl": "public-read" if bucket.public else "private",
            "x-amz-acl-public-list-objects-enabled": "false",
        },
    }
    place = await ctx.metadata.origin(bucket.shadow) if bucket.shadow else None
    if place is not None:
        name, prefix = origins.bucket_and_prefix(place)
        document["shadow_bucket"] = {
            "name": name,
            "endpoint": place.endpoint,
            "region": place.region,
            "access_key": place.access_key,  # its secret is for nobody's eyes
            "write_through": bucket.write_through,
            **({"prefix": prefix} if prefix else {}),
        }
    if inp.get("WithSize"):
        usage = await ctx.metadata.usage(bucket)
        document["estimated_unique_rows"] = usage.objects
        document["estimated_rows"] = usage.objects + usage.noncurrent
        document["estimated_size"] = usage.bytes
    return {"Document": json.dumps(document)}


@operation("UpdateBucket")
async def update_bucket(ctx: Context, inp: Input) -> Output:
    changes: dict[str, object] = {}
    if "ACL" in inp:
        changes["public"] = canned_acl(inp["ACL"])
    if inp.get("PublicList", "false").lower() != "false":
        raise S3Error("NotImplemented", "Listings for everybody (X-Amz-Acl-Public-List-Objects-Enabled) are not.")
    named = _settings(inp.get("Document") or "{}")
    for name, value in named.items():
        if name == "object_regions":
            changes["region_policy"] = _text(name, value)
        elif name == "storage_class":
            if value != ctx.bucket.storage_class:
                raise S3Error("NotImplemented", "A bucket's default storage_class is not implemented.")
        elif name in _NEUTRAL:
            if not _asks_nothing(value):
                raise S3Error("NotImplemented", f"The setting {name} is not implemented.")
        elif name != "shadow_bucket":
            raise invalid_argument(f"There is no setting {name}", name, _shown(value))
    if "shadow_bucket" in named:
        place, write_through = _place(ctx, named["shadow_bucket"])
        if place is not None:
            await try_out(ctx.services, place)
        await ctx.metadata.use_origin(ctx.bucket.name, SHADOW, place, write_through=write_through, **changes)
    elif changes:
        await ctx.metadata.change_bucket(ctx.bucket.name, **changes)
    return {"Document": json.dumps({"Bucket": ctx.bucket.name, "Update": "success"})}


def _settings(document: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(document, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise S3Error("InvalidRequest", f"The body is no JSON object: {error}") from None


def _place(ctx: Context, value: object) -> tuple[OriginPlace | None, bool]:
    """The place that a `shadow_bucket` names, None for the empty one, and whether it is written through to."""
    if value in ({}, None):
        return None, False
    try:
        named = msgspec.convert(value, ShadowBucket)
    except msgspec.ValidationError as error:
        # Not the value itself: it holds a secret.
        raise invalid_argument(str(error), "shadow_bucket", "") from None
    return place_of(named, ctx.request, ctx.bucket.name), named.write_through


def place_of(named: ShadowBucket, request: Request, bucket: str) -> OriginPlace:
    """The place that is named, as the shadow of `bucket`. Raises InvalidArgument."""
    place = origins.s3_place(named.name, named.endpoint, named.region, named.access_key, named.secret_key)
    if place.endpoint.partition("://")[2].rstrip("/") == request.host and named.name == bucket:
        raise InvalidArgument("shadow_bucket.name", named.name, "A bucket cannot be its own shadow")
    return place


async def try_out(services: Services, place: OriginPlace) -> None:
    """Refuse what an origin refuses, before a bucket depends on it. One that does not answer now may later.

    Raises:
        S3Error: InvalidAccessKeyId, as Tigris answers; InvalidArgument.
    """
    if services.regional is None:
        return
    try:
        await services.regional.origins.try_out(place)
    except EgressRefused as error:
        raise invalid_argument(str(error), "shadow_bucket.endpoint", place.endpoint) from None
    except OriginRefused as error:
        raise S3Error("InvalidAccessKeyId", f"The shadow bucket refuses: {error}") from None
    except OriginMissing as error:
        raise invalid_argument(str(error), "shadow_bucket.name", place.url) from None
    except (OriginError, TimeoutError) as error:
        log.warning("%r does not answer as it should, and is used all the same: %s", place, error)


def _asks_nothing(value: object) -> bool:
    if isinstance(value, dict):
        return value.get("enabled") is False or all(map(_asks_nothing, value.values()))
    return not value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise invalid_argument(f"{name} is a text", name, _shown(value))
    return value


def _shown(value: object) -> str:
    return json.dumps(value)[:1024]
