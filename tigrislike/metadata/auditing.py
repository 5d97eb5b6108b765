"""What was asked of the store itself, by whom, and what came of it: kept in the database for a bounded time.

An entry is written before its action begins, and its outcome after: an action that was cut off, or whose end nobody
could note, is there all the same. Entries are found newest first.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec

from .context import Context
from .kv.engine import Engine, Transaction
from .kv.errors import AmbiguousCommit
from .records import Audit
from .records import audit as codec

MAX_ARGUMENTS = 4096
"""Characters of an entry's arguments; more are cut off."""


@dataclass(frozen=True)
class Actor:
    """Who asks: an access key's id or a user of this machine, from which address, in which request."""

    who: str
    where: str = ""
    request: str = ""


@contextlib.asynccontextmanager
async def noted(
    engine: Engine,
    ctx: Context,
    keep_s: float,
    actor: Actor,
    action: str,
    arguments: object,
    refusals: tuple[type[Exception], ...] = (),
) -> AsyncIterator[None]:
    """Keep an entry of what the `with` block does, and what came of it, for `keep_s`.

    Args:
        arguments: kept as JSON: nothing secret.
        refusals: errors which say that nothing was done.

    Raises:
        EngineError: the entry could not be kept. What is not noted as begun is not begun.
    """
    told = msgspec.json.encode(arguments).decode()[:MAX_ARGUMENTS]
    id_, at_ns = secrets.token_bytes(8), ctx.now_ns()

    async def note(outcome: str) -> None:
        entry = Audit(id_, at_ns, actor.who, actor.where, action, told, outcome, actor.request)
        await engine.transact(write, ctx, entry, round(keep_s * 1e9))

    await note("begun")
    try:
        yield
    except AmbiguousCommit:
        raise  # it stays `begun`, which is what is known
    except refusals as error:
        await note(f"refused: {getattr(error, 'code', type(error).__name__)}: {error}")
        raise
    except Exception as error:
        await note(f"failed: {type(error).__name__}: {error}")
        raise
    await note("done")


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
