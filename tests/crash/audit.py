"""The whole truth of a stopped or quiet node: every row of its database and every block file, held against each other.

Independent of the code that it judges where that is possible: it walks raw rows and counts for itself. What it finds is
a list of complaints, empty when nothing is lost, leaked or miscounted. The node's own fsck has to agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tigrislike.admin.fsck import fsck
from tigrislike.bytecache import BlockStore
from tigrislike.metadata import Metadata
from tigrislike.metadata.keyspace import unpack_bytes, unpack_int, unpack_stamp, unpack_text
from tigrislike.metadata.owed import RECLAIM_BLOB, RECLAIM_CONTENT
from tigrislike.metadata.records import (
    LIVE,
    NEVER,
    OBJECT,
    Blob,
    Content,
    Item,
    ObjectVersion,
    Part,
    Pointer,
    Referrer,
    Usage,
)
from tigrislike.metadata.records import blob as blob_codec
from tigrislike.metadata.records import bucket as bucket_codec
from tigrislike.metadata.records import content as content_codec
from tigrislike.metadata.records import item as item_codec
from tigrislike.metadata.records import object_version as version_codec
from tigrislike.metadata.records import part as part_codec
from tigrislike.metadata.records import pointer as pointer_codec

_PAGE = 5000


async def dump(metadata: Metadata) -> dict[bytes, bytes]:
    """Every row of the keyspace. Only for a store in which nobody writes."""
    rows: dict[bytes, bytes] = {}
    begin, end = metadata.engine.prefix, metadata.engine.prefix + b"\xfe"
    while True:

        async def page(tr: Any, begin: bytes = begin) -> list[tuple[bytes, bytes]]:
            found: list[tuple[bytes, bytes]] = await tr.get_range(begin, end, limit=_PAGE)
            return found

        found = await metadata.engine.read(page)
        rows.update(found)
        if len(found) < _PAGE:
            return rows
        begin = found[-1][0] + b"\0"


class Rows:
    """The rows, decoded and sorted by family."""

    def __init__(self, metadata: Metadata, rows: dict[bytes, bytes]) -> None:
        keys = metadata.context.keys
        self.versions: dict[tuple[bytes, str, int], ObjectVersion] = {}
        self.live: dict[tuple[bytes, str], ObjectVersion] = {}
        self.inline: dict[tuple[bytes, str, int], int] = {}
        self.buckets: dict[bytes, Any] = {}
        self.contents: dict[bytes, Content] = {}
        self.parts: dict[tuple[bytes, int], Part] = {}
        self.refs: dict[bytes, set[bytes]] = {}
        self.blobs: dict[bytes, Blob] = {}
        self.homes: set[tuple[bytes, bytes]] = set()
        self.uploads: set[bytes] = set()
        self.items: dict[tuple[bytes, bytes], Item] = {}
        self.dead_letters: dict[tuple[bytes, bytes], Item] = {}
        self.due: set[tuple[bytes, bytes]] = set()
        self.zones: set[bytes] = set()
        self.depths: dict[bytes, int] = {}
        self.pointers: dict[bytes, Pointer] = {}
        self.tops: list[tuple[bytes, int]] = []
        self.usage: dict[bytes, Counter[str]] = {}
        self.bare: set[tuple[bytes, str]] = set()
        version_rows: dict[tuple[bytes, str, int], ObjectVersion] = {}

        def key_of(key: bytes, family: bytes) -> tuple[bytes, str, int]:
            """(bucket id, object key, where the rest begins)."""
            bucket_id, at = unpack_bytes(key, len(family))
            text, at = unpack_text(key, at)
            return bucket_id, text, at

        def two(key: bytes, family: bytes) -> tuple[bytes, bytes]:
            first, at = unpack_bytes(key, len(family))
            return first, unpack_bytes(key, at)[0]

        for key, value in rows.items():
            if key.startswith(keys.current):
                bucket_id, text, _ = key_of(key, keys.current)
                self.live[bucket_id, text] = version_codec.decode(value)
            elif key.startswith(keys.version):
                bucket_id, text, _ = key_of(key, keys.version)
                version_rows[bucket_id, text, unpack_stamp(key)] = version_codec.decode(value)
            elif key.startswith(keys.inline):
                bucket_id, text, _ = key_of(key, keys.inline)
                self.inline[bucket_id, text, unpack_stamp(key)] = len(value)
            elif key.startswith(keys.contents):
                self.contents[unpack_bytes(key, len(keys.contents))[0]] = content_codec.decode(value)
            elif key.startswith(keys.parts):
                content_id, at = unpack_bytes(key, len(keys.parts))
                self.parts[content_id, unpack_int(key, at)[0]] = part_codec.decode(value)
            elif key.startswith(keys.refs):
                content_id, referrer = two(key, keys.refs)
                self.refs.setdefault(content_id, set()).add(referrer)
            elif key.startswith(keys.blobs):
                self.blobs[unpack_bytes(key, len(keys.blobs))[0]] = blob_codec.decode(value)
            elif key.startswith(keys.homes):
                self.homes.add(two(key, keys.homes))
            elif key.startswith(keys.upload):
                _, _, at = key_of(key, keys.upload)
                self.uploads.add(unpack_bytes(key, at)[0])
            elif key.startswith(keys.bucket.prefix):
                bucket = bucket_codec.decode(value)
                self.buckets[bucket.id] = bucket
            elif key.startswith(keys.queue_items):
                self.items[two(key, keys.queue_items)] = item_codec.decode(value)
            elif key.startswith(keys.queue_dead):
                self.dead_letters[two(key, keys.queue_dead)] = item_codec.decode(value)
            elif key.startswith(keys.queue_due):
                zone, at = unpack_bytes(key, len(keys.queue_due))
                for _ in range(3):
                    _, at = unpack_int(key, at)
                self.due.add((zone, unpack_bytes(key, at)[0]))
            elif key.startswith(keys.queue_zones):
                self.zones.add(unpack_bytes(key, len(keys.queue_zones))[0])
            elif key.startswith(keys.queue_counts):
                zone, at = unpack_bytes(key, len(keys.queue_counts))
                _, at = unpack_text(key, at)
                sign = {"enqueued": 1, "done": -1, "dropped": -1}.get(unpack_text(key, at)[0], 0)
                self.depths[zone] = self.depths.get(zone, 0) + sign * int.from_bytes(value, "little", signed=True)
            elif key.startswith(keys.queue_pointers):
                zone, _ = unpack_bytes(key, len(keys.queue_pointers))
                self.pointers[zone] = pointer_codec.decode(value)
            elif key.startswith(keys.queue_tops):
                _, at = unpack_bytes(key, len(keys.queue_tops))
                vesting_ns, at = unpack_int(key, at)
                self.tops.append((unpack_bytes(key, at)[0], vesting_ns))
            elif key.startswith(keys.count):
                bucket_id, at = unpack_bytes(key, len(keys.count))
                _, at = unpack_int(key, at)
                name, _ = unpack_text(key, at)
                counted = self.usage.setdefault(bucket_id, Counter())
                counted[name] += int.from_bytes(value, "little", signed=True)
        self.versions = version_rows
        for (bucket_id, text), version in self.live.items():
            if (bucket_id, text, version.stamp) not in version_rows:
                # Allowed for what was written before versioning was switched on.
                self.bare.add((bucket_id, text))
                self.versions[bucket_id, text, version.stamp] = version

    def is_doomed(self, blob_id: bytes) -> bool:
        """Whether a blob is marked for ever as one whose files may go: they may be gone in any part."""
        blob = self.blobs[blob_id]
        content = self.contents.get(blob.content)
        return blob.state != LIVE or (content is not None and content.state != LIVE)


def complaints_of(rows: Rows, node_id: bytes) -> Iterable[str]:
    """What is wrong with the database in itself."""
    for bucket_id, key in rows.bare:
        version = rows.live[bucket_id, key]
        if not version.null:
            yield f"{key!r} is live as {version.stamp}, a version that has no row"
    # References and inline bytes
    refs: dict[bytes, set[bytes]] = {}
    inline: dict[tuple[bytes, str, int], int] = {}
    newest: dict[tuple[bytes, str], int] = {}
    for (bucket_id, key, stamp), version in rows.versions.items():
        if version.stamp != stamp:
            yield f"{key!r}: the row of version {stamp} holds {version.stamp}"
        newest[bucket_id, key] = max(stamp, newest.get((bucket_id, key), 0))
        if version.content:
            refs.setdefault(version.content, set()).add(Referrer(bucket_id, key, stamp).digest)
            content = rows.contents.get(version.content)
            if content is None or content.state != LIVE:
                yield f"{key!r} {stamp}: its content {version.content.hex()} is not live"
            elif (content.size, content.parts) != (version.size, version.parts):
                yield f"{key!r} {stamp}: has {version.size} bytes, its content {content.size}"
        elif version.kind == OBJECT and version.size:
            inline[bucket_id, key, stamp] = version.size
    for (bucket_id, key), stamp in newest.items():
        version = rows.versions[bucket_id, key, stamp]
        live = rows.live.get((bucket_id, key))
        if (live.stamp if live else None) != (stamp if version.kind == OBJECT else None):
            yield f"{key!r}: newest is {stamp} (kind {version.kind}), live is {live and live.stamp}"
    if inline != rows.inline:
        yield f"inline rows: {_difference(rows.inline, inline)}"
    # Slices keep references too: how they are named is the code's business, how many contents they hold is not.
    sliced: dict[bytes, set[bytes]] = {}
    for (content_id, number), part in rows.parts.items():
        if part.source:
            sliced.setdefault(part.source, set()).add(content_id)
        if content_id not in rows.uploads and content_id not in rows.contents:
            yield f"part {number} of {content_id.hex()}, which is neither a content nor an upload"
    for content_id in refs.keys() | rows.refs.keys() | sliced.keys():
        stored, expected = rows.refs.get(content_id, set()), refs.get(content_id, set())
        if expected - stored:
            yield f"content {content_id.hex()}: {len(expected - stored)} versions have no reference to it"
        if bool(stored - expected) != bool(sliced.get(content_id)):
            yield (
                f"content {content_id.hex()}: {len(stored - expected)} references that are no version's, "
                f"{len(sliced.get(content_id, ()))} contents with slices of it"
            )
    # Contents, blobs, homes
    owed = {(item.task, item.subject) for item in rows.items.values()}
    wanted: dict[bytes, tuple[bytes, int, int]] = {}
    homes: set[tuple[bytes, bytes]] = set()
    for content_id, content in rows.contents.items():
        if content_id not in refs and content_id not in sliced and (RECLAIM_CONTENT, content_id) not in owed:
            yield f"content {content_id.hex()} is referred to by nothing, and its reclaiming is not owed"
        if content.state != LIVE:
            continue
        if not content.parts:
            wanted[content_id] = content_id, 0, content.size
        elif content.size:  # not an aborted upload, which is made a content only to be reclaimed
            homes.update((home.node, content_id) for home in content.homes)
            size = sum(part.size for (owner, _), part in rows.parts.items() if owner == content_id)
            if size != content.size:
                yield f"content {content_id.hex()} has {content.size} bytes, its parts {size}"
        if not content.parts:
            homes.add((node_id, content_id))
    for (content_id, number), part in rows.parts.items():
        for extent in part.extents:
            if part.source:
                if extent.blob not in rows.blobs or rows.blobs[extent.blob].state != LIVE:
                    yield f"part {number} of {content_id.hex()} is a slice of blob {extent.blob.hex()}, which is gone"
            elif content_id in rows.uploads or rows.contents[content_id].state == LIVE:
                wanted[extent.blob] = content_id, number, extent.blob_size or extent.size
    if not homes <= rows.homes:
        yield f"homes: {_difference(rows.homes, homes)}"
    for _, content_id in rows.homes - homes:
        if content_id not in rows.contents and content_id not in rows.uploads:
            yield f"home of a content {content_id.hex()} that is not there"
    for blob_id, (content_id, number, size) in wanted.items():
        blob = rows.blobs.get(blob_id)
        if blob is None or (blob.state, blob.content, blob.number, blob.size) != (LIVE, content_id, number, size):
            yield f"blob {blob_id.hex()} should be part {number} of {content_id.hex()}, {size} bytes, but is {blob}"
    for blob_id in rows.blobs.keys() - wanted.keys():
        blob = rows.blobs[blob_id]
        if (RECLAIM_BLOB, blob_id) not in owed and (RECLAIM_CONTENT, blob.content) not in owed:
            yield f"blob {blob_id.hex()} ({blob}) belongs to nothing, and its reclaiming is not owed"
    # The queue
    if rows.due != rows.items.keys():
        yield f"queue: {len(rows.items)} items, {len(rows.due)} in order of time: {_difference(rows.due, rows.items)}"
    for zone, count in Counter(zone for zone, _ in rows.items).items():
        if rows.depths.get(zone) != count:
            yield f"zone {zone.hex()} has {count} items and says {rows.depths.get(zone)}"
        if zone not in rows.zones:
            yield f"zone {zone.hex()} has items and no mark"
    if rows.pointers.keys() != rows.zones:
        yield f"queue: pointers and marks differ: {_difference(rows.pointers, rows.zones)}"
    pointers = sorted((zone, pointer.vesting_ns) for zone, pointer in rows.pointers.items())
    if sorted(rows.tops) != pointers:
        yield f"queue: pointers and their order differ: {_difference(rows.tops, pointers)}"
    for letter in rows.dead_letters.values():
        yield f"dead letter: {letter}"
    yield from _miscounted(rows)


def _miscounted(rows: Rows) -> Iterable[str]:
    for bucket_id, bucket in rows.buckets.items():
        versions = [version for (owner, _, _), version in rows.versions.items() if owner == bucket_id]
        objects = sum(owner == bucket_id for owner, _ in rows.live)
        truth = Usage(objects, len(versions) - objects, sum(version.size for version in versions))
        counted = rows.usage.get(bucket_id, Counter())
        told = Usage(counted["objects"], counted["noncurrent"], counted["bytes"])
        if truth != told:
            yield f"bucket {bucket.name}: counters say {told}, there are {truth}"
        if bucket.versioning == NEVER and truth.noncurrent:
            yield f"bucket {bucket.name} has versions and was never versioned"


async def audit(metadata: Metadata, blocks: BlockStore) -> list[str]:
    """Every contradiction in a node that nobody writes to, after a sweep."""
    rows = Rows(metadata, await dump(metadata))
    found = list(complaints_of(rows, blocks.node_id))
    on_disk: dict[bytes, int] = {}
    async for blob in blocks.blobs():
        on_disk[blob.blob_id] = blob.size
        row = rows.blobs.get(blob.blob_id)
        if row is not None and not rows.is_doomed(blob.blob_id):
            found += [f"blob {blob.blob_id.hex()}: {damage}" for damage in blob.damage]
        if blob.place != "home":
            found.append(f"blob {blob.blob_id.hex()} is in {blob.place}")
        if row is None:
            found.append(f"orphan: blob {blob.blob_id.hex()} has files and no row")
    for blob_id, blob_row in rows.blobs.items():
        if on_disk.get(blob_id) != blob_row.size and not rows.is_doomed(blob_id):
            found.append(f"lost: blob {blob_id.hex()} of {blob_row.size} bytes has {on_disk.get(blob_id)} on disk")
    found += [f"fsck: {finding}" async for finding in fsck(metadata, blocks, pause_s=0)]
    return found


async def assert_nothing_owed(metadata: Metadata, blocks: BlockStore, cache: Path) -> None:
    """After everything due has been reclaimed: no contradiction, no work, no dead row, and files of live blobs only.

    `cache` is the block store's directory.
    """
    rows = Rows(metadata, await dump(metadata))
    assert list(complaints_of(rows, blocks.node_id)) == []
    assert not rows.items, list(rows.items.values())[:3]
    assert all(blob.state == LIVE for blob in rows.blobs.values())
    assert all(content.state == LIVE for content in rows.contents.values())
    files = [path for tree in ("home", "incoming") for path in (cache / tree).glob("*/*")]
    on_disk = {bytes.fromhex(path.name.partition(".")[0]) for path in files}
    assert on_disk == rows.blobs.keys(), (len(on_disk), len(rows.blobs))


def _difference(stored: Iterable[Any], expected: Iterable[Any]) -> str:
    a, b = set(stored), set(expected)
    return f"{len(a - b)} too many {sorted(a - b, key=repr)[:2]}, {len(b - a)} missing {sorted(b - a, key=repr)[:2]}"
