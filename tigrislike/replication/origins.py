"""The origins of a store, as one process has them open.

An origin is opened when it is first needed. Its record is looked at again every few seconds, so that new credentials
count without a restart; whatever still reads with the old ones finishes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import asdict
from typing import Final, Protocol

from tigrislike.bytecache import SourceUnavailable
from tigrislike.metadata import Metadata
from tigrislike.metadata.kv import EngineError
from tigrislike.metadata.records import Elsewhere, OriginPlace
from tigrislike.origin import (
    Buffer,
    Origin,
    OriginChanged,
    OriginError,
    OriginMissing,
    OriginRefused,
    OriginUnavailable,
)
from tigrislike.origin.resilient import Resilient

log = logging.getLogger("tigrislike.replication")

_LOOKUP_S: Final = 5.0
"""How long a record is relied on: so long may old credentials be used."""

_TRY_OUT_S: Final = 5.0


class OriginSilent(SourceUnavailable):
    """The origin that has the bytes does not give them now."""

    for_operators = False

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class MovedAtOrigin(SourceUnavailable):
    """The object at the origin is not the one any more that stands in the database: whoever looks it up anew may have
    more luck."""


class OpenOrigin(Protocol):
    """How an origin is opened. Raises OriginRefused: there is no driver for it, or it does not take these options."""

    def __call__(self, place: OriginPlace) -> Origin: ...


class _Opened:
    """An open origin, and how many use it: closed when the last one lets go of it, once it was replaced."""

    def __init__(self, place: OriginPlace, origin: Origin) -> None:
        self.place = place
        self.origin = origin
        self.looked_s = 0.0
        self.uses = 0


class Origins:
    """The open origins of one process.

    Args:
        clock_s: monotonic; for tests.
    """

    def __init__(
        self, metadata: Metadata, open_origin: OpenOrigin, *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._metadata = metadata
        self._open_origin = open_origin
        self._clock_s = clock_s
        self._opened: dict[bytes, _Opened] = {}
        self._opening: dict[bytes, asyncio.Lock] = {}
        self._replaced: list[_Opened] = []  # and still in use
        self._gone: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def using(self, origin_id: bytes) -> AsyncIterator[Origin]:
        """An origin, open for the length of a `with` block.

        Raises:
            OriginRefused: there is none with this id, or no driver for it.
            EngineError: the database does not say where it is, and this process does not know.
        """
        opened = await self._get(origin_id)
        opened.uses += 1
        try:
            yield opened.origin
        finally:
            opened.uses -= 1
            await self._close_if_done(opened)

    async def try_out(self, place: OriginPlace) -> None:
        """List a place, once and for a few seconds, as somebody is about to have it used.

        Raises:
            OriginError: it does not let itself be listed. TimeoutError: it takes its time.
        """
        origin = self._open_origin(place)
        try:
            async with asyncio.timeout(_TRY_OUT_S):
                await origin.list("", limit=1)
        finally:
            await origin.close()

    async def _get(self, origin_id: bytes) -> _Opened:
        opened = self._opened.get(origin_id)
        if opened is not None and self._clock_s() - opened.looked_s < _LOOKUP_S:
            return opened
        async with self._opening.setdefault(origin_id, asyncio.Lock()):
            opened = self._opened.get(origin_id)
            looked_s = self._clock_s()
            if opened is not None and looked_s - opened.looked_s < _LOOKUP_S:
                return opened
            try:
                place = await self._metadata.origin(origin_id)
            except EngineError:
                if opened is None:
                    raise
                return opened  # origins stay where they are while the database is away
            if place is None:
                raise OriginRefused(f"the store has no origin {origin_id.hex()}")
            if opened is None or opened.place != place:
                fresh = _Opened(place, self._open_origin(place))
                if opened is not None:
                    self._replaced.append(opened)
                    await self._close_if_done(opened)
                self._opened[origin_id] = opened = fresh
            opened.looked_s = looked_s
            return opened

    async def _close_if_done(self, opened: _Opened) -> None:
        if opened in self._replaced and not opened.uses:
            self._replaced.remove(opened)
            self._gone.update(_counted(opened.origin))
            for level in ("running", "waiting", "state"):
                del self._gone[level]
            await opened.origin.close()

    def counted(self) -> Counter[str]:
        """What this process has had to do with origins: the sums of their `resilient.Statistics`, by field, and as
        `state`, how many are left alone."""
        total = Counter(self._gone)
        for opened in (*self._opened.values(), *self._replaced):
            total.update(_counted(opened.origin))
        return total

    async def read(self, elsewhere: Elsewhere, size: int, start: int, stop: int) -> AsyncGenerator[Buffer, None]:
        """Bytes `start` to `stop` of a blob of `size` bytes, from where an origin has it.

        Raises:
            MovedAtOrigin: what the origin has there is another version, or nothing.
            OriginSilent: it does not give them now.
        """
        try:
            async with (
                self.using(elsewhere.origin) as origin,
                aclosing(origin.read(elsewhere.key, start, stop, size=size, etag=elsewhere.etag)) as pieces,  # type: ignore[type-var]
            ):
                async for piece in pieces:
                    yield piece
        except (OriginMissing, OriginChanged) as error:
            raise MovedAtOrigin(f"{elsewhere.key!r} at its origin: {error}") from error
        except OriginUnavailable as error:
            log.warning("%r at its origin: %s", elsewhere.key, error)
            raise OriginSilent("The origin does not answer now. Please try again.", error.retry_after_s) from error
        except OriginError as error:
            log.error("%r at its origin: %s", elsewhere.key, error)
            raise OriginSilent("The origin does not give the object.") from error
        except EngineError as error:
            raise SourceUnavailable(f"the database does not tell where origin {elsewhere.origin.hex()} is") from error

    async def aclose(self) -> None:
        """Close every origin; what is under way fails."""
        opened, self._opened = [*self._opened.values(), *self._replaced], {}
        for each in opened:
            await each.origin.close()


def _counted(origin: Origin) -> Counter[str]:
    if not isinstance(origin, Resilient):
        return Counter()
    found = asdict(origin.statistics())
    return Counter({**found, "state": int(found["state"] != "closed")})
