"""The FoundationDB engine: the official 7.1 binding behind an asyncio adapter.

The binding is pinned to 7.1 with API version 710, which works with client libraries 7.1 and newer; the library in
turn must speak the cluster's protocol. Both are loaded when an engine is opened, so everything else works where
they are absent.

Transactions are `fdb_transaction.py`'s; retries, the settling of ambiguous commits and the rules for functions are
`retry.Runner`'s. Open after fork: a client does not survive one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from .clock import Clock, SystemClock
from .errors import EngineClosed, EngineUnavailable
from .faults import Faults
from .fdb_client import Bridge, load_binding, reason_of
from .fdb_transaction import FdbTransaction
from .retry import Runner
from .seal import Sealable, SealCheck

T = TypeVar("T")

DONE = b"\xfe/done/"
"""Where attempts leave their mark, under the store's prefix. Tuple-encoded keys never begin with 0xfe."""

TIMEOUT_S = 10.0
"""For one `transact` or `read`, retries and all."""


class FdbEngine(Sealable):
    """An `Engine` on a FoundationDB cluster. Made by `FdbEngine.open`."""

    def __init__(
        self,
        binding: Any,
        database: Any,
        clock: Clock,
        faults: Faults | None,
        timeout_s: float,
        prefix: bytes = b"",
    ) -> None:
        self.prefix = prefix
        self._clock = clock
        self._closed = False
        bridge = Bridge()

        def begin(read_only: bool, left_s: float) -> FdbTransaction:
            native = database.create_transaction()
            native.options.set_timeout(max(int(left_s * 1000), 1))
            return FdbTransaction(native, bridge, binding, read_only)

        def runner(read_only: bool) -> Runner:
            return Runner(
                lambda left_s: begin(read_only, left_s),
                clock,
                done_prefix=prefix + DONE,
                timeout_s=timeout_s,
                faults=faults,
                seal=None if read_only else SealCheck(prefix),
            )

        self._writes = runner(False)
        self._reads = runner(True)

    @classmethod
    async def open(
        cls,
        cluster_file: str | None = None,
        *,
        prefix: bytes = b"",
        clock: Clock | None = None,
        faults: Faults | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> FdbEngine:
        """Open the cluster that `cluster_file` names (None: FoundationDB's default). Does not wait for it to answer.

        `prefix` is where this store's keys lie.

        Raises:
            EngineUnavailable: the client library is missing, or the cluster file unusable.
        """
        binding = load_binding()
        try:
            database = binding.open(cluster_file)
        except binding.FDBError as error:
            raise EngineUnavailable(f"cluster file {cluster_file or '(default)'}: {reason_of(error)}") from error
        return cls(binding, database, clock or SystemClock(), faults, timeout_s, prefix)

    async def transact(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        if self._closed:
            raise EngineClosed("the engine has been closed")
        return await self._writes.transact(fn, args)

    async def transact_past_seal(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        if self._closed:
            raise EngineClosed("the engine has been closed")
        return await self._writes.transact(fn, args, past_seal=True)

    async def read(self, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        if self._closed:
            raise EngineClosed("the engine has been closed")
        return await self._reads.read(fn, args)

    def now_ns(self) -> int:
        return self._clock.now_ns()

    async def checkpoint(self) -> None:
        """Nothing to do: the cluster looks after itself."""

    async def close(self) -> None:
        self._closed = True
        await self._writes.close()
        await self._reads.close()
