"""Whether the database can be reached, as one process sees it: a circuit breaker.

Two degrees. *Suspected*: it kept a read of a bounded bucket waiting for too long; such reads are then answered from
what is known, and all else asks it as ever. *Certain*: the engine itself has said that it cannot serve, or a question
of ours went unanswered; then nobody waits for it again. In either, one small question a second is asked in the
background, and the first answer ends it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from .kv.errors import EngineClosed, EngineError, EngineUnavailable

PROBE_S = 1.0
"""Between two questions."""

ANSWER_S = 5.0
"""How long one may take: longer than a cluster needs to recover from the loss of a machine."""

log = logging.getLogger(__name__)


class Outage:
    """The state of the connection to the database; also a context for whoever reads from it.

    Entering it raises EngineUnavailable at once while the database is certainly away, and one that the block raises is
    taken note of.

    Args:
        ask: a small read; raises `EngineError`, or takes for ever, while the database is away.
        sleep, answer_s: how the questions are paced, and how long one may take.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[None]],
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._ask = ask
        self._sleep = sleep
        self._answer_s = answer_s
        self._probing: asyncio.Task[None] | None = None
        self.certain = False

    @property
    def under_way(self) -> bool:
        """Suspected or certain."""
        return self._probing is not None

    def __enter__(self) -> None:
        if self.certain:
            raise EngineUnavailable("The metadata database cannot be reached; try again later")

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, EngineUnavailable) and not isinstance(error, EngineClosed):
            self._is_certain(error)
            self.suspect()

    def suspect(self) -> None:
        """Somebody has waited for too long."""
        if self._probing is None:
            self._probing = asyncio.get_running_loop().create_task(self._probe(), name="outage")

    async def close(self) -> None:
        """Ask no more."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])
            self._probing = None

    async def _probe(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._answer_s):
                    await self._ask()
                break
            except EngineClosed:
                break
            except (EngineError, TimeoutError) as error:
                self._is_certain(error)
            await self._sleep(PROBE_S)
        if self.certain:
            log.info("the metadata database answers again")
        self.certain = False
        self._probing = None

    def _is_certain(self, error: Exception) -> None:
        if not self.certain:
            log.warning("the metadata database cannot be reached: %s", str(error) or "no answer in time")
        self.certain = True
