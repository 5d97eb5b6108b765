"""fsck finds every kind of planted damage, mends what can be mended, and sees none where writers are at work."""

import asyncio
import contextlib
import random

import msgspec
import pytest

from tests.bytecache.blobs import BLOCK, put, stored_files
from tests.kv.memory_engine import MemoryEngine
from tests.metadata.queueing import take
from tests.metadata.world import (
    MIB,
    blob_id,
    dump,
    etag_of,
    found,
    large,
    listed,
    no_combine,
    no_composite,
    open_world,
    part,
    small,
)
from tigrislike.admin.fsck import fsck
from tigrislike.bytecache import BlockStore
from tigrislike.metadata import (
    Extent,
    MetadataError,
    Part,
    UploadDraft,
    blobs,
    copy_draft,
    origins,
    overseeing,
    owed,
    records,
)
from tigrislike.metadata.deciding import QUEUE
from tigrislike.metadata.keyspace import pack_bytes, pack_stamp, subspace, unpack_bytes
from tigrislike.metadata.records import DEAD, Referrer
from tigrislike.replication.lacking import owe_restore
from tigrislike.replication.membership import Members
from tigrislike.replication.reclaim import reclaim_due
from tigrislike.replication.removing import remove_node


async def findings(metadata, blocks=None, *, repair=False):
    return [finding async for finding in fsck(metadata, blocks, repair=repair, pause_s=0)]


class Scene:
    """A store with one of everything, and the ids and rows that the damages need."""

    def __init__(self, metadata):
        self.metadata = metadata
        self.keys = metadata.context.keys

    async def build(self):
        metadata = self.metadata
        self.plain = await metadata.create_bucket("plain", "me")
        self.small = await metadata.put_object(self.plain, "small", small(b"small"))
        self.large = await metadata.put_object(self.plain, "large", large(b"large"))
        await metadata.copy_object((self.plain, "large", None), None, self.plain, "copy", copy_draft)
        await metadata.put_bucket_config("plain", "cors", b"document")
        upload = await metadata.create_upload(self.plain, "multi", UploadDraft())
        parts = [await metadata.put_part(self.plain, "multi", upload.upload_id, part(n, b"m%d" % n)) for n in (1, 2)]
        self.multi = await metadata.complete_upload(
            self.plain, "multi", upload.upload_id, listed(*parts), combine=no_combine, composite=no_composite
        )
        self.upload = await metadata.create_upload(self.plain, "open", UploadDraft())
        await metadata.put_part(self.plain, "open", self.upload.upload_id, part(1, b"open"))
        slice_ = Part(2, MIB, etag_of(b"s"), "", 0, (Extent(self.large.content, 0, MIB),), source=self.large.content)
        await metadata.put_part(self.plain, "open", self.upload.upload_id, slice_)
        await metadata.put_object(self.plain, "gone", large(b"gone"))
        await metadata.delete_object(self.plain, "gone")
        await metadata.settle_blob(blob_id(b"orphan"))

        self.versioned = await metadata.create_bucket("versioned", "me")
        await metadata.put_object(self.versioned, "old", small(b"alone"))
        self.null = await metadata.put_object(self.versioned, "k", small(b"null"))
        self.versioned = await metadata.set_versioning("versioned", "Enabled")
        self.middle = await metadata.put_object(self.versioned, "k", small(b"middle"))
        self.newest = await metadata.put_object(self.versioned, "k", large(b"newest"))
        await metadata.put_object(self.versioned, "hidden", small(b"hidden"))
        await metadata.delete_object(self.versioned, "hidden")
        for node in (b"n" * 16, b"r" * 16):
            await metadata.join(records.Node(node, "there", "https://there"))
            await metadata.beat(node, records.Beat(1, 1))
        await metadata.set_node_state(b"r" * 16, records.REMOVED)
        await metadata.background(self.replicate)
        await metadata.change_bucket("versioned", durability="homes=2")
        self.access = await metadata.create_access_key("me", "plain")
        await metadata.create_bucket("backed", "me")
        place = records.OriginPlace("s3://backing")
        self.backed = await metadata.use_origin("backed", origins.BACKING, place, durability="write-back")
        self.waiting = await metadata.put_object(self.backed, "waiting", large(b"waiting"))
        there = records.Elsewhere(self.backed.backing, "key", "etag")
        self.there = await metadata.put_object(
            self.backed, "there", msgspec.structs.replace(large(b"there"), elsewhere=there)
        )
        await metadata.create_bucket("shadowed", "me")
        self.shadowed = await metadata.use_origin("shadowed", origins.SHADOW, records.OriginPlace("s3://shadow"))
        source = records.Elsewhere(self.shadowed.shadow, "k", "etag")
        self.adopted = await metadata.adopt(self.shadowed, "k", large(b"adopted"), 1, source)
        await metadata.put_object(self.shadowed, "whited out", small(b"x"))
        await metadata.delete_object(self.shadowed, "whited out")
        self.in_plain = self.keys.in_bucket(self.plain.id)
        self.in_versioned = self.keys.in_bucket(self.versioned.id)
        return self

    async def replicate(self, tr):
        """Other nodes are, are about to be, and were just now homes of a content that is in demand elsewhere."""
        row = self.keys.content(self.large.content)
        content = records.content.decode(await tr.get(row))
        others = {name: (records.Home("there", each * 16),) for name, each in (("pending", b"p"), ("leaving", b"l"))}
        homes = (*content.homes, records.Home("there", b"n" * 16, whole=False))
        tr.set(row, records.content.encode(msgspec.structs.replace(content, homes=homes, **others)))
        tr.set(self.keys.home(b"n" * 16, self.large.content), b"")
        for content_id in (self.large.content, b"forgotten-since."):
            tr.add(self.keys.demand(1, "there", content_id), 3)

    def version_row(self, version):
        return self.in_versioned.version.key("k") + pack_stamp(version.stamp)


async def first_row(tr, prefix):
    return (await tr.get_range(*subspace(prefix), limit=1))[0]


DAMAGES = {}


def damage(*kinds, mended=True, beside=frozenset()):
    """A way to damage the scene, the kinds of finding that it must cause, and whether repair mends them all.

    `beside`: kinds that are found as well when nothing is repaired on the way.
    """

    def register(plant):
        DAMAGES[plant.__name__] = (plant, set(kinds), mended, beside)
        return plant

    return register


@damage("bucket-owner")
async def bucket_missing_from_its_owners_list(tr, s):
    tr.clear(s.keys.owned("me").key("plain"))


@damage("owner-dangling")
async def owners_list_with_a_bucket_that_is_not(tr, s):
    tr.set(s.keys.owned("me").key("ghost"), b"")


@damage("bucket-configs")
async def configuration_that_the_bucket_does_not_mention(tr, s):
    tr.set(s.keys.config(s.plain.id, "tagging"), b"x")


@damage("repolicy-dangling")
async def policy_of_a_bucket_that_is_not_is_followed(tr, s):
    tr.set(s.keys.repolicy(bytes(16)), records.repolicy.encode(records.Repolicy("ghost")))


@damage("repolicy-forgotten")
async def nobody_is_to_follow_a_policy(tr, s):
    tr.set(s.keys.repolicy(s.plain.id), records.repolicy.encode(records.Repolicy("plain")))


@damage("repolicy-wrong")
async def policy_is_followed_under_another_name(tr, s):
    tr.set(s.keys.repolicy(s.versioned.id), records.repolicy.encode(records.Repolicy("plain")))


@damage("repolicy-wrong")
async def policy_is_followed_among_rows_of_another_bucket(tr, s):
    after = s.in_plain.current.key("small").removeprefix(s.keys.prefix)
    tr.set(s.keys.repolicy(s.versioned.id), records.repolicy.encode(records.Repolicy("versioned", after)))


@damage("bucket-name", mended=False)
async def bucket_under_another_name(tr, s):
    row = await tr.get(s.keys.bucket.key("plain"))
    tr.set(s.keys.bucket.key("other"), row)


@damage("bucket-missing", mended=False)
async def rows_of_no_bucket(tr, s):
    value = await tr.get(s.in_plain.current.key("small"))
    nowhere = s.keys.in_bucket(bytes(16))
    tr.set(nowhere.current.key("x"), value)
    tr.set(nowhere.version.key("x") + pack_stamp(s.small.stamp), value)
    upload = records.Upload(b"u" * 16, 1)
    tr.set(nowhere.upload.key("x") + b"\x01" + b"u" * 16 + b"\x00", records.upload.encode(upload))


@damage("unreadable", mended=False)
async def record_that_cannot_be_decoded(tr, s):
    tr.set(s.keys.home(b"n" * 16, s.large.content)[:-3], b"")
    tr.set(s.keys.content(b"x" * 16), b"rubbish")


@damage("inline-missing", mended=False)
async def inline_bytes_lost(tr, s):
    tr.clear(s.in_plain.inline.key("small") + pack_stamp(s.small.stamp))


@damage("inline-size", mended=False)
async def inline_bytes_cut_short(tr, s):
    tr.set(s.in_plain.inline.key("small") + pack_stamp(s.small.stamp), b"sma")


@damage("inline-stray")
async def inline_bytes_of_nothing(tr, s):
    tr.set(s.in_plain.inline.key("nothing") + pack_stamp(s.small.stamp), b"x")


@damage("content-missing", "ref-dangling", "home-dangling", "blob-leaked", "slice-source", mended=False)
async def content_lost(tr, s):
    tr.clear(s.keys.content(s.large.content))
    referrer = Referrer(bytes(16), "x", 1)
    tr.set(s.keys.ref(s.large.content, referrer.digest), records.referrer.encode(referrer))


@damage("content-dead", "slice-source", mended=False)
async def content_dead_though_in_use(tr, s):
    raw = await tr.get(s.keys.content(s.large.content))
    dead = msgspec.structs.replace(records.content.decode(raw), state=DEAD)
    tr.set(s.keys.content(s.large.content), records.content.encode(dead))


@damage("content-size", "blob-row-wrong", mended=False)
async def content_of_another_size(tr, s):
    raw = await tr.get(s.keys.content(s.large.content))
    other = msgspec.structs.replace(records.content.decode(raw), size=1)
    tr.set(s.keys.content(s.large.content), records.content.encode(other))


@damage("ref-missing")
async def reference_lost(tr, s):
    tr.clear(s.keys.ref(s.large.content, Referrer(s.plain.id, "copy", 0).digest))
    tr.clear(s.keys.ref(s.large.content, Referrer(s.plain.id, "large", s.large.stamp).digest))


@damage("ref-missing")
async def reference_of_a_slice_lost(tr, s):
    tr.clear(s.keys.ref(s.large.content, Referrer(content=s.upload.content).digest))


@damage("ref-dangling")
async def reference_of_nobody(tr, s):
    referrer = Referrer(s.plain.id, "never", 5)
    tr.set(s.keys.ref(s.large.content, referrer.digest), records.referrer.encode(referrer))


@damage("ref-dangling")
async def reference_of_no_content(tr, s):
    referrer = Referrer(content=b"n" * 16)
    tr.set(s.keys.ref(s.large.content, referrer.digest), records.referrer.encode(referrer))


@damage("content-leaked")
async def content_that_nothing_is_owed_about(tr, s):
    begin, end = subspace(s.keys.queue_items)
    for key, value in await tr.get_range(begin, end):
        item = records.item.decode(value)
        if item.task == "reclaim":
            zone = item_zone(s, key)
            tr.clear(key)
            owed.count(tr, s.metadata.context, zone, item.task, dropped=1)
            tr.clear(owed.due_key(s.metadata.context, zone, item_id_of(s, key), item))


def item_zone(s, key):
    return unpack_bytes(key, len(s.keys.queue_items))[0]


def item_id_of(s, key):
    _, at = unpack_bytes(key, len(s.keys.queue_items))
    return unpack_bytes(key, at)[0]


@damage("blob-leaked")
async def dead_blob_that_nothing_is_owed_about(tr, s):
    tr.set(s.keys.blob(blob_id(b"forgotten")), records.blob.encode(records.Blob(DEAD)))


@damage("blob-leaked")
async def live_blob_of_nothing(tr, s):
    live = records.Blob(records.LIVE, s.multi.content, 77, 5, s.metadata.context.home.node)
    tr.set(s.keys.blob(blob_id(b"unused")), records.blob.encode(live))


@damage("blob-row-missing")
async def rows_of_used_blobs_lost(tr, s):
    tr.clear(s.keys.blob(s.large.content))
    tr.clear(s.keys.blob(blob_id(b"m1")))


@damage("blob-dead", mended=False)
async def blob_dead_though_in_use(tr, s):
    raw = await tr.get(s.keys.blob(s.large.content))
    dead = msgspec.structs.replace(records.blob.decode(raw), state=DEAD)
    tr.set(s.keys.blob(s.large.content), records.blob.encode(dead))
    await blobs.owe_blob(tr, s.metadata.context, b"n" * 16, b"", s.large.content)


@damage("parts-missing", "blob-leaked", mended=False)
async def part_lost(tr, s):
    tr.clear(s.keys.part(s.multi.content, 2))


@damage("part-wrong", mended=False)
async def part_under_another_number(tr, s):
    raw = await tr.get(s.keys.part(s.upload.content, 1))
    tr.set(s.keys.part(s.upload.content, 9), raw)


@damage("part-orphan")
async def upload_lost(tr, s):
    family = s.in_plain.upload
    for key, _ in await tr.get_range(family.key("open"), family.after("open")):
        tr.clear(key)


@damage("upload-ended")
async def upload_listed_though_completed(tr, s):
    upload = records.Upload(s.multi.content, 1)
    tr.set(s.in_plain.upload.key("multi") + pack_bytes(s.multi.content), records.upload.encode(upload))


@damage("upload-wrong", mended=False)
async def upload_under_another_id(tr, s):
    tr.set(s.in_plain.upload.key("x") + b"\x01z\x00", records.upload.encode(records.Upload(b"y" * 16, 1)))


@damage("home-missing")
async def home_row_lost(tr, s):
    tr.clear(s.keys.home(s.metadata.context.home.node, s.large.content))


@damage("home-dangling")
async def home_row_of_another_node(tr, s):
    tr.set(s.keys.home(b"o" * 16, s.large.content), b"")


@damage("home-dangling")
async def home_rows_of_nodes_that_are_about_to_be_and_were_homes(tr, s):
    tr.set(s.keys.home(b"p" * 16, s.large.content), b"")
    tr.set(s.keys.home(b"l" * 16, s.large.content), b"")


@damage("short-dangling")
async def note_on_a_content_that_is_not(tr, s):
    tr.set(s.keys.short(b"o" * 16), b"iad")
    await owe_restore(tr, s.metadata.context)


@damage("short-forgotten")
async def note_that_nobody_looks_at(tr, s):
    tr.set(s.keys.short(s.large.content), b"iad")


@damage("elsewhere-missing")
async def place_at_the_backing_origin_lost(tr, s):
    tr.clear(s.keys.elsewhere(s.there.content))


@damage("elsewhere-missing", mended=False)
async def place_at_the_shadow_lost(tr, s):
    tr.clear(s.keys.elsewhere(s.adopted.content))


@damage("elsewhere-dangling")
async def place_of_a_blob_that_is_not(tr, s):
    row = records.Elsewhere(s.backed.backing, "key", "etag")
    tr.set(s.keys.elsewhere(b"o" * 16), records.elsewhere.encode(row))


@damage("elsewhere-stray", mended=False)
async def place_that_its_content_does_not_know(tr, s):
    row = records.Elsewhere(s.backed.backing, "key", "etag")
    tr.set(s.keys.elsewhere(s.newest.content), records.elsewhere.encode(row))


@damage("write-back-forgotten")
async def write_back_that_nothing_owes(tr, s):
    zone = owed.zone_of(s.metadata.context.home.node, s.backed.id)
    assert await overseeing.drop(tr, s.metadata.context, zone, owed.item_id("write_back", s.waiting.content))


@damage("content-homeless", "home-dangling", mended=False)
async def homes_lost(tr, s):
    row = s.keys.content(s.newest.content)
    content = records.content.decode(await tr.get(row))
    tr.set(row, records.content.encode(msgspec.structs.replace(content, homes=())))


@damage("origin-missing", mended=False)
async def origin_lost(tr, s):
    tr.clear(s.keys.origin(s.backed.backing))
    tr.clear(s.keys.origin(s.shadowed.shadow))


@damage("origin-wrong", mended=False)
async def origin_under_another_id(tr, s):
    tr.set(s.keys.origin(b"o" * 16), await tr.get(s.keys.origin(s.backed.backing)))


@damage("whiteout-orphan")
async def whiteout_of_a_bucket_that_is_gone(tr, s):
    tr.set(s.keys.in_bucket(b"z" * 16).whiteout.key("k"), b"")


@damage("node-wrong", mended=False)
async def node_under_another_id(tr, s):
    tr.set(s.keys.node(b"x" * 16), await tr.get(s.keys.node(b"n" * 16)))


@damage("beat-dangling")
async def beats_of_a_removed_and_of_no_node(tr, s):
    for node in (b"r" * 16, b"x" * 16):
        tr.set(s.keys.beat(node), await tr.get(s.keys.beat(b"n" * 16)))


@damage("demand-wrong")
async def demand_of_the_future_and_of_a_strange_width(tr, s):
    tr.add(s.keys.demand(10**9, "there", s.large.content), 1)
    tr.set(s.keys.demand(1, "here", s.large.content), b"many")


@damage("version-missing", beside={"counters"})
async def row_of_the_live_version_lost(tr, s):
    tr.clear(s.version_row(s.newest))


@damage("live-missing", "counters")
async def live_row_lost(tr, s):
    tr.clear(s.in_versioned.current.key("k"))
    await wrong_objects(tr, s)


async def wrong_objects(tr, s):
    tr.add(s.in_versioned.count + b"\x15\x01" + b"\x02objects\x00", 5)


@damage("live-stale")
async def live_row_of_an_older_version(tr, s):
    tr.set(s.in_versioned.current.key("k"), await tr.get(s.version_row(s.middle)))


@damage("live-stale", "counters")
async def live_row_under_a_delete_marker(tr, s):
    versions = s.in_versioned.version
    rows = await tr.get_range(versions.key("hidden"), versions.after("hidden"))
    tr.set(s.in_versioned.current.key("hidden"), rows[1][1])
    await wrong_objects(tr, s)


@damage("live-differs")
async def live_row_that_differs_from_its_version(tr, s):
    other = msgspec.structs.replace(s.newest, tags={"a": "b"})
    tr.set(s.in_versioned.current.key("k"), records.object_version.encode(other))


@damage("version-stamp", "inline-stray", mended=False)
async def version_under_another_stamp(tr, s):
    raw = await tr.get(s.version_row(s.middle))
    tr.clear(s.version_row(s.middle))
    tr.set(s.in_versioned.version.key("k") + pack_stamp(s.middle.stamp - 25_600), raw)


@damage("null-missing")
async def null_row_lost(tr, s):
    tr.clear(s.in_versioned.null.key("k"))


@damage("null-dangling")
async def null_row_of_nothing(tr, s):
    tr.set(s.in_versioned.null.key("x"), (1 << 60).to_bytes(8, "big"))


@damage("version-unversioned", "counters", mended=False)
async def version_in_a_bucket_without_versioning(tr, s):
    version = msgspec.structs.replace(s.small, stamp=s.small.stamp - 256, null=False, size=0)
    tr.set(s.in_plain.version.key("small") + pack_stamp(s.small.stamp - 256), records.object_version.encode(version))


@damage("counters")
async def counters_wrong(tr, s):
    tr.add(s.in_plain.count + b"\x15\x01" + b"\x02bytes\x00", 1000)
    tr.add(s.in_versioned.count + b"\x15\x02" + b"\x02noncurrent\x00", -3)


@damage("access-index")
async def access_key_missing_from_its_indexes(tr, s):
    tr.clear(s.keys.access_owned("me").key(s.access.key_id))
    tr.clear(s.keys.access_scoped("plain").key(s.access.key_id))


@damage("access-dangling")
async def access_indexes_of_nothing(tr, s):
    tr.set(s.keys.access_owned("me").key("ghost"), b"")
    tr.set(s.keys.access_scoped("plain").key("ghost"), b"")


@damage("access-wrong", mended=False)
async def access_key_under_another_id(tr, s):
    tr.set(s.keys.access.key("other"), await tr.get(s.keys.access.key(s.access.key_id)))


@damage("access-sealed", mended=False)
async def access_key_sealed_with_an_unknown_key(tr, s):
    row = s.keys.access.key(s.access.key_id)
    record = msgspec.structs.replace(records.access.decode(await tr.get(row)), master=b"whatever")
    tr.set(row, records.access.encode(record))


@damage("item-unindexed")
async def queue_item_without_its_index(tr, s):
    tr.clear_range(*subspace(s.keys.queue_due))


@damage("due-dangling")
async def index_without_its_queue_item(tr, s):
    tr.set(s.keys.queue_due_key(b"zone", 0, 5, 0, b"i" * 16), b"")


@damage("zone-unmarked", beside={"pointer-unmarked"})
async def zone_without_its_mark(tr, s):
    tr.clear_range(*subspace(s.keys.queue_zones))


@damage("pointer-unmarked")
async def pointer_of_no_zone(tr, s):
    owed.put_pointer(tr, s.metadata.context, b"z" * 32, None, records.Pointer(5))


async def first_pointer(tr, s):
    """Of the zone in which a blob is owed that was never committed."""
    zone = owed.zone_of(s.metadata.context.home.node, b"")
    return zone, records.pointer.decode(await tr.get(s.keys.queue_pointer(zone)))


@damage("pointer-missing", "top-dangling")
async def zone_without_its_pointer(tr, s):
    zone, _ = await first_pointer(tr, s)
    tr.clear(s.keys.queue_pointer(zone))


@damage("pointer-unindexed")
async def pointer_without_its_index(tr, s):
    tr.clear_range(*subspace(s.keys.queue_tops))


@damage("top-dangling")
async def second_index_of_a_pointer(tr, s):
    zone, pointer = await first_pointer(tr, s)
    tr.set(s.keys.queue_top(zone[:16], pointer.vesting_ns + 1, zone), b"")


@damage("top-dangling")
async def index_of_a_pointer_for_somebody_else(tr, s):
    zone, pointer = await first_pointer(tr, s)
    tr.set(s.keys.queue_top(b"another node's i", pointer.vesting_ns, zone), b"")


@damage("mark-wrong")
async def mark_that_defers_a_pointer_to_another_time(tr, s):
    zone, pointer = await first_pointer(tr, s)
    tr.set(s.keys.queue_zone(zone), (pointer.vesting_ns + 1).to_bytes(8, "big"))


@damage("pointer-late")
async def pointer_later_than_what_is_in_its_zone(tr, s):
    zone, pointer = await first_pointer(tr, s)
    late = msgspec.structs.replace(pointer, vesting_ns=pointer.vesting_ns + 60 * 10**9)
    owed.put_pointer(tr, s.metadata.context, zone, pointer, late)
    tr.set(s.keys.queue_zone(zone), late.vesting_ns.to_bytes(8, "big"))


@damage("pointer-late")
async def pointer_late_though_its_mark_defers_nothing(tr, s):
    zone, _ = await first_pointer(tr, s)
    tr.set(s.keys.queue_zone(zone), b"")


@damage("zone-count", beside={"zone-sum"})
async def zone_count_wrong(tr, s):
    zone, _ = await first_pointer(tr, s)
    tr.add(s.keys.queue_count(zone, "reclaim", "enqueued"), 3)


@damage("zone-count", beside={"zone-sum"})
async def zone_count_of_leased_items_wrong(tr, s):
    zone, _ = await first_pointer(tr, s)
    tr.add(s.keys.queue_count(zone, "reclaim", "begun"), 1)


@damage("zone-count", beside={"zone-sum"})
async def zone_count_of_dead_letters_wrong(tr, s):
    zone, _ = await first_pointer(tr, s)
    tr.add(s.keys.queue_count(zone, "reclaim", "dead"), 1)


@damage("zone-sum")
async def sums_of_zones_wrong(tr, s):
    zone, _ = await first_pointer(tr, s)
    tr.add(s.keys.queue_sum(owed.destination_of(zone), "reclaim", "enqueued", 0), -2)
    tr.add(s.keys.queue_sum(owed.destination_of(zone), "never owed", "failing", 3), 1)


@damage("failing-dangling")
async def listed_as_failing_and_is_not(tr, s):
    tr.set(s.keys.queue_failing_key(b"zone", 5, b"i" * 16), b"")


@damage("failing-unindexed")
async def failing_and_not_listed(tr, s):
    rows = await tr.get_range(*subspace(s.keys.queue_items), limit=1)
    ((key, value),) = rows
    zone, item = item_zone(s, key), records.item.decode(value)
    owed.put_item(tr, s.metadata.context, zone, item_id_of(s, key), item, msgspec.structs.replace(item, attempts=1))
    tr.clear(s.keys.queue_failing_key(zone, item.enqueued_ns, item_id_of(s, key)))


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_mended(name, tmp_path):
    plant, kinds, mended, beside = DAMAGES[name]

    async def main():
        async with open_world("sqlite", tmp_path) as metadata:
            scene = await Scene(metadata).build()
            assert await findings(metadata) == []
            await metadata.engine.transact(plant, scene)
            seen = await findings(metadata)
            assert {finding.kind for finding in seen} == kinds | beside
            repaired = await findings(metadata, repair=True)
            assert {finding.kind for finding in repaired} == kinds
            assert all(finding.repaired == finding.repairable for finding in repaired)
            left = await findings(metadata)
            assert all(not finding.repairable for finding in left)
            assert (left == []) == mended

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_sound_store_has_no_findings_and_repair_changes_nothing(kind, tmp_path):
    async def main():
        async with open_world(kind, tmp_path) as metadata:
            await Scene(metadata).build()
            before = await dump(metadata)
            assert await findings(metadata, repair=True) == []
            assert await dump(metadata) == before

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("repair", [False, True])
def test_nothing_is_found_while_writers_run(seed, repair):
    async def main():
        engine = MemoryEngine(seed=seed)
        metadata = await found(engine, grace_s=0)
        rng = random.Random(seed)
        buckets = [await metadata.create_bucket("plain", "me")]
        buckets.append(await metadata.create_bucket("versioned", "me", versioning="Enabled"))
        stop = False

        async def write(name):
            for number in range(25):
                bucket, key = rng.choice(buckets), rng.choice("abc")
                with contextlib.suppress(MetadataError):
                    match rng.randrange(6):
                        case 0:
                            await metadata.put_object(bucket, key, large(b"%s%d" % (name, number), 100))
                        case 1:
                            await metadata.put_object(bucket, key, small(b"x" * rng.randrange(9)))
                        case 2:
                            await metadata.delete_object(bucket, key)
                        case 3:
                            await metadata.copy_object((bucket, key, None), None, buckets[0], "c", copy_draft)
                        case 4:
                            upload = await metadata.create_upload(bucket, key, UploadDraft())
                            one = part(1, b"%s%dp" % (name, number))
                            await metadata.put_part(bucket, key, upload.upload_id, one)
                            if rng.random() < 0.5:
                                await metadata.abort_upload(bucket, key, upload.upload_id)
                            else:
                                await metadata.complete_upload(
                                    bucket,
                                    key,
                                    upload.upload_id,
                                    listed(one),
                                    combine=no_combine,
                                    composite=no_composite,
                                )
                        case 5:
                            await metadata.set_versioning("versioned", rng.choice(["Enabled", "Suspended"]))

        async def consume():
            while not stop:
                engine.clock.advance(QUEUE.poll_ns)
                for zone in await metadata.queue.zones():
                    for claimed in await take(metadata, zone):
                        subject = claimed.item.subject
                        if claimed.item.task == "reclaim":
                            if await metadata.reclaim_content(subject) is not None:
                                await metadata.forget_content(subject)
                        elif await metadata.reclaim_blob(subject):
                            await metadata.forget_blob(subject)
                        assert await metadata.queue.finish(claimed)
                await asyncio.sleep(0)

        consumer = asyncio.create_task(consume())
        writers = asyncio.gather(write(b"one"), write(b"two"))
        seen = []
        while not writers.done():
            seen += await findings(metadata, repair=repair)
        await writers
        stop = True
        await consumer
        assert seen == []
        assert await findings(metadata) == []
        await engine.close()

    asyncio.run(main())


# --- files


def with_files(tmp_path, story):
    async def main():
        blocks = BlockStore.open(tmp_path / "cache", block_size=BLOCK)
        try:
            engine = MemoryEngine()
            metadata = await found(engine)
            metadata = await type(metadata).open(
                engine, master_key=metadata._master, node_id=blocks.node_id, region="here"
            )
            await story(metadata, blocks)
            await engine.close()
        finally:
            blocks.close()

    asyncio.run(main())


async def stored(metadata, blocks, bucket, key, data):
    blob = await put(blocks, data)
    draft = msgspec.structs.replace(large(b"x", len(data)), blob=blob, etag=etag_of(data))
    return await metadata.put_object(bucket, key, draft)


def test_files_that_agree_with_their_rows(tmp_path):
    async def story(metadata, blocks):
        bucket = await metadata.create_bucket("bucket", "me")
        await stored(metadata, blocks, bucket, "k", b"d" * 200_000)
        assert await findings(metadata, blocks, repair=True) == []

    with_files(tmp_path, story)


def test_a_file_that_no_row_knows_goes(tmp_path):
    async def story(metadata, blocks):
        bucket = await metadata.create_bucket("bucket", "me")
        await stored(metadata, blocks, bucket, "k", b"d" * 1000)
        kept = stored_files(tmp_path / "cache")
        orphan = await put(blocks, b"o" * 200_000)
        (finding,) = await findings(metadata, blocks)
        assert (finding.kind, finding.key, finding.repairable) == ("file-orphan", orphan.hex(), True)
        (finding,) = await findings(metadata, blocks, repair=True)
        assert finding.repaired
        assert stored_files(tmp_path / "cache") == kept
        assert await findings(metadata, blocks) == []

    with_files(tmp_path, story)


@pytest.mark.parametrize("moves", ["", "pending", "leaving"])
def test_a_live_file_that_is_not_for_this_node_to_hold_becomes_cache(tmp_path, moves):
    async def story(metadata, blocks):
        bucket = await metadata.create_bucket("bucket", "me")
        await stored(metadata, blocks, bucket, "ours", b"o" * 1000)
        stray = (await stored(metadata, blocks, bucket, "k", b"d" * 200_000)).content
        keys, other, own = metadata.context.keys, records.Home("there", b"n" * 16), metadata.context.home

        async def move(tr):
            content = records.content.decode(await tr.get(keys.content(stray)))
            content = msgspec.structs.replace(content, homes=(other,), **({moves: (own,)} if moves else {}))
            tr.set(keys.content(stray), records.content.encode(content))
            tr.set(keys.blob(stray), records.blob.encode(records.Blob(records.LIVE, stray, 0, 200_000, other.node)))
            tr.clear(keys.home(own.node, stray))
            tr.set(keys.home(other.node, stray), b"")

        await metadata.engine.transact(move)
        if moves:
            assert await findings(metadata, blocks) == []
            return
        (finding,) = await findings(metadata, blocks)
        assert (finding.kind, finding.key, finding.repairable) == ("file-stray", stray.hex(), True)
        (finding,) = await findings(metadata, blocks, repair=True)
        assert finding.repaired
        assert await findings(metadata, blocks) == [], "it is owed"
        metadata.engine.clock.advance(2 * metadata.context.grace_ns)
        await reclaim_due(metadata, blocks)
        assert await findings(metadata, blocks) == []
        assert not [path for path in stored_files(tmp_path / "cache") if stray.hex() in path.name]

    with_files(tmp_path, story)


@pytest.mark.parametrize("repair", [False, True])
def test_the_last_copy_of_what_was_lost_is_left_and_named(tmp_path, repair):
    async def story(metadata, blocks):
        bucket = await metadata.create_bucket("bucket", "me")
        lost = (await stored(metadata, blocks, bucket, "some/key\n", b"d" * 200_000)).content
        own = metadata.context.home.node
        await metadata.join(records.Node(own, "here", "http://here"))
        async for _ in remove_node(metadata, Members(metadata), own):
            pass
        for _ in range(2):
            (finding,) = await findings(metadata, blocks, repair=repair)
            assert (finding.kind, finding.key) == ("file-lost", lost.hex())
            assert (finding.repairable, finding.repaired) == (False, False)
            assert "; of bucket/some/key\\n (version " in finding.detail
        metadata.engine.clock.advance(2 * metadata.context.grace_ns)
        await reclaim_due(metadata, blocks)
        assert [path for path in stored_files(tmp_path / "cache") if lost.hex() in path.name]

    with_files(tmp_path, story)


def test_a_row_that_was_lost_does_not_cost_the_file(tmp_path):
    async def story(metadata, blocks):
        bucket = await metadata.create_bucket("bucket", "me")
        version = await stored(metadata, blocks, bucket, "k", b"d" * 1000)

        async def lose(tr):
            tr.clear(metadata.context.keys.blob(version.content))

        await metadata.engine.transact(lose)
        kept = stored_files(tmp_path / "cache")
        assert {finding.kind for finding in await findings(metadata, blocks)} == {"blob-row-missing"}
        await findings(metadata, blocks, repair=True)
        assert await findings(metadata, blocks) == []
        assert stored_files(tmp_path / "cache") == kept

    with_files(tmp_path, story)


def test_missing_short_and_damaged_files_are_reported(tmp_path):
    async def story(metadata, blocks):
        bucket = await metadata.create_bucket("bucket", "me")
        missing = await stored(metadata, blocks, bucket, "missing", b"m" * 1000)
        damaged = await stored(metadata, blocks, bucket, "damaged", b"d" * 1000)
        blob = await put(blocks, b"s" * 1000)
        draft = msgspec.structs.replace(large(b"x", 2000), blob=blob)
        await metadata.put_object(bucket, "short", draft)
        for path in stored_files(tmp_path / "cache"):
            if missing.content.hex() in path.name:
                path.unlink()
            if damaged.content.hex() in path.name:
                path.chmod(0o600)
                path.write_bytes(path.read_bytes()[:-10])
        for repair in (False, True):
            found = await findings(metadata, blocks, repair=repair)
            seen = {(finding.kind, finding.key) for finding in found}
            assert seen == {
                ("file-missing", missing.content.hex()),
                ("file-damaged", damaged.content.hex()),
                ("file-size", blob.hex()),
            }
            for finding in found:
                assert f"; of bucket/{finding.kind.removeprefix('file-').replace('size', 'short')} (" in finding.detail

    with_files(tmp_path, story)


def test_a_missing_part_is_of_no_object_until_it_is_completed_and_of_the_first_few_that_share_it(tmp_path):
    async def story(metadata, blocks):
        bucket = await metadata.create_bucket("bucket", "me")
        upload = await metadata.create_upload(bucket, "multi", UploadDraft())
        blob = await put(blocks, b"p" * MIB)
        draft = Part(1, MIB, etag_of(b"p"), "", 0, (Extent(blob, 0, MIB),), node=blocks.node_id)
        stored_part = await metadata.put_part(bucket, "multi", upload.upload_id, draft)
        for path in stored_files(tmp_path / "cache"):
            path.unlink()
        (finding,) = await findings(metadata, blocks)
        assert finding.detail == f"its {MIB} bytes are not on this node; of no object"
        await metadata.complete_upload(
            bucket, "multi", upload.upload_id, listed(stored_part), combine=no_combine, composite=no_composite
        )
        for number in range(5):
            await metadata.copy_object((bucket, "multi", None), None, bucket, f"copy{number}", copy_draft)
        (finding,) = await findings(metadata, blocks)
        names = finding.detail.partition("; of ")[2].split(", ")
        assert len(names) == 4
        assert names.pop() == "..."
        assert all(name.startswith(("bucket/multi (version ", "bucket/copy")) for name in names)

    with_files(tmp_path, story)


def test_what_cannot_be_named_is_reported_all_the_same(tmp_path):
    async def story(metadata, blocks):
        bucket = await metadata.create_bucket("bucket", "me")
        version = await stored(metadata, blocks, bucket, "k", b"d" * 1000)

        async def damage(tr):
            for key, _ in await tr.get_range(*metadata.context.keys.ref_range(version.content), limit=10):
                tr.set(key, b"\xc1")

        await metadata.engine.transact(damage)
        for path in stored_files(tmp_path / "cache"):
            path.unlink()
        (missing,) = [each for each in await findings(metadata, blocks) if each.kind == "file-missing"]
        assert missing.detail == "its 1000 bytes are not on this node"

    with_files(tmp_path, story)


def test_an_upload_under_way_is_no_orphan(tmp_path):
    async def story(metadata, blocks):
        writer = blocks.create_blob()
        await writer.write(b"x" * 1000)
        assert await findings(metadata, blocks, repair=True) == []
        await writer.finish()
        assert await findings(metadata, blocks, repair=True) == []
        await writer.abort()

    with_files(tmp_path, story)
