"""Buckets and objects: looked through, looked at, uploaded, downloaded, linked to and deleted; and where an object is.

What is done with objects goes by the way of every S3 request (`s3`). Keys are in the addresses' queries: a key can be
anything, a part of a path cannot.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import quote

from starlette.responses import JSONResponse, Response

from tigrislike.admin.desk import AdminError
from tigrislike.metadata import MetadataError
from tigrislike.metadata.kv import EngineError
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.presigning import presigned_url

from ..page import Context, Page, Shown, Visit, Went, segment, url
from ..preview import HEAD_BYTES, MAX_HEADER_BYTES, Preview, header_bytes, image_type, preview, visible
from ..s3 import Answer, Caller

_ROWS: Final = 100
_VERSIONS: Final = 50
_EXPIRIES: Final = {
    "900": "15 minutes",
    "3600": "an hour",
    "43200": "12 hours",
    "86400": "a day",
    "604800": "7 days",
}
_META: Final = "x-amz-meta-"


def _at(bucket: str, page: str = "", **query: Any) -> str:
    """The address of a page of a bucket."""
    return url(f"/buckets/{segment(bucket)}{page}", **query)


def _places(bucket: str, prefix: str, *rest: tuple[str, str]) -> list[tuple[str, str]]:
    """Where a page is: the buckets, the bucket, and every level of a prefix that ends with a slash."""
    places = [("Buckets", url("/buckets")), (bucket, _at(bucket))]
    begin = 0
    while (end := prefix.find("/", begin)) >= 0:
        name = visible(prefix[begin:end]) or "(no name)"
        places.append((name, _at(bucket, prefix=prefix[: end + 1])))
        begin = end + 1
    return [*places, *rest]


def _folder(key: str) -> str:
    return key[: key.rfind("/") + 1]


def _name(key: str) -> str:
    """What a key is called within its folder."""
    return visible(key[key.rfind("/") + 1 :] or key)


# --- looking through


async def buckets(visit: Visit) -> Context:
    prefix = visit.query.get("prefix", "")
    page = await visit.call("buckets", prefix=prefix, cursor=visit.query.get("cursor"), limit=_ROWS)
    return {"page": page, "prefix": prefix, "first": "cursor" in visit.query}


async def about(visit: Visit) -> Context:
    shown = await visit.call("bucket", bucket=visit.params["bucket"])
    return {"bucket": shown, "crumbs": _places(shown.name, "", ("About", ""))}


async def listing(visit: Visit) -> Context:
    """A page of a bucket: folders and objects below a prefix."""
    bucket, prefix = visit.params["bucket"], visit.query.get("prefix", "")
    s3 = await Caller.of(visit)
    found = await s3.call(
        "ListObjectsV2",
        Bucket=bucket,
        Prefix=prefix,
        Delimiter="/",
        MaxKeys=_ROWS,
        ContinuationToken=visit.query.get("cursor"),
    )
    contents = found["Contents"]
    rows = [dict(zip(contents.members, row, strict=True)) for row in contents.rows]
    return {
        "bucket": bucket,
        "prefix": prefix,
        "crumbs": _places(bucket, _folder(prefix)),
        "folders": [(_name_of_folder(each["Prefix"]), each["Prefix"]) for each in found["CommonPrefixes"]],
        "objects": [{**row, "name": _name(row["Key"])} for row in rows],
        "cursor": found.get("NextContinuationToken"),
        "first": "cursor" in visit.query,
    }


def _name_of_folder(prefix: str) -> str:
    return f"{visible(prefix[:-1].rpartition('/')[2]) or '(no name)'}/"


async def versions(visit: Visit) -> Context:
    """A page of all versions below a prefix: also of what is deleted."""
    bucket, prefix = visit.params["bucket"], visit.query.get("prefix", "")
    s3 = await Caller.of(visit)
    found = await s3.call(
        "ListObjectVersions",
        Bucket=bucket,
        Prefix=prefix,
        MaxKeys=_ROWS,
        KeyMarker=visit.query.get("after"),
        VersionIdMarker=visit.query.get("after_version"),
    )
    return {
        "bucket": bucket,
        "prefix": prefix,
        "crumbs": _places(bucket, _folder(prefix), ("All versions", "")),
        "versions": [{**row, "name": visible(row["Key"])} for row in _merged(found)],
        "next": _at(
            bucket,
            "/versions",
            prefix=prefix,
            after=found["NextKeyMarker"],
            after_version=found.get("NextVersionIdMarker"),
        )
        if found["IsTruncated"]
        else "",
        "first": "after" in visit.query,
    }


def _merged(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Versions and delete markers of a listing in its order: by key, the newest first."""
    rows = [{**row, "deleted": False} for row in found["Versions"]]
    rows += [{**row, "deleted": True, "Size": 0} for row in found["DeleteMarkers"]]
    return sorted(rows, key=lambda row: (row["Key"].encode(), -row["LastModified"]))


# --- one object


async def show(visit: Visit) -> Context | Shown:
    """An object, or one version of it: what S3 says of it, its versions, and what it looks like."""
    bucket, key, version = _named(visit)
    s3 = await Caller.of(visit)
    found = await s3.call("ListObjectVersions", Bucket=bucket, Prefix=key, MaxKeys=_VERSIONS + 1)
    rows = [row for row in _merged(found) if row["Key"] == key]
    facts = None
    try:
        facts = await s3.fetch("HEAD", bucket, key, {"versionId": version})
    except AdminError as error:
        if error.status not in (404, 405) or not rows:
            raise
    size = int(facts.headers.get("content-length", "0")) if facts is not None else 0
    context = {
        "bucket": bucket,
        "key": key,
        "name": _name(key),
        "shown_key": visible(key),
        "version": version,
        "crumbs": _places(bucket, _folder(key), (_name(key), "")),
        "facts": facts.headers if facts is not None else None,
        "size": size,
        "metadata": _user_metadata(facts) if facts is not None else [],
        "preview": await _preview(s3, bucket, key, version, facts, size) if facts is not None else None,
        "versions": rows[:_VERSIONS],
        "more": len(rows) > _VERSIONS or found["IsTruncated"],
    }
    return context if facts is not None else Shown(context, 404)


def _named(visit: Visit) -> tuple[str, str, str | None]:
    """Bucket, key and version that a page is about. Raises AdminError."""
    key = visit.query.get("key")
    if not key:
        raise AdminError("InvalidArgument", "no object is named")
    return visit.params["bucket"], key, visit.query.get("version")


def _user_metadata(facts: Answer) -> list[tuple[str, str]]:
    found = [(name[len(_META) :], value) for name, value in facts.headers.items() if name.startswith(_META)]
    return [(visible(name), visible(value)) for name, value in sorted(found)]


async def _preview(s3: Caller, bucket: str, key: str, version: str | None, facts: Answer, size: int) -> Preview:
    """What the object's beginning shows; the object is the one that `facts` are about."""
    query, pinned = {"versionId": version}, {"if-match": facts.headers.get("etag", "*")}

    async def until(count: int) -> bytes:
        if not size:
            return b""
        return (await s3.fetch("GET", bucket, key, query, {**pinned, "range": f"bytes=0-{count - 1}"})).body

    try:
        head = await until(min(size, HEAD_BYTES))
        wanted = header_bytes(head, size)
        if HEAD_BYTES < wanted <= 8 + MAX_HEADER_BYTES:
            head = await until(wanted)
    except AdminError as error:  # what is known of an object is shown even where its bytes are out of reach
        return Preview(kind="nothing", why=f"Its bytes cannot be read now: {error}")
    return preview(head, size)


async def raw(visit: Visit) -> Response:
    """An object's bytes: as a download, or where it is to be shown, as an image of a safe kind."""
    bucket, key, version = _named(visit)
    s3 = await Caller.of(visit)
    query = {"versionId": version, "response-cache-control": "no-store"}
    if visit.query.get("show") != "image":
        await s3.fetch("HEAD", bucket, key, {"versionId": version})  # what is refused is refused on a page
        filename = quote(key.rstrip("/").rpartition("/")[2] or "object", safe="")
        return s3.response(
            bucket,
            key,
            {
                **query,
                "response-content-type": "application/octet-stream",
                "response-content-disposition": f"attachment; filename*=UTF-8''{filename}",
            },
        )
    head = await s3.fetch("GET", bucket, key, {"versionId": version}, {"range": "bytes=0-63"})
    media_type = image_type(head.body)
    if not media_type:
        raise AdminError("NoImage", "this is no image of a kind that can be shown", 415)
    shown = {"response-content-type": media_type, "response-content-disposition": "inline"}
    return s3.response(bucket, key, {**query, **shown}, {"if-match": head.headers["etag"]})


async def replicas(visit: Visit) -> Context:
    bucket, key, version = _named(visit)
    shown = await visit.call("object", bucket=bucket, key=key, version=version)
    back = _at(bucket, "/object", key=key, version=version)
    return {
        "map": shown,
        "shown_key": visible(key),
        "crumbs": _places(bucket, _folder(key), (_name(key), back), ("Replicas", "")),
    }


# --- acting


Told = tuple[int, dict[str, Any]]
"""What a script is told: a status, and a document."""


def _to_script(act: Callable[[Visit], Awaitable[Told]]) -> Callable[[Visit], Awaitable[Response]]:
    """A view for a script, which is told in JSON what came of it, refusals too."""

    async def view(visit: Visit) -> Response:
        try:
            status, document = await act(visit)
        except (AdminError, S3Error, MetadataError, EngineError) as error:
            status, code, message = _refusal(error)
            if code == "PreconditionFailed":
                message = "There is an object of this name already: tick “Replace what is there” to replace it."
            document = {"code": code, "message": message}
        return JSONResponse(document, status)

    return view


def _refusal(error: Exception) -> tuple[int, str, str]:
    if isinstance(error, AdminError):
        return error.status, error.code, str(error)
    told = S3Error.of(error)
    return told.status, told.code, told.message


def _unless_there(visit: Visit) -> str | None:
    """The condition of a write that is to replace nothing."""
    return None if visit.query.get("replace") == "1" else "*"


async def upload(visit: Visit) -> Told:
    """Put the request's body as an object, as PutObject does; or as a part of one, as UploadPart does."""
    bucket, key, _ = _named(visit)
    s3 = await Caller.of(visit)
    sent = visit.request.headers
    headers = {name: sent[name] for name in ("content-length", "content-type") if name in sent}
    if "upload" in visit.query:
        query = {"uploadId": visit.query["upload"], "partNumber": visit.needed("part")}
        answer = await s3.fetch("PUT", bucket, key, query, headers, body=True)
        return 201, {"etag": answer.headers.get("etag")}
    if (condition := _unless_there(visit)) is not None:
        headers["if-none-match"] = condition
    answer = await s3.fetch("PUT", bucket, key, None, headers, body=True)
    return 201, _uploaded(key, answer.headers.get("etag"), answer.headers.get("x-amz-version-id"))


def _uploaded(key: str, etag: str | None, version: str | None) -> dict[str, Any]:
    return {"key": visible(key), "etag": etag, "version": version}


async def begin_parts(visit: Visit) -> Told:
    """Begin an upload in parts, for what is too large for one request."""
    bucket, key, _ = _named(visit)
    s3 = await Caller.of(visit)
    begun = await s3.call("CreateMultipartUpload", Bucket=bucket, Key=key, ContentType=visit.query.get("type"))
    return 201, {"upload": begun["UploadId"]}


async def complete_parts(visit: Visit) -> Told:
    """Make an object of the parts that have arrived, if they are all of its `size`."""
    bucket, key, _ = _named(visit)
    s3 = await Caller.of(visit)
    upload_id, size = visit.needed("upload"), visit.needed("size")
    if not size.isascii() or not size.isdigit() or len(size) > 15:
        raise AdminError("InvalidArgument", "size is to be a number of bytes")
    parts: list[dict[str, Any]] = []
    marker, more = 0, True
    while more:
        page = await s3.call("ListParts", Bucket=bucket, Key=key, UploadId=upload_id, PartNumberMarker=marker)
        parts += [{"PartNumber": each["PartNumber"], "ETag": each["ETag"]} for each in page["Parts"]]
        marker, more = int(page["NextPartNumberMarker"]), page["IsTruncated"]
    done = await s3.call(
        "CompleteMultipartUpload",
        Bucket=bucket,
        Key=key,
        UploadId=upload_id,
        MultipartUpload={"Parts": parts},
        MpuObjectSize=int(size),
        IfNoneMatch=_unless_there(visit),
    )
    return 201, _uploaded(key, done["ETag"], done.get("VersionId"))


async def abort_parts(visit: Visit) -> Told:
    bucket, key, _ = _named(visit)
    s3 = await Caller.of(visit)
    await s3.call("AbortMultipartUpload", Bucket=bucket, Key=key, UploadId=visit.needed("upload"))
    return 200, {}


async def link(visit: Visit) -> Context:
    bucket, key, version = _named(visit)
    return {
        "bucket": bucket,
        "key": key,
        "version": version,
        "shown_key": visible(key),
        "expiries": _EXPIRIES,
        "chosen": "3600",
        "link": "",
        "crumbs": _places(
            bucket, _folder(key), (_name(key), _at(bucket, "/object", key=key, version=version)), ("Link", "")
        ),
    }


async def make_link(visit: Visit) -> Context:
    expires = visit.needed("expires")
    if expires not in _EXPIRIES:
        raise AdminError("InvalidArgument", "a link lasts for one of the times that the form offers")
    bucket, key, version = _named(visit)
    s3 = await Caller.of(visit)
    await s3.fetch("HEAD", bucket, key, {"versionId": version})
    made = presigned_url(
        await _endpoint(visit),
        bucket,
        key,
        s3.key,
        region=visit.desk.settings.region,
        now_s=visit.desk.now_ns() / 1e9,
        expires_s=int(expires),
        query={"versionId": version} if version else {},
    )
    return {**await link(visit), "link": made, "chosen": expires}


async def _endpoint(visit: Visit) -> str:
    """Where clients reach S3."""
    settings = visit.desk.settings
    if settings.public_endpoint:
        return settings.public_endpoint
    if not settings.admin_listen:
        return visit.request.headers["origin"]  # as the browser reaches this listener, also through a proxy
    own = visit.desk.metadata.context.home.node
    return next(node.endpoint for node, _ in await visit.desk.metadata.nodes() if node.node == own)


async def ask_delete(visit: Visit) -> Context:
    bucket, key, version = _named(visit)
    record = await visit.desk.metadata.bucket(bucket)
    if version:
        consequence = (
            f"Version {version} is removed for good. Where it is the latest, the one before it takes its place; "
            "where it is a delete marker, the object is there again."
        )
    elif record.versioning == "Enabled":
        consequence = "It gets a delete marker. Its versions stay, and removing the marker brings it back."
    else:
        consequence = "It is removed for good: this bucket keeps no older versions of it."
    if record.shadow and record.write_through:
        consequence += " Its shadow loses it too."
    return {
        "question": f"Delete {'this version of ' if version else ''}{_name(key)}?",
        "consequence": consequence,
        "to": _at(bucket, "/delete", key=key, version=version),
        "fields": {},
        "button": "Delete",
        "kind": "danger",
        "back": _at(bucket, "/object", key=key),
    }


async def delete(visit: Visit) -> Went:
    bucket, key, version = _named(visit)
    s3 = await Caller.of(visit)
    done = await s3.call("DeleteObject", Bucket=bucket, Key=key, VersionId=version)
    if version:
        return Went(_at(bucket, "/versions", prefix=key), f"Version {version} of {_name(key)} was deleted.")
    kept = " Its versions are kept." if done.get("DeleteMarker") else ""
    return Went(_at(bucket, prefix=_folder(key)), f"{_name(key)} was deleted.{kept}")


PAGES = [
    Page("GET", "/buckets", "buckets.html", buckets, nav="Buckets"),
    Page("GET", "/buckets/{bucket}", "listing.html", listing),
    Page("GET", "/buckets/{bucket}/about", "bucket.html", about),
    Page("GET", "/buckets/{bucket}/versions", "versions.html", versions),
    Page("GET", "/buckets/{bucket}/object", "object.html", show),
    Page("GET", "/buckets/{bucket}/replicas", "replicas.html", replicas),
    Page("GET", "/buckets/{bucket}/raw", "", raw),
    Page("POST", "/buckets/{bucket}/upload", "", _to_script(upload), own_body=True),
    Page("POST", "/buckets/{bucket}/parts", "", _to_script(begin_parts), own_body=True),
    Page("POST", "/buckets/{bucket}/parts/complete", "", _to_script(complete_parts), own_body=True),
    Page("POST", "/buckets/{bucket}/parts/abort", "", _to_script(abort_parts), own_body=True),
    Page("GET", "/buckets/{bucket}/link", "link.html", link),
    Page("POST", "/buckets/{bucket}/link", "link.html", make_link),
    Page("GET", "/buckets/{bucket}/delete", "ask.html", ask_delete),
    Page("POST", "/buckets/{bucket}/delete", "", delete),
]
