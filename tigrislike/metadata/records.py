"""Records: what the metadata database stores, and what its operations take and return.

Stored records are MessagePack arrays (msgspec ``array_like`` structs), frozen, and only ever extended at the
end: an old process reads a newer record by ignoring the tail, a new one reads an older record by its defaults. A
reader that needs only the leading fields decodes a shorter struct (`ObjectSummary` for LIST).

Times are unix nanoseconds, ids are random bytes, ETags are lower-case hex without quotes. This module holds no
logic beyond formatting: what the records mean together is in `objects`, `uploads` and `blobs`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

R = TypeVar("R")

OBJECT = 0
DELETE_MARKER = 1
"""Kinds of a version."""

NEVER = ""
ENABLED = "Enabled"
SUSPENDED = "Suspended"
"""Versioning states of a bucket; the last two are S3's words."""

LIVE = 1
DEAD = 2
"""States of a content or blob. A dead one never becomes live again."""

NOWHERE = 0
SHADOWED = 1
ANNOUNCED = 2
BACKED = 3
"""What an origin has of a content: nothing; all of it, as somebody else's object that is not ours to rely on; perhaps
some of it, for it is being written there; all of it, durably, as ours."""

DEFAULT_STORAGE_CLASS = "STANDARD"

DEFAULT_CHECKSUM_ALGORITHM = "CRC64NVME"
"""What S3 itself computes for an object whose uploader names no algorithm.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html"""


class Codec(Generic[R]):
    """Encode and decode one record type; keeps the compiled msgspec coders."""

    __slots__ = ("_encoder", "decode")

    def __init__(self, type_: type[R]) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self.decode = msgspec.msgpack.Decoder(type_).decode

    def encode(self, record: R) -> bytes:
        return self._encoder.encode(record)


# --- objects -------------------------------------------------------------------------------------------------------


class ObjectVersion(Struct, frozen=True, array_like=True):
    """One version of an object, or a delete marker. The value of ``current`` and ``version`` rows.

    `stamp` is the version number in unix ns (low 8 bits: the cluster). `content` is the 16-byte id of the bytes, empty
    for inline objects and markers. `parts` is how many parts the content consists of, 0 unless it came from a multipart
    upload; `whole` says that the object itself did not: it is a copy that shares such a content. `checksum` is base64,
    with ``-N`` appended when composite. `headers` maps S3 member names (CacheControl, ContentDisposition,
    ContentEncoding, ContentLanguage, Expires, WebsiteRedirectLocation) to their values.
    """

    stamp: int
    size: int
    etag: str
    kind: int = OBJECT
    storage_class: str = DEFAULT_STORAGE_CLASS
    checksum_algorithm: str = ""
    checksum_type: str = ""
    null: bool = False
    # Everything above is what LIST shows (see ObjectSummary); everything below is read by GET and HEAD only.
    checksum: str = ""
    content: bytes = b""
    parts: int = 0
    content_type: str = ""
    headers: dict[str, str] = {}
    metadata: dict[str, str] = {}
    tags: dict[str, str] = {}
    whole: bool = False

    @property
    def uploaded_parts(self) -> int:
        """How many parts the object was uploaded in, 0 for one that was put or copied whole."""
        return 0 if self.whole else self.parts

    @property
    def version_id(self) -> str:
        """The S3 version id: ``null``, or the stamp in decimal."""
        return "null" if self.null else str(self.stamp)

    @property
    def delete_marker(self) -> bool:
        return self.kind == DELETE_MARKER


class ObjectSummary(Struct, frozen=True, array_like=True):
    """The leading fields of an `ObjectVersion`: all that a listing shows of it."""

    stamp: int
    size: int
    etag: str
    kind: int = OBJECT
    storage_class: str = DEFAULT_STORAGE_CLASS
    checksum_algorithm: str = ""
    checksum_type: str = ""
    null: bool = False

    @property
    def version_id(self) -> str:
        return "null" if self.null else str(self.stamp)

    @property
    def delete_marker(self) -> bool:
        return self.kind == DELETE_MARKER


class Draft(Struct, frozen=True):
    """What a writer wants to become a version.

    Exactly one of `inline` (the bytes of a small object) and `blob` (the id of a finished blob of `size` bytes) says
    where the bytes are; a copy sets neither, because it takes the bytes of its source. `others` are nodes that hold the
    blob durably beside this one, `elsewhere` is where an origin does; `regions` is where the object is to be kept, if
    the bucket is not to say.
    """

    size: int
    etag: str
    inline: bytes | None = None
    blob: bytes | None = None
    storage_class: str = DEFAULT_STORAGE_CLASS
    checksum_algorithm: str = ""
    checksum_type: str = ""
    checksum: str = ""
    content_type: str = ""
    headers: dict[str, str] = {}
    metadata: dict[str, str] = {}
    tags: dict[str, str] = {}
    others: tuple[Home, ...] = ()
    regions: tuple[str, ...] = ()
    elsewhere: Elsewhere | None = None


def copy_draft(source: ObjectVersion) -> Draft:
    """A draft that repeats everything about `source`; callers replace what the request replaces."""
    return Draft(
        size=source.size,
        etag=source.etag,
        storage_class=source.storage_class,
        checksum_algorithm=source.checksum_algorithm,
        checksum_type=source.checksum_type,
        checksum=source.checksum,
        content_type=source.content_type,
        headers=source.headers,
        metadata=source.metadata,
        tags=source.tags,
    )


class Extent(Struct, frozen=True, array_like=True):
    """`size` bytes of a blob from `offset`. `blob_size` is the size of the whole blob, 0 where the extent is all of
    it."""

    blob: bytes
    offset: int
    size: int
    blob_size: int = 0


class Part(Struct, frozen=True, array_like=True):
    """A part of a content: one row of its manifest, ``part / content id, number``.

    `checksum` is base64, of its upload's algorithm or, where that named none, of the default one; empty in parts from
    before it was kept. `extents` name the bytes in order. `node` is the 16-byte id of the node in `region` that holds
    them durably, empty where these are lost and the origin alone has them; `others` are nodes that do so beside it,
    `pending` those that are about to, while its upload is in progress. `source` is the content that the extents belong
    to when they are a slice of another content (then the part owns no blob). `origin` is the id of the origin that had
    its blob when it was recorded, empty where none had.
    """

    number: int
    size: int
    etag: str
    checksum: str
    modified_ns: int
    extents: tuple[Extent, ...]
    node: bytes = b""
    source: bytes = b""
    others: tuple[Home, ...] = ()
    region: str = ""
    pending: tuple[Home, ...] = ()
    origin: bytes = b""


class Home(Struct, frozen=True, array_like=True):
    """A node that durably holds a content: all of it, or (`whole` False) the parts that were uploaded there."""

    region: str
    node: bytes
    whole: bool = True


class Completion(Struct, frozen=True, array_like=True):
    """How a multipart upload became a version; lets a repeated CompleteMultipartUpload answer as the first did.

    `place` is the hash of bucket and key, `request` the hash of the part list that was asked for.
    """

    place: bytes
    request: bytes
    version: ObjectVersion


class Content(Struct, frozen=True, array_like=True):
    """``content / content id``: immutable bytes that versions refer to.

    A content with `parts` 0 is one blob whose id is the content's own; otherwise its manifest lies in ``part`` rows.

    `homes` is who holds it durably, `pending` who is about to, `leaving` who did and may still have its files: all are
    told when it is to go. `regions` is where its bucket's policy wants it, as `placing.Regions` reads it, and `copies`
    how many nodes are to hold it; what buckets that share it want adds up.

    `elsewhere` is what the origin with the id `origin` has of it (one of NOWHERE, SHADOWED, ANNOUNCED, BACKED); where
    each of its blobs lies there say the ``elsewhere`` rows. `backing` is the id of the origin that is to hold it
    durably, empty where none is.
    """

    size: int
    state: int
    parts: int = 0
    homes: tuple[Home, ...] = ()
    bucket: bytes = b""
    completion: Completion | None = None
    dead_ns: int = 0
    pending: tuple[Home, ...] = ()
    regions: tuple[str, ...] = ()
    copies: int = 1
    leaving: tuple[Home, ...] = ()
    origin: bytes = b""
    elsewhere: int = NOWHERE
    backing: bytes = b""


class Referrer(Struct, frozen=True, array_like=True):
    """``ref / content id, hash of the rest``: who needs a content. A version (`bucket` id, `key`, `stamp`), or another
    `content`, some of whose parts are slices of this one. `regions` is where the version is to be kept, if its bucket
    is not to say; the hash leaves it out."""

    bucket: bytes = b""
    key: str = ""
    stamp: int = 0
    content: bytes = b""
    regions: tuple[str, ...] = ()

    @property
    def digest(self) -> bytes:
        return digest16(self.bucket, self.key.encode(), self.stamp.to_bytes(8, "big"), self.content)


class Blob(Struct, frozen=True, array_like=True):
    """``blob / blob id``: the commit state of a blob. `number` is the part that it is the bytes of, 0 when it is the
    whole content. `changed_ns` is when the row was written."""

    state: int
    content: bytes = b""
    number: int = 0
    size: int = 0
    node: bytes = b""
    changed_ns: int = 0


class Elsewhere(Struct, frozen=True, array_like=True):
    """``elsewhere / blob id``: where an origin has a blob: the whole object `key` there, as long as its ETag is
    `etag`."""

    origin: bytes
    key: str
    etag: str


class Found(Struct, frozen=True):
    """A version and where its bytes are: `inline`, or the extents of `parts` in order (both empty for a size of 0)."""

    version: ObjectVersion
    inline: bytes | None
    parts: tuple[Part, ...] = ()


class Deletion(Struct, frozen=True):
    """What a delete did: the version removed or the marker made (None where the bucket was never versioned)."""

    version_id: str | None = None
    delete_marker: bool = False


class WriteCondition(Struct, frozen=True):
    """Preconditions of a mutation. ETags as sent (quotes allowed), or ``*``. The last two are for deletes only."""

    if_match: str | None = None
    if_none_match: str | None = None
    if_match_last_modified_s: int | None = None
    if_match_size: int | None = None


class ReadCondition(Struct, frozen=True):
    """Preconditions of a read or of a copy's source. ETags as sent: quoted or not, one or a comma-separated list."""

    if_match: str | None = None
    if_none_match: str | None = None
    if_modified_since_s: int | None = None
    if_unmodified_since_s: int | None = None


# --- multipart uploads ---------------------------------------------------------------------------------------------


class UploadDraft(Struct, frozen=True):
    """What CreateMultipartUpload fixes for the object to come."""

    owner: str = ""
    storage_class: str = DEFAULT_STORAGE_CLASS
    checksum_algorithm: str = ""
    checksum_type: str = ""
    content_type: str = ""
    headers: dict[str, str] = {}
    metadata: dict[str, str] = {}
    tags: dict[str, str] = {}
    regions: tuple[str, ...] = ()


class Upload(Struct, frozen=True, array_like=True):
    """``upload / bucket id, key, upload id``: a multipart upload in progress. Its id becomes the content's id."""

    content: bytes
    initiated_ns: int
    owner: str = ""
    storage_class: str = DEFAULT_STORAGE_CLASS
    checksum_algorithm: str = ""
    checksum_type: str = ""
    # Above: what ListMultipartUploads shows (UploadSummary).
    content_type: str = ""
    headers: dict[str, str] = {}
    metadata: dict[str, str] = {}
    tags: dict[str, str] = {}
    regions: tuple[str, ...] = ()

    @property
    def upload_id(self) -> str:
        return self.content.hex()


class UploadSummary(Struct, frozen=True, array_like=True):
    """The leading fields of an `Upload`."""

    content: bytes
    initiated_ns: int
    owner: str = ""
    storage_class: str = DEFAULT_STORAGE_CLASS
    checksum_algorithm: str = ""
    checksum_type: str = ""

    @property
    def upload_id(self) -> str:
        return self.content.hex()


class CompletedPart(Struct, frozen=True):
    """One entry of a CompleteMultipartUpload request. `checksum` is base64, None where the request names none, and of
    `algorithm`."""

    number: int
    etag: str
    checksum: str | None = None
    algorithm: str = ""


# --- listings ------------------------------------------------------------------------------------------------------


class ObjectPage(Struct, frozen=True):
    """A page of live objects. `last` is the greatest key or common prefix on the page: the next page's `after`."""

    entries: list[tuple[str, ObjectSummary]]
    prefixes: list[str]
    truncated: bool
    last: str


class VersionEntry(Struct, frozen=True):
    key: str
    version: ObjectSummary
    latest: bool


class VersionPage(Struct, frozen=True):
    """A page of versions, newest first within a key. The markers of the next page are empty unless truncated."""

    entries: list[VersionEntry]
    prefixes: list[str]
    truncated: bool
    next_key_marker: str
    next_version_id_marker: str


class UploadPage(Struct, frozen=True):
    """A page of uploads, by key and then upload id. The markers of the next page are empty unless truncated."""

    entries: list[tuple[str, UploadSummary]]
    prefixes: list[str]
    truncated: bool
    next_key_marker: str
    next_upload_id_marker: str


class PartPage(Struct, frozen=True):
    """A page of an upload's parts. `last` is the greatest part number on it (the next page's `after`)."""

    upload: Upload
    parts: list[Part]
    truncated: bool
    last: int


# --- buckets and access --------------------------------------------------------------------------------------------


class Bucket(Struct, frozen=True, array_like=True):
    """``bucket / name``. `configs` names the kinds of configuration document that exist, so that looking for one that
    does not costs nothing. `public` opens objects to anonymous reads, `public_list` listings too.

    `shadow` is the id of the origin that the bucket looks through to for what it does not have, which with
    `write_through` gets what is written and deleted here; `backing` that of the origin which durably holds its bytes
    under the durabilities ``write-back`` and ``write-through``. Empty: there is none.
    """

    id: bytes
    name: str
    owner: str
    created_ns: int
    versioning: str = NEVER
    public: bool = False
    public_list: bool = False
    region_policy: str = ""
    durability: str = "local"
    read_mode: str = "strong"
    storage_class: str = DEFAULT_STORAGE_CLASS
    configs: tuple[str, ...] = ()
    shadow: bytes = b""
    write_through: bool = False
    backing: bytes = b""


class Repolicy(Struct, frozen=True, array_like=True):
    """``repolicy / bucket id``: how far the objects of the bucket called `name` have been given its present policies.
    `after` is the key of the last row that was looked at, without the store's prefix."""

    name: str
    after: bytes = b""


class Migration(Struct, frozen=True, array_like=True):
    """``migration / bucket id``: how far the shadow `origin` of the bucket called `name` has been adopted: what of its
    keys starts with `prefix`, at most `rate` objects a second (0: as fast as it goes).

    `after` is what the next page of its listing is listed after. `looked` counts keys, `adopted` those that became the
    bucket's by it, `failed` those that did not and should have; `error` is what kept it last. `ended_ns` is 0 while it
    goes on.
    """

    name: str
    origin: bytes
    prefix: str
    rate: int
    begun_ns: int
    after: str = ""
    looked: int = 0
    adopted: int = 0
    failed: int = 0
    error: str = ""
    ended_ns: int = 0


class Logging(Struct, frozen=True, array_like=True):
    """``logging / bucket id``: the requests to a bucket of `owner` are logged in objects of the bucket called `target`,
    under keys that begin with `prefix`. `partition` says what follows there; see `server_logging`. `ended_ns` is 0
    while they are; a row stays for a while behind that, for what is still to be delivered."""

    bucket: bytes
    name: str
    owner: str
    target: str
    prefix: str = ""
    partition: str = ""
    ended_ns: int = 0


class InventoryFile(Struct, frozen=True, array_like=True):
    """A file of a report: the name in its key, bytes, MD5 in hexadecimal, and how many objects it lists."""

    name: str
    size: int
    md5: str
    rows: int


class Inventory(Struct, frozen=True, array_like=True):
    """``inventory / bucket id, id``: a configuration of the bucket called `name`, as the JSON `document` that its owner
    set at `set_ns`, and how far its present report has come.

    `reported` is the last period of which there is a report, `period` the one whose report is under way, if one is; see
    `inventories`. It lists what the bucket held from `begun_ns` on, has listed it up to the key `after` and its
    `version`, and consists of `files` so far. `error` says why the last one could not be made.
    """

    bucket: bytes
    name: str
    id: str
    document: bytes
    enabled: bool
    weekly: bool
    set_ns: int
    reported: str = ""
    period: str = ""
    begun_ns: int = 0
    after: str = ""
    version: str = ""
    files: tuple[InventoryFile, ...] = ()
    error: str = ""


class Usage(Struct, frozen=True):
    """A bucket's counters: `objects` live keys, `noncurrent` other versions and delete markers, `bytes` of all."""

    objects: int
    noncurrent: int
    bytes: int


class AccessRecord(Struct, frozen=True, array_like=True):
    """``access / key id`` as stored: the secret is encrypted with the master key whose id is `master`."""

    key_id: str
    owner: str
    bucket: str
    created_ns: int
    master: bytes
    sealed: bytes
    root: bool = False
    admin: bool = False


class AccessKey(Struct, frozen=True):
    """An access key pair. `bucket` is the name of the one bucket that it reaches; empty: every bucket of the owner.
    With an `admin` key the store itself is looked at and changed; the `root` key is one."""

    key_id: str
    secret: str
    owner: str
    bucket: str
    created_ns: int
    root: bool = False
    admin: bool = False

    def __repr__(self) -> str:  # a secret must not reach a log through a record's repr
        return f"AccessKey(key_id={self.key_id!r}, owner={self.owner!r}, bucket={self.bucket!r}, root={self.root})"


class OriginRecord(Struct, frozen=True, array_like=True):
    """``origin / id``: a store elsewhere, as stored: its credentials are encrypted with the master key whose id is
    `master`. Fields as of `OriginPlace`."""

    id: bytes
    url: str
    endpoint: str
    region: str
    options: dict[str, str]
    created_ns: int
    master: bytes
    sealed: bytes


class OriginPlace(Struct, frozen=True):
    """A store elsewhere: `url` is scheme, bucket and prefix (``s3://bucket/prefix``), `endpoint` the URL of its service
    where that is not the scheme's own, `options` what else its driver takes."""

    url: str
    endpoint: str = ""
    region: str = ""
    access_key: str = ""
    secret_key: str = ""
    options: dict[str, str] = {}

    def __repr__(self) -> str:  # a secret must not reach a log through a record's repr
        return f"OriginPlace(url={self.url!r}, endpoint={self.endpoint!r}, region={self.region!r})"


# --- work owed -----------------------------------------------------------------------------------------------------


class Attempt(Struct, frozen=True, array_like=True):
    """A failed run of an item: when it ended, on which node, and how."""

    at_ns: int
    node: bytes
    error: str


class Item(Struct, frozen=True, array_like=True):
    """``queue / item, zone, id``: a piece of work owed.

    `lease` is the fence that the finishing transaction re-reads, empty while waiting. `again_ns` says that the cause
    recurred while the item was leased, at that vesting time; -1: it did not. `attempts` counts failures since the last
    success, and `history` has the last of them, newest last.
    """

    task: str
    subject: bytes
    vesting_ns: int
    enqueued_ns: int
    priority: int = 0
    lease: bytes = b""
    again_ns: int = -1
    attempts: int = 0
    error: str = ""
    bucket: bytes = b""
    history: tuple[Attempt, ...] = ()


class Pointer(Struct, frozen=True, array_like=True):
    """``queue / pointer, zone``: when a consumer is to look at a zone next. `lease` is the fence of the one that does,
    empty while none does. `active_ns` is when something was last taken from the zone, or it was announced. `since_ns`
    says since when the first of what was due then had been due; 0: nothing was."""

    vesting_ns: int
    lease: bytes = b""
    active_ns: int = 0
    since_ns: int = 0


class Counts(Struct, frozen=True):
    """Counters of one task, of a zone or of more: items there now, `waiting` (or leased) and `dead`; since the zone
    last began, runs `enqueued`, `done` and `failed`; of what waits, how many are `leased` and how many `failing`."""

    waiting: int = 0
    enqueued: int = 0
    done: int = 0
    failed: int = 0
    dead: int = 0
    leased: int = 0
    failing: int = 0

    @classmethod
    def of(cls, counted: Mapping[str, int]) -> Counts:
        """From what is stored, where each event adds to one counter: beside those named here runs `begun`, given up for
        another end than done or failed (`returned`), and causes `dropped` in place of being done."""
        stored = counted.get
        enqueued, done, failed = stored("enqueued", 0), stored("done", 0), stored("failed", 0)
        waiting = enqueued - done - stored("dropped", 0)
        leased = stored("begun", 0) - done - failed - stored("returned", 0)
        return cls(waiting, enqueued, done, failed, stored("dead", 0), leased, stored("failing", 0))

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.waiting + other.waiting,
            self.enqueued + other.enqueued,
            self.done + other.done,
            self.failed + other.failed,
            self.dead + other.dead,
            self.leased + other.leased,
            self.failing + other.failing,
        )


class Claimed(Struct, frozen=True):
    """An item under lease: `zone`, `id` and `lease` are what finishing it takes."""

    zone: bytes
    id: bytes
    lease: bytes
    item: Item


# --- nodes and regions ---------------------------------------------------------------------------------------------

UP = "up"
DRAINING = "draining"
REMOVED = "removed"
"""States of a node: one that drains takes no new homes, one that was removed may not come back."""

LOST = bytes(16)
"""Stands for a node in ``home`` rows: it "holds" the contents that no node of the store can give any more."""


class Audit(Struct, frozen=True, array_like=True):
    """``audit / ~time, id``: something that was asked of the store itself. `who` is an access key's id, or a user of
    the machine where it was not asked over the network; `where` is the client's address. `outcome` is ``begun`` until
    it is known: where that stays, whoever did it was cut off."""

    id: bytes
    at_ns: int
    who: str
    where: str
    action: str
    arguments: str
    outcome: str = "begun"
    request: str = ""


class Node(Struct, frozen=True, array_like=True):
    """``node / node id``: a node of the store, from its first start until it is forgotten. `endpoint` is the URL by
    which other nodes reach it, `protocol` the version of what they say to each other. `repaired` is the count of the
    beat after which it fell silent for so long that what it held was owed to others, -1 where it is not."""

    node: bytes
    region: str
    endpoint: str
    state: str = UP
    joined_ns: int = 0
    protocol: int = 1
    repaired: int = -1


class Beat(Struct, frozen=True, array_like=True):
    """``beat / node id``: a node's last sign of life, by the database's clock as it saw it. `count` grows with each;
    others tell by it whether a node is alive, and need not trust its clock. `epoch` is what requests to it are signed
    for (`replication.signing`). Sizes are bytes: of its disk, and of the blocks in its cache, whose capacity is -1
    where the disk alone bounds it. `step_ns` is how far its host's clock has been set ahead of the one that it goes
    by."""

    at_ns: int
    count: int
    epoch: bytes = b""
    capacity: int = 0
    free: int = 0
    step_ns: int = 0
    cache_used: int = 0
    cache_capacity: int = -1


class NodeSample(Struct, frozen=True, array_like=True):
    """``history / step, slot, node``: what a node had counted at `at_ns` since `since_ns`, when it started: requests of
    clients and how many of them failed (status 500 and more), bytes of bodies, blocks found on its disk and not, blocks
    fetched, bytes fetched and evicted. The last two are what its cache held then, and may hold (-1: what the disk
    has room for)."""

    at_ns: int
    since_ns: int
    requests: int = 0
    failed: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    hits: int = 0
    misses: int = 0
    fills: int = 0
    fill_bytes: int = 0
    evicted_bytes: int = 0
    cache_used: int = 0
    cache_capacity: int = -1


class Cluster(Struct, frozen=True, array_like=True):
    """``meta / cluster``: the keyspace's format version, and which cluster this is (`number` 0 to 255 goes into
    stamps)."""

    format: int
    number: int
    uuid: bytes


class MasterState(Struct, frozen=True, array_like=True):
    """``meta / master``: the id of the master key in force, that of its successor while a rotation runs, and the
    check values (a known text sealed with each)."""

    current: bytes
    check: bytes
    successor: bytes = b""
    successor_check: bytes = b""


def digest16(*fields: bytes) -> bytes:
    """A 16-byte hash of `fields`, each length-prefixed so that different splits differ."""
    state = hashlib.blake2b(digest_size=16)
    for field in fields:
        state.update(len(field).to_bytes(4, "big"))
        state.update(field)
    return state.digest()


def part_list_digest(parts: Sequence[CompletedPart]) -> bytes:
    """Identifies a CompleteMultipartUpload request: two that list the same parts are the same request."""
    plain: list[Any] = [(part.number, part.etag.strip('"').lower(), part.checksum) for part in parts]
    return digest16(msgspec.msgpack.encode(plain))


object_version = Codec(ObjectVersion)
object_summary = Codec(ObjectSummary)
content = Codec(Content)
part = Codec(Part)
referrer = Codec(Referrer)
blob = Codec(Blob)
upload = Codec(Upload)
upload_summary = Codec(UploadSummary)
bucket = Codec(Bucket)
repolicy = Codec(Repolicy)
migration = Codec(Migration)
logging = Codec(Logging)
inventory = Codec(Inventory)
elsewhere = Codec(Elsewhere)
origin = Codec(OriginRecord)
access = Codec(AccessRecord)
item = Codec(Item)
pointer = Codec(Pointer)
node = Codec(Node)
beat = Codec(Beat)
audit = Codec(Audit)
node_sample = Codec(NodeSample)
cluster = Codec(Cluster)
master_state = Codec(MasterState)
