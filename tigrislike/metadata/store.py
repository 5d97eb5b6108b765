"""The metadata store: every operation on what exists, as one class over an engine.

`Metadata` runs the transaction functions of the other modules, generates the random ids that they need, and reads
through the caches of `caches`. It decides nothing itself: what an operation means is written in its module.

Everything here is safe to call concurrently from one event loop, and from many processes on one database.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from . import (
    access,
    backing,
    blobs,
    buckets,
    homes,
    inventories,
    listing,
    nodes,
    objects,
    origins,
    server_logging,
    shadow_migration,
    shadows,
    uploads,
)
from .bounded import STRONG, Bounds, Entry, Recalled, Recollection, bound_ns, elapsed_ns, parse_read_mode
from .caches import ManifestCache, RecordCache
from .context import Context, check_key, is_key
from .deciding import QUEUE, QueueParameters
from .errors import (
    ClockBehind,
    FormatTooNew,
    MetadataError,
    NoSuchBucket,
    NoSuchUpload,
    RecordsChanged,
    StoreIncomplete,
)
from .homes import Held, Located
from .keyspace import Keyspace
from .kv.engine import Engine, Transaction
from .kv.errors import EngineError, EngineUnavailable, StoreSealed
from .kv.seal import CLOCK_FLOOR, COPYING, seal_members
from .migrating import FORMAT, migrate
from .outage import Outage
from .placing import LOCAL, Alive, Regions, policy_fields
from .queue import Queue
from .records import (
    DEFAULT_STORAGE_CLASS,
    NEVER,
    AccessKey,
    AccessRecord,
    Beat,
    Blob,
    Bucket,
    Cluster,
    CompletedPart,
    Content,
    Deletion,
    Draft,
    Elsewhere,
    Found,
    Home,
    Inventory,
    Item,
    Logging,
    Migration,
    Node,
    ObjectPage,
    ObjectVersion,
    OriginPlace,
    OriginRecord,
    Part,
    PartPage,
    ReadCondition,
    Upload,
    UploadDraft,
    UploadPage,
    Usage,
    VersionPage,
    WriteCondition,
)
from .records import blob as blob_codec
from .records import cluster as cluster_codec
from .records import content as content_codec
from .secrets import MasterKey

T = TypeVar("T")

PREPARE_PARTS = 50
"""Above this many parts, an object's checksum is computed on a thread before the completing transaction."""

WARM_BATCH = 100
"""Keys whose warming one transaction owes."""

UNWRITTEN_BATCH = 500
"""Blobs that one transaction looks up at their origin."""

DELETE_BATCH = 100
"""Keys that one transaction of DeleteObjects deletes: it then stays far below the limits of any engine."""


async def _open_cluster(tr: Transaction, ctx: Context, fresh: Cluster, master: MasterKey) -> Cluster:
    stored, copying = tr.get(ctx.keys.cluster), tr.get(ctx.keys.prefix + COPYING)
    floor = tr.get(ctx.keys.prefix + CLOCK_FLOOR)
    if (under_way := await copying) is not None:
        raise StoreIncomplete(seal_members(under_way)["source"])
    if (behind_ns := int.from_bytes(await floor or b"", "big") - ctx.now_ns()) >= 0:
        raise ClockBehind(behind_ns)
    raw = await stored
    cluster = fresh
    if raw is not None:
        cluster = cluster_codec.decode(raw)
        if cluster.format > FORMAT:
            raise FormatTooNew(cluster.format, FORMAT)
    else:
        tr.set(ctx.keys.cluster, cluster_codec.encode(fresh))
    await access.check_master(tr, ctx, master)
    return cluster


class Metadata:
    """What exists, in one database. Open with `Metadata.open`; the engine stays the caller's to close, after this.

    `outage` says whether the database can be reached.
    """

    def __init__(
        self,
        engine: Engine,
        context: Context,
        master: MasterKey,
        cluster: Cluster,
        bounds: Bounds,
        monotonic_ns: Callable[[], int],
    ) -> None:
        self.engine = engine
        self._background = engine.background
        self.context = context
        self.cluster = cluster
        self._master = master
        self._monotonic_ns = monotonic_ns
        self._records = RecordCache(engine, monotonic_ns)
        self._manifests = ManifestCache()
        self._bounds = bounds
        self._recollection = Recollection(bounds.memory_bytes)
        self.outage = Outage(self.ping)
        self.queue = Queue(engine.background, context)

    @classmethod
    async def open(
        cls,
        engine: Engine,
        *,
        master_key: MasterKey,
        node_id: bytes,
        region: str,
        cluster_number: int = 0,
        reclaim_grace_s: float = 3600,
        regions: Regions | None = None,
        replica_decay_s: float = 7 * 86400,
        bounds: Bounds | None = None,
        monotonic_ns: Callable[[], int] = elapsed_ns,
        queue: QueueParameters = QUEUE,
    ) -> Metadata:
        """Open the keyspace under the engine's prefix, or found it. One of an older format is migrated.

        `node_id` (16 bytes) and `region` say where blobs committed here lie. `cluster_number` (0 to 255) is used only
        when the keyspace is founded. `reclaim_grace_s` is how long bytes stay after nothing refers to them; it must
        exceed the longest read. `queue` is how the queue of work owed is paced. `regions` is what the names in policies
        mean, `replica_decay_s` how long a replica stays that was made on demand and is not read. `bounds` are of reads
        of bounded buckets, whose ages `monotonic_ns` measures.

        Raises:
            FormatTooNew, WrongMasterKey.
            StoreIncomplete, ClockBehind: a copy into this store has not finished, or came from a clock ahead of ours.
        """
        home = Home(region, node_id)
        grace_ns = int(reclaim_grace_s * 1_000_000_000)
        keys = Keyspace(engine.prefix)
        founder = Context(keys, cluster_number, engine.now_ns, home, grace_ns, queue)
        fresh = Cluster(FORMAT, cluster_number, secrets.token_bytes(16))
        cluster = await engine.transact(_open_cluster, founder, fresh, master_key)
        regions = regions or Regions(known=[region])
        decay_ns = int(replica_decay_s * 1_000_000_000)
        context = Context(keys, cluster.number, engine.now_ns, home, grace_ns, queue, regions, decay_ns)
        if cluster.format < FORMAT:
            # A sealed store can be read as it is, and once it takes writes again, opening it migrates it.
            with contextlib.suppress(StoreSealed):
                cluster = await migrate(engine, context)
        return cls(engine, context, master_key, cluster, bounds or Bounds(), monotonic_ns)

    async def aclose(self) -> None:
        """End what goes on in the background."""
        await self.outage.close()

    def derive_key(self, purpose: str) -> bytes:
        """32 secret bytes for `purpose`, the same on every node of the cluster; another master key gives others."""
        return self._master.derive(purpose)

    def now_ns(self) -> int:
        """The database's clock, in unix ns."""
        return self.engine.now_ns()

    async def ping(self) -> None:
        """One small read, past all caches. Raises what the engine raises when it cannot serve."""
        await self.engine.read(_get, self.context.keys.cluster)

    async def check_master_key(self) -> None:
        """Whether this store's master key is still the one in force. Raises WrongMasterKey; what the engine raises."""
        await self.engine.read(access.check_in_force, self.context, self._master)

    async def refresh(self) -> None:
        """Make the cached records as fresh as the database is now. Call once at the start of a request.

        Raises:
            EngineUnavailable: at once, while the database is known to be away.
        """
        with self.outage:
            await self._records.refresh()

    @property
    def record_version(self) -> bytes | None:
        """The metadata version that cached records are of; changes when `refresh` found them outdated."""
        return self._records.version

    def _token(self, bucket: Bucket) -> bytes | None:
        """The metadata version at which `bucket` is the truth, if that is known."""
        return self._records.token(bucket)

    # --- access keys

    async def access_key(self, key_id: str) -> AccessKey | None:
        """The key pair with this id, None if there is none. Cached."""
        cached = self._records.access.get(key_id)
        if cached is not None:
            return cached
        with self.outage:
            return await self._records.load(
                self._records.access, key_id, access.read_key, self.context, self._master, key_id
            )

    async def create_access_key(
        self,
        owner: str,
        bucket: str = "",
        *,
        key_id: str | None = None,
        secret: str | None = None,
        admin: bool = False,
    ) -> AccessKey:
        """Make a key pair for `owner`, for one `bucket` by name or for all of the owner's; an `admin` key also looks at
        the store itself, and changes it.

        Raises:
            InvalidArgument: a given pair is malformed, or its id taken. MasterKeyRotating.
        """
        key = msgspec.structs.replace(self._new_key(owner, bucket, key_id, secret), admin=admin)
        return await self.engine.transact(access.create_key, self.context, self._master, key)

    def _new_key(self, owner: str, bucket: str, key_id: str | None = None, secret: str | None = None) -> AccessKey:
        fresh_id, fresh_secret = access.generate_pair()
        key_id, secret = key_id or fresh_id, secret or fresh_secret
        access.check_pair(key_id, secret)
        return AccessKey(key_id, secret, owner, bucket, 0)

    async def delete_access_key(self, key_id: str) -> None:
        """Raises NoSuchAccessKey."""
        try:
            await self.engine.transact(access.delete_key, self.context, key_id)
        finally:
            self._records.changed(access=key_id)

    async def revoke_access_key(self, key_id: str) -> AccessRecord:
        """Delete a key that is not root's. Raises NoSuchAccessKey, InvalidArgument."""
        try:
            return await self.engine.transact(access.revoke_key, self.context, key_id)
        finally:
            self._records.changed(access=key_id)

    async def rotate_access_key(self, key_id: str, *, keep: bool = False) -> AccessKey:
        """A new pair that may do what a key may, which is deleted unless it is to be kept. Raises as
        `access.rotate_key`."""
        pair = access.generate_pair()
        try:
            return await self.engine.transact(access.rotate_key, self.context, self._master, key_id, pair, keep)
        finally:
            self._records.changed(access=key_id)

    async def list_access_keys(self, owner: str | None, after: str = "", limit: int = 1000) -> list[AccessRecord]:
        """An owner's keys, or everybody's (None), in order of their ids; their secrets stay sealed."""
        if owner is None:
            return await self.engine.read(access.list_all_keys, self.context, after, limit)
        return await self.engine.read(access.list_keys, self.context, owner, after, limit)

    async def ensure_root(self, key_id: str | None = None, secret: str | None = None) -> tuple[AccessKey, bool]:
        """The root key pair, and whether this call stored it: the given pair, or the one there is, or a fresh one."""
        given = bool(key_id and secret)
        wanted = self._new_key(access.ROOT_OWNER, "", key_id if given else None, secret if given else None)
        return await self.engine.transact(access.ensure_root, self.context, self._master, wanted, given)

    async def rotate_master_key(self, new: MasterKey) -> None:
        """Seal every secret with `new` and put it in force.

        Done in bounded transactions; if interrupted, run it again. No access key can be made meanwhile. Other nodes go
        on until they meet a secret sealed anew; restart them with the new key.

        Raises:
            WrongMasterKey: this store's key is not the one in force, or another rotation is under way.
        """
        old = self._master
        if new.id == old.id:
            return
        await self.engine.transact(access.begin_rotation, self.context, old, new)
        await self.engine.transact(origins.reseal_origins, self.context, old, new)
        after = await self.engine.transact(access.rotate_some, self.context, old, new, "")
        while after:
            after = await self.engine.transact(access.rotate_some, self.context, old, new, after)
        await self.engine.transact(access.end_rotation, self.context, old, new)
        self._master = new
        self._records.clear()

    # --- buckets

    async def create_bucket(
        self,
        name: str,
        owner: str,
        *,
        public: bool = False,
        public_list: bool = False,
        versioning: str = NEVER,
        region_policy: str = "",
        read_mode: str = STRONG,
        durability: str = LOCAL,
        storage_class: str = DEFAULT_STORAGE_CLASS,
        documents: Mapping[str, bytes] = MappingProxyType({}),
    ) -> Bucket:
        """A bucket with configuration documents, by their kinds.

        Raises:
            InvalidBucketName, BucketAlreadyOwnedByYou, BucketAlreadyExists, InvalidArgument (regions, durability,
            read mode).
        """
        bucket = self._new_bucket(
            name,
            owner,
            versioning=versioning,
            public=public,
            public_list=public_list,
            region_policy=region_policy,
            read_mode=parse_read_mode(read_mode),
            durability=durability,
            storage_class=storage_class,
        )
        return await self.engine.transact(buckets.create_bucket, self.context, bucket, documents)

    def _new_bucket(self, name: str, owner: str, **fields: Any) -> Bucket:
        buckets.check_bucket_name(name)
        return Bucket(secrets.token_bytes(16), name, owner, 0, **policy_fields(fields, self.regions))

    async def create_storage(
        self,
        name: str,
        owner: str,
        public: bool = False,
        region_policy: str = "",
        durability: str = LOCAL,
        read_mode: str = STRONG,
        shadow: OriginPlace | None = None,
        write_through: bool = False,
    ) -> tuple[Bucket, AccessKey]:
        """A bucket, which may look through to a shadow, and a key pair scoped to it, both or neither. Raises as
        `create_bucket`; MasterKeyRotating."""
        bucket = self._new_bucket(
            name,
            owner,
            public=public,
            public_list=public,
            region_policy=region_policy,
            durability=durability,
            read_mode=parse_read_mode(read_mode),
        )
        key = self._new_key(owner, name)
        fresh_id = secrets.token_bytes(16)
        also: dict[str, object] = {"write_through": write_through}

        async def create_storage(tr: Transaction) -> tuple[Bucket, AccessKey]:
            made = await buckets.create_bucket(tr, self.context, bucket)
            if shadow is not None:
                made = await origins.use_origin(
                    tr, self.context, self._master, name, origins.SHADOW, shadow, fresh_id, also
                )
            return made, await access.create_key(tr, self.context, self._master, key)

        return await self.engine.transact(create_storage)

    async def bucket(self, name: str) -> Bucket:
        """The bucket of this name. Cached. Raises NoSuchBucket."""
        cached = self._records.buckets.get(name)
        if cached is not None:
            return cached
        with self.outage:
            return await self._records.load(self._records.buckets, name, buckets.read_bucket, self.context, name)

    async def delete_bucket(self, name: str) -> None:
        """Raises NoSuchBucket, BucketNotEmpty."""
        await self._change(name, buckets.delete_bucket, self.context, name)

    async def list_buckets(
        self, owner: str | None, bucket_scope: str = "", prefix: str = "", after: str = "", limit: int = 10_000
    ) -> tuple[list[Bucket], str]:
        """Buckets in order of their names, and the name to go on after (empty at the end).

        `owner` None: everybody's. `bucket_scope`: at most this one (a scoped key sees no other).
        """
        if bucket_scope:
            try:
                only = await self.bucket(bucket_scope)
            except NoSuchBucket:
                return [], ""
            seen = only.name.startswith(prefix) and only.name > after and owner in (None, only.owner) and limit > 0
            return ([only] if seen else []), ""
        return await self.engine.read(buckets.list_buckets, self.context, owner, prefix, after, limit)

    async def set_versioning(self, name: str, status: str) -> Bucket:
        """Raises NoSuchBucket, InvalidArgument."""
        return await self._change(name, buckets.set_versioning, self.context, name, status)

    async def change_bucket(self, name: str, **changes: object) -> Bucket:
        """Replace fields of the bucket's record (public, public_list, region_policy, ...).

        Policies hold for what is written from then on.

        Raises:
            NoSuchBucket, InvalidArgument (regions, durability, read mode).
        """
        changes = policy_fields(changes, self.regions)
        if isinstance(mode := changes.get("read_mode"), str):
            changes["read_mode"] = parse_read_mode(mode)
        return await self._change(name, buckets.change_bucket, self.context, name, changes)

    async def _change(self, name: str, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        """Change the record of a bucket: whatever becomes of that, what this process knew of it counts no more."""
        try:
            return await self.engine.transact(fn, *args)
        finally:
            self._records.changed(bucket=name)

    async def bucket_config(self, name: str, kind: str) -> bytes | None:
        """The bucket's configuration document of `kind`, None if it has none. Cached. Raises NoSuchBucket."""
        bucket = await self.bucket(name)
        if kind not in bucket.configs:
            return None
        slot = (bucket.id, kind)
        cached = self._records.configs.get(slot)
        if cached is not None:
            return cached
        return await self._records.load(self._records.configs, slot, buckets.read_config, self.context, bucket, kind)

    async def put_bucket_config(self, name: str, kind: str, document: bytes) -> None:
        """Raises NoSuchBucket."""
        await self._change(name, buckets.put_config, self.context, name, kind, document)

    async def delete_bucket_config(self, name: str, kind: str) -> None:
        """Remove the bucket's document of `kind`, if it has one. Raises NoSuchBucket."""
        await self._change(name, buckets.delete_config, self.context, name, kind)

    # --- server access logging

    async def log_requests(self, name: str, target: str, prefix: str, partition: str) -> Logging:
        """Have the requests to a bucket logged. Raises NoSuchBucket, InvalidTargetBucketForLogging."""
        return await self.engine.transact(server_logging.enable, self.context, name, target, prefix, partition)

    async def log_no_requests(self, name: str) -> None:
        """Log the requests to a bucket no longer. Raises NoSuchBucket."""
        await self.engine.transact(server_logging.disable, self.context, name)

    async def logging(self, bucket: Bucket) -> Logging | None:
        """Where the requests to a bucket are logged, None: nowhere."""
        return await self.engine.read(server_logging.read, self.context, bucket)

    async def logged_buckets(self) -> list[Logging]:
        """All buckets whose requests are logged, and those whose requests were until lately."""
        found: list[Logging] = []
        while True:
            after = found[-1].bucket if found else b""
            page = await self.engine.read(server_logging.page, self.context, after)
            found += page
            if len(page) < server_logging.PAGE:
                return found

    async def forget_logging(self, bucket_id: bytes) -> None:
        """Remove what is kept of a bucket whose requests are logged no longer."""
        await self._background.transact(server_logging.forget, self.context, bucket_id)

    # --- inventories

    async def put_inventory(self, name: str, id_: str, document: bytes, *, enabled: bool, weekly: bool) -> None:
        """Have reports made on what a bucket holds. Raises NoSuchBucket, TooManyConfigurations."""
        await self.engine.transact(inventories.put, self.context, name, id_, document, enabled, weekly)

    async def inventory(self, bucket: Bucket, id_: str) -> Inventory:
        """Raises NoSuchConfiguration."""
        return await self.engine.read(inventories.get, self.context, bucket, id_)

    async def list_inventories(self, bucket: Bucket, after: str, limit: int) -> list[Inventory]:
        """Up to `limit` configurations in order of their ids, after the id `after`."""
        return await self.engine.read(inventories.page, self.context, bucket, after, limit)

    async def delete_inventory(self, name: str, id_: str) -> None:
        """Raises NoSuchBucket, NoSuchConfiguration."""
        await self.engine.transact(inventories.delete, self.context, name, id_)

    # --- origins

    async def use_origin(self, name: str, purpose: str, place: OriginPlace | None, **also: object) -> Bucket:
        """Have a bucket use the origin at `place` (None: none any more) as its `origins.SHADOW` or `origins.BACKING`,
        and change the fields `also` of its record with it.

        Raises:
            NoSuchBucket, InvalidArgument. MasterKeyRotating.
        """
        also = policy_fields(also, self.regions)
        fresh_id = secrets.token_bytes(16)
        return await self._change(
            name, origins.use_origin, self.context, self._master, name, purpose, place, fresh_id, also
        )

    async def origin(self, origin_id: bytes) -> OriginPlace | None:
        """Where an origin is, and with which credentials; None where there is no such origin."""
        return await self.engine.read(origins.read_origin, self.context, self._master, origin_id)

    async def origins(self) -> list[OriginRecord]:
        """Every origin, its credentials sealed."""
        return await self.engine.read(origins.list_origins, self.context)

    async def adopt(
        self, bucket: Bucket, key: str, draft: Draft, modified_ns: int, source: Elsewhere
    ) -> ObjectVersion | None:
        """Make an object of the bucket's shadow the bucket's own; None where the key is, or was, in use here.

        Raises:
            NoSuchBucket.
        """
        token = self._token(bucket)
        return await self._write(
            bucket, (key,), shadows.adopt, self.context, bucket, token, key, draft, modified_ns, source
        )

    async def readopt(
        self, bucket: Bucket, key: str, seen: ObjectVersion, draft: Draft | None, modified_ns: int, source: Elsewhere
    ) -> bool:
        """Replace an adopted version whose bytes never came by what the origin has by now. Raises NoSuchBucket."""
        token = self._token(bucket)
        return await self._write(
            bucket, (key,), shadows.readopt, self.context, bucket, token, key, seen, draft, modified_ns, source
        )

    async def is_untouched(self, bucket: Bucket, key: str) -> bool:
        """Whether a bucket has, and has had, nothing under `key` since it looks through to its shadow."""
        return await self.engine.read(shadows.is_untouched, self.context, bucket, key)

    async def untouched(self, bucket: Bucket, keys: Sequence[str]) -> set[str]:
        """Those of a few hundred keys at most of which `is_untouched` holds."""
        return await self.engine.read(shadows.untouched, self.context, bucket, keys)

    async def standings(self, bucket: Bucket, keys: Sequence[str]) -> list[shadows.Standing]:
        """How each of a few hundred keys at most stands beside the bucket's shadow."""
        return await self.engine.read(shadows.standings, self.context, bucket, keys)

    async def begin_migration(self, name: str, prefix: str = "", rate: int = 0) -> tuple[Bucket, Migration]:
        """Have everything of a bucket's shadow adopted whose key starts with `prefix`, at most `rate` objects a second.
        Raises NoSuchBucket, InvalidRequest (no shadow)."""
        return await self.engine.transact(shadow_migration.begin, self.context, name, prefix, rate)

    async def migration_standing(self, bucket: Bucket) -> tuple[Migration | None, Item | None, Item | None]:
        """The bucket's last migration, the item that goes on with it, and the dead letter of one that was given up."""
        return await self.engine.read(shadow_migration.standing, self.context, bucket.id)

    async def under_prefixes(self, bucket: Bucket, prefixes: Sequence[str]) -> dict[str, tuple[bool, bool]]:
        """Of each of a few hundred prefixes at most, whether a live object is under it, and whether anything there was
        touched."""
        return await self.engine.read(shadows.under_prefixes, self.context, bucket, prefixes)

    async def whiteouts(self, bucket: Bucket, prefix: str, after: str, limit: int) -> list[str]:
        """Keys that were deleted in a bucket with a shadow, in order."""
        return await self.engine.read(shadows.whiteouts, self.context, bucket.id, prefix, after, limit)

    async def usage(self, bucket: Bucket) -> Usage:
        """The bucket's counters of objects, other versions, and bytes."""
        return await self.engine.read(buckets.usage, self.context, bucket.id)

    # --- objects

    async def put_object(
        self, bucket: Bucket, key: str, draft: Draft, condition: WriteCondition | None = None
    ) -> ObjectVersion:
        """Make `draft` the newest version.

        Raises:
            NoSuchBucket, NoSuchKey, PreconditionFailed, KeyTooLong, BlobDead.
            NotBacked: the bucket writes through, and the draft's blob is at no origin.
        """
        check_key(key)
        return await self._write(
            bucket, (key,), objects.put_object, self.context, bucket, self._token(bucket), key, draft, condition
        )

    async def _write(self, bucket: Bucket, keys: Iterable[str], fn: Callable[..., Awaitable[T]], *args: object) -> T:
        """Write objects: whatever becomes of that, reads through this process ask the database for them again."""
        try:
            return await self.engine.transact(fn, *args)
        finally:
            for key in keys:
                self._recollection.forget((bucket.id, key))

    async def find_object(
        self, bucket: Bucket, key: str, version_id: str | None = None, *, prove: bool = False
    ) -> Found:
        """A version, with its inline bytes or its manifest.

        `prove`: the caller has not refreshed, so prove in the same read that every cached record still holds.

        Raises:
            NoSuchKey, NoSuchVersion, MethodNotAllowed (a delete marker), InvalidArgument, KeyTooLong.
            RecordsChanged: only with `prove`.
            EngineUnavailable: with `prove` at once, while the database is known to be away.
        """
        check_key(key)
        if prove and bound_ns(bucket.read_mode):
            found = (await self._remember(bucket, key, version_id, whole=True)).found
            assert found is not None
            return found
        read = self._prove if prove else self.engine.read
        return await self._with_manifest(await read(objects.find_object, self.context, bucket, key, version_id))

    async def _with_manifest(self, found: Found) -> Found:
        if found.version.parts:
            return Found(found.version, None, await self._manifest(found.version.content))
        return found

    async def _manifest(self, content_id: bytes) -> tuple[Part, ...]:
        parts = self._manifests.get(content_id)
        if parts is None:
            with self.outage:
                parts = await self.engine.read(blobs.load_parts, self.context, content_id)
            self._manifests.put(content_id, parts)
        return parts

    async def head_object(
        self, bucket: Bucket, key: str, version_id: str | None = None, *, prove: bool = False
    ) -> ObjectVersion:
        """A version without its bytes or manifest. `prove` and errors as for `find_object`."""
        check_key(key)
        if prove and bound_ns(bucket.read_mode):
            return (await self._remember(bucket, key, version_id, whole=False)).version
        read = self._prove if prove else self.engine.read
        return await read(objects.head_object, self.context, bucket, key, version_id)

    async def _prove(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        with self.outage:
            return await self._records.prove(fn, *args)

    # --- reads of bounded buckets

    async def _remember(self, bucket: Bucket, key: str, version_id: str | None, *, whole: bool) -> Entry:
        """Find a version in the database, and keep it; what is not there any more is forgotten."""
        place = bucket.id, key
        true_ns = self._monotonic_ns()
        found = None
        with self._recollection.reading(place) as reading:
            try:
                if whole:
                    found = await self._prove(objects.find_object, self.context, bucket, key, version_id)
                    found = await self._with_manifest(found)
                    version = found.version
                else:
                    version = await self._prove(objects.head_object, self.context, bucket, key, version_id)
            except RecordsChanged:
                raise  # it says nothing about the object
            except MetadataError:
                self._recollection.forget_version(place, version_id)
                raise
            return self._recollection.keep(place, version_id, version, found, true_ns, reading)

    def is_bounded(self, bucket_name: str) -> bool:
        """Whether the bucket is known to be bounded: else there is nothing to recall."""
        known = self._records.known_bucket(bucket_name)
        return known is not None and bound_ns(known[0].read_mode) > 0

    def recall(
        self, bucket_name: str, key: str, version_id: str | None, key_id: str | None, *, whole: bool
    ) -> Recalled | None:
        """What a read of an object in a bounded bucket can be answered from without the database, however old.

        None where the bucket is not bounded, or something is not known: `key_id` is the caller's access key (None:
        nobody's), and `whole` asks for where the bytes are too. What is older than the bucket's bound, and than the
        limit of an outage, is not known.
        """
        known = self._records.known_bucket(bucket_name)
        if known is None or not (bound := bound_ns(known[0].read_mode)):
            return None
        bucket, true_ns = known
        access_key = None
        if key_id is not None:
            known_access = self._records.known_access(key_id)
            if known_access is None:
                return None
            access_key, access_ns = known_access
            true_ns = min(true_ns, access_ns)
        entry = self._recollection.get((bucket.id, key), version_id)
        if entry is None or (whole and entry.found is None):
            return None
        age_ns = self._monotonic_ns() - min(true_ns, entry.true_ns)
        if age_ns > max(bound, self._bounds.outage_ns):
            return None
        return Recalled(access_key, bucket, key, version_id, entry, age_ns, bound)

    async def renew(self, recalled: Recalled, bucket_name: str, key_id: str | None, *, whole: bool) -> Recalled | None:
        """What was recalled, proven anew; as it is where the database is away, or does not answer in time.

        None: only the database can say more, and it answers.
        """
        bucket, key, version_id = await recalled.bucket(bucket_name), recalled.key, recalled.version_id
        if not self.outage.under_way:
            read = self.find_object if whole else self.head_object
            try:
                async with asyncio.timeout(self._bounds.wait_s):
                    await read(bucket, key, version_id, prove=True)
            except TimeoutError:
                self.outage.suspect()
            except EngineUnavailable:
                pass  # which `outage` has noticed
            except (MetadataError, EngineError):
                return None
        again = self.recall(bucket_name, key, version_id, key_id, whole=whole)
        return again if self.outage.under_way or (again is not None and again.fresh) else None

    async def object_parts(self, version: ObjectVersion) -> tuple[Part, ...]:
        """The manifest of a multipart object, in order; empty for others."""
        return await self._manifest(version.content) if version.parts else ()

    async def delete_object(
        self, bucket: Bucket, key: str, version_id: str | None = None, condition: WriteCondition | None = None
    ) -> Deletion:
        """Raises NoSuchBucket, InvalidArgument (version id), NoSuchKey and PreconditionFailed (condition)."""
        check_key(key)
        return await self._write(
            bucket, (key,), objects.delete_object, self.context, bucket, self._token(bucket), key, version_id, condition
        )

    async def delete_objects(
        self, bucket: Bucket, targets: Sequence[tuple[str, str | None, WriteCondition | None]]
    ) -> list[Deletion | MetadataError]:
        """Delete many: (key, version id, condition) each; what happened to each, in the same order.

        Each key is deleted or not by itself; batches of them share a transaction. Raises NoSuchBucket.
        """
        token = self._token(bucket)
        outcomes: list[Deletion | MetadataError] = []

        async def delete_batch(
            tr: Transaction, batch: Sequence[tuple[str, str | None, WriteCondition | None]]
        ) -> list[Deletion | MetadataError]:
            done: list[Deletion | MetadataError] = []
            # All are asked for together. A key that is named twice is read again, after what its first deletion wrote.
            stored = {key: objects.ask_current(tr, self.context, bucket, key) for key, _, _ in batch if is_key(key)}
            for key, version_id, condition in batch:
                try:
                    check_key(key)
                    done.append(
                        await objects.delete_object(
                            tr, self.context, bucket, token, key, version_id, condition, stored.pop(key, None)
                        )
                    )
                except NoSuchBucket:
                    raise
                except MetadataError as error:  # raised before anything of this key is written
                    done.append(error)
            return done

        for start in range(0, len(targets), DELETE_BATCH):
            some = targets[start : start + DELETE_BATCH]
            outcomes += await self._write(bucket, [key for key, _, _ in some], delete_batch, some)
        return outcomes

    async def copy_object(
        self,
        source: tuple[Bucket, str, str | None],
        read_condition: ReadCondition | None,
        bucket: Bucket,
        key: str,
        draft_from: Callable[[ObjectVersion], Draft],
        condition: WriteCondition | None = None,
        *,
        alive: Alive | None = None,
    ) -> tuple[ObjectVersion, ObjectVersion]:
        """A new version of `key` that shares the source's bytes; (source version, new version).

        `draft_from` says what the new version says about itself (start from `records.copy_draft`); it must be pure.
        `alive` are the nodes that count where the bytes are to be on several; None: this one.

        Raises:
            NoSuchKey, NoSuchVersion, InvalidRequest: the source. PreconditionFailed: either. NoSuchBucket, ContentGone.
            HomesLacking, NotBacked: the bytes are on too few nodes, or at no origin, where the bucket writes through.
        """
        check_key(source[1])
        check_key(key)
        return await self._write(
            bucket,
            (key,),
            objects.copy_object,
            self.context,
            source,
            read_condition,
            bucket,
            self._token(bucket),
            key,
            draft_from,
            condition,
            self._alive(alive),
        )

    def _alive(self, alive: Alive | None) -> Alive:
        home = self.context.home
        return {home.node: home.region} if alive is None else alive

    async def put_object_tags(
        self, bucket: Bucket, key: str, version_id: str | None, tags: dict[str, str]
    ) -> ObjectVersion:
        """Replace a version's tags (empty: remove them). Raises as `find_object`, NoSuchBucket."""
        check_key(key)
        return await self._write(
            bucket, (key,), objects.put_tags, self.context, bucket, self._token(bucket), key, version_id, tags
        )

    # --- listings

    async def list_objects(
        self, bucket: Bucket, prefix: str = "", delimiter: str = "", after: str = "", limit: int = 1000
    ) -> ObjectPage:
        """A page of live objects: keys and common prefixes after `after`, together at most `limit`.

        `after` is a marker, start-after or the `last` of an earlier page; if it lies in a common prefix, all of that is
        left out.
        """
        scan = listing.objects_scan(self.context, bucket, prefix, delimiter, after, limit)
        return listing.objects_page(await listing.run(self.engine.read, _pause, scan))

    async def list_versions(
        self,
        bucket: Bucket,
        prefix: str = "",
        delimiter: str = "",
        key_marker: str = "",
        version_id_marker: str = "",
        limit: int = 1000,
    ) -> VersionPage:
        """A page of versions and delete markers, newest first within a key. Raises InvalidArgument (markers)."""
        listing.check_version_markers(key_marker, version_id_marker)
        marker = None
        if version_id_marker:
            marker = await self.engine.read(listing.marker_stamp, self.context, bucket, key_marker, version_id_marker)
        scan = listing.versions_scan(self.context, bucket, prefix, delimiter, key_marker, marker, limit)
        return listing.versions_page(await listing.run(self.engine.read, _pause, scan))

    async def list_uploads(
        self,
        bucket: Bucket,
        prefix: str = "",
        delimiter: str = "",
        key_marker: str = "",
        upload_id_marker: str = "",
        limit: int = 1000,
    ) -> UploadPage:
        """A page of uploads in progress, by key and then upload id. The id marker counts only beside a key marker."""
        row = None
        if key_marker and upload_id_marker:
            row = uploads.marker_row(self.context, bucket.id, key_marker, upload_id_marker)
        scan = listing.uploads_scan(self.context, bucket, prefix, delimiter, key_marker, row, limit)
        return listing.uploads_page(await listing.run(self.engine.read, _pause, scan))

    # --- multipart uploads

    async def create_upload(self, bucket: Bucket, key: str, draft: UploadDraft) -> Upload:
        """Raises NoSuchBucket, KeyTooLong."""
        check_key(key)
        content_id = secrets.token_bytes(16)
        return await self.engine.transact(
            uploads.create_upload, self.context, bucket, self._token(bucket), key, content_id, draft
        )

    async def upload(self, bucket: Bucket, key: str, upload_id: str) -> Upload:
        """The upload in progress. Raises NoSuchUpload."""
        check_key(key)
        content_id = uploads.parse_upload_id(upload_id)
        return await self.engine.read(uploads.read_upload, self.context, bucket, key, content_id)

    async def put_part(
        self,
        bucket: Bucket,
        key: str,
        upload_id: str,
        part: Part,
        elsewhere: Elsewhere | None = None,
        *,
        alive: Alive | None = None,
    ) -> Part:
        """Record a part whose blob is finished; its time and node are filled in. `elsewhere` is where an origin has it,
        `alive` as for `copy_object`.

        Raises:
            NoSuchUpload, InvalidArgument (number), EntityTooLarge, BlobDead.
            ContentGone, HomesLacking: a slice's source.
        """
        check_key(key)
        uploads.check_part(part)
        content_id = uploads.parse_upload_id(upload_id)
        return await self.engine.transact(
            uploads.put_part, self.context, bucket, key, content_id, part, self._alive(alive), elsewhere
        )

    async def list_parts(self, bucket: Bucket, key: str, upload_id: str, after: int = 0, limit: int = 1000) -> PartPage:
        """The upload and its parts whose numbers are above `after`, at most `limit`. Raises NoSuchUpload."""
        check_key(key)
        content_id = uploads.parse_upload_id(upload_id)
        return await self.engine.read(uploads.list_parts, self.context, bucket, key, content_id, after, limit)

    async def complete_upload(
        self,
        bucket: Bucket,
        key: str,
        upload_id: str,
        parts: Sequence[CompletedPart],
        *,
        combine: uploads.Combine,
        composite: uploads.Composite,
        condition: WriteCondition | None = None,
        expected_checksum: tuple[str, str] | None = None,
        expected_type: str | None = None,
        expected_size: int | None = None,
        alive: Alive | None = None,
    ) -> ObjectVersion:
        """Make the listed parts an object; the others are discarded.

        `combine(algorithm, [(crc, size)])` computes full-object CRCs, `composite(algorithm, [checksum])` the others,
        all in base64. What is expected is what the request says of the whole: (algorithm, base64), checksum type, size
        in bytes. Repeating a completion with the same list gives the same version as the first time. `alive` is as for
        `copy_object`.

        Raises:
            MalformedPartList, InvalidPartOrder, InvalidPart, EntityTooSmall, EntityTooLarge, InvalidRequest,
            BadChecksum, NoSuchUpload, NoSuchBucket, NoSuchKey and PreconditionFailed (condition), HomesLacking.
        """
        check_key(key)
        content_id = uploads.parse_upload_id(upload_id)
        uploads.check_part_list(upload_id, parts)
        prepared = None
        if len(parts) > PREPARE_PARTS:
            prepared = await self._prepare(bucket, key, content_id, parts, combine, composite)
        return await self._write(
            bucket,
            (key,),
            uploads.complete_upload,
            self.context,
            bucket,
            self._token(bucket),
            key,
            content_id,
            parts,
            combine,
            composite,
            condition,
            uploads.Expected(expected_checksum, expected_type, expected_size),
            prepared,
            self._alive(alive),
        )

    async def _prepare(
        self,
        bucket: Bucket,
        key: str,
        content_id: bytes,
        parts: Sequence[CompletedPart],
        combine: uploads.Combine,
        composite: uploads.Composite,
    ) -> uploads.Prepared | None:
        """The checksum of many parts, computed where it holds up neither the event loop nor the writers."""
        try:
            upload, chosen = await self.engine.read(uploads.choose, self.context, bucket, key, content_id, parts)
        except NoSuchUpload:
            return None  # completed already, perhaps: the transaction will tell
        checksum = await asyncio.to_thread(uploads.object_checksum, upload, chosen, combine, composite)
        return uploads.Prepared(chosen, checksum)

    async def abort_upload(self, bucket: Bucket, key: str, upload_id: str) -> None:
        """Raises NoSuchUpload."""
        check_key(key)
        content_id = uploads.parse_upload_id(upload_id)
        await self.engine.transact(uploads.abort_upload, self.context, bucket, key, content_id)

    async def background(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        """Run a transaction function that nobody waits for."""
        return await self._background.transact(fn, *args)

    # --- nodes, and what they hold

    @property
    def regions(self) -> Regions:
        """What the names in policies mean; whoever knows of the store's nodes keeps it up to date."""
        return self.context.regions

    async def nodes(self) -> list[tuple[Node, Beat | None]]:
        """Every node of the store with its last beat; removed ones too."""
        return await self._background.read(nodes.list_nodes, self.context)

    async def join(self, node: Node) -> Node:
        """Record that a node has started. Raises NodeRemoved, ProtocolsApart."""
        return await self.engine.transact(nodes.join, self.context, node)

    async def beat(self, node_id: bytes, sign: Beat) -> bool:
        """Show that a node is alive. False: it has been removed."""
        return await self.engine.transact(nodes.beat, self.context, node_id, sign)

    async def set_node_state(self, node_id: bytes, state: str) -> Node:
        """Raises NoSuchNode; NodeRemoved: nothing undoes a removal."""
        return await self.engine.transact(nodes.set_state, self.context, node_id, state)

    async def drain_node(self, node_id: bytes) -> Node:
        """Let a node take no new homes, and have it give up those that it has. Raises as `set_node_state`."""
        return await self.engine.transact(nodes.drain, self.context, node_id)

    async def locate(self, blob_id: bytes) -> Located | None:
        """Which nodes hold a live blob; None where it is dead or forgotten."""
        return await self.engine.read(homes.locate, self.context, blob_id)

    async def begin_home(self, content_id: bytes, *, ahead: bool = False) -> Held | None:
        """Announce that this node is about to hold a content, before its bytes are made durable; `homes.add_home` then
        records that they are. None: the content is gone, or this node holds it. `ahead`: of a write that waits."""
        engine = self.engine if ahead else self._background
        return await engine.transact(homes.begin_home, self.context, content_id, ahead)

    async def drop_home(self, content_id: bytes, alive: Alive) -> bool:
        """Give up this node's home of a content. False: it has to stay, for others are too few."""
        return await self._background.transact(homes.drop_home, self.context, content_id, alive)

    async def begin_parts(self, content_id: bytes, leaving: Container[bytes]) -> list[tuple[bytes, int]] | None:
        """Announce that this node is about to hold parts of an upload in progress that nodes hold which leave, before
        their bytes are made durable; `uploads.take_parts` then records that they are. Blobs and their sizes; None:
        there are no such parts."""
        return await self._background.transact(uploads.begin_parts, self.context, content_id, leaving)

    async def held(self, content_id: bytes) -> Held | None:
        """What a home of a content holds; None where it is dead."""

        async def read(tr: Transaction) -> Held | None:
            content = await homes.read_content(tr, self.context, content_id)
            return None if content is None else await homes.held(tr, self.context, content_id, content)

        return await self._background.read(read)

    # --- what origins hold of it

    async def announce_backing(self, content_id: bytes) -> bytes | None:
        """Begin to write a content to its origin; the origin's id. None: it is not to be, or by another node."""
        return await self._background.transact(backing.announce, self.context, content_id)

    async def unwritten(self, origin_id: bytes, blob_ids: Sequence[bytes]) -> list[bytes]:
        """Those of `blob_ids` of which it is not noted that the origin has them."""
        found: list[bytes] = []
        for start in range(0, len(blob_ids), UNWRITTEN_BATCH):
            some = blob_ids[start : start + UNWRITTEN_BATCH]
            found += await self._background.read(backing.unwritten, self.context, origin_id, some)
        return found

    async def note_written(
        self, content_id: bytes, origin_id: bytes, written: Sequence[tuple[bytes, Elsewhere]]
    ) -> bool:
        """Note where the origin has blobs of a content. False: it is no more this node's to write."""
        noted = await self._background.transact(backing.note, self.context, content_id, origin_id, written)
        return noted is not None

    async def forgo_backing(self, content_id: bytes, alive: Alive) -> bytes | None:
        """Let an origin hold a content no longer; whose objects may go then. None: it has to stay."""
        return await self._background.transact(backing.forgo, self.context, content_id, alive)

    async def want_backing(self, content_id: bytes, origin_id: bytes) -> bool:
        """Have a content written to an origin. True: one holds it, or it is gone."""
        return await self.engine.transact(backing.want, self.context, content_id, origin_id)

    async def owe_discard(self, bucket: Bucket, blob_id: bytes, origin_id: bytes) -> None:
        """Have what an origin is sent for a blob deleted, should the blob not be committed within the hour."""
        await self.engine.transact(backing.owe_discard, self.context, bucket.id, blob_id, origin_id)

    async def give_up_blob(self, blob_id: bytes) -> bool:
        """Decide a blob that an origin was sent. True: it is not committed, and never will be."""
        return await self._background.transact(backing.give_up_blob, self.context, blob_id)

    async def dead_elsewhere(self, content_id: bytes) -> list[tuple[bytes, bytes]]:
        """What origins may have of a dead content: (origin, blob) each."""
        return await self._background.read(blobs.dead_elsewhere, self.context, content_id)

    async def blob_elsewhere(self, blob_id: bytes) -> Elsewhere | None:
        """Where an origin has a blob, as far as it is noted."""
        return await self._background.read(blobs.blob_elsewhere, self.context, blob_id)

    async def homes_of(self, node: bytes, after: bytes = b"", limit: int = 1000) -> list[bytes]:
        """Contents that a node holds, in the order of their ids, after the id `after`."""
        return await self._background.read(homes.homes_of, self.context, node, after, limit)

    async def owe_warm_objects(self, bucket: Bucket, keys: Sequence[str]) -> None:
        """Have copies of what the live versions of `keys` consist of fetched into the caches of this region, in the
        background. What is asked for twice is owed once."""
        for start in range(0, len(keys), WARM_BATCH):
            await self.engine.transact(homes.owe_warm_objects, self.context, bucket, keys[start : start + WARM_BATCH])

    # --- blobs and contents: nobody waits for these

    async def settle_blob(self, blob_id: bytes) -> bool:
        """Decide a blob whose writer is dead: True, it was committed; False, it is dead for ever."""
        return await self._background.transact(blobs.settle_blob, self.context, blob_id)

    async def blob(self, blob_id: bytes) -> Blob | None:
        """The commit state of a blob; None if it was never committed nor settled, or is forgotten."""
        raw = await self._background.read(_get, self.context.keys.blob(blob_id))
        return blob_codec.decode(raw) if raw is not None else None

    async def content(self, content_id: bytes) -> Content | None:
        raw = await self._background.read(_get, self.context.keys.content(content_id))
        return content_codec.decode(raw) if raw is not None else None

    async def reclaim_content(self, content_id: bytes) -> list[bytes] | None:
        """Prove that nothing refers to a content and mark it dead; the blobs to delete, or None if it is in use.

        Delete their files, then call `forget_content`. Repeating it gives the same blobs until they are forgotten.
        """
        if not await self._background.transact(blobs.condemn_content, self.context, content_id):
            return None
        return await self._background.read(blobs.dead_blobs, self.context, content_id)

    async def leave_content(self, content_id: bytes) -> bool:
        """Note that this node has no bytes of a dead content any more. True: nor has any other node."""
        return await self._background.transact(blobs.leave_dead, self.context, content_id)

    async def forget_content(self, content_id: bytes) -> None:
        """This node's bytes of a dead content are gone: if nobody else has any, remove every row of it, in bounded
        transactions. Does nothing to a live one."""
        if not await self._background.transact(blobs.leave_dead, self.context, content_id):
            return
        while not await self._background.transact(blobs.forget_some, self.context, content_id):
            pass
        self._manifests.drop(content_id)

    async def is_held_here(self, blob_id: bytes) -> bool:
        """Whether this node holds a live blob, or is on the way to or from it."""
        return await self._background.read(homes.is_held_here, self.context, blob_id)

    async def reclaim_blob(self, blob_id: bytes) -> bool:
        """Mark one blob dead unless its content uses it. True: delete its files, then call `forget_blob`."""
        return await self._background.transact(blobs.condemn_blob, self.context, blob_id)

    async def forget_blob(self, blob_id: bytes) -> None:
        """Remove the row of a dead blob whose files are gone."""
        await self._background.transact(blobs.forget_blob, self.context, blob_id)


async def _get(tr: Transaction, key: bytes) -> bytes | None:
    return await tr.get(key)


async def _pause() -> None:
    await asyncio.sleep(0)
