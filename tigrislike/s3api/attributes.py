"""What an object carries beside its bytes: content headers, user metadata, tags, class, and what is refused.

One place turns a write request's members into the fields of a version, and a version back into response members, for
every operation that writes or reads objects.
"""

from __future__ import annotations

import re
from typing import Any

from tigrislike.metadata.placing import Regions
from tigrislike.s3api.errors import S3Error, invalid_argument
from tigrislike.s3api.tags import parse_tagging_header

Input = dict[str, Any]
Output = dict[str, Any]

DEFAULT_CONTENT_TYPE = "binary/octet-stream"
MAX_METADATA_BYTES = 2048  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html
STORED_HEADERS = (
    "CacheControl",
    "ContentDisposition",
    "ContentEncoding",
    "ContentLanguage",
    "Expires",
    "WebsiteRedirectLocation",
)
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-class-intro.html
_STORAGE_CLASSES = frozenset(
    {"STANDARD", "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"}
)
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]*", re.ASCII)  # RFC 9110's token, or nothing
_GRANTS = ("GrantFullControl", "GrantRead", "GrantReadACP", "GrantWriteACP")
_ENCRYPTION = (
    "ServerSideEncryption",
    "SSECustomerAlgorithm",
    "SSECustomerKey",
    "SSECustomerKeyMD5",
    "SSEKMSKeyId",
    "SSEKMSEncryptionContext",
    "CopySourceSSECustomerAlgorithm",
    "CopySourceSSECustomerKey",
    "CopySourceSSECustomerKeyMD5",
)
_LOCKS = ("ObjectLockMode", "ObjectLockRetainUntilDate", "ObjectLockLegalHoldStatus")
_UNSUPPORTED = frozenset({*_ENCRYPTION, *_LOCKS, *_GRANTS})


def refuse_unsupported(inp: Input) -> None:
    """Refuse what would otherwise be promised silently: encryption, retention and grants that nobody keeps.

    Canned ACLs are accepted and have no effect, as in every bucket whose owner enforces ownership.

    Raises:
        S3Error: NotImplemented, InvalidRequest or AccessControlListNotSupported.
    """
    if _UNSUPPORTED.isdisjoint(inp):
        return
    if any(inp.get(member) for member in _ENCRYPTION):
        raise S3Error("NotImplemented", "Server-side encryption is not implemented.")
    if any(inp.get(member) for member in _LOCKS):
        raise S3Error("InvalidRequest", "Bucket is missing Object Lock Configuration")
    if any(inp.get(member) for member in _GRANTS):
        raise S3Error("AccessControlListNotSupported")


def object_class(inp: Input) -> str:
    """The storage class that a write asks for.

    Raises:
        S3Error: InvalidStorageClass for one that is read only after a restore, which nothing here would wait for, or
            that belongs to another kind of bucket.
    """
    named: str = inp.get("StorageClass") or "STANDARD"
    if named not in _STORAGE_CLASSES:
        raise S3Error("InvalidStorageClass", extra={"StorageClassRequested": named})
    return named


def object_headers(inp: Input) -> dict[str, str]:
    """The content headers to keep, by model member name. `aws-chunked` is the transfer's coding, not the object's.

    Raises:
        S3Error: InvalidRedirectLocation.
    """
    headers: dict[str, str] = {}
    for name in STORED_HEADERS:
        value = inp.get(name)
        if value:
            headers[name] = value
    redirect = headers.get("WebsiteRedirectLocation", "/")
    if not redirect.startswith(("/", "http://", "https://")):
        raise S3Error("InvalidRedirectLocation")
    encoding = headers.get("ContentEncoding")
    if encoding is not None and "aws-chunked" in encoding:
        codings = [coding.strip() for coding in encoding.split(",")]
        kept = ", ".join(coding for coding in codings if coding and coding != "aws-chunked")
        if kept:
            headers["ContentEncoding"] = kept
        else:
            del headers["ContentEncoding"]
    return headers


def user_metadata(inp: Input) -> dict[str, str]:
    """The `x-amz-meta-` pairs.

    Raises:
        S3Error: MetadataTooLarge beyond 2 KB of names and values in UTF-8; InvalidArgument for a name that no header
            can have, as a form's field or a presigned URL's parameter can.
    """
    metadata: dict[str, str] = inp.get("Metadata") or {}
    for name in metadata:
        if not _HEADER_NAME.fullmatch(name):
            raise invalid_argument("The name of a metadata header is not valid", f"x-amz-meta-{name}", metadata[name])
    size = sum(len(name.encode()) + len(value.encode()) for name, value in metadata.items())
    if size > MAX_METADATA_BYTES:
        raise S3Error("MetadataTooLarge", extra={"Size": str(size), "MaxSizeAllowed": str(MAX_METADATA_BYTES)})
    return metadata


def object_tags(inp: Input) -> dict[str, str]:
    """The tags of an `x-amz-tagging` header."""
    header = inp.get("Tagging")
    return parse_tagging_header(header) if header else {}


def object_regions(regions: Regions, inp: Input) -> tuple[str, ...]:
    """Where an object is to be kept, () where its bucket is to say. Raises InvalidArgument."""
    return regions.parse(inp.get("Regions", ""))


def describe(version: Any, *, versioned: bool, output: Output) -> Output:
    """Fill `output` with the response members of a version: those that GET and HEAD share."""
    output["AcceptRanges"] = "bytes"
    output["LastModified"] = version.stamp
    output["ETag"] = f'"{version.etag}"'
    output["ContentType"] = version.content_type or DEFAULT_CONTENT_TYPE
    if version.headers:
        output.update(version.headers)
    if version.metadata:
        output["Metadata"] = version.metadata
    if version.storage_class != "STANDARD":
        output["StorageClass"] = version.storage_class
    if version.tags:
        output["TagCount"] = len(version.tags)
    if versioned:
        output["VersionId"] = version.version_id
    return output


def stored_checksum(version: Any) -> Output:
    """The checksum members of a version, empty where it has none."""
    if not version.checksum_algorithm:
        return {}
    return {f"Checksum{version.checksum_algorithm}": version.checksum, "ChecksumType": version.checksum_type}
