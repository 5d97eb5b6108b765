"""Who is asking, and whether they may.

Three kinds of caller exist: the owner (a root key: everything), a key scoped to one bucket (everything inside it, but
not deleting it nor changing its settings), and anybody (object reads of a public bucket). Policies and ACLs, when they
come, decide here as well; the operations themselves never ask.
"""

from __future__ import annotations

from typing import Protocol

from tigrislike.s3api.errors import S3Error


class BucketRecord(Protocol):
    """What deciding needs to know of a bucket."""

    @property
    def owner(self) -> str: ...

    @property
    def public(self) -> bool: ...


class Identity:
    """A caller: `owner` is the account acted for, `bucket` the only bucket a scoped key sees ("" for a root key);
    `admin` says whether the store itself is theirs to look at and to change."""

    __slots__ = ("admin", "bucket", "key_id", "owner")

    def __init__(self, key_id: str, owner: str, bucket: str, admin: bool = False) -> None:
        self.key_id = key_id
        self.owner = owner
        self.bucket = bucket
        self.admin = admin

    @property
    def anonymous(self) -> bool:
        return not self.key_id

    @property
    def root(self) -> bool:
        return bool(self.key_id) and not self.bucket


ANONYMOUS = Identity("", "", "")

# What anybody may do in a public bucket. Listing is not among them: a public bucket publishes objects, not its index.
_PUBLIC_OPERATIONS = frozenset({"GetObject", "HeadObject"})
# What a key scoped to a bucket may not do inside it.
# Logs and inventories are written to other buckets.
_OWNER_ONLY = frozenset(
    {
        "DeleteBucket",
        "CreateBucket",
        "UpdateBucket",
        "PutBucketLogging",
        "PutBucketInventoryConfiguration",
        "DeleteBucketInventoryConfiguration",
    }
)


def authorise_service(identity: Identity, operation: str) -> None:
    """Decide on an operation that addresses no bucket.

    Raises:
        S3Error: AccessDenied.
    """
    if identity.anonymous:
        raise S3Error("AccessDenied")
    if identity.bucket and operation != "ListBuckets":
        raise S3Error("AccessDenied")


def authorise_name(identity: Identity, operation: str, bucket: str) -> None:
    """Decide as far as the bucket's name alone allows, before it is known to exist.

    A scoped key is refused every other name here, so that it cannot learn which buckets exist. As in S3, anybody may:
    a request without a signature hears NoSuchBucket before AccessDenied.

    Raises:
        S3Error: AccessDenied.
    """
    if identity.bucket and (identity.bucket != bucket or operation in _OWNER_ONLY):
        raise S3Error("AccessDenied")
    if identity.anonymous and operation == "CreateBucket":
        raise S3Error("AccessDenied")


def authorise_bucket(identity: Identity, operation: str, bucket: BucketRecord) -> None:
    """Decide on an operation on an existing bucket or on an object in it (after `authorise_name`).

    Raises:
        S3Error: AccessDenied.
    """
    if identity.anonymous:
        if not (bucket.public and operation in _PUBLIC_OPERATIONS):
            raise S3Error("AccessDenied")
    elif identity.owner != bucket.owner:
        raise S3Error("AccessDenied")
