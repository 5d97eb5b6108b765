"""What becomes of what belonged to a node that is removed from the store.

The node is marked first, which nothing undoes: it hears so with its next beat, and stops. Then its homes go, page by
page: what they leave lacking is owed to others in the same transaction, a content that nobody else can give is noted as
lost, and a dead one that nobody else has is forgotten; of uploads in progress, parts that nobody else has, and
no origin, are none any more. What was owed to the node is owed to others or to nobody. Each step is a bounded
transaction that can be repeated; where it is cut off, removing the node again goes on.

A node that is still running may commit until it hears of its removal, so whoever removes one comes back after that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple

from tigrislike.metadata import Metadata, blobs, homes, owed, uploads
from tigrislike.metadata.context import Context
from tigrislike.metadata.keyspace import unpack_bytes
from tigrislike.metadata.kv import Transaction
from tigrislike.metadata.records import DEAD, LOST, REMOVED, Item
from tigrislike.metadata.records import content as content_codec
from tigrislike.metadata.records import item as item_codec

from .lacking import View, owe_missing
from .membership import Members

PAGE: Final = 100
"""Contents, or items, of one transaction."""


class Taken(NamedTuple):
    """What one transaction did: rows taken from the node, contents that nobody has any more, dead ones to forget."""

    rows: int
    lost: list[bytes]
    dead: list[bytes]


async def remove_node(metadata: Metadata, members: Members, node: bytes) -> AsyncIterator[Taken]:
    """Remove a node and take over what belonged to it; after each page, what became of it.

    `members` has watched for long enough to know who is alive: only nodes that are count, and are given homes.

    Raises:
        NoSuchNode.
    """
    removed = await metadata.set_node_state(node, REMOVED)
    await members.refresh()
    view = View(members, {each.node: each.region for each in members.takers()})
    for step in (_take_homes, _take_items, _take_letters):
        while True:
            taken = await metadata.background(step, metadata.context, view, node, removed.region)
            for content_id in taken.dead:
                while not await metadata.background(blobs.forget_some, metadata.context, content_id):
                    pass
            if not taken.rows:
                break
            yield taken
    await metadata.background(_clear_zones, metadata.context, node)


async def _take_homes(tr: Transaction, ctx: Context, view: View, node: bytes, near: str) -> Taken:
    content_ids = await homes.homes_of(tr, ctx, node, b"", PAGE)
    lost: list[bytes] = []
    dead: list[bytes] = []
    for content_id, read in [(each, tr.get(ctx.keys.content(each))) for each in content_ids]:
        raw = await read
        content = content_codec.decode(raw) if raw is not None else None
        if content is None:
            if await uploads.lose_parts(tr, ctx, content_id, node):
                lost.append(content_id)
        elif content.state == DEAD:
            dead += await _bury(tr, ctx, content_id, node, content.bucket)
            tr.clear(ctx.keys.home(node, content_id))
        else:
            left = homes.remove_home(tr, ctx, content_id, content, node)
            if await homes.survives(tr, ctx, content_id, left, {home.node for home in left.homes}):
                await owe_missing(tr, ctx, view, content_id, left, near=near)
            else:
                tr.set(ctx.keys.home(LOST, content_id), b"")
                lost.append(content_id)
    return Taken(len(content_ids), lost, dead)


async def _take_items(tr: Transaction, ctx: Context, view: View, node: bytes, near: str) -> Taken:
    rows = await tr.get_range(*ctx.keys.queue_of(ctx.keys.queue_items, node), limit=PAGE)
    dead: list[bytes] = []
    for key, value in rows:
        zone, at = unpack_bytes(key, len(ctx.keys.queue_items))
        item = item_codec.decode(value)
        owed.put_item(tr, ctx, zone, unpack_bytes(key, at)[0], item, None)
        dead += await _take_over(tr, ctx, view, node, near, item)
    return Taken(len(rows), [], dead)


async def _take_letters(tr: Transaction, ctx: Context, view: View, node: bytes, near: str) -> Taken:
    rows = await tr.get_range(*ctx.keys.queue_of(ctx.keys.queue_dead, node), limit=PAGE)
    dead: list[bytes] = []
    for key, value in rows:
        tr.clear(key)
        dead += await _take_over(tr, ctx, view, node, near, item_codec.decode(value))
    return Taken(len(rows), [], dead)


async def _take_over(tr: Transaction, ctx: Context, view: View, node: bytes, near: str, item: Item) -> Sequence[bytes]:
    """Owe to others what they can do in the node's stead; contents to forget. What only the node could do is done: its
    files are gone with it."""
    subject = item.subject
    if item.task == owed.RECLAIM_BLOB:
        if await blobs.condemn_blob(tr, ctx, subject):
            await blobs.forget_blob(tr, ctx, subject)
        return ()
    if item.task not in (owed.RECLAIM_CONTENT, homes.HOLD, homes.WRITE_BACK):
        return ()
    raw = await tr.get(ctx.keys.content(subject))
    content = content_codec.decode(raw) if raw is not None else None
    if content is None:
        return ()
    if content.state == DEAD:
        return await _bury(tr, ctx, subject, node, content.bucket)
    if item.task == homes.WRITE_BACK:
        await homes.owe_write_back(tr, ctx, subject, content)
        return ()
    if item.task == homes.HOLD:
        if await homes.survives(tr, ctx, subject, content, {home.node for home in content.homes}):
            await owe_missing(tr, ctx, view, subject, content, near=near)
        return ()
    others = [home.node for home in content.homes if home.node != node]
    zone = owed.zone_of(others[0] if others else homes.ANYBODY, item.bucket)
    vesting_ns = ctx.now_ns() + ctx.grace_ns if item.lease else item.vesting_ns
    await owed.enqueue(
        tr,
        ctx,
        zone,
        owed.RECLAIM_CONTENT,
        subject,
        vesting_ns=vesting_ns,
        priority=owed.RECLAIM_PRIORITY,
        bucket=item.bucket,
    )
    return ()


async def _bury(tr: Transaction, ctx: Context, content_id: bytes, node: bytes, bucket_id: bytes) -> Sequence[bytes]:
    """Note that a node has no bytes of a dead content; the content, if it is to be forgotten. What an origin has of it
    is anybody's to delete, and then to forget."""
    if not await blobs.strike_dead(tr, ctx, content_id, node):
        return ()
    if not await blobs.dead_elsewhere(tr, ctx, content_id):
        return (content_id,)
    await blobs.owe_reclaim(tr, ctx, homes.ANYBODY, bucket_id, content_id, at_once=True)
    return ()


async def _clear_zones(tr: Transaction, ctx: Context, node: bytes) -> None:
    """Remove what is left of the node's zones, unless something was owed there meanwhile."""
    keys = ctx.keys
    if await tr.get_range(*keys.queue_of(keys.queue_items, node), limit=1):
        return
    for family in (keys.queue_due, keys.queue_failing, keys.queue_zones, keys.queue_pointers, keys.queue_counts):
        tr.clear_range(*keys.queue_of(family, node))
    tr.clear_range(*keys.queue_sum_range(node))
    tr.clear_range(*keys.queue_top_range(node))
    tr.clear(keys.queue_bell(node))
