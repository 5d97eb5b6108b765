"""What a process remembers of the database, and for how long that is true.

`RecordCache` holds buckets, access keys and configuration documents. They are valid while the database's metadata
version is unchanged, which `refresh` checks once per request. Whatever changes or removes such a record bumps that
version in the same transaction; creation does not, because absence is never cached. Reads of bounded buckets
(`bounded`) take them from here too, by the moment at which all of them were last known to be true.

`ManifestCache` holds the part lists of multipart contents, which never change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from .bounded import elapsed_ns
from .errors import MetadataError, RecordsChanged
from .kv.engine import Engine, Transaction
from .records import AccessKey, Bucket, Part

K = TypeVar("K")
V = TypeVar("V")
R = TypeVar("R")

RECORDS = 10_000
"""Records that each cache holds before it is emptied."""

MANIFEST_PARTS = 50_000
"""Parts in the manifest cache; about 0.5 kB each."""


async def _metadata_version(tr: Transaction) -> bytes:
    return await tr.metadata_version()


class Proof(Generic[R]):
    """A transaction function: `fn`, and the proof that the metadata version is still `version`.

    Both are asked for together: waiting for the version first would wake the caller twice.
    """

    __slots__ = ("__name__", "_fn", "_version")

    def __init__(self, fn: Callable[..., Awaitable[R]], version: bytes | None) -> None:
        self.__name__ = fn.__name__  # tells the cluster's tools what this is
        self._fn = fn
        self._version = version

    async def __call__(self, tr: Transaction, *args: object) -> R:
        version = tr.metadata_version()
        try:
            found = await self._fn(tr, *args)
        except MetadataError:
            if await version != self._version:
                raise RecordsChanged from None
            raise
        if await version != self._version:
            raise RecordsChanged
        return found


class RecordCache:
    """Records as they are at one metadata version of the database. Every entry is of exactly that version."""

    __slots__ = (
        "_applied",
        "_begun",
        "_engine",
        "_epoch",
        "_former_access",
        "_former_buckets",
        "_monotonic_ns",
        "_true_ns",
        "_version",
        "access",
        "buckets",
        "configs",
    )

    def __init__(self, engine: Engine, monotonic_ns: Callable[[], int] = elapsed_ns) -> None:
        self._engine = engine
        self._monotonic_ns = monotonic_ns
        self._version: bytes | None = None
        self._epoch = 0
        self._begun = 0
        self._applied = 0
        self.buckets: dict[str, Bucket] = {}
        self.access: dict[str, AccessKey] = {}
        self.configs: dict[tuple[bytes, str], bytes] = {}
        self._true_ns = 0
        # What an outage finds of records that were dropped and not asked for since, and when each was last known true.
        self._former_buckets: dict[str, tuple[Bucket, int]] = {}
        self._former_access: dict[str, tuple[AccessKey, int]] = {}

    async def refresh(self) -> None:
        """Drop everything if the metadata version has moved on."""
        self._begun += 1
        mine = self._begun
        began_ns = self._monotonic_ns()
        version = await self._engine.read(_metadata_version)
        if mine < self._applied:
            return  # a refresh that began later has been applied already: what it saw is newer
        self._applied = mine
        if version != self._version:
            self.clear()
            self._version = version
        self._true_ns = max(self._true_ns, began_ns)

    @property
    def version(self) -> bytes | None:
        """The metadata version of every entry, None before the first refresh."""
        return self._version

    async def prove(self, fn: Callable[..., Awaitable[R]], *args: object) -> R:
        """Run a read that proves, in its own snapshot, that every entry still holds.

        So a read that rested on cached records needs no refresh of its own: one round trip instead of two. Whatever
        the read finds, or raises, counts for nothing where an entry does not hold.

        Raises:
            RecordsChanged: refresh, and decide again.
        """
        began_ns = self._monotonic_ns()
        found = await self._engine.read(Proof(fn, self._version), *args)
        # Where the version has moved on meanwhile, what is of the new one has been true since later.
        self._true_ns = max(self._true_ns, began_ns)
        return found

    def known_bucket(self, name: str) -> tuple[Bucket, int] | None:
        """The bucket as far as it is known, and when that was last known to be true on the monotonic clock."""
        bucket = self.buckets.get(name)
        return (bucket, self._true_ns) if bucket is not None else self._former_buckets.get(name)

    def known_access(self, key_id: str) -> tuple[AccessKey, int] | None:
        """The same of a key pair."""
        key = self.access.get(key_id)
        return (key, self._true_ns) if key is not None else self._former_access.get(key_id)

    def changed(self, *, bucket: str = "", access: str = "") -> None:
        """This process has changed or removed records, so that all are outdated; and what they were is no help."""
        self.clear()
        self._former_buckets.pop(bucket, None)
        self._former_access.pop(access, None)

    def clear(self) -> None:
        """Drop every record. What it was may still answer reads of bounded buckets while the database is away."""
        self._retire(self.buckets, self._former_buckets)
        self._retire(self.access, self._former_access)
        self._epoch += 1
        self.buckets.clear()
        self.access.clear()
        self.configs.clear()

    def _retire(self, dropped: dict[str, V], former: dict[str, tuple[V, int]]) -> None:
        if len(former) + len(dropped) > RECORDS:
            former.clear()
        former.update((name, (record, self._true_ns)) for name, record in dropped.items())

    async def load(self, cache: dict[K, V], key: K, fn: Callable[..., Awaitable[R]], *args: object) -> R:
        """Read a record by `fn(tr, *args)`; keep it if it is certain to be of the version that the cache is of."""
        epoch = self._epoch

        async def load_record(tr: Transaction) -> tuple[R, bytes]:
            version = tr.metadata_version()
            return await fn(tr, *args), await version

        former: dict[Any, Any] = self._former_buckets if cache is self.buckets else self._former_access
        try:
            value, version = await self._engine.read(load_record)
        except MetadataError:
            former.pop(key, None)
            raise
        former.pop(key, None)
        if value is not None and version == self._version and epoch == self._epoch:
            if len(cache) >= RECORDS:
                cache.clear()
            cache[key] = value  # type: ignore[assignment]  # R is V or None, and it is not None
        return value

    def token(self, bucket: Bucket) -> bytes | None:
        """The metadata version at which `bucket` is the truth, None where that is not known."""
        return self._version if self.buckets.get(bucket.name) is bucket else None


class ManifestCache:
    """Part lists by content id, the least recently used dropped first, bounded by their parts."""

    __slots__ = ("_manifests", "_parts")

    def __init__(self) -> None:
        self._manifests: OrderedDict[bytes, tuple[Part, ...]] = OrderedDict()
        self._parts = 0

    def get(self, content_id: bytes) -> tuple[Part, ...] | None:
        parts = self._manifests.get(content_id)
        if parts is not None:
            self._manifests.move_to_end(content_id)
        return parts

    def put(self, content_id: bytes, parts: tuple[Part, ...]) -> None:
        """Keep `parts`, unless they are empty: then the content is gone, and its id not worth a place."""
        if not parts or content_id in self._manifests:
            return
        self._manifests[content_id] = parts
        self._parts += len(parts)
        while self._parts > MANIFEST_PARTS and len(self._manifests) > 1:
            _, dropped = self._manifests.popitem(last=False)
            self._parts -= len(dropped)

    def drop(self, content_id: bytes) -> None:
        self._parts -= len(self._manifests.pop(content_id, ()))
