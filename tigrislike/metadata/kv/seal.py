"""Sealing a store: a flag in its database that refuses every change, in every process, from its next transaction on.

For moving a store: once `Engine.seal` has returned nothing that it holds changes any more until `Engine.unseal`, so it
can be copied at leisure. Reads go on. A transaction that writes fails with `StoreSealed`, whenever it began: what was
under way when the seal was set either committed before it, or is refused. Only `transact_past_seal` gets through.

SQLite's writer looks at the flag once for each group (`sqlite_writer.py`). On engines whose transactions can conflict
`SealCheck` makes it cost no round trip: sealing moves the database's metadata version, which arrives with a
transaction's read version. While it stands where the store was last seen open, the store still is, and a read conflict
on the flag refuses the commit should it be sealed before that. A transaction that reads nothing needs no version of its
own: it takes one at which the store was open a moment ago, and the same conflict guards it from there on.

All engines keep these keys under the store's prefix; no key of the keyspace begins with 0xfe. `OWN` is where they, and
the marks that settle commits, begin: what lies before it is the store.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from .engine import Transaction
from .errors import StoreSealed, Unreadable

T = TypeVar("T")

OWN = b"\xfe"
SEALED = OWN + b"/sealed"
"""JSON object; its member `reason` is for people, the others belong to whoever sealed."""

COPYING = OWN + b"/copying"
"""There while the store is being filled by a copy and may not be opened: JSON object with the member `source`."""

CLOCK_FLOOR = OWN + b"/clock-floor"
"""Unix ns, 8 bytes big-endian: no stamp that a copy brought here is later. Who is behind it may not open the store."""


def sealed_value(reason: str, **members: Any) -> bytes:
    """What lies under `SEALED`."""
    return json.dumps({"reason": reason, **members}).encode()


def seal_members(value: bytes) -> dict[str, Any]:
    """The members of what lies under `SEALED` or `COPYING`."""
    members: dict[str, Any] = json.loads(value)
    return members


def seal_reason(value: bytes) -> str:
    """The reason in what lies under `SEALED`."""
    return str(seal_members(value)["reason"])


class Sealable:
    """The methods of an `Engine` that have to do with its seal, the same for all engines."""

    prefix: bytes

    async def read(self, fn: Callable[..., Awaitable[T]], *args: object, max_age_ns: int = 0) -> T:
        raise NotImplementedError

    async def transact_past_seal(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        raise NotImplementedError

    async def seal(self, reason: str) -> None:
        """See `Engine.seal`."""
        await self.transact_past_seal(set_seal, self.prefix, sealed_value(reason))

    async def unseal(self) -> None:
        """See `Engine.unseal`."""
        await self.transact_past_seal(clear_seal, self.prefix)

    async def sealed(self) -> str | None:
        """See `Engine.sealed`."""
        value = await self.read(read_seal, self.prefix)
        return None if value is None else seal_reason(value)


async def read_seal(tr: Transaction, prefix: bytes) -> bytes | None:
    """What lies under `SEALED`; None where the store is open."""
    return await tr.get(prefix + SEALED)


async def set_seal(tr: Transaction, prefix: bytes, value: bytes) -> None:
    """Seal the store, or change what its seal says."""
    tr.set(prefix + SEALED, value)
    tr.bump_metadata_version()


async def clear_seal(tr: Transaction, prefix: bytes) -> None:
    """Open the store again."""
    tr.clear(prefix + SEALED)
    tr.bump_metadata_version()


class Guarded(Transaction, Protocol):
    """A transaction whose commit is to be refused while the store is sealed."""

    @property
    def blind(self) -> bool:
        """Nothing was read so far, nor any conflict added, so that any read version will do."""
        ...

    def reuse(self, version: int) -> None:
        """Read at `version`, which an earlier transaction read at. Only while `blind`."""
        ...


RECENT_NS = 1_000_000_000
"""How long a version at which the store was open is used again. The cluster forgets versions after five seconds."""


class SealCheck:
    """Refuses transactions of a sealed store, on an engine whose transactions can conflict."""

    def __init__(self, prefix: bytes) -> None:
        self._key = prefix + SEALED
        self._open_at: bytes | None = None
        self._open_version = 0
        self._asked_ns = -RECENT_NS

    async def check(self, tr: Guarded, now_ns: int, *, again: bool) -> None:
        """Pass only while the store is open, and see to it that `tr` commits only if it still is then.

        Called when `tr` has done all that it does: what it read brought the metadata version along. `now_ns` is on
        any clock that never goes back; `again`: an earlier attempt has failed, perhaps for the version it used.

        Raises:
            StoreSealed
        """
        blind = tr.blind
        if blind and not again and now_ns - self._asked_ns < RECENT_NS:
            tr.reuse(self._open_version)
            tr.add_read_conflict_key(self._key)
            return
        try:
            at = await tr.metadata_version()
        except Unreadable:  # the transaction moves it itself
            at = None
        if at is not None and at == self._open_at:
            tr.add_read_conflict_key(self._key)
        else:
            value = await tr.get(self._key)
            if value is not None:
                raise StoreSealed(seal_reason(value))
            self._open_at = at if at is not None else self._open_at
        if blind:
            self._open_version, self._asked_ns = await tr.read_version(), now_ns
