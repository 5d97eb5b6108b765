"""What was asked of the store itself, by whom, and what came of it: kept in the database for a bounded time.

An entry is written before its action begins, and its outcome after: an action that was cut off, or whose end nobody
could note, is there all the same. Entries are found newest first.
"""

from __future__ import annotations

from .context import Context
from .kv.engine import Transaction
from .records import Audit
from .records import audit as codec

MAX_ARGUMENTS = 4096
"""Characters of an entry's arguments; more are cut off."""


async def write(tr: Transaction, ctx: Context, entry: Audit, keep_ns: int) -> None:
    """Keep an entry, in place of an earlier one of its time and id, and forget those older than `keep_ns`."""
    tr.set(ctx.keys.audit(entry.at_ns, entry.id), codec.encode(entry))
    oldest_ns = ctx.now_ns() - keep_ns
    if oldest_ns > 1 << 56:
        tr.clear_range(*ctx.keys.audits_before(oldest_ns))


async def entries(tr: Transaction, ctx: Context, after: tuple[int, bytes] | None, limit: int) -> list[Audit]:
    """Up to `limit` entries, newest first; those after the one of a time and an id, if given."""
    begin, end = ctx.keys.audits_before((1 << 63) - 1)
    if after is not None:
        begin = ctx.keys.audit(*after) + b"\x00"
    return [codec.decode(value) for _, value in await tr.get_range(begin, end, limit=limit, snapshot=True)]
