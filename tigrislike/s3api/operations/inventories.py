"""Inventory configurations: by which reports on what a bucket holds are made.

Source: S3 API reference, "PutBucketInventoryConfiguration", "InventoryConfiguration".
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from tigrislike.metadata import NoSuchBucket
from tigrislike.metadata.records import Inventory
from tigrislike.replication.inventory import Configuration
from tigrislike.replication.inventory_format import FORMATS, OPTIONAL_FIELDS
from tigrislike.s3api.context import Context
from tigrislike.s3api.errors import S3Error, invalid_argument
from tigrislike.s3api.listing_tokens import open_token, seal_token
from tigrislike.s3api.operations import Input, Output, operation

PAGE: Final = 100
"""Configurations on a page, as in S3."""

_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ACCOUNT: Final = re.compile("[0-9]{12}|[0-9a-f]{64}")
_ARN: Final = re.compile(r"arn:[a-z-]+:s3:::([a-z0-9.-]+)")
_MOST_PREFIX_BYTES: Final = 512  # what follows it, a bucket, an id and a file, must find room in a key


@operation("PutBucketInventoryConfiguration")
async def put_bucket_inventory_configuration(ctx: Context, inp: Input) -> Output:
    given = inp["InventoryConfiguration"]
    if not _ID.fullmatch(given["Id"]) or given["Id"] != inp["Id"]:
        raise invalid_argument(
            "The specified configuration id is not valid, or not that of the request", "Id", inp["Id"]
        )
    configuration = await _configuration(ctx, given)
    await ctx.metadata.put_inventory(
        ctx.bucket.name,
        given["Id"],
        msgspec.json.encode(configuration),
        enabled=given["IsEnabled"],
        weekly=given["Schedule"]["Frequency"] == "Weekly",
    )
    return {}


async def _configuration(ctx: Context, given: Input) -> Configuration:
    """What is kept of a configuration. Raises S3Error: what is wrong with it, or not to be had here."""
    destination = given["Destination"]["S3BucketDestination"]
    if destination["Format"] not in FORMATS:
        raise S3Error("NotImplemented", f"The format {destination['Format']} is not implemented; CSV and Parquet are.")
    if destination.get("Encryption"):
        raise S3Error("NotImplemented", "Encryption of inventories is not implemented.")
    fields = given.get("OptionalFields", [])
    for field in fields:
        if field not in OPTIONAL_FIELDS:
            raise S3Error("NotImplemented", f"The optional field {field} is of a feature that is not implemented.")
    prefix, filter_ = destination.get("Prefix", ""), given.get("Filter", {}).get("Prefix", "")
    for name, value in (("Destination.Prefix", prefix), ("Filter.Prefix", filter_)):
        if len(value.encode()) > _MOST_PREFIX_BYTES:
            raise invalid_argument(f"A prefix has at most {_MOST_PREFIX_BYTES} bytes", name, value[:100])
    account = destination.get("AccountId", "")
    if account and not _ACCOUNT.fullmatch(account):
        raise invalid_argument("An account is 12 digits, or a canonical id", "AccountId", account[:100])
    return Configuration(
        destination=await _destination(ctx, destination["Bucket"]),
        prefix=prefix,
        format=destination["Format"],
        filter=filter_,
        versions=given["IncludedObjectVersions"] == "All",
        fields=tuple(dict.fromkeys(fields)),
        account=account,
    )


async def _destination(ctx: Context, arn: str) -> str:
    """The name of the bucket that an ARN names, which has this bucket's owner. Raises S3Error."""
    match = _ARN.fullmatch(arn)
    if match is None:
        raise S3Error("InvalidS3DestinationBucket", extra={"DestinationBucket": arn[:256]})
    try:
        bucket = await ctx.metadata.bucket(match[1])
    except NoSuchBucket:
        bucket = None
    if bucket is None or bucket.owner != ctx.bucket.owner:
        raise S3Error(
            "InvalidS3DestinationBucket",
            "The destination bucket does not exist or is not owned by you",
            extra={"DestinationBucket": arn},
        )
    return match[1]


@operation("GetBucketInventoryConfiguration")
async def get_bucket_inventory_configuration(ctx: Context, inp: Input) -> Output:
    return {"InventoryConfiguration": _shown(await ctx.metadata.inventory(ctx.bucket, inp["Id"]))}


def _shown(inventory: Inventory) -> Output:
    configuration = msgspec.json.decode(inventory.document, type=Configuration)
    return {
        "Destination": {
            "S3BucketDestination": {
                "AccountId": configuration.account or None,
                "Bucket": f"arn:aws:s3:::{configuration.destination}",
                "Format": configuration.format,
                "Prefix": configuration.prefix or None,
            }
        },
        "IsEnabled": inventory.enabled,
        "Filter": {"Prefix": configuration.filter} if configuration.filter else None,
        "Id": inventory.id,
        "IncludedObjectVersions": "All" if configuration.versions else "Current",
        "OptionalFields": list(configuration.fields) or None,
        "Schedule": {"Frequency": "Weekly" if inventory.weekly else "Daily"},
    }


@operation("ListBucketInventoryConfigurations")
async def list_bucket_inventory_configurations(ctx: Context, inp: Input) -> Output:
    token, listing = inp.get("ContinuationToken", ""), f"inventories of {ctx.bucket.name}"
    after = open_token(ctx.token_key, listing, token, "continuation-token") if token else ""
    found = await ctx.metadata.list_inventories(ctx.bucket, after, PAGE + 1)
    more = len(found) > PAGE
    output: Output = {"IsTruncated": more, "InventoryConfigurationList": [_shown(each) for each in found[:PAGE]]}
    if token:
        output["ContinuationToken"] = token
    if more:
        output["NextContinuationToken"] = seal_token(ctx.token_key, listing, found[PAGE - 1].id)
    return output


@operation("DeleteBucketInventoryConfiguration")
async def delete_bucket_inventory_configuration(ctx: Context, inp: Input) -> Output:
    await ctx.metadata.delete_inventory(ctx.bucket.name, inp["Id"])
    return {}
