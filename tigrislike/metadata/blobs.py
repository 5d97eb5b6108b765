"""Contents and blobs: who refers to bytes, when they may go, and what a blob's commit state is.

A content is the bytes of one or more versions. References are keys (``ref / content, referrer``), not counters.
Whoever drops one enqueues ``reclaim``, which proves "no reference" by a conflicting range read and marks the content
dead in the same transaction. Whoever adds one reads the content with a conflict and refuses a dead one. So in any
interleaving either the reference stands or the content dies, never both.

A blob is a run of bytes written by one upload. A committing transaction reads ``blob / id``, refuses a dead one and
writes it as live; `settle_blob` turns an absent one into a dead one. So once a sweeper has been told "dead", no
commit can succeed with that blob, and its files may be unlinked.

The files themselves are not this layer's business: callers delete them between `reclaim_content` and
`forget_content`, or after `settle_blob` returned False.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

import msgspec

from . import owed
from .context import Context
from .errors import BlobDead, ContentGone
from .kv.engine import Transaction
from .records import ANNOUNCED, BACKED, DEAD, LIVE, LOST, REMOVED, Blob, Content, Elsewhere, Home, Part, Referrer
from .records import blob as blob_codec
from .records import content as content_codec
from .records import elsewhere as elsewhere_codec
from .records import node as node_codec
from .records import part as part_codec
from .records import referrer as referrer_codec

FORGET_BATCH = 500
"""Parts whose rows one transaction forgets."""


# --- contents


async def live_content(tr: Transaction, ctx: Context, content_id: bytes) -> Content:
    """The content, if references to it may be added. Raises ContentGone."""
    raw = await tr.get(ctx.keys.content(content_id))
    if raw is None:
        raise ContentGone(content_id)
    content = content_codec.decode(raw)
    if content.state != LIVE:
        raise ContentGone(content_id)
    return content


def add_reference(tr: Transaction, ctx: Context, content_id: bytes, referrer: Referrer) -> None:
    """Record that `referrer` needs a content, which the caller knows to be live: read so with a conflict, or new."""
    tr.set(ctx.keys.ref(content_id, referrer.digest), referrer_codec.encode(referrer))


async def drop_reference(
    tr: Transaction, ctx: Context, bucket_id: bytes, content_id: bytes, referrer: Referrer
) -> None:
    """Remove a reference and owe the reclaiming of the content, after the grace that running reads are given.

    Whether it was the last one is left for reclaiming to find out: looking here would make every two deletes of
    sharers conflict.
    """
    # The content says who is to reclaim it. Most are this node's own, so what that takes is asked for meanwhile.
    stored = tr.get(ctx.keys.content(content_id), snapshot=True)
    asked = ask_reclaim(tr, ctx, ctx.home.node, bucket_id, content_id)
    raw = await stored
    node = reclaimer(ctx, content_codec.decode(raw) if raw is not None else None)
    await owe_reclaim(tr, ctx, node, bucket_id, content_id, asked=asked)
    tr.clear(ctx.keys.ref(content_id, referrer.digest))


def reclaimer(ctx: Context, content: Content | None) -> bytes:
    """The node that is to reclaim a content: this one if it has bytes of it, else the first that has."""
    homes = content.homes if content is not None else ()
    if not homes or any(home.node == ctx.home.node for home in homes):
        return ctx.home.node
    return homes[0].node


def ask_reclaim(tr: Transaction, ctx: Context, node: bytes, bucket_id: bytes, content_id: bytes) -> owed.Asked:
    """Start what `owe_reclaim` reads, together with other reads."""
    return owed.ask(tr, ctx, owed.zone_of(node, bucket_id), owed.RECLAIM_CONTENT, content_id)


async def owe_reclaim(
    tr: Transaction,
    ctx: Context,
    node: bytes,
    bucket_id: bytes,
    content_id: bytes,
    *,
    at_once: bool = False,
    vesting_ns: int | None = None,
    asked: owed.Asked | None = None,
) -> None:
    """Owe a node the reclaiming of a content: after the grace, `at_once`, or from `vesting_ns` on."""
    if vesting_ns is None:
        vesting_ns = 0 if at_once else ctx.now_ns() + ctx.grace_ns
    zone = owed.zone_of(node, bucket_id)
    await owed.enqueue(
        tr,
        ctx,
        zone,
        owed.RECLAIM_CONTENT,
        content_id,
        vesting_ns=vesting_ns,
        priority=owed.RECLAIM_PRIORITY,
        bucket=bucket_id,
        asked=asked,
    )


async def load_parts(tr: Transaction, ctx: Context, content_id: bytes) -> tuple[Part, ...]:
    """The manifest of a multipart content, in order."""
    begin, end = ctx.keys.part_range(content_id)
    rows = await tr.get_range(begin, end)
    return tuple(part_codec.decode(value) for _, value in rows)


async def condemn_content(tr: Transaction, ctx: Context, content_id: bytes) -> bool:
    """Mark a content dead unless something refers to it. True: it is dead, now or already (or forgotten).

    Whoever else has bytes of it, or is about to, is told in the same transaction.
    """
    stored = tr.get(ctx.keys.content(content_id))
    begin, end = ctx.keys.ref_range(content_id)
    refs = tr.get_range(begin, end, limit=1)
    raw = await stored
    if raw is None:
        return True
    content = content_codec.decode(raw)
    if content.state == DEAD:
        return True
    if await refs:
        return False
    holders = {home.node for home in (*content.homes, *content.pending, *content.leaving)}
    if content.parts:
        parts = await load_parts(tr, ctx, content_id)
        own = [part for part in parts if not part.source]
        beside = (home.node for part in own for home in (*part.others, *part.pending))
        holders.update(node for node in (*(part.node for part in own), *beside) if node)
    others = await _not_removed(tr, ctx, sorted(holders - {ctx.home.node}))
    homes = tuple(Home("", node) for node in (ctx.home.node, *others))
    dead = msgspec.structs.replace(content, state=DEAD, dead_ns=ctx.now_ns(), homes=homes, pending=(), leaving=())
    tr.set(ctx.keys.content(content_id), content_codec.encode(dead))
    for node in others:
        await owe_reclaim(tr, ctx, node, content.bucket, content_id, at_once=True)
    return True


async def _not_removed(tr: Transaction, ctx: Context, nodes: Sequence[bytes]) -> list[bytes]:
    """Those of `nodes` that may still do something. With a conflict, for what a removed node is owed is taken from it
    only once."""
    rows = [(node, tr.get(ctx.keys.node(node))) for node in nodes]
    found = [(node, await row) for node, row in rows]
    return [node for node, raw in found if raw is None or node_codec.decode(raw).state != REMOVED]


async def leave_dead(tr: Transaction, ctx: Context, content_id: bytes) -> bool:
    """Note that this node has no bytes of a dead content any more. True: nobody has, and its records may go."""
    return await strike_dead(tr, ctx, content_id, ctx.home.node)


async def strike_dead(tr: Transaction, ctx: Context, content_id: bytes, node: bytes) -> bool:
    """Note that `node` has no bytes of a dead content any more. True: nobody has, and its records may go."""
    raw = await tr.get(ctx.keys.content(content_id))
    if raw is None:
        return True
    content = content_codec.decode(raw)
    if content.state != DEAD:
        return False
    homes = tuple(home for home in content.homes if home.node != node)
    if homes != content.homes:
        tr.set(ctx.keys.content(content_id), content_codec.encode(msgspec.structs.replace(content, homes=homes)))
        tr.clear(ctx.keys.home(node, content_id))
    return not homes


async def dead_blobs(tr: Transaction, ctx: Context, content_id: bytes) -> list[bytes]:
    """The blobs that belong to a dead content; empty if it is forgotten already."""
    raw = await tr.get(ctx.keys.content(content_id))
    if raw is None or content_codec.decode(raw).state != DEAD:
        return []
    content = content_codec.decode(raw)
    if not content.parts:
        return [content_id]
    parts = await load_parts(tr, ctx, content_id)
    return [extent.blob for part in parts if not part.source for extent in part.extents]


async def dead_elsewhere(tr: Transaction, ctx: Context, content_id: bytes) -> list[tuple[bytes, bytes]]:
    """What origins may have of a dead content, which nobody else needs: (origin, blob) each."""
    raw = await tr.get(ctx.keys.content(content_id))
    if raw is None or content_codec.decode(raw).state != DEAD:
        return []
    content = content_codec.decode(raw)
    ours = {content.origin} if content.elsewhere in (ANNOUNCED, BACKED) else set()
    if not content.parts:
        return [(origin, content_id) for origin in ours]
    parts = await load_parts(tr, ctx, content_id)
    own = [(part.origin, extent.blob) for part in parts if not part.source for extent in part.extents]
    return [(each, blob_id) for origin, blob_id in own for each in sorted(ours | {origin}) if each]


async def forget_some(tr: Transaction, ctx: Context, content_id: bytes) -> bool:
    """Remove rows of a dead content whose bytes are gone, a bounded number at a time. True: nothing is left.

    A reference on another content, held for slices, is dropped with the part that needed it: dropping it again is
    harmless.
    """
    raw = await tr.get(ctx.keys.content(content_id))
    if raw is None:
        return True
    content = content_codec.decode(raw)
    if content.state != DEAD:
        return True
    begin, end = ctx.keys.part_range(content_id)
    rows = await tr.get_range(begin, end, limit=FORGET_BATCH)
    nodes = {home.node for home in content.homes}
    sources = set()
    for key, value in rows:
        part = part_codec.decode(value)
        tr.clear(key)
        nodes.add(part.node)
        if part.source:
            sources.add(part.source)
        else:
            for extent in part.extents:
                tr.clear(ctx.keys.blob(extent.blob))
                tr.clear(ctx.keys.elsewhere(extent.blob))
    for source in sorted(sources):
        await drop_reference(tr, ctx, content.bucket, source, Referrer(content=content_id))
    for node in sorted(nodes):
        tr.clear(ctx.keys.home(node, content_id))
    if len(rows) == FORGET_BATCH:
        return False
    tr.clear(ctx.keys.blob(content_id))
    tr.clear(ctx.keys.elsewhere(content_id))
    tr.clear(ctx.keys.content(content_id))
    tr.clear(ctx.keys.home(LOST, content_id))
    tr.clear(ctx.keys.short(content_id))
    return True


# --- blobs


async def commit_blob(
    tr: Transaction,
    ctx: Context,
    blob_id: bytes,
    *,
    content_id: bytes,
    number: int,
    size: int,
    stored: Awaitable[bytes | None] | None = None,
) -> None:
    """Write a blob as live, belonging to `content_id` (as its part `number`, 0: as all of it).

    `stored` is its row, if the caller has asked for it already.

    Raises:
        BlobDead: the blob has been given up.
    """
    key = ctx.keys.blob(blob_id)
    raw = await (tr.get(key) if stored is None else stored)
    if raw is not None and blob_codec.decode(raw).state == DEAD:
        raise BlobDead(blob_id)
    tr.set(key, blob_codec.encode(Blob(LIVE, content_id, number, size, ctx.home.node, ctx.now_ns())))


async def settle_blob(tr: Transaction, ctx: Context, blob_id: bytes) -> bool:
    """Decide a blob whose writer is dead. True: it was committed, keep it. False: it is dead for ever, or was committed
    without this node, unlink it.

    The row of a dead blob is forgotten by the ``reclaim_blob`` item enqueued here, after the grace: no commit that
    was under way when the writer died can still arrive then.
    """
    key = ctx.keys.blob(blob_id)
    raw = await tr.get(key)
    if raw is not None:
        blob = blob_codec.decode(raw)
        return blob.state == LIVE and await _is_holder(tr, ctx, blob)
    tr.set(key, blob_codec.encode(Blob(DEAD, node=ctx.home.node, changed_ns=ctx.now_ns())))
    await owe_blob(tr, ctx, ctx.home.node, b"", blob_id)
    return False


async def _is_holder(tr: Transaction, ctx: Context, blob: Blob) -> bool:
    """Whether this node is one of those that a live blob was committed to, or that became its homes."""
    if blob.node == ctx.home.node:
        return True
    stored, row = tr.get(ctx.keys.content(blob.content)), tr.get(ctx.keys.part(blob.content, blob.number))
    raw, part = await stored, await row
    others = (
        [home for each in [part_codec.decode(part)] for home in (*each.others, *each.pending)]
        if part is not None
        else []
    )
    if raw is not None:
        content = content_codec.decode(raw)
        others += [*content.homes, *content.pending, *content.leaving]
    return any(home.node == ctx.home.node for home in others)


def ask_owed_blob(tr: Transaction, ctx: Context, node: bytes, bucket_id: bytes, blob_id: bytes) -> owed.Asked:
    """Start what `owe_blob` reads, together with other reads."""
    return owed.ask(tr, ctx, owed.zone_of(node, bucket_id), owed.RECLAIM_BLOB, blob_id)


async def owe_blob(
    tr: Transaction,
    ctx: Context,
    node: bytes,
    bucket_id: bytes,
    blob_id: bytes,
    asked: owed.Asked | None = None,
    vesting_ns: int | None = None,
) -> None:
    """Owe the deletion of one blob that its content no longer uses: after the grace, or from `vesting_ns` on."""
    zone = owed.zone_of(node, bucket_id)
    if vesting_ns is None:
        vesting_ns = ctx.now_ns() + ctx.grace_ns
    await owed.enqueue(
        tr,
        ctx,
        zone,
        owed.RECLAIM_BLOB,
        blob_id,
        vesting_ns=vesting_ns,
        priority=owed.RECLAIM_PRIORITY,
        bucket=bucket_id,
        asked=asked,
    )


async def blob_wanted(tr: Transaction, ctx: Context, blob_id: bytes, blob: Blob) -> bool:
    """Whether what a live blob row says it belongs to still uses it."""
    if blob.content == blob_id:
        return await tr.get(ctx.keys.content(blob_id)) is not None
    raw = await tr.get(ctx.keys.part(blob.content, blob.number))
    return raw is not None and any(extent.blob == blob_id for extent in part_codec.decode(raw).extents)


async def condemn_blob(tr: Transaction, ctx: Context, blob_id: bytes) -> bool:
    """Mark one blob dead unless its content uses it. True: it is dead, now or already (or forgotten)."""
    key = ctx.keys.blob(blob_id)
    raw = await tr.get(key)
    if raw is None:
        return True
    blob = blob_codec.decode(raw)
    if blob.state == DEAD:
        return True
    if await blob_wanted(tr, ctx, blob_id, blob):
        return False
    tr.set(key, blob_codec.encode(msgspec.structs.replace(blob, state=DEAD, changed_ns=ctx.now_ns())))
    return True


async def forget_blob(tr: Transaction, ctx: Context, blob_id: bytes) -> None:
    """Remove the row of a dead blob whose files are gone."""
    key = ctx.keys.blob(blob_id)
    raw = await tr.get(key)
    if raw is not None and blob_codec.decode(raw).state == DEAD:
        tr.clear(key)
        tr.clear(ctx.keys.elsewhere(blob_id))


async def blob_elsewhere(tr: Transaction, ctx: Context, blob_id: bytes) -> Elsewhere | None:
    """Where an origin has a blob, as far as it is noted."""
    raw = await tr.get(ctx.keys.elsewhere(blob_id))
    return elsewhere_codec.decode(raw) if raw is not None else None
