"""The errors of the metadata layer, each with the S3 error code that it becomes.

    MetadataError
    ├── NoSuchBucket, BucketAlreadyExists, BucketAlreadyOwnedByYou, BucketNotEmpty, InvalidBucketName
    ├── NoSuchKey, NoSuchVersion, MethodNotAllowed          (carry delete_marker and version_id)
    ├── PreconditionFailed, NotModified
    ├── NoSuchUpload, InvalidPart, InvalidPartOrder, EntityTooSmall, EntityTooLarge,
    │   MalformedPartList, BadChecksum, InvalidRequest
    ├── KeyTooLong, InvalidArgument
    ├── NoSuchAccessKey
    ├── BlobDead, ContentGone                               (the writer must start over)
    ├── HomesLacking, NotBacked                             (others must hold the bytes first)
    ├── RecordsChanged                                      (a read must refresh its caches and start over)
    ├── MissingInline                                       (damage: fsck finds it)
    └── FormatTooNew, WrongMasterKey, MasterKeyRotating,    (the node cannot or must not go on)
        StoreIncomplete, ClockBehind

`code` is the S3 error code; `extra` holds further elements of the error document. Messages name the thing, the value
and what to do; they never hold secrets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class MetadataError(Exception):
    """Base of every error raised by the metadata layer itself (engine faults have their own tree)."""

    code: ClassVar[str] = "InternalError"

    def __init__(self, message: str, **extra: str) -> None:
        super().__init__(message)
        self.message = message
        self.extra: dict[str, str] = extra


# --- buckets


class NoSuchBucket(MetadataError):
    code = "NoSuchBucket"

    def __init__(self, name: str) -> None:
        super().__init__("The specified bucket does not exist", BucketName=name)


class BucketAlreadyExists(MetadataError):
    code = "BucketAlreadyExists"

    def __init__(self, name: str) -> None:
        super().__init__("The bucket name is taken by another owner; choose another", BucketName=name)


class BucketAlreadyOwnedByYou(MetadataError):
    code = "BucketAlreadyOwnedByYou"

    def __init__(self, name: str) -> None:
        super().__init__("You already own a bucket of this name", BucketName=name)


class NoSuchConfiguration(MetadataError):
    code = "NoSuchConfiguration"

    def __init__(self, id_: str) -> None:
        super().__init__("The specified configuration does not exist", Id=id_)


class TooManyConfigurations(MetadataError):
    code = "TooManyConfigurations"

    def __init__(self, most: int) -> None:
        super().__init__(f"A bucket has at most {most} configurations of a kind")


class InvalidTargetBucketForLogging(MetadataError):
    code = "InvalidTargetBucketForLogging"

    def __init__(self, target: str) -> None:
        super().__init__("The target bucket for logging does not exist or is not owned by you", TargetBucket=target)


class BucketNotEmpty(MetadataError):
    code = "BucketNotEmpty"

    def __init__(self, name: str) -> None:
        super().__init__(
            "The bucket holds objects, versions, delete markers or unfinished uploads; remove them first",
            BucketName=name,
        )


class InvalidBucketName(MetadataError):
    code = "InvalidBucketName"

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"The specified bucket is not valid: {why}", BucketName=name)


# --- objects


class VersionError(MetadataError):
    """Base of the errors about a version; the two flags become x-amz-delete-marker and x-amz-version-id."""

    def __init__(
        self,
        message: str,
        *,
        delete_marker: bool = False,
        version_id: str | None = None,
        last_modified_ns: int = 0,
        **extra: str,
    ) -> None:
        super().__init__(message, **extra)
        self.delete_marker = delete_marker
        self.version_id = version_id
        self.last_modified_ns = last_modified_ns


class NoSuchKey(VersionError):
    code = "NoSuchKey"

    def __init__(self, key: str, *, delete_marker: bool = False, version_id: str | None = None, stamp: int = 0) -> None:
        super().__init__(
            "The specified key does not exist.",
            delete_marker=delete_marker,
            version_id=version_id,
            last_modified_ns=stamp,
            Key=key,
        )


class NoSuchVersion(VersionError):
    code = "NoSuchVersion"

    def __init__(self, key: str, version_id: str) -> None:
        super().__init__("The specified version does not exist.", Key=key, VersionId=version_id)


class MethodNotAllowed(VersionError):
    """A read of a delete marker by its version id."""

    code = "MethodNotAllowed"

    def __init__(self, version_id: str, stamp: int) -> None:
        super().__init__(
            "The specified version is a delete marker, which cannot be read",
            delete_marker=True,
            version_id=version_id,
            last_modified_ns=stamp,
            ResourceType="DeleteMarker",
        )


class PreconditionFailed(MetadataError):
    code = "PreconditionFailed"

    def __init__(self, condition: str) -> None:
        super().__init__("At least one of the pre-conditions you specified did not hold", Condition=condition)


class NotModified(MetadataError):
    """A conditional read of what the reader has already: `etag`, `last_modified_ns` and `version_id` say which."""

    code = "NotModified"

    def __init__(self, etag: str, last_modified_ns: int, version_id: str) -> None:
        super().__init__("Not Modified")
        self.etag = etag
        self.last_modified_ns = last_modified_ns
        self.version_id = version_id


class KeyTooLong(MetadataError):
    code = "KeyTooLongError"

    def __init__(self, size: int, limit: int) -> None:
        super().__init__("Your key is too long", Size=str(size), MaxSizeAllowed=str(limit))


class InvalidArgument(MetadataError):
    code = "InvalidArgument"

    def __init__(self, name: str, value: str, why: str) -> None:
        super().__init__(why, ArgumentName=name, ArgumentValue=value)


class InvalidRequest(MetadataError):
    code = "InvalidRequest"


# --- multipart uploads


class NoSuchUpload(MetadataError):
    code = "NoSuchUpload"

    def __init__(self, upload_id: str) -> None:
        super().__init__(
            "The specified multipart upload does not exist. The upload ID might be invalid, or the multipart upload "
            "might have been aborted or completed.",
            UploadId=upload_id,
        )


class InvalidPart(MetadataError):
    code = "InvalidPart"

    def __init__(self, upload_id: str, number: int, etag: str) -> None:
        super().__init__(
            "One or more of the specified parts could not be found. The part might not have been uploaded, or the "
            "specified entity tag might not match the part's entity tag.",
            UploadId=upload_id,
            PartNumber=str(number),
            ETag=etag,
        )


class InvalidPartOrder(MetadataError):
    code = "InvalidPartOrder"

    def __init__(self, upload_id: str) -> None:
        super().__init__(
            "The list of parts was not in ascending order. The parts list must be specified in order by part number.",
            UploadId=upload_id,
        )


class EntityTooSmall(MetadataError):
    code = "EntityTooSmall"

    def __init__(self, number: int, etag: str, size: int, minimum: int) -> None:
        super().__init__(
            "Your proposed upload is smaller than the minimum allowed size",
            PartNumber=str(number),
            ETag=etag,
            ProposedSize=str(size),
            MinSizeAllowed=str(minimum),
        )


class EntityTooLarge(MetadataError):
    code = "EntityTooLarge"

    def __init__(self, size: int, maximum: int) -> None:
        super().__init__(
            "Your proposed upload exceeds the maximum allowed size",
            ProposedSize=str(size),
            MaxSizeAllowed=str(maximum),
        )


class MalformedPartList(MetadataError):
    code = "MalformedXML"


class BadChecksum(MetadataError):
    code = "BadDigest"


# --- access


class NoSuchAccessKey(MetadataError):
    code = "InvalidAccessKeyId"

    def __init__(self, key_id: str) -> None:
        super().__init__("The access key does not exist", AWSAccessKeyId=key_id)


# --- bytes


class BlobDead(MetadataError):
    """The blob was given up (its writer was taken for dead) before this commit; upload it again."""

    code = "RequestTimeout"

    def __init__(self, blob_id: bytes) -> None:
        super().__init__("The upload took too long and its bytes were given up; send it again")
        self.blob_id = blob_id


class NotBacked(MetadataError):
    """A write-through bucket was to refer to bytes that no origin holds yet; have them written there first."""

    code = "SlowDown"

    def __init__(self, content_id: bytes) -> None:
        super().__init__("The bytes have to be written to the bucket's origin first; please try again")
        self.content_id = content_id


class ContentGone(MetadataError):
    """The content to be shared was reclaimed between its lookup and this commit; look it up again."""

    code = "SlowDown"

    def __init__(self, content_id: bytes) -> None:
        super().__init__("The source changed while it was being read; try again")
        self.content_id = content_id


class HomesLacking(MetadataError):
    """Stored bytes that a write is to share are on too few nodes for it to be acknowledged.

    `contents` are those that lack homes, with their sizes in bytes; `regions` and `copies` what the write wants.
    """

    code = "ServiceUnavailable"

    def __init__(self, contents: Sequence[tuple[bytes, int]], regions: tuple[str, ...], copies: int) -> None:
        super().__init__(f"The bytes to be shared must be on {copies} nodes before this is acknowledged; try again")
        self.contents = tuple(contents)
        self.regions = regions
        self.copies = copies


class MissingInline(MetadataError):
    """A version says that its bytes are inline, and they are not there: the database is damaged."""

    def __init__(self, key: str, stamp: int, size: int) -> None:
        super().__init__(f"the {size} inline bytes of version {stamp} are missing; run fsck", Key=key)


class RecordsChanged(MetadataError):
    """A cached bucket, key or document that a read rested on may have changed since; refresh and decide again."""

    code = "SlowDown"

    def __init__(self) -> None:
        super().__init__("The bucket or key changed while the request was being served; try again")


# --- the database as a whole


class NoSuchNode(MetadataError):
    def __init__(self, node: bytes) -> None:
        super().__init__(f"the store has no node {node.hex()}")


class NodeRemoved(MetadataError):
    def __init__(self, node: bytes) -> None:
        super().__init__(
            f"node {node.hex()} was removed from the store: give it an empty cache directory, and it joins as a new one"
        )


class ProtocolsApart(MetadataError):
    def __init__(self, other: bytes, theirs: int, ours: int) -> None:
        what = "upgrade it first, one release at a time" if theirs < ours else "upgrade this node"
        super().__init__(
            f"node {other.hex()} speaks protocol {theirs}, this node {ours}, and only neighbours serve side by side: "
            f"{what}; a node that is gone for good is to be removed"
        )


class NodeSkewed(MetadataError):
    def __init__(self, skew_s: float) -> None:
        way = "behind" if skew_s < 0 else "ahead of"
        super().__init__(f"this machine's clock is {abs(skew_s):.0f} s {way} the other nodes': set it right first")


class FormatTooNew(MetadataError):
    def __init__(self, found: int, known: int) -> None:
        super().__init__(f"the database has keyspace format {found}, this program knows up to {known}; upgrade it")


class WrongMasterKey(MetadataError):
    code = "ServiceUnavailable"  # of this node alone, until it is restarted: another one may answer
    for_operators: ClassVar[bool] = True


class StoreIncomplete(MetadataError):
    """A copy into this database has begun and not finished."""

    def __init__(self, source: str) -> None:
        super().__init__(
            f"the database holds an unfinished copy of {source} and may not be opened: finish the copy by running "
            "`tigrislike admin copy-metadata` again, or give it up with --abort"
        )


class ClockBehind(MetadataError):
    """What was copied here bears later stamps than this machine's clock would give."""

    def __init__(self, behind_ns: int) -> None:
        super().__init__(
            f"this machine's clock is {behind_ns / 1e9:.1f} s behind the one of the store that was copied here: "
            "new versions would sort before old ones; set the clock right"
        )


class MasterKeyRotating(MetadataError):
    code = "SlowDown"

    def __init__(self) -> None:
        super().__init__("The master key is being rotated; access keys cannot be made until that is done")
