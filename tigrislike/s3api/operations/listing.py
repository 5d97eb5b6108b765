"""Listings: objects (both versions of the operation), object versions, and multipart uploads in progress.

The walk itself (collapsing common prefixes, paging) is the metadata layer's; here markers, tokens and the `url`
encoding become what S3 documents.

A bucket that is written through to its shadow lists what both have together, any other what it has itself, as Tigris
does (https://www.tigrisdata.com/docs/migration/); X-Tigris-List-Source asks for one side alone.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from tigrislike.metadata.kv import EngineError
from tigrislike.metadata.records import ObjectPage
from tigrislike.replication.shadow_listing import Cursor, Page, list_both, list_shadow
from tigrislike.s3api.context import Context
from tigrislike.s3api.errors import S3Error, invalid_argument
from tigrislike.s3api.listing_tokens import open_token, seal_token
from tigrislike.s3api.operations import Input, Output, operation
from tigrislike.s3api.serialising import Table, url_encode_key

log = logging.getLogger("tigrislike.s3api")

PAGE = 1000  # the most entries S3 puts on one page, whatever is asked for


def _page_size(inp: Input, member: str) -> int:
    asked: int = inp.get(member, PAGE)  # the parser lets nothing below 0 through
    return min(asked, PAGE)


def _encoding(inp: Input) -> Callable[[str], str] | None:
    return url_encode_key if inp.get("EncodingType") == "url" else None


def _encoder(inp: Input) -> Callable[[str], str]:
    return _encoding(inp) or str


_CONTENTS = (
    "Key",
    "LastModified",
    "ETag",
    "Size",
    "StorageClass",
    "ChecksumAlgorithm",
    "ChecksumType",
    "Owner",
)


def _contents(ctx: Context, entries: list[tuple[str, Any]], encode: Callable[[str], str] | None, owner: bool) -> Table:
    shown_owner = ctx.owner(ctx.bucket.owner) if owner else None
    rows = [
        (
            key,
            version.stamp,
            f'"{version.etag}"',
            version.size,
            version.storage_class,
            (version.checksum_algorithm,) if version.checksum_algorithm else None,
            version.checksum_type or None,
            shown_owner,
        )
        for key, version in entries
    ]
    if encode is not None:
        rows = [(encode(row[0]), *row[1:]) for row in rows]
    return Table(_CONTENTS, rows)


def _through(ctx: Context, inp: Input) -> Callable[[Cursor, int], Awaitable[Page]] | None:
    """How pages are listed of what the bucket's shadow has; None: what is asked for is the bucket's own.

    Raises:
        S3Error: InvalidArgument: there is no such source, or the bucket has no shadow.
    """
    source = inp.get("ListSource")
    bucket, regional = ctx.bucket, ctx.services.regional
    if source not in (None, "tigris", "shadow"):
        raise invalid_argument("A listing's source is tigris or shadow", "X-Tigris-List-Source", source)
    if source == "tigris" or (source is None and not (bucket.shadow and bucket.write_through)):
        return None
    if not bucket.shadow or regional is None:
        raise invalid_argument("The bucket has no shadow", "X-Tigris-List-Source", str(source))
    prefix, delimiter = inp.get("Prefix", ""), inp.get("Delimiter", "")

    async def page(cursor: Cursor, limit: int) -> Page:
        async with regional.origins.using(bucket.shadow) as origin:
            if source == "shadow":
                return await list_shadow(origin, prefix, delimiter, cursor, limit)
            return await list_both(ctx.metadata, origin, bucket, prefix, delimiter, cursor, limit)

    return page


async def _page_after(ctx: Context, inp: Input, marker: str, limit: int) -> ObjectPage:
    """The page after a marker. A listing that goes on by the last of its rows has some on every page."""
    through = _through(ctx, inp)
    if through is None:
        return await ctx.metadata.list_objects(
            ctx.bucket, inp.get("Prefix", ""), inp.get("Delimiter", ""), marker, limit
        )
    cursor: Cursor | None = Cursor(marker, marker, marker)
    while cursor is not None:
        page = await through(cursor, limit)
        if page.rows:
            return page.as_objects
        cursor = page.following
    return ObjectPage([], [], False, "")


async def _page_of_token(ctx: Context, inp: Input, start: str, token: str | None, limit: int) -> tuple[ObjectPage, str]:
    """The page that a token stands for, the first one after `start` without one, and the next page's token."""
    through = _through(ctx, inp)
    if through is None:
        listing = f"objects/{ctx.bucket.name}"
        after = start if token is None else open_token(ctx.token_key, listing, token, "continuation-token")
        page = await ctx.metadata.list_objects(
            ctx.bucket, inp.get("Prefix", ""), inp.get("Delimiter", ""), after, limit
        )
        return page, seal_token(ctx.token_key, listing, page.last) if page.truncated else ""
    listing = f"objects/{ctx.bucket.name}/{inp.get('ListSource', '')}"
    cursor = Cursor(start, start, start)
    if token is not None:
        cursor = msgspec.json.decode(open_token(ctx.token_key, listing, token, "continuation-token"), type=Cursor)
    both = await through(cursor, limit)
    following = ""
    if both.following is not None:
        following = seal_token(ctx.token_key, listing, msgspec.json.encode(both.following).decode())
    return both.as_objects, following


@operation("ListObjects")
async def list_objects(ctx: Context, inp: Input) -> Output:
    limit = _page_size(inp, "MaxKeys")
    prefix, delimiter, marker = inp.get("Prefix", ""), inp.get("Delimiter", ""), inp.get("Marker", "")
    encode = _encoder(inp)
    page = await _page_after(ctx, inp, marker, limit)
    output: Output = {
        "Name": ctx.bucket.name,
        "Prefix": encode(prefix),
        "Marker": encode(marker),
        "MaxKeys": limit,
        "IsTruncated": page.truncated,
        "Contents": _contents(ctx, page.entries, _encoding(inp), owner=True),
        "CommonPrefixes": [{"Prefix": encode(common)} for common in page.prefixes],
    }
    if delimiter:
        output["Delimiter"] = encode(delimiter)
        if page.truncated:
            output["NextMarker"] = encode(page.last)
    if "EncodingType" in inp:
        output["EncodingType"] = inp["EncodingType"]
    return output


@operation("ListObjectsV2")
async def list_objects_v2(ctx: Context, inp: Input) -> Output:
    limit = _page_size(inp, "MaxKeys")
    prefix, delimiter = inp.get("Prefix", ""), inp.get("Delimiter", "")
    start_after, token = inp.get("StartAfter", ""), inp.get("ContinuationToken")
    encode = _encoder(inp)
    page, following = await _page_of_token(ctx, inp, start_after, token, limit)
    if inp.get("Prefetch"):
        await _prefetch(ctx, [key for key, _ in page.entries])
    output: Output = {
        "Name": ctx.bucket.name,
        "Prefix": encode(prefix),
        "MaxKeys": limit,
        "KeyCount": len(page.entries) + len(page.prefixes),
        "IsTruncated": page.truncated,
        "Contents": _contents(ctx, page.entries, _encoding(inp), owner=bool(inp.get("FetchOwner"))),
        "CommonPrefixes": [{"Prefix": encode(common)} for common in page.prefixes],
    }
    if delimiter:
        output["Delimiter"] = encode(delimiter)
    if start_after:
        output["StartAfter"] = encode(start_after)
    if token is not None:
        output["ContinuationToken"] = token
    if page.truncated:
        output["NextContinuationToken"] = following
    if "EncodingType" in inp:
        output["EncodingType"] = inp["EncodingType"]
    return output


async def _prefetch(ctx: Context, keys: list[str]) -> None:
    """Have the objects fetched into this region's caches. A hint: where it cannot be heeded, the listing stands."""
    if len(ctx.metadata.regions.known) <= 1:
        return
    try:
        await ctx.metadata.owe_warm_objects(ctx.bucket, keys)
    except EngineError as error:
        log.warning("request %s: nothing is prefetched: %s", ctx.request.request_id, error)


@operation("ListObjectVersions")
async def list_object_versions(ctx: Context, inp: Input) -> Output:
    limit = _page_size(inp, "MaxKeys")
    prefix, delimiter = inp.get("Prefix", ""), inp.get("Delimiter", "")
    key_marker, version_marker = inp.get("KeyMarker", ""), inp.get("VersionIdMarker", "")
    if version_marker and not key_marker:
        raise S3Error(
            "InvalidArgument",
            "A version-id marker cannot be specified without a key marker.",
            extra={"ArgumentName": "version-id-marker", "ArgumentValue": version_marker},
        )
    encode = _encoder(inp)
    page = await ctx.metadata.list_versions(ctx.bucket, prefix, delimiter, key_marker, version_marker, limit)
    owner = ctx.owner(ctx.bucket.owner)
    versions: list[Output] = []
    markers: list[Output] = []
    for entry in page.entries:
        version = entry.version
        row: Output = {
            "Key": encode(entry.key),
            "VersionId": version.version_id,
            "IsLatest": entry.latest,
            "LastModified": version.stamp,
            "Owner": owner,
        }
        if version.delete_marker:
            markers.append(row)
            continue
        row["ETag"] = f'"{version.etag}"'
        row["Size"] = version.size
        row["StorageClass"] = version.storage_class
        if version.checksum_algorithm:
            row["ChecksumAlgorithm"] = [version.checksum_algorithm]
            row["ChecksumType"] = version.checksum_type
        versions.append(row)
    output: Output = {
        "Name": ctx.bucket.name,
        "Prefix": encode(prefix),
        "KeyMarker": encode(key_marker),
        "VersionIdMarker": version_marker,
        "MaxKeys": limit,
        "IsTruncated": page.truncated,
        "Versions": versions,
        "DeleteMarkers": markers,
        "CommonPrefixes": [{"Prefix": encode(common)} for common in page.prefixes],
    }
    if delimiter:
        output["Delimiter"] = encode(delimiter)
    if page.truncated:
        output["NextKeyMarker"] = encode(page.next_key_marker)
        if page.next_version_id_marker:
            output["NextVersionIdMarker"] = page.next_version_id_marker
    if "EncodingType" in inp:
        output["EncodingType"] = inp["EncodingType"]
    return output


@operation("ListMultipartUploads")
async def list_multipart_uploads(ctx: Context, inp: Input) -> Output:
    limit = _page_size(inp, "MaxUploads")
    prefix, delimiter = inp.get("Prefix", ""), inp.get("Delimiter", "")
    # S3 ignores an upload-id marker that comes without a key marker.
    key_marker = inp.get("KeyMarker", "")
    upload_marker = inp.get("UploadIdMarker", "") if key_marker else ""
    encode = _encoder(inp)
    page = await ctx.metadata.list_uploads(ctx.bucket, prefix, delimiter, key_marker, upload_marker, limit)
    owner = ctx.owner(ctx.bucket.owner)
    uploads: list[Output] = []
    for key, upload in page.entries:
        row: Output = {
            "Key": encode(key),
            "UploadId": upload.upload_id,
            "Initiated": upload.initiated_ns,
            "StorageClass": upload.storage_class,
            "Owner": owner,
            "Initiator": owner,
        }
        if upload.checksum_algorithm:
            row["ChecksumAlgorithm"] = upload.checksum_algorithm
            row["ChecksumType"] = upload.checksum_type
        uploads.append(row)
    output: Output = {
        "Bucket": ctx.bucket.name,
        "KeyMarker": encode(key_marker),
        "UploadIdMarker": upload_marker,
        "Prefix": encode(prefix),
        "MaxUploads": limit,
        "IsTruncated": page.truncated,
        "Uploads": uploads,
        "CommonPrefixes": [{"Prefix": encode(common)} for common in page.prefixes],
    }
    if delimiter:
        output["Delimiter"] = encode(delimiter)
    if page.truncated:
        output["NextKeyMarker"] = encode(page.next_key_marker)
        output["NextUploadIdMarker"] = page.next_upload_id_marker
    if "EncodingType" in inp:
        output["EncodingType"] = inp["EncodingType"]
    return output
