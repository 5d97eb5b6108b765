"""Backing origins: how a content comes to be held by an origin, and by none any more.

Written: the node announces it (`announce`), writes each blob, notes where it lies (`note`), and records, in the
transaction that finishes the work, that the origin has it all (`record`); only then does it count as a home. Given up:
`forgo` proves, with a conflicting read of the content, that enough nodes hold it, and forgets where its blobs lie; then
the objects go, which `forgone` notes. So a crash in between leaves objects too many and never too few, and what is
announced is reached when the content is reclaimed (`blobs.dead_elsewhere`).

One node does either: the first home of a content (`homes.owe_write_back`), for as long as it is that. It cannot give
up its home, nor take part in reclaiming the content, while it is at it, so no object is written and deleted at once.

A blob that is written before its commit is owed to be discarded first (`owe_discard`), which the commit withdraws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from . import owed, placing
from .blobs import owe_blob
from .context import Context
from .deciding import SECOND
from .homes import ANYBODY, held, owe_release, owe_write_back, put_content, read_content, share
from .kv.engine import Transaction
from .placing import Alive, Wanted
from .records import ANNOUNCED, BACKED, DEAD, NOWHERE, Blob, Content, Elsewhere
from .records import blob as blob_codec
from .records import elsewhere as elsewhere_codec

DISCARD: Final = "discard"
"""Task: what was sent to an origin for a blob is to go, unless the blob was committed."""

DISCARD_PRIORITY: Final = 2

DISCARD_NS: Final = 3600 * SECOND
"""How long a blob that is at an origin may wait for its commit, at least: longer than any request lasts."""

_ID_BYTES: Final = 16


def key_of(blob_id: bytes) -> str:
    """The key of a blob at a backing origin. It tells nothing, and no two stores have the same."""
    return blob_id.hex()


# --- written


async def announce(tr: Transaction, ctx: Context, content_id: bytes) -> bytes | None:
    """Note that this node begins to write a content to its origin; the origin's id. None: it is not to be, or not by
    this node."""
    content = await read_content(tr, ctx, content_id)
    if content is None or not placing.is_to_be_written(content) or not _is_first(ctx, content):
        return None
    if content.elsewhere != ANNOUNCED:
        put_content(tr, ctx, content_id, replace(content, origin=content.backing, elsewhere=ANNOUNCED))
    return content.backing


def _is_first(ctx: Context, content: Content) -> bool:
    return bool(content.homes) and content.homes[0].node == ctx.home.node


async def unwritten(tr: Transaction, ctx: Context, origin_id: bytes, blob_ids: Sequence[bytes]) -> list[bytes]:
    """Those of `blob_ids` of which it is not noted that the origin has them. Some hundreds at a time."""
    asked = [(blob_id, tr.get(ctx.keys.elsewhere(blob_id))) for blob_id in blob_ids]
    found = [(blob_id, await row) for blob_id, row in asked]
    return [blob_id for blob_id, raw in found if raw is None or elsewhere_codec.decode(raw).origin != origin_id]


async def note(
    tr: Transaction, ctx: Context, content_id: bytes, origin_id: bytes, written: Sequence[tuple[bytes, Elsewhere]]
) -> Content | None:
    """Note where the origin has blobs of a content that this node announced. None: it is another's to write by now, or
    dead, or not to be written any more; nothing is noted then."""
    content = await read_content(tr, ctx, content_id)
    if content is None or content.elsewhere != ANNOUNCED or content.origin != origin_id or not _is_first(ctx, content):
        return None
    for blob_id, elsewhere in written:
        tr.set(ctx.keys.elsewhere(blob_id), elsewhere_codec.encode(elsewhere))
    return content


async def record(
    tr: Transaction,
    ctx: Context,
    content_id: bytes,
    origin_id: bytes,
    written: Sequence[tuple[bytes, Elsewhere]],
    alive: Alive,
) -> bool:
    """Record that the origin has all of a content, `written` being the last of it, and owe the release of the homes
    that this makes too many. False: it has not, for contents that lend it parts are not there yet, or as for `note`."""
    content = await note(tr, ctx, content_id, origin_id, written)
    if content is None or not await _sources_are_backed(tr, ctx, content_id, content):
        return False
    content = replace(content, elsewhere=BACKED)
    put_content(tr, ctx, content_id, content)
    await release_excess(tr, ctx, content_id, content, alive)
    await owe_write_back(tr, ctx, content_id, content)  # should another origin be wanted by now, or none
    return True


async def _sources_are_backed(tr: Transaction, ctx: Context, content_id: bytes, content: Content) -> bool:
    sources = (await held(tr, ctx, content_id, content)).sources
    lenders = [await read_content(tr, ctx, source) for source in sources]
    return all(lender is not None and placing.is_backed(lender) for lender in lenders)


async def release_excess(tr: Transaction, ctx: Context, content_id: bytes, content: Content, alive: Alive) -> None:
    """Owe the release of the homes of a content that are more than what is wanted."""
    for home in placing.excess(content, alive, ctx.regions):
        await owe_release(tr, ctx, home.node, content.bucket, content_id)


# --- given up


async def forgo(tr: Transaction, ctx: Context, content_id: bytes, alive: Alive) -> bytes | None:
    """Let a content be held by its origin no longer, where that is not wanted any more; the id of the origin, whose
    objects may go. None: enough nodes have to hold it first, or as for `announce`."""
    content = await read_content(tr, ctx, content_id)
    if content is None or not placing.is_to_be_given_up(content) or not _is_first(ctx, content):
        return None
    if not placing.may_be_given_up(content, alive):
        return None
    for blob_id, _ in (await held(tr, ctx, content_id, content)).blobs:
        tr.clear(ctx.keys.elsewhere(blob_id))
    put_content(tr, ctx, content_id, replace(content, elsewhere=ANNOUNCED))
    return content.origin


async def forgone(tr: Transaction, ctx: Context, content_id: bytes, origin_id: bytes) -> None:
    """Note that the origin has nothing of a content any more."""
    content = await read_content(tr, ctx, content_id)
    if content is None or content.elsewhere != ANNOUNCED or content.origin != origin_id or not _is_first(ctx, content):
        return
    content = replace(content, origin=b"", elsewhere=NOWHERE)
    put_content(tr, ctx, content_id, content)
    await owe_write_back(tr, ctx, content_id, content)


# --- before a write is acknowledged


async def want(tr: Transaction, ctx: Context, content_id: bytes, origin_id: bytes) -> bool:
    """Have a content held by an origin, whoever wants that; whether one does by now. True also where it is gone."""
    content = await read_content(tr, ctx, content_id)
    if content is None or placing.is_backed(content):
        return True
    await share(tr, ctx, {content_id: content}, Wanted((), 1, origin_id), {})
    for each in (content_id, *(await held(tr, ctx, content_id, content)).sources):
        # At once: it may have been put off, for the origin was away.
        if (lacking := await read_content(tr, ctx, each)) is not None:
            await owe_write_back(tr, ctx, each, lacking)
    return False


def _discard_subject(blob_id: bytes, origin_id: bytes) -> bytes:
    return blob_id + origin_id


def discard_of(subject: bytes) -> tuple[bytes, bytes]:
    """The blob and the origin of a `DISCARD` item."""
    return subject[:_ID_BYTES], subject[_ID_BYTES:]


async def owe_discard(
    tr: Transaction, ctx: Context, bucket_id: bytes, blob_id: bytes, origin_id: bytes, *, vesting_ns: int | None = None
) -> None:
    """Owe that what an origin is sent for a blob goes again, unless the blob is committed in time (by `vesting_ns`)."""
    await owed.enqueue(
        tr,
        ctx,
        owed.zone_of(ANYBODY, bucket_id),
        DISCARD,
        _discard_subject(blob_id, origin_id),
        vesting_ns=ctx.now_ns() + max(ctx.grace_ns, DISCARD_NS) if vesting_ns is None else vesting_ns,
        priority=DISCARD_PRIORITY,
        bucket=bucket_id,
    )


def ask_discard(tr: Transaction, ctx: Context, bucket_id: bytes, blob_id: bytes, origin_id: bytes) -> owed.Asked:
    """Start reading what is owed; for `owed.withdraw`, in the transaction that commits the blob."""
    return owed.ask(tr, ctx, owed.zone_of(ANYBODY, bucket_id), DISCARD, _discard_subject(blob_id, origin_id))


async def give_up_blob(tr: Transaction, ctx: Context, blob_id: bytes) -> bool:
    """Decide a blob that an origin was sent. True: it is not committed, and never will be; the object may go."""
    key = ctx.keys.blob(blob_id)
    raw = await tr.get(key)
    if raw is not None:
        return blob_codec.decode(raw).state == DEAD
    tr.set(key, blob_codec.encode(Blob(DEAD, node=ctx.home.node, changed_ns=ctx.now_ns())))
    await owe_blob(tr, ctx, ctx.home.node, b"", blob_id)
    return True
