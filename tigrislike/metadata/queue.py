"""The queue of work owed, as consumers and operators use it: the transactions of `leasing` and `overseeing`, run.

It generates the random ids that those need and decides nothing itself. What owes something enqueues it in a transaction
of its own (`owed.enqueue`). All of it gives way to requests.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence

from . import leasing, overseeing
from .context import Context
from .deciding import QueueParameters
from .kv.engine import Engine, Watch
from .leasing import Batch, Effect, Peeked, Room
from .overseeing import Pausable
from .records import Claimed, Counts, Item, Pointer


class Queue:
    """The queue of one store. `Metadata.queue` is where to get it."""

    def __init__(self, engine: Engine, context: Context) -> None:
        self._engine = engine
        self._context = context

    @property
    def parameters(self) -> QueueParameters:
        return self._context.queue

    def now_ns(self) -> int:
        """The database's clock, in unix ns."""
        return self._context.now_ns()

    # --- consumers

    async def peek(self, destination: bytes, *, early_ns: int = 0) -> Peeked:
        """The zones of `destination` whose pointers have vested, or will in `early_ns`."""
        return await self._engine.read(leasing.peek, self._context, destination, early_ns)

    async def lease(self, zone: bytes, *, early_ns: int = 0) -> bytes | None:
        """Take a zone's pointer, to claim items with the lease id returned. None: it has not vested, or is paused."""
        lease = secrets.token_bytes(16)
        taken = await self._engine.transact(leasing.lease, self._context, zone, lease, early_ns)
        return lease if taken else None

    async def claim(self, zone: bytes, pointer_lease: bytes, room: Room | None = None) -> Batch | None:
        """Lease due items, as far as there is `room`, and let go of the pointer. None: its lease was lost."""
        lease = secrets.token_bytes(16)
        return await self._engine.transact(leasing.claim, self._context, zone, pointer_lease, lease, room)

    async def extend(self, batch: Sequence[Claimed]) -> list[Claimed]:
        """Prolong leases from now. Those that are still held; for the others the work must stop."""
        return await self._engine.transact(leasing.extend, self._context, batch)

    async def release(self, batch: Sequence[Claimed]) -> list[Claimed]:
        """Give items back, due at once, with no attempt counted. Those that were still held."""
        return await self._engine.transact(leasing.release, self._context, batch)

    async def finish(self, claimed: Claimed, effect: Effect | None = None) -> bool:
        """The work is done: `effect` and the item's end are one transaction. False: the lease was lost."""
        return await self._engine.transact(leasing.finish, self._context, claimed, effect)

    async def fail(self, claimed: Claimed, error: str, *, for_now: bool = False) -> bool:
        """The work failed: it vests again after a back-off, or becomes a dead letter, which it never does where it
        failed only `for_now`. False: the lease was lost."""
        return await self._engine.transact(leasing.fail, self._context, claimed, error, random.random(), for_now)

    async def listen(self, destination: bytes) -> Watch:
        """A watch that ends when there may be something new to do for `destination`: a hint, so poll as well."""
        return await self._engine.transact(leasing.listen, self._context, destination)

    # --- operators

    async def zones(self, after: bytes = b"", limit: int = 1000) -> list[bytes]:
        """Zones that may hold items, in order, after the zone `after`."""
        return await self._engine.read(overseeing.zones, self._context, after, limit)

    async def counts(self, zone: bytes) -> dict[str, Counts]:
        """The zone's counters by task."""
        return await self._engine.read(overseeing.counts, self._context, zone)

    async def depth(self, zone: bytes) -> int:
        """How many items the zone holds, waiting or leased."""
        return await self._engine.read(overseeing.depth, self._context, zone)

    async def oldest_ns(self, zone: bytes) -> int | None:
        """When the first of the zone's items vests, or has vested (0: it was owed at once); None: there is none."""
        return await self._engine.read(overseeing.oldest_ns, self._context, zone)

    async def pointer(self, zone: bytes) -> Pointer | None:
        """When consumers are to look at the zone next; None where the zone is not there."""
        return await self._engine.read(overseeing.pointer, self._context, zone)

    async def items(self, zone: bytes, after: bytes = b"", limit: int = 1000) -> list[tuple[bytes, Item]]:
        """Items of a zone with their ids, in the order of these, after the id `after`."""
        return await self._engine.read(overseeing.items, self._context, zone, after, limit)

    async def letters(self, zone: bytes, after: bytes = b"", limit: int = 1000) -> list[tuple[bytes, Item]]:
        """Dead letters of a zone, as `items`."""
        return await self._engine.read(overseeing.letters, self._context, zone, after, limit)

    async def show(self, zone: bytes, id_: bytes) -> tuple[Item | None, Item | None]:
        """An item and its dead letter, as far as there are any."""
        return await self._engine.read(overseeing.show, self._context, zone, id_)

    async def retry(self, zone: bytes, id_: bytes) -> bool:
        """Give a dead letter all its attempts again, at once. False: there is none."""
        return await self._engine.transact(overseeing.retry, self._context, zone, id_)

    async def delay(self, zone: bytes, id_: bytes, vesting_ns: int) -> bool:
        """Let a waiting item vest at `vesting_ns` (0: at once). False: there is none, or it is being worked on."""
        return await self._engine.transact(overseeing.delay, self._context, zone, id_, vesting_ns)

    async def drop(self, zone: bytes, id_: bytes) -> bool:
        """Give up an item and its dead letter. False: there is neither."""
        return await self._engine.transact(overseeing.drop, self._context, zone, id_)

    async def pause(self, what: Pausable, name: bytes) -> None:
        """Start nothing more of a zone, a destination or a task."""
        await self._engine.transact(overseeing.pause, self._context, what, name)

    async def resume(self, what: Pausable, name: bytes) -> None:
        """Go on with what was paused."""
        await self._engine.transact(overseeing.resume, self._context, what, name)

    async def paused(self) -> dict[Pausable, set[bytes]]:
        """What is paused."""
        return await self._engine.read(overseeing.paused, self._context)
